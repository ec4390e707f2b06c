//! The child process of the layers: a seeded workload that says what was acknowledged.
//!
//! What must stay true: every line is one `writev` on standard output. The engine never makes that
//! call, so faults injected into the engine's calls do not silence the worker, and a line is in the
//! pipe, whole, when `say` returns.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use esker::{Durability, ErrorKind, Keyspace, Partition, Result, Transfer};

use super::opened::{Change, Edit, Opened};
use super::said::Line;
use super::script::{self, FLEETING, NAMES, Shape};
use crate::chaos::Rng;

/// The hidden subcommand of the program `crash`.
pub const COMMAND: &str = "worker";
/// The worker opens this path (which does not exist) before it opens the keyspace: traces of system
/// calls show by it where one life ends and the next begins.
pub const OPEN_MARKER: &str = "/esker-marker-open";
/// So many checkpoints stay.
const CHECKPOINTS_KEPT: usize = 3;

/// The program that has [`COMMAND`], where that is not the running one.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Names the program `crash`, for callers that are another one (tests).
pub fn use_program(path: impl Into<PathBuf>) {
    // The first name stays: all tests of one binary give the same.
    let _ = PROGRAM.set(path.into());
}

/// The program `crash`, without arguments.
pub(super) fn program() -> Command {
    let program = PROGRAM.get().cloned();
    let program = program.or_else(|| std::env::current_exe().ok()).expect("the own program");
    Command::new(program)
}

/// What a worker is asked to do.
#[derive(Clone, Debug)]
pub struct Work {
    /// The keyspace is `db` in it, checkpoints are beside that.
    pub dir: PathBuf,
    pub seed: u64,
    pub writers: usize,
    /// So many commits by each writer between an open and a close.
    pub commits: u64,
    /// So many times open, write, close; 0: until somebody ends it.
    pub lives: u64,
    /// A call that fails for lack of space, or because of the disk, is tried again for so long.
    pub patience: Duration,
    /// Only space runs out: a checkpoint that fails must clean up after itself.
    pub tidy: bool,
}

impl Work {
    /// The command that does it.
    pub fn command(&self) -> Command {
        let mut command = program();
        command.arg(COMMAND).arg(&self.dir);
        let patience = self.patience.as_millis() as u64;
        let tidy = u64::from(self.tidy);
        let Self { seed, writers, commits, lives, .. } = *self;
        let numbers = [seed, writers as u64, commits, lives, patience, tidy];
        command.args(numbers.map(|number| number.to_string()));
        command
    }

    /// The opposite of [`Work::command`], without the program and the subcommand.
    pub fn parse(arguments: &[String]) -> Option<Self> {
        let (dir, numbers) = arguments.split_first()?;
        let numbers: Vec<u64> = numbers.iter().map(|n| n.parse().ok()).collect::<Option<_>>()?;
        let &[seed, writers, commits, lives, patience, tidy] = &numbers[..] else { return None };
        let (dir, writers) = (PathBuf::from(dir), writers as usize);
        let patience = Duration::from_millis(patience);
        Some(Self { dir, seed, writers, commits, lives, patience, tidy: tidy == 1 })
    }
}

/// Why a life ends early.
enum Stop {
    /// With what the error says.
    Poisoned(String),
    /// Trying again did not help.
    GaveUp,
    /// What happened must not happen, and was said.
    Wrong,
}

type Attempt<T> = std::result::Result<T, Stop>;

/// Does the work; standard output gets the lines.
pub fn run(work: Work) {
    let output = std::io::stdout().as_fd().try_clone_to_owned().expect("standard output");
    let worker = Worker {
        work,
        output: File::from(output),
        checkpoints: AtomicU64::new(0),
        kept: Mutex::new(Vec::new()),
    };
    let hook = std::panic::take_hook();
    let voice = worker.output.try_clone().expect("standard output");
    std::panic::set_hook(Box::new(move |info| {
        say(&voice, &Line::Wrong(format!("panicked: {info}")));
        hook(info);
    }));
    worker.say(&Line::Begun);
    for life in 0.. {
        if worker.work.lives > 0 && life >= worker.work.lives {
            break;
        }
        worker.live(life);
    }
    worker.say(&Line::Ended);
}

