//! Push: a checkpoint into the repository, of which only what is new travels.
//!
//! What must stay true: the manifest is written last, when every piece that it names was written and
//! confirmed, or is named by another manifest that the push's lease keeps; a file of the source whose
//! bytes are not what its hash says ends the push before any of it is sent; memory is bounded by the pieces
//! in flight, whatever the size of files.
//!
//! Which pieces are there is known from the newest manifest of the same keyspace; of the others the
//! store is asked by name. What an interrupted push has written is found that way and not sent again.
//! A piece that is so old that a prune may be about to remove it is read, proved and written again as it
//! is, when no prune that began before this push is at work: one that begins later waits for the push.
//! What is there is never replaced by other bytes, because a manifest names the length of each piece.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker::{Keyspace, Listing};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use tokio::sync::{OnceCell, Semaphore};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::buffers::{Buffer, Buffers};
use crate::error::{Error, IoContext as _, Result};
use crate::layout::{BackupId, FileId, PIECE_BYTES, PIECES_MAX, check_path, is_table, parse_hex};
use crate::lease::{self, Lease, Leases, Work};
use crate::limit::{Lines, Rate};
use crate::manifest::{Content, File as Entry, INLINE_BYTES_MAX, Manifest};
use crate::piece::{self, Place};
use crate::repository::Repository;
use crate::store::blocking;

/// Pieces that no manifest names go when they are this old. One of half that age that is found is
/// written again.
pub(crate) const GRACE: Duration = Duration::from_secs(24 * 60 * 60);
const CHECKPOINT: &str = "CHECKPOINT";

/// How a backup is pushed.
#[must_use]
pub struct PushOptions {
    label: Option<String>,
    include: Vec<String>,
    exclude: Vec<String>,
    workers: usize,
    bytes_per_second: Option<u64>,
    level: i32,
    staging: Option<PathBuf>,
    progress: Box<dyn Fn(PushProgress) + Send + Sync>,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self {
            label: None,
            include: Vec::new(),
            exclude: Vec::new(),
            workers: 4,
            bytes_per_second: None,
            level: 1,
            staging: None,
            progress: Box::new(|_| {}),
        }
    }
}

impl std::fmt::Debug for PushOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushOptions").field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl PushOptions {
    /// A name for the backup, which retention keeps for ever.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Takes only these partitions. Not for a push from a directory.
    pub fn include(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.include.extend(names.into_iter().map(Into::into));
        self
    }

    /// Leaves these partitions out. Not for a push from a directory.
    pub fn exclude(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.exclude.extend(names.into_iter().map(Into::into));
        self
    }

    /// Uploads at the same time; default 4, at least 1. Those of 4 MiB and less count half, those of
    /// 512 KiB and less a quarter. Each large one takes up to 64 MiB of memory, and two more pieces
    /// wait.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// Sends no more than so many bytes in a second, on average; default: as fast as it goes.
    pub fn bytes_per_second(mut self, bytes: Option<u64>) -> Self {
        self.bytes_per_second = bytes;
        self
    }

    /// The level of zstd; default 1. Tables are compressed already below the first level of a tree, so
    /// higher ones cost much and gain little.
    pub fn level(mut self, level: i32) -> Self {
        self.level = level;
        self
    }

    /// Where the checkpoint is made, on the keyspace's filesystem if nothing is to be copied; default:
    /// beside the keyspace. It is removed again.
    pub fn staging(mut self, directory: impl Into<PathBuf>) -> Self {
        self.staging = Some(directory.into());
        self
    }

    /// Calls back again and again, from several threads.
    pub fn progress(mut self, callback: impl Fn(PushProgress) + Send + Sync + 'static) -> Self {
        self.progress = Box::new(callback);
        self
    }
}

/// How far a push is.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct PushProgress {
    /// Raw bytes that are in the repository.
    pub bytes_done: u64,
    /// Of so many that were not known to be there.
    pub bytes_total: u64,
    /// Bytes that were sent for them.
    pub bytes_sent: u64,
}

