//! Source, checkpoint and cold copy share files, and nothing that one does changes another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use esker::{
    Config, CopyOptions, Keyspace, PartitionOptions, Transfer, VerifyOptions, cold_copy, verify,
};
use esker_tests::chaos::{self, FileState, Model};

const NAMES: [&str; 3] = ["plain", "separated", "doomed"];

fn config(path: &Path) -> Config {
    Config::new(path)
        .memtable_bytes(8 << 10)
        .write_buffer_bytes_max(64 << 10)
        .journal_segment_bytes(8 << 10)
        .journal_bytes_max(1 << 20)
        .worker_threads(1)
}

fn options(name: &str) -> PartitionOptions {
    let options = PartitionOptions::default().block_bytes(512).table_bytes(8 << 10).l0_runs(2);
    options.separate_values_from((name == "separated").then_some(100))
}

fn fill(keyspace: &Keyspace, tag: &str, range: std::ops::Range<u32>) {
    for name in NAMES {
        let partition = keyspace.partition(name, options(name)).unwrap();
        for key in range.clone() {
            let value = format!("{tag} {key} ").repeat(1 + key as usize % 30);
            partition.insert(format!("{key:05}"), value.as_str()).unwrap();
        }
    }
}

/// A keyspace with tables, blob files, and several journal segments that are not flushed.
fn source(path: &Path) -> Keyspace {
    let keyspace = config(path).open().unwrap();
    fill(&keyspace, "first", 0..200);
    keyspace.flush().unwrap();
    fill(&keyspace, "second", 100..160);
    keyspace
}

/// Everything that changes files: writes, flushes, compactions, clear, drop and create.
fn disturb(path: &Path) {
    let keyspace = config(path).open().unwrap();
    fill(&keyspace, "disturbed", 50..250);
    keyspace.flush().unwrap();
    for name in NAMES {
        keyspace.open_partition(name).unwrap().unwrap().compact().unwrap();
    }
    keyspace.open_partition("plain").unwrap().unwrap().clear().unwrap();
    assert!(keyspace.drop_partition("doomed").unwrap());
    fill(&keyspace, "after", 0..50);
    keyspace.close().unwrap();
}

fn content(path: &Path) -> Model {
    let keyspace = config(path).read_only(true).open().unwrap();
    chaos::content(&keyspace).unwrap()
}

/// The bytes of every file, without inodes: those of LOCK are nobody's business.
fn bytes_below(path: &Path) -> BTreeMap<PathBuf, (u64, u128)> {
    let files = chaos::files_below(path).into_iter();
    files.map(|(name, file)| (name, (file.bytes, file.hash))).collect()
}

fn assert_sound(path: &Path) {
    let report = verify(path, VerifyOptions::default()).unwrap();
    assert!(report.is_sound(), "{}: {:?}", path.display(), report.problems);
}

/// Two directories with the same content: neither feels what happens to the other.
fn assert_independent(one: &Path, other: &Path) {
    let expected = content(one);
    assert_eq!(chaos::difference(&expected, &content(other)), None);
    for (disturbed, still) in [(one, other), (other, one)] {
        let before = bytes_below(still);
        let expected = content(still);
        disturb(disturbed);
        assert_eq!(before, bytes_below(still), "{} changed", still.display());
        assert_sound(still);
        assert_eq!(chaos::difference(&expected, &content(still)), None);
    }
    // Both were opened for writing: what they still share is immutable by its place and its name.
    let (left, right) = (chaos::files_below(one), chaos::files_below(other));
    for (name, shared) in shared_inodes(&left, &right) {
        assert!(is_immutable(&name), "{} is shared by two writers", name.display());
        assert_eq!(left[&name].hash, shared.hash);
    }
}

fn shared_inodes<'a>(
    left: &BTreeMap<PathBuf, FileState>,
    right: &'a BTreeMap<PathBuf, FileState>,
) -> Vec<(PathBuf, &'a FileState)> {
    let by_inode: BTreeMap<u64, &PathBuf> = left.iter().map(|(n, f)| (f.inode, n)).collect();
    let shared = right.values().filter_map(|f| by_inode.get(&f.inode).map(|n| ((*n).clone(), f)));
    shared.collect()
}

/// Tables, blob files and journal segments that were sealed before they were shared.
fn is_immutable(name: &Path) -> bool {
    let parts: Vec<_> = name.iter().map(|part| part.to_string_lossy()).collect();
    match &parts[..] {
        [partitions, _, kind, _] => {
            partitions == "partitions" && (kind == "tables" || kind == "blobs")
        }
        [journal, segment] => journal == "journal" && segment.ends_with(".jnl"),
        _ => false,
    }
}

