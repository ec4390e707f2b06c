//! One push or restore, in a process of its own: how long it takes and how much memory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use esker_archive::{PushOptions, Repository, RestoreOptions};
use esker_bench::{Result, machine};
use serde::{Deserialize, Serialize};

/// What the program is called with to be one.
pub const WORD: &str = "cell";

/// What is measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Where the repository is.
    pub location: String,
    pub task: Task,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Task {
    Push { checkpoint: PathBuf },
    Restore { target: PathBuf, workers: usize, chunk_bytes: u64, buffer_bytes: Option<u64> },
}

/// What came of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub seconds: f64,
    pub raw_bytes: u64,
    /// Sent or fetched.
    pub moved_bytes: u64,
    pub resident_peak: u64,
}

impl Outcome {
    /// Of raw data.
    pub fn mib_per_second(&self) -> f64 {
        self.raw_bytes as f64 / f64::from(1 << 20) / self.seconds
    }
}

/// Measures in a child that sees these environment variables as well.
pub fn measure(spec: &Spec, environment: &[(String, String)]) -> Result<Outcome> {
    let output = Command::new(std::env::current_exe()?)
        .args([WORD, &serde_json::to_string(spec)?])
        .envs(environment.iter().cloned())
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The child.
pub fn run(spec: &str) -> Result<()> {
    let spec: Spec = serde_json::from_str(spec)?;
    machine::forget_peak()?;
    let outcome = match &spec.task {
        Task::Push { checkpoint } => push(&spec.location, checkpoint)?,
        Task::Restore { target, workers, chunk_bytes, buffer_bytes } => {
            let mut options =
                RestoreOptions::default().download_workers(*workers).chunk_bytes(*chunk_bytes);
            if let Some(bytes) = buffer_bytes {
                options = options.buffer_bytes_max(*bytes);
            }
            restore(&spec.location, target, options)?
        }
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

fn push(location: &str, checkpoint: &Path) -> Result<Outcome> {
    let repository = Repository::create(location, Default::default())?;
    let report = repository.push_directory(checkpoint, PushOptions::default())?;
    outcome(report.total, report.raw_bytes, report.sent_bytes)
}

fn restore(location: &str, target: &Path, options: RestoreOptions) -> Result<Outcome> {
    let repository = Repository::open(location, Default::default())?;
    let report = repository.restore(repository.find(None)?, target, options)?;
    outcome(report.total, report.raw_bytes, report.fetched_bytes)
}

fn outcome(total: Duration, raw_bytes: u64, moved_bytes: u64) -> Result<Outcome> {
    let resident_peak = machine::resident_peak()?;
    Ok(Outcome { seconds: total.as_secs_f64(), raw_bytes, moved_bytes, resident_peak })
}
