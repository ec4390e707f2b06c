//! `esker demo`: the guided tour, and a proof on the machine it runs on.
//!
//! Writers never stop while checkpoints are taken; everything that costs time to check is checked
//! after they have ended, so that it does not disturb the numbers. Nothing is sampled: every
//! checkpoint is compared entry by entry with what had been committed at its seqno. If anything
//! differs the tour ends with exit code 1 and says what.

mod model;
mod workload;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use esker::{CheckpointReport, Config, CopyOptions, Keyspace, VerifyOptions, VerifyReport};

use crate::digest;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Console, counted, say};
use crate::store;
use model::Model;

/// Take the guided tour: write on several threads, checkpoint meanwhile, prove every checkpoint
///
/// Runs in a temporary directory that is removed afterwards, or in DIR, which is kept. Takes about
/// five times --seconds.
#[derive(clap::Args)]
pub struct Args {
    /// Where to run; must be absent or empty
    dir: Option<PathBuf>,
    /// Seconds of each of the four phases
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Threads that write (default: one for each core, at least 2 and at most 8)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    threads: Option<u64>,
}

/// Checkpoints open at the same time while they are compared: each may hold a full write buffer.
const OPENED_AT_ONCE: usize = 2;

/// `esker demo`
pub fn run(args: &Args, console: Console) -> Outcome {
    // Declared first, so dropped last: nothing may still write where files are being removed.
    let place = Place::new(args.dir.as_deref())?;
    let cores = thread::available_parallelism().map_or(2, |cores| cores.get() as u64);
    let threads = args.threads.unwrap_or(cores.clamp(2, 8));
    let tour = Tour { console, place: &place, threads, seconds: args.seconds };
    tour.walk()
}

/// Where the tour runs.
struct Place {
    root: PathBuf,
    /// Removes the directory when dropped.
    _temporary: Option<tempfile::TempDir>,
}

impl Place {
    fn new(dir: Option<&Path>) -> Outcome<Self> {
        let Some(dir) = dir else {
            let temporary = tempfile::Builder::new().prefix("esker-demo-").tempdir();
            let temporary = temporary.map_err(|error| {
                Failure::file("create a directory in", &std::env::temp_dir(), &error)
            })?;
            return Ok(Self { root: temporary.path().to_owned(), _temporary: Some(temporary) });
        };
        match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) => {
                let sentence = format!("{} is not empty; name a directory that is", dir.display());
                return Err(Failure::Failed(sentence));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(dir).map_err(|error| Failure::file("create", dir, &error))?;
            }
            Err(error) => return Err(Failure::file("read the directory", dir, &error)),
        }
        Ok(Self { root: dir.to_owned(), _temporary: None })
    }

    fn keyspace(&self) -> PathBuf {
        self.root.join("keyspace")
    }

    fn checkpoint(&self, number: usize) -> PathBuf {
        self.root.join(format!("checkpoint-{number:03}"))
    }

    fn copy(&self) -> PathBuf {
        self.root.join("copy")
    }
}

/// What the writers did, measured while they did it.
#[derive(Default)]
struct Measured {
    /// Without checkpoints.
    alone: Throughput,
    /// With a checkpoint every second.
    with: Throughput,
    checkpoints: Vec<Checkpoint>,
    /// For each writer, the seqnos of its batches.
    logs: Vec<Vec<u64>>,
}

struct Checkpoint {
    path: PathBuf,
    report: CheckpointReport,
}

#[derive(Clone, Copy, Default)]
struct Throughput {
    writes: u64,
    time: Duration,
}

impl Throughput {
    fn per_second(self) -> f64 {
        self.writes as f64 / self.time.as_secs_f64().max(1e-9)
    }

    fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.time += other.time;
    }
}

impl std::fmt::Display for Throughput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} writes/s", output::count(self.per_second() as u64))
    }
}

/// What was compared after the writers had ended.
#[derive(Default)]
struct Compared {
    keyspaces: u64,
    entries: u64,
}

