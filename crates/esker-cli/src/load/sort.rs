//! An external sort: entries in any order come back in the order of their keys, the last one of each
//! key alone.
//!
//! What must stay true: memory stays within the budget, beside one entry of each file that is merged;
//! of several entries of one key the one that came last wins, so files are merged only with their
//! neighbours in the order of their making. The files have no names: whatever ends the program frees
//! their space.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use esker::Slice;

use crate::failure::{Failure, Outcome};

/// Files that are merged at once. More would read in pieces too small for a disk.
const FAN_IN: usize = 64;
const BUFFER_BYTES: usize = 256 << 10;
/// What an entry takes in memory beside its bytes.
const ENTRY_BYTES: usize = 2 * size_of::<Slice>() + 16;

/// A key and its value.
pub type Entry = (Slice, Slice);

/// Sorts what it is given, in memory as long as it fits there, in files beyond that.
pub struct Sorter {
    directory: PathBuf,
    memory_bytes_max: usize,
    waiting: Vec<Entry>,
    waiting_bytes: usize,
    /// Sorted files in the order of their making. Each holds what so many merges, one above the
    /// other, have brought together; that never rises along the list.
    files: Vec<Sorted>,
    files_max: usize,
}

struct Sorted {
    file: File,
    merges: u32,
}

impl Sorter {
    /// Keeps up to so many bytes in memory and puts files into `directory`.
    pub fn new(directory: &Path, memory_bytes_max: usize) -> Self {
        Self {
            directory: directory.to_owned(),
            memory_bytes_max,
            waiting: Vec::new(),
            waiting_bytes: 0,
            files: Vec::new(),
            files_max: FAN_IN,
        }
    }

    /// Takes an entry.
    pub fn push(&mut self, key: Slice, value: Slice) -> Outcome {
        self.waiting_bytes += key.len() + value.len() + ENTRY_BYTES;
        self.waiting.push((key, value));
        if self.waiting_bytes >= self.memory_bytes_max { self.spill() } else { Ok(()) }
    }

    /// Everything in order; ends with the first failure.
    pub fn finish(mut self) -> Outcome<Merge> {
        let rest = self.take_waiting();
        while self.files.len() > self.files_max {
            self.merge_last(self.files_max)?;
        }
        let mut sources = Vec::with_capacity(self.files.len() + 1);
        for sorted in self.files {
            sources
                .push(Source::File(reader(sorted.file).map_err(|e| failed(&self.directory, &e))?));
        }
        sources.push(Source::Memory(rest.into_iter()));
        Merge::new(sources, &self.directory)
    }

    fn take_waiting(&mut self) -> Vec<Entry> {
        self.waiting_bytes = 0;
        let mut entries = std::mem::take(&mut self.waiting);
        // Stable: of one key the last one stays last.
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries
    }

    fn spill(&mut self) -> Outcome {
        let entries = self.take_waiting();
        let merge = Merge::new(vec![Source::Memory(entries.into_iter())], &self.directory)?;
        self.add(merge, 0)?;
        // As in a counter: when there are enough files of one kind they become one of the next.
        loop {
            let last = self.files.last().map_or(0, |sorted| sorted.merges);
            let alike = self.files.iter().rev().take_while(|sorted| sorted.merges == last).count();
            if alike < self.files_max {
                return Ok(());
            }
            self.merge_last(alike)?;
        }
    }

    /// Merges so many files at the end of the list into one.
    fn merge_last(&mut self, count: usize) -> Outcome {
        let files = self.files.split_off(self.files.len() - count);
        let merges = files.iter().map(|sorted| sorted.merges).max().unwrap_or(0) + 1;
        let sources: io::Result<Vec<_>> =
            files.into_iter().map(|sorted| Ok(Source::File(reader(sorted.file)?))).collect();
        let sources = sources.map_err(|e| failed(&self.directory, &e))?;
        let merge = Merge::new(sources, &self.directory)?;
        self.add(merge, merges)
    }

    fn add(&mut self, merge: Merge, merges: u32) -> Outcome {
        let failed = |e: io::Error| failed(&self.directory, &e);
        let file = tempfile::tempfile_in(&self.directory).map_err(failed)?;
        let mut writer = BufWriter::with_capacity(BUFFER_BYTES, file);
        for entry in merge {
            write_entry(&mut writer, &entry?).map_err(failed)?;
        }
        let file = writer.into_inner().map_err(|e| failed(e.into_error()))?;
        self.files.push(Sorted { file, merges });
        Ok(())
    }
}

fn failed(directory: &Path, cause: &io::Error) -> Failure {
    Failure::Failed(format!("cannot sort in {}: {cause}", directory.display()))
}

