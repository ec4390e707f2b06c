//! Any bytes as a journal segment: the reader must answer, never panic, never take more memory than
//! the file is long.
//!
//! The segment header is always made valid, so that inputs get past it; with an odd first byte the
//! checksums and the chain of the frames are made valid too, so that what is behind them is reached.

#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const SEGMENT_HEADER_LEN: usize = 72;
const FRAME_HEADER_LEN: usize = 64;

fuzz_target!(|data: &[u8]| {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let dir = if memory.is_dir() { memory } else { std::env::temp_dir() };
        dir.join(format!("esker-fuzz-{}.jnl", std::process::id()))
    });
    let mut bytes = data.to_vec();
    if bytes.len() >= SEGMENT_HEADER_LEN {
        let repair = bytes[0] & 1 == 1;
        let seed = write_header(&mut bytes);
        if repair {
            repair_frames(&mut bytes, seed);
        }
    }
    std::fs::write(path, &bytes).expect("a file to read");
    // An error is an answer.
    let _ = esker::fuzzing::read_segment(path);
});

/// Makes the header that of segment 1 of the history that the reader expects (docs/format.md);
/// returns the seed of the chain.
fn write_header(bytes: &mut [u8]) -> u64 {
    bytes[..8].copy_from_slice(b"ESKRJNL\0");
    bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
    bytes[12..16].copy_from_slice(&(SEGMENT_HEADER_LEN as u32).to_le_bytes());
    bytes[16..32].copy_from_slice(&esker::fuzzing::UUID.to_le_bytes());
    bytes[32..48].copy_from_slice(&esker::fuzzing::TIMELINE.to_le_bytes());
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
