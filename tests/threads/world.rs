//! One keyspace as the commit path sees it: two partitions, one journal, and what was answered.
//!
//! What must stay true: every check here holds at any moment at which a thread can be stopped. The
//! list of answers is plain memory and adds nothing to explore.

use std::path::Path;
use std::sync::{Arc, Mutex as Plain, PoisonError};

use crate::Durability;
use crate::backlog;
use crate::batch::{Change, Core, Key};
use crate::commit::{Committer, Turn};
use crate::conflict::{Check, Conflicts, Reads};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{self, Fault};
use crate::jobs::Jobs;
use crate::journal::format::Identity;
use crate::journal::writer::{Journal, Outgoing};
use crate::queue::Limits;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::views::Views;

const IDENTITY: Identity = Identity { uuid: 1, timeline: 2 };

pub struct World {
    pub journal: Arc<Journal>,
    pub views: Arc<Views>,
    pub committer: Committer,
    pub partitions: [Arc<Core>; 2],
    /// Where there are optimistic transactions.
    conflicts: Option<Arc<Conflicts<Key>>>,
    /// Commits may be answered before they are applied: only readers must find them.
    deferring: bool,
    /// The newest commit that was answered, as the thread that heard of it tells others.
    told: AtomicU64,
    /// As `Shared::catalog`: one thread prepares a segment.
    catalog: Mutex<()>,
    answers: Plain<Answers>,
}

#[derive(Default)]
struct Answers {
    /// The commits that succeeded, in the order in which that was heard.
    succeeded: Vec<u64>,
    /// The first cause of a poisoning that anybody heard of.
    cause: Option<Arc<Error>>,
}

/// Limits with which nothing is applied by who commits it until two batches wait.
fn few() -> backlog::Limits {
    backlog::Limits { wake_len: 1, len_max: 4, ..backlog::Limits::new(0, u64::MAX) }
}

/// What a freeze found.
pub struct Frozen {
    pub seqno: u64,
    pub active_segment: u64,
}

impl World {
    pub fn new(limits: Limits, fault: Option<Fault>) -> Arc<Self> {
        Self::with(limits, backlog::Limits::new(u64::MAX, u64::MAX), fault, false)
    }

    /// There are optimistic transactions.
    pub fn optimistic(limits: Limits, deferring: bool) -> Arc<Self> {
        let at_once = backlog::Limits::new(u64::MAX, u64::MAX);
        Self::with(limits, if deferring { few() } else { at_once }, None, true)
    }

    /// Nothing is applied by who commits it until two batches wait.
    pub fn deferring(limits: Limits) -> Arc<Self> {
        Self::with(limits, few(), None, false)
    }

    fn with(
        limits: Limits,
        waiting: backlog::Limits,
        fault: Option<Fault>,
        optimistic: bool,
    ) -> Arc<Self> {
        files::format(fault);
        let segment = |id| Journal::prepare(Path::new("journal"), IDENTITY, id, 1 << 20, 0);
        let first = segment(1).expect("a segment");
        let journal = Journal::begin(Path::new("journal"), IDENTITY, 1 << 20, first, 0, 0);
        let (journal, views) = (Arc::new(journal), Arc::new(Views::new(0)));
        let (log, shown) = (Arc::clone(&journal), Arc::clone(&views));
        let conflicts = optimistic.then(|| Arc::new(Conflicts::new(Arc::clone(&views))));
        let checked = conflicts.clone();
        let jobs = Arc::new(Jobs);
        Arc::new(Self {
            committer: Committer::new(log, shown, jobs, u64::MAX, limits, waiting, checked),
            conflicts,
            deferring: waiting.quiet_len == 0,
            told: AtomicU64::new(0),
            journal,
            views,
            partitions: [1, 2].map(|id| Arc::new(Core::new(id))),
            catalog: Mutex::default(),
            answers: Plain::default(),
        })
    }

