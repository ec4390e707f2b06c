//! What is there after a close, after a crash and after a torn write.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use esker::{Config, Keyspace, PartitionOptions};
use esker_tests::files::{entries, segments};
use esker_tests::{Seeded, Store, child, crash_image, fill, open_content};

#[test]
fn a_keyspace_closed_cleanly_replays_nothing() {
    let mut store = Store::new();
    fill(&store.partition("p"), 100);
    store.write("q", "k", "v");
    let (content, seqno) = (store.content(), store.keyspace().seqno());
    store.close();
    assert!(segments(&store.path()).is_empty(), "everything is in tables");
    let report = esker::verify(store.path(), Default::default()).unwrap();
    assert!(report.is_sound() && report.clean, "{report:?}");
    store.open();
    assert_eq!(store.content(), content);
    assert_eq!(store.keyspace().seqno(), seqno);
    assert_eq!(store.keyspace().statistics().memtable_bytes, 0);
}

#[test]
fn a_crash_loses_nothing_that_was_handed_to_the_operating_system() {
    let directory = child::crash(
        "recovery::a_crash_loses_nothing_that_was_handed_to_the_operating_system",
        |path| {
            let keyspace = Keyspace::open(path).unwrap();
            let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
            fill(&p, 1_000);
            p.remove("key 000500").unwrap();
            (keyspace, p)
        },
    );
    let report = esker::verify(directory.path().join("keyspace"), Default::default()).unwrap();
    assert!(report.is_sound() && !report.clean, "{report:?}");
    let mut store = Store::adopt(directory, |config| config);
    for _ in 0..2 {
        let p = store.partition("p");
        assert_eq!(p.len().unwrap(), 999);
        assert_eq!(p.get("key 000500").unwrap(), None);
        assert_eq!(store.get("p", "key 000999").as_deref(), Some("value 999 of p"));
        drop(p);
        store.reopen();
    }
}

#[test]
fn many_small_segments_are_replayed_in_order() {
    let directory = child::crash("recovery::many_small_segments_are_replayed_in_order", |path| {
        let keyspace = Config::new(path).journal_segment_bytes(4096).open().unwrap();
        let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
        for round in 0.. {
            for number in 0..25 {
                p.insert(format!("{number:04}"), format!("{round:09} {}", "x".repeat(30))).unwrap();
            }
            // A worker prepares segments; writers do not wait for it.
            if keyspace.statistics().journal_segments > 8 {
                fs::write(path.with_file_name("round"), format!("{round:09}")).unwrap();
                break;
            }
        }
        (keyspace, p)
    });
    let count = segments(&directory.path().join("keyspace")).len();
    assert!(count > 8, "{count} segments");
    let last = fs::read(directory.path().join("round")).unwrap();
    let store = Store::adopt(directory, |config| config);
    let p = store.partition("p");
    assert_eq!(p.len().unwrap(), 25);
    for entry in p.iter().unwrap() {
        assert!(entry.unwrap().1.starts_with(&last), "the last round won");
    }
}

#[test]
fn a_crash_after_flushes_replays_only_what_is_missing() {
    let mut store = Store::with(|config| config.journal_segment_bytes(4096).memtable_bytes(4096));
    let p = store.partition("p");
    for round in 0..5 {
        for number in 0..200 {
            p.insert(format!("{number:04}"), format!("round {round}")).unwrap();
        }
        if round < 4 {
            store.keyspace().flush().unwrap();
        }
    }
    p.remove("0000").unwrap();
    let content = store.content();
    drop(p);
    store.crash();
    assert_eq!(open_content(&store.path()), content);
    store.open();
    assert_eq!(store.content(), content);
    store.crash();
    store.open();
    assert_eq!(store.content(), content, "after a second crash");
}

#[test]
fn clear_survives_a_crash_and_what_was_before_does_not_come_back() {
    for flush_before in [false, true] {
        for flush_after in [false, true] {
            let mut store = Store::new();
            let p = store.partition("p");
            fill(&p, 100);
            if flush_before {
                store.keyspace().flush().unwrap();
            }
            p.clear().unwrap();
            p.insert("after", "v").unwrap();
            if flush_after {
                store.keyspace().flush().unwrap();
            }
            let content = store.content();
            assert_eq!(content["p"].len(), 1);
            drop(p);
            store.crash();
            assert_eq!(open_content(&store.path()), content);
            store.open();
            assert_eq!(store.content(), content);
            store.reopen();
            assert_eq!(store.content(), content);
            let trees = entries(&store.path().join("partitions"));
            assert_eq!(trees.len(), 1, "the old tree is gone: {trees:?}");
        }
    }
}

