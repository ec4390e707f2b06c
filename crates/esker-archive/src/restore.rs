//! Restore: ranges of pieces are fetched by several workers at once, out of order, and written where
//! they belong. Nothing waits for order.
//!
//! What must stay true:
//! - Memory is bounded by one budget for all: whoever fetches has taken the bytes of what comes and of
//!   what it unpacks to before.
//! - Nothing is written outside of the unfinished directory, and nothing before the manifest was
//!   checked; that directory is ours, and whatever is in it that the backup has not is removed first,
//!   links before all; every frame is checked before it is unpacked, and every file, against the hash in the
//!   manifest, before the target appears. It appears by a rename, synced and whole, or not at all.
//! - What was interrupted goes on: the unfinished directory is named after target and backup, and a
//!   record in it says which ranges were written. A file that was resumed is believed only when its
//!   hash fits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use esker::ListedFile;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{OnceCell, Semaphore};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::error::{Error, IoContext as _, Result};
use crate::layout::{BackupId, FileId, PIECE_BYTES};
use crate::lease::{Lease, Work};
use crate::limit::Lines;
use crate::manifest::{Content, File as Entry, Manifest};
use crate::piece::{self, FRAME_BYTES, Place, Table};
use crate::repository::Repository;
use crate::store::blocking;

/// What a restore was at when it was interrupted; in the unfinished directory.
const RECORD: &str = ".esker-restore";
const RECORD_BYTES: usize = 12;
const CHECKPOINT: &str = "CHECKPOINT";
const MODE_DIR: u32 = 0o700;
const MODE_FILE: u32 = 0o600;

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

    /// Raw bytes that one request brings, in whole MiB; default and at most 32 MiB.
    pub fn chunk_bytes(mut self, bytes: u64) -> Self {
        self.chunk_bytes = (bytes / FRAME_BYTES * FRAME_BYTES).clamp(FRAME_BYTES, PIECE_BYTES);
        self
    }

    /// Memory for what is fetched and not written yet; default three times `chunk_bytes` for each
    /// worker. Where it is less than that, chunks are smaller, down to 1 MiB, of which two fit at
    /// least.
    pub fn buffer_bytes_max(mut self, bytes: u64) -> Self {
        self.buffer_bytes_max = Some(bytes);
        self
    }

    /// Only these partitions; default all. What is restored is a keyspace without the others.
    pub fn partitions(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.partitions = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// The target is an existing directory, which the backup replaces; files in it that the backup has
    /// as well are taken from there and not fetched.
    pub fn delta(mut self, delta: bool) -> Self {
        self.delta = delta;
        self
    }

    /// Calls back again and again, from several threads.
    pub fn progress(mut self, callback: impl Fn(RestoreProgress) + Send + Sync + 'static) -> Self {
        self.progress = Box::new(callback);
        self
    }

    /// Raw bytes of a chunk, so that every worker has one and a half: one that comes, and one that is
    /// unpacked or written.
    fn chunk(&self) -> u64 {
        let fits = self.buffer_bytes_max.map_or(u64::MAX, |max| max / 3);
        let fits = fits / self.download_workers as u64 / FRAME_BYTES * FRAME_BYTES;
        self.chunk_bytes.min(fits).max(FRAME_BYTES)
    }

    fn buffer_bytes(&self) -> u64 {
        let wanted = 3 * self.chunk_bytes * self.download_workers as u64;
        self.buffer_bytes_max.unwrap_or(wanted).max(needed_bytes(self.chunk()))
    }
}

/// What a chunk of so many raw bytes takes in memory at most, as it comes and unpacked.
fn needed_bytes(raw_bytes: u64) -> u64 {
    raw_bytes + piece::stored_bytes_max(raw_bytes)
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
    /// Raw bytes that an interrupted attempt had written.
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
        let target = target.as_ref();
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
            resumed_bytes: download.resumed_bytes,
            reused_bytes: download.reused_bytes.load(Ordering::Relaxed),
            partitions: manifest.partitions.clone(),
        };
        let (target, delta) = (target.to_owned(), options.delta);
        let kept = options.partitions.clone();
        let site = download.site;
        blocking(move || publish(&site, &target, kept, delta)).await?;
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
    Ok(())
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."))
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

