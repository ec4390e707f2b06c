//! Every public method of a partition and a keyspace, at its edges.

use esker::{Config, Durability, ErrorKind, Keyspace, PartitionOptions, Slice};
use esker_tests::{Store, fill};

fn text(slice: Option<Slice>) -> Option<String> {
    slice.map(|s| String::from_utf8(s.to_vec()).unwrap())
}

fn pair(entry: Option<(Slice, Slice)>) -> Option<(String, String)> {
    entry.map(|(k, v)| (text(Some(k)).unwrap(), text(Some(v)).unwrap()))
}

#[test]
fn an_empty_partition_answers_everything_with_nothing() {
    let store = Store::new();
    let empty = store.partition("empty");
    assert_eq!(empty.get("a").unwrap(), None);
    assert!(!empty.contains_key("a").unwrap());
    assert_eq!(empty.size_of("a").unwrap(), None);
    assert!(empty.first_key_value().unwrap().is_none());
    assert!(empty.last_key_value().unwrap().is_none());
    assert!(empty.iter().unwrap().next().is_none());
    assert!(empty.iter().unwrap().next_back().is_none());
    assert!(empty.prefix("").unwrap().next().is_none());
    assert!(empty.range("a".."z").unwrap().next().is_none());
    assert_eq!((empty.len().unwrap(), empty.approximate_len()), (0, 0));
    assert!(empty.is_empty().unwrap());
    assert_eq!(empty.disk_space(), 0);
    empty.compact().unwrap();
    empty.clear().unwrap();
    store.keyspace().flush().unwrap();
    assert!(empty.is_empty().unwrap());
}

#[test]
fn inserts_overwrites_and_removals_show_at_once_and_after_a_flush() {
    let store = Store::new();
    let p = store.partition("p");
    p.insert("b", "1").unwrap();
    p.insert("a", "22").unwrap();
    p.insert("b", "333").unwrap();
    p.insert("c", "").unwrap();
    p.remove("a").unwrap();
    p.remove("never there").unwrap();
    for flushed in [false, true] {
        if flushed {
            store.keyspace().flush().unwrap();
            p.compact().unwrap();
        }
        assert_eq!(text(p.get("b").unwrap()).as_deref(), Some("333"));
        assert_eq!(p.get("a").unwrap(), None);
        assert_eq!(text(p.get("c").unwrap()).as_deref(), Some(""), "an empty value is a value");
        assert_eq!((p.size_of("b").unwrap(), p.size_of("c").unwrap()), (Some(3), Some(0)));
        assert_eq!(p.size_of("a").unwrap(), None);
        assert!(p.contains_key("c").unwrap() && !p.contains_key("a").unwrap());
        assert_eq!(pair(p.first_key_value().unwrap()), Some(("b".into(), "333".into())));
        assert_eq!(pair(p.last_key_value().unwrap()), Some(("c".into(), String::new())));
        assert_eq!(p.len().unwrap(), 2);
        assert!(!p.is_empty().unwrap());
        assert!(p.approximate_len() >= 2);
    }
    assert_eq!(p.approximate_len(), 2, "compaction removed what is gone");
}

/// Also through the journal, where large values are compressed when that pays.
#[test]
fn values_of_no_and_of_twenty_million_bytes_survive_flush_reopening_and_crash() {
    let mut store = Store::new();
    let mut noise = vec![0u8; 20 << 20];
    let mut state = 1u64;
    for chunk in noise.chunks_mut(8) {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        chunk.copy_from_slice(&(state ^ (state >> 29)).to_le_bytes()[..chunk.len()]);
    }
    let plain = vec![7u8; 20 << 20];
    let blobs = PartitionOptions::default().separate_values_from(Some(1000));
    let write = |store: &Store| {
        for partition in [store.partition("p"), store.partition_with("blobs", blobs.clone())] {
            partition.insert("empty", "").unwrap();
            partition.insert("noise", noise.clone()).unwrap();
            partition.insert("plain", plain.clone()).unwrap();
        }
    };
    let check = |store: &Store, when: &str| {
        for name in ["p", "blobs"] {
            let p = store.partition(name);
            assert_eq!(p.get("empty").unwrap().as_deref(), Some(&[][..]), "{name} {when}");
            assert!(p.get("noise").unwrap().as_deref() == Some(&noise[..]), "{name} {when}");
            assert!(p.get("plain").unwrap().as_deref() == Some(&plain[..]), "{name} {when}");
            assert_eq!(p.size_of("plain").unwrap(), Some(20 << 20), "{name} {when}");
        }
    };
    write(&store);
    check(&store, "in memory");
    store.crash();
    store.open();
    check(&store, "after a crash");
    store.partition("blobs").compact().unwrap();
    check(&store, "after compaction");
    store.reopen();
    check(&store, "after reopening");
}

