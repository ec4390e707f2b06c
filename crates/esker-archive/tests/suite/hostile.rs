//! Hostile repositories: some two hundred fixed attacks by somebody who can write every object, and make
//! every check that needs no key; and by somebody who can write where a restore does.
//!
//! What must hold for all of them: every call ends; it ends well or with an error that is of use, on one
//! line, and names the object; nothing outside of the unfinished directory is created or changed; the
//! target is there only when it is what was pushed; memory is bounded (each bomb has a process of its own).

mod attacks;
mod forge;
mod scene;

use std::process::Command;
use std::time::Duration;

use self::attacks::{Attack, Outcome};
use self::scene::Scene;
use crate::content::{content, files_below};
use esker_archive::{
    CheckOptions, Error, ErrorKind, Policy, PruneOptions, PushOptions, Repository, RestoreOptions,
};

/// The bomb that a child is to run.
const BOMB: &str = "ESKER_HOSTILE_BOMB";
/// More than anything takes that is asked for here: chunks of 1 MiB, pieces of 3 MiB, pushes of these.
const RESIDENT_KIB_MAX: u64 = 200 << 10;
const ADDRESSES_MAX: u64 = 3 << 30;

fn run_all(attacks: Vec<Attack>, at_least: usize) {
    assert!(attacks.len() >= at_least, "{}", attacks.len());
    // All of them, and not only the first, are of interest to who reads that some failed.
    let fails = |attack: &&Attack| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(attack))).is_err()
    };
    let failed: Vec<_> = attacks.iter().filter(fails).map(|attack| &attack.name).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

fn run(attack: &Attack) {
    let scene = Scene::new(attack.encrypted);
    (attack.change)(&scene);
    let before = scene.surroundings();
    let repository = match (scene.open(), &attack.outcome) {
        (Err(error), Outcome::Open(kind, said)) => {
            tells(&error, *kind, &[said], &scene);
            return assert_untouched(&scene, &before);
        }
        (opened, Outcome::Open(..)) => panic!("it was opened: {opened:?}"),
        (opened, _) => opened.unwrap(),
    };
    repository.list().unwrap();
    restores(&repository, &scene, &attack.outcome);
    assert_untouched(&scene, &before);
    checks(&repository, &scene, &attack.outcome);
    reads(&repository, &scene, &attack.outcome);
    assert_untouched(&scene, &before);
    writes(&repository, &scene, &attack.outcome);
    assert_untouched(&scene, &before);
}

fn assert_untouched(
    scene: &Scene,
    before: &std::collections::BTreeMap<std::path::PathBuf, String>,
) {
    let after = scene.surroundings();
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (path, was) in before {
        assert!(*was == after[path], "{} was changed", path.display());
    }
}

#[track_caller]
fn tells(error: &Error, kind: ErrorKind, said: &[&str], scene: &Scene) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    assert!(!text.contains(|c: char| c.is_control()) && text.len() < 2_000, "{text}");
    for said in said {
        let said = match *said {
            "{manifest}" => scene.manifest.clone(),
            "{piece}" => scene.piece.clone(),
            "{some piece}" => "files/".to_owned(),
            "{unfinished}" => scene.unfinished().display().to_string(),
            other => other.to_owned(),
        };
        assert!(text.contains(&said), "{text:?} does not say {said:?}");
    }
}

/// Whole pieces at once, and frame by frame: two ways to read them.
fn restores(repository: &Repository, scene: &Scene, outcome: &Outcome) {
    let backup = match repository.find(None) {
        Ok(backup) => backup,
        Err(error) => return tells(&error, ErrorKind::FixInput, &["no backup"], scene),
    };
    for chunk_bytes in [1 << 20, 32 << 20] {
        let options = RestoreOptions::default().download_workers(2).chunk_bytes(chunk_bytes);
        let restored = repository.restore(backup, scene.target(), options);
        let error = match (restored, outcome) {
            (restored, Outcome::Harmless | Outcome::Lease(_) | Outcome::Found(_)) => {
                restored.unwrap();
                opens_or_says_why(scene);
                std::fs::remove_dir_all(scene.target()).unwrap();
                continue;
            }
            (Ok(_), _) => panic!("it was restored"),
            (Err(error), _) => error,
        };
        match outcome {
            Outcome::Restore(kind, said) => tells(&error, *kind, said, scene),
            Outcome::Manifest(said) => {
                tells(&error, kind_of(said), &["backups/", said], scene);
            }
            Outcome::Piece(said) => {
                let said = if *said == "bytes where" { "" } else { said };
                tells(&error, kind_of(said), &["{piece}", said], scene);
            }
            _ => unreachable!(),
        }
        assert!(!scene.target().exists(), "what failed leaves a target");
    }
}

