//! Any bytes as CATALOG: as they are, and with magic, version, length and checksum made right.

use esker::fuzzing;
use xxhash_rust::xxh3::xxh3_128;

const HEADER_LEN: usize = 16;
const CHECKSUM_LEN: usize = 16;

/// What is accepted is, byte for byte, what would be written: no two files mean the same.
pub fn check(data: &[u8]) {
    look(data);
    if data.len() >= HEADER_LEN + CHECKSUM_LEN {
        look(&repaired(data));
    }
}

/// The same content with a frame that fits it, in one of the two formats.
fn repaired(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    let end = bytes.len() - CHECKSUM_LEN;
    bytes[..8].copy_from_slice(b"ESKRCAT\0");
    let format = 2 - u32::from(data[8] & 1);
    bytes[8..12].copy_from_slice(&format.to_le_bytes());
    bytes[12..16].copy_from_slice(&((end - HEADER_LEN) as u32).to_le_bytes());
    let checksum = xxh3_128(&bytes[..end]);
    bytes[end..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn look(bytes: &[u8]) {
    if let Ok(again) = fuzzing::catalog_again(bytes) {
        assert_eq!(again, bytes, "the catalog was accepted and would not be written like this");
    }
}
