//! What can happen to a keyspace, as plain values: drawn from a seed or decoded from bytes, printed
//! when they fail, and played again without the ones that do not matter.
//!
//! What must stay true: an operation does not depend on what happened before it was drawn. It names
//! partitions, keys and snapshots by small numbers, and the machine makes sense of them.

use crate::chaos::Rng;

/// Where the choices come from.
pub trait Choices {
    /// A number below `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64;

    /// True once in `times`.
    fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

impl Choices for Rng {
    fn below(&mut self, end: u64) -> u64 {
        Self::below(self, end)
    }
}

/// Bytes as choices: one for each of up to 256 possibilities, two for each of up to 65,536. Behind
/// the end everything is 0.
pub struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u64 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        u64::from(*first)
    }
}

impl Choices for Bytes<'_> {
    fn below(&mut self, end: u64) -> u64 {
        match end {
            1 => 0,
            2..=256 => self.next() % end,
            _ => (self.next() | self.next() << 8) % end,
        }
    }
}

/// A key, by number.
#[derive(Copy, Clone, Debug)]
pub struct Key {
    pub shape: u8,
    pub number: u8,
}

const SHAPES: u64 = 24;

impl Key {
    /// Few enough that they meet again, with common prefixes and the ends of the byte order.
    pub fn bytes(self) -> Vec<u8> {
        match self.shape {
            0 => vec![self.number],
            1 => vec![0xff; 1 + usize::from(self.number % 3)],
            2 => [&b"key "[..], &[0xff, self.number]].concat(),
            3 => [&b"kez"[..], &[0; 3][..usize::from(self.number % 3)]].concat(),
            // Longer than a block, and some of them the longest there may be.
            4 => vec![b'k'; 400 + usize::from(self.number % 4)],
            5 => vec![0xfe; 65_533 + usize::from(self.number % 3)],
            _ => format!("key {:03}", self.number % 120).into_bytes(),
        }
    }
}

/// A value. The machine writes the number of the step into it, so that no two are the same.
#[derive(Copy, Clone, Debug)]
pub struct Value {
    pub len: u32,
    pub compressible: bool,
}

/// One end of a range.
#[derive(Copy, Clone, Debug)]
pub enum Edge {
    Open,
    Included(Key),
    Excluded(Key),
}

/// A partition, by number.
pub type At = u8;

/// A question with one right answer.
#[derive(Copy, Clone, Debug)]
pub enum Read {
    /// The key that is so far from the first, in permille.
    GetPresent(u16),
    Get(Key),
    Contains(Key),
    SizeOf(Key),
    Ends,
    Count,
    Forward,
    Backward,
    Range(Edge, Edge),
    RangeBackward(Edge, Edge),
    /// Ends before it starts.
    RangeInverted(Key, Key),
    Keys(Edge, Edge),
    Prefix(Key, u8),
    /// No key follows the last of these prefixes.
    PrefixOfFf(u8),
    /// From both ends, as the bits say.
    BothEnds(u16),
    /// Several keys at once, one of them twice.
    Several([Key; 3]),
}

/// One change of a batch; no value is a removal.
pub type Change = (At, Key, Option<Value>);

/// How a checkpoint is taken.
#[derive(Copy, Clone, Debug)]
pub struct Taking {
    pub copied: bool,
    pub flush_first: bool,
    pub verify: bool,
}

