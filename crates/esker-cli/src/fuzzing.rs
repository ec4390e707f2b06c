//! Doors for the fuzz targets: what parses input that a user gives.

use clap::CommandFactory;

use crate::Cli;
use crate::escape::{self, Escaped};
use crate::load::{JsonEntry, split};

/// Bytes as they are printed.
pub fn escape(bytes: &[u8]) -> String {
    Escaped(bytes).to_string()
}

/// What printed bytes stand for.
pub fn unescape(text: &[u8]) -> Result<Vec<u8>, String> {
    escape::parse(text)
}

/// Bytes as hex digits.
pub fn hex(bytes: &[u8]) -> String {
    escape::format_hex(bytes)
}

/// What hex digits stand for.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    escape::parse_hex(text)
}

/// Key and value of a line of `load --format tsv`.
pub fn tsv(line: &[u8]) -> (&[u8], &[u8]) {
    split(line)
}

/// Key and value of a line of `load --format jsonl`.
pub fn json(line: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
    JsonEntry::parse(line)
}

/// The line that `scan --json` prints.
pub fn json_line(key: &[u8], value: &[u8]) -> Option<String> {
    serde_json::to_string(&JsonEntry::new(key, Some(value))).ok()
}

/// The program's command line, to parse arguments with.
pub fn command() -> clap::Command {
    Cli::command()
}
