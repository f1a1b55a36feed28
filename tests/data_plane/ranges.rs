//! Parts of responses (RFC 9110 §14).

use crate::scene::*;
use crate::support::*;
use forebay::telemetry::DuplicateCause;
use http::Request;
use hyper::body::Incoming;

const STORED: &str = "Cache-Control: max-age=60\nETag: \"a\"\nContent-Type: text/plain\nX-A: 1\n\n0123456789";

/// A range of ten bytes: of a miss, then of a hit.
async fn check(scene: &Scene, range: &str, status: u16, body: &str, content_range: &str) {
    let target = scene.page(&[STORED]);
    for state in ["miss", "hit"] {
        let page = scene.ask(&target, &format!("Range: {range}")).await;
        assert_eq!((page.status, page.text()), (status, body), "{state}: {range}");
        assert_eq!(page.header("content-range"), content_range, "{state}: {range}");
        assert_eq!(page.header("content-length"), body.len().to_string(), "{state}: {range}");
        if status == 206 {
            assert_eq!((page.header("etag"), page.header("x-a")), ("\"a\"", "1"), "{state}: {range}");
        }
    }
    assert_eq!(scene.get(&target).await.text(), "0123456789");
    assert_eq!(scene.count(&target), 1);
    assert!(!scene.asked(&target, 1).1.contains_key("range"), "{range} went upstream");
}