/// `remove` is deleted; the other stays whole.
fn assert_survives(remove: &Path, stays: &Path) {
    let expected = content(stays);
    std::fs::remove_dir_all(remove).unwrap();
    assert_sound(stays);
    assert_eq!(chaos::difference(&expected, &content(stays)), None);
    disturb(stays);
    assert_sound(stays);
}

fn closed_pair(copy: impl Fn(&Path, &Path, Keyspace)) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = chaos::memory_dir();
    let (db, target) = (dir.path().join("db"), dir.path().join("target"));
    let keyspace = source(&db);
    copy(&db, &target, keyspace);
    (dir, db, target)
}

fn checkpointed() -> (tempfile::TempDir, PathBuf, PathBuf) {
    closed_pair(|_, target, keyspace| {
        let report = keyspace.backup_to(target).unwrap();
        assert!(report.linked.files > 3, "nothing was shared, so nothing was tested: {report:?}");
        keyspace.close().unwrap();
    })
}

fn copied_cold() -> (tempfile::TempDir, PathBuf, PathBuf) {
    closed_pair(|db, target, keyspace| {
        keyspace.close().unwrap();
        let report = cold_copy(db, target, CopyOptions::default()).unwrap();
        assert!(report.linked.files > 3, "nothing was shared, so nothing was tested: {report:?}");
    })
}

#[test]
fn a_checkpoint_and_its_source_never_change_each_other() {
    let (_dir, db, target) = checkpointed();
    assert_independent(&db, &target);
}

#[test]
fn a_cold_copy_and_its_source_never_change_each_other() {
    let (_dir, db, target) = copied_cold();
    assert_independent(&db, &target);
}

#[test]
fn a_cold_copy_of_a_crashed_keyspace_shares_no_segment_that_may_grow() {
    let dir = chaos::memory_dir();
    let (db, crashed, target) =
        (dir.path().join("db"), dir.path().join("crashed"), dir.path().join("target"));
    let keyspace = source(&db);
    // A crash is one moment: the copy must not overlap with what a worker still does.
    std::thread::sleep(Duration::from_millis(200));
    chaos::copy_tree(&db, &crashed);
    keyspace.close().unwrap();
    cold_copy(&crashed, &target, CopyOptions::default()).unwrap();
    assert_independent(&crashed, &target);
}

#[test]
fn deleting_the_source_leaves_the_checkpoint_whole_and_the_other_way_round() {
    for (make, remove_source) in [
        (checkpointed as fn() -> _, true),
        (checkpointed, false),
        (copied_cold, true),
        (copied_cold, false),
    ] {
        let (_dir, db, target): (tempfile::TempDir, PathBuf, PathBuf) = make();
        let (remove, stays) = if remove_source { (&db, &target) } else { (&target, &db) };
        assert_survives(remove, stays);
    }
}

#[test]
fn a_source_that_goes_on_writing_never_touches_the_checkpoint() {
    let dir = chaos::memory_dir();
    let (db, target) = (dir.path().join("db"), dir.path().join("target"));
    let keyspace = source(&db);
    keyspace.backup_to(&target).unwrap();
    let before = chaos::files_below(&target);
    let expected = content(&target);
    fill(&keyspace, "on and on", 0..300);
    keyspace.flush().unwrap();
    for name in NAMES {
        keyspace.open_partition(name).unwrap().unwrap().compact().unwrap();
    }
    keyspace.open_partition("plain").unwrap().unwrap().clear().unwrap();
    keyspace.drop_partition("doomed").unwrap();
    assert_eq!(before, chaos::files_below(&target));
    // While the source is open: what it writes to and what the checkpoint has are disjoint.
    let open = chaos::files_below(&db);
    for (name, _) in shared_inodes(&open, &before) {
        assert!(is_immutable(&name), "{} is shared", name.display());
    }
    drop(keyspace);
    assert_eq!(before, chaos::files_below(&target));
    assert_sound(&target);
    assert_eq!(chaos::difference(&expected, &content(&target)), None);
}

#[test]
fn a_forced_copy_shares_no_inode() {
    let dir = chaos::memory_dir();
    let (db, target) = (dir.path().join("db"), dir.path().join("target"));
    let keyspace = source(&db);
    let report = keyspace.checkpoint().transfer(Transfer::Copy).write_to(&target).unwrap();
    assert_eq!((report.linked.files, report.reflinked.files), (0, 0));
    drop(keyspace);
    let cold = dir.path().join("cold");
    cold_copy(&db, &cold, CopyOptions::default().transfer(Transfer::Copy)).unwrap();
    for copy in [&target, &cold] {
        let (left, right) = (chaos::files_below(&db), chaos::files_below(copy));
        assert!(shared_inodes(&left, &right).is_empty());
        let names: Vec<_> = std::fs::read_dir(db.join("staging")).unwrap().collect();
        assert!(names.is_empty(), "staging is empty afterwards");
    }
    assert_independent(&db, &target);
}
