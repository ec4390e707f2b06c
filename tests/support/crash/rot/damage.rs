//! What happens to the files of an image: drawn from a seed, or every one of a list.
//!
//! What must stay true: a damage changes something. Small files are hit as often as large ones, and
//! their beginnings and ends more often than their middles.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::image::{Bytes, Class, Image, SEGMENT_HEADER_LEN, frames};
use crate::chaos::Rng;

/// What kind of damage.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One bit.
    Flip,
    /// Several bits, in one file or in several.
    Flips,
    /// A run of bytes that are zeros now.
    Zeroed,
    /// A run of bytes that are anything now.
    Noise,
    /// A sector or page of another place, of this file or of another.
    Misdirected,
    Truncated,
    /// Zeros or anything behind the end.
    Extended,
    Removed,
    /// All zeros.
    Blank,
    /// An earlier state of one file, or a file that was gone.
    Stale,
    /// A tree as it was, without what names it.
    RolledBack,
    /// Two files of one kind exchanged.
    Swapped,
    /// Files of the same name in two partitions exchanged, or one in the place of the other.
    Twin,
    /// The file of that name of another keyspace.
    Foreign,
}

pub const KINDS: [Kind; 14] = [
    Kind::Flip,
    Kind::Flips,
    Kind::Zeroed,
    Kind::Noise,
    Kind::Misdirected,
    Kind::Truncated,
    Kind::Extended,
    Kind::Removed,
    Kind::Blank,
    Kind::Stale,
    Kind::RolledBack,
    Kind::Swapped,
    Kind::Twin,
    Kind::Foreign,
];

/// Every file that is not what it was, with the bytes it has now; `None` for a missing one.
#[derive(Clone, Debug)]
pub struct Damage {
    pub kind: Kind,
    pub what: String,
    pub files: BTreeMap<PathBuf, Option<Bytes>>,
}

/// Sectors and pages.
const BLOCKS: [usize; 2] = [512, 4096];
/// So many bytes at either end of a file are hit more often.
const EDGE: usize = 128;

impl Damage {
    fn new(
        kind: Kind,
        what: String,
        files: impl IntoIterator<Item = (PathBuf, Option<Bytes>)>,
    ) -> Self {
        Self { kind, what, files: files.into_iter().collect() }
    }

    fn one(kind: Kind, name: &Path, how: &str, bytes: Bytes) -> Self {
        let what = format!("{} {how}", name.display());
        Self::new(kind, what, [(name.to_path_buf(), Some(bytes))])
    }

    fn exchange(image: &Image, kind: Kind, one: &Path, other: &Path) -> Self {
        let what = format!("{} and {} exchanged", one.display(), other.display());
        let pair = [(one, other), (other, one)];
        let files = pair.map(|(at, from)| (at.to_path_buf(), Some(image.files[from].clone())));
        Self::new(kind, what, files)
    }

    /// Leaves out what did not change.
    fn effective(mut self, image: &Image) -> Option<Self> {
        self.files.retain(|name, bytes| image.files.get(name) != bytes.as_ref());
        (!self.files.is_empty()).then_some(self)
    }

    /// The damage that `rng` stands for.
    pub fn any(image: &Image, rng: &mut Rng) -> Self {
        loop {
            // Half of all cases are of the kinds that every file can suffer anywhere.
            let kinds = if rng.one_in(3) { &KINDS[..6] } else { &KINDS[..] };
            let kind = kinds[rng.below(kinds.len() as u64) as usize];
            if let Some(damage) = draw(image, kind, rng).and_then(|damage| damage.effective(image))
            {
                return damage;
            }
        }
    }
}

/// `None` where the image has nothing that can suffer so.
fn draw(image: &Image, kind: Kind, rng: &mut Rng) -> Option<Damage> {
    let name = &any_file(image, rng);
    let old = &image.files[name];
    match kind {
        Kind::Flip => {
            let (at, bit) = (place(image, name, rng)?, rng.below(8));
            let mut bytes = old.clone();
            bytes[at] ^= 1 << bit;
            Some(Damage::one(kind, name, &format!("bit {bit} of byte {at} flipped"), bytes))
        }
        Kind::Flips => flips(image, name, rng),
        Kind::Zeroed | Kind::Noise => {
            let at = place(image, name, rng)?;
            let len = some_len(10, rng).min(old.len() - at);
            let mut bytes = old.clone();
            bytes[at..at + len].fill(0);
            if kind == Kind::Noise {
                bytes[at..at + len].copy_from_slice(&rng.bytes(len));
            }
            Some(Damage::one(kind, name, &format!("bytes {at}..{} {kind:?}", at + len), bytes))
        }
        Kind::Misdirected => misdirected(image, name, rng),
        Kind::Truncated => {
            let len = place(image, name, rng)?;
            Some(Damage::one(kind, name, &format!("cut to {len} bytes"), old[..len].to_vec()))
        }
        Kind::Extended => {
            let len = some_len(13, rng);
            let more = if rng.one_in(2) { vec![0; len] } else { rng.bytes(len) };
            Some(Damage::one(
                kind,
                name,
                &format!("{len} bytes longer"),
                [&old[..], &more].concat(),
            ))
        }
        Kind::Removed => {
            let what = format!("{} removed", name.display());
            Some(Damage::new(kind, what, [(name.clone(), None)]))
        }
        Kind::Blank => Some(Damage::one(kind, name, "all zeros", vec![0; old.len()])),
        Kind::Stale => stale(image, rng),
        Kind::RolledBack => rolled_back(image, rng),
        Kind::Swapped => {
            let peers = image.all(image.class(name));
            let other = peers[rng.below(peers.len() as u64) as usize];
            (!twins(name, other)).then(|| Damage::exchange(image, kind, name, other))
        }
        Kind::Twin => {
            let peers: Vec<_> = image.files.keys().filter(|other| twins(name, other)).collect();
            let other = *peers.get(rng.below(peers.len().max(1) as u64) as usize)?;
            let mut damage = Damage::exchange(image, kind, name, other);
            if rng.one_in(2) {
                damage.what = format!("{} in the place of {}", other.display(), name.display());
                damage.files.remove(other);
            }
            Some(damage)
        }
        Kind::Foreign => {
            let bytes = image.stranger.get(name)?.clone();
            Some(Damage::one(kind, name, "of another keyspace", bytes))
        }
    }
}

