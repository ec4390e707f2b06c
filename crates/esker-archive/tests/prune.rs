//! Prunes beside everything else: cut off at every delete, and with pushes, restores and prunes that meet
//! at every request. The store has a clock that the test moves.

use std::collections::HashMap;
use std::path::{Path as LocalPath, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use esker::{Config, Keyspace};
use esker_archive::{
    CheckOptions, Error, ErrorKind, Policy, PruneOptions, PushOptions, Reason, Repository,
    RepositoryOptions, RestoreOptions,
};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

const DAY: i64 = 24 * 60 * 60;

/// What is done before request number so and so.
type Hook = Box<dyn FnOnce() + Send>;

/// Objects in memory that are as old as the test wants, and requests that fail or are met.
struct Stage(Arc<State>);

#[derive(Default)]
struct State {
    objects: Mutex<InMemory>,
    /// Seconds that the store's clock is ahead, now and when each object was written.
    ahead: AtomicI64,
    written: Mutex<HashMap<Path, i64>>,
    requests: AtomicU64,
    hook: Mutex<Option<(u64, Hook)>>,
    /// Deletes that still work.
    deletes: AtomicI64,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stage")
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stage")
    }
}

impl Stage {
    fn new() -> Arc<Self> {
        let state = State { deletes: AtomicI64::new(i64::MAX), ..State::default() };
        Arc::new(Self(Arc::new(state)))
    }

    /// Another store of the same content and time.
    fn fork(&self) -> Arc<Self> {
        let fork = Self::new();
        *fork.0.objects.lock().unwrap() = self.0.objects.lock().unwrap().fork();
        *fork.0.written.lock().unwrap() = self.0.written.lock().unwrap().clone();
        fork.0.ahead.store(self.0.ahead.load(Ordering::SeqCst), Ordering::SeqCst);
        fork
    }

    fn advance(&self, secs: i64) {
        self.0.ahead.fetch_add(secs, Ordering::SeqCst);
    }

    fn repository(self: &Arc<Self>) -> Repository {
        let options = RepositoryOptions::default().attempts(1);
        Repository::open_in(Arc::clone(self) as Arc<dyn ObjectStore>, "", options).unwrap()
    }

    /// Writes an object as somebody else would.
    fn put(&self, object: &str, body: impl Into<PutPayload>) {
        let object = Path::from(object);
        let put = async { self.put_opts(&object, body.into(), Default::default()).await };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(put).unwrap();
    }

    /// Does this before the request number `at` from now.
    fn before(&self, at: u64, hook: impl FnOnce() + Send + 'static) {
        self.0.requests.store(0, Ordering::SeqCst);
        *self.0.hook.lock().unwrap() = Some((at, Box::new(hook)));
    }

    /// Whether it was done.
    fn was_met(&self) -> bool {
        self.0.hook.lock().unwrap().take().is_none()
    }

    fn now(&self) -> InMemory {
        let number = self.0.requests.fetch_add(1, Ordering::SeqCst);
        let hook = {
            let mut hook = self.0.hook.lock().unwrap();
            if hook.as_ref().is_some_and(|(at, _)| *at == number) { hook.take() } else { None }
        };
        if let Some((_, hook)) = hook {
            hook();
        }
        self.0.objects.lock().unwrap().clone()
    }
}

impl State {
    fn aged(&self, mut meta: ObjectMeta) -> ObjectMeta {
        let secs = self.written.lock().unwrap().get(&meta.location).copied().unwrap_or(0);
        meta.last_modified += Duration::from_secs(secs as u64);
        meta
    }
}

#[async_trait]
impl ObjectStore for Stage {
    async fn put_opts(&self, at: &Path, body: PutPayload, how: PutOptions) -> Result<PutResult> {
        let put = self.now().put_opts(at, body, how).await;
        if put.is_ok() {
            let ahead = self.0.ahead.load(Ordering::SeqCst);
            self.0.written.lock().unwrap().insert(at.clone(), ahead);
        }
        put
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.now().put_multipart_opts(at, how).await
    }

    async fn get_opts(&self, at: &Path, how: GetOptions) -> Result<GetResult> {
        let mut got = self.now().get_opts(at, how).await?;
        got.meta = self.0.aged(got.meta);
        Ok(got)
    }

