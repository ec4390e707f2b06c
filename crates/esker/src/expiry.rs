//! Removes checkpoints that have expired.
//!
//! What must stay true: what goes is a checkpoint that says so itself, read again under its exclusive
//! lock, so nobody has it open; it loses its name durably before it loses a file, so no half of one is
//! ever taken for a checkpoint, and a later removal finds what an interrupted one left; no symbolic link
//! is followed, and nothing goes that is on another filesystem.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::assemble;
use crate::checkpoints::{
    CheckpointInfo, Look, SkippedDirectory, Weight, find, info, look_at, pinned_together,
};
use crate::commit::now_ms;
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::listing::Listing;
use crate::lock::KeyspaceLock;

/// How [`remove_expired`] works.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RemoveOptions {
    dry_run: bool,
    even_newest: bool,
    now_ms: Option<u64>,
}

impl RemoveOptions {
    /// Removes nothing and says what would be removed.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Removes the newest checkpoint of a keyspace as well, if it has expired.
    pub fn even_newest(mut self, even_newest: bool) -> Self {
        self.even_newest = even_newest;
        self
    }

    /// What the time is, in milliseconds since 1970; default what the system's clock says.
    pub fn now_ms(mut self, now_ms: u64) -> Self {
        self.now_ms = Some(now_ms);
        self
    }
}

/// What [`remove_expired`] did, or would do.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct RemovalReport {
    /// Whether nothing was removed.
    pub dry_run: bool,
    /// The checkpoints that went; by keyspace, the oldest first.
    pub removed: Vec<RemovedCheckpoint>,
    /// What earlier removals had left and is gone now.
    pub leftovers: Vec<PathBuf>,
    /// What that freed on the disk, all together.
    pub freed_bytes: u64,
    /// Expired ones that stay, each the newest of its keyspace among those that were given.
    pub newest: Vec<PathBuf>,
    /// Expired ones that stay because somebody has them open.
    pub in_use: Vec<PathBuf>,
    /// Expired ones that could not be removed, and why.
    pub failed: Vec<(PathBuf, String)>,
    /// Checkpoints that have not expired.
    pub kept: u64,
    /// Directories that are no checkpoint.
    pub skipped: Vec<SkippedDirectory>,
}

/// A checkpoint that went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RemovedCheckpoint {
    /// What it was.
    #[serde(flatten)]
    pub checkpoint: CheckpointInfo,
    /// What its removal freed on the disk: what it pinned alone, behind the removals before it.
    pub freed_bytes: u64,
}

/// Removes the checkpoints among those at `paths`, or in directories there, that say of themselves that
/// they have expired ([`CheckpointBuilder::expires_after`](crate::CheckpointBuilder::expires_after)), and
/// what an interrupted removal has left there. The newest of each keyspace stays, and what anybody has
/// open. Paths are those of [`checkpoints`](crate::checkpoints).
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// use std::time::Duration;
///
/// let backups = dir.path().join("backups");
/// std::fs::create_dir(&backups)?;
/// let keyspace = esker::Keyspace::open(dir.path().join("db"))?;
/// for name in ["monday", "tuesday"] {
///     keyspace.checkpoint().expires_after(Duration::ZERO).write_to(backups.join(name))?;
/// }
/// let report = esker::remove_expired([&backups], Default::default())?;
/// assert_eq!(report.removed[0].checkpoint.path, backups.join("monday"));
/// assert_eq!(report.newest, [backups.join("tuesday")]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::Io`] when a checkpoint's files cannot be listed. One that cannot be removed is no error, but
/// in the report, and does not keep the others.
pub fn remove_expired(
    paths: impl IntoIterator<Item = impl AsRef<Path>>,
    options: RemoveOptions,
) -> Result<RemovalReport> {
    let paths: Vec<PathBuf> = paths.into_iter().map(|path| path.as_ref().to_path_buf()).collect();
    let mut report = RemovalReport { dry_run: options.dry_run, ..<_>::default() };
    for leftover in leftovers(&paths) {
        finish(leftover, &mut report);
    }
    let found = find(&paths)?;
    report.skipped = found.skipped;
    let is_done = |skipped: &SkippedDirectory| report.leftovers.contains(&skipped.path);
    report.skipped.retain(|skipped| !is_done(skipped));
    let now_ms = options.now_ms.unwrap_or_else(now_ms);
    let expired = choose(found.checkpoints, now_ms, options.even_newest, &mut report);
    if options.dry_run {
        return foretell(expired, report);
    }
    for (path, listing) in expired {
        match remove(&path, &listing) {
            Ok(Some(removed)) => {
                report.freed_bytes += removed.freed_bytes;
                report.removed.push(removed);
            }
            // Somebody else was faster, or has opened it for writing.
            Ok(None) => {}
            Err(Error::Locked { .. }) => report.in_use.push(path),
            Err(error) => report.failed.push((path, error.to_string())),
        }
    }
    Ok(report)
}

