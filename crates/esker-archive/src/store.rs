//! The object store: the only module that talks to `object_store`.
//!
//! What must stay true: whatever is tried again can be applied twice (objects are immutable and named
//! by their content or at random, deleting what is gone is no error); a body is as long as was asked
//! for, or it is fetched again, and nothing that comes takes more memory than was allowed for it before;
//! credentials are taken from the environment and shown to nobody.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    Error as StoreError, GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta,
    ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, UpdateVersion,
};
use rand::RngExt as _;
use url::Url;

use crate::buffers::{Buffer, Buffers};
use crate::error::{Error, IoContext as _, Result};
use crate::layout;
use crate::local::{NotPlain, PlainFiles};

/// How often a request is made before its failure counts, and how long is waited between.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Retry {
    pub(crate) attempts: u32,
    pub(crate) first_wait: Duration,
    pub(crate) longest_wait: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 8,
            first_wait: Duration::from_millis(200),
            longest_wait: Duration::from_secs(20),
        }
    }
}

impl Retry {
    /// How long to wait behind failure number `failed`: twice as long each time, at random between
    /// half of that and all of it, so that many that failed together do not come back together.
    fn wait(&self, failed: u32) -> Duration {
        let doubled = self.first_wait.saturating_mul(1 << (failed - 1).min(16));
        doubled.min(self.longest_wait).mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// How long a lease is believed that is not written again, and how often its holder does that.
#[derive(Copy, Clone, Debug)]
pub(crate) struct LeaseTimes {
    pub(crate) expiry: Duration,
    pub(crate) renew_every: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self { expiry: Duration::from_secs(15 * 60), renew_every: Duration::from_secs(3 * 60) }
    }
}

/// What a store does with conditions.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Conditions {
    /// An object that is there is not overwritten by a put that forbids it.
    pub(crate) create: bool,
    /// One that was changed is not overwritten by a put that names an older state.
    pub(crate) update: bool,
}

/// A repository's place in a store.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    inner: Arc<PrefixStore<Arc<dyn ObjectStore>>>,
    /// As the user gave it, without a password.
    pub(crate) location: String,
    pub(crate) retry: Retry,
    /// How often one who waits for the work of others looks.
    pub(crate) look_every: Duration,
    pub(crate) lease_times: LeaseTimes,
}

/// Written to a local file at once. Large writes get large pages for the page cache, which a virtual
/// machine that gives free memory back to its host has to ask for anew: they took up to four times as
/// long.
pub(crate) const WRITE_BYTES: usize = 64 << 10;

