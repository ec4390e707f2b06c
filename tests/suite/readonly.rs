//! Read-only opens see everything and change nothing.

use esker::{Config, Durability, ErrorKind, Keyspace, PartitionOptions};
use esker_tests::{Store, content, fill, fingerprint};

fn read_only(store: &Store) -> esker::Result<Keyspace> {
    Config::new(store.path()).read_only(true).open()
}

/// With tables, blobs, a cleared and a dropped partition, and a journal that is not flushed.
fn crashed() -> (Store, esker_tests::Content) {
    let mut store = Store::with(|config| config.journal_segment_bytes(4096).memtable_bytes(8192));
    fill(&store.partition("tables"), 300);
    let options = PartitionOptions::default().separate_values_from(Some(5));
    fill(&store.partition_with("blobs", options), 100);
    fill(&store.partition("dropped"), 10);
    store.keyspace().flush().unwrap();
    fill(&store.partition("cleared"), 10);
    store.partition("cleared").clear().unwrap();
    store.write("cleared", "after", "v");
    store.keyspace().drop_partition("dropped").unwrap();
    for name in ["tables", "blobs"] {
        store.write(name, "key 000001", "overwritten in the journal");
        store.partition(name).remove("key 000002").unwrap();
    }
    let content = store.content();
    store.crash();
    (store, content)
}

#[test]
fn a_read_only_open_of_a_crashed_keyspace_sees_its_journal_and_changes_nothing() {
    let (mut store, expected) = crashed();
    let before = fingerprint(&store.path());
    for _ in 0..2 {
        let keyspace = read_only(&store).unwrap();
        assert_eq!(content(&keyspace), expected);
        assert_eq!(keyspace.path(), store.path());
        let snapshot = keyspace.snapshot();
        let p = keyspace.open_partition("tables").unwrap().unwrap();
        assert_eq!(snapshot.len(&p).unwrap(), 299);
        drop((snapshot, p));
        keyspace.close().unwrap();
        assert_eq!(fingerprint(&store.path()), before, "names, bytes, inodes and times");
    }
    store.open();
    assert_eq!(store.content(), expected);
}

#[test]
fn a_read_only_open_of_a_closed_keyspace_changes_nothing() {
    let (mut store, expected) = crashed();
    store.reopen();
    store.close();
    let before = fingerprint(&store.path());
    let keyspace = read_only(&store).unwrap();
    assert_eq!(content(&keyspace), expected);
    drop(keyspace);
    assert_eq!(fingerprint(&store.path()), before);
}

#[test]
fn a_read_only_open_works_where_nothing_can_be_written() {
    let (store, expected) = crashed();
    std::fs::remove_file(store.path().join("LOCK")).unwrap();
    let before = fingerprint(&store.path());
    assert_eq!(content(&read_only(&store).unwrap()), expected);
    assert_eq!(fingerprint(&store.path()), before, "not even the lock file is created");
}

#[test]
fn every_change_of_a_read_only_keyspace_is_refused() {
    let (store, expected) = crashed();
    let keyspace = read_only(&store).unwrap();
    let p = keyspace.partition("tables", PartitionOptions::default()).unwrap();
    let mut batch = keyspace.batch();
    batch.insert(&p, "k", "v");
    let refused = [
        p.insert("k", "v").unwrap_err(),
        p.remove("k").unwrap_err(),
        p.clear().unwrap_err(),
        p.compact().unwrap_err(),
        batch.commit().unwrap_err(),
        keyspace.partition("new", PartitionOptions::default()).unwrap_err(),
        keyspace.drop_partition("tables").unwrap_err(),
        keyspace.flush().unwrap_err(),
        keyspace.persist(Durability::SyncAll).unwrap_err(),
        keyspace.backup_to(store.beside("checkpoint")).unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind(), ErrorKind::FixInput, "{error}");
        assert!(error.to_string().contains("read-only"), "{error}");
    }
    assert_eq!(content(&keyspace), expected);
    assert!(!store.beside("checkpoint").exists());
}

#[test]
fn readers_share_a_keyspace_and_keep_writers_out() {
    let (store, expected) = crashed();
    let (one, two) = (read_only(&store).unwrap(), read_only(&store).unwrap());
    assert_eq!(content(&one), expected);
    assert_eq!(content(&two), expected);
    assert_eq!(store.config().open().unwrap_err().kind(), ErrorKind::Locked);
    drop(one);
    assert_eq!(store.config().open().unwrap_err().kind(), ErrorKind::Locked);
    drop(two);
    store.config().open().unwrap().close().unwrap();
}

#[test]
fn a_writer_keeps_readers_and_writers_out() {
    let store = Store::new();
    for error in [read_only(&store).unwrap_err(), store.config().open().unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Locked);
        assert!(error.to_string().contains(store.path().to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_read_only_open_does_not_create() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let error = Config::new(&missing).read_only(true).open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FixInput, "{error}");
    assert!(!missing.exists());
    let error = Config::new(directory.path()).read_only(true).open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FixInput, "{error}");
    assert!(esker_tests::files::entries(directory.path()).is_empty());
}

#[test]
fn a_read_only_open_through_a_relative_path_reads_after_the_directory_changes() {
    let (store, expected) = crashed();
    // Tables are reached through links: they must not depend on where the process is.
    let link = store.beside("link");
    std::os::unix::fs::symlink(store.path(), &link).unwrap();
    let keyspace = Config::new(&link).read_only(true).open().unwrap();
    std::fs::remove_file(&link).unwrap();
    assert_eq!(content(&keyspace), expected);
}
