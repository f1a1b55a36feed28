//! What arbitrary bytes may do to the proxy, from a client and from an upstream: nothing. Everything lives in one thread, in
//! memory and in virtual time. The fuzz targets run these scenes, and so does `tests/fuzzed.rs`.

#![allow(dead_code, reason = "each fuzz target plays one of the scenes")]

use forebay::clock::Clock;
use forebay::proxy::{self, Proxy, Route, Site};
use forebay::server::{self, Server};
use forebay::store;
use forebay::telemetry::{StoreNumbers, Telemetry};
use forebay::upstream::{self, Transport};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Wall time at the beginning of each scene.
const EPOCH: u64 = 1_900_000_000;

/// Longer than every time limit together: who still waits then, waits for ever.
const FOR_EVER: Duration = Duration::from_secs(3600);

const PIPE_BYTES: usize = 64 << 10;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client sends these bytes; the first says how. Nothing may panic or hang, the upstream may see nothing but well-formed
/// requests, and the proxy must go on.
pub fn request(input: &[u8]) {
    let Some((options, bytes)) = input.split_first() else { return };
    let (ends, piece) = (options & 1 == 1, [bytes.len().max(1), 1, 7, 100][usize::from(options >> 1 & 3)]);
    // What the first answer says decides how the requests behind it are read.
    let control = if options & 8 == 8 { "no-store" } else { "max-age=60" };
    run(async {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let witnessed = Arc::clone(&seen);
        let world = World::before(move |_, stream| {
            tokio::spawn(witness(stream, Arc::clone(&witnessed), control));
        });
        let answers = world.tell(bytes, piece, ends).await;
        let is_http1 = !bytes.starts_with(PREFACE);
        if is_http1 && !answers.is_empty() {
            assert!(answers.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&answers));
        }
        let alive =
            world.tell(b"GET /alive HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 100, false).await;
        assert!(alive.starts_with(b"HTTP/1.1 200") && alive.ends_with(b"ok"), "it is not alive");
        for connection in seen.lock().unwrap().iter() {
            assert_well_formed(connection);
        }
        world.assert_sound();
    });
}

