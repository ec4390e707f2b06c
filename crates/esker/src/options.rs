//! The options of one partition, as given, as stored and as read back.
//!
//! Stored options are loaded exactly as they were written (a changed blob compression would
//! corrupt relocated blobs), so a newer default never reaches an existing partition. What a caller
//! has set is told from what is a default: only the former can contradict what is stored.

use std::fmt::Display;

use serde::Serialize;

use crate::bytes::{Put, Take, Truncated};
use crate::error::{Error, Result};
use crate::planted::{Bug, is_planted};

/// How blocks (and separated values) are compressed.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are.
    None,
    /// LZ4, from the second level down: fresh tables are read and rewritten soon.
    #[default]
    Lz4,
}

impl Compression {
    fn encode(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
        }
    }

    fn decode(byte: u8) -> Option<Self> {
        [Self::None, Self::Lz4].into_iter().find(|compression| compression.encode() == byte)
    }
}

/// What happens to tables as they gather.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CompactionStrategy {
    /// Merged downwards level by level: everything stays, a key is found in few places.
    #[default]
    Leveled,
    /// First in, first out: the oldest entries go, in lots, whatever their keys, once there is too
    /// much or they are too old. At least one of the two limits must be given. What goes is gone
    /// without a removal: there is no sequence number at which it went. Open snapshots and
    /// transactions keep what they see.
    Fifo {
        /// So many bytes of tables and blob files stay at most, as of the last compaction; but the newest
        /// lot, such as one large ingest, stays whatever its size. What goes is up to a quarter of the
        /// limit at a time.
        limit_bytes: Option<u64>,
        /// Entries stay for at least so many seconds after they were flushed or last merged, and go within
        /// about half as much again, under heavy writes within as much again.
        ttl_secs: Option<u64>,
    },
}

/// How a partition lays out its tables. Fixed when the partition is created: to open it with others
/// is an error, and what is not set is as it was stored.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionOptions {
    pub(crate) block_bytes: u32,
    pub(crate) compression: Compression,
    pub(crate) filter_bits_per_key: f32,
    pub(crate) separate_values_from: Option<u32>,
    pub(crate) table_bytes: u64,
    pub(crate) l0_runs: u8,
    /// As `table_bytes` if there is none.
    blob_file_target_bytes: Option<u64>,
    /// As `compression` if there is none.
    blob_compression: Option<Compression>,
    pub(crate) blob_staleness_threshold: f32,
    pub(crate) blob_age_cutoff: f32,
    pub(crate) compaction_strategy: CompactionStrategy,
    /// A bit for each option that was set, as in `values`.
    #[serde(skip)]
    set: u16,
}

impl Default for PartitionOptions {
    fn default() -> Self {
        Self {
            block_bytes: 4 << 10,
            compression: Compression::Lz4,
            filter_bits_per_key: 10.0,
            separate_values_from: None,
            table_bytes: 64 << 20,
            l0_runs: 4,
            blob_file_target_bytes: None,
            blob_compression: None,
            blob_staleness_threshold: 0.25,
            blob_age_cutoff: 0.25,
            compaction_strategy: CompactionStrategy::Leveled,
            set: 0,
        }
    }
}

/// Equal if they lay out tables in the same way, set or not.
impl PartialEq for PartitionOptions {
    fn eq(&self, other: &Self) -> bool {
        self.values() == other.values()
    }
}

const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 256..=(4 << 20);
const TABLE_BYTES_MIN: u64 = 4 << 10;
const FILTER_BITS_MAX: f32 = 64.0;
/// Stalls begin at a multiple of this many runs and a level must stay below 256 (lsm-tree counts
/// them in a byte), so the trigger is kept far from it.
const L0_RUNS: std::ops::RangeInclusive<u8> = 1..=32;
/// Every option has a bit, so that those that were set are known.
const OPTIONS: usize = 11;
const ALL_SET: u16 = (1 << OPTIONS) - 1;
/// From this version of CATALOG on, options have those of blob files and of compaction.
const WITH_BLOBS: u32 = 3;

impl PartitionOptions {
    /// For reads of single keys at random: small blocks, of which each read decodes one, and filters
    /// that let one miss in a thousand through, for half as much memory again.
    #[must_use]
    pub fn point_reads() -> Self {
        Self::default().block_bytes(2 << 10).filter_bits_per_key(15.0)
    }

