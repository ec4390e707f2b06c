//! Keyspaces that are built of trees from elsewhere: what is checked before a tree is believed, and what
//! is left when something is wrong.

use std::fs;
use std::path::{Path, PathBuf};

use esker::interchange::{
    ClosedTree, ClosedTrees, Workspace, build_keyspace, copy_tree, flushed_copy, provenance,
};
use esker::{Compression, Error, ErrorKind, Keyspace, PartitionOptions, Transfer};
use esker_tests::files::{copy_tree as copy_files, entries};
use esker_tests::{Content, Store, content, fill, fingerprint, open_content};
use tempfile::TempDir;

/// A closed keyspace, with a journal, and its trees.
struct Source {
    store: Store,
    content: Content,
    /// Where the trees are.
    dir: TempDir,
    trees: ClosedTrees,
}

impl Source {
    fn new() -> Self {
        let mut store = Store::with(|config| config.journal_segment_bytes(8192));
        let blobs = PartitionOptions::default().separate_values_from(Some(5));
        fill(&store.partition_with("blobs", blobs), 200);
        fill(&store.partition("tables"), 300);
        store.keyspace().flush().unwrap();
        fill(&store.partition("journal"), 100);
        store.write("tables", "in the journal", "v");
        let content = store.content();
        store.crash();
        let dir = tempfile::tempdir().unwrap();
        let trees = flushed_copy(store.path(), dir.path().join("copy"), Transfer::Auto).unwrap();
        Self { store, content, dir, trees }
    }

    fn tree(&self, name: &str) -> ClosedTree {
        self.trees.trees.iter().find(|tree| tree.name == name).unwrap().clone()
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    /// Builds, publishes, and says what went wrong.
    fn build(&self, trees: &[ClosedTree], transfer: Transfer) -> esker::Result<ClosedTrees> {
        let workspace = Workspace::beside(self.target(), self.store.path())?;
        let new = workspace.path().join("new");
        let built = build_keyspace(&new, trees, transfer)?;
        workspace.publish(&new)?;
        Ok(built)
    }

    #[track_caller]
    fn refuses(&self, trees: &[ClosedTree], kind: ErrorKind, words: &[&str]) {
        let error = self.build(trees, Transfer::Auto).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{word:?} is not in {error}");
        }
        assert_eq!(entries(self.dir.path()), ["copy"], "nothing is left");
    }
}

#[test]
fn a_keyspace_of_the_trees_of_another_one_has_its_content_and_another_identity() {
    let source = Source::new();
    let before = fingerprint(&source.store.path());
    for transfer in [Transfer::Auto, Transfer::Copy] {
        let built = source.build(&source.trees.trees, transfer).unwrap();
        assert_eq!(built.trees.len(), 3);
        // The creations of partitions have no entries.
        assert!(built.seqno <= source.trees.seqno && built.seqno > 600, "{}", built.seqno);
        let target = source.target();
        let verified = esker::verify(&target, Default::default()).unwrap();
        assert!(verified.is_sound() && verified.clean && verified.strays.is_empty());
        assert!(open_content(&target) == source.content);
        let keyspace = Keyspace::open(&target).unwrap();
        assert_eq!(keyspace.seqno(), built.seqno);
        assert!(content(&keyspace) == source.content);
        for tree in &built.trees {
            let partition = keyspace.open_partition(&tree.name).unwrap().unwrap();
            assert_eq!(partition.options(), tree.options);
            fill(&partition, 50);
            partition.compact().unwrap();
        }
        keyspace.close().unwrap();
        let original = esker::Config::new(source.store.path()).read_only(true).open().unwrap();
        assert_ne!(Keyspace::open(&target).unwrap().uuid(), original.uuid());
        assert!(content(&original) == source.content);
        drop(original);
        assert_eq!(fingerprint(&source.store.path()), before);
        fs::remove_dir_all(target).unwrap();
    }
}

#[test]
fn what_became_of_the_files_is_told_by_the_files() {
    let source = Source::new();
    let tree = source.tree("blobs");
    let (linked, copied) = (source.dir.path().join("linked"), source.dir.path().join("copied"));
    copy_tree(&tree.dir, &linked, Transfer::Auto).unwrap();
    copy_tree(&tree.dir, &copied, Transfer::Copy).unwrap();
    let of_links = provenance(&tree.dir, &linked).unwrap();
    assert_eq!((of_links.linked.files, of_links.copied.files, of_links.written.files), (2, 0, 0));
    let of_copies = provenance(&tree.dir, &copied).unwrap();
    assert_eq!((of_copies.copied, of_copies.linked.files), (of_links.linked, 0));
    let of_nothing = provenance(source.dir.path().join("nothing"), &linked).unwrap();
    assert_eq!((of_nothing.written, of_nothing.copied.files), (of_links.linked, 0));
    assert!(copy_tree(&tree.dir, &linked, Transfer::Auto).is_err(), "it is there already");
}

