//! A keyspace with two checkpoints that share one table and differ in another, and backups of both.

use std::path::PathBuf;
use std::sync::Arc;

use esker::Keyspace;
use esker_archive::{BackupId, PushOptions};

use crate::content::{names_in, noise};
use crate::objects::{DAY, Objects};

/// A repository with a backup of each of two checkpoints, and two days behind them.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub objects: Arc<Objects>,
    pub checkpoints: Vec<PathBuf>,
    pub backups: Vec<BackupId>,
}

impl Scene {
    /// With so many entries of 1,000 bytes in each partition.
    pub fn new(entries: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(dir.path().join("db")).unwrap();
        let objects = Arc::new(Objects::default());
        let repository = objects.create();
        let (mut checkpoints, mut backups) = (Vec::new(), Vec::new());
        for round in 0..2_u8 {
            for name in ["both", "each"].into_iter().skip(round.into()) {
                let partition = keyspace.partition(name, Default::default()).unwrap();
                partition.clear().unwrap();
                for number in 0..entries {
                    partition.insert(number.to_be_bytes(), noise(1_000)).unwrap();
                }
            }
            keyspace.flush().unwrap();
            let path = dir.path().join(format!("checkpoint {round}"));
            keyspace.backup_to(&path).unwrap();
            let pushed = repository.push_directory(&path, PushOptions::default()).unwrap();
            backups.push(repository.find(Some(&pushed.backup)).unwrap());
            checkpoints.push(path);
        }
        objects.advance(2 * DAY);
        Self { dir, objects, checkpoints, backups }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The only unfinished directory of a restore to this target, if there is one.
    pub fn unfinished(&self, target: &str) -> Option<PathBuf> {
        let prefix = format!(".{target}.esker-restore-");
        let mut found = names_in(self.dir.path()).into_iter().filter(|n| n.starts_with(&prefix));
        let first = found.next();
        assert_eq!(found.next(), None);
        first.map(|name| self.at(&name))
    }
}
