//! Beside `cp`: a push to a local directory and a restore from there, against copying the files.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use esker_bench::Result;
use esker_bench::compare::files;
use esker_bench::table::{Table, mebibytes};

use crate::cell::{Spec, Task, measure};
use crate::data::{Made, Shape};

/// `cp` and the archive in turn, so many rounds; medians, and the best of each: a virtual machine that
/// gives its memory back to its host is slow with what it has to get again, at random.
pub fn run(parent: &Path, mib: u64, rounds: usize) -> Result<()> {
    let mut table = Table::new(&[
        "files",
        "`cp -r`, MiB/s",
        "`cp -r`, then `syncfs`",
        "push",
        "restore",
        "push / cp + sync",
        "restore / cp + sync",
        "restore / cp",
        "peak resident, push and restore",
    ]);
    for shape in Shape::ALL {
        let dir = tempfile::tempdir_in(parent)?;
        let made = shape.make(dir.path(), mib << 20)?;
        let (mut cps, mut synced, mut pushes, mut restores) = (vec![], vec![], vec![], vec![]);
        let (mut push_peak, mut restore_peak) = (0, 0);
        for _ in 0..rounds {
            let scratch = tempfile::tempdir_in(dir.path())?;
            warm(&made, scratch.path())?;
            let (cp, with_sync) = copy(&made, &scratch.path().join("copy"))?;
            cps.push(cp);
            synced.push(with_sync);
            std::fs::remove_dir_all(scratch.path().join("copy"))?;
            let location = scratch.path().join("repository").display().to_string();
            let task = Task::Push { checkpoint: made.checkpoint.clone() };
            warm(&made, scratch.path())?;
            let push = measure(&Spec { location: location.clone(), task }, &[])?;
            pushes.push(push.mib_per_second());
            push_peak = push_peak.max(push.resident_peak);
            let task = Task::Restore {
                target: scratch.path().join("restored"),
                workers: std::thread::available_parallelism()?.get(),
                chunk_bytes: 32 << 20,
                buffer_bytes: None,
            };
            warm(&made, scratch.path())?;
            let restore = measure(&Spec { location, task }, &[])?;
            restores.push(restore.mib_per_second());
            restore_peak = restore_peak.max(restore.resident_peak);
            drop(scratch);
            files::sync_filesystem(dir.path())?;
        }
        for (which, of) in [("median", median as fn(&[f64]) -> f64), ("best", best)] {
            let [cp, with_sync, push, restore] =
                [&cps, &synced, &pushes, &restores].map(|values| of(values));
            table.row([
                format!("{} ({}), {which}", made.files, mebibytes(made.bytes)),
                format!("{cp:.0}"),
                format!("{with_sync:.0}"),
                format!("{push:.0}"),
                format!("{restore:.0}"),
                format!("{:.2}", push / with_sync),
                format!("{:.2}", restore / with_sync),
                format!("{:.2}", restore / cp),
                format!("{}, {}", mebibytes(push_peak), mebibytes(restore_peak)),
            ]);
        }
    }
    println!("{table}");
    Ok(())
}

/// Leaves as much memory just freed as the next step takes: a virtual machine is slow with memory that it
/// has not used for a while.
fn warm(made: &Made, scratch: &Path) -> Result<()> {
    let to = scratch.join("warm");
    copy(made, &to)?;
    Ok(std::fs::remove_dir_all(to)?)
}

/// MiB in a second, without and with the time until everything is on the disk.
fn copy(made: &Made, to: &Path) -> Result<(f64, f64)> {
    let began = Instant::now();
    let status = Command::new("cp").arg("-r").args([&made.checkpoint, to]).status()?;
    if !status.success() {
        return Err(format!("cp failed: {status}").into());
    }
    let copied = began.elapsed().as_secs_f64();
    files::sync_filesystem(to)?;
    let synced = began.elapsed().as_secs_f64();
    let mib = made.bytes as f64 / f64::from(1 << 20);
    Ok((mib / copied, mib / synced))
}

/// The middle one.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The largest.
fn best(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}
