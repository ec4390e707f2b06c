//! The `esker` program: arguments, dispatch, exit codes. A library, so that the fuzz targets reach its
//! parsers; not one to build on.
//!
//! Every command is one module that parses into an `Args` and does its work in `run`. A command
//! never exits by itself: it returns, so that whatever it holds (locks, temporary directories,
//! progress on the screen) is released before the process ends.

mod archive;
mod checkpoint;
mod checkpoints;
mod demo;
mod digest;
mod escape;
mod failure;
#[doc(hidden)]
pub mod fuzzing;
mod info;
mod kv;
mod load;
mod migrate;
mod output;
mod scan;
mod store;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use failure::{EXIT_CODES, Outcome};
use output::Console;

/// An embedded LSM key-value store that can be backed up while it is written.
///
/// Results go to stdout, progress and errors to stderr. Start with `esker demo`.
#[derive(Parser)]
#[command(name = "esker", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print only errors and what was asked for: no progress, no summaries
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Load(load::Args),
    Get(kv::GetArgs),
    Put(kv::PutArgs),
    Remove(kv::RemoveArgs),
    Scan(scan::Args),
    Count(digest::CountArgs),
    Info(info::Args),
    Digest(digest::Args),
    Checkpoint(checkpoint::CheckpointArgs),
    Checkpoints(checkpoints::Args),
    Copy(checkpoint::CopyArgs),
    Verify(checkpoint::VerifyArgs),
    ImportFjall(migrate::ImportArgs),
    ExportFjall(migrate::ExportArgs),
    Archive(archive::Args),
}

/// The whole program, on the arguments of this process.
pub fn main() -> ExitCode {
    let cli = parse();
    match dispatch(&cli.command, Console::new(cli.quiet)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_quiet() {
                output::complain(&failure);
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Parses the arguments; wrong usage ends the process here, with clap's message and code 2.
fn parse() -> Cli {
    let mut command = Cli::command().after_help(EXIT_CODES).mut_subcommands(|verb| {
        verb.after_help(EXIT_CODES).mut_subcommands(|verb| verb.after_help(EXIT_CODES))
    });
    let matches = command.get_matches_mut();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
}

fn dispatch(command: &Command, console: Console) -> Outcome {
    match command {
        Command::Demo(args) => demo::run(args, console),
        Command::Load(args) => load::run(args, console),
        Command::Get(args) => kv::get(args),
        Command::Put(args) => kv::put(args),
        Command::Remove(args) => kv::remove(args),
        Command::Scan(args) => scan::run(args),
        Command::Count(args) => digest::count(args, console),
        Command::Info(args) => info::run(args),
        Command::Digest(args) => digest::run(args, console),
        Command::Checkpoint(args) => checkpoint::checkpoint(args, console),
        Command::Checkpoints(args) => checkpoints::run(args, console),
        Command::Copy(args) => checkpoint::copy(args, console),
        Command::Verify(args) => checkpoint::verify(args, console),
        Command::ImportFjall(args) => migrate::import(args, console),
        Command::ExportFjall(args) => migrate::export(args, console),
        Command::Archive(args) => archive::run(args, console),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
