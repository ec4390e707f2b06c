//! Whether a keyspace is what the model says, and whether a refusal is the right one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use esker::{Config, Error, Keyspace, VerifyOptions};

use super::machine::Machine;
use super::reads::brief;
use crate::store::{Entries, entries};

/// The content of a keyspace at one commit; what did not change since is shared.
pub type Frozen = BTreeMap<String, Arc<Entries>>;

/// Panics at the first difference.
pub fn assert_same(keyspace: &Keyspace, expected: &Frozen, when: &str) {
    let names: Vec<_> = expected.keys().cloned().collect();
    assert_eq!(keyspace.partitions(), names, "the partitions {when}");
    for (name, expected) in expected {
        let partition = keyspace.open_partition(name).expect("open").expect("is listed");
        let difference = first_difference(expected, &entries(&partition));
        assert!(difference.is_none(), "{name} {when}: {}", difference.unwrap_or_default());
    }
}

/// The first key at which two partitions differ, short enough to print.
fn first_difference(expected: &Entries, found: &Entries) -> Option<String> {
    if expected == found {
        return None;
    }
    let keys: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let key = keys.into_iter().find(|key| expected.get(*key) != found.get(*key))?;
    let show = |value: Option<&Vec<u8>>| value.map(|v| (v.len(), v[..v.len().min(16)].to_vec()));
    let (expected, found) = (show(expected.get(key)), show(found.get(key)));
    Some(format!("{:?}: expected {expected:?}, found {found:?}", brief(key)))
}

/// Panics unless the call was refused in the way that `fits`.
pub fn refused<T>(result: esker::Result<T>, what: &str, fits: impl Fn(&Error) -> bool) {
    match result {
        Ok(_) => panic!("{what} was accepted"),
        Err(error) => assert!(fits(&error), "{what} was refused with {error:?}"),
    }
}

impl Machine {
    /// Every byte of a directory that nobody has open, and that nothing lies about in it.
    pub(super) fn check_sound(&self, path: &Path) {
        let report = esker::verify(path, VerifyOptions::default().threads(1)).expect("verify");
        assert!(report.is_sound() && report.strays.is_empty(), "{} {report:?}", path.display());
    }

    /// A directory that nobody has open holds exactly this, up to this commit.
    pub(super) fn check_directory(&self, path: &Path, seqno: u64, expected: &Frozen, what: &str) {
        self.check_sound(path);
        let keyspace = Config::new(path).read_only(true).open().expect("open read-only");
        assert_eq!(keyspace.seqno(), seqno, "the newest commit of {what}");
        assert_eq!(keyspace.uuid(), self.identity.0, "the identity of {what}");
        assert_same(&keyspace, expected, what);
    }
}
