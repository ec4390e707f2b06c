//! The lock of a keyspace, and whose lock it is.
//!
//! What must stay true: LOCK is one inode for as long as anybody locks it, so it is written in place
//! and replaced only where it is another directory's as well (and locked by nobody here). A write that
//! is cut short leaves a file that names nobody, which is as good as an empty one; a file that names
//! somebody is right about it. So LOCK must not name another keyspace once CATALOG is there, and
//! should name this one before anything else is changed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use crate::bytes::{Put, Take, Truncated};
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::planted::{Bug, is_planted};

const MAGIC: &[u8; 8] = b"ESKRLCK\0";
/// The newest LOCK this build reads and the one it writes.
const FORMAT_VERSION: u32 = 1;
const LEN: usize = 40;
const _: () = assert!(LEN == MAGIC.len() + 4 + 4 + 16 + 8);

/// Who may have the keyspace open at the same time.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Exclusive,
    Shared,
}

/// The lock of a keyspace, held while this lives.
///
/// Both the LOCK file and the directory itself are locked: someone who removes the LOCK file of an
/// open keyspace does not thereby get a second open.
#[derive(Debug)]
pub(crate) struct KeyspaceLock {
    directory: File,
    file: Option<File>,
}

impl Drop for KeyspaceLock {
    /// Closing the descriptors is not enough: a process that another thread is just starting holds
    /// copies of them until its exec.
    fn drop(&mut self) {
        for file in [Some(&self.directory), self.file.as_ref()].into_iter().flatten() {
            // What cannot be unlocked was not locked, or is when the descriptor is closed.
            let _ = rustix::fs::flock(file, FlockOperation::Unlock);
        }
    }
}

impl KeyspaceLock {
    /// Locks, or says at once that somebody else does.
    pub(crate) fn acquire(root: &Path, access: Access) -> Result<Self> {
        let directory = File::open(root).at("open", root)?;
        flock(&directory, access, root)?;
        let path = files::lock(root);
        let file = match access {
            Access::Exclusive => Some(open_or_create(&path)?),
            // A reader changes nothing, so it does not create the file either.
            Access::Shared => open_own(&path)?,
        };
        if let Some(file) = &file {
            flock(file, access, root)?;
        }
        Ok(Self { directory, file })
    }

    /// Locks the directory alone, exclusively, without creating anything in it.
    pub(crate) fn acquire_untouched(root: &Path) -> Result<Self> {
        let directory = File::open(root).at("open", root)?;
        flock(&directory, Access::Exclusive, root)?;
        let file = open_own(&files::lock(root))?;
        if let Some(file) = &file {
            flock(file, Access::Exclusive, root)?;
        }
        Ok(Self { directory, file })
    }

    /// Makes LOCK name the keyspace, or nobody, durably. Needs the exclusive lock.
    pub(crate) fn name(&self, root: &Path, uuid: Option<u128>) -> Result<()> {
        let (path, bytes) = (files::lock(root), uuid.map(encode).unwrap_or_default());
        let Some(file) = &self.file else { return Ok(()) };
        // That it names nobody may be in the page cache alone, over a name on the disk.
        if uuid.is_some() && read(file).at("read", &path)? == bytes {
            return Ok(());
        }
        let write = || {
            file.write_all_at(&bytes, 0)?;
            file.set_len(bytes.len() as u64)?;
            file.sync_all()
        };
        write().at("write", &path)
    }
}

/// Opens LOCK for whoever may write. The copy of a directory by hard links shares the file with its
/// source, and neither must keep the other out or write over its name: it gets a new one. The
/// directory is locked, so nobody else does this.
fn open_or_create(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(files::FILE_MODE);
    let file = options.open(path).at("open", path)?;
    if file.metadata().at("inspect", path)?.nlink() < 2 {
        return Ok(file);
    }
    files::remove_if_present(path)?;
    options.open(path).at("create", path)
}

/// Opens LOCK without changing anything; none if it is missing, not ours to read, or shared with
/// another directory, whose lock it is as well.
fn open_own(path: &Path) -> Result<Option<File>> {
    let Some(file) = open_if_allowed(path)? else { return Ok(None) };
    let shared = file.metadata().at("inspect", path)?.nlink() > 1;
    Ok((!shared).then_some(file))
}

/// A reader may be kept from LOCK, and takes it for missing.
fn open_if_allowed(path: &Path) -> Result<Option<File>> {
    use io::ErrorKind::{NotFound, PermissionDenied};
    match File::open(path) {
        Err(e) if matches!(e.kind(), NotFound | PermissionDenied) => Ok(None),
        file => file.map(Some).at("open", path),
    }
}

fn flock(file: &File, access: Access, root: &Path) -> Result<()> {
    let operation = match access {
        Access::Exclusive => FlockOperation::NonBlockingLockExclusive,
        Access::Shared => FlockOperation::NonBlockingLockShared,
    };
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(Error::Locked { path: root.to_path_buf() }),
        // Some network filesystems cannot lock a directory; the LOCK file still is.
        Err(Errno::BADF | Errno::OPNOTSUPP | Errno::INVAL) if is_open_dir(file) => Ok(()),
        Err(errno) => Err(Error::io("lock", root, errno.into())),
    }
}

