//! From a directory to an open keyspace: survey (read-only) → decide → apply.
//!
//! What must stay true: nothing on disk is changed before everything was surveyed and found good
//! (lsm-tree deletes what its version does not name, so it comes last); recovery can be repeated
//! from any point after a crash in it; and after an unclean end nothing is served from a page cache
//! that a failed sync may have left behind: what is replayed goes to new, synced files first, then
//! a CATALOG that needs none of the old journal, then the old journal goes.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use crate::catalog::{Catalog, Floor, Origin, PartitionEntry};
use crate::commit::now_ms;
use crate::config::Config;
use crate::error::{Error, IoContext, Result};
use crate::files::{self, Access, KeyspaceLock};
use crate::journal::format::{Identity, SEGMENT_HEADER_LEN};
use crate::journal::items::{Item, Items};
use crate::journal::reader::{self, Frame, Scan, Tail};
use crate::journal::writer::Journal;
use crate::manifest::{self, Checked};
use crate::partition::PartitionCore;
use crate::tree::{self, Slice, Tree};
use crate::versions::Versions;

/// Everything that an open keyspace starts from.
pub(crate) struct Recovered {
    pub(crate) root: PathBuf,
    pub(crate) catalog: Catalog,
    pub(crate) journal: Arc<Journal>,
    pub(crate) versions: Versions,
    pub(crate) trees: tree::Shared,
    pub(crate) memtable_bytes: u64,
    pub(crate) lock: KeyspaceLock,
    pub(crate) view: Option<TempDir>,
}

pub(crate) fn open(config: &Config) -> Result<Recovered> {
    if config.read_only { open_view(config) } else { open_for_writing(config) }
}

/// What a directory is, as far as its names tell.
enum Kind {
    Keyspace,
    /// Missing, empty, or an interrupted creation.
    Fresh,
}

fn kind_of(root: &Path) -> Result<Kind> {
    if files::catalog(root).exists() {
        return Ok(Kind::Keyspace);
    }
    let not_a_keyspace =
        |reason: String| Err(Error::NotAKeyspace { path: root.to_path_buf(), reason });
    if root.exists() && !root.is_dir() {
        return not_a_keyspace("it is not a directory".into());
    }
    for name in files::names(root)? {
        match name.as_str() {
            files::LOCK | "lost+found" => {}
            files::JOURNAL | files::PARTITIONS | files::STAGING => {
                if let Some(first) = files::names(&root.join(&name))?.first() {
                    return not_a_keyspace(format!(
                        "CATALOG is missing, but {name}/{first} is there"
                    ));
                }
            }
            files::CHECKPOINT => {
                return not_a_keyspace("CATALOG is missing, but CHECKPOINT is there".into());
            }
            other if files::is_temporary(other) => {}
            other => return not_a_keyspace(format!("it holds {other:?} and no CATALOG")),
        }
    }
    Ok(Kind::Fresh)
}

/// The catalog of an existing keyspace; a clear answer for anything else.
pub(crate) fn load_catalog(root: &Path) -> Result<Catalog> {
    match kind_of(root)? {
        Kind::Keyspace => Catalog::load(root),
        Kind::Fresh => {
            let reason = if root.exists() { "it has no CATALOG" } else { "it does not exist" };
            Err(Error::NotAKeyspace { path: root.to_path_buf(), reason: reason.into() })
        }
    }
}

// ---- survey: looks at everything, changes nothing ---------------------------------------------

