//! What esker does with a keyspace that nobody has open, beside the plainest way to read or copy
//! the same files. Other engines: not offered.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use esker::{CopyOptions, Transfer, VerifyOptions};

use crate::Result;
use crate::compare::cell::Outcome;
use crate::compare::files;
use crate::compare::options::Spec;

const READ_BYTES: usize = 128 << 10;
const MIB: f64 = 1_048_576.0;

/// `verify` and reading alone, both out of the page cache and from the disk, on as many threads.
///
/// # Errors
///
/// When a call fails or something is damaged.
pub fn verify(spec: &Spec) -> Result<Outcome> {
    if spec.engine != "esker" {
        return Ok(Outcome::default());
    }
    let paths = files::list(&spec.database)?;
    let mut outcome = Outcome::default();
    let mut speed = |cold: bool, hashing: bool| -> Result<f64> {
        if cold {
            files::evict(&paths)?;
        }
        let began = Instant::now();
        let bytes = if hashing { check(spec)? } else { read(&paths, spec.threads)? };
        let seconds = began.elapsed().as_secs_f64();
        outcome.seconds += seconds;
        Ok(bytes as f64 / MIB / seconds)
    };
    // Which one is first changes from round to round. What is warm comes after what is cold.
    let first = spec.round % 2 == 1;
    let mut pair = |cold| -> Result<(f64, f64)> {
        let (a, b) = (speed(cold, first)?, speed(cold, !first)?);
        Ok(if first { (a, b) } else { (b, a) })
    };
    let (cold, warm) = (pair(true)?, pair(false)?);
    outcome.value = Some(warm.0);
    outcome.operations = 2;
    for (name, (verified, read)) in [("cold", cold), ("warm", warm)] {
        outcome.add(format!("{name} verify MiB/s"), verified);
        outcome.add(format!("{name} reading alone MiB/s"), read);
        outcome.add(format!("{name} verify over reading alone ×"), verified / read);
    }
    Ok(outcome)
}

fn check(spec: &Spec) -> Result<u64> {
    let report = esker::verify(&spec.database, VerifyOptions::default().threads(spec.threads))?;
    match report.problems.first() {
        Some(problem) => Err(problem.to_string().into()),
        None => Ok(report.bytes),
    }
}

/// Reads every file and returns the number of bytes.
fn read(paths: &[PathBuf], threads: usize) -> Result<u64> {
    let next = AtomicUsize::new(0);
    let reader = || -> Result<u64> {
        let (mut buffer, mut bytes) = (vec![0; READ_BYTES], 0);
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut file = File::open(path)?;
            loop {
                let count = file.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                bytes += count as u64;
            }
        }
        Ok(bytes)
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..threads).map(|_| scope.spawn(reader)).collect();
        let join = |reader: thread::ScopedJoinHandle<'_, Result<u64>>| {
            reader.join().map_err(|_| "a reader panicked")?
        };
        readers.into_iter().map(join).sum()
    })
}

/// `cold_copy` as it goes by itself (links first) and copying every byte, `cp -r --reflink=auto`,
/// and the same with a sync, which `cold_copy` includes.
///
/// # Errors
///
/// When a call fails.
pub fn cold_copy(spec: &Spec) -> Result<Outcome> {
    if spec.engine != "esker" {
        return Ok(Outcome::default());
    }
    let target = spec.scratch.join("copy");
    let time = |copy: &dyn Fn() -> Result<()>| -> Result<f64> {
        files::sync_filesystem(&spec.scratch)?;
        let began = Instant::now();
        copy()?;
        let seconds = began.elapsed().as_secs_f64();
        fs::remove_dir_all(&target)?;
        Ok(seconds)
    };
    let esker = |transfer: Transfer| {
        let options = CopyOptions::default().transfer(transfer);
        esker::cold_copy(&spec.database, &target, options)?;
        Ok(())
    };
    let automatic = time(&|| esker(Transfer::Auto))?;
    let mut outcome =
        Outcome { value: Some(automatic), seconds: automatic, operations: 1, ..Outcome::default() };
    outcome.add("copying every byte s", time(&|| esker(Transfer::Copy))?);
    outcome.add("cp s", time(&|| cp(&spec.database, &target))?);
    let synced = time(&|| {
        cp(&spec.database, &target)?;
        files::sync_filesystem(&target)
    })?;
    outcome.add("cp and syncfs s", synced);
    Ok(outcome)
}

fn cp(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").args(["-r", "--reflink=auto"]).arg(from).arg(to).status()?;
    if status.success() { Ok(()) } else { Err(format!("cp: {status}").into()) }
}
