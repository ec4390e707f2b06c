//! What a backup is, and what it alone costs.

use serde::Serialize;

use crate::census::{Backup, Census};
use crate::error::{Error, Result};
use crate::layout::BackupId;
use crate::repository::Repository;

/// What [`Repository::info`] tells.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BackupInfo {
    /// The backup, as [`Repository::find`] takes it.
    pub backup: String,
    /// The id of the keyspace, 32 hex digits.
    pub uuid: String,
    /// The id of the history, 32 hex digits.
    pub timeline: String,
    /// The newest commit in it.
    pub seqno: u64,
    /// When its checkpoint was taken, in milliseconds since 1970, by the clock of the keyspace's machine.
    pub created_ms: u64,
    /// The name that keeps it for ever, if it has one.
    pub label: Option<String>,
    /// The partitions in it.
    pub partitions: Vec<String>,
    /// The partitions left out.
    pub left_out: Vec<String>,
    /// Its files, and their raw bytes.
    pub files: u64,
    /// The same in bytes.
    pub raw_bytes: u64,
    /// Bytes of the pieces that it names, as stored.
    pub stored_bytes: u64,
    /// Of these, bytes that its push added.
    pub added_bytes: u64,
    /// Bytes of pieces that no other backup names: what removing it would free.
    pub pinned_bytes: u64,
}

impl Repository {
    /// What a backup is. Reads all manifests, because what it pins depends on them.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchBackup`]; [`Error::Corrupt`] for any manifest; when the store refuses or cannot
    /// be reached.
    pub fn info(&self, backup: BackupId) -> Result<BackupInfo> {
        let census = self.run(self.census())?;
        let found = census.backups().iter().find(|found| found.id == backup);
        let found = found.ok_or_else(|| Error::NoSuchBackup {
            location: self.store.location.clone(),
            asked: backup.to_string(),
        })?;
        Ok(describe(&census, found, census.namers(census.backups()).pinned_by(found)))
    }

    /// Every backup, the oldest first. What each pins is what removing it alone would free: the sum is
    /// less than what removing several frees, where they share pieces.
    ///
    /// # Errors
    ///
    /// As [`Repository::info`].
    pub fn infos(&self) -> Result<Vec<BackupInfo>> {
        let census = self.run(self.census())?;
        let namers = census.namers(census.backups());
        let described =
            census.backups().iter().map(|found| describe(&census, found, namers.pinned_by(found)));
        Ok(described.collect())
    }

    /// What all backups name, the oldest first; those that were removed since they were listed are left
    /// out.
    pub(crate) async fn census(&self) -> Result<Census> {
        let listed = self.listed().await?;
        let mut census = Census::default();
        let each = |_, summary| match summary {
            Err(Error::NoSuchBackup { .. }) => Ok(()),
            summary => {
                census.add(summary?);
                Ok(())
            }
        };
        self.each_summary(&listed, each).await?;
        Ok(census)
    }
}

fn describe(census: &Census, backup: &Backup, pinned_bytes: u64) -> BackupInfo {
    BackupInfo {
        backup: backup.id.to_string(),
        uuid: format!("{:032x}", backup.id.uuid),
        timeline: format!("{:032x}", backup.id.timeline),
        seqno: backup.id.seqno,
        created_ms: backup.created_ms,
        label: backup.label.clone(),
        partitions: backup.partitions.clone(),
        left_out: backup.left_out.clone(),
        files: backup.files,
        raw_bytes: backup.raw_bytes,
        stored_bytes: census.stored_bytes_of(backup),
        added_bytes: backup.added_bytes,
        pinned_bytes,
    }
}
