//! The layer `rot` at length where that is possible (every byte and every file of small images), and
//! the proof that its judge and its parent can fail.

use std::fs;
use std::path::{Path, PathBuf};

use esker_tests::chaos;
use esker_tests::crash::rot::damage::{Damage, Kind};
use esker_tests::crash::rot::image::{Class, Image};
use esker_tests::crash::rot::judge::{Bench, Care};
use esker_tests::crash::rot::{self, Plan, Shape};
use esker_tests::crash::{Outcome, worker};

const THOROUGH: Care = Care { writable_one_in: 1, copy_one_in: 1 };

fn sweep(plan: Plan, at_least: u64) {
    worker::use_program(env!("CARGO_BIN_EXE_crash"));
    let Outcome::Ran { passed, failures } = rot::sweep(plan) else { panic!("rot needs nothing") };
    assert!(failures.is_empty(), "{passed} passed, {}", failures.join("\n"));
    assert!(passed >= at_least, "only {passed} cases");
}

#[test]
fn every_flipped_byte_is_reported_and_never_believed() {
    sweep(Plan::Flips, 20_000);
}

#[test]
fn cut_swapped_old_and_missing_files_are_reported_and_never_believed() {
    sweep(Plan::Files, 600);
}

#[test]
fn a_child_that_takes_too_much_memory_or_hangs_is_a_failure_and_the_next_case_is_judged() {
    worker::use_program(env!("CARGO_BIN_EXE_crash"));
    let Outcome::Ran { passed, failures } = rot::canary() else { panic!("rot needs nothing") };
    assert_eq!((passed, failures.len()), (1, 2), "{failures:?}");
    assert!(failures[0].contains("the process died"), "{}", failures[0]);
    assert!(failures[1].contains("no end within"), "{}", failures[1]);
}

fn build(kind: &str, scratch: &Path) -> Image {
    rot::build(kind, 7, Some(Shape::small()), scratch).unwrap()
}

fn changed(image: &Image, kind: Kind, name: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Damage {
    let mut bytes = image.files[name].clone();
    change(&mut bytes);
    let what = format!("{} changed", name.display());
    Damage { kind, what, files: [(name.to_path_buf(), Some(bytes))].into() }
}

fn one(image: &Image, class: Class) -> PathBuf {
    image.all(class)[0].clone()
}

#[test]
fn the_crash_image_has_sealed_segments_an_active_one_and_a_prepared_one() {
    let scratch = chaos::memory_dir();
    let image = build("crashed", scratch.path());
    let segments = image.segments();
    let sealed: Vec<_> = segments.iter().map(|(_, f)| f.last().map(|f| f.seal)).collect();
    assert_eq!(sealed, [Some(true), Some(true), Some(false), None]);
    assert!(!image.clean && image.durable < image.seqno, "something is left to lose");
}

#[test]
fn the_judge_refuses_content_that_is_not_the_model() {
    let scratch = chaos::memory_dir();
    let mut image = build("closed", scratch.path());
    let lock = PathBuf::from("LOCK");
    let harmless = changed(&image, Kind::Extended, &lock, |bytes| bytes.push(0));
    let judge = |image: &Image| {
        let place = new_place(scratch.path());
        Bench::new(image, &place).unwrap().judge(&harmless, THOROUGH, 1)
    };
    judge(&image).unwrap();
    let seqno = image.seqno;
    let model = image.history.get_mut(&seqno).unwrap();
    let entries = model.values_mut().next().unwrap();
    let value = entries.values_mut().next().unwrap();
    value.push(b'!');
    let sentence = judge(&image).unwrap_err();
    assert!(sentence.contains("wrong content"), "{sentence}");
}

#[test]
fn the_judge_refuses_damage_that_verify_does_not_report() {
    let scratch = chaos::memory_dir();
    let image = build("checkpoint", scratch.path());
    let place = new_place(scratch.path());
    let bench = Bench::new(&image, &place).unwrap();
    for class in [Class::Catalog, Class::Current, Class::Manifest, Class::Checkpoint, Class::Table]
    {
        let name = one(&image, class);
        let damage = changed(&image, Kind::Flip, &name, |bytes| bytes[3] ^= 1);
        bench.judge(&damage, THOROUGH, 1).unwrap();
        // The same damage, but hidden: the directory is the unharmed one.
        let hidden = new_place(scratch.path());
        image.write_to(&hidden.join("damaged")).unwrap();
        let sentence = bench.judge_as_it_is(&hidden, &damage, THOROUGH, 1).unwrap_err();
        assert!(sentence.contains("not reported by verify"), "{sentence}");
    }
}

#[test]
fn the_judge_refuses_a_report_that_names_another_file() {
    let scratch = chaos::memory_dir();
    let image = build("checkpoint", scratch.path());
    let place = new_place(scratch.path());
    let bench = Bench::new(&image, &place).unwrap();
    let (catalog, table) = (PathBuf::from("CATALOG"), one(&image, Class::Table));
    let claimed = changed(&image, Kind::Flip, &table, |bytes| bytes[3] ^= 1);
    let actual = changed(&image, Kind::Flip, &catalog, |bytes| bytes[3] ^= 1);
    let other = new_place(scratch.path());
    image.link_to(&place.join("template"), &other.join("damaged"), &actual.files).unwrap();
    let sentence = bench.judge_as_it_is(&other, &claimed, THOROUGH, 1).unwrap_err();
    assert!(sentence.contains("verify names another file"), "{sentence}");
}

#[test]
fn the_judge_refuses_a_journal_that_ends_before_a_durable_commit_without_an_error() {
    let scratch = chaos::memory_dir();
    let mut image = build("crashed", scratch.path());
    let place = new_place(scratch.path());
    let (name, frames) = image.segments().into_iter().rev().find(|(_, f)| !f.is_empty()).unwrap();
    let (name, last) = (name.clone(), *frames.last().unwrap());
    let cut = changed(&image, Kind::Truncated, &name, |bytes| bytes.truncate(last.start as usize));
    Bench::new(&image, &place).unwrap().judge(&cut, THOROUGH, 1).unwrap();
    // It was not durable; would it have been, then its loss was silent.
    image.durable = image.seqno;
    let place = new_place(scratch.path());
    let sentence = Bench::new(&image, &place).unwrap().judge(&cut, THOROUGH, 1).unwrap_err();
    assert!(sentence.contains("not reported by verify"), "{sentence}");
}

/// A new directory, which goes with the scratch directory.
fn new_place(scratch: &Path) -> PathBuf {
    let number = fs::read_dir(scratch).unwrap().count();
    let path = scratch.join(format!("place-{number}"));
    fs::create_dir(&path).unwrap();
    path
}
