//! How a keyspace ends and begins again: closed, dropped, crashed, moved, and what is refused
//! meanwhile.

use esker::{Config, CopyOptions, Error, VerifyOptions};

use super::machine::Machine;
use super::operation::{At, Operation, Read};
use super::oracle::{assert_same, refused};
use super::reads;
use super::settings::SETTINGS;
use crate::files::crash_image;

fn is_locked(error: &Error) -> bool {
    matches!(error, Error::Locked { .. })
}

fn is_closed(error: &Error) -> bool {
    matches!(error, Error::Closed { .. })
}

fn is_read_only(error: &Error) -> bool {
    matches!(error, Error::ReadOnly { .. })
}

impl Machine {
    pub(super) fn on_lives(&mut self, operation: &Operation) -> bool {
        match *operation {
            Operation::MoveIntoACheckpoint => self.move_into_a_checkpoint(),
            Operation::Verify => {
                self.close();
                self.check_sound(&self.path());
                self.open();
            }
            Operation::Reopen => self.reopen(),
            Operation::ReopenByDropping => {
                self.let_go();
                drop(self.keyspace.take());
                self.open();
            }
            Operation::ReopenWith(number) => {
                self.config = SETTINGS[usize::from(number) % SETTINGS.len()].config;
                self.reopen();
            }
            Operation::CloseUnderAnIterator(at) => self.close_under_an_iterator(at),
            Operation::UseAfterClose(at) => self.use_after_close(at),
            Operation::ReadOnly { readers } => self.read_only(readers),
            Operation::OpenTwice => self.open_twice(),
            Operation::Crash { look } => self.crash(look),
            Operation::CrashBesideACopy => self.crash_beside_a_copy(),
            Operation::CrashInRecovery => {
                self.cut();
                self.open();
                self.crash(false);
            }
            _ => unreachable!("{operation:?} is no operation on a whole keyspace"),
        }
        true
    }

    /// Drops everything that belongs to the open keyspace.
    fn let_go(&mut self) {
        self.snapshots.clear();
        self.iterators.clear();
        self.dropped.clear();
    }

    pub(super) fn close(&mut self) {
        self.let_go();
        self.keyspace.take().expect("the keyspace is open").close().expect("close");
    }

    pub(super) fn open(&mut self) {
        let keyspace = self.config().open_transactional(self.kind()).expect("open");
        assert_eq!((keyspace.uuid(), keyspace.timeline()), self.identity, "the same history");
        assert_eq!(keyspace.seqno(), self.seqno, "the newest commit after opening");
        self.keyspace = Some(keyspace);
        self.checkpoints = 0;
    }

    pub(super) fn reopen(&mut self) {
        self.close();
        self.open();
        self.compare("after reopening");
    }

    /// The process dies: what is on disk now is all there is.
    fn cut(&mut self) {
        let image = crash_image(&self.path());
        // The old directory goes on without us; nobody looks at it again.
        self.let_go();
        drop(self.keyspace.take());
        self.directory = image;
    }

    fn crash(&mut self, look: bool) {
        self.cut();
        if look {
            let looked = Config::new(self.path()).read_only(true).open().expect("open read-only");
            assert_same(&looked, &self.frozen(), "read-only after a crash");
        }
        self.open();
        self.compare("after a crash");
    }

    fn crash_beside_a_copy(&mut self) {
        self.cut();
        let target = self.target();
        let report = esker::cold_copy(self.path(), &target, CopyOptions::default()).expect("copy");
        assert_eq!(report.seqno, self.seqno, "the commit of a copy of what crashed");
        self.keep(target, self.seqno, self.frozen(), "a copy of what crashed");
        self.open();
        self.compare("after a crash and a copy");
    }

