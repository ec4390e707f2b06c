//! Directories that earlier versions wrote (`tests/fixtures/v<set>`) still open, verify
//! and go on; and this version writes the format of the newest of them.
//!
//! Each is an archive, `<name>.txt`, and what must be in it, `<name>.content`. They are written by
//! `ESKER_WRITE_FIXTURES=DIR cargo test -p esker-tests --test suite fixtures`, once for each format
//! version, and never again.

mod archive;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use esker::{CompactionStrategy, Compression, Config, Keyspace, PartitionOptions, VerifyOptions};
use esker_tests::chaos::memory_dir;
use esker_tests::crash_image;
use esker_tests::files::{names, segments};
use esker_tests::store::{Entries, content, entries};
use xxhash_rust::xxh3::xxh3_128;

const NEWEST: u32 = 3;
/// Values above this stand in the content as their length and hash.
const SHOWN_BYTES_MAX: usize = 80;

/// How one fixture comes about: into the directory, which does not exist.
type Write = fn(&Path);
const FIXTURES: [(&str, Write); 4] = [
    ("closed", write_closed),
    ("crashed", write_crashed),
    ("torn", write_torn),
    ("checkpoint", write_checkpoint),
];

fn stored(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/v{version}"))
}

// ---- how they are written ---------------------------------------------------------------------

/// Segments are small, because they are preallocated; memtables are not, so that only `flush` makes
/// tables and the same calls give the same files.
fn config(path: &Path) -> Config {
    Config::new(path).journal_segment_bytes(4096).worker_threads(1)
}

fn options() -> PartitionOptions {
    PartitionOptions::default().block_bytes(512).table_bytes(4096)
}

fn value(number: u64) -> Vec<u8> {
    format!("value {number} ").repeat(1 + number as usize % 4).into_bytes()
}

fn write_some(keyspace: &Keyspace, from: u64) {
    let plain = keyspace.partition("plain", options()).unwrap();
    let separated = options().separate_values_from(Some(40));
    let separated = keyspace.partition("separated", separated).unwrap();
    let bare = options().compression(Compression::None).filter_bits_per_key(0.0);
    let bare = keyspace.partition("σκέτο", bare).unwrap();
    for number in from..from + 60 {
        let mut batch = keyspace.batch();
        batch.insert(&plain, format!("key {:03}", number % 100), value(number));
        batch.insert(&separated, number.to_be_bytes(), value(number * 3));
        batch.insert(&bare, [&[0xff; 2][..], &[number as u8]].concat(), "");
        if number.is_multiple_of(5) {
            batch.remove(&plain, format!("key {:03}", (number + 50) % 100));
            batch.remove(&separated, (number - 4).to_be_bytes());
        }
        batch.commit().unwrap();
    }
    // Large enough to be compressed in the journal.
    plain.insert("large", "large ".repeat(1000)).unwrap();
}

/// Creates, clears and drops, so that the journal has all of them.
fn change_partitions(keyspace: &Keyspace) {
    let cleared = keyspace.partition("cleared", options()).unwrap();
    cleared.insert("before", "the clear").unwrap();
    cleared.clear().unwrap();
    cleared.insert("after", "the clear").unwrap();
    keyspace.partition("empty", options()).unwrap();
    let queue = options()
        .separate_values_from(Some(40))
        .blob_file_target_bytes(8192)
        .blob_compression(Compression::None)
        .blob_staleness_threshold(0.5)
        .blob_age_cutoff(0.75)
        .compaction_strategy(CompactionStrategy::Fifo {
            limit_bytes: Some(1 << 40),
            ttl_secs: None,
        });
    let queue = keyspace.partition("queue", queue).unwrap();
    for number in 0..10 {
        queue.insert([number as u8], value(number)).unwrap();
    }
    queue.remove_weak([3]).unwrap();
    let loaded = keyspace.partition("loaded", options()).unwrap();
    let mut ingest = loaded.ingest().unwrap();
    for number in 0..10 {
        ingest.insert([number as u8], value(number)).unwrap();
    }
    ingest.finish().unwrap();
    // Lets go of the version before the ingest.
    loaded.compact().unwrap();
    keyspace.partition("dropped", options()).unwrap().insert("key", "value").unwrap();
    assert!(keyspace.drop_partition("dropped").unwrap());
}

