//! Reads every byte of a closed keyspace, checkpoint or copy, and says what is wrong and where.
//!
//! What must stay true: nothing is written, created or repaired; no tree is opened (lsm-tree deletes
//! what it does not know); a damaged file is a finding and does not end the search.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::catalog::{Catalog, PartitionEntry};
use crate::error::{Corruption, Error, IoContext, Result};
use crate::files;
use crate::journal::reader::Tail;
use crate::listing;
use crate::lock::{self, Access, KeyspaceLock};
use crate::planted::{Bug, is_planted};
use crate::progress::{Phase, Progress};
use crate::survey;

/// Large enough to be read at full speed, small enough to stay in the cache while it is hashed.
const READ_BYTES: usize = 256 << 10;

/// How [`verify`] works.
#[derive(Default)]
#[must_use]
pub struct VerifyOptions {
    threads: Option<usize>,
    progress: Option<Box<dyn FnMut(Progress) + Send>>,
}

impl VerifyOptions {
    /// Files read at the same time; default the number of processors.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads.max(1));
        self
    }

    /// Calls `callback` again and again, on the calling thread.
    pub fn progress(mut self, callback: impl FnMut(Progress) + Send + 'static) -> Self {
        self.progress = Some(Box::new(callback));
        self
    }
}

impl fmt::Debug for VerifyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyOptions").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// What [`verify`] found.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// The newest commit.
    pub seqno: u64,
    /// The partitions, sorted.
    pub partitions: Vec<String>,
    /// Whether it was closed cleanly (or is a checkpoint): an open has nothing to recover.
    pub clean: bool,
    /// Where a crash cut a write to the journal short: not damage; no commit that was acknowledged
    /// as durable is missing.
    pub torn_tail: Option<TornTail>,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
    /// Files that belong to nothing, relative to the keyspace; the next open removes those that a
    /// crash left behind.
    pub strays: Vec<PathBuf>,
    /// How long it took.
    pub total: Duration,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Where a write was cut short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TornTail {
    /// The journal segment.
    pub path: PathBuf,
    /// The end of its last whole commit, in bytes.
    pub offset: u64,
}

/// One damaged place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// Where in it, in bytes, as closely as is known.
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, offset, what, expected, found } = self.clone();
        Corruption { path, offset, what, expected, found }.fmt(f)
    }
}

impl From<Corruption> for Problem {
    fn from(corruption: Corruption) -> Self {
        let Corruption { path, offset, what, expected, found } = corruption;
        Self { path, offset, what, expected, found }
    }
}

/// Reads every byte of the keyspace, checkpoint or copy in `path`, in parallel, and compares it with
/// its hashes. Changes nothing.
///
/// # Errors
///
/// Damage is reported, not an error. Errors are what keeps it from looking:
/// [`Error::NotAKeyspace`], [`Error::Locked`] while it is open for writing,
/// [`Error::UnsupportedFormat`], [`Error::Io`].
pub fn verify(path: impl AsRef<Path>, options: VerifyOptions) -> Result<VerifyReport> {
    let root = path.as_ref();
    // Tells a directory that is no keyspace from one whose CATALOG is damaged.
    match survey::load_catalog(root) {
        Ok(_) | Err(Error::Corrupt(_)) => {}
        Err(error) => return Err(error),
    }
    let _lock = KeyspaceLock::acquire(root, Access::Shared)?;
    let VerifyOptions { threads, progress } = options;
    let mut progress = progress.unwrap_or_else(|| Box::new(|_| {}));
    examine(root, threads, &mut *progress)
}

/// Verifies a directory that is being built; the first problem is the error.
pub(crate) fn check_directory(dir: &Path, progress: &mut dyn FnMut(Progress)) -> Result<()> {
    match examine(dir, None, progress)?.problems.into_iter().next() {
        None => Ok(()),
        Some(Problem { path, offset, what, expected, found }) => {
            Err(Error::Corrupt(Box::new(Corruption { path, offset, what, expected, found })))
        }
    }
}

fn examine(
    root: &Path,
    threads: Option<usize>,
    progress: &mut dyn FnMut(Progress),
) -> Result<VerifyReport> {
    let began = Instant::now();
    let mut examination = Examination::new(root);
    examination.look()?;
    let threads = threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
        .min(examination.tasks.len().max(1));
    let tasks = std::mem::take(&mut examination.tasks);
    run(&tasks, threads, &mut examination.report, progress)?;
    examination.report.problems.sort_by(|a, b| (&a.path, a.offset).cmp(&(&b.path, b.offset)));
    examination.report.total = began.elapsed();
    Ok(examination.report)
}

