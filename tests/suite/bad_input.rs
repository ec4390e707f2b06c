//! Bad input gets one clear sentence and the right kind of error.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use esker::{
    Config, CopyOptions, Error, ErrorKind, Keyspace, PartitionOptions, TxKeyspace, TxKind,
    cold_copy,
};
use esker_tests::files::entries;
use esker_tests::{Store, fill, fingerprint, skip};
use xxhash_rust::xxh3::xxh3_128;

/// One sentence for people: no line breaks, no dump of a type, and what it is about.
fn check(error: &Error, kind: ErrorKind, about: &str) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?} is one line");
    for dump in [" { ", "Error {", "Some(", "None", "Err(", "Os {", "ErrorKind"] {
        assert!(!text.contains(dump), "{text:?} shows a type");
    }
    assert!(text.contains(about), "{text:?} does not name {about:?}");
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A checkpoint and, after closing, a cold copy to `target` are refused alike.
fn both_refuse(store: &mut Store, target: &Path, kind: ErrorKind, about: &str) {
    let error = store.keyspace().backup_to(target).unwrap_err();
    check(&error, kind, about);
    store.close();
    let before = fingerprint(&store.path());
    let error = cold_copy(store.path(), target, CopyOptions::default()).unwrap_err();
    check(&error, kind, about);
    assert_eq!(fingerprint(&store.path()), before, "nothing was left in the source");
    store.open();
}

#[test]
fn a_target_that_exists_is_refused_whatever_it_is() {
    let mut store = Store::new();
    store.write("p", "k", "v");
    let (file, empty, full, dangling) = (
        store.beside("file"),
        store.beside("empty"),
        store.beside("full"),
        store.beside("dangling"),
    );
    fs::write(&file, "precious").unwrap();
    fs::create_dir(&empty).unwrap();
    fs::create_dir(&full).unwrap();
    fs::write(full.join("file"), "precious").unwrap();
    symlink(store.beside("nowhere"), &dangling).unwrap();
    for target in [&file, &empty, &full, &dangling] {
        both_refuse(&mut store, target, ErrorKind::FixInput, name(target));
    }
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    assert_eq!(entries(&full), ["file"]);
    assert!(entries(&empty).is_empty() && !store.beside("nowhere").exists());
    let itself = store.path();
    both_refuse(&mut store, &itself, ErrorKind::FixInput, name(&itself));
}

#[test]
fn a_target_inside_the_source_is_refused_by_any_way_there() {
    let mut store = Store::new();
    store.write("p", "k", "v");
    let link = store.beside("link");
    symlink(store.path(), &link).unwrap();
    let targets = [
        store.path().join("backup"),
        store.path().join("partitions/backup"),
        link.join("backup"),
        link.join("journal/backup"),
        store.path().join("partitions/../backup"),
        store.beside("x").with_file_name("keyspace").join("../keyspace/backup"),
    ];
    for target in targets {
        both_refuse(&mut store, &target, ErrorKind::FixInput, "inside");
    }
}

#[test]
fn a_target_whose_name_only_begins_like_the_source_is_fine() {
    let store = Store::new();
    store.write("p", "k", "v");
    let target = store.path().with_file_name("keyspace backup");
    store.keyspace().backup_to(&target).unwrap();
    store.keyspace().backup_to(store.path().join("../another backup")).unwrap();
}

#[test]
fn a_target_without_a_name_is_refused() {
    let mut store = Store::new();
    store.write("p", "k", "v");
    let beside = store.beside("directory");
    fs::create_dir(&beside).unwrap();
    for target in ["", "/", ".."] {
        let error = store.keyspace().backup_to(target).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::FixInput | ErrorKind::Io), "{error}");
        check(&error, error.kind(), "");
    }
    both_refuse(&mut store, &beside.join(".."), ErrorKind::FixInput, "..");
}

#[test]
fn a_target_that_cannot_be_written_is_refused_with_the_reason() {
    let mut store = Store::new();
    store.write("p", "k", "v");
    let missing = store.beside("missing/backup");
    both_refuse(&mut store, &missing, ErrorKind::Io, name(missing.parent().unwrap()));
    assert!(!store.beside("missing").exists(), "parents are not made up");
    let file = store.beside("file");
    fs::write(&file, "no directory").unwrap();
    both_refuse(&mut store, &file.join("backup"), ErrorKind::FixInput, name(&file));
    // A filesystem that lets nobody create anything, root included.
    both_refuse(&mut store, Path::new("/proc/backup"), ErrorKind::Io, "/proc");
    assert!(entries(&store.path().join("staging")).is_empty());
    store.write("p", "still", "writable");
}

