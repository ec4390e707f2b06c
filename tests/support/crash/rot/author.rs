//! Writes the keyspaces that are damaged later, and remembers what they held after every commit and
//! what their files once looked like.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use esker::{
    CheckpointBuilder, Compression, Config, CopyOptions, Durability, Keyspace, PartitionOptions,
    Result, Transfer, cold_copy,
};

use super::image::{Bytes, Image, read_files};
use crate::chaos::{Model, Rng};
use crate::files::crash_image;

/// The kinds of images, in the order in which rounds go through them.
pub const KINDS: [&str; 10] = [
    "closed",
    "crashed",
    "checkpoint",
    "levels",
    "blobs",
    "reshaped",
    "copied",
    "flushed",
    "cold",
    "branched",
];

/// How a keyspace is laid out.
#[derive(Clone, Debug)]
pub struct Shape {
    partitions: Vec<(String, PartitionOptions)>,
    keys: u64,
    value_len_max: u64,
    segment_bytes: u64,
}

impl Shape {
    /// The fewest bytes that have every kind of file: each of them can be tried.
    pub fn small() -> Self {
        let options = |name, compression, separate| {
            let options = PartitionOptions::default().block_bytes(256).compression(compression);
            (String::from(name), options.separate_values_from(separate))
        };
        let plain = options("plain", Compression::Lz4, None);
        let separated = options("separated", Compression::None, Some(40));
        let partitions = vec![plain, separated];
        Self { partitions, keys: 12, value_len_max: 54, segment_bytes: 4 << 10 }
    }

    fn any(kind: &str, rng: &mut Rng) -> Self {
        let count = if kind == "levels" { 3 } else { 1 } + rng.below(4);
        let partition = |number: u64| {
            let separate = kind == "blobs" || rng.one_in(3);
            let compression = if rng.one_in(2) { Compression::Lz4 } else { Compression::None };
            let options = PartitionOptions::default()
                .block_bytes(256 << rng.below(4))
                .compression(compression)
                .filter_bits_per_key(rng.below(3) as f32 * 5.0)
                .table_bytes(4 << 10)
                .l0_runs(1 + rng.below(4) as u8)
                .separate_values_from(separate.then(|| 20 + rng.below(60) as u32))
                .blob_staleness_threshold(if rng.one_in(2) { 0.25 } else { 0.01 })
                .blob_age_cutoff(if rng.one_in(2) { 0.25 } else { 1.0 });
            let options = if rng.one_in(2) {
                options
            } else {
                options.blob_compression(Compression::Lz4).blob_file_target_bytes(4 << 10)
            };
            (format!("partition {number}"), options)
        };
        let partitions = (0..count).map(partition).collect();
        Self {
            partitions,
            keys: if kind == "levels" { 150 } else { 8 + rng.below(40) },
            value_len_max: 30 + rng.below(100),
            segment_bytes: (4 << 10) << rng.below(2),
        }
    }
}

/// The settings of every open.
pub fn config(path: &Path) -> Config {
    Config::new(path)
        .memtable_bytes(1 << 20)
        .write_buffer_bytes_max(4 << 20)
        .journal_segment_bytes(4 << 10)
        .journal_bytes_max(1 << 20)
        .cache_bytes(0)
        .worker_threads(1)
}

/// A keyspace that is being written.
pub struct Author {
    keyspace: Keyspace,
    scratch: PathBuf,
    shape: Shape,
    model: Model,
    history: BTreeMap<u64, Model>,
    old: BTreeMap<PathBuf, Vec<Bytes>>,
    rng: Rng,
}

impl Author {
    fn new(scratch: &Path, shape: Shape, rng: Rng) -> Result<Self> {
        // Two levels down: images of crashes are made beside the parent.
        let path = scratch.join("live").join("keyspace");
        let keyspace = config(&path).journal_segment_bytes(shape.segment_bytes).open()?;
        let (model, history) = (Model::new(), BTreeMap::new());
        let (scratch, old) = (scratch.to_path_buf(), BTreeMap::new());
        let mut this = Self { keyspace, scratch, shape, model, history, old, rng };
        for (name, options) in this.shape.partitions.clone() {
            this.keyspace.partition(&name, options)?;
            this.model.insert(name, BTreeMap::new());
            this.note();
        }
        Ok(this)
    }

    fn note(&mut self) {
        self.history.insert(self.keyspace.seqno(), self.model.clone());
    }

