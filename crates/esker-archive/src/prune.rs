//! Prune: removes the backups that a policy does not keep, and the pieces that no backup names.
//!
//! What must stay true:
//! - Manifests go first, then pieces; so whatever ends a prune leaves pieces that nobody names at most.
//! - Manifests that a live lease relies on stay. One that goes while a lease for it is being taken keeps
//!   its pieces: leases are looked at again behind the last manifest.
//! - Pieces go only when they were older than [`GRACE`] by the store's clock, when no manifest names
//!   them that is there after that second look, and when the pushes of then have ended, which may be
//!   about to use what they find. Pushes that begin later see our lease and leave old pieces alone.
//! - What cannot be read is not guessed at: a manifest that does not decode ends a prune before it
//!   removes anything.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use serde::Serialize;

use crate::census::{Census, Namers, Piece};
use crate::error::{Error, Result};
use crate::layout::{self, BackupId, FileId};
use crate::lease::{self, Lease, Leases, Work};
use crate::piece::Place;
use crate::proof;
use crate::push::GRACE;
use crate::repository::Repository;
use crate::retention::{self, Candidate, Plan, Policy, Reason};

/// Requests that delete at the same time.
const DELETES_AT_ONCE: usize = 8;

/// How a repository is pruned.
#[must_use]
pub struct PruneOptions {
    dry_run: bool,
    wait: Duration,
    progress: Box<dyn Fn(PruneProgress) + Send + Sync>,
}

impl Default for PruneOptions {
    fn default() -> Self {
        let wait = Duration::from_secs(10 * 60);
        Self { dry_run: false, wait, progress: Box::new(|_| {}) }
    }
}

impl std::fmt::Debug for PruneOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PruneOptions")
            .field("dry_run", &self.dry_run)
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}

impl PruneOptions {
    /// Removes nothing and says what would be removed.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// How long to wait for pushes that are under way; default ten minutes. Pieces stay until the next
    /// prune where that was not enough, or where such a push waits for this prune; backups are removed
    /// at once.
    pub fn wait(mut self, time: Duration) -> Self {
        self.wait = time;
        self
    }

    /// Calls back again and again, from several threads.
    pub fn progress(mut self, callback: impl Fn(PruneProgress) + Send + Sync + 'static) -> Self {
        self.progress = Box::new(callback);
        self
    }
}

/// How far a prune is.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct PruneProgress {
    /// Objects that were removed.
    pub objects_done: u64,
    /// Of so many; it grows when the pieces are known.
    pub objects_total: u64,
    /// Pushes that are waited for.
    pub waiting_for: u64,
}

/// What a prune did, or would do.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct PruneReport {
    /// Whether nothing was removed.
    pub dry_run: bool,
    /// The backups that stay, and why; by keyspace, the oldest first.
    pub kept: Vec<Kept>,
    /// The backups that go.
    pub removed: Vec<String>,
    /// Bytes that only these pin. The pieces go when they are a day old.
    pub freed_bytes: u64,
    /// Pieces that were removed, those of earlier prunes and of pushes that were cut off included.
    pub removed_pieces: u64,
    /// The same in bytes.
    pub removed_bytes: u64,
    /// Pieces that nobody names and that are not old enough.
    pub young_pieces: u64,
    /// The same in bytes.
    pub young_bytes: u64,
    /// Why no piece was removed, if so: the next prune does it.
    pub pieces_left: Option<String>,
    /// How long it took.
    pub total: Duration,
}

/// A backup that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Kept {
    /// Which.
    pub backup: String,
    /// Why.
    pub reasons: BTreeSet<Reason>,
}

impl Repository {
    /// Removes the backups that the policy does not keep, each keyspace for itself, and the pieces that
    /// no backup names. What ends it, a kill included, leaves a repository that is whole; the next prune
    /// removes the rest.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a policy that keeps nothing; [`Error::Busy`] while somebody else
    /// prunes; [`Error::Corrupt`] for any manifest that cannot be read, before anything is removed; when
    /// the store refuses or cannot be reached.
    pub fn prune(&self, policy: &Policy, options: PruneOptions) -> Result<PruneReport> {
        let began = Instant::now();
        policy.check()?;
        let report = self.run(async {
            let lease = Lease::take(&self.store, Work::Prune, &[]).await?;
            let pruned = self.prune_leased(policy, &options, &lease).await;
            lease.release().await;
            pruned
        })?;
        Ok(PruneReport { total: began.elapsed(), ..report })
    }

