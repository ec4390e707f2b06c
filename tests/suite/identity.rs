//! A directory is put together from the files of one history, or refused.

use std::fs;
use std::path::Path;

use esker::{Config, CopyOptions, Error, Keyspace, PartitionOptions, VerifyOptions, cold_copy};
use esker_tests::Store;
use esker_tests::files::fingerprint;

/// Opening, copying and `verify` all name `file`, and change nothing.
fn refused(path: &Path, file: &str) {
    let before = fingerprint(path);
    let target = path.with_extension("refused");
    for error in [
        Keyspace::open(path).unwrap_err(),
        Config::new(path).read_only(true).open().unwrap_err(),
        cold_copy(path, &target, CopyOptions::default()).unwrap_err(),
    ] {
        let Error::Corrupt(corruption) = &error else { panic!("another kind: {error}") };
        assert_eq!(corruption.path.file_name().unwrap(), file, "{error}");
    }
    let report = esker::verify(path, VerifyOptions::default()).unwrap();
    let named = |p: &esker::Problem| p.path.file_name().unwrap() == file;
    assert!(report.problems.iter().any(named), "{:?}", report.problems);
    assert_eq!(fingerprint(path), before);
}

/// Its trees and commits are whole, and the catalog knows none of them.
#[test]
fn the_catalog_of_another_keyspace_is_refused_even_where_everything_fits_it() {
    let mut store = Store::new();
    store.write("p", "k", "v");
    let checkpoint = store.beside("checkpoint");
    store.keyspace().checkpoint().flush_first(true).write_to(&checkpoint).unwrap();
    store.close();
    let copy = store.beside("copy");
    cold_copy(store.path(), &copy, CopyOptions::default()).unwrap();
    let other = store.beside("other");
    Keyspace::open(&other).unwrap().close().unwrap();
    for path in [store.path(), checkpoint, copy] {
        fs::copy(other.join("CATALOG"), path.join("CATALOG")).unwrap();
        refused(&path, "LOCK");
    }
}

#[test]
fn a_keyspace_that_is_made_where_another_was_takes_its_lock_over() {
    let store = Store::new();
    let (old, path) = (store.beside("old"), store.beside("new"));
    Keyspace::open(&old).unwrap().close().unwrap();
    fs::create_dir(&path).unwrap();
    fs::copy(old.join("LOCK"), path.join("LOCK")).unwrap();
    let keyspace = Keyspace::open(&path).unwrap();
    keyspace.partition("p", PartitionOptions::default()).unwrap();
    keyspace.close().unwrap();
    assert_ne!(fs::read(old.join("LOCK")).unwrap(), fs::read(path.join("LOCK")).unwrap());
    assert!(esker::verify(&path, VerifyOptions::default()).unwrap().is_sound());
    fs::copy(old.join("LOCK"), path.join("LOCK")).unwrap();
    refused(&path, "LOCK");
    fs::remove_file(path.join("LOCK")).unwrap();
    assert_eq!(Keyspace::open(&path).unwrap().partitions(), ["p"], "CATALOG is believed then");
}

/// The same keyspace, the same tree, the same version, other content.
#[test]
fn a_tree_of_a_branch_that_went_on_is_refused_where_its_version_fits() {
    let mut ours = Store::new();
    ours.write("p", "common", "v");
    let directory = tempfile::tempdir().unwrap();
    ours.keyspace().backup_to(directory.path().join("keyspace")).unwrap();
    let mut theirs = Store::adopt(directory, |config| config);
    let tree = |store: &Store| store.path().join("partitions/1");
    let version = |store: &Store| fs::read(tree(store).join("current")).unwrap()[..8].to_vec();
    // Background merges make versions as well.
    for attempt in 0.. {
        assert!(attempt < 100, "two versions of one number are needed");
        for (store, value) in [(&ours, "ours"), (&theirs, "theirs")] {
            if attempt == 0 || version(store) < version(&ours).max(version(&theirs)) {
                store.write("p", "k", value);
                store.keyspace().flush().unwrap();
            }
        }
        if version(&ours) == version(&theirs) {
            ours.close();
            theirs.close();
            if version(&ours) == version(&theirs) {
                break;
            }
            ours.open();
            theirs.open();
        }
    }
    fs::remove_dir_all(tree(&ours)).unwrap();
    fs::rename(tree(&theirs), tree(&ours)).unwrap();
    refused(&ours.path(), "current");
}
