//! Hits on a connection that had one before: hyper does not see them, and the client sees no difference.

use crate::support::*;
use forebay::policy::Query;
use forebay::proxy;
use http::header;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// A raw answer: the status line, the other lines of the head in no order, and the body as its length says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) status_line: String,
    pub(crate) fields: BTreeSet<String>,
    pub(crate) body: Vec<u8>,
}

impl Raw {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.iter().find_map(|field| field.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default()
    }
}

pub(crate) async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> Raw {
    let head = read_head(stream).await;
    let mut lines = head.trim_end().split("\r\n").map(str::to_owned);
    let status_line = lines.next().unwrap_or_default();
    // Its Date is the machine's, which may come to another second between two answers.
    let fields = lines.filter(|line| !line.starts_with("date:")).collect();
    let mut raw = Raw { status_line, fields, body: Vec::new() };
    raw.body = vec![0; raw.field("content-length").parse().unwrap_or(0)];
    stream.read_exact(&mut raw.body).await.unwrap();
    raw
}

pub(crate) async fn asked(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> Raw {
    stream.write_all(request.as_bytes()).await.unwrap();
    read_answer(stream).await
}

pub(crate) fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: site.example\r\n{fields}\r\n")
}

/// A connection whose last request was a hit.
async fn warm(stage: &Stage) -> TcpStream {
    warmed(TcpStream::connect(stage.address).await.unwrap()).await
}

/// The same with a buffer that does not grow until it holds all of a large answer.
async fn warm_and_small(stage: &Stage) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    warmed(socket.connect(stage.address).await.unwrap()).await
}

async fn warmed(mut stream: TcpStream) -> TcpStream {
    stream.set_nodelay(true).unwrap();
    for _ in 0..2 {
        asked(&mut stream, &get("/warm", "")).await;
    }
    stream
}

/// More than the kernel's buffers hold.
const LARGE: usize = 8 << 20;

