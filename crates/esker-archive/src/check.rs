//! Check: whether everything that a manifest names is there, and on request whether it can be read.
//!
//! What must stay true: nothing is written, not even a lease, so credentials that only read will do; a
//! piece counts as missing only when it was asked for by name and its manifest is still there, because
//! listings may be older than what they list, and prunes go on meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::{Error, Result};
use crate::layout::{self, BackupId, FileId};
use crate::lease;
use crate::manifest::{Content, Manifest};
use crate::piece::{self, Place};
use crate::push::blocking;
use crate::repository::{Listed, Repository, now_ms};

/// Manifests that are fetched at the same time.
const MANIFESTS_AT_ONCE: usize = 8;

/// How a repository is checked.
#[must_use]
pub struct CheckOptions {
    read_data: f64,
    seed: u64,
    workers: usize,
    progress: Box<dyn Fn(CheckProgress) + Send + Sync>,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self { read_data: 0.0, seed: 0, workers: 4, progress: Box::new(|_| {}) }
    }
}

impl std::fmt::Debug for CheckOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckOptions")
            .field("read_data", &self.read_data)
            .field("seed", &self.seed)
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}

impl CheckOptions {
    /// The share of the pieces that are read and proved, from 0 (the default: none) to 1 (all).
    pub fn read_data(mut self, share: f64) -> Self {
        self.read_data = share;
        self
    }

    /// Which pieces a share consists of; default 0. The same seed takes the same pieces.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
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

/// A piece of a file.
pub(crate) type Piece = (FileId, u32);

/// Every piece that a manifest names, with its length.
pub(crate) fn pieces_of<'a>(
    repository: &'a Repository,
    manifest: &'a Manifest,
) -> impl Iterator<Item = (Piece, u64)> + 'a {
    let pieces = manifest.files.iter().filter_map(|file| match &file.content {
        Content::Pieces(pieces) => {
            let id = repository.sealer.name(file.xxh3, file.bytes);
            Some((0..).zip(pieces).map(move |(number, bytes)| ((id, number), *bytes)))
        }
        Content::Inline(_) => None,
    });
    pieces.flatten()
}

impl Repository {
    /// Looks whether all manifests can be read and all pieces that they name are there, as long as they
    /// should be. Writes nothing.
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
            check.read_pieces().await?;
            Ok(check.finish())
        })?;
        Ok(CheckReport { total: began.elapsed(), ..report })
    }

    /// Reads manifests, several at once; each with what came of it.
    pub(crate) async fn manifests(
        &self,
        listed: &[Listed],
        mut done: impl FnMut(),
    ) -> Vec<(BackupId, Result<Manifest>)> {
        let ids: Vec<_> = listed.iter().map(|backup| backup.id).collect();
        let reading = stream::iter(ids)
            .map(async |id| (id, self.manifest(id).await))
            .buffered(MANIFESTS_AT_ONCE)
            .inspect(|_| done());
        reading.collect().await
    }
}

struct Check<'a> {
    repository: &'a Repository,
    options: &'a CheckOptions,
    manifests: Vec<Manifest>,
    /// What is there.
    found: HashMap<Piece, u64>,
    /// What must be there, and the numbers of the manifests that say so.
    named: BTreeMap<Piece, (u64, Vec<usize>)>,
    bytes_done: AtomicU64,
    report: CheckReport,
}

impl<'a> Check<'a> {
    fn new(repository: &'a Repository, options: &'a CheckOptions) -> Self {
        Self {
            repository,
            options,
            manifests: Vec::new(),
            found: HashMap::new(),
            named: BTreeMap::new(),
            bytes_done: AtomicU64::new(0),
            report: CheckReport::default(),
        }
    }

    async fn read_manifests(&mut self) -> Result<()> {
        let listed = self.repository.listed().await?;
        let mut progress = CheckProgress { backups_total: listed.len() as u64, ..<_>::default() };
        (self.options.progress)(progress);
        let read = self.repository.manifests(&listed, || {
            progress.backups_done += 1;
            (self.options.progress)(progress);
        });
        for (id, manifest) in read.await {
            match manifest {
                Ok(manifest) => self.manifests.push(manifest),
                Err(Error::NoSuchBackup { .. }) => {} // Removed since it was listed.
                Err(error @ (Error::Corrupt { .. } | Error::UnsupportedFormat { .. })) => {
                    let what = match &error {
                        Error::Corrupt { what, .. } => format!("is corrupt: {what}"),
                        other => format!("cannot be read: {other}"),
                    };
                    self.problem(id.object(), vec![id.to_string()], what);
                }
                Err(error) => return Err(error),
            }
        }
        self.report.backups = self.manifests.len() as u64;
        Ok(())
    }

