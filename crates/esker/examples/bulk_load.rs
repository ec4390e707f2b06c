//! Bulk loading: sorted entries go straight into tables and appear at once, in one commit, while the
//! keyspace is read and written.
//!
//! `cargo run --release -p esker --example bulk_load [ENTRIES]`
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::time::Instant;

use esker::{Keyspace, PartitionOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let entries: u64 = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let keyspace = Keyspace::open(dir.path().join("db"))?;
    let numbers = keyspace.partition("numbers", PartitionOptions::default())?;
    numbers.insert(7_u64.to_be_bytes(), "written before")?;

    // Keys have to ascend: numbers do, as bytes, when the most significant byte comes first.
    let began = Instant::now();
    let mut ingest = numbers.ingest()?;
    for number in 0..entries {
        ingest.insert(number.to_be_bytes(), number.to_string())?;
    }
    let shown = numbers.get(7_u64.to_be_bytes())?;
    assert_eq!(shown.as_deref(), Some(&b"written before"[..]), "nothing shows yet");
    let report = ingest.finish()?;
    println!(
        "{} entries in {:.1?} are commit {}, durable and visible",
        report.entries,
        began.elapsed(),
        report.seqno
    );

    // It hides what was written before. What is written now is newer.
    assert_eq!(numbers.get(7_u64.to_be_bytes())?.as_deref(), Some(&b"7"[..]));
    numbers.insert(7_u64.to_be_bytes(), "written after")?;

    // An error, or an ingest that is dropped, leaves nothing.
    let mut ingest = numbers.ingest()?;
    ingest.insert("b", "")?;
    let error = ingest.insert("a", "").expect_err("keys must ascend");
    println!("refused: {error}");
    drop(ingest);
    assert_eq!(numbers.get("b")?, None);

    println!("as of commit {}: {} entries", keyspace.seqno(), numbers.len()?);
    keyspace.close()?;
    Ok(())
}
