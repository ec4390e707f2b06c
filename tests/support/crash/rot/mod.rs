//! The layer `rot`: what rotten, misplaced, old and missing files do to keyspaces, checkpoints and
//! copies.
//!
//! A round builds one image with the real engine and judges cases of it: a damage drawn from the
//! seed (`damage.rs`), and what must follow from it (`demand.rs`). `verify` must report and locate it
//! or it must be harmless; every open, read, copy and backup (`judge.rs`) must be right or fail with
//! an error that names the damage. Rounds run in child processes with little memory (`worker.rs`):
//! one that dies or hangs is a failure of the case that it was at, and the next goes on behind it.
//!
//! The same seed builds the same images but for ids, times and what background threads do, so an
//! offset may then hit a neighbouring byte. `ESKER_ROT` repeats one case. `ESKER_KEEP` names a
//! directory that gets a copy of every directory that fails.

mod author;
pub mod damage;
pub mod demand;
pub mod image;
pub mod judge;
pub mod worker;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use author::{KINDS, Shape, build};

use super::judge::panic_text;
use super::{Options, Outcome};
use crate::chaos::{self, Rng};
use worker::Line;

/// A case takes milliseconds; longer is a hang.
const PATIENCE: Duration = Duration::from_secs(60);
const THREADS: usize = 2;
/// After so many failures the rest says nothing new.
const FAILURES_MAX: usize = 50;
/// How often those who wait are told.
const TELL: Duration = Duration::from_secs(10);

/// Which damages an image suffers.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Drawn from the seed.
    Random,
    /// One bit of every byte.
    Flips,
    /// Every file cut, exchanged, removed, as it was once.
    Files,
    /// A child that takes too much memory, and one that hangs.
    Canary,
}

const PLANS: [(Plan, &str); 4] = [
    (Plan::Random, "random"),
    (Plan::Flips, "flips"),
    (Plan::Files, "files"),
    (Plan::Canary, "canary"),
];

/// Cases of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    pub plan: Plan,
    pub image: String,
    pub seed: u64,
    /// The numbers of the first and the last case.
    pub from: u64,
    pub to: u64,
}

impl Round {
    /// As arguments of a child.
    fn words(&self) -> Vec<String> {
        let name = PLANS.iter().find(|(plan, _)| *plan == self.plan).map_or("", |(_, name)| name);
        let numbers = [self.seed, self.from, self.to].map(|number| number.to_string());
        [name.to_owned(), self.image.clone()].into_iter().chain(numbers).collect()
    }

    fn parse(words: &[String]) -> Option<Self> {
        let [plan, image, seed, from, to] = words else { return None };
        let plan = PLANS.iter().find(|(_, name)| name == plan)?.0;
        let image = KINDS.iter().find(|kind| *kind == image)?;
        let [seed, from, to] = [seed, from, to].map(|word| word.parse::<u64>().ok());
        let (image, seed) = ((*image).to_owned(), seed?);
        Some(Self { plan, image, seed, from: from?.max(1), to: to? })
    }

    /// The seed of one case.
    fn seed_of(&self, number: u64) -> u64 {
        Rng::new(self.seed ^ number.rotate_left(40)).bits()
    }

    fn repeat(&self, number: u64) -> String {
        let only = Self { from: number, to: number, ..self.clone() };
        format!(
            "ESKER_ROT='{}' cargo run --release -p esker-tests --bin crash -- rot",
            only.words().join(" ")
        )
    }
}

/// The layer: so many cases of all images in turn.
pub fn run(options: &Options) -> Outcome {
    let given = std::env::var("ESKER_ROT").ok();
    if let Some(words) = given {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let round = Round::parse(&words).expect("ESKER_ROT is what a failure printed");
        return Campaign::new(PATIENCE).run(vec![round]);
    }
    let kinds = KINDS.len() as u64;
    // An image costs as much as some ten cases.
    let quota = options.states.div_ceil(kinds).clamp(1, 400);
    let rounds = (0..options.states.div_ceil(quota)).map(|number| Round {
        plan: Plan::Random,
        image: KINDS[(number % kinds) as usize].to_owned(),
        seed: Rng::new(options.seed ^ (number << 32)).bits(),
        from: 1,
        to: quota.min(options.states - number * quota),
    });
    Campaign::new(PATIENCE).run(rounds.collect())
}

/// Every damage of a list, to the smallest image of each kind that has all kinds of files.
pub fn sweep(plan: Plan) -> Outcome {
    let rounds = KINDS[..3].iter().map(|kind| Round {
        plan,
        image: (*kind).to_owned(),
        seed: 7,
        from: 1,
        to: u64::MAX,
    });
    Campaign::new(PATIENCE).run(rounds.collect())
}

/// What shows that the parent sees a child that takes too much memory and one that hangs: two
/// failures, and one case passed.
pub fn canary() -> Outcome {
    let round = Round { plan: Plan::Canary, image: KINDS[0].to_owned(), seed: 1, from: 1, to: 3 };
    Campaign::new(Duration::from_secs(10)).run(vec![round])
}

/// Rounds under way.
struct Campaign {
    patience: Duration,
    began: Instant,
    found: Mutex<Found>,
}

struct Found {
    /// So many cases by damage and outcome.
    passed: BTreeMap<(String, String), u64>,
    failures: Vec<String>,
    caught: u64,
    told: Instant,
}

