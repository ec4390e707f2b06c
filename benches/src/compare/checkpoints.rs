//! Writing while copies of the open database are taken, beside writing without; and copies of a
//! database that grows.
//!
//! What must stay true: every write is timed, the time that an engine (or, where it has to be
//! stopped for a copy, the stop) keeps it waiting included. Copies are removed as soon as they are
//! there.

use std::fs;
use std::sync::RwLock;
use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt as _;

use crate::Result;
use crate::compare::cell::{Outcome, Quantiles};
use crate::compare::data::{self, Order, Values};
use crate::compare::options::Spec;
use crate::compare::report::Spread;
use crate::compare::workloads::{Kind, Workload};
use crate::compare::{files, operations};
use crate::histogram::Histogram;
use crate::peers::{Peer, Taken, Variant};

/// Width of a bucket of the timeline.
const BUCKET: Duration = Duration::from_millis(10);
/// Copies of each size of a growing database.
const COPIES: u64 = 5;

/// What one phase of writing was like.
#[derive(Default)]
struct Phase {
    writes: u64,
    seconds: f64,
    latency: Histogram,
    /// The slowest write of each bucket, in microseconds.
    slowest: Vec<f64>,
    copies: Vec<Copy>,
}

/// One copy: when, in seconds since the phase began, and how long writers were kept out.
#[derive(Clone, std::marker::Copy)]
struct Copy {
    from: f64,
    to: f64,
    freeze: Option<Duration>,
}

/// What the threads of a phase share.
struct Stage<'a> {
    spec: &'a Spec,
    peer: &'a dyn Peer,
    variant: Variant,
    values: &'a Values,
    /// Writers hold it for a write, where copies need a stop.
    gate: RwLock<()>,
    number: u64,
    began: Instant,
    until: Instant,
}

/// Measures with and without copies, the first of the two changing from round to round. A timeline
/// is only the former.
///
/// # Errors
///
/// What the engine returns.
pub fn under_load(spec: &Spec, workload: &Workload) -> Result<Outcome> {
    let variant = match workload.kind {
        Kind::Checkpoint(variant) => variant,
        _ => Variant::Default,
    };
    let peer = spec.open(workload)?;
    if !peer.can_copy(variant) {
        return Ok(Outcome::default());
    }
    let values = Values::new(spec.value_bytes);
    let phase = |number: u64, seconds: f64, copying: bool| {
        let (began, duration) = (Instant::now(), Duration::from_secs_f64(seconds));
        let (peer, values, gate, until) = (&*peer, &values, RwLock::new(()), began + duration);
        Stage { spec, peer, variant, values, gate, number, began, until }.run(copying)
    };
    phase(0, spec.seconds / 4.0, false)?;
    let mut outcome = Outcome { survives: Some(peer.survives()), ..Outcome::default() };
    let with = if workload.kind == Kind::Timeline {
        let with = phase(1, spec.seconds, true)?;
        outcome.value = Some(with.rate());
        with
    } else {
        let first = phase(1, spec.seconds, spec.round % 2 == 1)?;
        let second = phase(2, spec.seconds, spec.round.is_multiple_of(2))?;
        let (without, with) = if spec.round % 2 == 1 { (second, first) } else { (first, second) };
        outcome.value = Some(with.rate() / without.rate());
        outcome.add("without writes/s", without.rate());
        for (name, micros) in Quantiles::of(&without.latency).iter().flat_map(Quantiles::named) {
            outcome.add(format!("without {name} µs"), micros);
        }
        with
    };
    with.report(&mut outcome)?;
    peer.close()?;
    Ok(outcome)
}

impl Stage<'_> {
    fn run(&self, copying: bool) -> Result<Phase> {
        let mut phase = Phase::default();
        thread::scope(|scope| {
            let writers: Vec<_> = (0..self.spec.threads)
                .map(|thread| scope.spawn(move || self.write(thread)))
                .collect();
            if copying {
                phase.copies = self.copy_again_and_again()?;
            }
            for writer in writers {
                phase.add(writer.join().map_err(|_| "a writer panicked")??);
            }
            Ok(phase)
        })
    }

    fn write(&self, thread: usize) -> Result<Phase> {
        let mut session = self.peer.session()?;
        let mut values = self.values.clone();
        let mut random = data::random(self.spec.round, thread, 16 + self.number);
        let gated = self.peer.copy_needs_stop();
        let mut phase = Phase::default();
        loop {
            let key = data::key(random.random_range(0..self.spec.entries), Order::Spread);
            let value = values.next(&mut random);
            let began = Instant::now();
            if gated {
                let _open = self.gate.read().map_err(|_| "the copying thread panicked")?;
                session.put(&key, value)?;
            } else {
                session.put(&key, value)?;
            }
            let ended = Instant::now();
            phase.record(ended - self.began, ended - began);
            if ended >= self.until {
                phase.seconds = (ended - self.began).as_secs_f64();
                return Ok(phase);
            }
        }
    }

    fn copy_again_and_again(&self) -> Result<Vec<Copy>> {
        let every = Duration::from_millis(self.spec.checkpoint_every_ms);
        let target = self.spec.scratch.join("copy");
        let mut copies = Vec::new();
        let mut due = self.began + every / 2;
        while due < self.until {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let began = Instant::now();
            let taken = self.copy_to(&target)?;
            let at = |instant: Instant| (instant - self.began).as_secs_f64();
            copies.push(Copy { from: at(began), to: at(Instant::now()), freeze: taken.freeze });
            fs::remove_dir_all(&target)?;
            due = (due + every).max(Instant::now());
        }
        Ok(copies)
    }

    fn copy_to(&self, target: &std::path::Path) -> Result<Taken> {
        if !self.peer.copy_needs_stop() {
            return self.peer.copy_to(target, self.variant);
        }
        let _closed = self.gate.write().map_err(|_| "a writer panicked")?;
        let began = Instant::now();
        self.peer.copy_to(target, self.variant)?;
        Ok(Taken { freeze: Some(began.elapsed()) })
    }
}