    async fn prune_leased(
        &self,
        policy: &Policy,
        options: &PruneOptions,
        lease: &Lease,
    ) -> Result<PruneReport> {
        let leases = lease::held(&self.store, lease).await?;
        if let Some(other) = leases.of(Work::Prune).next() {
            let by = format!("somebody else prunes it ({})", other.object);
            return Err(Error::Busy { what: self.store.location.clone(), by });
        }
        let mut census = self.census().await?;
        let plan = keep_relied_on(plan_of(&census, policy, leases.now_ms), &leases);
        let mut prune = Prune::new(self, options, lease, &census, &plan);
        if options.dry_run {
            prune.look_at_pieces(&leases, &mut census).await?;
            return Ok(prune.report);
        }
        prune.remove_manifests(&plan.remove).await?;
        let Some(leases) = prune.wait_for_pushes().await? else { return Ok(prune.report) };
        prune.remove_expired(&leases).await?;
        if let Some(reason) = prune.unknown_reliance(&leases, &census).await? {
            prune.report.pieces_left = Some(reason);
            return Ok(prune.report);
        }
        let doomed = prune.look_at_pieces(&leases, &mut census).await?;
        prune.remove_pieces(doomed).await?;
        prune.thin_proofs(&leases, &census).await;
        Ok(prune.report)
    }
}

fn plan_of(census: &Census, policy: &Policy, now_ms: u64) -> Plan {
    let candidates: Vec<_> = census
        .backups()
        .iter()
        .map(|backup| Candidate {
            id: backup.id,
            created_ms: backup.created_ms,
            label: backup.label.clone(),
        })
        .collect();
    retention::plan(&candidates, policy, now_ms)
}

/// What pushes and restores rely on stays, whatever the policy says.
fn keep_relied_on(plan: Plan, leases: &Leases) -> Plan {
    let relied_on: HashSet<_> = leases.live.iter().flat_map(|held| &held.relies_on).collect();
    let Plan { mut keep, remove } = plan;
    let (in_use, remove): (Vec<_>, Vec<_>) =
        remove.into_iter().partition(|id| relied_on.contains(id));
    keep.extend(in_use.into_iter().map(|id| (id, BTreeSet::from([Reason::InUse]))));
    Plan { keep, remove }
}

struct Prune<'a> {
    repository: &'a Repository,
    options: &'a PruneOptions,
    lease: &'a Lease,
    removed: HashSet<BackupId>,
    objects_total: u64,
    objects_done: AtomicU64,
    report: PruneReport,
}

impl<'a> Prune<'a> {
    fn new(
        repository: &'a Repository,
        options: &'a PruneOptions,
        lease: &'a Lease,
        census: &Census,
        plan: &Plan,
    ) -> Self {
        let removed: HashSet<_> = plan.remove.iter().copied().collect();
        let (gone, rest): (Vec<_>, Vec<_>) =
            census.backups().iter().partition(|backup| removed.contains(&backup.id));
        let freed_bytes = census.namers(gone).not_named_by(&census.namers(rest));
        let kept = plan
            .keep
            .iter()
            .map(|(id, reasons)| Kept { backup: id.to_string(), reasons: reasons.clone() });
        let report = PruneReport {
            dry_run: options.dry_run,
            kept: kept.collect(),
            removed: plan.remove.iter().map(ToString::to_string).collect(),
            freed_bytes,
            ..PruneReport::default()
        };
        let objects_total = removed.len() as u64;
        let objects_done = AtomicU64::new(0);
        Self { repository, options, lease, removed, objects_total, objects_done, report }
    }

    async fn remove_manifests(&self, remove: &[BackupId]) -> Result<()> {
        self.show(0, 0);
        let removing = stream::iter(remove).map(async |id| {
            self.lease.check()?;
            self.repository.store.remove(&id.object()).await?;
            self.show(1, 0);
            Ok::<_, Error>(())
        });
        removing.buffer_unordered(DELETES_AT_ONCE).try_collect().await
    }

    /// The leases when all pushes have ended that were at work behind the last manifest; `None` if that
    /// took too long, or one of them waits for this prune.
    async fn wait_for_pushes(&mut self) -> Result<Option<Leases>> {
        let began = Instant::now();
        let mut of_then: Option<BTreeSet<Path>> = None;
        loop {
            let leases = lease::held(&self.repository.store, self.lease).await?;
            let now: BTreeSet<_> = leases.of(Work::Push).map(|held| held.object.clone()).collect();
            let of_then = of_then.get_or_insert_with(|| now.clone());
            of_then.retain(|push| now.contains(push));
            if of_then.is_empty() {
                return Ok(Some(leases));
            }
            if leases.of(Work::Push).any(|held| held.waits && of_then.contains(&held.object)) {
                self.report.pieces_left = Some("a push waits for this prune to end".to_owned());
                return Ok(None);
            }
            if began.elapsed() >= self.options.wait {
                let count = of_then.len();
                self.report.pieces_left = Some(match count {
                    1 => "a push is under way".to_owned(),
                    _ => format!("{count} pushes are under way"),
                });
                return Ok(None);
            }
            self.show(0, of_then.len() as u64);
            tokio::time::sleep(self.repository.store.look_every).await;
        }
    }

