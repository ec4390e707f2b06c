//! Typed keys as bytes whose order is that of the keys.
//!
//! What must stay true, because it is on disk: for two keys of one type, `a < b` exactly if the bytes
//! of `a` come before those of `b`; and no part of a tuple, encoded, is the beginning of another value
//! of that part. The tables of the tests below hold the encoding.

/// Where a part of a key stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Something follows: the bytes must tell where they end.
    Inner,
    /// It is the whole key, or its last part.
    Last,
}

/// A type of keys. Integers are stored big-endian, signed ones with the sign bit flipped; strings and
/// bytes as they are; tuples part after part, strings and bytes before the last one with `00 FF` for
/// `00` and `00 00` behind them.
///
/// A type of one's own is stored as one of these:
///
/// ```
/// use esker::{AsKey, Key, Place};
///
/// #[derive(Debug, PartialEq)]
/// struct UserId(u64);
///
/// impl Key for UserId {
///     fn decode(bytes: &mut &[u8], place: Place) -> Option<Self> {
///         u64::decode(bytes, place).map(Self)
///     }
/// }
/// impl AsKey<UserId> for UserId {
///     fn encode(&self, bytes: &mut Vec<u8>, place: Place) {
///         AsKey::<u64>::encode(&self.0, bytes, place);
///     }
/// }
/// let mut bytes = Vec::new();
/// UserId(7).encode(&mut bytes, Place::Last);
/// assert_eq!(UserId::decode(&mut &bytes[..], Place::Last), Some(UserId(7)));
/// ```
pub trait Key: AsKey<Self> + Sized {
    /// Takes a key from the front of `bytes`; `None` if there is none.
    fn decode(bytes: &mut &[u8], place: Place) -> Option<Self>;
}

/// What can be looked up as a key of type `K`: itself, a reference to it, `str` for `String`, and
/// tuples of such.
#[diagnostic::on_unimplemented(message = "`{Self}` is no key of type `{K}`")]
pub trait AsKey<K> {
    /// Appends the bytes of the key.
    fn encode(&self, bytes: &mut Vec<u8>, place: Place);
}

/// What keys of type `K` can begin with: a string for strings, and a shorter tuple for tuples, of
/// which `(a,)` is the shortest.
#[diagnostic::on_unimplemented(message = "no key of type `{K}` begins with a `{Self}`")]
pub trait AsPrefix<K> {
    /// Appends the bytes that such keys begin with.
    fn encode_prefix(&self, bytes: &mut Vec<u8>);
}

impl<K, T: AsKey<K> + ?Sized> AsKey<K> for &T {
    fn encode(&self, bytes: &mut Vec<u8>, place: Place) {
        (**self).encode(bytes, place);
    }
}

impl<K, T: AsPrefix<K> + ?Sized> AsPrefix<K> for &T {
    fn encode_prefix(&self, bytes: &mut Vec<u8>) {
        (**self).encode_prefix(bytes);
    }
}

