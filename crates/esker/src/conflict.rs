//! Which transactions can commit: what was written since each of them began, against what it read.
//!
//! The leader of the commit queue asks for every commit, in the order of sequence numbers, before it
//! appends the group. A transaction that has read a key, or a range around a key, which a commit
//! that it does not see has changed is refused; so every transaction that commits could have run at
//! the moment of its commit, alone (backward validation, as in Kung and Robinson 1981). Commits
//! without a transaction are noted as well, so nothing gets past a transaction.
//!
//! What must stay true:
//! - A commit is noted once it is in the journal and before it can become visible, in the order of
//!   numbers. What failed is not noted, and refuses nobody.
//! - Whatever a transaction that is open may not have seen is noted: what is forgotten lies below
//!   every open transaction and is visible, so those that begin later see it.
//! - The leader never does work for more than what it notes: who reads a lot, or stays open for
//!   long, makes its own check long, and forgetting goes in steps.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::planted::{Bug, is_planted};
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

    /// Whether the key was read, or any at all.
    fn hold(&self, partition: u32, key: &Option<K>) -> bool {
        let of_partition = |range: &&Range<K>| range.0 == partition;
        match key {
            None => {
                self.keys.iter().any(|read| read.0 == partition)
                    || self.ranges.iter().any(|range| of_partition(&range))
            }
            // Single keys were looked up before.
            Some(key) => self.ranges.iter().filter(of_partition).any(|(_, b)| b.contains(key)),
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

/// Who changed what last, by partition.
#[derive(Debug)]
struct Changed<K>(HashMap<u32, Written<K>>);

#[derive(Debug)]
struct State<K> {
    changed: Changed<K>,
    /// The keys in `changed`.
    len: usize,
    /// The same in the order of commits, those that were overtaken among them; no key: everything.
    order: VecDeque<(u64, u32, Option<K>)>,
    /// Open transactions by their read seqno.
    open: BTreeMap<u64, usize>,
    /// Transactions that were refused.
    refused: u64,
}

/// How much there is of it.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Extent {
    /// Changes that are noted.
    pub(crate) entries: u64,
    /// Transactions that were refused since the open.
    pub(crate) refused: u64,
}

#[derive(Debug)]
pub(crate) struct Conflicts<K> {
    views: Arc<Views>,
    state: Mutex<State<K>>,
}

/// What the members of a group change that is not in the journal yet.
#[derive(Debug)]
pub(crate) struct Group<'a, K> {
    conflicts: &'a Conflicts<K>,
    changed: Changed<K>,
}

/// So much is forgotten at a time, beside twice what is noted.
const FORGET_LEN: usize = 64;
/// So much is forgotten when a transaction is over.
const FORGET_LEN_AT_END: usize = 4096;

impl<K: Clone + Ord + Hash> Conflicts<K> {
    pub(crate) fn new(views: Arc<Views>) -> Self {
        let state = State {
            changed: Changed(HashMap::new()),
            len: 0,
            order: VecDeque::new(),
            open: BTreeMap::new(),
            refused: 0,
        };
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

    /// Refuses a transaction that has read what was changed since.
    pub(crate) fn check(&self, check: &Check<K>) -> Result<()> {
        let mut state = self.state.lock();
        if state.has_changed(check) { Err(state.refuse()) } else { Ok(()) }
    }

    pub(crate) fn extent(&self) -> Extent {
        let state = self.state.lock();
        Extent { entries: state.order.len() as u64, refused: state.refused }
    }

    /// A group of which nothing is admitted yet.
    pub(crate) fn group(&self) -> Group<'_, K> {
        Group { conflicts: self, changed: Changed(HashMap::new()) }
    }

    /// Notes what commits have changed, each with its number, in their order.
    pub(crate) fn note<'a>(&self, changes: impl Iterator<Item = (u64, u32, &'a K)>)
    where
        K: 'a,
    {
        let mut state = self.state.lock();
        let mut added = 0;
        for (seqno, partition, key) in changes {
            state.len += usize::from(state.changed.note(partition, key.clone(), seqno));
            state.order.push_back((seqno, partition, Some(key.clone())));
            added += 1;
        }
        state.forget(self.views.visible(), 2 * added + FORGET_LEN);
        state.compact();
    }

    /// Commit `seqno` changed everything in a partition.
    pub(crate) fn note_all(&self, partition: u32, seqno: u64) {
        let mut state = self.state.lock();
        state.changed.0.entry(partition).or_default().all = seqno;
        state.order.push_back((seqno, partition, None));
    }
}

