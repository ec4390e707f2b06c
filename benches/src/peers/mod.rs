//! The engines that are compared, one file each.
//!
//! What must stay true: all get the same cache and write buffer, the same compression by level and
//! the same filters where they have such things, and [`Durability::Durable`] means the same to all:
//! when a put returns, it survives a power cut. [`Durability::Unsynced`] is the cheapest level that
//! an engine offers short of that; how much it survives differs, so each says it ([`Survives`])
//! and the tables repeat it beside the numbers.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Result;

pub mod esker;
#[cfg(feature = "fjall")]
pub mod fjall;
#[cfg(feature = "lmdb")]
pub mod lmdb;
#[cfg(feature = "redb")]
pub mod redb;
#[cfg(feature = "rocksdb")]
pub mod rocksdb;
#[cfg(feature = "sled")]
pub mod sled;
#[cfg(feature = "sqlite")]
pub mod sqlite;

/// Every key has so many bytes.
pub const KEY_BYTES: usize = 16;
/// A key.
pub type Key = [u8; KEY_BYTES];

/// When a put counts as done.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Durability {
    /// Without waiting for the disk.
    Unsynced,
    /// When it survives a power cut.
    Durable,
}

/// What a put that returned survives.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Survives {
    /// Not even the death of the process: it is in the engine's memory.
    Nothing,
    /// The death of the process, not of the machine: it is with the operating system.
    Kill,
    /// A power cut.
    Power,
}

impl fmt::Display for Survives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nothing => "nothing",
            Self::Kill => "kill",
            Self::Power => "power cut",
        })
    }
}

/// What every engine is opened with.
#[derive(Copy, Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Block or page cache, in bytes.
    pub cache_bytes: u64,
    /// Memory for entries that are not in tables yet, in bytes.
    pub buffer_bytes: u64,
    /// How durable puts are.
    pub durability: Durability,
    /// Bytes of every value.
    pub value_bytes: usize,
    /// Threads that will use it at the same time.
    pub threads: usize,
}

/// Writes the next key and its value into the buffers; false when there is none.
pub type Source<'a> = dyn FnMut(&mut Key, &mut Vec<u8>) -> bool + 'a;

/// Which way a scan goes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From small keys to large ones.
    Forward,
    /// The other way.
    Reverse,
}

/// How a copy of the open database is taken.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Variant {
    /// As the engine does it when nothing is said.
    Default,
    /// Memtables are flushed first.
    Flush,
    /// Memtables are not flushed: the copy holds the journal.
    NoFlush,
}

/// What a copy of the open database took beside its time.
#[derive(Copy, Clone, Debug, Default)]
pub struct Taken {
    /// How long writers were kept out, where the engine says.
    pub freeze: Option<Duration>,
}

/// An open database that threads share.
pub trait Peer: Send + Sync {
    /// What one thread works with.
    ///
    /// # Errors
    ///
    /// What the engine returns.
    fn session(&self) -> Result<Box<dyn Session + '_>>;

    /// What a put survives at the durability it was opened with.
    fn survives(&self) -> Survives;

    /// Makes every put so far survive a power cut.
    ///
    /// # Errors
    ///
    /// What the engine returns.
    fn persist(&self) -> Result<()>;

    /// Brings what was loaded into the shape that reads find after a while: LSM trees flush and
    /// compact everything; the others empty their logs.
    ///
    /// # Errors
    ///
    /// What the engine returns.
    fn settle(&self) -> Result<()>;

    /// Whether writers must be kept out of [`Peer::copy_to`] by the caller.
    fn copy_needs_stop(&self) -> bool {
        false
    }

    /// Whether there is a way to copy the open database, and in this variant.
    fn can_copy(&self, variant: Variant) -> bool;

    /// Copies the open database to `target`, which does not exist. Synced when it returns.
    ///
    /// # Errors
    ///
    /// What the engine returns.
    fn copy_to(&self, target: &Path, variant: Variant) -> Result<Taken>;

    /// Loads ascending entries past the journal, as the engine does it, into its empty database: all
    /// are visible and survive a power cut when it returns. `scratch` is an empty directory on the
    /// same filesystem. Returns how long the last step took, which shows the entries; `None` if there
    /// is nothing of the kind.
    ///
    /// # Errors
    ///
    /// What the engine returns.
    fn ingest(&self, _source: &mut Source<'_>, _scratch: &Path) -> Result<Option<Duration>> {
        Ok(None)
    }

