//! Why a command ended without being done, and the exit code that says so.
//!
//! A script decides by exit code, a person by the sentence; both come from one place. The codes
//! are part of the interface and stand in `--help`: a change here must be a change there.

use std::io;
use std::path::Path;

use esker::ErrorKind;

/// The result of every command.
pub type Outcome<T = ()> = Result<T, Failure>;

/// The exit codes, as `--help` of the program and of every command prints them.
pub const EXIT_CODES: &str = "Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  corruption found
  4  open elsewhere";

/// Why a command ended without being done. `Display` is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] esker::Error),
    /// The repository refused or failed.
    #[cfg(feature = "archive")]
    #[error(transparent)]
    Archive(#[from] esker_archive::Error),
    /// The engine failed when part of the work was done; says how much.
    #[error("{done}: {cause}")]
    Partway {
        /// What was done before.
        done: String,
        /// What ended it.
        cause: esker::Error,
    },
    /// The command cannot be done as asked, or was done only in part.
    #[error("{0}")]
    Failed(String),
    /// The arguments contradict each other in a way clap cannot see.
    #[error("{0}; see --help")]
    Usage(String),
    /// Damage was found and has been listed.
    #[error("{0}")]
    Corrupt(String),
    /// Results could not be printed.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

impl Failure {
    /// A file outside of the keyspace that could not be used.
    pub fn file(operation: &str, path: &Path, cause: &io::Error) -> Self {
        Self::Failed(format!("cannot {operation} {}: {cause}", path.display()))
    }

    /// The code this program exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Engine(cause) | Self::Partway { cause, .. } => match cause.kind() {
                ErrorKind::Corrupt => 3,
                ErrorKind::Locked => 4,
                _ => 1,
            },
            #[cfg(feature = "archive")]
            Self::Archive(cause) => match cause.kind() {
                esker_archive::ErrorKind::Corrupt => 3,
                esker_archive::ErrorKind::Locked => 4,
                _ => 1,
            },
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Corrupt(_) => 3,
            // Whoever reads us has seen enough, as in `esker scan … | head`: that is no failure.
            Self::Output(_) if self.is_quiet() => 0,
            Self::Output(_) => 1,
        }
    }

    /// Whether there is nothing to tell anyone.
    pub fn is_quiet(&self) -> bool {
        matches!(self, Self::Output(cause) if cause.kind() == io::ErrorKind::BrokenPipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_pipe_ends_quietly() {
        let failure = Failure::Output(io::ErrorKind::BrokenPipe.into());
        assert!(failure.is_quiet());
        assert_eq!(failure.exit_code(), 0);
    }

    #[test]
    fn a_full_disk_behind_stdout_is_a_failure() {
        let failure = Failure::Output(io::ErrorKind::StorageFull.into());
        assert!(!failure.is_quiet());
        assert_eq!(failure.exit_code(), 1);
    }
}
