//! The options of one partition, as given, as stored and as read back.
//!
//! Stored options are loaded exactly as they were written (a changed blob compression would
//! corrupt relocated blobs), so a newer default never reaches an existing partition.

use serde::Serialize;

use crate::bytes::{Put, Take, Truncated};
use crate::error::{Error, Result};

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

/// How a partition lays out its tables. Fixed when the partition is created.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartitionOptions {
    pub(crate) block_bytes: u32,
    pub(crate) compression: Compression,
    pub(crate) filter_bits_per_key: f32,
    pub(crate) separate_values_from: Option<u32>,
    pub(crate) table_bytes: u64,
    pub(crate) l0_runs: u8,
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
        }
    }
}

const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 256..=(4 << 20);
const TABLE_BYTES_MIN: u64 = 4 << 10;
const FILTER_BITS_MAX: f32 = 64.0;
/// Stalls begin at a multiple of this many runs and a level must stay below 256 (lsm-tree counts
/// them in a byte), so the trigger is kept far from it.
const L0_RUNS: std::ops::RangeInclusive<u8> = 1..=32;

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
        self
    }

    /// Compression of data blocks and separated values; default LZ4.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Bloom filter bits per key; default 10, which answers about 99% of misses without a read.
    /// Whole bits count, and at least one; 0 builds no filters.
    #[must_use]
    pub fn filter_bits_per_key(mut self, bits: f32) -> Self {
        self.filter_bits_per_key = bits;
        self
    }

    /// Keeps values of at least so many bytes in separate blob files, so that compaction does not
    /// rewrite them; default `None`, values stay in the tables.
    #[must_use]
    pub fn separate_values_from(mut self, bytes: Option<u32>) -> Self {
        self.separate_values_from = bytes;
        self
    }

    /// Target size of a table in bytes; default 64 MiB. Compaction raises it as the data grows, so
    /// that a level stays below about a thousand tables.
    #[must_use]
    pub fn table_bytes(mut self, bytes: u64) -> Self {
        self.table_bytes = bytes;
        self
    }

    /// How many runs gather in the first level before they are merged down; default 4, 1 to 32.
    #[must_use]
    pub fn l0_runs(mut self, runs: u8) -> Self {
        self.l0_runs = runs;
        self
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
        Ok(())
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.block_bytes);
        out.put_u8(match self.compression {
            Compression::None => 0,
            Compression::Lz4 => 1,
        });
        out.put_u32(self.filter_bits_per_key.to_bits());
        // 0 stands for "not separated"; `validate` keeps it from meaning anything else.
        out.put_u32(self.separate_values_from.unwrap_or(0));
        out.put_u64(self.table_bytes);
        out.put_u8(self.l0_runs);
    }

    /// `Ok(None)`: whole, but not a value that this version writes.
    pub(crate) fn decode(input: &mut Take<'_>) -> std::result::Result<Option<Self>, Truncated> {
        let block_bytes = input.u32()?;
        let compression = input.u8()?;
        let filter_bits_per_key = f32::from_bits(input.u32()?);
        let separate_values_from = input.u32()?;
        let table_bytes = input.u64()?;
        let l0_runs = input.u8()?;
        let compression = match compression {
            0 => Compression::None,
            1 => Compression::Lz4,
            _ => return Ok(None),
        };
        let options = Self {
            block_bytes,
            compression,
            filter_bits_per_key,
            separate_values_from: (separate_values_from > 0).then_some(separate_values_from),
            table_bytes,
            l0_runs,
        };
        Ok(options.validate().is_ok().then_some(options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_round_trip() {
        let options = PartitionOptions::default()
            .block_bytes(1024)
            .compression(Compression::None)
            .filter_bits_per_key(7.5)
            .separate_values_from(Some(4096))
            .table_bytes(1 << 20)
            .l0_runs(9);
        let mut bytes = Vec::new();
        options.encode(&mut bytes);
        assert_eq!(PartitionOptions::decode(&mut Take::new(&bytes)), Ok(Some(options)));
        assert_eq!(PartitionOptions::decode(&mut Take::new(&bytes[1..])), Err(Truncated));
    }
}
