//! What a successful unsafe request outdates (RFC 9111 §4.4, RFC 9875).

use crate::scene::*;

const STORED: &str = "Cache-Control: max-age=600";

/// Stores `other`, sends a request for `/target` that is answered so, and asks whether `other` is still stored.
async fn check(method: &str, answer: &str, other: &str, is_outdated: bool) {
    let scene = Scene::new().await;
    scene.page_at(other, &[STORED]);
    scene.get(other).await;
    if other == "/target" {
        scene.page_at("/target", &[STORED, answer, STORED]);
        scene.page_at("/target", &[answer, STORED]);
    } else {
        scene.page_at("/target", &[answer]);
    }
    scene.ask("/target", method).await;
    let before = scene.count(other);
    scene.get(other).await;
    let expected = if is_outdated { Fetched } else { Hit };
    assert_eq!(scene.came_to(other, before), expected, "{method} | {answer} | {other}");
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_4_a_success_or_redirection_outdates_the_target() {
    for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH", "FOO", "post", "MKCOL"] {
        for status in [200, 201, 204, 299, 301, 303, 307] {
            check(method, &status.to_string(), "/target", true).await;
        }
        for status in [400, 404, 410, 500, 503] {
            check(method, &status.to_string(), "/target", false).await;
        }
    }
    for method in ["OPTIONS", "PROPFIND", "HEAD"] {
        check(method, "200", "/target", false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_4_uris_of_the_same_origin_that_the_answer_names() {
    for name in ["Location", "Content-Location"] {
        for (uri, is_outdated) in [
            ("/other", true),
            ("other", true),
            ("./x/../other", true),
            ("http://site.example/other", true),
            ("HTTP://SITE.example:80/other", true),
            ("//site.example/other", true),
            ("/other#fragment", true),
            ("http://else.example/other", false),
            ("https://site.example/other", false),
            ("http://site.example:8080/other", false),
            ("/othe", false),
            ("/other?x", false),
        ] {
            check("POST", &format!("201\n{name}: {uri}"), "/other", is_outdated).await;
        }
        check("POST", &format!("404\n{name}: /other"), "/other", false).await;
        check("OPTIONS", &format!("200\n{name}: /other"), "/other", false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn it_takes_every_variant_and_no_other_query() {
    let scene = Scene::new().await;
    let varying = "Cache-Control: max-age=600\nVary: Foo";
    scene.page_at("/a", &[varying]);
    scene.page_at("/a?b", &[varying]);
    for foo in ["Foo: 1", "Foo: 2"] {
        scene.ask("/a", foo).await;
        scene.ask("/a?b", foo).await;
    }
    scene.ask("/a", "DELETE").await;
    for foo in ["Foo: 1", "Foo: 2"] {
        scene.ask("/a", foo).await;
        scene.ask("/a?b", foo).await;
    }
    assert_eq!((scene.count("/a"), scene.count("/a?b")), (5, 2));
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_was_under_way_is_outdated_too() {
    use crate::support::*;
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, ..=1, |number| {
        page(200, &[("cache-control", "max-age=60")], format!("answer {number}"))
    })
    .await;
    let stage = Stage::before(&origin).await;
    let before = stage.spawn_get("/", &[]);
    stage.until(|telemetry| telemetry.flights() == 1).await;
    stage.send("POST", "/", &[]).await;
    gate.open();
    assert_eq!(before.await.unwrap().text(), "answer 1");
    assert_eq!(stage.get("/").await.text(), "answer 3");
}

#[tokio::test(start_paused = true)]
async fn rfc9875_3_groups_are_outdated_within_their_origin() {
    let scene = Scene::new().await;
    for (target, groups) in
        [("/a", "\"g\""), ("/b", "\"g\", \"h\""), ("/c", "\"h\""), ("/d", "g"), ("/e", "\"G\"")]
    {
        scene.page_at(target, &[&format!("Cache-Control: max-age=600\nCache-Groups: {groups}")]);
        scene.get(target).await;
    }
    scene.ask("/a", "Host: else.example").await;
    // A safe request outdates nothing.
    scene.page_at("/safe", &["Cache-Group-Invalidation: \"g\""]);
    scene.get("/safe").await;
    scene.get("/a").await;
    assert_eq!(scene.count("/a"), 2);
    scene.page_at("/unsafe", &["Cache-Group-Invalidation: \"g\""]);
    scene.ask("/unsafe", "POST").await;
    for (target, count) in [("/a", 3), ("/b", 2), ("/c", 1), ("/d", 1), ("/e", 1)] {
        scene.get(target).await;
        assert_eq!(scene.count(target), count, "{target}");
    }
    scene.ask("/a", "Host: else.example").await;
    assert_eq!(scene.count("/a"), 3);
}
