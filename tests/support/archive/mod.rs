//! What the tests of the archive stand on: a store over HTTP, what goes wrong with it, and histories.

#[cfg(feature = "archive")]
pub mod histories;
pub mod proxy;
#[cfg(feature = "archive")]
mod rules;
#[cfg(feature = "archive")]
pub mod s3;
#[cfg(feature = "archive")]
mod source;
#[cfg(feature = "archive")]
pub mod stage;
