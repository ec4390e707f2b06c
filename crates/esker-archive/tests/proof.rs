//! What checks remember of the data that they have read: shares that add up to everything, beside other
//! checks and prunes, with credentials that only read, and over proofs that are not what was written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use esker::Keyspace;
use esker_archive::{
    CheckOptions, CheckReport, Key, Policy, PruneOptions, PushOptions, Repository,
    RepositoryOptions,
};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result,
};

/// Objects in memory, with a record of which were read and how many were written.
#[derive(Debug, Default)]
struct Shelf {
    objects: InMemory,
    read: Mutex<BTreeSet<String>>,
    writes: AtomicU64,
    deletes: AtomicU64,
    /// Nothing may be written, or nothing removed.
    read_only: AtomicBool,
    keeps: AtomicBool,
    /// Seconds that everything is older than it is.
    age_secs: AtomicU64,
}

impl std::fmt::Display for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shelf")
    }
}

fn denied(path: &Path) -> Error {
    Error::PermissionDenied { path: path.to_string(), source: "it only reads".into() }
}

#[async_trait]
impl ObjectStore for Shelf {
    async fn put_opts(&self, at: &Path, body: PutPayload, how: PutOptions) -> Result<PutResult> {
        if self.read_only.load(Ordering::SeqCst) {
            return Err(denied(at));
        }
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.objects.put_opts(at, body, how).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(at, how).await
    }

    async fn get_opts(&self, at: &Path, how: GetOptions) -> Result<GetResult> {
        if !how.head {
            self.read.lock().unwrap().insert(at.to_string());
        }
        self.objects.get_opts(at, how).await
    }

    fn delete_stream(
        &self,
        all: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.deletes.fetch_add(1, Ordering::SeqCst);
        if self.read_only.load(Ordering::SeqCst) || self.keeps.load(Ordering::SeqCst) {
            return all.map(|at| at.and_then(|at| Err(denied(&at)))).boxed();
        }
        self.objects.delete_stream(all)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let age = std::time::Duration::from_secs(self.age_secs.load(Ordering::SeqCst));
        let aged = move |mut meta: ObjectMeta| {
            // A probe is written to know the time, and so stays as young as it is.
            if meta.location.as_ref().starts_with("files/") {
                meta.last_modified -= age;
            }
            meta
        };
        self.objects.list(prefix).map_ok(aged).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, how).await
    }
}

/// A repository on a shelf, with two backups of several partitions, a piece or two each.
struct Scene {
    shelf: Arc<Shelf>,
    repository: Repository,
    backups: Vec<String>,
}

impl Scene {
    fn new(key: Option<Key>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Arc::new(Shelf::default());
        let options = RepositoryOptions::default().attempts(1);
        let options = key.iter().fold(options, |options, key| options.key(key.clone()));
        let store = Arc::clone(&shelf) as Arc<dyn ObjectStore>;
        let repository = Repository::create_in(store, "", options).unwrap();
        let keyspace = Keyspace::open(dir.path().join("db")).unwrap();
        let mut backups = Vec::new();
        for round in 0..2 {
            for number in 0..15 {
                let name = format!("{round}-{number}");
                let partition = keyspace.partition(&name, Default::default()).unwrap();
                for key in 0..200_u32 {
                    let value: Vec<u8> = (0..8).flat_map(|_| rand::random::<[u8; 16]>()).collect();
                    partition.insert(key.to_be_bytes(), value).unwrap();
                }
            }
            keyspace.flush().unwrap();
            backups.push(repository.push(&keyspace, PushOptions::default()).unwrap().backup);
            if round == 0 {
                // What only the first backup names.
                keyspace.partition("0-0", Default::default()).unwrap().clear().unwrap();
                keyspace.partition("0-1", Default::default()).unwrap().clear().unwrap();
            }
        }
        Self { shelf, repository, backups }
    }

    /// The report, and which pieces were read for it.
    fn check(&self, options: CheckOptions) -> (CheckReport, BTreeSet<String>) {
        self.shelf.read.lock().unwrap().clear();
        let report = self.repository.check(options).unwrap();
        assert!(report.strays.is_empty(), "{:?}", report.strays);
        let mut read = std::mem::take(&mut *self.shelf.read.lock().unwrap());
        read.retain(|object| object.starts_with("files/"));
        assert_eq!(read.len() as u64, report.read_pieces);
        (report, read)
    }