fn write_closed(path: &Path) {
    let keyspace = config(path).open().unwrap();
    for round in 0..3 {
        write_some(&keyspace, 10 + round * 40);
        keyspace.flush().unwrap();
    }
    keyspace.open_partition("plain").unwrap().unwrap().compact().unwrap();
    change_partitions(&keyspace);
    keyspace.close().unwrap();
}

/// Tables, and commits behind them that only the journal has.
fn write_open(path: &Path) -> Keyspace {
    let keyspace = config(path).open().unwrap();
    write_some(&keyspace, 10);
    keyspace.flush().unwrap();
    write_some(&keyspace, 50);
    // A freeze begins a new segment, however busy the worker is that prepares them.
    keyspace.backup_to(path.with_extension("first")).unwrap();
    change_partitions(&keyspace);
    keyspace.backup_to(path.with_extension("second")).unwrap();
    keyspace.open_partition("plain").unwrap().unwrap().insert("last", "commit").unwrap();
    keyspace
}

fn write_crashed(path: &Path) {
    let source = memory_dir();
    let keyspace = write_open(&source.path().join("keyspace"));
    let image = crash_image(&source.path().join("keyspace"));
    drop(keyspace);
    copy(&image.path().join("keyspace"), path);
    assert!(segments(path).len() > 2, "several segments");
}

/// The same with the first bytes of a frame behind the last one.
fn write_torn(path: &Path) {
    write_crashed(path);
    // The last may be one that was prepared and not used yet.
    let used = |path: &PathBuf| fs::read(path).unwrap()[72..].iter().any(|byte| *byte != 0);
    let last = segments(path).into_iter().rfind(used).unwrap();
    let mut bytes = fs::read(&last).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes.truncate(end);
    bytes.extend(b"EKRF\x01\0\0\0 and then the power went");
    fs::write(last, bytes).unwrap();
}

fn write_checkpoint(path: &Path) {
    let source = memory_dir();
    let keyspace = write_open(&source.path().join("keyspace"));
    keyspace.backup_to(path).unwrap();
    assert!(!segments(path).is_empty(), "a checkpoint with a journal");
}

fn copy(from: &Path, to: &Path) {
    esker_tests::files::copy_tree(from, to).unwrap();
}

// ---- what they hold ---------------------------------------------------------------------------

/// Everything in the keyspace, for people and to compare.
fn described(keyspace: &Keyspace) -> String {
    let mut text = format!("seqno {}\n", keyspace.seqno());
    for (name, entries) in content(keyspace) {
        writeln!(text, "partition {name}: {} entries", entries.len()).unwrap();
        describe(&entries, &mut text);
    }
    text
}

fn describe(entries: &Entries, text: &mut String) {
    for (key, value) in entries {
        write!(text, "{} = ", key.escape_ascii()).unwrap();
        if value.len() > SHOWN_BYTES_MAX {
            writeln!(text, "{} bytes, xxh3 {:032x}", value.len(), xxh3_128(value)).unwrap();
        } else {
            // The quotes show spaces at the end.
            writeln!(text, "\"{}\"", value.escape_ascii()).unwrap();
        }
    }
}

fn described_at(path: &Path) -> String {
    described(&Config::new(path).read_only(true).open().unwrap())
}

fn check_sound(path: &Path, torn: bool) {
    let report = esker::verify(path, VerifyOptions::default()).unwrap();
    assert!(report.is_sound() && report.strays.is_empty(), "{report:?}");
    assert_eq!(report.torn_tail.is_some(), torn, "{report:?}");
}

