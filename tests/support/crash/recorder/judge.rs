//! The oracle: whether a state that a crash may have left keeps every promise.
//!
//! A keyspace that was acknowledged to exist opens; its content is exactly the history up to its
//! newest commit; that commit is at or above the newest one that was acknowledged as durable, and
//! at most as many above what was acknowledged at all as can have been under way; writing, closing
//! and reopening work; everything under a finished checkpoint's name is whole. An error, a panic or
//! a difference is a failure.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use esker::{Keyspace, VerifyOptions, verify};

use super::history::{Event, History, Known, Recording};
use super::image::{Image, ROOT};
use super::workload::{FLEETING, KEYSPACE, config, options};
use crate::chaos::{self, Entries, Model, Rng};

/// What the judge adds to see whether writing works.
const PARTITION: &str = "judge";

/// What was found in a state that kept every promise.
#[derive(Clone, Debug)]
pub struct Found {
    pub seqno: u64,
    pub content: Model,
    /// It was there before the judge opened it, or was promised to be.
    pub existed: bool,
}

/// Checkpoints that were judged already, by their bytes: most states of a record share them.
#[derive(Debug, Default)]
pub struct Copies(Mutex<HashMap<u128, u64>>);

/// A state and what is known of it.
#[derive(Debug)]
pub struct State<'a> {
    pub recording: &'a Recording,
    /// Operations before this one happened, all or in part.
    pub index: usize,
    pub image: Image,
    pub copies: &'a Copies,
    pub seed: u64,
}

type Verdict<T> = Result<T, String>;

/// Judges a state in `directory`, which is empty and will not be.
pub fn judge(state: &State<'_>, directory: &Path) -> Verdict<Found> {
    let judged = catch_unwind(AssertUnwindSafe(|| state.judge(directory)));
    judged.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        Err(format!("a panic: {}", text.unwrap_or_default()))
    })
}

impl State<'_> {
    fn judge(&self, directory: &Path) -> Verdict<Found> {
        self.image.write_to(directory).map_err(|e| format!("the harness cannot write: {e}"))?;
        let known = self.recording.known_before(self.index);
        let mut rng = Rng::new(self.seed);
        let found = self.judge_keyspace(&directory.join(KEYSPACE), &known, &mut rng)?;
        self.judge_copies(directory, &known, &mut rng)?;
        Ok(found)
    }

    fn judge_keyspace(&self, path: &Path, known: &Known, rng: &mut Rng) -> Verdict<Found> {
        let catalog = path.join("CATALOG").exists();
        if known.existed && !catalog {
            return Err("the keyspace is gone".into());
        }
        if catalog && rng.one_in(3) {
            sound(path, "before it is opened")?;
        }
        let keyspace = config(path).worker_threads(1).create_if_missing(!known.existed).open();
        let keyspace = keyspace.map_err(|e| format!("the keyspace does not open: {e}"))?;
        let content = read_all(&keyspace).map_err(|e| format!("it cannot be read: {e}"))?;
        let seqno = keyspace.seqno();
        let whole = judge_content(&self.recording.history, known, seqno, &content)?;
        go_on(keyspace, path, &content, seqno, rng)?;
        // What the filter has taken away here is still in the state that was judged.
        let content = whole;
        Ok(Found { seqno, content, existed: catalog || known.existed })
    }

    /// Whatever has the final name of a checkpoint or copy, acknowledged or not.
    fn judge_copies(&self, directory: &Path, known: &Known, rng: &mut Rng) -> Verdict<()> {
        for name in known.copies.keys() {
            if self.image.lookup(ROOT, name).is_none() {
                return Err(format!("{name} was finished and is gone"));
            }
        }
        for (name, ino) in self.image.entries(ROOT) {
            if name == KEYSPACE || (name.starts_with('.') && name.contains(".esker-")) {
                continue;
            }
            let digest = self.image.digest(ino);
            let judged = self.copies.lock().get(&digest).copied();
            let seqno = match judged {
                Some(seqno) => seqno,
                None => {
                    let seqno = self.judge_copy(name, &directory.join(name), rng)?;
                    self.copies.lock().insert(digest, seqno);
                    seqno
                }
            };
            let told = known.copies.get(name);
            if told.is_some_and(|told| *told != seqno) {
                return Err(format!("{name} holds commit {seqno}, reported was {told:?}"));
            }
        }
        Ok(())
    }

    fn judge_copy(&self, name: &str, path: &Path, rng: &mut Rng) -> Verdict<u64> {
        sound(path, name)?;
        let keyspace = config(path).worker_threads(1).create_if_missing(false).open();
        let keyspace = keyspace.map_err(|e| format!("{name} does not open: {e}"))?;
        let content = read_all(&keyspace).map_err(|e| format!("{name}: {e}"))?;
        let seqno = keyspace.seqno();
        let mut expected = self.recording.history.model_at(seqno);
        allow_attempts(&self.recording.history, &content, &mut expected);
        allow_filter(&content, &mut expected);
        if let Some(difference) = chaos::difference(&expected, &content) {
            return Err(format!("{name} at commit {seqno}: {difference}"));
        }
        go_on(keyspace, path, &content, seqno, rng).map_err(|text| format!("{name}: {text}"))?;
        Ok(seqno)
    }
}

