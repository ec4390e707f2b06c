//! What threads do to one keyspace at once. Each is explored by loom with three threads and by
//! shuttle with more; the checks are in `world.rs`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::Durability::{Buffer, SyncData};
use crate::error::{Error, ErrorKind};
use crate::files::{self, Fault};
use crate::queue::{Limits, Member, Queue, Serve};
use crate::sync::{AtomicBool, JoinHandle, Ordering, spawn};
use crate::world::World;

/// How large a scenario is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Threads that commit, or do what the scenario is about.
    pub threads: usize,
    /// Commits by each.
    pub commits: usize,
    /// Looks at an outcome before a thread parks.
    pub spins: usize,
}

pub type Scenario = fn(Size);

/// What the panic that a scenario plans begins with: it is not reported.
const PLANNED: &str = "planned";

/// Ends the process with a failure if it takes longer than `ESKER_LIMIT_SECS`, or ten minutes.
pub fn limit_time() {
    let given = std::env::var("ESKER_LIMIT_SECS").ok();
    let secs = given.map_or(600, |s| s.parse().expect("ESKER_LIMIT_SECS is a number"));
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(secs));
        eprintln!("given up after {secs} s");
        std::process::exit(1);
    });
}

/// Keeps planned panics out of the output.
pub fn silence_planned_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload_as_str().is_some_and(|message| message.starts_with(PLANNED)) {
            report(info);
        }
    }));
}

pub const ALL: [(&str, Scenario); 21] = [
    ("queue", queue),
    ("queue-hand-over", queue_hand_over),
    ("queue-long", queue_long),
    ("commits", commits),
    ("hand-over", hand_over),
    ("freeze", freeze),
    ("deferred", deferred),
    ("deferred-seal", deferred_seal),
    ("deferred-panic", deferred_panic),
    ("deferred-close", deferred_close),
    ("two-freezes", two_freezes),
    ("drop", drop_partition),
    ("durable-and-buffered", durable_and_buffered),
    ("failed-sync", failed_sync),
    ("no-space", no_space),
    ("panic", panic),
    ("close", close),
    ("snapshot", snapshot),
    ("swap-and-persist", swap_and_persist),
    ("optimistic", optimistic),
    ("optimistic-deferred", optimistic_deferred),
];

impl Size {
    fn limits(self) -> Limits {
        let idle_yields = self.spins.min(1);
        Limits { spins: self.spins, yields: 0, idle_yields, ..Limits::default() }
    }
}

/// Runs `f` on `threads - 1` more threads and on this one.
fn together(
    size: Size,
    world: &Arc<World>,
    f: impl Fn(&Arc<World>, usize) + Send + Sync + 'static,
) {
    let f = Arc::new(f);
    let others = (1..size.threads).map(|number| {
        let (world, f) = (Arc::clone(world), Arc::clone(&f));
        spawn(move || f(&world, number))
    });
    let others = others.collect::<Vec<JoinHandle<()>>>();
    f(world, 0);
    others.into_iter().for_each(|thread| thread.join().expect("a thread that ends"));
}

/// A group of numbers, answered by how many were served before.
struct Counter {
    queue: Queue<(usize, bool)>,
    served: std::sync::Mutex<Vec<usize>>,
}

impl Serve for Counter {
    /// A number, and whether it takes long.
    type Job = (usize, bool);

    fn shared_bytes(_job: &Self::Job) -> Option<usize> {
        Some(1)
    }

    fn is_long((_, long): &Self::Job) -> bool {
        *long
    }

    fn serve_alone(&self, (job, _): Self::Job) -> crate::error::Result<u64> {
        let mut served = self.served.lock().expect("no panic");
        served.push(job);
        Ok(served.len() as u64)
    }