#[derive(Clone, Debug)]
pub enum Operation {
    Insert(At, Key, Value),
    Remove(At, Key),
    Overwrite(At, Key, Value, u8),
    Batch {
        changes: Vec<Change>,
        durability: Option<u8>,
    },
    BatchRepeatsAKey(At, Key, Vec<Option<Value>>),
    EmptyBatch(Option<u8>),
    Transaction {
        changes: Vec<Change>,
        /// One of these after each change.
        reads: Vec<Read>,
        ending: Ending,
    },
    /// One key changed by what it holds.
    Update {
        at: At,
        key: Key,
        value: Option<Value>,
        way: Updating,
    },
    Ingest {
        at: At,
        entries: Vec<(Key, Option<Value>)>,
        beside: Vec<Change>,
        ending: Loading,
    },
    DroppedBatch(Vec<Change>),
    RefusedBatch {
        changes: Vec<Change>,
        fault: u8,
    },
    WritersAtOnce {
        at: At,
        writers: u8,
        each: u8,
        durability: u8,
    },
    Read(At, Read),
    HoldIterator(At, Edge, Edge),
    AdvanceIterator {
        which: u8,
        steps: u8,
        pattern: u16,
    },
    DropIterator(u8),
    TakeSnapshot,
    /// A snapshot that `read_tx` takes.
    BeginReadTransaction,
    CloneSnapshot(u8),
    ReadSnapshot(u8, At, Read),
    ScanSnapshot(u8),
    ReadSnapshotOfALaterPartition(u8, At),
    DropSnapshot(u8),
    Flush,
    Compact(At),
    CompactRange(At, Edge, Edge),
    /// Under a key that never was, and that no other operation writes.
    InsertOnce(At, Value),
    RemoveWeakly {
        at: At,
        which: u8,
        way: u8,
    },
    Filter {
        count: u8,
        value: Value,
        flushed: bool,
    },
    Fifo {
        count: u8,
        value: Value,
    },
    CompactAll,
    Persist(u8),
    CreateAnew(At),
    CreateWithOptions(At, u8),
    OpenWithOtherOptions(At, u8),
    Clear(At),
    DropPartition(At),
    DropMissingPartition,
    ReadDroppedPartition(u8, Read),
    WriteToDroppedPartition(u8),
    Checkpoint(Taking),
    CheckpointOfSome {
        taking: Taking,
        include: bool,
        mask: u8,
    },
    CheckpointBesideAWriter(At, Taking),
    CompareKept(u8),
    WriteToKept(u8),
    MoveIntoACheckpoint,
    ColdCopy {
        copied: bool,
        verify: bool,
    },
    CopyACheckpoint(u8),
    Verify,
    Reopen,
    ReopenByDropping,
    ReopenWith(u8),
    CloseUnderAnIterator(At),
    UseAfterClose(At),
    ReadOnly {
        readers: u8,
    },
    OpenTwice,
    Crash {
        look: bool,
    },
    CrashBesideACopy,
    CrashInRecovery,
    Statistics,
    Listing,
    RefusedArguments(At),
    Compare,
}

/// How a transaction ends.
#[derive(Copy, Clone, Debug)]
pub enum Ending {
    Commit,
    Rollback,
    /// Somebody else changes what it has read.
    Overtaken,
}

/// How one key is changed by what it holds.
#[derive(Copy, Clone, Debug)]
pub enum Updating {
    FetchUpdate,
    UpdateFetch,
    Take,
    /// In a closure that commits.
    Transact,
    /// In a closure that fails.
    TransactInVain,
}

/// How an ingest ends.
#[derive(Copy, Clone, Debug)]
pub enum Loading {
    Finish,
    GiveUp,
    /// The partition is cleared first.
    Clear,
}

/// A kind of operation.
pub struct Row {
    pub name: &'static str,
    /// How often it is drawn, towards the other weights.
    weight: u64,
    /// The same for fuzzing, where opening and copying cost too much to do them often.
    fuzz: u64,
    draw: fn(&mut dyn Choices) -> Operation,
}

const fn row(
    name: &'static str,
    weight: u64,
    fuzz: u64,
    draw: fn(&mut dyn Choices) -> Operation,
) -> Row {
    Row { name, weight, fuzz, draw }
}