/// Everything, at one moment: merges take entries away meanwhile.
fn read_all(keyspace: &Keyspace) -> esker::Result<Model> {
    let snapshot = keyspace.snapshot();
    let entry = |entry: esker::Result<(esker::Slice, esker::Slice)>| {
        entry.map(|(key, value)| (key.to_vec(), value.to_vec()))
    };
    let mut model = Model::new();
    for name in keyspace.partitions() {
        let partition = keyspace.open_partition(&name)?.expect("a partition that is listed");
        let entries = snapshot.iter(&partition)?.map(entry).collect::<esker::Result<Vec<_>>>()?;
        let mut back =
            snapshot.iter(&partition)?.rev().map(entry).collect::<esker::Result<Vec<_>>>()?;
        back.reverse();
        assert!(entries == back, "{name}: the two directions differ");
        model.insert(name, entries.into_iter().collect());
    }
    Ok(model)
}

impl Copies {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u128, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sound(path: &Path, when: &str) -> Verdict<()> {
    let report = verify(path, VerifyOptions::default().threads(1));
    let report = report.map_err(|e| format!("{when}: it cannot be verified: {e}"))?;
    if report.is_sound() {
        return Ok(());
    }
    Err(format!("{when}: verify finds {:?}", report.problems))
}

/// The content that the history has, with what a filter may have taken away.
fn judge_content(history: &History, known: &Known, seqno: u64, found: &Model) -> Verdict<Model> {
    if seqno < known.durable {
        return Err(format!("commit {} was durable, the newest is {seqno}", known.durable));
    }
    let done = history.events.last_key_value().map(|(newest, _)| *newest);
    let refused = history.refused.last_key_value().map(|(newest, _)| *newest);
    let newest = done.max(refused).unwrap_or(0).max(history.base_seqno);
    if seqno > newest {
        return Err(format!("commit {seqno} was never made, the newest was {newest}"));
    }
    let told = known.told.range(..=seqno).count() as u64;
    let untold = seqno - history.base_seqno - told;
    if untold > history.threads {
        return Err(format!("{untold} commits up to {seqno} were not begun yet"));
    }
    let mut differences = Vec::new();
    for mut expected in history.models_at(seqno, known.durable) {
        allow_creations(history, known, seqno, found, &mut expected);
        let whole = expected.clone();
        allow_filter(found, &mut expected);
        match chaos::difference(&expected, found) {
            Some(difference) => differences.push(difference),
            None => return Ok(whole),
        }
    }
    Err(format!("at commit {seqno}: {}", differences.join("\n or ")))
}

/// CATALOG has a new partition before its commit is in the journal, and in either case before that
/// is synced: it may be there, empty, and has to be once somebody was told. What was committed when
/// its creation began is synced before that CATALOG is written.
fn allow_creations(
    history: &History,
    known: &Known,
    seqno: u64,
    found: &Model,
    expected: &mut Model,
) {
    for (at, event) in history.events.range(seqno + 1..) {
        let Event::Create(name) = event else { continue };
        let there = found.get(name).is_some_and(Entries::is_empty);
        if known.created.contains(at) || (there && history.begun_at[at] <= seqno) {
            expected.entry(name.clone()).or_default();
        }
    }
    allow_attempts(history, found, expected);
}

/// A creation that was refused may have reached CATALOG.
fn allow_attempts(history: &History, found: &Model, expected: &mut Model) {
    for name in &history.attempted {
        if found.get(name).is_some_and(Entries::is_empty) {
            expected.entry(name.clone()).or_default();
        }
    }
}

/// What a filter takes away may be gone; if it is there, with its newest value.
fn allow_filter(found: &Model, expected: &mut Model) {
    for (name, entries) in expected {
        let is_there = |key: &Vec<u8>| found.get(name).is_some_and(|found| found.contains_key(key));
        entries.retain(|key, _| !key.starts_with(FLEETING) || is_there(key));
    }
}

/// A write, the end, and what a reopening finds.
fn go_on(
    keyspace: Keyspace,
    path: &Path,
    content: &Model,
    seqno: u64,
    rng: &mut Rng,
) -> Verdict<()> {
    let failed = |what: &'static str| move |e: esker::Error| format!("afterwards {what}: {e}");
    let partition = keyspace.partition(PARTITION, options(PARTITION)).map_err(failed("create"))?;
    partition.insert("key", "value").map_err(failed("write"))?;
    drop(partition);
    let clean = !rng.one_in(4);
    if clean {
        keyspace.close().map_err(failed("close"))?;
    } else {
        drop(keyspace);
    }
    let again = config(path).worker_threads(1).create_if_missing(false).open();
    let again = again.map_err(failed("reopen"))?;
    let mut expected = content.clone();
    let entry = (b"key".to_vec(), b"value".to_vec());
    expected.entry(PARTITION.to_owned()).or_default().extend([entry]);
    let found = read_all(&again).map_err(failed("read"))?;
    allow_filter(&found, &mut expected);
    if let Some(difference) = chaos::difference(&expected, &found) {
        return Err(format!("after a write and a reopening: {difference}"));
    }
    if again.seqno() != seqno + 2 {
        return Err(format!("after two commits {seqno} became {}", again.seqno()));
    }
    again.close().map_err(failed("close again"))?;
    if rng.one_in(8) {
        let report = verify(path, VerifyOptions::default().threads(1));
        let report = report.map_err(failed("verify"))?;
        if !report.is_sound() || !report.clean || !report.strays.is_empty() {
            return Err(format!("after a clean close: {:?}, {:?}", report.problems, report.strays));
        }
    }
    Ok(())
}
