//! Keyspaces out of the directories of trees, and those out of keyspaces.
//!
//! For programs that move data between esker and others that keep it in trees of lsm-tree 3.1, without
//! writing it anew: [`build_keyspace`] makes a keyspace of such directories, [`flushed_copy`] says where
//! the trees of a keyspace are once its journal is in them, [`copy_tree`] gives one tree a second
//! directory. All of them read their sources and change nothing there.
//!
//! What they make lies in a [`Workspace`], a hidden directory beside the target, and is neither durable
//! nor known under the target's name before [`Workspace::publish`]. What fails leaves nothing behind.
//!
//! ```
//! # let dir = tempfile::tempdir()?;
//! # let (db, target) = (dir.path().join("db"), dir.path().join("again"));
//! use esker::interchange::{Workspace, build_keyspace, flushed_copy};
//! use esker::{Keyspace, PartitionOptions, Transfer};
//!
//! let keyspace = Keyspace::open(&db)?;
//! keyspace.partition("users", PartitionOptions::default())?.insert("ada", "1815")?;
//! keyspace.close()?;
//!
//! // A new keyspace, with another identity, of the same trees.
//! let workspace = Workspace::beside(&target, &db)?;
//! let copy = flushed_copy(&db, &workspace.path().join("copy"), Transfer::Auto)?;
//! let new = workspace.path().join("new");
//! let built = build_keyspace(&new, &copy.trees, Transfer::Auto)?;
//! workspace.publish(&new)?;
//! assert_eq!(Keyspace::open(&target)?.seqno(), built.seqno);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What must stay true: only tables and blob files, which nobody ever writes again, are linked, and only
//! those that the tree's version names; `current`, manifests, CATALOG and LOCK are new bytes. What a
//! directory names is checked before it is believed.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::assemble::{self, Unfinished};
use crate::catalog::{Catalog, Floor, PartitionEntry};
use crate::commit::now_ms;
use crate::config::Config;
use crate::copy;
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::filter::Filters;
use crate::lock::{self, KeyspaceLock};
use crate::manifest::{self, Checked};
use crate::options::{Compression, PartitionOptions};
use crate::partition::check_name;
use crate::progress::{Moved, Phase, Progress};
use crate::recovery;
use crate::survey;
use crate::transfer::{Rungs, Transfer};
use crate::tree::{self, Tree};

/// Reads below 2 see commit 1 (`READ_SEQNO_MIN`), so that must not be one that is still to come.
const LAST_SEQNO_MIN: u64 = 1;
/// As CATALOG has it.
const SEQNO_END: u64 = 1 << 62;
/// For as long as a tree is open to be looked at.
const CACHE_BYTES: u64 = 1 << 20;

/// A tree that nobody has open, and the partition that it is or is to become.
#[derive(Clone, Debug)]
pub struct ClosedTree {
    /// The name of the partition.
    pub name: String,
    /// Its options. Those of separated values must be the ones that the tree was written with.
    pub options: PartitionOptions,
    /// The directory of lsm-tree, with `current`, a version manifest, `tables` and `blobs`.
    pub dir: PathBuf,
}

/// Trees that hold everything up to a commit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClosedTrees {
    /// A tree for each partition, in the order in which those were created.
    pub trees: Vec<ClosedTree>,
    /// The newest commit.
    pub seqno: u64,
}

/// What the files of a tree have in common with the tree that it was made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Provenance {
    /// Tables and blob files that are the same files.
    pub linked: Moved,
    /// Those that the other tree has, too, in a file of its own (which may share extents).
    pub copied: Moved,
    /// Those that it does not have.
    pub written: Moved,
}

/// A hidden directory beside a target, in which the target is built. It is removed, with what is left
/// in it, when this is dropped.
pub struct Workspace {
    unfinished: Unfinished,
    target: PathBuf,
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workspace").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Workspace {
    /// Makes the directory for a `target` that is to be built out of `source`.
    ///
    /// # Errors
    ///
    /// [`Error::TargetExists`]; [`Error::TargetInside`] if the target lies in the source;
    /// [`Error::Io`] if the source or the target's parent is not there.
    pub fn beside(target: impl AsRef<Path>, source: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref();
        assemble::check_target(source.as_ref(), target)?;
        let unfinished = Unfinished::create(files::unfinished(target, assemble::tag())?)?;
        Ok(Self { unfinished, target: target.to_path_buf() })
    }

