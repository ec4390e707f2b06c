//! The workloads: what each is called, does, counts and begins with.

use crate::compare::data::Order;
use crate::peers::{Direction, Durability, Variant};

/// What a workload does.
#[derive(Copy, Clone, Debug, PartialEq)]
pub enum Kind {
    /// Loads the database that others begin with. Not on the command line.
    Prepare,
    /// Single puts of new keys.
    Fill(Order),
    /// Batches of 100 puts of new keys.
    FillBatch,
    /// A bulk load past the journal.
    Ingest,
    /// Puts of random keys that are there.
    Overwrite,
    /// Gets.
    Read(Choice),
    /// A seek to a random key, then the entries from there.
    Seek,
    /// Everything, from one end to the other.
    Scan(Direction),
    /// A blend of operations.
    Blend(Blend),
    /// Opening what was closed.
    OpenClean,
    /// Opening what was killed.
    OpenKill,
    /// Writing while copies are taken, and without.
    Checkpoint(Variant),
    /// Writing while copies are taken, every slow write recorded.
    Timeline,
    /// Copies of more and more data.
    Growing,
    /// esker's `verify` beside reading the files.
    Verify,
    /// esker's `cold_copy` beside `cp`.
    ColdCopy,
}

/// Which keys are read.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Any that is there.
    Uniform,
    /// Few very often.
    Zipfian,
    /// None that is there.
    Missing,
    /// Those inserted last.
    Latest,
}

/// Shares of a blend, in percent; the rest is reads.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Blend {
    /// Which keys are read and updated.
    pub choice: Choice,
    /// Puts of keys that are there.
    pub update: u32,
    /// Puts of new keys.
    pub insert: u32,
    /// Short scans.
    pub scan: u32,
    /// A get and a put of the same key.
    pub modify: u32,
}

/// What the database holds at the beginning.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing.
    Empty,
    /// `--entries` entries, settled and closed; not changed by the workload.
    Loaded,
    /// A copy of that, which the workload may change.
    Copied,
}

/// What the number is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its unit.
    pub unit: &'static str,
    /// Whether more is better.
    pub more_is_better: bool,
}

/// A workload.
#[derive(Copy, Clone, Debug)]
pub struct Workload {
    /// On the command line; db_bench's where it has one.
    pub name: &'static str,
    /// What it does, in a line.
    pub line: &'static str,
    /// The chart it is in.
    pub group: &'static str,
    /// What is done.
    pub kind: Kind,
    /// With what it begins.
    pub start: Start,
    /// How durable its puts are.
    pub durability: Durability,
    /// Whether it runs on the threads of `--threads`, or is one thing at a time.
    pub threaded: bool,
    /// What is counted.
    pub metric: Metric,
}

const RATE: Metric = Metric { unit: "operations/s", more_is_better: true };
const ENTRIES: Metric = Metric { unit: "entries/s", more_is_better: true };
const SECONDS: Metric = Metric { unit: "s", more_is_better: false };
const SHARE: Metric = Metric { unit: "throughput with/without", more_is_better: true };
const SPEED: Metric = Metric { unit: "MiB/s", more_is_better: true };

impl Workload {
    const fn new(
        name: &'static str,
        group: &'static str,
        kind: Kind,
        start: Start,
        line: &'static str,
    ) -> Self {
        let durability = Durability::Unsynced;
        Self { name, line, group, kind, start, durability, threaded: true, metric: RATE }
    }

    const fn durable(self) -> Self {
        Self { durability: Durability::Durable, ..self }
    }

    const fn single(self) -> Self {
        Self { threaded: false, ..self }
    }

    const fn counting(self, metric: Metric) -> Self {
        Self { metric, ..self }
    }
}

const NO_WRITES: Blend =
    Blend { choice: Choice::Zipfian, update: 0, insert: 0, scan: 0, modify: 0 };

/// Loads what [`Start::Loaded`] promises.
pub const PREPARE: Workload =
    Workload::new("prepare", "", Kind::Prepare, Start::Empty, "loads, settles and closes").single();

