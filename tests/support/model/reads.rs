//! Every way to read a partition, of its newest state or through a snapshot, against its model.

use std::collections::VecDeque;
use std::ops::{Bound, RangeBounds};

use esker::{Iter, Partition, Result, Slice, Snapshot, WriteTx};

use super::operation::{Edge, Key, Read};
use crate::store::Entries;

/// A key and its value, as the model has them.
pub type Pair = (Vec<u8>, Vec<u8>);
/// Two ends of a range, as bytes.
pub type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// What a partition and a snapshot of one answer alike.
pub trait Reader {
    fn get(&self, key: &[u8]) -> Result<Option<Slice>>;
    fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Slice>>>;
    fn contains_key(&self, key: &[u8]) -> Result<bool>;
    fn size_of(&self, key: &[u8]) -> Result<Option<u32>>;
    fn range(&self, bounds: Bounds) -> Result<Iter>;
    fn prefix(&self, prefix: &[u8]) -> Result<Iter>;
    fn iter(&self) -> Result<Iter>;
    fn first(&self) -> Result<Option<(Slice, Slice)>>;
    fn last(&self) -> Result<Option<(Slice, Slice)>>;
    fn len(&self) -> Result<usize>;
    fn is_empty(&self) -> Result<bool>;
}

impl Reader for Partition {
    fn get(&self, key: &[u8]) -> Result<Option<Slice>> {
        Self::get(self, key)
    }
    fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Slice>>> {
        Self::multi_get(self, keys)
    }
    fn contains_key(&self, key: &[u8]) -> Result<bool> {
        Self::contains_key(self, key)
    }
    fn size_of(&self, key: &[u8]) -> Result<Option<u32>> {
        Self::size_of(self, key)
    }
    fn range(&self, bounds: Bounds) -> Result<Iter> {
        Self::range(self, bounds)
    }
    fn prefix(&self, prefix: &[u8]) -> Result<Iter> {
        Self::prefix(self, prefix)
    }
    fn iter(&self) -> Result<Iter> {
        Self::iter(self)
    }
    fn first(&self) -> Result<Option<(Slice, Slice)>> {
        self.first_key_value()
    }
    fn last(&self) -> Result<Option<(Slice, Slice)>> {
        self.last_key_value()
    }
    fn len(&self) -> Result<usize> {
        Self::len(self)
    }
    fn is_empty(&self) -> Result<bool> {
        Self::is_empty(self)
    }
}

/// A partition as a snapshot sees it.
pub struct Seen<'a>(pub &'a Snapshot, pub &'a Partition);

impl Reader for Seen<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Slice>> {
        self.0.get(self.1, key)
    }
    fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Slice>>> {
        self.0.multi_get(self.1, keys)
    }
    fn contains_key(&self, key: &[u8]) -> Result<bool> {
        self.0.contains_key(self.1, key)
    }
    fn size_of(&self, key: &[u8]) -> Result<Option<u32>> {
        self.0.size_of(self.1, key)
    }
    fn range(&self, bounds: Bounds) -> Result<Iter> {
        self.0.range(self.1, bounds)
    }
    fn prefix(&self, prefix: &[u8]) -> Result<Iter> {
        self.0.prefix(self.1, prefix)
    }
    fn iter(&self) -> Result<Iter> {
        self.0.iter(self.1)
    }
    fn first(&self) -> Result<Option<(Slice, Slice)>> {
        self.0.first_key_value(self.1)
    }
    fn last(&self) -> Result<Option<(Slice, Slice)>> {
        self.0.last_key_value(self.1)
    }
    fn len(&self) -> Result<usize> {
        self.0.len(self.1)
    }
    fn is_empty(&self) -> Result<bool> {
        self.0.is_empty(self.1)
    }
}

/// A partition as a transaction sees it, with its own changes.
pub struct Within<'a>(pub &'a WriteTx, pub &'a Partition);

