//! Rot: every byte of a small keyspace flipped in turn, files cut, swapped, replaced and removed.
//!
//! Three images: a keyspace that was closed, one that crashed with several journal segments, and a
//! checkpoint. After each change `verify` must report it, and an open must refuse with the damaged
//! file named, or show content that is provably right: the whole, or, where only bytes behind the
//! last point that is proven durable were hit, the commits before the damage.
//!
//! Undetectable by nature, and therefore not demanded below:
//! - LOCK has no bytes.
//! - The last frames of the active segment with nothing behind them that says they were durable: a
//!   flip there is reported, but as a torn tail, and the commits from there on are gone. An active
//!   segment cut off exactly between two such frames looks like one that was never written further.
//! - The number of zeros behind the last frame: a preallocated tail may have any length.
//! - A broken seal with a segment behind it that continues: reported as a torn tail, nothing is lost.
//!
//! Found by `verify` and not by an open, which does not read whole tables: two tables of the same
//! number swapped between two partitions, and damage in a block that nobody reads.
//!
//! The sweep runs in a child process with its temporary directory in memory, because each of some
//! ten thousand opens makes a private view.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use esker::{Compression, Config, Durability, Error, ErrorKind, Keyspace, PartitionOptions};
use esker::{VerifyOptions, VerifyReport, verify};
use esker_tests::chaos::{self, Model, Rng};

const DIR: &str = "ESKER_TEST_ROT";
const KIND: &str = "ESKER_TEST_ROT_IMAGE";
const FROM: &str = "ESKER_TEST_ROT_FROM";
const FINDINGS: &str = "findings";
const PROGRESS: &str = "progress";
const BEFORE: &str = "before";

/// One flip in so many is also tried with an open for writing, on a copy.
const WRITABLE_ONE_IN: u64 = 40;
/// In the zeros behind the last frame, beyond the first of them, one in so many is flipped.
const ZEROS_STEP: u64 = 37;
const TRUNCATE_STEP: usize = 64;

const SEGMENT_HEADER_LEN: u64 = 72;
const FRAME_HEADER_LEN: u64 = 64;

// ---- images ------------------------------------------------------------------------------------

/// A directory, and what it must hold.
struct Image {
    path: PathBuf,
    /// The content after each commit from `first_seqno` on.
    history: BTreeMap<u64, Model>,
    /// What an unharmed open shows.
    seqno: u64,
    /// Commits up to this one are known to be durable by what lies outside of the journal's end.
    durable: u64,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

fn config(path: &Path) -> Config {
    Config::new(path)
        .memtable_bytes(1 << 20)
        .write_buffer_bytes_max(4 << 20)
        .journal_segment_bytes(4 << 10)
        .journal_bytes_max(1 << 20)
        .cache_bytes(0)
        .worker_threads(1)
}

/// Writes and remembers the content after every commit.
struct Author {
    keyspace: Keyspace,
    model: Model,
    history: BTreeMap<u64, Model>,
    rng: Rng,
}

const NAMES: [&str; 2] = ["plain", "separated"];

impl Author {
    fn new(path: &Path) -> Self {
        let keyspace = config(path).open().unwrap();
        let mut this =
            Self { keyspace, model: Model::new(), history: BTreeMap::new(), rng: Rng::new(7) };
        for name in NAMES {
            let options = PartitionOptions::default()
                .block_bytes(256)
                .compression(if name == "plain" { Compression::Lz4 } else { Compression::None })
                .separate_values_from((name == "separated").then_some(40));
            this.keyspace.partition(name, options).unwrap();
            this.model.insert(name.into(), BTreeMap::new());
            this.history.insert(this.keyspace.seqno(), this.model.clone());
        }
        this
    }

    fn write(&mut self, commits: u32, durability: Durability) {
        for _ in 0..commits {
            let mut batch = self.keyspace.batch();
            for name in NAMES {
                let partition = self.keyspace.open_partition(name).unwrap().unwrap();
                let key = format!("key{}", self.rng.below(12)).into_bytes();
                let entries = self.model.get_mut(name).unwrap();
                if self.rng.one_in(6) {
                    entries.remove(&key);
                    batch.remove(&partition, key);
                } else {
                    let len = 4 + self.rng.below(50) as usize;
                    let value = self.rng.bytes(len);
                    entries.insert(key.clone(), value.clone());
                    batch.insert(&partition, key, value);
                }
            }
            batch.durability(durability);
            let seqno = batch.commit().unwrap();
            self.history.insert(seqno, self.model.clone());
        }
    }

