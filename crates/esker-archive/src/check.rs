//! Check: whether everything that a manifest names is there, and on request whether it can be read.
//!
//! What must stay true: nothing is written but what was proved, and that only if it can be, not even a
//! lease, so credentials that only read will do; a
//! piece counts as missing only when it was asked for by name and its manifest is still there, because
//! listings may be older than what they list, and prunes go on meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::census::{Census, Piece};
use crate::error::{Error, Result};
use crate::layout::{self, BackupId, FileId, ProofId};
use crate::lease;
use crate::piece::{self, Place};
use crate::proof::{Proofs, Proved};
use crate::repository::{Repository, now_ms};
use crate::store::{Store, blocking};

/// Objects that are asked for at the same time.
const LOOKS_AT_ONCE: usize = 16;

/// How a repository is checked.
#[must_use]
pub struct CheckOptions {
    read_data: f64,
    seed: Option<u64>,
    remember: bool,
    workers: usize,
    progress: Box<dyn Fn(CheckProgress) + Send + Sync>,
}

impl Default for CheckOptions {
    fn default() -> Self {
        let progress = Box::new(|_| {});
        Self { read_data: 0.0, seed: None, remember: true, workers: 4, progress }
    }
}

impl std::fmt::Debug for CheckOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckOptions")
            .field("read_data", &self.read_data)
            .field("seed", &self.seed)
            .field("remember", &self.remember)
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}

impl CheckOptions {
    /// The share of the pieces that are read and proved, from 0 (the default: none) to 1 (all). Those
    /// that were never proved come first, then those that were proved longest ago: twenty checks of a
    /// twentieth each prove everything, if what they prove is remembered.
    pub fn read_data(mut self, share: f64) -> Self {
        self.read_data = share;
        self
    }

    /// Takes the pieces of a share by this number alone, whatever was proved when. The same seed takes
    /// the same pieces.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Whether what was proved is written to the repository, for later checks; default true. Without,
    /// nothing at all is written. Not to be able to is no error, but in the report.
    pub fn remember(mut self, remember: bool) -> Self {
        self.remember = remember;
        self
    }

    /// Requests at the same time when pieces are read; default 4, at least 1. Each takes up to 64 MiB of
    /// memory.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// Calls back again and again, from several threads.
    pub fn progress(mut self, callback: impl Fn(CheckProgress) + Send + Sync + 'static) -> Self {
        self.progress = Box::new(callback);
        self
    }
}

/// How far a check is.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct CheckProgress {
    /// Manifests that were read.
    pub backups_done: u64,
    /// Of so many.
    pub backups_total: u64,
    /// Bytes of pieces that were read.
    pub bytes_done: u64,
    /// Of so many.
    pub bytes_total: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// Manifests that were read.
    pub backups: u64,
    /// Pieces that they name.
    pub pieces: u64,
    /// The same in bytes, as stored.
    pub piece_bytes: u64,
    /// Pieces that were read and proved.
    pub read_pieces: u64,
    /// The same in bytes, as stored.
    pub read_bytes: u64,
    /// What was proved at any time, this check included.
    pub proofs: Proofs,
    /// Whether what this check has proved was written to the repository.
    pub remembered: bool,
    /// Why not, if it should have been.
    pub not_remembered: Option<String>,
    /// Everything that is wrong.
    pub problems: Vec<RepositoryProblem>,
    /// Pieces that no manifest names: of pushes under way or cut off, or of manifests that were removed.
    /// A prune removes them when they are old.
    pub unnamed: Vec<Unnamed>,
    /// What is under way.
    pub leases: Vec<String>,
    /// What somebody began who is gone. A prune removes them.
    pub expired_leases: Vec<String>,
    /// Objects that are none of a repository.
    pub strays: Vec<String>,
    /// How long it took.
    pub total: Duration,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    /// Bytes of pieces that no manifest names.
    pub fn unnamed_bytes(&self) -> u64 {
        self.unnamed.iter().map(|object| object.bytes).sum()
    }
}

/// One damaged or missing object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RepositoryProblem {
    /// The object.
    pub object: String,
    /// The backups that cannot be restored for it.
    pub backups: Vec<String>,
    /// What is wrong with it.
    pub what: String,
}

impl std::fmt::Display for RepositoryProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}; of backup {}", self.object, self.what, self.backups.join(", "))
    }
}

/// A piece that no manifest names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unnamed {
    /// The object.
    pub object: String,
    /// Its length.
    pub bytes: u64,
}

