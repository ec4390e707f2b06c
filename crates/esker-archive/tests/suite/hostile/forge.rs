//! An encoder of a repository's objects that owes nothing to the crate: it follows docs/format.md,
//! "Repository". What it makes of honest content must be accepted, which proves the document; what it
//! makes of lies has every check right.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use serde_json::Value;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::content::files_below;

/// A manifest's object, in parts.
#[derive(Clone)]
pub struct Backup {
    /// Of the object: `backups/…`.
    pub name: String,
    pub magic: [u8; 8],
    pub version: u32,
    pub encrypted: u32,
    pub nonce: [u8; 16],
    /// Compressed, and sealed if encrypted.
    pub body: Vec<u8>,
}

impl Backup {
    /// The only one of a repository.
    pub fn only(repository: &Path) -> Self {
        let path = files_below(&repository.join("backups")).pop().expect("a backup");
        let bytes = fs::read(&path).unwrap();
        Self {
            name: path.strip_prefix(repository).unwrap().to_str().unwrap().to_owned(),
            magic: bytes[..8].try_into().unwrap(),
            version: u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
            encrypted: u32::from_le_bytes(bytes[12..16].try_into().unwrap()),
            nonce: bytes[16..32].try_into().unwrap(),
            body: bytes[48..].to_vec(),
        }
    }

    pub fn json(&self) -> Value {
        let mut text = String::new();
        zstd::Decoder::new(&self.body[..]).unwrap().read_to_string(&mut text).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    pub fn with_text(mut self, text: &[u8]) -> Self {
        self.body = zstd::encode_all(text, 3).unwrap();
        self
    }

    /// With the check that fits everything else.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.encrypted.to_le_bytes());
        bytes.extend(self.nonce);
        let check = xxh3_128(&[self.name.as_bytes(), &bytes, &self.body].concat());
        bytes.extend(check.to_le_bytes());
        bytes.extend(&self.body);
        bytes
    }
}

/// A piece's object, in parts.
#[derive(Clone)]
pub struct Piece {
    /// Of the object: `files/…`.
    pub name: String,
    pub frames: Vec<Frame>,
    pub magic: [u8; 8],
    pub version: u32,
    pub encrypted: u32,
    pub frame_bytes: u32,
    pub raw_bytes: u64,
    pub nonce: [u8; 16],
}

/// A frame, and what the table says of it.
#[derive(Clone)]
pub struct Frame {
    pub stored: Vec<u8>,
    /// With the bit that says that nothing is compressed.
    pub length: u32,
    pub check: u64,
}

impl Frame {
    pub fn new(stored: Vec<u8>, is_raw: bool) -> Self {
        let length = stored.len() as u32 | u32::from(is_raw) << 31;
        Self { check: xxh3_64(&stored), stored, length }
    }
}

impl Piece {
    pub fn read(repository: &Path, name: &str) -> Self {
        let bytes = fs::read(repository.join(name)).unwrap();
        let (rest, footer) = bytes.split_at(bytes.len() - 64);
        let u32_at = |at: usize| u32::from_le_bytes(footer[at..at + 4].try_into().unwrap());
        let raw_bytes = u64::from_le_bytes(footer[24..32].try_into().unwrap());
        let count = raw_bytes.div_ceil(1 << 20) as usize;
        let (mut stored, table) = rest.split_at(rest.len() - 12 * count);
        let mut frames = Vec::new();
        for entry in table.chunks(12) {
            let length = u32::from_le_bytes(entry[..4].try_into().unwrap());
            let (frame, behind) = stored.split_at((length & !(1 << 31)) as usize);
            stored = behind;
            frames.push(Frame::new(frame.to_vec(), length >> 31 == 1));
            assert_eq!(frames.last().unwrap().check.to_le_bytes(), entry[4..]);
        }
        Self {
            name: name.to_owned(),
            frames,
            magic: footer[..8].try_into().unwrap(),
            version: u32_at(8),
            encrypted: u32_at(12),
            frame_bytes: u32_at(16),
            raw_bytes,
            nonce: footer[32..48].try_into().unwrap(),
        }
    }

    /// The 28 bytes that say which piece of which file it is.
    fn place(&self) -> Vec<u8> {
        let parts: Vec<_> = self.name.split('/').collect();
        let (hash, bytes) = parts[2].split_once('-').unwrap();
        let mut place = u128::from_str_radix(hash, 16).unwrap().to_le_bytes().to_vec();
        place.extend(bytes.parse::<u64>().unwrap().to_le_bytes());
        place.extend(parts[3].parse::<u32>().unwrap().to_le_bytes());
        place
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.frames.iter().flat_map(|f| f.stored.clone()).collect();
        let entry =
            |frame: &Frame| [&frame.length.to_le_bytes()[..], &frame.check.to_le_bytes()].concat();
        let table: Vec<u8> = self.frames.iter().flat_map(entry).collect();
        let mut footer = self.magic.to_vec();
        footer.extend(self.version.to_le_bytes());
        footer.extend(self.encrypted.to_le_bytes());
        footer.extend(self.frame_bytes.to_le_bytes());
        footer.extend([0; 4]);
        footer.extend(self.raw_bytes.to_le_bytes());
        footer.extend(self.nonce);
        let check = xxh3_128(&[&self.place()[..], &table, &footer].concat());
        bytes.extend(table);
        bytes.extend(footer);
        bytes.extend(check.to_le_bytes());
        bytes
    }
}

pub fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Gives a file of a manifest, which must be inline, other content.
pub fn set_inline(file: &mut Value, content: &[u8]) {
    file["bytes"] = content.len().into();
    file["xxh3"] = format!("{:032x}", xxh3_128(content)).into();
    file["inline"] = to_hex(content).into();
}

/// The file of a manifest with this path.
pub fn file<'a>(json: &'a mut Value, path: &str) -> &'a mut Value {
    let files = json["files"].as_array_mut().unwrap();
    files.iter_mut().find(|file| file["path"] == path).unwrap_or_else(|| panic!("no {path}"))
}

/// Changes the text of a manifest's CHECKPOINT, whose first line is made right.
pub fn edit_checkpoint(json: &mut Value, edit: impl FnOnce(String) -> String) {
    let checkpoint = file(json, "CHECKPOINT");
    let text = String::from_utf8(from_hex(checkpoint["inline"].as_str().unwrap())).unwrap();
    let body = edit(text.split_once('\n').unwrap().1.to_owned());
    let hash = xxh3_128(format!("ESKER-CHECKPOINT 1\n{body}").as_bytes());
    set_inline(checkpoint, format!("ESKER-CHECKPOINT 1 {hash:032x}\n{body}").as_bytes());
}