/// Every kind there is.
#[rustfmt::skip]
pub const KINDS: &[Row] = &[
    row("insert", 290, 160, |c| Operation::Insert(at(c), key(c), value(c))),
    row("insert a large value", 8, 16, |c| Operation::Insert(at(c), key(c), large_value(c))),
    row("insert an empty value", 12, 16, |c| {
        Operation::Insert(at(c), key(c), Value { len: 0, compressible: true })
    }),
    row("insert a long key", 3, 8, |c| {
        Operation::Insert(at(c), Key { shape: 5, number: number(c) }, value(c))
    }),
    row("remove", 90, 64, |c| Operation::Remove(at(c), key(c))),
    row("overwrite again and again", 8, 16, |c| {
        Operation::Overwrite(at(c), key(c), value(c), 1 + c.below(12) as u8)
    }),
    row("batch", 50, 48, |c| Operation::Batch { changes: changes(c, 24), durability: None }),
    row("batch, buffered", 12, 8, |c| {
        Operation::Batch { changes: changes(c, 8), durability: Some(0) }
    }),
    row("batch, data synced", 12, 8, |c| {
        Operation::Batch { changes: changes(c, 8), durability: Some(1) }
    }),
    row("batch, all synced", 12, 8, |c| {
        Operation::Batch { changes: changes(c, 8), durability: Some(2) }
    }),
    row("batch repeats a key", 14, 24, |c| {
        let count = 2 + c.below(4);
        let values = (0..count).map(|_| optional_value(c)).collect();
        Operation::BatchRepeatsAKey(at(c), key(c), values)
    }),
    row("empty batch", 6, 8, |c| {
        let durability = c.once_in(2).then(|| c.below(3) as u8);
        Operation::EmptyBatch(durability)
    }),
    row("dropped batch", 6, 8, |c| Operation::DroppedBatch(changes(c, 6))),
    row("refused batch", 6, 8, |c| {
        Operation::RefusedBatch { changes: changes(c, 6), fault: c.below(4) as u8 }
    }),
    row("writers at once", 4, 1, |c| Operation::WritersAtOnce {
        at: at(c),
        writers: 2 + c.below(2) as u8,
        each: 1 + c.below(12) as u8,
        durability: c.below(3) as u8,
    }),
    row("get a present key", 20, 16, |c| {
        Operation::Read(at(c), Read::GetPresent(c.below(1000) as u16))
    }),
    row("get", 40, 16, |c| Operation::Read(at(c), Read::Get(key(c)))),
    row("contains", 20, 8, |c| Operation::Read(at(c), Read::Contains(key(c)))),
    row("size of a value", 20, 8, |c| Operation::Read(at(c), Read::SizeOf(key(c)))),
    row("first and last", 16, 8, |c| Operation::Read(at(c), Read::Ends)),
    row("count", 10, 8, |c| Operation::Read(at(c), Read::Count)),
    row("scan forward", 8, 8, |c| Operation::Read(at(c), Read::Forward)),
    row("scan backward", 8, 8, |c| Operation::Read(at(c), Read::Backward)),
    row("range", 24, 16, |c| Operation::Read(at(c), Read::Range(edge(c), edge(c)))),
    row("range backward", 16, 16, |c| {
        Operation::Read(at(c), Read::RangeBackward(edge(c), edge(c)))
    }),
    row("inverted range", 5, 4, |c| {
        Operation::Read(at(c), Read::RangeInverted(key(c), key(c)))
    }),
    row("keys", 8, 8, |c| Operation::Read(at(c), Read::Keys(edge(c), edge(c)))),
    row("prefix", 20, 16, |c| Operation::Read(at(c), Read::Prefix(key(c), c.below(8) as u8))),
    row("prefix of 0xff", 8, 8, |c| Operation::Read(at(c), Read::PrefixOfFf(c.below(4) as u8))),
    row("both ends in turn", 16, 16, |c| {
        Operation::Read(at(c), Read::BothEnds(c.below(1 << 16) as u16))
    }),
    row("several at once", 16, 8, |c| {
        Operation::Read(at(c), Read::Several([key(c), key(c), key(c)]))
    }),
    row("hold an iterator", 10, 16, |c| Operation::HoldIterator(at(c), edge(c), edge(c))),
    row("advance an iterator", 20, 16, |c| Operation::AdvanceIterator {
        which: number(c),
        steps: c.below(20) as u8,
        pattern: c.below(1 << 16) as u16,
    }),
    row("drop an iterator", 6, 8, |c| Operation::DropIterator(number(c))),
    row("take a snapshot", 14, 16, |_| Operation::TakeSnapshot),
    row("begin a read transaction", 8, 4, |_| Operation::BeginReadTransaction),
    row("clone a snapshot", 3, 4, |c| Operation::CloneSnapshot(number(c))),
    row("read a snapshot", 40, 32, |c| Operation::ReadSnapshot(number(c), at(c), read(c))),
    row("scan a snapshot", 8, 8, |c| Operation::ScanSnapshot(number(c))),
    row("read a snapshot of a later partition", 4, 8, |c| {
        Operation::ReadSnapshotOfALaterPartition(number(c), at(c))
    }),
    row("drop a snapshot", 6, 8, |c| Operation::DropSnapshot(number(c))),
    row("flush", 12, 24, |_| Operation::Flush),
    row("compact", 10, 16, |c| Operation::Compact(at(c))),
    row("compact a range", 6, 8, |c| Operation::CompactRange(at(c), edge(c), edge(c))),
    row("insert once", 24, 16, |c| Operation::InsertOnce(at(c), value(c))),
    row("remove weakly", 20, 12, |c| Operation::RemoveWeakly {
        at: at(c),
        which: number(c),
        way: c.below(3) as u8,
    }),
    row("filter", 2, 1, |c| Operation::Filter {
        count: c.below(40) as u8,
        value: value(c),
        flushed: c.once_in(2),
    }),
    row("first in, first out", 2, 1, |c| Operation::Fifo {
        count: c.below(60) as u8,
        value: value(c),
    }),
    row("compact all", 2, 8, |_| Operation::CompactAll),
    row("persist", 8, 8, |c| Operation::Persist(c.below(3) as u8)),
    row("create anew", 4, 8, |c| Operation::CreateAnew(at(c))),
    row("create with other options", 6, 8, |c| {
        Operation::CreateWithOptions(at(c), number(c))
    }),
    row("open with other options", 4, 4, |c| {
        Operation::OpenWithOtherOptions(at(c), number(c))
    }),
    row("clear", 8, 12, |c| Operation::Clear(at(c))),
    row("drop a partition", 6, 8, |c| Operation::DropPartition(at(c))),
    row("drop a missing partition", 2, 4, |_| Operation::DropMissingPartition),
    row("read a dropped partition", 10, 8, |c| {
        Operation::ReadDroppedPartition(number(c), read(c))
    }),
    row("write to a dropped partition", 4, 4, |c| {
        Operation::WriteToDroppedPartition(number(c))
    }),
    row("checkpoint, linked", 3, 1, |c| Operation::Checkpoint(taking(c, false, false))),
    row("checkpoint, copied", 2, 1, |c| Operation::Checkpoint(taking(c, true, false))),
    row("checkpoint, flushed first", 2, 1, |c| Operation::Checkpoint(taking(c, false, true))),
    row("checkpoint of some", 3, 1, |c| Operation::CheckpointOfSome {
        taking: Taking { copied: false, flush_first: c.once_in(2), verify: false },
        include: c.once_in(2),
        mask: c.below(16) as u8,
    }),
    row("checkpoint beside a writer", 3, 0, |c| {
        let flush_first = c.once_in(3);
        Operation::CheckpointBesideAWriter(at(c), taking(c, false, flush_first))
    }),
    row("compare what was kept", 3, 1, |c| Operation::CompareKept(number(c))),
    row("write to what was kept", 2, 1, |c| Operation::WriteToKept(number(c))),
    row("move into a checkpoint", 2, 1, |_| Operation::MoveIntoACheckpoint),
    row("cold copy", 2, 1, |c| {
        Operation::ColdCopy { copied: c.once_in(2), verify: c.once_in(2) }
    }),
    row("copy a checkpoint", 2, 1, |c| Operation::CopyACheckpoint(number(c))),
    row("verify", 2, 1, |_| Operation::Verify),
    row("reopen", 3, 2, |_| Operation::Reopen),
    row("reopen by dropping", 2, 1, |_| Operation::ReopenByDropping),
    row("reopen with other settings", 3, 1, |c| Operation::ReopenWith(number(c))),
    row("close under an iterator", 2, 1, |c| Operation::CloseUnderAnIterator(at(c))),
    row("use after close", 2, 1, |c| Operation::UseAfterClose(at(c))),
    row("read only", 2, 1, |c| Operation::ReadOnly { readers: 1 + c.below(2) as u8 }),
    row("open twice", 2, 1, |_| Operation::OpenTwice),
    row("crash", 5, 2, |c| Operation::Crash { look: c.once_in(2) }),
    row("crash and copy", 2, 0, |_| Operation::CrashBesideACopy),
    row("crash after recovery", 2, 1, |_| Operation::CrashInRecovery),
    row("statistics", 6, 2, |_| Operation::Statistics),
    row("listing", 6, 1, |_| Operation::Listing),
    row("refused arguments", 4, 1, |c| Operation::RefusedArguments(at(c))),
    row("compare", 5, 2, |_| Operation::Compare),
    row("transaction", 20, 12, |c| transaction(c, 12, Ending::Commit)),
    row("transaction, rolled back", 5, 4, |c| transaction(c, 6, Ending::Rollback)),
    row("transaction, overtaken", 8, 6, |c| transaction(c, 6, Ending::Overtaken)),
    row("fetch and update", 8, 4, |c| update(c, Updating::FetchUpdate)),
    row("update and fetch", 8, 4, |c| update(c, Updating::UpdateFetch)),
    row("take", 8, 4, |c| update(c, Updating::Take)),
    row("transact", 8, 4, |c| update(c, Updating::Transact)),
    row("transact in vain", 4, 2, |c| update(c, Updating::TransactInVain)),
    row("ingest", 14, 8, |c| ingest(c, 30, Loading::Finish)),
    row("ingest, given up", 3, 2, |c| ingest(c, 10, Loading::GiveUp)),
    row("ingest into what is cleared", 3, 2, |c| ingest(c, 6, Loading::Clear)),
];

