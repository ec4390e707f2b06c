//! Restore: ranges of pieces are fetched by several workers at once, out of order, and written where
//! they belong. Nothing waits for order.
//!
//! What must stay true:
//! - Memory is bounded by one budget for all ([`download`]).
//! - Nothing is written outside of the unfinished directory, and nothing before the manifest was
//!   checked; that directory is ours, and whatever is in it that the backup has not is removed first,
//!   links before all ([`site`]); every frame is checked before it is unpacked, and every file, against
//!   the hash in the manifest, before the target appears ([`target`]). It appears by a rename, synced and
//!   whole, or not at all.
//! - What was interrupted goes on: the unfinished directory is named after target and backup, and a
//!   record in it says which ranges were written. A file that was resumed is believed only when its
//!   hash fits.

mod download;
mod local;
mod site;
mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use esker::ListedFile;
use serde::Serialize;

use self::download::{Download, needed_bytes};
use self::site::Site;
use crate::error::{Error, IoContext as _, Result};
use crate::layout::{BackupId, PIECE_BYTES};
use crate::lease::{Lease, Work};
use crate::manifest::{File as Entry, Manifest};
use crate::piece::FRAME_BYTES;
use crate::repository::Repository;
use crate::store::blocking;

const CHECKPOINT: &str = "CHECKPOINT";
/// One that comes, and one that is unpacked and written.
const CHUNKS_PER_WORKER: u64 = 2;
/// Where chunks are small, several come at a time, each with the frame that it is unpacked to.
const WORKER_BYTES_MIN: u64 = 16 << 20;
/// A worker has so many chunks of a backup at least, if that leaves them no smaller than this.
const CHUNKS_EACH_MIN: u64 = 8;
const SMALL_CHUNK_BYTES: u64 = 4 << 20;

/// How a backup is restored.
#[must_use]
pub struct RestoreOptions {
    download_workers: usize,
    chunk_bytes: u64,
    buffer_bytes_max: Option<u64>,
    partitions: Option<BTreeSet<String>>,
    delta: bool,
    progress: Box<dyn Fn(RestoreProgress) + Send + Sync>,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self {
            download_workers: std::thread::available_parallelism().map_or(2, usize::from),
            chunk_bytes: PIECE_BYTES,
            buffer_bytes_max: None,
            partitions: None,
            delta: false,
            progress: Box::new(|_| {}),
        }
    }
}

impl std::fmt::Debug for RestoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestoreOptions")
            .field("download_workers", &self.download_workers)
            .field("chunk_bytes", &self.chunk_bytes)
            .field("buffer_bytes_max", &self.buffer_bytes_max)
            .finish_non_exhaustive()
    }
}

impl RestoreOptions {
    /// Requests at the same time; default the number of processors, at least 1. More of them where one
    /// connection does not fill the line. Those for 4 MiB and less count half, those for 512 KiB and
    /// less a quarter, because they wait more than they bring.
    pub fn download_workers(mut self, workers: usize) -> Self {
        self.download_workers = workers.max(1);
        self
    }

    /// Raw bytes that one request brings, in whole MiB; default and at most 32 MiB. Down to 4 MiB where
    /// workers would have less than eight each.
    pub fn chunk_bytes(mut self, bytes: u64) -> Self {
        self.chunk_bytes = (bytes / FRAME_BYTES * FRAME_BYTES).clamp(FRAME_BYTES, PIECE_BYTES);
        self
    }

    /// Memory for what is fetched and not written yet; default two times `chunk_bytes` for each worker,
    /// at least 16 MiB. Where it is less, chunks are smaller, down to 1 MiB; one of these is fetched in
    /// any case, and takes 2 MiB.
    pub fn buffer_bytes_max(mut self, bytes: u64) -> Self {
        self.buffer_bytes_max = Some(bytes);
        self
    }

