//! What may survive: the judge that every layer with a worker asks.
//!
//! The directory must open; its content must be a prefix of the commit order, batches whole, that
//! contains what was promised to survive; a checkpoint that has its name must be whole; and the
//! keyspace must go on: a write, a clean close and a reopen follow.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use esker::{Config, Keyspace, VerifyOptions, verify};

use super::said::Said;
use super::script::{self, FLEETING, NAMES, Shape};
use super::worker;
use crate::chaos::{self, Entries, Model};

/// The judge's own key: written and removed again.
const MINE: &str = "the judge was here";

macro_rules! ensure {
    ($holds:expr, $($sentence:tt)*) => {
        if !$holds {
            return Err(format!($($sentence)*));
        }
    };
}
pub(crate) use ensure;

/// A sentence says what is wrong.
pub type Verdict<T> = Result<T, String>;

/// What happened to the worker's directory.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The process ended, or calls of it failed: what was handed to the operating system is there.
    Process,
    /// The machine stopped: what was acknowledged as durable is there.
    Machine,
}

/// One keyspace through any number of failures, as its judge knows it.
pub struct Story {
    dir: PathBuf,
    configure: fn(&Path) -> Config,
    /// The newest count of each writer after the last look.
    newest: BTreeMap<usize, u64>,
    /// All lasting partitions were seen.
    complete: bool,
    /// The newest sequence number after the last look, the judge's own writes included.
    seqno: u64,
    /// So many changes of partitions are there without the commit that has their number: the cut
    /// hit between the two.
    numberless: i64,
    /// So many commits are the judge's own.
    mine: u64,
    /// The counts whose consequence for `fleeting` was seen or acknowledged.
    shaped: Option<u64>,
}

/// What one look found.
#[derive(Copy, Clone, Debug, Default)]
pub struct Seen {
    pub commits: u64,
    pub checkpoints: u64,
}

