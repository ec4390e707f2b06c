//! What lsm-tree does not check of blob files.
//!
//! The checksum of a blob covers key and value as they are stored, and not the length to which the
//! value unpacks. lsm-tree asks for so much memory and returns so many bytes, whatever comes out. The
//! entry in the table says the length as well, under a checksum. And a merge that rewrites a file
//! believes the lengths in it before it looks at any checksum. What must stay true: the first two are
//! compared before lsm-tree reads the blob, the others with the file before a merge may rewrite it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use lsm_tree::DescriptorTable;

use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::options::PartitionOptions;

/// docs/format.md: the header of a blob, and where the length is in it.
const HEADER_LEN: usize = 38;
const KEY_LEN_AT: usize = 28;
const UNPACKED_LEN_AT: usize = 30;
const STORED_LEN_AT: usize = 34;
const MAGIC: &[u8] = b"BLOB";
/// What comes behind the last blob.
const END_MAGIC: &[u8] = b"META";
/// lsm-tree divides with few digits: what is a little less stale than asked for counts as well.
const ENOUGH: f64 = 0.8;

/// Where an entry of a table says that its value is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    offset: u64,
    pub(super) file: u64,
    unpacked_len: u64,
}

impl Place {
    pub(super) fn of(entry: &[u8], dir: &Path) -> Result<Self> {
        Self::parse(entry)
            .ok_or_else(|| Error::corrupt(dir, None, "an entry does not say where its value is"))
    }

    /// Numbers of seven bits a byte, of which the third is the length as stored.
    fn parse(entry: &[u8]) -> Option<Self> {
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
        Some(Self { offset, file, unpacked_len: number()? })
    }
}

/// Compares lengths of values in the blob files of one tree.
#[derive(Clone)]
pub(super) struct Lengths {
    pub(super) dir: Arc<Path>,
    /// lsm-tree's number for the tree, under which it shares descriptors.
    pub(super) tree_id: u64,
    pub(super) descriptors: Arc<DescriptorTable>,
}

impl Lengths {
    /// Compares the two lengths of a value. The caller holds a version with the blob file: it can
    /// neither go nor leave a descriptor behind meanwhile.
    pub(super) fn check(&self, place: Place) -> Result<()> {
        let path = files::blob(&self.dir, place.file);
        let mut header = [0; HEADER_LEN];
        let read = self.open(&path, place.file);
        match read.and_then(|file| file.read_exact_at(&mut header, place.offset)) {
            Ok(()) => {}
            // lsm-tree finds out and says so.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => {
                return Ok(());
            }
            Err(e) => return Err(e).at("read", &path),
        }
        let field = &header[UNPACKED_LEN_AT..UNPACKED_LEN_AT + 4];
        let found = u32::from_le_bytes(field.try_into().unwrap_or_default());
        if u64::from(found) == place.unpacked_len {
            return Ok(());
        }
        let what = "the length of a value is not the one in its table";
        let (expected, found) = (place.unpacked_len.to_string(), found.to_string());
        Err(Error::corrupt_because(&path, Some(place.offset), what, expected, found))
    }

    fn open(&self, path: &Path, file: u64) -> std::io::Result<Arc<File>> {
        let id = (self.tree_id, file).into();
        if let Some(file) = self.descriptors.access_for_blob_file(&id) {
            return Ok(file);
        }
        let file = Arc::new(File::open(path)?);
        self.descriptors.insert_for_blob_file(id, Arc::clone(&file));
        Ok(file)
    }
}

/// The blob files with stale values out of lsm-tree's account, and the bytes of those unpacked.
pub(super) fn stale_bytes(account: &[u8]) -> BTreeMap<u64, u64> {
    let number = |bytes: &[u8]| bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    // u32 count; per file u64 id, u32 values, u64 bytes, u64 bytes as stored.
    let files = account.get(4..).unwrap_or_default().chunks_exact(28);
    files.map(|file| (number(file), number(&file[12..]))).collect()
}

