//! Partitions come and go; tables are written and merged; what the keyspace says about itself.

use std::sync::Arc;

use esker::{Config, Error, PartitionOptions};

use super::machine::Machine;
use super::operation::{At, Operation, Read};
use super::oracle::refused;
use super::reads;
use super::settings::SETTINGS;
use super::writes::durability;

/// The options of another set.
fn other_options(number: u8) -> PartitionOptions {
    (SETTINGS[usize::from(number) % SETTINGS.len()].options)()
}

fn is_invalid(error: &Error) -> bool {
    matches!(error, Error::InvalidInput(_))
}

impl Machine {
    pub(super) fn on_structure(&mut self, operation: &Operation) -> bool {
        match *operation {
            Operation::Flush => self.flush(),
            Operation::Compact(at) => {
                let name = self.ensure(at);
                self.handle(name).compact().expect("compact");
            }
            Operation::CompactAll => {
                for name in self.model.keys() {
                    self.handle(name).compact().expect("compact");
                }
            }
            Operation::Persist(mode) => self.keyspace().persist(durability(mode)).expect("persist"),
            Operation::CreateAnew(at) => {
                self.drop_partition(self.name(at));
                self.ensure(at);
            }
            Operation::CreateWithOptions(at, number) => {
                self.drop_partition(self.name(at));
                self.create(self.name(at), other_options(number));
            }
            Operation::OpenWithOtherOptions(at, number) => {
                let name = self.ensure(at);
                self.open_with_other_options(name, number);
            }
            Operation::Clear(at) => self.clear(at),
            Operation::DropPartition(at) => return self.drop_partition(self.name(at)),
            Operation::DropMissingPartition => {
                let dropped = self.keyspace().drop_partition("missing").expect("drop nothing");
                assert!(!dropped, "there is nothing to drop");
            }
            Operation::ReadDroppedPartition(which, read) => return self.read_dropped(which, read),
            Operation::WriteToDroppedPartition(which) => self.write_to_dropped(which),
            Operation::Statistics => self.statistics(),
            Operation::Listing => self.listing(),
            Operation::RefusedArguments(at) => self.refused_arguments(at),
            _ => unreachable!("{operation:?} is no operation on partitions"),
        }
        true
    }

    /// What contradicts the stored options is refused by name, and what does not is not.
    fn open_with_other_options(&self, name: &str, number: u8) {
        let stored = &self.model[name].options;
        let open = |options| self.keyspace().partition(name, options);
        for options in [PartitionOptions::default(), stored.clone(), other_options(number)] {
            match open(options.clone()) {
                Ok(opened) => assert_eq!(opened.options(), *stored, "options stay"),
                Err(error) => {
                    assert!(is_invalid(&error) && options != *stored, "{error}");
                    assert_ne!(options, PartitionOptions::default(), "nothing was set: {error}");
                }
            }
        }
        // No set of options has such blocks.
        let contradicting = open(PartitionOptions::default().block_bytes(2048));
        let by_name = |e: &Error| is_invalid(e) && e.to_string().contains("block_bytes is ");
        refused(contradicting, "other blocks than the partition has", by_name);
        assert_eq!(self.handle(name).options(), *stored, "options stay");
    }

    fn flush(&self) {
        self.keyspace().flush().expect("flush");
        for (name, modelled) in &self.model {
            let on_disk = self.handle(name).disk_space();
            assert!(on_disk > 0 || modelled.entries.is_empty(), "{name} is in tables");
        }
        assert!(self.model.is_empty() || self.keyspace().disk_space() > 0, "space on disk");
    }

    fn clear(&mut self, at: At) {
        let name = self.ensure(at);
        self.handle(name).clear().expect("clear");
        self.seqno += 1;
        // Snapshots share the old entries: the model moves on to new ones as the engine does.
        self.model.get_mut(name).expect("the partition exists").entries = Arc::default();
    }

