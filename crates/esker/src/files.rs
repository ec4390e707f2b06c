//! Every local file name, and the few file operations whose order matters.
//!
//! What must stay true: no other module spells a file name; a name becomes visible only after its
//! bytes are synced (`replace`), and is durable only after its directory is synced (`sync_dir`).

use std::ffi::{OsStr, OsString};
/// Files of the journal are these, and others in the thread tests.
pub(crate) use std::fs::File;
use std::fs::{self, DirBuilder, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, IoContext, Result};
use crate::planted::{Bug, is_planted, unless};

pub(crate) const LOCK: &str = "LOCK";
pub(crate) const CATALOG: &str = "CATALOG";
pub(crate) const CHECKPOINT: &str = "CHECKPOINT";
pub(crate) const JOURNAL: &str = "journal";
pub(crate) const PARTITIONS: &str = "partitions";
pub(crate) const STAGING: &str = "staging";
/// Directories and files inside one tree's directory; the names are lsm-tree's.
pub(crate) const TABLES: &str = "tables";
pub(crate) const BLOBS: &str = "blobs";
pub(crate) const CURRENT: &str = "current";
const REMOVING: &str = ".esker-removing-";
const REMOVING_DIGITS: usize = 16;
const TEMPORARY_SUFFIX: &str = "tmp";
const SEGMENT_SUFFIX: &str = ".jnl";
const SEGMENT_DIGITS: usize = 20;

const COPY_BUFFER_BYTES: usize = 1 << 20;
const DIRECTORY_MODE: u32 = 0o700;
pub(crate) const FILE_MODE: u32 = 0o600;

pub(crate) fn lock(root: &Path) -> PathBuf {
    root.join(LOCK)
}
pub(crate) fn catalog(root: &Path) -> PathBuf {
    root.join(CATALOG)
}
pub(crate) fn checkpoint(root: &Path) -> PathBuf {
    root.join(CHECKPOINT)
}
pub(crate) fn journal(root: &Path) -> PathBuf {
    root.join(JOURNAL)
}
pub(crate) fn partitions(root: &Path) -> PathBuf {
    root.join(PARTITIONS)
}
pub(crate) fn staging(root: &Path) -> PathBuf {
    root.join(STAGING)
}
pub(crate) fn tree(root: &Path, id: u64) -> PathBuf {
    partitions(root).join(id.to_string())
}
pub(crate) fn tables(tree: &Path) -> PathBuf {
    tree.join(TABLES)
}
pub(crate) fn table(tree: &Path, id: u64) -> PathBuf {
    tables(tree).join(numbered(id))
}
pub(crate) fn blobs(tree: &Path) -> PathBuf {
    tree.join(BLOBS)
}
pub(crate) fn blob(tree: &Path, id: u64) -> PathBuf {
    blobs(tree).join(numbered(id))
}
pub(crate) fn current(tree: &Path) -> PathBuf {
    tree.join(CURRENT)
}
pub(crate) fn version(tree: &Path, id: u64) -> PathBuf {
    tree.join(format!("v{id}"))
}

/// A link that is made and removed to see whether it can be.
pub(crate) fn probe(unfinished: &Path) -> PathBuf {
    unfinished.join("probe")
}
/// The name of a table or blob file in its directory.
pub(crate) fn numbered(id: u64) -> String {
    id.to_string()
}

/// `journal/00000000000000000042.jnl`
pub(crate) fn segment(root: &Path, id: u64) -> PathBuf {
    journal(root).join(segment_name(id))
}
pub(crate) fn segment_name(id: u64) -> String {
    format!("{id:0SEGMENT_DIGITS$}{SEGMENT_SUFFIX}")
}

/// The id in a segment's file name; `None` for any other name.
pub(crate) fn parse_segment(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SEGMENT_SUFFIX)?;
    let canonical = digits.len() == SEGMENT_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
    canonical.then(|| digits.parse().ok()).flatten()
}

/// The id in a tree's directory name or a table's file name.
pub(crate) fn parse_id(name: &str) -> Option<u64> {
    let id: u64 = name.parse().ok()?;
    (id.to_string() == name).then_some(id)
}

