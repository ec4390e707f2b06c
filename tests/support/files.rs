//! Directories as tests look at them: copied as after a crash, and compared byte by byte.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_128;

/// Temporary files of this process go to memory where that is possible, those of the engine's private
/// views included: for tests that open and remove thousands of directories.
pub fn temporary_in_memory() {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        // Somebody was faster.
        let _ = tempfile::env::override_temp_dir(memory);
    }
}

/// What identifies the state of one file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    pub hash: u128,
    pub bytes: u64,
    pub inode: u64,
    pub modified: SystemTime,
}

/// Everything below `root`: names relative to it, content, inodes and times.
pub fn fingerprint(root: &Path) -> BTreeMap<PathBuf, Fingerprint> {
    let mut all = BTreeMap::new();
    walk(root, &mut |path, metadata| {
        let content = if metadata.is_file() { fs::read(path).expect("read") } else { Vec::new() };
        let name = path.strip_prefix(root).expect("below the root").to_path_buf();
        let fingerprint = Fingerprint {
            hash: xxh3_128(&content),
            bytes: if metadata.is_file() { metadata.len() } else { 0 },
            inode: metadata.ino(),
            modified: metadata.modified().expect("modification time"),
        };
        all.insert(name, fingerprint);
    });
    all
}

/// The names of all files below `root`, relative to it.
pub fn names(root: &Path) -> Vec<PathBuf> {
    let mut names = Vec::new();
    walk(root, &mut |path, metadata| {
        if metadata.is_file() {
            names.push(path.strip_prefix(root).expect("below the root").to_path_buf());
        }
    });
    names
}

/// The names in one directory; none if it is missing.
pub fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.expect("list").file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

fn walk(dir: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata)) {
    let mut paths: Vec<_> =
        fs::read_dir(dir).expect("list").map(|entry| entry.expect("list").path()).collect();
    paths.sort();
    for path in paths {
        // In an open keyspace files may go while they are listed.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        visit(&path, &metadata);
        if metadata.is_dir() {
            walk(&path, visit);
        }
    }
}

/// Copies the directory as a crash at this moment would leave it: everything that was handed to
/// the operating system, nothing of what is in memory. Nobody may write meanwhile; background work
/// may go on, the copy is repeated until none came in between.
///
/// The image is in `keyspace` below the returned directory.
pub fn crash_image(source: &Path) -> TempDir {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let image = beside(source).expect("a temporary directory");
        let before = listing(source);
        let copied = copy_tree(source, &image.path().join("keyspace"));
        if copied.is_ok() && before.is_some() && before == listing(source) {
            return image;
        }
        assert!(Instant::now() < deadline, "{} does not come to rest", source.display());
    }
}

/// A temporary directory on the filesystem of one that a fixture made.
fn beside(source: &Path) -> std::io::Result<TempDir> {
    match source.parent().and_then(Path::parent) {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    }
}

type Listing = BTreeMap<PathBuf, (u64, u64, SystemTime)>;

/// `None` if something went away meanwhile.
fn listing(root: &Path) -> Option<Listing> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).ok()? {
            let path = entry.ok()?.path();
            let metadata = fs::symlink_metadata(&path).ok()?;
            all.insert(path.clone(), (metadata.ino(), metadata.len(), metadata.modified().ok()?));
            if metadata.is_dir() {
                dirs.push(path);
            }
        }
    }
    Some(all)
}

/// Copies a directory file by file.
pub fn copy_tree(source: &Path, target: &Path) -> std::io::Result<()> {
    fs::create_dir(target)?;
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let to = target.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// The journal segments of a keyspace, oldest first.
pub fn segments(keyspace: &Path) -> Vec<PathBuf> {
    let journal = keyspace.join("journal");
    entries(&journal).into_iter().map(|name| journal.join(name)).collect()
}
