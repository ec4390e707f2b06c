//! A disk that knows what is durable: segment files that note frames instead of bytes.
//!
//! What must stay true: only `File::written` is a point at which threads can switch. The books are
//! plain memory, so looking at them adds nothing to explore.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::journal::format::{FRAME_HEADER_LEN, FRAME_MAGIC, SEGMENT_HEADER_LEN};
use crate::sync::{AtomicU64, Ordering};

/// Where docs/format.md has the fields of a frame's header that the books need.
const KIND_AT: usize = 4;
const PAYLOAD_LEN_AT: usize = 12;
const SEQNO_AT: usize = 20;
const SYNCED_LEN_AT: usize = 36;
const SEAL: u8 = 2;

/// What is on disk in this iteration: every segment, oldest first.
static DISK: Mutex<Disk> = Mutex::new(Disk { segments: Vec::new(), fault: None });

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next sync of a segment fails, and what it should have written is lost.
    Sync,
    /// The next write finds no space and leaves its first half.
    Space,
}

struct Disk {
    segments: Vec<Arc<Mutex<Segment>>>,
    fault: Option<Fault>,
}

/// What is known of one file.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    pub path: PathBuf,
    /// Seqno and end of each frame, in the order of the file.
    pub frames: Vec<(u64, u64)>,
    pub sealed: bool,
    /// So much is safe.
    pub durable: u64,
    /// A failed sync has lost what was not durable then.
    pub damaged: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An empty disk, on which `fault` will happen once.
pub fn format(fault: Option<Fault>) {
    *lock(&DISK) = Disk { segments: Vec::new(), fault };
}

/// Every file, oldest first.
pub fn segments() -> Vec<Segment> {
    lock(&DISK).segments.iter().map(|segment| lock(segment).clone()).collect()
}

/// Every commit in the journal, in its order.
pub fn written() -> Vec<u64> {
    segments().iter().flat_map(|segment| segment.frames.iter().map(|(seqno, _)| *seqno)).collect()
}

/// What would be left after a power cut: the commits up to this one.
pub fn durable() -> u64 {
    let mut upto = 0;
    for segment in segments() {
        for (seqno, end) in segment.frames {
            if end > segment.durable {
                return upto;
            }
            upto = seqno;
        }
    }
    upto
}

fn happens(fault: Fault) -> bool {
    lock(&DISK).fault.take_if(|planned| *planned == fault).is_some()
}

/// One segment file.
pub struct File {
    books: Arc<Mutex<Segment>>,
    written: AtomicU64,
}

pub fn create_file(path: &Path) -> Result<File> {
    let segment = Segment { path: path.to_path_buf(), ..Segment::default() };
    let books = Arc::new(Mutex::new(segment));
    lock(&DISK).segments.push(Arc::clone(&books));
    Ok(File { books, written: AtomicU64::new(0) })
}

impl File {
    pub fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        // A switch may happen before the write and after it.
        self.written.load(Ordering::Acquire);
        if at >= SEGMENT_HEADER_LEN as u64 {
            self.note(bytes, at)?;
        }
        self.written.fetch_max(at + bytes.len() as u64, Ordering::AcqRel);
        Ok(())
    }

    /// All at once: what is left over is the disk's matter, and the disk of these tests has no such
    /// fault.
    pub fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.write_all_at(bytes, at).map(|()| bytes.len())
    }

    fn note(&self, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
        let full = !bytes.is_empty() && happens(Fault::Space);
        if full {
            bytes = &bytes[..bytes.len() / 2];
        }
        let mut books = lock(&self.books);
        assert!(bytes.is_empty() || !books.sealed, "a sealed segment is written again");
        books.frames.retain(|(_, end)| bytes.is_empty() || *end <= at);
        while bytes.len() >= FRAME_HEADER_LEN && bytes[..4] == FRAME_MAGIC {
            let number =
                |from: usize| u64::from_le_bytes(bytes[from..from + 8].try_into().unwrap());
            let len = FRAME_HEADER_LEN + number(PAYLOAD_LEN_AT) as usize;
            if len > bytes.len() {
                break;
            }
            let claimed = number(SYNCED_LEN_AT);
            assert!(
                claimed <= books.durable.max(SEGMENT_HEADER_LEN as u64),
                "{claimed} not synced"
            );
            if bytes[KIND_AT] == SEAL {
                assert!(books.durable >= at, "a seal before its frames are durable");
                books.sealed = true;
            } else {
                books.frames.push((number(SEQNO_AT), at + len as u64));
            }
            (bytes, at) = (&bytes[len..], at + len as u64);
        }
        if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    pub fn sync_data(&self) -> io::Result<()> {
        // What is written while the sync runs may be left out of it.
        let upto = self.written.load(Ordering::Acquire);
        self.written.load(Ordering::Acquire);
        let older = segments();
        let mut books = lock(&self.books);
        let unsealed = older.iter().take_while(|s| s.path != books.path).find(|s| !s.sealed);
        assert!(
            upto <= SEGMENT_HEADER_LEN as u64 || unsealed.is_none(),
            "synced before {unsealed:?}"
        );
        if upto > SEGMENT_HEADER_LEN as u64 && happens(Fault::Sync) {
            books.damaged = true;
            return Err(io::ErrorKind::Other.into());
        }
        // The system says so even if the pages are gone.
        if !books.damaged {
            books.durable = books.durable.max(upto);
        }
        Ok(())
    }

    pub fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    pub fn set_len(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

pub fn segment(root: &Path, id: u64) -> PathBuf {
    root.join(id.to_string())
}

pub fn journal(root: &Path) -> PathBuf {
    root.to_path_buf()
}

pub fn remove_if_present(_path: &Path) -> Result<()> {
    Ok(())
}

pub fn preallocate(_file: &File, _path: &Path, _bytes: u64) -> Result<()> {
    Ok(())
}

pub fn sync_dir(_dir: &Path) -> Result<()> {
    Ok(())
}
