//! Online checkpoints: what is in them, how it got there, what they report.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use esker::{Config, ErrorKind, Keyspace, PartitionOptions, Phase, Transfer};
use esker_tests::files::{entries, names, segments};
use esker_tests::{Content, Store, content, fill, fingerprint, open_content, skip};

/// Three partitions, one with separated values; some in tables, some in the journal.
fn written() -> Store {
    let store = Store::with(|config| config.journal_segment_bytes(8192).memtable_bytes(1 << 20));
    let blobs = PartitionOptions::default().separate_values_from(Some(5));
    fill(&store.partition("a"), 300);
    fill(&store.partition_with("b", blobs), 100);
    store.keyspace().flush().unwrap();
    for name in ["a", "b", "c"] {
        store.write(name, "in the journal", "v");
        store.write(name, "key 000001", "overwritten in the journal");
    }
    store
}

fn without(content: &Content, name: &str) -> Content {
    let mut content = content.clone();
    content.remove(name);
    content
}

/// Sound, without strays, the expected content read-only and opened for writing.
fn check(checkpoint: &Path, expected: &Content) {
    let report = esker::verify(checkpoint, Default::default()).unwrap();
    assert!(report.is_sound() && report.clean && report.strays.is_empty(), "{report:?}");
    assert!(open_content(checkpoint) == *expected);
    let keyspace = Keyspace::open(checkpoint).unwrap();
    assert!(content(&keyspace) == *expected);
    keyspace.close().unwrap();
    assert!(open_content(checkpoint) == *expected);
}

fn inodes(root: &Path) -> BTreeMap<PathBuf, u64> {
    // In an open keyspace segments and obsolete tables may go meanwhile.
    let inode = |name: PathBuf| {
        let metadata = std::fs::metadata(root.join(&name)).ok()?;
        Some((name, metadata.ino()))
    };
    names(root).into_iter().filter_map(inode).collect()
}

/// Nothing unfinished beside the target, nothing staged in the source.
fn nothing_left(store: &Store, beside: &Path) {
    let unfinished: Vec<_> =
        entries(beside).into_iter().filter(|name| name.contains(".esker-")).collect();
    assert!(unfinished.is_empty(), "{unfinished:?}");
    assert!(entries(&store.path().join("staging")).is_empty());
}

#[test]
fn a_checkpoint_holds_exactly_the_commits_up_to_its_seqno_and_reports_them() {
    let store = written();
    let (expected, target) = (store.content(), store.beside("checkpoint"));
    let report = store.keyspace().backup_to(&target).unwrap();
    assert_eq!(report.seqno, store.keyspace().seqno());
    assert_eq!(report.partitions, ["a", "b", "c"]);
    assert!(report.left_out.is_empty());
    assert!(report.freeze <= report.pinned && report.pinned <= report.total, "{report:?}");
    assert_eq!(report.copied.files + report.reflinked.files, 0, "{report:?}");
    let source = inodes(&store.path());
    let shared: Vec<_> =
        inodes(&target).into_iter().filter(|(n, inode)| source.get(n) == Some(inode)).collect();
    assert_eq!(report.linked.files, shared.len() as u64, "what is reported as linked is");
    let bytes: u64 = shared.iter().map(|(n, _)| target.join(n).metadata().unwrap().len()).sum();
    assert_eq!(report.linked.bytes, bytes);
    assert!(serde_json::to_value(&report).unwrap().is_object());
    store.write("a", "after", "must not show");
    store.keyspace().drop_partition("c").unwrap();
    nothing_left(&store, target.parent().unwrap());
    check(&target, &expected);
}

#[test]
fn an_empty_keyspace_and_empty_partitions_can_be_checkpointed() {
    let store = Store::new();
    let report = store.keyspace().backup_to(store.beside("none")).unwrap();
    assert_eq!((report.seqno, report.linked.files), (0, 0));
    check(&store.beside("none"), &Content::new());
    store.partition("empty");
    store.keyspace().backup_to(store.beside("empty")).unwrap();
    check(&store.beside("empty"), &store.content());
}