    /// Behind the manifests, so that every piece they name was there before it is looked for.
    async fn list_objects(&mut self) -> Result<()> {
        let now_ms = now_ms();
        let (found, report) = (&mut self.found, &mut self.report);
        let each = |object: object_store::ObjectMeta| {
            let name = object.location.to_string();
            let root = object.location.parts().next();
            match root.as_ref().map(AsRef::as_ref) {
                Some(layout::FILES) => match FileId::parse(&object.location) {
                    Some(piece) => _ = found.insert(piece, object.size),
                    None => report.strays.push(name),
                },
                Some(layout::LEASES) => {
                    let expired = lease::is_expired(lease::written_ms(&object), now_ms);
                    if expired { &mut report.expired_leases } else { &mut report.leases }
                        .push(name);
                }
                Some(layout::BACKUPS) if BackupId::parse(&object.location).is_some() => {}
                Some(layout::REPOSITORY) if name == layout::REPOSITORY => {}
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
        for (number, manifest) in self.manifests.iter().enumerate() {
            for (piece, bytes) in pieces_of(self.repository, manifest) {
                let (_, by) = self.named.entry(piece).or_insert((bytes, Vec::new()));
                if by.last() == Some(&number) {
                    continue;
                }
                by.push(number);
                if self.found.get(&piece) != Some(&bytes) {
                    suspected.push((piece, bytes, number));
                }
            }
        }
        for ((id, number), wanted, by) in suspected {
            let object = id.object(number);
            let there = self.repository.store.head(&object).await?.map(|there| there.size);
            if there == Some(wanted) || !self.is_there(by).await? {
                continue;
            }
            let what = match there {
                None => "is missing".to_owned(),
                Some(bytes) => format!("has {bytes} bytes where {wanted} were written"),
            };
            self.problem(object, vec![self.manifests[by].id.to_string()], what);
        }
        self.report.pieces = self.named.len() as u64;
        self.report.piece_bytes = self.named.values().map(|(bytes, _)| bytes).sum();
        let unnamed = self.found.iter().filter(|(piece, _)| !self.named.contains_key(piece));
        let unnamed = unnamed.map(|((id, number), bytes)| Unnamed {
            object: id.object(*number).to_string(),
            bytes: *bytes,
        });
        self.report.unnamed = unnamed.collect();
        Ok(())
    }

    /// Whether a backup was not removed meanwhile.
    async fn is_there(&self, manifest: usize) -> Result<bool> {
        let object = self.manifests[manifest].id.object();
        Ok(self.repository.store.head(&object).await?.is_some())
    }

    async fn read_pieces(&mut self) -> Result<()> {
        let wrong: BTreeSet<_> =
            self.report.problems.iter().map(|problem| problem.object.clone()).collect();
        let chosen: Vec<_> = self
            .named
            .iter()
            .map(|((id, number), (bytes, _))| (Place { file: *id, piece: *number }, *bytes))
            .filter(|(place, _)| self.is_chosen(*place))
            .filter(|(place, _)| !wrong.contains(place.file.object(place.piece).as_ref()))
            .collect();
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
        for (place, bytes, what) in read {
            self.report.read_pieces += 1;
            self.report.read_bytes += bytes;
            let Some(what) = what else { continue };
            let mut backups = Vec::new();
            for &manifest in &self.named[&(place.file, place.piece)].1 {
                if self.is_there(manifest).await? {
                    backups.push(self.manifests[manifest].id.to_string());
                }
            }
            if !backups.is_empty() {
                self.problem(place.file.object(place.piece), backups, what);
            }
        }
        Ok(())
    }

    /// The same pieces for the same seed, whatever else is there.
    fn is_chosen(&self, place: Place) -> bool {
        let object = place.file.object(place.piece);
        let hash = xxh3_64_with_seed(object.as_ref().as_bytes(), self.options.seed);
        self.options.read_data >= 1.0
            || (hash as f64) < self.options.read_data * 2_f64.powi(u64::BITS as i32)
    }

    /// Proves every frame; what is wrong, if anything.
    async fn read_piece(&self, place: Place, bytes: u64) -> Result<Option<String>> {
        let object = place.file.object(place.piece);
        let Some(body) = self.repository.store.read(&object, Some(0..bytes)).await? else {
            return Ok(Some("is missing".to_owned()));
        };
        let sealer = self.repository.sealer.clone();
        match blocking(move || piece::decode(place, &body, &sealer)).await {
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
