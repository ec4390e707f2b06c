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

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path as LocalPath, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use esker::VerifyOptions;
use esker_archive::{
    BackupId, CheckOptions, Error, ErrorKind, Key, PruneOptions, PushOptions, Reason, Repository,
    RepositoryOptions, RestoreOptions,
};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tempfile::TempDir;

use super::rules::{Dated, Rules};
use super::source::{Kept, Source};
use super::stage::{Client, Faults, Moment, Stage};
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
}

// Push.

/// What is pushed, and how.
struct Parcel {
    kept: Option<Kept>,
    source: usize,
    left_out: BTreeSet<String>,
    content: Arc<Content>,
    created_ms: (u64, u64),
    label: Option<String>,
    level: i32,
    workers: usize,
}

impl Parcel {
    fn options(&self) -> PushOptions {
        let mut options = PushOptions::default().level(self.level).workers(self.workers);
        if self.kept.is_none() {
            options = options.exclude(self.left_out.clone());
        }
        match &self.label {
            Some(label) => options.label(label.clone()),
            None => options,
        }
    }

    fn backup(&self, suspect: bool) -> Backup {
        Backup {
            content: Arc::clone(&self.content),
            created_ms: self.created_ms,
            labelled: self.label.is_some(),
            pieces: None,
            suspect,
        }
    }
}

impl History {
    /// A keyspace, a checkpoint of now or one of before.
    fn draw_parcel(&mut self, from_directory: bool) -> Parcel {
        let source = self.random.below(self.sources.len() as u64) as usize;
        let left_out = self.sources[source].some(&mut self.random);
        let kept = match self.random.below(4) {
            0 if !from_directory => None,
            1 if !self.kept.is_empty() => Some(self.random.pick(&self.kept).clone()),
            _ => {
                let kept = self.sources[source].keep(&left_out, self.stage.now_ms());
                self.kept.push(kept.clone());
                Some(kept)
            }
        };
        let content = match &kept {
            Some(kept) => Arc::clone(&kept.content),
            None => self.sources[source].without(&left_out),
        };
        let created_ms = kept.as_ref().map_or((0, u64::MAX), |it| (it.created_ms, it.created_ms));
        let label = self.random.one_in(6).then(|| format!("label {}", self.random.below(100)));
        let level = *self.random.pick(&[1, 1, 3, 19]);
        let workers = 1 + self.random.below(4) as usize;
        Parcel { kept, source, left_out, content, created_ms, label, level, workers }
    }

    fn push(&mut self) {
        let parcel = self.draw_parcel(false);
        let (faults, attempts) = self.draw_faults(50);
        let is_calm = faults.one_in == 0 && faults.killed_at.is_none();
        let before = self.stage.objects("backups");
        let client = self.stage.client(faults.clone());
        let uses_old = is_calm && self.random.one_in(4);
        let opened;
        let pushed = match (uses_old, self.open(&client, attempts)) {
            (false, Err(error)) => Err(error),
            (uses_old, repository) => {
                opened = repository.ok();
                let repository = if uses_old { &self.old_handle } else { opened.as_ref().unwrap() };
                match &parcel.kept {
                    Some(kept) => repository.push_directory(&kept.path, parcel.options()),
                    None => {
                        repository.push(&self.sources[parcel.source].keyspace, parcel.options())
                    }
                }
            }
        };
        let after = self.stage.objects("backups");
        let new: Vec<_> = after.iter().filter(|object| !before.contains(object)).collect();
        assert!(before.iter().all(|object| after.contains(object)), "a push removes no backup");
        let said = format!("{faults:?}, {attempts} attempts, calm {is_calm}, new {new:?}");
        match &pushed {
            Ok(report) => {
                self.note("pushes", format!("{said}: {}", report.backup));
                assert_eq!(new.len(), 1, "a push adds one backup");
                assert_eq!(id_of(new[0]), report.backup);
                let partitions: Vec<_> = parcel.content.keys().cloned().collect();
                assert_eq!(report.partitions, partitions);
            }
            Err(error) => {
                self.note("failed pushes", format!("{said}: {error}"));
                judge_error(error, client.hidden() > 0);
                let excused = !self.damage.is_empty() || !self.scars.is_empty();
                assert!(!is_calm || excused, "nothing was in the way: {error}");
                assert!(new.len() <= 1, "{new:?}");
            }
        }
        let suspect = !self.damage.is_empty();
        for object in new {
            self.backups.insert(object.clone(), parcel.backup(suspect));
        }
        self.check();
    }

