//! A directory in memory: what its files hold, held once, and what it must show.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::chaos::Model;
use crate::files::names;

pub type Bytes = Vec<u8>;
pub type Files = BTreeMap<PathBuf, Bytes>;

// docs/format.md: offsets in CATALOG and in a frame's header.
const FLAGS: usize = 48;
const CLEAN: u8 = 2;
const LAST_SEQNO: usize = 101;
const FIRST_SEGMENT: usize = 125;
const LAST_SEGMENT: usize = 133;
pub const SEGMENT_HEADER_LEN: u64 = 72;
const FRAME_HEADER_LEN: u64 = 64;

/// What a file is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Catalog,
    Current,
    Manifest,
    Checkpoint,
    Segment,
    Table,
    Blob,
    /// Nothing depends on its bytes.
    Lock,
    /// Nothing names it.
    Stray,
}

/// A directory that will be damaged.
#[derive(Debug)]
pub struct Image {
    pub kind: &'static str,
    /// The content after each commit.
    pub history: BTreeMap<u64, Model>,
    /// What an unharmed open shows.
    pub seqno: u64,
    /// CATALOG says that commits up to this one are durable.
    pub durable: u64,
    /// Closed cleanly, or a checkpoint.
    pub clean: bool,
    pub files: Files,
    dirs: Vec<PathBuf>,
    /// Earlier states of files, oldest first; of some that are gone as well.
    pub old: BTreeMap<PathBuf, Vec<Bytes>>,
    /// The files of another keyspace of this kind.
    pub stranger: Files,
    strays: Vec<PathBuf>,
}

impl Image {
    pub fn new(
        kind: &'static str,
        dir: &Path,
        files: Files,
        history: BTreeMap<u64, Model>,
        mut old: BTreeMap<PathBuf, Vec<Bytes>>,
    ) -> Self {
        let seqno = *history.last_key_value().expect("a commit").0;
        for (name, versions) in &mut old {
            versions.retain(|bytes| files.get(name) != Some(bytes));
        }
        old.retain(|_, versions| !versions.is_empty());
        let report = esker::verify(dir, esker::VerifyOptions::default().threads(1));
        let report = report.expect("an unharmed directory can be verified");
        assert!(report.is_sound() && report.torn_tail.is_none(), "{kind}: {report:?}");
        assert_eq!(report.seqno, seqno, "{kind}");
        let catalog = &files[Path::new("CATALOG")];
        let (durable, clean) = (field(catalog, LAST_SEQNO), catalog[FLAGS] & CLEAN != 0);
        assert_eq!(report.clean, clean, "{kind}");
        let dirs = directories(dir);
        let (stranger, strays) = (Files::new(), report.strays);
        Self { kind, history, seqno, durable, clean, files, dirs, old, stranger, strays }
    }

    pub fn class(&self, name: &Path) -> Class {
        let is = |part: &str| name.iter().any(|component| component == part);
        let last = name.file_name().unwrap_or_default().to_string_lossy();
        match &*last {
            _ if !self.files.contains_key(name) || self.strays.iter().any(|s| s == name) => {
                Class::Stray
            }
            "CATALOG" => Class::Catalog,
            "CHECKPOINT" => Class::Checkpoint,
            "LOCK" => Class::Lock,
            "current" => Class::Current,
            _ if is("tables") => Class::Table,
            _ if is("blobs") => Class::Blob,
            _ if is("partitions") => Class::Manifest,
            _ => Class::Segment,
        }
    }

    /// Every file of one class.
    pub fn all(&self, class: Class) -> Vec<&PathBuf> {
        self.files.keys().filter(|name| self.class(name) == class).collect()
    }

    /// The journal as CATALOG lists it, in order.
    pub fn segments(&self) -> Vec<(&PathBuf, Vec<Frame>)> {
        let catalog = &self.files[Path::new("CATALOG")];
        let listed = field(catalog, FIRST_SEGMENT)..=field(catalog, LAST_SEGMENT);
        let id = |name: &Path| name.file_stem()?.to_str()?.parse::<u64>().ok();
        let segments = self.all(Class::Segment).into_iter();
        let segments = segments.filter(|name| id(name).is_some_and(|id| listed.contains(&id)));
        segments.map(|name| (name, frames(&self.files[name]))).collect()
    }

    /// Puts all files into `dir`, so that copies of it can be made of links.
    pub fn write_to(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir(dir)?;
        self.dirs.iter().try_for_each(|name| fs::create_dir(dir.join(name)))?;
        self.files.iter().try_for_each(|(name, bytes)| fs::write(dir.join(name), bytes))
    }

    /// A copy of the directory `template`, which has this image, with `changes`: every file that is
    /// not changed is a link. The engine replaces files and appends to none that it finds.
    pub fn link_to(
        &self,
        template: &Path,
        dir: &Path,
        changes: &BTreeMap<PathBuf, Option<Bytes>>,
    ) -> io::Result<()> {
        fs::create_dir(dir)?;
        self.dirs.iter().try_for_each(|name| fs::create_dir(dir.join(name)))?;
        for name in self.files.keys().filter(|name| !changes.contains_key(*name)) {
            fs::hard_link(template.join(name), dir.join(name))?;
        }
        for (name, bytes) in changes {
            let path = dir.join(name);
            if let (Some(bytes), Some(parent)) = (bytes, path.parent()) {
                // A file that comes back may come with its directory.
                fs::create_dir_all(parent)?;
                fs::write(path, bytes)?;
            }
        }
        Ok(())
    }
}

/// One frame of a journal segment.
#[derive(Copy, Clone, Debug)]
pub struct Frame {
    pub start: u64,
    pub end: u64,
    pub seqno: u64,
    pub synced_len: u64,
    pub seal: bool,
}

/// The frames of an unharmed segment.
pub fn frames(bytes: &[u8]) -> Vec<Frame> {
    let (mut frames, mut at) = (Vec::new(), SEGMENT_HEADER_LEN);
    while bytes.get(at as usize..at as usize + 4) == Some(b"EKRF") {
        let field = |offset: usize| field(bytes, at as usize + offset);
        let end = at + FRAME_HEADER_LEN + field(12);
        let (seqno, synced_len) = (field(20), field(36));
        frames.push(Frame { start: at, end, seqno, synced_len, seal: bytes[at as usize + 4] == 2 });
        at = end;
    }
    frames
}

fn field(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Every file below `dir`, by its path relative to it; without those that go away meanwhile.
pub fn read_files(dir: &Path) -> Files {
    let read = |name: PathBuf| Some((name.clone(), fs::read(dir.join(name)).ok()?));
    names(dir).into_iter().filter_map(read).collect()
}

/// Every directory below `root`, parents first.
fn directories(root: &Path) -> Vec<PathBuf> {
    let (mut all, mut at) = (Vec::new(), 0);
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.get(at).cloned() {
        at += 1;
        for entry in fs::read_dir(root.join(&dir)).expect("a directory") {
            let entry = entry.expect("an entry");
            if entry.file_type().expect("a type").is_dir() {
                dirs.push(dir.join(entry.file_name()));
                all.push(dir.join(entry.file_name()));
            }
        }
    }
    all
}