#[test]
fn keys_of_65535_bytes_are_kept_in_order() {
    let mut store = Store::new();
    let long = |last: u8| {
        let mut key = vec![b'k'; 65_535];
        key[65_534] = last;
        key
    };
    let p = store.partition("p");
    p.insert(long(1), "one").unwrap();
    p.insert(long(0), "zero").unwrap();
    p.insert("k", "short").unwrap();
    store.crash();
    store.open();
    let p = store.partition("p");
    store.keyspace().flush().unwrap();
    p.compact().unwrap();
    let keys: Vec<_> = p.iter().unwrap().keys().map(|k| k.unwrap().to_vec()).collect();
    assert_eq!(keys, [b"k".to_vec(), long(0), long(1)]);
    assert_eq!(text(p.get(long(1)).unwrap()).as_deref(), Some("one"));
    assert_eq!(p.prefix([b'k'; 65_534]).unwrap().count(), 2);
    p.remove(long(0)).unwrap();
    store.reopen();
    assert_eq!(store.partition("p").get(long(0)).unwrap(), None);
}

#[test]
fn every_byte_value_is_a_key() {
    let store = Store::new();
    let p = store.partition("p");
    for byte in (0..=255u8).rev() {
        p.insert([byte].as_slice(), [byte, byte].as_slice()).unwrap();
    }
    for flushed in [false, true] {
        if flushed {
            store.keyspace().flush().unwrap();
        }
        let all: Vec<u8> = p.iter().unwrap().map(|e| e.unwrap().0[0]).collect();
        assert_eq!(all, (0..=255).collect::<Vec<u8>>());
        for byte in 0..=255u8 {
            assert_eq!(p.get([byte]).unwrap().unwrap()[..], [byte, byte]);
        }
    }
}

#[test]
fn partitions_are_listed_in_order_and_are_independent() {
    let store = Store::new();
    let names = ["b", "a", "ü", "with space", "UPPER"];
    for name in names {
        store.write(name, "key", name);
    }
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    assert_eq!(store.keyspace().partitions(), sorted);
    for name in names {
        assert_eq!(store.get(name, "key").as_deref(), Some(name));
        assert_eq!(store.partition(name).name(), name);
    }
    let longest = "x".repeat(255);
    store.write(&longest, "key", "value");
    assert_eq!(store.get(&longest, "key").as_deref(), Some("value"));
}

#[test]
fn open_partition_creates_nothing() {
    let store = Store::new();
    assert!(store.keyspace().open_partition("missing").unwrap().is_none());
    assert!(store.keyspace().partitions().is_empty());
    store.write("there", "k", "v");
    let there = store.keyspace().open_partition("there").unwrap().unwrap();
    assert_eq!(text(there.get("k").unwrap()).as_deref(), Some("v"));
}

#[test]
fn sequence_numbers_go_up_by_one_for_every_commit() {
    let store = Store::new();
    let p = store.partition("p");
    let begin = store.keyspace().seqno();
    p.insert("a", "1").unwrap();
    p.remove("a").unwrap();
    assert_eq!(store.keyspace().seqno(), begin + 2);
    let mut batch = store.keyspace().batch();
    batch.insert(&p, "x", "1").insert(&p, "y", "2");
    assert_eq!(batch.commit().unwrap(), begin + 3);
    assert_eq!(store.keyspace().seqno(), begin + 3);
}

