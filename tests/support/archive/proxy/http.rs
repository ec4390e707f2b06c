//! As much of HTTP/1.1 as it takes to pass messages on: heads, and bodies with what frames them.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::TcpStream;

use super::Request;

const HEAD_BYTES_MAX: u64 = 64 << 10;
/// No more of a body is taken at a time.
pub(super) const SLICE_BYTES_MAX: u64 = 256 << 10;

/// Takes the parts of a body.
pub(super) trait Sink {
    /// Part of the body.
    fn body(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// What frames it.
    fn frame(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// How much is taken at a time.
    fn slice_bytes(&self) -> u64;
}

/// A body without what frames it.
pub(super) struct Plain<'a>(&'a mut Vec<u8>);

impl Sink for Plain<'_> {
    fn body(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn frame(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn slice_bytes(&self) -> u64 {
        SLICE_BYTES_MAX
    }
}

/// The first line and the headers of a message.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) first: String,
    pub(super) headers: Vec<(String, String)>,
}

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

impl Head {
    /// `None` at the end of the connection.
    pub(super) fn read(from: &mut BufReader<TcpStream>) -> io::Result<Option<Self>> {
        let mut from = from.take(HEAD_BYTES_MAX);
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            from.read_until(b'\n', &mut line)?;
            if !line.ends_with(b"\n") {
                let is_end = line.is_empty() && lines.is_empty();
                return if is_end { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            let line = String::from_utf8_lossy(line.trim_ascii()).into_owned();
            // Before a message an empty line is nobody's.
            match (line.is_empty(), lines.is_empty()) {
                (true, true) => {}
                (true, false) => break,
                (false, _) => lines.push(line),
            }
        }
        let mut lines = lines.into_iter();
        let first = lines.next().expect("at least one");
        let header = |line: String| {
            let (name, value) = line.split_once(':')?;
            Some((name.trim().to_owned(), value.trim().to_owned()))
        };
        let headers: Option<Vec<_>> = lines.map(header).collect();
        let headers = headers.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some(Self { first, headers }))
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        (text + "\r\n").into_bytes()
    }

    pub(super) fn value(&self, wanted: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn remove(&mut self, unwanted: &str) {
        self.headers.retain(|(name, _)| !name.eq_ignore_ascii_case(unwanted));
    }

    pub(super) fn set_length(&mut self, bytes: usize) {
        self.remove("content-length");
        self.remove("transfer-encoding");
        self.headers.push(("content-length".to_owned(), bytes.to_string()));
    }

    pub(super) fn method_and_target(&self) -> (String, String) {
        let mut words = self.first.split(' ').map(str::to_owned);
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }

    pub(super) fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(502)
    }

    pub(super) fn says_close(&self) -> bool {
        self.value("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    pub(super) fn framing(&self) -> Framing {
        let is_chunked = |value: &str| value.to_ascii_lowercase().ends_with("chunked");
        if self.value("transfer-encoding").is_some_and(is_chunked) {
            return Framing::Chunked;
        }
        let length = self.value("content-length").and_then(|value| value.parse().ok());
        length.filter(|length| *length > 0).map_or(Framing::None, Framing::Length)
    }

    pub(super) fn framing_of_answer(&self, request: &Request) -> Framing {
        if request.method == "HEAD" || matches!(self.status(), 204 | 304) {
            return Framing::None;
        }
        let is_told = ["content-length", "transfer-encoding"].map(|it| self.value(it).is_some());
        if is_told.contains(&true) { self.framing() } else { Framing::UntilClose }
    }
}

impl Framing {
    pub(super) fn relay(
        self,
        from: &mut BufReader<TcpStream>,
        to: &mut impl Sink,
    ) -> io::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Length(length) => copy_exactly(from, length, to),
            Self::UntilClose => copy(from, u64::MAX, to).map(|_| ()),
            Self::Chunked => loop {
                let line = read_line(from)?;
                let size = line.split(';').next().unwrap_or_default().trim();
                let size = u64::from_str_radix(size, 16).map_err(|_| io::ErrorKind::InvalidData)?;
                to.frame(format!("{line}\r\n").as_bytes())?;
                if size == 0 {
                    return relay_trailers(from, to);
                }
                copy_exactly(from, size, to)?;
                read_line(from)?;
                to.frame(b"\r\n")?;
            },
        }
    }

    pub(super) fn relay_plain(
        self,
        from: &mut BufReader<TcpStream>,
        to: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.relay(from, &mut Plain(to))
    }
}

pub(super) fn relay_trailers(
    from: &mut BufReader<TcpStream>,
    to: &mut impl Sink,
) -> io::Result<()> {
    loop {
        let line = read_line(from)?;
        to.frame(format!("{line}\r\n").as_bytes())?;
        if line.is_empty() {
            return Ok(());
        }
    }
}

pub(super) fn read_line(from: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = Vec::new();
    from.take(HEAD_BYTES_MAX).read_until(b'\n', &mut line)?;
    if !line.ends_with(b"\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    String::from_utf8(line.trim_ascii().to_vec()).map_err(|_| io::ErrorKind::InvalidData.into())
}

pub(super) fn copy_exactly(
    from: &mut impl io::Read,
    bytes: u64,
    to: &mut impl Sink,
) -> io::Result<()> {
    if copy(from, bytes, to)? < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// So many bytes, or up to the end.
pub(super) fn copy(from: &mut impl io::Read, bytes: u64, to: &mut impl Sink) -> io::Result<u64> {
    let mut slice = vec![0; to.slice_bytes().min(bytes) as usize];
    let mut left = bytes;
    while left > 0 {
        let wanted = left.min(slice.len() as u64) as usize;
        // Whole slices: what comes in crumbs would wake us for each of them.
        let mut read = 0;
        while read < wanted {
            match from.read(&mut slice[read..wanted]) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        to.body(&slice[..read])?;
        left -= read as u64;
        if read < wanted {
            break;
        }
    }
    Ok(bytes - left)
}
