//! No more than so many bytes in a second, on average.

use std::time::Duration;

use parking_lot::Mutex;
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
