//! Workloads made of many equal operations, on several threads.
//!
//! What must stay true: an operation is timed by itself only where quantiles are asked for, the
//! clock is read rarely otherwise, and what an operation costs beside the engine is the same for
//! all engines.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::compare::cell::{Outcome, Quantiles};
use crate::compare::data::{self, Order, Values, Zipfian};
use crate::compare::options::Spec;
use crate::compare::steps::{BATCH, SEEK_ENTRIES, Steps};
use crate::compare::workloads::{Choice, Kind, Start, Workload};
use crate::histogram::Histogram;
use crate::peers::{Durability, Key, Peer, Session};

/// Puts in a batch of a load that is not measured.
const LOAD_BATCH: u64 = 1000;
/// Operations between two looks at the clock, when they are short.
const CLOCK_EVERY: u64 = 32;

/// What one thread did.
#[derive(Default)]
struct Done {
    operations: u64,
    units: u64,
    hits: u64,
    reads: u64,
    latency: Histogram,
    /// From when to when: the thread that started it may be late at both ends.
    span: Option<(Instant, Instant)>,
}

/// When a thread stops.
#[derive(Copy, Clone)]
struct Limit {
    operations: u64,
    until: Instant,
}

/// One thread, and what it does.
struct Worker<'a> {
    spec: &'a Spec,
    workload: &'a Workload,
    steps: Steps<'a>,
}

/// Loads the entries that other workloads begin with, settles and closes.
///
/// # Errors
///
/// What the engine returns.
pub fn prepare(spec: &Spec, workload: &Workload) -> Result<Outcome> {
    let peer = spec.open(workload)?;
    let began = Instant::now();
    load(&*peer, spec, 0..spec.entries)?;
    peer.settle()?;
    peer.persist()?;
    peer.close()?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Outcome { value: Some(seconds), operations: spec.entries, seconds, ..Outcome::default() })
}

/// Puts the spread keys of these numbers, in large batches on one thread.
///
/// # Errors
///
/// What the engine returns.
pub fn load(peer: &dyn Peer, spec: &Spec, numbers: std::ops::Range<u64>) -> Result<()> {
    let mut session = peer.session()?;
    let (mut values, mut random) = (Values::new(spec.value_bytes), data::random(0, 0, 1));
    let mut bytes = vec![0; spec.value_bytes * LOAD_BATCH as usize];
    // Values that are large make batches small enough for any engine.
    let batch = LOAD_BATCH.min((1 << 20) / spec.value_bytes.max(1) as u64 + 1);
    let mut first = numbers.start;
    while first < numbers.end {
        let last = (first + batch).min(numbers.end);
        let entries: Vec<(Key, &[u8])> = (first..last)
            .zip(bytes.chunks_exact_mut(spec.value_bytes))
            .map(|(number, value)| {
                values.fill(&mut random, value);
                (data::key(number, Order::Spread), &*value)
            })
            .collect();
        session.put_batch(&entries)?;
        first = last;
    }
    Ok(())
}

/// Loads ascending keys past the journal, and looks whether they are there.
///
/// # Errors
///
/// What the engine returns; also when an entry is missing.
pub fn ingest(spec: &Spec, workload: &Workload) -> Result<Outcome> {
    let peer = spec.open(workload)?;
    let (mut values, mut random) = (Values::new(spec.value_bytes), data::random(spec.round, 0, 3));
    let mut number = 0;
    let began = Instant::now();
    let mut source = |key: &mut Key, value: &mut Vec<u8>| {
        *key = data::key(number, Order::Ascending);
        value.resize(spec.value_bytes, 0);
        values.fill(&mut random, value);
        number += 1;
        number <= spec.entries
    };
    let last_step = peer.ingest(&mut source, &spec.scratch)?;
    let seconds = began.elapsed().as_secs_f64();
    let mut outcome = Outcome { operations: spec.entries, seconds, ..Outcome::default() };
    if let Some(last_step) = last_step {
        let mut session = peer.session()?;
        for number in (0..spec.entries).step_by((spec.entries as usize / 1000).max(1)) {
            if !session.get(&data::key(number, Order::Ascending))? {
                return Err(format!("entry {number} is missing").into());
            }
        }
        outcome.value = Some(spec.entries as f64 / seconds);
        outcome.add("last step s", last_step.as_secs_f64());
    }
    peer.close()?;
    Ok(outcome)
}

