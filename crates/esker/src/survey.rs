//! Looks at a keyspace directory and decides what its journal is worth. Changes nothing.
//!
//! Opening, cold copy and verify all start here. What must stay true: a directory is believed only
//! after CATALOG, every `current`, manifest, floor, named file and listed journal segment was found
//! good; and `decide` never drops a commit that something on disk proves to have been durable.

use std::collections::BTreeSet;
use std::path::Path;

use crate::catalog::{Catalog, PartitionEntry};
use crate::error::{Error, Result};
use crate::files;
use crate::journal::format::{Identity, SEGMENT_HEADER_LEN};
use crate::journal::reader::{self, Scan, Tail};
use crate::lock;
use crate::manifest::{self, Checked, Version};
use crate::planted::{Bug, is_planted};

/// What a directory is, as far as its names tell.
pub(crate) enum Kind {
    Keyspace,
    /// Missing, empty, or an interrupted creation.
    Fresh,
}

pub(crate) fn kind_of(root: &Path) -> Result<Kind> {
    if files::exists(&files::catalog(root))? {
        return Ok(Kind::Keyspace);
    }
    let not_a_keyspace =
        |reason: String| Err(Error::NotAKeyspace { path: root.to_path_buf(), reason });
    if files::exists(root)? && !files::is_dir(root)? {
        return not_a_keyspace("it is not a directory".into());
    }
    for name in files::names(root)? {
        match name.as_str() {
            files::LOCK | "lost+found" => {}
            files::JOURNAL | files::PARTITIONS | files::STAGING => {
                if let Some(first) = files::names(&root.join(&name))?.first() {
                    return not_a_keyspace(format!(
                        "CATALOG is missing, but {name}/{first} is there"
                    ));
                }
            }
            files::CHECKPOINT => {
                return not_a_keyspace("CATALOG is missing, but CHECKPOINT is there".into());
            }
            other if files::is_temporary(other) => {}
            other => return not_a_keyspace(format!("it holds {other:?} and no CATALOG")),
        }
    }
    Ok(Kind::Fresh)
}

/// The catalog of an existing keyspace that is its own; a clear answer for anything else.
pub(crate) fn load_catalog(root: &Path) -> Result<Catalog> {
    match kind_of(root)? {
        Kind::Keyspace => {
            let catalog = Catalog::load(root)?;
            lock::check_owner(root, catalog.uuid)?;
            Ok(catalog)
        }
        Kind::Fresh => {
            let reason =
                if files::exists(root)? { "it has no CATALOG" } else { "it does not exist" };
            Err(Error::NotAKeyspace { path: root.to_path_buf(), reason: reason.into() })
        }
    }
}

/// Checks a tree's `current`, its manifest, its floor, and that every file it names is there.
pub(crate) fn survey_tree(
    root: &Path,
    catalog: &Catalog,
    entry: &PartitionEntry,
) -> Result<Checked> {
    let dir = files::tree(root, entry.tree);
    if !files::exists(&files::current(&dir))? {
        return Err(Error::corrupt(&files::current(&dir), None, "the file is missing"));
    }
    let checked = manifest::check(&dir)?;
    if checked.version.id < entry.floor.version && !is_planted(Bug::FloorNotChecked) {
        return Err(Error::corrupt_because(
            &files::current(&dir),
            Some(0),
            "it names an older version than the partition is known to have had",
            format!("v{} or later", entry.floor.version),
            format!("v{}", checked.version.id),
        ));
    }
    let known = entry.floor.manifest.filter(|_| checked.version.id == entry.floor.version);
    if known.is_some_and(|known| known != checked.hash) && !is_planted(Bug::FloorNotChecked) {
        return Err(Error::corrupt_because(
            &files::current(&dir),
            Some(8),
            "it is of another history: its manifest is not the one that the partition had",
            format!("{:032x}", known.unwrap_or_default()),
            format!("{:032x}", checked.hash),
        ));
    }
    if catalog.clean && checked.version.id > entry.floor.version {
        // A clean close, a checkpoint and a copy record exactly what is there.
        return Err(Error::corrupt_because(
            &files::catalog(root),
            None,
            format!("it is an old copy: the partition {:?} went on after it", entry.name),
            format!("version v{}", checked.version.id),
            format!("version v{}", entry.floor.version),
        ));
    }
    if checked.version.separates_values != entry.options.separate_values_from.is_some() {
        let path = files::version(&dir, checked.version.id);
        return Err(Error::corrupt(&path, None, "the kind of tree is not the one in CATALOG"));
    }
    survey_version(&dir, &checked.version)?;
    Ok(checked)
}

