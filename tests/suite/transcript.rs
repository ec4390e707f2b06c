//! The system calls of one checkpoint, in order, against a text that is checked in.
//!
//! A child process takes the checkpoint under strace, between two markers; what its thread did to
//! names and bytes below the scratch directory is normalised and compared with
//! tests/golden/checkpoint.txt, or checkpoint-syncfs.txt where one `syncfs` takes the place of the
//! single syncs. `ESKER_BLESS=1` writes the files anew. The rules that a transcript must obey are
//! asserted as well, also for other kinds of checkpoint than the golden one, and for the first open.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use esker::interchange::{Workspace, build_keyspace, flushed_copy};
use esker::{Config, PartitionOptions, Transfer};
use esker_tests::{chaos, skip};
use tempfile::TempDir;

const DIR: &str = "ESKER_TEST_TRANSCRIPT_DIR";
const KIND: &str = "ESKER_TEST_TRANSCRIPT_KIND";
const BEGIN: &str = "/esker-marker-begin";
const END: &str = "/esker-marker-end";
const UNFINISHED: &str = ".target.esker-TAG";
const CALLS: &str = "trace=link,linkat,symlink,symlinkat,open,openat,creat,mkdir,mkdirat,rename,\
    renameat,renameat2,sync,fsync,fdatasync,syncfs,sync_file_range,unlink,unlinkat,rmdir,ftruncate,\
    pwrite64,write,writev,pwritev,pwritev2,fallocate,copy_file_range,sendfile,ioctl";

#[test]
fn taking_a_checkpoint_between_markers() {
    let (Some(dir), Ok(kind)) = (std::env::var_os(DIR), std::env::var(KIND)) else { return };
    let dir = PathBuf::from(dir);
    let keyspace = Config::new(dir.join("db")).worker_threads(1).open().unwrap();
    // So many trees are built by several threads.
    let names = if kind == "many" { 'a'..='q' } else { 'a'..='b' };
    let partitions: Vec<_> = names
        .map(|name| keyspace.partition(&name.to_string(), PartitionOptions::default()).unwrap())
        .collect();
    for partition in &partitions {
        partition.insert("flushed", "in a table").unwrap();
    }
    keyspace.flush().unwrap();
    for partition in &partitions {
        partition.insert("unflushed", "in the journal").unwrap();
    }
    // Until the worker finds nothing more to do.
    let state = || (chaos::files_below(&dir.join("db")), keyspace.statistics().compactions);
    let mut before = state();
    loop {
        std::thread::sleep(Duration::from_millis(150));
        let now = state();
        if std::mem::replace(&mut before, now.clone()) == now {
            break;
        }
    }
    let builder = match kind.as_str() {
        "flush" => keyspace.checkpoint().flush_first(true),
        "copy" => keyspace.checkpoint().transfer(Transfer::Copy),
        _ => keyspace.checkpoint(),
    };
    if kind == "trees" {
        let (source, target) = (dir.join("checkpoint"), dir.join("target"));
        builder.write_to(&source).unwrap();
        let _ = std::fs::File::open(BEGIN);
        let workspace = Workspace::beside(&target, &source).unwrap();
        let copy = flushed_copy(&source, workspace.path().join("copy"), Transfer::Auto).unwrap();
        let new = workspace.path().join("new");
        build_keyspace(&new, &copy.trees, Transfer::Auto).unwrap();
        workspace.publish(&new).unwrap();
    } else if kind == "open" {
        builder.write_to(dir.join("target")).unwrap();
        let _ = std::fs::File::open(BEGIN);
        drop(Config::new(dir.join("target")).worker_threads(1).open().unwrap());
    } else {
        let _ = std::fs::File::open(BEGIN);
        builder.write_to(dir.join("target")).unwrap();
    }
    let _ = std::fs::File::open(END);
}

