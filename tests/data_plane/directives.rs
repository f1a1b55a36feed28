//! What clients say of caching (RFC 9111 §5.2.1, §5.4): advice that a route takes only by setting.

use crate::scene::*;

const STORED: &str = "Cache-Control: max-age=20\nETag: \"a\"";

async fn honoring() -> Scene {
    Scene::with(|setting| setting.rules.honor_request_directives = true).await
}

#[tokio::test(start_paused = true)]
async fn by_default_clients_cannot_defeat_the_cache() {
    let scene = Scene::new().await;
    for request in [
        "Cache-Control: no-cache",
        "Cache-Control: no-store",
        "Cache-Control: max-age=0",
        "Cache-Control: max-age=1",
        "Cache-Control: min-fresh=100",
        "Cache-Control: no-cache\nPragma: no-cache",
        "Pragma: no-cache",
        "Cache-Control: only-if-cached",
        "Cache-Control: unknown",
        "Pragma: foo",
    ] {
        scene.check(STORED, request, 10, Hit).await;
        let target = scene.page(&[STORED]);
        assert_eq!(scene.ask(&target, request).await.status, 200);
        assert_eq!(scene.get(&target).await.status, 200);
        assert_eq!(scene.count(&target), 1, "{request}");
        let (_, asked) = scene.asked(&target, 1);
        assert!(
            !asked.contains_key("cache-control") && !asked.contains_key("pragma"),
            "{request} went upstream"
        );
    }
    scene.check(STORED, "Cache-Control: max-stale=100", 25, Validated).await;
    scene.check(STORED, "Cache-Control: max-stale", 25, Validated).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_1_by_setting_they_are_honoured() {
    let scene = honoring().await;
    for (request, seconds, expected) in [
        ("Cache-Control: max-age=0", 1, Validated),
        ("Cache-Control: max-age=15", 14, Hit),
        ("Cache-Control: max-age=15", 16, Validated),
        ("Cache-Control: max-age=\"15\"", 14, Hit),
        ("Cache-Control: max-age=rubbish", 1, Validated),
        ("Cache-Control: max-age=9999", 21, Validated),
        ("Cache-Control: min-fresh=5", 14, Hit),
        ("Cache-Control: min-fresh=5", 16, Validated),
        ("Cache-Control: min-fresh=100", 0, Validated),
        ("Cache-Control: no-cache", 1, Validated),
        ("Cache-Control: NO-CACHE", 1, Validated),
        ("Cache-Control: foo, no-cache", 1, Validated),
        ("Cache-Control: no-store", 1, Fetched),
        ("Cache-Control: unknown", 1, Hit),
        ("Cache-Control: no-cache-please", 1, Hit),
        ("Cache-Control: only-if-cached", 1, Hit),
        ("Cache-Control: max-stale", 1000, Hit),
        ("Cache-Control: max-stale=10", 29, Hit),
        ("Cache-Control: max-stale=10", 31, Validated),
        ("Cache-Control: max-stale=10, max-age=25", 24, Hit),
        ("Cache-Control: max-stale=10, max-age=25", 27, Validated),
        ("Cache-Control: max-stale=10, min-fresh=1", 25, Validated),
        ("Pragma: no-cache", 1, Validated),
        ("Pragma: No-Cache", 1, Validated),
        ("Pragma: foo, no-cache", 1, Validated),
        ("Pragma: foo", 1, Hit),
        ("Pragma: no-cache\nCache-Control: max-age=100", 1, Hit),
        ("Pragma: no-cache\nCache-Control: unknown", 1, Hit),
    ] {
        scene.check(STORED, request, seconds, expected).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_1_2_what_the_response_forbids_no_client_permits() {
    let scene = honoring().await;
    for control in ["max-age=5, must-revalidate", "max-age=5, proxy-revalidate", "s-maxage=5", "no-cache"] {
        let stored = format!("Cache-Control: {control}\nETag: \"a\"");
        scene.check(&stored, "Cache-Control: max-stale=1000", 6, Validated).await;
        scene.check(&stored, "Cache-Control: max-stale", 6, Validated).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_1_5_the_answer_to_no_store_is_not_stored() {
    let scene = honoring().await;
    let target = scene.page(&[STORED]);
    let page = scene.ask(&target, "Cache-Control: no-store").await;
    assert_eq!(page.cache_status(), "fwd=request; fwd-status=200; detail=request-no-store");
    scene.get(&target).await;
    assert_eq!(scene.count(&target), 2);
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_1_7_only_if_cached_is_a_504_where_nothing_is() {
    let scene = honoring().await;
    let target = scene.page(&[STORED]);
    assert_eq!(scene.ask(&target, "Cache-Control: only-if-cached").await.status, 504);
    scene.get(&target).await;
    assert_eq!(scene.ask(&target, "Cache-Control: only-if-cached").await.status, 200);
    scene.after(21).await;
    let page = scene.ask(&target, "Cache-Control: only-if-cached").await;
    assert_eq!((page.status, page.cache_status()), (504, "detail=only-if-cached"));
    assert_eq!(scene.ask(&target, "Cache-Control: only-if-cached, max-stale").await.status, 200);
    assert_eq!(scene.count(&target), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_reload_fetches_serves_all_who_come_later() {
    let scene = honoring().await;
    let target = scene.page(&["Cache-Control: max-age=60"]);
    scene.get(&target).await;
    let reloaded = scene.ask(&target, "Cache-Control: no-cache").await;
    assert_eq!(reloaded.text(), "answer 2");
    assert!(
        reloaded.cache_status().starts_with("fwd=request; fwd-status=200"),
        "{}",
        reloaded.cache_status()
    );
    assert_eq!(scene.asked(&target, 2).1["cache-control"], "no-cache");
    assert_eq!(scene.get(&target).await.text(), "answer 2");
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_1_4_a_reload_asks_whether_what_is_stored_still_holds() {
    let scene = honoring().await;
    let target = scene.page(&["Cache-Control: max-age=20\nETag: \"a\"\n\nold", "304", "ETag: \"b\"\n\nnew"]);
    scene.get(&target).await;
    scene.after(15).await;
    let confirmed = scene.ask(&target, "Cache-Control: max-age=0").await;
    assert_eq!((confirmed.status, confirmed.text()), (200, "old"));
    assert_eq!(confirmed.cache_status(), "fwd=request; fwd-status=304; ttl=20; stored");
    assert_eq!(scene.asked(&target, 2).1["if-none-match"], "\"a\"");
    // The confirmation is for all.
    scene.after(15).await;
    assert_eq!(scene.get(&target).await.cache_status(), "hit; ttl=5");
    let replaced = scene.ask(&target, "Cache-Control: no-cache").await;
    assert_eq!(replaced.text(), "new");
    assert!(
        replaced.cache_status().starts_with("fwd=request; fwd-status=200"),
        "{}",
        replaced.cache_status()
    );
    assert_eq!(scene.count(&target), 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_fresh_stands_in_where_a_reload_fails_and_leaves_where_it_is_for_one_alone() {
    let scene = honoring().await;
    let target = scene.page(&[STORED, "503", "Cache-Control: private"]);
    scene.get(&target).await;
    let page = scene.ask(&target, "Cache-Control: no-cache").await;
    assert_eq!((page.status, page.text()), (200, "answer 1"));
    assert_eq!(page.cache_status(), "fwd=request; fwd-status=503; ttl=20; detail=failed");
    // What the upstream says now is not for the store, and neither is what it said before.
    scene.after(1).await;
    assert_eq!(scene.ask(&target, "Cache-Control: no-cache").await.text(), "answer 3");
    assert_eq!(scene.get(&target).await.text(), "answer 4");
}

#[tokio::test(start_paused = true)]
async fn rfc5861_4_stale_if_error_of_a_request() {
    let scene = honoring().await;
    for (request, seconds, status) in [
        ("Cache-Control: stale-if-error=10", 29, 200),
        ("Cache-Control: stale-if-error=10", 31, 503),
        ("", 21, 503),
    ] {
        let target = scene.page(&[STORED, "503"]);
        scene.get(&target).await;
        scene.after(seconds).await;
        assert_eq!(scene.ask(&target, request).await.status, status, "{request} after {seconds} s");
    }
}