/// Checks that every file which the version names is there and ends as it should.
pub(crate) fn survey_version(tree: &Path, version: &Version) -> Result<()> {
    let tables: Vec<u64> = version.tables().map(|table| table.id).collect();
    survey_files(&files::tables(tree), &tables)?;
    if version.separates_values {
        let blobs: Vec<u64> = version.blobs.iter().map(|blob| blob.id).collect();
        survey_files(&files::blobs(tree), &blobs)?;
    }
    Ok(())
}

fn survey_files(dir: &Path, named: &[u64]) -> Result<()> {
    if !files::is_dir(dir)? {
        return Err(Error::corrupt(dir, None, "the directory is missing"));
    }
    let mut present = BTreeSet::new();
    for name in files::names(dir)? {
        let id = files::parse_id(&name).ok_or_else(|| {
            Error::corrupt(&dir.join(&name), None, "a file of this name does not belong here")
        })?;
        present.insert(id);
    }
    for id in named {
        let path = dir.join(id.to_string());
        if !present.contains(id) {
            return Err(Error::corrupt(&path, None, "the file is missing"));
        }
        manifest::check_archive(&path)?;
    }
    Ok(())
}

/// Reads every segment that CATALOG lists.
fn survey_journal(root: &Path, catalog: &Catalog) -> Result<Vec<Scan>> {
    let identity = Identity { uuid: catalog.uuid, timeline: catalog.timeline };
    let mut scans = Vec::new();
    for id in catalog.first_segment..=catalog.last_segment {
        let path = files::segment(root, id);
        if !files::exists(&path)? {
            return Err(Error::corrupt(&path, None, "the journal segment is missing"));
        }
        scans.push(reader::scan(&path, id, identity, &mut |_| Ok(()))?);
    }
    let listed = catalog.first_segment..=catalog.last_segment;
    for id in segments_on_disk(root)?.into_iter().filter(|id| !listed.contains(id)) {
        let path = files::segment(root, id);
        let misfit = if reader::is_foreign(&path, identity)? {
            format!("it is of another keyspace than the journal segment {id}")
        } else if id > catalog.last_segment && holds_commits(&path, id, identity) {
            format!("it is an old copy: it does not know the journal segment {id} and its commits")
        } else {
            continue;
        };
        return Err(Error::corrupt(&files::catalog(root), None, misfit));
    }
    Ok(scans)
}

/// A segment whose preparation was interrupted holds none.
fn holds_commits(path: &Path, id: u64, identity: Identity) -> bool {
    reader::scan(path, id, identity, &mut |_| Ok(())).is_ok_and(|scan| scan.frames > 0)
}

pub(crate) fn segments_on_disk(root: &Path) -> Result<Vec<u64>> {
    Ok(files::names(&files::journal(root))?
        .iter()
        .filter_map(|n| files::parse_segment(n))
        .collect())
}

/// What replay will do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct JournalPlan {
    /// Segments to replay, whole or up to where they end.
    pub(crate) replay: Vec<u64>,
    /// The newest commit there is.
    pub(crate) last_seqno: u64,
    pub(crate) last_time_ms: u64,
    /// Where a write was cut short: segment and offset.
    pub(crate) torn: Option<(u64, u64)>,
}

/// Decides by table, segment by segment:
///
/// | this segment | an earlier gap | it proves earlier bytes durable | verdict |
/// |---|---|---|---|
/// | broken | any | any | refuse |
/// | continues (its first seqno follows, or it is empty) | no | any | keep |
/// | has frames that do not follow | no | no | drop from here on: unsynced frames before it were lost |
/// | has frames | yes | no | drop: it was never durable |
/// | has frames that do not follow | any | yes | refuse: durable commits are missing |
///
/// A torn tail that frames of the next segment follow without a gap lost nothing but its seal. A
/// segment proves earlier ones durable when one of its own frames was written after one of its
/// syncs: nothing in a segment is synced before everything older is sealed.
fn decide(root: &Path, catalog: &Catalog, scans: &[Scan]) -> Result<JournalPlan> {
    let mut plan = JournalPlan {
        replay: Vec::new(),
        last_seqno: catalog.base_seqno,
        last_time_ms: catalog.last_time_ms,
        torn: None,
    };
    let mut gap = false;
    // Where the journal ends, for the error that says so.
    let mut end = scans.first().map(|scan| (scan.id, scan.end));
    for scan in scans {
        scan.check()?;
        let continues = scan.first_seqno.is_none_or(|first| first == plan.last_seqno + 1);
        if gap || !continues {
            gap = true;
            if scan.frames > 0 && scan.synced_len > SEGMENT_HEADER_LEN as u64 {
                return Err(missing(root, end, plan.last_seqno + 1, scan));
            }
            continue;
        }
        plan.replay.push(scan.id);
        if scan.frames > 0 {
            plan.torn = None;
            end = Some((scan.id, scan.end));
        }
        plan.last_seqno = scan.last_seqno.unwrap_or(plan.last_seqno);
        plan.last_time_ms = plan.last_time_ms.max(scan.last_time_ms);
        if scan.tail == Tail::Torn {
            plan.torn = Some((scan.id, scan.end));
        }
    }
    let end = plan.torn.or(end);
    let floor = catalog.partitions.iter().map(|p| p.floor.flushed_upto).max().unwrap_or(0);
    let durable = catalog.last_seqno.max(floor);
    if plan.last_seqno < durable && !is_planted(Bug::ShortJournalAccepted) {
        let (last, offset) = end.unzip();
        let last = last.unwrap_or(catalog.first_segment);
        return Err(Error::corrupt_because(
            &files::segment(root, last),
            offset,
            "durable commits are missing at the end of the journal",
            format!("commits up to {durable}"),
            format!("commits up to {}", plan.last_seqno),
        ));
    }
    Ok(plan)
}

