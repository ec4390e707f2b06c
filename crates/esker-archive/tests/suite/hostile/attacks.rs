//! The attacks: what somebody does who can write every object of a repository, and make every check that
//! needs no key.

mod bombs;
mod links;
mod manifests;
mod others;
mod pieces;
mod sealed;

use esker_archive::ErrorKind;

pub use self::bombs::bombs;
pub use self::links::{links, sites};
pub use self::manifests::{contents, engines, manifests, partitions, paths, sizes};
pub use self::others::{descriptions, foreigners, leases};
pub use self::pieces::pieces;
pub use self::sealed::encrypted;
use super::scene::Scene;

/// What must come of it. `{manifest}`, `{piece}` and `{unfinished}` stand for the names.
pub enum Outcome {
    /// Everything works; what is restored is what was pushed.
    Harmless,
    /// The manifest is refused by all who read it, and pushes go on without it.
    Manifest(&'static str),
    /// The manifest is good, and what it leads to is found out before the target appears.
    Restore(ErrorKind, &'static [&'static str]),
    /// A piece is refused by restores, and by checks that read it.
    Piece(&'static str),
    /// Only checks take offence.
    Found(&'static str),
    /// Nothing can be done with the repository.
    Open(ErrorKind, &'static str),
    /// Restores work; who must know what others do is told the name of the lease.
    Lease(&'static str),
}

pub struct Attack {
    pub name: String,
    pub encrypted: bool,
    pub change: Box<dyn Fn(&Scene)>,
    pub outcome: Outcome,
}

fn attack(name: &str, outcome: Outcome, change: impl Fn(&Scene) + 'static) -> Attack {
    Attack { name: name.to_owned(), encrypted: false, change: Box::new(change), outcome }
}

/// What every other attack begins with.
pub fn nothing() -> Attack {
    attack("nothing", Outcome::Harmless, |_| {})
}
