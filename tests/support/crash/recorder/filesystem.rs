//! A filesystem in memory, served by FUSE, that records every operation with its data.
//!
//! What must stay true: the record has the operations in the order in which they took effect (one
//! thread serves all requests, and the kernel keeps no write back: a write is in the record before
//! the call returns); an acknowledgement is in the record before anything that its sender does next;
//! dropping the mount never waits for anybody. With faults (`injector.rs`) the kernel caches no data
//! either: every read and write of the program is an operation, and its answer reaches the program.

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
use super::injector::{Failure, Fault, Hit, Injector, Kind, Verdict};
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
        Self::serve(Live::new(image))
    }

    /// The same, with every operation counted and, perhaps, a fault. `silent` makes syncs that fail
    /// claim success.
    pub fn with_faults(image: Image, fault: Option<Fault>, silent: bool) -> io::Result<Self> {
        let mut live = Live::new(image);
        live.injector = Some(Injector::new(fault, silent));
        Self::serve(live)
    }

    fn serve(live: Live) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("esker-recorder-").tempdir()?;
        let path = directory.path().to_path_buf();
        let live = Arc::new(Mutex::new(live));
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("esker-recorder".into())];
        let recorder = Recorder(Arc::clone(&live));
        let session = fuser::spawn_mount(recorder, &path, &config)?;
        Ok(Self { live, session: Some(session), directory: Some(directory), path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is known of it while it is in use.
    pub fn desk(&self) -> Desk {
        Desk(Arc::clone(&self.live))
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

/// The filesystem as its operator sees it.
#[derive(Clone)]
pub struct Desk(Arc<Mutex<Live>>);

impl Desk {
    /// Puts an acknowledgement into the record.
    pub fn acknowledge(&self, value: Vec<u8>) {
        lock(&self.0).record(Op::Acknowledge(value));
    }

    /// So many operations are in the record.
    pub fn recorded(&self) -> usize {
        lock(&self.0).ops.len()
    }

    /// Behind so many operations the next one that can fail so does.
    pub fn fail_after(&self, failure: &'static Failure, operations: u64) {
        if let Some(injector) = &mut lock(&self.0).injector {
            injector.fail_after(failure, operations);
        }
    }

    /// From here on nothing fails.
    pub fn heal(&self) {
        if let Some(injector) = &mut lock(&self.0).injector {
            injector.heal();
        }
    }

    /// The operations that were counted.
    pub fn kinds(&self) -> Vec<Kind> {
        lock(&self.0).injector.as_ref().map(|injector| injector.kinds.clone()).unwrap_or_default()
    }

    /// The operations that were made to fail; of many the first.
    pub fn hits(&self) -> Vec<Hit> {
        lock(&self.0).injector.as_ref().map(|injector| injector.hits.clone()).unwrap_or_default()
    }

    /// Whether any operation was made to fail.
    pub fn was_hit(&self) -> bool {
        lock(&self.0).injector.as_ref().is_some_and(|injector| !injector.hits.is_empty())
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

/// An operation that may work, and whether only half of it.
type Begun<'a> = Result<(MutexGuard<'a, Live>, bool), Errno>;

impl Recorder {
    /// Every operation begins here: it may be one that fails.
    fn begin(&self, kind: Kind, ino: INodeNo, name: Option<&OsStr>) -> Begun<'_> {
        let mut live = lock(&self.0);
        match live.judge(kind, ino.0, name) {
            Verdict::Work => Ok((live, false)),
            Verdict::WorkHalf => Ok((live, true)),
            Verdict::Fail(errno) => Err(errno),
        }
    }

    /// As [`Recorder::begin`], for what cannot be done by halves.
    fn at(&self, kind: Kind, ino: INodeNo, name: &OsStr) -> Answer<MutexGuard<'_, Live>> {
        self.begin(kind, ino, Some(name)).map(|(live, _)| live)
    }

    fn on(&self, kind: Kind, ino: INodeNo) -> Answer<MutexGuard<'_, Live>> {
        self.begin(kind, ino, None).map(|(live, _)| live)
    }

    /// How files are opened.
    fn flags(&self) -> FopenFlags {
        match lock(&self.0).injector {
            Some(_) => FopenFlags::FOPEN_DIRECT_IO,
            None => FopenFlags::FOPEN_KEEP_CACHE,
        }
    }
}

/// The half that a short read or write does: at least one byte.
fn half(bytes: usize) -> usize {
    bytes.div_ceil(2)
}

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
        let found = self.at(Kind::Lookup, parent, name).and_then(|live| {
            let ino = live.find(&live.place(parent, name)?)?;
            live.attributes(ino)
        });
        enter(reply, found);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.on(Kind::Getattr, ino).and_then(|live| live.attributes(ino.0)) {
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
        let changed = self.on(Kind::Setattr, ino).and_then(|mut live| {
            if let Some(bytes) = size {
                live.record(Op::Resize { ino: ino.0, bytes });
            }
            live.attributes(ino.0)
        });
        match changed {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let live = match self.on(Kind::Readlink, ino) {
            Ok(live) => live,
            Err(errno) => return reply.error(errno),
        };
        match live.image.nodes.get(&ino.0) {
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
        let made = self.at(Kind::Mkdir, parent, name);
        let node = Node::Directory(Default::default());
        enter(reply, made.and_then(|mut live| live.create(parent, name, node)));
    }

    fn symlink(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let made = self.at(Kind::Symlink, parent, name);
        let node = Node::Symlink(target.to_path_buf());
        enter(reply, made.and_then(|mut live| live.create(parent, name, node)));
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
        let created = self.at(Kind::Create, parent, name);
        let created =
            created.and_then(|mut live| live.create(parent, name, Node::File(Vec::new())));
        let (handle, flags) = (FileHandle(0), self.flags());
        match created {
            Ok(attributes) => reply.created(&TTL, &attributes, Generation(0), handle, flags),
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
        let linked = self.at(Kind::Link, newparent, newname);
        enter(reply, linked.and_then(|mut live| live.link(ino, newparent, newname)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.at(Kind::Unlink, parent, name);
        finish(reply, removed.and_then(|mut live| live.remove(parent, name, false)));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.at(Kind::Rmdir, parent, name);
        finish(reply, removed.and_then(|mut live| live.remove(parent, name, true)));
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
        let renamed = self.at(Kind::Rename, newparent, newname).and_then(|mut live| {
            let from = live.place(parent, name)?;
            let to = live.place(newparent, newname)?;
            live.rename(from, to, flags)
        });
        finish(reply, renamed);
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.on(Kind::Open, ino).map(drop) {
            Ok(()) => reply.opened(FileHandle(0), self.flags()),
            Err(errno) => reply.error(errno),
        }
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
        let (live, short) = match self.begin(Kind::Read, ino, None) {
            Ok(begun) => begun,
            Err(errno) => return reply.error(errno),
        };
        match live.read(ino, offset, size) {
            Ok(bytes) if short => reply.data(&bytes[..half(bytes.len())]),
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
        let (mut live, short) = match self.begin(Kind::Write, ino, None) {
            Ok(begun) => begun,
            Err(errno) => return reply.error(errno),
        };
        let data = if short { &data[..half(data.len())] } else { data };
        live.record(Op::Write { ino: ino.0, offset, data: data.into() });
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
        let resized = self.on(Kind::Fallocate, ino).and_then(|mut live| {
            let bytes = live.len(ino)?.max(offset + length);
            live.record(Op::Resize { ino: ino.0, bytes });
            Ok(())
        });
        finish(reply, resized);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let synced = self.on(Kind::Fsync, ino);
        finish(reply, synced.map(|mut live| live.record(Op::Sync { ino: ino.0 })));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.on(Kind::Fsyncdir, ino);
        finish(reply, synced.map(|mut live| live.record(Op::SyncDirectory { ino: ino.0 })));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let mut live = match self.on(Kind::Opendir, ino) {
            Ok(live) => live,
            Err(errno) => return reply.error(errno),
        };
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
        let mut live = match self.on(Kind::Readdir, ino) {
            Ok(live) => live,
            Err(errno) => return reply.error(errno),
        };
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

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        if let Err(errno) = self.on(Kind::Statfs, ino).map(drop) {
            return reply.error(errno);
        }
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
