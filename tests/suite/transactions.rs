//! Transactions of both kinds: what they see and what they refuse.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use esker::{
    Config, Durability, Error, ErrorKind, Keyspace, PartitionOptions, Slice, TxKeyspace, TxKind,
    TxPartition, WriteTx,
};
use esker_tests::chaos::{self, Rng};

const KINDS: [TxKind; 2] = [TxKind::SingleWriter, TxKind::Optimistic];

fn open(path: &Path, kind: TxKind) -> (TxKeyspace, TxPartition) {
    let keyspace = Config::new(path).open_transactional(kind).unwrap();
    let partition = keyspace.partition("p", PartitionOptions::default()).unwrap();
    (keyspace, partition)
}

fn in_both_kinds(test: impl Fn(TxKeyspace, TxPartition)) {
    for kind in KINDS {
        let dir = chaos::memory_dir();
        let (keyspace, partition) = open(&dir.path().join("db"), kind);
        test(keyspace, partition);
    }
}

/// Something that changes a partition, and its name.
type Changing = (&'static str, fn(&TxKeyspace, &TxPartition));

fn optimistic(test: impl Fn(TxKeyspace, TxPartition)) {
    let dir = chaos::memory_dir();
    let (keyspace, partition) = open(&dir.path().join("db"), TxKind::Optimistic);
    test(keyspace, partition);
}

fn is_conflict<T: std::fmt::Debug>(outcome: esker::Result<T>) -> bool {
    match outcome {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
            assert!(matches!(error, Error::Conflict));
            true
        }
    }
}

fn number(value: Option<&Slice>) -> u64 {
    value.map_or(0, |value| String::from_utf8_lossy(value).parse().unwrap())
}

#[test]
fn a_transaction_sees_its_own_changes_and_nobody_else_does_before_it_commits() {
    in_both_kinds(|keyspace, p| {
        p.insert("a", "1").unwrap();
        p.insert("b", "2").unwrap();
        let mut tx = keyspace.write_tx().unwrap();
        tx.insert(&p, "a", "10").unwrap();
        tx.remove(&p, "b").unwrap();
        tx.insert(&p, "c", "30").unwrap();
        assert_eq!(tx.get(&p, "a").unwrap().as_deref(), Some(&b"10"[..]));
        assert!(!tx.contains_key(&p, "b").unwrap());
        assert_eq!(tx.size_of(&p, "c").unwrap(), Some(2));
        assert_eq!(tx.size_of(&p, "b").unwrap(), None);
        assert_eq!(tx.len(&p).unwrap(), 2);
        assert_eq!(tx.last_key_value(&p).unwrap().unwrap().0, "c");
        for outside in [p.get("c").unwrap(), keyspace.read_tx().get(&p, "c").unwrap()] {
            assert_eq!(outside, None, "a dirty read");
        }
        let before = keyspace.read_tx();
        let seqno = tx.commit().unwrap();
        assert_eq!(keyspace.seqno(), seqno);
        assert_eq!(before.len(&p).unwrap(), 2);
        assert_eq!(before.get(&p, "b").unwrap().as_deref(), Some(&b"2"[..]));
        assert_eq!(p.get("b").unwrap(), None);
        assert_eq!(p.get("c").unwrap().as_deref(), Some(&b"30"[..]));
    });
}

#[test]
fn a_transaction_that_is_dropped_or_rolled_back_leaves_nothing() {
    in_both_kinds(|keyspace, p| {
        let before = keyspace.seqno();
        let mut tx = keyspace.write_tx().unwrap();
        tx.insert(&p, "a", "1").unwrap();
        drop(tx);
        let mut tx = keyspace.write_tx().unwrap();
        tx.insert(&p, "a", "1").unwrap();
        tx.rollback();
        let failed = keyspace.transact(|tx| {
            tx.insert(&p, "a", "1")?;
            Err::<(), _>(Error::InvalidInput("no".into()))
        });
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::FixInput);
        assert_eq!(keyspace.seqno(), before);
        assert!(p.is_empty().unwrap());
    });
}

