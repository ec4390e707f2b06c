//! A memtable of numbers in the place of a partition: one key, all of its versions.

use std::sync::Arc;
use std::sync::atomic::AtomicU64 as PlainU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::error::{Error, Result};
use crate::sync::{AtomicBool, Mutex, Ordering};

pub type Key = u64;

/// One write of a batch.
pub struct Change {
    pub core: Arc<Core>,
    pub key: u64,
    pub value: u64,
}

/// What one batch changes.
pub type Changes = Vec<Change>;

/// What a partition is to the commit path.
pub struct Core {
    pub id: u32,
    dropped: AtomicBool,
    /// Seqno and value, in the order in which they were applied.
    versions: Mutex<Vec<(u64, u64)>>,
    /// Panics when this commit is applied; 0: never.
    panics_at: PlainU64,
}

impl Core {
    pub fn new(id: u32) -> Self {
        let panics_at = PlainU64::new(0);
        Self { id, dropped: AtomicBool::new(false), versions: Mutex::default(), panics_at }
    }

    pub fn panic_at(&self, seqno: u64) {
        self.panics_at.store(seqno, Relaxed);
    }

    /// Never asks for a flush.
    pub fn apply(&self, _key: u64, value: u64, seqno: u64, _memtable_bytes_max: u64) -> bool {
        assert!(self.panics_at.load(Relaxed) != seqno, "planned: applying commit {seqno} panics");
        assert!(!self.dropped.load(Ordering::Acquire), "commit {seqno} after the drop");
        self.versions.lock().push((seqno, value));
        false
    }

    pub fn check_alive(&self) -> Result<()> {
        if self.dropped.load(Ordering::Acquire) {
            return Err(Error::PartitionDropped { name: self.id.to_string() });
        }
        Ok(())
    }

    pub fn mark_dropped(&self) {
        self.dropped.store(true, Ordering::Release);
    }

    pub fn versions(&self) -> Vec<(u64, u64)> {
        self.versions.lock().clone()
    }

    /// The newest value below `read_seqno`.
    pub fn read(&self, read_seqno: u64) -> Option<(u64, u64)> {
        self.versions.lock().iter().rfind(|(seqno, _)| *seqno < read_seqno).copied()
    }

    /// lsm-tree's rule: of the versions up to `newest` a merge drops those below the threshold that
    /// a newer one is merged with.
    pub fn merge(&self, newest: u64, threshold: u64) {
        let mut versions = self.versions.lock();
        let last = versions.iter().map(|(seqno, _)| *seqno).filter(|s| *s <= newest).max();
        versions.retain(|(seqno, _)| *seqno >= threshold || Some(*seqno) >= last);
    }
}