    /// Leases of those who are gone, and probes. What cannot be removed is nobody's harm.
    async fn remove_expired(&self, leases: &Leases) -> Result<()> {
        let store = &self.repository.store;
        let probes = store.list(layout::PROBES).await?;
        let old = |probe: &&object_store::ObjectMeta| {
            lease::is_expired(lease::written_ms(probe), leases.now_ms, store.lease_times)
        };
        let old = probes.iter().filter(old).map(|probe| &probe.location);
        for object in leases.expired.iter().chain(old) {
            store.remove(object).await?;
        }
        Ok(())
    }

    /// A lease for a backup that is neither there nor known to us: which pieces it needs cannot be told.
    ///
    /// Pushes are not meant: those of then have ended, and a later one looked whether its base is there
    /// behind the last manifest that goes.
    async fn unknown_reliance(&self, leases: &Leases, census: &Census) -> Result<Option<String>> {
        let known: HashSet<_> = census.backups().iter().map(|backup| backup.id).collect();
        for held in leases.live.iter().filter(|held| held.work != Work::Push) {
            for backup in held.relies_on.iter().filter(|backup| !known.contains(*backup)) {
                if self.repository.store.head(&backup.object()).await?.is_none() {
                    let what = format!("{} relies on a backup that was removed", held.object);
                    return Ok(Some(what));
                }
            }
        }
        Ok(None)
    }

    /// The pieces that go. The census is of before; what was added meanwhile is read.
    async fn look_at_pieces(
        &mut self,
        leases: &Leases,
        census: &mut Census,
    ) -> Result<Vec<(Piece, u64)>> {
        let repository = self.repository;
        // Behind the leases: a push that is not among them any more has written its manifest.
        let known: HashSet<_> = census.backups().iter().map(|backup| backup.id).collect();
        let mut added = repository.listed().await?;
        added.retain(|listed| !known.contains(&listed.id));
        let each = |_, summary: Result<_>| {
            census.add(summary?);
            Ok(())
        };
        repository.each_summary(&added, each).await?;
        let staying = self.staying(leases, census);
        let mut doomed = Vec::new();
        let (mut young_pieces, mut young_bytes) = (0, 0);
        let each = |object: object_store::ObjectMeta| {
            let Some(piece) = FileId::parse(&object.location) else { return Ok(()) };
            if staying.name(piece.0) {
                return Ok(());
            }
            let age = leases.now_ms.saturating_sub(lease::written_ms(&object));
            if age > GRACE.as_millis() as u64 {
                doomed.push((piece, object.size));
            } else {
                young_pieces += 1;
                young_bytes += object.size;
            }
            Ok(())
        };
        repository.store.each(layout::FILES, each).await?;
        (self.report.young_pieces, self.report.young_bytes) = (young_pieces, young_bytes);
        self.report.removed_pieces = doomed.len() as u64;
        self.report.removed_bytes = doomed.iter().map(|(_, bytes)| bytes).sum();
        Ok(doomed)
    }

    /// Which files the backups name that stay.
    fn staying<'c>(&self, leases: &Leases, census: &'c Census) -> Namers<'c> {
        let relied_on: HashSet<_> = leases.live.iter().flat_map(|held| &held.relies_on).collect();
        let stays = |id: BackupId| !self.removed.contains(&id) || relied_on.contains(&id);
        census.namers(census.backups().iter().filter(|backup| stays(backup.id)))
    }

    /// Makes one proof of all, of the pieces that are still named. Nothing rests on it.
    async fn thin_proofs(&self, leases: &Leases, census: &Census) {
        let staying = self.staying(leases, census);
        let named = census.files().filter(|(_, id)| staying.name(*id));
        let named = named.flat_map(|(number, _)| census.pieces(number));
        let named = named.map(|((file, piece), _)| Place { file, piece });
        if let Err(error) = proof::thin(self.repository, named, leases.now_ms).await {
            tracing::warn!(%error, "proofs are left as they are");
        }
    }

    async fn remove_pieces(&mut self, doomed: Vec<(Piece, u64)>) -> Result<()> {
        self.objects_total += doomed.len() as u64;
        self.show(0, 0);
        let this = &*self;
        let removing = stream::iter(doomed).map(async |((id, number), _)| {
            // Who was taken for gone has no right to go on: pushes do not wait for him any more.
            this.lease.check()?;
            this.repository.store.remove(&id.object(number)).await?;
            this.show(1, 0);
            Ok::<_, Error>(())
        });
        removing.buffer_unordered(DELETES_AT_ONCE).try_collect().await
    }

    fn show(&self, removed: u64, waiting_for: u64) {
        let objects_done = self.objects_done.fetch_add(removed, Ordering::Relaxed) + removed;
        let objects_total = self.objects_total;
        (self.options.progress)(PruneProgress { objects_done, objects_total, waiting_for });
    }
}