    fn objects(&self, below: &str) -> BTreeMap<String, Vec<u8>> {
        wait(async {
            let listed: Vec<_> =
                self.shelf.objects.list(Some(&Path::from(below))).try_collect().await.unwrap();
            let mut found = BTreeMap::new();
            for meta in listed {
                let body = self.shelf.objects.get(&meta.location).await.unwrap();
                let body = body.bytes().await.unwrap().to_vec();
                found.insert(meta.location.to_string(), body);
            }
            found
        })
    }

    fn put(&self, object: &str, body: Vec<u8>) {
        wait(async {
            self.shelf.objects.put(&Path::from(object), PutPayload::from(body)).await.unwrap()
        });
    }

    fn remove(&self, object: &str) {
        wait(async { self.shelf.objects.delete(&Path::from(object)).await.unwrap() });
    }
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

fn share(share: f64) -> CheckOptions {
    CheckOptions::default().read_data(share)
}

#[test]
fn twenty_checks_of_a_twentieth_each_prove_everything() {
    for key in [None, Some(Key::generate())] {
        let scene = Scene::new(key);
        let (before, _) = scene.check(share(0.0));
        assert!(before.pieces >= 30 && !before.remembered, "{before:?}");
        assert_eq!(before.proofs.never_proved_pieces, before.pieces);
        assert_eq!(before.proofs.oldest_proof_ms, None);
        let mut all = BTreeSet::new();
        for round in 1..=20 {
            let (report, read) = scene.check(share(0.05));
            assert!(report.is_sound() && report.remembered, "{report:?}");
            assert_eq!(
                report.read_pieces,
                before.pieces.div_ceil(20),
                "no more than was asked for"
            );
            all.extend(read);
            assert_eq!(report.proofs.proved_pieces, all.len() as u64, "round {round}");
            let sum = report.proofs.proved_bytes + report.proofs.never_proved_bytes;
            assert_eq!(sum, report.piece_bytes);
            assert_eq!(scene.objects("proofs").len(), 1, "each replaces the one before");
        }
        assert_eq!(all, scene.objects("files").into_keys().collect());
        let proofs = scene.repository.proofs().unwrap();
        assert!(proofs.is_complete() && proofs.warnings.is_empty(), "{proofs:?}");
        // From here on what was proved longest ago comes first, so the oldest moves.
        for _ in 0..20 {
            scene.check(share(0.05));
        }
        let later = scene.repository.proofs().unwrap();
        assert!(later.is_complete() && later.oldest_proof_ms > proofs.oldest_proof_ms);
        let (report, _) = scene.check(share(1.0));
        assert_eq!(report.read_pieces, report.pieces);
        assert_eq!(scene.repository.proofs().unwrap(), report.proofs);
    }
}

#[test]
fn an_encrypted_proof_tells_nothing_of_pieces_and_is_read_by_its_key_alone() {
    let scene = Scene::new(Some(Key::generate()));
    scene.check(share(1.0));
    let plain = Scene::new(None);
    plain.check(share(1.0));
    let sealed = scene.objects("proofs").into_iter().next().unwrap();
    let open = plain.objects("proofs").into_iter().next().unwrap();
    // Put where the other one is expected, neither is believed.
    scene.put(&open.0, open.1);
    plain.put(&sealed.0, sealed.1);
    for scene in [scene, plain] {
        let (report, _) = scene.check(share(0.0));
        assert_eq!((report.proofs.warnings.len(), report.proofs.never_proved_pieces), (1, 0));
    }
}

#[test]
fn two_checks_at_a_time_forget_nothing_of_each_other() {
    let scene = Scene::new(None);
    for _ in 0..5 {
        let before = scene.repository.proofs().unwrap().proved_pieces;
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let store = Arc::clone(&scene.shelf) as Arc<dyn ObjectStore>;
                    let other = Repository::open_in(store, "", Default::default()).unwrap();
                    let report = other.check(share(0.1)).unwrap();
                    assert!(report.is_sound() && report.remembered, "{report:?}");
                });
            }
        });
        // They may have read the same, and one may not have seen another's.
        let after = scene.repository.proofs().unwrap();
        assert!(after.warnings.is_empty(), "{after:?}");
        let (report, _) = scene.check(share(0.0));
        let tenth = report.pieces.div_ceil(10);
        assert!(after.proved_pieces >= (before + tenth).min(report.pieces), "{after:?}");
    }
    // The same by hand: each has replaced the one that both had seen.
    let scene = Scene::new(None);
    scene.check(share(0.1));
    let (name, body) = scene.objects("proofs").into_iter().next().unwrap();
    let (_, first) = scene.check(share(0.2));
    let of_first = scene.objects("proofs").into_iter().next().unwrap();
    scene.remove(&of_first.0);
    scene.put(&name, body);
    let (_, second) = scene.check(share(0.2));
    scene.put(&of_first.0, of_first.1);
    let both = scene.repository.proofs().unwrap();
    let (report, _) = scene.check(share(0.0));
    let read: BTreeSet<_> = first.union(&second).collect();
    assert_eq!(both.proved_pieces, report.pieces.div_ceil(10) + read.len() as u64);
    scene.check(share(0.01));
    assert_eq!(scene.objects("proofs").len(), 1);
    assert!(scene.repository.proofs().unwrap().proved_pieces > both.proved_pieces);
}

