//! lsm-tree's `current` and version manifests (`v<N>`): bytes ↔ lists of files.
//!
//! lsm-tree trusts both blindly (a flipped bit in `current` can roll a tree back, and opening it
//! then deletes the newer tables), so every open, copy and verify goes through `check` first. The
//! layouts are those of lsm-tree 3.1.10 and the crate `sfa` 1.0; docs/format.md retells them.
//! Checkpoints `encode` manifests, byte for byte what lsm-tree would write.

use std::fs::File;
use std::io::{Cursor, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use crate::bytes::{Put, Take, Truncated};
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::planted::{Bug, is_planted};

/// What lsm-tree writes into every manifest it persists.
const CRATE_VERSION: &[u8] = b"3.1.10";
const FORMAT_VERSION: u8 = 3;
const LEVELS: u8 = 7;
const HASH_XXH3: u8 = 0;
const CURRENT_LEN: usize = 8 + 16 + 1;
/// The section of a table that lists blob files, and the length of an entry.
const LINKED_FILES: &[u8] = b"linked_blob_files";
const LINKED_FILE_LEN: u64 = 4 * 8;
/// The section of a blob file that describes it: a block of entries in the order of their keys.
const BLOB_META: &[u8] = b"meta";
const BLOB_META_LEN_MAX: u64 = 4 << 10;
/// The key of the entry behind which the kind of compression stands, between their lengths.
const BLOB_COMPRESSION: &[u8] = b"\x0bcompression\x01";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableEntry {
    pub(crate) id: u64,
    /// xxh3-128 of the whole file.
    pub(crate) checksum: u128,
    pub(crate) global_seqno: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobEntry {
    pub(crate) id: u64,
    /// What lsm-tree recorded; see `verify` for how it is made.
    pub(crate) checksum: u128,
}

/// One version: which files make up the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) id: u64,
    pub(crate) separates_values: bool,
    /// Levels of runs of tables.
    pub(crate) levels: Vec<Vec<Vec<TableEntry>>>,
    pub(crate) blobs: Vec<BlobEntry>,
    /// Encoded by lsm-tree; opaque to us.
    pub(crate) gc_stats: Vec<u8>,
}

/// A version manifest whose bytes are what `current` says.
pub(crate) struct Checked {
    pub(crate) version: Version,
    pub(crate) manifest: Vec<u8>,
    pub(crate) current: Vec<u8>,
    /// xxh3-128 of the manifest.
    pub(crate) hash: u128,
}

impl Version {
    pub(crate) fn tables(&self) -> impl Iterator<Item = &TableEntry> {
        self.levels.iter().flatten().flatten()
    }

    pub(crate) fn encode(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Cursor::new(Vec::new());
        let mut writer = sfa::Writer::from_writer(&mut bytes);
        let mut section = |name: &str, content: &[u8]| {
            writer.start(name)?;
            writer.write_all(content)
        };
        section("format_version", &[FORMAT_VERSION])?;
        section("crate_version", CRATE_VERSION)?;
        section("tree_type", &[u8::from(self.separates_values)])?;
        section("level_count", &[self.levels.len() as u8])?;
        section("filter_hash_type", &[HASH_XXH3])?;
        section("tables", &self.encode_tables())?;
        section("blob_files", &self.encode_blobs())?;
        section("blob_gc_stats", &self.gc_stats)?;
        writer.finish().map_err(std::io::Error::other)?;
        Ok(bytes.into_inner())
    }

    fn encode_tables(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u8(self.levels.len() as u8);
        for level in &self.levels {
            assert!(level.len() <= 255, "a level of more than 255 runs cannot be written");
            out.put_u8(level.len() as u8);
            for run in level {
                out.put_u32(run.len() as u32);
                for table in run {
                    out.put_u64(table.id);
                    out.put_u8(HASH_XXH3);
                    out.put_u128(table.checksum);
                    out.put_u64(table.global_seqno);
                }
            }
        }
        out
    }

    fn encode_blobs(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32(self.blobs.len() as u32);
        for blob in &self.blobs {
            out.put_u64(blob.id);
            out.put_u8(HASH_XXH3);
            out.put_u128(blob.checksum);
        }
        out
    }

    /// Parses the manifest at `path`, if it is the one that `current` was written for.
    pub(crate) fn check(bytes: &[u8], id: u64, expected: u128, path: &Path) -> Result<Self> {
        let found = xxh3_128(bytes);
        if found != expected && !is_planted(Bug::CurrentNotChecked) {
            return Err(Error::corrupt_because(
                path,
                None,
                "the manifest is not the one that `current` was written for",
                format!("{expected:032x}"),
                format!("{found:032x}"),
            ));
        }
        Self::decode(bytes, id, path)
    }

    /// Parses a manifest whose checksum was right; an error still names what is odd about it.
    fn decode(bytes: &[u8], id: u64, path: &Path) -> Result<Self> {
        let odd = |what: &str| Error::corrupt(path, None, what.to_owned());
        check_contents(bytes).ok_or_else(|| odd("the table of contents is not whole"))?;
        let reader = sfa::Reader::from_reader(&mut Cursor::new(bytes))
            .map_err(|e| odd(&format!("the archive cannot be read: {e:?}")))?;
        let section = |name: &str| {
            let entry = reader.toc().section(name.as_bytes());
            entry
                .and_then(|e| bytes.get(e.pos() as usize..e.pos().checked_add(e.len())? as usize))
                .ok_or_else(|| odd(&format!("the section {name} is missing")))
        };
        let format = section("format_version")?;
        if format != [FORMAT_VERSION] || section("level_count")? != [LEVELS] {
            return Err(odd("the manifest has a format or level count that lsm-tree 3.1 lacks"));
        }
        let separates_values = match section("tree_type")? {
            [0] => false,
            [1] => true,
            _ => return Err(odd("the manifest is of a tree of no known type")),
        };
        let wrong = |_: Truncated| odd("a section does not hold what it should");
        Ok(Self {
            id,
            separates_values,
            levels: decode_tables(&mut Take::new(section("tables")?)).map_err(wrong)?,
            blobs: decode_blobs(&mut Take::new(section("blob_files")?)).map_err(wrong)?,
            gc_stats: section("blob_gc_stats")?.to_vec(),
        })
    }
}

fn decode_tables(
    input: &mut Take<'_>,
) -> std::result::Result<Vec<Vec<Vec<TableEntry>>>, Truncated> {
    let mut levels = Vec::new();
    for _ in 0..input.u8()? {
        let mut level = Vec::new();
        for _ in 0..input.u8()? {
            let mut run = Vec::new();
            for _ in 0..input.u32()? {
                let (id, _hash) = (input.u64()?, input.u8()?);
                run.push(TableEntry { id, checksum: input.u128()?, global_seqno: input.u64()? });
            }
            level.push(run);
        }
        levels.push(level);
    }
    (input.is_empty() && levels.len() == usize::from(LEVELS)).then_some(levels).ok_or(Truncated)
}

fn decode_blobs(input: &mut Take<'_>) -> std::result::Result<Vec<BlobEntry>, Truncated> {
    let mut blobs = Vec::new();
    for _ in 0..input.u32()? {
        let (id, _hash) = (input.u64()?, input.u8()?);
        blobs.push(BlobEntry { id, checksum: input.u128()? });
    }
    input.is_empty().then_some(blobs).ok_or(Truncated)
}

/// `current`: version id, xxh3-128 of `v<id>`, hash kind.
pub(crate) fn encode_current(id: u64, manifest: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(CURRENT_LEN);
    out.put_u64(id);
    out.put_u128(xxh3_128(manifest));
    out.put_u8(HASH_XXH3);
    out
}

/// The version id and the checksum of its manifest.
pub(crate) fn decode_current(bytes: &[u8], path: &Path) -> Result<(u64, u128)> {
    let parse = || {
        let mut input = Take::new(bytes);
        let (id, checksum, hash) = (input.u64().ok()?, input.u128().ok()?, input.u8().ok()?);
        (input.is_empty() && hash == HASH_XXH3).then_some((id, checksum))
    };
    parse().ok_or_else(|| {
        Error::corrupt_because(
            path,
            Some(0),
            "this is no pointer to a version manifest",
            format!("{CURRENT_LEN} bytes that end in 0"),
            format!("{} bytes", bytes.len()),
        )
    })
}

/// The end of every table and blob file (an `sfa` archive): magic, version, hash kind, hash and
/// position of the table of contents, its length.
const TRAILER_LEN: usize = 4 + 1 + 1 + 16 + 8 + 8;
/// A table's contents have a few dozen bytes per section and about ten sections.
const CONTENTS_LEN_MAX: u64 = 1 << 20;

/// Whether the table of contents of a manifest is whole.
fn check_contents(archive: &[u8]) -> Option<()> {
    let trailer_at = archive.len().checked_sub(TRAILER_LEN)?;
    let position = Take::new(archive.get(trailer_at + 22..)?).u64().ok()?;
    count_contents(archive.get(usize::try_from(position).ok()?..trailer_at)?)
}

/// Whether a table of contents holds as many entries as it says. `sfa` allocates for that number
/// before it reads the first one.
fn count_contents(contents: &[u8]) -> Option<()> {
    let mut input = Take::new(contents);
    if input.bytes(4).ok()? != b"TOC!" {
        return None;
    }
    for _ in 0..input.u32().ok()? {
        let (_position, _len) = (input.u64().ok()?, input.u64().ok()?);
        let name_len = input.u16().ok()?;
        input.bytes(name_len.into()).ok()?;
    }
    input.is_empty().then_some(())
}

/// The table of contents of a table or blob file, which is whole, and where it begins.
struct Contents {
    file: File,
    bytes: Vec<u8>,
    position: u64,
}

fn read_contents(path: &Path) -> Result<Contents> {
    let file = File::open(path).at("open", path)?;
    let len = file.metadata().at("inspect", path)?.len();
    let odd = |offset: u64, what: &str| Err(Error::corrupt(path, Some(offset), what));
    let Some(trailer_at) = len.checked_sub(TRAILER_LEN as u64) else {
        return odd(len, "the file is too short");
    };
    let mut trailer = [0; TRAILER_LEN];
    file.read_exact_at(&mut trailer, trailer_at).at("read", path)?;
    let mut fields = Take::new(&trailer[6..]);
    let (Ok(expected), Ok(position)) = (fields.u128(), fields.u64()) else {
        return odd(trailer_at, "the trailer is cut short");
    };
    if &trailer[..6] != b"SFA!\x01\x00" || position > trailer_at {
        return odd(trailer_at, "the trailer is not that of a table or blob file");
    }
    if trailer_at - position > CONTENTS_LEN_MAX {
        return odd(trailer_at, "the trailer gives an impossible position");
    }
    let mut bytes = vec![0; (trailer_at - position) as usize];
    file.read_exact_at(&mut bytes, position).at("read", path)?;
    let found = xxh3_128(&bytes);
    if found != expected {
        return Err(Error::corrupt_because(
            path,
            Some(position),
            "the hash of the table of contents does not match",
            format!("{expected:032x}"),
            format!("{found:032x}"),
        ));
    }
    if count_contents(&bytes).is_none() {
        return odd(position, "the table of contents is not whole");
    }
    Ok(Contents { file, bytes, position })
}

/// Checks the table of contents of a table or blob file, and a table's count of the blob files that it
/// refers to. lsm-tree allocates what they say before it looks at a hash, or at the bytes.
pub(crate) fn check_archive(path: &Path) -> Result<()> {
    let Contents { file, bytes, position } = read_contents(path)?;
    let odd = |offset: u64, what: &str| Err(Error::corrupt(path, Some(offset), what));
    let Some((at, len)) = find_section(&bytes, LINKED_FILES) else { return Ok(()) };
    let mut count = [0; 4];
    if at.checked_add(len).is_none_or(|end| end > position) || len < count.len() as u64 {
        return odd(at, "the list of blob files is cut short");
    }
    file.read_exact_at(&mut count, at).at("read", path)?;
    let listed = u64::from(u32::from_le_bytes(count)) * LINKED_FILE_LEN;
    if listed != len - count.len() as u64 {
        return odd(at, "the list of blob files has another length than it says");
    }
    Ok(())
}

/// How the values in a blob file are compressed: 0 not at all, 1 with LZ4.
pub(crate) fn blob_compression(path: &Path) -> Result<u8> {
    let Contents { file, bytes, position } = read_contents(path)?;
    let odd = |what: &str| Error::corrupt(path, Some(position), what);
    let (at, len) =
        find_section(&bytes, BLOB_META).ok_or_else(|| odd("the blob file has no description"))?;
    // Before the largest and the smallest key, which come last, it is a hundred bytes.
    let mut meta = vec![0; len.min(BLOB_META_LEN_MAX) as usize];
    file.read_exact_at(&mut meta, at).at("read", path)?;
    let found = meta.windows(BLOB_COMPRESSION.len() + 1).find(|w| w.starts_with(BLOB_COMPRESSION));
    let kind = found.and_then(<[u8]>::last).copied();
    kind.ok_or_else(|| odd("the blob file does not say how its values are compressed"))
}

/// Position and length of a section, by the table of contents, which is whole.
fn find_section(contents: &[u8], wanted: &[u8]) -> Option<(u64, u64)> {
    let mut input = Take::new(contents.get(4..)?);
    for _ in 0..input.u32().ok()? {
        let (position, len) = (input.u64().ok()?, input.u64().ok()?);
        let name_len = input.u16().ok()?;
        if input.bytes(name_len.into()).ok()? == wanted {
            return Some((position, len));
        }
    }
    None
}

/// Reads `current` and the manifest it names, and refuses them when they do not match.
pub(crate) fn check(tree: &Path) -> Result<Checked> {
    let current_path = files::current(tree);
    let current = files::read(&current_path)?;
    let (id, expected) = decode_current(&current, &current_path)?;
    let path = files::version(tree, id);
    let manifest = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let what = format!("it names the manifest v{id}, which does not exist");
            return Err(Error::corrupt(&current_path, Some(0), what));
        }
        Err(e) => return Err(Error::io("read", &path, e)),
    };
    let version = Version::check(&manifest, id, expected, &path)?;
    Ok(Checked { version, manifest, current, hash: expected })
}