#[test]
fn a_target_on_a_read_only_filesystem_is_refused_with_the_reason() {
    let mut store = Store::new();
    store.write("p", "k", "v");
    let mount = store.beside("read-only");
    let Some(_mount) = super::full_disk::small_disk(&mount, "ro,size=1m") else { return };
    both_refuse(&mut store, &mount.join("backup"), ErrorKind::Io, name(&mount));
}

#[test]
fn a_source_that_is_no_keyspace_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("file"), "text").unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir(at("photos")).unwrap();
    fs::write(at("photos").join("cat.jpg"), "meow").unwrap();
    for source in ["missing", "file", "empty", "photos"] {
        let path = at(source);
        let errors = [
            Config::new(&path).create_if_missing(false).open().unwrap_err(),
            Config::new(&path).read_only(true).open().unwrap_err(),
            cold_copy(&path, at("copy"), CopyOptions::default()).unwrap_err(),
            esker::verify(&path, Default::default()).unwrap_err(),
        ];
        for error in errors {
            check(&error, ErrorKind::FixInput, name(&path));
            assert!(matches!(error, Error::NotAKeyspace { .. }), "{error}");
        }
    }
    for source in ["file", "photos"] {
        let error = Keyspace::open(at(source)).unwrap_err();
        check(&error, ErrorKind::FixInput, name(&at(source)));
    }
    assert_eq!(entries(directory.path()), ["empty", "file", "photos"]);
    assert_eq!(entries(&at("photos")), ["cat.jpg"]);
    assert!(entries(&at("empty")).is_empty());
}

#[test]
fn half_a_keyspace_is_refused_and_never_taken_for_a_new_one() {
    let mut store = Store::new();
    fill(&store.partition("p"), 100);
    store.keyspace().backup_to(store.beside("checkpoint")).unwrap();
    store.crash();
    let path = store.path();
    let catalog = fs::read(path.join("CATALOG")).unwrap();
    fs::remove_file(path.join("CATALOG")).unwrap();
    let before = fingerprint(&path);
    for error in [
        Keyspace::open(&path).unwrap_err(),
        Config::new(&path).read_only(true).open().unwrap_err(),
        cold_copy(&path, store.beside("copy"), CopyOptions::default()).unwrap_err(),
        esker::verify(&path, Default::default()).unwrap_err(),
    ] {
        check(&error, ErrorKind::FixInput, "CATALOG");
    }
    assert_eq!(fingerprint(&path), before);
    // Half a CATALOG is damage, not absence.
    fs::write(path.join("CATALOG"), &catalog[..catalog.len() / 2]).unwrap();
    let before = fingerprint(&path);
    for error in [
        Keyspace::open(&path).unwrap_err(),
        Config::new(&path).read_only(true).open().unwrap_err(),
        cold_copy(&path, store.beside("copy"), CopyOptions::default()).unwrap_err(),
    ] {
        check(&error, ErrorKind::Corrupt, "CATALOG");
    }
    assert!(!esker::verify(&path, Default::default()).unwrap().is_sound());
    let mut after = fingerprint(&path);
    // Taking the lock may create the file, which holds nothing.
    after.remove(Path::new("LOCK"));
    let mut before = before;
    before.remove(Path::new("LOCK"));
    assert_eq!(after, before);
    fs::write(path.join("CATALOG"), &catalog).unwrap();
    // A directory is missing.
    let trees = store.beside("trees");
    fs::rename(path.join("partitions"), &trees).unwrap();
    let error = Keyspace::open(&path).unwrap_err();
    check(&error, ErrorKind::Corrupt, "partitions");
    fs::rename(&trees, path.join("partitions")).unwrap();
    store.open();
    assert_eq!(store.partition("p").len().unwrap(), 100);
}

#[test]
fn a_checkpoint_without_its_catalog_is_refused() {
    let store = Store::new();
    store.keyspace().backup_to(store.beside("checkpoint")).unwrap();
    fs::remove_file(store.beside("checkpoint").join("CATALOG")).unwrap();
    let error = Keyspace::open(store.beside("checkpoint")).unwrap_err();
    check(&error, ErrorKind::FixInput, "CATALOG");
}

