//! Compactions that lose entries: those with a filter, and those of a FIFO.
//!
//! A merge only drops what no view can ask for (`views.rs`). A filter, or the end of a FIFO's oldest
//! level, takes away what views do see. What must stay true:
//! - **No view sees it happen.** Views that were open before keep reading the super-version from
//!   before, whole: the new one is installed under a number that they do not reach, while no view
//!   opens (`Loss::before_install`). lsm-tree picks super-versions by number; this is the one place
//!   where its history is used. At most one old super-version is kept, and while it is, nothing more is
//!   lost: what is between it and the newest one goes (`Tree::trim_history`).
//! - **It does not come back.** Only what CATALOG knows to be in tables is merged (`compaction.rs`).
//! - Installs of such a tree take turns (`Installing`), because they share the counter that numbers
//!   them. A merge gives its turn back while it works, and takes one again to install.
//! - Nothing that a filter does unwinds into lsm-tree, which would never merge those tables again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lsm_tree::SequenceNumberCounter;
use lsm_tree::compaction::filter as raw;
use parking_lot::{Condvar, Mutex};

use super::{READ_SEQNO_MIN, Slice};
use crate::error::{Error, Result};
use crate::filter::{
    CompactionFilter, CompactionFilterFactory, FilterContext, FilterItem, Verdict,
};
use crate::planted::{Bug, is_planted};
use crate::views::{Hold, Views};

/// What a compaction may lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Losing {
    /// Nothing: every entry stays.
    Nothing,
    /// What the filter says, if there is one.
    Filtered,
    /// Everything that is merged.
    All,
}

/// What filters did to one partition since it was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lost {
    pub(crate) removed: u64,
    pub(crate) replaced: u64,
    /// Compactions in which the filter failed.
    pub(crate) failures: u64,
    /// Tables that a FIFO has ended.
    pub(crate) tables: u64,
}

/// One compaction at a time.
struct Run {
    losing: Losing,
    views: Option<Arc<Views>>,
    /// What the filter, or reading a value for it, failed with.
    failure: Option<Error>,
    /// What it has changed so far.
    removed: u64,
    replaced: u64,
    turn: Option<Turn>,
    hold: Option<Hold>,
}

/// What a tree that can lose entries has, shared with the filter that lsm-tree holds.
pub(super) struct Loss {
    partition: String,
    factory: Option<Arc<dyn CompactionFilterFactory>>,
    counter: SequenceNumberCounter,
    installing: Arc<Installing>,
    /// The number of the newest super-version while an older one is kept for views; else 0.
    kept_below: AtomicU64,
    run: Mutex<Run>,
    lost: Mutex<Lost>,
}

/// Whose turn it is to install.
#[derive(Default)]
struct Installing {
    busy: Mutex<bool>,
    free: Condvar,
}

/// A turn to install, owned: it outlives the call in which it was taken.
pub(super) struct Turn(Arc<Installing>);

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.busy.lock() = false;
        self.0.free.notify_one();
    }
}

impl Loss {
    pub(super) fn new(
        partition: &str,
        factory: Option<Arc<dyn CompactionFilterFactory>>,
        counter: SequenceNumberCounter,
    ) -> Self {
        let run = Run {
            losing: Losing::Nothing,
            views: None,
            failure: None,
            removed: 0,
            replaced: 0,
            turn: None,
            hold: None,
        };
        Self {
            partition: partition.to_owned(),
            factory,
            counter,
            installing: Arc::default(),
            kept_below: AtomicU64::new(0),
            run: Mutex::new(run),
            lost: Mutex::default(),
        }
    }

    pub(super) fn has_filter(&self) -> bool {
        self.factory.is_some()
    }

    pub(super) fn lost(&self) -> Lost {
        *self.lost.lock()
    }

    /// Until the guard goes nobody else installs, and the counter says what an install that loses
    /// nothing is numbered with: views that keep the old super-version do not reach it either.
    pub(super) fn take_turn(&self) -> Turn {
        let mut busy = self.installing.busy.lock();
        self.installing.free.wait_while(&mut busy, |busy| *busy);
        *busy = true;
        drop(busy);
        self.counter.set(self.kept_below());
        Turn(Arc::clone(&self.installing))
    }

