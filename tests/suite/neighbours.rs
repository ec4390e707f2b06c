//! Bugs that other engines had, as far as no other test covers them: docs/durability.md lists all.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use esker::{ErrorKind, Partition, PartitionOptions, PersistMode, VerifyOptions};
use esker_tests::ends::{failing, is_child, returns, returns_in};
use esker_tests::{Store, chaos, files};

fn number(partition: &Partition) -> usize {
    partition.iter().unwrap().map(Result::unwrap).count()
}

/// Flushes and compactions all the time.
fn busy() -> Store {
    Store::with(|config| {
        config
            .memtable_bytes(16 << 10)
            .write_buffer_bytes_max(256 << 10)
            .journal_segment_bytes(64 << 10)
            .worker_threads(4)
    })
}

fn tiny_tables() -> PartitionOptions {
    PartitionOptions::default().l0_runs(1).table_bytes(8 << 10).block_bytes(512)
}

/// fjall #53: recovery cut a torn batch after its beginning, and the next batch began inside it.
#[test]
fn a_batch_written_after_a_torn_one_is_whole_and_the_torn_one_is_not_there() {
    let mut store = Store::new();
    let (p, q) = (store.partition("p"), store.partition("q"));
    let commit = |store: &Store, key: &str, (p, q): (&Partition, &Partition)| {
        let mut batch = store.keyspace().batch();
        batch.insert(p, key, [1; 300]).insert(q, key, [2; 300]);
        batch.commit().unwrap();
    };
    commit(&store, "first", (&p, &q));
    let before = newest_segment_len(&store);
    commit(&store, "torn", (&p, &q));
    let after = newest_segment_len(&store);
    assert!(before < after);
    for cut in [before + 1, before + 63, before + 64, (before + after) / 2, after - 1] {
        let image = esker_tests::crash_image(&store.path());
        let newest = files::segments(&image.path().join("keyspace")).pop().unwrap();
        fs::File::options().write(true).open(newest).unwrap().set_len(cut).unwrap();
        let mut recovered = Store::adopt(image, |config| config);
        let pair = (recovered.partition("p"), recovered.partition("q"));
        commit(&recovered, "second", (&pair.0, &pair.1));
        drop(pair);
        recovered.crash();
        recovered.open();
        for name in ["p", "q"] {
            let partition = recovered.partition(name);
            let keys: Vec<_> = partition.iter().unwrap().keys().map(Result::unwrap).collect();
            assert_eq!(keys, [&b"first"[..], b"second"], "{name}, cut at {cut}");
        }
    }
    drop((p, q));
    store.close();
}

/// Up to the preallocated zeros.
fn newest_segment_len(store: &Store) -> u64 {
    let newest = files::segments(&store.path()).pop().unwrap();
    let bytes = fs::read(newest).unwrap();
    bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last as u64 + 1)
}

/// fjall #68: bytes that are no journal made every later open panic.
#[test]
fn garbage_behind_the_journal_costs_nothing_at_any_number_of_opens() {
    let mut rng = chaos::Rng::new(chaos::seed("garbage_behind_the_journal"));
    let mut store = Store::new();
    store.write("p", "k", "v");
    for round in 0..4 {
        let image = esker_tests::crash_image(&store.path());
        let newest = files::segments(&image.path().join("keyspace")).pop().unwrap();
        let end = newest_segment_len(&store) as usize;
        let mut bytes = fs::read(&newest).unwrap();
        bytes.truncate(end);
        bytes.extend(rng.bytes(500 + 100 * round));
        fs::write(newest, bytes).unwrap();
        let mut recovered = Store::adopt(image, |config| config);
        for _ in 0..3 {
            assert_eq!(recovered.get("p", "k").as_deref(), Some("v"));
            recovered.crash();
            recovered.open();
        }
        recovered.close();
    }
    store.close();
}

/// fjall #112: of two partitions, the one that was flushed less often lost writes on reopening,
/// because the journal was freed on account of the other.
#[test]
fn a_partition_that_is_rarely_flushed_loses_nothing_to_one_that_often_is() {
    let mut store = busy();
    let mut written = 0;
    for _ in 0..3 {
        let (often, rarely) = (store.partition("often"), store.partition("rarely"));
        for _ in 0..600 {
            written += 1;
            often.insert(format!("{written}"), vec![1; 400]).unwrap();
            if written % 10 == 0 {
                rarely.insert(format!("{written}"), "v").unwrap();
            }
        }
        assert_eq!((number(&often), number(&rarely)), (written, written / 10));
        drop((often, rarely));
        if written % 1200 == 0 {
            store.crash();
        } else {
            store.close();
        }
        store.open();
        let (often, rarely) = (store.partition("often"), store.partition("rarely"));
        assert_eq!((number(&often), number(&rarely)), (written, written / 10));
    }
    assert!(store.keyspace().statistics().partitions.len() == 2);
}

