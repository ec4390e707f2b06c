//! Checkpoints on this machine: `checkpoints`, what each pins on the disk, and which go.
//!
//! What must stay true: one that could not be looked at or removed does not keep the others; everything
//! is said first, and the exit code tells of the worst.

use std::path::PathBuf;

use esker::{
    CheckpointInfo, Checkpoints, RemovalReport, RemoveOptions, SkipReason, SkippedDirectory,
};
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::output::{self, Console, Results, say_json};

/// List checkpoints and what each of them pins on the disk; remove those that have expired
///
/// DIR is a checkpoint, a cold copy, or a directory that holds some. A checkpoint pins the files that have no
/// name outside of it: that is what removing it alone frees. Files that only several of them share go with the
/// last one, and are counted in the line at the end. Symbolic links in DIR are not followed.
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoints, or directories that hold some
    #[arg(value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
    /// Remove those whose time is over (`esker checkpoint --expires-after`); not the newest of a keyspace, and
    /// none that somebody has open (exit code 4)
    #[arg(long)]
    remove_expired: bool,
    /// Remove nothing; say what would be removed
    #[arg(long, requires = "remove_expired")]
    dry_run: bool,
    /// Remove the newest of a keyspace as well
    #[arg(long, requires = "remove_expired")]
    even_newest: bool,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// `esker checkpoints`
pub fn run(args: &Args, console: Console) -> Outcome {
    if args.remove_expired {
        return remove_expired(args, console);
    }
    let found = esker::checkpoints(&args.dirs)?;
    if args.json {
        say_json(&json!({
            "checkpoints": found.checkpoints.iter().map(as_json).collect::<Vec<_>>(),
            "pinned_together_bytes": found.pinned_together_bytes,
            "skipped": skipped_json(&found.skipped),
        }))?;
    } else {
        print(&found, console)?;
    }
    worst(&found.skipped).map_or(Ok(()), Err)
}

fn print(found: &Checkpoints, console: Console) -> Outcome {
    let mut results = Results::new();
    let rows = found.checkpoints.iter().map(|checkpoint| {
        vec![
            checkpoint.path.display().to_string(),
            output::time(checkpoint.created_ms),
            checkpoint.expires_ms.map_or_else(|| "never".to_owned(), output::time),
            format!("{:032x}", checkpoint.uuid)[..8].to_owned(),
            checkpoint.seqno.to_string(),
            output::count(checkpoint.files),
            output::bytes(checkpoint.bytes),
            output::bytes(checkpoint.disk_bytes),
            output::bytes(checkpoint.pinned_bytes),
        ]
    });
    let head = [
        "checkpoint",
        "taken",
        "expires",
        "keyspace",
        "seqno",
        "files",
        "holds",
        "on disk",
        "pins",
    ];
    results.line(output::table(&head, &rows.collect::<Vec<_>>()))?;
    if !console.is_quiet() {
        print_skipped(&mut results, &found.skipped)?;
        results.line(format_args!(
            "{} together pin {}",
            output::counted(found.checkpoints.len() as u64, "checkpoint"),
            output::bytes(found.pinned_together_bytes)
        ))?;
    }
    results.flush()
}

fn print_skipped(results: &mut Results, skipped: &[SkippedDirectory]) -> Outcome {
    for SkippedDirectory { path, reason, .. } in skipped {
        results.line(format_args!("{} {reason}", path.display()))?;
    }
    Ok(())
}

// Paths are displayed, not serialised: one that is not UTF-8 must not cost the report.
fn as_json(checkpoint: &CheckpointInfo) -> Value {
    json!({
        "path": checkpoint.path.display().to_string(),
        "uuid": format!("{:032x}", checkpoint.uuid),
        "timeline": format!("{:032x}", checkpoint.timeline),
        "seqno": checkpoint.seqno,
        "created_ms": checkpoint.created_ms,
        "expires_ms": checkpoint.expires_ms,
        "partitions": checkpoint.partitions,
        "files": checkpoint.files,
        "bytes": checkpoint.bytes,
        "disk_bytes": checkpoint.disk_bytes,
        "pinned_bytes": checkpoint.pinned_bytes,
    })
}

