//! The engine's own sources, compiled once more over `crate::sync`; and what they are placed upon.
//!
//! `backlog.rs`, `commit.rs`, `conflict.rs`, `queue.rs`, `views.rs`, `journal/` and `error.rs` are the files of the
//! engine as they are. The disk and the memtables are stand-ins that keep the books which the checks
//! need.

#[allow(dead_code)]
#[path = "../../crates/esker/src/backlog.rs"]
pub mod backlog;
#[allow(dead_code)]
#[path = "../../crates/esker/src/bytes.rs"]
pub mod bytes;
#[allow(dead_code)]
#[path = "../../crates/esker/src/commit.rs"]
pub mod commit;
#[allow(dead_code)]
#[path = "../../crates/esker/src/conflict.rs"]
pub mod conflict;
#[allow(dead_code, unused_imports)]
#[path = "../../crates/esker/src/error.rs"]
pub mod error;
#[allow(dead_code, unused_imports)]
pub mod journal;
#[allow(dead_code)]
#[path = "../../crates/esker/src/queue.rs"]
pub mod queue;
#[allow(dead_code)]
#[path = "../../crates/esker/src/views.rs"]
pub mod views;

pub mod batch;
pub mod files;
pub mod jobs;
pub mod planted;

pub use esker::Durability;
