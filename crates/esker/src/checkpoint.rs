//! Online checkpoints: freeze, pin, link, sync, publish.
//!
//! What must stay true:
//! - The freeze does nothing that depends on the size of anything: it swaps the journal segment,
//!   notes the sequence number and takes one reference to the map of pinned versions. No flush, no
//!   copy, no sync, no allocation per partition.
//! - What is linked is exactly the state at that number: versions pinned *before or in* the freeze
//!   (they hold nothing newer) and the sealed segments behind them. A version cloned after the freeze
//!   may hold later commits.
//! - Pins, the hold on the journal and the hold on compactions last only as long as links on the
//!   keyspace's own filesystem take. A copy to elsewhere runs from staged links afterwards.
//! - The target gets its name only when everything in it is durable.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_128;

use crate::assemble::{
    self, Built, Plan, PlannedSegment, PlannedTree, Unfinished, Unsealed, branch, check_target,
};
use crate::catalog::Catalog;
use crate::commit::now_ms;
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::keyspace::{Keyspace, Shared};
use crate::listing::CheckpointHead;
use crate::planted::{Bug, is_planted};
use crate::progress::{Moved, Phase, Progress};
use crate::recovery;
use crate::structure::catalog_entry;
use crate::transfer::{Rungs, Transfer};
use crate::verify::check_directory;
use crate::versions::{Entry, VersionMap};

/// So much of the journal takes about as long to sync as nothing at all.
const UNSYNCED_BYTES_MAX: u64 = 1 << 20;

/// What a checkpoint did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CheckpointReport {
    /// The checkpoint holds exactly the commits up to this one.
    pub seqno: u64,
    /// How long commits were kept out.
    pub freeze: Duration,
    /// How long files and journal segments were kept from being deleted.
    pub pinned: Duration,
    /// From the call to the return.
    pub total: Duration,
    /// Files that share an inode with the keyspace.
    pub linked: Moved,
    /// Files that share extents with it.
    pub reflinked: Moved,
    /// Files that share nothing with it.
    pub copied: Moved,
    /// The partitions in the checkpoint, sorted.
    pub partitions: Vec<String>,
    /// The partitions that the keyspace had at that commit and the checkpoint has not, sorted.
    pub left_out: Vec<String>,
}

/// A checkpoint about to be taken; see [`Keyspace::checkpoint`].
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let keyspace = esker::Keyspace::open(dir.path().join("db"))?;
/// # keyspace.partition("statistics", Default::default())?;
/// let report = keyspace
///     .checkpoint()
///     .exclude(["statistics"])
///     .verify(true)
///     .write_to(dir.path().join("backup"))?;
/// assert_eq!(report.left_out, ["statistics"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "nothing happens before write_to"]
pub struct CheckpointBuilder<'a> {
    keyspace: &'a Keyspace,
    include: Option<BTreeSet<String>>,
    exclude: BTreeSet<String>,
    flush_first: bool,
    transfer: Transfer,
    verify: bool,
    expires_after: Option<Duration>,
    progress: Box<dyn FnMut(Progress) + 'a>,
}

/// The state at one commit, and what keeps its files there.
struct Frozen {
    seqno: u64,
    time_ms: u64,
    /// Commits after the freeze go to this segment.
    active_segment: u64,
    map: VersionMap,
    freeze: Duration,
}

impl<'a> CheckpointBuilder<'a> {
    pub(crate) fn new(keyspace: &'a Keyspace) -> Self {
        Self {
            keyspace,
            include: None,
            exclude: BTreeSet::new(),
            flush_first: false,
            transfer: Transfer::Auto,
            verify: false,
            expires_after: None,
            progress: Box::new(|_| {}),
        }
    }

    /// Takes only these partitions (and those of further calls).
    pub fn include(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.include.get_or_insert_default().extend(names.into_iter().map(Into::into));
        self
    }

