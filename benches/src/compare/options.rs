//! The command line, and what one child is told of it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use serde::{Deserialize, Serialize};

/// The program.
#[derive(Debug, Parser)]
#[command(name = "esker-bench", about = "Compares esker with its neighbours")]
pub struct Program {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs workloads on engines, in turn, and prints tables
    Compare(Box<Compare>),
    /// Lists the engines of this build and the workloads
    List,
    /// One measurement; prints its result as a line of JSON
    #[command(hide = true)]
    Cell {
        /// A [`Spec`] in JSON
        spec: String,
    },
    /// Loads, says so, and waits to be killed
    #[command(hide = true)]
    Victim {
        /// A [`Spec`] in JSON
        spec: String,
    },
}

/// `compare`.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Compare {
    /// Engines, in the order of the first round
    #[arg(long, value_delimiter = ',', default_value = "esker,fjall")]
    pub engines: Vec<String>,
    /// Workloads; `list` explains them
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "fillrandom,fillsync,readrandom,readmissing,seekrandom"
    )]
    pub workloads: Vec<String>,
    /// Numbers of threads
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub threads: Vec<usize>,
    /// Entries that fills write and the others begin with
    #[arg(long, default_value_t = 500_000)]
    pub entries: u64,
    /// Bytes of a value, half of them random; keys have 16
    #[arg(long, default_value_t = 100)]
    pub value_bytes: usize,
    /// Times each cell is measured; the engine that is first changes
    #[arg(long, default_value_t = 3)]
    pub rounds: u64,
    /// Seconds that reads, blends, durable writes and phases with checkpoints go on
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Seconds after which a fill stops, done or not
    #[arg(long, default_value_t = 60.0)]
    pub fill_seconds: f64,
    /// Seconds after which a measurement is killed, its load included
    #[arg(long, default_value_t = 600)]
    pub limit_seconds: u64,
    /// Block or page cache, MiB
    #[arg(long, default_value_t = 64)]
    pub cache_mib: u64,
    /// Write buffer, MiB
    #[arg(long, default_value_t = 256)]
    pub buffer_mib: u64,
    /// Milliseconds between checkpoints
    #[arg(long, default_value_t = 1000)]
    pub checkpoint_every_ms: u64,
    /// Sizes at which checkpointgrowing takes checkpoints, GiB
    #[arg(long, value_delimiter = ',', default_value = "1,4,16")]
    pub gib: Vec<f64>,
    /// Times every operation, so that quantiles are there for every workload
    #[arg(long)]
    pub quantiles: bool,
    /// Where databases are made; default the temporary directory
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Writes everything that was measured there
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Draws charts into this directory
    #[arg(long)]
    pub plot: Option<PathBuf>,
}

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The engine.
    pub engine: String,
    /// The workload.
    pub workload: String,
    /// Threads.
    pub threads: usize,
    /// Which repetition: seeds follow from it.
    pub round: u64,
    /// See [`Compare::entries`].
    pub entries: u64,
    /// See [`Compare::value_bytes`].
    pub value_bytes: usize,
    /// See [`Compare::seconds`].
    pub seconds: f64,
    /// See [`Compare::fill_seconds`].
    pub fill_seconds: f64,
    /// Cache, in bytes.
    pub cache_bytes: u64,
    /// Write buffer, in bytes.
    pub buffer_bytes: u64,
    /// See [`Compare::checkpoint_every_ms`].
    pub checkpoint_every_ms: u64,
    /// See [`Compare::gib`].
    pub gib: Vec<f64>,
    /// See [`Compare::quantiles`].
    pub quantiles: bool,
    /// The database.
    pub database: PathBuf,
    /// An empty directory for anything else, on the same filesystem; removed afterwards.
    pub scratch: PathBuf,
}
