//! Resident memory while a keyspace is loaded, against what it was promised, and how fast the load
//! is beside reading the same bytes and nothing else.
#![expect(clippy::print_stdout, reason = "tables are what the program is for")]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use esker::{Config, PartitionOptions};
use esker_bench::Result;
use esker_bench::arguments::Arguments;
use esker_bench::machine;
use esker_bench::table::{Table, mebibytes};
use rand::rngs::SmallRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

const CACHE_BYTES: u64 = 64 << 20;
const WRITE_BUFFER_BYTES: u64 = 256 << 20;
/// Files that were read and wait for their insert.
const FILES_AHEAD: usize = 16;
/// As many as `esker load` has.
const READERS: usize = 4;
const FILES_PER_DIRECTORY: usize = 512;
/// The sizes of files of a real tree spread over many powers of two; these are 1 KiB to 1 MiB.
const SIZE_BITS: std::ops::RangeInclusive<u32> = 10..=19;

fn main() -> Result<()> {
    let arguments = Arguments::parse(&["what", "gib", "value", "tree", "dir"])?;
    let gib: f64 = arguments.get("gib", 5.0)?;
    let bytes = (gib * f64::from(1 << 30)) as u64;
    let value_bytes: usize = arguments.get("value", 1_000)?;
    let parent: PathBuf = arguments.get("dir", std::env::temp_dir())?;
    println!("{}\n", machine::describe());
    let mut memory =
        Table::new(&["what", "loaded", "peak resident", "cache + write buffer", "over that"]);
    let mut speed = Table::new(&["what", "write MiB/s", "closed after", "read alone MiB/s"]);
    let dir = tempfile::tempdir_in(&parent)?;
    // One load per process: memory that the allocator keeps from one would count for the next.
    match arguments.get("what", "values".to_owned())?.as_str() {
        "values" => {
            let options = PartitionOptions::default();
            let loaded =
                load(dir.path(), options, |insert| random_entries(bytes, value_bytes, insert))?;
            let what = format!("{value_bytes} B values, random keys");
            loaded.report(&what, None, &mut memory, &mut speed);
        }
        "tree" => {
            // A tree that is there, or one that is made.
            let tree = match arguments.get("tree", PathBuf::new())? {
                path if path.as_os_str().is_empty() => {
                    FileTree::make(&dir.path().join("tree"), bytes)?
                }
                path => FileTree::find(&path)?,
            };
            tree.forget()?;
            let (began, mut read) = (Instant::now(), 0);
            tree.read(&mut |_, content| {
                read += content.len();
                Ok(())
            })?;
            let alone = read as f64 / began.elapsed().as_secs_f64();
            tree.forget()?;
            // As `esker load --format files` creates a partition.
            let options = PartitionOptions::default().separate_values_from(Some(4 << 10));
            let loaded = load(dir.path(), options, |insert| tree.read(insert))?;
            let what = format!("a tree of {} files", tree.files.len());
            loaded.report(&what, Some(alone), &mut memory, &mut speed);
        }
        other => return Err(format!("--what is `values` or `tree`, not {other:?}").into()),
    }
    println!("{memory}\n{speed}");
    Ok(())
}

/// What a load took.
struct Loaded {
    bytes: u64,
    written: Duration,
    closed: Duration,
    resident_peak: u64,
}

/// Runs `source` with a function that inserts, and closes the keyspace.
fn load(
    dir: &Path,
    options: PartitionOptions,
    source: impl FnOnce(Insert<'_>) -> Result<()>,
) -> Result<Loaded> {
    machine::forget_peak()?;
    let keyspace = Config::new(dir.join("keyspace"))
        .cache_bytes(CACHE_BYTES)
        .write_buffer_bytes_max(WRITE_BUFFER_BYTES)
        .open()?;
    let partition = keyspace.partition("loaded", options)?;
    let began = Instant::now();
    let mut bytes = 0;
    source(&mut |key, value| {
        bytes += (key.len() + value.len()) as u64;
        Ok(partition.insert(key, value)?)
    })?;
    let written = began.elapsed();
    drop(partition);
    keyspace.close()?;
    let resident_peak = machine::resident_peak()?;
    Ok(Loaded { bytes, written, closed: began.elapsed(), resident_peak })
}

type Insert<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<()>;

fn random_entries(bytes: u64, value_bytes: usize, insert: Insert<'_>) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(2);
    let mut value = vec![b'v'; value_bytes];
    for _ in 0..bytes / (value_bytes as u64 + 16) {
        random.fill_bytes(&mut value[..value_bytes / 2]);
        insert(&random.random::<u128>().to_be_bytes(), &value)?;
    }
    Ok(())
}

impl Loaded {
    fn report(&self, what: &str, read: Option<f64>, memory: &mut Table, speed: &mut Table) {
        let promised = CACHE_BYTES + WRITE_BUFFER_BYTES;
        memory.row([
            what.to_owned(),
            mebibytes(self.bytes),
            mebibytes(self.resident_peak),
            mebibytes(promised),
            mebibytes(self.resident_peak.saturating_sub(promised)),
        ]);
        let rate = |bytes: f64| format!("{:.0}", bytes / f64::from(1 << 20));
        speed.row([
            what.to_owned(),
            rate(self.bytes as f64 / self.written.as_secs_f64()),
            rate(self.bytes as f64 / self.closed.as_secs_f64()),
            read.map_or("".to_owned(), rate),
        ]);
    }
}

/// A directory of files, in the order of their names.
struct FileTree {
    files: Vec<PathBuf>,
}

impl FileTree {
    fn make(root: &Path, bytes: u64) -> Result<Self> {
        let mut random = SmallRng::seed_from_u64(3);
        let (mut files, mut made) = (Vec::new(), 0);
        while made < bytes {
            let directory = root.join((files.len() / FILES_PER_DIRECTORY).to_string());
            fs::create_dir_all(&directory)?;
            let path = directory.join(files.len().to_string());
            let len = 1 << random.random_range(SIZE_BITS);
            let len = random.random_range(len..2 * len);
            // Half of it compresses, as text does.
            let mut content = vec![b' '; len];
            random.fill_bytes(&mut content[..len / 2]);
            File::create(&path)?.write_all(&content)?;
            made += len as u64;
            files.push(path);
        }
        rustix::fs::syncfs(File::open(root)?)?;
        Ok(Self { files })
    }

    fn find(root: &Path) -> Result<Self> {
        let (mut files, mut directories) = (Vec::new(), vec![root.to_path_buf()]);
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    directories.push(entry.path());
                } else if kind.is_file() {
                    files.push(entry.path());
                }
            }
        }
        files.sort();
        Ok(Self { files })
    }

    /// The next read comes from the disk.
    fn forget(&self) -> Result<()> {
        for path in &self.files {
            rustix::fs::fadvise(File::open(path)?, 0, None, rustix::fs::Advice::DontNeed)?;
        }
        Ok(())
    }

    /// A few threads read, a few files ahead of the one that takes them.
    fn read(&self, each: Insert<'_>) -> Result<()> {
        let (sender, receiver) = mpsc::sync_channel(FILES_AHEAD);
        let next = &AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..READERS {
                let sender = sender.clone();
                scope.spawn(move || {
                    while let Some(path) = self.files.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if sender.send((path, fs::read(path))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for (path, content) in receiver {
                each(path.as_os_str().as_bytes(), &content?)?;
            }
            Ok(())
        })
    }
}
