//! To and from fjall 3: what each store's own crate reads is the same on both sides.
//!
//! The program does the work (`esker import-fjall`, `esker export-fjall`), in processes of its own; the
//! stock crates read what it made. Databases are random, with everything that fjall can leave in one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use esker::{CompactionStrategy, Config, CopyOptions, Keyspace, PartitionOptions, cold_copy};
use esker_tests::chaos::{self, Model, Rng};
use esker_tests::files::{Fingerprint, copy_tree, entries, names};
use esker_tests::mounts::Mount;
use esker_tests::{Store, fill, fingerprint, open_content, skip};
use fjall::compaction::{Fifo, Leveled};
use fjall::config::{BlockSizePolicy, CompressionPolicy};
use fjall::{CompressionType, Database, KeyspaceCreateOptions, KvSeparationOptions};
use tempfile::TempDir;

/// What the program answered.
pub struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// The report, of a run that had nothing to complain about.
    #[track_caller]
    fn report(&self) -> serde_json::Value {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        serde_json::from_str(&self.stdout).expect("nothing but JSON")
    }

    /// Failed with this code and one sentence that has all of these words.
    #[track_caller]
    fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        assert!(self.stderr.starts_with("esker: ") && self.stderr.lines().count() == 1);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {:?}", self.stderr);
        }
    }
}

fn command(verb: &str, source: &Path, target: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esker-with-fjall"));
    command.arg(verb).arg(source).arg(target);
    // The private views of read-only opens go where temporary files cost nothing.
    if Path::new("/dev/shm").is_dir() {
        command.env("TMPDIR", "/dev/shm");
    }
    command
}

fn run(verb: &str, source: &Path, target: &Path, more: &[&str]) -> Ran {
    let output = command(verb, source, target).args(more).output().expect("run the program");
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

fn import(source: &Path, target: &Path) -> Ran {
    run("import-fjall", source, target, &["--json"])
}

fn export(source: &Path, target: &Path) -> Ran {
    run("export-fjall", source, target, &["--json"])
}

/// Everything that stock fjall reads, from both ends and key by key.
fn read(path: &Path) -> Model {
    let database = Database::builder(path).open().expect("fjall opens it");
    let mut model = Model::new();
    for name in database.list_keyspace_names() {
        let keyspace = database.keyspace(&name, Default::default).expect("open");
        let owned = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner().expect("read");
            (key.to_vec(), value.to_vec())
        };
        let forward: Vec<_> = keyspace.iter().map(owned).collect();
        let mut backward: Vec<_> = keyspace.iter().rev().map(owned).collect();
        backward.reverse();
        assert!(forward == backward, "{:?}: the two directions differ", &*name);
        for (key, value) in &forward {
            let found = keyspace.get(key).expect("read");
            assert!(found.as_deref() == Some(&value[..]), "{:?}: {key:?}", &*name);
        }
        assert!(keyspace.get("no such key").expect("read").is_none());
        model.insert(name.to_string(), forward.into_iter().collect());
    }
    model
}

/// Exports a keyspace, and reads with stock fjall what came of it.
pub fn exported(source: &Path, target: &Path) -> Model {
    export(source, target).report();
    read(target)
}

/// Everything that esker reads: from both ends and key by key.
fn read_esker(keyspace: &Keyspace) -> Model {
    let model = chaos::content(keyspace).expect("read");
    for (name, entries) in &model {
        let partition = keyspace.open_partition(name).unwrap().unwrap();
        for (key, value) in entries {
            assert!(partition.get(key).unwrap().as_deref() == Some(&value[..]), "{name}: {key:?}");
        }
        assert!(partition.get("no such key").unwrap().is_none());
    }
    model
}

#[track_caller]
fn assert_same(expected: &Model, found: &Model, what: &str) {
    if let Some(difference) = chaos::difference(expected, found) {
        panic!("{what}: {difference}");
    }
}

/// Tables and blob files of a database or keyspace, by inode.
fn files_of_trees(root: &Path) -> BTreeMap<u64, PathBuf> {
    let is_tree_file = |name: &PathBuf| {
        let parent = name.parent().and_then(Path::file_name);
        // Those of fjall's own keyspace of names and options are nobody's business.
        let meta = name.starts_with("keyspaces/0");
        !meta && parent.is_some_and(|parent| parent == "tables" || parent == "blobs")
    };
    let inode = |name: PathBuf| (root.join(&name).metadata().unwrap().ino(), name);
    names(root).into_iter().filter(is_tree_file).map(inode).collect()
}

fn nothing_beside(target: &Path) {
    let beside = entries(target.parent().unwrap());
    assert!(!beside.iter().any(|name| name.contains(".esker-")), "{beside:?}");
}

