//! What a disk holds after a crash: everything that was synced, and whatever chance left of the rest.
//!
//! The rules, which `docs/durability.md` tells as well:
//! - A sync of a file makes its data and its length durable, and nothing else.
//! - A sync of a file that fails loses the writes since the last one: no later sync of the file makes
//!   them durable. (Linux writes a page again that changes again; here even that brings no lost byte
//!   back.) A change of the length is no data and stays to be synced.
//! - A sync of a directory makes every earlier change of its names durable, and what those depend on.
//! - Of the data that was not synced, each sector of 512 bytes is in any state that it has had since the
//!   last sync of its file; some sectors are torn in the middle. The length is any that the file has
//!   had since then. Data, length and names do not know of each other.
//! - Of the changes of names that were not synced, any subset happened that keeps the order of changes
//!   of the same name. A rename happened or did not, also across directories.
//! - One exception, which ext4, XFS, btrfs and F2FS grant for every new file: a sync of a new file in a
//!   directory called `blobs` makes its name durable. lsm-tree installs a version before anybody can
//!   sync that directory (`Mistake::StrictBlobs` shows what would be lost).

use std::collections::{BTreeMap, BTreeSet};

use super::image::{Image, Ino, Node, Op, Place, ROOT, write_at};
use crate::chaos::Rng;

/// What a disk writes at once, in bytes.
pub const SECTOR_BYTES: usize = 512;

/// The directory whose new names a sync of the file makes durable.
const BLOBS: &str = "blobs";

/// A deliberate change of the rules.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// No mistake but the strict rule: a sync of a new blob file does not make its name durable.
    StrictBlobs,
    /// A sync of a file does nothing.
    FileSyncIgnored,
    /// A sync of a directory does nothing.
    DirectorySyncIgnored,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, data: std::sync::Arc<[u8]> },
    Resize(u64),
}

/// A file: what was synced, and what came after.
#[derive(Clone, Debug, Default)]
struct File {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => write_at(bytes, *offset, data),
            Self::Resize(len) => bytes.resize(*len as usize, 0),
        }
    }
}

impl File {
    fn newest(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        self.pending.iter().for_each(|change| change.apply(&mut bytes));
        bytes
    }

    fn sync(&mut self) {
        let durable = &mut self.durable;
        self.pending.drain(..).for_each(|change| change.apply(durable));
    }

    /// The page cache keeps the data, and believes that the disk has it.
    fn lose(&mut self) {
        self.pending.retain(|change| matches!(change, Change::Resize(_)));
    }

    /// The file after a crash.
    fn survivor(&self, luck: &Luck, rng: &mut Rng) -> Vec<u8> {
        let (mut len, mut longest) = (self.durable.len(), self.durable.len());
        let mut now = self.durable.clone();
        let newest = self.pending.len() as u64;
        let same_for_all = rng.below(newest + 1);
        // How many of the changes the sector on the disk has seen.
        let mut seen = BTreeMap::new();
        let mut sectors = self.durable.clone();
        let seen_of_length = luck.version(newest, same_for_all, rng);
        for (number, change) in self.pending.iter().enumerate() {
            let before = now.len();
            change.apply(&mut now);
            longest = longest.max(now.len());
            if (number as u64) < seen_of_length {
                len = now.len();
            }
            let (first, end) = match change {
                Change::Write { offset, data } => (*offset as usize, *offset as usize + data.len()),
                // What was cut off, or what appeared as zeros.
                Change::Resize(bytes) => {
                    let bytes = *bytes as usize;
                    (bytes.min(before), bytes.max(before))
                }
            };
            for sector in first / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
                let version =
                    *seen.entry(sector).or_insert_with(|| luck.version(newest, same_for_all, rng));
                if (number as u64) < version {
                    // Only the last change that reaches a sector can be torn.
                    let last = number as u64 + 1 == version;
                    let cut = if last && luck.tears(rng) { rng.below(513) as usize } else { 512 };
                    copy_sector(&now, &mut sectors, sector, cut);
                }
            }
        }
        sectors.resize(longest, 0);
        sectors.resize(len, 0);
        sectors
    }
}