/// Checks a tree's `current`, its manifest, its floor, and that every file it names is there.
pub(crate) fn survey_tree(root: &Path, entry: &PartitionEntry) -> Result<Checked> {
    let dir = files::tree(root, entry.tree);
    let checked = manifest::check(&dir)?;
    if checked.version.id < entry.floor.version {
        return Err(Error::corrupt_because(
            &files::current(&dir),
            Some(0),
            "it names an older version than the partition is known to have had",
            format!("v{} or later", entry.floor.version),
            format!("v{}", checked.version.id),
        ));
    }
    if checked.version.separates_values != entry.options.separate_values_from.is_some() {
        let path = files::version(&dir, checked.version.id);
        return Err(Error::corrupt(&path, None, "the kind of tree is not the one in CATALOG"));
    }
    let tables: Vec<u64> = checked.version.tables().map(|table| table.id).collect();
    survey_files(&files::tables(&dir), &tables)?;
    if checked.version.separates_values {
        let blobs: Vec<u64> = checked.version.blobs.iter().map(|blob| blob.id).collect();
        survey_files(&files::blobs(&dir), &blobs)?;
    }
    Ok(checked)
}

fn survey_files(dir: &Path, named: &[u64]) -> Result<()> {
    if !dir.is_dir() {
        return Err(Error::corrupt(dir, None, "the directory is missing"));
    }
    let mut present = BTreeSet::new();
    for name in files::names(dir)? {
        let id = files::parse_id(&name).ok_or_else(|| {
            Error::corrupt(&dir.join(&name), None, "a file of this name does not belong here")
        })?;
        present.insert(id);
    }
    match named.iter().find(|id| !present.contains(id)) {
        Some(id) => Err(Error::corrupt(&dir.join(id.to_string()), None, "the file is missing")),
        None => Ok(()),
    }
}

/// Reads every segment that CATALOG lists.
fn survey_journal(root: &Path, catalog: &Catalog) -> Result<Vec<Scan>> {
    let identity = Identity { uuid: catalog.uuid, timeline: catalog.timeline };
    let mut scans = Vec::new();
    for id in catalog.first_segment..=catalog.last_segment {
        let path = files::segment(root, id);
        if !path.exists() {
            return Err(Error::corrupt(&path, None, "the journal segment is missing"));
        }
        scans.push(reader::scan(&path, id, identity, None, &mut |_| Ok(()))?);
    }
    for id in segments_on_disk(root)?.into_iter().filter(|id| *id > catalog.last_segment) {
        let path = files::segment(root, id);
        // A segment whose preparation was interrupted; with commits in it, CATALOG is too old.
        let scan = reader::scan(&path, id, identity, None, &mut |_| Ok(()));
        if scan.is_ok_and(|scan| scan.frames > 0) {
            return Err(Error::corrupt(
                &files::catalog(root),
                None,
                format!(
                    "it does not know the journal segment {id}, which holds commits: it is an old copy"
                ),
            ));
        }
    }
    Ok(scans)
}

fn segments_on_disk(root: &Path) -> Result<Vec<u64>> {
    Ok(files::names(&files::journal(root))?
        .iter()
        .filter_map(|n| files::parse_segment(n))
        .collect())
}

// ---- decide: pure ------------------------------------------------------------------------------

/// What replay will do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct JournalPlan {
    /// Segments to replay, whole or up to where they end.
    pub(crate) replay: Vec<u64>,
    /// The newest commit there is.
    pub(crate) last_seqno: u64,
    pub(crate) last_time_ms: u64,
    /// Where a write was cut short: segment and offset.
    pub(crate) torn: Option<(u64, u64)>,
}

