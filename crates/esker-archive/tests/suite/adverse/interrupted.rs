//! Restores that are killed at any request and begun again, beside each other, and over what others use.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use esker::Keyspace;
use esker_archive::{Error, ErrorKind, RepositoryOptions, RestoreOptions, RestoreReport};

use super::scene::Scene;
use crate::content::{assert_exact, copy_tree, files_below, names_in};
use crate::objects::Kind;

const MIB: u64 = 1 << 20;
/// Tables, the manifest and what compresses take less than that.
const SLACK: u64 = 100 << 10;
/// Three chunks of 1 MiB, and three of another table.
const ENTRIES: u32 = 2_900;

fn options() -> RestoreOptions {
    // Room for one chunk at a time.
    RestoreOptions::default().download_workers(1).chunk_bytes(MIB).buffer_bytes_max(MIB)
}

/// Kills a restore before its request number `at`, and says how many bytes of pieces it had noted.
fn kill(scene: &Scene, target: &str, at: u64, delta: bool) -> Result<RestoreReport, u64> {
    let (first, last) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::new(AtomicU64::new(0)));
    let (begun, reached) = (Arc::clone(&first), Arc::clone(&last));
    let options = options().delta(delta).progress(move |progress| {
        begun.fetch_min(progress.bytes_done, Ordering::SeqCst);
        reached.fetch_max(progress.bytes_done, Ordering::SeqCst);
    });
    let restored = scene.objects.killed(at).restore(scene.backups[1], scene.at(target), options);
    let noted = last.load(Ordering::SeqCst).saturating_sub(first.load(Ordering::SeqCst));
    restored.map_err(|_| noted)
}

/// Kills a restore that has noted something, and at least that much; how much.
fn kill_behind(scene: &Scene, target: &str, bytes: u64) -> u64 {
    for at in 0.. {
        match kill(scene, target, at, false) {
            Ok(_) => panic!("it ended before it had noted {bytes} bytes"),
            Err(noted) if noted >= bytes => return noted,
            Err(_) => {
                if let Some(unfinished) = scene.unfinished(target) {
                    fs::remove_dir_all(unfinished).unwrap();
                }
            }
        }
    }
    unreachable!()
}

fn resume(scene: &Scene, target: &str, options: RestoreOptions) -> RestoreReport {
    let repository = scene.objects.repository();
    let report = repository.restore(scene.backups[1], scene.at(target), options).unwrap();
    assert_exact(&scene.at(target), &scene.checkpoints[1]);
    assert_eq!(scene.unfinished(target), None);
    report
}

/// The largest file in the unfinished directory.
fn largest(dir: &Path) -> PathBuf {
    let files = files_below(dir).into_iter();
    files.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

#[test]
fn a_restore_that_is_killed_at_any_request_goes_on_behind_what_it_noted() {
    let scene = Scene::new(ENTRIES);
    let whole = resume(&scene, "whole", options());
    assert!(whole.fetched_bytes > 5 * MIB, "{whole:?}");
    let mut most = 0;
    for at in 0.. {
        let target = format!("killed {at}");
        let Err(noted) = kill(&scene, &target, at, false) else { break };
        assert!(!scene.at(&target).exists());
        let report = resume(&scene, &target, options());
        assert_eq!(report.resumed_bytes, noted, "killed at {at}");
        let allowed = whole.fetched_bytes - noted + SLACK;
        assert!(report.fetched_bytes <= allowed, "killed at {at}, {noted} noted: {report:?}");
        most = most.max(noted);
        fs::remove_dir_all(scene.at(&target)).unwrap();
    }
    assert!(most > 4 * MIB, "{most}");
}

#[test]
fn a_restore_goes_on_with_chunks_of_another_length() {
    let scene = Scene::new(ENTRIES);
    for chunk_bytes in [2 * MIB, 32 * MIB] {
        let target = format!("chunks of {chunk_bytes}");
        kill_behind(&scene, &target, 9 * MIB / 2);
        let other = options().chunk_bytes(chunk_bytes).buffer_bytes_max(128 * MIB);
        let report = resume(&scene, &target, other);
        // Only whole chunks count.
        assert!(report.resumed_bytes > MIB, "{report:?}");
    }
}

#[test]
fn an_unfinished_file_that_was_changed_is_fetched_anew() {
    let scene = Scene::new(ENTRIES);
    let whole = resume(&scene, "whole", options());
    kill_behind(&scene, "changed", 9 * MIB / 2);
    let unfinished = scene.unfinished("changed").unwrap();
    let path = largest(&unfinished);
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1_000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 1_000).unwrap();
    let bytes = file.metadata().unwrap().len();
    let report = resume(&scene, "changed", options());
    assert!(report.fetched_bytes >= bytes - SLACK, "{report:?}");
    // What was fetched anew was not resumed.
    let both = report.resumed_bytes + report.fetched_bytes;
    assert!(report.resumed_bytes > 0 && both <= whole.fetched_bytes + MIB + SLACK, "{report:?}");
}

