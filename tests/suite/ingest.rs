//! Bulk loads: all or nothing, in their place among the commits, whatever goes on beside them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use esker::{
    CompactionFilter, CompactionFilterFactory, Config, Error, ErrorKind, FilterContext, FilterItem,
    Keyspace, Partition, PartitionOptions, TxKind, Verdict, VerifyOptions, verify,
};
use esker_tests::files::{crash_image, entries as names_in};
use esker_tests::store::{Entries, entries};
use esker_tests::{Seeded, Store, fill, open_content};

use crate::full_disk::small_disk;

fn key(number: usize) -> String {
    format!("key {number:06}")
}

/// Loads `key i` → `value` for the numbers given.
fn load(partition: &Partition, numbers: impl Iterator<Item = usize>, value: &str) -> u64 {
    let mut ingest = partition.ingest().expect("begin");
    for number in numbers {
        ingest.insert(key(number), value).expect("add");
    }
    ingest.finish().expect("finish").seqno
}

fn text(partition: &Partition, number: usize) -> Option<String> {
    let value = partition.get(key(number)).expect("read");
    value.map(|v| String::from_utf8(v.to_vec()).expect("UTF-8"))
}

/// Every table and blob file on disk.
fn files(store: &Store) -> Vec<PathBuf> {
    let mut files = esker_tests::files::names(&store.path().join("partitions"));
    files.retain(|path| {
        let dir = path.parent().and_then(|dir| dir.file_name());
        dir.is_some_and(|dir| dir == "tables" || dir == "blobs")
    });
    files
}

/// Waits until these are the files: what holds a tree's files now removes them when it is done.
fn assert_files_become(store: &Store, expected: &[PathBuf]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while files(store) != expected && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(files(store), expected);
}