#[test]
fn a_transaction_syncs_when_its_durability_says_so() {
    use Durability::{Buffer, SyncAll, SyncData};
    for kind in KINDS {
        // What the keyspace has, what the transaction asks for, and the syncs that this takes.
        for (general, own, expected) in [
            (Buffer, None, 0),
            (Buffer, Some(Buffer), 0),
            (Buffer, Some(SyncData), 1),
            (Buffer, Some(SyncAll), 1),
            (SyncData, None, 1),
            (SyncData, Some(Buffer), 0),
        ] {
            let dir = chaos::memory_dir();
            let config = Config::new(dir.path().join("db")).durability(general);
            let keyspace = config.open_transactional(kind).unwrap();
            let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
            // Nothing is left to sync but what follows.
            keyspace.persist(SyncAll).unwrap();
            let syncs = || keyspace.statistics().journal_syncs;
            let before = syncs();
            let mut tx = keyspace.write_tx().unwrap();
            if let Some(own) = own {
                tx.durability(own);
            }
            tx.insert(&p, "a", "1").unwrap();
            assert_eq!(syncs(), before, "before the commit");
            tx.commit().unwrap();
            assert_eq!(syncs() - before, expected, "{kind:?}, {general:?}, {own:?}");
            // Whoever changes nothing syncs nothing.
            let mut tx = keyspace.write_tx().unwrap();
            tx.durability(SyncAll);
            tx.commit().unwrap();
            assert_eq!(syncs() - before, expected, "a transaction without changes");
        }
    }
}

#[test]
fn a_transaction_without_changes_commits_nothing_and_has_no_conflict() {
    in_both_kinds(|keyspace, p| {
        p.insert("a", "1").unwrap();
        let tx = keyspace.write_tx().unwrap();
        let seen = tx.seqno();
        assert!(tx.get(&p, "a").unwrap().is_some());
        if keyspace.kind() == TxKind::Optimistic {
            p.insert("a", "2").unwrap();
        }
        let before = keyspace.seqno();
        assert_eq!(tx.commit().unwrap(), seen);
        assert_eq!(keyspace.seqno(), before);
    });
}

