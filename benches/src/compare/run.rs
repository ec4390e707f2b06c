//! The order of measurements, and where each finds its data.
//!
//! What must stay true: within a round engines take turns, and who is first changes from round to
//! round; a database that a failed child may have touched is not used again; nothing is left on
//! disk, unless the program is interrupted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::Result;
use crate::compare::cell::Outcome;
use crate::compare::options::{Compare, Spec};
use crate::compare::workloads::{PREPARE, Start, Workload, workload};
use crate::compare::{child, files};
use crate::peers;

/// What became of one measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// The engine.
    pub engine: String,
    /// The workload.
    pub workload: String,
    /// Threads.
    pub threads: usize,
    /// The repetition, from 0.
    pub round: u64,
    /// What it found.
    pub outcome: Option<Outcome>,
    /// Why it failed.
    pub error: Option<String>,
}

/// A run: its arguments, and the directories it has made.
struct Run<'a> {
    options: &'a Compare,
    dir: &'a Path,
    loaded: BTreeMap<String, PathBuf>,
}

/// Measures everything.
///
/// # Errors
///
/// When the arguments are wrong or there is no room for directories. A measurement that fails is a
/// cell with an error.
pub fn run(options: &Compare) -> Result<Vec<Cell>> {
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    fs::create_dir_all(&parent)?;
    let dir = tempfile::Builder::new().prefix("esker-bench-").tempdir_in(&parent)?;
    let workloads: Vec<Workload> =
        options.workloads.iter().map(|name| workload(name)).collect::<Result<_>>()?;
    for name in &options.engines {
        peers::engine(name)?;
    }
    if options.threads.contains(&0) || options.entries == 0 || options.value_bytes == 0 {
        return Err("threads, entries and value bytes are at least 1".into());
    }
    let mut run = Run { options, dir: dir.path(), loaded: BTreeMap::new() };
    let mut cells = Vec::new();
    for workload in &workloads {
        let threads = if workload.threaded { options.threads.as_slice() } else { &[1] };
        for &threads in threads {
            for round in 0..options.rounds {
                for turn in 0..options.engines.len() {
                    let turn = (turn + round as usize) % options.engines.len();
                    let engine = &options.engines[turn];
                    cells.push(run.cell(engine, workload, threads, round));
                }
            }
        }
    }
    Ok(cells)
}

impl Run<'_> {
    fn cell(&mut self, engine: &str, workload: &Workload, threads: usize, round: u64) -> Cell {
        let result = self.measure(engine, workload, threads, round);
        if result.is_err() {
            self.forget(engine);
        }
        let what = format!("{:12} {engine:8} threads {threads:2} round {round}", workload.name);
        let unit = workload.metric.unit;
        match &result {
            Ok(Outcome { value: Some(value), seconds, .. }) => {
                eprintln!("{what}  {value:14.3} {unit}, {seconds:.2} s");
            }
            Ok(_) => eprintln!("{what}  not offered"),
            Err(error) => eprintln!("{what}  FAILED: {error}"),
        }
        let (outcome, error) = match result {
            Ok(outcome) => (Some(outcome), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let (engine, workload) = (engine.to_owned(), workload.name.to_owned());
        Cell { engine, workload, threads, round, outcome, error }
    }

    fn measure(
        &mut self,
        engine: &str,
        workload: &Workload,
        threads: usize,
        round: u64,
    ) -> Result<Outcome> {
        let loaded = match workload.start {
            Start::Empty => None,
            Start::Loaded | Start::Copied => Some(self.loaded(engine)?),
        };
        let dir = tempfile::tempdir_in(self.dir)?;
        let database = match (loaded, workload.start) {
            (Some(loaded), Start::Loaded) => loaded,
            (Some(loaded), _) => {
                let copy = dir.path().join("database");
                fs::create_dir(&copy)?;
                files::copy_directory(&loaded, &copy)?;
                copy
            }
            (None, _) => dir.path().join("database"),
        };
        // Or a measurement would pay for what came before it.
        files::sync_filesystem(self.dir)?;
        self.child(engine, workload, (threads, round), database, dir.path())
    }

    /// The database of an engine that other workloads begin with.
    fn loaded(&mut self, engine: &str) -> Result<PathBuf> {
        if let Some(path) = self.loaded.get(engine) {
            return Ok(path.clone());
        }
        let path = self.dir.join(format!("loaded-{engine}"));
        let dir = tempfile::tempdir_in(self.dir)?;
        match self.child(engine, &PREPARE, (1, 0), path.clone(), dir.path()) {
            Ok(outcome) => {
                let (seconds, mib) = (outcome.seconds, outcome.directory >> 20);
                eprintln!("{engine} loaded and settled in {seconds:.1} s, {mib} MiB");
                self.loaded.insert(engine.to_owned(), path.clone());
                Ok(path)
            }
            Err(error) => {
                _ = fs::remove_dir_all(&path);
                Err(format!("the load before it: {error}").into())
            }
        }
    }

    fn forget(&mut self, engine: &str) {
        if let Some(path) = self.loaded.remove(engine) {
            // A leftover is removed with the directory of the run.
            _ = fs::remove_dir_all(path);
        }
    }

    fn child(
        &self,
        engine: &str,
        workload: &Workload,
        (threads, round): (usize, u64),
        database: PathBuf,
        dir: &Path,
    ) -> Result<Outcome> {
        let options = self.options;
        let scratch = dir.join("scratch");
        fs::create_dir(&scratch)?;
        let spec = Spec {
            engine: engine.to_owned(),
            workload: workload.name.to_owned(),
            threads,
            round,
            entries: options.entries,
            value_bytes: options.value_bytes,
            seconds: options.seconds,
            fill_seconds: options.fill_seconds,
            cache_bytes: options.cache_mib << 20,
            buffer_bytes: options.buffer_mib << 20,
            checkpoint_every_ms: options.checkpoint_every_ms,
            gib: options.gib.clone(),
            quantiles: options.quantiles,
            database,
            scratch,
        };
        child::measure(&spec, dir, Duration::from_secs(options.limit_seconds))
    }
}
