//! `esker export-fjall`: copy, let esker replay and flush, put its trees into a database of fjall's.

use std::fs;
use std::path::{Path, PathBuf};

use esker::Transfer;
use esker::interchange::{ClosedTree, Workspace, copy_tree, flushed_copy};

use super::database;
use super::report::Report;
use super::{How, options};
use crate::failure::{Failure, Outcome};
use crate::output::Console;

pub fn run(source: &Path, target: &Path, how: &How, console: Console) -> Outcome {
    let mut report = Report::begin("database", source, target);
    let workspace = Workspace::beside(target, source)?;
    let bar = console.waiting("replaying");
    let copied = workspace.path().join("copy");
    // The copy is not what stays.
    let flushed = flushed_copy(source, &copied, Transfer::Auto)?;
    bar.say("linking");
    let database = workspace.path().join("database");
    let made = build_database(&database, &flushed.trees, how.transfer(), &mut report)?;
    check(&database, &flushed.trees)?;
    if how.verify {
        bar.say("comparing");
        database::compare(&database, source)?;
    }
    report.seqno = flushed.seqno;
    for (tree, made) in flushed.trees.iter().zip(&made) {
        // The copy's trees lie where those of the source do.
        let place = tree.dir.strip_prefix(&copied).unwrap_or(&tree.dir);
        report.add(&tree.name, &source.join(place), made)?;
    }
    bar.say("syncing");
    workspace.publish(&database)?;
    bar.clear();
    report.print(how, console)
}

/// Lets fjall make an empty database with the options of these trees, and puts the trees into the places
/// of its own; returns where they are.
fn build_database(
    path: &Path,
    trees: &[ClosedTree],
    transfer: Transfer,
    report: &mut Report<'_>,
) -> Outcome<Vec<PathBuf>> {
    let database = database::open(path)?;
    let mut places = Vec::new();
    for tree in trees {
        let (options, notes) = options::of_keyspace(&tree.options)?;
        report.note(&tree.name, notes);
        let keyspace = database::keyspace(&database, path, &tree.name, options)?;
        places.push(keyspace.path().to_path_buf());
    }
    drop(database);
    for (tree, place) in trees.iter().zip(&places) {
        fs::remove_dir_all(place).map_err(|e| Failure::file("remove", place, &e))?;
        copy_tree(&tree.dir, place, transfer)?;
    }
    Ok(places)
}

/// Whether fjall opens what was made, with every keyspace.
fn check(path: &Path, trees: &[ClosedTree]) -> Outcome {
    let database = database::open(path)?;
    match trees.iter().find(|tree| !database.keyspace_exists(&tree.name)) {
        Some(tree) => Err(Failure::Corrupt(format!(
            "fjall does not find the keyspace {:?} in what was made of it",
            tree.name
        ))),
        None => Ok(()),
    }
}
