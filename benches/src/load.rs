//! Threads that write as fast as they can and time every write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use esker::Partition;
use rand::rngs::SmallRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use crate::Result;
use crate::histogram::Histogram;

/// Size of the values, half of which is random.
pub const VALUE_BYTES: usize = 100;
/// Writers with a limit sleep after so many writes.
const PACE: u64 = 32;

/// Which keys are written.
#[derive(Copy, Clone, Debug)]
pub enum Keys {
    /// Each thread's are ascending, so that compaction moves tables instead of merging them.
    Ascending,
    /// Random ones of so many.
    Random(u64),
}

/// Writers at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    began: Instant,
    threads: Vec<JoinHandle<esker::Result<Histogram>>>,
}

/// What writers did.
pub struct Done {
    /// How long every single write took.
    pub latency: Histogram,
    /// How long they were at it.
    pub elapsed: Duration,
}

impl Done {
    /// Writes per second.
    pub fn rate(&self) -> f64 {
        self.latency.len() as f64 / self.elapsed.as_secs_f64()
    }
}

impl Load {
    /// Starts writers that take the partitions in turn. `run` keeps their keys apart from those of
    /// other runs.
    pub fn start(partitions: &[Partition], threads: usize, keys: Keys, run: u64) -> Self {
        Self::paced(partitions, threads, keys, run, 0)
    }

    /// The same, with at most `rate` writes per second and thread; 0 for no limit.
    pub fn paced(
        partitions: &[Partition],
        threads: usize,
        keys: Keys,
        run: u64,
        rate: u64,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |thread: usize| {
            let (stop, partitions) = (Arc::clone(&stop), partitions.to_vec());
            let id = run << 8 | thread as u64;
            std::thread::spawn(move || write(&partitions, keys, id, rate, &stop))
        };
        let began = Instant::now();
        Self { threads: (0..threads).map(writer).collect(), began, stop }
    }

    /// Lets every writer finish its write.
    ///
    /// # Errors
    ///
    /// The first failure of a write.
    pub fn finish(self) -> Result<Done> {
        self.stop.store(true, Ordering::Relaxed);
        let mut latency = Histogram::default();
        for thread in self.threads {
            latency.merge(&thread.join().map_err(|_| "a writer panicked")??);
        }
        Ok(Done { latency, elapsed: self.began.elapsed() })
    }
}

fn write(
    partitions: &[Partition],
    keys: Keys,
    id: u64,
    rate: u64,
    stop: &AtomicBool,
) -> esker::Result<Histogram> {
    let mut random = SmallRng::seed_from_u64(id);
    let mut latency = Histogram::default();
    let mut value = [b'x'; VALUE_BYTES];
    let started = Instant::now();
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if rate > 0 && number.is_multiple_of(PACE) {
            let due = started + Duration::from_secs_f64(number as f64 / rate as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        random.fill_bytes(&mut value[..VALUE_BYTES / 2]);
        let key: u128 = match keys {
            Keys::Ascending => u128::from(id | 1 << 63) << 64 | u128::from(number),
            Keys::Random(among) => u128::from(random.random_range(0..among)),
        };
        let partition = &partitions[number as usize % partitions.len()];
        let began = Instant::now();
        partition.insert(key.to_be_bytes(), value.as_slice())?;
        latency.record(began.elapsed());
    }
    Ok(latency)
}
