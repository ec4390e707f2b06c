//! Appends groups of frames to the active segment, syncs them, seals what is full.
//!
//! What must stay true:
//! - Only the leader of the commit queue appends and swaps; anybody may sync and seal.
//! - A frame's `synced_len` never exceeds what a sync has confirmed.
//! - Nothing in a segment is synced before every older segment is sealed, so a durable commit never
//!   stands on one that is not.
//! - A sealed segment is never written again: checkpoints link to its inode. Its frames are durable
//!   before its seal is written, so a seal proves them; the seal itself becomes durable later (a
//!   checkpoint syncs what it links), because recovery does without it.
//! - After a failed sync (or a failed write that is not about space) nothing is accepted any more.
//!   Running out of space changes nothing: the next group is written to the same place.
//!
//! Segments are preallocated with `fallocate`: measured beside zero-writing and growing (durable
//! 150 B appends on ext4: 9.9, 8.3 and 7.3 thousand a second), it costs nothing to prepare and
//! reserves the space, so that a full disk shows when a segment is prepared and not in a commit.

use std::cell::RefCell;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use smallvec::SmallVec;

use super::format::{
    FRAME_HEADER_LEN, FrameHeader, FrameKind, Identity, SEGMENT_HEADER_LEN, SegmentHeader,
    payload_hash,
};
use super::reader::seal_payload;
use super::segments::Segments;
use crate::Durability;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::files::{self, File};
use crate::planted::{Bug, is_planted, unless};
use crate::sync::{AtomicBool, AtomicU64, Mutex, OnceLock, Ordering};

/// Above this a payload is written by itself instead of being copied into the group's buffer.
const COPY_BYTES_MAX: usize = 64 << 10;
/// What most frames fit into.
const NEW_BUFFER_BYTES: usize = 256;
/// A thread keeps so many buffers of at most this size.
const SPARES_MAX: usize = 16;
const SPARE_BYTES_MAX: usize = 16 << 10;
/// Room behind the nominal size, so that a full segment can always be sealed in place.
const SEAL_ROOM: u64 = 4 << 10;

/// One frame on its way into the journal. `buffer` starts with room for the frame header.
pub(crate) struct Outgoing {
    pub(crate) buffer: Vec<u8>,
    pub(crate) hash: u64,
    pub(crate) items: u32,
    pub(crate) seqno: u64,
    pub(crate) time_ms: u64,
    /// Every partition it names, once.
    pub(crate) partitions: Named,
}

/// The partitions that a frame names: nearly always one.
pub(crate) type Named = SmallVec<[u32; 2]>;

thread_local! {
    /// Buffers of frames that are written, for the next ones of this thread.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

impl Outgoing {
    /// An empty buffer with room for the header; the payload is appended to it.
    pub(crate) fn begin() -> Vec<u8> {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
        let mut buffer = spare.unwrap_or_else(|| Vec::with_capacity(NEW_BUFFER_BYTES));
        buffer.resize(FRAME_HEADER_LEN, 0);
        buffer
    }

    /// Hashes the payload: the part of framing that needs no lock.
    pub(crate) fn new(buffer: Vec<u8>, items: u32, partitions: Named) -> Self {
        let hash = payload_hash(&buffer[FRAME_HEADER_LEN..]);
        Self { buffer, hash, items, seqno: 0, time_ms: 0, partitions }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.capacity() <= SPARE_BYTES_MAX {
            buffer.clear();
            // A thread that ends keeps none.
            let _ = SPARE.try_with(|spare| {
                let mut spare = spare.borrow_mut();
                if spare.len() < SPARES_MAX {
                    spare.push(buffer);
                }
            });
        }
    }
}

/// A segment file that exists, is preallocated and durable, and holds no frame yet.
pub(crate) struct Prepared {
    file: SegmentFile,
    seed: u64,
}

struct SegmentFile {
    id: u64,
    path: PathBuf,
    file: File,
    synced_len: AtomicU64,
}

/// The segment that grows.
struct Active {
    file: Arc<SegmentFile>,
    seed: u64,
    chain: u64,
    end: u64,
    frames: u64,
}

/// A segment that was swapped out and is not sealed yet.
struct Retired {
    file: Arc<SegmentFile>,
    seed: u64,
    chain: u64,
    end: u64,
    frames: u64,
    last_seqno: u64,
    last_time_ms: u64,
}

struct State {
    active: Active,
    next: Option<Prepared>,
    /// Checkpoints end segments early: keep the next one ready at all times.
    eager: bool,
    retired: Vec<Arc<Retired>>,
    segments: Segments,
    last_seqno: u64,
    last_time_ms: u64,
    /// The last segment was ended for good: an append would write over its seal.
    finished: bool,
    /// Reused for every group.
    group: Vec<u8>,
}

pub(crate) struct Journal {
    root: PathBuf,
    identity: Identity,
    segment_bytes: u64,
    state: Mutex<State>,
    /// Held while anything is synced or sealed. Taken before `state`.
    syncing: Mutex<()>,
    poison: OnceLock<Arc<Error>>,
    /// The next segment should be prepared, or an old one sealed.
    hint: AtomicBool,
    bytes_written: AtomicU64,
    syncs: AtomicU64,
}

/// What the journal's place is at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    pub(crate) last_seqno: u64,
    pub(crate) last_time_ms: u64,
    pub(crate) active_segment: u64,
}

