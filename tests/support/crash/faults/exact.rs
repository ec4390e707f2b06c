//! Every operation of a program's filesystem made to fail, one at a time, exactly where it is wanted.
//!
//! The real engine runs on a filesystem in memory (`recorder/filesystem.rs`) that counts the operations
//! of all threads together, also those of lsm-tree, and lets one of them fail, or all from there on, or
//! do half of its work (`recorder/injector.rs`). A first run counts; the states are every failure at
//! every operation that can fail so. In each the program must hear errors of the right kind and no wrong
//! data, and go on once the disk is well; and the record is judged as the recorder judges it: the power
//! is cut at some of its places, where what a failed sync lost is gone.
//!
//! Threads decide which operation has a number, so a state that is run again may hit a neighbouring one.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use super::program::{self, Program, Ran};
use super::{Explored, verdict};
use crate::chaos::{self, Rng};
use crate::crash::Options;
use crate::crash::judge::panic_text;
use crate::crash::recorder::disk::Disk;
use crate::crash::recorder::filesystem::Mount;
use crate::crash::recorder::history::{Ack, History, Recording};
use crate::crash::recorder::image::{Image, Op, ROOT};
use crate::crash::recorder::injector::{FAILURES, Failure, Fault, Hit, Kind, failure};
use crate::crash::recorder::judge::{Copies, State, judge};
use crate::crash::recorder::workload::KEYSPACE;

/// Longer is a hang.
const LIMIT: Duration = Duration::from_secs(60);
/// More than processors: a state waits for threads to end and for jobs that are tried again later.
const THREADS: usize = 4;
/// After so many failures the rest says nothing new.
const FAILURES_MAX: usize = 30;
/// How often the time is told.
const TELL: Duration = Duration::from_secs(30);

/// What runs, from what.
#[derive(Debug)]
pub(super) struct Ground {
    name: &'static str,
    run: fn(Program) -> program::Verdict<Ran>,
    pub(super) base: Image,
    history: History,
    seed: u64,
    /// Its operations when nothing fails.
    kinds: Vec<Kind>,
}

/// One state.
#[derive(Copy, Clone, Debug)]
pub(super) struct Case<'a> {
    pub(super) ground: &'a Ground,
    pub(super) fault: Fault,
}

impl Case<'_> {
    fn name(&self) -> String {
        let Fault { failure, index, lasting } = self.fault;
        let span = if lasting { "lasting" } else { "once" };
        format!("{}:{}:{index}:{span}", self.ground.name, failure.name)
    }
}

/// Which states, out of all.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice<'a> {
    /// So many, drawn from those of these failures (by name, with commas) or of all.
    Drawn(&'a str, u64),
    /// Every one of these failures, or of all.
    Every(&'a str),
    /// The one of this name.
    One(&'a str),
}

/// Explores states. `silent` plants the mistake that the canary is about: a filesystem that does not
/// tell of failed syncs.
pub(super) fn explore(options: &Options, choice: Choice<'_>, silent: bool) -> Explored {
    let grounds = match grounds(options.seed) {
        Ok(grounds) => grounds,
        Err(sentence) => return Explored { failures: vec![sentence], ..Explored::default() },
    };
    let cases = cases(&grounds, options.seed, choice);
    let (next, explored) = (Mutex::new(cases.into_iter()), Mutex::new(Explored::default()));
    let (began, told) = (Instant::now(), Mutex::new(Instant::now()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let case = locked(&next).next();
                    let Some(case) = case else { return };
                    let outcome = state(case, silent);
                    let mut explored = locked(&explored);
                    match outcome {
                        Ok(reached) => {
                            explored.passed += 1;
                            explored.reached += u64::from(reached);
                        }
                        Err(text) => explored.failures.push(sentence(&case, options, &text)),
                    }
                    if explored.failures.len() >= FAILURES_MAX {
                        return;
                    }
                    let mut told = locked(&told);
                    if told.elapsed() > TELL {
                        *told = Instant::now();
                        explored.tell(began);
                    }
                }
            });
        }
    });
    let explored = explored.into_inner().unwrap_or_else(PoisonError::into_inner);
    explored.tell(began);
    explored
}