fn say(mut output: &File, line: &Line) {
    let text = line.format() + "\n";
    while let Err(error) = output.write_vectored(&[IoSlice::new(text.as_bytes())]) {
        if error.kind() != std::io::ErrorKind::Interrupted {
            // The parent is gone, and nobody else would end this.
            std::process::exit(1);
        }
    }
}

struct Worker {
    work: Work,
    output: File,
    /// The number of the next checkpoint.
    checkpoints: AtomicU64,
    kept: Mutex<Vec<String>>,
}

impl Worker {
    fn say(&self, line: &Line) {
        say(&self.output, line);
    }

    fn wrong(&self, text: impl Into<String>) -> Stop {
        self.say(&Line::Wrong(text.into()));
        Stop::Wrong
    }

    /// Calls until it works, as an application would that waits for space.
    fn attempt<T>(&self, what: &str, mut call: impl FnMut() -> Result<T>) -> Attempt<T> {
        let (began, mut told) = (Instant::now(), false);
        loop {
            let error = match call() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if !std::mem::replace(&mut told, true) || error.kind() == ErrorKind::Poisoned {
                self.say(&Line::failed(what, &error));
            }
            match error.kind() {
                ErrorKind::Poisoned => return Err(Stop::Poisoned(error.to_string())),
                ErrorKind::Retry | ErrorKind::Io if began.elapsed() < self.work.patience => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                ErrorKind::Retry | ErrorKind::Io => return Err(Stop::GaveUp),
                _ => return Err(self.wrong(format!("{what}: {error}"))),
            }
        }
    }

    /// Opens, writes, closes.
    fn live(&self, life: u64) {
        // Nobody made this file: the error is the point.
        let _ = File::open(OPEN_MARKER);
        let way = self.work.seed.wrapping_add(life);
        let open = || Opened::open(script::config(&script::database(&self.work.dir)), way);
        let Ok(keyspace) = self.attempt("open", open) else { return };
        let stops = self.fill(&keyspace, life);
        let mut poisoned = stops.iter().filter_map(|stop| match stop {
            Stop::Poisoned(text) => Some(text.clone()),
            _ => None,
        });
        if let Some(first) = poisoned.next() {
            if let Some(other) = poisoned.find(|other| *other != first) {
                self.wrong(format!("two first causes: {first} | {other}"));
            }
            self.check_poison(&keyspace, &first);
        }
        self.check_scan(&keyspace);
        let seqno = keyspace.seqno();
        match keyspace.close() {
            Ok(()) => self.say(&Line::Durable(seqno)),
            Err(error) => {
                self.say(&Line::failed("close", &error));
                if !matches!(error.kind(), ErrorKind::Retry | ErrorKind::Io | ErrorKind::Poisoned) {
                    self.wrong(format!("close: {error}"));
                }
            }
        }
    }

    /// Creates what is missing and runs the writers; returns why they stopped.
    fn fill(&self, keyspace: &Opened, life: u64) -> Vec<Stop> {
        let mut lasting = Vec::new();
        for name in NAMES {
            match self.attempt("create", || script::partition(keyspace, name)) {
                Ok(partition) => lasting.push(partition),
                Err(stop) => return vec![stop],
            }
        }
        if let Err(stop) = self.attempt("create", || script::partition(keyspace, FLEETING)) {
            return vec![stop];
        }
        self.say(&Line::Ready);
        let write = |number: usize| {
            let seed = Rng::new(self.work.seed ^ (life << 8) ^ number as u64).bits();
            let rng = Rng::new(seed);
            Writer { worker: self, keyspace, lasting: &lasting, number, rng }.run().err()
        };
        std::thread::scope(|scope| {
            let others: Vec<_> =
                (1..self.work.writers).map(|n| scope.spawn(move || write(n))).collect();
            let first = write(0);
            let others = others.into_iter().flat_map(|other| other.join().ok());
            std::iter::once(first).chain(others).flatten().collect()
        })
    }

