//! What a connection carries beside one request after the other: bytes that look like something else, bytes that come too early or
//! too late, and clients that leave or that send on.

use crate::peers::*;
use crate::support::*;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

/// To the letter what is answered to a request that cannot be parsed, before it is made fit to be seen.
const LOOKALIKE: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\
                         date: Mon, 23 Nov 2026 11:00:00 GMT\r\n\r\n";

const UPGRADE: &str = "GET /tunnel HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";

const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// Reads so many bytes, or up to the end.
async fn hear_bytes(stream: &mut (impl AsyncRead + Unpin), count: usize) -> String {
    let mut bytes = Vec::new();
    let _ = stream.take(count as u64).read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test(start_paused = true)]
async fn a_body_that_looks_like_a_refusal_is_a_body() {
    let address = raw_origin(|_, mut stream| async move {
        stream.set_nodelay(true).unwrap();
        loop {
            let head = read_head(&mut stream).await;
            let kept = if head.contains("/kept") { "max-age=60" } else { "no-store" };
            let length = LOOKALIKE.len();
            let answer =
                format!("HTTP/1.1 200 OK\r\ncache-control: {kept}\r\ncontent-length: {length}\r\n\r\n");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            // Its head is on its way to the client before.
            sleep(Duration::from_millis(10)).await;
            stream.write_all(LOOKALIKE.as_bytes()).await.unwrap();
        }
    })
    .await;
    let stage = Setting::before(address).start().await;
    let post = "POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    let mut stream = stage.pipe();
    for request in [get("/kept"), get("/kept"), get("/a"), get("/a"), post.to_owned(), get("/kept")] {
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 "), "{request}");
        assert_eq!(hear_bytes(&mut stream, LOOKALIKE.len()).await, LOOKALIKE, "{request}");
    }
    assert_eq!(stage.metric("forebay_connections_refused_total{cause=\"malformed\"}"), 0.0);
}

/// An upstream that agrees to any upgrade, and then sends back what it gets.
async fn echo() -> Stage {
    let address = raw_origin(|_, mut stream| async move {
        stream.set_nodelay(true).unwrap();
        loop {
            let head = read_head(&mut stream).await;
            let is_upgrade = head.contains("upgrade: x");
            let answer =
                if is_upgrade { SWITCHING } else { "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" };
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            let mut buffer = [0; 4096];
            while let (true, Ok(count @ 1..)) = (is_upgrade, stream.read(&mut buffer).await) {
                stream.write_all(&buffer[..count]).await.unwrap();
            }
        }
    })
    .await;
    Setting::before(address).start().await
}