/// The hidden directory in which a checkpoint or copy for `target` is built, beside it.
pub(crate) fn unfinished(target: &Path, tag: u64) -> Result<PathBuf> {
    if is_planted(Bug::BuiltUnderItsName) {
        return Ok(target.to_path_buf());
    }
    let name = target.file_name().ok_or_else(|| {
        Error::InvalidInput(format!("{} does not name a directory to create", target.display()))
    })?;
    Ok(parent(target).join(format!(".{}.esker-{tag:016x}", name.to_string_lossy())))
}

/// Whether a directory of this name is one that somebody builds or removes: what [`unfinished`] and
/// [`removing`] name, and what pushes and restores of backups do.
pub(crate) fn is_passing(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with('.') && name.contains(".esker-")
}

/// The hidden name that the directory `path` gets before it is removed, beside it.
pub(crate) fn removing(path: &Path, tag: u64) -> Option<PathBuf> {
    let mut name = OsString::from(".");
    name.push(path.file_name()?);
    name.push(format!("{REMOVING}{tag:0REMOVING_DIGITS$x}"));
    Some(parent(path).join(name))
}

/// What was removed under this hidden name; `None` for any other name.
pub(crate) fn parse_removing(name: &OsStr) -> Option<&OsStr> {
    let bytes = name.as_bytes().strip_prefix(b".")?;
    let (rest, tag) = bytes.split_at_checked(bytes.len().checked_sub(REMOVING_DIGITS)?)?;
    let is_hex = tag.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    let removed = rest.strip_suffix(REMOVING.as_bytes()).filter(|removed| !removed.is_empty())?;
    is_hex.then(|| OsStr::from_bytes(removed))
}

/// The directory that holds `path`; `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Whether there is anything at `path`. A disk that cannot say is an error and not a no.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    Ok(look(path)?.is_some())
}

/// Whether a directory is at `path`.
pub(crate) fn is_dir(path: &Path) -> Result<bool> {
    Ok(look(path)?.is_some_and(|metadata| metadata.is_dir()))
}

/// What is at `path`, if anything is.
pub(crate) fn look(path: &Path) -> Result<Option<Metadata>> {
    match fs::metadata(path) {
        Err(e) if is_absence(&e) => Ok(None),
        other => other.map(Some).at("inspect", path),
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether the name is in use, be it by a symbolic link that leads nowhere.
pub(crate) fn is_taken(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Err(e) if is_absence(&e) => Ok(false),
        other => other.map(|_| true).at("inspect", path),
    }
}

/// Makes one directory, private to its owner. It may exist.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.at("create the directory", path),
    }
}

/// Makes a directory that must not exist yet.
pub(crate) fn create_new_dir(path: &Path) -> Result<()> {
    DirBuilder::new().mode(DIRECTORY_MODE).create(path).at("create the directory", path)
}

/// Makes a directory and its missing parents, each durable in the one above it.
pub(crate) fn create_dir_all_durably(path: &Path) -> Result<()> {
    if is_dir(path)? {
        return Ok(());
    }
    let above = parent(path);
    if is_dir(above)? {
        // An attempt that did not come to the sync may have made it.
        match sync_dir(parent(above)) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {}
            synced => synced?,
        }
    } else {
        create_dir_all_durably(above)?;
    }
    create_dir(path)?;
    unless(Bug::NewKeyspaceNameNotSynced, || sync_dir(above))
}

/// Makes what the directory names durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).at("sync the directory", path)
}

/// Syncs a file or directory by name.
pub(crate) fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).at("sync", path)
}

/// Makes everything written to the filesystem that holds `dir` durable with one call. False where
/// such a call does not exist or is not known to wait: the caller syncs file by file then.
pub(crate) fn sync_filesystem(dir: &Path) -> Result<bool> {
    match open_filesystem(dir)? {
        Some(handle) => sync_opened(&handle, dir).map(|()| true),
        None => Ok(false),
    }
}

/// Makes a directory and everything below it durable.
pub(crate) fn sync_below(root: &Path) -> Result<()> {
    if sync_filesystem(root)? {
        return Ok(());
    }
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for name in names(&dir)? {
            let path = dir.join(name);
            if is_dir(&path)? {
                dirs.push(path);
            } else {
                sync(&path)?;
            }
        }
        sync(&dir)?;
    }
    Ok(())
}

