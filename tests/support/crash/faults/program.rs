//! A program on a filesystem with faults: what it asks of the engine, what it is told, what it does
//! about an error.
//!
//! What must stay true: the same seed asks for the same in the same order; whatever gets a sequence
//! number is noted in the history; an error is answered as a program would: what can be tried again is,
//! a poisoned keyspace is opened anew, and after some trouble somebody mends the disk. A violation is
//! an `Err` with a sentence.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use esker::{CopyOptions, Durability, Error, ErrorKind, Keyspace, Transfer, cold_copy};

use crate::chaos::{self, Model, Rng};
use crate::crash::opened::Opened;
use crate::crash::recorder::filesystem::Desk;
use crate::crash::recorder::history::{self, Ack, Change, Event, History};
use crate::crash::recorder::injector::Fault;
use crate::crash::recorder::workload::{KEYSPACE, NAMES, config, options, value};

/// After so many errors somebody mends the disk.
const TROUBLES_MAX: usize = 6;
/// A call is made so often on a disk that fails.
const TRIES: usize = 3;
/// On a disk that is well again everything works after this.
const RESUMED_WITHIN: Duration = Duration::from_secs(10);
/// In the record before an open.
pub const OPENING: &[u8] = b"opening";
const PAUSE: Duration = Duration::from_millis(2);

/// What an error was about, as the program heard it.
#[derive(Clone, Debug)]
pub struct Heard {
    pub what: &'static str,
    pub kind: ErrorKind,
    pub text: String,
}

pub type Verdict<T> = Result<T, String>;

/// The program under way.
pub struct Program {
    root: PathBuf,
    desk: Desk,
    fault: Option<Fault>,
    seed: u64,
    rng: Rng,
    keyspace: Option<Opened>,
    history: History,
    /// The content as it should be.
    now: Model,
    /// A change that was asked for and not answered yet; it gets the next number.
    asked: Option<Event>,
    /// A change whose answer was that nobody knows: it has the next number, but for an ingest, which
    /// has the newest.
    unsure: Option<Event>,
    heard: Vec<Heard>,
    mended: bool,
    /// The keyspace was opened on a disk that was well.
    sane: bool,
    copies: usize,
    /// The places in the record between which the keyspace was opened.
    opens: Vec<(usize, usize)>,
}

/// What is left of a program that ended well.
#[derive(Debug)]
pub struct Ran {
    pub history: History,
    pub heard: Vec<Heard>,
    pub opens: Vec<(usize, usize)>,
}

impl Program {
    pub fn new(root: &Path, desk: Desk, fault: Option<Fault>, history: History, seed: u64) -> Self {
        Self {
            root: root.to_path_buf(),
            desk,
            fault,
            seed,
            rng: Rng::new(seed),
            keyspace: None,
            now: history.base.clone(),
            history: History { threads: 1, ..history },
            asked: None,
            unsure: None,
            heard: Vec::new(),
            mended: false,
            sane: false,
            copies: 0,
            opens: Vec::new(),
        }
    }

    /// The whole life of a keyspace, from its creation to its last close.
    pub fn live(mut self) -> Verdict<Ran> {
        self.open()?;
        self.create_missing(&NAMES[..3])?;
        self.commits(14)?;
        self.flush()?;
        self.commits(8)?;
        self.ingest(NAMES[1], true)?;
        self.commits(2)?;
        self.checkpoint(Transfer::Auto, false)?;
        self.ingest(NAMES[0], false)?;
        self.restructure(NAMES[0], |name| Event::Clear(name.to_owned()))?;
        self.commits(6)?;
        self.restructure(NAMES[2], |name| Event::Drop(name.to_owned()))?;
        self.create_missing(&NAMES[..3])?;
        self.ingest(NAMES[2], true)?;
        self.compact(NAMES[1])?;
        self.commits(5)?;
        self.persist(Durability::SyncAll)?;
        self.checkpoint(Transfer::Copy, true)?;
        self.close()?;
        self.cold_copy(Transfer::Auto)?;
        self.open()?;
        self.commits(4)?;
        self.end()
    }

    /// What follows an unclean end.
    pub fn recover(mut self) -> Verdict<Ran> {
        self.cold_copy(Transfer::Copy)?;
        self.open()?;
        self.create_missing(&NAMES[..3])?;
        self.commits(6)?;
        self.ingest(NAMES[1], true)?;
        self.checkpoint(Transfer::Auto, false)?;
        self.commits(3)?;
        self.end()
    }