#[test]
fn every_fixture_opens_with_what_was_written_and_goes_on() {
    let mut seen = 0;
    for version in 1..=NEWEST {
        for (name, _) in FIXTURES {
            let text = fs::read_to_string(stored(version).join(format!("{name}.txt"))).unwrap();
            let expected = stored(version).join(format!("{name}.content"));
            go_on_with(&text, &fs::read_to_string(expected).unwrap(), name == "torn");
            seen += 1;
        }
    }
    assert_eq!(seen, NEWEST as usize * FIXTURES.len());
}

fn go_on_with(text: &str, expected: &str, torn: bool) {
    let dir = memory_dir();
    let path = dir.path().join("keyspace");
    archive::unpack(text, &path);
    check_sound(&path, torn);
    assert_eq!(described_at(&path), expected, "read-only");
    check_sound(&path, torn);

    let keyspace = config(&path).open().unwrap();
    assert_eq!(described(&keyspace), expected, "writable");
    let backup = dir.path().join("backup");
    keyspace.backup_to(&backup).unwrap();
    assert_eq!(described_at(&backup), expected, "a checkpoint");
    let mut content = content(&keyspace);
    for (name, expected) in &mut content {
        let partition = keyspace.open_partition(name).unwrap().unwrap();
        partition.insert("zz new", "by this version").unwrap();
        expected.insert(b"zz new".to_vec(), b"by this version".to_vec());
        partition.compact().unwrap();
    }
    keyspace.close().unwrap();
    check_sound(&path, false);
    let keyspace = config(&path).open().unwrap();
    for (name, expected) in content {
        let partition = keyspace.open_partition(&name).unwrap().unwrap();
        assert!(entries(&partition) == expected, "{name} after writing and reopening");
    }
}

#[test]
fn this_version_writes_the_format_of_the_newest_fixtures() {
    let dir = memory_dir();
    let wanted = std::env::var_os("ESKER_WRITE_FIXTURES").map(PathBuf::from);
    for (name, write) in FIXTURES {
        let path = dir.path().join(name);
        write(&path);
        let text = archive::pack(&path);
        let again = dir.path().join(format!("{name} again"));
        archive::unpack(&text, &again);
        assert_eq!(archive::pack(&again), text, "{name}: an archive keeps every byte");
        let content = described_at(&path);
        if let Some(wanted) = &wanted {
            fs::create_dir_all(wanted).unwrap();
            fs::write(wanted.join(format!("{name}.txt")), &text).unwrap();
            fs::write(wanted.join(format!("{name}.content")), &content).unwrap();
            continue;
        }
        let stored = |kind| fs::read_to_string(stored(NEWEST).join(format!("{name}.{kind}")));
        assert_eq!(content, stored("content").unwrap(), "{name}: the same calls, the same content");
        let old = dir.path().join(format!("{name} as stored"));
        archive::unpack(&stored("txt").unwrap(), &old);
        assert_eq!(formats(&path), formats(&old), "{name}: a new format needs new fixtures");
    }
}

/// What the files of a directory begin with, as far as it tells kind and version.
fn formats(root: &Path) -> BTreeSet<(String, String)> {
    let mut formats = BTreeSet::new();
    for name in names(root) {
        let bytes = fs::read(root.join(&name)).unwrap();
        let file = name.file_name().unwrap().to_str().unwrap();
        let parent = name.parent().and_then(Path::file_name).and_then(|n| n.to_str());
        let (kind, len) = match (parent, file) {
            (_, "CATALOG") => ("CATALOG", 12),
            (_, "CHECKPOINT") => ("CHECKPOINT", "ESKER-CHECKPOINT 1 ".len()),
            (_, "LOCK") => ("LOCK", 12),
            (_, "current") => ("current", 0),
            (Some("journal"), _) => ("journal", 16),
            (Some("tables"), _) => ("table", 5),
            (Some("blobs"), _) => ("blob file", 4),
            _ => ("manifest", 0),
        };
        formats.insert((kind.to_owned(), bytes[..len].escape_ascii().to_string()));
    }
    assert!(formats.len() >= 5, "{formats:?}");
    formats
}
