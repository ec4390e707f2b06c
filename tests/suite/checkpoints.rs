//! What checkpoints pin on the disk, to the block; and that what has expired goes, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use esker::{
    Checkpoints, Config, Keyspace, RemoveOptions, SkipReason, checkpoints, remove_expired,
};
use esker_tests::files::{entries, names};
use esker_tests::{Seeded, Store, fill, open_content};

/// Bytes on the disk of every inode below a directory.
fn inodes(root: &Path) -> BTreeMap<u64, u64> {
    let (mut found, mut pending) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
            let metadata = entry.metadata().unwrap();
            found.insert(metadata.ino(), metadata.blocks() * 512);
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    found
}

/// What `remove` frees: the blocks of the inodes that are not there any more.
fn freed_by(root: &Path, remove: impl FnOnce()) -> u64 {
    let before = inodes(root);
    remove();
    let after = inodes(root);
    before.iter().filter(|(inode, _)| !after.contains_key(inode)).map(|(_, bytes)| bytes).sum()
}

/// A keyspace beside a directory for checkpoints, which are taken with an expiry.
struct Scene {
    store: Store,
    backups: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let store = Store::with(|config| config.journal_segment_bytes(64 << 10));
        let backups = store.beside("backups");
        fs::create_dir(&backups).unwrap();
        Self { store, backups }
    }

    /// Takes a checkpoint that has expired already, or never does.
    fn take(&self, name: &str, expired: bool) -> PathBuf {
        let target = self.backups.join(name);
        let builder = self.store.keyspace().checkpoint();
        let builder = if expired { builder.expires_after(Duration::ZERO) } else { builder };
        builder.write_to(&target).unwrap();
        // The next one is newer by the clock as well.
        let taken = esker::read_listing(&target).unwrap().created_ms;
        while now_ms() <= taken {
            std::thread::yield_now();
        }
        target
    }

    /// Rewrites a partition, so that its old tables are those of checkpoints alone.
    fn rewrite(&self, partition: &str, entries: usize) {
        fill(&self.store.partition(partition), entries);
        self.store.partition(partition).insert(format!("{}", now_ms()), "v").unwrap();
        self.store.keyspace().flush().unwrap();
        self.store.partition(partition).compact().unwrap();
    }

    fn found(&self) -> Checkpoints {
        checkpoints([&self.backups]).unwrap()
    }

    fn root(&self) -> &Path {
        self.backups.parent().unwrap()
    }
}

fn now_ms() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64
}

fn pinned(found: &Checkpoints, path: &Path) -> u64 {
    found.checkpoints.iter().find(|c| c.path == path).expect("it is listed").pinned_bytes
}

#[test]
fn what_a_checkpoint_pins_is_what_its_removal_frees_to_the_block() {
    let mut random = Seeded::new("what_a_checkpoint_pins_is_what_its_removal_frees_to_the_block");
    for round in 0..6 {
        let mut scene = Scene::new();
        let mut paths = Vec::new();
        for number in 0..5 {
            for partition in ["a", "b", "c"] {
                if random.one_in(2) || number == 0 {
                    scene.rewrite(partition, 200 + random.below(2000) as usize);
                }
            }
            paths.push(scene.take(&number.to_string(), false));
        }
        // Files that only checkpoints have, and with half of the seeds some that several share.
        scene.rewrite("a", 100);
        scene.store.close();
        let found = scene.found();
        assert_eq!(found.checkpoints.len(), 5);
        let mut together = 0;
        while !paths.is_empty() {
            let found = scene.found();
            let path = paths.swap_remove(random.below(paths.len() as u64) as usize);
            let claimed = pinned(&found, &path);
            let freed = freed_by(scene.root(), || fs::remove_dir_all(&path).unwrap());
            assert_eq!(claimed, freed, "round {round}, {}", path.display());
            together += freed;
        }
        assert_eq!(found.pinned_together_bytes, together, "round {round}");
        for one in &found.checkpoints {
            assert!(one.pinned_bytes <= one.disk_bytes && one.files > 0, "{one:?}");
        }
        scene.store.open();
    }
}

