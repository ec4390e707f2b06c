//! A large repository in memory: how long it takes to look at it, and how much memory.
//!
//! Its backups are made up: manifests as docs/format.md has them, and pieces of the lengths that these
//! say, all of the same bytes. Only what is pushed in the end is a checkpoint.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_archive::{CheckOptions, Policy, PruneOptions, PushOptions, Repository};
use esker_bench::table::{Table, mebibytes, millis};
use esker_bench::{Result, machine};
use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use serde_json::json;
use xxhash_rust::xxh3::xxh3_128;

/// The length of every made-up file, raw and stored.
const FILE_BYTES: u64 = 1 << 20;
const STORED_BYTES: usize = 600_000;
const UUID: u128 = 0xE5;

pub fn run(backups: u64, files: u64, each: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let store = Arc::new(InMemory::new());
    let repository = Repository::create_in(store.clone(), "", Default::default())?;
    let made = Made { backups, files, each };
    let manifest_bytes = runtime.block_on(made.fill(&store))?;
    println!(
        "{backups} backups of {each} files, {files} files in all; manifests of {} in all\n",
        mebibytes(manifest_bytes)
    );
    let mut table = Table::new(&["what", "time", "resident before", "peak over that"]);
    let mut measure = |what: &str, call: &mut dyn FnMut() -> Result<String>| -> Result<()> {
        machine::forget_peak()?;
        let (before, began) = (machine::resident()?, Instant::now());
        let said = call()?;
        let over = machine::resident_peak()?.saturating_sub(before);
        let time = millis(began.elapsed());
        table.row([format!("{what}: {said}"), time, mebibytes(before), mebibytes(over)]);
        Ok(())
    };
    measure("list", &mut || Ok(format!("{} backups", repository.list()?.len())))?;
    measure("what each backup pins", &mut || Ok(format!("{} backups", repository.infos()?.len())))?;
    measure("check", &mut || {
        let report = repository.check(CheckOptions::default())?;
        let problems = report.problems.len();
        Ok(format!("{} pieces, {problems} problems", report.pieces))
    })?;
    measure("prune plan", &mut || {
        let options = PruneOptions::default().dry_run(true);
        let policy = Policy::default().keep_last(backups / 2).keep_within(Duration::from_secs(1));
        let report = repository.prune(&policy, options)?;
        Ok(format!("{} of {backups} backups go", report.removed.len()))
    })?;
    let dir = tempfile::tempdir()?;
    let checkpoint = real_checkpoint(dir.path(), each)?;
    let first = repository.push_directory(&checkpoint, PushOptions::default())?;
    measure("push of nothing", &mut || {
        let report = repository.push_directory(&checkpoint, PushOptions::default())?;
        Ok(format!("{} files, {} bytes sent", report.files, report.sent_bytes))
    })?;
    println!("{table}\nThe checkpoint that is pushed has {} files.", first.files);
    Ok(())
}

struct Made {
    backups: u64,
    files: u64,
    each: u64,
}

impl Made {
    /// Bytes of all manifests.
    async fn fill(&self, store: &InMemory) -> Result<u64> {
        let body = Bytes::from(vec![0; STORED_BYTES]);
        for file in 0..self.files {
            let hash = hash(file);
            let name = format!("files/{:02x}/{hash:032x}-{FILE_BYTES}/0", hash >> 120);
            store.put(&Path::from(name), body.clone().into()).await?;
        }
        let mut total = 0;
        for backup in 0..self.backups {
            let name = format!("backups/{UUID:032x}/{:032x}/{backup:020}-{:016x}", 1, 1);
            let manifest = encode(&name, &self.json(backup)?)?;
            total += manifest.len() as u64;
            store.put(&Path::from(name), manifest.into()).await?;
        }
        Ok(total)
    }

    /// The files of a backup: from one to the next some go and as many come.
    fn json(&self, backup: u64) -> Result<Vec<u8>> {
        let step = (self.files - self.each) as f64 / (self.backups - 1).max(1) as f64;
        let first = (backup as f64 * step) as u64;
        let file = |file: u64| {
            json!({
                "path": format!("partitions/{}/tables/{file}", 1 + file % 8),
                "bytes": FILE_BYTES,
                "xxh3": format!("{:032x}", hash(file)),
                "partition": format!("partition-{}", file % 8),
                "pieces": [STORED_BYTES],
            })
        };
        let small = |path: &str| {
            let hash = format!("{:032x}", xxh3_128(b"1"));
            json!({"path": path, "bytes": 1, "xxh3": hash, "inline": "31"})
        };
        let files = ["CATALOG", "CHECKPOINT"].map(small).into_iter();
        let files = files.chain((first..first + self.each).map(file));
        Ok(serde_json::to_vec(&json!({
            "created_ms": 1_700_000_000_000_u64 + backup * 3_600_000,
            "partitions": (0..8).map(|p| format!("partition-{p}")).collect::<Vec<_>>(),
            "left_out": [],
            "added_bytes": 0,
            "directories": [],
            "files": files.collect::<Vec<_>>(),
        }))?)
    }
}

fn hash(file: u64) -> u128 {
    xxh3_128(&file.to_le_bytes())
}

/// A manifest as docs/format.md, "Backup", has it.
fn encode(name: &str, json: &[u8]) -> Result<Vec<u8>> {
    let packed = zstd::bulk::compress(json, 3)?;
    let mut bytes = b"ESKRBKP\0".to_vec();
    bytes.extend_from_slice(&1_u32.to_le_bytes());
    bytes.extend_from_slice(&0_u32.to_le_bytes());
    bytes.extend_from_slice(&[0; 16]);
    let check = xxh3_128(&[name.as_bytes(), &bytes, &packed].concat());
    bytes.extend_from_slice(&check.to_le_bytes());
    bytes.extend_from_slice(&packed);
    Ok(bytes)
}

/// A checkpoint with about so many tables.
fn real_checkpoint(dir: &std::path::Path, tables: u64) -> Result<std::path::PathBuf> {
    let partitions = tables.div_ceil(400).max(1) as usize;
    let mut fixture = esker_bench::fixture::Fixture::create(&dir.join("db"), partitions)?;
    fixture.grow(tables as usize)?;
    let checkpoint = dir.join("checkpoint");
    fixture.keyspace.backup_to(&checkpoint)?;
    Ok(checkpoint)
}
