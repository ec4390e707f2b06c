//! Cold copies of closed and of crashed keyspaces.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex};

use esker::{CopyOptions, ErrorKind, Keyspace, PartitionOptions, Phase, Transfer, cold_copy};
use esker_tests::files::{entries, names, segments};
use esker_tests::{Store, content, fill, fingerprint, open_content};

fn written() -> Store {
    let store = Store::with(|config| config.journal_segment_bytes(4096).memtable_bytes(1 << 20));
    let blobs = PartitionOptions::default().separate_values_from(Some(5));
    fill(&store.partition("a"), 300);
    fill(&store.partition_with("b", blobs), 100);
    store.keyspace().flush().unwrap();
    fill(&store.partition("a"), 50);
    store.write("c", "in the journal", "v");
    store
}

/// Copies, and finds the source untouched and the copy equal to `expected`, sound and independent.
fn check_copy(store: &Store, transfer: Transfer, expected: &esker_tests::Content) {
    let (source, target) = (store.path(), store.beside(&format!("copy {transfer:?}")));
    let before = fingerprint(&source);
    let options = CopyOptions::default().transfer(transfer).verify(true);
    let report = cold_copy(&source, &target, options).unwrap();
    assert_eq!(fingerprint(&source), before, "the source is not even repaired");
    assert_eq!(report.partitions, expected.keys().cloned().collect::<Vec<_>>());
    if transfer == Transfer::Copy {
        assert_eq!((report.linked.files, report.reflinked.files), (0, 0), "{report:?}");
        for name in names(&target) {
            assert_eq!(target.join(&name).metadata().unwrap().nlink(), 1, "{}", name.display());
        }
    } else {
        assert!(report.linked.files > 0, "{report:?}");
    }
    assert!(!entries(target.parent().unwrap()).iter().any(|name| name.contains(".esker-")));
    let verified = esker::verify(&target, Default::default()).unwrap();
    assert!(verified.is_sound() && verified.strays.is_empty(), "{verified:?}");
    assert_eq!(verified.seqno, report.seqno);
    assert!(open_content(&target) == *expected);
    let copy = Keyspace::open(&target).unwrap();
    assert!(content(&copy) == *expected);
    assert_eq!(copy.seqno(), report.seqno);
    copy.partition("a", PartitionOptions::default()).unwrap().clear().unwrap();
    copy.close().unwrap();
    assert_eq!(fingerprint(&source).len(), before.len(), "nothing of the source went");
    assert!(open_content(&source) == *expected);
}

#[test]
fn a_closed_keyspace_is_copied() {
    let mut store = written();
    let expected = store.content();
    store.close();
    check_copy(&store, Transfer::Auto, &expected);
    check_copy(&store, Transfer::Copy, &expected);
}

#[test]
fn a_crashed_keyspace_is_copied_with_its_journal() {
    let mut store = written();
    let expected = store.content();
    store.crash();
    check_copy(&store, Transfer::Auto, &expected);
    check_copy(&store, Transfer::Copy, &expected);
}

#[test]
fn a_torn_tail_is_copied_as_it_is_and_cut_in_the_copy() {
    let mut store = written();
    let expected = store.content();
    store.crash();
    let last = segments(&store.path())
        .into_iter()
        .rfind(|path| std::fs::read(path).unwrap()[72..].iter().any(|&byte| byte != 0));
    let last = last.expect("a segment with frames");
    let end = std::fs::read(&last).unwrap().iter().rposition(|&byte| byte != 0).unwrap() as u64 + 1;
    let file = std::fs::OpenOptions::new().write(true).open(&last).unwrap();
    file.write_all_at(b"EKRF half a frame, and no more of it", end).unwrap();
    let report = esker::verify(store.path(), Default::default()).unwrap();
    assert!(report.torn_tail.is_some(), "{report:?}");
    check_copy(&store, Transfer::Auto, &expected);
    check_copy(&store, Transfer::Copy, &expected);
}

