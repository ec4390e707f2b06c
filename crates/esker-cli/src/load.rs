//! `esker load`: real data into a partition.
//!
//! Memory must not grow with the input: files are read ahead within a budget of bytes, lines are
//! streamed, and batches are bounded by entries and by bytes. An input that cannot be read costs
//! itself, not the rest: it is named, counted, and makes the exit code 1. What a finished load
//! reports as loaded is on stable storage. A bulk load is one commit: what ends it leaves nothing.

mod files;
mod lines;
mod sort;
mod target;
mod walk;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use esker::{IngestReport, Keyspace, PartitionOptions, Slice};

use crate::failure::{Failure, Outcome};
use crate::output::{self, Bar, Console, say};
use crate::store;

use target::Target;

pub use lines::{JsonEntry, split};

/// The shortest key the engine refuses.
const KEY_BYTES_TOO_MANY: u64 = 1 << 16;
/// The shortest value the engine refuses.
const VALUE_BYTES_TOO_MANY: u64 = 1 << 32;

/// Load files or lines into a partition
///
/// Creates the keyspace and the partition if they do not exist; for files, with values of 4 KiB and
/// more separated from the keys.
///
/// files: INPUTs are directories or files. The key is the path below the directory given (for a
/// file, its name), the value its content. Symbolic links below an INPUT are not followed;
/// whatever is not a regular file is left out.
///
/// tsv: the first tab of a line separates key and value; without a tab the value is empty. With
/// --escaped, \xNN, \\, \t and \n are read as `esker scan` prints them.
///
/// jsonl: one object a line, {"key": "…", "value": "…"}; key_hex and value_hex instead take bytes as
/// hex digits. The first malformed line ends the load; the lines before it stay, but for --bulk.
///
/// --bulk sorts everything by key, in files if there is much, and writes it past the journal straight
/// into tables: many times faster for a large load, and one commit, which shows all of it at once or
/// nothing. Of several entries of one key the last one stays. --sorted does so without sorting, if the
/// keys ascend already: one that does not ends the load.
///
/// Inputs and lines that cannot be loaded are named on stderr and counted; the rest is loaded and
/// the exit code is 1.
#[derive(clap::Args)]
pub struct Args {
    /// The keyspace
    dir: PathBuf,
    /// The partition
    #[arg(short, long)]
    partition: String,
    /// What the inputs are
    #[arg(short, long)]
    format: Format,
    /// Directories or files; `-` or nothing reads stdin (tsv and jsonl)
    #[arg(value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// tsv: read \xNN, \\, \t and \n as escapes
    #[arg(long)]
    escaped: bool,
    /// Commit after this many entries (or 4 MiB, whichever comes first)
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// Sort everything and load it as one commit, past the journal
    #[arg(long, conflicts_with = "batch")]
    bulk: bool,
    /// The same for keys that ascend already
    #[arg(long, conflicts_with_all = ["batch", "bulk"])]
    sorted: bool,
    /// bulk: sort so many MiB in memory before files are needed
    #[arg(long, value_name = "MIB", default_value_t = 256, requires = "bulk",
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    sort_memory: u64,
    /// bulk: the directory for files to sort in [default: the one that holds the keyspace]
    #[arg(short = 'T', long, value_name = "DIR", requires = "bulk")]
    temporary_directory: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Files,
    Tsv,
    Jsonl,
}

impl Format {
    /// How a partition that the load creates is laid out. Files are kept apart from their names
    /// from 4 KiB on: compaction would rewrite them again and again.
    fn options(self) -> PartitionOptions {
        let options = PartitionOptions::default();
        match self {
            Self::Files => options.separate_values_from(Some(4 << 10)),
            Self::Tsv | Self::Jsonl => options,
        }
    }
}

/// `esker load`
pub fn run(args: &Args, console: Console) -> Outcome {
    check(args)?;
    let keyspace = store::open_or_create(&args.dir)?;
    let partition = match keyspace.open_partition(&args.partition)? {
        Some(partition) => partition,
        None => keyspace.partition(&args.partition, args.format.options())?,
    };
    let start = Instant::now();
    let target = Target::new(args, &keyspace, &partition)?;
    let mut sink = Sink { target, bar: console.bytes("loading"), tally: Tally::default() };
    let outcome = load(args, &keyspace, console, &mut sink);
    let Sink { target, bar, mut tally } = sink;
    let outcome = outcome.and_then(|()| match &tally.stopped {
        // All at once, or nothing.
        Some(reason) if args.bulk || args.sorted => {
            Err(Failure::Failed(format!("{reason}; nothing was loaded")))
        }
        _ => target.finish(&keyspace, &bar, &mut tally),
    });
    bar.clear();
    outcome.map_err(|failure| tally.partway(failure))?;
    keyspace.close()?;
    if !console.is_quiet() {
        say(tally.summary(start.elapsed()))?;
    }
    tally.verdict()
}

/// Refuses what clap cannot see, before anything is created.
fn check(args: &Args) -> Outcome {
    let usage = |sentence: &str| Err(Failure::Usage(sentence.to_owned()));
    match args.format {
        Format::Files if args.inputs.is_empty() => {
            usage("--format files needs at least one INPUT: a directory or a file")
        }
        Format::Files if args.inputs.iter().any(|input| is_stdin(input)) => {
            usage("--format files cannot read stdin")
        }
        Format::Files | Format::Jsonl if args.escaped => usage("--escaped goes with --format tsv"),
        _ => Ok(()),
    }
}

