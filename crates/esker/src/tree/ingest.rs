//! Sorted entries straight into tables, past the memtables.
//!
//! lsm-tree writes tables as the entries come, without a number; `install` adds them to the tree all at
//! once, under one. What must stay true:
//! - `install` runs between two groups, after the active memtable was sealed and the journal synced
//!   up to the number, while its caller keeps flushes and compactions away: else a newer entry
//!   would end up below an older one, or tables would be ahead of the journal.
//! - Large values stay in the tables. lsm-tree writes those of an ingest into blob files without a
//!   number, and a merge that moves them beside an older value of the same key, which a view still
//!   needs, looks for the two in the wrong order and panics (18).
//! - The tree's counter holds the number just for the install (1). The super-version that carries it
//!   stands beside the one before it, which older views go on reading, until the next install.
//! - No merge runs before CATALOG says that the tables are in (`unrecorded`): a merge forgets removals
//!   and their number, and a replay from an older CATALOG would bring back what they removed.
//! - What an abandoned ingest wrote is removed, and nothing else. Its files are those that no version
//!   has named since the first open ingest began. So every install is noted before the next one can
//!   supersede it: until they are gone, a flush holds the gate, and a compaction `compacting`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use lsm_tree::{AbstractTree, AnyIngestion};
use parking_lot::MutexGuard;

use super::Tree;
use super::calls::guarded;
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::tree::Slice;

/// What tells the files of open ingests from those of everybody else.
#[derive(Default)]
pub(super) struct Ingests {
    open: usize,
    /// One was abandoned, or something else left files behind meanwhile, and they are still there.
    abandoned: bool,
    first_table: u64,
    first_blob: u64,
    /// Named by a version since then.
    tables: BTreeSet<u64>,
    blobs: BTreeSet<u64>,
}

impl Ingests {
    /// Files may come and go that are to be told apart.
    fn matter(&self) -> bool {
        self.open > 0 || self.abandoned
    }

    /// None is open, and there is something to remove.
    fn is_over(&self) -> bool {
        self.open == 0 && self.abandoned
    }
}

/// How an install ended.
pub(crate) enum Outcome {
    /// The entries are in; what came behind that may have failed.
    Installed(Result<()>),
    /// Nothing of it is in the tree that is in memory.
    Refused(Error),
}

/// Tables that are being written. Abandoned, with all its files, unless it is installed.
pub(crate) struct Ingestion<'a> {
    tree: &'a Tree,
    /// Gone once it is installed, or was to be.
    writer: Option<Box<AnyIngestion<'a>>>,
    installed: bool,
}

