//! The layers `recorder` and `subset`: the real engine runs on a recording filesystem, and states that
//! a crash may have left at any operation of the record are made real and judged.
//!
//! `recorder` is the ordered prefix: everything before an operation happened, nothing after it.
//! `subset` keeps what was synced before it and a seeded part of the rest (`disk.rs`).
//!
//! The rounds go through the workloads and recovery in turn; a round draws everything from the seed
//! and its number. The same seed explores the same states as far as threads allow: records of one
//! seed differ where threads of the run or the engine's own run in another order, and in the ids and
//! times that the engine writes down, so an index may then name a neighbouring operation.
//!
//! `ESKER_STRICT_BLOBS` takes the one exception away from the rules of `subset`.
//! `ESKER_KEEP` names a directory that gets a copy of every state that fails.

pub mod disk;
pub mod filesystem;
pub mod history;
pub mod image;
pub mod injector;
pub mod judge;
mod live;
pub mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::{Options, Outcome};
use crate::chaos::{self, Rng};
use disk::{Disk, Luck, Mistake};
use filesystem::Mount;
use history::{History, Recording};
use image::{Image, ROOT};
use judge::{Copies, Found, State, judge};
use workload::{KEYSPACE, RECOVERY, Run, WORKLOADS, Workload};

/// Nothing takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// So deep are crashes in recoveries from crashes in recoveries.
const DEPTH: u64 = 3;
/// After so many failures the rest says nothing new.
const FAILURES_MAX: usize = 20;

/// Which states a crash at an operation can leave.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Model {
    Ordered,
    Subset,
}

impl Model {
    fn name(self) -> &'static str {
        match self {
            Self::Ordered => "recorder",
            Self::Subset => "subset",
        }
    }

    fn image(self, disk: &Disk, seed: u64) -> Image {
        match self {
            Self::Ordered => disk.ordered(),
            Self::Subset => {
                let mut rng = Rng::new(seed);
                let luck = Luck::any(&mut rng);
                disk.survivor(&luck, &mut rng)
            }
        }
    }
}

/// The layer `recorder`.
pub fn recorder(options: &Options) -> Outcome {
    run(Model::Ordered, options, None)
}

/// The layer `subset`.
pub fn subset(options: &Options) -> Outcome {
    let strict = std::env::var_os("ESKER_STRICT_BLOBS").is_some();
    run(Model::Subset, options, strict.then_some(Mistake::StrictBlobs))
}

/// One of the layers, with a deliberate mistake in its rules or without.
pub fn run(model: Model, options: &Options, mistake: Option<Mistake>) -> Outcome {
    if let Some(missing) = filesystem::missing() {
        return Outcome::Skipped { missing };
    }
    let began = Instant::now();
    let mut explorer = Explorer { model, mistake, options: *options, passed: 0, failures: vec![] };
    // Every other round is one of recovery: few operations, and all of them matter.
    let rounds = 2 * WORKLOADS.len();
    let quota = (options.states / rounds as u64).clamp(12, 3000);
    for round in 0.. {
        if explorer.judged() >= options.states || explorer.failures.len() >= FAILURES_MAX {
            break;
        }
        let quota = quota.min(options.states - explorer.judged());
        let seed = Rng::new(options.seed ^ ((round as u64) << 32)).bits();
        let before = explorer.judged();
        match round % rounds {
            at if at % 2 == 0 => explorer.round(&WORKLOADS[at / 2], seed, quota),
            _ => explorer.recovery_round(seed, quota),
        }
        if explorer.judged() == before {
            // It would not do better the next time, and the states would never be reached.
            explorer.fail("of any kind", seed, &format!("round {round} judged nothing"));
        }
        explorer.tell(began);
    }
    Outcome::Ran { passed: explorer.passed, failures: explorer.failures }
}

/// A place in a record at which a crash is tried, and the seed of its luck.
type Case = (usize, u64);

struct Explorer {
    model: Model,
    mistake: Option<Mistake>,
    options: Options,
    passed: u64,
    failures: Vec<String>,
}

impl Explorer {
    fn judged(&self) -> u64 {
        self.passed + self.failures.len() as u64
    }

