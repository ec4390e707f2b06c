//! The CHECKPOINT file: what a checkpoint or copy holds, and how it came there.
//!
//! A first line with magic, version and the hash of the rest; then JSON, one file a line. Grammar:
//! docs/format.md, "CHECKPOINT".

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::files;
use crate::progress::Moved;
use crate::transfer::Placed;

const CHECKPOINT_MAGIC: &str = "ESKER-CHECKPOINT";
const CHECKPOINT_VERSION: u32 = 1;

/// One file of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    /// Relative to the checkpoint.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// xxh3-128 of the file, in hex; of segments the chain value of their last frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) xxh3: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chain: Option<String>,
    pub(crate) how: How,
}

/// How a file of a checkpoint came there.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum How {
    Linked,
    Reflinked,
    Copied,
    /// Its bytes were made for the checkpoint.
    Written,
}

impl From<Placed> for How {
    fn from(placed: Placed) -> Self {
        match placed {
            Placed::Linked => Self::Linked,
            Placed::Reflinked => Self::Reflinked,
            Placed::Copied => Self::Copied,
        }
    }
}

/// The ways of all files together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) linked: Moved,
    pub(crate) reflinked: Moved,
    pub(crate) copied: Moved,
}

impl Tally {
    pub(crate) fn of(records: &[FileRecord]) -> Self {
        let mut tally = Self::default();
        for record in records {
            let moved = match record.how {
                How::Linked => &mut tally.linked,
                How::Reflinked => &mut tally.reflinked,
                How::Copied => &mut tally.copied,
                How::Written => continue,
            };
            moved.files += 1;
            moved.bytes += record.bytes;
        }
        tally
    }
}

/// The CHECKPOINT file without its list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CheckpointHead {
    pub(crate) uuid: String,
    pub(crate) timeline: String,
    pub(crate) seqno: u64,
    pub(crate) created_ms: u64,
    /// Readers have always ignored fields that they do not know, so it needs no other version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_ms: Option<u64>,
    pub(crate) partitions: Vec<String>,
    pub(crate) left_out: Vec<String>,
}

impl CheckpointHead {
    /// The head for what `catalog` describes.
    pub(crate) fn new(
        catalog: &Catalog,
        seqno: u64,
        created_ms: u64,
        left_out: Vec<String>,
    ) -> Self {
        let mut partitions: Vec<_> = catalog.partitions.iter().map(|p| p.name.clone()).collect();
        partitions.sort();
        Self {
            uuid: format!("{:032x}", catalog.uuid),
            timeline: format!("{:032x}", catalog.timeline),
            seqno,
            created_ms,
            expires_ms: None,
            partitions,
            left_out,
        }
    }

    /// The same, not wanted any more so long after it was taken.
    pub(crate) fn expiring_after(mut self, time: Option<Duration>) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.expires_ms = time.map(|time| self.created_ms.saturating_add(millis(time)));
        self
    }
}

/// What a checkpoint or cold copy that nobody has opened for writing holds: its CHECKPOINT file. For
/// programs that carry it elsewhere.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Listing {
    /// The id of the keyspace.
    pub uuid: u128,
    /// The history that it was taken from.
    pub timeline: u128,
    /// The newest commit in it.
    pub seqno: u64,
    /// When it was taken, in milliseconds since 1970.
    pub created_ms: u64,
    /// From when on it is not wanted any more, in milliseconds since 1970; see
    /// [`CheckpointBuilder::expires_after`](crate::CheckpointBuilder::expires_after).
    pub expires_ms: Option<u64>,
    /// The partitions in it, sorted.
    pub partitions: Vec<String>,
    /// Those that the keyspace had and it has not, sorted.
    pub left_out: Vec<String>,
    /// Every file but CHECKPOINT itself and LOCK, which an open makes anew.
    pub files: Vec<ListedFile>,
}

/// A file of a [`Listing`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedFile {
    /// Relative to the directory, with slashes.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// The XXH3-128 of its content, but for journal segments.
    pub xxh3: Option<u128>,
    /// The partition that it belongs to; none of CATALOG and the journal.
    pub partition: Option<String>,
}

/// Reads what the checkpoint or cold copy in `dir` holds. Its files are not looked at: see
/// [`verify`](crate::verify).
///
/// # Errors
///
/// [`Error::Io`], as when there is no CHECKPOINT: the directory was opened for writing since, or is
/// none. [`Error::Corrupt`] when CHECKPOINT or CATALOG are damaged or do not fit each other.
pub fn read_listing(dir: impl AsRef<Path>) -> Result<Listing> {
    let dir = dir.as_ref();
    let CheckpointFile { head, files: records } = read_checkpoint(dir)?;
    let catalog = Catalog::load(dir)?;
    let path = files::checkpoint(dir);
    let hex = |text: &str| {
        let number = u128::from_str_radix(text, 16);
        number.map_err(|_| Error::corrupt(&path, None, format!("{text:?} is no hash or id")))
    };
    let names: BTreeMap<u64, &String> =
        catalog.partitions.iter().map(|entry| (entry.tree, &entry.name)).collect();
    let file = |record: FileRecord| {
        let tree = record.path.strip_prefix("partitions/").and_then(|rest| rest.split_once('/'));
        let tree = tree.and_then(|(id, _)| files::parse_id(id));
        let partition = tree.and_then(|tree| names.get(&tree));
        if partition.is_none() && tree.is_some() {
            let what = format!("CATALOG has no partition for {}", record.path);
            return Err(Error::corrupt(&path, None, what));
        }
        Ok(ListedFile {
            xxh3: record.xxh3.as_deref().map(hex).transpose()?,
            path: record.path,
            bytes: record.bytes,
            partition: partition.map(ToString::to_string),
        })
    };
    Ok(Listing {
        uuid: hex(&head.uuid)?,
        timeline: hex(&head.timeline)?,
        seqno: head.seqno,
        created_ms: head.created_ms,
        expires_ms: head.expires_ms,
        partitions: head.partitions,
        left_out: head.left_out,
        files: records.into_iter().map(file).collect::<Result<_>>()?,
    })
}

