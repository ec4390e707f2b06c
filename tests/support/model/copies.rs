//! Checkpoints and copies: exact at their commit, now and much later, whatever becomes of the source.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use esker::{CheckpointBuilder, Config, CopyOptions, Keyspace, Transfer};

use super::machine::{Kept, Machine};
use super::operation::{At, Operation, Taking};
use super::oracle::{Frozen, assert_same};

/// Checkpoints and copies that stay.
const KEPT_MAX: usize = 3;
/// Commits beside a checkpoint, at most.
const BESIDE_MAX: u64 = 200;

fn prepare<'a>(keyspace: &'a Keyspace, taking: Taking) -> CheckpointBuilder<'a> {
    let transfer = if taking.copied { Transfer::Copy } else { Transfer::Auto };
    let builder = keyspace.checkpoint().transfer(transfer).progress(|progress| {
        assert!(progress.files_done <= progress.files_total.max(progress.files_done));
    });
    builder.flush_first(taking.flush_first).verify(taking.verify)
}

/// Whether this module plays it.
pub(super) fn takes_copies(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Checkpoint(_)
            | Operation::CheckpointOfSome { .. }
            | Operation::CheckpointBesideAWriter(..)
            | Operation::CompareKept(_)
            | Operation::WriteToKept(_)
            | Operation::ColdCopy { .. }
            | Operation::CopyACheckpoint(_)
    )
}

impl Machine {
    pub(super) fn on_copies(&mut self, operation: &Operation) {
        match *operation {
            Operation::Checkpoint(taking) => self.checkpoint(taking),
            Operation::CheckpointOfSome { taking, include, mask } => {
                self.checkpoint_of_some(taking, include, mask);
            }
            Operation::CheckpointBesideAWriter(at, taking) => {
                self.checkpoint_beside_a_writer(at, taking);
            }
            Operation::CompareKept(which) => self.compare_kept(which),
            Operation::WriteToKept(which) => self.write_to_kept(which),
            Operation::ColdCopy { copied, verify } => self.cold_copy(copied, verify),
            Operation::CopyACheckpoint(which) => self.copy_a_checkpoint(which),
            _ => unreachable!("{operation:?} is no operation on copies"),
        }
    }

    /// Looks at a new directory, and keeps it in the place of an older one.
    pub(super) fn keep(&mut self, path: PathBuf, seqno: u64, content: Frozen, what: &str) {
        self.check_directory(&path, seqno, &content, what);
        if self.kept.len() == KEPT_MAX {
            let oldest = self.kept.remove(self.taken as usize % KEPT_MAX);
            std::fs::remove_dir_all(oldest.path).expect("remove a directory");
        }
        self.kept.push(Kept { path, seqno, content });
    }

    fn checkpoint(&mut self, taking: Taking) {
        let target = self.target();
        let keyspace = self.keyspace().clone();
        let report = prepare(&keyspace, taking).write_to(&target).expect("checkpoint");
        self.checkpoints += 1;
        assert_eq!(report.seqno, self.seqno, "the commit of a checkpoint");
        assert!(report.partitions.iter().eq(self.model.keys()), "{report:?}");
        assert!(!taking.copied || report.linked.files == 0, "copied, not linked: {report:?}");
        self.keep(target, self.seqno, self.frozen(), "a checkpoint");
    }

    fn checkpoint_of_some(&mut self, taking: Taking, include: bool, mask: u8) {
        let target = self.target();
        let keyspace = self.keyspace().clone();
        let all = self.frozen();
        let chosen = |n: usize| mask >> n & 1 == 1;
        let named = all.keys().enumerate().filter(|(n, _)| chosen(*n)).map(|(_, name)| name);
        let mut builder = prepare(&keyspace, taking);
        builder = if include { builder.include(named) } else { builder.exclude(named) };
        let report = builder.write_to(&target).expect("checkpoint of some");
        self.checkpoints += 1;
        let (mut expected, mut left_out) = (Frozen::new(), Vec::new());
        for (n, (name, entries)) in all.iter().enumerate() {
            if chosen(n) == include {
                expected.insert(name.clone(), Arc::clone(entries));
            } else {
                left_out.push(name.clone());
            }
        }
        assert_eq!(report.left_out, left_out, "{report:?}");
        self.keep(target, self.seqno, expected, "a checkpoint of some partitions");
    }