    /// A poisoned keyspace says so to everybody, with the same cause.
    fn check_poison(&self, keyspace: &Keyspace, first: &str) {
        let insert = || match keyspace.open_partition(NAMES[0])? {
            Some(partition) => partition.insert("after the poison", ""),
            // Its creation is what failed.
            None => keyspace.persist(Durability::SyncAll),
        };
        let answers = [
            ("write", insert()),
            ("create", keyspace.partition("after the poison", Default::default()).map(|_| ())),
            ("persist", keyspace.persist(Durability::SyncData)),
            ("persist to the buffer", keyspace.persist(Durability::Buffer)),
        ];
        for (what, answer) in answers {
            match answer {
                Err(error) if error.to_string() == first => {}
                other => _ = self.wrong(format!("{what} after {first}: {other:?}")),
            }
        }
    }

    /// Reads go on whatever happened, and are right.
    fn check_scan(&self, keyspace: &Keyspace) {
        for name in NAMES {
            let scan = || {
                let Some(partition) = keyspace.open_partition(name)? else { return Ok(true) };
                let keys = partition.iter()?.map(|entry| Ok(entry?.0));
                Ok(keys.collect::<Result<Vec<_>>>()?.is_sorted())
            };
            match scan() {
                Ok(true) => {}
                Ok(false) => _ = self.wrong(format!("{name} is not in order")),
                Err(error) => self.say(&Line::failed("scan", &error)),
            }
        }
    }

    /// What a failed checkpoint had written gives its space back.
    fn check_nothing_is_left(&self) {
        let mut left = unfinished(&self.work.dir);
        left.extend(crate::files::entries(&script::database(&self.work.dir).join("staging")));
        if !left.is_empty() {
            self.wrong(format!("a failed checkpoint leaves {left:?}"));
        }
    }

    fn take_checkpoint(&self, keyspace: &Keyspace, rng: &mut Rng) -> Attempt<()> {
        let transfer = if rng.one_in(3) { Transfer::Copy } else { Transfer::Auto };
        let flush = rng.one_in(3);
        let (name, report) = self.attempt("checkpoint", || {
            let name = loop {
                let number = self.checkpoints.fetch_add(1, Ordering::Relaxed);
                let name = format!("checkpoint-{number}");
                if !self.work.dir.join(&name).exists() {
                    break name;
                }
            };
            let builder = keyspace.checkpoint().transfer(transfer).flush_first(flush);
            let report = builder.write_to(self.work.dir.join(&name));
            if report.is_err() && self.work.tidy {
                self.check_nothing_is_left();
            }
            Ok((name, report?))
        })?;
        self.say(&Line::Checkpoint { name: name.clone(), seqno: report.seqno });
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(name);
        if kept.len() > CHECKPOINTS_KEPT {
            let oldest = kept.remove(0);
            self.say(&Line::Removing(oldest.clone()));
            // What cannot be removed now is only in the way.
            let _ = std::fs::remove_dir_all(self.work.dir.join(oldest));
        }
        Ok(())
    }
}

/// One thread that commits.
struct Writer<'a> {
    worker: &'a Worker,
    keyspace: &'a Opened,
    lasting: &'a [Partition],
    number: usize,
    rng: Rng,
}

