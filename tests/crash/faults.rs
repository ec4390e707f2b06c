//! What a failing disk once did to the engine, each case by name; and the proof that the exact faults
//! find what they are for.

use std::path::Path;

use esker::{
    Config, CopyOptions, Durability, ErrorKind, Keyspace, PartitionOptions, VerifyOptions,
    cold_copy, verify,
};
use esker_tests::chaos::{self, Rng};
use esker_tests::crash::faults::with_silent_syncs;
use esker_tests::crash::recorder::disk::{Disk, Luck};
use esker_tests::crash::recorder::filesystem::{self, Mount};
use esker_tests::crash::recorder::image::{Image, Op};
use esker_tests::crash::recorder::injector::{Fault, Kind, failure};
use esker_tests::crash::{Options, Outcome};
use esker_tests::skip;

/// A filesystem on which nothing fails yet, or what is missing for one.
fn mount(image: Image, fault: Option<Fault>) -> Option<Mount> {
    if let Some(missing) = filesystem::missing() {
        skip(std::thread::current().name().unwrap_or("a fault"), missing);
        return None;
    }
    Some(Mount::with_faults(image, fault, false).expect("a mount"))
}

fn config(path: &Path) -> Config {
    Config::new(path).journal_segment_bytes(8 << 10).worker_threads(1)
}

/// One commit over both partitions.
fn commit(keyspace: &Keyspace, key: &str, durability: Durability) -> esker::Result<u64> {
    let mut batch = keyspace.batch();
    batch.durability(durability);
    for name in ["one", "two"] {
        batch.insert(&keyspace.partition(name, PartitionOptions::default())?, key, "value");
    }
    batch.commit()
}

/// Opens, commits, and loses a commit to a sync that fails.
fn poison(mount: &Mount) -> Keyspace {
    let keyspace = config(&mount.path().join("db")).open().unwrap();
    commit(&keyspace, "first", Durability::SyncData).unwrap();
    mount.desk().fail_after(failure("EIO-sync").unwrap(), 0);
    let error = commit(&keyspace, "lost", Durability::SyncData).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
    keyspace
}

#[test]
fn a_commit_whose_sync_failed_does_not_become_visible() {
    let Some(mount) = mount(Image::default(), None) else { return };
    let keyspace = poison(&mount);
    // This runs between two groups, behind the batch that is in the journal and not applied.
    assert_eq!(keyspace.flush().unwrap_err().kind(), ErrorKind::Poisoned);
    let one = keyspace.open_partition("one").unwrap().unwrap();
    assert_eq!((keyspace.seqno(), one.get("lost").unwrap()), (3, None));
}

/// The journal of a failed sync is in the page cache alone. It is replayed from there; had the tables
/// got ahead of the journal on the disk, the keyspace would not open any more.
#[test]
fn an_open_after_a_failed_sync_may_be_cut_short_anywhere() {
    let Some(mount) = mount(Image::default(), None) else { return };
    let db = mount.path().join("db");
    assert!(poison(&mount).close().is_err());
    let begin = mount.desk().recorded();
    let keyspace = config(&db).open().unwrap();
    let expected = chaos::content(&keyspace).unwrap();
    assert_eq!(expected["one"].len(), 2, "the page cache has it");
    let end = mount.desk().recorded();
    drop(keyspace);
    let ops = mount.finish();
    for place in begin..=end {
        let image = after(&ops[..place]);
        let directory = chaos::memory_dir();
        image.write_to(directory.path()).unwrap();
        let found = config(&directory.path().join("db")).open();
        let found = found.unwrap_or_else(|e| panic!("cut before operation {place}: {e}"));
        let content = chaos::content(&found).unwrap();
        assert_eq!(content["one"], content["two"], "half a batch, cut before {place}");
        assert!(place < end || content == expected, "what was shown is gone");
    }
}

/// A checkpoint syncs the seal of a segment that it links. Was that lost, a second checkpoint that
/// links the same inode must not be told that it is there.
#[test]
fn a_checkpoint_after_one_whose_sync_failed_is_whole_after_a_power_cut() {
    let mut skipped = 0;
    loop {
        let Some(mount) = mount(Image::default(), None) else { return };
        let keyspace = config(&mount.path().join("db")).open().unwrap();
        commit(&keyspace, "first", Durability::Buffer).unwrap();
        let before = mount.desk().kinds().len() as u64;
        mount.desk().fail_after(failure("EIO-sync").unwrap(), skipped);
        let first = keyspace.backup_to(mount.path().join("first"));
        let Some(hit) = mount.desk().hits().first().cloned() else { break };
        let second = keyspace.backup_to(mount.path().join("second"));
        let image = after(&mount.finish());
        let directory = chaos::memory_dir();
        image.write_to(directory.path()).unwrap();
        for (name, taken) in [("first", first), ("second", second)] {
            if taken.is_ok() {
                let path = directory.path().join(name);
                let report = verify(&path, VerifyOptions::default()).unwrap();
                assert!(report.is_sound(), "{name}: {:?} after {hit:?}", report.problems);
            }
        }
        skipped = hit.number - before;
    }
    assert!(skipped > 10, "a checkpoint has more syncs");
}

