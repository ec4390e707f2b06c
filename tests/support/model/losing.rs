//! What compactions take away: weak removals, filters and FIFOs.
//!
//! Weak removals are exact: their keys are inserted once and never again. What a filter or a FIFO takes
//! away, and when, is not, so their partitions come and go within an operation, which judges what has
//! to hold at any time: snapshots do not change, nothing is there that should not be, nothing comes
//! back after a crash.

use std::collections::BTreeMap;
use std::sync::Arc;

use esker::{
    CompactionFilter, CompactionFilterFactory, CompactionStrategy, Config, FilterContext,
    FilterItem, Partition, Result, Slice, Snapshot, Verdict,
};

use super::machine::Machine;
use super::operation::{At, Edge, Operation, Value};
use super::reads;
use crate::files::crash_image;
use crate::store::{Entries, entries, open_content};

/// Of the partition that the filter empties, and of the one that is a FIFO. Neither is in the model.
const FILTERED: &str = "filtered";
const FIFO: &str = "first in, first out";
/// A partition of the model whose filter replaces values by the same.
const RENEWED: &str = "beta";

struct Factory(fn(&FilterItem<'_>) -> Result<Verdict>);

impl CompactionFilterFactory for Factory {
    fn make_filter(&self, _: &FilterContext) -> Box<dyn CompactionFilter> {
        Box::new(Factory(self.0))
    }
}

impl CompactionFilter for Factory {
    fn filter_item(&mut self, item: &FilterItem<'_>, _: &FilterContext) -> Result<Verdict> {
        (self.0)(item)
    }
}

fn expire(item: &FilterItem<'_>) -> Result<Verdict> {
    Ok(if item.key().starts_with(b"expired") { Verdict::Remove } else { Verdict::Keep })
}

fn renew(item: &FilterItem<'_>) -> Result<Verdict> {
    match item.key().last() {
        Some(byte) if byte % 3 == 0 => item.value().map(Verdict::ReplaceValue),
        _ => Ok(Verdict::Keep),
    }
}

/// The filters of every opening.
pub(super) fn with_filters(config: Config) -> Config {
    config.compaction_filters(|name| match name {
        FILTERED => Some(Arc::new(Factory(expire))),
        RENEWED => Some(Arc::new(Factory(renew))),
        _ => None,
    })
}

/// Whether this module plays it.
pub(super) fn takes_away(operation: &Operation) -> bool {
    use Operation::{CompactRange, Fifo, Filter, InsertOnce, RemoveWeakly};
    matches!(
        operation,
        InsertOnce(..) | RemoveWeakly { .. } | CompactRange(..) | Filter { .. } | Fifo { .. }
    )
}

impl Machine {
    pub(super) fn on_losing(&mut self, operation: &Operation) -> bool {
        match *operation {
            Operation::InsertOnce(at, value) => self.insert_once(at, value),
            Operation::RemoveWeakly { at, which, way } => {
                return self.remove_weakly(at, which, way);
            }
            Operation::CompactRange(at, from, to) => self.compact_range(at, from, to),
            Operation::Filter { count, value, flushed } => self.filter(count, value, flushed),
            Operation::Fifo { count, value } => self.fifo(count, value),
            _ => unreachable!("{operation:?} takes nothing away"),
        }
        true
    }

    fn insert_once(&mut self, at: At, value: Value) {
        let name = self.ensure(at);
        let value = self.value(value);
        // No other operation has such keys, and no number comes twice.
        let key = format!("once {:08}", self.numbered()).into_bytes();
        self.handle(name).insert(&key[..], &value[..]).expect("insert");
        self.seqno += 1;
        self.entries(name).insert(key, value);
    }

    /// One that is there, alone, in a batch or in a transaction.
    fn remove_weakly(&mut self, at: At, which: u8, way: u8) -> bool {
        let name = self.ensure(at);
        let once = |key: &&Vec<u8>| key.starts_with(b"once ");
        let keys: Vec<_> = self.model[name].entries.keys().filter(once).cloned().collect();
        let Some(number) = super::machine::pick(which, keys.len()) else { return false };
        let (key, partition) = (&keys[number], self.handle(name));
        match way % 3 {
            0 => partition.remove_weak(&key[..]).expect("remove"),
            1 => {
                let mut batch = self.keyspace().batch();
                batch.remove_weak(&partition, &key[..]);
                assert_eq!(batch.commit().expect("commit"), self.seqno + 1);
            }
            _ => {
                let mut tx = self.transactional().write_tx().expect("begin");
                tx.remove_weak(&partition, &key[..]).expect("remove");
                assert_eq!(tx.get(&partition, key).expect("get"), None, "removed weakly");
                tx.commit().expect("commit");
            }
        }
        self.seqno += 1;
        self.entries(name).remove(key);
        true
    }

    fn compact_range(&mut self, at: At, from: Edge, to: Edge) {
        let name = self.ensure(at);
        self.handle(name).compact_range(reads::bounds(from, to)).expect("compact");
    }

    fn filter(&mut self, count: u8, value: Value, flushed: bool) {
        // A FIFO merges at its own times.
        let options = (self.settings.options)().compaction_strategy(CompactionStrategy::Leveled);
        let partition = self.keyspace().partition(FILTERED, options).expect("create");
        let mut kept = Entries::new();
        let mut expired = Entries::new();
        for number in 0..=count {
            let (mine, other) = (self.value(value), self.value(value));
            let (key, doomed) = (format!("kept {number:03}"), format!("expired {number:03}"));
            partition.insert(&key[..], &mine[..]).expect("insert");
            partition.insert(&doomed[..], &other[..]).expect("insert");
            kept.insert(key.into_bytes(), mine);
            expired.insert(doomed.into_bytes(), other);
        }
        if flushed {
            self.keyspace().flush().expect("flush");
        }
        let snapshot = self.keyspace().snapshot();
        // A worker may have filtered some already.
        let before = seen(&snapshot, &partition);
        let right = |(key, value)| kept.get(key).or(expired.get(key)) == Some(value);
        assert!(before.iter().all(right), "the snapshot of what is filtered");
        assert!(kept.keys().all(|key| before.contains_key(key)), "what the filter keeps");
        partition.compact().expect("compact");
        assert!(seen(&snapshot, &partition) == before, "a filter has changed a snapshot");
        // The newest entry is one of those that went: nothing above it says that it was in tables.
        self.check_what_a_crash_leaves(&expired);
        partition.insert("kept later", "1").expect("insert");
        kept.insert(b"kept later".to_vec(), b"1".to_vec());
        partition.compact().expect("compact");
        assert!(seen(&snapshot, &partition) == before, "a compaction has changed a snapshot");
        drop(snapshot);
        partition.compact().expect("compact");
        let left = entries(&partition);
        // While a snapshot keeps what one compaction took away, none takes away more.
        let extra: Entries = left.iter().filter(|(k, _)| !kept.contains_key(*k)).map(own).collect();
        assert!(kept.iter().all(|(key, value)| left.get(key) == Some(value)), "what stays");
        assert!(extra.iter().all(|(key, value)| expired.get(key) == Some(value)), "what may stay");
        assert!(extra.is_empty() || !self.snapshots.is_empty(), "the filter leaves {extra:?}");
        self.check_what_a_crash_leaves(&expired);
        assert!(self.keyspace().drop_partition(FILTERED).expect("drop"), "it was there");
        self.seqno += 2 * (u64::from(count) + 1) + 3;
    }

    /// If the filter has removed everything that it does.
    fn check_what_a_crash_leaves(&self, expired: &Entries) {
        let statistics = self.keyspace().statistics();
        let of_partition = statistics.partitions.iter().find(|p| p.name == FILTERED);
        if of_partition.is_some_and(|p| p.filter_removed < expired.len() as u64) {
            return;
        }
        let image = crash_image(&self.path());
        let found = open_content(&image.path().join("keyspace"));
        let back = found[FILTERED].keys().filter(|key| expired.contains_key(*key)).count();
        assert_eq!(back, 0, "a crash brought back what a filter removed");
    }

    /// What is left are the newest, each with its newest value, also after a crash, and snapshots keep
    /// the others. The newest of all stays however little may stay.
    fn fifo(&mut self, count: u8, value: Value) {
        let limit_bytes = Some(1 + 4 * u64::from(value.len));
        let strategy = CompactionStrategy::Fifo { limit_bytes, ttl_secs: None };
        let options = (self.settings.options)().compaction_strategy(strategy);
        let partition = self.keyspace().partition(FIFO, options).expect("create");
        let mut written = BTreeMap::new();
        let mut held: Option<(Snapshot, Entries)> = None;
        for number in 0..=count {
            let key = format!("{:03}", number % 13).into_bytes();
            let value = self.value(value);
            partition.insert(&key[..], &value[..]).expect("insert");
            written.insert(key, value);
            if number % 4 == 3 {
                partition.compact().expect("compact");
            }
            if number == count / 2 {
                let snapshot = self.keyspace().snapshot();
                let content = seen(&snapshot, &partition);
                held = Some((snapshot, content));
            }
        }
        let newest = format!("{:03}", count % 13).into_bytes();
        let check = |left: &Entries, when: &str| {
            let older = left.iter().find(|(key, value)| written.get(*key) != Some(value));
            assert!(older.is_none(), "{when}: an older value came back: {older:?}");
            assert_eq!(left.get(&newest), written.get(&newest), "{when}: the newest is gone");
        };
        check(&entries(&partition), "a FIFO");
        let image = crash_image(&self.path());
        check(&open_content(&image.path().join("keyspace"))[FIFO], "a FIFO after a crash");
        let (snapshot, content) = held.expect("one was taken");
        assert!(seen(&snapshot, &partition) == content, "a FIFO has changed a snapshot");
        drop(snapshot);
        partition.compact().expect("compact");
        check(&entries(&partition), "a FIFO that nobody holds back");
        assert!(self.keyspace().drop_partition(FIFO).expect("drop"), "it was there");
        self.seqno += u64::from(count) + 3;
    }
}

fn own((key, value): (&Vec<u8>, &Vec<u8>)) -> (Vec<u8>, Vec<u8>) {
    (key.clone(), value.clone())
}

fn seen(snapshot: &Snapshot, partition: &Partition) -> Entries {
    let pair = |entry: Result<(Slice, Slice)>| {
        let (key, value) = entry.expect("an entry");
        (key.to_vec(), value.to_vec())
    };
    snapshot.iter(partition).expect("iterate").map(pair).collect()
}
