//! Every name in a repository, and which paths a backup may hold.
//!
//! What must stay true: `format` and `parse` stand side by side and agree; what comes from a store is
//! parsed into numbers and formatted anew, never joined to a path as it came. The grammar is in
//! docs/format.md, "Repository".

use std::fmt;

use object_store::path::Path;

use crate::error::{Error, Result};

/// What the repository is.
pub(crate) const REPOSITORY: &str = "REPOSITORY";
/// Below it the pieces of files.
pub(crate) const FILES: &str = "files";
/// Below it the manifests.
pub(crate) const BACKUPS: &str = "backups";
/// Below it what is under way.
pub(crate) const LEASES: &str = "leases";
/// Below it objects that are written to see what a store can do.
pub(crate) const PROBES: &str = "probes";

/// Below it what was read and proved, and when.
pub(crate) const PROOFS: &str = "proofs";

/// A file is stored in pieces of so many bytes, the last one shorter: each is one object, so no upload
/// is ever longer, and what was interrupted goes on behind the last whole one.
pub(crate) const PIECE_BYTES: u64 = 32 << 20;
/// No file is larger: 65,536 pieces are 2 TiB.
pub(crate) const PIECES_MAX: u64 = 1 << 16;

/// An immutable file by its content: the hash of its bytes (or, in an encrypted repository, a keyed
/// hash of that) and its length.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileId {
    pub(crate) hash: u128,
    pub(crate) bytes: u64,
}

impl FileId {
    /// How many objects it takes. An empty file takes none.
    pub(crate) fn pieces(self) -> u64 {
        self.bytes.div_ceil(PIECE_BYTES)
    }

    /// The raw length of a piece.
    pub(crate) fn piece_bytes(self, piece: u32) -> u64 {
        (self.bytes - u64::from(piece) * PIECE_BYTES).min(PIECE_BYTES)
    }

    /// The object of a piece.
    pub(crate) fn object(self, piece: u32) -> Path {
        Path::from(format!("{FILES}/{:02x}/{self}/{piece}", self.hash >> 120))
    }

    /// The file and the number of a piece, from the name of its object.
    pub(crate) fn parse(object: &Path) -> Option<(Self, u32)> {
        let parts: Vec<_> = object.parts().collect();
        let [root, group, name, piece] = &parts[..] else { return None };
        let (hash, bytes) = name.as_ref().split_once('-')?;
        let id = Self { hash: parse_hex(hash, 32)?, bytes: parse_decimal(bytes)? };
        let piece = u32::try_from(parse_decimal(piece.as_ref())?).ok()?;
        let named = root.as_ref() == FILES && parse_hex(group.as_ref(), 2)? == id.hash >> 120;
        (named && u64::from(piece) < id.pieces()).then_some((id, piece))
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}-{}", self.hash, self.bytes)
    }
}

/// One backup: which history, up to which commit, and a random number, because the same commit may be
/// pushed again. They sort by history and commit.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct BackupId {
    /// The id of the keyspace.
    pub uuid: u128,
    /// The id of the history.
    pub timeline: u128,
    /// The newest commit in it.
    pub seqno: u64,
    /// Tells it from others of the same commit.
    pub tag: u64,
}

impl BackupId {
    /// The object of its manifest.
    pub(crate) fn object(self) -> Path {
        let Self { uuid, timeline, seqno, tag } = self;
        Path::from(format!("{BACKUPS}/{uuid:032x}/{timeline:032x}/{seqno:020}-{tag:016x}"))
    }

    /// The backup whose manifest this object is.
    pub(crate) fn parse(object: &Path) -> Option<Self> {
        let parts: Vec<_> = object.parts().collect();
        let [root, uuid, timeline, name] = &parts[..] else { return None };
        if root.as_ref() != BACKUPS {
            return None;
        }
        let (uuid, timeline) = (parse_hex(uuid.as_ref(), 32)?, parse_hex(timeline.as_ref(), 32)?);
        let (seqno, tag) = parse_backup_name(name.as_ref())?;
        Some(Self { uuid, timeline, seqno, tag })
    }
}

/// As people write and read it: commit and tag, which are unique in practice.
impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.seqno, self.tag)
    }
}

/// What a check has proved: when that was written, and a random number.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProofId {
    pub(crate) time_ms: u64,
    pub(crate) tag: u64,
}

impl ProofId {
    /// Its object.
    pub(crate) fn object(self) -> Path {
        Path::from(format!("{PROOFS}/{:020}-{:016x}", self.time_ms, self.tag))
    }

    /// The proof that this object is.
    pub(crate) fn parse(object: &Path) -> Option<Self> {
        let parts: Vec<_> = object.parts().collect();
        let [root, name] = &parts[..] else { return None };
        let (time_ms, tag) = parse_backup_name(name.as_ref())?;
        (root.as_ref() == PROOFS).then_some(Self { time_ms, tag })
    }
}

fn parse_backup_name(name: &str) -> Option<(u64, u64)> {
    let (seqno, tag) = name.split_once('-')?;
    let is_padded = seqno.len() == 20 && seqno.bytes().all(|b| b.is_ascii_digit());
    Some((seqno.parse().ok().filter(|_| is_padded)?, parse_hex(tag, 16)? as u64))
}

/// Lower-case hex digits, exactly so many.
pub(crate) fn parse_hex(text: &str, digits: usize) -> Option<u128> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    debug_assert!((1..=32).contains(&digits));
    if text.len() != digits {
        return None;
    }
    text.bytes().try_fold(0, |number, byte| Some(number << 4 | u128::from(digit(byte)?)))
}