    fn answers(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The commits that were answered with success so far.
    pub fn succeeded(&self) -> Vec<u64> {
        self.answers().succeeded.clone()
    }

    /// Writes to both partitions, and checks what the answer promises.
    pub fn commit(&self, durability: Durability) -> Result<u64> {
        self.commit_to(&[0, 1], durability)
    }

    pub fn commit_to(&self, partitions: &[usize], durability: Durability) -> Result<u64> {
        self.write(partitions, 7, durability, None)
    }

    fn write(
        &self,
        partitions: &[usize],
        value: u64,
        durability: Durability,
        check: Option<Box<Check<Key>>>,
    ) -> Result<u64> {
        let core = |&at: &usize| Arc::clone(&self.partitions[at]);
        let changes = partitions.iter().map(|at| Change { core: core(at), key: 0, value });
        let changes = changes.collect::<Vec<_>>();
        let ids = changes.iter().map(|change| change.core.id).collect();
        let outgoing = Outgoing::new(Outgoing::begin(), changes.len() as u32, ids);
        let outcome = self.committer.commit(outgoing, changes, 1, durability, check);
        match &outcome {
            Ok(seqno) => self.check_success(*seqno, partitions, durability),
            Err(error) => self.check_refusal(error),
        }
        outcome
    }

    fn check_success(&self, seqno: u64, partitions: &[usize], durability: Durability) {
        if durability > Durability::Buffer {
            let durable = files::durable();
            assert!(durable >= seqno, "commit {seqno} was answered, durable up to {durable}");
        }
        if self.deferring {
            self.told.fetch_max(seqno, Ordering::AcqRel);
        } else {
            assert!(self.views.visible() >= seqno, "commit {seqno} was answered, not visible");
            for &at in partitions {
                let found = self.partitions[at].versions().iter().any(|(s, _)| *s == seqno);
                assert!(found, "commit {seqno} was answered, not applied");
            }
        }
        let mut answers = self.answers();
        assert!(!answers.succeeded.contains(&seqno), "two commits have the number {seqno}");
        answers.succeeded.push(seqno);
    }

    /// As every read: it finds what was answered before it began, whole batches in their order.
    pub fn read(&self) {
        let told = self.told.load(Ordering::Acquire);
        self.committer.catch_up().expect("nothing is broken");
        let visible = self.views.visible();
        assert!(told <= visible, "{told} answered, {visible} visible");
        for partition in &self.partitions {
            let versions = partition.versions();
            let applied = versions.iter().map(|(s, _)| *s).filter(|s| *s <= visible);
            let all = (1..=visible).collect::<Vec<_>>();
            assert_eq!(applied.collect::<Vec<_>>(), all, "what is visible is applied");
        }
    }

    /// As `TxKeyspace::transact`: sets both partitions to one more than the first has, and begins again
    /// after every conflict. Whoever has a conflict waits in the queue for the one it is with, so it
    /// sees that one the next time but one at the latest.
    pub fn count_up(&self) -> u64 {
        let conflicts = self.conflicts.as_ref().expect("optimistic transactions");
        loop {
            self.committer.catch_up().expect("nothing is broken");
            let (view, _open) = conflicts.begin();
            let (read_seqno, mut reads) = (view.read_seqno(), Reads::default());
            let before = self.partitions[0].read(read_seqno).map_or(0, |(_, value)| value);
            reads.key(self.partitions[0].id, 0);
            let check = Some(Box::new(Check { read_seqno, reads }));
            match self.write(&[0, 1], before + 1, Durability::Buffer, check) {
                Err(Error::Conflict) => {}
                outcome => return outcome.expect("a commit"),
            }
        }
    }

    /// Where every commit counts up, the value that a view sees is its number of commits.
    pub fn read_count(&self) {
        self.committer.catch_up().expect("nothing is broken");
        let view = self.views.open();
        let seqno = view.read_seqno() - 1;
        let expected = (seqno > 0).then_some((seqno, seqno));
        for partition in &self.partitions {
            let found = partition.read(view.read_seqno());
            assert_eq!(found, expected, "a lost update, or half of one, at {seqno}");
        }
    }

    /// Whoever heard of a poisoning knows the first cause, and is right about what follows.
    pub fn check_refusal(&self, error: &Error) {
        let Error::Poisoned { cause } = error else { return };
        let refused = self.journal.check_poison().map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::Poisoned), "heard of it, not refused");
        let mut answers = self.answers();
        let first = answers.cause.get_or_insert_with(|| Arc::clone(cause));
        assert!(Arc::ptr_eq(first, cause), "two causes: {first} and {cause}");
    }

    /// What holds between two groups.
    pub fn check_between(&self, turn: &Turn<'_>) {
        let seqno = turn.seqno();
        assert_eq!(self.views.visible(), seqno, "between groups: all of the journal is visible");
        let batches = (1..=seqno).collect::<Vec<_>>();
        for partition in &self.partitions {
            let applied = partition.versions().iter().map(|(seqno, _)| *seqno).collect::<Vec<_>>();
            assert_eq!(applied, batches, "between groups: whole batches up to {seqno}");
        }
        let answered = self.succeeded();
        assert!(answered.iter().all(|s| *s <= seqno), "{answered:?} were answered before {seqno}");
    }

    /// As `checkpoint::freeze`, with the checks of what a checkpoint relies on.
    pub fn freeze(self: &Arc<Self>) -> Result<Frozen> {
        let before = self.succeeded();
        let frozen = loop {
            self.prepare_segment()?;
            let world = Arc::clone(self);
            let frozen = self.committer.pause(move |turn| {
                if !turn.journal().swap() {
                    return Ok(None);
                }
                world.check_between(turn);
                let position = turn.journal().position();
                let (seqno, active_segment) = (position.last_seqno, position.active_segment);
                Ok(Some(Frozen { seqno, active_segment }))
            })?;
            if let Some(frozen) = frozen {
                break frozen;
            }
        };
        self.journal.seal_retired()?;
        assert!(before.iter().all(|s| *s <= frozen.seqno), "{before:?} before {}", frozen.seqno);
        self.check_frozen(&frozen);
        Ok(frozen)
    }

    /// The segments before the freeze are sealed and durable, and hold what is in it, nothing else.
    pub fn check_frozen(&self, frozen: &Frozen) {
        let segments = files::segments();
        let (sealed, after) = segments.split_at(frozen.active_segment as usize - 1);
        assert!(sealed.iter().all(|segment| segment.sealed), "linked before it is sealed");
        let frames = sealed.iter().flat_map(|segment| segment.frames.iter().map(|(s, _)| *s));
        let all = (1..=frozen.seqno).collect::<Vec<_>>();
        assert_eq!(frames.collect::<Vec<_>>(), all, "a freeze holds the commits up to its number");
        assert!(files::durable() >= frozen.seqno, "sealed before it is durable");
        let later = after.iter().flat_map(|segment| &segment.frames);
        let mut later = later.map(|(seqno, _)| *seqno);
        assert!(later.all(|seqno| seqno > frozen.seqno), "a freeze holds all up to its number");
    }

    pub fn prepare_segment(&self) -> Result<()> {
        let _catalog = self.catalog.lock();
        let Some(id) = self.journal.wants_segment() else { return Ok(()) };
        let prepared = Journal::prepare(Path::new("journal"), IDENTITY, id, 1 << 20, 0)?;
        self.journal.install_next(prepared);
        Ok(())
    }

    /// After the last thread: `count` commits, without gaps and in the order of the journal, each
    /// applied once and in order.
    pub fn check_all(&self, count: u64) {
        let all = (1..=count).collect::<Vec<_>>();
        assert_eq!(files::written(), all, "the journal's order is the order of numbers");
        self.read();
        for partition in &self.partitions {
            let applied = partition.versions().iter().map(|(seqno, _)| *seqno).collect::<Vec<_>>();
            assert_eq!(applied, all, "each applied once, in order");
        }
        let mut succeeded = self.succeeded();
        succeeded.sort_unstable();
        assert_eq!(succeeded, all, "each answered once");
        assert_eq!(self.views.visible(), count);
    }
}