#[test]
fn tables_that_two_checkpoints_share_and_the_keyspace_has_not_go_with_the_last_of_them() {
    let mut scene = Scene::new();
    scene.rewrite("a", 20_000);
    let (one, two) = (scene.take("1", false), scene.take("2", false));
    scene.store.partition("a").clear().unwrap();
    scene.store.keyspace().flush().unwrap();
    scene.store.close();
    scene.store.open();
    scene.store.close();
    let table = largest(&one);
    let bytes = table.metadata().unwrap().blocks() * 512;
    assert!(bytes > 50_000 && table.metadata().unwrap().nlink() == 2, "{table:?}: {bytes}");
    let found = scene.found();
    assert!(pinned(&found, &one) < bytes && pinned(&found, &two) < bytes, "{found:?}");
    let each = pinned(&found, &one) + pinned(&found, &two);
    assert!(found.pinned_together_bytes >= each + bytes, "{found:?}");
    fs::remove_dir_all(&one).unwrap();
    assert!(pinned(&scene.found(), &two) > bytes);
}

#[test]
fn a_file_that_somebody_linked_elsewhere_is_not_pinned() {
    let mut scene = Scene::new();
    scene.rewrite("a", 20_000);
    let one = scene.take("1", true);
    scene.take("2", false);
    scene.rewrite("a", 100);
    scene.store.close();
    fs::remove_dir_all(scene.backups.join("2")).unwrap();
    let table = largest(&one);
    let bytes = table.metadata().unwrap().blocks() * 512;
    let before = pinned(&scene.found(), &one);
    fs::hard_link(&table, scene.store.beside("kept")).unwrap();
    assert_eq!(pinned(&scene.found(), &one), before - bytes);
    // A second name inside is no reason to stay.
    fs::remove_file(scene.store.beside("kept")).unwrap();
    fs::hard_link(&table, one.join("second")).unwrap();
    let found = scene.found();
    assert_eq!(pinned(&found, &one), before);
    let freed = freed_by(scene.root(), || {
        let report = remove_expired([&one], RemoveOptions::default().even_newest(true)).unwrap();
        assert_eq!((report.freed_bytes, report.removed.len()), (before, 1));
    });
    assert_eq!(freed, before);
}

fn largest(checkpoint: &Path) -> PathBuf {
    let tables = names(checkpoint)
        .into_iter()
        .filter(|name| name.display().to_string().contains("/tables/"));
    let tables = tables.map(|name| checkpoint.join(name));
    tables.max_by_key(|path| path.metadata().unwrap().len()).expect("it has tables")
}

