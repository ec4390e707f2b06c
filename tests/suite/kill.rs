//! A writing process is killed (SIGKILL) at a random moment, again and again on the same keyspace.
//!
//! Each writer thread counts. Every commit puts the count under its own key in one partition and
//! renews `last` in all three, so what survives is judged without a log: per writer the counts up
//! to `last` without a hole, the three partitions in agreement, nothing acknowledged missing, at
//! most the one commit that was under way in addition; and because every commit has a number of its
//! own, the newest number must be the number of commits found: nothing is lost in between and
//! nothing is invented.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use esker::{Durability, Keyspace, Partition, PartitionOptions, Transfer};
use esker::{VerifyOptions, verify};
use esker_tests::chaos::{self, Model, Rng};
use esker_tests::crash::script::config;

const DIR: &str = "ESKER_TEST_KILL_DIR";
const SEED: &str = "ESKER_TEST_KILL_SEED";
const WRITERS: usize = 3;
const NAMES: [&str; 3] = ["one", "two", "three"];
const ROUNDS: u64 = 25;
/// So many kills hit the same keyspace before a new one is begun.
const GENERATIONS: u64 = 5;

fn partition(keyspace: &Keyspace, at: usize) -> Partition {
    let options = PartitionOptions::default().block_bytes(512).table_bytes(8 << 10).l0_runs(2);
    let options = options.separate_values_from((at == 1).then_some(200));
    keyspace.partition(NAMES[at], options).unwrap()
}

fn key(writer: usize, count: u64) -> Vec<u8> {
    format!("writer {writer} count {count:08}").into_bytes()
}

fn last_key(writer: usize) -> Vec<u8> {
    format!("writer {writer} last").into_bytes()
}

/// What commit `count` of a writer stores: short, separated, or large enough to be compressed.
fn value(writer: usize, count: u64) -> Vec<u8> {
    let mut rng = Rng::new(count * 31 + writer as u64);
    match count % 40 {
        7 => rng.bytes(300),
        23 => vec![count as u8; 6000],
        _ => rng.bytes(8 + (count % 50) as usize),
    }
}

// ---- the process that is killed ----------------------------------------------------------------

#[test]
fn writing_until_it_is_killed() {
    let (Some(dir), Ok(seed)) = (std::env::var_os(DIR), std::env::var(SEED)) else { return };
    let dir = PathBuf::from(dir);
    let mut rng = Rng::new(seed.parse().unwrap());
    let keyspace = config(&dir.join("db")).open().unwrap();
    let partitions = [0, 1, 2].map(|at| partition(&keyspace, at));
    say("ready");
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (keyspace, partitions, rng) = (&keyspace, &partitions, Rng::new(rng.bits()));
            scope.spawn(move || write(keyspace, partitions, writer, rng));
        }
        let (churn, checkpoints) = (Rng::new(rng.bits()), Rng::new(rng.bits()));
        scope.spawn(|| flush_and_compact(&keyspace, &partitions, churn));
        take_checkpoints(&keyspace, &dir, checkpoints);
    });
}

/// One line to the parent, whole: it is in the pipe when this returns.
fn say(line: &str) {
    std::io::stdout().lock().write_all(format!("> {line}\n").as_bytes()).unwrap();
}

fn write(keyspace: &Keyspace, partitions: &[Partition; 3], writer: usize, mut rng: Rng) {
    let last = partitions[0].get(last_key(writer)).unwrap();
    let mut count = last.map_or(0, |bytes| u64::from_le_bytes(bytes[..].try_into().unwrap()) + 1);
    loop {
        let mut batch = keyspace.batch();
        let at = (count % 3) as usize;
        batch.insert(&partitions[at], key(writer, count), value(writer, count));
        for partition in partitions {
            batch.insert(partition, last_key(writer), count.to_le_bytes().to_vec());
        }
        match rng.below(20) {
            0 => _ = batch.durability(Durability::SyncAll),
            1 | 2 => _ = batch.durability(Durability::SyncData),
            _ => {}
        }
        let seqno = batch.commit().unwrap();
        say(&format!("commit {writer} {count} {seqno}"));
        count += 1;
    }
}

fn flush_and_compact(keyspace: &Keyspace, partitions: &[Partition; 3], mut rng: Rng) {
    loop {
        std::thread::sleep(Duration::from_micros(rng.below(5000)));
        if rng.one_in(3) {
            partitions[rng.below(3) as usize].compact().unwrap();
        } else {
            keyspace.flush().unwrap();
        }
    }
}

