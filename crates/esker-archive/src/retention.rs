//! Retention: which backups stay, from nothing but their times, a policy and a clock.
//!
//! What must stay true: pure. A policy keeps at least one backup of every keyspace that has any; a
//! backup with a label stays; "within" keeps every moment of the time restorable, so the newest backup
//! that is older stays as well. Days, weeks and months are those of UTC; weeks begin on Monday.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::layout::BackupId;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Which backups stay. What any of the rules keeps stays; without a rule there is no policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Policy {
    last: u64,
    within: Option<Duration>,
    daily: u64,
    weekly: u64,
    monthly: u64,
}

impl Policy {
    /// The newest so many.
    pub fn keep_last(mut self, count: u64) -> Self {
        self.last = count;
        self
    }

    /// So many that every moment since then can be restored to: all that are not older, and the newest
    /// one that is.
    pub fn keep_within(mut self, time: Duration) -> Self {
        self.within = Some(time);
        self
    }

    /// The newest of each of the last so many days that have any.
    pub fn keep_daily(mut self, count: u64) -> Self {
        self.daily = count;
        self
    }

    /// The newest of each of the last so many weeks that have any.
    pub fn keep_weekly(mut self, count: u64) -> Self {
        self.weekly = count;
        self
    }

    /// The newest of each of the last so many months that have any.
    pub fn keep_monthly(mut self, count: u64) -> Self {
        self.monthly = count;
        self
    }

    /// Refuses a policy that would keep nothing.
    pub(crate) fn check(&self) -> Result<()> {
        if *self == Self::default() {
            let what = "a policy without a rule keeps nothing; say what to keep";
            return Err(Error::InvalidInput(what.into()));
        }
        Ok(())
    }
}

/// A backup as retention sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: BackupId,
    pub(crate) created_ms: u64,
    pub(crate) label: Option<String>,
}

/// Why a backup stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Reason {
    /// It has a label.
    Label,
    /// One of the newest.
    Last,
    /// Its time, or a moment of the time behind it, is within the duration.
    Within,
    /// The newest of a day.
    Daily,
    /// The newest of a week.
    Weekly,
    /// The newest of a month.
    Monthly,
    /// A push or a restore that is under way relies on it.
    InUse,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Label => "label",
            Self::Last => "last",
            Self::Within => "within",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::InUse => "in use",
        })
    }
}

/// What stays, with all reasons, and what goes; the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) keep: Vec<(BackupId, BTreeSet<Reason>)>,
    pub(crate) remove: Vec<BackupId>,
}

/// Decides for each keyspace alone.
pub(crate) fn plan(backups: &[Candidate], policy: &Policy, now_ms: u64) -> Plan {
    let mut keyspaces = BTreeMap::<u128, Vec<&Candidate>>::new();
    for backup in backups {
        keyspaces.entry(backup.id.uuid).or_default().push(backup);
    }
    let mut plan = Plan::default();
    for mut of_one in keyspaces.into_values() {
        of_one.sort_by_key(|backup| (backup.created_ms, backup.id));
        let reasons = reasons(&of_one, policy, now_ms);
        for (backup, reasons) in of_one.iter().zip(reasons) {
            if reasons.is_empty() {
                plan.remove.push(backup.id);
            } else {
                plan.keep.push((backup.id, reasons));
            }
        }
    }
    plan
}

