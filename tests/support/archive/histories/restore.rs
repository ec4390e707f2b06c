//! Steps that restore: whole or in part, anew or over something, interrupted and tampered with.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path as LocalPath, PathBuf};
use std::sync::Arc;

use esker_archive::{BackupId, RestoreOptions};

use super::{History, flip, id_of, judge_content, judge_error};
use crate::store::Content;

impl History {
    pub(super) fn draw_restore_options(&mut self) -> RestoreOptions {
        let options = RestoreOptions::default()
            .download_workers(1 + self.random.below(4) as usize)
            .chunk_bytes(*self.random.pick(&[1, 1 << 20, 2 << 20, 32 << 20]));
        if self.random.one_in(2) {
            options.buffer_bytes_max(1 << self.random.below(26))
        } else {
            options
        }
    }

    /// A backup, by its object and as the crate calls it.
    pub(super) fn draw_backup(&mut self) -> Option<(String, BackupId)> {
        let objects: Vec<_> = self.backups.keys().cloned().collect();
        if objects.is_empty() {
            return None;
        }
        let object = self.random.pick(&objects).clone();
        let id = self.calm().find(Some(&id_of(&object))).expect("it is listed");
        Some((object, id))
    }

    pub(super) fn restore(&mut self) {
        let Some((object, id)) = self.draw_backup() else { return };
        let whole = Arc::clone(&self.backups[&object].content);
        let wanted: Option<BTreeSet<String>> = self
            .random
            .one_in(4)
            .then(|| whole.keys().filter(|_| self.random.one_in(2)).cloned().collect());
        let mut content = (*whole).clone();
        content.retain(|name, _| wanted.as_ref().is_none_or(|wanted| wanted.contains(name)));
        let content = Arc::new(content);
        let old = if self.random.one_in(3) { self.restored.take() } else { None };
        let target = old.as_ref().map_or_else(|| self.new_path(), |(path, _)| path.clone());
        let old = old.map(|(path, content)| self.maybe_use(&path, content));
        let (faults, attempts) = self.draw_faults(14);
        let is_calm = faults.one_in == 0 && faults.killed_at.is_none();
        let said = format!("{object} to {}, {wanted:?}, {faults:?}", target.display());
        let unfinished = self.unfinished(&target);
        let mut client = self.stage.client(faults);
        let mut options = self.draw_restore_options().delta(old.is_some());
        if let Some(wanted) = &wanted {
            options = options.partitions(wanted.clone());
        }
        let mut restored =
            self.open(&client, attempts).and_then(|it| it.restore(id, &target, options));
        let excused = self.is_excused(&object);
        if let Err(error) = &restored {
            self.note("failed restores", format!("{said}: {error}"));
            judge_error(error, client.hidden() > 0);
            assert!(!is_calm || excused, "nothing was in the way: {error}");
            match &old {
                Some(old) => judge_content(&target, old),
                None => assert!(!target.exists(), "a restore that failed leaves no target"),
            }
            if !is_calm && !self.random.one_in(4) {
                self.tamper(&target);
                client = self.stage.calm();
                let mut options = self.draw_restore_options().delta(old.is_some());
                if let Some(wanted) = &wanted {
                    options = options.partitions(wanted.clone());
                }
                restored = self.open(&client, 1).and_then(|it| it.restore(id, &target, options));
                if let Err(error) = &restored {
                    judge_error(error, false);
                    assert!(excused, "the second time nothing was in the way: {error}");
                }
                self.note("resumed restores", format!("{:?}", restored.as_ref().err()));
            }
        }
        match restored {
            Ok(report) => {
                self.note("restores", said);
                assert_eq!(report.partitions, content.keys().cloned().collect::<Vec<_>>());
                judge_content(&target, &content);
                // Those of other backups are theirs.
                let left = self.unfinished(&target);
                assert!(left.iter().all(|path| unfinished.contains(path)), "{left:?}");
                self.restored = Some((target, content));
            }
            Err(_) => self.restored = old.map(|old| (target, old)),
        }
    }

    /// Whether a backup may be unreadable.
    pub(super) fn is_excused(&self, object: &str) -> bool {
        if self.damage.is_empty() && self.scars.is_empty() {
            return false;
        }
        let backup = &self.backups[object];
        let hit = |it: &String| self.scars.contains(it);
        let pieces = backup.pieces.as_ref();
        backup.suspect || hit(&object.to_owned()) || pieces.is_none_or(|it| it.iter().any(hit))
    }

    /// Sometimes somebody has opened what was restored and gone on with it.
    pub(super) fn maybe_use(&mut self, path: &LocalPath, content: Arc<Content>) -> Arc<Content> {
        if self.random.one_in(2) {
            return content;
        }
        let keyspace =
            esker::Config::new(path).journal_segment_bytes(64 << 10).open().expect("open");
        let partition = keyspace.partition("tables", Default::default()).expect("a partition");
        let mut content = (*content).clone();
        for number in 0..20 {
            let (key, value) = (format!("new {number}").into_bytes(), self.random.bytes(1_000));
            partition.insert(&key, &value).expect("insert");
            content.entry("tables".to_owned()).or_default().insert(key, value);
        }
        keyspace.flush().expect("flush");
        keyspace.close().expect("close");
        Arc::new(content)
    }

    /// Directories of restores to `target` that were interrupted.
    pub(super) fn unfinished(&self, target: &LocalPath) -> Vec<PathBuf> {
        let name = target.file_name().expect("a name").to_string_lossy().into_owned();
        let prefix = format!(".{name}.esker-restore-");
        let entries = fs::read_dir(self.directory.path()).expect("list");
        let paths = entries.map(|entry| entry.expect("list").path());
        let is_one = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        };
        paths.filter(is_one).collect()
    }

    /// What lies in an unfinished directory is not always what was written there.
    pub(super) fn tamper(&mut self, target: &LocalPath) {
        for unfinished in self.unfinished(target) {
            for name in crate::files::names(&unfinished) {
                let path = unfinished.join(&name);
                let is_link = fs::metadata(&path).is_ok_and(|it| {
                    use std::os::unix::fs::MetadataExt as _;
                    it.nlink() > 1
                });
                // A link leads to a file of the old target, which is somebody else's.
                if is_link || !self.random.one_in(3) {
                    continue;
                }
                let mut bytes = fs::read(&path).expect("read");
                match self.random.below(4) {
                    0 => fs::remove_file(&path).expect("remove"),
                    1 => bytes.truncate(self.random.below(bytes.len() as u64 + 1) as usize),
                    2 => bytes.extend_from_slice(&self.random.bytes(5)),
                    _ => flip(&mut bytes, &mut self.random),
                }
                if path.exists() {
                    fs::write(&path, bytes).expect("write");
                }
                self.note("tampered files", name.display().to_string());
            }
        }
    }
}
