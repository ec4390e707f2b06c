//! What the comparison does with directories: measure, copy, evict.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::Advice;

use crate::Result;

/// Every file below `root`, sorted.
///
/// # Errors
///
/// When a directory cannot be read.
pub fn list(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut directories) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Bytes that the files below `root` occupy: what is preallocated counts, what is a hole does not.
///
/// # Errors
///
/// When a directory cannot be read. Files that vanish meanwhile do not count.
pub fn occupied(root: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = list(root)?.into_iter().filter_map(|path| fs::metadata(path).ok());
    Ok(metadata.map(|metadata| metadata.blocks() * 512).sum())
}

/// Which files are below `root`, how long and how old: it changes when one of them does. Files that
/// vanish meanwhile are left out.
///
/// # Errors
///
/// When a directory cannot be read.
pub fn stamp(root: &Path) -> Result<Vec<(PathBuf, u64, SystemTime)>> {
    let stamp = |path: PathBuf| {
        let metadata = fs::metadata(&path).ok()?;
        Some((path, metadata.len(), metadata.modified().ok()?))
    };
    Ok(list(root)?.into_iter().filter_map(stamp).collect())
}

/// Copies what is in `from` to the directory `to`, which exists. Not synced.
///
/// # Errors
///
/// When a call fails.
pub fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy_directory(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Waits until everything in the filesystem of `path` is on the disk.
///
/// # Errors
///
/// When the sync fails.
pub fn sync_filesystem(path: &Path) -> Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

/// Drops files from the page cache; they must have been synced.
///
/// # Errors
///
/// When one cannot be opened.
pub fn evict(files: &[PathBuf]) -> Result<()> {
    for path in files {
        rustix::fs::fadvise(File::open(path)?, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}
