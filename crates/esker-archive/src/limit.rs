//! How much at a time: bytes in a second, requests beside each other.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Hands out stretches of time, one behind the other, each as long as its bytes take at the rate.
pub(crate) struct Rate {
    bytes_per_second: Option<u64>,
    /// When everything that was asked for has been sent.
    free_at: Mutex<Option<Instant>>,
}

impl Rate {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second: bytes_per_second.filter(|rate| *rate > 0),
            free_at: Mutex::new(None),
        }
    }

    /// Waits until so many bytes may be sent.
    pub(crate) async fn wait_for(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let begin = {
            let mut free_at = self.free_at.lock();
            let begin = free_at.map_or_else(Instant::now, |free_at| free_at.max(Instant::now()));
            *free_at = Some(begin + Duration::from_secs_f64(bytes as f64 / rate as f64));
            begin
        };
        tokio::time::sleep_until(begin).await;
    }
}

/// Requests at the same time. One for little waits for its first byte most of the time, so it counts
/// for less: two of half a worker, or four of a quarter, keep the line as busy as one large one does.
pub(crate) struct Lines(Semaphore);

/// What one worker is worth.
const SHARES: u32 = 4;
const HALF_BYTES_MAX: u64 = 4 << 20;
const QUARTER_BYTES_MAX: u64 = 512 << 10;

impl Lines {
    pub(crate) fn new(workers: usize) -> Self {
        Self(Semaphore::new(workers.saturating_mul(SHARES as usize).min(Semaphore::MAX_PERMITS)))
    }

    /// No more requests than this are under way.
    pub(crate) fn requests_max(workers: usize) -> usize {
        workers.saturating_mul(SHARES as usize)
    }

    /// Waits until a request for so many bytes may begin; it has ended when the permit is dropped.
    pub(crate) async fn enter(&self, bytes: u64) -> SemaphorePermit<'_> {
        let shares = if bytes <= QUARTER_BYTES_MAX {
            1
        } else if bytes <= HALF_BYTES_MAX {
            2
        } else {
            SHARES
        };
        self.0.acquire_many(shares).await.expect("it is never closed")
    }
}