    /// How far it is, for those who wait.
    fn tell(&self, began: Instant) {
        let (judged, failed) = (self.judged(), self.failures.len());
        let seconds = began.elapsed().as_secs_f64();
        let (layer, rate) = (self.model.name(), judged as f64 / seconds);
        eprintln!(
            "{layer}: {judged} states in {seconds:.1} s, {rate:.0} a second, {failed} failed"
        );
    }

    fn fail(&mut self, workload: &str, seed: u64, text: &str) {
        let (layer, Options { states, seed: first }) = (self.model.name(), self.options);
        let sentence = format!(
            "{text} [workload {workload} with seed {seed}, layer {layer}]; repeat with: \
             cargo run --release -p esker-tests --bin crash -- {layer} --states {states} --seed {first}"
        );
        eprintln!("{sentence}");
        self.failures.push(sentence);
    }

    /// One record and `quota` of its states.
    fn round(&mut self, workload: &'static Workload, seed: u64, quota: u64) {
        match record(workload, Image::default(), History::default(), seed) {
            Ok(recording) => self.explore(workload.name, &recording, seed, quota),
            Err(text) => self.fail(workload.name, seed, &text),
        }
    }

    /// A crash in one of the workloads, a crash in its recovery, and so on.
    fn recovery_round(&mut self, seed: u64, quota: u64) {
        let mut rng = Rng::new(seed);
        let first = &WORKLOADS[rng.below(WORKLOADS.len() as u64) as usize];
        let recorded = record(first, Image::default(), History::default(), rng.bits());
        let mut recording = match recorded {
            Ok(recording) => recording,
            Err(text) => return self.fail(first.name, seed, &text),
        };
        for depth in 1..=DEPTH {
            let case = (rng.below(recording.ops.len() as u64 + 1) as usize, rng.bits());
            let name = format!("{} and then recovery {depth} deep", first.name);
            let Some((image, found)) = self.crash(&name, &recording, seed, case) else { return };
            let begin = begin(&image, found, &recording, case.0, &mut rng);
            let Some((image, history)) = begin else { return };
            match record(&RECOVERY, image, history, rng.bits()) {
                Ok(next) => recording = next,
                Err(text) => return self.fail(&name, seed, &text),
            }
            // The first gets what does not divide.
            let rest = if depth == 1 { quota % DEPTH } else { 0 };
            self.explore(&name, &recording, seed, quota / DEPTH + rest);
        }
    }

    /// One state, for its image and for what the judge found in it.
    fn crash(
        &mut self,
        name: &str,
        recording: &Arc<Recording>,
        seed: u64,
        case: Case,
    ) -> Option<(Image, Found)> {
        let mut disk = Disk::new(&recording.base, self.mistake);
        recording.ops[..case.0].iter().for_each(|op| disk.advance(op));
        let image = self.model.image(&disk, case.1);
        let bench = Bench { model: self.model, recording, copies: &Copies::default() };
        match bench.judge(image.clone(), case) {
            Ok(found) => Some((image, found)),
            Err(text) => {
                self.fail(name, seed, &text);
                None
            }
        }
    }

    /// Judges `quota` states of the record on all processors.
    fn explore(&mut self, name: &str, recording: &Arc<Recording>, seed: u64, quota: u64) {
        let cases = Arc::new(cases(recording, &mut Rng::new(seed ^ 1), quota, self.model));
        let (next, copies) = (Arc::new(AtomicUsize::new(0)), Arc::new(Copies::default()));
        let (results, judged) = mpsc::channel();
        // More than processors: a state also waits for threads to start and to end.
        let threads = 1 + std::thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..threads {
            let (recording, results) = (Arc::clone(recording), results.clone());
            let (cases, next, copies) =
                (Arc::clone(&cases), Arc::clone(&next), Arc::clone(&copies));
            let (model, mistake) = (self.model, self.mistake);
            // Not scoped: a state that hangs must not keep the others from being reported.
            std::thread::spawn(move || {
                let mut disk = Disk::new(&recording.base, mistake);
                let mut at = 0;
                let bench = Bench { model, recording: &recording, copies: &copies };
                while let Some(&case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    recording.ops[at..case.0].iter().for_each(|op| disk.advance(op));
                    at = case.0;
                    let verdict = bench.judge(model.image(&disk, case.1), case).map(drop);
                    if results.send(verdict).is_err() {
                        return;
                    }
                }
            });
        }
        drop(results);
        loop {
            match judged.recv_timeout(PATIENCE) {
                Ok(Ok(())) => self.passed += 1,
                Ok(Err(text)) => self.fail(name, seed, &text),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    return self.fail(name, seed, "no state was finished for two minutes");
                }
            }
            if self.failures.len() >= FAILURES_MAX {
                next.store(cases.len(), Ordering::Relaxed);
            }
        }
    }
}

