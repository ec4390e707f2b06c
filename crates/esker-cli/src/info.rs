//! `esker info`: what a keyspace is and what it weighs.
//!
//! Reads no entry, so it is quick however large the keyspace is; numbers of entries are therefore
//! approximate and marked so.

use std::path::PathBuf;

use esker::{Keyspace, PartitionOptions, PartitionStatistics, Statistics};
use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::output::{self, Results, say_json};
use crate::store;

/// Print what a keyspace is: identity, partitions and their options, sizes, journal
#[derive(clap::Args)]
pub struct Args {
    /// The keyspace
    dir: PathBuf,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// `esker info`
pub fn run(args: &Args) -> Outcome {
    let keyspace = store::open_to_read(&args.dir)?;
    let statistics = keyspace.statistics();
    if args.json {
        return say_json(&as_json(&keyspace, &statistics)?);
    }
    print(args, &keyspace, &statistics)
}

fn as_json(keyspace: &Keyspace, statistics: &Statistics) -> Outcome<Value> {
    let mut partitions = Vec::new();
    for partition in &statistics.partitions {
        let options = store::partition(keyspace, &partition.name)?.options();
        partitions.push(json!({
            "name": partition.name,
            "options": options,
            "tables": partition.tables,
            "blob_files": partition.blob_files,
            "stale_blob_bytes": partition.stale_blob_bytes,
            "l0_runs": partition.l0_runs,
            "disk_bytes": partition.disk_bytes,
            "memtable_bytes": partition.memtable_bytes,
            "approximate_len": partition.approximate_len,
        }));
    }
    Ok(json!({
        "path": keyspace.path().display().to_string(),
        "uuid": id(keyspace.uuid()),
        "timeline": id(keyspace.timeline()),
        "format": keyspace.format_version(),
        "seqno": keyspace.seqno(),
        "disk_bytes": keyspace.disk_space(),
        "journal": {
            "segments": statistics.journal_segments,
            "bytes": statistics.journal_bytes,
        },
        "partitions": partitions,
    }))
}

fn print(args: &Args, keyspace: &Keyspace, statistics: &Statistics) -> Outcome {
    let mut results = Results::new();
    let journal = format!(
        "{}, {}",
        output::counted(statistics.journal_segments, "segment"),
        output::bytes(statistics.journal_bytes)
    );
    let lines = [
        ("keyspace", args.dir.display().to_string()),
        ("uuid", id(keyspace.uuid())),
        ("timeline", id(keyspace.timeline())),
        ("format", keyspace.format_version().to_string()),
        ("seqno", keyspace.seqno().to_string()),
        ("disk", output::bytes(keyspace.disk_space())),
        ("journal", journal),
        ("partitions", statistics.partitions.len().to_string()),
    ];
    for (name, value) in lines {
        results.line(format_args!("{name:<12}{value}"))?;
    }
    if !statistics.partitions.is_empty() {
        results.line("")?;
        results.line(partitions_table(&statistics.partitions))?;
        results.line("")?;
        for partition in &statistics.partitions {
            let options = store::partition(keyspace, &partition.name)?.options();
            results.line(format_args!("{}: {}", partition.name, options_text(&options)))?;
        }
    }
    results.flush()
}

fn partitions_table(partitions: &[PartitionStatistics]) -> String {
    let rows = partitions.iter().map(|partition| {
        vec![
            partition.name.clone(),
            format!("~{}", output::count(partition.approximate_len)),
            output::count(partition.tables),
            output::count(partition.blob_files),
            output::bytes(partition.stale_blob_bytes),
            output::count(partition.l0_runs),
            output::bytes(partition.disk_bytes),
            output::bytes(partition.memtable_bytes),
        ]
    });
    let head = [
        "partition",
        "entries",
        "tables",
        "blob files",
        "stale",
        "L0 runs",
        "on disk",
        "in memory",
    ];
    output::table(&head, &rows.collect::<Vec<_>>())
}

/// The options as their JSON names and values, so that both forms of `info` say the same.
fn options_text(options: &PartitionOptions) -> String {
    match serde_json::to_value(options) {
        Ok(Value::Object(options)) => {
            let options = options.iter().map(|(name, value)| match value {
                Value::String(text) => format!("{name} {text}"),
                Value::Null => format!("{name} none"),
                other => format!("{name} {other}"),
            });
            options.collect::<Vec<_>>().join(", ")
        }
        // Not reached while options are a struct of numbers.
        _ => format!("{options:?}"),
    }
}

/// An identity as 32 hex digits.
fn id(id: u128) -> String {
    format!("{id:032x}")
}