#[test]
fn credentials_that_only_read_will_do_and_what_is_not_remembered_is_said() {
    let scene = Scene::new(None);
    scene.check(share(0.3));
    let known = scene.objects("proofs");
    let proved = scene.repository.proofs().unwrap().proved_pieces;
    scene.shelf.read_only.store(true, Ordering::SeqCst);
    let (report, read) = scene.check(share(0.3));
    assert!(report.is_sound() && !report.remembered, "{report:?}");
    let why = report.not_remembered.unwrap();
    assert!(why.contains("proofs/") && why.contains("it only reads"), "{why}");
    assert_eq!(report.proofs.proved_pieces, proved + read.len() as u64, "what it has read counts");
    assert_eq!(scene.objects("proofs"), known);
    // Asked not to, it does not even try.
    scene.shelf.read_only.store(false, Ordering::SeqCst);
    let requests = || {
        let shelf = &scene.shelf;
        (shelf.writes.load(Ordering::SeqCst), shelf.deletes.load(Ordering::SeqCst))
    };
    let before = requests();
    let (report, _) = scene.check(share(0.3).remember(false));
    assert!(!report.remembered && report.not_remembered.is_none(), "{report:?}");
    scene.check(share(0.0));
    assert_eq!((requests(), scene.objects("proofs")), (before, known));
    // Without the right to remove, proofs pile up, say the same, and are one again after a prune.
    scene.shelf.keeps.store(true, Ordering::SeqCst);
    for _ in 0..25 {
        let (report, _) = scene.check(share(0.05));
        assert!(report.remembered && report.proofs.warnings.is_empty(), "{report:?}");
    }
    assert_eq!(scene.objects("proofs").len(), 26);
    scene.shelf.keeps.store(false, Ordering::SeqCst);
    let before = scene.repository.proofs().unwrap();
    assert!(before.is_complete(), "{before:?}");
    for left in [11, 1, 1] {
        let policy = Policy::default().keep_last(2);
        scene.repository.prune(&policy, PruneOptions::default()).unwrap();
        assert_eq!(
            (scene.objects("proofs").len(), scene.repository.proofs().unwrap()),
            (left, before.clone())
        );
    }
}

