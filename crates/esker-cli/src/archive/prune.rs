//! `archive prune`: what stays, what goes, and what that frees.

use esker_archive::{Policy, PruneOptions, PruneReport};
use serde_json::json;

use super::repository::open;
use super::{PruneArgs, Rules};
use crate::failure::Outcome;
use crate::output::{self, Console, Results, say_json};

/// `esker archive prune`
pub fn run(args: &PruneArgs, console: Console) -> Outcome {
    let repository = open(&args.place)?;
    let bar = console.waiting("pruning");
    let shown = bar.clone();
    let mut options = PruneOptions::default().dry_run(args.dry_run).progress(move |progress| {
        shown.say(if progress.waiting_for > 0 { "waiting for pushes" } else { "pruning" });
    });
    if let Some(wait) = args.wait {
        options = options.wait(wait);
    }
    let report = repository.prune(&policy(&args.rules), options);
    bar.clear();
    let report = report?;
    if args.json {
        return print_json(&report);
    }
    if console.is_quiet() && !args.dry_run {
        return Ok(());
    }
    print(&report)
}

fn policy(rules: &Rules) -> Policy {
    let policy = Policy::default()
        .keep_last(rules.keep_last.unwrap_or(0))
        .keep_daily(rules.keep_daily.unwrap_or(0))
        .keep_weekly(rules.keep_weekly.unwrap_or(0))
        .keep_monthly(rules.keep_monthly.unwrap_or(0));
    match rules.keep_within {
        Some(time) => policy.keep_within(time),
        None => policy,
    }
}

fn print_json(report: &PruneReport) -> Outcome {
    say_json(&json!({
        "dry_run": report.dry_run,
        "kept": report.kept,
        "removed": report.removed,
        "freed_bytes": report.freed_bytes,
        "removed_pieces": report.removed_pieces,
        "removed_bytes": report.removed_bytes,
        "young_pieces": report.young_pieces,
        "young_bytes": report.young_bytes,
        "pieces_left": report.pieces_left,
        "total_ms": report.total.as_nanos() as f64 / 1e6,
    }))
}

fn print(report: &PruneReport) -> Outcome {
    let mut results = Results::new();
    for kept in &report.kept {
        let reasons: Vec<_> = kept.reasons.iter().map(ToString::to_string).collect();
        results.line(format_args!("keep    {}  ({})", kept.backup, reasons.join(", ")))?;
    }
    for removed in &report.removed {
        results.line(format_args!("remove  {removed}"))?;
    }
    let would = if report.dry_run { "would be " } else { "" };
    results.line(format_args!(
        "{} {would}removed, which only need {}; {} ({}) {would}removed now, {} ({}) are less than a day old",
        output::counted(report.removed.len() as u64, "backup"),
        output::bytes(report.freed_bytes),
        output::counted(report.removed_pieces, "piece"),
        output::bytes(report.removed_bytes),
        output::counted(report.young_pieces, "piece"),
        output::bytes(report.young_bytes),
    ))?;
    if let Some(reason) = &report.pieces_left {
        results.line(format_args!("no piece was removed: {reason}; the next prune does it"))?;
    }
    results.flush()
}
