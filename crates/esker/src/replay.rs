//! Replays the journal into trees that nobody reads yet.
//!
//! What must stay true: a partition takes only what its tables lack; memory stays bounded (memtables
//! are flushed as they fill, and what waits to be put into them is little); and nothing is removed
//! before the CATALOG that no longer names it is stored, so that replay can be repeated from any point.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::catalog::{Catalog, Floor, PartitionEntry};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;
use crate::journal::format::Identity;
use crate::journal::items::{Item, Items};
use crate::journal::reader::{self, Frame};
use crate::memory::entry_bytes;
use crate::partition::PartitionCore;
use crate::planted::{Bug, is_planted, unless};
use crate::survey::JournalPlan;
use crate::tree::{self, Slice, Tree, Update};
use crate::versions::Versions;

/// Trees that take what the journal holds for them.
pub(crate) struct Replay<'a> {
    root: PathBuf,
    config: &'a Config,
    pub(crate) trees: tree::Shared,
    live: BTreeMap<u32, Replayed>,
    /// Dropped on the way; their directories go when CATALOG no longer names them.
    dropped: Vec<Replayed>,
    /// What the segments carry: the history before a copy gets its own timeline.
    identity: Identity,
    /// The last commit before the journal.
    base_seqno: u64,
    next_partition: u32,
    next_tree: u64,
}

/// So much waits for each tree, to be put into its memtable in the order of keys and by two threads.
const WAITING_BYTES_MAX: u64 = 4 << 20;
/// Below this another thread costs more than it does.
const SHARE_LEN_MIN: usize = 2048;

/// One entry on its way into a memtable.
struct Entry {
    key: Slice,
    value: Update,
    seqno: u64,
}

struct Replayed {
    core: Arc<PartitionCore>,
    /// Commits up to this one are in the tree's tables already.
    upto: u64,
    /// The tree that the last clear made, and the one to read.
    tree: Arc<Tree>,
    waiting: Vec<Entry>,
    waiting_bytes: u64,
}

impl<'a> Replay<'a> {
    pub(crate) fn open_trees(root: &Path, catalog: &Catalog, config: &'a Config) -> Result<Self> {
        let trees = tree::Shared::new(config.cache_bytes, config.filters.clone());
        let mut live = BTreeMap::new();
        for entry in &catalog.partitions {
            let dir = files::tree(root, entry.tree);
            let tree = Arc::new(Tree::open(&dir, entry.tree, &entry.name, &entry.options, &trees)?);
            let persisted = tree.highest_persisted_seqno().unwrap_or(0);
            let upto = entry.floor.flushed_upto.max(persisted);
            let core = PartitionCore::new(
                entry.id,
                entry.name.clone(),
                entry.options.clone(),
                Arc::clone(&tree),
            );
            let core = Arc::new(core);
            live.insert(
                entry.id,
                Replayed { core, upto, tree, waiting: Vec::new(), waiting_bytes: 0 },
            );
        }
        Ok(Self {
            root: root.to_path_buf(),
            config,
            trees,
            live,
            dropped: Vec::new(),
            identity: Identity { uuid: catalog.uuid, timeline: catalog.timeline },
            base_seqno: catalog.base_seqno,
            next_partition: catalog.next_partition,
            next_tree: catalog.next_tree,
        })
    }

    /// Replays the planned segments, which lie in the keyspace `source`.
    pub(crate) fn run(&mut self, source: &Path, plan: &JournalPlan) -> Result<()> {
        self.check_reach(source, plan)?;
        let identity = self.identity;
        let mut newest = self.base_seqno;
        for &id in &plan.replay {
            let path = files::segment(source, id);
            reader::replay(&path, id, identity, &mut |frame| {
                if frame.seqno != newest + 1 {
                    return Err(changed(&path));
                }
                newest = frame.seqno;
                self.frame(&path, &frame)
            })?;
        }
        self.live.values_mut().for_each(Replayed::settle);
        // What CATALOG will say was replayed.
        match plan.replay.last() {
            Some(&last) if newest != plan.last_seqno => Err(changed(&files::segment(source, last))),
            _ => Ok(()),
        }
    }

