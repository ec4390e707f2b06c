//! Separated values: their files are rewritten and go, and everything that reads them goes on.

use esker::{Compression, PartitionOptions, VerifyOptions, cold_copy, verify};
use esker_tests::{Store, entries, open_content};

const COUNT: u32 = 200;

fn options(compression: Compression) -> PartitionOptions {
    PartitionOptions::default()
        .separate_values_from(Some(512))
        .blob_file_target_bytes(16 << 10)
        .blob_compression(compression)
        .blob_staleness_threshold(0.2)
        .blob_age_cutoff(1.0)
}

fn value(number: u32, round: u32) -> Vec<u8> {
    let noise = |at: u32| (number.wrapping_mul(31).wrapping_add(at.wrapping_mul(at)) >> 3) as u8;
    let mut value: Vec<u8> = (0..2_000).map(noise).collect();
    value[..4].copy_from_slice(&round.to_le_bytes());
    value
}

fn write(store: &Store, round: u32, wanted: impl Fn(u32) -> bool) {
    let p = store.partition("values");
    for number in (0..COUNT).filter(|&number| wanted(number)) {
        p.insert(number.to_be_bytes(), value(number, round)).unwrap();
    }
    store.keyspace().flush().unwrap();
}

/// Waits until there are as many as they should be: a worker that looks at a tree holds its files.
fn blob_files_settle(store: &Store, fits: impl Fn(usize) -> bool) -> bool {
    (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        fits(blob_files(store))
    })
}

fn blob_files(store: &Store) -> usize {
    let mut count = 0;
    for tree in std::fs::read_dir(store.path().join("partitions")).unwrap() {
        let blobs = tree.unwrap().path().join("blobs");
        count += std::fs::read_dir(blobs).map_or(0, Iterator::count);
    }
    count
}

#[test]
fn stale_values_are_collected_and_the_rest_is_moved() {
    for compression in [Compression::None, Compression::Lz4] {
        let mut store = Store::new();
        store.partition_with("values", options(compression));
        write(&store, 0, |_| true);
        let p = store.partition("values");
        p.compact().unwrap();
        let full = (p.disk_space(), blob_files(&store));
        assert!(full.1 > 10 || compression == Compression::Lz4, "{full:?}");
        // Of every file two of three values.
        write(&store, 1, |number| number % 3 != 0);
        p.compact().unwrap();
        let stale = store.keyspace().statistics().partitions[0].stale_blob_bytes;
        assert!(stale > 0, "it is known what is stale");
        p.compact().unwrap();
        let of_p = &store.keyspace().statistics().partitions[0];
        assert!(of_p.stale_blob_bytes < stale / 4, "{of_p:?}");
        assert!(blob_files_settle(&store, |files| files == of_p.blob_files as usize));
        assert!(p.disk_space() < full.0 + full.0 / 8, "{} of {full:?}", p.disk_space());
        let check = |store: &Store| {
            for (key, found) in entries(&store.partition("values")) {
                let number = u32::from_be_bytes(key[..].try_into().unwrap());
                assert!(found == value(number, u32::from(number % 3 != 0)), "{number}");
            }
        };
        check(&store);
        drop(p);
        store.crash();
        store.open();
        check(&store);
        assert_eq!(store.partition("values").len().unwrap(), COUNT as usize);
        store.close();
        assert!(verify(store.path(), VerifyOptions::default()).unwrap().is_sound());
    }
}

#[test]
fn files_of_which_nothing_is_left_go_with_the_compaction_that_finds_out() {
    let store = Store::new();
    store.partition_with("values", options(Compression::None));
    write(&store, 0, |_| true);
    let p = store.partition("values");
    p.compact().unwrap();
    write(&store, 1, |_| true);
    let both = blob_files(&store);
    p.compact().unwrap();
    assert!(blob_files_settle(&store, |files| files <= both / 2 + 1), "of {both}");
    for number in 0..COUNT {
        p.remove(number.to_be_bytes()).unwrap();
    }
    p.compact().unwrap();
    assert!(blob_files_settle(&store, |files| files == 0));
    assert_eq!(p.disk_space(), 0);
    assert!(p.is_empty().unwrap());
}

