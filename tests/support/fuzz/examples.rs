//! Inputs as the engine makes them: what mutations start from, and where `fuzz/seeds` came from.

use std::fs;
use std::path::{Path, PathBuf};

use esker::{Compression, Config, Keyspace, PartitionOptions};

use serde_json::json;

use super::archive_piece;
use crate::{chaos, crash_image, files};

/// A name and an input.
pub type Example = (String, Vec<u8>);

/// No seed is longer.
const LEN_MAX: usize = 4 << 10;

/// Valid inputs of a target.
pub fn of(target: &str) -> Vec<Example> {
    match target {
        "archive_manifest" => archive_manifests(),
        "archive_piece" => archive_pieces(),
        "items" => items(),
        "cli" => cli(),
        _ => {
            let dir = chaos::memory_dir();
            directories(dir.path())
                .iter()
                .flat_map(|(name, dir)| of_dir(target, name, dir))
                .collect()
        }
    }
}

/// Directories of one keyspace in different states, by name.
fn directories(dir: &Path) -> Vec<(&'static str, PathBuf)> {
    let open = || {
        let config = Config::new(dir.join("keyspace")).memtable_bytes(1 << 20);
        config.journal_segment_bytes(64 << 10).worker_threads(1).open().expect("a keyspace")
    };
    let keyspace = open();
    crash(&keyspace, &dir.join("new"));
    write(&keyspace);
    crash(&keyspace, &dir.join("crashed"));
    keyspace.flush().expect("a flush");
    let words = keyspace.open_partition("words").expect("a name").expect("a partition");
    words.remove("word 3").expect("a write");
    keyspace.backup_to(dir.join("checkpoint")).expect("a checkpoint");
    keyspace.close().expect("a clean end");
    let names = ["new", "crashed", "checkpoint", "keyspace"];
    names.map(|name| (name, dir.join(name))).into()
}

fn write(keyspace: &Keyspace) {
    let partition = |name: &str, options| keyspace.partition(name, options).expect("a partition");
    let words = partition("words", PartitionOptions::default());
    let options = PartitionOptions::default().compression(Compression::None);
    let files = partition("files é", options.separate_values_from(Some(32)));
    for number in 0..4 {
        words.insert(format!("word {number}"), format!("meaning {number}")).expect("a write");
    }
    files.insert("repeated", vec![7; 5_000]).expect("a write");
    let mut batch = keyspace.batch();
    batch.insert(&words, "both", "here");
    batch.insert(&files, "both", [9; 40]);
    batch.remove(&words, "word 1");
    batch.commit().expect("a batch");
    let gone = partition("gone", PartitionOptions::default());
    gone.clear().expect("a clear");
    keyspace.drop_partition("gone").expect("a drop");
}

fn crash(keyspace: &Keyspace, to: &Path) {
    let image = crash_image(keyspace.path());
    files::copy_tree(&image.path().join("keyspace"), to).expect("a copy");
}

fn of_dir(target: &str, name: &str, dir: &Path) -> Vec<Example> {
    let read = |path: &Path| fs::read(path).expect("a file");
    let example = |part: &str, bytes: Vec<u8>| (format!("valid-{name}{part}"), bytes);
    let all = match target {
        "catalog" => vec![example("", read(&dir.join("CATALOG")))],
        "checkpoint" if name == "checkpoint" => vec![example("", read(&dir.join("CHECKPOINT")))],
        "journal" => {
            let segments = files::segments(dir).into_iter().enumerate();
            segments
                .map(|(n, path)| example(&format!("-{n}"), without_zeros(read(&path))))
                .collect()
        }
        "preflight" => {
            let trees = dir.join("partitions");
            let trees = files::entries(&trees).into_iter().map(|tree| trees.join(tree));
            trees.enumerate().map(|(n, tree)| example(&format!("-{n}"), version(&tree))).collect()
        }
        _ => Vec::new(),
    };
    all.into_iter().filter(|(_, bytes)| bytes.len() < LEN_MAX).collect()
}