impl Repository {
    /// Looks whether all manifests can be read and all pieces that they name are there, as long as they
    /// should be, and reads a share of them. Writes nothing but what it has proved:
    /// [`CheckOptions::remember`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a share that is none; when the store refuses or cannot be reached.
    /// What is damaged or missing is no error, but in the report.
    pub fn check(&self, options: CheckOptions) -> Result<CheckReport> {
        let began = Instant::now();
        if !(0.0..=1.0).contains(&options.read_data) {
            let what = format!("{} is no share: it is from 0 to 1", options.read_data);
            return Err(Error::InvalidInput(what));
        }
        let report = self.run(async {
            let mut check = Check::new(self, &options);
            check.read_manifests().await?;
            check.list_objects().await?;
            check.compare().await?;
            check.recall().await;
            check.read_pieces().await?;
            check.conclude().await;
            Ok(check.finish())
        })?;
        Ok(CheckReport { total: began.elapsed(), ..report })
    }
}

struct Check<'a> {
    repository: &'a Repository,
    options: &'a CheckOptions,
    /// What must be there.
    census: Census,
    /// What is there.
    found: HashMap<Piece, u64>,
    /// What was proved, as objects and as they say.
    proof_objects: Vec<(ProofId, u64)>,
    proved: Proved,
    /// What was asked about backups that something is wrong with.
    still_there: HashMap<usize, bool>,
    bytes_done: AtomicU64,
    report: CheckReport,
}

impl<'a> Check<'a> {
    fn new(repository: &'a Repository, options: &'a CheckOptions) -> Self {
        Self {
            repository,
            options,
            census: Census::default(),
            found: HashMap::new(),
            proof_objects: Vec::new(),
            proved: Proved::default(),
            still_there: HashMap::new(),
            bytes_done: AtomicU64::new(0),
            report: CheckReport::default(),
        }
    }

    async fn read_manifests(&mut self) -> Result<()> {
        let listed = self.repository.listed().await?;
        let mut progress = CheckProgress { backups_total: listed.len() as u64, ..<_>::default() };
        (self.options.progress)(progress);
        let mut wrong = Vec::new();
        let (census, options) = (&mut self.census, self.options);
        let each = |id: BackupId, summary| {
            progress.backups_done += 1;
            (options.progress)(progress);
            match summary {
                Ok(summary) => _ = census.add(summary),
                Err(Error::NoSuchBackup { .. }) => {} // Removed since it was listed.
                Err(Error::Corrupt { what, .. }) => wrong.push((id, format!("is corrupt: {what}"))),
                Err(error @ Error::UnsupportedFormat { .. }) => {
                    wrong.push((id, format!("cannot be read: {error}")));
                }
                Err(error) => return Err(error),
            }
            Ok(())
        };
        self.repository.each_summary(&listed, each).await?;
        for (id, what) in wrong {
            self.problem(id.object(), vec![id.to_string()], what);
        }
        self.report.backups = self.census.backups().len() as u64;
        Ok(())
    }

    /// Behind the manifests, so that every piece they name was there before it is looked for.
    async fn list_objects(&mut self) -> Result<()> {
        let (now_ms, times) = (now_ms(), self.repository.store.lease_times);
        let (found, report) = (&mut self.found, &mut self.report);
        let proof_objects = &mut self.proof_objects;
        let each = |object: object_store::ObjectMeta| {
            let name = object.location.to_string();
            let root = object.location.parts().next();
            match root.as_ref().map(AsRef::as_ref) {
                Some(layout::FILES) => match FileId::parse(&object.location) {
                    Some(piece) => _ = found.insert(piece, object.size),
                    None => report.strays.push(name),
                },
                Some(layout::LEASES) => {
                    let expired = lease::is_expired(lease::written_ms(&object), now_ms, times);
                    if expired { &mut report.expired_leases } else { &mut report.leases }
                        .push(name);
                }
                Some(layout::BACKUPS) if BackupId::parse(&object.location).is_some() => {}
                Some(layout::REPOSITORY) if name == layout::REPOSITORY => {}
                Some(layout::PROOFS) => match ProofId::parse(&object.location) {
                    Some(proof) => proof_objects.push((proof, object.size)),
                    None => report.strays.push(name),
                },
                // Of somebody who just asked the store, or could not take it back.
                Some(layout::PROBES) => {}
                _ => report.strays.push(name),
            }
            Ok(())
        };
        self.repository.store.each("", each).await
    }

    async fn compare(&mut self) -> Result<()> {
        let mut suspected = Vec::new();
        for (file, _) in self.census.files() {
            for (piece, bytes) in self.census.pieces(file) {
                self.report.pieces += 1;
                self.report.piece_bytes += bytes;
                if self.found.get(&piece) != Some(&bytes) {
                    suspected.push((piece, bytes, file));
                }
            }
        }
        self.look_again(suspected).await?;
        self.compare_disputed().await?;
        let is_named = |piece: &Piece| self.census.stored_bytes(*piece).is_some();
        let unnamed = self.found.iter().filter(|(piece, _)| !is_named(piece));
        let unnamed = unnamed.map(|((id, number), bytes)| Unnamed {
            object: id.object(*number).to_string(),
            bytes: *bytes,
        });
        self.report.unnamed = unnamed.collect();
        Ok(())
    }

