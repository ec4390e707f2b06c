//! The keyspace under test beside its model, and what can happen to both.

use std::collections::BTreeMap;
use std::ops::Bound;

use esker::{
    Config, CopyOptions, Durability, Keyspace, Partition, PartitionOptions, Slice, Snapshot,
    Transfer, VerifyOptions,
};
use esker_tests::store::{Content, Entries, content};
use esker_tests::{Seeded, Store, open_content};

pub struct Settings {
    pub config: fn(Config) -> Config,
    pub options: PartitionOptions,
}

const NAMES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];
const SNAPSHOTS_MAX: usize = 4;

pub struct Machine {
    name: String,
    settings: Settings,
    random: Seeded,
    store: Store,
    model: Content,
    snapshots: Vec<(Snapshot, Content)>,
    /// Directories taken so far, to name the next.
    taken: u64,
    step: u64,
}

impl Machine {
    pub fn new(name: &str, settings: Settings) -> Self {
        let store = Store::in_memory(settings.config);
        let random = Seeded::new(&format!("the model, {name}"));
        Self {
            name: name.to_owned(),
            settings,
            random,
            store,
            model: Content::new(),
            snapshots: Vec::new(),
            taken: 0,
            step: 0,
        }
    }

    /// One operation.
    pub fn step(&mut self, step: u64) {
        self.step = step;
        match self.random.below(1_000) {
            0..330 => self.insert(),
            330..430 => self.remove(),
            430..530 => self.batch(),
            530..640 => self.get(),
            640..720 => self.range(),
            720..760 => self.prefix(),
            760..790 => self.ends(),
            790..810 => self.count(),
            810..840 => self.take_snapshot(),
            840..880 => self.read_snapshot(),
            880..890 => self.drop_snapshot(),
            890..905 => self.store.keyspace().flush().expect("flush"),
            905..920 => self.compact(),
            920..930 => self.clear(),
            930..938 => self.drop_partition(),
            938..950 => self.persist(),
            950..960 => self.reopen(),
            960..970 => self.crash(),
            970..980 => self.checkpoint(),
            980..985 => self.cold_copy(),
            985..990 => self.read_only(),
            990..994 => self.move_into_a_checkpoint(),
            _ => self.compare("at random"),
        }
        if step % 100 == 99 {
            self.compare("regularly");
        }
    }

    pub fn finish(mut self) {
        self.compare("at the end");
        for (snapshot, expected) in std::mem::take(&mut self.snapshots) {
            self.compare_snapshot(&snapshot, &expected);
        }
        self.reopen();
        self.store.close();
        let report = esker::verify(self.store.path(), VerifyOptions::default()).expect("verify");
        assert!(report.is_sound() && report.strays.is_empty(), "{} {report:?}", self.place());
    }

    fn place(&self) -> String {
        format!("{}, step {}, ESKER_SEED={}:", self.name, self.step, self.random.seed)
    }

    // ---- what is drawn ------------------------------------------------------------------------

