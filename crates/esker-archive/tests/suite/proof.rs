//! What checks remember of the data that they have read: shares that add up to everything, beside other
//! checks and prunes, with credentials that only read, and over proofs that are not what was written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use esker::Keyspace;
use esker_archive::{
    CheckOptions, CheckReport, Key, Policy, PruneOptions, PushOptions, Repository,
    RepositoryOptions,
};
use object_store::path::Path;

use crate::content::noise;
use crate::objects::{DAY, Kind, Objects, refused};

/// What happens to the requests, and what they were.
#[derive(Debug, Default)]
struct Shelf {
    read: Mutex<BTreeSet<String>>,
    writes: AtomicU64,
    /// Nothing may be written, or nothing removed.
    read_only: AtomicBool,
    keeps: AtomicBool,
}

impl Shelf {
    fn meet(&self, kind: Kind, at: &Path) -> object_store::Result<()> {
        let is = |flag: &AtomicBool| flag.load(Ordering::SeqCst);
        match kind {
            Kind::Put | Kind::Delete => {
                self.writes.fetch_add(1, Ordering::SeqCst);
                if is(&self.read_only) || (kind == Kind::Delete && is(&self.keeps)) {
                    return Err(refused(at));
                }
            }
            Kind::Get => _ = self.read.lock().unwrap().insert(at.to_string()),
            Kind::Head | Kind::List => {}
        }
        Ok(())
    }
}

/// A repository on a shelf, with two backups of several partitions, a piece or two each.
struct Scene {
    objects: Arc<Objects>,
    shelf: Arc<Shelf>,
    repository: Repository,
    backups: Vec<String>,
}

impl Scene {
    fn new(key: Option<Key>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (objects, shelf) = (Arc::new(Objects::default()), Arc::new(Shelf::default()));
        let options = RepositoryOptions::default().attempts(1);
        let options = key.iter().fold(options, |options, key| options.key(key.clone()));
        let meets = Arc::clone(&shelf);
        let store = objects.store(Arc::new(move |kind, at| meets.meet(kind, at)));
        let repository = Repository::create_in(store, "", options).unwrap();
        let keyspace = Keyspace::open(dir.path().join("db")).unwrap();
        let mut backups = Vec::new();
        for round in 0..2 {
            for number in 0..15 {
                let name = format!("{round}-{number}");
                let partition = keyspace.partition(&name, Default::default()).unwrap();
                for key in 0..200_u32 {
                    partition.insert(key.to_be_bytes(), noise(128)).unwrap();
                }
            }
            keyspace.flush().unwrap();
            backups.push(repository.push(&keyspace, PushOptions::default()).unwrap().backup);
            if round == 0 {
                // What only the first backup names.
                keyspace.partition("0-0", Default::default()).unwrap().clear().unwrap();
                keyspace.partition("0-1", Default::default()).unwrap().clear().unwrap();
            }
        }
        Self { objects, shelf, repository, backups }
    }

    /// The report, and which pieces were read for it.
    fn check(&self, options: CheckOptions) -> (CheckReport, BTreeSet<String>) {
        self.shelf.read.lock().unwrap().clear();
        let report = self.repository.check(options).unwrap();
        assert!(report.strays.is_empty(), "{:?}", report.strays);
        let mut read = std::mem::take(&mut *self.shelf.read.lock().unwrap());
        read.retain(|object| object.starts_with("files/"));
        assert_eq!(read.len() as u64, report.read_pieces);
        (report, read)
    }
}

fn share(share: f64) -> CheckOptions {
    CheckOptions::default().read_data(share)
}

#[test]
fn twenty_checks_of_a_twentieth_each_prove_everything() {
    for key in [None, Some(Key::generate())] {
        let scene = Scene::new(key);
        let (before, _) = scene.check(share(0.0));
        assert!(before.pieces >= 30 && !before.remembered, "{before:?}");
        assert_eq!(before.proofs.never_proved_pieces, before.pieces);
        assert_eq!(before.proofs.oldest_proof_ms, None);
        let mut all = BTreeSet::new();
        for round in 1..=20 {
            let (report, read) = scene.check(share(0.05));
            assert!(report.is_sound() && report.remembered, "{report:?}");
            assert_eq!(
                report.read_pieces,
                before.pieces.div_ceil(20),
                "no more than was asked for"
            );
            all.extend(read);
            assert_eq!(report.proofs.proved_pieces, all.len() as u64, "round {round}");
            let sum = report.proofs.proved_bytes + report.proofs.never_proved_bytes;
            assert_eq!(sum, report.piece_bytes);
            assert_eq!(scene.objects.contents("proofs").len(), 1, "each replaces the one before");
        }
        assert_eq!(all, scene.objects.contents("files").into_keys().collect());
        let proofs = scene.repository.proofs().unwrap();
        assert!(proofs.is_complete() && proofs.warnings.is_empty(), "{proofs:?}");
        // From here on what was proved longest ago comes first, so the oldest moves.
        for _ in 0..20 {
            scene.check(share(0.05));
        }
        let later = scene.repository.proofs().unwrap();
        assert!(later.is_complete() && later.oldest_proof_ms > proofs.oldest_proof_ms);
        let (report, _) = scene.check(share(1.0));
        assert_eq!(report.read_pieces, report.pieces);
        assert_eq!(scene.repository.proofs().unwrap(), report.proofs);
    }
}

