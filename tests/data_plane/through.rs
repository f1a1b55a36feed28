//! Passes on a connection that had one before: no table is made of their heads, and neither client nor origin sees a difference.

use crate::express::{Raw, asked, get, read_answer};
use crate::support::*;
use forebay::policy::Query;
use forebay::proxy::{self, Forwarded, HostHeader, Network};
use http::HeaderMap;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// What passes: by rule, or because what comes is for one client each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ByRule,
    Uncacheable,
}

const WAYS: [Way; 2] = [Way::ByRule, Way::Uncacheable];

impl Way {
    fn setting(self, origin: &Origin) -> Setting {
        let mut setting = Setting::before(origin.address);
        setting.transport = origin.transport();
        setting.rules.enabled = self == Self::Uncacheable;
        setting
    }

    fn detail(self) -> &'static str {
        match self {
            Self::ByRule => "disabled",
            Self::Uncacheable => "no-store",
        }
    }
}

const NO_STORE: (&str, &str) = ("cache-control", "no-store");

/// A connection whose last request passed, as the next one for the same will: it is known of the target.
async fn warm(stage: &Stage, target: &str) -> DuplexStream {
    let mut stream = stage.pipe();
    asked(&mut stream, &get(target, "")).await;
    stream
}

/// The same answer on a connection of its own.
async fn elsewhere(stage: &Stage, request: &str) -> Raw {
    asked(&mut stage.pipe(), request).await
}

/// An origin with an answer of each kind, none of which is for everyone.
async fn origin() -> Origin {
    Origin::start(|number, request| async move {
        match request.uri().path() {
            "/cookies" => page(200, &[NO_STORE, ("set-cookie", "a=1"), ("set-cookie", "b=2")], "two cookies"),
            "/selected" => page(200, &[NO_STORE, ("vary", "accept-language, x-a")], "selected"),
            "/elsewhere" => page(302, &[NO_STORE, ("location", "/a?b=c")], ""),
            "/missing" => page(404, &[NO_STORE], "no such page"),
            "/mine" => page(200, &[("cache-control", "private, max-age=60"), ("age", "7")], "mine"),
            "/told" => {
                let others =
                    [("cache-status", "inner; fwd=miss"), ("via", "1.1 inner"), ("x-cache", "theirs")];
                page(200, &[NO_STORE, others[0], others[1], others[2]], "told")
            }
            "/hops" => {
                let hops =
                    [("connection", "keep-alive"), ("keep-alive", "timeout=5"), ("proxy-authenticate", "x")];
                page(200, &[NO_STORE, hops[0], hops[1], hops[2]], "hops")
            }
            "/named" => page(200, &[NO_STORE, ("connection", "x-a"), ("x-a", "1")], "named"),
            "/nothing" => page(204, &[NO_STORE], ""),
            "/dated" => page(200, &[NO_STORE, ("date", "Sun, 06 Nov 1994 08:49:37 GMT")], "dated"),
            "/large" => page(200, &[NO_STORE], vec![b'x'; 60_000]),
            "/numbered" => page(200, &[NO_STORE], format!("answer {number}")),
            _ => page(200, &[NO_STORE], request.uri().to_string()),
        }
    })
    .await
}

const TARGETS: [&str; 13] = [
    "/cookies",
    "/selected",
    "/elsewhere",
    "/missing",
    "/mine",
    "/told",
    "/hops",
    "/named",
    "/nothing",
    "/dated",
    "/large",
    "/a?b=c",
    "/%7Ea/./b",
];

/// Fields of requests that are as plain as can be, and of some that say who asks, or claim something.
const FIELDS: [&str; 4] = [
    "",
    "Connection: Keep-Alive\r\nAccept-Language: de\r\nX-A: 1\r\nX-A:  2 \r\nX-Empty:\r\nX: \u{e4}\r\n",
    "Cookie: a=b\r\nAuthorization: Basic eA==\r\nCache-Control: no-cache\r\nPragma: no-cache\r\n",
    "X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\nX-FORWARDED-PROTO: https\r\nX-Real-IP: 192.0.2.1\r\n\
     X-Forwarded-Host: other\r\nVia: 1.0 other\r\nX-Original-URL: /admin\r\nX-Forwarded-Something: 1\r\n",
];