/// Decides by table, segment by segment:
///
/// | this segment | an earlier one ended short | it proves earlier bytes durable | verdict |
/// |---|---|---|---|
/// | broken | any | any | refuse |
/// | continues (seqno follows) | no | any | keep; if its tail is torn, cut there |
/// | does not continue | no | no | cut before it: unsynced frames were lost in between |
/// | does not continue, or anything | yes | no | drop: it was never durable |
/// | has frames | yes, or a gap | yes | refuse: durable commits are missing |
///
/// A segment proves earlier ones durable when one of its own frames was written after one of its
/// syncs: nothing in a segment is synced before everything older is sealed.
pub(crate) fn decide(root: &Path, catalog: &Catalog, scans: &[Scan]) -> Result<JournalPlan> {
    let mut plan = JournalPlan {
        replay: Vec::new(),
        last_seqno: catalog.base_seqno,
        last_time_ms: catalog.last_time_ms,
        torn: None,
    };
    let mut cut = false;
    for scan in scans {
        scan.check()?;
        let continues = scan.first_seqno.is_none_or(|first| first == plan.last_seqno + 1);
        if cut || !continues {
            cut = true;
            let proves = scan.frames > 0 && scan.synced_len > SEGMENT_HEADER_LEN as u64;
            if proves {
                return Err(missing(root, scan, plan.last_seqno + 1));
            }
            continue;
        }
        plan.replay.push(scan.id);
        plan.last_seqno = scan.last_seqno.unwrap_or(plan.last_seqno);
        plan.last_time_ms = plan.last_time_ms.max(scan.last_time_ms);
        if scan.tail == Tail::Torn {
            plan.torn = Some((scan.id, scan.end));
            cut = true;
        }
    }
    let floor = catalog.partitions.iter().map(|p| p.floor.flushed_upto).max().unwrap_or(0);
    let durable = catalog.last_seqno.max(floor);
    if plan.last_seqno < durable {
        let last = scans.last().map_or(catalog.first_segment, |scan| scan.id);
        let offset = scans.last().map(|scan| scan.end);
        return Err(Error::corrupt_because(
            &files::segment(root, last),
            offset,
            "durable commits are missing at the end of the journal",
            format!("commits up to {durable}"),
            format!("commits up to {}", plan.last_seqno),
        ));
    }
    Ok(plan)
}

fn missing(root: &Path, scan: &Scan, expected: u64) -> Error {
    Error::corrupt_because(
        &files::segment(root, scan.id),
        Some(SEGMENT_HEADER_LEN as u64),
        "durable commits before this segment are missing",
        format!("commit {expected}"),
        format!("commit {}", scan.first_seqno.unwrap_or(0)),
    )
}

/// Survey and decision about the journal in one step.
pub(crate) fn plan_journal(root: &Path, catalog: &Catalog) -> Result<(Vec<Scan>, JournalPlan)> {
    let scans = survey_journal(root, catalog)?;
    let plan = decide(root, catalog, &scans)?;
    Ok((scans, plan))
}

// ---- apply -------------------------------------------------------------------------------------

fn open_for_writing(config: &Config) -> Result<Recovered> {
    let root = &config.path;
    let kind = kind_of(root)?;
    if matches!(kind, Kind::Fresh) && !config.create_if_missing {
        load_catalog(root)?;
    }
    files::create_dir_all_durably(root)?;
    let lock = KeyspaceLock::acquire(root, Access::Exclusive)?;
    // Somebody may have created it between the first look and the lock.
    if matches!(kind_of(root)?, Kind::Fresh) {
        create(root)?;
    }
    let mut catalog = Catalog::load(root)?;
    for entry in &catalog.partitions {
        survey_tree(root, entry)?;
    }
    let (_, plan) = plan_journal(root, &catalog)?;
    remove_leftovers(root, &catalog)?;
    if !catalog.clean {
        // Whatever the page cache holds of an earlier life reaches the disk before lsm-tree
        // deletes what it supersedes.
        files::sync_filesystem(root)?;
    }
    let mut replay = Replay::open_trees(root, &catalog, config)?;
    replay.run(root, &plan)?;
    replay.flush_all(plan.last_seqno)?;
    let old_last = catalog.last_segment;
    if std::mem::take(&mut catalog.fork_on_open) {
        let (uuid, timeline) = (catalog.uuid, catalog.timeline);
        catalog.origin = Some(Origin { uuid, timeline, seqno: plan.last_seqno });
        catalog.timeline = files::random_u128();
    }
    let identity = Identity { uuid: catalog.uuid, timeline: catalog.timeline };
    let prepared =
        Journal::prepare(root, identity, old_last + 1, config.journal_segment_bytes, now_ms())?;
    let versions = replay.finish(&mut catalog, &plan);
    catalog.clean = false;
    catalog.first_segment = old_last + 1;
    catalog.last_segment = old_last + 1;
    catalog.store(root)?;
    replay.remove_superseded();
    remove_segments_before(root, old_last + 1)?;
    files::remove_if_present(&files::checkpoint(root))?;
    let journal = Journal::begin(
        root,
        identity,
        config.journal_segment_bytes,
        prepared,
        plan.last_seqno,
        plan.last_time_ms,
    );
    Ok(Recovered {
        root: root.clone(),
        catalog,
        journal: Arc::new(journal),
        versions,
        trees: replay.trees,
        memtable_bytes: 0,
        lock,
        view: None,
    })
}

