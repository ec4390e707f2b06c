//! Plants every known bug and prints which layer of the crash harness finds it, from which seed and
//! how fast: `planted [--bug NAME] [--layer NAME] [--seed S] [--seconds N]`.
//!
//! The exit code is 0 if every bug was found and nothing was found where none was planted, 1 if not,
//! 2 for wrong usage, 3 if some could not be hunted here.
#![expect(clippy::print_stdout, reason = "the table is what the program is for")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use esker::planted::Bug;
use esker_tests::crash::Options;
use esker_tests::planted::{self, Hunt, Hunter, hunters};

const USAGE: &str = "usage: planted [--bug NAME|none] [--layer NAME] [--seed S] [--seconds N]";
/// Each bug must be found within ten minutes.
const LIMIT_SECONDS: u64 = 600;

struct Arguments {
    /// All, if none is named; `Some(None)` is the canary.
    bug: Option<Option<Bug>>,
    layer: Option<String>,
    seed: u64,
    limit: Duration,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = esker_tests::crash::run_as_part(&words) {
        return code;
    }
    if words.first().is_some_and(|word| word == planted::COMMAND) {
        return portion(&words[1..]).unwrap_or(ExitCode::from(2));
    }
    match parse(&words) {
        Ok(arguments) => table(&arguments),
        Err(sentence) => {
            eprintln!("{sentence}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn portion(words: &[String]) -> Option<ExitCode> {
    let [layer, states, seed] = words else { return None };
    let layer = planted::layer(layer)?;
    let options = Options { states: states.parse().ok()?, seed: seed.parse().ok()? };
    Some(planted::run_portion(layer, &options))
}

fn parse(words: &[String]) -> Result<Arguments, String> {
    let mut arguments =
        Arguments { bug: None, layer: None, seed: 1, limit: Duration::from_secs(LIMIT_SECONDS) };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.parse().map_err(|_| format!("{word} {value:?} is no number"));
        match word.as_str() {
            "--bug" if value == "none" => arguments.bug = Some(None),
            "--bug" => {
                let bug = planted::parse(value);
                arguments.bug =
                    Some(Some(bug.ok_or_else(|| format!("no bug is called {value:?}"))?));
            }
            "--layer" => arguments.layer = Some(value.clone()),
            "--seed" => arguments.seed = number()?,
            "--seconds" => arguments.limit = Duration::from_secs(number()?),
            _ => return Err(format!("there is no option {word}")),
        }
    }
    Ok(arguments)
}

fn table(arguments: &Arguments) -> ExitCode {
    println!("seed {}, at most {} s for each bug", arguments.seed, arguments.limit.as_secs());
    println!("{:32} {:10} {:>8} {:>8}  what was seen", "bug", "layer", "seed", "seconds");
    let all = Bug::ALL.iter().map(|(bug, _)| Some(*bug)).chain([None]);
    let bugs: Vec<_> = arguments.bug.map_or_else(|| all.collect(), |bug| vec![bug]);
    if let Err(sentence) = planted::build_explorer() {
        eprintln!("{sentence}");
    }
    let (mut found, mut skipped, mut wrong) = (0, 0, 0);
    for bug in &bugs {
        match row(*bug, arguments) {
            Hunt::Found { .. } if bug.is_some() => found += 1,
            Hunt::NotFound if bug.is_none() => {}
            Hunt::Skipped { .. } => skipped += 1,
            _ => wrong += 1,
        }
    }
    let planted = bugs.iter().flatten().count();
    println!("{found} of {planted} bugs found, {skipped} skipped, {wrong} wrong");
    match (wrong, skipped) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(3),
        _ => ExitCode::FAILURE,
    }
}

/// Hunts for one bug, or for none, and prints how it went.
fn row(bug: Option<Bug>, arguments: &Arguments) -> Hunt {
    let all: Vec<_> = planted::layers().map(|layer| layer.name).collect();
    let layers = match (&arguments.layer, bug) {
        (Some(layer), _) => vec![layer.as_str()],
        (None, Some(bug)) => hunters(bug).to_vec(),
        (None, None) => all,
    };
    let name = bug.map_or_else(|| "none (the canary)".to_owned(), |bug| format!("{bug:?}"));
    let began = Instant::now();
    let program = std::env::current_exe().expect("the own program");
    let Arguments { seed, limit, .. } = *arguments;
    let hunter = Hunter { program, seed, limit };
    let hunt = match bug {
        Some(bug) => hunter.hunt(bug, &layers),
        None => hunter.hunt_for_nothing(&layers),
    };
    let seconds = began.elapsed().as_secs_f64();
    let (layer, seed, text) = match &hunt {
        Hunt::Found { layer, seed, how } => (*layer, seed.to_string(), how.as_str()),
        Hunt::NotFound => ("-", "-".to_owned(), "nothing"),
        Hunt::Skipped { missing } => ("SKIPPED", "-".to_owned(), missing.as_str()),
        Hunt::Wrong { how } => ("WRONG", "-".to_owned(), how.as_str()),
    };
    // A find is only named; what nobody expected is needed whole, to be repeated.
    let len_max = if matches!(hunt, Hunt::Wrong { .. }) { usize::MAX } else { 160 };
    let text: String = text.chars().take(len_max).collect();
    println!("{name:32} {layer:10} {seed:>8} {seconds:8.1}  {text}");
    hunt
}
