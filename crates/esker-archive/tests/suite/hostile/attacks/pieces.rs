//! Attacks by pieces.

use std::fs;

use super::manifests::add_to_piece;
use super::{Attack, Outcome, attack};
use crate::hostile::forge::{Frame, Piece};

/// A change of the piece with three frames, behind which its check is made right.
fn piece(name: &str, said: &'static str, change: impl Fn(&mut Piece) + 'static) -> Attack {
    attack(name, Outcome::Piece(said), move |scene| {
        let mut piece = scene.read_piece();
        let before = piece.encode().len();
        change(&mut piece);
        let mut bytes = piece.encode();
        // The manifest lies with it.
        let added = bytes.len() as i64 - before as i64;
        scene.write_manifest(|json| add_to_piece(json, added));
        if bytes.is_empty() {
            bytes.push(0);
        }
        scene.write(&piece.name, bytes);
    })
}

fn raw_piece(name: &str, said: &'static str, change: impl Fn(&mut Vec<u8>) + 'static) -> Attack {
    attack(name, Outcome::Piece(said), move |scene| {
        let mut bytes = fs::read(scene.at(&scene.piece)).unwrap();
        change(&mut bytes);
        scene.write(&scene.piece, bytes);
    })
}

pub fn pieces() -> Vec<Attack> {
    let other = "it is of another length, frame size or encryption";
    let table_lies = "a frame of it cannot be as long as its table says";
    let not_as_long = "its frames are not as long as the object";
    let zeros = |len: usize| zstd::encode_all(&vec![0; len][..], 3).unwrap();
    vec![
        piece("a frame without bytes", table_lies, |it| {
            it.frames[1] = Frame::new(Vec::new(), false);
        }),
        piece("a raw frame without bytes", table_lies, |it| {
            it.frames[1] = Frame::new(Vec::new(), true);
        }),
        piece("a frame longer than the object", table_lies, |it| {
            it.frames[1].length = u32::MAX >> 1;
        }),
        piece("a raw frame of another length", "is not as long as it should be", |it| {
            it.frames[1] = Frame::new(vec![1; 1000], true);
        }),
        piece("a frame that unpacks to 64 MiB", "does not decompress", move |it| {
            it.frames[1] = Frame::new(zeros(64 << 20), false);
        }),
        piece("a frame that unpacks to less", "is not as long as it should be", move |it| {
            it.frames[1] = Frame::new(zeros(1000), false);
        }),
        piece("a frame that does not unpack", "does not decompress", |it| {
            it.frames[1] = Frame::new(vec![1; 1000], false);
        }),
        piece("frames that overlap by a byte", not_as_long, |it| it.frames[0].length -= 1),
        piece("frames with a gap", not_as_long, |it| it.frames[2].length -= 1),
        piece("a frame of another check", "does not match its check", |it| {
            it.frames[1].check ^= 1;
        }),
        piece("two frames exchanged", "do not make up the file", |it| it.frames.swap(0, 1)),
        piece("a frame of other content", "do not make up the file", move |it| {
            it.frames[0] = Frame::new(zeros(1 << 20), false);
        }),
        piece("frames of 2 MiB", other, |it| it.frame_bytes *= 2),
        piece("another raw length", other, |it| it.raw_bytes -= 1),
        piece("a raw length of 2^64 - 1", other, |it| it.raw_bytes = u64::MAX),
        piece("said to be encrypted", other, |it| it.encrypted = 1),
        piece("unknown flags", other, |it| it.encrypted = 1 << 31),
        piece("version 2", "format version 2; this build reads up to 1", |it| it.version = 2),
        piece("another magic", "does not end as a piece does", |it| it.magic[7] = b'!'),
        Attack {
            outcome: Outcome::Found("bytes where"),
            ..raw_piece("a byte behind", "", |bytes| bytes.push(0))
        },
        raw_piece("a byte cut off", "bytes", |bytes| _ = bytes.pop()),
        raw_piece("an empty object", "bytes", Vec::clear),
        raw_piece("a flipped bit in the table", "its table does not match its check", |bytes| {
            let at = bytes.len() - 64 - 5;
            bytes[at] ^= 1;
        }),
        raw_piece("a flipped bit in a frame", "does not match its check", |bytes| bytes[9] ^= 1),
        attack(
            "a piece of another file",
            Outcome::Piece("its table does not match its check"),
            |scene| {
                // Of the same length, so that only the check tells.
                let mut other = scene.read_piece();
                let (group, rest) = other.name.split_at(9);
                other.name = format!("{group}0{}", &rest[1..]);
                scene.write(&scene.piece, other.encode());
            },
        ),
    ]
}
