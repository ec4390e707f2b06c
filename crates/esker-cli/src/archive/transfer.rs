//! Backups on their way: `push`, `restore`.

use std::collections::BTreeSet;

use esker_archive::{BackupId, PushOptions, PushReport, Repository, RestoreOptions, RestoreReport};
use serde_json::json;

use super::repository::{find, open};
use super::{Download, PushArgs, RestoreArgs};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Console, Results, say_json};
use crate::store;

const MIB: u64 = 1 << 20;

/// `esker archive push`
pub fn push(args: &PushArgs, console: Console) -> Outcome {
    let repository = open(&args.place)?;
    let bar = console.bytes("pushing");
    let shown = bar.clone();
    let mut options = PushOptions::default()
        .include(args.include.clone())
        .exclude(args.exclude.clone())
        .bytes_per_second(args.limit_rate)
        .progress(move |progress| shown.show_bytes(progress.bytes_done, progress.bytes_total));
    if let Some(label) = &args.label {
        options = options.label(label);
    }
    if let Some(workers) = args.workers {
        options = options.workers(usize::from(workers));
    }
    // It goes when a checkpoint is opened for writing: then it is a keyspace like any other.
    let report = if args.dir.join("CHECKPOINT").exists() {
        repository.push_directory(&args.dir, options)
    } else {
        let keyspace = store::open_existing(&args.dir)?;
        let pushed = repository.push(&keyspace, options);
        keyspace.close()?;
        pushed
    };
    bar.clear();
    print_push(&report?, args.json, console)
}

fn print_push(report: &PushReport, json: bool, console: Console) -> Outcome {
    if json {
        return say_json(&json!({
            "backup": report.backup,
            "seqno": report.seqno,
            "freeze_us": report.freeze.as_nanos() as f64 / 1e3,
            "total_ms": report.total.as_nanos() as f64 / 1e6,
            "files": report.files,
            "raw_bytes": report.raw_bytes,
            "new_files": report.new_files,
            "sent_bytes": report.sent_bytes,
            "manifest_bytes": report.manifest_bytes,
            "partitions": report.partitions,
            "left_out": report.left_out,
        }));
    }
    if console.is_quiet() {
        return Ok(());
    }
    let mut results = Results::new();
    results.line(format_args!("backup      {}", report.backup))?;
    results.line(format_args!("seqno       {}", report.seqno))?;
    let files = output::counted(report.files, "file");
    results.line(format_args!("holds       {} in {files}", output::bytes(report.raw_bytes)))?;
    let sent = output::bytes(report.sent_bytes + report.manifest_bytes);
    results.line(format_args!("sent        {sent}"))?;
    results.line(format_args!("total       {}", output::duration(report.total)))?;
    results.flush()
}

/// The options that `restore` and `drill` share, and a bar.
pub fn options(how: &Download, console: Console) -> (RestoreOptions, output::Bar) {
    let bar = console.bytes("restoring");
    let shown = bar.clone();
    let mut options = RestoreOptions::default()
        .progress(move |progress| shown.show_bytes(progress.bytes_done, progress.bytes_total));
    if let Some(workers) = how.workers {
        options = options.download_workers(usize::from(workers));
    }
    if let Some(chunk) = how.chunk_mib {
        options = options.chunk_bytes(chunk * MIB);
    }
    if let Some(buffer) = how.buffer_mib {
        options = options.buffer_bytes_max(buffer * MIB);
    }
    (options, bar)
}

/// `esker archive restore`
pub fn restore(args: &RestoreArgs, console: Console) -> Outcome {
    let repository = open(&args.place)?;
    let backup = choose(&repository, args.backup.as_deref())?;
    let (options, bar) = options(&args.how, console);
    let mut options = options.delta(args.delta);
    if !args.partition.is_empty() {
        options = options.partitions(args.partition.clone());
    }
    let report = repository.restore(backup, &args.target, options);
    bar.clear();
    let report = report?;
    if args.json {
        let mut value = as_json(&report);
        value["target"] = json!(args.target.display().to_string());
        return say_json(&value);
    }
    if console.is_quiet() {
        return Ok(());
    }
    let mut results = Results::new();
    results.line(format_args!("restored    {}", args.target.display()))?;
    results.line(format_args!("backup      {}", report.backup))?;
    results.line(format_args!("seqno       {}", report.seqno))?;
    let files = output::counted(report.files, "file");
    results.line(format_args!("holds       {} in {files}", output::bytes(report.raw_bytes)))?;
    results.line(format_args!("fetched     {}", output::bytes(report.fetched_bytes)))?;
    for (what, bytes) in [("resumed", report.resumed_bytes), ("reused", report.reused_bytes)] {
        if bytes > 0 {
            results.line(format_args!("{what:<12}{}", output::bytes(bytes)))?;
        }
    }
    let rate = output::rate(report.raw_bytes, report.total);
    results.line(format_args!("total       {} ({rate})", output::duration(report.total)))?;
    results.flush()
}

/// The backup that is meant; of several keyspaces the newest backup is a guess.
fn choose(repository: &Repository, asked: Option<&str>) -> Outcome<BackupId> {
    if asked.is_none() {
        let uuids: BTreeSet<_> = repository.list()?.iter().map(|backup| backup.id.uuid).collect();
        if uuids.len() > 1 {
            let what = "the repository has backups of several keyspaces; choose with --backup";
            return Err(Failure::Failed(what.to_owned()));
        }
    }
    find(repository, asked)
}

/// Units stand in the names.
pub fn as_json(report: &RestoreReport) -> serde_json::Value {
    json!({
        "backup": report.backup,
        "seqno": report.seqno,
        "total_ms": report.total.as_nanos() as f64 / 1e6,
        "files": report.files,
        "raw_bytes": report.raw_bytes,
        "fetched_bytes": report.fetched_bytes,
        "resumed_bytes": report.resumed_bytes,
        "reused_bytes": report.reused_bytes,
        "partitions": report.partitions,
    })
}
