//! Values of a megabyte beside small ones: kept in files of their own, compaction moves their
//! places only.
#![expect(clippy::print_stdout, reason = "an example talks")]

use esker::{Keyspace, PartitionOptions};

const LARGE: usize = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let keyspace = Keyspace::open(dir.path().join("db"))?;
    let options = PartitionOptions::default().separate_values_from(Some(16 << 10));
    let pictures = keyspace.partition("pictures", options)?;
    for number in 0..32_u32 {
        let mut picture = vec![0; LARGE];
        picture
            .iter_mut()
            .zip(number..)
            .for_each(|(byte, at)| *byte = (at.wrapping_mul(at) >> 3) as u8);
        pictures.insert(format!("picture {number:02}"), picture)?;
        pictures.insert(format!("name of {number:02}"), format!("Picture No. {number}"))?;
    }
    pictures.compact()?;
    let statistics = keyspace.statistics();
    let partition = &statistics.partitions[0];
    println!("{} tables, {} blob files", partition.tables, partition.blob_files);
    println!("lengths without loading: {:?}", pictures.size_of("picture 07")?);
    // Keys alone touch no blob file.
    assert_eq!(pictures.prefix("picture")?.keys().count(), 32);
    keyspace.backup_to(dir.path().join("backup"))?;
    let copy = Keyspace::open(dir.path().join("backup"))?;
    let copied = copy.partition("pictures", PartitionOptions::default())?;
    assert_eq!(copied.get("picture 31")?, pictures.get("picture 31")?);
    Ok(())
}
