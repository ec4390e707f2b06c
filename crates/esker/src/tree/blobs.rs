//! What lsm-tree does not check of blob files.
//!
//! The checksum of a blob covers key and value as they are stored, and not the length to which the
//! value unpacks. lsm-tree asks for so much memory and returns so many bytes, whatever comes out. The
//! entry in the table says the length as well, under a checksum. And a merge that rewrites a file
//! believes the lengths in it before it looks at any checksum. What must stay true: the first two are
//! compared before lsm-tree reads the blob, the others with the file before a merge may rewrite it.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use lsm_tree::{AbstractTree as _, AnyTree, ValueType};

use super::calls::guarded;
use crate::error::{Error, IoContext, Result};
use crate::files;

/// docs/format.md: the header of a blob, and where the length is in it.
const HEADER_LEN: usize = 38;
const KEY_LEN_AT: usize = 28;
const UNPACKED_LEN_AT: usize = 30;
const STORED_LEN_AT: usize = 34;
const MAGIC: &[u8] = b"BLOB";
/// What comes behind the last blob.
const END_MAGIC: &[u8] = b"META";

/// Compares the two lengths of the value of `key`, if it is in a blob file.
pub(super) fn check(tree: &AnyTree, dir: &Path, key: &[u8], read_seqno: u64) -> Result<()> {
    let entry = guarded("read from", dir, || tree.get_internal_entry(key, read_seqno))?;
    let Some(entry) = entry.filter(|entry| entry.key.value_type == ValueType::Indirection) else {
        return Ok(());
    };
    let Some((offset, file, expected)) = place(&entry.value) else {
        return Err(Error::corrupt(dir, None, "an entry does not say where its value is"));
    };
    let path = files::blob(dir, file);
    let mut header = [0; HEADER_LEN];
    let read = File::open(&path).and_then(|file| file.read_exact_at(&mut header, offset));
    match read {
        Ok(()) => {}
        // lsm-tree finds out and says so; or a merge took the file, and the caller reads again.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => {
            return Ok(());
        }
        Err(e) => return Err(e).at("read", &path),
    }
    let field = &header[UNPACKED_LEN_AT..UNPACKED_LEN_AT + 4];
    let found = u32::from_le_bytes(field.try_into().unwrap_or_default());
    if u64::from(found) == expected {
        return Ok(());
    }
    let what = "the length of a value is not the one in its table";
    let (expected, found) = (expected.to_string(), found.to_string());
    Err(Error::corrupt_because(&path, Some(offset), what, expected, found))
}

/// Walks through a blob file from header to header.
pub(super) fn check_lengths(path: &Path) -> Result<()> {
    let file = File::open(path).at("open", path)?;
    let len = file.metadata().at("inspect", path)?.len();
    let mut input = BufReader::new(file);
    let mut at = 0;
    loop {
        let odd = |what: &str| Err(Error::corrupt(path, Some(at), what));
        let mut header = [0; HEADER_LEN];
        if len - at < HEADER_LEN as u64 {
            return odd("the file ends within a value");
        }
        input.read_exact(&mut header[..MAGIC.len()]).at("read", path)?;
        if header.starts_with(END_MAGIC) {
            return Ok(());
        }
        if !header.starts_with(MAGIC) {
            return odd("there is no value where one should be");
        }
        input.read_exact(&mut header[MAGIC.len()..]).at("read", path)?;
        let key_len = u16::from_le_bytes([header[KEY_LEN_AT], header[KEY_LEN_AT + 1]]);
        let stored = &header[STORED_LEN_AT..STORED_LEN_AT + 4];
        let stored = u32::from_le_bytes(stored.try_into().unwrap_or_default());
        let content = u64::from(key_len) + u64::from(stored);
        if content > len - at - HEADER_LEN as u64 {
            return odd("the length of a value is impossible");
        }
        input.seek_relative(content as i64).at("read", path)?;
        at += HEADER_LEN as u64 + content;
    }
}

/// Offset, blob file and unpacked length out of an entry: numbers of seven bits a byte, of which the
/// third is the length as stored.
fn place(entry: &[u8]) -> Option<(u64, u64, u64)> {
    let mut bytes = entry.iter();
    let mut number = || {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *bytes.next()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    };
    let (offset, file, _stored) = (number()?, number()?, number()?);
    Some((offset, file, number()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_lengths_in_a_blob_file_are_found_without_believing_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0");
        let blob = |key_len: u16, stored: u32| {
            let mut bytes = [0; HEADER_LEN];
            bytes[..4].copy_from_slice(MAGIC);
            bytes[KEY_LEN_AT..KEY_LEN_AT + 2].copy_from_slice(&key_len.to_le_bytes());
            bytes[STORED_LEN_AT..].copy_from_slice(&stored.to_le_bytes());
            bytes.to_vec()
        };
        let check = |parts: &[&[u8]]| {
            std::fs::write(&path, parts.concat()).unwrap();
            check_lengths(&path)
        };
        let end = [END_MAGIC, &[0; HEADER_LEN]].concat();
        check(&[&blob(3, 20_000), &[7; 20_003], &blob(0, 0), &end]).unwrap();
        let wrong = [
            check(&[&blob(3, u32::MAX), &[7; 20_003], &end]),
            check(&[&blob(3, 20_001), &[7; 20_003], &end]),
            check(&[&blob(3, 20_000), &[7; 20_003]]),
            check(&[]),
        ];
        assert!(wrong.iter().all(|r| matches!(r, Err(Error::Corrupt(_)))), "{wrong:?}");
    }

    #[test]
    fn the_place_of_a_value_is_four_numbers_and_nothing_less() {
        let entry = [0x80, 0x01, 0x05, 0x7f, 0xff, 0x01];
        assert_eq!(place(&entry), Some((128, 5, 255)));
        assert!((0..entry.len()).all(|len| place(&entry[..len]).is_none()));
        assert_eq!(place(&[0xff; 40]), None);
    }
}