    /// The number that views must reach to see the newest super-version; 0: there is no older one.
    pub(super) fn kept_below(&self) -> u64 {
        self.kept_below.load(Ordering::Acquire)
    }

    /// The views that needed the old super-version are closed.
    pub(super) fn forget_kept(&self) {
        self.kept_below.store(0, Ordering::Release);
    }

    /// A compaction begins. It has the turn until it is known whether it merges.
    pub(super) fn begin(&self, losing: Losing, views: &Arc<Views>) {
        let turn = self.take_turn();
        let mut run = self.run.lock();
        let views = Some(Arc::clone(views));
        *run = Run {
            losing,
            views,
            failure: None,
            removed: 0,
            replaced: 0,
            turn: Some(turn),
            hold: None,
        };
        drop(run);
        if losing == Losing::All {
            // Nobody but the caller knows how: it may not be a merge.
            self.before_loss();
        }
    }

    /// The compaction is over, of which a FIFO wanted so many tables to end; what the filter failed
    /// with, if it did.
    pub(super) fn end(&self, is_installed: bool, ending: Option<usize>) -> Option<Error> {
        let mut run = self.run.lock();
        run.losing = Losing::Nothing;
        let (failure, hold, turn) = (run.failure.take(), run.hold.take(), run.turn.take());
        if hold.is_some() && !is_installed {
            self.forget_kept();
        }
        let mut lost = self.lost.lock();
        if is_installed {
            lost.removed += run.removed;
            lost.replaced += run.replaced;
            lost.tables += ending.unwrap_or_default() as u64;
        }
        lost.failures += u64::from(matches!(failure, Some(Error::FilterFailed { .. })));
        drop((lost, run));
        drop((turn, hold));
        failure
    }

    /// The merge is done and is installed next.
    fn before_install(&self) {
        if self.run.lock().turn.is_none() {
            let turn = self.take_turn();
            self.run.lock().turn = Some(turn);
        }
        let run = self.run.lock();
        let loses = run.losing == Losing::All || run.removed + run.replaced > 0;
        drop(run);
        if loses {
            self.before_loss();
        }
    }

    /// What is installed next lacks what views see: those that are open go on with what is there now,
    /// and none opens until it is installed.
    fn before_loss(&self) {
        let mut run = self.run.lock();
        let Some(views) = run.views.clone() else { return };
        if run.hold.is_some() || is_planted(Bug::LossNotHidden) {
            return;
        }
        run.hold = Some(views.hold());
        // Before the first entry there is nothing to lose, and old super-versions carry up to 1.
        if let Some(reached) = views.newest().filter(|&reached| reached >= READ_SEQNO_MIN) {
            self.kept_below.store(reached, Ordering::Release);
            self.counter.set(reached);
        }
    }

    fn fail(&self, failure: Error) -> lsm_tree::Error {
        self.run.lock().failure.get_or_insert(failure);
        lsm_tree::Error::Io(std::io::Error::other("the compaction filter failed"))
    }

    fn failed(&self, reason: impl Into<String>) -> Error {
        Error::FilterFailed { partition: self.partition.clone(), reason: reason.into() }
    }
}

/// What lsm-tree is given.
pub(super) fn factory(loss: &Arc<Loss>) -> Arc<dyn raw::Factory> {
    Arc::new(Factory(AssertUnwindSafe(Arc::clone(loss))))
}

struct Factory(AssertUnwindSafe<Arc<Loss>>);

impl raw::Factory for Factory {
    fn name(&self) -> &str {
        "esker"
    }