    fn delete_stream(
        &self,
        objects: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let state = Arc::clone(&self.0);
        let inner = self.now();
        let each = objects.then(move |object| {
            let (state, inner) = (Arc::clone(&state), inner.clone());
            async move {
                let object = object?;
                if state.deletes.fetch_sub(1, Ordering::SeqCst) <= 0 {
                    let source = "killed".into();
                    let path = object.to_string();
                    return Err(object_store::Error::PermissionDenied { path, source });
                }
                use object_store::ObjectStoreExt as _;
                inner.delete(&object).await.map(|()| object)
            }
        });
        each.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let state = Arc::clone(&self.0);
        self.now().list(prefix).map(move |meta| meta.map(|meta| state.aged(meta))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.now().list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.now().copy_opts(from, to, how).await
    }
}

/// A repository with backups of a keyspace, each checkpoint of which is at hand, and a day behind them.
struct Scene {
    dir: tempfile::TempDir,
    stage: Arc<Stage>,
    checkpoints: Vec<PathBuf>,
    backups: Vec<String>,
}

impl Scene {
    fn new(count: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(dir.path().join("db")).unwrap();
        let stage = Stage::new();
        let store = Arc::clone(&stage) as Arc<dyn ObjectStore>;
        let repository = Repository::create_in(store, "", Default::default()).unwrap();
        let (mut checkpoints, mut backups) = (Vec::new(), Vec::new());
        for round in 0..count {
            // Random, so that each round is an object of its own.
            for (name, is_new) in [("p", true), ("all", false)] {
                let partition = keyspace.partition(name, Default::default()).unwrap();
                if is_new {
                    partition.clear().unwrap();
                }
                for key in 0..400_u32 {
                    let value: Vec<u8> = (0..8).flat_map(|_| rand::random::<[u8; 16]>()).collect();
                    let key = [&[round as u8], &key.to_be_bytes()[..]].concat();
                    partition.insert(key, value).unwrap();
                }
            }
            keyspace.flush().unwrap();
            let path = dir.path().join(format!("checkpoint {round}"));
            keyspace.backup_to(&path).unwrap();
            backups.push(repository.push_directory(&path, PushOptions::default()).unwrap().backup);
            checkpoints.push(path);
        }
        stage.advance(2 * DAY);
        Self { dir, stage, checkpoints, backups }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join(format!("restored {:x}", rand::random::<u64>()))
    }
}

fn content(path: &LocalPath) -> Vec<(Vec<u8>, Vec<u8>)> {
    let keyspace = Config::new(path).read_only(true).open().unwrap();
    let partition = keyspace.open_partition("p").unwrap().unwrap();
    let entries = partition.iter().unwrap().map(|entry| {
        let (key, value) = entry.unwrap();
        (key.to_vec(), value.to_vec())
    });
    entries.collect()
}

#[track_caller]
fn assert_sound(repository: &Repository) -> esker_archive::CheckReport {
    let report = repository.check(CheckOptions::default().read_data(1.0)).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert!(report.strays.is_empty(), "{report:?}");
    report
}

/// Restores every backup that is there and compares it with its checkpoint, by commit.
#[track_caller]
fn assert_restorable(scene: &Scene, repository: &Repository) {
    for listed in repository.list().unwrap() {
        let target = scene.target();
        repository.restore(listed.id, &target, RestoreOptions::default()).unwrap();
        let of = |path: &&PathBuf| esker::read_listing(path).unwrap().seqno == listed.id.seqno;
        let checkpoint = scene.checkpoints.iter().find(of).unwrap();
        assert_eq!(content(&target), content(checkpoint));
    }
}

fn at_once() -> PruneOptions {
    PruneOptions::default().wait(Duration::ZERO)
}

#[test]
fn a_prune_frees_what_only_the_removed_need_when_it_is_old() {
    let scene = Scene::new(4);
    let repository = scene.stage.repository();
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
    let repository = scene.stage.repository();
    let label = PushOptions::default().label("for ever");
    repository.push_directory(&scene.checkpoints[0], label).unwrap();
    let cut_off = "files/00/00000000000000000000000000000000-70000/0";
    scene.stage.put(cut_off, vec![0; 99]);
    let policy = Policy::default().keep_last(1);
    let pruned = repository.prune(&policy, at_once()).unwrap();
    assert_eq!((pruned.removed_pieces, pruned.young_bytes), (0, 99));
    assert_eq!(assert_sound(&repository).unnamed_bytes(), 99);
    scene.stage.advance(DAY + 60);
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
        let stage = scene.stage.fork();
        let repository = stage.repository();
        stage.0.deletes.store(deletes, Ordering::SeqCst);
        let ended = repository.prune(&policy, at_once());
        stage.0.deletes.store(i64::MAX, Ordering::SeqCst);
        assert_sound(&repository);
        if ended.is_ok() {
            break;
        }
        cuts += 1;
        // Its lease stays behind until it expires.
        stage.advance(DAY);
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
        let stage = scene.stage.fork();
        let (repository, other) = (stage.repository(), Arc::clone(&stage));
        let (found, policy_2) = (Arc::clone(&busy), policy.clone());
        stage.before(at, move || {
            let prune = move || other.repository().prune(&policy_2, at_once());
            match std::thread::spawn(prune).join().unwrap() {
                Err(Error::Busy { .. }) => _ = found.fetch_add(1, Ordering::SeqCst),
                pruned => _ = pruned.unwrap(),
            }
        });
        // Two that are decided at the same time may both refuse.
        let pruned = repository.prune(&policy, at_once());
        assert!(!matches!(pruned, Err(ref e) if e.kind() != ErrorKind::Locked), "{pruned:?}");
        assert_sound(&repository);
        if !stage.was_met() {
            break;
        }
    }
    assert!(busy.load(Ordering::SeqCst) > 10);
}

