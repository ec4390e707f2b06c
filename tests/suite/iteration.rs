//! Ranges, prefixes and both ends of iterators.

use std::collections::BTreeMap;
use std::ops::Bound;

use esker::{Iter, Partition, PartitionOptions, Readable, TxKeyspace, TxKind, TxPartition};
use esker_tests::{Seeded, Store};

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

fn collect(iter: Iter) -> Entries {
    iter.map(|e| e.unwrap()).map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
}

fn keys(iter: Iter) -> Vec<String> {
    iter.keys().map(|k| String::from_utf8(k.unwrap().to_vec()).unwrap()).collect()
}

/// a..=e, some in tables, some in memory, with a removed and an overwritten one.
fn letters(store: &Store) -> Partition {
    let p = store.partition("p");
    for key in ["a", "b", "b2", "c"] {
        p.insert(key, "old").unwrap();
    }
    store.keyspace().flush().unwrap();
    for key in ["c", "d", "e"] {
        p.insert(key, "new").unwrap();
    }
    p.remove("b2").unwrap();
    p
}

#[test]
fn ranges_include_and_exclude_their_bounds() {
    let store = Store::new();
    let p = letters(&store);
    let range = |from: Bound<&str>, to: Bound<&str>| keys(p.range::<&str, _>((from, to)).unwrap());
    use Bound::{Excluded, Included, Unbounded};
    assert_eq!(range(Included("b"), Included("d")), ["b", "c", "d"]);
    assert_eq!(range(Included("b"), Excluded("d")), ["b", "c"]);
    assert_eq!(range(Excluded("b"), Included("d")), ["c", "d"]);
    assert_eq!(range(Excluded("b"), Excluded("d")), ["c"]);
    assert_eq!(range(Unbounded, Excluded("c")), ["a", "b"]);
    assert_eq!(range(Excluded("c"), Unbounded), ["d", "e"]);
    assert_eq!(range(Unbounded, Unbounded), ["a", "b", "c", "d", "e"]);
    assert_eq!(range(Included("bb"), Included("cc")), ["c"], "bounds need not exist");
    assert_eq!(range(Included("c"), Included("c")), ["c"]);
    assert_eq!(keys(p.range("b"..).unwrap()), ["b", "c", "d", "e"]);
    assert_eq!(keys(p.range(..="b").unwrap()), ["a", "b"]);
}

#[test]
fn a_range_that_ends_before_it_starts_is_empty() {
    let store = Store::new();
    let p = letters(&store);
    use Bound::{Excluded, Included};
    let snapshot = store.keyspace().snapshot();
    for (from, to) in [
        (Included("d"), Included("b")),
        (Included("d"), Excluded("b")),
        (Excluded("d"), Excluded("b")),
        (Excluded("c"), Excluded("c")),
        (Included("c"), Excluded("c")),
        (Excluded("c"), Included("c")),
        (Included("x"), Included("z")),
    ] {
        assert!(keys(p.range::<&str, _>((from, to)).unwrap()).is_empty(), "{from:?} {to:?}");
        assert!(p.range::<&str, _>((from, to)).unwrap().next_back().is_none(), "{from:?} {to:?}");
        assert!(
            keys(snapshot.range::<&str, _>(&p, (from, to)).unwrap()).is_empty(),
            "{from:?} {to:?}"
        );
    }
}

#[test]
fn prefixes_at_the_end_of_the_byte_order_find_everything() {
    let store = Store::new();
    let p = store.partition("p");
    let all: [&[u8]; 6] =
        [b"\xfe", b"\xfe\xff", b"\xff", b"\xff\x00", b"\xff\xff", b"\xff\xff\xff"];
    for key in all {
        p.insert(key, "v").unwrap();
    }
    for flushed in [false, true] {
        if flushed {
            store.keyspace().flush().unwrap();
        }
        let under = |prefix: &[u8]| -> Vec<Vec<u8>> {
            p.prefix(prefix).unwrap().keys().map(|k| k.unwrap().to_vec()).collect()
        };
        assert_eq!(under(b"\xff"), all[2..]);
        assert_eq!(under(b"\xff\xff"), all[4..]);
        assert_eq!(under(b"\xff\xff\xff\xff"), Vec::<Vec<u8>>::new());
        assert_eq!(under(b"\xfe"), all[..2]);
        assert_eq!(under(b"\xfe\xff"), all[1..2]);
        assert_eq!(under(b""), all);
        let back: Vec<_> =
            p.prefix(b"\xff").unwrap().rev().map(|e| e.unwrap().0.to_vec()).collect();
        assert_eq!(back, all[2..].iter().rev().map(|k| k.to_vec()).collect::<Vec<_>>());
    }
}