    fn serve(&self, group: Vec<Member<'_, Self>>) {
        let jobs = group.iter().map(|member| member.take_job().expect("a job, once"));
        let jobs = jobs.collect::<Vec<_>>();
        // No thread switches while this is locked.
        let mut served = self.served.lock().expect("no panic");
        let answers = jobs.into_iter().map(|(job, _)| {
            served.push(job);
            served.len() as u64
        });
        let answers = answers.collect::<Vec<_>>();
        drop(served);
        group.iter().zip(answers).for_each(|(member, answer)| member.finish(Ok(answer)));
    }

    fn panicked(&self) -> Error {
        unreachable!("nothing panics")
    }
}

/// The queue by itself: few enough steps that all interleavings can be gone through.
fn submit_to_queue(size: Size, limits: Limits, long: bool) {
    let served = std::sync::Mutex::default();
    let counter = Arc::new(Counter { queue: Queue::new(limits), served });
    let submit = move |counter: &Counter, number| {
        let answer = counter.queue.submit(counter, (number, long)).expect("an answer");
        let served = counter.served.lock().expect("no panic");
        assert_eq!(served[answer as usize - 1], number, "the answer to somebody else");
    };
    let others = (1..size.threads).map(|number| {
        let counter = Arc::clone(&counter);
        spawn(move || submit(&counter, number))
    });
    let others = others.collect::<Vec<JoinHandle<()>>>();
    submit(&counter, 0);
    others.into_iter().for_each(|thread| thread.join().expect("a thread that ends"));
    let mut served = counter.served.lock().expect("no panic").clone();
    served.sort_unstable();
    assert_eq!(served, (0..size.threads).collect::<Vec<_>>(), "each served once");
}

fn queue(size: Size) {
    submit_to_queue(size, size.limits(), false);
}

fn queue_hand_over(size: Size) {
    let limits = Limits { group_len_max: 1, extra_groups: 0, ..size.limits() };
    submit_to_queue(size, limits, false);
}

/// Who leads waits for company.
fn queue_long(size: Size) {
    submit_to_queue(size, size.limits(), true);
}

/// Commits of different threads share groups.
fn commits(size: Size) {
    let world = World::new(size.limits(), None);
    together(size, &world, move |world, _| {
        for _ in 0..size.commits {
            world.commit(Buffer).expect("a commit");
        }
    });
    world.check_all((size.threads * size.commits) as u64);
}

/// Groups of one, and a leader that leaves at once: the lead goes from thread to thread.
fn hand_over(size: Size) {
    let limits = Limits { group_len_max: 1, extra_groups: 0, ..size.limits() };
    let world = World::new(limits, None);
    together(size, &world, move |world, _| {
        for _ in 0..size.commits {
            world.commit(Buffer).expect("a commit");
        }
    });
    world.check_all((size.threads * size.commits) as u64);
}

/// A freeze beside writers. A commit that begins after it is not in it.
fn freeze(size: Size) {
    let world = World::new(Limits { extra_groups: 0, ..size.limits() }, None);
    together(size, &world, move |world, number| {
        if number == 0 {
            let frozen = world.freeze().expect("a freeze");
            world.check_frozen(&frozen);
        } else {
            for _ in 0..size.commits {
                world.commit(Buffer).expect("a commit");
            }
        }
    });
    world.check_all(((size.threads - 1) * size.commits) as u64);
}

/// An applier, and what stops it once it is woken.
fn start_applier(world: &Arc<World>) -> (Arc<AtomicBool>, JoinHandle<()>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (applied, stopped) = (Arc::clone(world), Arc::clone(&stop));
    let applier = spawn(move || applied.committer.run_applier(&|| stopped.load(Ordering::Acquire)));
    world.committer.set_applier(applier.thread().clone());
    (stop, applier)
}

/// Commits that wait are found by readers, and applied once and in order by whoever is first: the
/// applier, a reader, or who commits.
fn deferred(size: Size) {
    let world = World::deferring(size.limits());
    let (stop, applying) = start_applier(&world);
    let writers = size.threads - 2;
    together(Size { threads: writers + 1, ..size }, &world, move |world, number| {
        if number == 0 {
            world.read();
        } else {
            for _ in 0..=size.commits {
                world.commit_to(&[0, 1], Buffer).expect("a commit");
            }
        }
    });
    stop.store(true, Ordering::Release);
    world.committer.wake_applier();
    applying.join().expect("an applier that ends");
    world.check_all((writers * (size.commits + 1)) as u64);
}