#[test]
fn proofs_that_are_not_what_was_written_are_named_and_not_believed() {
    let scene = Scene::new(None);
    scene.check(share(1.0));
    let (name, whole) = scene.objects("proofs").into_iter().next().unwrap();
    let mut rotten = whole.clone();
    rotten[70] ^= 1;
    let far = "proofs/99999999999999999999-0000000000000000";
    let later = format!("proofs/{:020}-00000000000000aa", 1_u64 << 50);
    let newer = {
        let mut newer = whole.clone();
        newer[8] = 2;
        newer
    };
    for (at, body, what) in [
        (name.as_str(), rotten, "check"),
        (name.as_str(), whole[..60].to_vec(), "check"),
        (name.as_str(), Vec::new(), "cut short"),
        (name.as_str(), vec![0; (64 << 20) + 65], "longer than any"),
        (name.as_str(), newer, "check"),
        (name.as_str(), b"something else that is long enough for a header".repeat(2), "begin"),
        (later.as_str(), whole.clone(), "future"),
    ] {
        scene.remove(&name);
        scene.put(at, body);
        let (report, _) = scene.check(share(0.0));
        assert!(report.is_sound(), "it is no problem of a backup: {report:?}");
        let [warning] = &report.proofs.warnings[..] else { panic!("{report:?}") };
        assert!(warning.contains(at) && warning.contains(what), "{warning}");
        assert_eq!(report.proofs.proved_pieces, 0);
        // The next one that is written takes its place.
        let (report, _) = scene.check(share(0.5));
        assert_eq!(report.proofs.proved_pieces, report.read_pieces);
        let objects = scene.objects("proofs");
        assert!(objects.len() == 1 && !objects.contains_key(at), "{:?}", objects.keys());
        scene.remove(objects.keys().next().unwrap());
        scene.put(&name, whole.clone());
    }
    // What is no proof by its name is nobody's.
    scene.put(far, Vec::new());
    scene.put("proofs/readme", Vec::new());
    let report = scene.repository.check(share(0.0)).unwrap();
    assert_eq!(report.strays, [far, "proofs/readme"]);
}

#[test]
fn a_damaged_piece_is_proved_no_more_and_read_again_at_once() {
    let scene = Scene::new(None);
    scene.check(share(1.0));
    let (object, whole) = scene.objects("files").into_iter().nth(3).unwrap();
    let mut rotten = whole.clone();
    rotten[9] ^= 1;
    scene.put(&object, rotten);
    let (report, _) = scene.check(share(1.0));
    assert_eq!((report.problems.len(), report.proofs.never_proved_pieces), (1, 1));
    for _ in 0..3 {
        let (report, read) = scene.check(share(0.01));
        assert!(read.contains(&object) && report.problems.len() == 1, "{report:?}");
    }
    scene.remove(&object);
    let (report, _) = scene.check(share(1.0));
    assert_eq!((report.problems.len(), report.proofs.never_proved_pieces), (1, 1));
    scene.put(&object, whole);
    let (report, read) = scene.check(share(0.01));
    assert!(read.contains(&object) && report.is_sound() && report.proofs.is_complete());
}

#[test]
fn the_proof_of_a_piece_that_is_pruned_goes_with_it() {
    let scene = Scene::new(None);
    scene.check(share(1.0));
    let before = scene.objects("proofs");
    scene.shelf.age_secs.store(2 * 24 * 60 * 60, Ordering::SeqCst);
    let policy = Policy::default().keep_last(1);
    scene.repository.prune(&policy, PruneOptions::default().dry_run(true)).unwrap();
    assert_eq!(scene.objects("proofs"), before, "nothing is removed by asking");
    let pruned = scene.repository.prune(&policy, PruneOptions::default()).unwrap();
    assert_eq!(pruned.removed, scene.backups[..1]);
    assert!(pruned.removed_pieces > 0);
    let after = scene.objects("proofs");
    let bytes = |proofs: &BTreeMap<String, Vec<u8>>| proofs.values().map(Vec::len).sum::<usize>();
    assert_eq!(bytes(&before) - bytes(&after), 8 * pruned.removed_pieces as usize);
    assert!(after.len() == 1 && after != before);
    let proofs = scene.repository.proofs().unwrap();
    assert!(proofs.is_complete() && proofs.warnings.is_empty(), "{proofs:?}");
    // With nothing to change it is left as it is.
    scene.repository.prune(&policy, PruneOptions::default()).unwrap();
    assert_eq!(scene.objects("proofs"), after);
    // A check that began before the prune writes down what is gone; the next prune takes it away.
    let (old, body) = before.into_iter().next().unwrap();
    scene.put(&old, body);
    scene.repository.prune(&policy, PruneOptions::default()).unwrap();
    assert_eq!(
        (scene.objects("proofs").len(), bytes(&scene.objects("proofs"))),
        (1, bytes(&after))
    );
}