fn is_medium_error(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// A whole file to hash.
struct Task {
    path: PathBuf,
    expected: u128,
    bytes: u64,
    kind: Kind,
}

#[derive(Copy, Clone)]
enum Kind {
    Table,
    Blob,
}

struct Examination<'a> {
    root: &'a Path,
    report: VerifyReport,
    tasks: Vec<Task>,
    /// Every file that belongs to something.
    known: BTreeSet<PathBuf>,
}

impl<'a> Examination<'a> {
    fn new(root: &'a Path) -> Self {
        let report = VerifyReport {
            files: 0,
            bytes: 0,
            seqno: 0,
            partitions: Vec::new(),
            clean: false,
            torn_tail: None,
            problems: Vec::new(),
            strays: Vec::new(),
            total: Duration::ZERO,
        };
        Self { root, report, tasks: Vec::new(), known: BTreeSet::new() }
    }

    /// Checks everything small and makes tasks of the rest.
    fn look(&mut self) -> Result<()> {
        self.known.insert(files::lock(self.root));
        self.known.insert(files::catalog(self.root));
        let loaded = Catalog::load(self.root);
        self.report.files += 1;
        self.count_bytes(&files::catalog(self.root));
        let Some(catalog) = self.note(loaded)? else { return Ok(()) };
        self.note(lock::check_owner(self.root, catalog.uuid))?;
        self.report.clean = catalog.clean;
        self.report.seqno = catalog.last_seqno;
        let mut names: Vec<_> = catalog.partitions.iter().map(|p| p.name.clone()).collect();
        names.sort();
        self.report.partitions = names;
        for entry in &catalog.partitions {
            self.look_at_tree(&catalog, entry)?;
        }
        self.look_at_journal(&catalog)?;
        // An open for writing that was interrupted has removed CHECKPOINT already.
        if catalog.fork_on_open && (catalog.clean || files::exists(&files::checkpoint(self.root))?)
        {
            self.look_at_checkpoint(&catalog)?;
        }
        self.find_strays()
    }

