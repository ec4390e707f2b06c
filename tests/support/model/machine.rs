//! The keyspace under test beside its model, and one operation on both.
//!
//! What must stay true: the model knows every sequence number, so that none is given twice or left
//! out unseen; nothing of the keyspace outlives `close` but what an operation means to outlive it.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use esker::{Config, Iter, Keyspace, Partition, PartitionOptions, Snapshot, TxKeyspace, TxKind};
use tempfile::TempDir;

use super::operation::{At, Edge, Key, Operation, Read, Value};
use super::oracle::{Frozen, assert_same};
use super::reads::{self, Pair, Reader, Seen};
use super::settings::Settings;
use super::{copies, losing};
use crate::chaos::{self, Rng};
use crate::store::Entries;

const NAMES: [&str; 4] = ["alpha", "beta", "gamma", "δέλτα"];
const SNAPSHOTS_MAX: usize = 4;
const ITERATORS_MAX: usize = 3;
const DROPPED_MAX: usize = 3;
/// A full comparison comes after so many steps.
const COMPARE_EVERY: u64 = 100;

/// A partition in the model.
pub(super) struct Modelled {
    pub entries: Arc<Entries>,
    pub options: PartitionOptions,
    /// The commit that created it: partitions of one name differ in it.
    pub created: u64,
}

/// A snapshot and what it has to show.
pub(super) struct Held {
    pub snapshot: Snapshot,
    pub seqno: u64,
    /// With handles, because the partitions may be dropped meanwhile.
    pub seen: Vec<(Partition, Arc<Entries>)>,
}

/// A checkpoint or copy that stays, to be looked at much later.
pub(super) struct Kept {
    pub path: PathBuf,
    pub seqno: u64,
    pub content: Frozen,
}

pub struct Machine {
    pub(super) settings: &'static Settings,
    /// Of this opening; the options of partitions stay those of the settings.
    pub(super) config: fn(Config) -> Config,
    pub(super) directory: TempDir,
    /// For what outlives the directory: checkpoints and copies.
    pub(super) shelf: TempDir,
    pub(super) keyspace: Option<TxKeyspace>,
    pub(super) model: BTreeMap<String, Modelled>,
    pub(super) dropped: Vec<(Partition, Arc<Entries>)>,
    pub(super) snapshots: Vec<Held>,
    pub(super) iterators: Vec<(Iter, VecDeque<Pair>)>,
    pub(super) kept: Vec<Kept>,
    /// The newest commit.
    pub(super) seqno: u64,
    /// UUID and timeline.
    pub(super) identity: (u128, u128),
    /// Directories taken so far, to name the next.
    pub(super) taken: u64,
    /// Checkpoints since the keyspace was opened.
    pub(super) checkpoints: u64,
    steps: u64,
    values: u64,
}

impl Machine {
    pub fn new(settings: &'static Settings) -> Self {
        views_in_memory();
        let mut machine = Self {
            settings,
            config: settings.config,
            directory: chaos::memory_dir(),
            shelf: chaos::memory_dir(),
            keyspace: None,
            model: BTreeMap::new(),
            dropped: Vec::new(),
            snapshots: Vec::new(),
            iterators: Vec::new(),
            kept: Vec::new(),
            seqno: 0,
            identity: (0, 0),
            taken: 0,
            checkpoints: 0,
            steps: 0,
            values: 0,
        };
        let created = machine.config().open_transactional(machine.kind());
        let keyspace = created.expect("create a keyspace");
        machine.identity = (keyspace.uuid(), keyspace.timeline());
        machine.keyspace = Some(keyspace);
        machine
    }

    /// One operation. False when there was nothing for it to do.
    pub fn step(&mut self, operation: &Operation) -> bool {
        let done = self.apply(operation);
        assert_eq!(self.keyspace().seqno(), self.seqno, "the newest commit");
        self.steps += 1;
        if self.steps.is_multiple_of(COMPARE_EVERY) {
            self.compare("regularly");
        }
        done
    }

