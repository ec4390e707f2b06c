//! Random histories of a repository: keyspaces change, backups are pushed, pruned and restored, any of
//! it fails or is killed, time passes, objects rot, and two things happen at once.
//!
//! What must stay true, and is judged behind every step:
//! - A restore that reports success is exact: the entries, the partitions, `verify`, and nothing beside
//!   it. One that fails says what, leaves no target, or the old one as it was.
//! - A push that reports success is listed. One that failed is listed whole or not at all.
//! - A prune removes nothing that the rules keep; calm, it removes everything else. A dry run removes
//!   nothing.
//! - Whatever failed or was killed, `check` finds nothing wrong, unless objects were damaged; then it
//!   finds every one of them that a backup needs, and nothing that was never damaged.
//! - Without faults and damage everything succeeds.

mod damage;
mod meetings;
mod prune;
mod push;
mod restore;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path as LocalPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use esker::VerifyOptions;
use esker_archive::{
    CheckOptions, Error, ErrorKind, Key, PruneOptions, Repository, RepositoryOptions,
};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tempfile::TempDir;

use super::rules::Rules;
use super::source::{Kept, Source};
use super::stage::{Client, Faults, Stage};
use crate::random::Seeded;
use crate::store::{Content, open_content};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Of so many histories one is of files that are longer than a piece: it takes a hundred times as long.
const HUGE_ONE_IN: u64 = 100;

/// How often what happened, by name.
pub type Tally = BTreeMap<&'static str, u64>;

/// Plays the history of a seed.
///
/// # Panics
///
/// When something is not as it must be, behind a print of the steps.
pub fn run(seed: u64) -> Tally {
    let mut history = History::new(seed);
    for _ in 0..6 + history.random.below(10) {
        history.step();
    }
    history.end();
    std::mem::take(&mut history.tally)
}

struct History {
    random: Seeded,
    directory: TempDir,
    stage: Arc<Stage>,
    options: RepositoryOptions,
    /// Opened when the history began, and used now and then.
    old_handle: Repository,
    sources: Vec<Source>,
    kept: Vec<Kept>,
    /// By the object of the manifest.
    backups: BTreeMap<String, Backup>,
    damage: BTreeMap<String, Damage>,
    /// Whatever was damaged ever: another push may have written it anew, of another length.
    scars: BTreeSet<String>,
    restored: Option<(PathBuf, Arc<Content>)>,
    targets: u64,
    tally: Tally,
    log: Vec<String>,
}

/// A backup that is listed.
#[derive(Clone)]
struct Backup {
    content: Arc<Content>,
    /// Between these two.
    created_ms: (u64, u64),
    labelled: bool,
    /// The pieces that it is made of, once it was restored.
    pieces: Option<BTreeSet<String>>,
    /// Pushed while something was damaged, and so perhaps on top of that.
    suspect: bool,
}

struct Damage {
    before: Vec<u8>,
    after: Option<Vec<u8>>,
}

impl Drop for History {
    #[allow(clippy::print_stdout, reason = "how a history that failed went")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("history of seed {}:", self.random.seed);
            self.log.iter().for_each(|line| println!("  {line}"));
        }
    }
}

impl History {
    fn new(seed: u64) -> Self {
        let mut random = Seeded::of(seed);
        crate::files::temporary_in_memory();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let is_local = random.one_in(5);
        let inner: Arc<dyn ObjectStore> = if is_local {
            let path = directory.path().join("repository");
            fs::create_dir(&path).expect("a new directory");
            let local = object_store::local::LocalFileSystem::new_with_prefix(path);
            Arc::new(local.expect("a directory"))
        } else {
            Arc::new(InMemory::new())
        };
        let stage = Stage::over(inner);
        let options = RepositoryOptions::default().impatient();
        let is_encrypted = random.one_in(4);
        let options = if is_encrypted { options.key(Key::generate()) } else { options };
        let old_handle = Repository::create_in(stage.calm(), "", options.clone()).expect("create");
        let count = 1 + u64::from(random.one_in(4));
        let is_huge = random.one_in(HUGE_ONE_IN);
        let path = |number: u64| directory.path().join(format!("source {number}"));
        let source = |number| Source::new(path(number), is_huge, &mut random);
        let sources = (0..count).map(source).collect();
        let mut history = Self {
            random,
            directory,
            stage,
            options,
            old_handle,
            sources,
            kept: Vec::new(),
            backups: BTreeMap::new(),
            damage: BTreeMap::new(),
            scars: BTreeSet::new(),
            restored: None,
            targets: 0,
            tally: Tally::new(),
            log: Vec::new(),
        };
        if is_huge {
            history.note("histories of files in several pieces", "");
        }
        history.note("histories", format!("local {is_local}, encrypted {is_encrypted}"));
        history
    }

