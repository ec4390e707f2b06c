//! What the memtables of one tree take in memory, and until when.
//!
//! What must stay true: every byte that was charged is given back exactly once. A memtable that was
//! flushed stays on the account for as long as somebody holds it while a merge of its tree runs: a
//! merge keeps the memtables that were there when it began, and the writers that wait for it cannot
//! wait for ever. It does not stay longer: iterators hold memtables, too, and a writer must never
//! wait for an iterator, which may be its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// A node of lsm-tree's skip list: key and value of 24 bytes each, number and kind, 16 bytes of
/// counters, two links on average, and the allocator's header.
const NODE_BYTES: u64 = 112;
/// Keys and values up to this length lie in the node.
const INLINE_BYTES: usize = 20;

/// The memory that an entry takes in a memtable.
pub(crate) fn entry_bytes(key: &[u8], value: Option<&[u8]>) -> u64 {
    // The bytes, a counter of references and the allocator's header, in units of 16.
    let heap = |bytes: &[u8]| match bytes.len() {
        len if len <= INLINE_BYTES => 0,
        len => (len as u64 + 16).next_multiple_of(16),
    };
    NODE_BYTES + heap(key) + value.map_or(0, heap)
}

/// The account of one tree. `M` is a memtable.
pub(crate) struct Account<M> {
    active: AtomicU64,
    sealed: Mutex<Sealed<M>>,
}

struct Sealed<M> {
    /// Not in tables yet.
    unflushed: Vec<(Weak<M>, u64)>,
    /// In tables, and held by a merge.
    held: Vec<(Weak<M>, u64)>,
}

impl<M> Default for Account<M> {
    fn default() -> Self {
        let sealed = Sealed { unflushed: Vec::new(), held: Vec::new() };
        Self { active: AtomicU64::new(0), sealed: Mutex::new(sealed) }
    }
}

impl<M> Account<M> {
    /// Charges the active memtable; returns what it takes now.
    pub(crate) fn charge(&self, bytes: u64) -> u64 {
        self.active.fetch_add(bytes, Ordering::AcqRel) + bytes
    }

    pub(crate) fn active(&self) -> u64 {
        self.active.load(Ordering::Acquire)
    }

    /// What a flush would free.
    pub(crate) fn unflushed(&self) -> u64 {
        self.active() + sum(&self.sealed.lock().unflushed)
    }

    /// Everything.
    pub(crate) fn total(&self) -> u64 {
        let sealed = self.sealed.lock();
        self.active() + sum(&sealed.unflushed) + sum(&sealed.held)
    }

    /// The active memtable was sealed; another one has taken its place.
    pub(crate) fn seal(&self, memtable: &Arc<M>) {
        let bytes = self.active.swap(0, Ordering::AcqRel);
        self.sealed.lock().unflushed.push((Arc::downgrade(memtable), bytes));
    }

    /// Every sealed memtable is in tables. Returns the bytes that are free now; `merging` tells
    /// whether a merge of the tree runs.
    pub(crate) fn flushed(&self, merging: impl FnOnce() -> bool) -> u64 {
        let mut sealed = self.sealed.lock();
        let flushed = std::mem::take(&mut sealed.unflushed);
        sealed.held.extend(flushed);
        sealed.sweep(merging())
    }

    /// A merge has ended.
    pub(crate) fn merged(&self, merging: impl FnOnce() -> bool) -> u64 {
        self.sealed.lock().sweep(merging())
    }

    /// The tree was cleared or dropped: nobody waits for its memory any more.
    pub(crate) fn close(&self) -> u64 {
        let mut sealed = self.sealed.lock();
        let all = sum(&sealed.unflushed) + sum(&sealed.held);
        sealed.unflushed.clear();
        sealed.held.clear();
        all + self.active.swap(0, Ordering::AcqRel)
    }
}

impl<M> Sealed<M> {
    fn sweep(&mut self, merging: bool) -> u64 {
        let before = sum(&self.held);
        self.held.retain(|(memtable, _)| merging && memtable.strong_count() > 0);
        before - sum(&self.held)
    }
}

fn sum<M>(memtables: &[(Weak<M>, u64)]) -> u64 {
    memtables.iter().map(|(_, bytes)| bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_merge_holds_is_given_back_when_the_merge_ends_and_only_once() {
        let account = Account::default();
        assert_eq!(account.charge(10) + account.charge(5), 25);
        let (held, free) = (Arc::new(1), Arc::new(2));
        account.seal(&held);
        account.charge(7);
        account.seal(&free);
        drop(free);
        account.charge(1);
        assert_eq!((account.active(), account.unflushed(), account.total()), (1, 23, 23));
        assert_eq!(account.flushed(|| true), 7, "only what nobody holds");
        assert_eq!((account.unflushed(), account.total()), (1, 16));
        assert_eq!(account.merged(|| false), 15, "held by an iterator, which nobody waits for");
        assert_eq!(account.merged(|| false), 0);
        assert_eq!((account.close(), account.total()), (1, 0));
    }

    #[test]
    fn an_entry_takes_its_node_and_what_does_not_lie_in_it() {
        assert_eq!(entry_bytes(b"key", None), NODE_BYTES);
        assert_eq!(entry_bytes(&[0; 20], Some(&[0; 20])), NODE_BYTES);
        assert_eq!(entry_bytes(&[0; 21], Some(&[0; 1000])), NODE_BYTES + 48 + 1024);
    }
}
