//! The attacks: what somebody does who can write every object of a repository, and make every check that
//! needs no key.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::{Duration, SystemTime};

use esker_archive::ErrorKind;
use serde_json::{Value, json};

use super::forge::{Backup, Frame, edit_checkpoint, file, set_inline};
use super::scene::{Scene, table};

/// What must come of it. `{manifest}`, `{piece}` and `{unfinished}` stand for the names.
pub enum Outcome {
    /// Everything works; what is restored is what was pushed.
    Harmless,
    /// The manifest is refused by all who read it, and pushes go on without it.
    Manifest(&'static str),
    /// The manifest is good, and what it leads to is found out before the target appears.
    Restore(ErrorKind, &'static [&'static str]),
    /// A piece is refused by restores, and by checks that read it.
    Piece(&'static str),
    /// Only checks take offence.
    Found(&'static str),
    /// Nothing can be done with the repository.
    Open(ErrorKind, &'static str),
    /// Restores work; who must know what others do is told the name of the lease.
    Lease(&'static str),
}

pub struct Attack {
    pub name: String,
    pub encrypted: bool,
    pub change: Box<dyn Fn(&Scene)>,
    pub outcome: Outcome,
}

fn attack(name: &str, outcome: Outcome, change: impl Fn(&Scene) + 'static) -> Attack {
    Attack { name: name.to_owned(), encrypted: false, change: Box::new(change), outcome }
}

/// A change of the manifest's list, and what is said of it.
fn list(name: &str, said: &'static str, change: impl Fn(&mut Value) + 'static) -> Attack {
    attack(name, Outcome::Manifest(said), move |scene| scene.write_manifest(&change))
}

fn tree_of(json: &Value, partition: &str) -> String {
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

fn missing_piece() -> Outcome {
    Outcome::Restore(ErrorKind::Corrupt, &["files/", "is missing, which"])
}

fn add_to_piece(json: &mut Value, bytes: i64) {
    let piece = table(json)["pieces"][0].as_i64().unwrap();
    table(json)["pieces"] = json!([piece + bytes]);
}

/// A change of the manifest's object, behind which its check is made right.
fn object(name: &str, said: &'static str, change: impl Fn(&mut Backup) + 'static) -> Attack {
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
                let was = super::forge::from_hex(entry["inline"].as_str().unwrap());
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

/// A change of the piece with three frames, behind which its check is made right.
fn piece(
    name: &str,
    said: &'static str,
    change: impl Fn(&mut super::forge::Piece) + 'static,
) -> Attack {
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

fn description(
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
fn date(scene: &Scene, object: &str, secs: u64) {
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

/// What every other attack begins with.
pub fn nothing() -> Attack {
    attack("nothing", Outcome::Harmless, |_| {})
}