/// A database of fjall's and what should be in it.
struct Theirs {
    dir: TempDir,
    database: Option<Database>,
    model: Model,
}

/// Everything that a keyspace can be told apart by.
fn keyspaces() -> Vec<(&'static str, KeyspaceCreateOptions)> {
    let separated = |bytes, compression| {
        let options = KvSeparationOptions::default()
            .separation_threshold(bytes)
            .compression(compression)
            .file_target_size(32 << 10);
        KeyspaceCreateOptions::default().with_kv_separation(Some(options))
    };
    let small = Leveled::default().with_l0_threshold(2).with_table_target_size(16 << 10);
    let small: Arc<Leveled> = Arc::new(small);
    vec![
        ("plain", KeyspaceCreateOptions::default()),
        ("packed", separated(200, CompressionType::Lz4).compaction_strategy(small.clone())),
        (
            "raw",
            separated(100, CompressionType::None)
                .data_block_compression_policy(CompressionPolicy::disabled()),
        ),
        (
            "small tables",
            KeyspaceCreateOptions::default()
                .data_block_size_policy(BlockSizePolicy::all(1 << 10))
                .max_memtable_size(8 << 10)
                .compaction_strategy(small),
        ),
        ("ingested", KeyspaceCreateOptions::default()),
        ("ingested, separated", separated(50, CompressionType::Lz4)),
        ("cleared", KeyspaceCreateOptions::default()),
        ("weakly removed", KeyspaceCreateOptions::default()),
        ("empty: größe #1", KeyspaceCreateOptions::default()),
    ]
}

impl Theirs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::builder(dir.path().join("database")).open().unwrap();
        Self { dir, database: Some(database), model: Model::new() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("database")
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("the database is open")
    }

    fn keyspace(&mut self, name: &str, options: KeyspaceCreateOptions) -> fjall::Keyspace {
        self.model.entry(name.to_owned()).or_default();
        self.database().keyspace(name, || options).unwrap()
    }

    /// A database with a keyspace of one entry.
    fn with(name: &str, key: &str) -> Self {
        let mut this = Self::new();
        this.keyspace(name, Default::default()).insert(key, "value").unwrap();
        this.model.get_mut(name).unwrap().insert(key.into(), b"value".to_vec());
        this
    }

    fn random(rng: &mut Rng, operations: u64) -> Self {
        let mut this = Self::new();
        let all = keyspaces();
        let opened: Vec<_> =
            all.into_iter().map(|(name, options)| (name, this.keyspace(name, options))).collect();
        for _ in 0..operations {
            let (name, keyspace) = &opened[rng.below(opened.len() as u64 - 1) as usize];
            this.step(rng, name, keyspace);
        }
        if rng.one_in(3) {
            opened.iter().for_each(|(_, keyspace)| keyspace.rotate_memtable_and_wait().unwrap());
        }
        this
    }

    fn step(&mut self, rng: &mut Rng, name: &str, keyspace: &fjall::Keyspace) {
        let key = format!("key {:03}", rng.below(300)).into_bytes();
        let of_model = self.model.get_mut(name).unwrap();
        match rng.below(1000) {
            0..5 => keyspace.rotate_memtable_and_wait().unwrap(),
            5..8 => keyspace.major_compact().unwrap(),
            8..20 if name.starts_with("ingested") => ingest(rng, keyspace, of_model),
            8..12 if name == "cleared" => {
                keyspace.clear().unwrap();
                of_model.clear();
            }
            _ if name == "weakly removed" => {
                // Of what was written once only.
                let key = format!("once {}", rng.bits()).into_bytes();
                keyspace.insert(key.clone(), "value").unwrap();
                of_model.insert(key.clone(), b"value".to_vec());
                if rng.one_in(2) {
                    keyspace.remove_weak(key.clone()).unwrap();
                    of_model.remove(&key);
                }
            }
            20..40 => {
                let mut batch = self.database().batch();
                for number in 0..1 + rng.below(8) {
                    let key = format!("batch {number}").into_bytes();
                    batch.insert(keyspace, key.clone(), "of a batch");
                    self.model.get_mut(name).unwrap().insert(key, b"of a batch".to_vec());
                }
                batch.commit().unwrap();
            }
            40..250 => {
                keyspace.remove(key.clone()).unwrap();
                of_model.remove(&key);
            }
            _ => {
                let value = value(rng);
                keyspace.insert(key.clone(), value.clone()).unwrap();
                of_model.insert(key, value);
            }
        }
    }

    fn close(&mut self) {
        drop(self.database.take());
    }

    /// Imports, and finds the source as it was, the report true, and both stores of one mind.
    fn check_import(&mut self, target: &Path, more: &[&str]) -> serde_json::Value {
        self.close();
        let before = fingerprint(&self.path());
        // Stock fjall changes what it opens.
        let copy = self.beside("read by fjall");
        copy_tree(&self.path(), &copy).unwrap();
        assert_same(&self.model, &read(&copy), "stock fjall, the source");
        fs::remove_dir_all(&copy).unwrap();
        let more = [&["--json"], more].concat();
        let report = run("import-fjall", &self.path(), target, &more).report();
        assert_unchanged(&before, &self.path());
        nothing_beside(target);
        let verified = esker::verify(target, Default::default()).unwrap();
        let spotless = verified.is_sound() && verified.clean && verified.strays.is_empty();
        assert!(spotless, "{verified:?}");
        let names: Vec<_> = self.model.keys().collect();
        assert_eq!(report["partitions"], serde_json::json!(names));
        assert_eq!(report["seqno"], verified.seqno);
        let keyspace = Config::new(target).read_only(true).open().unwrap();
        assert_same(&self.model, &read_esker(&keyspace), "esker, read-only");
        report
    }
}

