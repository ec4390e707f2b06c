//! `esker-bench compare`: esker beside its neighbours, the same workloads in turn.
//!
//! Exit code 1 when any measurement failed; what was measured is printed all the same.
#![expect(clippy::print_stdout, reason = "tables are what the program is for")]

use std::fs;
use std::process::ExitCode;

use clap::Parser as _;
use esker_bench::compare::options::{Command, Compare, Program, Spec};
use esker_bench::compare::workloads::{WORKLOADS, workload};
use esker_bench::compare::{cell, opening, plot, report, run};
use esker_bench::peers::ENGINES;
use esker_bench::{Result, machine};

fn main() -> ExitCode {
    let result = match Program::parse().command {
        Command::Compare(options) => compare(&options),
        Command::List => list(),
        Command::Cell { spec } => measure(&spec),
        Command::Victim { spec } => be_a_victim(&spec),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

fn list() -> Result<ExitCode> {
    println!("Engines of this build (others: --features all-peers):");
    for engine in ENGINES {
        println!("  {:18} {}", engine.name, engine.line);
    }
    println!("\nWorkloads:");
    for workload in WORKLOADS {
        println!("  {:18} {}", workload.name, workload.line);
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(spec: &str) -> Result<ExitCode> {
    let outcome = cell::run(&serde_json::from_str(spec)?)?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(ExitCode::SUCCESS)
}

fn be_a_victim(spec: &str) -> Result<ExitCode> {
    let spec: Spec = serde_json::from_str(spec)?;
    let workload = workload(&spec.workload)?;
    opening::be_a_victim(&spec, &workload, |word| println!("{word}"))?;
    Ok(ExitCode::SUCCESS)
}

fn compare(options: &Compare) -> Result<ExitCode> {
    let cells = run::run(options)?;
    println!("{}\n", machine::describe());
    let summaries = report::summarise(options, &cells)?;
    println!("{}", report::tables(&summaries)?);
    if let Some(path) = &options.json {
        fs::write(path, report::json(options, &cells, &summaries)?)?;
    }
    if let Some(dir) = &options.plot {
        fs::create_dir_all(dir)?;
        plot::bars(dir, &summaries)?;
        plot::timelines(dir, &cells)?;
    }
    let failed = cells.iter().any(|cell| cell.error.is_some());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