#[test]
fn identity_survives_reopening() {
    let mut store = Store::new();
    let identity = |store: &Store| (store.keyspace().uuid(), store.keyspace().timeline());
    let before = identity(&store);
    assert_ne!(before.0, before.1);
    let path = store.keyspace().path().to_path_buf();
    assert_eq!(path, store.path());
    store.reopen();
    assert_eq!(identity(&store), before);
    store.write("p", "k", "v");
    let seqno = store.keyspace().seqno();
    store.crash();
    store.open();
    assert_eq!(identity(&store), before);
    assert_eq!(store.keyspace().seqno(), seqno);
    assert_ne!(identity(&Store::new()), before);
}

#[test]
fn clear_empties_one_partition_and_leaves_the_others() {
    let store = Store::new();
    let (a, b) = (store.partition("a"), store.partition("b"));
    fill(&a, 100);
    fill(&b, 10);
    store.keyspace().flush().unwrap();
    a.insert("in memory", "x").unwrap();
    a.clear().unwrap();
    assert!(a.is_empty().unwrap());
    assert_eq!(a.get("key 000001").unwrap(), None);
    assert_eq!((a.disk_space(), b.len().unwrap()), (0, 10));
    a.insert("again", "y").unwrap();
    assert_eq!(a.len().unwrap(), 1);
}

#[test]
fn a_dropped_partition_is_gone_and_its_name_is_free() {
    let store = Store::new();
    let old = store.partition("p");
    fill(&old, 10);
    assert!(store.keyspace().drop_partition("p").unwrap());
    assert!(!store.keyspace().drop_partition("p").unwrap(), "there was none any more");
    assert!(!store.keyspace().drop_partition("never there").unwrap());
    assert!(store.keyspace().partitions().is_empty());
    assert_eq!(old.insert("k", "v").unwrap_err().kind(), ErrorKind::FixInput);
    assert_eq!(old.clear().unwrap_err().kind(), ErrorKind::FixInput);
    assert_eq!(old.compact().unwrap_err().kind(), ErrorKind::FixInput);
    let new = store.partition("p");
    assert!(new.is_empty().unwrap());
    new.insert("k", "new").unwrap();
    assert_eq!(old.insert("k", "old").unwrap_err().kind(), ErrorKind::FixInput);
    assert_eq!(text(new.get("k").unwrap()).as_deref(), Some("new"));
}

#[test]
fn the_directory_of_a_dropped_partition_goes_with_its_last_handle() {
    let store = Store::new();
    let p = store.partition("p");
    fill(&p, 10);
    store.keyspace().flush().unwrap();
    let trees = store.path().join("partitions");
    assert_eq!(esker_tests::files::entries(&trees).len(), 1);
    let reader = p.iter().unwrap();
    store.keyspace().drop_partition("p").unwrap();
    drop(p);
    assert_eq!(reader.count(), 10, "an open iterator reads on");
    // A worker may still hold the tree for a moment; closing waits for it.
    let mut store = store;
    store.close();
    assert!(esker_tests::files::entries(&trees).is_empty());
}

#[test]
fn persist_syncs_in_every_mode() {
    let store = Store::new();
    store.write("p", "k", "v");
    let syncs = || store.keyspace().statistics().journal_syncs;
    let before = syncs();
    store.keyspace().persist(Durability::Buffer).unwrap();
    assert_eq!(syncs(), before, "it is with the operating system already");
    store.keyspace().persist(Durability::SyncData).unwrap();
    assert_eq!(syncs(), before + 1);
    store.keyspace().persist(Durability::SyncAll).unwrap();
    assert_eq!(syncs(), before + 2);
}

#[test]
fn a_commit_syncs_when_its_durability_says_so() {
    for (durability, synced) in
        [(Durability::Buffer, false), (Durability::SyncData, true), (Durability::SyncAll, true)]
    {
        let store = Store::with(move |config| config.durability(durability));
        let p = store.partition("p");
        let before = store.keyspace().statistics().journal_syncs;
        p.insert("k", "v").unwrap();
        assert_eq!(store.keyspace().statistics().journal_syncs > before, synced, "{durability:?}");
    }
}

