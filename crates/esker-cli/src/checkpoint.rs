//! Copies of a keyspace and their proof: `checkpoint`, `copy`, `verify`.
//!
//! What the engine reports is printed as a few lines for people or as one JSON object; the units
//! stand in the names of the JSON fields. A damaged keyspace must end with exit code 3, whether the
//! damage came to light by `verify` or on the way.

use std::path::{Path, PathBuf};
use std::time::Duration;

use esker::{
    CheckpointReport, CopyOptions, CopyReport, Moved, Problem, TornTail, Transfer, VerifyOptions,
    VerifyReport,
};
use serde_json::json;

use crate::failure::{Failure, Outcome};
use crate::output::{self, Console, Results, say_json};
use crate::store;
use crate::units;

/// Write an online checkpoint of a keyspace: a new keyspace of the same content
///
/// This program opens the keyspace itself, so nobody else may have it open (exit code 4); a service
/// that has it open takes its checkpoints with `Keyspace::backup_to`. TARGET must not exist. Files
/// get there by hard link, reflink or copy, whichever works first.
// --include and --exclude take several names, so they would take DIR and TARGET if they came first.
#[derive(clap::Args)]
#[command(override_usage = "esker checkpoint <DIR> <TARGET> [OPTIONS]")]
pub struct CheckpointArgs {
    /// The keyspace
    dir: PathBuf,
    /// Where the checkpoint goes; must not exist
    target: PathBuf,
    /// Take only these partitions
    #[arg(long, value_name = "PARTITION", num_args = 1..)]
    include: Vec<String>,
    /// Leave these partitions out
    #[arg(long, value_name = "PARTITION", num_args = 1..)]
    exclude: Vec<String>,
    /// Flush memtables to tables first, so that the checkpoint carries no journal
    #[arg(long)]
    flush: bool,
    /// Copy every file instead of linking it
    #[arg(long)]
    copy: bool,
    /// Read the checkpoint back and compare every checksum
    #[arg(long)]
    verify: bool,
    /// Say in it that it is not wanted any more so long from now (7d, 12h, 4w): `esker checkpoints
    /// --remove-expired` removes it then
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    expires_after: Option<Duration>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Copy a keyspace that nobody has open
///
/// Holds the exclusive lock of SOURCE meanwhile. TARGET must not exist. Files get there by hard
/// link, reflink or copy, whichever works first.
#[derive(clap::Args)]
pub struct CopyArgs {
    /// The keyspace to copy
    source: PathBuf,
    /// Where the copy goes; must not exist
    target: PathBuf,
    /// Copy every file instead of linking it
    #[arg(long)]
    copy: bool,
    /// Read the copy back and compare every checksum
    #[arg(long)]
    verify: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Read every byte of a keyspace nobody has open and compare all checksums
///
/// Changes nothing. Prints each problem on a line and exits with code 3 if there are any.
#[derive(clap::Args)]
pub struct VerifyArgs {
    /// The keyspace, checkpoint or copy
    dir: PathBuf,
    /// How many files to read at once
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

fn transfer(copy: bool) -> Transfer {
    if copy { Transfer::Copy } else { Transfer::Auto }
}

/// `esker checkpoint`
pub fn checkpoint(args: &CheckpointArgs, console: Console) -> Outcome {
    let keyspace = store::open_existing(&args.dir)?;
    let bar = console.bytes("starting");
    let mut builder = keyspace
        .checkpoint()
        .flush_first(args.flush)
        .transfer(transfer(args.copy))
        .verify(args.verify)
        .progress(|progress| bar.show(progress));
    if !args.include.is_empty() {
        builder = builder.include(&args.include);
    }
    if !args.exclude.is_empty() {
        builder = builder.exclude(&args.exclude);
    }
    if let Some(time) = args.expires_after {
        builder = builder.expires_after(time);
    }
    let report = builder.write_to(&args.target);
    bar.clear();
    let report = report?;
    keyspace.close()?;
    print_checkpoint(&args.target, &report, args.json, console)
}

fn print_checkpoint(
    target: &Path,
    report: &CheckpointReport,
    json: bool,
    console: Console,
) -> Outcome {
    if json {
        return say_json(&json!({
            "target": target.display().to_string(),
            "seqno": report.seqno,
            "freeze_us": micros(report.freeze),
            "pinned_ms": millis(report.pinned),
            "total_ms": millis(report.total),
            "linked": report.linked,
            "reflinked": report.reflinked,
            "copied": report.copied,
            "partitions": report.partitions,
            "left_out": report.left_out,
        }));
    }
    if console.is_quiet() {
        return Ok(());
    }
    let mut results = Results::new();
    results.line(format_args!("checkpoint  {}", target.display()))?;
    results.line(format_args!("seqno       {}", report.seqno))?;
    results.line(format_args!("freeze      {:.1} µs", micros(report.freeze)))?;
    results.line(format_args!("total       {:.1} ms", millis(report.total)))?;
    print_moved(&mut results, &report.linked, &report.reflinked, &report.copied)?;
    results.line(format_args!("partitions  {}", names(&report.partitions)))?;
    results.line(format_args!("left out    {}", names(&report.left_out)))?;
    results.flush()
}

/// `esker copy`
pub fn copy(args: &CopyArgs, console: Console) -> Outcome {
    let bar = console.bytes("starting");
    let shown = bar.clone();
    let options = CopyOptions::default()
        .transfer(transfer(args.copy))
        .verify(args.verify)
        .progress(move |progress| shown.show(progress));
    let report = esker::cold_copy(&args.source, &args.target, options);
    bar.clear();
    print_copy(&args.target, &report?, args.json, console)
}

fn print_copy(target: &Path, report: &CopyReport, json: bool, console: Console) -> Outcome {
    if json {
        return say_json(&json!({
            "target": target.display().to_string(),
            "seqno": report.seqno,
            "total_ms": millis(report.total),
            "linked": report.linked,
            "reflinked": report.reflinked,
            "copied": report.copied,
            "partitions": report.partitions,
        }));
    }
    if console.is_quiet() {
        return Ok(());
    }
    let mut results = Results::new();
    results.line(format_args!("copy        {}", target.display()))?;
    results.line(format_args!("seqno       {}", report.seqno))?;
    results.line(format_args!("total       {:.1} ms", millis(report.total)))?;
    print_moved(&mut results, &report.linked, &report.reflinked, &report.copied)?;
    results.line(format_args!("partitions  {}", names(&report.partitions)))?;
    results.flush()
}

fn print_moved(
    results: &mut Results,
    linked: &Moved,
    reflinked: &Moved,
    copied: &Moved,
) -> Outcome {
    for (how, moved) in [("linked", linked), ("reflinked", reflinked), ("copied", copied)] {
        let (files, bytes) = (output::counted(moved.files, "file"), output::bytes(moved.bytes));
        results.line(format_args!("{how:<10}  {files}, {bytes}"))?;
    }
    Ok(())
}

fn names(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

fn millis(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e6
}

/// `esker verify`
pub fn verify(args: &VerifyArgs, console: Console) -> Outcome {
    let bar = console.bytes("starting");
    let shown = bar.clone();
    let mut options = VerifyOptions::default().progress(move |progress| shown.show(progress));
    if let Some(threads) = args.threads {
        options = options.threads(usize::from(threads));
    }
    let report = esker::verify(&args.dir, options);
    bar.clear();
    let report = report?;
    if args.json {
        print_verify_json(&report)?;
    } else {
        print_verify(&args.dir, &report, console)?;
    }
    if report.is_sound() {
        return Ok(());
    }
    let problems = output::counted(report.problems.len() as u64, "problem");
    Err(Failure::Corrupt(format!("{} is corrupt: {problems} found", args.dir.display())))
}

fn print_verify_json(report: &VerifyReport) -> Outcome {
    // Paths are displayed, not serialised: one that is not UTF-8 must not cost the report.
    let problem = |problem: &Problem| {
        json!({
            "path": problem.path.display().to_string(),
            "offset": problem.offset,
            "what": problem.what,
            "expected": problem.expected,
            "found": problem.found,
        })
    };
    let strays = report.strays.iter().map(|path| path.display().to_string());
    say_json(&json!({
        "sound": report.is_sound(),
        "files": report.files,
        "bytes": report.bytes,
        "seqno": report.seqno,
        "partitions": report.partitions,
        "clean": report.clean,
        "torn_tail": report.torn_tail,
        "problems": report.problems.iter().map(problem).collect::<Vec<_>>(),
        "strays": strays.collect::<Vec<_>>(),
        "total_ms": millis(report.total),
    }))
}

fn print_verify(dir: &Path, report: &VerifyReport, console: Console) -> Outcome {
    let mut results = Results::new();
    for problem in &report.problems {
        results.line(problem)?;
    }
    if !console.is_quiet() {
        print_remarks(&mut results, dir, report)?;
    }
    results.flush()
}

/// What is worth knowing and no damage.
fn print_remarks(results: &mut Results, dir: &Path, report: &VerifyReport) -> Outcome {
    for stray in &report.strays {
        results.line(format_args!("{} belongs to nothing", dir.join(stray).display()))?;
    }
    if !report.clean {
        results.line("it was not closed cleanly; the next open recovers its journal")?;
    }
    if let Some(TornTail { path, offset }) = &report.torn_tail {
        let path = path.display();
        results
            .line(format_args!("{path} ends at byte {offset} in a write that a crash cut short"))?;
    }
    if report.is_sound() {
        results.line(format_args!(
            "{} is sound: {}, {} read in {} ({}), up to seqno {}",
            dir.display(),
            output::counted(report.files, "file"),
            output::bytes(report.bytes),
            output::duration(report.total),
            output::rate(report.bytes, report.total),
            report.seqno,
        ))?;
    }
    Ok(())
}
