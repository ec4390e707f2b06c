//! What check, info and drill say of repositories that are whole, and of those that are not.

use std::fs;
use std::path::{Path, PathBuf};

use esker::Keyspace;
use esker_archive::{CheckOptions, CheckReport, Error, PushOptions, Repository, RestoreOptions};

use crate::content::{files_below, noise};

/// A repository in a directory, with two backups of a keyspace.
struct Scene {
    dir: tempfile::TempDir,
    repository: Repository,
    backups: Vec<String>,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("repository");
        let repository = Repository::create(at.to_str().unwrap(), Default::default()).unwrap();
        let keyspace = Keyspace::open(dir.path().join("db")).unwrap();
        let mut backups = Vec::new();
        for round in 0..2_u8 {
            let partition = keyspace.partition("p", Default::default()).unwrap();
            for key in 0..400_u32 {
                partition.insert([&[round], &key.to_be_bytes()[..]].concat(), noise(128)).unwrap();
            }
            keyspace.flush().unwrap();
            backups.push(repository.push(&keyspace, PushOptions::default()).unwrap().backup);
        }
        Self { dir, repository, backups }
    }

    fn check(&self, share: f64) -> CheckReport {
        self.repository.check(CheckOptions::default().read_data(share)).unwrap()
    }

    fn objects(&self, below: &str) -> Vec<PathBuf> {
        files_below(&self.path(below))
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join("repository").join(name)
    }

    fn name(&self, path: &Path) -> String {
        path.strip_prefix(self.path("")).unwrap().display().to_string()
    }
}

#[test]
fn a_whole_repository_is_sound_and_a_share_is_the_same_again() {
    let scene = Scene::new();
    let report = scene.check(1.0);
    assert!(report.is_sound() && report.unnamed.is_empty() && report.strays.is_empty());
    assert_eq!((report.backups, report.read_pieces), (2, report.pieces));
    assert_eq!(report.read_bytes, report.piece_bytes);
    assert_eq!(scene.check(0.0).read_pieces, 0);
    let chosen = |seed| {
        let options = CheckOptions::default().read_data(0.5).seed(seed);
        scene.repository.check(options).unwrap().read_bytes
    };
    for seed in 0..20 {
        assert_eq!(chosen(seed), chosen(seed));
    }
    let sum: u64 = (0..200).map(chosen).sum();
    let half = 100 * report.piece_bytes;
    assert!((half / 2..half * 3 / 2).contains(&sum), "{sum} of {half}");
    for share in [-0.1, 1.1, f64::NAN] {
        let error = scene.repository.check(CheckOptions::default().read_data(share)).unwrap_err();
        assert!(matches!(error, Error::InvalidInput(_)), "{error}");
    }
}

#[test]
fn every_object_that_is_gone_cut_or_rotten_is_a_problem_that_names_its_backups() {
    let scene = Scene::new();
    let pieces = scene.objects("files");
    for piece in &pieces {
        let whole = fs::read(piece).unwrap();
        let name = scene.name(piece);
        let problem = |what: &str, share: f64| {
            let report = scene.check(share);
            assert!(report.problems.iter().all(|p| p.object == name && p.what.contains(what)));
            let named: Vec<_> = report.problems.iter().flat_map(|p| p.backups.clone()).collect();
            assert!(!named.is_empty(), "{what}: {report:?}");
            assert!(named.iter().all(|backup| scene.backups.contains(backup)));
        };
        fs::remove_file(piece).unwrap();
        problem("is missing", 0.0);
        fs::write(piece, &whole[1..]).unwrap();
        problem("bytes where", 0.0);
        let mut rotten = whole.clone();
        rotten[whole.len() / 2] ^= 1;
        fs::write(piece, rotten).unwrap();
        problem("is corrupt", 1.0);
        fs::write(piece, &whole).unwrap();
        assert!(scene.check(1.0).is_sound());
    }
    let manifest = scene.objects("backups").pop().unwrap();
    let mut rotten = fs::read(&manifest).unwrap();
    rotten[60] ^= 1;
    fs::write(&manifest, rotten).unwrap();
    let report = scene.check(0.0);
    assert_eq!((report.backups, report.problems.len()), (1, 1), "{report:?}");
    assert_eq!(report.problems[0].object, scene.name(&manifest));
    let prune = scene.repository.prune(
        &esker_archive::Policy::default().keep_last(1),
        esker_archive::PruneOptions::default(),
    );
    assert!(matches!(prune, Err(Error::Corrupt { .. })), "{prune:?}");
    assert_eq!(scene.objects("files"), pieces, "nothing was removed on a guess");
}

#[test]
fn what_nobody_names_is_listed_and_no_problem() {
    let scene = Scene::new();
    let piece = "files/00/00000000000000000000000000000000-70000/0";
    for (name, bytes) in [(piece, 70), ("files/readme", 1), ("notes.txt", 2), ("backups/x", 3)] {
        fs::create_dir_all(scene.path(name).parent().unwrap()).unwrap();
        fs::write(scene.path(name), vec![0; bytes]).unwrap();
    }
    fs::create_dir_all(scene.path("leases")).unwrap();
    fs::write(scene.path("leases/00000000000000aa"), "{}").unwrap();
    let report = scene.check(1.0);
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.unnamed.len(), report.unnamed_bytes()), (1, 70));
    assert_eq!(report.strays, ["backups/x", "files/readme", "notes.txt"]);
    assert_eq!(report.leases, ["leases/00000000000000aa"]);
}

#[test]
fn info_says_what_a_backup_alone_pins() {
    let scene = Scene::new();
    let infos = scene.repository.infos().unwrap();
    let ids: Vec<_> = infos.iter().map(|info| info.backup.clone()).collect();
    assert_eq!(ids, scene.backups);
    // All tables of the first are in the second.
    assert_eq!(infos[0].pinned_bytes, 0);
    assert!(infos[1].pinned_bytes > 50_000 && infos[1].pinned_bytes < infos[1].stored_bytes);
    assert_eq!(infos[1].pinned_bytes, infos[1].added_bytes);
    for info in &infos {
        let id = scene.repository.find(Some(&info.backup)).unwrap();
        let again = scene.repository.info(id).unwrap();
        assert_eq!(again.pinned_bytes, info.pinned_bytes);
        assert_eq!(again.partitions, ["p"]);
    }
}

#[test]
fn a_drill_reads_everything_and_leaves_nothing() {
    let scene = Scene::new();
    let scratch = scene.dir.path().join("scratch");
    let report = scene.repository.drill(&scratch, RestoreOptions::default()).unwrap();
    assert_eq!(report.restore.backup, scene.backups[1]);
    assert_eq!((report.partitions.len(), report.partitions[0].entries), (1, 800));
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    let piece = scene.objects("files").pop().unwrap();
    fs::remove_file(piece).unwrap();
    let error = scene.repository.drill(&scratch, RestoreOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
}
