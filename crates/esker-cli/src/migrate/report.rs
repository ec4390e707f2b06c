//! What a conversion did, for people and as JSON.

use std::path::Path;
use std::time::{Duration, Instant};

use esker::Moved;
use esker::interchange::{Provenance, provenance};
use serde_json::json;

use super::How;
use crate::failure::Outcome;
use crate::output::{self, Console, Results, say_json};

/// What a conversion did.
pub struct Report<'a> {
    /// What it is called: `keyspace` or `database`.
    made: &'static str,
    source: &'a Path,
    target: &'a Path,
    began: Instant,
    /// The newest commit.
    pub seqno: u64,
    linked: Moved,
    copied: Moved,
    written: Moved,
    partitions: Vec<String>,
    notes: Vec<String>,
}

impl<'a> Report<'a> {
    pub fn begin(made: &'static str, source: &'a Path, target: &'a Path) -> Self {
        Self {
            made,
            source,
            target,
            began: Instant::now(),
            seqno: 0,
            linked: Moved::default(),
            copied: Moved::default(),
            written: Moved::default(),
            partitions: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a partition: its tree in the source, and the one that was made of it.
    pub fn add(&mut self, name: &str, original: &Path, made: &Path) -> Outcome {
        let Provenance { linked, copied, written, .. } = provenance(original, made)?;
        let parts =
            [(&mut self.linked, linked), (&mut self.copied, copied), (&mut self.written, written)];
        for (sum, part) in parts {
            sum.files += part.files;
            sum.bytes += part.bytes;
        }
        self.partitions.push(name.to_owned());
        Ok(())
    }

    /// Adds what a user of this partition would miss.
    pub fn note(&mut self, name: &str, notes: Vec<String>) {
        self.notes.extend(notes.into_iter().map(|note| format!("{name:?}: {note}")));
    }

    pub fn print(&self, how: &How, console: Console) -> Outcome {
        let total = self.began.elapsed();
        if how.json {
            return say_json(&json!({
                "target": self.target.display().to_string(),
                "source": self.source.display().to_string(),
                "seqno": self.seqno,
                "total_ms": millis(total),
                "linked": self.linked,
                "copied": self.copied,
                "written": self.written,
                "verified": how.verify,
                "partitions": self.partitions,
                "notes": self.notes,
            }));
        }
        if console.is_quiet() {
            return Ok(());
        }
        let mut results = Results::new();
        results.line(format_args!("{:<12}{}", self.made, self.target.display()))?;
        results.line(format_args!("seqno       {}", self.seqno))?;
        results.line(format_args!("total       {:.1} ms", millis(total)))?;
        let ways = [("linked", self.linked), ("copied", self.copied), ("written", self.written)];
        for (way, moved) in ways {
            let (files, bytes) = (output::counted(moved.files, "file"), output::bytes(moved.bytes));
            results.line(format_args!("{way:<12}{files}, {bytes}"))?;
        }
        let names = self.partitions.join(", ");
        results
            .line(format_args!("partitions  {}", if names.is_empty() { "none" } else { &names }))?;
        if how.verify {
            results.line("verified    every entry is the same in both")?;
        }
        for note in &self.notes {
            results.line(format_args!("note        {note}"))?;
        }
        results.flush()
    }
}

fn millis(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e6
}
