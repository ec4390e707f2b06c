//! Every byte flipped in turn, and the judgement of what verify and an open make of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use esker::{Error, ErrorKind, VerifyOptions, VerifyReport, verify};
use esker_tests::chaos::{self, Model, Rng};

use super::image::{Demand, Image, SEGMENT_HEADER_LEN, config, frames, is_segment};
use super::{FINDINGS, PROGRESS};

/// One flip in so many is also tried with an open for writing, on a copy.
const WRITABLE_ONE_IN: u64 = 40;
/// In the zeros behind the last frame, beyond the first of them, one in so many is flipped.
const ZEROS_STEP: u64 = 37;

pub(super) type Opened = Result<(u64, Model), Error>;

pub(super) fn open(path: &Path, read_only: bool) -> Opened {
    let keyspace = config(path).read_only(read_only).create_if_missing(false).open()?;
    let content = chaos::content(&keyspace)?;
    Ok((keyspace.seqno(), content))
}

/// Findings go to a file at once, because some damage may end the process.
pub(super) struct Findings {
    file: fs::File,
}

impl Findings {
    pub(super) fn new(base: &Path) -> Self {
        let path = base.join(FINDINGS);
        Self { file: fs::OpenOptions::new().append(true).create(true).open(path).unwrap() }
    }

    pub(super) fn add(&mut self, kind: &str, detail: &str) {
        let line = format!("{kind}\t{}\n", detail.replace('\n', " "));
        self.file.write_all(line.as_bytes()).unwrap();
    }

    /// How many of each kind, with the first few of them; nothing when there are none.
    pub(super) fn summary(base: &Path) -> String {
        let text = fs::read_to_string(base.join(FINDINGS)).unwrap_or_default();
        let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (kind, detail) in text.lines().filter_map(|line| line.split_once('\t')) {
            kinds.entry(kind).or_default().push(detail);
        }
        let show = |(kind, details): (&&str, &Vec<&str>)| {
            let first: Vec<_> = details.iter().step_by(1 + details.len() / 8).copied().collect();
            format!("{} times {kind}:\n  {}\n", details.len(), first.join("\n  "))
        };
        kinds.iter().map(show).collect()
    }
}

/// Runs without letting a panic through; a panic is a finding.
pub(super) fn guarded<T>(findings: &mut Findings, what: &str, f: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(value) => Some(value),
        Err(cause) => {
            let text = cause.downcast_ref::<String>().cloned();
            let text = text.or_else(|| cause.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            findings.add("panic", &format!("{what}: {}", text.unwrap_or_default()));
            None
        }
    }
}

/// The path an error is about.
pub(super) fn named(error: &Error) -> Option<PathBuf> {
    match error {
        Error::Corrupt(corruption) => Some(corruption.path.clone()),
        Error::Io { path, .. }
        | Error::NotAKeyspace { path, .. }
        | Error::UnsupportedFormat { path, .. } => Some(path.clone()),
        _ => None,
    }
}

/// Whether an error about `path` points to the damaged file `name`: the file itself, or for a tree
/// its directory (lsm-tree's errors name no file) or the other half of `current` and manifest.
pub(super) fn points_to(path: &Path, root: &Path, name: &Path) -> bool {
    let Ok(relative) = path.strip_prefix(root) else {
        // A read-only open works on links in a private view.
        return tree_of(path).is_some_and(|tree| Some(tree) == tree_of(name));
    };
    let pair = |p: &Path| {
        let file = p.file_name().unwrap_or_default().to_string_lossy().into_owned();
        file == "current" || file.starts_with('v')
    };
    relative == name
        || (tree_of(relative).is_some() && tree_of(relative) == tree_of(name) && {
            let is_directory = relative.components().count() == 2;
            is_directory || (pair(relative) && pair(name))
        })
}

/// `partitions/<id>` of a path in it.
pub(super) fn tree_of(path: &Path) -> Option<String> {
    let parts: Vec<_> = path.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    let at = parts.iter().position(|part| part == "partitions")?;
    parts.get(at + 1).cloned()
}

