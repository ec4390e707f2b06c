//! Inserts, removals and batches, alone and from several threads.

use std::collections::BTreeMap;
use std::sync::Arc;

use esker::{Batch, Config, Durability, Error, Result, Slice, TxKind, WriteTx};

use super::machine::Machine;
use super::operation::{At, Change, Ending, Key, Loading, Read, Updating, Value};
use super::oracle::refused;
use super::reads::{self, Within};

pub(super) fn durability(number: u8) -> Durability {
    [Durability::Buffer, Durability::SyncData, Durability::SyncAll][usize::from(number) % 3]
}

impl Machine {
    pub(super) fn insert(&mut self, at: At, key: Key, value: Value) -> bool {
        let name = self.ensure(at);
        let (key, value) = (key.bytes(), self.value(value));
        self.handle(name).insert(&key[..], &value[..]).expect("insert");
        self.seqno += 1;
        self.entries(name).insert(key, value);
        true
    }

    pub(super) fn remove(&mut self, at: At, key: Key) -> bool {
        let name = self.ensure(at);
        let key = key.bytes();
        self.handle(name).remove(&key[..]).expect("remove");
        self.seqno += 1;
        self.entries(name).remove(&key);
        true
    }

    /// Later changes of a key win over earlier ones, and all of them are one commit.
    pub(super) fn batch(&mut self, changes: &[Change], mode: Option<u8>) -> bool {
        let mut batch = self.keyspace().batch();
        for (at, key, value) in changes {
            let name = self.ensure(*at);
            let (partition, key) = (self.handle(name), key.bytes());
            match value {
                Some(value) => {
                    let value = self.value(*value);
                    batch.insert(&partition, &key[..], &value[..]);
                    self.entries(name).insert(key, value);
                }
                None => {
                    batch.remove(&partition, &key[..]);
                    self.entries(name).remove(&key);
                }
            }
        }
        assert_eq!(batch.len(), changes.len(), "the length of a batch");
        if let Some(mode) = mode {
            batch.durability(durability(mode));
        }
        let seqno = batch.commit().expect("commit");
        self.seqno += 1;
        assert_eq!(seqno, self.seqno, "the number of a commit");
        true
    }

    pub(super) fn empty_batch(&self, mode: Option<u8>) -> bool {
        let mut batch = self.keyspace().batch();
        if let Some(mode) = mode {
            batch.durability(durability(mode));
        }
        assert!(batch.is_empty(), "an empty batch");
        assert_eq!(batch.commit().expect("commit nothing"), self.seqno, "an empty commit");
        true
    }

    /// Every change reads before it writes, and most of them something else behind it; in the end the
    /// transaction sees what the model has with the changes, and what is left is that, or nothing of it.
    pub(super) fn transaction(
        &mut self,
        changes: &[Change],
        reads: &[Read],
        ending: Ending,
    ) -> bool {
        let keyspace = self.transactional().clone();
        if matches!(ending, Ending::Overtaken) && keyspace.kind() == TxKind::SingleWriter {
            // Who overtakes would wait.
            return false;
        }
        changes.iter().for_each(|(at, ..)| _ = self.ensure(*at));
        let mut tx = keyspace.write_tx().expect("begin");
        let mut own = BTreeMap::new();
        // Who has read everything is overtaken by everybody.
        let reads = if matches!(ending, Ending::Overtaken) { &[] } else { reads };
        for (number, (at, key, value)) in changes.iter().enumerate() {
            let name = self.ensure(*at);
            let (partition, key) = (self.handle(name), key.bytes());
            let below = &self.model[name].entries;
            let entries = own.entry(name).or_insert_with(|| below.as_ref().clone());
            let found = tx.get(&partition, &key).expect("get").map(|value| value.to_vec());
            assert_eq!(found.as_ref(), entries.get(&key), "a transaction reads {key:?}");
            match value {
                Some(value) => {
                    let value = self.value(*value);
                    tx.insert(&partition, &key[..], &value[..]).expect("insert");
                    entries.insert(key, value);
                }
                // Taking what is not there changes nothing; removing it does.
                None if found.is_some() => {
                    let taken = tx.take(&partition, &key[..]).expect("take");
                    assert_eq!(taken.map(|value| value.to_vec()), entries.remove(&key), "taken");
                }
                None => tx.remove(&partition, &key[..]).expect("remove"),
            }
            if let Some(read) = reads.get(number % reads.len().max(1)) {
                reads::check(&Within(&tx, &partition), entries, *read);
            }
        }
        let whole = own.iter().filter(|_| !matches!(ending, Ending::Overtaken));
        for (name, entries) in whole {
            let partition = self.handle(name);
            let pair = |entry: Result<(Slice, Slice)>| {
                let (key, value) = entry.expect("an entry");
                (key.to_vec(), value.to_vec())
            };
            let found = tx.iter(&partition).expect("iterate").map(pair);
            assert!(found.eq(entries.clone()), "{name} as the transaction sees it");
            assert_eq!(tx.len(&partition).expect("count"), entries.len());
            let last =
                tx.last_key_value(&partition).map(|entry| entry.map(|(key, _)| key.to_vec()));
            assert_eq!(last.expect("the last").as_ref(), entries.keys().next_back());
        }
        match ending {
            Ending::Rollback => tx.rollback(),
            Ending::Commit => {
                assert_eq!(tx.commit().expect("commit"), self.seqno + 1, "the number");
                self.seqno += 1;
                own.into_iter().for_each(|(name, entries)| *self.entries(name) = entries);
            }
            Ending::Overtaken => {
                // What the first change read.
                let (at, key, _) = &changes[0];
                let value = Value { len: 9, compressible: false };
                self.insert(*at, *key, value);
                // That is not forgotten behind later ones.
                let others = [0, 1, 2].map(|number| Key { shape: 0, number });
                others.into_iter().filter(|other| other.bytes() != key.bytes()).for_each(|other| {
                    _ = self.insert(*at, other, value);
                });
                let conflict = |e: &Error| matches!(e, Error::Conflict);
                refused(tx.commit(), "a transaction that was overtaken", conflict);
            }
        }
        true
    }