fn assert_sound(path: &std::path::Path) {
    let report = verify(path, VerifyOptions::default()).expect("verify");
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

#[test]
fn an_ingest_appears_at_once_as_one_commit() {
    let store = Store::new();
    let items = store.partition("items");
    items.insert("before", "v").unwrap();
    let before = store.keyspace().seqno();
    let mut ingest = items.ingest().unwrap();
    for number in 0..20_000 {
        ingest.insert(key(number), "v").unwrap();
    }
    assert_eq!(items.len().unwrap(), 1, "nothing shows before it is finished");
    assert_eq!(store.keyspace().seqno(), before);
    let snapshot = store.keyspace().snapshot();
    let report = ingest.finish().unwrap();
    assert_eq!((report.seqno, report.entries), (before + 1, 20_000));
    assert_eq!(report.bytes, 20_000 * (key(0).len() as u64 + 1));
    assert_eq!(store.keyspace().seqno(), report.seqno);
    assert_eq!(items.len().unwrap(), 20_001);
    assert_eq!(snapshot.len(&items).unwrap(), 1, "it is newer than the snapshot");
    items.compact().unwrap();
    assert_eq!(snapshot.len(&items).unwrap(), 1, "and stays so after a merge");
    assert_eq!(store.keyspace().statistics().ingests, 1);
}

#[test]
fn an_ingest_hides_what_was_written_before_and_not_what_comes_after() {
    let mut store = Store::new();
    let items = store.partition("items");
    let mut expected = Entries::new();
    let mut put =
        |number: usize, value: &str| _ = expected.insert(key(number).into(), value.into());
    load(&items, 0..10, "first ingest");
    items.insert(key(1), "in a table").unwrap();
    items.insert(key(2), "in a table").unwrap();
    store.keyspace().flush().unwrap();
    items.insert(key(3), "in memory").unwrap();
    items.insert(key(4), "in memory").unwrap();
    let mut ingest = items.ingest().unwrap();
    items.insert(key(5), "written while it is open").unwrap();
    ingest.insert(key(2), "ingested").unwrap();
    ingest.remove(key(4)).unwrap();
    ingest.insert(key(5), "ingested").unwrap();
    ingest.insert(key(6), "ingested").unwrap();
    ingest.finish().unwrap();
    items.insert(key(6), "after").unwrap();
    for number in [0, 7, 8, 9] {
        put(number, "first ingest");
    }
    put(1, "in a table");
    put(2, "ingested");
    put(3, "in memory");
    put(5, "ingested");
    put(6, "after");
    assert_eq!(entries(&items), expected);
    for number in 0..10 {
        assert_eq!(
            items.get(key(number)).unwrap().map(|v| v.to_vec()),
            expected.get(key(number).as_bytes()).cloned()
        );
    }
    drop(items);
    store.crash();
    store.open();
    assert_eq!(store.content()["items"], expected, "after a crash");
    store.partition("items").compact().unwrap();
    assert_eq!(store.content()["items"], expected, "after a merge");
    store.reopen();
    assert_eq!(store.content()["items"], expected);
    store.close();
    assert_sound(&store.path());
}

#[test]
fn a_replay_puts_nothing_older_above_ingested_entries() {
    // The journal still has the older value when the tables are merged. A merge forgets a removal, and
    // with it the number of the ingest.
    for value in [Some("ingested"), None] {
        let mut store = Store::new();
        let items = store.partition("items");
        // What is not flushed keeps the journal, and CATALOG is not written to shorten it.
        store.write("others", "a", "v");
        items.insert(key(0), "older").unwrap();
        let mut ingest = items.ingest().unwrap();
        match value {
            Some(value) => ingest.insert(key(0), value).unwrap(),
            None => ingest.remove(key(0)).unwrap(),
        }
        ingest.finish().unwrap();
        items.compact().unwrap();
        drop(items);
        store.crash();
        store.open();
        assert_eq!(text(&store.partition("items"), 0).as_deref(), value);
    }
}

#[test]
fn a_key_that_does_not_ascend_is_refused_and_the_ingest_goes_on() {
    let store = Store::new();
    let items = store.partition("items");
    let mut ingest = items.ingest().unwrap();
    ingest.insert("b", "1").unwrap();
    for (bad, said) in [("a", "is not above"), ("b", "is not above"), ("", "is empty")] {
        let error = ingest.insert(bad, "2").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FixInput, "{error}");
        assert!(error.to_string().contains(said), "{error}");
        assert!(ingest.remove(bad).is_err());
    }
    let error = ingest.insert(vec![b'x'; 65_536], "2").unwrap_err();
    assert!(error.to_string().contains("65536 bytes long"), "{error}");
    ingest.insert("c", "3").unwrap();
    assert_eq!(ingest.finish().unwrap().entries, 2);
    let expected = [("b", "1"), ("c", "3")].map(|(k, v)| (k.into(), v.into()));
    assert_eq!(entries(&items), Entries::from(expected));
}

#[test]
fn an_ingest_without_entries_commits_nothing_and_leaves_no_file() {
    let store = Store::new();
    let items = store.partition("items");
    items.insert("a", "v").unwrap();
    let (seqno, before) = (store.keyspace().seqno(), files(&store));
    let report = items.ingest().unwrap().finish().unwrap();
    assert_eq!((report.seqno, report.entries, report.bytes), (seqno, 0, 0));
    assert_eq!(store.keyspace().seqno(), seqno);
    assert_files_become(&store, &before);
}

#[test]
fn an_ingest_that_is_given_up_leaves_nothing() {
    for options in
        [PartitionOptions::default(), PartitionOptions::default().separate_values_from(Some(1_000))]
    {
        let store = Store::new();
        let items = store.partition_with("items", options);
        items.insert("kept", vec![7; 3_000]).unwrap();
        store.keyspace().flush().unwrap();
        let before = (store.keyspace().seqno(), files(&store));
        let mut ingest = items.ingest().unwrap();
        for number in 0..5_000 {
            ingest.insert(key(number), vec![1; 2_000]).unwrap();
        }
        assert!(files(&store).len() > before.1.len(), "it writes files");
        drop(ingest);
        assert_eq!(store.keyspace().seqno(), before.0);
        assert_files_become(&store, &before.1);
        assert_eq!(items.len().unwrap(), 1);
        assert_eq!(items.get("kept").unwrap().unwrap().len(), 3_000);
    }
}

