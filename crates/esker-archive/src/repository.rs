//! A repository: where it is, what it is, and the backups in it.
//!
//! What must stay true: REPOSITORY is written once, by `create`, and never changed: it says which format
//! and which key the repository has. All calls block; the requests run on a runtime of the
//! repository's own, so they must not be made from asynchronous code without `spawn_blocking`.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::census::Summary;
use crate::error::{Error, Result};
use crate::layout::{self, BackupId};
use crate::manifest::{self, Manifest};
use crate::seal::{Key, Sealer};
use crate::store::{Conditions, LeaseTimes, Store, blocking};

const FORMAT_VERSION: u32 = 1;
/// No REPOSITORY is longer.
const DESCRIPTION_BYTES_MAX: u64 = 64 << 10;
const SEALED: &str = "xchacha20poly1305";
/// Manifests that are fetched at the same time.
const MANIFESTS_AT_ONCE: usize = 8;

/// How a repository is created or opened.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RepositoryOptions {
    key: Option<Key>,
    attempts: Option<u32>,
    impatient: bool,
    lease_times: Option<LeaseTimes>,
}

impl RepositoryOptions {
    /// The key of an encrypted repository. Given to [`Repository::create`] it makes it one.
    pub fn key(mut self, key: Key) -> Self {
        self.key = Some(key);
        self
    }

    /// How often a request is made before its failure counts; default 8, which takes some 40 seconds.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// Tries again at once, and looks again at once for whom it waits: for tests, whose stores neither
    /// recover with time nor mind.
    #[doc(hidden)]
    pub fn impatient(mut self) -> Self {
        self.impatient = true;
        self
    }

    /// Other times than minutes until a lease has expired, and between its renewals: for tests, which
    /// do not wait. All who use a repository at the same time must have the same.
    #[doc(hidden)]
    pub fn lease_times(mut self, expiry: Duration, renew_every: Duration) -> Self {
        self.lease_times = Some(LeaseTimes { expiry, renew_every });
        self
    }
}

/// The object REPOSITORY.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Description {
    format: u32,
    id: String,
    created_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encryption: Option<Encryption>,
    conditions: Conditions,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Encryption {
    cipher: String,
    /// Tells the right key from a wrong one.
    key_check: String,
}

/// What [`Repository::about`] tells.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct About {
    /// Where it is, as it was given.
    pub location: String,
    /// Its id, 32 hex digits.
    pub id: String,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: u64,
    /// Whether its content is encrypted.
    pub encrypted: bool,
    /// Whether the store refused to overwrite when it was asked to: two writers cannot take each
    /// other's object then.
    pub conditional_create: bool,
    /// Whether it refused to overwrite what had changed meanwhile.
    pub conditional_update: bool,
}

/// A backup that is listed: its manifest has not been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listed {
    /// Which.
    pub id: BackupId,
    /// When its manifest was written, by the store's clock, in milliseconds since 1970.
    pub written_ms: u64,
    /// The length of its manifest.
    pub manifest_bytes: u64,
}

/// An open repository.
pub struct Repository {
    pub(crate) store: Store,
    pub(crate) sealer: Sealer,
    description: Description,
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("location", &self.store.location).finish_non_exhaustive()
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        // Waits for nothing: whatever was asked for has been answered.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Repository {
    /// Creates a repository at a path or URL: a directory, which need not exist, `s3://bucket/prefix`,
    /// `gs://bucket/prefix`, `az://container/prefix`. Credentials come from the environment variables
    /// that each store is used to.
    ///
    /// # Errors
    ///
    /// [`Error::RepositoryExists`]; when the store refuses or cannot be reached.
    pub fn create(location: &str, options: RepositoryOptions) -> Result<Self> {
        Self::create_at(Store::at(location, true)?, options)
    }

    /// The same in a store that the caller has made, below `prefix`.
    ///
    /// # Errors
    ///
    /// As [`Repository::create`].
    pub fn create_in(
        store: Arc<dyn ObjectStore>,
        prefix: &str,
        options: RepositoryOptions,
    ) -> Result<Self> {
        let location = format!("{store}/{prefix}");
        Self::create_at(Store::over(store, Path::from(prefix), location), options)
    }