/// The range as a model has it.
fn model_range(
    model: &BTreeMap<Vec<u8>, Vec<u8>>,
    bounds: &(Bound<Vec<u8>>, Bound<Vec<u8>>),
) -> Vec<(Vec<u8>, Vec<u8>)> {
    use std::ops::RangeBounds as _;
    let inside = |key: &Vec<u8>| bounds.contains(key);
    model.iter().filter(|(key, _)| inside(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn bound(rng: &mut Rng) -> Bound<Vec<u8>> {
    let key = vec![b'a' + rng.below(12) as u8; 1 + rng.below(2) as usize];
    match rng.below(3) {
        0 => Bound::Unbounded,
        1 => Bound::Included(key),
        _ => Bound::Excluded(key),
    }
}

#[test]
fn ranges_of_a_transaction_are_those_of_a_map_from_both_ends() {
    let seed = chaos::seed("ranges_of_a_transaction");
    in_both_kinds(|keyspace, p| {
        let mut rng = Rng::new(seed);
        let mut model = BTreeMap::new();
        for round in 0..60 {
            let mut tx = keyspace.write_tx().unwrap();
            let mut own = model.clone();
            for _ in 0..rng.below(12) {
                let key = vec![b'a' + rng.below(12) as u8; 1 + rng.below(2) as usize];
                if rng.one_in(3) {
                    tx.remove(&p, key.clone()).unwrap();
                    own.remove(&key);
                } else {
                    let value = rng.bytes(3);
                    tx.insert(&p, key.clone(), value.clone()).unwrap();
                    own.insert(key, value);
                }
            }
            for _ in 0..20 {
                let bounds = (bound(&mut rng), bound(&mut rng));
                let mut expected = model_range(&own, &bounds);
                let mut iter = tx.range(&p, bounds.clone()).unwrap();
                let (mut front, mut back) = (Vec::new(), Vec::new());
                loop {
                    let from_front = rng.one_in(2);
                    let entry = if from_front { iter.next() } else { iter.next_back() };
                    let Some(entry) = entry else { break };
                    let (key, value) = entry.unwrap();
                    let side = if from_front { &mut front } else { &mut back };
                    side.push((key.to_vec(), value.to_vec()));
                }
                assert!(iter.next().is_none() && iter.next_back().is_none());
                back.reverse();
                front.extend(back);
                assert_eq!(front, expected, "seed {seed}, round {round}, {bounds:?}");
                let prefix = [b'a' + rng.below(12) as u8];
                expected = own
                    .iter()
                    .filter(|(key, _)| key.starts_with(&prefix))
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect();
                let found: Vec<_> = tx
                    .prefix(&p, prefix)
                    .unwrap()
                    .map(|entry| entry.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap())
                    .collect();
                assert_eq!(found, expected, "seed {seed}, round {round}, prefix {prefix:?}");
            }
            if rng.one_in(3) {
                tx.rollback();
            } else {
                tx.commit().unwrap();
                model = own;
            }
            if rng.one_in(5) {
                keyspace.flush().unwrap();
            }
        }
    });
}

#[test]
fn a_lost_update_is_a_conflict() {
    optimistic(|keyspace, p| {
        p.insert("n", "1").unwrap();
        let (mut a, mut b) = (keyspace.write_tx().unwrap(), keyspace.write_tx().unwrap());
        for tx in [&mut a, &mut b] {
            let read = number(tx.get(&p, "n").unwrap().as_ref());
            tx.insert(&p, "n", (read + 1).to_string()).unwrap();
        }
        a.commit().unwrap();
        assert!(is_conflict(b.commit()));
        assert_eq!(number(p.get("n").unwrap().as_ref()), 2);
    });
}

#[test]
fn write_skew_is_a_conflict() {
    optimistic(|keyspace, p| {
        // Two doctors on call; each goes if the other stays.
        p.insert("ada", "on").unwrap();
        p.insert("bob", "on").unwrap();
        let (mut a, mut b) = (keyspace.write_tx().unwrap(), keyspace.write_tx().unwrap());
        for (tx, who, other) in [(&mut a, "ada", "bob"), (&mut b, "bob", "ada")] {
            assert_eq!(tx.get(&p, other).unwrap().as_deref(), Some(&b"on"[..]));
            tx.insert(&p, who, "off").unwrap();
        }
        a.commit().unwrap();
        assert!(is_conflict(b.commit()));
        assert_eq!(p.get("bob").unwrap().as_deref(), Some(&b"on"[..]));
    });
}

/// A way to read a range in which nothing is.
type Scan = fn(&WriteTx, &TxPartition) -> usize;

#[test]
fn a_phantom_is_a_conflict_however_the_range_was_read() {
    let scans: [(&str, Scan); 6] = [
        ("range", |tx, p| tx.range(p, "k"..="l").unwrap().count()),
        ("backward", |tx, p| tx.range(p, "k"..).unwrap().rev().count()),
        ("prefix", |tx, p| tx.prefix(p, "k").unwrap().count()),
        ("iter, not read to its end", |tx, p| tx.iter(p).unwrap().take(0).count()),
        ("is_empty", |tx, p| usize::from(!tx.is_empty(p).unwrap())),
        ("get of what is not there", |tx, p| tx.get(p, "k1").unwrap().iter().len()),
    ];
    for (name, scan) in scans {
        optimistic(|keyspace, p| {
            let mut tx = keyspace.write_tx().unwrap();
            assert_eq!(scan(&tx, &p), 0, "{name}");
            tx.insert(&p, "count", "0").unwrap();
            p.insert("k1", "v").unwrap();
            assert!(is_conflict(tx.commit()), "{name}");
            assert_eq!(p.get("count").unwrap(), None);
        });
    }
}

#[test]
fn what_was_not_read_or_not_changed_is_no_conflict() {
    optimistic(|keyspace, p| {
        let q = keyspace.partition("q", PartitionOptions::default()).unwrap();
        p.insert("a", "1").unwrap();
        let mut tx = keyspace.write_tx().unwrap();
        assert!(tx.get(&p, "a").unwrap().is_some());
        assert_eq!(tx.range(&p, "b".."c").unwrap().count(), 0);
        assert_eq!(tx.range(&p, "z".."a").unwrap().count(), 0);
        // Written and not read: the later commit wins.
        tx.insert(&p, "x", "tx").unwrap();
        // Its own change was read, not that of others.
        assert!(tx.get(&p, "x").unwrap().is_some());
        p.insert("x", "other").unwrap();
        p.insert("c", "beside the range").unwrap();
        q.insert("a", "the same key elsewhere").unwrap();
        q.clear().unwrap();
        tx.commit().unwrap();
        assert_eq!(p.get("x").unwrap().as_deref(), Some(&b"tx"[..]));
    });
}

#[test]
fn changes_without_a_transaction_are_noted_as_well() {
    let changes: [Changing; 4] = [
        ("insert", |_, p| p.insert("a", "2").unwrap()),
        ("remove", |_, p| p.remove("a").unwrap()),
        ("batch", |keyspace, p| {
            let mut batch = keyspace.batch();
            batch.insert(p, "z", "1").remove(p, "a");
            batch.commit().unwrap();
        }),
        ("clear", |_, p| p.clear().unwrap()),
    ];
    for (name, change) in changes {
        optimistic(|keyspace, p| {
            p.insert("a", "1").unwrap();
            let mut tx = keyspace.write_tx().unwrap();
            assert!(tx.get(&p, "a").unwrap().is_some());
            tx.insert(&p, "b", "1").unwrap();
            change(&keyspace, &p);
            assert!(is_conflict(tx.commit()), "{name}");
        });
    }
}

#[test]
fn a_transaction_on_a_partition_that_is_dropped_commits_nothing() {
    optimistic(|keyspace, p| {
        let other = keyspace.partition("other", PartitionOptions::default()).unwrap();
        let mut tx = keyspace.write_tx().unwrap();
        tx.insert(&other, "a", "1").unwrap();
        tx.insert(&p, "a", "1").unwrap();
        keyspace.drop_partition("other").unwrap();
        let error = tx.commit().unwrap_err();
        assert!(matches!(error, Error::PartitionDropped { .. }), "{error}");
        assert!(p.is_empty().unwrap());
    });
}

#[test]
fn a_change_that_is_refused_keeps_the_whole_transaction_out() {
    in_both_kinds(|keyspace, p| {
        let dir = chaos::memory_dir();
        let (_other, foreign) = open(&dir.path().join("other"), keyspace.kind());
        let too_long = vec![b'k'; 70_000];
        let before = keyspace.seqno();
        for (partition, key) in [(&p, &b""[..]), (&p, &too_long), (&foreign, b"k")] {
            let mut tx = keyspace.write_tx().unwrap();
            tx.insert(&p, "good", "v").unwrap();
            assert_eq!(tx.insert(partition, key, "v").unwrap_err().kind(), ErrorKind::FixInput);
            assert_eq!(tx.commit().unwrap_err().kind(), ErrorKind::FixInput);
        }
        let tx = keyspace.write_tx().unwrap();
        assert_eq!(tx.get(&foreign, "k").unwrap_err().kind(), ErrorKind::FixInput);
        assert_eq!(tx.iter(&foreign).unwrap_err().kind(), ErrorKind::FixInput);
        drop(tx);
        assert_eq!(keyspace.seqno(), before);
    });
}

#[test]
fn values_are_changed_by_what_they_are() {
    in_both_kinds(|keyspace, p| {
        let plus = |by: u64| {
            move |value: Option<&Slice>| Some(Slice::from((number(value) + by).to_string()))
        };
        assert_eq!(p.update_fetch("n", plus(5)).unwrap().as_deref(), Some(&b"5"[..]));
        assert_eq!(p.fetch_update("n", plus(2)).unwrap().as_deref(), Some(&b"5"[..]));
        assert_eq!(p.take("n").unwrap().as_deref(), Some(&b"7"[..]));
        assert_eq!(p.take("n").unwrap(), None);
        assert_eq!(p.get("n").unwrap(), None);
        let mut tx = keyspace.write_tx().unwrap();
        tx.update_fetch(&p, "n", plus(1)).unwrap();
        assert_eq!(tx.fetch_update(&p, "n", plus(1)).unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(tx.take(&p, "n").unwrap().as_deref(), Some(&b"2"[..]));
        assert_eq!(tx.get(&p, "n").unwrap(), None);
        tx.commit().unwrap();
        assert!(p.is_empty().unwrap());
    });
}

#[test]
fn counters_of_many_threads_lose_nothing() {
    in_both_kinds(|keyspace, p| {
        let (threads, each) = (4_u64, 100_u64);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (keyspace, p) = (&keyspace, &p);
                scope.spawn(move || {
                    for _ in 0..each {
                        keyspace
                            .transact(|tx| {
                                let read = number(tx.get(p, "n")?.as_ref());
                                tx.insert(p, "n", (read + 1).to_string())?;
                                tx.insert(p, format!("last of {thread}"), read.to_string())
                            })
                            .unwrap();
                    }
                });
            }
        });
        assert_eq!(number(p.get("n").unwrap().as_ref()), threads * each);
    });
}

#[test]
fn whoever_changes_something_waits_for_the_single_writer() {
    let changes: [Changing; 7] = [
        ("take", |_, p| _ = p.take("z").unwrap()),
        ("update_fetch", |_, p| _ = p.update_fetch("z", |_| Some("1".into())).unwrap()),
        ("insert", |_, p| p.insert("b", "2").unwrap()),
        ("batch", |keyspace, p| {
            let mut batch = keyspace.batch();
            batch.insert(p, "b", "2");
            batch.commit().unwrap();
        }),
        ("clear", |_, p| p.clear().unwrap()),
        ("drop", |keyspace, _| assert!(keyspace.drop_partition("p").unwrap())),
        ("transaction", |keyspace, _| keyspace.write_tx().unwrap().rollback()),
    ];
    for (name, change) in changes {
        let dir = chaos::memory_dir();
        let (keyspace, p) = open(&dir.path().join("db"), TxKind::SingleWriter);
        let mut tx = keyspace.write_tx().unwrap();
        let before = keyspace.seqno();
        let (done, finished) = mpsc::channel();
        let other = (keyspace.clone(), p.clone());
        // Not scoped: what hangs must not keep the test from failing.
        std::thread::spawn(move || {
            change(&other.0, &other.1);
            done.send(()).unwrap();
        });
        {
            let early = finished.recv_timeout(Duration::from_millis(30));
            assert!(early.is_err(), "{name} did not wait");
            assert_eq!(keyspace.seqno(), before);
            // Readers do not wait.
            assert_eq!(p.get("b").unwrap(), None);
            tx.insert(&p, "a", "1").unwrap();
            // A partition can be created meanwhile.
            keyspace.partition("new", PartitionOptions::default()).unwrap();
            tx.commit().unwrap();
        }
        finished.recv_timeout(Duration::from_secs(10)).unwrap();
    }
}

#[test]
fn who_waits_for_the_single_writer_hears_of_the_close() {
    let dir = chaos::memory_dir();
    let (keyspace, p) = open(&dir.path().join("db"), TxKind::SingleWriter);
    let tx = keyspace.write_tx().unwrap();
    let (done, finished) = mpsc::channel();
    let waiting = p.clone();
    std::thread::spawn(move || done.send(waiting.insert("a", "1")).unwrap());
    assert!(finished.recv_timeout(Duration::from_millis(30)).is_err());
    keyspace.clone().close().unwrap();
    let heard = finished.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(heard.unwrap_err().kind(), ErrorKind::Closed);
    drop(tx);
}

#[test]
fn a_panic_in_a_transaction_gives_the_turn_back() {
    in_both_kinds(|keyspace, p| {
        let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            keyspace.transact(|tx| -> esker::Result<()> {
                tx.insert(&p, "a", "1")?;
                panic!("planned");
            })
        }));
        assert!(panics.is_err());
        p.insert("b", "2").unwrap();
        assert_eq!(p.len().unwrap(), 1);
    });
}