    fn write(&mut self, commits: u64, durability: Durability) -> Result<()> {
        for _ in 0..commits {
            let mut batch = self.keyspace.batch();
            for (name, entries) in &mut self.model {
                let partition = self.keyspace.open_partition(name)?.expect("its own partition");
                let key = format!("key{}", self.rng.below(self.shape.keys)).into_bytes();
                if self.rng.one_in(6) {
                    entries.remove(&key);
                    batch.remove(&partition, key);
                } else {
                    let len = 4 + self.rng.below(self.shape.value_len_max) as usize;
                    let value = self.rng.bytes(len);
                    entries.insert(key.clone(), value.clone());
                    batch.insert(&partition, key, value);
                }
            }
            batch.durability(durability);
            batch.commit()?;
            self.note();
        }
        Ok(())
    }

    /// A few commits of each durability.
    fn write_some(&mut self, commits: u64) -> Result<()> {
        let modes = [Durability::Buffer, Durability::SyncData, Durability::SyncAll];
        for _ in 0..3 {
            let mode = modes[self.rng.below(3) as usize];
            let count = self.rng.below(commits / 2 + 1);
            self.write(count, mode)?;
        }
        self.write(commits / 3 + 1, Durability::Buffer)?;
        self.remember(&self.path());
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.keyspace.path().to_path_buf()
    }