    /// A key is changed by what it holds, in a transaction of its own; what stays the same is no commit.
    pub(super) fn update(&mut self, at: At, key: Key, value: Option<Value>, way: Updating) -> bool {
        let name = self.ensure(at);
        let keyspace = self.transactional().clone();
        let partition = keyspace.open_partition(name).expect("open a partition");
        let partition = partition.expect("a partition of the model is there");
        let key = key.bytes();
        let before = self.model[name].entries.get(&key).cloned();
        let taken = matches!(way, Updating::Take);
        let value = value.filter(|_| !taken).map(|value| self.value(value));
        let change = |found: Option<&Slice>| {
            assert_eq!(found.map(|value| value.to_vec()), before, "what an update is given");
            value.clone().map(Slice::from)
        };
        let same = |found: Option<Slice>, expected: &Option<Vec<u8>>| {
            assert_eq!(found.map(|value| value.to_vec()), *expected, "what {way:?} returns");
        };
        match way {
            Updating::FetchUpdate => {
                same(partition.fetch_update(&key[..], change).expect("fetch, update"), &before);
            }
            Updating::UpdateFetch => {
                same(partition.update_fetch(&key[..], change).expect("update, fetch"), &value);
            }
            Updating::Take => same(partition.take(&key[..]).expect("take"), &before),
            Updating::Transact => {
                let work = |tx: &mut WriteTx| {
                    same(tx.fetch_update(&partition, &key[..], change)?, &before);
                    tx.update_fetch(&partition, &key[..], |found| {
                        assert_eq!(found.map(|found| found.to_vec()), value, "its own change");
                        found.cloned()
                    })
                };
                same(keyspace.transact(work).expect("transact"), &value);
            }
            Updating::TransactInVain => {
                let work = |tx: &mut WriteTx| {
                    tx.update_fetch(&partition, &key[..], change)?;
                    Err::<(), _>(Error::InvalidInput("in vain".into()))
                };
                let in_vain = |e: &Error| matches!(e, Error::InvalidInput(_));
                refused(keyspace.transact(work), "a transaction that fails", in_vain);
                return true;
            }
        }
        self.seqno += u64::from(value != before);
        match value {
            Some(value) => _ = self.entries(name).insert(key, value),
            None => _ = self.entries(name).remove(&key),
        }
        true
    }

