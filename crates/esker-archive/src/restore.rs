//! Restore: ranges of pieces are fetched by several workers at once, out of order, and written where
//! they belong. Nothing waits for order.
//!
//! What must stay true:
//! - Memory is bounded by one budget for all: whoever fetches has taken the bytes of what comes and of
//!   what it unpacks to before.
//! - Nothing is written outside of the unfinished directory, and nothing before the manifest was
//!   checked; every frame is checked before it is unpacked, and every file, against the hash in the
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
        let dir = download.site.dir;
        blocking(move || publish(&dir, &target, kept, delta)).await?;
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

/// The unfinished directory and the record of what is in it.
struct Site {
    dir: PathBuf,
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
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(MODE_DIR);
        builder.create(&dir).at("create", &dir)?;
        for sub in ["journal", "partitions"] {
            builder.create(dir.join(sub)).at("create", &dir)?;
        }
        for sub in &manifest.directories {
            builder.create(dir.join(sub)).at("create", &dir)?;
        }
        for file in &manifest.files {
            let path = dir.join(&file.path);
            builder.create(parent(&path)).at("create", &path)?;
        }
        let path = dir.join(RECORD);
        let mut options = fs::OpenOptions::new();
        options.read(true).append(true).create(true).mode(MODE_FILE);
        let mut record = options.open(&path).at("open", &path)?;
        let mut bytes = Vec::new();
        match rustix::fs::flock(&record, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let by = "another restore of this backup to this target is at work".to_owned();
                return Err(Error::Busy { what: dir.display().to_string(), by });
            }
            locked => locked.at("lock", &path)?,
        }
        record.read_to_end(&mut bytes).at("read", &path)?;
        let number = |chunk: &[u8], at: usize| {
            u32::from_le_bytes(chunk[at..at + 4].try_into().expect("four bytes"))
        };
        let written = bytes
            .chunks_exact(RECORD_BYTES)
            .map(|chunk| (number(chunk, 0), number(chunk, 4), number(chunk, 8)))
            .collect();
        Ok(Self { dir, record: Mutex::new(record), written })
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
    file: File,
    /// Chunks that are missing.
    missing: AtomicU64,
    /// Whether an interrupted attempt wrote some of it.
    resumed: bool,
}

/// A piece that is fetched in several ranges shares the table that says where they are.
type Tables = HashMap<(u32, u32), OnceCell<Table>>;

struct Download<'a> {
    repository: &'a Repository,
    manifest: &'a Manifest,
    options: &'a RestoreOptions,
    site: Site,
    targets: Mutex<BTreeMap<u32, Arc<Target>>>,
    tasks: Mutex<Vec<Task>>,
    tables: Tables,
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
            tasks: Mutex::default(),
            tables: Tables::new(),
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

    /// The chunks of a file that are missing.
    fn plan(&mut self, number: u32, entry: &Entry) -> Result<()> {
        let path = self.site.dir.join(&entry.path);
        let file = create(&path)?;
        file.set_len(entry.bytes).at("write", &path)?;
        let id = self.repository.sealer.name(entry.xxh3, entry.bytes);
        let step = (self.options.chunk() / FRAME_BYTES) as u32;
        let mut tasks = Vec::new();
        let mut resumed = false;
        for piece in 0..id.pieces() as u32 {
            let frames = piece::frames(id.piece_bytes(piece)) as u32;
            for first_frame in (0..frames).step_by(step as usize) {
                let end_frame = (first_frame + step).min(frames);
                let task = Task { file: number, piece, first_frame, end_frame };
                // Frame by frame: an earlier attempt may have taken other steps.
                let done = (first_frame..end_frame)
                    .all(|frame| self.site.written.contains(&(number, piece, frame)));
                if done {
                    resumed = true;
                    let bytes = task.raw_bytes(id);
                    self.resumed_bytes += bytes;
                    self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
                } else {
                    tasks.push(task);
                }
            }
            if frames > step {
                self.tables.insert((number, piece), OnceCell::new());
            }
        }
        let missing = AtomicU64::new(tasks.len() as u64);
        let target = Target { id, path, file, missing, resumed };
        self.targets.lock().insert(number, Arc::new(target));
        self.tasks.lock().extend(tasks);
        Ok(())
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
            let tasks = std::mem::take(&mut *self.tasks.lock());
            if tasks.is_empty() {
                return Ok(());
            }
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
        let place = Arc::clone(&target);
        let written = blocking(move || place.file.write_all_at(&raw, offset)).await;
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
        let Some(table) = self.tables.get(&(task.file, task.piece)) else {
            let object = self.read(place, task, None).await?;
            return blocking(move || piece::decode(place, &object, &sealer)).await;
        };
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
        let read = self.repository.store.read(&object, Some(range)).await?;
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
        let hashing = Arc::clone(target);
        let found = blocking(move || hash(&hashing.file)).await.at("read", &target.path)?;
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
        let tasks = self.chunks(number, target.id);
        let renewed = Target {
            id: target.id,
            path: target.path.clone(),
            file: target.file.try_clone().at("open", &target.path)?,
            missing: AtomicU64::new(tasks.len() as u64),
            resumed: false,
        };
        self.bytes_done.fetch_sub(target.id.bytes, Ordering::Relaxed);
        self.targets.lock().insert(number, Arc::new(renewed));
        self.tasks.lock().extend(tasks);
        Ok(())
    }

    /// Every chunk of a file.
    fn chunks(&self, number: u32, id: FileId) -> Vec<Task> {
        let step = (self.options.chunk() / FRAME_BYTES) as u32;
        let mut tasks = Vec::new();
        for piece in 0..id.pieces() as u32 {
            let frames = piece::frames(id.piece_bytes(piece)) as u32;
            for first_frame in (0..frames).step_by(step as usize) {
                let end_frame = (first_frame + step).min(frames);
                tasks.push(Task { file: number, piece, first_frame, end_frame });
            }
        }
        tasks
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
        self.tasks.lock().retain(|task| task.file != number);
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
    // An interrupted delta may have left a link to a file of the old target, which is not ours to write.
    if fs::symlink_metadata(path).is_ok_and(|found| found.nlink() > 1) {
        fs::remove_file(path).at("replace", path)?;
    }
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(MODE_FILE);
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(path).at("create", path)
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
fn publish(dir: &Path, target: &Path, kept: Option<BTreeSet<String>>, delta: bool) -> Result<()> {
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