/// Can be repeated after a crash at any point: CATALOG comes last.
fn create(root: &Path) -> Result<()> {
    for dir in [files::journal(root), files::partitions(root), files::staging(root)] {
        files::create_dir(&dir)?;
    }
    files::sync_dir(root)?;
    Catalog::new(files::random_u128(), files::random_u128()).store(root)
}

/// Removes what interrupted work left behind and CATALOG does not name.
fn remove_leftovers(root: &Path, catalog: &Catalog) -> Result<()> {
    let staging = files::staging(root);
    for name in files::names(&staging)? {
        files::remove_dir_if_present(&staging.join(name))?;
    }
    for dir in [files::journal(root), files::partitions(root), staging] {
        files::create_dir(&dir)?;
    }
    let named: BTreeSet<u64> = catalog.partitions.iter().map(|p| p.tree).collect();
    for name in files::names(&files::partitions(root))? {
        if files::parse_id(&name).is_some_and(|id| !named.contains(&id)) {
            files::remove_dir_if_present(&files::partitions(root).join(name))?;
        }
    }
    for id in segments_on_disk(root)? {
        if id > catalog.last_segment {
            files::remove_if_present(&files::segment(root, id))?;
        }
    }
    remove_segments_before(root, catalog.first_segment)
}

pub(crate) fn remove_segments_before(root: &Path, first: u64) -> Result<()> {
    for id in segments_on_disk(root)?.into_iter().filter(|id| *id < first) {
        files::remove_if_present(&files::segment(root, id))?;
    }
    Ok(())
}

/// Replays the journal of the keyspace in `dir` into its tables, so that it needs none. For a
/// checkpoint that is being built; nobody else knows the directory yet.
pub(crate) fn absorb_journal(dir: &Path, config: &Config) -> Result<Catalog> {
    let mut catalog = Catalog::load(dir)?;
    let (_, plan) = plan_journal(dir, &catalog)?;
    let mut replay = Replay::open_trees(dir, &catalog, config)?;
    replay.run(dir, &plan)?;
    replay.flush_all(plan.last_seqno)?;
    replay.finish(&mut catalog, &plan);
    let first = catalog.last_segment + 1;
    catalog.first_segment = first;
    files::remove_if_present(&files::catalog(dir))?;
    replay.remove_superseded();
    remove_segments_before(dir, first)?;
    Ok(catalog)
}

/// Trees that take what the journal holds for them.
struct Replay<'a> {
    root: PathBuf,
    config: &'a Config,
    trees: tree::Shared,
    live: BTreeMap<u32, Replayed>,
    /// Dropped on the way; their directories go when CATALOG no longer names them.
    dropped: Vec<Replayed>,
    next_partition: u32,
    next_tree: u64,
}

struct Replayed {
    core: Arc<PartitionCore>,
    /// Commits up to this one are in the tree's tables already.
    upto: u64,
    /// The tree that the last clear made, and the one to read.
    tree: Arc<Tree>,
}