#[test]
fn a_dropped_partition_stays_dropped_after_a_crash_and_one_of_its_name_is_new() {
    for recreate in [false, true] {
        let mut store = Store::new();
        fill(&store.partition("p"), 100);
        store.keyspace().flush().unwrap();
        store.write("p", "in the journal", "v");
        store.keyspace().drop_partition("p").unwrap();
        if recreate {
            store.write("p", "new", "v");
        }
        let content = store.content();
        assert_eq!(content.get("p").map(std::collections::BTreeMap::len), recreate.then_some(1));
        store.crash();
        assert_eq!(open_content(&store.path()), content);
        store.open();
        assert_eq!(store.content(), content);
        store.reopen();
        assert_eq!(store.content(), content);
        let trees = entries(&store.path().join("partitions"));
        assert_eq!(trees.len(), usize::from(recreate), "{trees:?}");
    }
}

#[test]
fn an_empty_partition_survives_a_crash() {
    let mut store = Store::new();
    store.partition("empty");
    store.crash();
    store.open();
    assert_eq!(store.keyspace().partitions(), ["empty"]);
}

/// Every prefix of the last segment is what a crash could leave of unsynced writes: the content is
/// that of some commit, whole batches only.
#[test]
fn a_journal_cut_anywhere_gives_the_content_of_one_commit() {
    let mut store = Store::new();
    let (a, b) = (store.partition("a"), store.partition("b"));
    let mut states = vec![store.content()];
    for number in 0..12 {
        let mut batch = store.keyspace().batch();
        batch.insert(&a, format!("{number}"), "x".repeat(number * 7));
        batch.insert(&b, format!("{number}"), "y");
        batch.remove(&a, format!("{}", number / 2));
        batch.commit().unwrap();
        states.push(store.content());
    }
    drop((a, b));
    store.crash();
    let [.., last] = &segments(&store.path())[..] else { panic!("there is a journal") };
    let bytes = fs::read(last).unwrap();
    let end = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let mut found = 0;
    // The creation of the partitions is durable: what is cut lies behind it.
    let report = esker::verify(store.path(), Default::default()).unwrap();
    assert!(report.torn_tail.is_none(), "{report:?}");
    // A step that meets every place in a frame sooner or later.
    for cut in (72..=end).rev().step_by(7) {
        fs::write(last, &bytes[..cut]).unwrap();
        let opened = Config::new(store.path()).read_only(true).open();
        let keyspace = match opened {
            Ok(keyspace) => keyspace,
            Err(error) => {
                // Further down are the frames that CATALOG knows to be durable.
                assert_eq!(error.kind(), esker::ErrorKind::Corrupt, "{error}");
                assert!(found == states.len() - 1, "cut at {cut} of {end}: {error}");
                break;
            }
        };
        let content = esker_tests::content(&keyspace);
        let at = states.iter().rposition(|state| *state == content);
        let at = at.unwrap_or_else(|| panic!("cut at {cut}: {content:?} was never the state"));
        assert!(states.len() - 1 - at >= found, "a shorter journal holds no more");
        found = states.len() - 1 - at;
    }
    assert_eq!(found, states.len() - 1, "the cuts went through every commit");
}