    /// The journal is synced before tables are installed: nothing can be ahead of it.
    fn check_reach(&self, source: &Path, plan: &JournalPlan) -> Result<()> {
        for target in self.live.values() {
            let persisted = target.tree.highest_persisted_seqno().unwrap_or(0);
            if persisted <= plan.last_seqno {
                continue;
            }
            // Which of the two is at fault nobody knows, unless the journal is cut short.
            let (path, offset) = match plan.torn {
                Some((segment, offset)) => (files::segment(source, segment), Some(offset)),
                None => (files::tree(source, target.tree.id), None),
            };
            return Err(Error::corrupt_because(
                &path,
                offset,
                "tables hold commits that CATALOG and the journal do not know",
                format!("commits up to {persisted}"),
                format!("commits up to {}", plan.last_seqno),
            ));
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
                    target.put(key, Update::Put(Slice::from(value)), frame.seqno);
                }
                Item::Delete { partition, key } => {
                    let Some(target) = self.target(partition, frame.seqno, &corrupt)? else {
                        continue;
                    };
                    target.put(key, Update::Remove, frame.seqno);
                }
                Item::DeleteWeak { partition, key } => {
                    let target = self.target(partition, frame.seqno, &corrupt)?;
                    if let Some(target) = target
                        && !is_planted(Bug::WeakRemovalNotReplayed)
                    {
                        target.put(key, Update::RemoveWeak, frame.seqno);
                    }
                }
                Item::Clear { .. } if is_planted(Bug::ClearNotReplayed) => {}
                Item::Clear { partition } => {
                    if self.target(partition, frame.seqno, &corrupt)?.is_some() {
                        self.clear(partition, frame.seqno)?;
                    }
                }
                Item::Drop { .. } if is_planted(Bug::DropNotReplayed) => {}
                Item::Drop { partition } => {
                    self.dropped.extend(self.live.remove(&partition));
                }
                // An ingest is in the tables, or it was cut short and is nowhere.
                Item::Create { partition, .. } | Item::Ingest { partition } => {
                    self.target(partition, frame.seqno, &corrupt)?;
                }
            }
        }
        self.bound_memory(frame.seqno)
    }

    /// The partition to apply to; `None` when its tables have it or it was dropped later.
    fn target(
        &mut self,
        partition: u32,
        seqno: u64,
        corrupt: &dyn Fn(&str) -> Error,
    ) -> Result<Option<&mut Replayed>> {
        if partition >= self.next_partition {
            return Err(corrupt("an item names a partition that CATALOG never had"));
        }
        Ok(self.live.get_mut(&partition).filter(|target| target.upto < seqno))
    }

    fn clear(&mut self, partition: u32, seqno: u64) -> Result<()> {
        let Some(target) = self.live.get_mut(&partition) else { return Ok(()) };
        let id = self.next_tree;
        let dir = files::tree(&self.root, id);
        files::remove_dir_if_present(&dir)?;
        files::create_dir(&dir)?;
        let core = &target.core;
        let tree = Arc::new(Tree::open(&dir, id, &core.name, &core.options, &self.trees)?);
        files::sync_dir(&dir)?;
        let partitions = files::partitions(&self.root);
        unless(Bug::ReplayedTreeNotSynced, || files::sync_dir(&partitions))?;
        target.core.begin_generation(seqno, Arc::clone(&tree));
        // Nobody flushes the old one, which is there until the generations are retired.
        std::mem::replace(&mut target.tree, tree).account().close();
        target.upto = seqno;
        target.waiting.clear();
        target.waiting_bytes = 0;
        self.next_tree = id + 1;
        Ok(())
    }

    fn bound_memory(&mut self, seqno: u64) -> Result<()> {
        let mut total = 0;
        for target in self.live.values_mut() {
            let bytes = target.tree.account().active() + target.waiting_bytes;
            if bytes >= self.config.memtable_bytes {
                target.settle();
                target.flush(seqno)?;
            } else {
                total += bytes;
            }
        }
        if total < self.config.write_buffer_bytes_max {
            return Ok(());
        }
        self.live.values_mut().for_each(Replayed::settle);
        self.flush_all(seqno)
    }

    pub(crate) fn flush_all(&self, newest: u64) -> Result<()> {
        self.live.values().try_for_each(|target| target.flush(newest))
    }

    /// The catalog and the version map after replay.
    pub(crate) fn finish(&self, catalog: &mut Catalog, plan: &JournalPlan) -> Versions {
        let versions = Versions::default();
        catalog.partitions.clear();
        for (&id, target) in &self.live {
            let in_memory = target.tree.account().active() > 0;
            let flushed_upto =
                if in_memory { target.upto } else { plan.last_seqno.max(target.upto) };
            let installed = target.tree.installed();
            let (version, manifest) = (installed.version.id, installed.manifest);
            let floor = Floor { version, manifest, flushed_upto };
            versions.put(&target.core, &target.tree, installed, flushed_upto);
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
    pub(crate) fn remove_superseded(&mut self) {
        for target in self.live.values() {
            drop(target.core.retire_generations(None));
        }
        for dropped in self.dropped.drain(..) {
            dropped.core.doom();
        }
    }
}

/// The journal is not the one that was surveyed.
fn changed(path: &Path) -> Error {
    Error::io("replay", path, std::io::Error::other("it changed while it was read"))
}

impl Replayed {
    fn put(&mut self, key: &[u8], value: Update, seqno: u64) {
        self.waiting_bytes += entry_bytes(key, value.value());
        self.waiting.push(Entry { key: Slice::from(key), value, seqno });
        if self.waiting_bytes >= WAITING_BYTES_MAX {
            self.settle();
        }
    }

    /// Puts what waits into the memtable: neighbours one after the other, whose way is in the
    /// processor's cache then.
    fn settle(&mut self) {
        self.waiting_bytes = 0;
        let mut entries = std::mem::take(&mut self.waiting);
        // Stable: of two changes of one entry in a batch the later one must come last.
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        let tree = &self.tree;
        let apply = |entries: Vec<Entry>| {
            for Entry { key, value, seqno } in entries {
                tree.apply(key, value, seqno);
            }
        };
        if entries.len() < 2 * SHARE_LEN_MIN {
            return apply(entries);
        }
        let mut half = entries.len() / 2;
        // Changes of one entry stay together.
        while half < entries.len() && entries[half].key == entries[half - 1].key {
            half += 1;
        }
        let rest = Mutex::new(entries.split_off(half));
        let apply_rest = || {
            let rest = std::mem::take(&mut *rest.lock());
            apply(rest);
        };
        std::thread::scope(|scope| {
            // Without a helper it only takes longer.
            let _ = std::thread::Builder::new().spawn_scoped(scope, apply_rest);
            apply(entries);
            apply_rest();
        });
    }

    /// Nobody reads yet, so nothing older than `newest` that is overwritten has to stay.
    fn flush(&self, newest: u64) -> Result<()> {
        let flushing = self.tree.lock_flushing();
        self.tree.rotate();
        self.tree.flush(&flushing, newest + 1)?;
        Ok(())
    }
}