    /// The writer tells the number of each of its commits, and so what the checkpoint must hold.
    fn checkpoint_beside_a_writer(&mut self, at: At, taking: Taking) {
        let name = self.ensure(at);
        let target = self.target();
        let (keyspace, partition) = (self.keyspace().clone(), self.handle(name));
        let stop = AtomicBool::new(false);
        let write = || {
            let mut written = Vec::new();
            while !stop.load(Ordering::Relaxed) && (written.len() as u64) < BESIDE_MAX {
                let number = written.len();
                let (key, value) = (format!("beside {}", number % 10), format!("commit {number}"));
                let mut batch = keyspace.batch();
                batch.insert(&partition, key.as_bytes(), value.as_bytes());
                written.push((batch.commit().expect("commit"), key, value));
            }
            written
        };
        let (report, written) = std::thread::scope(|scope| {
            let writer = scope.spawn(write);
            let report = prepare(&keyspace, taking).write_to(&target);
            stop.store(true, Ordering::Relaxed);
            (report, writer.join().expect("the writer"))
        });
        let report = report.expect("checkpoint beside a writer");
        self.checkpoints += 1;
        let mut expected = self.frozen();
        for (seqno, key, value) in written {
            self.seqno += 1;
            assert_eq!(seqno, self.seqno, "the writer's commits");
            let (key, value) = (key.into_bytes(), value.into_bytes());
            if seqno <= report.seqno {
                let entries = expected.get_mut(name).expect("the writer's partition");
                Arc::make_mut(entries).insert(key.clone(), value.clone());
            }
            self.entries(name).insert(key, value);
        }
        self.keep(target, report.seqno, expected, "a checkpoint beside a writer");
    }

    /// One that was kept, a new checkpoint if there is none.
    fn some_kept(&mut self, which: u8) -> usize {
        if self.kept.is_empty() {
            self.checkpoint(Taking { copied: false, flush_first: false, verify: false });
        }
        usize::from(which) % self.kept.len()
    }

    pub(super) fn compare_kept(&mut self, which: u8) {
        let n = self.some_kept(which);
        let Kept { path, seqno, content } = &self.kept[n];
        self.check_directory(path, *seqno, content, "what was kept");
    }

    /// Goes on in a checkpoint or copy: a history of its own, that the source does not see.
    fn write_to_kept(&mut self, which: u8) {
        let n = self.some_kept(which);
        let Kept { path, mut seqno, mut content } = self.kept.remove(n);
        let config = (self.config)(Config::new(&path).journal_segment_bytes(1 << 20));
        let opened = config.open().expect("open what was kept");
        assert_eq!((opened.uuid(), opened.seqno()), (self.identity.0, seqno), "kept");
        assert_ne!(opened.timeline(), self.identity.1, "a history of its own");
        assert_same(&opened, &content, "opened for writing");
        for (name, entries) in &mut content {
            let partition = opened.open_partition(name).expect("open").expect("is listed");
            partition.insert("behind the source's back", "must not show there").expect("insert");
            seqno += 1;
            let entry = (b"behind the source's back".to_vec(), b"must not show there".to_vec());
            Arc::make_mut(entries).extend([entry]);
        }
        assert_same(&opened, &content, "written to");
        opened.close().expect("close what was kept");
        self.check_directory(&path, seqno, &content, "what was kept and written to");
        self.kept.push(Kept { path, seqno, content });
    }

    fn cold_copy(&mut self, copied: bool, verify: bool) {
        self.close();
        let target = self.target();
        let transfer = if copied { Transfer::Copy } else { Transfer::Auto };
        let options = CopyOptions::default().transfer(transfer).verify(verify);
        let report = esker::cold_copy(self.path(), &target, options).expect("cold copy");
        assert_eq!(report.seqno, self.seqno, "the commit of a copy");
        self.keep(target, self.seqno, self.frozen(), "a cold copy");
        self.open();
    }

    fn copy_a_checkpoint(&mut self, which: u8) {
        let n = self.some_kept(which);
        let target = self.target();
        let Kept { path, seqno, content } = &self.kept[n];
        let report = esker::cold_copy(path, &target, CopyOptions::default()).expect("copy a copy");
        assert_eq!(report.seqno, *seqno, "the commit of a copy of a copy");
        let (seqno, content) = (*seqno, content.clone());
        self.keep(target, seqno, content, "a copy of what was kept");
    }
}