    /// A close, and what everybody must find afterwards on a disk that is well.
    fn end(mut self) -> Verdict<Ran> {
        self.close()?;
        self.mend();
        self.open()?;
        self.check_content("in the end")?;
        self.commits(2)?;
        self.close()?;
        self.history.check()?;
        Ok(Ran { history: self.history, heard: self.heard, opens: self.opens })
    }

    fn db(&self) -> PathBuf {
        self.root.join(KEYSPACE)
    }

    fn ack(&self, ack: &Ack) {
        self.desk.acknowledge(ack.encode());
    }

    /// Somebody made room or changed the disk.
    fn mend(&mut self) {
        self.mended = true;
        self.desk.heal();
    }

    /// Nothing will fail any more.
    fn is_well(&self) -> bool {
        let lasts = self.fault.is_some_and(|fault| fault.lasting);
        self.mended || (!lasts && self.desk.was_hit())
    }

    fn newest(&self) -> u64 {
        self.history.base_seqno + self.history.events.len() as u64
    }

    /// An error that a program can do something about.
    fn hear(&mut self, what: &'static str, error: &Error) -> Verdict<()> {
        let (kind, text) = (error.kind(), error.to_string());
        let known = matches!(kind, ErrorKind::Io | ErrorKind::Retry | ErrorKind::Poisoned);
        if !(known || is_short_read(&text)) || text.contains("panicked") {
            return Err(format!("{what}: an error of the wrong kind, {kind:?}: {text}"));
        }
        if !self.desk.was_hit() {
            return Err(format!("{what}: an error before anything failed: {text}"));
        }
        if self.sane {
            return Err(format!("{what}: an error on a disk that is well: {text}"));
        }
        if kind == ErrorKind::Io && matches!(what, "commit" | "persist") {
            return Err(format!("{what}: it failed and the keyspace is not poisoned: {text}"));
        }
        self.heard.push(Heard { what, kind, text });
        if self.heard.len() >= TROUBLES_MAX {
            self.mend();
        }
        Ok(())
    }

    /// Calls until it works. `None` when what was asked for is over in another way: the keyspace had to
    /// be opened anew, or it happened although an error came back, or trying did not help.
    fn attempt<T>(
        &mut self,
        what: &'static str,
        mut call: impl FnMut(&Opened) -> esker::Result<T>,
    ) -> Verdict<Option<T>> {
        let began = Instant::now();
        let mut tries = 0;
        loop {
            let Some(keyspace) = self.keyspace.clone() else { return Ok(None) };
            let error = match call(&keyspace) {
                Ok(done) => return Ok(Some(done)),
                Err(error) => error,
            };
            self.hear(what, &error)?;
            if self.note_refusal(&keyspace, &error)? {
                return Ok(None);
            }
            if error.kind() == ErrorKind::Poisoned {
                self.check_poison(&keyspace, &error)?;
                drop(keyspace);
                self.asked = None;
                self.close()?;
                self.open()?;
                return Ok(None);
            }
            drop(keyspace);
            self.check_content("after an error")?;
            tries += 1;
            if self.is_well() {
                if began.elapsed() > RESUMED_WITHIN {
                    return Err(format!("{what} does not work on a disk that is well: {error}"));
                }
                std::thread::sleep(PAUSE);
            } else if tries >= TRIES {
                return Ok(None);
            }
        }
    }

    /// Whether what was refused happened all the same, which a change of partitions may: its commit
    /// is in the journal before CATALOG is written.
    fn note_refusal(&mut self, keyspace: &Keyspace, error: &Error) -> Verdict<bool> {
        let Some(event) = self.asked.clone() else { return Ok(false) };
        if let Event::Ingest(_) = event {
            return self.note_refused_ingest(keyspace, event, error);
        }
        let next = self.newest() + 1;
        if let Event::Create(name) = &event {
            self.history.attempted.insert(name.clone());
        }
        if keyspace.seqno() < next {
            self.history.refused.entry(next).or_default().push(event.clone());
            if error.kind() == ErrorKind::Poisoned {
                self.unsure = Some(event);
            }
            return Ok(false);
        }
        if let Event::Batch(_) = event {
            return Err(format!("commit {next} was refused and is visible: {error}"));
        }
        self.happened(event);
        self.ack(&Ack::Commit { seqno: next, durable: false });
        // Whoever is poisoned still has to notice.
        Ok(error.kind() != ErrorKind::Poisoned)
    }

