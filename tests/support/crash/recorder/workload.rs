//! What the real engine does on the recording filesystem.
//!
//! What must stay true: everything that gets a sequence number is noted in the history, and every
//! acknowledgement goes into the record right after the call that gave it. The choices come from the
//! seed; which thread runs when, when background work runs, and the ids that the engine draws at
//! random do not, so two records of one seed differ in the order of some operations.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use esker::{
    CompactionFilter, CompactionFilterFactory, CompactionStrategy, Config, CopyOptions, Durability,
    Error, FilterContext, FilterItem, Keyspace, PartitionOptions, Transfer, Verdict, cold_copy,
};

use super::filesystem::acknowledge;
use super::history::{Ack, Event, History};
use crate::chaos::Rng;
use crate::crash::opened::{self, Edit, Opened};

/// The keyspace in the root of the recording filesystem.
pub const KEYSPACE: &str = "db";
/// The partitions: the first two are never dropped.
pub const NAMES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];
const KEYS: u64 = 40;
/// Keys that begin so are taken away by the filter sooner or later.
pub const FLEETING: &[u8] = b"fleeting";
/// Entries that the filter took away, in all runs.
pub static TAKEN_AWAY: AtomicU64 = AtomicU64::new(0);
/// Compactions of all runs that were seen to rewrite blob files.
pub static BLOBS_REWRITTEN: AtomicU64 = AtomicU64::new(0);

/// Tiny, so that everything rotates, flushes and merges.
pub fn config(path: &Path) -> Config {
    Config::new(path)
        .memtable_bytes(2 << 10)
        .write_buffer_bytes_max(32 << 10)
        .journal_segment_bytes(4 << 10)
        .journal_bytes_max(16 << 10)
        .cache_bytes(1 << 20)
        .worker_threads(2)
        .defer_after_changes(0)
        .compaction_filters(|name| match name {
            "alpha" | "beta" => Some(Arc::new(Same)),
            _ => None,
        })
}

/// Partition `name` separates large values if it is the second one, whose blob files are rewritten as
/// soon as anything in them is stale; the last one is a FIFO that never comes to its limits.
pub fn options(name: &str) -> PartitionOptions {
    let options = PartitionOptions::default().block_bytes(512).table_bytes(4 << 10).l0_runs(2);
    if name == NAMES[3] {
        let (limit_bytes, ttl_secs) = (Some(1 << 40), Some(1 << 30));
        return options.compaction_strategy(CompactionStrategy::Fifo { limit_bytes, ttl_secs });
    }
    options
        .separate_values_from((name == NAMES[1]).then_some(150))
        .blob_staleness_threshold(0.01)
        .blob_age_cutoff(1.0)
}

/// A filter that replaces some values by the same: what it does can be lost, or done twice. It takes
/// entries of some keys away.
struct Same;

impl CompactionFilterFactory for Same {
    fn make_filter(&self, _: &FilterContext) -> Box<dyn CompactionFilter> {
        Box::new(Self)
    }
}

impl CompactionFilter for Same {
    fn filter_item(&mut self, item: &FilterItem<'_>, _: &FilterContext) -> esker::Result<Verdict> {
        if item.key().starts_with(FLEETING) {
            return Ok(Verdict::Remove);
        }
        let some = item.key().last().is_some_and(|byte| byte.is_multiple_of(4));
        if some { item.value().map(Verdict::ReplaceValue) } else { Ok(Verdict::Keep) }
    }
}

/// One kind of run.
#[derive(Debug)]
pub struct Workload {
    pub name: &'static str,
    /// Threads that commit or change partitions at the same time.
    pub threads: u64,
    pub run: fn(&Run, &mut Rng),
}

/// The kinds of run, beside recovery, which begins with a crash of one of these.
pub const WORKLOADS: &[Workload] = &[
    Workload { name: "create", threads: 1, run: create },
    Workload { name: "single", threads: 1, run: single },
    Workload { name: "threads", threads: 4, run: threads },
    Workload { name: "partitions", threads: 2, run: partitions },
    Workload { name: "checkpoints", threads: 2, run: checkpoints },
    Workload { name: "ingests", threads: 2, run: ingests },
    Workload { name: "blobs", threads: 2, run: blobs },
    Workload { name: "reopen", threads: 1, run: reopen },
];

/// What runs after a crash, on the state that it left.
pub const RECOVERY: Workload = Workload { name: "recovery", threads: 1, run: recovery };

