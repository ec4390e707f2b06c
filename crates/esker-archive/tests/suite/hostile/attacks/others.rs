//! Attacks by the description, by leases, and by what has no place in a repository.

use std::fs;
use std::fs::File;
use std::time::{Duration, SystemTime};

use esker_archive::ErrorKind;
use serde_json::{Value, json};

use super::{Attack, Outcome, attack};
use crate::hostile::scene::Scene;

pub(super) fn description(
    name: &str,
    kind: ErrorKind,
    said: &'static str,
    change: impl Fn(&mut Value) + 'static,
) -> Attack {
    attack(name, Outcome::Open(kind, said), move |scene| {
        let mut json = serde_json::from_slice(&fs::read(scene.at("REPOSITORY")).unwrap()).unwrap();
        change(&mut json);
        scene.write("REPOSITORY", serde_json::to_vec(&json).unwrap());
    })
}

pub fn descriptions() -> Vec<Attack> {
    use ErrorKind::{Corrupt, FixInput};
    let text = |name: &str, text: &'static [u8]| {
        attack(name, Outcome::Open(Corrupt, "REPOSITORY is corrupt"), move |scene| {
            scene.write("REPOSITORY", text);
        })
    };
    let key = json!({"cipher": "xchacha20poly1305", "key_check": "0".repeat(32)});
    vec![
        text("no JSON", b"hello"),
        text("an empty REPOSITORY", b""),
        text("a REPOSITORY of NULs", &[0; 300]),
        text("a nested REPOSITORY", &[b'['; 60_000]),
        text("a field twice", br#"{"format":1,"format":2}"#),
        description("format 2", FixInput, "format version 2", |json| json["format"] = 2.into()),
        description("format 0", FixInput, "format version 0", |json| json["format"] = 0.into()),
        description("format -1", Corrupt, "REPOSITORY", |json| json["format"] = json!(-1)),
        description("an id that steers terminals", Corrupt, "its id is none", |json| {
            json["id"] = "\u{1b}[2J".into();
        }),
        description("no conditions", Corrupt, "REPOSITORY", |json| {
            json.as_object_mut().unwrap().remove("conditions");
        }),
        description("an unknown cipher", FixInput, "encrypted, and no key", move |json| {
            json["encryption"] = json!({"cipher": "rot13", "key_check": ""});
        }),
        description("encryption that there is not", FixInput, "no key was given", move |json| {
            json["encryption"] = key.clone();
        }),
        attack("no REPOSITORY", Outcome::Open(FixInput, "it has no REPOSITORY"), |scene| {
            fs::remove_file(scene.at("REPOSITORY")).unwrap();
        }),
    ]
}

fn lease(name: &str, outcome: Outcome, body: impl AsRef<[u8]> + 'static) -> Attack {
    attack(name, outcome, move |scene| scene.write("leases/00000000000000aa", &body))
}

pub fn leases() -> Vec<Attack> {
    let told = || Outcome::Lease("leases/00000000000000aa");
    let body = |work: &str, name: &str| format!(r#"{{"work":"{work}","relies_on":["{name}"]}}"#);
    vec![
        lease("no JSON", told(), "hello"),
        lease("an empty lease", told(), ""),
        lease("a nested lease", told(), [b'['; 3000]),
        lease("an unknown work", told(), r#"{"work":"mine","relies_on":[]}"#),
        lease("a lease for ../REPOSITORY", told(), body("restore", "../REPOSITORY")),
        lease("a lease for REPOSITORY", told(), body("restore", "REPOSITORY")),
        lease("a lease for nothing", told(), body("push", "")),
        lease("a lease of 5 KiB", told(), body("push", &"x".repeat(5 << 10))),
        lease("a push that there is not", Outcome::Harmless, r#"{"work":"push","relies_on":[]}"#),
        attack("a lease of the future", Outcome::Harmless, |scene| {
            scene.write("leases/00000000000000aa", r#"{"work":"prune","relies_on":[]}"#);
            date(scene, "leases/00000000000000aa", 1 << 33);
        }),
        attack("a lease of the far future", Outcome::Harmless, |scene| {
            scene.write("leases/00000000000000aa", "nobody's");
            date(scene, "leases/00000000000000aa", 1 << 45);
        }),
        attack("an expired lease of noise", Outcome::Harmless, |scene| {
            scene.write("leases/00000000000000aa", [0xff; 99]);
            date(scene, "leases/00000000000000aa", 1000);
        }),
    ]
}

/// Says that an object was written so many seconds after 1970. Filesystems keep what they can.
pub(super) fn date(scene: &Scene, object: &str, secs: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
    let file = File::options().write(true).open(scene.at(object)).unwrap();
    file.set_modified(time).unwrap();
}

pub fn foreigners() -> Vec<Attack> {
    let harmless = |name: &str, object: &'static str| {
        attack(name, Outcome::Harmless, move |scene| scene.write(object, "whatever"))
    };
    vec![
        harmless("a foreign name among the backups", "backups/readme"),
        harmless("a backup of another form", "backups/1/2/3-4"),
        harmless("a backup in capitals", "backups/AA/BB/00000000000000000001-CC"),
        harmless("a foreign name among the files", "files/readme"),
        harmless("a piece in the wrong group", "files/ff/00000000000000000000000000000000-5/0"),
        harmless("a piece beyond the end", "files/00/00000000000000000000000000000000-5/1"),
        harmless(
            "a piece of the longest file",
            "files/00/00000000000000000000000000000000-18446744073709551615/4294967295",
        ),
        harmless("a foreign lease of a probe", "probes/whatever"),
        harmless("a foreign object", "etc/passwd"),
        harmless("a name that steers terminals", "files/\u{1b}[2J"),
        harmless("a name with percents", "files/%2e%2e%2f%00"),
        harmless("what an upload left", "files/00/x#1"),
    ]
}