    /// Asks for pieces by name that the listing did not show as they should be.
    async fn look_again(&mut self, suspected: Vec<(Piece, u64, u32)>) -> Result<()> {
        if suspected.is_empty() {
            return Ok(());
        }
        let named_by = self.census.named_by();
        let store = &self.repository.store;
        let looking = stream::iter(suspected)
            .map(async |((id, number), wanted, file)| {
                let there = look(store, &id.object(number)).await?;
                Ok::<_, Error>((id.object(number), there, wanted, file))
            })
            .buffer_unordered(LOOKS_AT_ONCE);
        let wrong = looking.try_filter(|(_, there, wanted, _)| {
            futures::future::ready(*there != Ok(Some(*wanted)))
        });
        let wrong: Vec<_> = wrong.try_collect().await?;
        for (object, there, wanted, file) in wrong {
            let by = named_by[file as usize].iter().map(|number| *number as usize);
            self.wrong_piece(object, by, how_wrong(there, wanted)).await?;
        }
        Ok(())
    }

    /// Of two backups that name a piece with two lengths, one cannot be restored at least.
    async fn compare_disputed(&mut self) -> Result<()> {
        for dispute in self.census.disputes().to_vec() {
            for (number, wanted) in (0..).zip(&dispute.pieces) {
                let object = dispute.file.object(number);
                let there = look(&self.repository.store, &object).await?;
                if there != Ok(Some(*wanted)) {
                    self.wrong_piece(object, [dispute.backup], how_wrong(there, *wanted)).await?;
                }
            }
        }
        Ok(())
    }

    /// Takes note of a problem of the backups that were not removed meanwhile.
    async fn wrong_piece(
        &mut self,
        object: Path,
        backups: impl IntoIterator<Item = usize>,
        what: String,
    ) -> Result<()> {
        let mut whose = Vec::new();
        for number in backups {
            if self.is_there(number).await? {
                whose.push(self.census.backups()[number].id.to_string());
            }
        }
        if !whose.is_empty() {
            self.problem(object, whose, what);
        }
        Ok(())
    }

    /// Whether a backup was not removed meanwhile. Asked once for each.
    async fn is_there(&mut self, backup: usize) -> Result<bool> {
        if let Some(known) = self.still_there.get(&backup) {
            return Ok(*known);
        }
        let object = self.census.backups()[backup].id.object();
        let is_there = self.repository.store.head(&object).await?.is_some();
        self.still_there.insert(backup, is_there);
        Ok(is_there)
    }

    async fn read_pieces(&mut self) -> Result<()> {
        let wrong: BTreeSet<_> =
            self.report.problems.iter().map(|problem| problem.object.clone()).collect();
        let is_wrong = |place: Place| {
            !wrong.is_empty() && wrong.contains(place.file.object(place.piece).as_ref())
        };
        let chosen: Vec<_> = {
            let is_chosen = self.choose(is_wrong);
            let named = self.named();
            named.filter(|(place, _)| is_chosen(*place) && !is_wrong(*place)).collect()
        };
        // As of now at least: reading takes long.
        let began_ms = now_ms();
        let total = chosen.iter().map(|(_, bytes)| bytes).sum();
        let this = &*self;
        let reading = stream::iter(chosen)
            .map(async |(place, bytes)| {
                let what = this.read_piece(place, bytes).await?;
                this.advance(bytes, total);
                Ok::<_, Error>((place, bytes, what))
            })
            .buffer_unordered(self.options.workers);
        let read: Vec<_> = reading.try_collect().await?;
        self.report.read_pieces = read.len() as u64;
        self.report.read_bytes = read.iter().map(|(_, bytes, _)| bytes).sum();
        for (place, _, what) in &read {
            self.proved.set(*place, what.is_none().then_some(began_ms));
        }
        let damaged: Vec<_> =
            read.into_iter().filter_map(|(p, _, what)| Some((p, what?))).collect();
        if damaged.is_empty() {
            return Ok(());
        }
        let numbers: HashMap<_, _> = self.census.files().map(|(file, id)| (id, file)).collect();
        let named_by = self.census.named_by();
        for (place, what) in damaged {
            let by = named_by[numbers[&place.file] as usize].iter().map(|number| *number as usize);
            self.wrong_piece(place.file.object(place.piece), by, what).await?;
        }
        Ok(())
    }

