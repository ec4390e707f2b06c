//! Crashes of a whole process: the test binary runs one of its tests again, as a child that dies.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const DIRECTORY: &str = "ESKER_CHILD_DIRECTORY";

/// Runs `scenario` in a child process on a directory of its own and lets that die without closing
/// anything it returned. `test` is the full name of the calling test. Returns the directory, with
/// what the child called `path` in `keyspace`.
///
/// In the child this function does not return.
pub fn crash<T>(test: &str, scenario: impl FnOnce(&Path) -> T) -> TempDir {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let alive = scenario(&PathBuf::from(directory).join("keyspace"));
        std::mem::forget(alive);
        // No destructor runs, worker threads die where they are.
        std::process::exit(0);
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let status = Command::new(std::env::current_exe().expect("the test binary"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory.path())
        .status()
        .expect("start the child");
    assert!(status.success(), "the child failed before its crash: {status}");
    let keyspace = directory.path().join("keyspace");
    assert!(keyspace.is_dir(), "no test is called {test}: the child did nothing");
    directory
}
