//! Attacks by the list of a manifest: paths, partitions, lengths, what it is made of.

use std::fs;

use esker_archive::ErrorKind;
use serde_json::{Value, json};

use super::{Attack, Outcome, attack};
use crate::hostile::forge::{Backup, edit_checkpoint, file, from_hex, set_inline};
use crate::hostile::scene::table;

/// A change of the manifest's list, and what is said of it.
fn list(name: &str, said: &'static str, change: impl Fn(&mut Value) + 'static) -> Attack {
    attack(name, Outcome::Manifest(said), move |scene| scene.write_manifest(&change))
}

pub(super) fn tree_of(json: &Value, partition: &str) -> String {
    let files = json["files"].as_array().unwrap();
    let of_it = files.iter().find(|file| file["partition"] == partition).unwrap();
    of_it["path"].as_str().unwrap().splitn(3, '/').take(2).collect::<Vec<_>>().join("/")
}

pub fn paths() -> Vec<Attack> {
    let bad = [
        "",
        "..",
        "/",
        "/etc/passwd",
        "../outside/precious",
        "partitions/1/tables/../../../../outside/precious",
        "partitions/1/tables/..",
        "./CATALOG",
        "partitions//1/current",
        "partitions/1/tables/7\0",
        "partitions\\1\\current",
        "C:/CATALOG",
        "C:\\CATALOG",
        "CATALOG/",
        "catalog",
        "CATALOG.tmp",
        "LOCK",
        "staging/1",
        ".esker-restore",
        "\u{421}ATALOG",
        "partitions/\u{ff11}/current",
        "partitions/01/current",
        "partitions/+1/current",
        "partitions/-1/current",
        "partitions/18446744073709551616/current",
        "partitions/1/tables",
        "partitions/1/current/1",
        "partitions/1/v0x1",
        "journal/2.jnl",
        "journal/00000000000000000002.jnl/x",
    ];
    let path = |path: &'static str| {
        let name = format!("the path {path:?}");
        list(&name, "is no file of a keyspace", move |json| table(json)["path"] = path.into())
    };
    let directory = |(path, said): (&'static str, &'static str)| {
        let name = format!("the directory {path:?}");
        list(&name, said, move |json| json["directories"] = json!([path]))
    };
    let directories = [
        ("/", "is no directory of a tree"),
        ("../outside/new", "is no directory of a tree"),
        ("partitions/1/tables/../..", "is no directory of a tree"),
        ("partitions/01/tables", "is no directory of a tree"),
        ("partitions/1/tables/", "is no directory of a tree"),
        ("partitions/99/tables", "belongs to no tree of it"),
    ];
    let mut attacks: Vec<_> = bad.into_iter().map(path).collect();
    attacks.extend(directories.into_iter().map(directory));
    attacks.push(list("a directory twice", "is there twice", |json| {
        let directory = json["directories"][0].clone();
        json["directories"] = json!([directory, directory]);
    }));
    attacks.push(list("a path twice", "is there twice", |json| {
        let again = table(json).clone();
        json["files"].as_array_mut().unwrap().push(again);
    }));
    attacks
}

pub fn partitions() -> Vec<Attack> {
    let wrong = "is not said to belong where it does";
    vec![
        list("a table under another partition", wrong, |json| {
            table(json)["partition"] = "words".into();
        }),
        list("a table under no partition", wrong, |json| {
            table(json).as_object_mut().unwrap().remove("partition");
        }),
        list("CATALOG under a partition", wrong, |json| {
            file(json, "CATALOG")["partition"] = "users".into();
        }),
        list("a partition that is not listed", wrong, |json| json["partitions"] = json!(["words"])),
        list("two trees of one partition", "two trees of one partition", |json| {
            for file in json["files"].as_array_mut().unwrap() {
                if file["partition"] == "words" {
                    file["partition"] = "users".into();
                }
            }
        }),
        list("a partition called ../words", "no name of a partition", |json| {
            json["left_out"] = json!(["../words"]);
        }),
        list("a partition without a name", "no name of a partition", |json| {
            json["left_out"] = json!([""]);
        }),
        list("a partition's name of 256 bytes", "no name of a partition", |json| {
            json["left_out"] = json!(["x".repeat(256)]);
        }),
        list("partitions out of order", "not in order", |json| {
            json["partitions"] = json!(["words", "users"]);
        }),
        attack(
            "two partitions that are exchanged",
            Outcome::Restore(ErrorKind::Corrupt, &["{manifest}", "lists other files"]),
            |scene| {
                scene.write_manifest(|json| {
                    for file in json["files"].as_array_mut().unwrap() {
                        let other = match file["partition"].as_str() {
                            Some("users") => "words",
                            Some(_) => "users",
                            None => continue,
                        };
                        file["partition"] = other.into();
                    }
                });
            },
        ),
        attack(
            "a partition that only the manifest has",
            Outcome::Restore(ErrorKind::Corrupt, &["{manifest}", "has other partitions"]),
            |scene| {
                scene.write_manifest(|json| json["partitions"] = json!(["users", "words", "x"]));
            },
        ),
    ]
}

