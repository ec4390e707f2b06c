//! Which transactions can commit: what was written since each of them began, against what it read.
//!
//! The leader of the commit queue asks for every commit, in the order of sequence numbers, before it
//! appends the group. A transaction that has read a key, or a range around a key, which a commit
//! that it does not see has changed is refused; so every transaction that commits could have run at
//! the moment of its commit, alone (backward validation, as in Kung and Robinson 1981). Commits
//! without a transaction are noted as well, so nothing gets past a transaction.
//!
//! What must stay true:
//! - Whatever a transaction that is open may not have seen is noted: what is forgotten lies below
//!   every open transaction and is visible, so those that begin later see it.
//! - A commit is noted before it can become visible, under the number that it will get. One that
//!   fails behind that leaves a note of something that did not happen: a transaction may be refused
//!   for nothing then, and none is accepted wrongly.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::sync::Mutex;
use crate::views::{View, Views};

/// A range of keys of one partition.
type Range<K> = (u32, (Bound<K>, Bound<K>));

/// What a transaction has read.
#[derive(Debug)]
pub(crate) struct Reads<K> {
    keys: HashSet<(u32, K)>,
    ranges: Vec<Range<K>>,
}

impl<K> Default for Reads<K> {
    fn default() -> Self {
        Self { keys: HashSet::new(), ranges: Vec::new() }
    }
}

impl<K: Hash + Ord> Reads<K> {
    pub(crate) fn key(&mut self, partition: u32, key: K) {
        self.keys.insert((partition, key));
    }

    pub(crate) fn range(&mut self, partition: u32, bounds: (Bound<K>, Bound<K>)) {
        let range = (partition, bounds);
        // A transaction that polls reads the same range over and over.
        if self.ranges.last() != Some(&range) {
            self.ranges.push(range);
        }
    }
}

/// What has to be unchanged for a commit.
#[derive(Debug)]
pub(crate) struct Check<K> {
    pub(crate) read_seqno: u64,
    pub(crate) reads: Reads<K>,
}

/// The newest commits of one partition.
#[derive(Debug)]
struct Written<K> {
    keys: BTreeMap<K, u64>,
    /// The newest commit that changed everything: a clear, a drop.
    all: u64,
}

impl<K> Default for Written<K> {
    fn default() -> Self {
        Self { keys: BTreeMap::new(), all: 0 }
    }
}

#[derive(Debug)]
struct State<K> {
    written: HashMap<u32, Written<K>>,
    /// The same in the order of commits; no key: everything.
    order: VecDeque<(u64, u32, Option<K>)>,
    /// Open transactions by their read seqno.
    open: BTreeMap<u64, usize>,
}

#[derive(Debug)]
pub(crate) struct Conflicts<K> {
    views: Arc<Views>,
    state: Mutex<State<K>>,
}

impl<K: Clone + Ord + Hash> Conflicts<K> {
    pub(crate) fn new(views: Arc<Views>) -> Self {
        let state =
            State { written: HashMap::new(), order: VecDeque::new(), open: BTreeMap::new() };
        Self { views, state: Mutex::new(state) }
    }

    /// A transaction begins: it reads the view.
    pub(crate) fn begin(self: &Arc<Self>) -> (View, Open<K>) {
        let mut state = self.state.lock();
        let view = self.views.open();
        let read_seqno = view.read_seqno();
        *state.open.entry(read_seqno).or_insert(0) += 1;
        (view, Open { conflicts: Arc::clone(self), read_seqno })
    }

    /// Refuses a transaction that has read what was changed since; otherwise notes what it changes
    /// as commit `seqno`.
    pub(crate) fn admit<'a>(
        &self,
        check: Option<&Check<K>>,
        seqno: u64,
        changes: impl Iterator<Item = (u32, &'a K)>,
    ) -> Result<()>
    where
        K: 'a,
    {
        let mut state = self.state.lock();
        if check.is_some_and(|check| state.has_changed(check)) {
            return Err(Error::Conflict);
        }
        for (partition, key) in changes {
            state.written.entry(partition).or_default().keys.insert(key.clone(), seqno);
            state.order.push_back((seqno, partition, Some(key.clone())));
        }
        state.forget(self.views.visible());
        Ok(())
    }

    /// Commit `seqno` changed everything in a partition.
    pub(crate) fn note_all(&self, partition: u32, seqno: u64) {
        let mut state = self.state.lock();
        state.written.entry(partition).or_default().all = seqno;
        state.order.push_back((seqno, partition, None));
    }
}

impl<K: Clone + Ord + Hash> State<K> {
    fn has_changed(&self, Check { read_seqno, reads }: &Check<K>) -> bool {
        let is_later = |seqno: &u64| seqno >= read_seqno;
        let key_changed = |(partition, key): &(u32, K)| {
            self.written.get(partition).is_some_and(|written| {
                is_later(&written.all) || written.keys.get(key).is_some_and(is_later)
            })
        };
        let range_changed = |(partition, bounds): &Range<K>| {
            self.written.get(partition).is_some_and(|written| {
                is_later(&written.all)
                    || (!is_empty(bounds)
                        && written.keys.range(bounds.clone()).any(|(_, seqno)| is_later(seqno)))
            })
        };
        reads.keys.iter().any(key_changed) || reads.ranges.iter().any(range_changed)
    }

