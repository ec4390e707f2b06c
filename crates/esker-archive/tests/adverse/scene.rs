//! Stores in memory whose every request is met by the test and whose clock it moves, and a keyspace with
//! two checkpoints that share one table and differ in another.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path as LocalPath, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use esker::{Config, Keyspace};
use esker_archive::{BackupId, CheckOptions, PushOptions, Repository, RepositoryOptions};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

pub const DAY: i64 = 24 * 60 * 60;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Put,
    Get,
    Delete,
    List,
}

/// What meets every request, and may let it wait or refuse it.
pub type Hook = Arc<dyn Fn(Kind, &Path) -> Result<()> + Send + Sync>;

/// What all who use a repository share.
#[derive(Default)]
pub struct Objects {
    inner: InMemory,
    /// Seconds that the store's clock is ahead, now and when each object was written.
    ahead: AtomicI64,
    written: Mutex<HashMap<Path, i64>>,
}

impl Objects {
    /// Other objects of the same content and time.
    pub fn fork(&self) -> Arc<Self> {
        Arc::new(Self {
            inner: self.inner.fork(),
            ahead: AtomicI64::new(self.ahead.load(Ordering::SeqCst)),
            written: Mutex::new(self.written.lock().unwrap().clone()),
        })
    }

    pub fn advance(&self, secs: i64) {
        self.ahead.fetch_add(secs, Ordering::SeqCst);
    }

    /// Writes an object as somebody else would.
    pub fn put(self: &Arc<Self>, object: &str, body: &str) {
        let (store, object) = (self.store(Arc::new(|_, _| Ok(()))), Path::from(object));
        let body = PutPayload::from(body.to_owned());
        block_on(async { store.put_opts(&object, body, Default::default()).await }).unwrap();
    }

    /// The names of all objects below a prefix.
    pub fn below(&self, prefix: &str) -> Vec<String> {
        let prefix = Path::from(prefix);
        let listed = block_on(self.inner.list(Some(&prefix)).collect::<Vec<_>>());
        let mut names: Vec<_> = listed.into_iter().map(|o| o.unwrap().location.into()).collect();
        names.sort();
        names
    }

    fn store(self: &Arc<Self>, hook: Hook) -> Arc<dyn ObjectStore> {
        Arc::new(Met { objects: Arc::clone(self), hook })
    }

    /// The repository, by requests that are met.
    pub fn met(self: &Arc<Self>, options: RepositoryOptions, hook: Hook) -> Repository {
        // What it takes to open it is nobody's concern here.
        let opened = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let is_opened = Arc::clone(&opened);
        let hook = move |kind: Kind, at: &Path| match is_opened.load(Ordering::SeqCst) {
            true => hook(kind, at),
            false => Ok(()),
        };
        let options = options.attempts(1).impatient();
        let repository = Repository::open_in(self.store(Arc::new(hook)), "", options).unwrap();
        opened.store(true, Ordering::SeqCst);
        repository
    }

    pub fn repository(self: &Arc<Self>) -> Repository {
        self.met(RepositoryOptions::default(), Arc::new(|_, _| Ok(())))
    }

    /// The repository, to somebody who is killed before his request number `at`.
    pub fn killed(self: &Arc<Self>, at: u64) -> Repository {
        let requests = AtomicU64::new(0);
        let hook = move |_: Kind, object: &Path| match requests.fetch_add(1, Ordering::SeqCst) {
            number if number < at => Ok(()),
            _ => Err(refused(object)),
        };
        self.met(RepositoryOptions::default(), Arc::new(hook))
    }

    fn aged(&self, mut meta: ObjectMeta) -> ObjectMeta {
        let secs = self.written.lock().unwrap().get(&meta.location).copied().unwrap_or(0);
        meta.last_modified += Duration::from_secs(secs as u64);
        meta
    }
}

pub fn refused(object: &Path) -> StoreError {
    StoreError::PermissionDenied { path: object.to_string(), source: "refused".into() }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

struct Met {
    objects: Arc<Objects>,
    hook: Hook,
}

impl std::fmt::Debug for Met {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Met")
    }
}

impl std::fmt::Display for Met {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Met")
    }
}

#[async_trait]
impl ObjectStore for Met {
    async fn put_opts(&self, at: &Path, body: PutPayload, how: PutOptions) -> Result<PutResult> {
        (self.hook)(Kind::Put, at)?;
        let put = self.objects.inner.put_opts(at, body, how).await;
        if put.is_ok() {
            let ahead = self.objects.ahead.load(Ordering::SeqCst);
            self.objects.written.lock().unwrap().insert(at.clone(), ahead);
        }
        put
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        (self.hook)(Kind::Put, at)?;
        self.objects.inner.put_multipart_opts(at, how).await
    }

