//! Randomness that can be repeated: every randomised test prints its seed and takes one from
//! `ESKER_SEED`.

use std::hash::{BuildHasher, RandomState};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// A generator that has printed its seed.
pub struct Seeded {
    /// What was printed.
    pub seed: u64,
    rng: StdRng,
}

impl Seeded {
    /// The generator of the test `name`: seeded from `ESKER_SEED`, or afresh.
    #[allow(clippy::print_stdout, reason = "a failing test shows its output, and so its seed")]
    pub fn new(name: &str) -> Self {
        let given = std::env::var("ESKER_SEED").ok();
        let seed = match given {
            Some(text) => text.parse().expect("ESKER_SEED is a number"),
            None => RandomState::new().hash_one(std::process::id()),
        };
        println!("{name}: ESKER_SEED={seed}");
        Self::of(seed)
    }

    /// The generator of this seed, which the caller prints if anything fails.
    pub fn of(seed: u64) -> Self {
        Self { seed, rng: StdRng::seed_from_u64(seed) }
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.rng.random_range(0..end)
    }

    /// Whether something happens that does so once in `of` times.
    pub fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}
