//! Judges one damaged directory: what `verify` says, what opens show, what copies and backups of it
//! hold. Every answer is right, or an error that names the damaged file.

use std::any::Any;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use esker::{
    CopyOptions, Durability, Error, ErrorKind, Keyspace, Partition, VerifyOptions, VerifyReport,
    cold_copy, verify,
};

use super::author::config;
use super::damage::Damage;
use super::demand::Demand;
use super::image::Image;
use crate::chaos::{Entries, Model, Rng};
use crate::crash::judge::{Verdict, ensure, panic_text};

/// What the judge writes after a damage, in a partition of the image.
const MINE: &[u8] = b"the judge was here";

/// What came of a damage.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// `verify` reports it, and the directory does not open.
    Refused,
    /// `verify` reports it; it opens, and reads of what is damaged fail.
    ReadsFail,
    /// `verify` reports it; it opens, and everything that is read is right.
    VerifyOnly,
    /// `verify` reports it; it opens, and shows blocks or files that belong elsewhere and are whole.
    Elsewhere,
    /// Reported as a write that was cut short. The commits from there on are gone, or there were none.
    TornTail,
    /// The journal ends before the damage, as if it had never been written further.
    EndsEarly,
    /// Nothing is missing and nothing is reported.
    Harmless,
    /// An open refuses what `verify` cannot see: that one does not look into tables for commits.
    OpenOnly,
}

/// How often more than `verify` and one read-only open is tried.
#[derive(Copy, Clone, Debug)]
pub struct Care {
    pub writable_one_in: u64,
    pub copy_one_in: u64,
}

/// Where cases of one image are judged.
pub struct Bench<'a> {
    image: &'a Image,
    template: PathBuf,
    scratch: PathBuf,
}

impl<'a> Bench<'a> {
    pub fn new(image: &'a Image, scratch: &Path) -> Verdict<Self> {
        let template = scratch.join("template");
        image.write_to(&template).map_err(|e| format!("write the template: {e}"))?;
        Ok(Self { image, template, scratch: scratch.to_path_buf() })
    }

    /// Does the damage to a copy and judges that.
    pub fn judge(&self, damage: &Damage, care: Care, seed: u64) -> Verdict<Outcome> {
        let place = tempfile::tempdir_in(&self.scratch).map_err(|e| format!("a place: {e}"))?;
        let root = place.path().join("damaged");
        self.lay_out(&root, damage)?;
        self.judge_as_it_is(place.path(), damage, care, seed)
    }

    /// Judges the directory `damaged` in `place` as one that has suffered `damage`.
    pub fn judge_as_it_is(
        &self,
        place: &Path,
        damage: &Damage,
        care: Care,
        seed: u64,
    ) -> Verdict<Outcome> {
        let (image, root) = (self.image, place.join("damaged"));
        let case = Case { image, damage, demand: Demand::of(image, damage) };
        let mut rng = Rng::new(seed);
        let reported = guarded("verify", || case.check_report(&root))?;
        let first = guarded("a read-only open", || case.read(&root, true))?;
        if rng.one_in(care.copy_one_in) {
            let target = place.join("copy");
            guarded("a cold copy", || case.copy(&root, &target, reported))?;
        }
        if rng.one_in(care.writable_one_in) {
            let root = place.join("writable");
            self.lay_out(&root, damage)?;
            guarded("an open for writing", || case.write(&root, &mut rng, reported))?;
        }
        case.outcome(reported, first)
    }

    fn lay_out(&self, root: &Path, damage: &Damage) -> Verdict<()> {
        let linked = self.image.link_to(&self.template, root, &damage.files);
        linked.map_err(|e| format!("lay out a copy: {e}"))
    }

