//! An S3 endpoint behind a proxy, and a keyspace with three checkpoints of different content.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use esker::VerifyOptions;
use esker_archive::{
    CheckOptions, CheckReport, Error, PushOptions, Repository, RepositoryOptions, RestoreOptions,
};
use esker_tests::archive::proxy::Proxy;
use esker_tests::archive::s3::{self, S3};
use esker_tests::store::{Content, open_content};
use esker_tests::{Seeded, Store, files};
use object_store::ObjectStore;

pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Below it lies the repository in the bucket.
pub const PREFIX: &str = "some/where";
/// Longer than any answer takes.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Scene {
    pub s3: S3,
    pub proxy: Proxy,
    pub store: Store,
    pub checkpoints: Vec<PathBuf>,
    /// What each of them holds.
    pub contents: Vec<Content>,
    template: PathBuf,
    /// By their patience: to make one takes longer than what most tests do with it.
    clients: Mutex<BTreeMap<Duration, Arc<dyn ObjectStore>>>,
    calm: Repository,
}

impl Scene {
    /// With an empty repository.
    pub fn new(s3: S3) -> Self {
        let proxy = Proxy::start(s3.address());
        let store = Store::in_memory(|config| config);
        let (mut checkpoints, mut contents) = (Vec::new(), Vec::new());
        let mut random = Seeded::of(7);
        for round in 0..3_u8 {
            for name in ["p", "q"] {
                let partition = store.partition(name);
                for number in 0..60_u8 {
                    partition.insert([round, number], random.bytes(500)).unwrap();
                }
            }
            store.keyspace().flush().unwrap();
            store.write("p", "in the journal", &round.to_string());
            let path = store.beside(&format!("checkpoint {round}"));
            store.keyspace().backup_to(&path).unwrap();
            checkpoints.push(path);
            contents.push(store.content());
        }
        let client = client(&proxy, PATIENCE);
        let options = RepositoryOptions::default().impatient();
        let calm = Repository::create_in(Arc::clone(&client), PREFIX, options).unwrap();
        let clients = Mutex::new(BTreeMap::from([(PATIENCE, client)]));
        let template = store.beside("template");
        Self { s3, proxy, store, checkpoints, contents, template, clients, calm }
    }

    /// With backups of the first so many checkpoints, two days old, to which [`Scene::reset`] returns.
    pub fn with_backups(count: usize) -> Self {
        let scene = Self::new(S3::start());
        for checkpoint in &scene.checkpoints[..count] {
            scene.calm().push_directory(checkpoint, PushOptions::default()).unwrap();
        }
        files::copy_tree(&scene.s3.objects(), &scene.template).unwrap();
        scene.reset();
        scene
    }

    /// The bucket as it was.
    pub fn reset(&self) {
        self.proxy.pass();
        fs::remove_dir_all(self.s3.objects()).unwrap();
        files::copy_tree(&self.template, &self.s3.objects()).unwrap();
        self.age("", 2 * DAY);
    }

    /// Makes what is in the repository so old.
    pub fn age(&self, below: &str, age: Duration) {
        let root = self.s3.objects().join(PREFIX).join(below);
        if !root.is_dir() {
            return;
        }
        for name in files::names(&root) {
            let file = fs::File::options().write(true).open(root.join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
    }

    pub fn client(&self, timeout: Duration) -> Arc<dyn ObjectStore> {
        let mut clients = self.clients.lock().unwrap();
        Arc::clone(clients.entry(timeout).or_insert_with(|| client(&self.proxy, timeout)))
    }

    pub fn open(&self, attempts: u32, timeout: Duration) -> Result<Repository, Error> {
        let options = RepositoryOptions::default().impatient().attempts(attempts);
        Repository::open_in(self.client(timeout), PREFIX, options)
    }

    /// The repository without faults.
    pub fn calm(&self) -> &Repository {
        self.proxy.pass();
        &self.calm
    }

    /// The names of all objects below.
    pub fn objects(&self, below: &str) -> Vec<String> {
        let root = self.s3.objects().join(PREFIX).join(below);
        let names = if root.is_dir() { files::names(&root) } else { Vec::new() };
        names.iter().map(|name| format!("{below}/{}", name.display())).collect()
    }

    #[track_caller]
    pub fn assert_sound(&self) -> CheckReport {
        let report = self.calm().check(CheckOptions::default().read_data(1.0)).unwrap();
        assert!(report.is_sound() && report.strays.is_empty(), "{report:?}");
        report
    }

    /// Restores every backup that is listed and compares it with its checkpoint.
    #[track_caller]
    pub fn assert_restorable(&self) {
        let repository = self.calm();
        for listed in repository.list().unwrap() {
            let target = self.target();
            repository.restore(listed.id, &target, RestoreOptions::default()).unwrap();
            self.assert_exact(&target, listed.id.seqno);
            fs::remove_dir_all(target).unwrap();
        }
    }

    #[track_caller]
    pub fn assert_exact(&self, target: &Path, seqno: u64) {
        let of = |path: &PathBuf| esker::read_listing(path).unwrap().seqno == seqno;
        let number = self.checkpoints.iter().position(of).unwrap();
        assert_whole(target);
        assert_eq!(open_content(target), self.contents[number]);
    }

    /// A path that does not exist, with nothing unfinished beside it.
    pub fn target(&self) -> PathBuf {
        self.store.beside(&format!("restored {:x}", rand::random::<u64>()))
    }
}

fn client(proxy: &Proxy, timeout: Duration) -> Arc<dyn ObjectStore> {
    s3::client(&proxy.url(), timeout, false)
}

#[track_caller]
pub fn assert_whole(target: &Path) {
    let report = esker::verify(target, VerifyOptions::default()).unwrap();
    assert!(report.is_sound() && report.strays.is_empty(), "{report:?}");
}

/// An error names what it is about, and no credentials.
#[track_caller]
pub fn assert_telling(error: &Error) {
    let said = error.to_string();
    let names = ["REPOSITORY", "files", "backups", "leases", "probes", "in use", "no backup"];
    assert!(names.iter().any(|name| said.contains(name)), "{said} names nothing");
    assert_silent(&format!("{error} {error:?}"));
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        assert_silent(&format!("{cause} {cause:?}"));
        source = cause.source();
    }
}

#[track_caller]
pub fn assert_silent(text: &str) {
    for secret in [s3::ACCESS_KEY, s3::SECRET_KEY, "Signature=", "Authorization"] {
        assert!(!text.contains(secret), "{secret} is shown: {text}");
    }
}