/// The unfinished directory and the record of what is in it.
struct Site {
    dir: PathBuf,
    /// Of the directory, which keeps it when it gets its name: nobody else works in it until it has.
    _lock: File,
    record: Mutex<File>,
    /// Chunks that an interrupted attempt wrote: file, piece, first frame.
    written: BTreeSet<(u32, u32, u32)>,
}

impl Site {
    /// Creates the directory, or finds that of an interrupted attempt.
    fn open(target: &Path, manifest: &Manifest) -> Result<Self> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let id = manifest.id;
        // Another set of partitions is another restore.
        let parts = xxh3_128(manifest.partitions.join("\0").as_bytes()) as u32;
        let name = format!(".{name}.esker-restore-{:016x}-{:x}-{parts:08x}", id.tag, id.seqno);
        let dir = parent(target).join(name);
        let lock = own(&dir)?;
        let expected = Expected::of(manifest);
        sweep(&dir, "", &expected)?;
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(MODE_DIR);
        for sub in expected.directories {
            builder.create(dir.join(sub)).at("create", &dir)?;
        }
        let path = dir.join(RECORD);
        let mut options = fs::OpenOptions::new();
        options.read(true).append(true).create(true).mode(MODE_FILE);
        let mut record = no_follow(&mut options).open(&path).at("open", &path)?;
        let mut bytes = Vec::new();
        record.read_to_end(&mut bytes).at("read", &path)?;
        let number = |chunk: &[u8], at: usize| {
            u32::from_le_bytes(chunk[at..at + 4].try_into().expect("four bytes"))
        };
        let written = bytes
            .chunks_exact(RECORD_BYTES)
            .map(|chunk| (number(chunk, 0), number(chunk, 4), number(chunk, 8)))
            .collect();
        Ok(Self { dir, _lock: lock, record: Mutex::new(record), written })
    }

    /// Takes note of a chunk that was written.
    fn note(&self, task: &Task) -> Result<()> {
        let mut entry = [0; RECORD_BYTES];
        for (at, number) in [task.file, task.piece, task.first_frame].into_iter().enumerate() {
            entry[4 * at..4 * at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let written = self.record.lock().write_all(&entry);
        written.at("write", &self.dir.join(RECORD))
    }
}

/// Creates the unfinished directory or finds it; locked, and nobody's but ours.
fn own(dir: &Path) -> Result<File> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(MODE_DIR);
    builder.create(parent(dir)).at("create", dir)?;
    match builder.recursive(false).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        created => created.at("create", dir)?,
    }
    let foreign = |what: &str| {
        let dir = dir.display();
        Error::InvalidInput(format!("{dir} {what}; it is in the way of a restore: remove it"))
    };
    let mut options = fs::OpenOptions::new();
    options.read(true);
    // Not even opened, if it is a pipe.
    let there = fs::symlink_metadata(dir).at("inspect", dir)?;
    if !there.is_dir() {
        return Err(foreign("is no directory"));
    }
    let lock = no_follow(&mut options).open(dir).at("open", dir)?;
    let found = lock.metadata().at("inspect", dir)?;
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(foreign("belongs to somebody else, or others may write to it"));
    }
    lock_as_named(lock, dir)
}

/// The lock of a directory that still has this name.
fn lock_as_named(open: File, dir: &Path) -> Result<File> {
    let busy = || Error::Busy {
        what: dir.display().to_string(),
        by: "another restore of this backup to this target is at work".to_owned(),
    };
    match rustix::fs::flock(&open, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(busy()),
        locked => locked.at("lock", dir)?,
    }
    // Whoever had it may just have given it its name.
    let found = open.metadata().at("inspect", dir)?;
    let now = fs::symlink_metadata(dir).map_err(|_| busy())?;
    if (now.dev(), now.ino()) != (found.dev(), found.ino()) {
        return Err(busy());
    }
    Ok(open)
}

/// What may be in the unfinished directory, by its path in it.
struct Expected {
    directories: BTreeSet<String>,
    files: BTreeSet<String>,
}

