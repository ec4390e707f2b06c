//! Tests, or parts of them, that cannot run on this machine: told where nobody overlooks it.
//!
//! libtest keeps to itself what a passing test prints, so the line goes to standard error itself.
//! `ESKER_SKIPS` names a file that gets every line, for those who count; `ESKER_REQUIRE=all` is for
//! machines that have everything: there a skip is a failure.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

/// Says that `name` is not tried, and why.
///
/// # Panics
///
/// If everything is required here.
pub fn skip(name: &str, reason: impl Display) {
    let line = format!("SKIPPED {name}: {reason}").replace('\n', " ") + "\n";
    let required = std::env::var_os("ESKER_REQUIRE").is_some_and(|what| what == "all");
    assert!(!required, "ESKER_REQUIRE=all, and yet: {line}");
    // Nobody hears it without a standard error; the file may be there all the same.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("ESKER_SKIPS") {
        // One write: tests of many processes append to it.
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.expect("ESKER_SKIPS names a file that can be written to");
    }
}
