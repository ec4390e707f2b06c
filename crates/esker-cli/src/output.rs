//! What reaches the screen: results, notes, progress and numbers for people.
//!
//! Results go to stdout, everything else to stderr. Nothing here may panic because a stream is
//! closed, so `println!` and `eprintln!` are not used. Progress is drawn only when stderr is a
//! terminal and the user did not ask for quiet, and is gone from the screen when a command ends.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::time::Duration;

use esker::{Phase, Progress};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use serde::Serialize;

use crate::failure::{Failure, Outcome};

/// How the user wants to be told.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    quiet: bool,
    bars: bool,
}

impl Console {
    /// A console for this process.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, bars: !quiet && io::stderr().is_terminal() }
    }

    /// Whether only errors and what was explicitly asked for are wanted.
    pub fn is_quiet(self) -> bool {
        self.quiet
    }

    /// Whether progress is drawn.
    pub fn draws(self) -> bool {
        self.bars
    }

    /// A bar of bytes; its end becomes known with [`Bar::set_total`] or [`Bar::show`].
    pub fn bytes(self, what: &'static str) -> Bar {
        self.bar(what, BYTES_SO_FAR)
    }

    /// A counter of entries, for work whose end is not known.
    pub fn entries(self, what: &'static str) -> Bar {
        self.bar(what, "{spinner} {msg}: {human_pos} entries, {elapsed}")
    }

    /// A sign of life for work that reports nothing.
    pub fn waiting(self, what: &'static str) -> Bar {
        let bar = self.bar(what, "{spinner} {msg}, {elapsed}");
        bar.0.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    fn bar(self, what: &'static str, template: &str) -> Bar {
        if !self.bars {
            return Bar(ProgressBar::hidden());
        }
        let bar = ProgressBar::no_length().with_style(style(template)).with_message(what);
        Bar(bar.with_finish(ProgressFinish::AndClear))
    }
}

// Each fits a terminal of 80 columns: a longer line would wrap and leave its end behind.
const BYTES_SO_FAR: &str = "{spinner} {msg}: {decimal_bytes}, {decimal_bytes_per_sec}, {elapsed}";
const BYTES_OF_TOTAL: &str =
    "{msg} [{bar:20}] {decimal_bytes}/{decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
const FILES_OF_TOTAL: &str = "{msg} [{bar:20}] {human_pos}/{human_len} files, {elapsed}";

/// The look of a bar. A template that does not parse costs the looks, not the command.
fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

/// Progress on stderr; cleared when the last clone is dropped.
#[derive(Clone)]
pub struct Bar(ProgressBar);

impl Bar {
    /// Adds to what is done.
    pub fn advance(&self, amount: u64) {
        self.0.inc(amount);
    }

    /// Sets the total of a bar of bytes, as soon as it is known.
    pub fn set_total(&self, total: u64) {
        self.0.set_style(style(BYTES_OF_TOTAL));
        self.0.set_length(total);
    }

    /// Replaces the words before the numbers.
    pub fn say(&self, what: &'static str) {
        self.0.set_message(what);
    }

    /// Shows what the engine reports of a checkpoint, a copy or a verification.
    pub fn show(&self, progress: Progress) {
        if self.0.is_hidden() {
            return;
        }
        let Progress { phase, files_done, files_total, bytes_done, bytes_total } = progress;
        // A phase may know its bytes, only its files, or neither.
        let (done, total, template) = match (bytes_total, files_total) {
            (0, 0) => (bytes_done, 0, BYTES_SO_FAR),
            (0, files) => (files_done, files, FILES_OF_TOTAL),
            (bytes, _) => (bytes_done, bytes, BYTES_OF_TOTAL),
        };
        if self.0.message() != phase_name(phase) {
            self.0.set_style(style(template));
            self.0.set_message(phase_name(phase));
            self.0.set_length(total);
            // A new phase has its own pace.
            self.0.reset();
        }
        self.0.set_length(total);
        self.0.set_position(done);
    }

    /// Shows bytes of a total, as they are now.
    #[cfg(feature = "archive")]
    pub fn show_bytes(&self, done: u64, total: u64) {
        if self.0.is_hidden() {
            return;
        }
        if total > 0 && self.0.length() != Some(total) {
            self.set_total(total);
        }
        self.0.set_position(done);
    }

    /// Writes a warning on stderr without tearing the bar.
    pub fn warn(&self, sentence: impl Display) {
        self.0.suspend(|| complain(sentence));
    }

    /// Takes the bar off the screen, before results are printed.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Flush => "flushing",
        Phase::Link => "linking",
        Phase::Copy => "copying",
        Phase::Verify => "verifying",
        Phase::Sync => "syncing",
        _ => "working",
    }
}

/// Writes one sentence on stderr, in the form of every error of this program.
pub fn complain(sentence: impl Display) {
    // If stderr is gone there is nobody left to tell; the exit code still says it.
    let _ = writeln!(io::stderr(), "esker: {sentence}");
}