#[test]
fn what_is_no_checkpoint_is_told_apart() {
    let mut scene = Scene::new();
    scene.rewrite("a", 100);
    let one = scene.take("1", true);
    let written = scene.take("written", true);
    Keyspace::open(&written).unwrap().close().unwrap();
    fs::create_dir(scene.backups.join("empty")).unwrap();
    fs::write(scene.backups.join("notes"), "a file is nobody's business").unwrap();
    let hidden = scene.backups.join(".3.esker-0123456789abcdef");
    esker::cold_copy(&one, scene.backups.join("3"), Default::default()).unwrap();
    fs::rename(scene.backups.join("3"), &hidden).unwrap();
    let rotten = scene.take("rotten", true);
    let mut bytes = fs::read(rotten.join("CHECKPOINT")).unwrap();
    bytes[100] ^= 1;
    fs::write(rotten.join("CHECKPOINT"), bytes).unwrap();
    symlink(&one, scene.backups.join("latest")).unwrap();
    let check = |found: &[esker::SkippedDirectory]| {
        let mut found: Vec<_> = found.iter().map(|s| (s.path.clone(), s.reason.clone())).collect();
        let damaged = found.iter().position(|(path, _)| *path == rotten).unwrap();
        assert!(matches!(found.remove(damaged).1, SkipReason::Damaged(_)));
        let expected = [
            (hidden.clone(), SkipReason::Unfinished),
            (scene.backups.join("empty"), SkipReason::NoCheckpoint),
            (scene.backups.join("latest"), SkipReason::SymbolicLink),
            (written.clone(), SkipReason::Keyspace),
        ];
        assert_eq!(found, expected);
    };
    let found = scene.found();
    check(&found.skipped);
    assert_eq!(found.checkpoints.iter().map(|c| &c.path).collect::<Vec<_>>(), [&one]);
    // What cannot be read is not the newest of anything: the one that can be stays.
    let report = remove_expired([&scene.backups], Default::default()).unwrap();
    check(&report.skipped);
    assert_eq!((report.newest, report.removed.len()), (vec![one.clone()], 0));
    let before = entries(&scene.backups);
    // Given by itself, a keyspace is none either, be it open or not; neither is what is not there.
    for open in [true, false] {
        let given =
            [scene.store.path(), scene.store.beside("nothing"), scene.backups.join("notes")];
        let reasons: Vec<_> =
            checkpoints(given).unwrap().skipped.into_iter().map(|s| s.reason).collect();
        let expected = [SkipReason::NotADirectory, SkipReason::Keyspace, SkipReason::Missing];
        assert_eq!(reasons, expected);
        if open {
            scene.store.close();
        }
    }
    let options = RemoveOptions::default().even_newest(true).now_ms(u64::MAX);
    remove_expired([scene.store.path()], options).unwrap();
    scene.store.open();
    assert_eq!(entries(&scene.backups), before);
}

#[test]
fn expired_checkpoints_go_but_for_the_newest_of_each_keyspace() {
    let scene = Scene::new();
    let other = Store::new();
    other.write("p", "k", "v");
    scene.rewrite("a", 3000);
    let (one, two) = (scene.take("1", true), scene.take("2", true));
    scene.rewrite("a", 3000);
    let unlimited = scene.take("3", false);
    let four = scene.take("4", true);
    let foreign = scene.backups.join("foreign");
    other.keyspace().checkpoint().expires_after(Duration::ZERO).write_to(&foreign).unwrap();
    let dry = remove_expired([&scene.backups], RemoveOptions::default().dry_run(true)).unwrap();
    assert_eq!(entries(&scene.backups).len(), 5);
    let removed = |report: &esker::RemovalReport| -> Vec<PathBuf> {
        report.removed.iter().map(|removed| removed.checkpoint.path.clone()).collect()
    };
    // Nobody else may remove files meanwhile: a journal segment of an open keyspace may go.
    let mut scene = scene;
    scene.store.close();
    let dry = remove_expired([&scene.backups], RemoveOptions::default().dry_run(true))
        .inspect(|again| assert_eq!(removed(again), removed(&dry)))
        .unwrap();
    let mut report = None;
    let freed = freed_by(scene.root(), || {
        report = Some(remove_expired([&scene.backups], Default::default()).unwrap());
    });
    let report = report.unwrap();
    assert_eq!(removed(&report), [one, two]);
    assert_eq!((report.freed_bytes, dry.freed_bytes), (freed, freed));
    assert_eq!(removed(&dry), removed(&report));
    let freed: Vec<_> = report.removed.iter().map(|removed| removed.freed_bytes).collect();
    assert_eq!(freed, dry.removed.iter().map(|r| r.freed_bytes).collect::<Vec<_>>());
    let mut newest = report.newest;
    newest.sort();
    assert_eq!((newest, report.kept), (vec![four.clone(), foreign.clone()], 1));
    assert_eq!(entries(&scene.backups), ["3", "4", "foreign"]);
    for left in [&unlimited, &four, &foreign] {
        assert!(esker::verify(left, Default::default()).unwrap().is_sound());
    }
    // Among what is given: alone, each is the newest.
    let report = remove_expired([&four], Default::default()).unwrap();
    assert_eq!((report.newest, report.removed.len()), (vec![four.clone()], 0));
    let report = remove_expired([&four], RemoveOptions::default().even_newest(true)).unwrap();
    assert_eq!(
        (report.removed.len(), entries(&scene.backups)),
        (1, vec!["3".into(), "foreign".into()])
    );
}