#[test]
fn what_is_flushed_and_merged_beside_an_ingest_outlives_its_end() {
    let mut rng = Seeded::new("what_is_flushed_and_merged_beside_an_ingest_outlives_its_end");
    for options in [
        PartitionOptions::default().l0_runs(2),
        PartitionOptions::default().l0_runs(2).separate_values_from(Some(500)),
    ] {
        let store = Store::new();
        let items = store.partition_with("items", options);
        fill(&items, 300);
        for round in 0..12 {
            let mut ingest = items.ingest().unwrap();
            let mut iterators = Vec::new();
            let mut expected = entries(&items);
            for number in 0..40 {
                ingest.insert(key(number), rng.bytes(1_000)).unwrap();
                let (name, value) = (format!("beside {}", rng.below(20)), rng.bytes(700));
                items.insert(name.clone(), value.clone()).unwrap();
                expected.insert(name.into(), value);
                if rng.one_in(6) {
                    store.keyspace().flush().unwrap();
                }
                if rng.one_in(12) {
                    items.compact().unwrap();
                }
                if rng.one_in(10) {
                    iterators.push((items.iter().unwrap(), expected.clone()));
                }
            }
            if round % 3 == 0 {
                ingest.finish().unwrap();
            } else {
                drop(ingest);
                assert_eq!(entries(&items), expected);
            }
            // They read tables that were superseded meanwhile.
            for (iterator, then) in iterators {
                let read = iterator.map(|item| {
                    let (key, value) = item.expect("its files are there");
                    (key.to_vec(), value.to_vec())
                });
                assert_eq!(read.collect::<Entries>(), then);
            }
        }
    }
}

#[test]
fn ingested_values_are_merged_with_older_separated_ones_under_a_snapshot() {
    // lsm-tree would give ingested values in blob files no number, look for them in the wrong order when
    // both are moved, and panic.
    let options = PartitionOptions::default()
        .separate_values_from(Some(10))
        .blob_staleness_threshold(0.01)
        .blob_age_cutoff(1.0);
    let store = Store::new();
    let items = store.partition_with("items", options);
    let value = |round: usize, number: usize| format!("{round} {number:03} {}", "x".repeat(200));
    let mut snapshots = Vec::new();
    for round in 0..6 {
        let numbers = (0..100).filter(|number| round == 0 || number % (round + 1) == 0);
        if round % 2 == 0 {
            numbers.for_each(|n| items.insert(key(n), value(round, n)).unwrap());
        } else {
            let mut ingest = items.ingest().unwrap();
            numbers.for_each(|n| ingest.insert(key(n), value(round, n)).unwrap());
            ingest.finish().unwrap();
        }
        store.keyspace().flush().unwrap();
        snapshots.push((store.keyspace().snapshot(), entries(&items)));
        items.compact().unwrap();
    }
    while !snapshots.is_empty() {
        for (snapshot, then) in &snapshots {
            let now = snapshot.iter(&items).unwrap().map(|entry| {
                let (key, value) = entry.unwrap();
                (key.to_vec(), value.to_vec())
            });
            assert_eq!(&now.collect::<Entries>(), then);
        }
        snapshots.remove(0);
        items.insert(key(1), value(9, snapshots.len())).unwrap();
        items.compact().unwrap();
    }
    assert_eq!(items.len().unwrap(), 100);
}

