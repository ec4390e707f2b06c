//! The bugs of the engine's own list, one of them switched on for the life of the process.

use std::sync::OnceLock;

pub use esker::planted::Bug;

static PLANTED: OnceLock<Bug> = OnceLock::new();

const BUGS: [Bug; 5] = [
    Bug::NotifyLost,
    Bug::HandOverLost,
    Bug::AnsweredBeforeApplied,
    Bug::AnsweredBeforeSync,
    Bug::FreezeInsideAGroup,
];

/// Switches the bug of this name on.
pub fn plant(name: &str) {
    let bug = BUGS.into_iter().find(|bug| format!("{bug:?}") == name);
    let bug = bug.unwrap_or_else(|| panic!("{name} is not one of {BUGS:?}"));
    PLANTED.set(bug).expect("one bug in one process");
}

pub fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(&bug)
}
