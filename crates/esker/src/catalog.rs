//! CATALOG: which partitions there are, how they are laid out, and what must be found on disk.
//!
//! What must stay true: CATALOG never runs ahead of the journal (the journal is synced up to
//! `last_seqno` before the bytes are renamed in place), and a journal segment is deleted only after
//! a CATALOG that starts behind it is durable. Readers refuse anything that falls short of it: a
//! tree older than its floor, a missing segment, a journal that ends before `last_seqno`.

use std::collections::BTreeSet;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use crate::bytes::{Put, Take, Truncated};
use crate::error::{Error, Result};
use crate::files;
use crate::options::PartitionOptions;
use crate::planted::{Bug, is_planted};

const MAGIC: &[u8; 8] = b"ESKRCAT\0";
/// The newest CATALOG this build reads and the one it writes.
pub(crate) const FORMAT_VERSION: u32 = 3;
/// From this version on floors have the hash of the manifest.
const WITH_MANIFESTS: u32 = 2;
const CHECKSUM_LEN: usize = 16;
const HEADER_LEN: usize = 16;
const _: () = assert!(HEADER_LEN == MAGIC.len() + 4 + 4);

/// What the first writable open does differently, and where this directory came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) uuid: u128,
    pub(crate) timeline: u128,
    pub(crate) seqno: u64,
}

