//! A fjall 3 database as a directory, and as fjall sees it.
//!
//! What must stay true: fjall never opens a source. Opening changes a database (it deletes what it does not
//! know, cuts its journal, appends to it), so that happens in a staged copy, where only tables and blob
//! files are links: those fjall unlinks and does not write to. Nothing is merged there, so nothing is
//! expired or filtered on the way: fjall runs without worker threads.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use esker::interchange::copy_tree;
use esker::{Config, Transfer};
use fjall::{AbstractTree as _, Database, Keyspace, KeyspaceCreateOptions};

use crate::failure::{Failure, Outcome};
use crate::store;

/// fjall's names.
const LOCK: &str = "lock";
const VERSION: &str = "version";
const KEYSPACES: &str = "keyspaces";
const JOURNAL_SUFFIX: &str = ".jnl";
const CURRENT: &str = "current";
/// What the version marker begins with; a byte with the version follows.
const MAGIC: &[u8] = b"FJL";
const MAJOR: u8 = 3;
const COPY_BUFFER_BYTES: usize = 64 << 10;
/// lsm-tree counts the runs of a level in a byte.
const L0_RUNS_MAX: usize = 255;

/// A database that fjall does not have open, and cannot open while this lives.
pub struct Source {
    path: PathBuf,
    _lock: File,
}

impl Source {
    /// Locks the database, or says why it is none to be had.
    pub fn lock(path: &Path) -> Outcome<Self> {
        let refuse = |why: &str| Err(Failure::Failed(format!("{} {why}", path.display())));
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return refuse("is not a fjall database: it is not a directory"),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return refuse("does not exist"),
            Err(e) => return Err(Failure::file("open", path, &e)),
        }
        let marker = path.join(VERSION);
        let version = match fs::read(&marker) {
            Ok(bytes) => bytes.strip_prefix(MAGIC).and_then(|rest| rest.first().copied()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(Failure::file("read", &marker, &e)),
        };
        match version {
            Some(MAJOR) => {}
            Some(version) if version < MAJOR => {
                return refuse(&format!(
                    "is a database of fjall {version}; bring it to fjall {MAJOR} first, with fjall's tools"
                ));
            }
            Some(version) => {
                return refuse(&format!(
                    "is a database of fjall {version}; this program knows fjall {MAJOR}"
                ));
            }
            None => return refuse("is not a fjall database: it has no version marker"),
        }
        Ok(Self { path: path.to_path_buf(), _lock: lock_shared(path)? })
    }

    /// Gives everything that fjall would read a second name, or copies it, in the new directory `to`.
    pub fn stage(&self, to: &Path) -> Outcome {
        let keyspaces = to.join(KEYSPACES);
        for dir in [to, &keyspaces] {
            fs::create_dir(dir).map_err(|e| Failure::file("create the directory", dir, &e))?;
        }
        for name in names(&self.path)? {
            if name == VERSION || name.ends_with(JOURNAL_SUFFIX) {
                copy(&self.path.join(&name), &to.join(&name))?;
            }
        }
        let lock = to.join(LOCK);
        File::create_new(&lock).map_err(|e| Failure::file("create", &lock, &e))?;
        let source = self.path.join(KEYSPACES);
        for name in names(&source)? {
            let tree = source.join(&name);
            // As fjall does: stray files are nothing, and without `current` a keyspace was never finished.
            let current = tree.join(CURRENT);
            match current.try_exists() {
                Ok(true) => {}
                Ok(false) => continue,
                Err(e) if e.kind() == io::ErrorKind::NotADirectory => continue,
                Err(e) => return Err(Failure::file("inspect", &current, &e)),
            }
            if name.parse::<u64>().is_err() {
                let tree = tree.display();
                let why = "is not the directory of a keyspace; fjall does not open this database";
                return Err(Failure::Failed(format!("{tree} {why}")));
            }
            // What is staged does not stay, so links are as good as copies.
            copy_tree(&tree, keyspaces.join(&name), Transfer::Auto)?;
        }
        Ok(())
    }

    /// Where in the source the keyspace is whose staged directory is given.
    pub fn original(&self, staged: &Path) -> PathBuf {
        let name = staged.file_name().unwrap_or_default();
        self.path.join(KEYSPACES).join(name)
    }
}

/// Readers lock shared, which needs no right to write: fjall asks for the exclusive lock.
fn lock_shared(path: &Path) -> Outcome<File> {
    let lock = path.join(LOCK);
    let file = File::open(&lock).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Failure::Failed(format!(
            "{} has no file {LOCK:?}, so nobody can tell whether it is open; create one if it is not",
            path.display()
        )),
        _ => Failure::file("open", &lock, &e),
    })?;
    match file.try_lock_shared() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::Engine(esker::Error::Locked { path: path.to_path_buf() }))
        }
        Err(TryLockError::Error(e)) => Err(Failure::file("lock", &lock, &e)),
    }
}

