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
        (400, "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
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
        "GET http://a/ HTTP/1.1\r\n\r\n".to_owned(),
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
async fn a_host_that_no_route_names_reaches_nobody_and_gets_404_or_421() {
    for (unmatched, status) in
        [(forebay::proxy::Unmatched::NotFound, 404), (forebay::proxy::Unmatched::Misdirected, 421)]
    {
        let witness = Witness::start().await;
        let mut setting = Setting::before(witness.address);
        setting.host = Some("known.example");
        setting.proxy.unmatched = unmatched;
        let stage = setting.start().await;
        for target in ["/", "http://other.example/"] {
            let request =
                format!("GET {target} HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n");
            assert_refused(status, &request, &tell(stage.address, request.as_bytes()).await, &witness);
        }
        for host in ["known.example", "KNOWN.example", "known.example:80"] {
            let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            assert_eq!(tell(stage.address, request.as_bytes()).await.statuses(), [200], "{host}");
        }
    }
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

/// Chunked bodies, each with a flaw, by what of it is sound.
const FLAWED_CHUNKS: [(&str, &str); 34] = [
    ("", "+5\r\nhello\r\n0\r\n\r\n"),
    ("", "-5\r\nhello\r\n0\r\n\r\n"),
    ("", "0x5\r\nhello\r\n0\r\n\r\n"),
    ("", " 5\r\nhello\r\n0\r\n\r\n"),
    ("", "g\r\nhello\r\n0\r\n\r\n"),
    ("", "\r\nhello\r\n0\r\n\r\n"),
    ("", "5\nhello\r\n0\r\n\r\n"),
    ("", "5\rhello\r\n0\r\n\r\n"),
    ("", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
    ("", "5;a\0b\r\nhello\r\n0\r\n\r\n"),
    ("", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
    ("", "5 5\r\nhello\r\n0\r\n\r\n"),
    ("", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("5\r\nhello", "\n0\r\n\r\n"),
    ("5\r\nhello", "\rX0\r\n\r\n"),
    ("5\r\nhello", "X\r\n0\r\n\r\n"),
    ("5\r\nhello\r\n", "\n0\r\n\r\n"),
    ("5\r\nhello\r\n", "+0\r\n\r\n"),
    ("5\r\nhello\r\n", "00;\r\rx\r\n\r\n"),
    ("5\r\nhello\r\n", "0\n\r\n"),
    ("5\r\nhello\r\n", "0\r\n\n"),
    ("5\r\nhello\r\n", "0\r\n\rX"),
    ("5\r\nhello\r\n", "0\r\nX y\r\n\r\n"),
    ("5\r\nhello\r\n", "0\r\nX : y\r\n\r\n"),
    ("5\r\nhello\r\n", "0\r\nX: y\n\r\n"),
    ("5\r\nhello\r\n", "0\r\nX: y\nZ: z\r\n\r\n"),
    ("5\r\nhello\r\n", "0\r\nX: y\r\nZ: z\n\r\n"),
    ("5\r\nhello\r\n", "0\r\nX: y\r\n\n"),
    ("5\r\nhello\r\n", "0\r\nX: a\rb\r\n\r\n"),
    ("5\r\nhello\r\n", "0\r\nX: a\0b\r\n\r\n"),
    ("5\r\nhello\r\n", "0\r\nX: y\r\n z\r\n\r\n"),
    ("", "5 \r\nhello\r\n0\r\n\r\n"),
    ("5\r\nhello\r\n", "0\t\r\n\r\n"),
    ("", "5;a=\"b\r\nhello\r\n0\r\n\r\n"),
];

const CHUNKED: &str = "POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn rfc9112_7_1_a_flaw_in_chunks_that_come_with_their_head_keeps_all_of_it_from_the_upstream() {
    let requests: Vec<_> =
        FLAWED_CHUNKS.iter().map(|(sound, flawed)| format!("{CHUNKED}{sound}{flawed}")).collect();
    let cases: Vec<_> = requests.iter().map(|request| (400, request.as_str())).collect();
    check_refused(&cases).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9112_7_1_a_flaw_in_chunks_that_come_later_breaks_the_upload_off() {
    for (sound, flawed) in FLAWED_CHUNKS {
        let (sender, mut ended) = tokio::sync::mpsc::unbounded_channel();
        let (began, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let address = raw_origin(move |_, mut stream| {
            let (sender, began) = (sender.clone(), began.clone());
            async move {
                let head = read_head(&mut stream).await;
                began.send(()).unwrap();
                let rest = hear(&mut stream).await;
                sender.send((head, rest.text)).unwrap();
            }
        })
        .await;
        let stage = Setting::before(address).start().await;
        let mut stream = TcpStream::connect(stage.address).await.unwrap();
        stream.write_all(CHUNKED.as_bytes()).await.unwrap();
        begun.recv().await.unwrap();
        stream.write_all(format!("{sound}{flawed}{HIDDEN}").as_bytes()).await.unwrap();
        let told = hear(&mut stream).await;
        assert_eq!(told.statuses(), [400], "{sound:?} {flawed:?}: {}", told.text);
        assert!(told.after < Duration::from_secs(1), "{flawed:?}: closed only after {:?}", told.after);
        let (head, body) = ended.recv().await.unwrap();
        assert!(head.starts_with("POST /up HTTP/1.1\r\n"), "{head}");
        assert!(["", "5\r\nhello\r\n"].contains(&body.as_str()), "{sound:?} {flawed:?}: {body:?}");
        assert!(begun.try_recv().is_err(), "{flawed:?}: a second request");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flaw_in_the_chunks_of_a_later_request_leaves_those_before_it_alone() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let good = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n";
    let told = tell(stage.address, format!("{good}{good}{CHUNKED}0\r\nX: y\n\r\n{HIDDEN}").as_bytes()).await;
    assert_eq!(told.statuses(), [200, 200, 400], "{}", told.text);
    assert!(!witness.seen().contains("/up") && !witness.seen().contains("hidden"), "{}", witness.seen());
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_is_too_large_to_be_true_never_becomes_a_whole_upload() {
    let witness = Witness::start().await;
    let stage = Setting::before(witness.address).start().await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    let request = format!("{CHUNKED}ffffffffffffffff\r\nhello\r\n0\r\n\r\n{HIDDEN}");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(hear(&mut stream).await.statuses().len() <= 1);
    let seen = witness.seen();
    assert!(!seen.contains("GET /hidden") || seen.contains("hello\r\n0"), "it is data: {seen}");
    assert!(!seen.ends_with("\r\n0\r\n\r\n"), "it looks complete: {seen}");
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

#[tokio::test(start_paused = true)]
async fn routes_key_and_upstream_see_the_same_path() {
    let origin = Origin::cacheable(0).await;
    let stage = Stage::before(&origin).await;
    for path in ["/b/c", "/a/../b/c", "/b/./c", "/a/%2e%2E/b/c", "/../b/c"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let told = tell(stage.address, request.as_bytes()).await;
        assert!(told.text.ends_with("/b/c #1 "), "{path}: {}", told.text);
    }
    assert_eq!(origin.requests(), 1);
    let mut setting = Setting::before(origin.address);
    setting.proxy.paths = forebay::proxy::Paths {
        dot_segments: forebay::proxy::DotSegments::Refuse,
        encoded_slashes: forebay::proxy::EncodedSlashes::Refuse,
        merge_slashes: true,
    };
    let stage = setting.start().await;
    for path in ["/a/../b", "/%2e%2e/b", "/a%2fb", "/a%5Cb"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n{HIDDEN}");
        assert_eq!(tell(stage.address, request.as_bytes()).await.statuses(), [400], "{path}");
    }
    assert_eq!(origin.requests(), 1);
    let told = tell(stage.address, b"GET //x//y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(told.text.contains("/x/y #2"), "{}", told.text);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_is_made_to_look_like_a_static_file_is_not_shared() {
    let origin = Origin::start(|number, request| async move {
        let kind = if request.uri().path().starts_with("/account") { "text/html" } else { "text/css" };
        let fields = [("cache-control", "max-age=60"), ("content-type", kind)];
        page(200, &fields, format!("#{number}"))
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.rules.guard_extensions = true;
    let stage = setting.start().await;
    assert_eq!(stage.get("/account/x.css").await.text(), "#1");
    let second = stage.get("/account/x.css").await;
    assert_eq!(second.text(), "#2");
    assert_eq!(stage.get("/x.css").await.text(), "#3");
    assert_eq!(stage.get("/x.css").await.text(), "#3");
}