fn is_open_dir(file: &File) -> bool {
    file.metadata().is_ok_and(|m| m.is_dir())
}

/// What LOCK says in the keyspace `uuid`.
pub(crate) fn encode(uuid: u128) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LEN);
    bytes.put(MAGIC);
    bytes.put_u32(FORMAT_VERSION);
    bytes.put_u32(0);
    bytes.put_u128(uuid);
    let checksum = xxh3_64(&bytes);
    bytes.put_u64(checksum);
    bytes
}

/// The keyspace that LOCK names; none if it is empty, was cut short or has rotted.
fn decode(bytes: &[u8], path: &Path) -> Result<Option<u128>> {
    let parse = || -> std::result::Result<_, Truncated> {
        let mut input = Take::new(bytes);
        let magic = input.bytes(MAGIC.len())?;
        let (version, _, uuid) = (input.u32()?, input.u32()?, input.u128()?);
        let whole = magic == MAGIC && input.u64()? == xxh3_64(&bytes[..LEN - 8]);
        Ok(whole.then_some((version, uuid)))
    };
    match parse() {
        Ok(Some((FORMAT_VERSION, uuid))) => Ok(Some(uuid)),
        Ok(Some((found, _))) => {
            let (path, supported) = (path.to_path_buf(), FORMAT_VERSION);
            Err(Error::UnsupportedFormat { path, found, supported })
        }
        Ok(None) | Err(Truncated) => Ok(None),
    }
}

/// Refuses a directory whose LOCK names another keyspace than its CATALOG, which has `uuid`.
pub(crate) fn check_owner(root: &Path, uuid: u128) -> Result<()> {
    let path = files::lock(root);
    let Some(file) = open_if_allowed(&path)? else { return Ok(()) };
    match decode(&read(&file).at("read", &path)?, &path)? {
        Some(owner) if owner != uuid && !is_planted(Bug::OwnerNotChecked) => {
            Err(Error::corrupt_because(
                &path,
                None,
                "it names another keyspace than CATALOG; without LOCK, CATALOG is believed",
                format!("keyspace {uuid:032x}, as in CATALOG"),
                format!("keyspace {owner:032x}"),
            ))
        }
        _ => Ok(()),
    }
}

/// As much of LOCK as means something.
fn read(file: &File) -> io::Result<Vec<u8>> {
    let (mut bytes, mut len) = (vec![0; LEN], 0);
    while len < LEN {
        match file.read_at(&mut bytes[len..], len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acquire(root: &Path) -> Result<KeyspaceLock> {
        KeyspaceLock::acquire(root, Access::Exclusive)
    }

    #[test]
    fn removing_the_lock_file_does_not_unlock() {
        let dir = tempfile::tempdir().unwrap();
        let _held = acquire(dir.path()).unwrap();
        std::fs::remove_file(files::lock(dir.path())).unwrap();
        let second = acquire(dir.path());
        assert!(matches!(second, Err(Error::Locked { .. })));
    }

    #[test]
    fn a_lock_names_its_keyspace_and_refuses_another() {
        let dir = tempfile::tempdir().unwrap();
        let lock = acquire(dir.path()).unwrap();
        check_owner(dir.path(), 7).unwrap();
        lock.name(dir.path(), Some(7)).unwrap();
        check_owner(dir.path(), 7).unwrap();
        let refused = check_owner(dir.path(), 8).unwrap_err();
        assert!(matches!(&refused, Error::Corrupt(c) if c.path == files::lock(dir.path())));
        lock.name(dir.path(), None).unwrap();
        check_owner(dir.path(), 8).unwrap();
    }

    #[test]
    fn directories_that_share_the_file_by_a_hard_link_are_locked_and_named_by_themselves() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        acquire(one.path()).unwrap().name(one.path(), Some(7)).unwrap();
        std::fs::hard_link(files::lock(one.path()), files::lock(other.path())).unwrap();
        let untouched = KeyspaceLock::acquire_untouched(one.path()).unwrap();
        let held = acquire(other.path()).unwrap();
        check_owner(other.path(), 8).unwrap();
        held.name(other.path(), Some(8)).unwrap();
        check_owner(one.path(), 7).unwrap();
        drop(untouched);
        let _both = acquire(one.path()).unwrap();
    }

    #[test]
    fn a_lock_that_is_not_whole_names_nobody_and_a_newer_one_is_not_read() {
        let (path, whole) = (Path::new("LOCK"), encode(7));
        assert_eq!(decode(&whole, path).unwrap(), Some(7));
        for len in 0..LEN {
            assert_eq!(decode(&whole[..len], path).unwrap(), None, "{len} bytes");
        }
        for bit in 0..LEN * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bytes, path).unwrap(), None, "bit {bit}");
        }
        let mut newer = whole;
        newer[8] = 2;
        let checksum = xxh3_64(&newer[..LEN - 8]);
        newer[LEN - 8..].copy_from_slice(&checksum.to_le_bytes());
        assert!(matches!(decode(&newer, path), Err(Error::UnsupportedFormat { found: 2, .. })));
    }
}
