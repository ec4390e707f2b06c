//! What makes stored bytes unreadable without the key, where a repository is encrypted.
//!
//! Everything is derived from one key of 32 random bytes: one key that seals (XChaCha20-Poly1305), and
//! one that turns the hashes of files into names, so that names tell nothing of the content. What must
//! stay true: no nonce is used twice with one key. A nonce is sixteen random bytes, drawn for each
//! object when it is made, and eight that count within it. What is sealed is bound to its place by the
//! associated data: a frame of another file, piece or number does not open.

use std::fmt;
use std::path::Path;

use bytes::Bytes;
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{Key as CipherKey, XChaCha20Poly1305, XNonce};

use crate::error::{Error, IoContext as _, Result};
use crate::layout::{FileId, parse_hex};

/// What sealing adds.
pub(crate) const TAG_BYTES: usize = 16;
const SEALING: &str = "esker archive 1 sealing";
const NAMING: &str = "esker archive 1 naming";
const CHECKING: &str = "esker archive 1 key check";

/// The key of an encrypted repository. Whoever loses it has lost the backups. It is never printed.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// A new one.
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// From 64 hex digits, with white space around them.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`], which does not repeat what was given.
    pub fn from_hex(text: &str) -> Result<Self> {
        let text = text.trim().to_ascii_lowercase();
        let halves = text.is_char_boundary(32).then(|| text.split_at(32));
        let parsed = halves.and_then(|(a, b)| Some((parse_hex(a, 32)?, parse_hex(b, 32)?)));
        let (first, second) = parsed.ok_or_else(|| {
            Error::InvalidInput("a key is 64 hex digits; this is something else".into())
        })?;
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&first.to_be_bytes());
        bytes[16..].copy_from_slice(&second.to_be_bytes());
        Ok(Self(bytes))
    }

    /// From a file that holds 64 hex digits.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or holds something else.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_hex(&std::fs::read_to_string(path).at("read the key in", path)?)
    }

    /// The 64 hex digits, to be kept where nobody else reads them.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Tells this key from others and says nothing about it.
    pub(crate) fn check(&self) -> String {
        blake3::Hash::from(blake3::derive_key(CHECKING, &self.0)).to_hex()[..32].to_owned()
    }
}

/// What an object's sealed parts share.
pub(crate) type Nonce = [u8; 16];

/// Seals and opens, or does nothing where a repository is not encrypted.
#[derive(Clone)]
pub(crate) struct Sealer(Option<Sealing>);

#[derive(Clone)]
struct Sealing {
    cipher: XChaCha20Poly1305,
    naming: [u8; 32],
}

impl Sealer {
    pub(crate) fn new(key: Option<&Key>) -> Self {
        Self(key.map(|key| Sealing {
            cipher: XChaCha20Poly1305::new(&CipherKey::from(blake3::derive_key(SEALING, &key.0))),
            naming: blake3::derive_key(NAMING, &key.0),
        }))
    }

    pub(crate) fn is_sealing(&self) -> bool {
        self.0.is_some()
    }

    /// The name of a file with this content.
    pub(crate) fn name(&self, xxh3: u128, bytes: u64) -> FileId {
        let Some(sealing) = &self.0 else { return FileId { hash: xxh3, bytes } };
        let mut content = [0; 24];
        content[..16].copy_from_slice(&xxh3.to_le_bytes());
        content[16..].copy_from_slice(&bytes.to_le_bytes());
        let hash = blake3::keyed_hash(&sealing.naming, &content);
        let first = hash.as_bytes().first_chunk().expect("a hash has 32 bytes");
        FileId { hash: u128::from_be_bytes(*first), bytes }
    }

    /// A nonce for a new object.
    pub(crate) fn nonce(&self) -> Nonce {
        if self.is_sealing() { rand::random() } else { Nonce::default() }
    }

    /// The part `number` of an object, as it is stored. `place` says where it belongs.
    pub(crate) fn seal(&self, bytes: Bytes, nonce: Nonce, number: u64, place: &[u8]) -> Bytes {
        let Some(sealing) = &self.0 else { return bytes };
        let payload = Payload { msg: &bytes, aad: place };
        let sealed = sealing.cipher.encrypt(&at(nonce, number), payload);
        sealed.expect("a part is far below the limit").into()
    }

    /// What [`Sealer::seal`] was given; `None` if it was something else, or by another key.
    pub(crate) fn open<'a>(
        &self,
        bytes: &'a [u8],
        nonce: Nonce,
        number: u64,
        place: &[u8],
    ) -> Option<std::borrow::Cow<'a, [u8]>> {
        let Some(sealing) = &self.0 else { return Some(bytes.into()) };
        let payload = Payload { msg: bytes, aad: place };
        sealing.cipher.decrypt(&at(nonce, number), payload).ok().map(Into::into)
    }
}

fn at(nonce: Nonce, number: u64) -> XNonce {
    let mut whole = [0; 24];
    whole[..16].copy_from_slice(&nonce);
    whole[16..].copy_from_slice(&number.to_le_bytes());
    XNonce::from(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_hex_and_is_never_shown() {
        let key = Key::generate();
        assert_eq!(Key::from_hex(&format!(" {}\n", key.to_hex())).unwrap().0, key.0);
        assert_eq!(format!("{key:?}"), "Key(…)");
        for bad in ["", "12", &key.to_hex()[1..], &"g".repeat(64), &"é".repeat(32)] {
            let error = Key::from_hex(bad).unwrap_err();
            assert!(bad.is_empty() || !error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn what_is_sealed_opens_only_in_its_place_and_with_its_key() {
        let (sealer, other) =
            (Sealer::new(Some(&Key::generate())), Sealer::new(Some(&Key::generate())));
        let nonce = sealer.nonce();
        let sealed = sealer.seal(Bytes::from_static(b"content"), nonce, 3, b"place");
        assert_eq!(sealed.len(), 7 + TAG_BYTES);
        assert_eq!(sealer.open(&sealed, nonce, 3, b"place").as_deref(), Some(&b"content"[..]));
        assert!(sealer.open(&sealed, nonce, 4, b"place").is_none());
        assert!(sealer.open(&sealed, nonce, 3, b"elsewhere").is_none());
        assert!(other.open(&sealed, nonce, 3, b"place").is_none());
        for at in 0..sealed.len() {
            let mut rotten = sealed.to_vec();
            rotten[at] ^= 1;
            assert!(sealer.open(&rotten, nonce, 3, b"place").is_none(), "byte {at}");
        }
        assert_ne!(sealer.name(7, 9), other.name(7, 9));
        assert_eq!(sealer.name(7, 9), sealer.name(7, 9));
        assert_eq!(Sealer::new(None).name(7, 9), FileId { hash: 7, bytes: 9 });
    }
}