/// A directory above the keyspace was made, and its name was not synced.
#[test]
fn a_keyspace_below_directories_whose_sync_failed_is_there_after_a_power_cut() {
    for skipped in 0.. {
        let Some(mount) = mount(Image::default(), None) else { return };
        let db = mount.path().join("a/b/db");
        mount.desk().fail_after(failure("EIO-sync").unwrap(), skipped);
        if config(&db).open().is_ok() {
            assert!(skipped > 3, "every directory is synced");
            return;
        }
        let keyspace = config(&db).open().unwrap();
        commit(&keyspace, "first", Durability::SyncData).unwrap();
        let acknowledged = mount.desk().recorded();
        drop(keyspace);
        let directory = chaos::memory_dir();
        after(&mount.finish()[..acknowledged]).write_to(directory.path()).unwrap();
        let found = config(&directory.path().join("a/b/db")).create_if_missing(false).open();
        let content = chaos::content(&found.unwrap()).unwrap();
        assert_eq!(content["one"].len(), 1, "sync {skipped} failed");
    }
}

/// CHECKPOINT lists the journal as it was copied; an open writes it anew.
#[test]
fn a_copy_of_an_unclosed_keyspace_stays_sound_wherever_its_first_open_is_cut_short() {
    let Some(first) = mount(Image::default(), None) else { return };
    let keyspace = config(&first.path().join("db")).open().unwrap();
    commit(&keyspace, "first", Durability::SyncData).unwrap();
    let unclosed = first.desk().recorded();
    drop(keyspace);
    let base = after(&first.finish()[..unclosed]);
    let second = mount(base.clone(), None).expect("another mount");
    let copy = second.path().join("copy");
    cold_copy(second.path().join("db"), &copy, CopyOptions::default()).unwrap();
    let begin = second.desk().recorded();
    let keyspace = config(&copy).open().unwrap();
    let end = second.desk().recorded();
    drop(keyspace);
    let ops = second.finish();
    for place in begin..=end {
        let mut disk = Disk::new(&base, None);
        ops[..place].iter().for_each(|op| disk.advance(op));
        for image in [disk.ordered(), disk.survivor(&Luck::none(), &mut Rng::new(1))] {
            let directory = chaos::memory_dir();
            image.write_to(directory.path()).unwrap();
            let copy = directory.path().join("copy");
            let report = verify(&copy, VerifyOptions::default()).unwrap();
            assert!(report.is_sound(), "cut before {place}: {:?}", report.problems);
            let content = chaos::content(&config(&copy).open().unwrap()).unwrap();
            assert_eq!(content["one"].len(), 1, "cut before {place}");
        }
    }
}

/// A life in which every checkpoint takes a new segment, on a disk that fills up.
fn live_with_checkpoints(mount: &Mount) {
    let Ok(keyspace) = config(&mount.path().join("db")).open() else { return };
    for number in 0..3 {
        // Whatever fails is not the matter here.
        let _ = commit(&keyspace, "key", Durability::Buffer);
        let _ = keyspace.backup_to(mount.path().join(format!("backup-{number}")));
    }
}

/// CATALOG lists a new segment and its directory cannot be synced: it may be what the disk has.
#[test]
fn a_segment_that_catalog_may_name_is_not_removed_to_be_made_again() {
    let Some(healthy) = mount(Image::default(), None) else { return };
    live_with_checkpoints(&healthy);
    let kinds = healthy.desk().kinds();
    let syncs = (1..).zip(&kinds).filter(|(_, kind)| **kind == Kind::Fsyncdir);
    let syncs: Vec<u64> = syncs.map(|(index, _)| index).collect();
    assert!(syncs.len() > 10, "{kinds:?}");
    for index in syncs {
        let fault = Fault { failure: failure("ENOSPC").unwrap(), index, lasting: true };
        let full = mount(Image::default(), Some(fault)).expect("another mount");
        live_with_checkpoints(&full);
        let hit = full.desk().hits().first().cloned();
        full.desk().heal();
        let opened = config(&full.path().join("db")).open();
        assert!(opened.is_ok(), "{opened:?} after {hit:?}");
    }
}

/// What a power cut leaves of the record when nothing survives that was not synced.
fn after(ops: &[Op]) -> Image {
    let mut disk = Disk::new(&Image::default(), None);
    ops.iter().for_each(|op| disk.advance(op));
    disk.survivor(&Luck::none(), &mut Rng::new(1))
}