/// The lowest state a tree may show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Floor {
    /// The version id that `current` must at least name.
    pub(crate) version: u64,
    /// xxh3-128 of that version's manifest, where it is known: a tree that branched off has other
    /// versions of the same numbers.
    pub(crate) manifest: Option<u128>,
    /// Every commit up to this one is in tables (or was cleared): replay skips it.
    pub(crate) flushed_upto: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PartitionEntry {
    /// The id that journal items carry, for the partition's whole life.
    pub(crate) id: u32,
    /// The directory its tree is in; `clear` moves to a new one.
    pub(crate) tree: u64,
    pub(crate) name: String,
    pub(crate) options: PartitionOptions,
    pub(crate) floor: Floor,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Catalog {
    pub(crate) uuid: u128,
    pub(crate) timeline: u128,
    pub(crate) origin: Option<Origin>,
    /// A checkpoint or copy that was never opened for writing: the first such open draws a new
    /// timeline, because the source may go on as well.
    pub(crate) fork_on_open: bool,
    /// Closed cleanly, or created by a checkpoint: nothing in the page cache is in doubt.
    pub(crate) clean: bool,
    pub(crate) next_partition: u32,
    pub(crate) next_tree: u64,
    /// The journal holds every commit up to this one, or the trees do.
    pub(crate) last_seqno: u64,
    /// The last commit before `first_segment`: the first frame of the journal follows it.
    pub(crate) base_seqno: u64,
    /// Commit times never go back behind this, in ms since 1970.
    pub(crate) last_time_ms: u64,
    /// The segments that a reader needs: `first_segment..=last_segment`, none when reversed.
    pub(crate) first_segment: u64,
    pub(crate) last_segment: u64,
    /// In order of id.
    pub(crate) partitions: Vec<PartitionEntry>,
}

impl Catalog {
    pub(crate) fn new(uuid: u128, timeline: u128) -> Self {
        Self {
            uuid,
            timeline,
            origin: None,
            fork_on_open: false,
            clean: true,
            next_partition: 1,
            next_tree: 1,
            last_seqno: 0,
            base_seqno: 0,
            last_time_ms: 0,
            first_segment: 1,
            last_segment: 0,
            partitions: Vec::new(),
        }
    }

    pub(crate) fn partition(&self, id: u32) -> Option<&PartitionEntry> {
        self.partitions.iter().find(|p| p.id == id)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        self.encode_as(FORMAT_VERSION)
    }

    /// As it was, or is, written in a format version.
    pub(crate) fn encode_as(&self, format: u32) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_u128(self.uuid);
        body.put_u128(self.timeline);
        let flags = u8::from(self.fork_on_open)
            | u8::from(self.clean) << 1
            | u8::from(self.origin.is_some()) << 2;
        body.put_u8(flags);
        let origin = self.origin.unwrap_or(Origin { uuid: 0, timeline: 0, seqno: 0 });
        body.put_u128(origin.uuid);
        body.put_u128(origin.timeline);
        body.put_u64(origin.seqno);
        body.put_u32(self.next_partition);
        body.put_u64(self.next_tree);
        body.put_u64(self.last_seqno);
        body.put_u64(self.base_seqno);
        body.put_u64(self.last_time_ms);
        body.put_u64(self.first_segment);
        body.put_u64(self.last_segment);
        body.put_u32(self.partitions.len() as u32);
        for entry in &self.partitions {
            body.put_u32(entry.id);
            body.put_u64(entry.tree);
            body.put_u16(entry.name.len() as u16);
            body.put(entry.name.as_bytes());
            entry.options.encode(&mut body, format);
            body.put_u64(entry.floor.version);
            if format >= WITH_MANIFESTS {
                body.put_u128(entry.floor.manifest.unwrap_or(0));
            }
            body.put_u64(entry.floor.flushed_upto);
        }
        let mut bytes = Vec::with_capacity(HEADER_LEN + body.len() + CHECKSUM_LEN);
        bytes.put(MAGIC);
        bytes.put_u32(format);
        bytes.put_u32(body.len() as u32);
        bytes.put(&body);
        let checksum = xxh3_128(&bytes);
        bytes.put_u128(checksum);
        bytes
    }

    /// Parses and checks `bytes`, which were read from `path`.
    pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<Self> {
        let corrupt =
            |offset: usize, what: &str| Error::corrupt(path, Some(offset as u64), what.to_owned());
        if bytes.len() < HEADER_LEN + CHECKSUM_LEN {
            return Err(corrupt(bytes.len(), "the file is too short"));
        }
        if &bytes[..MAGIC.len()] != MAGIC {
            return Err(corrupt(0, "the magic bytes are wrong"));
        }
        let (content, stored) = bytes.split_at(bytes.len() - CHECKSUM_LEN);
        let mut header = Take::new(&content[MAGIC.len()..]);
        let truncated = |_: Truncated| corrupt(content.len(), "the content ends too early");
        let version = header.u32().map_err(truncated)?;
        let body_len = header.u32().map_err(truncated)? as usize;
        let stored = Take::new(stored).u128().map_err(truncated)?;
        let computed = xxh3_128(content);
        if stored != computed && !is_planted(Bug::CatalogChecksumSkipped) {
            return Err(Error::corrupt_because(
                path,
                Some(content.len() as u64),
                "the checksum does not match the content",
                format!("{stored:032x}"),
                format!("{computed:032x}"),
            ));
        }
        if version > FORMAT_VERSION || version == 0 {
            return Err(Error::UnsupportedFormat {
                path: path.to_path_buf(),
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        if body_len != header.remaining() {
            return Err(corrupt(MAGIC.len() + 4, "the length does not match the file"));
        }
        Self::decode_body(&mut header, version)
            .map_err(truncated)?
            .ok_or_else(|| corrupt(HEADER_LEN, "a field holds a value that is never written"))
    }

    fn decode_body(
        input: &mut Take<'_>,
        format: u32,
    ) -> std::result::Result<Option<Self>, Truncated> {
        let (uuid, timeline) = (input.u128()?, input.u128()?);
        let flags = input.u8()?;
        let nowhere = Origin { uuid: 0, timeline: 0, seqno: 0 };
        let origin = Origin { uuid: input.u128()?, timeline: input.u128()?, seqno: input.u64()? };
        if flags >= 8 || (flags & 4 == 0 && origin != nowhere) {
            return Ok(None);
        }
        let mut catalog = Self {
            uuid,
            timeline,
            origin: (flags & 4 != 0).then_some(origin),
            fork_on_open: flags & 1 != 0,
            clean: flags & 2 != 0,
            next_partition: input.u32()?,
            next_tree: input.u64()?,
            last_seqno: input.u64()?,
            base_seqno: input.u64()?,
            last_time_ms: input.u64()?,
            first_segment: input.u64()?,
            last_segment: input.u64()?,
            partitions: Vec::new(),
        };
        let (mut trees, mut names) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..input.u32()? {
            let (id, tree) = (input.u32()?, input.u64()?);
            let name_len = input.u16()? as usize;
            let Ok(name) = String::from_utf8(input.bytes(name_len)?.to_vec()) else {
                return Ok(None);
            };
            let Some(options) = PartitionOptions::decode(input, format)? else { return Ok(None) };
            let version = input.u64()?;
            let manifest = if format < WITH_MANIFESTS { 0 } else { input.u128()? };
            let manifest = (manifest != 0).then_some(manifest);
            let floor = Floor { version, manifest, flushed_upto: input.u64()? };
            let in_order = catalog.partitions.last().is_none_or(|last| last.id < id);
            let unique = trees.insert(tree) && names.insert(name.clone());
            if id >= catalog.next_partition || tree >= catalog.next_tree || !in_order || !unique {
                return Ok(None);
            }
            catalog.partitions.push(PartitionEntry { id, tree, name, options, floor });
        }
        // Far above anything that is ever written, far below where arithmetic would overflow.
        const LIMIT: u64 = 1 << 62;
        let plausible = catalog.first_segment <= catalog.last_segment.saturating_add(1)
            && catalog.base_seqno <= catalog.last_seqno
            && [catalog.last_segment, catalog.last_seqno, catalog.next_tree]
                .iter()
                .all(|&n| n < LIMIT);
        Ok((input.is_empty() && plausible).then_some(catalog))
    }

    pub(crate) fn load(root: &Path) -> Result<Self> {
        let path = files::catalog(root);
        Self::decode(&files::read(&path)?, &path)
    }

    /// Replaces CATALOG atomically and durably.
    pub(crate) fn store(&self, root: &Path) -> Result<()> {
        files::replace(&files::catalog(root), &self.encode())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Catalog {
        let mut catalog = Catalog::new(7, 9);
        catalog.origin = Some(Origin { uuid: 1, timeline: 2, seqno: 3 });
        catalog.fork_on_open = true;
        catalog.next_partition = 4;
        catalog.next_tree = 6;
        catalog.last_seqno = 77;
        catalog.partitions = vec![
            PartitionEntry {
                id: 1,
                tree: 5,
                name: "users".into(),
                options: PartitionOptions::default(),
                floor: Floor { version: 3, manifest: Some(12), flushed_upto: 70 },
            },
            PartitionEntry {
                id: 3,
                tree: 3,
                name: "ü".into(),
                options: PartitionOptions::default().separate_values_from(Some(1000)),
                floor: Floor::default(),
            },
        ];
        catalog
    }

    #[test]
    fn a_catalog_round_trips() {
        let path = Path::new("CATALOG");
        for catalog in [Catalog::new(1, 2), example()] {
            assert_eq!(Catalog::decode(&catalog.encode(), path).unwrap(), catalog);
        }
    }

    #[test]
    fn a_catalog_of_the_first_format_is_read_without_hashes() {
        let mut catalog = example();
        let read = Catalog::decode(&catalog.encode_as(1), Path::new("CATALOG")).unwrap();
        catalog.partitions[0].floor.manifest = None;
        assert_eq!(read, catalog);
    }

    #[test]
    fn a_catalog_of_the_second_format_is_read_with_the_options_it_had() {
        let catalog = example();
        let read = Catalog::decode(&catalog.encode_as(2), Path::new("CATALOG")).unwrap();
        assert_eq!(read, catalog);
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let bytes = example().encode();
        let path = Path::new("CATALOG");
        for i in 0..bytes.len() {
            for bit in 0..8 {
                let mut rotten = bytes.clone();
                rotten[i] ^= 1 << bit;
                assert!(Catalog::decode(&rotten, path).is_err(), "byte {i} bit {bit}");
            }
            assert!(Catalog::decode(&bytes[..i], path).is_err(), "cut at {i}");
        }
    }

    #[test]
    fn partitions_that_share_an_id_a_tree_or_a_name_are_refused() {
        let refuse = |change: &dyn Fn(&mut Vec<PartitionEntry>)| {
            let mut catalog = example();
            change(&mut catalog.partitions);
            assert!(Catalog::decode(&catalog.encode(), Path::new("CATALOG")).is_err());
        };
        refuse(&|partitions| partitions[1].id = 1);
        refuse(&|partitions| partitions[1].tree = 5);
        refuse(&|partitions| partitions[1].name = "users".into());
        refuse(&|partitions| partitions.reverse());
    }

    #[test]
    fn a_newer_format_is_named_as_such() {
        let mut bytes = example().encode();
        bytes[8] = 4;
        let end = bytes.len() - CHECKSUM_LEN;
        let checksum = xxh3_128(&bytes[..end]);
        bytes[end..].copy_from_slice(&checksum.to_le_bytes());
        let error = Catalog::decode(&bytes, Path::new("CATALOG")).unwrap_err();
        assert!(matches!(error, Error::UnsupportedFormat { found: 4, supported: 3, .. }));
    }
}