    pub(super) fn drop_partition(&mut self, name: &str) -> bool {
        let there = self.model.contains_key(name);
        if there {
            self.remember_dropped(name);
            self.model.remove(name);
            self.seqno += 1;
        }
        let dropped = self.keyspace().drop_partition(name).expect("drop");
        assert_eq!(dropped, there, "{name} was there to be dropped");
        there
    }

    fn read_dropped(&mut self, which: u8, read: Read) -> bool {
        let (partition, entries) = self.some_dropped(which);
        reads::check(partition, entries, read)
    }

    fn write_to_dropped(&mut self, which: u8) {
        let (partition, _) = self.some_dropped(which);
        let dropped = |e: &Error| matches!(e, Error::PartitionDropped { .. });
        refused(partition.insert("key", "value"), "an insert into what was dropped", dropped);
        refused(partition.remove("key"), "a removal from what was dropped", dropped);
        refused(partition.clear(), "a clear of what was dropped", dropped);
    }

    fn statistics(&self) {
        let statistics = self.keyspace().statistics();
        assert_eq!(statistics.seqno, self.seqno);
        assert_eq!(statistics.open_snapshots, self.snapshots.len() as u64, "open snapshots");
        assert_eq!(statistics.checkpoints, self.checkpoints, "checkpoints since the opening");
        assert!(statistics.groups <= statistics.commits, "{statistics:?}");
        assert!(statistics.cache_bytes <= statistics.cache_bytes_max, "{statistics:?}");
        let named = statistics.partitions.iter().map(|p| &p.name);
        assert!(named.eq(self.model.keys()), "{statistics:?}");
        for of_partition in &statistics.partitions {
            let len = self.model[&of_partition.name].entries.len();
            assert!(of_partition.approximate_len >= len as u64, "{of_partition:?}, {len} entries");
            assert!(self.handle(&of_partition.name).approximate_len() >= len);
        }
    }

    fn listing(&self) {
        let keyspace = self.keyspace();
        assert!(keyspace.partitions().iter().eq(self.model.keys()), "the partitions");
        for (name, modelled) in &self.model {
            let partition = self.handle(name);
            assert_eq!(partition.name(), name);
            assert_eq!(partition.options(), modelled.options, "the options of {name}");
        }
        assert!(keyspace.open_partition("missing").expect("look").is_none());
        assert_eq!(keyspace.path(), self.path());
        assert_eq!((keyspace.uuid(), keyspace.timeline()), self.identity);
    }

    fn refused_arguments(&mut self, at: At) {
        let name = self.ensure(at);
        let (keyspace, partition) = (self.keyspace().clone(), self.handle(name));
        refused(partition.insert("", "value"), "an empty key", is_invalid);
        refused(partition.remove(vec![0; 65_536]), "a key that is too long", is_invalid);
        for bad in ["", "a/b", "a\0b", &"n".repeat(256)] {
            let created = keyspace.partition(bad, PartitionOptions::default());
            refused(created, "a bad name", is_invalid);
        }
        let bad = PartitionOptions::default().block_bytes(1);
        refused(keyspace.partition("new", bad), "bad options", is_invalid);
        let config = Config::new(self.path()).worker_threads(0);
        refused(config.open(), "no workers", is_invalid);
        let target = self.target();
        let some = keyspace.checkpoint().include(["missing"]);
        let missing = |e: &Error| matches!(e, Error::NoSuchPartition { .. });
        refused(some.write_to(&target), "a checkpoint of what is missing", missing);
        let inside = keyspace.backup_to(self.path().join("inside"));
        let is_inside = |e: &Error| matches!(e, Error::TargetInside { .. });
        refused(inside, "a checkpoint into the keyspace", is_inside);
        let exists = |e: &Error| matches!(e, Error::TargetExists { .. });
        refused(keyspace.backup_to(self.shelf.path()), "a target that is there", exists);
        assert!(!target.exists(), "nothing is left of what was refused");
    }
}
