//! The images that are damaged, what they must hold, and what a changed byte must lead to.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use esker::{Compression, Config, Durability, Keyspace, PartitionOptions};
use esker::{VerifyOptions, verify};
use esker_tests::chaos::{self, Model, Rng};

pub(super) const SEGMENT_HEADER_LEN: u64 = 72;
const FRAME_HEADER_LEN: u64 = 64;
const BEFORE: &str = "before";

/// A directory, and what it must hold.
pub(super) struct Image {
    pub(super) path: PathBuf,
    /// The content after each commit from `first_seqno` on.
    pub(super) history: BTreeMap<u64, Model>,
    /// What an unharmed open shows.
    pub(super) seqno: u64,
    /// Commits up to this one are known to be durable by what lies outside of the journal's end.
    pub(super) durable: u64,
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
}

pub(super) fn config(path: &Path) -> Config {
    Config::new(path)
        .memtable_bytes(1 << 20)
        .write_buffer_bytes_max(4 << 20)
        .journal_segment_bytes(4 << 10)
        .journal_bytes_max(1 << 20)
        .cache_bytes(0)
        .worker_threads(1)
}

/// Writes and remembers the content after every commit.
pub(super) struct Author {
    keyspace: Keyspace,
    model: Model,
    history: BTreeMap<u64, Model>,
    rng: Rng,
}

pub(super) const NAMES: [&str; 2] = ["plain", "separated"];

impl Author {
    pub(super) fn new(path: &Path) -> Self {
        let keyspace = config(path).open().unwrap();
        let mut this =
            Self { keyspace, model: Model::new(), history: BTreeMap::new(), rng: Rng::new(7) };
        for name in NAMES {
            let options = PartitionOptions::default()
                .block_bytes(256)
                .compression(if name == "plain" { Compression::Lz4 } else { Compression::None })
                .separate_values_from((name == "separated").then_some(40));
            this.keyspace.partition(name, options).unwrap();
            this.model.insert(name.into(), BTreeMap::new());
            this.history.insert(this.keyspace.seqno(), this.model.clone());
        }
        this
    }

    pub(super) fn write(&mut self, commits: u32, durability: Durability) {
        for _ in 0..commits {
            let mut batch = self.keyspace.batch();
            for name in NAMES {
                let partition = self.keyspace.open_partition(name).unwrap().unwrap();
                let key = format!("key{}", self.rng.below(12)).into_bytes();
                let entries = self.model.get_mut(name).unwrap();
                if self.rng.one_in(6) {
                    entries.remove(&key);
                    batch.remove(&partition, key);
                } else {
                    let len = 4 + self.rng.below(50) as usize;
                    let value = self.rng.bytes(len);
                    entries.insert(key.clone(), value.clone());
                    batch.insert(&partition, key, value);
                }
            }
            batch.durability(durability);
            let seqno = batch.commit().unwrap();
            self.history.insert(seqno, self.model.clone());
        }
    }

    /// The journal's active segment goes over to the next: a sealed one is left behind.
    pub(super) fn rotate(&self, scratch: &Path) {
        self.keyspace.backup_to(scratch).unwrap();
        fs::remove_dir_all(scratch).unwrap();
    }

    /// Closes, copies what is there then, and goes on.
    pub(super) fn reopened(self, copy: &Path) -> Self {
        let path = self.keyspace.path().to_path_buf();
        self.keyspace.close().unwrap();
        chaos::copy_tree(&path, copy);
        Self { keyspace: config(&path).open().unwrap(), ..self }
    }

    pub(super) fn settle(&self) {
        std::thread::sleep(std::time::Duration::from_millis(150));
    }
}

pub(super) fn image(path: PathBuf, history: BTreeMap<u64, Model>, durable: Option<u64>) -> Image {
    let seqno = *history.last_key_value().unwrap().0;
    let names = chaos::files_below(&path);
    let read = |name: PathBuf| (name.clone(), fs::read(path.join(name)).unwrap());
    let files = names.into_keys().filter(|name| name.as_os_str() != "LOCK").map(read).collect();
    Image { path, history, seqno, durable: durable.unwrap_or(seqno), files }
}

pub(super) fn closed(base: &Path) -> Image {
    let path = base.join("closed");
    let mut author = Author::new(&path);
    author.write(12, Durability::Buffer);
    author.keyspace.flush().unwrap();
    let mut author = author.reopened(&base.join(BEFORE));
    author.write(6, Durability::Buffer);
    author.keyspace.close().unwrap();
    image(path, author.history, None)
}

/// The files of the closed image as they were when it had been closed once before.
pub(super) fn before_the_last_run(base: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let path = base.join(BEFORE);
    let read = |name: PathBuf| (name.clone(), fs::read(path.join(name)).unwrap());
    let files = chaos::files_below(&path).into_keys().map(read);
    files.filter(|(name, _)| name.as_os_str() != "LOCK").collect()
}

/// Two sealed segments and an active one whose first frames were durable when the last ones were
/// written; a flushed table below them.
pub(super) fn crashed(base: &Path) -> Image {
    let (live, path) = (base.join("live"), base.join("crashed"));
    let mut author = Author::new(&live);
    author.write(4, Durability::Buffer);
    author.keyspace.flush().unwrap();
    author.write(6, Durability::Buffer);
    author.rotate(&base.join("scratch"));
    author.write(3, Durability::SyncData);
    author.write(3, Durability::Buffer);
    author.rotate(&base.join("scratch"));
    author.write(3, Durability::Buffer);
    author.write(1, Durability::SyncData);
    author.write(4, Durability::Buffer);
    author.settle();
    chaos::copy_tree(&live, &path);
    drop(author.keyspace);
    fs::remove_dir_all(&live).unwrap();
    // What CATALOG and the seals prove is found by reading the journal below.
    image(path, author.history, Some(0))
}

