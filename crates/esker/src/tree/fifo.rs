//! First in, first out: which lot of entries is closed, moved on, or ends.
//!
//! lsm-tree's own FIFO asserts that no two tables of the first level overlap, drops by the order in
//! which tables were written however they came to be, and never merges. Here a level is a lot: fresh
//! tables gather in the first one, until they are too much, too old or too many. Then they become the
//! lot of the second level (merged, or as they are if they do not overlap), and older lots move down.
//! The deepest lot ends as a whole. What must stay true:
//! - Everything in a level is newer than what lies below it, as reads rely on. So only the deepest
//!   lot ever ends.
//! - A lot counts as written when its last table was: nothing ends before its time.
//! - The lots are so small that at most a quarter of what may stay goes at once; the newest one stays.
//! - The first level is emptied long before writers wait for it, or lsm-tree's limit comes near.
//!
//! `next_step` is pure; everything else reads the tree.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lsm_tree::{AbstractTree as _, AnyTree, KeyRange};

use super::{LAST_LEVEL, Slice, Step, Tree};

/// A lot is so much of what may stay, in bytes and in time.
const LOTS: u32 = 4;
/// From so many tables on lsm-tree takes its time to install the next one.
const TABLES_MAX: usize = 200;

/// When entries end.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) bytes: Option<u64>,
    pub(crate) age: Option<Duration>,
    /// So many runs gather in the first level at most.
    pub(crate) runs: usize,
}

/// What lies in a level.
#[derive(Clone, Debug, Default)]
struct Lot {
    tables: usize,
    runs: usize,
    /// With the separated values that its tables refer to.
    bytes: u64,
    /// When its first and its last table were written.
    oldest: Duration,
    newest: Duration,
}

impl Lot {
    fn is_empty(&self) -> bool {
        self.tables == 0
    }
}

/// What a FIFO does next: close, move on, end.
fn next_step(lots: &[Lot], limits: Limits, now: Duration, can_lose: bool) -> Option<Step> {
    let total: u64 = lots.iter().map(|lot| lot.bytes).sum();
    let deepest = lots.iter().rposition(|lot| !lot.is_empty())?;
    let has_ended = |lot: &Lot| limits.age.is_some_and(|age| lot.newest.saturating_add(age) <= now);
    let is_too_much = limits.bytes.is_some_and(|max| total > max);
    let is_newest = lots[..deepest].iter().all(Lot::is_empty);
    if deepest > 0 && can_lose && (has_ended(&lots[deepest]) || (is_too_much && !is_newest)) {
        return Some(Step::Expire(deepest as u8, None));
    }
    let fresh = &lots[0];
    let is_lot = limits.bytes.is_some_and(|max| fresh.bytes >= max / u64::from(LOTS))
        || limits.age.is_some_and(|age| fresh.oldest.saturating_add(age / LOTS) <= now)
        || fresh.runs >= limits.runs
        || fresh.tables >= TABLES_MAX;
    if fresh.is_empty() || !is_lot {
        return None;
    }
    if lots[1].is_empty() {
        return Some(if fresh.runs == 1 { Step::Move(0, 1) } else { Step::Merge(0, 1) });
    }
    // Room for the next lot: the younger ones move down to where there is some. If there is none, the
    // two youngest become one, whose entries stay longer.
    match lots.iter().skip(2).position(Lot::is_empty) {
        Some(behind) => Some(Step::Move(behind as u8 + 1, behind as u8 + 2)),
        None => Some(Step::Merge(1, 2)),
    }
}

