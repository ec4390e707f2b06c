//! Checkpoints under load hold exactly the commits up to their sequence number.
//!
//! Every commit has a number of its own and everything that commits writes its number down: writers
//! from what `commit` returns; the thread that creates, clears and drops partitions from the one
//! number that no writer has between the newest commit before its call and after it. The model at a
//! checkpoint is the replay of that log, in which no number may be missing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use esker::planted::{Bug, plant};
use esker::{
    CheckpointReport, Compression, Config, CopyOptions, Durability, Error, ErrorKind, Keyspace,
    PartitionOptions, Transfer, VerifyOptions, cold_copy, verify,
};
use esker_tests::chaos::{self, Model, Rng};

const WRITERS: u64 = 3;
/// The first two stay for the whole run, the others come and go.
const NAMES: [&str; 5] = ["alpha", "beta", "gamma", "delta", "epsilon"];
const KEYS: u64 = 60;
const ROUNDS: u64 = 150;
/// The planted bug must be found within so many checkpoints.
const ROUNDS_PLANTED: u64 = 3000;
const PATIENCE: Duration = Duration::from_secs(30);

const CHILD: &str = "ESKER_TEST_EXACTNESS";
const PLANTED: &str = "ESKER_TEST_PLANTED";
const FOUND: &str = "MISMATCH";

enum Event {
    Batch(Vec<(usize, Vec<u8>, Option<Vec<u8>>)>),
    Create(usize),
    Clear(usize),
    Drop(usize),
}

struct Run {
    keyspace: Keyspace,
    log: Mutex<BTreeMap<u64, Arc<Event>>>,
    /// Entries from here on stay in the log: a change of the partitions is looking for its number.
    keep_from: AtomicU64,
    stop: AtomicBool,
}

fn config(path: &Path) -> Config {
    Config::new(path)
        .memtable_bytes(4 << 10)
        .write_buffer_bytes_max(64 << 10)
        .journal_segment_bytes(8 << 10)
        .journal_bytes_max(64 << 10)
        .cache_bytes(1 << 20)
        .worker_threads(2)
        .defer_after_changes(0)
}

fn options(name: usize) -> PartitionOptions {
    let options = PartitionOptions::default().block_bytes(512).table_bytes(4 << 10).l0_runs(2);
    match name {
        1 | 3 => options.separate_values_from(Some(200)).compression(Compression::None),
        2 => options.filter_bits_per_key(0.0),
        _ => options,
    }
}

