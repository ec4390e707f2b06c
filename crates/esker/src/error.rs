//! What failed, where, and what the caller does next.
//!
//! Every error names the path (or the partition) it is about. [`Error::kind`] groups errors by the
//! caller's next move, so that a service can decide without matching on every variant. Errors are
//! cheap clones: one failed group commit answers all its members with the same cause.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of every fallible call in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. `Display` is one sentence.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb: `open`, `sync`, `rename`.
        operation: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// Bytes on disk are not what was written.
    #[error("{0}")]
    Corrupt(Box<Corruption>),
    /// Another process, or another handle in this process, has the keyspace open.
    #[error("{} is open elsewhere: another process or handle holds its lock", path.display())]
    Locked {
        /// The keyspace directory.
        path: PathBuf,
    },
    /// A key, value, name or option that can never be accepted.
    #[error("{0}")]
    InvalidInput(String),
    /// The directory is not a keyspace, or only the remains of one.
    #[error("{} is not a keyspace: {reason}", path.display())]
    NotAKeyspace {
        /// The directory that was to be opened.
        path: PathBuf,
        /// What is missing or in the way.
        reason: String,
    },
    /// The file was written by a newer version of this crate.
    #[error("{} has format version {found}; this build reads up to {supported}", path.display())]
    UnsupportedFormat {
        /// The file that carries the version.
        path: PathBuf,
        /// Its format version.
        found: u32,
        /// The newest version this build reads.
        supported: u32,
    },
    /// The target of a checkpoint or copy is there already.
    #[error("{} exists already; choose a path that does not exist", path.display())]
    TargetExists {
        /// The target directory.
        path: PathBuf,
    },
    /// The target of a checkpoint or copy lies inside the keyspace it copies.
    #[error("{} lies inside the keyspace {}; choose a path outside of it", target.display(), source_path.display())]
    TargetInside {
        /// The target directory.
        target: PathBuf,
        /// The keyspace directory.
        source_path: PathBuf,
    },
    /// There is no partition of that name.
    #[error("there is no partition named {name:?}")]
    NoSuchPartition {
        /// The name asked for.
        name: String,
    },
    /// An entry of a typed partition is not of its types: it was written with others, or as bytes.
    #[error("{0}")]
    Undecodable(Box<Undecodable>),
    /// Something that the transaction has read was changed by another one before it could commit:
    /// nothing was written.
    #[error("another transaction changed what this one has read; begin it again")]
    Conflict,
    /// A compaction filter returned an error, or panicked: nothing that the compaction wrote is used,
    /// unless it panicked in its last call, `finish`.
    #[error("the compaction filter of the partition {partition:?} failed: {reason}")]
    FilterFailed {
        /// The partition that was compacted.
        partition: String,
        /// What the filter said.
        reason: String,
    },
    /// The partition behind this handle was dropped.
    #[error("the partition {name:?} was dropped")]
    PartitionDropped {
        /// Its name.
        name: String,
    },
    /// The partition was cleared while an ingest into it was under way: nothing of it was loaded.
    #[error(
        "the partition {name:?} was cleared meanwhile, and nothing was loaded; begin the ingest again"
    )]
    PartitionCleared {
        /// Its name.
        name: String,
    },
    /// The keyspace was opened read-only.
    #[error("{} was opened read-only", path.display())]
    ReadOnly {
        /// The keyspace directory.
        path: PathBuf,
    },
    /// The keyspace was closed while this handle lived on.
    #[error("the keyspace {} is closed", path.display())]
    Closed {
        /// The keyspace directory.
        path: PathBuf,
    },
    /// An earlier write or sync of the journal failed; nothing is accepted until the keyspace is
    /// opened again, because the state of the disk is no longer known.
    #[error(
        "the keyspace refuses writes until it is reopened, because an earlier one failed: {cause}"
    )]
    Poisoned {
        /// The first failure.
        cause: Arc<Error>,
    },
}

/// The caller's next move.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Space, quota or file descriptors ran out: nothing was lost, try again when there is room.
    Retry,
    /// Another transaction, or a clear, was faster: begin this one again.
    Conflict,
    /// Change the argument: a bad key, name, path, option, type or filter.
    FixInput,
    /// Bytes are damaged: restore from a checkpoint.
    Corrupt,
    /// Open elsewhere: wait for the other process or stop it.
    Locked,
    /// This handle is finished: open the keyspace again.
    Closed,
    /// A write or sync failed: reopen, which recovers what is durable.
    Poisoned,
    /// The operating system failed in another way.
    Io,
}

