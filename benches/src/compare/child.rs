//! Children: this program again, with a time limit, a result on standard output or an error.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::compare::cell::Outcome;
use crate::compare::options::Spec;

const POLL: Duration = Duration::from_millis(5);
/// What of an error is worth a line in a table.
const ERROR_BYTES_MAX: usize = 600;

/// Runs the hidden command `command` with this spec. Its standard input ends when this process does.
///
/// # Errors
///
/// When the program cannot be started.
pub fn spawn(command: &str, spec: &Spec, stdout: Stdio, stderr: Stdio) -> Result<Child> {
    let spec = serde_json::to_string(spec)?;
    let mut child = Command::new(std::env::current_exe()?);
    // A table has no room for a backtrace.
    child
        .env("RUST_BACKTRACE", "0")
        .arg(command)
        .arg(spec)
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(stderr);
    Ok(child.spawn()?)
}

/// Measures one cell in a child. Its output goes to files in `dir`, so that no pipe can fill up.
///
/// # Errors
///
/// What the child printed last when it fails, or that it took too long.
pub fn measure(spec: &Spec, dir: &Path, limit: Duration) -> Result<Outcome> {
    let (out, err) = (dir.join("stdout"), dir.join("stderr"));
    let (stdout, stderr) = (File::create(&out)?.into(), File::create(&err)?.into());
    let mut child = spawn("cell", spec, stdout, stderr)?;
    let status = match wait(&mut child, limit)? {
        Some(status) if status.success() => {
            let text = fs::read_to_string(out)?;
            let line = text.lines().last().ok_or("the child printed nothing")?;
            return Ok(serde_json::from_str(line)?);
        }
        Some(status) => status.to_string(),
        None => format!("killed after {} s", limit.as_secs()),
    };
    let text = String::from_utf8_lossy(&fs::read(err)?).trim().to_owned();
    let skipped = text.len().saturating_sub(ERROR_BYTES_MAX);
    let tail = text.char_indices().find(|&(at, _)| at >= skipped).map_or("", |(at, _)| &text[at..]);
    Err(format!("{status}: {tail}").into())
}

/// None: it took too long and was killed.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(POLL);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}