/// An upstream answers the first request with these bytes; the first says what follows them. The client must get a whole
/// answer or a break that it can see, and only a whole answer may be stored.
pub fn response(input: &[u8]) {
    let Some((options, bytes)) = input.split_first() else { return };
    let (stays, method) = (options & 1 == 1, if options & 2 == 2 { "HEAD" } else { "GET" });
    let bytes: Arc<[u8]> = bytes.into();
    run(async {
        let answer = Arc::clone(&bytes);
        let world = World::before(move |number, stream| {
            let answer = if number == 0 { Arc::clone(&answer) } else { Arc::from(SECOND) };
            tokio::spawn(answer_with(stream, answer, stays && number == 0));
        });
        let ask = |method| format!("{method} /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let first = Got::read(&world.tell(ask(method).as_bytes(), 100, false).await, method);
        let got = Got::read(&world.tell(ask("GET").as_bytes(), 100, false).await, "GET");
        let Got::Whole { head, body } = got else { return world.assert_sound() };
        let is_hit = head.lines().any(|line| line.starts_with("cache-status:") && line.contains("; hit"));
        match first {
            // What broke off is not stored.
            Got::Broken => assert!(!is_hit || body == b"second", "a part is stored: {head}"),
            Got::Whole { body: before, .. } if is_hit && method == "GET" => {
                assert_eq!(before, body, "something else is stored: {head}");
            }
            Got::Whole { .. } => {}
        }
        world.assert_sound();
    });
    run(async {
        let (kept, new) = (passed(&bytes, stays, true).await, passed(&bytes, stays, false).await);
        assert_eq!(kept, new, "it depends on what came before on the connection");
    });
}

/// What a client gets whose request passes, because the last answer was for one client alone, and is answered with these bytes: on the
/// connection that had that answer, which has tables made of no head, or on another.
async fn passed(bytes: &Arc<[u8]>, stays: bool, is_kept: bool) -> Got {
    let answer = Arc::clone(bytes);
    let world = World::before(move |number, mut stream| {
        let answer = Arc::clone(&answer);
        tokio::spawn(async move {
            let is_first = number == 0;
            if is_first && !answer_once(&mut stream, SECOND).await {
                return;
            }
            answer_with(stream, if is_first { answer } else { SECOND.into() }, stays && is_first).await;
        });
    });
    let request = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut stream = world.connect();
    let mut first = Vec::new();
    stream.write_all(request).await.unwrap();
    while !first.ends_with(b"second") {
        assert!(matches!(stream.read_buf(&mut first).await, Ok(1..)), "the first answer is a good one");
    }
    if !is_kept {
        stream = world.connect();
    }
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(FOR_EVER, stream.read_to_end(&mut answer));
    assert!(reading.await.is_ok(), "a connection hangs");
    world.assert_sound();
    match Got::read(&answer, "GET") {
        Got::Whole { head, body } => {
            let mut lines: Vec<&str> = head.lines().filter(|line| !line.starts_with("date:")).collect();
            lines.sort_unstable();
            Got::Whole { head: lines.join("\n"), body }
        }
        Got::Broken => Got::Broken,
    }
}

/// What the upstream answers to whoever asks again.
const SECOND: &[u8] = b"HTTP/1.1 200 OK\r\ncache-control: no-store\r\ncontent-length: 6\r\n\r\nsecond";

fn run(scene: impl Future<Output = ()>) {
    fastrand::seed(1);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap().block_on(scene);
}

/// The proxy and its upstream.
struct World {
    server: Server,
    telemetry: Arc<Telemetry>,
}

impl World {
    /// Before an upstream that is handed each new connection with its number.
    fn before(upstream: impl Fn(usize, DuplexStream) + Send + Sync + 'static) -> Self {
        let connections = AtomicUsize::new(0);
        let transport = Transport::Memory(Arc::new(move |_| {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            upstream(connections.fetch_add(1, Ordering::Relaxed), ours);
            Box::pin(async move { Ok(theirs) })
        }));
        let origin = upstream::Origin { https: false, host: "origin.example".into(), port: 80 };
        let settings =
            proxy::Settings { routes: vec![Route::plain(None, "/")], ..proxy::Settings::default() };
        let telemetry = Telemetry::new(true);
        let upstreams = vec![upstream::Settings::named("origin", vec![origin])];
        let site = Site::over(settings, upstreams, &telemetry, &transport).unwrap();
        let clock = Clock::simulated(EPOCH);
        let proxy = Proxy::new(site, &store::Settings::default(), Arc::clone(&telemetry), clock);
        let (settings, workers) = (server::Settings::default(), server::Workers::none());
        let server = Server::start(Vec::new(), workers, None, &settings, &proxy, &telemetry);
        Self { server, telemetry }
    }

    fn connect(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        self.server.attach(theirs, SocketAddr::from(([10, 0, 0, 1], 1)));
        ours
    }

    /// Sends these bytes as a client, piece by piece, and reads until the proxy closes the connection.
    async fn tell(&self, bytes: &[u8], piece: usize, ends: bool) -> Vec<u8> {
        let (mut reading, mut writing) = tokio::io::split(self.connect());
        let write = async {
            for piece in bytes.chunks(piece) {
                if writing.write_all(piece).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            if ends {
                let _ = writing.shutdown().await;
            }
        };
        let mut answers = Vec::new();
        let talk = async { tokio::join!(write, reading.read_to_end(&mut answers)) };
        assert!(tokio::time::timeout(FOR_EVER, talk).await.is_ok(), "a connection hangs");
        answers
    }

    fn assert_sound(self) {
        let numbers = self.telemetry.render();
        assert!(numbers.lines().any(|line| line == "forebay_panics_total 0"), "a panic was caught");
        // The telemetry holds the store, which tells it of evictions: a circle that a process may live with, and a million
        // scenes may not.
        self.telemetry.observe_store(StoreNumbers::default);
        self.telemetry.observe_bodies(forebay::telemetry::BodyNumbers::default);
    }
}

/// An upstream that remembers what it gets and answers each request that is whole.
async fn witness(mut stream: DuplexStream, seen: Arc<Mutex<Vec<Vec<u8>>>>, control: &str) {
    let (mut own, mut answered) = (Vec::new(), 0);
    let index = {
        let mut seen = seen.lock().unwrap();
        seen.push(Vec::new());
        seen.len() - 1
    };
    while let Ok(1..) = stream.read_buf(&mut own).await {
        seen.lock().unwrap()[index].clone_from(&own);
        while let Ok(Some(length)) = one_request(&own[answered..]) {
            let body = if own[answered..].starts_with(b"HEAD ") { "" } else { "ok" };
            answered += length;
            let answer =
                format!("HTTP/1.1 200 OK\r\ncache-control: {control}\r\ncontent-length: 2\r\n\r\n{body}");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// An upstream that answers the first head it gets with these bytes.
async fn answer_with(mut stream: DuplexStream, answer: Arc<[u8]>, stays: bool) {
    if answer_once(&mut stream, &answer).await && stays {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
}

/// Answers a head with these bytes. Returns whether there was one.
async fn answer_once(stream: &mut DuplexStream, answer: &[u8]) -> bool {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
            return false;
        }
    }
    let _ = stream.write_all(answer).await;
    true
}

fn assert_well_formed(mut connection: &[u8]) {
    loop {
        match one_request(connection) {
            Ok(Some(length)) => connection = &connection[length..],
            Ok(None) => return,
            Err(flaw) => panic!("{flaw}: {:?}", String::from_utf8_lossy(connection)),
        }
    }
}

/// The length of the first request, if it is whole; read as strictly as RFC 9112 has it, and a little more so.
fn one_request(bytes: &[u8]) -> Result<Option<usize>, &'static str> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    // RFC 9110 §5.5: field values may have bytes above ASCII.
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let line: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = line[..] else { return Err("a malformed request line") };
    let is_target = target.starts_with('/') || (target == "*" && method == "OPTIONS");
    if !is_token(method) || !is_target || !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
    {
        return Err("a malformed method or target");
    }
    let (mut hosts, mut lengths, mut codings) = (0, Vec::new(), Vec::new());
    let (mut takes_trailers, mut connection) = (false, String::new());
    for line in lines {
        let (name, value) =
            line.split_once(": ").or(line.strip_suffix(':').map(|name| (name, ""))).ok_or("no field")?;
        if !is_token(name) || value.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f) {
            return Err("a malformed field");
        }
        match name.to_ascii_lowercase().as_str() {
            "host" => hosts += 1,
            "content-length" => lengths.push(value.parse::<usize>().map_err(|_| "a malformed length")?),
            "transfer-encoding" => codings.push(value),
            "connection" => connection = value.to_ascii_lowercase(),
            "te" => takes_trailers = true,
            "keep-alive" | "proxy-connection" => return Err("a field of the client's connection"),
            _ => {}
        }
    }
    if takes_trailers && !connection.split(", ").any(|option| option == "te") {
        return Err("a TE that would be passed on");
    }
    let body = &bytes[end + 4..];
    let length = match (hosts, &lengths[..], &codings[..]) {
        (1, [], []) => Some(0),
        (1, [length], []) => (body.len() >= *length).then_some(*length),
        (1, [], ["chunked"]) => chunked(body)?,
        (1, ..) => return Err("more than one way to tell the length"),
        _ => return Err("not one Host"),
    };
    Ok(length.map(|length| end + 4 + length))
}

/// The length of a body in chunks, if it is whole.
fn chunked(body: &[u8]) -> Result<Option<usize>, &'static str> {
    let mut at = 0;
    loop {
        let Some(end) = body[at..].windows(2).position(|window| window == b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&body[at..at + end]).ok();
        let size = size.and_then(|size| usize::from_str_radix(size, 16).ok()).ok_or("a malformed chunk")?;
        at += end + 2;
        match body.get(at + size..at + size + 2) {
            None => return Ok(None),
            Some(b"\r\n") if size == 0 => return Ok(Some(at + 2)),
            Some(b"\r\n") => at += size + 2,
            Some(_) => return Err("a chunk that does not end"),
        }
    }
}

fn is_token(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_tchar)
}

