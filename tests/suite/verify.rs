//! `verify` finds sound keyspaces sound, names strays, and writes nothing.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use esker::{ErrorKind, PartitionOptions, Phase, VerifyOptions, VerifyReport};
use esker_tests::files::entries;
use esker_tests::{Store, fill, fingerprint};

fn verify(path: &Path) -> VerifyReport {
    esker::verify(path, VerifyOptions::default()).unwrap()
}

fn written() -> Store {
    let store = Store::with(|config| config.journal_segment_bytes(4096).memtable_bytes(8192));
    fill(&store.partition("tables"), 300);
    let blobs = PartitionOptions::default().separate_values_from(Some(5));
    fill(&store.partition_with("blobs", blobs), 100);
    store.keyspace().flush().unwrap();
    store.write("tables", "in the journal", "v");
    store
}

#[test]
fn closed_crashed_and_checkpointed_keyspaces_are_sound_and_stay_as_they_are() {
    let mut store = written();
    let seqno = store.keyspace().seqno();
    store.keyspace().backup_to(store.beside("checkpoint")).unwrap();
    let checkpoint = store.beside("checkpoint");
    let before = fingerprint(&checkpoint);
    let report = verify(&checkpoint);
    assert!(report.is_sound() && report.clean && report.strays.is_empty(), "{report:?}");
    assert_eq!(
        (report.seqno, &report.partitions[..]),
        (seqno, &["blobs".into(), "tables".into()][..])
    );
    assert_eq!(fingerprint(&checkpoint), before);
    store.crash();
    let before = fingerprint(&store.path());
    let report = verify(&store.path());
    assert!(report.is_sound() && !report.clean, "{report:?}");
    assert_eq!(report.seqno, seqno);
    assert_eq!(fingerprint(&store.path()), before);
    store.reopen();
    store.close();
    let before = fingerprint(&store.path());
    let report = verify(&store.path());
    assert!(report.is_sound() && report.clean && report.strays.is_empty(), "{report:?}");
    assert_eq!(report.seqno, seqno);
    assert_eq!(fingerprint(&store.path()), before);
}

#[test]
fn every_byte_is_read_whatever_the_number_of_threads() {
    let mut store = written();
    store.close();
    let lock = store.path().join("LOCK");
    let bytes: u64 = fingerprint(&store.path()).values().map(|f| f.bytes).sum::<u64>()
        - std::fs::metadata(lock).unwrap().len();
    let files = esker_tests::files::names(&store.path()).len() as u64 - 1;
    for threads in [0, 1, 2, 16] {
        let report =
            esker::verify(store.path(), VerifyOptions::default().threads(threads)).unwrap();
        assert!(report.is_sound());
        assert_eq!((report.files, report.bytes), (files, bytes), "{threads} threads");
    }
}

#[test]
fn progress_ends_at_its_totals() {
    let mut store = written();
    store.close();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let options = VerifyOptions::default().progress(move |p| sink.lock().unwrap().push(p));
    esker::verify(store.path(), options).unwrap();
    let seen = seen.lock().unwrap();
    let last = seen.last().expect("progress was reported");
    assert!(seen.iter().all(|p| p.phase == Phase::Verify));
    assert!(seen.windows(2).all(|w| w[0].bytes_done <= w[1].bytes_done));
    assert_eq!(last.files_done, last.files_total);
    assert_eq!(last.bytes_done, last.bytes_total);
    assert!(last.files_total > 0);
}

#[test]
fn files_that_belong_to_nothing_are_strays_and_not_damage() {
    let mut store = written();
    store.close();
    let strays = [
        "CATALOG.tmp",
        "README",
        "partitions/77/tables/1",
        "partitions/77/v0",
        "staging/12/journal/00000000000000000001.jnl",
    ];
    for stray in strays {
        let path = store.path().join(stray);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "stray").unwrap();
    }
    let report = verify(&store.path());
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.strays, strays.map(PathBuf::from));
    let content = {
        store.open();
        store.content()
    };
    assert_eq!(content["tables"].len(), 301);
}

#[test]
fn one_flipped_bit_in_a_table_is_found_with_its_place() {
    let mut store = written();
    store.close();
    let names = esker_tests::files::names(&store.path());
    let table = names.iter().find(|n| n.parent().is_some_and(|p| p.ends_with("tables"))).unwrap();
    let path = store.path().join(table);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let report = verify(&store.path());
    assert!(!report.is_sound());
    let [problem] = &report.problems[..] else { panic!("{report:?}") };
    assert_eq!(problem.path, path);
    assert_eq!(problem.offset, Some(0), "the first block is the damaged one");
    assert_ne!(problem.expected, problem.found);
    let line = problem.to_string();
    assert!(line.contains(path.to_str().unwrap()) && !line.contains('\n'), "{line}");
    assert!(serde_json::to_string(&report).unwrap().contains("problems"));
}

#[test]
fn every_missing_file_is_named() {
    let mut store = written();
    store.close();
    let names = esker_tests::files::names(&store.path());
    for name in names.iter().filter(|n| n.starts_with("partitions")) {
        let path = store.path().join(name);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let report = verify(&store.path());
        assert!(!report.is_sound(), "{} was not missed", name.display());
        // A manifest is missed by the `current` that names it.
        let file = name.file_name().unwrap().to_str().unwrap();
        let names_it = |p: &esker::Problem| p.path == path || p.what.contains(file);
        let problems = &report.problems;
        assert!(problems.iter().any(names_it), "{} is not named: {problems:?}", name.display());
        let error = store.config().open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(verify(&store.path()).is_sound());
}

#[test]
fn verify_of_an_open_keyspace_says_locked_and_beside_readers_it_works() {
    let mut store = written();
    let error = esker::verify(store.path(), VerifyOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    store.close();
    let _reader = esker::Config::new(store.path()).read_only(true).open().unwrap();
    assert!(verify(&store.path()).is_sound());
}

/// lsm-tree's checksum of a blob leaves out the length that it unpacks to.
#[test]
fn a_rotten_length_of_a_packed_value_is_an_error_and_no_other_value() {
    let mut store = Store::new();
    let p = store.partition_with("p", PartitionOptions::default().separate_values_from(Some(100)));
    let value = "easy to pack ".repeat(100);
    p.insert("key", value.as_str()).unwrap();
    store.keyspace().flush().unwrap();
    drop(p);
    store.close();
    let blobs = store.path().join("partitions/1/blobs");
    let [name] = &entries(&blobs)[..] else { panic!("one blob file") };
    let file = blobs.join(name);
    let whole = std::fs::read(&file).unwrap();
    // docs/format.md: the length is in bytes 30 to 34 of the blob.
    for bit in 0..32 {
        let mut bytes = whole.clone();
        bytes[30 + bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&file, bytes).unwrap();
        let keyspace = store.config().read_only(true).open().unwrap();
        let p = keyspace.open_partition("p").unwrap().unwrap();
        let errors = [
            p.get("key").unwrap_err(),
            p.iter().unwrap().next().unwrap().unwrap_err(),
            p.iter().unwrap().next_back().unwrap().unwrap_err(),
            p.prefix("k").unwrap().next().unwrap().unwrap_err(),
        ];
        for error in errors {
            let esker::Error::Corrupt(corruption) = &error else { panic!("{error}") };
            assert!(corruption.path.ends_with(Path::new("blobs").join(name)), "bit {bit}: {error}");
            assert_eq!(corruption.offset, Some(0), "{error}");
        }
    }
    std::fs::write(&file, whole).unwrap();
    store.open();
    assert_eq!(store.get("p", "key"), Some(value));
}
