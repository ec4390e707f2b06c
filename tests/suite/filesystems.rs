//! Checkpoints on real filesystems: reflinks on XFS and btrfs, copies from one to another.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use esker::{
    CheckpointReport, Durability, ErrorKind, Keyspace, PartitionOptions, Transfer, VerifyOptions,
    verify,
};
use esker_tests::files::fingerprint;
use esker_tests::mounts::{BTRFS, EXT4, Filesystem, Mount, XFS};
use esker_tests::{Content, Seeded, content, fill, open_content, skip};
use tempfile::TempDir;

/// A filesystem of that kind; `None`, loudly, where there cannot be one.
fn mounted(kind: Filesystem, place: &TempDir) -> Option<Mount> {
    let image = place.path().join(format!("{}.image", kind.name));
    match Mount::image(kind, &image, &place.path().join(kind.name)) {
        Ok(mount) => Some(mount),
        Err(missing) => {
            skip(kind.name, missing);
            None
        }
    }
}

/// A place for images: in memory, so that the machine's disk is left alone.
fn place() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Tables, separated values and a journal.
fn written(path: &Path) -> (Keyspace, Content) {
    let keyspace = Keyspace::open(path).unwrap();
    let plain = keyspace.partition("plain", PartitionOptions::default()).unwrap();
    let separated = PartitionOptions::default().separate_values_from(Some(8));
    let separated = keyspace.partition("separated", separated).unwrap();
    fill(&plain, 500);
    fill(&separated, 500);
    keyspace.flush().unwrap();
    plain.insert("in the journal", "only").unwrap();
    let expected = content(&keyspace);
    (keyspace, expected)
}

