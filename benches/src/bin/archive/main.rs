//! Off-site backups: how fast they go and come back, and what many of them cost.
//!
//! - `--what local`: push to and restore from a local directory beside `cp` of the same files.
//! - `--what shaped`: restore over HTTP with a limit and a latency for each connection, by workers, chunk
//!   and shape of the files.
//! - `--what scale`: list, push of nothing, prune plan and check of a large repository in memory.
#![expect(clippy::print_stdout, reason = "tables are what the program is for")]

mod cell;
mod data;
mod local;
mod scale;
mod shaped;

use std::path::PathBuf;

use esker_bench::arguments::Arguments;
use esker_bench::{Result, machine};

fn main() -> Result<()> {
    // A measurement runs in a process of its own, so that its memory is its own.
    if let [_, word, spec] = &std::env::args().collect::<Vec<_>>()[..]
        && word == cell::WORD
    {
        return cell::run(spec);
    }
    let known = [
        "what", "dir", "mib", "rounds", "backups", "files", "each", "workers", "chunks", "buffers",
        "rate", "latency", "plot", "shapes",
    ];
    let arguments = Arguments::parse(&known)?;
    let parent: PathBuf = arguments.get("dir", std::env::temp_dir())?;
    println!("{}\n", machine::describe());
    match arguments.get("what", "local".to_owned())?.as_str() {
        "local" => local::run(&parent, arguments.get("mib", 4096)?, arguments.get("rounds", 3)?),
        "shaped" => shaped::run(&parent, &shaped::Settings::parse(&arguments)?),
        "scale" => scale::run(
            arguments.get("backups", 1000)?,
            arguments.get("files", 200_000)?,
            arguments.get("each", 10_000)?,
        ),
        other => Err(format!("--what is `local`, `shaped` or `scale`, not {other:?}").into()),
    }
}
