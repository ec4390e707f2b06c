//! A disk that fills up, below what is restored and below the repository.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use esker_archive::{
    Error, ErrorKind, PushOptions, Repository, RepositoryOptions, RestoreOptions, RestoreReport,
};
use esker_tests::mounts::Mount;
use esker_tests::store::open_content;
use esker_tests::{Seeded, Store, skip};
use object_store::memory::InMemory;

use crate::program::text;
use crate::scene::assert_whole;

const MIB: u64 = 1 << 20;
/// As much as a backup, and as much again but for a third.
const DISK_BYTES: u64 = 16 * MIB;
const ROUNDS: u32 = 6;

/// A keyspace of some 9 MiB in several tables, none of which compresses.
fn store() -> Store {
    let store = Store::in_memory(|config| config);
    let mut random = Seeded::new("a full disk below an archive");
    for round in 0..ROUNDS {
        let partition = store.partition(["p", "q"][round as usize % 2]);
        for number in 0..300_u32 {
            let key = [round.to_be_bytes(), number.to_be_bytes()].concat();
            partition.insert(key, random.bytes(5_000)).unwrap();
        }
        store.keyspace().flush().unwrap();
    }
    store
}

/// A small disk, unless there can be none here.
fn disk(store: &Store) -> Option<Mount> {
    let mounted = Mount::tmpfs(&store.beside("disk"), DISK_BYTES);
    mounted.map_err(|why| skip("a full disk below an archive", why)).ok()
}

/// That it says what there was no room for, and that trying again is sensible.
#[track_caller]
fn assert_tells_of_no_room(error: &Error, of: &str) {
    assert_eq!(error.kind(), ErrorKind::Retry, "{error:?}");
    let said = error.to_string();
    assert!(said.contains(of), "{said}");
    let mut causes = said;
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        causes += &format!(": {cause}");
        source = cause.source();
    }
    assert!(causes.contains("No space left on device"), "{causes}");
}

fn one_after_the_other() -> RestoreOptions {
    RestoreOptions::default().download_workers(1).chunk_bytes(MIB).buffer_bytes_max(MIB)
}

fn unfinished(disk: &Mount) -> usize {
    let names = fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().contains(".esker-restore-")).count()
}

#[test]
fn a_restore_that_fills_the_disk_leaves_no_target_and_goes_on_when_there_is_room() {
    let store = store();
    let Some(disk) = disk(&store) else { return };
    let repository =
        Repository::create_in(Arc::new(InMemory::new()), "", Default::default()).unwrap();
    let pushed = repository.push(store.keyspace(), PushOptions::default()).unwrap();
    let backup = repository.find(Some(&pushed.backup)).unwrap();
    let restore = |target: &Path, options| -> Result<RestoreReport, Error> {
        repository.restore(backup, target, options)
    };
    let target = disk.path().join("restored");
    let assert_restored = || {
        assert_whole(&target);
        assert_eq!(open_content(&target), store.content());
        assert_eq!(unfinished(&disk), 0);
    };
    disk.fill_up("ballast", 4 * MIB).unwrap();
    let error = restore(&target, one_after_the_other()).unwrap_err();
    assert_tells_of_no_room(&error, text(disk.path()));
    assert!(!target.exists());
    fs::remove_file(disk.path().join("ballast")).unwrap();
    let report = restore(&target, one_after_the_other()).unwrap();
    assert!(report.resumed_bytes >= 2 * MIB, "{report:?}");
    assert!(report.resumed_bytes + report.fetched_bytes < report.raw_bytes + 2 * MIB, "{report:?}");
    assert_restored();

    // A delta that finds no room leaves what was there, and so does the next one.
    let newer = store.content();
    store.partition("p").clear().unwrap();
    let mut random = Seeded::new("what comes after");
    for number in 0..2_000_u32 {
        store.partition("p").insert(number.to_be_bytes(), random.bytes(5_000)).unwrap();
    }
    store.keyspace().flush().unwrap();
    let pushed = repository.push(store.keyspace(), PushOptions::default()).unwrap();
    let backup = repository.find(Some(&pushed.backup)).unwrap();
    for _ in 0..2 {
        let options = one_after_the_other().delta(true);
        let error = repository.restore(backup, &target, options).unwrap_err();
        assert_tells_of_no_room(&error, text(disk.path()));
        assert_whole(&target);
        assert_eq!(open_content(&target), newer);
    }
    let roomy = disk.remount_with(&format!("size={}", 4 * DISK_BYTES));
    roomy.unwrap();
    let options = one_after_the_other().delta(true);
    let report = repository.restore(backup, &target, options).unwrap();
    assert!(report.reused_bytes > MIB && report.resumed_bytes > MIB, "{report:?}");
    assert_restored();
}

#[test]
fn a_push_into_a_full_repository_fails_and_leaves_it_sound() {
    let store = store();
    let Some(disk) = disk(&store) else { return };
    let at = disk.path().join("repository");
    let repository =
        Repository::create(text(&at), RepositoryOptions::default().impatient()).unwrap();
    let first = repository.push(store.keyspace(), PushOptions::default().exclude(["q"])).unwrap();
    for (left, object) in [(0, "leases/"), (64 << 10, "files/"), (2 * MIB, "files/")] {
        disk.fill_up("ballast", left).unwrap();
        let error = repository.push(store.keyspace(), PushOptions::default()).unwrap_err();
        assert_tells_of_no_room(&error, object);
        // To look at it takes no room.
        let report = repository.check(Default::default()).unwrap();
        assert!(report.is_sound() && report.strays.is_empty(), "{report:?}");
        assert_eq!(report.backups, 1);
        fs::remove_file(disk.path().join("ballast")).unwrap();
    }
    let report = repository.push(store.keyspace(), PushOptions::default()).unwrap();
    assert!(report.sent_bytes < report.raw_bytes - first.raw_bytes + MIB, "{report:?}");
    let target = store.beside("restored");
    let backup = repository.find(Some(&report.backup)).unwrap();
    repository.restore(backup, &target, RestoreOptions::default()).unwrap();
    assert_whole(&target);
    assert_eq!(open_content(&target), store.content());
}