    /// The same for an ingest, of which there may be nothing; its number and no more; or all of it, if
    /// only CATALOG could not be written behind it. An install whose end nobody knows poisons: the next
    /// open tells.
    fn note_refused_ingest(
        &mut self,
        keyspace: &Keyspace,
        ingest: Event,
        error: &Error,
    ) -> Verdict<bool> {
        let next = self.newest() + 1;
        let nothing = Event::Batch(Vec::new());
        if keyspace.seqno() < next {
            // Before the frame there is no install.
            if error.kind() == ErrorKind::Poisoned && self.unsure.is_none() {
                self.history.refused.entry(next).or_default().push(nothing.clone());
                self.unsure = Some(nothing);
            }
            return Ok(false);
        }
        let is_in = self.shows(keyspace, &ingest)?;
        self.happened(if is_in { ingest.clone() } else { nothing });
        self.ack(&Ack::Commit { seqno: next, durable: false });
        if is_in {
            return Ok(error.kind() != ErrorKind::Poisoned);
        }
        if error.kind() != ErrorKind::Retry {
            self.history.refused.entry(next).or_default().push(ingest.clone());
            self.unsure = Some(ingest.clone());
        }
        // It is tried again, under another number.
        self.asked = Some(ingest);
        Ok(false)
    }

    /// Whether what is read is what this would leave, and not what is there without it.
    fn shows(&mut self, keyspace: &Keyspace, event: &Event) -> Verdict<bool> {
        let mut with = self.now.clone();
        history::apply(&mut with, event);
        loop {
            match chaos::content(keyspace) {
                Ok(found) => return Ok(chaos::difference(&with, &found).is_none()),
                Err(error) => self.hear("read", &error)?,
            }
            // Nobody could go on without knowing.
            self.mend();
        }
    }

    /// The next sequence number stands for this.
    fn happened(&mut self, event: Event) {
        let seqno = self.newest() + 1;
        history::apply(&mut self.now, &event);
        if !matches!(event, Event::Batch(_) | Event::Ingest(_)) {
            self.history.structure.push(seqno);
        }
        // One thread: what it begins follows what it has ended.
        self.history.begun_at.insert(seqno, seqno - 1);
        self.history.events.insert(seqno, event);
        self.asked = None;
    }

    /// A poisoned keyspace says so to everybody, with the same cause, and shows what it showed.
    fn check_poison(&mut self, keyspace: &Keyspace, first: &Error) -> Verdict<()> {
        let first = first.to_string();
        let insert = keyspace.open_partition(NAMES[0]).and_then(|partition| match partition {
            Some(partition) => partition.insert("after the poison", ""),
            None => keyspace.persist(Durability::SyncAll),
        });
        let answers = [
            ("write", insert),
            ("create", keyspace.partition("after the poison", Default::default()).map(drop)),
            ("persist", keyspace.persist(Durability::SyncData)),
            ("flush", keyspace.flush()),
            ("persist to the buffer", keyspace.persist(Durability::Buffer)),
        ];
        for (what, answer) in answers {
            match answer {
                Err(error) if error.to_string() == first => {}
                other => return Err(format!("{what} after {first}: {other:?}")),
            }
        }
        if keyspace.seqno() != self.newest() {
            let (found, newest) = (keyspace.seqno(), self.newest());
            return Err(format!("after {first}: commit {found} is visible, not {newest}"));
        }
        self.check_content("poisoned")
    }

    /// What is read is right, whatever else happens; or it is an error.
    fn check_content(&mut self, when: &str) -> Verdict<()> {
        let Some(keyspace) = self.keyspace.clone() else { return Ok(()) };
        match chaos::content(&keyspace) {
            Ok(found) => match chaos::difference(&self.now, &found) {
                Some(difference) => Err(format!("{when}: {difference}")),
                None => Ok(()),
            },
            Err(error) => self.hear("read", &error),
        }
    }

    fn open(&mut self) -> Verdict<()> {
        let began = Instant::now();
        let begin = self.desk.recorded();
        loop {
            self.desk.acknowledge(OPENING.to_vec());
            let well = self.is_well();
            let way = self.seed.wrapping_add(self.opens.len() as u64);
            match Opened::open(config(&self.db()).worker_threads(1), way) {
                Ok(keyspace) => {
                    self.opens.push((begin, self.desk.recorded()));
                    self.sane = well;
                    self.keyspace = Some(keyspace);
                    return self.settle();
                }
                Err(error) => self.hear("open", &error)?,
            }
            if !self.is_well() && self.heard.len() >= TRIES {
                self.mend();
            }
            if began.elapsed() > RESUMED_WITHIN {
                return Err("it does not open on a disk that is well".into());
            }
        }
    }