#[test]
fn a_record_of_what_was_never_written_is_not_believed() {
    let scene = Scene::new(ENTRIES);
    // Behind the directory and before the first chunk.
    let at = (0..).find(|at| {
        kill(&scene, "lied to", *at, false).unwrap_err();
        scene.unfinished("lied to").is_some()
    });
    at.unwrap();
    let record = scene.unfinished("lied to").unwrap().join(".esker-restore");
    let mut record = fs::OpenOptions::new().append(true).open(record).unwrap();
    for file in 0..50_u32 {
        for number in (0..8_u32).flat_map(|frame| [file, 0, frame]) {
            record.write_all(&number.to_le_bytes()).unwrap();
        }
    }
    record.write_all(b"cut short").unwrap();
    let report = resume(&scene, "lied to", options());
    assert!(report.fetched_bytes > 5 * MIB, "{report:?}");
    assert_eq!(report.resumed_bytes, 0, "{report:?}");
}

#[test]
fn a_record_that_was_cut_off_costs_no_more_than_its_end() {
    let scene = Scene::new(ENTRIES);
    let mut noted = kill_behind(&scene, "target", 2 * MIB);
    let record = scene.unfinished("target").unwrap().join(".esker-restore");
    let mut record = fs::OpenOptions::new().append(true).open(record).unwrap();
    // As a full disk leaves an entry.
    record.write_all(b"short").unwrap();
    // What comes behind it is understood by the attempt after that.
    for at in 0.. {
        let more = kill(&scene, "target", at, false).unwrap_err();
        noted += more;
        if more >= MIB {
            break;
        }
    }
    let report = resume(&scene, "target", options());
    assert_eq!(report.resumed_bytes, noted, "{report:?}");
}

#[test]
fn a_delta_goes_to_where_a_link_leads() {
    let scene = Scene::new(ENTRIES);
    let repository = scene.objects.repository();
    fs::create_dir(scene.at("elsewhere")).unwrap();
    repository.restore(scene.backups[0], scene.at("elsewhere/target"), options()).unwrap();
    std::os::unix::fs::symlink("elsewhere/target", scene.at("link")).unwrap();
    let restore = || {
        let delta = options().delta(true);
        repository.restore(scene.backups[1], scene.at("link"), delta)
    };
    let keyspace = Keyspace::open(scene.at("elsewhere/target")).unwrap();
    let error = restore().unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    keyspace.close().unwrap();
    let report = restore().unwrap();
    assert!(report.reused_bytes > 2 * MIB, "{report:?}");
    assert!(fs::symlink_metadata(scene.at("link")).unwrap().is_symlink());
    assert_exact(&scene.at("elsewhere/target"), &scene.checkpoints[1]);
    assert_eq!(names_in(&scene.at("elsewhere")), ["target"]);
}

#[test]
fn what_an_interrupted_restore_wrote_and_a_delta_takes_elsewhere_counts_once() {
    let scene = Scene::new(ENTRIES);
    kill_behind(&scene, "target", 2 * MIB);
    let repository = scene.objects.repository();
    repository.restore(scene.backups[0], scene.at("other"), options()).unwrap();
    fs::rename(scene.at("other"), scene.at("target")).unwrap();
    let most = Arc::new(AtomicU64::new(0));
    let reached = Arc::clone(&most);
    let options = options().delta(true).progress(move |progress| {
        assert!(progress.bytes_done <= progress.bytes_total, "{progress:?}");
        reached.fetch_max(progress.bytes_done, Ordering::SeqCst);
    });
    let report = resume(&scene, "target", options);
    assert_eq!(most.load(Ordering::SeqCst), report.raw_bytes);
    assert!(report.reused_bytes > 2 * MIB, "{report:?}");
    assert!(report.reused_bytes + report.resumed_bytes <= report.raw_bytes, "{report:?}");
}

/// What each file of a directory is: its inode and its bytes.
fn inodes(dir: &Path) -> BTreeMap<PathBuf, (u64, Vec<u8>)> {
    let files = files_below(dir).into_iter();
    files
        .map(|path| {
            let inode = fs::metadata(&path).unwrap().ino();
            let bytes = fs::read(&path).unwrap();
            (path, (inode, bytes))
        })
        .collect()
}

#[test]
fn a_delta_that_is_killed_at_any_request_writes_to_no_file_of_the_old_target() {
    let scene = Scene::new(ENTRIES);
    let repository = scene.objects.repository();
    let mut killed = 0;
    for at in 0.. {
        let target = format!("target {at}");
        repository.restore(scene.backups[0], scene.at(&target), options()).unwrap();
        let before = inodes(&scene.at(&target));
        // Links of ours: they show what is written even where the directory has gone.
        let witness = scene.at(&format!("witness {at}"));
        fs::create_dir(&witness).unwrap();
        for (number, path) in before.keys().enumerate() {
            fs::hard_link(path, witness.join(number.to_string())).unwrap();
        }
        let ended = kill(&scene, &target, at, true);
        if ended.is_err() {
            assert!(inodes(&scene.at(&target)) == before, "killed at {at}");
            // Again, where it may be further now.
            if kill(&scene, &target, at, true).is_err() {
                assert!(inodes(&scene.at(&target)) == before, "killed at {at} again");
                let report = resume(&scene, &target, options().delta(true));
                assert!(report.reused_bytes > 2 * MIB, "{report:?}");
            }
            killed += 1;
        }
        assert_exact(&scene.at(&target), &scene.checkpoints[1]);
        assert_eq!(scene.unfinished(&target), None);
        for (number, (path, (_, bytes))) in before.iter().enumerate() {
            let now = fs::read(witness.join(number.to_string())).unwrap();
            assert!(now == *bytes, "{} was written to", path.display());
        }
        fs::remove_dir_all(witness).unwrap();
        fs::remove_dir_all(scene.at(&target)).unwrap();
        if ended.is_ok() {
            break;
        }
    }
    assert!(killed >= 5, "{killed}");
}