/// Ends the other threads when a check fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Run {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn note(&self, seqno: u64, event: Event) {
        let before = self.log.lock().unwrap().insert(seqno, Arc::new(event));
        assert!(before.is_none(), "commit {seqno} was given out twice");
    }

    /// Batches across partitions, with overwrites and removes.
    fn write(&self, mut rng: Rng, writer: u64) {
        let _stop = StopOnDrop(&self.stop);
        let mut count = 0u64;
        while !self.stopped() {
            count += 1;
            let mut batch = self.keyspace.batch();
            let mut changes = Vec::new();
            for _ in 0..1 + rng.below(6) {
                let name = rng.below(NAMES.len() as u64) as usize;
                let Some(partition) = self.keyspace.open_partition(NAMES[name]).unwrap() else {
                    continue;
                };
                let key = format!("key-{:03}", rng.below(KEYS)).into_bytes();
                if rng.one_in(4) {
                    batch.remove(&partition, key.clone());
                    changes.push((name, key, None));
                } else {
                    let mut value = format!("{writer}/{count} ").into_bytes();
                    let len = if rng.one_in(5) { 200 + rng.below(400) } else { rng.below(60) };
                    value.extend(rng.bytes(len as usize));
                    batch.insert(&partition, key.clone(), value.clone());
                    changes.push((name, key, Some(value)));
                }
            }
            if changes.is_empty() {
                continue;
            }
            if rng.one_in(50) {
                batch.durability(Durability::SyncData);
            }
            match batch.commit() {
                Ok(seqno) => self.note(seqno, Event::Batch(changes)),
                // Dropped between the lookup and the commit: nothing of the batch was written.
                Err(Error::PartitionDropped { .. }) => {}
                Err(error) => panic!("a commit failed: {error}"),
            }
            if rng.one_in(8) {
                std::thread::sleep(Duration::from_micros(rng.below(400)));
            }
        }
    }

    /// Creates, clears and drops partitions, one at a time.
    fn restructure(&self, mut rng: Rng) {
        let _stop = StopOnDrop(&self.stop);
        while !self.stopped() {
            std::thread::sleep(Duration::from_micros(rng.below(8000)));
            let name = rng.below(NAMES.len() as u64) as usize;
            let before = {
                let _no_forgetting = self.log.lock().unwrap();
                let before = self.keyspace.seqno();
                self.keep_from.store(before + 1, Ordering::Release);
                before
            };
            let event = match self.keyspace.open_partition(NAMES[name]).unwrap() {
                None => {
                    self.keyspace.partition(NAMES[name], options(name)).unwrap();
                    Event::Create(name)
                }
                Some(_) if name >= 2 && rng.one_in(2) => {
                    assert!(self.keyspace.drop_partition(NAMES[name]).unwrap());
                    Event::Drop(name)
                }
                Some(partition) => {
                    partition.clear().unwrap();
                    Event::Clear(name)
                }
            };
            self.place(before + 1..self.keyspace.seqno() + 1, event);
        }
    }

    /// Notes the event under the one number in the range that no writer got.
    fn place(&self, range: Range<u64>, event: Event) {
        let patience = Instant::now() + PATIENCE;
        loop {
            let log = self.log.lock().unwrap();
            let free: Vec<u64> = range.clone().filter(|seqno| !log.contains_key(seqno)).collect();
            drop(log);
            match free[..] {
                [seqno] => {
                    self.note(seqno, event);
                    return self.keep_from.store(u64::MAX, Ordering::Release);
                }
                [] => panic!("no commit is left for a change of the partitions in {range:?}"),
                _ => {}
            }
            assert!(
                Instant::now() < patience,
                "nobody owns all but one of the commits {free:?}: {:?}",
                self.keyspace.statistics()
            );
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Flushes and compacts. With `pressure` a flush is under way nearly all the time.
    fn churn(&self, mut rng: Rng, pressure: bool) {
        let _stop = StopOnDrop(&self.stop);
        while !self.stopped() {
            let name = NAMES[rng.below(NAMES.len() as u64) as usize];
            let compact = rng.one_in(if pressure { 20 } else { 4 });
            let partition = self.keyspace.open_partition(name).unwrap();
            match partition {
                Some(partition) if compact => match partition.compact() {
                    // Dropped since it was looked up.
                    Ok(()) | Err(Error::PartitionDropped { .. }) => {}
                    Err(error) => panic!("a compaction failed: {error}"),
                },
                _ => self.keyspace.flush().unwrap(),
            }
            let pause = if pressure { 300 } else { 6000 };
            std::thread::sleep(Duration::from_micros(rng.below(pause)));
        }
    }
}

/// The model, advanced commit by commit.
#[derive(Default)]
struct Replay {
    seqno: u64,
    live: BTreeMap<usize, BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Replay {
    fn advance(&mut self, run: &Run, seqno: u64) {
        let patience = Instant::now() + PATIENCE;
        while self.seqno < seqno {
            let event = run.log.lock().unwrap().get(&(self.seqno + 1)).cloned();
            let Some(event) = event else {
                assert!(!run.stopped(), "another thread failed");
                assert!(
                    Instant::now() < patience,
                    "commit {} of {seqno} belongs to nobody",
                    self.seqno + 1
                );
                std::thread::sleep(Duration::from_micros(100));
                continue;
            };
            self.seqno += 1;
            self.apply(&event);
        }
        let mut log = run.log.lock().unwrap();
        let keep = run.keep_from.load(Ordering::Acquire).min(self.seqno + 1);
        *log = log.split_off(&keep);
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Create(name) => assert!(self.live.insert(*name, BTreeMap::new()).is_none()),
            Event::Drop(name) => assert!(self.live.remove(name).is_some()),
            Event::Clear(name) => self.live.get_mut(name).expect("a live partition").clear(),
            Event::Batch(changes) => {
                for (name, key, value) in changes {
                    let entries = self.live.get_mut(name).expect("a live partition");
                    match value {
                        Some(value) => entries.insert(key.clone(), value.clone()),
                        None => entries.remove(key),
                    };
                }
            }
        }
    }

    fn model(&self, report: &CheckpointReport) -> Model {
        let live = self.live.iter().map(|(&name, entries)| (NAMES[name].to_owned(), entries));
        live.filter(|(name, _)| !report.left_out.contains(name))
            .map(|(name, entries)| (name, entries.clone()))
            .collect()
    }
}

fn compare(what: &str, keyspace: &Keyspace, report: &CheckpointReport, expected: &Model) {
    assert_eq!(keyspace.seqno(), report.seqno, "{what}: the newest commit");
    let found = chaos::content(keyspace).unwrap_or_else(|error| panic!("{what}: {error}"));
    if let Some(difference) = chaos::difference(expected, &found) {
        panic!("{FOUND} in {what} at commit {}: {difference}", report.seqno);
    }
}

/// Takes one checkpoint with random options; `None` when a partition that it names was dropped.
fn take(run: &Run, target: &Path, rng: &mut Rng, plain: bool) -> Option<CheckpointReport> {
    let mut builder = run.keyspace.checkpoint();
    if !plain {
        if rng.one_in(5) {
            builder = builder.exclude([NAMES[rng.below(5) as usize]]);
        } else if rng.one_in(6) {
            builder = builder.include(["alpha", "beta", NAMES[2 + rng.below(3) as usize]]);
        }
        if rng.one_in(6) {
            builder = builder.flush_first(true);
        }
        if rng.one_in(8) {
            builder = builder.transfer(Transfer::Copy);
        }
        builder = builder.verify(rng.one_in(4));
    }
    match builder.write_to(target) {
        Ok(report) => Some(report),
        Err(Error::NoSuchPartition { .. }) => None,
        // A planted bug may also lose the race for the files themselves.
        Err(error) if plain && error.kind() == ErrorKind::Io => None,
        Err(error) => panic!("a checkpoint failed: {error}"),
    }
}

/// Opens one checkpoint in every way and compares.
fn check(target: &Path, report: &CheckpointReport, expected: &Model, number: u64, plain: bool) {
    let names: Vec<String> = expected.keys().cloned().collect();
    assert_eq!(report.partitions, names, "{FOUND} in the partitions at commit {}", report.seqno);
    let read_only = config(target).read_only(true).open();
    let read_only = read_only.unwrap_or_else(|e| panic!("{FOUND}: it does not open: {e}"));
    compare("a read-only open", &read_only, report, expected);
    read_only.close().unwrap();
    if plain {
        return;
    }
    if number.is_multiple_of(3) {
        let verified = verify(target, VerifyOptions::default().threads(1)).unwrap();
        assert!(verified.is_sound(), "{:?}", verified.problems);
        assert_eq!((verified.seqno, &verified.strays[..]), (report.seqno, &[][..]));
    }
    if number.is_multiple_of(5) {
        let copy = target.with_extension("copy");
        cold_copy(target, &copy, CopyOptions::default()).unwrap();
        let opened = config(&copy).open().unwrap();
        compare("a cold copy", &opened, report, expected);
        drop(opened);
        std::fs::remove_dir_all(&copy).unwrap();
    }
    if number.is_multiple_of(7) {
        // An independent reader: the same trees, and none of our code around them.
        let database = target.with_extension("database");
        let found = crate::fjall::exported(target, &database);
        if let Some(difference) = chaos::difference(expected, &found) {
            panic!("{FOUND} in stock fjall at commit {}: {difference}", report.seqno);
        }
        std::fs::remove_dir_all(&database).unwrap();
    }
    if number.is_multiple_of(2) {
        let opened = config(target).open().unwrap();
        compare("a writable open", &opened, report, expected);
        if let Some(name) = names.first() {
            let partition = opened.open_partition(name).unwrap().unwrap();
            partition.insert("zzz", "of the checkpoint").unwrap();
            assert_eq!(opened.seqno(), report.seqno + 1);
        }
        opened.close().unwrap();
        let mut after = expected.clone();
        if let Some(entries) = after.values_mut().next() {
            entries.insert(b"zzz".to_vec(), b"of the checkpoint".to_vec());
        }
        let again = config(target).open().unwrap();
        let found = chaos::content(&again).unwrap();
        assert_eq!(chaos::difference(&after, &found), None, "after a write and a reopen");
    }
}

/// The whole test: `plain` checkpoints only and more flushes when a bug is planted.
fn checkpoints_are_exact(seed: u64, rounds: u64, plain: bool, base: &Path) {
    let mut rng = Rng::new(seed);
    let keyspace = config(&base.join("db")).open().unwrap();
    let run = Run {
        keyspace: keyspace.clone(),
        log: Mutex::default(),
        stop: AtomicBool::new(false),
        keep_from: AtomicU64::new(u64::MAX),
    };
    let mut replay = Replay::default();
    for (at, name) in NAMES[..NAMES.len() - 1].iter().enumerate() {
        keyspace.partition(name, options(at)).unwrap();
        run.note(keyspace.seqno(), Event::Create(at));
    }
    let mut taken = 0;
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&run.stop);
        let run = &run;
        for writer in 0..WRITERS {
            let rng = Rng::new(rng.bits());
            scope.spawn(move || run.write(rng, writer));
        }
        let (restructure, churn) = (Rng::new(rng.bits()), Rng::new(rng.bits()));
        scope.spawn(move || run.restructure(restructure));
        scope.spawn(move || run.churn(churn, plain));
        if plain {
            let churn = Rng::new(rng.bits());
            scope.spawn(move || run.churn(churn, plain));
        }
        for number in 0..rounds {
            let target = base.join(format!("checkpoint-{number}"));
            if !plain {
                std::thread::sleep(Duration::from_micros(rng.below(3000)));
            }
            let Some(report) = take(run, &target, &mut rng, plain) else { continue };
            replay.advance(run, report.seqno);
            check(&target, &report, &replay.model(&report), number, plain);
            std::fs::remove_dir_all(&target).unwrap();
            taken += 1;
        }
    });
    assert!(taken >= rounds / 2, "only {taken} of {rounds} checkpoints were taken");
    let statistics = keyspace.statistics();
    assert!(statistics.flushes > 0 && statistics.compactions > 0, "{statistics:?}");
    keyspace.close().unwrap();
    // What the last checkpoint did not see is there as well.
    let newest = run.log.lock().unwrap().last_key_value().map_or(0, |(&seqno, _)| seqno);
    run.stop.store(false, Ordering::Release);
    replay.advance(&run, newest.max(replay.seqno));
    let reopened = config(&base.join("db")).open().unwrap();
    assert_eq!(reopened.seqno(), replay.seqno);
    let live = replay.live.iter().map(|(&name, e)| (NAMES[name].to_owned(), e.clone()));
    assert_eq!(chaos::difference(&live.collect(), &chaos::content(&reopened).unwrap()), None);
    eprintln!(
        "{taken} checkpoints, {} commits, {} flushes, {} compactions",
        replay.seqno, statistics.flushes, statistics.compactions
    );
}

