//! Memory, runs and journal stay bounded, and writers that wait go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use esker::{Keyspace, PartitionOptions, Statistics};
use esker_tests::{Seeded, Store, fill};

/// Runs `work` on a thread and fails if it does not end: a stall for ever is the bug looked for.
fn must_end<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = work();
        let _ = done.send(());
        result
    });
    match wait.recv_timeout(Duration::from_secs(60)) {
        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => thread.join().unwrap(),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what} did not end within a minute"),
    }
}

/// Looks at the statistics until they are as they must become.
fn eventually(keyspace: &Keyspace, what: &str, holds: impl Fn(&Statistics) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds(&keyspace.statistics()) {
        assert!(Instant::now() < deadline, "{what}: {:?}", keyspace.statistics());
        std::thread::yield_now();
    }
}

#[test]
fn memory_is_given_back_after_a_flush() {
    let store = Store::new();
    let p = store.partition("p");
    fill(&p, 5_000);
    let before = store.keyspace().statistics();
    assert!(before.memtable_bytes > 100_000);
    assert_eq!(before.partitions[0].memtable_bytes, before.memtable_bytes);
    store.keyspace().flush().unwrap();
    let after = store.keyspace().statistics();
    assert_eq!((after.memtable_bytes, after.sealed_memtables), (0, 0));
    assert_eq!(after.partitions[0].memtable_bytes, 0);
}

#[test]
fn memory_is_given_back_by_clear_and_drop() {
    let store = Store::new();
    for name in ["cleared", "dropped"] {
        fill(&store.partition(name), 1_000);
    }
    store.partition("cleared").clear().unwrap();
    store.keyspace().drop_partition("dropped").unwrap();
    assert_eq!(store.keyspace().statistics().memtable_bytes, 0);
}

#[test]
fn a_tiny_write_buffer_stalls_many_writers_and_lets_them_go_on() {
    const BUFFER: u64 = 16 << 10;
    let store = Store::with(|config| {
        config.memtable_bytes(4 << 10).write_buffer_bytes_max(BUFFER).journal_segment_bytes(8 << 10)
    });
    let parts: Vec<_> = (0..3).map(|n| store.partition(&format!("p{n}"))).collect();
    let keyspace = store.keyspace().clone();
    let most = must_end("writing through a tiny buffer", move || {
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..6)
                .map(|thread| {
                    let parts = &parts;
                    scope.spawn(move || {
                        for number in 0..400 {
                            let key = format!("{thread} {number:06}");
                            parts[number % 3].insert(key, "x".repeat(100)).unwrap();
                        }
                    })
                })
                .collect();
            let mut most = 0;
            while writers.iter().any(|writer| !writer.is_finished()) {
                most = most.max(keyspace.statistics().memtable_bytes);
            }
            most
        })
    });
    // Every writer may be past the gate with one more entry when the buffer fills.
    assert!(most < BUFFER + 6 * 1024, "{most} bytes in memory");
    let statistics = store.keyspace().statistics();
    assert!(statistics.flushes > 10, "{statistics:?}");
    let total: usize = store.content().values().map(std::collections::BTreeMap::len).sum();
    assert_eq!(total, 6 * 400);
}

#[test]
fn a_partition_that_is_idle_does_not_pin_the_journal() {
    const MAX: u64 = 64 << 10;
    let mut store = Store::with(|config| {
        config.journal_segment_bytes(4096).journal_bytes_max(MAX).memtable_bytes(1 << 20)
    });
    store.write("idle", "the only key", "v");
    let busy = store.partition("busy");
    let mut number = 0;
    while store.keyspace().statistics().journal_bytes_written < 20 * MAX {
        for _ in 0..200 {
            busy.insert(format!("{:06}", number % 1000), "x".repeat(100)).unwrap();
            number += 1;
        }
        // Writing is what makes room, if need be by waiting for it.
        let deadline = Instant::now() + Duration::from_secs(60);
        while store.keyspace().statistics().journal_bytes > 2 * MAX {
            busy.insert("one more", "v").unwrap();
            assert!(Instant::now() < deadline, "{:?}", store.keyspace().statistics());
        }
    }
    let segments = esker_tests::files::segments(&store.path()).len() as u64;
    assert!(segments < number / 10, "{segments} segments on disk");
    drop(busy);
    store.crash();
    store.open();
    assert_eq!(store.get("idle", "the only key").as_deref(), Some("v"));
}