impl Story {
    /// Nothing has happened yet in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
            configure: script::config,
            newest: BTreeMap::new(),
            complete: false,
            seqno: 0,
            numberless: 0,
            mine: 0,
            shaped: None,
        }
    }

    /// Looks at what is left. Only what is in `sure` was certainly acknowledged before the cut; the
    /// worker may have said more (`said`) that is true only if it survived.
    pub fn look(&mut self, sure: &Said, said: &Said, cut: Cut) -> Verdict<Seen> {
        // A panic of the engine on what it finds is a verdict, too.
        let looked = catch_unwind(AssertUnwindSafe(|| self.look_inside(sure, said, cut)));
        looked.unwrap_or_else(|panic| Err(format!("panicked: {}", panic_text(&*panic))))
    }

    fn look_inside(&mut self, sure: &Said, said: &Said, cut: Cut) -> Verdict<Seen> {
        let db = script::database(&self.dir);
        for name in worker::unfinished(&self.dir) {
            let path = self.dir.join(&name);
            std::fs::remove_dir_all(&path).map_err(|e| format!("{name}: {e}"))?;
        }
        if !db.join("CATALOG").exists() {
            ensure!(!sure.ready && !self.complete, "the keyspace is gone");
            // What a creation left that was cut short becomes a keyspace all the same.
            let keyspace = self.open(&db)?;
            ensure!(keyspace.partitions().is_empty(), "an unfinished creation has partitions");
            keyspace.close().map_err(|e| format!("close: {e}"))?;
            return Ok(Seen::default());
        }
        assert_sound(&db)?;
        let keyspace = self.open(&db)?;
        let content = chaos::content(&keyspace).map_err(|e| format!("read: {e}"))?;
        let all = NAMES.iter().all(|name| content.contains_key(*name));
        ensure!(all || !(sure.ready || self.complete), "missing: {:?}", content.keys());
        let (seqno, newest) = (keyspace.seqno(), judge_content(&content)?);
        self.check_floor(seqno, &newest, sure, said, cut)?;
        self.check_fleeting(&content, &newest, sure)?;
        check_prefix(seqno, &newest, said)?;
        let numberless = self.check_numbers(seqno, &newest, &content, said)?;
        let staging = crate::files::entries(&db.join("staging"));
        ensure!(staging.is_empty(), "staging is not empty: {staging:?}");
        let checkpoints = self.look_at_checkpoints(sure, said)?;
        let before: u64 = self.newest.values().map(|count| count + 1).sum();
        let commits: u64 = newest.values().map(|count| count + 1).sum();
        self.newest = newest;
        self.complete |= all;
        self.numberless = numberless;
        self.seqno = if all { self.go_on(keyspace, &content)? } else { seqno };
        self.mine += self.seqno - seqno;
        if cut == Cut::Machine {
            // The next cut must not undo what the judge removed.
            let dir = std::fs::File::open(&self.dir).map_err(|e| format!("sync: {e}"))?;
            rustix::fs::syncfs(&dir).map_err(|e| format!("sync: {e}"))?;
        }
        Ok(Seen { commits: commits.saturating_sub(before), checkpoints })
    }

    fn open(&self, path: &Path) -> Verdict<Keyspace> {
        (self.configure)(path).open().map_err(|e| format!("open {}: {e}", path.display()))
    }

    /// Nothing that had to survive is missing, and nothing is there that was not asked for.
    fn check_floor(
        &self,
        seqno: u64,
        newest: &BTreeMap<usize, u64>,
        sure: &Said,
        said: &Said,
        cut: Cut,
    ) -> Verdict<()> {
        let acknowledged = match cut {
            Cut::Process => sure.newest_seqno,
            Cut::Machine => sure.durable_seqno,
        };
        let floor = acknowledged.max(self.seqno);
        ensure!(seqno >= floor, "commit {floor} had to survive, the newest is {seqno}");
        for (writer, count) in &self.newest {
            let found = newest.get(writer);
            ensure!(found >= Some(count), "writer {writer}: {found:?}, there was {count}");
        }
        for (writer, count) in newest {
            // The commit that a writer goes on with may have happened.
            let most = said.next.get(writer).or(self.newest.get(writer));
            ensure!(Some(count) <= most, "writer {writer}: {count} was never asked for ({most:?})");
        }
        Ok(())
    }

    /// Whether `fleeting` was cleared or made anew after the last commit of writer 0 is open unless
    /// it was acknowledged.
    fn check_fleeting(
        &mut self,
        content: &Model,
        newest: &BTreeMap<usize, u64>,
        sure: &Said,
    ) -> Verdict<()> {
        let last = newest.get(&0).copied();
        let shape = last.and_then(script::shape_after);
        self.shaped = self.shaped.max(sure.shaped);
        if let (Some(shape), Some(count)) = (shape, last)
            && self.shaped >= last
        {
            let done = content.get(FLEETING) == Some(&script::reshaped(count));
            ensure!(done, "{shape:?} after {count} was acknowledged and is undone");
        }
        Ok(())
    }

    /// Everything that has a final name is whole, acknowledged or not.
    fn look_at_checkpoints(&self, sure: &Said, said: &Said) -> Verdict<u64> {
        let mut found = BTreeSet::new();
        for name in crate::files::entries(&self.dir) {
            let path = self.dir.join(&name);
            if !name.starts_with("checkpoint-") {
                continue;
            }
            if !said.removing.contains(&name) {
                self.look_at_checkpoint(&path, said.checkpoints.get(&name).copied(), said)
                    .map_err(|sentence| format!("{name}: {sentence}"))?;
            }
            std::fs::remove_dir_all(&path).map_err(|e| format!("remove {name}: {e}"))?;
            found.insert(name);
        }
        // By name: one that nobody was told of does not stand for one that was acknowledged.
        let mut promised = sure.checkpoints.keys().filter(|name| !said.removing.contains(*name));
        let gone = promised.find(|name| !found.contains(*name));
        ensure!(gone.is_none(), "{gone:?} was acknowledged and is gone; there are {found:?}");
        Ok(found.difference(&said.removing).count() as u64)
    }

    fn look_at_checkpoint(&self, path: &Path, seqno: Option<u64>, said: &Said) -> Verdict<()> {
        assert_sound(path)?;
        let opened = self.open(path)?;
        let content = chaos::content(&opened).map_err(|e| format!("read: {e}"))?;
        let newest = judge_content(&content)?;
        let found = opened.seqno();
        ensure!(seqno.is_none_or(|seqno| seqno == found), "commit {found}, not {seqno:?}");
        self.check_numbers(found, &newest, &content, said)?;
        check_prefix(found, &newest, said)
    }

    /// Every commit has one number, and every number stands for a commit that is there: nothing is
    /// lost in between and nothing is invented. A cut can leave one change of partitions without its
    /// number; returns how many there are by now.
    fn check_numbers(
        &self,
        seqno: u64,
        newest: &BTreeMap<usize, u64>,
        content: &Model,
        said: &Said,
    ) -> Verdict<i64> {
        let commits: u64 = newest.values().map(|count| count + 1).sum();
        let counted = commits + script::changes(newest, content) + self.mine;
        let numberless = counted as i64 - seqno as i64;
        // An ingest that was cut short may have left its number.
        let cut_short = newest.get(&0).is_some_and(|last| {
            let ingest = script::shape_after(*last).is_some_and(Shape::is_ingest);
            ingest && content.get(FLEETING).is_some_and(|found| *found != script::reshaped(*last))
        });
        let least = self.numberless - i64::from(cut_short);
        // What failed may have happened all the same.
        let fits = (least..=self.numberless + 1).contains(&numberless);
        ensure!(
            fits || !said.failed.is_empty(),
            "the newest commit is {seqno}, but {counted} are there: {commits} of {newest:?}, {} of \
             the judge; {} changes had no number before",
            self.mine,
            self.numberless
        );
        Ok(numberless)
    }

    /// The next life: a write, a clean close, a reopen with the same content.
    fn go_on(&self, keyspace: Keyspace, content: &Model) -> Verdict<u64> {
        let sentence = |what: &str, e: esker::Error| format!("{what} after the look: {e}");
        let name = NAMES[0];
        let one = keyspace.open_partition(name).map_err(|e| sentence("open", e))?;
        let one = one.ok_or("the partition that was just read is gone")?;
        one.insert(MINE, "").map_err(|e| sentence("write", e))?;
        one.remove(MINE).map_err(|e| sentence("remove", e))?;
        drop(one);
        let seqno = keyspace.seqno();
        keyspace.close().map_err(|e| sentence("close", e))?;
        let db = script::database(&self.dir);
        let report = verify(&db, VerifyOptions::default()).map_err(|e| sentence("verify", e))?;
        ensure!(report.is_sound() && report.clean, "after a clean close: {report:?}");
        ensure!(report.strays.is_empty(), "strays after a clean close: {:?}", report.strays);
        let again = self.open(&db)?;
        let found = again.seqno();
        ensure!(found == seqno, "commit {found} after the reopen, not {seqno}");
        let kept = chaos::content(&again).map_err(|e| sentence("read again", e))?;
        if let Some(difference) = chaos::difference(content, &kept) {
            return Err(format!("after the reopen: {difference}"));
        }
        again.close().map_err(|e| sentence("close again", e))?;
        Ok(seqno)
    }
}