    /// Leaves these partitions out: the checkpoint does not know them. Their entries in journal
    /// segments that other partitions need are carried along, and never replayed; with
    /// [`CheckpointBuilder::flush_first`] there are none.
    pub fn exclude(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.exclude.extend(names.into_iter().map(Into::into));
        self
    }

    /// Writes the memtables to tables before the freeze, and what is committed meanwhile into the
    /// checkpoint's own tables after it: the checkpoint has no journal and opens without replay.
    /// The pause stays as short; the whole takes longer.
    pub fn flush_first(mut self, flush: bool) -> Self {
        self.flush_first = flush;
        self
    }

    /// Which ways files may take to the target; default [`Transfer::Auto`].
    pub fn transfer(mut self, transfer: Transfer) -> Self {
        self.transfer = transfer;
        self
    }

    /// Reads the whole checkpoint back and compares every hash before it gets its name.
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Says in the checkpoint that it is not wanted any more so long from now. Nothing happens by that
    /// alone: [`remove_expired`](crate::remove_expired) removes what has expired, when somebody calls it.
    ///
    /// What is said cannot be changed later, because a checkpoint never changes. To keep one for longer,
    /// copy it: a [`cold_copy`](crate::cold_copy) links the same files and does not expire. The first
    /// open for writing makes a checkpoint a keyspace, which does not expire either.
    pub fn expires_after(mut self, time: Duration) -> Self {
        self.expires_after = Some(time);
        self
    }

    /// Calls `callback` again and again, on this thread. It must not use the keyspace: files are
    /// held while it runs. Closing it or taking another checkpoint from there is refused.
    pub fn progress(mut self, callback: impl FnMut(Progress) + 'a) -> Self {
        self.progress = Box::new(callback);
        self
    }

    /// Takes the checkpoint into the directory `target`, which must not exist; its parent must.
    /// When this returns everything is durable; when it fails there is no target (unless all that
    /// failed was the last sync of its parent).
    ///
    /// # Errors
    ///
    /// [`Error::TargetExists`], [`Error::TargetInside`], [`Error::NoSuchPartition`] for a name that
    /// is not there, [`Error::ReadOnly`]; [`ErrorKind::Retry`](crate::ErrorKind::Retry) on a full
    /// disk, after the space was given back; [`Error::Corrupt`] if `verify` finds something.
    pub fn write_to(mut self, target: impl AsRef<Path>) -> Result<CheckpointReport> {
        let began = Instant::now();
        let target = target.as_ref();
        let shared = Arc::clone(self.keyspace.open_shared()?);
        shared.check_not_called_back()?;
        let _open = shared.begin_operation()?;
        check_target(&shared.root, target)?;
        let _one_at_a_time = shared.backup.lock();
        shared.check_open()?;
        self.check_names(&shared)?;
        if self.flush_first {
            self.flush(&shared)?;
        }
        let unfinished = Unfinished::create(files::unfinished(target, assemble::tag())?)?;
        let mut taken = self.take(&shared, &unfinished)?;
        if self.flush_first && !taken.plan.segments.is_empty() {
            taken.absorb(&shared, unfinished.path())?;
        }
        (self.progress)(Progress::begin(Phase::Sync, 0, 0));
        let head = CheckpointHead::new(&taken.plan.catalog, taken.seqno, now_ms(), taken.left_out)
            .expiring_after(self.expires_after);
        let tally = taken.built.seal(unfinished.path(), &taken.plan.catalog, &head);
        let tally = tally.map_err(
            |Unsealed { error, shared: linked }| {
                if linked { shared.journal.poison(error) } else { error }
            },
        )?;
        if self.verify {
            check_directory(unfinished.path(), &mut *self.progress)?;
        }
        unfinished.publish(target)?;
        shared.checkpoints.fetch_add(1, Ordering::Relaxed);
        Ok(CheckpointReport {
            seqno: taken.seqno,
            freeze: taken.freeze,
            pinned: taken.pinned,
            total: began.elapsed(),
            linked: tally.linked,
            reflinked: tally.reflinked,
            copied: tally.copied,
            partitions: head.partitions,
            left_out: head.left_out,
        })
    }