    /// The journal's active segment goes over to the next: a sealed one is left behind.
    fn rotate(&self, scratch: &Path) {
        self.keyspace.backup_to(scratch).unwrap();
        fs::remove_dir_all(scratch).unwrap();
    }

    /// Closes, copies what is there then, and goes on.
    fn reopened(self, copy: &Path) -> Self {
        let path = self.keyspace.path().to_path_buf();
        self.keyspace.close().unwrap();
        chaos::copy_tree(&path, copy);
        Self { keyspace: config(&path).open().unwrap(), ..self }
    }

    fn settle(&self) {
        std::thread::sleep(std::time::Duration::from_millis(150));
    }
}

fn image(path: PathBuf, history: BTreeMap<u64, Model>, durable: Option<u64>) -> Image {
    let seqno = *history.last_key_value().unwrap().0;
    let names = chaos::files_below(&path);
    let read = |name: PathBuf| (name.clone(), fs::read(path.join(name)).unwrap());
    let files = names.into_keys().filter(|name| name.as_os_str() != "LOCK").map(read).collect();
    Image { path, history, seqno, durable: durable.unwrap_or(seqno), files }
}

fn closed(base: &Path) -> Image {
    let path = base.join("closed");
    let mut author = Author::new(&path);
    author.write(12, Durability::Buffer);
    author.keyspace.flush().unwrap();
    let mut author = author.reopened(&base.join(BEFORE));
    author.write(6, Durability::Buffer);
    author.keyspace.close().unwrap();
    image(path, author.history, None)
}

/// The files of the closed image as they were when it had been closed once before.
fn before_the_last_run(base: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let path = base.join(BEFORE);
    let read = |name: PathBuf| (name.clone(), fs::read(path.join(name)).unwrap());
    let files = chaos::files_below(&path).into_keys().map(read);
    files.filter(|(name, _)| name.as_os_str() != "LOCK").collect()
}

/// Two sealed segments and an active one whose first frames were durable when the last ones were
/// written; a flushed table below them.
fn crashed(base: &Path) -> Image {
    let (live, path) = (base.join("live"), base.join("crashed"));
    let mut author = Author::new(&live);
    author.write(4, Durability::Buffer);
    author.keyspace.flush().unwrap();
    author.write(6, Durability::Buffer);
    author.rotate(&base.join("scratch"));
    author.write(3, Durability::SyncData);
    author.write(3, Durability::Buffer);
    author.rotate(&base.join("scratch"));
    author.write(3, Durability::Buffer);
    author.write(1, Durability::SyncData);
    author.write(4, Durability::Buffer);
    author.settle();
    chaos::copy_tree(&live, &path);
    drop(author.keyspace);
    fs::remove_dir_all(&live).unwrap();
    // What CATALOG and the seals prove is found by reading the journal below.
    image(path, author.history, Some(0))
}

fn checkpoint(base: &Path) -> Image {
    let (live, path) = (base.join("source"), base.join("checkpoint"));
    let mut author = Author::new(&live);
    author.write(6, Durability::Buffer);
    author.keyspace.flush().unwrap();
    author.write(8, Durability::Buffer);
    author.keyspace.backup_to(&path).unwrap();
    drop(author.keyspace);
    fs::remove_dir_all(&live).unwrap();
    image(path, author.history, None)
}

// ---- the journal, read independently of the engine ---------------------------------------------

#[derive(Clone, Copy, Debug)]
struct Frame {
    start: u64,
    end: u64,
    seqno: u64,
    synced_len: u64,
    seal: bool,
}

fn frames(bytes: &[u8]) -> Vec<Frame> {
    let field =
        |at: u64| u64::from_le_bytes(bytes[at as usize..at as usize + 8].try_into().unwrap());
    let (mut frames, mut at) = (Vec::new(), SEGMENT_HEADER_LEN);
    while bytes.get(at as usize..at as usize + 4) == Some(b"EKRF") {
        let end = at + FRAME_HEADER_LEN + field(at + 12);
        frames.push(Frame {
            start: at,
            end,
            seqno: field(at + 20),
            synced_len: field(at + 36),
            seal: bytes[at as usize + 4] == 2,
        });
        at = end;
    }
    frames
}

fn is_segment(name: &Path) -> bool {
    name.extension().is_some_and(|e| e == "jnl")
}

impl Image {
    fn segments(&self) -> Vec<(&PathBuf, Vec<Frame>)> {
        let segments = self.files.iter().filter(|(name, _)| is_segment(name));
        segments.map(|(name, bytes)| (name, frames(bytes))).collect()
    }

