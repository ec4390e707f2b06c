//! A backup's manifest: bytes ↔ every file of it, in full. The grammar is in docs/format.md, "Backup".
//!
//! What must stay true: a manifest that was decoded is safe to follow. Its paths are those of a
//! keyspace and none comes twice, its lengths agree with each other, each tree belongs to one partition,
//! and decoding it takes memory in proportion to what is stored, whatever it claims.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Read as _;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::envelope::Envelope;
use crate::error::{Error, Result};
use crate::layout::{BackupId, PIECE_BYTES, PIECES_MAX, check_directory, check_path, parse_hex};
use crate::piece;
use crate::seal::Sealer;

const ENVELOPE: Envelope = Envelope { magic: b"ESKRBKP\0", version: 1, called: "manifest" };
/// Unpacked, a manifest is no longer: some ten million files.
const JSON_BYTES_MAX: u64 = 2 << 30;
/// As stored, it is no longer: what does not compress of a list is less than half of it.
pub(crate) const STORED_BYTES_MAX: u64 = 1 << 30;
/// Files up to this length stand in the manifest itself unless they are tables: CATALOG, CHECKPOINT,
/// `current` and most version manifests, which are new in every backup and would be an object each.
pub(crate) const INLINE_BYTES_MAX: u64 = 16 << 10;
const LEVEL: i32 = 3;
/// Unpacked, a manifest is no longer than so many times what is stored, and this much more. Lists of
/// files take a tenth of it: their hashes do not compress. What does is padded.
const UNPACKED_PER_STORED: u64 = 64;
const UNPACKED_FREE: u64 = 1 << 20;
/// Log of the most memory that unpacking may look back at: 8 MiB, which any decoder of zstd has.
const WINDOW_LOG_MAX: u32 = 23;
/// Begins what decoders of zstd skip; its length follows.
const SKIPPED: u32 = 0x184d_2a50;

/// One backup, as its manifest tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) id: BackupId,
    pub(crate) created_ms: u64,
    pub(crate) label: Option<String>,
    /// In it, and left out of it; sorted.
    pub(crate) partitions: Vec<String>,
    pub(crate) left_out: Vec<String>,
    /// Bytes of objects that were not there before.
    pub(crate) added_bytes: u64,
    /// Directories of trees, which may be empty: `partitions/<tree>/tables` and `…/blobs`.
    pub(crate) directories: Vec<String>,
    pub(crate) files: Vec<File>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// Of its content.
    pub(crate) xxh3: u128,
    /// The partition that it belongs to, if any.
    pub(crate) partition: Option<String>,
    pub(crate) content: Content,
}

/// Where a file's content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Here.
    Inline(Vec<u8>),
    /// In objects of so many bytes.
    Pieces(Vec<u64>),
}

impl Manifest {
    /// Raw bytes of all files.
    pub(crate) fn raw_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    created_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    partitions: Vec<String>,
    left_out: Vec<String>,
    added_bytes: u64,
    directories: Vec<String>,
    #[serde(borrow)]
    files: Vec<Entry<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry<'a> {
    #[serde(borrow)]
    path: Cow<'a, str>,
    bytes: u64,
    #[serde(borrow)]
    xxh3: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    partition: Option<Text<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    inline: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pieces: Vec<u64>,
}

impl<'a> Entry<'a> {
    fn of(file: &'a File) -> Self {
        let (inline, pieces) = match &file.content {
            Content::Inline(bytes) => (Some(Text(to_hex(bytes).into())), Vec::new()),
            Content::Pieces(pieces) => (None, pieces.clone()),
        };
        Self {
            path: file.path.as_str().into(),
            bytes: file.bytes,
            xxh3: format!("{:032x}", file.xxh3).into(),
            partition: file.partition.as_deref().map(|name| Text(name.into())),
            inline,
            pieces,
        }
    }
}

