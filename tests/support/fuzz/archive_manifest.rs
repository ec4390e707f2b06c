//! Any bytes as the manifest of a backup: as they are, with a check that fits, and as its list alone.

use esker_archive::fuzzing;
use xxhash_rust::xxh3::xxh3_128;

const HEADER_LEN: usize = 48;

/// What is accepted is accepted again after it was written anew, and then does not change.
pub fn check(data: &[u8]) {
    look(data);
    if data.len() >= HEADER_LEN {
        look(&repaired(data));
    }
    // Past the compression, which few changes of an input survive.
    look(&fuzzing::manifest_of(data));
}

/// The same body and nonce with a header that fits them.
fn repaired(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes[..8].copy_from_slice(b"ESKRBKP\0");
    bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
    bytes[12..16].fill(0);
    let name = fuzzing::backup_name();
    let check = xxh3_128(&[name.as_bytes(), &bytes[..32], &bytes[HEADER_LEN..]].concat());
    bytes[32..HEADER_LEN].copy_from_slice(&check.to_le_bytes());
    bytes
}

fn look(bytes: &[u8]) {
    if let Ok(again) = fuzzing::manifest_again(bytes) {
        let twice = fuzzing::manifest_again(&again).expect("a manifest as it is written");
        assert_eq!(twice, again, "the manifest changes with each time it is written");
    }
}
