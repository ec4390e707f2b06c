//! Dropping or closing a keyspace always returns, whatever went wrong before, and leaves nothing
//! behind: no thread, no open file, no lock. Errors can be met again and again.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use esker::{Config, Durability, Error, ErrorKind, Keyspace, Partition, PartitionOptions};
use esker_tests::ends::{assert_no_worker, failing, is_child, returns, returns_in};
use esker_tests::{chaos, files};

use crate::full_disk::small_disk;

/// Several times, because an error path that works once may leave something behind.
const TIMES: usize = 3;

fn small(path: &Path) -> Config {
    Config::new(path)
        .journal_segment_bytes(64 << 10)
        .memtable_bytes(32 << 10)
        .write_buffer_bytes_max(128 << 10)
}

fn items(keyspace: &Keyspace) -> Partition {
    keyspace.partition("items", PartitionOptions::default()).unwrap()
}

/// Inserts until it is refused; returns the error.
fn write_on(partition: &Partition, writer: usize) -> Error {
    for number in 0_u64.. {
        if let Err(error) = partition.insert(format!("{writer}/{number}"), vec![1; 2_000]) {
            return error;
        }
    }
    unreachable!("numbers do not end")
}

fn holds(path: &Path, key: &str) -> bool {
    items(&Keyspace::open(path).unwrap()).get(key).unwrap().is_some()
}

#[test]
fn a_keyspace_poisoned_by_a_failed_sync_is_dropped() {
    // Counted for each thread: the first sync of every writer fails.
    let Some(inject) = failing("fdatasync", 1) else { return };
    let dir = chaos::disk_dir();
    if !is_child() {
        let prepared = small(&dir.path().join("keyspace")).open().unwrap();
        items(&prepared).insert("before", "v").unwrap();
    }
    let test = "dropping::a_keyspace_poisoned_by_a_failed_sync_is_dropped";
    let parent = returns_in(test, dir.path(), inject, |path| {
        let keyspace = small(path).open().unwrap();
        let items = items(&keyspace);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let (keyspace, items) = (&keyspace, &items);
                scope.spawn(move || {
                    for _ in 0..TIMES {
                        let mut batch = keyspace.batch();
                        batch.insert(items, format!("{writer}"), "v");
                        batch.durability(Durability::SyncData);
                        let error = batch.commit().unwrap_err();
                        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
                    }
                });
            }
        });
        for _ in 0..TIMES {
            assert_eq!(keyspace.flush().unwrap_err().kind(), ErrorKind::Poisoned);
            let target = path.with_file_name("checkpoint");
            assert_eq!(keyspace.backup_to(target).unwrap_err().kind(), ErrorKind::Poisoned);
            let create = keyspace.partition("other", PartitionOptions::default());
            assert_eq!(create.unwrap_err().kind(), ErrorKind::Poisoned);
            assert_eq!(keyspace.drop_partition("items").unwrap_err().kind(), ErrorKind::Poisoned);
            assert_eq!(items.clear().unwrap_err().kind(), ErrorKind::Poisoned);
        }
        assert_eq!(keyspace.clone().close().unwrap_err().kind(), ErrorKind::Poisoned);
        keyspace.close().unwrap();
    });
    assert!(!parent || holds(&dir.path().join("keyspace"), "before"));
}

#[test]
fn a_keyspace_whose_tables_cannot_be_written_is_dropped() {
    let test = "dropping::a_keyspace_whose_tables_cannot_be_written_is_dropped";
    returns(test, |path| {
        let keyspace = small(path).open().unwrap();
        let items = items(&keyspace);
        for tree in files::entries(&path.join("partitions")) {
            fs::remove_dir_all(path.join("partitions").join(tree).join("tables")).unwrap();
        }
        std::thread::scope(|scope| {
            for writer in 0..3 {
                let items = &items;
                scope.spawn(move || {
                    for _ in 0..TIMES {
                        assert_eq!(write_on(items, writer).kind(), ErrorKind::Poisoned);
                    }
                });
            }
        });
        assert_eq!(keyspace.flush().unwrap_err().kind(), ErrorKind::Poisoned);
    });
}

