//! Typed partitions: what goes in comes out, in order, through every kind of view; what is of another
//! type is an error that says where.

use std::collections::BTreeMap;
use std::ops::Bound;

use esker::{Error, ErrorKind, PartitionOptions, TxKeyspace, TxKind, TypedPartition};
use esker_tests::{Seeded, chaos};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct User {
    name: String,
    born: u16,
    tags: Vec<String>,
}

fn user(name: &str, born: u16) -> User {
    User { name: name.into(), born, tags: vec!["a".into(), String::new()] }
}

fn open(dir: &std::path::Path) -> TxKeyspace {
    TxKeyspace::open(dir.join("db"), TxKind::Optimistic).unwrap()
}

fn typed<K: esker::Key, V: Serialize + serde::de::DeserializeOwned>(
    keyspace: &TxKeyspace,
    name: &str,
) -> TypedPartition<K, V> {
    keyspace.partition(name, PartitionOptions::default()).unwrap().typed()
}

#[test]
fn entries_are_those_of_a_map_in_its_order_also_after_reopening() {
    let mut random = Seeded::new("typed_entries");
    let dir = chaos::memory_dir();
    let mut model: BTreeMap<(i32, String), Vec<u64>> = BTreeMap::new();
    for _ in 0..3 {
        let keyspace = open(dir.path());
        let p = typed::<(i32, String), Vec<u64>>(&keyspace, "p");
        for _ in 0..300 {
            let number = random.below(9) as i32 - 4;
            let text: String = (0..random.below(4))
                .map(|_| *random.pick(&['\0', 'a', 'ä', '\u{10ffff}']))
                .collect();
            if random.one_in(4) {
                p.remove((number, &*text)).unwrap();
                model.remove(&(number, text));
            } else {
                let value = (0..random.below(4)).map(|_| random.below(1 << 40)).collect::<Vec<_>>();
                p.insert((number, &text), &value).unwrap();
                model.insert((number, text), value);
            }
        }
        let all: Vec<_> = model.clone().into_iter().collect();
        let found: Vec<_> = p.iter().unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(found, all);
        let keys: Vec<_> = p.iter().unwrap().keys().rev().map(|key| key.unwrap()).collect();
        assert!(keys.iter().eq(model.keys().rev()));
        for number in -5..5 {
            let of: Vec<_> = p.prefix((number,)).unwrap().map(|entry| entry.unwrap()).collect();
            assert!(of.iter().eq(all.iter().filter(|((n, _), _)| *n == number)), "{number}");
            let (from, to) = ((number, "a"), (number + 2, "ä"));
            let range: Vec<_> =
                p.range(from..=to).unwrap().rev().map(|entry| entry.unwrap().0).collect();
            let owned = |(number, text): (i32, &str)| Bound::Included((number, text.to_owned()));
            let expected = model.range((owned(from), owned(to))).rev().map(|(key, _)| key);
            assert!(range.iter().eq(expected), "{number}");
        }
        for (key, value) in &all {
            assert_eq!(p.get(key).unwrap().as_ref(), Some(value));
            assert!(p.contains_key((key.0, key.1.as_str())).unwrap());
        }
        keyspace.close().unwrap();
    }
}

#[test]
fn views_batches_and_transactions_are_typed_too() {
    let dir = chaos::memory_dir();
    let keyspace = open(dir.path());
    let users = typed::<u64, User>(&keyspace, "users");
    let names = typed::<String, u64>(&keyspace, "names");
    let mut batch = keyspace.batch();
    users.insert_in(&mut batch, 7, &user("Ada", 1815)).unwrap();
    names.insert_in(&mut batch, "Ada", &7).unwrap();
    names.insert_in(&mut batch, "Nobody", &0).unwrap();
    names.remove_in(&mut batch, "Nobody").unwrap();
    batch.commit().unwrap();
    let snapshot = keyspace.snapshot();

    keyspace
        .transact(|tx| {
            let id = names.at(tx).get("Ada")?.unwrap();
            users.update_in(tx, id, |user| user.map(|user| User { born: 1816, ..user }))?;
            users.insert_in(tx, 8, &user("Grace", 1906))?;
            users.update_in(tx, 9, |none| none)?;
            names.insert_in(tx, String::from("Grace"), &8)?;
            names.remove_in(tx, "Ada")?;
            let view = users.at(tx);
            assert_eq!(view.multi_get(&[8, 9])?, [Some(user("Grace", 1906)), None]);
            assert_eq!((view.len()?, view.is_empty()?), (2, false));
            assert_eq!(view.last_key_value()?, Some((8, user("Grace", 1906))));
            assert_eq!(names.at(tx).iter()?.keys().collect::<Result<Vec<_>, _>>()?, ["Grace"]);
            assert!(!users.contains_key(8)?, "not committed yet");
            Ok(())
        })
        .unwrap();
    assert_eq!(users.get(7).unwrap(), Some(user("Ada", 1816)));
    assert_eq!(users.at(&snapshot).get(7).unwrap(), Some(user("Ada", 1815)));
    assert_eq!(users.at(&snapshot).first_key_value().unwrap(), Some((7, user("Ada", 1815))));
    assert_eq!(users.at(&*keyspace).len().unwrap(), 2);
    assert_eq!(names.prefix("Gr").unwrap().count(), 1);
    assert_eq!(names.clone().partition().len().unwrap(), 1);

    // What a transaction reads by its types is noted.
    let mut tx = keyspace.write_tx().unwrap();
    users.update_in(&mut tx, 7, |_| None).unwrap();
    users.insert(7, &user("Ada", 1817)).unwrap();
    assert!(matches!(tx.commit().unwrap_err(), Error::Conflict));
}

