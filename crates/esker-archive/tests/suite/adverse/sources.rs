//! Checkpoints that are pushed and are not what they say, or have more files than may be open.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use esker::{Keyspace, PartitionOptions};
use esker_archive::{ErrorKind, PushOptions, Repository, RepositoryOptions, RestoreOptions};
use xxhash_rust::xxh3::xxh3_128;

use super::scene::Scene;
use crate::content::{assert_exact, copy_tree, noise, tables};
use crate::objects::{Kind, Objects};

const TABLES: usize = 300;
const DESCRIPTORS: u64 = 128;
/// Where the child works that may open few files.
const PLACE: &str = "ESKER_FEW_DESCRIPTORS";

#[test]
fn a_push_of_a_rotten_table_ends_before_the_manifest_and_names_it() {
    let scene = Scene::new(50);
    let checkpoint = scene.at("rotten");
    copy_tree(&scene.checkpoints[1], &checkpoint);
    let objects = Arc::new(object_store::memory::InMemory::new());
    let repository = Repository::create_in(objects, "", Default::default()).unwrap();
    let tables = tables(&checkpoint);
    assert!(tables.len() >= 2, "{tables:?}");
    for table in tables {
        let sound = fs::read(&table).unwrap();
        for (what, bytes) in [
            ("changed", [&sound[..100], &[sound[100] ^ 1], &sound[101..]].concat()),
            ("shorter", sound[..sound.len() - 1].to_vec()),
        ] {
            fs::write(&table, bytes).unwrap();
            let error = repository.push_directory(&checkpoint, PushOptions::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
            assert!(error.to_string().contains(table.to_str().unwrap()), "{what}: {error}");
            assert!(repository.list().unwrap().is_empty());
        }
        fs::write(&table, sound).unwrap();
    }
    repository.push_directory(&checkpoint, PushOptions::default()).unwrap();
    let newest = repository.find(None).unwrap();
    repository.restore(newest, scene.at("restored"), RestoreOptions::default()).unwrap();
    assert_exact(&scene.at("restored"), &scene.checkpoints[1]);
}

#[test]
fn a_checkpoint_that_lists_what_is_outside_of_it_is_refused_and_nothing_there_is_read() {
    let scene = Scene::new(20);
    let checkpoint = scene.at("list of lies");
    copy_tree(&scene.checkpoints[1], &checkpoint);
    let text = fs::read_to_string(checkpoint.join("CHECKPOINT")).unwrap();
    let (_, body) = text.split_once('\n').unwrap();
    let before = scene.objects.below("");
    for outside in ["../x", "/x", "partitions/../../x", "journal/../../x"] {
        // Nothing is there: who looked at it would say so.
        let body = body.replacen("\"path\":\"CATALOG\"", &format!("\"path\":\"{outside}\""), 1);
        assert!(body.contains(outside));
        let hash = xxh3_128(format!("ESKER-CHECKPOINT 1\n{body}").as_bytes());
        let text = format!("ESKER-CHECKPOINT 1 {hash:032x}\n{body}");
        fs::write(checkpoint.join("CHECKPOINT"), text).unwrap();
        let repository = scene.objects.repository();
        let error = repository.push_directory(&checkpoint, PushOptions::default()).unwrap_err();
        assert_ne!(error.kind(), ErrorKind::Io, "{error}");
        assert!(error.to_string().contains(outside), "{error}");
        assert_eq!(scene.objects.below(""), before);
    }
}

#[test]
fn a_table_that_changes_while_it_is_pushed_leaves_no_piece_of_what_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = Keyspace::open(dir.path().join("db")).unwrap();
    let partition = keyspace.partition("p", Default::default()).unwrap();
    partition.insert("more than a piece", noise(33 << 20)).unwrap();
    keyspace.flush().unwrap();
    let (checkpoint, objects) = (dir.path().join("checkpoint"), Arc::new(Objects::default()));
    keyspace.backup_to(&checkpoint).unwrap();
    objects.create();
    let table =
        tables(&checkpoint).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len());
    let (table, sound) = (table.clone().unwrap(), fs::read(table.unwrap()).unwrap());
    let (changed, flips) = (table.clone(), AtomicBool::new(true));
    let hook = move |kind: Kind, at: &object_store::path::Path| {
        // It was proved, and its first piece was read.
        let is_first = kind == Kind::Head && at.as_ref().starts_with("files/");
        if is_first && at.as_ref().ends_with("/0") && flips.swap(false, Ordering::SeqCst) {
            let mut bytes = fs::read(&changed).unwrap();
            let last = bytes.len() - 9;
            bytes[last] ^= 1;
            fs::write(&changed, bytes).unwrap();
        }
        Ok(())
    };
    let options = || PushOptions::default().workers(1);
    let pushing = objects.met(RepositoryOptions::default(), Arc::new(hook));
    let error = pushing.push_directory(&checkpoint, options()).unwrap_err();
    assert!(error.to_string().contains(table.to_str().unwrap()), "{error}");
    assert!(objects.below("backups").is_empty());
    let seconds = objects.below("files").into_iter().filter(|name| name.ends_with("/1"));
    assert_eq!(seconds.count(), 0, "it was sent");
    fs::write(&table, sound).unwrap();
    let repository = objects.repository();
    repository.push_directory(&checkpoint, options()).unwrap();
    let target = dir.path().join("restored");
    repository.restore(repository.find(None).unwrap(), &target, Default::default()).unwrap();
    assert_exact(&target, &checkpoint);
}

#[test]
fn more_tables_than_descriptors_are_pushed_and_restored() {
    if let Some(place) = std::env::var_os(PLACE).map(PathBuf::from) {
        let limit =
            rustix::process::Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        let at = place.join("repository");
        let repository = Repository::create(at.to_str().unwrap(), Default::default()).unwrap();
        repository.push_directory(place.join("checkpoint"), PushOptions::default()).unwrap();
        let newest = repository.find(None).unwrap();
        repository.restore(newest, place.join("restored"), RestoreOptions::default()).unwrap();
        let delta = RestoreOptions::default().delta(true);
        repository.restore(newest, place.join("restored"), delta).unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let keyspace = Keyspace::open(dir.path().join("db")).unwrap();
    let options = PartitionOptions::default().table_bytes(8 << 10);
    let partition = keyspace.partition("p", options).unwrap();
    // More than a table may hold, each.
    for number in 0..3 * TABLES as u32 {
        partition.insert(number.to_be_bytes(), noise(6_000)).unwrap();
    }
    keyspace.flush().unwrap();
    partition.compact().unwrap();
    keyspace.backup_to(dir.path().join("checkpoint")).unwrap();
    let tables = tables(&dir.path().join("checkpoint")).len();
    assert!(tables >= TABLES, "{tables}");
    let mut child = Command::new(std::env::current_exe().unwrap());
    let test = "adverse::sources::more_tables_than_descriptors_are_pushed_and_restored";
    child.args([test, "--exact", "--test-threads=1"]).env(PLACE, dir.path());
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{}\n{said}", output.status);
    assert_exact(&dir.path().join("restored"), &dir.path().join("checkpoint"));
}