    /// Only these partitions; default all. What is restored is a keyspace without the others.
    pub fn partitions(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.partitions = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// The target is an existing directory, or a link to one, which the backup replaces; files in it that
    /// the backup has as well are taken from there and not fetched.
    pub fn delta(mut self, delta: bool) -> Self {
        self.delta = delta;
        self
    }

    /// Calls back again and again, from several threads.
    pub fn progress(mut self, callback: impl Fn(RestoreProgress) + Send + Sync + 'static) -> Self {
        self.progress = Box::new(callback);
        self
    }

    /// Raw bytes of a chunk, so that all of [`CHUNKS_PER_WORKER`] fit the budget.
    fn chunk(&self) -> u64 {
        let chunks = CHUNKS_PER_WORKER * self.download_workers as u64;
        let fits = self.buffer_bytes_max.map_or(u64::MAX, |max| max / chunks);
        self.chunk_bytes.min(fits / FRAME_BYTES * FRAME_BYTES).max(FRAME_BYTES)
    }

    /// The same for a backup of so many bytes: smaller where workers would have few each, because in the
    /// end some have one more than others, and these wait.
    fn chunk_of(&self, backup_bytes: u64) -> u64 {
        let mut chunk = self.chunk();
        let each = backup_bytes / self.download_workers as u64;
        while chunk > SMALL_CHUNK_BYTES && each / chunk < CHUNKS_EACH_MIN {
            chunk = (chunk / 2 / FRAME_BYTES * FRAME_BYTES).max(SMALL_CHUNK_BYTES);
        }
        chunk
    }

    fn buffer_bytes(&self) -> u64 {
        let each = (CHUNKS_PER_WORKER * self.chunk_bytes).max(WORKER_BYTES_MIN);
        let wanted = each * self.download_workers as u64;
        self.buffer_bytes_max.unwrap_or(wanted).max(needed_bytes(self.chunk()))
    }
}

/// How far a restore is.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct RestoreProgress {
    /// Raw bytes that are written, those of an interrupted attempt and of local files included.
    pub bytes_done: u64,
    /// Of so many.
    pub bytes_total: u64,
    /// Bytes that were fetched.
    pub bytes_fetched: u64,
}

/// What a restore did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RestoreReport {
    /// The backup.
    pub backup: String,
    /// The newest commit in it.
    pub seqno: u64,
    /// From the call to the return.
    pub total: Duration,
    /// Files, and their raw bytes.
    pub files: u64,
    /// The same in bytes.
    pub raw_bytes: u64,
    /// Bytes that were fetched.
    pub fetched_bytes: u64,
    /// Raw bytes that an interrupted attempt had written, and that were not fetched again.
    pub resumed_bytes: u64,
    /// Raw bytes that were taken from local files.
    pub reused_bytes: u64,
    /// The partitions.
    pub partitions: Vec<String>,
}

impl Repository {
    /// Restores a backup to the directory `target`, which must not exist (but see
    /// [`RestoreOptions::delta`]). It is a checkpoint: it opens, and `verify` reads it. Everything is
    /// synced when this returns. What fails leaves no target; what was fetched by then is found by the
    /// next attempt.
    ///
    /// # Errors
    ///
    /// [`Error::TargetExists`]; [`Error::Missing`] and [`Error::Corrupt`] with the object; when the
    /// store refuses or cannot be reached.
    pub fn restore(
        &self,
        backup: BackupId,
        target: impl AsRef<Path>,
        options: RestoreOptions,
    ) -> Result<RestoreReport> {
        let began = Instant::now();
        let target = &resolve(target.as_ref(), options.delta)?;
        check_target(target, options.delta)?;
        let report = self.run(async {
            let lease = Lease::take(&self.store, Work::Restore, &[backup]).await?;
            let restored = self.restore_leased(backup, target, &options).await;
            lease.release().await;
            restored
        })?;
        Ok(RestoreReport { total: began.elapsed(), ..report })
    }

    async fn restore_leased(
        &self,
        backup: BackupId,
        target: &Path,
        options: &RestoreOptions,
    ) -> Result<RestoreReport> {
        let manifest = select(self.manifest(backup).await?, options.partitions.as_ref())?;
        let site = Site::open(target, &manifest)?;
        let download = Download::new(self, &manifest, site, options)?;
        if options.delta {
            download.reuse(target)?;
        }
        download.run().await?;
        check_listing(&download.site.dir, &manifest).await?;
        let report = RestoreReport {
            backup: backup.to_string(),
            seqno: backup.seqno,
            total: Duration::ZERO,
            files: manifest.files.len() as u64,
            raw_bytes: manifest.raw_bytes(),
            fetched_bytes: download.fetched_bytes.load(Ordering::Relaxed),
            resumed_bytes: download.resumed_bytes.load(Ordering::Relaxed),
            reused_bytes: download.reused_bytes.load(Ordering::Relaxed),
            partitions: manifest.partitions.clone(),
        };
        let (target, delta) = (target.to_owned(), options.delta);
        let kept = options.partitions.clone();
        let site = download.site;
        blocking(move || site.publish(&target, kept, delta)).await?;
        Ok(report)
    }
}