    fn apply(&mut self, operation: &Operation) -> bool {
        match operation {
            Operation::Insert(at, key, value) => self.insert(*at, *key, *value),
            Operation::Remove(at, key) => self.remove(*at, *key),
            Operation::Overwrite(at, key, value, times) => {
                for _ in 0..*times {
                    self.insert(*at, *key, *value);
                }
                *times > 0
            }
            Operation::Batch { changes, durability } => self.batch(changes, *durability),
            Operation::BatchRepeatsAKey(at, key, values) => {
                let changes: Vec<_> = values.iter().map(|value| (*at, *key, *value)).collect();
                self.batch(&changes, None)
            }
            Operation::Transaction { changes, reads, ending } => {
                self.transaction(changes, reads, *ending)
            }
            Operation::Update { at, key, value, way } => self.update(*at, *key, *value, *way),
            Operation::Ingest { at, entries, beside, ending } => {
                self.ingest(*at, entries, beside, *ending)
            }
            Operation::EmptyBatch(durability) => self.empty_batch(*durability),
            Operation::DroppedBatch(changes) => self.dropped_batch(changes),
            Operation::RefusedBatch { changes, fault } => self.refused_batch(changes, *fault),
            Operation::WritersAtOnce { at, writers, each, durability } => {
                self.writers_at_once(*at, *writers, *each, *durability)
            }
            Operation::Read(at, read) => {
                let name = self.ensure(*at);
                reads::check(&self.handle(name), &self.model[name].entries, *read)
            }
            Operation::HoldIterator(at, from, to) => self.hold_iterator(*at, *from, *to),
            Operation::AdvanceIterator { which, steps, pattern } => {
                self.advance_iterator(*which, *steps, *pattern)
            }
            Operation::DropIterator(which) => {
                let n = self.some_iterator(*which);
                drop(self.iterators.remove(n));
                true
            }
            Operation::TakeSnapshot
            | Operation::BeginReadTransaction
            | Operation::CloneSnapshot(_)
            | Operation::ReadSnapshot(..)
            | Operation::ScanSnapshot(_)
            | Operation::ReadSnapshotOfALaterPartition(..)
            | Operation::DropSnapshot(_) => self.on_snapshots(operation),
            Operation::Compare => {
                self.compare("at random");
                true
            }
            Operation::Flush
            | Operation::Compact(_)
            | Operation::CompactAll
            | Operation::Persist(_)
            | Operation::CreateAnew(_)
            | Operation::CreateWithOptions(..)
            | Operation::OpenWithOtherOptions(..)
            | Operation::Clear(_)
            | Operation::DropPartition(_)
            | Operation::DropMissingPartition
            | Operation::ReadDroppedPartition(..)
            | Operation::WriteToDroppedPartition(_)
            | Operation::Statistics
            | Operation::Listing
            | Operation::RefusedArguments(_) => self.on_structure(operation),
            _ if losing::takes_away(operation) => self.on_losing(operation),
            _ if copies::takes_copies(operation) => {
                self.on_copies(operation);
                true
            }
            _ => self.on_lives(operation),
        }
    }

    fn on_snapshots(&mut self, operation: &Operation) -> bool {
        match operation {
            Operation::TakeSnapshot => self.take_snapshot(),
            Operation::BeginReadTransaction => self.hold(self.transactional().read_tx()),
            Operation::CloneSnapshot(which) => {
                let n = self.some_snapshot(*which);
                // The clone alone keeps the view.
                let clone = self.snapshots[n].snapshot.clone();
                self.snapshots[n].snapshot = clone;
            }
            Operation::ReadSnapshot(which, at, read) => {
                let n = self.some_snapshot(*which);
                let held = &self.snapshots[n];
                let Some(m) = pick(*at, held.seen.len()) else { return false };
                let (partition, entries) = &held.seen[m];
                return reads::check(&Seen(&held.snapshot, partition), entries, *read);
            }
            Operation::ScanSnapshot(which) => {
                let n = self.some_snapshot(*which);
                check_snapshot(&self.snapshots[n]);
            }
            Operation::ReadSnapshotOfALaterPartition(which, at) => {
                self.read_later_partition(*which, *at);
            }
            Operation::DropSnapshot(which) => {
                let n = self.some_snapshot(*which);
                drop(self.snapshots.remove(n));
            }
            _ => unreachable!("{operation:?} is no operation on snapshots"),
        }
        true
    }

