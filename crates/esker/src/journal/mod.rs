//! The journal: every commit of all partitions in one order, in numbered segments.
//!
//! Readers and writers share `format` and `items`; `writer` appends and syncs the active segment;
//! `segments` knows which segments exist, what they hold for whom, and which may be deleted.

pub(crate) mod format;
pub(crate) mod items;
pub(crate) mod reader;
pub(crate) mod segments;
pub(crate) mod writer;
