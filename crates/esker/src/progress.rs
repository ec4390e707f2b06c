//! How long work reports how far it is.

use serde::Serialize;

/// What long work is doing.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Writing memtables to tables.
    Flush,
    /// Linking files (or, where links do not work, reflinking or copying them).
    Link,
    /// Copying files to another filesystem.
    Copy,
    /// Making everything durable.
    Sync,
    /// Reading everything and comparing hashes.
    Verify,
}

/// How far it is. Totals may grow while work is found.
#[derive(Copy, Clone, Debug)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Files done in this phase.
    pub files_done: u64,
    /// Files there are in this phase.
    pub files_total: u64,
    /// Bytes done in this phase.
    pub bytes_done: u64,
    /// Bytes there are in this phase; 0 when not known.
    pub bytes_total: u64,
}

impl Progress {
    pub(crate) fn begin(phase: Phase, files_total: u64, bytes_total: u64) -> Self {
        Self { phase, files_done: 0, files_total, bytes_done: 0, bytes_total }
    }
}

/// Files and bytes that took one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// How many files.
    pub files: u64,
    /// Their length in bytes.
    pub bytes: u64,
}
