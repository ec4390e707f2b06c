//! Cold copy: a closed keyspace, file by file, under its exclusive lock.
//!
//! The source is surveyed as for an open and not changed, not even repaired: a torn journal tail is
//! copied as it is. Tables are linked where that is possible, and sealed segments as well if the
//! keyspace was closed. The copy is a branch of its own, like a checkpoint, and independent of the
//! source.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::assemble::{self, Plan, PlannedSegment, PlannedTree, Unfinished, branch};
use crate::commit::now_ms;
use crate::error::Result;
use crate::files;
use crate::journal::reader::Tail;
use crate::listing::CheckpointHead;
use crate::lock::KeyspaceLock;
use crate::progress::{Moved, Phase, Progress};
use crate::survey;
use crate::transfer::Transfer;
use crate::verify::check_directory;

/// How [`cold_copy`] works.
#[derive(Default)]
#[must_use]
pub struct CopyOptions {
    transfer: Transfer,
    verify: bool,
    progress: Option<Box<dyn FnMut(Progress)>>,
}

impl CopyOptions {
    /// Which ways files may take; default [`Transfer::Auto`].
    pub fn transfer(mut self, transfer: Transfer) -> Self {
        self.transfer = transfer;
        self
    }

    /// Reads the whole copy back and compares every hash before it gets its name.
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Calls `callback` again and again, on this thread.
    pub fn progress(mut self, callback: impl FnMut(Progress) + 'static) -> Self {
        self.progress = Some(Box::new(callback));
        self
    }
}

impl std::fmt::Debug for CopyOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopyOptions")
            .field("transfer", &self.transfer)
            .field("verify", &self.verify)
            .finish_non_exhaustive()
    }
}

/// What a cold copy did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CopyReport {
    /// The newest commit in the copy.
    pub seqno: u64,
    /// From the call to the return.
    pub total: Duration,
    /// Files that share an inode with the source.
    pub linked: Moved,
    /// Files that share extents with it.
    pub reflinked: Moved,
    /// Files that share nothing with it.
    pub copied: Moved,
    /// The partitions, sorted.
    pub partitions: Vec<String>,
}

/// Copies the keyspace in `source`, which nobody has open, to the directory `target`, which must
/// not exist. Everything is durable when this returns; when it fails there is no target (unless all
/// that failed was the last sync of its parent).
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let (db, copy) = (dir.path().join("db"), dir.path().join("copy"));
/// esker::Keyspace::open(&db)?.close()?;
/// let report = esker::cold_copy(&db, &copy, Default::default())?;
/// assert!(esker::verify(&copy, Default::default())?.is_sound());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::Locked`](crate::Error::Locked) when the source is open;
/// [`Error::NotAKeyspace`](crate::Error::NotAKeyspace);
/// [`Error::TargetExists`](crate::Error::TargetExists) and
/// [`Error::TargetInside`](crate::Error::TargetInside);
/// [`Error::Corrupt`](crate::Error::Corrupt) when the source cannot be opened as it is.
pub fn cold_copy(
    source: impl AsRef<Path>,
    target: impl AsRef<Path>,
    options: CopyOptions,
) -> Result<CopyReport> {
    let began = Instant::now();
    let (source, target) = (source.as_ref(), target.as_ref());
    let CopyOptions { transfer, verify, progress } = options;
    let mut progress = progress.unwrap_or_else(|| Box::new(|_| {}));
    survey::load_catalog(source)?;
    let _lock = KeyspaceLock::acquire_untouched(source)?;
    assemble::check_target(source, target)?;
    let (plan, seqno) = survey(source)?;
    let unfinished = Unfinished::create(files::unfinished(target, assemble::tag())?)?;
    let phase = if transfer == Transfer::Copy { Phase::Copy } else { Phase::Link };
    let begin = Progress::begin(phase, 0, 0);
    let built = plan.build(unfinished.path(), transfer.into(), begin, &mut *progress)?;
    progress(Progress::begin(Phase::Sync, 0, 0));
    let head = CheckpointHead::new(&plan.catalog, seqno, now_ms(), Vec::new());
    let sealed = built.seal(unfinished.path(), &plan.catalog, &head);
    let tally = sealed.map_err(|unsealed| unsealed.error)?;
    if verify {
        check_directory(unfinished.path(), &mut *progress)?;
    }
    unfinished.publish(target)?;
    Ok(CopyReport {
        seqno,
        total: began.elapsed(),
        linked: tally.linked,
        reflinked: tally.reflinked,
        copied: tally.copied,
        partitions: head.partitions,
    })
}

/// What the source, which is locked, consists of, and its newest commit.
pub(crate) fn survey(source: &Path) -> Result<(Plan, u64)> {
    // Again, now that nobody can change it.
    let catalog = survey::load_catalog(source)?;
    let mut trees = Vec::new();
    for entry in &catalog.partitions {
        let checked = survey::survey_tree(source, &catalog, entry)?;
        let (version, manifest) = (checked.version, checked.manifest);
        trees.push(PlannedTree { id: entry.tree, version, manifest });
    }
    let (scans, journal) = survey::plan_journal(source, &catalog)?;
    let segments = scans
        .iter()
        .map(|scan| PlannedSegment {
            id: scan.id,
            chain: scan.chain,
            // After an unclean end a seal may be in the page cache alone: no link, new bytes.
            sealed: scan.tail == Tail::Sealed && catalog.clean,
        })
        .collect();
    let seqno = journal.last_seqno;
    let catalog = branch(&catalog, seqno);
    Ok((Plan { source: source.to_path_buf(), catalog, trees, segments }, seqno))
}
