//! The use of stale responses (RFC 9111 §4.2.4, RFC 5861).

use crate::scene::*;
use crate::support::*;
use forebay::proxy::{Purge, Target};
use std::time::Duration;

const WINDOW: &str = "Cache-Control: max-age=10, stale-while-revalidate=20\nETag: \"a\"\n\nold";

#[tokio::test(start_paused = true)]
async fn rfc5861_3_within_the_window_the_stale_is_served_and_refreshed_once() {
    let scene = Scene::new().await;
    let target = scene.page(&[WINDOW, "Cache-Control: max-age=10\n\nnew"]);
    scene.get(&target).await;
    scene.after(11).await;
    let stale = scene.get(&target).await;
    assert_eq!((stale.text(), stale.cache_status(), stale.header("age")), ("old", "hit; ttl=-1", "11"));
    scene.settled().await;
    assert_eq!(scene.asked(&target, 2).1["if-none-match"], "\"a\"");
    assert_eq!(scene.get(&target).await.text(), "new");
    assert_eq!(scene.count(&target), 2);
}

#[tokio::test(start_paused = true)]
async fn rfc5861_3_the_window_is_a_hard_limit() {
    let scene = Scene::new().await;
    for (seconds, expected) in [(10, "old"), (29, "old"), (30, "new"), (31, "new")] {
        let target = scene.page(&[WINDOW, "Cache-Control: max-age=10\n\nnew"]);
        scene.get(&target).await;
        scene.after(seconds).await;
        assert_eq!(scene.get(&target).await.text(), expected, "after {seconds} s");
        scene.settled().await;
    }
}