    async fn get_opts(&self, at: &Path, how: GetOptions) -> Result<GetResult> {
        (self.hook)(Kind::Get, at)?;
        let mut got = self.objects.inner.get_opts(at, how).await?;
        got.meta = self.objects.aged(got.meta);
        Ok(got)
    }

    fn delete_stream(
        &self,
        objects: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (hook, inner) = (Arc::clone(&self.hook), self.objects.inner.clone());
        let each = objects.then(move |object| {
            let (hook, inner) = (Arc::clone(&hook), inner.clone());
            async move {
                use object_store::ObjectStoreExt as _;
                let object = object?;
                hook(Kind::Delete, &object)?;
                inner.delete(&object).await.map(|()| object)
            }
        });
        each.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if let Err(error) = (self.hook)(Kind::List, &prefix.cloned().unwrap_or_default()) {
            return futures::stream::iter([Err(error)]).boxed();
        }
        let objects = Arc::clone(&self.objects);
        let listing = self.objects.inner.list(prefix);
        listing.map(move |meta| meta.map(|meta| objects.aged(meta))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        (self.hook)(Kind::List, &prefix.cloned().unwrap_or_default())?;
        self.objects.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        (self.hook)(Kind::Put, to)?;
        self.objects.inner.copy_opts(from, to, how).await
    }
}

/// A repository with a backup of each of two checkpoints, and two days behind them.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub objects: Arc<Objects>,
    pub checkpoints: Vec<PathBuf>,
    pub backups: Vec<BackupId>,
}

impl Scene {
    /// With so many entries of 1,000 bytes in each partition.
    pub fn new(entries: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(dir.path().join("db")).unwrap();
        let objects = Arc::new(Objects::default());
        let store = objects.store(Arc::new(|_, _| Ok(())));
        let repository = Repository::create_in(store, "", Default::default()).unwrap();
        let (mut checkpoints, mut backups) = (Vec::new(), Vec::new());
        for round in 0..2_u8 {
            for name in ["both", "each"].into_iter().skip(round.into()) {
                let partition = keyspace.partition(name, Default::default()).unwrap();
                partition.clear().unwrap();
                for number in 0..entries {
                    partition.insert(number.to_be_bytes(), noise(1_000)).unwrap();
                }
            }
            keyspace.flush().unwrap();
            let path = dir.path().join(format!("checkpoint {round}"));
            keyspace.backup_to(&path).unwrap();
            let pushed = repository.push_directory(&path, PushOptions::default()).unwrap();
            backups.push(repository.find(Some(&pushed.backup)).unwrap());
            checkpoints.push(path);
        }
        objects.advance(2 * DAY);
        Self { dir, objects, checkpoints, backups }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The only unfinished directory of a restore to this target, if there is one.
    pub fn unfinished(&self, target: &str) -> Option<PathBuf> {
        let prefix = format!(".{target}.esker-restore-");
        let mut found = names_in(self.dir.path()).into_iter().filter(|n| n.starts_with(&prefix));
        let first = found.next();
        assert_eq!(found.next(), None);
        first.map(|name| self.at(&name))
    }
}

pub fn names_in(dir: &LocalPath) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

/// Bytes that do not compress.
pub fn noise(len: usize) -> Vec<u8> {
    (0..len.div_ceil(16)).flat_map(|_| rand::random::<[u8; 16]>()).take(len).collect()
}

/// The entries of each partition.
pub type Content = BTreeMap<String, Vec<(Vec<u8>, Vec<u8>)>>;

pub fn content(path: &LocalPath) -> Content {
    let keyspace = Config::new(path).read_only(true).open().unwrap();
    let read = |name: String| {
        let partition = keyspace.open_partition(&name).unwrap().unwrap();
        let entries = partition.iter().unwrap().map(|entry| {
            let (key, value) = entry.unwrap();
            (key.to_vec(), value.to_vec())
        });
        let entries = entries.collect();
        (name, entries)
    };
    keyspace.partitions().into_iter().map(read).collect()
}

/// That a directory is what this checkpoint is, and nothing beside it.
#[track_caller]
pub fn assert_exact(restored: &LocalPath, checkpoint: &LocalPath) {
    let report = esker::verify(restored, Default::default()).unwrap();
    assert!(report.is_sound() && report.strays.is_empty(), "{report:?}");
    assert!(content(restored) == content(checkpoint), "it is something else");
}

#[track_caller]
pub fn assert_sound(repository: &Repository) {
    let report = repository.check(CheckOptions::default().read_data(1.0)).unwrap();
    assert!(report.is_sound() && report.strays.is_empty(), "{report:?}");
}

/// All plain files below a directory.
pub fn files_below(dir: &LocalPath) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
            match entry.file_type().unwrap().is_dir() {
                true => pending.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found.sort();
    found
}

pub fn copy_tree(from: &LocalPath, to: &LocalPath) {
    for file in files_below(from) {
        let copy = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(file, copy).unwrap();
    }
}
