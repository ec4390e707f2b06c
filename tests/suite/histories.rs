//! Random histories of transactions, with plain writes and clears beside them: those that committed
//! could have run one after the other, in the order of their numbers.
//!
//! What must stay true: everything that takes a number is in the history, and the check can fail.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::process::Output;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};

use esker::planted::{Bug, plant};
use esker::{Config, Error, PartitionOptions, TxKeyspace, TxKind, TxPartition};
use esker_tests::chaos::{self, Rng};

const KINDS: [TxKind; 2] = [TxKind::SingleWriter, TxKind::Optimistic];
const KEYS: u64 = 8;
/// Names the bug that a child process plants.
const PLANTED: &str = "ESKER_TEST_HISTORIES_PLANTED";

/// The number of a partition, and a key.
type Key = (u8, u8);
type Changes = BTreeMap<Key, Option<Vec<u8>>>;
type Entries = BTreeMap<Key, Vec<u8>>;

/// A range that was read, with the changes that the transaction had made by then.
#[derive(Debug)]
struct Scanned {
    range: RangeInclusive<Key>,
    own: Changes,
    found: Vec<(Key, Vec<u8>)>,
}

/// What something that committed has seen and done.
#[derive(Debug, Default)]
struct Done {
    seqno: u64,
    read: Vec<(Key, Option<Vec<u8>>)>,
    scanned: Vec<Scanned>,
    /// Before the changes.
    cleared: Option<u8>,
    wrote: Changes,
}

/// One random transaction; nothing for one that had a conflict.
fn random_transaction(
    keyspace: &TxKeyspace,
    partitions: &[TxPartition],
    rng: &mut Rng,
    tag: &str,
) -> Option<Done> {
    let mut tx = keyspace.write_tx().unwrap();
    let mut done = Done::default();
    for step in 0..=rng.below(5) {
        let (at, key) = random_key(partitions, rng);
        let p = &partitions[usize::from(at)];
        if rng.one_in(8) {
            std::thread::yield_now();
        }
        match rng.below(5) {
            0 | 1 => {
                let found = tx.get(p, [key]).unwrap().map(|value| value.to_vec());
                match done.wrote.get(&(at, key)) {
                    Some(value) => assert_eq!(&found, value, "not its own change"),
                    None => done.read.push(((at, key), found)),
                }
            }
            2 => {
                // No key is longer: a prefix has one of them, or all.
                let (entries, key, to) = match rng.below(4) {
                    0 => (tx.prefix(p, [key]).unwrap(), key, key),
                    1 => (tx.prefix(p, []).unwrap(), 0, u8::MAX),
                    _ => {
                        let to = key + rng.below(4) as u8;
                        (tx.range(p, [key]..=[to]).unwrap(), key, to)
                    }
                };
                let entry = |entry: esker::Result<(esker::Slice, esker::Slice)>| {
                    let (key, value) = entry.unwrap();
                    ((at, key[0]), value.to_vec())
                };
                let mut found: Vec<_> = if rng.one_in(2) {
                    entries.map(entry).collect()
                } else {
                    entries.rev().map(entry).collect()
                };
                found.sort();
                let range = (at, key)..=(at, to);
                done.scanned.push(Scanned { range, own: done.wrote.clone(), found });
            }
            3 => {
                let value = format!("{tag}.{step}").into_bytes();
                tx.insert(p, [key], value.clone()).unwrap();
                done.wrote.insert((at, key), Some(value));
            }
            _ => {
                tx.remove(p, [key]).unwrap();
                done.wrote.insert((at, key), None);
            }
        }
    }
    match tx.commit() {
        Ok(seqno) => Some(Done { seqno, ..done }),
        Err(Error::Conflict) => None,
        Err(error) => panic!("{error}"),
    }
}

fn random_key(partitions: &[TxPartition], rng: &mut Rng) -> Key {
    (rng.below(partitions.len() as u64) as u8, rng.below(KEYS) as u8)
}

/// A batch beside the transactions.
fn random_batch(
    keyspace: &TxKeyspace,
    partitions: &[TxPartition],
    rng: &mut Rng,
    tag: &str,
) -> Done {
    let (mut batch, mut wrote) = (keyspace.batch(), Changes::new());
    for step in 0..=rng.below(3) {
        let (at, key) = random_key(partitions, rng);
        let p = &partitions[usize::from(at)];
        let value = (!rng.one_in(3)).then(|| format!("{tag}.{step}").into_bytes());
        match &value {
            Some(value) => batch.insert(p, [key], value.clone()),
            None => batch.remove(p, [key]),
        };
        wrote.insert((at, key), value);
    }
    Done { seqno: batch.commit().unwrap(), wrote, ..Done::default() }
}