    // Prune.

    /// The backups by the manifests themselves; none if one of them cannot be read.
    fn dated(&self) -> Option<Vec<Dated>> {
        let infos = self.calm().infos();
        let infos = match infos {
            Ok(infos) => infos,
            Err(error) => {
                let excused = self.damage.keys().any(|object| object.starts_with("backups/"));
                assert!(excused, "{error}");
                return None;
            }
        };
        let dated = infos.into_iter().map(|info| {
            let (object, backup) = self
                .backups
                .iter()
                .find(|(object, _)| id_of(object) == info.backup)
                .expect("nothing is listed that nobody pushed");
            let (from, to) = backup.created_ms;
            assert!((from..=to).contains(&info.created_ms), "{info:?}");
            assert_eq!(info.label.is_some(), backup.labelled);
            let (created_ms, labelled) = (info.created_ms, backup.labelled);
            Dated { created_ms, object: object.clone(), labelled }
        });
        let dated: Vec<_> = dated.collect();
        assert_eq!(dated.len(), self.backups.len(), "a backup is missing");
        Some(dated)
    }

    fn prune(&mut self) {
        let rules = Rules::draw(&mut self.random);
        let (faults, attempts) = self.draw_faults(40);
        let is_calm = faults.one_in == 0 && faults.killed_at.is_none();
        let dry = self.random.one_in(4);
        let dated = self.dated();
        let (pieces, before) = (self.stage.objects("files"), self.stage.objects("backups"));
        let from_ms = self.stage.now_ms();
        let client = self.stage.client(faults.clone());
        let options = PruneOptions::default().dry_run(dry).wait(Duration::ZERO);
        let pruned = self.open(&client, attempts).and_then(|it| it.prune(&rules.policy(), options));
        let to_ms = self.stage.now_ms();
        let after = self.stage.objects("backups");
        let said = format!("{rules:?}, {faults:?}, {attempts} attempts, dry {dry}");
        let gone: BTreeSet<_> = before.iter().filter(|it| !after.contains(it)).cloned().collect();
        self.backups.retain(|object, _| !gone.contains(object));
        match &pruned {
            Ok(report) => {
                self.note("prunes", format!("{said}: {gone:?}, {report:?}"));
                if !dry {
                    let removed: BTreeSet<_> = report.removed.iter().cloned().collect();
                    let gone: BTreeSet<_> = gone.iter().map(|object| id_of(object)).collect();
                    assert!(gone.is_subset(&removed), "{gone:?} of {removed:?}");
                }
            }
            Err(error) => {
                self.note("failed prunes", format!("{said}: {gone:?}, {error}"));
                judge_error(error, client.hidden() > 0);
                let excused = matches!(error, Error::Busy { .. }) || dated.is_none();
                assert!(!is_calm || excused, "nothing was in the way: {error}");
            }
        }
        if dry || dated.is_none() || matches!(pruned, Err(Error::Busy { .. })) {
            assert!(gone.is_empty(), "{gone:?} must not be removed");
            assert_eq!(self.stage.objects("files"), pieces);
        }
        if let Some(dated) = &dated {
            // The clock moved meanwhile, if little: what either of both times keeps.
            let keep = [from_ms, to_ms].map(|now_ms| rules.keep(dated, now_ms));
            let lost: Vec<_> =
                gone.iter().filter(|it| keep.iter().any(|keep| keep.contains(*it))).collect();
            assert!(lost.is_empty(), "{lost:?} were to be kept");
            if let (true, false, Ok(report)) = (is_calm, dry, &pruned) {
                let in_use = |object: &str| {
                    let mut kept = report.kept.iter();
                    kept.any(|it| it.backup == id_of(object) && it.reasons.contains(&Reason::InUse))
                };
                let left: Vec<_> = after
                    .iter()
                    .filter(|it| keep.iter().all(|keep| !keep.contains(*it)) && !in_use(it))
                    .collect();
                assert!(left.is_empty(), "{left:?} were to be removed");
            }
        }
        self.check();
    }
}

// Restore.

