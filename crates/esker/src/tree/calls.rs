//! What calls of lsm-tree return: its panics and errors as ours.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::error::{Error, Result};

/// Calls lsm-tree, which asserts on some damaged bytes instead of returning an error: a panic in
/// there is corruption, not a bug of ours.
pub(super) fn guarded<T>(
    operation: &'static str,
    dir: &Path,
    call: impl FnOnce() -> lsm_tree::Result<T>,
) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call))
        .map_err(|_| {
            let what = format!("lsm-tree cannot {operation} this directory; verify names the file");
            Error::corrupt(dir, None, what)
        })?
        .map_err(|e| wrap(operation, dir, e))
}

/// Opens a tree. lsm-tree lists directories and reads with single calls, and gives up where a signal
/// interrupts one; what it has done by then it finds the next time, as after a crash.
pub(super) fn open_uninterrupted(
    dir: &Path,
    config: impl Fn() -> lsm_tree::Config,
) -> Result<lsm_tree::AnyTree> {
    loop {
        match guarded("open the tree", dir, || config().open()) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// lsm-tree's errors name no file; the tree's directory is the closest that is known. `verify`
/// finds the file and the offset.
pub(super) fn wrap(operation: &'static str, dir: &Path, error: lsm_tree::Error) -> Error {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    match error {
        // Offsets and lengths that lead nowhere are damage, whatever the operating system says.
        lsm_tree::Error::Io(e)
            if !matches!(e.kind(), UnexpectedEof | InvalidInput | InvalidData) =>
        {
            Error::io(operation, dir, uncover(e))
        }
        lsm_tree::Error::ChecksumMismatch { got, expected } => Error::corrupt_because(
            dir,
            None,
            "a block's checksum does not match; verify names the file",
            format!("{:032x}", expected.into_u128()),
            format!("{:032x}", got.into_u128()),
        ),
        other => Error::corrupt(dir, None, format!("{other:?}; verify names the file")),
    }
}

/// lsm-tree makes `current` by way of the crate tempfile, whose errors hide the operating system's
/// number even from `source`: only their text has it. Running out of descriptors has no kind either.
fn uncover(error: std::io::Error) -> std::io::Error {
    let text = error.to_string();
    let number = text.split_once("(os error ").and_then(|(_, rest)| rest.split_once(')'));
    match number.and_then(|(number, _)| number.parse().ok()) {
        Some(number) if error.raw_os_error().is_none() => std::io::Error::from_raw_os_error(number),
        _ => error,
    }
}
