//! What is fetched: one pool of tasks over all files.
//!
//! What must stay true: whoever fetches has taken room for what comes, and for the one frame that is
//! unpacked at a time; a retry repeats one range at most.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};

use super::site::{Site, create};
use super::target::{Target, Task};
use super::{RestoreOptions, RestoreProgress};
use crate::buffers::{Buffers, rounded};
use crate::error::{Error, IoContext as _, Result};
use crate::layout::FileId;
use crate::limit::Lines;
use crate::manifest::{Content, File as Entry, Manifest};
use crate::piece::{self, FRAME_BYTES, Place, Table};
use crate::repository::Repository;
use crate::store::blocking;

/// A file with missing chunks, by its number, and whether all of it comes again.
type Queued = (u32, bool);

/// Pieces that are fetched in several ranges share the table that says where they are.
type Tables = HashMap<(u32, u32), Arc<OnceCell<Table>>>;

pub(super) struct Download<'a> {
    repository: &'a Repository,
    pub(super) manifest: &'a Manifest,
    options: &'a RestoreOptions,
    pub(super) site: Site,
    pub(super) targets: Mutex<BTreeMap<u32, Arc<Target>>>,
    queue: Mutex<Vec<Queued>>,
    /// Of the files under way.
    tables: Mutex<Tables>,
    /// In KiB of the budget.
    room: Semaphore,
    lines: Lines,
    /// Frames in a chunk.
    step: u32,
    buffers: Buffers,
    bytes_total: u64,
    pub(super) bytes_done: AtomicU64,
    pub(super) fetched_bytes: AtomicU64,
    pub(super) reused_bytes: AtomicU64,
    pub(super) resumed_bytes: AtomicU64,
}

