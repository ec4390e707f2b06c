//! What pushes leave beside the keyspace.

use std::fs::{self, File};
use std::sync::Arc;

use esker::Keyspace;
use esker_archive::{Error, PushOptions, RepositoryOptions};

use super::scene::Scene;
use crate::content::names_in;
use crate::objects::{Kind, refused};

const LEFT: &str = ".db.esker-push-00000000000000aa";
const IN_USE: &str = ".db.esker-push-00000000000000ab";
const OTHERS: [&str; 3] =
    [".other.esker-push-00000000000000aa", ".db.esker-push-aa", ".db.esker-push-"];

fn staged(scene: &Scene) -> Vec<String> {
    let mut names = names_in(scene.dir.path());
    names.retain(|name| name.contains(".esker-push-"));
    names.sort();
    names
}

#[test]
fn a_push_removes_what_killed_ones_have_left_and_nothing_that_is_in_use() {
    let scene = Scene::new(20);
    let keyspace = Keyspace::open(scene.at("db")).unwrap();
    for name in [LEFT, IN_USE].iter().chain(&OTHERS) {
        fs::create_dir_all(scene.at(name).join("checkpoint/partitions")).unwrap();
        fs::write(scene.at(name).join("checkpoint/CATALOG"), "of then").unwrap();
    }
    let in_use = File::open(scene.at(IN_USE)).unwrap();
    in_use.try_lock().unwrap();
    let repository = scene.objects.repository();
    repository.push(&keyspace, PushOptions::default()).unwrap();
    let mut left: Vec<_> = OTHERS.iter().chain(&[IN_USE]).map(|name| (*name).to_owned()).collect();
    left.sort();
    assert_eq!(staged(&scene), left);
    assert!(scene.at(IN_USE).join("checkpoint/CATALOG").is_file());
    drop(in_use);
    repository.push(&keyspace, PushOptions::default()).unwrap();
    left.retain(|name| name != IN_USE);
    assert_eq!(staged(&scene), left);
}

#[test]
fn a_push_that_fails_removes_what_it_staged() {
    let scene = Scene::new(20);
    let keyspace = Keyspace::open(scene.at("db")).unwrap();
    keyspace.partition("more", Default::default()).unwrap().insert("a", "b").unwrap();
    for prefix in ["leases", "files", "backups"] {
        let place = scene.dir.path().to_owned();
        let hook = move |kind: Kind, at: &object_store::path::Path| {
            if kind == Kind::Put && at.to_string().starts_with(prefix) {
                let is_staged = |name: &String| name.starts_with(".db.esker-push-");
                assert!(names_in(&place).iter().any(is_staged), "it is there until then");
                return Err(refused(at));
            }
            Ok(())
        };
        let repository = scene.objects.met(RepositoryOptions::default(), Arc::new(hook));
        keyspace.flush().unwrap();
        let error = repository.push(&keyspace, PushOptions::default()).unwrap_err();
        assert!(
            matches!(&error, Error::Store { object, .. } if object.starts_with(prefix)),
            "{error}"
        );
        assert_eq!(staged(&scene), [""; 0]);
    }
    // Nor does one that cannot make its checkpoint.
    let repository = scene.objects.repository();
    repository.push(&keyspace, PushOptions::default().include(["nobody"])).unwrap_err();
    assert_eq!(staged(&scene), [""; 0]);
}
