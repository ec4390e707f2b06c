//! What a keyspace must hold at a seqno, and the comparison with what it holds.
//!
//! The model is rebuilt from the writers' logs: all batches up to the seqno, in the order of their
//! seqnos, applied to plain ordered maps. The comparison walks keyspace and model in step, so that
//! an entry too many is found as surely as one that is missing.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map;

use esker::{Keyspace, Slice};

use super::workload::{self, PARTITIONS};
use crate::escape::Escaped;
use crate::failure::{Failure, Outcome};
use crate::store;

/// The partitions at one seqno; moves forward only.
pub struct Model<'a> {
    /// For each writer, the seqnos of its batches.
    logs: &'a [Vec<u64>],
    /// For each writer, how many of its batches are applied.
    applied: Vec<usize>,
    /// Key to seed of the value.
    partitions: [BTreeMap<u64, u64>; PARTITIONS.len()],
    seqno: u64,
}

impl<'a> Model<'a> {
    /// An empty keyspace.
    pub fn new(logs: &'a [Vec<u64>]) -> Self {
        Self { logs, applied: vec![0; logs.len()], partitions: Default::default(), seqno: 0 }
    }

    /// Applies every batch up to and with `seqno`.
    pub fn advance(&mut self, seqno: u64) -> Outcome {
        while let Some((next, writer)) = self.next_batch().filter(|(next, _)| *next <= seqno) {
            if next <= self.seqno {
                return Err(Failure::Failed(format!("the seqno {next} was given to two batches")));
            }
            self.seqno = next;
            self.apply(writer);
        }
        Ok(())
    }

    /// The batch with the lowest seqno that is not applied, and its writer.
    fn next_batch(&self) -> Option<(u64, usize)> {
        let heads = self.logs.iter().zip(&self.applied).enumerate();
        heads.filter_map(|(writer, (log, &at))| Some((*log.get(at)?, writer))).min()
    }

    fn apply(&mut self, writer: usize) {
        let number = self.applied[writer];
        self.applied[writer] += 1;
        for operation in workload::operations(writer as u64, number as u64) {
            let partition = &mut self.partitions[operation.partition];
            match operation.value {
                Some(seed) => drop(partition.insert(operation.key, seed)),
                None => drop(partition.remove(&operation.key)),
            }
        }
    }

    /// Compares all partitions from both sides; returns how many entries are equal. `what` names the
    /// keyspace when it differs.
    pub fn compare(&self, keyspace: &Keyspace, what: &str) -> Outcome<u64> {
        if keyspace.partitions().len() != PARTITIONS.len() {
            let found = keyspace.partitions().join(", ");
            return Err(Failure::Failed(format!("{what} has the wrong partitions: {found}")));
        }
        let mut equal = 0;
        for (index, name) in PARTITIONS.iter().enumerate() {
            let mut expected = Expected::new(index, &self.partitions[index]);
            let differs = |difference: Difference| difference.failure(what, name);
            for entry in store::partition(keyspace, name)?.iter()? {
                expected.check(entry?).map_err(differs)?;
                equal += 1;
            }
            expected.end().map_err(differs)?;
        }
        Ok(equal)
    }
}

