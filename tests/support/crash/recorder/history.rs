//! What a recorded run did and what it was told: the complete map from sequence numbers to changes,
//! and the acknowledgements at their places in the record.
//!
//! What must stay true: the history goes on after every crash index, so that whatever a crash state
//! holds can be named, also a commit that nobody was told of yet.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::image::{Image, Op};
use crate::chaos::{Entries, Model};

/// One change of a batch: partition, key, and no value for a removal.
pub type Change = (String, Vec<u8>, Option<Vec<u8>>);

/// What one sequence number stands for.
#[derive(Clone, Debug)]
pub enum Event {
    Batch(Vec<Change>),
    /// Of one partition, in tables of its own: a crash may leave the number and nothing else.
    Ingest(Vec<Change>),
    Create(String),
    Clear(String),
    Drop(String),
}

/// What a program was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ack {
    /// The keyspace is there.
    Opened,
    /// A commit; durable ones take all earlier ones along.
    Commit { seqno: u64, durable: bool },
    /// Everything up to this commit is durable: persist, a clean close.
    Durable { seqno: u64 },
    /// A change of the partitions, by its place in `History::structure`.
    Structure { number: usize },
    /// A checkpoint or a copy of the keyspace as of this commit.
    Copy { name: String, seqno: u64 },
}

impl Ack {
    /// As it stands in the record.
    pub fn encode(&self) -> Vec<u8> {
        let text = match self {
            Self::Opened => "opened".to_owned(),
            Self::Commit { seqno, durable } => format!("commit {seqno} {durable}"),
            Self::Durable { seqno } => format!("durable {seqno}"),
            Self::Structure { number } => format!("structure {number}"),
            Self::Copy { name, seqno } => format!("copy {name} {seqno}"),
        };
        text.into_bytes()
    }

    /// What was encoded; `None` for anything else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let words: Vec<&str> = std::str::from_utf8(bytes).ok()?.split(' ').collect();
        Some(match words[..] {
            ["opened"] => Self::Opened,
            ["commit", seqno, durable] => {
                Self::Commit { seqno: seqno.parse().ok()?, durable: durable.parse().ok()? }
            }
            ["durable", seqno] => Self::Durable { seqno: seqno.parse().ok()? },
            ["structure", number] => Self::Structure { number: number.parse().ok()? },
            ["copy", name, seqno] => {
                Self::Copy { name: name.to_owned(), seqno: seqno.parse().ok()? }
            }
            _ => return None,
        })
    }
}

/// What a run did, by sequence number.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The content that it began with, and its newest commit.
    pub base: Model,
    pub base_seqno: u64,
    /// The keyspace was there from the beginning.
    pub existed: bool,
    pub events: BTreeMap<u64, Event>,
    /// The sequence numbers of the changes of partitions, in the order in which they happened.
    pub structure: Vec<u64>,
    /// The newest commit when the change of partitions with this number was begun.
    pub begun_at: BTreeMap<u64, u64>,
    /// Commits that may be under way at the same time, changes of partitions included.
    pub threads: u64,
    /// What was refused, or whose outcome nobody was told, by the number that it would have had. A
    /// power cut may bring it back in the place of what got the number later.
    pub refused: BTreeMap<u64, Vec<Event>>,
    /// Partitions whose creation was refused: they may be there, and empty.
    pub attempted: BTreeSet<String>,
}

impl History {
    /// The content after the commit `seqno`.
    pub fn model_at(&self, seqno: u64) -> Model {
        let mut model = self.base.clone();
        for event in self.events.range(..=seqno).map(|(_, event)| event) {
            apply(&mut model, event);
        }
        model
    }

    /// What the content may be when `seqno` is the newest commit and those up to `durable` are
    /// certain: what was done comes first.
    pub fn models_at(&self, seqno: u64, durable: u64) -> Vec<Model> {
        let mut models = vec![self.model_at(seqno)];
        if seqno > durable {
            // Whatever comes behind an ingest waits for its install.
            if let Some(Event::Ingest(_)) = self.events.get(&seqno) {
                models.push(self.model_at(seqno - 1));
            }
            for event in self.refused.get(&seqno).into_iter().flatten() {
                let mut model = self.model_at(seqno - 1);
                apply(&mut model, event);
                models.push(model);
            }
        }
        models
    }

