//! What a keyspace holds, in one line per partition: `digest` and `count`.
//!
//! Equal content must give equal lines whatever the layout on disk, so a digest is taken over the
//! entries in key order and nothing else. All partitions are read through one snapshot.

use std::path::PathBuf;

use esker::{Keyspace, Partition, Slice, Snapshot};
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use crate::failure::Outcome;
use crate::output::{Bar, Console, Results};
use crate::store;

/// Print PARTITION<TAB>COUNT<TAB>HEX lines: equal content gives equal lines
///
/// HEX is xxh3-128 over every entry in key order, as key length (u32 little-endian), key, value
/// length (u32 little-endian), value.
#[derive(clap::Args)]
pub struct Args {
    /// The keyspace
    dir: PathBuf,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Print the number of entries of each partition, or of one
#[derive(clap::Args)]
pub struct CountArgs {
    /// The keyspace
    dir: PathBuf,
    /// Print only the number of this partition
    #[arg(short, long)]
    partition: Option<String>,
}

/// The content of one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Digest {
    /// The partition.
    pub partition: String,
    /// Its number of entries.
    pub count: u64,
    /// xxh3-128 of its entries, as 32 lowercase hex digits.
    pub xxh3_128: String,
}

/// `esker digest`
pub fn run(args: &Args, console: Console) -> Outcome {
    let keyspace = store::open_to_read(&args.dir)?;
    let digests = digests(&keyspace, &console.entries("digesting"))?;
    let mut results = Results::new();
    if args.json {
        results.json(&digests)?;
    } else {
        for Digest { partition, count, xxh3_128 } in &digests {
            results.line(format_args!("{partition}\t{count}\t{xxh3_128}"))?;
        }
    }
    results.flush()
}

/// The digest of every partition, in name order.
pub fn digests(keyspace: &Keyspace, bar: &Bar) -> Outcome<Vec<Digest>> {
    let snapshot = keyspace.snapshot();
    let digests = keyspace.partitions().into_iter().map(|name| {
        let partition = store::partition(keyspace, &name)?;
        digest(&snapshot, &partition, bar)
    });
    let digests = digests.collect();
    bar.clear();
    digests
}

fn digest(snapshot: &Snapshot, partition: &Partition, bar: &Bar) -> Outcome<Digest> {
    let mut content = Content::default();
    for entry in snapshot.iter(partition)? {
        let (key, value) = entry?;
        content.add(&key, &value);
        bar.advance(1);
    }
    Ok(Digest {
        partition: partition.name().to_owned(),
        count: content.count,
        xxh3_128: format!("{:032x}", content.hash.digest128()),
    })
}

/// Entries hashed so far.
#[derive(Default)]
struct Content {
    hash: Xxh3,
    count: u64,
}

impl Content {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        for part in [key, value] {
            // The engine keeps keys under 64 KiB and values under 4 GiB.
            self.hash.update(&(part.len() as u32).to_le_bytes());
            self.hash.update(part);
        }
        self.count += 1;
    }
}

/// `esker count`
pub fn count(args: &CountArgs, console: Console) -> Outcome {
    let keyspace = store::open_to_read(&args.dir)?;
    let snapshot = keyspace.snapshot();
    let bar = console.entries("counting");
    let mut results = Results::new();
    if let Some(name) = &args.partition {
        let partition = store::partition(&keyspace, name)?;
        let number = count_keys(&snapshot, &partition, &bar)?;
        bar.clear();
        results.line(number)?;
    } else {
        let mut lines = Vec::new();
        for name in keyspace.partitions() {
            let partition = store::partition(&keyspace, &name)?;
            lines.push(format!("{name}\t{}", count_keys(&snapshot, &partition, &bar)?));
        }
        bar.clear();
        lines.iter().try_for_each(|line| results.line(line))?;
    }
    results.flush()
}

/// Counts by reading keys instead of calling `len`, to show how far it is.
fn count_keys(snapshot: &Snapshot, partition: &Partition, bar: &Bar) -> esker::Result<u64> {
    let mut number = 0;
    for key in snapshot.iter(partition)?.keys() {
        let _: Slice = key?;
        number += 1;
        bar.advance(1);
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_specified_bytes() {
        let mut content = Content::default();
        content.add(b"key", b"value");
        content.add(b"l", b"");
        let bytes = b"\x03\0\0\0key\x05\0\0\0value\x01\0\0\0l\0\0\0\0";
        assert_eq!(content.hash.digest128(), xxhash_rust::xxh3::xxh3_128(bytes));
        assert_eq!(content.count, 2);
    }

    #[test]
    fn lengths_keep_entries_apart() {
        let (mut one, mut other) = (Content::default(), Content::default());
        one.add(b"ab", b"c");
        other.add(b"a", b"bc");
        assert_ne!(one.hash.digest128(), other.hash.digest128());
    }
}
