//! Attacks by somebody who has no key.

use std::fs;

use esker_archive::ErrorKind;

use super::others::description;
use super::{Attack, Outcome, attack};
use crate::hostile::forge::{Backup, Frame};
use crate::hostile::scene::Scene;

pub fn encrypted() -> Vec<Attack> {
    let sealed = |attack: Attack| Attack { encrypted: true, ..attack };
    let plain_body = |backup: Backup| {
        let plain = Scene::new(false);
        Backup { body: plain.backup().body, ..backup }
    };
    vec![
        sealed(attack(
            "a manifest that is not sealed",
            Outcome::Manifest("it is encrypted and its repository is not, or the reverse"),
            move |scene| {
                let backup = Backup { encrypted: 0, ..plain_body(scene.backup()) };
                scene.write(&backup.name, backup.encode());
            },
        )),
        sealed(attack(
            "a plain manifest that is said to be sealed",
            Outcome::Manifest("it does not open with the key"),
            move |scene| {
                let backup = plain_body(scene.backup());
                scene.write(&backup.name, backup.encode());
            },
        )),
        sealed(attack(
            "a sealed manifest under another name",
            Outcome::Manifest("it does not open with the key"),
            |scene| {
                let mut backup = scene.backup();
                let (head, _) = scene.manifest.rsplit_once('-').unwrap();
                fs::remove_file(scene.at(&scene.manifest)).unwrap();
                backup.name = format!("{head}-0000000000000000");
                scene.write(&backup.name, backup.encode());
            },
        )),
        sealed(attack(
            "a piece that is not sealed",
            Outcome::Piece("it is of another length, frame size or encryption"),
            |scene| {
                let mut piece = scene.read_piece();
                piece.encrypted = 0;
                scene.write_piece(&piece);
            },
        )),
        sealed(attack(
            "a piece whose frames are exchanged",
            Outcome::Piece("does not open with the key"),
            |scene| {
                let mut piece = scene.read_piece();
                piece.frames.swap(0, 1);
                scene.write_piece(&piece);
            },
        )),
        sealed(attack(
            "a piece with another nonce",
            Outcome::Piece("does not open with the key"),
            |scene| {
                let mut piece = scene.read_piece();
                piece.nonce[0] ^= 1;
                scene.write_piece(&piece);
            },
        )),
        sealed(attack(
            "a piece of noise with every check right",
            Outcome::Piece("does not open with the key"),
            |scene| {
                let mut piece = scene.read_piece();
                for frame in &mut piece.frames {
                    let noise = vec![7; frame.stored.len()];
                    *frame = Frame::new(noise, frame.length >> 31 == 1);
                }
                scene.write_piece(&piece);
            },
        )),
        sealed(description(
            "no encryption any more",
            ErrorKind::FixInput,
            "and a key was given",
            |json| {
                json.as_object_mut().unwrap().remove("encryption");
            },
        )),
        sealed(description("another key", ErrorKind::FixInput, "with another key", |json| {
            json["encryption"]["key_check"] = "0".repeat(32).into();
        })),
        sealed(description("another cipher", ErrorKind::FixInput, "does not know", |json| {
            json["encryption"]["cipher"] = "none".into();
        })),
    ]
}
