//! Lets one system call of a writing process fail, or every one from there on (strace injects).
//!
//! A first run without faults counts the calls of each kind; the states are every kind, every error
//! that it can return, and every index, in an order that the seed gives. The index counts the calls
//! of each thread by itself: one state makes the n-th call of several threads fail. The worker must
//! end by itself, say what failed as an error of the right kind, and lose nothing it acknowledged.
//! A failed sync must not be followed by another of the same file before the keyspace is reopened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::Explored;
use crate::chaos::{self, Rng};
use crate::crash::Options;
use crate::crash::judge::{Cut, Story, panic_text};
use crate::crash::process::{Finished, Running};
use crate::crash::said::Failure;
use crate::crash::worker::{OPEN_MARKER, Work};

/// Every kind of call that the engine makes, and how it can fail. `0` is a call that does nothing.
const CALLS: &[(&str, &[&str])] = &[
    ("write", &["EIO", "ENOSPC", "EDQUOT", "EINTR", "0"]),
    ("pwrite64", &["EIO", "ENOSPC", "EDQUOT", "EINTR", "0"]),
    ("openat", &["EIO", "ENOSPC", "EMFILE", "EINTR"]),
    ("fsync", &["EIO", "ENOSPC", "EDQUOT", "EINTR"]),
    ("fdatasync", &["EIO", "ENOSPC", "EDQUOT", "EINTR"]),
    ("syncfs", &["EIO", "ENOSPC"]),
    ("rename", &["EIO", "ENOSPC", "EDQUOT"]),
    ("renameat", &["EIO", "ENOSPC", "EDQUOT"]),
    ("renameat2", &["EIO", "ENOSPC", "EDQUOT", "EINVAL"]),
    ("link", &["EIO", "ENOSPC", "EXDEV", "EMLINK", "EPERM"]),
    ("linkat", &["EIO", "ENOSPC", "EXDEV", "EMLINK", "EPERM"]),
    ("unlink", &["EIO"]),
    ("unlinkat", &["EIO"]),
    ("rmdir", &["EIO"]),
    ("ftruncate", &["EIO", "ENOSPC", "EINTR"]),
    ("fallocate", &["EIO", "ENOSPC", "EDQUOT", "EINTR", "EOPNOTSUPP"]),
    ("mkdir", &["EIO", "ENOSPC", "EDQUOT"]),
    ("mkdirat", &["EIO", "ENOSPC", "EDQUOT"]),
    ("read", &["EIO", "EINTR"]),
    ("pread64", &["EIO", "EINTR"]),
    ("getdents64", &["EIO"]),
    ("copy_file_range", &["EIO", "ENOSPC"]),
];
const SPACE: [&str; 3] = ["ENOSPC", "EDQUOT", "EMFILE"];
/// The engine tries again, or another way: nobody hears of these.
const HANDLED: [&str; 6] = ["EINTR", "EXDEV", "EMLINK", "EPERM", "EINVAL", "EOPNOTSUPP"];
/// One state in so many has a call that fails from its index on.
const LASTING: u64 = 5;
/// One state in so many is on a disk.
const ON_DISK: u64 = 4;
/// Longer is a hang.
const LIMIT: Duration = Duration::from_secs(60);
const THREADS: usize = 2;

/// One state.
#[derive(Clone, Debug)]
struct Case {
    call: &'static str,
    error: &'static str,
    index: u64,
    /// Every later call fails as well.
    lasting: bool,
    seed: u64,
    /// The seed of the layer.
    base: u64,
}

impl Case {
    fn injection(&self) -> String {
        let how = match self.error {
            "0" => "retval=0".to_owned(),
            error => format!("error={error}"),
        };
        let on = if self.lasting { "+" } else { "" };
        format!("inject={}:{how}:when={}{on}", self.call, self.index)
    }

    fn is_sync(&self) -> bool {
        ["fsync", "fdatasync", "syncfs"].contains(&self.call)
    }
}

/// What is needed; `None` when all is there.
pub(super) fn missing() -> Option<String> {
    let mut probe = Command::new("strace");
    let probe = probe.args(["-f", "-o", "/dev/null", "-e", "inject=fsync:error=EIO", "true"]);
    match probe.output() {
        Ok(output) if output.status.success() => None,
        other => Some(format!("strace that may inject faults: {other:?}")),
    }
}