/// Begins something in a thread of its own, and goes on when it has ended or cannot go on by itself.
fn meet<T: Send + 'static>(
    stage: &Stage,
    at: u64,
    work: impl FnOnce() -> T + Send + 'static,
) -> mpsc::Receiver<T> {
    let (done, ended) = mpsc::channel();
    let (tell, told) = mpsc::channel::<()>();
    stage.before(at, move || {
        std::thread::spawn(move || {
            done.send(work()).unwrap();
            drop(tell);
        });
        _ = told.recv_timeout(Duration::from_millis(300));
    });
    ended
}

#[test]
fn a_push_at_any_request_of_a_prune_is_whole() {
    // The newest manifest is of an older commit, so that the base of the push goes; the first backup's
    // pieces are named by nobody and old, so that the push finds them.
    let scene = Scene::new(3);
    let repository = scene.stage.repository();
    scene.stage.put("leases/00000000000000aa", r#"{"work":"push","relies_on":[]}"#);
    let left = repository.prune(&Policy::default().keep_last(2), at_once()).unwrap();
    assert_eq!((left.removed.len(), left.removed_pieces), (1, 0));
    repository.push_directory(&scene.checkpoints[1], PushOptions::default()).unwrap();
    scene.stage.advance(2 * DAY);
    // The content of the base comes again as well: its pieces are named by the new manifest only.
    push_beside_prune(&scene, &scene.checkpoints[0]);
    push_beside_prune(&scene, &scene.checkpoints[1]);
}

fn push_beside_prune(scene: &Scene, checkpoint: &LocalPath) {
    let policy = Policy::default().keep_last(1);
    for at in 0.. {
        let stage = scene.stage.fork();
        let (repository, other) = (stage.repository(), stage.repository());
        let checkpoint = checkpoint.to_owned();
        let pushed =
            meet(&stage, at, move || other.push_directory(&checkpoint, PushOptions::default()));
        let pruned = repository.prune(&policy, at_once());
        let met = stage.was_met();
        pruned.unwrap();
        if met {
            pushed.recv().unwrap().unwrap();
        }
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
    let repository = scene.stage.repository();
    repository.push_directory(&scene.checkpoints[0], PushOptions::default()).unwrap();
    scene.stage.advance(2 * DAY);
    let policy = Policy::default().keep_last(1);
    for at in 0.. {
        let stage = scene.stage.fork();
        let (repository, other, policy) = (stage.repository(), stage.repository(), policy.clone());
        let pruned = meet(&stage, at, move || other.prune(&policy, at_once()));
        // All but the base's pieces are looked for.
        repository.push_directory(&scene.checkpoints[2], PushOptions::default()).unwrap();
        let met = stage.was_met();
        if met {
            pruned.recv().unwrap().unwrap();
        }
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
        let stage = scene.stage.fork();
        let (repository, other) = (stage.repository(), stage.repository());
        let oldest = repository.find(Some(&scene.backups[0])).unwrap();
        let policy = Policy::default().keep_last(1);
        let pruned = meet(&stage, at, move || other.prune(&policy, at_once()));
        let target = scene.target();
        match repository.restore(oldest, &target, RestoreOptions::default()) {
            Ok(_) => {
                assert_eq!(content(&target), content(&scene.checkpoints[0]));
                whole += 1;
            }
            // Removed before it was looked for.
            Err(Error::NoSuchBackup { .. }) => gone += 1,
            Err(error) => panic!("at {at}: {error}"),
        }
        let met = stage.was_met();
        if met {
            pruned.recv().unwrap().unwrap();
        }
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
    let repository = scene.stage.repository();
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
    let repository = scene.stage.repository();
    scene.stage.put("leases/00000000000000aa", r#"{"work":"push","relies_on":[]}"#);
    let policy = Policy::default().keep_last(1);
    let pruned = repository.prune(&policy, at_once()).unwrap();
    assert_eq!((pruned.removed.len(), pruned.removed_pieces), (1, 0));
    assert_eq!(pruned.pieces_left.as_deref(), Some("a push is under way"));
    scene.stage.advance(16 * 60);
    let pruned = repository.prune(&policy, at_once()).unwrap();
    assert!(pruned.removed_pieces > 0 && pruned.pieces_left.is_none(), "{pruned:?}");
    assert!(assert_sound(&repository).expired_leases.is_empty());
}

#[test]
fn a_backup_that_is_restored_stays() {
    let scene = Scene::new(2);
    let repository = scene.stage.repository();
    let id = repository.find(Some(&scene.backups[0])).unwrap();
    let (uuid, timeline, seqno, tag) = (id.uuid, id.timeline, id.seqno, id.tag);
    let name = format!("backups/{uuid:032x}/{timeline:032x}/{seqno:020}-{tag:016x}");
    let lease = format!(r#"{{"work":"restore","relies_on":["{name}"]}}"#);
    scene.stage.put("leases/00000000000000aa", lease);
    let policy = Policy::default().keep_last(1);
    let pruned = repository.prune(&policy, at_once()).unwrap();
    assert_eq!((pruned.removed.len(), pruned.removed_pieces), (0, 0), "{pruned:?}");
    assert!(pruned.kept.iter().any(|kept| kept.reasons.contains(&Reason::InUse)));
    assert_restorable(&scene, &repository);
}
