//! A reverse proxy in front of an object store's HTTP endpoint: slow, narrow, and faulty on demand.
//!
//! What must stay true:
//! - What is passed arrives as it was sent, in both directions: bodies with a length, chunked ones,
//!   none (HEAD, 204, 304), and kept connections. Only `Expect` is answered here and not passed on.
//! - A connection's bodies keep to its rate over any time longer than a slice, however late threads
//!   are woken: every slice has its time counted from the first one.
//! - A fault is decided once for each request, by a rule that sees its number; numbers count from when
//!   the rule was set.
//!
//! One thread for each connection, nothing but blocking sockets: benchmarks use it as well, and it
//! should cost them little.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const HEAD_BYTES_MAX: u64 = 64 << 10;
const SLICE_BYTES_MAX: u64 = 256 << 10;
/// How far behind its time a connection may be and still catch up.
const CATCH_UP: Duration = Duration::from_millis(100);
/// How often one that holds an answer looks whether it should go on.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How slow each connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Before the first byte of each answer.
    pub latency: Duration,
    /// Of the bodies of answers.
    pub response_bytes_per_second: Option<u64>,
    /// Of the bodies of requests.
    pub request_bytes_per_second: Option<u64>,
}

/// A request as rules see it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Counted from when the rule was set.
    pub number: u64,
    pub method: String,
    /// Path and query, as they came.
    pub target: String,
}

impl Request {
    /// Whether it asks which objects there are.
    pub fn is_listing(&self) -> bool {
        self.method == "GET" && self.target.contains("list-type=")
    }
}

/// What is done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is passed on, and so is its answer.
    Pass,
    /// It is answered with this status and an error as S3 words it. Nobody else hears of it.
    Answer(u16),
    /// The connection is reset. Nobody else hears of it.
    ResetBefore,
    /// It is passed on; behind so many bytes of the answer's body the connection is reset. Always
    /// before the end: without a body before the head.
    ResetAfter(u64),
    /// The same with an end as if it were meant.
    Truncate(u64),
    /// It is passed on and applied; the connection is reset instead of an answer.
    ApplyAndDrop,
    /// It is passed on and applied; nothing comes until the client has gone or this time is over.
    ApplyAndHold(Duration),
    /// The oldest answer to the same request that is known, from before the rule was set or after; a
    /// request that is new is passed. For listings.
    Stale,
    /// Of a listing, the objects are left out whose key contains this.
    Hide(String),
    /// The object is sent from this file. Nobody else hears of it: for benchmarks, whose server would be
    /// what is measured.
    File(PathBuf),
}

/// Decides what is done with a request.
pub type Rule = Arc<dyn Fn(&Request) -> Action + Send + Sync>;

/// What went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub requests: u64,
    /// Of bodies, from the clients.
    pub request_bytes: u64,
    /// Of bodies, to the clients.
    pub response_bytes: u64,
    pub connections: u64,
    /// Connections that were open at the same time.
    pub open_max: u64,
}

/// A proxy that listens; it stops when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    upstream: SocketAddr,
    plan: Mutex<Plan>,
    counters: Mutex<Counters>,
    stops: AtomicBool,
    open: Mutex<Open>,
    /// By target: the oldest answer.
    listings: Mutex<HashMap<String, Answer>>,
}

struct Plan {
    shape: Shape,
    rule: Rule,
    number: Arc<AtomicU64>,
}

/// Sockets to be closed when the proxy stops, and the threads behind them.
#[derive(Default)]
struct Open {
    number: u64,
    sockets: HashMap<u64, TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Clone)]
struct Answer {
    head: Head,
    body: Vec<u8>,
}

