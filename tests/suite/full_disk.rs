//! A disk that fills up: reads go on, nothing is lost, space comes back.

use std::fs;
use std::path::Path;

use esker::{Config, ErrorKind, Keyspace, PartitionOptions, Transfer};
use esker_tests::files::entries;
use esker_tests::mounts::Mount;
use esker_tests::{Seeded, content, fill, open_content, skip};

/// A small filesystem of its own; `None`, loudly, where that is not allowed.
pub fn small_disk(at: &Path, options: &str) -> Option<Mount> {
    Mount::tmpfs_with(at, options).map_err(|why| skip("a full disk", why)).ok()
}

fn make_room(disk: &Mount) {
    fs::remove_file(disk.at("ballast")).unwrap();
}

fn open(path: &Path) -> Keyspace {
    Config::new(path)
        .journal_segment_bytes(256 << 10)
        .memtable_bytes(128 << 10)
        .write_buffer_bytes_max(512 << 10)
        .open()
        .unwrap()
}

/// Inserts until the disk is full; returns how many were acknowledged.
fn write_until_full(partition: &esker::Partition, random: &mut Seeded) -> u64 {
    for number in 0.. {
        let mut value = random.bytes(4_000);
        value[..8].copy_from_slice(&u64::to_be_bytes(number));
        match partition.insert(format!("{number:08}"), value) {
            Ok(()) => assert!(number < 100_000, "the disk is never full"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
                assert!(!error.to_string().contains('\n'), "{error}");
                return number;
            }
        }
    }
    unreachable!()
}

fn check_acknowledged(partition: &esker::Partition, count: u64) {
    for number in 0..count {
        let value = partition.get(format!("{number:08}")).unwrap();
        let value = value.unwrap_or_else(|| panic!("{number} of {count} is lost"));
        assert_eq!((value.len(), &value[..8]), (4_000, &number.to_be_bytes()[..]));
    }
}

/// Waits for room that background work makes: an insert that is refused is tried again.
fn insert_when_there_is_room(partition: &esker::Partition, key: &str) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while let Err(error) = partition.insert(key, "v") {
        assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
        assert!(std::time::Instant::now() < deadline, "writes do not resume: {error}");
        std::thread::yield_now();
    }
}