/// What runs between two groups finds everything applied, however much waited.
fn deferred_seal(size: Size) {
    let world = World::deferring(size.limits());
    together(size, &world, move |world, number| match number {
        0 => {
            let inner = Arc::clone(world);
            let sealed = world.committer.between(move |turn| {
                inner.check_between(turn);
                Ok(())
            });
            sealed.expect("a seal");
        }
        1 => {
            world.committer.pause(|turn| Ok(turn.seqno())).expect("a pause");
            world.read();
        }
        _ => {
            for _ in 0..size.commits {
                world.commit(Buffer).expect("a commit");
            }
        }
    });
    world.check_all(((size.threads - 2) * size.commits) as u64);
}

/// Applying the second commit panics, wherever that is done: it is never visible, and from there on
/// nothing is accepted and nothing is read.
fn deferred_panic(size: Size) {
    let world = World::deferring(size.limits());
    world.partitions[1].panic_at(2);
    together(size, &world, move |world, number| {
        let attempt = || match number {
            0 => world.committer.catch_up(),
            _ => world.commit(Buffer).map(|_| ()),
        };
        for _ in 0..=size.commits {
            if let Ok(Err(error)) = catch_unwind(AssertUnwindSafe(attempt)) {
                assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
            }
        }
    });
    // The last chance to meet it.
    let _ = catch_unwind(AssertUnwindSafe(|| world.committer.catch_up()));
    assert!(world.views.visible() <= 1, "what panicked is visible");
    for outcome in [world.committer.check_applied(), world.commit(Buffer).map(|_| ())] {
        assert_eq!(outcome.map_err(|error| error.kind()), Err(ErrorKind::Poisoned));
    }
}

/// As `close`, while commits wait and the applier is at work.
fn deferred_close(size: Size) {
    let world = World::deferring(size.limits());
    let (stop, applying) = start_applier(&world);
    let writing = {
        let world = Arc::clone(&world);
        spawn(move || {
            for _ in 0..=size.commits {
                if let Err(error) = world.commit(Buffer) {
                    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
                }
            }
        })
    };
    stop.store(true, Ordering::Release);
    world.committer.close();
    world.committer.wake_applier();
    applying.join().expect("an applier that ends");
    let inner = Arc::clone(&world);
    let last = world.committer.between(move |turn| {
        inner.check_between(turn);
        Ok(turn.seqno())
    });
    world.journal.finish().expect("an end of the journal");
    assert_eq!(world.journal.position().last_seqno, last.expect("a last commit"));
    writing.join().expect("a writer that ends");
    world.check_all(world.succeeded().len() as u64);
}

/// Two threads that freeze use up each other's prepared segment.
fn two_freezes(size: Size) {
    let world = World::new(size.limits(), None);
    together(size, &world, move |world, number| {
        if number < 2 {
            let frozen = world.freeze().expect("a freeze");
            world.check_frozen(&frozen);
        } else {
            for _ in 0..size.commits {
                world.commit(Buffer).expect("a commit");
            }
        }
    });
    world.check_all(((size.threads - 2) * size.commits) as u64);
}