/// An operation and the number of its kind.
pub fn draw(choices: &mut dyn Choices) -> (usize, Operation) {
    draw_by(choices, |row| row.weight)
}

/// An operation of the given kind.
pub fn draw_kind(choices: &mut dyn Choices, kind: usize) -> (usize, Operation) {
    (kind, (KINDS[kind].draw)(choices))
}

/// The same as `draw` with the weights of fuzzing.
pub fn draw_to_fuzz(choices: &mut dyn Choices) -> (usize, Operation) {
    draw_by(choices, |row| row.fuzz)
}

fn draw_by(choices: &mut dyn Choices, weight: fn(&Row) -> u64) -> (usize, Operation) {
    let mut left = choices.below(KINDS.iter().map(weight).sum());
    for (kind, row) in KINDS.iter().enumerate() {
        match left.checked_sub(weight(row)) {
            Some(rest) => left = rest,
            None => return (kind, (row.draw)(choices)),
        }
    }
    unreachable!("a number below the sum of the weights")
}

fn number(c: &mut dyn Choices) -> u8 {
    c.below(256) as u8
}

fn at(c: &mut dyn Choices) -> At {
    c.below(4) as At
}

fn key(c: &mut dyn Choices) -> Key {
    // The longest keys have a kind of their own: they are too large to be everywhere.
    let shape = c.below(SHAPES) as u8;
    Key { shape: if shape == 5 { 6 } else { shape }, number: number(c) }
}