/// What another version wrote is not called corrupt.
fn kind_of(said: &str) -> ErrorKind {
    if said.contains("format version") { ErrorKind::FixInput } else { ErrorKind::Corrupt }
}

/// The engine refuses files that are not what it wrote, and does not panic.
fn opens_or_says_why(scene: &Scene) {
    let target = scene.target();
    let verified = esker::verify(&target, Default::default());
    if verified.is_ok_and(|report| report.is_sound() && report.strays.is_empty()) {
        assert!(content(&target) == content(&scene.checkpoint()), "it is something else");
    } else if let Err(error) = esker::Keyspace::open(&target) {
        assert_ne!(error.kind(), esker::ErrorKind::Retry, "{error}");
    }
}

fn checks(repository: &Repository, scene: &Scene, outcome: &Outcome) {
    let report = repository.check(CheckOptions::default().read_data(1.0).workers(2)).unwrap();
    let found = |object: &str, said: &str| {
        let fits = |p: &&esker_archive::RepositoryProblem| {
            p.object.contains(object) && p.what.contains(said)
        };
        assert!(report.problems.iter().any(|p| fits(&p)), "{object} {said}: {report:?}");
    };
    match outcome {
        Outcome::Harmless | Outcome::Lease(_) => assert!(report.is_sound(), "{report:?}"),
        Outcome::Manifest(said) => found("backups/", said),
        Outcome::Piece("do not make up the file") => {}
        Outcome::Found(said) | Outcome::Piece(said) => found(&scene.piece, said),
        // Some of these are found by nobody who does not put the files together.
        Outcome::Restore(..) => {}
        Outcome::Open(..) => unreachable!(),
    }
}

fn reads(repository: &Repository, scene: &Scene, outcome: &Outcome) {
    let infos = repository.infos();
    match (infos, outcome) {
        (Err(error), Outcome::Manifest(said)) => {
            tells(&error, kind_of(said), &["backups/", said], scene);
        }
        (Ok(_), Outcome::Manifest(_)) => panic!("the manifest was believed"),
        (infos, _) => _ = infos.unwrap(),
    }
}

/// Prunes and pushes: they end, and with what a push adds one has what was pushed.
fn writes(repository: &Repository, scene: &Scene, outcome: &Outcome) {
    let options = PruneOptions::default().wait(Duration::ZERO);
    let pieces = || {
        let dir = scene.at("files");
        if dir.is_dir() { files_below(&dir).len() } else { 0 }
    };
    let before = pieces();
    match (repository.prune(&Policy::default().keep_last(1), options), outcome) {
        (Err(error), Outcome::Manifest(said)) => {
            tells(&error, kind_of(said), &["backups/", said], scene);
            assert_eq!(pieces(), before, "pieces are gone");
        }
        (Err(error), Outcome::Lease(name)) => {
            let kinds = [ErrorKind::Corrupt, ErrorKind::Locked];
            assert!(kinds.contains(&error.kind()), "{error}");
            tells(&error, error.kind(), &[name], scene);
        }
        // What is restored may be all that is wrong; where it is not, it is told here as well.
        (Err(error), Outcome::Restore(kind, _)) => tells(&error, *kind, &[], scene),
        (pruned, Outcome::Manifest(_) | Outcome::Lease(_)) => panic!("it was pruned: {pruned:?}"),
        (pruned, _) => _ = pruned.unwrap(),
    }
    match repository.push_directory(scene.checkpoint(), PushOptions::default().workers(1)) {
        // A newer program has written there: the older one is told to go.
        Err(error) if error.to_string().contains("format version") => {}
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(matches!(outcome, Outcome::Lease(_) | Outcome::Restore(..)), "{error}");
            tells(&error, error.kind(), &[], scene);
        }
        Ok(pushed) => {
            if matches!(outcome, Outcome::Manifest(_)) {
                let backup = repository.find(Some(&pushed.backup)).unwrap();
                let target = scene.target();
                repository.restore(backup, &target, RestoreOptions::default()).unwrap();
                assert!(content(&target) == content(&scene.checkpoint()));
                std::fs::remove_dir_all(&target).unwrap();
            }
        }
    }
}

