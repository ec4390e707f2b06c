//! Entries in key order, from both ends: those of a tree, or those with the changes of a transaction
//! laid over them.
//!
//! What must stay true: an iterator holds everything that it reads (the tree and its files, the
//! changes, the keyspace, the lock of the directory), so it outlives whatever it came from, and shows
//! the moment it was made.

use std::fmt;
use std::sync::Arc;

use crate::error::Result;
use crate::keyspace::Keyspace;
use crate::lock::KeyspaceLock;
use crate::transaction::{Overlay, Own};
use crate::tree::{Bounds, End, RawIter, Slice, Tree};

/// Entries in key order, from both ends. Sees the state of the moment it was made, and borrows
/// nothing: it outlives the snapshot or the transaction that it came from, and what is written, dropped
/// or closed meanwhile. It keeps the keyspace's directory locked.
///
/// There is no `seek`: a range begins where it is asked to, from either end, and to make one costs as
/// much.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let keyspace = esker::Keyspace::open(dir.path().join("db"))?;
/// let years = keyspace.partition("years", Default::default())?;
/// for year in ["1815", "1906", "1939"] {
///     years.insert(year, "")?;
/// }
/// // The first key at or after 1900, and the last one before it.
/// assert_eq!(years.range("1900"..)?.keys().next().transpose()?.as_deref(), Some(&b"1906"[..]));
/// assert_eq!(years.range(.."1900")?.keys().next_back().transpose()?.as_deref(), Some(&b"1815"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Iter {
    source: Source,
    /// Trees of dropped partitions and old generations live as long as somebody reads them.
    _tree: Arc<Tree>,
    _lock: Option<Arc<KeyspaceLock>>,
    _keyspace: Keyspace,
}

enum Source {
    Tree(RawIter),
    Overlaid(Box<Overlay>),
}

impl Iter {
    pub(crate) fn new(raw: RawIter, tree: Arc<Tree>, keyspace: Keyspace) -> Self {
        let lock = keyspace.shared().lock_handle();
        Self { source: Source::Tree(raw), _tree: tree, _lock: lock, _keyspace: keyspace }
    }

    /// The same with a transaction's changes of the range.
    pub(crate) fn with_changes(self, changes: &Arc<Own>, bounds: Bounds) -> Self {
        match self.source {
            Source::Tree(raw) if !changes.is_empty() => {
                let overlay = Overlay::new(raw, Arc::clone(changes), bounds);
                Self { source: Source::Overlaid(Box::new(overlay)), ..self }
            }
            source => Self { source, ..self },
        }
    }

    /// The keys alone; separated values are not loaded.
    pub fn keys(self) -> Keys {
        Keys(self)
    }

    fn entry(&mut self, end: End) -> Option<Result<(Slice, Slice)>> {
        match &mut self.source {
            Source::Tree(raw) => raw.entry(end),
            Source::Overlaid(overlay) => overlay.entry(end),
        }
    }

    fn key(&mut self, end: End) -> Option<Result<Slice>> {
        match &mut self.source {
            Source::Tree(raw) => raw.key(end),
            Source::Overlaid(overlay) => overlay.key(end),
        }
    }
}

impl Iterator for Iter {
    type Item = Result<(Slice, Slice)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.entry(End::Front)
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.entry(End::Back)
    }
}

impl fmt::Debug for Iter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").finish_non_exhaustive()
    }
}

/// Keys in order, from both ends.
#[derive(Debug)]
pub struct Keys(Iter);

impl Iterator for Keys {
    type Item = Result<Slice>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.key(End::Front)
    }
}

impl DoubleEndedIterator for Keys {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.key(End::Back)
    }
}

pub(crate) fn count(iter: Iter) -> Result<usize> {
    let mut count = 0;
    for key in iter.keys() {
        key?;
        count += 1;
    }
    Ok(count)
}