impl History {
    fn draw_restore_options(&mut self) -> RestoreOptions {
        let options = RestoreOptions::default()
            .download_workers(1 + self.random.below(4) as usize)
            .chunk_bytes(*self.random.pick(&[1, 1 << 20, 2 << 20, 32 << 20]));
        if self.random.one_in(2) {
            options.buffer_bytes_max(1 << self.random.below(26))
        } else {
            options
        }
    }

    /// A backup, by its object and as the crate calls it.
    fn draw_backup(&mut self) -> Option<(String, BackupId)> {
        let objects: Vec<_> = self.backups.keys().cloned().collect();
        if objects.is_empty() {
            return None;
        }
        let object = self.random.pick(&objects).clone();
        let id = self.calm().find(Some(&id_of(&object))).expect("it is listed");
        Some((object, id))
    }

    fn restore(&mut self) {
        let Some((object, id)) = self.draw_backup() else { return };
        let whole = Arc::clone(&self.backups[&object].content);
        let wanted: Option<BTreeSet<String>> = self
            .random
            .one_in(4)
            .then(|| whole.keys().filter(|_| self.random.one_in(2)).cloned().collect());
        let mut content = (*whole).clone();
        content.retain(|name, _| wanted.as_ref().is_none_or(|wanted| wanted.contains(name)));
        let content = Arc::new(content);
        let old = if self.random.one_in(3) { self.restored.take() } else { None };
        let target = old.as_ref().map_or_else(|| self.new_path(), |(path, _)| path.clone());
        let old = old.map(|(path, content)| self.maybe_use(&path, content));
        let (faults, attempts) = self.draw_faults(14);
        let is_calm = faults.one_in == 0 && faults.killed_at.is_none();
        let said = format!("{object} to {}, {wanted:?}, {faults:?}", target.display());
        let unfinished = self.unfinished(&target);
        let mut client = self.stage.client(faults);
        let mut options = self.draw_restore_options().delta(old.is_some());
        if let Some(wanted) = &wanted {
            options = options.partitions(wanted.clone());
        }
        let mut restored =
            self.open(&client, attempts).and_then(|it| it.restore(id, &target, options));
        let excused = self.is_excused(&object);
        if let Err(error) = &restored {
            self.note("failed restores", format!("{said}: {error}"));
            judge_error(error, client.hidden() > 0);
            assert!(!is_calm || excused, "nothing was in the way: {error}");
            match &old {
                Some(old) => judge_content(&target, old),
                None => assert!(!target.exists(), "a restore that failed leaves no target"),
            }
            if !is_calm && !self.random.one_in(4) {
                self.tamper(&target);
                client = self.stage.calm();
                let mut options = self.draw_restore_options().delta(old.is_some());
                if let Some(wanted) = &wanted {
                    options = options.partitions(wanted.clone());
                }
                restored = self.open(&client, 1).and_then(|it| it.restore(id, &target, options));
                if let Err(error) = &restored {
                    judge_error(error, false);
                    assert!(excused, "the second time nothing was in the way: {error}");
                }
                self.note("resumed restores", format!("{:?}", restored.as_ref().err()));
            }
        }
        match restored {
            Ok(report) => {
                self.note("restores", said);
                assert_eq!(report.partitions, content.keys().cloned().collect::<Vec<_>>());
                judge_content(&target, &content);
                // Those of other backups are theirs.
                let left = self.unfinished(&target);
                assert!(left.iter().all(|path| unfinished.contains(path)), "{left:?}");
                self.restored = Some((target, content));
            }
            Err(_) => self.restored = old.map(|old| (target, old)),
        }
    }

    /// Whether a backup may be unreadable.
    fn is_excused(&self, object: &str) -> bool {
        if self.damage.is_empty() && self.scars.is_empty() {
            return false;
        }
        let backup = &self.backups[object];
        let hit = |it: &String| self.scars.contains(it);
        let pieces = backup.pieces.as_ref();
        backup.suspect || hit(&object.to_owned()) || pieces.is_none_or(|it| it.iter().any(hit))
    }

    /// Sometimes somebody has opened what was restored and gone on with it.
    fn maybe_use(&mut self, path: &LocalPath, content: Arc<Content>) -> Arc<Content> {
        if self.random.one_in(2) {
            return content;
        }
        let keyspace =
            esker::Config::new(path).journal_segment_bytes(64 << 10).open().expect("open");
        let partition = keyspace.partition("tables", Default::default()).expect("a partition");
        let mut content = (*content).clone();
        for number in 0..20 {
            let (key, value) = (format!("new {number}").into_bytes(), self.random.bytes(1_000));
            partition.insert(&key, &value).expect("insert");
            content.entry("tables".to_owned()).or_default().insert(key, value);
        }
        keyspace.flush().expect("flush");
        keyspace.close().expect("close");
        Arc::new(content)
    }