impl Tree {
    /// Begins to write tables. The caller holds none of the tree's locks.
    pub(crate) fn begin_ingest(&self) -> Result<Ingestion<'_>> {
        self.check_decided()?;
        {
            // What is being flushed now would not be noted.
            let _none_in_flight = self.flushing.lock();
            let mut ingests = self.ingests.lock();
            if !ingests.matter() {
                *ingests = Ingests {
                    first_table: self.tree.next_table_id(),
                    first_blob: self.next_blob.load(Ordering::Acquire),
                    ..Ingests::default()
                };
            }
            ingests.open += 1;
        }
        let mut ingestion = Ingestion { tree: self, writer: None, installed: false };
        let writer = guarded("ingest into", &self.dir, || self.tables.ingestion())?;
        ingestion.writer = Some(Box::new(writer));
        Ok(ingestion)
    }

    /// Whether CATALOG has yet to say that ingested tables are in.
    pub(crate) fn is_unrecorded(&self) -> bool {
        self.unrecorded.load(Ordering::Acquire)
    }

    /// CATALOG says it, or nothing was ingested. The caller holds the CATALOG.
    pub(crate) fn set_unrecorded(&self, unrecorded: bool) {
        self.unrecorded.store(unrecorded, Ordering::Release);
    }

    /// Keeps compactions from beginning while the guard lives; the one that is under way goes on.
    pub(crate) fn lock_finishing(&self) -> MutexGuard<'_, ()> {
        self.finishing.lock()
    }

    /// Keeps compactions of this tree away while the guard lives.
    pub(crate) fn lock_compacting(&self) -> MutexGuard<'_, ()> {
        self.compacting.lock()
    }

    /// Lets go of the super-version that an ingest has left beside its own. Every other install does so
    /// as well; a keyspace that is closed should not leave that version's manifest behind. True if it
    /// installed something.
    pub(crate) fn settle_ingests(&self) -> Result<bool> {
        let _flushing = self.flushing.lock();
        let _compacting = self.compacting.lock();
        if self.tree.version_free_list_len() == 0 {
            return Ok(false);
        }
        self.install_again()?;
        Ok(true)
    }

    /// Whether the newest super-version has the number of an ingest. Views that are older than that
    /// read the one beside it.
    pub(super) fn is_newest_ingested(&self) -> bool {
        self.tree.current_version().id() == self.ingested_version.load(Ordering::Acquire)
    }

    /// Installs what is installed, for whoever holds `flushing` and `compacting`.
    pub(super) fn install_again(&self) -> Result<()> {
        self.check_decided()?;
        let current = self.current_file();
        let turn = self.take_turn();
        // Installs the same tables again: no table has the empty key alone.
        let nothing = [] as [u8; 0];
        let installed =
            guarded("compact", &self.dir, || self.tree.drop_range(&nothing[..]..=&nothing[..]));
        drop(turn);
        installed.map_err(|error| self.decide(current, error))?;
        self.collect()
    }

    pub(super) fn is_ingesting(&self) -> bool {
        self.ingests.lock().matter()
    }

    /// After every install, before the next one can supersede what it brought.
    pub(super) fn note_for_ingests(&self) {
        let mut ingests = self.ingests.lock();
        if !ingests.matter() {
            return;
        }
        let version = self.tree.current_version();
        ingests.tables.extend(version.iter_tables().map(lsm_tree::Table::id));
        ingests.blobs.extend(version.blob_files.list_ids());
    }

    /// Runs `remove` unless an ingest is open, which would lose its files; the last one removes what
    /// is left behind now.
    pub(super) fn unless_ingesting(&self, remove: impl FnOnce()) {
        let mut ingests = self.ingests.lock();
        if ingests.open > 0 {
            ingests.abandoned = true;
            return;
        }
        remove();
    }

    /// Has files removed from these on that no version names, as soon as nothing is in flight. The
    /// caller holds `compacting`.
    pub(super) fn abandon(&self, first_table: u64, first_blob: u64) {
        let mut ingests = self.ingests.lock();
        if !ingests.matter() {
            *ingests = Ingests { first_table, first_blob, ..Ingests::default() };
        }
        ingests.abandoned = true;
        drop(ingests);
        // What it names now may be superseded before they are removed.
        self.note_for_ingests();
    }

    fn end_ingest(&self, installed: bool) {
        let mut ingests = self.ingests.lock();
        ingests.open -= 1;
        ingests.abandoned |= !installed;
        drop(ingests);
        self.clean_up();
    }

    /// Removes what abandoned ingests left, unless something is in flight. Whoever had one of these
    /// locks calls this when it gives them back, so nobody has to wait for them here.
    pub(crate) fn clean_up(&self) {
        if !self.ingests.lock().is_over() {
            return;
        }
        let Some(_no_flush) = self.flushing.try_lock() else { return };
        let Some(_no_merge) = self.compacting.try_lock() else { return };
        let mut ingests = self.ingests.lock();
        // What an undecided install may have put on disk is not known.
        if !ingests.is_over() || self.check_decided().is_err() {
            return;
        }
        let named = std::mem::take(&mut *ingests);
        for file in self.files_from(named.first_table, named.first_blob) {
            if !file.is_in(&named.tables, &named.blobs) {
                // Best effort: the next open removes what remains.
                let _ = files::remove_if_present(&file.path);
            }
        }
    }

    /// The files on disk whose numbers are these or higher, without those that the version names.
    pub(super) fn files_from(&self, first_table: u64, first_blob: u64) -> Vec<TreeFile> {
        let version = self.tree.current_version();
        let named: BTreeSet<u64> = version.iter_tables().map(lsm_tree::Table::id).collect();
        let dirs = [
            (files::tables(&self.dir), first_table, false),
            (files::blobs(&self.dir), first_blob, true),
        ];
        let mut found = Vec::new();
        for (dir, first, is_blob) in dirs {
            for name in files::names(&dir).unwrap_or_default() {
                let Some(id) = files::parse_id(&name).filter(|id| *id >= first) else { continue };
                let live =
                    if is_blob { version.blob_files.contains_key(id) } else { named.contains(&id) };
                if !live {
                    found.push(TreeFile { path: dir.join(name), id, is_blob });
                }
            }
        }
        found
    }
}

