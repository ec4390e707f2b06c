//! How long an open takes until the first read is answered, after a close and after a kill.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;
use std::time::Instant;

use crate::Result;
use crate::compare::cell::{self, Outcome};
use crate::compare::data::{self, Order, Values};
use crate::compare::options::Spec;
use crate::compare::workloads::{Kind, Workload};
use crate::compare::{child, files};
use crate::peers::{self, KEY_BYTES};

/// What an entry may take in a memtable beside key and value.
const OVERHEAD_BYTES: u64 = 200;
const READY: &str = "ready";

/// Opens the database and reads one key.
///
/// # Errors
///
/// What the engine returns; also when the key is not there.
pub fn run(spec: &Spec, workload: &Workload) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut number = spec.entries / 2;
    if workload.kind == Kind::OpenKill {
        let tail = tail(spec);
        let before = cell::written_bytes()?;
        kill_a_victim(spec)?;
        // What a child wrote counts for its parent once it is waited for.
        outcome.written = cell::written_bytes()? - before;
        files::sync_filesystem(&spec.scratch)?;
        number = spec.entries + tail - 1;
        outcome.add("journal entries", tail as f64);
    }
    let began = Instant::now();
    let peer = spec.open(workload)?;
    let opened = began.elapsed();
    let found = peer.session()?.get(&data::key(number, Order::Spread))?;
    let answered = began.elapsed();
    if !found {
        return Err("what had been written is not there".into());
    }
    outcome.add("open ms", opened.as_secs_f64() * 1e3);
    outcome.add("first read ms", (answered - opened).as_secs_f64() * 1e3);
    outcome.value = Some(answered.as_secs_f64());
    outcome.seconds = answered.as_secs_f64();
    outcome.operations = 1;
    peer.close()?;
    Ok(outcome)
}

/// Entries that fill the journal as far as it goes without a flush of any engine: three quarters
/// of esker's memtable, which is the smallest and counts what an entry takes in memory.
fn tail(spec: &Spec) -> u64 {
    let memtable_bytes = peers::esker::memtable_bytes(spec.buffer_bytes);
    let entry_bytes = KEY_BYTES as u64 + spec.value_bytes as u64 + OVERHEAD_BYTES;
    memtable_bytes * 3 / 4 / entry_bytes
}

/// Lets another process write the tail, and kills it.
fn kill_a_victim(spec: &Spec) -> Result<()> {
    let mut victim = child::spawn("victim", spec, Stdio::piped(), Stdio::inherit())?;
    let stdout = victim.stdout.take().ok_or("the victim has no output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    victim.kill()?;
    victim.wait()?;
    if line.trim() == READY { Ok(()) } else { Err("the victim died before its time".into()) }
}

/// Writes the tail in single puts and waits to be killed, or for the end of standard input: nobody
/// is left then who would.
///
/// # Errors
///
/// What the engine returns.
pub fn be_a_victim(spec: &Spec, workload: &Workload, mut ready: impl FnMut(&str)) -> Result<()> {
    let peer = spec.open(workload)?;
    let mut session = peer.session()?;
    let (mut values, mut random) = (Values::new(spec.value_bytes), data::random(spec.round, 0, 3));
    for number in spec.entries..spec.entries + tail(spec) {
        session.put(&data::key(number, Order::Spread), values.next(&mut random))?;
    }
    // So that the same is there after the kill, whatever an engine keeps in its memory.
    peer.persist()?;
    ready(READY);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