/// The content must be what follows from the newest counts in it, which are returned.
fn judge_content(content: &Model) -> Verdict<BTreeMap<usize, u64>> {
    let mut newest = BTreeMap::new();
    let mut rest = content.clone();
    let fleeting = rest.remove(FLEETING);
    if rest.len() < NAMES.len() {
        let empty = rest.values().all(Entries::is_empty);
        ensure!(empty && fleeting.is_none(), "commits without all partitions: {:?}", rest.keys());
        return Ok(newest);
    }
    let writers = rest.values().flat_map(|entries| entries.keys()).filter_map(|key| writer_of(key));
    for writer in writers.collect::<BTreeSet<_>>() {
        let key = script::last_key(writer);
        let count = |entries: &Entries| match entries.get(&key) {
            Some(last) => {
                script::parse_last(last).map(Some).ok_or_else(|| format!("{last:?} is no count"))
            }
            None => Ok(None),
        };
        let lasts = rest.values().map(count).collect::<Verdict<Vec<_>>>()?;
        ensure!(lasts.windows(2).all(|w| w[0] == w[1]), "a batch is cut: {lasts:?}");
        let Some(Some(last)) = lasts.first() else { continue };
        newest.insert(writer, *last);
    }
    if let Some(difference) = chaos::difference(&script::lasting(&newest), &rest) {
        return Err(difference);
    }
    let last = newest.get(&0).copied();
    let expected = script::fleeting(last);
    let shape = last.and_then(script::shape_after);
    let fits = match (&fleeting, shape) {
        (Some(found), _) if *found == expected => true,
        (Some(found), Some(_)) => last.is_some_and(|last| *found == script::reshaped(last)),
        // Dropped and not made anew yet; or never made.
        (None, Some(Shape::DropAndCreate)) => true,
        (None, _) => last.is_none(),
        (Some(_), None) => false,
    };
    let count = fleeting.map(|entries| entries.len());
    ensure!(fits, "fleeting has {count:?} entries of {} at {last:?}", expected.len());
    Ok(newest)
}

/// A commit that was acknowledged is there exactly if its number is not above the newest.
fn check_prefix(seqno: u64, newest: &BTreeMap<usize, u64>, said: &Said) -> Verdict<()> {
    for (writer, counts) in &said.commits {
        for (count, number) in counts {
            let there = newest.get(writer) >= Some(count);
            ensure!(
                there == (*number <= seqno),
                "commit {number} (writer {writer}, count {count}) against the newest {seqno}: \
                 it is {}there, so this is no prefix",
                if there { "" } else { "not " }
            );
        }
    }
    Ok(())
}

fn writer_of(key: &[u8]) -> Option<usize> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix("writer ")?;
    rest.split(' ').next()?.parse().ok()
}

fn assert_sound(path: &Path) -> Verdict<()> {
    let report = verify(path, VerifyOptions::default()).map_err(|e| format!("verify: {e}"))?;
    ensure!(report.is_sound(), "verify finds {:?}", report.problems);
    Ok(())
}

/// What a panic said.
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
