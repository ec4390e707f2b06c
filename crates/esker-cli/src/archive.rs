//! Off-site backups: `archive init`, `keygen`, `push`, `list`, `info`, `check`, `drill`, `restore`, `prune`.
//!
//! A repository is a directory or a URL; what the store needs comes from the environment, never from an
//! argument, which others can read. What must stay true: a damaged repository ends with exit code 3, one
//! that somebody else prunes with 4, like a keyspace that is open elsewhere.
//!
//! The verbs are there without the feature `archive` as well, and say that they need it.

#[cfg(feature = "archive")]
mod proof;
#[cfg(feature = "archive")]
mod prune;
#[cfg(feature = "archive")]
mod repository;
#[cfg(feature = "archive")]
mod transfer;

use std::path::PathBuf;
use std::time::Duration;

use crate::failure::Outcome;
use crate::output::Console;
use crate::units;

/// Back up a keyspace to another place, and restore it from there
///
/// REPO is a directory or a URL: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix. What a
/// store needs to know comes from the environment variables that it is used to (AWS_ACCESS_KEY_ID,
/// AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT …). The key of an encrypted repository comes from
/// --key-file or from ESKER_ARCHIVE_KEY, as 64 hex digits.
#[derive(clap::Args)]
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "there is nothing to do with them"))]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "there is nothing to do with them"))]
enum Verb {
    Init(InitArgs),
    Keygen(KeygenArgs),
    Push(PushArgs),
    List(ListArgs),
    Info(InfoArgs),
    Check(CheckArgs),
    Drill(DrillArgs),
    Restore(RestoreArgs),
    Prune(PruneArgs),
}

/// Which repository.
#[derive(clap::Args)]
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "there is nothing to do with them"))]
struct Place {
    /// The repository: a directory or a URL
    #[arg(value_name = "REPO")]
    location: String,
    /// A file with the key of an encrypted repository; without it ESKER_ARCHIVE_KEY
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Create a repository
#[derive(clap::Args)]
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "there is nothing to do with them"))]
struct InitArgs {
    #[command(flatten)]
    place: Place,
    /// Encrypt everything that is stored with the key, which can never be changed
    #[arg(long)]
    encrypt: bool,
}

/// Write a new key to a file that must not exist
///
/// Keep copies of it where the repository is not: without the key nobody reads the backups.
#[derive(clap::Args)]
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "there is nothing to do with them"))]
struct KeygenArgs {
    /// The file
    file: PathBuf,
}

/// Back up a keyspace, or a checkpoint of one
///
/// This program opens a keyspace itself, so nobody else may have it open (exit code 4); a service that has it
/// open pushes by itself, or takes a checkpoint that is pushed. Only files that the repository lacks are sent.
#[derive(clap::Args)]
#[command(override_usage = "esker archive push <REPO> <DIR> [OPTIONS]")]
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "there is nothing to do with them"))]
struct PushArgs {
    #[command(flatten)]
    place: Place,
    /// The keyspace, checkpoint or cold copy
    dir: PathBuf,
    /// A name for the backup; prune keeps those that have one
    #[arg(long)]
    label: Option<String>,
    /// Take only these partitions
    #[arg(long, value_name = "PARTITION", num_args = 1..)]
    include: Vec<String>,
    /// Leave these partitions out
    #[arg(long, value_name = "PARTITION", num_args = 1..)]
    exclude: Vec<String>,
    /// Send no more bytes in a second: 500k, 10M
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    limit_rate: Option<u64>,
    /// Uploads at the same time; default 4
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    workers: Option<u16>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// List the backups, the oldest first
#[derive(clap::Args)]
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "there is nothing to do with them"))]
struct ListArgs {
    #[command(flatten)]
    place: Place,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Print what a repository is, or a backup and what it alone pins
#[derive(clap::Args)]
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "there is nothing to do with them"))]
struct InfoArgs {
    #[command(flatten)]
    place: Place,
    /// The backup, or the beginning of its name
    backup: Option<String>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// Look whether everything that the backups need is there
///
/// Prints each problem on a line and exits with code 3 if there are any. What it has read and proved it
/// remembers in the repository, if it may write there; nothing else is written.
#[derive(clap::Args)]
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "there is nothing to do with them"))]
struct CheckArgs {
    #[command(flatten)]
    place: Place,
    /// Read the data as well, or a share of it: 5%. What was never proved comes first, then what was proved
    /// longest ago
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true,
          default_missing_value = "100%", value_parser = units::share)]
    read_data: Option<f64>,
    /// Take a share by this number, whatever was proved when; the same number takes the same share
    #[arg(long)]
    seed: Option<u64>,
    /// Write nothing to the repository: the next check does not know what this one has proved
    #[arg(long)]
    no_remember: bool,
    /// Requests at the same time; default 4
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    workers: Option<u16>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Prove a backup: restore it, verify it, read every entry, remove it, say how long that took
#[derive(clap::Args)]
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "there is nothing to do with them"))]
struct DrillArgs {
    #[command(flatten)]
    place: Place,
    /// The backup, or the beginning of its name; default the newest
    #[arg(long)]
    backup: Option<String>,
    /// Where to restore to meanwhile; default the directory for temporary files
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    #[command(flatten)]
    how: Download,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// How a restore fetches.
#[derive(clap::Args)]
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "there is nothing to do with them"))]
struct Download {
    /// Requests at the same time; default the number of processors
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    workers: Option<u16>,
    /// What one request brings, in MiB; default 32
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=32))]
    chunk_mib: Option<u64>,
    /// Memory for what is fetched and not written yet, in MiB; default 3 chunks for each worker
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    buffer_mib: Option<u64>,
}