/// Whether everything saw exactly what lower numbers had left. The order of the numbers is then one in
/// which it could have run one after the other: no cycle is possible.
fn check_history(mut history: Vec<Done>, seed: u64) -> Entries {
    // Without changes a transaction has the number of what it saw, and belongs behind that.
    let reads_only = |done: &Done| done.wrote.is_empty() && done.cleared.is_none();
    history.sort_by_key(|done| (done.seqno, reads_only(done)));
    let mut state = Entries::new();
    for done in history {
        for (key, found) in &done.read {
            assert_eq!(state.get(key), found.as_ref(), "seed {seed}: {done:?}");
        }
        for Scanned { range, own, found } in &done.scanned {
            let mut expected: Entries =
                state.range(range.clone()).map(|(key, value)| (*key, value.clone())).collect();
            apply(&mut expected, own.range(range.clone()));
            assert!(expected.iter().eq(found.iter().map(|(k, v)| (k, v))), "seed {seed}: {done:?}");
        }
        state.retain(|(at, _), _| Some(*at) != done.cleared);
        apply(&mut state, done.wrote.iter());
    }
    state
}

fn apply<'a>(state: &mut Entries, changes: impl Iterator<Item = (&'a Key, &'a Option<Vec<u8>>)>) {
    for (key, value) in changes {
        match value {
            Some(value) => _ = state.insert(*key, value.clone()),
            None => _ = state.remove(key),
        }
    }
}

/// A keyspace and what happened to it.
struct Scene {
    keyspace: TxKeyspace,
    partitions: Vec<TxPartition>,
    history: Mutex<Vec<Done>>,
    /// Clears, in their order, each with the numbers of which one is its own.
    clears: Mutex<Vec<(u8, RangeInclusive<u64>)>>,
    refused: AtomicU64,
    seed: u64,
    /// The newest number before everything.
    base: u64,
}

impl Scene {
    fn transactions(&self, thread: u64, count: u64) {
        let mut rng = Rng::new(self.seed ^ thread);
        for number in 0..count {
            let tag = format!("{thread}.{number}");
            match random_transaction(&self.keyspace, &self.partitions, &mut rng, &tag) {
                Some(done) => self.history.lock().unwrap().push(done),
                None => _ = self.refused.fetch_add(1, Ordering::Relaxed),
            }
        }
    }

    /// Batches and clears by one thread, so that the clears happen one after the other.
    fn plain_writes(&self, thread: u64, count: u64) {
        let mut rng = Rng::new(self.seed ^ thread);
        for number in 0..count {
            if rng.one_in(12) {
                let at = rng.below(self.partitions.len() as u64) as u8;
                let before = self.keyspace.seqno();
                self.partitions[usize::from(at)].clear().unwrap();
                let numbers = before + 1..=self.keyspace.seqno();
                self.clears.lock().unwrap().push((at, numbers));
            } else {
                let tag = format!("{thread}.{number}");
                let done = random_batch(&self.keyspace, &self.partitions, &mut rng, &tag);
                self.history.lock().unwrap().push(done);
            }
            std::thread::yield_now();
        }
    }

    /// All of it, every number once.
    fn into_history(self) -> (Vec<Done>, u64) {
        let mut history = self.history.into_inner().unwrap();
        let writes = history.iter().filter(|done| !done.wrote.is_empty());
        let mut taken: BTreeSet<_> = writes.clone().map(|done| done.seqno).collect();
        assert_eq!(taken.len(), writes.count(), "two have one number");
        for (at, numbers) in self.clears.into_inner().unwrap() {
            let free: Vec<_> = numbers.clone().filter(|seqno| !taken.contains(seqno)).collect();
            let [seqno] = free[..] else { panic!("a clear is one of {free:?} in {numbers:?}") };
            taken.insert(seqno);
            history.push(Done { seqno, cleared: Some(at), ..Done::default() });
        }
        assert!(taken.iter().copied().eq(self.base + 1..=self.base + taken.len() as u64), "a gap");
        (history, self.refused.into_inner())
    }
}

/// Several threads of transactions, and one beside them if there is one; then the judgement.
fn explore(kind: TxKind, seed: u64, defer: bool, partitions: u8, plain: bool) {
    let dir = chaos::memory_dir();
    let config = Config::new(dir.path().join("db")).memtable_bytes(4096);
    let config = config.defer_after_changes(if defer { 0 } else { u64::MAX });
    let keyspace = config.open_transactional(kind).unwrap();
    let create = |at: u8| keyspace.partition(&at.to_string(), PartitionOptions::default()).unwrap();
    let partitions: Vec<_> = (0..partitions).map(create).collect();
    let (history, clears) = (Mutex::default(), Mutex::default());
    let (refused, base) = (AtomicU64::new(0), keyspace.seqno());
    let scene = Scene { keyspace, partitions, history, clears, refused, seed, base };
    let begin = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (scene, begin) = (&scene, &begin);
            scope.spawn(move || {
                begin.wait();
                if plain && thread == 0 {
                    scene.plain_writes(thread, 400);
                } else {
                    scene.transactions(thread, 400);
                }
            });
        }
    });
    let mut found = Entries::new();
    for (at, partition) in scene.partitions.iter().enumerate() {
        let entries = partition.iter().unwrap().map(|entry| entry.unwrap());
        found.extend(entries.map(|(key, value)| ((at as u8, key[0]), value.to_vec())));
    }
    let statistics = scene.keyspace.statistics();
    let (history, refused) = scene.into_history();
    assert_eq!(refused > 0, kind == TxKind::Optimistic, "{refused} conflicts, {kind:?}");
    assert_eq!((statistics.conflicts, statistics.open_transactions), (refused, 0));
    assert_eq!(check_history(history, seed), found);
}

