//! The ladder by which files get from one directory to another: hard link, else reflink, else copy.
//!
//! What must stay true: an inode is shared only between names that nobody writes to, so the caller
//! says which files are immutable (`place`) and which are not (`duplicate`); a rung that does not
//! work here, for this file or on this filesystem, leaves nothing behind; whatever else goes wrong is
//! an error and not a reason to climb down.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::error::{Error, IoContext, Result};
use crate::files::{copy_bytes, create_file, probe, remove_if_present};

/// How a file reached its new name.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// The same inode under a second name.
    Linked,
    /// A new inode that shares extents.
    Reflinked,
    /// New bytes.
    Copied,
}

/// Which rungs of the ladder may be used.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Transfer {
    /// Hard link, else reflink, else copy: per file, whatever the filesystems allow.
    #[default]
    Auto,
    /// Copy every byte, so that source and target share nothing, not even a disk sector.
    Copy,
}

/// The rungs that one building of a directory may use.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Rungs {
    pub(crate) link: bool,
    reflink: bool,
}

impl Rungs {
    pub(crate) const COPY: Self = Self { link: false, reflink: false };

    /// From a directory whose files may not be synced: a link would count as durable.
    pub(crate) fn without_links(self) -> Self {
        Self { link: false, ..self }
    }
}

impl From<Transfer> for Rungs {
    fn from(transfer: Transfer) -> Self {
        match transfer {
            Transfer::Auto => Self { link: true, reflink: true },
            Transfer::Copy => Self::COPY,
        }
    }
}

/// Two directories between which files keep their names. Both are held open: the kernel would walk
/// the paths anew for every file, which costs as much as a tenth of a link.
pub(crate) struct Way {
    from: PathBuf,
    to: PathBuf,
    from_dir: File,
    to_dir: File,
    rungs: Rungs,
}

impl Way {
    pub(crate) fn open(from: PathBuf, to: PathBuf, rungs: Rungs) -> Result<Self> {
        let from_dir = File::open(&from).at("open", &from)?;
        let to_dir = File::open(&to).at("open", &to)?;
        Ok(Self { from, to, from_dir, to_dir, rungs })
    }

    /// Brings an immutable file over; returns how, and its length. Links need no sync of their own
    /// bytes; what was reflinked or copied must be synced by the caller.
    pub(crate) fn place(&self, name: &str) -> Result<(Placed, u64)> {
        if self.rungs.link {
            let linked =
                rustix::fs::linkat(&self.from_dir, name, &self.to_dir, name, AtFlags::empty());
            match linked {
                Ok(()) => return Ok((Placed::Linked, self.len(name)?)),
                Err(errno) if link_may_not_work_here(errno) => {}
                Err(errno) => return Err(Error::io("link", &self.from.join(name), errno.into())),
            }
        }
        self.duplicate(name)
    }

    /// Where a file goes.
    pub(crate) fn target(&self, name: &str) -> PathBuf {
        self.to.join(name)
    }

    /// Brings a mutable file's bytes over: never a link.
    fn duplicate(&self, name: &str) -> Result<(Placed, u64)> {
        let (source, target) = (self.from.join(name), self.to.join(name));
        let placed = if self.rungs.reflink && reflink(&source, &target)? {
            Placed::Reflinked
        } else {
            copy(&source, &target)?;
            Placed::Copied
        };
        Ok((placed, self.len(name)?))
    }

    fn len(&self, name: &str) -> Result<u64> {
        let stat = rustix::fs::statat(&self.to_dir, name, AtFlags::empty());
        stat.map(|stat| stat.st_size as u64).at("inspect", &self.to.join(name))
    }
}

/// Gives `source` a second name if it holds exactly `bytes`. False, with nothing made, if it does
/// not, is gone, or cannot be linked or read: the caller writes the bytes, which is as good.
pub(crate) fn link_if_equal(source: &Path, target: &Path, bytes: &[u8]) -> bool {
    fs::read(source).is_ok_and(|found| found == bytes) && fs::hard_link(source, target).is_ok()
}

/// Whether files from where `source` lies can be linked into `dir`: not across devices, nor across
/// mounts of one device, nor on filesystems without links. Asks with a link to `source`, an immutable
/// file. That this one file has all the links it can have says nothing of the others.
pub(crate) fn can_link(source: &Path, dir: &Path) -> Result<bool> {
    let target = probe(dir);
    match rustix::fs::link(source, &target) {
        Ok(()) => remove_if_present(&target).map(|()| true),
        Err(Errno::MLINK) => Ok(true),
        Err(errno) if link_may_not_work_here(errno) => Ok(false),
        Err(errno) => Err(Error::io("link into", dir, errno.into())),
    }
}

/// Another device, too many links, or a filesystem (or a mount of it) without links.
fn link_may_not_work_here(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::ACCESS
    )
}

#[cfg(target_os = "linux")]
fn reflink(source: &Path, target: &Path) -> Result<bool> {
    let from = File::open(source).at("open", source)?;
    let to = create_file(target)?;
    if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok(true);
    }
    // Not this filesystem, not these two, or not now: the next rung decides what the error is.
    drop(to);
    fs::remove_file(target).at("remove", target)?;
    Ok(false)
}

#[cfg(not(target_os = "linux"))]
fn reflink(_source: &Path, _target: &Path) -> Result<bool> {
    Ok(false)
}

fn copy(source: &Path, target: &Path) -> Result<()> {
    let mut from = File::open(source).at("open", source)?;
    let mut to = create_file(target)?;
    copy_bytes(&mut from, &mut to).at("copy", target)?;
    Ok(())
}
