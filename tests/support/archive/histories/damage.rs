//! Steps that damage objects and put them back, and what a check must find.

use std::collections::BTreeSet;
use std::fs;

use esker_archive::{CheckOptions, ErrorKind, RestoreOptions};

use super::{Backup, Damage, History, flip, id_of, judge_content};

impl History {
    /// Restores a backup whole and takes note of what it is made of.
    pub(super) fn prove(&mut self, object: &str) {
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

    pub(super) fn prove_all(&mut self) {
        let unproved = |(_, backup): &(&String, &Backup)| backup.pieces.is_none();
        let objects: Vec<_> =
            self.backups.iter().filter(unproved).map(|(object, _)| object.clone()).collect();
        objects.iter().for_each(|object| self.prove(object));
    }

    /// Removes or changes some objects, or puts them back as they were.
    pub(super) fn damage(&mut self) {
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
    pub(super) fn heal(&mut self) {
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
    pub(super) fn log_since_damage_is_calm(&self) -> bool {
        let mut since = self.log.iter().rev().take_while(|line| !line.starts_with("damaged"));
        !since.any(|line| line.contains("pushes:") || line.contains("prunes:"))
    }

    pub(super) fn check(&mut self) {
        self.judge_check(0.0);
        if self.random.one_in(4) {
            self.check_data();
        }
    }

    pub(super) fn check_data(&mut self) {
        self.judge_check(1.0);
    }

    pub(super) fn judge_check(&mut self, share: f64) {
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
