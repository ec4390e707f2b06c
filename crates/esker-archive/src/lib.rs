//! Off-site backups of esker keyspaces: incremental repositories on anything that `object_store`
//! reaches, restored in parallel.
//!
//! A backup is full in meaning and incremental in bytes: [`Repository::push`] takes a checkpoint of an
//! open keyspace, sends the files that the repository lacks, and writes a manifest that names all of
//! them. [`Repository::restore`] fetches ranges of files out of order by several workers and writes
//! them where they belong; what it makes is a checkpoint again.
//!
//! ```
//! # let dir = tempfile::tempdir()?;
//! # let (db, repository) = (dir.path().join("db"), dir.path().join("repository"));
//! # let repository = repository.to_str().expect("UTF-8");
//! use esker_archive::{PushOptions, Repository, RestoreOptions};
//!
//! let keyspace = esker::Keyspace::open(&db)?;
//! let users = keyspace.partition("users", Default::default())?;
//! users.insert("ada", "1815")?;
//!
//! let repository = Repository::create(repository, Default::default())?;
//! let pushed = repository.push(&keyspace, PushOptions::default())?;
//! println!("{} holds commit {}", pushed.backup, pushed.seqno);
//!
//! let target = dir.path().join("restored");
//! repository.restore(repository.find(None)?, &target, RestoreOptions::default())?;
//! let restored = esker::Keyspace::open(&target)?;
//! let users = restored.partition("users", Default::default())?;
//! assert_eq!(users.get("ada")?.as_deref(), Some(&b"1815"[..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(missing_docs)]

mod buffers;
mod census;
mod check;
mod drill;
mod envelope;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod info;
mod layout;
mod lease;
mod limit;
mod local;
mod manifest;
mod piece;
mod proof;
mod prune;
mod push;
mod repository;
mod restore;
mod retention;
mod seal;
mod store;

pub use check::{CheckOptions, CheckProgress, CheckReport, RepositoryProblem, Unnamed};
pub use drill::{DrillReport, DrilledPartition};
pub use error::{Error, ErrorKind, Result};
pub use info::BackupInfo;
pub use layout::BackupId;
pub use proof::Proofs;
pub use prune::{Kept, PruneOptions, PruneProgress, PruneReport};
pub use push::{PushOptions, PushProgress, PushReport};
pub use repository::{About, Listed, Repository, RepositoryOptions};
pub use restore::{RestoreOptions, RestoreProgress, RestoreReport};
pub use retention::{Policy, Reason};
pub use seal::Key;