#[test]
fn random_histories_are_serialisable_in_the_order_of_their_numbers() {
    let seed = chaos::seed("random_histories");
    for round in 0..chaos::rounds(3) {
        for kind in KINDS {
            // Half of the rounds apply later.
            explore(kind, seed ^ (round << 8), round % 2 == 0, 1, false);
        }
    }
}

#[test]
fn histories_with_plain_writes_and_clears_beside_are_serialisable_across_partitions() {
    let seed = chaos::seed("histories_with_plain_writes");
    for round in 0..chaos::rounds(3) {
        for kind in KINDS {
            explore(kind, seed ^ (round << 8), round % 2 == 0, 2, true);
        }
    }
}

/// Runs in a child process, because a bug is planted for the whole process.
#[test]
fn child_with_a_planted_bug() {
    let bug = match std::env::var(PLANTED).as_deref() {
        Ok("ChangesNotNoted") => Bug::ChangesNotNoted,
        Ok("OpenTransactionsForgotten") => Bug::OpenTransactionsForgotten,
        _ => return,
    };
    plant(Some(bug));
    for round in 0..20 {
        explore(TxKind::Optimistic, round, round % 2 == 0, 2, round % 4 < 2);
    }
}

#[test]
fn histories_show_what_planted_bugs_do_to_transactions() {
    for bug in ["ChangesNotNoted", "OpenTransactionsForgotten"] {
        let mut child = chaos::rerun("histories::child_with_a_planted_bug");
        let Output { status, stdout, stderr } = child.env(PLANTED, bug).output().unwrap();
        let text = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
        assert!(!status.success(), "{bug} was not found:\n{text}");
        assert!(text.contains("seed ") || text.contains("conflicts, Optimistic"), "{bug}:\n{text}");
    }
}

const KEY: Key = (0, 1);

fn value(text: &str) -> Option<Vec<u8>> {
    (!text.is_empty()).then(|| text.into())
}

fn update(seqno: u64, read: &str, wrote: &str) -> Done {
    let (read, wrote) = (vec![(KEY, value(read))], Changes::from([(KEY, value(wrote))]));
    Done { seqno, read, wrote, ..Done::default() }
}

fn scan(seqno: u64, own: Changes, found: &[(Key, &str)]) -> Done {
    let found = found.iter().map(|(key, value)| (*key, value.as_bytes().to_vec())).collect();
    let scanned = vec![Scanned { range: (0, 0)..=(0, 5), own, found }];
    Done { seqno, scanned, ..Done::default() }
}

#[test]
#[should_panic(expected = "seed 7")]
fn the_check_of_histories_finds_a_lost_update() {
    check_history(vec![update(1, "", "a"), update(2, "a", "b"), update(3, "a", "c")], 7);
}

#[test]
#[should_panic(expected = "seed 8")]
fn the_check_of_histories_finds_a_phantom_beside_own_changes() {
    let own = Changes::from([((0, 2), value("own"))]);
    // It has missed what was committed before it.
    check_history(vec![update(1, "", "a"), scan(1, own, &[((0, 2), "own")])], 8);
}

#[test]
#[should_panic(expected = "seed 9")]
fn the_check_of_histories_finds_a_scan_without_own_changes() {
    let own = Changes::from([(KEY, None)]);
    check_history(vec![update(1, "", "a"), scan(1, own, &[(KEY, "a")])], 9);
}

#[test]
#[should_panic(expected = "seed 10")]
fn the_check_of_histories_finds_a_clear_that_was_overlooked() {
    let clear = Done { seqno: 2, cleared: Some(0), ..Done::default() };
    check_history(vec![update(1, "", "a"), clear, update(3, "a", "b")], 10);
}

#[test]
fn the_check_of_histories_accepts_what_is_right() {
    let own = Changes::from([((0, 2), value("own")), (KEY, None)]);
    let clear = Done { seqno: 3, cleared: Some(0), ..Done::default() };
    let history = vec![
        update(4, "", "c"),
        clear,
        scan(2, own, &[((0, 2), "own")]),
        update(2, "a", "b"),
        update(1, "", "a"),
    ];
    assert_eq!(check_history(history, 11), Entries::from([(KEY, b"c".to_vec())]));
}
