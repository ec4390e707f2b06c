//! Which checkpoints are in some directories, and what each of them pins on the disk.
//!
//! What must stay true: nothing is changed and nothing is locked; a directory that somebody builds,
//! removes or writes to is no checkpoint; symbolic links inside of a directory are not followed; what
//! goes away while it is looked at is left out, because others take and remove checkpoints meanwhile.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::files;
use crate::listing::{Listing, read_listing};

/// What `st_blocks` counts in.
const BLOCK_BYTES: u64 = 512;

/// What [`checkpoints`] found.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Checkpoints {
    /// The checkpoints and cold copies; by keyspace, the oldest first.
    pub checkpoints: Vec<CheckpointInfo>,
    /// What removing all of them frees: beside what each pins alone, what only they share.
    pub pinned_together_bytes: u64,
    /// Directories that are none.
    pub skipped: Vec<SkippedDirectory>,
}

/// A checkpoint or cold copy, and what it takes. See [`checkpoints`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckpointInfo {
    /// The directory.
    pub path: PathBuf,
    /// The id of the keyspace; serialised as 32 hex digits.
    #[serde(serialize_with = "hex")]
    pub uuid: u128,
    /// The history that it was taken from; serialised as 32 hex digits.
    #[serde(serialize_with = "hex")]
    pub timeline: u128,
    /// The newest commit in it.
    pub seqno: u64,
    /// When it was taken, in milliseconds since 1970.
    pub created_ms: u64,
    /// From when on it is not wanted any more, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
    /// The partitions in it, sorted.
    pub partitions: Vec<String>,
    /// Its files.
    pub files: u64,
    /// Their lengths together.
    pub bytes: u64,
    /// What they and the directories take on the disk, shared or not.
    pub disk_bytes: u64,
    /// What of that goes when this checkpoint alone is removed: of every file that has no name outside.
    pub pinned_bytes: u64,
}

/// A directory that is no checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SkippedDirectory {
    /// The directory.
    pub path: PathBuf,
    /// What it is instead.
    pub reason: SkipReason,
}

/// Why a directory is no checkpoint. `Display` is a phrase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SkipReason {
    /// There is nothing at this path.
    Missing,
    /// It is a file or the like.
    NotADirectory,
    /// It is a symbolic link to a directory.
    SymbolicLink,
    /// It has a CATALOG and no CHECKPOINT: it was opened for writing, or never was a checkpoint.
    Keyspace,
    /// It has neither, and no directory in it.
    NoCheckpoint,
    /// Somebody builds or removes it, or did so and was cut off.
    Unfinished,
    /// It cannot be read.
    Unreadable(String),
    /// What it says of itself is damaged.
    Damaged(String),
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is not there"),
            Self::NotADirectory => f.write_str("is no directory"),
            Self::SymbolicLink => f.write_str("is a symbolic link, which is not followed"),
            Self::Keyspace => f.write_str("is a keyspace that is written, and no checkpoint"),
            Self::NoCheckpoint => f.write_str("holds no checkpoint"),
            Self::Unfinished => {
                f.write_str("is being built or removed, or was when it was cut off")
            }
            Self::Unreadable(why) => write!(f, "cannot be read: {why}"),
            Self::Damaged(why) => write!(f, "is damaged: {why}"),
        }
    }
}

fn hex<S: Serializer>(id: &u128, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{id:032x}"))
}