    fn check_names(&self, shared: &Shared) -> Result<()> {
        let named = self.include.iter().flatten().chain(&self.exclude);
        for name in named {
            if shared.find_partition(name).is_none() {
                return Err(Error::NoSuchPartition { name: name.clone() });
            }
        }
        Ok(())
    }

    fn wants(&self, entry: &Entry) -> bool {
        let name = &entry.core.name;
        self.include.as_ref().is_none_or(|names| names.contains(name))
            && !self.exclude.contains(name)
    }

    fn flush(&mut self, shared: &Shared) -> Result<()> {
        let map = shared.versions.current();
        let wanted: Vec<_> = map.values().filter(|entry| self.wants(entry)).collect();
        let mut progress = Progress::begin(Phase::Flush, wanted.len() as u64, 0);
        for entry in wanted {
            (self.progress)(progress);
            shared.flush_partition(&entry.core).map_err(|error| shared.fail(error))?;
            progress.files_done += 1;
        }
        Ok(())
    }

    /// Freezes, links and lets go; then, for a target elsewhere, copies from the links.
    fn take(&mut self, shared: &Arc<Shared>, unfinished: &Unfinished) -> Result<Taken> {
        let dir = unfinished.path();
        // All pins go before a copy begins: the two holds and the version map in `frozen`.
        let mut holds = Some((shared.journal.hold(), shared.jobs.hold_compactions()));
        let began = Instant::now();
        let frozen = freeze(shared)?;
        let mut plan = self.plan(shared, &frozen)?;
        let left_out = self.left_out(&frozen.map);
        let (seqno, freeze, mut pins) = (frozen.seqno, frozen.freeze, Some(frozen));
        if is_planted(Bug::JournalNotHeld) {
            holds = None;
        }
        if is_planted(Bug::VersionsNotPinned) {
            (pins, holds) = (None, None);
        }
        // Links on the keyspace's own filesystem take milliseconds; where the target cannot be
        // linked to, they are made here and copied once nothing is pinned any more.
        let direct = self.transfer == Transfer::Auto && plan.can_link_into(dir)?;
        let staging = if direct { None } else { stage(shared, &plan)? };
        let first_dir = staging.as_ref().map_or(dir, Unfinished::path);
        let wanted = Rungs::from(self.transfer);
        let rungs = if staging.is_some() { Transfer::Auto.into() } else { wanted };
        let mut built =
            plan.build(first_dir, rungs, Progress::begin(Phase::Link, 0, 0), &mut *self.progress)?;
        drop((pins, holds));
        let pinned = began.elapsed();
        shared.jobs.request(crate::jobs::Job::Tidy);
        if let Some(staging) = &staging {
            plan = plan.rebased(staging.path());
            let begin = Progress::begin(Phase::Copy, 0, built.placed_bytes);
            built = plan.build(dir, wanted.without_links(), begin, &mut *self.progress)?;
        }
        Ok(Taken { plan, built, seqno, freeze, pinned, left_out })
    }

    fn left_out(&self, map: &VersionMap) -> Vec<String> {
        let left_out = map.values().filter(|entry| !self.wants(entry));
        let mut names: Vec<_> = left_out.map(|entry| entry.core.name.clone()).collect();
        names.sort();
        names
    }

