//! The engine's journal, without what frames carry.

#[path = "../../../crates/esker/src/journal/format.rs"]
pub mod format;
#[path = "../../../crates/esker/src/journal/reader.rs"]
pub mod reader;
#[path = "../../../crates/esker/src/journal/segments.rs"]
pub mod segments;
#[path = "../../../crates/esker/src/journal/writer.rs"]
pub mod writer;