    /// Goes on in a checkpoint, without what it was taken from.
    fn move_into_a_checkpoint(&mut self) {
        let target = self.target();
        self.keyspace().backup_to(&target).expect("checkpoint");
        for name in self.model.keys() {
            self.handle(name).insert("behind the checkpoint", "must not show").expect("insert");
        }
        self.close();
        std::fs::remove_dir_all(self.path()).expect("remove");
        std::fs::rename(&target, self.path()).expect("rename");
        let opened = self.config().open_transactional(self.kind());
        let keyspace = opened.expect("open the checkpoint");
        assert_eq!(keyspace.uuid(), self.identity.0, "the same keyspace");
        assert_ne!(keyspace.timeline(), self.identity.1, "another history");
        assert_eq!(keyspace.seqno(), self.seqno, "the commit of the checkpoint");
        self.identity.1 = keyspace.timeline();
        self.keyspace = Some(keyspace);
        self.checkpoints = 0;
        self.compare("in a checkpoint");
    }

    /// The iterator goes on reading, and keeps everybody out until it is gone.
    fn close_under_an_iterator(&mut self, at: At) {
        let name = self.ensure(at);
        let mut iter = self.handle(name).iter().expect("iterate");
        let bounds = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        let mut left = reads::within(&self.model[name].entries, &bounds).collect();
        reads::take_from_both(&mut iter, &mut left, 3, 0b010);
        self.close();
        refused(self.config().open(), "an open beside an iterator", is_locked);
        let steps = left.len() + 1;
        reads::take_from_both(&mut iter, &mut left, steps, 0b1100_0101);
        drop(iter);
        self.open();
    }

    fn use_after_close(&mut self, at: At) {
        let name = self.ensure(at);
        let (keyspace, partition) = (self.keyspace().clone(), self.handle(name));
        let snapshot = keyspace.snapshot();
        let mut batch = keyspace.batch();
        batch.insert(&partition, "key", "value");
        self.close();
        refused(batch.commit(), "a commit", is_closed);
        refused(partition.insert("key", "value"), "an insert", is_closed);
        refused(partition.get("key"), "a get", is_closed);
        refused(partition.iter(), "an iterator", is_closed);
        refused(partition.clear(), "a clear", is_closed);
        refused(partition.compact(), "a compaction", is_closed);
        refused(snapshot.get(&partition, "key"), "a snapshot's get", is_closed);
        refused(keyspace.flush(), "a flush", is_closed);
        refused(keyspace.partition("new", Default::default()), "a new partition", is_closed);
        refused(keyspace.drop_partition(name), "a drop", is_closed);
        refused(keyspace.backup_to(self.target()), "a checkpoint", is_closed);
        assert_eq!(keyspace.seqno(), self.seqno, "the newest commit is still known");
        keyspace.close().expect("close again");
        // The handles of the closed keyspace live on beside the new one.
        self.open();
        refused(partition.insert("key", "value"), "an insert beside a new opening", is_closed);
    }

    fn read_only(&mut self, readers: u8) {
        self.close();
        let open = |_| Config::new(self.path()).read_only(true).open().expect("open read-only");
        let opened: Vec<_> = (0..readers).map(open).collect();
        for reader in &opened {
            assert_eq!(reader.seqno(), self.seqno, "the newest commit, read-only");
            assert_same(reader, &self.frozen(), "read-only");
            refused(reader.partition("new", Default::default()), "a new one", is_read_only);
            refused(reader.persist(esker::Durability::SyncData), "a persist", is_read_only);
            refused(reader.backup_to(self.shelf.path().join("no")), "a checkpoint", is_read_only);
            for (name, modelled) in &self.model {
                let partition = reader.open_partition(name).expect("open").expect("is listed");
                refused(partition.insert("key", "value"), "an insert", is_read_only);
                refused(partition.clear(), "a clear", is_read_only);
                reads::check(&partition, &modelled.entries, Read::Ends);
            }
        }
        refused(self.config().open(), "a writer beside readers", is_locked);
        drop(opened);
        self.open();
    }

    fn open_twice(&mut self) {
        let target = self.target();
        refused(self.config().open(), "a second writer", is_locked);
        refused(self.config().read_only(true).open(), "a reader beside a writer", is_locked);
        refused(esker::verify(self.path(), VerifyOptions::default()), "a verify", is_locked);
        let copied = esker::cold_copy(self.path(), &target, CopyOptions::default());
        refused(copied, "a cold copy of what is open", is_locked);
        assert!(!target.exists(), "nothing is left of what was refused");
    }
}
