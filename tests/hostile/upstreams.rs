//! Upstreams that answer badly, late, too much, or not at all.

use crate::peers::*;
use crate::support::*;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What an origin does after its bytes.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Close,
    Reset,
    Stay,
}

/// An origin that answers the first head of each connection with these bytes. The count is that of its connections.
async fn scripted(answer: impl Into<Vec<u8>>, then: Then) -> (SocketAddr, Arc<AtomicUsize>) {
    let answer = answer.into();
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    let address = raw_origin(move |_, mut stream| {
        counter.fetch_add(1, Ordering::SeqCst);
        let answer = answer.clone();
        async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(&answer).await;
            match then {
                Then::Close => {}
                Then::Reset => stream.set_zero_linger().unwrap(),
                Then::Stay => {
                    // A second request on the same connection is answered as if nothing had happened.
                    read_head(&mut stream).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nreused").await;
                    std::future::pending::<()>().await;
                }
            }
        }
    })
    .await;
    (address, connections)
}

fn setting(origin: SocketAddr) -> Setting {
    let mut setting = Setting::before(origin);
    setting.upstream.head_timeout = Duration::from_secs(3);
    setting.upstream.between_bytes_timeout = Duration::from_secs(3);
    setting.upstream.retries = 0;
    setting.coalescing.error_backoff = (Duration::ZERO, Duration::ZERO);
    setting
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";

/// Whether a GET is answered by a whole body that is the upstream's. One that breaks at once may break before its head is on the
/// way, or be a 502.
async fn looks_whole(stage: &Stage) -> bool {
    match stage.client().await.try_send(request("GET", "/", &[])).await {
        Ok(head) if head.status() == 502 => false,
        Ok(head) => head.try_whole().await.is_ok(),
        Err(_) => false,
    }
}

/// Twice the same request: each gets this status, on a connection of its own to the upstream; nothing is stored.
async fn check_failure(status: u16, answer: impl Into<Vec<u8>>, then: Then) {
    let answer = answer.into();
    let shown = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
    for request in [GET, POST] {
        let (address, connections) = scripted(answer.clone(), then).await;
        let stage = setting(address).start().await;
        for number in 1..=2 {
            let mut stream = TcpStream::connect(stage.address).await.unwrap();
            stream.write_all(request).await.unwrap();
            let told = hear_one(&mut stream).await;
            assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {told}");
            assert_eq!(connections.load(Ordering::SeqCst), number, "{shown:?}: a connection was used again");
        }
        assert_eq!(stage.metric("forebay_store_entries"), 0.0, "{shown:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn heads_that_are_no_http_are_502() {
    for answer in [
        "garbage\r\n\r\n",
        "garbageHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "\0\0\0\x12\x04",
        "HTTP/1.1\r\n\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 -20 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 600 High\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 999 Higher\r\ncache-control: max-age=60\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 099 Low\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 000 Zero\r\ncontent-length: 0\r\n\r\n",
        "HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.2 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/9.9 200 OK\r\ncontent-length: 0\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "SSH-2.0-OpenSSH_9.0\r\n",
        "<html>hello</html>\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        check_failure(502, answer, Then::Stay).await;
    }
}

#[tokio::test(start_paused = true)]
async fn fields_that_are_malformed_are_502() {
    for field in [
        "x: a\0b",
        "x: a\x01b",
        "x: a\x7fb",
        "x y: z",
        "x : y",
        ": y",
        "x",
        "x\0: y",
        "x: a\rb",
        "x(: y",
        "x: y\r\n folded",
    ] {
        let answer =
            format!("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\n{field}\r\ncontent-length: 2\r\n\r\nok");
        check_failure(502, answer, Then::Stay).await;
    }
}

#[tokio::test(start_paused = true)]
async fn framing_that_is_ambiguous_is_502() {
    for fields in [
        "content-length: 2\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 2",
        "content-length: 2\r\ncontent-length: 3",
        "content-length: 2, 3",
        "content-length: 2\r\ncontent-length: 2",
        "content-length: 2, 2",
        "content-length: x",
        "content-length: -2",
        "content-length: +2",
        "content-length:",
        "content-length: 18446744073709551616",
        "content-length: 99999999999999999999999",
        "transfer-encoding: xchunked",
        "transfer-encoding: identity",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding:",
    ] {
        let answer =
            format!("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\n{fields}\r\n\r\n2\r\nok\r\n0\r\n\r\n");
        check_failure(502, answer.as_bytes(), Then::Stay).await;
    }
    let answer = "HTTP/1.0 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    check_failure(502, answer, Then::Stay).await;
}

#[tokio::test(start_paused = true)]
async fn answers_that_were_not_asked_for_are_502() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\x01\x02",
        "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n",
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-1/10\r\ncontent-length: 2\r\ncache-control: max-age=60\r\n\r\nok",
    ] {
        check_failure(502, answer, Then::Stay).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_or_a_304_that_a_passing_request_asked_for_is_passed_on() {
    let part = "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-1/10\r\ncontent-length: 2\r\n\r\nok";
    for (answer, field, status) in [
        (part, ("range", "bytes=0-1"), 206),
        ("HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n", ("if-none-match", "\"a\""), 304),
    ] {
        let (address, _) = scripted(answer, Then::Stay).await;
        let mut setting = setting(address);
        setting.rules.enabled = false;
        let stage = setting.start().await;
        assert_eq!(stage.get_with("/", &[field]).await.status, status);
    }
}

#[tokio::test(start_paused = true)]
async fn ends_before_the_head_are_502() {
    for then in [Then::Close, Then::Reset] {
        for answer in [
            "",
            "H",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
        ] {
            check_failure(502, answer, then).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stalls_before_the_end_of_the_head_are_504() {
    for answer in [
        "",
        "H",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
    ] {
        let (address, connections) = scripted(answer, Then::Stay).await;
        let stage = setting(address).start().await;
        for number in 1..=2 {
            assert_eq!(stage.get("/").await.status, 504, "{answer:?}");
            assert_eq!(connections.load(Ordering::SeqCst), number, "{answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn heads_that_are_huge_or_endless_are_502() {
    let huge = format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "x".repeat(100_000));
    check_failure(502, huge, Then::Stay).await;
    let many = format!("HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n", "x: y\r\n".repeat(5000));
    check_failure(502, many, Then::Stay).await;
    let endless = format!("HTTP/1.1 200 OK\r\n{}", "x: y\r\n".repeat(100_000));
    check_failure(502, endless, Then::Stay).await;
    let line = format!("HTTP/1.1 200 {}", "x".repeat(1_000_000));
    check_failure(502, line, Then::Stay).await;
}

/// An origin that writes the same bytes for as long as anyone reads them.
async fn endless(beginning: &'static str, again: String) -> SocketAddr {
    raw_origin(move |_, mut stream| {
        let again = again.clone();
        async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(beginning.as_bytes()).await;
            while stream.write_all(again.as_bytes()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_interim_answers_ends_soon() {
    for interim in [
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 199 \r\n\r\n",
    ] {
        let address = endless("", interim.repeat(10)).await;
        let stage = setting(address).start().await;
        let started = tokio::time::Instant::now();
        let answer = stage.get("/").await;
        let told = (answer.status, answer.header("proxy-status"));
        assert_eq!(told, (502, "forebay; error=http_protocol_error"), "{interim:?}");
        assert!(started.elapsed() < Duration::from_secs(1), "{interim:?}: {:?}", started.elapsed());
        assert_eq!(stage.metric("forebay_store_entries"), 0.0);
    }
}

#[tokio::test(start_paused = true)]
async fn lines_of_a_head_that_do_not_end_in_crlf_are_502() {
    let fields = "cache-control: max-age=60\r\ncontent-length: 2";
    for answer in [
        format!("HTTP/1.1 200 OK\n{fields}\r\n\r\nok"),
        format!("HTTP/1.1 200 OK\r\n{fields}\n\r\nok"),
        format!("HTTP/1.1 200 OK\r\n{fields}\r\n\nok"),
        format!("HTTP/1.1 200 OK\r\nx: y\n{fields}\r\n\r\nok"),
        format!("HTTP/1.1 200 OK\r\nx: y\nset-cookie: a=b\r\n{fields}\r\n\r\nok"),
        format!("\r\nHTTP/1.1 200 OK\r\n{fields}\r\n\r\nok"),
        format!("\nHTTP/1.1 200 OK\r\n{fields}\r\n\r\nok"),
        format!("HTTP/1.1 103 Early Hints\n\nHTTP/1.1 200 OK\r\n{fields}\r\n\r\nok"),
        format!("HTTP/1.1 103 Early Hints\r\n\r\n\r\nHTTP/1.1 200 OK\r\n{fields}\r\n\r\nok"),
        "HTTP/1.1 200 OK\ncache-control: max-age=60\n\nok".to_owned(),
    ] {
        check_failure(502, answer, Then::Stay).await;
    }
}

/// An origin that writes a head, and then a byte of this each second.
async fn dripping(beginning: &'static str, rest: &'static str) -> SocketAddr {
    raw_origin(move |_, mut stream| async move {
        stream.set_nodelay(true).unwrap();
        read_head(&mut stream).await;
        let _ = stream.write_all(beginning.as_bytes()).await;
        for byte in rest.bytes().cycle() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if stream.write_all(&[byte]).await.is_err() {
                break;
            }
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn dripping_bytes_wins_an_upstream_no_time() {
    for (beginning, rest) in
        [("", "H"), ("HTTP/1.1 200 OK\r\n", "x: y\r\n"), ("", "HTTP/1.1 103 Early Hints\r\n\r\n")]
    {
        let stage = setting(dripping(beginning, rest).await).start().await;
        let started = tokio::time::Instant::now();
        assert_eq!(stage.get("/").await.status, 504, "{beginning:?} {rest:?}");
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    }
    let mut setting = setting(dripping("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", "x").await);
    setting.upstream.total_timeout = Some(Duration::from_secs(20));
    let stage = setting.start().await;
    let started = tokio::time::Instant::now();
    let head = stage.client().await.send(request("GET", "/", &[])).await;
    assert!(head.try_whole().await.is_err());
    assert!(started.elapsed() < Duration::from_secs(21), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn chunk_lines_and_trailers_without_end_are_broken_bodies() {
    let chunked = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n";
    let long = "x".repeat(100_000);
    for body in [
        format!("5;{long}"),
        format!("5;{long}\r\nhello\r\n0\r\n\r\n"),
        "1;x=yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\nx\r\n".repeat(20_000),
        format!("5\r\nhello\r\n0\r\nx: {long}"),
        format!("5\r\nhello\r\n0\r\nx: {long}\r\n\r\n"),
        format!("5\r\nhello\r\n0\r\n{}", "x: y\r\n".repeat(20_000)),
        format!("5\r\nhello\r\n0\r\n{}\r\n", "x: y\r\n".repeat(20_000)),
        "5\r\nhello\r\n0\r\nx y\r\n\r\n".to_owned(),
        "5\r\nhello\r\n0\r\nx: a\0b\r\n\r\n".to_owned(),
    ] {
        let shown = &body[..body.len().min(40)];
        let (address, connections) = scripted(format!("{chunked}{body}"), Then::Stay).await;
        let stage = setting(address).start().await;
        for number in 1..=2 {
            assert!(!looks_whole(&stage).await, "{shown:?} looks complete");
            assert_eq!(connections.load(Ordering::SeqCst), number, "{shown:?}: used again");
        }
        stage.until(|telemetry| telemetry.flights() == 0).await;
        assert_eq!(stage.metric("forebay_store_entries"), 0.0, "{shown:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn stalls_at_every_byte_of_an_answer_are_504_or_a_broken_body() {
    let chunked = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n";
    let body = "5\r\nhello\r\n0\r\nx: y\r\n\r\n";
    let answer = format!("{chunked}{body}");
    for then in [Then::Stay, Then::Close] {
        // Each byte of the body, and every fifth of the head.
        for end in (0..answer.len()).filter(|end| end % 5 == 0 || *end + 2 >= chunked.len()) {
            let (address, _) = scripted(&answer[..end], then).await;
            let stage = setting(address).start().await;
            let head = stage.client().await.try_send(request("GET", "/", &[])).await;
            let shown = &answer[..end];
            match head {
                Ok(head) if end < chunked.len() => {
                    let expected = if then == Then::Stay { 504 } else { 502 };
                    assert_eq!(head.status(), expected, "{shown:?}");
                }
                Ok(head) => assert!(head.try_whole().await.is_err(), "{shown:?} looks complete"),
                // It broke before the head was on the way.
                Err(_) => assert!(end >= chunked.len(), "{shown:?}"),
            }
            stage.until(|telemetry| telemetry.flights() == 0).await;
            assert_eq!(stage.metric("forebay_store_entries"), 0.0, "{shown:?}");
        }
    }
}

/// In real time: where socket buffers are full, the kernel's own timers decide when the next bytes come.
#[tokio::test]
async fn an_endless_body_is_streamed_in_bounded_memory_and_not_stored() {
    for (head, piece) in [
        ("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\n\r\n", "x".repeat(10_000)),
        (
            "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n",
            format!("2710\r\n{}\r\n", "x".repeat(10_000)),
        ),
    ] {
        let address = endless(head, piece).await;
        let mut setting = setting(address);
        setting.coalescing.body_bytes_max = 100_000;
        let stage = setting.start().await;
        let mut client = stage.client().await;
        let mut head = client.send(request("GET", "/", &[])).await;
        let mut bytes = 0;
        while bytes < 5_000_000 {
            bytes += head.piece().await.unwrap().unwrap().len();
        }
        assert!(stage.metric("forebay_inflight_bytes") < 3_000_000.0);
        assert_eq!(stage.metric("forebay_store_entries"), 0.0);
        drop((head, client));
        stage.until(|telemetry| telemetry.flights() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_that_break_are_seen_to_break_and_are_not_stored() {
    let chunked = "transfer-encoding: chunked\r\n\r\n";
    let cases = [
        ("content-length: 10\r\n\r\n", "hello", Then::Close),
        ("content-length: 10\r\n\r\n", "hello", Then::Reset),
        ("content-length: 10\r\n\r\n", "hello", Then::Stay),
        ("content-length: 10\r\n\r\n", "", Then::Close),
        (chunked, "5\r\nhello\r\n", Then::Close),
        (chunked, "5\r\nhello\r\n", Then::Reset),
        (chunked, "5\r\nhello\r\n", Then::Stay),
        (chunked, "5\r\nhello\r\n0\r\n", Then::Close),
        (chunked, "5\r\nhel", Then::Close),
        (chunked, "5\r\nhel", Then::Stay),
        (chunked, "5\r\nhelloX\r\n0\r\n\r\n", Then::Stay),
        (chunked, "5\nhello\n0\n\n", Then::Stay),
        (chunked, "+5\r\nhello\r\n0\r\n\r\n", Then::Stay),
        (chunked, "-5\r\nhello\r\n0\r\n\r\n", Then::Stay),
        (chunked, "g\r\nhello\r\n0\r\n\r\n", Then::Stay),
        (chunked, "0x5\r\nhello\r\n0\r\n\r\n", Then::Stay),
        (chunked, "\r\nhello\r\n0\r\n\r\n", Then::Stay),
        (chunked, "10000000000000005\r\nhello\r\n0\r\n\r\n", Then::Stay),
        (chunked, "5\r\nhello\r\n5\r\nhel\r\n0\r\n\r\n", Then::Stay),
        (chunked, "5\r\nhello\r\n0\r\nx: y\n\r\n", Then::Stay),
        (chunked, "5\r\nhello\r\n0\r\nx: y\nz: z\r\n\r\n", Then::Stay),
        (chunked, "5\r\nhello\r\n0\r\n\r\ns", Then::Stay),
        ("\r\n", "hello", Then::Reset),
    ];
    for (framing, body, then) in cases {
        let answer = format!("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\n{framing}{body}");
        let (address, connections) = scripted(answer, then).await;
        let stage = setting(address).start().await;
        for number in 1..=2 {
            assert!(!looks_whole(&stage).await, "{framing:?}{body:?} looks complete");
            assert_eq!(connections.load(Ordering::SeqCst), number, "{framing:?}{body:?}: used again");
        }
        let told = tell(stage.address, POST).await;
        assert!(!told.text.ends_with("0\r\n\r\n"), "{framing:?}{body:?}: {}", told.text);
        stage.until(|telemetry| telemetry.flights() == 0).await;
        assert_eq!(stage.metric("forebay_store_entries"), 0.0, "{framing:?}{body:?}");
    }
}

/// What looks like an answer to the next request.
const EVIL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";

#[tokio::test(start_paused = true)]
async fn more_bytes_than_the_length_that_come_with_the_head_are_502() {
    for surplus in ["s", "surplus", EVIL] {
        for head in [
            "200 OK\r\ncache-control: max-age=60\r\ncontent-length: 2\r\n\r\nok",
            "200 OK\r\ncache-control: max-age=60\r\ncontent-length: 0\r\n\r\n",
            "204 No Content\r\ncache-control: max-age=60\r\n\r\n",
            "204 No Content\r\ncontent-length: 46\r\n\r\n",
            "200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ] {
            check_failure(502, format!("HTTP/1.1 {head}{surplus}"), Then::Stay).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9112_6_3_a_body_where_none_can_be_is_502() {
    for (method, field, head) in [
        ("HEAD", ("x", "y"), "200 OK\r\ncontent-length: 4"),
        ("HEAD", ("x", "y"), "200 OK\r\ntransfer-encoding: chunked"),
        ("GET", ("if-none-match", "\"a\""), "304 Not Modified\r\netag: \"a\"\r\ncontent-length: 4"),
    ] {
        let (address, connections) = scripted(format!("HTTP/1.1 {head}\r\n\r\nevil"), Then::Stay).await;
        let mut setting = setting(address);
        setting.rules.enabled = false;
        let stage = setting.start().await;
        for number in 1..=2 {
            assert_eq!(stage.send(method, "/", &[field]).await.status, 502, "{method} {head:?}");
            assert_eq!(connections.load(Ordering::SeqCst), number, "{method} {head:?}: used again");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn more_bytes_than_the_length_that_come_with_the_end_of_the_body_break_it() {
    for surplus in ["s", EVIL] {
        let connections = Arc::new(AtomicUsize::new(0));
        let gate = Gate::shut();
        let (counter, opened) = (Arc::clone(&connections), gate.clone());
        let address = raw_origin(move |_, mut stream| {
            counter.fetch_add(1, Ordering::SeqCst);
            let gate = opened.clone();
            async move {
                read_head(&mut stream).await;
                let head = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 10\r\n\r\nhello";
                stream.write_all(head.as_bytes()).await.unwrap();
                gate.passed().await;
                stream.write_all(format!("hello{surplus}").as_bytes()).await.unwrap();
                std::future::pending::<()>().await;
            }
        })
        .await;
        let stage = setting(address).start().await;
        let mut first = stage.client().await.send(request("GET", "/", &[])).await;
        let second = stage.client().await.send(request("GET", "/", &[])).await;
        assert_eq!(first.piece().await.unwrap().unwrap(), "hello");
        gate.open();
        assert!(first.try_whole().await.is_err() && second.try_whole().await.is_err(), "{surplus:?}");
        stage.until(|telemetry| telemetry.flights() == 0).await;
        assert_eq!(stage.metric("forebay_store_entries"), 0.0, "{surplus:?}");
        assert_eq!(connections.load(Ordering::SeqCst), 1);
        assert!(tell(stage.address, GET).await.text.len() > 10);
        assert_eq!(connections.load(Ordering::SeqCst), 2, "{surplus:?}: used again");
    }
}

/// However large the body is, and however its end lies in what is read at once.
#[tokio::test(start_paused = true)]
async fn more_bytes_than_the_length_break_a_large_body_too() {
    for length in [8_191, 8_192, 16_000, 16_384, 16_385, 20_000, 32_768] {
        for control in ["max-age=60", "no-store"] {
            let head =
                format!("HTTP/1.1 200 OK\r\ncache-control: {control}\r\ncontent-length: {length}\r\n\r\n");
            let answer = format!("{head}{}ZZZZZ", "x".repeat(length));
            let (address, connections) = scripted(answer, Then::Stay).await;
            let stage = setting(address).start().await;
            for number in 1..=2 {
                assert!(!looks_whole(&stage).await, "{length} {control} looks complete");
                assert_eq!(connections.load(Ordering::SeqCst), number, "{length} {control}: used again");
            }
            stage.until(|telemetry| telemetry.flights() == 0).await;
            assert_eq!(stage.metric("forebay_store_entries"), 0.0, "{length}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_after_a_whole_answer_is_thrown_away_with_its_connection() {
    let whole = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    for surplus in ["\r\n", "s", EVIL] {
        let connections = Arc::new(AtomicUsize::new(0));
        let (counter, (sender, mut closed)) =
            (Arc::clone(&connections), tokio::sync::mpsc::unbounded_channel());
        let address = raw_origin(move |_, mut stream| {
            counter.fetch_add(1, Ordering::SeqCst);
            let sender = sender.clone();
            async move {
                read_head(&mut stream).await;
                stream.write_all(whole.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
                stream.write_all(surplus.as_bytes()).await.unwrap();
                hear(&mut stream).await;
                sender.send(()).unwrap();
            }
        })
        .await;
        let stage = setting(address).start().await;
        for number in 1..=3 {
            assert_eq!(stage.get("/").await.text(), "ok", "{surplus:?}");
            assert_eq!(connections.load(Ordering::SeqCst), number, "{surplus:?}: used again");
            tokio::time::timeout(Duration::from_secs(2), closed.recv()).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_came_before_a_request_is_never_its_answer() {
    let whole = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    for (surplus, is_first) in
        ["\r\n", "s", EVIL].into_iter().flat_map(|surplus| [(surplus, true), (surplus, false)])
    {
        let (sender, mut idle) = tokio::sync::mpsc::unbounded_channel();
        let address = raw_origin(move |_, mut stream| {
            let sender = sender.clone();
            async move {
                read_head(&mut stream).await;
                stream.write_all(whole.as_bytes()).await.unwrap();
                sender.send(stream).unwrap();
            }
        })
        .await;
        let stage = setting(address).start().await;
        let mut client = TcpStream::connect(stage.address).await.unwrap();
        client.write_all(GET).await.unwrap();
        assert!(hear_one(&mut client).await.ends_with("ok"));
        let mut stream = idle.recv().await.unwrap();
        // Both lie in the sockets before the proxy looks at either, in one order or the other.
        if is_first {
            stream.write_all(surplus.as_bytes()).await.unwrap();
        }
        client.write_all(GET).await.unwrap();
        if !is_first {
            stream.write_all(surplus.as_bytes()).await.unwrap();
        }
        let told = hear_one(&mut client).await;
        assert!(told.starts_with("HTTP/1.1 200 ") && told.ends_with("ok"), "{surplus:?}: {told}");
    }
}

#[tokio::test(start_paused = true)]
async fn http_1_0_bodies_end_with_their_connection() {
    let (address, connections) =
        scripted("HTTP/1.0 200 OK\r\ncache-control: max-age=60\r\n\r\nto the end", Then::Close).await;
    let stage = setting(address).start().await;
    assert_eq!(stage.get("/").await.text(), "to the end");
    assert_eq!(stage.get("/").await.text(), "to the end");
    assert_eq!(connections.load(Ordering::SeqCst), 1, "the second is a hit");
    let (address, connections) = scripted("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", Then::Stay).await;
    let stage = setting(address).start().await;
    for number in 1..=2 {
        assert_eq!(stage.get("/").await.text(), "ok");
        assert_eq!(connections.load(Ordering::SeqCst), number, "HTTP/1.0 does not keep alive unasked");
    }
}

#[tokio::test(start_paused = true)]
async fn a_final_answer_before_the_request_body_was_read_is_passed_on_and_ends_the_connection() {
    let (address, connections) =
        scripted("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", Then::Stay).await;
    let stage = setting(address).start().await;
    for number in 1..=2 {
        let mut stream = TcpStream::connect(stage.address).await.unwrap();
        stream
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbeginning")
            .await
            .unwrap();
        let told = hear_one(&mut stream).await;
        assert!(told.starts_with("HTTP/1.1 403 ") && told.ends_with("no"), "{told}");
        let told = hear(&mut stream).await;
        assert!(told.after < Duration::from_secs(11), "the client is not read for ever: {:?}", told.after);
        assert_eq!(connections.load(Ordering::SeqCst), number, "used again with half a body on it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_after_100_is_502() {
    check_failure(502, "HTTP/1.1 100 Continue\r\n\r\n", Then::Close).await;
}

#[tokio::test(start_paused = true)]
async fn interim_answers_are_not_taken_for_the_answer() {
    let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 2\r\n\r\nok";
    let (address, _) = scripted(answer, Then::Stay).await;
    let stage = setting(address).start().await;
    let answer = stage.get("/").await;
    assert_eq!((answer.status, answer.text(), answer.header("link")), (200, "ok", ""));
}

/// An origin whose connections each serve one good answer and die under the next request: before or after reading it.
async fn dying(reads_the_second: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let heads = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&heads);
    let address = raw_origin(move |_, mut stream: TcpStream| {
        let heads = Arc::clone(&counter);
        async move {
            read_head(&mut stream).await;
            heads.fetch_add(1, Ordering::SeqCst);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            if reads_the_second {
                let mut byte = [0];
                if stream.read_exact(&mut byte).await.is_ok() {
                    heads.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    })
    .await;
    (address, heads)
}

#[tokio::test(start_paused = true)]
async fn a_pooled_connection_that_died_idle_costs_nobody_an_answer() {
    let (address, heads) = dying(false).await;
    let stage = Setting::before(address).start().await;
    for number in 1..=5 {
        let method = if number % 2 == 0 { "POST" } else { "GET" };
        assert_eq!(stage.send(method, "/", &[]).await.text(), "ok", "request {number}");
        assert_eq!(heads.load(Ordering::SeqCst), number);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_dying_connection_has_seen_is_sent_again_only_if_that_is_safe() {
    let (address, heads) = dying(true).await;
    let stage = Setting::before(address).start().await;
    assert_eq!(stage.get("/").await.text(), "ok");
    assert_eq!(stage.get("/").await.text(), "ok", "GET is tried once more on a new connection");
    assert_eq!(heads.load(Ordering::SeqCst), 3);
    assert_eq!(stage.send("POST", "/", &[]).await.status, 502, "POST is not: it may have had its effect");
    assert_eq!(heads.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn a_place_at_the_upstream_is_given_back_however_an_exchange_ends() {
    let (address, _) = scripted("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", Then::Close).await;
    let mut setting = setting(address);
    setting.upstream.concurrency_max = 1;
    setting.upstream.queue_max = 0;
    let stage = setting.start().await;
    for _ in 0..5 {
        let answered = stage.client().await.send(request("GET", "/", &[])).await;
        assert_eq!(answered.status(), 200);
        assert!(answered.try_whole().await.is_err());
        stage.until(|telemetry| telemetry.flights() == 0).await;
    }
}