/// One thing that happened to a name or to bytes; paths are relative to the scratch directory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    MakeDir(String),
    Create(String),
    Write(String),
    Allocate(String),
    Truncate(String),
    Link(String, String),
    Rename(String, String),
    Remove(String),
    Sync(&'static str, String),
}

impl Event {
    fn line(&self) -> String {
        match self {
            Self::MakeDir(path) => format!("mkdir      {path}"),
            Self::Create(path) => format!("create     {path}"),
            Self::Write(path) => format!("write      {path}"),
            Self::Allocate(path) => format!("allocate   {path}"),
            Self::Truncate(path) => format!("truncate   {path}"),
            Self::Link(from, to) => format!("link       {from} -> {to}"),
            Self::Rename(from, to) => format!("rename     {from} -> {to}"),
            Self::Remove(path) => format!("remove     {path}"),
            Self::Sync(call, path) => format!("{call:<10} {path}"),
        }
    }

    /// The name that comes into being.
    fn creates(&self) -> Option<&str> {
        match self {
            Self::MakeDir(name)
            | Self::Create(name)
            | Self::Link(_, name)
            | Self::Rename(_, name) => Some(name),
            _ => None,
        }
    }
}

fn strace_works() -> bool {
    let mut traced = Command::new("strace");
    traced.args(["-o", "/dev/null", "true"]).stderr(Stdio::null());
    let works = traced.status().is_ok_and(|status| status.success());
    if !works {
        skip("transcripts", "strace is missing or may not trace");
    }
    works
}

/// Runs the child under strace and returns what its checkpoint did.
fn transcript(kind: &str, dir: &TempDir) -> Vec<Event> {
    let root = dir.path().canonicalize().unwrap();
    let (work, logs) = (root.join("work"), root.join("logs"));
    std::fs::create_dir(&work).unwrap();
    std::fs::create_dir(&logs).unwrap();
    let mut child = chaos::rerun("transcript::taking_a_checkpoint_between_markers");
    let mut strace = Command::new("strace");
    strace.args(["-ff", "-ttt", "-y", "-s", "0", "-e", CALLS, "-o"]).arg(logs.join("log"));
    strace.arg("--").arg(child.get_program()).args(child.get_args());
    child = strace;
    let output = child.env(DIR, &work).env(KIND, kind).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // One file a thread. The one with the markers is the checkpoint's; those that begin between the
    // markers are its helpers.
    let logs: Vec<Vec<(f64, String)>> = std::fs::read_dir(&logs)
        .unwrap()
        .map(|entry| timed_lines(&std::fs::read_to_string(entry.unwrap().path()).unwrap()))
        .collect();
    let marked = |marker| {
        let lines = logs.iter().flatten().filter(|(_, line)| line.contains(marker));
        lines.map(|&(time, _)| time).next().unwrap_or_else(|| panic!("no thread passed {marker}"))
    };
    let window = marked(BEGIN)..marked(END);
    let takes_part = |log: &&Vec<(f64, String)>| {
        log.iter().any(|(_, line)| line.contains(BEGIN))
            || log.first().is_some_and(|(time, _)| window.contains(time))
    };
    if kind == "many" && std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) {
        assert!(logs.iter().filter(takes_part).count() > 1, "nobody helped");
    }
    let mut lines: Vec<_> = logs.iter().filter(takes_part).flatten().collect();
    lines.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let within = lines.iter().filter(|(time, _)| window.contains(time));
    within.filter_map(|(_, line)| parse(line, &work)).collect()
}

/// The lines of a log that begin with a time: seconds, then the call.
fn timed_lines(log: &str) -> Vec<(f64, String)> {
    let timed = |line: &str| {
        let (time, call) = line.split_once(' ')?;
        Some((time.parse().ok()?, call.to_owned()))
    };
    log.lines().filter_map(timed).collect()
}