#[test]
fn both_ends_meet_in_the_middle_and_stay_there() {
    let store = Store::new();
    let p = letters(&store);
    let key = |entry: Option<esker::Result<(esker::Slice, esker::Slice)>>| {
        entry.map(|e| String::from_utf8(e.unwrap().0.to_vec()).unwrap())
    };
    let mut iter = p.iter().unwrap();
    assert_eq!(key(iter.next()).as_deref(), Some("a"));
    assert_eq!(key(iter.next_back()).as_deref(), Some("e"));
    assert_eq!(key(iter.next_back()).as_deref(), Some("d"));
    assert_eq!(key(iter.next()).as_deref(), Some("b"));
    assert_eq!(key(iter.next()).as_deref(), Some("c"));
    for _ in 0..2 {
        assert!(iter.next().is_none());
        assert!(iter.next_back().is_none());
    }
    let mut keys = p.iter().unwrap().keys();
    assert_eq!(keys.next_back().unwrap().unwrap()[..], *b"e");
    assert_eq!(keys.next().unwrap().unwrap()[..], *b"a");
    assert_eq!(keys.by_ref().count(), 3);
    assert!(keys.next_back().is_none());
}

#[test]
fn an_iterator_sees_the_moment_it_was_made() {
    let store = Store::new();
    let p = letters(&store);
    let mut iter = p.iter().unwrap();
    assert_eq!(iter.next().unwrap().unwrap().0[..], *b"a");
    p.insert("b1", "late").unwrap();
    p.insert("c", "late").unwrap();
    p.remove("d").unwrap();
    store.keyspace().flush().unwrap();
    p.compact().unwrap();
    p.clear().unwrap();
    let rest: Vec<_> = collect(iter);
    let expected = [("b", "old"), ("c", "new"), ("d", "new"), ("e", "new")];
    assert_eq!(rest, expected.map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())));
}

#[test]
fn the_same_comes_from_both_ends_for_any_range() {
    let mut random = Seeded::new("the_same_comes_from_both_ends_for_any_range");
    for separate in [None, Some(20)] {
        let store = Store::with(|config| config.memtable_bytes(2048));
        let options = PartitionOptions::default().block_bytes(256).separate_values_from(separate);
        let p = store.partition_with("p", options);
        let mut model = BTreeMap::new();
        for _ in 0..1_000 {
            let len = 1 + random.below(3) as usize;
            let key: Vec<u8> = (0..len).map(|_| *random.pick(b"\x00ab\xff")).collect();
            if random.one_in(4) {
                p.remove(&key[..]).unwrap();
                model.remove(&key);
            } else {
                let len = random.below(40) as usize;
                let value = random.bytes(len);
                p.insert(&key[..], &value[..]).unwrap();
                model.insert(key, value);
            }
        }
        for _ in 0..300 {
            let mut bound = || {
                let len = random.below(4) as usize;
                let key: Vec<u8> = (0..len).map(|_| *random.pick(b"\x00ab\xff")).collect();
                match random.below(3) {
                    0 => Bound::Included(key),
                    1 => Bound::Excluded(key),
                    _ => Bound::Unbounded,
                }
            };
            let range = (bound(), bound());
            let expected: Entries = model
                .iter()
                .filter(|(k, _)| std::ops::RangeBounds::contains(&range, *k))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            assert_eq!(collect(p.range(range.clone()).unwrap()), expected, "{range:?}");
            let mut back: Entries = p
                .range(range.clone())
                .unwrap()
                .rev()
                .map(|e| e.unwrap())
                .map(|(k, v)| (k.to_vec(), v.to_vec()))
                .collect();
            back.reverse();
            assert_eq!(back, expected, "{range:?} from the back");
            let (mut front, mut end, mut iter) = (Vec::new(), Vec::new(), p.range(range).unwrap());
            loop {
                let from_front = random.one_in(2);
                let next = if from_front { iter.next() } else { iter.next_back() };
                let Some(next) = next else { break };
                let key = next.unwrap().0.to_vec();
                if from_front { front.push(key) } else { end.push(key) }
            }
            front.extend(end.into_iter().rev());
            let expected: Vec<_> = expected.into_iter().map(|(k, _)| k).collect();
            assert_eq!(front, expected, "from both ends");
        }
    }
}