    fn name(&mut self) -> &'static str {
        NAMES[self.random.below(NAMES.len() as u64) as usize]
    }

    /// The partition and its entries in the model; both are created when missing.
    fn partition(&mut self) -> (Partition, &'static str) {
        let name = self.name();
        self.model.entry(name.to_owned()).or_default();
        (self.store.partition_with(name, self.settings.options.clone()), name)
    }

    fn entries(&mut self, name: &str) -> &mut Entries {
        self.model.get_mut(name).expect("the partition exists")
    }

    /// Few enough keys that they meet again, with common prefixes and the ends of the byte order.
    fn key(&mut self) -> Vec<u8> {
        match self.random.below(20) {
            0 => vec![0],
            1 => vec![0xff; 1 + self.random.below(3) as usize],
            2 => vec![b'k'; 60_000 + self.random.below(2) as usize],
            _ => format!("key {:03}", self.random.below(120)).into_bytes(),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        let len = match self.random.below(40) {
            0 => 0,
            1 => 20_000,
            2 => 4_096,
            _ => self.random.below(64) as usize,
        };
        if self.random.one_in(2) { vec![b'v'; len] } else { self.random.bytes(len) }
    }

    fn beside(&mut self, what: &str) -> std::path::PathBuf {
        self.taken += 1;
        self.store.beside(&format!("{what} {}", self.taken))
    }

    // ---- operations ---------------------------------------------------------------------------

    fn insert(&mut self) {
        let (partition, name) = self.partition();
        let (key, value) = (self.key(), self.value());
        partition.insert(&key[..], &value[..]).expect("insert");
        self.entries(name).insert(key, value);
    }

    fn remove(&mut self) {
        let (partition, name) = self.partition();
        let key = self.key();
        partition.remove(&key[..]).expect("remove");
        self.entries(name).remove(&key);
    }

    fn batch(&mut self) {
        let mut batch = self.store.keyspace().batch();
        for _ in 0..self.random.below(30) {
            let (partition, name) = self.partition();
            let key = self.key();
            if self.random.one_in(3) {
                batch.remove(&partition, &key[..]);
                self.entries(name).remove(&key);
            } else {
                let value = self.value();
                batch.insert(&partition, &key[..], &value[..]);
                self.entries(name).insert(key, value);
            }
        }
        if self.random.one_in(5) {
            batch.durability(Durability::SyncData);
        }
        let seqno = batch.commit().expect("commit");
        assert_eq!(seqno, self.store.keyspace().seqno(), "{}", self.place());
    }

    fn get(&mut self) {
        let (partition, name) = self.partition();
        let key = self.key();
        let expected = self.entries(name).get(&key).cloned();
        let found = partition.get(&key).expect("get").map(|v| v.to_vec());
        assert!(found == expected, "{} get {key:?}", self.place());
        let size = partition.size_of(&key).expect("size_of");
        assert_eq!(size, expected.as_ref().map(|v| v.len() as u32), "{}", self.place());
        let contains = partition.contains_key(&key).expect("contains_key");
        assert_eq!(contains, expected.is_some(), "{}", self.place());
    }

    fn bounds(&mut self) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
        let mut bound = || {
            let key = self.key();
            match self.random.below(3) {
                0 => Bound::Included(key),
                1 => Bound::Excluded(key),
                _ => Bound::Unbounded,
            }
        };
        (bound(), bound())
    }

    fn range(&mut self) {
        let (partition, name) = self.partition();
        let bounds = self.bounds();
        let within = |key: &Vec<u8>| std::ops::RangeBounds::contains(&bounds, key);
        let expected: Entries = self.entries(name).clone();
        let expected: Vec<_> = expected.into_iter().filter(|(key, _)| within(key)).collect();
        let forward = partition.range(bounds.clone()).expect("range").map(owned);
        assert!(forward.eq(expected.iter().cloned()), "{} range {bounds:?}", self.place());
        let backward = partition.range(bounds.clone()).expect("range").rev().map(owned);
        assert!(
            backward.eq(expected.iter().rev().cloned()),
            "{} reversed range {bounds:?}",
            self.place()
        );
        let keys = partition.range(bounds.clone()).expect("range").keys();
        let keys = keys.map(|key| key.expect("key").to_vec());
        assert!(keys.eq(expected.iter().map(|(key, _)| key.clone())), "{} keys", self.place());
    }

    fn prefix(&mut self) {
        let (partition, name) = self.partition();
        let mut prefix = self.key();
        prefix.truncate(self.random.below(prefix.len() as u64 + 1) as usize);
        let found: Entries = partition.prefix(&prefix).expect("prefix").map(owned).collect();
        let mut expected = self.entries(name).clone();
        expected.retain(|key, _| key.starts_with(&prefix));
        assert!(found == expected, "{} prefix {prefix:?}", self.place());
    }

    fn ends(&mut self) {
        let (partition, name) = self.partition();
        let entries = self.entries(name);
        let clone = |(k, v): (&Vec<u8>, &Vec<u8>)| (k.clone(), v.clone());
        let (first, last) =
            (entries.first_key_value().map(clone), entries.last_key_value().map(clone));
        let owned = |(k, v): (Slice, Slice)| (k.to_vec(), v.to_vec());
        let found = partition.first_key_value().expect("first").map(owned);
        assert!(found == first, "{} first", self.place());
        let found = partition.last_key_value().expect("last").map(owned);
        assert!(found == last, "{} last", self.place());
    }

    fn count(&mut self) {
        let (partition, name) = self.partition();
        let expected = self.entries(name).len();
        assert_eq!(partition.len().expect("len"), expected, "{}", self.place());
        assert_eq!(partition.is_empty().expect("is_empty"), expected == 0, "{}", self.place());
        assert!(partition.approximate_len() >= expected, "{}", self.place());
    }

    fn take_snapshot(&mut self) {
        if self.snapshots.len() == SNAPSHOTS_MAX {
            self.drop_snapshot();
        }
        self.snapshots.push((self.store.keyspace().snapshot(), self.model.clone()));
    }

    fn read_snapshot(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        let index = self.random.below(self.snapshots.len() as u64) as usize;
        let (snapshot, expected) = self.snapshots[index].clone();
        self.compare_snapshot(&snapshot, &expected);
    }

    /// Partitions that were dropped since have no handle any more, later ones of the same name are
    /// other partitions: see `drop_partition`.
    fn compare_snapshot(&self, snapshot: &Snapshot, expected: &Content) {
        for (name, expected) in expected {
            let opened = self.store.keyspace().open_partition(name).expect("open");
            let Some(partition) = opened else { continue };
            let found: Entries = snapshot.iter(&partition).expect("iterate").map(owned).collect();
            assert!(found == *expected, "{} snapshot of {name}", self.place());
        }
    }

    fn drop_snapshot(&mut self) {
        if !self.snapshots.is_empty() {
            let index = self.random.below(self.snapshots.len() as u64) as usize;
            self.snapshots.swap_remove(index);
        }
    }

    fn compact(&mut self) {
        let (partition, _) = self.partition();
        partition.compact().expect("compact");
    }

    fn clear(&mut self) {
        let (partition, name) = self.partition();
        partition.clear().expect("clear");
        self.entries(name).clear();
    }

    fn drop_partition(&mut self) {
        let name = self.name();
        let dropped = self.store.keyspace().drop_partition(name).expect("drop");
        assert_eq!(dropped, self.model.remove(name).is_some(), "{} drop {name}", self.place());
        for (_, expected) in &mut self.snapshots {
            // A handle of the same name is that of a later partition now.
            expected.remove(name);
        }
    }

    fn persist(&mut self) {
        let modes = [Durability::Buffer, Durability::SyncData, Durability::SyncAll];
        let mode = *self.random.pick(&modes);
        self.store.keyspace().persist(mode).expect("persist");
    }

    fn reopen(&mut self) {
        self.snapshots.clear();
        let seqno = self.store.keyspace().seqno();
        self.store.reopen();
        assert_eq!(self.store.keyspace().seqno(), seqno, "{}", self.place());
        self.compare("after reopening");
    }

    fn crash(&mut self) {
        self.snapshots.clear();
        let seqno = self.store.keyspace().seqno();
        self.store.crash();
        if self.random.one_in(2) {
            assert!(
                open_content(&self.store.path()) == self.model,
                "{} read-only after a crash",
                self.place()
            );
        }
        if self.random.one_in(3) {
            let target = self.beside("copy of crashed");
            esker::cold_copy(self.store.path(), &target, CopyOptions::default()).expect("copy");
            assert!(open_content(&target) == self.model, "{} copy of crashed", self.place());
        }
        self.store.open();
        assert_eq!(self.store.keyspace().seqno(), seqno, "{}", self.place());
        self.compare("after a crash");
    }

    fn checkpoint(&mut self) {
        let target = self.beside("checkpoint");
        let keyspace = self.store.keyspace().clone();
        let mut builder = keyspace.checkpoint();
        let mut expected = self.model.clone();
        if self.random.one_in(3) {
            builder = builder.flush_first(true);
        }
        if self.random.one_in(3) {
            builder = builder.transfer(Transfer::Copy);
        }
        if self.random.one_in(3) {
            builder = builder.verify(true);
        }
        let out = self.name();
        if self.random.one_in(3) && expected.contains_key(out) {
            expected.remove(out);
            builder = builder.exclude([out]);
        }
        let report = builder.write_to(&target).expect("checkpoint");
        assert_eq!(report.seqno, keyspace.seqno(), "{}", self.place());
        self.check_directory(&target, &expected, "checkpoint");
        let opened = Keyspace::open(&target).expect("open the checkpoint");
        assert!(content(&opened) == expected, "{} checkpoint, opened", self.place());
        opened.close().expect("close");
        std::fs::remove_dir_all(&target).expect("remove");
    }

    fn cold_copy(&mut self) {
        self.snapshots.clear();
        self.store.close();
        let target = self.beside("copy");
        let options = CopyOptions::default().verify(self.random.one_in(2));
        esker::cold_copy(self.store.path(), &target, options).expect("copy");
        self.check_directory(&target, &self.model, "copy");
        std::fs::remove_dir_all(&target).expect("remove");
        self.store.open();
        self.compare("after a copy");
    }

    fn read_only(&mut self) {
        self.snapshots.clear();
        self.store.close();
        assert!(open_content(&self.store.path()) == self.model, "{} read-only", self.place());
        self.store.open();
    }

    /// Goes on in a checkpoint, without what it was taken from.
    fn move_into_a_checkpoint(&mut self) {
        self.snapshots.clear();
        let target = self.beside("next life");
        self.store.keyspace().backup_to(&target).expect("checkpoint");
        self.insert_elsewhere();
        self.store.close();
        std::fs::remove_dir_all(self.store.path()).expect("remove");
        std::fs::rename(&target, self.store.path()).expect("rename");
        self.store.open();
        self.compare("in a checkpoint");
    }

    /// Written behind the checkpoint's back: must not show there.
    fn insert_elsewhere(&mut self) {
        for name in self.store.keyspace().partitions() {
            self.store.write(&name, "behind the checkpoint", "must not show");
        }
    }

    fn check_directory(&self, target: &std::path::Path, expected: &Content, what: &str) {
        let report = esker::verify(target, VerifyOptions::default()).expect("verify");
        assert!(report.is_sound() && report.strays.is_empty(), "{} {report:?}", self.place());
        assert!(open_content(target) == *expected, "{} {what}", self.place());
    }

    fn compare(&mut self, when: &str) {
        let found = self.store.content();
        let names = |content: &Content| content.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&self.model), "{} {when}", self.place());
        for (name, expected) in &self.model {
            let differs = first_difference(expected, &found[name]);
            assert!(differs.is_none(), "{} {when}, {name}: {differs:?}", self.place());
        }
    }
}

fn owned(entry: esker::Result<(Slice, Slice)>) -> (Vec<u8>, Vec<u8>) {
    let (key, value) = entry.expect("read");
    (key.to_vec(), value.to_vec())
}

/// The first key at which two partitions differ, short enough to print.
fn first_difference(
    expected: &BTreeMap<Vec<u8>, Vec<u8>>,
    found: &BTreeMap<Vec<u8>, Vec<u8>>,
) -> Option<String> {
    let mut keys: Vec<_> = expected.keys().chain(found.keys()).collect();
    keys.sort();
    let key = keys.into_iter().find(|key| expected.get(*key) != found.get(*key))?;
    let show = |value: Option<&Vec<u8>>| value.map(|v| (v.len(), v[..v.len().min(16)].to_vec()));
    let name = String::from_utf8_lossy(&key[..key.len().min(20)]).into_owned();
    Some(format!(
        "{name:?}: expected {:?}, found {:?}",
        show(expected.get(key)),
        show(found.get(key))
    ))
}