#[test]
fn a_copy_and_its_source_go_on_apart() {
    let mut store = written();
    store.close();
    let target = store.beside("copy");
    cold_copy(store.path(), &target, CopyOptions::default()).unwrap();
    let before = fingerprint(&target);
    store.open();
    store.write("a", "only here", "v");
    store.keyspace().flush().unwrap();
    store.partition("a").compact().unwrap();
    let timeline = store.keyspace().timeline();
    store.close();
    assert_eq!(fingerprint(&target), before);
    let before = fingerprint(&store.path());
    let copy = Keyspace::open(&target).unwrap();
    assert_ne!(copy.timeline(), timeline);
    copy.partition("a", PartitionOptions::default()).unwrap().compact().unwrap();
    copy.close().unwrap();
    // Links in the copy went away, which shows in no time and no byte of the source.
    assert_eq!(fingerprint(&store.path()), before);
}

#[test]
fn a_checkpoint_and_a_copy_can_be_copied() {
    let store = written();
    let expected = store.content();
    let (checkpoint, one, two) =
        (store.beside("checkpoint"), store.beside("one"), store.beside("two"));
    store.keyspace().backup_to(&checkpoint).unwrap();
    cold_copy(&checkpoint, &one, CopyOptions::default().verify(true)).unwrap();
    cold_copy(&one, &two, CopyOptions::default().verify(true)).unwrap();
    for path in [checkpoint, one, two] {
        let report = esker::verify(&path, Default::default()).unwrap();
        assert!(report.is_sound() && report.strays.is_empty(), "{report:?}");
        assert!(open_content(&path) == expected);
    }
}

#[test]
fn an_open_keyspace_is_not_copied() {
    let mut store = written();
    let target = store.beside("copy");
    let error = cold_copy(store.path(), &target, CopyOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    assert!(error.to_string().contains(store.path().to_str().unwrap()), "{error}");
    assert!(!target.exists());
    store.close();
    let reader = store.config().read_only(true).open().unwrap();
    let error = cold_copy(store.path(), &target, CopyOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    drop(reader);
    cold_copy(store.path(), &target, CopyOptions::default()).unwrap();
}

#[test]
fn a_damaged_source_is_refused_and_leaves_nothing() {
    let mut store = written();
    store.close();
    let current = store.path().join("partitions/1/current");
    let mut bytes = std::fs::read(&current).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&current, bytes).unwrap();
    let target = store.beside("copy");
    let error = cold_copy(store.path(), &target, CopyOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(!entries(target.parent().unwrap()).iter().any(|name| name.contains("copy")));
}

#[test]
fn copying_reports_progress() {
    let mut store = written();
    store.close();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let options = CopyOptions::default()
        .transfer(Transfer::Copy)
        .progress(move |progress| sink.lock().unwrap().push(progress));
    let report = cold_copy(store.path(), store.beside("copy"), options).unwrap();
    let seen = seen.lock().unwrap();
    let last = seen.iter().rfind(|p| p.phase == Phase::Copy).expect("copying is reported");
    assert_eq!((last.files_done, last.files_total), (report.copied.files, report.copied.files));
    assert_eq!(last.bytes_done, report.copied.bytes);
    assert!(seen.iter().any(|p| p.phase == Phase::Sync));
    assert!(report.total.as_nanos() > 0 && serde_json::to_value(&report).unwrap().is_object());
}

#[test]
fn a_copy_of_a_crashed_keyspace_whose_last_commit_rots_is_refused() {
    let mut store = written();
    store.crash();
    let target = store.beside("copy");
    cold_copy(store.path(), &target, CopyOptions::default()).unwrap();
    let last = segments(&target)
        .into_iter()
        .rfind(|path| std::fs::read(path).unwrap()[72..].iter().any(|&byte| byte != 0));
    let last = last.expect("a segment with frames");
    let end = std::fs::read(&last).unwrap().iter().rposition(|&byte| byte != 0).unwrap() as u64;
    let file = std::fs::OpenOptions::new().write(true).open(&last).unwrap();
    file.write_all_at(b"?", end).unwrap();
    // In the source this looks like a write that was cut short. The copy was synced as a whole.
    let report = esker::verify(&target, Default::default()).unwrap();
    assert!(report.problems.iter().any(|problem| problem.path == last), "{report:?}");
    let error = Keyspace::open(&target).unwrap_err();
    let esker::Error::Corrupt(corruption) = &error else { panic!("{error}") };
    assert_eq!(corruption.path, last, "{error}");
}