    /// What an open found: everything that was acknowledged, and perhaps a change whose answer was that
    /// nobody knows. All of it is durable.
    fn settle(&mut self) -> Verdict<()> {
        let Some(keyspace) = self.keyspace.clone() else { return Ok(()) };
        let (seqno, newest) = (keyspace.seqno(), self.newest());
        match self.unsure.take() {
            Some(event) if seqno == newest + 1 => {
                self.happened(event);
                self.ack(&Ack::Commit { seqno, durable: true });
            }
            // It has its number since it was refused.
            Some(event @ Event::Ingest(_)) if seqno == newest => {
                if self.shows(&keyspace, &event)? {
                    history::apply(&mut self.now, &event);
                    self.history.events.insert(seqno, event);
                }
            }
            _ if seqno == newest => {}
            unsure => {
                return Err(format!("it opens with {seqno} after {newest} and perhaps {unsure:?}"));
            }
        }
        self.ack(&Ack::Opened);
        self.ack(&Ack::Durable { seqno });
        self.drop_attempts(&keyspace)?;
        self.check_content("after an open")
    }

    /// A partition whose creation was refused may be there, empty. It has no number: it goes.
    fn drop_attempts(&mut self, keyspace: &Keyspace) -> Verdict<()> {
        for name in keyspace.partitions() {
            if !self.now.contains_key(&name) && self.history.attempted.contains(&name) {
                self.now.insert(name.clone(), Default::default());
                self.restructure(&name, |name| Event::Drop(name.to_owned()))?;
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Verdict<()> {
        let Some(keyspace) = self.keyspace.take() else { return Ok(()) };
        let seqno = self.newest();
        match keyspace.close() {
            Ok(()) => self.ack(&Ack::Durable { seqno }),
            Err(error) => self.hear("close", &error)?,
        }
        Ok(())
    }

    fn commits(&mut self, count: usize) -> Verdict<()> {
        for number in 0..count {
            self.commit()?;
            if number == 7 {
                self.check_content("between commits")?;
            }
        }
        Ok(())
    }

    fn commit(&mut self) -> Verdict<()> {
        let (changes, mode) = (self.changes(), self.mode());
        if changes.is_empty() {
            return Ok(());
        }
        self.asked = Some(Event::Batch(changes.clone()));
        let (next, transaction) = (self.newest() + 1, self.rng.one_in(2));
        let committed = self.attempt("commit", |keyspace| {
            let mut there = Vec::new();
            for (name, key, value) in &changes {
                let Some(partition) = keyspace.open_partition(name)? else { continue };
                there.push((partition, key.clone(), value.clone().into()));
            }
            keyspace.commit(&there, Some(mode), transaction)
        })?;
        let Some(seqno) = committed else { return Ok(()) };
        if seqno != next {
            return Err(format!("commit {next} got the number {seqno}"));
        }
        self.happened(Event::Batch(changes));
        self.ack(&Ack::Commit { seqno, durable: mode != Durability::Buffer });
        Ok(())
    }

    /// Loads sorted changes into a partition, or gives that up when they are half on the disk.
    fn ingest(&mut self, name: &str, finish: bool) -> Verdict<()> {
        if !self.now.contains_key(name) {
            return Ok(());
        }
        let changes = self.sorted_changes(name, finish);
        let event = Event::Ingest(changes);
        self.asked = finish.then(|| event.clone());
        let Event::Ingest(changes) = &event else { unreachable!("it was just made") };
        let loaded =
            self.attempt("ingest", |keyspace| load(keyspace, name, changes, finish))?.flatten();
        if let Some(seqno) = loaded {
            let next = self.newest() + 1;
            if seqno != next {
                return Err(format!("the ingest {next} got the number {seqno}"));
            }
            self.happened(event);
            self.ack(&Ack::Commit { seqno, durable: true });
        }
        self.asked = None;
        Ok(())
    }

    /// Puts and removals of ascending keys.
    fn sorted_changes(&mut self, name: &str, finish: bool) -> Vec<Change> {
        let rng = &mut self.rng;
        let mut changes = Vec::new();
        for number in 0..40 {
            let key = format!("key {number:02}").into_bytes();
            if !finish && number == 0 {
                // So much goes to the writer at once.
                changes.push((name.to_owned(), key, Some(vec![7; 256 << 10])));
            } else if number == 1 || rng.one_in(4) {
                let value = if rng.one_in(4) { None } else { Some(value(rng)) };
                changes.push((name.to_owned(), key, value));
            }
        }
        changes
    }

    /// A random batch over the partitions that are there.
    fn changes(&mut self) -> Vec<Change> {
        let rng = &mut self.rng;
        let most = if rng.one_in(6) { 8 } else { 2 };
        let mut changes = Vec::new();
        for _ in 0..=rng.below(most) {
            let name = NAMES[rng.below(4) as usize];
            let key = format!("key {:02}", rng.below(40)).into_bytes();
            let value = if rng.one_in(4) { None } else { Some(value(rng)) };
            if self.now.contains_key(name) {
                changes.push((name.to_owned(), key, value));
            }
        }
        changes
    }

    fn mode(&mut self) -> Durability {
        match self.rng.below(12) {
            0..=2 => Durability::SyncData,
            3 => Durability::SyncAll,
            _ => Durability::Buffer,
        }
    }

    fn create_missing(&mut self, names: &[&str]) -> Verdict<()> {
        for name in names {
            if !self.now.contains_key(*name) {
                self.restructure(name, |name| Event::Create(name.to_owned()))?;
            }
        }
        Ok(())
    }

    /// A change of the partitions; nothing for one that is not there.
    fn restructure(&mut self, name: &str, event: impl Fn(&str) -> Event) -> Verdict<()> {
        let event = event(name);
        if self.keyspace.is_none()
            || self.now.contains_key(name) == matches!(event, Event::Create(_))
        {
            return Ok(());
        }
        self.asked = Some(event.clone());
        let done = self.attempt("restructure", |keyspace| match &event {
            Event::Create(name) => keyspace.partition(name, options(name)).map(drop),
            Event::Drop(name) => keyspace.drop_partition(name).map(drop),
            _ => keyspace.open_partition(name)?.map_or(Ok(()), |partition| partition.clear()),
        })?;
        if done.is_some() {
            self.happened(event);
            self.ack(&Ack::Structure { number: self.history.structure.len() - 1 });
        }
        self.asked = None;
        Ok(())
    }

    fn persist(&mut self, mode: Durability) -> Verdict<()> {
        let seqno = self.newest();
        if self.attempt("persist", |keyspace| keyspace.persist(mode))?.is_some() {
            self.ack(&Ack::Durable { seqno });
        }
        Ok(())
    }

    fn flush(&mut self) -> Verdict<()> {
        self.attempt("flush", |keyspace| keyspace.flush()).map(drop)
    }

    fn compact(&mut self, name: &str) -> Verdict<()> {
        let compact = |keyspace: &Opened| {
            keyspace.open_partition(name)?.map_or(Ok(()), |partition| partition.compact())
        };
        self.attempt("compact", compact).map(drop)
    }

    fn next_copy(&mut self, kind: &str) -> String {
        self.copies += 1;
        format!("{kind}-{}", self.copies)
    }

    fn checkpoint(&mut self, transfer: Transfer, flush: bool) -> Verdict<()> {
        // A failed attempt may have left a complete target.
        let names: Vec<_> = (0..1000).map(|_| self.next_copy("checkpoint")).collect();
        let (mut names, root) = (names.into_iter(), self.root.clone());
        let taken = self.attempt("checkpoint", |keyspace| {
            let name = names.next().unwrap_or_default();
            let builder = keyspace.checkpoint().transfer(transfer).flush_first(flush);
            Ok((builder.write_to(root.join(&name))?.seqno, name))
        })?;
        if let Some((seqno, name)) = taken {
            self.ack(&Ack::Copy { name, seqno });
        }
        Ok(())
    }

    /// A copy of the keyspace, which is closed.
    fn cold_copy(&mut self, transfer: Transfer) -> Verdict<()> {
        for _ in 0..TRIES {
            let name = self.next_copy("copy");
            let options = CopyOptions::default().transfer(transfer);
            match cold_copy(self.db(), self.root.join(&name), options) {
                Ok(report) => {
                    self.ack(&Ack::Copy { name, seqno: report.seqno });
                    return Ok(());
                }
                Err(error) => self.hear("cold copy", &error)?,
            }
        }
        Ok(())
    }
}

/// The number of an ingest that was finished.
fn load(
    keyspace: &Keyspace,
    name: &str,
    changes: &[Change],
    finish: bool,
) -> esker::Result<Option<u64>> {
    let Some(partition) = keyspace.open_partition(name)? else { return Ok(None) };
    let mut ingest = partition.ingest()?;
    for (_, key, value) in changes {
        match value {
            Some(value) => ingest.insert(key.clone(), value.clone())?,
            None => ingest.remove(key.clone())?,
        }
    }
    if finish { ingest.finish().map(|report| Some(report.seqno)) } else { Ok(None) }
}

/// lsm-tree reads a block with one call, and takes a short answer for the end of a damaged file.
fn is_short_read(text: &str) -> bool {
    text.contains("did not read enough bytes")
}
