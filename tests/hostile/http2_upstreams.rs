//! HTTP/2 upstreams that break the rules, frame by frame (RFC 9113).

use crate::http2::{END_STREAM, PREFACE, frame, headers};
use crate::support::*;
use forebay::upstream::Protocol;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Reads frames until a head has come; returns its stream. `None` if the connection ends.
async fn request_head(stream: &mut TcpStream) -> Option<u32> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.ok()?;
        match head[3] {
            1 => return Some(u32::from_be_bytes([head[5], head[6], head[7], head[8]])),
            // Settings are acknowledged.
            4 if head[4] == 0 => stream.write_all(&frame(4, 1, 0, &[])).await.ok()?,
            _ => {}
        }
    }
}

/// An origin that answers each request with these pieces, one after the other has arrived, and then does no more. The count is
/// that of its connections.
async fn scripted(
    answer: impl Fn(u32) -> Vec<Vec<u8>> + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let (answer, connections) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&connections);
    let address = raw_origin(move |_, mut stream| {
        let answer = Arc::clone(&answer);
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            stream.set_nodelay(true).unwrap();
            let mut preface = vec![0; PREFACE.len()];
            let _ = stream.read_exact(&mut preface).await;
            let _ = stream.write_all(&frame(4, 0, 0, &[])).await;
            while let Some(id) = request_head(&mut stream).await {
                for piece in answer(id) {
                    let _ = stream.write_all(&piece).await;
                    // Nothing else moves the clock: who reads it has read it then.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    })
    .await;
    (address, connections)
}

fn setting(origin: SocketAddr) -> Setting {
    let mut setting = Setting::before(origin);
    setting.upstream.protocol = Protocol::Http2;
    setting.upstream.head_timeout = Duration::from_secs(3);
    setting.upstream.between_bytes_timeout = Duration::from_secs(3);
    setting.upstream.retries = 0;
    setting.coalescing.error_backoff = (Duration::ZERO, Duration::ZERO);
    setting
}

const CACHEABLE: [(&str, &str); 2] = [(":status", "200"), ("cache-control", "max-age=60")];

fn reset(id: u32, code: u32) -> Vec<u8> {
    frame(3, 0, id, &code.to_be_bytes())
}

#[tokio::test(start_paused = true)]
async fn bodies_that_break_are_seen_to_break_and_are_not_stored() {
    type Script = fn(u32) -> Vec<Vec<u8>>;
    let cases: [(&str, Script); 7] = [
        ("reset with NO_ERROR", |id| {
            vec![headers(id, 0, &CACHEABLE), frame(0, 0, id, b"hello"), reset(id, 0)]
        }),
        ("reset with CANCEL", |id| vec![headers(id, 0, &CACHEABLE), frame(0, 0, id, b"hello"), reset(id, 8)]),
        ("reset with INTERNAL_ERROR", |id| {
            vec![headers(id, 0, &CACHEABLE), frame(0, 0, id, b"hello"), reset(id, 2)]
        }),
        ("a stall", |id| vec![headers(id, 0, &CACHEABLE), frame(0, 0, id, b"hello")]),
        ("too short", |id| {
            let fields = [CACHEABLE[0], CACHEABLE[1], ("content-length", "10")];
            vec![headers(id, 0, &fields), frame(0, END_STREAM, id, b"hello")]
        }),
        ("too long", |id| {
            let fields = [CACHEABLE[0], CACHEABLE[1], ("content-length", "2")];
            vec![headers(id, 0, &fields), frame(0, END_STREAM, id, b"hello")]
        }),
        ("short and reset with NO_ERROR", |id| {
            let fields = [CACHEABLE[0], CACHEABLE[1], ("content-length", "10")];
            vec![headers(id, 0, &fields), frame(0, 0, id, b"hello"), reset(id, 0)]
        }),
    ];
    for (what, script) in cases {
        let (address, _) = scripted(script).await;
        let stage = setting(address).start().await;
        for method in ["GET", "POST"] {
            let whole = match stage.client().await.try_send(request(method, "/", &[])).await {
                Ok(head) if head.status() == 502 => continue,
                Ok(head) => head.try_whole().await,
                Err(error) => Err(error),
            };
            assert!(whole.is_err(), "{what}: {method} looks complete: {whole:?}");
        }
        stage.until(|telemetry| telemetry.flights() == 0).await;
        assert_eq!(stage.metric("forebay_store_entries"), 0.0, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_is_whole_whatever_becomes_of_its_stream() {
    type Script = fn(u32) -> Vec<Vec<u8>>;
    let cases: [(&str, Script); 4] = [
        ("an end", |id| vec![headers(id, 0, &CACHEABLE), frame(0, END_STREAM, id, b"hello")]),
        ("an end of its own", |id| {
            vec![headers(id, 0, &CACHEABLE), frame(0, 0, id, b"hello"), frame(0, END_STREAM, id, b"")]
        }),
        ("trailers", |id| {
            vec![
                headers(id, 0, &CACHEABLE),
                frame(0, 0, id, b"hello"),
                headers(id, END_STREAM, &[("x-checksum", "1")]),
            ]
        }),
        ("its length and a reset", |id| {
            let fields = [CACHEABLE[0], CACHEABLE[1], ("content-length", "5")];
            vec![headers(id, 0, &fields), frame(0, 0, id, b"hello"), reset(id, 0)]
        }),
    ];
    for (what, script) in cases {
        let (address, connections) = scripted(script).await;
        let stage = setting(address).start().await;
        assert_eq!(stage.get("/").await.text(), "hello", "{what}");
        assert_eq!(stage.get("/").await.cache_status(), "hit; ttl=60", "{what}");
        assert_eq!(connections.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn heads_that_are_malformed_are_502_or_504() {
    type Script = fn(u32) -> Vec<Vec<u8>>;
    let cases: [(&str, Script); 9] = [
        ("no status", |id| vec![headers(id, END_STREAM, &[("x", "y")])]),
        ("a status that is none", |id| vec![headers(id, END_STREAM, &[(":status", "20")])]),
        ("a status that is too high", |id| {
            vec![headers(id, END_STREAM, &[(":status", "600"), ("cache-control", "max-age=60")])]
        }),
        ("a capital letter", |id| vec![headers(id, END_STREAM, &[(":status", "200"), ("X", "y")])]),
        ("a field of connections", |id| {
            vec![headers(id, END_STREAM, &[(":status", "200"), ("transfer-encoding", "chunked")])]
        }),
        ("a line feed in a value", |id| {
            vec![headers(id, END_STREAM, &[(":status", "200"), ("x", "a\nb: c")])]
        }),
        ("a body before its head", |id| vec![frame(0, END_STREAM, id, b"hello")]),
        ("a reset", |id| vec![reset(id, 2)]),
        ("no HTTP/2 at all", |_| vec![b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec()]),
    ];
    for (what, script) in cases {
        let (address, _) = scripted(script).await;
        let stage = setting(address).start().await;
        for method in ["GET", "POST"] {
            let answer = stage.send(method, "/", &[]).await;
            assert!(matches!(answer.status, 502 | 504), "{what}: {answer:?}");
        }
        assert_eq!(stage.metric("forebay_store_entries"), 0.0, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_interim_answers_or_of_continuations_ends() {
    type Script = fn(u32) -> Vec<Vec<u8>>;
    let cases: [(&str, Script); 2] = [
        ("interim", |id| vec![headers(id, 0, &[(":status", "103")]).repeat(1000); 100]),
        ("continuations", |id| {
            let mut frames = frame(1, 0, id, b"");
            frames.extend(frame(9, 0, id, b"").repeat(10_000));
            vec![frames; 10]
        }),
    ];
    for (what, script) in cases {
        let (address, _) = scripted(script).await;
        let stage = setting(address).start().await;
        let answer = stage.get("/").await;
        assert!(matches!(answer.status, 502 | 504), "{what}: {answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_connection_that_another_makes_waits_no_longer_than_for_one_of_its_own() {
    let mut setting = setting(SocketAddr::from(([127, 0, 0, 1], 1)));
    setting.upstream.connect_timeout = Duration::from_secs(5);
    setting.transport = forebay::upstream::Transport::Memory(Arc::new(|_| Box::pin(std::future::pending())));
    let stage = setting.start().await;
    let started = tokio::time::Instant::now();
    let asking = (0..4).map(|number| stage.spawn_get(&format!("/{number}"), &[])).collect::<Vec<_>>();
    for asked in asking {
        assert_eq!(asked.await.unwrap().status, 504);
    }
    assert_eq!(started.elapsed().as_secs(), 5);
}
