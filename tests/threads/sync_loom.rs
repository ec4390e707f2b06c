//! The primitives of the commit path as loom has them.

use std::sync::PoisonError;

pub use loom::hint::spin_loop;
pub use loom::sync::MutexGuard;
pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
pub use loom::thread::{JoinHandle, Thread, current, park, spawn, yield_now};

pub use crate::once::OnceLock;

/// As parking_lot has it: a panic does not poison it.
#[derive(Debug)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}