/// Brings the first `cut` bytes of a sector from `now` to the disk; zeros behind the end of `now`.
fn copy_sector(now: &[u8], disk: &mut Vec<u8>, sector: usize, cut: usize) {
    let begin = sector * SECTOR_BYTES;
    if disk.len() < begin + SECTOR_BYTES {
        disk.resize(begin + SECTOR_BYTES, 0);
    }
    for (at, byte) in disk.iter_mut().enumerate().skip(begin).take(cut) {
        *byte = now.get(at).copied().unwrap_or(0);
    }
}

/// How a crash treats what was not synced.
#[derive(Copy, Clone, Debug)]
pub struct Luck {
    /// Out of 100 changes of names so many happened.
    names: u64,
    data: Data,
    /// One in so many sectors is torn in the middle; 0 for none.
    torn: u64,
}

#[derive(Copy, Clone, Debug)]
enum Data {
    Nothing,
    Everything,
    /// The first so many changes of each file, in all its sectors.
    Prefix,
    /// Each sector for itself, anything that it has been.
    Sectors,
}

impl Luck {
    /// One of the kinds of luck, extreme ones among them.
    pub fn any(rng: &mut Rng) -> Self {
        let names = *pick(rng, &[0, 0, 10, 50, 50, 90, 100, 100]);
        let kinds = [
            Data::Nothing,
            Data::Everything,
            Data::Prefix,
            Data::Sectors,
            Data::Sectors,
            Data::Sectors,
        ];
        let data = *pick(rng, &kinds);
        Self { names, data, torn: *pick(rng, &[0, 8, 2]) }
    }

    /// Nothing that was not synced is there.
    pub fn none() -> Self {
        Self { names: 0, data: Data::Nothing, torn: 0 }
    }

    /// Every sector and every name for itself.
    pub fn scattered() -> Self {
        Self { names: 50, data: Data::Sectors, torn: 2 }
    }

    fn version(&self, newest: u64, same_for_all: u64, rng: &mut Rng) -> u64 {
        match self.data {
            Data::Nothing => 0,
            Data::Everything => newest,
            Data::Prefix => same_for_all,
            Data::Sectors => match rng.below(3) {
                0 => 0,
                1 => newest,
                _ => rng.below(newest + 1),
            },
        }
    }

    fn tears(&self, rng: &mut Rng) -> bool {
        matches!(self.data, Data::Sectors) && self.torn > 0 && rng.one_in(self.torn)
    }
}

fn pick<'a, T>(rng: &mut Rng, of: &'a [T]) -> &'a T {
    &of[rng.below(of.len() as u64) as usize]
}

/// A change of names that was not synced.
#[derive(Clone, Debug)]
struct Renaming {
    op: Op,
    places: Vec<Place>,
}

/// A disk at one moment of a record.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Directories as they were synced; the files in here are empty.
    names: Image,
    files: BTreeMap<Ino, File>,
    pending: Vec<Renaming>,
    /// Directories called `blobs`.
    blobs: BTreeSet<Ino>,
    mistake: Option<Mistake>,
}

impl Disk {
    /// A disk on which everything in `base` is durable.
    pub fn new(base: &Image, mistake: Option<Mistake>) -> Self {
        let mut names = base.clone();
        let mut files = BTreeMap::new();
        for (ino, node) in &mut names.nodes {
            if let Node::File(bytes) = node {
                files.insert(*ino, File { durable: std::mem::take(bytes), pending: Vec::new() });
            }
        }
        let directories = base.nodes.keys().flat_map(|dir| base.entries(*dir));
        let blobs = directories.filter(|(name, _)| *name == BLOBS).map(|(_, ino)| ino).collect();
        Self { names, files, pending: Vec::new(), blobs, mistake }
    }

