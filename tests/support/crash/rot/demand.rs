//! What must follow from a damage: what `verify` has to name, and what an open may show.
//!
//! Undetectable by nature, and therefore not demanded:
//! - A LOCK that is damaged names nobody, and files that nothing names mean nothing.
//! - The last frames of the active segment with nothing behind them that says they were durable:
//!   damage there is reported, but as a torn tail, and the commits from there on are gone. With
//!   nothing but zeros from the end of a frame on, the segment looks as if it was never written
//!   further.
//! - The number of zeros behind the last frame (a preallocated tail may have any length), and
//!   whatever is behind a seal.
//! - A broken seal with a segment behind it that continues: reported as a torn tail, nothing is lost.
//! - An old CATALOG, or tree, that leads to the same content.
//! - The CHECKPOINT of a copy of a keyspace that was not closed: it may have been opened since.
//!
//! Refused by an open and not by `verify`, which does not look into tables for their commits: a
//! journal that ends before a commit that is in tables, without another sign that it was durable.
//!
//! Found by `verify` and not by an open, which does not hash whole tables: a whole table or blob file
//! of the same number from another tree or keyspace, a blob file in the place of another (where both
//! have a value of one key and length at one offset), blocks of such files in the place of others,
//! and damage in a block that nobody reads.

use std::path::{Path, PathBuf};

use super::damage::{Damage, Kind};
use super::image::{Bytes, Class, Frame, Image, SEGMENT_HEADER_LEN};

/// What a case must lead to.
#[derive(Debug)]
pub struct Demand {
    /// `verify` must find a problem.
    pub must_report: bool,
    /// What problems and refusals may name besides the damaged files.
    pub may_name: Vec<PathBuf>,
    /// CATALOG is whole, but not the one of these files: whichever file does not fit may be named.
    pub misfit: bool,
    /// CATALOG itself is damaged or missing.
    pub catalog: bool,
    /// Where the journal ends early.
    pub torn: Vec<Torn>,
    /// What an open shows if it does not refuse.
    pub seqno: u64,
    /// Whole parts of tables or blob files are in the place of others: their own checksums are
    /// right, and only the hash of the file is not.
    pub borrowed: bool,
}

/// A place at which a segment ends before its end, without a sign that more was durable.
#[derive(Debug)]
pub struct Torn {
    pub path: PathBuf,
    pub offset: u64,
    /// Nothing, or zeros, from there on.
    pub looks_open: bool,
}

impl Demand {
    pub fn of(image: &Image, damage: &Damage) -> Self {
        let mut demand = Self {
            must_report: false,
            may_name: Vec::new(),
            misfit: false,
            catalog: false,
            torn: Vec::new(),
            seqno: image.seqno,
            borrowed: false,
        };
        for (name, bytes) in &damage.files {
            match image.class(name) {
                Class::Lock => demand.must_report |= damage.kind == Kind::Foreign,
                Class::Stray | Class::Segment => {}
                Class::Catalog if matches!(damage.kind, Kind::Stale | Kind::Foreign) => {
                    (demand.misfit, demand.catalog) = (true, true);
                    // Where nothing is left to replay, an old one shows. LOCK tells a foreign one.
                    demand.must_report |= image.clean || damage.kind == Kind::Foreign;
                }
                Class::Catalog => (demand.must_report, demand.catalog) = (true, true),
                // With the journal behind it an old tree may be as good as the new one. Where it is
                // not, CATALOG may be called old as well.
                Class::Current if damage.kind == Kind::RolledBack => {
                    demand.misfit = true;
                    demand.must_report |= image.clean;
                }
                // The first open for writing removes it before anything else.
                Class::Checkpoint if bytes.is_none() && !image.clean => {}
                Class::Current | Class::Manifest | Class::Checkpoint => demand.must_report = true,
                class @ (Class::Table | Class::Blob) => {
                    demand.must_report = true;
                    let moved = [Kind::Misdirected, Kind::Twin, Kind::Foreign];
                    // A blob does not say in which file it belongs, a table does.
                    let swapped = class == Class::Blob && damage.kind == Kind::Swapped;
                    demand.borrowed |= (moved.contains(&damage.kind) || swapped) && bytes.is_some();
                }
            }
        }
        demand.judge_journal(image, damage);
        demand
    }

    fn judge_journal(&mut self, image: &Image, damage: &Damage) {
        let segments = image.segments();
        let (mut lost_from, mut refused) = (None, false);
        for (at, (name, frames)) in segments.iter().enumerate() {
            let Some(bytes) = damage.files.get(*name) else { continue };
            let whole = &image.files[*name];
            let header = bytes.as_ref().and_then(|bytes| bytes.get(..SEGMENT_HEADER_LEN as usize));
            let (Some(bytes), true) = (bytes, header == whole.get(..SEGMENT_HEADER_LEN as usize))
            else {
                refused = true;
                continue;
            };
            let intact = |frame: &Frame| {
                let range = frame.start as usize..frame.end as usize;
                bytes.get(range.clone()) == whole.get(range)
            };
            let hit = frames.iter().position(|frame| !intact(frame));
            let Some(hit) = hit else {
                // Whatever is there now was not written by us, and nothing is missing.
                self.ends(
                    name,
                    frames.last().map_or(SEGMENT_HEADER_LEN, |frame| frame.end),
                    bytes,
                    frames,
                );
                continue;
            };
            if hit == 0 {
                // The journal seems to end in one of the segments before this one.
                self.may_name.extend(segments[..at].iter().map(|(name, _)| (*name).clone()));
            }
            let (start, later) = (frames[hit].start, &segments[at + 1..]);
            self.ends(name, start, bytes, &[]);
            if frames[hit].seal {
                continue;
            }
            let seqno = *lost_from.get_or_insert(frames[hit].seqno);
            let proven_here = frames[hit + 1..].iter().any(|f| intact(f) && f.synced_len > start);
            refused |= proven_here || proven_by(later, damage, image) || seqno <= image.durable;
        }
        self.must_report |= refused;
        if let Some(seqno) = lost_from.filter(|_| !refused) {
            self.seqno = seqno - 1;
        }
    }

    /// Commits are gone, and nothing in journal and CATALOG says that they were durable.
    pub fn shortens(&self, image: &Image) -> bool {
        self.seqno < image.seqno
    }

    fn ends(&mut self, name: &Path, offset: u64, bytes: &Bytes, frames: &[Frame]) {
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        // Nothing behind a seal is read.
        let sealed = frames.last().is_some_and(|frame| frame.seal);
        let looks_open = sealed || rest.iter().all(|byte| *byte == 0);
        self.torn.push(Torn { path: name.to_path_buf(), offset, looks_open });
    }
}

/// Whether a frame of these segments that can still be read says that older segments were durable.
fn proven_by(later: &[(&PathBuf, Vec<Frame>)], damage: &Damage, image: &Image) -> bool {
    later.iter().any(|(name, frames)| {
        let whole = &image.files[*name];
        let now = match damage.files.get(*name) {
            None => Some(whole),
            Some(changed) => changed.as_ref(),
        };
        let same = now.map_or(0, |now| now.iter().zip(whole).take_while(|(a, b)| a == b).count());
        let readable = frames.iter().take_while(|frame| frame.end as usize <= same);
        readable.into_iter().any(|frame| frame.synced_len > SEGMENT_HEADER_LEN)
    })
}
