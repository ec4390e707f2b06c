//! Faults that the filesystem serves: an operation, by its number among all of them, fails or does
//! half of its work.
//!
//! What must stay true: every operation is counted once, in the order in which it is served, until the
//! disk is well again; an operation that fails leaves no trace, but for a sync, which loses what it
//! should have brought to the disk (`Op::SyncFailed`).

use fuser::Errno;

/// What the kernel asks of a filesystem.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Lookup,
    Getattr,
    Setattr,
    Readlink,
    Mkdir,
    Symlink,
    Create,
    Link,
    Unlink,
    Rmdir,
    Rename,
    Open,
    Read,
    Write,
    Fallocate,
    Fsync,
    Opendir,
    Readdir,
    Fsyncdir,
    Statfs,
}

use Kind::{
    Create, Fallocate, Fsync, Fsyncdir, Getattr, Link, Lookup, Mkdir, Open, Opendir, Read, Readdir,
    Readlink, Rename, Rmdir, Setattr, Statfs, Symlink, Unlink, Write,
};

/// What an operation does instead of its work.
#[derive(Copy, Clone, Debug)]
pub enum Answer {
    Error(Errno),
    /// Half of it, and says so.
    Half,
}

/// One way to fail.
#[derive(Debug)]
pub struct Failure {
    pub name: &'static str,
    pub answer: Answer,
    /// The operations that can fail so.
    pub kinds: &'static [Kind],
    /// Whether a disk can be like this for a while. No signal and no odd length lasts.
    pub lasts: bool,
}

const ANY: &[Kind] = &[
    Lookup, Getattr, Setattr, Readlink, Mkdir, Symlink, Create, Link, Unlink, Rmdir, Rename, Open,
    Read, Write, Fallocate, Fsync, Opendir, Readdir, Fsyncdir, Statfs,
];
const SPACE: &[Kind] =
    &[Setattr, Mkdir, Symlink, Create, Link, Rename, Write, Fallocate, Fsync, Fsyncdir];
const SIGNALS: &[Kind] = &[Setattr, Create, Open, Read, Write, Fallocate, Fsync, Opendir];

const fn error(name: &'static str, errno: Errno, kinds: &'static [Kind], lasts: bool) -> Failure {
    Failure { name, answer: Answer::Error(errno), kinds, lasts }
}

/// All ways. `EIO-read` and `EIO-sync` differ from `EIO` in what goes on working when they last.
pub static FAILURES: &[Failure] = &[
    error("EIO", Errno::EIO, ANY, true),
    error("EIO-read", Errno::EIO, &[Read], true),
    error("EIO-sync", Errno::EIO, &[Fsync, Fsyncdir], true),
    error("ENOSPC", Errno::ENOSPC, SPACE, true),
    error("EDQUOT", Errno::EDQUOT, SPACE, true),
    error("EMFILE", Errno::EMFILE, &[Open, Create, Opendir], true),
    error("EINTR", Errno::EINTR, SIGNALS, false),
    error("EXDEV", Errno::EXDEV, &[Link], true),
    error("EMLINK", Errno::EMLINK, &[Link], true),
    error("EPERM", Errno::EPERM, &[Link], true),
    Failure { name: "short-read", answer: Answer::Half, kinds: &[Read], lasts: false },
    Failure { name: "short-write", answer: Answer::Half, kinds: &[Write], lasts: true },
];

/// The failure of that name.
pub fn failure(name: &str) -> Option<&'static Failure> {
    FAILURES.iter().find(|failure| failure.name == name)
}

/// So many failed operations are remembered.
const HITS_MAX: usize = 50;

/// One fault: the first operation that can fail so, from number `index` (from 1) on, and, if it
/// lasts, every later one until the disk is well again.
#[derive(Copy, Clone, Debug)]
pub struct Fault {
    pub failure: &'static Failure,
    pub index: u64,
    pub lasting: bool,
}

/// An operation that was made to fail.
#[derive(Clone, Debug)]
pub struct Hit {
    pub number: u64,
    pub kind: Kind,
    pub path: String,
    /// Its place in the record.
    pub at: usize,
}

/// What an operation that is not left alone has to do.
#[derive(Copy, Clone, Debug)]
pub enum Verdict {
    Work,
    WorkHalf,
    Fail(Errno),
}

/// Counts operations and chooses those that fail.
#[derive(Debug, Default)]
pub struct Injector {
    fault: Option<Fault>,
    /// Every operation up to now.
    pub(super) kinds: Vec<Kind>,
    /// The operations that failed; of many the first.
    pub(super) hits: Vec<Hit>,
    well: bool,
    /// A canary: failed syncs say that they succeeded.
    pub(super) silent: bool,
}

impl Injector {
    pub(super) fn new(fault: Option<Fault>, silent: bool) -> Self {
        Self { fault, silent, ..Self::default() }
    }

    /// Behind so many operations the next one that can fail so does, whatever was to fail before.
    pub(super) fn fail_after(&mut self, failure: &'static Failure, operations: u64) {
        let index = self.kinds.len() as u64 + operations + 1;
        self.fault = Some(Fault { failure, index, lasting: false });
        self.hits.clear();
    }

    /// No operation fails any more, or counts.
    pub(super) fn heal(&mut self) {
        self.well = true;
    }

    /// The next operation is of this kind. `hit` tells where it would fail.
    pub(super) fn judge(&mut self, kind: Kind, hit: impl FnOnce() -> (String, usize)) -> Verdict {
        if self.well {
            return Verdict::Work;
        }
        self.kinds.push(kind);
        let number = self.kinds.len() as u64;
        let Some(Fault { failure, index, lasting }) = self.fault else { return Verdict::Work };
        let chosen = number >= index && (lasting || self.hits.is_empty());
        if !chosen || !failure.kinds.contains(&kind) {
            return Verdict::Work;
        }
        if self.hits.len() < HITS_MAX {
            let (path, at) = hit();
            self.hits.push(Hit { number, kind, path, at });
        }
        match failure.answer {
            Answer::Error(errno) => Verdict::Fail(errno),
            Answer::Half => Verdict::WorkHalf,
        }
    }
}
