//! Whole files cut, swapped, replaced by old copies and removed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use esker::{Error, ErrorKind, VerifyOptions, verify};
use esker_tests::chaos;

use super::flips::{Findings, guarded, named, open, points_to};
use super::image::{Image, SEGMENT_HEADER_LEN, frames, is_segment};

const TRUNCATE_STEP: usize = 64;

/// Damage to whole files: each path with the bytes that it has instead, `None` for a missing file.
#[derive(Clone)]
pub(super) struct Harm {
    pub(super) what: String,
    pub(super) files: Vec<(PathBuf, Option<Vec<u8>>)>,
    /// Another file that a report may name.
    pub(super) may_name: Option<PathBuf>,
    /// An open may show everything although something is wrong (the hashes of tables are `verify`'s
    /// business, and CHECKPOINT is not read by an open).
    pub(super) expect: Expect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// `verify` names one of the files; an open refuses, or shows all that it must.
    Reported,
    /// As a crash could have left it: the journal ends early, behind everything proven durable.
    MayEndEarly,
    /// `verify` must report it, an open need not see it.
    ByVerifyAlone,
}

impl Image {
    pub(super) fn cuts(&self) -> Vec<Harm> {
        let mut cuts = Vec::new();
        for (name, bytes) in &self.files {
            for len in (0..bytes.len()).step_by(TRUNCATE_STEP) {
                let frames = if is_segment(name) { frames(bytes) } else { Vec::new() };
                let sealed = frames.last().is_some_and(|frame| frame.seal);
                let active = is_segment(name) && !sealed && len as u64 >= SEGMENT_HEADER_LEN;
                // With no frame left the commits are missing behind the segment before it.
                let empty = frames.first().is_some_and(|first| (len as u64) < first.end);
                let before = self.files.keys().take_while(|n| *n != name).filter(|n| is_segment(n));
                let before = before.last().filter(|_| empty && len as u64 >= SEGMENT_HEADER_LEN);
                cuts.push(Harm {
                    what: format!("{} cut to {len} bytes", name.display()),
                    files: vec![(name.clone(), Some(bytes[..len].to_vec()))],
                    may_name: before.cloned(),
                    expect: if active { Expect::MayEndEarly } else { Expect::Reported },
                });
            }
        }
        cuts
    }

    pub(super) fn swaps(&self) -> Vec<Harm> {
        let mut swaps = Vec::new();
        let kind = |name: &Path| match name.parent().and_then(Path::file_name) {
            _ if is_segment(name) => Some("segment"),
            Some(dir) if dir == "tables" => Some("table"),
            Some(dir) if dir == "blobs" => Some("blob file"),
            _ if name.ends_with("current") => Some("current"),
            _ => None,
        };
        let names: Vec<_> = self.files.keys().collect();
        for (at, one) in names.iter().enumerate() {
            for other in &names[at + 1..] {
                // Tables of the same number in two trees.
                let twins = kind(one) == Some("table") && one.file_name() == other.file_name();
                if kind(one).is_some()
                    && kind(one) == kind(other)
                    && self.files[*one] != self.files[*other]
                {
                    swaps.push(Harm {
                        what: format!("{} and {} swapped", one.display(), other.display()),
                        files: vec![
                            ((*one).clone(), Some(self.files[*other].clone())),
                            ((*other).clone(), Some(self.files[*one].clone())),
                        ],
                        may_name: None,
                        expect: if twins { Expect::ByVerifyAlone } else { Expect::Reported },
                    });
                }
            }
        }
        swaps
    }

    pub(super) fn removals(&self) -> Vec<Harm> {
        let removal = |name: &PathBuf| Harm {
            what: format!("{} removed", name.display()),
            files: vec![(name.clone(), None)],
            may_name: None,
            expect: Expect::Reported,
        };
        self.files.keys().map(removal).collect()
    }

