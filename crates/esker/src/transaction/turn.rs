//! Whose turn it is to write, in a keyspace with a single writer: first come, first served.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

#[derive(Debug, Default)]
struct State {
    /// The number of whoever comes next.
    next: u64,
    /// The number whose turn it is.
    serving: u64,
    closed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct WriterTurn {
    state: Mutex<State>,
    moved: Condvar,
}

impl WriterTurn {
    /// Waits until nobody else writes; `None` when the keyspace is closed.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Held> {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        while state.serving != number && !state.closed {
            self.moved.wait(&mut state);
        }
        // The numbers of those that give up are never served, and nobody is any more.
        (!state.closed).then(|| Held(Arc::clone(self)))
    }

    /// Nobody gets a turn from here on. Whoever has one keeps it.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.moved.notify_all();
    }
}

/// The turn, given back on drop, by whatever thread.
#[derive(Debug)]
pub(crate) struct Held(Arc<WriterTurn>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.state.lock().serving += 1;
        self.0.moved.notify_all();
    }
}
