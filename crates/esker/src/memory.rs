//! What memtables take in memory, and until when: the write buffer and each tree's account in it.
//!
//! What must stay true: every byte that is charged is given back exactly once. A merge keeps the
//! memtables that were there when it began, so what is flushed meanwhile stays on the account until
//! the merge has ended: it is *held*. Memory that readers keep is on no account: a writer must never
//! wait for an iterator, which may be its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// About a node of lsm-tree's skip list: key and value of 24 bytes each, number and kind, height,
/// two links on average, and what the allocator adds.
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

/// The memtables of all trees together.
#[derive(Default)]
pub(crate) struct WriteBuffer {
    unflushed: AtomicU64,
    held: AtomicU64,
}

impl WriteBuffer {
    /// What flushing can free.
    pub(crate) fn unflushed(&self) -> u64 {
        self.unflushed.load(Ordering::Relaxed)
    }

    /// Everything, what merges hold included.
    pub(crate) fn used(&self) -> u64 {
        self.unflushed() + self.held.load(Ordering::Relaxed)
    }

    /// What of a buffer of `max` bytes is there for what is not flushed. Merges take up to half of
    /// it, however much they hold: flushing always makes room, so nobody waits for memory until a
    /// merge ends.
    pub(crate) fn room(&self, max: u64) -> u64 {
        max - self.held.load(Ordering::Relaxed).min(max / 2)
    }
}

/// The account of one tree.
pub(crate) struct Account {
    buffer: Arc<WriteBuffer>,
    active: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many memtables were sealed so far: the number of the active one.
    sealed: u64,
    /// Number and bytes of those that are not in tables yet.
    unflushed: Vec<(u64, u64)>,
    /// A merge runs and keeps memtables up to this number.
    merge_holds: Option<u64>,
    /// Bytes of those that are in tables by now.
    held: u64,
}

impl Account {
    pub(crate) fn new(buffer: Arc<WriteBuffer>) -> Self {
        Self { buffer, active: AtomicU64::new(0), state: Mutex::default() }
    }

    /// Charges the active memtable; returns what it takes now.
    pub(crate) fn charge(&self, bytes: u64) -> u64 {
        self.buffer.unflushed.fetch_add(bytes, Ordering::Relaxed);
        self.active.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    pub(crate) fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// What a flush would free.
    pub(crate) fn unflushed(&self) -> u64 {
        self.active() + sum(&self.state.lock().unflushed)
    }

    /// Everything, what a merge holds included.
    pub(crate) fn total(&self) -> u64 {
        let state = self.state.lock();
        self.active() + sum(&state.unflushed) + state.held
    }

    /// The active memtable was sealed; another one has taken its place.
    pub(crate) fn seal(&self) {
        let mut state = self.state.lock();
        let sealed = (state.sealed, self.active.swap(0, Ordering::Relaxed));
        state.unflushed.push(sealed);
        state.sealed += 1;
    }

    /// Every sealed memtable is in tables.
    pub(crate) fn flushed(&self) {
        let mut state = self.state.lock();
        let upto = state.merge_holds;
        for (number, bytes) in std::mem::take(&mut state.unflushed) {
            if upto.is_some_and(|upto| number <= upto) {
                state.held += bytes;
                self.buffer.held.fetch_add(bytes, Ordering::Relaxed);
            }
            self.buffer.unflushed.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// A merge begins, and nothing is sealed before it has chosen its inputs. One at a time.
    pub(crate) fn begin_merge(&self) {
        let mut state = self.state.lock();
        state.merge_holds = Some(state.sealed);
    }

    /// The merge has ended, one way or another.
    pub(crate) fn end_merge(&self) {
        let mut state = self.state.lock();
        state.merge_holds = None;
        self.give_back_held(&mut state);
    }

    /// The tree was cleared or dropped: what it has in memory goes with its readers and merges.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        let unflushed = sum(&state.unflushed) + self.active.swap(0, Ordering::Relaxed);
        state.unflushed.clear();
        self.buffer.unflushed.fetch_sub(unflushed, Ordering::Relaxed);
        self.give_back_held(&mut state);
    }

    fn give_back_held(&self, state: &mut State) {
        let held = std::mem::take(&mut state.held);
        self.buffer.held.fetch_sub(held, Ordering::Relaxed);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.close();
    }
}

fn sum(memtables: &[(u64, u64)]) -> u64 {
    memtables.iter().map(|(_, bytes)| bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> (Arc<WriteBuffer>, Account) {
        let buffer = Arc::new(WriteBuffer::default());
        (Arc::clone(&buffer), Account::new(buffer))
    }

    #[test]
    fn a_merge_holds_the_memtables_that_were_there_when_it_began_and_no_others() {
        let (buffer, account) = account();
        account.charge(1);
        account.seal();
        account.charge(2);
        account.begin_merge();
        account.charge(4);
        account.seal();
        account.charge(8);
        account.seal();
        account.charge(16);
        account.flushed();
        assert_eq!((account.unflushed(), account.total()), (16, 16 + 1 + 2 + 4));
        assert_eq!((buffer.used(), buffer.unflushed()), (23, 16));
        account.end_merge();
        assert_eq!((buffer.used(), buffer.unflushed(), account.total()), (16, 16, 16));
        account.seal();
        account.flushed();
        assert_eq!((buffer.used(), account.total()), (0, 0));
    }

    #[test]
    fn a_dropped_tree_gives_everything_back_once_whatever_ends_afterwards() {
        let (buffer, account) = account();
        for bytes in [1, 2, 4] {
            account.charge(bytes);
            account.begin_merge();
            account.seal();
            account.flushed();
        }
        account.charge(8);
        account.seal();
        account.charge(16);
        account.close();
        assert_eq!((buffer.used(), buffer.unflushed(), account.total()), (0, 0, 0));
        account.flushed();
        account.end_merge();
        account.close();
        assert_eq!((buffer.used(), buffer.unflushed()), (0, 0));
        account.charge(32);
        drop(account);
        assert_eq!(buffer.used(), 0, "trees that replay leaves behind are only dropped");
    }

    #[test]
    fn merges_never_count_for_more_than_half_of_the_buffer() {
        let (buffer, account) = account();
        account.charge(90);
        account.begin_merge();
        account.seal();
        account.flushed();
        account.charge(10);
        assert_eq!((buffer.used(), buffer.unflushed()), (100, 10));
        assert_eq!((buffer.room(100), buffer.room(1000)), (50, 910));
    }

    #[test]
    fn an_entry_takes_its_node_and_what_does_not_lie_in_it() {
        assert_eq!(entry_bytes(b"key", None), NODE_BYTES);
        assert_eq!(entry_bytes(&[0; 20], Some(&[0; 20])), NODE_BYTES);
        assert_eq!(entry_bytes(&[0; 21], Some(&[0; 1000])), NODE_BYTES + 48 + 1024);
    }
}