#[track_caller]
fn assert_unchanged(before: &BTreeMap<PathBuf, Fingerprint>, source: &Path) {
    let after = fingerprint(source);
    for (name, state) in before {
        assert_eq!(Some(state), after.get(name), "{}", name.display());
    }
    assert_eq!(before.len(), after.len());
}

fn value(rng: &mut Rng) -> Vec<u8> {
    let len = if rng.one_in(4) { 40 + rng.below(2000) } else { rng.below(60) } as usize;
    if rng.one_in(2) { rng.bytes(len) } else { vec![rng.bits() as u8; len] }
}

/// Tables that bypass journal and memtables, with one number for all of their entries.
fn ingest(rng: &mut Rng, keyspace: &fjall::Keyspace, model: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
    let mut ingestion = keyspace.start_ingestion().unwrap();
    for number in 0..300 {
        if !rng.one_in(6) {
            continue;
        }
        let key = format!("key {number:03}").into_bytes();
        if rng.one_in(5) {
            ingestion.write_tombstone(key.clone()).unwrap();
            model.remove(&key);
        } else {
            let value = value(rng);
            ingestion.write(key.clone(), value.clone()).unwrap();
            model.insert(key, value);
        }
    }
    ingestion.finish().unwrap();
}

/// The keyspace at `target` takes writes, merges them with what it came with, and keeps both.
fn goes_on(target: &Path, model: &Model, rng: &mut Rng) {
    let mut model = model.clone();
    let config = || Config::new(target).memtable_bytes(16 << 10).journal_segment_bytes(1 << 20);
    let seqno = config().open().unwrap().seqno();
    for round in 0..4 {
        let keyspace = config().open().unwrap();
        assert_same(&model, &read_esker(&keyspace), "after a reopening");
        for (name, entries) in &mut model {
            let partition = keyspace.open_partition(name).unwrap().unwrap();
            for number in 0..300 {
                let key = format!("key {number:03}").into_bytes();
                if rng.one_in(8) {
                    partition.remove(&key[..]).unwrap();
                    entries.remove(&key);
                } else if rng.one_in(2) {
                    let value = value(rng);
                    partition.insert(&key[..], &value[..]).unwrap();
                    entries.insert(key, value);
                }
            }
            keyspace.flush().unwrap();
            partition.compact().unwrap();
        }
        assert!(keyspace.seqno() > seqno);
        assert_same(&model, &read_esker(&keyspace), "after a merge");
        let checkpoint = target.with_extension(format!("checkpoint {round}"));
        keyspace.checkpoint().verify(true).write_to(&checkpoint).unwrap();
        assert_same(&model, &open_content(&checkpoint), "a checkpoint");
        keyspace.close().unwrap();
    }
    let verified = esker::verify(target, Default::default()).unwrap();
    assert!(verified.is_sound() && verified.strays.is_empty(), "{verified:?}");
}

#[test]
fn an_imported_database_is_what_fjall_reads_and_goes_on_as_a_keyspace() {
    let mut rng = Rng::new(chaos::seed("an imported database"));
    for _ in 0..chaos::rounds(3) {
        let mut theirs = Theirs::random(&mut rng, 4000);
        let target = theirs.beside("keyspace");
        let report = theirs.check_import(&target, &[]);
        let (source, made) = (files_of_trees(&theirs.path()), files_of_trees(&target));
        let shared: Vec<_> = made.iter().filter(|(inode, _)| source.contains_key(inode)).collect();
        assert_eq!(report["linked"]["files"], shared.len(), "{report}");
        assert_eq!(report["copied"]["files"], 0, "no bytes of tables are copied: {report}");
        assert_eq!(report["written"]["files"], made.len() - shared.len(), "{report}");
        assert!(shared.len() > 10, "{report}");
        goes_on(&target, &theirs.model, &mut rng);
        // Whatever became of the target, it was its own.
        let copy = theirs.beside("read by fjall");
        copy_tree(&theirs.path(), &copy).unwrap();
        assert_same(&theirs.model, &read(&copy), "the source, in the end");
    }
}