/// Those that have expired and may go. The newest of a keyspace is the one that was taken last.
fn choose(
    found: Vec<(PathBuf, Listing)>,
    now_ms: u64,
    even_newest: bool,
    report: &mut RemovalReport,
) -> Vec<(PathBuf, Listing)> {
    // They are in order, so the last one of a keyspace stays in the map.
    let newest: HashMap<u128, PathBuf> =
        found.iter().map(|(path, listing)| (listing.uuid, path.clone())).collect();
    let mut expired = Vec::new();
    for (path, listing) in found {
        if listing.expires_ms.is_none_or(|expires_ms| expires_ms > now_ms) {
            report.kept += 1;
        } else if !even_newest && newest.get(&listing.uuid) == Some(&path) {
            report.newest.push(path);
        } else {
            expired.push((path, listing));
        }
    }
    expired
}

/// What removing them would do.
fn foretell(expired: Vec<(PathBuf, Listing)>, mut report: RemovalReport) -> Result<RemovalReport> {
    let mut weights = Vec::new();
    for (path, listing) in expired {
        let Some(weight) = Weight::of(&path)? else { continue };
        let before = pinned_together(&weights);
        weights.push(weight);
        let freed_bytes = pinned_together(&weights) - before;
        let checkpoint = info(path, listing, &weights[weights.len() - 1]);
        report.removed.push(RemovedCheckpoint { checkpoint, freed_bytes });
        report.freed_bytes += freed_bytes;
    }
    Ok(report)
}

/// Removes a checkpoint that is still the one that was found; `None` if it is not.
fn remove(path: &Path, found: &Listing) -> Result<Option<RemovedCheckpoint>> {
    // `.` and the like have no name to change.
    let path = match path.file_name() {
        Some(_) => path.to_path_buf(),
        None => path.canonicalize().at("find", path)?,
    };
    let _lock = match KeyspaceLock::acquire_untouched(&path) {
        Err(error) if is_gone(&error) => return Ok(None),
        lock => lock?,
    };
    // Nobody opens it from here on; somebody may have until here.
    let Look::Checkpoint(_, listing) = look_at(&path)? else { return Ok(None) };
    let is_same = (listing.uuid, listing.created_ms, listing.expires_ms)
        == (found.uuid, found.created_ms, found.expires_ms);
    let Some(weight) = Weight::of(&path)?.filter(|_| is_same) else { return Ok(None) };
    refuse_mounts(&path, &weight)?;
    let (freed_bytes, checkpoint) = (weight.pinned_bytes(), info(path.clone(), *listing, &weight));
    let hidden = files::removing(&path, assemble::tag()).expect("it has a name");
    fs::rename(&path, &hidden).at("rename", &path)?;
    files::sync_dir(files::parent(&path))?;
    files::remove_dir_if_present(&hidden)?;
    Ok(Some(RemovedCheckpoint { checkpoint, freed_bytes }))
}

fn refuse_mounts(path: &Path, weight: &Weight) -> Result<()> {
    if weight.crosses_filesystems {
        let what = "a filesystem is mounted in it";
        return Err(Error::io("remove", path, std::io::Error::other(what)));
    }
    Ok(())
}

fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
}

/// What earlier removals have left of these checkpoints, or in these directories.
fn leftovers(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in paths {
        let is_own = |removed: &OsStr| Some(removed) == path.file_name();
        let beside = hidden_in(files::parent(path)).filter(|(_, removed)| is_own(removed));
        found.extend(beside.chain(hidden_in(path)).map(|(hidden, _)| hidden));
    }
    found.sort();
    found.dedup();
    found
}

/// Directories that are being removed, each with the name that it had. What cannot be listed has none.
fn hidden_in(dir: &Path) -> impl Iterator<Item = (PathBuf, OsString)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.filter(is_dir).filter_map(move |entry| {
        let name = entry.file_name();
        let removed = files::parse_removing(&name)?.to_owned();
        Some((dir.join(&name), removed))
    })
}

/// Removes the rest of what an interrupted removal has left, unless another one is at it.
fn finish(hidden: PathBuf, report: &mut RemovalReport) {
    let finish = || -> Result<Option<u64>> {
        let _lock = match KeyspaceLock::acquire_untouched(&hidden) {
            Err(Error::Locked { .. }) => return Ok(None),
            Err(error) if is_gone(&error) => return Ok(None),
            lock => lock?,
        };
        let Some(weight) = Weight::of(&hidden)? else { return Ok(None) };
        refuse_mounts(&hidden, &weight)?;
        if !report.dry_run {
            files::remove_dir_if_present(&hidden)?;
        }
        Ok(Some(weight.pinned_bytes()))
    };
    match finish() {
        Ok(Some(freed_bytes)) => {
            report.freed_bytes += freed_bytes;
            report.leftovers.push(hidden);
        }
        Ok(None) => {}
        Err(error) => report.failed.push((hidden, error.to_string())),
    }
}