/// See [`Store::look_every`].
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Store {
    /// The store that a path or URL names. A local directory is created if `create` says so.
    pub(crate) fn at(location: &str, create: bool) -> Result<Self> {
        match Url::parse(location) {
            // One letter is a drive, not a scheme.
            Ok(url) if url.scheme().len() > 1 && url.scheme() != "file" => Self::remote(&url),
            Ok(url) if url.scheme() == "file" => {
                let path = url.to_file_path();
                let path = path.map_err(|()| bad_location(location, "it names no local path"))?;
                Self::local(&path, create)
            }
            _ => Self::local(std::path::Path::new(location), create),
        }
    }

    /// A store that the caller has made, and a prefix in it.
    pub(crate) fn over(inner: Arc<dyn ObjectStore>, prefix: Path, location: String) -> Self {
        let inner = Arc::new(PrefixStore::new(inner, prefix));
        let (retry, lease_times) = (Retry::default(), LeaseTimes::default());
        Self { inner, location, retry, look_every: LOOK_EVERY, lease_times }
    }

    fn local(path: &std::path::Path, create: bool) -> Result<Self> {
        let location = path.display().to_string();
        if create {
            std::fs::create_dir_all(path).at("create", path)?;
        } else if !path.is_dir() {
            let reason = "there is no such directory".to_owned();
            return Err(Error::NotARepository { location, reason });
        }
        let local = PlainFiles::new(path).map_err(|e| Error::store("open", location.clone(), e))?;
        Ok(Self::over(Arc::new(local), Path::default(), location))
    }

    fn remote(url: &Url) -> Result<Self> {
        let mut shown = url.clone();
        // Nobody should put a password there; if somebody does, it is not repeated.
        let _ = shown.set_password(None);
        let location = shown.to_string();
        // A piece may take long over a slow line; what stands still is noticed by reading.
        let ours = [("timeout", "15 minutes"), ("read_timeout", "60 seconds")];
        let ours = ours.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let environment = std::env::vars().map(|(key, value)| (key.to_ascii_lowercase(), value));
        let parsed = object_store::parse_url_opts(url, ours.into_iter().chain(environment));
        let (store, prefix) = parsed.map_err(|e| bad_location(&location, &e.to_string()))?;
        Ok(Self::over(Arc::from(store), prefix, location))
    }

    /// The whole object, which must not be longer than this; `None` if there is none.
    pub(crate) async fn read_whole(&self, object: &Path, bytes_max: u64) -> Result<Option<Bytes>> {
        self.read_wanted(object, Wanted::Whole { bytes_max }, &Buffers::default()).await
    }

    /// A range of an object; `None` if there is no object.
    pub(crate) async fn read(&self, object: &Path, range: Range<u64>) -> Result<Option<Bytes>> {
        self.read_into(object, range, &Buffers::default()).await
    }

    /// The same in memory of these.
    pub(crate) async fn read_into(
        &self,
        object: &Path,
        range: Range<u64>,
        buffers: &Buffers,
    ) -> Result<Option<Bytes>> {
        self.read_wanted(object, Wanted::Range(range), buffers).await
    }

    async fn read_wanted(
        &self,
        object: &Path,
        wanted: Wanted,
        buffers: &Buffers,
    ) -> Result<Option<Bytes>> {
        let read = self.again("read", object, async || {
            let range = match &wanted {
                Wanted::Whole { .. } => None,
                Wanted::Range(range) => Some(GetRange::Bounded(range.clone())),
            };
            let options = GetOptions { range, ..GetOptions::default() };
            let got = match self.inner.get_opts(object, options).await {
                Err(StoreError::NotFound { .. }) => return Ok(Ok(None)),
                Err(error) => match self.too_short(object, &wanted).await {
                    Some(what) => return Ok(Err(what)),
                    None => return Err(error),
                },
                Ok(got) => got,
            };
            match wanted.bytes_of(got.meta.size) {
                Ok(expected) => body(got, expected, buffers).await.map(|body| Ok(Some(body))),
                Err(what) => Ok(Err(what)),
            }
        });
        read.await?.map_err(|what| Error::corrupt(object.to_string(), what))
    }

    /// What is wrong, if a range was refused because the object ends before it: stores say so in many
    /// ways.
    async fn too_short(&self, object: &Path, wanted: &Wanted) -> Option<String> {
        if !matches!(wanted, Wanted::Range(_)) {
            return None;
        }
        let there = self.inner.head(object).await.ok()?;
        wanted.bytes_of(there.size).err()
    }

    /// The length of an object and when it was written; `None` if there is none.
    pub(crate) async fn head(&self, object: &Path) -> Result<Option<ObjectMeta>> {
        self.again("look at", object, async || match self.inner.head(object).await {
            Err(StoreError::NotFound { .. }) => Ok(None),
            found => found.map(Some),
        })
        .await
    }

    /// Writes an object whose name stands for its content: whatever is there is the same. The parts of
    /// the body follow each other.
    pub(crate) async fn put(&self, object: &Path, body: &[Bytes]) -> Result<()> {
        self.again("write", object, async || {
            self.inner.put(object, payload(body)).await.map(|_| ())
        })
        .await
    }

    /// The same once: for who comes again anyway.
    pub(crate) async fn put_once(&self, object: &Path, body: Bytes) -> Result<()> {
        let put = self.inner.put(object, PutPayload::from_bytes(body)).await;
        put.map(|_| ()).map_err(|e| told("write", object, e))
    }

    /// Writes an object that must not be there; false if it is, with other content. Only as certain as
    /// the store's conditions.
    pub(crate) async fn create(&self, object: &Path, body: Bytes) -> Result<bool> {
        let created = self.put_new(object, std::slice::from_ref(&body)).await?;
        // What timed out may have been applied, and then stands in its own way.
        Ok(created || self.holds(object, &body).await?)
    }

    /// Whether an object has this content.
    async fn holds(&self, object: &Path, body: &Bytes) -> Result<bool> {
        match self.read_whole(object, body.len() as u64).await {
            Err(Error::Corrupt { .. }) => Ok(false),
            read => Ok(read?.is_some_and(|found| found == body)),
        }
    }

    /// Writes an object unless there is one; whether it did. Only as certain as the store's conditions.
    pub(crate) async fn put_new(&self, object: &Path, body: &[Bytes]) -> Result<bool> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.again("create", object, async || {
            match self.inner.put_opts(object, payload(body), options.clone()).await {
                Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                    Ok(false)
                }
                Err(StoreError::NotImplemented { .. } | StoreError::NotSupported { .. }) => {
                    self.inner.put(object, payload(body)).await.map(|_| true)
                }
                put => put.map(|_| true),
            }
        })
        .await
    }

    /// Removes objects; those that are gone already do not matter.
    pub(crate) async fn remove(&self, object: &Path) -> Result<()> {
        self.again("remove", object, async || match self.inner.delete(object).await {
            Err(StoreError::NotFound { .. }) => Ok(()),
            removed => removed,
        })
        .await
    }

    /// Everything below a prefix, in no order.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let prefix = Path::from(prefix);
        self.again("list", &prefix, async || self.inner.list(Some(&prefix)).try_collect().await)
            .await
    }

    /// Calls `each` with everything below a prefix, a page at a time. A listing that fails is tried again
    /// as long as nothing of it was seen: what was cannot be taken back, and not every store lists in an
    /// order in which one could go on.
    pub(crate) async fn each(
        &self,
        prefix: &str,
        mut each: impl FnMut(ObjectMeta) -> Result<()>,
    ) -> Result<()> {
        let prefix = Path::from(prefix);
        let begin = async || {
            let mut listing = self.inner.list(Some(&prefix));
            let first = listing.try_next().await?;
            Ok((first, listing))
        };
        let (mut found, mut listing) = self.again("list", &prefix, begin).await?;
        while let Some(object) = found {
            each(object)?;
            let next = listing.try_next().await;
            found = next.map_err(|e| told("list", &prefix, e))?;
        }
        Ok(())
    }

    /// Looks what the store does with conditions, with objects that are removed again as far as the
    /// credentials allow it.
    pub(crate) async fn probe(&self) -> Result<Conditions> {
        let object = Path::from(format!("{}/{:016x}", layout::PROBES, rand::random::<u64>()));
        let put = async |mode: PutMode, body: &'static str| {
            let options = PutOptions { mode, ..PutOptions::default() };
            self.inner.put_opts(&object, PutPayload::from_static(body.as_bytes()), options).await
        };
        let first = put(PutMode::Overwrite, "one").await;
        let first = first.map_err(|e| told("write", &object, e))?;
        let again = put(PutMode::Create, "two").await;
        let create = matches!(
            again,
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. })
        );
        let changed = put(PutMode::Overwrite, "three").await;
        changed.map_err(|e| told("write", &object, e))?;
        let stale = UpdateVersion { e_tag: first.e_tag, version: first.version };
        let update = put(PutMode::Update(stale), "four").await;
        let update = matches!(update, Err(StoreError::Precondition { .. }));
        if let Err(error) = self.inner.delete(&object).await {
            tracing::debug!(%error, %object, "a probe stays behind");
        }
        Ok(Conditions { create, update })
    }

    /// Makes a request until it succeeds, fails for good, or has failed often enough.
    async fn again<T>(
        &self,
        operation: &'static str,
        object: &Path,
        request: impl AsyncFn() -> object_store::Result<T>,
    ) -> Result<T> {
        let mut failed = 0;
        loop {
            let error = match request().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            failed += 1;
            if failed >= self.retry.attempts || is_final(&error) {
                return Err(told(operation, object, error));
            }
            let wait = self.retry.wait(failed);
            tracing::warn!(%error, %object, ?wait, "{operation} failed; it is tried again");
            tokio::time::sleep(wait).await;
        }
    }
}

