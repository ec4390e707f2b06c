//! From asynchronous code: what may wait for the disk runs on threads that may wait.
//!
//! Handles are cheap clones, and iterators borrow nothing, so both can be moved there and back.
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::sync::Arc;

use esker::{
    Config, Durability, ErrorKind, PartitionOptions, Slice, TxKeyspace, TxKind, TxPartition,
};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};

/// The store as handlers share it.
struct Store {
    keyspace: TxKeyspace,
    visits: TxPartition,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

impl Store {
    /// A durable commit waits for a sync: not on a thread that others' futures need.
    async fn count(self: Arc<Self>, page: String) -> Result<u64> {
        let counted = spawn_blocking(move || {
            self.visits.update_fetch(page, |seen| Some((number(seen) + 1).to_be_bytes().into()))
        });
        Ok(number(counted.await??.as_ref()))
    }

    /// Many entries: one thread reads, as far ahead as there is room, and the task takes them as they come.
    fn stream(
        self: Arc<Self>,
        prefix: &'static str,
    ) -> mpsc::Receiver<esker::Result<(Slice, Slice)>> {
        let (sender, receiver) = mpsc::channel(64);
        spawn_blocking(move || match self.visits.prefix(prefix) {
            Ok(entries) => {
                for entry in entries {
                    // Whoever listened is gone.
                    if sender.blocking_send(entry).is_err() {
                        break;
                    }
                }
            }
            Err(error) => drop(sender.blocking_send(Err(error))),
        });
        receiver
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("db");
    let store = spawn_blocking(move || {
        let config = Config::new(path).durability(Durability::SyncData);
        let keyspace = config.open_transactional(TxKind::Optimistic)?;
        let visits = keyspace.partition("visits", PartitionOptions::default())?;
        esker::Result::Ok(Arc::new(Store { keyspace, visits }))
    });
    let store = store.await??;

    // Handlers at once: their commits share syncs.
    let mut handlers = JoinSet::new();
    for visitor in 0..200 {
        handlers.spawn(Arc::clone(&store).count(format!("page/{}", visitor % 10)));
    }
    while let Some(counted) = handlers.join_next().await {
        counted??;
    }

    let mut total = 0;
    let mut entries = Arc::clone(&store).stream("page/");
    while let Some(entry) = entries.recv().await {
        let (page, seen) = entry?;
        println!("{}: {}", String::from_utf8_lossy(&page), number(Some(&seen)));
        total += number(Some(&seen));
    }
    assert_eq!(total, 200);

    // A checkpoint takes as long as it takes; everybody else goes on.
    let (backup, taken) = (dir.path().join("backup"), Arc::clone(&store));
    let report = spawn_blocking(move || taken.keyspace.backup_to(backup)).await??;
    println!("commit {} after a pause of {:?}", report.seqno, report.freeze);
    let statistics = store.keyspace.statistics();
    println!("{} conflicts, {} syncs", statistics.conflicts, statistics.journal_syncs);

    // Closing writes and waits as well. Whoever still has a handle is told.
    let (closing, late) = (store.keyspace.clone(), Arc::clone(&store));
    spawn_blocking(move || closing.close()).await??;
    let refused = late.visits.insert("page/late", "").map_err(|error| error.kind());
    assert_eq!(refused, Err(ErrorKind::Closed));
    Ok(())
}

fn number(value: Option<&Slice>) -> u64 {
    value.and_then(|bytes| bytes[..].try_into().ok()).map_or(0, u64::from_be_bytes)
}