/// A class first, then a file of it; or any file at all.
fn any_file(image: &Image, rng: &mut Rng) -> PathBuf {
    use Class::{Blob, Catalog, Checkpoint, Current, Lock, Manifest, Segment, Stray, Table};
    const USUAL: [Class; 8] = [Catalog, Current, Manifest, Checkpoint, Segment, Table, Blob, Lock];
    let pick = |names: Vec<&PathBuf>, rng: &mut Rng| {
        let at = rng.below(names.len().max(1) as u64) as usize;
        names.get(at).map(|name| (*name).clone())
    };
    loop {
        let names = match rng.below(50) {
            0 => image.all(Stray),
            1..15 => image.files.keys().collect(),
            _ => image.all(USUAL[rng.below(USUAL.len() as u64) as usize]),
        };
        if let Some(name) = pick(names, rng) {
            return name;
        }
    }
}

/// A byte of the file: near its beginning, near its end, at a frame's edge, or anywhere.
fn place(image: &Image, name: &Path, rng: &mut Rng) -> Option<usize> {
    let bytes = &image.files[name];
    let len = bytes.len();
    if len == 0 {
        return None;
    }
    let near =
        |at: usize, rng: &mut Rng| (at + rng.below(16) as usize).saturating_sub(8).min(len - 1);
    let is_segment = image.class(name) == Class::Segment;
    Some(match rng.below(4) {
        0 => rng.below(len.min(EDGE) as u64) as usize,
        1 if is_segment => match &frames(bytes)[..] {
            [] => near(SEGMENT_HEADER_LEN as usize, rng),
            all => near(all[rng.below(all.len() as u64) as usize].end as usize, rng),
        },
        1 => len - 1 - rng.below(len.min(EDGE) as u64) as usize,
        // Most of a segment may be zeros.
        2 if is_segment => {
            let end = frames(bytes).last().map_or(SEGMENT_HEADER_LEN, |frame| frame.end);
            rng.below(end.min(len as u64)) as usize
        }
        _ => rng.below(len as u64) as usize,
    })
}

/// From 1 to 2^`bits`, the small ones more often.
fn some_len(bits: u64, rng: &mut Rng) -> usize {
    let most = 1 << rng.below(bits + 1);
    1 + rng.below(most) as usize
}

fn flips(image: &Image, name: &Path, rng: &mut Rng) -> Option<Damage> {
    let mut files = BTreeMap::new();
    let (count, spread) = (2 + rng.below(5), rng.one_in(2));
    let mut what = Vec::new();
    let mut at_file = name.to_path_buf();
    for _ in 0..count {
        let at = place(image, &at_file, rng)?;
        let bytes: &mut Bytes =
            files.entry(at_file.clone()).or_insert_with(|| image.files[&at_file].clone());
        bytes[at] ^= 1 << rng.below(8);
        what.push(format!("{} byte {at}", at_file.display()));
        if spread {
            at_file = any_file(image, rng);
        }
    }
    let files = files.into_iter().map(|(name, bytes)| (name, Some(bytes)));
    Some(Damage::new(Kind::Flips, format!("bits flipped: {}", what.join(", ")), files))
}

/// A block that was meant for another place is written over one of this file.
fn misdirected(image: &Image, name: &Path, rng: &mut Rng) -> Option<Damage> {
    let len = BLOCKS[rng.below(2) as usize];
    let from_name = if rng.one_in(2) { name.to_path_buf() } else { any_file(image, rng) };
    let (from, mut bytes) = (&image.files[&from_name], image.files[name].clone());
    let block = |bytes: &Bytes, rng: &mut Rng| {
        len * rng.below(bytes.len().div_ceil(len).max(1) as u64) as usize
    };
    let (source, target) = (block(from, rng), block(&bytes, rng));
    let count = len.min(from.len().checked_sub(source)?).min(bytes.len().checked_sub(target)?);
    bytes[target..target + count].copy_from_slice(&from[source..source + count]);
    let how = format!(
        "bytes {target}..{} are those at {source} of {}",
        target + count,
        from_name.display()
    );
    Some(Damage::one(Kind::Misdirected, name, &how, bytes))
}