impl Tree {
    pub(super) fn fifo_step(&self, limits: Limits, can_lose: bool) -> Option<Step> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let step = next_step(&self.lots(), limits, now, can_lose)?;
        let Step::Expire(level, _) = step else { return Some(step) };
        Some(Step::Expire(level, self.range_of(level)))
    }

    fn lots(&self) -> Vec<Lot> {
        let version = self.tree.current_version();
        let lots = version.iter_levels().map(|level| {
            let mut lot = Lot { runs: level.iter().count(), ..Lot::default() };
            for table in level.iter().flat_map(|run| run.iter()) {
                let nanos = *table.metadata.created_at;
                let at = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
                lot.oldest = if lot.is_empty() { at } else { lot.oldest.min(at) };
                lot.newest = lot.newest.max(at);
                lot.tables += 1;
                // What cannot be read now is found out when it is merged.
                let separated = table.referenced_blob_bytes().unwrap_or_default();
                lot.bytes += table.metadata.file_size + separated;
            }
            lot
        });
        lots.collect()
    }

    /// The keys of a level between which no table of another level lies. Its tables can be dropped
    /// unread then, unless values are separated: lsm-tree 3.1.10 would keep its account of dropped blob
    /// files, and after a reopening take new ones of the same numbers for dead.
    fn range_of(&self, level: u8) -> Option<(Slice, Slice)> {
        if matches!(self.tree, AnyTree::Blob(_)) {
            return None;
        }
        let version = self.tree.current_version();
        let tables = |level: usize| {
            let level = version.level(level).into_iter();
            level.flat_map(|level| level.iter()).flat_map(|run| run.iter())
        };
        let ranges = || tables(level.into()).map(|table| &table.metadata.key_range);
        let (first, last) =
            (ranges().map(KeyRange::min).min()?, ranges().map(KeyRange::max).max()?);
        let mut others = (0..usize::from(level)).flat_map(tables).map(|t| &t.metadata.key_range);
        let is_alone = !others.any(|range| first <= range.min() && range.max() <= last);
        is_alone.then(|| (first.clone(), last.clone()))
    }

    /// Merges nothing, in a level with nothing in it, if that lets go of blob files to which no table
    /// refers any more: lsm-tree looks for those at the end of a merge, and not at what that merge
    /// itself has let go.
    pub(super) fn reaping_step(&self) -> Option<Step> {
        if matches!(self.tree, AnyTree::Standard(_)) {
            return None;
        }
        let version = self.tree.current_version();
        // Nothing is stale: no table has to be asked.
        (!version.gc_stats().is_empty()).then_some(())?;
        let mut live = BTreeSet::new();
        for table in version.iter_tables() {
            let files = table.list_blob_file_references().ok()?.unwrap_or_default();
            live.extend(files.into_iter().map(|file| file.blob_file_id));
        }
        let is_dead = |id: &u64| !live.contains(id) && version.gc_stats().contains_key(id);
        version.blob_files.list_ids().any(is_dead).then_some(())?;
        let is_empty = |level: &u8| version.level((*level).into()).is_some_and(|l| l.is_empty());
        let level = (1..=LAST_LEVEL).find(is_empty)?;
        Some(Step::Merge(level, level))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn lot(bytes: u64, oldest: u32, newest: u32) -> Lot {
        Lot { tables: 1, runs: 1, bytes, oldest: oldest * SECOND, newest: newest * SECOND }
    }

    fn lots(given: &[(usize, Lot)]) -> Vec<Lot> {
        let mut lots = vec![Lot::default(); usize::from(LAST_LEVEL) + 1];
        for (level, lot) in given {
            lots[*level] = lot.clone();
        }
        lots
    }

    fn limits(bytes: Option<u64>, secs: Option<u32>) -> Limits {
        Limits { bytes, age: secs.map(|secs| secs * SECOND), runs: 16 }
    }

    fn step(given: &[(usize, Lot)], limits: Limits, now: u32) -> Option<Step> {
        next_step(&lots(given), limits, now * SECOND, true)
    }

    #[test]
    fn a_lot_is_closed_when_it_is_large_old_or_in_pieces() {
        let (size, age) = (limits(Some(400), None), limits(None, Some(40)));
        assert_eq!(step(&[(0, lot(99, 0, 0))], size, 1_000), None);
        assert_eq!(step(&[(0, lot(100, 0, 0))], size, 0), Some(Step::Move(0, 1)));
        assert_eq!(step(&[(0, lot(99, 5, 9))], age, 14), None);
        assert_eq!(step(&[(0, lot(99, 5, 9))], age, 15), Some(Step::Move(0, 1)));
        let pieces = Lot { runs: 16, tables: 16, ..lot(1, 0, 0) };
        assert_eq!(step(&[(0, pieces)], age, 1), Some(Step::Merge(0, 1)));
        let tables = Lot { tables: TABLES_MAX, ..lot(1, 0, 0) };
        assert_eq!(step(&[(0, tables)], age, 1), Some(Step::Move(0, 1)));
    }

    #[test]
    fn older_lots_make_room_from_below() {
        let size = limits(Some(400), None);
        let full = |levels: &[usize]| {
            let all: Vec<_> = levels.iter().map(|&level| (level, lot(50, 0, 0))).collect();
            step(&[&[(0, lot(100, 0, 0))], &all[..]].concat(), size, 0)
        };
        assert_eq!(full(&[1]), Some(Step::Move(1, 2)));
        assert_eq!(full(&[1, 2, 4]), Some(Step::Move(2, 3)));
        assert_eq!(full(&[2]), Some(Step::Move(0, 1)));
        assert_eq!(full(&[1, 2, 3, 4, 5, 6]), Some(Step::Merge(1, 2)));
    }

    #[test]
    fn only_the_deepest_lot_ends_and_never_before_its_time() {
        let age = limits(None, Some(40));
        let given = [(1, lot(1, 30, 35)), (3, lot(1, 0, 10))];
        assert_eq!(step(&given, age, 49), None);
        assert_eq!(step(&given, age, 50), Some(Step::Expire(3, None)));
        assert_eq!(next_step(&lots(&given), age, 50 * SECOND, false), None);
        // Out of order, as after the clock was set back: the older one waits.
        assert_eq!(step(&[(1, lot(1, 0, 5)), (3, lot(1, 0, 30))], age, 50), None);
        let size = limits(Some(400), None);
        let given = [(0, lot(1, 0, 0)), (1, lot(300, 0, 0)), (6, lot(100, 0, 0))];
        assert_eq!(step(&given, size, 0), Some(Step::Expire(6, None)));
        assert_eq!(step(&given[..2], size, 0), None);
        assert_eq!(step(&[(1, lot(500, 0, 0))], size, 0), None, "the newest lot stays");
    }
}