    /// Directories of restores to `target` that were interrupted.
    fn unfinished(&self, target: &LocalPath) -> Vec<PathBuf> {
        let name = target.file_name().expect("a name").to_string_lossy().into_owned();
        let prefix = format!(".{name}.esker-restore-");
        let entries = fs::read_dir(self.directory.path()).expect("list");
        let paths = entries.map(|entry| entry.expect("list").path());
        let is_one = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        };
        paths.filter(is_one).collect()
    }

    /// What lies in an unfinished directory is not always what was written there.
    fn tamper(&mut self, target: &LocalPath) {
        for unfinished in self.unfinished(target) {
            for name in crate::files::names(&unfinished) {
                let path = unfinished.join(&name);
                let is_link = fs::metadata(&path).is_ok_and(|it| {
                    use std::os::unix::fs::MetadataExt as _;
                    it.nlink() > 1
                });
                // A link leads to a file of the old target, which is somebody else's.
                if is_link || !self.random.one_in(3) {
                    continue;
                }
                let mut bytes = fs::read(&path).expect("read");
                match self.random.below(4) {
                    0 => fs::remove_file(&path).expect("remove"),
                    1 => bytes.truncate(self.random.below(bytes.len() as u64 + 1) as usize),
                    2 => bytes.extend_from_slice(&self.random.bytes(5)),
                    _ => flip(&mut bytes, &mut self.random),
                }
                if path.exists() {
                    fs::write(&path, bytes).expect("write");
                }
                self.note("tampered files", name.display().to_string());
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

// Damage and check.

impl History {
    /// Restores a backup whole and takes note of what it is made of.
    fn prove(&mut self, object: &str) {
        let client = self.stage.calm();
        let repository = self.open(&client, 1).expect("nothing is in the way");
        let id = repository.find(Some(&id_of(object))).expect("it is listed");
        let target = self.new_path();
        let excused = self.is_excused(object);
        match repository.restore(id, &target, RestoreOptions::default()) {
            Ok(_) => {
                judge_content(&target, &self.backups[object].content);
                let backup = self.backups.get_mut(object).expect("it is listed");
                backup.pieces = Some(client.pieces_read().into_iter().collect());
                fs::remove_dir_all(&target).expect("remove");
            }
            Err(error) => {
                assert!(excused, "{object} cannot be restored: {error}");
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                for unfinished in self.unfinished(&target) {
                    fs::remove_dir_all(unfinished).expect("remove");
                }
            }
        }
        self.note("proofs", object);
    }

    fn prove_all(&mut self) {
        let unproved = |(_, backup): &(&String, &Backup)| backup.pieces.is_none();
        let objects: Vec<_> =
            self.backups.iter().filter(unproved).map(|(object, _)| object.clone()).collect();
        objects.iter().for_each(|object| self.prove(object));
    }

    /// Removes or changes some objects, or puts them back as they were.
    fn damage(&mut self) {
        if !self.damage.is_empty() {
            return self.heal();
        }
        self.prove_all();
        for _ in 0..=self.random.below(3) {
            let root = if self.random.one_in(4) { "backups" } else { "files" };
            let objects = self.stage.objects(root);
            if objects.is_empty() {
                continue;
            }
            let object = self.random.pick(&objects).clone();
            if self.damage.contains_key(&object) {
                continue;
            }
            let before = self.stage.bytes(&object).expect("it is listed");
            let mut after = before.clone();
            match self.random.below(4) {
                0 if root == "files" => after.clear(),
                1 => after.truncate(self.random.below(before.len() as u64) as usize),
                _ => flip(&mut after, &mut self.random),
            }
            let after = (!after.is_empty()).then_some(after);
            if after.is_none() && root == "backups" {
                continue;
            }
            self.stage.damage(&object, after.clone());
            let how = after.as_ref().map(Vec::len);
            self.note("damaged objects", format!("{object}: {how:?} of {} bytes", before.len()));
            self.scars.insert(object.clone());
            self.damage.insert(object, Damage { before, after });
        }
        self.check();
        self.check_data();
        let hit: Vec<_> = self
            .backups
            .iter()
            .filter(|(object, backup)| {
                let pieces = backup.pieces.iter().flatten();
                pieces.chain([*object]).any(|it| self.damage.contains_key(it))
            })
            .map(|(object, _)| object.clone())
            .collect();
        for object in hit {
            let target = self.new_path();
            let Ok(id) = self.calm().find(Some(&id_of(&object))) else { continue };
            let options = self.draw_restore_options();
            let error = self.calm().restore(id, &target, options).expect_err("it is damaged");
            let text = error.to_string();
            assert!(self.damage.keys().any(|it| text.contains(it)), "{text} names no object");
            assert!(!target.exists());
            self.note("refused restores", text);
        }
        if !self.random.one_in(3) {
            self.heal();
        }
    }

    /// Puts back what is still as the damage left it.
    fn heal(&mut self) {
        for (object, Damage { before, after }) in std::mem::take(&mut self.damage) {
            if self.stage.bytes(&object) == after {
                self.stage.damage(&object, Some(before));
            }
            self.note("healed objects", object);
        }
        let suspects = self.backups.values().any(|backup| backup.suspect);
        // Nobody wrote anything meanwhile: it is as if nothing had been.
        if !suspects && self.log_since_damage_is_calm() {
            self.scars.clear();
        }
    }

    /// Whether nothing was pushed or pruned between the damage and now.
    fn log_since_damage_is_calm(&self) -> bool {
        let mut since = self.log.iter().rev().take_while(|line| !line.starts_with("damaged"));
        !since.any(|line| line.contains("pushes:") || line.contains("prunes:"))
    }

    fn check(&mut self) {
        self.judge_check(0.0);
        if self.random.one_in(4) {
            self.check_data();
        }
    }

    fn check_data(&mut self) {
        self.judge_check(1.0);
    }

    fn judge_check(&mut self, share: f64) {
        let report = self.calm().check(CheckOptions::default().read_data(share)).expect("check");
        assert!(report.strays.is_empty(), "{report:?}");
        let said: BTreeSet<_> = report.problems.iter().map(|it| it.object.clone()).collect();
        let wrong: Vec<_> = said.iter().filter(|it| !self.scars.contains(*it)).collect();
        assert!(wrong.is_empty(), "{wrong:?} were never damaged: {report:?}");
        // What is needed by a manifest that cannot be read is not known to anybody.
        let readable = self.backups.iter().filter(|(object, _)| !self.damage.contains_key(*object));
        let needed: BTreeSet<_> =
            readable.filter_map(|(_, backup)| backup.pieces.as_ref()).flatten().collect();
        for (object, Damage { before, after }) in &self.damage {
            // Somebody may have written it anew.
            if self.stage.bytes(object) != *after {
                continue;
            }
            let is_needed = needed.contains(object) || self.backups.contains_key(object);
            let is_seen = share == 1.0
                || object.starts_with("backups/")
                || after.as_ref().map(Vec::len) != Some(before.len());
            let found = said.contains(object);
            assert!(found || !is_needed || !is_seen, "{object} is damaged: {report:?}");
        }
        if self.damage.is_empty() {
            let (found, listed) = (report.backups, self.backups.len() as u64);
            assert!(found == listed || !self.scars.is_empty(), "{found} of {listed} backups");
        }
        self.note("checks", format!("{share}"));
    }
}

// Two at once.

impl History {
    /// Something else happens, from its beginning to its end, in the middle of something.
    fn meet(&mut self) {
        // Time enough for those who are gone, so that nobody waits for them, and often for whatever is
        // named by nobody.
        self.stage.advance(if self.random.one_in(2) { 20 * MINUTE } else { 2 * DAY });
        let request = Moment::Request(self.random.below(45));
        let is_close = self.random.one_in(2);
        match self.random.below(3) {
            0 => {
                let root = *self.random.pick(&["leases/", "files/", "backups/"]);
                let close = Moment::Put(root);
                self.prune_during_push(if is_close { close } else { request });
            }
            1 => self.prune_during_restore(request),
            _ => {
                let root = *self.random.pick(&["backups/", "files/"]);
                let close = Moment::Delete(root);
                self.push_during_prune(if is_close { close } else { request });
            }
        }
        let listed = self.stage.objects("backups");
        self.backups.retain(|object, _| listed.contains(object));
        self.check();
        self.check_data();
        if self.damage.is_empty() {
            for object in listed {
                self.prove(&object);
            }
        }
    }

    /// A hook that prunes, and what came of it.
    fn pruning_hook(
        &mut self,
    ) -> (impl FnOnce() + Send + use<>, mpsc::Receiver<esker_archive::Result<()>>) {
        let rules = Rules::draw(&mut self.random);
        let (repository, (done, ended)) = (self.calm(), mpsc::channel());
        let hook = move || {
            let prune = move || {
                let options = PruneOptions::default().wait(Duration::ZERO);
                done.send(repository.prune(&rules.policy(), options).map(|_| ())).expect("heard");
            };
            std::thread::spawn(prune).join().expect("it does not panic");
        };
        (hook, ended)
    }

    fn judge_met(
        &mut self,
        what: &'static str,
        at: Moment,
        ended: Option<esker_archive::Result<()>>,
    ) {
        self.note(what, format!("{at:?}: {ended:?}"));
        if let Some(Err(error)) = ended {
            assert!(!self.scars.is_empty(), "nothing was in the way: {error}");
        }
    }

    fn prune_during_push(&mut self, at: Moment) {
        let parcel = self.draw_parcel(true);
        let kept = parcel.kept.clone().expect("a directory");
        let (hook, ended) = self.pruning_hook();
        let client = self.stage.with_hook(at, hook);
        let pushed =
            self.open(&client, 1).and_then(|it| it.push_directory(&kept.path, parcel.options()));
        let ended = ended.try_recv().ok();
        self.judge_met("prunes during pushes", at, ended);
        self.judge_pushed(&parcel, pushed.map(|report| report.backup));
    }

    /// The backup is listed unless the prune removed it at once.
    fn judge_pushed(&mut self, parcel: &Parcel, pushed: esker_archive::Result<String>) {
        match pushed {
            Ok(id) => {
                let listed = self.stage.objects("backups");
                let suspect = !self.damage.is_empty();
                if let Some(object) = listed.iter().find(|object| id_of(object) == id) {
                    self.backups.insert(object.clone(), parcel.backup(suspect));
                }
            }
            Err(error) => assert!(!self.scars.is_empty(), "nothing was in the way: {error}"),
        }
    }

    fn prune_during_restore(&mut self, at: Moment) {
        let Some((object, id)) = self.draw_backup() else { return };
        let content = Arc::clone(&self.backups[&object].content);
        let (hook, ended) = self.pruning_hook();
        let client = self.stage.with_hook(at, hook);
        let target = self.new_path();
        let excused = self.is_excused(&object);
        match self.open(&client, 1).and_then(|it| it.restore(id, &target, Default::default())) {
            Ok(_) => judge_content(&target, &content),
            // Removed before it was looked for.
            Err(Error::NoSuchBackup { .. }) => {
                assert!(!self.stage.objects("backups").contains(&object));
            }
            Err(error) => assert!(excused, "nothing was in the way: {error}"),
        }
        let ended = ended.try_recv().ok();
        self.judge_met("prunes during restores", at, ended);
    }

    fn push_during_prune(&mut self, at: Moment) {
        let parcel = self.draw_parcel(true);
        let (path, options) = (parcel.kept.clone().expect("a directory").path, parcel.options());
        let rules = Rules::draw(&mut self.random);
        let (going_on, goes_on) = mpsc::channel();
        let waiting = going_on.clone();
        let (done, ended) = mpsc::channel();
        let other = self.stage.that_tells(move || _ = waiting.send(()));
        let other = self.open(&other, 1).expect("nothing is in the way");
        let client = self.stage.with_hook(at, move || {
            std::thread::spawn(move || {
                done.send(other.push_directory(path, options)).expect("heard");
                _ = going_on.send(());
            });
            // It has ended, or waits for the prune.
            goes_on.recv().expect("one of both");
        });
        let options = PruneOptions::default().wait(Duration::ZERO);
        let pruned = self.open(&client, 1).and_then(|it| it.prune(&rules.policy(), options));
        let was_met = client.was_met();
        self.judge_met("pushes during prunes", at, was_met.then(|| pruned.map(|_| ())));
        if was_met {
            let pushed = ended.recv().expect("it ends");
            self.judge_pushed(&parcel, pushed.map(|report| report.backup));
        }
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
