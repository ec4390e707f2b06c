//! The outside of manifests and proofs: 48 bytes in front of what may be sealed. The grammar is in
//! docs/format.md, "Backup".
//!
//! What must stay true: what comes out was put in under this name by somebody who had the key, or nothing
//! comes out. Every version begins with these bytes and this check, so that what is rotten is never
//! taken for what is newer.

use std::borrow::Cow;

use bytes::Bytes;
use object_store::path::Path;
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, Result};
use crate::seal::{Nonce, Sealer};

/// Magic, version, whether it is sealed, nonce, check.
pub(crate) const HEADER_BYTES: usize = 48;
/// What the check covers of them.
const CHECKED_BYTES: usize = 32;

/// A kind of object.
pub(crate) struct Envelope {
    pub(crate) magic: &'static [u8; 8],
    pub(crate) version: u32,
    /// As an error calls it.
    pub(crate) called: &'static str,
}

impl Envelope {
    /// The object of this name around a body.
    pub(crate) fn wrap(&self, object: &Path, body: Bytes, sealer: &Sealer) -> Vec<u8> {
        let nonce = sealer.nonce();
        let sealed = sealer.seal(body, nonce, 0, object.as_ref().as_bytes());
        let mut bytes = Vec::with_capacity(HEADER_BYTES + sealed.len());
        bytes.extend_from_slice(self.magic);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&u32::from(sealer.is_sealing()).to_le_bytes());
        bytes.extend_from_slice(&nonce);
        let check = check_of(object, &bytes, &sealed);
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes.extend_from_slice(&sealed);
        bytes
    }

    /// The body in the object of this name.
    pub(crate) fn open<'a>(
        &self,
        object: &Path,
        bytes: &'a [u8],
        sealer: &Sealer,
    ) -> Result<Cow<'a, [u8]>> {
        let corrupt = |what: &str| Error::corrupt(object.as_ref(), what);
        let Some((header, sealed)) = bytes.split_at_checked(HEADER_BYTES) else {
            return Err(corrupt("it is cut short"));
        };
        if &header[..8] != self.magic {
            return Err(corrupt(&format!("it does not begin as a {} does", self.called)));
        }
        let (checked, check) = header.split_at(CHECKED_BYTES);
        if check_of(object, checked, sealed).to_le_bytes() != check {
            return Err(corrupt("it does not match its check"));
        }
        let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four"));
        if u32_at(8) != self.version {
            let (object, found, supported) = (object.to_string(), u32_at(8), self.version);
            return Err(Error::UnsupportedFormat { object, found, supported });
        }
        if u32_at(12) != u32::from(sealer.is_sealing()) {
            return Err(corrupt("it is encrypted and its repository is not, or the reverse"));
        }
        let nonce: Nonce = header[16..CHECKED_BYTES].try_into().expect("sixteen");
        let body = sealer.open(sealed, nonce, 0, object.as_ref().as_bytes());
        body.ok_or_else(|| corrupt("it does not open with the key"))
    }
}

/// Bound to the name: what lies under another name is not that object.
fn check_of(object: &Path, header: &[u8], sealed: &[u8]) -> u128 {
    let mut hasher = Xxh3::new();
    [object.as_ref().as_bytes(), header, sealed].iter().for_each(|part| hasher.update(part));
    hasher.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::Key;

    const LETTER: Envelope = Envelope { magic: b"ESKRTST\0", version: 2, called: "letter" };

    #[test]
    fn a_flipped_bit_is_never_taken_for_another_version() {
        let object = Path::from("letters/1");
        for sealer in [Sealer::new(None), Sealer::new(Some(&Key::generate()))] {
            let bytes = LETTER.wrap(&object, Bytes::from_static(b"content"), &sealer);
            assert_eq!(&*LETTER.open(&object, &bytes, &sealer).unwrap(), b"content");
            for (at, bit) in (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
                let mut rotten = bytes.clone();
                rotten[at] ^= 1 << bit;
                let error = LETTER.open(&object, &rotten, &sealer).unwrap_err();
                assert!(matches!(error, Error::Corrupt { .. }), "{error}");
            }
            let newer = Envelope { version: 3, ..LETTER }.wrap(&object, Bytes::new(), &sealer);
            let error = LETTER.open(&object, &newer, &sealer).unwrap_err();
            assert!(
                matches!(error, Error::UnsupportedFormat { found: 3, supported: 2, .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_sealed_by_nobody_or_for_another_place_is_refused() {
        let (open, sealing) = (Sealer::new(None), Sealer::new(Some(&Key::generate())));
        let object = Path::from("letters/1");
        for (one, other) in [(&open, &sealing), (&sealing, &open)] {
            let bytes = LETTER.wrap(&object, Bytes::from_static(b"content"), one);
            assert!(LETTER.open(&object, &bytes, other).is_err());
            assert!(LETTER.open(&Path::from("letters/2"), &bytes, one).is_err());
        }
        let another = LETTER.wrap(&object, Bytes::from_static(b"content"), &sealing);
        assert!(LETTER.open(&object, &another, &Sealer::new(Some(&Key::generate()))).is_err());
    }
}
