//! What a worker says about itself, a line for each thing, and how that is remembered.
//!
//! A line is printed after the call that it acknowledges returned, so what a parent has read did
//! happen; what happened last may not be said.

use std::collections::{BTreeMap, BTreeSet};

use esker::ErrorKind;

/// One thing that a worker tells its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The worker runs.
    Begun,
    /// The keyspace is open and has its partitions.
    Ready,
    /// A writer goes on with this commit.
    Resumed {
        writer: usize,
        count: u64,
    },
    Commit {
        writer: usize,
        count: u64,
        seqno: u64,
        durable: bool,
    },
    /// Everything up to this commit is durable.
    Durable(u64),
    /// What follows commit `count` of writer 0 is done.
    Shaped(u64),
    Checkpoint {
        name: String,
        seqno: u64,
    },
    /// From now on this checkpoint may be missing or incomplete.
    Removing(String),
    /// A call returned an error.
    Failed {
        what: String,
        kind: String,
        text: String,
    },
    /// Something that no failure below may cause.
    Wrong(String),
    /// The worker did all that it was asked for.
    Ended,
}

impl Line {
    /// The line without its end. Texts of errors fit one line.
    pub fn format(&self) -> String {
        match self {
            Self::Begun => "begun".to_owned(),
            Self::Ready => "ready".to_owned(),
            Self::Commit { writer, count, seqno, durable } => {
                format!("commit {writer} {count} {seqno} {}", u8::from(*durable))
            }
            Self::Resumed { writer, count } => format!("resumed {writer} {count}"),
            Self::Durable(seqno) => format!("durable {seqno}"),
            Self::Shaped(count) => format!("shaped {count}"),
            Self::Checkpoint { name, seqno } => format!("checkpoint {name} {seqno}"),
            Self::Removing(name) => format!("removing {name}"),
            Self::Failed { what, kind, text } => format!("failed {what} {kind} {text}"),
            Self::Wrong(text) => format!("wrong {}", text.replace('\n', " | ")),
            Self::Ended => "ended".to_owned(),
        }
    }

    /// The opposite of [`Line::format`].
    pub fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split(' ').collect();
        let line = match (word, &words[..]) {
            ("begun", _) => Self::Begun,
            ("ready", _) => Self::Ready,
            ("commit", [writer, count, seqno, durable]) => Self::Commit {
                writer: writer.parse().ok()?,
                count: count.parse().ok()?,
                seqno: seqno.parse().ok()?,
                durable: *durable == "1",
            },
            ("resumed", [writer, count]) => {
                Self::Resumed { writer: writer.parse().ok()?, count: count.parse().ok()? }
            }
            ("durable", [seqno]) => Self::Durable(seqno.parse().ok()?),
            ("shaped", [count]) => Self::Shaped(count.parse().ok()?),
            ("checkpoint", [name, seqno]) => {
                Self::Checkpoint { name: (*name).to_owned(), seqno: seqno.parse().ok()? }
            }
            ("removing", [name]) => Self::Removing((*name).to_owned()),
            ("failed", [what, kind, text @ ..]) => Self::Failed {
                what: (*what).to_owned(),
                kind: (*kind).to_owned(),
                text: text.join(" "),
            },
            ("wrong", _) => Self::Wrong(rest.to_owned()),
            ("ended", _) => Self::Ended,
            _ => return None,
        };
        Some(line)
    }

    /// An error as a line.
    pub fn failed(what: &str, error: &esker::Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::Retry => "retry",
            ErrorKind::Io => "io",
            ErrorKind::Poisoned => "poisoned",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Locked => "locked",
            ErrorKind::Closed => "closed",
            _ => "input",
        };
        let (what, kind) = (what.replace(' ', "-"), kind.to_owned());
        Self::Failed { what, kind, text: error.to_string().replace('\n', " | ") }
    }
}

/// A call that failed, as the worker told of it.
#[derive(Clone, Debug)]
pub struct Failure {
    pub what: String,
    pub kind: String,
    pub text: String,
}

/// Everything that one worker said.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub begun: bool,
    pub ready: bool,
    pub ended: bool,
    /// By writer and count: the sequence number.
    pub commits: BTreeMap<usize, BTreeMap<u64, u64>>,
    /// By writer: what it commits next.
    pub next: BTreeMap<usize, u64>,
    pub newest_seqno: u64,
    /// Everything up to here was acknowledged as durable.
    pub durable_seqno: u64,
    pub shaped: Option<u64>,
    pub checkpoints: BTreeMap<String, u64>,
    pub removing: BTreeSet<String>,
    pub failed: Vec<Failure>,
    pub wrong: Vec<String>,
}

impl Said {
    pub fn hear(&mut self, text: &str) {
        match Line::parse(text) {
            None => self.wrong.push(format!("the worker said {text:?}")),
            Some(line) => self.note(line),
        }
    }

    fn note(&mut self, line: Line) {
        match line {
            Line::Begun => self.begun = true,
            Line::Ready => self.ready = true,
            Line::Commit { writer, count, seqno, durable } => {
                let next = self.next.insert(writer, count + 1);
                if next != Some(count) {
                    self.wrong.push(format!("writer {writer} jumped from {next:?} to {count}"));
                }
                self.commits.entry(writer).or_default().insert(count, seqno);
                self.newest_seqno = self.newest_seqno.max(seqno);
                if durable {
                    self.durable_seqno = self.durable_seqno.max(seqno);
                }
            }
            Line::Resumed { writer, count } => {
                // The commit that was under way when an earlier life ended may have happened.
                let next = self.next.insert(writer, count);
                if next.is_some_and(|next| count != next && count != next + 1) {
                    self.wrong.push(format!("writer {writer} resumed at {count}, not {next:?}"));
                }
            }
            Line::Durable(seqno) => {
                self.durable_seqno = self.durable_seqno.max(seqno);
                self.newest_seqno = self.newest_seqno.max(seqno);
            }
            Line::Shaped(count) => {
                self.shaped = Some(count);
                // It is durable when the call returns, and the commits before it are with it.
                let seqno = self.commits.get(&0).and_then(|counts| counts.get(&count));
                self.durable_seqno = self.durable_seqno.max(seqno.copied().unwrap_or(0));
            }
            Line::Checkpoint { name, seqno } => {
                self.durable_seqno = self.durable_seqno.max(seqno);
                self.checkpoints.insert(name, seqno);
            }
            Line::Removing(name) => {
                self.checkpoints.remove(&name);
                self.removing.insert(name);
            }
            Line::Failed { what, kind, text } => self.failed.push(Failure { what, kind, text }),
            Line::Wrong(text) => self.wrong.push(text),
            Line::Ended => self.ended = true,
        }
    }

    /// The acknowledged commits of all writers.
    pub fn commit_count(&self) -> u64 {
        self.commits.values().map(|counts| counts.len() as u64).sum()
    }
}