    /// Gives a change of the partitions the one number in the range that nobody else has.
    pub fn place(&mut self, range: RangeInclusive<u64>, event: Event) -> Result<(), String> {
        let free: Vec<u64> =
            range.clone().filter(|seqno| !self.events.contains_key(seqno)).collect();
        let [seqno] = free[..] else {
            return Err(format!("{event:?}: the commits {free:?} of {range:?} belong to nobody"));
        };
        self.events.insert(seqno, event);
        self.structure.push(seqno);
        self.begun_at.insert(seqno, range.start() - 1);
        Ok(())
    }

    /// Every number belongs to somebody.
    pub fn check(&self) -> Result<(), String> {
        let expected = self.base_seqno + 1..=self.base_seqno + self.events.len() as u64;
        if self.events.keys().copied().eq(expected) {
            return Ok(());
        }
        Err(format!("commits without an owner in {:?}", self.events.keys().collect::<Vec<_>>()))
    }
}

/// What the event does to the content.
pub fn apply(model: &mut Model, event: &Event) {
    match event {
        Event::Create(name) => _ = model.insert(name.clone(), Entries::new()),
        Event::Drop(name) => _ = model.remove(name),
        Event::Clear(name) => _ = model.insert(name.clone(), Entries::new()),
        Event::Batch(changes) | Event::Ingest(changes) => {
            for (name, key, value) in changes {
                let Some(entries) = model.get_mut(name) else { continue };
                match value {
                    Some(value) => entries.insert(key.clone(), value.clone()),
                    None => entries.remove(key),
                };
            }
        }
    }
}

/// A finished run.
#[derive(Debug)]
pub struct Recording {
    pub base: Image,
    pub ops: Vec<Op>,
    pub acks: Vec<(usize, Ack)>,
    pub history: History,
}

/// What is promised at one place of a recording.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub existed: bool,
    /// Every commit up to here survives.
    pub durable: u64,
    /// Commits that somebody was told of.
    pub told: BTreeSet<u64>,
    /// Creations of partitions that somebody was told of.
    pub created: BTreeSet<u64>,
    /// Finished checkpoints and copies.
    pub copies: BTreeMap<String, u64>,
}

impl Recording {
    /// Takes the acknowledgements out of the record.
    pub fn new(base: Image, ops: Vec<Op>, history: History) -> Arc<Self> {
        let ack = |(at, op): (usize, &Op)| match op {
            Op::Acknowledge(bytes) => Some((at, Ack::parse(bytes)?)),
            _ => None,
        };
        let acks = ops.iter().enumerate().filter_map(ack).collect();
        Arc::new(Self { base, ops, acks, history })
    }

    /// What was promised before operation `index`.
    pub fn known_before(&self, index: usize) -> Known {
        let history = &self.history;
        let mut known =
            Known { existed: history.existed, durable: history.base_seqno, ..Known::default() };
        for (_, ack) in self.acks.iter().take_while(|(at, _)| *at < index) {
            let durable = match ack {
                Ack::Opened => {
                    known.existed = true;
                    0
                }
                Ack::Commit { seqno, durable } => {
                    known.told.insert(*seqno);
                    if *durable { *seqno } else { 0 }
                }
                Ack::Durable { seqno } => *seqno,
                Ack::Structure { number } => {
                    let seqno = history.structure[*number];
                    known.told.insert(seqno);
                    if let Event::Create(_) = history.events[&seqno] {
                        // CATALOG has the partition; the commit itself is not synced yet.
                        known.created.insert(seqno);
                        0
                    } else {
                        seqno
                    }
                }
                Ack::Copy { name, seqno } => {
                    known.copies.insert(name.clone(), *seqno);
                    // A checkpoint syncs the journal of its source.
                    *seqno
                }
            };
            known.durable = known.durable.max(durable);
        }
        known
    }
}
