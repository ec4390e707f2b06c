//! Any bytes as a tree's `current` (the first 25) and the version manifest that it names: as they
//! are, and with the checksums of both made right.

use esker::fuzzing;
use xxhash_rust::xxh3::xxh3_128;

const CURRENT_LEN: usize = 25;
const TRAILER_LEN: usize = 38;

/// What is accepted means the same after it was written anew.
pub fn check(data: &[u8]) {
    let Some((current, manifest)) = data.split_at_checked(CURRENT_LEN) else {
        assert!(fuzzing::version_again(data, &[]).is_err(), "half a pointer was taken for one");
        return;
    };
    look(current, manifest);
    let mut manifest = manifest.to_vec();
    if repair_contents(&mut manifest).is_some() {
        let checksum = xxh3_128(&manifest).to_le_bytes();
        look(&[&current[..8], &checksum, &[0]].concat(), &manifest);
    }
}

/// Gives the trailer the hash of the table of contents to which it points; `None` if it points
/// nowhere.
fn repair_contents(manifest: &mut [u8]) -> Option<()> {
    let trailer_at = manifest.len().checked_sub(TRAILER_LEN)?;
    let (content, trailer) = manifest.split_at_mut(trailer_at);
    let position = u64::from_le_bytes(trailer[22..30].try_into().ok()?);
    let contents = content.get(usize::try_from(position).ok()?..)?;
    trailer[..6].copy_from_slice(b"SFA!\x01\x00");
    trailer[6..22].copy_from_slice(&xxh3_128(contents).to_le_bytes());
    Some(())
}

fn look(current: &[u8], manifest: &[u8]) {
    if let Ok((current, manifest)) = fuzzing::version_again(current, manifest) {
        let again = fuzzing::version_again(&current, &manifest).expect("as it is written");
        assert_eq!(again, (current, manifest), "the version changes when it is written");
    }
}