/// The tour, step by step.
struct Tour<'a> {
    console: Console,
    place: &'a Place,
    threads: u64,
    seconds: u64,
}

impl Tour<'_> {
    fn walk(&self) -> Outcome {
        let measured = self.write_and_checkpoint()?;
        let mut compared = Compared::default();
        self.compare(&measured, &mut compared)?;
        let verified = self.copy_and_verify(&measured)?;
        self.conclude(&measured, &compared, &verified)
    }

    /// Says what comes next.
    fn tell(&self, line: impl std::fmt::Display) -> Outcome {
        if self.console.is_quiet() { Ok(()) } else { say(line) }
    }

    fn write_and_checkpoint(&self) -> Outcome<Measured> {
        let path = self.place.keyspace();
        self.tell(format_args!("Opening a keyspace in {}", path.display()))?;
        let keyspace = config(&path).open()?;
        let partitions = workload::create(&keyspace)?;
        self.tell(format_args!(
            "Writing on {} into users, events and metrics: every batch crosses all three, overwrites \
             and removes",
            counted(self.threads, "thread")
        ))?;
        let (written, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let mut measured = thread::scope(|scope| {
            let (keyspace, partitions, written, stop) = (&keyspace, &partitions, &written, &stop);
            let writers = (0..self.threads).map(|writer| {
                scope.spawn(move || workload::write(keyspace, partitions, writer, written, stop))
            });
            let writers: Vec<_> = writers.collect();
            let measured = self.phases(keyspace, written);
            stop.store(true, Ordering::Relaxed);
            let logs = writers.into_iter().map(join).collect::<esker::Result<Vec<_>>>()?;
            measured.map(|measured| Measured { logs, ..measured })
        })?;
        keyspace.close()?;
        measured.checkpoints.sort_by_key(|checkpoint| checkpoint.report.seqno);
        Ok(measured)
    }

    /// Measures without and with checkpoints by turns. The order A B B A cancels whatever drifts
    /// steadily while the keyspace grows.
    fn phases(&self, keyspace: &Keyspace, written: &AtomicU64) -> Outcome<Measured> {
        let mut measured = Measured::default();
        // The first writes go into an empty keyspace, which is faster than it ever is again.
        thread::sleep(Duration::from_millis(500));
        for (phase, checkpoints) in [(1, false), (2, true), (3, true), (4, false)] {
            let bar = self.console.waiting("writing");
            let (start, before) = (Instant::now(), written.load(Ordering::Relaxed));
            if checkpoints {
                self.checkpoint_every_second(keyspace, start, &mut measured.checkpoints)?;
            }
            sleep_until(start + Duration::from_secs(self.seconds));
            let writes = written.load(Ordering::Relaxed) - before;
            let throughput = Throughput { writes, time: start.elapsed() };
            bar.clear();
            let how = if checkpoints { "with a checkpoint every second" } else { "no checkpoints" };
            self.tell(format_args!("  phase {phase} of 4, {how}: {throughput}"))?;
            let total = if checkpoints { &mut measured.with } else { &mut measured.alone };
            total.add(throughput);
        }
        Ok(measured)
    }

    fn checkpoint_every_second(
        &self,
        keyspace: &Keyspace,
        start: Instant,
        checkpoints: &mut Vec<Checkpoint>,
    ) -> Outcome {
        for second in 0..self.seconds {
            sleep_until(start + Duration::from_secs(second) + Duration::from_millis(500));
            let path = self.place.checkpoint(checkpoints.len() + 1);
            let report = keyspace.backup_to(&path)?;
            checkpoints.push(Checkpoint { path, report });
        }
        Ok(())
    }

    fn compare(&self, measured: &Measured, compared: &mut Compared) -> Outcome {
        self.tell(format_args!(
            "Opening each of the {} and comparing it, entry by entry, with what had been committed at \
             its seqno",
            counted(measured.checkpoints.len() as u64, "checkpoint")
        ))?;
        let mut model = Model::new(&measured.logs);
        for some in measured.checkpoints.chunks(OPENED_AT_ONCE) {
            let bar = self.console.waiting("comparing");
            for (Checkpoint { path, report }, checkpoint) in some.iter().zip(open_all(some)?) {
                model.advance(report.seqno)?;
                let what = format!("the checkpoint {} at seqno {}", path.display(), report.seqno);
                let equal = model.compare(&checkpoint, &what)?;
                compared.add(equal);
                let seqno = output::count(report.seqno);
                let (entries, freeze) = (counted(equal, "entry"), output::duration(report.freeze));
                let line = format!("  seqno {seqno}: {entries} equal; writers froze for {freeze}");
                bar.clear();
                self.tell(line)?;
            }
        }
        if let Some(newest) = measured.checkpoints.last() {
            self.tell("Opening the newest for writing and writing into it")?;
            compared.add(write_into(newest, &model)?);
        }
        self.tell(
            "Comparing the keyspace itself, which must not have felt that, with all commits",
        )?;
        let bar = self.console.waiting("comparing");
        model.advance(u64::MAX)?;
        let source = store::open_to_read(&self.place.keyspace())?;
        compared.add(model.compare(&source, "the keyspace")?);
        bar.clear();
        Ok(())
    }

    fn copy_and_verify(&self, measured: &Measured) -> Outcome<VerifyReport> {
        let (source, copy) = (self.place.keyspace(), self.place.copy());
        self.tell("Copying the closed keyspace and comparing digests")?;
        let bar = self.console.entries("comparing digests");
        esker::cold_copy(&source, &copy, CopyOptions::default())?;
        let digests = |path: &Path| digest::digests(&store::open_to_read(path)?, &bar);
        let (expected, found) = (digests(&source)?, digests(&copy)?);
        if expected != found {
            return Err(Failure::Failed(format!(
                "the cold copy {} differs from its source: expected {expected:?}, found {found:?}",
                copy.display()
            )));
        }
        self.tell("Verifying every byte of the keyspace, the copy and the checkpoints")?;
        let bar = self.console.waiting("verifying");
        let checkpoints = measured.checkpoints.iter().map(|checkpoint| &checkpoint.path);
        let mut total = verify(&source)?;
        for path in std::iter::once(&copy).chain(checkpoints) {
            let report = verify(path)?;
            total.files += report.files;
            total.bytes += report.bytes;
            total.total += report.total;
        }
        bar.clear();
        Ok(total)
    }

    fn conclude(
        &self,
        measured: &Measured,
        compared: &Compared,
        verified: &VerifyReport,
    ) -> Outcome {
        let reports = || measured.checkpoints.iter().map(|checkpoint| &checkpoint.report);
        let freeze = Sorted::new(reports().map(|report| report.freeze));
        let total = Sorted::new(reports().map(|report| report.total));
        let moved = |moved: fn(&CheckpointReport) -> esker::Moved| {
            let files = reports().map(|report| moved(report).files).sum();
            let bytes = reports().map(|report| moved(report).bytes).sum();
            format!("{}, {}", counted(files, "file"), output::bytes(bytes))
        };
        let ratio = measured.with.per_second() / measured.alone.per_second().max(1e-9);
        let rows = [
            ("throughput without checkpoints", measured.alone.to_string()),
            ("throughput with one a second", measured.with.to_string()),
            ("ratio", format!("{ratio:.3}")),
            ("checkpoints", measured.checkpoints.len().to_string()),
            (
                "freeze p50 / p99 / max",
                format!("{} / {} / {}", freeze.p(50), freeze.p(99), freeze.p(100)),
            ),
            ("whole checkpoint p50 / max", format!("{} / {}", total.p(50), total.p(100))),
            ("linked", moved(|report| report.linked)),
            ("reflinked", moved(|report| report.reflinked)),
            ("copied", moved(|report| report.copied)),
            (
                "compared",
                format!(
                    "{} in {}, all equal",
                    counted(compared.entries, "entry"),
                    counted(compared.keyspaces, "keyspace")
                ),
            ),
            (
                "verified",
                format!(
                    "{}, {} ({}), all sound",
                    counted(verified.files, "file"),
                    output::bytes(verified.bytes),
                    output::rate(verified.bytes, verified.total)
                ),
            ),
        ];
        self.tell("")?;
        for (name, value) in rows {
            self.tell(format_args!("{name:<32}{value}"))?;
        }
        Ok(())
    }
}

