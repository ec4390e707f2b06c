//! The CHECKPOINT file: what a checkpoint or copy holds, and how it came there.
//!
//! A first line with magic, version and the hash of the rest; then JSON, one file a line. Grammar:
//! docs/format.md, "CHECKPOINT".

use std::path::Path;

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
            partitions,
            left_out,
        }
    }
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
