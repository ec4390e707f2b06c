//! Two who work at the same time and take turns at every request, as a seed has it: each of them may
//! pause as often as it makes requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use esker_archive::{
    Error, ErrorKind, Policy, PruneOptions, PushOptions, Repository, RepositoryOptions,
    RestoreOptions,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::scene::Scene;
use crate::content::{assert_exact, assert_sound, content};
use crate::objects::{DAY, Kind};

const SEEDS: u64 = 300;
/// Nobody waits for so long unless both wait.
const STUCK: Duration = Duration::from_secs(60);

/// Whose turn it is, of two.
struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    random: StdRng,
    turn: usize,
    ended: [bool; 2],
    /// How often it went from one to the other.
    switches: u64,
}

impl Turns {
    fn new(seed: u64) -> Arc<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        let turn = random.random_range(0..2);
        let state = State { random, turn, ended: [false; 2], switches: 0 };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Before each request: draws who goes on, and waits until that is `who`.
    fn next(&self, who: usize) {
        let mut state = self.state.lock().unwrap();
        if state.turn == who && !state.ended[1 - who] && state.random.random_range(0..2) == 0 {
            state.turn = 1 - who;
            state.switches += 1;
            self.changed.notify_all();
        }
        self.wait(who, state);
    }

    fn begin(&self, who: usize) {
        self.wait(who, self.state.lock().unwrap());
    }

    fn wait(&self, who: usize, state: std::sync::MutexGuard<'_, State>) {
        let waits = |state: &mut State| state.turn != who;
        let (state, waited) = self.changed.wait_timeout_while(state, STUCK, waits).unwrap();
        drop(state);
        assert!(!waited.timed_out(), "both wait");
    }

    fn end(&self, who: usize) {
        let mut state = self.state.lock().unwrap();
        state.ended[who] = true;
        state.turn = 1 - who;
        self.changed.notify_all();
    }
}

/// Ends the turns of one who panics as well.
struct Turn(Arc<Turns>, usize);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.end(self.1);
    }
}

#[derive(Copy, Clone, Debug)]
enum Work {
    /// Of one of the checkpoints, at this level.
    Push(usize, i32),
    /// Waiting for pushes for so many milliseconds: a push that waits for it is not waited for in vain.
    Prune(u64),
    /// Of one of the backups.
    Restore(usize),
}

impl Work {
    fn draw(random: &mut StdRng) -> Self {
        let which = random.random_range(0..2);
        match random.random_range(0..5) {
            0 => Self::Push(which, 1),
            1 => Self::Push(which, 9),
            2 | 3 => Self::Prune(20 * which as u64),
            _ => Self::Restore(which),
        }
    }

    /// Does it, and says whether that ended well; what may be in its way is no failure.
    fn run(self, scene: &Scene, repository: &Repository, target: &str) -> bool {
        match self {
            Self::Push(which, level) => {
                let options = PushOptions::default().level(level);
                repository.push_directory(&scene.checkpoints[which], options).unwrap();
                true
            }
            Self::Prune(millis) => {
                let options = PruneOptions::default().wait(Duration::from_millis(millis));
                match repository.prune(&Policy::default().keep_last(1), options) {
                    Err(error) if error.kind() == ErrorKind::Locked => false,
                    pruned => pruned.map(|_| true).unwrap(),
                }
            }
            Self::Restore(which) => {
                let (backup, target) = (scene.backups[which], scene.at(target));
                match repository.restore(backup, &target, RestoreOptions::default()) {
                    Err(Error::NoSuchBackup { .. }) => false,
                    restored => {
                        restored.unwrap();
                        assert_exact(&target, &scene.checkpoints[which]);
                        std::fs::remove_dir_all(&target).unwrap();
                        true
                    }
                }
            }
        }
    }
}

fn play(scene: &Scene, seed: u64, switches: &AtomicU64) -> usize {
    let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
    let works = [Work::draw(&mut random), Work::draw(&mut random)];
    // Young pieces and old ones are treated otherwise.
    let objects = scene.objects.fork();
    objects.advance(if random.random_range(0..4) == 0 { 0 } else { 2 * DAY });
    let turns = Turns::new(seed);
    let well = std::thread::scope(|scope| {
        let players = [0, 1].map(|who| {
            let (turns, objects) = (Arc::clone(&turns), Arc::clone(&objects));
            scope.spawn(move || {
                let at = Arc::clone(&turns);
                let hook = move |_: Kind, _: &object_store::path::Path| {
                    at.next(who);
                    Ok(())
                };
                let repository = objects.met(RepositoryOptions::default(), Arc::new(hook));
                let _turn = Turn(Arc::clone(&turns), who);
                turns.begin(who);
                works[who].run(scene, &repository, &format!("{seed} {who}"))
            })
        });
        players.map(|player| player.join().unwrap_or_else(|_| panic!("{works:?}")))
    });
    switches.fetch_add(turns.state.lock().unwrap().switches, Ordering::SeqCst);
    let repository = objects.repository();
    assert_sound(&repository);
    let listed = repository.list().unwrap();
    assert!(!listed.is_empty(), "{works:?}");
    for (number, listed) in listed.into_iter().enumerate() {
        let target = scene.at(&format!("{seed} restored {number}"));
        repository.restore(listed.id, &target, RestoreOptions::default()).unwrap();
        let of = |path: &&std::path::PathBuf| {
            esker::read_listing(path).unwrap().seqno == listed.id.seqno
        };
        let checkpoint = scene.checkpoints.iter().find(of).unwrap();
        assert!(content(&target) == content(checkpoint), "{works:?}");
        std::fs::remove_dir_all(&target).unwrap();
    }
    well.into_iter().filter(|well| *well).count()
}

#[test]
#[allow(clippy::print_stdout, reason = "a failing test shows its output, and so its seed")]
fn two_at_once_leave_all_that_is_listed_whole_whoever_goes_first_at_any_request() {
    let given = std::env::var("ESKER_SEED").ok().map(|seed| seed.parse().unwrap());
    let first = given.unwrap_or_else(rand::random::<u32>) as u64;
    let count = if given.is_some() { 1 } else { SEEDS };
    let scene = Scene::new(60);
    let (switches, mut well) = (AtomicU64::new(0), 0);
    for seed in first..first + count {
        println!("ESKER_SEED={seed}");
        well += play(&scene, seed, &switches);
    }
    if given.is_none() {
        let switches = switches.into_inner();
        assert!(switches > 5 * SEEDS && well > SEEDS as usize, "{switches} {well}");
    }
}