#[test]
fn a_database_can_be_copied_instead_and_compared_by_the_program() {
    let mut rng = Rng::new(chaos::seed("a copied database"));
    let mut theirs = Theirs::random(&mut rng, 1500);
    let target = theirs.beside("keyspace");
    let report = theirs.check_import(&target, &["--copy", "--verify"]);
    assert_eq!(report["linked"]["files"], 0, "{report}");
    assert!(report["copied"]["bytes"].as_u64() > Some(0), "{report}");
    assert_eq!(report["verified"], true);
    for name in names(&target) {
        assert_eq!(target.join(&name).metadata().unwrap().nlink(), 1, "{}", name.display());
    }
    let again = theirs.beside("exported");
    let report = run("export-fjall", &target, &again, &["--json", "--copy", "--verify"]).report();
    assert_eq!((&report["linked"]["files"], &report["verified"]), (&0.into(), &true.into()));
    assert_same(&theirs.model, &read(&again), "there and back");
}

/// fjall counts from 0, esker from 1: what is to come must not show in what was.
#[test]
fn the_first_commits_of_a_database_are_seen_and_the_next_ones_are_new() {
    for key in [None, Some("the first")] {
        let mut theirs = match key {
            Some(key) => Theirs::with("p", key),
            None => {
                let mut theirs = Theirs::new();
                theirs.keyspace("p", Default::default());
                theirs
            }
        };
        let target = theirs.beside("keyspace");
        theirs.check_import(&target, &[]);
        let keyspace = Keyspace::open(&target).unwrap();
        let partition = keyspace.open_partition("p").unwrap().unwrap();
        let snapshot = keyspace.snapshot();
        partition.insert("the next", "v").unwrap();
        assert!(snapshot.get(&partition, "the next").unwrap().is_none());
        assert_eq!(snapshot.len(&partition).unwrap(), usize::from(key.is_some()));
        assert_eq!(partition.len().unwrap(), usize::from(key.is_some()) + 1);
    }
    let mut nothing = Theirs::new();
    let target = nothing.beside("keyspace");
    nothing.check_import(&target, &[]);
    fill(&Keyspace::open(&target).unwrap().partition("p", Default::default()).unwrap(), 10);
    assert_eq!(open_content(&target)["p"].len(), 10);
}

#[test]
fn a_database_whose_process_died_is_replayed_by_fjall() {
    let mut rng = Rng::new(chaos::seed("a crashed database"));
    let theirs = Theirs::random(&mut rng, 1500);
    // Written to by nobody now, but background merges may go on.
    while theirs.database().active_compactions() + theirs.database().outstanding_flushes() > 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    theirs.database().keyspace("plain", Default::default).unwrap().insert("last", "v").unwrap();
    let (crashed, copy) = (theirs.beside("crashed"), theirs.beside("read by fjall"));
    copy_tree(&theirs.path(), &crashed).unwrap();
    let journal = names(&crashed).into_iter().rfind(|n| n.extension() == Some("jnl".as_ref()));
    let journal = fs::File::options().write(true).open(crashed.join(journal.unwrap())).unwrap();
    let end = fs::read(theirs.path().join("0.jnl")).unwrap();
    let end = end.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    journal.set_len(end - 3).unwrap();
    let before = fingerprint(&crashed);
    let target = theirs.beside("keyspace");
    import(&crashed, &target).report();
    assert_unchanged(&before, &crashed);
    copy_tree(&crashed, &copy).unwrap();
    let expected = read(&copy);
    assert!(!expected["plain"].contains_key(&b"last"[..]), "its write was cut short");
    assert_same(&expected, &open_content(&target), "what was cut short");
}

