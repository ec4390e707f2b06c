//! Prunes beside everything else: cut off at every delete, and with pushes, restores and prunes that meet
//! at every request. The store has a clock that the test moves.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use esker::Keyspace;
use esker_archive::{
    CheckOptions, Error, ErrorKind, Policy, PruneOptions, PushOptions, Reason, Repository,
    RepositoryOptions, RestoreOptions,
};

use crate::content::{assert_exact, assert_sound, noise};
use crate::objects::{DAY, Kind, Objects, refused};

const SECOND: Duration = Duration::from_secs(1);

/// A repository with backups of a keyspace, each checkpoint of which is at hand, and a day behind them.
struct Scene {
    dir: tempfile::TempDir,
    objects: Arc<Objects>,
    checkpoints: Vec<PathBuf>,
    backups: Vec<String>,
}

impl Scene {
    fn new(count: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(dir.path().join("db")).unwrap();
        let objects = Arc::new(Objects::default());
        let repository = objects.create();
        let (mut checkpoints, mut backups) = (Vec::new(), Vec::new());
        for round in 0..count {
            // Random, so that each round is an object of its own.
            for (name, is_new) in [("p", true), ("all", false)] {
                let partition = keyspace.partition(name, Default::default()).unwrap();
                if is_new {
                    partition.clear().unwrap();
                }
                for key in 0..400_u32 {
                    let key = [&[round as u8], &key.to_be_bytes()[..]].concat();
                    partition.insert(key, noise(128)).unwrap();
                }
            }
            keyspace.flush().unwrap();
            let path = dir.path().join(format!("checkpoint {round}"));
            keyspace.backup_to(&path).unwrap();
            backups.push(repository.push_directory(&path, PushOptions::default()).unwrap().backup);
            checkpoints.push(path);
        }
        objects.advance(2 * DAY);
        Self { dir, objects, checkpoints, backups }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join(format!("restored {:x}", rand::random::<u64>()))
    }
}

/// Restores every backup that is there and compares it with its checkpoint, by commit.
#[track_caller]
fn assert_restorable(scene: &Scene, repository: &Repository) {
    for listed in repository.list().unwrap() {
        let target = scene.target();
        repository.restore(listed.id, &target, RestoreOptions::default()).unwrap();
        let of = |path: &&PathBuf| esker::read_listing(path).unwrap().seqno == listed.id.seqno;
        let checkpoint = scene.checkpoints.iter().find(of).unwrap();
        assert_exact(&target, checkpoint);
    }
}

fn at_once() -> PruneOptions {
    PruneOptions::default().wait(Duration::ZERO)
}

#[test]
fn a_prune_frees_what_only_the_removed_need_when_it_is_old() {
    let scene = Scene::new(4);
    let repository = scene.objects.repository();
    let policy = Policy::default().keep_last(1);
    let dry = repository.prune(&policy, at_once().dry_run(true)).unwrap();
    assert_eq!(repository.list().unwrap().len(), 4);
    let pruned = repository.prune(&policy, at_once()).unwrap();
    assert_eq!((&pruned.removed, pruned.freed_bytes), (&dry.removed, dry.freed_bytes));
    assert_eq!(
        (pruned.removed_pieces, pruned.removed_bytes),
        (dry.removed_pieces, dry.removed_bytes)
    );
    assert_eq!(pruned.removed, scene.backups[..3]);
    assert_eq!(pruned.kept[0].reasons.iter().collect::<Vec<_>>(), [&Reason::Last]);
    assert_eq!(pruned.removed_bytes, pruned.freed_bytes, "all of it was old");
    assert!(pruned.freed_bytes > 3 * 50_000, "{pruned:?}");
    assert!(assert_sound(&repository).unnamed.is_empty());
    assert_restorable(&scene, &repository);
    let again = repository.prune(&policy, at_once()).unwrap();
    assert!(again.removed.is_empty() && again.removed_pieces == 0, "{again:?}");
    let error = repository.prune(&Policy::default(), at_once()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FixInput);
}

