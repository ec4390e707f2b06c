//! Reads through the trait: every kind of view gives what its own methods give.

use std::collections::BTreeMap;
use std::ops::Bound;

use esker::{
    ErrorKind, Keyspace, Partition, PartitionOptions, Readable, Slice, TxKeyspace, TxKind,
};
use esker_tests::chaos;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn owned((key, value): (Slice, Slice)) -> (Vec<u8>, Vec<u8>) {
    (key.to_vec(), value.to_vec())
}

/// Every method of the trait against a map.
fn agree(view: &impl Readable, p: &Partition, model: &Model, what: &str) {
    let all: Vec<_> = model.clone().into_iter().collect();
    for key in ["a", "b", "c", "d", "e", "missing"] {
        let expected = model.get(key.as_bytes());
        assert_eq!(
            view.get(p, key).unwrap().map(|v| v.to_vec()).as_ref(),
            expected,
            "{what} {key}"
        );
        assert_eq!(view.contains_key(p, key).unwrap(), expected.is_some(), "{what} {key}");
        let size = expected.map(|value| value.len() as u32);
        assert_eq!(view.size_of(p, key).unwrap(), size, "{what} {key}");
    }
    let several = view.multi_get(p, &["c", "missing", "a"]).unwrap();
    let expected = ["c", "missing", "a"].map(|key| model.get(key.as_bytes()).cloned());
    assert!(several.iter().map(|v| v.as_ref().map(|v| v.to_vec())).eq(expected), "{what}");
    let entries = view.iter(p).unwrap().map(|entry| owned(entry.unwrap()));
    assert!(entries.eq(all.iter().cloned()), "{what}");
    let back = view.iter(p).unwrap().rev().map(|entry| owned(entry.unwrap()));
    assert!(back.eq(all.iter().rev().cloned()), "{what}");
    let keys = view.iter(p).unwrap().keys().map(|key| key.unwrap().to_vec());
    assert!(keys.eq(model.keys().cloned()), "{what}");
    let range = view.range(p, "b"..="d").unwrap().map(|entry| owned(entry.unwrap()));
    let bounds = (Bound::Included(b"b".to_vec()), Bound::Included(b"d".to_vec()));
    let expected = model.range(bounds).map(|(k, v)| (k.clone(), v.clone()));
    assert!(range.eq(expected), "{what}");
    let prefix = view.prefix(p, "b").unwrap().map(|entry| owned(entry.unwrap()));
    assert!(prefix.eq(all.iter().filter(|(key, _)| key[0] == b'b').cloned()), "{what}");
    assert_eq!(view.first_key_value(p).unwrap().map(owned), all.first().cloned(), "{what}");
    assert_eq!(view.last_key_value(p).unwrap().map(owned), all.last().cloned(), "{what}");
    assert_eq!(view.len(p).unwrap(), all.len(), "{what}");
    assert_eq!(view.is_empty(p).unwrap(), all.is_empty(), "{what}");
}

fn model(entries: &[(&str, &str)]) -> Model {
    entries.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())).collect()
}

#[test]
fn every_view_reads_its_own_state_by_the_same_methods() {
    for kind in [TxKind::SingleWriter, TxKind::Optimistic] {
        let dir = chaos::memory_dir();
        let keyspace = TxKeyspace::open(dir.path().join("db"), kind).unwrap();
        let options = PartitionOptions::default().separate_values_from(Some(100));
        let p = keyspace.partition("p", options).unwrap();
        let before = keyspace.snapshot();
        for (key, value) in [("a", "1"), ("b", "22"), ("c", "333")] {
            p.insert(key, value).unwrap();
        }
        keyspace.flush().unwrap();
        let mut tx = keyspace.write_tx().unwrap();
        tx.remove(&p, "a").unwrap();
        tx.insert(&p, "b", "own").unwrap();
        tx.insert(&p, "e", "x".repeat(200)).unwrap();
        tx.remove(&p, "never there").unwrap();
        let newest = model(&[("a", "1"), ("b", "22"), ("c", "333")]);
        let long = "x".repeat(200);
        agree(&before, &p, &Model::new(), "a snapshot");
        agree(&tx, &p, &model(&[("b", "own"), ("c", "333"), ("e", &long)]), "a transaction");
        agree(&keyspace, &p, &newest, "a keyspace with transactions");
        agree(&*keyspace as &Keyspace, &p, &newest, "a keyspace");
        tx.commit().unwrap();
        agree(&keyspace, &p, &model(&[("b", "own"), ("c", "333"), ("e", &long)]), "committed");
        agree(&before, &p, &Model::new(), "a snapshot, later");
    }
}

#[test]
fn a_view_refuses_a_partition_of_another_keyspace() {
    let dir = chaos::memory_dir();
    let open = |name: &str| TxKeyspace::open(dir.path().join(name), TxKind::Optimistic).unwrap();
    let (one, two) = (open("one"), open("two"));
    let foreign = two.partition("p", PartitionOptions::default()).unwrap();
    fn refused(view: &impl Readable, foreign: &Partition) {
        let errors = [
            view.get(foreign, "k").unwrap_err(),
            view.multi_get(foreign, &["k"]).unwrap_err(),
            view.contains_key(foreign, "k").unwrap_err(),
            view.size_of(foreign, "k").unwrap_err(),
            view.iter(foreign).unwrap_err(),
            view.range(foreign, "k"..).unwrap_err(),
            view.prefix(foreign, "k").unwrap_err(),
            view.first_key_value(foreign).unwrap_err(),
            view.last_key_value(foreign).unwrap_err(),
            view.len(foreign).unwrap_err(),
            view.is_empty(foreign).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::FixInput, "{error}");
            assert!(error.to_string().contains("belongs to another keyspace"), "{error}");
        }
    }
    refused(&one.snapshot(), &foreign);
    refused(&one.write_tx().unwrap(), &foreign);
    refused(&one, &foreign);
    refused(&*one as &Keyspace, &foreign);
}
