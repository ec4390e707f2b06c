//! Reads a segment from its first frame to the last good one. Repairs nothing.
//!
//! What must stay true: bytes are handed out only after their checksum and their place in the chain
//! are right; a length is believed only after the header that holds it is; and the end of a segment
//! is one of four things (`Tail`), of which only `Broken` means that something durable is gone.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::format::{
    self, FRAME_HEADER_LEN, FRAME_MAGIC, FrameHeader, FrameKind, Identity, SEGMENT_HEADER_LEN,
    SegmentHeader,
};
use crate::error::{Corruption, Error, IoContext, Result};
use crate::planted::{Bug, is_planted};

const READ_BUFFER_BYTES: usize = 1 << 20;
/// No history is ever so long; above it arithmetic could overflow.
const SEQNO_LIMIT: u64 = 1 << 62;

/// One committed batch, checked.
pub(crate) struct Frame<'a> {
    pub(crate) seqno: u64,
    pub(crate) items: u32,
    pub(crate) payload: &'a [u8],
    /// Where the frame begins in its segment.
    pub(crate) offset: u64,
}

/// What lies behind the last good frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// A seal frame: the segment is complete.
    Sealed,
    /// Nothing, or the zeros of preallocated space.
    Open,
    /// Bytes that are no frame, with no sign that they ever were durable: a write was cut short.
    Torn,
    /// A place that was durable once is not what was written.
    Broken(Box<Corruption>),
}

/// What one reading of a segment found.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    pub(crate) id: u64,
    pub(crate) first_seqno: Option<u64>,
    pub(crate) last_seqno: Option<u64>,
    pub(crate) last_time_ms: u64,
    pub(crate) frames: u64,
    /// Where the next frame would begin.
    pub(crate) end: u64,
    /// The file's length.
    pub(crate) len: u64,
    pub(crate) chain: u64,
    /// The largest `synced_len` of any good frame.
    pub(crate) synced_len: u64,
    pub(crate) tail: Tail,
}

/// Where the bytes of a segment are: in a file, or, for the fuzz targets, in memory.
pub(crate) trait Source {
    fn len(&self) -> io::Result<u64>;
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
    /// Where there are bytes that were written, at or behind `at`; preallocated space has none.
    /// `None`: nowhere. Filesystems that cannot tell have them everywhere.
    fn next_data(&self, at: u64) -> Option<u64>;
}

impl Source for File {
    fn len(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, at)
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, at)
    }

    fn next_data(&self, at: u64) -> Option<u64> {
        #[cfg(target_os = "linux")]
        match rustix::fs::seek(self, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => return Some(data),
            Err(rustix::io::Errno::NXIO) => return None,
            Err(_) => {}
        }
        Some(at)
    }
}

/// A [`Source`] as a stream.
struct Stream<'a> {
    source: &'a dyn Source,
    at: u64,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Reads the segment `id` at `path`, shows every good frame to `visit`, in order, and tells how the