#[test]
fn partitions_are_included_and_excluded_by_name() {
    let store = written();
    let (keyspace, all) = (store.keyspace(), store.content());
    let report = keyspace.checkpoint().exclude(["b"]).write_to(store.beside("not b")).unwrap();
    assert_eq!(
        (report.partitions, report.left_out),
        (vec!["a".into(), "c".into()], vec!["b".into()])
    );
    check(&store.beside("not b"), &without(&all, "b"));
    let report = keyspace
        .checkpoint()
        .include(["a"])
        .include(vec![String::from("c")])
        .write_to(store.beside("a and c"))
        .unwrap();
    assert_eq!(
        (report.partitions, report.left_out),
        (vec!["a".into(), "c".into()], vec!["b".into()])
    );
    check(&store.beside("a and c"), &without(&all, "b"));
    let both = keyspace.checkpoint().include(["a", "b"]).exclude(["a"]);
    assert_eq!(both.write_to(store.beside("b")).unwrap().partitions, ["b"]);
    let nothing = keyspace.checkpoint().include(Vec::<String>::new());
    let report = nothing.write_to(store.beside("nothing")).unwrap();
    assert_eq!((report.partitions.len(), report.left_out.len()), (0, 3));
    check(&store.beside("nothing"), &Content::new());
}

#[test]
fn a_partition_left_out_can_be_created_anew_in_the_checkpoint() {
    let store = written();
    let target = store.beside("checkpoint");
    store.keyspace().checkpoint().exclude(["c"]).write_to(&target).unwrap();
    let keyspace = Keyspace::open(&target).unwrap();
    let c = keyspace.partition("c", PartitionOptions::default()).unwrap();
    assert!(c.is_empty().unwrap(), "what the journal holds of the old one is not replayed");
    c.insert("new", "v").unwrap();
    drop(c);
    keyspace.close().unwrap();
    assert_eq!(open_content(&target)["c"].len(), 1);
}

#[test]
fn unknown_names_are_refused_before_anything_is_done() {
    let store = written();
    let target = store.beside("checkpoint");
    for builder in [
        store.keyspace().checkpoint().include(["a", "nobody"]),
        store.keyspace().checkpoint().exclude(["nobody"]),
    ] {
        let error = builder.write_to(&target).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FixInput);
        assert!(error.to_string().contains("nobody"), "{error}");
        assert!(!target.exists());
    }
    nothing_left(&store, target.parent().unwrap());
}

#[test]
fn a_flushed_checkpoint_has_no_journal_and_the_same_content() {
    let store = written();
    let (expected, target) = (store.content(), store.beside("checkpoint"));
    store.keyspace().checkpoint().flush_first(true).verify(true).write_to(&target).unwrap();
    assert!(segments(&target).is_empty());
    check(&target, &expected);
}

/// What is committed between the flush and the freeze is absorbed into the checkpoint's tables.
#[test]
fn a_flushed_checkpoint_under_writes_has_no_journal_either() {
    let store = written();
    let p = store.partition("a");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for number in 0..3_000 {
                p.insert(format!("under way {number:06}"), "v").unwrap();
            }
        });
        for number in 0.. {
            let target = store.beside(&format!("checkpoint {number}"));
            let builder = store.keyspace().checkpoint().flush_first(true).verify(true);
            let report = builder.write_to(&target).unwrap();
            assert!(segments(&target).is_empty());
            let copy = open_content(&target);
            let base = report.seqno;
            let count = copy["a"].keys().filter(|key| key.starts_with(b"under way")).count();
            let first = copy["a"].keys().filter(|key| key.starts_with(b"under way")).take(count);
            for (number, key) in first.enumerate() {
                assert_eq!(*key, format!("under way {number:06}").into_bytes(), "at {base}");
            }
            if writer.is_finished() {
                break;
            }
        }
        writer.join().unwrap();
    });
}

#[test]
fn a_copied_checkpoint_shares_no_inode_with_its_source() {
    let store = written();
    let (expected, target) = (store.content(), store.beside("checkpoint"));
    let builder = store.keyspace().checkpoint().transfer(Transfer::Copy).verify(true);
    let report = builder.write_to(&target).unwrap();
    assert_eq!((report.linked.files, report.reflinked.files), (0, 0), "{report:?}");
    assert!(report.copied.files > 0 && report.copied.bytes > 0, "{report:?}");
    let source: Vec<u64> = inodes(&store.path()).into_values().collect();
    for (name, inode) in inodes(&target) {
        assert!(!source.contains(&inode), "{} is shared", name.display());
        assert_eq!(target.join(&name).metadata().unwrap().nlink(), 1, "{}", name.display());
    }
    nothing_left(&store, target.parent().unwrap());
    check(&target, &expected);
}

