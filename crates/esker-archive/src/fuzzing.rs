//! Doors for the fuzz targets; not part of the API.
//!
//! Every door takes bytes that may be anything and answers with what the crate makes of them. Nothing is
//! encrypted here: who has no key gets no further than the cipher.

use bytes::Bytes;

use crate::error::Result;
use crate::layout::{BackupId, FileId, PIECE_BYTES};
use crate::manifest::Manifest;
use crate::piece::{self, Place, Table};
use crate::seal::Sealer;

/// The hash of the file whose pieces are fuzzed.
pub const HASH: u128 = 7;
const ID: BackupId = BackupId { uuid: 1, timeline: 2, seqno: 3, tag: 4 };

/// The name of the manifest that is fuzzed, which its check covers.
pub fn backup_name() -> String {
    ID.object().to_string()
}

/// The manifest that these bytes are, encoded again.
///
/// # Errors
///
/// When they are none.
pub fn manifest_again(object: &[u8]) -> Result<Vec<u8>> {
    let sealer = Sealer::new(None);
    Manifest::decode(ID, object, &sealer)?.encode(&sealer)
}

/// A manifest's object with this list, whatever that is.
pub fn manifest_of(json: &[u8]) -> Vec<u8> {
    Manifest::wrap(ID, json, &Sealer::new(None))
}

/// The piece `number` of a file that ends with it, of `raw_bytes`.
fn place(number: u32, raw_bytes: u64) -> Place {
    let file = FileId { hash: HASH, bytes: u64::from(number) * PIECE_BYTES + raw_bytes };
    Place { file, piece: number }
}

/// What a check covers besides table and footer.
pub fn piece_place(number: u32, raw_bytes: u64) -> [u8; 28] {
    place(number, raw_bytes).encode()
}

/// The raw bytes of a piece.
///
/// # Errors
///
/// When the object is none.
pub fn piece(number: u32, raw_bytes: u64, object: &[u8]) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    piece::decode(place(number, raw_bytes), object, &Sealer::new(None), |_, raw| {
        whole.extend_from_slice(raw);
        Ok(())
    })?;
    Ok(whole)
}

/// The raw bytes of each frame alone, as restores fetch them.
///
/// # Errors
///
/// When the object is none.
pub fn piece_by_frames(number: u32, raw_bytes: u64, object: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (place, sealer) = (place(number, raw_bytes), Sealer::new(None));
    let table = Table::parse(place, object, object.len() as u64, &sealer)?;
    let open = |number: usize| {
        let range = table.range(number, number + 1);
        let stored = &object[range.start as usize..range.end as usize];
        let mut frame = Vec::new();
        let each = |_, raw: &[u8]| {
            frame.extend_from_slice(raw);
            Ok(())
        };
        table.open(number, number + 1, stored, &sealer, each)?;
        Ok(frame)
    };
    (0..table.frames()).map(open).collect()
}

/// The object of a piece.
pub fn piece_of(number: u32, raw: &[u8]) -> Vec<u8> {
    let place = place(number, raw.len() as u64);
    piece::encode(place, &Bytes::copy_from_slice(raw), &Sealer::new(None), 1).concat()
}
