//! Transactions: reads of one snapshot, and changes that are committed together or not at all.
//!
//! There are two kinds of keyspace with transactions, and one implementation. With a single writer a
//! transaction waits for its turn, and nobody else commits anything while it lasts. Optimistic ones
//! run side by side and note what they read; the commit path refuses those that have read what
//! somebody changed meanwhile (`conflict.rs`).
//!
//! What must stay true:
//! - A transaction sees its snapshot and its own changes, and of others nothing.
//! - Everything it reads is noted, but for its own changes, also what it did not find.
//! - Its changes are one batch: one sequence number, one frame.
//! - Nothing in such a keyspace is changed without the turn, or without being noted: also plain
//!   batches, clears and drops. A partition that is created was read by nobody.

mod keyspace;
mod overlay;
mod turn;
mod write;

pub use keyspace::{TxKeyspace, TxKind, TxPartition};
pub use write::WriteTx;

pub(crate) use overlay::{Overlay, Own};
pub(crate) use turn::{Held, WriterTurn};
