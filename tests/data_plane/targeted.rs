//! Cache control for one kind of cache: `CDN-Cache-Control` and its kin (RFC 9213), and `Surrogate-Control`.

use crate::scene::*;
use http::HeaderName;

#[tokio::test(start_paused = true)]
async fn rfc9213_2_2_a_valid_field_replaces_cache_control_and_expires() {
    let scene = Scene::new().await;
    scene
        .check_all(&[
            ("CDN-Cache-Control: max-age=10", 9, Hit),
            ("CDN-Cache-Control: max-age=10", 10, Fetched),
            ("CDN-Cache-Control: max-age=10\nCache-Control: max-age=1", 9, Hit),
            ("CDN-Cache-Control: max-age=10\nCache-Control: no-store", 9, Hit),
            ("CDN-Cache-Control: max-age=10\nCache-Control: private", 9, Hit),
            ("CDN-Cache-Control: max-age=10\nCache-Control: no-cache", 9, Hit),
            ("CDN-Cache-Control: max-age=10\nExpires: {-10}", 9, Hit),
            ("CDN-Cache-Control: max-age=1\nCache-Control: max-age=100", 2, Fetched),
            ("CDN-Cache-Control: max-age=0\nCache-Control: max-age=100", 0, Fetched),
            ("CDN-Cache-Control: max-age=1\nExpires: {+100}", 2, Fetched),
            ("CDN-Cache-Control: no-store\nCache-Control: max-age=100", 1, Fetched),
            ("CDN-Cache-Control: private\nCache-Control: max-age=100", 1, Fetched),
            ("CDN-Cache-Control: no-cache\nCache-Control: max-age=100\nETag: \"a\"", 1, Validated),
            ("CDN-Cache-Control: foo\nCache-Control: max-age=100", 1, Fetched),
            ("CDN-Cache-Control: foo\nExpires: {+100}", 1, Fetched),
            ("CDN-Cache-Control: max-age=1, s-maxage=10", 9, Hit),
            ("CDN-Cache-Control: max-age=100\nAge: 50", 51, Fetched),
            ("CDN-Cache-Control: max-age=9;a=\"b\", foo=(1 2)", 8, Hit),
            ("CDN-Cache-Control: foo=?0\nCDN-Cache-Control: max-age=9", 8, Hit),
            ("CDN-Cache-Control:   max-age=9  ", 8, Hit),
            ("CDN-Cache-Control: max-age=1, max-age=9", 8, Hit),
            ("CDN-Cache-Control: max-age=999999999999999", 100, Hit),
        ])
        .await;
}

