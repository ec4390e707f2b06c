//! A file that is being restored: frames are written where they belong, in any order.
//!
//! What must stay true: a file is believed when the hash of all of it, from the first byte to the last,
//! is that of the manifest. What comes in order is hashed as it comes; what came before its turn is read
//! again when its turn has come, from the file, which is still in the page cache.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

use super::site::no_follow;
use crate::error::{IoContext as _, Result};
use crate::layout::{FileId, PIECE_BYTES};
use crate::piece::FRAME_BYTES;
use crate::store::WRITE_BYTES;

/// Some frames of a piece of a file.
#[derive(Copy, Clone, Debug)]
pub(super) struct Task {
    /// Its place in the manifest.
    pub(super) file: u32,
    pub(super) piece: u32,
    pub(super) first_frame: u32,
    pub(super) end_frame: u32,
}

impl Task {
    /// Where in the file they begin.
    pub(super) fn offset(self) -> u64 {
        u64::from(self.piece) * PIECE_BYTES + u64::from(self.first_frame) * FRAME_BYTES
    }

    pub(super) fn raw_bytes(self, id: FileId) -> u64 {
        let end = (u64::from(self.end_frame) * FRAME_BYTES).min(id.piece_bytes(self.piece));
        end - u64::from(self.first_frame) * FRAME_BYTES
    }
}

/// A file that is being written.
pub(super) struct Target {
    pub(super) id: FileId,
    pub(super) path: PathBuf,
    /// Open while some of it is under way: a backup has more files than a process may open.
    file: Mutex<Option<Arc<File>>>,
    /// Chunks that are missing.
    pub(super) missing: AtomicU64,
    /// Whether an interrupted attempt wrote some of it.
    pub(super) resumed: bool,
    content: Mutex<Content>,
}

/// The hash of a file up to where it has no gap.
struct Content {
    hash: Xxh3,
    reached: u64,
    /// What is written behind a gap: where, and how much.
    behind: BTreeMap<u64, u64>,
}

impl Target {
    pub(super) fn new(id: FileId, path: PathBuf, missing: u64, resumed: bool) -> Self {
        let content = Content { hash: Xxh3::new(), reached: 0, behind: BTreeMap::new() };
        let (missing, content) = (AtomicU64::new(missing), Mutex::new(content));
        Self { id, path, file: Mutex::default(), missing, resumed, content }
    }

    fn open(&self) -> Result<Arc<File>> {
        let mut file = self.file.lock();
        if let Some(open) = &*file {
            return Ok(Arc::clone(open));
        }
        let mut options = fs::OpenOptions::new();
        let opened = no_follow(options.read(true).write(true)).open(&self.path);
        let opened = Arc::new(opened.at("open", &self.path)?);
        *file = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// An interrupted attempt has written this.
    pub(super) fn was_written(&self, offset: u64, bytes: u64) {
        self.content.lock().behind.insert(offset, bytes);
    }

    /// Writes a frame. One at a time: the kernel lets no two write to one file either, and has the
    /// second spin.
    pub(super) fn write(&self, offset: u64, raw: &[u8]) -> Result<()> {
        let file = self.open()?;
        let mut content = self.content.lock();
        for (part, at) in raw.chunks(WRITE_BYTES).zip((offset..).step_by(WRITE_BYTES)) {
            file.write_all_at(part, at).at("write", &self.path)?;
        }
        if content.reached == offset {
            content.hash.update(raw);
            content.reached += raw.len() as u64;
        } else {
            content.behind.insert(offset, raw.len() as u64);
        }
        Ok(())
    }

    /// Begins to write a part back, and hashes what has no gap before it any more. Others write on
    /// meanwhile.
    pub(super) fn settle(&self, offset: u64, bytes: u64) -> Result<()> {
        let file = self.open()?;
        // The final sync finds less to do. A hint; where it is not taken, that takes longer.
        let _ = rustix::fs::fadvise(
            &*file,
            offset,
            std::num::NonZeroU64::new(bytes),
            rustix::fs::Advice::DontNeed,
        );
        self.catch_up(&file)
    }

    fn catch_up(&self, file: &File) -> Result<()> {
        let mut buffer = Vec::new();
        loop {
            let mut content = self.content.lock();
            let reached = content.reached;
            let Some(bytes) = content.behind.remove(&reached) else { return Ok(()) };
            // A step at a time, so that nobody waits for long.
            let step = bytes.min(FRAME_BYTES);
            buffer.resize(step as usize, 0);
            file.read_exact_at(&mut buffer, reached).at("read", &self.path)?;
            content.hash.update(&buffer);
            content.reached += step;
            if step < bytes {
                content.behind.insert(reached + step, bytes - step);
            }
        }
    }

    /// Whether all of it is written and has this hash.
    pub(super) fn is_whole(&self, xxh3: u128) -> Result<bool> {
        let file = self.open()?;
        self.catch_up(&file)?;
        let content = self.content.lock();
        if content.reached != self.id.bytes || content.hash.digest128() != xxh3 {
            return Ok(false);
        }
        drop(content);
        if self.resumed {
            // What failed to reach the disk meanwhile is told to nobody but who asks for this file.
            file.sync_all().at("sync", &self.path)?;
        }
        Ok(true)
    }
}