/// Explores states.
pub(super) fn run(options: &Options) -> Explored {
    let cases = match count_calls(options.seed) {
        Ok(counts) => cases(&counts, options),
        Err(sentence) => return Explored { failures: vec![sentence], ..Explored::default() },
    };
    let (mut outcome, mut void) = (Explored::default(), 0);
    let next = Mutex::new(cases.into_iter());
    std::thread::scope(|scope| {
        // A state waits for a disk or for a tracer most of the time.
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| explore_all(&next))).collect();
        for thread in threads {
            match thread.join() {
                Ok((explored, not_loaded)) => {
                    outcome.add(explored);
                    void += not_loaded;
                }
                Err(panic) => outcome.failures.push(panic_text(&*panic)),
            }
        }
    });
    let Explored { passed, reached, .. } = outcome;
    eprintln!(
        "faults: {reached} of {passed} traced states that passed had their call made to fail"
    );
    eprintln!("faults: in {void} more states the program could not even be loaded");
    outcome
}

/// What was found, and in how many states the program could not be loaded.
fn explore_all(cases: &Mutex<std::vec::IntoIter<Case>>) -> (Explored, u64) {
    let (mut explored, mut void) = (Explored::default(), 0);
    loop {
        let case = cases.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some(case) = case else { return (explored, void) };
        match explore(&case) {
            Ok(None) => void += 1,
            Ok(Some(was_reached)) => {
                explored.passed += 1;
                explored.reached += u64::from(was_reached);
            }
            Err(sentence) => {
                let injection = case.injection();
                let again = format!("crash faults --states 1 --seed {}", case.base);
                let failure = format!("{sentence}; repeat: ESKER_FAULT={injection} {again}");
                eprintln!("faults: {failure}");
                explored.failures.push(failure);
            }
        }
    }
}

fn cases(counts: &BTreeMap<&'static str, u64>, options: &Options) -> Vec<Case> {
    let mut rng = Rng::new(options.seed);
    let mut all = Vec::new();
    for (call, errors) in CALLS {
        for error in *errors {
            for index in 1..=counts.get(call).copied().unwrap_or(0) {
                // A state does not depend on how many others there are: the counts vary.
                let name = xxh3_64(format!("{call} {error} {index}").as_bytes());
                let mut own = Rng::new(options.seed ^ name);
                // A call that does nothing, for ever, is no disk.
                let lasting = *error != "0" && *error != "EINTR" && own.one_in(LASTING);
                let seed = own.bits();
                all.push(Case { call, error, index, lasting, seed, base: options.seed });
            }
        }
    }
    eprintln!("faults: {} states exist: calls {counts:?}", all.len());
    if let Ok(only) = std::env::var("ESKER_FAULT") {
        all.retain(|case| case.injection() == only);
    }
    for at in (1..all.len()).rev() {
        all.swap(at, rng.below(at as u64 + 1) as usize);
    }
    all.truncate(options.states as usize);
    all
}

fn work(dir: &Path, seed: u64) -> Work {
    let patience = Duration::from_millis(60);
    Work { dir: dir.to_path_buf(), seed, writers: 1, commits: 48, lives: 2, patience, tidy: false }
}

/// Runs the worker under strace; the log goes to `log`.
fn trace(work: &Work, arguments: &[&str], log: &Path) -> Result<Finished, String> {
    let child = work.command();
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-y", "--seccomp-bpf", "-e", "signal=none", "-s", "0"]);
    command.args(arguments).arg("-o").arg(log).arg("--");
    command.arg(child.get_program()).args(child.get_args());
    let running = Running::start(command).map_err(|e| format!("start strace: {e}"))?;
    running.wait(LIMIT).map_err(|e| format!("wait for strace: {e}"))
}

/// How many calls of each kind the busiest thread makes when nothing fails.
fn count_calls(seed: u64) -> Result<BTreeMap<&'static str, u64>, String> {
    let mut most = BTreeMap::new();
    for dir in [chaos::memory_dir(), chaos::disk_dir()] {
        let log = dir.path().join("log");
        let names: Vec<_> = CALLS.iter().map(|(call, _)| format!("?{call}")).collect();
        let traced = format!("trace={}", names.join(","));
        let finished = trace(&work(dir.path(), seed), &["-e", &traced], &log)?;
        let said = finished.said;
        if !said.ended || !said.wrong.is_empty() || !said.failed.is_empty() {
            let (wrong, failed) = (said.wrong, said.failed);
            return Err(format!("without faults: {wrong:?} {failed:?} {}", finished.stderr));
        }
        let log = std::fs::read_to_string(&log).map_err(|e| format!("read the trace: {e}"))?;
        let mut counts: BTreeMap<(&str, &'static str), u64> = BTreeMap::new();
        for line in log.lines() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let name = rest.trim_start().split('(').next().unwrap_or_default();
            if let Some((call, _)) = CALLS.iter().find(|(call, _)| *call == name) {
                *counts.entry((thread, call)).or_default() += 1;
            }
        }
        for ((_, call), count) in counts {
            let entry = most.entry(call).or_default();
            *entry = count.max(*entry);
        }
    }
    Ok(most)
}