/// One partition is dropped while batches to both are under way: each is before the drop and whole,
/// or refused and nowhere.
fn drop_partition(size: Size) {
    let world = World::new(size.limits(), None);
    together(size, &world, move |world, number| {
        if number == 0 {
            let inner = Arc::clone(world);
            let seqno = world.committer.between(move |turn| {
                let upto = turn.seqno();
                let whole = inner.partitions[1].versions().len() as u64;
                assert_eq!((inner.views.visible(), whole), (upto, upto), "between groups");
                let seqno = turn.log(b"drop", 1)?;
                inner.partitions[0].mark_dropped();
                Ok(seqno)
            });
            let seqno = seqno.expect("a drop");
            assert!(world.views.visible() >= seqno, "the drop is answered, not visible");
        } else {
            for _ in 0..size.commits {
                match world.commit(Buffer) {
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), ErrorKind::FixInput, "{error}"),
                }
            }
            world.commit_to(&[1], Buffer).expect("a commit to the other partition");
        }
    });
    let written = files::written();
    assert_eq!(written, (1..=written.len() as u64).collect::<Vec<_>>(), "no gaps");
    let [dropped, other] = [0, 1].map(|at| world.partitions[at].versions());
    assert!(dropped.iter().all(|version| other.contains(version)), "half of a batch");
    assert_eq!(other.len(), world.succeeded().len(), "applied is what was answered");
    assert_eq!(written.len(), other.len() + 1, "those and the drop are in the journal");
}

/// A group is as durable as its strictest member, and each is answered behind its own sync.
fn durable_and_buffered(size: Size) {
    let world = World::new(Limits { extra_groups: 0, ..size.limits() }, None);
    together(size, &world, move |world, number| {
        for _ in 0..size.commits {
            let durability = if number % 2 == 0 { SyncData } else { Buffer };
            world.commit(durability).expect("a commit");
        }
    });
    world.check_all((size.threads * size.commits) as u64);
}

/// The first sync fails. Nobody is told anything else than its cause from there on, nothing more
/// becomes visible, and what was answered as durable is.
fn failed_sync(size: Size) {
    let world = World::new(size.limits(), Some(Fault::Sync));
    together(size, &world, move |world, number| match number {
        0 => world.check_refusal(&world.journal.sync(SyncData).err().unwrap_or_else(|| {
            // Nothing was there to sync, or the fault hit another thread's: the next one tells.
            world.commit(SyncData).expect_err("a sync fails")
        })),
        number => {
            let durability = if number % 2 == 0 { Buffer } else { SyncData };
            for _ in 0..size.commits {
                if world.commit(durability).is_err() {
                    world.commit(Buffer).expect_err("refused from here on");
                }
            }
        }
    });
    let visible = world.views.visible();
    let error = world.committer.between(|turn| Ok(turn.seqno())).expect_err("refused");
    world.check_refusal(&error);
    let succeeded = world.succeeded();
    assert_eq!(succeeded.len() as u64, visible, "visible is what was answered: {succeeded:?}");
    assert_eq!(world.views.visible(), visible);
    assert_eq!(world.journal.sync(SyncData).map_err(|e| e.kind()), Err(ErrorKind::Poisoned));
}

/// One write finds no space: its group is refused and leaves no trace, the others go on.
fn no_space(size: Size) {
    let world = World::new(size.limits(), Some(Fault::Space));
    let refused = Arc::new(std::sync::Mutex::new(0));
    let count = Arc::clone(&refused);
    together(size, &world, move |world, _| {
        for _ in 0..size.commits {
            if let Err(error) = world.commit(SyncData) {
                assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
                *count.lock().unwrap() += 1;
            }
        }
        world.commit(Buffer).map_or_else(|_| *count.lock().unwrap() += 1, |_| {});
    });
    let refused = *refused.lock().unwrap();
    assert!(refused > 0, "somebody is told");
    world.check_all((size.threads * (size.commits + 1) - refused) as u64);
}

/// A leader panics when it applies the second commit: only its own thread sees the panic, everybody
/// else is answered.
fn panic(size: Size) {
    let world = World::new(size.limits(), None);
    world.partitions[1].panic_at(2);
    let panics = Arc::new(std::sync::Mutex::new(0));
    let count = Arc::clone(&panics);
    together(size, &world, move |world, _| {
        for _ in 0..size.commits {
            match catch_unwind(AssertUnwindSafe(|| world.commit(Buffer))) {
                Ok(Ok(seqno)) => assert_eq!(seqno, 1, "nothing behind the panic succeeds"),
                Ok(Err(error)) => assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}"),
                Err(_) => *count.lock().unwrap() += 1,
            }
        }
    });
    assert_eq!(*panics.lock().unwrap(), 1, "threads that panicked");
    let visible = world.views.visible();
    let error = world.committer.between(|turn| Ok(turn.seqno())).expect_err("refused");
    world.check_refusal(&error);
    assert_eq!((world.views.visible(), visible <= 1), (visible, true));
}

