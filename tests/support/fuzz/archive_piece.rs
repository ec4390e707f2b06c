//! Any bytes as a piece of a file: as they are, and with footer and checks that fit. The input begins with
//! the number and the raw length of the piece, which a reader knows beforehand.

use esker_archive::fuzzing;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Of number and length.
const HEAD_LEN: usize = 5;
const ENTRY_LEN: usize = 12;
const FOOTER_LEN: usize = 64;
const FRAME_BYTES: u64 = 1 << 20;
/// Three frames, the last of them short.
const RAW_BYTES_MAX: u64 = 5 << 19;

/// What is accepted is as long as was said, the same frame by frame, and the same after it was written anew.
pub fn check(data: &[u8]) {
    let Some((head, object)) = data.split_at_checked(HEAD_LEN) else { return };
    let number = u32::from(head[0] % 3);
    let length = u32::from_le_bytes(head[1..].try_into().expect("four bytes"));
    let raw_bytes = u64::from(length) % RAW_BYTES_MAX + 1;
    look(number, raw_bytes, object);
    let count = raw_bytes.div_ceil(FRAME_BYTES) as usize;
    if object.len() >= count * ENTRY_LEN + FOOTER_LEN {
        look(number, raw_bytes, &repaired(number, raw_bytes, count, object));
    }
}

/// An input that stands for this piece.
pub fn input(number: u8, raw_bytes: u64, object: &[u8]) -> Vec<u8> {
    let length = (raw_bytes - 1) as u32;
    [&[number], &length.to_le_bytes()[..], object].concat()
}

/// The same frames and lengths with everything else right.
fn repaired(number: u32, raw_bytes: u64, count: usize, object: &[u8]) -> Vec<u8> {
    let mut bytes = object.to_vec();
    let footer = bytes.len() - FOOTER_LEN;
    let table = footer - count * ENTRY_LEN;
    let mut from = 0;
    for entry in (table..footer).step_by(ENTRY_LEN) {
        let length = u32::from_le_bytes(bytes[entry..entry + 4].try_into().expect("four bytes"));
        let end = (from + (length << 1 >> 1) as usize).min(table);
        let check = xxh3_64(&bytes[from..end]);
        bytes[entry + 4..entry + ENTRY_LEN].copy_from_slice(&check.to_le_bytes());
        from = end;
    }
    let fields = [1, 0, FRAME_BYTES as u32, 0].map(u32::to_le_bytes).concat();
    bytes[footer..footer + 8].copy_from_slice(b"ESKRPCE\0");
    bytes[footer + 8..footer + 24].copy_from_slice(&fields);
    bytes[footer + 24..footer + 32].copy_from_slice(&raw_bytes.to_le_bytes());
    let place = fuzzing::piece_place(number, raw_bytes);
    let check = xxh3_128(&[&place[..], &bytes[table..footer + 48]].concat());
    bytes[footer + 48..].copy_from_slice(&check.to_le_bytes());
    bytes
}

fn look(number: u32, raw_bytes: u64, object: &[u8]) {
    let whole = fuzzing::piece(number, raw_bytes, object);
    let frames = fuzzing::piece_by_frames(number, raw_bytes, object);
    let (Ok(whole), Ok(frames)) = (&whole, &frames) else {
        assert!(whole.is_err() && frames.is_err(), "only one of two readers takes it");
        return;
    };
    assert_eq!(whole.len() as u64, raw_bytes);
    assert!(frames.concat() == *whole, "frames are not the whole");
    let again = fuzzing::piece_of(number, whole);
    let twice = fuzzing::piece(number, raw_bytes, &again).expect("a piece as it is written");
    assert!(twice == *whole, "the content changes when it is written");
}
