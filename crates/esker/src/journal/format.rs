//! Bytes of a journal segment: header and frames. Pure; docs/format.md is the authority.
//!
//! What must stay true: every byte of a frame is covered twice, once by a checksum that stands on
//! its own (`check`, `payload_hash`; a reader can find a whole frame behind a broken one) and once
//! by the chain (`chain` hashes the header over the previous frame's chain, so that a dropped,
//! swapped or stale frame shows even when it is whole).

use std::path::Path;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::bytes::{Put, Take, Truncated};
use crate::error::{Error, Result};
use crate::planted::{Bug, is_planted};

const SEGMENT_MAGIC: &[u8; 8] = b"ESKRJNL\0";
pub(crate) const FORMAT_VERSION: u32 = 1;
pub(crate) const SEGMENT_HEADER_LEN: usize = 72;
const _: () = assert!(SEGMENT_HEADER_LEN == 8 + 4 + 4 + 16 + 16 + 8 + 8 + 8);

pub(crate) const FRAME_MAGIC: [u8; 4] = *b"EKRF";
pub(crate) const FRAME_HEADER_LEN: usize = 64;
const CHECK_AT: usize = 52;
const CHAIN_AT: usize = 56;
const _: () = assert!(CHECK_AT == 4 + 1 + 1 + 2 + 4 + 5 * 8 && CHAIN_AT + 8 == FRAME_HEADER_LEN);

/// What every segment of one linear history carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uuid: u128,
    pub(crate) timeline: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) identity: Identity,
    pub(crate) id: u64,
    pub(crate) created_ms: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_LEN);
        out.put(SEGMENT_MAGIC);
        out.put_u32(FORMAT_VERSION);
        out.put_u32(SEGMENT_HEADER_LEN as u32);
        out.put_u128(self.identity.uuid);
        out.put_u128(self.identity.timeline);
        out.put_u64(self.id);
        out.put_u64(self.created_ms);
        let checksum = xxh3_64(&out);
        out.put_u64(checksum);
        let mut bytes = [0; SEGMENT_HEADER_LEN];
        bytes.copy_from_slice(&out);
        bytes
    }

    /// Parses the first bytes of the segment at `path`, which by its name is segment `id`.
    pub(crate) fn decode(bytes: &[u8], path: &Path, id: u64, identity: Identity) -> Result<Self> {
        let header = Self::parse(bytes, path)?;
        let belongs = header.id == id && header.identity == identity;
        if !belongs && !is_planted(Bug::IdentityNotChecked) {
            return Err(Error::corrupt_because(
                path,
                Some(16),
                "the segment belongs elsewhere",
                format!("segment {id} of {:032x}/{:032x}", identity.uuid, identity.timeline),
                format!(
                    "segment {} of {:032x}/{:032x}",
                    header.id, header.identity.uuid, header.identity.timeline
                ),
            ));
        }
        Ok(header)
    }

    /// Parses the first bytes of the segment at `path`, wherever it belongs.
    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let corrupt = |offset: u64, what: &str| Error::corrupt(path, Some(offset), what);
        if bytes.len() < SEGMENT_HEADER_LEN {
            return Err(corrupt(bytes.len() as u64, "the segment header is cut short"));
        }
        if &bytes[..8] != SEGMENT_MAGIC {
            return Err(corrupt(0, "the magic bytes of a journal segment are missing"));
        }
        let parse = |mut input: Take<'_>| -> std::result::Result<_, Truncated> {
            let version = input.u32()?;
            let _len = input.u32()?;
            let identity = Identity { uuid: input.u128()?, timeline: input.u128()? };
            let header = Self { identity, id: input.u64()?, created_ms: input.u64()? };
            Ok((version, header, input.u64()?))
        };
        let (version, header, stored) = parse(Take::new(&bytes[8..SEGMENT_HEADER_LEN]))
            .map_err(|_| corrupt(0, "the segment header is cut short"))?;
        let computed = xxh3_64(&bytes[..SEGMENT_HEADER_LEN - 8]);
        if stored != computed {
            return Err(Error::corrupt_because(
                path,
                Some(SEGMENT_HEADER_LEN as u64 - 8),
                "the checksum of the segment header does not match",
                format!("{stored:016x}"),
                format!("{computed:016x}"),
            ));
        }
        if version != FORMAT_VERSION {
            let (path, supported) = (path.to_path_buf(), FORMAT_VERSION);
            return Err(Error::UnsupportedFormat { path, found: version, supported });
        }
        Ok(header)
    }

    /// Where the chain of frames starts: unlike for every other segment.
    pub(crate) fn chain_seed(&self) -> u64 {
        xxh3_64(&self.encode())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// One committed batch.
    Batch,
    /// The end of a complete segment; its seqno is the last one before it.
    Seal,
}

/// Everything in a frame header but the checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) kind: FrameKind,
    pub(crate) items: u32,
    pub(crate) payload_len: u64,
    pub(crate) seqno: u64,
    pub(crate) time_ms: u64,
    /// How many bytes of this segment were known to be durable when the frame was written. A
    /// broken place below it was durable once: that is rot, not a torn write.
    pub(crate) synced_len: u64,
    pub(crate) payload_hash: u64,
}