/// The files that belong to these partitions, and those that belong to all.
fn select(mut manifest: Manifest, wanted: Option<&BTreeSet<String>>) -> Result<Manifest> {
    let Some(wanted) = wanted else { return Ok(manifest) };
    if let Some(missing) = wanted.iter().find(|name| !manifest.partitions.contains(name)) {
        return Err(esker::Error::NoSuchPartition { name: missing.clone() }.into());
    }
    let of_others =
        |file: &Entry| file.partition.as_ref().is_some_and(|name| !wanted.contains(name));
    let dropped: BTreeSet<String> = manifest
        .files
        .iter()
        .filter(|file| of_others(file))
        .filter_map(|file| Some(file.path.rsplit_once('/')?.0.to_owned()))
        .collect();
    let in_dropped = |dir: &str| dropped.iter().any(|tree| dir.starts_with(&format!("{tree}/")));
    manifest.directories.retain(|dir| !dropped.contains(dir) && !in_dropped(dir));
    manifest.files.retain(|file| !of_others(file));
    manifest.partitions.retain(|name| wanted.contains(name));
    Ok(manifest)
}

/// A delta replaces the directory, not a link that leads to it.
fn resolve(target: &Path, delta: bool) -> Result<PathBuf> {
    let leads = fs::symlink_metadata(target).is_ok_and(|found| found.is_symlink());
    if delta && leads { fs::canonicalize(target).at("resolve", target) } else { Ok(target.into()) }
}

fn check_target(target: &Path, delta: bool) -> Result<()> {
    let there = fs::symlink_metadata(target).is_ok();
    if there && !delta {
        return Err(Error::TargetExists { path: target.to_owned() });
    }
    if delta && !target.is_dir() {
        let what =
            format!("{} is no directory: a delta goes into an existing one", target.display());
        return Err(Error::InvalidInput(what));
    }
    if target.file_name().is_none() {
        return Err(Error::InvalidInput(format!("{} has no name", target.display())));
    }
    if delta {
        // Who has it open is told before anything is fetched. Not kept: it may be read until it goes.
        drop(site::lock_old(target)?);
    }
    Ok(())
}

/// What was restored must be the checkpoint that the manifest says: whoever wrote that may have listed
/// other files, or those of another backup.
async fn check_listing(dir: &Path, manifest: &Manifest) -> Result<()> {
    let object = manifest.id.object().to_string();
    let of = dir.to_owned();
    let listing = match blocking(move || esker::read_listing(of)).await {
        Err(error) if error.kind() == esker::ErrorKind::Corrupt => {
            return Err(Error::corrupt(object, format!("it is of no checkpoint: {error}")));
        }
        listing => listing?,
    };
    let wrong = |what: &str| Err(Error::corrupt(&object, what));
    let id = manifest.id;
    let heads = [
        (listing.uuid, listing.timeline, listing.seqno, listing.created_ms),
        (id.uuid, id.timeline, id.seqno, manifest.created_ms),
    ];
    if heads[0] != heads[1] {
        return wrong("its CHECKPOINT is of another backup");
    }
    // Some of them may not have been asked for.
    let is_wanted = |name: &String| manifest.partitions.binary_search(name).is_ok();
    if listing.partitions.iter().filter(|name| is_wanted(name)).ne(&manifest.partitions) {
        return wrong("its CHECKPOINT has other partitions");
    }
    let is_of_wanted = |file: &&ListedFile| file.partition.as_ref().is_none_or(is_wanted);
    let listed: BTreeMap<_, _> =
        listing.files.iter().filter(is_of_wanted).map(|file| (file.path.as_str(), file)).collect();
    let as_listed = |file: &Entry| {
        listed.get(file.path.as_str()).is_some_and(|listed| {
            listed.bytes == file.bytes
                && listed.xxh3.is_none_or(|xxh3| xxh3 == file.xxh3)
                && listed.partition == file.partition
        })
    };
    let others = || manifest.files.iter().filter(|file| file.path != CHECKPOINT);
    if others().count() != listed.len() || !others().all(as_listed) {
        return wrong("its CHECKPOINT lists other files");
    }
    Ok(())
}
