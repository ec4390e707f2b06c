//! What the hard tests share: seeds, rounds, models, whole-directory hashes and child processes.
//!
//! What must stay true: everything random comes from one printed seed (`ESKER_SEED` repeats it), and
//! `ESKER_ROUNDS` scales a randomised test without touching its code.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use esker::{Keyspace, Partition, Result};
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_128;

/// The content of one partition.
pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;
/// The content of a keyspace, by partition name.
pub type Model = BTreeMap<String, Entries>;

/// A small generator (splitmix64): the same numbers for the same seed, for ever.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator that `seed` stands for.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.bits().to_le_bytes());
        }
        out.truncate(len);
        out
    }
}

/// The seed of this run, printed so that a failure can be repeated.
pub fn seed(test: &str) -> u64 {
    let fresh = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Rng::new(now.map_or(1, |n| n.as_nanos() as u64) ^ u64::from(std::process::id())).bits()
    };
    let given = std::env::var("ESKER_SEED").ok();
    let seed = given.map_or_else(fresh, |s| s.parse().expect("ESKER_SEED is a number"));
    eprintln!("{test}: ESKER_SEED={seed}");
    seed
}

/// How many rounds to run: `ESKER_ROUNDS`, or `default`.
pub fn rounds(default: u64) -> u64 {
    let given = std::env::var("ESKER_ROUNDS").ok();
    given.map_or(default, |s| s.parse().expect("ESKER_ROUNDS is a number"))
}

/// A scratch directory in memory where there is such a place: for tests that are about content and
/// not about the filesystem.
pub fn memory_dir() -> TempDir {
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("esker-test-");
        builder
    };
    match builder().tempdir_in("/dev/shm") {
        Ok(dir) => dir,
        Err(_) => builder().tempdir().expect("a temporary directory"),
    }
}

/// A scratch directory on a real filesystem.
pub fn disk_dir() -> TempDir {
    // Not TMPDIR: that may be in memory.
    let lasting = Path::new("/var/tmp");
    let place = if lasting.is_dir() { lasting.to_path_buf() } else { std::env::temp_dir() };
    let dir = tempfile::Builder::new().prefix("esker-test-").tempdir_in(place);
    dir.expect("a temporary directory")
}

/// Everything in the partition, read from the front and compared with what is read from the back.
pub fn entries(partition: &Partition) -> Result<Entries> {
    let owned = |entry: Result<(esker::Slice, esker::Slice)>| {
        entry.map(|(key, value)| (key.to_vec(), value.to_vec()))
    };
    let forward: Vec<_> = partition.iter()?.map(owned).collect::<Result<_>>()?;
    let mut backward: Vec<_> = partition.iter()?.rev().map(owned).collect::<Result<_>>()?;
    backward.reverse();
    assert!(forward == backward, "{}: the two directions differ", partition.name());
    assert!(forward.is_sorted_by(|a, b| a.0 < b.0), "{}: keys in order", partition.name());
    Ok(forward.into_iter().collect())
}

/// Everything in the keyspace.
pub fn content(keyspace: &Keyspace) -> Result<Model> {
    let mut model = Model::new();
    for name in keyspace.partitions() {
        let partition = keyspace.open_partition(&name)?.expect("a partition that is listed");
        model.insert(name, entries(&partition)?);
    }
    Ok(model)
}

/// The first few differences, for people; `None` when the two are equal.
pub fn difference(expected: &Model, found: &Model) -> Option<String> {
    if expected == found {
        return None;
    }
    let names = |m: &Model| m.keys().cloned().collect::<Vec<_>>();
    if names(expected) != names(found) {
        return Some(format!(
            "partitions: expected {:?}, found {:?}",
            names(expected),
            names(found)
        ));
    }
    let mut lines = Vec::new();
    for (name, expected) in expected {
        let found = &found[name];
        let keys: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
        for key in keys.into_iter().filter(|key| expected.get(*key) != found.get(*key)) {
            let show = |v: Option<&Vec<u8>>| {
                v.map(|v| {
                    format!("{} B {:?}…", v.len(), String::from_utf8_lossy(&v[..v.len().min(24)]))
                })
            };
            lines.push(format!(
                "{name}/{}: expected {:?}, found {:?}",
                String::from_utf8_lossy(key),
                show(expected.get(key)),
                show(found.get(key))
            ));
        }
    }
    let count = lines.len();
    lines.truncate(6);
    Some(format!("{count} entries differ:\n  {}", lines.join("\n  ")))
}

/// One file, as `files_below` sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileState {
    /// Its inode, to find what is shared.
    pub inode: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// xxh3-128 of its content.
    pub hash: u128,
}

/// Every file below `root`, by its path relative to it.
pub fn files_below(root: &Path) -> BTreeMap<PathBuf, FileState> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("a directory").map(|e| e.expect("an entry")) {
            let path = entry.path();
            if entry.file_type().expect("a type").is_dir() {
                dirs.push(path);
                continue;
            }
            let bytes = fs::read(&path).expect("a readable file");
            let inode = fs::metadata(&path).expect("metadata").ino();
            let state = FileState { inode, bytes: bytes.len() as u64, hash: xxh3_128(&bytes) };
            found.insert(path.strip_prefix(root).expect("below").to_path_buf(), state);
        }
    }
    found
}

/// Copies a directory tree, byte for byte, sharing nothing.
pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a new directory");
    for entry in fs::read_dir(from).expect("a directory").map(|e| e.expect("an entry")) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().expect("a type").is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a copied file");
        }
    }
}

/// This test binary again, to run the one test `name` (`module::function`) in a process of its own.
pub fn rerun(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the test binary"));
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    // The private views of read-only opens go where temporary files cost nothing.
    if Path::new("/dev/shm").is_dir() {
        command.env("TMPDIR", "/dev/shm");
    }
    command
}
