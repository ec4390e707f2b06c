//! Cuts a real filesystem off (ext4 and XFS on loop devices) while it is written to.
//!
//! The shutdown ioctl makes the filesystem forget what it has not written to its device, journal
//! included, and refuse everything until it is mounted anew: to what is above it, a power cut. Only
//! what was heard before the ioctl counts as acknowledged: a sync that is under way at the cut can
//! return success for nothing.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use super::judge::{Cut, Story};
use super::process::Running;
use super::said::Said;
use super::worker::Work;
use super::{Options, Outcome, story_seed};
use crate::chaos::{self, Rng};
use crate::mounts::{EXT4, Filesystem, Mount, XFS};

/// So many cuts hit the same keyspace before a new one is begun.
const GENERATIONS: u64 = 5;
/// Nobody waits longer for the ioctl.
const SWITCH_LIMIT: Duration = Duration::from_secs(60);

/// _IOR('X', 125, u32) with the flag 2: without writing the filesystem's own journal. A child
/// process does it, because this workspace has no unsafe code.
const SHUTDOWN: &str = "
import fcntl, os, struct, sys
print('ready', flush=True)
for line in sys.stdin:
    handle = os.open(line.rstrip('\\n'), os.O_RDONLY)
    fcntl.ioctl(handle, 0x8004587d, struct.pack('I', 2))
    os.close(handle)
    print('cut', flush=True)
";

pub fn run(options: &Options) -> Outcome {
    let mut switch = match Switch::new() {
        Ok(switch) => switch,
        Err(missing) => return Outcome::Skipped { missing },
    };
    let place = chaos::memory_dir();
    let mut disks = Vec::new();
    let mut missing = Vec::new();
    for kind in [EXT4, XFS] {
        let image = place.path().join(format!("{}.image", kind.name));
        match Mount::image(kind, &image, &place.path().join(kind.name)) {
            Ok(mount) => disks.push((kind, mount)),
            Err(reason) => missing.push(format!("{}: {reason}", kind.name)),
        }
    }
    if disks.is_empty() {
        return Outcome::Skipped { missing: missing.join("; ") };
    }
    for reason in &missing {
        crate::skip("a part of power", reason);
    }
    let (mut passed, mut failures) = (0, Vec::new());
    for (at, (kind, disk)) in disks.iter().enumerate() {
        let share = options.states / disks.len() as u64;
        let extra = u64::from((at as u64) < options.states % disks.len() as u64);
        let (cuts, failed) = cut_often(*kind, disk, &mut switch, share + extra, options.seed);
        eprintln!("power: {cuts} cuts of {} passed, {} failed", kind.name, failed.len());
        passed += cuts;
        failures.extend(failed);
    }
    Outcome::Ran { passed, failures }
}

fn cut_often(
    kind: Filesystem,
    disk: &Mount,
    switch: &mut Switch,
    cuts: u64,
    seed: u64,
) -> (u64, Vec<String>) {
    let (mut passed, mut failures, mut left, mut number) = (0, Vec::new(), cuts, 0);
    while left > 0 {
        let some = left.min(GENERATIONS);
        left -= some;
        let seed = story_seed(seed, number);
        let dir = disk.path().join(format!("work-{number}"));
        number += 1;
        if let Err((before, sentence)) = story(&dir, disk, switch, seed, some) {
            passed += before;
            failures.push(format!(
                "{} seed {seed}: {sentence}; repeat: crash power --states {} --seed {seed}",
                kind.name,
                some * 2
            ));
        } else {
            passed += some;
        }
        // What stays is only in the way; a filesystem without room will say so.
        let _ = disk.remount();
        let _ = std::fs::remove_dir_all(&dir);
    }
    (passed, failures)
}

/// One keyspace through some cuts; on a failure, how many went well before.
fn story(
    dir: &Path,
    disk: &Mount,
    switch: &mut Switch,
    seed: u64,
    cuts: u64,
) -> Result<(), (u64, String)> {
    let mut rng = Rng::new(seed);
    let prepared = std::fs::create_dir(dir)
        .and_then(|()| std::fs::File::open(disk.path())?.sync_all())
        .map_err(|e| format!("create a directory: {e}"));
    prepared.map_err(|sentence| (0, sentence))?;
    let mut story = Story::new(dir);
    for cut in 0..cuts {
        let looked = cut_and_look(dir, disk, switch, &mut rng, &mut story);
        looked.map_err(|sentence| (cut, format!("cut {cut}: {sentence}")))?;
    }
    Ok(())
}

fn cut_and_look(
    dir: &Path,
    disk: &Mount,
    switch: &mut Switch,
    rng: &mut Rng,
    story: &mut Story,
) -> Result<(), String> {
    let work = Work {
        dir: dir.to_path_buf(),
        seed: rng.bits(),
        writers: 1 + rng.below(3) as usize,
        commits: 50 + rng.below(400),
        lives: 0,
        patience: Duration::ZERO,
        tidy: false,
    };
    let mut running = Running::start_for_disturbance(&work, rng)?;
    std::thread::sleep(Duration::from_micros(rng.below(200_000)));
    let early = !running.is_alive();
    let sure = running.said();
    switch.cut(disk.path())?;
    let finished = running.kill().map_err(|e| format!("kill: {e}"))?;
    disk.remount()?;
    // Before the cut nothing may have failed; after it everything does.
    if early || !sure.wrong.is_empty() || !sure.failed.is_empty() {
        let Said { wrong, failed, .. } = sure;
        return Err(format!("the worker: {wrong:?} {failed:?} {}", finished.stderr));
    }
    if finished.said.wrong.iter().any(|text| text.starts_with("panicked")) {
        return Err(format!("after the cut: {:?}", finished.said.wrong));
    }
    story.look(&sure, &finished.said, Cut::Machine).map(|_| ())
}

/// The process that makes the ioctl; it is ready before the moment comes.
struct Switch {
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
}

impl Switch {
    fn new() -> Result<Self, String> {
        let mut command = Command::new("python3");
        command.args(["-c", SHUTDOWN]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("python3 for the ioctl: {e}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("python3 for the ioctl: no pipes".into());
        };
        let (lines, answers) = mpsc::channel();
        std::thread::spawn(move || {
            let mut all = BufReader::new(output).lines().map_while(Result::ok);
            // Nobody listens any more when the switch was given up.
            while all.next().is_some_and(|line| lines.send(line).is_ok()) {}
        });
        let mut switch = Self { child, input, answers };
        switch.expect("ready")?;
        Ok(switch)
    }

    fn cut(&mut self, path: &Path) -> Result<(), String> {
        writeln!(self.input, "{}", path.display()).map_err(|e| format!("the ioctl: {e}"))?;
        self.expect("cut")
    }

    fn expect(&mut self, word: &str) -> Result<(), String> {
        let line = self.answers.recv_timeout(SWITCH_LIMIT);
        let line = line.map_err(|e| format!("python3 for the ioctl: no {word:?}: {e}"))?;
        if line == word { Ok(()) } else { Err(format!("python3 for the ioctl: {line}")) }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // It waits for a line that does not come.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
