//! From a directory to an open keyspace: survey (read-only) → decide → apply.
//!
//! What must stay true: nothing on disk is changed before everything was surveyed and found good
//! (lsm-tree deletes what its version does not name, so it comes last); recovery can be repeated
//! from any point after a crash in it; and after an unclean end nothing is served from a page cache
//! that a failed sync may have left behind: what is replayed goes to new, synced files first, then
//! a CATALOG that needs none of the old journal, then the old journal goes.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use crate::catalog::{Catalog, Origin};
use crate::commit::now_ms;
use crate::config::Config;
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::journal::format::Identity;
use crate::journal::reader::{self, Scan, Tail};
use crate::journal::writer::Journal;
use crate::lock::{Access, KeyspaceLock};
use crate::manifest::Checked;
use crate::planted::{Bug, is_planted, unless};
use crate::replay::Replay;
use crate::survey::{
    JournalPlan, Kind, kind_of, load_catalog, plan_journal, segments_on_disk, survey_tree,
};
use crate::tree;
use crate::versions::Versions;

/// Everything that an open keyspace starts from.
pub(crate) struct Recovered {
    pub(crate) root: PathBuf,
    pub(crate) catalog: Catalog,
    pub(crate) journal: Arc<Journal>,
    pub(crate) versions: Versions,
    pub(crate) trees: tree::Shared,
    pub(crate) lock: KeyspaceLock,
    pub(crate) view: Option<TempDir>,
    /// Segments and bytes of the journal that was found.
    pub(crate) replayed_journal: (u64, u64),
}

pub(crate) fn open(config: &Config) -> Result<Recovered> {
    if config.read_only { open_view(config) } else { open_for_writing(config) }
}

fn open_for_writing(config: &Config) -> Result<Recovered> {
    let root = &config.path;
    let kind = kind_of(root)?;
    if matches!(kind, Kind::Fresh) && !config.create_if_missing {
        load_catalog(root)?;
    }
    files::create_dir_all_durably(root)?;
    let lock = KeyspaceLock::acquire(root, Access::Exclusive)?;
    // Somebody may have created it between the first look and the lock.
    match kind_of(root)? {
        Kind::Fresh => create(root, &lock)?,
        // The sync of a creation may have failed, or not been reached: nothing may become durable
        // in a directory that would be no keyspace without CATALOG's name.
        Kind::Keyspace => files::sync_dir(root)?,
    }
    let mut catalog = load_catalog(root)?;
    for entry in &catalog.partitions {
        survey_tree(root, &catalog, entry)?;
    }
    let (scans, plan) = plan_journal(root, &catalog)?;
    lock.name(root, Some(catalog.uuid))?;
    remove_leftovers(root, &catalog)?;
    let was_clean = catalog.clean;
    if catalog.fork_on_open && !plan.replay.is_empty() {
        // A checkpoint or copy: from here on its journal and its trees are not what CATALOG and
        // CHECKPOINT say until the new CATALOG is stored, and an interruption must not make that
        // look like damage.
        catalog.clean = false;
        catalog.store(root)?;
        files::remove_if_present(&files::checkpoint(root))?;
        // Or a power cut brings it back beside trees that it does not describe.
        unless(Bug::FileListRemovalNotSynced, || files::sync_dir(root))?;
    }
    if !was_clean {
        // Whatever the page cache holds of an earlier life reaches the disk before lsm-tree
        // deletes what it supersedes.
        files::sync_below(root)?;
        renew_journal(root, &catalog, &scans, &plan)?;
    }
    let mut replay = Replay::open_trees(root, &catalog, config)?;
    replay.run(root, &plan)?;
    unless(Bug::ReplayedNotFlushed, || replay.flush_all(plan.last_seqno))?;
    let (journal, versions) = begin_anew(config, &mut catalog, &mut replay, &plan)?;
    Ok(Recovered {
        root: root.clone(),
        catalog,
        journal: Arc::new(journal),
        versions,
        trees: replay.trees,
        lock,
        view: None,
        replayed_journal: (0, 0),
    })
}

