//! A piece of a file as an object: frames of fixed raw size that can be fetched, checked and written
//! each alone, a table of them, and a footer. Pure bytes; the grammar is in docs/format.md, "Piece".
//!
//! What must stay true: nothing that comes from a store is believed before it was checked, and no
//! length in it makes us ask for more memory than a frame, which the reader knows beforehand.

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::error::{Error, Result};
use crate::layout::{FileId, PIECE_BYTES};
use crate::seal::{Nonce, Sealer, TAG_BYTES};

/// Raw bytes of a frame; the last one of a piece is shorter.
pub(crate) const FRAME_BYTES: u64 = 1 << 20;
const MAGIC: &[u8; 8] = b"ESKRPCE\0";
const VERSION: u32 = 1;
const ENTRY_BYTES: usize = 12;
const FOOTER_BYTES: usize = 64;
/// Set in a frame's stored length: its bytes are the raw ones.
const IS_RAW: u32 = 1 << 31;
/// A frame is stored compressed when that saves at least one part in so many.
const WORTH: usize = 32;
/// When a frame was not worth it, so many that follow are not tried.
const NOT_TRIED: u32 = 3;

const _: () = assert!(PIECE_BYTES.is_multiple_of(FRAME_BYTES));

/// How many frames a piece of so many raw bytes has.
pub(crate) fn frames(raw_bytes: u64) -> u64 {
    raw_bytes.div_ceil(FRAME_BYTES)
}

/// The length of table and footer of a piece of so many raw bytes: what ends its object.
pub(crate) fn tail_bytes(raw_bytes: u64) -> u64 {
    frames(raw_bytes) * ENTRY_BYTES as u64 + FOOTER_BYTES as u64
}

/// No object of a piece of so many raw bytes is longer.
pub(crate) fn stored_bytes_max(raw_bytes: u64) -> u64 {
    raw_bytes + frames(raw_bytes) * TAG_BYTES as u64 + tail_bytes(raw_bytes)
}

/// How many raw bytes a frame of such a piece stands for.
fn raw_frame(raw_bytes: u64, number: u64) -> u64 {
    (raw_bytes - number * FRAME_BYTES).min(FRAME_BYTES)
}

/// Which piece of which file.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: FileId,
    pub(crate) piece: u32,
}

impl Place {
    /// What frames are bound to, as bytes.
    pub(crate) fn encode(self) -> [u8; 28] {
        let mut bytes = [0; 28];
        bytes[..16].copy_from_slice(&self.file.hash.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.file.bytes.to_le_bytes());
        bytes[24..].copy_from_slice(&self.piece.to_le_bytes());
        bytes
    }

    /// Tells it from other pieces where eight bytes are enough: in proofs.
    pub(crate) fn key(self) -> u64 {
        xxh3_64(&self.encode())
    }

    fn raw_bytes(self) -> u64 {
        self.file.piece_bytes(self.piece)
    }

    fn corrupt(self, what: impl Into<String>) -> Error {
        Error::corrupt(self.file.object(self.piece), what)
    }
}