/// Decimal digits without leading zeros.
pub(crate) fn parse_decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

/// A path that a checkpoint can hold: see docs/format.md, "Directory". Nothing else is ever written
/// below a target.
pub(crate) fn check_path(path: &str) -> Result<()> {
    let number = |text: &str| parse_decimal(text).is_some();
    let mut parts = path.split('/');
    // One more than any path has.
    let known = match [(); 5].map(|()| parts.next()) {
        [Some("CATALOG" | "CHECKPOINT"), None, ..] => true,
        [Some("journal"), Some(name), None, ..] => {
            let digits = name.strip_suffix(".jnl");
            digits.is_some_and(|d| d.len() == 20 && d.bytes().all(|b| b.is_ascii_digit()))
        }
        [Some("partitions"), Some(tree), Some("current"), None, _] => number(tree),
        [Some("partitions"), Some(tree), Some("tables" | "blobs"), Some(id), None] => {
            number(tree) && number(id)
        }
        [Some("partitions"), Some(tree), Some(version), None, _] => {
            number(tree) && version.strip_prefix('v').is_some_and(number)
        }
        _ => false,
    };
    if known {
        Ok(())
    } else {
        Err(Error::InvalidInput(format!("{path:?} is no file of a keyspace")))
    }
}

/// Whether a path, which [`check_path`] knows, is that of a table or a blob file.
pub(crate) fn is_table(path: &str) -> bool {
    path.contains("/tables/") || path.contains("/blobs/")
}

/// A directory of a tree that may be empty in a checkpoint, and has to be there.
pub(crate) fn check_directory(path: &str) -> Result<()> {
    let parts: Vec<_> = path.split('/').collect();
    match &parts[..] {
        ["partitions", tree, "tables" | "blobs"] if parse_decimal(tree).is_some() => Ok(()),
        _ => Err(Error::InvalidInput(format!("{path:?} is no directory of a tree"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        let id = FileId { hash: 0xab << 120 | 7, bytes: 3 * PIECE_BYTES + 1 };
        assert_eq!(id.pieces(), 4);
        assert_eq!((id.piece_bytes(0), id.piece_bytes(3)), (PIECE_BYTES, 1));
        let object = id.object(3);
        assert_eq!(
            object.as_ref(),
            "files/ab/ab000000000000000000000000000007-100663297/3",
            "as docs/format.md has it"
        );
        assert_eq!(FileId::parse(&object), Some((id, 3)));
        let backup = BackupId { uuid: 1, timeline: 2, seqno: 3, tag: 4 };
        assert_eq!(BackupId::parse(&backup.object()), Some(backup));
        assert_eq!(backup.to_string(), "3-0000000000000004");
        let proof = ProofId { time_ms: 1_795_260_472_485, tag: 0xaa };
        let object = proof.object();
        assert_eq!(object.as_ref(), "proofs/00000001795260472485-00000000000000aa");
        assert_eq!(ProofId::parse(&object), Some(proof));
        for bad in ["proofs", "proofs/1-aa", "x/00000001795260472485-00000000000000aa"] {
            assert_eq!(ProofId::parse(&Path::from(bad)), None, "{bad}");
        }
        assert_eq!(ProofId::parse(&Path::from(format!("{object}/0"))), None);
    }

    #[test]
    fn names_of_any_other_form_are_nobodys() {
        let id = FileId { hash: 0xab << 120, bytes: 5 };
        let good = id.object(0).to_string();
        for bad in [
            good.replace("/0", "/1"),
            good.replace("/0", "/00"),
            good.replace("files/ab", "files/ac"),
            good.replace("-5", "-05"),
            good.replace("-5", ""),
            good.to_uppercase(),
            format!("{good}/0"),
            format!("x/{good}"),
        ] {
            assert_eq!(FileId::parse(&Path::from(bad.as_str())), None, "{bad}");
        }
        let good = BackupId { uuid: 1, timeline: 2, seqno: 3, tag: 4 }.object().to_string();
        for bad in [good.replace("3-", "-"), good.replace("0003-", "3-"), format!("{good}0")] {
            assert_eq!(BackupId::parse(&Path::from(bad.as_str())), None, "{bad}");
        }
    }

    #[test]
    fn paths_outside_of_a_keyspace_are_refused() {
        for good in [
            "CATALOG",
            "CHECKPOINT",
            "journal/00000000000000000002.jnl",
            "partitions/1/current",
            "partitions/17/v0",
            "partitions/17/tables/0",
            "partitions/17/blobs/12",
        ] {
            check_path(good).unwrap();
        }
        for bad in [
            "",
            "/",
            "LOCK",
            "catalog",
            "CATALOG/",
            "/CATALOG",
            "./CATALOG",
            "../CATALOG",
            "partitions/../CATALOG",
            "partitions/1/tables/../../../x",
            "partitions/01/current",
            "partitions/1/tables/",
            "partitions/1/tables/1/2",
            "partitions/1/v",
            "partitions/1/v-1",
            "partitions/1/other/1",
            "journal/2.jnl",
            "journal/0000000000000000000a.jnl",
            "journal/00000000000000000002.jnl/x",
            "staging/1",
            "CATALOG\0",
            "C:\\CATALOG",
            "partitions//1/current",
            "partitions/1/tables/18446744073709551616",
        ] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
    }
}