#[test]
fn a_keyspace_whose_directory_was_removed_is_closed() {
    let test = "dropping::a_keyspace_whose_directory_was_removed_is_closed";
    returns(test, |path| {
        let keyspace = small(path).open().unwrap();
        let items = items(&keyspace);
        items.insert("k", "v").unwrap();
        fs::remove_dir_all(path).unwrap();
        for _ in 0..TIMES {
            keyspace.flush().unwrap_err();
            keyspace.backup_to(path.with_file_name("checkpoint")).unwrap_err();
            keyspace.partition("other", PartitionOptions::default()).unwrap_err();
        }
        write_on(&items, 0);
        keyspace.clone().close().unwrap_err();
        keyspace.close().unwrap();
        assert_eq!(items.insert("k", "v").unwrap_err().kind(), ErrorKind::Closed);
    });
}

#[test]
fn an_open_that_fails_leaves_nothing_and_can_be_repeated() {
    let test = "dropping::an_open_that_fails_leaves_nothing_and_can_be_repeated";
    returns(test, |path| {
        items(&small(path).open().unwrap()).insert("k", "v").unwrap();
        for damaged in ["CATALOG", "partitions/1/current"] {
            let (place, aside) = (path.join(damaged), path.with_file_name("aside"));
            fs::rename(&place, &aside).unwrap();
            fs::write(&place, "not this").unwrap();
            for read_only in [false, true, false, true] {
                small(path).read_only(read_only).open().unwrap_err();
                esker_tests::ends::assert_nothing_left(path);
            }
            fs::remove_file(&place).unwrap();
            fs::rename(&aside, &place).unwrap();
        }
        assert!(holds(path, "k"));
    });
}

/// The threads' stacks need address space, which is taken away.
#[test]
fn an_open_that_cannot_start_all_its_workers_ends_those_it_started() {
    let test = "dropping::an_open_that_cannot_start_all_its_workers_ends_those_it_started";
    returns(test, |path| {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        items(&small(path).open().unwrap()).insert("k", "v").unwrap();
        let before = getrlimit(Resource::As);
        let status = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = status.split(' ').next().unwrap().parse().unwrap();
        let tight = Rlimit { current: Some(pages * 4096 + (40 << 20)), maximum: before.maximum };
        for _ in 0..TIMES {
            setrlimit(Resource::As, tight).unwrap();
            let opened = small(path).worker_threads(60).cache_bytes(1 << 20).open();
            setrlimit(Resource::As, before).unwrap();
            let error = opened.unwrap_err();
            assert!(error.to_string().contains("worker thread"), "{error}");
            assert_no_worker();
        }
        assert!(holds(path, "k"));
    });
}

#[test]
fn a_keyspace_whose_checkpoints_failed_is_closed() {
    let test = "dropping::a_keyspace_whose_checkpoints_failed_is_closed";
    returns(test, |path| {
        let keyspace = small(path).open().unwrap();
        let items = items(&keyspace);
        for number in 0..TIMES {
            items.insert(format!("{number}"), vec![1; 20_000]).unwrap();
            keyspace.backup_to(path).unwrap_err();
            keyspace.backup_to(path.join("inside")).unwrap_err();
            keyspace.backup_to(path.with_file_name("no").join("parent")).unwrap_err();
            let target = path.with_file_name("checkpoint");
            let panics = AssertUnwindSafe(|| {
                let checkpoint = keyspace.checkpoint().flush_first(number % 2 == 0);
                checkpoint.progress(|_| panic!("a callback's own mistake")).write_to(&target)
            });
            catch_unwind(panics).unwrap_err();
            assert!(!target.exists(), "a checkpoint that was not finished");
        }
        keyspace.backup_to(path.with_file_name("whole")).unwrap();
        assert_eq!(items.iter().unwrap().count(), TIMES);
        keyspace.close().unwrap();
    });
}

#[test]
fn a_keyspace_that_could_not_create_a_partition_is_dropped() {
    let test = "dropping::a_keyspace_that_could_not_create_a_partition_is_dropped";
    returns(test, |path| {
        let keyspace = small(path).open().unwrap();
        let items = items(&keyspace);
        items.insert("k", "v").unwrap();
        fs::create_dir(path.join("CATALOG.tmp")).unwrap();
        for _ in 0..TIMES {
            keyspace.partition("other", PartitionOptions::default()).unwrap_err();
            items.clear().unwrap_err();
            keyspace.drop_partition("items").unwrap_err();
        }
        drop((keyspace, items));
        fs::remove_dir(path.join("CATALOG.tmp")).unwrap();
        assert!(holds(path, "k"));
    });
}

