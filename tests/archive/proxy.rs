//! What the proxy promises, shown with a server of a few lines.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use esker_tests::archive::proxy::{Action, Counters, Proxy, Shape};

/// Each listing is another one.
static LISTINGS: AtomicU64 = AtomicU64::new(0);

/// A server that answers by path: `/length/N` and `/chunked/N` with a body, `/none`, and anything else
/// with what it was sent. One thread for each connection; it ends with the process.
fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            std::thread::spawn(
                move || while answer(&mut BufReader::new(client.as_ref().unwrap())) {},
            );
        }
    });
    address
}

fn answer(client: &mut BufReader<&TcpStream>) -> bool {
    // The requests of the tests come one after the other: nothing is left in the buffer.
    let Some((first, headers)) = head(client) else { return false };
    assert!(!headers.contains("expect"), "{headers}");
    let sent = body(client, &headers);
    let words: Vec<_> = first.split(' ').collect();
    let path: Vec<_> = words[1].split('/').skip(1).collect();
    let reply = match path[..] {
        ["length", bytes] => {
            let body =
                if words[0] == "HEAD" { Vec::new() } else { pattern(bytes.parse().unwrap()) };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
            [head.into_bytes(), body].concat()
        }
        ["chunked", bytes] => {
            let mut reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for chunk in pattern(bytes.parse().unwrap()).chunks(1000) {
                reply.extend_from_slice(format!("{:x};an=extension\r\n", chunk.len()).as_bytes());
                reply.extend_from_slice(chunk);
                reply.extend_from_slice(b"\r\n");
            }
            reply.extend_from_slice(b"0\r\nA-Trailer: 1\r\n\r\n");
            reply
        }
        ["none"] => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        ["list", ..] => {
            let number = LISTINGS.fetch_add(1, Ordering::SeqCst);
            let contents = ["a", "b"].map(|key| format!("<Contents><Key>{key}</Key></Contents>"));
            let body = format!("<R>{}{number}</R>", contents.concat());
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
        }
        _ => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", sent.len());
            [head.into_bytes(), sent].concat()
        }
    };
    client.get_mut().write_all(&reply).is_ok()
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

/// The first line, and the headers in lower case.
fn head(from: &mut impl std::io::BufRead) -> Option<(String, String)> {
    let mut first = String::new();
    if from.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let mut headers = String::new();
    while !headers.ends_with("\n\r\n") && headers != "\r\n" {
        if from.read_line(&mut headers).ok()? == 0 {
            return None;
        }
    }
    Some((first.trim().to_owned(), headers.to_ascii_lowercase()))
}

fn body(from: &mut impl std::io::BufRead, headers: &str) -> Vec<u8> {
    let mut body = Vec::new();
    if headers.contains("chunked") {
        loop {
            let mut line = String::new();
            from.read_line(&mut line).unwrap();
            let size = line.trim().split(';').next().unwrap();
            let Ok(size) = usize::from_str_radix(size, 16) else { return body };
            if size > 0 {
                let mut chunk = vec![0; size + 2];
                if from.read_exact(&mut chunk).is_err() {
                    return body;
                }
                body.extend_from_slice(&chunk[..size]);
            } else {
                // Trailers, up to the empty line.
                while from.read_line(&mut line).is_ok_and(|read| read > 2) {}
                return body;
            }
        }
    }
    let length = headers.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.trim().parse().unwrap());
    // As far as it comes.
    from.take(length).read_to_end(&mut body).ok();
    body
}

/// What came of a request: the first line, what came of the body, and whether the connection was reset.
fn ask(client: &mut BufReader<TcpStream>, request: &str) -> Option<(String, Vec<u8>)> {
    client.get_mut().write_all(request.as_bytes()).ok()?;
    let (first, headers) = head(client)?;
    let has_body = !request.starts_with("HEAD");
    Some((first, if has_body { body(client, &headers) } else { Vec::new() }))
}