    /// Where to build.
    pub fn path(&self) -> &Path {
        self.unfinished.path()
    }

    /// Makes the directory `part` of the workspace, and everything in it, durable and then gives it the
    /// name of the target. What else is in the workspace goes.
    ///
    /// # Errors
    ///
    /// [`Error::TargetExists`] if somebody was faster; [`Error::Io`]. There is no target then, unless
    /// all that failed was the last sync of its parent.
    pub fn publish(self, part: &Path) -> Result<()> {
        files::sync_below(part)?;
        files::publish(part, &self.target)
    }
}

/// Gives the tree in `from`, which nobody has open, a second directory, `to`, which must not exist.
/// Both go on, or go, independently. Nothing of it is synced.
///
/// # Errors
///
/// [`Error::Corrupt`] if the tree lacks something or is not of lsm-tree 3.1; [`Error::Io`].
pub fn copy_tree(from: impl AsRef<Path>, to: impl AsRef<Path>, transfer: Transfer) -> Result<()> {
    place(from.as_ref(), to.as_ref(), transfer.into()).map(|_| ())
}

fn place(from: &Path, to: &Path, rungs: Rungs) -> Result<Checked> {
    let checked = check_tree(from)?;
    assemble::place_tree(from, to, &checked.version, rungs, &mut |_, _, _| {})?;
    files::write_new(&files::version(to, checked.version.id), &checked.manifest)?;
    files::write_new(&files::current(to), &checked.current)?;
    Ok(checked)
}

/// What an open would check of a tree, of which nothing else is known.
fn check_tree(dir: &Path) -> Result<Checked> {
    let current = files::current(dir);
    if !files::exists(&current)? {
        return Err(Error::corrupt(&current, None, "the file is missing"));
    }
    let checked = manifest::check(dir)?;
    survey::survey_version(dir, &checked.version)?;
    Ok(checked)
}