#[tokio::test(start_paused = true)]
async fn a_pass_is_the_same_on_a_connection_that_had_one_before() {
    for way in WAYS {
        for (x_cache, cache_status_key) in [(false, false), (true, true)] {
            let origin = origin().await;
            let mut setting = way.setting(&origin);
            setting.proxy = proxy::Settings { x_cache, cache_status_key, ..setting.proxy };
            let stage = setting.start().await;
            for target in TARGETS {
                for fields in FIELDS {
                    let request = get(target, fields);
                    let mut stream = warm(&stage, target).await;
                    let new = elsewhere(&stage, &request).await;
                    let kept = asked(&mut stream, &request).await;
                    assert_eq!(kept, new, "{way:?} {request}");
                    let [new, kept] = [1, 0].map(|back| origin.seen(origin.requests() - back));
                    assert_eq!(kept, new, "{way:?} {request}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_origin_is_told_the_same_of_the_client_on_both_ways() {
    let trusted = || vec![Network { address: "127.0.0.1".parse().unwrap(), bits: 8 }];
    let tellings = [
        Forwarded { trusted_proxies: trusted(), ..Forwarded::default() },
        Forwarded { trusted_proxies: trusted(), forwarded: true, via: false, ..Forwarded::default() },
        Forwarded { forwarded: true, ..Forwarded::default() },
        Forwarded { x_forwarded: false, forwarded: true, ..Forwarded::default() },
        Forwarded { x_forwarded: false, via: false, ..Forwarded::default() },
    ];
    for (number, forwarded) in tellings.into_iter().enumerate() {
        for way in WAYS {
            let origin = origin().await;
            let mut setting = way.setting(&origin);
            setting.proxy.forwarded = forwarded.clone();
            setting.host_header = match number % 3 {
                0 => HostHeader::Pass,
                1 => HostHeader::Upstream,
                _ => HostHeader::Fixed("fixed.example".into()),
            };
            setting.rules.honor_request_directives = number == 2;
            setting.stripped = (number == 3).then_some("/b");
            setting.key.query = Query::Sorted;
            let stage = setting.start().await;
            for fields in FIELDS {
                let request = get("/b/c?y=1&x=2", fields);
                let mut stream = warm(&stage, "/b/c?x=2&y=1").await;
                let (new, kept) = (elsewhere(&stage, &request).await, asked(&mut stream, &request).await);
                assert_eq!(kept, new, "{way:?} {number} {request}");
                let [new, kept] = [1, 0].map(|back| origin.seen(origin.requests() - back));
                assert_eq!(kept, new, "{way:?} {number} {request}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pass_is_counted_wherever_it_was_made() {
    for way in WAYS {
        let origin = origin().await;
        let stage = way.setting(&origin).start().await;
        let mut stream = warm(&stage, "/numbered").await;
        for number in 2..7 {
            let answer = asked(&mut stream, &get("/numbered", "")).await;
            assert_eq!(String::from_utf8_lossy(&answer.body), format!("answer {number}"));
            assert!(answer.field("cache-status").ends_with(way.detail()), "{answer:?}");
        }
        drop(stream);
        stage.until(|telemetry| telemetry.connections() == 0).await;
        let of_route =
            |series: &str| stage.metric(&series.replace('*', "outcome=\"pass\",route=\"default\""));
        let first = if way == Way::ByRule { 6.0 } else { 5.0 };
        assert_eq!(of_route("forebay_requests_total{*}"), 6.0);
        assert_eq!(of_route("forebay_request_duration_seconds_count{*}"), 6.0);
        assert_eq!(stage.metric("forebay_response_bytes_total{route=\"default\"}"), 6.0 * 8.0);
        let passed =
            "forebay_upstream_requests_total{reason=\"pass\",status_class=\"2xx\",upstream=\"origin\"}";
        assert_eq!(stage.metric(passed), first);
        assert_eq!(stage.metric("forebay_upstream_requests_in_flight{upstream=\"origin\"}"), 0.0);
    }
}

#[tokio::test(start_paused = true)]
async fn who_passes_beside_others_is_counted_as_one_too_many() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, 3.., |_| page(200, &[NO_STORE], "")).await;
    let stage = Way::Uncacheable.setting(&origin).start().await;
    let mut streams = [warm(&stage, "/").await, warm(&stage, "/").await];
    for stream in &mut streams {
        stream.write_all(get("/", "").as_bytes()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(origin.requests(), 4, "nobody waits for anybody");
    gate.open();
    for stream in &mut streams {
        assert_eq!(read_answer(stream).await.status_line, "HTTP/1.1 200 OK");
    }
    let duplicates = "forebay_duplicate_fetches_total{cause=\"uncacheable\",route=\"default\"}";
    assert_eq!(stage.metric(duplicates), 1.0);
}

#[tokio::test(start_paused = true)]
async fn what_turns_out_to_be_for_everyone_is_stored_and_ends_the_note() {
    let origin = Origin::start(|number, _| async move {
        let fields = if number < 3 { [NO_STORE] } else { [("cache-control", "max-age=60")] };
        page(200, &fields, format!("answer {number}"))
    })
    .await;
    let stage = Way::Uncacheable.setting(&origin).start().await;
    let mut stream = warm(&stage, "/").await;
    for (body, cache_status) in [
        ("answer 2", "forebay; fwd=uri-miss; fwd-status=200; detail=no-store"),
        ("answer 3", "forebay; fwd=uri-miss; fwd-status=200; ttl=60; stored"),
        ("answer 3", "forebay; hit; ttl=60"),
    ] {
        let answer = asked(&mut stream, &get("/", "")).await;
        assert_eq!((&*answer.body, answer.field("cache-status")), (body.as_bytes(), cache_status));
    }
    assert_eq!(stage.metric("forebay_requests_total{outcome=\"miss\",route=\"default\"}"), 1.0);
    assert_eq!(origin.requests(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_as_ever() {
    for way in WAYS {
        let origin = Origin::start(|number, _| async move {
            if number == 1 {
                page(200, &[NO_STORE], "")
            } else {
                page(503, &[("retry-after", "7")], "out of order")
            }
        })
        .await;
        let mut setting = way.setting(&origin);
        setting.upstream.retries = 0;
        let stage = setting.start().await;
        let mut stream = warm(&stage, "/").await;
        let answer = asked(&mut stream, &get("/", "")).await;
        assert_eq!(answer.status_line, "HTTP/1.1 503 Service Unavailable");
        assert_eq!((&*answer.body, answer.field("retry-after")), (&b"out of order"[..], "7"));
        let sent = origin.requests();
        if way == Way::Uncacheable {
            let answer = asked(&mut stream, &get("/", "")).await;
            assert!(answer.field("cache-status").ends_with("detail=back-off"), "{answer:?}");
            assert_eq!(origin.requests(), sent, "the origin is left alone for a while");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_is_gone_is_told_as_ever_and_an_idle_connection_that_died_is_no_failure() {
    for way in WAYS {
        let address = raw_origin(move |number, mut stream| async move {
            // The second connection is closed with the answer to its second request.
            for _ in 0..2 {
                if read_head(&mut stream).await.is_empty() || number > 2 {
                    return;
                }
                let answer = "HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 2\r\n\r\nab";
                stream.write_all(answer.as_bytes()).await.unwrap();
                if number == 1 {
                    // It is closed while it idles, and nobody is told before the next request has been sent.
                    read_head(&mut stream).await;
                    return;
                }
            }
        })
        .await;
        let mut setting = Setting::before(address);
        setting.rules.enabled = way == Way::Uncacheable;
        (setting.upstream.retries, setting.coalescing.error_backoff.0) = (0, Duration::ZERO);
        let stage = setting.start().await;
        let mut stream = warm(&stage, "/").await;
        let answer = asked(&mut stream, &get("/", "")).await;
        assert_eq!(answer.status_line, "HTTP/1.1 200 OK", "{way:?}: it was sent again on a new connection");
        let retried =
            "forebay_upstream_requests_total{reason=\"retry\",status_class=\"2xx\",upstream=\"origin\"}";
        assert_eq!(stage.metric(retried), 1.0);
        asked(&mut stream, &get("/", "")).await;
        let answer = asked(&mut stream, &get("/", "")).await;
        assert_eq!(answer.status_line, "HTTP/1.1 502 Bad Gateway", "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_takes_its_exchange_with_it() {
    for way in WAYS {
        let gate = Gate::shut();
        let origin = Origin::behind(&gate, 2.., |_| page(200, &[NO_STORE], "")).await;
        let stage = way.setting(&origin).start().await;
        let mut stream = warm(&stage, "/").await;
        stream.write_all(get("/", "").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(stage.metric("forebay_upstream_requests_in_flight{upstream=\"origin\"}"), 1.0);
        drop(stream);
        stage.until(|telemetry| telemetry.connections() == 0).await;
        assert_eq!(stage.metric("forebay_upstream_requests_in_flight{upstream=\"origin\"}"), 0.0);
        assert_eq!(stage.metric("forebay_requests_total{outcome=\"abandoned\",route=\"default\"}"), 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_meanwhile_is_answered_in_its_turn() {
    for (way, statuses) in WAYS.iter().flat_map(|way| [(*way, [200, 200]), (*way, [200, 503])]) {
        let gate = Gate::shut();
        let behind = gate.clone();
        let origin = Origin::start(move |number, request| {
            let behind = behind.clone();
            async move {
                if number > 1 {
                    behind.passed().await;
                }
                page(statuses[usize::from(number == 2)], &[NO_STORE], request.uri().to_string())
            }
        })
        .await;
        let mut setting = way.setting(&origin);
        setting.upstream.retries = 0;
        let stage = setting.start().await;
        let mut stream = warm(&stage, "/first").await;
        stream.write_all(get("/first", "").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let two =
            get("/second", "") + &get("/third", "X-Long: ").replace("X-Long: ", &"X-A: b\r\n".repeat(40));
        stream.write_all(two.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        gate.open();
        for target in ["/first", "/second", "/third"] {
            let answer = read_answer(&mut stream).await;
            assert_eq!(String::from_utf8_lossy(&answer.body), target, "{way:?} {statuses:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_upstream_when_a_drain_begins_is_answered_and_told() {
    for (way, status) in WAYS.iter().flat_map(|way| [(*way, 200), (*way, 503)]) {
        let gate = Gate::shut();
        let behind = gate.clone();
        let origin = Origin::start(move |number, _| {
            let behind = behind.clone();
            async move {
                if number == 1 {
                    return page(200, &[NO_STORE], "");
                }
                behind.passed().await;
                page(status, &[NO_STORE], "late")
            }
        })
        .await;
        let mut setting = way.setting(&origin);
        setting.upstream.retries = 0;
        let stage = setting.start().await;
        let mut stream = warm(&stage, "/").await;
        stream.write_all(get("/", "").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (left, answer) = tokio::join!(stage.server.drain(), async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            gate.open();
            let answer = read_answer(&mut stream).await;
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            answer
        });
        assert_eq!(
            (left, answer.field("connection"), &*answer.body),
            (0, "close", &b"late"[..]),
            "{way:?} {status}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn pieces_go_on_as_they_come_and_the_head_before_them() {
    for (way, length) in WAYS.iter().flat_map(|way| [(*way, None), (*way, Some("9"))]) {
        let (mut pieces, answer) = streamed(200, &[NO_STORE]);
        let answer = parking_lot::Mutex::new(vec![answer]);
        let origin = Origin::start(move |number, _| {
            let mut answer =
                if number == 1 { page(200, &[NO_STORE], "") } else { answer.lock().pop().unwrap() };
            if let Some(length) = length.filter(|_| number > 1) {
                answer.headers_mut().insert("content-length", length.parse().unwrap());
            }
            async move { answer }
        })
        .await;
        let stage = way.setting(&origin).start().await;
        let mut stream = warm(&stage, "/").await;
        stream.write_all(get("/", "").as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(
            head.contains(length.map_or("transfer-encoding: chunked", |_| "content-length: 9")),
            "{head}"
        );
        for piece in ["abc", "def", "ghi"] {
            pieces.send(data(piece)).unwrap();
            let expected = length.map_or(format!("3\r\n{piece}\r\n"), |_| piece.to_owned());
            let mut came = vec![0; expected.len()];
            stream.read_exact(&mut came).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&came), expected);
        }
        (pieces, _) = streamed(200, &[]);
        drop(pieces);
        if length.is_none() {
            let mut end = [0; 5];
            stream.read_exact(&mut end).await.unwrap();
            assert_eq!(&end, b"0\r\n\r\n");
        }
        stage.until(|telemetry| telemetry.connections() == 1).await;
        assert_eq!(stage.metric("forebay_response_bytes_total{route=\"default\"}"), 9.0);
    }
}

/// A pass whose body is on its way: its client has the first piece of it, and more can be sent.
async fn under_way(
    way: Way,
    length: Option<&'static str>,
) -> (
    Stage,
    DuplexStream,
    tokio::sync::mpsc::UnboundedSender<std::io::Result<hyper::body::Frame<bytes::Bytes>>>,
) {
    let fields = [Some(NO_STORE), length.map(|length| ("content-length", length))];
    let fields: Vec<_> = fields.into_iter().flatten().collect();
    let (pieces, answer) = streamed(200, &fields);
    let answer = parking_lot::Mutex::new(vec![answer, page(200, &[NO_STORE], "")]);
    let origin = Origin::start(move |_, _| {
        let answer = answer.lock().pop().unwrap();
        async move { answer }
    })
    .await;
    let stage = way.setting(&origin).start().await;
    let mut stream = warm(&stage, "/").await;
    stream.write_all(get("/", "").as_bytes()).await.unwrap();
    pieces.send(data("abc")).unwrap();
    read_head(&mut stream).await;
    let mut first = vec![0; if length.is_some() { 3 } else { 8 }];
    stream.read_exact(&mut first).await.unwrap();
    assert!(String::from_utf8_lossy(&first).contains("abc"));
    (stage, stream, pieces)
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_a_pass_that_is_being_sent() {
    for (way, length) in WAYS.iter().flat_map(|way| [(*way, None), (*way, Some("6"))]) {
        let (stage, mut stream, pieces) = under_way(way, length).await;
        let (left, rest) = tokio::join!(stage.server.drain(), async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            pieces.send(data("def")).unwrap();
            drop(pieces);
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            rest
        });
        let expected = if length.is_some() { "def" } else { "3\r\ndef\r\n0\r\n\r\n" };
        assert_eq!((left, &*rest), (0, expected), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_behind_the_last_answer_of_a_connection_is_not_answered() {
    for way in WAYS {
        let gate = Gate::shut();
        let origin = Origin::behind(&gate, 2.., |_| page(200, &[NO_STORE], "")).await;
        let stage = way.setting(&origin).start().await;
        let mut stream = warm(&stage, "/").await;
        stream.write_all(get("/", "").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let order = "POST /order HTTP/1.1\r\nHost: site.example\r\nContent-Length: 3\r\n\r\nbuy";
        stream.write_all(order.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (left, answer) = tokio::join!(stage.server.drain(), async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            gate.open();
            let answer = read_answer(&mut stream).await;
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            answer
        });
        assert_eq!((left, answer.field("connection"), origin.requests()), (0, "close", 2), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_ends_with_a_reset() {
    for way in WAYS {
        let (pieces, answer) = streamed(200, &[NO_STORE, ("content-length", "9")]);
        let answer = parking_lot::Mutex::new(vec![answer, page(200, &[NO_STORE], "")]);
        let origin = Origin::start(move |_, _| {
            let answer = answer.lock().pop().unwrap();
            async move { answer }
        })
        .await;
        let stage = way.setting(&origin).start().await;
        let mut stream = tokio::net::TcpStream::connect(stage.address).await.unwrap();
        asked(&mut stream, &get("/", "")).await;
        stream.write_all(get("/", "").as_bytes()).await.unwrap();
        read_head(&mut stream).await;
        pieces.send(data("abc")).unwrap();
        stream.read_exact(&mut [0; 3]).await.unwrap();
        pieces.send(Err(std::io::Error::other("broken"))).unwrap();
        let end = stream.read(&mut [0]).await;
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_in_the_middle_takes_its_exchange_with_it() {
    for (way, length) in WAYS.iter().flat_map(|way| [(*way, None), (*way, Some("6"))]) {
        let (stage, stream, pieces) = under_way(way, length).await;
        drop(stream);
        stage.until(|telemetry| telemetry.connections() == 0).await;
        tokio::time::timeout(Duration::from_secs(1), pieces.closed()).await.unwrap();
        assert_eq!(stage.metric("forebay_upstream_requests_in_flight{upstream=\"origin\"}"), 0.0, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_in_chunks_that_is_all_there_is_sent_in_one() {
    for way in WAYS {
        let origin = Origin::start(|_, _| async move {
            let (pieces, answer) = streamed(200, &[NO_STORE]);
            for piece in ["in ", "three ", "pieces"] {
                pieces.send(data(piece)).unwrap();
            }
            answer
        })
        .await;
        let stage = way.setting(&origin).start().await;
        let mut stream = stage.pipe();
        for _ in 0..3 {
            stream.write_all(get("/", "").as_bytes()).await.unwrap();
            assert!(read_head(&mut stream).await.contains("transfer-encoding: chunked\r\n"));
            let mut body = String::new();
            while !body.ends_with("0\r\n\r\n") {
                body.push(char::from(stream.read_u8().await.unwrap()));
            }
            let text: String = body.split("\r\n").skip(1).step_by(2).collect();
            assert_eq!(text, "in three pieces", "{way:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_seen_to_by_its_client() {
    for way in WAYS {
        let (pieces, answer) = streamed(200, &[NO_STORE, ("content-length", "9")]);
        let answer = parking_lot::Mutex::new(vec![answer, page(200, &[NO_STORE], "")]);
        let origin = Origin::start(move |_, _| {
            let answer = answer.lock().pop().unwrap();
            async move { answer }
        })
        .await;
        let stage = way.setting(&origin).start().await;
        let mut stream = warm(&stage, "/").await;
        stream.write_all(get("/", "").as_bytes()).await.unwrap();
        read_head(&mut stream).await;
        pieces.send(data("abc")).unwrap();
        let mut came = [0; 3];
        stream.read_exact(&mut came).await.unwrap();
        pieces.send(Err(std::io::Error::other("broken"))).unwrap();
        assert_eq!((&came, stream.read(&mut [0]).await.unwrap()), (b"abc", 0), "{way:?}: and then the end");
        stage.until(|telemetry| telemetry.connections() == 0).await;
        assert_eq!(stage.metric("forebay_responses_broken_total{route=\"default\"}"), 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_pass_comes_whole_to_a_client_that_reads_late() {
    const LARGE: usize = 3 << 20;
    for way in WAYS {
        let origin = Origin::start(|number, _| async move {
            page(200, &[NO_STORE], vec![b'x'; if number == 1 { 0 } else { LARGE }])
        })
        .await;
        let stage = way.setting(&origin).start().await;
        let mut stream = warm(&stage, "/").await;
        stream.write_all(get("/", "").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(read_answer(&mut stream).await.body.len(), LARGE);
        assert_eq!(asked(&mut stream, &get("/", "")).await.body.len(), LARGE);
    }
}

#[tokio::test(start_paused = true)]
async fn an_odd_answer_is_refused_as_ever() {
    for (head, status) in [
        ("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nab", 502),
        ("HTTP/1.1 304 Not Modified\r\n\r\n", 502),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 502),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 502),
        ("HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 1\r\n\r\nab", 502),
        ("HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nTransfer-Encoding: gzip\r\n\r\n", 502),
        (
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 1\r\n\r\na",
            200,
        ),
        ("HTTP/1.0 200 Fine\r\nCache-Control: no-store\r\n\r\nto the end", 200),
    ] {
        let address = raw_origin(move |_, mut stream| async move {
            let first = "HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 0\r\n\r\n";
            for answer in [first, head] {
                read_head(&mut stream).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await;
        for way in WAYS {
            let mut setting = Setting::before(address);
            setting.rules.enabled = way == Way::Uncacheable;
            setting.upstream.retries = 0;
            let stage = setting.start().await;
            let mut stream = warm(&stage, "/").await;
            let answer = asked(&mut stream, &get("/", "")).await;
            assert!(answer.status_line.contains(&format!(" {status} ")), "{way:?} {head:?}: {answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn passes_count_among_the_requests_that_a_connection_may_have() {
    let origin = origin().await;
    let mut setting = Way::Uncacheable.setting(&origin);
    setting.server.requests_per_connection_max = Some(4);
    let stage = setting.start().await;
    let mut stream = warm(&stage, "/numbered").await;
    for number in 2..=4 {
        let answer = asked(&mut stream, &get("/numbered", "")).await;
        assert_eq!(answer.field("connection"), if number == 4 { "close" } else { "" });
    }
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn fields_that_select_are_minded_where_passes_meet() {
    let origin = Origin::start(|_, request| async move {
        let fields: HeaderMap = request.headers().clone();
        let is_german = fields.get("accept-language").is_some_and(|language| language == "de");
        let control = if is_german { NO_STORE } else { ("cache-control", "max-age=60") };
        page(200, &[control, ("vary", "accept-language")], "")
    })
    .await;
    let stage = Way::Uncacheable.setting(&origin).start().await;
    let mut stream = stage.pipe();
    for (language, expected) in [
        ("de", "no-store"),
        ("de", "no-store"),
        ("fr", "stored"),
        ("de", "no-store"),
        ("fr", "hit"),
        ("de", "no-store"),
    ] {
        let request = get("/", &format!("Accept-Language: {language}\r\n"));
        let answer = asked(&mut stream, &request).await;
        assert!(answer.field("cache-status").contains(expected), "{language}: {answer:?}");
    }
    assert_eq!(stage.metric("forebay_duplicate_fetches_total{cause=\"uncacheable\",route=\"default\"}"), 0.0);
}
