//! What works over a real server works as it does over a directory.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use esker_archive::{
    Error, ErrorKind, Key, Policy, PruneOptions, PushOptions, Repository, RepositoryOptions,
    RestoreOptions,
};
use esker_tests::archive::proxy::{Action, Request, Shape};
use esker_tests::archive::s3::{self, S3};
use esker_tests::store::open_content;

use crate::scene::{PATIENCE, PREFIX, Scene, assert_silent, assert_telling, assert_whole};

fn at_once() -> PruneOptions {
    PruneOptions::default().wait(Duration::ZERO)
}

#[test]
fn pushes_restores_checks_and_prunes_go_over_s3() {
    let scene = Scene::with_backups(2);
    // As over a line: everything takes its time, and nothing depends on it.
    scene.proxy.shape(Shape { latency: Duration::from_millis(3), ..Shape::default() });
    let client = s3::client(&scene.proxy.url(), PATIENCE, true);
    let repository = Repository::open_in(client, PREFIX, Default::default()).unwrap();
    let about = repository.about();
    assert!(about.conditional_create && about.conditional_update, "{about:?}");
    let before = scene.proxy.counters();
    let pushed = repository.push(scene.store.keyspace(), PushOptions::default()).unwrap();
    assert!(pushed.sent_bytes > 0, "{pushed:?}");
    let after = scene.proxy.counters();
    let (requests, connections) =
        (after.requests - before.requests, after.connections - before.connections);
    assert!(requests > 2 * connections, "{connections} connections for {requests} requests");
    let second = &repository.infos().unwrap()[1];
    assert!(second.added_bytes > 0 && second.added_bytes < second.stored_bytes, "{second:?}");
    let again = repository.push(scene.store.keyspace(), PushOptions::default()).unwrap();
    assert_eq!((again.new_files, again.sent_bytes), (0, 0));
    scene.assert_sound();
    scene.assert_restorable();
    let newest = repository.find(None).unwrap();
    let target = scene.target();
    let options = RestoreOptions::default().partitions(["q"]);
    let report = repository.restore(newest, &target, options).unwrap();
    assert_eq!(report.partitions, ["q"]);
    assert_whole(&target);
    let mut expected = scene.contents[2].clone();
    expected.remove("p");
    assert_eq!(open_content(&target), expected);
    let target = scene.target();
    let listed = repository.list().unwrap();
    repository.restore(listed[0].id, &target, RestoreOptions::default()).unwrap();
    let delta = RestoreOptions::default().delta(true);
    let report = repository.restore(newest, &target, delta).unwrap();
    assert!(report.reused_bytes > 0 && report.fetched_bytes > 0, "{report:?}");
    scene.assert_exact(&target, newest.seqno);
    let pruned = repository.prune(&Policy::default().keep_last(1), at_once()).unwrap();
    assert_eq!((pruned.removed.len(), pruned.kept.len()), (3, 1));
    let report = scene.assert_sound();
    assert!(report.leases.is_empty() && report.expired_leases.is_empty(), "{report:?}");
    scene.assert_restorable();
    assert_eq!(scene.objects("probes"), [""; 0]);
}

#[test]
fn a_store_that_ignores_conditions_is_known_and_backups_do_not_collide() {
    let scene = Scene::new(S3::ignoring_conditions());
    let repository = scene.calm();
    let about = repository.about();
    assert!(!about.conditional_create && !about.conditional_update, "{about:?}");
    // The same commit twice, and side by side.
    let push = || repository.push_directory(&scene.checkpoints[1], PushOptions::default()).unwrap();
    let ids = std::thread::scope(|scope| {
        let pushes = [scope.spawn(push), scope.spawn(push)];
        pushes.map(|push| push.join().unwrap().backup)
    });
    assert_ne!(ids[0], ids[1]);
    let level = PushOptions::default().level(19);
    repository.push_directory(&scene.checkpoints[0], level).unwrap();
    assert_eq!(repository.list().unwrap().len(), 3);
    scene.assert_sound();
    scene.assert_restorable();
    let encrypted = RepositoryOptions::default().key(Key::generate());
    let again = Repository::create_in(scene.client(PATIENCE), PREFIX, encrypted);
    assert!(matches!(again, Err(Error::RepositoryExists { .. })));
}

#[test]
fn who_may_not_delete_can_push_and_restore() {
    let scene = Scene::with_backups(2);
    let repository = scene.calm();
    scene.proxy.rule(|request: &Request| {
        let deletes = request.method == "DELETE" || request.target.contains("?delete");
        if deletes { Action::Answer(403) } else { Action::Pass }
    });
    let pushed = repository.push_directory(&scene.checkpoints[2], PushOptions::default()).unwrap();
    let id = repository.find(Some(&pushed.backup)).unwrap();
    let target = scene.target();
    repository.restore(id, &target, RestoreOptions::default()).unwrap();
    scene.assert_exact(&target, id.seqno);
    let error = repository.prune(&Policy::default().keep_last(1), at_once()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.to_string().contains("remove backups/"), "{error}");
    assert_telling(&error);
    let report = scene.assert_sound();
    assert_eq!((report.backups, report.leases.len()), (3, 3), "{report:?}");
}

#[test]
fn credentials_are_shown_to_nobody() {
    let scene = Scene::with_backups(1);
    assert_silent(&format!("{:?} {:?}", scene.calm(), scene.calm().about()));
    for status in [400, 401, 403, 404, 500, 503] {
        scene.proxy.rule(move |_| Action::Answer(status));
        let error = scene.open(2, PATIENCE).unwrap_err();
        assert_silent(&format!("{error} {error:?}"));
    }
    let wrong = object_store::aws::AmazonS3Builder::new()
        .with_endpoint(scene.proxy.url())
        .with_allow_http(true)
        .with_bucket_name("backups")
        .with_region("us-east-1")
        .with_access_key_id(s3::ACCESS_KEY)
        .with_secret_access_key("secret-key-that-is-wrong")
        .build()
        .unwrap();
    scene.proxy.pass();
    let options = RepositoryOptions::default().impatient();
    let error = Repository::open_in(Arc::new(wrong), PREFIX, options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert_telling(&error);
    assert!(!format!("{error:?}").contains("secret-key-that-is-wrong"));
}

#[test]
fn what_is_missing_at_the_server_is_named() {
    let scene = Scene::with_backups(2);
    let gone = scene.objects("files");
    let gone = gone.last().unwrap();
    fs::remove_file(scene.s3.objects().join(PREFIX).join(gone)).unwrap();
    let report = scene.calm().check(Default::default()).unwrap();
    assert_eq!(
        report.problems.len(),
        report.problems.iter().filter(|it| it.object == *gone).count()
    );
    assert!(!report.is_sound());
    // Whose file it was depends on the names, which are drawn anew each time.
    for listed in scene.calm().list().unwrap() {
        let needs = report.problems.iter().any(|it| it.backups.contains(&listed.id.to_string()));
        let target = scene.target();
        let restored = scene.calm().restore(listed.id, &target, RestoreOptions::default());
        assert_eq!(restored.is_err(), needs, "{restored:?}");
        assert_eq!(target.exists(), !needs);
        if let Err(error) = restored {
            assert!(error.to_string().contains(gone), "{error}");
        }
    }
}
