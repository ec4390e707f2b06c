//! `esker import-fjall`: stage, let fjall replay and flush, take its trees over.

use std::path::{Path, PathBuf};

use esker::interchange::{ClosedTree, Workspace, build_keyspace};
use fjall::KeyspaceCreateOptions;

use super::database::{self, Source};
use super::report::Report;
use super::{How, options};
use crate::failure::{Failure, Outcome};
use crate::output::Console;

/// esker's.
const NAME_LEN_MAX: usize = 255;

pub fn run(source: &Path, target: &Path, how: &How, console: Console) -> Outcome {
    let mut report = Report::begin("keyspace", source, target);
    let database = Source::lock(source)?;
    let workspace = Workspace::beside(target, source)?;
    let bar = console.waiting("linking");
    let staged = workspace.path().join("source");
    database.stage(&staged)?;
    bar.say("replaying");
    let trees = flushed_trees(&staged, &mut report)?;
    bar.say("linking");
    let keyspace = workspace.path().join("keyspace");
    let built = build_keyspace(&keyspace, &trees, how.transfer())?;
    if how.verify {
        bar.say("comparing");
        database::compare(&staged, &keyspace)?;
    }
    report.seqno = built.seqno;
    for (staged, made) in trees.iter().zip(&built.trees) {
        report.add(&made.name, &database.original(&staged.dir), &made.dir)?;
    }
    bar.say("syncing");
    workspace.publish(&keyspace)?;
    bar.clear();
    report.print(how, console)
}

/// Lets fjall replay its journal and flush everything, and names what it has then, by name.
fn flushed_trees(staged: &Path, report: &mut Report<'_>) -> Outcome<Vec<ClosedTree>> {
    let database = database::open(staged)?;
    let mut trees = Vec::new();
    for name in database::keyspace_names(&database) {
        check_name(&name)?;
        let options = KeyspaceCreateOptions::default();
        let keyspace = database::keyspace(&database, staged, &name, options)?;
        database::flush(&keyspace)?;
        let (options, notes) = options::of_partition(&keyspace.config);
        report.note(&name, notes);
        let dir: PathBuf = keyspace.path().to_path_buf();
        trees.push(ClosedTree { name, options, dir });
    }
    Ok(trees)
}

/// Names the keyspace, which the engine's own message would not.
fn check_name(name: &str) -> Outcome {
    let why = if name.len() > NAME_LEN_MAX {
        "is longer than 255 bytes"
    } else if name.contains(['/', '\0']) {
        "has a slash or a NUL byte in its name"
    } else {
        return Ok(());
    };
    let advice = "esker has no such names: rename it with fjall first";
    Err(Failure::Failed(format!("the keyspace {name:?} {why}; {advice}")))
}