/// A proxy that has a large page, and for which no time limit but this one matters: the kernel's buffers know no virtual time.
async fn with_large_page(send_timeout: Option<Duration>) -> Stage {
    let origin = Origin::start(|_, request| async move {
        let body = if request.uri().path() == "/large" { vec![b'x'; LARGE] } else { b"small".to_vec() };
        page(200, &[("cache-control", "max-age=86400")], body)
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.transport = origin.transport();
    let day = Duration::from_hours(24);
    setting.server.send_timeout = send_timeout;
    (setting.server.idle_timeout, setting.server.drain_timeout) = (day, 2 * day);
    let stage = setting.start().await;
    assert_eq!(asked(&mut stage.pipe(), &get("/large", "")).await.body.len(), LARGE);
    stage
}

/// An origin with a page of each kind, and no page twice.
async fn origin() -> Origin {
    Origin::start(|number, request| async move {
        let fresh = ("cache-control", "max-age=60");
        match request.uri().path() {
            "/counted" => page(200, &[fresh], format!("answer {number}")),
            "/aged" => {
                page(200, &[fresh, ("age", "7"), ("x-cache", "theirs"), ("set-cookie", "a=b")], "aged")
            }
            "/twice" => {
                page(200, &[fresh, ("x-twice", "1"), ("x-twice", "2"), ("cache-status", "inner; hit")], "")
            }
            "/vary" => page(200, &[fresh, ("vary", "accept-language")], format!("answer {number}")),
            "/gone" => page(404, &[fresh], "no such page"),
            "/empty" => page(204, &[fresh], ""),
            "/moved" => page(301, &[fresh, ("location", "/counted")], ""),
            // More than is sent at once, and no more than the kernel takes at once: meanwhile, time would pass.
            "/large" => page(200, &[fresh], vec![b'x'; 60_000]),
            "/tagged" => page(200, &[fresh, ("etag", "\"a\"")], "tagged"),
            "/private" => page(200, &[("cache-control", "private")], format!("answer {number}")),
            "/chunked" => {
                let (pieces, answer) = streamed(200, &[("cache-control", "max-age=60")]);
                for piece in ["in ", "three ", "pieces"] {
                    pieces.send(data(piece)).unwrap();
                }
                answer
            }
            _ => page(200, &[fresh], format!("{}", request.uri())),
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_hit_is_the_same_on_a_connection_that_had_one_before() {
    let origin = origin().await;
    for (x_cache, cache_status_key) in [(false, false), (true, true)] {
        let mut setting = Setting::before(origin.address);
        setting.proxy = proxy::Settings { x_cache, cache_status_key, ..setting.proxy };
        let stage = setting.start().await;
        let mut stream = warm(&stage).await;
        let targets = [
            "/counted", "/aged", "/twice", "/vary", "/gone", "/empty", "/moved", "/large", "/chunked",
            "/a?b=c",
        ];
        for target in targets {
            for fields in
                ["", "Connection: Keep-Alive\r\nAccept-Language: de\r\nCookie: a=b\r\nX: \u{e4}\r\n"]
            {
                let request = get(target, fields);
                asked(&mut TcpStream::connect(stage.address).await.unwrap(), &request).await;
                let new = asked(&mut TcpStream::connect(stage.address).await.unwrap(), &request).await;
                let kept = asked(&mut stream, &request).await;
                assert_eq!(kept, new, "{request}");
                asked(&mut stream, &get("/warm", "")).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn which_requests_are_the_same_does_not_depend_on_how_they_are_read() {
    let origin = Origin::start(|number, request| async move {
        let fields = [("cache-control", "max-age=60"), ("vary", "accept-encoding")];
        page(200, &fields, format!("answer {number} to {}", request.uri()))
    })
    .await;
    for stripped in [None, Some("/a")] {
        let mut setting = Setting::before(origin.address);
        setting.stripped = stripped;
        setting.key.query = Query::Without(vec!["utm_*".into()]);
        setting.key.headers = vec![header::ACCEPT_LANGUAGE];
        setting.key.cookies = vec!["kind".into()];
        let stage = setting.start().await;
        for target in [
            "/a",
            "/a?b=1&utm_c=2",
            "/a?b=1",
            "/a?",
            "/a//b",
            "/a/./b",
            "/a/%2e%2e/a",
            "/a/%2F",
            "/A",
            "/a?x=[1]",
            "/a?\"",
            "/a?b=http://c/../d",
            "//a",
            "/b",
        ] {
            for fields in [
                "Host: site.example\r\n",
                "HOST: Site.Example:80\r\nConnection: keep-alive\r\n",
                "Host: site.example:8080\r\nX: \r\nY:\r\nZ:\t z \r\n",
                "Host: site.example\r\nACCEPT-LANGUAGE: de\r\naccept-encoding: gzip\r\n",
                "Host: site.example\r\nAccept-Language: de\r\nAccept-Language: en\r\nCookie: kind=1\r\n",
                "Host: site.example\r\ncookie: kind=2; a=b\r\ncookie: kind=3\r\nAccept-Encoding: br\r\nAccept-Encoding: gzip\r\n",
                "Host: site.example\r\nAuthorization: Basic YTpi\r\n",
                "Host: site.example\r\nConnection: Accept-Language\r\nAccept-Language: de\r\n",
                "Host: site.example\r\nUpgrade: websocket\r\n",
            ] {
                let request = format!("GET {target} HTTP/1.1\r\n{fields}\r\n");
                let mut answers = Vec::new();
                for is_kept in [true, false, true] {
                    let mut stream = TcpStream::connect(stage.address).await.unwrap();
                    // The second is a hit, and what comes next is first looked at without hyper.
                    for _ in 0..if is_kept { 2 } else { 0 } {
                        asked(&mut stream, &get("/a", "")).await;
                    }
                    answers.push(asked(&mut stream, &request).await);
                }
                let is_hit = answers[1].field("cache-status").contains("; hit");
                assert_eq!(answers[1].fields, answers[2].fields, "{request}");
                assert!(!is_hit || answers.iter().all(|answer| answer.body == answers[1].body), "{request}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hit_is_counted_wherever_it_was_made() {
    let origin = origin().await;
    let stage = Stage::before(&origin).await;
    let mut stream = warm(&stage).await;
    for _ in 0..5 {
        assert_eq!(asked(&mut stream, &get("/warm", "")).await.field("cache-status"), "forebay; hit; ttl=60");
    }
    drop(stream);
    stage.until(|telemetry| telemetry.connections() == 0).await;
    assert_eq!(stage.metric("forebay_requests_total{outcome=\"hit\",route=\"default\"}"), 6.0);
    let ended = "forebay_request_duration_seconds_count{outcome=\"hit\",route=\"default\"}";
    assert_eq!(stage.metric(ended), 6.0);
    assert_eq!(stage.metric("forebay_response_bytes_total{route=\"default\"}"), 7.0 * 5.0);
    assert_eq!(stage.metric("forebay_responses_broken_total{route=\"default\"}"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn what_is_more_than_a_plain_hit_is_served_as_ever() {
    let origin = origin().await;
    let mut setting = Setting::before(origin.address);
    setting.rules.honor_request_directives = true;
    let stage = setting.start().await;
    stage.get("/tagged").await;
    for (request, status, cache_status) in [
        (get("/tagged", "If-None-Match: \"a\"\r\n"), "HTTP/1.1 304 Not Modified", "hit"),
        (get("/tagged", "Range: bytes=1-2\r\n"), "HTTP/1.1 206 Partial Content", "hit"),
        (get("/tagged", "Range: bytes=9-\r\n"), "HTTP/1.1 416 Range Not Satisfiable", "hit"),
        (get("/tagged", "Cache-Control: no-cache\r\n"), "HTTP/1.1 200 OK", "fwd=request"),
        (get("/private", ""), "HTTP/1.1 200 OK", "fwd=uri-miss"),
        (
            get("/new", "Cache-Control: only-if-cached\r\n"),
            "HTTP/1.1 504 Gateway Timeout",
            "detail=only-if-cached",
        ),
        (get("/tagged", "Content-Length: 2\r\n") + "ab", "HTTP/1.1 200 OK", "fwd="),
        (get("/tagged", "Expect: 100-continue\r\n"), "HTTP/1.1 200 OK", "hit"),
        ("HEAD /tagged HTTP/1.1\r\nHost: site.example\r\n\r\n".into(), "HTTP/1.1 200 OK", "hit"),
        (
            "GET /tagged HTTP/1.0\r\nHost: site.example\r\nConnection: keep-alive\r\n\r\n".into(),
            "HTTP/1.0 200 OK",
            "hit",
        ),
        ("GET /tagged HTTP/1.1\r\n\r\n".into(), "HTTP/1.1 400 Bad Request", "connection: close"),
        (
            "GET /tagged HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(),
            "HTTP/1.1 400 Bad Request",
            "connection: close",
        ),
        (
            "GET /tagged HTTP/1.1\nHost: site.example\r\n\r\n".into(),
            "HTTP/1.1 400 Bad Request",
            "connection: close",
        ),
        (
            "GET /tagged#a HTTP/1.1\r\nHost: site.example\r\n\r\n".into(),
            "HTTP/1.1 400 Bad Request",
            "connection: close",
        ),
    ] {
        let mut stream = warm(&stage).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(
            head.starts_with(status) && head.contains(cache_status),
            "{request}: {head}\nnot {status} {cache_status}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_come_together_or_in_pieces_are_answered_in_their_order() {
    let origin = origin().await;
    let stage = Stage::before(&origin).await;
    let mut stream = warm(&stage).await;
    let both = get("/a", "") + &get("/warm", "") + &get("/b", "");
    stream.write_all(both.as_bytes()).await.unwrap();
    for body in ["/a", "/warm", "/b"] {
        let answer = read_answer(&mut stream).await;
        assert_eq!(answer.body, body.as_bytes(), "{answer:?}");
    }
    asked(&mut stream, &get("/warm", "")).await;
    let whole = get("/warm", "");
    let (first, rest) = whole.split_at(20);
    stream.write_all(first.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    stream.write_all((rest.to_owned() + &get("/a", "")).as_bytes()).await.unwrap();
    for body in ["/warm", "/a"] {
        let answer = read_answer(&mut stream).await;
        assert_eq!(answer.body, body.as_bytes(), "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn hits_and_what_is_more_than_they_take_turns_on_a_connection() {
    let origin = origin().await;
    let stage = Stage::before(&origin).await;
    let mut stream = warm(&stage).await;
    let large = format!("X-Large: {}\r\n", "x".repeat(10_000));
    let upload = "Transfer-Encoding: chunked\r\n";
    let requests = [
        get("/warm", &large),
        get("/private", ""),
        get("/warm", upload).replace("GET", "POST") + "3\r\nabc\r\n0\r\n\r\n",
        get("/warm", "Content-Length: 3\r\n").replace("GET", "PUT") + "abc",
        get("/warm", "Range: bytes=1-2\r\n"),
        format!("\r\n{}", get("/warm", "")),
        get("/warm", "If-None-Match: \"a\"\r\n"),
    ];
    for (number, request) in requests.into_iter().enumerate() {
        let fresh = format!("/fresh-{number}");
        for _ in 0..2 {
            assert_eq!(asked(&mut stream, &get(&fresh, "")).await.body, fresh.as_bytes());
        }
        let answer = asked(&mut stream, &request).await;
        assert!(answer.status_line.starts_with("HTTP/1.1 20"), "{request}: {answer:?}");
        let hit = asked(&mut stream, &get(&fresh, "")).await;
        assert_eq!(hit.body, fresh.as_bytes(), "behind {request}");
    }
    stream.write_all(get("/warm", "X Y: 1\r\n").as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test(start_paused = true)]
async fn a_large_hit_comes_whole_to_a_client_that_reads_late_and_what_follows_it_too() {
    let stage = with_large_page(None).await;
    let mut stream = warm_and_small(&stage).await;
    for _ in 0..2 {
        stream.write_all(get("/large", "").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        // It is asked for more before the first answer could be sent.
        stream.write_all(get("/warm", "").as_bytes()).await.unwrap();
        assert_eq!(read_answer(&mut stream).await.body.len(), LARGE);
        assert_eq!(read_answer(&mut stream).await.body, b"small");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_of_a_hit_loses_it() {
    let stage = with_large_page(Some(Duration::from_secs(30))).await;
    let mut stream = warm_and_small(&stage).await;
    stream.write_all(get("/large", "").as_bytes()).await.unwrap();
    stage.until(|telemetry| telemetry.connections() == 0).await;
    assert_eq!(stage.metric("forebay_send_timeouts_total"), 1.0);
    assert_eq!(stage.metric("forebay_responses_broken_total{route=\"default\"}"), 1.0);
    let end = stream.read_to_end(&mut Vec::new()).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "it does not look whole");
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_a_hit_that_is_being_sent() {
    let stage = with_large_page(None).await;
    let mut stream = warm_and_small(&stage).await;
    stream.write_all(get("/large", "").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let reading = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let answer = read_answer(&mut stream).await;
        (answer.body.len(), stream.read(&mut [0]).await.unwrap())
    });
    assert_eq!(stage.server.drain().await, 0, "no connection is left");
    assert_eq!(reading.await.unwrap(), (LARGE, 0), "all of it, and then the end");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_on_the_way_when_a_drain_begins_is_answered_and_told() {
    let origin = origin().await;
    let stage = Stage::before(&origin).await;
    let mut streams = [warm(&stage).await, warm(&stage).await, warm(&stage).await];
    asked(&mut streams[2], &get("/private", "")).await;
    streams[0].write_all(get("/warm", "").as_bytes()).await.unwrap();
    let (left, answers) = tokio::join!(stage.server.drain(), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        streams[1].write_all(get("/counted", "").as_bytes()).await.unwrap();
        streams[2].write_all(get("/private", "").as_bytes()).await.unwrap();
        let mut answers = Vec::new();
        for stream in &mut streams {
            answers.push(read_answer(stream).await);
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        }
        answers
    });
    assert_eq!(left, 0);
    for answer in answers {
        assert_eq!((&*answer.status_line, answer.field("connection")), ("HTTP/1.1 200 OK", "close"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_who_has_been_silent() {
    let origin = origin().await;
    let stage = Stage::before(&origin).await;
    let mut stream = warm(&stage).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let started = tokio::time::Instant::now();
    assert_eq!(stage.server.drain().await, 0);
    assert_eq!((started.elapsed(), stream.read(&mut [0]).await.unwrap()), (Duration::ZERO, 0));
}

#[tokio::test(start_paused = true)]
async fn hits_count_among_the_requests_that_a_connection_may_have() {
    let origin = origin().await;
    let mut setting = Setting::before(origin.address);
    setting.server.requests_per_connection_max = Some(5);
    let stage = setting.start().await;
    let mut stream = warm(&stage).await;
    for _ in 3..5 {
        assert_eq!(asked(&mut stream, &get("/warm", "")).await.field("connection"), "");
    }
    assert_eq!(asked(&mut stream, &get("/warm", "")).await.field("connection"), "close");
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_hits_does_not_idle() {
    let origin = origin().await;
    let mut setting = Setting::before(origin.address);
    setting.server.idle_timeout = Duration::from_secs(10);
    let stage = setting.start().await;
    let mut stream = warm(&stage).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert_eq!(
            asked(&mut stream, &get("/warm", "")).await.field("cache-status").split(';').nth(1),
            Some(" hit")
        );
    }
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "it was closed");
}

#[tokio::test(start_paused = true)]
async fn a_purge_counts_for_the_very_next_request() {
    let origin = origin().await;
    let stage = Stage::before(&origin).await;
    let mut stream = warm(&stage).await;
    assert_eq!(asked(&mut stream, &get("/counted", "")).await.body, b"answer 2");
    asked(&mut stream, &get("/counted", "")).await;
    stage.proxy.purge(&proxy::Purge { target: proxy::Target::Everything, soft: false }).unwrap();
    assert_eq!(asked(&mut stream, &get("/counted", "")).await.body, b"answer 3");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(asked(&mut stream, &get("/counted", "")).await.body, b"answer 4", "what was stored is stale");
}
