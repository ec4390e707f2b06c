//! Steps that push.

use std::collections::BTreeSet;
use std::sync::Arc;

use esker_archive::PushOptions;

use super::super::source::Kept;
use super::{Backup, History, id_of, judge_error};
use crate::store::Content;

/// What is pushed, and how.
pub(super) struct Parcel {
    pub(super) kept: Option<Kept>,
    source: usize,
    left_out: BTreeSet<String>,
    content: Arc<Content>,
    created_ms: (u64, u64),
    label: Option<String>,
    level: i32,
    workers: usize,
}

impl Parcel {
    pub(super) fn options(&self) -> PushOptions {
        let mut options = PushOptions::default().level(self.level).workers(self.workers);
        if self.kept.is_none() {
            options = options.exclude(self.left_out.clone());
        }
        match &self.label {
            Some(label) => options.label(label.clone()),
            None => options,
        }
    }

    pub(super) fn backup(&self, suspect: bool) -> Backup {
        Backup {
            content: Arc::clone(&self.content),
            created_ms: self.created_ms,
            labelled: self.label.is_some(),
            pieces: None,
            suspect,
        }
    }
}

impl History {
    /// A keyspace, a checkpoint of now or one of before.
    pub(super) fn draw_parcel(&mut self, from_directory: bool) -> Parcel {
        let source = self.random.below(self.sources.len() as u64) as usize;
        let left_out = self.sources[source].some(&mut self.random);
        let kept = match self.random.below(4) {
            0 if !from_directory => None,
            1 if !self.kept.is_empty() => Some(self.random.pick(&self.kept).clone()),
            _ => {
                let kept = self.sources[source].keep(&left_out, self.stage.now_ms());
                self.kept.push(kept.clone());
                Some(kept)
            }
        };
        let content = match &kept {
            Some(kept) => Arc::clone(&kept.content),
            None => self.sources[source].without(&left_out),
        };
        let created_ms = kept.as_ref().map_or((0, u64::MAX), |it| (it.created_ms, it.created_ms));
        let label = self.random.one_in(6).then(|| format!("label {}", self.random.below(100)));
        let level = *self.random.pick(&[1, 1, 3, 19]);
        let workers = 1 + self.random.below(4) as usize;
        Parcel { kept, source, left_out, content, created_ms, label, level, workers }
    }

    pub(super) fn push(&mut self) {
        let parcel = self.draw_parcel(false);
        let (faults, attempts) = self.draw_faults(50);
        let is_calm = faults.one_in == 0 && faults.killed_at.is_none();
        let before = self.stage.objects("backups");
        let client = self.stage.client(faults.clone());
        let uses_old = is_calm && self.random.one_in(4);
        let opened;
        let pushed = match (uses_old, self.open(&client, attempts)) {
            (false, Err(error)) => Err(error),
            (uses_old, repository) => {
                opened = repository.ok();
                let repository = if uses_old { &self.old_handle } else { opened.as_ref().unwrap() };
                match &parcel.kept {
                    Some(kept) => repository.push_directory(&kept.path, parcel.options()),
                    None => {
                        repository.push(&self.sources[parcel.source].keyspace, parcel.options())
                    }
                }
            }
        };
        let after = self.stage.objects("backups");
        let new: Vec<_> = after.iter().filter(|object| !before.contains(object)).collect();
        assert!(before.iter().all(|object| after.contains(object)), "a push removes no backup");
        let said = format!("{faults:?}, {attempts} attempts, calm {is_calm}, new {new:?}");
        match &pushed {
            Ok(report) => {
                self.note("pushes", format!("{said}: {}", report.backup));
                assert_eq!(new.len(), 1, "a push adds one backup");
                assert_eq!(id_of(new[0]), report.backup);
                let partitions: Vec<_> = parcel.content.keys().cloned().collect();
                assert_eq!(report.partitions, partitions);
            }
            Err(error) => {
                self.note("failed pushes", format!("{said}: {error}"));
                judge_error(error, client.hidden() > 0);
                let excused = !self.damage.is_empty() || !self.scars.is_empty();
                assert!(!is_calm || excused, "nothing was in the way: {error}");
                assert!(new.len() <= 1, "{new:?}");
            }
        }
        let suspect = !self.damage.is_empty();
        for object in new {
            self.backups.insert(object.clone(), parcel.backup(suspect));
        }
        self.check();
    }
}