impl Expected {
    fn of(manifest: &Manifest) -> Self {
        let mut directories = BTreeSet::from(["journal".to_owned(), "partitions".to_owned()]);
        let mut files = BTreeSet::from([RECORD.to_owned()]);
        let paths = manifest.files.iter().map(|file| &file.path);
        for path in paths.chain(&manifest.directories) {
            let mut above = path.as_str();
            while let Some((directory, _)) = above.rsplit_once('/') {
                directories.insert(directory.to_owned());
                above = directory;
            }
        }
        directories.extend(manifest.directories.iter().cloned());
        files.extend(manifest.files.iter().map(|file| file.path.clone()));
        Self { directories, files }
    }
}

/// Removes everything that an interrupted attempt could not have left, or that is somebody else's as
/// well: an interrupted delta has links to files of the old target, which are not ours to write.
fn sweep(dir: &Path, below: &str, expected: &Expected) -> Result<()> {
    for entry in fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        let path = entry.path();
        let found = fs::symlink_metadata(&path).at("inspect", &path)?;
        let name = entry.file_name().to_str().map(|name| format!("{below}{name}"));
        let is_in = |set: &BTreeSet<String>| name.as_ref().is_some_and(|name| set.contains(name));
        if found.is_dir() && is_in(&expected.directories) {
            sweep(&path, &format!("{}/", name.unwrap_or_default()), expected)?;
        } else if found.is_dir() {
            fs::remove_dir_all(&path).at("remove", &path)?;
        } else if !found.is_file() || found.nlink() > 1 || !is_in(&expected.files) {
            fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

fn no_follow(options: &mut fs::OpenOptions) -> &mut fs::OpenOptions {
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
}

/// Some frames of a piece of a file.
#[derive(Copy, Clone, Debug)]
struct Task {
    /// Its place in the manifest.
    file: u32,
    piece: u32,
    first_frame: u32,
    end_frame: u32,
}

/// A file that is being written.
struct Target {
    id: FileId,
    path: PathBuf,
    /// Open while some of it is under way: a backup has more files than a process may open.
    file: Mutex<Option<Arc<File>>>,
    /// Chunks that are missing.
    missing: AtomicU64,
    /// Whether an interrupted attempt wrote some of it.
    resumed: bool,
}

impl Target {
    fn open(&self) -> Result<Arc<File>> {
        let mut file = self.file.lock();
        if let Some(open) = &*file {
            return Ok(Arc::clone(open));
        }
        let mut options = fs::OpenOptions::new();
        let opened = no_follow(options.read(true).write(true)).open(&self.path);
        let opened = Arc::new(opened.at("open", &self.path)?);
        *file = Some(Arc::clone(&opened));
        Ok(opened)
    }
}

/// A file with missing chunks, by its number, and whether all of it comes again.
type Queued = (u32, bool);

/// Pieces that are fetched in several ranges share the table that says where they are.
type Tables = HashMap<(u32, u32), Arc<OnceCell<Table>>>;

struct Download<'a> {
    repository: &'a Repository,
    manifest: &'a Manifest,
    options: &'a RestoreOptions,
    site: Site,
    targets: Mutex<BTreeMap<u32, Arc<Target>>>,
    queue: Mutex<Vec<Queued>>,
    /// Of the files under way.
    tables: Mutex<Tables>,
    /// In KiB of the budget.
    room: Semaphore,
    lines: Lines,
    bytes_total: u64,
    bytes_done: AtomicU64,
    fetched_bytes: AtomicU64,
    reused_bytes: AtomicU64,
    resumed_bytes: u64,
}

impl<'a> Download<'a> {
    fn new(
        repository: &'a Repository,
        manifest: &'a Manifest,
        site: Site,
        options: &'a RestoreOptions,
    ) -> Result<Self> {
        let mut this = Self {
            repository,
            manifest,
            options,
            site,
            targets: Mutex::default(),
            queue: Mutex::default(),
            tables: Mutex::default(),
            room: Semaphore::new(options.buffer_bytes().div_ceil(1024) as usize),
            lines: Lines::new(options.download_workers),
            bytes_total: manifest.raw_bytes(),
            bytes_done: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(0),
            reused_bytes: AtomicU64::new(0),
            resumed_bytes: 0,
        };
        for (number, file) in (0..).zip(&manifest.files) {
            match &file.content {
                Content::Inline(bytes) => this.write_small(file, bytes)?,
                Content::Pieces(_) => this.plan(number, file)?,
            }
        }
        Ok(this)
    }

    fn write_small(&self, entry: &Entry, bytes: &[u8]) -> Result<()> {
        let path = self.site.dir.join(&entry.path);
        let file = create(&path)?;
        file.set_len(0).at("write", &path)?;
        file.write_all_at(bytes, 0).at("write", &path)?;
        self.bytes_done.fetch_add(entry.bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Counts the chunks of a file that are missing.
    fn plan(&mut self, number: u32, entry: &Entry) -> Result<()> {
        let path = self.site.dir.join(&entry.path);
        create(&path)?.set_len(entry.bytes).at("write", &path)?;
        let id = self.repository.sealer.name(entry.xxh3, entry.bytes);
        let (mut missing, mut resumed_bytes) = (0, 0);
        for task in self.chunks(number, id) {
            if self.is_written(&task) { resumed_bytes += task.raw_bytes(id) } else { missing += 1 }
        }
        self.resumed_bytes += resumed_bytes;
        self.bytes_done.fetch_add(resumed_bytes, Ordering::Relaxed);
        let (missing, resumed) = (AtomicU64::new(missing), resumed_bytes > 0);
        let target = Target { id, path, file: Mutex::default(), missing, resumed };
        self.targets.lock().insert(number, Arc::new(target));
        self.queue.lock().push((number, false));
        Ok(())
    }

    /// Every chunk of a file. They are never listed: a manifest of a few KiB can claim millions.
    fn chunks(&self, number: u32, id: FileId) -> impl Iterator<Item = Task> + use<> {
        let step = (self.options.chunk() / FRAME_BYTES) as u32;
        (0..id.pieces() as u32).flat_map(move |piece| {
            let frames = piece::frames(id.piece_bytes(piece)) as u32;
            (0..frames).step_by(step as usize).map(move |first_frame| {
                let end_frame = (first_frame + step).min(frames);
                Task { file: number, piece, first_frame, end_frame }
            })
        })
    }

    /// Frame by frame: an earlier attempt may have taken other steps.
    fn is_written(&self, task: &Task) -> bool {
        let Task { file, piece, first_frame, end_frame } = *task;
        (first_frame..end_frame).all(|frame| self.site.written.contains(&(file, piece, frame)))
    }

    /// What is to be fetched of a file, unless it has been found elsewhere.
    fn missing(&self, (number, anew): Queued) -> impl Iterator<Item = Task> + '_ {
        let id = self.targets.lock().get(&number).map(|target| target.id);
        let chunks = id.map(|id| self.chunks(number, id)).into_iter().flatten();
        chunks.filter(move |task| anew || !self.is_written(task))
    }

    /// Fetches everything that is missing and checks every file.
    async fn run(&self) -> Result<()> {
        self.report();
        let whole: Vec<_> = {
            let targets = self.targets.lock();
            let complete = targets.iter().filter(|(_, t)| t.missing.load(Ordering::Relaxed) == 0);
            complete.map(|(number, target)| (*number, Arc::clone(target))).collect()
        };
        for (number, target) in whole {
            self.finish(number, &target).await?;
        }
        // A file whose resumed part was wrong comes again, from the beginning.
        loop {
            let queue = std::mem::take(&mut *self.queue.lock());
            if queue.is_empty() {
                return Ok(());
            }
            let tasks = queue.into_iter().flat_map(|queued| self.missing(queued));
            // Some wait for room, some for their answers, some are unpacked and written.
            let ahead = 2 * Lines::requests_max(self.options.download_workers);
            let fetched = stream::iter(tasks).map(|task| self.fetch(task)).buffer_unordered(ahead);
            fetched.try_collect::<()>().await?;
        }
    }

    async fn fetch(&self, task: Task) -> Result<()> {
        let target = Arc::clone(&self.targets.lock()[&task.file]);
        let needed = needed_bytes(task.raw_bytes(target.id)).div_ceil(1024) as u32;
        let room = self.room.acquire_many(needed).await.expect("it is never closed");
        let raw = self.fetch_frames(task, target.id).await?;
        let offset =
            u64::from(task.piece) * PIECE_BYTES + u64::from(task.first_frame) * FRAME_BYTES;
        let bytes = raw.len() as u64;
        let file = target.open()?;
        let written = blocking(move || file.write_all_at(&raw, offset)).await;
        written.at("write", &target.path)?;
        drop(room);
        for frame in task.first_frame..task.end_frame {
            self.site.note(&Task { first_frame: frame, ..task })?;
        }
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        self.report();
        if target.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish(task.file, &target).await?;
        }
        Ok(())
    }

    async fn fetch_frames(&self, task: Task, id: FileId) -> Result<Vec<u8>> {
        let place = Place { file: id, piece: task.piece };
        let sealer = self.repository.sealer.clone();
        let is_whole = task.raw_bytes(id) == id.piece_bytes(task.piece);
        if is_whole {
            let object = self.read(place, task, None).await?;
            return blocking(move || piece::decode(place, &object, &sealer)).await;
        }
        let table = Arc::clone(self.tables.lock().entry((task.file, task.piece)).or_default());
        let table = table.get_or_try_init(|| self.fetch_table(place, task)).await?.clone();
        let (first, end) = (task.first_frame as usize, task.end_frame as usize);
        let stored = self.read(place, task, Some(table.range(first, end))).await?;
        blocking(move || table.open(first, end, &stored, &sealer)).await
    }

    async fn fetch_table(&self, place: Place, task: Task) -> Result<Table> {
        let length = self.stored_bytes(task);
        let tail = piece::tail_bytes(place.file.piece_bytes(place.piece));
        let bytes = self.read(place, task, Some(length - tail..length)).await?;
        Table::parse(place, &bytes, length, &self.repository.sealer)
    }

    /// What the manifest says of the piece's object.
    fn stored_bytes(&self, task: Task) -> u64 {
        match &self.manifest.files[task.file as usize].content {
            Content::Pieces(pieces) => pieces[task.piece as usize],
            Content::Inline(_) => 0,
        }
    }

    async fn read(
        &self,
        place: Place,
        task: Task,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<bytes::Bytes> {
        let object = place.file.object(place.piece);
        let length = self.stored_bytes(task);
        // Never more than was declared, whatever lies there.
        let range = range.unwrap_or(0..length);
        let _line = self.lines.enter(range.end - range.start).await;
        let read = self.repository.store.read(&object, range).await?;
        let bytes = read.ok_or_else(|| Error::Missing {
            object: object.to_string(),
            needed_by: self.manifest.id.to_string(),
        })?;
        self.fetched_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    /// All chunks of a file are written: it must be what the manifest says.
    async fn finish(&self, number: u32, target: &Arc<Target>) -> Result<()> {
        let xxh3 = self.manifest.files[number as usize].xxh3;
        let file = target.open()?;
        let found = blocking(move || hash(&file)).await.at("read", &target.path)?;
        let tables = 0..target.id.pieces() as u32;
        tables.for_each(|piece| _ = self.tables.lock().remove(&(number, piece)));
        if found == xxh3 {
            self.targets.lock().remove(&number);
            return Ok(());
        }
        if !target.resumed {
            let object = target.id.object(0).to_string();
            return Err(Error::corrupt(
                object,
                "its frames do not make up the file they belong to",
            ));
        }
        tracing::warn!(path = %target.path.display(), "what an interrupted restore wrote is wrong");
        self.plan_anew(number, target)
    }

    fn plan_anew(&self, number: u32, target: &Target) -> Result<()> {
        let renewed = Target {
            id: target.id,
            path: target.path.clone(),
            file: Mutex::default(),
            missing: AtomicU64::new(self.chunks(number, target.id).count() as u64),
            resumed: false,
        };
        self.bytes_done.fetch_sub(target.id.bytes, Ordering::Relaxed);
        self.targets.lock().insert(number, Arc::new(renewed));
        self.queue.lock().push((number, true));
        Ok(())
    }

    fn report(&self) {
        (self.options.progress)(RestoreProgress {
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
            bytes_total: self.bytes_total,
            bytes_fetched: self.fetched_bytes.load(Ordering::Relaxed),
        });
    }

    /// Takes what the backup has in common with the directory `local` from there, by content: links
    /// where that is possible, copies elsewhere.
    fn reuse(&self, local: &Path) -> Result<()> {
        let mut wanted: HashMap<u64, Vec<u32>> = HashMap::new();
        for (number, target) in self.targets.lock().iter() {
            wanted.entry(target.id.bytes).or_default().push(*number);
        }
        for path in local_files(local)? {
            let bytes = fs::metadata(&path).at("inspect", &path)?.len();
            let Some(numbers) = wanted.get(&bytes) else { continue };
            let file = File::open(&path).at("open", &path)?;
            let found = hash(&file).at("read", &path)?;
            for &number in numbers {
                if self.manifest.files[number as usize].xxh3 == found {
                    self.take_local(number, &path)?;
                }
            }
        }
        Ok(())
    }

    fn take_local(&self, number: u32, local: &Path) -> Result<()> {
        let Some(target) = self.targets.lock().remove(&number) else { return Ok(()) };
        fs::remove_file(&target.path).at("replace", &target.path)?;
        if fs::hard_link(local, &target.path).is_err() {
            fs::copy(local, &target.path).at("copy", local)?;
        }
        self.reused_bytes.fetch_add(target.id.bytes, Ordering::Relaxed);
        self.bytes_done.fetch_add(target.id.bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Task {
    fn raw_bytes(self, id: FileId) -> u64 {
        let end = (u64::from(self.end_frame) * FRAME_BYTES).min(id.piece_bytes(self.piece));
        end - u64::from(self.first_frame) * FRAME_BYTES
    }
}

/// Tables and blob files, which nobody ever changes.
fn local_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let partitions = dir.join("partitions");
    let Ok(trees) = fs::read_dir(&partitions) else { return Ok(found) };
    for tree in trees {
        let tree = tree.at("list", &partitions)?.path();
        for sub in ["tables", "blobs"].map(|sub| tree.join(sub)) {
            let Ok(entries) = fs::read_dir(&sub) else { continue };
            for entry in entries {
                let entry = entry.at("list", &sub)?;
                if entry.file_type().at("list", &sub)?.is_file() {
                    found.push(entry.path());
                }
            }
        }
    }
    Ok(found)
}

fn create(path: &Path) -> Result<File> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(MODE_FILE);
    no_follow(&mut options).open(path).at("create", path)
}

fn hash(file: &File) -> io::Result<u128> {
    let (mut hash, mut buffer, mut offset) = (Xxh3::new(), vec![0; 1 << 20], 0);
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(hash.digest128()),
            Ok(read) => {
                hash.update(&buffer[..read]);
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Makes everything durable and gives it its name.
fn publish(site: &Site, target: &Path, kept: Option<BTreeSet<String>>, delta: bool) -> Result<()> {
    let dir = &site.dir;
    // It will have the name of the unfinished directory, where others would go on.
    let is_directory = fs::symlink_metadata(target).is_ok_and(|found| found.is_dir());
    let old = (delta && is_directory).then(|| File::open(target).at("open", target)).transpose()?;
    let _old = old.map(|old| lock_as_named(old, target)).transpose()?;
    if let Some(names) = kept {
        esker::keep_partitions(dir, names)?;
    }
    let record = dir.join(RECORD);
    fs::remove_file(&record).at("remove", &record)?;
    sync_all(dir)?;
    let flags =
        if delta { rustix::fs::RenameFlags::EXCHANGE } else { rustix::fs::RenameFlags::NOREPLACE };
    let here = rustix::fs::CWD;
    match rustix::fs::renameat_with(here, dir, here, target, flags) {
        Err(rustix::io::Errno::EXIST) => {
            return Err(Error::TargetExists { path: target.to_owned() });
        }
        renamed => renamed.at("rename to", target)?,
    }
    File::open(parent(target)).and_then(|dir| dir.sync_all()).at("sync", parent(target))?;
    if delta {
        // What was there before has the other name now.
        fs::remove_dir_all(dir).at("remove", dir)?;
    }
    Ok(())
}

fn sync_all(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        let path = entry.path();
        if entry.file_type().at("list", &path)?.is_dir() {
            sync_all(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).at("sync", &path)?;
        }
    }
    File::open(dir).and_then(|dir| dir.sync_all()).at("sync", dir)
}
