//! Options of keyspaces and options of partitions.
//!
//! What must stay true: how separated values are compressed is taken over exactly, whatever it costs,
//! because a merge moves them as they are; and nothing that one side knows and the other does not is left
//! out in silence: it is among the notes, or in docs/operating.md if it is about speed alone.

use esker::{Compression, PartitionOptions};
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
    let mut compression = strongest(&keyspace.data_block_compression_policy);
    let mut options = PartitionOptions::default();
    if let Some(separation) = &keyspace.kv_separation_opts {
        let values = of_type(separation.compression);
        if values != compression {
            let how = said(values);
            notes.push(format!("blocks are written {how}, as separated values are"));
            compression = values;
        }
        options = options.separate_values_from(Some(separation.separation_threshold.max(1)));
        notes.extend(unlike_ours(separation, table_bytes));
    }
    if keyspace.expect_point_read_hits {
        notes.push("filters are written for the last level as well".into());
    }
    options = options
        .block_bytes(block_bytes)
        .compression(compression)
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

fn said(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "uncompressed",
        Compression::Lz4 => "with LZ4",
    }
}

fn strongest(policy: &CompressionPolicy) -> Compression {
    let compressed = policy.contains(&CompressionType::Lz4);
    if compressed { Compression::Lz4 } else { Compression::None }
}

/// esker's blob files are as large as its tables, and lsm-tree's defaults decide when they are rewritten.
fn unlike_ours(separation: &KvSeparationOptions, table_bytes: u64) -> Option<String> {
    let default = KvSeparationOptions::default();
    let alike = separation.staleness_threshold == default.staleness_threshold
        && separation.age_cutoff == default.age_cutoff
        && separation.file_target_size == table_bytes;
    (!alike).then(|| {
        "blob files are as large as tables, and rewritten by esker's own thresholds".to_owned()
    })
}

/// Table size, and runs in the first level.
fn strategy(keyspace: &KeyspaceCreateOptions, notes: &mut Vec<String>) -> (u64, u8) {
    let strategy = &keyspace.compaction_strategy;
    let config = strategy.get_config();
    let value = |name: &[u8]| config.iter().find(|(key, _)| **key == *name).map(|(_, v)| v);
    if strategy.get_name() != LEVELED {
        notes.push(format!(
            "fjall's {} removes entries by itself, and esker never does: it merges by levels",
            strategy.get_name()
        ));
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
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredCompression {
    None,
    Lz4,
}

/// The options of a keyspace of fjall's for a partition. It can express them all, and has more.
pub fn of_keyspace(options: &PartitionOptions) -> Outcome<KeyspaceCreateOptions> {
    let stored = serde_json::to_value(options).and_then(Stored::deserialize);
    let stored = stored.map_err(|e| {
        Failure::Failed(format!("fjall has no option for one of the partition's: {e}"))
    })?;
    let (blocks, values) = match stored.compression {
        StoredCompression::None => (CompressionPolicy::disabled(), CompressionType::None),
        // As esker has it: fresh tables are read and rewritten soon.
        StoredCompression::Lz4 => (
            CompressionPolicy::new([CompressionType::None, CompressionType::Lz4]),
            CompressionType::Lz4,
        ),
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
            .file_target_size(stored.table_bytes)
            .compression(values)
    });
    let leveled = Leveled::default()
        .with_l0_threshold(stored.l0_runs)
        .with_table_target_size(stored.table_bytes);
    Ok(KeyspaceCreateOptions::default()
        .data_block_size_policy(BlockSizePolicy::all(stored.block_bytes))
        .data_block_compression_policy(blocks)
        .filter_policy(filter)
        .with_kv_separation(separation)
        .compaction_strategy(std::sync::Arc::new(leveled)))
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
        for options in [plain, blobs.clone(), blobs.compression(Compression::None), odd.l0_runs(9)]
        {
            let (again, _) = of_partition(&of_keyspace(&options).unwrap());
            assert_eq!(again, options);
        }
    }

    #[test]
    fn the_defaults_of_fjall_need_no_note() {
        let (options, notes) = of_partition(&KeyspaceCreateOptions::default());
        assert_eq!(options, PartitionOptions::default());
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn separated_values_decide_how_blocks_are_compressed() {
        let separation = KvSeparationOptions::default().compression(CompressionType::None);
        let keyspace = KeyspaceCreateOptions::default().with_kv_separation(Some(separation));
        let (options, notes) = of_partition(&keyspace);
        let expected = PartitionOptions::default()
            .compression(Compression::None)
            .separate_values_from(Some(1024));
        assert_eq!(options, expected);
        assert_eq!(notes, ["blocks are written uncompressed, as separated values are"]);
    }

    #[test]
    fn what_cannot_be_expressed_is_noted() {
        let keyspace = KeyspaceCreateOptions::default()
            .data_block_size_policy(BlockSizePolicy::new([1 << 10, 8 << 10]))
            .expect_point_read_hits(true)
            .compaction_strategy(std::sync::Arc::new(Fifo::new(1 << 30, None)));
        let (options, notes) = of_partition(&keyspace);
        assert_eq!(options, PartitionOptions::default().block_bytes(8 << 10));
        assert_eq!(notes.len(), 3, "{notes:?}");
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
