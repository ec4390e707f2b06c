//! The primitives that threads of the commit path meet at: locks, atomics, parking.
//!
//! What must stay true: `backlog.rs`, `commit.rs`, `queue.rs`, `views.rs` and `journal/writer.rs` take
//! theirs from here and from nowhere else. The thread tests (`tests/threads`) compile those files a
//! second time over other modules of this name, whose primitives put every interleaving under their
//! control.

pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::OnceLock;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
pub(crate) use std::thread::{Thread, current, park, yield_now};

pub(crate) use parking_lot::{Mutex, MutexGuard};