/// Finds checkpoints and cold copies and what each of them pins on the disk. Each of `paths` is one
/// itself, or a directory that holds some; deeper ones are not looked for. Nothing is changed or locked.
///
/// Hard links are counted exactly: a file is pinned by a checkpoint when all its names are in there, so a
/// table that two checkpoints share and the keyspace does not have any more is pinned by neither of them,
/// but by both together. A name that somebody else gave a file counts as well. Extents that are shared by
/// reflinks cannot be told from others this way: they count as the file's own, so what removing it frees
/// may be less. Files that go or come meanwhile make the numbers those of different moments.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let keyspace = esker::Keyspace::open(dir.path().join("db"))?;
/// keyspace.partition("users", Default::default())?.insert("ada", "1815")?;
/// keyspace.backup_to(dir.path().join("monday"))?;
/// let found = esker::checkpoints([dir.path()])?;
/// assert_eq!(found.checkpoints[0].path, dir.path().join("monday"));
/// assert!(found.checkpoints[0].pinned_bytes <= found.checkpoints[0].disk_bytes);
/// assert_eq!(found.skipped[0].path, dir.path().join("db"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::Io`] when a checkpoint's files cannot be listed. Directories that are no checkpoint are no
/// error, but in the report.
pub fn checkpoints(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Checkpoints> {
    let Found { checkpoints: found, skipped } = find(paths)?;
    let mut checkpoints = Vec::new();
    let mut weights = Vec::new();
    for (path, listing) in found {
        let Some(weight) = Weight::of(&path)? else { continue };
        checkpoints.push(info(path, listing, &weight));
        weights.push(weight);
    }
    Ok(Checkpoints { checkpoints, pinned_together_bytes: pinned_together(&weights), skipped })
}

pub(crate) fn info(path: PathBuf, listing: Listing, weight: &Weight) -> CheckpointInfo {
    CheckpointInfo {
        path,
        uuid: listing.uuid,
        timeline: listing.timeline,
        seqno: listing.seqno,
        created_ms: listing.created_ms,
        expires_ms: listing.expires_ms,
        partitions: listing.partitions,
        files: weight.files,
        bytes: weight.bytes,
        disk_bytes: weight.disk_bytes,
        pinned_bytes: weight.pinned_bytes(),
    }
}

/// Checkpoints that were found and not weighed yet.
#[derive(Default)]
pub(crate) struct Found {
    /// By keyspace, the oldest first.
    pub(crate) checkpoints: Vec<(PathBuf, Listing)>,
    pub(crate) skipped: Vec<SkippedDirectory>,
}

impl Found {
    fn skip(&mut self, path: PathBuf, reason: SkipReason) {
        self.skipped.push(SkippedDirectory { path, reason });
    }
}

/// Looks for checkpoints at these paths and directly below them; each is found once.
pub(crate) fn find(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Found> {
    let mut found = Found::default();
    let mut seen = HashSet::new();
    for path in paths {
        find_at(path.as_ref(), true, &mut found, &mut seen)?;
    }
    let order = |(path, listing): &(PathBuf, Listing)| {
        (listing.uuid, listing.created_ms, listing.seqno, path.clone())
    };
    found.checkpoints.sort_by_cached_key(order);
    found.skipped.sort_by(|a, b| a.path.cmp(&b.path));
    found.skipped.dedup();
    Ok(found)
}

fn find_at(
    path: &Path,
    given: bool,
    found: &mut Found,
    seen: &mut HashSet<(u64, u64)>,
) -> Result<()> {
    let reason = match look_at(path)? {
        Look::Checkpoint(inode, listing) => {
            if seen.insert(inode) {
                found.checkpoints.push((path.to_path_buf(), *listing));
            }
            return Ok(());
        }
        Look::Directory if given => match find_in(path, found, seen)? {
            Some(reason) => reason,
            None => return Ok(()),
        },
        Look::Directory => SkipReason::NoCheckpoint,
        // Files beside checkpoints are nobody's business; what is gone was there when it was listed.
        Look::Other(SkipReason::Missing | SkipReason::NotADirectory) if !given => return Ok(()),
        Look::Other(reason) => reason,
    };
    found.skip(path.to_path_buf(), reason);
    Ok(())
}

/// Looks at each directory in this one; why it holds nothing that could be looked at, if so.
fn find_in(
    path: &Path,
    found: &mut Found,
    seen: &mut HashSet<(u64, u64)>,
) -> Result<Option<SkipReason>> {
    let names = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let names = match names {
        Ok(names) => names,
        Err(error) => return Ok(Some(absent(&error))),
    };
    let before = (found.checkpoints.len(), found.skipped.len());
    for entry in names {
        find_at(&path.join(entry.file_name()), false, found, seen)?;
    }
    let is_empty = before == (found.checkpoints.len(), found.skipped.len());
    Ok(is_empty.then_some(SkipReason::NoCheckpoint))
}

/// What is at a path.
pub(crate) enum Look {
    /// With device and inode of the directory.
    Checkpoint((u64, u64), Box<Listing>),
    /// A directory that may hold some.
    Directory,
    Other(SkipReason),
}

pub(crate) fn look_at(path: &Path) -> Result<Look> {
    // Without the slash behind it that would make us follow a link.
    let bare: PathBuf = path.components().collect();
    let link = match bare.symlink_metadata() {
        Ok(metadata) => metadata.is_symlink(),
        Err(error) => return Ok(Look::Other(absent(&error))),
    };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return Ok(Look::Other(absent(&error))),
    };
    if !metadata.is_dir() {
        return Ok(Look::Other(SkipReason::NotADirectory));
    }
    if path.file_name().is_some_and(files::is_passing) {
        return Ok(Look::Other(SkipReason::Unfinished));
    }
    let has = |file: PathBuf| match file.symlink_metadata() {
        Ok(metadata) => Ok(metadata.is_file()),
        Err(error) if absent(&error) == SkipReason::Missing => Ok(false),
        Err(error) => Err(error.to_string()),
    };
    Ok(match (has(files::checkpoint(path)), has(files::catalog(path))) {
        (Err(why), _) | (_, Err(why)) => Look::Other(SkipReason::Unreadable(why)),
        (Ok(false), Ok(true)) => Look::Other(SkipReason::Keyspace),
        (Ok(false), Ok(false)) => Look::Directory,
        (Ok(true), _) if link => Look::Other(SkipReason::SymbolicLink),
        (Ok(true), _) => match read_listing(path) {
            Ok(listing) => Look::Checkpoint((metadata.dev(), metadata.ino()), Box::new(listing)),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                // Opened for writing or removed since the line above.
                Look::Other(if path.exists() { SkipReason::Keyspace } else { SkipReason::Missing })
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                Look::Other(SkipReason::Damaged(error.to_string()))
            }
            Err(error) => Look::Other(SkipReason::Unreadable(error.to_string())),
        },
    })
}