    /// Turns corruption into a finding.
    fn note<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Error::Corrupt(corruption)) => {
                self.report.problems.push(Problem::from(*corruption));
                Ok(None)
            }
            // A sector that cannot be read is damage like any other.
            Err(Error::Io { path, source, .. }) if is_medium_error(&source) => {
                let what = "the file cannot be read".into();
                let (expected, found) = ("readable bytes".into(), source.to_string());
                self.report.problems.push(Problem { path, offset: None, what, expected, found });
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn count_bytes(&mut self, path: &Path) {
        self.report.bytes += std::fs::metadata(path).map_or(0, |m| m.len());
    }

    fn look_at_tree(&mut self, catalog: &Catalog, entry: &PartitionEntry) -> Result<()> {
        let dir = files::tree(self.root, entry.tree);
        self.known.insert(files::current(&dir));
        let checked = survey::survey_tree(self.root, catalog, entry);
        // A missing table must not keep the others from being read.
        let manifest = match &checked {
            Ok(_) => None,
            Err(_) => crate::manifest::check(&dir).ok(),
        };
        let surveyed = self.note(checked)?;
        let Some(checked) = surveyed.or(manifest) else { return Ok(()) };
        let version = &checked.version;
        let manifest = files::version(&dir, version.id);
        self.report.files += 2;
        self.report.bytes += (checked.manifest.len() + checked.current.len()) as u64;
        self.known.insert(manifest);
        for table in version.tables() {
            self.add_task(files::table(&dir, table.id), table.checksum, Kind::Table);
        }
        for blob in &version.blobs {
            self.add_task(files::blob(&dir, blob.id), blob.checksum, Kind::Blob);
        }
        Ok(())
    }

    fn add_task(&mut self, path: PathBuf, expected: u128, kind: Kind) {
        self.known.insert(path.clone());
        // A missing file has been reported by the survey, at least the first of a directory.
        let Ok(metadata) = std::fs::metadata(&path) else {
            let missing = Error::corrupt(&path, None, "the file is missing");
            if !self.report.problems.iter().any(|p| p.path == path)
                && let Error::Corrupt(corruption) = missing
            {
                self.report.problems.push(Problem::from(*corruption));
            }
            return;
        };
        self.tasks.push(Task { path, expected, bytes: metadata.len(), kind });
    }

    fn look_at_journal(&mut self, catalog: &Catalog) -> Result<()> {
        let listed = catalog.first_segment..=catalog.last_segment;
        for id in survey::segments_on_disk(self.root)?.into_iter().filter(|id| listed.contains(id))
        {
            let path = files::segment(self.root, id);
            self.report.files += 1;
            self.count_bytes(&path);
            self.known.insert(path);
        }
        let planned = survey::plan_journal(self.root, catalog);
        if let Some((scans, plan)) = self.note(planned)? {
            // Closed cleanly or made by a checkpoint: every segment was sealed and synced.
            for scan in scans.iter().filter(|scan| catalog.clean && scan.tail != Tail::Sealed) {
                let path = files::segment(self.root, scan.id);
                let what = "the seal at the end of the segment is damaged or missing";
                self.note::<()>(Err(Error::corrupt(&path, Some(scan.end), what)))?;
            }
            self.report.seqno = plan.last_seqno;
            // A torn seal in the middle costs nothing either, but it is not what was written.
            let torn = scans.iter().find(|scan| scan.tail == Tail::Torn);
            self.report.torn_tail = torn.map(|scan| TornTail {
                path: files::segment(self.root, scan.id),
                offset: scan.end,
            });
        }
        Ok(())
    }

    /// Compares the directory with the list that was made when the checkpoint was taken.
    fn look_at_checkpoint(&mut self, catalog: &Catalog) -> Result<()> {
        let path = files::checkpoint(self.root);
        self.known.insert(path.clone());
        if !files::exists(&path)? {
            let missing = Error::corrupt(&path, None, "the file is missing");
            self.note::<()>(Err(missing))?;
            return Ok(());
        }
        self.report.files += 1;
        self.count_bytes(&path);
        let read = listing::read_checkpoint(self.root);
        let Some(checkpoint) = self.note(read)? else { return Ok(()) };
        let head = &checkpoint.head;
        let listed = (head.uuid.as_str(), head.seqno);
        let actual = (format!("{:032x}", catalog.uuid), self.report.seqno);
        if listed != (actual.0.as_str(), actual.1) {
            let (expected, found) = (format!("{actual:?}"), format!("{listed:?}"));
            let what = "CHECKPOINT belongs to another keyspace or commit";
            self.note::<()>(Err(Error::corrupt_because(&path, None, what, expected, found)))?;
        }
        for record in &checkpoint.files {
            let path = self.root.join(&record.path);
            let wrong = |what: &str, expected: String, found: String| {
                Err::<(), _>(Error::corrupt_because(&path, None, what, expected, found))
            };
            // Names in the list are ours; anything else must not lead out of the directory.
            if !self.known.contains(&path) {
                self.note(wrong(
                    "CHECKPOINT lists a file that nothing names",
                    String::new(),
                    String::new(),
                ))?;
                continue;
            }
            let found = std::fs::metadata(&path).map_or(0, |m| m.len());
            if found != record.bytes {
                let (expected, found) =
                    (format!("{} bytes", record.bytes), format!("{found} bytes"));
                self.note(wrong("the length is not the one in CHECKPOINT", expected, found))?;
            }
        }
        Ok(())
    }

    fn find_strays(&mut self) -> Result<()> {
        let mut dirs = vec![self.root.to_path_buf()];
        while let Some(dir) = dirs.pop() {
            for name in files::names(&dir)? {
                let path = dir.join(&name);
                if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
                    dirs.push(path);
                } else if !self.known.contains(&path) {
                    let stray = path.strip_prefix(self.root).unwrap_or(&path);
                    self.report.strays.push(stray.to_path_buf());
                }
            }
        }
        self.report.strays.sort();
        Ok(())
    }
}

/// Hashes every file; the calling thread reports progress.
fn run(
    tasks: &[Task],
    threads: usize,
    report: &mut VerifyReport,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let bytes_total = tasks.iter().map(|task| task.bytes).sum();
    let mut state = Progress::begin(Phase::Verify, tasks.len() as u64, bytes_total);
    progress(state);
    let (to_do, queue) = crossbeam::channel::unbounded::<&Task>();
    let (done, results) = crossbeam::channel::unbounded::<Event>();
    tasks.iter().for_each(|task| _ = to_do.send(task));
    drop(to_do);
    let mut failed = None;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (queue, done) = (queue.clone(), done.clone());
            scope.spawn(move || {
                for task in queue {
                    let finished = check_file(task, &mut |bytes| _ = done.send(Event::Read(bytes)));
                    _ = done.send(Event::Finished(finished));
                }
            });
        }
        drop(done);
        for event in results {
            match event {
                Event::Read(bytes) => {
                    state.bytes_done += bytes;
                    report.bytes += bytes;
                }
                Event::Finished(result) => {
                    state.files_done += 1;
                    report.files += 1;
                    match result {
                        Ok(problem) => report.problems.extend(problem),
                        Err(error) => failed = Some(error),
                    }
                }
            }
            progress(state);
        }
    });
    failed.map_or(Ok(()), Err)
}

