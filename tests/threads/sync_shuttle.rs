//! The primitives of the commit path as shuttle has them.

use std::sync::PoisonError;

pub use shuttle::hint::spin_loop;
pub use shuttle::sync::MutexGuard;
pub use shuttle::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
pub use shuttle::thread::{JoinHandle, Thread, current, park, spawn, yield_now};

pub use crate::once::OnceLock;

/// As parking_lot has it: a panic does not poison it.
#[derive(Debug)]
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
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