/// What a client got on a connection that was to have one answer and is closed.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Whole { head: String, body: Vec<u8> },
    Broken,
}

impl Got {
    /// Reads it as a client does that knows what it asked for.
    fn read(bytes: &[u8], method: &str) -> Self {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Self::Broken;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let body = &bytes[end + 4..];
        let status: u16 = head.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
        assert!(status >= 200, "an interim answer for {method}: {head}");
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let whole = |body: Vec<u8>| Self::Whole { head: head.clone(), body };
        if method == "HEAD" || status == 204 || status == 304 {
            assert!(body.is_empty(), "a body where none may be: {head}");
            return whole(Vec::new());
        }
        match (field("content-length"), field("transfer-encoding")) {
            (Some(length), None) => {
                let length: usize = length.parse().expect("a length");
                assert!(body.len() <= length, "more than was announced: {head}");
                if body.len() == length { whole(body.to_vec()) } else { Self::Broken }
            }
            (None, Some("chunked")) => match unchunked(body) {
                Some(body) => whole(body),
                None => Self::Broken,
            },
            _ => panic!("the end of the body cannot be seen: {head}"),
        }
    }
}

fn unchunked(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).ok()?, 16).ok()?;
        body = &body[end + 2..];
        if size == 0 {
            assert_eq!(body, b"\r\n", "something follows the last chunk");
            return Some(whole);
        }
        whole.extend_from_slice(body.get(..size)?);
        body = body.get(size + 2..)?;
    }
}
