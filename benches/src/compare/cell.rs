//! One measurement, in a process of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::compare::options::Spec;
use crate::compare::workloads::{Kind, Workload, workload};
use crate::compare::{checkpoints, copies, files, opening, operations};
use crate::histogram::Histogram;
use crate::peers::{self, Peer, Settings, Survives};
use crate::{Result, machine};

/// What a measurement found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// What the workload counts. None: the engine offers nothing of the kind.
    pub value: Option<f64>,
    /// Operations done.
    pub operations: u64,
    /// In so many seconds.
    pub seconds: f64,
    /// What a put survives.
    pub survives: Option<Survives>,
    /// Latency of operations, where they were timed.
    pub latency: Option<Quantiles>,
    /// Anything else, by name, its unit last.
    pub more: BTreeMap<String, f64>,
    /// Slowest write of each 10 ms: seconds since the begin, microseconds.
    pub timeline: Vec<(f64, f64)>,
    /// Copies that were taken meanwhile: seconds from, seconds to.
    pub copies: Vec<(f64, f64)>,
    /// How late a thread that only sleeps woke up at worst, in seconds: so long the machine may have
    /// stood still, whatever the engine did.
    pub late: f64,
    /// The most resident memory of the process, in bytes.
    pub resident_peak: u64,
    /// Bytes that it caused to be written, to the end of a clean close. A workload leaves here what
    /// does not count.
    pub written: u64,
    /// Bytes that the directory of the database occupies after that.
    pub directory: u64,
}

/// Quantiles of a latency, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Quantiles {
    /// 50%.
    pub p50: f64,
    /// 99%.
    pub p99: f64,
    /// 99.9%.
    pub p999: f64,
    /// 99.99%.
    pub p9999: f64,
    /// The longest.
    pub max: f64,
}

impl Quantiles {
    /// Those of a histogram; none of an empty one.
    pub fn of(histogram: &Histogram) -> Option<Self> {
        let micros = |duration: Duration| duration.as_nanos() as f64 / 1e3;
        let at = |quantile| micros(histogram.quantile(quantile));
        (!histogram.is_empty()).then(|| Self {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: micros(histogram.max()),
        })
    }

    /// The same by name.
    pub fn named(&self) -> [(&'static str, f64); 5] {
        let Self { p50, p99, p999, p9999, max } = *self;
        [("p50", p50), ("p99", p99), ("p99.9", p999), ("p99.99", p9999), ("max", max)]
    }
}

impl Outcome {
    /// Adds a named value.
    pub fn add(&mut self, name: impl Into<String>, value: f64) {
        self.more.insert(name.into(), value);
    }
}

impl Spec {
    /// What the engine is opened with.
    pub fn settings(&self, workload: &Workload) -> Settings {
        Settings {
            cache_bytes: self.cache_bytes,
            buffer_bytes: self.buffer_bytes,
            durability: workload.durability,
            value_bytes: self.value_bytes,
            threads: self.threads,
        }
    }

    /// Opens the database.
    ///
    /// # Errors
    ///
    /// What the engine returns.
    pub fn open(&self, workload: &Workload) -> Result<Box<dyn Peer>> {
        peers::engine(&self.engine)?.open(&self.database, &self.settings(workload))
    }
}

/// Runs the measurement in this process.
///
/// # Errors
///
/// What the engine returns; also when a read missed that must not, or the reverse.
pub fn run(spec: &Spec) -> Result<Outcome> {
    let workload = workload(&spec.workload)?;
    let written = written_bytes()?;
    let heartbeat = Heartbeat::start();
    let mut outcome = match workload.kind {
        Kind::Prepare => operations::prepare(spec, &workload)?,
        Kind::Ingest => operations::ingest(spec, &workload)?,
        Kind::OpenClean | Kind::OpenKill => opening::run(spec, &workload)?,
        Kind::Checkpoint(_) | Kind::Timeline => checkpoints::under_load(spec, &workload)?,
        Kind::Growing => checkpoints::growing(spec, &workload)?,
        Kind::Verify => copies::verify(spec)?,
        Kind::ColdCopy => copies::cold_copy(spec)?,
        _ => operations::run(spec, &workload)?,
    };
    outcome.late = heartbeat.stop()?.as_secs_f64();
    outcome.resident_peak = machine::resident_peak()?;
    outcome.written = written_bytes()? - written - outcome.written;
    outcome.directory = files::occupied(&spec.database)?;
    Ok(outcome)
}

/// A thread that sleeps again and again, and tells when it was woken late.
struct Heartbeat {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Heartbeat {
    const EVERY: Duration = Duration::from_millis(20);

    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let beat = move || {
            let mut late = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(Self::EVERY);
                late = late.max(began.elapsed().saturating_sub(Self::EVERY));
            }
            late
        };
        Self { stop, thread: thread::spawn(beat) }
    }

    fn stop(self) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| "the heartbeat panicked")?)
    }
}

/// Bytes that this process caused to be written so far: `write_bytes` of /proc/self/io, which
/// counts pages when they become dirty.
///
/// # Errors
///
/// Where /proc does not say.
pub fn written_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.ok_or("/proc/self/io has no write_bytes")?.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::workloads::{PREPARE, Start, WORKLOADS};
    use crate::peers::{ENGINES, Engine};

    fn spec(engine: &Engine, workload: &Workload, dir: &std::path::Path) -> Spec {
        Spec {
            engine: engine.name.to_owned(),
            workload: workload.name.to_owned(),
            threads: 2,
            round: 1,
            entries: 2_000,
            value_bytes: 100,
            seconds: 0.05,
            fill_seconds: 10.0,
            cache_bytes: 8 << 20,
            buffer_bytes: 256 << 20,
            checkpoint_every_ms: 20,
            gib: vec![0.000_5, 0.001],
            quantiles: true,
            database: dir.join("database"),
            scratch: dir.to_path_buf(),
        }
    }

    #[test]
    fn every_workload_runs_on_every_engine_of_this_build() {
        for engine in ENGINES {
            for workload in WORKLOADS {
                // Needs the program, to kill one.
                if workload.kind == Kind::OpenKill {
                    continue;
                }
                let dir = tempfile::tempdir().unwrap();
                let spec = spec(engine, workload, dir.path());
                let what = format!("{} on {}", workload.name, engine.name);
                if workload.start != Start::Empty {
                    run(&Spec { workload: PREPARE.name.to_owned(), ..spec.clone() }).unwrap();
                }
                let outcome = run(&spec).unwrap_or_else(|error| panic!("{what}: {error}"));
                let Some(value) = outcome.value else { continue };
                assert!(value.is_finite() && value > 0.0, "{what}: {value}");
                assert!(outcome.operations > 0, "{what}: nothing was done");
            }
        }
    }
}