impl Writer<'_> {
    fn run(mut self) -> Attempt<()> {
        let last = || self.lasting[0].get(script::last_key(self.number));
        let last = self.worker.attempt("read", last)?;
        let last = last.map(|bytes| script::parse_last(&bytes).expect("what a writer wrote"));
        if let Some(last) = last {
            self.finish_shape(last)?;
        }
        let first = last.map_or(0, |last| last + 1);
        self.worker.say(&Line::Resumed { writer: self.number, count: first });
        for count in first..first + self.worker.work.commits {
            self.commit(count)?;
            self.check_read(count);
            if self.number == 0 {
                self.shape(count)?;
                self.do_chores(count)?;
            }
        }
        Ok(())
    }

    fn commit(&mut self, count: u64) -> Attempt<()> {
        let durability = match self.rng.below(20) {
            0 => Some(Durability::SyncAll),
            1..=3 => Some(Durability::SyncData),
            _ => None,
        };
        let transaction = self.rng.one_in(2);
        let commit = || self.keyspace.commit(&self.changes(count)?, durability, transaction);
        let seqno = self.worker.attempt("commit", commit)?;
        let (writer, durable) = (self.number, durability.is_some());
        self.worker.say(&Line::Commit { writer, count, seqno, durable });
        Ok(())
    }

    fn changes(&self, count: u64) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        let (key, value) = (script::key(self.number, count), script::value(self.number, count));
        for partition in self.lasting {
            if partition.name() == script::home(count) {
                changes.push((partition.clone(), key.clone(), Edit::Insert(value.clone())));
            }
            let last = Edit::Insert(script::last_value(partition.name(), count));
            changes.push((partition.clone(), script::last_key(self.number), last));
        }
        if self.number == 0 {
            let fleeting = script::partition(self.keyspace, FLEETING)?;
            changes.push((fleeting, key, Edit::Insert(value)));
        }
        Ok(changes)
    }

    /// What was committed is there, and so is something older.
    fn check_read(&mut self, count: u64) {
        let older = self.rng.below(count + 1);
        let last = script::last_value(script::home(count + 1), count);
        for (what, key, at, expected) in [
            ("last", script::last_key(self.number), count + 1, last),
            ("older", script::key(self.number, older), older, script::value(self.number, older)),
        ] {
            let partition = self.lasting.iter().find(|p| p.name() == script::home(at));
            match partition.expect("all are there").get(key) {
                Ok(Some(found)) if found[..] == expected[..] => {}
                Ok(found) => {
                    let found = found.map(|value| value.len());
                    self.worker.wrong(format!(
                        "{what}: writer {} reads {found:?} bytes of {older} at {count}",
                        self.number
                    ));
                }
                Err(error) => self.worker.say(&Line::failed("get", &error)),
            }
        }
    }

    fn shape(&self, count: u64) -> Attempt<()> {
        let clear = || script::partition(self.keyspace, FLEETING)?.clear();
        let drop = || self.keyspace.drop_partition(FLEETING).map(|_| ());
        let unload = || {
            let fleeting = script::partition(self.keyspace, FLEETING)?;
            let mut ingest = fleeting.ingest()?;
            for key in fleeting.iter()?.keys() {
                ingest.remove(key?)?;
            }
            ingest.finish()
        };
        let load = || {
            let mut ingest = script::partition(self.keyspace, FLEETING)?.ingest()?;
            for (key, value) in script::load(count) {
                match value {
                    Some(value) => ingest.insert(key, value)?,
                    None => ingest.remove(key)?,
                }
            }
            ingest.finish()
        };
        match script::shape_after(count) {
            None => return Ok(()),
            Some(Shape::Load) => _ = self.worker.attempt("ingest", load)?,
            Some(Shape::Unload) => _ = self.worker.attempt("ingest", unload)?,
            Some(Shape::Clear) => self.worker.attempt("clear", clear)?,
            Some(Shape::DropAndCreate) => {
                self.worker.attempt("drop", drop)?;
                self.worker.attempt("create", || script::partition(self.keyspace, FLEETING))?;
            }
        }
        self.worker.say(&Line::Shaped(count));
        Ok(())
    }

    /// After an open: what should have followed the last commit may not have happened.
    fn finish_shape(&self, last: u64) -> Attempt<()> {
        let Some(shape) = script::shape_after(last).filter(|_| self.number == 0) else {
            return Ok(());
        };
        let is_done = || {
            let fleeting = script::partition(self.keyspace, FLEETING)?;
            match shape {
                Shape::Load => fleeting.contains_key(script::loaded_key(last)),
                _ => fleeting.is_empty(),
            }
        };
        if self.worker.attempt("read", is_done)? { Ok(()) } else { self.shape(last) }
    }

    fn do_chores(&mut self, count: u64) -> Attempt<()> {
        match count % 16 {
            5 => self.worker.attempt("flush", || self.keyspace.flush())?,
            9 => {
                let partition = &self.lasting[self.rng.below(3) as usize];
                self.worker.attempt("compact", || partition.compact())?;
            }
            13 => {
                let seqno = self.keyspace.seqno();
                let persist = || self.keyspace.persist(Durability::SyncData);
                self.worker.attempt("persist", persist)?;
                self.worker.say(&Line::Durable(seqno));
            }
            15 => self.worker.take_checkpoint(self.keyspace, &mut self.rng)?,
            _ => {}
        }
        Ok(())
    }
}

/// The unfinished checkpoints beside the keyspace.
pub fn unfinished(dir: &Path) -> Vec<String> {
    let names = crate::files::entries(dir).into_iter();
    names.filter(|name| name.starts_with('.') && name.contains(".esker-")).collect()
}
