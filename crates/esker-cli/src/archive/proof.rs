//! Whether backups are worth anything: `check`, `drill`.

use std::time::SystemTime;

use esker_archive::{CheckOptions, CheckReport, Proofs};
use serde_json::json;

use super::repository::{find, open};
use super::transfer;
use super::{CheckArgs, DrillArgs};
use crate::escape::Escaped;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Console, Results, say_json};

/// `esker archive check`
pub fn check(args: &CheckArgs, console: Console) -> Outcome {
    let repository = open(&args.place)?;
    let bar = console.bytes("checking");
    let shown = bar.clone();
    let mut options = CheckOptions::default()
        .read_data(args.read_data.unwrap_or(0.0))
        .remember(!args.no_remember)
        .progress(move |progress| shown.show_bytes(progress.bytes_done, progress.bytes_total));
    if let Some(seed) = args.seed {
        options = options.seed(seed);
    }
    if let Some(workers) = args.workers {
        options = options.workers(usize::from(workers));
    }
    let report = repository.check(options);
    bar.clear();
    let report = report?;
    if args.json {
        print_json(&report)?;
    } else {
        print(&args.place.location, &report, console)?;
    }
    if report.is_sound() {
        return Ok(());
    }
    let problems = output::counted(report.problems.len() as u64, "problem");
    Err(Failure::Corrupt(format!("{} is corrupt: {problems} found", args.place.location)))
}

fn print_json(report: &CheckReport) -> Outcome {
    say_json(&json!({
        "sound": report.is_sound(),
        "backups": report.backups,
        "pieces": report.pieces,
        "piece_bytes": report.piece_bytes,
        "read_pieces": report.read_pieces,
        "read_bytes": report.read_bytes,
        "proofs": report.proofs,
        "remembered": report.remembered,
        "not_remembered": report.not_remembered,
        "problems": report.problems,
        "unnamed": report.unnamed,
        "unnamed_bytes": report.unnamed_bytes(),
        "leases": report.leases,
        "expired_leases": report.expired_leases,
        "strays": report.strays,
        "total_ms": report.total.as_nanos() as f64 / 1e6,
    }))
}

fn print(location: &str, report: &CheckReport, console: Console) -> Outcome {
    let mut results = Results::new();
    for problem in &report.problems {
        results.line(problem)?;
    }
    if !console.is_quiet() {
        for stray in &report.strays {
            results.line(format_args!("{} belongs to nothing", Escaped(stray.as_bytes())))?;
        }
        for lease in &report.expired_leases {
            let lease = Escaped(lease.as_bytes());
            results.line(format_args!("{lease} is of somebody who is gone"))?;
        }
        if !report.unnamed.is_empty() {
            let unnamed = output::counted(report.unnamed.len() as u64, "piece");
            let bytes = output::bytes(report.unnamed_bytes());
            results.line(format_args!("{unnamed} ({bytes}) are of no backup"))?;
        }
        for warning in &report.proofs.warnings {
            results.line(format_args!("a proof is not believed: {warning}"))?;
        }
        if let Some(why) = &report.not_remembered {
            results.line(format_args!("what was proved is not remembered: {why}"))?;
        }
        results.line(proved(&report.proofs))?;
        if report.is_sound() {
            results.line(format_args!(
                "{location} is sound: {}, {} ({}), {} of it read, in {}",
                output::counted(report.backups, "backup"),
                output::counted(report.pieces, "piece"),
                output::bytes(report.piece_bytes),
                output::bytes(report.read_bytes),
                output::duration(report.total),
            ))?;
        }
    }
    results.flush()
}

/// One line on what was ever read, and how long ago.
pub fn proved(proofs: &Proofs) -> String {
    let Some(oldest_ms) = proofs.oldest_proof_ms else {
        let none = output::bytes(proofs.never_proved_bytes);
        return format!("no data was ever proved, of {none}");
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let since_ms = (now.as_millis() as u64).saturating_sub(oldest_ms);
    let within = output::counted(since_ms.div_ceil(24 * 60 * 60 * 1000).max(1), "day");
    if proofs.is_complete() {
        return format!("all data was proved within the last {within}");
    }
    let (proved, never) = (proofs.proved_bytes, proofs.never_proved_bytes);
    format!(
        "{} of {} were proved within the last {within}; {} never",
        output::bytes(proved),
        output::bytes(proved + never),
        output::counted(proofs.never_proved_pieces, "piece"),
    )
}

/// `esker archive drill`
pub fn drill(args: &DrillArgs, console: Console) -> Outcome {
    let repository = open(&args.place)?;
    let backup = find(&repository, args.backup.as_deref())?;
    let (options, bar) = transfer::options(&args.how, console);
    let scratch = args.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let report = repository.drill_backup(backup, &scratch, options);
    bar.clear();
    let report = report?;
    if args.json {
        return say_json(&json!({
            "restore": transfer::as_json(&report.restore),
            "partitions": report.partitions,
            "verify_ms": report.verify.as_nanos() as f64 / 1e6,
            "read_ms": report.read.as_nanos() as f64 / 1e6,
            "total_ms": report.total.as_nanos() as f64 / 1e6,
        }));
    }
    let mut results = Results::new();
    for partition in &report.partitions {
        let esker_archive::DrilledPartition { partition, entries, xxh3_128, .. } = partition;
        results.line(format_args!("{partition}\t{entries}\t{xxh3_128}"))?;
    }
    if !console.is_quiet() {
        results.line(format_args!(
            "backup {} is sound: restored in {}, verified in {}, read in {}",
            report.restore.backup,
            output::duration(report.restore.total),
            output::duration(report.verify),
            output::duration(report.read),
        ))?;
    }
    results.flush()
}