    /// Forgets what everybody sees.
    fn forget(&mut self, visible: u64) {
        let oldest = self.open.first_key_value().map_or(u64::MAX, |(&read_seqno, _)| read_seqno);
        let seen = visible.saturating_add(1).min(oldest);
        while let Some((seqno, partition, key)) = self.order.pop_front_if(|(s, ..)| *s < seen) {
            let Some(written) = self.written.get_mut(&partition) else { continue };
            if let Some(key) = key
                && written.keys.get(&key) == Some(&seqno)
            {
                written.keys.remove(&key);
            }
            if written.keys.is_empty() && written.all < seen {
                self.written.remove(&partition);
            }
        }
    }
}

/// Whether no key lies between the bounds; a map panics when it is asked for some of those.
pub(crate) fn is_empty<K: Ord>(bounds: &(Bound<K>, Bound<K>)) -> bool {
    match (bounds.start_bound(), bounds.end_bound()) {
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Excluded(end))
        | (Bound::Excluded(start), Bound::Included(end)) => start >= end,
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
    }
}

/// An open transaction, whose reads may be checked: closed on drop.
#[derive(Debug)]
pub(crate) struct Open<K> {
    conflicts: Arc<Conflicts<K>>,
    read_seqno: u64,
}

impl<K> Drop for Open<K> {
    fn drop(&mut self) {
        let mut state = self.conflicts.state.lock();
        if let Some(count) = state.open.get_mut(&self.read_seqno) {
            *count -= 1;
            if *count == 0 {
                state.open.remove(&self.read_seqno);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Numbers = Arc<Conflicts<u32>>;

    fn at(visible: u64) -> (Arc<Views>, Numbers) {
        let views = Arc::new(Views::new(visible));
        (Arc::clone(&views), Arc::new(Conflicts::new(views)))
    }

    fn write(conflicts: &Numbers, seqno: u64, key: u32) {
        conflicts.admit(None, seqno, [(1, &key)].into_iter()).unwrap();
    }

    fn check(conflicts: &Numbers, read_seqno: u64, reads: Reads<u32>) -> bool {
        conflicts.admit(Some(&Check { read_seqno, reads }), 99, std::iter::empty()).is_ok()
    }

    fn read(key: u32) -> Reads<u32> {
        let mut reads = Reads::default();
        reads.key(1, key);
        reads
    }

    fn scan(bounds: (Bound<u32>, Bound<u32>)) -> Reads<u32> {
        let mut reads = Reads::default();
        reads.range(1, bounds);
        reads
    }

    #[test]
    fn what_was_read_and_changed_since_is_a_conflict() {
        let (views, conflicts) = at(10);
        let (view, _open) = conflicts.begin();
        write(&conflicts, 11, 5);
        views.publish(11);
        assert!(!check(&conflicts, view.read_seqno(), read(5)));
        assert!(check(&conflicts, view.read_seqno(), read(6)));
        assert!(check(&conflicts, 12, read(5)), "who has seen the change has no conflict with it");
    }

    #[test]
    fn a_change_inside_a_range_that_was_read_is_a_conflict_and_one_beside_it_is_not() {
        let (_, conflicts) = at(10);
        let (view, _open) = conflicts.begin();
        write(&conflicts, 11, 5);
        let at = view.read_seqno();
        use Bound::{Excluded, Included, Unbounded};
        assert!(!check(&conflicts, at, scan((Included(5), Included(5)))));
        assert!(!check(&conflicts, at, scan((Unbounded, Unbounded))));
        assert!(check(&conflicts, at, scan((Excluded(5), Unbounded))));
        assert!(check(&conflicts, at, scan((Included(0), Excluded(5)))));
        assert!(check(&conflicts, at, scan((Excluded(5), Excluded(5)))));
        assert!(check(&conflicts, at, scan((Included(9), Excluded(1)))));
    }

    #[test]
    fn a_clear_conflicts_with_every_read_of_its_partition() {
        let (_, conflicts) = at(10);
        let (view, _open) = conflicts.begin();
        conflicts.note_all(1, 11);
        assert!(!check(&conflicts, view.read_seqno(), read(5)));
        assert!(!check(
            &conflicts,
            view.read_seqno(),
            scan((Bound::Unbounded, Bound::Excluded(3)))
        ));
        let mut elsewhere = Reads::default();
        elsewhere.key(2, 5);
        assert!(check(&conflicts, view.read_seqno(), elsewhere));
    }

    #[test]
    fn what_is_not_visible_yet_is_remembered_for_who_begins_now() {
        let (views, conflicts) = at(10);
        write(&conflicts, 11, 5);
        write(&conflicts, 12, 6);
        let (view, _open) = conflicts.begin();
        views.publish(12);
        write(&conflicts, 13, 7);
        assert!(!check(&conflicts, view.read_seqno(), read(5)));
    }

    #[test]
    fn what_everybody_sees_is_forgotten() {
        let (views, conflicts) = at(10);
        let (_, open) = conflicts.begin();
        for seqno in 11..=100 {
            write(&conflicts, seqno, seqno as u32 % 7);
            views.publish(seqno);
        }
        conflicts.note_all(2, 100);
        assert_eq!(conflicts.state.lock().order.len(), 91);
        drop(open);
        write(&conflicts, 101, 1);
        views.publish(101);
        write(&conflicts, 102, 1);
        let state = conflicts.state.lock();
        assert_eq!((state.order.len(), state.written.len()), (1, 1));
        assert_eq!(state.written[&1].keys.len(), 1);
    }
}
