//! Opening a keyspace for a command.
//!
//! A command that reads must open read-only: it changes nothing on disk and creates nothing. Only
//! `put`, `load` and `demo` may create a keyspace.

use std::path::Path;

use esker::{Config, Keyspace, Partition};

use crate::failure::{Failure, Outcome};

/// Opens for reading.
pub fn open_to_read(path: &Path) -> Outcome<Keyspace> {
    Ok(Config::new(path).read_only(true).open()?)
}

/// Opens an existing keyspace for writing.
pub fn open_existing(path: &Path) -> Outcome<Keyspace> {
    Ok(Config::new(path).create_if_missing(false).open()?)
}

/// Opens for writing; makes a new keyspace if there is none.
pub fn open_or_create(path: &Path) -> Outcome<Keyspace> {
    Ok(Keyspace::open(path)?)
}

/// The partition of that name, which must exist.
pub fn partition(keyspace: &Keyspace, name: &str) -> Outcome<Partition> {
    keyspace.open_partition(name)?.ok_or_else(|| {
        let path = keyspace.path().display();
        Failure::Failed(format!("there is no partition {name:?} in {path}"))
    })
}