#[test]
fn a_commit_larger_than_the_whole_journal_stalls_nobody_for_ever() {
    let mut random = Seeded::new("a_commit_larger_than_the_whole_journal");
    let store = Store::with(|config| {
        config.journal_segment_bytes(4096).journal_bytes_max(8192).memtable_bytes(1024)
    });
    let p = store.partition("p");
    let value = random.bytes(100_000);
    must_end("writing after a large commit", move || {
        p.insert("large", &value[..]).unwrap();
        for number in 0..100 {
            p.insert(format!("{number}"), "small").unwrap();
        }
        p.insert("large again", &value[..]).unwrap();
        assert_eq!(p.len().unwrap(), 102);
    });
}

#[test]
fn a_commit_larger_than_the_write_buffer_stalls_nobody_for_ever() {
    let mut random = Seeded::new("a_commit_larger_than_the_write_buffer");
    let store = Store::with(|config| config.memtable_bytes(1024).write_buffer_bytes_max(2048));
    let p = store.partition("p");
    let value = random.bytes(100_000);
    must_end("writing after a large commit", move || {
        for number in 0..20 {
            p.insert(format!("large {number}"), &value[..]).unwrap();
            p.insert(format!("small {number}"), "v").unwrap();
        }
        assert_eq!(p.len().unwrap(), 40);
    });
}

/// Flushes, merges, clears and drops of many partitions, all at once, under a write buffer that is
/// always short: nothing is poisoned, and in the end not a byte is left on the account.
#[test]
fn the_account_of_memory_is_even_after_flushes_merges_clears_and_drops() {
    const PARTITIONS: u64 = 64;
    let store = Store::with(|config| {
        let config = config.memtable_bytes(16 << 10).write_buffer_bytes_max(256 << 10);
        config.journal_segment_bytes(64 << 10).worker_threads(4)
    });
    let options = || PartitionOptions::default().table_bytes(16 << 10).l0_runs(2);
    let name = |number: u64| format!("p{number}");
    must_end("writing to many partitions under pressure", move || {
        let keyspace = store.keyspace();
        for number in 0..PARTITIONS {
            keyspace.partition(&name(number), options()).unwrap();
        }
        std::thread::scope(|scope| {
            for writer in 0..3 {
                scope.spawn(move || {
                    let mut random = Seeded::new(&format!("account {writer}"));
                    for _ in 0..4_000 {
                        let to = name(random.below(PARTITIONS - 4));
                        let partition = keyspace.partition(&to, options()).unwrap();
                        partition.insert(random.bytes(8), random.bytes(300)).unwrap();
                    }
                });
            }
            let mut random = Seeded::new("account of the churn");
            for _ in 0..60 {
                let victim = name(PARTITIONS - 4 + random.below(4));
                let partition = keyspace.partition(&victim, options()).unwrap();
                for _ in 0..20 {
                    partition.insert(random.bytes(8), random.bytes(300)).unwrap();
                }
                match random.below(3) {
                    0 => partition.clear().unwrap(),
                    1 => _ = keyspace.drop_partition(&victim).unwrap(),
                    _ => partition.compact().unwrap(),
                }
            }
        });
        keyspace.flush().unwrap();
        // Merges that still run hold a little.
        while keyspace.statistics().memtable_bytes > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let statistics = keyspace.statistics();
        assert!(statistics.partitions.iter().all(|p| p.memtable_bytes == 0), "{statistics:?}");
    });
}

/// Iterators keep memtables in memory that were flushed long ago.
#[test]
fn a_writer_never_waits_for_its_own_iterators() {
    const BUFFER: u64 = 64 << 10;
    let store = Store::with(|c| c.memtable_bytes(16 << 10).write_buffer_bytes_max(BUFFER));
    let p = store.partition("p");
    must_end("writing between the steps of iterators", move || {
        let mut open = Vec::new();
        for number in 0..2_000u32 {
            p.insert(number.to_be_bytes(), [7; 500]).unwrap();
            if number % 20 == 0 {
                let mut entries = p.iter().unwrap();
                entries.next().unwrap().unwrap();
                open.push(entries);
            }
        }
        for (number, entries) in open.into_iter().enumerate() {
            assert_eq!(entries.count(), number * 20);
        }
    });
}

