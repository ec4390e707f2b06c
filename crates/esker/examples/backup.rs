//! A checkpoint while four threads write: the pause, and that the copy holds whole batches.
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::sync::atomic::{AtomicBool, Ordering};

use esker::{Keyspace, PartitionOptions, VerifyOptions, verify};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let keyspace = Keyspace::open(dir.path().join("db"))?;
    let numbers = keyspace.partition("numbers", PartitionOptions::default())?;
    let mirror = keyspace.partition("mirror", PartitionOptions::default())?;
    let stop = AtomicBool::new(false);

    let report = std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (keyspace, numbers, mirror, stop) = (&keyspace, &numbers, &mirror, &stop);
            scope.spawn(move || -> esker::Result<()> {
                for number in 0_u64.. {
                    let key = [thread.to_be_bytes(), number.to_be_bytes()].concat();
                    let mut batch = keyspace.batch();
                    batch.insert(numbers, key.clone(), number.to_string());
                    batch.insert(mirror, key, number.to_string());
                    batch.commit()?;
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                Ok(())
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
        let report = keyspace.backup_to(dir.path().join("backup"));
        stop.store(true, Ordering::Relaxed);
        report
    })?;
    println!("commit {}: writers paused for {:?}", report.seqno, report.freeze);
    println!("{} files linked, {} copied", report.linked.files, report.copied.files);

    let found = verify(dir.path().join("backup"), VerifyOptions::default())?;
    assert!(found.is_sound(), "{:?}", found.problems);
    let copy = Keyspace::open(dir.path().join("backup"))?;
    let copied = |name| copy.partition(name, PartitionOptions::default());
    let (numbers, mirror) = (copied("numbers")?.len()?, copied("mirror")?.len()?);
    println!("the copy holds {numbers} entries, mirrored {mirror}");
    assert_eq!(numbers, mirror);
    Ok(())
}