    /// The last look at everything.
    pub fn finish(mut self) {
        self.settle();
        self.close();
        self.check_sound(&self.path());
    }

    /// A last look that leaves out what needs every byte to be read.
    pub fn settle(&mut self) {
        self.compare("at the end");
        for held in &self.snapshots {
            check_snapshot(held);
        }
        for (mut iter, mut left) in std::mem::take(&mut self.iterators) {
            let steps = left.len() + 2;
            reads::take_from_both(&mut iter, &mut left, steps, 0);
        }
        for number in 0..self.kept.len() {
            self.compare_kept(number as u8);
        }
        self.reopen();
    }

    // ---- what everything uses -----------------------------------------------------------------

    pub(super) fn keyspace(&self) -> &Keyspace {
        self.keyspace.as_ref().expect("the keyspace is open")
    }

    pub(super) fn transactional(&self) -> &TxKeyspace {
        self.keyspace.as_ref().expect("the keyspace is open")
    }

    /// The kind of transactions that the next opening has.
    pub(super) fn kind(&self) -> TxKind {
        if self.seqno.is_multiple_of(2) { TxKind::Optimistic } else { TxKind::SingleWriter }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("keyspace")
    }

    pub(super) fn config(&self) -> Config {
        // Crash images copy the journal: it stays small unless the settings say otherwise.
        losing::with_filters((self.config)(Config::new(self.path()).journal_segment_bytes(1 << 20)))
    }

