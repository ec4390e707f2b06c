//! What a checkpoint lists, and a checkpoint made one of some partitions alone: the two doors that the
//! archive uses.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use esker::{Config, ErrorKind, Keyspace, keep_partitions, read_listing};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// A checkpoint of three partitions, with something in tables and something in the journal.
fn checkpoint(dir: &Path) -> PathBuf {
    let keyspace = Keyspace::open(dir.join("db")).unwrap();
    for name in NAMES {
        let partition = keyspace.partition(name, Default::default()).unwrap();
        partition.insert("in a table of", name).unwrap();
    }
    keyspace.flush().unwrap();
    for name in NAMES {
        let partition = keyspace.open_partition(name).unwrap().unwrap();
        partition.insert("in the journal", name).unwrap();
    }
    let path = dir.join("checkpoint");
    keyspace.backup_to(&path).unwrap();
    path
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut pending) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(dir) = pending.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                pending.push(path);
            } else {
                let bytes = fs::read(&path).unwrap();
                found.insert(path, bytes);
            }
        }
    }
    found
}

#[test]
fn a_listing_names_every_file_but_itself_with_its_partition() {
    let dir = tempfile::tempdir().unwrap();
    let path = checkpoint(dir.path());
    let listing = read_listing(&path).unwrap();
    assert_eq!((listing.partitions, listing.left_out), (NAMES.map(String::from).to_vec(), vec![]));
    let mut there = files(&path);
    there.remove(&path.join("CHECKPOINT")).unwrap();
    // It says whose directory this is; every copy has its own.
    there.remove(&path.join("LOCK")).unwrap();
    for file in &listing.files {
        let bytes = there.remove(&path.join(&file.path)).unwrap();
        assert_eq!(bytes.len() as u64, file.bytes, "{file:?}");
        assert_eq!(file.partition.is_some(), file.path.starts_with("partitions/"), "{file:?}");
        assert!(file.xxh3.is_some() || file.path.starts_with("journal/"), "{file:?}");
    }
    assert!(there.is_empty(), "{:?}", there.keys());
}

#[test]
fn a_listing_that_is_missing_or_not_what_was_written_is_refused_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = checkpoint(dir.path());
    let list = path.join("CHECKPOINT");
    let sound = fs::read(&list).unwrap();
    let refused = |kind: ErrorKind, what: &str| {
        for error in [read_listing(&path).unwrap_err(), keep_partitions(&path, ["a"]).unwrap_err()]
        {
            assert_eq!(error.kind(), kind, "{what}: {error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{what}: {error}");
        }
    };
    for len in [0, 1, 20, sound.len() / 2, sound.len() - 1] {
        fs::write(&list, &sound[..len]).unwrap();
        refused(ErrorKind::Corrupt, &format!("{len} bytes"));
    }
    for at in [0, 17, 30, 60, sound.len() / 2, sound.len() - 2] {
        let mut bytes = sound.clone();
        bytes[at] ^= 4;
        fs::write(&list, &bytes).unwrap();
        refused(ErrorKind::Corrupt, &format!("bit at {at}"));
    }
    fs::remove_file(&list).unwrap();
    refused(ErrorKind::Io, "no list");
    fs::write(&list, &sound).unwrap();
    fs::write(path.join("CATALOG"), "nothing").unwrap();
    refused(ErrorKind::Corrupt, "another CATALOG");
    assert_eq!(read_listing(dir.path().join("nowhere")).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn partitions_that_are_not_there_are_refused_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = checkpoint(dir.path());
    let before = files(&path);
    for names in [vec!["d"], vec!["a", "d"], vec!["a", ""], vec!["A"]] {
        let error = keep_partitions(&path, names.clone()).unwrap_err();
        assert!(matches!(error, esker::Error::NoSuchPartition { .. }), "{names:?}: {error}");
        assert!(files(&path) == before, "{names:?}");
    }
}

#[test]
fn what_is_kept_opens_and_verifies_with_these_partitions_alone() {
    for kept in [vec![], vec!["b"], vec!["a", "c"], NAMES.to_vec()] {
        let dir = tempfile::tempdir().unwrap();
        let path = checkpoint(dir.path());
        let before = read_listing(&path).unwrap();
        keep_partitions(&path, kept.clone()).unwrap();
        let listing = read_listing(&path).unwrap();
        let is_kept = |name: &&str| kept.contains(name);
        let others: Vec<_> = NAMES.into_iter().filter(|name| !is_kept(name)).collect();
        assert_eq!(
            (&listing.partitions[..], &listing.left_out[..]),
            (
                &kept.iter().map(ToString::to_string).collect::<Vec<_>>()[..],
                &others.iter().map(ToString::to_string).collect::<Vec<_>>()[..],
            )
        );
        assert_eq!((listing.uuid, listing.seqno), (before.uuid, before.seqno));
        // Their files need not be there.
        let gone = before
            .files
            .iter()
            .filter(|file| file.partition.as_deref().is_some_and(|name| others.contains(&name)));
        for file in gone {
            fs::remove_file(path.join(&file.path)).unwrap();
            let tree = path.join(file.path.splitn(3, '/').take(2).collect::<PathBuf>());
            if files(&tree).is_empty() {
                fs::remove_dir_all(tree).unwrap();
            }
        }
        let report = esker::verify(&path, Default::default()).unwrap();
        assert!(report.is_sound() && report.strays.is_empty(), "{kept:?}: {report:?}");
        let keyspace = Config::new(&path).open().unwrap();
        assert_eq!(keyspace.partitions(), kept, "of the journal as well");
        for name in &kept {
            let partition = keyspace.open_partition(name).unwrap().unwrap();
            for key in ["in a table of", "in the journal"] {
                assert_eq!(&*partition.get(key).unwrap().unwrap(), name.as_bytes(), "{key}");
            }
        }
        // One that was left out can be created, and has nothing of what it had.
        for name in others {
            let partition = keyspace.partition(name, Default::default()).unwrap();
            assert!(partition.get("in the journal").unwrap().is_none());
        }
    }
}