/// As `Shared::close`: no batch is accepted from some moment on; those before it are in the journal
/// that is then ended for good.
fn close(size: Size) {
    let world = World::new(size.limits(), None);
    together(size, &world, move |world, number| {
        if number == 0 {
            world.committer.close();
            let inner = Arc::clone(world);
            let last = world.committer.between(move |turn| {
                inner.check_between(turn);
                Ok(turn.seqno())
            });
            world.journal.finish().expect("an end of the journal");
            assert_eq!(world.journal.position().last_seqno, last.expect("a last commit"));
        } else {
            for _ in 0..size.commits {
                if let Err(error) = world.commit(Buffer) {
                    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
                }
            }
        }
    });
    let count = world.succeeded().len() as u64;
    world.check_all(count);
    assert_eq!(files::durable(), count);
    assert!(files::segments().iter().all(|segment| segment.sealed));
}

/// Snapshots are taken and let go beside a writer and a merge: what a snapshot sees stays.
fn snapshot(size: Size) {
    let world = World::new(size.limits(), None);
    together(size, &world, move |world, number| match number {
        0 => {
            let newest = world.committer.between(|turn| Ok(turn.seqno())).expect("a seal");
            let threshold = world.views.merge_threshold(newest);
            world.partitions[0].merge(newest, threshold);
        }
        1 => {
            for _ in 0..=size.commits {
                world.commit_to(&[0], Buffer).expect("a commit");
            }
        }
        _ => {
            let view = world.views.open();
            let seqno = view.read_seqno() - 1;
            let expected = (seqno > 0).then_some((seqno, 7));
            for _ in 0..2 {
                let found = world.partitions[0].read(view.read_seqno());
                assert_eq!(found, expected, "a snapshot at {seqno}");
            }
        }
    });
    assert_eq!(world.views.count(), 0, "no snapshot is left behind");
}

/// A segment is swapped out and sealed while it is written and synced.
fn swap_and_persist(size: Size) {
    let world = World::new(size.limits(), None);
    together(size, &world, move |world, number| match number {
        0 => {
            world.prepare_segment().expect("a segment");
            let swapped = world.committer.between(|turn| Ok(turn.journal().swap()));
            assert!(swapped.expect("a swap"), "the prepared segment is there");
            world.journal.seal_retired().expect("a seal");
        }
        1 => {
            let before = world.succeeded();
            world.journal.sync(SyncData).expect("a sync");
            let durable = files::durable();
            assert!(before.iter().all(|s| *s <= durable), "persisted {before:?}, not {durable}");
        }
        _ => {
            for _ in 0..size.commits {
                world.commit(SyncData).expect("a commit");
            }
        }
    });
    world.check_all(((size.threads - 2) * size.commits) as u64);
}

/// Transactions that read a key and count it up, beside somebody who reads: none is lost.
fn optimistic(size: Size) {
    count_in_transactions(size, false);
}

/// The same where commits may be answered before they are visible.
fn optimistic_deferred(size: Size) {
    count_in_transactions(size, true);
}

fn count_in_transactions(size: Size, deferring: bool) {
    let world = World::optimistic(Limits { extra_groups: 0, ..size.limits() }, deferring);
    together(size, &world, move |world, number| {
        for _ in 0..size.commits {
            if number == 0 {
                world.read_count();
            } else {
                world.count_up();
            }
        }
    });
    let count = ((size.threads - 1) * size.commits) as u64;
    world.check_all(count);
    let counted = (1..=count).map(|seqno| (seqno, seqno)).collect::<Vec<_>>();
    for partition in &world.partitions {
        assert_eq!(partition.versions(), counted, "a lost update");
    }
    assert_eq!(world.views.count(), 0, "no transaction is left behind");
}