impl<'a> Replay<'a> {
    fn open_trees(root: &Path, catalog: &Catalog, config: &'a Config) -> Result<Self> {
        let trees = tree::Shared::new(config.cache_bytes);
        let mut live = BTreeMap::new();
        for entry in &catalog.partitions {
            let dir = files::tree(root, entry.tree);
            let tree = Arc::new(Tree::open(&dir, entry.tree, &entry.options, &trees)?);
            let upto = entry.floor.flushed_upto.max(tree.highest_persisted_seqno().unwrap_or(0));
            let core = PartitionCore::new(
                entry.id,
                entry.name.clone(),
                entry.options.clone(),
                Arc::clone(&tree),
            );
            live.insert(entry.id, Replayed { core: Arc::new(core), upto, tree });
        }
        Ok(Self {
            root: root.to_path_buf(),
            config,
            trees,
            live,
            dropped: Vec::new(),
            next_partition: catalog.next_partition,
            next_tree: catalog.next_tree,
        })
    }

    /// Replays the planned segments, which lie in the keyspace `source`.
    fn run(&mut self, source: &Path, plan: &JournalPlan) -> Result<()> {
        let catalog = Catalog::load(source)?;
        let identity = Identity { uuid: catalog.uuid, timeline: catalog.timeline };
        for &id in &plan.replay {
            let path = files::segment(source, id);
            reader::scan(&path, id, identity, None, &mut |frame| self.frame(&path, &frame))?;
        }
        Ok(())
    }

    fn frame(&mut self, path: &Path, frame: &Frame<'_>) -> Result<()> {
        let corrupt = |what: &str| Error::corrupt(path, Some(frame.offset), what);
        for item in Items::new(frame.payload, frame.items) {
            let item = item.map_err(|_| corrupt("the frame's payload is not made of items"))?;
            match item {
                Item::Put { partition, key, value } => {
                    let Some(target) = self.target(partition, frame.seqno, &corrupt)? else {
                        continue;
                    };
                    let value = value
                        .bytes()
                        .ok_or_else(|| corrupt("a compressed value does not decompress"))?;
                    target.tree.apply(Slice::from(key), Some(Slice::from(value)), frame.seqno);
                }
                Item::Delete { partition, key } => {
                    let Some(target) = self.target(partition, frame.seqno, &corrupt)? else {
                        continue;
                    };
                    target.tree.apply(Slice::from(key), None, frame.seqno);
                }
                Item::Clear { partition } => {
                    if self.target(partition, frame.seqno, &corrupt)?.is_some() {
                        self.clear(partition, frame.seqno)?;
                    }
                }
                Item::Drop { partition } => {
                    self.dropped.extend(self.live.remove(&partition));
                }
                Item::Create { partition, .. } => {
                    self.target(partition, frame.seqno, &corrupt)?;
                }
            }
        }
        self.bound_memory(frame.seqno)
    }

    /// The partition to apply to; `None` when its tables have it or it was dropped later.
    fn target(
        &self,
        partition: u32,
        seqno: u64,
        corrupt: &dyn Fn(&str) -> Error,
    ) -> Result<Option<&Replayed>> {
        if partition >= self.next_partition {
            return Err(corrupt("an item names a partition that CATALOG never had"));
        }
        Ok(self.live.get(&partition).filter(|target| target.upto < seqno))
    }

    fn clear(&mut self, partition: u32, seqno: u64) -> Result<()> {
        let Some(target) = self.live.get_mut(&partition) else { return Ok(()) };
        let id = self.next_tree;
        let dir = files::tree(&self.root, id);
        files::remove_dir_if_present(&dir)?;
        files::create_dir(&dir)?;
        let tree = Arc::new(Tree::open(&dir, id, &target.core.options, &self.trees)?);
        files::sync_dir(&files::partitions(&self.root))?;
        target.core.begin_generation(seqno, Arc::clone(&tree));
        target.tree = tree;
        target.upto = seqno;
        self.next_tree = id + 1;
        Ok(())
    }