#[test]
fn a_disk_that_fills_up_during_a_load_loses_nothing_acknowledged_and_writes_resume() {
    let mut random = Seeded::new("a_disk_that_fills_up_during_a_load");
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(&directory.path().join("disk"), "size=48m") else { return };
    let path = disk.at("keyspace");
    let keyspace = open(&path);
    let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
    fs::write(disk.at("ballast"), vec![0; 32 << 20]).unwrap();
    let count = write_until_full(&p, &mut random);
    assert!(count > 500, "only {count} entries fit");
    check_acknowledged(&p, count);
    assert!(p.len().unwrap() as u64 >= count, "scans go on");
    make_room(&disk);
    insert_when_there_is_room(&p, "after");
    check_acknowledged(&p, count);
    keyspace.flush().unwrap();
    p.compact().unwrap();
    check_acknowledged(&p, count);
    assert_eq!(p.len().unwrap() as u64, count + 1, "what was refused is not there");
    drop(p);
    keyspace.close().unwrap();
    let report = esker::verify(&path, Default::default()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    let keyspace = open(&path);
    let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
    check_acknowledged(&p, count);
    assert!(p.contains_key("after").unwrap());
    p.clear().unwrap();
    drop(p);
    keyspace.close().unwrap();
    assert!(disk.used() < 2 << 20, "{} bytes are still used", disk.used());
}

#[test]
fn a_keyspace_closed_on_a_full_disk_opens_with_everything_when_there_is_room() {
    let mut random = Seeded::new("a_keyspace_closed_on_a_full_disk");
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(&directory.path().join("disk"), "size=24m") else { return };
    let path = disk.at("keyspace");
    let keyspace = open(&path);
    let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
    fs::write(disk.at("ballast"), vec![0; 10 << 20]).unwrap();
    let count = write_until_full(&p, &mut random);
    drop(p);
    if let Err(error) = keyspace.close() {
        assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
    }
    let report = esker::verify(&path, Default::default()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    // Opening writes; without room it says so, and loses nothing.
    if let Err(error) = Config::new(&path).journal_segment_bytes(8 << 20).open() {
        assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
    }
    make_room(&disk);
    let keyspace = open(&path);
    check_acknowledged(&keyspace.partition("p", PartitionOptions::default()).unwrap(), count);
    keyspace.close().unwrap();
}

#[test]
fn a_checkpoint_that_finds_the_disk_full_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(&directory.path().join("disk"), "size=24m") else { return };
    let path = disk.at("keyspace");
    let keyspace = open(&path);
    let mut random = Seeded::new("a_checkpoint_that_finds_the_disk_full");
    let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
    for number in 0..1_000u64 {
        p.insert(format!("{number:08}"), random.bytes(4_000)).unwrap();
    }
    p.compact().unwrap();
    drop(p);
    // Nothing is left that would be deleted in the background, and make room.
    keyspace.close().unwrap();
    let keyspace = open(&path);
    let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
    let expected = content(&keyspace);
    // Enough for the links and a few tables, not for a copy.
    disk.fill_up("ballast", 2 << 20).unwrap();
    let used = disk.used();
    for number in 0..3 {
        let target = disk.at(&format!("copy {number}"));
        let copy = keyspace.checkpoint().transfer(Transfer::Copy);
        let error = copy.write_to(&target).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
        assert_eq!(entries(disk.path()), ["ballast", "keyspace"], "nothing unfinished is left");
        assert!(entries(&path.join("staging")).is_empty());
        assert!(content(&keyspace) == expected, "reads go on");
        p.insert("a write", "goes through").unwrap();
        p.remove("a write").unwrap();
    }
    // Segments of the journal may have come and gone.
    assert!(disk.used() <= used + (1 << 20), "{used} bytes before, {} now", disk.used());
    make_room(&disk);
    let target = disk.at("copy");
    keyspace.checkpoint().transfer(Transfer::Copy).verify(true).write_to(&target).unwrap();
    assert!(open_content(&target) == expected);
}

#[test]
fn a_checkpoint_onto_a_full_disk_leaves_source_and_target_clean() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(&directory.path().join("disk"), "size=4m") else { return };
    let path = directory.path().join("keyspace");
    let keyspace = open(&path);
    let mut random = Seeded::new("a_checkpoint_onto_a_full_disk");
    let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
    for number in 0..2_000u64 {
        p.insert(format!("{number:08}"), random.bytes(4_000)).unwrap();
    }
    let expected = content(&keyspace);
    for flush in [false, true] {
        let builder = keyspace.checkpoint().flush_first(flush);
        let error = builder.write_to(disk.at("checkpoint")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
        assert!(
            error.to_string().contains(disk.path().to_str().unwrap()),
            "{error} names the place"
        );
        assert!(entries(disk.path()).is_empty(), "{:?}", entries(disk.path()));
        assert!(entries(&path.join("staging")).is_empty());
        assert!(disk.used() < 64 << 10, "space returned");
    }
    assert!(content(&keyspace) == expected);
    keyspace.checkpoint().include(Vec::<String>::new()).write_to(disk.at("small")).unwrap();
    fill(&p, 100);
    keyspace.close().unwrap_or_else(|error| panic!("{error}"));
    let error = esker::cold_copy(&path, disk.at("copy"), Default::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
    assert_eq!(entries(disk.path()), ["small"]);
}

#[test]
fn partitions_are_created_cleared_and_dropped_on_a_full_disk_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(&directory.path().join("disk"), "size=8m") else { return };
    let path = disk.at("keyspace");
    let keyspace = open(&path);
    let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
    let q = keyspace.partition("q", PartitionOptions::default()).unwrap();
    fill(&p, 100);
    fill(&q, 100);
    disk.fill_up("ballast", 0).unwrap();
    let refused = |error: esker::Error| assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
    let created = keyspace.partition("new", PartitionOptions::default());
    let cleared = p.clear();
    let dropped = keyspace.drop_partition("q");
    let created = created.map_err(refused).is_ok();
    assert_eq!(keyspace.partitions().contains(&"new".to_owned()), created);
    cleared.map_err(refused).ok();
    dropped.map_err(refused).ok();
    // Whatever came through is all or nothing, now and later.
    let len = p.len().unwrap();
    assert!([0, 100].contains(&len), "{len} of 100");
    let before = content(&keyspace);
    make_room(&disk);
    assert!(content(&keyspace) == before);
    insert_when_there_is_room(&p, "after");
    keyspace.partition("later", PartitionOptions::default()).unwrap();
    let expected = content(&keyspace);
    drop((p, q));
    keyspace.close().unwrap();
    assert!(open_content(&path) == expected);
    let report = esker::verify(&path, Default::default()).unwrap();
    assert!(report.is_sound(), "{report:?}");
}