impl<K: Clone + Ord + Hash> Group<'_, K> {
    /// Refuses a transaction that has read what was changed since, also by those before it in the
    /// group; otherwise those behind it are checked against what it changes.
    pub(crate) fn admit<'a>(
        &mut self,
        check: Option<&Check<K>>,
        changes: impl Iterator<Item = (u32, &'a K)>,
    ) -> Result<()>
    where
        K: 'a,
    {
        if let Some(check) = check {
            if self.changed.by_lookup(check, usize::MAX) == Some(true) {
                return Err(self.conflicts.state.lock().refuse());
            }
            self.conflicts.check(check)?;
        }
        // Whoever is in the group, nobody in it sees it.
        changes
            .for_each(|(partition, key)| _ = self.changed.note(partition, key.clone(), u64::MAX));
        Ok(())
    }
}

impl<K> Default for Written<K> {
    fn default() -> Self {
        Self { keys: BTreeMap::new(), all: 0 }
    }
}

impl<K: Clone + Ord + Hash> Changed<K> {
    /// True for a key that was not there.
    fn note(&mut self, partition: u32, key: K, seqno: u64) -> bool {
        self.0.entry(partition).or_default().keys.insert(key, seqno).is_none()
    }

    /// Looks up what was read. `None` when the ranges hold more than `limit` keys.
    fn by_lookup(&self, Check { read_seqno, reads }: &Check<K>, limit: usize) -> Option<bool> {
        let is_later = |seqno: &u64| seqno >= read_seqno;
        let key_changed = |(partition, key): &(u32, K)| {
            self.0.get(partition).is_some_and(|written| {
                is_later(&written.all) || written.keys.get(key).is_some_and(is_later)
            })
        };
        if reads.keys.iter().any(key_changed) {
            return Some(true);
        }
        let mut left = limit;
        for (partition, bounds) in &reads.ranges {
            let Some(written) = self.0.get(partition) else { continue };
            if is_later(&written.all) {
                return Some(true);
            }
            if is_empty(bounds) {
                continue;
            }
            for (_, seqno) in written.keys.range(bounds.clone()) {
                if is_later(seqno) {
                    return Some(true);
                }
                left = left.checked_sub(1)?;
            }
        }
        Some(false)
    }
}

impl<K: Clone + Ord + Hash> State<K> {
    fn refuse(&mut self) -> Error {
        self.refused += 1;
        Error::Conflict
    }

    fn has_changed(&self, check: &Check<K>) -> bool {
        // The shorter way: through the ranges, or through what has happened since.
        let since = self.order.partition_point(|(seqno, ..)| *seqno < check.read_seqno);
        let found = self.changed.by_lookup(check, self.order.len() - since);
        found.unwrap_or_else(|| {
            self.order.range(since..).any(|(_, partition, key)| check.reads.hold(*partition, key))
        })
    }

    /// Forgets what everybody sees, in steps of so many.
    fn forget(&mut self, visible: u64, most: usize) {
        let oldest = self.open.first_key_value().map_or(u64::MAX, |(&read_seqno, _)| read_seqno);
        let mut seen = visible.saturating_add(1);
        if !is_planted(Bug::OpenTransactionsForgotten) {
            seen = seen.min(oldest);
        }
        for _ in 0..most {
            let Some((seqno, partition, key)) = self.order.pop_front_if(|(s, ..)| *s < seen) else {
                return;
            };
            let Some(written) = self.changed.0.get_mut(&partition) else { continue };
            if let Some(key) = key
                && written.keys.get(&key) == Some(&seqno)
            {
                written.keys.remove(&key);
                self.len -= 1;
            }
            if written.keys.is_empty() && written.all < seen {
                self.changed.0.remove(&partition);
            }
        }
    }