impl Compared {
    fn add(&mut self, entries: u64) {
        self.keyspaces += 1;
        self.entries += entries;
    }
}

/// Small memtables: in a run of seconds, writes must have been flushed and compacted many times, and
/// checkpoints must hold tables as well as a journal.
fn config(path: &Path) -> Config {
    Config::new(path).memtable_bytes(8 << 20).write_buffer_bytes_max(32 << 20)
}

/// Opens checkpoints for reading, at the same time: an opener replays a journal on one core.
fn open_all(checkpoints: &[Checkpoint]) -> Outcome<Vec<Keyspace>> {
    thread::scope(|scope| {
        let opening = checkpoints.iter().map(|checkpoint| {
            let path = &checkpoint.path;
            scope.spawn(move || store::open_to_read(path))
        });
        let opening: Vec<_> = opening.collect();
        opening.into_iter().map(join).collect()
    })
}

/// What a thread returned; its panic goes on here.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Opens a checkpoint for writing, compares it and then writes into each of its partitions.
fn write_into(checkpoint: &Checkpoint, model: &Model<'_>) -> Outcome<u64> {
    let keyspace = store::open_existing(&checkpoint.path)?;
    let what = format!("the checkpoint {}, opened for writing,", checkpoint.path.display());
    let equal = model.compare(&keyspace, &what)?;
    let mut batch = keyspace.batch();
    for partition in workload::create(&keyspace)? {
        batch.insert(&partition, "a", "written into the checkpoint");
    }
    batch.commit()?;
    keyspace.close()?;
    Ok(equal)
}

