//! What checkpoints cost those who write meanwhile: phases with a checkpoint every second between
//! phases without, on the same keyspace.
#![expect(clippy::print_stdout, reason = "tables are what the program is for")]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use esker::{Config, Keyspace, Partition, PartitionOptions};
use esker_bench::Result;
use esker_bench::arguments::Arguments;
use esker_bench::histogram::Histogram;
use esker_bench::load::{Done, Keys, Load};
use esker_bench::machine;
use esker_bench::table::{Table, micros, millis};

const PERIOD: Duration = Duration::from_secs(1);
const PARTITIONS: usize = 3;

struct Options {
    threads: Vec<usize>,
    phase: Duration,
    /// Pairs of phases, one of each kind.
    pairs: usize,
    /// Random keys are of so many.
    keys: u64,
    /// Writes per second and thread; 0 for as many as go.
    rate: u64,
}

/// One kind of phase: all writes, and each phase by itself.
#[derive(Default)]
struct Kind {
    latency: Histogram,
    rates: Vec<f64>,
    quantiles: Vec<[f64; 4]>,
}

/// What the checkpoints of one run took.
#[derive(Default)]
struct Checkpoints {
    freeze: Histogram,
    whole: Histogram,
}

const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

fn main() -> Result<()> {
    let arguments = Arguments::parse(&["threads", "seconds", "pairs", "keys", "rate", "dir"])?;
    let options = Options {
        threads: arguments.list("threads", &[1, 4])?,
        phase: Duration::from_secs(arguments.get("seconds", 10)?),
        pairs: arguments.get("pairs", 6)?,
        keys: arguments.get("keys", 2_000_000)?,
        rate: arguments.get("rate", 0)?,
    };
    let parent: PathBuf = arguments.get("dir", std::env::temp_dir())?;
    println!("{}\n", machine::describe());
    let mut table = Table::new(&[
        "writers",
        "checkpoints",
        "writes/s, median phase",
        "p50",
        "p99",
        "p99.9",
        "max",
    ]);
    let mut ratios =
        Table::new(&["writers", "throughput", "p50", "p99", "p99.9", "max", "throughput per pair"]);
    for &threads in &options.threads {
        let dir = tempfile::tempdir_in(&parent)?;
        run(dir.path().to_path_buf(), threads, &options, &mut table, &mut ratios)?;
    }
    println!("{table}\nWith checkpoints over without, median of the pairs of phases:\n\n{ratios}");
    Ok(())
}

fn run(
    dir: PathBuf,
    threads: usize,
    options: &Options,
    table: &mut Table,
    ratios: &mut Table,
) -> Result<()> {
    let keyspace = Config::new(dir.join("keyspace")).open()?;
    let partitions = (0..PARTITIONS)
        .map(|number| keyspace.partition(&format!("p{number}"), PartitionOptions::default()))
        .collect::<esker::Result<Vec<_>>>()?;
    let (mut without, mut with) = (Kind::default(), Kind::default());
    let mut checkpoints = Checkpoints::default();
    // The first phase fills the keyspace and is not counted.
    phase(&partitions, threads, options, 0)?;
    for pair in 0..options.pairs {
        // Which kind goes first alternates: the keyspace grows all the while.
        for step in 0..2 {
            let run = 1 + (2 * pair + step) as u64;
            if (pair + step) % 2 == 0 {
                without.add(&phase(&partitions, threads, options, run)?);
            } else {
                let (done, taken) = std::thread::scope(|scope| {
                    let stop = Arc::new(AtomicBool::new(false));
                    let ticker = {
                        let (keyspace, dir, stop) = (&keyspace, &dir, Arc::clone(&stop));
                        scope.spawn(move || checkpoint_every_second(keyspace, dir, &stop))
                    };
                    let done = phase(&partitions, threads, options, run);
                    stop.store(true, Ordering::Relaxed);
                    (done, ticker.join())
                });
                with.add(&done?);
                checkpoints.merge(&taken.map_err(|_| "the checkpointing thread panicked")??);
            }
        }
    }
    let statistics = keyspace.statistics();
    eprintln!(
        "{threads} writers: {} checkpoints, freeze p50 {} p99 {}, whole p50 {} max {}; {} stalls of {}",
        checkpoints.whole.len(),
        micros(checkpoints.freeze.median()),
        micros(checkpoints.freeze.quantile(0.99)),
        millis(checkpoints.whole.median()),
        millis(checkpoints.whole.max()),
        statistics.stalls,
        millis(statistics.stall_time)
    );
    table.row(without.cells(threads, "none"));
    table.row(with.cells(threads, "every second"));
    ratios.row(with.over(&without, threads));
    Ok(())
}

fn phase(partitions: &[Partition], threads: usize, options: &Options, run: u64) -> Result<Done> {
    let load = Load::paced(partitions, threads, Keys::Random(options.keys), run, options.rate);
    std::thread::sleep(options.phase);
    load.finish()
}

fn checkpoint_every_second(
    keyspace: &Keyspace,
    dir: &std::path::Path,
    stop: &AtomicBool,
) -> Result<Checkpoints> {
    let mut taken = Checkpoints::default();
    let target = dir.join("checkpoint");
    let mut due = Instant::now() + PERIOD / 2;
    while !stop.load(Ordering::Relaxed) {
        if Instant::now() < due {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        let report = keyspace.backup_to(&target)?;
        taken.freeze.record(report.freeze);
        taken.whole.record(report.total);
        fs::remove_dir_all(&target)?;
        due = (due + PERIOD).max(Instant::now());
    }
    Ok(taken)
}

impl Checkpoints {
    fn merge(&mut self, other: &Self) {
        self.freeze.merge(&other.freeze);
        self.whole.merge(&other.whole);
    }
}

impl Kind {
    fn add(&mut self, done: &Done) {
        self.latency.merge(&done.latency);
        self.rates.push(done.rate());
        self.quantiles.push(QUANTILES.map(|(_, q)| done.latency.quantile(q).as_secs_f64()));
    }

    fn cells(&self, threads: usize, checkpoints: &str) -> Vec<String> {
        let quantiles = QUANTILES.iter().map(|&(_, q)| micros(self.latency.quantile(q)));
        let first = [threads.to_string(), checkpoints.to_owned(), thousands(median(&self.rates))];
        first.into_iter().chain(quantiles).collect()
    }

    fn over(&self, base: &Self, threads: usize) -> Vec<String> {
        let rates: Vec<f64> = self.rates.iter().zip(&base.rates).map(|(a, b)| a / b).collect();
        let quantile = |at: usize| {
            let pairs = self.quantiles.iter().zip(&base.quantiles);
            median(&pairs.map(|(a, b)| a[at] / b[at]).collect::<Vec<_>>())
        };
        let mut cells = vec![threads.to_string(), format!("{:.3}", median(&rates))];
        cells.extend((0..QUANTILES.len()).map(|at| format!("{:.2}", quantile(at))));
        let each: Vec<String> = rates.iter().map(|rate| format!("{rate:.2}")).collect();
        cells.push(each.join(" "));
        cells
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

fn thousands(rate: f64) -> String {
    format!("{:.0} k", rate / 1e3)
}