/// Restore a backup to a directory, which is a checkpoint then
///
/// TARGET must not exist. What was interrupted goes on where it was when the same is asked for again.
#[derive(clap::Args)]
#[command(override_usage = "esker archive restore <REPO> <TARGET> [OPTIONS]")]
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "there is nothing to do with them"))]
struct RestoreArgs {
    #[command(flatten)]
    place: Place,
    /// Where the backup goes
    target: PathBuf,
    /// The backup, or the beginning of its name; default the newest, if all are of one keyspace
    #[arg(long)]
    backup: Option<String>,
    #[command(flatten)]
    how: Download,
    /// Restore only these partitions
    #[arg(long, value_name = "PARTITION", num_args = 1..)]
    partition: Vec<String>,
    /// Replace TARGET, which must exist, and take from it what it has in common with the backup
    #[arg(long)]
    delta: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Remove the backups that no rule keeps, and what only they need
///
/// A backup stays if any rule keeps it, if it has a label, or while it is restored. Each keyspace counts
/// alone. Days, weeks and months are those of UTC.
#[derive(clap::Args)]
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "there is nothing to do with them"))]
struct PruneArgs {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    rules: Rules,
    /// Remove nothing; say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for pushes under way before pieces are left to the next prune; default 10m
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    wait: Option<Duration>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What prune keeps.
#[derive(clap::Args)]
#[group(required = true, multiple = true)]
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "there is nothing to do with them"))]
struct Rules {
    /// Keep the newest so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    keep_last: Option<u64>,
    /// Keep every moment of this time restorable: 30d, 12h, 2w
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    keep_within: Option<Duration>,
    /// Keep the newest of each of the last so many days that have any
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    keep_daily: Option<u64>,
    /// Keep the newest of each of the last so many weeks that have any
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    keep_weekly: Option<u64>,
    /// Keep the newest of each of the last so many months that have any
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    keep_monthly: Option<u64>,
}

/// `esker archive`
#[cfg(feature = "archive")]
pub fn run(args: &Args, console: Console) -> Outcome {
    match &args.verb {
        Verb::Init(args) => repository::init(args, console),
        Verb::Keygen(args) => repository::keygen(args, console),
        Verb::Push(args) => transfer::push(args, console),
        Verb::List(args) => repository::list(args),
        Verb::Info(args) => repository::info(args),
        Verb::Check(args) => proof::check(args, console),
        Verb::Drill(args) => proof::drill(args, console),
        Verb::Restore(args) => transfer::restore(args, console),
        Verb::Prune(args) => prune::run(args, console),
    }
}

/// `esker archive`, in a program that cannot.
#[cfg(not(feature = "archive"))]
pub fn run(_: &Args, _: Console) -> Outcome {
    let what = "this program was built without archives; build it with --features archive";
    Err(crate::failure::Failure::Failed(what.to_owned()))
}
