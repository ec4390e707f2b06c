//! What is in the journal and not in the memtables yet.
//!
//! A commit that is as durable as it asked for cannot fail any more. Putting it into the memtables is
//! half of its work, and another thread can do it. So batches wait here, in the order of their
//! numbers, and whoever comes first applies them: the applier (a thread of its own, woken when enough
//! wait), a reader, who must see everything that was answered, or the committing thread when too much
//! waits. Many are applied at a time, in the order of their keys, which keeps the upper levels of the
//! memtable in the processor's cache.
//!
//! A reader should not do a writer's work, so nothing waits where there are readers: one that finds
//! something waiting ends the deferring, and it begins again only after [`Limits::quiet_len`] changes
//! in which nobody has read.
//!
//! What must stay true:
//! - One thread applies at a time, in the order of the numbers, and publishes what it has applied.
//! - A number is noted as committed before its commit is answered, so that a reader that starts after
//!   the answer waits for it; but not before that where nothing is deferred, so that a reader does not
//!   wait for a batch that nobody was told of.
//! - What must find every commit in the memtables (sealing one, changing the set of partitions) settles
//!   this first, between two groups.
//! - A panic while something is applied is final: what it leaves is never published, and readers get an
//!   error instead of a state without commits that were answered.

use std::collections::VecDeque;

use crate::batch::{Change, Changes};
use crate::planted::{Bug, is_planted};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::views::Views;

/// When who applies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Changes without a reader after which commits need not be applied at once.
    pub(crate) quiet_len: u64,
    /// From so many changes on the applier is woken.
    pub(crate) wake_len: usize,
    /// From so many changes, or so many bytes in memory, on the committing threads help. The applier is
    /// woken at a quarter of the bytes, and what takes more than that by itself is applied at once.
    pub(crate) len_max: usize,
    pub(crate) bytes_max: u64,
    /// So many changes become visible at a time, or one batch.
    pub(crate) chunk_len: usize,
}

impl Limits {
    /// For a write buffer of which this takes a small part.
    pub(crate) fn new(quiet_len: u64, write_buffer_bytes_max: u64) -> Self {
        let bytes_max = (512 << 10).min(write_buffer_bytes_max / 64);
        Self { quiet_len, wake_len: 256, len_max: 2048, bytes_max, chunk_len: 256 }
    }
}

struct Batch {
    seqno: u64,
    changes: Changes,
    bytes: u64,
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<Batch>,
    /// Changes and bytes of all of them.
    len: usize,
    bytes: u64,
    /// Changes since somebody looked whether there are readers.
    quiet: u64,
}

pub(crate) struct Backlog {
    limits: Limits,
    waiting: Mutex<Waiting>,
    /// What is being applied. Taken before `waiting`.
    applying: Mutex<Vec<(u64, Change)>>,
    /// The newest commit that a reader must see.
    committed: AtomicU64,
    deferring: AtomicBool,
    /// Somebody has read since the last look.
    read: AtomicBool,
    /// The applier was woken and has not looked for more since.
    awake: AtomicBool,
    broken: AtomicBool,
}

/// What a committing thread does behind its commit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Nothing,
    WakeApplier,
    /// Apply a few of those that have waited longest.
    Help,
    /// Apply up to this number, and note it as committed.
    Apply(u64),
}

impl Backlog {
    pub(crate) fn new(committed: u64, limits: Limits) -> Self {
        Self {
            limits,
            waiting: Mutex::default(),
            applying: Mutex::default(),
            committed: AtomicU64::new(committed),
            deferring: AtomicBool::new(false),
            read: AtomicBool::new(false),
            awake: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        }
    }

    /// The newest commit that was answered, or is about to be.
    pub(crate) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// Everything up to this number is committed.
    pub(crate) fn note_committed(&self, seqno: u64) {
        self.committed.fetch_max(seqno, Ordering::AcqRel);
    }

