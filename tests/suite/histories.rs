//! Random histories of transactions: those that committed could have run one after the other.

use std::collections::BTreeMap;
use std::sync::{Barrier, Mutex};

use esker::{Config, Error, PartitionOptions, TxKeyspace, TxKind, TxPartition};
use esker_tests::chaos::{self, Rng};

const KINDS: [TxKind; 2] = [TxKind::SingleWriter, TxKind::Optimistic];

/// The ends of a range and what was found in it.
type Scanned = (u8, u8, Vec<(u8, Vec<u8>)>);

/// What a transaction that committed has seen and done.
#[derive(Debug)]
struct Done {
    seqno: u64,
    read: Vec<(u8, Option<Vec<u8>>)>,
    scanned: Vec<Scanned>,
    wrote: Vec<(u8, Option<Vec<u8>>)>,
}

const KEYS: u64 = 8;

/// One random transaction; nothing for one that had a conflict.
fn random_transaction(
    keyspace: &TxKeyspace,
    p: &TxPartition,
    rng: &mut Rng,
    tag: &str,
) -> Option<Done> {
    let mut tx = keyspace.write_tx().unwrap();
    let mut done = Done { seqno: 0, read: vec![], scanned: vec![], wrote: vec![] };
    let mut own: BTreeMap<u8, Option<Vec<u8>>> = BTreeMap::new();
    for step in 0..=rng.below(5) {
        let key = rng.below(KEYS) as u8;
        if rng.one_in(8) {
            std::thread::yield_now();
        }
        match rng.below(5) {
            0 | 1 => {
                let found = tx.get(p, [key]).unwrap().map(|value| value.to_vec());
                match own.get(&key) {
                    Some(value) => assert_eq!(&found, value, "not its own change"),
                    None => done.read.push((key, found)),
                }
            }
            2 => {
                let to = key + rng.below(4) as u8;
                let entries = tx.range(p, [key]..=[to]).unwrap();
                let entries = entries.map(|entry| entry.unwrap()).map(|(k, v)| (k[0], v.to_vec()));
                let entries: Vec<_> = entries.collect();
                // Only what is not its own can be compared with the history.
                if (key..=to).all(|key| !own.contains_key(&key)) {
                    done.scanned.push((key, to, entries));
                }
            }
            3 => {
                let value = format!("{tag}.{step}").into_bytes();
                tx.insert(p, [key], value.clone()).unwrap();
                own.insert(key, Some(value));
            }
            _ => {
                tx.remove(p, [key]).unwrap();
                own.insert(key, None);
            }
        }
    }
    done.wrote = own.into_iter().collect();
    match tx.commit() {
        Ok(seqno) => Some(Done { seqno, ..done }),
        Err(Error::Conflict) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Whether every transaction saw exactly what those with lower numbers had left. The order of the
/// numbers is then one in which they could have run one after the other: no cycle is possible.
fn check_history(mut history: Vec<Done>, seed: u64) -> BTreeMap<u8, Vec<u8>> {
    // Without changes a transaction has the number of what it saw, and belongs behind that.
    history.sort_by_key(|done| (done.seqno, done.wrote.is_empty()));
    let mut state: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    for done in history {
        for (key, found) in &done.read {
            assert_eq!(state.get(key), found.as_ref(), "seed {seed}: {done:?}");
        }
        for (from, to, found) in &done.scanned {
            let expected: Vec<_> =
                state.range(from..=to).map(|(key, value)| (*key, value.clone())).collect();
            assert_eq!(&expected, found, "seed {seed}: {done:?}");
        }
        for (key, value) in done.wrote {
            match value {
                Some(value) => _ = state.insert(key, value),
                None => _ = state.remove(&key),
            }
        }
    }
    state
}

#[test]
fn random_histories_are_serialisable_in_the_order_of_their_numbers() {
    let seed = chaos::seed("random_histories");
    for round in 0..chaos::rounds(3) {
        for kind in KINDS {
            let dir = chaos::memory_dir();
            let config = Config::new(dir.path().join("db")).memtable_bytes(4096);
            // Half of the rounds apply later.
            let config = config.defer_after_changes(if round % 2 == 0 { 0 } else { u64::MAX });
            let keyspace = config.open_transactional(kind).unwrap();
            let p = keyspace.partition("p", PartitionOptions::default()).unwrap();
            let (history, refused) = (Mutex::new(Vec::new()), Mutex::new(0));
            let (begin, threads) = (Barrier::new(4), 4);
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let (keyspace, p, begin) = (&keyspace, &p, &begin);
                    let (history, refused) = (&history, &refused);
                    scope.spawn(move || {
                        let mut rng = Rng::new(seed ^ (round << 8 | thread));
                        begin.wait();
                        for number in 0..400 {
                            let tag = format!("{thread}.{number}");
                            match random_transaction(keyspace, p, &mut rng, &tag) {
                                Some(done) => history.lock().unwrap().push(done),
                                None => *refused.lock().unwrap() += 1,
                            }
                        }
                    });
                }
            });
            let refused = refused.into_inner().unwrap();
            assert_eq!(refused > 0, kind == TxKind::Optimistic, "{refused} conflicts, {kind:?}");
            let state = check_history(history.into_inner().unwrap(), seed);
            let found = p.iter().unwrap().map(|entry| entry.unwrap());
            let found: BTreeMap<_, _> = found.map(|(k, v)| (k[0], v.to_vec())).collect();
            assert_eq!(found, state);
        }
    }
}

#[test]
#[should_panic(expected = "seed 7")]
fn the_check_of_histories_finds_a_lost_update() {
    let update = |seqno, read: &str, wrote: &str| Done {
        seqno,
        read: vec![(1, (!read.is_empty()).then(|| read.into()))],
        scanned: vec![],
        wrote: vec![(1, Some(wrote.into()))],
    };
    check_history(vec![update(1, "", "a"), update(2, "a", "b"), update(3, "a", "c")], 7);
}