#[test]
fn young_pieces_stay_and_labels_stay() {
    let scene = Scene::new(1);
    let repository = scene.objects.repository();
    let label = PushOptions::default().label("for ever");
    repository.push_directory(&scene.checkpoints[0], label).unwrap();
    let cut_off = "files/00/00000000000000000000000000000000-70000/0";
    scene.objects.put(cut_off, vec![0; 99]);
    let policy = Policy::default().keep_last(1);
    let pruned = repository.prune(&policy, at_once()).unwrap();
    assert_eq!((pruned.removed_pieces, pruned.young_bytes), (0, 99));
    assert_eq!(assert_sound(&repository).unnamed_bytes(), 99);
    scene.objects.advance(DAY + 60);
    let pruned = repository.prune(&policy, at_once()).unwrap();
    assert_eq!((pruned.removed_bytes, pruned.young_bytes), (99, 0));
    assert!(assert_sound(&repository).unnamed.is_empty());
}

#[test]
fn a_prune_that_is_cut_off_at_any_delete_leaves_a_sound_repository() {
    let scene = Scene::new(4);
    let policy = Policy::default().keep_last(2);
    let mut cuts = 0;
    for deletes in 0.. {
        let objects = scene.objects.fork();
        let left = AtomicI64::new(deletes);
        let hook = move |kind: Kind, at: &object_store::path::Path| match kind {
            Kind::Delete if left.fetch_sub(1, Ordering::SeqCst) <= 0 => Err(refused(at)),
            _ => Ok(()),
        };
        let killed = objects.met(RepositoryOptions::default(), Arc::new(hook));
        let ended = killed.prune(&policy, at_once());
        let repository = objects.repository();
        assert_sound(&repository);
        if ended.is_ok() {
            break;
        }
        cuts += 1;
        // Its lease stays behind until it expires.
        objects.advance(DAY);
        let pruned = repository.prune(&policy, at_once()).unwrap();
        assert_eq!(pruned.kept.len(), 2, "{pruned:?}");
        let report = assert_sound(&repository);
        assert!(report.unnamed.is_empty() && report.expired_leases.is_empty(), "{report:?}");
    }
    assert!(cuts >= 4, "{cuts}");
}

#[test]
fn two_prunes_do_not_meet() {
    let scene = Scene::new(2);
    let policy = Policy::default().keep_last(1);
    let busy = Arc::new(AtomicU64::new(0));
    for at in 0.. {
        let objects = scene.objects.fork();
        let other = Arc::clone(&objects);
        let (found, policy_2) = (Arc::clone(&busy), policy.clone());
        let (repository, was_met) = objects.met_at(at, move || {
            let prune = move || other.repository().prune(&policy_2, at_once());
            match std::thread::spawn(prune).join().unwrap() {
                Err(Error::Busy { .. }) => _ = found.fetch_add(1, Ordering::SeqCst),
                pruned => _ = pruned.unwrap(),
            }
        });
        // Two that are decided at the same time may both refuse.
        let pruned = repository.prune(&policy, at_once());
        assert!(!matches!(pruned, Err(ref e) if e.kind() != ErrorKind::Locked), "{pruned:?}");
        assert_sound(&objects.repository());
        if !was_met.load(Ordering::SeqCst) {
            break;
        }
    }
    assert!(busy.load(Ordering::SeqCst) > 10);
}

/// Begins something in a thread of its own, and goes on when it has ended or cannot go on by itself.
fn meet<T: Send + 'static>(
    objects: &Arc<Objects>,
    at: u64,
    work: impl FnOnce(Repository) -> T + Send + 'static,
) -> (Repository, Arc<AtomicBool>, mpsc::Receiver<T>) {
    let (done, ended) = mpsc::channel();
    let (tell, told) = mpsc::channel::<()>();
    let other = objects.repository();
    let (repository, was_met) = objects.met_at(at, move || {
        std::thread::spawn(move || {
            done.send(work(other)).unwrap();
            drop(tell);
        });
        _ = told.recv_timeout(Duration::from_millis(300));
    });
    (repository, was_met, ended)
}

