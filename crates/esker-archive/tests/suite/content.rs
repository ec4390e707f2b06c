//! Keyspaces, checkpoints and repositories: what is in them, and whether it is what it should be.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use esker::Config;
use esker_archive::{CheckOptions, CheckReport, Repository};

/// What is in a directory.
pub fn names_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

/// Bytes that do not compress.
pub fn noise(len: usize) -> Vec<u8> {
    (0..len.div_ceil(16)).flat_map(|_| rand::random::<[u8; 16]>()).take(len).collect()
}

/// The entries of each partition.
pub type Content = BTreeMap<String, Vec<(Vec<u8>, Vec<u8>)>>;

pub fn content(path: &Path) -> Content {
    let keyspace = Config::new(path).read_only(true).open().unwrap();
    let read = |name: String| {
        let partition = keyspace.open_partition(&name).unwrap().unwrap();
        let entries = partition.iter().unwrap().map(|entry| {
            let (key, value) = entry.unwrap();
            (key.to_vec(), value.to_vec())
        });
        let entries = entries.collect();
        (name, entries)
    };
    keyspace.partitions().into_iter().map(read).collect()
}

/// That all files of a keyspace are whole, and nothing beside them.
#[track_caller]
pub fn assert_whole(path: &Path) {
    let report = esker::verify(path, Default::default()).unwrap();
    assert!(report.is_sound() && report.strays.is_empty(), "{report:?}");
}

/// That a directory is what this checkpoint is, and nothing beside it.
#[track_caller]
pub fn assert_exact(restored: &Path, checkpoint: &Path) {
    assert_whole(restored);
    assert!(content(restored) == content(checkpoint), "it is something else");
}

/// That all of a repository is there, with nothing beside it that nobody knows.
#[track_caller]
pub fn assert_sound(repository: &Repository) -> CheckReport {
    let report = repository.check(CheckOptions::default().read_data(1.0)).unwrap();
    assert!(report.is_sound() && report.strays.is_empty(), "{report:?}");
    report
}

/// Every file below a directory, sorted.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
            match entry.file_type().unwrap().is_dir() {
                true => pending.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found.sort();
    found
}

/// Everything below a directory that nobody ever changes.
pub fn tables(checkpoint: &Path) -> Vec<PathBuf> {
    let mut files = files_below(checkpoint);
    let is_one = |dir: &Path| dir.ends_with("tables") || dir.ends_with("blobs");
    files.retain(|path| path.parent().is_some_and(is_one));
    files
}

/// Copies files and the directories that hold any.
pub fn copy_tree(from: &Path, to: &Path) {
    for file in files_below(from) {
        let copy = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(file, copy).unwrap();
    }
}