fn skipped_json(skipped: &[SkippedDirectory]) -> Vec<Value> {
    let each = |SkippedDirectory { path, reason, .. }: &SkippedDirectory| json!({"path": path.display().to_string(), "reason": reason.to_string()});
    skipped.iter().map(each).collect()
}

/// Why not everything could be looked at, if so. What is simply no checkpoint is no failure.
fn worst(skipped: &[SkippedDirectory]) -> Option<Failure> {
    let say = |skipped: &SkippedDirectory| format!("{} {}", skipped.path.display(), skipped.reason);
    let damaged = skipped.iter().find(|s| matches!(s.reason, SkipReason::Damaged(_)));
    if let Some(damaged) = damaged {
        return Some(Failure::Corrupt(say(damaged)));
    }
    let is_failure =
        |reason: &SkipReason| matches!(reason, SkipReason::Missing | SkipReason::Unreadable(_));
    skipped.iter().find(|s| is_failure(&s.reason)).map(|s| Failure::Failed(say(s)))
}

fn remove_expired(args: &Args, console: Console) -> Outcome {
    let options = RemoveOptions::default().dry_run(args.dry_run).even_newest(args.even_newest);
    let report = esker::remove_expired(&args.dirs, options)?;
    if args.json {
        say_json(&removal_json(&report))?;
    } else {
        print_removal(&report, console)?;
    }
    if let Some(failure) = worst(&report.skipped) {
        return Err(failure);
    }
    if let Some((path, why)) = report.failed.first() {
        return Err(Failure::Failed(format!("{} stays: {why}", path.display())));
    }
    match report.in_use.first() {
        Some(path) => Err(Failure::Engine(esker::Error::Locked { path: path.clone() })),
        None => Ok(()),
    }
}

fn removal_json(report: &RemovalReport) -> Value {
    let removed = report.removed.iter().map(|removed| {
        let mut value = as_json(&removed.checkpoint);
        if let Value::Object(fields) = &mut value {
            fields.insert("freed_bytes".to_owned(), json!(removed.freed_bytes));
        }
        value
    });
    let paths = |paths: &[PathBuf]| -> Vec<String> {
        paths.iter().map(|path| path.display().to_string()).collect()
    };
    let failed = report
        .failed
        .iter()
        .map(|(path, why)| json!({"path": path.display().to_string(), "reason": why}));
    json!({
        "dry_run": report.dry_run,
        "removed": removed.collect::<Vec<_>>(),
        "leftovers": paths(&report.leftovers),
        "freed_bytes": report.freed_bytes,
        "newest": paths(&report.newest),
        "in_use": paths(&report.in_use),
        "failed": failed.collect::<Vec<_>>(),
        "kept": report.kept,
        "skipped": skipped_json(&report.skipped),
    })
}

fn print_removal(report: &RemovalReport, console: Console) -> Outcome {
    let mut results = Results::new();
    if console.is_quiet() {
        return Ok(());
    }
    let done = if report.dry_run { "would go, which frees" } else { "is removed, which freed" };
    for removed in &report.removed {
        let path = removed.checkpoint.path.display();
        results.line(format_args!("{path} {done} {}", output::bytes(removed.freed_bytes)))?;
    }
    for leftover in &report.leftovers {
        results.line(format_args!("{} was left by a removal before", leftover.display()))?;
    }
    for newest in &report.newest {
        results.line(format_args!("{} stays: it is the newest", newest.display()))?;
    }
    for in_use in &report.in_use {
        results.line(format_args!("{} stays: it is open elsewhere", in_use.display()))?;
    }
    for (path, why) in &report.failed {
        results.line(format_args!("{} stays: {why}", path.display()))?;
    }
    print_skipped(&mut results, &report.skipped)?;
    results.line(format_args!(
        "{} {} {}, {} stay",
        output::counted(report.removed.len() as u64, "checkpoint"),
        if report.dry_run { "would free" } else { "freed" },
        output::bytes(report.freed_bytes),
        output::count(report.kept + (report.newest.len() + report.in_use.len()) as u64),
    ))?;
    results.flush()
}