impl FrameHeader {
    /// The header's bytes and the chain value that the next frame continues from. `seed` is the
    /// segment's [`SegmentHeader::chain_seed`].
    pub(crate) fn encode(&self, seed: u64, previous: u64) -> ([u8; FRAME_HEADER_LEN], u64) {
        let mut bytes = [0; FRAME_HEADER_LEN];
        bytes[..4].copy_from_slice(&FRAME_MAGIC);
        bytes[4] = match self.kind {
            FrameKind::Batch => 1,
            FrameKind::Seal => 2,
        };
        bytes[8..12].copy_from_slice(&self.items.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.seqno.to_le_bytes());
        bytes[28..36].copy_from_slice(&self.time_ms.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.synced_len.to_le_bytes());
        bytes[44..52].copy_from_slice(&self.payload_hash.to_le_bytes());
        let check = xxh3_64_with_seed(&bytes[..CHECK_AT], seed) as u32;
        bytes[CHECK_AT..CHAIN_AT].copy_from_slice(&check.to_le_bytes());
        let chain = chain_of(&bytes, previous);
        bytes[CHAIN_AT..].copy_from_slice(&chain.to_le_bytes());
        (bytes, chain)
    }

    /// Parses a header that stands on its own; `None` when these bytes are no header of this
    /// segment. The chain is the caller's to check.
    pub(crate) fn decode(bytes: &[u8; FRAME_HEADER_LEN], seed: u64) -> Option<Self> {
        if bytes[..4] != FRAME_MAGIC {
            return None;
        }
        let mut input = Take::new(&bytes[4..]);
        let parse = |input: &mut Take<'_>| -> std::result::Result<_, Truncated> {
            let (kind, flags, zero) = (input.u8()?, input.u8()?, input.u16()?);
            let items = input.u32()?;
            let (payload_len, seqno) = (input.u64()?, input.u64()?);
            let (time_ms, synced_len) = (input.u64()?, input.u64()?);
            let (payload_hash, check) = (input.u64()?, input.u32()?);
            Ok((
                kind,
                flags,
                zero,
                items,
                payload_len,
                seqno,
                time_ms,
                synced_len,
                payload_hash,
                check,
            ))
        };
        let (
            kind,
            flags,
            zero,
            items,
            payload_len,
            seqno,
            time_ms,
            synced_len,
            payload_hash,
            check,
        ) = parse(&mut input).ok()?;
        if check != xxh3_64_with_seed(&bytes[..CHECK_AT], seed) as u32 || flags != 0 || zero != 0 {
            return None;
        }
        let kind = match kind {
            1 => FrameKind::Batch,
            2 => FrameKind::Seal,
            _ => return None,
        };
        Some(Self { kind, items, payload_len, seqno, time_ms, synced_len, payload_hash })
    }
}

/// The chain value of a header over the previous frame's.
pub(crate) fn chain_of(header: &[u8; FRAME_HEADER_LEN], previous: u64) -> u64 {
    xxh3_64_with_seed(&header[..CHAIN_AT], previous)
}

/// The chain value that a header claims.
pub(crate) fn stored_chain(header: &[u8; FRAME_HEADER_LEN]) -> u64 {
    u64::from_le_bytes(header[CHAIN_AT..].try_into().unwrap_or_default())
}

/// The hash that goes into [`FrameHeader::payload_hash`].
pub(crate) fn payload_hash(payload: &[u8]) -> u64 {
    xxh3_64(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader { identity: Identity { uuid: 5, timeline: 6 }, id: 7, created_ms: 8 }
    }

    #[test]
    fn a_segment_header_round_trips_and_every_flip_is_refused() {
        let (bytes, path) = (header().encode(), Path::new("j"));
        assert_eq!(SegmentHeader::decode(&bytes, path, 7, header().identity).unwrap(), header());
        assert!(SegmentHeader::decode(&bytes, path, 8, header().identity).is_err());
        for i in 0..bytes.len() {
            let mut rotten = bytes;
            rotten[i] ^= 1;
            assert!(SegmentHeader::decode(&rotten, path, 7, header().identity).is_err(), "{i}");
        }
    }

    #[test]
    fn a_frame_header_round_trips_and_every_flip_shows() {
        let frame = FrameHeader {
            kind: FrameKind::Batch,
            items: 3,
            payload_len: 100,
            seqno: 9,
            time_ms: 10,
            synced_len: 11,
            payload_hash: 12,
        };
        let (bytes, chain) = frame.encode(1, 2);
        assert_eq!(FrameHeader::decode(&bytes, 1), Some(frame));
        assert_eq!((stored_chain(&bytes), chain_of(&bytes, 2)), (chain, chain));
        assert_ne!(chain_of(&bytes, 3), chain);
        assert_eq!(FrameHeader::decode(&bytes, 99), None, "another segment's frame");
        for i in 0..bytes.len() {
            let mut rotten = bytes;
            rotten[i] ^= 0x10;
            let standalone = FrameHeader::decode(&rotten, 1) == Some(frame);
            let chained = chain_of(&rotten, 2) == stored_chain(&rotten);
            assert!(!(standalone && chained), "byte {i}");
        }
    }
}