#[test]
fn a_keyspace_on_a_full_disk_is_closed_beside_its_writers() {
    let dir = chaos::memory_dir();
    let test = "dropping::a_keyspace_on_a_full_disk_is_closed_beside_its_writers";
    let place = dir.path().join("small");
    // The child mounts one of its own, too, and works in its parent's.
    let Some(_mounted) = small_disk(&place, "size=6m") else { return };
    returns_in(
        test,
        &place,
        |command| command,
        |path| {
            let keyspace = small(path).open().unwrap();
            let items = items(&keyspace);
            std::thread::scope(|scope| {
                for writer in 0..3 {
                    let items = &items;
                    scope.spawn(move || {
                        // Until it is closed: a full disk is no reason to give up.
                        while write_on(items, writer).kind() == ErrorKind::Retry {}
                    });
                }
                while items.insert("k", vec![1; 5_000]).is_ok() {}
                // What cannot be flushed is in the journal.
                let _ = keyspace.clone().close();
            });
            keyspace.close().unwrap();
        },
    );
}

#[test]
fn writers_that_wait_for_room_end_when_the_keyspace_is_closed() {
    let test = "dropping::writers_that_wait_for_room_end_when_the_keyspace_is_closed";
    returns(test, |path| {
        for _ in 0..TIMES {
            let keyspace = small(path).worker_threads(1).open().unwrap();
            let items = items(&keyspace);
            std::thread::scope(|scope| {
                for writer in 0..4 {
                    let items = &items;
                    scope.spawn(move || {
                        assert_eq!(write_on(items, writer).kind(), ErrorKind::Closed);
                    });
                }
                while keyspace.statistics().stalls == 0 {
                    std::thread::yield_now();
                }
                keyspace.clone().close().unwrap();
            });
        }
    });
}

#[test]
fn iterators_and_snapshots_outlive_a_close_and_then_let_go() {
    let test = "dropping::iterators_and_snapshots_outlive_a_close_and_then_let_go";
    returns(test, |path| {
        let keyspace = small(path).open().unwrap();
        let items = items(&keyspace);
        items.insert("k", "v").unwrap();
        let (snapshot, mut iter) = (keyspace.snapshot(), items.iter().unwrap());
        keyspace.close().unwrap();
        assert_no_worker();
        assert!(matches!(Keyspace::open(path), Err(Error::Locked { .. })));
        assert!(iter.next().is_some_and(|entry| entry.is_ok()));
        drop((iter, snapshot, items));
        assert!(holds(path, "k"));
    });
}

#[test]
fn a_thread_that_panics_with_the_last_handles_closes_the_keyspace() {
    let test = "dropping::a_thread_that_panics_with_the_last_handles_closes_the_keyspace";
    returns(test, |path| {
        for _ in 0..TIMES {
            let keyspace = small(path).open().unwrap();
            let thread = std::thread::spawn(move || {
                let items = items(&keyspace);
                items.insert("k", "v").unwrap();
                let mut batch = keyspace.batch();
                batch.insert(&items, "never", "committed");
                let _held = (keyspace.snapshot(), items.iter().unwrap(), batch);
                panic!("a user's own mistake");
            });
            thread.join().unwrap_err();
            esker_tests::ends::assert_nothing_left(path);
        }
        assert!(holds(path, "k"));
    });
}

#[test]
fn a_keyspace_is_closed_once_whoever_asks_and_however_often() {
    let test = "dropping::a_keyspace_is_closed_once_whoever_asks_and_however_often";
    returns(test, |path| {
        for _ in 0..TIMES {
            let keyspace = small(path).open().unwrap();
            items(&keyspace).insert("k", vec![1; 50_000]).unwrap();
            let together = Barrier::new(4);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    let (keyspace, together) = (keyspace.clone(), &together);
                    scope.spawn(move || {
                        together.wait();
                        keyspace.close().unwrap();
                        // The first has finished when the others return.
                        assert_no_worker();
                    });
                }
            });
            keyspace.clone().close().unwrap();
        }
    });
}