    /// What must happen when the byte at `offset` of `name` changes.
    fn demand(&self, name: &Path, offset: u64) -> Demand {
        if !is_segment(name) {
            return Demand::Refused;
        }
        let segments = self.segments();
        let at = segments.iter().position(|(n, _)| n.as_path() == name).unwrap();
        let (frames, later) = (&segments[at].1, &segments[at + 1..]);
        if offset < SEGMENT_HEADER_LEN {
            return Demand::Refused;
        }
        let hit = frames.iter().position(|frame| offset < frame.end);
        let Some(hit) = hit else {
            // Zeros: whatever is there now was not written by us, and nothing is missing.
            let end = frames.last().map_or(SEGMENT_HEADER_LEN, |frame| frame.end);
            return Demand::Torn { offset: end, seqno: self.seqno };
        };
        let start = frames[hit].start;
        if frames[hit].seal && later.iter().any(|(_, frames)| !frames.is_empty()) {
            // All commits are there and the next segment goes on with them; a seal alone may have
            // been cut short by a crash. (Of a checkpoint it may not: there nothing follows.)
            return Demand::Torn { offset: start, seqno: self.seqno };
        }
        let proven_here = frames[hit + 1..].iter().any(|frame| frame.synced_len > start);
        let proven_later =
            later.iter().flat_map(|(_, f)| f).any(|frame| frame.synced_len > SEGMENT_HEADER_LEN);
        let lost_from = if frames[hit].seal { frames[hit].seqno + 1 } else { frames[hit].seqno };
        if proven_here || proven_later || lost_from <= self.durable {
            return Demand::Refused;
        }
        Demand::Torn { offset: start, seqno: lost_from - 1 }
    }
}

/// What a change to one byte must lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    /// A problem in the file; an open refuses or shows everything.
    Refused,
    /// A torn tail that begins there; an open shows exactly the commits up to `seqno`, or refuses.
    Torn { offset: u64, seqno: u64 },
}

// ---- what happens ------------------------------------------------------------------------------

type Opened = Result<(u64, Model), Error>;

fn open(path: &Path, read_only: bool) -> Opened {
    let keyspace = config(path).read_only(read_only).create_if_missing(false).open()?;
    let content = chaos::content(&keyspace)?;
    Ok((keyspace.seqno(), content))
}

/// Findings go to a file at once, because some damage may end the process.
struct Findings {
    file: fs::File,
}

impl Findings {
    fn new(base: &Path) -> Self {
        let path = base.join(FINDINGS);
        Self { file: fs::OpenOptions::new().append(true).create(true).open(path).unwrap() }
    }

    fn add(&mut self, kind: &str, detail: &str) {
        let line = format!("{kind}\t{}\n", detail.replace('\n', " "));
        self.file.write_all(line.as_bytes()).unwrap();
    }

