//! A sorted walk over the regular files of a tree.
//!
//! Keys come in byte order within one root, because a directory is sorted as `name/`. Symbolic
//! links are not followed, except for the root, which the user named. Nothing that goes wrong ends
//! the walk: it is reported in its place and the walk goes on.

use std::ffi::{OsStr, OsString};
use std::fs::{self, FileType, Metadata};
use std::io;
use std::path::{Path, PathBuf};

/// One thing the walk came upon.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// A regular file.
    File { path: PathBuf, key: Vec<u8>, bytes: u64 },
    /// Something that cannot be read; says what and why.
    Refused(String),
    /// A link, a socket, a device, or the keyspace that is being loaded.
    LeftOut,
}

/// The files below one root.
pub struct Walk {
    /// What is still to be looked at, the next at the end.
    pending: Vec<Step>,
    /// The key of the directory that must not be entered.
    avoid: Option<Vec<u8>>,
}

enum Step {
    Look { path: PathBuf, key: Vec<u8>, kind: FileType },
    Report(Found),
}

impl Walk {
    /// Walks below `root`, but not below `keyspace`, which must be a canonical path.
    pub fn new(root: &Path, keyspace: &Path) -> Self {
        let mut walk = Self { pending: Vec::new(), avoid: None };
        match fs::metadata(root) {
            Ok(metadata) if metadata.is_dir() => walk.start(root, keyspace),
            Ok(metadata) => walk.pending.push(single(root, &metadata)),
            Err(error) => walk.refuse("read", root, &error),
        }
        walk
    }

    fn start(&mut self, root: &Path, keyspace: &Path) {
        let canonical = match fs::canonicalize(root) {
            Ok(canonical) => canonical,
            Err(error) => return self.refuse("read", root, &error),
        };
        if canonical.starts_with(keyspace) {
            let sentence = format!("cannot load {}: it is the keyspace", root.display());
            return self.pending.push(Step::Report(Found::Refused(sentence)));
        }
        // No link is followed below the root, so the keyspace can appear under one key only.
        self.avoid = keyspace
            .strip_prefix(&canonical)
            .ok()
            .map(|below| below.iter().map(OsStr::as_encoded_bytes).collect::<Vec<_>>().join(&b'/'));
        self.enter(root, &[]);
    }

    /// Puts what a directory holds before everything that is pending.
    fn enter(&mut self, path: &Path, key: &[u8]) {
        let (mut entries, error) = list(path);
        if let Some(error) = error {
            self.refuse("read the directory", path, &error);
        }
        entries.sort_unstable_by(|one, other| sort_key(other).cmp(sort_key(one)));
        self.pending.extend(entries.into_iter().map(|(name, kind)| {
            let mut key = key.to_vec();
            if !key.is_empty() {
                key.push(b'/');
            }
            key.extend_from_slice(name.as_encoded_bytes());
            Step::Look { path: path.join(name), key, kind }
        }));
    }

    fn refuse(&mut self, operation: &str, path: &Path, error: &io::Error) {
        let sentence = format!("cannot {operation} {}: {error}", path.display());
        self.pending.push(Step::Report(Found::Refused(sentence)));
    }
}

impl Iterator for Walk {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            match self.pending.pop()? {
                Step::Report(found) => return Some(found),
                Step::Look { key, .. } if self.avoid.as_ref() == Some(&key) => {
                    return Some(Found::LeftOut);
                }
                Step::Look { path, key, kind } if kind.is_dir() => self.enter(&path, &key),
                Step::Look { path, key, kind } if kind.is_file() => {
                    match fs::symlink_metadata(&path) {
                        Ok(metadata) => {
                            return Some(Found::File { path, key, bytes: metadata.len() });
                        }
                        Err(error) => self.refuse("read", &path, &error),
                    }
                }
                Step::Look { .. } => return Some(Found::LeftOut),
            }
        }
    }
}

/// The step for a root that is no directory: its key is its name.
fn single(root: &Path, metadata: &Metadata) -> Step {
    let path = root.to_owned();
    Step::Report(match root.file_name() {
        Some(name) if metadata.is_file() => {
            Found::File { path, key: name.as_encoded_bytes().to_vec(), bytes: metadata.len() }
        }
        _ => Found::Refused(format!("cannot load {}: it is not a regular file", path.display())),
    })
}

/// The entries of a directory, as far as they can be read, and what kept the rest.
fn list(path: &Path) -> (Vec<(OsString, FileType)>, Option<io::Error>) {
    let mut entries = Vec::new();
    let mut read = || {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            entries.push((entry.file_name(), entry.file_type()?));
        }
        Ok(())
    };
    let error = read().err();
    (entries, error)
}

/// Sorts a directory where its children belong: `a.b` comes before `a/b`.
fn sort_key((name, kind): &(OsString, FileType)) -> impl Iterator<Item = u8> {
    name.as_encoded_bytes().iter().copied().chain(kind.is_dir().then_some(b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        root
    }

    fn keys(root: &Path, keyspace: &Path) -> Vec<String> {
        let key = |found| match found {
            Found::File { key, .. } => String::from_utf8(key).unwrap(),
            other => format!("{other:?}"),
        };
        Walk::new(root, keyspace).map(key).collect()
    }

    #[test]
    fn keys_come_in_byte_order() {
        let root = tree(&["b/x", "a/c/d", "a.b", "a/b", "a0", "a-", "é", "Z"]);
        let found = keys(root.path(), Path::new("/nowhere"));
        let mut sorted = found.clone();
        sorted.sort();
        assert_eq!(found, sorted);
        assert_eq!(found, ["Z", "a-", "a.b", "a/b", "a/c/d", "a0", "b/x", "é"]);
    }

    #[test]
    fn the_keyspace_inside_the_tree_is_left_out() {
        let root = tree(&["a", "deep/store/CATALOG", "z"]);
        let keyspace = fs::canonicalize(root.path().join("deep/store")).unwrap();
        assert_eq!(keys(root.path(), &keyspace), ["a", "LeftOut", "z"]);
        let inside = keys(&keyspace, &keyspace);
        assert!(inside[0].contains("it is the keyspace"), "{inside:?}");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_left_out_but_the_root_may_be_one() {
        let root = tree(&["real/file"]);
        let link = root.path().join("link");
        std::os::unix::fs::symlink(root.path().join("real"), &link).unwrap();
        assert_eq!(keys(root.path(), Path::new("/nowhere")), ["LeftOut", "real/file"]);
        assert_eq!(keys(&link, Path::new("/nowhere")), ["file"]);
    }

    #[test]
    fn a_root_that_is_a_file_has_its_name_as_key() {
        let root = tree(&["sub/file"]);
        assert_eq!(keys(&root.path().join("sub/file"), Path::new("/nowhere")), ["file"]);
    }

    #[test]
    fn a_root_that_is_not_there_is_reported() {
        let root = tree(&[]);
        let found = keys(&root.path().join("nothing"), Path::new("/nowhere"));
        assert!(found[0].contains("cannot read"), "{found:?}");
    }
}
