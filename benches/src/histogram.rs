//! Durations, counted in buckets at most 1/64 of their value wide, so that recording one costs no
//! allocation and millions of them take 30 KiB.

use std::time::Duration;

const SUB_BITS: u32 = 6;
const SUB: u64 = 1 << SUB_BITS;
const BUCKETS: usize = (SUB as usize) * (64 - SUB_BITS as usize + 1);

/// Recorded durations, in nanoseconds.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    nanos_max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, nanos_max: 0 }
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < SUB {
        return nanos as usize;
    }
    let shift = 63 - nanos.leading_zeros() - SUB_BITS;
    ((u64::from(shift) + 1) * SUB + ((nanos >> shift) - SUB)) as usize
}

/// The largest value that falls into the bucket.
fn upper(bucket: usize) -> u64 {
    let (group, sub) = (bucket as u64 / SUB, bucket as u64 % SUB);
    if group == 0 {
        return sub;
    }
    // The last bucket's end is 2^64, one more than there is.
    ((u128::from(SUB + sub + 1) << (group - 1)) - 1) as u64
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let nanos = duration.as_nanos() as u64;
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.nanos_max = self.nanos_max.max(nanos);
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.nanos_max = self.nanos_max.max(other.nanos_max);
    }

    /// How many were counted.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.nanos_max)
    }

    /// The duration that a share of `quantile` (0 to 1) does not exceed.
    pub fn quantile(&self, quantile: f64) -> Duration {
        let rank = ((self.total as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(upper(bucket).min(self.nanos_max));
            }
        }
        self.max()
    }

    /// The middle.
    pub fn median(&self) -> Duration {
        self.quantile(0.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_gapless_and_narrow() {
        for nanos in (0..100_000).chain([u64::MAX / 3, u64::MAX - 1, u64::MAX]) {
            let end = upper(bucket(nanos));
            assert!(end >= nanos && end - nanos <= nanos / SUB, "{nanos} fell below {end}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_list() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|nanos| histogram.record(Duration::from_nanos(nanos)));
        assert_eq!(histogram.len(), 1000);
        assert_eq!(histogram.max(), Duration::from_nanos(1000));
        let p99 = histogram.quantile(0.99).as_nanos();
        assert!((990..=990 + 990 / 64).contains(&p99), "{p99}");
    }
}
