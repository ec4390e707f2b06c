//! Commits that were answered and wait to be put into memory: nobody can tell.

use std::sync::atomic::{AtomicU64, Ordering};

use esker::{Config, Keyspace, VerifyOptions};
use esker_tests::{Store, content, crash_image, open_content};

/// Every commit waits until somebody reads, or until there are many.
fn store() -> Store {
    Store::with(|config| config.defer_after_changes(0))
}

#[test]
fn what_was_answered_is_read_at_once_by_every_kind_of_read() {
    let store = store();
    let (keyspace, p) = (store.keyspace(), store.partition("p"));
    for number in 0..500 {
        let key = format!("{number:03}");
        // Several wait: none of these reads.
        for _ in 0..3 {
            p.insert(key.as_str(), "old").unwrap();
        }
        p.insert(key.as_str(), key.as_str()).unwrap();
        let seqno = keyspace.seqno();
        match number % 8 {
            0 => assert_eq!(p.get(&key).unwrap().as_deref(), Some(key.as_bytes())),
            1 => assert!(p.contains_key(&key).unwrap()),
            2 => assert_eq!(p.size_of(&key).unwrap(), Some(3)),
            3 => assert_eq!(p.iter().unwrap().count(), number + 1),
            4 => assert_eq!(p.range(key.clone()..).unwrap().count(), 1),
            5 => assert_eq!(p.prefix(&key).unwrap().count(), 1),
            6 => {
                let snapshot = keyspace.snapshot();
                assert_eq!(snapshot.seqno(), seqno);
                assert_eq!(snapshot.get(&p, &key).unwrap().as_deref(), Some(key.as_bytes()));
            }
            _ => assert_eq!(keyspace.statistics().seqno, seqno),
        }
    }
}

#[test]
fn of_several_changes_of_an_entry_the_last_one_stays() {
    let store = store();
    let p = store.partition("p");
    for round in 0..50 {
        // More than are applied at a time, in any order of keys.
        let mut batch = store.keyspace().batch();
        for number in 0..600 {
            let key = format!("{:02}", number * 37 % 50);
            if number % 5 == 4 {
                batch.remove(&p, key);
            } else {
                batch.insert(&p, key, format!("{round}/{number}"));
            }
        }
        batch.commit().unwrap();
        p.insert("00", format!("{round}")).unwrap();
        for number in 550..600 {
            let key = format!("{:02}", number * 37 % 50);
            let expected = match (key.as_str(), number % 5) {
                ("00", _) => Some(format!("{round}")),
                (_, 4) => None,
                _ => Some(format!("{round}/{number}")),
            };
            assert_eq!(store.get("p", &key), expected, "key {key} in round {round}");
        }
    }
}

#[test]
fn a_reader_beside_writers_never_misses_what_it_was_told_of() {
    let store = store();
    let p = store.partition("p");
    let (told, done) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for writer in 0..3_u64 {
            let (p, told, done) = (&p, &told, &done);
            scope.spawn(move || {
                for number in 1..=4_000_u64 {
                    p.insert(writer.to_be_bytes(), number.to_be_bytes()).unwrap();
                    if writer == 0 {
                        told.store(number, Ordering::Release);
                    }
                }
                done.fetch_add(1, Ordering::Release);
            });
        }
        while done.load(Ordering::Acquire) < 3 {
            let expected = told.load(Ordering::Acquire);
            let found = p.get(0_u64.to_be_bytes()).unwrap();
            let found = found.map_or(0, |found| u64::from_be_bytes(found[..].try_into().unwrap()));
            assert!(found >= expected, "{found} is read, {expected} was answered before");
            // A moment in which nobody reads, so that commits wait again.
            std::thread::sleep(std::time::Duration::from_micros(300));
        }
    });
}

#[test]
fn checkpoint_flush_clear_drop_and_close_lose_nothing_that_waits() {
    let mut store = store();
    let write = |store: &Store, name: &str| {
        for number in 0..20 {
            store.partition(name).insert(format!("{number}"), name).unwrap();
        }
    };
    write(&store, "checkpoint");
    let seqno = store.keyspace().seqno();
    let target = store.beside("target");
    let report = store.keyspace().backup_to(&target).unwrap();
    assert_eq!(report.seqno, seqno);
    write(&store, "flush");
    store.keyspace().flush().unwrap();
    write(&store, "clear");
    store.partition("clear").clear().unwrap();
    write(&store, "drop");
    assert!(store.keyspace().drop_partition("drop").unwrap());
    write(&store, "kept");
    let crashed = crash_image(&store.path());
    store.close();
    let counts = |path: &std::path::Path| {
        let content = open_content(path);
        let counts = content.iter().map(|(name, entries)| (name.clone(), entries.len()));
        counts.collect::<Vec<_>>()
    };
    let all = ["checkpoint", "clear", "flush", "kept"].map(String::from);
    let expected: Vec<_> = all.into_iter().zip([20, 0, 20, 20]).collect();
    assert_eq!(counts(&store.path()), expected);
    assert_eq!(counts(&crashed.path().join("keyspace")), expected);
    assert_eq!(counts(&target), [("checkpoint".to_owned(), 20)]);
    assert!(esker::verify(&target, VerifyOptions::default()).unwrap().is_sound());
}

/// Room in the write buffer is given back before a commit is applied, and in the journal a value may
/// take a hundredth of what it takes in memory.
#[test]
fn little_waits_where_the_write_buffer_is_small() {
    const BUFFER: u64 = 256 << 10;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let config = Config::new(&path).defer_after_changes(0).worker_threads(1);
    let keyspace = config.memtable_bytes(BUFFER).write_buffer_bytes_max(BUFFER).open().unwrap();
    let p = keyspace.partition("p", Default::default()).unwrap();
    let mut most = 0;
    for round in 0..200_u32 {
        for number in 0..10 {
            p.insert((round * 10 + number).to_be_bytes(), vec![7; 8_000]).unwrap();
        }
        // This applies what waits.
        most = most.max(keyspace.statistics().memtable_bytes);
    }
    // A merge may hold half of the buffer beside it.
    assert!(most > BUFFER / 4 && most <= BUFFER + BUFFER / 2 + 16_000, "{most} bytes");
    assert_eq!(content(&keyspace)["p"].len(), 2_000);
    keyspace.close().unwrap();
    assert_eq!(Keyspace::open(path).unwrap().seqno(), 2_001);
}
