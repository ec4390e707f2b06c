//! A directory tree in memory, and the operations that change it.
//!
//! What must stay true: `Image::apply` is the only place that says what an operation does, for the
//! filesystem that records and for the states that are made of its record.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

/// An inode. Never used again within one record.
pub type Ino = u64;

/// The root directory, as FUSE numbers it.
pub const ROOT: Ino = 1;

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    File(Vec<u8>),
    Directory(BTreeMap<String, Ino>),
    Symlink(PathBuf),
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub dir: Ino,
    pub name: String,
}

/// One operation, with its data.
#[derive(Clone, Debug)]
pub enum Op {
    /// A file, directory or symbolic link that did not exist.
    Create {
        place: Place,
        ino: Ino,
        node: Node,
    },
    Link {
        place: Place,
        ino: Ino,
    },
    /// unlink and rmdir.
    Remove {
        place: Place,
    },
    /// Atomic; what was at `to` is replaced.
    Rename {
        from: Place,
        to: Place,
    },
    Write {
        ino: Ino,
        offset: u64,
        data: Arc<[u8]>,
    },
    /// truncate and fallocate: the new length, zeros where there was nothing.
    Resize {
        ino: Ino,
        bytes: u64,
    },
    /// fsync and fdatasync: the model makes no difference, both bring data and length to the disk.
    Sync {
        ino: Ino,
    },
    SyncDirectory {
        ino: Ino,
    },
    /// A sync of a file that said so: what was not on the disk will not get there any more by
    /// syncing, and reads go on showing it.
    SyncFailed {
        ino: Ino,
    },
    /// What the program under test was told, at its place among the operations.
    Acknowledge(Vec<u8>),
}

/// A directory tree.
#[derive(Clone, Debug)]
pub struct Image {
    pub nodes: BTreeMap<Ino, Node>,
}

impl Default for Image {
    fn default() -> Self {
        Self { nodes: BTreeMap::from([(ROOT, Node::Directory(BTreeMap::new()))]) }
    }
}

/// Writes into the bytes of a file, which grows as it has to.
pub fn write_at(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (begin, end) = (offset as usize, offset as usize + data.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[begin..end].copy_from_slice(data);
}

impl Image {
    /// Changes the tree. The operation is possible: the kernel or the record has made sure.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { place, ino, node } => {
                self.nodes.insert(*ino, node.clone());
                self.put(place, *ino);
            }
            Op::Link { place, ino } => self.put(place, *ino),
            Op::Remove { place } => _ = self.take(place),
            Op::Rename { from, to } => {
                if let Some(ino) = self.take(from) {
                    self.put(to, ino);
                }
            }
            Op::Write { ino, offset, data } => {
                if let Some(Node::File(bytes)) = self.nodes.get_mut(ino) {
                    write_at(bytes, *offset, data);
                }
            }
            Op::Resize { ino, bytes: len } => {
                if let Some(Node::File(bytes)) = self.nodes.get_mut(ino) {
                    bytes.resize(*len as usize, 0);
                }
            }
            Op::Sync { .. }
            | Op::SyncDirectory { .. }
            | Op::SyncFailed { .. }
            | Op::Acknowledge(_) => {}
        }
    }

    /// The names in a directory; none if it is something else.
    pub fn entries(&self, dir: Ino) -> impl Iterator<Item = (&String, Ino)> {
        let entries = match self.nodes.get(&dir) {
            Some(Node::Directory(entries)) => Some(entries),
            _ => None,
        };
        entries.into_iter().flatten().map(|(name, ino)| (name, *ino))
    }

    pub fn lookup(&self, dir: Ino, name: &str) -> Option<Ino> {
        match self.nodes.get(&dir) {
            Some(Node::Directory(entries)) => entries.get(name).copied(),
            _ => None,
        }
    }

    fn put(&mut self, place: &Place, ino: Ino) {
        if let Some(Node::Directory(entries)) = self.nodes.get_mut(&place.dir) {
            entries.insert(place.name.clone(), ino);
        }
    }

    fn take(&mut self, place: &Place) -> Option<Ino> {
        match self.nodes.get_mut(&place.dir) {
            Some(Node::Directory(entries)) => entries.remove(&place.name),
            _ => None,
        }
    }

    /// The tree below `dir` alone, under a root of its own in which it is called `name`.
    pub fn only(&self, dir: Option<Ino>, name: &str) -> Self {
        let mut image = Self::default();
        if let Some(dir) = dir {
            let mut waiting = vec![dir];
            while let Some(ino) = waiting.pop() {
                if let Some(node) = self.nodes.get(&ino) {
                    image.nodes.insert(ino, node.clone());
                    waiting.extend(self.entries(ino).map(|(_, ino)| ino));
                }
            }
            image.put(&Place { dir: ROOT, name: name.to_owned() }, dir);
        }
        image
    }

    /// One of the paths of an inode, for people.
    pub fn path_of(&self, ino: Ino) -> Option<String> {
        if ino == ROOT {
            return Some(String::new());
        }
        let names = |dir: Ino| self.entries(dir).map(move |(name, ino)| (dir, name, ino));
        let mut all = self.nodes.keys().flat_map(|dir| names(*dir));
        let (dir, name, _) = all.find(|(_, _, found)| *found == ino)?;
        Some(format!("{}/{name}", self.path_of(dir)?))
    }

    /// The highest inode in use.
    pub fn newest(&self) -> Ino {
        self.nodes.last_key_value().map_or(ROOT, |(ino, _)| *ino)
    }

    /// Names and bytes below a directory as one number.
    pub fn digest(&self, dir: Ino) -> u128 {
        let mut hash = Xxh3::new();
        self.feed(dir, &mut hash);
        hash.digest128()
    }

    fn feed(&self, ino: Ino, hash: &mut Xxh3) {
        match self.nodes.get(&ino) {
            Some(Node::File(bytes)) => {
                hash.update(&(bytes.len() as u64).to_le_bytes());
                hash.update(bytes);
            }
            Some(Node::Symlink(target)) => hash.update(target.as_os_str().as_encoded_bytes()),
            Some(Node::Directory(entries)) => {
                for (name, ino) in entries {
                    hash.update(&(name.len() as u64).to_le_bytes());
                    hash.update(name.as_bytes());
                    self.feed(*ino, hash);
                }
                hash.update(b"/");
            }
            None => {}
        }
    }

    /// Makes the tree real below `root`, an empty directory. Names of one inode become links.
    pub fn write_to(&self, root: &Path) -> io::Result<()> {
        self.write_directory(ROOT, root, &mut HashMap::new())
    }

    fn write_directory(
        &self,
        dir: Ino,
        path: &Path,
        written: &mut HashMap<Ino, PathBuf>,
    ) -> io::Result<()> {
        for (name, ino) in self.entries(dir) {
            let path = path.join(name);
            match self.nodes.get(&ino) {
                Some(Node::Directory(_)) => {
                    std::fs::create_dir(&path)?;
                    self.write_directory(ino, &path, written)?;
                }
                Some(Node::Symlink(target)) => std::os::unix::fs::symlink(target, &path)?,
                Some(Node::File(bytes)) => match written.get(&ino) {
                    Some(first) => std::fs::hard_link(first, &path)?,
                    None => {
                        std::fs::write(&path, bytes)?;
                        written.insert(ino, path);
                    }
                },
                None => {}
            }
        }
        Ok(())
    }
}