#[test]
fn a_torn_tail_is_cut_and_the_keyspace_goes_on() {
    let mut random = Seeded::new("a_torn_tail_is_cut_and_the_keyspace_goes_on");
    let mut store = Store::new();
    fill(&store.partition("p"), 50);
    let content = store.content();
    store.crash();
    let [.., last] = &segments(&store.path())[..] else { panic!("there is a journal") };
    let end = fs::read(last).unwrap().iter().rposition(|&byte| byte != 0).unwrap() as u64 + 1;
    let garbage = random.bytes(300);
    OpenOptions::new().write(true).open(last).unwrap().write_all_at(&garbage, end).unwrap();
    let report = esker::verify(store.path(), Default::default()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    let torn = report.torn_tail.expect("the torn tail is reported");
    assert_eq!((torn.path, torn.offset), (last.clone(), end));
    assert_eq!(open_content(&store.path()), content);
    store.open();
    assert_eq!(store.content(), content);
    store.write("p", "after", "v");
    store.reopen();
    assert_eq!(store.get("p", "after").as_deref(), Some("v"));
    assert_eq!(store.partition("p").len().unwrap(), 51);
    store.close();
    assert!(esker::verify(store.path(), Default::default()).unwrap().torn_tail.is_none());
}

#[test]
fn a_journal_that_lost_commits_which_tables_hold_is_refused_and_named() {
    let mut store = Store::new();
    fill(&store.partition("p"), 50);
    store.keyspace().flush().unwrap();
    store.crash();
    let [.., last] = &segments(&store.path())[..] else { panic!("there is a journal") };
    let end = fs::read(last).unwrap().iter().rposition(|&byte| byte != 0).unwrap() as u64;
    OpenOptions::new().write(true).open(last).unwrap().write_all_at(b"?", end).unwrap();
    for read_only in [true, false] {
        let error = store.config().read_only(read_only).open().unwrap_err();
        let esker::Error::Corrupt(corruption) = &error else { panic!("{error}") };
        assert_eq!(&corruption.path, last, "{error}");
        assert!(error.to_string().contains("tables hold commits"), "{error}");
    }
}

/// A segment that was swapped out and never sealed: its successor has frames, it has no seal.
#[test]
fn an_earlier_segment_without_its_seal_is_replayed() {
    let mut store = Store::with(|config| config.journal_segment_bytes(4096));
    let p = store.partition("p");
    let mut number = 0;
    while store.keyspace().statistics().journal_segments < 3 {
        p.insert(format!("{number:06}"), "x".repeat(40)).unwrap();
        number += 1;
        assert!(number < 100_000, "segments rotate");
    }
    for more in 0..3 {
        p.insert(format!("{:06}", number + more), "the last segment has frames").unwrap();
    }
    let content = store.content();
    drop(p);
    store.crash();
    let all = segments(&store.path());
    let second = &all[1];
    let bytes = fs::read(second).unwrap();
    let seal_len = 64 + 16;
    // A segment that is sealed ends with its seal.
    let seal = bytes.len() - seal_len;
    if bytes[seal..seal + 4] == *b"EKRF" {
        let file = OpenOptions::new().write(true).open(second).unwrap();
        file.set_len(seal as u64).unwrap();
        // Preallocated space follows, as it did before the seal.
        file.set_len(seal as u64 + 4096).unwrap();
    }
    let report = esker::verify(store.path(), Default::default()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(open_content(&store.path()), content);
    store.open();
    assert_eq!(store.content(), content);
}

#[test]
fn recovery_can_be_interrupted_and_repeated() {
    let mut store = Store::with(|config| config.journal_segment_bytes(4096).memtable_bytes(2048));
    for name in ["a", "b"] {
        fill(&store.partition(name), 200);
    }
    store.partition("a").clear().unwrap();
    fill(&store.partition("a"), 20);
    store.keyspace().drop_partition("b").unwrap();
    fill(&store.partition("b"), 7);
    let content = store.content();
    for _ in 0..4 {
        store.crash();
        // What an interrupted recovery may have left: files that CATALOG does not name.
        let path = store.path();
        fs::create_dir_all(path.join("partitions/9999/tables")).unwrap();
        fs::write(path.join("partitions/9999/tables/1"), "half a table").unwrap();
        fs::create_dir_all(path.join("staging/123/journal")).unwrap();
        fs::write(path.join("CATALOG.tmp"), "half a catalog").unwrap();
        store.open();
        assert_eq!(store.content(), content);
        assert!(!path.join("partitions/9999").exists());
        assert!(entries(&path.join("staging")).is_empty());
    }
}

/// An impossible segment size makes the open fail after the replay and before the new CATALOG: there
/// a checkpoint's trees are ahead of what its CATALOG, which is clean, says about them.
#[test]
fn the_first_open_of_a_checkpoint_can_fail_and_be_repeated() {
    let store = Store::new();
    fill(&store.partition("a"), 100);
    let content = store.content();
    let checkpoint = store.beside("checkpoint");
    store.keyspace().backup_to(&checkpoint).unwrap();
    for attempt in 0..3 {
        let impossible = 1 << 62;
        let config = Config::new(&checkpoint);
        let failed = config.journal_bytes_max(impossible).journal_segment_bytes(impossible).open();
        assert!(failed.is_err(), "attempt {attempt}");
        assert!(esker::verify(&checkpoint, Default::default()).unwrap().is_sound());
        assert_eq!(open_content(&checkpoint), content);
    }
    let keyspace = Keyspace::open(&checkpoint).unwrap();
    assert_eq!(esker_tests::content(&keyspace), content);
}

#[test]
fn creation_that_was_interrupted_is_finished_by_the_next_opening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keyspace");
    for made in
        [&[][..], &["journal"], &["journal", "partitions"], &["journal", "partitions", "staging"]]
    {
        fs::create_dir(&path).unwrap();
        fs::write(path.join("LOCK"), "").unwrap();
        for name in made {
            fs::create_dir(path.join(name)).unwrap();
        }
        fs::write(path.join("CATALOG.tmp"), "half").unwrap();
        let keyspace = Keyspace::open(&path).unwrap();
        keyspace.partition("p", PartitionOptions::default()).unwrap();
        keyspace.close().unwrap();
        assert_eq!(open_content(&path).len(), 1);
        fs::remove_dir_all(&path).unwrap();
    }
}

#[test]
fn missing_parents_are_created() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/c");
    Keyspace::open(&path).unwrap().close().unwrap();
    assert!(path.join("CATALOG").is_file());
}