/// fjall #230: with more than one worker two compactions took the same tables, and inserts were
/// lost.
#[test]
fn inserts_beside_many_workers_are_all_there() {
    let mut store = busy();
    let p = store.partition_with("p", tiny_tables());
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let p = &p;
            scope.spawn(move || {
                for key in 0..500 {
                    p.insert(format!("{key:05}/{writer}"), vec![writer; 200]).unwrap();
                }
            });
        }
    });
    assert!(store.keyspace().statistics().compactions > 0, "nothing was compacted");
    assert_eq!(number(&p), 2_000);
    drop(p);
    store.reopen();
    assert_eq!(number(&store.partition("p")), 2_000);
}

/// fjall #304: an error while writing to the journal was swallowed, and a later sync reported the
/// lost commit as durable.
#[test]
fn a_write_to_the_journal_that_failed_is_never_reported_as_durable() {
    // Counted for each thread: the writer's second one.
    let Some(inject) = failing("pwrite64", 2) else { return };
    let dir = chaos::disk_dir();
    let path = dir.path().join("keyspace");
    if !is_child() {
        let prepared = esker::Keyspace::open(&path).unwrap();
        prepared.partition("p", PartitionOptions::default()).unwrap();
    }
    let test = "neighbours::a_write_to_the_journal_that_failed_is_never_reported_as_durable";
    let parent = returns_in(test, dir.path(), inject, |path| {
        let keyspace = esker::Keyspace::open(path).unwrap();
        let p = keyspace.open_partition("p").unwrap().unwrap();
        let write = || (0..).find(|number| p.insert(format!("{number}"), "v").is_err());
        let acknowledged = std::thread::scope(|scope| scope.spawn(write).join().unwrap());
        fs::write(path.with_file_name("acknowledged"), format!("{}", acknowledged.unwrap()))
            .unwrap();
        for mode in [PersistMode::Buffer, PersistMode::SyncData, PersistMode::SyncAll] {
            assert_eq!(keyspace.persist(mode).unwrap_err().kind(), ErrorKind::Poisoned);
            assert_eq!(p.insert("later", "v").unwrap_err().kind(), ErrorKind::Poisoned);
        }
        assert_eq!(keyspace.close().unwrap_err().kind(), ErrorKind::Poisoned);
    });
    if parent {
        let acknowledged = fs::read_to_string(dir.path().join("acknowledged")).unwrap();
        let keyspace = esker::Keyspace::open(&path).unwrap();
        let p = keyspace.open_partition("p").unwrap().unwrap();
        assert_eq!(number(&p).to_string(), acknowledged, "exactly what was acknowledged");
    }
}

/// lsm-tree #286: after clearing a tree with separated values it could not be opened again.
#[test]
fn a_cleared_partition_with_separated_values_opens_again() {
    let mut store = Store::new();
    let options = || PartitionOptions::default().separate_values_from(Some(100));
    for round in 0..3 {
        let p = store.partition_with("p", options());
        for key in 0..20 {
            p.insert(format!("{key}"), vec![round; 1_000]).unwrap();
        }
        store.keyspace().flush().unwrap();
        p.clear().unwrap();
        if round == 1 {
            p.insert("after", vec![9; 1_000]).unwrap();
        }
        drop(p);
        store.reopen();
        assert_eq!(number(&store.partition("p")), usize::from(round == 1));
        store.partition("p").clear().unwrap();
        store.crash();
        store.open();
        assert_eq!(number(&store.partition("p")), 0);
    }
}

/// lsm-tree #320: clearing a tree while it was compacted panicked and poisoned it.
#[test]
fn clearing_a_partition_while_it_is_compacted_harms_neither() {
    let mut store = busy();
    let p = store.partition_with("p", tiny_tables().separate_values_from(Some(150)));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                p.compact().unwrap();
            }
        });
        for round in 0..20 {
            for key in 0..100 {
                p.insert(format!("{key:04}"), vec![round; 200]).unwrap();
            }
            p.clear().unwrap();
            assert_eq!(number(&p), 0, "round {round}");
        }
        p.insert("last", "v").unwrap();
        done.store(true, Ordering::Release);
    });
    drop(p);
    store.reopen();
    assert_eq!(number(&store.partition("p")), 1);
}