/// Which files lsm-tree may rewrite.
pub(super) struct Rewriting {
    /// From this stale share on.
    staleness: f64,
    /// Of the files that a merge could rewrite it takes the oldest share, rounded down: never one that
    /// has fewer newer ones beside it than this.
    newer_files: usize,
}

impl Rewriting {
    pub(super) fn of(options: &PartitionOptions) -> Self {
        let files = 1.0 / f64::from(options.blob_age_cutoff) - 0.01;
        // No share of any number of files: more than there can be.
        let files = if files.is_finite() { files.ceil() as usize } else { usize::MAX };
        let newer_files = files.saturating_sub(1);
        Self { staleness: f64::from(options.blob_staleness_threshold) * ENOUGH, newer_files }
    }

    /// The files that some merge may rewrite, by what is stale in them and what tables refer to.
    pub(super) fn candidates(
        &self,
        stale: &BTreeMap<u64, u64>,
        live: &BTreeMap<u64, u64>,
    ) -> Vec<u64> {
        let live = |file| live.get(file).copied().unwrap_or_default();
        let enough =
            |file, bytes: u64| bytes as f64 >= (bytes + live(file)) as f64 * self.staleness;
        let files = stale.iter().filter(|&(file, &bytes)| enough(file, bytes));
        let mut files: Vec<_> = files.map(|(&file, _)| file).collect();
        files.truncate(files.len().saturating_sub(self.newer_files));
        files
    }
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
        let place = Place { offset: 128, file: 5, unpacked_len: 255 };
        assert_eq!(Place::parse(&entry), Some(place));
        assert!((0..entry.len()).all(|len| Place::parse(&entry[..len]).is_none()));
        assert_eq!(Place::parse(&[0xff; 40]), None);
    }

    #[test]
    fn a_merge_may_rewrite_stale_files_with_three_newer_ones_beside_them() {
        let candidates = |stale: &_, live: &_| {
            Rewriting::of(&PartitionOptions::default()).candidates(stale, live)
        };
        let stale = |files: &[(u64, u64)]| files.iter().copied().collect::<BTreeMap<_, _>>();
        let live = stale(&[(1, 75), (2, 81), (3, 10), (4, 0), (5, 75), (7, 75)]);
        let four = stale(&[(1, 25), (2, 19), (3, 10), (4, 1), (5, 25)]);
        assert_eq!(candidates(&four, &live), [1]);
        let three = stale(&[(1, 25), (2, 19), (3, 10), (4, 1)]);
        assert!(candidates(&three, &live).is_empty());
        let five = stale(&[(1, 25), (2, 50), (3, 10), (5, 25), (7, 25)]);
        assert_eq!(candidates(&five, &live), [1, 2]);
    }

    #[test]
    fn how_many_newer_files_there_must_be_follows_from_the_age() {
        let newer = |cutoff| {
            let options = PartitionOptions::default().blob_age_cutoff(cutoff);
            Rewriting::of(&options).newer_files
        };
        // So many of so many files does lsm-tree take: `(len as f32 * cutoff) as usize`.
        for percent in 1..=100u16 {
            let cutoff = f32::from(percent) / 100.0;
            let least = (1..=100u16).find(|len| f32::from(*len) * cutoff >= 1.0).unwrap();
            assert!(newer(cutoff) < usize::from(least), "{cutoff}: {least}");
        }
        assert_eq!((newer(1.0), newer(0.5), newer(0.25)), (0, 1, 3));
        assert_eq!(newer(0.0), usize::MAX - 1);
    }

    #[test]
    fn the_account_of_garbage_says_stale_bytes_as_they_unpack() {
        use lsm_tree::blob_tree::{FragmentationEntry, FragmentationMap};
        use lsm_tree::coding::Encode as _;
        let mut account = FragmentationMap::default();
        assert!(stale_bytes(&account.encode_into_vec()).is_empty());
        account.insert(7, FragmentationEntry::new(1, 300, 20));
        account.insert(1 << 40, FragmentationEntry::new(2, 1 << 33, 5));
        let expected = BTreeMap::from([(7, 300), (1 << 40, 1 << 33)]);
        assert_eq!(stale_bytes(&account.encode_into_vec()), expected);
    }
}