    /// Files of an earlier state of the same keyspace in place of the newer ones.
    pub(super) fn old_copies(&self, old: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<Harm> {
        let mut harms = Vec::new();
        let catalog = PathBuf::from("CATALOG");
        let mut push = |what: &str, names: Vec<&PathBuf>| {
            let files: Vec<_> =
                names.iter().map(|n| ((*n).clone(), old.get(*n).cloned())).collect();
            assert!(files.iter().any(|(n, bytes)| self.files.get(n) != bytes.as_ref()), "{what}");
            harms.push(Harm { what: what.into(), files, may_name: None, expect: Expect::Reported });
        };
        push("an old CATALOG", vec![&catalog]);
        for tree in ["1", "2"] {
            let dir = Path::new("partitions").join(tree);
            let all: Vec<&PathBuf> = old.keys().filter(|name| name.starts_with(&dir)).collect();
            let current = dir.join("current");
            push(&format!("an old current of tree {tree}"), vec![&current]);
            push(&format!("an old current, manifest and tables of tree {tree}"), all);
        }
        harms
    }

    /// Does the harm, judges, and puts everything back.
    pub(super) fn suffer(&self, harm: &Harm, base: &Path, findings: &mut Findings) {
        let put = |root: &Path, name: &Path, bytes: Option<&Vec<u8>>| match bytes {
            Some(bytes) => fs::write(root.join(name), bytes).unwrap(),
            None => _ = fs::remove_file(root.join(name)),
        };
        harm.files.iter().for_each(|(name, bytes)| put(&self.path, name, bytes.as_ref()));
        let place = format!("{} of {}", harm.what, self.path.display());
        let verified = guarded(findings, &format!("verify: {place}"), || {
            verify(&self.path, VerifyOptions::default().threads(1))
        });
        let points = |path: &Path, root: &Path| {
            let mut names = harm.files.iter().map(|(name, _)| name).chain(&harm.may_name);
            names.any(|name| points_to(path, root, name))
        };
        let reported = match &verified {
            None => true,
            Some(Err(error)) => {
                if error.kind() != ErrorKind::Corrupt
                    && !matches!(error, Error::NotAKeyspace { .. })
                {
                    findings.add("verify gives up", &format!("{place}: {error}"));
                }
                true
            }
            Some(Ok(report)) => {
                if !report.is_sound()
                    && !report.problems.iter().any(|p| points(&p.path, &self.path))
                {
                    let problems = format!("{place}: {:?}", report.problems);
                    findings.add("verify names another file", &problems);
                }
                !report.is_sound() || report.torn_tail.is_some()
            }
        };
        if !reported && harm.expect != Expect::MayEndEarly {
            findings.add("not reported by verify", &place);
        }
        let copy = base.join("writable");
        chaos::copy_tree(&self.path, &copy);
        for (root, read_only) in [(&self.path, true), (&copy, false)] {
            let opened = guarded(findings, &format!("open: {place}"), || open(root, read_only));
            match opened {
                None => {}
                Some(Ok((seqno, found))) => {
                    let right = self.history.get(&seqno) == Some(&found)
                        || harm.expect == Expect::ByVerifyAlone;
                    let enough = match harm.expect {
                        Expect::Reported | Expect::ByVerifyAlone => seqno == self.seqno,
                        Expect::MayEndEarly => seqno >= self.durable,
                    };
                    if !right || !enough {
                        let known = if reported { "reported by verify only" } else { "silent" };
                        let detail = format!(
                            "{place}: commit {seqno} of {}, content right: {right}",
                            self.seqno
                        );
                        findings.add(&format!("a wrong open, {known}"), &detail);
                    }
                }
                Some(Err(error)) => {
                    let refused = error.kind() == ErrorKind::Corrupt
                        || matches!(error, Error::NotAKeyspace { .. });
                    let named = named(&error).is_some_and(|path| {
                        points(&path, root) || matches!(error, Error::NotAKeyspace { .. })
                    });
                    if !refused {
                        findings.add("open fails oddly", &format!("{place}: {error}"));
                    } else if !named {
                        findings.add("open names another file", &format!("{place}: {error}"));
                    }
                }
            }
        }
        fs::remove_dir_all(&copy).unwrap();
        harm.files.iter().for_each(|(name, _)| put(&self.path, name, self.files.get(name)));
    }
}
