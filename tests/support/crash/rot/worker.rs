//! The child process that judges the cases of one round, under a limit of memory.
//!
//! What must stay true: what is said of a case is in the pipe before the next one begins, so that a
//! child that dies or hangs leaves no doubt about the case it was at.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Resource, Rlimit, setrlimit};

use super::author::{self, Shape};
use super::damage::{Damage, every_file, every_flip};
use super::image::Image;
use super::judge::{Bench, Care};
use super::{Plan, Round};
use crate::chaos::{self, Rng};
use crate::crash::judge::panic_text;

/// The hidden subcommand of the program `crash`.
pub const COMMAND: &str = "rot-worker";
/// The image and everything that is open take a tenth of it.
const MEMORY_BYTES_MAX: u64 = 256 << 20;

/// What a child says, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The case begins.
    At {
        number: u64,
        what: String,
    },
    /// Its damage and what came of it.
    Passed {
        kind: String,
        outcome: String,
    },
    Failed {
        sentence: String,
    },
    /// All cases were judged; so many panics of lsm-tree became errors.
    End {
        caught: u64,
    },
}

impl Line {
    fn format(&self) -> String {
        let text = match self {
            Self::At { number, what } => format!("at {number} {what}"),
            Self::Passed { kind, outcome } => format!("passed {kind} {outcome}"),
            Self::Failed { sentence } => format!("failed {sentence}"),
            Self::End { caught } => format!("end {caught}"),
        };
        text.replace('\n', " ")
    }

    pub fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ')?;
        Some(match word {
            "at" => {
                let (number, what) = rest.split_once(' ')?;
                Self::At { number: number.parse().ok()?, what: what.to_owned() }
            }
            "passed" => {
                let (kind, outcome) = rest.split_once(' ')?;
                Self::Passed { kind: kind.to_owned(), outcome: outcome.to_owned() }
            }
            "failed" => Self::Failed { sentence: rest.to_owned() },
            "end" => Self::End { caught: rest.parse().ok()? },
            _ => return None,
        })
    }

    fn say(&self) {
        // Without a parent there is nobody to judge for.
        let written = io::stdout().write_all(format!("{}\n", self.format()).as_bytes());
        written.and_then(|()| io::stdout().flush()).expect("the parent listens");
    }
}

/// Panics of lsm-tree, which the engine makes errors of.
static CAUGHT: AtomicU64 = AtomicU64::new(0);
/// Panics of the engine itself, which nobody may see.
static OWN: AtomicU64 = AtomicU64::new(0);

/// Does what the words of [`Round::words`] say; false if they say nothing.
pub fn run(words: &[String]) -> bool {
    let Some(round) = Round::parse(words) else { return false };
    let limit = Rlimit { current: Some(MEMORY_BYTES_MAX), maximum: Some(MEMORY_BYTES_MAX) };
    setrlimit(Resource::Data, limit).expect("a limit of memory");
    std::panic::set_hook(Box::new(|info| {
        let foreign = info.location().is_some_and(|place| place.file().contains("lsm-tree"));
        if foreign {
            CAUGHT.fetch_add(1, Ordering::Relaxed);
        } else {
            OWN.fetch_add(1, Ordering::Relaxed);
            eprintln!("{info}");
        }
    }));
    let judged = catch_unwind(AssertUnwindSafe(|| judge_all(&round)));
    if let Err(panic) = judged {
        Line::Failed { sentence: format!("the round: {}", panic_text(&*panic)) }.say();
    }
    Line::End { caught: CAUGHT.load(Ordering::Relaxed) }.say();
    true
}

fn judge_all(round: &Round) {
    if round.plan == Plan::Canary {
        return canary(round);
    }
    let scratch = chaos::memory_dir();
    let image = build(round, scratch.path());
    let place = scratch.path().join("cases");
    std::fs::create_dir(&place).expect("a directory");
    let bench = Bench::new(&image, &place).expect("the image fits");
    let (damages, care): (Box<dyn Iterator<Item = (u64, Damage)>>, _) = match round.plan {
        Plan::Flips => {
            (Box::new((1..).zip(every_flip(&image))), Care { writable_one_in: 40, copy_one_in: 40 })
        }
        Plan::Files => {
            (Box::new((1..).zip(every_file(&image))), Care { writable_one_in: 1, copy_one_in: 4 })
        }
        _ => {
            let any = |number| (number, Damage::any(&image, &mut Rng::new(round.seed_of(number))));
            (Box::new((1..).map(any)), Care { writable_one_in: 3, copy_one_in: 3 })
        }
    };
    for (number, damage) in damages.skip(round.from as usize - 1) {
        if number > round.to {
            break;
        }
        Line::At { number, what: damage.what.clone() }.say();
        let own = OWN.load(Ordering::Relaxed);
        let mut verdict = bench.judge(&damage, care, round.seed_of(number));
        if OWN.load(Ordering::Relaxed) > own && verdict.is_ok() {
            verdict = Err("the engine panicked and caught itself".to_owned());
        }
        match verdict {
            Ok(outcome) => {
                let (kind, outcome) = (format!("{:?}", damage.kind), format!("{outcome:?}"));
                Line::Passed { kind, outcome }.say();
            }
            Err(sentence) => {
                let kept = keep(&image, &damage, number);
                Line::Failed { sentence: format!("{}: {sentence}{kept}", damage.what) }.say();
            }
        }
    }
    if let Err(sentence) = bench.assert_whole() {
        Line::Failed { sentence }.say();
    }
}

/// The image of the round, with another keyspace of its kind beside it.
fn build(round: &Round, scratch: &Path) -> Image {
    let shape = (round.plan != Plan::Random).then(Shape::small);
    let build = |name: &str, seed| {
        let place = scratch.join(name);
        std::fs::create_dir(&place).expect("a directory");
        let image = author::build(&round.image, seed, shape.clone(), &place);
        let image = image.expect("an engine on a healthy disk");
        std::fs::remove_dir_all(place).expect("a directory that nobody uses");
        image
    };
    let mut image = build("image", round.seed);
    // The nastiest stranger was written in the same way.
    let other = if Rng::new(round.seed).one_in(2) { round.seed } else { !round.seed };
    image.stranger = build("stranger", other).files;
    image
}

/// Three cases that show that the parent sees what happens to a child.
fn canary(round: &Round) {
    for number in round.from..=3 {
        Line::At { number, what: "a canary".to_owned() }.say();
        match number {
            1 => drop(std::hint::black_box(vec![1u8; 4 * MEMORY_BYTES_MAX as usize])),
            2 => std::thread::sleep(std::time::Duration::from_secs(3600)),
            _ => {}
        }
        Line::Passed { kind: "Canary".to_owned(), outcome: "Harmless".to_owned() }.say();
    }
}

/// Keeps a damaged directory for people, if they want that.
fn keep(image: &Image, damage: &Damage, number: u64) -> String {
    let Some(directory) = std::env::var_os("ESKER_KEEP") else { return String::new() };
    let path = PathBuf::from(directory).join(format!("rot-{}-{number}", std::process::id()));
    let kept = std::fs::create_dir_all(&path);
    let kept = kept.and_then(|()| image.write_to(&path.join("whole")));
    let kept = kept
        .and_then(|()| image.link_to(&path.join("whole"), &path.join("damaged"), &damage.files));
    match kept {
        Ok(()) => format!("; kept in {}", path.display()),
        Err(error) => format!("; not kept: {error}"),
    }
}