    /// What the files below `dir` look like now may come back later, in their place.
    fn remember(&mut self, dir: &Path) {
        for (name, bytes) in read_files(dir) {
            let versions = self.old.entry(name).or_default();
            if versions.last() != Some(&bytes) {
                versions.push(bytes);
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.keyspace.flush()?;
        self.remember(&self.path());
        Ok(())
    }

    fn compact(&mut self) -> Result<()> {
        for name in self.keyspace.partitions() {
            if let Some(partition) = self.keyspace.open_partition(&name)? {
                partition.compact()?;
            }
        }
        self.remember(&self.path());
        Ok(())
    }

    fn checkpoint(
        &mut self,
        name: &str,
        how: fn(CheckpointBuilder<'_>) -> CheckpointBuilder<'_>,
    ) -> Result<PathBuf> {
        let path = self.scratch.join(name);
        how(self.keyspace.checkpoint()).write_to(&path)?;
        self.remember(&path);
        Ok(path)
    }

    /// The journal goes over to its next segment: a sealed one is left behind.
    fn rotate(&mut self) -> Result<()> {
        let path = self.checkpoint("passing", |builder| builder)?;
        fs::remove_dir_all(path).expect("a checkpoint can be removed");
        Ok(())
    }

    fn reopen(mut self) -> Result<Self> {
        let path = self.path();
        self.keyspace.close()?;
        self.keyspace = config(&path).journal_segment_bytes(self.shape.segment_bytes).open()?;
        self.remember(&path);
        Ok(self)
    }

    /// Clears a partition, or drops it and creates it again.
    fn reshape(&mut self) -> Result<()> {
        let at = self.rng.below(self.shape.partitions.len() as u64) as usize;
        let (name, options) = self.shape.partitions[at].clone();
        if self.rng.one_in(2) {
            self.keyspace.open_partition(&name)?.expect("its own partition").clear()?;
        } else {
            self.keyspace.drop_partition(&name)?;
            self.model.remove(&name);
            self.note();
            self.keyspace.partition(&name, options)?;
        }
        self.model.insert(name, BTreeMap::new());
        self.note();
        Ok(())
    }

    /// The image of a directory that holds what was committed last.
    fn image(self, dir: &Path, kind: &'static str) -> Image {
        let files = read_files(dir);
        Image::new(kind, dir, files, self.history, self.old)
    }

    fn closed(mut self, kind: &'static str) -> Result<Image> {
        let path = self.path();
        self.remember(&path);
        let keyspace = self.keyspace.clone();
        keyspace.close()?;
        Ok(self.image(&path, kind))
    }

    /// As kill -9 leaves it.
    fn crashed(self, kind: &'static str) -> Image {
        let crashed = crash_image(&self.path());
        self.image(&crashed.path().join("keyspace"), kind)
    }

    fn ended(mut self, kind: &'static str) -> Result<Image> {
        if self.rng.one_in(2) { self.closed(kind) } else { Ok(self.crashed(kind)) }
    }
}

/// Builds the image `kind` in `scratch`, which is empty; the same seed builds the same but for ids,
/// times and what background threads do.
pub fn build(kind: &str, seed: u64, shape: Option<Shape>, scratch: &Path) -> Result<Image> {
    let kind = KINDS.into_iter().find(|known| *known == kind).expect("a kind of image");
    let mut rng = Rng::new(seed);
    let shape = shape.unwrap_or_else(|| Shape::any(kind, &mut rng));
    let mut author = Author::new(scratch, shape, rng)?;
    match kind {
        "closed" => {
            author.write(12, Durability::Buffer)?;
            author.flush()?;
            let mut author = author.reopen()?;
            author.write(6, Durability::Buffer)?;
            author.closed(kind)
        }
        "crashed" => crashed(author, kind),
        "levels" => {
            for _ in 0..3 {
                author.write_some(120)?;
                author.flush()?;
            }
            author.compact()?;
            author.write_some(60)?;
            author.flush()?;
            author.write_some(12)?;
            author.ended(kind)
        }
        "blobs" => {
            for _ in 0..3 {
                author.write_some(30)?;
                author.flush()?;
            }
            author.compact()?;
            author.write_some(12)?;
            author.ended(kind)
        }
        "reshaped" => reshaped(author, kind),
        "branched" => branched(author, kind),
        "cold" => {
            author.write_some(15)?;
            author.flush()?;
            author.rotate()?;
            author.write_some(15)?;
            let copy = author.scratch.join("copy");
            let source = author.scratch.join("source");
            let path = author.path();
            if author.rng.one_in(2) {
                author.keyspace.clone().close()?;
                fs::rename(&path, &source).expect("a closed keyspace can be moved");
            } else {
                let crashed = crash_image(&path);
                fs::rename(crashed.path().join("keyspace"), &source).expect("a directory");
            }
            cold_copy(source, &copy, CopyOptions::default())?;
            Ok(author.image(&copy, kind))
        }
        _ => {
            author.write(6, Durability::Buffer)?;
            author.flush()?;
            author.checkpoint("earlier", |builder| builder)?;
            author.write(8, Durability::Buffer)?;
            let path = author.checkpoint(
                "checkpoint",
                match kind {
                    "copied" => |builder| builder.transfer(Transfer::Copy),
                    "flushed" => |builder| builder.flush_first(true),
                    _ => |builder| builder,
                },
            )?;
            Ok(author.image(&path, kind))
        }
    }
}

/// Two sealed segments and an active one whose first frames were durable when the last ones were
/// written; a flushed table below them.
fn crashed(mut author: Author, kind: &'static str) -> Result<Image> {
    author.write(4, Durability::Buffer)?;
    author.flush()?;
    author.write(6, Durability::Buffer)?;
    author.rotate()?;
    author.write(3, Durability::SyncData)?;
    author.write(3, Durability::Buffer)?;
    author.rotate()?;
    author.write(3, Durability::Buffer)?;
    author.write(1, Durability::SyncData)?;
    author.remember(&author.path());
    author.write(4, Durability::Buffer)?;
    // The next segment gets ready meanwhile, and with it a CATALOG that knows these commits. What
    // follows nobody knows to be durable.
    std::thread::sleep(std::time::Duration::from_millis(100));
    author.write(1, Durability::Buffer)?;
    Ok(author.crashed(kind))
}

fn reshaped(mut author: Author, kind: &'static str) -> Result<Image> {
    author.write_some(12)?;
    author.flush()?;
    author.reshape()?;
    author.write_some(9)?;
    if author.rng.one_in(2) {
        author.rotate()?;
    }
    author.reshape()?;
    if author.rng.one_in(2) {
        author = author.reopen()?;
    }
    author.write_some(9)?;
    author.reshape()?;
    author.write_some(6)?;
    author.ended(kind)
}

/// A checkpoint that was opened and written to: a history of its own.
fn branched(mut author: Author, kind: &'static str) -> Result<Image> {
    author.write_some(12)?;
    author.flush()?;
    author.write_some(9)?;
    let path = author.checkpoint("branch", |builder| builder)?;
    author.keyspace = config(&path).journal_segment_bytes(author.shape.segment_bytes).open()?;
    author.remember(&path);
    author.write_some(12)?;
    if author.rng.one_in(2) {
        author.rotate()?;
    }
    author.write_some(6)?;
    author.ended(kind)
}
