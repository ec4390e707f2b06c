//! How long a checkpoint pauses writers, and what the whole of it costs beside bare link calls.
#![expect(clippy::print_stdout, reason = "tables are what the program is for")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use esker::CheckpointReport;
use esker_bench::Result;
use esker_bench::arguments::Arguments;
use esker_bench::bare::{Shape, Sync};
use esker_bench::fixture::Fixture;
use esker_bench::histogram::Histogram;
use esker_bench::load::{Keys, Load};
use esker_bench::machine;
use esker_bench::table::{Table, micros, millis, ratio};

struct Options {
    partitions: Vec<usize>,
    tables: Vec<usize>,
    /// Whole checkpoints of a kind.
    rounds: usize,
    /// Freezes on top of those of the whole checkpoints.
    freezes: usize,
}

/// Whole checkpoints, and the bare cost beside each of them.
#[derive(Default)]
struct Whole {
    checkpoint: Histogram,
    pinned: Histogram,
    filesystem: Histogram,
    directories: Histogram,
    linked: u64,
}

struct Bench {
    /// Beside the keyspace.
    dir: PathBuf,
    fixture: Fixture,
    freezes: Histogram,
    next: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse(&["partitions", "tables", "rounds", "freezes", "dir"])?;
    let options = Options {
        partitions: arguments.list("partitions", &[1, 10, 100])?,
        tables: arguments.list("tables", &[100, 1_000, 10_000])?,
        rounds: arguments.get("rounds", 30)?,
        freezes: arguments.get("freezes", 1_000)?,
    };
    let parent: PathBuf = arguments.get("dir", std::env::temp_dir())?;
    let mut freeze = Table::new(&["partitions", "tables", "freezes", "p50", "p99", "p99.9", "max"]);
    let mut whole = Table::new(&[
        "partitions",
        "linked files",
        "writers",
        "checkpoint p50",
        "p99",
        "files pinned p50",
        "bare links + 2 syncs p50",
        "p99",
        "ratio of p50",
        "bare links + 2 directory fsyncs p50",
        "ratio of p50",
    ]);
    for &partitions in &options.partitions {
        let dir = tempfile::tempdir_in(&parent)?;
        let fixture = Fixture::create(&dir.path().join("keyspace"), partitions)?;
        let dir = dir.path().to_path_buf();
        let mut bench = Bench { dir, fixture, freezes: Histogram::default(), next: 0 };
        for &tables in &options.tables {
            bench.fixture.grow(tables)?;
            bench.measure(&options, &mut freeze, &mut whole)?;
        }
    }
    println!("{}\n", machine::describe());
    println!("The pause, while one thread writes at full speed:\n\n{freeze}");
    println!("The whole checkpoint:\n\n{whole}");
    Ok(())
}

impl Bench {
    fn measure(&mut self, options: &Options, freeze: &mut Table, whole: &mut Table) -> Result<()> {
        let (partitions, tables) = (self.fixture.partitions.len(), self.fixture.tables());
        let idle = self.whole(options.rounds, true)?;
        whole.row(idle.cells(partitions, 0));
        self.freezes = Histogram::default();
        let load = Load::start(&self.fixture.partitions, 1, Keys::Ascending, tables as u64);
        let busy = self.whole(options.rounds, false)?;
        whole.row(busy.cells(partitions, 1));
        for _ in 0..options.freezes {
            self.freeze()?;
        }
        let done = load.finish()?;
        freeze.row([
            partitions.to_string(),
            tables.to_string(),
            self.freezes.len().to_string(),
            micros(self.freezes.median()),
            micros(self.freezes.quantile(0.99)),
            micros(self.freezes.quantile(0.999)),
            micros(self.freezes.max()),
        ]);
        eprintln!(
            "{partitions} partitions, {tables} tables: freeze p50 {} p99 {}; whole idle {} bare {}, \
             busy {} bare {}; {:.0} writes/s",
            micros(self.freezes.median()),
            micros(self.freezes.quantile(0.99)),
            millis(idle.checkpoint.median()),
            millis(idle.filesystem.median()),
            millis(busy.checkpoint.median()),
            millis(busy.filesystem.median()),
            done.rate()
        );
        Ok(())
    }

    /// Checkpoints and, before or after each in turn, the bare costs. With `touch`, which stands for
    /// a writer, something was committed since the one before.
    fn whole(&mut self, rounds: usize, touch: bool) -> Result<Whole> {
        let mut whole = Whole::default();
        let model = self.target();
        self.fixture.keyspace.backup_to(&model)?;
        let shape = Shape::of_links(&model)?;
        // Removed at the end only: ext4 makes new inodes slowly where others have just been freed.
        let mut made = vec![model];
        for round in 0..rounds {
            if touch {
                self.fixture.partitions[0].insert("touch", round.to_be_bytes())?;
            }
            for step in 0..3 {
                let target = self.target();
                settle(&self.dir)?;
                match (step + round) % 3 {
                    0 => {
                        let report = self.fixture.keyspace.backup_to(&target)?;
                        self.freezes.record(report.freeze);
                        whole.add(&report);
                    }
                    1 => whole.filesystem.record(shape.link_bare(&target, Sync::Filesystem)?),
                    _ => whole.directories.record(shape.link_bare(&target, Sync::Directories)?),
                }
                made.push(target);
            }
        }
        made.iter().try_for_each(fs::remove_dir_all)?;
        Ok(whole)
    }

    /// A checkpoint of no partition: the pause is the same, the rest is short.
    fn freeze(&mut self) -> Result<()> {
        let target = self.target();
        let nothing: [String; 0] = [];
        let report = self.fixture.keyspace.checkpoint().include(nothing).write_to(&target)?;
        self.freezes.record(report.freeze);
        fs::remove_dir_all(&target)?;
        Ok(())
    }

    fn target(&mut self) -> PathBuf {
        self.next += 1;
        self.dir.join(format!("checkpoint-{}", self.next))
    }
}

impl Whole {
    fn add(&mut self, report: &CheckpointReport) {
        self.checkpoint.record(report.total);
        self.pinned.record(report.pinned);
        self.linked = self.linked.max(report.linked.files);
    }

    fn cells(&self, partitions: usize, writers: usize) -> [String; 11] {
        let (checkpoint, bare) = (self.checkpoint.median(), self.filesystem.median());
        [
            partitions.to_string(),
            self.linked.to_string(),
            writers.to_string(),
            millis(checkpoint),
            millis(self.checkpoint.quantile(0.99)),
            millis(self.pinned.median()),
            millis(bare),
            millis(self.filesystem.quantile(0.99)),
            ratio(checkpoint, bare),
            millis(self.directories.median()),
            ratio(checkpoint, self.directories.median()),
        ]
    }
}

/// Nobody pays for what was left unsynced before, such as removed directories.
fn settle(dir: &Path) -> Result<()> {
    Ok(rustix::fs::syncfs(File::open(dir)?)?)
}
