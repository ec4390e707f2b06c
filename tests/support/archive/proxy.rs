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

mod answers;
mod http;
mod pace;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Seek as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::answers::{error_head, error_xml, without_contents};
use self::http::{Framing, Head, copy_exactly};
use self::pace::{Counted, Lenient, Pace};

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
