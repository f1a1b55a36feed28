//! HTTP/2 clients that break the rules, frame by frame (RFC 9113).

use crate::peers::*;
use crate::support::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A field as a literal that is not indexed (RFC 7541 §6.2.2), with names and values shorter than 127 bytes.
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap();
    [&[0, length(name)], name, &[length(value)], value].concat()
}

pub fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    let block: Vec<u8> =
        fields.iter().flat_map(|(name, value)| literal(name.as_bytes(), value.as_bytes())).collect();
    frame(1, flags | END_HEADERS, stream, &block)
}

pub const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];

pub async fn connect(stage: &Stage) -> TcpStream {
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    stream
}

/// What the proxy said of a stream, or of the connection.
#[derive(Debug, PartialEq)]
enum Said {
    /// A head that begins so.
    Headers,
    Reset,
    GoAway,
    Closed,
}

/// The first thing that the proxy says that is not housekeeping.
async fn listen(stream: &mut TcpStream) -> Said {
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return Said::Closed;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if stream.read_exact(&mut payload).await.is_err() {
            return Said::Closed;
        }
        match head[3] {
            1 => return Said::Headers,
            3 => return Said::Reset,
            7 => return Said::GoAway,
            _ => {}
        }
    }
}

/// Requests that reach nobody: the upstream sees nothing of them.
async fn check_refused(frames: Vec<u8>, what: &str) {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let mut stream = connect(&stage).await;
    stream.write_all(&frames).await.unwrap();
    let said = listen(&mut stream).await;
    assert_eq!(witness.seen(), "", "{what}: {said:?}");
    drop(stream);
    assert_eq!(stage.get("/").await.text(), "ok", "{what}: the proxy goes on");
}

