//! Builds a keyspace directory out of another one's files: what checkpoint and cold copy share.
//!
//! What must stay true: only files that nobody ever writes again are linked: tables, blob files,
//! sealed segments, and version manifests that hold what they should (a planned version is an
//! installed one, and lsm-tree writes `v<N>` only before it is installed: see "What is linked" in
//! docs/architecture.md); `current`, CATALOG and CHECKPOINT are always new bytes; CHECKPOINT is
//! written after everything it names, everything is synced before the directory gets its name, and
//! whatever fails leaves neither the name nor the unfinished directory behind.

use std::collections::HashMap;
use std::fs::File;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128;

use crate::catalog::{Catalog, Origin};
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::listing::{CheckpointHead, FileRecord, How, Tally, encode_checkpoint};
use crate::lock;
use crate::manifest::{self, Version};
use crate::planted::{Bug, unless};
use crate::progress::Progress;
use crate::transfer::{Placed, Rungs, Way, can_link, link_if_equal};

/// Trees that are built at the same time. A directory takes one change at a time, and every tree has
/// directories of its own; beyond this the filesystem's journal is what they wait for.
const THREADS_MAX: usize = 4;
/// A thread costs as much as this many trees.
const TREES_PER_THREAD: usize = 4;

/// One tree to take over.
pub(crate) struct PlannedTree {
    pub(crate) id: u64,
    pub(crate) version: Version,
    pub(crate) manifest: Vec<u8>,
}

/// One journal segment to take over.
pub(crate) struct PlannedSegment {
    pub(crate) id: u64,
    pub(crate) chain: u64,
    /// Only sealed segments are immutable for good; others are copied byte by byte.
    pub(crate) sealed: bool,
}

/// What the new directory will hold, and the keyspace directory that its files come from.
pub(crate) struct Plan {
    pub(crate) source: PathBuf,
    pub(crate) catalog: Catalog,
    pub(crate) trees: Vec<PlannedTree>,
    pub(crate) segments: Vec<PlannedSegment>,
}

/// What was built, and how.
#[derive(Default)]
pub(crate) struct Built {
    /// Bytes of what was placed, version manifests not counted.
    pub(crate) placed_bytes: u64,
    pub(crate) records: Vec<FileRecord>,
    /// What must be synced one by one if the filesystem is not synced at once.
    to_sync: Vec<PathBuf>,
    /// Those of them that are segments of the source under another name, and that name.
    shared: HashMap<PathBuf, PathBuf>,
}

/// Removes an unfinished directory unless it was published.
pub(crate) struct Unfinished {
    path: PathBuf,
    done: bool,
}