/// Whether the call was made to fail; nothing if the fault hit the loading of the program.
fn explore(case: &Case) -> Result<Option<bool>, String> {
    let on_disk = Rng::new(case.seed).one_in(ON_DISK);
    let place = if on_disk { chaos::disk_dir() } else { chaos::memory_dir() };
    let (dir, log) = (place.path().join("work"), place.path().join("log"));
    std::fs::create_dir(&dir).map_err(|e| format!("create a directory: {e}"))?;
    let traced = format!("trace={},?openat", case.call);
    let arguments = ["-e", &traced, "-e", &case.injection()];
    let finished = trace(&work(&dir, case.seed), &arguments, &log)?;
    let log = std::fs::read_to_string(&log).map_err(|e| format!("read the trace: {e}"))?;
    let injected = log.lines().find(|line| line.contains("(INJECTED)"));
    if injected.is_some() && !finished.said.begun && !finished.hung {
        return Ok(None);
    }
    let judged = judge(case, &dir, &finished, &log);
    judged.map(|()| Some(injected.is_some())).map_err(|sentence| {
        let kept = keep(place);
        format!("{sentence}; first fault: {}{kept}", injected.unwrap_or("none"))
    })
}

fn judge(case: &Case, dir: &Path, finished: &Finished, log: &str) -> Result<(), String> {
    let Finished { said, status, hung, stderr } = finished;
    if *hung {
        return Err(format!("the worker hangs; it said {:?} {:?}", said.wrong, said.failed));
    }
    if !said.begun {
        return Err(format!("the worker did not start: {status} {stderr}"));
    }
    if !said.wrong.is_empty() {
        return Err(format!("{:?} after {:?} {stderr}", said.wrong, said.failed));
    }
    if !said.ended || !status.success() {
        return Err(format!("the worker died: {status} {stderr}"));
    }
    if let Some(failure) = said.failed.iter().find(|failure| !is_expected(case, failure)) {
        return Err(format!("an error of the wrong kind: {failure:?}"));
    }
    check_syncs(log)?;
    Story::new(dir).look(said, said, Cut::Process).map(|_| ())
}

/// Whether a call of the engine may answer so.
fn is_expected(case: &Case, failure: &Failure) -> bool {
    let reading = ["read", "pread64"].contains(&case.call);
    match failure.kind.as_str() {
        // lsm-tree reads without trying again.
        _ if HANDLED.contains(&case.error) && !reading => false,
        "retry" => SPACE.contains(&case.error),
        // A sync that failed is never about space: it cannot be tried again. Nor can an install
        // that may be on disk (docs/durability.md, "A full disk").
        "io" | "poisoned" => {
            let undecided = failure.text.contains("cannot install a new version");
            !SPACE.contains(&case.error) || case.is_sync() || undecided
        }
        _ => false,
    }
}

/// A file whose sync failed is not synced again in the same life.
fn check_syncs(log: &str) -> Result<(), String> {
    let mut failed: Vec<PathBuf> = Vec::new();
    for line in log.lines() {
        if line.contains(OPEN_MARKER) {
            failed.clear();
        }
        if line.contains("O_EXCL") {
            // A new file under the same name, written anew.
            failed.retain(|path| !line.contains(&format!("\"{}\"", path.display())));
        }
        let is_sync = line.contains(" fsync(") || line.contains(" fdatasync(");
        let path = line.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
        let Some((path, _)) = path.filter(|(path, _)| is_sync && path.ends_with(".jnl")) else {
            continue;
        };
        if failed.iter().any(|failed| failed == Path::new(path)) {
            return Err(format!("{path} is synced again after a failed sync"));
        }
        // A sync that was interrupted is the caller's to repeat.
        if line.contains("(INJECTED)") && !line.contains("EINTR") {
            failed.push(path.into());
        }
    }
    Ok(())
}

/// Keeps the directory of a failure where that is asked for.
fn keep(place: tempfile::TempDir) -> String {
    match std::env::var_os("ESKER_KEEP") {
        Some(_) => format!("; kept in {}", place.keep().display()),
        None => String::new(),
    }
}