fn reader(mut file: File) -> io::Result<BufReader<File>> {
    file.rewind()?;
    Ok(BufReader::with_capacity(BUFFER_BYTES, file))
}

fn write_entry(out: &mut impl Write, (key, value): &Entry) -> io::Result<()> {
    out.write_all(&(key.len() as u32).to_le_bytes())?;
    out.write_all(&(value.len() as u32).to_le_bytes())?;
    out.write_all(key)?;
    out.write_all(value)
}

fn read_entry(input: &mut impl Read) -> io::Result<Option<Entry>> {
    let mut head = [0; 8];
    match input.read_exact(&mut head[..1]) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        outcome => outcome?,
    }
    input.read_exact(&mut head[1..])?;
    let mut bytes = |at: usize| {
        let len = u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let mut bytes = vec![0; len as usize];
        input.read_exact(&mut bytes).map(|()| Slice::from(bytes))
    };
    Ok(Some((bytes(0)?, bytes(4)?)))
}

enum Source {
    File(BufReader<File>),
    Memory(std::vec::IntoIter<Entry>),
}

impl Source {
    fn next(&mut self) -> io::Result<Option<Entry>> {
        match self {
            Self::File(reader) => read_entry(reader),
            Self::Memory(entries) => Ok(entries.next()),
        }
    }
}

/// The next entry of a source. The greatest of a heap comes first: the smallest key, and of equal
/// ones that of the earliest source.
struct Head {
    entry: Entry,
    source: usize,
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        (&other.entry.0, other.source).cmp(&(&self.entry.0, self.source))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

/// Sorted entries of several sources in one order, the last one of each key alone.
pub struct Merge {
    sources: Vec<Source>,
    heads: BinaryHeap<Head>,
    directory: PathBuf,
}

impl Merge {
    fn new(sources: Vec<Source>, directory: &Path) -> Outcome<Self> {
        let heads = BinaryHeap::with_capacity(sources.len());
        let mut merge = Self { sources, heads, directory: directory.to_owned() };
        for source in 0..merge.sources.len() {
            merge.advance(source)?;
        }
        Ok(merge)
    }

    fn advance(&mut self, source: usize) -> Outcome {
        let next = self.sources[source].next().map_err(|e| failed(&self.directory, &e))?;
        self.heads.extend(next.map(|entry| Head { entry, source }));
        Ok(())
    }

    fn pop(&mut self) -> Outcome<Option<Entry>> {
        let Some(Head { entry, source }) = self.heads.pop() else { return Ok(None) };
        self.advance(source)?;
        Ok(Some(entry))
    }
}

impl Iterator for Merge {
    type Item = Outcome<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut latest = match self.pop() {
            Ok(entry) => entry?,
            Err(failure) => return Some(Err(failure)),
        };
        while self.heads.peek().is_some_and(|head| head.entry.0 == latest.0) {
            match self.pop() {
                Ok(entry) => latest = entry.unwrap_or(latest),
                Err(failure) => return Some(Err(failure)),
            }
        }
        Some(Ok(latest))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Sorts numbers that repeat, with so little room that files are merged several times.
    fn sorted(count: u64, memory_bytes_max: usize, files_max: usize) -> (Vec<Entry>, usize) {
        let directory = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::new(directory.path(), memory_bytes_max);
        sorter.files_max = files_max;
        let mut expected = BTreeMap::new();
        let mut state = 7u64;
        for number in 0..count {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let key = format!("{:05}", (state >> 33) % (count / 2 + 1));
            let value = number.to_string();
            sorter.push(key.as_str().into(), value.as_str().into()).unwrap();
            expected.insert(Slice::from(key.as_str()), Slice::from(value.as_str()));
        }
        let files = sorter.files.len();
        let found: Outcome<Vec<_>> = sorter.finish().unwrap().collect();
        let found = found.unwrap();
        assert!(found.iter().cloned().eq(expected), "{count} entries");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "files without names");
        (found, files)
    }

    #[test]
    fn what_fits_into_memory_is_sorted_there() {
        for count in [0, 1, 1000] {
            assert_eq!(sorted(count, 1 << 20, 3).1, 0);
        }
    }

    #[test]
    fn the_last_entry_of_a_key_wins_across_files_and_merges() {
        let files: Vec<_> =
            [2, 3, 5].into_iter().map(|fan_in| sorted(5000, 2000, fan_in).1).collect();
        assert!(files.iter().all(|files| *files > 1), "{files:?}");
    }

    #[test]
    fn files_that_cannot_be_made_are_a_failure_that_names_the_directory() {
        let mut sorter = Sorter::new(Path::new("/nowhere/at/all"), 1);
        let failure = sorter.push("a".into(), "b".into()).unwrap_err();
        assert!(failure.to_string().starts_with("cannot sort in /nowhere/at/all: "), "{failure}");
    }
}
