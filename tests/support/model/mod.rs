//! Random operations on a keyspace, compared with ordered maps.
//!
//! Operations are values (`operation.rs`), drawn beforehand from a seed or decoded from bytes. So a
//! run can be repeated, and a failing one can be made shorter by leaving operations out. What must
//! stay true: a failure says the set of options, the seed, the step and what came before it.

mod copies;
mod lives;
mod losing;
mod machine;
mod operation;
mod oracle;
mod reads;
mod settings;
mod structure;
mod writes;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use machine::Machine;
pub use operation::KINDS;
use operation::{Bytes, Operation};
use settings::FUZZING;
pub use settings::{SETTINGS, Settings, named};

use crate::chaos::Rng;

/// Operations of one fuzzed input: enough for a few flushes, few enough for hundreds a second.
const FUZZED_OPERATIONS_MAX: usize = 48;
/// A step that takes longer hangs: the slowest take a few hundred milliseconds.
const STEP_LIMIT: Duration = Duration::from_secs(120);
/// How long a failing run is made shorter.
const MINIMISE_LIMIT: Duration = Duration::from_secs(120);
/// After so many drawn operations it is the turn of one kind.
const TURN_EVERY: u64 = 50;
/// So many of the last operations are printed.
const SHOWN: usize = 12;

/// How often each kind of operation happened, in the order of `KINDS`.
pub type Counts = Vec<u64>;

type Drawn = Vec<(usize, Operation)>;

struct Failure {
    /// The operation at which it showed; one more than there are for the look at the end.
    step: usize,
    text: String,
}

/// Plays so many operations with the set of options that the seed picks. The error says what
/// failed and how to repeat it.
pub fn run(seed: u64, operations: u64) -> Result<(), String> {
    let settings = &SETTINGS[(seed % SETTINGS.len() as u64) as usize];
    run_with(settings, seed, operations).map(|_| ())
}

/// Plays so many operations with the given set of options.
pub fn run_with(settings: &'static Settings, seed: u64, operations: u64) -> Result<Counts, String> {
    let mut rng = Rng::new(seed);
    let draw = |n: u64| match n / TURN_EVERY {
        // Rare kinds would be left out now and then.
        turn if n.is_multiple_of(TURN_EVERY) => {
            operation::draw_kind(&mut rng, turn as usize % KINDS.len())
        }
        _ => operation::draw(&mut rng),
    };
    let drawn: Arc<Drawn> = Arc::new((0..operations).map(draw).collect());
    let failure = match watched(settings, &drawn) {
        Ok(counts) => return Ok(counts),
        Err(failure) => failure,
    };
    let mut report = format!(
        "the model, {}: step {} of {operations}: {}\nthe last operations:\n",
        settings.name, failure.step, failure.text
    );
    let until = drawn.len().min(failure.step + 1);
    report += &listed(&drawn[until.saturating_sub(SHOWN)..until], until.saturating_sub(SHOWN));
    let name = settings.name;
    report += &format!(
        "repeat: ESKER_SEED={seed} cargo test -p esker-tests --test model -- --exact {name}\n"
    );
    if std::env::var_os("ESKER_MINIMISE").is_some() {
        let shorter = minimised(settings, drawn[..until].to_vec());
        report += &format!("{} operations are enough:\n", shorter.len());
        report += &listed(&shorter, 0);
    } else {
        report += "ESKER_MINIMISE=1 leaves out what does not matter\n";
    }
    Err(report)
}

/// Any bytes as operations: panics where the keyspace and the model differ.
pub fn fuzz(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut machine = Machine::new(&FUZZING);
    for _ in 0..FUZZED_OPERATIONS_MAX {
        if bytes.0.is_empty() {
            break;
        }
        let (_, operation) = operation::draw_to_fuzz(&mut bytes);
        machine.step(&operation);
    }
    machine.settle();
}

fn listed(drawn: &[(usize, Operation)], first: usize) -> String {
    let line = |(n, (kind, operation)): (usize, &(usize, Operation))| {
        format!("  {} {}: {operation:?}\n", first + n, KINDS[*kind].name)
    };
    drawn.iter().enumerate().map(line).collect()
}

/// Plays on a thread of its own, so that a step that never ends is a failure too.
fn watched(settings: &'static Settings, drawn: &Arc<Drawn>) -> Result<Counts, Failure> {
    let step = Arc::new(AtomicU64::new(0));
    let (done, outcome) = mpsc::channel();
    let player = {
        let (drawn, step) = (Arc::clone(drawn), Arc::clone(&step));
        // The receiver waits until the step hangs, and then nobody needs the answer.
        std::thread::spawn(move || _ = done.send(played(settings, &drawn, &step)))
    };
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        match outcome.recv_timeout(Duration::from_millis(200)) {
            Ok(outcome) => {
                player.join().expect("the player sent its outcome");
                return outcome;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => unreachable!("the player always sends"),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        let now = step.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        if since.elapsed() > STEP_LIMIT {
            let text = format!("does not end within {STEP_LIMIT:?}");
            return Err(Failure { step: seen as usize, text });
        }
    }
}

fn played(
    settings: &'static Settings,
    drawn: &[(usize, Operation)],
    step: &AtomicU64,
) -> Result<Counts, Failure> {
    let mut counts = vec![0; KINDS.len()];
    let play = || {
        let mut machine = Machine::new(settings);
        for (n, (kind, operation)) in drawn.iter().enumerate() {
            step.store(n as u64, Ordering::Relaxed);
            counts[*kind] += u64::from(machine.step(operation));
        }
        step.store(drawn.len() as u64, Ordering::Relaxed);
        machine.finish();
    };
    match catch_unwind(AssertUnwindSafe(play)) {
        Ok(()) => Ok(counts),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            let step = step.load(Ordering::Relaxed) as usize;
            Err(Failure { step, text: text.unwrap_or_else(|| "a panic".into()) })
        }
    }
}

/// Leaves out operations, in ever smaller pieces, as long as what is left still fails.
fn minimised(settings: &'static Settings, mut drawn: Drawn) -> Drawn {
    let began = Instant::now();
    let mut piece = drawn.len().div_ceil(2);
    while piece > 0 && began.elapsed() < MINIMISE_LIMIT {
        let mut at = 0;
        while at < drawn.len() && began.elapsed() < MINIMISE_LIMIT {
            let mut shorter = drawn.clone();
            shorter.drain(at..(at + piece).min(drawn.len()));
            let shorter = Arc::new(shorter);
            match watched(settings, &shorter) {
                Ok(_) => at += piece,
                Err(failure) => {
                    drawn = shorter[..shorter.len().min(failure.step + 1)].to_vec();
                }
            }
        }
        piece /= 2;
    }
    drawn
}
