//! One fault at a time, at every request of a push, a restore and a prune over S3.
//!
//! With more attempts than faults everything succeeds, but for listings that lie; with one attempt it
//! succeeds or says what failed. Either way what is there is whole, and the next attempt succeeds.

use std::fs;
use std::time::Duration;

use esker_archive::{Error, Policy, PruneOptions, PushOptions, Repository, RestoreOptions};
use esker_tests::archive::proxy::Action;

use crate::scene::{DAY, PATIENCE, Scene, assert_telling};

/// A fault, and how often the archive tries.
struct Round {
    fault: Action,
    attempts: u32,
    timeout: Duration,
}

fn rounds() -> Vec<Round> {
    let timeout = Duration::from_millis(400);
    let with = |attempts: u32| move |fault: Action| Round { fault, attempts, timeout: PATIENCE };
    let transient = [
        Action::Answer(500),
        Action::Answer(503),
        Action::ResetBefore,
        Action::ResetAfter(20),
        Action::Truncate(20),
        Action::ApplyAndDrop,
    ];
    let lies = [Action::Stale, Action::Hide("/".into()), Action::Hide("backups/".into())];
    let mut rounds: Vec<_> = transient.map(with(3)).into();
    let told = [Action::Answer(503), Action::ResetAfter(20), Action::ApplyAndDrop];
    rounds.extend(told.map(with(1)));
    rounds.extend(lies.map(with(1)));
    rounds.push(Round { fault: Action::ApplyAndHold(2 * timeout), attempts: 3, timeout });
    rounds
}

/// Does the work once for each fault and each request; how often it succeeded and failed.
fn sweep(
    scene: &Scene,
    work: impl Fn(&Repository) -> Result<(), Error>,
    judge: impl Fn(&Result<(), Error>),
) -> (u64, u64) {
    let (mut succeeded, mut failed) = (0, 0);
    for Round { fault, attempts, timeout } in rounds() {
        for at in 0.. {
            scene.reset();
            let repository = scene.open(attempts, timeout).unwrap();
            let action = fault.clone();
            scene.proxy.rule(
                move |request| {
                    if request.number == at { action.clone() } else { Action::Pass }
                },
            );
            let ended = work(&repository);
            let requests = scene.proxy.pass();
            if requests <= at {
                ended.unwrap();
                break;
            }
            match &ended {
                Ok(()) => succeeded += 1,
                Err(error) => {
                    assert_telling(error);
                    assert_eq!(attempts, 1, "{fault:?} at {at}: {error}");
                    failed += 1;
                }
            }
            judge(&ended);
            scene.assert_sound();
        }
    }
    (succeeded, failed)
}

#[test]
fn a_fault_at_any_request_of_a_push_is_survived_or_told() {
    let scene = Scene::with_backups(1);
    let push = |repository: &Repository| {
        let options = PushOptions::default().workers(1);
        repository.push_directory(&scene.checkpoints[1], options).map(|_| ())
    };
    let (succeeded, failed) = sweep(&scene, push, |ended| {
        let listed = scene.calm().list().unwrap();
        // What failed may have been applied.
        assert!(listed.len() == 2 || (ended.is_err() && listed.len() == 1), "{listed:?}");
        scene.assert_restorable();
        if ended.is_err() {
            push(scene.calm()).unwrap();
            scene.assert_restorable();
        }
    });
    assert!(succeeded > 100 && failed > 15, "{succeeded} {failed}");
}

#[test]
fn a_fault_at_any_request_of_a_restore_is_survived_or_told() {
    let scene = Scene::with_backups(2);
    let target = scene.target();
    let seqno = scene.calm().find(None).unwrap().seqno;
    let newest = scene.calm().find(None).unwrap();
    let restore = |repository: &Repository| {
        let options = RestoreOptions::default().download_workers(1);
        repository.restore(newest, &target, options).map(|_| ())
    };
    let (succeeded, failed) = sweep(
        &scene,
        |repository| {
            if target.exists() {
                fs::remove_dir_all(&target).unwrap();
            }
            restore(repository)
        },
        |ended| {
            if ended.is_err() {
                assert!(!target.exists(), "a restore that failed leaves no target");
                restore(scene.calm()).unwrap();
            }
            scene.assert_exact(&target, seqno);
        },
    );
    assert!(succeeded > 50 && failed > 8, "{succeeded} {failed}");
}

#[test]
fn a_fault_at_any_request_of_a_prune_is_survived_or_told() {
    let scene = Scene::with_backups(3);
    let prune = |repository: &Repository| {
        let options = PruneOptions::default().wait(Duration::ZERO);
        repository.prune(&Policy::default().keep_last(1), options).map(|_| ())
    };
    let newest = scene.calm().find(None).unwrap();
    let (succeeded, failed) = sweep(&scene, prune, |_| {
        let listed = scene.calm().list().unwrap();
        assert!(listed.iter().any(|backup| backup.id == newest), "the newest stays: {listed:?}");
        scene.assert_restorable();
        // The lease of one that failed has to expire.
        scene.age("leases", DAY);
        prune(scene.calm()).unwrap();
        assert_eq!(scene.calm().list().unwrap().len(), 1);
        assert!(scene.assert_sound().unnamed.is_empty());
    });
    assert!(succeeded > 100 && failed > 15, "{succeeded} {failed}");
}