/// The object of a piece, as parts that follow each other. What does not compress is not copied.
pub(crate) fn encode(place: Place, raw: &Bytes, sealer: &Sealer, level: i32) -> Vec<Bytes> {
    assert_eq!(raw.len() as u64, place.raw_bytes(), "the piece is as long as its file says");
    let nonce = sealer.nonce();
    let bound = place.encode();
    let mut object = Vec::new();
    let mut table = Vec::new();
    let mut compressor = zstd::bulk::Compressor::new(level).expect("a level that zstd has");
    let mut skip = 0;
    for number in 0..frames(place.raw_bytes()) {
        let begin = number * FRAME_BYTES;
        let end = begin + raw_frame(place.raw_bytes(), number);
        let frame = raw.slice(begin as usize..end as usize);
        let worth = frame.len() - frame.len() / WORTH;
        let packed = if skip > 0 { None } else { compressor.compress(&frame).ok() };
        let packed = packed.filter(|packed| packed.len() < worth);
        skip = match (&packed, skip) {
            (Some(_), _) => 0,
            (None, 0) => NOT_TRIED,
            (None, left) => left - 1,
        };
        let is_raw = if packed.is_none() { IS_RAW } else { 0 };
        let sealed = sealer.seal(packed.map_or(frame, Bytes::from), nonce, number, &bound);
        table.extend_from_slice(&(sealed.len() as u32 | is_raw).to_le_bytes());
        table.extend_from_slice(&xxh3_64(&sealed).to_le_bytes());
        object.push(sealed);
    }
    let mut footer = Vec::with_capacity(FOOTER_BYTES);
    footer.extend_from_slice(MAGIC);
    footer.extend_from_slice(&VERSION.to_le_bytes());
    footer.extend_from_slice(&u32::from(sealer.is_sealing()).to_le_bytes());
    footer.extend_from_slice(&(FRAME_BYTES as u32).to_le_bytes());
    footer.extend_from_slice(&0_u32.to_le_bytes());
    footer.extend_from_slice(&place.raw_bytes().to_le_bytes());
    footer.extend_from_slice(&nonce);
    let check = check_of(&bound, &table, &footer);
    footer.extend_from_slice(&check.to_le_bytes());
    assert_eq!(footer.len(), FOOTER_BYTES);
    object.push(table.into());
    object.push(footer.into());
    object
}

fn check_of(bound: &[u8], table: &[u8], footer: &[u8]) -> u128 {
    xxh3_128(&[bound, table, footer].concat())
}

/// Where the frames of a piece are, checked.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    place: Place,
    nonce: Nonce,
    frames: Vec<Frame>,
}

#[derive(Copy, Clone, Debug)]
struct Frame {
    /// In the object.
    offset: u64,
    stored: u32,
    is_raw: bool,
    check: u64,
}

impl Table {
    /// Parses the end of an object of `stored_bytes`, at least [`tail_bytes`] of it.
    pub(crate) fn parse(
        place: Place,
        tail: &[u8],
        stored_bytes: u64,
        sealer: &Sealer,
    ) -> Result<Self> {
        let count = frames(place.raw_bytes());
        let wanted = tail_bytes(place.raw_bytes()) as usize;
        let cut = || place.corrupt("it is cut short");
        let start = tail.len().checked_sub(wanted).ok_or_else(cut)?;
        let (table, footer) = tail[start..].split_at(wanted - FOOTER_BYTES);
        let (fields, check) = footer.split_at(FOOTER_BYTES - 16);
        let u32_at = |at: usize| u32::from_le_bytes(fields[at..at + 4].try_into().expect("four"));
        if &fields[..8] != MAGIC {
            return Err(place.corrupt("it does not end as a piece does"));
        }
        if check_of(&place.encode(), table, fields).to_le_bytes() != check {
            return Err(place.corrupt("its table does not match its check"));
        }
        if u32_at(8) != VERSION {
            let object = place.file.object(place.piece).to_string();
            return Err(Error::UnsupportedFormat { object, found: u32_at(8), supported: VERSION });
        }
        let raw_bytes = u64::from_le_bytes(fields[24..32].try_into().expect("eight"));
        let as_expected = u32_at(12) == u32::from(sealer.is_sealing())
            && u64::from(u32_at(16)) == FRAME_BYTES
            && raw_bytes == place.raw_bytes();
        if !as_expected {
            return Err(place.corrupt("it is of another length, frame size or encryption"));
        }
        let mut frames = Vec::with_capacity(count as usize);
        let mut offset = 0;
        for entry in table.chunks_exact(ENTRY_BYTES) {
            let stored = u32::from_le_bytes(entry[..4].try_into().expect("four"));
            let check = u64::from_le_bytes(entry[4..].try_into().expect("eight"));
            let (stored, is_raw) = (stored & !IS_RAW, stored & IS_RAW != 0);
            let raw = raw_frame(place.raw_bytes(), frames.len() as u64);
            // Who fetches has room for this.
            if stored == 0 || u64::from(stored) > raw + TAG_BYTES as u64 {
                return Err(place.corrupt("a frame of it cannot be as long as its table says"));
            }
            frames.push(Frame { offset, stored, is_raw, check });
            offset += u64::from(stored);
        }
        if offset + wanted as u64 != stored_bytes {
            return Err(place.corrupt("its frames are not as long as the object"));
        }
        let nonce = fields[32..48].try_into().expect("sixteen");
        Ok(Self { place, nonce, frames })
    }

