//! What the worker writes, and so what a judge may find: every commit tells where it belongs.
//!
//! Each writer counts. Commit `count` of a writer puts one key into one of the three lasting
//! partitions and renews the writer's `last` in all of them, in one as a separated value; the commits
//! of writer 0 also put a key into `fleeting`, which is cleared, dropped and made anew, or emptied or
//! loaded by an ingest, after certain counts. So the content after any number of commits follows from
//! the newest count of every writer.

use esker::{Config, Keyspace, Partition, PartitionOptions, Result};

use crate::chaos::{Entries, Model, Rng};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The partitions that stay.
pub const NAMES: [&str; 3] = ["one", "two", "three"];
/// The partition that does not.
pub const FLEETING: &str = "fleeting";

/// Where the keyspace is in the worker's directory.
pub fn database(dir: &Path) -> PathBuf {
    dir.join("db")
}

/// Settings so small that everything happens after a few commits.
pub fn config(path: &Path) -> Config {
    Config::new(path)
        .memtable_bytes(8 << 10)
        .write_buffer_bytes_max(64 << 10)
        .journal_segment_bytes(8 << 10)
        .journal_bytes_max(64 << 10)
        .cache_bytes(1 << 20)
        .worker_threads(2)
        .defer_after_changes(0)
}

/// Opens or creates one of the partitions. Blob files are rewritten as soon as little of them is stale.
pub fn partition(keyspace: &Keyspace, name: &str) -> Result<Partition> {
    let options = PartitionOptions::default().block_bytes(512).table_bytes(8 << 10).l0_runs(2);
    let options = options.blob_staleness_threshold(0.05).blob_age_cutoff(1.0);
    let separate = (name == NAMES[1] || name == FLEETING).then_some(200);
    keyspace.partition(name, options.separate_values_from(separate))
}

/// The lasting partition that commit `count` puts its key into.
pub fn home(count: u64) -> &'static str {
    NAMES[(count % 3) as usize]
}

pub fn key(writer: usize, count: u64) -> Vec<u8> {
    format!("writer {writer} count {count:08}").into_bytes()
}

pub fn last_key(writer: usize) -> Vec<u8> {
    format!("writer {writer} last").into_bytes()
}

/// What `last` holds in a partition: the count, and where values are separated more.
pub fn last_value(name: &str, count: u64) -> Vec<u8> {
    let mut value = count.to_le_bytes().to_vec();
    if name == NAMES[1] {
        value.extend(Rng::new(count).bytes(250));
    }
    value
}

/// The count in `last`; `None` if that is not what a worker writes.
pub fn parse_last(value: &[u8]) -> Option<u64> {
    value.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// What commit `count` of a writer stores: short, separated, or large enough to be compressed.
pub fn value(writer: usize, count: u64) -> Vec<u8> {
    let mut rng = Rng::new(count * 31 + writer as u64);
    match count % 40 {
        7 => rng.bytes(300),
        23 => vec![count as u8; 6000],
        _ => rng.bytes(8 + (count % 50) as usize),
    }
}

/// What happens to `fleeting` once writer 0 has made a commit.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    Clear,
    DropAndCreate,
    /// An ingest removes every key.
    Unload,
    /// An ingest removes some keys, overwrites the others, and adds one.
    Load,
}

impl Shape {
    pub fn is_ingest(self) -> bool {
        matches!(self, Self::Load | Self::Unload)
    }
}

/// What follows commit `count` of writer 0.
pub fn shape_after(count: u64) -> Option<Shape> {
    match count % 24 {
        2 | 8 | 14 | 20 => Some(Shape::Load),
        5 | 17 => Some(Shape::Unload),
        11 => Some(Shape::Clear),
        23 => Some(Shape::DropAndCreate),
        _ => None,
    }
}

/// The lasting partitions when `newest` are the newest counts.
pub fn lasting(newest: &BTreeMap<usize, u64>) -> Model {
    let mut model: Model = NAMES.iter().map(|name| ((*name).to_owned(), Entries::new())).collect();
    for (&writer, &last) in newest {
        for (name, entries) in &mut model {
            entries.insert(last_key(writer), last_value(name, last));
        }
        for count in 0..=last {
            let entries = model.get_mut(home(count)).expect("one of the names");
            entries.insert(key(writer, count), value(writer, count));
        }
    }
    model
}

/// `fleeting` after commit `newest` of writer 0 and before what may follow that.
pub fn fleeting(newest: Option<u64>) -> Entries {
    let Some(newest) = newest else { return Entries::new() };
    let empties = |count: &u64| !matches!(shape_after(*count), None | Some(Shape::Load));
    let first = (0..newest).rev().find(empties).map_or(0, |count| count + 1);
    let mut entries = Entries::new();
    for count in first..=newest {
        entries.insert(key(0, count), value(0, count));
        if count < newest && shape_after(count) == Some(Shape::Load) {
            load_into(&mut entries, count);
        }
    }
    entries
}

/// `fleeting` once that has followed commit `count` of writer 0.
pub fn reshaped(count: u64) -> Entries {
    if shape_after(count) != Some(Shape::Load) {
        return Entries::new();
    }
    let mut entries = fleeting(Some(count));
    load_into(&mut entries, count);
    entries
}

/// The key that the load after commit `count` of writer 0 adds.
pub fn loaded_key(count: u64) -> Vec<u8> {
    format!("loaded {count:08}").into_bytes()
}

/// What that load does to `fleeting`, in the order of the keys.
pub fn load(count: u64) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
    load_of(&fleeting(Some(count)), count)
}

fn load_of(entries: &Entries, count: u64) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
    let mut rng = Rng::new(count);
    let mut changes = BTreeMap::from([(loaded_key(count), Some(rng.bytes(250)))]);
    for key in entries.keys() {
        let value = if rng.one_in(3) { None } else { Some(rng.bytes(250)) };
        changes.insert(key.clone(), value);
    }
    changes
}

fn load_into(entries: &mut Entries, count: u64) {
    for (key, value) in load_of(entries, count) {
        match value {
            Some(value) => entries.insert(key, value),
            None => entries.remove(&key),
        };
    }
}

/// How many commits created, cleared and dropped partitions until there is this content.
pub fn changes(newest: &BTreeMap<usize, u64>, content: &Model) -> u64 {
    let Some(&last) = newest.get(&0) else { return content.len() as u64 };
    let numbers = |shape| match shape {
        Some(Shape::Clear | Shape::Unload | Shape::Load) => 1,
        Some(Shape::DropAndCreate) => 2,
        None => 0,
    };
    let before: u64 = (0..last).map(|count| numbers(shape_after(count))).sum();
    let after = match (shape_after(last), content.get(FLEETING)) {
        (Some(Shape::DropAndCreate), None) => 1,
        (shape, Some(entries)) if *entries == reshaped(last) => numbers(shape),
        _ => 0,
    };
    NAMES.len() as u64 + 1 + before + after
}