    /// How many of each kind, with the first few of them; nothing when there are none.
    fn summary(base: &Path) -> String {
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
fn guarded<T>(findings: &mut Findings, what: &str, f: impl FnOnce() -> T) -> Option<T> {
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
fn named(error: &Error) -> Option<PathBuf> {
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
fn points_to(path: &Path, root: &Path, name: &Path) -> bool {
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
fn tree_of(path: &Path) -> Option<String> {
    let parts: Vec<_> = path.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    let at = parts.iter().position(|part| part == "partitions")?;
    parts.get(at + 1).cloned()
}

impl Image {
    /// Judges one changed byte.
    fn judge(&self, name: &Path, offset: u64, writable: Option<&Path>, findings: &mut Findings) {
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

    fn judge_report(
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

    fn judge_open(
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
    fn skips(&self, name: &Path, offset: u64) -> bool {
        if !is_segment(name) {
            return false;
        }
        let end = frames(&self.files[name]).last().map_or(SEGMENT_HEADER_LEN, |frame| frame.end);
        offset > end + 8 && !(offset - end).is_multiple_of(ZEROS_STEP)
    }

    /// Flips every byte in turn, from the flip number `from` on.
    fn sweep(&self, base: &Path, from: u64) -> u64 {
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

    fn assert_whole(&self) {
        let report = verify(&self.path, VerifyOptions::default()).unwrap();
        assert!(report.is_sound() && report.torn_tail.is_none(), "{report:?}");
        assert_eq!(report.seqno, self.seqno);
        assert!(report.strays.is_empty(), "{:?}", report.strays);
        let (seqno, content) = open(&self.path, true).unwrap();
        assert_eq!((seqno, chaos::difference(&self.history[&seqno], &content)), (self.seqno, None));
    }
}

const KINDS: [&str; 3] = ["closed", "crashed", "checkpoint"];

fn make(kind: &str, base: &Path) -> Image {
    let mut image = match kind {
        "closed" => closed(base),
        "crashed" => crashed(base),
        "checkpoint" => checkpoint(base),
        other => panic!("no image {other}"),
    };
    if kind == "crashed" {
        let report = verify(&image.path, VerifyOptions::default()).unwrap();
        assert!(!report.clean, "the crash image is one");
        let segments = image.segments();
        let sealed = segments.iter().map(|(_, f)| f.last().map(|f| f.seal)).collect::<Vec<_>>();
        let prepared = [Some(true), Some(true), Some(false), None];
        assert_eq!(sealed, prepared, "two sealed segments, the active one, a prepared one");
        // What the last CATALOG proves: it never runs ahead of what is durable.
        image.durable = catalog_last_seqno(&image.files[Path::new("CATALOG")]);
    }
    image.assert_whole();
    image
}

/// docs/format.md: header 16, uuid 16, timeline 16, flags 1, origin 40, next ids 4 + 8.
fn catalog_last_seqno(bytes: &[u8]) -> u64 {
    const AT: usize = 16 + 16 + 16 + 1 + 40 + 4 + 8;
    u64::from_le_bytes(bytes[AT..AT + 8].try_into().unwrap())
}

// ---- cuts, swaps, old copies, missing files ----------------------------------------------------

/// Damage to whole files: each path with the bytes that it has instead, `None` for a missing file.
#[derive(Clone)]
struct Harm {
    what: String,
    files: Vec<(PathBuf, Option<Vec<u8>>)>,
    /// Another file that a report may name.
    may_name: Option<PathBuf>,
    /// An open may show everything although something is wrong (the hashes of tables are `verify`'s
    /// business, and CHECKPOINT is not read by an open).
    expect: Expect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// `verify` names one of the files; an open refuses, or shows all that it must.
    Reported,
    /// As a crash could have left it: the journal ends early, behind everything proven durable.
    MayEndEarly,
    /// `verify` must report it, an open need not see it.
    ByVerifyAlone,
}

impl Image {
    fn cuts(&self) -> Vec<Harm> {
        let mut cuts = Vec::new();
        for (name, bytes) in &self.files {
            for len in (0..bytes.len()).step_by(TRUNCATE_STEP) {
                let frames = if is_segment(name) { frames(bytes) } else { Vec::new() };
                let sealed = frames.last().is_some_and(|frame| frame.seal);
                let active = is_segment(name) && !sealed && len as u64 >= SEGMENT_HEADER_LEN;
                // With no frame left the commits are missing behind the segment before it.
                let empty = frames.first().is_some_and(|first| (len as u64) < first.end);
                let before = self.files.keys().take_while(|n| *n != name).filter(|n| is_segment(n));
                let before = before.last().filter(|_| empty && len as u64 >= SEGMENT_HEADER_LEN);
                cuts.push(Harm {
                    what: format!("{} cut to {len} bytes", name.display()),
                    files: vec![(name.clone(), Some(bytes[..len].to_vec()))],
                    may_name: before.cloned(),
                    expect: if active { Expect::MayEndEarly } else { Expect::Reported },
                });
            }
        }
        cuts
    }

    fn swaps(&self) -> Vec<Harm> {
        let mut swaps = Vec::new();
        let kind = |name: &Path| match name.parent().and_then(Path::file_name) {
            _ if is_segment(name) => Some("segment"),
            Some(dir) if dir == "tables" => Some("table"),
            Some(dir) if dir == "blobs" => Some("blob file"),
            _ if name.ends_with("current") => Some("current"),
            _ => None,
        };
        let names: Vec<_> = self.files.keys().collect();
        for (at, one) in names.iter().enumerate() {
            for other in &names[at + 1..] {
                // Tables of the same number in two trees.
                let twins = kind(one) == Some("table") && one.file_name() == other.file_name();
                if kind(one).is_some()
                    && kind(one) == kind(other)
                    && self.files[*one] != self.files[*other]
                {
                    swaps.push(Harm {
                        what: format!("{} and {} swapped", one.display(), other.display()),
                        files: vec![
                            ((*one).clone(), Some(self.files[*other].clone())),
                            ((*other).clone(), Some(self.files[*one].clone())),
                        ],
                        may_name: None,
                        expect: if twins { Expect::ByVerifyAlone } else { Expect::Reported },
                    });
                }
            }
        }
        swaps
    }

    fn removals(&self) -> Vec<Harm> {
        let removal = |name: &PathBuf| Harm {
            what: format!("{} removed", name.display()),
            files: vec![(name.clone(), None)],
            may_name: None,
            expect: Expect::Reported,
        };
        self.files.keys().map(removal).collect()
    }

    /// Files of an earlier state of the same keyspace in place of the newer ones.
    fn old_copies(&self, old: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<Harm> {
        let mut harms = Vec::new();
        let catalog = PathBuf::from("CATALOG");
        let mut push = |what: &str, names: Vec<&PathBuf>| {
            let files: Vec<_> =
                names.iter().map(|n| ((*n).clone(), old.get(*n).cloned())).collect();
            assert!(files.iter().any(|(n, bytes)| self.files.get(n) != bytes.as_ref()), "{what}");
            harms.push(Harm { what: what.into(), files, may_name: None, expect: Expect::Reported });
        };
        push("an old CATALOG", vec![&catalog]);
        for tree in ["1", "2"] {
            let dir = Path::new("partitions").join(tree);
            let all: Vec<&PathBuf> = old.keys().filter(|name| name.starts_with(&dir)).collect();
            let current = dir.join("current");
            push(&format!("an old current of tree {tree}"), vec![&current]);
            push(&format!("an old current, manifest and tables of tree {tree}"), all);
        }
        harms
    }

    /// Does the harm, judges, and puts everything back.
    fn suffer(&self, harm: &Harm, base: &Path, findings: &mut Findings) {
        let put = |root: &Path, name: &Path, bytes: Option<&Vec<u8>>| match bytes {
            Some(bytes) => fs::write(root.join(name), bytes).unwrap(),
            None => _ = fs::remove_file(root.join(name)),
        };
        harm.files.iter().for_each(|(name, bytes)| put(&self.path, name, bytes.as_ref()));
        let place = format!("{} of {}", harm.what, self.path.display());
        let verified = guarded(findings, &format!("verify: {place}"), || {
            verify(&self.path, VerifyOptions::default().threads(1))
        });
        let points = |path: &Path, root: &Path| {
            let mut names = harm.files.iter().map(|(name, _)| name).chain(&harm.may_name);
            names.any(|name| points_to(path, root, name))
        };
        let reported = match &verified {
            None => true,
            Some(Err(error)) => {
                if error.kind() != ErrorKind::Corrupt
                    && !matches!(error, Error::NotAKeyspace { .. })
                {
                    findings.add("verify gives up", &format!("{place}: {error}"));
                }
                true
            }
            Some(Ok(report)) => {
                if !report.is_sound()
                    && !report.problems.iter().any(|p| points(&p.path, &self.path))
                {
                    let problems = format!("{place}: {:?}", report.problems);
                    findings.add("verify names another file", &problems);
                }
                !report.is_sound() || report.torn_tail.is_some()
            }
        };
        if !reported && harm.expect != Expect::MayEndEarly {
            findings.add("not reported by verify", &place);
        }
        let copy = base.join("writable");
        chaos::copy_tree(&self.path, &copy);
        for (root, read_only) in [(&self.path, true), (&copy, false)] {
            let opened = guarded(findings, &format!("open: {place}"), || open(root, read_only));
            match opened {
                None => {}
                Some(Ok((seqno, found))) => {
                    let right = self.history.get(&seqno) == Some(&found)
                        || harm.expect == Expect::ByVerifyAlone;
                    let enough = match harm.expect {
                        Expect::Reported | Expect::ByVerifyAlone => seqno == self.seqno,
                        Expect::MayEndEarly => seqno >= self.durable,
                    };
                    if !right || !enough {
                        let known = if reported { "reported by verify only" } else { "silent" };
                        let detail = format!(
                            "{place}: commit {seqno} of {}, content right: {right}",
                            self.seqno
                        );
                        findings.add(&format!("a wrong open, {known}"), &detail);
                    }
                }
                Some(Err(error)) => {
                    let refused = error.kind() == ErrorKind::Corrupt
                        || matches!(error, Error::NotAKeyspace { .. });
                    let named = named(&error).is_some_and(|path| {
                        points(&path, root) || matches!(error, Error::NotAKeyspace { .. })
                    });
                    if !refused {
                        findings.add("open fails oddly", &format!("{place}: {error}"));
                    } else if !named {
                        findings.add("open names another file", &format!("{place}: {error}"));
                    }
                }
            }
        }
        fs::remove_dir_all(&copy).unwrap();
        harm.files.iter().for_each(|(name, _)| put(&self.path, name, self.files.get(name)));
    }
}

// ---- tests -------------------------------------------------------------------------------------

/// Runs `test` again for one image, with its temporary files in memory, and again from behind the
/// place when the process dies of the damage; returns what it printed and what was found.
fn in_children(test: &str, kind: &str) -> (String, String) {
    let scratch = chaos::memory_dir();
    let mut from = 1;
    loop {
        let work = scratch.path().join(format!("from-{from}"));
        fs::create_dir(&work).unwrap();
        let mut child = chaos::rerun(&format!("rot::{test}"));
        child.env(DIR, scratch.path()).env(KIND, kind).env(FROM, from.to_string());
        let output = child.env("TMPDIR", &work).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            return (text, Findings::summary(scratch.path()));
        }
        assert!(output.status.code().is_none(), "{kind}: {text}");
        let place = fs::read_to_string(scratch.path().join(PROGRESS)).unwrap();
        let place = place.lines().next().unwrap_or_default();
        let cause = text.lines().rev().find(|line| !line.is_empty()).unwrap_or_default();
        let detail = format!("{kind}: {place}: {}: {cause}", output.status);
        Findings::new(scratch.path()).add("the process died", &detail);
        from = place.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap() + 1;
    }
}

/// The directory, image and start of this child process.
fn child() -> Option<(PathBuf, String, u64)> {
    let dir = PathBuf::from(std::env::var_os(DIR)?);
    let (kind, from) = (std::env::var(KIND).unwrap(), std::env::var(FROM).unwrap());
    // lsm-tree panics on some damage, which the engine turns into errors: thousands of times.
    std::panic::set_hook(Box::new(|info| {
        if !QUIET.load(Ordering::Relaxed) {
            eprintln!("{info}");
        }
    }));
    Some((dir, kind, from.parse().unwrap()))
}

static QUIET: AtomicBool = AtomicBool::new(false);

/// Runs `test` for every image in a child process each, two at a time.
fn for_every_image(test: &str) {
    let found = std::thread::scope(|scope| {
        let sweeps = KINDS.map(|kind| scope.spawn(move || in_children(test, kind)));
        sweeps.map(|sweep| sweep.join().unwrap())
    });
    let mut all = String::new();
    for (text, summary) in found {
        text.lines().filter(|line| line.starts_with("rot:")).for_each(|line| eprintln!("{line}"));
        all.push_str(&summary);
    }
    assert!(all.is_empty(), "{all}");
}

#[test]
fn every_flipped_byte_is_reported_and_never_believed() {
    let Some((base, kind, from)) = child() else {
        return for_every_image("every_flipped_byte_is_reported_and_never_believed");
    };
    let work = base.join(format!("images-{from}"));
    fs::create_dir(&work).unwrap();
    let image = make(&kind, &work);
    let began = Instant::now();
    QUIET.store(true, Ordering::Relaxed);
    let flips = image.sweep(&base, from);
    QUIET.store(false, Ordering::Relaxed);
    image.assert_whole();
    eprintln!("rot: {kind}: {flips} flips in {:?}", began.elapsed());
}

#[test]
fn cut_swapped_old_and_missing_files_are_reported_and_never_believed() {
    let Some((base, kind, from)) = child() else {
        return for_every_image(
            "cut_swapped_old_and_missing_files_are_reported_and_never_believed",
        );
    };
    let work = base.join(format!("images-{from}"));
    fs::create_dir(&work).unwrap();
    let image = make(&kind, &work);
    let mut harms = [image.cuts(), image.swaps(), image.removals()].concat();
    if kind == "closed" {
        harms.extend(image.old_copies(&before_the_last_run(&work)));
    }
    let (began, mut findings) = (Instant::now(), Findings::new(&base));
    let progress = fs::File::create(base.join(PROGRESS)).unwrap();
    QUIET.store(true, Ordering::Relaxed);
    for (number, harm) in (1..).zip(&harms).skip(from as usize - 1) {
        progress.write_all_at(format!("{number} {}\n", harm.what).as_bytes(), 0).unwrap();
        image.suffer(harm, &base, &mut findings);
    }
    QUIET.store(false, Ordering::Relaxed);
    image.assert_whole();
    eprintln!("rot: {kind}: {} damaged files in {:?}", harms.len(), began.elapsed());
}