    fn create_at(mut store: Store, options: RepositoryOptions) -> Result<Self> {
        options.apply_to(&mut store);
        let runtime = runtime()?;
        let description = runtime.block_on(async {
            if store.head(&Path::from(layout::REPOSITORY)).await?.is_some() {
                return Err(Error::RepositoryExists { location: store.location.clone() });
            }
            let encryption = options
                .key
                .as_ref()
                .map(|key| Encryption { cipher: SEALED.to_owned(), key_check: key.check() });
            let description = Description {
                format: FORMAT_VERSION,
                id: format!("{:032x}", rand::random::<u128>()),
                created_ms: now_ms(),
                encryption,
                conditions: store.probe().await?,
            };
            let json = serde_json::to_vec_pretty(&description).expect("plain values have a JSON");
            if store.create(&Path::from(layout::REPOSITORY), json.into()).await? {
                return Ok(description);
            }
            Err(Error::RepositoryExists { location: store.location.clone() })
        })?;
        let sealer = Sealer::new(options.key.as_ref());
        Ok(Self { store, sealer, description, runtime: Some(runtime) })
    }

    /// Opens the repository at a path or URL; see [`Repository::create`].
    ///
    /// # Errors
    ///
    /// [`Error::NotARepository`], [`Error::Key`], [`Error::UnsupportedFormat`]; when the store refuses
    /// or cannot be reached.
    pub fn open(location: &str, options: RepositoryOptions) -> Result<Self> {
        Self::open_at(Store::at(location, false)?, options)
    }

    /// The same in a store that the caller has made, below `prefix`.
    ///
    /// # Errors
    ///
    /// As [`Repository::open`].
    pub fn open_in(
        store: Arc<dyn ObjectStore>,
        prefix: &str,
        options: RepositoryOptions,
    ) -> Result<Self> {
        let location = format!("{store}/{prefix}");
        Self::open_at(Store::over(store, Path::from(prefix), location), options)
    }

    fn open_at(mut store: Store, options: RepositoryOptions) -> Result<Self> {
        options.apply_to(&mut store);
        let runtime = runtime()?;
        let read = {
            let object = Path::from(layout::REPOSITORY);
            runtime.block_on(store.read_whole(&object, DESCRIPTION_BYTES_MAX))?
        };
        let nothing = || Error::NotARepository {
            location: store.location.clone(),
            reason: format!("it has no {}", layout::REPOSITORY),
        };
        let description = describe(&read.ok_or_else(nothing)?)?;
        let key = options.key.as_ref();
        check_key(&store.location, description.encryption.as_ref(), key)?;
        Ok(Self { store, sealer: Sealer::new(key), description, runtime: Some(runtime) })
    }

    /// What it is.
    pub fn about(&self) -> About {
        let Description { id, created_ms, encryption, conditions, .. } = &self.description;
        About {
            location: self.store.location.clone(),
            id: id.clone(),
            created_ms: *created_ms,
            encrypted: encryption.is_some(),
            conditional_create: conditions.create,
            conditional_update: conditions.update,
        }
    }

    /// The backups in it, of every keyspace, the oldest first. Objects that are none are left out.
    ///
    /// # Errors
    ///
    /// When the store refuses or cannot be reached.
    pub fn list(&self) -> Result<Vec<Listed>> {
        self.run(self.listed())
    }

    pub(crate) async fn listed(&self) -> Result<Vec<Listed>> {
        let objects = self.store.list(layout::BACKUPS).await?;
        let listed = objects.iter().filter_map(|object| {
            Some(Listed {
                id: BackupId::parse(&object.location)?,
                written_ms: u64::try_from(object.last_modified.timestamp_millis()).unwrap_or(0),
                manifest_bytes: object.size,
            })
        });
        let mut listed: Vec<_> = listed.collect();
        listed.sort_by_key(|backup| (backup.written_ms, backup.id));
        Ok(listed)
    }

    /// The backup that is meant by `asked`: its id as [`BackupId`] displays it, or the beginning of it
    /// as far as it is unambiguous; the newest if nothing is asked for.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchBackup`]; [`Error::InvalidInput`] when several are meant.
    pub fn find(&self, asked: Option<&str>) -> Result<BackupId> {
        let listed = self.list()?;
        let none = |asked: &str| Error::NoSuchBackup {
            location: self.store.location.clone(),
            asked: asked.to_owned(),
        };
        let Some(asked) = asked else {
            return Ok(listed.last().ok_or_else(|| none("at all"))?.id);
        };
        let fits = |name: &str| name == asked || name.starts_with(asked);
        let fitting: Vec<_> = listed.iter().filter(|b| fits(&b.id.to_string())).collect();
        match fitting[..] {
            [] => Err(none(asked)),
            [one] => Ok(one.id),
            _ => {
                let count = fitting.len();
                Err(Error::InvalidInput(format!("{count} backups begin with {asked:?}")))
            }
        }
    }