impl Proxy {
    /// In front of this address, as fast as it goes and without faults.
    pub fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let rule: Rule = Arc::new(|_| Action::Pass);
        let shared = Arc::new(Shared {
            upstream,
            plan: Mutex::new(Plan { shape: Shape::default(), rule, number: Arc::default() }),
            counters: Mutex::default(),
            stops: AtomicBool::new(false),
            open: Mutex::default(),
            listings: Mutex::default(),
        });
        let accepting = {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name("proxy".into());
            thread.spawn(move || accept(&listener, &shared)).expect("a thread")
        };
        Self { address, shared, accepting: Some(accepting) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as `http://…`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From the next request on.
    pub fn shape(&self, shape: Shape) {
        self.shared.plan.lock().unwrap().shape = shape;
    }

    /// From the next request on, which is number 0 for the rule.
    pub fn rule(&self, rule: impl Fn(&Request) -> Action + Send + Sync + 'static) {
        let mut plan = self.shared.plan.lock().unwrap();
        plan.rule = Arc::new(rule);
        plan.number = Arc::default();
    }

    /// Without faults again; the number of requests since the last rule was set.
    pub fn pass(&self) -> u64 {
        let number = self.shared.plan.lock().unwrap().number.load(Ordering::SeqCst);
        self.rule(|_| Action::Pass);
        number
    }

    /// Since it was started.
    pub fn counters(&self) -> Counters {
        *self.shared.counters.lock().unwrap()
    }

    /// The answers that [`Action::Stale`] gives begin anew.
    pub fn forget_listings(&self) {
        self.shared.listings.lock().unwrap().clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stops.store(true, Ordering::SeqCst);
        // Wakes the one that accepts; it is on its way out if nobody answers.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            accepting.join().expect("the proxy does not panic");
        }
        let threads = {
            let mut open = self.shared.open.lock().unwrap();
            for socket in open.sockets.values() {
                // Closed by the other side already, maybe.
                let _ = socket.shutdown(Shutdown::Both);
            }
            std::mem::take(&mut open.threads)
        };
        for thread in threads {
            thread.join().expect("the proxy does not panic");
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.stops.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        let mut open = shared.open.lock().unwrap();
        let Some(number) = open.add(&client) else { continue };
        {
            let mut counters = shared.counters.lock().unwrap();
            counters.connections += 1;
            counters.open_max = counters.open_max.max(open.threads.len() as u64 + 1);
        }
        let theirs = Arc::clone(shared);
        let thread = std::thread::Builder::new().name("proxy".into()).stack_size(256 << 10);
        let thread = thread.spawn(move || {
            // Whatever ends a connection, its client sees it.
            let _ = Connection::new(&theirs, client).serve();
            theirs.open.lock().unwrap().sockets.remove(&number);
        });
        open.threads.retain(|thread| !thread.is_finished());
        open.threads.push(thread.expect("a thread"));
    }
}

impl Open {
    fn add(&mut self, socket: &TcpStream) -> Option<u64> {
        self.number += 1;
        self.sockets.insert(self.number, socket.try_clone().ok()?);
        Some(self.number)
    }
}

/// A client, and the connection to the store that is kept for it.
struct Connection<'a> {
    shared: &'a Arc<Shared>,
    client: BufReader<TcpStream>,
    upstream: Option<BufReader<TcpStream>>,
    /// Of the sockets to be closed, that of `upstream`.
    registered: Option<u64>,
    requests: Pace,
    responses: Pace,
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.disconnect();
    }
}

impl<'a> Connection<'a> {
    fn new(shared: &'a Arc<Shared>, client: TcpStream) -> Self {
        // Only slower if it fails.
        let _ = client.set_nodelay(true);
        let (requests, responses) = (Pace::default(), Pace::default());
        let client = BufReader::new(client);
        Self { shared, client, upstream: None, registered: None, requests, responses }
    }

