//! A small keyspace that changes, its checkpoints, and what each of them holds.
//!
//! What must stay true: the content is known without asking the engine; a checkpoint is as old as the
//! stage's clock says, for retention looks at that alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use esker::{Config, Keyspace, Partition, PartitionOptions};
use xxhash_rust::xxh3::xxh3_128;

use crate::random::Seeded;
use crate::store::Content;

const NAMES: [&str; 4] = ["tables", "values", "a strange näme", "small"];
const KEYS: u64 = 150;

/// An open keyspace.
pub struct Source {
    pub keyspace: Keyspace,
    pub content: Content,
    directory: PathBuf,
    checkpoints: u64,
    /// Whether it has files of several pieces.
    is_huge: bool,
}

/// A checkpoint that is at hand.
#[derive(Clone)]
pub struct Kept {
    pub path: PathBuf,
    pub content: Arc<Content>,
    pub created_ms: u64,
}

impl Source {
    pub fn new(directory: PathBuf, is_huge: bool, random: &mut Seeded) -> Self {
        fs::create_dir(&directory).expect("a new directory");
        let keyspace = Config::new(directory.join("keyspace"))
            .journal_segment_bytes(64 << 10)
            .cache_bytes(1 << 20)
            .worker_threads(1)
            .open()
            .expect("open");
        let (content, checkpoints) = (Content::new(), 0);
        let mut source = Self { keyspace, content, directory, checkpoints, is_huge };
        source.write(random);
        if is_huge {
            source.write_huge(random);
        }
        source
    }

    /// Some changes of some partitions, and often a flush, so that there are several tables.
    pub fn write(&mut self, random: &mut Seeded) {
        for _ in 0..=random.below(2) {
            let name = *random.pick(&NAMES);
            self.write_to(name, random);
        }
        if self.is_huge && random.one_in(3) {
            self.write_huge(random);
        }
        if random.one_in(12) {
            let name = *random.pick(&NAMES);
            let dropped = self.keyspace.drop_partition(name).expect("drop");
            assert_eq!(dropped, self.content.remove(name).is_some());
        }
        if !random.one_in(3) {
            self.keyspace.flush().expect("flush");
        }
    }

    /// A value that is longer than a piece of a backup, and so are the files that hold it.
    fn write_huge(&mut self, random: &mut Seeded) {
        let name = *random.pick(&["tables", "values"]);
        let bytes = (33 << 20) + random.below(2 << 20);
        let value = random.bytes(bytes as usize);
        self.partition(name).insert("huge", &value).expect("insert");
        self.content.entry(name.to_owned()).or_default().insert(b"huge".to_vec(), value);
        self.keyspace.flush().expect("flush");
    }

    fn partition(&self, name: &str) -> Partition {
        let separated = (name == "values").then_some(512);
        let options = PartitionOptions::default().separate_values_from(separated);
        self.keyspace.partition(name, options).expect("a partition")
    }

    fn write_to(&mut self, name: &str, random: &mut Seeded) {
        let partition = self.partition(name);
        let entries = self.content.entry(name.to_owned()).or_default();
        if random.one_in(15) {
            partition.clear().expect("clear");
            entries.clear();
        }
        let most = if name == "small" { 20 } else { 1_200 };
        let bytes = random.bytes(most as usize);
        for _ in 0..random.below(70) {
            let key = format!("key {:04}", random.below(KEYS)).into_bytes();
            if random.one_in(5) {
                partition.remove(&key).expect("remove");
                entries.remove(&key);
                continue;
            }
            let mut value = bytes[..random.below(most) as usize].to_vec();
            value.extend_from_slice(&random.bytes(8));
            value.reverse();
            partition.insert(&key, &value).expect("insert");
            entries.insert(key, value);
        }
        if random.one_in(40) {
            // Several frames.
            let bytes = 1_500_000 + random.below(2_000_000);
            let value = random.bytes(bytes as usize);
            partition.insert("large", &value).expect("insert");
            entries.insert(b"large".to_vec(), value);
        }
    }

    /// Some of the partitions, to be left out.
    pub fn some(&self, random: &mut Seeded) -> BTreeSet<String> {
        self.content.keys().filter(|_| random.one_in(3)).cloned().collect()
    }

    /// The content without these.
    pub fn without(&self, left_out: &BTreeSet<String>) -> Arc<Content> {
        let mut content = self.content.clone();
        content.retain(|name, _| !left_out.contains(name));
        Arc::new(content)
    }

    /// Takes a checkpoint that is of this time.
    pub fn keep(&mut self, left_out: &BTreeSet<String>, created_ms: u64) -> Kept {
        self.checkpoints += 1;
        let path = self.directory.join(format!("checkpoint {}", self.checkpoints));
        let taken = self.keyspace.checkpoint().exclude(left_out.clone()).write_to(&path);
        taken.expect("a checkpoint");
        date(&path, created_ms);
        Kept { path, content: self.without(left_out), created_ms }
    }
}

/// Makes a checkpoint one that was taken then: its CHECKPOINT says so, under a new hash.
fn date(checkpoint: &Path, created_ms: u64) {
    let path = checkpoint.join("CHECKPOINT");
    let text = fs::read_to_string(&path).expect("read");
    let (first, body) = text.split_once('\n').expect("a first line");
    let (magic, _) = first.rsplit_once(' ').expect("a hash");
    const FIELD: &str = "\"created_ms\":";
    let (before, rest) = body.split_once(FIELD).expect("the time");
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let body = format!("{before}{FIELD}{created_ms}{rest}");
    let hash = xxh3_128(format!("{magic}\n{body}").as_bytes());
    fs::write(&path, format!("{magic} {hash:032x}\n{body}")).expect("write");
    assert_eq!(esker::read_listing(checkpoint).expect("it fits").created_ms, created_ms);
}