/// Results on stdout, buffered.
pub struct Results(BufWriter<StdoutLock<'static>>);

impl Results {
    /// Takes stdout.
    pub fn new() -> Self {
        Self(BufWriter::with_capacity(64 << 10, io::stdout().lock()))
    }

    /// Prints bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Outcome {
        self.0.write_all(bytes).map_err(Failure::Output)
    }

    /// Prints one line.
    pub fn line(&mut self, line: impl Display) -> Outcome {
        writeln!(self.0, "{line}").map_err(Failure::Output)
    }

    /// Prints a value as JSON on one line.
    pub fn json_line(&mut self, value: &impl Serialize) -> Outcome {
        serde_json::to_writer(&mut self.0, value).map_err(|error| Failure::Output(error.into()))?;
        self.bytes(b"\n")
    }

    /// Prints a value as JSON over several lines.
    pub fn json(&mut self, value: &impl Serialize) -> Outcome {
        serde_json::to_writer_pretty(&mut self.0, value)
            .map_err(|error| Failure::Output(error.into()))?;
        self.bytes(b"\n")
    }

    /// Prints what is buffered. A command must call it, or an error is lost.
    pub fn flush(&mut self) -> Outcome {
        self.0.flush().map_err(Failure::Output)
    }
}

/// Prints one line of results at once.
pub fn say(line: impl Display) -> Outcome {
    let mut results = Results::new();
    results.line(line)?;
    results.flush()
}

/// Prints one value as JSON at once.
pub fn say_json(value: &impl Serialize) -> Outcome {
    let mut results = Results::new();
    results.json(value)?;
    results.flush()
}

/// A table with aligned columns: the first to the left, the others to the right.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let head = head.iter().map(ToString::to_string).collect::<Vec<_>>();
    let lines = std::iter::once(&head).chain(rows).map(|row| table_line(row, &widths));
    lines.collect::<Vec<_>>().join("\n")
}

fn table_line(row: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (column, (cell, &width)) in row.iter().zip(widths).enumerate() {
        match column {
            0 => line += &format!("{cell:<width$}"),
            _ => line += &format!("  {cell:>width$}"),
        }
    }
    line.trim_end().to_owned()
}

/// A number with its digits in groups: `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A number of things with the right form of the noun: `1 file`, `2 files`.
pub fn counted(number: u64, noun: &str) -> String {
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{} {stem}ies", count(number)),
        _ => format!("{} {noun}s", count(number)),
    }
}

/// A number of bytes with three digits of it: `12.3 MB` (decimal units).
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if number < 1000 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1e3;
    let mut unit = 0;
    // From 999.5 on, three digits round up to the next unit.
    while value >= 999.5 {
        value /= 1e3;
        unit += 1;
    }
    format!("{} {}", three_digits(value), UNITS[unit])
}

/// Bytes per second.
pub fn rate(number: u64, time: Duration) -> String {
    // A clock that did not move would make an infinite rate.
    let per_second = number as f64 / time.as_secs_f64().max(1e-9);
    format!("{}/s", bytes(per_second as u64))
}

/// A duration with three digits of it: `7.25 µs`, `1.50 s`.
pub fn duration(time: Duration) -> String {
    let nanos = time.as_nanos() as f64;
    match nanos {
        ..1e3 => format!("{nanos} ns"),
        ..999.5e3 => format!("{} µs", three_digits(nanos / 1e3)),
        ..999.5e6 => format!("{} ms", three_digits(nanos / 1e6)),
        _ => format!("{} s", three_digits(nanos / 1e9)),
    }
}

/// A moment in UTC, to the second: `2026-03-01 12:30:00Z`.
pub fn time(ms: u64) -> String {
    let (days, secs) = (ms / 86_400_000, ms / 1000 % 86_400);
    // Counted from 0000-03-01, so that the leap day is the last of a year; an era is 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (secs / 3600, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

fn three_digits(value: f64) -> String {
    match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1000), "1,000");
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn nouns_take_their_plural() {
        assert_eq!(counted(1, "entry"), "1 entry");
        assert_eq!(counted(0, "entry"), "0 entries");
        assert_eq!(counted(1200, "file"), "1,200 files");
    }

    #[test]
    fn bytes_have_three_digits_in_every_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.00 kB");
        assert_eq!(bytes(12_345_678), "12.3 MB");
        assert_eq!(bytes(999_499_999), "999 MB");
        assert_eq!(bytes(999_500_000), "1.00 GB");
        assert_eq!(bytes(u64::MAX), "18.4 EB");
    }

    #[test]
    fn durations_have_three_digits_in_every_unit() {
        assert_eq!(duration(Duration::from_nanos(7)), "7 ns");
        assert_eq!(duration(Duration::from_nanos(7250)), "7.25 µs");
        assert_eq!(duration(Duration::from_micros(999_600)), "1.00 s");
        assert_eq!(duration(Duration::from_micros(21_600)), "21.6 ms");
        assert_eq!(duration(Duration::from_secs(90)), "90.0 s");
    }

    #[test]
    fn moments_are_those_of_the_calendar() {
        assert_eq!(time(0), "1970-01-01 00:00:00Z");
        assert_eq!(time(1_709_209_845_999), "2024-02-29 12:30:45Z");
        assert_eq!(time(1_772_323_200_000), "2026-03-01 00:00:00Z");
        time(u64::MAX);
    }

    #[test]
    fn a_rate_survives_no_time_at_all() {
        assert_eq!(rate(0, Duration::ZERO), "0 B/s");
        assert_eq!(rate(3_000_000, Duration::from_secs(2)), "1.50 MB/s");
    }

    #[test]
    fn tables_align_their_columns() {
        let rows = [vec!["a".to_owned(), "10".to_owned()], vec!["long".to_owned(), "9".to_owned()]];
        assert_eq!(table(&["name", "n"], &rows), "name   n\na     10\nlong   9");
    }
}
