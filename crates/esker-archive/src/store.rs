//! The object store: the only module that talks to `object_store`.
//!
//! What must stay true: whatever is tried again can be applied twice (objects are immutable and named
//! by their content or at random, deleting what is gone is no error); a body is as long as was asked
//! for, or it is fetched again; credentials are taken from the environment and shown to nobody.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    Error as StoreError, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMode, PutOptions, PutPayload, UpdateVersion,
};
use rand::RngExt as _;
use url::Url;

use crate::error::{Error, IoContext as _, Result};
use crate::layout;

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
}

/// See [`Store::look_every`].
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What came of a read.
enum Answer {
    Body(Bytes),
    Nothing,
    /// The object is no longer than this.
    Short(u64),
}

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
        Self { inner, location, retry: Retry::default(), look_every: LOOK_EVERY }
    }

    fn local(path: &std::path::Path, create: bool) -> Result<Self> {
        let location = path.display().to_string();
        if create {
            std::fs::create_dir_all(path).at("create", path)?;
        } else if !path.is_dir() {
            let reason = "there is no such directory".to_owned();
            return Err(Error::NotARepository { location, reason });
        }
        let local = object_store::local::LocalFileSystem::new_with_prefix(path);
        let local = local.map_err(|e| Error::store("open", location.clone(), e))?.with_fsync(true);
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

    /// The whole object, or a range of it; `None` if there is none. One that ends before the range does
    /// is corrupt: to ask again would not make it longer.
    pub(crate) async fn read(
        &self,
        object: &Path,
        range: Option<Range<u64>>,
    ) -> Result<Option<Bytes>> {
        let end = range.as_ref().map_or(0, |range| range.end);
        let read = self.again("read", object, async || {
            let range = range.clone().map(GetRange::Bounded);
            let options = GetOptions { range, ..GetOptions::default() };
            let got = match self.inner.get_opts(object, options).await {
                Err(StoreError::NotFound { .. }) => return Ok(Answer::Nothing),
                got => got?,
            };
            if got.meta.size < end {
                return Ok(Answer::Short(got.meta.size));
            }
            let expected = got.range.end - got.range.start;
            let body = got.bytes().await?;
            if body.len() as u64 != expected {
                let source = format!("{} of {expected} bytes came", body.len()).into();
                return Err(StoreError::Generic { store: "body", source });
            }
            Ok(Answer::Body(body))
        });
        let short = |size: u64| {
            Error::corrupt(object.to_string(), format!("it ends at {size}, and {end} were written"))
        };
        match read.await {
            Ok(Answer::Body(body)) => Ok(Some(body)),
            Ok(Answer::Nothing) => Ok(None),
            Ok(Answer::Short(size)) => Err(short(size)),
            // A range that begins behind the end is refused, by each store in words of its own.
            Err(error) if end > 0 => match self.inner.head(object).await {
                Ok(there) if there.size < end => Err(short(there.size)),
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// The length of an object and when it was written; `None` if there is none.
    pub(crate) async fn head(&self, object: &Path) -> Result<Option<ObjectMeta>> {
        self.again("look at", object, async || match self.inner.head(object).await {
            Err(StoreError::NotFound { .. }) => Ok(None),
            found => found.map(Some),
        })
        .await
    }

    /// Writes an object whose name stands for its content: whatever is there is the same.
    pub(crate) async fn put(&self, object: &Path, body: Bytes) -> Result<()> {
        self.again("write", object, async || {
            self.inner.put(object, PutPayload::from_bytes(body.clone())).await.map(|_| ())
        })
        .await
    }

    /// The same once: for who comes again anyway.
    pub(crate) async fn put_once(&self, object: &Path, body: Bytes) -> Result<()> {
        let put = self.inner.put(object, PutPayload::from_bytes(body)).await;
        put.map(|_| ()).map_err(|e| Error::store("write", object.to_string(), e))
    }

    /// Writes an object that must not be there; false if it is, with other content. Only as certain as
    /// the store's conditions.
    pub(crate) async fn create(&self, object: &Path, body: Bytes) -> Result<bool> {
        let created = self.put_new(object, body.clone()).await?;
        // What timed out may have been applied, and then stands in its own way.
        Ok(created || self.read(object, None).await?.is_some_and(|found| found == body))
    }

    /// Writes an object unless there is one; whether it did. Only as certain as the store's conditions.
    pub(crate) async fn put_new(&self, object: &Path, body: Bytes) -> Result<bool> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.again("create", object, async || {
            let payload = PutPayload::from_bytes(body.clone());
            match self.inner.put_opts(object, payload, options.clone()).await {
                Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                    Ok(false)
                }
                Err(StoreError::NotImplemented { .. } | StoreError::NotSupported { .. }) => {
                    let payload = PutPayload::from_bytes(body.clone());
                    self.inner.put(object, payload).await.map(|_| true)
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
            found = next.map_err(|e| Error::store("list", prefix.to_string(), e))?;
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
        let first = first.map_err(|e| Error::store("write", object.to_string(), e))?;
        let again = put(PutMode::Create, "two").await;
        let create = matches!(
            again,
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. })
        );
        let changed = put(PutMode::Overwrite, "three").await;
        changed.map_err(|e| Error::store("write", object.to_string(), e))?;
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
                return Err(Error::store(operation, object.to_string(), error));
            }
            let wait = self.retry.wait(failed);
            tracing::warn!(%error, %object, ?wait, "{operation} failed; it is tried again");
            tokio::time::sleep(wait).await;
        }
    }
}

fn bad_location(location: &str, reason: &str) -> Error {
    Error::NotARepository { location: location.to_owned(), reason: reason.to_owned() }
}

/// Whether another attempt would be told the same.
fn is_final(error: &StoreError) -> bool {
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
        assert!(matches!(read(Some(0..5)), Ok(None)));
        runtime.block_on(store.put(&object, Bytes::from_static(b"12345"))).unwrap();
        assert_eq!(read(Some(1..5)).unwrap().unwrap(), "2345");
        assert_eq!(read(None).unwrap().unwrap(), "12345");
        for range in [0..6, 4..6, 5..6, 7..9] {
            let error = read(Some(range.clone())).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{range:?}: {error}");
            assert!(error.to_string().contains("files/5"), "{error}");
        }
    }
}