#[test]
fn a_fifo_is_taken_over_with_its_limits_and_what_is_not_is_said() {
    let mut theirs = Theirs::new();
    let with = |strategy| KeyspaceCreateOptions::default().compaction_strategy(strategy);
    let fifo = theirs.keyspace("queue", with(Arc::new(Fifo::new(1 << 20, Some(9)))));
    let ratios = Leveled::default().with_level_ratio_policy(vec![5.0]);
    let steep = theirs.keyspace("steep", with(Arc::new(ratios)));
    for number in 0..40 {
        fifo.insert(format!("{number:02}"), "v").unwrap();
    }
    drop((fifo, steep));
    theirs.close();
    let target = theirs.beside("keyspace");
    let report = import(&theirs.path(), &target).report();
    assert_eq!(open_content(&target)["queue"].len(), 40, "the copy ends nothing");
    let keyspace = Config::new(&target).read_only(true).open().unwrap();
    let limits = CompactionStrategy::Fifo { limit_bytes: Some(1 << 20), ttl_secs: Some(9) };
    let expected = PartitionOptions::default().compaction_strategy(limits);
    assert_eq!(keyspace.open_partition("queue").unwrap().unwrap().options(), expected);
    drop(keyspace);
    let note = report["notes"][0].as_str().unwrap();
    assert!(note.contains("steep") && note.contains("ten times"), "{note}");
    let plain = run("import-fjall", &theirs.path(), &theirs.beside("again"), &[]);
    let lines: Vec<_> = plain.stdout.lines().map(|line| &line[..8]).collect();
    let expected =
        ["keyspace", "seqno   ", "total   ", "linked  ", "copied  ", "written ", "partitio"];
    assert_eq!(&lines[..7], expected, "{}", plain.stdout);
    assert!(plain.stdout.contains("note        \"steep\": "), "{}", plain.stdout);
    let quiet = run("import-fjall", &theirs.path(), &theirs.beside("quiet"), &["--quiet"]);
    assert_eq!((quiet.code, quiet.stdout.as_str()), (Some(0), ""));
}

#[test]
fn what_is_no_database_to_be_had_is_refused_and_nothing_is_left() {
    let mut theirs = Theirs::with("p", "key");
    let (source, target) = (theirs.path(), theirs.beside("keyspace"));
    import(&source, &target).fails(4, &["database", "open elsewhere"]);
    theirs.close();
    let before = fingerprint(&source);
    let odd = |name: &str, change: &dyn Fn(&Path)| {
        let dir = theirs.beside(name);
        copy_tree(&source, &dir).unwrap();
        change(&dir);
        dir
    };
    let version = |bytes: &'static [u8]| {
        move |dir: &Path| {
            fs::write(dir.join("version"), bytes).unwrap();
        }
    };
    import(&theirs.beside("missing"), &target).fails(1, &["missing", "does not exist"]);
    let two = odd("two", &version(b"FJL\x02"));
    import(&two, &target).fails(1, &["two is a database of fjall 2", "fjall's tools"]);
    let nine = odd("nine", &version(b"FJL\x09"));
    import(&nine, &target).fails(1, &["nine is a database of fjall 9"]);
    for bytes in [&b""[..], b"FJL", b"not fjall"] {
        fs::write(two.join("version"), bytes).unwrap();
        import(&two, &target).fails(1, &["two is not a fjall database"]);
    }
    let unmarked = odd("unmarked", &|dir| fs::remove_file(dir.join("version")).unwrap());
    import(&unmarked, &target).fails(1, &["unmarked is not a fjall database", "version"]);
    import(&source.join("version"), &target).fails(1, &["not a directory"]);
    let lockless = odd("lockless", &|dir| fs::remove_file(dir.join("lock")).unwrap());
    import(&lockless, &target).fails(1, &["lockless has no file \"lock\""]);
    let strange = odd("strange", &|dir| {
        fs::rename(dir.join("keyspaces/1"), dir.join("keyspaces/one")).unwrap();
    });
    import(&strange, &target).fails(1, &["keyspaces/one"]);
    let mut store = Store::new();
    store.close();
    import(&store.path(), &target).fails(1, &["is not a fjall database"]);
    fs::create_dir(&target).unwrap();
    import(&source, &target).fails(1, &["keyspace exists already"]);
    fs::remove_dir(&target).unwrap();
    import(&source, &source.join("inside")).fails(1, &["lies inside"]);
    import(&source, &theirs.beside("no/where")).fails(1, &["no"]);
    nothing_beside(&target);
    assert!(!target.exists());
    assert_unchanged(&before, &source);
}

#[test]
fn names_that_esker_does_not_take_are_named() {
    for name in ["a/b", "a\0b"] {
        let mut theirs = Theirs::with(name, "key");
        theirs.close();
        let target = theirs.beside("keyspace");
        let word = name.replace('\0', "\\0");
        import(&theirs.path(), &target).fails(1, &[&word, "slash or a NUL byte", "rename"]);
        assert!(!target.exists());
        nothing_beside(&target);
    }
}