    fn serve(mut self) -> io::Result<()> {
        while let Some(head) = Head::read(&mut self.client)? {
            let (shape, rule, number) = {
                let plan = self.shared.plan.lock().unwrap();
                let number = plan.number.fetch_add(1, Ordering::SeqCst);
                (plan.shape, Arc::clone(&plan.rule), number)
            };
            self.shared.counters.lock().unwrap().requests += 1;
            let (method, target) = head.method_and_target();
            let request = Request { number, method, target };
            self.requests.set(shape.request_bytes_per_second);
            self.responses.set(shape.response_bytes_per_second);
            let action = rule(&request);
            if !self.act(&request, head, action, shape.latency)? {
                break;
            }
        }
        Ok(())
    }

    /// Whether the connection stays.
    fn act(
        &mut self,
        request: &Request,
        head: Head,
        action: Action,
        latency: Duration,
    ) -> io::Result<bool> {
        match action {
            Action::ResetBefore => self.reset(),
            Action::Answer(status) => {
                self.receive_body(&head, &mut io::sink())?;
                self.wait(latency);
                let body = error_xml(status);
                self.answer(&error_head(status, body.len()), &body, request)?;
                Ok(true)
            }
            Action::ApplyAndDrop => {
                self.applied(request, &head)?;
                self.reset()
            }
            Action::ApplyAndHold(time) => {
                self.applied(request, &head)?;
                self.hold(time);
                Ok(false)
            }
            Action::Stale => {
                let known = self.shared.listings.lock().unwrap().get(&request.target).cloned();
                let Some(known) = known else { return self.pass(request, &head, latency) };
                self.receive_body(&head, &mut io::sink())?;
                self.wait(latency);
                self.answer(&known.head, &known.body, request)?;
                Ok(true)
            }
            Action::Hide(text) => {
                let Answer { mut head, body } = self.applied(request, &head)?;
                let body = without_contents(&String::from_utf8_lossy(&body), &text).into_bytes();
                head.set_length(body.len());
                self.wait(latency);
                self.answer(&head, &body, request)?;
                Ok(true)
            }
            Action::ResetAfter(bytes) => {
                self.cut(request, &head, bytes, latency)?;
                self.reset()
            }
            Action::Truncate(bytes) => self.cut(request, &head, bytes, latency).map(|()| false),
            Action::File(path) => {
                self.wait(latency);
                self.send_file(&path, head.value("range")).map(|()| true)
            }
            Action::Pass => self.pass(request, &head, latency),
        }
    }

    fn pass(&mut self, request: &Request, head: &Head, latency: Duration) -> io::Result<bool> {
        if request.is_listing() {
            // In one piece, to be given again.
            let answer = self.applied(request, head)?;
            self.wait(latency);
            self.answer(&answer.head, &answer.body, request)?;
            let mut listings = self.shared.listings.lock().unwrap();
            listings.entry(request.target.clone()).or_insert(answer);
            return Ok(true);
        }
        let whole = self.forward(head)?;
        let head = self.answer_head()?;
        self.wait(latency);
        self.client.get_ref().write_all(&head.bytes())?;
        let framing = head.framing_of_answer(request);
        let from = self.upstream.as_mut().expect("it has answered");
        let mut to = Counted::new(self.client.get_ref(), &mut self.responses);
        let relayed = framing.relay(from, &mut to);
        self.shared.counters.lock().unwrap().response_bytes += to.bytes;
        relayed?;
        if !whole || framing == Framing::UntilClose || head.says_close() {
            self.disconnect();
            return Ok(false);
        }
        Ok(true)
    }