    /// Nothing was written through the links, and the unharmed image shows what it must.
    pub fn assert_whole(&self) -> Verdict<()> {
        for (name, bytes) in &self.image.files {
            let now = fs::read(self.template.join(name)).map_err(|e| format!("{name:?}: {e}"))?;
            ensure!(now == *bytes, "{} was written through a link", name.display());
        }
        let keyspace = config(&self.template).read_only(true).open();
        let keyspace = keyspace.map_err(|e| format!("the unharmed image: {e}"))?;
        let expected = &self.image.history[&self.image.seqno];
        let seen = look(&keyspace, expected, &mut |error| Err(error.to_string()))?;
        ensure!(seen.wrong.is_none(), "the unharmed image: {seen:?}");
        Ok(())
    }
}

/// What `verify` made of a damage.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Reported {
    Located,
    Torn,
    Nothing,
}

/// What an open showed.
#[derive(Debug, Default)]
struct Seen {
    refused: bool,
    /// A read failed.
    damaged: bool,
    /// The first thing that is not what it must be.
    wrong: Option<String>,
}

struct Case<'a> {
    image: &'a Image,
    damage: &'a Damage,
    demand: Demand,
}

impl Case<'_> {
    fn check_report(&self, root: &Path) -> Verdict<Reported> {
        let report = match verify(root, VerifyOptions::default().threads(1)) {
            Ok(report) => report,
            Err(Error::NotAKeyspace { .. }) if self.demand.catalog => return Ok(Reported::Located),
            Err(error) => return Err(format!("verify gives up: {error}")),
        };
        if report.is_sound() {
            self.check_tail(root, &report)
        } else {
            self.check_names(root, &report)
        }
    }

    fn check_names(&self, root: &Path, report: &VerifyReport) -> Verdict<Reported> {
        let named = report.problems.iter().any(|problem| self.points(&problem.path, root));
        ensure!(named, "verify names another file: {:?}", report.problems);
        Ok(Reported::Located)
    }

    /// Nothing was found but perhaps a write that was cut short.
    fn check_tail(&self, root: &Path, report: &VerifyReport) -> Verdict<Reported> {
        let demand = &self.demand;
        ensure!(!demand.must_report, "not reported by verify: {:?}", report.torn_tail);
        let Some(tail) = &report.torn_tail else {
            let seen = demand.torn.iter().all(|torn| torn.looks_open);
            ensure!(seen, "not reported by verify, not even as a torn tail: {:?}", demand.torn);
            return Ok(Reported::Nothing);
        };
        let here = |path: &Path, offset| path == tail.path && offset == tail.offset;
        let right = demand.torn.iter().any(|torn| here(&root.join(&torn.path), torn.offset));
        ensure!(right, "a torn tail at another place: {tail:?}, expected {:?}", demand.torn);
        Ok(Reported::Torn)
    }

    fn read(&self, root: &Path, read_only: bool) -> Verdict<Seen> {
        match config(root).read_only(read_only).create_if_missing(false).open() {
            Ok(keyspace) => self.look(&keyspace, root),
            Err(error) => self.refused(&error, root),
        }
    }

    fn refused(&self, error: &Error, root: &Path) -> Verdict<Seen> {
        self.check_error(error, root)?;
        Ok(Seen { refused: true, ..Seen::default() })
    }

    /// Everything in the open keyspace is right, or an error says what is damaged.
    fn look(&self, keyspace: &Keyspace, root: &Path) -> Verdict<Seen> {
        let (seqno, demanded) = (keyspace.seqno(), self.demand.seqno);
        ensure!(seqno == demanded, "an open shows commit {seqno} instead of {demanded}");
        let expected = self.expected(keyspace);
        let seen = look(keyspace, &expected, &mut |error| self.check_error(error, root))?;
        if let Some(wrong) = seen.wrong.as_ref().filter(|_| !self.demand.borrowed) {
            return Err(format!("wrong content: {wrong}"));
        }
        Ok(seen)
    }

    /// What the newest commit left. CATALOG names a partition before the journal does: one that was
    /// created later may be there, and empty.
    fn expected(&self, keyspace: &Keyspace) -> Model {
        let mut expected = self.image.history[&self.demand.seqno].clone();
        let later = self.image.history.range(self.demand.seqno + 1..);
        for name in keyspace.partitions() {
            if later.clone().any(|(_, model)| model.contains_key(&name)) {
                expected.entry(name).or_default();
            }
        }
        expected
    }

    /// An error must say that something is corrupt, and what.
    fn check_error(&self, error: &Error, root: &Path) -> Verdict<()> {
        if matches!(error, Error::NotAKeyspace { .. }) && self.demand.catalog {
            return Ok(());
        }
        let Error::Corrupt(corruption) = error else {
            return Err(format!("an error of another kind: {error}"));
        };
        ensure!(self.points(&corruption.path, root), "an error names another file: {error}");
        Ok(())
    }

    /// Whether a report about `path` leads to the damage: one of its files, or for a tree its
    /// directory (lsm-tree's errors name no file) or the other one of `current` and manifest.
    fn points(&self, path: &Path, root: &Path) -> bool {
        let names = || self.damage.files.keys().chain(&self.demand.may_name);
        let Ok(relative) = path.strip_prefix(root) else {
            // A read-only open works on links in a private view.
            return self.demand.misfit || names().any(|name| same_tree(path, name));
        };
        let pair = |path: &Path| {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            file == "current" || file.starts_with('v')
        };
        let leads_to = |name: &PathBuf| {
            let directory = relative.components().count() == 2;
            // A table of another tree leads to the wrong places of blob files.
            let misled = self.demand.borrowed && relative.iter().any(|part| part == "blobs");
            relative == name
                || same_tree(relative, name)
                    && (directory || misled || pair(relative) && pair(name))
        };
        // What does not fit may be either of two: tables that know more than the journal, too.
        let tables = self.demand.shortens(self.image) && relative.starts_with("partitions");
        self.demand.misfit || tables || names().any(leads_to)
    }

    /// A cold copy is refused, or it is as good as what was copied.
    fn copy(&self, root: &Path, target: &Path, reported: Reported) -> Verdict<()> {
        match cold_copy(root, target, CopyOptions::default()) {
            Err(error) => {
                ensure!(!self.is_harmless(reported), "the copy of a sound keyspace fails: {error}");
                self.check_error(&error, root)
            }
            Ok(_) => self.check_copy(target, reported),
        }
    }

    /// A finished copy or checkpoint: where `verify` finds it sound, it is.
    fn check_copy(&self, target: &Path, reported: Reported) -> Verdict<()> {
        let report = verify(target, VerifyOptions::default().threads(1));
        let report = report.map_err(|e| format!("verify gives up on a copy: {e}"))?;
        let sound = report.is_sound();
        ensure!(
            sound || reported == Reported::Located,
            "the copy is damaged: {:?}",
            report.problems
        );
        let seen = self.read(target, true)?;
        let right = !seen.refused && !seen.damaged && seen.wrong.is_none();
        // A merge makes sound tables of blocks that belong elsewhere, and `verify` does not compare
        // the commits in tables with the journal.
        let suspect = self.demand.misfit || self.demand.shortens(self.image);
        let excused = self.demand.borrowed || seen.refused && suspect;
        ensure!(right || excused || !sound, "a copy that is sound for verify is not: {seen:?}");
        Ok(())
    }

    fn is_harmless(&self, reported: Reported) -> bool {
        let suspect = self.demand.misfit || self.demand.shortens(self.image);
        reported != Reported::Located && !suspect
    }

    /// Opens for writing, reads, and goes on as a program would that does not know.
    fn write(&self, root: &Path, rng: &mut Rng, reported: Reported) -> Verdict<()> {
        let opened = config(root).create_if_missing(false).open();
        let keyspace = match opened {
            Ok(keyspace) => keyspace,
            Err(error) => {
                ensure!(!self.is_harmless(reported), "a sound keyspace does not open: {error}");
                return self.check_error(&error, root);
            }
        };
        let seen = self.look(&keyspace, root)?;
        ensure!(
            reported != Reported::Nothing || !seen.damaged,
            "reads fail, and verify found nothing"
        );
        if rng.one_in(2) {
            let target = root.with_extension("backup");
            match keyspace.backup_to(&target) {
                Ok(_) => self.check_copy(&target, reported)?,
                // lsm-tree removes and goes on listing a table in whose place there is another.
                Err(error) if error.kind() == ErrorKind::Io && reported == Reported::Located => {}
                Err(error) => self.allow(&error, reported)?,
            }
        }
        let mut expected = self.expected(&keyspace);
        let undecided = self.go_on(&keyspace, &mut expected, rng, reported)?;
        if let Err(error) = keyspace.close() {
            self.allow(&error, reported)?;
        }
        match config(root).create_if_missing(false).open() {
            Ok(keyspace) => {
                for (name, entries) in
                    expected.iter_mut().filter(|(name, _)| undecided.contains(name))
                {
                    let partition =
                        keyspace.open_partition(name).map_err(|e| format!("{name}: {e}"))?;
                    if partition.is_some_and(|p| matches!(p.get(MINE), Ok(Some(_)))) {
                        entries.insert(MINE.into(), MINE.into());
                    }
                }
                let seen = look(&keyspace, &expected, &mut |error| self.check_error(error, root))?;
                let wrong = seen.wrong.filter(|_| !self.demand.borrowed);
                ensure!(wrong.is_none(), "wrong content after another write: {wrong:?}");
                Ok(())
            }
            Err(error) => self.allow(&error, reported),
        }
    }

    /// A durable write, and everything merged; what is merged from damaged tables fails. Returns the
    /// partitions whose write failed: it may be there or not.
    fn go_on(
        &self,
        keyspace: &Keyspace,
        expected: &mut Model,
        rng: &mut Rng,
        reported: Reported,
    ) -> Verdict<Vec<String>> {
        let mut undecided = Vec::new();
        let allowed = |result: esker::Result<()>| match result {
            Ok(()) => Ok(true),
            Err(error) => self.allow(&error, reported).map(|()| false),
        };
        for (name, entries) in expected {
            let partition = keyspace.open_partition(name).map_err(|e| format!("{name}: {e}"))?;
            let partition = partition.ok_or_else(|| format!("{name} is gone"))?;
            let mut batch = keyspace.batch();
            batch.insert(&partition, MINE, MINE).durability(Durability::SyncData);
            if allowed(batch.commit().map(drop))? {
                entries.insert(MINE.into(), MINE.into());
            } else {
                undecided.push(name.clone());
            }
            if rng.one_in(3) {
                allowed(partition.compact())?;
            }
        }
        Ok(undecided)
    }

    /// What a damage that was reported may make fail.
    fn allow(&self, error: &Error, reported: Reported) -> Verdict<()> {
        let kind = error.kind();
        let expected = [ErrorKind::Corrupt, ErrorKind::Poisoned].contains(&kind);
        ensure!(expected && !self.is_harmless(reported), "{error}");
        Ok(())
    }

    fn outcome(&self, reported: Reported, seen: Seen) -> Verdict<Outcome> {
        let shortened = self.demand.shortens(self.image);
        Ok(match reported {
            Reported::Located if seen.refused => Outcome::Refused,
            Reported::Located if seen.wrong.is_some() => Outcome::Elsewhere,
            Reported::Located if seen.damaged => Outcome::ReadsFail,
            Reported::Located => Outcome::VerifyOnly,
            _ if seen.refused && (self.demand.misfit || shortened) => Outcome::OpenOnly,
            _ if seen.refused || seen.damaged => {
                return Err(format!("{seen:?}, and verify found nothing"));
            }
            _ if seen.wrong.is_some() => return Err(format!("silent: {seen:?}")),
            Reported::Torn => Outcome::TornTail,
            Reported::Nothing if shortened => Outcome::EndsEarly,
            Reported::Nothing => Outcome::Harmless,
        })
    }
}

