//! Limits, and clients that take their time.

use crate::peers::*;
use crate::support::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn near(actual: Duration, expected: u64) -> bool {
    actual >= Duration::from_millis(expected * 1000 - 100) && actual < Duration::from_secs(expected + 2)
}

/// What a request with so many fields of so many bytes gets over HTTP/2.
async fn over_http2(stage: &Stage, count: usize, bytes: usize) -> u16 {
    let mut request = request("GET", &format!("http://site.example/{count}/{bytes}"), &[]);
    for index in 0..count {
        let name = http::HeaderName::try_from(format!("x-{index}")).unwrap();
        request.headers_mut().insert(name, http::HeaderValue::try_from("y".repeat(bytes)).unwrap());
    }
    *request.version_mut() = http::Version::HTTP_2;
    http2_client(stage.address).await.send_request(request).await.unwrap().status().as_u16()
}

#[tokio::test(start_paused = true)]
async fn the_limits_of_heads_hold_over_http2() {
    let origin = Origin::cacheable(9).await;
    let stage = Stage::before(&origin).await;
    assert_eq!(over_http2(&stage, 90, 10).await, 200);
    assert_eq!(over_http2(&stage, 101, 10).await, 431);
    assert_eq!(over_http2(&stage, 900, 10).await, 431);
    assert_eq!(origin.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_heads_is_the_same_after_other_requests() {
    let origin = Origin::cacheable(9).await;
    let stage = Stage::before(&origin).await;
    let mut client = stage.client().await;
    let value = "x".repeat(100_000);
    for _ in 0..3 {
        assert_eq!(client.get("/").await.status, 200);
    }
    let told = client.send(request("GET", "/other", &[("x", &value)])).await;
    assert_eq!((told.status(), origin.requests()), (431, 1));
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_timed_alike_after_a_request_that_went_upstream() {
    let witness = Witness::start().await;
    let mut setting = Setting::before(witness.address);
    setting.server.header_read_timeout = Duration::from_secs(2);
    let stage = setting.start().await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    stream.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    let started = tokio::time::Instant::now();
    stream.write_all(b"GET /b HTTP/1.1\r\nHost").await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("HTTP/1.1 408 ") && near(started.elapsed(), 2), "{:?} {rest}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn heads_that_are_too_large_get_431() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    let told = tell(stage.address, large.as_bytes()).await;
    assert_eq!(told.statuses(), [431], "{}", told.text);
    assert!(told.text.ends_with("\r\n\r\n431 Request Header Fields Too Large\n"), "{}", told.text);
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(200));
    let told = tell(stage.address, many.as_bytes()).await;
    assert_eq!(told.statuses(), [431], "{}", told.text);
    let endless = format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "X: y\r\n".repeat(20_000));
    let told = tell(stage.address, endless.as_bytes()).await;
    assert_eq!(told.statuses(), [431], "{}", told.text);
    assert_eq!(witness.seen(), "");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_http_gets_400_with_a_word_on_it() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for garbage in [
        "\x16\x03\x01\x02\0\x01\0\x01\x7c\x03\x03\r\n\r\n",
        "GET / FTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\n: x\r\n\r\n",
    ] {
        let told = tell(stage.address, garbage.as_bytes()).await;
        assert!(
            told.text.starts_with("HTTP/1.1 400 ") && told.text.ends_with("malformed\n"),
            "{}",
            told.text
        );
        let told = tell(stage.address, format!("{get}{garbage}").as_bytes()).await;
        assert_eq!(told.statuses(), [200, 400], "{}", told.text);
        assert!(told.text.ends_with("malformed\n"), "{}", told.text);
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_dated_and_counted_like_every_other_refusal() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let rejected = || stage.metric("forebay_requests_total{outcome=\"rejected\",route=\"none\"}");
    let get = "GET / HTTP/1.1\r\nHost: a\r\n";
    let mut refused = 0.0;
    for (bytes, statuses) in [
        ("\0\0\0\0\r\n\r\n".to_owned(), &[400][..]),
        (format!("{get}\r\nGET / HTTP/7.3\r\n\r\n"), &[200, 400]),
        (format!("{get}X: {}\r\n\r\n", "x".repeat(70_000)), &[431]),
        (format!("{get}X: y"), &[408]),
    ] {
        let told = tell(stage.address, bytes.as_bytes()).await;
        assert_eq!(told.statuses(), statuses, "{}", told.text);
        // RFC 9110 §6.6.1.
        assert_eq!(told.text.matches("\r\ndate: ").count(), statuses.len(), "{}", told.text);
        refused += 1.0;
        assert_eq!(rejected(), refused, "{statuses:?}");
    }
}

// In the time of the machine: a head of many pieces keeps the runtime waiting for the kernel, and a paused clock would run away.
#[tokio::test]
async fn a_head_over_http2_is_refused_by_us_up_to_twice_its_limit() {
    let origin = Origin::cacheable(9).await;
    let stage = Stage::before(&origin).await;
    let rejected = || stage.metric("forebay_requests_total{outcome=\"rejected\",route=\"none\"}");
    assert_eq!((over_http2(&stage, 75, 1000).await, rejected()), (431, 1.0));
    assert_eq!((over_http2(&stage, 90, 1600).await, rejected()), (431, 1.0), "by the library");
    assert_eq!(origin.requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn targets_that_are_too_long_get_414_and_bodies_that_are_too_large_413() {
    let witness = Witness::start().await;
    let mut setting = Setting::before(witness.address);
    setting.proxy.request_body_bytes_max = Some(1000);
    let stage = setting.start().await;
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(9000));
    assert_eq!(tell(stage.address, long.as_bytes()).await.statuses(), [414]);
    let large = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n";
    assert_eq!(tell(stage.address, large.as_bytes()).await.statuses(), [413]);
    assert_eq!(witness.seen(), "");
    let expecting = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n";
    assert_eq!(tell(stage.address, expecting.as_bytes()).await.statuses(), [413], "no 100 before it");
    assert_eq!(witness.seen(), "");
}

#[tokio::test(start_paused = true)]
async fn a_body_of_unknown_length_that_grows_too_large_gets_413_and_never_looks_complete() {
    let (sender, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let address = raw_origin(move |_, mut stream| {
        let sender = sender.clone();
        async move { drop(sender.send(hear(&mut stream).await.text)) }
    })
    .await;
    let mut setting = Setting::before(address);
    setting.proxy.request_body_bytes_max = Some(8);
    let stage = setting.start().await;
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nhello\r\n0\r\n\r\n";
    let told = tell(stage.address, request).await;
    assert_eq!(told.statuses(), [413], "{}", told.text);
    assert!(!ended.recv().await.unwrap().contains("\r\n0\r\n\r\n"));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_expectation_gets_417() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let told =
        tell(stage.address, b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\nContent-Length: 1\r\n\r\nx")
            .await;
    assert_eq!(told.statuses(), [417]);
    assert_eq!(witness.seen(), "");
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_gets_408_and_the_end() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    for beginning in ["G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: a\r\nX"] {
        let told = tell(stage.address, beginning.as_bytes()).await;
        assert_eq!(told.statuses(), [408], "{beginning:?}");
        assert!(near(told.after, 10), "{beginning:?}: after {:?}", told.after);
    }
    assert_eq!(stage.metric("forebay_connections_refused_total{cause=\"slow_head\"}"), 3.0);
}

#[tokio::test(start_paused = true)]
async fn dripping_bytes_wins_no_time() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").await.unwrap();
    let (mut reading, mut writing) = stream.split();
    let started = tokio::time::Instant::now();
    let drip = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if writing.write_all(b"x").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut told = Vec::new();
    tokio::select! {
        () = drip => {}
        _ = reading.read_to_end(&mut told) => {}
    }
    assert!(told.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&told));
    assert!(near(started.elapsed(), 10), "after {:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_second_head_is_timed_from_its_first_byte() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(hear_one(&mut stream).await.ends_with("ok"));
    tokio::time::sleep(Duration::from_secs(40)).await;
    stream.write_all(b"GET / HT").await.unwrap();
    let told = hear(&mut stream).await;
    assert_eq!(told.statuses(), [408]);
    assert!(near(told.after, 10), "after {:?}", told.after);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_sends_a_byte_and_one_that_idles_are_closed() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let told = tell(stage.address, b"").await;
    assert_eq!(told.text, "");
    assert!(near(told.after, 10), "after {:?}", told.after);
    let told = tell(stage.address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(told.statuses(), [200]);
    assert!(near(told.after, 75), "after {:?}", told.after);
}

#[tokio::test(start_paused = true)]
async fn a_connection_takes_as_many_requests_as_it_may() {
    let witness = Witness::start().await;
    let mut setting = Setting::before(witness.address);
    setting.server.requests_per_connection_max = Some(2);
    let stage = setting.start().await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let told = tell(stage.address, request.repeat(3).as_bytes()).await;
    assert_eq!(told.statuses(), [200, 200]);
    assert_eq!(told.text.matches("connection: close").count(), 1, "{}", told.text);
    let mut client = http2_client(stage.address).await;
    for _ in 0..2 {
        let answer = client.send_request(request_to("http://a/")).await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    let mut refused = false;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        refused |= client.is_closed();
    }
    assert!(refused || client.send_request(request_to("http://a/")).await.is_err());
}

fn request_to(
    uri: &str,
) -> http::Request<http_body_util::combinators::BoxBody<bytes::Bytes, std::io::Error>> {
    let mut request = request("GET", uri, &[]);
    request.headers_mut().remove("host");
    request
}

#[tokio::test(start_paused = true)]
async fn connections_are_limited_in_all_and_for_each_client() {
    let witness = Witness::start().await;
    for (all, each, cause) in [(2, None, "limit"), (100, Some(2), "client_limit")] {
        let mut setting = Setting::before(witness.address);
        setting.server.connections_max = all;
        setting.server.connections_per_client_max = each;
        let stage = setting.start().await;
        let (mut first, mut second) = (stage.client().await, stage.client().await);
        assert_eq!((first.get("/").await.status, second.get("/").await.status), (200, 200));
        let told = tell(stage.address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(told.text, "", "{cause}");
        assert_eq!(stage.metric(&format!("forebay_connections_refused_total{{cause=\"{cause}\"}}")), 1.0);
        drop(first);
        stage.until(|telemetry| telemetry.connections() == 1).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(stage.get("/").await.status, 200, "{cause}: there is a place again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_is_a_connection_among_those_that_are_limited() {
    let address = raw_origin(|_, mut stream| async move {
        hear_one(&mut stream).await;
        let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
        stream.write_all(switching.as_bytes()).await.unwrap();
        hear(&mut stream).await;
    })
    .await;
    for (all, each) in [(1, None), (100, Some(1))] {
        let mut setting = Setting::before(address);
        setting.server.connections_max = all;
        setting.server.connections_per_client_max = each;
        let stage = setting.start().await;
        let mut tunnel = TcpStream::connect(stage.address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        tunnel.write_all(request).await.unwrap();
        assert!(hear_one(&mut tunnel).await.starts_with("HTTP/1.1 101 "));
        stage.until(|telemetry| telemetry.connections() == 1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(tell(stage.address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.text, "");
        drop(tunnel);
        stage.until(|telemetry| telemetry.connections() == 0).await;
    }
}

/// Sends a head and then a byte of its body for each pause, and says what came of it, and when.
async fn drip(stage: &Stage, pause: Duration) -> Told {
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n").await.unwrap();
    let started = tokio::time::Instant::now();
    let (mut reading, mut writing) = stream.split();
    let mut text = Vec::new();
    let dripping = async {
        loop {
            tokio::time::sleep(pause).await;
            if writing.write_all(b"x").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = dripping => {}
        _ = reading.read_to_end(&mut text) => {}
    }
    Told { text: String::from_utf8_lossy(&text).into_owned(), after: started.elapsed() }
}

#[tokio::test(start_paused = true)]
async fn bodies_that_stall_or_drip_get_408() {
    let address = raw_origin(|_, mut stream| async move { drop(hear(&mut stream).await) }).await;
    let mut setting = Setting::before(address);
    setting.proxy.request_body_rate_min = Some(10);
    let stage = setting.start().await;
    let told = drip(&stage, Duration::from_secs(100)).await;
    assert_eq!(told.statuses(), [408], "{}", told.text);
    assert!(told.after <= Duration::from_secs(31), "a pause: after {:?}", told.after);
    let told = drip(&stage, Duration::from_secs(1)).await;
    assert_eq!(told.statuses(), [408], "{}", told.text);
    assert!(told.after <= Duration::from_secs(13), "too slow: after {:?}", told.after);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_takes_longer_than_the_head_may_is_not_cut() {
    let origin = Origin::start(|_, request| async move {
        use http_body_util::BodyExt;
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        page(200, &[], bytes)
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.upstream.head_timeout = Duration::from_secs(3);
    let stage = setting.start().await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n").await.unwrap();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        stream.write_all(b"x").await.unwrap();
    }
    let told = hear_one(&mut stream).await;
    assert!(told.starts_with("HTTP/1.1 200 ") && told.ends_with("xxxxxxxxxx"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn with_the_proxy_protocol_the_client_is_who_the_header_says_and_a_header_is_required() {
    let witness = Witness::start().await;
    let mut setting = Setting::before(witness.address);
    setting.server.proxy_protocol = true;
    setting.server.connections_per_client_max = Some(1);
    let stage = setting.start().await;
    let get = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let told =
        tell(stage.address, format!("PROXY TCP4 192.0.2.7 192.0.2.8 4000 80\r\n{get}").as_bytes()).await;
    assert_eq!(told.statuses(), [200]);
    assert!(witness.seen().contains("x-forwarded-for: 192.0.2.7\r\n"), "{}", witness.seen());
    let binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x09\xc0\0\x02\x08\x0f\xa0\0\x50";
    let told = tell(stage.address, &[binary, get.as_bytes()].concat()).await;
    assert_eq!(told.statuses(), [200], "version 2");
    assert!(witness.seen().contains("x-forwarded-for: 192.0.2.9\r\n"), "{}", witness.seen());
    let told = tell(stage.address, get.as_bytes()).await;
    assert_eq!((told.text.as_str(), told.after < Duration::from_secs(1)), ("", true));
    let told = tell(stage.address, b"PROXY TC").await;
    assert!(told.text.is_empty() && near(told.after, 10), "after {:?}", told.after);
    // The limit is that of the client, not of the load balancer.
    let mut held = Vec::new();
    for last in 1..=3 {
        let mut stream = TcpStream::connect(stage.address).await.unwrap();
        let header =
            format!("PROXY TCP4 192.0.2.{last} 192.0.2.8 4000 80\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.write_all(header.as_bytes()).await.unwrap();
        assert!(hear_one(&mut stream).await.ends_with("ok"));
        held.push(stream);
    }
    let told =
        tell(stage.address, format!("PROXY TCP4 192.0.2.3 192.0.2.8 4000 80\r\n{get}").as_bytes()).await;
    assert_eq!(told.text, "");
}
