//! What the operating system says about this process and the machine it runs on.

use std::fs;

use crate::Result;

/// A line such as `VmHWM:   1234 kB` of /proc/self/status, in bytes.
fn status(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let line = line.ok_or_else(|| format!("/proc/self/status has no {name}"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

/// Resident memory now, in bytes.
///
/// # Errors
///
/// Where /proc does not say.
pub fn resident() -> Result<u64> {
    status("VmRSS")
}

/// The most resident memory since the last [`forget_peak`], in bytes.
///
/// # Errors
///
/// Where /proc does not say.
pub fn resident_peak() -> Result<u64> {
    status("VmHWM")
}

/// Starts the peak anew.
///
/// # Errors
///
/// Where /proc does not allow it.
pub fn forget_peak() -> Result<()> {
    Ok(fs::write("/proc/self/clear_refs", "5")?)
}

/// Cores and kernel, in a line: what a reader must know to judge the numbers.
pub fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = kernel.split(['-', '\n']).next().unwrap_or_default();
    format!("{cores} cores, Linux {version}")
}