    /// The name of a partition that may not be there.
    pub(super) fn name(&self, at: At) -> &'static str {
        NAMES[usize::from(at) % NAMES.len()]
    }

    /// The name of a partition, which is created when missing.
    pub(super) fn ensure(&mut self, at: At) -> &'static str {
        let name = self.name(at);
        if !self.model.contains_key(name) {
            self.create(name, (self.settings.options)());
        }
        name
    }

    pub(super) fn create(&mut self, name: &str, options: PartitionOptions) {
        let created = self.keyspace().partition(name, options.clone()).expect("create");
        assert_eq!(created.name(), name);
        self.seqno += 1;
        let modelled = Modelled { entries: Arc::default(), options, created: self.seqno };
        let before = self.model.insert(name.to_owned(), modelled);
        assert!(before.is_none(), "{name} was there");
    }

    pub(super) fn handle(&self, name: &str) -> Partition {
        let found = self.keyspace().open_partition(name).expect("open a partition");
        found.expect("a partition of the model is there")
    }

    pub(super) fn entries(&mut self, name: &str) -> &mut Entries {
        Arc::make_mut(&mut self.model.get_mut(name).expect("the partition exists").entries)
    }

    /// The content of the model as of now.
    pub(super) fn frozen(&self) -> Frozen {
        let part = |(name, m): (&String, &Modelled)| (name.clone(), Arc::clone(&m.entries));
        self.model.iter().map(part).collect()
    }

    /// Bytes that were never a value before, if they are long enough.
    pub(super) fn value(&mut self, value: Value) -> Vec<u8> {
        self.values += 1;
        let len = value.len as usize;
        let mut bytes =
            if value.compressible { vec![b'v'; len] } else { Rng::new(self.values).bytes(len) };
        let stamp = self.values.to_le_bytes();
        let stamped = len.min(stamp.len());
        bytes[..stamped].copy_from_slice(&stamp[..stamped]);
        bytes
    }

    /// How many values there were.
    pub(super) fn numbered(&self) -> u64 {
        self.values
    }

    /// A path that does not exist, for a checkpoint or copy.
    pub(super) fn target(&mut self) -> PathBuf {
        self.taken += 1;
        self.shelf.path().join(format!("taken {}", self.taken))
    }

    pub(super) fn compare(&self, when: &str) {
        assert_same(self.keyspace(), &self.frozen(), when);
    }

    // ---- iterators and snapshots --------------------------------------------------------------

    fn hold_iterator(&mut self, at: At, from: Edge, to: Edge) -> bool {
        let name = self.ensure(at);
        let bounds = reads::bounds(from, to);
        let iter = self.handle(name).range(bounds.clone()).expect("range");
        let left = reads::within(&self.model[name].entries, &bounds).collect();
        if self.iterators.len() == ITERATORS_MAX {
            self.iterators.remove(0);
        }
        self.iterators.push((iter, left));
        true
    }

    /// One that is held, a new one if there is none.
    fn some_iterator(&mut self, which: u8) -> usize {
        if self.iterators.is_empty() {
            self.hold_iterator(which, Edge::Open, Edge::Open);
        }
        usize::from(which) % self.iterators.len()
    }

    /// One that is held, a new one if there is none.
    fn some_snapshot(&mut self, which: u8) -> usize {
        if self.snapshots.is_empty() {
            self.take_snapshot();
        }
        usize::from(which) % self.snapshots.len()
    }

    fn advance_iterator(&mut self, which: u8, steps: u8, pattern: u16) -> bool {
        let n = self.some_iterator(which);
        let (iter, left) = &mut self.iterators[n];
        reads::take_from_both(iter, left, usize::from(steps), pattern);
        true
    }

    fn take_snapshot(&mut self) {
        self.hold(self.keyspace().snapshot());
    }

    fn hold(&mut self, snapshot: Snapshot) {
        assert_eq!(snapshot.seqno(), self.seqno, "a snapshot is of now");
        let seen = self.model.iter().map(|(name, m)| (self.handle(name), Arc::clone(&m.entries)));
        let held = Held { seen: seen.collect(), snapshot, seqno: self.seqno };
        if self.snapshots.len() == SNAPSHOTS_MAX {
            self.snapshots.remove(0);
        }
        self.snapshots.push(held);
    }

    /// What was created after a snapshot is empty in it, also under a name that it knows.
    fn read_later_partition(&mut self, which: u8, at: At) {
        let n = self.some_snapshot(which);
        let name = self.name(at);
        if self.model.get(name).is_some_and(|m| m.created <= self.snapshots[n].seqno) {
            self.drop_partition(name);
        }
        self.ensure(at);
        let (key, value) = (Key { shape: 6, number: which }, Value { len: 9, compressible: true });
        self.insert(at, key, value);
        let seen = Seen(&self.snapshots[n].snapshot, &self.handle(name)).iter().expect("iterate");
        assert_eq!(seen.count(), 0, "{name} was created after the snapshot");
    }

    /// A partition that was dropped, one that is dropped now if there is none.
    pub(super) fn some_dropped(&mut self, which: u8) -> &(Partition, Arc<Entries>) {
        if self.dropped.is_empty() {
            let name = self.ensure(which);
            self.drop_partition(name);
        }
        &self.dropped[usize::from(which) % self.dropped.len()]
    }

    /// Remembers the partition that is about to be dropped, with what it must go on showing.
    pub(super) fn remember_dropped(&mut self, name: &str) {
        let remembered = (self.handle(name), Arc::clone(&self.model[name].entries));
        if self.dropped.len() == DROPPED_MAX {
            self.dropped.remove(0);
        }
        self.dropped.push(remembered);
    }
}

/// The private views of read-only opens go where files cost nothing. Later calls change nothing.
fn views_in_memory() {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        // An error says that a place was chosen already.
        let _ = tempfile::env::override_temp_dir(memory);
    }
}

/// Everything that the snapshot was taken of, dropped since or not.
pub(super) fn check_snapshot(held: &Held) {
    assert_eq!(held.snapshot.seqno(), held.seqno, "a snapshot stays where it is");
    for (partition, entries) in &held.seen {
        let reader = Seen(&held.snapshot, partition);
        reads::check(&reader, entries, Read::Forward);
    }
}

/// One of `len`, if there is any.
pub(super) fn pick(which: u8, len: usize) -> Option<usize> {
    usize::from(which).checked_rem(len)
}
