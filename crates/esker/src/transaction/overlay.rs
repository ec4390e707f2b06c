//! A snapshot's entries with a transaction's own changes laid over them.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::conflict::is_empty;
use crate::error::Result;
use crate::tree::{Bounds, End, RawIter, Slice};

/// A transaction's changes of one partition; no value: a removal.
pub(crate) type Own = BTreeMap<Slice, Option<Slice>>;

/// Entries of a range as the transaction saw them when this was made: it can be changed meanwhile.
pub(crate) struct Overlay {
    base: Ends<Base>,
    own: Ends<OwnIter>,
}

/// What lies below the changes.
struct Base {
    raw: RawIter,
    /// Separated values are not loaded; all of them are empty.
    keys_only: bool,
}

/// The changes of a range that are left.
struct OwnIter {
    changes: Arc<Own>,
    bounds: Bounds,
}

/// Something that can be walked from both ends.
trait Walk {
    type Item;

    fn step(&mut self, end: End) -> Option<Self::Item>;
}

impl Walk for Base {
    type Item = Result<(Slice, Slice)>;

    fn step(&mut self, end: End) -> Option<Self::Item> {
        if self.keys_only {
            return self.raw.key(end).map(|key| key.map(|key| (key, Slice::from([]))));
        }
        self.raw.entry(end)
    }
}

impl Walk for OwnIter {
    type Item = (Slice, Option<Slice>);

    fn step(&mut self, end: End) -> Option<Self::Item> {
        if is_empty(&self.bounds) {
            return None;
        }
        let (key, value) = end.step(&mut self.changes.range(self.bounds.clone()))?;
        let passed = Bound::Excluded(key.clone());
        match end {
            End::Front => self.bounds.0 = passed,
            End::Back => self.bounds.1 = passed,
        }
        Some((key.clone(), value.clone()))
    }
}

/// A walk that can be looked into from both ends.
struct Ends<W: Walk> {
    inner: W,
    front: Option<W::Item>,
    back: Option<W::Item>,
}

impl<W: Walk> Ends<W> {
    fn new(inner: W) -> Self {
        Self { inner, front: None, back: None }
    }

    /// The next item from that end, which stays.
    fn look(&mut self, end: End) -> Option<&W::Item> {
        let Self { inner, front, back } = self;
        let (near, far) = match end {
            End::Front => (front, back),
            End::Back => (back, front),
        };
        if near.is_none() {
            // Of what was looked at from the other end nothing may be missed.
            *near = inner.step(end).or_else(|| far.take());
        }
        near.as_ref()
    }

    fn take(&mut self, end: End) -> Option<W::Item> {
        match end {
            End::Front => self.front.take(),
            End::Back => self.back.take(),
        }
    }
}

impl Overlay {
    pub(crate) fn new(raw: RawIter, changes: Arc<Own>, bounds: Bounds) -> Self {
        let base = Base { raw, keys_only: false };
        Self { base: Ends::new(base), own: Ends::new(OwnIter { changes, bounds }) }
    }

    pub(crate) fn key(&mut self, end: End) -> Option<Result<Slice>> {
        self.base.inner.keys_only = true;
        self.entry(end).map(|entry| entry.map(|(key, _)| key))
    }

    pub(crate) fn entry(&mut self, end: End) -> Option<Result<(Slice, Slice)>> {
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
                (Some(_), None) => Ordering::Less,
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