#[test]
fn a_push_at_any_request_of_a_prune_is_whole() {
    // The newest manifest is of an older commit, so that the base of the push goes; the first backup's
    // pieces are named by nobody and old, so that the push finds them.
    let scene = Scene::new(3);
    let repository = scene.objects.repository();
    scene.objects.put("leases/00000000000000aa", r#"{"work":"push","relies_on":[]}"#);
    let left = repository.prune(&Policy::default().keep_last(2), at_once()).unwrap();
    assert_eq!((left.removed.len(), left.removed_pieces), (1, 0));
    repository.push_directory(&scene.checkpoints[1], PushOptions::default()).unwrap();
    scene.objects.advance(2 * DAY);
    // The content of the base comes again as well: its pieces are named by the new manifest only.
    push_beside_prune(&scene, &scene.checkpoints[0]);
    push_beside_prune(&scene, &scene.checkpoints[1]);
}

#[test]
fn a_prune_that_waits_for_a_push_that_waits_for_it_gives_way() {
    let scene = Scene::new(3);
    scene.objects.put("leases/00000000000000aa", r#"{"work":"push","relies_on":[]}"#);
    let policy = Policy::default().keep_last(2);
    scene.objects.repository().prune(&policy, at_once()).unwrap();
    scene.objects.advance(2 * DAY);
    let mut reasons = BTreeSet::new();
    for at in 0.. {
        let (objects, checkpoint) = (scene.objects.fork(), scene.checkpoints[0].clone());
        // What it brings is there, named by nobody and old.
        let push = move |it: Repository| it.push_directory(&checkpoint, PushOptions::default());
        let (repository, was_met, pushed) = meet(&objects, at, push);
        // Longer than anything takes here.
        let pruned = repository.prune(&policy, PruneOptions::default().wait(20 * SECOND)).unwrap();
        if !was_met.load(Ordering::SeqCst) {
            break;
        }
        pushed.recv().unwrap().unwrap();
        reasons.extend(pruned.pieces_left);
        let repository = objects.repository();
        assert_sound(&repository);
        assert_restorable(&scene, &repository);
        // And is nobody's to wait for any more.
        let again = repository.prune(&policy, at_once()).unwrap();
        assert_eq!(again.pieces_left, None);
    }
    assert_eq!(reasons, BTreeSet::from(["a push waits for this prune to end".to_owned()]));
}

fn push_beside_prune(scene: &Scene, checkpoint: &Path) {
    let policy = Policy::default().keep_last(1);
    for at in 0.. {
        let (objects, checkpoint) = (scene.objects.fork(), checkpoint.to_owned());
        let push = move |it: Repository| it.push_directory(&checkpoint, PushOptions::default());
        let (repository, was_met, pushed) = meet(&objects, at, push);
        let pruned = repository.prune(&policy, at_once());
        let met = was_met.load(Ordering::SeqCst);
        pruned.unwrap();
        if met {
            pushed.recv().unwrap().unwrap();
        }
        let repository = objects.repository();
        assert_sound(&repository);
        assert_restorable(scene, &repository);
        if !met {
            break;
        }
    }
}

#[test]
fn a_prune_at_any_request_of_a_push_leaves_it_whole() {
    let scene = Scene::new(3);
    let repository = scene.objects.repository();
    repository.push_directory(&scene.checkpoints[0], PushOptions::default()).unwrap();
    scene.objects.advance(2 * DAY);
    let policy = Policy::default().keep_last(1);
    for at in 0.. {
        let (objects, policy) = (scene.objects.fork(), policy.clone());
        let prune = move |it: Repository| it.prune(&policy, at_once());
        let (repository, was_met, pruned) = meet(&objects, at, prune);
        // All but the base's pieces are looked for.
        repository.push_directory(&scene.checkpoints[2], PushOptions::default()).unwrap();
        let met = was_met.load(Ordering::SeqCst);
        if met {
            pruned.recv().unwrap().unwrap();
        }
        let repository = objects.repository();
        assert_sound(&repository);
        assert_restorable(&scene, &repository);
        if !met {
            break;
        }
    }
}

#[test]
fn a_prune_at_any_request_of_a_restore_leaves_it_whole() {
    let scene = Scene::new(3);
    let (mut whole, mut gone) = (0, 0);
    for at in 0.. {
        let objects = scene.objects.fork();
        let oldest = objects.repository().find(Some(&scene.backups[0])).unwrap();
        let prune = |it: Repository| it.prune(&Policy::default().keep_last(1), at_once());
        let (repository, was_met, pruned) = meet(&objects, at, prune);
        let target = scene.target();
        match repository.restore(oldest, &target, RestoreOptions::default()) {
            Ok(_) => {
                assert_exact(&target, &scene.checkpoints[0]);
                whole += 1;
            }
            // Removed before it was looked for.
            Err(Error::NoSuchBackup { .. }) => gone += 1,
            Err(error) => panic!("at {at}: {error}"),
        }
        let met = was_met.load(Ordering::SeqCst);
        if met {
            pruned.recv().unwrap().unwrap();
        }
        let repository = objects.repository();
        assert_sound(&repository);
        if !met {
            break;
        }
    }
    assert!(whole > 3 && gone > 0, "{whole} {gone}");
}

#[test]
fn a_push_of_another_level_leaves_what_other_backups_name() {
    let scene = Scene::new(2);
    let repository = scene.objects.repository();
    let before = repository.check(CheckOptions::default()).unwrap();
    // The base is the newest; what only the first has is found by name, and old.
    let again = PushOptions::default().level(19);
    let pushed = repository.push_directory(&scene.checkpoints[0], again).unwrap();
    assert_eq!(pushed.sent_bytes, 0, "{pushed:?}");
    let after = assert_sound(&repository);
    assert_eq!((after.pieces, after.piece_bytes), (before.pieces, before.piece_bytes));
    assert_restorable(&scene, &repository);
    // They are young again: nobody removes them for a day, named or not.
    let policy = Policy::default().keep_last(1);
    let pruned = repository.prune(&policy, at_once()).unwrap();
    assert!(pruned.removed_pieces == 0 && pruned.young_bytes > 50_000, "{pruned:?}");
}

#[test]
fn a_lease_of_a_push_keeps_all_pieces_until_it_has_gone_or_expired() {
    let scene = Scene::new(2);
    let repository = scene.objects.repository();
    scene.objects.put("leases/00000000000000aa", r#"{"work":"push","relies_on":[]}"#);
    let policy = Policy::default().keep_last(1);
    let pruned = repository.prune(&policy, at_once()).unwrap();
    assert_eq!((pruned.removed.len(), pruned.removed_pieces), (1, 0));
    assert_eq!(pruned.pieces_left.as_deref(), Some("a push is under way"));
    scene.objects.advance(16 * 60);
    let pruned = repository.prune(&policy, at_once()).unwrap();
    assert!(pruned.removed_pieces > 0 && pruned.pieces_left.is_none(), "{pruned:?}");
    assert!(assert_sound(&repository).expired_leases.is_empty());
}

#[test]
fn a_backup_that_is_restored_stays() {
    let scene = Scene::new(2);
    let repository = scene.objects.repository();
    let id = repository.find(Some(&scene.backups[0])).unwrap();
    let (uuid, timeline, seqno, tag) = (id.uuid, id.timeline, id.seqno, id.tag);
    let name = format!("backups/{uuid:032x}/{timeline:032x}/{seqno:020}-{tag:016x}");
    let lease = format!(r#"{{"work":"restore","relies_on":["{name}"]}}"#);
    scene.objects.put("leases/00000000000000aa", lease);
    let policy = Policy::default().keep_last(1);
    let pruned = repository.prune(&policy, at_once()).unwrap();
    assert_eq!((pruned.removed.len(), pruned.removed_pieces), (0, 0), "{pruned:?}");
    assert!(pruned.kept.iter().any(|kept| kept.reasons.contains(&Reason::InUse)));
    assert_restorable(&scene, &repository);
}