    /// For reads of ranges: large blocks, which compress better, and no filters, which ranges do not
    /// ask.
    #[must_use]
    pub fn scans() -> Self {
        Self::default().block_bytes(32 << 10).filter_bits_per_key(0.0)
    }

    /// For writing more than reading: more runs gather before they are merged, so each byte is
    /// written less often, and a read looks into more places.
    #[must_use]
    pub fn write_heavy() -> Self {
        Self::default().block_bytes(16 << 10).l0_runs(12)
    }

    /// Data block size in bytes before compression; default 4 KiB, 256 B to 4 MiB.
    #[must_use]
    pub fn block_bytes(mut self, bytes: u32) -> Self {
        self.block_bytes = bytes;
        self.note(0)
    }

    /// Compression of data blocks and separated values; default LZ4.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self.note(1)
    }

    /// Bloom filter bits per key; default 10, which answers about 99% of misses without a read.
    /// Whole bits count, and at least one; 0 builds no filters.
    #[must_use]
    pub fn filter_bits_per_key(mut self, bits: f32) -> Self {
        self.filter_bits_per_key = bits;
        self.note(2)
    }

    /// Keeps values of at least so many bytes in separate blob files, so that compaction does not
    /// rewrite them; default `None`, values stay in the tables.
    #[must_use]
    pub fn separate_values_from(mut self, bytes: Option<u32>) -> Self {
        self.separate_values_from = bytes;
        self.note(3)
    }

    /// Target size of a table in bytes; default 64 MiB. Compaction raises it as the data grows, so
    /// that a level stays below about a thousand tables.
    #[must_use]
    pub fn table_bytes(mut self, bytes: u64) -> Self {
        self.table_bytes = bytes;
        self.note(4)
    }

    /// How many runs gather in the first level before they are merged down; default 4, 1 to 32.
    #[must_use]
    pub fn l0_runs(mut self, runs: u8) -> Self {
        self.l0_runs = runs;
        self.note(5)
    }

    /// Target size of a blob file in bytes; default as `table_bytes`, at least 4 KiB. Smaller files give
    /// their space back earlier, larger ones are fewer. A file can be larger by one value.
    #[must_use]
    pub fn blob_file_target_bytes(mut self, bytes: u64) -> Self {
        self.blob_file_target_bytes = Some(bytes);
        self.note(6)
    }

    /// Compression of separated values; default that of blocks.
    #[must_use]
    pub fn blob_compression(mut self, compression: Compression) -> Self {
        self.blob_compression = Some(compression);
        self.note(7)
    }

    /// The share of a blob file that must be overwritten or removed before compaction rewrites the
    /// rest of it; default 0.25, above 0 up to 1. A file of which nothing is left goes in any case.
    #[must_use]
    pub fn blob_staleness_threshold(mut self, share: f32) -> Self {
        self.blob_staleness_threshold = share;
        self.note(8)
    }

    /// Of the blob files that a compaction could rewrite, the oldest share that it does rewrite;
    /// default 0.25, 0 to 1. Values of young files may soon be overwritten anyway.
    #[must_use]
    pub fn blob_age_cutoff(mut self, share: f32) -> Self {
        self.blob_age_cutoff = share;
        self.note(9)
    }

    /// What happens to tables as they gather; default [`CompactionStrategy::Leveled`].
    #[must_use]
    pub fn compaction_strategy(mut self, strategy: CompactionStrategy) -> Self {
        self.compaction_strategy = strategy;
        self.note(10)
    }

    fn note(mut self, option: usize) -> Self {
        self.set |= 1 << option;
        self
    }

    pub(crate) fn blob_file_bytes(&self) -> u64 {
        self.blob_file_target_bytes.unwrap_or(self.table_bytes)
    }

    pub(crate) fn values_compression(&self) -> Compression {
        self.blob_compression.unwrap_or(self.compression)
    }

    pub(crate) fn is_fifo(&self) -> bool {
        self.compaction_strategy != CompactionStrategy::Leveled
    }

    /// Every option by name, in the order of the bits of `set`.
    fn values(&self) -> [(&'static str, String); OPTIONS] {
        let text = |value: &dyn Display| value.to_string();
        let separated = self.separate_values_from.map_or("None".into(), |bytes| text(&bytes));
        [
            ("block_bytes", text(&self.block_bytes)),
            ("compression", format!("{:?}", self.compression)),
            ("filter_bits_per_key", text(&self.filter_bits_per_key)),
            ("separate_values_from", separated),
            ("table_bytes", text(&self.table_bytes)),
            ("l0_runs", text(&self.l0_runs)),
            ("blob_file_target_bytes", text(&self.blob_file_bytes())),
            ("blob_compression", format!("{:?}", self.values_compression())),
            ("blob_staleness_threshold", text(&self.blob_staleness_threshold)),
            ("blob_age_cutoff", text(&self.blob_age_cutoff)),
            ("compaction_strategy", format!("{:?}", self.compaction_strategy)),
        ]
    }

    /// Refuses what was set and differs from what the partition was created with.
    pub(crate) fn check_against(&self, stored: &Self, partition: &str) -> Result<()> {
        let pairs = self.values().into_iter().zip(stored.values()).enumerate();
        let differing = pairs.filter(|(bit, (asked, stored))| {
            let is_set = self.set & 1 << bit != 0;
            is_set && asked.1 != stored.1 && !is_planted(Bug::OptionsNotCompared)
        });
        let differing: Vec<_> = differing
            .map(|(_, ((name, asked), (_, stored)))| format!("{name} is {stored}, not {asked}"))
            .collect();
        if differing.is_empty() {
            return Ok(());
        }
        Err(Error::InvalidInput(format!(
            "the partition {partition:?} was created with other options: {}",
            differing.join("; ")
        )))
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let complain = |what: &str| Err(Error::InvalidInput(what.to_owned()));
        if !BLOCK_BYTES.contains(&self.block_bytes) {
            return complain("block_bytes must lie between 256 and 4194304");
        }
        if !(0.0..=FILTER_BITS_MAX).contains(&self.filter_bits_per_key) {
            return complain("filter_bits_per_key must lie between 0 and 64");
        }
        if self.table_bytes < TABLE_BYTES_MIN {
            return complain("table_bytes must be at least 4096");
        }
        if !L0_RUNS.contains(&self.l0_runs) {
            return complain("l0_runs must lie between 1 and 32");
        }
        if self.separate_values_from == Some(0) {
            return complain("separate_values_from must be at least 1");
        }
        if self.blob_file_bytes() < TABLE_BYTES_MIN {
            return complain("blob_file_target_bytes must be at least 4096");
        }
        if !(self.blob_staleness_threshold > 0.0 && self.blob_staleness_threshold <= 1.0) {
            return complain("blob_staleness_threshold must lie above 0 and be at most 1");
        }
        if !(0.0..=1.0).contains(&self.blob_age_cutoff) {
            return complain("blob_age_cutoff must lie between 0 and 1");
        }
        match self.compaction_strategy {
            CompactionStrategy::Fifo { limit_bytes: None, ttl_secs: None } => {
                complain("compaction_strategy: a Fifo needs limit_bytes or ttl_secs")
            }
            CompactionStrategy::Fifo { limit_bytes: Some(0), .. }
            | CompactionStrategy::Fifo { ttl_secs: Some(0), .. } => {
                complain("compaction_strategy: the limits of a Fifo must be at least 1")
            }
            _ => Ok(()),
        }
    }

    /// As it was, or is, written in a format version of CATALOG.
    pub(crate) fn encode(&self, out: &mut Vec<u8>, format: u32) {
        out.put_u32(self.block_bytes);
        out.put_u8(self.compression.encode());
        out.put_u32(self.filter_bits_per_key.to_bits());
        // 0 stands for "not separated"; `validate` keeps it from meaning anything else.
        out.put_u32(self.separate_values_from.unwrap_or(0));
        out.put_u64(self.table_bytes);
        out.put_u8(self.l0_runs);
        if format < WITH_BLOBS {
            return;
        }
        out.put_u64(self.blob_file_bytes());
        out.put_u8(self.values_compression().encode());
        out.put_u32(self.blob_staleness_threshold.to_bits());
        out.put_u32(self.blob_age_cutoff.to_bits());
        let (kind, limit_bytes, ttl_secs) = match self.compaction_strategy {
            CompactionStrategy::Leveled => (0, None, None),
            CompactionStrategy::Fifo { limit_bytes, ttl_secs } => (1, limit_bytes, ttl_secs),
        };
        out.put_u8(kind);
        // 0 stands for "no limit", for the same reason.
        out.put_u64(limit_bytes.unwrap_or(0));
        out.put_u64(ttl_secs.unwrap_or(0));
    }

    /// `Ok(None)`: whole, but not a value that is written in this format version.
    pub(crate) fn decode(
        input: &mut Take<'_>,
        format: u32,
    ) -> std::result::Result<Option<Self>, Truncated> {
        let block_bytes = input.u32()?;
        let compression = Compression::decode(input.u8()?);
        let filter_bits_per_key = f32::from_bits(input.u32()?);
        let separate_values_from = input.u32()?;
        let table_bytes = input.u64()?;
        let l0_runs = input.u8()?;
        let Some(compression) = compression else { return Ok(None) };
        let mut options = Self {
            block_bytes,
            compression,
            filter_bits_per_key,
            separate_values_from: (separate_values_from > 0).then_some(separate_values_from),
            table_bytes,
            l0_runs,
            // What the versions before had without a choice.
            blob_file_target_bytes: Some(table_bytes),
            blob_compression: Some(compression),
            set: ALL_SET,
            ..Self::default()
        };
        if format >= WITH_BLOBS && !options.decode_blobs(input)? {
            return Ok(None);
        }
        Ok(options.validate().is_ok().then_some(options))
    }

    fn decode_blobs(&mut self, input: &mut Take<'_>) -> std::result::Result<bool, Truncated> {
        self.blob_file_target_bytes = Some(input.u64()?);
        self.blob_compression = Compression::decode(input.u8()?);
        self.blob_staleness_threshold = f32::from_bits(input.u32()?);
        self.blob_age_cutoff = f32::from_bits(input.u32()?);
        let (kind, limit_bytes, ttl_secs) = (input.u8()?, input.u64()?, input.u64()?);
        let limit = |limit: u64| (limit > 0).then_some(limit);
        let (limit_bytes, ttl_secs) = (limit(limit_bytes), limit(ttl_secs));
        self.compaction_strategy = match (kind, limit_bytes, ttl_secs) {
            (0, None, None) => CompactionStrategy::Leveled,
            (1, ..) => CompactionStrategy::Fifo { limit_bytes, ttl_secs },
            _ => return Ok(false),
        };
        Ok(self.blob_compression.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unusual() -> PartitionOptions {
        PartitionOptions::default()
            .block_bytes(1024)
            .compression(Compression::None)
            .filter_bits_per_key(7.5)
            .separate_values_from(Some(4096))
            .table_bytes(1 << 20)
            .l0_runs(9)
            .blob_file_target_bytes(2 << 20)
            .blob_compression(Compression::Lz4)
            .blob_staleness_threshold(0.5)
            .blob_age_cutoff(0.75)
            .compaction_strategy(CompactionStrategy::Fifo {
                limit_bytes: Some(1 << 30),
                ttl_secs: None,
            })
    }

    #[test]
    fn options_round_trip() {
        for options in [unusual(), PartitionOptions::default()] {
            let mut bytes = Vec::new();
            options.encode(&mut bytes, 3);
            let decoded = PartitionOptions::decode(&mut Take::new(&bytes), 3);
            assert_eq!(decoded, Ok(Some(options)));
            for cut in 0..bytes.len() {
                let cut = PartitionOptions::decode(&mut Take::new(&bytes[..cut]), 3);
                assert_eq!(cut, Err(Truncated));
            }
        }
    }

    #[test]
    fn options_of_earlier_formats_have_what_was_the_only_choice() {
        let mut bytes = Vec::new();
        unusual().encode(&mut bytes, 2);
        let decoded = PartitionOptions::decode(&mut Take::new(&bytes), 2).unwrap().unwrap();
        let expected = unusual()
            .blob_file_target_bytes(1 << 20)
            .blob_compression(Compression::None)
            .blob_staleness_threshold(0.25)
            .blob_age_cutoff(0.25)
            .compaction_strategy(CompactionStrategy::Leveled);
        assert_eq!(decoded, expected);
    }

    #[test]
    fn every_option_has_a_bit_of_its_own_and_is_compared() {
        assert_eq!(unusual().set, ALL_SET);
        let stored = PartitionOptions::default().blob_compression(Compression::None);
        let refused = unusual().check_against(&stored, "p").unwrap_err().to_string();
        for (name, _) in stored.values() {
            assert!(refused.contains(name), "{refused}");
        }
        assert_eq!(refused.matches(" is ").count(), OPTIONS, "{refused}");
        PartitionOptions::default().check_against(&unusual(), "p").unwrap();
        unusual().check_against(&unusual(), "p").unwrap();
    }
}