impl Phase {
    fn record(&mut self, at: Duration, latency: Duration) {
        self.writes += 1;
        self.latency.record(latency);
        let bucket = (at.as_nanos() / BUCKET.as_nanos()) as usize;
        if bucket >= self.slowest.len() {
            self.slowest.resize(bucket + 1, 0.0);
        }
        self.slowest[bucket] = self.slowest[bucket].max(latency.as_nanos() as f64 / 1e3);
    }

    fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.seconds = self.seconds.max(other.seconds);
        self.latency.merge(&other.latency);
        self.slowest.resize(self.slowest.len().max(other.slowest.len()), 0.0);
        for (mine, theirs) in self.slowest.iter_mut().zip(other.slowest) {
            *mine = mine.max(theirs);
        }
    }

    fn rate(&self) -> f64 {
        self.writes as f64 / self.seconds
    }

    fn report(&self, outcome: &mut Outcome) -> Result<()> {
        outcome.operations = self.writes;
        outcome.seconds = self.seconds;
        outcome.latency = Quantiles::of(&self.latency);
        outcome.add("with writes/s", self.rate());
        let totals = self.copies.iter().map(|copy| (copy.to - copy.from) * 1e3);
        let total = Spread::of(totals).ok_or("the phase was too short for a checkpoint")?;
        outcome.add("checkpoints taken", self.copies.len() as f64);
        outcome.add("checkpoint p50 ms", total.median);
        outcome.add("checkpoint max ms", total.max);
        let freezes = self.copies.iter().filter_map(|copy| copy.freeze);
        if let Some(freeze) = Spread::of(freezes.map(|freeze| freeze.as_secs_f64() * 1e6)) {
            outcome.add("freeze p50 µs", freeze.median);
            outcome.add("freeze max µs", freeze.max);
        }
        let at = |bucket: usize| bucket as f64 * BUCKET.as_secs_f64();
        outcome.timeline =
            self.slowest.iter().enumerate().map(|(bucket, &micros)| (at(bucket), micros)).collect();
        outcome.copies = self.copies.iter().map(|copy| (copy.from, copy.to)).collect();
        Ok(())
    }
}

/// Copies a database each time it has grown to one of the sizes. Nobody writes meanwhile.
///
/// # Errors
///
/// What the engine returns.
pub fn growing(spec: &Spec, workload: &Workload) -> Result<Outcome> {
    let peer = spec.open(workload)?;
    if !peer.can_copy(Variant::Default) {
        return Ok(Outcome::default());
    }
    let mut outcome = Outcome::default();
    let (mut loaded, target) = (0, spec.scratch.join("copy"));
    for gib in &spec.gib {
        let entry_bytes = 16 + spec.value_bytes as u64;
        let wanted = (gib * f64::from(1 << 30)) as u64 / entry_bytes;
        operations::load(&*peer, spec, loaded..wanted)?;
        loaded = loaded.max(wanted);
        let (mut totals, mut files) = (Vec::new(), 0);
        for _ in 0..COPIES {
            // Something to flush, as there always is.
            operations::load(&*peer, spec, loaded..loaded + 1000)?;
            loaded += 1000;
            let began = Instant::now();
            peer.copy_to(&target, Variant::Default)?;
            totals.push(began.elapsed().as_secs_f64());
            files = files::list(&target)?.len();
            fs::remove_dir_all(&target)?;
        }
        let total = Spread::of(totals).ok_or("no copy was taken")?;
        outcome.add(format!("{gib:06.2} GiB: checkpoint p50 ms"), total.median * 1e3);
        outcome.add(format!("{gib:06.2} GiB: checkpoint max ms"), total.max * 1e3);
        outcome.add(format!("{gib:06.2} GiB: checkpoint files"), files as f64);
        outcome.value = Some(total.median);
        outcome.seconds = total.median;
        outcome.operations = loaded;
    }
    peer.close()?;
    Ok(outcome)
}