#[test]
fn what_is_of_another_type_is_an_error_that_names_partition_and_key() {
    let dir = chaos::memory_dir();
    let keyspace = open(dir.path());
    let users = typed::<u64, User>(&keyspace, "users");
    users.insert(1, &user("Ada", 1815)).unwrap();
    users.insert(3, &user("Grace", 1906)).unwrap();
    let bytes = users.partition();
    bytes.insert(2_u64.to_be_bytes(), [0xFF; 3]).unwrap();
    let check = |error: Error, part: &str, texts: &[&str]| {
        assert_eq!(error.kind(), ErrorKind::FixInput, "{error}");
        let text = error.to_string();
        assert!(texts.iter().all(|part| text.contains(part)), "{text}");
        let Error::Undecodable(what) = error else { panic!("{text}") };
        assert_eq!((what.partition.as_str(), what.part), ("users", part));
    };
    let value = ["value", "\\x00\\x02\"", "\"users\"", "User"];
    check(users.get(2).unwrap_err(), "value", &value);
    check(users.at(&*keyspace).multi_get(&[1, 2]).unwrap_err(), "value", &value);
    let mut tx = keyspace.write_tx().unwrap();
    let update = users.update_in(&mut tx, 2, |_| panic!("there is no value"));
    check(update.unwrap_err(), "value", &value);
    // The others are there, and keys need no values.
    let entries: Vec<_> = users.iter().unwrap().collect();
    assert_eq!(entries.iter().filter(|entry| entry.is_ok()).count(), 2);
    let keys = users.iter().unwrap().keys().map(|key| key.unwrap());
    assert!(keys.eq([1, 2, 3]));

    // Keys of another length; one more field than there are bytes; bytes that are left.
    bytes.insert("short", "").unwrap();
    let last = users.at(&*keyspace).last_key_value().unwrap_err();
    check(last, "key", &["key of the entry \"short\"", "u64"]);
    bytes.insert(vec![b'k'; 5000], "").unwrap();
    let long = users.iter().unwrap().keys().filter_map(Result::err).next().unwrap();
    let text = long.to_string();
    assert!(
        text.contains("it is longer") && text.contains("(5000 bytes)") && text.len() < 400,
        "{text}"
    );
    let tuples = bytes.typed::<u64, (String, u16)>();
    check(tuples.get(1).unwrap_err(), "value", &["4 bytes are left over"]);
    let longer = bytes.typed::<u64, (User, u64)>();
    check(longer.get(1).unwrap_err(), "value", &["typed::User, u64)"]);
}

/// A type that postcard cannot write: the length is not known beforehand.
#[derive(Deserialize)]
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(std::iter::from_fn(|| Some(1_u8)).take_while(|_| true))
    }
}

#[test]
fn what_cannot_be_stored_is_refused_and_nothing_is_written() {
    let dir = chaos::memory_dir();
    let keyspace = open(dir.path());
    let unwritable = typed::<u64, Unwritable>(&keyspace, "p");
    let mut batch = keyspace.batch();
    for error in [
        unwritable.insert(1, &Unwritable).unwrap_err(),
        unwritable.insert_in(&mut batch, 1, &Unwritable).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::FixInput, "{error}");
        assert!(error.to_string().contains("\"p\""), "{error}");
    }
    assert!(batch.is_empty());
    let texts = typed::<String, u8>(&keyspace, "texts");
    let long = "k".repeat(65_536);
    for key in ["", long.as_str()] {
        assert_eq!(texts.insert(key, &1).unwrap_err().kind(), ErrorKind::FixInput);
        assert_eq!(texts.get(key).unwrap(), None, "no such key can be there");
        let mut tx = keyspace.write_tx().unwrap();
        assert_eq!(texts.insert_in(&mut tx, key, &1).unwrap_err().kind(), ErrorKind::FixInput);
        let mut batch = keyspace.batch();
        texts.insert_in(&mut batch, key, &1).unwrap();
        assert_eq!(batch.commit().unwrap_err().kind(), ErrorKind::FixInput);
    }
    assert!(texts.at(&*keyspace).is_empty().unwrap());
}

/// Versions of a value are variants: older ones are read, newer ones are refused by older programs.
#[test]
fn an_enum_takes_new_versions_at_its_end() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Old {
        V1(u16),
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum New {
        V1(u16),
        V2 { born: u16, died: Option<u16> },
    }
    let dir = chaos::memory_dir();
    let keyspace = open(dir.path());
    let old = typed::<u8, Old>(&keyspace, "p");
    let new = typed::<u8, New>(&keyspace, "p");
    old.insert(1, &Old::V1(1815)).unwrap();
    new.insert(2, &New::V2 { born: 1815, died: Some(1852) }).unwrap();
    assert_eq!(new.get(1).unwrap(), Some(New::V1(1815)));
    assert!(matches!(old.get(2).unwrap_err(), Error::Undecodable(_)));
    let borns = new.iter().unwrap().map(|entry| match entry.unwrap().1 {
        New::V1(born) | New::V2 { born, .. } => born,
    });
    assert!(borns.eq([1815, 1815]));
}

#[test]
fn typed_handles_can_be_sent_and_shared() {
    fn shareable<T: Send + Sync + Clone>() {}
    fn sendable<T: Send + 'static>() {}
    shareable::<TypedPartition<u64, User>>();
    sendable::<esker::TypedIter<u64, User>>();
    sendable::<esker::TypedKeys<u64>>();
}