#[test]
fn a_crash_in_the_middle_of_an_ingest_leaves_nothing_of_it() {
    let mut store = Store::new();
    let items = store.partition("items");
    fill(&items, 100);
    store.keyspace().flush().unwrap();
    let expected = entries(&items);
    let mut ingest = items.ingest().unwrap();
    for number in 0..30_000 {
        ingest.insert(key(number), vec![3; 3_000]).unwrap();
    }
    let on_disk = files(&store).len();
    assert!(on_disk > 1, "it has written tables");
    // The writer goes on while the image is made: what it has written by then is cut somewhere.
    let image = crash_image(&store.path());
    drop(ingest);
    drop(items);
    store.close();
    let keyspace = Keyspace::open(image.path().join("keyspace")).unwrap();
    assert_eq!(entries(&keyspace.open_partition("items").unwrap().unwrap()), expected);
    let tables = image.path().join("keyspace/partitions/1/tables");
    assert_eq!(names_in(&tables).len(), 1, "what it had written is gone");
}

#[test]
fn an_ingest_is_durable_when_it_is_finished() {
    let mut store = Store::new();
    let blobs = PartitionOptions::default().separate_values_from(Some(1_000));
    let seqno = {
        let (items, blobs) = (store.partition("items"), store.partition_with("blobs", blobs));
        load(&items, 0..50_000, "v");
        load(&blobs, 0..100, &"w".repeat(5_000))
    };
    store.crash();
    store.open();
    assert_eq!(store.keyspace().seqno(), seqno);
    assert_eq!(store.partition("items").len().unwrap(), 50_000);
    assert_eq!(text(&store.partition("blobs"), 99), Some("w".repeat(5_000)));
    store.close();
    assert_sound(&store.path());
}

#[test]
fn a_clear_or_drop_while_an_ingest_is_open_ends_it() {
    let store = Store::new();
    let items = store.partition("items");
    let mut ingest = items.ingest().unwrap();
    ingest.insert("a", "ingested").unwrap();
    items.clear().unwrap();
    let error = ingest.finish().unwrap_err();
    assert!(matches!(&error, Error::PartitionCleared { name } if name == "items"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(items.is_empty().unwrap());
    assert_files_become(&store, &[]);

    let mut ingest = items.ingest().unwrap();
    ingest.insert("a", "ingested").unwrap();
    store.keyspace().drop_partition("items").unwrap();
    let error = loop {
        // The entries are on their way for a while.
        let next = format!("b{:09}", store.keyspace().seqno());
        match ingest.insert(next, "v") {
            Ok(()) => {}
            Err(Error::InvalidInput(_)) => break ingest.finish().unwrap_err(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::PartitionDropped { .. }), "{error}");
    assert!(matches!(items.ingest(), Err(Error::PartitionDropped { .. })));
}

#[test]
fn closing_the_keyspace_ends_an_open_ingest() {
    let mut store = Store::new();
    let items = store.partition("items");
    let mut ingest = items.ingest().unwrap();
    ingest.insert("a", "v").unwrap();
    store.keyspace().clone().close().unwrap();
    assert!(matches!(ingest.insert("b", "v"), Err(Error::Closed { .. })));
    assert!(matches!(ingest.finish(), Err(Error::Closed { .. })));
    assert!(matches!(items.ingest(), Err(Error::Closed { .. })));
    drop(items);
    store.close();
    store.open();
    assert!(store.partition("items").is_empty().unwrap());
    assert_eq!(files(&store), Vec::<PathBuf>::new());
}

#[test]
fn a_read_only_keyspace_refuses_an_ingest() {
    let mut store = Store::new();
    store.write("items", "a", "v");
    store.close();
    let keyspace = Config::new(store.path()).read_only(true).open().unwrap();
    let items = keyspace.open_partition("items").unwrap().unwrap();
    assert!(matches!(items.ingest(), Err(Error::ReadOnly { .. })));
}

#[test]
fn runs_of_many_small_ingests_stay_far_below_the_limit() {
    let mut store = Store::new();
    let (keyspace, items) = (store.keyspace(), store.partition("items"));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let items = &items;
            scope.spawn(move || {
                for number in 0..100 {
                    load(items, std::iter::once(thread * 100 + number), "v");
                    let runs = keyspace.statistics().partitions[0].l0_runs;
                    assert!(runs < 60, "{runs} runs");
                }
            });
        }
    });
    drop(items);
    store.reopen();
    assert_eq!(store.partition("items").len().unwrap(), 400);
}