    /// What the frozen state consists of. Every segment named is sealed.
    fn plan(&self, shared: &Shared, frozen: &Frozen) -> Result<Plan> {
        let wanted: Vec<_> = frozen.map.values().filter(|entry| self.wants(entry)).collect();
        let upto = |partition: u32| {
            let entry = frozen.map.get(&partition).filter(|entry| self.wants(entry));
            entry.map_or(u64::MAX, |entry| entry.flushed_upto)
        };
        let segments =
            shared.journal.with_segments(|s| s.complete_from(upto, frozen.active_segment));
        let trees = wanted.iter().map(|entry| planned_tree(entry)).collect::<Result<Vec<_>>>()?;
        let first = segments.first().map_or(frozen.active_segment, |segment| segment.id);
        let stored = shared.catalog.lock().clone();
        let mut catalog = Catalog {
            clean: true,
            last_seqno: frozen.seqno,
            base_seqno: segments.first().map_or(frozen.seqno, |segment| segment.after),
            last_time_ms: frozen.time_ms,
            first_segment: first,
            last_segment: frozen.active_segment - 1,
            ..branch(&stored, frozen.seqno)
        };
        catalog.partitions = wanted.iter().map(|entry| catalog_entry(entry)).collect();
        for (entry, tree) in catalog.partitions.iter_mut().zip(&trees) {
            // That of the manifest which is placed.
            entry.floor.manifest = Some(xxh3_128(&tree.manifest));
        }
        assert!(
            is_planted(Bug::ActiveSegmentLinked) || segments.iter().all(|s| s.sealed),
            "a checkpoint links sealed segments only"
        );
        let segments = segments
            .iter()
            .map(|s| PlannedSegment { id: s.id, chain: s.chain, sealed: true })
            .collect();
        Ok(Plan { source: shared.root.clone(), catalog, trees, segments })
    }
}

/// A checkpoint that has everything but its CATALOG.
struct Taken {
    plan: Plan,
    built: Built,
    seqno: u64,
    freeze: Duration,
    pinned: Duration,
    left_out: Vec<String>,
}

impl Taken {
    /// Replays the checkpoint's journal into its own tables, so that it has none.
    fn absorb(&mut self, shared: &Shared, dir: &Path) -> Result<()> {
        self.plan.catalog.store(dir)?;
        self.plan.catalog = recovery::absorb_journal(dir, &shared.config)?;
        self.plan.segments.clear();
        self.built.relist(dir, &self.plan.catalog)
    }
}

/// A directory in the keyspace to link into; `None` where even that does not work.
fn stage(shared: &Shared, plan: &Plan) -> Result<Option<Unfinished>> {
    let name = assemble::tag().to_string();
    let staging = Unfinished::create(files::staging(&shared.root).join(name))?;
    Ok(plan.can_link_into(staging.path())?.then_some(staging))
}

/// Notes the state between two groups and seals the journal before it.
fn freeze(shared: &Arc<Shared>) -> Result<Frozen> {
    // What is synced now need not be synced while the files are pinned.
    shared.journal.sync_if_beyond(UNSYNCED_BYTES_MAX)?;
    let frozen = loop {
        shared.prepare_segment()?;
        let versions = Arc::clone(&shared.versions);
        let frozen = shared.committer.pause(move |turn| {
            let began = Instant::now();
            if !is_planted(Bug::ActiveSegmentLinked) && !turn.journal().swap() {
                // The prepared segment was used up since; the next round prepares another.
                return Ok(None);
            }
            let position = turn.journal().position();
            Ok(Some(Frozen {
                seqno: position.last_seqno,
                time_ms: position.last_time_ms,
                active_segment: position.active_segment
                    + u64::from(is_planted(Bug::ActiveSegmentLinked)),
                map: versions.current(),
                freeze: began.elapsed(),
            }))
        })?;
        if let Some(frozen) = frozen {
            break frozen;
        }
    };
    shared.journal.seal_retired()?;
    Ok(frozen)
}

fn planned_tree(entry: &Entry) -> Result<PlannedTree> {
    let version = if is_planted(Bug::VersionsClonedAfterTheFreeze) {
        entry.tree.version().files()
    } else {
        entry.version.files()
    };
    let manifest = version.encode().at("encode the manifest of", entry.tree.dir())?;
    Ok(PlannedTree { id: entry.tree.id, version, manifest })
}
