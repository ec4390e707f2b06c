//! Scenarios that must come to an end: each runs in a process of its own, which is killed if it
//! does not.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::chaos;
use crate::crash::process::Running;

const DIRECTORY: &str = "ESKER_ENDS_DIRECTORY";
/// What a child says when nothing is left.
const RETURNED: &str = "the scenario returned and left nothing";
/// Far more than any scenario takes, on any machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs `scenario` in a child, on the path of a keyspace to come, and fails if the child does, if
/// it hangs, or if anything of the keyspace is left in it when the scenario has returned: a thread,
/// an open file, a lock. `test` is the full name of the calling test. Returns the directory that the
/// keyspace is in; in the child nothing.
pub fn returns(test: &str, scenario: impl FnOnce(&Path)) -> Option<TempDir> {
    let dir = chaos::memory_dir();
    returns_in(test, dir.path(), |command| command, scenario).then_some(dir)
}

/// [`returns`] in a directory of the caller's, with the command of the child changed.
#[allow(clippy::print_stderr, reason = "the child speaks to its parent")]
pub fn returns_in(
    test: &str,
    dir: &Path,
    change: impl FnOnce(Command) -> Command,
    scenario: impl FnOnce(&Path),
) -> bool {
    if let Some(dir) = std::env::var_os(DIRECTORY) {
        let path = PathBuf::from(dir).join("keyspace");
        scenario(&path);
        assert_nothing_left(&path);
        eprintln!("{RETURNED}");
        return false;
    }
    let mut command = chaos::rerun(test);
    command.env(DIRECTORY, dir);
    let child = Running::start(change(command)).expect("start the child");
    let ended = child.wait(LIMIT).expect("wait for the child");
    assert!(!ended.hung, "{test} did not return within {LIMIT:?}\n{}", ended.stderr);
    assert!(ended.status.success(), "{test}: {}\n{}", ended.status, ended.stderr);
    assert!(ended.stderr.contains(RETURNED), "no test is called {test}: the child did nothing");
    true
}

/// Whether this process is a child that runs a scenario: what prepares it was done by its parent.
pub fn is_child() -> bool {
    std::env::var_os(DIRECTORY).is_some()
}

/// No thread of a keyspace lives in this process, no file of this one is open, its lock is free.
pub fn assert_nothing_left(path: &Path) {
    assert_no_worker();
    let open = open_below(path);
    assert!(open.is_empty(), "files outlived their keyspace: {open:?}");
    if let Ok(lock) = File::open(path.join("LOCK")) {
        flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("LOCK is free");
    }
    if let Ok(dir) = File::open(path) {
        flock(&dir, FlockOperation::NonBlockingLockExclusive).expect("the directory is free");
    }
}

/// No thread of a keyspace lives in this process.
pub fn assert_no_worker() {
    // A thread that was joined is listed for a moment longer.
    for _ in 0..1_000 {
        if workers() == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{} worker threads outlived their keyspace", workers());
}

fn workers() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("the threads of this process");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("esker-")).count()
}

fn open_below(path: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir("/proc/self/fd").expect("the files of this process");
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets.filter(|target| target.starts_with(path)).collect()
}

/// Lets the `nth` call of `call` in every thread of a child fail with EIO; `None`, loudly, where
/// strace is missing or may not trace.
pub fn failing(call: &str, nth: u32) -> Option<impl FnOnce(Command) -> Command> {
    // A child is traced already, and no process has two tracers.
    let probe = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    if !is_child() && !probe.as_ref().is_ok_and(|output| output.status.success()) {
        crate::skip(
            &format!("a {call} that fails"),
            format!("strace is missing or may not trace: {probe:?}"),
        );
        return None;
    }
    let inject = format!("inject={call}:error=EIO:when={nth}");
    Some(move |child: Command| {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &inject, "--"]);
        strace.arg(child.get_program()).args(child.get_args());
        strace.envs(child.get_envs().filter_map(|(name, value)| Some((name, value?))));
        strace
    })
}