    /// Where in the object frames `first..last` are.
    pub(crate) fn range(&self, first: usize, last: usize) -> std::ops::Range<u64> {
        let end = &self.frames[last - 1];
        self.frames[first].offset..end.offset + u64::from(end.stored)
    }

    /// Hands over the raw bytes of frames `first..last`, one after the other, each with its place in the
    /// piece, from what lies at [`Table::range`]. One frame at a time is in memory besides.
    pub(crate) fn open(
        &self,
        first: usize,
        last: usize,
        stored: &[u8],
        sealer: &Sealer,
        mut each: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let range = self.range(first, last);
        if stored.len() as u64 != range.end - range.start {
            return Err(self.place.corrupt("a range of it is cut short"));
        }
        let bound = self.place.encode();
        let mut unpacker = zstd::bulk::Decompressor::new().expect("no dictionary is wrong");
        let mut unpacked = Vec::new();
        for number in first..last {
            let frame = self.frames[number];
            let from = (frame.offset - range.start) as usize;
            let sealed = &stored[from..from + frame.stored as usize];
            let wrong = |what| self.place.corrupt(format!("frame {number} {what}"));
            // Before anything is made of it.
            if xxh3_64(sealed) != frame.check {
                return Err(wrong("does not match its check"));
            }
            let opened = sealer.open(sealed, self.nonce, number as u64, &bound);
            let packed = opened.ok_or_else(|| wrong("does not open with the key"))?;
            let expected = raw_frame(self.place.raw_bytes(), number as u64) as usize;
            let raw = if frame.is_raw {
                &packed[..]
            } else {
                unpacked.clear();
                unpacked.reserve_exact(FRAME_BYTES as usize);
                let unpacking = unpacker.decompress_to_buffer(&packed, &mut unpacked);
                unpacking.map_err(|_| wrong("does not decompress"))?;
                &unpacked[..]
            };
            if raw.len() != expected {
                return Err(wrong("is not as long as it should be"));
            }
            each(number as u64 * FRAME_BYTES, raw)?;
        }
        Ok(())
    }

    pub(crate) fn frames(&self) -> usize {
        self.frames.len()
    }
}