/// A run under way.
pub struct Run {
    root: PathBuf,
    log: Mutex<Log>,
    copies: AtomicUsize,
    /// Keys that were inserted, once and for all, and not removed yet.
    once: Mutex<Vec<(&'static str, Vec<u8>)>>,
}

struct Log {
    history: History,
    /// Changes of partitions: their numbers are known when all commits are noted.
    unplaced: Vec<(std::ops::RangeInclusive<u64>, Event)>,
}

impl Run {
    pub fn new(root: &Path, history: History) -> Self {
        let log = Mutex::new(Log { history, unplaced: Vec::new() });
        Self { root: root.to_path_buf(), log, copies: AtomicUsize::new(0), once: Mutex::default() }
    }

    /// The complete history, when the run is over.
    pub fn into_history(self) -> Result<History, String> {
        let log = self.log.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut history = log.history;
        for (range, event) in log.unplaced {
            history.place(range, event)?;
        }
        history.check()?;
        Ok(history)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }

    fn ack(&self, ack: &Ack) {
        acknowledge(&self.root, &ack.encode()).expect("an acknowledgement");
    }

    fn db(&self) -> PathBuf {
        self.root.join(KEYSPACE)
    }

    fn open(&self, rng: &mut Rng) -> Opened {
        let modes = [Durability::Buffer, Durability::Buffer, Durability::SyncData];
        let durability = modes[rng.below(3) as usize];
        let config = config(&self.db()).durability(durability);
        let keyspace = Opened::open(config, rng.bits()).expect("open");
        self.ack(&Ack::Opened);
        keyspace
    }

    fn close(&self, keyspace: Opened) {
        let seqno = keyspace.seqno();
        let taken = keyspace.statistics().partitions.iter().map(|p| p.filter_removed).sum();
        TAKEN_AWAY.fetch_add(taken, Ordering::Relaxed);
        keyspace.close().expect("close");
        self.ack(&Ack::Durable { seqno });
    }

    /// One commit of random changes in a random mode, as a batch or as a transaction.
    fn commit(&self, keyspace: &Opened, rng: &mut Rng) {
        let mut changes = Vec::new();
        let most = if rng.one_in(6) { 8 } else { 2 };
        for _ in 0..=rng.below(most) {
            let name = NAMES[rng.below(4) as usize];
            let Some(partition) = keyspace.open_partition(name).expect("look up") else { continue };
            let key = format!("key {:02}", rng.below(KEYS)).into_bytes();
            let value = if rng.one_in(4) { None } else { Some(value(rng)) };
            changes.push((partition, key, value.into()));
        }
        if rng.one_in(6)
            && let Some(partition) =
                keyspace.open_partition(NAMES[rng.below(2) as usize]).expect("look up")
        {
            let key = [FLEETING, &[b'0' + rng.below(8) as u8]].concat();
            changes.push((partition, key, Edit::Insert(value(rng))));
        }
        let once = self.once(keyspace, rng, &mut changes);
        if changes.is_empty() {
            return;
        }
        let mode = match rng.below(12) {
            0 | 1 => Durability::SyncData,
            2 => Durability::SyncAll,
            _ => Durability::Buffer,
        };
        match keyspace.commit(&changes, Some(mode), rng.one_in(2)) {
            Ok(seqno) => {
                let named = |(partition, key, edit): opened::Change| {
                    (partition.name().to_owned(), key, edit.into_value())
                };
                let event = Event::Batch(changes.into_iter().map(named).collect());
                let twice = self.log().history.events.insert(seqno, event);
                assert!(twice.is_none(), "commit {seqno} was given away twice");
                self.ack(&Ack::Commit { seqno, durable: mode != Durability::Buffer });
                lock(&self.once).extend(once);
            }
            // Dropped since it was looked up: nothing of the changes was written.
            Err(Error::PartitionDropped { .. }) => {}
            Err(error) => panic!("a commit failed: {error}"),
        }
    }

    /// Inserts a key that never was, or removes one of those weakly.
    fn once(
        &self,
        keyspace: &Keyspace,
        rng: &mut Rng,
        changes: &mut Vec<opened::Change>,
    ) -> Option<(&'static str, Vec<u8>)> {
        let name = NAMES[rng.below(4) as usize];
        match rng.below(8) {
            0 => {
                let partition = keyspace.open_partition(name).expect("look up")?;
                let key = format!("once {:016x}", rng.bits()).into_bytes();
                let value = value(rng);
                changes.push((partition, key.clone(), Edit::Insert(value)));
                Some((name, key))
            }
            1 => {
                let (name, key) = lock(&self.once).pop()?;
                let partition = keyspace.open_partition(name).expect("look up")?;
                changes.push((partition, key, Edit::RemoveWeak));
                None
            }
            _ => None,
        }
    }

