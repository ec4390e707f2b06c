//! Tables and JSON out of the measurements of a run.

use std::fmt::Write as _;

use serde::Serialize;

use crate::compare::cell::{Outcome, Quantiles};
use crate::compare::options::Compare;
use crate::compare::run::Cell;
use crate::compare::workloads::{Workload, workload};
use crate::table::{Table, mebibytes};
use crate::{Result, machine};

/// The engine that the others are compared with.
pub const BASE: &str = "esker";
/// Seconds that a sleeping thread may be late before a reader is told. Not the engine's doing.
const LATE_MAX: f64 = 0.5;

/// A median and how far the values lie apart.
#[derive(Copy, Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The one in the middle, or half way between the two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// None of no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self { median, min, max })
    }
}

/// All rounds of one engine, workload and number of threads.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The engine.
    pub engine: String,
    /// The workload.
    pub workload: String,
    /// Threads.
    pub threads: usize,
    /// The unit of `value`.
    pub unit: &'static str,
    /// What the workload counts; none where the engine offers nothing or all rounds failed.
    pub value: Option<Spread>,
    /// Median of this engine over the median of esker.
    pub engine_over_esker: Option<f64>,
    /// Median of esker over the median of this engine.
    pub esker_over_engine: Option<f64>,
    /// The worst that a put survives.
    pub survives: Option<String>,
    /// Peak resident memory, bytes.
    pub resident_peak: Option<Spread>,
    /// Bytes written.
    pub written: Option<Spread>,
    /// Bytes of the directory afterwards.
    pub directory: Option<Spread>,
    /// Named values, latencies in microseconds among them.
    pub more: Vec<(String, Spread)>,
    /// See [`Outcome::late`]; the worst round.
    pub late: f64,
    /// What went wrong in each round that failed.
    pub errors: Vec<String>,
}

