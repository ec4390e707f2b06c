//! What is under way, as objects that others look at before they delete anything.
//!
//! A lease says which kind of work it is and which backups it relies on. It is written anew while the
//! work goes on; one that was not for a quarter of an hour ([`LeaseTimes`]) belongs to somebody who is
//! gone. Its age is told by the store's clock alone, which the one who looks asks by writing an object of
//! his own.
//!
//! What must stay true: whoever relies on something takes the lease first and looks whether it is there
//! afterwards; whoever deletes takes his lease first, deletes manifests, looks at the leases, and only
//! then deletes pieces. So of two who meet, one always sees the other. If both wait for each other, the
//! one who deletes gives way: whoever waits says so in his lease.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use object_store::ObjectMeta;
use object_store::path::Path;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::error::{Error, Result};
use crate::layout::{self, BackupId};
use crate::store::{LeaseTimes, Store};

/// A store's clock may be set back, by little. Whoever is alive writes his lease again soon, by the new
/// time: one that is further ahead is nobody's.
const AHEAD_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// No lease is longer, and no more are live at the same time.
const CLAIM_BYTES_MAX: u64 = 4 << 10;
const LIVE_MAX: usize = 10_000;

/// How long a renewal that is under way is waited for. If that is not enough, the lease may come back,
/// and expires.
const RELEASE_WAIT: Duration = Duration::from_secs(10);

/// What somebody is doing.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Work {
    /// Adds files that no manifest names yet.
    Push,
    /// Reads the files of a backup.
    Restore,
    /// Deletes.
    Prune,
}

/// The content of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub(crate) work: Work,
    /// The names of the manifests that must stay, with their files.
    pub(crate) relies_on: Vec<String>,
    /// Whether it cannot go on before others have ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) waits: bool,
}

impl Claim {
    fn body(&self) -> Bytes {
        serde_json::to_vec(self).expect("plain values have a JSON").into()
    }
}

/// A lease of ours, renewed until it is released. One that is dropped expires.
pub(crate) struct Lease {
    store: Store,
    object: Path,
    /// Locked while it is written: what is written last is what is said last.
    claim: Arc<tokio::sync::Mutex<Claim>>,
    renewed: Arc<Mutex<Renewed>>,
    renewing: JoinHandle<()>,
}

/// When it was written last. By the wall clock, which goes on while the machine sleeps.
struct Renewed {
    at: SystemTime,
    /// Whether it ever was older than it may be.
    lost: bool,
}

impl Renewed {
    fn is_late(&self, times: LeaseTimes) -> bool {
        self.lost || self.at.elapsed().unwrap_or_default() > times.expiry
    }
}

impl Lease {
    /// Tells everybody. On the repository's runtime.
    pub(crate) async fn take(store: &Store, work: Work, relies_on: &[BackupId]) -> Result<Self> {
        let object = Path::from(format!("{}/{:016x}", layout::LEASES, rand::random::<u64>()));
        let relies_on = relies_on.iter().map(|id| id.object().to_string()).collect();
        let claim = Claim { work, relies_on, waits: false };
        let renewed = Arc::new(Mutex::new(Renewed { at: SystemTime::now(), lost: false }));
        let times = store.lease_times;
        store.put(&object, &[claim.body()]).await?;
        let claim = Arc::new(tokio::sync::Mutex::new(claim));
        let renewing = {
            let (store, object, renewed) = (store.clone(), object.clone(), Arc::clone(&renewed));
            let claim = Arc::clone(&claim);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(times.renew_every).await;
                    let at = SystemTime::now();
                    let claim = claim.lock().await;
                    match store.put_once(&object, claim.body()).await {
                        Ok(()) => {
                            let mut renewed = renewed.lock();
                            let lost = renewed.is_late(times);
                            *renewed = Renewed { at, lost };
                        }
                        Err(error) => tracing::warn!(%error, "a lease could not be renewed"),
                    }
                }
            })
        };
        Ok(Self { store: store.clone(), object, claim, renewed, renewing })
    }

    /// Says whether this work waits for others.
    pub(crate) async fn say_waiting(&self, waits: bool) -> Result<()> {
        let mut claim = self.claim.lock().await;
        claim.waits = waits;
        self.store.put(&self.object, &[claim.body()]).await
    }

    /// Refuses if others may have taken us for gone, if only for a while.
    pub(crate) fn check(&self) -> Result<()> {
        if self.renewed.lock().is_late(self.store.lease_times) {
            return Err(Error::LeaseLost { lease: self.object.to_string() });
        }
        Ok(())
    }

    /// The work is done. Credentials that cannot delete leave it to expire.
    pub(crate) async fn release(self) {
        // What is being written would come back behind the removal.
        let _written = tokio::time::timeout(RELEASE_WAIT, self.claim.lock()).await;
        self.renewing.abort();
        if let Err(error) = self.store.remove(&self.object).await {
            tracing::debug!(%error, "a lease stays behind until it expires");
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// A lease that somebody holds, or held.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) object: Path,
    pub(crate) work: Work,
    /// The backups that must stay, with their files.
    pub(crate) relies_on: Vec<BackupId>,
    /// Whether it cannot go on before others have ended.
    pub(crate) waits: bool,
}

impl Held {
    fn parse(object: Path, body: &[u8]) -> Result<Self> {
        let corrupt = |what: String| Error::corrupt(object.to_string(), what);
        let Claim { work, relies_on, waits } =
            serde_json::from_slice(body).map_err(|e| corrupt(e.to_string()))?;
        let parse = |name: &String| {
            let backup = BackupId::parse(&Path::from(name.as_str()));
            backup.ok_or_else(|| corrupt(format!("it relies on {name:?}, which is no backup")))
        };
        let relies_on = relies_on.iter().map(parse).collect::<Result<_>>()?;
        Ok(Self { object, work, relies_on, waits })
    }
}

/// The leases of others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leases {
    pub(crate) live: Vec<Held>,
    /// Nobody's any more, and whatever else lies there and is as old.
    pub(crate) expired: Vec<Path>,
    /// The store's clock.
    pub(crate) now_ms: u64,
}

