//! `load --format tsv` and `load --format jsonl`: one entry a line.
//!
//! Lines are streamed and their numbers count from 1, empty lines included. In tsv a bad line costs
//! itself; in jsonl a malformed line ends the load, because nothing after it can be trusted to be
//! what its writer meant.

use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Sink, is_stdin};
use crate::escape;
use crate::failure::Outcome;

/// No line is longer: the longest key and value with room for escapes. It keeps an endless line
/// from taking all memory.
const LINE_BYTES_MAX: u64 = 5 << 30;

/// Loads lines of key, tab, value.
pub fn load_tsv(inputs: &[PathBuf], escaped: bool, sink: &mut Sink<'_>) -> Outcome {
    each_line(inputs, sink, |line, place, sink| {
        let (key, value) = split(line);
        if !escaped {
            sink.push(key, value, || place.to_string())?;
            return Ok(Next::Line);
        }
        match escape::parse(key).and_then(|key| Ok((key, escape::parse(value)?))) {
            Ok((key, value)) => sink.push(key, value, || place.to_string())?,
            Err(error) => sink.refuse(format_args!("{place}: {error}")),
        }
        Ok(Next::Line)
    })
}

/// Splits at the first tab; without one, all is key.
pub fn split(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().position(|&byte| byte == b'\t') {
        Some(tab) => (&line[..tab], &line[tab + 1..]),
        None => (line, &[]),
    }
}

/// Loads lines that are each one JSON object.
pub fn load_jsonl(inputs: &[PathBuf], sink: &mut Sink<'_>) -> Outcome {
    each_line(inputs, sink, |line, place, sink| {
        if line.trim_ascii().is_empty() {
            return Ok(Next::Line);
        }
        match JsonEntry::parse(line) {
            Ok((key, value)) => {
                sink.push(key, value, || place.to_string())?;
                Ok(Next::Line)
            }
            Err(reason) => {
                sink.tally.stopped = Some(format!("{place}: {reason}"));
                Ok(Next::Stop)
            }
        }
    })
}

/// An entry as a line of JSON: what `scan --json` prints and `load --format jsonl` reads.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonEntry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_hex: Option<String>,
}

impl JsonEntry {
    /// The JSON of an entry, or of a key alone.
    pub fn new(key: &[u8], value: Option<&[u8]>) -> Self {
        let (key, key_hex) = text_or_hex(key);
        let (value, value_hex) = value.map_or((None, None), text_or_hex);
        Self { key, key_hex, value, value_hex }
    }

    /// Key and value of a line; the error is a clause that says what is wrong.
    pub fn parse(line: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
        let entry: Self = serde_json::from_slice(line).map_err(|error| without_line(&error))?;
        let key = one_of("key", entry.key, entry.key_hex)?;
        let value = one_of("value", entry.value, entry.value_hex)?;
        Ok((key, value))
    }
}

fn text_or_hex(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(escape::format_hex(bytes))),
    }
}

fn one_of(name: &str, text: Option<String>, hex: Option<String>) -> Result<Vec<u8>, String> {
    match (text, hex) {
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(hex)) => {
            escape::parse_hex(&hex).ok_or_else(|| format!("{name}_hex is not pairs of hex digits"))
        }
        (None, None) => Err(format!("neither {name} nor {name}_hex is given")),
        (Some(_), Some(_)) => Err(format!("both {name} and {name}_hex are given")),
    }
}

/// serde_json counts lines too, but always from the start of ours: keep its column only.
fn without_line(error: &serde_json::Error) -> String {
    let sentence = error.to_string();
    match sentence.rsplit_once(" at line ") {
        Some((reason, _)) => format!("{reason} at column {}", error.column()),
        None => sentence,
    }
}

/// Whether to go on after a line.
enum Next {
    Line,
    Stop,
}

/// Where a line came from.
struct Place<'a> {
    input: &'a Path,
    line: u64,
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, line {}", name(self.input), self.line)
    }
}

fn name(input: &Path) -> String {
    if is_stdin(input) { "standard input".to_owned() } else { input.display().to_string() }
}