    /// Loads some keys into one partition, and commits meanwhile, or gives it up.
    fn ingest(&self, keyspace: &Opened, rng: &mut Rng) {
        let name = NAMES[rng.below(4) as usize];
        let Some(partition) = keyspace.open_partition(name).expect("look up") else { return };
        let mut ingest = match partition.ingest() {
            Ok(ingest) => ingest,
            Err(Error::PartitionDropped { .. }) => return,
            Err(error) => panic!("an ingest did not begin: {error}"),
        };
        let mut changes = Vec::new();
        // Nothing is left of removals alone once they are merged.
        let removals = rng.one_in(4);
        for number in (0..KEYS).filter(|_| rng.one_in(3)).collect::<Vec<_>>() {
            let key = format!("key {number:02}").into_bytes();
            let value = (!removals && !rng.one_in(8)).then(|| value(rng));
            match &value {
                Some(value) => ingest.insert(key.clone(), value.clone()).expect("add"),
                None => ingest.remove(key.clone()).expect("add a removal"),
            }
            changes.push((name.to_owned(), key, value));
        }
        for _ in 0..rng.below(3) {
            self.commit(keyspace, rng);
        }
        if changes.is_empty() || rng.one_in(5) {
            return;
        }
        match ingest.finish() {
            Ok(report) => {
                let seqno = report.seqno;
                let twice = self.log().history.events.insert(seqno, Event::Ingest(changes));
                assert!(twice.is_none(), "commit {seqno} was given away twice");
                self.ack(&Ack::Commit { seqno, durable: true });
            }
            Err(Error::PartitionDropped { .. } | Error::PartitionCleared { .. }) => {}
            Err(error) => panic!("an ingest failed: {error}"),
        }
    }

    /// Sets one of a few keys to a value that is separated.
    fn overwrite(&self, keyspace: &Keyspace, rng: &mut Rng) {
        let name = NAMES[1];
        let partition = keyspace.open_partition(name).expect("look up").expect("never dropped");
        let key = format!("key {:02}", rng.below(12)).into_bytes();
        let value = rng.bytes(200);
        let mut batch = keyspace.batch();
        batch.insert(&partition, key.clone(), value.clone());
        let seqno = batch.commit().expect("a commit");
        let changes = vec![(name.to_owned(), key, Some(value))];
        let twice = self.log().history.events.insert(seqno, Event::Batch(changes));
        assert!(twice.is_none(), "commit {seqno} was given away twice");
        self.ack(&Ack::Commit { seqno, durable: false });
    }

    /// The blob files of all partitions. One separates values.
    fn blob_files(&self) -> BTreeSet<PathBuf> {
        let below = |path: PathBuf| {
            crate::files::entries(&path).into_iter().map(move |name| path.join(name))
        };
        let trees = below(self.db().join("partitions"));
        trees.flat_map(|tree| below(tree.join("blobs"))).collect()
    }

    fn persist(&self, keyspace: &Keyspace, mode: Durability) {
        let seqno = keyspace.seqno();
        keyspace.persist(mode).expect("persist");
        self.ack(&Ack::Durable { seqno });
    }

    /// Creates, clears or drops a partition. One thread only does this.
    fn restructure(&self, keyspace: &Keyspace, name: &str, rng: &mut Rng) {
        let before = keyspace.seqno();
        let owned = name.to_owned();
        let event = match keyspace.open_partition(name).expect("look up") {
            None => {
                keyspace.partition(name, options(name)).expect("create a partition");
                Event::Create(owned)
            }
            Some(_) if name != NAMES[0] && name != NAMES[1] && rng.one_in(2) => {
                assert!(keyspace.drop_partition(name).expect("drop a partition"));
                Event::Drop(owned)
            }
            Some(partition) => {
                partition.clear().expect("clear");
                Event::Clear(owned)
            }
        };
        let after = keyspace.seqno();
        let number = {
            let mut log = self.log();
            log.unplaced.push((before + 1..=after, event));
            log.unplaced.len() - 1
        };
        self.ack(&Ack::Structure { number });
    }

    fn create_missing(&self, keyspace: &Keyspace, names: &[&str], rng: &mut Rng) {
        for name in names {
            if keyspace.open_partition(name).expect("look up").is_none() {
                self.restructure(keyspace, name, rng);
            }
        }
    }

    fn flush(&self, keyspace: &Keyspace) {
        keyspace.flush().expect("flush");
    }