#[test]
fn a_delta_that_is_killed_behind_the_exchange_has_brought_the_backup() {
    let scene = Scene::new(ENTRIES);
    let repository = scene.objects.repository();
    repository.restore(scene.backups[0], scene.at("target"), options()).unwrap();
    copy_tree(&scene.at("target"), &scene.at("old"));
    // Where it works is where it leaves what was there before.
    let killed = (0..).find(|at| {
        kill(&scene, "target", *at, true).unwrap_err();
        scene.unfinished("target").is_some()
    });
    killed.unwrap();
    let unfinished = scene.unfinished("target").unwrap();
    resume(&scene, "target", options().delta(true));
    // The exchange is made, and some of what was there before is left.
    copy_tree(&scene.at("old"), &unfinished);
    fs::remove_file(unfinished.join("CATALOG")).unwrap();
    assert_exact(&scene.at("target"), &scene.checkpoints[1]);
    let again = resume(&scene, "target", options().delta(true));
    assert_eq!(again.fetched_bytes, 0, "{again:?}");
    // Nor is it in the way of another restore to that name.
    copy_tree(&scene.at("old"), &unfinished);
    fs::remove_dir_all(scene.at("target")).unwrap();
    let anew = resume(&scene, "target", options());
    assert_eq!(anew.resumed_bytes, 0, "{anew:?}");
}

#[test]
fn a_restore_whose_target_appears_meanwhile_fetches_nothing_again() {
    let scene = Scene::new(ENTRIES);
    let target = scene.at("target");
    let appear = target.clone();
    let meanwhile = options().progress(move |_| fs::create_dir_all(&appear).unwrap());
    let repository = scene.objects.repository();
    let error = repository.restore(scene.backups[1], &target, meanwhile).unwrap_err();
    assert!(matches!(error, Error::TargetExists { .. }), "{error}");
    fs::remove_dir(&target).unwrap();
    let report = resume(&scene, "target", options());
    assert!(report.resumed_bytes > 5 * MIB && report.fetched_bytes == 0, "{report:?}");
}

#[test]
fn a_second_restore_to_the_same_target_is_told_that_another_is_at_work() {
    let scene = Scene::new(ENTRIES);
    let told = Arc::new(AtomicU64::new(0));
    let (objects, backup, target) = (Arc::clone(&scene.objects), scene.backups[1], scene.at("one"));
    let busy = Arc::clone(&told);
    let hook = move |kind: Kind, at: &object_store::path::Path| {
        if kind == Kind::Get && at.to_string().starts_with("files") {
            let (objects, target) = (Arc::clone(&objects), target.clone());
            let second = move || objects.repository().restore(backup, target, options());
            let error = std::thread::spawn(second).join().unwrap().unwrap_err();
            assert!(matches!(error, Error::Busy { .. }), "{error}");
            assert!(error.to_string().contains(".one.esker-restore-"), "{error}");
            busy.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    };
    let repository = scene.objects.met(RepositoryOptions::default(), Arc::new(hook));
    repository.restore(scene.backups[1], scene.at("one"), options()).unwrap();
    assert!(told.load(Ordering::SeqCst) > 3);
    assert_exact(&scene.at("one"), &scene.checkpoints[1]);
}

#[test]
fn a_delta_into_an_open_keyspace_is_refused_before_anything_is_asked_for() {
    let scene = Scene::new(20);
    let target = scene.at("open");
    scene.objects.repository().restore(scene.backups[0], &target, options()).unwrap();
    // Every request would fail: none is made.
    let refused = || {
        let delta = options().delta(true);
        let error = scene.objects.killed(0).restore(scene.backups[1], &target, delta).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Locked);
        assert!(error.to_string().contains(target.to_str().unwrap()), "{error}");
        assert_eq!(scene.unfinished("open"), None);
    };
    let keyspace = Keyspace::open(&target).unwrap();
    refused();
    let partition = keyspace.partition("each", Default::default()).unwrap();
    partition.insert("written", "behind it").unwrap();
    keyspace.flush().unwrap();
    drop(partition);
    keyspace.close().unwrap();
    let reading = esker::Config::new(&target).read_only(true).open().unwrap();
    refused();
    let partition = reading.open_partition("each").unwrap().unwrap();
    assert_eq!(&*partition.get("written").unwrap().unwrap(), b"behind it");
    drop((partition, reading));
    resume(&scene, "open", options().delta(true));
}