fn missing(root: &Path, end: Option<(u64, u64)>, expected: u64, next: &Scan) -> Error {
    let (segment, offset) = end.unwrap_or((next.id, SEGMENT_HEADER_LEN as u64));
    Error::corrupt_because(
        &files::segment(root, segment),
        Some(offset),
        format!("it ends too early: segment {} goes on with later commits, durably", next.id),
        format!("commit {expected}"),
        format!("commit {}", next.first_seqno.unwrap_or(0)),
    )
}

/// Survey and decision about the journal in one step.
pub(crate) fn plan_journal(root: &Path, catalog: &Catalog) -> Result<(Vec<Scan>, JournalPlan)> {
    let scans = survey_journal(root, catalog)?;
    let plan = decide(root, catalog, &scans)?;
    Ok((scans, plan))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(id: u64, first: u64, last: u64, tail: Tail, synced: bool) -> Scan {
        let header = SEGMENT_HEADER_LEN as u64;
        Scan {
            id,
            first_seqno: (last >= first).then_some(first),
            last_seqno: (last >= first).then_some(last),
            last_time_ms: 0,
            frames: (last + 1).saturating_sub(first),
            end: 1000,
            len: 2000,
            chain: 0,
            synced_len: if synced { 500 } else { header },
            tail,
        }
    }

    /// Every tail of the first of two segments × whether the second continues × whether it proves
    /// that the first was durable.
    #[test]
    fn every_combination_of_tail_gap_and_proof_is_decided() {
        let catalog = Catalog { last_segment: 2, ..Catalog::new(1, 2) };
        let broken = || {
            let corruption = Error::corrupt(Path::new("x"), None, "rot");
            let Error::Corrupt(corruption) = corruption else { unreachable!() };
            Tail::Broken(corruption)
        };
        for tail in [Tail::Sealed, Tail::Open, Tail::Torn, broken()] {
            for continues in [true, false] {
                for proves in [true, false] {
                    let first = segment(1, 1, 5, tail.clone(), true);
                    let start = if continues { 6 } else { 8 };
                    let second = segment(2, start, 9, Tail::Open, proves);
                    let decided = decide(Path::new("k"), &catalog, &[first, second]);
                    let whole = continues;
                    let case = format!("{tail:?} continues={continues} proves={proves}");
                    match (&tail, whole, proves) {
                        (Tail::Broken(_), ..) => assert!(decided.is_err(), "{case}"),
                        (_, true, _) => assert_eq!(decided.unwrap().last_seqno, 9, "{case}"),
                        (_, false, true) => assert!(decided.is_err(), "{case}"),
                        (_, false, false) => {
                            let plan = decided.unwrap();
                            assert_eq!((plan.last_seqno, plan.replay), (5, vec![1]), "{case}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_journal_that_ends_before_a_durable_commit_is_refused() {
        let mut catalog = Catalog { last_segment: 1, ..Catalog::new(1, 2) };
        let scans = [segment(1, 1, 5, Tail::Torn, true)];
        catalog.last_seqno = 5;
        assert_eq!(decide(Path::new("k"), &catalog, &scans).unwrap().torn, Some((1, 1000)));
        catalog.last_seqno = 6;
        assert!(decide(Path::new("k"), &catalog, &scans).is_err());
    }
}
