//! Which commits are visible, which read views are open, and what compaction may forget.
//!
//! A read view is a number: at `read_seqno` it sees the commits below it. lsm-tree keeps a history
//! of super-versions to serve old views; we do not use it, because it pins every table since the
//! oldest view. Instead trees always read their newest super-version, and what must stay true is:
//! **a merge drops an old value only when no open view, now or later, can ask for it.**
//!
//! lsm-tree's rule for dropping is coarser than that: given a threshold, a value below it goes as
//! soon as any newer one is merged with it, however new. So a merge gets either 0 (drop nothing) or
//! one more than the newest commit that its inputs can hold; the latter only if every open view is
//! newer than its inputs. Views that open later are newer by construction, as long as the inputs
//! are fixed when the threshold is taken (see `Tree::gate`).
//!
//! Reads without a snapshot do not register. They may be overtaken by a merge between taking their
//! number and taking the tree's version; each tree remembers the highest threshold it used
//! (`gc_floor`), and a read that finds itself below it simply starts again.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::planted::{Bug, is_planted};
use crate::sync::{AtomicU64, Mutex, Ordering, yield_now};

#[derive(Debug, Default)]
pub(crate) struct Views {
    visible: AtomicU64,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// Views by their read seqno.
    views: BTreeMap<u64, usize>,
    /// While there are any, no view opens.
    holds: usize,
}

impl Views {
    /// Views of a keyspace that was recovered up to `visible`.
    pub(crate) fn new(visible: u64) -> Self {
        Self { visible: AtomicU64::new(visible), open: Mutex::default() }
    }

    /// The newest commit that readers see.
    pub(crate) fn visible(&self) -> u64 {
        self.visible.load(Ordering::Acquire)
    }

    /// The read seqno of a view that sees everything visible now.
    pub(crate) fn read_seqno(&self) -> u64 {
        self.visible() + 1
    }

    /// Makes commits up to `seqno` visible, after they are applied.
    pub(crate) fn publish(&self, seqno: u64) {
        self.visible.fetch_max(seqno, Ordering::AcqRel);
    }

    pub(crate) fn open(self: &Arc<Self>) -> View {
        loop {
            let mut open = self.open.lock();
            if open.holds == 0 {
                let read_seqno = self.read_seqno();
                *open.views.entry(read_seqno).or_insert(0) += 1;
                return View { views: Arc::clone(self), read_seqno };
            }
            drop(open);
            yield_now();
        }
    }

    /// Lets no view open until the guard goes, which must be soon: while something is installed that
    /// views must not see happen.
    pub(crate) fn hold(self: &Arc<Self>) -> Hold {
        self.open.lock().holds += 1;
        Hold(Arc::clone(self))
    }

    /// The threshold for a merge whose inputs hold nothing newer than `newest`.
    pub(crate) fn merge_threshold(&self, newest: u64) -> u64 {
        let open = self.open.lock();
        match open.views.first_key_value() {
            Some((&oldest, _)) if oldest <= newest && !is_planted(Bug::SnapshotsForgotten) => 0,
            _ => newest + 1,
        }
    }

    /// The read seqno of the oldest open view.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.open.lock().views.first_key_value().map(|(&seqno, _)| seqno)
    }

    /// The read seqno of the newest open view.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.open.lock().views.last_key_value().map(|(&seqno, _)| seqno)
    }

    pub(crate) fn count(&self) -> usize {
        self.open.lock().views.values().sum()
    }
}

/// Keeps views from opening.
#[derive(Debug)]
pub(crate) struct Hold(Arc<Views>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.open.lock().holds -= 1;
    }
}

/// An open read view, closed on drop.
#[derive(Debug)]
pub(crate) struct View {
    views: Arc<Views>,
    read_seqno: u64,
}

impl View {
    pub(crate) fn read_seqno(&self) -> u64 {
        self.read_seqno
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let mut open = self.views.open.lock();
        if let Some(count) = open.views.get_mut(&self.read_seqno) {
            *count -= 1;
            if *count == 0 {
                open.views.remove(&self.read_seqno);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_waits_while_something_is_installed() {
        let views = Arc::new(Views::new(10));
        let hold = views.hold();
        let opening = std::thread::spawn({
            let views = Arc::clone(&views);
            move || views.open().read_seqno()
        });
        std::thread::sleep(std::time::Duration::from_millis(10));
        assert_eq!(views.count(), 0);
        views.publish(11);
        drop(hold);
        assert_eq!(opening.join().unwrap(), 12);
    }

    #[test]
    fn a_merge_drops_nothing_while_an_older_view_is_open() {
        let views = Arc::new(Views::new(10));
        assert_eq!(views.merge_threshold(10), 11);
        let view = views.open();
        assert_eq!(view.read_seqno(), 11);
        assert_eq!(views.merge_threshold(10), 11, "the view is newer than the inputs");
        assert_eq!(views.merge_threshold(11), 0, "an input may hide what the view sees");
        drop(view);
        assert_eq!(views.merge_threshold(11), 12);
    }
}