pub(super) fn checkpoint(base: &Path) -> Image {
    let (live, path) = (base.join("source"), base.join("checkpoint"));
    let mut author = Author::new(&live);
    author.write(6, Durability::Buffer);
    author.keyspace.flush().unwrap();
    author.write(8, Durability::Buffer);
    author.keyspace.backup_to(&path).unwrap();
    drop(author.keyspace);
    fs::remove_dir_all(&live).unwrap();
    image(path, author.history, None)
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) seqno: u64,
    pub(super) synced_len: u64,
    pub(super) seal: bool,
}

pub(super) fn frames(bytes: &[u8]) -> Vec<Frame> {
    let field =
        |at: u64| u64::from_le_bytes(bytes[at as usize..at as usize + 8].try_into().unwrap());
    let (mut frames, mut at) = (Vec::new(), SEGMENT_HEADER_LEN);
    while bytes.get(at as usize..at as usize + 4) == Some(b"EKRF") {
        let end = at + FRAME_HEADER_LEN + field(at + 12);
        frames.push(Frame {
            start: at,
            end,
            seqno: field(at + 20),
            synced_len: field(at + 36),
            seal: bytes[at as usize + 4] == 2,
        });
        at = end;
    }
    frames
}

pub(super) fn is_segment(name: &Path) -> bool {
    name.extension().is_some_and(|e| e == "jnl")
}

impl Image {
    pub(super) fn segments(&self) -> Vec<(&PathBuf, Vec<Frame>)> {
        let segments = self.files.iter().filter(|(name, _)| is_segment(name));
        segments.map(|(name, bytes)| (name, frames(bytes))).collect()
    }

    /// What must happen when the byte at `offset` of `name` changes.
    pub(super) fn demand(&self, name: &Path, offset: u64) -> Demand {
        if !is_segment(name) {
            return Demand::Refused;
        }
        let segments = self.segments();
        let at = segments.iter().position(|(n, _)| n.as_path() == name).unwrap();
        let (frames, later) = (&segments[at].1, &segments[at + 1..]);
        if offset < SEGMENT_HEADER_LEN {
            return Demand::Refused;
        }
        let hit = frames.iter().position(|frame| offset < frame.end);
        let Some(hit) = hit else {
            // Zeros: whatever is there now was not written by us, and nothing is missing.
            let end = frames.last().map_or(SEGMENT_HEADER_LEN, |frame| frame.end);
            return Demand::Torn { offset: end, seqno: self.seqno };
        };
        let start = frames[hit].start;
        if frames[hit].seal && later.iter().any(|(_, frames)| !frames.is_empty()) {
            // All commits are there and the next segment goes on with them; a seal alone may have
            // been cut short by a crash. (Of a checkpoint it may not: there nothing follows.)
            return Demand::Torn { offset: start, seqno: self.seqno };
        }
        let proven_here = frames[hit + 1..].iter().any(|frame| frame.synced_len > start);
        let proven_later =
            later.iter().flat_map(|(_, f)| f).any(|frame| frame.synced_len > SEGMENT_HEADER_LEN);
        let lost_from = if frames[hit].seal { frames[hit].seqno + 1 } else { frames[hit].seqno };
        if proven_here || proven_later || lost_from <= self.durable {
            return Demand::Refused;
        }
        Demand::Torn { offset: start, seqno: lost_from - 1 }
    }
}

/// What a change to one byte must lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// A problem in the file; an open refuses or shows everything.
    Refused,
    /// A torn tail that begins there; an open shows exactly the commits up to `seqno`, or refuses.
    Torn { offset: u64, seqno: u64 },
}

pub(super) const KINDS: [&str; 3] = ["closed", "crashed", "checkpoint"];

pub(super) fn make(kind: &str, base: &Path) -> Image {
    let mut image = match kind {
        "closed" => closed(base),
        "crashed" => crashed(base),
        "checkpoint" => checkpoint(base),
        other => panic!("no image {other}"),
    };
    if kind == "crashed" {
        let report = verify(&image.path, VerifyOptions::default()).unwrap();
        assert!(!report.clean, "the crash image is one");
        let segments = image.segments();
        let sealed = segments.iter().map(|(_, f)| f.last().map(|f| f.seal)).collect::<Vec<_>>();
        let prepared = [Some(true), Some(true), Some(false), None];
        assert_eq!(sealed, prepared, "two sealed segments, the active one, a prepared one");
        // What the last CATALOG proves: it never runs ahead of what is durable.
        image.durable = catalog_last_seqno(&image.files[Path::new("CATALOG")]);
    }
    image.assert_whole();
    image
}

/// docs/format.md: header 16, uuid 16, timeline 16, flags 1, origin 40, next ids 4 + 8.
pub(super) fn catalog_last_seqno(bytes: &[u8]) -> u64 {
    const AT: usize = 16 + 16 + 16 + 1 + 40 + 4 + 8;
    u64::from_le_bytes(bytes[AT..AT + 8].try_into().unwrap())
}
