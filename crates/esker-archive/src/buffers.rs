//! Memory for large bodies that is used again: what is fresh costs a page fault for every 4 KiB, which
//! for a restore is most of the work.
//!
//! What must stay true: what is kept and what is lent is never more than the most that was lent at one
//! time, each rounded up by at most a sixteenth ([`rounded`]).

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Less is left to the allocator, which does not give it back to the system.
const KEPT_BYTES_MIN: usize = 256 << 10;

/// Buffers that nobody uses at the moment.
#[derive(Clone, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// One of so many bytes, which hold anything.
    pub(crate) fn lend(&self, bytes: usize) -> Buffer {
        let wanted = rounded(bytes);
        let content = self.take(wanted).unwrap_or_else(|| vec![0; wanted]);
        Buffer { content, bytes, home: self.clone() }
    }

    fn take(&self, bytes: usize) -> Option<Vec<u8>> {
        let mut kept = self.0.lock();
        if let Some(found) = kept.iter().position(|buffer| buffer.len() == bytes) {
            return Some(kept.swap_remove(found));
        }
        // What does not fit makes room for what is new.
        let mut freed = 0;
        while freed < bytes
            && let Some(buffer) = kept.pop()
        {
            freed += buffer.len();
        }
        None
    }
}

/// What a buffer of so many bytes takes: the same for lengths that differ by little.
pub(crate) fn rounded(bytes: usize) -> usize {
    let step = bytes.checked_ilog2().map_or(0, |log| log.saturating_sub(4));
    bytes.next_multiple_of(1 << step)
}

/// A buffer that goes back when it, and the bytes made of it, are dropped.
pub(crate) struct Buffer {
    content: Vec<u8>,
    bytes: usize,
    home: Buffers,
}

impl Buffer {
    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.content[..self.bytes]
    }

    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.content[..self.bytes]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.content.len() >= KEPT_BYTES_MIN {
            self.home.0.lock().push(std::mem::take(&mut self.content));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(buffers: &Buffers) -> Vec<usize> {
        buffers.0.lock().iter().map(Vec::len).collect()
    }

    #[test]
    fn lengths_that_take_turns_hold_no_more_than_they_ask_for() {
        let (buffers, unit) = (Buffers::default(), KEPT_BYTES_MIN);
        let mut most = 0;
        for round in 0..6 {
            let bytes = [40, 32, 33, 57][round % 4] * unit;
            let lent: Vec<_> = (0..10).map(|_| buffers.lend(bytes)).collect();
            let held = lent.iter().map(|buffer| buffer.content.len()).sum::<usize>();
            assert!(held <= 10 * (bytes + bytes / 16), "{held} of {bytes}");
            most = most.max(held);
            let all = held + kept(&buffers).iter().sum::<usize>();
            assert!(all <= most, "{all} of {most}");
        }
        assert_eq!([1, 15, 16, 17, 100].map(rounded), [1, 15, 16, 17, 100]);
        assert_eq!([(32 << 20) + 5, 33 << 20].map(rounded), [34 << 20, 34 << 20]);
    }

    #[test]
    fn buffers_are_used_again_and_never_more_than_were_lent_at_once() {
        let (buffers, large) = (Buffers::default(), 4 * KEPT_BYTES_MIN);
        let bytes = [buffers.lend(large).freeze(), buffers.lend(large).freeze()];
        let parts: Vec<_> = bytes.iter().map(|bytes| bytes.slice(1..2)).collect();
        drop(bytes);
        assert!(kept(&buffers).is_empty(), "parts of them are in use");
        drop(parts);
        assert_eq!(kept(&buffers), [large, large]);
        let mut shorter = buffers.lend(large - 100);
        assert_eq!((shorter.as_mut().len(), kept(&buffers)), (large - 100, vec![large]));
        // One that none fits takes the place of others.
        let larger = buffers.lend(2 * large);
        assert!(kept(&buffers).is_empty());
        drop((shorter, larger, buffers.lend(10)));
        assert_eq!(kept(&buffers), [large, 2 * large]);
    }
}