#[test]
fn mutable_files_are_never_linked() {
    let store = written();
    let target = store.beside("checkpoint");
    store.keyspace().backup_to(&target).unwrap();
    for name in names(&target) {
        let linked = target.join(&name).metadata().unwrap().nlink() > 1;
        let immutable = name.components().map(|c| c.as_os_str().to_str().unwrap()).any(|part| {
            let version = part.strip_prefix('v').is_some_and(|n| n.parse::<u64>().is_ok());
            version || ["tables", "blobs", "journal"].contains(&part)
        });
        assert!(immutable || !linked, "{} is linked", name.display());
    }
}

/// Several threads build the trees of a checkpoint; one of them fails.
#[test]
fn a_checkpoint_that_cannot_link_one_of_many_trees_fails_and_leaves_nothing() {
    let store = Store::new();
    for number in 0..40 {
        fill(&store.partition(&format!("p{number}")), 10);
    }
    store.keyspace().flush().unwrap();
    let table = names(&store.path())
        .into_iter()
        .filter(|name| name.components().any(|c| c.as_os_str() == "tables"))
        .nth(17)
        .unwrap();
    let (table, aside) = (store.path().join(table), store.beside("aside"));
    std::fs::rename(&table, &aside).unwrap();
    let target = store.beside("checkpoint");
    let error = store.keyspace().backup_to(&target).unwrap_err();
    assert!(error.to_string().contains(table.to_str().unwrap()), "{error}");
    assert!(!target.exists());
    nothing_left(&store, target.parent().unwrap());
    std::fs::rename(&aside, &table).unwrap();
    let expected = store.content();
    store.keyspace().backup_to(&target).unwrap();
    check(&target, &expected);
}

/// Without a commit since the last checkpoint there is nothing to swap, seal or sync.
#[test]
fn a_poisoned_keyspace_takes_no_checkpoint_even_with_nothing_to_sync() {
    let store = written();
    store.keyspace().backup_to(store.beside("first")).unwrap();
    // A directory in the place of the next table: the flush fails for good.
    let p = store.partition("a");
    let tables = names(&store.path()).into_iter().filter_map(|name| {
        let dir = name.parent()?.to_path_buf();
        (dir.ends_with("tables")).then_some(dir)
    });
    let dirs: std::collections::BTreeSet<_> = tables.collect();
    p.insert("to be flushed", "v").unwrap();
    store.keyspace().backup_to(store.beside("second")).unwrap();
    for dir in dirs {
        std::fs::remove_dir_all(store.path().join(dir)).unwrap();
    }
    store.keyspace().flush().unwrap_err();
    let error = store.keyspace().backup_to(store.beside("third")).unwrap_err();
    assert!(matches!(error, esker::Error::Poisoned { .. }), "{error}");
    assert!(!store.beside("third").exists());
}

/// lsm-tree checks no byte of a version manifest; a link to a bad one would be a bad checkpoint.
#[test]
fn a_rotten_or_missing_manifest_is_not_linked_but_written() {
    let store = written();
    let expected = store.content();
    let manifests: Vec<_> = names(&store.path())
        .into_iter()
        .filter(|name| name.file_name().unwrap().to_str().unwrap().starts_with('v'))
        .map(|name| store.path().join(name))
        .collect();
    assert!(manifests.len() >= 3, "{manifests:?}");
    let mut rotten = std::fs::read(&manifests[0]).unwrap();
    *rotten.last_mut().unwrap() ^= 1;
    std::fs::write(&manifests[0], rotten).unwrap();
    std::fs::remove_file(&manifests[1]).unwrap();
    let target = store.beside("checkpoint");
    store.keyspace().backup_to(&target).unwrap();
    for (number, manifest) in manifests.iter().enumerate() {
        let placed = target.join(manifest.strip_prefix(store.path()).unwrap());
        let links = placed.metadata().unwrap().nlink();
        assert_eq!(links, if number < 2 { 1 } else { 2 }, "{}", placed.display());
    }
    check(&target, &expected);
}