    fn compact(&self, keyspace: &Keyspace, rng: &mut Rng) {
        let name = NAMES[rng.below(4) as usize];
        if let Some(partition) = keyspace.open_partition(name).expect("look up") {
            match partition.compact() {
                Ok(()) | Err(Error::PartitionDropped { .. }) => {}
                Err(error) => panic!("a compaction failed: {error}"),
            }
        }
    }

    fn next_copy(&self, kind: &str) -> String {
        format!("{kind}-{}", self.copies.fetch_add(1, Ordering::Relaxed))
    }

    fn checkpoint(&self, keyspace: &Keyspace, rng: &mut Rng) {
        let name = self.next_copy("checkpoint");
        let transfer = if rng.one_in(3) { Transfer::Copy } else { Transfer::Auto };
        let builder = keyspace.checkpoint().transfer(transfer).flush_first(rng.one_in(3));
        let report = builder.write_to(self.root.join(&name)).expect("a checkpoint");
        self.ack(&Ack::Copy { name, seqno: report.seqno });
    }

    fn cold_copy(&self, rng: &mut Rng) {
        let name = self.next_copy("copy");
        let transfer = if rng.one_in(2) { Transfer::Copy } else { Transfer::Auto };
        let options = CopyOptions::default().transfer(transfer);
        let report = cold_copy(self.db(), self.root.join(&name), options).expect("a cold copy");
        self.ack(&Ack::Copy { name, seqno: report.seqno });
    }

