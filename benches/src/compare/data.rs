//! Keys, values and the distributions they are chosen by.
//!
//! What must stay true: key number n is the same in every process, two numbers never give the same
//! key, and making a key and a value costs nanoseconds, the same for every engine.

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use crate::peers::Key;

/// Random bytes that values are cut from, far more than an LZ4 window.
const POOL_BYTES: usize = 1 << 20;

/// How keys lie beside each other.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Ascending with the number.
    Ascending,
    /// All over the place.
    Spread,
}

/// The finaliser of splitmix64: a bijection, so that different numbers stay different.
fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The key of a number: the number itself and a mix of it, the one that decides the order first.
#[inline]
pub fn key(number: u64, order: Order) -> Key {
    let (first, second) = match order {
        Order::Ascending => (number, mix(number)),
        Order::Spread => (mix(number), number),
    };
    (u128::from(first) << 64 | u128::from(second)).to_be_bytes()
}

/// A fast generator for one thread of one round, the same for every engine.
pub fn random(round: u64, thread: usize, purpose: u64) -> SmallRng {
    SmallRng::seed_from_u64(mix(round << 32 | (thread as u64) << 8 | purpose))
}

/// Values, half of which is random: LZ4 makes them half as large.
#[derive(Clone)]
pub struct Values {
    pool: Arc<Vec<u8>>,
    value: Vec<u8>,
}

impl Values {
    /// Values of so many bytes.
    pub fn new(value_bytes: usize) -> Self {
        let mut pool = vec![0; POOL_BYTES.max(value_bytes)];
        random(0, 0, 0).fill_bytes(&mut pool);
        Self { pool: Arc::new(pool), value: vec![b'v'; value_bytes] }
    }

    /// The next one.
    #[inline]
    pub fn next(&mut self, random: &mut SmallRng) -> &[u8] {
        let half = self.value.len() / 2;
        let offset = random.random_range(0..self.pool.len() - half);
        self.value[..half].copy_from_slice(&self.pool[offset..offset + half]);
        &self.value
    }

    /// The next one, into `value` of the same length.
    pub fn fill(&mut self, random: &mut SmallRng, value: &mut [u8]) {
        value.copy_from_slice(self.next(random));
    }
}

/// Ranks 0, 1, … of `items`, rank r with a probability of about `1 / (r + 1)^0.99`: the generator
/// of Gray et al. that YCSB uses. Ranks are numbers of keys, which [`Order::Spread`] scatters.
#[derive(Copy, Clone, Debug)]
pub struct Zipfian {
    items: f64,
    zeta: f64,
    alpha: f64,
    eta: f64,
    second: f64,
}

const THETA: f64 = 0.99;

impl Zipfian {
    /// Takes time in proportion to the number of items: make one, then copy it.
    pub fn new(items: u64) -> Self {
        let items = items.max(2);
        let zeta: f64 = (1..=items).map(|rank| (rank as f64).powf(-THETA)).sum();
        let second = 1.0 + 0.5_f64.powf(THETA);
        let eta = (1.0 - (2.0 / items as f64).powf(1.0 - THETA)) / (1.0 - second / zeta);
        Self { items: items as f64, zeta, alpha: 1.0 / (1.0 - THETA), eta, second }
    }

    /// A rank.
    #[inline]
    pub fn rank(&self, random: &mut SmallRng) -> u64 {
        let uniform: f64 = random.random();
        let scaled = uniform * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < self.second {
            return 1;
        }
        let rank = self.items * (self.eta * uniform - self.eta + 1.0).powf(self.alpha);
        rank.min(self.items - 1.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn keys_are_different_and_in_the_order_they_promise() {
        for order in [Order::Ascending, Order::Spread] {
            let keys: BTreeSet<Key> = (0..100_000).map(|number| key(number, order)).collect();
            assert_eq!(keys.len(), 100_000);
        }
        assert!((0..1000).all(|n| key(n, Order::Ascending) < key(n + 1, Order::Ascending)));
        let low = (0..10_000).filter(|&n| key(n, Order::Spread)[0] < 128).count();
        assert!((4_500..5_500).contains(&low), "{low} of 10000 in the lower half");
    }

    #[test]
    fn a_zipfian_rank_is_as_frequent_as_the_formula_says() {
        const DRAWS: u32 = 1_000_000;
        let (items, mut generator) = (1000, random(1, 0, 0));
        let zipfian = Zipfian::new(items);
        let mut counts = vec![0_u32; items as usize];
        for _ in 0..DRAWS {
            counts[zipfian.rank(&mut generator) as usize] += 1;
        }
        for rank in [0_u32, 1, 9, 99, 999] {
            let expected = f64::from(rank + 1).powf(-THETA) / zipfian.zeta;
            let seen = f64::from(counts[rank as usize]) / f64::from(DRAWS);
            // The generator is exact for the first two and close for the rest.
            let allowed = if rank < 2 { 0.02 } else { 0.3 };
            assert!((seen / expected - 1.0).abs() < allowed, "rank {rank}: {seen}, not {expected}");
        }
    }

    #[test]
    fn values_have_their_length_and_differ() {
        let (mut values, mut random) = (Values::new(101), random(1, 0, 0));
        let first = values.next(&mut random).to_vec();
        assert_eq!(first.len(), 101);
        assert_ne!(first, values.next(&mut random));
        assert_eq!(&first[50..], [b'v'; 51]);
    }
}