/// One damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// The damaged file.
    pub path: PathBuf,
    /// Where in the file, in bytes, when that is known.
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// What should have been there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is corrupt", self.path.display())?;
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        write!(f, ": {}", self.what)?;
        if !self.expected.is_empty() || !self.found.is_empty() {
            write!(f, " (expected {}, found {})", self.expected, self.found)?;
        }
        Ok(())
    }
}

/// An entry that is not what its partition's types say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// The partition.
    pub partition: String,
    /// The key of the entry, as it is stored.
    pub key: Vec<u8>,
    /// What of the entry: `key` or `value`.
    pub part: &'static str,
    /// The Rust type that it should have.
    pub expected: &'static str,
    /// Why it has not.
    pub reason: String,
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to find the entry.
        const BYTES_MAX: usize = 64;
        let Self { partition, key, part, expected, reason } = self;
        let (begin, more) = key.split_at(key.len().min(BYTES_MAX));
        write!(f, "the {part} of the entry \"{}\"", begin.escape_ascii())?;
        if !more.is_empty() {
            write!(f, "… ({} bytes)", key.len())?;
        }
        write!(f, " in the partition {partition:?} is no {expected}: {reason}")
    }
}

impl Error {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } if is_exhaustion(source) => ErrorKind::Retry,
            Self::Io { .. } => ErrorKind::Io,
            Self::Corrupt(_) => ErrorKind::Corrupt,
            Self::Locked { .. } => ErrorKind::Locked,
            Self::Closed { .. } => ErrorKind::Closed,
            Self::Poisoned { .. } => ErrorKind::Poisoned,
            Self::Conflict | Self::PartitionCleared { .. } => ErrorKind::Conflict,
            Self::InvalidInput(_)
            | Self::NotAKeyspace { .. }
            | Self::UnsupportedFormat { .. }
            | Self::TargetExists { .. }
            | Self::TargetInside { .. }
            | Self::NoSuchPartition { .. }
            | Self::Undecodable(_)
            | Self::FilterFailed { .. }
            | Self::PartitionDropped { .. }
            | Self::ReadOnly { .. } => ErrorKind::FixInput,
        }
    }

    /// Wraps an operating-system error with what was attempted and where.
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { operation, path: path.to_path_buf(), source: Arc::new(source) }
    }

    /// A damaged file without a better description of the two sides.
    pub(crate) fn corrupt(path: &Path, offset: Option<u64>, what: impl Into<String>) -> Self {
        Self::corrupt_because(path, offset, what, String::new(), String::new())
    }

    /// A damaged file, with what was expected and what was found.
    pub(crate) fn corrupt_because(
        path: &Path,
        offset: Option<u64>,
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::Corrupt(Box::new(Corruption {
            path: path.to_path_buf(),
            offset,
            what: what.into(),
            expected: expected.into(),
            found: found.into(),
        }))
    }
}

/// Whether the operating system ran out of something that can come back. Looks through wrappers:
/// crates below us add a path to the error and hide its number.
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const EXHAUSTED: [Errno; 4] = [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE];
    let mut next = Some(error);
    while let Some(error) = next {
        let code = error.raw_os_error();
        if code.is_some_and(|code| EXHAUSTED.iter().any(|e| e.raw_os_error() == code)) {
            return true;
        }
        let inner = error.get_ref().map(|inner| inner as &dyn std::error::Error);
        next = inner.and_then(|inner| {
            let source = inner.source().and_then(|source| source.downcast_ref());
            inner.downcast_ref::<io::Error>().or(source)
        });
    }
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Adds the operation and the path to an [`io::Error`].
pub(crate) trait IoContext<T> {
    /// Names what was attempted on which path.
    fn at(self, operation: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::io(operation, path, source))
    }
}

impl<T> IoContext<T> for rustix::io::Result<T> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T> {
        self.map_err(|errno| Error::io(operation, path, errno.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_space_is_recognised_behind_a_wrapper() {
        let full = || io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        assert!(is_exhaustion(&full()));
        assert!(is_exhaustion(&io::Error::other(full())));
        assert!(is_exhaustion(&io::Error::new(io::ErrorKind::StorageFull, "no room")));
        assert!(!is_exhaustion(&io::Error::other("something else")));
    }
}