/// With a checksum that is right: a newer format, not damage.
#[test]
fn a_keyspace_of_a_newer_format_is_refused_as_such() {
    let mut store = Store::new();
    fill(&store.partition("p"), 10);
    store.close();
    let catalog = store.path().join("CATALOG");
    let original = fs::read(&catalog).unwrap();
    let content = original.len() - 16;
    let mut bytes = original.clone();
    let version = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
    bytes[8..12].copy_from_slice(&(version + 1).to_le_bytes());
    let checksum = xxh3_128(&bytes[..content]);
    bytes[content..].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&catalog, &bytes).unwrap();
    for error in [
        store.config().open().unwrap_err(),
        store.config().read_only(true).open().unwrap_err(),
        cold_copy(store.path(), store.beside("copy"), CopyOptions::default()).unwrap_err(),
        esker::verify(store.path(), Default::default()).unwrap_err(),
    ] {
        check(&error, ErrorKind::FixInput, "format version");
        assert!(matches!(error, Error::UnsupportedFormat { .. }), "{error}");
        assert!(error.to_string().contains(name(&catalog)), "{error}");
    }
    assert_eq!(fs::read(&catalog).unwrap(), bytes, "nothing was changed");
    fs::write(&catalog, original).unwrap();
    store.open();
    assert_eq!(store.partition("p").len().unwrap(), 10);
}

#[test]
fn a_keyspace_open_elsewhere_is_named() {
    let store = Store::new();
    for error in [
        store.config().open().unwrap_err(),
        store.config().read_only(true).open().unwrap_err(),
        cold_copy(store.path(), store.beside("copy"), CopyOptions::default()).unwrap_err(),
        esker::verify(store.path(), Default::default()).unwrap_err(),
    ] {
        check(&error, ErrorKind::Locked, name(&store.path()));
    }
}

#[test]
fn a_keyspace_open_in_another_process_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keyspace");
    Keyspace::open(&path).unwrap().close().unwrap();
    // Whoever holds the directory's lock: flock(1) is in every base system.
    let holder = std::process::Command::new("flock")
        .args([name(&path), "-c", "echo held; read line"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut holder) = holder else {
        skip("a directory that another process has locked", "flock(1) is not installed");
        return;
    };
    let mut line = [0; 5];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut line).unwrap();
    check(&Keyspace::open(&path).unwrap_err(), ErrorKind::Locked, name(&path));
    drop(holder.stdin.take());
    holder.wait().unwrap();
    Keyspace::open(&path).unwrap().close().unwrap();
}

#[test]
fn keys_must_have_1_to_65535_bytes() {
    let store = Store::new();
    let p = store.partition("p");
    let long = vec![0; 65_536];
    check(&p.insert("", "v").unwrap_err(), ErrorKind::FixInput, "key is empty");
    check(&p.remove("").unwrap_err(), ErrorKind::FixInput, "key is empty");
    check(&p.insert(&long[..], "v").unwrap_err(), ErrorKind::FixInput, "65536");
    check(&p.remove(&long[..]).unwrap_err(), ErrorKind::FixInput, "65536");
    p.insert(&long[1..], "v").unwrap();
    // Asking for one that cannot be there is a question like any other.
    assert_eq!(p.get("").unwrap(), None);
    assert_eq!(p.get(&long).unwrap(), None);
    assert!(!p.contains_key("").unwrap());
    assert!(!p.contains_key(&long).unwrap());
    assert_eq!(p.size_of(&long).unwrap(), None);
    assert_eq!(p.prefix(&long).unwrap().count(), 0);
    assert_eq!(
        p.range::<&Vec<u8>, _>(&long..).unwrap().count(),
        0,
        "the key is a prefix of the bound"
    );
    assert_eq!(p.range::<&Vec<u8>, _>(..&long).unwrap().count(), 1);
    assert_eq!(p.range::<&Vec<u8>, _>(..=&long).unwrap().rev().count(), 1);
    let before = vec![0; 70_000];
    p.insert("\u{1}", "v").unwrap();
    assert_eq!(p.range::<&Vec<u8>, _>(&before..).unwrap().count(), 1);
    p.remove("\u{1}").unwrap();
    assert_eq!(p.len().unwrap(), 1);
}

