//! How a stored response is asked again, and what the answer changes (RFC 9111 §4.3, §3.2).

use crate::scene::*;
use crate::support::*;

const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_1_both_validators_are_sent_as_they_came() {
    let scene = Scene::new().await;
    for (fields, none_match, modified_since) in [
        ("ETag: \"a\"", "\"a\"", ""),
        ("ETag: W/\"a\"", "W/\"a\"", ""),
        ("ETag: unquoted", "unquoted", ""),
        ("ETag: \"a, b\"", "\"a, b\"", ""),
        ("Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT", "", MODIFIED),
        ("Last-Modified: Sunday, 06-Nov-94 08:49:37 GMT", "", "Sunday, 06-Nov-94 08:49:37 GMT"),
        ("ETag: \"a\"\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT", "\"a\"", MODIFIED),
    ] {
        let target = scene.page(&[&format!("Cache-Control: max-age=5\n{fields}")]);
        scene.get(&target).await;
        scene.after(6).await;
        scene.get(&target).await;
        let (_, asked) = scene.asked(&target, 2);
        let sent = |name| asked.get(name).map_or("", |value| value.to_str().unwrap());
        assert_eq!(
            (sent("if-none-match"), sent("if-modified-since")),
            (none_match, modified_since),
            "{fields}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_4_a_304_renews_and_updates() {
    let scene = Scene::new().await;
    let target = scene.page(&[
        "Cache-Control: max-age=5\nETag: \"a\"\nX-New: old\nX-Kept: kept\nX-Twice: 1\nX-Twice: 2\nVia: 1.1 inner\n\nthe body",
        "304\nCache-Control: max-age=50\nETag: \"a\"\nX-New: new\nX-Added: added\nX-Twice: 3\nVia: 1.1 inner\nDate: {0}",
    ]);
    scene.get(&target).await;
    scene.after(6).await;
    let validated_at = scene.dated("{0}");
    let validated = scene.get(&target).await;
    assert_eq!((validated.status, validated.text()), (200, "the body"));
    assert!(
        validated.cache_status().starts_with("fwd=stale; fwd-status=304"),
        "{}",
        validated.cache_status()
    );
    assert!(!validated.headers.contains_key("age"));
    scene.after(40).await;
    let hit = scene.get(&target).await;
    for page in [&validated, &hit] {
        let found =
            ["x-new", "x-kept", "x-added", "x-twice", "cache-control", "date"].map(|name| page.header(name));
        assert_eq!(found, ["new", "kept", "added", "3", "max-age=50", &validated_at]);
        assert_eq!(page.headers.get_all("via").iter().collect::<Vec<_>>(), ["1.1 inner", "1.1 forebay"]);
    }
    assert_eq!((hit.header("age"), hit.text()), ("40", "the body"));
    assert_eq!(scene.count(&target), 2);
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_2_what_describes_the_stored_bytes_stays() {
    let scene = Scene::new().await;
    let target = scene.page(&[
        "Cache-Control: max-age=5\nETag: \"a\"\nContent-Encoding: x-odd\nContent-Type: text/plain\n\n0123456789",
        "304\nCache-Control: max-age=50\nETag: \"a\"\nContent-Encoding: gzip\nContent-Range: bytes 0-1/2\nContent-Type: text/html",
    ]);
    scene.get(&target).await;
    scene.after(6).await;
    for _ in 0..2 {
        let page = scene.get(&target).await;
        assert_eq!((page.header("content-length"), page.header("content-encoding")), ("10", "x-odd"));
        assert_eq!((page.header("content-range"), page.header("content-type")), ("", "text/html"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_304_with_a_content_length_does_not_shift_or_shorten_anything() {
    use tokio::io::AsyncWriteExt;
    let origin = raw_origin(|_, mut stream| async move {
        for answer in [
            "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nCache-Control: max-age=5\r\nContent-Length: 5\r\n\r\nfirst",
            "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nCache-Control: max-age=5\r\nContent-Length: 900\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond",
        ] {
            read_head(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        std::future::pending::<()>().await;
    })
    .await;
    let stage = Setting::before(origin).start().await;
    assert_eq!(stage.get("/").await.text(), "first");
    tokio::time::advance(std::time::Duration::from_secs(6)).await;
    assert_eq!(stage.get("/").await.text(), "first");
    assert_eq!(stage.get("/").await.header("content-length"), "5");
    assert_eq!(stage.get("/other").await.text(), "second");
}

#[tokio::test(start_paused = true)]
async fn what_a_304_says_of_freshness_counts_from_then_on() {
    let scene = Scene::new().await;
    for (not_modified, seconds, expected) in [
        ("Cache-Control: max-age=50", 49, Hit),
        ("Cache-Control: max-age=50", 51, Validated),
        ("Cache-Control: max-age=50\nAge: 20", 31, Validated),
        ("Expires: {+50}\nDate: {0}", 4, Hit),
        ("", 4, Hit),
        ("", 6, Validated),
        ("Cache-Control: no-cache", 1, Validated),
        ("Cache-Control: max-age=0", 0, Validated),
        ("Cache-Control: no-store", 0, Fetched),
        ("Cache-Control: private", 0, Fetched),
        ("Vary: *", 0, Fetched),
        ("Set-Cookie: a=1", 4, Hit),
    ] {
        let confirmed = format!("304\nETag: \"a\"\n{not_modified}");
        let target = scene.page(&["Cache-Control: max-age=5\nETag: \"a\"\n\nbody", confirmed.trim_end()]);
        scene.get(&target).await;
        scene.after(6).await;
        assert_eq!(scene.get(&target).await.text(), "body", "{not_modified}");
        scene.after(seconds).await;
        scene.get(&target).await;
        assert_eq!(scene.came_to(&target, 2), expected, "{not_modified} after {seconds} s");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_304_says_to_the_asker_alone_reaches_it_alone() {
    let scene = Scene::new().await;
    for control in ["max-age=5", "no-cache"] {
        let stored = format!("Cache-Control: {control}\nETag: \"a\"\n\nbody");
        let confirmed = "304\nETag: \"a\"\nCache-Control: max-age=5, private=\"x-mine\"\nX-Mine: 1\nSet-Cookie: a=1\nContent-Length: 900";
        let target = scene.page(&[&stored, confirmed]);
        scene.get(&target).await;
        scene.after(6).await;
        for (mine, cookie) in [("1", "a=1"), ("", "")] {
            let page = scene.get(&target).await;
            assert_eq!((page.text(), page.header("content-length")), ("body", "4"), "{control}");
            assert_eq!((page.header("x-mine"), page.header("set-cookie")), (mine, cookie), "{control}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_answer_to_a_validation_replaces_what_was_stored() {
    let scene = Scene::new().await;
    for (second, later) in [
        ("Cache-Control: max-age=50\nETag: \"b\"\n\nnew", "new"),
        ("Cache-Control: max-age=50\n\nnew", "new"),
        ("404\nCache-Control: max-age=50\n\nnew", "new"),
        ("Cache-Control: no-store\n\nnew", "third"),
        ("404\nCache-Control: no-store\n\nnew", "third"),
    ] {
        let third = "Cache-Control: max-age=50\n\nthird";
        let target = scene.page(&["Cache-Control: max-age=5\nETag: \"a\"\nX-Old: 1\n\nold", second, third]);
        scene.get(&target).await;
        scene.after(6).await;
        let replaced = scene.get(&target).await;
        assert_eq!((replaced.text(), replaced.header("x-old")), ("new", ""), "{second}");
        assert_eq!(scene.get(&target).await.text(), later, "{second}");
        if later == "third" {
            assert!(!scene.asked(&target, 3).1.contains_key("if-none-match"), "{second}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_answer_that_breaks_off_replaces_nothing() {
    use tokio::io::AsyncWriteExt;
    let origin = raw_origin(|number, mut stream| async move {
        read_head(&mut stream).await;
        let answer = match number {
            1 => "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nCache-Control: max-age=5, stale-if-error=60\r\nContent-Length: 3\r\n\r\nold",
            2 => "HTTP/1.1 200 OK\r\nETag: \"b\"\r\nCache-Control: max-age=5\r\nContent-Length: 99\r\n\r\ncut",
            _ => "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let stage = Setting::before(origin).start().await;
    stage.get("/").await;
    tokio::time::advance(std::time::Duration::from_secs(6)).await;
    assert!(stage.client().await.send(request("GET", "/", &[])).await.try_whole().await.is_err());
    stage.until(|telemetry| telemetry.flights() == 0).await;
    assert_eq!(stage.get("/").await.text(), "old");
}

#[tokio::test(start_paused = true)]
async fn after_a_purge_a_304_confirms_nothing() {
    let gate = Gate::shut();
    let origin = Origin::holding(
        &gate,
        |number, _| number == 2,
        |number, request| {
            let headers = [("cache-control", "max-age=5"), ("etag", "\"a\"")];
            if request.headers().contains_key("if-none-match") {
                page(304, &headers, "")
            } else {
                page(200, &headers, ["", "old", "", "new"][number])
            }
        },
    )
    .await;
    let stage = Stage::before(&origin).await;
    stage.get("/").await;
    tokio::time::advance(std::time::Duration::from_secs(6)).await;
    let validating = stage.spawn_get("/", &[]);
    stage.until(|telemetry| telemetry.flights() == 1).await;
    let target = forebay::proxy::Target::Url("http://site.example/".into());
    stage.proxy.purge(&forebay::proxy::Purge { target, soft: false }).unwrap();
    gate.open();
    assert_eq!(validating.await.unwrap().text(), "new");
    assert_eq!(origin.requests(), 3);
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_4_a_304_about_something_else_is_not_used() {
    let scene = Scene::new().await;
    let target = scene.page(&[
        "Cache-Control: max-age=5\nETag: \"a\"\n\nold",
        "304\nETag: \"b\"",
        "Cache-Control: max-age=50\nETag: \"b\"\n\nnew",
    ]);
    scene.get(&target).await;
    scene.after(6).await;
    assert_eq!(scene.get(&target).await.text(), "new");
    assert!(!scene.asked(&target, 3).1.contains_key("if-none-match"));
    assert_eq!(scene.count(&target), 3);
}

#[tokio::test(start_paused = true)]
async fn a_304_or_206_that_was_not_asked_for_is_an_error() {
    let scene = Scene::new().await;
    for answer in ["304", "304\nETag: \"a\"", "206\nContent-Range: bytes 0-1/9\nCache-Control: max-age=60"] {
        let target = scene.page(&[answer, "Cache-Control: max-age=60\n\nfine"]);
        let page = scene.get(&target).await;
        assert_eq!(
            (page.status, page.header("proxy-status")),
            (502, "forebay; error=http_protocol_error"),
            "{answer}"
        );
        scene.after(2).await;
        assert_eq!(scene.get(&target).await.text(), "fine");
    }
}

#[tokio::test(start_paused = true)]
async fn the_variant_that_was_asked_about_is_freshened_and_no_other() {
    let scene = Scene::new().await;
    let stored = |tag: &str| format!("Cache-Control: max-age=5\nVary: Foo\nETag: \"{tag}\"\n\n{tag}");
    let target = scene.page(&[
        &stored("a"),
        &stored("b"),
        "304\nCache-Control: max-age=50\nVary: Foo\nETag: \"a\"",
        &stored("c"),
    ]);
    scene.ask(&target, "Foo: a").await;
    scene.ask(&target, "Foo: b").await;
    scene.after(6).await;
    assert_eq!(scene.ask(&target, "Foo: a").await.text(), "a");
    assert_eq!(scene.asked(&target, 3).1["if-none-match"], "\"a\"");
    assert_eq!(scene.ask(&target, "Foo: a").await.text(), "a");
    assert_eq!(scene.ask(&target, "Foo: b").await.text(), "c");
    assert_eq!(scene.asked(&target, 4).1["if-none-match"], "\"b\"");
}

#[tokio::test(start_paused = true)]
async fn a_stored_error_is_not_asked_about() {
    let scene = Scene::new().await;
    scene.check("404\nCache-Control: max-age=5\nETag: \"a\"", "", 6, Fetched).await;
    scene.check("301\nCache-Control: max-age=5\nETag: \"a\"\nLocation: /", "", 6, Fetched).await;
    scene.check("203\nCache-Control: max-age=5\nETag: \"a\"", "", 6, Validated).await;
}

#[tokio::test(start_paused = true)]
async fn followers_of_a_validation_get_the_confirmed_response_once_asked() {
    let gate = Gate::shut();
    let fields = [("cache-control", "max-age=5"), ("etag", "\"a\"")];
    let origin = Origin::behind(&gate, 2.., move |number| match number {
        1 => page(200, &fields, "body"),
        _ => page(304, &fields, ""),
    })
    .await;
    let stage = Stage::before(&origin).await;
    stage.get("/").await;
    tokio::time::advance(std::time::Duration::from_secs(6)).await;
    let clients: Vec<_> = (0..20).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until_waiters(19).await;
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "body");
    }
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_5_head_is_answered_from_a_stored_get() {
    let scene = Scene::new().await;
    let target = scene.page(&["Cache-Control: max-age=60\nX-A: 1\n\nbody"]);
    let got = scene.get(&target).await;
    let head = scene.ask(&target, "HEAD").await;
    assert_eq!((head.status, head.header("x-a"), head.header("content-length")), (200, "1", "4"));
    assert!(head.body.is_empty() && head.cache_status().starts_with("hit"));
    assert_eq!((got.text(), scene.count(&target)), ("body", 1));
    // A HEAD on a miss fetches for the GET that follows.
    let target = scene.page(&["Cache-Control: max-age=60\n\nbody"]);
    assert_eq!(scene.ask(&target, "HEAD").await.header("content-length"), "4");
    assert_eq!(scene.get(&target).await.text(), "body");
    assert_eq!((scene.count(&target), scene.asked(&target, 1).0.as_str()), (1, "GET"));
    // So does one on a stale response.
    let target = scene.page(&[
        "Cache-Control: max-age=5\nETag: \"a\"\n\nbody",
        "304\nCache-Control: max-age=50\nETag: \"a\"",
    ]);
    scene.get(&target).await;
    scene.after(6).await;
    assert_eq!(scene.ask(&target, "HEAD").await.status, 200);
    assert_eq!(scene.get(&target).await.text(), "body");
    assert_eq!(scene.count(&target), 2);
}

/// A HEAD that goes upstream as such: what does it mean for the stored GET, and for its field `X-A`?
async fn check_head(scene: &Scene, request: &str, head: &str, seconds: u64, expected: (Reuse, &str)) {
    let stored = "Cache-Control: max-age=10\nETag: \"a\"\nX-A: old\n\nbody";
    let target = scene.page(&[stored, head, "Cache-Control: max-age=9\n\nnew"]);
    scene.get(&target).await;
    scene.after(5).await;
    scene.ask(&target, &format!("HEAD\nCache-Control: no-cache\n{request}")).await;
    assert_eq!(scene.asked(&target, 2).0, "HEAD");
    scene.after(seconds).await;
    let page = scene.get(&target).await;
    assert_eq!((scene.came_to(&target, 2), page.header("x-a")), expected, "{head}");
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_5_a_head_that_went_upstream_freshens_or_invalidates() {
    let scene = Scene::with(|setting| setting.rules.honor_request_directives = true).await;
    // The stored response says nothing of credentials, so it could not have been chosen for such a request.
    let credentials = "Authorization: Basic YTpi";
    check_head(&scene, credentials, "ETag: \"b\"\nContent-Length: 4", 1, (Hit, "old")).await;
    let scene = Scene::with(|setting| {
        setting.rules.honor_request_directives = true;
        setting.coalescing.enabled = false;
    })
    .await;
    for (head, seconds, expected) in [
        ("ETag: \"a\"\nCache-Control: max-age=50\nX-A: new\nContent-Length: 4", 40, (Hit, "new")),
        ("Cache-Control: max-age=50\nX-A: new\nContent-Length: 4", 40, (Hit, "new")),
        ("ETag: \"b\"\nCache-Control: max-age=50\nContent-Length: 4", 0, (Fetched, "")),
        ("ETag: \"a\"\nCache-Control: max-age=50\nContent-Length: 5", 0, (Fetched, "")),
        ("ETag: \"a\"\nCache-Control: no-store\nContent-Length: 4", 0, (Fetched, "")),
        ("404", 1, (Hit, "old")),
    ] {
        check_head(&scene, "", head, seconds, expected).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_with_credentials_leaves_the_waiting_of_others_alone() {
    let scene = Scene::new().await;
    let target = scene.page(&["Cache-Control: private\n\nmine"]);
    scene.ask(&target, "HEAD\nAuthorization: Basic YTpi").await;
    scene.ask(&target, "Authorization: Basic YTpi").await;
    let page = scene.get(&target).await;
    // It led a fetch of its own: nothing is noted about the key.
    assert_eq!(page.cache_status(), "fwd=uri-miss; fwd-status=200; detail=private");
    let uncacheable = forebay::telemetry::DuplicateCause::Uncacheable;
    assert_eq!(scene.stage.telemetry.route(0).duplicates(uncacheable), 0);
}