/// Text that is copied out of the list only if it is escaped there. A type of its own, because serde
/// borrows what is in an `Option` in no other way.
#[derive(Serialize, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Manifest {
    /// Refuses a list that is too long for any reader.
    pub(crate) fn encode(&self, sealer: &Sealer) -> Result<Vec<u8>> {
        let body = Body {
            created_ms: self.created_ms,
            label: self.label.clone(),
            partitions: self.partitions.clone(),
            left_out: self.left_out.clone(),
            added_bytes: self.added_bytes,
            directories: self.directories.clone(),
            files: self.files.iter().map(Entry::of).collect(),
        };
        let json = serde_json::to_vec(&body).expect("plain values have a JSON");
        let object = Self::wrap(self.id, &json, sealer);
        if json.len() as u64 > JSON_BYTES_MAX || object.len() as u64 > STORED_BYTES_MAX {
            let what = format!("a backup of {} files is too large to be listed", self.files.len());
            return Err(Error::InvalidInput(what));
        }
        Ok(object)
    }

    /// The object of a list.
    pub(crate) fn wrap(id: BackupId, json: &[u8], sealer: &Sealer) -> Vec<u8> {
        ENVELOPE.wrap(&id.object(), pack(json).into(), sealer)
    }

    /// Parses and checks the manifest of `id`.
    pub(crate) fn decode(id: BackupId, bytes: &[u8], sealer: &Sealer) -> Result<Self> {
        let object = id.object().to_string();
        let corrupt = |what: &str| Error::corrupt(&object, what);
        let packed = ENVELOPE.open(&id.object(), bytes, sealer)?;
        let json = unpack(&packed).ok_or_else(|| corrupt("it does not decompress"))?;
        let body: Body<'_> = serde_json::from_slice(&json)
            .map_err(|e| corrupt(&format!("its list cannot be read: {e}")))?;
        Self::check(id, body).map_err(|what| corrupt(&what))
    }

    fn check(id: BackupId, mut body: Body<'_>) -> std::result::Result<Self, String> {
        let mut paths = HashSet::with_capacity(body.files.len());
        let mut total = 0_u64;
        let mut files = Vec::with_capacity(body.files.len());
        for entry in std::mem::take(&mut body.files) {
            let path = entry.path.clone();
            let file = check_entry(entry).map_err(|what| format!("{path:?}: {what}"))?;
            let sum = total.checked_add(file.bytes).filter(|sum| *sum < 1 << 60);
            total = sum.ok_or("its files are longer than any disk")?;
            if !paths.insert(path) {
                return Err(format!("{:?} is there twice", file.path));
            }
            files.push(file);
        }
        if let Some(name) = ["CATALOG", "CHECKPOINT"].iter().find(|name| !paths.contains(**name)) {
            return Err(format!("it has no {name}"));
        }
        check_names(&body)?;
        let trees = check_trees(&files, &body.partitions)?;
        check_directories(&body.directories, &trees)?;
        let Body { created_ms, label, partitions, left_out, added_bytes, directories, .. } = body;
        Ok(Self { id, created_ms, label, partitions, left_out, added_bytes, directories, files })
    }
}

/// Partitions as a checkpoint lists them: names that can be, sorted, each once.
fn check_names(body: &Body<'_>) -> std::result::Result<(), String> {
    for names in [&body.partitions, &body.left_out] {
        let wrong = |name: &&String| !(1..=255).contains(&name.len()) || name.contains(['/', '\0']);
        if let Some(name) = names.iter().find(wrong) {
            return Err(format!("{name:?} is no name of a partition"));
        }
        if !names.is_sorted_by(|a, b| a < b) {
            return Err("its partitions are not in order, or come twice".into());
        }
    }
    Ok(())
}

/// The tree of a path below `partitions`.
fn tree_of(path: &str) -> Option<&str> {
    Some(path.strip_prefix("partitions/")?.split_once('/')?.0)
}

/// Each tree belongs to one partition, all of it, and what is in no tree to none: who restores some
/// partitions gets them whole.
fn check_trees<'a>(
    files: &'a [File],
    partitions: &[String],
) -> std::result::Result<BTreeMap<&'a str, &'a str>, String> {
    let mut trees = BTreeMap::new();
    for file in files {
        let wrong = || format!("{:?} is not said to belong where it does", file.path);
        match (tree_of(&file.path), &file.partition) {
            (None, None) => {}
            (Some(tree), Some(name)) => {
                let known = *trees.entry(tree).or_insert(name.as_str());
                if known != name || partitions.binary_search(name).is_err() {
                    return Err(wrong());
                }
            }
            _ => return Err(wrong()),
        }
    }
    let names: BTreeSet<_> = trees.values().collect();
    if names.len() != trees.len() {
        return Err("it has two trees of one partition".into());
    }
    Ok(trees)
}

/// Directories of trees that have files, each once: no more of them than of files.
fn check_directories(
    directories: &[String],
    trees: &BTreeMap<&str, &str>,
) -> std::result::Result<(), String> {
    let mut seen = BTreeSet::new();
    for directory in directories {
        check_directory(directory).map_err(|e| e.to_string())?;
        let is_of_a_tree = tree_of(directory).is_some_and(|tree| trees.contains_key(tree));
        if !is_of_a_tree || !seen.insert(directory) {
            return Err(format!("{directory:?} belongs to no tree of it, or is there twice"));
        }
    }
    Ok(())
}

