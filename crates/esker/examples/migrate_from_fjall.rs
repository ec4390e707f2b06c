//! Moving from fjall 3 in a program that has both: each keyspace of the database is read in order and
//! becomes a partition, past the journal, in one commit.
//!
//! `esker import-fjall SOURCE TARGET` does it without copying a table, and keeps the options. This way
//! suits a service that converts its data itself when it starts, or that changes keys or values on the
//! way.
//!
//! `cargo run --release -p esker --example migrate_from_fjall`
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::path::Path;

use esker::{Keyspace, PartitionOptions};

/// What the service wrote until yesterday.
fn write_with_fjall(path: &Path) -> fjall::Result<()> {
    let database = fjall::Database::builder(path).open()?;
    let users = database.keyspace("users", fjall::KeyspaceCreateOptions::default)?;
    let visits = database.keyspace("visits", fjall::KeyspaceCreateOptions::default)?;
    for number in 0..1_000_u32 {
        let mut batch = database.batch();
        batch.insert(&users, format!("user {number:04}"), "a name");
        batch.insert(&visits, number.to_be_bytes(), "yesterday");
        batch.commit()?;
    }
    users.remove("user 0007")?;
    database.persist(fjall::PersistMode::SyncAll)
}

/// Takes everything over; the number of entries.
fn migrate(from: &Path, to: &Path) -> Result<u64, Box<dyn std::error::Error>> {
    let database = fjall::Database::builder(from).open()?;
    let keyspace = Keyspace::open(to)?;
    let mut entries = 0;
    for name in database.list_keyspace_names() {
        let source = database.keyspace(&name, fjall::KeyspaceCreateOptions::default)?;
        let partition = keyspace.partition(&name, PartitionOptions::default())?;
        let mut ingest = partition.ingest()?;
        for entry in source.iter() {
            let (key, value) = entry.into_inner()?;
            ingest.insert(&key[..], &value[..])?;
        }
        // A partition shows nothing before this, and all of it behind it.
        let report = ingest.finish()?;
        println!("{name}: {} entries as commit {}", report.entries, report.seqno);
        entries += report.entries;
    }
    keyspace.close()?;
    Ok(entries)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let (old, new) = (dir.path().join("fjall"), dir.path().join("esker"));
    write_with_fjall(&old)?;
    assert_eq!(migrate(&old, &new)?, 1_999);

    let keyspace = Keyspace::open(&new)?;
    let users = keyspace.partition("users", PartitionOptions::default())?;
    assert_eq!(users.get("user 0042")?.as_deref(), Some(&b"a name"[..]));
    assert_eq!(users.get("user 0007")?, None);
    let report = keyspace.backup_to(dir.path().join("backup"))?;
    println!("and a checkpoint at commit {}, after a pause of {:?}", report.seqno, report.freeze);
    Ok(())
}
