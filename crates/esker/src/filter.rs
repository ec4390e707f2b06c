//! Compaction filters: a say of the program in what a compaction keeps.
//!
//! Who implements a filter sees entries one after the other, as they are merged, and says of each
//! whether it stays. What becomes of the verdicts, and what a filter may destroy, is in
//! `tree/filtering.rs`; that a filter that fails breaks nothing, in `compaction.rs`. Filters are given
//! at every open and never stored.

use std::fmt;
use std::sync::Arc;

use crate::error::Result;
use crate::tree::Slice;

/// What becomes of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It stays as it is.
    #[default]
    Keep,
    /// It goes, as if it had been removed.
    Remove,
    /// It stays, with another value.
    ReplaceValue(Slice),
}

/// What a filter is told of the compaction that it works for.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct FilterContext {
    /// Nothing older lies below what is written: removed entries are gone and leave no tombstone.
    pub is_last_level: bool,
}

/// An entry that is merged.
pub struct FilterItem<'a> {
    key: &'a [u8],
    value: &'a dyn Fn() -> Result<Slice>,
}

impl<'a> FilterItem<'a> {
    pub(crate) fn new(key: &'a [u8], value: &'a dyn Fn() -> Result<Slice>) -> Self {
        Self { key, value }
    }

    /// Its key.
    pub fn key(&self) -> &'a [u8] {
        self.key
    }

    /// Its value. A separated one is read from its blob file now, which a filter that can decide by
    /// the key saves.
    ///
    /// # Errors
    ///
    /// When the disk fails or the value is damaged: return that error.
    pub fn value(&self) -> Result<Slice> {
        (self.value)()
    }
}

impl fmt::Debug for FilterItem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilterItem").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Decides about the entries of one compaction.
///
/// It sees the newest value of a key among what is merged, and older ones where a snapshot is open; it
/// does not see tombstones, nor what is still in memory, nor what no compaction touches. So an entry
/// can live long, and be shown again to another compaction: verdicts should depend on the entry and on
/// the time alone, and once [`Verdict::Remove`] has been said of an entry it should be said again.
pub trait CompactionFilter: Send {
    /// What becomes of `item`.
    ///
    /// # Errors
    ///
    /// An error, or a panic in here, ends the compaction with [`Error::FilterFailed`](crate::Error):
    /// nothing that it wrote is used.
    fn filter_item(&mut self, item: &FilterItem<'_>, context: &FilterContext) -> Result<Verdict>;

    /// Called when everything was shown, shortly before the result is installed. It is also installed
    /// if this panics, which is an error of the compaction all the same.
    fn finish(self: Box<Self>) {}
}

/// Makes a filter for each compaction of a partition.
pub trait CompactionFilterFactory: Send + Sync {
    /// A new filter.
    fn make_filter(&self, context: &FilterContext) -> Box<dyn CompactionFilter>;
}

type Assign = dyn Fn(&str) -> Option<Arc<dyn CompactionFilterFactory>> + Send + Sync;

/// Which partition has which filter; see [`Config::compaction_filters`](crate::Config).
#[derive(Clone, Default)]
pub(crate) struct Filters(Option<Arc<Assign>>);

impl Filters {
    pub(crate) fn new(
        assign: impl Fn(&str) -> Option<Arc<dyn CompactionFilterFactory>> + Send + Sync + 'static,
    ) -> Self {
        Self(Some(Arc::new(assign)))
    }

    pub(crate) fn of(&self, partition: &str) -> Option<Arc<dyn CompactionFilterFactory>> {
        self.0.as_ref().and_then(|assign| assign(partition))
    }
}

impl fmt::Debug for Filters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filters").field(&self.0.is_some()).finish()
    }
}