/// Ends the old journal: a CATALOG that needs none of it, an empty one beside it, and then what is
/// superseded goes.
fn begin_anew(
    config: &Config,
    catalog: &mut Catalog,
    replay: &mut Replay<'_>,
    plan: &JournalPlan,
) -> Result<(Journal, Versions)> {
    let root = &config.path;
    let old_last = catalog.last_segment;
    if std::mem::take(&mut catalog.fork_on_open) {
        let (uuid, timeline) = (catalog.uuid, catalog.timeline);
        catalog.origin = Some(Origin { uuid, timeline, seqno: plan.last_seqno });
        catalog.timeline = files::random_u128();
    }
    let identity = Identity { uuid: catalog.uuid, timeline: catalog.timeline };
    let prepared =
        Journal::prepare(root, identity, old_last + 1, config.journal_segment_bytes, now_ms())?;
    let versions = replay.finish(catalog, plan);
    catalog.clean = is_planted(Bug::CleanMarkKept);
    catalog.first_segment = old_last + 1;
    catalog.last_segment = old_last + 1;
    if is_planted(Bug::SupersededRemovedBeforeCatalog) {
        replay.remove_superseded();
    }
    if is_planted(Bug::OldJournalRemovedBeforeCatalog) {
        remove_segments_before(root, old_last + 1)?;
    }
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
    Ok((journal, versions))
}

/// The journal must reach as far as the tables into which it is replayed, also if the machine dies
/// before CATALOG says that it is not needed: else those hold commits that nothing knows, one
/// partition's and not the other's. After a failed sync what was read may be in the page cache
/// alone, and another sync brings nothing to the disk: it goes to a new file. A seal proves that
/// everything before it was synced.
fn renew_journal(root: &Path, catalog: &Catalog, scans: &[Scan], plan: &JournalPlan) -> Result<()> {
    let identity = Identity { uuid: catalog.uuid, timeline: catalog.timeline };
    for scan in scans.iter().filter(|scan| plan.replay.contains(&scan.id)) {
        if scan.frames == 0 || scan.tail == Tail::Sealed {
            continue;
        }
        let path = files::segment(root, scan.id);
        files::renew(&path, scan.end)?;
        // The page cache may have let go of it since it was scanned.
        let renewed = reader::scan(&path, scan.id, identity, &mut |_| Ok(()))?;
        if (renewed.end, renewed.chain) != (scan.end, scan.chain) {
            let changed = std::io::Error::other("it changed while it was read");
            return Err(Error::io("renew", &path, changed));
        }
    }
    Ok(())
}

/// Can be repeated after a crash at any point: CATALOG comes last.
fn create(root: &Path, lock: &KeyspaceLock) -> Result<()> {
    // Whose it was before is gone.
    lock.name(root, None)?;
    for dir in [files::journal(root), files::partitions(root), files::staging(root)] {
        files::create_dir(&dir)?;
    }
    files::sync_dir(root)?;
    // The directory may be one that an interrupted attempt made and did not sync.
    unless(Bug::NewKeyspaceNameNotSynced, || files::sync_dir(files::parent(root)))?;
    Catalog::new(files::random_u128(), files::random_u128()).store(root)
}

/// Removes what interrupted work left behind and CATALOG does not name.
fn remove_leftovers(root: &Path, catalog: &Catalog) -> Result<()> {
    let staging = files::staging(root);
    for name in files::names(&staging)? {
        files::remove(&staging.join(name))?;
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
    for entry in &catalog.partitions {
        let dir = files::tree(root, entry.tree);
        // lsm-tree replaces `current` by way of a file that a crash can leave behind.
        for name in files::names(&dir)?.iter().filter(|name| name.starts_with(".tmp")) {
            files::remove_if_present(&dir.join(name))?;
        }
    }
    // A segment is renewed by way of a file that a crash can leave behind.
    let journal = files::journal(root);
    for name in files::names(&journal)?.iter().filter(|name| files::is_temporary(name)) {
        files::remove_if_present(&journal.join(name))?;
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

/// A keyspace of links in a temporary directory: lsm-tree may delete and the replay may flush
/// there, and the original stays as it is.
fn open_view(config: &Config) -> Result<Recovered> {
    // lsm-tree opens tables through the links, so they must not depend on the working directory.
    let source = std::fs::canonicalize(&config.path).or_else(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Ok(config.path.clone()),
        _ => Err(Error::io("open", &config.path, e)),
    })?;
    load_catalog(&source)?;
    let lock = KeyspaceLock::acquire(&source, Access::Shared)?;
    // Again, now that nobody can change it.
    let mut catalog = load_catalog(&source)?;
    let checked = catalog
        .partitions
        .iter()
        .map(|entry| survey_tree(&source, &catalog, entry))
        .collect::<Result<Vec<_>>>()?;
    let (scans, plan) = plan_journal(&source, &catalog)?;
    let temporary = tempfile::env::temp_dir();
    let view = tempfile::Builder::new()
        .prefix("esker-view-")
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir_in(&temporary);
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
    let replayed_journal = (scans.len() as u64, scans.iter().map(|scan| scan.end).sum());
    let (journal, trees) = (Arc::new(journal), replay.trees);
    Ok(Recovered {
        root,
        catalog,
        journal,
        versions,
        trees,
        lock,
        view: Some(view),
        replayed_journal,
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
