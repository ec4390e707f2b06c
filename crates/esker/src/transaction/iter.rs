//! A snapshot's entries with a transaction's own changes laid over them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use crate::conflict::is_empty;
use crate::error::Result;
use crate::partition::Iter;
use crate::tree::{End, Slice};

/// Entries in key order, from both ends, as the transaction saw them when the iterator was made: it
/// can be changed meanwhile.
pub struct TxIter {
    base: Ends<Iter>,
    own: Ends<OwnIter>,
}

impl fmt::Debug for TxIter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxIter").finish_non_exhaustive()
    }
}

/// A transaction's changes of one partition; no value: a removal.
pub(super) type Own = BTreeMap<Slice, Option<Slice>>;

/// Those of a range that are left.
struct OwnIter {
    changes: Arc<Own>,
    bounds: (Bound<Slice>, Bound<Slice>),
}

impl Iterator for OwnIter {
    type Item = (Slice, Option<Slice>);

    fn next(&mut self) -> Option<Self::Item> {
        if is_empty(&self.bounds) {
            return None;
        }
        let (key, value) = self.changes.range(self.bounds.clone()).next()?;
        self.bounds.0 = Bound::Excluded(key.clone());
        Some((key.clone(), value.clone()))
    }
}

impl DoubleEndedIterator for OwnIter {
    fn next_back(&mut self) -> Option<Self::Item> {
        if is_empty(&self.bounds) {
            return None;
        }
        let (key, value) = self.changes.range(self.bounds.clone()).next_back()?;
        self.bounds.1 = Bound::Excluded(key.clone());
        Some((key.clone(), value.clone()))
    }
}

/// An iterator that can be looked into from both ends.
struct Ends<I: Iterator> {
    inner: I,
    front: Option<I::Item>,
    back: Option<I::Item>,
}

impl<I: DoubleEndedIterator> Ends<I> {
    fn new(inner: I) -> Self {
        Self { inner, front: None, back: None }
    }

    /// The next item from that end, which stays.
    fn look(&mut self, end: End) -> Option<&I::Item> {
        let Self { inner, front, back } = self;
        let (near, far) = match end {
            End::Front => (front, back),
            End::Back => (back, front),
        };
        if near.is_none() {
            // Of what was looked at from the other end nothing may be missed.
            *near = end.step(inner).or_else(|| far.take());
        }
        near.as_ref()
    }

    fn take(&mut self, end: End) -> Option<I::Item> {
        match end {
            End::Front => self.front.take(),
            End::Back => self.back.take(),
        }
    }
}

impl TxIter {
    pub(super) fn new(base: Iter, changes: Arc<Own>, bounds: (Bound<Slice>, Bound<Slice>)) -> Self {
        Self { base: Ends::new(base), own: Ends::new(OwnIter { changes, bounds }) }
    }

    fn step(&mut self, end: End) -> Option<Result<(Slice, Slice)>> {
        loop {
            let key = match self.base.look(end) {
                Some(Ok((key, _))) => Some(key),
                Some(Err(_)) => return self.base.take(end),
                None => None,
            };
            let own = self.own.look(end).map(|(own, _)| own);
            let order = match (own, key) {
                (None, None) => return None,
                (None, Some(_)) => return self.base.take(end),
                (Some(_), None) => std::cmp::Ordering::Less,
                (Some(own), Some(key)) => own.cmp(key),
            };
            // Without a key below, the own change is the nearer one from both ends.
            let nearer = match end {
                End::Front => order,
                End::Back => order.reverse(),
            };
            if key.is_some() && nearer.is_gt() {
                return self.base.take(end);
            }
            if order.is_eq() {
                self.base.take(end);
            }
            if let Some((key, Some(value))) = self.own.take(end) {
                return Some(Ok((key, value)));
            }
        }
    }
}

impl Iterator for TxIter {
    type Item = Result<(Slice, Slice)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(End::Front)
    }
}

impl DoubleEndedIterator for TxIter {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(End::Back)
    }
}
