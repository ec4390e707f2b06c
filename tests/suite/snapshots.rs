//! A snapshot reads the same for as long as it is held, whatever happens.

use std::sync::atomic::{AtomicBool, Ordering};

use esker::{Partition, PartitionOptions, Snapshot};
use esker_tests::store::Entries;
use esker_tests::{Seeded, Store, fill};

fn read(snapshot: &Snapshot, partition: &Partition) -> Entries {
    let entry = |e: esker::Result<(esker::Slice, esker::Slice)>| {
        let (key, value) = e.unwrap();
        (key.to_vec(), value.to_vec())
    };
    snapshot.iter(partition).unwrap().map(entry).collect()
}

#[test]
fn several_keys_are_read_as_of_one_moment() {
    let store = Store::new();
    let p = store.partition("p");
    for (key, value) in [("a", "1"), ("b", "2")] {
        p.insert(key, value).unwrap();
    }
    let text = |values: Vec<Option<esker::Slice>>| -> Vec<Option<String>> {
        let text = |value: esker::Slice| String::from_utf8(value.to_vec()).unwrap();
        values.into_iter().map(|value| value.map(text)).collect()
    };
    let keys = ["b", "missing", "a", "b"];
    let before = [Some("2".to_owned()), None, Some("1".to_owned()), Some("2".to_owned())];
    let snapshot = store.keyspace().snapshot();
    assert_eq!(text(p.multi_get(&keys).unwrap()), before);
    assert_eq!(p.multi_get::<&str>(&[]).unwrap(), []);
    // Pairs that are always written together are never read apart.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0_u64.. {
                let mut batch = store.keyspace().batch();
                batch.insert(&p, "a", number.to_string()).insert(&p, "b", number.to_string());
                batch.commit().unwrap();
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        while p.get("a").unwrap() != p.get("b").unwrap() {}
        for _ in 0..2_000 {
            let found = text(p.multi_get(&["a", "b", "a"]).unwrap());
            let together = found[0] == found[1] && found[1] == found[2];
            assert!(together || found == [Some("1".into()), Some("2".into()), Some("1".into())]);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(text(snapshot.multi_get(&p, &keys).unwrap()), before);
}

#[test]
fn a_snapshot_has_every_read_of_a_partition() {
    let store = Store::new();
    let p = store.partition("p");
    for key in ["a", "b", "bb", "c"] {
        p.insert(key, format!("value of {key}")).unwrap();
    }
    let snapshot = store.keyspace().snapshot();
    assert_eq!(snapshot.seqno(), store.keyspace().seqno());
    p.insert("b", "overwritten").unwrap();
    p.remove("c").unwrap();
    p.insert("d", "new").unwrap();
    assert_eq!(snapshot.get(&p, "b").unwrap().as_deref(), Some(&b"value of b"[..]));
    assert_eq!(snapshot.size_of(&p, "b").unwrap(), Some(10));
    assert!(snapshot.contains_key(&p, "c").unwrap());
    assert!(!snapshot.contains_key(&p, "d").unwrap());
    assert_eq!(snapshot.get(&p, "d").unwrap(), None);
    assert_eq!(snapshot.size_of(&p, "d").unwrap(), None);
    assert_eq!(snapshot.range(&p, "b".."c").unwrap().count(), 2);
    assert_eq!(snapshot.prefix(&p, "b").unwrap().rev().count(), 2);
    assert_eq!(snapshot.iter(&p).unwrap().keys().count(), 4);
    assert_eq!(snapshot.first_key_value(&p).unwrap().unwrap().0[..], *b"a");
    assert_eq!(snapshot.last_key_value(&p).unwrap().unwrap().0[..], *b"c");
    assert_eq!(snapshot.len(&p).unwrap(), 4);
    assert!(!snapshot.is_empty(&p).unwrap());
    let clone = snapshot.clone();
    drop(snapshot);
    assert_eq!(clone.len(&p).unwrap(), 4, "a clone holds the view on its own");
}

#[test]
fn a_partition_created_after_the_snapshot_is_empty_in_it() {
    let store = Store::new();
    store.write("old", "k", "v");
    let snapshot = store.keyspace().snapshot();
    let new = store.partition("new");
    new.insert("k", "v").unwrap();
    assert!(snapshot.is_empty(&new).unwrap());
    store.keyspace().flush().unwrap();
    new.compact().unwrap();
    assert!(snapshot.is_empty(&new).unwrap());
    new.clear().unwrap();
    new.insert("k", "again").unwrap();
    assert!(snapshot.is_empty(&new).unwrap());
}

#[test]
fn a_snapshot_survives_overwriting_flush_compaction_clear_and_drop() {
    for separate in [None, Some(8)] {
        let store = Store::new();
        let options = PartitionOptions::default().separate_values_from(separate);
        let p = store.partition_with("p", options);
        fill(&p, 300);
        let snapshot = store.keyspace().snapshot();
        let first = read(&snapshot, &p);
        assert_eq!(first.len(), 300);
        let check = |after: &str| {
            assert!(read(&snapshot, &p) == first, "after {after}, separated from {separate:?}");
            let get = snapshot.get(&p, "key 000007").unwrap().unwrap();
            assert_eq!(get[..], first[&b"key 000007"[..]], "after {after}");
        };
        for number in 0..300 {
            let key = format!("key {number:06}");
            if number % 3 == 0 {
                p.remove(key).unwrap();
            } else {
                p.insert(key, "overwritten, and long enough to be separated").unwrap();
            }
        }
        check("overwriting");
        store.keyspace().flush().unwrap();
        check("flush");
        p.compact().unwrap();
        check("compaction");
        store.keyspace().flush().unwrap();
        p.compact().unwrap();
        check("a second compaction");
        p.clear().unwrap();
        check("clear");
        fill(&p, 10);
        store.keyspace().flush().unwrap();
        p.compact().unwrap();
        check("writing after clear");
        p.clear().unwrap();
        check("a second clear");
        store.keyspace().drop_partition("p").unwrap();
        check("drop");
        fill(&store.partition("p"), 5);
        check("creating one of the same name");
    }
}

#[test]
fn snapshots_of_different_moments_differ_as_the_moments_did() {
    let mut random = Seeded::new("snapshots_of_different_moments_differ_as_the_moments_did");
    let store = Store::with(|config| config.memtable_bytes(2048).journal_segment_bytes(4096));
    let p = store.partition_with("p", PartitionOptions::default().l0_runs(1));
    let mut model = Entries::new();
    let mut held: Vec<(Snapshot, Entries)> = Vec::new();
    for step in 0..4_000 {
        let key = random.below(60).to_be_bytes().to_vec();
        match random.below(100) {
            0..70 => {
                let value = random.bytes(16);
                p.insert(&key[..], &value[..]).unwrap();
                model.insert(key, value);
            }
            70..90 => {
                p.remove(&key[..]).unwrap();
                model.remove(&key);
            }
            90..96 if held.len() < 6 => {
                held.push((store.keyspace().snapshot(), model.clone()));
            }
            90..98 if !held.is_empty() => {
                let index = random.below(held.len() as u64) as usize;
                let (snapshot, expected) = held.swap_remove(index);
                assert!(read(&snapshot, &p) == expected, "step {step}");
            }
            98 => p.compact().unwrap(),
            _ if random.one_in(10) => {
                p.clear().unwrap();
                model.clear();
            }
            _ => {}
        }
        if step % 500 == 0 {
            for (snapshot, expected) in &held {
                assert!(read(snapshot, &p) == *expected, "step {step}");
            }
        }
    }
    assert!(esker_tests::store::entries(&p) == model);
}

/// Reads without a snapshot register nowhere; one that a merge overtakes has to start again.
#[test]
fn reads_under_flush_and_compaction_never_miss_a_key_that_always_exists() {
    let store = Store::with(|config| {
        config.memtable_bytes(1024).journal_segment_bytes(16 << 10).worker_threads(3)
    });
    let p = store.partition_with("p", PartitionOptions::default().l0_runs(1).block_bytes(256));
    let keys = ["always a", "always b", "always c"];
    for key in keys {
        p.insert(key, 0u64.to_be_bytes().as_slice()).unwrap();
    }
    let done = AtomicBool::new(false);
    let mut reads = 0u64;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 1..=4_000u64 {
                p.insert(*keys.get(round as usize % 3).unwrap(), round.to_be_bytes().as_slice())
                    .unwrap();
                p.insert(format!("filler {}", round % 50), "x".repeat(40)).unwrap();
                if round % 500 == 0 {
                    p.compact().unwrap();
                }
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let found = p.prefix("always").unwrap().filter(Result::is_ok).count();
                assert_eq!(found, 3, "a scan missed a key");
            }
        });
        let mut last = [0u64; 3];
        while !writer.is_finished() {
            for (index, key) in keys.iter().enumerate() {
                let value = p.get(key).unwrap().unwrap_or_else(|| panic!("{key} was missed"));
                let number = u64::from_be_bytes(value[..].try_into().unwrap());
                assert!(number >= last[index], "{key} went back to {number} from {}", last[index]);
                last[index] = number;
                reads += 1;
            }
        }
        done.store(true, Ordering::Release);
        writer.join().unwrap();
    });
    let statistics = store.keyspace().statistics();
    assert!(reads > 0 && statistics.flushes > 10 && statistics.compactions > 0, "{statistics:?}");
}

#[test]
fn a_snapshot_under_flush_and_compaction_never_changes() {
    let store = Store::with(|config| config.memtable_bytes(1024).journal_segment_bytes(16 << 10));
    let p = store.partition_with("p", PartitionOptions::default().l0_runs(1));
    fill(&p, 50);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..100 {
                for number in 0..50 {
                    p.insert(format!("key {number:06}"), format!("round {round}")).unwrap();
                }
            }
        });
        while !writer.is_finished() {
            let snapshot = store.keyspace().snapshot();
            let first = read(&snapshot, &p);
            assert_eq!(first.len(), 50);
            for _ in 0..5 {
                assert!(read(&snapshot, &p) == first, "at commit {}", snapshot.seqno());
            }
        }
        writer.join().unwrap();
    });
}
