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
//! # Features
//!
//! None is on by default.
//!
//! - `typed`: partitions of Rust values, `TypedPartition`.
//! - `bytes`: [`Slice`] is a `bytes::Bytes` and converts to and from one without a copy. A `Bytes` that
//!   is a small part of a large buffer keeps all of that in memory until it is flushed, which the
//!   write buffer does not count: copy such parts.
//!
//! What is promised when things go wrong is in `docs/durability.md`, the files are in
//! `docs/format.md`, and how it all hangs together is in `docs/architecture.md`.

#![deny(missing_docs)]

mod assemble;
mod backlog;
mod batch;
mod bytes;
mod catalog;
mod checkpoint;
mod checkpoints;
mod commit;
mod compaction;
mod config;
mod conflict;
mod copy;
mod error;
mod expiry;
mod files;
mod filter;
mod flush;
#[doc(hidden)]
pub mod fuzzing;
mod ingest;
pub mod interchange;
mod iter;
mod jobs;
mod journal;
mod keyspace;
mod listing;
mod lock;
mod manifest;
mod memory;
mod options;
mod partition;
#[doc(hidden)]
pub mod planted;
mod progress;
mod queue;
mod readable;
mod recovery;
mod replay;
mod snapshot;
mod stall;
mod statistics;
mod structure;
mod survey;
mod sync;
mod transaction;
mod transfer;
mod tree;
#[cfg(feature = "typed")]
mod typed;
mod verify;
mod versions;
mod views;

// For the archive, which makes directories durable as checkpoints are.
pub use batch::Batch;
pub use checkpoint::{CheckpointBuilder, CheckpointReport};
pub use checkpoints::{CheckpointInfo, Checkpoints, SkipReason, SkippedDirectory, checkpoints};
pub use config::{Config, Durability, PersistMode};
pub use copy::{CopyOptions, CopyReport, cold_copy};
pub use error::{Corruption, Error, ErrorKind, Result, Undecodable};
pub use expiry::{RemovalReport, RemoveOptions, RemovedCheckpoint, remove_expired};
#[doc(hidden)]
pub use files::{open_filesystem, sync_opened};
pub use filter::{CompactionFilter, CompactionFilterFactory, FilterContext, FilterItem, Verdict};
pub use ingest::{Ingest, IngestReport};
pub use iter::{Iter, Keys};
pub use keyspace::Keyspace;
pub use listing::{ListedFile, Listing, keep_partitions, read_listing};
pub use options::{CompactionStrategy, Compression, PartitionOptions};
pub use partition::Partition;
pub use progress::{Moved, Phase, Progress};
pub use readable::Readable;
pub use snapshot::Snapshot;
pub use statistics::{PartitionStatistics, Statistics};
pub use transaction::{TxKeyspace, TxKind, TxPartition, WriteTx};
pub use transfer::Transfer;
pub use tree::Slice;
#[cfg(feature = "typed")]
pub use typed::{
    AsKey, AsPrefix, Changing, Key, Place, TypedIter, TypedKeys, TypedPartition, TypedView,
};
pub use verify::{Problem, TornTail, VerifyOptions, VerifyReport, verify};

/// The README's example, so that it compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