/// How much of an object is wanted.
enum Wanted {
    Whole { bytes_max: u64 },
    Range(Range<u64>),
}

impl Wanted {
    /// The length of what comes of an object of `size` bytes, or what is wrong with that.
    fn bytes_of(&self, size: u64) -> std::result::Result<u64, String> {
        match self {
            Self::Whole { bytes_max } if size > *bytes_max => {
                Err(format!("it has {size} bytes; what is written there has {bytes_max} at most"))
            }
            Self::Whole { .. } => Ok(size),
            Self::Range(range) if size < range.end => {
                Err(format!("it ends at {size} bytes, and {} are named", range.end))
            }
            Self::Range(range) => Ok(range.end - range.start),
        }
    }
}

/// The body, which never takes more memory than expected, whatever comes.
async fn body(got: GetResult, expected: u64, buffers: &Buffers) -> object_store::Result<Bytes> {
    let wrong = |came: u64| {
        let source = format!("{came} of {expected} bytes came").into();
        StoreError::Generic { store: "body", source }
    };
    let length = got.range.end - got.range.start;
    if length != expected {
        return Err(wrong(length));
    }
    let mut body = buffers.lend(expected as usize);
    if let GetResultPayload::File(file, path) = got.payload {
        let read = move || file.read_exact_at(body.as_mut(), got.range.start).map(|()| body);
        let read = blocking(read).await.map_err(|source| {
            let source = format!("{}: {source}", path.display()).into();
            StoreError::Generic { store: "file", source }
        });
        return read.map(Buffer::freeze);
    }
    let mut chunks = got.into_stream();
    let mut came = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        let Some(free) = body.as_mut().get_mut(came..came + chunk.len()) else {
            return Err(wrong((came + chunk.len()) as u64));
        };
        free.copy_from_slice(&chunk);
        came += chunk.len();
    }
    if came as u64 == expected { Ok(body.freeze()) } else { Err(wrong(came as u64)) }
}

