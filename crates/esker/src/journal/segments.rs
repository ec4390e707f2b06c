//! Which segments exist, what they hold for whom, and which may be deleted.
//!
//! What must stay true: a segment is freed only from the old end, only when it is sealed, only when
//! every partition has in tables what it holds for that partition, and never while somebody holds
//! the journal. What a segment holds is noted when frames are appended, not read off memtables.

use std::collections::{BTreeMap, VecDeque};

use super::format::SEGMENT_HEADER_LEN;
use crate::planted::{Bug, is_planted};

#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) id: u64,
    pub(crate) bytes: u64,
    pub(crate) sealed: bool,
    /// The last commit before it.
    pub(crate) after: u64,
    /// The chain value of its last frame, once sealed.
    pub(crate) chain: u64,
    /// The highest seqno it holds for each partition.
    highest: BTreeMap<u32, u64>,
}

/// All live segments, oldest first; the last one is active.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    all: VecDeque<Segment>,
    holds: usize,
}

impl Segments {
    /// A new active segment behind the others.
    pub(crate) fn begin(&mut self, id: u64, after: u64) {
        if let Some(last) = self.all.back() {
            assert_eq!(last.id + 1, id, "journal segments are numbered without gaps");
        }
        let highest = BTreeMap::new();
        // As much as its file holds before the first frame.
        let bytes = SEGMENT_HEADER_LEN as u64;
        self.all.push_back(Segment { id, bytes, sealed: false, after, chain: 0, highest });
    }

    /// Notes a frame for `partitions` in the active segment, which is now `bytes` long.
    pub(crate) fn note(&mut self, partitions: &[u32], seqno: u64, bytes: u64) {
        if let Some(active) = self.all.back_mut() {
            active.bytes = bytes;
            for partition in partitions {
                active.highest.insert(*partition, seqno);
            }
        }
    }

    pub(crate) fn seal(&mut self, id: u64, bytes: u64, chain: u64) {
        if let Some(segment) = self.all.iter_mut().find(|s| s.id == id) {
            segment.sealed = true;
            segment.bytes = bytes;
            segment.chain = chain;
        }
    }

    /// The id of the first segment that is still needed, given how far each partition is in tables
    /// (`u64::MAX` for one that is gone).
    pub(crate) fn first_needed(&self, flushed_upto: impl Fn(u32) -> u64) -> u64 {
        let unflushed = |(&p, &seqno): (&u32, &u64)| seqno > flushed_upto(p);
        let needed = |segment: &Segment| {
            let mut held = segment.highest.iter();
            let too_early = is_planted(Bug::SegmentFreedTooEarly);
            let holds = if too_early { held.all(unflushed) } else { held.any(unflushed) };
            !segment.sealed || holds
        };
        let active = self.all.back().map_or(0, |s| s.id);
        self.all.iter().find(|s| needed(s)).map_or(active, |s| s.id)
    }

    /// The segments `from..` that hold something for the partitions, oldest first: what a
    /// checkpoint needs. Sealed or retired ones only: the active one is behind the freeze.
    pub(crate) fn complete_from(
        &self,
        flushed_upto: impl Fn(u32) -> u64,
        below: u64,
    ) -> Vec<Segment> {
        let needed =
            |segment: &Segment| segment.highest.iter().any(|(&p, &seqno)| seqno > flushed_upto(p));
        self.all.iter().filter(|s| s.id < below).skip_while(|s| !needed(s)).cloned().collect()
    }

    /// The last commit before the segment `id`, if that is live.
    pub(crate) fn after(&self, id: u64) -> Option<u64> {
        self.all.iter().find(|s| s.id == id).map(|s| s.after)
    }

    /// Partitions that keep the oldest segment alive.
    pub(crate) fn pinned_by(&self, flushed_upto: impl Fn(u32) -> u64) -> Vec<u32> {
        let Some(oldest) = self.all.front() else { return Vec::new() };
        oldest
            .highest
            .iter()
            .filter(|&(&p, &seqno)| seqno > flushed_upto(p))
            .map(|(&p, _)| p)
            .collect()
    }

    /// Forgets every segment before `first`; empty while the journal is held.
    pub(crate) fn take_before(&mut self, first: u64) -> Vec<u64> {
        let mut taken = Vec::new();
        while self.holds == 0 && self.all.front().is_some_and(|s| s.id < first && s.sealed) {
            taken.extend(self.all.pop_front().map(|s| s.id));
        }
        taken
    }

    pub(crate) fn first(&self) -> u64 {
        self.all.front().map_or(0, |s| s.id)
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.all.iter().map(|s| s.bytes).sum()
    }

    pub(crate) fn hold(&mut self) {
        self.holds += 1;
    }

    pub(crate) fn release(&mut self) {
        self.holds -= 1;
    }

    pub(crate) fn is_held(&self) -> bool {
        self.holds > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Segments {
        let mut segments = Segments::default();
        segments.begin(1, 0);
        segments.note(&[1, 2], 5, 100);
        segments.begin(2, 5);
        segments.note(&[1], 8, 100);
        segments.begin(3, 8);
        segments.seal(1, 100, 0);
        segments.seal(2, 100, 0);
        segments
    }

    #[test]
    fn a_segment_is_needed_until_every_partition_has_flushed_it() {
        let segments = three();
        assert_eq!(segments.first_needed(|_| 0), 1);
        assert_eq!(segments.first_needed(|p| if p == 1 { 8 } else { 4 }), 1, "2 is behind");
        assert_eq!(segments.pinned_by(|p| if p == 1 { 8 } else { 4 }), [2]);
        assert_eq!(segments.first_needed(|p| if p == 1 { 7 } else { 5 }), 2);
        assert_eq!(segments.first_needed(|_| u64::MAX), 3, "the active one always is");
    }

    #[test]
    fn a_held_journal_frees_nothing() {
        let mut segments = three();
        segments.hold();
        assert!(segments.take_before(3).is_empty());
        segments.release();
        assert_eq!(segments.take_before(3), [1, 2]);
    }
}