#[test]
fn progress_is_called_in_every_phase_and_reaches_its_totals() {
    let store = written();
    let mut seen = Vec::new();
    let builder = store.keyspace().checkpoint().flush_first(true).transfer(Transfer::Copy);
    builder
        .verify(true)
        .progress(|progress| seen.push(progress))
        .write_to(store.beside("checkpoint"))
        .unwrap();
    for phase in [Phase::Flush, Phase::Link, Phase::Copy, Phase::Sync, Phase::Verify] {
        assert!(seen.iter().any(|p| p.phase == phase), "{phase:?} is missing");
    }
    for phase in [Phase::Link, Phase::Copy, Phase::Verify] {
        let last = seen.iter().rfind(|p| p.phase == phase).unwrap();
        assert_eq!(last.files_done, last.files_total, "{last:?}");
        assert!(last.bytes_total == 0 || last.bytes_done == last.bytes_total, "{last:?}");
    }
}

#[test]
fn a_checkpoint_on_another_filesystem_is_copied_and_leaves_nothing_staged() {
    let store = written();
    let Some(elsewhere) = another_filesystem(&store.path()) else { return };
    let (expected, target) = (store.content(), elsewhere.path().join("checkpoint"));
    let report = store.keyspace().checkpoint().verify(true).write_to(&target).unwrap();
    assert_eq!(report.linked.files, 0, "{report:?}");
    assert!(report.copied.files > 0, "{report:?}");
    assert!(report.pinned <= report.total);
    nothing_left(&store, elsewhere.path());
    check(&target, &expected);
    let flushed = elsewhere.path().join("flushed");
    store.keyspace().checkpoint().flush_first(true).write_to(&flushed).unwrap();
    assert!(segments(&flushed).is_empty());
    check(&flushed, &expected);
    nothing_left(&store, elsewhere.path());
}

fn another_filesystem(source: &Path) -> Option<tempfile::TempDir> {
    let shm = Path::new("/dev/shm");
    let directory = tempfile::tempdir_in(shm).ok();
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).ok();
    if directory.is_none() || device(shm) == device(source) {
        skip("another filesystem", "/dev/shm is none that can be written to");
        return None;
    }
    directory
}

#[test]
fn concurrent_checkpoints_are_taken_one_after_the_other() {
    let store = written();
    let expected = store.content();
    std::thread::scope(|scope| {
        for number in 0..6 {
            let store = &store;
            scope.spawn(move || {
                store.keyspace().backup_to(store.beside(&format!("checkpoint {number}"))).unwrap();
            });
        }
    });
    for number in 0..6 {
        check(&store.beside(&format!("checkpoint {number}")), &expected);
    }
    assert_eq!(store.keyspace().statistics().checkpoints, 6);
}

#[test]
fn of_two_checkpoints_to_one_target_one_is_refused() {
    let store = written();
    let target = store.beside("checkpoint");
    let results: Vec<_> = std::thread::scope(|scope| {
        let start = || scope.spawn(|| store.keyspace().backup_to(&target));
        let both = [start(), start()];
        both.map(|thread| thread.join().unwrap()).into_iter().collect()
    });
    let [refused] = &results.iter().filter_map(|r| r.as_ref().err()).collect::<Vec<_>>()[..] else {
        panic!("{results:?}");
    };
    assert_eq!(refused.kind(), ErrorKind::FixInput, "{refused}");
    nothing_left(&store, target.parent().unwrap());
    check(&target, &store.content());
}

#[test]
fn a_checkpoint_can_be_checkpointed_again_and_again() {
    let store = written();
    let expected = store.content();
    store.keyspace().backup_to(store.beside("0")).unwrap();
    for generation in 0..4 {
        let keyspace = Keyspace::open(store.beside(&generation.to_string())).unwrap();
        assert_eq!(keyspace.uuid(), store.keyspace().uuid());
        let report = keyspace.backup_to(store.beside(&(generation + 1).to_string())).unwrap();
        assert_eq!(report.seqno, store.keyspace().seqno());
        keyspace.close().unwrap();
    }
    check(&store.beside("4"), &expected);
}