#[test]
fn snapshots_checkpoints_and_copies_read_what_is_moved_and_collected() {
    let mut store = Store::new();
    store.partition_with("values", options(Compression::Lz4));
    write(&store, 0, |_| true);
    let p = store.partition("values");
    let snapshot = store.keyspace().snapshot();
    let iterator = p.iter().unwrap();
    store.keyspace().backup_to(store.beside("checkpoint")).unwrap();
    let before = entries(&p);
    for round in 1..6 {
        write(&store, round, |number| number % 3 != round % 3);
        p.compact().unwrap();
        p.compact().unwrap();
    }
    for (key, value) in &before {
        assert_eq!(snapshot.get(&p, key).unwrap().as_deref(), Some(&value[..]));
    }
    assert_eq!(snapshot.iter(&p).unwrap().count(), COUNT as usize);
    assert_eq!(iterator.flatten().count(), COUNT as usize);
    drop(snapshot);
    let now = entries(&p);
    p.compact().unwrap();
    p.compact().unwrap();
    assert!(entries(&p) == now);
    store.keyspace().backup_to(store.beside("later")).unwrap();
    drop(p);
    store.close();
    cold_copy(store.path(), store.beside("copy"), Default::default()).unwrap();
    for (name, expected) in [("checkpoint", &before), ("later", &now), ("copy", &now)] {
        let path = store.beside(name);
        assert!(verify(&path, VerifyOptions::default()).unwrap().is_sound(), "{name}");
        assert!(open_content(&path)["values"] == *expected, "{name}");
    }
    store.open();
    assert!(entries(&store.partition("values")) == now);
}

#[test]
fn files_are_as_large_as_asked_for_and_compressed_as_asked_for() {
    let text = "a line that compresses well\n".repeat(100);
    let disk = |options: PartitionOptions| {
        let store = Store::new();
        let p = store.partition_with("values", options);
        for number in 0..COUNT {
            p.insert(number.to_be_bytes(), text.as_str()).unwrap();
        }
        store.keyspace().flush().unwrap();
        (p.disk_space(), blob_files(&store))
    };
    let options = || options(Compression::None).blob_file_target_bytes(64 << 10);
    let (plain, files) = disk(options());
    assert!((7..=10).contains(&files), "{files} files of 64 KiB");
    let (_, one) = disk(options().blob_file_target_bytes(64 << 20));
    assert_eq!(one, 1);
    let (packed, _) = disk(options().blob_compression(Compression::Lz4));
    assert!(packed < plain / 4, "{packed} of {plain}");
}

#[test]
fn clear_and_drop_take_the_blob_files_with_them() {
    let mut store = Store::new();
    store.partition_with("values", options(Compression::None));
    write(&store, 0, |_| true);
    let p = store.partition("values");
    assert!(blob_files(&store) > 0);
    p.clear().unwrap();
    assert!(blob_files_settle(&store, |files| files == 0));
    write(&store, 1, |_| true);
    p.compact().unwrap();
    assert_eq!(p.len().unwrap(), COUNT as usize);
    drop(p);
    store.keyspace().drop_partition("values").unwrap();
    assert!(blob_files_settle(&store, |files| files == 0));
    store.reopen();
    assert!(store.keyspace().partitions().is_empty());
}

#[test]
fn an_age_of_nothing_moves_nothing_and_loses_nothing() {
    let store = Store::new();
    store.partition_with("values", options(Compression::None).blob_age_cutoff(0.0));
    // The first opening made it.
    write(&store, 0, |_| true);
    write(&store, 1, |number| number % 3 != 0);
    let p = store.partition("values");
    p.compact().unwrap();
    p.compact().unwrap();
    let stale = store.keyspace().statistics().partitions[0].stale_blob_bytes;
    assert!(stale > 0, "what is stale stays in files that are still needed");
    assert_eq!(p.len().unwrap(), COUNT as usize);
}