#[test]
fn statistics_count_what_happened() {
    let store = Store::new();
    let p = store.partition("p");
    fill(&p, 100);
    let statistics = store.keyspace().statistics();
    assert_eq!(statistics.commits, 100);
    assert!(statistics.groups >= 1 && statistics.groups <= 100);
    assert_eq!(statistics.seqno, store.keyspace().seqno());
    assert!(statistics.journal_bytes_written > 100 * 64);
    assert!(statistics.journal_bytes >= statistics.journal_bytes_written);
    assert_eq!(statistics.journal_segments, 1);
    assert!(statistics.memtable_bytes > 100 * 20);
    assert_eq!(statistics.open_snapshots, 0);
    assert_eq!(statistics.checkpoints, 0);
    let snapshot = store.keyspace().snapshot();
    store.keyspace().backup_to(store.beside("checkpoint")).unwrap();
    store.keyspace().flush().unwrap();
    let statistics = store.keyspace().statistics();
    assert_eq!((statistics.open_snapshots, statistics.checkpoints), (1, 1));
    assert!(statistics.flushes >= 1);
    let [partition] = &statistics.partitions[..] else { panic!("{statistics:?}") };
    assert_eq!((partition.name.as_str(), partition.approximate_len), ("p", 100));
    assert!(partition.tables >= 1 && partition.disk_bytes > 0);
    assert_eq!(partition.disk_bytes, p.disk_space());
    assert!(store.keyspace().disk_space() >= p.disk_space());
    drop(snapshot);
    assert_eq!(store.keyspace().statistics().open_snapshots, 0);
    assert!(serde_json::to_value(store.keyspace().statistics()).unwrap().is_object());
    assert_eq!((statistics.open_transactions, statistics.conflict_entries), (0, 0));
}

#[test]
fn after_close_every_handle_says_closed() {
    let mut store = Store::new();
    let keyspace = store.keyspace().clone();
    let p = store.partition("p");
    p.insert("k", "v").unwrap();
    let snapshot = keyspace.snapshot();
    let mut batch = keyspace.batch();
    batch.insert(&p, "k", "late");
    store.close();
    let closed = [
        p.insert("k", "v").unwrap_err(),
        p.remove("k").unwrap_err(),
        p.get("k").unwrap_err(),
        p.contains_key("k").unwrap_err(),
        p.size_of("k").unwrap_err(),
        p.iter().map(drop).unwrap_err(),
        p.prefix("k").map(drop).unwrap_err(),
        p.range("a".."z").map(drop).unwrap_err(),
        p.first_key_value().unwrap_err(),
        p.last_key_value().unwrap_err(),
        p.len().unwrap_err(),
        p.is_empty().unwrap_err(),
        p.clear().unwrap_err(),
        p.compact().unwrap_err(),
        snapshot.get(&p, "k").unwrap_err(),
        snapshot.iter(&p).map(drop).unwrap_err(),
        snapshot.len(&p).unwrap_err(),
        batch.commit().unwrap_err(),
        keyspace.partition("q", PartitionOptions::default()).unwrap_err(),
        keyspace.open_partition("p").unwrap_err(),
        keyspace.drop_partition("p").unwrap_err(),
        keyspace.persist(Durability::SyncAll).unwrap_err(),
        keyspace.flush().unwrap_err(),
        keyspace.backup_to(store.beside("checkpoint")).unwrap_err(),
    ];
    for error in closed {
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
        assert!(error.to_string().contains(store.path().to_str().unwrap()), "{error}");
    }
    keyspace.close().unwrap();
    store.open();
    assert_eq!(store.get("p", "k").as_deref(), Some("v"));
}

#[test]
fn dropping_the_last_handle_closes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keyspace");
    let keyspace = Keyspace::open(&path).unwrap();
    let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
    p.insert("k", "v").unwrap();
    drop(keyspace);
    let locked = Keyspace::open(&path).unwrap_err();
    assert_eq!(locked.kind(), ErrorKind::Locked, "the partition keeps it open");
    assert!(locked.to_string().contains(path.to_str().unwrap()));
    drop(p);
    let keyspace = Config::new(&path).create_if_missing(false).open().unwrap();
    assert!(esker::verify(&path, Default::default()).is_err(), "it is open");
    let p = keyspace.open_partition("p").unwrap().unwrap();
    assert_eq!(text(p.get("k").unwrap()).as_deref(), Some("v"));
}