pub fn sizes() -> Vec<Attack> {
    let make_up = "its pieces do not make up its length";
    let too_long = "a piece of it cannot be as long as it says";
    let another = "its content is another one";
    let missing = Outcome::Restore(ErrorKind::Corrupt, &["files/", "is missing, which"]);
    vec![
        list("a file of 2^64 - 1 bytes", make_up, |json| table(json)["bytes"] = u64::MAX.into()),
        list("a file of more bytes than a number has", "cannot be read", |json| {
            table(json)["bytes"] = json!(1e30);
        }),
        list("a file of negative length", "cannot be read", |json| {
            table(json)["bytes"] = json!(-1);
        }),
        list("an empty file with a piece", make_up, |json| table(json)["bytes"] = 0.into()),
        list("more pieces than a file can have", make_up, |json| {
            let pieces = (1_u64 << 16) + 1;
            table(json)["bytes"] = (pieces << 25).into();
            table(json)["pieces"] = vec![1000; pieces as usize].into();
        }),
        list("a piece too many", make_up, |json| table(json)["pieces"] = json!([1000, 1000])),
        list("a piece of no bytes", too_long, |json| table(json)["pieces"] = json!([0])),
        list("a piece of 2^64 - 1 bytes", too_long, |json| {
            table(json)["pieces"] = json!([u64::MAX]);
        }),
        attack("a file a byte longer than it is", missing, |scene| {
            scene.write_manifest(|json| {
                let bytes = table(json)["bytes"].as_u64().unwrap();
                table(json)["bytes"] = (bytes + 1).into();
            });
        }),
        attack("a file of another hash", missing_piece(), |scene| {
            scene.write_manifest(|json| table(json)["xxh3"] = "0".repeat(32).into());
        }),
        list("a hash of other digits", "its hash is none", |json| {
            table(json)["xxh3"] = "G".repeat(32).into();
        }),
        attack(
            "a piece that is said to be longer",
            Outcome::Restore(ErrorKind::Corrupt, &["{piece}", "bytes, and "]),
            |scene| scene.write_manifest(|json| add_to_piece(json, 1)),
        ),
        attack(
            "a piece that is said to be shorter",
            Outcome::Restore(ErrorKind::Corrupt, &["{piece}", "does not end as a piece does"]),
            |scene| scene.write_manifest(|json| add_to_piece(json, -1)),
        ),
        list("content of another hash", another, |json| {
            file(json, "CATALOG")["xxh3"] = "0".repeat(32).into();
        }),
        list("content of another length", another, |json| {
            file(json, "CATALOG")["bytes"] = 1.into();
        }),
        list("content of odd digits", "not pairs of hex digits", |json| {
            let text = file(json, "CATALOG")["inline"].as_str().unwrap().to_owned() + "0";
            file(json, "CATALOG")["inline"] = text.into();
        }),
        list("content of capitals", "not pairs of hex digits", |json| {
            let text = file(json, "CATALOG")["inline"].as_str().unwrap().to_uppercase();
            file(json, "CATALOG")["inline"] = text.into();
        }),
        list("content here and in pieces", "it is here and elsewhere", |json| {
            file(json, "CATALOG")["pieces"] = json!([1000]);
        }),
    ]
}

pub(super) fn missing_piece() -> Outcome {
    Outcome::Restore(ErrorKind::Corrupt, &["files/", "is missing, which"])
}

pub(super) fn add_to_piece(json: &mut Value, bytes: i64) {
    let piece = table(json)["pieces"][0].as_i64().unwrap();
    table(json)["pieces"] = json!([piece + bytes]);
}

/// A change of the manifest's object, behind which its check is made right.
pub(super) fn object(
    name: &str,
    said: &'static str,
    change: impl Fn(&mut Backup) + 'static,
) -> Attack {
    attack(name, Outcome::Manifest(said), move |scene| {
        let mut backup = scene.backup();
        change(&mut backup);
        scene.write(&backup.name, backup.encode());
    })
}