fn stale(image: &Image, rng: &mut Rng) -> Option<Damage> {
    // Mostly files that are there: what is gone is named by nothing.
    let gone = rng.one_in(10);
    let names = image.old.keys().filter(|name| gone != image.files.contains_key(*name));
    let names: Vec<_> = names.collect();
    let name = names.get(rng.below(names.len().max(1) as u64) as usize)?;
    let versions = &image.old[*name];
    let age = rng.below(versions.len() as u64) as usize;
    let how = format!("as it was once, state {age} of {}", versions.len());
    Some(Damage::one(Kind::Stale, name, &how, versions[age].clone()))
}

/// The `current` of a tree as it was, alone or with everything that it named.
fn rolled_back(image: &Image, rng: &mut Rng) -> Option<Damage> {
    let currents = image.all(Class::Current);
    let current = *currents.get(rng.below(currents.len().max(1) as u64) as usize)?;
    let versions = image.old.get(current)?;
    let version = &versions[rng.below(versions.len() as u64) as usize];
    Some(tree_at(image, current, version, rng.one_in(3)))
}

fn tree_at(image: &Image, current: &Path, version: &Bytes, alone: bool) -> Damage {
    let tree = current.parent().unwrap_or(current);
    let mut files = BTreeMap::from([(current.to_path_buf(), Some(version.clone()))]);
    if !alone {
        // Tables never change, so that those of all times can be there.
        let gone = image.old.iter().filter(|(name, _)| !image.files.contains_key(*name));
        for (name, bytes) in gone.filter(|(name, _)| name.starts_with(tree)) {
            files.insert(name.clone(), bytes.last().cloned());
        }
    }
    let with = if alone { "alone" } else { "with its files" };
    let what = format!("{} rolled back {with}", current.display());
    Damage::new(Kind::RolledBack, what, files)
}

/// The same name in two trees.
fn twins(one: &Path, other: &Path) -> bool {
    let part = |name: &Path, at: usize| name.iter().nth(at).map(ToOwned::to_owned);
    one != other
        && one.starts_with("partitions")
        && other.starts_with("partitions")
        && part(one, 1) != part(other, 1)
        && one.iter().skip(2).eq(other.iter().skip(2))
}

/// In the zeros behind the last frame, beyond the first of them, one in so many is flipped.
const ZEROS_STEP: u64 = 37;

/// One bit of every byte.
pub fn every_flip(image: &Image) -> impl Iterator<Item = Damage> + '_ {
    let places = image.files.iter().flat_map(|(name, bytes)| {
        let end = frames(bytes).last().map_or(SEGMENT_HEADER_LEN, |frame| frame.end);
        let is_segment = image.class(name) == Class::Segment;
        let left_out = move |at: usize| {
            let at = at as u64;
            is_segment && at > end + 8 && !(at - end).is_multiple_of(ZEROS_STEP)
        };
        (0..bytes.len()).filter(move |at| !left_out(*at)).map(move |at| (name, at))
    });
    (1..).zip(places).map(|(number, (name, at))| {
        let (mut bytes, bit) = (image.files[name].clone(), number % 8);
        bytes[at] ^= 1 << bit;
        Damage::one(Kind::Flip, name, &format!("bit {bit} of byte {at} flipped"), bytes)
    })
}

/// A file is cut at every so many bytes.
const TRUNCATE_STEP: usize = 64;

/// Every file cut, exchanged with every other of its kind, removed, and replaced by every earlier
/// state of it.
pub fn every_file(image: &Image) -> impl Iterator<Item = Damage> + '_ {
    let mut all = Vec::new();
    for (name, bytes) in &image.files {
        for len in (0..bytes.len()).step_by(TRUNCATE_STEP) {
            let how = format!("cut to {len} bytes");
            all.push(Damage::one(Kind::Truncated, name, &how, bytes[..len].to_vec()));
        }
        let class = image.class(name);
        for other in image.all(class).into_iter().filter(|other| *other > name) {
            let kind = if twins(name, other) { Kind::Twin } else { Kind::Swapped };
            all.push(Damage::exchange(image, kind, name, other));
        }
        let what = format!("{} removed", name.display());
        all.push(Damage::new(Kind::Removed, what, [(name.clone(), None)]));
        for (age, version) in image.old.get(name).into_iter().flatten().enumerate() {
            let how = format!("as it was once, state {age}");
            all.push(Damage::one(Kind::Stale, name, &how, version.clone()));
            if class == Class::Current {
                all.push(tree_at(image, name, version, false));
            }
        }
        if let Some(bytes) = image.stranger.get(name) {
            all.push(Damage::one(Kind::Foreign, name, "of another keyspace", bytes.clone()));
        }
    }
    all.into_iter().filter_map(|damage| damage.effective(image))
}