    /// Leaves out what later changes of the same key have overtaken, when that is most of it.
    fn compact(&mut self) {
        if self.order.len() < 2 * self.len + FORGET_LEN_AT_END {
            return;
        }
        let changed = &self.changed.0;
        self.order.retain(|(seqno, partition, key)| match (changed.get(partition), key) {
            (Some(written), Some(key)) => written.keys.get(key) == Some(seqno),
            (Some(written), None) => written.all == *seqno,
            (None, _) => false,
        });
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
pub(crate) struct Open<K: Clone + Ord + Hash> {
    conflicts: Arc<Conflicts<K>>,
    read_seqno: u64,
}

impl<K: Clone + Ord + Hash> Drop for Open<K> {
    fn drop(&mut self) {
        let mut state = self.conflicts.state.lock();
        if let Some(count) = state.open.get_mut(&self.read_seqno) {
            *count -= 1;
            if *count == 0 {
                state.open.remove(&self.read_seqno);
            }
        }
        state.forget(self.conflicts.views.visible(), FORGET_LEN_AT_END);
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
        conflicts.note([(seqno, 1, &key)].into_iter());
    }

    fn check(conflicts: &Numbers, read_seqno: u64, reads: Reads<u32>) -> bool {
        conflicts.check(&Check { read_seqno, reads }).is_ok()
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
    fn a_member_of_a_group_conflicts_with_those_before_it() {
        let (_, conflicts) = at(10);
        let (view, _open) = conflicts.begin();
        let check = |reads| Check { read_seqno: view.read_seqno(), reads };
        let mut group = conflicts.group();
        group.admit(Some(&check(read(5))), [(1, &5)].into_iter()).unwrap();
        assert!(group.admit(Some(&check(read(5))), [(1, &6)].into_iter()).is_err());
        let all = scan((Bound::Unbounded, Bound::Unbounded));
        assert!(group.admit(Some(&check(all)), [(1, &7)].into_iter()).is_err());
        // Who was refused changes nothing.
        group.admit(Some(&check(read(6))), std::iter::empty()).unwrap();
        group.admit(None, [(1, &5)].into_iter()).unwrap();
        // Nothing of it was noted.
        conflicts.check(&check(read(5))).unwrap();
        assert_eq!((conflicts.extent().entries, conflicts.extent().refused), (0, 2));
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
        {
            let state = conflicts.state.lock();
            assert_eq!((state.order.len(), state.changed.0.len(), state.len), (0, 0, 0));
        }
        write(&conflicts, 101, 1);
        views.publish(101);
        write(&conflicts, 102, 1);
        let state = conflicts.state.lock();
        assert_eq!((state.order.len(), state.changed.0.len(), state.len), (1, 1, 1));
    }

    #[test]
    fn a_key_that_changes_all_the_time_takes_little_while_a_transaction_is_open() {
        let (views, conflicts) = at(10);
        let (view, _open) = conflicts.begin();
        for seqno in 11..100_000 {
            write(&conflicts, seqno, 5);
            views.publish(seqno);
        }
        assert!(conflicts.state.lock().order.len() <= 2 + FORGET_LEN_AT_END);
        assert!(!check(&conflicts, view.read_seqno(), read(5)));
        assert!(check(&conflicts, 100_000, read(5)));
    }

    #[test]
    fn both_ways_of_looking_agree() {
        let mut random = 7_u64;
        let mut below = |end: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % end
        };
        for _ in 0..300 {
            let (_, conflicts) = at(10);
            let (_view, _open) = conflicts.begin();
            let newest = 11 + below(60);
            for seqno in 11..newest {
                if below(20) == 0 {
                    conflicts.note_all(1 + below(2) as u32, seqno);
                } else {
                    write(&conflicts, seqno, below(50) as u32);
                }
            }
            let (a, b) = (below(50) as u32, below(50) as u32);
            let reads = scan((Bound::Included(a.min(b)), Bound::Excluded(a.max(b))));
            let check = Check { read_seqno: 11 + below(60), reads };
            let state = conflicts.state.lock();
            let since = state.order.partition_point(|(seqno, ..)| *seqno < check.read_seqno);
            let walked = state.order.range(since..).any(|(_, p, key)| check.reads.hold(*p, key));
            assert_eq!(state.changed.by_lookup(&check, usize::MAX), Some(walked), "{check:?}");
        }
    }
}
