//! A keyspace with a directory, and what tests do to it: open, write, crash, reopen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use esker::{Config, Keyspace, Partition, PartitionOptions};
use tempfile::TempDir;

use crate::files::crash_image;

/// Everything in one partition.
pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;
/// Everything in a keyspace, by partition.
pub type Content = BTreeMap<String, Entries>;

/// A keyspace in a temporary directory, with room beside it for checkpoints.
pub struct Store {
    directory: TempDir,
    configure: Box<dyn Fn(Config) -> Config + Send + Sync>,
    keyspace: Option<Keyspace>,
}

impl Store {
    /// An open, empty keyspace.
    pub fn new() -> Self {
        Self::with(|config| config)
    }

    /// The same with settings, which every reopening uses again.
    pub fn with(configure: impl Fn(Config) -> Config + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self::adopt(directory, configure)
    }

    /// The same in memory where that is possible: for tests that sync and crash thousands of times.
    pub fn in_memory(configure: impl Fn(Config) -> Config + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self::adopt(directory.expect("a temporary directory"), configure)
    }

    /// Opens what is in `keyspace` below the directory.
    pub fn adopt(
        directory: TempDir,
        configure: impl Fn(Config) -> Config + Send + Sync + 'static,
    ) -> Self {
        // Crash images copy the preallocated journal: keep it small unless the test says otherwise.
        let configure = move |config: Config| configure(config.journal_segment_bytes(1 << 20));
        let mut store = Self { directory, configure: Box::new(configure), keyspace: None };
        store.open();
        store
    }

    /// Where the keyspace is.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("keyspace")
    }

    /// A path beside the keyspace.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn keyspace(&self) -> &Keyspace {
        self.keyspace.as_ref().expect("the store is open")
    }

    /// The partition `name` with default options if it is new.
    pub fn partition(&self, name: &str) -> Partition {
        self.partition_with(name, PartitionOptions::default())
    }

    pub fn partition_with(&self, name: &str, options: PartitionOptions) -> Partition {
        self.keyspace().partition(name, options).expect("open the partition")
    }

    /// Sets one key in the partition `name`.
    pub fn write(&self, name: &str, key: &str, value: &str) {
        self.partition(name).insert(key, value).expect("write");
    }

    pub fn get(&self, name: &str, key: &str) -> Option<String> {
        let value = self.partition(name).get(key).expect("read");
        value.map(|v| String::from_utf8(v.to_vec()).expect("UTF-8"))
    }

    pub fn content(&self) -> Content {
        content(self.keyspace())
    }

    /// Settings as every opening of this store uses them.
    pub fn config(&self) -> Config {
        (self.configure)(Config::new(self.path()))
    }

    pub fn open(&mut self) {
        assert!(self.keyspace.is_none(), "the store is open already");
        self.keyspace = Some(self.config().open().expect("open"));
    }

    pub fn close(&mut self) {
        if let Some(keyspace) = self.keyspace.take() {
            keyspace.close().expect("close");
        }
    }

    /// The process dies: what is on disk now is all there is. The store is closed afterwards.
    pub fn crash(&mut self) {
        let image = crash_image(&self.path());
        // The old directory goes on without us; nobody looks at it again.
        drop(self.keyspace.take());
        self.directory = image;
    }

    /// Closes if it is open, and opens again.
    pub fn reopen(&mut self) {
        self.close();
        self.open();
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

/// Everything in an open keyspace, read from the front; the number of entries is checked against
/// the way from the back.
pub fn content(keyspace: &Keyspace) -> Content {
    let read = |name: String| {
        let partition = keyspace.open_partition(&name).expect("open").expect("is listed");
        (name, entries(&partition))
    };
    keyspace.partitions().into_iter().map(read).collect()
}

/// Everything in one partition.
pub fn entries(partition: &Partition) -> Entries {
    let pair = |item: esker::Result<(esker::Slice, esker::Slice)>| {
        let (key, value) = item.expect("read");
        (key.to_vec(), value.to_vec())
    };
    partition.iter().expect("iterate").map(pair).collect()
}

/// Everything in the closed keyspace at `path`, read without changing it.
pub fn open_content(path: &Path) -> Content {
    let keyspace = Config::new(path).read_only(true).open().expect("open read-only");
    content(&keyspace)
}

/// Writes `count` entries with keys and values that tell where they belong.
pub fn fill(partition: &Partition, count: usize) {
    for number in 0..count {
        let value = format!("value {number} of {}", partition.name());
        partition.insert(format!("key {number:06}"), value).expect("write");
    }
}