/// `flip` is the bit that tells negative numbers, which come first.
macro_rules! integers {
    ($($type:ty, $flip:expr;)+) => {$(
        impl Key for $type {
            fn decode(bytes: &mut &[u8], _: Place) -> Option<Self> {
                let (number, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(Self::from_be_bytes(*number) ^ $flip)
            }
        }

        impl AsKey<$type> for $type {
            fn encode(&self, bytes: &mut Vec<u8>, _: Place) {
                bytes.extend_from_slice(&(self ^ $flip).to_be_bytes());
            }
        }
    )+};
}

integers! {
    u8, 0; u16, 0; u32, 0; u64, 0; u128, 0;
    i8, i8::MIN; i16, i16::MIN; i32, i32::MIN; i64, i64::MIN; i128, i128::MIN;
}

impl Key for bool {
    fn decode(bytes: &mut &[u8], place: Place) -> Option<Self> {
        match u8::decode(bytes, place)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl AsKey<bool> for bool {
    fn encode(&self, bytes: &mut Vec<u8>, _: Place) {
        bytes.push(u8::from(*self));
    }
}

impl<const N: usize> Key for [u8; N] {
    fn decode(bytes: &mut &[u8], _: Place) -> Option<Self> {
        let (array, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(*array)
    }
}

impl<const N: usize> AsKey<[u8; N]> for [u8; N] {
    fn encode(&self, bytes: &mut Vec<u8>, _: Place) {
        bytes.extend_from_slice(self);
    }
}

impl Key for Vec<u8> {
    fn decode(bytes: &mut &[u8], place: Place) -> Option<Self> {
        if place == Place::Last {
            return Some(std::mem::take(bytes).to_vec());
        }
        let mut found = Self::new();
        loop {
            let at = bytes.iter().position(|byte| *byte == 0)?;
            found.extend_from_slice(&bytes[..at]);
            let next = *bytes.get(at + 1)?;
            *bytes = &bytes[at + 2..];
            match next {
                0 => return Some(found),
                0xFF => found.push(0),
                _ => return None,
            }
        }
    }
}

impl AsKey<Vec<u8>> for [u8] {
    fn encode(&self, bytes: &mut Vec<u8>, place: Place) {
        if place == Place::Last {
            bytes.extend_from_slice(self);
            return;
        }
        for &byte in self {
            bytes.push(byte);
            if byte == 0 {
                bytes.push(0xFF);
            }
        }
        bytes.extend_from_slice(&[0, 0]);
    }
}

impl AsKey<Vec<u8>> for Vec<u8> {
    fn encode(&self, bytes: &mut Vec<u8>, place: Place) {
        self[..].encode(bytes, place);
    }
}

impl AsPrefix<Vec<u8>> for [u8] {
    fn encode_prefix(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self);
    }
}

impl Key for String {
    fn decode(bytes: &mut &[u8], place: Place) -> Option<Self> {
        Self::from_utf8(Vec::decode(bytes, place)?).ok()
    }
}

impl AsKey<String> for str {
    fn encode(&self, bytes: &mut Vec<u8>, place: Place) {
        self.as_bytes().encode(bytes, place);
    }
}

impl AsKey<String> for String {
    fn encode(&self, bytes: &mut Vec<u8>, place: Place) {
        self.as_bytes().encode(bytes, place);
    }
}

impl AsPrefix<String> for str {
    fn encode_prefix(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self.as_bytes());
    }
}

/// A tuple, by its parts: their types, what can stand for them, where they are.
macro_rules! tuple {
    ($($inner:ident $as_inner:ident $at:tt),+; $last:ident $as_last:ident $last_at:tt) => {
        impl<$($inner: Key,)+ $last: Key> Key for ($($inner,)+ $last) {
            fn decode(bytes: &mut &[u8], place: Place) -> Option<Self> {
                Some(($($inner::decode(bytes, Place::Inner)?,)+ $last::decode(bytes, place)?))
            }
        }

        impl<$($inner, $as_inner: AsKey<$inner>,)+ $last, $as_last: AsKey<$last>>
            AsKey<($($inner,)+ $last)> for ($($as_inner,)+ $as_last)
        {
            fn encode(&self, bytes: &mut Vec<u8>, place: Place) {
                $(self.$at.encode(bytes, Place::Inner);)+
                self.$last_at.encode(bytes, place);
            }
        }
    };
}

tuple!(A X 0; B Y 1);
tuple!(A X 0, B Y 1; C Z 2);
tuple!(A X 0, B Y 1, C Z 2; D W 3);

/// The first parts of a longer tuple.
macro_rules! prefix {
    ($($part:ident $as_part:ident $at:tt),+; $($rest:ident),+) => {
        impl<$($part, $as_part: AsKey<$part>,)+ $($rest),+> AsPrefix<($($part,)+ $($rest,)+)>
            for ($($as_part,)+)
        {
            fn encode_prefix(&self, bytes: &mut Vec<u8>) {
                $(self.$at.encode(bytes, Place::Inner);)+
            }
        }
    };
}

prefix!(A X 0; B);
prefix!(A X 0; B, C);
prefix!(A X 0; B, C, D);
prefix!(A X 0, B Y 1; C);
prefix!(A X 0, B Y 1; C, D);
prefix!(A X 0, B Y 1, C Z 2; D);

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;

    fn bytes<K>(key: impl AsKey<K>) -> Vec<u8> {
        let mut bytes = Vec::new();
        key.encode(&mut bytes, Place::Last);
        bytes
    }

    fn decoded<K: Key>(mut bytes: &[u8]) -> Option<K> {
        K::decode(&mut bytes, Place::Last).filter(|_| bytes.is_empty())
    }

    /// The keys are given in their order.
    fn keep_their_order<K: Key + Ord + Debug>(keys: &[K]) {
        assert!(keys.is_sorted(), "the test itself");
        for (at, key) in keys.iter().enumerate() {
            let encoded = bytes(key);
            assert_eq!(decoded::<K>(&encoded).as_ref(), Some(key));
            for later in &keys[at + 1..] {
                assert!(encoded < bytes(later), "{key:?} before {later:?}");
            }
        }
    }

    #[test]
    fn keys_keep_their_order_and_come_back() {
        keep_their_order(&[0_u64, 1, 255, 256, u64::MAX - 1, u64::MAX]);
        keep_their_order(&[i32::MIN, -256, -1, 0, 1, i32::MAX]);
        keep_their_order(&[i128::MIN, -1, 0, i128::MAX]);
        keep_their_order(&[(false, -1_i8), (false, 1), (true, -1), (true, 0)]);
        keep_their_order(
            &["", "\0", "\0\0", "a", "a\0", "a\0b", "a\u{1}", "ab", "ä"].map(String::from),
        );
        keep_their_order(&[[0_u8, 255], [1, 0], [255, 255]]);
        let parts =
            [&b""[..], b"\0", b"\0\0", b"\0\x01", b"\0\xff", b"\x01", b"a", b"a\0", b"\xff"];
        let tuples = parts.iter().flat_map(|a| parts.iter().map(|b| (a.to_vec(), b.to_vec())));
        keep_their_order(&tuples.collect::<Vec<_>>());
        let nested =
            parts.iter().flat_map(|a| [(7, (a.to_vec(), 1_u8), -1_i16), (7, (a.to_vec(), 2), 0)]);
        keep_their_order(&nested.collect::<Vec<_>>());
    }

    #[test]
    fn the_encoding_is_the_one_on_disk() {
        assert_eq!(bytes::<u32>(0x0102_0304), [1, 2, 3, 4]);
        assert_eq!(bytes::<i16>(-2), [0x7F, 0xFE]);
        assert_eq!(bytes::<i16>(2), [0x80, 2]);
        assert_eq!(bytes::<bool>(true), [1]);
        assert_eq!(bytes::<String>("a\0"), b"a\0");
        assert_eq!(bytes::<(String, u8)>(("a\0", 9)), b"a\0\xFF\0\0\x09");
        assert_eq!(bytes::<(u16, Vec<u8>)>((1, &b"\0"[..])), [0, 1, 0]);
    }

    #[test]
    fn a_prefix_holds_the_keys_that_begin_with_it_and_no_other() {
        let mut prefix = Vec::new();
        AsPrefix::<(String, u8)>::encode_prefix(&("a",), &mut prefix);
        for (key, begins) in
            [(("a", 0), true), (("a", 255), true), (("a\0", 0), false), (("ab", 0), false)]
        {
            assert_eq!(bytes::<(String, u8)>(key).starts_with(&prefix), begins, "{key:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_key_are_refused() {
        assert_eq!(decoded::<u32>(&[1, 2, 3]), None);
        assert_eq!(decoded::<u32>(&[1, 2, 3, 4, 5]), None);
        assert_eq!(decoded::<bool>(&[2]), None);
        assert_eq!(decoded::<[u8; 2]>(&[2]), None);
        assert_eq!(decoded::<String>(b"\xFF"), None);
        for broken in [&b"a"[..], b"a\0", b"a\0\x01\x09", b"a\0\0", b"a\0\xFF"] {
            assert_eq!(decoded::<(String, u8)>(broken), None, "{broken:?}");
        }
    }
}