/// A table or a blob file.
pub(super) struct TreeFile {
    pub(super) path: PathBuf,
    id: u64,
    is_blob: bool,
}

impl TreeFile {
    fn is_in(&self, tables: &BTreeSet<u64>, blobs: &BTreeSet<u64>) -> bool {
        if self.is_blob { blobs.contains(&self.id) } else { tables.contains(&self.id) }
    }
}

impl Ingestion<'_> {
    /// Adds entries, and tombstones where there is no value. The keys ascend.
    pub(crate) fn add(&mut self, entries: Vec<(Slice, Option<Slice>)>) -> Result<()> {
        let writer = self.writer.as_mut().expect("it was not installed yet");
        guarded("ingest into", &self.tree.dir, || {
            entries.into_iter().try_for_each(|(key, value)| match value {
                Some(value) => writer.write(key, value),
                None => writer.write_tombstone(key),
            })
        })
    }

    /// Brings what was written to the disk, so that `install`, which others wait for, has little to
    /// sync.
    pub(crate) fn sync(&self) -> Result<()> {
        let (first_table, first_blob) = {
            let ingests = self.tree.ingests.lock();
            (ingests.first_table, ingests.first_blob)
        };
        for file in self.tree.files_from(first_table, first_blob) {
            match files::sync(&file.path) {
                // Somebody else's, who has removed it.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Adds everything to the tree as commit `seqno`; see above for when.
    pub(crate) fn install(mut self, seqno: u64) -> Outcome {
        let tree = self.tree;
        // What was sealed is older than `seqno`. lsm-tree would flush it, under the number that is
        // meant for the tables.
        if let Err(error) = tree.flush_sealed(0) {
            return Outcome::Refused(error);
        }
        let writer = self.writer.take().expect("it is installed once");
        let current = tree.current_file();
        let turn = tree.take_turn();
        tree.counter.set(seqno);
        if let Err(error) = guarded("ingest into", &tree.dir, || writer.finish()) {
            return Outcome::Refused(tree.decide(current, error));
        }
        tree.ingested_version.store(tree.tree.current_version().id(), Ordering::Release);
        drop(turn);
        self.installed = true;
        Outcome::Installed(tree.collect())
    }
}

impl Drop for Ingestion<'_> {
    fn drop(&mut self) {
        // Closes the files first.
        self.writer = None;
        self.tree.end_ingest(self.installed);
    }
}

/// Whether what was refused may be tried again from the beginning.
impl Outcome {
    /// The error, if anything failed.
    pub(crate) fn into_result(self) -> Result<()> {
        match self {
            Self::Installed(outcome) => outcome,
            Self::Refused(error) => Err(error),
        }
    }

    /// Nothing was installed, and that is certain.
    pub(crate) fn left_nothing(&self) -> bool {
        matches!(self, Self::Refused(error) if error.kind() == ErrorKind::Retry)
    }
}
