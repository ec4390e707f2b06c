//! What failed, on which object or file, and what the caller does next.

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of every fallible call in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. `Display` is one sentence.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store refused or failed, after it was tried again as often as makes sense.
    #[error("cannot {operation} {object}: {source}")]
    Store {
        /// What was attempted, as a verb.
        operation: &'static str,
        /// The object, by its name in the repository.
        object: String,
        /// The last answer.
        #[source]
        source: Arc<object_store::Error>,
    },
    /// An object is not what was written, or not what anybody would have written.
    #[error("{object} is corrupt: {what}")]
    Corrupt {
        /// The object, by its name in the repository.
        object: String,
        /// What is wrong with it.
        what: String,
    },
    /// An object that must be there is not.
    #[error("{object} is missing, which {needed_by} needs")]
    Missing {
        /// The object, by its name in the repository.
        object: String,
        /// The backup that names it.
        needed_by: String,
    },
    /// There is no repository at this place, or something else.
    #[error("{location} is no repository: {reason}")]
    NotARepository {
        /// The place.
        location: String,
        /// What is missing or in the way.
        reason: String,
    },
    /// There is a repository already where one was to be created.
    #[error("{location} is a repository already")]
    RepositoryExists {
        /// The place.
        location: String,
    },
    /// There is no backup like that.
    #[error("there is no backup {asked} in {location}")]
    NoSuchBackup {
        /// The repository.
        location: String,
        /// What was asked for.
        asked: String,
    },
    /// An object was written by a newer version of this crate.
    #[error("{object} has format version {found}; this build reads up to {supported}")]
    UnsupportedFormat {
        /// The object, by its name in the repository.
        object: String,
        /// Its version.
        found: u32,
        /// The newest version this build reads.
        supported: u32,
    },
    /// The repository is encrypted, and no key or another one was given.
    #[error("{location} {reason}")]
    Key {
        /// The repository.
        location: String,
        /// What is wrong with the key.
        reason: &'static str,
    },
    /// An argument that can never be accepted.
    #[error("{0}")]
    InvalidInput(String),
    /// The target of a restore is there already.
    #[error("{} exists already; choose a path that does not exist", path.display())]
    TargetExists {
        /// The target directory.
        path: PathBuf,
    },
    /// Somebody else does what only one may do at a time.
    #[error("{what} is in use: {by}")]
    Busy {
        /// The repository or directory.
        what: String,
        /// What the other one does.
        by: String,
    },
    /// A lease could not be renewed in time, so others may have removed what it protected.
    #[error("the lease {lease} could not be renewed in time; start again, what was sent is found")]
    LeaseLost {
        /// The object.
        lease: String,
    },
    /// The local filesystem refused something.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb.
        operation: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] esker::Error),
}

/// The caller's next move.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store did not answer, or space ran out: try again; nothing has to be done anew.
    Retry,
    /// Change the argument, the address or the key.
    FixInput,
    /// Bytes are damaged or gone: run `check`; restore an older backup.
    Corrupt,
    /// Somebody has the keyspace open, or works where only one may.
    Locked,
    /// The store or the filesystem refuses for good: look at the cause.
    Io,
}

impl Error {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        use object_store::Error as Store;
        match self {
            Self::Store { source, .. } => match **source {
                Store::NotFound { .. } => ErrorKind::Corrupt,
                Store::PermissionDenied { .. }
                | Store::Unauthenticated { .. }
                | Store::InvalidPath { .. }
                | Store::NotSupported { .. }
                | Store::NotImplemented { .. } => ErrorKind::Io,
                _ => ErrorKind::Retry,
            },
            Self::Corrupt { .. } | Self::Missing { .. } => ErrorKind::Corrupt,
            Self::Busy { .. } => ErrorKind::Locked,
            Self::LeaseLost { .. } => ErrorKind::Retry,
            Self::NotARepository { .. }
            | Self::RepositoryExists { .. }
            | Self::NoSuchBackup { .. }
            | Self::UnsupportedFormat { .. }
            | Self::Key { .. }
            | Self::InvalidInput(_)
            | Self::TargetExists { .. } => ErrorKind::FixInput,
            Self::Io { source, .. } if is_exhaustion(source) => ErrorKind::Retry,
            Self::Io { .. } => ErrorKind::Io,
            Self::Engine(error) => match error.kind() {
                esker::ErrorKind::Retry | esker::ErrorKind::Conflict => ErrorKind::Retry,
                esker::ErrorKind::FixInput | esker::ErrorKind::Closed => ErrorKind::FixInput,
                esker::ErrorKind::Corrupt => ErrorKind::Corrupt,
                esker::ErrorKind::Locked => ErrorKind::Locked,
                _ => ErrorKind::Io,
            },
        }
    }

    pub(crate) fn corrupt(object: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Corrupt { object: object.into(), what: what.into() }
    }

    pub(crate) fn store(
        operation: &'static str,
        object: impl Into<String>,
        source: object_store::Error,
    ) -> Self {
        Self::Store { operation, object: object.into(), source: Arc::new(source) }
    }
}

fn is_exhaustion(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Adds the operation and the path to an [`std::io::Error`].
pub(crate) trait IoContext<T> {
    /// Names what was attempted on which path.
    fn at(self, operation: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T> {
        let path = path.to_path_buf();
        self.map_err(|source| Error::Io { operation, path, source: Arc::new(source) })
    }
}

impl<T> IoContext<T> for rustix::io::Result<T> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T> {
        self.map_err(std::io::Error::from).at(operation, path)
    }
}