#[tokio::test(start_paused = true)]
async fn rfc9110_14_1_2_one_range() {
    let scene = Scene::new().await;
    for (range, body, content_range) in [
        ("bytes=0-0", "0", "bytes 0-0/10"),
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=0-", "0123456789", "bytes 0-9/10"),
        ("bytes=8-99", "89", "bytes 8-9/10"),
        ("bytes=-99", "0123456789", "bytes 0-9/10"),
        ("BYTES=2-4", "234", "bytes 2-4/10"),
        ("bytes= 2-4", "234", "bytes 2-4/10"),
        ("bytes=2-4,", "234", "bytes 2-4/10"),
        ("bytes=2-18446744073709551999", "23456789", "bytes 2-9/10"),
        ("bytes=1-2,3-4", "1234", "bytes 1-4/10"),
        ("bytes=2-3,99-", "23", "bytes 2-3/10"),
    ] {
        check(&scene, range, 206, body, content_range).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_14_2_what_is_no_range_is_ignored() {
    let scene = Scene::new().await;
    for range in [
        "bytes=",
        "bytes=a-b",
        "bytes=4-2",
        "bytes",
        "bytes=2",
        "bytes 2-4",
        "lines=1-2",
        "bytes=--1",
        "bytes=1-2-3",
        "bytes=0x1-2",
        "bytes=1-2;3-4",
        "bytes=0-9,0-9,0-9",
        "bytes=0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-",
    ] {
        check(&scene, range, 200, "0123456789", "").await;
    }
    let target = scene.page(&[STORED]);
    for _ in 0..2 {
        assert_eq!(scene.ask(&target, "Range: bytes=1-2\nRange: bytes=3-4").await.status, 200);
        assert_eq!(scene.ask(&target, "HEAD\nRange: bytes=1-2").await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_15_5_17_a_range_that_does_not_exist() {
    let scene = Scene::new().await;
    for range in ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99-100,200-", "bytes=18446744073709551999-"]
    {
        check(&scene, range, 416, "", "bytes */10").await;
    }
    let empty = scene.page(&["Cache-Control: max-age=60\n\n"]);
    for _ in 0..2 {
        let page = scene.ask(&empty, "Range: bytes=0-0").await;
        assert_eq!((page.status, page.header("content-range")), (416, "bytes */0"));
        assert_eq!(scene.ask(&empty, "Range: bytes=-5").await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_14_6_several_ranges() {
    let scene = Scene::new().await;
    let target = scene.page(&[STORED]);
    scene.get(&target).await;
    let page = scene.ask(&target, "Range: bytes=0-1,5-6,-1").await;
    assert_eq!(page.status, 206);
    let boundary = page.header("content-type").strip_prefix("multipart/byteranges; boundary=").unwrap();
    let part = |range: &str, bytes: &str| {
        format!(
            "\r\n--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes {range}/10\r\n\r\n{bytes}"
        )
    };
    let expected =
        part("0-1", "01") + &part("5-6", "56") + &part("9-9", "9") + &format!("\r\n--{boundary}--\r\n");
    assert_eq!(page.text(), expected);
    assert_eq!(page.header("content-length"), expected.len().to_string());
    assert_eq!((page.header("content-range"), page.header("etag")), ("", "\"a\""));
}

#[tokio::test(start_paused = true)]
async fn rfc9110_13_1_5_if_range() {
    let scene = Scene::new().await;
    let dated =
        "Cache-Control: max-age=60\nDate: {0}\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\n\n0123456789";
    let weak = "Cache-Control: max-age=60\nETag: W/\"a\"\n\n0123456789";
    for (stored, condition, status) in [
        (STORED, "\"a\"", 206),
        (STORED, "\"b\"", 200),
        (STORED, "W/\"a\"", 200),
        (weak, "W/\"a\"", 200),
        (STORED, "Sun, 06 Nov 1994 08:49:37 GMT", 200),
        (dated, "Sun, 06 Nov 1994 08:49:37 GMT", 206),
        (dated, "Sun, 06 Nov 1994 08:49:36 GMT", 200),
        (dated, "Sun, 06 Nov 1994 08:49:38 GMT", 200),
        (dated, "\"a\"", 200),
        (STORED, "rubbish", 200),
    ] {
        let target = scene.page(&[stored]);
        for state in ["miss", "hit"] {
            let page = scene.ask(&target, &format!("Range: bytes=2-4\nIf-Range: {condition}")).await;
            assert_eq!(page.status, status, "{state}: {stored} | {condition}");
        }
    }
    // Without a range it means nothing; behind a condition that holds it does not matter.
    let target = scene.page(&[STORED]);
    assert_eq!(scene.ask(&target, "If-Range: \"a\"").await.status, 200);
    assert_eq!(scene.ask(&target, "Range: bytes=2-4\nIf-None-Match: \"a\"").await.status, 304);
    assert_eq!(scene.ask(&target, "Range: bytes=2-4\nIf-None-Match: \"b\"").await.status, 206);
}

#[tokio::test(start_paused = true)]
async fn a_range_of_what_is_not_a_200_is_the_whole() {
    let scene = Scene::new().await;
    for status in [404, 203, 301] {
        let target = scene.page(&[&format!("{status}\nCache-Control: max-age=60\n\n0123456789")]);
        for _ in 0..2 {
            let page = scene.ask(&target, "Range: bytes=2-4").await;
            assert_eq!((page.status, page.text()), (status, "0123456789"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_of_a_stale_response_is_cut_from_the_validated_whole() {
    let scene = Scene::new().await;
    let target =
        scene.page(&["Cache-Control: max-age=5\nETag: \"a\"\n\n0123456789", "304\nCache-Control: max-age=5"]);
    scene.get(&target).await;
    scene.after(6).await;
    let page = scene.ask(&target, "Range: bytes=2-4").await;
    assert_eq!((page.status, page.text()), (206, "234"));
    let (_, asked) = scene.asked(&target, 2);
    assert!(!asked.contains_key("range") && asked.contains_key("if-none-match"));
}

#[tokio::test(start_paused = true)]
async fn by_setting_a_range_on_a_miss_passes_through() {
    let scene = Scene::with(|setting| setting.coalescing.pass_ranges = true).await;
    let part = "206\nCache-Control: max-age=60\nContent-Range: bytes 2-4/10\nETag: \"a\"\n\n234";
    let target = scene.page(&[part, part, STORED]);
    for number in 1..=2 {
        let page = scene.ask(&target, "Range: bytes=2-4\nIf-Range: \"a\"").await;
        assert_eq!((page.status, page.text(), page.header("content-range")), (206, "234", "bytes 2-4/10"));
        let (_, asked) = scene.asked(&target, number);
        assert!(asked.contains_key("range") && asked.contains_key("if-range"));
    }
    // A part is never stored as if it were the whole.
    assert_eq!(scene.get(&target).await.text(), "0123456789");
    assert_eq!(scene.ask(&target, "Range: bytes=1-1").await.text(), "1");
    assert_eq!(scene.count(&target), 3);
}

#[tokio::test(start_paused = true)]
async fn a_range_of_what_cannot_be_shared_passes_once_that_is_known() {
    let scene = Scene::new().await;
    let part = "206\nCache-Control: private\nContent-Range: bytes 2-4/10\n\n234";
    let target = scene.page(&[
        "Cache-Control: private\n\n0123456789",
        part,
        part,
        "Cache-Control: private\n\n0123456789",
    ]);
    assert_eq!(scene.ask(&target, "Range: bytes=2-4").await.status, 200);
    for _ in 0..2 {
        let page = scene.ask(&target, "Range: bytes=2-4").await;
        assert_eq!(
            (page.status, page.text(), page.cache_status()),
            (206, "234", "fwd=bypass; fwd-status=206; detail=range")
        );
    }
    // The memory ends, and the whole is looked at again.
    scene.after(11).await;
    assert_eq!(scene.ask(&target, "Range: bytes=2-4").await.status, 200);
    assert!(!scene.asked(&target, 4).1.contains_key("range"));
}

/// An origin that sends a page piece by piece, with or without its length.
async fn growing(
    length: Option<&'static str>,
) -> (tokio::sync::mpsc::UnboundedSender<std::io::Result<hyper::body::Frame<bytes::Bytes>>>, Stage, Origin) {
    let mut headers = vec![("cache-control", "max-age=60")];
    headers.extend(length.map(|length| ("content-length", length)));
    let (pieces, answer) = streamed(200, &headers);
    let origin = Origin::once(answer).await;
    let stage = Stage::before(&origin).await;
    (pieces, stage, origin)
}

#[tokio::test(start_paused = true)]
async fn a_range_of_a_body_that_is_still_coming_goes_out_as_it_comes() {
    let (pieces, stage, origin) = growing(Some("10")).await;
    let mut first = stage.client().await;
    let mut whole = first.send(request("GET", "/", &[])).await;
    pieces.send(data("01234")).unwrap();
    whole.piece().await;
    let mut second = stage.client().await;
    let mut part = second.send(request("GET", "/", &[("range", "bytes=3-7")])).await;
    assert_eq!((part.status(), &part.0.headers()["content-range"]), (206, &"bytes 3-7/10".parse().unwrap()));
    assert_eq!(part.piece().await.unwrap().unwrap(), "34");
    pieces.send(data("56789")).unwrap();
    assert_eq!(part.whole().await.text(), "567");
    drop(pieces);
    assert_eq!(whole.whole().await.text(), "56789");
    assert_eq!(origin.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_range_of_a_body_of_unknown_length_is_cut_if_its_bytes_are_here() {
    let (pieces, stage, origin) = growing(None).await;
    let mut first = stage.client().await;
    let mut whole = first.send(request("GET", "/", &[])).await;
    pieces.send(data("01234")).unwrap();
    whole.piece().await;
    let part = stage.get_with("/", &[("range", "bytes=1-3")]).await;
    assert_eq!((part.status, part.text(), part.header("content-range")), (206, "123", "bytes 1-3/*"));
    // Nobody knows yet whether these bytes will come: the whole is right in any case.
    let mut client = stage.client().await;
    let later = client.send(request("GET", "/", &[("range", "bytes=3-7")])).await;
    assert_eq!(later.status(), 200);
    pieces.send(data("56789")).unwrap();
    drop(pieces);
    assert_eq!(later.whole().await.text(), "0123456789");
    assert_eq!(stage.get_with("/", &[("range", "bytes=3-7")]).await.header("content-range"), "bytes 3-7/10");
    assert_eq!(origin.requests(), 1);
}

/// A page for one client each, or two bytes of it.
fn private_page(_: usize, request: &Request<Incoming>) -> Page {
    let private = ("cache-control", "private");
    if request.headers().contains_key("range") {
        page(206, &[private, ("content-range", "bytes 0-1/10")], "01")
    } else {
        page(200, &[private], "0123456789")
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_that_has_waited_for_what_is_for_another_asks_for_no_more_than_itself() {
    let gate = Gate::shut();
    let origin =
        Origin::holding(&gate, |_, request| !request.headers().contains_key("range"), private_page).await;
    let stage = Stage::before(&origin).await;
    let whole = stage.spawn_get("/", &[]);
    stage.until(|_| origin.requests() == 1).await;
    let part = stage.spawn_get("/", &[("range", "bytes=0-1")]);
    stage.until_waiters(1).await;
    gate.open();
    assert_eq!(whole.await.unwrap().text(), "0123456789");
    let part = part.await.unwrap();
    assert_eq!((part.status, part.text(), origin.requests()), (206, "01", 2));
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Uncacheable), 1);
}

#[tokio::test(start_paused = true)]
async fn ranges_that_pass_beside_one_another_are_counted_like_other_fetches_and_those_in_turn_are_not() {
    let gate = Gate::shut();
    let origin = Origin::holding(&gate, |number, _| number > 4, private_page).await;
    let stage = Stage::before(&origin).await;
    let range = ("range", "bytes=0-1");
    let duplicates = || stage.telemetry.route(0).duplicates(DuplicateCause::Uncacheable);
    assert_eq!(stage.get("/").await.status, 200);
    for _ in 0..3 {
        assert_eq!(stage.get_with("/", &[range]).await.status, 206);
    }
    assert_eq!((origin.requests(), duplicates()), (4, 0));
    let mut together = Vec::new();
    for (number, headers) in
        [&[range][..], &[range], &[], &[range, ("authorization", "Basic eA==")]].iter().enumerate()
    {
        together.push(stage.spawn_get("/", headers));
        stage.until(|_| origin.requests() == 5 + number).await;
    }
    // One was needed, and who may not wait needs its own.
    assert_eq!(duplicates(), 2);
    gate.open();
    for answer in together {
        assert!(answer.await.unwrap().status < 300);
    }
    assert_eq!(stage.get_with("/", &[range]).await.status, 206);
    assert_eq!((origin.requests(), duplicates()), (9, 2));
}

#[tokio::test(start_paused = true)]
async fn ranges_that_pass_by_setting_are_what_was_asked_for_and_no_duplicates() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, 1.., |_| {
        page(206, &[("cache-control", "max-age=60"), ("content-range", "bytes 0-1/10")], "01")
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.pass_ranges = true;
    let stage = setting.start().await;
    let parts: Vec<_> = (0..3).map(|_| stage.spawn_get("/", &[("range", "bytes=0-1")])).collect();
    stage.until(|_| origin.requests() == 3).await;
    gate.open();
    for part in parts {
        assert_eq!(part.await.unwrap().status, 206);
    }
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Uncacheable), 0);
}