    fn bound_memory(&mut self, seqno: u64) -> Result<()> {
        let mut total = 0;
        for target in self.live.values() {
            let bytes = target.tree.memtable_bytes();
            if bytes >= self.config.memtable_bytes {
                target.flush(seqno)?;
            } else {
                total += bytes;
            }
        }
        if total >= self.config.write_buffer_bytes_max { self.flush_all(seqno) } else { Ok(()) }
    }

    fn flush_all(&self, newest: u64) -> Result<()> {
        self.live.values().try_for_each(|target| target.flush(newest))
    }

    /// The catalog and the version map after replay.
    fn finish(&self, catalog: &mut Catalog, plan: &JournalPlan) -> Versions {
        let versions = Versions::default();
        catalog.partitions.clear();
        for (&id, target) in &self.live {
            let in_memory = target.tree.memtable_bytes() > 0;
            let flushed_upto =
                if in_memory { target.upto } else { plan.last_seqno.max(target.upto) };
            versions.put(&target.core, &target.tree, flushed_upto);
            let floor = Floor { version: target.tree.version().id, flushed_upto };
            catalog.partitions.push(PartitionEntry {
                id,
                tree: target.tree.id,
                name: target.core.name.clone(),
                options: target.core.options.clone(),
                floor,
            });
        }
        catalog.next_tree = self.next_tree;
        catalog.last_seqno = plan.last_seqno;
        catalog.base_seqno = plan.last_seqno;
        catalog.last_time_ms = plan.last_time_ms;
        versions
    }

    /// Removes the trees that clears and drops left behind. CATALOG no longer names them.
    fn remove_superseded(&mut self) {
        for target in self.live.values() {
            target.core.retire_generations(None);
        }
        for dropped in self.dropped.drain(..) {
            dropped.core.doom();
        }
    }
}

impl Replayed {
    /// Nobody reads yet, so nothing older than `newest` that is overwritten has to stay.
    fn flush(&self, newest: u64) -> Result<()> {
        let flushing = self.tree.lock_flushing();
        self.tree.rotate();
        self.tree.flush(&flushing, newest + 1)?;
        self.tree.take_sealed_bytes();
        Ok(())
    }
}

// ---- read-only ---------------------------------------------------------------------------------

/// A keyspace of links in a temporary directory: lsm-tree may delete and the replay may flush
/// there, and the original stays as it is.
fn open_view(config: &Config) -> Result<Recovered> {
    // lsm-tree opens tables through the links, so they must not depend on the working directory.
    let source = std::fs::canonicalize(&config.path).or_else(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Ok(config.path.clone()),
        _ => Err(Error::io("open", &config.path, e)),
    })?;
    let mut catalog = load_catalog(&source)?;
    let lock = KeyspaceLock::acquire(&source, Access::Shared)?;
    let checked = catalog
        .partitions
        .iter()
        .map(|entry| survey_tree(&source, entry))
        .collect::<Result<Vec<_>>>()?;
    let (_, plan) = plan_journal(&source, &catalog)?;
    let temporary = std::env::temp_dir();
    let view = tempfile::Builder::new().prefix("esker-view-").tempdir_in(&temporary);
    let view = view.at("create a directory in", &temporary)?;
    let root = view.path().to_path_buf();
    files::create_dir(&files::journal(&root))?;
    files::create_dir(&files::partitions(&root))?;
    for (entry, checked) in catalog.partitions.iter().zip(&checked) {
        mirror_tree(&source, &root, entry.tree, checked)?;
    }
    let mut replay = Replay::open_trees(&root, &catalog, config)?;
    replay.run(&source, &plan)?;
    let identity = Identity { uuid: catalog.uuid, timeline: catalog.timeline };
    let id = catalog.last_segment + 1;
    let prepared = Journal::prepare(&root, identity, id, 0, now_ms())?;
    let versions = replay.finish(&mut catalog, &plan);
    let journal = Journal::begin(&root, identity, 0, prepared, plan.last_seqno, plan.last_time_ms);
    let memtable_bytes = replay.live.values().map(|target| target.tree.memtable_bytes()).sum();
    let (journal, trees) = (Arc::new(journal), replay.trees);
    Ok(Recovered {
        root,
        catalog,
        journal,
        versions,
        trees,
        memtable_bytes,
        lock,
        view: Some(view),
    })
}

