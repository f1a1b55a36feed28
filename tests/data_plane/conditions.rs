//! Conditions of clients (RFC 9110 §13, RFC 9111 §4.3.2): the cache answers them, and none of them travels on.

use crate::scene::*;
use crate::support::{Origin, Stage, page};

const OLD: &str = "If-Modified-Since: Sun, 06 Nov 1994 08:49:36 GMT";
const SAME: &str = "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT";
const MODIFIED: &str = "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT";

/// The status for a request with this condition: of a miss, of a hit, and after a validation.
async fn check(scene: &Scene, stored: &str, condition: &str, expected: u16) {
    let fields = format!("Cache-Control: max-age=10\n{stored}");
    let first = format!("{}\n\nbody", fields.trim_end());
    let second = if stored.contains("ETag") || stored.contains("Last-Modified") {
        "304\nCache-Control: max-age=10".to_owned()
    } else {
        first.clone()
    };
    let target = scene.page(&[&first, &second]);
    for (state, seconds) in [("miss", 0), ("hit", 5), ("validated", 11)] {
        scene.after(seconds).await;
        let page = scene.ask(&target, condition).await;
        assert_eq!(page.status, expected, "{state}: {stored} | {condition}");
        assert_eq!(page.text(), if expected == 304 { "" } else { "body" }, "{state}: {stored} | {condition}");
    }
    for number in 1..=scene.count(&target) {
        let (_, asked) = scene.asked(&target, number);
        let sent: Vec<_> =
            ["if-none-match", "if-modified-since", "if-match", "if-unmodified-since", "if-range"]
                .into_iter()
                .filter(|name| asked.contains_key(*name))
                .collect();
        assert!(number > 1 || sent.is_empty(), "{condition} went upstream");
        if let (Some(etag), Some(own)) = (asked.get("if-none-match"), stored.split_once("ETag: ")) {
            assert!(own.1.starts_with(etag.to_str().unwrap()), "{condition} became the cache's own");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_13_1_2_if_none_match() {
    let scene = Scene::new().await;
    for (stored, condition, expected) in [
        ("ETag: \"a\"", "If-None-Match: \"a\"", 304),
        ("ETag: \"a\"", "If-None-Match: \"b\"", 200),
        ("ETag: \"a\"", "If-None-Match: W/\"a\"", 304),
        ("ETag: W/\"a\"", "If-None-Match: \"a\"", 304),
        ("ETag: W/\"a\"", "If-None-Match: W/\"a\"", 304),
        ("ETag: \"a\"", "If-None-Match: \"b\", \"a\"", 304),
        ("ETag: \"a\"", "If-None-Match: \"b\",,\"a\"", 304),
        ("ETag: \"a\"", "If-None-Match: \"b\"\nIf-None-Match: \"a\"", 304),
        ("ETag: \"a,b\"", "If-None-Match: \"a,b\"", 304),
        ("ETag: \"a\"", "If-None-Match: \"a,b\"", 200),
        ("ETag: \"a\"", "If-None-Match: *", 304),
        ("", "If-None-Match: *", 304),
        ("", "If-None-Match: \"a\"", 200),
        ("ETag: \"a\"", "If-None-Match: a", 200),
        ("ETag: a", "If-None-Match: a", 304),
        ("ETag: a", "If-None-Match: \"a\"", 200),
        ("ETag: \"a\"", "If-None-Match: \"A\"", 200),
    ] {
        check(&scene, stored, condition, expected).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_13_1_3_if_modified_since() {
    let scene = Scene::new().await;
    for (condition, expected) in [
        (SAME, 304),
        (OLD, 200),
        ("If-Modified-Since: Mon, 07 Nov 1994 08:49:37 GMT", 304),
        ("If-Modified-Since: Sunday, 06-Nov-94 08:49:37 GMT", 304),
        ("If-Modified-Since: Sun Nov  6 08:49:37 1994", 304),
        ("If-Modified-Since: yesterday", 200),
        ("If-Modified-Since: 784111777", 200),
    ] {
        check(&scene, MODIFIED, condition, expected).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_13_2_2_if_none_match_decides_where_both_are() {
    let scene = Scene::new().await;
    let stored = format!("ETag: \"a\"\n{MODIFIED}");
    for (none_match, since, expected) in
        [("\"a\"", OLD, 304), ("\"a\"", SAME, 304), ("\"b\"", SAME, 200), ("\"b\"", OLD, 200)]
    {
        check(&scene, &stored, &format!("If-None-Match: {none_match}\n{since}"), expected).await;
    }
    check(&scene, MODIFIED, &format!("If-None-Match: \"a\"\n{SAME}"), 200).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_2_a_cache_never_makes_a_412() {
    let scene = Scene::new().await;
    let stored = format!("ETag: \"a\"\n{MODIFIED}");
    check(&scene, &stored, "If-Match: \"b\"", 200).await;
    check(&scene, &stored, "If-Unmodified-Since: Sun, 06 Nov 1993 08:49:37 GMT", 200).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9110_15_4_5_what_a_304_carries() {
    let scene = Scene::new().await;
    let target = scene.page(&[
        "Cache-Control: max-age=60\nETag: \"a\"\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\nExpires: {+60}\nVary: Foo\n\
         Content-Location: /x\nDate: {0}\nContent-Type: text/plain\nX-A: 1\n\nbody",
    ]);
    let (date, expires) = (scene.dated("{0}"), scene.dated("{+60}"));
    scene.get(&target).await;
    scene.after(7).await;
    let page = scene.ask(&target, "If-None-Match: \"a\"").await;
    assert_eq!((page.status, page.header("age")), (304, "7"));
    let names = ["etag", "date", "cache-control", "expires", "vary", "content-location"];
    let values = ["\"a\"", &date, "max-age=60", &expires, "Foo", "/x"];
    assert_eq!(names.map(|name| page.header(name)), values);
    for name in ["content-length", "content-type", "x-a", "last-modified"] {
        assert!(!page.headers.contains_key(name), "{name}");
    }
    assert!(page.cache_status().starts_with("hit"));
    let head = scene.ask(&target, "HEAD\nIf-None-Match: \"a\"").await;
    assert_eq!((head.status, head.header("etag")), (304, "\"a\""));
}

#[tokio::test(start_paused = true)]
async fn a_condition_is_about_a_stored_200_only() {
    let scene = Scene::new().await;
    let target = scene.page(&["404\nCache-Control: max-age=60\nETag: \"a\""]);
    for _ in 0..2 {
        assert_eq!(scene.ask(&target, "If-None-Match: \"a\"").await.status, 404);
        assert_eq!(scene.ask(&target, "If-None-Match: *").await.status, 404);
    }
}

#[tokio::test(start_paused = true)]
async fn a_condition_on_what_is_not_shared_gets_its_answer_too() {
    let scene = Scene::new().await;
    let target = scene.page(&["Cache-Control: no-store\nETag: \"a\"\n\nbody"]);
    for _ in 0..2 {
        let page = scene.ask(&target, "If-None-Match: \"b\"").await;
        assert_eq!((page.status, page.text()), (200, "body"));
    }
}

#[tokio::test(start_paused = true)]
async fn conditions_of_unsafe_requests_travel() {
    let scene = Scene::new().await;
    let target = scene.page(&["412"]);
    assert_eq!(scene.ask(&target, "PUT\nIf-Match: \"a\"\nIf-Unmodified-Since: {0}").await.status, 412);
    let (_, asked) = scene.asked(&target, 1);
    assert!(asked.contains_key("if-match") && asked.contains_key("if-unmodified-since"));
}

#[tokio::test(start_paused = true)]
async fn a_condition_is_answered_here_also_where_the_response_is_for_one_client_alone() {
    let origin = Origin::start(|_, request| async move {
        assert!(
            !request.headers().contains_key("if-none-match")
                && !request.headers().contains_key("if-modified-since")
        );
        let cookie = if request.uri().path() == "/cookie" { "set-cookie" } else { "x-other" };
        let headers = [
            ("cache-control", "private, max-age=60"),
            ("etag", "\"1\""),
            ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
            (cookie, "a=b"),
        ];
        page(200, &headers, "mine")
    })
    .await;
    let stage = Stage::before(&origin).await;
    let since = "Mon, 07 Nov 1994 08:49:37 GMT";
    for (target, condition, status) in [
        ("/", ("if-none-match", "\"1\""), 304),
        ("/", ("if-none-match", "\"2\""), 200),
        ("/", ("if-modified-since", since), 304),
        ("/", ("if-modified-since", "Sat, 05 Nov 1994 08:49:37 GMT"), 200),
        ("/cookie", ("if-none-match", "\"1\""), 200),
    ] {
        let answer = stage.get_with(target, &[condition]).await;
        assert_eq!(answer.status, status, "{target} {condition:?}");
        assert_eq!((answer.header("etag"), answer.body.is_empty()), ("\"1\"", status == 304));
    }
}