/// `current` and the manifest that it names.
fn version(tree: &Path) -> Vec<u8> {
    let mut bytes = fs::read(tree.join("current")).expect("a pointer");
    let id = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    bytes.extend(fs::read(tree.join(format!("v{id}"))).expect("a manifest"));
    bytes
}

/// Preallocated space is left out but for a few bytes.
fn without_zeros(mut segment: Vec<u8>) -> Vec<u8> {
    let end = segment.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    segment.truncate(end + 16);
    segment
}

fn items() -> Vec<Example> {
    let put = |key: &[u8], value: Vec<u8>| (0, 1, key.to_vec(), Some(value));
    let bare = |kind, key: &[u8]| (kind, 2, key.to_vec(), None);
    let text = b"some words, again and again. ".repeat(300);
    let noise = chaos::Rng::new(7).bytes(600);
    let payloads = [
        ("put", vec![put(b"key", b"value".into()), put(b"", Vec::new())]),
        ("compressed", vec![put(b"text", text), put(b"zeros", vec![0; 300_000])]),
        ("noise", vec![put(b"noise", noise), bare(1, b"removed")]),
        ("partitions", vec![bare(3, "names é".as_bytes()), bare(2, b""), bare(4, b"")]),
    ];
    let example = |(name, changes): &(&str, Vec<_>)| {
        let payload = esker::fuzzing::payload_again(changes);
        (format!("valid-{name}"), [&[changes.len() as u8], &payload[..]].concat())
    };
    payloads.iter().map(example).collect()
}

fn cli() -> Vec<Example> {
    let inputs: [(&str, &[u8]); 8] = [
        ("escaped", b"a\\tb\\n\\\\ \\x00\\xff"),
        ("hex", b"00aBff"),
        ("tsv", "key é\tvalue\twith a tab".as_bytes()),
        ("json", b"{\"key\": \"a\\u0000b\", \"value_hex\": \"00ff\"}"),
        ("json-hex", b"{\"key_hex\": \"fffe\", \"value\": \"\"}"),
        ("bytes", b"\x03\x00\xff\x1b[2J\xe2\x80\xae\xc2\x9b"),
        ("arguments-load", b"esker\nload\ndir\n-p\nname\n--format\ntsv\n--batch\n10\n--escaped\n-"),
        ("arguments-scan", b"esker\nscan\n--from\na\\x00\n--limit=3\n-p\nn\ndir\n-e\n--reverse"),
    ];
    inputs.map(|(name, bytes)| (format!("valid-{name}"), bytes.to_vec())).into()
}

fn archive_manifests() -> Vec<Example> {
    // Two files that are here, and one in pieces of 32 MiB and 5 bytes.
    let empty = "99aa06d3014798d86001c324468d497f";
    let small = |path: &str| json!({"path": path, "bytes": 0, "xxh3": empty, "inline": ""});
    let table = json!({
        "path": "partitions/3/tables/0", "bytes": (32 << 20) + 5, "xxh3": "0".repeat(32),
        "partition": "users", "pieces": [1000, 90],
    });
    let list = json!({
        "created_ms": 5, "label": "before the upgrade", "partitions": ["users"],
        "left_out": ["statistics"], "added_bytes": 6,
        "directories": ["partitions/3/blobs", "partitions/3/tables"],
        "files": [small("CATALOG"), small("CHECKPOINT"), table],
    });
    let list = list.to_string().into_bytes();
    let object = esker_archive::fuzzing::manifest_of(&list);
    vec![("valid-object".into(), object), ("valid-list".into(), list)]
}

fn archive_pieces() -> Vec<Example> {
    let frame = 1 << 20;
    let noise = chaos::Rng::new(7).bytes(900);
    let raws = [
        ("one-byte", 0, vec![1]),
        ("noise", 0, noise.clone()),
        ("zeros", 1, vec![0; frame]),
        ("frames", 2, [vec![b'a'; 2 * frame], noise].concat()),
    ];
    let example = |(name, number, raw): (&str, u8, Vec<u8>)| {
        let object = esker_archive::fuzzing::piece_of(number.into(), &raw);
        (format!("valid-{name}"), archive_piece::input(number, raw.len() as u64, &object))
    };
    raws.map(example).into()
}