/// What a push did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PushReport {
    /// The backup, as [`Repository::find`] takes it.
    pub backup: String,
    /// The newest commit in it.
    pub seqno: u64,
    /// How long commits were kept out; nothing for a push from a directory.
    pub freeze: Duration,
    /// From the call to the return.
    pub total: Duration,
    /// Files of the backup, and their raw bytes.
    pub files: u64,
    /// The same in bytes.
    pub raw_bytes: u64,
    /// Files whose content was not in the repository, or not known to be.
    pub new_files: u64,
    /// Bytes of pieces that were not there.
    pub sent_bytes: u64,
    /// Bytes of the manifest.
    pub manifest_bytes: u64,
    /// The partitions in it.
    pub partitions: Vec<String>,
    /// The partitions left out.
    pub left_out: Vec<String>,
}

/// A directory for a checkpoint, locked while it is ours; it goes when this does.
struct Staged {
    path: PathBuf,
    _lock: File,
}

impl Staged {
    /// Makes one for the keyspace called `name`, and removes those that killed pushes have left: each
    /// holds on to files that the keyspace may have removed long ago.
    fn create(directory: &Path, name: &str) -> Result<Self> {
        let prefix = format!(".{name}.esker-push-");
        for entry in std::fs::read_dir(directory).at("list", directory)? {
            let path = entry.at("list", directory)?.path();
            let found = path.file_name().and_then(|name| name.to_str());
            let tag = found.and_then(|found| found.strip_prefix(&prefix));
            if tag.is_some_and(|tag| parse_hex(tag, 16).is_some()) && lock(&path)?.is_some() {
                std::fs::remove_dir_all(&path).at("remove", &path)?;
            }
        }
        let path = directory.join(format!("{prefix}{:016x}", rand::random::<u64>()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).at("create", &path)?;
        match lock(&path)? {
            Some(lock) => Ok(Self { path, _lock: lock }),
            None => {
                let by = "another push takes it for one that was left".to_owned();
                Err(Error::Busy { what: path.display().to_string(), by })
            }
        }
    }

    fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint")
    }
}

/// The lock of a directory, unless somebody has it; nor is there one of what has just gone.
fn lock(path: &Path) -> Result<Option<File>> {
    let dir = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        dir => dir.at("open", path)?,
    };
    match rustix::fs::flock(&dir, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        locked => locked.at("lock", path).map(|()| Some(dir)),
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a staged checkpoint stays behind");
        }
    }
}

impl Repository {
    /// Backs up the open keyspace: takes a checkpoint, sends what the repository lacks, removes the
    /// checkpoint. The keyspace is read and written meanwhile. The backup is there when this returns,
    /// or not at all.
    ///
    /// # Errors
    ///
    /// When the checkpoint fails; when the store refuses or cannot be reached: what was sent by then
    /// is not sent again by the next push. [`Error::Engine`] with corruption when a file is not what
    /// its hash says.
    pub fn push(&self, keyspace: &Keyspace, options: PushOptions) -> Result<PushReport> {
        let began = Instant::now();
        let path = keyspace.path();
        let directory = options.staging.as_deref().or(path.parent());
        let directory = directory.filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let staged = Staged::create(directory, &name)?;
        let mut checkpoint = keyspace.checkpoint().exclude(options.exclude.clone());
        if !options.include.is_empty() {
            checkpoint = checkpoint.include(options.include.clone());
        }
        let report = checkpoint.write_to(staged.checkpoint())?;
        let pushed = self.push_checkpoint(&staged.checkpoint(), &options)?;
        let mut report = PushReport { freeze: report.freeze, ..pushed };
        drop(staged);
        report.total = began.elapsed();
        Ok(report)
    }

    /// Backs up a checkpoint or cold copy that nobody has opened for writing since it was made.
    ///
    /// # Errors
    ///
    /// As [`Repository::push`]; [`Error::InvalidInput`] if partitions are included or excluded.
    pub fn push_directory(
        &self,
        checkpoint: impl AsRef<Path>,
        options: PushOptions,
    ) -> Result<PushReport> {
        let began = Instant::now();
        if !options.include.is_empty() || !options.exclude.is_empty() {
            let what = "a checkpoint is pushed as it is: partitions are left out when it is taken";
            return Err(Error::InvalidInput(what.into()));
        }
        let report = self.push_checkpoint(checkpoint.as_ref(), &options)?;
        Ok(PushReport { total: began.elapsed(), ..report })
    }