    /// Every piece that any backup names, with its length.
    fn named(&self) -> impl Iterator<Item = (Place, u64)> + '_ {
        let named = self.census.files().flat_map(|(file, _)| self.census.pieces(file));
        named.map(|((file, piece), bytes)| (Place { file, piece }, bytes))
    }

    /// Which pieces are read. Those of a seed are the same whatever else is there.
    fn choose(&self, is_wrong: impl Fn(Place) -> bool) -> Box<dyn Fn(Place) -> bool + '_> {
        let share = self.options.read_data;
        if share <= 0.0 || share >= 1.0 {
            return Box::new(move |_| share >= 1.0);
        }
        if let Some(seed) = self.options.seed {
            let below = share * 2_f64.powi(u64::BITS as i32);
            return Box::new(move |place| (drawn(place, seed) as f64) < below);
        }
        // Among those that were proved at the same time, or never, another part at every run.
        let seed = rand::random();
        let order = move |place: Place| (self.proved.time(place), drawn(place, seed));
        let whole = self.named().filter(|(place, _)| !is_wrong(*place));
        let mut orders: Vec<_> = whole.map(|(place, _)| order(place)).collect();
        let count = (share * orders.len() as f64).ceil() as usize;
        if count == 0 {
            return Box::new(|_| false);
        }
        let number = count.min(orders.len()) - 1;
        let last = *orders.select_nth_unstable(number).1;
        Box::new(move |place| order(place) <= last)
    }

    /// What earlier checks have proved.
    async fn recall(&mut self) {
        let named = self.named().map(|(place, _)| place);
        self.proved = Proved::load(self.repository, named, &self.proof_objects, now_ms()).await;
    }

    /// Writes down what was proved, and says it.
    async fn conclude(&mut self) {
        let missing: Vec<_> = self.report.problems.iter().map(|p| p.object.clone()).collect();
        for object in missing {
            if let Some((file, piece)) = FileId::parse(&Path::from(object)) {
                self.proved.set(Place { file, piece }, None);
            }
        }
        if self.options.remember && self.report.read_pieces > 0 {
            match self.proved.save(self.repository).await {
                Ok(()) => self.report.remembered = true,
                Err(error) => self.report.not_remembered = Some(error.to_string()),
            }
        }
        self.report.proofs = self.proved.summary(self.named());
    }

    /// Proves every frame; what is wrong, if anything.
    async fn read_piece(&self, place: Place, bytes: u64) -> Result<Option<String>> {
        let object = place.file.object(place.piece);
        let body = match self.repository.store.read(&object, 0..bytes).await {
            Err(Error::Corrupt { what, .. }) => return Ok(Some(format!("is corrupt: {what}"))),
            read => read?,
        };
        let Some(body) = body else { return Ok(Some("is missing".to_owned())) };
        let sealer = self.repository.sealer.clone();
        match blocking(move || piece::decode(place, &body, &sealer, |_, _| Ok(()))).await {
            Ok(_) => Ok(None),
            Err(Error::Corrupt { what, .. }) => Ok(Some(format!("is corrupt: {what}"))),
            Err(other) => Ok(Some(format!("cannot be read: {other}"))),
        }
    }

    fn advance(&self, bytes: u64, bytes_total: u64) {
        let bytes_done = self.bytes_done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let backups = self.report.backups;
        (self.options.progress)(CheckProgress {
            backups_done: backups,
            backups_total: backups,
            bytes_done,
            bytes_total,
        });
    }

    fn problem(&mut self, object: Path, backups: Vec<String>, what: String) {
        self.report.problems.push(RepositoryProblem { object: object.to_string(), backups, what });
    }

    fn finish(self) -> CheckReport {
        let mut report = self.report;
        report.problems.sort_by(|a, b| (&a.object, &a.backups).cmp(&(&b.object, &b.backups)));
        report.unnamed.sort_by(|a, b| a.object.cmp(&b.object));
        report.leases.sort();
        report.expired_leases.sort();
        report.strays.sort();
        report
    }
}

/// A number for a piece, another one with every seed.
fn drawn(place: Place, seed: u64) -> u64 {
    let object = place.file.object(place.piece);
    xxh3_64_with_seed(object.as_ref().as_bytes(), seed)
}

/// The length of an object, if there is one, or why what is there is none.
type Found = std::result::Result<Option<u64>, String>;

async fn look(store: &Store, object: &Path) -> Result<Found> {
    match store.head(object).await {
        Err(Error::Corrupt { what, .. }) => Ok(Err(what)),
        there => Ok(Ok(there?.map(|there| there.size))),
    }
}

fn how_wrong(there: Found, wanted: u64) -> String {
    match there {
        Err(what) => format!("is corrupt: {what}"),
        Ok(None) => "is missing".to_owned(),
        Ok(Some(bytes)) => format!("has {bytes} bytes where {wanted} were written"),
    }
}
