//! One entry: `get`, `put`, `remove`.
//!
//! `get` prints exactly the bytes of the value when stdout is a file or a pipe.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use esker::{Batch, Durability, Keyspace, PartitionOptions};

use crate::escape::{self, Escaped};
use crate::failure::{Failure, Outcome};
use crate::output::Results;
use crate::store;

/// Print the value of a key
///
/// The value is printed as it is; on a terminal a newline follows. A key that is not there is a
/// failure (exit code 1).
#[derive(clap::Args)]
pub struct GetArgs {
    #[command(flatten)]
    entry: Entry,
}

/// Write a key and its value
///
/// Creates the keyspace and the partition if they do not exist. The value is read from stdin if it
/// is `-` or missing.
#[derive(clap::Args)]
pub struct PutArgs {
    #[command(flatten)]
    entry: Entry,
    /// The value; `-` or nothing reads stdin
    value: Option<OsString>,
    /// Return only when the entry is on stable storage
    #[arg(long)]
    sync: bool,
}

/// Remove a key
///
/// Removing a key that is not there is no failure.
#[derive(clap::Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    entry: Entry,
    /// Return only when the removal is on stable storage
    #[arg(long)]
    sync: bool,
}

/// Which entry, in the words of all three commands.
#[derive(clap::Args)]
struct Entry {
    /// The keyspace
    dir: PathBuf,
    /// The partition
    #[arg(short, long)]
    partition: String,
    /// The key
    key: OsString,
    /// Read \xNN, \\, \t and \n in the arguments as escapes, as `scan` prints them
    #[arg(short, long)]
    escaped: bool,
}

impl Entry {
    fn key(&self) -> Outcome<Vec<u8>> {
        argument(&self.key, self.escaped, "KEY")
    }
}

/// The bytes an argument stands for.
pub fn argument(text: &OsStr, escaped: bool, name: &str) -> Outcome<Vec<u8>> {
    let text = text.as_encoded_bytes();
    if !escaped {
        return Ok(text.to_vec());
    }
    escape::parse(text).map_err(|error| Failure::Usage(format!("{name} is not escaped: {error}")))
}

/// `esker get`
pub fn get(args: &GetArgs) -> Outcome {
    let key = args.entry.key()?;
    let keyspace = store::open_to_read(&args.entry.dir)?;
    let partition = store::partition(&keyspace, &args.entry.partition)?;
    let Some(value) = partition.get(&key)? else {
        return Err(Failure::Failed(format!(
            "there is no key {} in partition {:?} of {}",
            Escaped(&key),
            args.entry.partition,
            args.entry.dir.display()
        )));
    };
    let mut results = Results::new();
    results.bytes(&value)?;
    if io::stdout().is_terminal() {
        results.bytes(b"\n")?;
    }
    results.flush()
}

/// `esker put`
pub fn put(args: &PutArgs) -> Outcome {
    let key = args.entry.key()?;
    // Read before the keyspace is opened: whoever types a value must not hold the lock meanwhile.
    let value = match args.value.as_deref() {
        Some(value) if value != "-" => argument(value, args.entry.escaped, "VALUE")?,
        _ => read_stdin()?,
    };
    let keyspace = store::open_or_create(&args.entry.dir)?;
    let partition = keyspace.partition(&args.entry.partition, PartitionOptions::default())?;
    write(keyspace, args.sync, |batch| {
        batch.insert(&partition, key, value);
    })
}

/// `esker remove`
pub fn remove(args: &RemoveArgs) -> Outcome {
    let key = args.entry.key()?;
    let keyspace = store::open_existing(&args.entry.dir)?;
    let partition = store::partition(&keyspace, &args.entry.partition)?;
    write(keyspace, args.sync, |batch| {
        batch.remove(&partition, key);
    })
}

fn write(keyspace: Keyspace, sync: bool, fill: impl FnOnce(&mut Batch)) -> Outcome {
    let mut batch = keyspace.batch();
    if sync {
        batch.durability(Durability::SyncAll);
    }
    fill(&mut batch);
    batch.commit()?;
    Ok(keyspace.close()?)
}

fn read_stdin() -> Outcome<Vec<u8>> {
    let mut value = Vec::new();
    io::stdin()
        .lock()
        .read_to_end(&mut value)
        .map_err(|error| Failure::file("read", Path::new("standard input"), &error))?;
    Ok(value)
}
