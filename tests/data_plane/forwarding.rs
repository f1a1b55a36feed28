//! Which fields and messages travel on (RFC 9110 §7.6, §7.8, §9, §10.1.1).

use crate::scene::*;
use crate::support::*;
use forebay::proxy::{HostHeader, Network};
use http::HeaderMap;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The fields with which a request arrives at the origin: of a shared fetch, and of a request that goes alone.
async fn arrived(scene: &Scene, fields: &str) -> [HeaderMap; 2] {
    let shared = scene.page(&["Cache-Control: max-age=60"]);
    scene.ask(&shared, fields).await;
    let alone = scene.page(&[""]);
    scene.ask(&alone, &format!("FOO\n{fields}")).await;
    [scene.asked(&shared, 1).1, scene.asked(&alone, 1).1]
}

/// All lines of a field, joined.
fn field(headers: &HeaderMap, name: &str) -> String {
    let lines: Vec<_> = headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
    lines.join(" | ")
}

#[tokio::test(start_paused = true)]
async fn rfc9110_7_6_1_fields_of_the_connection_stay_behind() {
    let scene = Scene::new().await;
    let fields = "Connection: X-Named, x-too\nX-Named: 1\nX-Too: 2\nKeep-Alive: timeout=5\nProxy-Connection: keep-alive\n\
                  Proxy-Authorization: Basic YTpi\nTE: gzip, trailers\nX-Other: 3";
    for headers in arrived(&scene, fields).await {
        for name in ["x-named", "x-too", "keep-alive", "proxy-connection", "proxy-authorization", "upgrade"] {
            assert!(!headers.contains_key(name), "{name} travelled on");
        }
        assert_eq!(
            ["te", "connection", "x-other"].map(|name| field(&headers, name)),
            ["trailers", "te", "3"],
            "what the proxy says for itself"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_added_cannot_be_stripped_by_naming_it() {
    let scene = Scene::new().await;
    let fields = "Connection: host, cookie, authorization, x-forwarded-for, via, accept\nAuthorization: Basic YTpi\n\
                  Cookie: a=1\nAccept: a/b\nVia: 1.1 outer";
    for headers in arrived(&scene, fields).await {
        assert_eq!(field(&headers, "host"), "site.example");
        assert_eq!(field(&headers, "authorization"), "Basic YTpi");
        assert_eq!(field(&headers, "cookie"), "a=1");
        assert_eq!(field(&headers, "x-forwarded-for"), "127.0.0.1");
        assert_eq!(field(&headers, "via"), "1.1 outer | 1.1 forebay");
        assert!(!headers.contains_key("accept"));
    }
    let target = scene.page(&["Connection: cache-control, etag, set-cookie, age\nCache-Control: no-store\nETag: \"a\"\nSet-Cookie: a=1"]);
    let page = scene.get(&target).await;
    assert_eq!(
        ["cache-control", "etag", "set-cookie"].map(|name| page.header(name)),
        ["no-store", "\"a\"", "a=1"]
    );
}

#[tokio::test(start_paused = true)]
async fn rfc9110_7_6_3_via_names_the_version_that_was_received() {
    let scene = Scene::new().await;
    let target = scene.page(&["Cache-Control: no-store"]);
    let answer =
        raw(scene.stage.address, &format!("GET {target} HTTP/1.0\r\nHost: site.example\r\n\r\n")).await;
    assert_eq!(scene.asked(&target, 1).1["via"], "1.0 forebay");
    assert!(answer.contains("\r\nvia: 1.1 forebay\r\n"), "{answer}");
    let scene = Scene::with(|setting| setting.proxy.forwarded.via = false).await;
    let target = scene.page(&["Cache-Control: max-age=60"]);
    assert!(!scene.get(&target).await.headers.contains_key("via"));
    assert!(!scene.asked(&target, 1).1.contains_key("via"));
}

#[tokio::test(start_paused = true)]
async fn rfc9110_10_1_4_te_is_named_by_connection() {
    let scene = Scene::new().await;
    let target = scene.page(&["Cache-Control: no-store"]);
    scene.ask(&target, "TE: trailers").await;
    let headers = scene.asked(&target, 1).1;
    assert_eq!(["te", "connection"].map(|name| field(&headers, name)), ["trailers", "te"]);
}

#[tokio::test(start_paused = true)]
async fn rfc9112_3_2_http_1_0_need_not_name_a_host() {
    let scene = Scene::with(|setting| setting.proxy.forwarded.forwarded = true).await;
    let target = scene.page(&["Cache-Control: max-age=60", "Cache-Control: max-age=60"]);
    let anonymous = format!("GET {target} HTTP/1.0\r\nX-Forwarded-Host: evil.example\r\n\r\n");
    for status in ["fwd=uri-miss", "hit"] {
        let answer = raw(scene.stage.address, &anonymous).await;
        assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains(status), "{answer}");
    }
    let headers = scene.asked(&target, 1).1;
    assert!(headers["host"].to_str().unwrap().starts_with("127.0.0.1:"), "the upstream's own: {headers:?}");
    assert!(!headers.contains_key("x-forwarded-host"), "{headers:?}");
    assert_eq!(headers["forwarded"], "for=127.0.0.1;proto=http");
    // Nobody who names a host is answered with it.
    let named = raw(scene.stage.address, &format!("GET {target} HTTP/1.0\r\nHost: a.example\r\n\r\n")).await;
    assert!(named.contains("fwd=uri-miss"), "{named}");
    let missing = raw(scene.stage.address, &format!("GET {target} HTTP/1.1\r\n\r\n")).await;
    assert!(missing.starts_with("HTTP/1.1 400"), "{missing}");
}

#[tokio::test(start_paused = true)]
async fn what_an_unknown_client_says_of_itself_is_replaced() {
    let scene = Scene::new().await;
    let lies = "X-Forwarded-For: 9.9.9.9\nX-Forwarded-For: 8.8.8.8\nX-Forwarded-Proto: https\nX-Forwarded-Host: evil.example\n\
                Forwarded: for=9.9.9.9";
    for headers in arrived(&scene, lies).await {
        let found = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"]
            .map(|name| field(&headers, name));
        assert_eq!(found, ["127.0.0.1", "http", "site.example", ""]);
    }
    let scene = Scene::with(|setting| {
        setting.proxy.forwarded.x_forwarded = false;
        setting.proxy.forwarded.forwarded = true;
    })
    .await;
    for headers in arrived(&scene, lies).await {
        let found = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"]
            .map(|name| field(&headers, name));
        assert_eq!(found, ["", "", "", "for=127.0.0.1;host=\"site.example\";proto=http"]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_trusted_proxy_says_is_extended() {
    let scene = Scene::with(|setting| {
        setting.proxy.forwarded.forwarded = true;
        setting.proxy.forwarded.trusted_proxies =
            vec![Network { address: "127.0.0.0".parse().unwrap(), bits: 8 }];
    })
    .await;
    let said = "X-Forwarded-For: 9.9.9.9\nX-Forwarded-For: 8.8.8.8\nX-Forwarded-Proto: https\nX-Forwarded-Host: outer.example\n\
                Forwarded: for=9.9.9.9";
    for headers in arrived(&scene, said).await {
        let found = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"]
            .map(|name| field(&headers, name));
        let forwarded = "for=9.9.9.9, for=127.0.0.1;host=\"site.example\";proto=http";
        assert_eq!(found, ["9.9.9.9, 8.8.8.8, 127.0.0.1", "https", "outer.example", forwarded]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_host_that_the_upstream_is_told() {
    for (host_header, expected) in
        [(HostHeader::Pass, "Site.Example:80"), (HostHeader::Fixed("inner.example".into()), "inner.example")]
    {
        let scene = Scene::with(|setting| setting.host_header = host_header).await;
        for headers in arrived(&scene, "Host: Site.Example:80").await {
            assert_eq!(field(&headers, "host"), expected);
        }
    }
    let origin = Origin::cacheable(1).await;
    let mut setting = Setting::before(origin.address);
    setting.host_header = HostHeader::Upstream;
    let stage = setting.start().await;
    stage.get("/").await;
    assert_eq!(origin.seen(1).2["host"], origin.address.to_string());
}

#[tokio::test(start_paused = true)]
async fn fields_that_pretend_to_another_request_stay_out_of_shared_fetches() {
    let scene = Scene::new().await;
    let fields =
        "X-HTTP-Method-Override: DELETE\nX-Original-URL: /admin\nX-Rewrite-URL: /admin\nX-Host: evil";
    let claim = "X-Forwarded-Scheme: https";
    let [shared, alone] = arrived(&scene, &format!("{fields}\n{claim}")).await;
    for headers in [&shared, &alone] {
        assert!(!headers.contains_key("x-forwarded-scheme"), "nobody trusts what this client says of itself");
    }
    for line in fields.lines() {
        let name = line.split_once(':').unwrap().0;
        assert!(!shared.contains_key(name) && alone.contains_key(name), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_method_passes_with_its_body() {
    let scene = Scene::new().await;
    for method in ["POST", "PUT", "PATCH", "DELETE", "PROPFIND", "M-SEARCH", "FOO", "OPTIONS"] {
        let target = scene.page(&["Allow: FOO\n\ndone"]);
        let page = scene.ask(&target, method).await;
        assert_eq!((page.status, page.text(), page.header("allow")), (200, "done", "FOO"), "{method}");
        assert_eq!(scene.asked(&target, 1).0, method);
    }
    for method in ["TRACE", "CONNECT"] {
        let target = if method == "CONNECT" { "site.example:80" } else { "/" };
        let answer = raw(
            scene.stage.address,
            &format!("{method} {target} HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n"),
        )
        .await;
        assert!(
            answer.starts_with("HTTP/1.1 405") || answer.starts_with("HTTP/1.1 400"),
            "{method}: {answer}"
        );
    }
    let origin = Origin::start(|_, request| async move {
        use http_body_util::BodyExt;
        let body = request.into_body().collect().await.unwrap().to_bytes();
        page(200, &[], body)
    })
    .await;
    let stage = Stage::before(&origin).await;
    for method in ["POST", "FOO", "GET", "DELETE"] {
        let body = http_body_util::Full::new(bytes::Bytes::from_static(b"payload"));
        let body =
            http_body_util::BodyExt::boxed(http_body_util::BodyExt::map_err(body, |never| match never {}));
        let answer = stage.client().await.send(request_with(method, "/", &[], body)).await.whole().await;
        assert_eq!(answer.text(), "payload", "{method}");
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_7_6_2_max_forwards_of_options() {
    let scene = Scene::new().await;
    scene.page_at("*", &["Allow: GET"]);
    let ask =
        |hops: &str| format!("OPTIONS * HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n{hops}\r\n");
    let answer = raw(scene.stage.address, &ask("")).await;
    assert!(answer.contains("\r\nallow: GET\r\n"), "{answer}");
    let target = scene.page(&["Allow: GET"]);
    for (hops, sent) in [("5", "4"), ("1", "0"), ("many", "many")] {
        let before = scene.count(&target);
        scene.ask(&target, &format!("OPTIONS\nMax-Forwards: {hops}")).await;
        assert_eq!(scene.asked(&target, before + 1).1["max-forwards"], sent);
    }
    assert_eq!(scene.ask(&target, "OPTIONS\nMax-Forwards: 0").await.status, 204);
    assert_eq!(scene.count(&target), 3);
    scene.ask(&target, "FOO\nMax-Forwards: 0").await;
    assert_eq!(scene.asked(&target, 4).1["max-forwards"], "0");
}

#[tokio::test(start_paused = true)]
async fn trailers_reach_those_who_take_them_from_the_origin_and_from_the_store() {
    let origin = raw_origin(|_, mut stream| async move {
        read_head(&mut stream).await;
        let answer = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                      4\r\nbody\r\n0\r\nX-Sum: 7\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let stage = Setting::before(origin).start().await;
    for _ in 0..2 {
        let page = stage.get_with("/", &[("te", "trailers")]).await;
        assert_eq!(page.text(), "body");
        assert_eq!(page.trailers.unwrap()["x-sum"], "7");
    }
    let page = stage.get("/").await;
    assert_eq!((page.text(), page.trailers.is_none()), ("body", true));
}

#[tokio::test(start_paused = true)]
async fn request_trailers_and_chunk_extensions_stay_behind() {
    let (seen, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let origin = raw_origin(move |_, mut stream| {
        let seen = seen.clone();
        async move {
            let mut text = read_head(&mut stream).await;
            while !text.ends_with("0\r\n\r\n") {
                text.push(char::from(stream.read_u8().await.unwrap()));
            }
            seen.send(text).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            std::future::pending::<()>().await;
        }
    })
    .await;
    let stage = Setting::before(origin).start().await;
    let request = "POST / HTTP/1.1\r\nHost: site.example\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                   4;ext=1\r\nbody\r\n0\r\nX-Trailer: 1\r\n\r\n";
    assert!(raw(stage.address, request).await.starts_with("HTTP/1.1 200"));
    let arrived = requests.recv().await.unwrap();
    assert!(arrived.ends_with("\r\n\r\n4\r\nbody\r\n0\r\n\r\n") && !arrived.contains("ext=1"), "{arrived}");
}

#[tokio::test(start_paused = true)]
async fn rfc9110_7_8_an_upgrade_becomes_a_tunnel() {
    let origin = raw_origin(|_, mut stream| async move {
        let head = read_head(&mut stream).await.to_ascii_lowercase();
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        assert!(head.contains("sec-websocket-key: abc"), "{head}");
        let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
        stream.write_all(switching.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    })
    .await;
    let stage = Setting::before(origin).start().await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    let request = "GET /socket HTTP/1.1\r\nHost: site.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: abc\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(
        head.contains("upgrade: websocket\r\n") && head.contains("sec-websocket-accept: x\r\n"),
        "{head}"
    );
    for word in ["hello", "again"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut echo = vec![0; word.len()];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, word.as_bytes());
    }
    let gauges = || (stage.telemetry.connections(), stage.metric("forebay_tunnels"));
    assert_eq!(gauges(), (1, 1.0));
    // A drain waits for it, up to a limit, and ends it then.
    assert_eq!(stage.proxy.drain(Duration::from_secs(5)).await, 1);
    assert_eq!(stage.proxy.drain(Duration::from_secs(5)).await, 0);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(gauges(), (0, 0.0));
    assert_eq!(stage.metric("forebay_response_bytes_total{route=\"default\"}"), 10.0);
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_that_is_declined_is_an_answer_and_h2c_is_never_asked_for() {
    let scene = Scene::new().await;
    let target = scene.page(&["426\nUpgrade: foo\n\ndeclined"]);
    let page = scene.ask(&target, "Connection: upgrade\nUpgrade: websocket").await;
    assert_eq!((page.status, page.text()), (426, "declined"));
    assert_eq!(scene.asked(&target, 1).1["upgrade"], "websocket");
    let target = scene.page(&["Cache-Control: max-age=60"]);
    scene
        .ask(&target, "Connection: upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAAP__")
        .await;
    let (_, asked) = scene.asked(&target, 1);
    assert!(
        !["upgrade", "http2-settings", "connection"].iter().any(|name| asked.contains_key(*name)),
        "{asked:?}"
    );
    // Without Connection it is no wish.
    scene.ask(&target, "Upgrade: websocket").await;
    assert_eq!(scene.count(&target), 1);
}

#[tokio::test(start_paused = true)]
async fn rfc9110_10_1_1_expectations() {
    let origin = Origin::start(|_, request| async move {
        use http_body_util::BodyExt;
        let body = request.into_body().collect().await.unwrap().to_bytes();
        page(200, &[], body)
    })
    .await;
    let stage = Stage::before(&origin).await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: site.example\r\nExpect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 100 "));
    stream.write_all(b"body").await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    let mut body = String::new();
    stream.read_to_string(&mut body).await.unwrap();
    assert_eq!(body, "body");
    let other = "POST / HTTP/1.1\r\nHost: site.example\r\nExpect: miracles\r\nContent-Length: 4\r\n\r\n";
    assert!(raw(stage.address, other).await.starts_with("HTTP/1.1 417 "));
    assert_eq!(origin.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn head_of_what_is_not_shared_has_the_fields_and_no_body() {
    let scene = Scene::new().await;
    let target = scene.page(&["Cache-Control: no-store\nX-A: 1\n\nbody"]);
    for _ in 0..3 {
        let page = scene.ask(&target, "HEAD").await;
        assert_eq!((page.status, page.header("x-a"), page.body.len()), (200, "1", 0));
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_are_never_decoded_and_redirections_never_followed() {
    let scene = Scene::new().await;
    let target = scene.page(&[
        "302\nLocation: /elsewhere\nContent-Encoding: gzip\nCache-Control: max-age=9\n\nnot really gzip",
    ]);
    for _ in 0..2 {
        let page = scene.ask(&target, "Accept-Encoding: identity").await;
        assert_eq!((page.status, page.text()), (302, "not really gzip"));
        assert_eq!((page.header("location"), page.header("content-encoding")), ("/elsewhere", "gzip"));
    }
}

/// Sends bytes, and reads until the proxy closes.
async fn raw(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}