#[test]
fn the_first_writable_open_of_a_checkpoint_begins_a_timeline_of_its_own() {
    let store = written();
    let target = store.beside("checkpoint");
    store.keyspace().backup_to(&target).unwrap();
    assert!(target.join("CHECKPOINT").is_file());
    let reader = Config::new(&target).read_only(true).open().unwrap();
    assert_eq!(reader.timeline(), store.keyspace().timeline(), "reading branches nothing off");
    assert_eq!(reader.seqno(), store.keyspace().seqno());
    drop(reader);
    let keyspace = Keyspace::open(&target).unwrap();
    let timeline = keyspace.timeline();
    assert_eq!(keyspace.uuid(), store.keyspace().uuid());
    assert_ne!(timeline, store.keyspace().timeline());
    assert!(!target.join("CHECKPOINT").exists(), "it is a keyspace like any other now");
    assert!(entries(&target.join("staging")).is_empty());
    keyspace.close().unwrap();
    assert_eq!(Keyspace::open(&target).unwrap().timeline(), timeline, "the first open alone");
}

#[test]
fn deleting_the_source_leaves_the_checkpoint_whole_and_the_other_way_round() {
    let mut store = written();
    let expected = store.content();
    let (one, two) = (store.beside("one"), store.beside("two"));
    store.keyspace().backup_to(&one).unwrap();
    store.keyspace().backup_to(&two).unwrap();
    std::fs::remove_dir_all(&one).unwrap();
    assert!(store.content() == expected);
    store.close();
    std::fs::remove_dir_all(store.path()).unwrap();
    check(&two, &expected);
}

#[test]
fn a_checkpoint_changes_no_byte_while_its_source_goes_on() {
    let mut store = written();
    let target = store.beside("checkpoint");
    store.keyspace().backup_to(&target).unwrap();
    let before = fingerprint(&target);
    for name in ["a", "b", "c"] {
        let p = store.partition(name);
        fill(&p, 200);
        store.keyspace().flush().unwrap();
        p.compact().unwrap();
        p.clear().unwrap();
    }
    store.keyspace().drop_partition("a").unwrap();
    store.reopen();
    store.close();
    assert_eq!(fingerprint(&target), before);
}

#[test]
fn partitions_that_come_and_go_meanwhile_are_in_or_out_as_a_whole() {
    let store = Store::with(|config| config.memtable_bytes(2048).journal_segment_bytes(4096));
    fill(&store.partition("stays"), 50);
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            for round in 0..40 {
                let name = format!("comes and goes {}", round % 3);
                let p = store.partition(&name);
                let mut batch = store.keyspace().batch();
                for number in 0..20 {
                    batch.insert(&p, format!("{number}"), format!("{round}"));
                }
                batch.commit().unwrap();
                if round % 4 == 1 {
                    p.clear().unwrap();
                }
                if round % 2 == 0 {
                    store.keyspace().drop_partition(&name).unwrap();
                }
            }
        });
        for number in 0.. {
            let target = store.beside(&format!("checkpoint {number}"));
            store.keyspace().checkpoint().verify(true).write_to(&target).unwrap();
            let copy = open_content(&target);
            assert_eq!(copy["stays"].len(), 50);
            for (name, entries) in copy.iter().filter(|(name, _)| name.starts_with("comes")) {
                assert!([0, 20].contains(&entries.len()), "{name} has {}", entries.len());
                let values: std::collections::BTreeSet<_> = entries.values().collect();
                assert!(values.len() <= 1, "one batch wrote them");
            }
            if changes.is_finished() {
                break;
            }
        }
        changes.join().unwrap();
    });
}

#[test]
fn a_checkpoint_of_cleared_and_recreated_partitions_holds_what_is_there_now() {
    let store = written();
    store.partition("a").clear().unwrap();
    store.write("a", "after the clear", "v");
    store.keyspace().drop_partition("c").unwrap();
    store.write("c", "another c", "v");
    for flush in [false, true] {
        let target = store.beside(&format!("flush {flush}"));
        store.keyspace().checkpoint().flush_first(flush).write_to(&target).unwrap();
        check(&target, &store.content());
    }
}
