//! The engine's journal, without its writer.

#[path = "../../../crates/esker/src/journal/format.rs"]
pub mod format;
#[path = "../../../crates/esker/src/journal/items.rs"]
pub mod items;
#[path = "../../../crates/esker/src/journal/reader.rs"]
pub mod reader;