/// An empty key goes to the journal before fjall asserts that there is none, and again at every open.
#[test]
fn a_database_that_fjall_itself_cannot_open_is_refused() {
    let mut theirs = Theirs::with("p", "key");
    let keyspace = theirs.keyspace("p", Default::default());
    let insert = AssertUnwindSafe(|| keyspace.insert("", "value"));
    assert!(std::panic::catch_unwind(insert).is_err());
    drop(keyspace);
    theirs.close();
    let before = fingerprint(&theirs.path());
    let target = theirs.beside("keyspace");
    let ran = import(&theirs.path(), &target);
    let last = ran.stderr.lines().last().unwrap();
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    assert!(last.starts_with("esker: fjall cannot open "), "{}", ran.stderr);
    assert!(!target.exists());
    nothing_beside(&target);
    assert_unchanged(&before, &theirs.path());
}

/// A file, and what happens to it.
type Damage<'a> = (&'a Path, &'a dyn Fn(&mut Vec<u8>));

#[test]
fn a_damaged_database_is_refused_with_the_file_and_left_as_it_is() {
    let mut rng = Rng::new(chaos::seed("a damaged database"));
    let mut theirs = Theirs::random(&mut rng, 1500);
    theirs.keyspace("plain", Default::default()).rotate_memtable_and_wait().unwrap();
    theirs.close();
    let target = theirs.beside("keyspace");
    let table = files_of_trees(&theirs.path()).into_values().next().unwrap();
    let current = table.parent().unwrap().parent().unwrap().join("current");
    let damages: [Damage<'_>; 4] = [
        (&table, &|bytes| bytes.truncate(100)),
        (&table, &|bytes| {
            let at = bytes.len() - 60;
            bytes[at] ^= 1;
        }),
        (&current, &|bytes| bytes[3] ^= 1),
        (&current, &|bytes| bytes.truncate(7)),
    ];
    for (number, (name, damage)) in damages.into_iter().enumerate() {
        let source = theirs.beside(&format!("damaged {number}"));
        copy_tree(&theirs.path(), &source).unwrap();
        let mut bytes = fs::read(source.join(name)).unwrap();
        damage(&mut bytes);
        fs::write(source.join(name), bytes).unwrap();
        let before = fingerprint(&source);
        import(&source, &target).fails(3, &[&source.join("keyspaces").display().to_string()]);
        assert_unchanged(&before, &source);
    }
    let source = theirs.beside("incomplete");
    copy_tree(&theirs.path(), &source).unwrap();
    fs::remove_file(source.join(&table)).unwrap();
    import(&source, &target).fails(3, &[&table.display().to_string(), "missing"]);
    let source = theirs.beside("with a stray");
    copy_tree(&theirs.path(), &source).unwrap();
    fs::write(source.join(&table).with_file_name("no number"), "").unwrap();
    import(&source, &target).fails(3, &["no number"]);
    assert!(!target.exists());
    nothing_beside(&target);
}

