//! Options of keyspaces and options of partitions.
//!
//! What must stay true: how separated values are compressed is taken over exactly, whatever it costs,
//! because a merge moves them as they are; and nothing that one side knows and the other does not is left
//! out in silence: it is among the notes, or in docs/operating.md if it is about speed alone.

use esker::{CompactionStrategy, Compression, PartitionOptions};
use fjall::compaction::Leveled;
use fjall::config::{
    BlockSizePolicy, BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry,
};
use fjall::{CompressionType, KeyspaceCreateOptions, KvSeparationOptions};
use serde::Deserialize;

use crate::failure::{Failure, Outcome};

/// What esker takes, see `PartitionOptions`.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 256..=(4 << 20);
const TABLE_BYTES_MIN: u64 = 4 << 10;
const FILTER_BITS_MAX: f32 = 64.0;
const L0_RUNS: std::ops::RangeInclusive<u8> = 1..=32;

/// fjall's names in its list of what a strategy was made with.
const LEVELED: &str = "LeveledCompaction";
const FIFO: &str = "FifoCompaction";
const FIFO_LIMIT: &[u8] = b"fifo_limit";
const FIFO_TTL: &[u8] = b"fifo_ttl_seconds";
const L0_THRESHOLD: &[u8] = b"leveled_l0_threshold";
const TARGET_SIZE: &[u8] = b"leveled_target_size";
const LEVEL_RATIOS: &[u8] = b"leveled_level_ratio_policy";
/// One ratio for all levels, 10 as an f32: fjall's default, and what esker always has.
const LEVEL_RATIO_TEN: &[u8] = &[1, 0, 0, 0x20, 0x41];

/// The options of a partition for a keyspace of fjall's, and what they do not express.
pub fn of_partition(keyspace: &KeyspaceCreateOptions) -> (PartitionOptions, Vec<String>) {
    let mut notes = Vec::new();
    // Levels have options of their own there; the deepest one holds most of the data.
    let blocks = &keyspace.data_block_size_policy;
    let wanted = blocks.last().copied().unwrap_or(4 << 10);
    let block_bytes = wanted.clamp(*BLOCK_BYTES.start(), *BLOCK_BYTES.end());
    if blocks.iter().any(|bytes| *bytes != block_bytes) {
        notes.push(format!("blocks are written with {block_bytes} bytes in every level"));
    }
    let (table_bytes, l0_runs) = strategy(keyspace, &mut notes);
    let mut options = PartitionOptions::default();
    if let Some(separation) = &keyspace.kv_separation_opts {
        options = separating(options, separation);
    }
    if let Some(fifo) = fifo(keyspace) {
        options = options.compaction_strategy(fifo);
    }
    if keyspace.expect_point_read_hits {
        notes.push("filters are written for the last level as well".into());
    }
    options = options
        .block_bytes(block_bytes)
        .compression(strongest(&keyspace.data_block_compression_policy))
        .filter_bits_per_key(filter_bits(&keyspace.filter_policy))
        .table_bytes(table_bytes)
        .l0_runs(l0_runs);
    (options, notes)
}

fn of_type(compression: CompressionType) -> Compression {
    match compression {
        CompressionType::None => Compression::None,
        CompressionType::Lz4 => Compression::Lz4,
    }
}

fn strongest(policy: &CompressionPolicy) -> Compression {
    let compressed = policy.contains(&CompressionType::Lz4);
    if compressed { Compression::Lz4 } else { Compression::None }
}

/// Both sides hand these to lsm-tree; esker refuses what makes no sense there.
fn separating(options: PartitionOptions, separation: &KvSeparationOptions) -> PartitionOptions {
    // Not a number is as good as never.
    let share = |share: f32, least: f32| if share >= least { share.min(1.0) } else { least };
    options
        .separate_values_from(Some(separation.separation_threshold.max(1)))
        .blob_file_target_bytes(separation.file_target_size.max(TABLE_BYTES_MIN))
        .blob_compression(of_type(separation.compression))
        .blob_staleness_threshold(share(separation.staleness_threshold, f32::EPSILON))
        .blob_age_cutoff(share(separation.age_cutoff, 0.0))
}

/// The limits of a FIFO of fjall's. One that can never be reached is none.
fn fifo(keyspace: &KeyspaceCreateOptions) -> Option<CompactionStrategy> {
    let strategy = &keyspace.compaction_strategy;
    let config = strategy.get_config();
    let number = |name: &[u8]| {
        let value = config.iter().find(|(key, _)| **key == *name).map(|(_, value)| value)?;
        Some(u64::from_le_bytes(*value.first_chunk()?))
    };
    let limit_bytes = number(FIFO_LIMIT).filter(|limit| *limit < 1 << 60).map(|limit| limit.max(1));
    let ttl_secs = number(FIFO_TTL).map(|ttl| ttl.max(1));
    let limited = limit_bytes.is_some() || ttl_secs.is_some();
    (strategy.get_name() == FIFO && limited)
        .then_some(CompactionStrategy::Fifo { limit_bytes, ttl_secs })
}

