//! Steps that prune.

use std::collections::BTreeSet;
use std::time::Duration;

use esker_archive::{Error, PruneOptions, Reason};

use super::super::rules::{Dated, Rules};
use super::{History, id_of, judge_error};

impl History {
    /// The backups by the manifests themselves; none if one of them cannot be read.
    pub(super) fn dated(&self) -> Option<Vec<Dated>> {
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

    pub(super) fn prune(&mut self) {
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