#[test]
fn names_and_options_that_no_partition_has_are_refused() {
    let source = Source::new();
    let tree = source.tree("tables");
    for name in ["", "a/b", "a\0b", &"p".repeat(256)] {
        let named = ClosedTree { name: name.to_owned(), ..tree.clone() };
        source.refuses(&[named], ErrorKind::FixInput, &["name"]);
    }
    source.refuses(&[tree.clone(), tree.clone()], ErrorKind::FixInput, &["\"tables\"", "two"]);
    let options = tree.options.clone().l0_runs(0);
    source.refuses(&[ClosedTree { options, ..tree }], ErrorKind::FixInput, &["l0_runs"]);
}

/// A merge moves separated values as they are, and would note another compression for them.
#[test]
fn options_of_separated_values_must_be_those_of_the_tree() {
    let source = Source::new();
    let (blobs, tables) = (source.tree("blobs"), source.tree("tables"));
    let with =
        |tree: &ClosedTree, options: PartitionOptions| [ClosedTree { options, ..tree.clone() }];
    let whole = with(&blobs, blobs.options.clone().separate_values_from(None));
    source.refuses(&whole, ErrorKind::FixInput, &["\"blobs\"", "separates values"]);
    let apart = with(&tables, tables.options.clone().separate_values_from(Some(9)));
    source.refuses(&apart, ErrorKind::FixInput, &["\"tables\"", "does not separate"]);
    let raw = with(&blobs, blobs.options.clone().blob_compression(Compression::None));
    source.refuses(&raw, ErrorKind::FixInput, &["\"blobs\"", "compressed"]);
    // Of values in tables each block says it for itself.
    let raw = with(&tables, tables.options.clone().compression(Compression::None));
    source.build(&raw, Transfer::Auto).unwrap();
    assert!(open_content(&source.target())["tables"] == source.content["tables"]);
}

#[test]
fn a_tree_that_lacks_something_is_corrupt() {
    let source = Source::new();
    let damaged = source.dir.path().join("copy/damaged");
    let refuse = |words: &[&str], damage: &dyn Fn(&Path)| {
        copy_files(&source.tree("blobs").dir, &damaged).unwrap();
        damage(&damaged);
        let tree = ClosedTree { dir: damaged.clone(), ..source.tree("blobs") };
        source.refuses(&[source.tree("tables"), tree], ErrorKind::Corrupt, words);
        fs::remove_dir_all(&damaged).unwrap();
    };
    let first = |dir: &'static str| {
        move |tree: &Path| {
            let dir = tree.join(dir);
            dir.join(&entries(&dir)[0])
        }
    };
    let (table, blob) = (first("tables"), first("blobs"));
    refuse(&["current", "missing"], &|tree| fs::remove_file(tree.join("current")).unwrap());
    refuse(&["tables", "missing"], &|tree| fs::remove_file(table(tree)).unwrap());
    refuse(&["blobs", "missing"], &|tree| fs::remove_file(blob(tree)).unwrap());
    refuse(&["blobs", "missing"], &|tree| fs::remove_dir_all(tree.join("blobs")).unwrap());
    refuse(&["no number"], &|tree| fs::write(tree.join("tables/no number"), "").unwrap());
    refuse(&["current"], &|tree| fs::write(tree.join("current"), [7; 25]).unwrap());
    for file in [&table as &dyn Fn(&Path) -> PathBuf, &blob] {
        refuse(&["damaged"], &|tree| fs::write(file(tree), "no table").unwrap());
    }
    source.build(&source.trees.trees, Transfer::Auto).unwrap();
}

#[test]
fn a_workspace_takes_no_name_that_is_taken_and_leaves_nothing() {
    let source = Source::new();
    let (dir, target) = (source.dir.path(), source.target());
    let workspace = Workspace::beside(&target, source.store.path()).unwrap();
    fs::create_dir(workspace.path().join("part")).unwrap();
    fs::create_dir(&target).unwrap();
    let part = workspace.path().join("part");
    let error = workspace.publish(&part).unwrap_err();
    assert!(matches!(error, Error::TargetExists { .. }), "{error}");
    assert_eq!(entries(dir), ["copy", "target"]);
    let error = Workspace::beside(&target, source.store.path()).unwrap_err();
    assert!(matches!(error, Error::TargetExists { .. }), "{error}");
    let error = Workspace::beside(source.store.path().join("in"), source.store.path()).unwrap_err();
    assert!(matches!(error, Error::TargetInside { .. }), "{error}");
    fs::remove_dir(&target).unwrap();
    drop(Workspace::beside(&target, source.store.path()).unwrap());
    assert_eq!(entries(dir), ["copy"]);
}
