//! A filesystem in memory, served by FUSE, that records every operation with its data.
//!
//! What must stay true: the record has the operations in the order in which they took effect (one
//! thread serves all requests, and the kernel keeps no write back: a write is in the record before
//! the call returns); an acknowledgement is in the record before anything that its sender does next;
//! dropping the mount never waits for anybody.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuser::{
    BackgroundSession, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use tempfile::TempDir;

use super::image::{Image, Node, Op, ROOT};
use super::live::{Answer, Live};

/// Nobody but the kernel changes anything, so what it knows stays true.
const TTL: Duration = Duration::from_secs(3600);
/// The extended attribute of the root whose values are acknowledgements.
const ACKNOWLEDGEMENT: &str = "user.esker.acknowledgement";

/// What is needed to mount one; `None` when all is there.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root, to mount a FUSE filesystem".into());
    }
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => None,
        Err(error) => Some(format!("/dev/fuse ({error})")),
    }
}

/// A mounted recorder. Dropping it unmounts.
pub struct Mount {
    live: Arc<Mutex<Live>>,
    session: Option<BackgroundSession>,
    directory: Option<TempDir>,
    path: PathBuf,
}

impl Mount {
    /// Serves `image`; what it holds counts as durable.
    pub fn new(image: Image) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("esker-recorder-").tempdir()?;
        let path = directory.path().to_path_buf();
        let live = Arc::new(Mutex::new(Live::new(image)));
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("esker-recorder".into())];
        let recorder = Recorder(Arc::clone(&live));
        let session = fuser::spawn_mount(recorder, &path, &config)?;
        Ok(Self { live, session: Some(session), directory: Some(directory), path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The record up to now. What happens later is not recorded any more.
    pub fn finish(self) -> Vec<Op> {
        let mut live = lock(&self.live);
        live.finished = true;
        std::mem::take(&mut live.ops)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: nobody waits, not even for a file that is still open. The serving thread ends with
        // the last file.
        let detach = rustix::mount::UnmountFlags::DETACH;
        let detached = rustix::mount::unmount(&self.path, detach).is_ok();
        match (self.session.take(), self.directory.take()) {
            (Some(session), directory) if detached => {
                drop(session);
                drop(directory);
            }
            // Whatever is still mounted there must not be deleted name by name.
            (_, directory) => _ = directory.map(TempDir::keep),
        }
    }
}

/// Puts an acknowledgement into the record of the filesystem that is mounted at `root`.
pub fn acknowledge(root: &Path, value: &[u8]) -> io::Result<()> {
    let flags = rustix::fs::XattrFlags::empty();
    Ok(rustix::fs::setxattr(root, ACKNOWLEDGEMENT, value, flags)?)
}

fn lock(live: &Mutex<Live>) -> MutexGuard<'_, Live> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The face that FUSE sees.
struct Recorder(Arc<Mutex<Live>>);

fn finish(reply: ReplyEmpty, answer: Answer<()>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn enter(reply: ReplyEntry, answer: Answer<FileAttr>) {
    match answer {
        Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Recorder {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let live = lock(&self.0);
        let found = live.place(parent, name).and_then(|place| live.find(&place));
        enter(reply, found.and_then(|ino| live.attributes(ino)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match lock(&self.0).attributes(ino.0) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut live = lock(&self.0);
        if let Some(bytes) = size {
            live.record(Op::Resize { ino: ino.0, bytes });
        }
        match live.attributes(ino.0) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match lock(&self.0).image.nodes.get(&ino.0) {
            Some(Node::Symlink(target)) => reply.data(target.as_os_str().as_encoded_bytes()),
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        enter(reply, lock(&self.0).create(parent, name, Node::Directory(Default::default())));
    }

    fn symlink(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        enter(reply, lock(&self.0).create(parent, name, Node::Symlink(target.to_path_buf())));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let created = lock(&self.0).create(parent, name, Node::File(Vec::new()));
        let (handle, keep) = (FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        match created {
            Ok(attributes) => reply.created(&TTL, &attributes, Generation(0), handle, keep),
            Err(errno) => reply.error(errno),
        }
    }

    fn link(
        &self,
        _: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        enter(reply, lock(&self.0).link(ino, newparent, newname));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        finish(reply, lock(&self.0).remove(parent, name, false));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        finish(reply, lock(&self.0).remove(parent, name, true));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut live = lock(&self.0);
        let renamed = live.place(parent, name).and_then(|from| {
            let to = live.place(newparent, newname)?;
            live.rename(from, to, flags)
        });
        finish(reply, renamed);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match lock(&self.0).read(ino, offset, size) {
            Ok(bytes) => reply.data(bytes),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        lock(&self.0).record(Op::Write { ino: ino.0, offset, data: data.into() });
        reply.written(data.len() as u32);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let mut live = lock(&self.0);
        let len = live.len(ino);
        if let Ok(len) = len {
            live.record(Op::Resize { ino: ino.0, bytes: len.max(offset + length) });
        }
        finish(reply, len.map(drop));
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        lock(&self.0).record(Op::Sync { ino: ino.0 });
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        lock(&self.0).record(Op::SyncDirectory { ino: ino.0 });
        reply.ok();
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let mut live = lock(&self.0);
        let handle = live.next_handle;
        live.next_handle += 1;
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut live = lock(&self.0);
        let names = live.listing(ino, fh, offset == 0).to_vec();
        for (at, (name, ino)) in names.iter().enumerate().skip(offset as usize) {
            let kind = match live.image.nodes.get(ino) {
                Some(Node::File(_)) => FileType::RegularFile,
                Some(Node::Symlink(_)) => FileType::Symlink,
                _ => FileType::Directory,
            };
            if reply.add(INodeNo(*ino), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        lock(&self.0).listings.remove(&fh.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let plenty = 1 << 24;
        reply.statfs(plenty, plenty, plenty, plenty, plenty, 4096, 255, 4096);
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        if ino.0 != ROOT || name != ACKNOWLEDGEMENT {
            return reply.error(Errno::EOPNOTSUPP);
        }
        lock(&self.0).record(Op::Acknowledge(value.to_vec()));
        reply.ok();
    }
}
