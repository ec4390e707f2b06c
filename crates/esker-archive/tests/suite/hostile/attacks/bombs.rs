//! Little that claims to be much.

use std::fs;
use std::fs::File;

use esker_archive::ErrorKind;

use super::manifests::{missing_piece, object, tree_of};
use super::others::date;
use super::{Attack, Outcome, attack};
use crate::hostile::scene::{Scene, table};

/// Small objects, or cheap ones, that ask for a lot of memory.
pub fn bombs() -> Vec<Attack> {
    let sparse = |scene: &Scene, name: &str, bytes: u64| {
        scene.write(name, "");
        File::options().write(true).open(scene.at(name)).unwrap().set_len(bytes).unwrap();
    };
    let does_not = "does not decompress";
    vec![
        object("3 GiB of spaces", does_not, |it| it.body = packed_spaces(3 << 30)),
        object("60 MiB of spaces", does_not, |it| it.body = packed_spaces(60 << 20)),
        object("a window of 128 MiB", does_not, |it| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
            encoder.window_log(27).unwrap();
            std::io::copy(&mut std::io::Read::take(std::io::repeat(b' '), 2 << 20), &mut encoder)
                .unwrap();
            it.body = encoder.finish().unwrap();
        }),
        object("half a million partitions without names", "no name of a partition", |it| {
            let mut json = it.json();
            json["left_out"] = vec![""; 300_000].into();
            *it = it.clone().with_text(&serde_json::to_vec(&json).unwrap());
        }),
        attack("pieces without number", missing_piece(), |scene| {
            // Claims of 6 TiB in some KiB.
            scene.write_manifest(|json| {
                let tree = tree_of(json, "words");
                for number in 0..3 {
                    let mut claim = table(json).clone();
                    claim["path"] = format!("{tree}/tables/{}", 1000 + number).into();
                    claim["partition"] = "words".into();
                    claim["xxh3"] = format!("{number:032x}").into();
                    claim["bytes"] = (1_u64 << 41).into();
                    claim["pieces"] = vec![449; 1 << 16].into();
                    json["files"].as_array_mut().unwrap().insert(0, claim);
                }
            });
        }),
        attack("a manifest of 100 GiB", Outcome::Manifest("at most"), move |scene| {
            sparse(scene, &scene.manifest, 100 << 30);
        }),
        attack(
            "a REPOSITORY of 100 GiB",
            Outcome::Open(ErrorKind::Corrupt, "at most"),
            move |scene| {
                sparse(scene, "REPOSITORY", 100 << 30);
            },
        ),
        attack("a lease of 100 GiB", Outcome::Lease("leases/00000000000000aa"), move |scene| {
            sparse(scene, "leases/00000000000000aa", 100 << 30);
        }),
        attack("a piece of 100 GiB", Outcome::Piece("bytes where"), move |scene| {
            sparse(scene, &scene.piece, 100 << 30);
        }),
        attack("20,000 leases", Outcome::Lease("leases"), |scene| {
            for number in 0..20_000 {
                let path = scene.at(&format!("leases/{number:016x}"));
                if number == 0 {
                    scene.write("leases/0000000000000000", "");
                }
                fs::write(path, r#"{"work":"push","relies_on":[]}"#).unwrap();
            }
        }),
        attack("2,000 leases that have expired", Outcome::Harmless, |scene| {
            for number in 0..2_000 {
                let name = format!("leases/{number}");
                scene.write(&name, "{}");
                date(scene, &name, 1000);
            }
        }),
    ]
}

fn packed_spaces(bytes: u64) -> Vec<u8> {
    let mut spaces = std::io::Read::take(std::io::repeat(b' '), bytes);
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    std::io::copy(&mut spaces, &mut encoder).unwrap();
    encoder.finish().unwrap()
}