/// Reads a key and counts it up.
fn count_up(keyspace: &TxKeyspace, p: &TxPartition) -> esker::Result<()> {
    let mut attempts = 0;
    keyspace.transact(|tx| {
        attempts += 1;
        assert!(attempts < 100, "it begins again for ever");
        let read = number(tx.get(p, "n")?.as_ref());
        tx.insert(p, "n", (read + 1).to_string())
    })
}

#[test]
fn a_transaction_on_a_poisoned_keyspace_hears_of_it_and_not_of_a_conflict() {
    let dir = chaos::memory_dir();
    let path = dir.path().join("db");
    let (keyspace, p) = open(&path, TxKind::Optimistic);
    count_up(&keyspace, &p).unwrap();
    // A directory in the way of the new CATALOG.
    std::fs::create_dir(path.join("CATALOG.tmp")).unwrap();
    let created = keyspace.partition("another", PartitionOptions::default());
    assert!(created.is_err());
    for _ in 0..3 {
        assert_eq!(count_up(&keyspace, &p).unwrap_err().kind(), ErrorKind::Poisoned);
    }
}

#[test]
fn an_iterator_shows_the_moment_it_was_made_while_the_transaction_goes_on() {
    in_both_kinds(|keyspace, p| {
        for key in ["a1", "a2", "a3", "b"] {
            p.insert(key, "v").unwrap();
        }
        let mut tx = keyspace.write_tx().unwrap();
        tx.insert(&p, "a4", "own").unwrap();
        let mut removed = 0;
        for entry in tx.prefix(&p, "a").unwrap() {
            let (key, _) = entry.unwrap();
            tx.remove(&p, key).unwrap();
            removed += 1;
        }
        assert_eq!((removed, tx.len(&p).unwrap()), (4, 1));
        tx.commit().unwrap();
        assert_eq!(p.len().unwrap(), 1);
    });
}