#[test]
fn an_iterator_that_outlives_close_keeps_the_keyspace_locked() {
    let mut store = Store::new();
    fill(&store.partition("p"), 100);
    let mut iter = store.partition("p").iter().unwrap();
    iter.next().unwrap().unwrap();
    store.close();
    assert_eq!(store.config().open().unwrap_err().kind(), ErrorKind::Locked);
    assert_eq!(iter.map(Result::unwrap).count(), 99);
    store.open();
    assert_eq!(store.partition("p").len().unwrap(), 100);
}

#[test]
fn a_partition_of_another_keyspace_is_refused() {
    let (one, two) = (Store::new(), Store::new());
    let (p, q) = (one.partition("p"), two.partition("p"));
    let mut batch = one.keyspace().batch();
    batch.insert(&p, "k", "v").insert(&q, "k", "v");
    assert_eq!(batch.commit().unwrap_err().kind(), ErrorKind::FixInput);
    assert!(p.is_empty().unwrap() && q.is_empty().unwrap(), "nothing of it was written");
    let snapshot = one.keyspace().snapshot();
    assert_eq!(snapshot.get(&q, "k").unwrap_err().kind(), ErrorKind::FixInput);
}

#[test]
fn handles_can_be_sent_and_shared() {
    fn sendable<T: Send>() {}
    fn shareable<T: Send + Sync + Clone>() {}
    shareable::<Keyspace>();
    shareable::<esker::Partition>();
    shareable::<esker::Snapshot>();
    sendable::<esker::Iter>();
    sendable::<esker::Keys>();
    sendable::<esker::Batch>();
}

#[test]
fn a_handle_that_outlives_the_keyspace_deletes_nothing_of_its_successor() {
    let mut store = Store::new();
    fill(&store.partition("p"), 50);
    store.keyspace().flush().unwrap();
    let backup = store.beside("backup");
    store.keyspace().backup_to(&backup).unwrap();
    let handle = store.partition("p");
    assert!(store.keyspace().drop_partition("p").unwrap());
    store.close();
    std::fs::remove_dir_all(store.path()).unwrap();
    std::fs::rename(&backup, store.path()).unwrap();
    store.open();
    drop(handle);
    assert_eq!(store.partition("p").len().unwrap(), 50);
    store.reopen();
    assert_eq!(store.partition("p").len().unwrap(), 50);
    assert!(esker::verify(store.path(), Default::default()).is_err(), "it is open");
}

/// The CATALOG that failed may be on disk all the same, and name the tree of that attempt.
#[test]
fn a_poisoned_keyspace_keeps_the_tree_of_a_creation_that_failed() {
    let store = Store::new();
    let p = store.partition("p");
    let in_the_way = store.path().join("CATALOG.tmp");
    std::fs::create_dir(&in_the_way).unwrap();
    let create = || store.keyspace().partition("q", PartitionOptions::default());
    assert_eq!(create().unwrap_err().kind(), ErrorKind::Io);
    std::fs::remove_dir(&in_the_way).unwrap();
    let before = esker_tests::fingerprint(&store.path().join("partitions"));
    assert_eq!(create().unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(p.clear().unwrap_err().kind(), ErrorKind::Poisoned);
    let after = esker_tests::fingerprint(&store.path().join("partitions"));
    assert_eq!(before, after, "the second attempt touched it");
}

/// Found by operations of any bytes (ESKER_SEED=11198490659959967128): it was 0 once it was opened again.
#[test]
fn an_open_keyspace_without_entries_takes_the_space_of_its_journal() {
    let mut store = Store::new();
    store.partition("p");
    store.close();
    store.open();
    store.keyspace().flush().unwrap();
    let statistics = store.keyspace().statistics();
    assert_eq!(store.keyspace().disk_space(), statistics.journal_bytes);
    assert!(statistics.journal_bytes > 0, "{statistics:?}");
}