/// Why each of the backups of one keyspace stays; the oldest comes first.
fn reasons(backups: &[&Candidate], policy: &Policy, now_ms: u64) -> Vec<BTreeSet<Reason>> {
    let mut reasons = vec![BTreeSet::new(); backups.len()];
    for (backup, reasons) in backups.iter().zip(&mut reasons) {
        if backup.label.is_some() {
            reasons.insert(Reason::Label);
        }
    }
    let last = usize::try_from(policy.last).unwrap_or(usize::MAX);
    for reasons in reasons.iter_mut().rev().take(last) {
        reasons.insert(Reason::Last);
    }
    if let Some(within) = policy.within {
        let limit = now_ms.saturating_sub(u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
        let first_inside = backups.partition_point(|backup| backup.created_ms <= limit);
        for reasons in &mut reasons[first_inside.saturating_sub(1)..] {
            reasons.insert(Reason::Within);
        }
    }
    let periods = [
        (policy.daily, Reason::Daily, day as fn(u64) -> u64),
        (policy.weekly, Reason::Weekly, week),
        (policy.monthly, Reason::Monthly, month),
    ];
    for (count, reason, period) in periods {
        let mut seen = BTreeSet::new();
        for (backup, reasons) in backups.iter().zip(&mut reasons).rev() {
            let period = period(backup.created_ms);
            if (seen.len() as u64) < count && seen.insert(period) {
                reasons.insert(reason);
            }
        }
    }
    reasons
}

/// Days since 1970-01-01.
fn day(ms: u64) -> u64 {
    ms / DAY_MS
}

/// Weeks that begin on Monday; 1970-01-01 was a Thursday.
fn week(ms: u64) -> u64 {
    (day(ms) + 3) / 7
}

/// Months since the year 0, by the Gregorian calendar.
fn month(ms: u64) -> u64 {
    // Counted from 0000-03-01, so that the leap day is the last of a year; an era is 400 years.
    let days = day(ms) + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    (era * 400 + year_of_era) * 12 + month_from_march + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 60 * 60 * 1000;
    /// 2026-03-01 00:00 UTC, a Sunday.
    const MARCH: u64 = 20_513 * DAY_MS;

    fn backup(uuid: u128, seqno: u64, created_ms: u64) -> Candidate {
        let id = BackupId { uuid, timeline: 1, seqno, tag: seqno };
        Candidate { id, created_ms, label: None }
    }

    fn kept(backups: &[Candidate], policy: &Policy, now_ms: u64) -> Vec<u64> {
        let plan = plan(backups, policy, now_ms);
        assert_eq!(plan.keep.len() + plan.remove.len(), backups.len());
        plan.keep.iter().map(|(id, _)| id.seqno).collect()
    }

    #[test]
    fn days_weeks_and_months_are_those_of_the_calendar() {
        assert_eq!(
            (month(0), month(31 * DAY_MS - 1), month(31 * DAY_MS)),
            (23_640, 23_640, 23_641)
        );
        assert_eq!(month(MARCH), 2026 * 12 + 2);
        assert_eq!(month(MARCH - 1), 2026 * 12 + 1);
        // 2024-02-29 and the day behind it.
        assert_eq!((month(19_782 * DAY_MS), month(19_783 * DAY_MS)), (24_289, 24_290));
        assert_eq!(week(MARCH) + 1, week(MARCH + DAY_MS), "Monday begins a week");
        assert_eq!(week(MARCH), week(MARCH - 6 * DAY_MS));
    }

    #[test]
    fn every_moment_within_stays_restorable() {
        let backups: Vec<_> = (0..10).map(|n| backup(1, n, MARCH + n * DAY_MS)).collect();
        let now = MARCH + 9 * DAY_MS + HOUR;
        let policy = Policy::default().keep_within(Duration::from_millis(3 * DAY_MS));
        // Three days ago there was no backup for an hour: the one before that stays.
        assert_eq!(kept(&backups, &policy, now), [6, 7, 8, 9]);
        assert_eq!(kept(&backups, &policy, now - HOUR), [6, 7, 8, 9]);
        assert_eq!(kept(&backups, &policy, now + 100 * DAY_MS), [9], "the last one always");
        assert_eq!(kept(&backups, &policy, 0).len(), 10, "a clock that went back keeps all");
        let for_ever = Policy::default().keep_within(Duration::MAX);
        assert_eq!(kept(&backups, &for_ever, now).len(), 10);
    }

    #[test]
    fn the_newest_of_each_period_stays() {
        let backups: Vec<_> = (0..200).map(|n| backup(1, n, MARCH + n * 12 * HOUR)).collect();
        let now = MARCH + 100 * DAY_MS;
        assert_eq!(kept(&backups, &Policy::default().keep_last(2), now), [198, 199]);
        assert_eq!(kept(&backups, &Policy::default().keep_daily(3), now), [195, 197, 199]);
        // 1 March + 99 days is Monday 8 June; Sundays are 7 June and 31 May.
        assert_eq!(kept(&backups, &Policy::default().keep_weekly(3), now), [183, 197, 199]);
        // 31 March, 30 April, 31 May, and the newest.
        assert_eq!(kept(&backups, &Policy::default().keep_monthly(9), now), [61, 121, 183, 199]);
        let several = Policy::default().keep_last(1).keep_daily(2).keep_monthly(2);
        assert_eq!(kept(&backups, &several, now), [183, 197, 199]);
    }

    #[test]
    fn keyspaces_are_apart_and_labels_stay() {
        let mut backups: Vec<_> = (0..4).map(|n| backup(1, n, MARCH + n)).collect();
        backups.push(backup(2, 9, MARCH - 400 * DAY_MS));
        backups[0].label = Some("before the upgrade".into());
        let plan = plan(&backups, &Policy::default().keep_last(1), MARCH);
        let kept: Vec<_> = plan.keep.iter().map(|(id, _)| id.seqno).collect();
        assert_eq!(kept, [0, 3, 9]);
        assert_eq!(plan.keep[0].1, BTreeSet::from([Reason::Label]));
        assert_eq!(plan.remove.iter().map(|id| id.seqno).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn any_policy_keeps_one_of_each_keyspace() {
        let policies = [
            Policy::default().keep_last(1),
            Policy::default().keep_within(Duration::ZERO),
            Policy::default().keep_daily(1),
            Policy::default().keep_weekly(1),
            Policy::default().keep_monthly(1),
        ];
        assert!(Policy::default().check().is_err());
        for policy in policies {
            policy.check().unwrap();
            for now in [0, MARCH, u64::MAX] {
                let backups = [backup(1, 1, MARCH), backup(1, 2, MARCH), backup(2, 3, 0)];
                let kept = kept(&backups, &policy, now);
                assert!(kept.contains(&2) && kept.contains(&3), "{policy:?} at {now}");
            }
        }
    }
}