/// Makes the checkpoint in `dir` one of these partitions alone, by a new CATALOG and CHECKPOINT that
/// know no others, as if it had been taken so. The files of the others need not be there, and are not
/// removed. For a directory that is being built: what it holds is not synced, and an interruption may
/// leave it without CHECKPOINT.
///
/// # Errors
///
/// As [`read_listing`]; [`Error::NoSuchPartition`].
pub fn keep_partitions(
    dir: impl AsRef<Path>,
    names: impl IntoIterator<Item = impl Into<String>>,
) -> Result<()> {
    let dir = dir.as_ref();
    let names: BTreeSet<String> = names.into_iter().map(Into::into).collect();
    let CheckpointFile { head, files: records } = read_checkpoint(dir)?;
    let mut catalog = Catalog::load(dir)?;
    let is_there = |name: &&String| head.partitions.contains(name);
    if let Some(missing) = names.iter().find(|name| !is_there(name)) {
        return Err(Error::NoSuchPartition { name: missing.clone() });
    }
    catalog.partitions.retain(|entry| names.contains(&entry.name));
    let (kept, mut left_out): (Vec<_>, Vec<_>) =
        head.partitions.into_iter().partition(|name| names.contains(name));
    left_out.extend(head.left_out);
    left_out.sort();
    let bytes = catalog.encode();
    let trees: BTreeSet<String> =
        catalog.partitions.iter().map(|entry| format!("partitions/{}/", entry.tree)).collect();
    let of_others = |path: &str| {
        path.starts_with("partitions/") && !trees.iter().any(|tree| path.starts_with(tree))
    };
    let mut records: Vec<_> = records.into_iter().filter(|r| !of_others(&r.path)).collect();
    for record in records.iter_mut().filter(|record| record.path == files::CATALOG) {
        record.bytes = bytes.len() as u64;
        record.xxh3 = Some(format!("{:032x}", xxh3_128(&bytes)));
    }
    let head = CheckpointHead { partitions: kept, left_out, ..head };
    files::remove(&files::checkpoint(dir))?;
    files::replace(&files::catalog(dir), &bytes)?;
    files::replace(&files::checkpoint(dir), &encode_checkpoint(&head, &records)?)
}

/// The whole file.
pub(crate) struct CheckpointFile {
    pub(crate) head: CheckpointHead,
    pub(crate) files: Vec<FileRecord>,
}

/// The bytes of the file.
pub(crate) fn encode_checkpoint(head: &CheckpointHead, records: &[FileRecord]) -> Result<Vec<u8>> {
    let json = |e: serde_json::Error| Error::io("encode", Path::new(files::CHECKPOINT), e.into());
    let mut body = serde_json::to_string(head).map_err(json)?;
    body.pop();
    body.push_str(",\"files\":[");
    for (number, record) in records.iter().enumerate() {
        body.push_str(if number == 0 { "\n" } else { ",\n" });
        body.push_str(&serde_json::to_string(record).map_err(json)?);
    }
    body.push_str("\n]}\n");
    let hash = checkpoint_hash(&CHECKPOINT_VERSION.to_string(), &body);
    Ok(format!("{CHECKPOINT_MAGIC} {CHECKPOINT_VERSION} {hash:032x}\n{body}").into_bytes())
}

/// The hash covers the version, too.
fn checkpoint_hash(version: &str, body: &str) -> u128 {
    xxh3_128(format!("{CHECKPOINT_MAGIC} {version}\n{body}").as_bytes())
}

/// Reads and checks the CHECKPOINT file of `dir`.
pub(crate) fn read_checkpoint(dir: &Path) -> Result<CheckpointFile> {
    let path = files::checkpoint(dir);
    decode_checkpoint(&files::read(&path)?, &path)
}

/// Parses and checks `bytes`, which were read from `path`.
pub(crate) fn decode_checkpoint(bytes: &[u8], path: &Path) -> Result<CheckpointFile> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(flatten)]
        head: CheckpointHead,
        files: Vec<FileRecord>,
    }
    let corrupt = |offset: u64, what: &str| Error::corrupt(path, Some(offset), what.to_owned());
    let text =
        std::str::from_utf8(bytes).map_err(|e| corrupt(e.valid_up_to() as u64, "not UTF-8"))?;
    let (first, body) =
        text.split_once('\n').ok_or_else(|| corrupt(0, "there is no first line"))?;
    let words: Vec<&str> = first.split(' ').collect();
    let [CHECKPOINT_MAGIC, version, hash] = words[..] else {
        return Err(corrupt(0, "the first line is not that of a checkpoint"));
    };
    let computed = format!("{:032x}", checkpoint_hash(version, body));
    if hash != computed {
        return Err(Error::corrupt_because(
            path,
            Some(first.len() as u64 + 1),
            "the hash does not match the content",
            hash,
            computed,
        ));
    }
    let version = version.parse().map_err(|_| corrupt(0, "the version is no number"))?;
    if version != CHECKPOINT_VERSION {
        return Err(Error::UnsupportedFormat {
            path: path.to_path_buf(),
            found: version,
            supported: CHECKPOINT_VERSION,
        });
    }
    let Body { head, files } = serde_json::from_str(body)
        .map_err(|e| corrupt(first.len() as u64 + 1, &format!("the list cannot be read: {e}")))?;
    Ok(CheckpointFile { head, files })
}
