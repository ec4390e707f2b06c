//! Push and restore over a local directory and over memory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use esker::{Keyspace, PartitionOptions};
use esker_archive::{Key, PushOptions, Repository, RepositoryOptions, RestoreOptions};
use object_store::memory::InMemory;

use crate::content::{assert_whole, content, tables};

fn fill(keyspace: &Keyspace, name: &str, numbers: std::ops::Range<u32>) {
    let options =
        PartitionOptions::default().separate_values_from(Some(2_000)).table_bytes(1 << 20);
    let partition = keyspace.partition(name, options).unwrap();
    let mut state = 3_u64;
    for number in numbers {
        let len = 500 + number as usize % 3_000;
        let step = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(number.into());
            (state >> 56) as u8
        };
        let value: Vec<u8> = (0..len).map(step).collect();
        partition.insert(number.to_be_bytes(), value).unwrap();
    }
}

#[test]
fn what_is_pushed_comes_back_and_only_what_is_new_travels() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for key in [None, Some(Key::generate())] {
        let options = key
            .clone()
            .map_or(RepositoryOptions::default(), |key| RepositoryOptions::default().key(key));
        let name = if key.is_some() { "encrypted" } else { "plain" };
        let repository = Repository::create(at(name).to_str().unwrap(), options.clone()).unwrap();
        assert!(repository.about().conditional_create);
        let keyspace = Keyspace::open(at(&format!("{name} db"))).unwrap();
        fill(&keyspace, "users", 0..20_000);
        fill(&keyspace, "statistics", 0..500);
        keyspace.flush().unwrap();
        let first = repository.push(&keyspace, PushOptions::default().label("first")).unwrap();
        assert!(first.sent_bytes > 20 << 20, "{first:?}");
        let again = repository.push(&keyspace, PushOptions::default()).unwrap();
        assert_eq!((again.sent_bytes, again.new_files), (0, 0), "{again:?}");
        fill(&keyspace, "users", 20_000..20_100);
        let expected = {
            keyspace.backup_to(at(&format!("{name} expected"))).unwrap();
            content(&at(&format!("{name} expected")))
        };
        let third = repository.push(&keyspace, PushOptions::default()).unwrap();
        assert!(third.sent_bytes < 1 << 20, "{third:?}");
        assert_eq!(repository.list().unwrap().len(), 3);
        drop(repository);
        let repository = Repository::open(at(name).to_str().unwrap(), options).unwrap();
        for (number, chunk) in [(1, 1 << 20), (2, 4 << 20), (5, 32 << 20)] {
            let target = at(&format!("{name} restored {number}"));
            let options = RestoreOptions::default().download_workers(number).chunk_bytes(chunk);
            let newest = repository.find(None).unwrap();
            let report = repository.restore(newest, &target, options.buffer_bytes_max(1)).unwrap();
            assert_eq!(report.seqno, third.seqno);
            assert_whole(&target);
            assert_eq!(content(&target), expected);
            let error = repository.restore(newest, &target, RestoreOptions::default()).unwrap_err();
            assert!(matches!(error, esker_archive::Error::TargetExists { .. }), "{error}");
        }
        let target = at(&format!("{name} users"));
        let options = RestoreOptions::default().partitions(["users"]);
        repository.restore(repository.find(None).unwrap(), &target, options).unwrap();
        assert_whole(&target);
        let mut users = expected.clone();
        users.retain(|name, _| name == "users");
        assert!(content(&target) == users);
        let first_id = repository.find(Some(&first.backup)).unwrap();
        let options = RestoreOptions::default().delta(true);
        let report =
            repository.restore(first_id, at(&format!("{name} restored 1")), options).unwrap();
        assert!(report.reused_bytes > 20 << 20 && report.fetched_bytes < 1 << 20, "{report:?}");
        assert_whole(&at(&format!("{name} restored 1")));
    }
}

