//! Any bytes as the CHECKPOINT file: as they are, and with a first line that fits the rest.

use esker::fuzzing;
use xxhash_rust::xxh3::xxh3_128;

/// What is accepted is accepted again after it was written anew, and then does not change.
pub fn check(data: &[u8]) {
    look(data);
    if let Some(end) = data.iter().position(|&byte| byte == b'\n') {
        look(&repaired(&data[end + 1..]));
    }
}

fn repaired(body: &[u8]) -> Vec<u8> {
    let hash = xxh3_128(&[b"ESKER-CHECKPOINT 1\n", body].concat());
    [format!("ESKER-CHECKPOINT 1 {hash:032x}\n").as_bytes(), body].concat()
}

fn look(bytes: &[u8]) {
    if let Ok(again) = fuzzing::checkpoint_again(bytes) {
        let twice = fuzzing::checkpoint_again(&again).expect("a list as it is written");
        assert_eq!(twice, again, "the list changes with each time it is written");
    }
}
