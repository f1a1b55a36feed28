use super::*;
use crate::upstream::Urgency;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use std::future::poll_fn;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

fn outgoing(method: Method, fields: &[(&'static str, &'static str)]) -> Outgoing {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_static(value));
    }
    Outgoing {
        method,
        target: PathAndQuery::from_static("/a?b"),
        headers: headers.into(),
        added: Vec::new(),
        host: Some(HeaderValue::from_static("a.example")),
        upgrade: false,
        affinity: 0,
        urgency: Urgency::Foreground,
        written: None,
    }
}

fn origin() -> Origin {
    Origin { https: false, host: "origin.example".to_owned(), port: 8080 }
}

async fn ask(stream: DuplexStream, method: Method) -> Result<Response<Incoming>, Failed> {
    send(stream, &outgoing(method, &[]), RequestBody::Empty).await
}

async fn send(
    stream: DuplexStream,
    outgoing: &Outgoing,
    body: RequestBody,
) -> Result<Response<Incoming>, Failed> {
    let mut asking = Line::new(stream, 4096).ask(outgoing, &origin(), body);
    let answered = poll_fn(|context| asking.poll_head(context, &outgoing.method, &mut |_| false)).await;
    answered.map(|(head, incoming)| head.with(incoming))
}

/// What is made of these bytes, however they are cut into pieces: the status and the body, or what is wrong. `true`: the
/// connection may serve again.
async fn read(method: &Method, bytes: &str) -> (Result<(u16, String), String>, bool) {
    let mut read = None;
    for piece in [1, 2, 3, 7, bytes.len().max(1)] {
        let (stream, mut peer) = tokio::io::duplex(piece);
        let answering = async {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(peer.read_u8().await.unwrap());
            }
            // Whoever refuses an answer does not read it to its end.
            let _ = peer.write_all(bytes.as_bytes()).await;
            let _ = peer.shutdown().await;
            let _ = peer.read_to_end(&mut request).await;
        };
        let asking = async {
            let mut response = match ask(stream, method.clone()).await {
                Ok(response) => response,
                Err(Failed { error: Error::Malformed(flaw), .. }) => return (Err(flaw.to_owned()), false),
                Err(failed) => return (Err(failed.error.to_string()), false),
            };
            let status = response.status().as_u16();
            let mut body = Vec::new();
            while let Some(frame) = response.body_mut().frame().await {
                match frame {
                    Ok(frame) => body.extend_from_slice(&frame.into_data().unwrap_or_default()),
                    Err(fault) => {
                        return (Err(fault.to_string()), response.into_body().into_line().is_some());
                    }
                }
            }
            let body = String::from_utf8(body).unwrap();
            (Ok((status, body)), response.into_body().into_line().is_some())
        };
        let (asked, ()) = tokio::join!(asking, answering);
        if let Some(before) = &read {
            assert_eq!(before, &asked, "{bytes:?} by {piece}");
        }
        read = Some(asked);
    }
    read.unwrap()
}

#[track_caller]
fn check(bytes: &str, expected: Result<(u16, &str), &str>, is_kept: bool) {
    check_of(&Method::GET, bytes, expected, is_kept);
}

