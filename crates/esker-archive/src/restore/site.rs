//! The unfinished directory of a restore: whose it is, what is written in it already, and how it gets its
//! name.
//!
//! What must stay true: nothing in it is followed or kept that an interrupted restore of the same backup
//! could not have left; it is locked from when it is found to when it has its name; everything is durable
//! before that.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128;

use super::target::Task;
use crate::error::{Error, IoContext as _, Result};
use crate::layout::PIECE_BYTES;
use crate::manifest::Manifest;
use crate::piece::FRAME_BYTES;

/// What a restore was at when it was interrupted; in the unfinished directory.
const RECORD: &str = ".esker-restore";
const RECORD_BYTES: usize = 12;
const MODE_DIR: u32 = 0o700;
const MODE_FILE: u32 = 0o600;

/// The unfinished directory and the record of what is in it.
pub(super) struct Site {
    pub(super) dir: PathBuf,
    /// Of the directory, which keeps it when it gets its name: nobody else works in it until it has.
    _lock: File,
    record: Mutex<File>,
    /// Opened before anything is written, to be told of everything that fails to reach the disk.
    filesystem: Option<File>,
    written: Written,
}

/// Frames that an interrupted attempt wrote: a bit for each, by file and piece.
struct Written(HashMap<(u32, u32), u32>);

const _: () = assert!(PIECE_BYTES / FRAME_BYTES == u32::BITS as u64, "a bit for each");

impl Written {
    /// From its beginning; the part of an entry that a full disk or a power cut has left goes.
    fn read(record: &File) -> io::Result<Self> {
        let mut written = HashMap::<_, u32>::new();
        let mut reader = BufReader::new(record);
        let (mut entry, mut bytes) = ([0; RECORD_BYTES], 0);
        while read_whole(&mut reader, &mut entry)? {
            bytes += RECORD_BYTES as u64;
            let number =
                |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes"));
            if let Some(frame) = 1_u32.checked_shl(number(8)) {
                *written.entry((number(0), number(4))).or_default() |= frame;
            }
        }
        record.set_len(bytes)?;
        Ok(Self(written))
    }
}

/// Whether there was as much.
fn read_whole(reader: &mut impl io::Read, bytes: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}

impl Site {
    /// Creates the directory, or finds that of an interrupted attempt.
    pub(super) fn open(target: &Path, manifest: &Manifest) -> Result<Self> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let id = manifest.id;
        // Another set of partitions is another restore.
        let parts = xxh3_128(manifest.partitions.join("\0").as_bytes()) as u32;
        let name = format!(".{name}.esker-restore-{:016x}-{:x}-{parts:08x}", id.tag, id.seqno);
        let dir = parent(target).join(name);
        let lock = own(&dir)?;
        let filesystem = esker::open_filesystem(&dir)?;
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
        let record = no_follow(&mut options).open(&path).at("open", &path)?;
        let written = Written::read(&record).at("read", &path)?;
        Ok(Self { dir, _lock: lock, record: Mutex::new(record), filesystem, written })
    }

    /// Frame by frame: an earlier attempt may have taken other steps.
    pub(super) fn is_written(&self, task: &Task) -> bool {
        let frames = (task.first_frame..task.end_frame).fold(0, |frames, it| frames | 1 << it);
        let written = self.written.0.get(&(task.file, task.piece)).copied().unwrap_or(0);
        written & frames == frames
    }

    /// Takes note of frames that were written.
    pub(super) fn note(&self, task: &Task) -> Result<()> {
        let frames = task.first_frame..task.end_frame;
        let mut entries = Vec::with_capacity(RECORD_BYTES * frames.len());
        for frame in frames {
            for number in [task.file, task.piece, frame] {
                entries.extend_from_slice(&number.to_le_bytes());
            }
        }
        let written = self.record.lock().write_all(&entries);
        written.at("write", &self.dir.join(RECORD))
    }

    /// Makes everything durable and gives it its name.
    pub(super) fn publish(
        &self,
        target: &Path,
        kept: Option<BTreeSet<String>>,
        delta: bool,
    ) -> Result<()> {
        let dir = &self.dir;
        // It will have the name of the unfinished directory, where others would go on.
        let _old = if delta { lock_old(target)? } else { None };
        if let Some(names) = kept {
            esker::keep_partitions(dir, names)?;
        }
        self.sync()?;
        if !delta && fs::symlink_metadata(target).is_ok() {
            return Err(Error::TargetExists { path: target.to_owned() });
        }
        // Last of all: without it everything is fetched again.
        let record = dir.join(RECORD);
        fs::remove_file(&record).at("remove", &record)?;
        File::open(dir).and_then(|dir| dir.sync_all()).at("sync", dir)?;
        let flags = if delta {
            rustix::fs::RenameFlags::EXCHANGE
        } else {
            rustix::fs::RenameFlags::NOREPLACE
        };
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

    /// Everything, with one call where the filesystem is known to wait.
    fn sync(&self) -> Result<()> {
        match &self.filesystem {
            Some(handle) => Ok(esker::sync_opened(handle, &self.dir)?),
            None => sync_below(&self.dir),
        }
    }
}

/// Files, then the directories that name them.
fn sync_below(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        let path = entry.path();
        if entry.file_type().at("list", &path)?.is_dir() {
            sync_below(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).at("sync", &path)?;
        }
    }
    File::open(dir).and_then(|dir| dir.sync_all()).at("sync", dir)
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
    lock_as_named(lock, dir, "another restore of this backup to this target is at work")
}

/// The lock of the directory that a delta replaces, which open keyspaces have as well; none if it is no
/// directory.
pub(super) fn lock_old(target: &Path) -> Result<Option<File>> {
    if !fs::symlink_metadata(target).is_ok_and(|found| found.is_dir()) {
        return Ok(None);
    }
    let old = File::open(target).at("open", target)?;
    lock_as_named(old, target, "it is open as a keyspace, or another restore replaces it").map(Some)
}

/// The lock of a directory that still has this name.
fn lock_as_named(open: File, dir: &Path, by: &str) -> Result<File> {
    let busy = || Error::Busy { what: dir.display().to_string(), by: by.to_owned() };
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

pub(super) fn no_follow(options: &mut fs::OpenOptions) -> &mut fs::OpenOptions {
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
}

/// A file of the unfinished directory, made if it is not there.
pub(super) fn create(path: &Path) -> Result<File> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(MODE_FILE);
    no_follow(&mut options).open(path).at("create", path)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."))
}