fn verify(path: &Path) -> Outcome<VerifyReport> {
    let report = esker::verify(path, VerifyOptions::default())?;
    match report.problems.first() {
        Some(problem) => Err(Failure::Corrupt(problem.to_string())),
        None if report.is_sound() => Ok(report),
        None => Err(Failure::Corrupt(format!("{} is not sound", path.display()))),
    }
}

fn sleep_until(time: Instant) {
    thread::sleep(time.saturating_duration_since(Instant::now()));
}

/// Durations in order.
struct Sorted(Vec<Duration>);

impl Sorted {
    fn new(times: impl Iterator<Item = Duration>) -> Self {
        let mut times: Vec<_> = times.collect();
        times.sort_unstable();
        Self(times)
    }

    /// The smallest duration that at least `percent` of all do not exceed.
    fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100);
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    fn p(&self, percent: usize) -> String {
        output::duration(self.percentile(percent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let times = |count| Sorted::new((1..=count).rev().map(Duration::from_secs));
        assert_eq!(times(4).percentile(50), Duration::from_secs(2));
        assert_eq!(times(4).percentile(99), Duration::from_secs(4));
        assert_eq!(times(1).percentile(50), Duration::from_secs(1));
        assert_eq!(times(200).percentile(99), Duration::from_secs(198));
        assert_eq!(times(0).percentile(50), Duration::ZERO);
    }

    #[test]
    fn a_directory_with_anything_in_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Place::new(Some(dir.path())).is_ok());
        assert!(Place::new(Some(&dir.path().join("new/deep"))).is_ok());
        let sentence = Place::new(Some(dir.path())).err().unwrap().to_string();
        assert!(sentence.ends_with("is not empty; name a directory that is"), "{sentence}");
    }
}
