//! Reads of one tree, and the iterators over it.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lsm_tree::{AbstractTree as _, Guard, InternalValue, IterGuardImpl, Slice, ValueType};

use super::blobs::{Lengths, Place};
use super::calls::guarded;
use super::{READ_SEQNO_MIN, Tree};
use crate::error::{Error, Result};
use crate::journal::items::KEY_LEN_MAX;

/// Where a range of keys begins and ends.
pub(crate) type Bounds = (Bound<Slice>, Bound<Slice>);

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
        match &self.lengths {
            Some(lengths) => self.get_packed(key, read_seqno, lengths),
            None => guarded("read from", &self.dir, || self.tree.get(key, read_seqno)),
        }
    }

    /// Looks at the length of a separated value before lsm-tree does.
    fn get_packed(&self, key: &[u8], read_seqno: u64, lengths: &Lengths) -> Result<Option<Slice>> {
        let mut missed = None;
        loop {
            let entry =
                guarded("read from", &self.dir, || self.tree.get_internal_entry(key, read_seqno))?;
            let Some(entry) = entry else { return Ok(None) };
            if entry.key.value_type != ValueType::Indirection {
                return Ok(Some(entry.value));
            }
            let place = Place::of(&entry.value, &self.dir)?;
            let version = self.tree.current_version();
            if version.blob_files.contains_key(place.file) {
                lengths.check(place)?;
            } else if missed != Some(place) {
                // A merge moved the value meanwhile; the entry says where to.
                missed = Some(place);
                continue;
            }
            return guarded("read from", &self.dir, || self.tree.get(key, read_seqno));
        }
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

    pub(crate) fn range(&self, bounds: Bounds, read_seqno: u64) -> RawIter {
        let bounds = shorten(bounds);
        let read_seqno = read_seqno.max(READ_SEQNO_MIN);
        loop {
            let version = self.tree.current_version().id();
            let packed = self.packed(&bounds, read_seqno);
            let inner = self.tree.range::<Slice, _>(bounds.clone(), read_seqno, None);
            // Both iterators must find the values in the same files.
            if packed.is_none() || self.tree.current_version().id() == version {
                return RawIter { inner, dir: Arc::from(self.dir.as_path()), packed };
            }
        }
    }

    pub(crate) fn prefix(&self, prefix: &[u8], read_seqno: u64) -> RawIter {
        self.range(prefix_bounds(prefix), read_seqno)
    }

    fn packed(&self, bounds: &Bounds, read_seqno: u64) -> Option<Packed> {
        let lengths = self.lengths.clone()?;
        let version = self.tree.get_version_history_lock().get_version_for_snapshot(read_seqno);
        let entries = lsm_tree::Tree::create_internal_range(version, bounds, read_seqno, None);
        Some(Packed { entries: Box::new(entries), lengths })
    }

    /// Of what is installed.
    pub(crate) fn version_id(&self) -> u64 {
        self.tree.current_version().id()
    }

    /// Whether a table may hold keys in these bounds.
    pub(crate) fn has_tables_in(&self, bounds: &(Bound<Slice>, Bound<Slice>)) -> bool {
        let bounds = (bounds.0.as_ref().map(|key| &**key), bounds.1.as_ref().map(|key| &**key));
        let version = self.tree.current_version();
        version.iter_tables().any(|table| table.metadata.key_range.overlaps_with_bounds(&bounds))
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

    /// Bytes in blob files to which no table refers any more.
    pub(crate) fn stale_blob_bytes(&self) -> u64 {
        self.tree.stale_blob_bytes()
    }

    pub(crate) fn disk_space(&self) -> u64 {
        self.tree.disk_space()
    }
}

/// Entries of one tree, from both ends, values still where they are.
pub(crate) struct RawIter {
    inner: Entries,
    dir: Arc<Path>,
    /// Values may be packed. Then this is ahead of `inner`, which is asked for separated ones only.
    packed: Option<Packed>,
}

/// The same entries as tables have them: with the values that are not separated, and with the
/// places and lengths of those that are.
struct Packed {
    entries: Box<dyn DoubleEndedIterator<Item = lsm_tree::Result<InternalValue>> + Send>,
    lengths: Lengths,
}

impl RawIter {
    pub(crate) fn entry(&mut self, end: End) -> Option<Result<(Slice, Slice)>> {
        let Some(packed) = &mut self.packed else {
            let Self { inner, dir, .. } = self;
            let entry =
                guarded("read from", dir, || end.step(inner).map(Guard::into_inner).transpose());
            return entry.transpose();
        };
        let entry = match packed.entry(end, &self.dir)? {
            Ok(entry) => entry,
            Err(error) => return Some(Err(error)),
        };
        if entry.key.value_type != ValueType::Indirection {
            return Some(Ok((entry.key.user_key, entry.value)));
        }
        let place = Place::of(&entry.value, &self.dir);
        let checked = place.and_then(|place| packed.lengths.check(place));
        Some(checked.and_then(|()| self.separated(end, entry.key.user_key)))
    }

    /// Lets `inner` catch up to `key` and reads the value.
    fn separated(&mut self, end: End, key: Slice) -> Result<(Slice, Slice)> {
        let Self { inner, dir, .. } = self;
        while let Some((found, value)) = guarded("read from", dir, || {
            end.step(inner).map(|guard| guard.into_inner_if(|found| *found == key)).transpose()
        })? {
            if let Some(value) = value {
                return Ok((found, value));
            }
            if end.is_behind(&found, &key) {
                break;
            }
        }
        Err(Error::corrupt(dir, None, "a separated value is gone at the second look"))
    }

    pub(crate) fn key(&mut self, end: End) -> Option<Result<Slice>> {
        let Self { inner, dir, packed } = self;
        if let Some(packed) = packed {
            return packed.entry(end, dir).map(|entry| entry.map(|entry| entry.key.user_key));
        }
        let key = guarded("read from", dir, || end.step(inner).map(Guard::key).transpose());
        key.transpose()
    }
}

impl Packed {
    fn entry(&mut self, end: End, dir: &Path) -> Option<Result<InternalValue>> {
        guarded("read from", dir, || end.step(&mut self.entries).transpose()).transpose()
    }
}

type Entries = Box<dyn DoubleEndedIterator<Item = IterGuardImpl> + Send>;

/// Where an iterator is asked for its next item.
#[derive(Copy, Clone)]
pub(crate) enum End {
    Front,
    Back,
}

impl End {
    pub(crate) fn step<I: DoubleEndedIterator>(self, iter: &mut I) -> Option<I::Item> {
        match self {
            Self::Front => iter.next(),
            Self::Back => iter.next_back(),
        }
    }

    /// Whether a walk from this end that met `found` has missed `key`.
    fn is_behind(self, found: &Slice, key: &Slice) -> bool {
        match self {
            Self::Front => found > key,
            Self::Back => found < key,
        }
    }
}

/// Where the keys lie that begin with `prefix`.
pub(crate) fn prefix_bounds(prefix: &[u8]) -> Bounds {
    if is_too_long(prefix) {
        let nothing = Slice::from(&prefix[..1]);
        return (Bound::Included(nothing.clone()), Bound::Excluded(nothing));
    }
    lsm_tree::range::prefix_to_range(prefix)
}

/// Longer than any key: lsm-tree panics when asked for it.
fn is_too_long(key: &[u8]) -> bool {
    key.len() > KEY_LEN_MAX
}

/// Bounds that no key can equal, cut to the length of a key without moving a key across them:
/// a key that equals the cut bound is a prefix of the whole one and so lies before it.
fn shorten((start, end): Bounds) -> Bounds {
    let cut = |bound: Bound<Slice>, cut: fn(Slice) -> Bound<Slice>| match bound {
        Bound::Included(key) | Bound::Excluded(key) if is_too_long(&key) => {
            cut(Slice::from(&key[..KEY_LEN_MAX]))
        }
        other => other,
    };
    (cut(start, Bound::Excluded), cut(end, Bound::Included))
}