    /// Answers with a file, or with the range of it that is asked for.
    fn send_file(&mut self, path: &Path, range: Option<&str>) -> io::Result<()> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let ends = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let (begin, last) = match ends {
            Some((begin, last)) => {
                let number =
                    |text: &str| text.parse::<u64>().map_err(|_| io::ErrorKind::InvalidData);
                (number(begin)?, number(last)?.min(size - 1))
            }
            None => (0, size - 1),
        };
        let length = last + 1 - begin;
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\nETag: \"{size}\"\r\n\
             Content-Range: bytes {begin}-{last}/{size}\r\n\
             Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n"
        );
        self.client.get_ref().write_all(head.as_bytes())?;
        file.seek(io::SeekFrom::Start(begin))?;
        let mut to = Counted::new(self.client.get_ref(), &mut self.responses);
        let sent = copy_exactly(&mut file, length, &mut to);
        self.shared.counters.lock().unwrap().response_bytes += to.bytes;
        sent
    }

    /// Passes the request on and takes the whole answer.
    fn applied(&mut self, request: &Request, head: &Head) -> io::Result<Answer> {
        let whole = self.forward(head)?;
        let mut head = self.answer_head()?;
        let mut body = Vec::new();
        let framing = head.framing_of_answer(request);
        let from = self.upstream.as_mut().expect("it has answered");
        framing.relay_plain(from, &mut body)?;
        if !whole || framing == Framing::UntilClose || head.says_close() {
            self.disconnect();
        }
        if framing != Framing::None {
            head.set_length(body.len());
        }
        Ok(Answer { head, body })
    }

    /// Passes the request on, and of the answer so many bytes of the body.
    fn cut(
        &mut self,
        request: &Request,
        head: &Head,
        bytes: u64,
        latency: Duration,
    ) -> io::Result<()> {
        let Answer { head, body } = self.applied(request, head)?;
        self.wait(latency);
        if body.is_empty() {
            return Ok(());
        }
        let cut = bytes.min(body.len() as u64 - 1) as usize;
        self.answer(&head, &body[..cut], request)
    }

    /// Sends the request to the store; whether all of it was taken.
    fn forward(&mut self, head: &Head) -> io::Result<bool> {
        self.connect()?;
        let mut passed = head.clone();
        passed.remove("expect");
        let upstream = self.upstream.as_ref().expect("connected").get_ref().try_clone()?;
        (&upstream).write_all(&passed.bytes())?;
        self.receive_body(head, &mut &upstream)
    }

    /// Takes the body of a request; whether `to` took all of it: who refuses may not want the rest.
    fn receive_body(&mut self, head: &Head, to: &mut dyn io::Write) -> io::Result<bool> {
        if head.value("expect").is_some() {
            self.client.get_ref().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut to = Counted::new(Lenient { inner: to, refused: false }, &mut self.requests);
        let relayed = head.framing().relay(&mut self.client, &mut to);
        self.shared.counters.lock().unwrap().request_bytes += to.bytes;
        relayed?;
        Ok(!to.inner.refused)
    }

    /// The head of the store's answer; those that only say that it goes on are not passed.
    fn answer_head(&mut self) -> io::Result<Head> {
        let upstream = self.upstream.as_mut().expect("connected");
        loop {
            let head = Head::read(upstream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if head.status() >= 200 {
                return Ok(head);
            }
        }
    }

    fn answer(&mut self, head: &Head, body: &[u8], request: &Request) -> io::Result<()> {
        self.client.get_ref().write_all(&head.bytes())?;
        if request.method == "HEAD" {
            return Ok(());
        }
        let mut to = Counted::new(self.client.get_ref(), &mut self.responses);
        let written = copy_exactly(&mut &body[..], body.len() as u64, &mut to);
        self.shared.counters.lock().unwrap().response_bytes += to.bytes;
        written
    }

    /// The kept connection to the store, or a new one if that was closed.
    fn connect(&mut self) -> io::Result<()> {
        if self.upstream.as_ref().is_some_and(|kept| is_alive(kept.get_ref())) {
            return Ok(());
        }
        self.disconnect();
        let upstream = TcpStream::connect(self.shared.upstream)?;
        upstream.set_nodelay(true)?;
        self.registered = self.shared.open.lock().unwrap().add(&upstream);
        self.upstream = Some(BufReader::new(upstream));
        if self.shared.stops.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    fn disconnect(&mut self) {
        self.upstream = None;
        if let Some(number) = self.registered.take() {
            self.shared.open.lock().unwrap().sockets.remove(&number);
        }
    }

    /// Ends the connection as a crash does: without lingering, the kernel answers with RST.
    fn reset(&self) -> io::Result<bool> {
        let none = Some(Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(self.client.get_ref(), none)?;
        Ok(false)
    }

    fn wait(&self, time: Duration) {
        if time < 10 * LOOK_EVERY {
            std::thread::sleep(time);
        } else {
            self.hold(time);
        }
    }

    /// Until the time is over, the client has gone or the proxy stops.
    fn hold(&self, time: Duration) {
        let until = Instant::now() + time;
        let is_waiting = || {
            !self.shared.stops.load(Ordering::SeqCst)
                && (!self.client.buffer().is_empty() || is_alive(self.client.get_ref()))
        };
        while is_waiting() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
    }
}

/// Whether the other side has not closed its end.
fn is_alive(socket: &TcpStream) -> bool {
    let mut byte = [0];
    let peeked = socket.set_nonblocking(true).and_then(|()| socket.peek(&mut byte));
    if socket.set_nonblocking(false).is_err() {
        return false;
    }
    match peeked {
        Ok(read) => read > 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// When the next slice is due.
#[derive(Debug, Default)]
struct Pace {
    bytes_per_second: Option<u64>,
    /// When all that was sent is due.
    due: Option<Instant>,
}

impl Pace {
    fn set(&mut self, bytes_per_second: Option<u64>) {
        self.bytes_per_second = bytes_per_second.filter(|rate| *rate > 0);
    }

    /// Some ten milliseconds: finer than anybody looks, and few wakes for many connections.
    fn slice_bytes(&self) -> u64 {
        let rate = self.bytes_per_second.unwrap_or(u64::MAX);
        (rate / 100).clamp(1, SLICE_BYTES_MAX)
    }

    /// Waits until so many bytes have had their time.
    fn wait_for(&mut self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let now = Instant::now();
        let last = self.due.map_or(now, |due| due.max(now.checked_sub(CATCH_UP).unwrap_or(now)));
        let due = last + Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.due = Some(due);
        std::thread::sleep(due.saturating_duration_since(now));
    }

    /// A new body: nothing has been saved up.
    fn begin(&mut self) {
        let now = Instant::now();
        self.due = Some(self.due.map_or(now, |due| due.max(now)));
    }
}

/// Writes at a rate and counts.
struct Counted<'a, W> {
    inner: W,
    pace: &'a mut Pace,
    bytes: u64,
}

impl<'a, W: io::Write> Counted<'a, W> {
    fn new(inner: W, pace: &'a mut Pace) -> Self {
        pace.begin();
        Self { inner, pace, bytes: 0 }
    }
}

/// Takes the parts of a body.
trait Sink {
    /// Part of the body.
    fn body(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// What frames it.
    fn frame(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// How much is taken at a time.
    fn slice_bytes(&self) -> u64;
}

impl<W: io::Write> Sink for Counted<'_, W> {
    fn body(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pace.wait_for(bytes.len() as u64);
        self.inner.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn frame(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_all(bytes)
    }

    fn slice_bytes(&self) -> u64 {
        self.pace.slice_bytes()
    }
}

/// A body without what frames it.
struct Plain<'a>(&'a mut Vec<u8>);

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

/// Takes note of a write that fails and swallows the rest: the answer may say why.
struct Lenient<W> {
    inner: W,
    refused: bool,
}

impl<W: io::Write> io::Write for Lenient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.refused && self.inner.write_all(bytes).is_err() {
            self.refused = true;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The first line and the headers of a message.
#[derive(Clone, Debug)]
struct Head {
    first: String,
    headers: Vec<(String, String)>,
}

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

impl Head {
    /// `None` at the end of the connection.
    fn read(from: &mut BufReader<TcpStream>) -> io::Result<Option<Self>> {
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

    fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        (text + "\r\n").into_bytes()
    }

    fn value(&self, wanted: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.as_str())
    }

    fn remove(&mut self, unwanted: &str) {
        self.headers.retain(|(name, _)| !name.eq_ignore_ascii_case(unwanted));
    }

    fn set_length(&mut self, bytes: usize) {
        self.remove("content-length");
        self.remove("transfer-encoding");
        self.headers.push(("content-length".to_owned(), bytes.to_string()));
    }

    fn method_and_target(&self) -> (String, String) {
        let mut words = self.first.split(' ').map(str::to_owned);
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }

    fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(502)
    }

    fn says_close(&self) -> bool {
        self.value("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    fn framing(&self) -> Framing {
        let is_chunked = |value: &str| value.to_ascii_lowercase().ends_with("chunked");
        if self.value("transfer-encoding").is_some_and(is_chunked) {
            return Framing::Chunked;
        }
        let length = self.value("content-length").and_then(|value| value.parse().ok());
        length.filter(|length| *length > 0).map_or(Framing::None, Framing::Length)
    }

    fn framing_of_answer(&self, request: &Request) -> Framing {
        if request.method == "HEAD" || matches!(self.status(), 204 | 304) {
            return Framing::None;
        }
        let is_told = ["content-length", "transfer-encoding"].map(|it| self.value(it).is_some());
        if is_told.contains(&true) { self.framing() } else { Framing::UntilClose }
    }
}

impl Framing {
    fn relay(self, from: &mut BufReader<TcpStream>, to: &mut impl Sink) -> io::Result<()> {
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

    fn relay_plain(self, from: &mut BufReader<TcpStream>, to: &mut Vec<u8>) -> io::Result<()> {
        self.relay(from, &mut Plain(to))
    }
}

fn relay_trailers(from: &mut BufReader<TcpStream>, to: &mut impl Sink) -> io::Result<()> {
    loop {
        let line = read_line(from)?;
        to.frame(format!("{line}\r\n").as_bytes())?;
        if line.is_empty() {
            return Ok(());
        }
    }
}

fn read_line(from: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = Vec::new();
    from.take(HEAD_BYTES_MAX).read_until(b'\n', &mut line)?;
    if !line.ends_with(b"\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    String::from_utf8(line.trim_ascii().to_vec()).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn copy_exactly(from: &mut impl io::Read, bytes: u64, to: &mut impl Sink) -> io::Result<()> {
    if copy(from, bytes, to)? < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// So many bytes, or up to the end.
fn copy(from: &mut impl io::Read, bytes: u64, to: &mut impl Sink) -> io::Result<u64> {
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

fn error_head(status: u16, body_bytes: usize) -> Head {
    let reason = match status {
        403 => "Forbidden",
        404 => "Not Found",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Refused",
    };
    let headers = [
        ("content-type", "application/xml".to_owned()),
        ("content-length", body_bytes.to_string()),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
    Head { first: format!("HTTP/1.1 {status} {reason}"), headers }
}

fn error_xml(status: u16) -> Vec<u8> {
    let (code, message) = match status {
        403 => ("AccessDenied", "Access Denied."),
        404 => ("NoSuchKey", "The specified key does not exist."),
        503 => ("SlowDown", "Please reduce your request rate."),
        _ => ("InternalError", "We encountered an internal error. Please try again."),
    };
    let error = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{error}").into_bytes()
}

/// A listing without the objects whose key contains `text`.
fn without_contents(listing: &str, text: &str) -> String {
    const END: &str = "</Contents>";
    let mut kept = String::with_capacity(listing.len());
    let mut rest = listing;
    while let Some(begin) = rest.find("<Contents>") {
        let Some(length) = rest[begin..].find(END) else { break };
        let end = begin + length + END.len();
        let key = rest[begin..end].split_once("<Key>").and_then(|(_, it)| it.split_once("</Key>"));
        kept += &rest[..begin];
        if !key.is_some_and(|(key, _)| key.contains(text)) {
            kept += &rest[begin..end];
        }
        rest = &rest[end..];
    }
    kept + rest
}
