//! Doors for the fuzz targets; not part of the API.
//!
//! Every door takes bytes that may be anything and answers with what the engine makes of them. The
//! doors called `again` encode what was decoded, so that a target can compare.

use std::path::Path;

use crate::catalog::Catalog;
use crate::error::Result;
use crate::journal::format::Identity;
use crate::journal::items::{self, Item, Items};
use crate::journal::reader::{self, Source, Tail};
use crate::{listing, manifest};

/// The identity that a fuzzed segment has to carry.
pub const UUID: u128 = 1;
/// Its timeline.
pub const TIMELINE: u128 = 2;

/// What a segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number, number of items and payload of every good frame.
    pub frames: Vec<(u64, u32, Vec<u8>)>,
    /// Where the next frame would begin.
    pub end: u64,
    /// What lies behind the last good frame.
    pub tail: SegmentTail,
}

/// How a segment ends.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum SegmentTail {
    /// With a seal.
    Sealed,
    /// With nothing, or zeros.
    Open,
    /// With a write that was cut short.
    Torn,
    /// With damage.
    Broken,
}

struct Bytes<'a>(&'a [u8]);

impl Source for Bytes<'_> {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> std::io::Result<usize> {
        let rest = usize::try_from(at).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
        let whole = self.read_at(buffer, at)? == buffer.len();
        whole.then_some(()).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }

    fn next_data(&self, at: u64) -> Option<u64> {
        (at < self.0.len() as u64).then_some(at)
    }
}

/// Reads the bytes as journal segment 1.
pub fn segment(bytes: &[u8]) -> Result<Segment> {
    let identity = Identity { uuid: UUID, timeline: TIMELINE };
    let mut frames = Vec::new();
    let path = Path::new("segment");
    let scan = reader::scan_source(&Bytes(bytes), path, 1, identity, &mut |frame| {
        frames.push((frame.seqno, frame.items, frame.payload.to_vec()));
        Ok(())
    })?;
    let tail = match scan.tail {
        Tail::Sealed => SegmentTail::Sealed,
        Tail::Open => SegmentTail::Open,
        Tail::Torn => SegmentTail::Torn,
        Tail::Broken(_) => SegmentTail::Broken,
    };
    Ok(Segment { frames, end: scan.end, tail })
}

/// A change that a journal item stands for: kind, partition, key or name, value.
pub type Change = (u8, u32, Vec<u8>, Option<Vec<u8>>);

/// The changes that a frame's payload of `count` items stands for; `None` if it is no such payload
/// or a value in it does not unpack. Of every change also the bytes that its value took.
pub fn changes(payload: &[u8], count: u32) -> Option<Vec<(Change, usize)>> {
    let owned = |item: Item<'_>| {
        Some(match item {
            Item::Put { partition, key, value } => {
                let stored = match value {
                    items::Value::Plain(bytes) | items::Value::Lz4 { bytes, .. } => bytes.len(),
                };
                ((0, partition, key.to_vec(), Some(value.bytes()?)), stored)
            }
            Item::Delete { partition, key } => ((1, partition, key.to_vec(), None), 0),
            Item::DeleteWeak { partition, key } => ((5, partition, key.to_vec(), None), 0),
            Item::Clear { partition } => ((2, partition, Vec::new(), None), 0),
            Item::Create { partition, name } => ((3, partition, name.into(), None), 0),
            Item::Drop { partition } => ((4, partition, Vec::new(), None), 0),
            Item::Ingest { partition } => ((5, partition, Vec::new(), None), 0),
        })
    };
    Items::new(payload, count).map(|item| owned(item.ok()?)).collect()
}

/// The payload that the writer makes of these changes.
pub fn payload_again<'a>(changes: impl IntoIterator<Item = &'a Change>) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, partition, key, value) in changes {
        match (kind, value) {
            (0, Some(value)) => items::put(&mut out, *partition, key, value),
            (1, _) => items::delete(&mut out, *partition, key),
            (5, _) => items::delete_weak(&mut out, *partition, key),
            (2, _) => out.extend(items::clear(*partition)),
            (3, _) => out.extend(items::create(*partition, &String::from_utf8_lossy(key))),
            (4, _) => out.extend(items::drop_partition(*partition)),
            _ => out.extend(items::ingest(*partition)),
        }
    }
    out
}

/// Decodes a CATALOG and encodes it again, in the format that it has.
pub fn catalog_again(bytes: &[u8]) -> Result<Vec<u8>> {
    let catalog = Catalog::decode(bytes, Path::new("CATALOG"))?;
    let format = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
    Ok(catalog.encode_as(format))
}

/// Decodes a CHECKPOINT file and encodes it again.
pub fn checkpoint_again(bytes: &[u8]) -> Result<Vec<u8>> {
    let file = listing::decode_checkpoint(bytes, Path::new("CHECKPOINT"))?;
    listing::encode_checkpoint(&file.head, &file.files)
}

/// Checks a `current` and the manifest it names, as is done before lsm-tree opens them, and encodes
/// both again.
pub fn version_again(current: &[u8], bytes: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    let (id, expected) = manifest::decode_current(current, Path::new("current"))?;
    let path = Path::new("manifest");
    let version = manifest::Version::check(bytes, id, expected, path)?;
    let again = version.encode().map_err(|e| crate::Error::io("encode", path, e))?;
    Ok((manifest::encode_current(id, &again), again))
}
