//! What a checkpoint cannot cost less than: bare link calls into a new directory tree, and two syncs.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Result;

/// The shape of a directory: its subdirectories, parents first, and its files.
pub struct Shape {
    root: PathBuf,
    directories: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

/// How the two syncs of the bare cost are made.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Sync {
    /// `syncfs`, then `fsync` of the parent directory: everything that was made is durable, and so
    /// is its name.
    Filesystem,
    /// `fsync` of the new directory, then of its parent: what ext4 gives for these calls covers the
    /// links in the subdirectories too, but no standard says so.
    Directories,
}

impl Shape {
    /// What `root` holds that is linked from elsewhere.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn of_links(root: &Path) -> Result<Self> {
        let mut shape = Self { root: root.to_path_buf(), directories: vec![], files: vec![] };
        let mut next = vec![PathBuf::new()];
        while let Some(directory) = next.pop() {
            for entry in fs::read_dir(root.join(&directory))? {
                let entry = entry?;
                let relative = directory.join(entry.file_name());
                let metadata = entry.metadata()?;
                if metadata.is_dir() {
                    next.push(relative);
                } else if metadata.nlink() > 1 {
                    shape.files.push(relative);
                }
            }
            shape.directories.push(directory);
        }
        Ok(shape)
    }

    /// The number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Links every file of the shape into the new directory `target` and syncs twice.
    ///
    /// # Errors
    ///
    /// When a call fails.
    pub fn link_bare(&self, target: &Path, sync: Sync) -> Result<Duration> {
        let parent = target.parent().ok_or("the target has no parent")?;
        let began = Instant::now();
        for directory in &self.directories {
            fs::create_dir(target.join(directory))?;
        }
        for file in &self.files {
            fs::hard_link(self.root.join(file), target.join(file))?;
        }
        match sync {
            Sync::Filesystem => rustix::fs::syncfs(File::open(target)?)?,
            Sync::Directories => File::open(target)?.sync_all()?,
        }
        File::open(parent)?.sync_all()?;
        Ok(began.elapsed())
    }
}
