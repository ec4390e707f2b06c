//! Reads of one tree, and the iterators over it.

use std::cell::Cell;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lsm_tree::{AbstractTree as _, AnyTree, Guard, IterGuardImpl, Slice};

use super::blobs;
use super::calls::guarded;
use super::{READ_SEQNO_MIN, Tree};
use crate::error::Result;
use crate::journal::items::KEY_LEN_MAX;

/// Reading. `read_seqno` sees the commits below it.
impl Tree {
    /// Whether a read that took the tree's newest version after taking `read_seqno` can trust it.
    fn overtaken(&self, read_seqno: u64) -> bool {
        self.gc_floor.load(Ordering::Acquire) > read_seqno
    }

    /// Runs `read` and says `None` when a merge may have dropped what it should have seen.
    pub(crate) fn read<T>(
        &self,
        read_seqno: u64,
        read: impl FnOnce(&Self) -> Result<T>,
    ) -> Option<Result<T>> {
        let result = read(self);
        (!self.overtaken(read_seqno)).then_some(result)
    }

    pub(crate) fn get(&self, key: &[u8], read_seqno: u64) -> Result<Option<Slice>> {
        if is_too_long(key) {
            return Ok(None);
        }
        let read_seqno = read_seqno.max(READ_SEQNO_MIN);
        if self.packs_values {
            blobs::check(&self.tree, &self.dir, key, read_seqno)?;
        }
        guarded("read from", &self.dir, || self.tree.get(key, read_seqno))
    }

    pub(crate) fn contains_key(&self, key: &[u8], read_seqno: u64) -> Result<bool> {
        if is_too_long(key) {
            return Ok(false);
        }
        guarded("read from", &self.dir, || {
            self.tree.contains_key(key, read_seqno.max(READ_SEQNO_MIN))
        })
    }

    pub(crate) fn size_of(&self, key: &[u8], read_seqno: u64) -> Result<Option<u32>> {
        if is_too_long(key) {
            return Ok(None);
        }
        guarded("read from", &self.dir, || self.tree.size_of(key, read_seqno.max(READ_SEQNO_MIN)))
    }

    pub(crate) fn range(&self, bounds: (Bound<Slice>, Bound<Slice>), read_seqno: u64) -> RawIter {
        let bounds = shorten(bounds);
        let read_seqno = read_seqno.max(READ_SEQNO_MIN);
        self.entries(self.tree.range::<Slice, _>(bounds, read_seqno, None), read_seqno)
    }

    pub(crate) fn prefix(&self, prefix: &[u8], read_seqno: u64) -> RawIter {
        if is_too_long(prefix) {
            let nothing = Slice::from(&prefix[..1]);
            let bounds = (Bound::Included(nothing.clone()), Bound::Excluded(nothing));
            return self.range(bounds, read_seqno);
        }
        let read_seqno = read_seqno.max(READ_SEQNO_MIN);
        self.entries(self.tree.prefix(prefix, read_seqno, None), read_seqno)
    }

    fn entries(&self, inner: Entries, read_seqno: u64) -> RawIter {
        let packed = self.packs_values.then(|| (self.tree.clone(), read_seqno));
        RawIter { inner, dir: Arc::from(self.dir.as_path()), packed }
    }

    pub(crate) fn approximate_len(&self) -> usize {
        self.tree.approximate_len()
    }

    pub(crate) fn table_count(&self) -> usize {
        self.tree.table_count()
    }

    pub(crate) fn blob_file_count(&self) -> usize {
        self.tree.blob_file_count()
    }

    pub(crate) fn disk_space(&self) -> u64 {
        self.tree.disk_space()
    }
}

/// Entries of one tree, from both ends, values still where they are.
pub(crate) struct RawIter {
    inner: Entries,
    dir: Arc<Path>,
    /// Values may be packed, and their lengths are to be looked up here.
    packed: Option<(AnyTree, u64)>,
}

impl RawIter {
    fn entry(&mut self, next: Step) -> Option<Result<(Slice, Slice)>> {
        let Self { inner, dir, packed } = self;
        let (dir, packed, wrong) = (&*dir, &*packed, Cell::new(None));
        let is_right = |key: &Slice| match packed {
            Some((tree, read_seqno)) => match blobs::check(tree, dir, key, *read_seqno) {
                Ok(()) => true,
                Err(error) => {
                    wrong.set(Some(error));
                    false
                }
            },
            None => true,
        };
        let entry = guarded("read from", dir, || {
            next(inner).map(|guard| guard.into_inner_if(is_right)).transpose()
        });
        match (wrong.take(), entry) {
            (Some(error), _) | (None, Err(error)) => Some(Err(error)),
            (None, Ok(entry)) => entry.and_then(|(key, value)| Some(Ok((key, value?)))),
        }
    }

    fn key(&mut self, next: Step) -> Option<Result<Slice>> {
        let Self { inner, dir, .. } = self;
        let key = guarded("read from", dir, || next(inner).map(Guard::key).transpose());
        key.transpose()
    }

    pub(crate) fn next_entry(&mut self) -> Option<Result<(Slice, Slice)>> {
        self.entry(Iterator::next)
    }

    pub(crate) fn next_entry_back(&mut self) -> Option<Result<(Slice, Slice)>> {
        self.entry(DoubleEndedIterator::next_back)
    }

    pub(crate) fn next_key(&mut self) -> Option<Result<Slice>> {
        self.key(Iterator::next)
    }

    pub(crate) fn next_key_back(&mut self) -> Option<Result<Slice>> {
        self.key(DoubleEndedIterator::next_back)
    }
}

type Entries = Box<dyn DoubleEndedIterator<Item = IterGuardImpl> + Send>;
type Step = fn(&mut Entries) -> Option<IterGuardImpl>;

/// Longer than any key: lsm-tree panics when asked for it.
fn is_too_long(key: &[u8]) -> bool {
    key.len() > KEY_LEN_MAX
}

/// Bounds that no key can equal, cut to the length of a key without moving a key across them:
/// a key that equals the cut bound is a prefix of the whole one and so lies before it.
fn shorten((start, end): (Bound<Slice>, Bound<Slice>)) -> (Bound<Slice>, Bound<Slice>) {
    let cut = |bound: Bound<Slice>, cut: fn(Slice) -> Bound<Slice>| match bound {
        Bound::Included(key) | Bound::Excluded(key) if is_too_long(&key) => {
            cut(Slice::from(&key[..KEY_LEN_MAX]))
        }
        other => other,
    };
    (cut(start, Bound::Excluded), cut(end, Bound::Included))
}
