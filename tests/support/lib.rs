//! Fixtures: what tests do to keyspaces, as verbs.

pub mod archive;
pub mod chaos;
pub mod child;
pub mod crash;
pub mod ends;
pub mod files;
pub mod fuzz;
pub mod model;
pub mod mounts;
pub mod planted;
pub mod random;
pub mod skips;
pub mod store;

pub use files::{crash_image, fingerprint};
pub use random::Seeded;
pub use skips::skip;
pub use store::{Content, Store, content, entries, fill, open_content};