/// segment ends.
pub(crate) fn scan(
    path: &Path,
    id: u64,
    identity: Identity,
    visit: &mut dyn FnMut(Frame<'_>) -> Result<()>,
) -> Result<Scan> {
    let file = File::open(path).at("open", path)?;
    scan_source(&file, path, id, identity, visit)
}

/// Whether a good header says that the segment at `path` is of another keyspace.
pub(crate) fn is_foreign(path: &Path, identity: Identity) -> Result<bool> {
    let file = File::open(path).at("open", path)?;
    let mut header = Vec::with_capacity(SEGMENT_HEADER_LEN);
    file.take(SEGMENT_HEADER_LEN as u64).read_to_end(&mut header).at("read", path)?;
    let header = SegmentHeader::parse(&header, path);
    Ok(header.is_ok_and(|header| header.identity.uuid != identity.uuid))
}

/// [`scan`] for what `source` holds.
pub(crate) fn scan_source(
    source: &dyn Source,
    path: &Path,
    id: u64,
    identity: Identity,
    visit: &mut dyn FnMut(Frame<'_>) -> Result<()>,
) -> Result<Scan> {
    let (seed, mut scan) = begin(source, path, id, identity)?;
    if read_frames(source, path, seed, &mut scan, visit)? == End::Unexplained {
        scan.tail = classify_tail(source, path, seed, &scan)?;
    }
    scan.tail = match scan.tail {
        Tail::Broken(_) if is_planted(Bug::RotTakenForTornTail) => Tail::Torn,
        Tail::Torn if is_planted(Bug::TornTailTakenForRot) => {
            return Err(Error::corrupt(path, Some(scan.end), "a torn tail"));
        }
        tail => tail,
    };
    Ok(scan)
}

/// The good frames alone, for a segment that was scanned before.
pub(crate) fn replay(
    path: &Path,
    id: u64,
    identity: Identity,
    visit: &mut dyn FnMut(Frame<'_>) -> Result<()>,
) -> Result<()> {
    let file = File::open(path).at("open", path)?;
    let (seed, mut scan) = begin(&file, path, id, identity)?;
    read_frames(&file, path, seed, &mut scan, visit).map(|_| ())
}

fn begin(source: &dyn Source, path: &Path, id: u64, identity: Identity) -> Result<(u64, Scan)> {
    let len = source.len().at("inspect", path)?;
    let mut header = Vec::with_capacity(SEGMENT_HEADER_LEN);
    let mut stream = Stream { source, at: 0 }.take(SEGMENT_HEADER_LEN as u64);
    stream.read_to_end(&mut header).at("read", path)?;
    let seed = SegmentHeader::decode(&header, path, id, identity)?.chain_seed();
    let scan = Scan {
        id,
        first_seqno: None,
        last_seqno: None,
        last_time_ms: 0,
        frames: 0,
        end: SEGMENT_HEADER_LEN as u64,
        len,
        chain: seed,
        synced_len: 0,
        tail: Tail::Open,
    };
    Ok((seed, scan))
}

#[derive(PartialEq, Eq)]
enum End {
    /// A seal, or a frame that proves damage: the tail is known.
    Known,
    /// No good frame: the tail says why.
    Unexplained,
}

/// Reads on from the segment header.
fn read_frames(
    source: &dyn Source,
    path: &Path,
    seed: u64,
    scan: &mut Scan,
    visit: &mut dyn FnMut(Frame<'_>) -> Result<()>,
) -> Result<End> {
    let buffer_bytes = buffer_bytes(scan.len.saturating_sub(scan.end));
    let mut input = BufReader::with_capacity(buffer_bytes, Stream { source, at: scan.end });
    let mut payload = Vec::new();
    while let Some((frame, chain)) = next_frame(&mut input, path, seed, scan, &mut payload)? {
        if frame.kind == FrameKind::Seal {
            scan.tail = check_seal(path, scan, &frame, &payload);
        } else if let Some(broken) = check_order(path, scan, &frame) {
            scan.tail = broken;
            return Ok(End::Known);
        } else {
            let (seqno, items, offset) = (frame.seqno, frame.items, scan.end);
            visit(Frame { seqno, items, payload: &payload, offset })?;
            scan.first_seqno.get_or_insert(frame.seqno);
            scan.last_seqno = Some(frame.seqno);
            scan.last_time_ms = frame.time_ms;
            scan.frames += 1;
        }
        scan.synced_len = scan.synced_len.max(frame.synced_len);
        scan.chain = chain;
        scan.end += (FRAME_HEADER_LEN + payload.len()) as u64;
        if frame.kind == FrameKind::Seal {
            return Ok(End::Known);
        }
    }
    Ok(End::Unexplained)
}

/// No more than what is left to read.
fn buffer_bytes(left: u64) -> usize {
    left.min(READ_BUFFER_BYTES as u64) as usize
}

/// The next frame with its chain value; `None` if what follows is no good frame.
fn next_frame(
    input: &mut BufReader<Stream<'_>>,
    path: &Path,
    seed: u64,
    scan: &Scan,
    payload: &mut Vec<u8>,
) -> Result<Option<(FrameHeader, u64)>> {
    let left = scan.len.saturating_sub(scan.end);
    if left < FRAME_HEADER_LEN as u64 {
        return Ok(None);
    }
    let mut bytes = [0; FRAME_HEADER_LEN];
    input.read_exact(&mut bytes).at("read", path)?;
    let Some(header) = FrameHeader::decode(&bytes, seed) else { return Ok(None) };
    let chain = format::chain_of(&bytes, scan.chain);
    let chained = chain == format::stored_chain(&bytes) || is_planted(Bug::ChainNotChecked);
    if !chained || header.payload_len > left - FRAME_HEADER_LEN as u64 {
        return Ok(None);
    }
    payload.clear();
    input.by_ref().take(header.payload_len).read_to_end(payload).at("read", path)?;
    let hashed = format::payload_hash(payload) == header.payload_hash;
    let whole = payload.len() as u64 == header.payload_len
        && (hashed || is_planted(Bug::PayloadHashSkipped));
    Ok(whole.then_some((header, chain)))
}

/// A frame that is whole and chained but out of order was never written by this crate.
fn check_order(path: &Path, scan: &Scan, frame: &FrameHeader) -> Option<Tail> {
    let wrong = |what: &str, expected: String, found: u64| {
        Some(Tail::Broken(Box::new(Corruption {
            path: path.to_path_buf(),
            offset: Some(scan.end),
            what: what.into(),
            expected,
            found: found.to_string(),
        })))
    };
    match scan.last_seqno.map(|last| last + 1) {
        Some(seqno) if seqno != frame.seqno => {
            wrong("a commit is missing or out of order", format!("seqno {seqno}"), frame.seqno)
        }
        _ if frame.seqno >= SEQNO_LIMIT => {
            wrong("the commit's number is impossible", format!("below {SEQNO_LIMIT}"), frame.seqno)
        }
        _ if frame.time_ms < scan.last_time_ms => wrong(
            "commit times run backwards",
            format!("at least {}", scan.last_time_ms),
            frame.time_ms,
        ),
        _ => None,
    }
}

/// The seal's payload: how many frames there are and the last seqno.
pub(crate) fn seal_payload(frames: u64, last_seqno: u64) -> [u8; 16] {
    let mut payload = [0; 16];
    payload[..8].copy_from_slice(&frames.to_le_bytes());
    payload[8..].copy_from_slice(&last_seqno.to_le_bytes());
    payload
}

fn check_seal(path: &Path, scan: &Scan, seal: &FrameHeader, payload: &[u8]) -> Tail {
    if payload == seal_payload(scan.frames, seal.seqno)
        && scan.last_seqno.is_none_or(|last| last == seal.seqno)
    {
        return Tail::Sealed;
    }
    Tail::Broken(Box::new(Corruption {
        path: path.to_path_buf(),
        offset: Some(scan.end),
        what: "the seal does not match the frames before it".into(),
        expected: format!("{} frames up to seqno {:?}", scan.frames, scan.last_seqno),
        found: format!("{payload:02x?}"),
    }))
}

/// Tells preallocated zeros from a torn write from rot: looks for a whole frame behind the bad
/// place that was written when the bad place was already durable.
fn classify_tail(source: &dyn Source, path: &Path, seed: u64, scan: &Scan) -> Result<Tail> {
    let (mut window, mut at, mut only_zeros) = (Vec::new(), scan.end, true);
    while let Some(data_at) = source.next_data(at) {
        if data_at > at {
            // A gap of zeros: no magic number reaches across it.
            window.clear();
            at = data_at;
        }
        let window_at = at - window.len() as u64;
        let read = read_chunk(source, path, at, scan.len, &mut window)?;
        if read == 0 {
            break;
        }
        at += read;
        // Preallocated space is all zeros and most of a segment: do not search it byte by byte.
        let zeros =
            window.chunks(4096).all(|page| page.iter().fold(0, |all, byte| all | byte) == 0);
        only_zeros &= zeros;
        let candidates = if zeros { &[][..] } else { &window[..] };
        for found in occurrences(candidates, &FRAME_MAGIC) {
            let offset = window_at + found as u64;
            if proves_durable(source, path, seed, scan, offset)? {
                return Ok(Tail::Broken(Box::new(Corruption {
                    path: path.to_path_buf(),
                    offset: Some(scan.end),
                    what: "a frame that was durable is damaged; whole frames follow it".into(),
                    expected: "a whole frame".into(),
                    found: format!("the next whole frame at byte {offset}"),
                })));
            }
        }
        // Keep what could be the beginning of a magic number.
        window.drain(..window.len() - window.len().min(FRAME_MAGIC.len() - 1));
    }
    Ok(if only_zeros { Tail::Open } else { Tail::Torn })
}

/// Appends what lies at `at`, up to a buffer's worth; 0 at the end, which is at `len`.
fn read_chunk(
    source: &dyn Source,
    path: &Path,
    at: u64,
    len: u64,
    window: &mut Vec<u8>,
) -> Result<u64> {
    let begin = window.len();
    window.resize(begin + buffer_bytes(len.saturating_sub(at)), 0);
    let read = loop {
        match source.read_at(&mut window[begin..], at) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other.at("read", path)?,
        }
    };
    window.truncate(begin + read);
    Ok(read as u64)
}

fn occurrences<'a>(window: &'a [u8], magic: &'a [u8; 4]) -> impl Iterator<Item = usize> + 'a {
    window.windows(magic.len()).enumerate().filter(move |(_, w)| w == magic).map(|(at, _)| at)
}

/// Whether a whole frame of this segment lies at `offset` and says that `scan.end` was durable.
fn proves_durable(
    source: &dyn Source,
    path: &Path,
    seed: u64,
    scan: &Scan,
    offset: u64,
) -> Result<bool> {
    let mut bytes = [0; FRAME_HEADER_LEN];
    if offset + FRAME_HEADER_LEN as u64 > scan.len {
        return Ok(false);
    }
    source.read_exact_at(&mut bytes, offset).at("read", path)?;
    let Some(header) = FrameHeader::decode(&bytes, seed) else { return Ok(false) };
    let fits = header.payload_len <= scan.len - offset - FRAME_HEADER_LEN as u64;
    let later = scan.last_seqno.is_none_or(|last| header.seqno >= last);
    if !fits || !later || header.synced_len <= scan.end {
        return Ok(false);
    }
    let mut payload = vec![0; header.payload_len as usize];
    source.read_exact_at(&mut payload, offset + FRAME_HEADER_LEN as u64).at("read", path)?;
    Ok(format::payload_hash(&payload) == header.payload_hash)
}

impl Scan {
    /// The corruption as an error, if the tail is broken.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.tail {
            Tail::Broken(corruption) => Err(Error::Corrupt(corruption.clone())),
            _ => Ok(()),
        }
    }
}