    fn note(&mut self, what: &'static str, more: impl Into<String>) {
        *self.tally.entry(what).or_default() += 1;
        self.log.push(format!("{what}: {}", more.into()));
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..=2 => {
                let number = self.random.below(self.sources.len() as u64) as usize;
                self.sources[number].write(&mut self.random);
                self.note("writes", format!("to {number}"));
            }
            3..=7 => self.push(),
            8..=10 => self.prune(),
            11..=15 => self.restore(),
            16 | 17 => self.pass_time(),
            18 => self.meet(),
            _ => self.damage(),
        }
    }

    fn pass_time(&mut self) {
        let time = match self.random.below(3) {
            0 => MINUTE * (1 + self.random.below(40) as u32),
            1 => 60 * MINUTE * (1 + self.random.below(40) as u32),
            _ => DAY * (1 + self.random.below(30) as u32),
        };
        self.stage.advance(time);
        self.note("times", format!("{time:?}"));
    }

    /// What goes wrong with a step, which may be killed at one of so many requests, and how often it
    /// tries again.
    fn draw_faults(&mut self, requests: u64) -> (Faults, u32) {
        let random = &mut self.random;
        let seed = random.below(u64::MAX);
        let attempts = *random.pick(&[1, 2, 4, 8]);
        let faults = match random.below(5) {
            0 | 1 => Faults::default(),
            2 | 3 => Faults {
                seed,
                one_in: 3 + random.below(25),
                listings: random.below(2),
                hides_fresh: random.one_in(3),
                killed_at: None,
            },
            _ => {
                let most = 1 + random.below(requests);
                Faults { seed, killed_at: Some(random.below(most)), ..Faults::default() }
            }
        };
        (faults, attempts)
    }

    fn open(&self, client: &Arc<Client>, attempts: u32) -> esker_archive::Result<Repository> {
        let store = Arc::clone(client) as Arc<dyn ObjectStore>;
        Repository::open_in(store, "", self.options.clone().attempts(attempts))
    }

    fn calm(&self) -> Repository {
        self.open(&self.stage.calm(), 1).expect("nothing is in the way")
    }

    /// A path that does not exist.
    fn new_path(&mut self) -> PathBuf {
        self.targets += 1;
        self.directory.path().join(format!("restored {}", self.targets))
    }

    /// Whatever happened: garbage goes, and what is listed can be restored.
    fn end(&mut self) {
        self.heal();
        for _ in 0..2 {
            self.stage.advance(3 * DAY);
            let (rules, options) =
                (Rules { last: 1_000, ..Rules::default() }, PruneOptions::default());
            let pruned = self.calm().prune(&rules.policy(), options.wait(Duration::ZERO));
            let pruned = pruned.expect("nothing is in the way");
            assert!(pruned.removed.is_empty(), "{pruned:?}");
        }
        let report = self.calm().check(CheckOptions::default()).expect("check");
        assert!(report.unnamed.is_empty(), "garbage stays: {report:?}");
        assert!(report.leases.is_empty() && report.expired_leases.is_empty(), "{report:?}");
        self.check_data();
        for object in self.stage.objects("backups") {
            if self.backups[&object].pieces.is_none() || self.random.one_in(3) {
                self.prove(&object);
            }
        }
    }
}

fn flip(bytes: &mut [u8], random: &mut Seeded) {
    if !bytes.is_empty() {
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
    }
}

/// What was restored is what was pushed.
fn judge_content(path: &LocalPath, expected: &Content) {
    let report = esker::verify(path, VerifyOptions::default()).expect("verify");
    assert!(report.is_sound() && report.strays.is_empty(), "{}: {report:?}", path.display());
    let found = open_content(path);
    let differ: Vec<_> = found
        .keys()
        .chain(expected.keys())
        .filter(|name| found.get(*name) != expected.get(*name))
        .collect();
    assert!(differ.is_empty(), "{}: {differ:?} are not as they were", path.display());
}

/// An error says what failed and what to do next.
fn judge_error(error: &Error, may_be_hidden: bool) {
    let text = error.to_string();
    assert!(text.len() > 20 && text.contains(' '), "{text:?} says nothing");
    if let Error::Store { object, .. } = error {
        assert!(text.contains(object.as_str()), "{text}");
    }
    let is_sensible = match error.kind() {
        ErrorKind::Retry | ErrorKind::Corrupt | ErrorKind::Io => true,
        ErrorKind::Locked => matches!(error, Error::Busy { .. }),
        // A repository or a backup that cannot be seen, or one of a version that never was.
        ErrorKind::FixInput => may_be_hidden || matches!(error, Error::UnsupportedFormat { .. }),
        _ => false,
    };
    assert!(is_sensible, "{:?}: {error:?}", error.kind());
}

/// As the crate names a backup: `<commit>-<tag>`.
fn id_of(object: &str) -> String {
    let name = object.rsplit('/').next().expect("a name");
    let (seqno, tag) = name.split_once('-').expect("a commit and a tag");
    format!("{}-{tag}", seqno.parse::<u64>().expect("a number"))
}