/// Every place of the record if the quota reaches so far, in the subset model several times; else a
/// random choice. In the order of the record, so that a disk can advance from one to the next.
fn cases(recording: &Recording, rng: &mut Rng, quota: u64, model: Model) -> Vec<Case> {
    let places = recording.ops.len() as u64 + 1;
    let rounds = if model == Model::Subset { quota.div_ceil(places) } else { 1 };
    let mut cases: Vec<Case> =
        (0..rounds).flat_map(|_| 0..places).map(|place| (place as usize, rng.bits())).collect();
    while cases.len() as u64 > quota {
        let away = rng.below(cases.len() as u64) as usize;
        cases.swap_remove(away);
    }
    cases.sort_unstable();
    cases
}

/// What judging a state takes.
struct Bench<'a> {
    model: Model,
    recording: &'a Recording,
    copies: &'a Copies,
}

impl Bench<'_> {
    fn judge(&self, image: Image, (index, seed): Case) -> Result<Found, String> {
        let directory = chaos::memory_dir();
        let Self { recording, copies, model } = *self;
        let state = State { recording, index, image, copies, seed };
        judge(&state, directory.path()).map_err(|text| {
            let operations = recording.ops.len();
            let kept = keep(&state.image, model, index, seed);
            format!("{text} [before operation {index} of {operations}, luck {seed}{kept}]")
        })
    }
}

/// Keeps a state that failed for people, if they want that.
fn keep(image: &Image, model: Model, index: usize, seed: u64) -> String {
    let Some(directory) = std::env::var_os("ESKER_KEEP") else { return String::new() };
    let name = format!("{}-{index}-{seed}", model.name());
    let path = PathBuf::from(directory).join(name);
    match std::fs::create_dir_all(&path).and_then(|()| image.write_to(&path)) {
        Ok(()) => format!(", kept in {}", path.display()),
        Err(error) => format!(", not kept: {error}"),
    }
}

/// The state from which a recovery begins: the keyspace of a crash state, or one of the checkpoints
/// beside it, alone. `None` when there is nothing to recover.
fn begin(
    image: &Image,
    found: Found,
    recording: &Recording,
    index: usize,
    rng: &mut Rng,
) -> Option<(Image, History)> {
    let copies = recording.known_before(index).copies;
    if let Some((name, &seqno)) = copies.iter().next_back()
        && rng.one_in(3)
    {
        let base = recording.history.model_at(seqno);
        let image = image.only(image.lookup(ROOT, name), KEYSPACE);
        let history = History { base, base_seqno: seqno, existed: true, ..History::default() };
        return Some((image, history));
    }
    let image = image.only(image.lookup(ROOT, KEYSPACE), KEYSPACE);
    let Found { seqno, content, existed } = found;
    Some((image, History { base: content, base_seqno: seqno, existed, ..History::default() }))
}

/// Runs a workload on a recording filesystem.
fn record(
    workload: &'static Workload,
    base: Image,
    history: History,
    seed: u64,
) -> Result<Arc<Recording>, String> {
    let mount = Mount::new(base.clone()).map_err(|e| format!("the filesystem: {e}"))?;
    let history = History { threads: workload.threads, ..history };
    let root = mount.path().to_path_buf();
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        let run = Run::new(&root, history);
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (workload.run)(&run, &mut Rng::new(seed));
        }));
        let history = match ran {
            Ok(()) => run.into_history(),
            Err(_) => Err("a call failed on a filesystem without faults; see above".to_owned()),
        };
        // Nobody listens any more once patience is at its end.
        let _ = done.send(history);
    });
    let history = finished.recv_timeout(PATIENCE);
    let history = history.map_err(|_| "the run did not end within two minutes".to_owned())??;
    Ok(Recording::new(base, mount.finish(), history))
}
