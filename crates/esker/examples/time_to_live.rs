//! Entries that end by themselves: whole lots of them by age (a FIFO), or each by the time in its value
//! (a compaction filter).
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use esker::{
    CompactionFilter, CompactionFilterFactory, CompactionStrategy, Config, FilterContext,
    FilterItem, PartitionOptions, Verdict,
};

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// A session: the time at which it ends, and whose it is.
fn session(ttl: Duration, user: &str) -> Vec<u8> {
    let ends_ms = now_ms() + ttl.as_millis() as u64;
    [&ends_ms.to_be_bytes()[..], user.as_bytes()].concat()
}

fn has_ended(session: &[u8], now_ms: u64) -> bool {
    session.first_chunk().is_some_and(|ends_ms| u64::from_be_bytes(*ends_ms) <= now_ms)
}

/// Drops the sessions that have ended when the compaction began.
struct EndedSessions {
    now_ms: u64,
}

impl CompactionFilter for EndedSessions {
    fn filter_item(&mut self, item: &FilterItem<'_>, _: &FilterContext) -> esker::Result<Verdict> {
        let ended = has_ended(&item.value()?, self.now_ms);
        Ok(if ended { Verdict::Remove } else { Verdict::Keep })
    }
}

struct Sessions;

impl CompactionFilterFactory for Sessions {
    fn make_filter(&self, _: &FilterContext) -> Box<dyn CompactionFilter> {
        Box::new(EndedSessions { now_ms: now_ms() })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    // Filters are given at every open: they are code, and code is not stored.
    let keyspace = Config::new(dir.path().join("db"))
        .compaction_filters(|name| match name {
            "sessions" => Some(Arc::new(Sessions)),
            _ => None,
        })
        .open()?;
    let sessions = keyspace.partition("sessions", PartitionOptions::default())?;
    // A log of which nothing older than a second is wanted, whatever the keys.
    let one_second = CompactionStrategy::Fifo { limit_bytes: None, ttl_secs: Some(1) };
    let options = PartitionOptions::default().compaction_strategy(one_second);
    let requests = keyspace.partition("requests", options)?;

    for number in 0..1000_u32 {
        let ttl = Duration::from_secs(if number % 10 == 0 { 3600 } else { 0 });
        sessions.insert(number.to_be_bytes(), session(ttl, "ada"))?;
        requests.insert(number.to_be_bytes(), "GET /")?;
    }
    // What has ended is there until a compaction comes across it: whoever reads looks at the time.
    let still_there = sessions.get(1_u32.to_be_bytes())?.unwrap_or_default();
    assert!(has_ended(&still_there, now_ms()));
    sessions.compact()?;
    println!("{} of 1000 sessions are left", sessions.len()?);
    assert_eq!(sessions.len()?, 100);

    // The log needs nobody: it is looked at every few hundred milliseconds.
    requests.compact()?;
    assert_eq!(requests.len()?, 1000);
    let begun = Instant::now();
    while !requests.is_empty()? {
        assert!(begun.elapsed() < Duration::from_secs(60), "the log does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("the log was empty after {:.1?}", begun.elapsed());

    let statistics = keyspace.statistics();
    for partition in &statistics.partitions {
        let (filtered, dropped) = (partition.filter_removed, partition.fifo_dropped_tables);
        println!("{}: {filtered} entries filtered, {dropped} tables dropped", partition.name);
    }
    Ok(())
}
