//! Requests that are malformed, ambiguous, or that ask for what no proxy should do.

use crate::peers::*;
use crate::support::*;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// What hides behind a bad request.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";

/// A request that gets this status at once, and then the end of the connection; the upstream gets nothing.
#[track_caller]
fn assert_refused(status: u16, request: &str, told: &Told, witness: &Witness) {
    let request = request.get(..request.len().min(300)).unwrap_or_default();
    assert_eq!(told.statuses(), [status], "{request:?}\n{}", told.text);
    assert!(told.after < Duration::from_secs(1), "closed only after {:?}: {request:?}", told.after);
    assert_eq!(witness.seen(), "", "{request:?}");
}

async fn check_refused(cases: &[(u16, &str)]) {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    for (status, request) in cases {
        let told = tell(stage.address, format!("{request}{HIDDEN}").as_bytes()).await;
        assert_refused(*status, request, &told, &witness);
    }
    assert_eq!(stage.get("/").await.text(), "ok", "the proxy goes on");
}

#[tokio::test(start_paused = true)]
async fn rfc9112_6_3_ambiguous_lengths_are_refused() {
    check_refused(&[
        (
            400,
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            400,
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        ),
        (400, "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding:chunked\r\ncontent-length:0\r\n\r\n0\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\nab"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 3\r\n\r\nabc"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\nab"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -2\r\n\r\nab"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x2\r\n\r\nab"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2 2\r\n\r\nab"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \"2\"\r\n\r\nab"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn rfc9112_6_1_transfer_codings_other_than_chunked_are_refused() {
    for (coding, statuses) in [
        ("chunked, chunked", &[400, 501][..]),
        ("identity", &[400, 501]),
        ("identity, chunked", &[400, 501]),
        ("xchunked", &[400, 501]),
        ("chunked, identity", &[400, 501]),
        (", chunked", &[400, 501]),
        ("chunked,", &[400, 501]),
        ("gzip, chunked", &[501]),
        ("chunked\r\nTransfer-Encoding: chunked", &[400, 501]),
        ("chunked\r\nTransfer-Encoding: identity", &[400, 501]),
        ("\"chunked\"", &[400, 501]),
        ("chunked;q=1", &[400, 501]),
        ("\x0bchunked", &[400]),
        ("", &[400, 501]),
    ] {
        let witness = Witness::start().await;
        let stage = Setting::before(witness.address).start().await;
        let request =
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n{HIDDEN}");
        let told = tell(stage.address, request.as_bytes()).await;
        assert!(statuses.contains(&told.statuses()[0]), "{coding:?}: {}", told.text);
        assert_refused(told.statuses()[0], &request, &told, &witness);
    }
    check_refused(&[(400, "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")])
        .await;
}

#[tokio::test(start_paused = true)]
async fn rfc9112_2_and_5_lines_and_fields_that_are_malformed_are_refused() {
    check_refused(&[
        // Bare line feeds and carriage returns.
        (400, "GET / HTTP/1.1\nHost: a\n\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\n\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"),
        (400, "GET / HTTP/1.1\rHost: a\r\n\r\n"),
        // Folded lines, and white space where none may be.
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX y: z\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX(: z\r\n\r\n"),
        // Control characters.
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX\0: a\r\n\r\n"),
        (400, "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "G\0T / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "G(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn rfc9112_2_3_and_3_versions_and_request_lines_that_are_malformed_are_refused() {
    check_refused(&[
        (400, "GET /\r\n"),
        (400, "GET / \r\n\r\n"),
        (400, "GET / HTTP/0.9\r\nHost: a\r\n\r\n"),
        (400, "GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
        (400, "GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
        (400, "GET / HTTP/3.0\r\nHost: a\r\n\r\n"),
        (400, "GET / HTTP/1.1.1\r\nHost: a\r\n\r\n"),
        (400, "GET / HTTP/01.1\r\nHost: a\r\n\r\n"),
        (400, "GET / http/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET / HTTX/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
        (400, "GET / x HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, " GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03\r\n\r\n"),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn rfc9112_3_2_hosts_that_are_missing_several_or_malformed_are_refused() {
    let mut cases = vec![
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(),
        "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(),
        "GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(),
    ];
    for host in [
        "",
        " ",
        "a b",
        "a,b",
        "a;b",
        "a=b",
        "a/b",
        "a?b",
        "a#b",
        "u@a",
        "u:p@a",
        "a:b",
        "a:-1",
        "a:65536",
        "a:80:80",
        ":80",
        "[::1",
        "::1",
        "[::1]x",
        "[g::1]",
        "[127.0.0.1]",
        "a\\b",
        "a\"b",
        "<a>",
        "\u{e9}",
        "a%",
        "a%zz",
        "a:+80",
    ] {
        cases.push(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    }
    let cases: Vec<_> = cases.iter().map(|case| (400, case.as_str())).collect();
    check_refused(&cases).await;
}

#[tokio::test(start_paused = true)]
async fn hosts_that_are_well_formed_are_served() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    for host in
        ["a", "a.", "A.Example:80", "a:", "[::1]", "[::1]:80", "127.0.0.1:8080", "xn--9ca", "a_b", "a%41"]
    {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(tell(stage.address, request.as_bytes()).await.statuses(), [200], "{host:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9112_3_2_targets_that_are_malformed_are_refused() {
    check_refused(&[
        (400, "GET a HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"),
        (400, "GET ?a HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET file:///etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET http://u:p@a/ HTTP/1.1\r\nHost: u:p@a\r\n\r\n"),
        (400, "GET /#fragment HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET http://a/#fragment HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET //\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET /a\u{7f} HTTP/1.1\r\nHost: a\r\n\r\n"),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn it_is_never_an_open_proxy() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let told = tell(stage.address, b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n\x16\x03\x01").await;
    assert_refused(405, "CONNECT", &told, &witness);
    let told = tell(stage.address, b"TRACE / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_refused(405, "TRACE", &told, &witness);
    let request =
        b"GET http://elsewhere.example/x?y HTTP/1.1\r\nHost: elsewhere.example\r\nConnection: close\r\n\r\n";
    assert_eq!(tell(stage.address, request).await.statuses(), [200]);
    let seen = witness.seen();
    assert!(seen.starts_with("GET /x?y HTTP/1.1\r\n"), "absolute-form is taken as origin-form: {seen}");
    assert!(seen.contains("host: elsewhere.example\r\n"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn chunks_that_are_malformed_never_become_a_whole_upload() {
    for chunks in [
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\nX y\r\n\r\n",
        "5\r\nhello\r\n0\r\nX : y\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5;\r\nhello\r\n00000000000000000000000000000000;\r\rx\r\n\r\n",
    ] {
        let witness = Witness::start().await;
        let stage = Setting::before(witness.address).start().await;
        let mut stream = TcpStream::connect(stage.address).await.unwrap();
        let request =
            format!("POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{HIDDEN}");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let told = hear(&mut stream).await;
        let seen = witness.seen();
        assert!(told.statuses().len() <= 1, "{chunks:?}: {}", told.text);
        assert!(!seen.contains("hidden"), "{chunks:?}: {seen}");
        assert!(!seen.contains("\r\n0\r\n\r\n"), "{chunks:?} looks complete: {seen}");
    }
}

#[tokio::test(start_paused = true)]
async fn chunk_extensions_and_trailers_are_not_passed_on() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5;secret=1\r\nhello\r\n0\r\nX-Trailer: 1\r\nContent-Length: 7\r\n\r\n";
    assert_eq!(tell(stage.address, request.as_bytes()).await.statuses(), [200]);
    let seen = witness.seen();
    assert!(!seen.contains("secret") && !seen.to_ascii_lowercase().contains("x-trailer"), "{seen}");
    assert!(seen.ends_with("5\r\nhello\r\n0\r\n\r\n"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_the_client_cuts_never_looks_complete_upstream() {
    for (framing, body) in [("Content-Length: 10", "hello"), ("Transfer-Encoding: chunked", "5\r\nhello\r\n")]
    {
        let (sender, mut ended) = tokio::sync::mpsc::unbounded_channel();
        let address = raw_origin(move |_, mut stream| {
            let sender = sender.clone();
            async move { drop(sender.send(hear(&mut stream).await.text)) }
        })
        .await;
        let stage = Setting::before(address).start().await;
        let mut stream = TcpStream::connect(stage.address).await.unwrap();
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        stage.until(|telemetry| telemetry.upstream(0).in_flight() == 1).await;
        drop(stream);
        let seen = ended.recv().await.unwrap();
        assert!(!seen.contains("\r\n0\r\n\r\n"), "{framing}: {seen}");
        assert!(!seen.ends_with("hellohello"), "{framing}: {seen}");
        assert!(seen.contains("POST / HTTP/1.1"), "{framing}: {seen}");
    }
}

#[tokio::test(start_paused = true)]
async fn good_requests_before_a_bad_one_are_answered_and_nothing_behind_it_is() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    for bad in [
        "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    ] {
        let good = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n";
        let told = tell(stage.address, format!("{good}{good}{bad}{HIDDEN}").as_bytes()).await;
        assert_eq!(told.statuses(), [200, 200, 400], "{bad:?}\n{}", told.text);
        assert!(!witness.seen().contains("hidden"), "{bad:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_behind_bodies_are_found_where_they_begin() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let requests = "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
        POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nX: y\r\n\r\n\
        GET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_eq!(tell(stage.address, requests.as_bytes()).await.statuses(), [200, 200, 200]);
}

#[tokio::test(start_paused = true)]
async fn connection_options_cannot_strip_what_a_message_rests_on() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: x\r\nX-Drop: y\r\nConnection: close, host, authorization, x-forwarded-for, x-drop\r\n\r\n";
    assert_eq!(tell(stage.address, request).await.statuses(), [200]);
    let seen = witness.seen();
    assert!(
        seen.contains("host: a\r\n")
            && seen.contains("authorization: x")
            && seen.contains("x-forwarded-for: "),
        "{seen}"
    );
    assert!(!seen.contains("x-drop"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn what_a_stranger_says_of_itself_is_replaced() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Forwarded-Port: 1\r\nConnection: close\r\n\r\n";
    assert_eq!(tell(stage.address, request).await.statuses(), [200]);
    let seen = witness.seen();
    assert!(!seen.contains("1.2.3.4") && !seen.contains("evil") && !seen.contains("https"), "{seen}");
    assert!(!seen.contains("x-forwarded-port"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn unkeyed_fields_cannot_poison_a_shared_fetch() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    for name in [
        "X-HTTP-Method-Override",
        "X-HTTP-Method",
        "X-Method-Override",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Original-Host",
        "X-Host",
        "X-Forwarded-Scheme",
        "X-Forwarded-Prefix",
        "X-Forwarded-Server",
        "X-Forwarded-Port",
        "X-Real-IP",
        "True-Client-IP",
        "Forwarded-Host",
        "X-Forwarded",
        "X-Original-Forwarded-For",
    ] {
        let request =
            format!("GET /{name} HTTP/1.1\r\nHost: a\r\n{name}: poison\r\nConnection: close\r\n\r\n");
        assert_eq!(tell(stage.address, request.as_bytes()).await.statuses(), [200]);
    }
    assert!(!witness.seen().contains("poison"), "{}", witness.seen());
}

#[tokio::test(start_paused = true)]
async fn a_get_with_a_body_is_not_cached() {
    let origin = Origin::cacheable(0).await;
    let stage = Stage::before(&origin).await;
    let request =
        b"GET / HTTP/1.1\r\nHost: site.example\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    assert!(tell(stage.address, request).await.text.contains("#1"));
    assert!(tell(stage.address, request).await.text.contains("#2"));
    assert!(stage.get("/").await.text().contains("#3"));
}
