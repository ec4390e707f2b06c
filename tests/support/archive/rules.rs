//! Retention once more, written without looking at the crate's: what a prune may not remove.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use esker_archive::Policy;

use crate::random::Seeded;

const HOUR_MS: u64 = 60 * 60 * 1000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// A policy as numbers; 0 is none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    pub last: u64,
    pub within_hours: u64,
    pub daily: u64,
    pub weekly: u64,
}

/// A backup as rules see it. They sort by time, then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dated {
    pub created_ms: u64,
    pub object: String,
    pub labelled: bool,
}

impl Rules {
    pub fn draw(random: &mut Seeded) -> Self {
        let mut rules = Self::default();
        while rules.last + rules.within_hours + rules.daily + rules.weekly == 0 {
            let mut number = |of: u64| if random.one_in(2) { random.below(of) } else { 0 };
            rules = Self {
                last: number(5),
                within_hours: number(200),
                daily: number(4),
                weekly: number(4),
            };
        }
        rules
    }

    pub fn policy(self) -> Policy {
        let mut policy = Policy::default().keep_last(self.last);
        policy = policy.keep_daily(self.daily).keep_weekly(self.weekly);
        if self.within_hours > 0 {
            policy = policy.keep_within(Duration::from_secs(self.within_hours * 60 * 60));
        }
        policy
    }

    /// The objects that stay, of any number of keyspaces.
    pub fn keep(self, backups: &[Dated], now_ms: u64) -> BTreeSet<String> {
        let mut keyspaces: BTreeMap<&str, BTreeSet<&Dated>> = BTreeMap::new();
        for backup in backups {
            let keyspace = backup.object.split('/').nth(1).expect("the name of a manifest");
            keyspaces.entry(keyspace).or_default().insert(backup);
        }
        let kept = keyspaces.values().flat_map(|backups| self.keep_of_one(backups, now_ms));
        kept.map(|backup| backup.object.clone()).collect()
    }

    fn keep_of_one<'a>(self, backups: &BTreeSet<&'a Dated>, now_ms: u64) -> BTreeSet<&'a Dated> {
        let mut kept: BTreeSet<&Dated> =
            backups.iter().copied().filter(|backup| backup.labelled).collect();
        kept.extend(backups.iter().rev().take(self.last as usize));
        if self.within_hours > 0 {
            let since = now_ms.saturating_sub(self.within_hours * HOUR_MS);
            kept.extend(backups.iter().filter(|backup| backup.created_ms > since));
            kept.extend(backups.iter().rev().find(|backup| backup.created_ms <= since));
        }
        for (count, days) in [(self.daily, 1), (self.weekly, 7)] {
            // The first of January 1970 was a Thursday.
            let shift = if days == 7 { 3 } else { 0 };
            let period = |backup: &Dated| (backup.created_ms / DAY_MS + shift) / days;
            let newest: BTreeMap<u64, &Dated> =
                backups.iter().map(|backup| (period(backup), *backup)).collect();
            kept.extend(newest.into_values().rev().take(count as usize));
        }
        kept
    }
}