impl Found {
    fn judged(&self) -> u64 {
        self.passed.values().sum::<u64>() + self.failures.len() as u64
    }
}

/// How the cases of one child ended.
enum Ended {
    All,
    /// At this case; the sentence says how.
    At(u64, String),
}

impl Campaign {
    fn new(patience: Duration) -> Self {
        let began = Instant::now();
        let found = Found { passed: BTreeMap::new(), failures: Vec::new(), caught: 0, told: began };
        Self { patience, began, found: Mutex::new(found) }
    }

    fn run(self, rounds: Vec<Round>) -> Outcome {
        let next = Mutex::new(rounds.into_iter());
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    loop {
                        let round = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some(round) = round else { return };
                        let ran = std::panic::catch_unwind(|| self.finish(round.clone()));
                        if let Err(panic) = ran {
                            self.fail(&round, 1, &panic_text(&*panic));
                        }
                    }
                });
            }
        });
        let seconds = self.began.elapsed().as_secs_f64();
        let found = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        for ((kind, outcome), count) in &found.passed {
            eprintln!("rot: {kind:12} {outcome:12} {count}");
        }
        let (judged, caught) = (found.judged(), found.caught);
        let rate = judged as f64 / seconds;
        eprintln!("rot: {judged} cases in {seconds:.0} s, {rate:.0} a second");
        eprintln!("rot: {caught} panics of lsm-tree became errors");
        Outcome::Ran { passed: found.passed.values().sum(), failures: found.failures }
    }

    /// All cases of the round, in as many children as it takes.
    fn finish(&self, mut round: Round) {
        while round.from <= round.to && self.found().failures.len() < FAILURES_MAX {
            match self.child(&round) {
                Ended::All => return,
                Ended::At(number, how) => {
                    self.fail(&round, number, &how);
                    // Before the first case nothing was built: nor would it be the next time.
                    if number < round.from {
                        return;
                    }
                    round.from = number + 1;
                }
            }
        }
    }

    fn child(&self, round: &Round) -> Ended {
        let mut command = super::worker::program();
        command.arg(worker::COMMAND).args(round.words()).stdin(Stdio::null());
        // The private views of read-only opens and the cases go where they cost nothing.
        let scratch = chaos::memory_dir();
        command.env("TMPDIR", scratch.path());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Ended::At(round.from - 1, format!("no child: {error}")),
        };
        let errors = child.stderr.take();
        let errors = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What cannot be read is not shown; the status still tells.
            let _ = errors.map(|mut errors| errors.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let (at, ended) = self.listen(round, &mut child);
        // A child that said its last line, or was told to end, is gone in a moment.
        let status = child.wait();
        let text = errors.join().unwrap_or_default();
        let cause = text.lines().rev().find(|line| !line.is_empty()).unwrap_or_default();
        match ended {
            Some(how) => Ended::At(at.0, format!("{}: {how}", at.1)),
            None if status.as_ref().is_ok_and(ExitStatus::success) => Ended::All,
            None => Ended::At(at.0, format!("{}: the process died: {status:?}: {cause}", at.1)),
        }
    }

    /// Hears the child out. The case that it was at last, and why it was not left to end by itself.
    fn listen(&self, round: &Round, child: &mut Child) -> ((u64, String), Option<String>) {
        let (lines, heard) = mpsc::channel();
        let out = child.stdout.take();
        std::thread::spawn(move || {
            let lines_of = |out| BufReader::new(out).lines().map_while(Result::ok);
            let mut all = out.into_iter().flat_map(lines_of);
            // Nobody listens any more when the child was given up.
            while all.next().is_some_and(|line| lines.send(line).is_ok()) {}
        });
        let mut at = (round.from - 1, String::from("the image"));
        loop {
            match heard.recv_timeout(self.patience) {
                Ok(line) => match Line::parse(&line) {
                    Some(Line::At { number, what }) => at = (number, what),
                    Some(line) => self.note(round, at.0, line),
                    None => self.fail(round, at.0, &format!("a child said {line:?}")),
                },
                Err(RecvTimeoutError::Disconnected) => return (at, None),
                Err(RecvTimeoutError::Timeout) => {
                    // It may have ended this moment.
                    let _ = child.kill();
                    return (at, Some(format!("no end within {:?}", self.patience)));
                }
            }
        }
    }

    fn note(&self, round: &Round, number: u64, line: Line) {
        match line {
            Line::Passed { kind, outcome } => {
                let mut found = self.found();
                *found.passed.entry((kind, outcome)).or_default() += 1;
                if found.told.elapsed() > TELL {
                    found.told = Instant::now();
                    let (judged, failed) = (found.judged(), found.failures.len());
                    let rate = judged as f64 / self.began.elapsed().as_secs_f64();
                    eprintln!("rot: {judged} cases, {rate:.0} a second, {failed} failed");
                }
            }
            Line::Failed { sentence } => self.fail(round, number, &sentence),
            Line::End { caught } => self.found().caught += caught,
            Line::At { .. } => {}
        }
    }

    fn fail(&self, round: &Round, number: u64, sentence: &str) {
        let (image, again) = (&round.image, round.repeat(number.max(1)));
        let failure = format!("{image}: {sentence}; repeat with: {again}");
        eprintln!("rot: {failure}");
        self.found().failures.push(failure);
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