/// A line of strace as an event; `None` for failures, reads and what lies elsewhere.
fn parse(line: &str, root: &Path) -> Option<Event> {
    let (call, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    if result.starts_with('-') {
        return None;
    }
    let name = |path: &str| -> Option<String> {
        let below = Path::new(path).strip_prefix(root).ok()?;
        let parts = below.iter().map(|part| {
            let part = part.to_string_lossy();
            let tagged = part.starts_with(".target.esker-");
            // How often the worker moved tables down before it came to rest is not the matter here.
            let version = part.strip_prefix('v').is_some_and(|n| n.parse::<u64>().is_ok());
            match () {
                () if tagged => UNFINISHED.to_owned(),
                () if version => "v<N>".to_owned(),
                () => part.into_owned(),
            }
        });
        let parts: Vec<_> = parts.collect();
        let staged = parts.iter().position(|part| part == "staging").map(|at| at + 1);
        let parts = parts.iter().enumerate().map(|(at, part)| match staged {
            Some(tag) if tag == at => "TAG",
            _ => part.as_str(),
        });
        let joined = parts.collect::<Vec<_>>().join("/");
        Some(if joined.is_empty() { ".".to_owned() } else { joined })
    };
    let quoted: Vec<&str> = arguments.split('"').skip(1).step_by(2).collect();
    let descriptor = || {
        let (_, rest) = arguments.split_once('<')?;
        name(rest.split_once('>')?.0)
    };
    let path = |at: usize| {
        let path = quoted.get(at)?;
        if path.starts_with('/') {
            return name(path);
        }
        // Relative to a directory's descriptor; linkat has two.
        let directory = arguments.split('<').nth(at + 1)?.split_once('>')?.0;
        name(&format!("{directory}/{path}"))
    };
    Some(match call {
        "mkdir" | "mkdirat" => Event::MakeDir(path(0)?),
        "open" | "openat" | "creat" if arguments.contains("O_CREAT") => Event::Create(path(0)?),
        "link" | "linkat" | "symlink" | "symlinkat" => Event::Link(path(0)?, path(1)?),
        "rename" | "renameat" | "renameat2" => Event::Rename(path(0)?, path(1)?),
        "unlink" | "unlinkat" | "rmdir" => Event::Remove(path(0)?),
        "write" | "pwrite64" | "writev" | "pwritev" | "pwritev2" => Event::Write(descriptor()?),
        "copy_file_range" => {
            // The second descriptor is the one that is written.
            let to = arguments.split('<').nth(2)?.split_once('>')?.0;
            Event::Write(name(to)?)
        }
        "sendfile" => Event::Write(descriptor()?),
        "ioctl" if arguments.contains("FICLONE") => Event::Write(descriptor()?),
        "fallocate" => Event::Allocate(descriptor()?),
        "ftruncate" => Event::Truncate(descriptor()?),
        "fsync" => Event::Sync("fsync", descriptor()?),
        "fdatasync" => Event::Sync("fdatasync", descriptor()?),
        "syncfs" => Event::Sync("syncfs", descriptor()?),
        "sync" | "sync_file_range" => Event::Sync("other sync", String::new()),
        _ => return None,
    })
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or(".", |(parent, _)| parent)
}

/// What everything that gets a name when it is whole must obey, whatever its kind.
fn assert_durable_before_published(events: &[Event]) {
    let text = || events.iter().map(Event::line).collect::<Vec<_>>().join("\n");
    // The unfinished directory, or a part of it.
    let published = events.iter().enumerate().find_map(|(at, event)| match event {
        Event::Rename(from, to) if to == "target" => Some((at, from)),
        _ => None,
    });
    let (at, built) = published.unwrap_or_else(|| panic!("nothing was published:\n{}", text()));
    assert!(built.starts_with(UNFINISHED), "{built}");
    let (building, after) = events.split_at(at);
    let in_target = |name: &str| name == built || name.starts_with(&format!("{built}/"));

    // The last creation in every directory, the last change of every file.
    let (mut dirs, mut files) = (BTreeMap::new(), BTreeMap::new());
    for (at, event) in building.iter().enumerate() {
        if let Some(name) = event.creates()
            && in_target(parent(name))
        {
            dirs.insert(parent(name).to_owned(), at);
        }
        match event {
            Event::Rename(from, to) if in_target(to) => {
                assert!(!files.contains_key(to) || is_synced(building, from, files.get(from)));
                if let Some(at) = files.remove(from) {
                    files.insert(to.clone(), at);
                }
            }
            Event::Write(name) | Event::Truncate(name) if in_target(name) => {
                files.insert(name.clone(), at);
            }
            // An empty file needs its sync as well; a link is not a change of bytes.
            Event::Create(name) if in_target(name) => {
                files.insert(name.clone(), at);
            }
            Event::Remove(name) => {
                files.remove(name);
                dirs.retain(|dir, _| dir != name && !dir.starts_with(&format!("{name}/")));
            }
            _ => {}
        }
    }
    assert!(dirs.contains_key(built) && files.len() >= 4, "too little was built:\n{}", text());
    for (name, at) in dirs.iter().chain(&files) {
        let mut names = vec![name.clone()];
        // A file that was renamed after it was synced was synced under its first name.
        names.extend(building.iter().filter_map(|event| match event {
            Event::Rename(from, to) if to == name => Some(from.clone()),
            _ => None,
        }));
        let synced = names.iter().any(|name| is_synced(building, name, Some(at)));
        assert!(synced, "{name} is not synced before the checkpoint has its name:\n{}", text());
    }
    let parent_synced = after.iter().any(|e| matches!(e, Event::Sync("fsync", dir) if dir == "."));
    assert!(parent_synced, "the target's parent is not synced:\n{}", text());

    // What is linked to was complete: no byte of a linked file is written or cut afterwards.
    for (at, event) in events.iter().enumerate() {
        if let Event::Link(from, to) = event {
            let changed = events[at..].iter().any(|later| {
                matches!(later, Event::Write(name) | Event::Truncate(name) | Event::Allocate(name)
                    if name == from || name == to)
            });
            // The next manifest of a tree in between has the same name here, and another one there.
            let next = to.ends_with("/v<N>") && !in_target(to);
            assert!(!changed || next, "{from} is written after it was linked:\n{}", text());
            // A segment that was sealed just now is durable under one of its names.
            let sealed = building.iter().rposition(|earlier| {
                matches!(earlier, Event::Write(name) | Event::Truncate(name) if name == from)
            });
            let synced = sealed.is_none_or(|sealed| {
                [from, to].iter().any(|name| is_synced(building, name, Some(&sealed)))
            });
            assert!(synced || !in_target(to), "{from} is linked and never synced:\n{}", text());
        }
    }
}

/// Whether the name was synced after event `at`.
fn is_synced(events: &[Event], name: &str, at: Option<&usize>) -> bool {
    let start = at.map_or(0, |at| at + 1);
    events[start..].iter().any(|event| match event {
        Event::Sync("syncfs", _) => true,
        Event::Sync("fsync", synced) => synced == name,
        Event::Sync("fdatasync", synced) => synced == name,
        _ => false,
    })
}

/// The freeze lies between the preparation of the next segment and the seal of the last one, and
/// makes no system call that touches a file.
fn assert_nothing_happens_in_the_freeze(events: &[Event]) {
    let sealed = events.iter().position(|e| {
        matches!(e, Event::Write(name) if name.starts_with("db/journal/") && name.ends_with("1.jnl"))
    });
    let sealed = sealed.expect("the segment that was active is sealed");
    let seal: Vec<_> = events[sealed - 1..=sealed].iter().map(Event::line).collect();
    let segment = "db/journal/00000000000000000001.jnl";
    assert_eq!(
        seal,
        ["fsync      db".to_owned(), format!("write      {segment}")],
        "between the CATALOG that knows the next segment and the seal there is only the freeze"
    );
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

#[test]
fn the_system_calls_of_a_checkpoint_are_those_of_the_golden_transcript() {
    if !strace_works() {
        return;
    }
    let mut compared = BTreeSet::new();
    for round in 0..chaos::rounds(3) {
        for dir in [chaos::memory_dir(), chaos::disk_dir()] {
            let events = transcript("plain", &dir);
            assert_durable_before_published(&events);
            assert_nothing_happens_in_the_freeze(&events);
            let at_once = events.iter().any(|e| matches!(e, Event::Sync("syncfs", _)));
            let name = if at_once { "checkpoint-syncfs.txt" } else { "checkpoint.txt" };
            compared.insert(name);
            let lines: Vec<_> = events.iter().map(Event::line).collect();
            let text = lines.join("\n") + "\n";
            if std::env::var_os("ESKER_BLESS").is_some() && round == 0 {
                std::fs::write(golden(name), format!("{HEADER}{text}")).unwrap();
            }
            let expected = std::fs::read_to_string(golden(name)).unwrap();
            let expected: Vec<_> = expected.lines().filter(|line| !line.starts_with('#')).collect();
            assert_eq!(
                expected, lines,
                "{name}, round {round}; ESKER_BLESS=1 accepts the new transcript:\n{text}"
            );
        }
    }
    for name in ["checkpoint.txt", "checkpoint-syncfs.txt"] {
        if !compared.contains(name) {
            skip(name, "no filesystem here makes checkpoints so");
        }
    }
}

const HEADER: &str = "\
# What one checkpoint of a keyspace with two partitions, one table each and a journal, does to names
# and bytes, in order, on one filesystem. Made by tests/suite/transcript.rs; ESKER_BLESS=1 rewrites
# it. The freeze lies between `fsync db` and the seal of segment 1, and does nothing.
";

#[test]
fn every_kind_of_checkpoint_is_durable_before_it_has_its_name() {
    if !strace_works() {
        return;
    }
    for dir in [chaos::memory_dir, chaos::disk_dir] {
        for kind in ["many", "flush", "copy"] {
            let events = transcript(kind, &dir());
            assert_durable_before_published(&events);
            let is_current =
                |e: &&Event| matches!(e, Event::Create(name) if name.ends_with("/current"));
            let trees = events.iter().filter(is_current).count();
            assert!(trees >= if kind == "many" { 17 } else { 2 }, "{trees} trees were built");
        }
    }
}

#[test]
fn a_keyspace_that_is_built_of_trees_is_durable_before_it_has_its_name() {
    if !strace_works() {
        return;
    }
    for dir in [chaos::memory_dir(), chaos::disk_dir()] {
        let events = transcript("trees", &dir);
        assert_durable_before_published(&events);
        let source_touched = events.iter().any(|event| match event {
            Event::Write(name) | Event::Truncate(name) | Event::Remove(name) => {
                name.starts_with("checkpoint/")
            }
            event => event.creates().is_some_and(|name| name.starts_with("checkpoint/")),
        });
        assert!(!source_touched, "{events:?}");
    }
}

/// A power cut would bring CHECKPOINT back, beside trees that it does not describe.
#[test]
fn a_checkpoint_that_is_opened_loses_its_file_list_durably_before_its_trees_move_on() {
    if !strace_works() {
        return;
    }
    for dir in [chaos::memory_dir(), chaos::disk_dir()] {
        let events = transcript("open", &dir);
        let is_removal =
            |e: &Event| matches!(e, Event::Remove(name) if name == "target/CHECKPOINT");
        let removed = events.iter().position(is_removal).expect("the list is removed");
        let is_install =
            |e: &Event| matches!(e, Event::Rename(_, name) if name.ends_with("/current"));
        let installed = events.iter().position(is_install).expect("what is replayed is flushed");
        let text = || events.iter().map(Event::line).collect::<Vec<_>>().join("\n");
        assert!(removed < installed, "{}", text());
        assert!(is_synced(&events[..installed], "target", Some(&removed)), "{}", text());
    }
}