/// The entries of one partition of the model, as bytes.
struct Expected<'a> {
    partition: usize,
    entries: btree_map::Iter<'a, u64, u64>,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl<'a> Expected<'a> {
    fn new(partition: usize, entries: &'a BTreeMap<u64, u64>) -> Self {
        Self { partition, entries: entries.iter(), key: Vec::new(), value: Vec::new() }
    }

    /// Moves to the next entry; false at the end.
    fn advance(&mut self) -> bool {
        let Some((&key, &seed)) = self.entries.next() else { return false };
        workload::key_bytes(self.partition, key, &mut self.key);
        workload::value_bytes(self.partition, seed, &mut self.value);
        true
    }

    /// Checks that `found` is the next entry.
    fn check(&mut self, (key, value): (Slice, Slice)) -> Result<(), Difference> {
        if !self.advance() {
            return Err(Difference {
                key: key.to_vec(),
                expected: None,
                found: Some(value.to_vec()),
            });
        }
        match self.key.as_slice().cmp(&key) {
            Ordering::Equal if self.value == *value => Ok(()),
            Ordering::Less => Err(self.missing()),
            Ordering::Equal => Err(Difference { found: Some(value.to_vec()), ..self.missing() }),
            Ordering::Greater => {
                Err(Difference { key: key.to_vec(), expected: None, found: Some(value.to_vec()) })
            }
        }
    }

    /// Checks that no entry is left.
    fn end(&mut self) -> Result<(), Difference> {
        if self.advance() { Err(self.missing()) } else { Ok(()) }
    }

    fn missing(&self) -> Difference {
        Difference { key: self.key.clone(), expected: Some(self.value.clone()), found: None }
    }
}

/// The first entry that differs.
#[derive(Debug, PartialEq)]
struct Difference {
    key: Vec<u8>,
    expected: Option<Vec<u8>>,
    found: Option<Vec<u8>>,
}

impl Difference {
    fn failure(&self, what: &str, partition: &str) -> Failure {
        // Values begin with their seed, so their beginnings tell them apart.
        let value = |value: &Option<Vec<u8>>| match value {
            Some(value) => {
                let start = Escaped(&value[..value.len().min(16)]);
                format!("{} bytes beginning with {start}", value.len())
            }
            None => "no such key".to_owned(),
        };
        Failure::Failed(format!(
            "{what} differs from what was committed: partition {partition}, key {}: expected {}, \
             found {}",
            Escaped(&self.key),
            value(&self.expected),
            value(&self.found)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_applied_in_the_order_of_their_seqnos() {
        let logs = [vec![2, 5], vec![3, 4, 9]];
        let mut model = Model::new(&logs);
        model.advance(4).unwrap();
        assert_eq!(model.applied, [1, 2]);
        model.advance(8).unwrap();
        assert_eq!(model.applied, [2, 2]);
        assert_eq!(model.seqno, 5);
    }

    #[test]
    fn a_seqno_given_twice_is_found() {
        let logs = [vec![2], vec![2]];
        let sentence = Model::new(&logs).advance(9).unwrap_err().to_string();
        assert_eq!(sentence, "the seqno 2 was given to two batches");
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let entries = BTreeMap::from([(1, 10), (2, 20)]);
        let bytes = |key, seed| {
            let (mut k, mut v) = (Vec::new(), Vec::new());
            workload::key_bytes(0, key, &mut k);
            workload::value_bytes(0, seed, &mut v);
            (Slice::from(k), Slice::from(v))
        };
        let compare = |found: &[(u64, u64)]| {
            let mut expected = Expected::new(0, &entries);
            found.iter().try_for_each(|&(key, seed)| expected.check(bytes(key, seed)))?;
            expected.end()
        };
        assert_eq!(compare(&[(1, 10), (2, 20)]), Ok(()));
        let missing = compare(&[(2, 20)]).unwrap_err();
        assert!(missing.found.is_none() && missing.key.ends_with(b"1"));
        let missing_last = compare(&[(1, 10)]).unwrap_err();
        assert!(missing_last.found.is_none() && missing_last.key.ends_with(b"2"));
        let too_many = compare(&[(0, 10), (1, 10), (2, 20)]).unwrap_err();
        assert!(too_many.expected.is_none() && too_many.key.ends_with(b"0"));
        let too_many_last = compare(&[(1, 10), (2, 20), (3, 30)]).unwrap_err();
        assert!(too_many_last.expected.is_none() && too_many_last.key.ends_with(b"3"));
        let other = compare(&[(1, 10), (2, 21)]).unwrap_err();
        assert!(other.expected.is_some() && other.found.is_some());
    }
}