#[tokio::test(start_paused = true)]
async fn nobody_judges_what_goes_through_a_tunnel() {
    let stage = echo().await;
    let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    for said in [
        LOOKALIKE.to_owned(),
        get("/x"),
        "GET / HTTP/1.1\r\n".to_owned(),
        format!("{chunked}no chunk"),
        format!("{chunked}5\r\nhello\r\n0\r\n\r\n\n\nGET / HTTP/1.1\nX"),
        "\n\n\r\r\0\x01\x02".to_owned(),
        "x".repeat(100_000),
    ] {
        for (is_glued, before) in [(false, 0), (true, 0), (false, 3), (true, 3)] {
            let mut stream = stage.pipe();
            for _ in 0..before {
                stream.write_all(get("/").as_bytes()).await.unwrap();
                hear_one(&mut stream).await;
            }
            let (mut reading, mut writing) = tokio::io::split(stream);
            let glued = if is_glued { said.as_str() } else { "" };
            let rest = if is_glued { "" } else { said.as_str() };
            let request = format!("{UPGRADE}{glued}");
            let saying = async {
                writing.write_all(request.as_bytes()).await.unwrap();
                // In the tunnel nothing is slow.
                sleep(Duration::from_mins(2)).await;
                writing.write_all(rest.as_bytes()).await.unwrap();
                sleep(Duration::from_mins(2)).await;
                writing.write_all(b"and the end").await.unwrap();
            };
            let hearing = async {
                assert!(read_head(&mut reading).await.starts_with("HTTP/1.1 101 "), "{said:.40}");
                hear_bytes(&mut reading, said.len() + 11).await
            };
            let ((), heard) = tokio::join!(saying, hearing);
            assert!(heard == format!("{said}and the end"), "{said:.40} {is_glued} {before}: {heard:.80}");
        }
    }
    assert_eq!(stage.metric("forebay_connections_refused_total{cause=\"malformed\"}"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn what_comes_behind_an_upgrade_that_is_refused_is_the_next_request() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let ambiguous =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let hidden = get("/hidden");
    let told = tell(stage.address, format!("{UPGRADE}{}{ambiguous}{hidden}", get("/good")).as_bytes()).await;
    assert_eq!(told.statuses(), [200, 200, 400], "{}", told.text);
    assert!(!witness.seen().contains("hidden"), "{}", witness.seen());
}

/// An origin that answers, but for `/silent`, and of `/halfway` half only; and how often it is asked for `/ahead`.
async fn hesitant() -> (SocketAddr, Arc<AtomicUsize>) {
    let strays = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&strays);
    let address = raw_origin(move |_, mut stream| {
        let strays = Arc::clone(&counted);
        async move {
            stream.set_nodelay(true).unwrap();
            loop {
                let head = read_head(&mut stream).await;
                strays.fetch_add(usize::from(head.contains("/ahead")), Ordering::Relaxed);
                let (is_silent, is_halfway) = (head.contains("/silent"), head.contains("/halfway"));
                let body = if is_halfway { "half" } else { "complete" };
                let answer =
                    format!("HTTP/1.1 200 OK\r\ncache-control: no-store\r\ncontent-length: 8\r\n\r\n{body}");
                if !is_silent && stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
                if is_silent || is_halfway {
                    hear(&mut stream).await;
                    return;
                }
            }
        }
    })
    .await;
    (address, strays)
}

#[tokio::test(start_paused = true)]
async fn whoever_sends_ahead_and_leaves_is_missed_at_once() {
    let (address, strays) = hesitant().await;
    let stage = Setting::before(address).start().await;
    // One that is longer takes another way through the proxy.
    let long = format!("GET /silent HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(9000));
    for (request, ahead) in [get("/silent"), long]
        .iter()
        .flat_map(|request| ["", "G", "GET /ahead HTTP/1.1\r\nHost: a\r\n\r\n"].map(|ahead| (request, ahead)))
    {
        for is_at_once in [true, false] {
            let mut stream = stage.pipe();
            stream.write_all(get("/warm").as_bytes()).await.unwrap();
            hear_one(&mut stream).await;
            let first = if is_at_once { format!("{request}{ahead}") } else { request.clone() };
            stream.write_all(first.as_bytes()).await.unwrap();
            stage.until(|telemetry| telemetry.upstream(0).in_flight() == 1).await;
            if !is_at_once {
                stream.write_all(ahead.as_bytes()).await.unwrap();
                sleep(Duration::from_millis(10)).await;
            }
            let left = Instant::now();
            drop(stream);
            stage.until(|telemetry| telemetry.upstream(0).in_flight() == 0).await;
            stage.until(|telemetry| telemetry.connections() == 0).await;
            assert!(left.elapsed() < Duration::from_secs(1), "{request:.20} {ahead:?} {is_at_once}");
            let strays = strays.load(Ordering::Relaxed);
            assert_eq!(strays, 0, "{request:.20} {is_at_once}: nobody is there to be answered");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_ends_what_it_says_gets_nothing_else_in_the_midst_of_an_answer() {
    let (address, strays) = hesitant().await;
    let stage = Setting::before(address).start().await;
    // One that is longer takes another way through the proxy.
    for (target, fields) in ["/silent", "/halfway"].iter().flat_map(|target| {
        ["\r\n".to_owned(), format!("X: {}\r\n\r\n", "x".repeat(9000))].map(|fields| (target, fields))
    }) {
        let get_ahead = get("/ahead");
        for ahead in ["G", &get_ahead, &get_ahead.repeat(3), "BAD\r\n\r\n", "\r\n"] {
            let case = format!("{target} {} {ahead:.9}", fields.len());
            let (mut reading, mut writing) = tokio::io::split(stage.pipe());
            writing.write_all(get("/warm").as_bytes()).await.unwrap();
            hear_one(&mut reading).await;
            writing
                .write_all(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}").as_bytes())
                .await
                .unwrap();
            if *target == "/halfway" {
                assert!(read_head(&mut reading).await.starts_with("HTTP/1.1 200 "), "{case}");
                assert_eq!(hear_bytes(&mut reading, 4).await, "half", "{case}");
            } else {
                stage.until(|telemetry| telemetry.upstream(0).in_flight() == 1).await;
            }
            writing.write_all(ahead.as_bytes()).await.unwrap();
            sleep(Duration::from_millis(10)).await;
            writing.shutdown().await.unwrap();
            let mut rest = Vec::new();
            timeout(Duration::from_secs(1), reading.read_to_end(&mut rest)).await.expect(&case).unwrap();
            assert_eq!(String::from_utf8_lossy(&rest), "", "{case}");
            stage.until(|telemetry| telemetry.connections() == 0).await;
        }
    }
    assert_eq!(strays.load(Ordering::Relaxed), 0);
    assert_eq!(stage.metric("forebay_connections_refused_total{cause=\"malformed\"}"), 0.0);
    assert_eq!(stage.metric("forebay_requests_total{outcome=\"rejected\",route=\"none\"}"), 0.0);
}

/// More requests than are read ahead.
const COUNT: usize = 2000;

#[tokio::test(start_paused = true)]
async fn what_is_sent_ahead_is_kept_and_answered_in_its_turn() {
    let origin = Origin::start(|_, request| async move {
        sleep(Duration::from_secs(1)).await;
        page(200, &[("cache-control", "no-store")], request.uri().path().to_owned())
    })
    .await;
    let stage = Stage::before(&origin).await;
    let stream = stage.pipe();
    let (mut reading, mut writing) = tokio::io::split(stream);
    let sending = async {
        for number in 0..COUNT {
            let fields = if number % 7 == 0 { "Content-Length: 3\r\n\r\nabc" } else { "\r\n" };
            let method = if number % 7 == 0 { "POST" } else { "GET" };
            let request = format!("{method} /{number} HTTP/1.1\r\nHost: a\r\n{fields}");
            writing.write_all(request.as_bytes()).await.unwrap();
        }
    };
    let reading = async {
        for number in 0..COUNT {
            let head = read_head(&mut reading).await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{number}: {head}");
            let path = format!("/{number}");
            assert_eq!(hear_bytes(&mut reading, path.len()).await, path);
        }
    };
    tokio::join!(sending, reading);
    assert_eq!(origin.requests(), COUNT);
}

#[tokio::test(start_paused = true)]
async fn each_of_what_comes_at_once_gets_what_it_gets_alone() {
    let origin = Origin::start(|_, request| async move {
        use http_body_util::BodyExt;
        let path = request.uri().path().to_owned();
        // An answer that comes before the request's end would be the last.
        request.into_body().collect().await.unwrap();
        let kept = if path == "/kept" { "max-age=3600" } else { "no-store" };
        page(200, &[("cache-control", kept), ("etag", "\"e\"")], path)
    })
    .await;
    let stage = Stage::before(&origin).await;
    let asking = |line: &str, rest: &str| format!("{line} HTTP/1.1\r\nHost: a\r\n{rest}");
    let kinds = [
        (asking("GET /kept", "\r\n"), 200, "/kept"),
        (asking("GET /own", "\r\n"), 200, "/own"),
        (asking("\r\nGET /kept", "\r\n"), 200, "/kept"),
        (asking("GET /own", &format!("X: {}\r\n\r\n", "x".repeat(9000))), 200, "/own"),
        (asking("HEAD /kept", "\r\n"), 200, ""),
        (asking("GET /kept", "Range: bytes=0-1\r\n\r\n"), 206, "/k"),
        (asking("GET /kept", "If-None-Match: \"e\"\r\n\r\n"), 304, ""),
        (asking("POST /own", "Content-Length: 3\r\n\r\nabc"), 200, "/own"),
        (asking("POST /own", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), 200, "/own"),
    ];
    for case in 0..kinds.len().pow(3) {
        let [first, second, third] = [case / 81, case / 9 % 9, case % 9].map(|kind| &kinds[kind]);
        // Both ways past the HTTP library begin with the second request of a connection.
        let requests = [&kinds[0], &kinds[1], first, second, third];
        let bytes = requests.map(|(request, ..)| request.as_str()).concat();
        let (one, other) = bytes.split_at(case * 13 % bytes.len());
        let mut stream = stage.pipe();
        stream.write_all(kinds[case % 2].0.as_bytes()).await.unwrap();
        hear_one(&mut stream).await;
        let (mut reading, mut writing) = tokio::io::split(stream);
        let saying = async {
            writing.write_all(one.as_bytes()).await.unwrap();
            sleep(Duration::from_millis(1)).await;
            writing.write_all(other.as_bytes()).await.unwrap();
        };
        let hearing = async {
            for (request, status, body) in requests {
                let head = read_head(&mut reading).await;
                assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{case} {request:.20}: {head}");
                assert_eq!(hear_bytes(&mut reading, body.len()).await, *body, "{case} {request:.20}");
            }
        };
        tokio::join!(saying, hearing);
        writing.shutdown().await.unwrap();
        assert_eq!(hear_bytes(&mut reading, 1).await, "", "{case}");
    }
    assert_eq!(stage.metric("forebay_requests_total{outcome=\"miss\",route=\"default\"}"), 1.0);
}

/// More than the kernel holds for a client that does not read.
const LARGE: usize = 400_000;

/// A client that reads late, and whose kernel keeps little for it.
async fn slow_reader(stage: &Stage) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(20_000).unwrap();
    let stream = socket.connect(stage.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// An origin whose answers are large, and whose refusals are, too: those come before the body, which nobody reads.
async fn large_pages() -> SocketAddr {
    raw_origin(|_, mut stream| async move {
        stream.set_nodelay(true).unwrap();
        loop {
            let head = read_head(&mut stream).await;
            let (status, is_last) =
                if head.contains("/forbidden") { ("403 Forbidden", true) } else { ("200 OK", false) };
            let head =
                format!("HTTP/1.1 {status}\r\ncache-control: max-age=60\r\ncontent-length: {LARGE}\r\n\r\n");
            let answer = [head.as_bytes(), &vec![b'x'; LARGE]].concat();
            if stream.write_all(&answer).await.is_err() {
                return;
            }
            if is_last {
                std::future::pending::<()>().await;
            }
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn what_is_at_hand_goes_to_whoever_has_ended_what_it_says() {
    let stage = Setting::before(large_pages().await).start().await;
    let (hit, page) = (get("/kept"), "x".repeat(LARGE));
    let mut first = stage.pipe();
    first.write_all(hit.as_bytes()).await.unwrap();
    hear_one(&mut first).await;
    drop(first);
    let closing = "GET /kept HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let nameless = "GET /kept HTTP/1.1\r\n\r\n";
    for (said, statuses) in [
        (hit.clone(), vec![200]),
        (hit.repeat(2), vec![200; 2]),
        (hit.repeat(50), vec![200; 50]),
        (format!("{hit}{closing}"), vec![200; 2]),
        (nameless.to_owned(), vec![400]),
        (format!("{hit}{nameless}"), vec![200, 400]),
    ] {
        for pause in [None, Some(Duration::from_millis(1))] {
            let (mut reading, mut writing) = tokio::io::split(stage.pipe());
            let saying = async {
                writing.write_all(said.as_bytes()).await.unwrap();
                if let Some(pause) = pause {
                    sleep(pause).await;
                }
                writing.shutdown().await.unwrap();
            };
            let (told, ()) = tokio::join!(hear(&mut reading), saying);
            assert_eq!(told.statuses(), statuses, "{said:.60} {pause:?}");
            let whole = statuses.iter().filter(|status| **status == 200).count();
            assert_eq!(told.text.matches(&page).count(), whole, "{said:.60} {pause:?}");
        }
    }
    stage.until(|telemetry| telemetry.connections() == 0).await;
}

// The clock is the kernel's: its buffers know no other.
#[tokio::test]
async fn rfc9112_9_6_an_answer_that_comes_while_its_client_still_sends_arrives_whole() {
    let stage = Setting::before(large_pages().await).start().await;
    for _ in 0..10 {
        let (mut reading, mut writing) = slow_reader(&stage).await.into_split();
        let (has_read, mut is_read) = tokio::sync::oneshot::channel();
        let sending = tokio::spawn(async move {
            writing
                .write_all(b"POST /forbidden HTTP/1.1\r\nHost: a\r\nContent-Length: 500000000\r\n\r\n")
                .await
                .unwrap();
            // Until the answer has been read.
            while is_read.try_recv().is_err() {
                if writing.write_all(&[b'y'; 5000]).await.is_err() {
                    return;
                }
                sleep(Duration::from_millis(1)).await;
            }
        });
        let head = read_head(&mut reading).await;
        assert!(head.starts_with("HTTP/1.1 403 ") && head.contains("connection: close\r\n"), "{head}");
        let mut body = vec![0; LARGE];
        for piece in body.chunks_mut(LARGE / 20) {
            sleep(Duration::from_millis(2)).await;
            reading.read_exact(piece).await.unwrap();
        }
        assert_eq!(reading.read(&mut [0]).await.unwrap(), 0, "and then the end");
        has_read.send(()).unwrap();
        sending.await.unwrap();
    }
    stage.until(|telemetry| telemetry.connections() == 0).await;
}

#[tokio::test]
async fn rfc9112_9_6_the_last_answer_of_a_connection_is_whole_whatever_else_was_asked_for() {
    let mut setting = Setting::before(large_pages().await);
    setting.server.requests_per_connection_max = Some(2);
    let stage = setting.start().await;
    let closing = "GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let malformed = format!("BAD\r\n\r\n{}", "x".repeat(20_000));
    for (requests, answers, refusal) in [
        (get("/1").repeat(3), 2, ""),
        (format!("{}{closing}{}", get("/1"), get("/3")), 2, ""),
        (format!("{}{malformed}", get("/1")), 1, "HTTP/1.1 400 "),
    ] {
        for _ in 0..5 {
            let mut stream = slow_reader(&stage).await;
            stream.write_all(requests.as_bytes()).await.unwrap();
            sleep(Duration::from_millis(20)).await;
            for _ in 0..answers {
                let answer = hear_one(&mut stream).await;
                assert!(answer.starts_with("HTTP/1.1 200 ") && answer.len() > LARGE, "{requests:.50}");
            }
            assert!(hear(&mut stream).await.text.starts_with(refusal), "{requests:.50}");
        }
    }
    stage.until(|telemetry| telemetry.connections() == 0).await;
}

/// Sends for ever.
async fn flood<S: AsyncWrite + Unpin>(mut stream: S, pause: Duration) {
    while stream.write_all(&[b'y'; 1000]).await.is_ok() {
        sleep(pause).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_end_after_the_last_answer_is_not_waited_for_longer_than_for_a_while() {
    let stage = Setting::before(large_pages().await).start().await;
    let post = b"POST /forbidden HTTP/1.1\r\nHost: a\r\nContent-Length: 500000000\r\n\r\n";
    for (pause, seconds) in [(None, 5), (Some(Duration::from_secs(3)), 30), (Some(Duration::from_secs(7)), 5)]
    {
        let (mut reading, mut writing) = tokio::io::split(stage.pipe());
        writing.write_all(post).await.unwrap();
        hear(&mut reading).await;
        let since = Instant::now();
        let flooding = pause.map(|pause| tokio::spawn(flood(writing, pause)));
        while stage.telemetry.connections() > 0 {
            sleep(Duration::from_millis(100)).await;
        }
        let waited = since.elapsed().as_secs();
        assert!((seconds - 1..=seconds + 1).contains(&waited), "{pause:?}: {waited} s");
        drop(flooding);
    }
    // Nobody waits for one who has nothing to say.
    let mut idle = stage.pipe();
    idle.write_all(get("/1").as_bytes()).await.unwrap();
    hear_one(&mut idle).await;
    sleep(Duration::from_secs(10)).await;
    let since = Instant::now();
    stage.server.drain().await;
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_idles_no_longer_than_it_may_however_short_that_is() {
    let origin = Origin::start(|_, request| async move {
        if request.uri().path() == "/slow" {
            sleep(Duration::from_millis(1500)).await;
        }
        page(200, &[("cache-control", "no-store")], "ok")
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.transport = origin.transport();
    setting.server.idle_timeout = Duration::from_secs(1);
    let stage = setting.start().await;
    for targets in [&["/"][..], &["/slow"], &["/", "/slow"], &["/slow", "/"], &["/", "/", "/slow"]] {
        let mut stream = stage.pipe();
        for target in targets {
            stream.write_all(get(target).as_bytes()).await.unwrap();
            hear_one(&mut stream).await;
        }
        let since = Instant::now();
        let ended = timeout(Duration::from_secs(10), stream.read(&mut [0])).await;
        assert_eq!(ended.unwrap().unwrap(), 0);
        let idled = since.elapsed().as_millis();
        assert!((990..=1100).contains(&idled), "{targets:?}: {idled} ms");
    }
}