fn mirror_tree(source: &Path, root: &Path, id: u64, checked: &Checked) -> Result<()> {
    let (from, to) = (files::tree(source, id), files::tree(root, id));
    files::create_dir(&to)?;
    files::create_dir(&files::tables(&to))?;
    files::write_new(&files::current(&to), &checked.current)?;
    files::write_new(&files::version(&to, checked.version.id), &checked.manifest)?;
    let link = |from: PathBuf, to: PathBuf| symlink(&from, &to).at("link", &from);
    for table in checked.version.tables() {
        link(files::table(&from, table.id), files::table(&to, table.id))?;
    }
    if checked.version.separates_values {
        files::create_dir(&files::blobs(&to))?;
        for blob in &checked.version.blobs {
            link(files::blob(&from, blob.id), files::blob(&to, blob.id))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(id: u64, first: u64, last: u64, tail: Tail, synced: bool) -> Scan {
        let header = SEGMENT_HEADER_LEN as u64;
        Scan {
            id,
            first_seqno: (last >= first).then_some(first),
            last_seqno: (last >= first).then_some(last),
            last_time_ms: 0,
            frames: (last + 1).saturating_sub(first),
            end: 1000,
            len: 2000,
            chain: 0,
            synced_len: if synced { 500 } else { header },
            tail,
        }
    }

    /// Every tail of the first of two segments × whether the second continues × whether it proves
    /// that the first was durable.
    #[test]
    fn every_combination_of_tail_gap_and_proof_is_decided() {
        let catalog = Catalog { last_segment: 2, ..Catalog::new(1, 2) };
        let broken = || {
            let corruption = Error::corrupt(Path::new("x"), None, "rot");
            let Error::Corrupt(corruption) = corruption else { unreachable!() };
            Tail::Broken(corruption)
        };
        for tail in [Tail::Sealed, Tail::Open, Tail::Torn, broken()] {
            for continues in [true, false] {
                for proves in [true, false] {
                    let first = segment(1, 1, 5, tail.clone(), true);
                    let start = if continues { 6 } else { 8 };
                    let second = segment(2, start, 9, Tail::Open, proves);
                    let decided = decide(Path::new("k"), &catalog, &[first, second]);
                    let whole = continues && matches!(tail, Tail::Sealed | Tail::Open);
                    let case = format!("{tail:?} continues={continues} proves={proves}");
                    match (&tail, whole, proves) {
                        (Tail::Broken(_), ..) => assert!(decided.is_err(), "{case}"),
                        (_, true, _) => assert_eq!(decided.unwrap().last_seqno, 9, "{case}"),
                        (_, false, true) => assert!(decided.is_err(), "{case}"),
                        (_, false, false) => {
                            let plan = decided.unwrap();
                            assert_eq!((plan.last_seqno, plan.replay), (5, vec![1]), "{case}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_journal_that_ends_before_a_durable_commit_is_refused() {
        let mut catalog = Catalog { last_segment: 1, ..Catalog::new(1, 2) };
        let scans = [segment(1, 1, 5, Tail::Torn, true)];
        catalog.last_seqno = 5;
        assert_eq!(decide(Path::new("k"), &catalog, &scans).unwrap().torn, Some((1, 1000)));
        catalog.last_seqno = 6;
        assert!(decide(Path::new("k"), &catalog, &scans).is_err());
    }
}
