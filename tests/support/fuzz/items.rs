//! Any bytes as the payload of a frame, the first byte being the number of its items.

use esker::fuzzing;

/// No byte of LZ4 stands for more than 255.
const EXPANSION_MAX: usize = 255;

/// A value is no larger than its stored bytes can stand for, and changes that were read are the
/// same after they were written again.
pub fn check(data: &[u8]) {
    let Some((&count, payload)) = data.split_first() else { return };
    let Some(read) = fuzzing::changes(payload, count.into()) else { return };
    let mut changes = Vec::with_capacity(read.len());
    for (change, stored) in read {
        let len = change.3.as_ref().map_or(0, Vec::len);
        assert!(len <= EXPANSION_MAX * stored + 64, "{len} bytes out of {stored}");
        changes.push(change);
    }
    let again = fuzzing::payload_again(&changes);
    let reread = fuzzing::changes(&again, count.into()).expect("a payload as it is written");
    assert!(reread.into_iter().map(|(change, _)| change).eq(changes), "changes came back others");
}
