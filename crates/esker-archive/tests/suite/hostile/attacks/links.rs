//! Attacks by links and pipes, in a repository and where a restore writes.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use esker_archive::ErrorKind;

use super::{Attack, Outcome, attack};
use crate::hostile::scene::Scene;

fn fifo(path: &std::path::Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

/// A change of what lies at an object's name in a local directory.
fn link(
    name: &str,
    outcome: Outcome,
    object: fn(&Scene) -> String,
    change: impl Fn(&Scene, &std::path::Path) + 'static,
) -> Attack {
    attack(name, outcome, move |scene| {
        let path = scene.at(&object(scene));
        let aside = scene.outside("moved");
        fs::rename(&path, &aside).unwrap();
        change(scene, &path);
    })
}

pub fn links() -> Vec<Attack> {
    use ErrorKind::Corrupt;
    let of_piece = |scene: &Scene| scene.piece.clone();
    let of_manifest = |scene: &Scene| scene.manifest.clone();
    let symbolic = "a symbolic link, which is not followed";
    let odd = "neither a file nor a directory";
    let outside: &[&str] = &["leases/", "a symbolic link, which is not followed"];
    let to_moved =
        |scene: &Scene, path: &std::path::Path| symlink(scene.outside("moved"), path).unwrap();
    vec![
        link("a piece that is a link", Outcome::Piece(symbolic), of_piece, to_moved),
        link("a piece that is a pipe", Outcome::Piece(odd), of_piece, |_, path| fifo(path)),
        link("a piece that is a directory", Outcome::Piece("is missing"), of_piece, |_, path| {
            fs::create_dir(path).unwrap();
        }),
        link("a piece that is a hard link", Outcome::Harmless, of_piece, |scene, path| {
            fs::hard_link(scene.outside("moved"), path).unwrap();
        }),
        link("a piece that links to itself", Outcome::Piece(symbolic), of_piece, |_, path| {
            symlink(path, path).unwrap();
        }),
        link("a manifest that is a link", Outcome::Manifest(symbolic), of_manifest, to_moved),
        link("a manifest that is a pipe", Outcome::Manifest(odd), of_manifest, |_, path| {
            fifo(path);
        }),
        link(
            "a REPOSITORY that is a link",
            Outcome::Open(Corrupt, symbolic),
            |_| "REPOSITORY".into(),
            to_moved,
        ),
        link(
            "a REPOSITORY that is a pipe",
            Outcome::Open(Corrupt, odd),
            |_| "REPOSITORY".into(),
            |_, path| fifo(path),
        ),
        attack("leases that are elsewhere", Outcome::Restore(Corrupt, outside), |scene| {
            let _ = fs::remove_dir_all(scene.at("leases"));
            symlink(scene.outside("elsewhere"), scene.at("leases")).unwrap();
        }),
        attack("probes that are elsewhere", Outcome::Lease("probes/"), |scene| {
            let _ = fs::remove_dir_all(scene.at("probes"));
            symlink(scene.outside("elsewhere"), scene.at("probes")).unwrap();
        }),
        attack("unnamed pieces that are elsewhere", Outcome::Harmless, |scene| {
            let group = scene.at("files/00");
            fs::create_dir_all(&group).unwrap();
            // A prune would remove `elsewhere/0`, were it a piece.
            symlink(scene.outside("elsewhere"), group.join(format!("{}-5", "0".repeat(32))))
                .unwrap();
        }),
        attack("a directory that is its own", Outcome::Harmless, |scene| {
            symlink(scene.at("files"), scene.at("files/loop")).unwrap();
        }),
        attack("a pipe among the leases", Outcome::Lease("leases/pipe"), |scene| {
            fs::create_dir_all(scene.at("leases")).unwrap();
            fifo(&scene.at("leases/pipe"));
        }),
        attack(
            "files that are elsewhere",
            Outcome::Restore(Corrupt, &["{some piece}", "a symbolic link"]),
            |scene| {
                fs::rename(scene.at("files"), scene.outside("elsewhere/files")).unwrap();
                symlink(scene.outside("elsewhere/files"), scene.at("files")).unwrap();
            },
        ),
    ]
}

/// What somebody puts where the unfinished directory will be.
fn site(
    name: &str,
    outcome: Outcome,
    change: impl Fn(&Scene, &std::path::Path) + 'static,
) -> Attack {
    attack(name, outcome, move |scene| change(scene, &scene.unfinished()))
}

pub fn sites() -> Vec<Attack> {
    use ErrorKind::FixInput;
    let in_the_way: &[&str] = &["{unfinished}", "is in the way"];
    let in_it = |name: &str, change: fn(&Scene, &std::path::Path)| {
        site(name, Outcome::Harmless, move |scene, dir| {
            fs::create_dir(dir).unwrap();
            change(scene, dir);
        })
    };
    vec![
        site(
            "an unfinished directory elsewhere",
            Outcome::Restore(FixInput, in_the_way),
            |s, dir| {
                symlink(s.outside("elsewhere"), dir).unwrap();
            },
        ),
        site(
            "an unfinished directory that is a file",
            Outcome::Restore(FixInput, in_the_way),
            |_, dir| {
                fs::write(dir, "").unwrap();
            },
        ),
        site(
            "an unfinished directory that is a pipe",
            Outcome::Restore(FixInput, in_the_way),
            |_, dir| {
                fifo(dir);
            },
        ),
        site(
            "an unfinished directory of everybody",
            Outcome::Restore(FixInput, in_the_way),
            |_, dir| {
                fs::create_dir(dir).unwrap();
                fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
            },
        ),
        in_it("partitions elsewhere", |scene, dir| {
            symlink(scene.outside("elsewhere"), dir.join("partitions")).unwrap();
        }),
        in_it("a journal elsewhere", |scene, dir| {
            symlink(scene.outside("elsewhere"), dir.join("journal")).unwrap();
        }),
        in_it("a CATALOG elsewhere", |scene, dir| {
            symlink(scene.outside("precious"), dir.join("CATALOG")).unwrap();
        }),
        in_it("a CATALOG that is somebody's as well", |scene, dir| {
            fs::hard_link(scene.outside("precious"), dir.join("CATALOG")).unwrap();
        }),
        in_it("a CATALOG that is a pipe", |_, dir| fifo(&dir.join("CATALOG"))),
        in_it("a CATALOG that is a directory", |_, dir| {
            fs::create_dir_all(dir.join("CATALOG/below")).unwrap();
        }),
        in_it("a record elsewhere", |scene, dir| {
            symlink(scene.outside("precious"), dir.join(".esker-restore")).unwrap();
        }),
        in_it("a record that is somebody's as well", |scene, dir| {
            fs::hard_link(scene.outside("precious"), dir.join(".esker-restore")).unwrap();
        }),
        in_it("a record that is a pipe", |_, dir| fifo(&dir.join(".esker-restore"))),
        in_it("a record of noise", |_, dir| {
            fs::write(dir.join(".esker-restore"), [0xff; 1001]).unwrap();
        }),
        in_it("a record that claims everything", |_, dir| {
            let claim = |file: u32, frame: u32| {
                [file, 0, frame].into_iter().flat_map(u32::to_le_bytes).collect::<Vec<_>>()
            };
            let claims = (0..20).flat_map(|file| (0..4).map(move |frame| claim(file, frame)));
            let claims: Vec<u8> = claims.flatten().collect();
            fs::write(dir.join(".esker-restore"), claims).unwrap();
        }),
        in_it("files that the backup has not", |scene, dir| {
            fs::create_dir_all(dir.join("partitions/99/tables")).unwrap();
            fs::write(dir.join("partitions/99/tables/1"), "stray").unwrap();
            fs::write(dir.join("LOCK"), "stray").unwrap();
            fs::write(dir.join("CATALOG.tmp"), "stray").unwrap();
            symlink(scene.outside("elsewhere"), dir.join("staging")).unwrap();
        }),
    ]
}