/// One summary per engine, workload and number of threads, in the order of the command line.
///
/// # Errors
///
/// When a cell is of no known workload.
pub fn summarise(options: &Compare, cells: &[Cell]) -> Result<Vec<Summary>> {
    let mut keys: Vec<(&str, usize)> = Vec::new();
    for cell in cells {
        let key = (cell.workload.as_str(), cell.threads);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let mut summaries = Vec::new();
    for (name, threads) in keys {
        let workload = workload(name)?;
        let mut group: Vec<Summary> = options
            .engines
            .iter()
            .map(|engine| {
                let of_this = |cell: &&Cell| {
                    cell.workload == name && cell.threads == threads && cell.engine == *engine
                };
                let cells: Vec<&Cell> = cells.iter().filter(of_this).collect();
                summary(engine, &workload, threads, &cells)
            })
            .collect();
        let base = group.iter().find(|s| s.engine == BASE).and_then(|s| s.value);
        for summary in &mut group {
            if let Some((base, value)) = base.zip(summary.value) {
                summary.engine_over_esker = Some(value.median / base.median);
                summary.esker_over_engine = Some(base.median / value.median);
            }
        }
        summaries.extend(group);
    }
    Ok(summaries)
}

fn summary(engine: &str, workload: &Workload, threads: usize, cells: &[&Cell]) -> Summary {
    let outcomes: Vec<&Outcome> = cells.iter().filter_map(|cell| cell.outcome.as_ref()).collect();
    let spread = |of: fn(&Outcome) -> f64| {
        Spread::of(outcomes.iter().filter(|outcome| outcome.value.is_some()).map(|o| of(o)))
    };
    let mut names: Vec<String> = Vec::new();
    let named: Vec<Vec<(String, f64)>> =
        outcomes.iter().map(|outcome| all_named(outcome)).collect();
    for (name, _) in named.iter().flatten() {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let more = names.into_iter().filter_map(|name| {
        let values = named.iter().flatten().filter(|(other, _)| *other == name);
        let spread = Spread::of(values.map(|&(_, value)| value))?;
        Some((name, spread))
    });
    Summary {
        engine: engine.to_owned(),
        workload: workload.name.to_owned(),
        threads,
        unit: workload.metric.unit,
        value: Spread::of(outcomes.iter().filter_map(|outcome| outcome.value)),
        engine_over_esker: None,
        esker_over_engine: None,
        survives: outcomes.iter().find_map(|outcome| outcome.survives).map(|s| s.to_string()),
        resident_peak: spread(|outcome| outcome.resident_peak as f64),
        written: spread(|outcome| outcome.written as f64),
        directory: spread(|outcome| outcome.directory as f64),
        more: more.collect(),
        late: outcomes.iter().map(|outcome| outcome.late).fold(0.0, f64::max),
        errors: cells.iter().filter_map(|cell| cell.error.clone()).collect(),
    }
}

fn all_named(outcome: &Outcome) -> Vec<(String, f64)> {
    let latency = outcome.latency.iter().flat_map(Quantiles::named);
    let latency = latency.map(|(name, value)| (format!("{name} µs"), value));
    let more = outcome.more.iter().map(|(name, &value)| (name.clone(), value));
    latency.chain(more).collect()
}

/// The tables, as Markdown.
///
/// # Errors
///
/// When a summary is of no known workload.
pub fn tables(summaries: &[Summary]) -> Result<String> {
    let mut main = Table::new(&[
        "workload",
        "threads",
        "engine",
        "a put survives",
        "unit",
        "median",
        "min..max",
        "engine/esker",
        "esker/engine",
        "peak resident",
        "written",
        "on disk",
    ]);
    let mut more = String::new();
    let mut errors = String::new();
    for summary in summaries {
        main.row(row(summary));
        let Summary { engine, workload, threads, .. } = summary;
        if !summary.more.is_empty() {
            let named = summary.more.iter().map(|(name, spread)| named(name, spread));
            let named: Vec<String> = named.collect();
            writeln!(more, "- {workload}, {threads} threads, {engine}: {}", named.join("; "))?;
        }
        if summary.late > LATE_MAX {
            let late = number(summary.late);
            writeln!(
                errors,
                "- {workload}, {threads} threads, {engine}: stood still for {late} s"
            )?;
        }
        for error in &summary.errors {
            writeln!(errors, "- FAILED {workload}, {threads} threads, {engine}: {error}")?;
        }
    }
    Ok(format!("{main}\nMedians (min..max) of the rest:\n\n{more}\n{errors}"))
}

fn row(summary: &Summary) -> Vec<String> {
    let ratio = |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
    let bytes = |spread: Option<Spread>| {
        spread.map_or_else(String::new, |spread| mebibytes(spread.median as u64))
    };
    let (median, range) = match (summary.value, summary.errors.is_empty()) {
        (Some(value), _) => {
            (number(value.median), format!("{}..{}", number(value.min), number(value.max)))
        }
        (None, true) => ("not offered".to_owned(), String::new()),
        (None, false) => ("failed".to_owned(), String::new()),
    };
    vec![
        summary.workload.clone(),
        summary.threads.to_string(),
        summary.engine.clone(),
        summary.survives.clone().unwrap_or_default(),
        summary.unit.to_owned(),
        median,
        range,
        ratio(summary.engine_over_esker),
        ratio(summary.esker_over_engine),
        bytes(summary.resident_peak),
        bytes(summary.written),
        bytes(summary.directory),
    ]
}

fn named(name: &str, spread: &Spread) -> String {
    let Spread { median, min, max } = spread;
    let (median, min, max) = (number(*median), number(*min), number(*max));
    // The unit is the last word of the name.
    let (name, unit) = name.rsplit_once(' ').unwrap_or((name, ""));
    format!("{name} {median} {unit} ({min}..{max})")
}

/// Three digits at least: `1234567`, `12.3`, `0.00123`.
pub fn number(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        magnitude if magnitude >= 1.0 => format!("{value:.2}"),
        magnitude if magnitude >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.5}"),
    }
}

/// Everything, for programs.
///
/// # Errors
///
/// When it cannot be encoded.
pub fn json(options: &Compare, cells: &[Cell], summaries: &[Summary]) -> Result<String> {
    Ok(serde_json::to_string_pretty(&serde_json::json!({
        "machine": machine::describe(),
        "arguments": options,
        "summaries": summaries,
        "cells": cells,
    }))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_the_spread_at_the_ends() {
        assert_eq!(Spread::of([]), None);
        let odd = Spread { median: 2.0, min: 1.0, max: 9.0 };
        assert_eq!(Spread::of([9.0, 1.0, 2.0]), Some(odd));
        let even = Spread { median: 3.0, min: 1.0, max: 9.0 };
        assert_eq!(Spread::of([9.0, 1.0, 2.0, 4.0]), Some(even));
    }

    #[test]
    fn numbers_keep_three_digits() {
        let numbers = [1_234_567.0, 12.34, 1.234, 0.1234, 0.0].map(number);
        assert_eq!(numbers, ["1234567", "12.3", "1.23", "0.123", "0"]);
    }
}