fn take_checkpoints(keyspace: &Keyspace, dir: &Path, mut rng: Rng) {
    let first = std::fs::read_dir(dir).unwrap().count();
    for number in first.. {
        std::thread::sleep(Duration::from_micros(rng.below(15_000)));
        let transfer = if rng.one_in(3) { Transfer::Copy } else { Transfer::Auto };
        let target = format!("checkpoint-{number}");
        let builder = keyspace.checkpoint().transfer(transfer).flush_first(rng.one_in(3));
        let report = builder.write_to(dir.join(&target)).unwrap();
        say(&format!("checkpoint {target} {}", report.seqno));
    }
}

// ---- the process that kills and looks ----------------------------------------------------------

/// What the child said before it died.
#[derive(Debug, Default)]
struct Said {
    ready: bool,
    /// Per writer the newest count that was acknowledged.
    commits: BTreeMap<usize, u64>,
    newest_seqno: u64,
    checkpoints: BTreeMap<String, u64>,
}

impl Said {
    fn hear(&mut self, line: &str) {
        // The test harness of the child prints lines of its own, also in front of the first.
        let Some((_, line)) = line.split_once("> ") else { return };
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["ready"] => self.ready = true,
            ["commit", writer, count, seqno] => {
                let count = count.parse().unwrap();
                let before = self.commits.insert(writer.parse().unwrap(), count);
                assert!(before.is_none_or(|before| before + 1 == count), "{line}");
                self.newest_seqno = self.newest_seqno.max(seqno.parse().unwrap());
            }
            ["checkpoint", name, seqno] => {
                self.checkpoints.insert(name.to_owned(), seqno.parse().unwrap());
            }
            _ => panic!("the child said {line:?}"),
        }
    }
}

/// Starts a child, lets it work for a while, kills it.
fn run_and_kill(dir: &Path, rng: &mut Rng) -> Said {
    let mut child = chaos::rerun("kill::writing_until_it_is_killed");
    child.env(DIR, dir).env(SEED, rng.bits().to_string());
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    let (ready, is_ready) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut said = Said::default();
        for line in lines.lines() {
            said.hear(&line.unwrap());
            if said.ready {
                _ = ready.send(());
            }
        }
        said
    });
    // Mostly in the middle of the work, sometimes while it still opens the keyspace.
    if !rng.one_in(5) {
        _ = is_ready.recv_timeout(Duration::from_secs(30));
    }
    std::thread::sleep(Duration::from_micros(rng.below(150_000)));
    let early = child.try_wait().unwrap();
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(early.is_none(), "the child ended by itself:\n{text}");
    assert!(!text.contains("panicked"), "{text}");
    reader.join().unwrap()
}

/// Judges one content; returns the newest count of each writer.
fn judge(what: &str, content: &Model) -> BTreeMap<usize, u64> {
    let mut newest = BTreeMap::new();
    let mut expected: Model = content.keys().map(|name| (name.clone(), BTreeMap::new())).collect();
    for writer in 0..WRITERS {
        let lasts: Vec<_> =
            content.values().map(|entries| entries.get(&last_key(writer))).collect();
        assert!(lasts.windows(2).all(|w| w[0] == w[1]), "{what}: a batch is cut: {lasts:?}");
        let Some(Some(last)) = lasts.first() else { continue };
        let last_count = u64::from_le_bytes(last[..].try_into().unwrap());
        newest.insert(writer, last_count);
        for entries in expected.values_mut() {
            entries.insert(last_key(writer), last.to_vec());
        }
        for count in 0..=last_count {
            let entries = expected.get_mut(NAMES[(count % 3) as usize]).unwrap();
            entries.insert(key(writer, count), value(writer, count));
        }
    }
    assert_eq!(chaos::difference(&expected, content), None, "{what}");
    newest
}

/// Every commit has one number: those of the writers and `others` (partitions created, ours).
fn assert_counted(what: &str, newest: &BTreeMap<usize, u64>, seqno: u64, others: u64) {
    let commits: u64 = newest.values().map(|count| count + 1).sum();
    assert_eq!(commits + others, seqno, "{what}: {newest:?} and {others} others");
}

fn assert_sound(path: &Path) {
    let report = verify(path, VerifyOptions::default()).unwrap();
    assert!(report.is_sound(), "{}: {:?}", path.display(), report.problems);
}

/// What one keyspace went through, as its judge knows it.
struct Story {
    dir: tempfile::TempDir,
    /// Commits that were not a writer's.
    others: u64,
    newest: BTreeMap<usize, u64>,
    /// Partitions that were seen.
    partitions: usize,
    /// A kill hit before the partitions were there.
    killed_early: bool,
}

