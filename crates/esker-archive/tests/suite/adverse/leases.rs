//! Leases that could not be renewed in time end the work that rests on them, and leases of nobody keep
//! nobody waiting. Who must be late waits for longer than his lease is believed; nobody else has to be in
//! time by less than all of that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use esker_archive::{
    CheckOptions, Error, ErrorKind, Policy, PruneOptions, PushOptions, RepositoryOptions,
};
use object_store::path::Path;

use super::scene::Scene;
use crate::content::assert_sound;
use crate::objects::{DAY, Hook, Kind, refused};

const EXPIRY: Duration = Duration::from_millis(500);
const PRUNE: &str = r#"{"work":"prune","relies_on":[]}"#;

fn at_once() -> PruneOptions {
    PruneOptions::default().wait(Duration::ZERO)
}

fn short() -> RepositoryOptions {
    RepositoryOptions::default().lease_times(EXPIRY, Duration::from_millis(1))
}

/// Makes the first request of this kind below this prefix take longer than a lease is believed, which is
/// not renewed meanwhile; if it is to be `renewed_behind`, that takes until it was.
fn late_at(kind: Kind, prefix: &'static str, renewed_behind: bool) -> Hook {
    let (refuses, was_late) = (AtomicBool::new(false), AtomicBool::new(false));
    let renewed = AtomicU64::new(0);
    Arc::new(move |met: Kind, at: &Path| {
        let name = at.to_string();
        if met == Kind::Put && name.starts_with("leases") {
            if refuses.load(Ordering::SeqCst) {
                return Err(refused(at));
            }
            renewed.fetch_add(1, Ordering::SeqCst);
        }
        if met == kind && name.starts_with(prefix) && !was_late.swap(true, Ordering::SeqCst) {
            refuses.store(true, Ordering::SeqCst);
            std::thread::sleep(EXPIRY + EXPIRY / 4);
            refuses.store(!renewed_behind, Ordering::SeqCst);
            // When the second one comes, the first was taken note of.
            let enough = renewed.load(Ordering::SeqCst) + 2;
            while renewed_behind && renewed.load(Ordering::SeqCst) < enough {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    })
}

#[test]
fn a_push_whose_lease_was_not_renewed_in_time_writes_no_manifest() {
    let scene = Scene::new(50);
    for renewed_behind in [false, true] {
        let objects = scene.objects.fork();
        let keyspace = esker::Keyspace::open(scene.at(&format!("db {renewed_behind}"))).unwrap();
        keyspace.partition("p", Default::default()).unwrap().insert("a", "b").unwrap();
        keyspace.flush().unwrap();
        let before = objects.below("backups");
        let hook = late_at(Kind::Put, "files", renewed_behind);
        let repository = objects.met(short(), hook);
        let error = repository.push(&keyspace, PushOptions::default()).unwrap_err();
        assert!(matches!(error, Error::LeaseLost { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Retry);
        assert!(error.to_string().contains("leases/"), "{error}");
        assert_eq!(objects.below("backups"), before);
        assert_sound(&objects.repository());
        // What was sent is found.
        let pushed = objects.repository().push(&keyspace, PushOptions::default()).unwrap();
        assert_eq!(pushed.sent_bytes, 0, "{pushed:?}");
    }
}

#[test]
fn a_prune_whose_lease_was_not_renewed_in_time_removes_no_piece() {
    let scene = Scene::new(50);
    let policy = Policy::default().keep_last(1);
    for renewed_behind in [false, true] {
        // Behind the manifests.
        let objects = scene.objects.fork();
        let before = objects.below("files");
        let hook = late_at(Kind::List, "files", renewed_behind);
        let error = objects.met(short(), hook).prune(&policy, at_once()).unwrap_err();
        assert!(matches!(error, Error::LeaseLost { .. }), "{error}");
        assert_eq!((objects.below("files"), objects.below("backups").len()), (before.clone(), 1));
        assert_sound(&objects.repository());
        // Before the manifests.
        let objects = scene.objects.fork();
        let hook = late_at(Kind::List, "backups", renewed_behind);
        let error = objects.met(short(), hook).prune(&policy, at_once()).unwrap_err();
        assert!(matches!(error, Error::LeaseLost { .. }), "{error}");
        assert_eq!((objects.below("files"), objects.below("backups").len()), (before, 2));
        // The next one does it.
        objects.advance(DAY);
        assert_eq!(objects.repository().prune(&policy, at_once()).unwrap().removed.len(), 1);
        assert_eq!(objects.below("leases"), [""; 0]);
        assert_sound(&objects.repository());
    }
}

#[test]
fn a_lease_that_is_renewed_is_kept() {
    let scene = Scene::new(50);
    let renewed = Arc::new(AtomicU64::new(0));
    let renewals = Arc::clone(&renewed);
    let hook = move |kind: Kind, at: &Path| {
        let is_lease = at.to_string().starts_with("leases");
        renewals.fetch_add(u64::from(is_lease && kind == Kind::Put), Ordering::SeqCst);
        while at.to_string().starts_with("backups") && renewals.load(Ordering::SeqCst) < 5 {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    let times = RepositoryOptions::default()
        .lease_times(Duration::from_secs(3_600), Duration::from_millis(1));
    // The request that waits is one of the prune: a push lists before it has a lease.
    let repository = scene.objects.met(times, Arc::new(hook));
    repository.prune(&Policy::default().keep_last(1), at_once()).unwrap();
    assert!(renewed.load(Ordering::SeqCst) >= 5);
}

#[test]
fn a_lease_from_a_time_to_come_keeps_nobody_waiting() {
    let scene = Scene::new(50);
    let ahead = |name: &str, secs: i64| {
        scene.objects.advance(secs);
        scene.objects.put(name, PRUNE);
        scene.objects.advance(-secs);
    };
    ahead("leases/00000000000000aa", DAY + 60);
    ahead("probes/00000000000000aa", DAY + 60);
    // What only the older one names is old, so that prunes at work are waited for.
    let pushed = scene.objects.repository();
    let pushed = pushed.push_directory(&scene.checkpoints[0], PushOptions::default()).unwrap();
    assert_eq!(pushed.sent_bytes, 0, "{pushed:?}");
    let repository = scene.objects.repository();
    let report = repository.check(CheckOptions::default()).unwrap();
    assert_eq!((report.leases.len(), report.expired_leases.len()), (0, 1), "{report:?}");
    repository.prune(&Policy::default().keep_last(1), at_once()).unwrap();
    assert_eq!((scene.objects.below("leases"), scene.objects.below("probes")), (vec![], vec![]));
    // One that is ahead by less is somebody's, whose clock was set back.
    ahead("leases/00000000000000aa", DAY - 60);
    let error = repository.prune(&Policy::default().keep_last(1), at_once()).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
}