#[test]
fn an_expiry_is_kept_in_the_checkpoint_and_counts_from_when_it_was_taken() {
    let scene = Scene::new();
    scene.rewrite("a", 100);
    scene.rewrite("b", 100);
    let day = Duration::from_secs(24 * 60 * 60);
    let (target, copy) = (scene.backups.join("1"), scene.backups.join("copy"));
    scene.store.keyspace().checkpoint().expires_after(day).verify(true).write_to(&target).unwrap();
    let listing = esker::read_listing(&target).unwrap();
    assert_eq!(listing.expires_ms, Some(listing.created_ms + 24 * 60 * 60 * 1000));
    assert_eq!(scene.found().checkpoints[0].expires_ms, listing.expires_ms);
    let expires_ms = listing.expires_ms.unwrap();
    for (now_ms, removed) in [(expires_ms - 1, 0), (expires_ms, 1)] {
        let options = RemoveOptions::default().even_newest(true).dry_run(true).now_ms(now_ms);
        let report = remove_expired([&target], options).unwrap();
        assert_eq!(report.removed.len(), removed);
    }
    // Whoever wants it for longer copies it.
    esker::cold_copy(&target, &copy, Default::default()).unwrap();
    assert_eq!(esker::read_listing(&copy).unwrap().expires_ms, None);
    let text = fs::read_to_string(copy.join("CHECKPOINT")).unwrap();
    assert!(!text.contains("expires"), "readers of before see nothing new");
    esker::keep_partitions(&target, ["a"]).unwrap();
    assert_eq!(esker::read_listing(&target).unwrap().expires_ms, listing.expires_ms);
    let longest = scene.backups.join("longest");
    scene.store.keyspace().checkpoint().expires_after(Duration::MAX).write_to(&longest).unwrap();
    assert_eq!(esker::read_listing(&longest).unwrap().expires_ms, Some(u64::MAX));
    assert!(esker::verify(&longest, Default::default()).unwrap().is_sound());
}

#[test]
fn a_checkpoint_that_somebody_has_open_stays() {
    let scene = Scene::new();
    scene.rewrite("a", 100);
    let (one, two) = (scene.take("1", true), scene.take("2", true));
    let options = || RemoveOptions::default().even_newest(true);
    let reader = Config::new(&one).read_only(true).open().unwrap();
    let report = remove_expired([&scene.backups], options()).unwrap();
    assert_eq!((report.in_use, report.removed.len()), (vec![one.clone()], 1));
    assert!(!two.exists());
    assert_eq!(reader.partitions(), ["a"]);
    reader.close().unwrap();
    let writer = Keyspace::open(&one).unwrap();
    let report = remove_expired([&scene.backups], options()).unwrap();
    assert!(report.removed.is_empty() && report.failed.is_empty(), "{report:?}");
    assert_eq!(report.skipped[0].reason, SkipReason::Keyspace);
    writer.close().unwrap();
    assert!(esker::verify(&one, Default::default()).unwrap().is_sound());
}