impl<'a> Download<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        manifest: &'a Manifest,
        site: Site,
        options: &'a RestoreOptions,
    ) -> Result<Self> {
        let this = Self {
            repository,
            manifest,
            options,
            site,
            targets: Mutex::default(),
            queue: Mutex::default(),
            tables: Mutex::default(),
            room: Semaphore::new(options.buffer_bytes().div_ceil(1024) as usize),
            lines: Lines::new(options.download_workers),
            step: (options.chunk_of(fetched_bytes_max(manifest)) / FRAME_BYTES) as u32,
            buffers: Buffers::default(),
            bytes_total: manifest.raw_bytes(),
            bytes_done: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(0),
            reused_bytes: AtomicU64::new(0),
            resumed_bytes: AtomicU64::new(0),
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
    fn plan(&self, number: u32, entry: &Entry) -> Result<()> {
        let path = self.site.dir.join(&entry.path);
        create(&path)?.set_len(entry.bytes).at("write", &path)?;
        let id = self.repository.sealer.name(entry.xxh3, entry.bytes);
        let missing = self.missing_of(number, id).count() as u64;
        let written = self.written_of(number, id).map(|task| (task.offset(), task.raw_bytes(id)));
        let written: Vec<_> = written.collect();
        let target = Target::new(id, path, missing, !written.is_empty());
        for (offset, bytes) in written {
            target.was_written(offset, bytes);
            self.resumed_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        }
        self.targets.lock().insert(number, Arc::new(target));
        self.queue.lock().push((number, false));
        Ok(())
    }

    /// Every chunk of a file. They are never listed: a manifest of a few KiB can claim millions.
    fn chunks(&self, number: u32, id: FileId) -> impl Iterator<Item = Task> + use<> {
        let step = self.step;
        (0..id.pieces() as u32).flat_map(move |piece| {
            let frames = piece::frames(id.piece_bytes(piece)) as u32;
            (0..frames).step_by(step as usize).map(move |first_frame| {
                let end_frame = (first_frame + step).min(frames);
                Task { file: number, piece, first_frame, end_frame }
            })
        })
    }

    fn missing_of(&self, number: u32, id: FileId) -> impl Iterator<Item = Task> + '_ {
        self.chunks(number, id).filter(|task| !self.site.is_written(task))
    }

    fn written_of(&self, number: u32, id: FileId) -> impl Iterator<Item = Task> + '_ {
        self.chunks(number, id).filter(|task| self.site.is_written(task))
    }

    /// What was counted of a file as written by an interrupted attempt is not there any more.
    pub(super) fn forget_resumed(&self, number: u32, id: FileId) {
        let bytes = self.written_of(number, id).map(|task| task.raw_bytes(id)).sum();
        self.resumed_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.bytes_done.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What is to be fetched of a file, unless it has been found elsewhere.
    fn missing(&self, (number, anew): Queued) -> impl Iterator<Item = Task> + '_ {
        let id = self.targets.lock().get(&number).map(|target| target.id);
        let chunks = id.map(|id| self.chunks(number, id)).into_iter().flatten();
        chunks.filter(move |task| anew || !self.site.is_written(task))
    }

    /// Fetches everything that is missing and checks every file.
    pub(super) async fn run(&self) -> Result<()> {
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
        let (table, stored) = self.fetch_frames(task, target.id).await?;
        let (sealer, place) = (self.repository.sealer.clone(), Arc::clone(&target));
        let write = move || {
            let (first, end) = (task.first_frame as usize, task.end_frame as usize);
            let piece = Task { first_frame: 0, ..task }.offset();
            table.open(first, end, &stored, &sealer, |at, raw| place.write(piece + at, raw))?;
            drop(stored);
            place.settle(task.offset(), task.raw_bytes(place.id))
        };
        blocking(write).await?;
        drop(room);
        self.site.note(&task)?;
        self.bytes_done.fetch_add(task.raw_bytes(target.id), Ordering::Relaxed);
        self.report();
        if target.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish(task.file, &target).await?;
        }
        Ok(())
    }

    /// What is stored of these frames, and the table that tells what it is.
    async fn fetch_frames(&self, task: Task, id: FileId) -> Result<(Table, Bytes)> {
        let place = Place { file: id, piece: task.piece };
        let sealer = &self.repository.sealer;
        if task.raw_bytes(id) == id.piece_bytes(task.piece) {
            let length = self.stored_bytes(task);
            let mut object = self.read(place, task, 0..length).await?;
            let table = Table::parse(place, &object, length, sealer)?;
            object.truncate(table.range(0, table.frames()).end as usize);
            return Ok((table, object));
        }
        let table = Arc::clone(self.tables.lock().entry((task.file, task.piece)).or_default());
        let table = table.get_or_try_init(|| self.fetch_table(place, task)).await?.clone();
        let range = table.range(task.first_frame as usize, task.end_frame as usize);
        let stored = self.read(place, task, range).await?;
        Ok((table, stored))
    }

    async fn fetch_table(&self, place: Place, task: Task) -> Result<Table> {
        let length = self.stored_bytes(task);
        let tail = piece::tail_bytes(place.file.piece_bytes(place.piece));
        let bytes = self.read(place, task, length - tail..length).await?;
        Table::parse(place, &bytes, length, &self.repository.sealer)
    }

    /// What the manifest says of the piece's object.
    fn stored_bytes(&self, task: Task) -> u64 {
        match &self.manifest.files[task.file as usize].content {
            Content::Pieces(pieces) => pieces[task.piece as usize],
            Content::Inline(_) => 0,
        }
    }

    /// Never more than was declared, whatever lies there.
    async fn read(&self, place: Place, task: Task, range: Range<u64>) -> Result<Bytes> {
        let object = place.file.object(place.piece);
        assert!(range.end <= self.stored_bytes(task), "a table was checked against its object");
        let _line = self.lines.enter(range.end - range.start).await;
        let read = self.repository.store.read_into(&object, range, &self.buffers).await?;
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
        let whole = Arc::clone(target);
        let is_whole = blocking(move || whole.is_whole(xxh3)).await?;
        let tables = 0..target.id.pieces() as u32;
        tables.for_each(|piece| _ = self.tables.lock().remove(&(number, piece)));
        if is_whole {
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
        self.plan_anew(number, target);
        Ok(())
    }

    fn plan_anew(&self, number: u32, target: &Target) {
        self.forget_resumed(number, target.id);
        let fetched = self.missing_of(number, target.id).map(|task| task.raw_bytes(target.id));
        self.bytes_done.fetch_sub(fetched.sum(), Ordering::Relaxed);
        let missing = self.chunks(number, target.id).count() as u64;
        let renewed = Target::new(target.id, target.path.clone(), missing, false);
        self.targets.lock().insert(number, Arc::new(renewed));
        self.queue.lock().push((number, true));
    }

    fn report(&self) {
        (self.options.progress)(RestoreProgress {
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
            bytes_total: self.bytes_total,
            bytes_fetched: self.fetched_bytes.load(Ordering::Relaxed),
        });
    }
}

fn fetched_bytes_max(manifest: &Manifest) -> u64 {
    let in_pieces = |file: &&Entry| matches!(file.content, Content::Pieces(_));
    manifest.files.iter().filter(in_pieces).map(|file| file.bytes).sum()
}

/// What a chunk of so many raw bytes takes in memory at most, as it comes, and the frame that is unpacked.
pub(super) fn needed_bytes(raw_bytes: u64) -> u64 {
    rounded(piece::stored_bytes_max(raw_bytes) as usize) as u64 + FRAME_BYTES
}