/// Hands over all raw bytes of a piece whose whole object is at hand, frame by frame.
pub(crate) fn decode(
    place: Place,
    object: &[u8],
    sealer: &Sealer,
    each: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let table = Table::parse(place, object, object.len() as u64, sealer)?;
    let end = table.range(0, table.frames()).end as usize;
    table.open(0, table.frames(), &object[..end], sealer, each)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::Key;

    fn encode(place: Place, raw: &[u8], sealer: &Sealer, level: i32) -> Vec<u8> {
        super::encode(place, &Bytes::copy_from_slice(raw), sealer, level).concat()
    }

    fn decode(place: Place, object: &[u8], sealer: &Sealer) -> Result<Vec<u8>> {
        let mut raw = Vec::new();
        super::decode(place, object, sealer, |at, frame| {
            assert_eq!(at, raw.len() as u64);
            raw.extend_from_slice(frame);
            Ok(())
        })?;
        Ok(raw)
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 9_u64;
        let step = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..len).map(step).collect()
    }

    #[test]
    fn the_example_of_the_documentation_is_what_is_written() {
        let raw = b"esker piece";
        let file = FileId { hash: xxh3_128(raw), bytes: raw.len() as u64 };
        let place = Place { file, piece: 0 };
        let name = "files/55/55a5c44fdaeeb05f8f57b75bc3856730-11/0";
        assert_eq!(file.object(0).as_ref(), name);
        let object = encode(place, raw, &Sealer::new(None), 1);
        let hex: String = object.iter().map(|byte| format!("{byte:02x}")).collect();
        let documented = concat!(
            "65736b6572207069656365",
            "0b000080d7291589fc8b746b",
            "45534b52504345000100000000000000000010000000000",
            "00b00000000000000",
            "00000000000000000000000000000000",
            "1acab3da04dce82391f27e3669036250",
        );
        assert_eq!(hex, documented);
    }

    fn sealers() -> [Sealer; 2] {
        [Sealer::new(None), Sealer::new(Some(&Key::generate()))]
    }

    /// Text, noise and a short end.
    fn example() -> (Place, Vec<u8>) {
        let mut raw = vec![b'a'; FRAME_BYTES as usize];
        raw.extend(noise(FRAME_BYTES as usize + 77));
        let file = FileId { hash: xxh3_128(&raw), bytes: raw.len() as u64 };
        (Place { file, piece: 0 }, raw)
    }

    #[test]
    fn pieces_come_back_whole_and_frame_by_frame() {
        let (place, raw) = example();
        for sealer in sealers() {
            let object = encode(place, &raw, &sealer, 1);
            assert!(
                object.len() < raw.len()
                    && object.len() as u64 <= stored_bytes_max(raw.len() as u64)
            );
            assert!(decode(place, &object, &sealer).unwrap() == raw);
            let tail = &object[object.len() - tail_bytes(raw.len() as u64) as usize..];
            let table = Table::parse(place, tail, object.len() as u64, &sealer).unwrap();
            assert_eq!(table.frames(), 3);
            for (first, last) in [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)] {
                let range = table.range(first, last);
                let stored = &object[range.start as usize..range.end as usize];
                let from = first * FRAME_BYTES as usize;
                let mut reached = from;
                let opened = table.open(first, last, stored, &sealer, |at, frame| {
                    assert_eq!(at, reached as u64);
                    assert!(frame == &raw[reached..reached + frame.len()]);
                    reached += frame.len();
                    Ok(())
                });
                opened.unwrap();
                assert_eq!(reached, (last * FRAME_BYTES as usize).min(raw.len()));
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let raw = [vec![7; 3000], noise(500)].concat();
        let place = Place { file: FileId { hash: 1, bytes: raw.len() as u64 }, piece: 0 };
        for sealer in sealers() {
            let object = encode(place, &raw, &sealer, 3);
            for at in 0..object.len() {
                let mut rotten = object.clone();
                rotten[at] ^= 1 << (at % 8);
                // Version and zeros are covered as well: it is never taken for a newer one.
                let error = decode(place, &rotten, &sealer).unwrap_err();
                assert!(matches!(error, Error::Corrupt { .. }), "byte {at}: {error}");
            }
            for len in 0..object.len() {
                assert!(decode(place, &object[..len], &sealer).is_err(), "cut at {len}");
            }
        }
    }

    #[test]
    fn a_piece_of_another_file_or_number_is_refused() {
        let (place, raw) = example();
        for sealer in sealers() {
            let object = encode(place, &raw, &sealer, 1);
            let mut other = place;
            other.file.hash ^= 1;
            assert!(decode(other, &object, &sealer).is_err());
            let long = FileId { bytes: PIECE_BYTES + raw.len() as u64, ..place.file };
            assert!(decode(Place { file: long, piece: 1 }, &object, &sealer).is_err());
        }
        let sealed = encode(place, &raw, &sealers()[1], 1);
        assert!(decode(place, &sealed, &Sealer::new(None)).is_err(), "encrypted, and no key");
    }

    #[test]
    fn a_frame_that_unpacks_to_more_than_it_may_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        let raw = vec![0; 5000];
        let place = Place { file: FileId { hash: 2, bytes: 5000 }, piece: 0 };
        let sealer = Sealer::new(None);
        let honest = encode(place, &raw, &sealer, 1);
        let tail = tail_bytes(5000) as usize;
        let (table, footer) = honest[honest.len() - tail..].split_at(ENTRY_BYTES);
        let mut table = table.to_vec();
        table[..4].copy_from_slice(&(bomb.len() as u32).to_le_bytes());
        table[4..].copy_from_slice(&xxh3_64(&bomb).to_le_bytes());
        let fields = &footer[..FOOTER_BYTES - 16];
        let check = check_of(&place.encode(), &table, fields).to_le_bytes();
        let object = [&bomb[..], &table, fields, &check].concat();
        let error = decode(place, &object, &sealer).unwrap_err();
        assert!(error.to_string().contains("does not decompress"), "{error}");
    }
}