impl Explored {
    fn tell(&self, began: Instant) {
        let seconds = began.elapsed().as_secs_f64();
        let (judged, failed) = (self.passed + self.failures.len() as u64, self.failures.len());
        let rate = judged as f64 / seconds;
        eprintln!(
            "faults: {judged} exact states in {seconds:.1} s, {rate:.0} a second, {} of them hit, \
             {failed} failed",
            self.reached
        );
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sentence(case: &Case<'_>, options: &Options, text: &str) -> String {
    let sentence = format!(
        "{text}; repeat with: ESKER_FAULT={} cargo run --release -p esker-tests --bin crash -- \
         faults --states 1 --seed {}",
        case.name(),
        options.seed
    );
    eprintln!("faults: {sentence}");
    sentence
}

/// The two programs, with their operations counted: one begins with nothing, one with what the first
/// leaves when it is killed in the middle.
fn grounds(seed: u64) -> Result<Vec<Ground>, String> {
    let (nothing, kinds) = (Image::default(), Vec::new());
    let history = History::default();
    let mut live = Ground { name: "live", run: Program::live, base: nothing, history, seed, kinds };
    let recording = count(&mut live)?;
    let (base, history) = killed(&recording, seed)?;
    let kinds = Vec::new();
    let mut recover = Ground { name: "recover", run: Program::recover, base, history, seed, kinds };
    count(&mut recover)?;
    eprintln!(
        "faults: operations: {} of the program {}, {} of the program {}",
        live.kinds.len(),
        live.name,
        recover.kinds.len(),
        recover.name
    );
    Ok(vec![live, recover])
}

/// Runs without faults.
fn count(ground: &mut Ground) -> Result<std::sync::Arc<Recording>, String> {
    let finished = run(ground, None, false)?;
    ground.kinds = finished.kinds;
    let ran = finished.ran.map_err(|text| format!("without faults: {text}"))?;
    Ok(Recording::new(ground.base.clone(), finished.ops, ran.history))
}

/// What the program leaves when it is killed after three quarters of its commits.
fn killed(recording: &Recording, seed: u64) -> Result<(Image, History), String> {
    let commits: Vec<_> =
        recording.acks.iter().filter(|(_, ack)| matches!(ack, Ack::Commit { .. })).collect();
    let index = commits.get(commits.len() * 3 / 4).map_or(0, |(at, _)| *at) + 1;
    let mut disk = Disk::new(&recording.base, None);
    recording.ops[..index].iter().for_each(|op| disk.advance(op));
    let image = disk.ordered();
    let directory = chaos::memory_dir();
    let copies = Copies::default();
    let state = State { recording, index, image: image.clone(), copies: &copies, seed };
    let found = judge(&state, directory.path())?;
    let base = image.only(image.lookup(ROOT, KEYSPACE), KEYSPACE);
    let history = History {
        base: found.content,
        base_seqno: found.seqno,
        existed: true,
        ..History::default()
    };
    Ok((base, history))
}

fn cases<'a>(grounds: &'a [Ground], seed: u64, choice: Choice<'_>) -> Vec<Case<'a>> {
    let wanted = |failure: &Failure| match choice {
        Choice::Every(names) | Choice::Drawn(names, _) => {
            names == "all" || names.split(',').any(|name| name == failure.name)
        }
        Choice::One(_) => true,
    };
    let mut all = Vec::new();
    for ground in grounds {
        for failure in FAILURES.iter().filter(|failure| wanted(failure)) {
            for lasting in [false, true] {
                if lasting && !failure.lasts {
                    continue;
                }
                let numbered = ground.kinds.iter().zip(1..);
                let possible = numbered.filter(|(kind, _)| failure.kinds.contains(kind));
                all.extend(
                    possible.map(|(_, index)| Case {
                        ground,
                        fault: Fault { failure, index, lasting },
                    }),
                );
            }
        }
    }
    eprintln!("faults: {} exact states exist", all.len());
    match choice {
        Choice::Every(_) => {}
        Choice::One(name) => return one(grounds, name).into_iter().collect(),
        Choice::Drawn(_, states) => {
            let mut rng = Rng::new(seed);
            for at in (1..all.len()).rev() {
                all.swap(at, rng.below(at as u64 + 1) as usize);
            }
            all.truncate(states as usize);
        }
    }
    all
}

/// The opposite of [`Case::name`].
fn one<'a>(grounds: &'a [Ground], name: &str) -> Option<Case<'a>> {
    let words: Vec<_> = name.split(':').collect();
    let [ground, how, index, span] = words[..] else { return None };
    let ground = grounds.iter().find(|found| found.name == ground)?;
    let fault =
        Fault { failure: failure(how)?, index: index.parse().ok()?, lasting: span == "lasting" };
    Some(Case { ground, fault })
}

/// Whether a name is one of [`Case::name`].
pub(super) fn is_exact(name: &str) -> bool {
    name.split(':').count() == 4 && name.split(':').nth(1).is_some_and(|how| failure(how).is_some())
}

/// What a run left.
pub(super) struct Finished {
    pub(super) ran: Result<Ran, String>,
    pub(super) ops: Vec<Op>,
    kinds: Vec<Kind>,
    pub(super) hits: Vec<Hit>,
}

/// Runs a program in a thread of its own, never longer than the limit.
fn run(ground: &Ground, fault: Option<Fault>, silent: bool) -> Result<Finished, String> {
    let mount = Mount::with_faults(ground.base.clone(), fault, silent);
    let mount = mount.map_err(|e| format!("the filesystem: {e}"))?;
    let (desk, root) = (mount.desk(), mount.path().to_path_buf());
    let program = Program::new(&root, desk.clone(), fault, ground.history.clone(), ground.seed);
    let run = ground.run;
    let (done, finished) = mpsc::channel();
    // Not scoped: a state that hangs must not keep the others from being reported.
    std::thread::spawn(move || {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(program)));
        let ran = ran.unwrap_or_else(|panic| Err(format!("a panic: {}", panic_text(&*panic))));
        // Nobody listens any more once patience is at its end.
        let _ = done.send(ran);
    });
    let ran = match finished.recv_timeout(LIMIT) {
        Ok(ran) => ran,
        Err(RecvTimeoutError::Timeout) => Err("it hangs".to_owned()),
        Err(RecvTimeoutError::Disconnected) => Err("its thread is gone".to_owned()),
    };
    Ok(Finished { ran, kinds: desk.kinds(), hits: desk.hits(), ops: mount.finish() })
}

/// Whether an operation was made to fail; or what is wrong.
fn state(case: Case<'_>, silent: bool) -> Result<bool, String> {
    let finished = run(case.ground, Some(case.fault), silent)?;
    let hit = finished.hits.first().cloned();
    let judged = verdict::judge(&case, finished);
    judged.map(|()| hit.is_some()).map_err(|text| {
        let hit = hit.map(|hit| format!("{:?} {} of {}", hit.kind, hit.number, hit.path));
        format!("{text} [{}, first hit: {}]", case.name(), hit.unwrap_or_default())
    })
}

/// The seed of what is drawn for one state: it does not depend on the others.
pub(super) fn luck(case: &Case<'_>) -> u64 {
    case.ground.seed ^ xxh3_64(case.name().as_bytes())
}