#[test]
fn snapshots_and_checkpoints_see_an_ingest_whole_or_not_at_all() {
    const KEYS: usize = 300;
    let store = Store::with(|config| config.memtable_bytes(64 << 10));
    let (items, others) = (store.partition("items"), store.partition("others"));
    load(&items, 0..KEYS, "round 0");
    let stop = &AtomicBool::new(false);
    /// The round that every entry is of, if it is one, and the number that others had then.
    fn round(content: &Entries) -> usize {
        assert_eq!(content.len(), KEYS);
        let values: std::collections::BTreeSet<_> = content.values().collect();
        assert_eq!(values.len(), 1, "{values:?}");
        let value = String::from_utf8(values.first().unwrap().to_vec()).unwrap();
        value.strip_prefix("round ").unwrap().parse().unwrap()
    }
    std::thread::scope(|scope| {
        let (items, others, store) = (&items, &others, &store);
        scope.spawn(move || {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                others.insert(format!("{}", number % 1_000), vec![1; 500]).unwrap();
            }
        });
        let reader = scope.spawn(move || {
            let mut last = 0;
            while !stop.load(Ordering::Relaxed) {
                let snapshot = store.keyspace().snapshot();
                let read = snapshot.iter(items).unwrap().map(|item| {
                    let (key, value) = item.unwrap();
                    (key.to_vec(), value.to_vec())
                });
                let seen = round(&read.collect());
                assert!(seen >= last, "{seen} after {last}");
                last = seen;
            }
        });
        let loader = scope.spawn(move || {
            for number in 1..60 {
                load(items, 0..KEYS, &format!("round {number}"));
                // Between ingests an ordinary commit of everything, of no round of its own.
                if number % 7 == 0 {
                    items.compact().unwrap();
                }
            }
        });
        let mut checkpoints = 0;
        while !loader.is_finished() {
            let at = store.beside(&format!("checkpoint {checkpoints}"));
            store.keyspace().backup_to(&at).unwrap();
            round(&open_content(&at)["items"]);
            assert_sound(&at);
            std::fs::remove_dir_all(&at).unwrap();
            checkpoints += 1;
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
        assert!(checkpoints >= 3, "{checkpoints} checkpoints");
    });
    assert_eq!(round(&entries(&items)), 59);
}

#[test]
fn ingests_into_one_partition_side_by_side_all_arrive() {
    let store = Store::new();
    let items = store.partition("items");
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let items = &items;
            scope.spawn(move || {
                let mut given_up = items.ingest().unwrap();
                given_up.insert(key(999_999), "never").unwrap();
                load(items, (0..5_000).map(|number| number * 4 + thread), "v");
                drop(given_up);
            });
        }
    });
    assert_eq!(items.len().unwrap(), 20_000);
    store.keyspace().flush().unwrap();
    items.compact().unwrap();
    assert_eq!(items.len().unwrap(), 20_000);
    let deadline = Instant::now() + Duration::from_secs(20);
    let tables = || store.keyspace().statistics().partitions[0].tables as usize;
    while files(&store).len() != tables() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(files(&store).len(), tables(), "nothing is left of those that were given up");
}

#[test]
fn an_optimistic_transaction_that_read_what_an_ingest_changed_conflicts() {
    let store = tempfile::tempdir().unwrap();
    let keyspace =
        Config::new(store.path().join("db")).open_transactional(TxKind::Optimistic).unwrap();
    let items = keyspace.partition("items", PartitionOptions::default()).unwrap();
    let mut tx = keyspace.write_tx().unwrap();
    assert_eq!(tx.get(&items, key(5)).unwrap(), None);
    tx.insert(&items, "read it", "absent").unwrap();
    load(&items, 0..10, "ingested");
    assert!(matches!(tx.commit(), Err(Error::Conflict)));
    assert_eq!(items.get("read it").unwrap(), None);
}

