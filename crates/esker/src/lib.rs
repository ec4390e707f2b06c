//! esker: an embedded key-value store whose speciality is getting data out safely while it is in
//! use.
//!
//! A [`Keyspace`] is a directory of [`Partition`]s, each an ordered map from bytes to bytes in a
//! log-structured merge tree, all behind one journal: a [`Batch`] is atomic across them, and a
//! [`Snapshot`] sees them all at one commit. [`Keyspace::backup_to`] takes an online checkpoint that
//! pauses writers for microseconds, whatever the size; [`cold_copy`] copies a keyspace that nobody
//! has open; [`verify`] reads every byte of either against its hashes and changes nothing.
//!
//! ```
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("db");
//! # let backup = dir.path().join("backup");
//! use esker::{Config, Durability, Keyspace, PartitionOptions};
//!
//! let keyspace = Config::new(&path).durability(Durability::SyncData).open()?;
//! let users = keyspace.partition("users", PartitionOptions::default())?;
//! users.insert("ada", "1815")?;
//!
//! // While other threads go on writing:
//! let report = keyspace.backup_to(&backup)?;
//! println!("commit {} after a pause of {:?}", report.seqno, report.freeze);
//!
//! // The checkpoint is a keyspace of its own.
//! let copy = Keyspace::open(&backup)?;
//! let users = copy.partition("users", PartitionOptions::default())?;
//! assert_eq!(users.get("ada")?.as_deref(), Some(&b"1815"[..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What is promised when things go wrong is in `docs/durability.md`, the files are in
//! `docs/format.md`, and how it all hangs together is in `docs/architecture.md`.

#![deny(missing_docs)]

mod assemble;
mod batch;
mod bytes;
mod catalog;
mod checkpoint;
mod commit;
mod compaction;
mod config;
mod copy;
mod error;
mod files;
mod flush;
mod jobs;
mod journal;
mod keyspace;
mod listing;
mod manifest;
mod memory;
mod options;
mod partition;
#[doc(hidden)]
pub mod planted;
mod progress;
mod recovery;
mod replay;
mod snapshot;
mod stall;
mod statistics;
mod structure;
mod survey;
mod transfer;
mod tree;
mod verify;
mod versions;
mod views;

pub use batch::Batch;
pub use checkpoint::{CheckpointBuilder, CheckpointReport};
pub use config::{Config, Durability, PersistMode};
pub use copy::{CopyOptions, CopyReport, cold_copy};
pub use error::{Corruption, Error, ErrorKind, Result};
pub use keyspace::Keyspace;
pub use options::{Compression, PartitionOptions};
pub use partition::{Iter, Keys, Partition};
pub use progress::{Moved, Phase, Progress};
pub use snapshot::Snapshot;
pub use statistics::{PartitionStatistics, Statistics};
pub use transfer::Transfer;
pub use tree::Slice;
pub use verify::{Problem, TornTail, VerifyOptions, VerifyReport, verify};

/// Entry points for the fuzz targets; not part of the API.
#[doc(hidden)]
pub mod fuzzing {
    use std::path::Path;

    use crate::journal::format::Identity;
    use crate::journal::items::Items;
    use crate::journal::reader;

    /// The identity that a fuzzed segment has to carry.
    pub const UUID: u128 = 1;
    /// Its timeline.
    pub const TIMELINE: u128 = 2;

    /// Reads the file as journal segment 1; returns the frames and items found.
    pub fn read_segment(path: &Path) -> crate::Result<(u64, u64)> {
        let identity = Identity { uuid: UUID, timeline: TIMELINE };
        let mut items = 0;
        let scan = reader::scan(path, 1, identity, &mut |frame| {
            items += Items::new(frame.payload, frame.items).filter(Result::is_ok).count() as u64;
            Ok(())
        })?;
        assert!(scan.end <= scan.len, "a segment ends where its file does");
        Ok((scan.frames, items))
    }
}

/// The README's example, so that it compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