/// Table size, and runs in the first level.
fn strategy(keyspace: &KeyspaceCreateOptions, notes: &mut Vec<String>) -> (u64, u8) {
    let strategy = &keyspace.compaction_strategy;
    let config = strategy.get_config();
    let value = |name: &[u8]| config.iter().find(|(key, _)| **key == *name).map(|(_, v)| v);
    if ![LEVELED, FIFO].contains(&strategy.get_name()) {
        let name = strategy.get_name();
        notes.push(format!("esker has no {name}: it merges by levels"));
    }
    if value(LEVEL_RATIOS).is_some_and(|ratios| **ratios != *LEVEL_RATIO_TEN) {
        notes.push("a level may be ten times as large as the one before it".into());
    }
    let target =
        value(TARGET_SIZE).and_then(|bytes| Some(u64::from_le_bytes(*bytes.first_chunk()?)));
    let runs = value(L0_THRESHOLD).and_then(|bytes| bytes.first().copied());
    let table_bytes = target.unwrap_or(64 << 20).max(TABLE_BYTES_MIN);
    let l0_runs = runs.unwrap_or(4).clamp(*L0_RUNS.start(), *L0_RUNS.end());
    if runs.is_some_and(|runs| runs != l0_runs) {
        notes.push(format!("{l0_runs} runs gather in the first level"));
    }
    (table_bytes, l0_runs)
}

/// Of the deepest level, which is nearly all of them.
fn filter_bits(policy: &FilterPolicy) -> f32 {
    let bits = match policy.last() {
        None | Some(FilterPolicyEntry::None) => 0.0,
        Some(FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(bits))) => *bits,
        Some(FilterPolicyEntry::Bloom(BloomConstructionPolicy::FalsePositiveRate(rate))) => {
            // A filter of so many bits has that rate with the best number of hashes.
            -rate.max(f32::MIN_POSITIVE).ln() / std::f32::consts::LN_2.powi(2)
        }
    };
    // What is not a number asks for no filter, there as well.
    if bits > 0.0 { bits.min(FILTER_BITS_MAX) } else { 0.0 }
}

/// The options of a partition as esker serialises them. An option that is not known here must not be
/// left out in silence, least of all one of blob files.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    block_bytes: u32,
    compression: StoredCompression,
    filter_bits_per_key: f32,
    separate_values_from: Option<u32>,
    table_bytes: u64,
    l0_runs: u8,
    blob_file_target_bytes: Option<u64>,
    blob_compression: Option<StoredCompression>,
    blob_staleness_threshold: f32,
    blob_age_cutoff: f32,
    compaction_strategy: StoredStrategy,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredCompression {
    None,
    Lz4,
}

