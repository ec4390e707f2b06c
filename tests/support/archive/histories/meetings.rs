//! Steps in which two things happen at once.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use esker_archive::{Error, PruneOptions};

use super::super::rules::Rules;
use super::super::stage::Moment;
use super::push::Parcel;
use super::{DAY, History, MINUTE, id_of, judge_content};

impl History {
    /// Something else happens, from its beginning to its end, in the middle of something.
    pub(super) fn meet(&mut self) {
        // Time enough for those who are gone, so that nobody waits for them, and often for whatever is
        // named by nobody.
        self.stage.advance(if self.random.one_in(2) { 20 * MINUTE } else { 2 * DAY });
        let request = Moment::Request(self.random.below(45));
        let is_close = self.random.one_in(2);
        match self.random.below(3) {
            0 => {
                let root = *self.random.pick(&["leases/", "files/", "backups/"]);
                let close = Moment::Put(root);
                self.prune_during_push(if is_close { close } else { request });
            }
            1 => self.prune_during_restore(request),
            _ => {
                let root = *self.random.pick(&["backups/", "files/"]);
                let close = Moment::Delete(root);
                self.push_during_prune(if is_close { close } else { request });
            }
        }
        let listed = self.stage.objects("backups");
        self.backups.retain(|object, _| listed.contains(object));
        self.check();
        self.check_data();
        if self.damage.is_empty() {
            for object in listed {
                self.prove(&object);
            }
        }
    }

    /// A hook that prunes, and what came of it.
    pub(super) fn pruning_hook(
        &mut self,
    ) -> (impl FnOnce() + Send + use<>, mpsc::Receiver<esker_archive::Result<()>>) {
        let rules = Rules::draw(&mut self.random);
        let (repository, (done, ended)) = (self.calm(), mpsc::channel());
        let hook = move || {
            let prune = move || {
                let options = PruneOptions::default().wait(Duration::ZERO);
                done.send(repository.prune(&rules.policy(), options).map(|_| ())).expect("heard");
            };
            std::thread::spawn(prune).join().expect("it does not panic");
        };
        (hook, ended)
    }

    pub(super) fn judge_met(
        &mut self,
        what: &'static str,
        at: Moment,
        ended: Option<esker_archive::Result<()>>,
    ) {
        self.note(what, format!("{at:?}: {ended:?}"));
        if let Some(Err(error)) = ended {
            assert!(!self.scars.is_empty(), "nothing was in the way: {error}");
        }
    }

    pub(super) fn prune_during_push(&mut self, at: Moment) {
        let parcel = self.draw_parcel(true);
        let kept = parcel.kept.clone().expect("a directory");
        let (hook, ended) = self.pruning_hook();
        let client = self.stage.with_hook(at, hook);
        let pushed =
            self.open(&client, 1).and_then(|it| it.push_directory(&kept.path, parcel.options()));
        let ended = ended.try_recv().ok();
        self.judge_met("prunes during pushes", at, ended);
        self.judge_pushed(&parcel, pushed.map(|report| report.backup));
    }

    /// The backup is listed unless the prune removed it at once.
    pub(super) fn judge_pushed(&mut self, parcel: &Parcel, pushed: esker_archive::Result<String>) {
        match pushed {
            Ok(id) => {
                let listed = self.stage.objects("backups");
                let suspect = !self.damage.is_empty();
                if let Some(object) = listed.iter().find(|object| id_of(object) == id) {
                    self.backups.insert(object.clone(), parcel.backup(suspect));
                }
            }
            Err(error) => assert!(!self.scars.is_empty(), "nothing was in the way: {error}"),
        }
    }

    pub(super) fn prune_during_restore(&mut self, at: Moment) {
        let Some((object, id)) = self.draw_backup() else { return };
        let content = Arc::clone(&self.backups[&object].content);
        let (hook, ended) = self.pruning_hook();
        let client = self.stage.with_hook(at, hook);
        let target = self.new_path();
        let excused = self.is_excused(&object);
        match self.open(&client, 1).and_then(|it| it.restore(id, &target, Default::default())) {
            Ok(_) => judge_content(&target, &content),
            // Removed before it was looked for.
            Err(Error::NoSuchBackup { .. }) => {
                assert!(!self.stage.objects("backups").contains(&object));
            }
            Err(error) => assert!(excused, "nothing was in the way: {error}"),
        }
        let ended = ended.try_recv().ok();
        self.judge_met("prunes during restores", at, ended);
    }

    pub(super) fn push_during_prune(&mut self, at: Moment) {
        let parcel = self.draw_parcel(true);
        let (path, options) = (parcel.kept.clone().expect("a directory").path, parcel.options());
        let rules = Rules::draw(&mut self.random);
        let (going_on, goes_on) = mpsc::channel();
        let waiting = going_on.clone();
        let (done, ended) = mpsc::channel();
        let other = self.stage.that_tells(move || _ = waiting.send(()));
        let other = self.open(&other, 1).expect("nothing is in the way");
        let client = self.stage.with_hook(at, move || {
            std::thread::spawn(move || {
                done.send(other.push_directory(path, options)).expect("heard");
                _ = going_on.send(());
            });
            // It has ended, or waits for the prune.
            goes_on.recv().expect("one of both");
        });
        let options = PruneOptions::default().wait(Duration::ZERO);
        let pruned = self.open(&client, 1).and_then(|it| it.prune(&rules.policy(), options));
        let was_met = client.was_met();
        self.judge_met("pushes during prunes", at, was_met.then(|| pruned.map(|_| ())));
        if was_met {
            let pushed = ended.recv().expect("it ends");
            self.judge_pushed(&parcel, pushed.map(|report| report.backup));
        }
    }
}