impl Image {
    /// Judges one changed byte.
    pub(super) fn judge(
        &self,
        name: &Path,
        offset: u64,
        writable: Option<&Path>,
        findings: &mut Findings,
    ) {
        let demand = self.demand(name, offset);
        let place = format!("{} byte {offset} of {}", name.display(), self.path.display());
        let report = guarded(findings, &format!("verify {place}"), || {
            verify(&self.path, VerifyOptions::default().threads(1))
        });
        match report {
            None => {}
            Some(Ok(report)) => self.judge_report(name, demand, &report, &place, findings),
            Some(Err(error)) => findings.add("verify gives up", &format!("{place}: {error}")),
        }
        for (path, read_only) in [(Some(self.path.as_path()), true), (writable, false)] {
            let Some(path) = path else { continue };
            let opened = guarded(findings, &format!("open {place}"), || open(path, read_only));
            let Some(opened) = opened else { continue };
            self.judge_open(path, name, demand, opened, &place, findings);
        }
    }

    pub(super) fn judge_report(
        &self,
        name: &Path,
        demand: Demand,
        report: &VerifyReport,
        place: &str,
        findings: &mut Findings,
    ) {
        let torn_here = report.torn_tail.as_ref().is_some_and(|torn| match demand {
            Demand::Torn { offset, .. } => {
                torn.path == self.path.join(name) && torn.offset == offset
            }
            Demand::Refused => false,
        });
        if torn_here && report.is_sound() {
            return;
        }
        if report.is_sound() {
            let found = format!("{place} ({demand:?}): torn tail {:?}", report.torn_tail);
            findings.add("not reported by verify", &found);
        } else if !report.problems.iter().any(|p| points_to(&p.path, &self.path, name)) {
            findings.add("verify names another file", &format!("{place}: {:?}", report.problems));
        }
    }

    pub(super) fn judge_open(
        &self,
        root: &Path,
        name: &Path,
        demand: Demand,
        opened: Opened,
        place: &str,
        findings: &mut Findings,
    ) {
        match opened {
            Ok((seqno, found)) => {
                let least = match demand {
                    Demand::Refused => self.seqno,
                    Demand::Torn { seqno, .. } => seqno,
                };
                let expected = self.history.get(&seqno);
                if seqno != least || expected != Some(&found) {
                    let difference = expected.and_then(|e| chaos::difference(e, &found));
                    let detail = format!("{place} ({demand:?}): commit {seqno}, {difference:?}");
                    findings.add("silent loss", &detail);
                }
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                if !named(&error).is_some_and(|path| points_to(&path, root, name)) {
                    findings.add("open names another file", &format!("{place}: {error}"));
                }
            }
            Err(error) => findings.add("open fails oddly", &format!("{place}: {error}")),
        }
    }

    /// Whether the flip at this place is left out: most of the preallocated zeros.
    pub(super) fn skips(&self, name: &Path, offset: u64) -> bool {
        if !is_segment(name) {
            return false;
        }
        let end = frames(&self.files[name]).last().map_or(SEGMENT_HEADER_LEN, |frame| frame.end);
        offset > end + 8 && !(offset - end).is_multiple_of(ZEROS_STEP)
    }

    /// Flips every byte in turn, from the flip number `from` on.
    pub(super) fn sweep(&self, base: &Path, from: u64) -> u64 {
        let (mut flips, mut findings, mut rng) = (0, Findings::new(base), Rng::new(11));
        let progress = fs::File::create(base.join(PROGRESS)).unwrap();
        for (name, bytes) in &self.files {
            let path = self.path.join(name);
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            for (offset, &byte) in bytes.iter().enumerate() {
                let offset = offset as u64;
                if self.skips(name, offset) {
                    continue;
                }
                flips += 1;
                if flips < from {
                    continue;
                }
                let place = format!("{flips} {} byte {offset}\n", name.display());
                progress.write_all_at(place.as_bytes(), 0).unwrap();
                file.write_all_at(&[byte ^ (1 << (flips % 8))], offset).unwrap();
                let copy = base.join("writable");
                let writable = rng.one_in(WRITABLE_ONE_IN).then_some(copy.as_path());
                if let Some(copy) = writable {
                    chaos::copy_tree(&self.path, copy);
                }
                self.judge(name, offset, writable, &mut findings);
                if let Some(copy) = writable {
                    fs::remove_dir_all(copy).unwrap();
                }
                file.write_all_at(&[byte], offset).unwrap();
            }
        }
        flips
    }

    pub(super) fn assert_whole(&self) {
        let report = verify(&self.path, VerifyOptions::default()).unwrap();
        assert!(report.is_sound() && report.torn_tail.is_none(), "{report:?}");
        assert_eq!(report.seqno, self.seqno);
        assert!(report.strays.is_empty(), "{:?}", report.strays);
        let (seqno, content) = open(&self.path, true).unwrap();
        assert_eq!((seqno, chaos::difference(&self.history[&seqno], &content)), (self.seqno, None));
    }
}