    fn push_checkpoint(&self, dir: &Path, options: &PushOptions) -> Result<PushReport> {
        let listing = esker::read_listing(dir)?;
        self.run(async {
            let (lease, known) = self.take_base(listing.uuid).await?;
            let pushed = self.push_leased(dir, &listing, known, &lease, options).await;
            lease.release().await;
            pushed
        })
    }

    /// The pieces that the newest manifest of the keyspace names, and a lease that keeps them.
    async fn take_base(&self, uuid: u128) -> Result<(Lease, Known)> {
        let listed = self.listed().await?;
        for backup in listed.iter().rev().filter(|backup| backup.id.uuid == uuid) {
            let lease = Lease::take(&self.store, Work::Push, &[backup.id]).await?;
            // Read under the lease: a prune that removes it later sees the lease before it goes on.
            let manifest = match self.manifest(backup.id).await {
                Ok(manifest) => manifest,
                // One that is damaged, of a newer format, or has just gone is none to build on.
                Err(
                    Error::Corrupt { .. }
                    | Error::UnsupportedFormat { .. }
                    | Error::NoSuchBackup { .. },
                ) => {
                    lease.release().await;
                    continue;
                }
                Err(error) => {
                    lease.release().await;
                    return Err(error);
                }
            };
            let known = manifest.files.into_iter().filter_map(|file| match file.content {
                Content::Pieces(pieces) => Some((self.sealer.name(file.xxh3, file.bytes), pieces)),
                Content::Inline(_) => None,
            });
            return Ok((lease, known.collect()));
        }
        Ok((Lease::take(&self.store, Work::Push, &[]).await?, Known::new()))
    }

    async fn push_leased(
        &self,
        dir: &Path,
        listing: &Listing,
        known: Known,
        lease: &Lease,
        options: &PushOptions,
    ) -> Result<PushReport> {
        let source = Source::survey(dir, listing)?;
        let others = lease::held(&self.store, lease).await?;
        let upload = Upload::new(self, dir, options, &known, &source, (lease, others));
        let pieces = upload.run().await?;
        let new_files = upload.new.len() as u64;
        let sent_bytes = upload.sent_bytes.load(Ordering::Relaxed);
        drop(upload);
        let id = BackupId {
            uuid: listing.uuid,
            timeline: listing.timeline,
            seqno: listing.seqno,
            tag: rand::random(),
        };
        let manifest = Manifest {
            id,
            created_ms: listing.created_ms,
            label: options.label.clone(),
            partitions: listing.partitions.clone(),
            left_out: listing.left_out.clone(),
            added_bytes: sent_bytes,
            directories: source.directories.clone(),
            files: source.entries(&self.sealer, &pieces),
        };
        let body = manifest.encode(&self.sealer)?;
        let manifest_bytes = body.len() as u64;
        lease.check()?;
        if !self.store.create(&id.object(), body.into()).await? {
            return Err(Error::corrupt(id.object().to_string(), "another backup has this name"));
        }
        Ok(PushReport {
            backup: id.to_string(),
            seqno: id.seqno,
            freeze: Duration::ZERO,
            total: Duration::ZERO,
            files: manifest.files.len() as u64,
            raw_bytes: manifest.raw_bytes(),
            new_files,
            sent_bytes,
            manifest_bytes,
            partitions: manifest.partitions,
            left_out: manifest.left_out,
        })
    }
}

/// The lengths of a file's pieces as they are stored.
type Known = HashMap<FileId, Vec<u64>>;

/// The files of a checkpoint.
struct Source {
    files: Vec<SourceFile>,
    directories: Vec<String>,
}

struct SourceFile {
    path: String,
    bytes: u64,
    xxh3: u128,
    partition: Option<String>,
    /// Small ones, which the manifest holds.
    content: Option<Vec<u8>>,
}