fn absent(error: &io::Error) -> SkipReason {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => SkipReason::Missing,
        _ => SkipReason::Unreadable(error.to_string()),
    }
}

/// What a directory holds on the disk.
#[derive(Debug, Default)]
pub(crate) struct Weight {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) disk_bytes: u64,
    /// On the disk, of what has one name only, directories included.
    alone_bytes: u64,
    /// What has several names, by device and inode.
    shared: HashMap<(u64, u64), Shared>,
    /// Whether a filesystem is mounted inside.
    pub(crate) crosses_filesystems: bool,
}

#[derive(Copy, Clone, Debug)]
struct Shared {
    disk_bytes: u64,
    links: u64,
    found: u64,
}

impl Weight {
    /// Weighs everything below `root`; `None` if that is gone.
    pub(crate) fn of(root: &Path) -> Result<Option<Self>> {
        let mut weight = Self::default();
        let Some(metadata) = unless_gone(root.symlink_metadata()).at("inspect", root)? else {
            return Ok(None);
        };
        let device = metadata.dev();
        weight.add(&metadata);
        let mut pending = vec![root.to_path_buf()];
        while let Some(dir) = pending.pop() {
            let Some(entries) = unless_gone(fs::read_dir(&dir)).at("list", &dir)? else { continue };
            for entry in entries {
                let Some(entry) = unless_gone(entry).at("list", &dir)? else { continue };
                // Of a link itself, not of what it leads to.
                let path = entry.path();
                let Some(metadata) = unless_gone(entry.metadata()).at("inspect", &path)? else {
                    continue;
                };
                if metadata.dev() != device {
                    weight.crosses_filesystems = true;
                    continue;
                }
                weight.add(&metadata);
                if metadata.is_dir() {
                    pending.push(path);
                }
            }
        }
        Ok(Some(weight))
    }

    fn add(&mut self, metadata: &Metadata) {
        let disk_bytes = metadata.blocks() * BLOCK_BYTES;
        if metadata.is_dir() {
            // Its other names are its own and those of its directories.
            self.disk_bytes += disk_bytes;
            self.alone_bytes += disk_bytes;
            return;
        }
        let links = metadata.nlink();
        if links > 1 {
            let inode = (metadata.dev(), metadata.ino());
            let new = Shared { disk_bytes, links, found: 0 };
            let shared = self.shared.entry(inode).or_insert(new);
            shared.found += 1;
            if shared.found > 1 {
                return;
            }
        } else {
            self.alone_bytes += disk_bytes;
        }
        self.files += 1;
        self.bytes += metadata.len();
        self.disk_bytes += disk_bytes;
    }

    /// What removing this directory alone frees.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.alone_bytes + freed(self.shared.values())
    }
}

/// What removing all of these frees.
pub(crate) fn pinned_together<'a>(weights: impl IntoIterator<Item = &'a Weight>) -> u64 {
    let mut alone_bytes = 0;
    let mut together: HashMap<(u64, u64), Shared> = HashMap::new();
    for weight in weights {
        alone_bytes += weight.alone_bytes;
        for (inode, shared) in &weight.shared {
            let sum = together.entry(*inode).or_insert(Shared { found: 0, ..*shared });
            sum.found += shared.found;
        }
    }
    alone_bytes + freed(together.values())
}

fn freed<'a>(files: impl Iterator<Item = &'a Shared>) -> u64 {
    // More were found than there are when some were removed meanwhile.
    files.filter(|file| file.found >= file.links).map(|file| file.disk_bytes).sum()
}

fn unless_gone<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Err(error) if absent(&error) == SkipReason::Missing => Ok(None),
        other => other.map(Some),
    }
}