fn value(c: &mut dyn Choices) -> Value {
    Value { len: c.below(64) as u32, compressible: c.once_in(2) }
}

/// Larger than a block, a memtable or a segment, up to more than one chunk of the journal's LZ4.
fn large_value(c: &mut dyn Choices) -> Value {
    let around = [300, 2_000, 4_096, 5_000, 20_000, 70_000, 300_000];
    let len = around[c.below(around.len() as u64) as usize] + c.below(3) as u32;
    Value { len, compressible: c.once_in(2) }
}

fn optional_value(c: &mut dyn Choices) -> Option<Value> {
    (!c.once_in(3)).then(|| value(c))
}

fn changes(c: &mut dyn Choices, max: u64) -> Vec<Change> {
    let count = 1 + c.below(max);
    (0..count).map(|_| (at(c), key(c), optional_value(c))).collect()
}

fn transaction(c: &mut dyn Choices, max: u64, ending: Ending) -> Operation {
    let changes = changes(c, max);
    let count = c.below(4);
    let reads = (0..count).map(|_| read(c)).collect();
    Operation::Transaction { changes, reads, ending }
}

fn update(c: &mut dyn Choices, way: Updating) -> Operation {
    Operation::Update { at: at(c), key: key(c), value: optional_value(c), way }
}

fn ingest(c: &mut dyn Choices, max: u64, ending: Loading) -> Operation {
    let at = at(c);
    let count = c.below(max);
    let mut entry = || {
        let value = if c.once_in(12) { Some(large_value(c)) } else { optional_value(c) };
        (key(c), value)
    };
    let entries = (0..count).map(|_| entry()).collect();
    let beside = if c.once_in(2) { changes(c, 4) } else { Vec::new() };
    Operation::Ingest { at, entries, beside, ending }
}

fn edge(c: &mut dyn Choices) -> Edge {
    match c.below(3) {
        0 => Edge::Open,
        1 => Edge::Included(key(c)),
        _ => Edge::Excluded(key(c)),
    }
}

fn taking(c: &mut dyn Choices, copied: bool, flush_first: bool) -> Taking {
    Taking { copied, flush_first, verify: c.once_in(3) }
}

/// Any question.
fn read(c: &mut dyn Choices) -> Read {
    match c.below(17) {
        0 => Read::GetPresent(c.below(1000) as u16),
        1..=3 => Read::Get(key(c)),
        4 => Read::Contains(key(c)),
        5 => Read::SizeOf(key(c)),
        6 => Read::Ends,
        7 => Read::Count,
        8 => Read::Forward,
        9 => Read::Backward,
        10 => Read::Range(edge(c), edge(c)),
        11 => Read::RangeBackward(edge(c), edge(c)),
        12 => Read::RangeInverted(key(c), key(c)),
        13 => Read::Keys(edge(c), edge(c)),
        14 => Read::Prefix(key(c), c.below(8) as u8),
        15 => Read::Several([key(c), key(c), key(c)]),
        _ => Read::BothEnds(c.below(1 << 16) as u16),
    }
}