    /// Whether applying has panicked.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Adds the commits of a group, each with its number and what it takes in memory, in order. Only
    /// the leader of the commit queue calls this.
    pub(crate) fn add(&self, group: impl Iterator<Item = (u64, Changes, u64)>) -> Then {
        let Limits { quiet_len, wake_len, len_max, bytes_max, .. } = self.limits;
        let mut waiting = self.waiting.lock();
        let (mut last, mut added) = (0, 0);
        for (seqno, changes, bytes) in group {
            added += bytes;
            waiting.len += changes.len();
            waiting.bytes += bytes;
            waiting.quiet += changes.len() as u64;
            waiting.batches.push_back(Batch { seqno, changes, bytes });
            last = seqno;
        }
        if waiting.quiet >= quiet_len {
            waiting.quiet = 0;
            let read = self.read.swap(false, Ordering::AcqRel);
            self.deferring.store(!read, Ordering::Release);
        }
        let Waiting { len, bytes, .. } = *waiting;
        let full = len >= len_max || bytes >= bytes_max;
        let large = added >= bytes_max / 4;
        let enough = len >= wake_len || bytes >= bytes_max / 4;
        drop(waiting);
        if large || !self.deferring.load(Ordering::Acquire) {
            return Then::Apply(last);
        }
        if !is_planted(Bug::DeferredNotNoted) {
            self.note_committed(last);
        }
        if enough && !self.awake.swap(true, Ordering::AcqRel) {
            return Then::WakeApplier;
        }
        if full { Then::Help } else { Then::Nothing }
    }

    /// What a reader must see; it has nothing to apply if that is visible.
    pub(crate) fn note_reader(&self, views: &Views) -> Option<u64> {
        // Most readers only look: a store would take the line from all others.
        if !self.read.load(Ordering::Relaxed) {
            self.read.store(true, Ordering::Release);
        }
        let committed = self.committed();
        if views.visible() >= committed {
            return None;
        }
        self.deferring.store(false, Ordering::Release);
        Some(committed)
    }

    /// Applies what waits, at least until `upto` is visible. False if that is not possible any more.
    pub(crate) fn apply_upto(&self, upto: u64, views: &Views, apply: &dyn Fn(Change, u64)) -> bool {
        while views.visible() < upto {
            if !self.apply_some(upto, views, apply) {
                // Somebody else was faster, or nobody can.
                return views.visible() >= upto;
            }
        }
        true
    }

    /// Applies the batches that have waited longest. False when nothing is left up to `upto`.
    pub(crate) fn apply_some(&self, upto: u64, views: &Views, apply: &dyn Fn(Change, u64)) -> bool {
        let mut chunk = self.applying.lock();
        if self.is_broken() || views.visible() >= upto {
            return false;
        }
        let Some(last) = self.take_chunk(&mut chunk) else { return false };
        // Stable: of two changes of one entry in a batch the later one must come last.
        chunk.sort_by(|(_, a), (_, b)| (a.core.id, &a.key).cmp(&(b.core.id, &b.key)));
        let unbroken = Unbroken(&self.broken);
        for (seqno, change) in chunk.drain(..) {
            apply(change, seqno);
        }
        std::mem::forget(unbroken);
        // A large batch must not keep its room for ever.
        chunk.shrink_to(self.limits.chunk_len);
        views.publish(last);
        true
    }

    /// Moves the oldest batches to `chunk`; returns the number of the last one.
    fn take_chunk(&self, chunk: &mut Vec<(u64, Change)>) -> Option<u64> {
        let mut waiting = self.waiting.lock();
        let mut last = None;
        let fits = |len: usize, next: &Batch| len + next.changes.len() <= self.limits.chunk_len;
        while let Some(next) =
            waiting.batches.pop_front_if(|next| last.is_none() || fits(chunk.len(), next))
        {
            waiting.len -= next.changes.len();
            waiting.bytes -= next.bytes;
            last = Some(next.seqno);
            chunk.extend(next.changes.into_iter().map(|change| (next.seqno, change)));
        }
        last
    }

    /// The applier has found nothing left. True if enough waits again by now; it sleeps otherwise, and
    /// is woken.
    pub(crate) fn rest_applier(&self) -> bool {
        self.awake.store(false, Ordering::Release);
        let enough = self.waiting.lock().len >= self.limits.wake_len;
        enough && !self.awake.swap(true, Ordering::AcqRel)
    }
}

/// Dropped by a panic only.
struct Unbroken<'a>(&'a AtomicBool);

impl Drop for Unbroken<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
