//! Which responses may be stored (RFC 9111 §3), and what is stored of them.

use crate::scene::*;
use crate::support::*;

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_what_forbids_to_store_wins() {
    let scene = Scene::new().await;
    for value in [
        "no-store",
        "No-StOrE",
        "no-store, max-age=60",
        "max-age=60, no-store",
        "public, max-age=60, no-store",
        "private",
        "private, max-age=60",
        "PRIVATE, max-age=60, public",
        "s-maxage=60, private",
        "private=yes, max-age=60",
        "max-age=60\nCache-Control: no-store",
        "max-age=60\nCache-Control: private",
        "max-age=60; no-store",
        "max-age=60, no-store=\"\"",
        "max-age=60, 'private'",
        "max-age=60, private=\"\"",
        "no-cache, max-age=60",
        "no-cache",
        "must-understand, no-store, max-age=60\nVary: *",
    ] {
        scene.check(&format!("Cache-Control: {value}"), "", 1, Fetched).await;
        let with_validator = scene.reuse(&format!("Cache-Control: {value}\nETag: \"a\""), "", 1).await;
        let expected = if value.starts_with("no-cache") { Validated } else { Fetched };
        assert_eq!(with_validator, expected, "{value}");
    }
    for value in [
        "extension=\"no-store\", max-age=60",
        "no-stores, max-age=60",
        "public, max-age=60",
        "max-age=60, foo=bar",
    ] {
        scene.check(&format!("Cache-Control: {value}"), "", 1, Hit).await;
    }
    // Pragma in a response means nothing (§5.4).
    scene.check("Cache-Control: max-age=60\nPragma: no-cache", "", 1, Hit).await;
    scene.check("Expires: {+60}\nPragma: no-cache", "", 1, Hit).await;
    scene.check("Last-Modified: {-10000}\nPragma: no-cache", "", 1, Hit).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_3_must_understand() {
    let scene = Scene::new().await;
    scene
        .check_all(&[
            ("Cache-Control: no-store, must-understand, max-age=60", 1, Hit),
            ("404\nCache-Control: no-store, must-understand, max-age=60", 1, Hit),
            ("499\nCache-Control: no-store, must-understand, max-age=60", 1, Fetched),
            ("499\nCache-Control: must-understand, max-age=60", 1, Fetched),
            ("299\nCache-Control: must-understand, max-age=60", 1, Fetched),
            ("Cache-Control: must-understand, max-age=60", 1, Hit),
        ])
        .await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_4_no_cache_is_stored_and_validated_on_every_use() {
    let scene = Scene::new().await;
    let target = scene.page(&[
        "Cache-Control: no-cache, max-age=60\nETag: \"a\"\n\nkept",
        "304\nCache-Control: no-cache, max-age=60\nETag: \"a\"",
    ]);
    assert_eq!(scene.get(&target).await.text(), "kept");
    for number in 2..=4 {
        assert_eq!(scene.get(&target).await.text(), "kept");
        assert_eq!(scene.asked(&target, number).1["if-none-match"], "\"a\"");
    }
    assert_eq!(scene.count(&target), 4);
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_7_qualified_forms_withhold_fields_from_all_but_the_asker() {
    let scene = Scene::new().await;
    for control in ["private=\"X-Mine\", max-age=60", "no-cache=\"x-mine, x-other\", max-age=60"] {
        let target = scene.page(&[&format!("Cache-Control: {control}\nX-Mine: 1\nX-Theirs: 2")]);
        let asker = scene.get(&target).await;
        assert_eq!((asker.header("x-mine"), asker.header("x-theirs")), ("1", "2"), "{control}");
        let other = scene.get(&target).await;
        assert_eq!((other.header("x-mine"), other.header("x-theirs")), ("", "2"), "{control}");
        assert_eq!(scene.count(&target), 1);
    }
    // Alone or waited for, the asker is the asker.
    let target = scene.page(&["Cache-Control: public, private=\"x-mine\", max-age=60\nX-Mine: 1"]);
    let asker = scene.ask(&target, "Authorization: Basic YTpi").await;
    assert_eq!(asker.header("x-mine"), "1");
    assert_eq!(scene.get(&target).await.header("x-mine"), "");
    assert_eq!(scene.count(&target), 1);
}

#[tokio::test(start_paused = true)]
async fn a_follower_does_not_get_what_is_withheld() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, .., |_| {
        page(200, &[("cache-control", "private=\"x-mine\", max-age=60"), ("x-mine", "1")], "page")
    })
    .await;
    let stage = Stage::before(&origin).await;
    let leader = stage.spawn_get("/", &[]);
    stage.until(|telemetry| telemetry.flights() == 1).await;
    let follower = stage.spawn_get("/", &[]);
    stage.until_waiters(1).await;
    gate.open();
    assert_eq!(leader.await.unwrap().header("x-mine"), "1");
    assert_eq!(follower.await.unwrap().header("x-mine"), "");
}

#[tokio::test(start_paused = true)]
async fn set_cookie_is_not_stored_unless_the_route_opts_in() {
    let answer = "Cache-Control: max-age=60\nSet-Cookie: a=1\nSet-Cookie: b=2";
    Scene::new().await.check(answer, "", 1, Fetched).await;
    let scene = Scene::with(|setting| setting.rules.store_set_cookie = true).await;
    let target = scene.page(&[answer]);
    for _ in 0..2 {
        let page = scene.get(&target).await;
        let cookies: Vec<_> = page.headers.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1", "b=2"]);
    }
    assert_eq!(scene.count(&target), 1);
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_7_a_cookie_that_is_withheld_reaches_the_asker_alone() {
    let scene = Scene::new().await;
    let target = scene.page(&["Cache-Control: max-age=60, private=\"Set-Cookie\"\nSet-Cookie: a=1"]);
    assert_eq!(scene.get(&target).await.header("set-cookie"), "a=1");
    assert!(!scene.get(&target).await.headers.contains_key("set-cookie"));
    assert_eq!(scene.count(&target), 1);
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_5_responses_to_credentials_are_shared_by_permission_only() {
    let scene = Scene::new().await;
    for (control, expected) in [
        ("max-age=60", Fetched),
        ("max-age=60, public", Hit),
        ("max-age=60, must-revalidate", Hit),
        ("s-maxage=60", Hit),
        ("max-age=60, proxy-revalidate", Fetched),
        ("no-store, public", Fetched),
    ] {
        let answer = format!("Cache-Control: {control}");
        // Stored from a request with credentials, asked for by one without, and with other ones.
        for request in ["", "Authorization: Basic Yzpk"] {
            let target = scene.page(&[&answer]);
            scene.ask(&target, "Authorization: Basic YTpi").await;
            scene.ask(&target, request).await;
            assert_eq!(scene.came_to(&target, 1), expected, "{control} | {request}");
        }
        // Stored from a request without, asked for by one with credentials.
        scene.check(&answer, "Authorization: Basic YTpi", 1, expected).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_1_every_field_is_stored_but_those_of_the_connection() {
    let scene = Scene::new().await;
    let kept = [
        ("Content-Type", "text/plain"),
        ("Content-Language", "de"),
        ("Content-Security-Policy", "default-src 'self'"),
        ("Content-Disposition", "inline"),
        ("ETag", "\"a\""),
        ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("Expires", "Sun, 06 Nov 2061 08:49:37 GMT"),
        ("Cache-Control", "max-age=60, foo=\"bar\""),
        ("Pragma", "x"),
        ("Server", "it"),
        ("Strict-Transport-Security", "max-age=1"),
        ("X-Frame-Options", "deny"),
        ("Warning", "199 - x"),
        ("Clear-Site-Data", "\"cache\""),
        ("Public-Key-Pins", "x"),
        ("Retry-After", "9"),
        ("Link", "</a>; rel=x"),
        ("X-Test-Header", "1"),
        ("Test-Header", "2"),
        ("WWW-Authenticate", "Basic"),
        ("Allow", "GET"),
        ("Vary", "X-Y"),
        ("Content-Location", "/x"),
        ("Accept-Ranges", "bytes"),
        ("Content-MD5", "x"),
        ("CDN-Cache-Control", "max-age=60"),
        ("Surrogate-Control", "max-age=60"),
        ("Via", "1.1 inner"),
        ("Date", "Sun, 06 Nov 2011 08:49:37 GMT"),
        ("X-Empty", ""),
        ("Proxy-Status", "inner; error=x"),
        ("Set-Cookie-Like", "a=1"),
        ("Public", "x"),
    ];
    let dropped = [
        ("Connection", "X-Named, close"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authenticate", "Basic"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authentication-Info", "x"),
        ("X-Named", "1"),
        ("Upgrade", "HTTP/3"),
    ];
    let lines: Vec<_> = kept.iter().chain(&dropped).map(|(name, value)| format!("{name}: {value}")).collect();
    let answer = lines.join("\n");
    let answer = answer.replace("Sun, 06 Nov 2011 08:49:37 GMT", "{0}");
    let target = scene.page(&[&answer]);
    let date = scene.dated("{0}");
    let miss = scene.get(&target).await;
    scene.after(30).await;
    let hit = scene.get(&target).await;
    assert_eq!(scene.count(&target), 1);
    for page in [&miss, &hit] {
        for (name, value) in kept {
            let value = if name == "Date" { &*date } else { value };
            let first = page.headers.get(name).unwrap_or_else(|| panic!("{name} is lost"));
            assert_eq!(first, value, "{name}");
        }
        for (name, _) in dropped.iter().filter(|(name, _)| *name != "Connection") {
            assert!(!page.headers.contains_key(*name), "{name} was passed on");
        }
    }
    assert_eq!(miss.headers.get_all("via").iter().count(), 2);
    assert_eq!(hit.headers.get_all("via").iter().count(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_has_no_say_in_storing() {
    let scene = Scene::new().await;
    for answer in [
        "Cache-Control: max-age=60\nContent-Disposition: attachment; filename=a.txt",
        "Date: {0}\nLast-Modified: {-100000}\nContent-Disposition: attachment",
        "Cache-Control: max-age=60\nContent-Encoding: x-unknown",
        "Cache-Control: max-age=60, immutable",
        "Cache-Control: max-age=60\nWarning: 110 - stale",
    ] {
        scene.check(answer, "Cookie: a=b", 1, Hit).await;
        scene.check(answer, "User-Agent: other\nAccept: a/b\nReferer: http://x", 1, Hit).await;
        let target = scene.page(&[answer]);
        scene.ask(&target, "Cookie: a=b").await;
        scene.get(&target).await;
        assert_eq!(scene.count(&target), 1, "{answer}");
    }
    // A newer answer that may not be stored leaves what is still fresh alone.
    let target = scene.page(&["Cache-Control: max-age=60\n\nold", "Cache-Control: no-store\n\nnew"]);
    scene.get(&target).await;
    assert_eq!(scene.ask(&target, "Authorization: Basic YTpi").await.text(), "new");
    assert_eq!(scene.get(&target).await.text(), "old");
}

#[tokio::test(start_paused = true)]
async fn several_lines_of_one_field_stay_in_their_order() {
    let scene = Scene::new().await;
    let target = scene.page(&["Cache-Control: max-age=60\nX-A: 1\nX-A: 2\nx-a: 3"]);
    for _ in 0..2 {
        let page = scene.get(&target).await;
        assert_eq!(page.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2", "3"]);
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_6_6_1_a_missing_date_is_added_once_and_stays() {
    let scene = Scene::new().await;
    let target = scene.page(&["Cache-Control: max-age=60"]);
    let received = scene.dated("{0}");
    assert_eq!(scene.get(&target).await.header("date"), received);
    scene.after(30).await;
    assert_eq!(scene.get(&target).await.header("date"), received);
    let odd = scene.page(&["Cache-Control: max-age=60\nDate: whenever"]);
    for _ in 0..2 {
        assert_eq!(scene.get(&odd).await.header("date"), "whenever");
    }
}

#[tokio::test(start_paused = true)]
async fn fields_of_interim_responses_do_not_leak() {
    use tokio::io::AsyncWriteExt;
    let origin = raw_origin(|_, mut stream| async move {
        read_head(&mut stream).await;
        let interim = "HTTP/1.1 100 Continue\r\nX-Interim: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nCache-Control: no-store\r\n\r\n\
            HTTP/1.1 199 Odd\r\nETag: \"interim\"\r\n\r\n";
        let last = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 5\r\n\r\nfinal";
        stream.write_all(interim.as_bytes()).await.unwrap();
        stream.write_all(last.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let stage = Setting::before(origin).start().await;
    for expected in ["fwd=uri-miss", "hit"] {
        let page = stage.get("/").await;
        assert_eq!((page.status, page.text()), (200, "final"));
        assert!(page.cache_status().starts_with(expected), "{}", page.cache_status());
        for name in ["x-interim", "link", "etag"] {
            assert!(!page.headers.contains_key(name), "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn methods_whose_answers_are_not_stored() {
    let scene = Scene::new().await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "FOO"] {
        let target = scene.page(&["Cache-Control: max-age=60"]);
        scene.ask(&target, method).await;
        scene.ask(&target, method).await;
        scene.get(&target).await;
        assert_eq!(scene.count(&target), 3, "{method}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_url_is_another_with_every_difference_in_host_path_or_query() {
    let scene = Scene::new().await;
    for target in ["/a", "/a?", "/a?b", "/a?b=", "/a?B", "/A", "/%61", "/a/", "//a", "/a?b&c", "/a?c&b"] {
        scene.page_at(target, &[&format!("Cache-Control: max-age=60\n\n{target}")]);
    }
    for target in ["/a", "/a?b", "/a?b=", "/a?B", "/A", "/%61", "/a/", "//a", "/a?b&c", "/a?c&b"] {
        for _ in 0..2 {
            assert_eq!(scene.get(target).await.text(), target);
        }
        assert_eq!(scene.count(target), 1);
    }
    scene.ask("/a", "Host: other.example").await;
    assert_eq!(scene.count("/a"), 2);
    scene.ask("/a", "Host: SITE.example").await;
    scene.ask("/a", "Host: site.example:80").await;
    assert_eq!(scene.count("/a"), 2);
}

#[tokio::test(start_paused = true)]
async fn rfc9110_9_3_3_a_post_answers_later_gets_by_opt_in() {
    let answer = |target: &str, extra: &str| format!("Content-Location: {target}\n{extra}\n\nposted");
    let scene = Scene::with(|setting| setting.rules.store_post_as_get = true).await;
    let fresh = "Cache-Control: max-age=60";
    for (number, (location, extra, is_stored)) in [
        ("/post-0", fresh, true),
        ("http://site.example/post-1", fresh, true),
        ("/other", fresh, false),
        ("http://else.example/post-3", fresh, false),
        ("/post-4", "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT", false),
        ("/post-5", "Cache-Control: max-age=60, private", false),
    ]
    .into_iter()
    .enumerate()
    {
        let target = format!("/post-{number}");
        scene.page_at(&target, &[&answer(location, extra), "Cache-Control: max-age=60\n\nfetched"]);
        let posted = scene.ask(&target, "POST").await;
        assert_eq!((posted.status, posted.text()), (200, "posted"));
        let expected = if is_stored { "posted" } else { "fetched" };
        assert_eq!(scene.get(&target).await.text(), expected, "{location} {extra}");
        assert_eq!(posted.cache_status().contains("; stored"), is_stored, "{}", posted.cache_status());
    }
    // Another POST goes upstream, and its answer takes the place of the old one.
    scene.page_at(
        "/again",
        &[
            &answer("/again", fresh).replace("posted", "one"),
            &answer("/again", fresh).replace("posted", "two"),
        ],
    );
    for expected in ["one", "two"] {
        assert_eq!(scene.ask("/again", "POST").await.text(), expected);
        assert_eq!(scene.get("/again").await.text(), expected);
    }
    let default = Scene::new().await;
    default.page_at("/x", &[&answer("/x", fresh)]);
    default.ask("/x", "POST").await;
    default.get("/x").await;
    assert_eq!(default.count("/x"), 2);
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_3_a_response_that_breaks_off_is_not_stored() {
    use tokio::io::AsyncWriteExt;
    let origin = raw_origin(|number, mut stream| async move {
        read_head(&mut stream).await;
        let length = if number == 1 { 50 } else { 5 };
        let answer =
            format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: {length}\r\n\r\nwhole");
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let stage = Setting::before(origin).start().await;
    let cut = stage.client().await.send(request("GET", "/", &[])).await.try_whole().await;
    assert!(cut.is_err());
    assert_eq!(stage.get("/").await.text(), "whole");
}

#[tokio::test(start_paused = true)]
async fn a_small_response_takes_the_same_in_the_store_whether_its_body_came_with_its_head_or_after_it() {
    use tokio::io::AsyncWriteExt;
    let mut taken = Vec::new();
    for together in [true, false] {
        let gate = Gate::shut();
        let rest = gate.clone();
        let origin = raw_origin(move |_, mut stream| {
            let gate = rest.clone();
            async move {
                read_head(&mut stream).await;
                let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 1000\r\n\r\n";
                let (now, later) = if together {
                    ([head, &"x".repeat(1000)].concat(), String::new())
                } else {
                    (head.into(), "x".repeat(1000))
                };
                stream.write_all(now.as_bytes()).await.unwrap();
                gate.passed().await;
                stream.write_all(later.as_bytes()).await.unwrap();
            }
        })
        .await;
        let stage = Setting::before(origin).start().await;
        let reading = stage.client().await.send(request("GET", "/", &[])).await;
        gate.open();
        assert_eq!(reading.whole().await.text(), "x".repeat(1000));
        stage.until(|telemetry| telemetry.flights() == 0).await;
        taken.push((stage.metric("forebay_store_bytes"), stage.metric("forebay_inflight_bytes")));
    }
    assert!(taken[0].0 > 1000.0 && taken[0].1 == 0.0, "{taken:?}");
    assert_eq!(taken[0], taken[1]);
}
