//! Bodies at a rate.

use std::io;
use std::time::{Duration, Instant};

use super::http::{SLICE_BYTES_MAX, Sink};

/// How far behind its time a connection may be and still catch up.
const CATCH_UP: Duration = Duration::from_millis(100);

/// When the next slice is due.
#[derive(Debug, Default)]
pub(super) struct Pace {
    bytes_per_second: Option<u64>,
    /// When all that was sent is due.
    due: Option<Instant>,
}

impl Pace {
    pub(super) fn set(&mut self, bytes_per_second: Option<u64>) {
        self.bytes_per_second = bytes_per_second.filter(|rate| *rate > 0);
    }

    /// Some ten milliseconds: finer than anybody looks, and few wakes for many connections.
    fn slice_bytes(&self) -> u64 {
        let rate = self.bytes_per_second.unwrap_or(u64::MAX);
        (rate / 100).clamp(1, SLICE_BYTES_MAX)
    }

    /// Waits until so many bytes have had their time.
    pub(super) fn wait_for(&mut self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let now = Instant::now();
        let last = self.due.map_or(now, |due| due.max(now.checked_sub(CATCH_UP).unwrap_or(now)));
        let due = last + Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.due = Some(due);
        std::thread::sleep(due.saturating_duration_since(now));
    }

    /// A new body: nothing has been saved up.
    pub(super) fn begin(&mut self) {
        let now = Instant::now();
        self.due = Some(self.due.map_or(now, |due| due.max(now)));
    }
}

/// Writes at a rate and counts.
pub(super) struct Counted<'a, W> {
    pub(super) inner: W,
    pace: &'a mut Pace,
    pub(super) bytes: u64,
}

impl<'a, W: io::Write> Counted<'a, W> {
    pub(super) fn new(inner: W, pace: &'a mut Pace) -> Self {
        pace.begin();
        Self { inner, pace, bytes: 0 }
    }
}

impl<W: io::Write> Sink for Counted<'_, W> {
    fn body(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pace.wait_for(bytes.len() as u64);
        self.inner.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn frame(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_all(bytes)
    }

    fn slice_bytes(&self) -> u64 {
        self.pace.slice_bytes()
    }
}

/// Takes note of a write that fails and swallows the rest: the answer may say why.
pub(super) struct Lenient<W> {
    pub(super) inner: W,
    pub(super) refused: bool,
}

impl<W: io::Write> io::Write for Lenient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.refused && self.inner.write_all(bytes).is_err() {
            self.refused = true;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
