//! Whose turn it is to write, in a keyspace with a single writer.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

#[derive(Debug, Default)]
pub(crate) struct WriterTurn {
    taken: Mutex<bool>,
    free: Condvar,
}

impl WriterTurn {
    /// Waits until nobody else writes.
    pub(crate) fn take(self: &Arc<Self>) -> Held {
        let mut taken = self.taken.lock();
        while *taken {
            self.free.wait(&mut taken);
        }
        *taken = true;
        Held(Arc::clone(self))
    }
}

/// The turn, given back on drop, by whatever thread.
#[derive(Debug)]
pub(crate) struct Held(Arc<WriterTurn>);

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.taken.lock() = false;
        self.0.free.notify_one();
    }
}