/// Runs the workload.
///
/// # Errors
///
/// What the engine returns; also when a read missed that must not, or the reverse.
pub fn run(spec: &Spec, workload: &Workload) -> Result<Outcome> {
    let peer = spec.open(workload)?;
    let values = Values::new(spec.value_bytes);
    let zipfian = Zipfian::new(spec.entries);
    let barrier = Barrier::new(spec.threads);
    let done: Vec<Result<Done>> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..spec.threads)
            .map(|thread| {
                let steps = Steps::new(spec, workload, thread, values.clone(), zipfian);
                let worker = Worker { spec, workload, steps };
                let (peer, barrier) = (&*peer, &barrier);
                scope.spawn(move || worker.work(peer, barrier))
            })
            .collect();
        let join = |lane: thread::ScopedJoinHandle<'_, _>| {
            lane.join().unwrap_or_else(|_| Err("a thread panicked".into()))
        };
        lanes.into_iter().map(join).collect()
    });
    let mut total = Done::default();
    for done in done {
        total.add(&done?);
    }
    let survives = peer.survives();
    let closing = Instant::now();
    peer.close()?;
    let mut outcome = total.outcome(spec, workload)?;
    outcome.add("close s", closing.elapsed().as_secs_f64());
    if workload.writes() {
        outcome.survives = Some(survives);
    }
    Ok(outcome)
}

impl Workload {
    /// Whether it puts anything.
    pub fn writes(&self) -> bool {
        !matches!(self.kind, Kind::Read(_) | Kind::Seek | Kind::Scan(_) | Kind::Verify)
    }

    /// Whether its operations are so long that the clock may be read after each.
    fn is_slow(&self) -> bool {
        self.durability == Durability::Durable
            || matches!(self.kind, Kind::Scan(_) | Kind::FillBatch | Kind::Seek)
    }
}

impl Done {
    fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.units += other.units;
        self.hits += other.hits;
        self.reads += other.reads;
        self.latency.merge(&other.latency);
        self.span = match (self.span, other.span) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
    }

    fn outcome(&self, spec: &Spec, workload: &Workload) -> Result<Outcome> {
        let Self { operations, units, hits, reads, .. } = *self;
        match workload.kind {
            Kind::Read(Choice::Missing) if hits > 0 => {
                return Err(format!("{hits} of {reads} reads of missing keys found one").into());
            }
            Kind::Read(Choice::Missing) => {}
            _ if hits < reads => {
                return Err(format!("{} of {reads} reads missed", reads - hits).into());
            }
            _ => {}
        }
        // A scan sees everything; a seek less than 50 entries only near the end.
        let expected = match workload.kind {
            Kind::Scan(_) => operations * spec.entries,
            Kind::Seek if spec.entries > 10_000 => operations * SEEK_ENTRIES * 9 / 10,
            _ => 0,
        };
        if units < expected {
            return Err(format!("{operations} scans saw {units} entries, not {expected}").into());
        }
        let counted = if workload.kind == Kind::Seek { operations } else { units };
        let (began, ended) = self.span.ok_or("no thread ran")?;
        let seconds = (ended - began).as_secs_f64();
        Ok(Outcome {
            value: Some(counted as f64 / seconds),
            operations,
            seconds,
            latency: Quantiles::of(&self.latency),
            ..Outcome::default()
        })
    }
}

impl Worker<'_> {
    fn work(mut self, peer: &dyn Peer, barrier: &Barrier) -> Result<Done> {
        // Whatever fails before the barrier: the others wait there for this one.
        let session = peer.session();
        let mut warm = Ok(Done::default());
        let session = session.map(|mut session| {
            if self.workload.start == Start::Loaded {
                let until = Instant::now() + Duration::from_secs_f64(self.spec.seconds / 4.0);
                warm = self.drive(&mut *session, Limit { operations: u64::MAX, until });
            }
            session
        });
        barrier.wait();
        warm?;
        let limit = self.limit();
        self.drive(&mut *session?, limit)
    }

    /// Fills have an end, the others a time.
    fn limit(&self) -> Limit {
        let (spec, threads) = (self.spec, self.spec.threads as u64);
        let share = spec.entries / threads + u64::from(self.steps.thread < spec.entries % threads);
        let (operations, seconds) = match self.workload.kind {
            _ if self.workload.durability == Durability::Durable => (u64::MAX, spec.seconds),
            Kind::Fill(_) | Kind::Overwrite => (share, spec.fill_seconds),
            Kind::FillBatch => (share.div_ceil(BATCH), spec.fill_seconds),
            _ => (u64::MAX, spec.seconds),
        };
        Limit { operations, until: Instant::now() + Duration::from_secs_f64(seconds) }
    }

    fn drive(&mut self, session: &mut dyn Session, limit: Limit) -> Result<Done> {
        let mut done = Done::default();
        let timed = self.spec.quantiles || self.workload.durability == Durability::Durable;
        let every = if self.workload.is_slow() { 1 } else { CLOCK_EVERY };
        let began = Instant::now();
        while done.operations < limit.operations {
            if done.operations.is_multiple_of(every) && Instant::now() >= limit.until {
                break;
            }
            let step = if timed {
                let began = Instant::now();
                let step = self.steps.step(session)?;
                done.latency.record(began.elapsed());
                step
            } else {
                self.steps.step(session)?
            };
            done.operations += 1;
            done.units += step.units;
            done.hits += step.hits;
            done.reads += step.reads;
        }
        done.span = Some((began, Instant::now()));
        Ok(done)
    }
}