    /// Closes cleanly.
    ///
    /// # Errors
    ///
    /// What the engine returns.
    fn close(self: Box<Self>) -> Result<()>;
}

/// What one thread does with an open database. Every put is a commit of its own.
pub trait Session {
    /// Sets one key.
    ///
    /// # Errors
    ///
    /// What the engine returns.
    fn put(&mut self, key: &Key, value: &[u8]) -> Result<()>;

    /// Sets all the keys in one atomic commit.
    ///
    /// # Errors
    ///
    /// What the engine returns.
    fn put_batch(&mut self, entries: &[(Key, &[u8])]) -> Result<()>;

    /// Looks at the value of a key, if there is one.
    ///
    /// # Errors
    ///
    /// What the engine returns.
    fn get(&mut self, key: &Key) -> Result<bool>;

    /// Looks at so many entries at most, beginning at `from` (or the end that the direction
    /// begins at), and returns their number.
    ///
    /// # Errors
    ///
    /// What the engine returns.
    fn scan(&mut self, from: Option<&Key>, direction: Direction, limit: u64) -> Result<u64>;
}

/// Looks at one byte of every cache line, or reading from a memory map would be free.
#[inline]
pub fn look(bytes: &[u8]) {
    let sum = bytes.iter().step_by(64).fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    std::hint::black_box(sum);
}

/// Visits so many entries, from one end or the other; returns how many there were.
fn walk<T>(
    mut entries: impl DoubleEndedIterator<Item = T>,
    direction: Direction,
    limit: u64,
    mut visit: impl FnMut(T) -> Result<()>,
) -> Result<u64> {
    for seen in 0..limit {
        let entry = match direction {
            Direction::Forward => entries.next(),
            Direction::Reverse => entries.next_back(),
        };
        let Some(entry) = entry else { return Ok(seen) };
        visit(entry)?;
    }
    Ok(limit)
}

type Open = fn(&Path, &Settings) -> Result<Box<dyn Peer>>;

/// An engine that is compiled in.
#[derive(Copy, Clone)]
pub struct Engine {
    /// How it is called on the command line.
    pub name: &'static str,
    /// What it is, in a line.
    pub line: &'static str,
    open: Open,
}

impl Engine {
    /// Opens the database in `dir`, which is created when missing.
    ///
    /// # Errors
    ///
    /// What the engine returns.
    pub fn open(&self, dir: &Path, settings: &Settings) -> Result<Box<dyn Peer>> {
        (self.open)(dir, settings)
    }
}

/// Every engine of this build.
pub const ENGINES: &[Engine] = &[
    Engine { name: "esker", line: "this repository", open: esker::open },
    #[cfg(feature = "fjall")]
    Engine { name: "fjall", line: "fjall 3.1.13, LSM trees", open: fjall::open },
    #[cfg(feature = "rocksdb")]
    Engine { name: "rocksdb", line: "RocksDB, crate 0.25, LSM trees", open: rocksdb::open },
    #[cfg(feature = "redb")]
    Engine { name: "redb", line: "redb 4.6, copy-on-write B-trees", open: redb::open },
    #[cfg(feature = "sled")]
    Engine { name: "sled", line: "sled 0.34.7, a Bw-tree on a log", open: sled::open },
    #[cfg(feature = "sqlite")]
    Engine { name: "sqlite", line: "SQLite in WAL mode, B-trees", open: sqlite::open },
    #[cfg(feature = "lmdb")]
    Engine { name: "lmdb", line: "LMDB, mapped copy-on-write B-trees", open: lmdb::open },
];

/// The engine of this name.
///
/// # Errors
///
/// With the names there are, and how to get the others.
pub fn engine(name: &str) -> Result<Engine> {
    ENGINES.iter().find(|engine| engine.name == name).copied().ok_or_else(|| {
        let names: Vec<_> = ENGINES.iter().map(|engine| engine.name).collect();
        let names = names.join(", ");
        format!("no engine {name:?} in this build (has {names}; others: --features all-peers)")
            .into()
    })
}