/// The error of a request. What is no file where one must be is damage, not the store's failure.
fn told(operation: &'static str, object: &Path, error: StoreError) -> Error {
    let not_plain = match &error {
        StoreError::NotSupported { source } => source.downcast_ref::<NotPlain>(),
        _ => None,
    };
    match not_plain {
        Some(odd) => Error::corrupt(object.to_string(), odd.to_string()),
        None => Error::store(operation, object.to_string(), error),
    }
}

/// Costs nothing: the parts are not copied.
fn payload(body: &[Bytes]) -> PutPayload {
    body.iter().cloned().collect()
}

fn bad_location(location: &str, reason: &str) -> Error {
    Error::NotARepository { location: location.to_owned(), reason: reason.to_owned() }
}

/// Whether another attempt would be told the same.
fn is_final(error: &StoreError) -> bool {
    if is_denied(error) {
        return true;
    }
    matches!(
        error,
        StoreError::NotFound { .. }
            | StoreError::InvalidPath { .. }
            | StoreError::NotSupported { .. }
            | StoreError::AlreadyExists { .. }
            | StoreError::Precondition { .. }
            | StoreError::NotImplemented { .. }
            | StoreError::PermissionDenied { .. }
            | StoreError::Unauthenticated { .. }
            | StoreError::UnknownConfigurationKey { .. }
    )
}

/// Whether a local directory refuses for good, which its store does not tell from other failures.
fn is_denied(error: &StoreError) -> bool {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem))
}

/// Runs what takes long without waiting for anything, on a thread for such work.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_ends_before_the_range_is_corrupt() {
        let inner = Arc::new(object_store::memory::InMemory::new());
        let mut store = Store::over(inner, Path::default(), "memory".to_owned());
        store.retry.longest_wait = Duration::ZERO;
        let object = Path::from("files/5");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let read = |range| runtime.block_on(store.read(&object, range));
        assert!(matches!(read(0..5), Ok(None)));
        runtime.block_on(store.put(&object, &[Bytes::from_static(b"12345")])).unwrap();
        assert_eq!(read(1..5).unwrap().unwrap(), "2345");
        let whole = |bytes_max| runtime.block_on(store.read_whole(&object, bytes_max));
        assert_eq!(whole(5).unwrap().unwrap(), "12345");
        assert!(matches!(whole(4), Err(Error::Corrupt { .. })));
        for range in [0..6, 4..6, 5..6, 7..9] {
            let error = read(range.clone()).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{range:?}: {error}");
            assert!(error.to_string().contains("files/5"), "{error}");
        }
    }
}
