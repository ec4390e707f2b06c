//! The comparison of engines: `esker-bench compare`.
//!
//! What must stay true: what is measured runs in a process of its own, so that neither memory nor
//! page cache of one engine counts for the next; engines take turns within a round; and what a
//! workload costs beside the engine (keys, values, clocks) is the same for all.

pub mod cell;
pub mod checkpoints;
pub mod child;
pub mod copies;
pub mod data;
pub mod files;
pub mod opening;
pub mod operations;
pub mod options;
pub mod plot;
pub mod report;
pub mod run;
pub mod steps;
pub mod workloads;
