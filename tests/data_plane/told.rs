//! What clients are told of the cache: `Age` (RFC 9111 §5.1), `Cache-Status` (RFC 9211), and by setting `X-Cache`.

use crate::scene::*;
use crate::support::*;

#[tokio::test(start_paused = true)]
async fn rfc9211_2_every_parameter() {
    let scene = Scene::with(|setting| setting.rules.honor_request_directives = true).await;
    for (answers, request, seconds, expected) in [
        (&["Cache-Control: max-age=60"][..], "", None, "fwd=uri-miss; fwd-status=200; ttl=60; stored"),
        (&["Cache-Control: max-age=60"], "", Some(20), "hit; ttl=40"),
        (&["Cache-Control: max-age=60, stale-while-revalidate=9"], "", Some(65), "hit; ttl=-5"),
        (&["Cache-Control: max-age=60\nAge: 20"], "", None, "fwd=uri-miss; fwd-status=200; ttl=40; stored"),
        (
            &["Cache-Control: max-age=60\nETag: \"a\"", "304"],
            "",
            Some(70),
            "fwd=stale; fwd-status=304; ttl=60; stored",
        ),
        (&["Cache-Control: max-age=60"], "", Some(70), "fwd=stale; fwd-status=200; ttl=60; stored"),
        (
            &["Cache-Control: max-age=60\nETag: \"a\"", "Cache-Control: max-age=9"],
            "",
            Some(70),
            "fwd=stale; fwd-status=200; ttl=9; stored",
        ),
        (
            &["Cache-Control: max-age=60"],
            "Cache-Control: no-cache",
            Some(1),
            "fwd=request; fwd-status=200; ttl=60; stored",
        ),
        (
            &["Cache-Control: max-age=60\nVary: Foo"],
            "Foo: 1",
            Some(1),
            "fwd=vary-miss; fwd-status=200; ttl=60; stored",
        ),
        (&["Cache-Control: max-age=60"], "PUT", None, "fwd=method; fwd-status=200; detail=method"),
        (&["404\nCache-Control: max-age=60"], "", None, "fwd=uri-miss; fwd-status=404; ttl=60; stored"),
        (&["Cache-Control: no-store"], "", None, "fwd=uri-miss; fwd-status=200; detail=no-store"),
        (&["Cache-Control: private"], "", None, "fwd=uri-miss; fwd-status=200; detail=private"),
        (
            &["Cache-Control: max-age=9\nSet-Cookie: a=1"],
            "",
            None,
            "fwd=uri-miss; fwd-status=200; detail=set-cookie",
        ),
        (&["Cache-Control: max-age=9\nVary: *"], "", None, "fwd=uri-miss; fwd-status=200; detail=vary-star"),
        (&["Cache-Control: no-cache"], "", None, "fwd=uri-miss; fwd-status=200; detail=no-cache"),
        (&["499"], "", None, "fwd=uri-miss; fwd-status=499; detail=no-freshness"),
        (&[""], "", None, "fwd=uri-miss; fwd-status=200; ttl=0; detail=no-freshness"),
        (
            &["Cache-Control: max-age=9"],
            "Authorization: Basic YTpi",
            None,
            "fwd=uri-miss; fwd-status=200; detail=authorization",
        ),
        (&["503"], "", None, "fwd=uri-miss; fwd-status=503; detail=failed"),
    ] {
        let target = scene.page(answers);
        if let Some(seconds) = seconds {
            scene.get(&target).await;
            scene.after(seconds).await;
        }
        let page = scene.ask(&target, request).await;
        assert_eq!(page.cache_status(), expected, "{answers:?} | {request}");
    }
    let scene = Scene::with(|setting| setting.rules.enabled = false).await;
    let target = scene.page(&["Cache-Control: max-age=60"]);
    assert_eq!(scene.get(&target).await.cache_status(), "fwd=bypass; fwd-status=200; detail=disabled");
}