impl Source {
    /// Reads what is small, and hashes what the checkpoint has no hash of.
    fn survey(dir: &Path, listing: &Listing) -> Result<Self> {
        let mut files = Vec::with_capacity(listing.files.len() + 1);
        let mut directories = BTreeSet::new();
        for listed in &listing.files {
            // The list may be anybody's: nothing outside of the directory is read, and nothing odd.
            check_path(&listed.path)?;
            let path = dir.join(&listed.path);
            let found = std::fs::symlink_metadata(&path).at("inspect", &path)?;
            if !found.is_file() || found.len() != listed.bytes {
                return Err(rotten(&path));
            }
            // Tables stay for long and are known by name, however small: they are not read again.
            let is_small = listed.bytes <= INLINE_BYTES_MAX && !is_table(&listed.path);
            let content = is_small.then(|| std::fs::read(&path));
            let content = content.transpose().at("read", &path)?;
            let found = match &content {
                Some(content) => Some(xxh3_128(content)),
                None if listed.xxh3.is_none() => Some(hash_file(&path)?),
                None => None,
            };
            let xxh3 = listed.xxh3.or(found).expect("one of the two is there");
            if found.is_some_and(|found| found != xxh3) {
                return Err(rotten(&path));
            }
            if let Some(tree) = listed.path.strip_suffix("/current") {
                for name in ["tables", "blobs"].map(|name| format!("{tree}/{name}")) {
                    if dir.join(&name).is_dir() {
                        directories.insert(name);
                    }
                }
            }
            if listed.bytes.div_ceil(PIECE_BYTES) > PIECES_MAX {
                let what = format!("{} is longer than 2 TiB", path.display());
                return Err(Error::InvalidInput(what));
            }
            let (path, bytes, partition) =
                (listed.path.clone(), listed.bytes, listed.partition.clone());
            files.push(SourceFile { path, bytes, xxh3, partition, content });
        }
        // It does not list itself.
        let path = dir.join(CHECKPOINT);
        let bytes = std::fs::read(&path).at("read", &path)?;
        let xxh3 = xxh3_128(&bytes);
        let (content, bytes) = {
            let len = bytes.len() as u64;
            ((len <= INLINE_BYTES_MAX).then_some(bytes), len)
        };
        files.push(SourceFile { path: CHECKPOINT.into(), bytes, xxh3, partition: None, content });
        Ok(Self { files, directories: directories.into_iter().collect() })
    }

    fn entries(self, sealer: &crate::seal::Sealer, pieces: &Known) -> Vec<Entry> {
        let entry = |file: SourceFile| {
            let SourceFile { path, bytes, xxh3, partition, content } = file;
            let content = match content {
                Some(content) => Content::Inline(content),
                None => Content::Pieces(pieces[&sealer.name(xxh3, bytes)].clone()),
            };
            Entry { path, bytes, xxh3, partition, content }
        };
        self.files.into_iter().map(entry).collect()
    }
}

fn rotten(path: &Path) -> Error {
    Error::corrupt(path.display().to_string(), "its bytes are not what the checkpoint's list says")
}

pub(crate) fn hash_file(path: &Path) -> Result<u128> {
    let file = File::open(path).at("open", path)?;
    let mut hash = Xxh3::new();
    read_through(file, |part| hash.update(part)).at("read", path)?;
    Ok(hash.digest128())
}

/// The same, and that of each piece.
fn hash_pieces(path: &Path) -> Result<(u128, Vec<u128>)> {
    let file = File::open(path).at("open", path)?;
    let (mut whole, mut pieces) = (Xxh3::new(), Vec::new());
    loop {
        let mut piece = Xxh3::new();
        let read = read_through((&file).take(PIECE_BYTES), |part| {
            whole.update(part);
            piece.update(part);
        });
        if read.at("read", path)? == 0 {
            return Ok((whole.digest128(), pieces));
        }
        pieces.push(piece.digest128());
    }
}

