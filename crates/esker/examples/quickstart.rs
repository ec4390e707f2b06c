//! Open, write, read, batch, snapshot, close.
#![expect(clippy::print_stdout, reason = "an example talks")]

use esker::{Config, Durability, PartitionOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let keyspace = Config::new(dir.path().join("db")).durability(Durability::SyncData).open()?;
    let users = keyspace.partition("users", PartitionOptions::point_reads())?;
    let by_year = keyspace.partition("by year", PartitionOptions::scans())?;

    // Both partitions change together, also if the power fails.
    for (name, year) in [("Ada", 1815), ("Grace", 1906), ("Barbara", 1939)] {
        let mut batch = keyspace.batch();
        batch.insert(&users, name, year.to_string());
        batch.insert(&by_year, format!("{year}/{name}"), "");
        batch.commit()?;
    }

    let snapshot = keyspace.snapshot();
    users.remove("Grace")?;
    println!("Grace now: {:?}", users.get("Grace")?);
    let before = snapshot.get(&users, "Grace")?.unwrap_or_default();
    println!("Grace in the snapshot: {}", String::from_utf8_lossy(&before));
    for key in by_year.range("19"..)?.keys() {
        println!("{}", String::from_utf8_lossy(&key?));
    }
    keyspace.close()?;
    Ok(())
}