/// The checkpoint is whole and shares no inode; source and checkpoint survive alone.
fn check(keyspace: Keyspace, expected: &Content, source: &Path, target: &Path) {
    let report = verify(target, VerifyOptions::default()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert!(open_content(target) == *expected);
    let (theirs, ours) = (fingerprint(target), fingerprint(source));
    let shared = theirs.values().filter(|file| ours.values().any(|our| our.inode == file.inode));
    // Numbers of inodes mean nothing from one device to another.
    let other_device = source.metadata().unwrap().dev() != target.metadata().unwrap().dev();
    assert!(other_device || shared.count() == 0, "an inode is shared");
    // The copy goes on by itself, and does not show in the source.
    let copy = Keyspace::open(target).unwrap();
    let plain = copy.open_partition("plain").unwrap().unwrap();
    plain.clear().unwrap();
    plain.insert("new", "here").unwrap();
    drop(plain);
    copy.close().unwrap();
    assert!(content(&keyspace) == *expected, "the source saw a write to its copy");
    keyspace.close().unwrap();
    std::fs::remove_dir_all(source).unwrap();
    let left = open_content(target);
    assert_eq!(left["plain"].len(), 1, "the copy survives alone");
    assert_eq!(left["separated"], expected["separated"]);
}

fn reflinked(kind: Filesystem) {
    let place = place();
    let Some(disk) = mounted(kind, &place) else { return };
    let inside = disk.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    // A second mount: what cannot be linked into can still share extents.
    let bound = Mount::bind(&inside, &place.path().join("bound")).unwrap();
    let (source, target) = (disk.path().join("source"), bound.path().join("target"));
    let (keyspace, expected) = written(&source);
    let report = keyspace.backup_to(&target).unwrap();
    let CheckpointReport { linked, reflinked, .. } = &report;
    assert_eq!(linked.files, 0, "{report:?}");
    assert!(reflinked.files >= 3 && reflinked.bytes > 0, "{report:?}");
    check(keyspace, &expected, &source, &target);
}

#[test]
fn a_checkpoint_on_xfs_shares_extents_and_no_inode() {
    reflinked(XFS);
}

#[test]
fn a_checkpoint_on_btrfs_shares_extents_and_no_inode() {
    reflinked(BTRFS);
}

#[test]
fn a_checkpoint_from_one_filesystem_to_another_is_a_copy() {
    let place = place();
    let Some(from) = mounted(EXT4, &place) else { return };
    let elsewhere = [XFS, BTRFS].into_iter().find_map(|kind| mounted(kind, &place));
    // Another filesystem there always is: the one that holds the images.
    let to = elsewhere.as_ref().map_or(place.path(), Mount::path);
    let (source, target) = (from.path().join("source"), to.join("target"));
    let (keyspace, expected) = written(&source);
    let report = keyspace.checkpoint().verify(true).write_to(&target).unwrap();
    assert_eq!(report.linked.files + report.reflinked.files, 0, "{report:?}");
    assert!(report.copied.files >= 3, "{report:?}");
    let staging = esker_tests::files::entries(&source.join("staging"));
    assert!(staging.is_empty(), "{staging:?}");
    check(keyspace, &expected, &source, &target);
}

/// The kernel tells of a lost write once, and goes on showing what it has lost. What an open showed
/// must be on the disk afterwards, and not shared with a file that never got there.
#[test]
fn what_an_open_shows_after_a_failed_sync_is_there_when_the_page_cache_is_gone() {
    let place = place();
    let memory = match Mount::tmpfs(&place.path().join("memory"), 200 << 20) {
        Ok(memory) => memory,
        Err(missing) => return skip("a failed sync", missing),
    };
    let image = memory.path().join("image");
    let disk = match Mount::image(XFS, &image, &place.path().join("disk")) {
        Ok(disk) => disk,
        Err(missing) => return skip("a failed sync", missing),
    };
    let db = disk.path().join("db");
    let keyspace = Keyspace::open(&db).unwrap();
    let partition = keyspace.partition("one", PartitionOptions::default()).unwrap();
    partition.insert("before", "it").unwrap();
    keyspace.persist(Durability::SyncAll).unwrap();
    rustix::fs::syncfs(std::fs::File::open(&db).unwrap()).unwrap();
    // The image is sparse: what was never written finds no room any more.
    memory.fill_up("ballast", 0).unwrap();
    let mut batch = keyspace.batch();
    batch.insert(&partition, "lost", Seeded::new("a lost value").bytes(1 << 20));
    batch.durability(Durability::SyncData);
    let error = batch.commit().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
    drop((partition, keyspace));
    std::fs::remove_file(memory.path().join("ballast")).unwrap();
    // The first may still be told of the loss.
    let keyspace = (0..3).find_map(|_| Keyspace::open(&db).ok()).expect("it opens");
    let shown = content(&keyspace);
    assert_eq!(shown["one"].len(), 2, "the page cache has it");
    drop(keyspace);
    disk.remount().unwrap();
    let report = verify(&db, VerifyOptions::default()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert!(open_content(&db) == shown);
}

/// Whether the filesystem says that a file below `dir` shares extents; `None` where nobody can ask.
fn shares_extents(dir: &Path) -> Option<bool> {
    let mut shared = false;
    for path in fingerprint(dir).into_keys() {
        let output = std::process::Command::new("filefrag").arg("-v").arg(dir.join(path)).output();
        let Ok(output) = output else {
            skip("shared extents", "filefrag is missing");
            return None;
        };
        shared |= String::from_utf8_lossy(&output.stdout).contains("shared");
    }
    Some(shared)
}

/// `copy_file_range` would share them.
#[test]
fn a_forced_copy_shares_no_extent_where_it_could() {
    for kind in [XFS, BTRFS] {
        let place = place();
        let Some(disk) = mounted(kind, &place) else { continue };
        let (keyspace, expected) = written(&disk.path().join("db"));
        let reflinked = keyspace.checkpoint().write_to(disk.path().join("linked")).unwrap();
        assert!(reflinked.linked.files > 0, "{reflinked:?}");
        let copy = disk.path().join("copy");
        let report = keyspace.checkpoint().transfer(Transfer::Copy).write_to(&copy).unwrap();
        assert_eq!((report.linked.files, report.reflinked.files), (0, 0));
        assert_ne!(shares_extents(&copy), Some(true), "{}", kind.name);
        check(keyspace, &expected, &disk.path().join("db"), &copy);
    }
}