/// Calls `take` with every line of every input, without its newline. An input that cannot be read
/// is refused and the next one follows.
fn each_line(
    inputs: &[PathBuf],
    sink: &mut Sink<'_>,
    mut take: impl FnMut(&[u8], &Place<'_>, &mut Sink<'_>) -> Outcome<Next>,
) -> Outcome {
    let stdin = [PathBuf::from("-")];
    let inputs = if inputs.is_empty() { &stdin } else { inputs };
    if let Some(total) = total_bytes(inputs) {
        sink.bar.set_total(total);
    }
    for input in inputs {
        let mut lines = match open(input) {
            Ok(reader) => Lines { reader, line: Vec::new() },
            Err(error) => {
                sink.refuse(format_args!("cannot read {}: {error}", name(input)));
                continue;
            }
        };
        for line in 1.. {
            match lines.next() {
                Ok(None) => break,
                Ok(Some((content, bytes))) => {
                    sink.bar.advance(bytes);
                    if let Next::Stop = take(content, &Place { input, line }, sink)? {
                        return Ok(());
                    }
                }
                Err(error) => {
                    let place = Place { input, line };
                    sink.refuse(format_args!("cannot read on at {place}: {error}"));
                    break;
                }
            }
        }
    }
    Ok(())
}

/// The size of all inputs together, if every one of them is a regular file.
fn total_bytes(inputs: &[PathBuf]) -> Option<u64> {
    let sizes = inputs.iter().map(|input| {
        let metadata = input.metadata().ok().filter(Metadata::is_file)?;
        Some(metadata.len())
    });
    sizes.sum()
}

fn open(input: &Path) -> io::Result<Box<dyn BufRead>> {
    if is_stdin(input) {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(input)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(Box::new(BufReader::with_capacity(256 << 10, file)))
}

/// Lines of a reader, one at a time in one buffer.
struct Lines {
    reader: Box<dyn BufRead>,
    line: Vec<u8>,
}

impl Lines {
    /// The next line without its newline, and how many bytes were read for it.
    fn next(&mut self) -> io::Result<Option<(&[u8], u64)>> {
        self.line.clear();
        let bytes = self.reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line)?;
        if bytes as u64 == LINE_BYTES_MAX {
            return Err(io::Error::other("the line is longer than 5 GiB"));
        }
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        Ok((bytes > 0).then_some((line, bytes as u64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<(String, String), String> {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        JsonEntry::parse(line.as_bytes()).map(|(key, value)| (text(key), text(value)))
    }

    #[test]
    fn the_first_tab_separates() {
        assert_eq!(split(b"a\tb\tc"), (&b"a"[..], &b"b\tc"[..]));
        assert_eq!(split(b"a"), (&b"a"[..], &b""[..]));
        assert_eq!(split(b"\tb"), (&b""[..], &b"b"[..]));
    }

    #[test]
    fn lines_lose_their_newline_and_nothing_else() {
        let reader = Box::new(io::Cursor::new(b"a\r\n\n b"));
        let mut lines = Lines { reader, line: Vec::new() };
        assert_eq!(lines.next().unwrap(), Some((&b"a\r"[..], 3)));
        assert_eq!(lines.next().unwrap(), Some((&b""[..], 1)));
        assert_eq!(lines.next().unwrap(), Some((&b" b"[..], 2)));
        assert_eq!(lines.next().unwrap(), None);
    }

    #[test]
    fn json_takes_text_or_hex() {
        let entry = ("k".to_owned(), "v\n".to_owned());
        assert_eq!(parse(r#"{"key": "k", "value": "v\n"}"#), Ok(entry.clone()));
        assert_eq!(parse(r#" {"value_hex":"760A","key_hex":"6b"} "#), Ok(entry));
    }

    #[test]
    fn json_errors_say_what_is_wrong() {
        let error = |line| parse(line).unwrap_err();
        assert_eq!(error(r#"{"value": "v"}"#), "neither key nor key_hex is given");
        assert_eq!(error(r#"{"key": "k"}"#), "neither value nor value_hex is given");
        let both = error(r#"{"key": "k", "key_hex": "6b", "value": "v"}"#);
        assert_eq!(both, "both key and key_hex are given");
        let hex = error(r#"{"key": "k", "value_hex": "6"}"#);
        assert_eq!(hex, "value_hex is not pairs of hex digits");
        assert!(error(r#"{"key": "k", "valu": "v"}"#).starts_with("unknown field `valu`"));
        assert_eq!(error(r#"{"key": "k""#), "EOF while parsing an object at column 11");
        assert!(error("not json").contains("at column"));
        assert!(!error("not json").contains("line"));
    }

    #[test]
    fn json_entries_come_back() {
        for (key, value) in [(&b"k"[..], &b"v"[..]), (b"\xff\x00", b""), (b"\"\n", b"\xfe")] {
            let line = serde_json::to_vec(&JsonEntry::new(key, Some(value))).unwrap();
            assert_eq!(JsonEntry::parse(&line).unwrap(), (key.to_vec(), value.to_vec()));
        }
        let key_only = serde_json::to_string(&JsonEntry::new(b"k", None)).unwrap();
        assert_eq!(key_only, r#"{"key":"k"}"#);
    }
}