/// Whatever the moment, the name is not there or stands for everything.
#[test]
fn a_killed_conversion_leaves_nothing_under_the_name_of_its_target() {
    let mut rng = Rng::new(chaos::seed("a killed conversion"));
    let mut theirs = Theirs::random(&mut rng, 2500);
    theirs.close();
    let source = theirs.path();
    let keyspace = theirs.beside("keyspace");
    import(&source, &keyspace).report();
    let before = (fingerprint(&source), fingerprint(&keyspace));
    let mut unfinished = 0;
    for number in 0..chaos::rounds(16) {
        let target = theirs.beside(&format!("target {number}"));
        let (verb, from) = match number % 2 {
            0 => ("import-fjall", &source),
            _ => ("export-fjall", &keyspace),
        };
        let mut command = command(verb, from, &target);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(rng.below(80_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        if !target.exists() {
            unfinished += 1;
        } else if number % 2 == 0 {
            assert_same(&theirs.model, &open_content(&target), "what was finished");
        } else {
            assert_same(&theirs.model, &read(&target), "what was finished");
        }
    }
    assert!(unfinished > 0, "none was killed in time");
    assert_unchanged(&before.0, &source);
    assert_unchanged(&before.1, &keyspace);
}

#[test]
fn a_conversion_that_runs_out_of_space_leaves_nothing() {
    let mut rng = Rng::new(chaos::seed("a full disk"));
    let mut theirs = Theirs::random(&mut rng, 2500);
    theirs.close();
    let keyspace = theirs.beside("keyspace");
    import(&theirs.path(), &keyspace).report();
    let mount = match Mount::tmpfs(&theirs.beside("small"), 64 << 20) {
        Ok(mount) => mount,
        Err(reason) => return skip("conversions on a full disk", &reason),
    };
    // As much as both take, from next to nothing on.
    for left in [0, 20 << 10, 200 << 10, 700 << 10] {
        mount.fill_up("ballast", left).unwrap();
        let target = mount.path().join("target");
        for (verb, source) in [("import-fjall", theirs.path()), ("export-fjall", keyspace.clone())]
        {
            let ran = run(verb, &source, &target, &[]);
            if ran.code != Some(0) {
                assert!(ran.stderr.starts_with("esker: "), "{}", ran.stderr);
                assert!(ran.code == Some(1), "{:?} {}", ran.code, ran.stderr);
                assert_eq!(entries(mount.path()), ["ballast"], "with {left} left");
            }
            let _ = fs::remove_dir_all(&target);
        }
        fs::remove_file(mount.path().join("ballast")).unwrap();
    }
    let target = mount.path().join("target");
    let report = import(&theirs.path(), &target).report();
    assert_eq!(report["linked"]["files"], 0, "{report}");
    assert!(report["copied"]["files"].as_u64() > Some(0), "{report}");
    assert_same(&theirs.model, &open_content(&target), "on another filesystem");
    let back = mount.path().join("back");
    assert_same(&theirs.model, &exported(&keyspace, &back), "exported to another filesystem");
}

/// Options that esker and fjall both keep, one set for each partition.
fn partitions() -> Vec<(&'static str, PartitionOptions)> {
    let plain = PartitionOptions::default().table_bytes(64 << 10).block_bytes(1 << 10);
    vec![
        ("plain", plain.clone()),
        ("separated", plain.clone().separate_values_from(Some(100))),
        (
            "separated, raw",
            plain.separate_values_from(Some(50)).compression(esker::Compression::None),
        ),
        ("scans", PartitionOptions::scans()),
        ("write heavy: größe", PartitionOptions::write_heavy().filter_bits_per_key(0.5)),
        ("empty", PartitionOptions::default()),
    ]
}

/// A keyspace with tables of several levels, and with a journal.
fn ours(rng: &mut Rng) -> (Store, Model) {
    let store =
        Store::with(|config| config.memtable_bytes(32 << 10).journal_segment_bytes(16 << 10));
    let mut model = Model::new();
    let partitions: Vec<_> = partitions()
        .into_iter()
        .map(|(name, options)| {
            model.insert(name.to_owned(), BTreeMap::new());
            store.partition_with(name, options)
        })
        .collect();
    for _ in 0..6000 {
        let partition = &partitions[rng.below(partitions.len() as u64 - 1) as usize];
        let entries = model.get_mut(partition.name()).unwrap();
        let key = format!("key {:03}", rng.below(300)).into_bytes();
        match rng.below(2000) {
            0..5 => store.keyspace().flush().unwrap(),
            5..8 => partition.compact().unwrap(),
            8 => {
                partition.clear().unwrap();
                entries.clear();
            }
            9..13 => {
                let mut ingest = partition.ingest().unwrap();
                for number in (0..300).step_by(1 + rng.below(9) as usize) {
                    let (key, value) = (format!("key {number:03}").into_bytes(), value(rng));
                    ingest.insert(&key[..], &value[..]).unwrap();
                    entries.insert(key, value);
                }
                ingest.finish().unwrap();
            }
            13..400 => {
                partition.remove(&key[..]).unwrap();
                entries.remove(&key);
            }
            _ => {
                let value = value(rng);
                partition.insert(&key[..], &value[..]).unwrap();
                entries.insert(key, value);
            }
        }
    }
    (store, model)
}

/// Exports with the source as it was, and finds the report true and stock fjall of one mind.
fn check_export(source: &Path, target: &Path, model: &Model) {
    let before = fingerprint(source);
    let report = run("export-fjall", source, target, &["--json", "--verify"]).report();
    assert_unchanged(&before, source);
    nothing_beside(target);
    let (originals, made) = (files_of_trees(source), files_of_trees(target));
    let shared = made.keys().filter(|inode| originals.contains_key(inode)).count();
    assert_eq!(report["linked"]["files"], shared, "{report}");
    assert_eq!(report["copied"]["files"], 0, "no bytes of tables are copied: {report}");
    assert_eq!(report["written"]["files"], made.len() - shared, "{report}");
    assert_eq!(report["seqno"], esker::verify(source, Default::default()).unwrap().seqno);
    assert_same(model, &read(target), "stock fjall");
    assert_unchanged(&before, source);
}

#[test]
fn an_exported_keyspace_is_the_same_to_fjall_and_goes_on_there() {
    let mut rng = Rng::new(chaos::seed("an exported keyspace"));
    for _ in 0..chaos::rounds(2) {
        let (mut store, mut model) = ours(&mut rng);
        let checkpoint = store.beside("checkpoint");
        store.keyspace().backup_to(&checkpoint).unwrap();
        check_export(&checkpoint, &store.beside("of a checkpoint"), &model);
        store.crash();
        check_export(&store.path(), &store.beside("of a crash"), &model);
        let copy = store.beside("copy");
        cold_copy(store.path(), &copy, CopyOptions::default()).unwrap();
        check_export(&copy, &store.beside("of a copy"), &model);
        store.reopen();
        store.close();
        let target = store.beside("of a keyspace");
        check_export(&store.path(), &target, &model);
        for _ in 0..3 {
            let database = Database::builder(&target).open().unwrap();
            for (name, entries) in &mut model {
                let keyspace = database.keyspace(name, Default::default).unwrap();
                for number in 0..300 {
                    let key = format!("key {number:03}").into_bytes();
                    if rng.one_in(8) {
                        keyspace.remove(key.clone()).unwrap();
                        entries.remove(&key);
                    } else if rng.one_in(2) {
                        let value = value(&mut rng);
                        keyspace.insert(key.clone(), value.clone()).unwrap();
                        entries.insert(key, value);
                    }
                }
                keyspace.rotate_memtable_and_wait().unwrap();
                keyspace.major_compact().unwrap();
            }
            drop(database);
            assert_same(&model, &read(&target), "after writes and merges of fjall's");
        }
        let verified = esker::verify(store.path(), Default::default()).unwrap();
        assert!(verified.is_sound(), "the source stands by itself: {verified:?}");
    }
}

#[test]
fn there_and_back_content_and_options_are_the_same() {
    let mut rng = Rng::new(chaos::seed("there and back"));
    let (mut store, model) = ours(&mut rng);
    store.close();
    let (there, back) = (store.beside("there"), store.beside("back"));
    assert_same(&model, &exported(&store.path(), &there), "there");
    let report = import(&there, &back).report();
    // A filter of less than a bit is one of one bit.
    assert_eq!(report["notes"], serde_json::json!([]));
    assert_same(&model, &open_content(&back), "back");
    let keyspace = Keyspace::open(&back).unwrap();
    for (name, options) in partitions() {
        let options =
            if name.starts_with("write") { options.filter_bits_per_key(1.0) } else { options };
        let partition = keyspace.open_partition(name).unwrap().unwrap();
        assert_eq!(partition.options(), options, "{name}");
    }
    let original = Keyspace::open(store.path()).unwrap();
    assert_ne!(keyspace.uuid(), original.uuid(), "it is another keyspace");
    drop(keyspace);
    goes_on(&back, &model, &mut rng);
}

#[test]
fn what_is_no_keyspace_to_be_had_is_refused_and_nothing_is_left() {
    let mut store = Store::new();
    fill(&store.partition("p"), 100);
    let (source, target) = (store.path(), store.beside("database"));
    export(&source, &target).fails(4, &["keyspace", "open elsewhere"]);
    store.close();
    let before = fingerprint(&source);
    export(&store.beside("missing"), &target).fails(1, &["missing"]);
    let database = Theirs::with("p", "key");
    export(&database.path(), &target).fails(1, &["is not a keyspace"]);
    fs::create_dir(&target).unwrap();
    export(&source, &target).fails(1, &["database exists already"]);
    fs::remove_dir(&target).unwrap();
    export(&source, &source.join("inside")).fails(1, &["lies inside"]);
    export(&source, &store.beside("no/where")).fails(1, &["no"]);
    let damaged = store.beside("damaged");
    copy_tree(&source, &damaged).unwrap();
    fs::remove_file(damaged.join(files_of_trees(&damaged).into_values().next().unwrap())).unwrap();
    export(&damaged, &target).fails(3, &["damaged", "missing"]);
    nothing_beside(&target);
    assert!(!target.exists());
    assert_unchanged(&before, &source);
}

/// Every file of the trees is somebody's: what the program says of each kind adds up.
#[test]
fn inodes_of_the_target_are_those_of_the_source_and_of_nobody_else() {
    let mut theirs = Theirs::with("p", "key");
    let keyspace = theirs.keyspace("p", Default::default());
    keyspace.rotate_memtable_and_wait().unwrap();
    keyspace.insert("unflushed", "value").unwrap();
    drop(keyspace);
    theirs.close();
    let target = theirs.beside("keyspace");
    let report = import(&theirs.path(), &target).report();
    let (source, made) = (files_of_trees(&theirs.path()), files_of_trees(&target));
    let (source, made): (BTreeSet<_>, BTreeSet<_>) =
        (source.into_keys().collect(), made.into_keys().collect());
    assert_eq!((source.len(), made.len()), (1, 2));
    assert!(source.is_subset(&made));
    assert_eq!((&report["linked"]["files"], &report["written"]["files"]), (&1.into(), &1.into()));
    for name in ["current", "v1"] {
        for found in names(&target).iter().filter(|path| path.ends_with(name)) {
            assert_eq!(target.join(found).metadata().unwrap().nlink(), 1, "{}", found.display());
        }
    }
}