impl From<StoredCompression> for CompressionType {
    fn from(stored: StoredCompression) -> Self {
        match stored {
            StoredCompression::None => Self::None,
            StoredCompression::Lz4 => Self::Lz4,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredStrategy {
    Leveled,
    #[expect(dead_code, reason = "fjall's FIFO does not fit tables of levels")]
    Fifo {
        limit_bytes: Option<u64>,
        ttl_secs: Option<u64>,
    },
}

/// The options of a keyspace of fjall's for a partition, and what they do not express.
pub fn of_keyspace(options: &PartitionOptions) -> Outcome<(KeyspaceCreateOptions, Vec<String>)> {
    let stored = serde_json::to_value(options).and_then(Stored::deserialize);
    let stored = stored.map_err(|e| {
        Failure::Failed(format!("fjall has no option for one of the partition's: {e}"))
    })?;
    let blocks = match stored.compression {
        StoredCompression::None => CompressionPolicy::disabled(),
        // As esker has it: fresh tables are read and rewritten soon.
        StoredCompression::Lz4 => {
            CompressionPolicy::new([CompressionType::None, CompressionType::Lz4])
        }
    };
    let filter = if stored.filter_bits_per_key > 0.0 {
        let bits = BloomConstructionPolicy::BitsPerKey(stored.filter_bits_per_key.max(1.0));
        FilterPolicy::all(FilterPolicyEntry::Bloom(bits))
    } else {
        FilterPolicy::disabled()
    };
    let separation = stored.separate_values_from.map(|bytes| {
        KvSeparationOptions::default()
            .separation_threshold(bytes)
            .file_target_size(stored.blob_file_target_bytes.unwrap_or(stored.table_bytes))
            .compression(stored.blob_compression.unwrap_or(stored.compression).into())
            .staleness_threshold(stored.blob_staleness_threshold)
            .age_cutoff(stored.blob_age_cutoff)
    });
    let leveled = Leveled::default()
        .with_l0_threshold(stored.l0_runs)
        .with_table_target_size(stored.table_bytes);
    let mut notes = Vec::new();
    if let StoredStrategy::Fifo { .. } = stored.compaction_strategy {
        // It knows the first level alone, and panics where tables overlap.
        notes.push("entries stay: fjall's FIFO does not fit the tables of esker's".to_owned());
    }
    let keyspace = KeyspaceCreateOptions::default()
        .data_block_size_policy(BlockSizePolicy::all(stored.block_bytes))
        .data_block_compression_policy(blocks)
        .filter_policy(filter)
        .with_kv_separation(separation)
        .compaction_strategy(std::sync::Arc::new(leveled));
    Ok((keyspace, notes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fjall::compaction::Fifo;

    #[test]
    fn what_esker_has_comes_back_as_it_was() {
        let plain = PartitionOptions::default();
        let blobs = plain.clone().separate_values_from(Some(700));
        let odd = PartitionOptions::scans().compression(Compression::None).table_bytes(9000);
        let large =
            blobs.clone().blob_file_target_bytes(1 << 30).blob_compression(Compression::None);
        let eager = blobs.clone().blob_staleness_threshold(0.5).blob_age_cutoff(1.0);
        let uncompressed = blobs.clone().compression(Compression::None);
        for options in [plain, blobs, uncompressed, odd.l0_runs(9), large, eager] {
            let (keyspace, notes) = of_keyspace(&options).unwrap();
            assert_eq!((of_partition(&keyspace).0, notes), (options, Vec::new()));
        }
    }

    #[test]
    fn the_defaults_of_fjall_need_no_note() {
        let (options, notes) = of_partition(&KeyspaceCreateOptions::default());
        assert_eq!(options, PartitionOptions::default());
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn separated_values_stay_compressed_as_they_are() {
        let separation = KvSeparationOptions::default().compression(CompressionType::None);
        let keyspace = KeyspaceCreateOptions::default().with_kv_separation(Some(separation));
        let (options, notes) = of_partition(&keyspace);
        let expected = PartitionOptions::default()
            .blob_compression(Compression::None)
            .separate_values_from(Some(1024));
        assert_eq!((options, notes), (expected, Vec::new()));
    }

    #[test]
    fn limits_of_a_fifo_are_taken_over_and_not_given_back() {
        let keyspace = KeyspaceCreateOptions::default()
            .compaction_strategy(std::sync::Arc::new(Fifo::new(1 << 30, Some(60))));
        let (options, notes) = of_partition(&keyspace);
        let fifo = CompactionStrategy::Fifo { limit_bytes: Some(1 << 30), ttl_secs: Some(60) };
        let expected = PartitionOptions::default().compaction_strategy(fifo);
        assert_eq!((options.clone(), notes), (expected, Vec::new()));
        assert_eq!(of_keyspace(&options).unwrap().1.len(), 1, "a note");
    }

    #[test]
    fn what_cannot_be_expressed_is_noted() {
        let keyspace = KeyspaceCreateOptions::default()
            .data_block_size_policy(BlockSizePolicy::new([1 << 10, 8 << 10]))
            .expect_point_read_hits(true);
        let (options, notes) = of_partition(&keyspace);
        assert_eq!(options, PartitionOptions::default().block_bytes(8 << 10));
        assert_eq!(notes.len(), 2, "{notes:?}");
        let leveled = Leveled::default().with_l0_threshold(200).with_level_ratio_policy(vec![5.0]);
        let keyspace =
            KeyspaceCreateOptions::default().compaction_strategy(std::sync::Arc::new(leveled));
        let (options, notes) = of_partition(&keyspace);
        assert_eq!(options, PartitionOptions::default().l0_runs(32));
        assert_eq!(notes.len(), 2, "{notes:?}");
    }

    #[test]
    fn rates_of_false_positives_become_bits() {
        let bits = |entry| filter_bits(&FilterPolicy::all(entry));
        let rate =
            |rate| FilterPolicyEntry::Bloom(BloomConstructionPolicy::FalsePositiveRate(rate));
        let per_key = |bits| FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(bits));
        assert!((bits(rate(0.01)) - 9.585).abs() < 0.01);
        assert_eq!(bits(rate(0.0)), FILTER_BITS_MAX);
        assert_eq!(bits(rate(1.0)), 0.0);
        assert_eq!(bits(per_key(200.0)), FILTER_BITS_MAX);
        assert_eq!(bits(per_key(f32::NAN)), 0.0);
        assert_eq!(bits(FilterPolicyEntry::None), 0.0);
    }
}
