//! `esker scan`: entries in key order, as text or JSON.
//!
//! Both forms can be loaded back without loss: the text by `load --format tsv --escaped`, the JSON
//! by `load --format jsonl`. Entries are streamed; memory does not grow with the partition.

use std::ffi::OsString;
use std::ops::Bound;
use std::path::PathBuf;

use esker::{Iter, Slice};

use crate::escape::Escaped;
use crate::failure::Outcome;
use crate::kv::argument;
use crate::load::JsonEntry;
use crate::output::Results;
use crate::store;

/// Print entries in key order
///
/// Prints `key<TAB>value` lines in which other bytes than printable text are written as \xNN, and
/// backslash, tab and newline as \\, \t and \n. `esker load --format tsv --escaped` reads them back,
/// and `esker load --format jsonl` those of --json.
#[derive(clap::Args)]
pub struct Args {
    /// The keyspace
    dir: PathBuf,
    /// The partition
    #[arg(short, long)]
    partition: String,
    /// Only keys that begin with this
    #[arg(long, conflicts_with_all = ["from", "to"])]
    prefix: Option<OsString>,
    /// Only keys from this one on
    #[arg(long)]
    from: Option<OsString>,
    /// Only keys before this one
    #[arg(long)]
    to: Option<OsString>,
    /// At most this many entries
    #[arg(long)]
    limit: Option<u64>,
    /// From the last key to the first
    #[arg(long)]
    reverse: bool,
    /// Print the keys only; values are not read
    #[arg(long)]
    keys: bool,
    /// One JSON object a line: key, value, or key_hex, value_hex for bytes that are not UTF-8
    #[arg(long)]
    json: bool,
    /// Read \xNN, \\, \t and \n in --prefix, --from and --to as escapes
    #[arg(short, long)]
    escaped: bool,
}

/// An entry, or only its key.
type Row = esker::Result<(Slice, Option<Slice>)>;

/// `esker scan`
pub fn run(args: &Args) -> Outcome {
    let range = Range::new(args)?;
    let keyspace = store::open_to_read(&args.dir)?;
    let partition = store::partition(&keyspace, &args.partition)?;
    let iter = match range {
        Range::Empty => return Ok(()),
        Range::Prefix(prefix) => partition.prefix(prefix)?,
        Range::Between(from, to) => partition.range((from, to))?,
    };
    let rows = rows(iter, args.keys, args.reverse);
    let limit = usize::try_from(args.limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let mut results = Results::new();
    for row in rows.take(limit) {
        let (key, value) = row?;
        match value {
            _ if args.json => results.json_line(&JsonEntry::new(&key, value.as_deref()))?,
            Some(value) => results.line(format_args!("{}\t{}", Escaped(&key), Escaped(&value)))?,
            None => results.line(Escaped(&key))?,
        }
    }
    results.flush()
}

fn rows(iter: Iter, keys: bool, reverse: bool) -> Box<dyn Iterator<Item = Row>> {
    if keys {
        in_order(iter.keys().map(|key| Ok((key?, None))), reverse)
    } else {
        in_order(iter.map(|entry| entry.map(|(key, value)| (key, Some(value)))), reverse)
    }
}

fn in_order(
    rows: impl DoubleEndedIterator<Item = Row> + 'static,
    reverse: bool,
) -> Box<dyn Iterator<Item = Row>> {
    if reverse { Box::new(rows.rev()) } else { Box::new(rows) }
}

/// Which keys.
#[derive(Debug, PartialEq)]
enum Range {
    Empty,
    Prefix(Vec<u8>),
    Between(Bound<Vec<u8>>, Bound<Vec<u8>>),
}

impl Range {
    fn new(args: &Args) -> Outcome<Self> {
        let bytes = |text: &Option<OsString>, name| {
            text.as_ref().map(|text| argument(text, args.escaped, name)).transpose()
        };
        if let Some(prefix) = bytes(&args.prefix, "--prefix")? {
            return Ok(Self::Prefix(prefix));
        }
        Ok(Self::between(bytes(&args.from, "--from")?, bytes(&args.to, "--to")?))
    }

    fn between(from: Option<Vec<u8>>, to: Option<Vec<u8>>) -> Self {
        match (from, to) {
            // Bounds that cross are no range at all for an ordered map; to a user they are empty.
            (Some(from), Some(to)) if from >= to => Self::Empty,
            (from, to) => Self::Between(
                from.map_or(Bound::Unbounded, Bound::Included),
                to.map_or(Bound::Unbounded, Bound::Excluded),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_that_cross_are_an_empty_range() {
        let between = |from: &str, to: &str| Range::between(Some(from.into()), Some(to.into()));
        assert_eq!(between("b", "a"), Range::Empty);
        assert_eq!(between("a", "a"), Range::Empty);
        assert_ne!(between("a", "b"), Range::Empty);
    }

    #[test]
    fn the_first_bound_is_inside_and_the_last_outside() {
        let range = Range::between(Some(b"a".to_vec()), Some(b"b".to_vec()));
        let expected = (Bound::Included(b"a".to_vec()), Bound::Excluded(b"b".to_vec()));
        assert_eq!(range, Range::Between(expected.0, expected.1));
        assert_eq!(Range::between(None, None), Range::Between(Bound::Unbounded, Bound::Unbounded));
    }
}
