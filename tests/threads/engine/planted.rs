//! The bugs of the engine's own list, one of them switched on for the life of the process.

pub use esker::planted::{Bug, is_planted, unless};

/// Switches the bug of this name on.
pub fn plant(name: &str) {
    let bug = esker_tests::planted::parse(name);
    let bug = bug.unwrap_or_else(|| panic!("there is no bug {name:?}"));
    esker::planted::plant(Some(bug));
}