fn raw(name: &str, said: &'static str, change: impl Fn(&mut Vec<u8>) + 'static) -> Attack {
    attack(name, Outcome::Manifest(said), move |scene| {
        let mut bytes = fs::read(scene.at(&scene.manifest)).unwrap();
        change(&mut bytes);
        scene.write(&scene.manifest, bytes);
    })
}

pub fn manifests() -> Vec<Attack> {
    let list_of = "its list cannot be read";
    let no_match = "it does not match its check";
    vec![
        list("an unknown field", list_of, |json| json["surprise"] = 1.into()),
        list("an unknown field of a file", list_of, |json| table(json)["mode"] = 0o4755.into()),
        list("a field of another kind", list_of, |json| json["files"] = json!({})),
        object("no JSON", list_of, |it| *it = it.clone().with_text(b"\xff\xfe")),
        object("nothing", list_of, |it| *it = it.clone().with_text(b"")),
        object("JSON and more", list_of, |it| {
            let text = serde_json::to_vec(&it.json()).unwrap();
            *it = it.clone().with_text(&[&text[..], b"{}"].concat());
        }),
        object("a field twice", list_of, |it| {
            let text = serde_json::to_string(&it.json()).unwrap();
            let text = text.replacen('{', r#"{"created_ms":0,"#, 1);
            *it = it.clone().with_text(text.as_bytes());
        }),
        object("nested 100,000 times", list_of, |it| {
            *it = it.clone().with_text(&[b'['; 100_000]);
        }),
        object("what is not compressed", "does not decompress", |it| it.body = b"{}".to_vec()),
        object("something behind", "does not decompress", |it| it.body.extend(b"behind")),
        object("a compressed list that is cut", "does not decompress", |it| {
            it.body.truncate(it.body.len() / 2);
        }),
        object("another magic", "does not begin as a manifest does", |it| it.magic[0] ^= 1),
        object("version 2", "format version 2; this build reads up to 1", |it| it.version = 2),
        object("version 0", "format version 0", |it| it.version = 0),
        object("said to be encrypted", "it is encrypted and its repository is not", |it| {
            it.encrypted = 1;
        }),
        raw("a flipped bit", no_match, |bytes| bytes[50] ^= 1),
        raw("a byte behind", no_match, |bytes| bytes.push(0)),
        raw("a cut end", no_match, |bytes| bytes.truncate(100)),
        raw("a cut head", "cut short", |bytes| bytes.truncate(47)),
        raw("an empty object", "cut short", Vec::clear),
        raw("zeros", "does not begin", |bytes| bytes.fill(0)),
        attack("a manifest with a skippable frame", Outcome::Harmless, |scene| {
            let mut backup = scene.backup();
            backup.body.extend(b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc");
            scene.write(&backup.name, backup.encode());
        }),
    ]
}

/// The manifest under another name, with its check right; the only one then.
fn renamed(
    name: &str,
    said: &'static [&'static str],
    to: impl Fn(&str) -> String + 'static,
) -> Attack {
    attack(name, Outcome::Restore(ErrorKind::Corrupt, said), move |scene| {
        let mut backup = scene.backup();
        backup.name = to(&scene.manifest);
        fs::remove_file(scene.at(&scene.manifest)).unwrap();
        scene.write(&backup.name, backup.encode());
    })
}

pub fn contents() -> Vec<Attack> {
    let other: &[&str] = &["backups/", "its CHECKPOINT is of another backup"];
    let zeros = "0".repeat(32);
    let (uuid, timeline) = (zeros.clone(), zeros);
    let part = |at: usize, value: String| {
        move |name: &str| {
            let mut parts: Vec<_> = name.split('/').collect();
            parts[at] = &value;
            parts.join("/")
        }
    };
    let none: &[&str] = &["{manifest}", "it is of no checkpoint"];
    vec![
        renamed("a manifest of another keyspace", other, part(1, uuid)),
        renamed("a manifest of another history", other, part(2, timeline)),
        renamed("a manifest of another commit", other, |name| {
            let (head, tag) = name.rsplit_once('-').unwrap();
            format!("{}99999999999999999999-{tag}", &head[..head.len() - 20])
                .replacen("999", "000", 1)
        }),
        attack(
            "a manifest under another name as it is",
            Outcome::Manifest("it does not match its check"),
            |scene| {
                let bytes = fs::read(scene.at(&scene.manifest)).unwrap();
                let mut other = scene.backup();
                other.body.clear();
                scene.write(&scene.manifest, other.encode());
                let (head, _) = scene.manifest.rsplit_once('-').unwrap();
                fs::remove_file(scene.at(&scene.manifest)).unwrap();
                scene.write(&format!("{head}-0000000000000000"), bytes);
            },
        ),
        attack("another time", Outcome::Restore(ErrorKind::Corrupt, other), |scene| {
            scene.write_manifest(|json| json["created_ms"] = 1.into());
        }),
        list("no CATALOG", "it has no CATALOG", |json| drop_file(json, "CATALOG")),
        list("no CHECKPOINT", "it has no CHECKPOINT", |json| drop_file(json, "CHECKPOINT")),
        attack(
            "no table",
            Outcome::Restore(ErrorKind::Corrupt, &["{manifest}", "lists other files"]),
            |scene| {
                scene.write_manifest(|json| {
                    let path = table(json)["path"].as_str().unwrap().to_owned();
                    drop_file(json, &path);
                });
            },
        ),
        attack(
            "a file that CHECKPOINT does not list",
            Outcome::Restore(ErrorKind::Corrupt, &["{manifest}", "lists other files"]),
            |scene| {
                scene.write_manifest(|json| {
                    let mut more = file(json, "CATALOG").clone();
                    let tree = tree_of(json, "words");
                    more["path"] = format!("{tree}/tables/999999").into();
                    more["partition"] = "words".into();
                    json["files"].as_array_mut().unwrap().push(more);
                });
            },
        ),
        attack("a CATALOG of noise", Outcome::Restore(ErrorKind::Corrupt, none), |scene| {
            scene.write_manifest(|json| set_inline(file(json, "CATALOG"), &[7; 300]));
        }),
        attack("a CHECKPOINT of noise", Outcome::Restore(ErrorKind::Corrupt, none), |scene| {
            scene.write_manifest(|json| set_inline(file(json, "CHECKPOINT"), &[7; 300]));
        }),
        attack(
            "a CHECKPOINT with paths",
            Outcome::Restore(ErrorKind::Corrupt, &["{manifest}", "lists other files"]),
            |scene| {
                scene.write_manifest(|json| {
                    edit_checkpoint(json, |text| {
                        text.replace("\"CATALOG\"", "\"../outside/precious\"")
                    });
                });
            },
        ),
    ]
}

fn drop_file(json: &mut Value, path: &str) {
    json["files"].as_array_mut().unwrap().retain(|file| file["path"] != path);
}

/// Files that only the engine can judge: restored as they are, and refused when they are opened.
pub fn engines() -> Vec<Attack> {
    let rewrite = |name: &str, which: &'static str, content: fn(Vec<u8>) -> Vec<u8>| {
        attack(name, Outcome::Harmless, move |scene| {
            scene.write_manifest(|json| {
                let path = match which {
                    "CATALOG" => which.to_owned(),
                    name => format!("{}/{name}", tree_of(json, "users")),
                };
                let entry = file(json, &path);
                let (old, old_bytes) = (entry["xxh3"].clone(), entry["bytes"].clone());
                let was = from_hex(entry["inline"].as_str().unwrap());
                set_inline(entry, &content(was));
                let (new, bytes) = (entry["xxh3"].clone(), entry["bytes"].clone());
                edit_checkpoint(json, |text| {
                    let line = |line: &str| {
                        if !line.contains(&format!("\"path\":\"{path}\"")) {
                            return line.to_owned();
                        }
                        let length = |it: &Value| format!("\"bytes\":{it},");
                        line.replace(old.as_str().unwrap(), new.as_str().unwrap())
                            .replace(&length(&old_bytes), &length(&bytes))
                    };
                    text.lines().map(line).collect::<Vec<_>>().join("\n") + "\n"
                });
            });
        })
    };
    vec![
        rewrite("a `current` of noise", "current", |was| vec![0xaa; was.len()]),
        rewrite("an empty `current`", "current", |_| Vec::new()),
        rewrite("a `current` of another version", "current", |mut was| {
            was[0] ^= 0xff;
            was
        }),
        rewrite("a CATALOG whose trees are others", "CATALOG", |mut was| {
            let end = was.len() - 16;
            was[97] ^= 0xff; // last_seqno
            let check = xxhash_rust::xxh3::xxh3_128(&was[..end]).to_le_bytes();
            was[end..].copy_from_slice(&check);
            was
        }),
    ]
}