#[test]
fn a_queue_is_emptied_at_one_end_while_it_is_filled_at_the_other() {
    optimistic(|keyspace, p| {
        p.insert("1", "v").unwrap();
        p.insert("2", "v").unwrap();
        let mut tx = keyspace.write_tx().unwrap();
        let (first, _) = tx.first_key_value(&p).unwrap().unwrap();
        tx.remove(&p, first).unwrap();
        p.insert("3", "v").unwrap();
        tx.commit().unwrap();
        // But not while somebody puts something before what was taken.
        let mut tx = keyspace.write_tx().unwrap();
        let (first, _) = tx.first_key_value(&p).unwrap().unwrap();
        tx.remove(&p, first).unwrap();
        p.insert("0", "v").unwrap();
        assert!(is_conflict(tx.commit()));
    });
}

#[test]
fn a_keyspace_that_is_closed_or_read_only_begins_no_transaction() {
    for kind in KINDS {
        let dir = chaos::memory_dir();
        let path = dir.path().join("db");
        let (keyspace, p) = open(&path, kind);
        let mut tx = keyspace.write_tx().unwrap();
        tx.insert(&p, "a", "1").unwrap();
        keyspace.clone().close().unwrap();
        assert_eq!(tx.commit().unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(keyspace.write_tx().unwrap_err().kind(), ErrorKind::Closed);
        drop((p, keyspace));
        let keyspace = Config::new(&path).read_only(true).open_transactional(kind).unwrap();
        assert!(matches!(keyspace.write_tx().unwrap_err(), Error::ReadOnly { .. }));
        assert!(keyspace.read_tx().seqno() > 0);
    }
}

#[test]
fn the_files_are_those_of_every_keyspace() {
    let dir = chaos::memory_dir();
    let path = dir.path().join("db");
    let (keyspace, p) = open(&path, TxKind::Optimistic);
    p.insert("a", "1").unwrap();
    keyspace.close().unwrap();
    drop(p);
    let plain = Keyspace::open(&path).unwrap();
    plain.partition("p", PartitionOptions::default()).unwrap().insert("b", "2").unwrap();
    plain.close().unwrap();
    let (keyspace, p) = open(&path, TxKind::SingleWriter);
    assert_eq!(p.len().unwrap(), 2);
    assert_eq!(keyspace.kind(), TxKind::SingleWriter);
}

#[test]
fn every_checkpoint_holds_whole_transactions() {
    in_both_kinds(|keyspace, p| {
        let accounts = 10_u64;
        for account in 0..accounts {
            p.insert([account as u8], "100").unwrap();
        }
        let dir = chaos::memory_dir();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (keyspace, p, stop) = (&keyspace, &p, &stop);
                scope.spawn(move || {
                    let mut rng = Rng::new(thread);
                    while !stop.load(Ordering::Relaxed) {
                        let (from, to) = (rng.below(accounts) as u8, rng.below(accounts) as u8);
                        keyspace
                            .transact(|tx| {
                                let has = number(tx.get(p, [from])?.as_ref());
                                tx.insert(p, [from], (has - has.min(7)).to_string())?;
                                let had = number(tx.get(p, [to])?.as_ref());
                                tx.insert(p, [to], (had + has.min(7)).to_string())
                            })
                            .unwrap();
                    }
                });
            }
            for number_of_copy in 0..5 {
                let copy = dir.path().join(number_of_copy.to_string());
                keyspace.backup_to(&copy).unwrap();
                let (_copy, p) = open(&copy, TxKind::Optimistic);
                let entries = p.iter().unwrap().map(|entry| entry.unwrap());
                let sum: u64 = entries.map(|(_, value)| number(Some(&value))).sum();
                assert_eq!(sum, accounts * 100);
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn statistics_count_open_transactions_and_conflicts() {
    in_both_kinds(|keyspace, p| {
        let figures = || {
            let s = keyspace.statistics();
            (s.open_transactions, s.conflict_entries, s.conflicts)
        };
        assert_eq!(figures(), (0, 0, 0));
        let mut tx = keyspace.write_tx().unwrap();
        let optimistic = keyspace.kind() == TxKind::Optimistic;
        assert_eq!((figures(), keyspace.statistics().open_snapshots), ((1, 0, 0), 1));
        if optimistic {
            // What an open transaction may conflict with is remembered until it is over.
            let other = keyspace.write_tx().unwrap();
            assert!(tx.get(&p, "a").unwrap().is_none());
            for key in ["a", "b", "c"] {
                p.insert(key, "v").unwrap();
            }
            assert_eq!(figures(), (2, 3, 0));
            other.rollback();
            assert_eq!(figures(), (1, 3, 0));
        }
        tx.insert(&p, "d", "v").unwrap();
        assert_eq!(is_conflict(tx.commit()), optimistic);
        let json = serde_json::to_value(keyspace.statistics()).unwrap();
        assert_eq!(json["open_transactions"], 0);
        assert_eq!(json["conflict_entries"], 0);
        assert_eq!(json["conflicts"], u64::from(optimistic));
        // A group of transactions that all read the same: all but one are refused, and counted.
        let before = keyspace.statistics().conflicts;
        let refused = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let mut tx = keyspace.write_tx().unwrap();
                        let read = number(tx.get(&p, "n").unwrap().as_ref());
                        tx.insert(&p, "n", (read + 1).to_string()).unwrap();
                        if is_conflict(tx.commit()) {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let refused = refused.into_inner();
        assert_eq!(keyspace.statistics().conflicts - before, refused);
        assert_eq!(number(p.get("n").unwrap().as_ref()), 200 - refused);
    });
}

/// Sums up the values of a range.
fn sum(tx: &WriteTx, p: &TxPartition, range: std::ops::Range<&str>) -> u64 {
    let entries = tx.range(p, range).unwrap().map(|entry| entry.unwrap());
    entries.map(|(_, value)| number(Some(&value))).sum()
}

#[test]
fn two_sums_each_stored_in_the_range_of_the_other_are_a_conflict() {
    for first_range_is_empty in [false, true] {
        optimistic(|keyspace, p| {
            if !first_range_is_empty {
                p.insert("a1", "10").unwrap();
            }
            p.insert("b1", "100").unwrap();
            p.insert("b2", "200").unwrap();
            let (mut one, mut two) = (keyspace.write_tx().unwrap(), keyspace.write_tx().unwrap());
            let (a, b) = (sum(&one, &p, "a".."b"), sum(&two, &p, "b".."c"));
            one.insert(&p, "b3", a.to_string()).unwrap();
            two.insert(&p, "a3", b.to_string()).unwrap();
            two.commit().unwrap();
            assert!(is_conflict(one.commit()));
            let after = keyspace.write_tx().unwrap();
            assert_eq!(sum(&after, &p, "a".."b"), a + 300);
            assert_eq!(sum(&after, &p, "b".."c"), 300);
        });
    }
}

#[test]
fn two_values_that_take_the_place_of_each_other_are_a_conflict() {
    optimistic(|keyspace, p| {
        p.insert("x", "x").unwrap();
        p.insert("y", "y").unwrap();
        let (mut one, mut two) = (keyspace.write_tx().unwrap(), keyspace.write_tx().unwrap());
        for (tx, from, to) in [(&mut one, "x", "y"), (&mut two, "y", "x")] {
            let value = tx.get(&p, from).unwrap().unwrap();
            tx.insert(&p, to, value).unwrap();
        }
        one.commit().unwrap();
        assert!(is_conflict(two.commit()));
        assert_eq!(p.get("x").unwrap(), p.get("y").unwrap());
    });
}

#[test]
fn of_two_transactions_that_only_write_the_later_one_stays_whole() {
    optimistic(|keyspace, p| {
        let q = keyspace.partition("q", PartitionOptions::default()).unwrap();
        let (mut one, mut two) = (keyspace.write_tx().unwrap(), keyspace.write_tx().unwrap());
        one.insert(&p, "k", "one").unwrap();
        two.insert(&q, "k", "two").unwrap();
        one.insert(&q, "k", "one").unwrap();
        one.commit().unwrap();
        two.insert(&p, "k", "two").unwrap();
        assert_eq!(p.get("k").unwrap().as_deref(), Some(&b"one"[..]));
        two.commit().unwrap();
        for partition in [&p, &q] {
            assert_eq!(partition.get("k").unwrap().as_deref(), Some(&b"two"[..]));
        }
    });
}

#[test]
fn what_was_rolled_back_was_read_by_nobody_and_is_no_conflict() {
    optimistic(|keyspace, p| {
        p.insert("k", "before").unwrap();
        let (mut one, mut two) = (keyspace.write_tx().unwrap(), keyspace.write_tx().unwrap());
        one.insert(&p, "k", "never").unwrap();
        assert_eq!(two.get(&p, "k").unwrap().as_deref(), Some(&b"before"[..]));
        one.rollback();
        assert_eq!(two.get(&p, "k").unwrap().as_deref(), Some(&b"before"[..]));
        two.insert(&p, "l", "after").unwrap();
        two.commit().unwrap();
    });
}

/// One has read what two changes and three sees changed: there is no order for all of them once one
/// writes.
#[test]
fn who_has_read_before_a_change_that_others_have_seen_cannot_write_behind_it() {
    optimistic(|keyspace, p| {
        p.insert("1", "10").unwrap();
        p.insert("2", "20").unwrap();
        let mut one = keyspace.write_tx().unwrap();
        assert_eq!(sum(&one, &p, "0".."9"), 30);
        p.update_fetch("2", |value| Some((number(value) + 5).to_string().into())).unwrap();
        let three = keyspace.write_tx().unwrap();
        assert_eq!(sum(&three, &p, "0".."9"), 35);
        three.commit().unwrap();
        one.insert(&p, "1", "0").unwrap();
        assert!(is_conflict(one.commit()));
        assert_eq!(number(p.get("1").unwrap().as_ref()), 10);
    });
}

#[test]
fn what_was_committed_is_not_remembered_for_ever() {
    optimistic(|keyspace, p| {
        for round in 0..2_000_u64 {
            let (mut one, mut two) = (keyspace.write_tx().unwrap(), keyspace.write_tx().unwrap());
            assert_eq!(two.get(&p, "n").unwrap(), one.get(&p, "n").unwrap());
            one.insert(&p, "n", round.to_string()).unwrap();
            two.insert(&p, round.to_string(), "").unwrap();
            one.commit().unwrap();
            assert!(is_conflict(two.commit()));
        }
        let statistics = keyspace.statistics();
        assert!(statistics.conflict_entries <= 2, "{statistics:?}");
        assert_eq!((statistics.conflicts, statistics.open_transactions), (2_000, 0));
    });
}

#[test]
fn a_transaction_that_is_over_closes_its_own_view_and_no_other() {
    optimistic(|keyspace, p| {
        let open = || keyspace.statistics().open_snapshots;
        let (mut one, two) = (keyspace.write_tx().unwrap(), keyspace.write_tx().unwrap());
        let snapshot = keyspace.read_tx();
        assert_eq!(open(), 3);
        one.insert(&p, "a", "v").unwrap();
        one.commit().unwrap();
        assert_eq!(open(), 2);
        assert_eq!(two.get(&p, "a").unwrap(), None);
        drop(two);
        assert_eq!(open(), 1);
        assert_eq!(snapshot.get(&p, "a").unwrap(), None);
    });
}
