//! What need not be fetched, because it lies in a local directory.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::download::Download;
use crate::error::{IoContext as _, Result};
use crate::push::hash_file;

impl Download<'_> {
    /// Takes what the backup has in common with the directory `local` from there, by content: links
    /// where that is possible, copies elsewhere.
    pub(super) fn reuse(&self, local: &Path) -> Result<()> {
        let mut wanted: HashMap<u64, Vec<u32>> = HashMap::new();
        for (number, target) in self.targets.lock().iter() {
            wanted.entry(target.id.bytes).or_default().push(*number);
        }
        for path in local_files(local)? {
            let bytes = fs::metadata(&path).at("inspect", &path)?.len();
            let Some(numbers) = wanted.get(&bytes) else { continue };
            let found = hash_file(&path)?;
            for &number in numbers {
                if self.manifest.files[number as usize].xxh3 == found {
                    self.take_local(number, &path)?;
                }
            }
        }
        Ok(())
    }

    fn take_local(&self, number: u32, local: &Path) -> Result<()> {
        let Some(target) = self.targets.lock().remove(&number) else { return Ok(()) };
        self.forget_resumed(number, target.id);
        fs::remove_file(&target.path).at("replace", &target.path)?;
        if fs::hard_link(local, &target.path).is_err() {
            fs::copy(local, &target.path).at("copy", local)?;
        }
        self.reused_bytes.fetch_add(target.id.bytes, Ordering::Relaxed);
        self.bytes_done.fetch_add(target.id.bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// Tables and blob files, which nobody ever changes.
fn local_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let partitions = dir.join("partitions");
    let Ok(trees) = fs::read_dir(&partitions) else { return Ok(found) };
    for tree in trees {
        let tree = tree.at("list", &partitions)?.path();
        for sub in ["tables", "blobs"].map(|sub| tree.join(sub)) {
            let Ok(entries) = fs::read_dir(&sub) else { continue };
            for entry in entries {
                let entry = entry.at("list", &sub)?;
                if entry.file_type().at("list", &sub)?.is_file() {
                    found.push(entry.path());
                }
            }
        }
    }
    Ok(found)
}