#[test]
fn keys_alone_are_the_keys_of_the_entries_with_separated_values_too() {
    let mut store = Store::new();
    let options = PartitionOptions::default().separate_values_from(Some(100));
    let p = store.partition_with("p", options);
    for number in 0..200u32 {
        let len = if number % 2 == 0 { 10 } else { 1_000 };
        p.insert(format!("{number:04}"), vec![number as u8; len]).unwrap();
    }
    for round in ["in memory", "flushed", "compacted", "reopened"] {
        let p = store.partition("p");
        let keys: Vec<_> = p.iter().unwrap().keys().map(|k| k.unwrap().to_vec()).collect();
        let entries = collect(p.iter().unwrap());
        assert_eq!(entries.len(), 200, "{round}");
        assert_eq!(keys, entries.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>(), "{round}");
        for (number, (_, value)) in entries.iter().enumerate() {
            let len = if number % 2 == 0 { 10 } else { 1_000 };
            assert_eq!(*value, vec![number as u8; len], "{round}");
            let size = p.size_of(format!("{number:04}")).unwrap();
            assert_eq!(size, Some(len as u32), "{round}");
        }
        match round {
            "in memory" => store.keyspace().flush().unwrap(),
            "flushed" => p.compact().unwrap(),
            _ => {
                drop(p);
                store.reopen();
            }
        }
    }
    let statistics = store.keyspace().statistics();
    assert!(statistics.partitions[0].blob_files > 0, "large values are separated");
}

#[test]
fn walks_from_both_ends_through_small_and_separated_values_meet() {
    let store = Store::new();
    let p = store.partition_with("p", PartitionOptions::default().separate_values_from(Some(100)));
    let mut expected = Entries::new();
    for number in 0..300u32 {
        let key = format!("{number:04}").into_bytes();
        let len = if number % 7 < 3 { 200 } else { 5 };
        for round in 0..2u8 {
            p.insert(&key[..], vec![round; len]).unwrap();
            if number % 50 == 0 {
                store.keyspace().flush().unwrap();
            }
        }
        expected.push((key, vec![1; len]));
    }
    store.keyspace().flush().unwrap();
    let iterators = [p.iter().unwrap(), p.range("0000".."9").unwrap(), p.prefix("0").unwrap()];
    // What the iterators see goes meanwhile.
    for (key, _) in &expected {
        p.insert(&key[..], vec![9; 300]).unwrap();
    }
    p.compact().unwrap();
    for (turn, mut iter) in iterators.into_iter().enumerate() {
        let (mut front, mut back) = (Entries::new(), Entries::new());
        let mut step = 0;
        loop {
            let at_front = step % (turn + 2) < turn + 1;
            let next = if at_front { iter.next() } else { iter.next_back() };
            let Some(entry) = next else { break };
            let (key, value) = entry.unwrap();
            let to = if at_front { &mut front } else { &mut back };
            to.push((key.to_vec(), value.to_vec()));
            step += 1;
        }
        back.reverse();
        assert!([front, back].concat() == expected, "turn {turn}");
    }
}

#[test]
fn separated_values_that_were_overwritten_or_removed_go_with_compaction() {
    let store = Store::new();
    let options = PartitionOptions::default().separate_values_from(Some(100)).table_bytes(64 << 10);
    let p = store.partition_with("p", options);
    let mut model = BTreeMap::new();
    for round in 0..8u8 {
        for number in 0..100u32 {
            let key = format!("{number:04}").into_bytes();
            if number % 10 == u32::from(round) {
                p.remove(&key[..]).unwrap();
                model.remove(&key);
            } else {
                let mut value = vec![round; 2_000];
                value[..4].copy_from_slice(&number.to_le_bytes());
                p.insert(&key[..], &value[..]).unwrap();
                model.insert(key, value);
            }
        }
        store.keyspace().flush().unwrap();
        p.compact().unwrap();
        let expected: Entries = model.clone().into_iter().collect();
        assert!(collect(p.iter().unwrap()) == expected, "round {round}");
    }
}

/// Only what borrows nothing can be returned from here.
fn iterators_of_all_kinds(keyspace: &TxKeyspace, p: &TxPartition) -> Vec<(&'static str, Iter)> {
    let snapshot = keyspace.snapshot();
    let mut tx = keyspace.write_tx().unwrap();
    tx.insert(p, "b", "own").unwrap();
    tx.remove(p, "c").unwrap();
    vec![
        ("newest", p.iter().unwrap()),
        ("snapshot", snapshot.range(p, "a"..="d").unwrap()),
        ("transaction", tx.iter(p).unwrap()),
    ]
}