    /// One step of a single thread.
    fn step(&self, keyspace: &Opened, rng: &mut Rng) {
        match rng.below(60) {
            0 => self.persist(keyspace, Durability::SyncData),
            1 => self.persist(keyspace, Durability::SyncAll),
            2 => self.flush(keyspace),
            3 => self.compact(keyspace, rng),
            4 => self.restructure(keyspace, NAMES[rng.below(4) as usize], rng),
            5 => self.restructure(keyspace, NAMES[2 + rng.below(2) as usize], rng),
            6 => self.ingest(keyspace, rng),
            _ => self.commit(keyspace, rng),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Short, separated, or large enough to be compressed.
pub fn value(rng: &mut Rng) -> Vec<u8> {
    match rng.below(40) {
        0 => vec![rng.bits() as u8; 5000],
        1..=5 => {
            let len = 150 + rng.below(300);
            rng.bytes(len as usize)
        }
        _ => {
            let len = 8 + rng.below(50);
            rng.bytes(len as usize)
        }
    }
}

fn create(run: &Run, rng: &mut Rng) {
    let keyspace = run.open(rng);
    let names = &NAMES[..1 + rng.below(4) as usize];
    for name in names {
        run.restructure(&keyspace, name, rng);
        for _ in 0..rng.below(4) {
            run.commit(&keyspace, rng);
        }
    }
    run.close(keyspace);
}

fn single(run: &Run, rng: &mut Rng) {
    let keyspace = run.open(rng);
    run.create_missing(&keyspace, &NAMES, rng);
    for _ in 0..150 + rng.below(100) {
        run.step(&keyspace, rng);
    }
    run.close(keyspace);
}

fn threads(run: &Run, rng: &mut Rng) {
    let keyspace = run.open(rng);
    run.create_missing(&keyspace, &NAMES, rng);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let (keyspace, mut rng) = (&keyspace, Rng::new(rng.bits()));
            scope.spawn(move || {
                for _ in 0..60 {
                    run.commit(keyspace, &mut rng);
                }
            });
        }
        for _ in 0..12 {
            match rng.below(5) {
                0 => run.flush(&keyspace),
                1 => run.compact(&keyspace, rng),
                2 => run.persist(&keyspace, Durability::SyncData),
                3 => run.ingest(&keyspace, rng),
                _ => run.restructure(&keyspace, NAMES[rng.below(4) as usize], rng),
            }
            std::thread::sleep(Duration::from_micros(rng.below(2000)));
        }
    });
    let statistics = keyspace.statistics();
    assert!(statistics.flushes > 0 && statistics.compactions > 0, "{statistics:?}");
    run.close(keyspace);
}

/// Mostly clear, drop and create, while another thread commits.
fn partitions(run: &Run, rng: &mut Rng) {
    let keyspace = run.open(rng);
    run.create_missing(&keyspace, &NAMES, rng);
    std::thread::scope(|scope| {
        let (keyspace, mut writer) = (&keyspace, Rng::new(rng.bits()));
        scope.spawn(move || {
            for _ in 0..80 {
                run.commit(keyspace, &mut writer);
            }
        });
        for _ in 0..16 {
            run.restructure(keyspace, NAMES[rng.below(4) as usize], rng);
            if rng.one_in(3) {
                run.flush(keyspace);
            }
        }
    });
    run.close(keyspace);
}

/// Checkpoints in every way while another thread commits, then a cold copy.
fn checkpoints(run: &Run, rng: &mut Rng) {
    let keyspace = run.open(rng);
    run.create_missing(&keyspace, &NAMES[..3], rng);
    std::thread::scope(|scope| {
        let (keyspace, mut writer) = (&keyspace, Rng::new(rng.bits()));
        scope.spawn(move || {
            for _ in 0..120 {
                run.commit(keyspace, &mut writer);
            }
        });
        for _ in 0..3 {
            std::thread::sleep(Duration::from_micros(rng.below(6000)));
            if rng.one_in(3) {
                run.restructure(keyspace, NAMES[2], rng);
            }
            if rng.one_in(3) {
                run.ingest(keyspace, rng);
            }
            run.checkpoint(keyspace, rng);
        }
    });
    run.close(keyspace);
    run.cold_copy(rng);
    let keyspace = run.open(rng);
    for _ in 0..5 {
        run.commit(&keyspace, rng);
    }
    run.close(keyspace);
}

/// Mostly ingests, which are merged with what was written before and after them.
fn ingests(run: &Run, rng: &mut Rng) {
    let keyspace = run.open(rng);
    run.create_missing(&keyspace, &NAMES, rng);
    std::thread::scope(|scope| {
        let (keyspace, mut writer) = (&keyspace, Rng::new(rng.bits()));
        scope.spawn(move || {
            for _ in 0..60 {
                run.commit(keyspace, &mut writer);
            }
        });
        for _ in 0..8 {
            run.ingest(keyspace, rng);
            match rng.below(5) {
                0 | 1 => run.compact(keyspace, rng),
                2 => run.restructure(keyspace, NAMES[rng.below(4) as usize], rng),
                _ => {}
            }
        }
    });
    // Whatever was given up, dropped or cleared: one was finished.
    for _ in 0..20 {
        if keyspace.statistics().ingests > 0 {
            break;
        }
        run.create_missing(&keyspace, &NAMES, rng);
        run.ingest(&keyspace, rng);
    }
    assert!(keyspace.statistics().ingests > 0, "no ingest was finished");
    run.close(keyspace);
}

/// Large values that are overwritten, so that merges move what is left of their files.
fn blobs(run: &Run, rng: &mut Rng) {
    let keyspace = run.open(rng);
    run.create_missing(&keyspace, &NAMES[..2], rng);
    std::thread::scope(|scope| {
        let (keyspace, mut writer) = (&keyspace, Rng::new(rng.bits()));
        scope.spawn(move || {
            for _ in 0..40 {
                run.commit(keyspace, &mut writer);
            }
        });
        for _ in 0..12 {
            for _ in 0..6 {
                run.overwrite(keyspace, rng);
            }
            run.flush(keyspace);
            let partition = keyspace.open_partition(NAMES[1]).expect("look up");
            partition.expect("it is never dropped").compact().expect("compact");
            if rng.one_in(6) {
                run.checkpoint(keyspace, rng);
            }
        }
    });
    // Nobody else writes any more: a blob file that a compaction leaves is one that it wrote.
    for _ in 0..3 {
        for _ in 0..6 {
            run.overwrite(&keyspace, rng);
        }
        run.flush(&keyspace);
        let before = run.blob_files();
        let partition = keyspace.open_partition(NAMES[1]).expect("look up");
        partition.expect("it is never dropped").compact().expect("compact");
        let rewritten = run.blob_files().difference(&before).count();
        BLOBS_REWRITTEN.fetch_add(u64::from(rewritten > 0), Ordering::Relaxed);
    }
    run.close(keyspace);
}

/// Opens and closes again and again.
fn reopen(run: &Run, rng: &mut Rng) {
    for _ in 0..4 {
        let keyspace = run.open(rng);
        run.create_missing(&keyspace, &NAMES[..2], rng);
        for _ in 0..rng.below(40) {
            run.step(&keyspace, rng);
        }
        run.close(keyspace);
    }
}

fn recovery(run: &Run, rng: &mut Rng) {
    if run.log().history.existed && rng.one_in(3) {
        run.cold_copy(rng);
    }
    let keyspace = run.open(rng);
    if rng.one_in(2) {
        run.create_missing(&keyspace, &NAMES[..2], rng);
        for _ in 0..rng.below(30) {
            run.step(&keyspace, rng);
        }
    }
    if rng.one_in(4) {
        run.checkpoint(&keyspace, rng);
    }
    run.close(keyspace);
}