#[test]
fn an_encrypted_proof_tells_nothing_of_pieces_and_is_read_by_its_key_alone() {
    let scene = Scene::new(Some(Key::generate()));
    scene.check(share(1.0));
    let plain = Scene::new(None);
    plain.check(share(1.0));
    let sealed = scene.objects.contents("proofs").into_iter().next().unwrap();
    let open = plain.objects.contents("proofs").into_iter().next().unwrap();
    // Put where the other one is expected, neither is believed.
    scene.objects.put(&open.0, open.1);
    plain.objects.put(&sealed.0, sealed.1);
    for scene in [scene, plain] {
        let (report, _) = scene.check(share(0.0));
        assert_eq!((report.proofs.warnings.len(), report.proofs.never_proved_pieces), (1, 0));
    }
}

#[test]
fn two_checks_at_a_time_forget_nothing_of_each_other() {
    let scene = Scene::new(None);
    for _ in 0..5 {
        let before = scene.repository.proofs().unwrap().proved_pieces;
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let other = scene.objects.repository();
                    let report = other.check(share(0.1)).unwrap();
                    assert!(report.is_sound() && report.remembered, "{report:?}");
                });
            }
        });
        // They may have read the same, and one may not have seen another's.
        let after = scene.repository.proofs().unwrap();
        assert!(after.warnings.is_empty(), "{after:?}");
        let (report, _) = scene.check(share(0.0));
        let tenth = report.pieces.div_ceil(10);
        assert!(after.proved_pieces >= (before + tenth).min(report.pieces), "{after:?}");
    }
    // The same by hand: each has replaced the one that both had seen.
    let scene = Scene::new(None);
    scene.check(share(0.1));
    let (name, body) = scene.objects.contents("proofs").into_iter().next().unwrap();
    let (_, first) = scene.check(share(0.2));
    let of_first = scene.objects.contents("proofs").into_iter().next().unwrap();
    scene.objects.remove(&of_first.0);
    scene.objects.put(&name, body);
    let (_, second) = scene.check(share(0.2));
    scene.objects.put(&of_first.0, of_first.1);
    let both = scene.repository.proofs().unwrap();
    let (report, _) = scene.check(share(0.0));
    let read: BTreeSet<_> = first.union(&second).collect();
    assert_eq!(both.proved_pieces, report.pieces.div_ceil(10) + read.len() as u64);
    scene.check(share(0.01));
    assert_eq!(scene.objects.contents("proofs").len(), 1);
    assert!(scene.repository.proofs().unwrap().proved_pieces > both.proved_pieces);
}

#[test]
fn credentials_that_only_read_will_do_and_what_is_not_remembered_is_said() {
    let scene = Scene::new(None);
    scene.check(share(0.3));
    let known = scene.objects.contents("proofs");
    let proved = scene.repository.proofs().unwrap().proved_pieces;
    scene.shelf.read_only.store(true, Ordering::SeqCst);
    let (report, read) = scene.check(share(0.3));
    assert!(report.is_sound() && !report.remembered, "{report:?}");
    let why = report.not_remembered.unwrap();
    assert!(why.contains("proofs/") && why.contains("refused"), "{why}");
    assert_eq!(report.proofs.proved_pieces, proved + read.len() as u64, "what it has read counts");
    assert_eq!(scene.objects.contents("proofs"), known);
    // Asked not to, it does not even try.
    scene.shelf.read_only.store(false, Ordering::SeqCst);
    let requests = || scene.shelf.writes.load(Ordering::SeqCst);
    let before = requests();
    let (report, _) = scene.check(share(0.3).remember(false));
    assert!(!report.remembered && report.not_remembered.is_none(), "{report:?}");
    scene.check(share(0.0));
    assert_eq!((requests(), scene.objects.contents("proofs")), (before, known));
    // Without the right to remove, proofs pile up, say the same, and are one again after a prune.
    scene.shelf.keeps.store(true, Ordering::SeqCst);
    for _ in 0..25 {
        let (report, _) = scene.check(share(0.05));
        assert!(report.remembered && report.proofs.warnings.is_empty(), "{report:?}");
    }
    assert_eq!(scene.objects.contents("proofs").len(), 26);
    scene.shelf.keeps.store(false, Ordering::SeqCst);
    let before = scene.repository.proofs().unwrap();
    assert!(before.is_complete(), "{before:?}");
    for left in [11, 1, 1] {
        let policy = Policy::default().keep_last(2);
        scene.repository.prune(&policy, PruneOptions::default()).unwrap();
        assert_eq!(
            (scene.objects.contents("proofs").len(), scene.repository.proofs().unwrap()),
            (left, before.clone())
        );
    }
}

