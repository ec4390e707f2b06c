//! Known bugs that tests can switch on, to show that they would be found.
//!
//! Without the feature `planted` nothing of this exists in the program.

/// A bug that a test can plant.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bug {
    /// A checkpoint takes the trees' versions after the freeze instead of in it.
    VersionsClonedAfterTheFreeze,
}

#[cfg(feature = "planted")]
static PLANTED: std::sync::Mutex<Option<Bug>> = std::sync::Mutex::new(None);

/// Plants a bug for the whole process, or removes it.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    *PLANTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = bug;
}

#[cfg(feature = "planted")]
pub(crate) fn is_planted(bug: Bug) -> bool {
    *PLANTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) == Some(bug)
}

#[cfg(not(feature = "planted"))]
pub(crate) fn is_planted(_bug: Bug) -> bool {
    false
}