    /// The keys in their order; what is written beside it is older, whatever came first.
    pub(super) fn ingest(
        &mut self,
        at: At,
        entries: &[(Key, Option<Value>)],
        beside: &[Change],
        ending: Loading,
    ) -> bool {
        let name = self.ensure(at);
        let partition = self.handle(name);
        let sorted: BTreeMap<_, _> = entries.iter().map(|(k, v)| (k.bytes(), *v)).collect();
        let mut ingest = partition.ingest().expect("begin an ingest");
        let mut loaded = Vec::new();
        for (number, (key, value)) in sorted.into_iter().enumerate() {
            if number == entries.len() / 3 && !beside.is_empty() {
                self.batch(beside, None);
            }
            let value = value.map(|value| self.value(value));
            match &value {
                Some(value) => ingest.insert(&key[..], &value[..]).expect("add"),
                None => ingest.remove(&key[..]).expect("add a removal"),
            }
            let again = ingest.insert(&key[..], "once more");
            refused(again, "a key twice", |e| matches!(e, Error::InvalidInput(_)));
            loaded.push((key, value));
        }
        match ending {
            Loading::GiveUp => drop(ingest),
            Loading::Clear => {
                partition.clear().expect("clear");
                self.seqno += 1;
                self.model.get_mut(name).expect("it is there").entries = Arc::default();
                if !loaded.is_empty() {
                    let cleared = |e: &Error| matches!(e, Error::PartitionCleared { .. });
                    refused(ingest.finish(), "an ingest into what was cleared", cleared);
                }
            }
            Loading::Finish => {
                let report = ingest.finish().expect("finish an ingest");
                assert_eq!(report.entries, loaded.len() as u64);
                self.seqno += u64::from(!loaded.is_empty());
                assert_eq!(report.seqno, self.seqno, "the number of an ingest");
                for (key, value) in loaded {
                    let entries = self.entries(name);
                    match value {
                        Some(value) => entries.insert(key, value),
                        None => entries.remove(&key),
                    };
                }
            }
        }
        true
    }

    /// The changes in a batch that nothing came of yet.
    fn filled(&mut self, changes: &[Change]) -> Batch {
        let mut batch = self.keyspace().batch();
        for (at, key, value) in changes {
            let name = self.ensure(*at);
            let (partition, key) = (self.handle(name), key.bytes());
            match value {
                Some(_) => batch.insert(&partition, key, "must not show"),
                None => batch.remove(&partition, key),
            };
        }
        batch
    }

    pub(super) fn dropped_batch(&mut self, changes: &[Change]) -> bool {
        drop(self.filled(changes));
        true
    }

    /// One bad change refuses the whole batch.
    pub(super) fn refused_batch(&mut self, changes: &[Change], fault: u8) -> bool {
        let mut batch = self.filled(changes);
        let name = self.ensure(changes[0].0);
        let partition = self.handle(name);
        match (fault % 4, self.dropped.first()) {
            (0, _) => _ = batch.insert(&partition, "", "no key"),
            (1, _) => _ = batch.remove(&partition, vec![b'k'; 65_536]),
            (2, Some((dropped, _))) => {
                batch.insert(dropped, "key", "value");
                let dropped = |e: &Error| matches!(e, Error::PartitionDropped { .. });
                refused(batch.commit(), "a batch with a dropped partition", dropped);
                return true;
            }
            _ => {
                let config = (self.config)(Config::new(self.target()).journal_segment_bytes(4096));
                let elsewhere = config.worker_threads(1).open().expect("another keyspace");
                let foreign = elsewhere.partition(name, Default::default()).expect("create");
                batch.insert(&foreign, "key", "value");
            }
        }
        let invalid = |e: &Error| matches!(e, Error::InvalidInput(_));
        refused(batch.commit(), "a batch with a bad change", invalid);
        true
    }

    /// Every commit gets a number of its own, and a thread's come in its order.
    pub(super) fn writers_at_once(&mut self, at: At, writers: u8, each: u8, mode: u8) -> bool {
        let name = self.ensure(at);
        let (keyspace, partition) = (self.keyspace().clone(), self.handle(name));
        let value = self.value(Value { len: 20, compressible: false });
        let write = |writer: u8| {
            let commit = |number: u8| {
                let mut batch = keyspace.batch();
                batch.insert(&partition, format!("writer {writer} {number}"), &value[..]);
                batch.durability(durability(mode));
                batch.commit().expect("commit")
            };
            (0..each).map(commit).collect::<Vec<_>>()
        };
        let mut numbers = std::thread::scope(|scope| {
            let write = &write;
            let threads: Vec<_> = (0..writers).map(|w| scope.spawn(move || write(w))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<u64>>| {
                let numbers = thread.join().expect("a writer");
                assert!(numbers.is_sorted(), "the commits of one thread: {numbers:?}");
                numbers
            };
            threads.into_iter().flat_map(join).collect::<Vec<u64>>()
        });
        numbers.sort_unstable();
        let expected: Vec<_> = (1..=numbers.len() as u64).map(|n| self.seqno + n).collect();
        assert_eq!(numbers, expected, "the commits of all threads");
        self.seqno += numbers.len() as u64;
        let modelled = self.model.get_mut(name).expect("the partition exists");
        let entries = Arc::make_mut(&mut modelled.entries);
        for writer in 0..writers {
            for number in 0..each {
                entries.insert(format!("writer {writer} {number}").into_bytes(), value.clone());
            }
        }
        true
    }
}
