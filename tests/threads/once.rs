//! A cell that is set once, in terms of what the explorer controls.

use std::sync::OnceLock as Value;

use crate::sync::{AtomicBool, Ordering};

pub struct OnceLock<T> {
    set: AtomicBool,
    value: Value<T>,
}

impl<T> OnceLock<T> {
    pub fn new() -> Self {
        Self { set: AtomicBool::new(false), value: Value::new() }
    }

    pub fn get(&self) -> Option<&T> {
        if self.set.load(Ordering::Acquire) { self.value.get() } else { None }
    }

    /// `value` must not meet other threads.
    pub fn get_or_init(&self, value: impl FnOnce() -> T) -> &T {
        let value = self.value.get_or_init(value);
        self.set.store(true, Ordering::Release);
        value
    }
}
