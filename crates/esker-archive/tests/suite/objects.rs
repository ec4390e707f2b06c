//! A store in memory whose every request is met by the test, and whose clock it moves.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use esker_archive::{Repository, RepositoryOptions};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};

pub const DAY: i64 = 24 * 60 * 60;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Put,
    Get,
    Head,
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
    pub fn put(self: &Arc<Self>, object: &str, body: impl Into<PutPayload>) {
        let (store, object) = (self.store(Arc::new(|_, _| Ok(()))), Path::from(object));
        let put = async { store.put_opts(&object, body.into(), Default::default()).await };
        block_on(put).unwrap();
    }

    pub fn remove(&self, object: &str) {
        block_on(async { self.inner.delete(&Path::from(object)).await }).unwrap();
    }

    /// What is there below a prefix.
    pub fn contents(&self, prefix: &str) -> BTreeMap<String, Vec<u8>> {
        let read = |name: String| {
            let object = Path::from(name.as_str());
            let body = block_on(async { self.inner.get(&object).await?.bytes().await }).unwrap();
            (name, body.to_vec())
        };
        self.below(prefix).into_iter().map(read).collect()
    }

    /// The names of all objects below a prefix.
    pub fn below(&self, prefix: &str) -> Vec<String> {
        let prefix = Path::from(prefix);
        let listed = block_on(self.inner.list(Some(&prefix)).collect::<Vec<_>>());
        let mut names: Vec<_> = listed.into_iter().map(|o| o.unwrap().location.into()).collect();
        names.sort();
        names
    }

    /// A repository that is made here, by requests that nobody meets.
    pub fn create(self: &Arc<Self>) -> Repository {
        Repository::create_in(self.store(Arc::new(|_, _| Ok(()))), "", Default::default()).unwrap()
    }

    pub fn store(self: &Arc<Self>, hook: Hook) -> Arc<dyn ObjectStore> {
        Arc::new(Met { objects: Arc::clone(self), hook })
    }

    /// The repository, by requests that are met.
    pub fn met(self: &Arc<Self>, options: RepositoryOptions, hook: Hook) -> Repository {
        // What it takes to open it is nobody's concern here.
        let opened = Arc::new(AtomicBool::new(false));
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

    /// The repository, to somebody before whose request number `at` something else is done; and whether
    /// it was.
    pub fn met_at(
        self: &Arc<Self>,
        at: u64,
        work: impl FnOnce() + Send + 'static,
    ) -> (Repository, Arc<AtomicBool>) {
        let (requests, work) = (AtomicU64::new(0), Mutex::new(Some(work)));
        let was_met = Arc::new(AtomicBool::new(false));
        let met = Arc::clone(&was_met);
        let hook = move |_: Kind, _: &Path| {
            if requests.fetch_add(1, Ordering::SeqCst) == at {
                let work = work.lock().unwrap().take().expect("a number comes once");
                met.store(true, Ordering::SeqCst);
                work();
            }
            Ok(())
        };
        (self.met(RepositoryOptions::default(), Arc::new(hook)), was_met)
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
        (self.hook)(if how.head { Kind::Head } else { Kind::Get }, at)?;
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