#[tokio::test(start_paused = true)]
async fn rfc9211_2_7_collapsed() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, .., |_| page(200, &[("cache-control", "max-age=60")], "page")).await;
    let stage = Stage::before(&origin).await;
    let leader = stage.spawn_get("/", &[]);
    stage.until(|telemetry| telemetry.flights() == 1).await;
    let follower = stage.spawn_get("/", &[]);
    stage.until_waiters(1).await;
    gate.open();
    assert_eq!(leader.await.unwrap().cache_status(), "fwd=uri-miss; fwd-status=200; ttl=60; stored");
    assert_eq!(
        follower.await.unwrap().cache_status(),
        "fwd=uri-miss; fwd-status=200; ttl=60; stored; collapsed"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_says_so() {
    let scene = Scene::with(|setting| setting.coalescing.body_bytes_max = 4).await;
    let target = scene.page(&["Cache-Control: max-age=60\n\nfour", "Cache-Control: max-age=60\n\nlarge"]);
    assert!(scene.get(&target).await.cache_status().ends_with("; stored"));
    scene.after(61).await;
    assert_eq!(
        scene.get(&target).await.cache_status(),
        "fwd=stale; fwd-status=200; ttl=60; detail=too-large"
    );
}

#[tokio::test(start_paused = true)]
async fn rfc9211_2_the_members_of_caches_behind_come_first() {
    let scene = Scene::new().await;
    let target = scene.page(&["Cache-Control: max-age=60\nCache-Status: inner; hit"]);
    for own in ["fwd=uri-miss; fwd-status=200; ttl=60; stored", "hit; ttl=60"] {
        let page = scene.get(&target).await;
        let members: Vec<_> =
            page.headers.get_all("cache-status").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(members, ["inner; hit", &format!("forebay; {own}")]);
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9211_2_8_the_key_by_setting_only() {
    let scene = Scene::with(|setting| setting.proxy.cache_status_key = true).await;
    let target = scene.page(&["Cache-Control: max-age=60"]);
    let key = format!("key=\"http://site.example{target}\"");
    assert_eq!(
        scene.get(&target).await.cache_status(),
        format!("fwd=uri-miss; fwd-status=200; ttl=60; stored; {key}")
    );
    assert_eq!(scene.get(&target).await.cache_status(), format!("hit; ttl=60; {key}"));
}

#[tokio::test(start_paused = true)]
async fn x_cache_and_the_name_by_setting() {
    let scene = Scene::with(|setting| {
        setting.proxy.x_cache = true;
        setting.proxy.pseudonym = "edge-7".into();
    })
    .await;
    let target = scene.page(&["Cache-Control: max-age=60"]);
    let miss = scene.get(&target).await;
    let hit = scene.get(&target).await;
    assert_eq!((miss.header("x-cache"), hit.header("x-cache")), ("MISS", "HIT"));
    assert_eq!(hit.header("cache-status"), "edge-7; hit; ttl=60");
    assert_eq!(hit.header("via"), "1.1 edge-7");
    let scene = Scene::new().await;
    let target = scene.page(&["Cache-Control: max-age=60"]);
    assert!(!scene.get(&target).await.headers.contains_key("x-cache"));
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_1_age_on_every_stored_answer_and_on_no_other() {
    let scene = Scene::new().await;
    let target = scene.page(&["Cache-Control: max-age=60\nETag: \"a\"\n\n0123456789", "304\nETag: \"a\""]);
    assert!(!scene.get(&target).await.headers.contains_key("age"));
    for (seconds, age) in [(0, "0"), (1, "1"), (30, "31")] {
        scene.after(seconds).await;
        assert_eq!(scene.get(&target).await.header("age"), age);
    }
    for request in ["HEAD", "Range: bytes=1-2", "If-None-Match: \"a\"", "If-None-Match: \"b\""] {
        assert_eq!(scene.ask(&target, request).await.header("age"), "31", "{request}");
    }
    scene.after(30).await;
    assert!(!scene.get(&target).await.headers.contains_key("age"), "validated for this request");
    scene.after(9).await;
    assert_eq!(scene.get(&target).await.header("age"), "9");
}

#[tokio::test(start_paused = true)]
async fn what_a_miss_brings_goes_through_untouched() {
    let scene = Scene::new().await;
    for control in ["max-age=600", "no-store"] {
        let target = scene.page(&[&format!(
            "Cache-Control: {control}\nAge: 100\nExpires: {{-7}}\nCDN-Cache-Control: &\nDate: {{-9}}"
        )]);
        let (expires, date) = (scene.dated("{-7}"), scene.dated("{-9}"));
        let page = scene.get(&target).await;
        let found = ["age", "expires", "cdn-cache-control", "date"].map(|name| page.header(name));
        assert_eq!(found, ["100", &expires, "&", &date]);
    }
    let target = scene.page(&["Cache-Control: max-age=600\nAge: 100"]);
    scene.get(&target).await;
    scene.after(20).await;
    assert_eq!(scene.get(&target).await.header("age"), "120");
}