fn check_entry(entry: Entry<'_>) -> std::result::Result<File, String> {
    check_path(&entry.path).map_err(|e| e.to_string())?;
    let xxh3 = parse_hex(&entry.xxh3, 32).ok_or("its hash is none")?;
    let content = match entry.inline {
        Some(_) if !entry.pieces.is_empty() => return Err("it is here and elsewhere".into()),
        Some(Text(text)) => {
            let bytes = from_hex(&text).ok_or("its content is not pairs of hex digits")?;
            if bytes.len() as u64 != entry.bytes || xxh3_128(&bytes) != xxh3 {
                return Err("its content is another one".into());
            }
            Content::Inline(bytes)
        }
        None => {
            let pieces = entry.bytes.div_ceil(PIECE_BYTES);
            if pieces > PIECES_MAX || entry.pieces.len() as u64 != pieces {
                return Err("its pieces do not make up its length".into());
            }
            for (number, stored) in (0..).zip(&entry.pieces) {
                let raw = (entry.bytes - number * PIECE_BYTES).min(PIECE_BYTES);
                if *stored > piece::stored_bytes_max(raw) || *stored <= piece::tail_bytes(raw) {
                    return Err("a piece of it cannot be as long as it says".into());
                }
            }
            Content::Pieces(entry.pieces)
        }
    };
    let partition = entry.partition.map(|Text(name)| name.into_owned());
    Ok(File { path: entry.path.into_owned(), bytes: entry.bytes, xxh3, partition, content })
}

/// The longest list that so many stored bytes may unpack to.
fn unpacked_bytes_max(stored_bytes: u64) -> u64 {
    let ample = stored_bytes.saturating_mul(UNPACKED_PER_STORED).saturating_add(UNPACKED_FREE);
    ample.min(JSON_BYTES_MAX)
}

/// Compressed, and padded where that was too good to be believed.
fn pack(json: &[u8]) -> Vec<u8> {
    let mut packed = zstd::bulk::compress(json, LEVEL).expect("a level that zstd has");
    let wanted = (json.len() as u64).saturating_sub(UNPACKED_FREE).div_ceil(UNPACKED_PER_STORED);
    let missing = wanted.saturating_sub(packed.len() as u64);
    if missing > 0 {
        // No list is so long that this does not fit.
        let padding = u32::try_from(missing).expect("the part of a list that is in memory");
        packed.extend_from_slice(&SKIPPED.to_le_bytes());
        packed.extend_from_slice(&padding.to_le_bytes());
        packed.resize(packed.len() + padding as usize, 0);
    }
    packed
}

fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let limit = unpacked_bytes_max(packed.len() as u64);
    let mut reader = zstd::stream::read::Decoder::with_buffer(packed).ok()?;
    reader.window_log_max(WINDOW_LOG_MAX).ok()?;
    let mut json = Vec::new();
    let read = reader.take(limit + 1).read_to_end(&mut json).ok()?;
    (read as u64 <= limit).then_some(json)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(parse_hex(std::str::from_utf8(pair).ok()?, 2)? as u8)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::envelope::HEADER_BYTES;
    use crate::seal::Key;

    pub(crate) fn example() -> Manifest {
        let inline = b"a catalog".to_vec();
        Manifest {
            id: BackupId { uuid: 1, timeline: 2, seqno: 77, tag: 4 },
            created_ms: 5,
            label: Some("before the upgrade".into()),
            partitions: vec!["users".into()],
            left_out: vec!["statistics".into()],
            added_bytes: 6,
            directories: vec!["partitions/3/blobs".into()],
            files: vec![
                File {
                    path: "CATALOG".into(),
                    bytes: 9,
                    xxh3: xxh3_128(&inline),
                    partition: None,
                    content: Content::Inline(inline.clone()),
                },
                File {
                    path: "CHECKPOINT".into(),
                    bytes: 9,
                    xxh3: xxh3_128(&inline),
                    partition: None,
                    content: Content::Inline(inline),
                },
                File {
                    path: "partitions/3/tables/0".into(),
                    bytes: PIECE_BYTES + 5,
                    xxh3: 9,
                    partition: Some("users".into()),
                    content: Content::Pieces(vec![1000, 90]),
                },
            ],
        }
    }

    #[test]
    fn a_manifest_comes_back() {
        for sealer in [Sealer::new(None), Sealer::new(Some(&Key::generate()))] {
            let manifest = example();
            let bytes = manifest.encode(&sealer).unwrap();
            assert_eq!(Manifest::decode(manifest.id, &bytes, &sealer).unwrap(), manifest);
            let hidden = !bytes.windows(5).any(|window| window == b"users");
            assert!(hidden || !sealer.is_sealing());
        }
    }

    #[test]
    fn every_flipped_bit_every_cut_and_another_name_is_refused() {
        for sealer in [Sealer::new(None), Sealer::new(Some(&Key::generate()))] {
            let manifest = example();
            let bytes = manifest.encode(&sealer).unwrap();
            for at in 0..bytes.len() {
                let mut rotten = bytes.clone();
                rotten[at] ^= 1 << (at % 8);
                assert!(Manifest::decode(manifest.id, &rotten, &sealer).is_err(), "byte {at}");
                assert!(Manifest::decode(manifest.id, &bytes[..at], &sealer).is_err(), "cut {at}");
            }
            let other = BackupId { seqno: 78, ..manifest.id };
            assert!(Manifest::decode(other, &bytes, &sealer).is_err());
        }
    }

    #[test]
    fn a_manifest_that_lies_is_refused() {
        let refuse = |what: &str, change: &dyn Fn(&mut Manifest)| {
            let mut manifest = example();
            change(&mut manifest);
            let sealer = Sealer::new(None);
            let decoded =
                Manifest::decode(manifest.id, &manifest.encode(&sealer).unwrap(), &sealer);
            let error = decoded.unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        refuse("no file of a keyspace", &|m| m.files[0].path = "../CATALOG".into());
        refuse("no directory of", &|m| m.directories[0] = "partitions/3/..".into());
        refuse("has no CHECKPOINT", &|m| _ = m.files.remove(1));
        refuse("belongs to no tree", &|m| m.directories[0] = "partitions/4/blobs".into());
        refuse("belongs to no tree", &|m| m.directories.push(m.directories[0].clone()));
        refuse("no name of a partition", &|m| m.partitions[0] = "a/b".into());
        refuse("no name of a partition", &|m| m.left_out[0] = String::new());
        refuse("not in order", &|m| m.left_out.push("rates".into()));
        refuse("belong where it does", &|m| m.files[2].partition = None);
        refuse("belong where it does", &|m| m.files[2].partition = Some("statistics".into()));
        refuse("belong where it does", &|m| m.files[0].partition = Some("users".into()));
        refuse("is there twice", &|m| m.files.push(m.files[0].clone()));
        refuse("another one", &|m| m.files[0].bytes = 8);
        refuse("another one", &|m| m.files[0].xxh3 ^= 1);
        refuse("do not make up", &|m| m.files[2].bytes = 5);
        refuse("do not make up", &|m| m.files[2].bytes = u64::MAX);
        refuse("cannot be as long", &|m| m.files[2].content = Content::Pieces(vec![u64::MAX, 90]));
        refuse("cannot be as long", &|m| m.files[2].content = Content::Pieces(vec![1000, 0]));
    }

    #[test]
    fn any_list_is_stored_so_that_it_is_believed() {
        let sealer = Sealer::new(None);
        let zeros = Content::Inline(vec![0; INLINE_BYTES_MAX as usize]);
        let table = |number: u128, content| File {
            path: format!("partitions/3/tables/{number}"),
            bytes: INLINE_BYTES_MAX,
            xxh3: xxh3_128(&[0; INLINE_BYTES_MAX as usize]),
            partition: Some("users".into()),
            content,
        };
        let of_pieces = |number: u128| {
            let mut file = table(number, Content::Pieces(vec![9_000]));
            file.xxh3 = xxh3_128(&number.to_le_bytes());
            file
        };
        let mut sizes = Vec::new();
        for (count, file) in
            [(200_000, &of_pieces as &dyn Fn(u128) -> File), (1_000, &|n| table(n, zeros.clone()))]
        {
            let mut manifest = example();
            manifest.files.extend((1..=count).map(file));
            let bytes = manifest.encode(&sealer).unwrap();
            assert_eq!(Manifest::decode(manifest.id, &bytes, &sealer).unwrap(), manifest);
            let packed = &bytes[HEADER_BYTES..];
            let unpacked = unpack(packed).unwrap().len() as u64;
            assert!(unpacked <= unpacked_bytes_max(packed.len() as u64));
            sizes.push(unpacked / packed.len() as u64);
        }
        assert!(sizes[0] < UNPACKED_PER_STORED / 4, "{sizes:?}: real lists are far from the limit");
        assert!(sizes[1] > UNPACKED_PER_STORED, "{sizes:?}: this one had to be padded");
    }

    #[test]
    fn what_unpacks_to_too_much_is_refused() {
        let bomb = zstd::bulk::compress(&vec![b' '; 64 << 20], LEVEL).unwrap();
        assert!(bomb.len() < 64 << 10 && unpack(&bomb).is_none());
        let mut streamed = zstd::stream::Encoder::new(Vec::new(), LEVEL).unwrap();
        streamed.window_log(27).unwrap();
        std::io::Write::write_all(&mut streamed, b"{}").unwrap();
        assert!(unpack(&streamed.finish().unwrap()).is_none(), "128 MiB for two bytes");
    }
}
