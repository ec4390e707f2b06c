//! Whether a program on a failing disk was treated as promised, and what of it survives a power cut.

use std::collections::BTreeSet;

use esker::ErrorKind;

use super::exact::{Case, Finished, luck};
use super::program::{Heard, OPENING, Ran};
use crate::chaos::{self, Rng};
use crate::crash::recorder::disk::{Disk, Luck};
use crate::crash::recorder::history::{Ack, Recording};
use crate::crash::recorder::image::{Image, Ino, Node, Op};
use crate::crash::recorder::injector::{Hit, Kind};
use crate::crash::recorder::judge::{self, Copies, State};

const SPACE: [&str; 3] = ["ENOSPC", "EDQUOT", "EMFILE"];
/// The engine tries again, or another way: nobody hears of these.
const HANDLED: [&str; 5] = ["EINTR", "EXDEV", "EMLINK", "EPERM", "short-write"];
const JOURNAL: &str = ".jnl";

/// Judges a finished run.
pub(super) fn judge(case: &Case<'_>, finished: Finished) -> Result<(), String> {
    let Finished { ran, ops, hits, .. } = finished;
    let Ran { history, heard, opens } = ran?;
    if let Some(wrong) = heard.iter().find(|heard| !is_expected(case, heard, &hits)) {
        let Heard { what, kind, text } = wrong;
        return Err(format!("{what}: an error of the wrong kind, {kind:?}: {text}"));
    }
    check_syncs(&case.ground.base, &ops)?;
    let Some(first) = hits.first() else { return Ok(()) };
    let recording = Recording::new(case.ground.base.clone(), ops, history);
    let mut rng = Rng::new(luck(case));
    let copies = Copies::default();
    let mut disk = Disk::new(&recording.base, None);
    let mut at = 0;
    for (place, kind) in cuts(&recording, first.at, &opens, &mut rng) {
        recording.ops[at..place].iter().for_each(|op| disk.advance(op));
        at = place;
        let image = disk.survivor(&kind, &mut rng);
        let directory = chaos::memory_dir();
        let state =
            State { recording: &recording, index: place, image, copies: &copies, seed: rng.bits() };
        judge::judge(&state, directory.path()).map_err(|text| {
            format!(
                "{text} [after a power cut before operation {place} of {}]",
                recording.ops.len()
            )
        })?;
    }
    Ok(())
}

/// Where the power is cut, in order: when something was promised after the fault, in the open that
/// followed, anywhere, and when all is over.
fn cuts(
    recording: &Recording,
    fault: usize,
    opens: &[(usize, usize)],
    rng: &mut Rng,
) -> Vec<(usize, Luck)> {
    let end = recording.ops.len();
    let promise = recording.acks.iter().find(|(at, ack)| {
        let durable = !matches!(ack, Ack::Commit { durable: false, .. });
        *at >= fault && durable
    });
    let mut cuts = Vec::new();
    if rng.one_in(3) {
        cuts.push((end, Luck::none()));
    }
    cuts.extend(promise.map(|(at, _)| (at + 1, Luck::none())));
    let open = opens.iter().find(|(_, opened)| *opened > fault);
    if let Some((begin, opened)) = open {
        let begin = *begin.max(&fault);
        let place = begin + rng.below((opened - begin) as u64 + 1) as usize;
        cuts.push((place, if rng.one_in(2) { Luck::none() } else { Luck::any(rng) }));
    }
    let anywhere = fault + rng.below((end - fault) as u64 + 1) as usize;
    cuts.push((anywhere, Luck::any(rng)));
    cuts.sort_by_key(|(place, _)| *place);
    cuts
}

/// Whether a call of the engine may answer so.
fn is_expected(case: &Case<'_>, heard: &Heard, hits: &[Hit]) -> bool {
    let name = case.fault.failure.name;
    if HANDLED.contains(&name) || name == "short-read" {
        // lsm-tree reads a block with one call, and does not try again.
        let reading = |hit: &Hit| hit.kind == Kind::Read && hit.path.contains("/partitions/");
        return hits.iter().all(reading) && !HANDLED[1..].contains(&name);
    }
    let about_space = SPACE.contains(&name);
    match heard.kind {
        ErrorKind::Retry => about_space,
        // A sync that failed is never about space: it cannot be tried again. Nor can an install
        // that may be on disk, nor a group whose sync needs an older segment to be sealed
        // (docs/durability.md, "A full disk").
        ErrorKind::Io | ErrorKind::Poisoned => {
            let sync = hits.iter().any(|hit| matches!(hit.kind, Kind::Fsync | Kind::Fsyncdir));
            let undecided = heard.text.contains("cannot install a new version");
            let sealing = heard.text.contains(JOURNAL)
                && ["cannot write", "cannot truncate"].iter().any(|call| heard.text.contains(call));
            !about_space || sync || undecided || sealing
        }
        _ => false,
    }
}

/// A segment whose sync failed is not synced again before the keyspace is opened again.
fn check_syncs(base: &Image, ops: &[Op]) -> Result<(), String> {
    let is_journal = |name: &str| name.ends_with(JOURNAL);
    let directories = base.nodes.keys().flat_map(|dir| base.entries(*dir));
    let mut journal: BTreeSet<Ino> =
        directories.filter(|(name, _)| is_journal(name)).map(|(_, ino)| ino).collect();
    let mut failed: BTreeSet<Ino> = BTreeSet::new();
    for op in ops {
        match op {
            Op::Create { place, ino, node: Node::File(_) } if is_journal(&place.name) => {
                journal.insert(*ino);
            }
            Op::Acknowledge(text) if text == OPENING => failed.clear(),
            Op::Sync { ino } | Op::SyncFailed { ino } if failed.contains(ino) => {
                return Err("a segment is synced again after a failed sync".into());
            }
            Op::SyncFailed { ino } if journal.contains(ino) => _ = failed.insert(*ino),
            _ => {}
        }
    }
    Ok(())
}