/// CATALOG is there and its name is not durable: what the next open adds must not outlive it.
#[test]
fn an_open_after_a_creation_whose_last_sync_failed_may_be_cut_short_anywhere() {
    for skipped in 0.. {
        let Some(mount) = mount(Image::default(), None) else { return };
        let db = mount.path().join("db");
        mount.desk().fail_after(failure("EIO-sync").unwrap(), skipped);
        let first = config(&db).open();
        let hit = mount.desk().hits().first().cloned().expect("CATALOG is synced");
        if first.is_ok() || !db.join("CATALOG").exists() {
            continue;
        }
        assert_eq!(hit.path, "/db");
        let begin = mount.desk().recorded();
        let keyspace = config(&db).open().unwrap();
        let end = mount.desk().recorded();
        drop(keyspace);
        let ops = mount.finish();
        for place in begin..=end {
            let directory = chaos::memory_dir();
            after(&ops[..place]).write_to(directory.path()).unwrap();
            let opened = config(&directory.path().join("db")).open();
            assert!(opened.is_ok(), "cut before operation {place}: {opened:?}");
        }
        return;
    }
}

#[test]
fn a_poisoned_keyspace_without_partitions_refuses_to_flush() {
    for skipped in 0..200 {
        let Some(mount) = mount(Image::default(), None) else { return };
        let keyspace = config(&mount.path().join("db")).open().unwrap();
        mount.desk().fail_after(failure("EIO-sync").unwrap(), skipped);
        let created = keyspace.partition("one", PartitionOptions::default());
        // The tree comes first: it is removed again, and nothing is poisoned.
        if created.is_err_and(|error| error.to_string().contains("CATALOG")) {
            assert_eq!(keyspace.flush().unwrap_err().kind(), ErrorKind::Poisoned);
            return;
        }
    }
    panic!("CATALOG is never synced");
}

#[test]
fn a_transaction_without_room_is_no_conflict_for_the_next_one() {
    let Some(mount) = mount(Image::default(), None) else { return };
    let keyspace = config(&mount.path().join("db"));
    let keyspace = keyspace.open_transactional(esker::TxKind::Optimistic).unwrap();
    let p = keyspace.partition("one", PartitionOptions::default()).unwrap();
    let mut attempts = 0;
    let mut count_up = || {
        attempts += 1;
        keyspace.transact(|tx| {
            attempts += 1;
            assert!(attempts < 100, "it begins again for ever");
            let read = tx.get(&p, "n")?.map_or(0, |value| value.len());
            tx.insert(&p, "n", vec![b'1'; read + 1])
        })
    };
    count_up().unwrap();
    mount.desk().fail_after(failure("ENOSPC").unwrap(), 0);
    assert_eq!(count_up().unwrap_err().kind(), ErrorKind::Retry);
    assert!(mount.desk().was_hit());
    count_up().unwrap();
    assert_eq!(p.get("n").unwrap().as_deref(), Some(&b"11"[..]));
}

#[test]
fn a_checkpoint_links_nothing_from_its_staging_directory() {
    let Some(mount) = mount(Image::default(), None) else { return };
    let keyspace = config(&mount.path().join("db")).open().unwrap();
    let partition = keyspace.partition("one", PartitionOptions::default()).unwrap();
    partition.insert("key", "value").unwrap();
    keyspace.flush().unwrap();
    partition.insert("key", "another").unwrap();
    // The probe is refused, later links are not. What was written in the staging directory was
    // never synced, and a link to it would count as durable.
    mount.desk().fail_after(failure("EPERM").unwrap(), 0);
    let report = keyspace.backup_to(mount.path().join("checkpoint")).unwrap();
    assert!(mount.desk().was_hit());
    assert_eq!((report.linked.files, report.copied.files), (0, 2), "{report:?}");
}

#[test]
fn a_disk_that_cannot_say_what_is_there_is_not_taken_for_an_empty_one() {
    let Some(whole) = mount(Image::default(), None) else { return };
    let keyspace = config(&whole.path().join("db")).open().unwrap();
    let uuid = keyspace.uuid();
    keyspace.close().unwrap();
    let image = after(&whole.finish());
    for index in 1.. {
        let fault = Fault { failure: failure("EIO").unwrap(), index, lasting: false };
        let Some(broken) = mount(image.clone(), Some(fault)) else { return };
        let opened = config(&broken.path().join("db")).open();
        let hit = broken.desk().hits().first().cloned();
        match opened {
            Ok(keyspace) => assert_eq!(keyspace.uuid(), uuid, "made anew after {hit:?}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Io, "{error} after {hit:?}"),
        }
        let keyspace = config(&broken.path().join("db")).open().unwrap();
        assert_eq!(keyspace.uuid(), uuid, "made anew after {hit:?}");
        if hit.is_none() {
            assert!(index > 20, "only {index} operations");
            return;
        }
    }
}

/// The canary: a filesystem whose syncs fail without a word.
#[test]
fn a_sync_that_fails_silently_is_found_out() {
    let seed = chaos::seed("silent syncs");
    match with_silent_syncs(&Options { states: 60, seed }) {
        Outcome::Ran { passed, failures } => {
            assert!(!failures.is_empty(), "{passed} states passed");
            eprintln!("{} failures, the first: {}", failures.len(), failures[0]);
        }
        Outcome::Skipped { missing } => skip("silent syncs", missing),
    }
}