#[test]
fn proofs_that_are_not_what_was_written_are_named_and_not_believed() {
    let scene = Scene::new(None);
    scene.check(share(1.0));
    let (name, whole) = scene.objects.contents("proofs").into_iter().next().unwrap();
    let mut rotten = whole.clone();
    rotten[70] ^= 1;
    let far = "proofs/99999999999999999999-0000000000000000";
    let later = format!("proofs/{:020}-00000000000000aa", 1_u64 << 50);
    let newer = {
        let mut newer = whole.clone();
        newer[8] = 2;
        newer
    };
    for (at, body, what) in [
        (name.as_str(), rotten, "check"),
        (name.as_str(), whole[..60].to_vec(), "check"),
        (name.as_str(), Vec::new(), "cut short"),
        (name.as_str(), vec![0; (64 << 20) + 65], "longer than any"),
        (name.as_str(), newer, "check"),
        (name.as_str(), b"something else that is long enough for a header".repeat(2), "begin"),
        (later.as_str(), whole.clone(), "future"),
    ] {
        scene.objects.remove(&name);
        scene.objects.put(at, body);
        let (report, _) = scene.check(share(0.0));
        assert!(report.is_sound(), "it is no problem of a backup: {report:?}");
        let [warning] = &report.proofs.warnings[..] else { panic!("{report:?}") };
        assert!(warning.contains(at) && warning.contains(what), "{warning}");
        assert_eq!(report.proofs.proved_pieces, 0);
        // The next one that is written takes its place.
        let (report, _) = scene.check(share(0.5));
        assert_eq!(report.proofs.proved_pieces, report.read_pieces);
        let objects = scene.objects.contents("proofs");
        assert!(objects.len() == 1 && !objects.contains_key(at), "{:?}", objects.keys());
        scene.objects.remove(objects.keys().next().unwrap());
        scene.objects.put(&name, whole.clone());
    }
    // What is no proof by its name is nobody's.
    scene.objects.put(far, Vec::new());
    scene.objects.put("proofs/readme", Vec::new());
    let report = scene.repository.check(share(0.0)).unwrap();
    assert_eq!(report.strays, [far, "proofs/readme"]);
}

#[test]
fn a_damaged_piece_is_proved_no_more_and_read_again_at_once() {
    let scene = Scene::new(None);
    scene.check(share(1.0));
    let (object, whole) = scene.objects.contents("files").into_iter().nth(3).unwrap();
    let mut rotten = whole.clone();
    rotten[9] ^= 1;
    scene.objects.put(&object, rotten);
    let (report, _) = scene.check(share(1.0));
    assert_eq!((report.problems.len(), report.proofs.never_proved_pieces), (1, 1));
    for _ in 0..3 {
        let (report, read) = scene.check(share(0.01));
        assert!(read.contains(&object) && report.problems.len() == 1, "{report:?}");
    }
    scene.objects.remove(&object);
    let (report, _) = scene.check(share(1.0));
    assert_eq!((report.problems.len(), report.proofs.never_proved_pieces), (1, 1));
    scene.objects.put(&object, whole);
    let (report, read) = scene.check(share(0.01));
    assert!(read.contains(&object) && report.is_sound() && report.proofs.is_complete());
}

#[test]
fn the_proof_of_a_piece_that_is_pruned_goes_with_it() {
    let scene = Scene::new(None);
    scene.check(share(1.0));
    let before = scene.objects.contents("proofs");
    scene.objects.advance(2 * DAY);
    let policy = Policy::default().keep_last(1);
    scene.repository.prune(&policy, PruneOptions::default().dry_run(true)).unwrap();
    assert_eq!(scene.objects.contents("proofs"), before, "nothing is removed by asking");
    let pruned = scene.repository.prune(&policy, PruneOptions::default()).unwrap();
    assert_eq!(pruned.removed, scene.backups[..1]);
    assert!(pruned.removed_pieces > 0);
    let after = scene.objects.contents("proofs");
    let bytes = |proofs: &BTreeMap<String, Vec<u8>>| proofs.values().map(Vec::len).sum::<usize>();
    assert_eq!(bytes(&before) - bytes(&after), 8 * pruned.removed_pieces as usize);
    assert!(after.len() == 1 && after != before);
    let proofs = scene.repository.proofs().unwrap();
    assert!(proofs.is_complete() && proofs.warnings.is_empty(), "{proofs:?}");
    // With nothing to change it is left as it is.
    scene.repository.prune(&policy, PruneOptions::default()).unwrap();
    assert_eq!(scene.objects.contents("proofs"), after);
    // A check that began before the prune writes down what is gone; the next prune takes it away.
    let (old, body) = before.into_iter().next().unwrap();
    scene.objects.put(&old, body);
    scene.repository.prune(&policy, PruneOptions::default()).unwrap();
    assert_eq!(
        (scene.objects.contents("proofs").len(), bytes(&scene.objects.contents("proofs"))),
        (1, bytes(&after))
    );
}