/// RocksDB #8020: after histories diverge, the same file names stand for different bytes.
#[test]
fn a_table_of_a_history_that_diverged_is_not_taken_for_one_of_ours() {
    let mut ours = Store::new();
    ours.write("p", "common", "v");
    let branch = ours.beside("branch");
    ours.keyspace().checkpoint().flush_first(true).write_to(&branch).unwrap();
    let theirs = esker::Keyspace::open(&branch).unwrap();
    theirs.open_partition("p").unwrap().unwrap().insert("new", "theirs").unwrap();
    theirs.flush().unwrap();
    theirs.close().unwrap();
    ours.write("p", "new", "ours");
    ours.keyspace().flush().unwrap();
    ours.close();
    let differs = |name: &PathBuf| {
        let other = fs::read(branch.join(name));
        other.is_ok_and(|other| other != fs::read(ours.path().join(name)).unwrap())
    };
    let tables = files::names(&ours.path()).into_iter();
    let mut tables = tables.filter(|name| name.parent().unwrap().ends_with("tables"));
    let table = tables.find(differs).expect("the histories share one table's name");
    fs::copy(branch.join(&table), ours.path().join(&table)).unwrap();
    let report = esker::verify(ours.path(), VerifyOptions::default()).unwrap();
    assert!(!report.problems.is_empty(), "the other history's table was believed");
}

/// RocksDB #7921: a checkpoint waited for ever for a flush that nobody had asked for.
#[test]
fn a_checkpoint_beside_writers_that_wait_for_room_returns() {
    let test = "neighbours::a_checkpoint_beside_writers_that_wait_for_room_returns";
    returns(test, |path| {
        let config = esker::Config::new(path).worker_threads(1).memtable_bytes(16 << 10);
        let keyspace = config.write_buffer_bytes_max(64 << 10).open().unwrap();
        let p = keyspace.partition("p", tiny_tables()).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for writer in 0..3 {
                let (p, done) = (&p, &done);
                scope.spawn(move || {
                    for number in 0.. {
                        p.insert(format!("{writer}/{number}"), vec![1; 2_000]).unwrap();
                        if done.load(Ordering::Acquire) {
                            break;
                        }
                    }
                });
            }
            while keyspace.statistics().stalls == 0 {
                std::thread::yield_now();
            }
            for number in 0..6 {
                let target = path.with_file_name(format!("checkpoint-{number}"));
                let flush = number % 2 == 0;
                keyspace.checkpoint().flush_first(flush).verify(true).write_to(target).unwrap();
            }
            done.store(true, Ordering::Release);
        });
    });
}

/// RocksDB #11167: a checkpoint of a database opened read-only waited for ever.
#[test]
fn a_checkpoint_of_a_read_only_keyspace_is_refused_at_once() {
    let test = "neighbours::a_checkpoint_of_a_read_only_keyspace_is_refused_at_once";
    returns(test, |path| {
        let keyspace = esker::Keyspace::open(path).unwrap();
        keyspace.partition("p", PartitionOptions::default()).unwrap().insert("k", "v").unwrap();
        keyspace.close().unwrap();
        let reader = esker::Config::new(path).read_only(true).open().unwrap();
        for flush in [false, true] {
            let target = path.with_file_name("checkpoint");
            let error = reader.checkpoint().flush_first(flush).write_to(&target).unwrap_err();
            assert!(matches!(error, esker::Error::ReadOnly { .. }), "{error}");
            assert!(!target.exists());
        }
    });
}

