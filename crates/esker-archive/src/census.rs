//! What all backups of a repository name, in little memory.
//!
//! Backups share most of their files, so each file is kept once and a backup is a list of numbers. What
//! must stay true: manifests are added one at a time and dropped; a thousand of ten thousand files each
//! take some ten bytes for every file that one names, not a path and a hash. Whatever can be done with
//! one manifest alone is done in its [`Summary`], by the thread that decoded it.

use std::collections::HashMap;

use crate::layout::{BackupId, FileId};
use crate::manifest::{Content, Manifest};
use crate::seal::Sealer;

/// A piece of a file.
pub(crate) type Piece = (FileId, u32);

/// A backup without its files.
#[derive(Clone, Debug)]
pub(crate) struct Backup {
    pub(crate) id: BackupId,
    pub(crate) created_ms: u64,
    pub(crate) label: Option<String>,
    pub(crate) partitions: Vec<String>,
    pub(crate) left_out: Vec<String>,
    /// Of its files, those in the manifest included.
    pub(crate) files: u64,
    pub(crate) raw_bytes: u64,
    pub(crate) added_bytes: u64,
    /// The numbers of the files that it has in pieces; sorted, each once.
    named: Vec<u32>,
}

/// A backup that says of a file's pieces what an earlier one contradicts: at most one can be right.
#[derive(Clone, Debug)]
pub(crate) struct Dispute {
    pub(crate) backup: usize,
    pub(crate) file: FileId,
    pub(crate) pieces: Vec<u64>,
}

/// What a census takes up of a manifest: everything but the paths.
pub(crate) struct Summary {
    backup: Backup,
    /// The files in pieces, in the order of the manifest.
    files: Vec<FileId>,
    /// Of all pieces of those, one file's behind the other's. No object of a piece is as long as 4 GiB.
    lengths: Vec<u32>,
}

impl Summary {
    pub(crate) fn of(manifest: Manifest, sealer: &Sealer) -> Self {
        let raw_bytes = manifest.raw_bytes();
        let (mut files, mut lengths) = (Vec::with_capacity(manifest.files.len()), Vec::new());
        for file in &manifest.files {
            let Content::Pieces(pieces) = &file.content else { continue };
            files.push(sealer.name(file.xxh3, file.bytes));
            let narrow = |bytes: &u64| u32::try_from(*bytes).expect("a manifest was checked");
            lengths.extend(pieces.iter().map(narrow));
        }
        let backup = Backup {
            id: manifest.id,
            created_ms: manifest.created_ms,
            label: manifest.label,
            partitions: manifest.partitions,
            left_out: manifest.left_out,
            files: manifest.files.len() as u64,
            raw_bytes,
            added_bytes: manifest.added_bytes,
            named: Vec::new(),
        };
        Self { backup, files, lengths }
    }
}

/// Every backup and every file.
#[derive(Default)]
pub(crate) struct Census {
    backups: Vec<Backup>,
    numbers: HashMap<FileId, u32>,
    /// Each with the place of its first piece in `lengths`.
    files: Vec<(FileId, usize)>,
    /// Of all pieces, as stored.
    lengths: Vec<u32>,
    disputes: Vec<Dispute>,
}

impl Census {
    /// Takes up a manifest; the number of its backup.
    pub(crate) fn add(&mut self, summary: Summary) -> usize {
        let Summary { backup: mut added, files, lengths } = summary;
        let backup = self.backups.len();
        let mut rest = &lengths[..];
        let mut named = Vec::with_capacity(files.len());
        for file in files {
            let (pieces, behind) = rest.split_at(file.pieces() as usize);
            rest = behind;
            let number = self.number(file, pieces);
            let pieces = pieces.iter().copied().map(u64::from);
            if self.lengths_of(number).ne(pieces.clone()) {
                self.disputes.push(Dispute { backup, file, pieces: pieces.collect() });
            }
            named.push(number);
        }
        named.sort_unstable();
        named.dedup();
        named.shrink_to_fit();
        added.named = named;
        self.backups.push(added);
        backup
    }

    fn number(&mut self, id: FileId, pieces: &[u32]) -> u32 {
        let next = u32::try_from(self.files.len()).expect("so many files are no listing's");
        *self.numbers.entry(id).or_insert_with(|| {
            self.files.push((id, self.lengths.len()));
            self.lengths.extend_from_slice(pieces);
            next
        })
    }