#[test]
fn iterators_outlive_what_they_came_from_and_whatever_happens_to_it() {
    fn is_static<T: Send + 'static>(_: &T) {}
    let dir = tempfile::tempdir().unwrap();
    let keyspace = TxKeyspace::open(dir.path().join("db"), TxKind::Optimistic).unwrap();
    let options = PartitionOptions::default().separate_values_from(Some(100));
    let p = keyspace.partition("p", options).unwrap();
    let long = "v".repeat(300);
    for key in ["a", "b", "c", "d"] {
        p.insert(key, long.clone()).unwrap();
    }
    keyspace.flush().unwrap();
    let iterators = iterators_of_all_kinds(&keyspace, &p);
    // Whatever they see is overwritten, merged away, cleared, dropped and closed.
    p.insert("a", "new").unwrap();
    p.remove("d").unwrap();
    p.compact().unwrap();
    p.clear().unwrap();
    keyspace.drop_partition("p").unwrap();
    drop(p);
    keyspace.close().unwrap();
    let plain = [("a", &*long), ("b", &long), ("c", &long), ("d", &long)];
    let own = [("a", &*long), ("b", "own"), ("d", &long)];
    let threads = iterators.into_iter().map(|(what, iter)| {
        is_static(&iter);
        let expected = if what == "transaction" { own.to_vec() } else { plain.to_vec() };
        let expected: Entries =
            expected.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
        std::thread::spawn(move || assert!(collect(iter) == expected, "{what}"))
    });
    threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_range_begins_where_it_is_asked_to_from_either_end() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = TxKeyspace::open(dir.path().join("db"), TxKind::SingleWriter).unwrap();
    let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
    for number in (0..1000).step_by(10) {
        p.insert(format!("{number:03}"), "").unwrap();
        if number == 500 {
            keyspace.flush().unwrap();
        }
    }
    let mut tx = keyspace.write_tx().unwrap();
    tx.remove(&p, "500").unwrap();
    tx.insert(&p, "505", "").unwrap();
    fn seek(view: &impl Readable, p: &Partition, key: &str) -> [Option<String>; 4] {
        let text = |key: Option<esker::Result<esker::Slice>>| {
            key.map(|key| String::from_utf8(key.unwrap().to_vec()).unwrap())
        };
        let after = (Bound::Excluded(key), Bound::Unbounded);
        [
            text(view.range(p, key..).unwrap().keys().next()),
            text(view.range::<&str, _>(p, after).unwrap().keys().next()),
            text(view.range(p, ..key).unwrap().keys().next_back()),
            text(view.range(p, ..=key).unwrap().keys().next_back()),
        ]
    }
    let some = |keys: [&str; 4]| keys.map(|key| (!key.is_empty()).then(|| key.to_owned()));
    let snapshot = keyspace.snapshot();
    // At or after, after, before, at or before.
    assert_eq!(seek(&snapshot, &p, "495"), some(["500", "500", "490", "490"]));
    assert_eq!(seek(&snapshot, &p, "500"), some(["500", "510", "490", "500"]));
    assert_eq!(seek(&tx, &p, "495"), some(["505", "505", "490", "490"]));
    assert_eq!(seek(&tx, &p, "505"), some(["505", "510", "490", "505"]));
    assert_eq!(seek(&tx, &p, "500"), some(["505", "505", "490", "490"]));
    assert_eq!(seek(&snapshot, &p, "000"), some(["000", "010", "", "000"]));
    assert_eq!(seek(&snapshot, &p, "9999"), some(["", "", "990", "990"]));
    assert_eq!(seek(&snapshot, &p, ""), some(["000", "000", "", ""]));
}

#[test]
fn the_keys_of_a_transaction_are_those_of_its_entries_from_both_ends() {
    let mut random = Seeded::new("the_keys_of_a_transaction");
    let dir = tempfile::tempdir().unwrap();
    let keyspace = TxKeyspace::open(dir.path().join("db"), TxKind::Optimistic).unwrap();
    let options = PartitionOptions::default().separate_values_from(Some(20));
    let p = keyspace.partition("p", options).unwrap();
    for _ in 0..50 {
        let mut tx = keyspace.write_tx().unwrap();
        for _ in 0..random.below(20) {
            let key = [random.below(30) as u8];
            if random.one_in(3) {
                tx.remove(&p, key).unwrap();
            } else {
                let len = random.below(40) as usize;
                tx.insert(&p, key, random.bytes(len)).unwrap();
            }
        }
        let expected: Vec<_> = tx.iter(&p).unwrap().map(|entry| entry.unwrap().0).collect();
        let (mut front, mut back) = (Vec::new(), Vec::new());
        // Some of the first are read as entries.
        let mut entries = tx.iter(&p).unwrap();
        for _ in 0..random.below(3) {
            front.extend(entries.next().map(|entry| entry.unwrap().0));
        }
        let mut keys = entries.keys();
        loop {
            let from_front = random.one_in(2);
            let key = if from_front { keys.next() } else { keys.next_back() };
            let Some(key) = key else { break };
            if from_front { front.push(key.unwrap()) } else { back.push(key.unwrap()) }
        }
        front.extend(back.into_iter().rev());
        assert_eq!(front, expected);
        assert_eq!(tx.len(&p).unwrap(), expected.len());
        tx.commit().unwrap();
        if random.one_in(5) {
            keyspace.flush().unwrap();
        }
    }
}