enum Event {
    Read(u64),
    Finished(Result<Option<Problem>>),
}

/// Hashes one file. A read error of the disk is a finding too: it is what damage often looks like.
fn check_file(task: &Task, read: &mut dyn FnMut(u64)) -> Result<Option<Problem>> {
    let mut file = File::open(&task.path).at("open", &task.path)?;
    let (mut hasher, mut buffer, mut at) = (Xxh3::new(), vec![0; READ_BYTES], 0u64);
    loop {
        let len = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => len,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => {
                return Ok(Some(Problem {
                    path: task.path.clone(),
                    offset: Some(at),
                    what: "the file cannot be read".into(),
                    expected: "readable bytes".into(),
                    found: e.to_string(),
                }));
            }
        };
        hasher.update(&buffer[..len]);
        at += len as u64;
        read(len as u64);
    }
    let found = hasher.digest128();
    if found == task.expected || is_planted(Bug::TableHashSkipped) {
        return Ok(None);
    }
    Ok(Some(Problem {
        path: task.path.clone(),
        offset: locate(task).at("read", &task.path)?,
        what: "the file's hash is not the one in its manifest".into(),
        expected: format!("{:032x}", task.expected),
        found: format!("{found:032x}"),
    }))
}

/// Where the damage begins: the first part whose own checksum is wrong, or the end of those that
/// are right. Layouts of lsm-tree 3.1.10, see docs/format.md.
fn locate(task: &Task) -> std::io::Result<Option<u64>> {
    let mut input = BufReader::with_capacity(READ_BYTES, File::open(&task.path)?);
    let mut at = 0;
    loop {
        let part = match task.kind {
            Kind::Table => read_block(&mut input)?,
            Kind::Blob => read_blob(&mut input)?,
        };
        match part {
            Some(len) => at += len,
            None => return Ok(Some(at)),
        }
    }
}

/// A table's block: magic, type, checksum, lengths, header checksum, data.
fn read_block(input: &mut impl Read) -> std::io::Result<Option<u64>> {
    const HEADER: usize = 4 + 1 + 16 + 4 + 4 + 4;
    let Some(header) = read_up_to(input, HEADER)? else { return Ok(None) };
    let field = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap_or_default());
    if &header[..4] != b"LSM\x03" || xxh3_128(&header[..HEADER - 4]) as u32 != field(HEADER - 4) {
        return Ok(None);
    }
    let checksum = u128::from_le_bytes(header[5..21].try_into().unwrap_or_default());
    let Some(data) = read_up_to(input, field(21) as usize)? else { return Ok(None) };
    Ok((xxh3_128(&data) == checksum).then_some((HEADER + data.len()) as u64))
}

/// A blob: magic, checksum of key and value, seqno, lengths, key, value.
fn read_blob(input: &mut impl Read) -> std::io::Result<Option<u64>> {
    const HEADER: usize = 4 + 16 + 8 + 2 + 4 + 4;
    let Some(header) = read_up_to(input, HEADER)? else { return Ok(None) };
    if &header[..4] != b"BLOB" {
        return Ok(None);
    }
    let checksum = u128::from_le_bytes(header[4..20].try_into().unwrap_or_default());
    let key_len = usize::from(u16::from_le_bytes(header[28..30].try_into().unwrap_or_default()));
    let value_len = u32::from_le_bytes(header[34..38].try_into().unwrap_or_default()) as usize;
    let Some(content) = read_up_to(input, key_len + value_len)? else { return Ok(None) };
    Ok((xxh3_128(&content) == checksum).then_some((HEADER + content.len()) as u64))
}

/// Exactly `len` bytes; `None` if there are fewer. Never allocates more than there is.
fn read_up_to(input: &mut impl Read, len: usize) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    input.take(len as u64).read_to_end(&mut bytes)?;
    Ok((bytes.len() == len).then_some(bytes))
}