#[test]
fn one_oversize_key_refuses_its_whole_batch_wherever_it_stands() {
    let mut store = Store::new();
    let (p, q) = (store.partition("p"), store.partition("q"));
    let before = store.keyspace().seqno();
    let long = vec![b'k'; 65_536];
    for at in 0..3 {
        for remove in [false, true] {
            let mut batch = store.keyspace().batch();
            for number in 0..3 {
                batch.insert(&p, format!("good {number}"), "v");
                match (number == at, remove) {
                    (true, false) => _ = batch.insert(&q, &long[..], "v"),
                    (true, true) => _ = batch.remove(&q, &long[..]),
                    (false, _) => {}
                }
            }
            let error = batch.commit().unwrap_err();
            check(&error, ErrorKind::FixInput, "65536 bytes long");
            check(&error, ErrorKind::FixInput, "in the partition \"q\"");
        }
    }
    assert_eq!(store.keyspace().seqno(), before);
    drop((p, q));
    for round in ["at once", "after a crash"] {
        let is_empty = |name: &str| store.partition(name).is_empty().unwrap();
        assert!(is_empty("p") && is_empty("q"), "{round}");
        store.crash();
        store.open();
    }
}

#[test]
fn a_batch_and_a_transaction_across_keyspaces_are_refused_whole_and_say_why() {
    let dir = tempfile::tempdir().unwrap();
    for kind in [TxKind::SingleWriter, TxKind::Optimistic] {
        let open = |name: &str| {
            let keyspace = TxKeyspace::open(dir.path().join(format!("{name} {kind:?}")), kind);
            let keyspace = keyspace.unwrap();
            let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
            (keyspace, p)
        };
        let ((one, own), (two, foreign)) = (open("one"), open("two"));
        let before = (one.seqno(), two.seqno());
        let why = "the partition \"p\" belongs to another keyspace";
        let mut batch = one.batch();
        batch.insert(&own, "k", "v").insert(&foreign, "k", "v").insert(&own, "l", "v");
        check(&batch.commit().unwrap_err(), ErrorKind::FixInput, why);
        let mut tx = one.write_tx().unwrap();
        tx.insert(&own, "k", "v").unwrap();
        check(&tx.get(&foreign, "k").unwrap_err(), ErrorKind::FixInput, why);
        check(&tx.insert(&foreign, "k", "v").unwrap_err(), ErrorKind::FixInput, why);
        check(&tx.take(&foreign, "k").unwrap_err(), ErrorKind::FixInput, why);
        check(&tx.commit().unwrap_err(), ErrorKind::FixInput, why);
        // The turn is free again, and nothing happened.
        own.insert("after", "v").unwrap();
        assert_eq!((one.seqno(), two.seqno()), (before.0 + 1, before.1));
        assert_eq!((own.len().unwrap(), foreign.len().unwrap()), (1, 0));
    }
}

#[test]
fn a_partition_that_was_dropped_in_use_is_named_by_whatever_would_change_it() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = TxKeyspace::open(dir.path().join("db"), TxKind::Optimistic).unwrap();
    let other = keyspace.partition("other", PartitionOptions::default()).unwrap();
    let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
    p.insert("k", "v").unwrap();
    let snapshot = keyspace.snapshot();
    let reading = p.iter().unwrap();
    let mut batch = keyspace.batch();
    batch.insert(&other, "k", "v").insert(&p, "k", "late");
    let mut tx = keyspace.write_tx().unwrap();
    tx.insert(&other, "k", "v").unwrap();
    tx.insert(&p, "k", "late").unwrap();
    let mut later = keyspace.write_tx().unwrap();
    assert!(keyspace.drop_partition("p").unwrap());
    let dropped = |error: Error| {
        check(&error, ErrorKind::FixInput, "the partition \"p\" was dropped");
        assert!(matches!(error, Error::PartitionDropped { .. }));
    };
    dropped(p.insert("k", "late").unwrap_err());
    dropped(p.remove("k").unwrap_err());
    dropped(p.clear().unwrap_err());
    dropped(p.compact().unwrap_err());
    dropped(p.take("k").unwrap_err());
    dropped(p.update_fetch("k", |_| Some("late".into())).unwrap_err());
    dropped(p.typed::<String, u8>().insert("k", &1).unwrap_err());
    dropped(batch.commit().unwrap_err());
    dropped(tx.commit().unwrap_err());
    dropped(later.insert(&p, "k", "late").unwrap_err());
    dropped(later.commit().unwrap_err());
    // Whoever reads goes on, and nothing of what was refused is anywhere.
    assert_eq!(reading.map(|entry| entry.unwrap().1).collect::<Vec<_>>(), ["v"]);
    assert_eq!(snapshot.get(&p, "k").unwrap().as_deref(), Some(&b"v"[..]));
    assert!(other.is_empty().unwrap());
    let anew = keyspace.partition("p", PartitionOptions::default()).unwrap();
    assert!(anew.is_empty().unwrap());
    dropped(p.insert("k", "late").unwrap_err());
}