#[test]
fn a_close_waits_for_a_checkpoint_of_another_thread_and_both_return() {
    let test = "dropping::a_close_waits_for_a_checkpoint_of_another_thread_and_both_return";
    returns(test, |path| {
        for number in 0..TIMES {
            let keyspace = small(path).open().unwrap();
            items(&keyspace).insert("k", vec![1; 50_000]).unwrap();
            let target = path.with_file_name(format!("checkpoint-{number}"));
            let (under_way, closing) = (Barrier::new(2), AtomicBool::new(false));
            std::thread::scope(|scope| {
                let checkpoint = scope.spawn(|| {
                    let mut first = true;
                    let progress = |_| {
                        if std::mem::replace(&mut first, false) {
                            under_way.wait();
                            while !closing.load(Ordering::Acquire) {
                                std::thread::yield_now();
                            }
                        }
                    };
                    keyspace.checkpoint().progress(progress).write_to(&target)
                });
                under_way.wait();
                let close = scope.spawn(|| keyspace.clone().close());
                // Closed for new work while the checkpoint is still under way.
                while keyspace.open_partition("items").is_ok() {
                    std::thread::yield_now();
                }
                closing.store(true, Ordering::Release);
                checkpoint.join().unwrap().unwrap();
                close.join().unwrap().unwrap();
            });
            assert!(holds(&target, "k"));
        }
    });
}

#[test]
fn a_callback_that_closes_its_keyspace_or_takes_a_checkpoint_is_refused() {
    let test = "dropping::a_callback_that_closes_its_keyspace_or_takes_a_checkpoint_is_refused";
    returns(test, |path| {
        let keyspace = small(path).open().unwrap();
        items(&keyspace).insert("k", vec![1; 50_000]).unwrap();
        let (target, inner) = (path.with_file_name("outer"), path.with_file_name("inner"));
        let mut calls = 0;
        let progress = |_| {
            calls += 1;
            let close = keyspace.clone().close();
            assert_eq!(close.unwrap_err().kind(), ErrorKind::FixInput);
            assert_eq!(keyspace.backup_to(&inner).unwrap_err().kind(), ErrorKind::FixInput);
        };
        keyspace.checkpoint().flush_first(true).progress(progress).write_to(&target).unwrap();
        assert!(calls > 0 && holds(&target, "k") && !inner.exists());
        keyspace.close().unwrap();
    });
}

#[test]
fn a_keyspace_is_dropped_in_the_middle_of_flushes_and_compactions() {
    let test = "dropping::a_keyspace_is_dropped_in_the_middle_of_flushes_and_compactions";
    returns(test, |path| {
        for round in 0..2 * TIMES {
            let keyspace = small(path).worker_threads(2).open().unwrap();
            let options = PartitionOptions::default().l0_runs(1).table_bytes(8 << 10);
            let busy = keyspace.partition("busy", options).unwrap();
            for number in 0..200 {
                busy.insert(format!("{number}/{round}"), vec![round as u8; 1_000]).unwrap();
            }
            if round % 2 == 0 {
                // The last handle goes in another thread than the writer's.
                std::thread::spawn(move || drop((busy, keyspace))).join().unwrap();
            }
        }
        let keyspace = Keyspace::open(path).unwrap();
        let busy = keyspace.open_partition("busy").unwrap().unwrap();
        assert_eq!(busy.iter().unwrap().count(), 200 * 2 * TIMES);
    });
}

#[test]
fn a_read_only_keyspace_is_dropped_with_its_view() {
    let test = "dropping::a_read_only_keyspace_is_dropped_with_its_view";
    returns(test, |path| {
        let keyspace = small(path).open().unwrap();
        items(&keyspace).insert("k", "v").unwrap();
        let image = esker_tests::crash_image(path);
        drop(keyspace);
        let crashed: PathBuf = image.path().join("keyspace");
        for _ in 0..TIMES {
            let reader = small(&crashed).read_only(true).open().unwrap();
            let items = reader.open_partition("items").unwrap().unwrap();
            let iter = items.iter().unwrap();
            assert_eq!(items.insert("k", "w").unwrap_err().kind(), ErrorKind::FixInput);
            reader.backup_to(path.with_file_name("checkpoint")).unwrap_err();
            reader.flush().unwrap_err();
            reader.clone().close().unwrap();
            reader.close().unwrap();
            assert_eq!(iter.count(), 1);
        }
        esker_tests::ends::assert_nothing_left(&crashed);
    });
}

/// What finds a keyspace that does not let go: it is held here.
#[test]
#[should_panic(expected = "outlived")]
fn a_keyspace_that_is_still_open_is_noticed() {
    let dir = chaos::memory_dir();
    let keyspace = small(dir.path()).open().unwrap();
    esker_tests::ends::assert_nothing_left(keyspace.path());
}
