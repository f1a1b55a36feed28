//! Which stored response is for a request (RFC 9111 §4.1).

use crate::scene::*;

/// Asks with the first request, then with the second: may it use the answer to the first?
async fn check(scene: &Scene, vary: &str, first: &str, second: &str, expected: Reuse) {
    let target = scene.page(&[&format!("Cache-Control: max-age=60\n{vary}")]);
    scene.ask(&target, first).await;
    scene.ask(&target, second).await;
    assert_eq!(scene.came_to(&target, 1), expected, "{vary} | {first} | {second}");
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_1_selecting_fields_must_match() {
    let scene = Scene::new().await;
    for (vary, first, second, expected) in [
        ("Vary: Foo", "Foo: 1", "Foo: 1", Hit),
        ("Vary: foo", "FOO: 1", "foo: 1", Hit),
        ("Vary: Foo", "Foo: 1", "Foo: 2", Fetched),
        ("Vary: Foo", "Foo: 1", "", Fetched),
        ("Vary: Foo", "", "Foo: 1", Fetched),
        ("Vary: Foo", "", "", Hit),
        ("Vary: Foo", "Foo: 1", "Foo: 1\nOther: 2", Hit),
        ("Vary: Foo", "Foo: 1\nOther: 3", "Foo: 1\nOther: 2", Hit),
        ("Vary: Foo, Bar", "Foo: 1\nBar: a", "Foo: 1\nBar: a", Hit),
        ("Vary: Foo, Bar", "Foo: 1\nBar: a", "Foo: 2\nBar: a", Fetched),
        ("Vary: Foo, Bar", "Foo: 1\nBar: a", "Foo: 1\nBar: b", Fetched),
        ("Vary: Foo, Bar", "Foo: 1\nBar: a", "Foo: 1", Fetched),
        ("Vary: Foo\nVary: Bar", "Foo: 1\nBar: a", "Foo: 1\nBar: b", Fetched),
        ("Vary: Foo, Bar, Baz", "Foo: 1\nBar: a\nBaz: x", "Baz: x\nBar: a\nFoo: 1", Hit),
        ("Vary: Foo", "Foo: 1, 2", "Foo: 1,2", Hit),
        ("Vary: Foo", "Foo: 1, 2", "Foo: 1\nFoo: 2", Hit),
        ("Vary: Foo", "Foo: 1, 2", "Foo: 2, 1", Fetched),
        ("Vary: Foo", "Foo: a", "Foo: A", Fetched),
        ("Vary:", "Foo: a", "Foo: b", Hit),
        ("Vary: ,", "Foo: a", "Foo: b", Hit),
        ("Vary: , Foo", "Foo: a", "Foo: b", Fetched),
        ("Vary: User-Agent", "User-Agent: a", "User-Agent: b", Fetched),
        ("Vary: Cookie", "Cookie: a=1", "Cookie: a=2", Fetched),
        ("Vary: Cookie", "Cookie: a=1", "Cookie: a=1", Hit),
        ("Vary: Host", "", "", Hit),
        ("Vary: Origin", "Origin: http://a", "Origin: http://b", Fetched),
    ] {
        check(&scene, vary, first, second, expected).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_1_a_star_never_matches() {
    let scene = Scene::new().await;
    for vary in [
        "Vary: *",
        "Vary: *, *",
        "Vary: *, Foo",
        "Vary: Foo, *",
        "Vary: Foo ,*",
        "Vary: ,*",
        "Vary:\nVary: *",
        "Vary: Foo\nVary: *",
        "Vary: *\nVary: Foo",
        "Vary: @@@",
        "Vary: Foo Bar",
        // What this proxy says of a client is no field of the client's.
        "Vary: X-Forwarded-For",
        "Vary: Foo, Forwarded",
    ] {
        check(&scene, vary, "Foo: 1", "Foo: 1", Fetched).await;
    }
}

#[tokio::test(start_paused = true)]
async fn fields_of_known_meaning_are_compared_by_it() {
    let scene = Scene::new().await;
    let encoding = "Vary: Accept-Encoding";
    let language = "Vary: Accept-Language";
    for (vary, first, second, expected) in [
        (encoding, "Accept-Encoding: gzip, br", "Accept-Encoding: br,gzip", Hit),
        (encoding, "Accept-Encoding: GZip", "Accept-Encoding: gzip;q=1", Hit),
        (encoding, "Accept-Encoding: gzip, sdch", "Accept-Encoding: gzip", Hit),
        (encoding, "Accept-Encoding: gzip", "Accept-Encoding: br", Fetched),
        (encoding, "Accept-Encoding: gzip", "", Fetched),
        (language, "Accept-Language: en, de", "Accept-Language: de, en", Hit),
        (language, "Accept-Language: en, de;q=0.5", "Accept-Language: de;q=0.5, EN", Hit),
        (language, "Accept-Language: en, de;q=0.5", "Accept-Language: de, en;q=0.5", Fetched),
        (language, "Accept-Language: en", "Accept-Language: en, de", Fetched),
    ] {
        check(&scene, vary, first, second, expected).await;
    }
}

#[tokio::test(start_paused = true)]
async fn several_variants_live_side_by_side_and_expire_one_by_one() {
    let scene = Scene::new().await;
    let target = scene.page(&[
        "Cache-Control: max-age=60\nVary: Foo\n\none",
        "Cache-Control: max-age=20\nVary: Foo\n\ntwo",
        "Cache-Control: max-age=60\nVary: Foo\n\nthree",
        "Cache-Control: max-age=60\nVary: Foo\n\nfour",
    ]);
    for _ in 0..2 {
        for (foo, expected) in [("1", "one"), ("2", "two"), ("3", "three")] {
            assert_eq!(scene.ask(&target, &format!("Foo: {foo}")).await.text(), expected);
        }
    }
    assert_eq!(scene.count(&target), 3);
    scene.after(30).await;
    for (foo, expected) in [("1", "one"), ("2", "four"), ("3", "three")] {
        assert_eq!(scene.ask(&target, &format!("Foo: {foo}")).await.text(), expected);
    }
    assert_eq!(scene.count(&target), 4);
}

#[tokio::test(start_paused = true)]
async fn variants_are_bounded_and_the_oldest_leaves_first() {
    let scene = Scene::with(|setting| setting.store.variants_max = 3).await;
    let target = scene.page(&["Cache-Control: max-age=60\nVary: Foo"]);
    for foo in 1..=4 {
        scene.ask(&target, &format!("Foo: {foo}")).await;
    }
    for foo in 2..=4 {
        scene.ask(&target, &format!("Foo: {foo}")).await;
    }
    assert_eq!(scene.count(&target), 4);
    scene.ask(&target, "Foo: 1").await;
    assert_eq!(scene.count(&target), 5);
}

#[tokio::test(start_paused = true)]
async fn the_selecting_fields_may_change_and_the_newest_decide() {
    let scene = Scene::new().await;
    let target = scene.page(&[
        "Cache-Control: max-age=60\nVary: Foo\n\nfoo",
        "Cache-Control: max-age=60\nVary: Bar\n\nbar",
        "Cache-Control: max-age=60\n\nnone",
    ]);
    assert_eq!(scene.ask(&target, "Foo: 1\nBar: 1").await.text(), "foo");
    assert_eq!(scene.ask(&target, "Foo: 2\nBar: 1").await.text(), "bar");
    // Both match; the newer one is used.
    assert_eq!(scene.ask(&target, "Foo: 1\nBar: 1").await.text(), "bar");
    assert_eq!(scene.ask(&target, "Foo: 3\nBar: 3").await.text(), "none");
    // An answer without Vary takes the place of all others.
    assert_eq!(scene.ask(&target, "Foo: 1\nBar: 1").await.text(), "none");
    assert_eq!(scene.count(&target), 3);
}

#[tokio::test(start_paused = true)]
async fn a_variant_that_does_not_match_is_a_miss_that_says_so() {
    let scene = Scene::new().await;
    let target = scene.page(&["Cache-Control: max-age=60\nVary: Foo"]);
    assert!(scene.ask(&target, "Foo: 1").await.cache_status().starts_with("fwd=uri-miss"));
    assert!(scene.ask(&target, "Foo: 2").await.cache_status().starts_with("fwd=vary-miss"));
}