/// Every workload, in the order they are listed and charted.
pub const WORKLOADS: &[Workload] = &[
    Workload::new(
        "fillrandom",
        "writes",
        Kind::Fill(Order::Spread),
        Start::Empty,
        "puts of new keys in random order, unsynced",
    ),
    Workload::new(
        "fillseq",
        "writes",
        Kind::Fill(Order::Ascending),
        Start::Empty,
        "puts of ascending keys, unsynced",
    ),
    Workload::new(
        "fillbatch",
        "writes",
        Kind::FillBatch,
        Start::Empty,
        "atomic batches of 100 puts of new keys in random order, unsynced; counts entries",
    )
    .counting(ENTRIES),
    Workload::new(
        "ingest",
        "bulk",
        Kind::Ingest,
        Start::Empty,
        "ascending entries of a generator past the journal, durable in the end; counts entries",
    )
    .single()
    .counting(ENTRIES),
    Workload::new(
        "overwrite",
        "writes",
        Kind::Overwrite,
        Start::Copied,
        "puts of random keys that are there, unsynced",
    ),
    Workload::new(
        "fillsync",
        "durable-writes",
        Kind::Fill(Order::Spread),
        Start::Empty,
        "puts of new keys in random order, each durable when it returns",
    )
    .durable(),
    Workload::new(
        "readrandom",
        "reads",
        Kind::Read(Choice::Uniform),
        Start::Loaded,
        "gets of keys that are there, uniform",
    ),
    Workload::new(
        "readmissing",
        "reads",
        Kind::Read(Choice::Missing),
        Start::Loaded,
        "gets of keys that are not there",
    ),
    Workload::new(
        "readzipfian",
        "reads",
        Kind::Read(Choice::Zipfian),
        Start::Loaded,
        "gets of keys that are there, zipfian 0.99",
    ),
    Workload::new(
        "seekrandom",
        "reads",
        Kind::Seek,
        Start::Loaded,
        "seeks to a random key, then 50 entries; counts seeks",
    ),
    Workload::new(
        "readseq",
        "scans",
        Kind::Scan(Direction::Forward),
        Start::Loaded,
        "everything in key order; counts entries",
    )
    .counting(ENTRIES),
    Workload::new(
        "readreverse",
        "scans",
        Kind::Scan(Direction::Reverse),
        Start::Loaded,
        "everything in reverse order; counts entries",
    )
    .counting(ENTRIES),
    blend(
        "mixed",
        "half gets, half puts, uniform",
        Blend { choice: Choice::Uniform, update: 50, ..NO_WRITES },
    ),
    blend("ycsb-a", "half gets, half puts, zipfian", Blend { update: 50, ..NO_WRITES }),
    blend("ycsb-b", "95% gets, 5% puts, zipfian", Blend { update: 5, ..NO_WRITES }),
    blend("ycsb-c", "gets, zipfian", NO_WRITES),
    blend(
        "ycsb-d",
        "95% gets of what was inserted last, 5% inserts",
        Blend { choice: Choice::Latest, insert: 5, ..NO_WRITES },
    ),
    blend(
        "ycsb-e",
        "95% scans of 1 to 100 entries, 5% inserts",
        Blend { insert: 5, scan: 95, ..NO_WRITES },
    ),
    blend(
        "ycsb-f",
        "half gets, half get and put of the same key, zipfian",
        Blend { modify: 50, ..NO_WRITES },
    ),
    Workload::new(
        "openclean",
        "opens",
        Kind::OpenClean,
        Start::Copied,
        "opening what was closed, to the first answer",
    )
    .single()
    .counting(SECONDS),
    Workload::new(
        "openkill",
        "opens",
        Kind::OpenKill,
        Start::Copied,
        "opening after a kill -9 with a journal as full as it gets without a flush",
    )
    .single()
    .counting(SECONDS),
    Workload::new(
        "checkpoint",
        "checkpoints",
        Kind::Checkpoint(Variant::Default),
        Start::Copied,
        "overwrites while copies of the open database are taken, over the same without",
    )
    .counting(SHARE),
    Workload::new(
        "checkpointflush",
        "checkpoints",
        Kind::Checkpoint(Variant::Flush),
        Start::Copied,
        "the same, memtables flushed for each copy",
    )
    .counting(SHARE),
    Workload::new(
        "checkpointnoflush",
        "checkpoints",
        Kind::Checkpoint(Variant::NoFlush),
        Start::Copied,
        "the same, memtables not flushed: copies hold the journal",
    )
    .counting(SHARE),
    Workload::new(
        "timeline",
        "timeline",
        Kind::Timeline,
        Start::Copied,
        "overwrites while copies are taken, the slowest of each 10 ms recorded for a chart",
    ),
    Workload::new(
        "checkpointgrowing",
        "growing",
        Kind::Growing,
        Start::Empty,
        "copies of a database that grows to each of --gib, nobody writing; the value is the last",
    )
    .single()
    .counting(SECONDS),
    Workload::new(
        "verify",
        "closed",
        Kind::Verify,
        Start::Loaded,
        "esker only: every byte against its hash, beside reading the files; the value is warm",
    )
    .counting(SPEED),
    Workload::new(
        "coldcopy",
        "closed",
        Kind::ColdCopy,
        Start::Loaded,
        "esker only: a copy of a closed keyspace beside cp -r --reflink=auto",
    )
    .single()
    .counting(SECONDS),
];

const fn blend(name: &'static str, line: &'static str, blend: Blend) -> Workload {
    Workload::new(name, "blends", Kind::Blend(blend), Start::Copied, line)
}

/// The workload of this name; some have a second one.
///
/// # Errors
///
/// With the names there are.
pub fn workload(name: &str) -> crate::Result<Workload> {
    let name = match name {
        "scan" | "scanforward" => "readseq",
        "scanreverse" => "readreverse",
        "ycsb-load" => "fillrandom",
        name => name,
    };
    let mut all = WORKLOADS.iter().chain([&PREPARE]);
    all.find(|workload| workload.name == name).copied().ok_or_else(|| {
        let names: Vec<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
        format!("no workload {name:?}; there are {}", names.join(", ")).into()
    })
}