/// The directory, opened, if [`sync_opened`] works for the filesystem that holds it.
pub fn open_filesystem(dir: &Path) -> Result<Option<File>> {
    #[cfg(target_os = "linux")]
    {
        // Magic numbers of statfs(2). FUSE, for one, has the call and passes nothing on.
        const EXT4: i64 = 0xef53;
        const XFS: i64 = 0x5846_5342;
        const BTRFS: i64 = 0x9123_683e;
        const F2FS: i64 = 0xf2f5_2010;
        let handle = File::open(dir).at("open", dir)?;
        let kind = rustix::fs::fstatfs(&handle).at("inspect the filesystem of", dir)?.f_type;
        if [EXT4, XFS, BTRFS, F2FS].contains(&kind) {
            return Ok(Some(handle));
        }
    }
    Ok(None)
}

/// Syncs the filesystem of a directory that [`open_filesystem`] has opened.
pub fn sync_opened(handle: &File, dir: &Path) -> Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(handle).at("sync the filesystem of", dir)?;
    Ok(())
}

/// Creates a file that must not exist, without syncing it.
pub(crate) fn create_file(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)
        .at("create", path)
}

/// Reserves space. Filesystems that cannot are written to as the segment grows.
pub(crate) fn preallocate(file: &File, path: &Path, bytes: u64) -> Result<()> {
    // It can take long, so a signal can interrupt it.
    let allocate = || rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes);
    match rustix::io::retry_on_intr(allocate) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        Err(errno) => Err(Error::io("preallocate", path, errno.into())),
    }
}

/// Writes a new file; the caller syncs it.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<File> {
    let mut file = create_file(path)?;
    file.write_all(bytes).at("write", path)?;
    Ok(file)
}

/// Replaces a file atomically and durably: write, sync, rename, sync the directory.
///
/// An error of kind `Retry` means that the old file is still there. Once the rename is done nothing
/// may be reported as if it were not: a failed sync of the directory is never `Retry`.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if is_planted(Bug::CatalogWrittenInPlace) && exists(path)? {
        return fs::write(path, bytes)
            .and_then(|()| File::open(path)?.sync_all())
            .at("write", path);
    }
    replace_by(path, |file| file.write_all(bytes))
}

/// Puts the first `len` bytes of a file, as they are read now, into a new file of its name, as
/// [`replace`] does. What is read may be in the page cache alone.
pub(crate) fn renew(path: &Path, len: u64) -> Result<()> {
    let old = File::open(path).at("open", path)?;
    replace_by(path, |file| match copy_bytes(&mut old.take(len), file)? {
        copied if copied == len => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    })
}

/// Reads to the end and writes it, by way of memory. `io::copy` lets the filesystem do it, which
/// shares extents where it can, and with them what is on the disk instead of what is read.
pub(crate) fn copy_bytes(from: &mut impl Read, to: &mut File) -> io::Result<u64> {
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    let mut copied = 0;
    loop {
        let read = retry_interrupted(|| from.read(&mut buffer))?;
        if read == 0 {
            return Ok(copied);
        }
        to.write_all(&buffer[..read])?;
        copied += read as u64;
    }
}

fn replace_by(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let temporary = path.with_extension(TEMPORARY_SUFFIX);
    remove_if_present(&temporary)?;
    let written = (|| {
        let mut file = create_file(&temporary)?;
        write(&mut file).at("write", &temporary)?;
        unless(Bug::ReplacedFileNotSynced, || file.sync_all().at("sync", &temporary))?;
        let dir = File::open(parent(path)).at("open", parent(path))?;
        fs::rename(&temporary, path).at("rename", &temporary)?;
        Ok(dir)
    })();
    let dir = written.inspect_err(|_| {
        // A leftover is removed by the next replacement at the latest.
        let _ = fs::remove_file(&temporary);
    })?;
    let undecided = |e: io::Error| io::Error::other(e.to_string());
    unless(Bug::ReplacedNameNotSynced, || {
        dir.sync_all().map_err(undecided).at("sync the directory", parent(path))
    })
}

/// Whether `name` is the leftover of an interrupted [`replace`].
pub(crate) fn is_temporary(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e == TEMPORARY_SUFFIX)
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).at("read", path)
}

pub(crate) fn remove_if_present(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", path),
    }
}

pub(crate) fn remove_dir_if_present(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove the directory", path),
    }
}

/// Removes whatever is at `path`, file or directory.
pub(crate) fn remove(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
        remove_dir_if_present(path)
    } else {
        remove_if_present(path)
    }
}

