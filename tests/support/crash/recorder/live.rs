//! The files behind the recording filesystem: as they are, and how they came to be so.
//!
//! What must stay true: an operation that is refused leaves no trace; one that is done is recorded and
//! applied in one step.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::time::UNIX_EPOCH;

use fuser::{Errno, FileAttr, FileHandle, FileType, INodeNo, RenameFlags};

use super::image::{Image, Ino, Node, Op, Place};
use super::injector::{Injector, Kind, Verdict};

/// The files as they are, and how they came to be so.
pub(super) struct Live {
    pub(super) image: Image,
    pub(super) ops: Vec<Op>,
    /// Nothing is recorded any more.
    pub(super) finished: bool,
    next_ino: Ino,
    links: HashMap<Ino, u32>,
    /// What an open directory lists, so that names may go meanwhile.
    pub(super) listings: HashMap<u64, Vec<(String, Ino)>>,
    pub(super) next_handle: u64,
    /// Counts operations and lets some fail.
    pub(super) injector: Option<Injector>,
}

pub(super) type Answer<T> = Result<T, Errno>;

impl Live {
    pub(super) fn new(image: Image) -> Self {
        let mut links = HashMap::new();
        for ino in image.nodes.keys() {
            for (_, ino) in image.entries(*ino) {
                *links.entry(ino).or_insert(0) += 1;
            }
        }
        let next_ino = image.newest() + 1;
        let (listings, ops) = (HashMap::new(), Vec::new());
        let (finished, next_handle, injector) = (false, 1, None);
        Self { image, ops, finished, next_ino, links, listings, next_handle, injector }
    }

    /// Whether the operation that comes now works. A sync that fails has its effect here.
    pub(super) fn judge(&mut self, kind: Kind, ino: Ino, name: Option<&OsStr>) -> Verdict {
        let Self { image, ops, injector: Some(injector), .. } = self else { return Verdict::Work };
        let path = || {
            let mut path = image.path_of(ino).unwrap_or_default();
            path.extend(name.map(|name| format!("/{}", name.to_string_lossy())));
            (path, ops.len())
        };
        let verdict = injector.judge(kind, path);
        match verdict {
            // Interrupted: nothing was tried yet.
            Verdict::Fail(Errno::EINTR) => verdict,
            Verdict::Fail(_) if kind == Kind::Fsync => {
                let silent = injector.silent;
                self.record(Op::SyncFailed { ino });
                if silent { Verdict::Work } else { verdict }
            }
            _ => verdict,
        }
    }

    pub(super) fn record(&mut self, op: Op) {
        self.image.apply(&op);
        if !self.finished {
            self.ops.push(op);
        }
    }

    pub(super) fn place(&self, dir: INodeNo, name: &OsStr) -> Answer<Place> {
        let name = name.to_str().ok_or(Errno::EINVAL)?.to_owned();
        Ok(Place { dir: dir.0, name })
    }

    pub(super) fn find(&self, place: &Place) -> Answer<Ino> {
        self.image.lookup(place.dir, &place.name).ok_or(Errno::ENOENT)
    }

    pub(super) fn attributes(&self, ino: Ino) -> Answer<FileAttr> {
        let (kind, perm, size) = match self.image.nodes.get(&ino).ok_or(Errno::ENOENT)? {
            Node::File(bytes) => (FileType::RegularFile, 0o600, bytes.len() as u64),
            Node::Directory(_) => (FileType::Directory, 0o700, 4096),
            Node::Symlink(target) => (FileType::Symlink, 0o777, target.as_os_str().len() as u64),
        };
        let directory = kind == FileType::Directory;
        let nlink = if directory { 2 } else { self.links.get(&ino).copied().unwrap_or(0) };
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    pub(super) fn create(&mut self, dir: INodeNo, name: &OsStr, node: Node) -> Answer<FileAttr> {
        let place = self.place(dir, name)?;
        if self.find(&place).is_ok() {
            return Err(Errno::EEXIST);
        }
        let ino = self.next_ino;
        self.next_ino += 1;
        self.links.insert(ino, 1);
        self.record(Op::Create { place, ino, node });
        self.attributes(ino)
    }

    pub(super) fn link(&mut self, ino: INodeNo, dir: INodeNo, name: &OsStr) -> Answer<FileAttr> {
        let place = self.place(dir, name)?;
        if self.find(&place).is_ok() {
            return Err(Errno::EEXIST);
        }
        *self.links.entry(ino.0).or_insert(0) += 1;
        self.record(Op::Link { place, ino: ino.0 });
        self.attributes(ino.0)
    }

    /// One name less; the inode stays readable for those who have it open.
    fn unlinked(&mut self, ino: Ino) {
        if let Some(links) = self.links.get_mut(&ino) {
            *links = links.saturating_sub(1);
        }
    }

    pub(super) fn remove(&mut self, dir: INodeNo, name: &OsStr, directory: bool) -> Answer<()> {
        let place = self.place(dir, name)?;
        let ino = self.find(&place)?;
        match (&self.image.nodes[&ino], directory) {
            (Node::Directory(entries), true) if !entries.is_empty() => {
                return Err(Errno::ENOTEMPTY);
            }
            (Node::Directory(_), false) => return Err(Errno::EISDIR),
            (Node::File(_) | Node::Symlink(_), true) => return Err(Errno::ENOTDIR),
            _ => {}
        }
        self.unlinked(ino);
        self.record(Op::Remove { place });
        Ok(())
    }

    pub(super) fn rename(&mut self, from: Place, to: Place, flags: RenameFlags) -> Answer<()> {
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return Err(Errno::EINVAL);
        }
        let ino = self.find(&from)?;
        if let Ok(replaced) = self.find(&to) {
            if flags.contains(RenameFlags::RENAME_NOREPLACE) {
                return Err(Errno::EEXIST);
            }
            if replaced == ino {
                return Ok(());
            }
            if self.image.entries(replaced).next().is_some() {
                return Err(Errno::ENOTEMPTY);
            }
            self.unlinked(replaced);
        }
        self.record(Op::Rename { from, to });
        Ok(())
    }

    pub(super) fn read(&self, ino: INodeNo, offset: u64, size: u32) -> Answer<&[u8]> {
        match self.image.nodes.get(&ino.0) {
            Some(Node::File(bytes)) => {
                let begin = (offset as usize).min(bytes.len());
                let end = (begin + size as usize).min(bytes.len());
                Ok(&bytes[begin..end])
            }
            _ => Err(Errno::EISDIR),
        }
    }

    pub(super) fn len(&self, ino: INodeNo) -> Answer<u64> {
        match self.image.nodes.get(&ino.0) {
            Some(Node::File(bytes)) => Ok(bytes.len() as u64),
            _ => Err(Errno::EISDIR),
        }
    }

    /// The listing behind a handle: taken when it is read from the front.
    pub(super) fn listing(
        &mut self,
        dir: INodeNo,
        handle: FileHandle,
        from_front: bool,
    ) -> &[(String, Ino)] {
        if from_front || !self.listings.contains_key(&handle.0) {
            let mut names = vec![(".".to_owned(), dir.0), ("..".to_owned(), dir.0)];
            names.extend(self.image.entries(dir.0).map(|(name, ino)| (name.clone(), ino)));
            self.listings.insert(handle.0, names);
        }
        &self.listings[&handle.0]
    }
}