fn is_stdin(input: &Path) -> bool {
    input == Path::new("-")
}

fn load(args: &Args, keyspace: &Keyspace, console: Console, sink: &mut Sink<'_>) -> Outcome {
    match args.format {
        Format::Files => files::load(&args.inputs, keyspace.path(), console, sink)?,
        Format::Tsv => lines::load_tsv(&args.inputs, args.escaped, sink)?,
        Format::Jsonl => lines::load_jsonl(&args.inputs, sink)?,
    }
    Ok(())
}

/// Where the loaders put what they read.
struct Sink<'a> {
    target: Target<'a>,
    bar: Bar,
    tally: Tally,
}

impl Sink<'_> {
    /// Adds one entry. `name` says where the entry came from if the engine could never take it: such
    /// an entry is refused here, since it would fail its batch.
    fn push(
        &mut self,
        key: impl Into<Slice>,
        value: impl Into<Slice>,
        name: impl FnOnce() -> String,
    ) -> Outcome {
        let (key, value) = (key.into(), value.into());
        if let Err(reason) = acceptable(key.len() as u64, value.len() as u64) {
            self.refuse(format_args!("{}: {reason}", name()));
            return Ok(());
        }
        self.target.push(key, value, name, &mut self.tally)
    }

    /// Names and counts what cannot be loaded.
    fn refuse(&mut self, sentence: impl Display) {
        self.bar.warn(sentence);
        self.tally.refused += 1;
    }
}

/// Whether the engine takes an entry of these lengths; the error is a clause that says why not.
fn acceptable(key_bytes: u64, value_bytes: u64) -> Result<(), String> {
    match (key_bytes, value_bytes) {
        (0, _) => Err("the key is empty".to_owned()),
        (KEY_BYTES_TOO_MANY.., _) => Err(format!(
            "the key of {} bytes is longer than 65,535 bytes",
            output::count(key_bytes)
        )),
        (_, VALUE_BYTES_TOO_MANY..) => {
            let bytes = output::count(value_bytes);
            Err(format!("the value of {bytes} bytes is longer than 4,294,967,295 bytes"))
        }
        _ => Ok(()),
    }
}

/// What became of the input.
#[derive(Clone, Debug, Default)]
struct Tally {
    /// Entries committed.
    entries: u64,
    /// Bytes of their keys and values.
    bytes: u64,
    /// Inputs, files and lines that could not be loaded.
    refused: u64,
    /// What the walk left out without being asked to load it: links, sockets, devices.
    left_out: u64,
    /// Why the rest of the input was not looked at.
    stopped: Option<String>,
}

impl Tally {
    fn note(&mut self, report: IngestReport) {
        self.entries = report.entries;
        self.bytes = report.bytes;
    }

    fn summary(&self, time: Duration) -> String {
        let mut summary = format!(
            "loaded {}, {} in {} ({})",
            output::counted(self.entries, "entry"),
            output::bytes(self.bytes),
            output::duration(time),
            output::rate(self.bytes, time)
        );
        if self.left_out > 0 {
            summary +=
                &format!("; left out {} not regular", output::counted(self.left_out, "file"));
        }
        summary
    }

    /// Adds to a failure of the engine how much was committed before it.
    fn partway(&self, failure: Failure) -> Failure {
        let done = match self.entries {
            0 => "nothing was loaded".to_owned(),
            entries => format!("the load stopped after {}", output::counted(entries, "entry")),
        };
        match failure {
            Failure::Engine(cause) => Failure::Partway { done, cause },
            other => other,
        }
    }

    /// Whether everything was loaded.
    fn verdict(&self) -> Outcome {
        let entries = output::counted(self.entries, "entry");
        let refused = output::counted(self.refused, "input");
        match &self.stopped {
            Some(reason) => Err(Failure::Failed(format!("{reason}; {entries} before it loaded"))),
            None if self.refused > 0 => Err(Failure::Failed(format!(
                "{refused} could not be loaded, the rest was ({entries})"
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_keys_and_values_are_inclusive() {
        assert!(acceptable(1, 0).is_ok());
        assert!(acceptable(65_535, (1 << 32) - 1).is_ok());
        assert_eq!(acceptable(0, 1).unwrap_err(), "the key is empty");
        let error = acceptable(65_536, 0).unwrap_err();
        assert_eq!(error, "the key of 65,536 bytes is longer than 65,535 bytes");
        let error = acceptable(1, 1 << 32).unwrap_err();
        assert_eq!(error, "the value of 4,294,967,296 bytes is longer than 4,294,967,295 bytes");
    }

    #[test]
    fn a_load_with_refused_inputs_is_a_failure_that_counts_them() {
        let tally = Tally { entries: 7, refused: 2, ..Tally::default() };
        let failure = tally.verdict().unwrap_err();
        assert_eq!(failure.exit_code(), 1);
        let sentence = failure.to_string();
        assert_eq!(sentence, "2 inputs could not be loaded, the rest was (7 entries)");
    }
}