/// The names in a directory, sorted, so that everything derived from them is repeatable.
/// A missing directory has none.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>> {
    // The standard library opens files again after EINTR, and directories not.
    let entries = match retry_interrupted(|| fs::read_dir(dir)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.at("list", dir)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.at("list", dir)?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Calls again after EINTR.
fn retry_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Renames a finished directory to its name, which must not exist, and makes that durable.
pub(crate) fn publish(unfinished: &Path, target: &Path) -> Result<()> {
    let here = rustix::fs::CWD;
    match rustix::fs::renameat_with(here, unfinished, here, target, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(Errno::EXIST | Errno::NOTEMPTY) => {
            return Err(Error::TargetExists { path: target.to_path_buf() });
        }
        // Filesystems without the flag: a directory rename never replaces a non-empty directory.
        Err(Errno::INVAL | Errno::NOSYS) => {
            if is_taken(target)? {
                return Err(Error::TargetExists { path: target.to_path_buf() });
            }
            fs::rename(unfinished, target).at("rename", unfinished)?;
        }
        Err(errno) => return Err(Error::io("rename", unfinished, errno.into())),
    }
    unless(Bug::PublishedNameNotSynced, || sync_dir(parent(target)))
}

/// A number nobody else draws: for names of unfinished directories, uuids and timelines.
pub(crate) fn random_u128() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    // Each RandomState is keyed by the operating system's generator (advanced for the later ones of
    // a thread); time and process keep apart what a cloned machine would draw alike.
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_nanos());
    let half =
        || RandomState::new().hash_one((now, std::process::id(), std::thread::current().id()));
    (u128::from(half()) << 64) | u128::from(half())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_names_round_trip_and_nothing_else_parses() {
        for id in [0, 1, 42, u64::MAX] {
            let path = segment(Path::new("k"), id);
            assert_eq!(parse_segment(path.file_name().unwrap().to_str().unwrap()), Some(id));
        }
        for name in ["1.jnl", "x.jnl", "00000000000000000001", "+0000000000000000001.jnl", ""] {
            assert_eq!(parse_segment(name), None, "{name:?}");
        }
        for name in ["01", "+1", "a", "", "1 "] {
            assert_eq!(parse_id(name), None, "{name:?}");
        }
    }

    #[test]
    fn names_of_what_is_removed_round_trip_and_nothing_else_parses() {
        let hidden = removing(Path::new("backups/a.b"), 0xf1).unwrap();
        assert_eq!(hidden, Path::new("backups/.a.b.esker-removing-00000000000000f1"));
        let name = hidden.file_name().unwrap();
        assert_eq!(parse_removing(name), Some(OsStr::new("a.b")));
        assert!(is_passing(name));
        let unfinished = unfinished(Path::new("backups/a"), 7).unwrap();
        assert!(is_passing(unfinished.file_name().unwrap()));
        for other in [
            ".a.esker-00000000000000f1",
            "a.esker-removing-00000000000000f1",
            "..esker-removing-00000000000000f1",
            ".a.esker-removing-00000000000000f",
            ".a.esker-removing-00000000000000F1",
            ".a.esker-removing-00000000000000f1x",
            "",
            ".",
        ] {
            assert_eq!(parse_removing(OsStr::new(other)), None, "{other:?}");
        }
        assert!(!is_passing(OsStr::new("2026.esker-1")) && !is_passing(OsStr::new(".esker")));
    }

    #[test]
    fn an_existing_target_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        create_new_dir(&from).unwrap();
        create_new_dir(&to).unwrap();
        assert!(matches!(publish(&from, &to), Err(Error::TargetExists { .. })));
        assert!(from.is_dir());
    }

    #[test]
    fn a_renewed_file_has_the_bytes_that_were_asked_for_or_stays_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.jnl");
        let bytes: Vec<u8> = (0..COPY_BUFFER_BYTES + 7).map(|at| at as u8).collect();
        fs::write(&path, &bytes).unwrap();
        assert!(renew(&path, bytes.len() as u64 + 1).is_err(), "so much is not there");
        assert_eq!(fs::read(&path).unwrap(), bytes);
        let second_name = dir.path().join("linked");
        fs::hard_link(&path, &second_name).unwrap();
        renew(&path, bytes.len() as u64 - 5).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes[..bytes.len() - 5]);
        assert_eq!(fs::read(&second_name).unwrap(), bytes, "the inode is somebody else's, too");
    }
}