/// Hands over what there is, part by part, and says how much it was.
fn read_through(mut from: impl io::Read, mut each: impl FnMut(&[u8])) -> io::Result<u64> {
    let (mut buffer, mut bytes) = (vec![0; 256 << 10], 0);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(read) => {
                each(&buffer[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What is sent, and how far that is.
struct Upload<'a> {
    repository: &'a Repository,
    options: &'a PushOptions,
    known: &'a Known,
    lease: &'a Lease,
    /// As of when this push began.
    others: Leases,
    began: Instant,
    prunes_ended: OnceCell<()>,
    /// By content: the same one is sent once.
    new: BTreeMap<FileId, (&'a SourceFile, PathBuf)>,
    rate: Rate,
    /// In KiB of raw pieces in memory.
    room: Semaphore,
    lines: Lines,
    buffers: Buffers,
    bytes_total: u64,
    bytes_done: AtomicU64,
    sent_bytes: AtomicU64,
}

impl<'a> Upload<'a> {
    fn new(
        repository: &'a Repository,
        dir: &'a Path,
        options: &'a PushOptions,
        known: &'a Known,
        source: &'a Source,
        (lease, others): (&'a Lease, Leases),
    ) -> Self {
        let mut new = BTreeMap::new();
        for file in source.files.iter().filter(|file| file.content.is_none()) {
            let id = repository.sealer.name(file.xxh3, file.bytes);
            if !known.contains_key(&id) {
                new.insert(id, (file, dir.join(&file.path)));
            }
        }
        Self {
            repository,
            options,
            known,
            lease,
            others,
            began: Instant::now(),
            prunes_ended: OnceCell::new(),
            bytes_total: new.keys().map(|id| id.bytes).sum(),
            new,
            rate: Rate::new(options.bytes_per_second),
            room: Semaphore::new((options.workers + 2) * PIECE_BYTES.div_ceil(1024) as usize),
            lines: Lines::new(options.workers),
            buffers: Buffers::default(),
            bytes_done: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
        }
    }

    /// Sends everything that is new; the lengths of all pieces of the backup.
    async fn run(&self) -> Result<Known> {
        self.report(0);
        let files = stream::iter(&self.new).map(|(id, (file, path))| async move {
            self.send_file(*id, file.xxh3, path).await.map(|pieces| (*id, pieces))
        });
        let at_once = Lines::requests_max(self.options.workers);
        let sent: Vec<_> = files.buffer_unordered(at_once).try_collect().await?;
        let mut pieces = self.known.clone();
        pieces.extend(sent);
        Ok(pieces)
    }

    /// Sends the pieces of a file side by side.
    ///
    /// The file is proved before, and each piece again when it is read: one that is there is believed for
    /// its name, so nothing else may ever be sent under it.
    async fn send_file(&self, id: FileId, xxh3: u128, path: &Path) -> Result<Vec<u64>> {
        let whole = path.to_owned();
        let (found, hashes) = blocking(move || hash_pieces(&whole)).await?;
        if found != xxh3 {
            return Err(rotten(path));
        }
        let file = Arc::new(File::open(path).at("open", path)?);
        let pieces = stream::iter(0..id.pieces() as u32).then(|number| {
            let (file, expected) = (&file, hashes[number as usize]);
            async move {
                // Given back when the piece is sent.
                let kib = id.piece_bytes(number).div_ceil(1024) as u32;
                let room = self.room.acquire_many(kib).await.expect("it is never closed");
                let buffer = self.buffers.lend(id.piece_bytes(number) as usize);
                let raw = read_piece(file, number, path, buffer).await?;
                // It may have changed since.
                if xxh3_128(&raw) != expected {
                    return Err(rotten(path));
                }
                Ok((number, raw, room))
            }
        });
        let sending = pieces.map(async |piece| {
            let (number, raw, _room) = piece?;
            self.send_piece(Place { file: id, piece: number }, raw).await
        });
        sending.buffered(self.options.workers).try_collect().await
    }

    /// Sends a piece unless it is there; its length as stored.
    async fn send_piece(&self, place: Place, raw: Bytes) -> Result<u64> {
        let store = &self.repository.store;
        let object = place.file.object(place.piece);
        let raw_bytes = raw.len() as u64;
        let there = self.look(place, &raw).await?;
        if let There::Whole(stored) = there {
            self.report(raw_bytes);
            return Ok(stored);
        }
        let (sealer, level) = (self.repository.sealer.clone(), self.options.level);
        let body = blocking(move || piece::encode(place, &raw, &sealer, level)).await;
        let stored = body.iter().map(|part| part.len() as u64).sum();
        let _line = self.lines.enter(stored).await;
        self.rate.wait_for(stored).await;
        let is_ours = match there {
            There::Broken => store.put(&object, &body).await.map(|()| true)?,
            _ => store.put_new(&object, &body).await?,
        };
        let confirmed = store.head(&object).await?.map(|there| there.size);
        // Another push may have been faster, with another level of compression: its bytes stay.
        let as_expected = |size| if is_ours { size == stored } else { fits(size, raw_bytes) };
        let Some(stored) = confirmed.filter(|size| as_expected(*size)) else {
            let what = format!("{stored} bytes were written, and it has {confirmed:?}");
            return Err(Error::corrupt(object.to_string(), what));
        };
        if is_ours {
            self.sent_bytes.fetch_add(stored, Ordering::Relaxed);
        }
        self.report(raw_bytes);
        Ok(stored)
    }

    /// What is there of a piece; if it is whole, it stays.
    async fn look(&self, place: Place, raw: &Bytes) -> Result<There> {
        let store = &self.repository.store;
        let object = place.file.object(place.piece);
        let Some(there) = store.head(&object).await? else { return Ok(There::Nothing) };
        if !fits(there.size, raw.len() as u64) {
            return Ok(There::Broken);
        }
        if self.is_young(&there) {
            return Ok(There::Whole(there.size));
        }
        self.prunes_ended.get_or_try_init(|| self.wait_for_prunes()).await?;
        let _line = self.lines.enter(there.size).await;
        let read = store.read(&object, 0..there.size).await?;
        let Some(bytes) = read else { return Ok(There::Nothing) };
        let (sealer, raw, stored) = (self.repository.sealer.clone(), raw.clone(), bytes.clone());
        let proved = move || {
            let mut is_same = true;
            let decoded = piece::decode(place, &stored, &sealer, |at, frame| {
                is_same &= raw[at as usize..].starts_with(frame);
                Ok(())
            });
            match decoded {
                Ok(()) => Ok(is_same),
                Err(Error::Corrupt { .. }) => Ok(false),
                // What a newer program has written is not ours to replace.
                Err(error) => Err(error),
            }
        };
        if !blocking(proved).await? {
            return Ok(There::Broken);
        }
        self.rate.wait_for(there.size).await;
        store.put(&object, &[bytes]).await?;
        Ok(There::Whole(there.size))
    }

    /// Whether a piece that no manifest may name is far from being removed, by the store's clock.
    fn is_young(&self, there: &object_store::ObjectMeta) -> bool {
        let now_ms = self.others.now_ms + self.began.elapsed().as_millis() as u64;
        now_ms.saturating_sub(lease::written_ms(there)) < GRACE.as_millis() as u64 / 2
    }

    /// Waits until the prunes that were at work when this push began have ended: each of them may have
    /// decided already to remove what is found here. Later ones see our lease and wait, and of these one
    /// that waits for us gives way.
    async fn wait_for_prunes(&self) -> Result<()> {
        let of_then: BTreeSet<_> = self.others.of(Work::Prune).map(|held| &held.object).collect();
        if of_then.is_empty() {
            return Ok(());
        }
        let mut waits = false;
        loop {
            let now = lease::held(&self.repository.store, self.lease).await?;
            if !now.of(Work::Prune).any(|held| of_then.contains(&held.object)) {
                break;
            }
            if !waits {
                // One of them may wait for us.
                self.lease.say_waiting(true).await?;
                waits = true;
            }
            tokio::time::sleep(self.repository.store.look_every).await;
        }
        if waits && let Err(error) = self.lease.say_waiting(false).await {
            // Its next renewal says so as well.
            tracing::debug!(%error, "a lease says for a while that it waits");
        }
        Ok(())
    }

    fn report(&self, raw_bytes: u64) {
        let bytes_done = self.bytes_done.fetch_add(raw_bytes, Ordering::Relaxed) + raw_bytes;
        let bytes_sent = self.sent_bytes.load(Ordering::Relaxed);
        let bytes_total = self.bytes_total;
        (self.options.progress)(PushProgress { bytes_done, bytes_total, bytes_sent });
    }
}

/// What is at the name of a piece.
#[derive(Copy, Clone)]
enum There {
    Nothing,
    /// The piece, of so many bytes.
    Whole(u64),
    /// Something else.
    Broken,
}

/// Whether an object of a piece can be so long.
fn fits(stored_bytes: u64, raw_bytes: u64) -> bool {
    stored_bytes <= piece::stored_bytes_max(raw_bytes)
        && stored_bytes > piece::tail_bytes(raw_bytes)
}

async fn read_piece(file: &Arc<File>, number: u32, path: &Path, mut raw: Buffer) -> Result<Bytes> {
    let file = Arc::clone(file);
    let read = blocking(move || {
        file.read_exact_at(raw.as_mut(), u64::from(number) * PIECE_BYTES).map(|()| raw.freeze())
    });
    read.await.at("read", path)
}
