//! What the benchmark programs share. Nothing here asserts a time: numbers go to people.

pub mod arguments;
pub mod bare;
pub mod compare;
pub mod fixture;
pub mod histogram;
pub mod load;
pub mod machine;
pub mod peers;
pub mod table;

/// What the programs do with an error: stop and print it.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