    fn lengths_of(&self, number: u32) -> impl Iterator<Item = u64> + '_ {
        let (id, at) = self.files[number as usize];
        self.lengths[at..at + id.pieces() as usize].iter().copied().map(u64::from)
    }

    /// All backups, in the order in which they were added.
    pub(crate) fn backups(&self) -> &[Backup] {
        &self.backups
    }

    /// Every file that any backup names, by its number.
    pub(crate) fn files(&self) -> impl Iterator<Item = (u32, FileId)> + '_ {
        (0..).zip(&self.files).map(|(number, (id, _))| (number, *id))
    }

    /// The pieces of a file, each with its length as stored.
    pub(crate) fn pieces(&self, number: u32) -> impl Iterator<Item = (Piece, u64)> + '_ {
        let (id, _) = self.files[number as usize];
        (0..).zip(self.lengths_of(number)).map(move |(piece, bytes)| ((id, piece), bytes))
    }

    /// The length of a piece as stored, if any backup names it.
    pub(crate) fn stored_bytes(&self, (id, piece): Piece) -> Option<u64> {
        let number = self.numbers.get(&id)?;
        self.lengths_of(*number).nth(piece as usize)
    }

    /// Where backups disagree.
    pub(crate) fn disputes(&self) -> &[Dispute] {
        &self.disputes
    }

    /// How many of these backups name each file.
    pub(crate) fn namers<'a>(&self, backups: impl IntoIterator<Item = &'a Backup>) -> Namers<'_> {
        let mut counts = vec![0; self.files.len()];
        for backup in backups {
            backup.named.iter().for_each(|number| counts[*number as usize] += 1);
        }
        Namers { census: self, counts }
    }

    /// The numbers of the backups that name each file.
    pub(crate) fn named_by(&self) -> Vec<Vec<u32>> {
        let mut named_by = vec![Vec::new(); self.files.len()];
        for (backup, found) in (0..).zip(&self.backups) {
            found.named.iter().for_each(|number| named_by[*number as usize].push(backup));
        }
        named_by
    }

    /// Bytes of a backup's pieces, as stored.
    pub(crate) fn stored_bytes_of(&self, backup: &Backup) -> u64 {
        backup.named.iter().map(|number| self.lengths_of(*number).sum::<u64>()).sum()
    }
}

/// How many of some backups name each file.
pub(crate) struct Namers<'a> {
    census: &'a Census,
    counts: Vec<u32>,
}

impl Namers<'_> {
    /// Whether any of them names this file.
    pub(crate) fn name(&self, id: FileId) -> bool {
        self.census.numbers.get(&id).is_some_and(|number| self.counts[*number as usize] > 0)
    }

    /// Bytes of the pieces that this one of them alone names.
    pub(crate) fn pinned_by(&self, backup: &Backup) -> u64 {
        let alone = backup.named.iter().filter(|number| self.counts[**number as usize] == 1);
        alone.map(|number| self.census.lengths_of(*number).sum::<u64>()).sum()
    }

    /// Bytes of the pieces that some of them name and none of `others`.
    pub(crate) fn not_named_by(&self, others: &Namers<'_>) -> u64 {
        let counts = (0..).zip(self.counts.iter().zip(&others.counts));
        let alone = counts.filter(|(_, (these, others))| **these > 0 && **others == 0);
        alone.map(|(number, _)| self.census.lengths_of(number).sum::<u64>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::PIECE_BYTES;
    use crate::manifest::File;

    /// A backup of files that are told by a number each; two pieces of the second length.
    fn backup(seqno: u64, files: &[(u128, u64)]) -> Manifest {
        let file = |(xxh3, stored): &(u128, u64)| File {
            path: format!("partitions/1/tables/{xxh3}"),
            bytes: PIECE_BYTES + 1,
            xxh3: *xxh3,
            partition: None,
            content: Content::Pieces(vec![*stored, 90]),
        };
        let id = BackupId { uuid: 1, timeline: 2, seqno, tag: 4 };
        let files = files.iter().map(file).collect();
        Manifest { id, files, ..crate::manifest::tests::example() }
    }

    fn census(backups: &[&[(u128, u64)]]) -> Census {
        let mut census = Census::default();
        for (seqno, files) in (0..).zip(backups) {
            let summary = Summary::of(backup(seqno, files), &Sealer::new(None));
            let number = census.add(summary);
            assert_eq!(number as u64, seqno);
        }
        census
    }

    #[test]
    fn what_a_backup_alone_names_is_told_from_what_it_shares() {
        let census = census(&[&[(1, 100), (2, 200), (2, 200)], &[(2, 200), (3, 300)], &[(3, 300)]]);
        let backups = census.backups();
        let all = census.namers(backups);
        let pinned: Vec<_> = backups.iter().map(|backup| all.pinned_by(backup)).collect();
        assert_eq!(pinned, [190, 0, 0]);
        let stored: Vec<_> = backups.iter().map(|b| census.stored_bytes_of(b)).collect();
        assert_eq!(stored, [480, 680, 390]);
        let (gone, rest) = (census.namers(&backups[1..]), census.namers(&backups[..1]));
        assert_eq!(gone.not_named_by(&rest), 390);
        let id = |hash| FileId { hash, bytes: PIECE_BYTES + 1 };
        assert!(rest.name(id(2)) && !rest.name(id(3)) && !rest.name(id(4)));
        assert_eq!(census.named_by(), [vec![0], vec![0, 1], vec![1, 2]]);
        assert_eq!(census.stored_bytes((id(3), 0)), Some(300));
        assert_eq!(census.stored_bytes((id(3), 2)), None);
        assert!(census.disputes().is_empty());
    }

    #[test]
    fn backups_that_disagree_about_a_piece_are_told() {
        let census = census(&[&[(1, 100)], &[(1, 101)]]);
        let [dispute] = census.disputes() else { panic!("{:?}", census.disputes()) };
        assert_eq!((dispute.backup, &dispute.pieces[..]), (1, &[101, 90][..]));
        assert_eq!(census.stored_bytes((dispute.file, 0)), Some(100));
    }
}
