//! Resident memory while a keyspace is loaded, against what it was promised, and how fast the load
//! is beside reading the same bytes and nothing else.
#![expect(clippy::print_stdout, reason = "tables are what the program is for")]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
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
const WRITE_BUFFER_BYTES: u64 = 192 << 20;
/// Files that were read and wait for their insert.
const FILES_AHEAD: usize = 16;
const FILES_PER_DIRECTORY: usize = 512;
/// The sizes of files of a real tree spread over many powers of two; these are 1 KiB to 1 MiB.
const SIZE_BITS: std::ops::RangeInclusive<u32> = 10..=19;

fn main() -> Result<()> {
    let arguments = Arguments::parse(&["what", "gib", "value", "dir"])?;
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
            let loaded = load(dir.path(), |insert| random_entries(bytes, value_bytes, insert))?;
            let what = format!("{value_bytes} B values, random keys");
            loaded.report(&what, None, &mut memory, &mut speed);
        }
        "tree" => {
            let tree = FileTree::make(&dir.path().join("tree"), bytes)?;
            tree.forget()?;
            let began = Instant::now();
            let read = tree.read(|_, _| Ok(()))?;
            let alone = read as f64 / began.elapsed().as_secs_f64();
            tree.forget()?;
            let loaded = load(dir.path(), |insert| tree.read_ahead(insert))?;
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
fn load(dir: &Path, source: impl FnOnce(Insert<'_>) -> Result<()>) -> Result<Loaded> {
    machine::forget_peak()?;
    let keyspace = Config::new(dir.join("keyspace"))
        .cache_bytes(CACHE_BYTES)
        .write_buffer_bytes_max(WRITE_BUFFER_BYTES)
        .open()?;
    let partition = keyspace.partition("loaded", PartitionOptions::default())?;
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

    /// The next read comes from the disk.
    fn forget(&self) -> Result<()> {
        for path in &self.files {
            rustix::fs::fadvise(File::open(path)?, 0, None, rustix::fs::Advice::DontNeed)?;
        }
        Ok(())
    }

    fn read(&self, mut each: impl FnMut(&Path, Vec<u8>) -> Result<()>) -> Result<u64> {
        let mut bytes = 0;
        for path in &self.files {
            let content = fs::read(path)?;
            bytes += content.len() as u64;
            each(path, content)?;
        }
        Ok(bytes)
    }

    /// One thread reads, a few files ahead of the one that inserts.
    fn read_ahead(&self, insert: Insert<'_>) -> Result<()> {
        let (sender, receiver) = mpsc::sync_channel(FILES_AHEAD);
        thread::scope(|scope| {
            let reader = scope.spawn(move || {
                self.read(|path, content| Ok(sender.send((path.to_path_buf(), content))?))
            });
            for (path, content) in receiver {
                insert(path.as_os_str().as_bytes(), &content)?;
            }
            reader.join().map_err(|_| "the reading thread panicked")??;
            Ok(())
        })
    }
}