#[tokio::test(start_paused = true)]
async fn rfc9113_8_3_pseudo_fields_that_are_malformed_reach_nobody() {
    let cases: [&[(&str, &str)]; 16] = [
        &[(":scheme", "http"), (":path", "/"), (":authority", "a")],
        &[(":method", "GET"), (":path", "/"), (":authority", "a")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/")],
        &[(":method", "GET"), (":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":path", "/x"), (":authority", "a")],
        &[(":method", "GET"), (":scheme", "http"), (":path", ""), (":authority", "a")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "x"), (":authority", "a")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "*"), (":authority", "a")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/ HTTP/1.1\r\nx: y"), (":authority", "a")],
        &[(":method", "GET / HTTP/1.1\r\n"), (":scheme", "http"), (":path", "/"), (":authority", "a")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a\r\nx: y")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "u@a")],
        &[(":method", "GET"), (":scheme", "ftp"), (":path", "/"), (":authority", "a")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a"), (":status", "200")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("x", "y"), (":authority", "a")],
    ];
    for fields in cases {
        check_refused(headers(1, END_STREAM, fields), &format!("{fields:?}")).await;
    }
    let connect = [(":method", "CONNECT"), (":authority", "a:443")];
    check_refused(headers(1, END_STREAM, &connect), "CONNECT").await;
}

#[tokio::test(start_paused = true)]
async fn rfc9113_8_2_fields_that_are_malformed_or_of_a_connection_reach_nobody() {
    for (name, value) in [
        ("Upper", "x"),
        ("x", "a\r\nb"),
        ("x", "a\nb"),
        ("x", "a\0b"),
        ("x y", "z"),
        ("x:", "z"),
        ("x\r\ny", "z"),
        ("", "z"),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("keep-alive", "x"),
        ("proxy-connection", "x"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("host", "b"),
    ] {
        let mut fields = GET.to_vec();
        fields.push((name, value));
        check_refused(headers(1, END_STREAM, &fields), &format!("{name:?}: {value:?}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9113_8_1_1_a_content_length_that_does_not_fit_never_looks_complete() {
    for (length, body, end) in [
        ("5", "hell", true),
        ("5", "hello!", true),
        ("5", "hello!", false),
        ("x", "", true),
        ("+5", "hello", true),
    ] {
        let witness = Witness::start().await;
        let stage = Setting::before(witness.address).start().await;
        let mut stream = connect(&stage).await;
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "a"),
            ("content-length", length),
        ];
        let mut frames = headers(1, 0, &fields);
        frames.extend(frame(0, u8::from(end), 1, body.as_bytes()));
        stream.write_all(&frames).await.unwrap();
        listen(&mut stream).await;
        let seen = witness.seen();
        assert!(!seen.ends_with("hello") && !seen.ends_with("\r\n0\r\n\r\n"), "{length} {body}: {seen}");
    }
    let mut fields = GET.to_vec();
    fields.extend([("content-length", "0"), ("content-length", "5")]);
    check_refused(headers(1, END_STREAM, &fields), "two lengths").await;
    let mut fields = GET.to_vec();
    fields.push(("content-length", "5"));
    check_refused(headers(1, END_STREAM, &fields), "a length without a body").await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_over_http2_that_is_cut_never_looks_complete() {
    // Cancelled, reset without any error, and closed.
    for reset in [Some(8_u32), Some(0), None] {
        let (sender, mut ended) = tokio::sync::mpsc::unbounded_channel();
        let address = raw_origin(move |_, mut stream| {
            let sender = sender.clone();
            async move { drop(sender.send(hear(&mut stream).await.text)) }
        })
        .await;
        let stage = Setting::before(address).start().await;
        let mut stream = connect(&stage).await;
        let fields = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
        let mut frames = headers(1, 0, &fields);
        frames.extend(frame(0, 0, 1, b"hello"));
        stream.write_all(&frames).await.unwrap();
        stage.until(|telemetry| telemetry.upstream(0).in_flight() == 1).await;
        if let Some(code) = reset {
            stream.write_all(&frame(3, 0, 1, &code.to_be_bytes())).await.unwrap();
        } else {
            drop(stream);
        }
        let seen = ended.recv().await.unwrap();
        assert!(seen.contains("POST / HTTP/1.1") && !seen.contains("\r\n0\r\n\r\n"), "{seen}");
    }
}

/// Sends frames until the proxy ends the connection, which must come before `most` of them.
async fn flood(stage: &Stage, most: usize, mut frames: impl FnMut(usize) -> Vec<u8>) -> usize {
    let stream = connect(stage).await;
    let (mut reading, mut writing) = stream.into_split();
    let ended = tokio::spawn(async move {
        let mut sink = vec![0; 65_536];
        while let Ok(1..) = reading.read(&mut sink).await {}
    });
    for number in 0..most {
        if ended.is_finished() || writing.write_all(&frames(number)).await.is_err() {
            return number;
        }
        if number % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    most
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, .., |_| page(200, &[], "late")).await;
    let stage = Stage::before(&origin).await;
    let sent = flood(&stage, 20_000, |number| {
        let stream = u32::try_from(number * 2 + 1).unwrap();
        let mut frames = headers(stream, END_STREAM, &GET);
        frames.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
        frames
    })
    .await;
    assert!(sent < 20_000, "all of the resets were taken");
    stage.until(|telemetry| telemetry.connections() == 0).await;
    assert_eq!(stage.metric("forebay_connections_refused_total{cause=\"flood\"}"), 1.0);
    stage.until(|telemetry| telemetry.flights() == 0 && telemetry.waiters() == 0).await;
    gate.open();
    assert_eq!(stage.get("/").await.status, 200);
}

#[tokio::test]
async fn endless_continuations_end_the_connection() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let sent = flood(&stage, 20_000, |number| {
        let fields = literal(b"x", b"0123456789012345678901234567890123456789");
        if number == 0 { frame(1, END_STREAM, 1, &fields) } else { frame(9, 0, 1, &fields) }
    })
    .await;
    assert!(sent < 20_000, "all of the continuations were taken");
    assert_eq!(witness.seen(), "");
    let sent =
        flood(
            &stage,
            200_000,
            |number| {
                if number == 0 { frame(1, END_STREAM, 1, &[]) } else { frame(9, 0, 1, &[]) }
            },
        )
        .await;
    assert!(sent < 200_000, "all of the empty continuations were taken");
    assert_eq!(stage.get("/").await.text(), "ok");
}

#[tokio::test]
async fn pings_and_settings_that_nobody_reads_the_answers_of_are_bounded() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    for (kind, payload) in [(6, &[0; 8][..]), (4, &[][..])] {
        let mut stream = connect(&stage).await;
        // The answers are never read: the proxy must stop reading, or end the connection, instead of queueing them.
        let flood = frame(kind, 0, 0, payload).repeat(1000);
        let mut written = 0;
        while written < 100_000_000
            && matches!(
                tokio::time::timeout(Duration::from_millis(300), stream.write_all(&flood)).await,
                Ok(Ok(()))
            )
        {
            written += flood.len();
        }
        assert!(written < 100_000_000, "frames of type {kind} were taken without end");
    }
    assert_eq!(stage.get("/").await.text(), "ok");
}

#[tokio::test]
async fn frames_without_content_cost_others_nothing() {
    let address = raw_origin(|_, mut stream| async move {
        while read_head(&mut stream).await.starts_with("GET") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
        // The body of an upload is not read.
        std::future::pending::<()>().await;
    })
    .await;
    let stage = Setting::before(address).start().await;
    let post = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    // DATA without data; PRIORITY, a type that is unknown, WINDOW_UPDATE of one byte.
    let priority = frame(2, 0, 1, &[0, 0, 0, 0, 1]);
    let update = frame(8, 0, 0, &1_u32.to_be_bytes());
    // And what is answered each time, where the answers are read.
    let (ping, settings) = (frame(6, 0, 0, &[0; 8]), frame(4, 0, 0, &[]));
    for idle in [frame(0, 0, 1, &[]), priority, frame(99, 0, 0, &[]), update, ping, settings] {
        let begin = headers(1, 0, &post);
        let flooding = flood(&stage, 50_000, |number| if number == 0 { begin.clone() } else { idle.clone() });
        let asking = async {
            for _ in 0..20 {
                let answer = tokio::time::timeout(Duration::from_secs(10), stage.get("/")).await;
                assert_eq!(answer.expect("others are served meanwhile").text(), "ok");
            }
        };
        tokio::join!(flooding, asking);
        stage.until(|telemetry| telemetry.connections() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn streams_beyond_the_limit_are_refused() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, .., |_| page(200, &[], "late")).await;
    let mut setting = Setting::before(origin.address);
    setting.server.http2_streams_max = 2;
    let stage = setting.start().await;
    let mut stream = connect(&stage).await;
    for number in [1, 3, 5] {
        stream.write_all(&headers(number, END_STREAM, &GET)).await.unwrap();
    }
    assert_eq!(listen(&mut stream).await, Said::Reset);
    gate.open();
    assert_eq!([listen(&mut stream).await, listen(&mut stream).await], [Said::Headers, Said::Headers]);
    assert_eq!(origin.requests(), 1, "two share a fetch, and the third never was");
}

#[tokio::test(start_paused = true)]
async fn rfc9113_6_9_a_window_update_of_nothing_or_too_much_is_an_error() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    for increment in [0_u32, 0x7fff_ffff] {
        let mut stream = connect(&stage).await;
        stream.write_all(&frame(8, 0, 0, &increment.to_be_bytes())).await.unwrap();
        assert_eq!(listen(&mut stream).await, Said::GoAway, "{increment} for the connection");
        let mut stream = connect(&stage).await;
        let post = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
        stream.write_all(&headers(1, 0, &post)).await.unwrap();
        stream.write_all(&frame(8, 0, 1, &increment.to_be_bytes())).await.unwrap();
        assert_ne!(listen(&mut stream).await, Said::Headers, "{increment} for a stream");
    }
    // A window that stays shut holds an answer back, not the proxy.
    let mut stream = connect(&stage).await;
    stream.write_all(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])).await.unwrap();
    stream.write_all(&headers(1, END_STREAM, &GET)).await.unwrap();
    assert_eq!(listen(&mut stream).await, Said::Headers);
    assert_eq!(stage.get("/").await.text(), "ok");
}

#[tokio::test(start_paused = true)]
async fn rfc9113_frames_that_break_the_framing_end_the_connection() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let large = vec![0; 20_000];
    let mut count = 0.0;
    for (bad, what) in [
        (frame(0, 0, 0, b"x"), "DATA on stream 0"),
        (frame(0, 0, 5, b"x"), "DATA on an idle stream"),
        (frame(1, END_HEADERS, 0, &[0x82]), "HEADERS on stream 0"),
        (frame(1, END_HEADERS, 2, &[0x82, 0x86, 0x84, 1, 1, b'a']), "a stream of ours"),
        (frame(3, 0, 0, &[0; 4]), "RST_STREAM on stream 0"),
        (frame(3, 0, 7, &[0; 4]), "RST_STREAM of an idle stream"),
        (frame(3, 0, 1, &[0; 3]), "RST_STREAM of three bytes"),
        (frame(4, 0, 1, &[]), "SETTINGS on a stream"),
        (frame(4, 0, 0, &[0; 5]), "SETTINGS of five bytes"),
        (frame(4, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]), "a window that is too large"),
        (frame(4, 0, 0, &[0, 5, 0, 0, 0, 1]), "frames that are too small"),
        (frame(5, END_HEADERS, 1, &[0, 0, 0, 2]), "PUSH_PROMISE"),
        (frame(6, 0, 1, &[0; 8]), "PING on a stream"),
        (frame(6, 0, 0, &[0; 7]), "PING of seven bytes"),
        (frame(8, 0, 0, &[0; 3]), "WINDOW_UPDATE of three bytes"),
        (frame(9, END_HEADERS, 1, &[0x82]), "CONTINUATION of nothing"),
        (frame(99, 0, 0, &large), "a frame larger than announced"),
        (frame(1, END_STREAM | END_HEADERS, 1, &[0xff, 0xff, 0xff, 0xff, 0xff]), "HPACK without end"),
        (frame(1, END_STREAM | END_HEADERS, 1, &[0x80]), "HPACK index 0"),
        (frame(1, END_STREAM | END_HEADERS, 1, &[0xbe]), "HPACK index of nothing"),
        (frame(1, END_STREAM | END_HEADERS, 1, &[0x3f, 0xe1, 0xff, 0xff, 0x7f]), "a table too large"),
    ] {
        let mut stream = connect(&stage).await;
        stream.write_all(&bad).await.unwrap();
        let said = listen(&mut stream).await;
        assert!(matches!(said, Said::GoAway | Said::Closed), "{what}: {said:?}");
        count += 1.0;
        let malformed = "forebay_connections_refused_total{cause=\"malformed\"}";
        stage.until(|_| stage.telemetry.connections() == 0).await;
        assert_eq!(stage.metric(malformed), count, "{what}");
    }
    assert_eq!(witness.seen(), "");
    assert_eq!(stage.get("/").await.text(), "ok");
}

#[tokio::test(start_paused = true)]
async fn a_list_of_fields_that_is_too_large_is_refused() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let mut stream = connect(&stage).await;
    let mut block: Vec<u8> =
        GET.iter().flat_map(|(name, value)| literal(name.as_bytes(), value.as_bytes())).collect();
    // One field goes into the dynamic table, and is then named again and again: a byte each on the wire.
    block.extend([0x40, 1, b'x', 100]);
    block.extend([b'y'; 100]);
    block.extend([0xbe; 10_000]);
    stream.write_all(&frame(1, END_STREAM | END_HEADERS, 1, &block)).await.unwrap();
    listen(&mut stream).await;
    assert_eq!(witness.seen(), "");
}

#[tokio::test(start_paused = true)]
async fn a_preface_that_does_not_end_and_a_connection_without_requests_are_closed() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    for bytes in [&PREFACE[..10], &PREFACE[..20], PREFACE] {
        let mut stream = TcpStream::connect(stage.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let told = hear(&mut stream).await;
        assert!(told.after < Duration::from_secs(21), "{:?} after {:?}", told.text, told.after);
    }
}