#[tokio::test(start_paused = true)]
async fn rfc9213_2_1_a_value_of_another_type_is_no_lifetime() {
    let scene = Scene::new().await;
    for value in [
        "max-age=10.0",
        "max-age=\"10\"",
        "max-age=ten",
        "max-age",
        "max-age=-1",
        "max-age=(10)",
        "max-age=?1",
    ] {
        scene.check(&format!("CDN-Cache-Control: {value}\nCache-Control: max-age=100"), "", 1, Fetched).await;
    }
    for value in ["no-store=1", "private=\"\"", "private=1", "no-store=?0"] {
        scene.check(&format!("CDN-Cache-Control: max-age=10, {value}"), "", 1, Fetched).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_field_with_such_a_value_lifts_no_restriction_of_those_behind_it() {
    let scene = Scene::new().await;
    for flawed in [
        "max-age=\"10\"",
        "max-age=ten",
        "stale-if-error=?0",
        "public=1, max-age=10",
        "max-age=10, no-cache=1",
    ] {
        for behind in [
            "Cache-Control: no-store",
            "Cache-Control: max-age=100, private",
            "Cache-Control: no-store, must-understand, private",
        ] {
            let response = format!("ETag: \"a\"\nForebay-Cache-Control: {flawed}\n{behind}");
            let target = scene.page(&[&response]);
            let page = scene.get(&target).await;
            assert!(page.cache_status().starts_with("fwd=uri-miss; fwd-status=200; detail="), "{response}");
            scene.check(&response, "", 1, Fetched).await;
        }
        // Of those behind it the first that is sound counts.
        let response = format!(
            "ETag: \"a\"\nForebay-Cache-Control: {flawed}\nCDN-Cache-Control: private\nCache-Control: max-age=9"
        );
        scene.check(&response, "", 1, Fetched).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9213_2_1_what_is_no_dictionary_is_as_good_as_absent() {
    let scene = Scene::new().await;
    for value in [
        "max-age=10, &&&",
        "max-age=",
        "MAX-AGE=10",
        "max-age=10,",
        "max-age=10;",
        "\"max-age=10\"",
        "max-age=1 0",
        "max-age=99999999999999999999",
        "max-age='10'",
        "",
    ] {
        scene.check(&format!("CDN-Cache-Control: {value}\nCache-Control: max-age=100"), "", 50, Hit).await;
        scene.check(&format!("CDN-Cache-Control: {value}\nCache-Control: no-store"), "", 1, Fetched).await;
        scene.check(&format!("CDN-Cache-Control: {value}"), "", 1, Fetched).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9213_2_2_the_target_list_has_an_order_and_is_a_setting() {
    let scene = Scene::new().await;
    scene
        .check_all(&[
            ("Forebay-Cache-Control: max-age=100\nCDN-Cache-Control: max-age=1", 50, Hit),
            ("Forebay-Cache-Control: max-age=1\nCDN-Cache-Control: max-age=100", 50, Fetched),
            ("Forebay-Cache-Control: &\nCDN-Cache-Control: max-age=100", 50, Hit),
            ("Other-Cache-Control: max-age=100\nCache-Control: max-age=1", 50, Fetched),
        ])
        .await;
    let name = HeaderName::from_static("other-cache-control");
    let scene = Scene::with(|setting| setting.rules.targeted_fields = vec![name]).await;
    scene
        .check_all(&[
            ("Other-Cache-Control: max-age=100\nCache-Control: max-age=1", 50, Hit),
            ("CDN-Cache-Control: max-age=100\nCache-Control: max-age=1", 50, Fetched),
        ])
        .await;
}

#[tokio::test(start_paused = true)]
async fn rfc9213_3_1_the_field_still_reaches_the_client() {
    let scene = Scene::new().await;
    let target = scene.page(&["CDN-Cache-Control: max-age=100\nCache-Control: max-age=1\nExpires: {+9}"]);
    let expires = scene.dated("{+9}");
    for _ in 0..2 {
        let page = scene.get(&target).await;
        let found = ["cdn-cache-control", "cache-control", "expires"].map(|name| page.header(name));
        assert_eq!(found, ["max-age=100", "max-age=1", &expires]);
    }
}

#[tokio::test(start_paused = true)]
async fn surrogate_control_by_setting() {
    let answers = [
        ("Surrogate-Control: max-age=100\nCache-Control: no-store", 50, Hit),
        ("Surrogate-Control: no-store\nCache-Control: max-age=100", 1, Fetched),
        ("Surrogate-Control: max-age=10+30\nCache-Control: no-store", 20, Hit),
        ("Surrogate-Control: content=\"ESI/1.0\", max-age=100", 50, Hit),
        ("Surrogate-Control: max-age=1\nCDN-Cache-Control: max-age=100", 50, Hit),
    ];
    let scene = Scene::with(|setting| setting.rules.surrogate_control = true).await;
    for (answer, seconds, expected) in answers {
        let target = scene.page(&[answer]);
        scene.get(&target).await;
        scene.after(seconds).await;
        let page = scene.get(&target).await;
        assert_eq!(
            page.cache_status().starts_with("hit"),
            expected == Hit,
            "{answer}: {}",
            page.cache_status()
        );
    }
    let scene = Scene::new().await;
    scene.check("Surrogate-Control: max-age=100\nCache-Control: max-age=1", "", 50, Fetched).await;
    scene.check("Surrogate-Control: no-store\nCache-Control: max-age=100", "", 50, Hit).await;
}