impl Reader for Within<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Slice>> {
        self.0.get(self.1, key)
    }
    fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Slice>>> {
        self.0.multi_get(self.1, keys)
    }
    fn contains_key(&self, key: &[u8]) -> Result<bool> {
        self.0.contains_key(self.1, key)
    }
    fn size_of(&self, key: &[u8]) -> Result<Option<u32>> {
        self.0.size_of(self.1, key)
    }
    fn range(&self, bounds: Bounds) -> Result<Iter> {
        self.0.range(self.1, bounds)
    }
    fn prefix(&self, prefix: &[u8]) -> Result<Iter> {
        self.0.prefix(self.1, prefix)
    }
    fn iter(&self) -> Result<Iter> {
        self.0.iter(self.1)
    }
    fn first(&self) -> Result<Option<(Slice, Slice)>> {
        self.0.first_key_value(self.1)
    }
    fn last(&self) -> Result<Option<(Slice, Slice)>> {
        self.0.last_key_value(self.1)
    }
    fn len(&self) -> Result<usize> {
        self.0.len(self.1)
    }
    fn is_empty(&self) -> Result<bool> {
        self.0.is_empty(self.1)
    }
}

/// Asks, and panics unless the answer is the model's. False when there was nothing to ask for.
pub fn check(reader: &dyn Reader, expected: &Entries, read: Read) -> bool {
    match read {
        Read::GetPresent(permille) => {
            let nth = expected.len() * usize::from(permille) / 1000;
            let Some((key, value)) = expected.iter().nth(nth) else { return false };
            let found = reader.get(key).expect("get");
            assert!(found.as_deref() == Some(&value[..]), "get of {:?}", brief(key));
        }
        Read::Get(key) => {
            let key = key.bytes();
            let found = reader.get(&key).expect("get");
            assert!(found.as_deref() == expected.get(&key).map(|v| &v[..]), "{:?}", brief(&key));
        }
        Read::Contains(key) => {
            let key = key.bytes();
            let found = reader.contains_key(&key).expect("contains_key");
            assert_eq!(found, expected.contains_key(&key), "{:?} is there", brief(&key));
        }
        Read::SizeOf(key) => {
            let key = key.bytes();
            let found = reader.size_of(&key).expect("size_of");
            assert_eq!(found, expected.get(&key).map(|v| v.len() as u32), "{:?}", brief(&key));
        }
        Read::Several(keys) => {
            let [first, second, third] = keys.map(Key::bytes);
            let keys = [first.clone(), second, third, first];
            let found = reader.multi_get(&keys).expect("multi_get");
            let wanted = keys.iter().map(|key| expected.get(key).map(Vec::as_slice));
            assert!(
                found.iter().map(Option::as_deref).eq(wanted),
                "several: {:?}",
                keys.map(|k| brief(&k))
            );
        }
        Read::Ends => ends(reader, expected),
        Read::Count => {
            assert_eq!(reader.len().expect("len"), expected.len(), "len");
            assert_eq!(reader.is_empty().expect("is_empty"), expected.is_empty(), "is_empty");
        }
        Read::Forward => same(reader.iter().expect("iter").map(owned), all(expected)),
        Read::Backward => same(reader.iter().expect("iter").rev().map(owned), back(all(expected))),
        Read::Range(from, to) => {
            let found = reader.range(bounds(from, to)).expect("range").map(owned);
            same(found, within(expected, &bounds(from, to)));
        }
        Read::RangeBackward(from, to) => {
            let found = reader.range(bounds(from, to)).expect("range").rev().map(owned);
            same(found, back(within(expected, &bounds(from, to))));
        }
        Read::RangeInverted(a, b) => {
            let (a, b) = (a.bytes().max(b.bytes()), a.bytes().min(b.bytes()));
            let inverted = (Bound::Excluded(a), Bound::Excluded(b));
            let found = reader.range(inverted).expect("range");
            assert_eq!(found.count(), 0, "a range that ends before it starts is empty");
        }
        Read::Keys(from, to) => keys(reader, expected, &bounds(from, to)),
        Read::Prefix(key, len) => {
            let mut key = key.bytes();
            key.truncate(usize::from(len));
            prefix(reader, expected, &key);
        }
        Read::PrefixOfFf(len) => prefix(reader, expected, &vec![0xff; usize::from(len)]),
        Read::BothEnds(pattern) => {
            let mut left: VecDeque<_> = all(expected).collect();
            let mut iter = reader.iter().expect("iter");
            // The pattern comes again, so one beyond the end is asked for from each side.
            take_from_both(&mut iter, &mut left, expected.len() + 2, pattern);
            assert!(left.is_empty(), "{} entries were not met", left.len());
        }
    }
    true
}