    /// The next operation of the record happens.
    pub fn advance(&mut self, op: &Op) {
        match op {
            Op::Create { place, ino, node } => {
                // The inode itself; nobody finds it before its name is there.
                self.names.nodes.insert(*ino, node.clone());
                match node {
                    Node::File(_) => _ = self.files.insert(*ino, File::default()),
                    Node::Directory(_) if place.name == BLOBS => _ = self.blobs.insert(*ino),
                    Node::Directory(_) | Node::Symlink(_) => {}
                }
                let op = Op::Link { place: place.clone(), ino: *ino };
                self.pending.push(Renaming { op, places: vec![place.clone()] });
            }
            Op::Link { place, .. } | Op::Remove { place } => {
                self.pending.push(Renaming { op: op.clone(), places: vec![place.clone()] });
            }
            Op::Rename { from, to } => {
                let places = vec![from.clone(), to.clone()];
                self.pending.push(Renaming { op: op.clone(), places });
            }
            Op::Write { ino, offset, data } => {
                let change = Change::Write { offset: *offset, data: data.clone() };
                self.change(*ino, change);
            }
            Op::Resize { ino, bytes } => self.change(*ino, Change::Resize(*bytes)),
            Op::Sync { ino } => {
                if self.mistake != Some(Mistake::FileSyncIgnored)
                    && let Some(file) = self.files.get_mut(ino)
                {
                    file.sync();
                    self.sync_blob_name(*ino);
                }
            }
            Op::SyncDirectory { ino } => {
                if self.mistake != Some(Mistake::DirectorySyncIgnored) {
                    self.settle(|place, _| place.dir == *ino);
                }
            }
            Op::SyncFailed { ino } => {
                if let Some(file) = self.files.get_mut(ino) {
                    file.lose();
                }
            }
            Op::Acknowledge(_) => {}
        }
    }

    fn change(&mut self, ino: Ino, change: Change) {
        if let Some(file) = self.files.get_mut(&ino) {
            file.pending.push(change);
        }
    }

    fn sync_blob_name(&mut self, file: Ino) {
        if self.mistake != Some(Mistake::StrictBlobs) {
            let blobs = std::mem::take(&mut self.blobs);
            self.settle(|place, ino| ino == Some(file) && blobs.contains(&place.dir));
            self.blobs = blobs;
        }
    }

    /// Makes changes of names durable, and all that they depend on: a rename takes the other
    /// directory along, and that the name's earlier history.
    fn settle(&mut self, chosen: impl Fn(&Place, Option<Ino>) -> bool) {
        let mut wanted = BTreeSet::new();
        let mut durable = vec![false; self.pending.len()];
        for (at, change) in self.pending.iter().enumerate().rev() {
            let ino = match &change.op {
                Op::Link { ino, .. } => Some(*ino),
                _ => None,
            };
            if change.places.iter().any(|p| chosen(p, ino) || wanted.contains(p)) {
                wanted.extend(change.places.iter().cloned());
                durable[at] = true;
            }
        }
        let mut durable = durable.into_iter();
        let names = &mut self.names;
        self.pending.retain(|change| {
            let happens = durable.next().unwrap_or(false);
            if happens {
                names.apply(&change.op);
            }
            !happens
        });
    }

    /// The state in which everything happened in its order.
    pub fn ordered(&self) -> Image {
        let mut image = self.names.clone();
        self.pending.iter().for_each(|change| image.apply(&change.op));
        self.fill(image, File::newest)
    }

    /// A state in which a seeded part of what was not synced happened.
    pub fn survivor(&self, luck: &Luck, rng: &mut Rng) -> Image {
        let mut image = self.names.clone();
        let mut lost: BTreeSet<&Place> = BTreeSet::new();
        for change in &self.pending {
            let possible = !change.places.iter().any(|place| lost.contains(place));
            if possible && rng.below(100) < luck.names {
                image.apply(&change.op);
            } else {
                lost.extend(&change.places);
            }
        }
        self.fill(image, |file| file.survivor(luck, rng))
    }

    /// The names that can be reached, with their bytes.
    fn fill(&self, names: Image, mut content: impl FnMut(&File) -> Vec<u8>) -> Image {
        let mut image = Image { nodes: BTreeMap::new() };
        let mut waiting = vec![ROOT];
        while let Some(ino) = waiting.pop() {
            if image.nodes.contains_key(&ino) {
                continue;
            }
            waiting.extend(names.entries(ino).map(|(_, ino)| ino));
            let node = match self.files.get(&ino) {
                Some(file) => Node::File(content(file)),
                None => names.nodes[&ino].clone(),
            };
            image.nodes.insert(ino, node);
        }
        image
    }
}