    pub(crate) async fn manifest(&self, id: BackupId) -> Result<Manifest> {
        Manifest::decode(id, &self.manifest_bytes(id).await?, &self.sealer)
    }

    async fn manifest_bytes(&self, id: BackupId) -> Result<Bytes> {
        let read = self.store.read_whole(&id.object(), manifest::STORED_BYTES_MAX).await?;
        read.ok_or_else(|| Error::NoSuchBackup {
            location: self.store.location.clone(),
            asked: id.to_string(),
        })
    }

    /// Hands over what the manifests of these backups name, in this order, each with what came of it.
    /// Several are fetched at once, and as many are decoded as there are processors; no more than those
    /// are in memory.
    pub(crate) async fn each_summary(
        &self,
        listed: &[Listed],
        mut each: impl FnMut(BackupId, Result<Summary>) -> Result<()>,
    ) -> Result<()> {
        let ids: Vec<_> = listed.iter().map(|backup| backup.id).collect();
        let decoders = std::thread::available_parallelism().map_or(2, usize::from);
        let decoding = &Semaphore::new(decoders);
        let mut decoded = stream::iter(ids)
            .map(async |id| (id, self.manifest_bytes(id).await))
            .buffered(MANIFESTS_AT_ONCE)
            .map(async |(id, bytes)| {
                let sealer = self.sealer.clone();
                let decode = move || {
                    let manifest = Manifest::decode(id, &bytes?, &sealer)?;
                    Ok(Summary::of(manifest, &sealer))
                };
                let _one = decoding.acquire().await.expect("it is never closed");
                (id, blocking(decode).await)
            })
            // What is decoded waits for its turn.
            .buffered(2 * decoders);
        while let Some((id, summary)) = decoded.next().await {
            each(id, summary)?;
        }
        Ok(())
    }

    /// Runs requests to their end.
    pub(crate) fn run<T>(&self, requests: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.as_ref().expect("it is taken when this is dropped").block_on(requests)
    }
}

impl RepositoryOptions {
    fn apply_to(&self, store: &mut Store) {
        store.retry.attempts = self.attempts.unwrap_or(store.retry.attempts).max(1);
        store.lease_times = self.lease_times.unwrap_or(store.lease_times);
        if self.impatient {
            store.retry.longest_wait = Duration::ZERO;
            store.look_every = Duration::from_millis(1);
        }
    }
}

fn runtime() -> Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("esker-archive")
        .enable_all()
        .build();
    runtime.map_err(|source| Error::Io {
        operation: "start threads for",
        path: layout::REPOSITORY.into(),
        source: Arc::new(source),
    })
}

fn describe(bytes: &[u8]) -> Result<Description> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let wrong = |e: serde_json::Error| Error::corrupt(layout::REPOSITORY, e.to_string());
    // A newer format may have other fields.
    let Format { format } = serde_json::from_slice(bytes).map_err(wrong)?;
    if format != FORMAT_VERSION {
        let object = layout::REPOSITORY.to_owned();
        return Err(Error::UnsupportedFormat { object, found: format, supported: FORMAT_VERSION });
    }
    let described: Description = serde_json::from_slice(bytes).map_err(wrong)?;
    if layout::parse_hex(&described.id, 32).is_none() {
        return Err(Error::corrupt(layout::REPOSITORY, "its id is none"));
    }
    Ok(described)
}

fn check_key(location: &str, encryption: Option<&Encryption>, key: Option<&Key>) -> Result<()> {
    let refuse = |reason| Err(Error::Key { location: location.to_owned(), reason });
    match (encryption, key) {
        (None, None) => Ok(()),
        (None, Some(_)) => refuse("is not encrypted, and a key was given"),
        (Some(_), None) => refuse("is encrypted, and no key was given"),
        (Some(encryption), _) if encryption.cipher != SEALED => {
            refuse("is encrypted in a way that this build does not know")
        }
        (Some(encryption), Some(key)) if encryption.key_check == key.check() => Ok(()),
        (Some(_), Some(_)) => refuse("is encrypted with another key"),
    }
}

/// Milliseconds since 1970, by the local clock.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}
