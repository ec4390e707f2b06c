//! The crash harness as a command: `crash <layer> --states N --seed S`.
//!
//! Each layer ends in a line `N passed, N failed`; a failure prints its seed and the command that
//! repeats it. The exit code is 0 when nothing failed, 1 when something did or nothing was tried, 2 for
//! wrong usage, and 3 when the layer cannot run here (it says what is missing).
#![expect(clippy::print_stdout, reason = "the result is what the program is for")]

use std::process::ExitCode;

use esker_tests::crash::{LAYERS, Options, Outcome};

const USAGE: &str = "usage: crash <layer> [--states N] [--seed S]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = esker_tests::crash::run_as_part(&arguments) {
        return code;
    }
    let (layer, options) = match parse(&arguments) {
        Ok(parsed) => parsed,
        Err(sentence) => {
            let names: Vec<_> = LAYERS.iter().map(|layer| layer.name).collect();
            eprintln!("{sentence}\n{USAGE}\nlayers: {}", names.join(", "));
            return ExitCode::from(2);
        }
    };
    println!("{}: {} states, seed {}", layer.name, options.states, options.seed);
    match (layer.run)(&options) {
        Outcome::Ran { passed, failures } => {
            for failure in &failures {
                println!("FAILED {failure}");
            }
            println!("{passed} passed, {} failed", failures.len());
            if passed == 0 && failures.is_empty() {
                println!("nothing was tried, which proves nothing");
            }
            if passed > 0 && failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Outcome::Skipped { missing } => {
            esker_tests::skip(layer.name, missing);
            ExitCode::from(3)
        }
    }
}

fn parse(arguments: &[String]) -> Result<(&'static esker_tests::crash::Layer, Options), String> {
    let mut words = arguments.iter();
    let name = words.next().ok_or("which layer?")?;
    let layer = LAYERS.iter().find(|layer| layer.name == name);
    let layer = layer.ok_or_else(|| format!("there is no layer {name:?}"))?;
    let mut options = Options { states: layer.states, seed: esker_tests::chaos::seed(layer.name) };
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = value.parse().map_err(|_| format!("{word} {value:?} is no number"))?;
        match word.as_str() {
            "--states" => options.states = number,
            "--seed" => options.seed = number,
            _ => return Err(format!("there is no option {word}")),
        }
    }
    Ok((layer, options))
}