impl Story {
    fn look(&mut self, said: &Said) -> usize {
        let db = self.dir.path().join("db");
        if !db.join("CATALOG").exists() {
            assert!(!said.ready && self.partitions == 0, "the keyspace is gone");
            return 0;
        }
        assert_sound(&db);
        let keyspace = config(&db).open().unwrap();
        let content = chaos::content(&keyspace).unwrap();
        assert!(!said.ready || content.len() == 3, "partitions are missing: {:?}", content.keys());
        assert!(content.len() >= self.partitions, "partitions are missing");
        // A partition that is in CATALOG when its own commit did not happen is there, and empty.
        let newest = judge("after the kill", &content);
        for (writer, count) in &newest {
            let acknowledged = said.commits.get(writer).or(self.newest.get(writer));
            let most = acknowledged.map_or(0, |count| count + 1);
            assert!(*count <= most, "writer {writer}: {count} after {acknowledged:?}");
        }
        for (writer, count) in said.commits.iter().chain(&self.newest) {
            assert!(newest.get(writer) >= Some(count), "writer {writer}: {count} was acknowledged");
        }
        let seqno = keyspace.seqno();
        assert!(seqno >= said.newest_seqno, "{seqno} after {}", said.newest_seqno);
        if said.ready {
            if self.partitions < 3 {
                // A kill between CATALOG and the commit that creates a partition leaves it there,
                // empty and without a commit of its own.
                let commits: u64 = newest.values().map(|count| count + 1).sum();
                let uncounted = if self.killed_early { 0..=3 } else { 0..=0 };
                assert!(uncounted.contains(&(commits + 3 - seqno)), "{newest:?} at {seqno}");
                self.others = seqno - commits;
                self.partitions = 3;
            }
            assert_counted("after the kill", &newest, seqno, self.others);
        }
        self.killed_early |= !said.ready;
        let staging: Vec<_> = std::fs::read_dir(db.join("staging")).unwrap().collect();
        assert!(staging.is_empty(), "{staging:?}");
        let checkpoints = self.look_at_checkpoints(said);
        // A keyspace that was killed while it was created goes on as well.
        if self.partitions == 3 {
            let one = keyspace.open_partition("one").unwrap().unwrap();
            one.insert("mine", "after the kill").unwrap();
            one.remove("mine").unwrap();
            self.others += 2;
            keyspace.close().unwrap();
            let report = verify(&db, VerifyOptions::default()).unwrap();
            assert!(report.is_sound() && report.clean, "{report:?}");
            assert!(report.strays.is_empty(), "{:?}", report.strays);
            let again = config(&db).open().unwrap();
            assert_counted("after the reopen", &newest, again.seqno(), self.others);
            assert_eq!(chaos::difference(&content, &chaos::content(&again).unwrap()), None);
        }
        self.newest = newest;
        checkpoints
    }

    /// Everything that has a final name is whole, acknowledged or not; the rest has none.
    fn look_at_checkpoints(&self, said: &Said) -> usize {
        let mut found = 0;
        for entry in std::fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                assert!(name.contains(".esker-"), "{name}");
                std::fs::remove_dir_all(entry.path()).unwrap();
            } else if name != "db" {
                found += 1;
                assert_sound(&entry.path());
                let opened = config(&entry.path()).open().unwrap();
                let newest = judge(&name, &chaos::content(&opened).unwrap());
                assert_counted(&name, &newest, opened.seqno(), self.others);
                let acknowledged = said.checkpoints.get(&name);
                assert!(acknowledged.is_none_or(|seqno| *seqno == opened.seqno()), "{name}");
                drop(opened);
                std::fs::remove_dir_all(entry.path()).unwrap();
            }
        }
        assert!(found >= said.checkpoints.len(), "{found} of {:?}", said.checkpoints);
        found
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let seed = chaos::seed("kill");
    let (began, rounds, mut rng) = (Instant::now(), chaos::rounds(ROUNDS), Rng::new(seed));
    let (mut story, mut commits, mut checkpoints) = (None, 0, 0);
    for round in 0..rounds {
        if round % GENERATIONS == 0 {
            let on_disk = (round / GENERATIONS) % 3 == 2;
            let dir = if on_disk { chaos::disk_dir() } else { chaos::memory_dir() };
            let newest = BTreeMap::new();
            story = Some(Story { dir, others: 0, newest, partitions: 0, killed_early: false });
        }
        let story = story.as_mut().unwrap();
        let before: u64 = story.newest.values().sum();
        let said = run_and_kill(story.dir.path(), &mut rng);
        checkpoints += story.look(&said);
        commits += story.newest.values().sum::<u64>() - before;
    }
    eprintln!(
        "{rounds} kills, {commits} commits, {checkpoints} checkpoints, {:?}",
        began.elapsed()
    );
    assert!(commits > rounds, "hardly anything was written");
}