impl Journal {
    /// A journal whose first active segment is `prepared`; everything before is in tables.
    pub(crate) fn begin(
        root: &Path,
        identity: Identity,
        segment_bytes: u64,
        prepared: Prepared,
        last_seqno: u64,
        last_time_ms: u64,
    ) -> Self {
        let mut segments = Segments::default();
        segments.begin(prepared.file.id, last_seqno);
        let state = State {
            active: Active::new(prepared),
            next: None,
            eager: false,
            retired: Vec::new(),
            segments,
            last_seqno,
            last_time_ms,
            finished: false,
            group: Vec::new(),
        };
        Self {
            root: root.to_path_buf(),
            identity,
            segment_bytes,
            state: Mutex::new(state),
            syncing: Mutex::new(()),
            poison: OnceLock::new(),
            hint: AtomicBool::new(false),
            bytes_written: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
        }
    }

    /// Creates, preallocates and syncs a segment. The caller lists it in CATALOG before its use.
    pub(crate) fn prepare(
        root: &Path,
        identity: Identity,
        id: u64,
        segment_bytes: u64,
        now_ms: u64,
    ) -> Result<Prepared> {
        let path = files::segment(root, id);
        let header = SegmentHeader { identity, id, created_ms: now_ms };
        // A leftover of an interrupted preparation holds no frame (recovery looked).
        files::remove_if_present(&path)?;
        let build = || {
            let file = files::create_file(&path)?;
            files::preallocate(&file, &path, segment_bytes + SEAL_ROOM)?;
            file.write_all_at(&header.encode(), 0).at("write", &path)?;
            unless(Bug::NewSegmentNotSynced, || file.sync_all().at("sync", &path))?;
            unless(Bug::NewSegmentNameNotSynced, || files::sync_dir(&files::journal(root)))?;
            Ok(file)
        };
        let file = build().inspect_err(|_| {
            // Give the space back; an empty leftover is removed at the next open as well.
            let _ = std::fs::remove_file(&path);
        })?;
        let synced_len = AtomicU64::new(SEGMENT_HEADER_LEN as u64);
        Ok(Prepared { file: SegmentFile { id, path, file, synced_len }, seed: header.chain_seed() })
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// The id that the next prepared segment must have; `None` when one is ready.
    pub(crate) fn wants_segment(&self) -> Option<u64> {
        let state = self.state.lock();
        state.next.is_none().then_some(state.active.file.id + 1)
    }

    /// Whether the active segment is so full that the next one should be prepared.
    pub(crate) fn should_prepare(&self) -> bool {
        let state = self.state.lock();
        state.next.is_none() && (state.eager || state.active.end > self.segment_bytes / 2)
    }

    pub(crate) fn install_next(&self, prepared: Prepared) {
        let mut state = self.state.lock();
        assert_eq!(prepared.file.id, state.active.file.id + 1, "segments have no gaps");
        state.next = Some(prepared);
    }

    /// Nothing is accepted from here on; the first cause stays.
    pub(crate) fn poison(&self, cause: Error) -> Error {
        let cause = self.poison.get_or_init(|| Arc::new(cause));
        Error::Poisoned { cause: Arc::clone(cause) }
    }

    pub(crate) fn check_poison(&self) -> Result<()> {
        match self.poison.get() {
            None => Ok(()),
            Some(cause) => Err(Error::Poisoned { cause: Arc::clone(cause) }),
        }
    }

    /// Numbers the frames of one group and appends them, in order; returns the last number. They are
    /// with the operating system afterwards.
    pub(crate) fn append(&self, group: &mut [Outgoing], now_ms: u64) -> Result<u64> {
        self.check_poison()?;
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.finished {
            return Err(Error::Closed { path: self.root.clone() });
        }
        let total: u64 = group.iter().map(|frame| frame.buffer.len() as u64).sum();
        if state.active.end + total > self.segment_bytes && state.active.frames > 0 {
            // Without a prepared segment this one grows past its size: no commit waits for it.
            state.swap();
        }
        let time_ms = now_ms.max(state.last_time_ms);
        for (frame, seqno) in group.iter_mut().zip(state.last_seqno + 1..) {
            (frame.seqno, frame.time_ms) = (seqno, time_ms);
        }
        match state.active.write(group, &mut state.group) {
            Ok(chain) => state.active.chain = chain,
            Err(_) if is_planted(Bug::WriteErrorIgnored) => {}
            Err(error) if error.kind() == ErrorKind::Retry => {
                state.active.unwrite();
                return Err(error);
            }
            Err(error) => return Err(self.poison(error)),
        }
        state.active.end += total;
        state.active.frames += group.len() as u64;
        for frame in &*group {
            state.segments.note(&frame.partitions, frame.seqno, state.active.end);
            state.last_seqno = frame.seqno;
        }
        state.last_time_ms = time_ms;
        if state.next.is_none() && state.active.end > self.segment_bytes / 2 {
            self.hint.store(true, Ordering::Relaxed);
        }
        self.bytes_written.fetch_add(total, Ordering::Relaxed);
        Ok(state.last_seqno)
    }

    /// Whether there is tidying to do; says so once.
    pub(crate) fn take_hint(&self) -> bool {
        self.hint.load(Ordering::Relaxed) && self.hint.swap(false, Ordering::Relaxed)
    }

    /// Makes everything appended so far durable.
    ///
    /// One thread at a time: Linux tells of a lost write once per open file, so a second sync of
    /// the same file that ran beside a failing one would return success.
    pub(crate) fn sync(&self, durability: Durability) -> Result<()> {
        let _one_at_a_time = self.syncing.lock();
        let (file, end) = loop {
            self.seal_all()?;
            let state = self.state.lock();
            if state.retired.is_empty() {
                break (Arc::clone(&state.active.file), state.active.end);
            }
        };
        if durability < Durability::SyncAll && file.synced_len.load(Ordering::Acquire) >= end {
            return Ok(());
        }
        let sync = || match durability {
            Durability::SyncAll => file.file.sync_all(),
            _ => file.file.sync_data(),
        };
        let synced = match sync_or_planted(&sync) {
            Err(error) if is_planted(Bug::FailedSyncForgotten) => Err(error).at("sync", &file.path),
            synced => synced.at("sync", &file.path).map_err(|error| self.poison(error)),
        };
        self.syncs.fetch_add(1, Ordering::Relaxed);
        synced?;
        file.synced_len.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    /// Syncs if more than `bytes` of the journal are not known to be durable.
    pub(crate) fn sync_if_beyond(&self, bytes: u64) -> Result<()> {
        self.check_poison()?;
        let unsynced = |file: &SegmentFile, end: u64| {
            end.saturating_sub(file.synced_len.load(Ordering::Acquire))
        };
        let total = {
            let State { active, retired, .. } = &*self.state.lock();
            let retired: u64 = retired.iter().map(|r| unsynced(&r.file, r.end)).sum();
            retired + unsynced(&active.file, active.end)
        };
        if total > bytes { self.sync(Durability::SyncData) } else { Ok(()) }
    }

    /// Ends the active segment and goes on in the prepared one. Only the leader calls this.
    /// False when no segment is prepared. An empty active segment needs no swap.
    pub(crate) fn swap(&self) -> bool {
        let mut state = self.state.lock();
        state.eager = true;
        state.active.frames == 0 || state.swap()
    }

    /// Syncs and seals every segment that was swapped out.
    pub(crate) fn seal_retired(&self) -> Result<()> {
        self.check_poison()?;
        if self.state.lock().retired.is_empty() {
            return Ok(());
        }
        let _one_at_a_time = self.syncing.lock();
        self.seal_all()
    }

    /// The caller holds `syncing`.
    fn seal_all(&self) -> Result<()> {
        loop {
            self.check_poison()?;
            let Some(oldest) = self.state.lock().retired.first().cloned() else { return Ok(()) };
            let sync = || oldest.sync().map_err(|error| self.poison(error));
            if !is_planted(Bug::SealedBeforeSync) {
                unless(Bug::SegmentNotSynced, sync)?;
            }
            let (sealed_len, chain) = match oldest.seal() {
                Ok(sealed) => sealed,
                Err(error) if error.kind() == ErrorKind::Retry => return Err(error),
                Err(error) => return Err(self.poison(error)),
            };
            if is_planted(Bug::SealedBeforeSync) {
                sync()?;
            }
            self.syncs.fetch_add(1, Ordering::Relaxed);
            let mut state = self.state.lock();
            state.retired.remove(0);
            state.segments.seal(oldest.file.id, sealed_len, chain);
        }
    }

    /// Ends the journal for good: every byte synced, the last segment sealed.
    pub(crate) fn finish(&self) -> Result<()> {
        self.check_poison()?;
        {
            let mut state = self.state.lock();
            state.finished = true;
            let State { active, retired, last_seqno, last_time_ms, .. } = &mut *state;
            retired.push(Arc::new(active.retire(*last_seqno, *last_time_ms)));
        }
        self.seal_retired()
    }

    pub(crate) fn position(&self) -> Position {
        let state = self.state.lock();
        Position {
            last_seqno: state.last_seqno,
            last_time_ms: state.last_time_ms,
            active_segment: state.active.file.id,
        }
    }

    /// The newest segment that exists: the prepared one, or the active one.
    pub(crate) fn newest_segment(&self) -> u64 {
        let state = self.state.lock();
        state.next.as_ref().map_or(state.active.file.id, |next| next.file.id)
    }

    pub(crate) fn with_segments<R>(&self, f: impl FnOnce(&mut Segments) -> R) -> R {
        f(&mut self.state.lock().segments)
    }

    /// Keeps every segment until the guard goes.
    pub(crate) fn hold(self: &Arc<Self>) -> JournalHold {
        self.with_segments(Segments::hold);
        JournalHold(Arc::clone(self))
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn bytes_written(&self) -> u64 {
        self.bytes_written.load(Ordering::Relaxed)
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}

/// No segment is deleted while this lives.
pub(crate) struct JournalHold(Arc<Journal>);

impl Drop for JournalHold {
    fn drop(&mut self) {
        self.0.with_segments(Segments::release);
    }
}

impl State {
    fn swap(&mut self) -> bool {
        let Some(next) = self.next.take() else { return false };
        let old = std::mem::replace(&mut self.active, Active::new(next));
        self.retired.push(Arc::new(old.retire(self.last_seqno, self.last_time_ms)));
        self.segments.begin(self.active.file.id, self.last_seqno);
        true
    }
}

impl Active {
    fn new(prepared: Prepared) -> Self {
        Self {
            file: Arc::new(prepared.file),
            seed: prepared.seed,
            chain: prepared.seed,
            end: SEGMENT_HEADER_LEN as u64,
            frames: 0,
        }
    }

    fn retire(&self, last_seqno: u64, last_time_ms: u64) -> Retired {
        Retired {
            file: Arc::clone(&self.file),
            seed: self.seed,
            chain: self.chain,
            end: self.end,
            frames: self.frames,
            last_seqno,
            last_time_ms,
        }
    }

    /// Writes the group behind `end`, which the caller advances, and returns the last chain value.
    fn write(&self, group: &mut [Outgoing], scratch: &mut Vec<u8>) -> Result<u64> {
        let (mut chain, mut at) = (self.chain, self.end);
        let synced_len = self.file.synced_len.load(Ordering::Acquire);
        scratch.clear();
        let single = group.len() == 1;
        for frame in group {
            let header = FrameHeader {
                kind: FrameKind::Batch,
                items: frame.items,
                payload_len: (frame.buffer.len() - FRAME_HEADER_LEN) as u64,
                seqno: frame.seqno,
                time_ms: frame.time_ms,
                synced_len,
                payload_hash: frame.hash,
            };
            let (bytes, next) = header.encode(self.seed, chain);
            frame.buffer[..FRAME_HEADER_LEN].copy_from_slice(&bytes);
            chain = next;
            if single || frame.buffer.len() > COPY_BYTES_MAX {
                at = self.write_at(scratch, at)?;
                scratch.clear();
                at = self.write_at(&frame.buffer, at)?;
            } else {
                scratch.extend_from_slice(&frame.buffer);
            }
        }
        self.write_at(scratch, at)?;
        Ok(chain)
    }

    /// Keeps whole frames of a group that failed from being found after a crash: its members were
    /// told that nothing was written. If even this fails, nothing is there to be found.
    fn unwrite(&self) {
        let _ = self.file.file.write_all_at(&[0; FRAME_HEADER_LEN], self.end);
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> Result<u64> {
        if is_planted(Bug::ShortWriteIgnored) {
            self.file.file.write_at(bytes, at).at("write", &self.file.path)?;
            return Ok(at + bytes.len() as u64);
        }
        // write_all_at goes on after a short write and after EINTR.
        self.file.file.write_all_at(bytes, at).at("write", &self.file.path)?;
        Ok(at + bytes.len() as u64)
    }
}

impl Retired {
    /// Makes every frame durable. No failure of a sync may be tried again, not even one about
    /// space: the second try would succeed over what the first has lost.
    fn sync(&self) -> Result<()> {
        let SegmentFile { file, path, synced_len, .. } = &*self.file;
        if synced_len.load(Ordering::Acquire) < self.end {
            file.sync_data().at("sync", path)?;
            synced_len.fetch_max(self.end, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Makes the segment complete and immutable; returns its final length and chain value. Its
    /// frames are durable.
    fn seal(&self) -> Result<(u64, u64)> {
        let SegmentFile { file, path, .. } = &*self.file;
        let payload = seal_payload(self.frames, self.last_seqno);
        let header = FrameHeader {
            kind: FrameKind::Seal,
            items: 0,
            payload_len: payload.len() as u64,
            seqno: self.last_seqno,
            time_ms: self.last_time_ms,
            synced_len: self.end,
            payload_hash: payload_hash(&payload),
        };
        let (bytes, chain) = header.encode(self.seed, self.chain);
        let frame = [&bytes[..], &payload[..]].concat();
        let len = self.end + frame.len() as u64;
        file.write_all_at(&frame, self.end).at("write", path)?;
        file.set_len(len).at("truncate", path)?;
        Ok((len, chain))
    }
}

/// Syncs once: what a failed sync has lost, a second one would not bring back.
fn sync_or_planted(sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
    if is_planted(Bug::CommitNotSynced) {
        return Ok(());
    }
    match sync() {
        Err(_) if is_planted(Bug::SyncRetried) => sync(),
        Err(_) if is_planted(Bug::SyncErrorIgnored) => Ok(()),
        synced => synced,
    }
}