/// Waits until the journal is down to the segments that are always there.
fn journal_becomes_short(store: &Store, why: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let statistics = store.keyspace().statistics();
        if statistics.journal_segments <= 2 {
            return;
        }
        assert!(Instant::now() < deadline, "{why}: {statistics:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// fjall's `journal_eviction_idle_keyspace`: what was flushed was told by the tables that are left, so
/// a partition that lost them all kept the journal for ever.
#[test]
fn a_partition_that_was_cleared_or_merged_empty_does_not_pin_the_journal() {
    for way in ["cleared", "merged empty", "newest entries merged away"] {
        let mut store = Store::with(|config| config.journal_segment_bytes(4096));
        let (p, heavy) = (store.partition("p"), store.partition("heavy"));
        // One segment after the other: none waits for the next one to be ready.
        let fill = || {
            let before = store.keyspace().statistics().journal_segments;
            let deadline = Instant::now() + Duration::from_secs(30);
            for number in 0.. {
                heavy.insert(format!("{}", number % 200), vec![7; 200]).unwrap();
                if number >= 200 && store.keyspace().statistics().journal_segments > before + 4 {
                    break;
                }
                assert!(Instant::now() < deadline, "{:?}", store.keyspace().statistics());
            }
        };
        if way.starts_with("newest") {
            p.insert("kept", "v").unwrap();
            p.compact().unwrap();
        }
        p.insert("a", "v").unwrap();
        fill();
        heavy.compact().unwrap();
        let segments = store.keyspace().statistics().journal_segments;
        assert!(segments > 4, "{way}: the entry holds {segments} segments");
        if way == "cleared" {
            p.clear().unwrap();
        } else {
            p.compact().unwrap();
            p.remove("a").unwrap();
            p.compact().unwrap();
        }
        // The clear and the removal are in newer segments.
        fill();
        store.keyspace().flush().unwrap();
        journal_becomes_short(&store, way);
        let expected = usize::from(way.starts_with("newest"));
        drop((p, heavy));
        store.crash();
        store.open();
        assert_eq!(store.partition("p").len().unwrap(), expected, "{way}");
        assert_eq!(store.partition("heavy").len().unwrap(), 200, "{way}");
    }
}

/// fjall's `recover_flushed_items_after_clear`: replaying the clear dropped the table flushed after it.
#[test]
fn what_was_flushed_after_a_clear_is_not_cleared_by_its_replay() {
    let mut store = Store::new();
    let p = store.partition("p");
    for number in 0..100 {
        p.insert(format!("old {number}"), "old").unwrap();
    }
    store.keyspace().flush().unwrap();
    p.clear().unwrap();
    for number in 0..100 {
        p.insert(format!("new {number}"), "new").unwrap();
    }
    store.keyspace().flush().unwrap();
    p.insert("in the journal", "new").unwrap();
    drop(p);
    for round in ["after a crash", "after reopening"] {
        if round == "after a crash" {
            store.crash();
        }
        store.reopen();
        let values: Vec<_> = store.partition("p").iter().unwrap().map(|e| e.unwrap().1).collect();
        assert_eq!(values.len(), 101, "{round}");
        assert!(values.iter().all(|value| *value == "new"), "{round}");
    }
}

/// fjall's `recovery_stray_keyspace_dirs`: directories with other names made recovery panic.
#[test]
fn strange_names_beside_the_trees_harm_nothing() {
    use std::os::unix::ffi::OsStrExt;
    let mut store = Store::new();
    store.write("p", "k", "v");
    store.keyspace().flush().unwrap();
    store.close();
    let trees = store.path().join("partitions");
    for name in [&b"not a number"[..], b"\xff\xfe", b"18446744073709551616", b"-1", b".DS_Store"] {
        fs::create_dir(trees.join(std::ffi::OsStr::from_bytes(name))).unwrap();
    }
    fs::write(store.path().join("journal").join(".DS_Store"), "x").unwrap();
    fs::write(store.path().join(".DS_Store"), "x").unwrap();
    store.open();
    assert_eq!(store.get("p", "k").as_deref(), Some("v"));
    store.write("p", "l", "w");
    store.crash();
    store.open();
    assert_eq!(store.get("p", "l").as_deref(), Some("w"));
    store.close();
    let report = esker::verify(store.path(), VerifyOptions::default()).unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
}

/// fjall #303: what was there at the open was merged only after the next flush.
#[test]
fn what_an_earlier_run_left_to_merge_is_merged_after_an_open() {
    let small = Arc::new(AtomicBool::new(false));
    let chosen = Arc::clone(&small);
    let mut store = Store::with(move |config| {
        let small = chosen.load(Ordering::Relaxed);
        config.memtable_bytes(if small { 2048 } else { 16 << 20 })
    });
    let p = store.partition_with("p", PartitionOptions::default().l0_runs(4));
    for round in 0..40 {
        for number in 0..20 {
            p.insert(format!("{number:03}"), vec![round; 100]).unwrap();
        }
    }
    drop(p);
    // The replay fills one memtable after the other, and nothing is merged meanwhile.
    small.store(true, Ordering::Relaxed);
    store.crash();
    store.open();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let statistics = store.keyspace().statistics();
        if statistics.compactions > 0 && statistics.partitions[0].l0_runs < 4 {
            break;
        }
        assert!(Instant::now() < deadline, "{statistics:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let values = store.partition("p").iter().unwrap().map(|entry| entry.unwrap().1);
    assert!(values.eq((0..20).map(|_| vec![39; 100])));
}