/// Whether both lie in one `partitions/<id>`.
fn same_tree(one: &Path, other: &Path) -> bool {
    let tree = |path: &Path| {
        let mut parts = path.iter().skip_while(|part| *part != "partitions").skip(1);
        parts.next().map(ToOwned::to_owned)
    };
    tree(one).is_some() && tree(one) == tree(other)
}

/// Compares everything with what it must be: scans from both ends, and gets. An error ends a scan;
/// what came before it must be right.
fn look(
    keyspace: &Keyspace,
    expected: &Model,
    check: &mut dyn FnMut(&Error) -> Verdict<()>,
) -> Verdict<Seen> {
    let mut seen = Seen::default();
    let names: Vec<_> = expected.keys().cloned().collect();
    if keyspace.partitions() != names {
        seen.wrong = Some(format!("partitions {:?} instead of {names:?}", keyspace.partitions()));
        return Ok(seen);
    }
    for (name, entries) in expected {
        let partition = keyspace.open_partition(name).map_err(|e| format!("{name}: {e}"))?;
        let partition = partition.ok_or_else(|| format!("{name} is gone"))?;
        scan(&partition, entries, false, &mut seen, check)?;
        scan(&partition, entries, true, &mut seen, check)?;
        // Of many entries a few are enough: all of them were scanned.
        let absent = (&b"nobody wrote this"[..], None);
        let present = entries.iter().map(|(key, value)| (&key[..], Some(&value[..])));
        for (key, value) in present.step_by(1 + entries.len() / 16).chain([absent]) {
            match partition.get(key) {
                Ok(found) if found.as_deref() == value => {}
                Ok(found) => seen.note(name, &format!("get {key:?}: {found:?}")),
                Err(error) => {
                    check(&error)?;
                    seen.damaged = true;
                }
            }
        }
    }
    Ok(seen)
}

