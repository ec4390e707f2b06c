//! Batches are atomic across partitions: for readers, and after a crash.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use esker::{Durability, ErrorKind};
use esker_tests::{Store, child};

#[test]
fn an_empty_batch_commits_nothing() {
    let store = Store::new();
    store.write("p", "k", "v");
    let before = store.keyspace().seqno();
    let batch = store.keyspace().batch();
    assert!(batch.is_empty());
    assert_eq!(batch.len(), 0);
    assert_eq!(batch.commit().unwrap(), before);
    assert_eq!(store.keyspace().seqno(), before);
}

#[test]
fn later_changes_of_a_key_win() {
    let mut store = Store::new();
    let p = store.partition("p");
    let mut batch = store.keyspace().batch();
    batch.insert(&p, "a", "1").insert(&p, "a", "2");
    batch.insert(&p, "b", "1").remove(&p, "b");
    batch.remove(&p, "c").insert(&p, "c", "3");
    assert_eq!(batch.len(), 6);
    batch.commit().unwrap();
    for round in ["in memory", "after a crash", "after reopening"] {
        assert_eq!(store.get("p", "a").as_deref(), Some("2"), "{round}");
        assert_eq!(store.get("p", "b"), None, "{round}");
        assert_eq!(store.get("p", "c").as_deref(), Some("3"), "{round}");
        if round == "in memory" {
            store.crash();
        }
        store.reopen();
    }
}

#[test]
fn a_batch_with_one_bad_key_writes_nothing() {
    let store = Store::new();
    let p = store.partition("p");
    let before = store.keyspace().seqno();
    let mut batch = store.keyspace().batch();
    batch.insert(&p, "good", "v").insert(&p, "", "v").insert(&p, "also good", "v");
    let error = batch.commit().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FixInput, "{error}");
    assert!(p.is_empty().unwrap());
    assert_eq!(store.keyspace().seqno(), before);
}

#[test]
fn a_batch_on_a_partition_dropped_meanwhile_writes_nothing() {
    let store = Store::new();
    let (a, b) = (store.partition("a"), store.partition("b"));
    let mut batch = store.keyspace().batch();
    batch.insert(&a, "k", "v").insert(&b, "k", "v");
    store.keyspace().drop_partition("b").unwrap();
    assert_eq!(batch.commit().unwrap_err().kind(), ErrorKind::FixInput);
    assert!(a.is_empty().unwrap());
}

#[test]
fn a_batch_can_ask_for_more_durability_than_the_keyspace() {
    let store = Store::new();
    let p = store.partition("p");
    let syncs = || store.keyspace().statistics().journal_syncs;
    let before = syncs();
    p.insert("k", "v").unwrap();
    assert_eq!(syncs(), before);
    let mut batch = store.keyspace().batch();
    batch.insert(&p, "k", "v");
    batch.durability(Durability::SyncData);
    batch.commit().unwrap();
    assert_eq!(syncs(), before + 1);
}

#[test]
fn a_batch_larger_than_segment_and_memtable_is_whole() {
    let mut store = Store::with(|config| config.journal_segment_bytes(4096).memtable_bytes(1024));
    let (a, b) = (store.partition("a"), store.partition("b"));
    let mut batch = store.keyspace().batch();
    for number in 0..2_000 {
        batch.insert(&a, format!("{number:05}"), "a value of some length");
        batch.insert(&b, format!("{number:05}"), "a value of some length");
    }
    batch.commit().unwrap();
    store.crash();
    store.open();
    assert_eq!(store.partition("a").len().unwrap(), 2_000);
    assert_eq!(store.content()["a"], store.content()["b"]);
}

/// Two keys in two partitions always hold the same number; readers with a snapshot must never see
/// them differ, while tiny memtables are flushed and compacted all the time.
#[test]
fn a_snapshot_never_sees_half_a_batch() {
    let store = Store::with(|config| config.memtable_bytes(4096).journal_segment_bytes(8192));
    let (a, b) = (store.partition("a"), store.partition("b"));
    let (done, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let (keyspace, a, b) = (store.keyspace(), &a, &b);
            let (done, seen) = (&done, &seen);
            scope.spawn(move || {
                // However seldom the reader's thread runs, it sees something.
                let met = || seen.load(Ordering::Relaxed) > 0;
                let enough = |number: &u64| *number > 3_000 && (met() || *number > 300_000);
                for number in (1u64..).take_while(|number| !enough(number)) {
                    let mut batch = keyspace.batch();
                    let value = number.to_be_bytes();
                    batch.insert(a, format!("counter {writer}"), value.as_slice());
                    batch.insert(b, format!("counter {writer}"), value.as_slice());
                    batch.insert(a, format!("filler {writer} {number}"), value.as_slice());
                    batch.commit().unwrap();
                }
                done.store(true, Ordering::Release);
            });
        }
        while !done.load(Ordering::Acquire) {
            let snapshot = store.keyspace().snapshot();
            for writer in 0..2 {
                let key = format!("counter {writer}");
                let (from_a, from_b) =
                    (snapshot.get(&a, &key).unwrap(), snapshot.get(&b, &key).unwrap());
                assert_eq!(from_a, from_b, "at commit {}", snapshot.seqno());
                seen.fetch_add(u64::from(from_a.is_some()), Ordering::Relaxed);
            }
        }
    });
    assert!(seen.into_inner() > 0, "the reader looked while there was something to see");
}

#[test]
fn a_batch_is_atomic_across_partitions_after_a_crash_and_after_reopening() {
    let directory = child::crash(
        "batches::a_batch_is_atomic_across_partitions_after_a_crash_and_after_reopening",
        |path| {
            let keyspace = esker::Config::new(path)
                .memtable_bytes(4096)
                .journal_segment_bytes(4096)
                .open()
                .unwrap();
            let parts: Vec<_> = ["a", "b", "c"]
                .iter()
                .map(|name| keyspace.partition(name, Default::default()).unwrap())
                .collect();
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    let (keyspace, parts) = (&keyspace, &parts);
                    scope.spawn(move || {
                        for number in 0..500 {
                            let mut batch = keyspace.batch();
                            for part in parts {
                                batch.insert(part, format!("{thread} {number}"), "x".repeat(50));
                                batch.remove(part, format!("{thread} {}", number / 2));
                            }
                            batch.commit().unwrap();
                        }
                    });
                }
            });
            (keyspace, parts)
        },
    );
    let mut store = Store::adopt(directory, |config| config);
    for round in ["after a crash", "after reopening"] {
        let content = store.content();
        // Number n is removed by 2n and 2n + 1: the upper half remains, and nothing else.
        let expected: std::collections::BTreeSet<_> = (0..3)
            .flat_map(|thread| (250..500).map(move |n| format!("{thread} {n}").into_bytes()))
            .collect();
        for name in ["a", "b", "c"] {
            let keys: std::collections::BTreeSet<_> = content[name].keys().cloned().collect();
            assert_eq!(keys, expected, "{name} {round}");
        }
        store.reopen();
    }
}
