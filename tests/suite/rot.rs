//! Rot: every byte of a small keyspace flipped in turn, files cut, swapped, replaced and removed.
//!
//! Three images: a keyspace that was closed, one that crashed with several journal segments, and a
//! checkpoint. After each change `verify` must report it, and an open must refuse with the damaged
//! file named, or show content that is provably right: the whole, or, where only bytes behind the
//! last point that is proven durable were hit, the commits before the damage.
//!
//! Undetectable by nature, and therefore not demanded below:
//! - LOCK has no bytes.
//! - The last frames of the active segment with nothing behind them that says they were durable: a
//!   flip there is reported, but as a torn tail, and the commits from there on are gone. An active
//!   segment cut off exactly between two such frames looks like one that was never written further.
//! - The number of zeros behind the last frame: a preallocated tail may have any length.
//! - A broken seal with a segment behind it that continues: reported as a torn tail, nothing is lost.
//!
//! Found by `verify` and not by an open, which does not read whole tables: two tables of the same
//! number swapped between two partitions, and damage in a block that nobody reads.
//!
//! The sweep runs in a child process with its temporary directory in memory, because each of some
//! ten thousand opens makes a private view.

mod damage;
mod flips;
mod image;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use esker_tests::chaos;

use flips::Findings;
use image::{KINDS, before_the_last_run, make};

const DIR: &str = "ESKER_TEST_ROT";
const KIND: &str = "ESKER_TEST_ROT_IMAGE";
const FROM: &str = "ESKER_TEST_ROT_FROM";
const FINDINGS: &str = "findings";
const PROGRESS: &str = "progress";

/// Runs `test` again for one image, with its temporary files in memory, and again from behind the
/// place when the process dies of the damage; returns what it printed and what was found.
fn in_children(test: &str, kind: &str) -> (String, String) {
    let scratch = chaos::memory_dir();
    let mut from = 1;
    loop {
        let work = scratch.path().join(format!("from-{from}"));
        fs::create_dir(&work).unwrap();
        let mut child = chaos::rerun(&format!("rot::{test}"));
        child.env(DIR, scratch.path()).env(KIND, kind).env(FROM, from.to_string());
        let output = child.env("TMPDIR", &work).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            return (text, Findings::summary(scratch.path()));
        }
        assert!(output.status.code().is_none(), "{kind}: {text}");
        let place = fs::read_to_string(scratch.path().join(PROGRESS)).unwrap();
        let place = place.lines().next().unwrap_or_default();
        let cause = text.lines().rev().find(|line| !line.is_empty()).unwrap_or_default();
        let detail = format!("{kind}: {place}: {}: {cause}", output.status);
        Findings::new(scratch.path()).add("the process died", &detail);
        from = place.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap() + 1;
    }
}

/// The directory, image and start of this child process.
fn child() -> Option<(PathBuf, String, u64)> {
    let dir = PathBuf::from(std::env::var_os(DIR)?);
    let (kind, from) = (std::env::var(KIND).unwrap(), std::env::var(FROM).unwrap());
    // lsm-tree panics on some damage, which the engine turns into errors: thousands of times.
    std::panic::set_hook(Box::new(|info| {
        if !QUIET.load(Ordering::Relaxed) {
            eprintln!("{info}");
        }
    }));
    Some((dir, kind, from.parse().unwrap()))
}

static QUIET: AtomicBool = AtomicBool::new(false);

/// Runs `test` for every image in a child process each, two at a time.
fn for_every_image(test: &str) {
    let found = std::thread::scope(|scope| {
        let sweeps = KINDS.map(|kind| scope.spawn(move || in_children(test, kind)));
        sweeps.map(|sweep| sweep.join().unwrap())
    });
    let mut all = String::new();
    for (text, summary) in found {
        text.lines().filter(|line| line.starts_with("rot:")).for_each(|line| eprintln!("{line}"));
        all.push_str(&summary);
    }
    assert!(all.is_empty(), "{all}");
}

#[test]
fn every_flipped_byte_is_reported_and_never_believed() {
    let Some((base, kind, from)) = child() else {
        return for_every_image("every_flipped_byte_is_reported_and_never_believed");
    };
    let work = base.join(format!("images-{from}"));
    fs::create_dir(&work).unwrap();
    let image = make(&kind, &work);
    let began = Instant::now();
    QUIET.store(true, Ordering::Relaxed);
    let flips = image.sweep(&base, from);
    QUIET.store(false, Ordering::Relaxed);
    image.assert_whole();
    eprintln!("rot: {kind}: {flips} flips in {:?}", began.elapsed());
}

#[test]
fn cut_swapped_old_and_missing_files_are_reported_and_never_believed() {
    let Some((base, kind, from)) = child() else {
        return for_every_image(
            "cut_swapped_old_and_missing_files_are_reported_and_never_believed",
        );
    };
    let work = base.join(format!("images-{from}"));
    fs::create_dir(&work).unwrap();
    let image = make(&kind, &work);
    let mut harms = [image.cuts(), image.swaps(), image.removals()].concat();
    if kind == "closed" {
        harms.extend(image.old_copies(&before_the_last_run(&work)));
    }
    let (began, mut findings) = (Instant::now(), Findings::new(&base));
    let progress = fs::File::create(base.join(PROGRESS)).unwrap();
    QUIET.store(true, Ordering::Relaxed);
    for (number, harm) in (1..).zip(&harms).skip(from as usize - 1) {
        progress.write_all_at(format!("{number} {}\n", harm.what).as_bytes(), 0).unwrap();
        image.suffer(harm, &base, &mut findings);
    }
    QUIET.store(false, Ordering::Relaxed);
    image.assert_whole();
    eprintln!("rot: {kind}: {} damaged files in {:?}", harms.len(), began.elapsed());
}