fn names(dir: &Path) -> Outcome<Vec<String>> {
    let fail = |e: io::Error| Failure::file("list", dir, &e);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// New bytes, and the permissions of a new file. fjall allocates a journal far beyond its end: zeros take
/// no space.
fn copy(from: &Path, to: &Path) -> Outcome {
    let mut source = File::open(from).map_err(|e| Failure::file("open", from, &e))?;
    let mut target = File::create_new(to).map_err(|e| Failure::file("create", to, &e))?;
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    let mut len = 0;
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failure::file("read", from, &e)),
        };
        let chunk = &buffer[..read];
        let written = if chunk.iter().all(|byte| *byte == 0) {
            target.seek_relative(read as i64)
        } else {
            target.write_all(chunk)
        };
        written.map_err(|e| Failure::file("write", to, &e))?;
        len += read as u64;
    }
    target.set_len(len).map_err(|e| Failure::file("write", to, &e))
}

/// Opens the database, or makes a new one. Nothing runs in the background.
pub fn open(path: &Path) -> Outcome<Database> {
    guarded("open", path, || Database::builder(path).worker_threads_unchecked(0).open())
}

/// The keyspace of that name; `options` are for one that is not there.
pub fn keyspace(
    database: &Database,
    path: &Path,
    name: &str,
    options: KeyspaceCreateOptions,
) -> Outcome<Keyspace> {
    guarded("open a keyspace of", path, || database.keyspace(name, || options))
}

/// The names of all keyspaces, sorted.
pub fn keyspace_names(database: &Database) -> Vec<String> {
    let names = database.list_keyspace_names();
    let mut names: Vec<_> = names.iter().map(ToString::to_string).collect();
    names.sort();
    names
}

/// Writes what is in memory of the keyspace to tables, and merges nothing.
pub fn flush(keyspace: &Keyspace) -> Outcome {
    let tree = &keyspace.tree;
    tree.rotate_memtable();
    if tree.sealed_memtable_count() == 0 {
        return Ok(());
    }
    if tree.l0_run_count() >= L0_RUNS_MAX {
        let name = &**keyspace.name();
        let why =
            "has too many tables that were never merged; open the database with fjall for a while";
        return Err(Failure::Failed(format!("the keyspace {name:?} {why}")));
    }
    guarded("flush", keyspace.path(), || {
        let lock = tree.get_flush_lock();
        Ok(tree.flush(&lock, 0).map(|_| ())?)
    })
}

/// Reads all of the database in `database` and of the keyspace in `keyspace`, each with its own crate.
pub fn compare(database: &Path, keyspace: &Path) -> Outcome {
    let esker = Config::new(keyspace).read_only(true).open()?;
    let fjall = open(database)?;
    let names = keyspace_names(&fjall);
    let mut partitions = esker.partitions();
    partitions.sort();
    let differ = |what: String| Err(Failure::Corrupt(format!("the result differs: {what}")));
    if names != partitions {
        return differ(format!("fjall has the keyspaces {names:?}, esker has {partitions:?}"));
    }
    for name in names {
        let theirs = self::keyspace(&fjall, database, &name, KeyspaceCreateOptions::default())?;
        let ours = store::partition(&esker, &name)?;
        let mut theirs = theirs.iter();
        for (number, entry) in ours.iter()?.enumerate() {
            let other = theirs.next().map(fjall::Guard::into_inner).transpose();
            if other.map_err(|e| failure("read", database, e))? != Some(entry?) {
                return differ(format!("entry {number} of {name:?} is not the same in both"));
            }
        }
        if theirs.next().is_some() {
            return differ(format!("fjall has more entries in {name:?}"));
        }
    }
    Ok(())
}

/// fjall takes some damage for impossible and panics.
fn guarded<T>(operation: &str, path: &Path, call: impl FnOnce() -> fjall::Result<T>) -> Outcome<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| failure(operation, path, error)),
        Err(_) => {
            let path = path.display();
            Err(Failure::Corrupt(format!("fjall cannot {operation} {path}: it gave up")))
        }
    }
}

fn failure(operation: &str, path: &Path, error: fjall::Error) -> Failure {
    let said = |cause: &dyn std::fmt::Display| {
        format!("fjall cannot {operation} {}: {cause}", path.display())
    };
    match error {
        fjall::Error::Io(cause) | fjall::Error::Storage(fjall::LsmError::Io(cause)) => {
            Failure::Failed(said(&cause))
        }
        fjall::Error::Locked => Failure::Engine(esker::Error::Locked { path: path.to_path_buf() }),
        other => Failure::Corrupt(said(&other)),
    }
}