fn get(client: &mut BufReader<TcpStream>, path: &str) -> Option<(String, Vec<u8>)> {
    ask(client, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
}

fn connect(proxy: &Proxy) -> BufReader<TcpStream> {
    BufReader::new(TcpStream::connect(proxy.address()).unwrap())
}

#[test]
fn what_passes_arrives_as_it_was_sent_on_a_kept_connection() {
    let proxy = Proxy::start(server());
    let mut client = connect(&proxy);
    for bytes in [0, 1, 999, 1_000, 300_000] {
        for kind in ["length", "chunked"] {
            let (first, body) = get(&mut client, &format!("/{kind}/{bytes}")).unwrap();
            assert_eq!((first.as_str(), body.len()), ("HTTP/1.1 200 OK", bytes));
            assert_eq!(body, pattern(bytes));
        }
        let head = ask(&mut client, &format!("HEAD /length/{bytes} HTTP/1.1\r\n\r\n")).unwrap();
        assert_eq!(head.0, "HTTP/1.1 200 OK");
    }
    assert_eq!(get(&mut client, "/none").unwrap().0, "HTTP/1.1 204 No Content");
    let sent = ask(&mut client, "PUT /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello").unwrap();
    assert_eq!(sent.1, b"hello");
    let chunked =
        "PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n";
    assert_eq!(ask(&mut client, chunked).unwrap().1, b"hello!");
    let expects = "PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let (first, _) = ask(&mut client, expects).unwrap();
    assert_eq!(first, "HTTP/1.1 100 Continue");
    assert_eq!(ask(&mut client, "ok").unwrap().1, b"ok");
    let Counters { requests, request_bytes, connections, open_max, .. } = proxy.counters();
    assert_eq!((requests, request_bytes, connections, open_max), (19, 13, 1, 1));
}

#[test]
fn a_connection_keeps_to_its_rate_and_others_have_theirs() {
    const RATE: u64 = 20 << 20;
    let proxy = Proxy::start(server());
    let latency = Duration::from_millis(30);
    let shape = Shape { latency, response_bytes_per_second: Some(RATE), ..Shape::default() };
    proxy.shape(shape);
    let began = Instant::now();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let mut client = connect(&proxy);
            std::thread::spawn(move || {
                let began = Instant::now();
                let (_, body) = get(&mut client, "/length/16777216").unwrap();
                assert_eq!(body.len(), 16 << 20);
                began.elapsed()
            })
        })
        .collect();
    // The least that it must take is certain; how late a busy machine is, is not.
    let least = latency + Duration::from_secs_f64((16 << 20) as f64 / RATE as f64);
    for client in clients {
        let took = client.join().unwrap();
        assert!(took >= least, "{took:?} of {least:?}");
    }
    assert!(began.elapsed() < 3 * least, "one behind the other: {:?}", began.elapsed());
    assert_eq!(proxy.counters().open_max, 4);
    proxy.shape(Shape { request_bytes_per_second: Some(1 << 20), ..Shape::default() });
    let began = Instant::now();
    let put = format!("PUT /x HTTP/1.1\r\nContent-Length: 200000\r\n\r\n{}", "x".repeat(200_000));
    assert_eq!(ask(&mut connect(&proxy), &put).unwrap().1.len(), 200_000);
    let least = Duration::from_secs_f64(200_000.0 / f64::from(1 << 20));
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
}

#[test]
fn each_fault_does_what_its_name_says() {
    let upstream = server();
    let proxy = Proxy::start(upstream);
    let one = |action: Action, path: &str| {
        proxy.rule(move |request| if request.number == 0 { action.clone() } else { Action::Pass });
        let mut client = connect(&proxy);
        let first = get(&mut client, path);
        (first, get(&mut client, "/length/3"))
    };
    let (first, second) = one(Action::Answer(503), "/length/9");
    let (line, body) = first.unwrap();
    assert_eq!(line, "HTTP/1.1 503 Service Unavailable");
    assert!(String::from_utf8(body).unwrap().contains("<Code>SlowDown</Code>"));
    assert_eq!(second.unwrap().1, pattern(3), "the connection stays");
    for action in [Action::ResetBefore, Action::ApplyAndDrop] {
        assert_eq!(one(action, "/length/9"), (None, None));
    }
    for bytes in [0, 1, 8] {
        let (first, second) = one(Action::Truncate(bytes), "/length/9");
        assert_eq!(first.unwrap().1, pattern(bytes as usize));
        assert_eq!(second, None);
    }
    assert_eq!(one(Action::Truncate(100), "/length/9").0.unwrap().1, pattern(8), "never whole");
    assert_eq!(one(Action::Truncate(100), "/none").0, None);
    let (first, second) = one(Action::ResetAfter(4), "/chunked/9");
    assert!(first.is_none_or(|(_, body)| body.len() <= 4));
    assert_eq!(second, None);
    let began = Instant::now();
    let held = one(Action::ApplyAndHold(Duration::from_millis(50)), "/length/9");
    assert_eq!(held, (None, None));
    assert!(began.elapsed() >= Duration::from_millis(50));
    let (first, _) = one(Action::Hide("a".into()), "/list/hidden?list-type=2");
    let (listing, body) = first.unwrap();
    assert_eq!(listing, "HTTP/1.1 200 OK");
    assert!(body.starts_with(b"<R><Contents><Key>b</Key></Contents>"), "{body:?}");
    let path = "/list/new?list-type=2";
    let (first, _) = one(Action::Stale, path);
    let (again, _) = one(Action::Pass, path);
    assert!(first.is_some() && again != first, "nothing was known at first");
    let (stale, _) = one(Action::Stale, path);
    assert_eq!(stale, first);
}

#[test]
fn what_is_dropped_behind_its_application_was_applied() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let mut client = BufReader::new(&client);
        let (first, headers) = head(&mut client).unwrap();
        let sent = body(&mut client, &headers);
        client.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        (first, sent)
    });
    proxy.rule(|_| Action::ApplyAndDrop);
    let put = "PUT /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(ask(&mut connect(&proxy), put), None);
    assert_eq!(serving.join().unwrap(), ("PUT /x HTTP/1.1".to_owned(), b"hello".to_vec()));
}

#[test]
fn dropping_the_proxy_ends_its_connections() {
    let proxy = Proxy::start(server());
    let mut idle = connect(&proxy);
    get(&mut idle, "/length/1").unwrap();
    proxy.rule(|_| Action::ApplyAndHold(Duration::from_secs(3600)));
    let address = proxy.address();
    let waiting = std::thread::spawn(move || {
        let client = TcpStream::connect(address).unwrap();
        get(&mut BufReader::new(client), "/length/1")
    });
    while proxy.counters().connections < 2 {
        std::thread::yield_now();
    }
    drop(proxy);
    assert_eq!(waiting.join().unwrap(), None);
    let mut rest = Vec::new();
    assert_eq!(idle.read_to_end(&mut rest).unwrap_or(0), 0);
    assert!(TcpStream::connect(address).is_err());
}