impl Unfinished {
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        files::create_new_dir(&path)?;
        Ok(Self { path, done: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn publish(mut self, target: &Path) -> Result<()> {
        unless(Bug::BuiltUnderItsName, || files::publish(&self.path, target))?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = files::remove_dir_if_present(&self.path)
        {
            tracing::warn!(%error, "an unfinished checkpoint stays behind");
        }
    }
}

impl Plan {
    /// Whether the files can be linked into `dir`. Where there are none nothing speaks against it.
    pub(crate) fn can_link_into(&self, dir: &Path) -> Result<bool> {
        let tables = self.trees.iter().flat_map(|tree| {
            let dir = files::tree(&self.source, tree.id);
            tree.version.tables().map(move |table| files::table(&dir, table.id))
        });
        let segments = self.segments.iter().map(|s| files::segment(&self.source, s.id));
        tables.chain(segments).next().map_or(Ok(true), |file| can_link(&file, dir))
    }

    /// The same files in another directory that was built from this plan. What is there need not be
    /// durable, so it must not be linked.
    pub(crate) fn rebased(self, source: &Path) -> Self {
        Self { source: source.to_path_buf(), ..self }
    }

    /// Builds everything but CATALOG and CHECKPOINT in the existing, empty directory `dir`.
    /// `begin` says which phase it is, and its bytes where they are known.
    pub(crate) fn build(
        &self,
        dir: &Path,
        rungs: Rungs,
        begin: Progress,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Built> {
        let mut built = Built::default();
        for path in [files::journal(dir), files::partitions(dir)] {
            files::create_new_dir(&path)?;
            built.to_sync.push(path);
        }
        let site = Site::new(self, dir, rungs, begin);
        report(site.progress());
        std::thread::scope(|scope| {
            for _ in 1..site.threads() {
                let helper = std::thread::Builder::new().name("esker-assemble".into());
                // Without a helper it only takes longer.
                if helper.spawn_scoped(scope, || site.build_trees(&mut |_| {})).is_err() {
                    break;
                }
            }
            site.build_trees(report);
        });
        let mut parts = std::mem::take(&mut *site.parts.lock());
        parts.sort_by_key(|(at, _)| *at);
        parts.into_iter().try_for_each(|(_, part)| part.map(|part| built.append(part)))?;
        for segment in &self.segments {
            built.append(site.place_segment(segment, report)?);
        }
        let progress = site.progress();
        report(progress);
        built.placed_bytes = progress.bytes_done;
        Ok(built)
    }
}

/// What tells a file's content.
#[derive(Copy, Clone)]
enum Identity {
    /// xxh3-128 of all of it.
    Hash(u128),
    /// The chain value of its last frame.
    Chain(u64),
}

/// A directory that is being built, by several threads where there are many trees.
struct Site<'a> {
    plan: &'a Plan,
    dir: &'a Path,
    rungs: Rungs,
    begin: Progress,
    files_done: AtomicU64,
    bytes_done: AtomicU64,
    /// The next tree that nobody has begun.
    next: AtomicUsize,
    failed: AtomicBool,
    /// What was built of each tree, and its place in the plan.
    parts: Mutex<Vec<(usize, Result<Built>)>>,
}

impl<'a> Site<'a> {
    fn new(plan: &'a Plan, dir: &'a Path, rungs: Rungs, begin: Progress) -> Self {
        let files = |t: &PlannedTree| t.version.tables().count() + t.version.blobs.len();
        let files_total = plan.trees.iter().map(files).sum::<usize>() + plan.segments.len();
        Self {
            plan,
            dir,
            rungs,
            begin: Progress { files_total: files_total as u64, ..begin },
            files_done: AtomicU64::new(0),
            bytes_done: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            parts: Mutex::default(),
        }
    }

    fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        cores.min(THREADS_MAX).min(self.plan.trees.len() / TREES_PER_THREAD)
    }

    fn progress(&self) -> Progress {
        Progress {
            files_done: self.files_done.load(Ordering::Relaxed),
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
            ..self.begin
        }
    }

    /// Builds trees until none is left or one has failed.
    fn build_trees(&self, report: &mut dyn FnMut(Progress)) {
        while !self.failed.load(Ordering::Relaxed) {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(tree) = self.plan.trees.get(at) else { return };
            let part = self.build_tree(tree, report);
            if part.is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            self.parts.lock().push((at, part));
        }
    }

    fn build_tree(&self, tree: &PlannedTree, report: &mut dyn FnMut(Progress)) -> Result<Built> {
        let mut built = Built::default();
        let (from, to) = (files::tree(&self.plan.source, tree.id), files::tree(self.dir, tree.id));
        let dirs = place_tree(&from, &to, &tree.version, self.rungs, &mut |path, placed, hash| {
            self.note(&mut built, path, placed, Identity::Hash(hash), report);
        })?;
        built.to_sync.extend(dirs);
        self.place_manifest(tree, &from, &to, &mut built)?;
        Ok(built)
    }

    /// A link to the manifest costs a third of a new file where there are many trees. It is made only
    /// if the bytes are right: lsm-tree checks none of them, and removes the file when it likes.
    fn place_manifest(
        &self,
        tree: &PlannedTree,
        from: &Path,
        to: &Path,
        built: &mut Built,
    ) -> Result<()> {
        let version = files::version(to, tree.version.id);
        if self.rungs.link
            && link_if_equal(&files::version(from, tree.version.id), &version, &tree.manifest)
        {
            let hash = Identity::Hash(xxh3_128(&tree.manifest));
            let bytes = tree.manifest.len() as u64;
            self.list(built, version, (Placed::Linked, bytes), hash);
        } else {
            self.write(built, version, &tree.manifest)?;
        }
        let current = manifest::encode_current(tree.version.id, &tree.manifest);
        self.write(built, files::current(to), &current)
    }

    fn write(&self, built: &mut Built, path: PathBuf, bytes: &[u8]) -> Result<()> {
        files::write_new(&path, bytes)?;
        built.records.push(written(self.dir, &path, bytes));
        built.to_sync.push(path);
        Ok(())
    }

    fn place_segment(
        &self,
        segment: &PlannedSegment,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Built> {
        let to = files::segment(self.dir, segment.id);
        let name = files::segment_name(segment.id);
        let (from, into) = (files::journal(&self.plan.source), files::journal(self.dir));
        // A reflink would share what is on the disk, and what was read may be in the page cache alone.
        let rungs = if segment.sealed { self.rungs } else { Rungs::COPY };
        let placed = Way::open(from, into, rungs)?.place(&name)?;
        let mut built = Built::default();
        self.note(&mut built, to, placed, Identity::Chain(segment.chain), report);
        Ok(built)
    }

    /// Lists a file that is in its place, and counts it as progress.
    fn note(
        &self,
        built: &mut Built,
        path: PathBuf,
        placed: (Placed, u64),
        identity: Identity,
        report: &mut dyn FnMut(Progress),
    ) {
        self.list(built, path, placed, identity);
        self.files_done.fetch_add(1, Ordering::Relaxed);
        self.bytes_done.fetch_add(placed.1, Ordering::Relaxed);
        report(self.progress());
    }

    fn list(
        &self,
        built: &mut Built,
        path: PathBuf,
        (placed, bytes): (Placed, u64),
        identity: Identity,
    ) {
        // Linked tables were synced when they were made; a segment's seal may not be yet.
        let (xxh3, chain, durable) = match identity {
            Identity::Hash(hash) => (Some(format!("{hash:032x}")), None, placed == Placed::Linked),
            Identity::Chain(chain) => (None, Some(format!("{chain:016x}")), false),
        };
        let name = relative(self.dir, &path);
        built.records.push(FileRecord { path: name, bytes, xxh3, chain, how: placed.into() });
        if !durable {
            if placed == Placed::Linked {
                built.shared.insert(path.clone(), self.plan.source.join(relative(self.dir, &path)));
            }
            built.to_sync.push(path);
        }
    }
}

/// Makes the directory of a tree with everything but `current` and the manifest; returns the
/// directories made. `note` hears of each file: where it is, how it came there, its hash.
pub(crate) fn place_tree(
    from: &Path,
    to: &Path,
    version: &Version,
    rungs: Rungs,
    note: &mut dyn FnMut(PathBuf, (Placed, u64), u128),
) -> Result<Vec<PathBuf>> {
    let mut dirs = vec![to.to_path_buf(), files::tables(to)];
    // lsm-tree silently accepts that blobs/ is missing, and with it every value.
    dirs.extend(version.separates_values.then(|| files::blobs(to)));
    dirs.iter().try_for_each(|dir| files::create_new_dir(dir))?;
    let tables = version.tables().map(|table| (table.id, table.checksum));
    place_files(&Way::open(files::tables(from), files::tables(to), rungs)?, tables, note)?;
    if version.separates_values {
        let blobs = version.blobs.iter().map(|blob| (blob.id, blob.checksum));
        place_files(&Way::open(files::blobs(from), files::blobs(to), rungs)?, blobs, note)?;
    }
    Ok(dirs)
}

/// Brings tables or blob files over, which have numbers for names.
fn place_files(
    way: &Way,
    files: impl Iterator<Item = (u64, u128)>,
    note: &mut dyn FnMut(PathBuf, (Placed, u64), u128),
) -> Result<()> {
    for (id, hash) in files {
        let name = files::numbered(id);
        let placed = way.place(&name)?;
        note(way.target(&name), placed, hash);
    }
    Ok(())
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned()
}

fn written(dir: &Path, path: &Path, bytes: &[u8]) -> FileRecord {
    FileRecord {
        path: relative(dir, path),
        bytes: bytes.len() as u64,
        xxh3: Some(format!("{:032x}", xxh3_128(bytes))),
        chain: None,
        how: How::Written,
    }
}

impl Built {
    fn append(&mut self, part: Self) {
        self.records.extend(part.records);
        self.to_sync.extend(part.to_sync);
        self.shared.extend(part.shared);
    }

    /// Lists the directory anew after its journal was absorbed into its tables: only what was
    /// there before keeps the way it came.
    pub(crate) fn relist(&mut self, dir: &Path, catalog: &Catalog) -> Result<()> {
        let before = std::mem::take(&mut self.records).into_iter();
        let before: HashMap<_, _> = before.map(|record| (record.path, record.how)).collect();
        let mut to_sync = Vec::new();
        for path in std::mem::take(&mut self.to_sync) {
            if files::exists(&path)? {
                to_sync.push(path);
            }
        }
        self.to_sync = to_sync;
        for entry in &catalog.partitions {
            let tree = files::tree(dir, entry.tree);
            let checked = manifest::check(&tree)?;
            let tables = checked.version.tables().map(|t| (files::table(&tree, t.id), t.checksum));
            let blobs =
                checked.version.blobs.iter().map(|b| (files::blob(&tree, b.id), b.checksum));
            for (path, hash) in tables.chain(blobs) {
                let name = relative(dir, &path);
                let how = before.get(&name).copied().unwrap_or(How::Written);
                self.records.push(FileRecord {
                    bytes: std::fs::metadata(&path).at("inspect", &path)?.len(),
                    path: name,
                    xxh3: Some(format!("{hash:032x}")),
                    chain: None,
                    how,
                });
            }
            let manifest = files::version(&tree, checked.version.id);
            let mut record = written(dir, &manifest, &checked.manifest);
            if let Some(how) = before.get(&record.path) {
                record.how = *how;
            }
            self.records.push(record);
            self.records.push(written(dir, &files::current(&tree), &checked.current));
            self.to_sync.extend([tree, manifest]);
        }
        Ok(())
    }

    /// Writes CATALOG and CHECKPOINT and makes everything durable.
    pub(crate) fn seal(
        mut self,
        dir: &Path,
        catalog: &Catalog,
        head: &CheckpointHead,
    ) -> std::result::Result<Tally, Unsealed> {
        let path = files::lock(dir);
        files::write_new(&path, &lock::encode(catalog.uuid))?;
        self.to_sync.push(path);
        let (path, bytes) = (files::catalog(dir), catalog.encode());
        files::write_new(&path, &bytes)?;
        self.records.push(written(dir, &path, &bytes));
        self.to_sync.push(path);
        let path = files::checkpoint(dir);
        files::write_new(&path, &encode_checkpoint(head, &self.records)?)?;
        self.to_sync.push(path);
        self.sync(dir)?;
        Ok(Tally::of(&self.records))
    }

    /// Linked segments, by the source's name: the one here may be absorbed. What the source has let
    /// go of, nobody links again.
    fn open_shared(&self) -> Result<Vec<File>> {
        let mut opened = Vec::new();
        for path in self.shared.values() {
            match File::open(path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                file => opened.push(file.at("open", path)?),
            }
        }
        Ok(opened)
    }

    fn sync(&self, dir: &Path) -> std::result::Result<(), Unsealed> {
        let told = |error, shared| Unsealed { error, shared };
        // What cannot even be opened was not synced, and nothing is lost by that.
        if let Some(filesystem) = files::open_filesystem(dir)? {
            let shared = self.open_shared()?;
            // The filesystem tells of every write that it lost, also of other programs' files.
            let is_lost = |file: &File| file.sync_all().is_err();
            return files::sync_opened(&filesystem, dir).map_err(|error| {
                told(error, shared.iter().filter(|file| is_lost(file)).count() > 0)
            });
        }
        unless(Bug::CheckpointFilesNotSynced, || {
            self.to_sync.iter().try_for_each(|path| {
                let file = File::open(path).at("open", path)?;
                let shared = self.shared.contains_key(path);
                file.sync_all().at("sync", path).map_err(|error| told(error, shared))
            })
        })?;
        Ok(unless(Bug::CheckpointDirNotSynced, || files::sync_dir(dir))?)
    }
}

/// Why a copy was not finished.
pub(crate) struct Unsealed {
    pub(crate) error: Error,
    /// What failed may be the sync of a linked segment, whose seal is the source's: the next copy
    /// would link it, sync it again, and be told of success over what this sync has lost.
    pub(crate) shared: bool,
}

impl From<Error> for Unsealed {
    fn from(error: Error) -> Self {
        Self { error, shared: false }
    }
}

/// The catalog of a copy: a branch of the source's history at `seqno` that nobody has gone on with.
pub(crate) fn branch(source: &Catalog, seqno: u64) -> Catalog {
    let mut catalog = source.clone();
    catalog.origin = Some(Origin { uuid: source.uuid, timeline: source.timeline, seqno });
    catalog.fork_on_open = true;
    // All of it is synced before the directory gets its name: a journal that ends earlier is damaged.
    catalog.last_seqno = catalog.last_seqno.max(seqno);
    catalog
}

/// Refuses a target that exists or lies inside the source, and says where it will be built.
pub(crate) fn check_target(source: &Path, target: &Path) -> Result<()> {
    if files::is_taken(target)? {
        return Err(Error::TargetExists { path: target.to_path_buf() });
    }
    let parent = files::parent(target);
    let inside = parent.canonicalize().at("open", parent)?;
    if !files::is_dir(&inside)? {
        let what = format!("{} is not a directory, so it cannot hold the target", parent.display());
        return Err(Error::InvalidInput(what));
    }
    let source = source.canonicalize().at("open", source)?;
    if inside.starts_with(&source) {
        return Err(Error::TargetInside { target: target.to_path_buf(), source_path: source });
    }
    Ok(())
}

/// The tag that makes the names of unfinished directories unique.
pub(crate) fn tag() -> u64 {
    files::random_u128() as u64
}