/// Every check opens private views: in a child process they lie in memory.
fn in_child(name: &str) {
    let child = chaos::rerun(&format!("exactness::{name}")).env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&child.stderr).into_owned();
    assert!(child.status.success(), "{text}");
    eprint!("{text}");
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

#[test]
fn a_checkpoint_under_load_holds_exactly_the_commits_up_to_its_seqno() {
    if !is_child() {
        return in_child("a_checkpoint_under_load_holds_exactly_the_commits_up_to_its_seqno");
    }
    let seed = chaos::seed("exactness");
    let dir = chaos::memory_dir();
    checkpoints_are_exact(seed, chaos::rounds(ROUNDS), false, dir.path());
}

#[test]
fn a_checkpoint_under_load_is_exact_on_a_real_filesystem_too() {
    if !is_child() {
        return in_child("a_checkpoint_under_load_is_exact_on_a_real_filesystem_too");
    }
    let seed = chaos::seed("exactness on disk");
    let dir = chaos::disk_dir();
    checkpoints_are_exact(seed, chaos::rounds(ROUNDS).div_ceil(15), false, dir.path());
}

/// Runs in a child process, because a bug is planted for the whole process.
#[test]
fn with_versions_cloned_after_the_freeze() {
    if std::env::var_os(PLANTED).is_none() {
        return;
    }
    plant(Some(Bug::VersionsClonedAfterTheFreeze));
    let dir = chaos::memory_dir();
    checkpoints_are_exact(chaos::seed("planted"), ROUNDS_PLANTED, true, dir.path());
}

#[test]
fn versions_cloned_after_the_freeze_are_found() {
    let name = "exactness::with_versions_cloned_after_the_freeze";
    let began = Instant::now();
    let output = chaos::rerun(name).env(PLANTED, "1").output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(!output.status.success(), "the planted bug was not found:\n{text}");
    assert!(text.contains(FOUND), "the child failed for another reason:\n{text}");
    let line = text.lines().find(|line| line.contains(FOUND)).unwrap_or_default();
    eprintln!("found after {:?}: {line}", began.elapsed());
}