#[test]
fn runs_of_the_first_level_stay_far_below_what_a_level_can_hold() {
    for l0_runs in [1, 4, 32] {
        let store = Store::with(|config| {
            config.memtable_bytes(1024).journal_segment_bytes(8 << 10).worker_threads(2)
        });
        let p = store.partition_with("p", PartitionOptions::default().l0_runs(l0_runs));
        let mut most = 0;
        for number in 0..6_000 {
            p.insert(format!("{:06}", (number * 7919) % 6_000), "x".repeat(60)).unwrap();
            if number % 20 == 0 {
                most = most.max(store.keyspace().statistics().partitions[0].l0_runs);
            }
        }
        assert!(most <= 200, "{most} runs with l0_runs {l0_runs}");
        store.keyspace().flush().unwrap();
        assert!(store.keyspace().statistics().flushes > 1, "runs were made");
        assert_eq!(p.len().unwrap(), 6_000);
    }
}

#[test]
fn flushing_by_hand_again_and_again_does_not_gather_runs() {
    let store = Store::new();
    let p = store.partition("p");
    let mut most = 0;
    for number in 0..300 {
        p.insert(format!("{number:06}"), "v").unwrap();
        store.keyspace().flush().unwrap();
        most = most.max(store.keyspace().statistics().partitions[0].l0_runs);
    }
    assert!(most <= 201, "{most} runs");
    assert_eq!(p.len().unwrap(), 300);
    eventually(store.keyspace(), "compaction catches up", |s| s.partitions[0].l0_runs <= 4);
}

#[test]
fn a_stall_is_over_after_reopening_a_crashed_keyspace() {
    let mut store = Store::with(|config| {
        config.memtable_bytes(1024).write_buffer_bytes_max(4096).journal_segment_bytes(4096)
    });
    for _ in 0..3 {
        let p = store.partition("p");
        must_end("writing", move || fill(&p, 500));
        store.crash();
        store.open();
        assert_eq!(store.partition("p").len().unwrap(), 500);
    }
}

#[test]
fn compaction_gives_the_space_of_overwritten_values_back() {
    let store = Store::new();
    let p = store
        .partition_with("p", PartitionOptions::default().compression(esker::Compression::None));
    for round in 0..5 {
        for number in 0..200 {
            p.insert(format!("{number:04}"), format!("{round}").repeat(1000)).unwrap();
        }
        store.keyspace().flush().unwrap();
    }
    p.compact().unwrap();
    assert!(p.disk_space() < 300_000, "{} bytes for 200 kB", p.disk_space());
    for number in 0..200 {
        p.remove(format!("{number:04}")).unwrap();
    }
    p.compact().unwrap();
    assert_eq!(p.disk_space(), 0, "nothing is left of what was removed");
}

/// Small batches always fit beside each other; one that needs the whole write buffer must get its
/// turn all the same.
#[test]
fn a_batch_larger_than_the_write_buffer_gets_in_beside_steady_writers() {
    let store = Store::with(|c| c.memtable_bytes(1 << 20).write_buffer_bytes_max(4 << 20));
    let done = AtomicBool::new(false);
    let (finished, wait) = mpsc::channel();
    std::thread::scope(|scope| {
        for name in ["a", "b"] {
            let (p, done) = (store.partition(name), &done);
            scope.spawn(move || {
                for number in 0u64.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    p.insert(&(number % 1000).to_be_bytes()[..], vec![1; 500]).unwrap();
                }
            });
        }
        let large = store.partition("large");
        scope.spawn(move || {
            large.insert("k", vec![7; 5 << 20]).unwrap();
            finished.send(()).unwrap();
        });
        let outcome = wait.recv_timeout(Duration::from_secs(60));
        done.store(true, Ordering::Relaxed);
        outcome.expect("the large batch was never let in");
    });
    assert_eq!(store.partition("large").size_of("k").unwrap(), Some(5 << 20));
}
