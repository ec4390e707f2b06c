//! One test binary for the whole engine: a module for each thing that it promises.

mod api;
mod backpressure;
mod bad_input;
mod batches;
#[cfg(feature = "bytes")]
mod bytes;
mod checkpoint;
mod checkpoints;
mod compaction;
mod copy;
mod deferring;
mod dropping;
mod exactness;
mod filesystems;
mod fixtures;
mod fjall;
mod full_disk;
mod fuzz;
mod histories;
mod identity;
mod independence;
mod ingest;
mod interchange;
mod iteration;
mod large_values;
mod neighbours;
mod options;
mod parity;
mod readable;
mod readonly;
mod recovery;
mod snapshots;
mod transactions;
mod transcript;
mod typed;
mod verify;