/// Says how the tree in `to` came to its tables and blob files, by what it shares with the one in `from`,
/// which may be missing.
///
/// # Errors
///
/// [`Error::Io`].
pub fn provenance(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<Provenance> {
    let (from, to) = (from.as_ref(), to.as_ref());
    let mut provenance = Provenance::default();
    for dir in [files::tables, files::blobs] {
        for name in files::names(&dir(to))? {
            let path = dir(to).join(&name);
            let found = std::fs::metadata(&path).at("inspect", &path)?;
            let original = files::look(&dir(from).join(&name))?;
            let moved = match original.filter(|original| original.len() == found.len()) {
                Some(o) if (o.dev(), o.ino()) == (found.dev(), found.ino()) => {
                    &mut provenance.linked
                }
                Some(_) => &mut provenance.copied,
                None => &mut provenance.written,
            };
            moved.files += 1;
            moved.bytes += found.len();
        }
    }
    Ok(provenance)
}

/// Builds a keyspace of `trees` in the directory `dir`, which must not exist. It is a new one, with an
/// identity of its own, and as if it had been closed cleanly; returned are its own trees. Nothing of it
/// is synced: [`Workspace::publish`] does that.
///
/// # Errors
///
/// [`Error::InvalidInput`] for names and options that a partition cannot have, and for options of
/// separated values that do not fit the tree; [`Error::Corrupt`] if a tree lacks something or cannot
/// be opened; [`Error::Io`].
pub fn build_keyspace(
    dir: impl AsRef<Path>,
    trees: &[ClosedTree],
    transfer: Transfer,
) -> Result<ClosedTrees> {
    let dir = dir.as_ref();
    check_names(trees)?;
    files::create_new_dir(dir)?;
    for path in [files::journal(dir), files::partitions(dir), files::staging(dir)] {
        files::create_new_dir(&path)?;
    }
    let mut catalog = Catalog::new(files::random_u128(), files::random_u128());
    let shared = tree::Shared::new(CACHE_BYTES, Filters::default());
    let mut newest = LAST_SEQNO_MIN;
    for tree in trees {
        let (id, tree_id) = (catalog.next_partition, catalog.next_tree);
        let to = files::tree(dir, tree_id);
        let checked = place(&tree.dir, &to, transfer.into())?;
        check_options(tree, &to, &checked)?;
        // lsm-tree knows what the numbers in a table are raised by.
        let opened = Tree::open(&to, tree_id, &tree.name, &tree.options, &shared)?;
        newest = newest.max(opened.highest_persisted_seqno().unwrap_or(0));
        catalog.partitions.push(PartitionEntry {
            id,
            tree: tree_id,
            name: tree.name.clone(),
            options: tree.options.clone(),
            floor: Floor {
                version: checked.version.id,
                manifest: Some(checked.hash),
                flushed_upto: 0,
            },
        });
        (catalog.next_partition, catalog.next_tree) = (id + 1, tree_id + 1);
    }
    if newest >= SEQNO_END {
        let what = format!("the newest commit has the number {newest}; esker's end at {SEQNO_END}");
        return Err(Error::InvalidInput(what));
    }
    for entry in &mut catalog.partitions {
        entry.floor.flushed_upto = newest;
    }
    (catalog.last_seqno, catalog.base_seqno) = (newest, newest);
    catalog.last_time_ms = now_ms();
    files::write_new(&files::lock(dir), &lock::encode(catalog.uuid))?;
    files::write_new(&files::catalog(dir), &catalog.encode())?;
    Ok(closed_trees(dir, catalog, newest))
}

fn closed_trees(root: &Path, catalog: Catalog, seqno: u64) -> ClosedTrees {
    let closed = |entry: PartitionEntry| ClosedTree {
        dir: files::tree(root, entry.tree),
        name: entry.name,
        options: entry.options,
    };
    ClosedTrees { trees: catalog.partitions.into_iter().map(closed).collect(), seqno }
}

fn check_names(trees: &[ClosedTree]) -> Result<()> {
    let mut names = BTreeSet::new();
    for tree in trees {
        check_name(&tree.name)?;
        tree.options.validate()?;
        if !names.insert(&tree.name) {
            let what = format!("there are two trees for the partition {:?}", tree.name);
            return Err(Error::InvalidInput(what));
        }
    }
    Ok(())
}

/// A merge would take values that it moves for compressed in another way than they are.
fn check_options(tree: &ClosedTree, placed: &Path, checked: &Checked) -> Result<()> {
    let complain = |what: &str| {
        let (name, dir) = (&tree.name, tree.dir.display());
        Err(Error::InvalidInput(format!("the options of {name:?} do not fit {dir}: {what}")))
    };
    match (checked.version.separates_values, tree.options.separate_values_from) {
        (true, None) => return complain("the tree separates values"),
        (false, Some(_)) => return complain("the tree does not separate values"),
        _ => {}
    }
    let expected = match tree.options.values_compression() {
        Compression::None => 0,
        Compression::Lz4 => 1,
    };
    for blob in &checked.version.blobs {
        if manifest::blob_compression(&files::blob(placed, blob.id))? != expected {
            return complain("separated values are compressed in another way");
        }
    }
    Ok(())
}

/// Copies the closed keyspace, checkpoint or copy in `source` to the directory `dir`, which must not
/// exist, and replays its journal into the copy's trees. Nothing of it is synced, and it is no keyspace
/// to open: trees in a directory.
///
/// # Errors
///
/// As [`cold_copy`](crate::cold_copy).
pub fn flushed_copy(
    source: impl AsRef<Path>,
    dir: impl AsRef<Path>,
    transfer: Transfer,
) -> Result<ClosedTrees> {
    let (source, dir) = (source.as_ref(), dir.as_ref());
    survey::load_catalog(source)?;
    let lock = KeyspaceLock::acquire_untouched(source)?;
    let (plan, seqno) = copy::survey(source)?;
    files::create_new_dir(dir)?;
    plan.build(dir, transfer.into(), Progress::begin(Phase::Link, 0, 0), &mut |_| {})?;
    drop(lock);
    let mut catalog = plan.catalog;
    if !plan.segments.is_empty() {
        catalog.store(dir)?;
        catalog = recovery::absorb_journal(dir, &Config::new(dir))?;
    }
    Ok(closed_trees(dir, catalog, seqno))
}