#[test]
fn what_is_encoded_by_the_document_is_what_was_written() {
    let scene = Scene::new(false);
    for path in files_below(&scene.at("files")) {
        let name = path.strip_prefix(scene.repository()).unwrap().to_str().unwrap().to_owned();
        let bytes = std::fs::read(&path).unwrap();
        assert!(forge::Piece::read(&scene.repository(), &name).encode() == bytes, "{name}");
    }
    let backup = scene.backup();
    assert_eq!(backup.encode(), std::fs::read(scene.at(&scene.manifest)).unwrap());
    let nothing = attacks::nothing();
    run(&nothing);
}

#[test]
fn paths_outside_of_a_keyspace_are_refused() {
    run_all(attacks::paths(), 35);
}

#[test]
fn partitions_that_are_others_are_refused() {
    run_all(attacks::partitions(), 10);
}

#[test]
fn lengths_and_hashes_that_lie_are_refused() {
    run_all(attacks::sizes(), 15);
}

#[test]
fn manifests_that_nobody_writes_are_refused() {
    run_all(attacks::manifests(), 20);
}

#[test]
fn manifests_of_other_content_are_refused() {
    run_all(attacks::contents(), 10);
}

#[test]
fn files_that_the_engine_refuses_make_nobody_panic() {
    run_all(attacks::engines(), 4);
}

#[test]
fn pieces_that_nobody_writes_are_refused() {
    run_all(attacks::pieces(), 20);
}

#[test]
fn descriptions_that_nobody_writes_are_refused() {
    run_all(attacks::descriptions(), 10);
}

#[test]
fn leases_that_nobody_writes_are_told() {
    run_all(attacks::leases(), 10);
}

#[test]
fn foreign_objects_are_left_alone() {
    run_all(attacks::foreigners(), 10);
}

#[test]
fn links_and_pipes_in_a_repository_are_not_followed() {
    run_all(attacks::links(), 15);
}

#[test]
fn links_and_pipes_where_a_restore_writes_are_not_followed() {
    run_all(attacks::sites(), 15);
}

#[test]
fn who_has_no_key_can_make_nobody_believe_him() {
    run_all(attacks::encrypted(), 10);
}

#[test]
fn an_object_that_is_replaced_during_a_restore_is_refused() {
    let scene = Scene::new(false);
    let repository = scene.open().unwrap();
    let path = scene.at(&scene.piece);
    let mut other = scene.read_piece();
    for frame in &mut other.frames {
        *frame = forge::Frame::new(vec![1; frame.stored.len()], true);
    }
    let other = other.encode();
    let replace = move |progress: esker_archive::RestoreProgress| {
        // The table was read, and one chunk.
        if progress.bytes_fetched > 1 << 20 {
            std::fs::write(&path, &other).unwrap();
        }
    };
    let options = RestoreOptions::default().download_workers(1).chunk_bytes(1 << 20);
    let options = options.buffer_bytes_max(1).progress(replace);
    let backup = repository.find(None).unwrap();
    let error = repository.restore(backup, scene.target(), options).unwrap_err();
    tells(&error, ErrorKind::Corrupt, &["{piece}", "does not match its check"], &scene);
    assert!(!scene.target().exists());
}

#[test]
fn an_old_piece_of_a_newer_version_is_not_replaced() {
    let scene = Scene::new(false);
    // So that the push has to look for it.
    std::fs::remove_file(scene.at(&scene.manifest)).unwrap();
    let mut newer = scene.read_piece();
    newer.version = 2;
    scene.write_piece(&newer);
    let path = scene.at(&scene.piece);
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(2 * 24 * 60 * 60);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    let repository = scene.open().unwrap();
    let pushed = repository.push_directory(scene.checkpoint(), PushOptions::default());
    let said = ["{piece}", "format version 2; this build reads up to 1"];
    tells(&pushed.unwrap_err(), ErrorKind::FixInput, &said, &scene);
    assert!(std::fs::read(path).unwrap() == newer.encode());
}

#[test]
fn bombs_take_little_memory() {
    let bombs = attacks::bombs();
    if let Some(name) = std::env::var_os(BOMB) {
        let limit =
            rustix::process::Rlimit { current: Some(ADDRESSES_MAX), maximum: Some(ADDRESSES_MAX) };
        rustix::process::setrlimit(rustix::process::Resource::As, limit).unwrap();
        run(bombs.iter().find(|bomb| *bomb.name == *name).unwrap());
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < RESIDENT_KIB_MAX, "{name:?} took {kib} KiB");
        return;
    }
    for bomb in bombs {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["hostile::bombs_take_little_memory", "--exact", "--test-threads=1"]);
        let output = child.env(BOMB, &bomb.name).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        let ran = output.status.success() && said.contains("1 passed");
        assert!(ran, "{}: {}\n{said}\n{errors}", bomb.name, output.status);
    }
}