#[test]
fn a_second_push_with_no_change_sends_only_a_manifest_and_reads_no_table() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let repository = Repository::create(at("repository").to_str().unwrap(), Default::default());
    let repository = repository.unwrap();
    let keyspace = Keyspace::open(at("db")).unwrap();
    fill(&keyspace, "large", 0..5_000);
    let tiny = keyspace.partition("tiny", PartitionOptions::default()).unwrap();
    tiny.insert("a", "table of some hundred bytes").unwrap();
    keyspace.flush().unwrap();
    keyspace.backup_to(at("checkpoint")).unwrap();
    drop((tiny, keyspace));
    std::fs::remove_dir_all(at("db")).unwrap();
    let first = repository.push_directory(at("checkpoint"), PushOptions::default()).unwrap();
    assert!(first.sent_bytes > 5 << 20, "{first:?}");
    // Who reads one of them now finds it rotten.
    let tables = tables(&at("checkpoint"));
    assert!(tables.len() > 5, "{tables:?}");
    for table in &tables {
        let bytes = std::fs::metadata(table).unwrap().len() as usize;
        std::fs::write(table, vec![0; bytes]).unwrap();
    }
    let again = repository.push_directory(at("checkpoint"), PushOptions::default()).unwrap();
    assert_eq!((again.sent_bytes, again.new_files), (0, 0), "{again:?}");
    assert!(again.manifest_bytes < 4_000, "{again:?}");
    let target = at("restored");
    repository.restore(repository.find(None).unwrap(), &target, Default::default()).unwrap();
    assert_whole(&target);
}

/// What a change of one entry in a hundred adds: the tables that it changed, and hardly more.
#[test]
fn bytes_sent_for_one_percent_are_those_of_the_changed_tables() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let repository = Repository::create(at("repository").to_str().unwrap(), Default::default());
    let repository = repository.unwrap();
    let keyspace = Keyspace::open(at("db")).unwrap();
    fill(&keyspace, "p", 0..20_000);
    keyspace.partition("p", Default::default()).unwrap().compact().unwrap();
    keyspace.backup_to(at("before")).unwrap();
    repository.push_directory(at("before"), PushOptions::default()).unwrap();
    // At one end, so that a merge leaves the other tables alone.
    fill(&keyspace, "p", 19_800..20_000);
    keyspace.flush().unwrap();
    keyspace.backup_to(at("after")).unwrap();
    let pushed = repository.push_directory(at("after"), PushOptions::default()).unwrap();
    let names = |checkpoint: &str| -> BTreeMap<PathBuf, u64> {
        let inside = at(checkpoint);
        let named = tables(&inside).into_iter().map(|path| {
            let bytes = std::fs::metadata(&path).unwrap().len();
            (path.strip_prefix(&inside).unwrap().to_owned(), bytes)
        });
        named.collect()
    };
    let (before, after) = (names("before"), names("after"));
    let all: u64 = after.values().sum();
    let changed: u64 =
        after.iter().filter(|(name, _)| !before.contains_key(*name)).map(|(_, bytes)| bytes).sum();
    assert!(changed > 0 && changed < all / 20, "{changed} of {all}");
    assert!(pushed.sent_bytes as f64 <= changed as f64 * 1.02, "{pushed:?}, {changed} changed");
}

#[test]
fn a_wrong_key_is_told_and_nothing_readable_is_stored() {
    let store = Arc::new(InMemory::new());
    let key = Key::generate();
    let options = RepositoryOptions::default().key(key.clone());
    let repository = Repository::create_in(store.clone(), "backups/db", options).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let keyspace = Keyspace::open(dir.path().join("db")).unwrap();
    let secrets = keyspace.partition("secrets", Default::default()).unwrap();
    for number in 0..2_000_u32 {
        secrets.insert(number.to_be_bytes(), "the password is swordfish").unwrap();
    }
    keyspace.flush().unwrap();
    repository.push(&keyspace, PushOptions::default().label("swordfish")).unwrap();
    let open = |options| Repository::open_in(store.clone(), "backups/db", options).map(|_| ());
    for (options, said) in [
        (RepositoryOptions::default(), "is encrypted, and no key was given"),
        (RepositoryOptions::default().key(Key::generate()), "is encrypted with another key"),
    ] {
        let error = open(options).unwrap_err().to_string();
        assert!(error.contains(said) && !error.contains(&key.to_hex()), "{error}");
    }
    open(RepositoryOptions::default().key(key)).unwrap();
    let text = format!("{store:?}");
    assert!(!text.contains("swordfish") && !text.contains("secrets"));
}
