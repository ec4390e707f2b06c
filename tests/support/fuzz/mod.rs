//! What the fuzz targets do with an input: bytes that may be anything.
//!
//! What must stay true of every target: it never panics on the input's account, it takes no more
//! memory than a small multiple of the input, and what it asserts holds for all bytes, so that an
//! assertion that fails is a bug of the engine. `fuzz/` wraps the targets for libFuzzer; the suite
//! runs seeds and mutations of them (fuzz/README.md).

pub mod archive_manifest;
pub mod archive_piece;
pub mod catalog;
pub mod checkpoint;
pub mod cli;
pub mod examples;
pub mod items;
pub mod journal;
pub mod mutation;
pub mod preflight;

use std::path::PathBuf;

/// A target: takes any bytes, panics if a promise is broken.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its seeds' directory and of its wrapper.
pub const TARGETS: &[(&str, Target)] = &[
    ("archive_manifest", archive_manifest::check),
    ("archive_piece", archive_piece::check),
    ("catalog", catalog::check),
    ("checkpoint", checkpoint::check),
    ("cli", cli::check),
    ("items", items::check),
    ("journal", journal::check),
    ("preflight", preflight::check),
];

/// Where the seeds of a target are kept.
pub fn seeds_of(target: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds")).join(target)
}

/// The seeds of a target, with their names, in order.
pub fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = seeds_of(target);
    let read = |name: String| {
        let bytes = std::fs::read(dir.join(&name)).expect("a seed");
        (name, bytes)
    };
    crate::files::entries(&dir).into_iter().map(read).collect()
}