#[test]
fn what_an_interrupted_removal_left_goes_with_the_next_one() {
    let mut scene = Scene::new();
    scene.rewrite("a", 3000);
    let one = scene.take("1", true);
    let kept = scene.take("2", false);
    scene.store.close();
    let left = |files: usize| {
        // Killed behind the rename, when so many files were gone.
        let copy = scene.backups.join("copy");
        esker::cold_copy(&one, &copy, Default::default()).unwrap();
        let hidden = scene.backups.join(".copy.esker-removing-00000000000000aa");
        fs::rename(&copy, &hidden).unwrap();
        for name in names(&hidden).into_iter().take(files) {
            fs::remove_file(hidden.join(name)).unwrap();
        }
        hidden
    };
    let total = names(&one).len();
    // Given by its name, or by the directory that it was in.
    for (files, given) in
        (0..=total).flat_map(|f| [(f, scene.backups.join("copy")), (f, scene.backups.clone())])
    {
        let hidden = left(files);
        let found = scene.found();
        assert_eq!(found.checkpoints.len(), 2, "{files}: half of one is none");
        assert_eq!(found.skipped[0].reason, SkipReason::Unfinished);
        let dry = remove_expired([&given], RemoveOptions::default().dry_run(true).now_ms(0));
        assert_eq!(dry.unwrap().leftovers, vec![hidden.clone()]);
        let mut freed_bytes = 0;
        let freed = freed_by(scene.root(), || {
            // At the beginning of time nothing has expired.
            let report = remove_expired([&given], RemoveOptions::default().now_ms(0)).unwrap();
            assert_eq!(report.leftovers, vec![hidden.clone()]);
            freed_bytes = report.freed_bytes;
        });
        assert_eq!((freed_bytes, hidden.exists()), (freed, false), "{files}");
    }
    // Another removal that is at it is left alone; so is what only looks like one.
    let hidden = left(0);
    let reader = Config::new(&hidden).read_only(true).open().unwrap();
    let file = scene.backups.join(".f.esker-removing-00000000000000aa");
    fs::write(&file, "").unwrap();
    let link = scene.backups.join(".l.esker-removing-00000000000000aa");
    symlink(&kept, &link).unwrap();
    let report = remove_expired([&scene.backups], RemoveOptions::default().now_ms(0)).unwrap();
    assert!(report.leftovers.is_empty() && report.failed.is_empty(), "{report:?}");
    assert!(hidden.exists() && file.exists() && link.is_symlink());
    reader.close().unwrap();
    assert!(esker::verify(&kept, Default::default()).unwrap().is_sound());
}

#[test]
fn symbolic_links_are_never_followed() {
    let mut scene = Scene::new();
    scene.rewrite("a", 1000);
    let (one, two) = (scene.take("1", true), scene.take("2", true));
    scene.store.close();
    let outside = scene.store.beside("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    symlink(&outside, one.join("link")).unwrap();
    let linked = scene.store.beside("linked");
    symlink(&two, &linked).unwrap();
    let with_slash = PathBuf::from(format!("{}/", linked.display()));
    let options = || RemoveOptions::default().even_newest(true);
    for link in [&linked, &with_slash] {
        let report = remove_expired([link], options()).unwrap();
        assert_eq!(report.skipped[0].reason, SkipReason::SymbolicLink, "{link:?}");
        assert!(linked.is_symlink() && two.exists());
    }
    // A directory of checkpoints may be reached by one: each is found once.
    let shortcut = scene.store.beside("shortcut");
    symlink(&scene.backups, &shortcut).unwrap();
    let found = checkpoints([&shortcut, &scene.backups]).unwrap();
    assert_eq!(found.checkpoints.len(), 2);
    let report = remove_expired([&shortcut], options()).unwrap();
    assert_eq!(report.removed.len(), 2, "{report:?}");
    assert!(outside.join("precious").exists() && entries(&scene.backups).is_empty());
}

#[test]
fn checkpoints_that_come_and_go_meanwhile_are_no_error() {
    let scene = Scene::new();
    scene.rewrite("a", 500);
    let before = scene.store.content();
    let stays = scene.take("stays", false);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..40 {
                let one = scene.take(&format!("goes-{round}"), true);
                if round % 2 == 0 {
                    fs::remove_dir_all(one).unwrap();
                } else {
                    scene.store.partition("b").insert("k", "v").unwrap();
                    scene.store.partition("b").compact().unwrap();
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    let found = scene.found();
                    assert!(found.checkpoints.iter().any(|c| c.path == stays));
                    // Two removals at a time.
                    let report = remove_expired([&scene.backups], Default::default()).unwrap();
                    assert!(report.failed.is_empty(), "{report:?}");
                }
            });
        }
    });
    let report =
        remove_expired([&scene.backups], RemoveOptions::default().even_newest(true)).unwrap();
    assert!(report.failed.is_empty() && report.in_use.is_empty(), "{report:?}");
    assert_eq!(entries(&scene.backups), ["stays"]);
    assert!(open_content(&stays) == before);
}