/// Takes so many entries from the ends that the bits of `pattern` name; behind the end there is
/// nothing, however often it is asked.
pub fn take_from_both(iter: &mut Iter, left: &mut VecDeque<Pair>, steps: usize, pattern: u16) {
    for step in 0..steps {
        let from_back = pattern >> (step % 16) & 1 == 1;
        let found = if from_back { iter.next_back() } else { iter.next() };
        let expected = if from_back { left.pop_back() } else { left.pop_front() };
        let found = found.map(owned);
        let name = |pair: &Option<Pair>| pair.as_ref().map(|(key, _)| brief(key));
        let names = (name(&found), name(&expected));
        assert!(found == expected, "step {step} from both ends: (found, expected) {names:?}");
    }
}

fn ends(reader: &dyn Reader, expected: &Entries) {
    let owned = |(key, value): (Slice, Slice)| (key.to_vec(), value.to_vec());
    let clone = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), value.clone());
    let first = reader.first().expect("first").map(owned);
    assert!(first == expected.first_key_value().map(clone), "the first entry");
    let last = reader.last().expect("last").map(owned);
    assert!(last == expected.last_key_value().map(clone), "the last entry");
}

fn keys(reader: &dyn Reader, expected: &Entries, bounds: &Bounds) {
    let expected: Vec<_> = within(expected, bounds).map(|(key, _)| key).collect();
    let forward = reader.range(bounds.clone()).expect("range").keys();
    let forward: Vec<_> = forward.map(|key| key.expect("key").to_vec()).collect();
    assert!(forward == expected, "the keys");
    let backward = reader.range(bounds.clone()).expect("range").keys().rev();
    let backward = backward.map(|key| key.expect("key").to_vec());
    assert!(backward.eq(expected.into_iter().rev()), "the keys backward");
}

fn prefix(reader: &dyn Reader, expected: &Entries, prefix: &[u8]) {
    let with = || all(expected).filter(|(key, _)| key.starts_with(prefix));
    same(reader.prefix(prefix).expect("prefix").map(owned), with());
    same(reader.prefix(prefix).expect("prefix").rev().map(owned), back(with()));
}

fn same(found: impl Iterator<Item = Pair>, mut expected: impl Iterator<Item = Pair>) {
    let mut number = 0;
    for pair in found {
        let wanted = expected.next();
        assert!(
            wanted.as_ref() == Some(&pair),
            "entry {number}: found {:?} ({} B), expected {:?}",
            brief(&pair.0),
            pair.1.len(),
            wanted.map(|(key, value)| (brief(&key), value.len()))
        );
        number += 1;
    }
    let missing = expected.next().map(|(key, _)| brief(&key));
    assert!(missing.is_none(), "after {number} entries: {missing:?} is missing");
}

fn all(entries: &Entries) -> impl DoubleEndedIterator<Item = Pair> + '_ {
    entries.iter().map(|(key, value)| (key.clone(), value.clone()))
}

fn back(pairs: impl Iterator<Item = Pair>) -> impl Iterator<Item = Pair> {
    pairs.collect::<Vec<_>>().into_iter().rev()
}

/// The entries in the range; unlike in a BTreeMap, one that ends before it starts is empty.
pub fn within<'a>(
    entries: &'a Entries,
    bounds: &'a Bounds,
) -> impl DoubleEndedIterator<Item = Pair> + 'a {
    all(entries).filter(move |(key, _)| bounds.contains(key))
}

pub fn bounds(from: Edge, to: Edge) -> Bounds {
    let bound = |edge| match edge {
        Edge::Open => Bound::Unbounded,
        Edge::Included(key) => Bound::Included(key.bytes()),
        Edge::Excluded(key) => Bound::Excluded(key.bytes()),
    };
    (bound(from), bound(to))
}

pub fn owned(entry: Result<(Slice, Slice)>) -> Pair {
    let (key, value) = entry.expect("read an entry");
    (key.to_vec(), value.to_vec())
}

/// So much of a key as fits into a line.
pub fn brief(key: &[u8]) -> String {
    let start = String::from_utf8_lossy(&key[..key.len().min(16)]).into_owned();
    if key.len() > 16 { format!("{start}… of {} B", key.len()) } else { start }
}