/// A value of 4 GiB needs as much memory twice over (it becomes a slice): too much for a test that
/// everybody runs, so it wants to be asked.
#[test]
fn values_have_at_most_4_gib_less_one_byte() {
    if std::env::var_os("ESKER_HUGE").is_none() {
        skip("a value of 4 GiB", "it needs 9 GiB of memory; ESKER_HUGE=1 runs it");
        return;
    }
    let store = Store::new();
    let p = store.partition("p");
    let error = p.insert("k", vec![0; 1 << 32]).unwrap_err();
    check(&error, ErrorKind::FixInput, "4294967295");
    assert!(p.is_empty().unwrap());
}

#[test]
fn partition_names_are_checked_wherever_one_is_given() {
    let store = Store::new();
    let longest = "ü".repeat(127) + "x";
    let too_long = "x".repeat(256);
    for (bad, about) in
        [("", "empty"), (&too_long[..], "256"), ("a/b", "slash"), ("/", "slash"), ("nul\0", "NUL")]
    {
        let created = store.keyspace().partition(bad, PartitionOptions::default());
        check(&created.unwrap_err(), ErrorKind::FixInput, about);
        check(&store.keyspace().open_partition(bad).unwrap_err(), ErrorKind::FixInput, about);
    }
    for good in [&longest[..], ".", "..", " ", "line\nbreak", "CATALOG"] {
        store.write(good, "k", "v");
    }
    assert_eq!(store.keyspace().partitions().len(), 6);
    let mut store = store;
    store.reopen();
    assert_eq!(store.keyspace().partitions().len(), 6);
    assert_eq!(store.get("..", "k").as_deref(), Some("v"));
}

/// lsm-tree allocates for the number of sections that a table claims. A hash that is right proves
/// only that somebody computed it.
#[test]
fn a_table_that_claims_more_sections_than_it_has_is_refused() {
    let mut store = Store::new();
    store.write("p", "k", "v");
    store.keyspace().flush().unwrap();
    store.close();
    let tables = esker_tests::files::names(&store.path()).into_iter();
    let mut tables = tables.filter(|name| name.parent().unwrap().ends_with("tables"));
    let table = store.path().join(tables.next().expect("a table"));
    let mut bytes = fs::read(&table).unwrap();
    let trailer = bytes.len() - 38;
    let position = u64::from_le_bytes(bytes[trailer + 22..trailer + 30].try_into().unwrap());
    bytes[position as usize + 4..position as usize + 8].fill(0xff);
    let hash = xxh3_128(&bytes[position as usize..trailer]);
    bytes[trailer + 6..trailer + 22].copy_from_slice(&hash.to_le_bytes());
    fs::write(&table, bytes).unwrap();
    let error = store.config().open().unwrap_err();
    assert!(error.to_string().contains("table of contents is not whole"), "{error}");
    let report = esker::verify(store.path(), esker::VerifyOptions::default()).unwrap();
    assert!(report.problems.iter().any(|problem| problem.path == table), "{report:?}");
}

/// A merge would ask for as much memory as the count says.
#[test]
fn a_table_that_claims_more_blob_files_than_it_lists_is_refused() {
    let mut store = Store::new();
    let options = PartitionOptions::default().separate_values_from(Some(8));
    let partition = store.keyspace().partition("separated", options).unwrap();
    partition.insert("key", "a value that lies in a blob file").unwrap();
    drop(partition);
    store.keyspace().flush().unwrap();
    store.close();
    let names = esker_tests::files::names(&store.path()).into_iter();
    let mut tables = names.filter(|name| name.parent().unwrap().ends_with("tables"));
    let table = store.path().join(tables.next().expect("a table"));
    let mut bytes = fs::read(&table).unwrap();
    let name: &[u8] = b"linked_blob_files";
    let name_at = bytes.windows(name.len()).rposition(|window| window == name).unwrap();
    // Before the name: position, length, and the length of the name.
    let entry = &bytes[name_at - 18..name_at - 10];
    let position = u64::from_le_bytes(entry.try_into().unwrap()) as usize;
    assert_eq!(bytes[position..position + 4], [1, 0, 0, 0]);
    bytes[position + 3] = 0x20;
    fs::write(&table, bytes).unwrap();
    let error = store.config().open().unwrap_err();
    let expected = format!("{} is corrupt at byte {position}", table.display());
    assert!(error.to_string().contains(&expected), "{error}");
}