#[test]
fn a_crash_while_writers_run_keeps_whole_batches_in_commit_order() {
    let directory = child::crash(
        "recovery::a_crash_while_writers_run_keeps_whole_batches_in_commit_order",
        |path| {
            let keyspace =
                Config::new(path).memtable_bytes(4096).journal_segment_bytes(4096).open().unwrap();
            let a = keyspace.partition("a", PartitionOptions::default()).unwrap();
            let b = keyspace.partition("b", PartitionOptions::default()).unwrap();
            let (reached, wait) = std::sync::mpsc::channel();
            for thread in 0..2u64 {
                let (keyspace, a, b) = (keyspace.clone(), a.clone(), b.clone());
                let reached = reached.clone();
                std::thread::spawn(move || {
                    for number in 0u64.. {
                        let mut batch = keyspace.batch();
                        let value = number.to_be_bytes();
                        batch.insert(&a, format!("{thread} {number:08}"), value.as_slice());
                        batch.insert(&b, format!("{thread} {number:08}"), value.as_slice());
                        if batch.commit().is_err() {
                            return;
                        }
                        if number == 2_000 {
                            let _ = reached.send(());
                        }
                    }
                });
            }
            wait.recv().unwrap();
            wait.recv().unwrap();
            // The process ends here, in the middle of what the writers do.
            (keyspace, a, b)
        },
    );
    let store = Store::adopt(directory, |config| config);
    let content = store.content();
    assert!(content["a"] == content["b"], "batches are whole");
    for thread in 0..2u64 {
        let prefix = format!("{thread} ").into_bytes();
        let of_thread: Vec<_> =
            content["a"].iter().filter(|(key, _)| key.starts_with(&prefix)).collect();
        assert!(of_thread.len() > 2_000, "acknowledged commits are there");
        for (number, (_, value)) in of_thread.iter().enumerate() {
            assert_eq!(**value, (number as u64).to_be_bytes(), "commits have no gaps");
        }
    }
}

#[test]
fn a_crash_image_is_what_was_handed_to_the_operating_system() {
    let store = Store::new();
    fill(&store.partition("p"), 20);
    let image = crash_image(&store.path());
    assert_eq!(open_content(&image.path().join("keyspace")), store.content());
}

/// What replay put into a tree that the same journal clears is not waited for by any flush.
#[test]
fn replaying_a_clear_leaves_no_memory_on_the_account() {
    for read_only in [false, true] {
        let store = Store::new();
        let p = store.partition("p");
        let catalog = fs::read(store.path().join("CATALOG")).unwrap();
        fill(&p, 500);
        // Keeps the cleared tree on disk.
        let view = store.keyspace().snapshot();
        p.clear().unwrap();
        p.insert("after", "the clear").unwrap();
        // As if the crash had come between the frame of the clear and the new CATALOG.
        let image = crash_image(&store.path());
        let path = image.path().join("keyspace");
        drop(view);
        fs::write(path.join("CATALOG"), catalog).unwrap();
        let keyspace = Config::new(&path).read_only(read_only).open().unwrap();
        let p = keyspace.open_partition("p").unwrap().unwrap();
        assert_eq!((p.len().unwrap(), p.contains_key("after").unwrap()), (1, true));
        let statistics = keyspace.statistics();
        let of_partition = statistics.partitions[0].memtable_bytes;
        assert_eq!(statistics.memtable_bytes, of_partition, "read-only: {read_only}");
        assert!(if read_only { of_partition < 1000 } else { of_partition == 0 }, "{statistics:?}");
    }
}