#[track_caller]
fn check_of(method: &Method, bytes: &str, expected: Result<(u16, &str), &str>, is_kept: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (read, kept) = runtime.block_on(read(method, bytes));
    let read = read.as_ref().map(|(status, body)| (*status, body.as_str())).map_err(String::as_str);
    match (read, expected) {
        (Err(told), Err(expected)) => assert!(told.contains(expected), "{bytes:?}: {told}"),
        _ => assert_eq!(read, expected, "{bytes:?}"),
    }
    assert_eq!(kept, is_kept, "{bytes:?}");
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn rfc9112_6_3_a_body_ends_where_its_framing_says() {
    check(&format!("{OK}ok"), Ok((200, "ok")), true);
    check("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Ok((200, "")), true);
    check(&format!("{CHUNKED}2\r\nok\r\n3;a=b\r\n...\r\n0\r\n\r\n"), Ok((200, "ok...")), true);
    check(&format!("{CHUNKED}2\r\nok\r\n0\r\nx: y\r\n\r\n"), Ok((200, "ok")), true);
    check("HTTP/1.1 200 OK\r\n\r\nto the end\n", Ok((200, "to the end\n")), false);
    check("HTTP/1.0 200\r\n\r\n", Ok((200, "")), false);
}

#[test]
fn rfc9112_6_3_some_responses_have_no_body_whatever_they_say() {
    for head in ["HTTP/1.1 204 No Content", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9"] {
        let status = head[9..12].parse().unwrap();
        check(&format!("{head}\r\n\r\n"), Ok((status, "")), true);
    }
    check_of(&Method::HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", Ok((200, "")), true);
    check_of(&Method::HEAD, "HTTP/1.1 200 OK\r\n\r\n", Ok((200, "")), true);
}

#[test]
fn rfc9112_9_3_a_connection_persists_unless_somebody_says_otherwise() {
    let with = |version, options| format!("HTTP/1.{version} 200 OK\r\nContent-Length: 2\r\n{options}\r\nok");
    for (version, options, is_kept) in [
        (1, "Connection: keep-alive\r\n", true),
        (1, "Connection: close\r\n", false),
        (1, "Connection: x, Close\r\n", false),
        (1, "Connection: x\r\nConnection: close\r\nConnection: keep-alive\r\n", false),
        (0, "", false),
        (0, "Connection: Keep-Alive\r\n", true),
        (0, "Connection: keep-alive, close\r\n", false),
    ] {
        check(&with(version, options), Ok((200, "ok")), is_kept);
    }
}

#[test]
fn rfc9112_2_2_a_bare_line_feed_ends_no_line() {
    for bytes in [
        "HTTP/1.1 200 OK\nA: b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n\n",
        &format!("{HINTS}HTTP/1.1 200 OK\n\n"),
        &format!("{CHUNKED}0\r\nx: y\n\r\n"),
    ] {
        check(bytes, Err("a line without CRLF at its end"), false);
    }
}

#[test]
fn nothing_stands_before_a_status_line() {
    for bytes in [&format!("\r\n{OK}"), &format!("\n{OK}"), &format!("{HINTS}\r\n{OK}"), "ok"] {
        check(bytes, Err("something before the status line"), false);
    }
}

#[test]
fn rfc9110_15_2_interim_responses_are_followed_by_another_head_but_not_for_ever() {
    check(&format!("{}{OK}ok", HINTS.repeat(100)), Ok((200, "ok")), true);
    check(&HINTS.repeat(101), Err("a flood of interim responses"), false);
}

#[test]
fn what_is_no_head_is_refused() {
    let fields = "A: b\r\n".repeat(101);
    let long = "x".repeat(5000);
    for (bytes, flaw) in [
        ("HTTP/1.1 OK\r\n\r\n", "a malformed status line"),
        ("HTTP/2.0 200 OK\r\n\r\n", "a malformed status line"),
        ("HTTP/1.1 99 OK\r\n\r\n", "a malformed status line"),
        ("HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "a malformed field"),
        ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "a malformed field"),
        ("HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n", "a malformed field"),
        (&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), "too many fields"),
        (&format!("HTTP/1.1 200 OK\r\nA: {long}"), "a head that is too large"),
    ] {
        check(bytes, Err(flaw), false);
    }
}

#[test]
fn framing_that_two_readers_may_understand_differently_is_refused() {
    for (fields, flaw) in [
        ("Content-Length: 2\r\nContent-Length: 2", "more than one Content-Length"),
        ("Content-Length: +2", "a malformed Content-Length"),
        ("Content-Length: 2, 2", "a malformed Content-Length"),
        ("Content-Length:", "a malformed Content-Length"),
        ("Content-Length: 99999999999999999999", "a malformed Content-Length"),
        ("Content-Length: 2\r\nTransfer-Encoding: chunked", "both Content-Length and Transfer-Encoding"),
        ("Transfer-Encoding: gzip", "a transfer coding other than chunked"),
        ("Transfer-Encoding: gzip, chunked", "a transfer coding other than chunked"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "a transfer coding other than chunked"),
    ] {
        check(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nok"), Err(flaw), false);
    }
    let coded = "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    check(coded, Err("a transfer coding over HTTP/1.0"), false);
}

#[test]
fn a_body_that_ends_elsewhere_than_it_says_breaks() {
    check(&format!("{OK}o"), Err("it ended too early"), false);
    check(OK, Err("it ended too early"), false);
    check(&format!("{CHUNKED}2\r\nok\r\n"), Err("it ended too early"), false);
    check(&format!("{CHUNKED}2\r\nok\r\n0\r\n"), Err("it ended too early"), false);
    check(&format!("{CHUNKED}2\r\nokX"), Err("a malformed chunk"), false);
    check(&format!("{CHUNKED}+2\r\n"), Err("a malformed chunk"), false);
    check(&format!("{CHUNKED}0\r\nx y\r\n\r\n"), Err("a malformed trailer"), false);
    let long = "x".repeat(20_000);
    check(&format!("{CHUNKED}2;{long}\r\n"), Err("chunk extensions without end"), false);
    check(&format!("{CHUNKED}0\r\nx: {long}"), Err("trailers without end"), false);
}

#[tokio::test]
async fn what_follows_an_answer_breaks_it_or_spoils_the_connection() {
    for answer in [
        format!("{OK}ok."),
        format!("{CHUNKED}2\r\nok\r\n0\r\n\r\n."),
        "HTTP/1.1 204 No Content\r\n\r\n.".to_owned(),
    ] {
        let (stream, mut peer) = tokio::io::duplex(1024);
        peer.write_all(answer.as_bytes()).await.unwrap();
        let whole = match ask(stream, Method::GET).await {
            Ok(response) => response.into_body().collect().await.is_ok(),
            Err(_) => false,
        };
        assert!(!whole, "{answer:?}");
    }
    let (stream, mut peer) = tokio::io::duplex(1024);
    peer.write_all(format!("{OK}ok").as_bytes()).await.unwrap();
    let mut response = ask(stream, Method::GET).await.unwrap();
    assert_eq!(response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "ok");
    let mut line = response.into_body().into_line().unwrap();
    let mut context = Context::from_waker(std::task::Waker::noop());
    assert!(line.poll_spoiled(&mut context).is_pending());
    peer.write_all(b".").await.unwrap();
    assert!(line.poll_spoiled(&mut context).is_ready());
}

#[tokio::test]
async fn trailers_come_behind_the_body() {
    let (stream, mut peer) = tokio::io::duplex(1024);
    peer.write_all(format!("{CHUNKED}2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n").as_bytes()).await.unwrap();
    let body = ask(stream, Method::GET).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-sum"], "7");
    assert_eq!(body.to_bytes(), "ok");
}

/// What arrives at the upstream of a request.
async fn sent(outgoing: &Outgoing, body: RequestBody) -> String {
    let (stream, mut peer) = tokio::io::duplex(64);
    let mut seen = Vec::new();
    let reading = async {
        let mut piece = [0; 64];
        while !seen.ends_with(b"\r\n\r\n") && !seen.ends_with(b"body") {
            let read = peer.read(&mut piece).await.unwrap();
            seen.extend_from_slice(&piece[..read]);
        }
        peer.write_all(OK.as_bytes()).await.unwrap();
    };
    let (response, ()) = tokio::join!(send(stream, outgoing, body), reading);
    assert_eq!(response.unwrap().status(), StatusCode::OK);
    String::from_utf8(seen).unwrap()
}

#[tokio::test]
async fn a_request_names_its_host_first_and_frames_its_body_itself() {
    let get = outgoing(Method::GET, &[("accept", "*/*"), ("content-length", "4"), ("connection", "x")]);
    assert_eq!(
        sent(&get, RequestBody::Empty).await,
        "GET /a?b HTTP/1.1\r\nhost: a.example\r\naccept: */*\r\n\r\n"
    );
    let post = outgoing(Method::POST, &[("content-length", "0"), ("te", "trailers")]);
    assert_eq!(
        sent(&post, RequestBody::Empty).await,
        "POST /a?b HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0\r\nte: trailers\r\nconnection: te\r\n\r\n"
    );
    let mut buffered = outgoing(Method::POST, &[("content-length", "9"), ("transfer-encoding", "chunked")]);
    buffered.host = None;
    assert_eq!(
        sent(&buffered, RequestBody::Buffered(Bytes::from_static(b"body"))).await,
        "POST /a?b HTTP/1.1\r\nhost: origin.example:8080\r\ncontent-length: 4\r\n\r\nbody"
    );
    let mut upgrade = outgoing(Method::GET, &[("upgrade", "websocket"), ("connection", "upgrade")]);
    upgrade.upgrade = true;
    Arc::make_mut(&mut upgrade.headers).remove(header::TE);
    assert_eq!(
        sent(&upgrade, RequestBody::Empty).await,
        "GET /a?b HTTP/1.1\r\nhost: a.example\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
    );
}

#[tokio::test]
async fn what_was_not_sent_comes_back() {
    let (stream, peer) = tokio::io::duplex(64);
    drop(peer);
    let body = RequestBody::Buffered(Bytes::from_static(b"body"));
    let failed = send(stream, &outgoing(Method::POST, &[]), body).await.unwrap_err();
    assert!(matches!(failed.error, Error::Closed(_)) && failed.is_silent, "{failed:?}");
    assert!(matches!(failed.unsent, Some(RequestBody::Buffered(body)) if body == "body"));
}

#[tokio::test]
async fn what_comes_in_small_pieces_keeps_little_memory_alive() {
    for head in [CHUNKED, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
        let (stream, mut peer) = tokio::io::duplex(1024);
        peer.write_all(head.as_bytes()).await.unwrap();
        let mut response = ask(stream, Method::GET).await.unwrap();
        let mut pieces = Vec::new();
        for _ in 0..1000 {
            peer.write_all(if head == CHUNKED { b"1\r\nx\r\n" } else { b"x" }).await.unwrap();
            pieces.push(response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap());
        }
        let mut places: Vec<_> = pieces.iter().map(|piece| piece.as_ptr().addr()).collect();
        places.sort_unstable();
        let buffers = 1 + places.windows(2).filter(|pair| pair[1] - pair[0] > 10).count();
        assert!(buffers <= 3, "{buffers} buffers for 1000 bytes");
    }
}
