//! What the demo writes.
//!
//! A batch is a function of its writer and its number and of nothing else. So a writer's whole
//! history is one number per batch, the seqno its commit returned, and whoever checks can write
//! every batch again without having kept a single value.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use esker::{Keyspace, Partition, PartitionOptions};

/// The partitions, by the index that [`Operation`] uses.
pub const PARTITIONS: [&str; 3] = ["users", "events", "metrics"];
const USERS: usize = 0;
const EVENTS: usize = 1;
const METRICS: usize = 2;

/// Users are drawn from this many, so that they are overwritten and come back after removal.
const USERS_MAX: u64 = 50_000;
/// Metrics are few and hot.
const METRICS_MAX: u64 = 500;
/// Each writer keeps its newest events and removes those that are older, as a log with retention.
const EVENTS_KEPT: u64 = 50_000;
/// The shift that puts the writer above the number in the key of an event.
const WRITER_SHIFT: u32 = 40;

/// Opens the partitions; creates those that are not there.
pub fn create(keyspace: &Keyspace) -> esker::Result<Vec<Partition>> {
    PARTITIONS.iter().map(|name| keyspace.partition(name, PartitionOptions::default())).collect()
}

/// One write of a batch.
pub struct Operation {
    /// Index into [`PARTITIONS`].
    pub partition: usize,
    /// Orders like the bytes of the key.
    pub key: u64,
    /// The seed of the value; nothing removes the key.
    pub value: Option<u64>,
}

/// The writes of one batch, which crosses all partitions.
pub fn operations(writer: u64, number: u64) -> impl Iterator<Item = Operation> {
    let mut seed = mix(writer << WRITER_SHIFT | number);
    let mut draw = move || {
        seed = mix(seed);
        seed
    };
    let put = |partition, key, seed| Operation { partition, key, value: Some(seed) };
    let event = writer << WRITER_SHIFT | number;
    let user = draw() % USERS_MAX;
    let other_user = draw() % USERS_MAX;
    let writes = [
        Some(put(EVENTS, event, draw())),
        number.checked_sub(EVENTS_KEPT).map(|expired| Operation {
            partition: EVENTS,
            key: writer << WRITER_SHIFT | expired,
            value: None,
        }),
        Some(put(USERS, user, draw())),
        // One in eight of these removes.
        Some(Operation {
            partition: USERS,
            key: other_user,
            value: Some(draw()).filter(|seed| !seed.is_multiple_of(8)),
        }),
        Some(put(METRICS, draw() % METRICS_MAX, draw())),
        Some(put(METRICS, draw() % METRICS_MAX, draw())),
    ];
    writes.into_iter().flatten()
}

/// The bytes of a key.
pub fn key_bytes(partition: usize, key: u64, bytes: &mut Vec<u8>) {
    bytes.clear();
    let (writer, number) = (key >> WRITER_SHIFT, key & ((1 << WRITER_SHIFT) - 1));
    let written = match partition {
        USERS => write!(bytes, "user/{key:08}"),
        EVENTS => write!(bytes, "event/{writer:03}/{number:013}"),
        _ => write!(bytes, "metric/{key:04}"),
    };
    debug_assert!(written.is_ok(), "writing into a Vec cannot fail");
}

/// The bytes of a value: a number for a metric, a record of some hundred bytes for the others.
pub fn value_bytes(partition: usize, seed: u64, bytes: &mut Vec<u8>) {
    bytes.clear();
    let length = if partition == METRICS { 8 } else { 40 + (seed >> 32) as usize % 200 };
    let mut word = seed;
    while bytes.len() < length {
        // Half of every record repeats, so that blocks compress as real records do.
        bytes.extend_from_slice(&word.to_le_bytes());
        bytes.extend_from_slice(b"field=00");
        word = mix(word);
    }
    bytes.truncate(length);
}

/// SplitMix64: every bit of the result depends on every bit of the input.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Commits one batch after the other until told to stop. Returns the seqno of each.
pub fn write(
    keyspace: &Keyspace,
    partitions: &[Partition],
    writer: u64,
    written: &AtomicU64,
    stop: &AtomicBool,
) -> esker::Result<Vec<u64>> {
    let mut seqnos = Vec::new();
    let (mut key, mut value) = (Vec::new(), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let mut batch = keyspace.batch();
        for operation in operations(writer, seqnos.len() as u64) {
            key_bytes(operation.partition, operation.key, &mut key);
            let partition = &partitions[operation.partition];
            match operation.value {
                Some(seed) => {
                    value_bytes(operation.partition, seed, &mut value);
                    batch.insert(partition, key.as_slice(), value.as_slice())
                }
                None => batch.remove(partition, key.as_slice()),
            };
        }
        let writes = batch.len() as u64;
        seqnos.push(batch.commit()?);
        written.fetch_add(writes, Ordering::Relaxed);
    }
    Ok(seqnos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_like_their_bytes() {
        let event = |writer: u64, number| writer << WRITER_SHIFT | number;
        let keys = [0, 7, 499, 49_999, event(1, 0), event(1, 999_999), event(2, 5)];
        let bytes = keys.map(|key| {
            let mut bytes = Vec::new();
            key_bytes(EVENTS, key, &mut bytes);
            bytes
        });
        assert!(bytes.is_sorted());
    }

    #[test]
    fn a_batch_is_the_same_whenever_it_is_asked_for() {
        let batch = || {
            let writes = operations(3, EVENTS_KEPT + 9);
            writes.map(|write| (write.partition, write.key, write.value)).collect::<Vec<_>>()
        };
        assert_eq!(batch(), batch());
        assert_eq!(batch().len(), 6);
    }

    #[test]
    fn batches_cross_partitions_overwrite_and_remove() {
        let writes: Vec<_> = (0..200).flat_map(|number| operations(0, number)).collect();
        for partition in 0..PARTITIONS.len() {
            assert!(writes.iter().any(|write| write.partition == partition));
        }
        assert!(writes.iter().any(|write| write.partition == USERS && write.value.is_none()));
    }
}
