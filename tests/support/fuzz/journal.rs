//! Any bytes as a journal segment.
//!
//! The header is always made valid, so that inputs get past it. Each input is read three times: as
//! it is; with checksums and chain made valid, so that what is behind them is reached; and with one
//! byte of that damaged, the place being taken from the input.

use esker::fuzzing::{self, Segment, SegmentTail};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const SEGMENT_HEADER_LEN: usize = 72;
const FRAME_HEADER_LEN: usize = 64;

/// A segment ends where its frames do; cutting off what is no frame, as recovery does, changes no
/// frame; a damaged byte costs frames from its own on, and never goes unnoticed.
pub fn check(data: &[u8]) {
    let mut bytes = data.to_vec();
    if bytes.len() < SEGMENT_HEADER_LEN {
        assert!(fuzzing::segment(&bytes).is_err(), "half a header was taken for one");
        return;
    }
    let place = u32::from_le_bytes([data[0], data[1], data[2], data[3]]) as usize;
    let seed = write_header(&mut bytes);
    look(&bytes);
    repair_frames(&mut bytes, seed);
    let sound = look(&bytes);
    let place = SEGMENT_HEADER_LEN + place % (bytes.len() - SEGMENT_HEADER_LEN).max(1);
    if let Some(byte) = bytes.get_mut(place) {
        *byte ^= data[4] | 1;
        let damaged = look(&bytes);
        compare(&sound, &damaged, place as u64);
    }
}

fn look(bytes: &[u8]) -> Segment {
    let found = fuzzing::segment(bytes).expect("a segment whose header is right");
    assert!(found.end <= bytes.len() as u64, "a segment ends where its file does");
    assert!(found.frames.is_sorted_by(|a, b| a.0 + 1 == b.0), "a commit is missing");
    for (_, items, payload) in &found.frames {
        // Whether they are items is an answer.
        let _ = fuzzing::changes(payload, *items);
    }
    if found.tail != SegmentTail::Broken {
        let cut = fuzzing::segment(&bytes[..found.end as usize]).expect("its header is the same");
        let whole = if found.tail == SegmentTail::Sealed { found.tail } else { SegmentTail::Open };
        assert_eq!(cut, Segment { tail: whole, ..found.clone() }, "cutting the tail off");
    }
    found
}

fn compare(sound: &Segment, damaged: &Segment, place: u64) {
    assert!(sound.frames.starts_with(&damaged.frames), "a frame that was never written");
    if place < sound.end {
        let noticed = damaged.frames.len() < sound.frames.len() || damaged.tail != sound.tail;
        // An order that was never written is noticed before the damage behind it.
        assert!(noticed || sound.tail == SegmentTail::Broken, "damage at {place} went unnoticed");
    }
}

/// Makes the bytes of any segment those of the segment that the target reads.
pub fn adopt(bytes: &mut [u8]) {
    let seed = write_header(bytes);
    repair_frames(bytes, seed);
}

/// Makes the header that of segment 1 of the history that the reader expects (docs/format.md);
/// returns the seed of the chain.
fn write_header(bytes: &mut [u8]) -> u64 {
    bytes[..8].copy_from_slice(b"ESKRJNL\0");
    bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
    bytes[12..16].copy_from_slice(&(SEGMENT_HEADER_LEN as u32).to_le_bytes());
    bytes[16..32].copy_from_slice(&fuzzing::UUID.to_le_bytes());
    bytes[32..48].copy_from_slice(&fuzzing::TIMELINE.to_le_bytes());
    bytes[48..56].copy_from_slice(&1u64.to_le_bytes());
    let checksum = xxh3_64(&bytes[..64]);
    bytes[64..72].copy_from_slice(&checksum.to_le_bytes());
    xxh3_64(&bytes[..SEGMENT_HEADER_LEN])
}

/// Gives every frame the hashes that its bytes deserve.
fn repair_frames(bytes: &mut [u8], seed: u64) {
    let (mut at, mut chain) = (SEGMENT_HEADER_LEN, seed);
    while bytes.len() - at >= FRAME_HEADER_LEN && &bytes[at..at + 4] == b"EKRF" {
        let (header, rest) = bytes[at..].split_at_mut(FRAME_HEADER_LEN);
        let len = u64::from_le_bytes(header[12..20].try_into().expect("eight bytes"));
        let payload = usize::try_from(len).ok().and_then(|len| rest.get(..len));
        if let Some(payload) = payload {
            header[44..52].copy_from_slice(&xxh3_64(payload).to_le_bytes());
        }
        let check = xxh3_64_with_seed(&header[..52], seed) as u32;
        header[52..56].copy_from_slice(&check.to_le_bytes());
        chain = xxh3_64_with_seed(&header[..56], chain);
        header[56..64].copy_from_slice(&chain.to_le_bytes());
        // A length that leads out of the file ends the repair, and must not lead the reader astray.
        let Some(payload) = payload else { return };
        at += FRAME_HEADER_LEN + payload.len();
    }
}