    /// The merge begins, and takes long.
    fn make_filter(&self, context: &raw::Context) -> Box<dyn raw::CompactionFilter> {
        let loss = Arc::clone(&self.0);
        let mut run = loss.run.lock();
        let losing = run.losing;
        let taken = (run.hold.take(), run.turn.take());
        drop(run);
        if taken.0.is_some() {
            loss.forget_kept();
        }
        drop(taken);
        let context = FilterContext { is_last_level: context.is_last_level };
        let filter = match (losing, &loss.factory) {
            (Losing::Nothing, _) | (Losing::Filtered, None) => Chosen::Keep,
            (Losing::All, _) => Chosen::Drop,
            (Losing::Filtered, Some(factory)) => {
                match catch_unwind(AssertUnwindSafe(|| factory.make_filter(&context))) {
                    Ok(filter) => Chosen::Ask(filter),
                    Err(_) => Chosen::Fail(loss.failed("it panicked when it was made")),
                }
            }
        };
        Box::new(Running { loss, filter, context })
    }
}

enum Chosen {
    Keep,
    Drop,
    Ask(Box<dyn CompactionFilter>),
    Fail(Error),
}

struct Running {
    loss: Arc<Loss>,
    filter: Chosen,
    context: FilterContext,
}

impl Running {
    fn ask(&mut self, item: &raw::ItemAccessor<'_>) -> lsm_tree::Result<Verdict> {
        let Chosen::Ask(filter) = &mut self.filter else { return Ok(Verdict::Keep) };
        let loss = &self.loss;
        let damage = Mutex::new(None);
        let value = || {
            item.value().map_err(|error| {
                let error =
                    super::wrap("read a value for the filter of", loss.partition.as_ref(), error);
                damage.lock().get_or_insert(error).clone()
            })
        };
        let item = FilterItem::new(item.key(), &value);
        let asked = catch_unwind(AssertUnwindSafe(|| filter.filter_item(&item, &self.context)));
        let failure = match asked {
            Ok(Ok(verdict)) => return Ok(verdict),
            Ok(Err(error)) => {
                damage.lock().take().unwrap_or_else(|| loss.failed(error.to_string()))
            }
            Err(_) => damage.lock().take().unwrap_or_else(|| loss.failed("it panicked")),
        };
        // Dropping what panicked may panic again.
        let filter = std::mem::replace(&mut self.filter, Chosen::Keep);
        let _ = catch_unwind(AssertUnwindSafe(|| drop(filter)));
        Err(loss.fail(failure))
    }
}

impl raw::CompactionFilter for Running {
    fn filter_item(
        &mut self,
        item: raw::ItemAccessor<'_>,
        _: &raw::Context,
    ) -> lsm_tree::Result<raw::Verdict> {
        let verdict = match &self.filter {
            Chosen::Keep => return Ok(raw::Verdict::Keep),
            Chosen::Drop => return Ok(raw::Verdict::Destroy),
            Chosen::Fail(failure) => return Err(self.loss.fail(failure.clone())),
            Chosen::Ask(_) => self.ask(&item)?,
        };
        match verdict {
            Verdict::Keep => Ok(raw::Verdict::Keep),
            Verdict::Remove => {
                self.loss.run.lock().removed += 1;
                Ok(raw::Verdict::Remove)
            }
            Verdict::ReplaceValue(value) if value.len() > u32::MAX as usize => {
                Err(self.loss.fail(self.loss.failed("it replaced a value by one over 4 GiB")))
            }
            Verdict::ReplaceValue(value) => {
                self.loss.run.lock().replaced += 1;
                Ok(raw::Verdict::ReplaceValue(Slice::clone(&value)))
            }
        }
    }

    fn finish(self: Box<Self>) {
        if let Chosen::Ask(filter) = self.filter
            && catch_unwind(AssertUnwindSafe(|| filter.finish())).is_err()
        {
            // The verdicts were sound, and what follows cannot be stopped any more.
            self.loss.run.lock().failure.get_or_insert(self.loss.failed("it panicked at its end"));
        }
        self.loss.before_install();
    }
}

/// What a compaction ended with: a failure of the filter says more than lsm-tree's error.
pub(super) fn outcome(failure: Option<Error>, result: Result<()>) -> Result<()> {
    match (failure, result) {
        (None, result) => result,
        (Some(failure), _) => Err(failure),
    }
}