fn scan(
    partition: &Partition,
    expected: &Entries,
    backward: bool,
    seen: &mut Seen,
    check: &mut dyn FnMut(&Error) -> Verdict<()>,
) -> Verdict<()> {
    let pairs: Vec<_> = expected.iter().collect();
    let mut next = 0;
    let mut items = match partition.iter() {
        Ok(items) => items,
        Err(error) => {
            seen.damaged = true;
            return check(&error);
        }
    };
    while let Some(item) = if backward { items.next_back() } else { items.next() } {
        let (key, value) = match item {
            Ok(pair) => pair,
            Err(error) => {
                seen.damaged = true;
                return check(&error);
            }
        };
        let at = if backward { pairs.len().checked_sub(next + 1) } else { Some(next) };
        let wanted = at.and_then(|at| pairs.get(at));
        if wanted.is_none_or(|(k, v)| ***k != *key || ***v != *value) {
            seen.note(partition.name(), &format!("scan {key:?}: {wanted:?}"));
            return Ok(());
        }
        next += 1;
    }
    if next < pairs.len() {
        seen.note(partition.name(), &format!("{next} of {} entries", pairs.len()));
    }
    Ok(())
}

impl Seen {
    fn note(&mut self, partition: &str, wrong: &str) {
        self.wrong.get_or_insert_with(|| format!("{partition}: {wrong}"));
    }
}

/// A panic that comes through is a verdict.
fn guarded<T>(what: &str, work: impl FnOnce() -> Verdict<T>) -> Verdict<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    let done = done.unwrap_or_else(|panic: Box<dyn Any + Send>| Err(panic_text(&*panic)));
    done.map_err(|sentence| format!("{what}: {sentence}"))
}