#[test]
fn a_full_disk_refuses_an_ingest_and_gives_the_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(&dir.path().join("disk"), "size=48m") else { return };
    let path = dir.path().join("disk/keyspace");
    let keyspace = Config::new(&path).journal_segment_bytes(256 << 10).open().unwrap();
    let items = keyspace.partition("items", PartitionOptions::default()).unwrap();
    items.insert("kept", "v").unwrap();
    let mut ingest = items.ingest().unwrap();
    let mut rng = Seeded::new("a_full_disk_refuses_an_ingest_and_gives_the_space_back");
    let refused = (0..100_000).find_map(|n| ingest.insert(key(n), rng.bytes(10_000)).err());
    let error = refused.expect("the disk is full at last");
    assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
    assert_eq!(ingest.insert("z", "v").unwrap_err().kind(), ErrorKind::Retry, "it stays so");
    drop(ingest);
    items.insert("after", "v").unwrap();
    assert!(load(&items, 0..10, "v") > 0, "there is room again");
    assert_eq!(items.len().unwrap(), 12);
    keyspace.close().unwrap();
    assert_sound(&path);
    drop(disk);
}

#[test]
fn writers_and_checkpoints_go_on_while_an_ingest_waits_for_a_merge() {
    // The merge is as long as its filter wants it to be.
    let (begin, go_on) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
    let filter = Slow { begin: Arc::clone(&begin), go_on: Arc::clone(&go_on) };
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new(dir.path().join("db")).worker_threads(1);
    let filter: Arc<dyn CompactionFilterFactory> = Arc::new(filter);
    let keyspace = config
        .compaction_filters(move |name| (name == "items").then(|| Arc::clone(&filter)))
        .open()
        .unwrap();
    let items = keyspace.partition("items", PartitionOptions::default()).unwrap();
    let others = keyspace.partition("others", PartitionOptions::default()).unwrap();
    fill(&items, 10);
    keyspace.flush().unwrap();
    std::thread::scope(|scope| {
        let merging = scope.spawn(|| items.compact().unwrap());
        begin.wait();
        let loading = scope.spawn(|| load(&items, 0..1_000, "v"));
        std::thread::sleep(Duration::from_millis(100));
        // None of these can wait for the merge, which waits for this thread.
        others.insert("a", "v").unwrap();
        keyspace.partition("new", PartitionOptions::default()).unwrap();
        others.clear().unwrap();
        keyspace.backup_to(dir.path().join("backup")).unwrap();
        assert!(!loading.is_finished() && !merging.is_finished());
        go_on.store(true, Ordering::Relaxed);
        merging.join().unwrap();
        loading.join().unwrap();
    });
    assert_eq!(items.len().unwrap(), 1_000);
    keyspace.close().unwrap();
}

/// Makes the first merge wait.
struct Slow {
    begin: Arc<Barrier>,
    go_on: Arc<AtomicBool>,
}

impl CompactionFilterFactory for Slow {
    fn make_filter(&self, _: &FilterContext) -> Box<dyn CompactionFilter> {
        Box::new(SlowFilter {
            begin: Some(Arc::clone(&self.begin)),
            go_on: Arc::clone(&self.go_on),
        })
    }
}

struct SlowFilter {
    begin: Option<Arc<Barrier>>,
    go_on: Arc<AtomicBool>,
}

impl CompactionFilter for SlowFilter {
    fn filter_item(&mut self, _: &FilterItem<'_>, _: &FilterContext) -> esker::Result<Verdict> {
        if !self.go_on.load(Ordering::Relaxed)
            && let Some(begin) = self.begin.take()
        {
            begin.wait();
            while !self.go_on.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(Verdict::Keep)
    }
}