#[tokio::test(start_paused = true)]
async fn all_are_served_at_once_while_one_refreshes() {
    let gate = Gate::shut();
    let control = [("cache-control", "max-age=10, stale-while-revalidate=20")];
    let origin =
        Origin::behind(&gate, 2.., move |number| page(200, &control, format!("answer {number}"))).await;
    let stage = Stage::before(&origin).await;
    stage.get("/").await;
    tokio::time::advance(Duration::from_secs(11)).await;
    for _ in 0..50 {
        assert_eq!(stage.get("/").await.text(), "answer 1");
    }
    assert_eq!(origin.requests(), 2);
    gate.open();
    stage.until(|telemetry| telemetry.flights() == 0).await;
    assert_eq!(stage.get("/").await.text(), "answer 2");
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_of_what_is_purged_meanwhile_is_not_begun_once_more_for_nobody() {
    let gate = Gate::shut();
    let fields = [
        ("cache-control", "max-age=10, stale-while-revalidate=20"),
        ("etag", "\"a\""),
        ("surrogate-key", "a"),
    ];
    let answer = move |number| page(if number == 2 { 304 } else { 200 }, &fields, format!("answer {number}"));
    let origin = Origin::behind(&gate, 2..3, answer).await;
    let stage = Stage::before(&origin).await;
    stage.get("/").await;
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(stage.get("/").await.text(), "answer 1");
    stage.until(|_| origin.requests() == 2).await;
    let purge = Purge { target: Target::Tag("a".into()), soft: false };
    stage.proxy.purge(&purge).unwrap();
    gate.open();
    stage.until(|telemetry| telemetry.flights() == 0).await;
    assert_eq!(origin.requests(), 2);
    assert_eq!(stage.get("/").await.text(), "answer 3");
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_keeps_the_stale_one_to_its_limit_and_pauses() {
    let scene = Scene::new().await;
    let target = scene.page(&[WINDOW, "503\n\nbusy"]);
    scene.get(&target).await;
    scene.after(11).await;
    for _ in 0..20 {
        assert_eq!(scene.get(&target).await.text(), "old");
        scene.settled().await;
    }
    assert_eq!(scene.count(&target), 2, "a failing upstream is not hammered");
    scene.after(10).await;
    assert_eq!(scene.get(&target).await.text(), "old");
    scene.settled().await;
    assert_eq!(scene.count(&target), 3);
    scene.after(10).await;
    assert_eq!(scene.get(&target).await.status, 503);
}

#[tokio::test(start_paused = true)]
async fn a_background_answer_that_may_not_be_stored_ends_it() {
    let scene = Scene::new().await;
    for (answer, conditional) in [
        ("Cache-Control: no-store\n\nnew", false),
        ("Cache-Control: private, max-age=60\n\nnew", false),
        ("Cache-Control: max-age=60\nSet-Cookie: a=1\n\nnew", false),
        ("Cache-Control: no-cache\n\nnew", false),
        ("Cache-Control: no-cache\nETag: \"b\"\n\nnew", true),
        ("Cache-Control: max-age=0\n\nnew", false),
        ("404\n\nnew", false),
        ("404\nCache-Control: no-store\n\nnew", false),
        ("304\nCache-Control: no-store\nETag: \"a\"", false),
        ("304\nCache-Control: no-cache\nETag: \"a\"", true),
    ] {
        let target = scene.page(&[WINDOW, answer, "Cache-Control: no-store\n\nthird"]);
        scene.get(&target).await;
        scene.after(11).await;
        assert_eq!(scene.get(&target).await.text(), "old");
        scene.settled().await;
        assert_eq!(scene.get(&target).await.text(), "third", "{answer}");
        assert_eq!(scene.asked(&target, 3).1.contains_key("if-none-match"), conditional, "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_4_never_where_it_is_forbidden() {
    let scene = Scene::with(|setting| {
        setting.rules.stale_while_revalidate = Duration::from_secs(100);
        setting.rules.stale_if_error = Duration::from_secs(100);
    })
    .await;
    for control in [
        "max-age=5, must-revalidate",
        "max-age=5, proxy-revalidate",
        "s-maxage=5",
        "no-cache",
        "max-age=5, must-revalidate, stale-while-revalidate=100",
        "max-age=5, must-revalidate, stale-if-error=100",
        "s-maxage=5, proxy-revalidate, stale-while-revalidate=100",
        "no-cache, stale-if-error=100",
        "max-age=5, stale-while-revalidate=0, stale-if-error=0",
    ] {
        let target = scene.page(&[&format!("Cache-Control: {control}\nETag: \"a\"\n\nold"), "503\n\nbusy"]);
        scene.get(&target).await;
        scene.after(6).await;
        assert_eq!(scene.get(&target).await.status, 503, "{control}");
        assert_eq!(scene.came_to(&target, 1), Validated, "{control}");
    }
    // An origin that permits it beside s-maxage means it.
    scene.check("Cache-Control: s-maxage=5\nETag: \"a\"", "", 6, Validated).await;
    let target = scene.page(&["Cache-Control: s-maxage=5, stale-while-revalidate=10\n\nold"]);
    scene.get(&target).await;
    scene.after(6).await;
    assert_eq!(scene.get(&target).await.text(), "old");
}

#[tokio::test(start_paused = true)]
async fn rfc5861_4_on_an_error_within_the_limit() {
    let scene = Scene::new().await;
    let stored = "Cache-Control: max-age=5, stale-if-error=20\nETag: \"a\"\n\nold";
    for (error, seconds, status) in [
        ("500", 6, 200),
        ("502", 6, 200),
        ("503", 6, 200),
        ("504", 24, 200),
        ("503", 25, 503),
        ("503", 26, 503),
        ("501", 6, 501),
        ("505", 6, 505),
        ("599", 6, 599),
        ("404", 6, 404),
        ("403\nCache-Control: no-store", 6, 403),
    ] {
        let target = scene.page(&[stored, error]);
        scene.get(&target).await;
        scene.after(seconds).await;
        let page = scene.get(&target).await;
        assert_eq!(page.status, status, "{error} after {seconds} s");
        if status == 200 {
            assert_eq!(
                page.cache_status(),
                format!(
                    "fwd=stale; fwd-status={error}; ttl={}; detail=failed",
                    5 - i64::try_from(seconds).unwrap()
                )
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_stands_in_for_no_answer_names_no_status_of_an_answer() {
    let origin = Origin::start(|number, _| async move {
        if number > 1 {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        page(200, &[("cache-control", "max-age=5, stale-if-error=600")], "old")
    })
    .await;
    let stage = Stage::before(&origin).await;
    stage.get("/").await;
    tokio::time::advance(Duration::from_secs(6)).await;
    let stale = stage.get("/").await;
    assert_eq!((stale.status, stale.text()), (200, "old"));
    let told = stale.cache_status();
    assert!(told.starts_with("fwd=stale; ttl=") && told.ends_with("detail=failed"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn grace_by_setting_where_the_response_says_nothing() {
    let scene = Scene::with(|setting| {
        setting.rules.stale_while_revalidate = Duration::from_secs(10);
        setting.rules.stale_if_error = Duration::from_secs(30);
    })
    .await;
    let target = scene.page(&["Cache-Control: max-age=5\n\nold", "503"]);
    scene.get(&target).await;
    for (seconds, status) in [(6, 200), (10, 200), (18, 200), (2, 503)] {
        scene.after(seconds).await;
        assert_eq!(scene.get(&target).await.status, status, "{seconds} s later");
        scene.settled().await;
    }
    let target = scene.page(&["Cache-Control: max-age=5, stale-while-revalidate=0\n\nold", "\n\nnew"]);
    scene.get(&target).await;
    scene.after(6).await;
    assert_eq!(scene.get(&target).await.text(), "new");
}

#[tokio::test(start_paused = true)]
async fn early_refresh_renews_a_fresh_response_before_it_expires() {
    for (weight, expected) in [(None, 1), (Some(1e12), 2)] {
        let origin = Origin::start(|number, _| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            page(200, &[("cache-control", "max-age=60")], format!("answer {number}"))
        })
        .await;
        let mut setting = Setting::before(origin.address);
        setting.rules.early_refresh = weight;
        let stage = setting.start().await;
        stage.get("/").await;
        tokio::time::advance(Duration::from_secs(30)).await;
        let hit = stage.get("/").await;
        assert_eq!((hit.text(), hit.cache_status()), ("answer 1", "hit; ttl=29"));
        stage.until(|telemetry| telemetry.flights() == 0).await;
        assert_eq!(origin.requests(), expected);
        assert_eq!(stage.get("/").await.text(), format!("answer {expected}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_stale_body_is_not_held_back_by_its_refresh() {
    let gate = Gate::shut();
    let control = [("cache-control", "max-age=1, stale-while-revalidate=20")];
    let origin = Origin::behind(&gate, 2.., move |_| page(200, &control, vec![b'.'; 4 << 20])).await;
    let mut setting = Setting::before(origin.address);
    setting.transport = origin.transport();
    let stage = setting.start().await;
    let mut client = stage.piped_client().await;
    client.get("/").await;
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(client.get("/").await.body.len(), 4 << 20);
    gate.open();
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_2_without_the_upstream_what_must_be_revalidated_is_a_504() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await;
        let answer = "HTTP/1.1 200 OK\r\ncache-control: max-age=1, must-revalidate\r\netag: \"1\"\r\ncontent-length: 2\r\n\r\nok";
        tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.unwrap();
        // And nobody listens any more.
    });
    let mut setting = Setting::before(address);
    setting.rules.stale_if_error = Duration::from_secs(3600);
    let stage = setting.start().await;
    assert_eq!(stage.get("/").await.text(), "ok");
    tokio::time::advance(Duration::from_secs(5)).await;
    let answer = stage.get("/").await;
    assert_eq!((answer.status, answer.header("proxy-status")), (504, "forebay; error=connection_refused"));
}
