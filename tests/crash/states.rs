//! The states that the recorder's disk may be in after a crash: what is synced stays, what is not may
//! be torn, lost or kept. And the proof that the harness can fail.

use esker_tests::chaos::{self, Rng};
use esker_tests::crash::recorder::disk::{Disk, Luck, Mistake, SECTOR_BYTES};
use esker_tests::crash::recorder::image::{Image, Ino, Node, Op, Place, ROOT};
use esker_tests::crash::recorder::{Model, run};
use esker_tests::crash::{Options, Outcome};
use esker_tests::skip;

fn place(name: &str) -> Place {
    Place { dir: ROOT, name: name.to_owned() }
}

fn create(name: &str, ino: Ino) -> Op {
    Op::Create { place: place(name), ino, node: Node::File(Vec::new()) }
}

fn write(ino: Ino, offset: u64, data: &[u8]) -> Op {
    Op::Write { ino, offset, data: data.into() }
}

fn disk(ops: &[Op]) -> Disk {
    let mut disk = Disk::new(&Image::default(), None);
    ops.iter().for_each(|op| disk.advance(op));
    disk
}

/// What is under the name, in many states of many kinds of luck.
fn survivors(disk: &Disk, name: &str) -> Vec<Option<Vec<u8>>> {
    let mut rng = Rng::new(7);
    let states = (0..500).map(|number| {
        let luck = if number % 2 == 0 { Luck::any(&mut rng) } else { Luck::scattered() };
        let image = disk.survivor(&luck, &mut rng);
        match image.lookup(ROOT, name).map(|ino| &image.nodes[&ino]) {
            Some(Node::File(bytes)) => Some(bytes.clone()),
            _ => None,
        }
    });
    states.collect()
}

#[test]
fn what_was_synced_stays() {
    let mut ops = vec![create("a", 2), write(2, 0, b"synced"), Op::Sync { ino: 2 }];
    assert!(survivors(&disk(&ops), "a").contains(&None), "its name was not synced");
    ops.push(Op::SyncDirectory { ino: ROOT });
    ops.push(write(2, 6, b" and more"));
    for bytes in survivors(&disk(&ops), "a") {
        let bytes = bytes.expect("its name was synced");
        assert!(bytes.starts_with(b"synced"), "{bytes:?}");
    }
}

#[test]
fn what_was_not_synced_may_be_lost_kept_or_torn_sector_by_sector() {
    let old = vec![1; 4 * SECTOR_BYTES];
    let new = vec![2; 4 * SECTOR_BYTES];
    let mut ops = vec![create("a", 2), write(2, 0, &old), Op::Sync { ino: 2 }];
    ops.extend([Op::SyncDirectory { ino: ROOT }, write(2, 0, &new)]);
    let found: Vec<_> = survivors(&disk(&ops), "a").into_iter().map(Option::unwrap).collect();
    assert!(found.contains(&old) && found.contains(&new));
    let sectors = |bytes: &Vec<u8>| -> Vec<Vec<u8>> {
        bytes.chunks(SECTOR_BYTES).map(<[u8]>::to_vec).collect()
    };
    let whole = |sector: &Vec<u8>| sector.iter().all(|byte| *byte == sector[0]);
    let mixed = |bytes: &&Vec<u8>| {
        let sectors = sectors(bytes);
        sectors.iter().all(whole) && sectors[0] == sectors[2] && sectors[0] != sectors[1]
    };
    assert!(found.iter().find(mixed).is_some(), "no write was torn between sectors");
    let torn = found.iter().flat_map(sectors).find(|sector| !whole(sector)).expect("a torn sector");
    // The first part of a torn sector is new, the rest is old.
    assert!(torn.is_sorted_by(|a, b| a >= b), "{torn:?}");
}

#[test]
fn a_file_that_grew_may_have_any_length_that_it_had() {
    let mut ops = vec![create("a", 2), write(2, 0, b"12"), Op::Sync { ino: 2 }];
    ops.extend([Op::SyncDirectory { ino: ROOT }, write(2, 2, b"34"), write(2, 4, b"56")]);
    let mut lengths: Vec<_> =
        survivors(&disk(&ops), "a").into_iter().map(|b| b.unwrap().len()).collect();
    lengths.sort_unstable();
    lengths.dedup();
    assert_eq!(lengths, [2, 4, 6]);
}

#[test]
fn a_rename_happened_or_did_not() {
    let mut ops = vec![create("old", 2), create("new", 3), Op::SyncDirectory { ino: ROOT }];
    ops.push(Op::Rename { from: place("new"), to: place("old") });
    let disk = disk(&ops);
    let mut rng = Rng::new(1);
    let mut seen = [false; 2];
    for _ in 0..200 {
        let image = disk.survivor(&Luck::scattered(), &mut rng);
        match (image.lookup(ROOT, "old"), image.lookup(ROOT, "new")) {
            (Some(2), Some(3)) => seen[0] = true,
            (Some(3), None) => seen[1] = true,
            other => panic!("half a rename: {other:?}"),
        }
    }
    assert_eq!(seen, [true, true]);
}

#[test]
fn changes_of_one_name_keep_their_order_and_syncing_one_directory_takes_a_rename_along() {
    let sub = Op::Create { place: place("sub"), ino: 9, node: Node::Directory(Default::default()) };
    let inside = Place { dir: 9, name: "x".into() };
    let mut ops = vec![sub, create("a", 2)];
    ops.push(Op::Rename { from: place("a"), to: inside });
    let mut disk = disk(&ops);
    let mut rng = Rng::new(3);
    for _ in 0..200 {
        let image = disk.survivor(&Luck::scattered(), &mut rng);
        let there = image.lookup(9, "x").is_some();
        assert!(!(there && image.lookup(ROOT, "a").is_some()), "one file under two names");
    }
    disk.advance(&Op::SyncDirectory { ino: ROOT });
    let image = disk.survivor(&Luck::none(), &mut rng);
    assert_eq!((image.lookup(ROOT, "a"), image.lookup(9, "x")), (None, Some(2)));
}

/// The canary: with a wrong rule the same harness must fail.
fn a_mistake_is_found(mistake: Mistake) {
    let seed = chaos::seed("canary");
    match run(Model::Subset, &Options { states: 300, seed }, Some(mistake)) {
        Outcome::Ran { passed, failures } => {
            assert!(!failures.is_empty(), "{passed} states passed with {mistake:?}");
            eprintln!("{mistake:?}: {} failures, the first: {}", failures.len(), failures[0]);
        }
        Outcome::Skipped { missing } => skip("the recorder's canary", missing),
    }
}

#[test]
fn a_disk_that_forgets_synced_files_is_found_out() {
    a_mistake_is_found(Mistake::FileSyncIgnored);
}

#[test]
fn a_disk_that_forgets_synced_directories_is_found_out() {
    a_mistake_is_found(Mistake::DirectorySyncIgnored);
}