impl Leases {
    pub(crate) fn of(&self, work: Work) -> impl Iterator<Item = &Held> {
        self.live.iter().filter(move |held| held.work == work)
    }
}

pub(crate) fn written_ms(meta: &ObjectMeta) -> u64 {
    u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0)
}

/// Whether a lease written then is nobody's any more.
pub(crate) fn is_expired(written_ms: u64, now_ms: u64, times: LeaseTimes) -> bool {
    let (age, ahead) = (now_ms.saturating_sub(written_ms), written_ms.saturating_sub(now_ms));
    age > times.expiry.as_millis() as u64 || ahead > AHEAD_MAX.as_millis() as u64
}

/// All leases but `own`, as of now by the store's clock, which a probe tells: `own` may be minutes old.
pub(crate) async fn held(store: &Store, own: &Lease) -> Result<Leases> {
    let probe = Path::from(format!("{}/{:016x}", layout::PROBES, rand::random::<u64>()));
    store.put(&probe, &[]).await?;
    let gone = || Error::corrupt(probe.to_string(), "it was removed");
    let now_ms = written_ms(&store.head(&probe).await?.ok_or_else(gone)?);
    if let Err(error) = store.remove(&probe).await {
        tracing::debug!(%error, object = %probe, "a probe stays behind");
    }
    let mut leases = Leases { now_ms, ..Leases::default() };
    for object in store.list(layout::LEASES).await? {
        if object.location == own.object {
            continue;
        }
        if is_expired(written_ms(&object), now_ms, store.lease_times) {
            leases.expired.push(object.location);
            continue;
        }
        // Released meanwhile.
        let Some(body) = store.read_whole(&object.location, CLAIM_BYTES_MAX).await? else {
            continue;
        };
        if leases.live.len() == LIVE_MAX {
            let what = format!("there are more than {LIVE_MAX} that have not expired");
            return Err(Error::corrupt(layout::LEASES, what));
        }
        leases.live.push(Held::parse(object.location, &body)?);
    }
    Ok(leases)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_nobodys_when_it_is_old_or_from_a_time_to_come() {
        let (minute, now) = (60_000, 1_700_000_000_000);
        let day = 24 * 60 * minute;
        let is_expired = |written_ms| is_expired(written_ms, now, LeaseTimes::default());
        for (written_ms, expected) in [
            (0, true),
            (now - 15 * minute - 1, true),
            (now - 15 * minute, false),
            (now, false),
            (now + 15 * minute + 1, false),
            (now + day, false),
            (now + day + 1, true),
            (u64::MAX, true),
        ] {
            assert_eq!(is_expired(written_ms), expected, "{written_ms}");
        }
    }
}
