//! After a failed fetch its key is left alone for a while: by whom, and until when.

use crate::support::*;
use forebay::proxy::{Purge, Target};
use forebay::telemetry::DuplicateCause;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const LONG: Duration = Duration::from_secs(60);

/// A proxy whose back-off lasts for longer than any story.
async fn patient(origin: std::net::SocketAddr) -> Stage {
    let mut setting = Setting::before(origin);
    setting.coalescing.error_backoff = (LONG, LONG);
    setting.coalescing.hit_for_miss_ttl = LONG * 10;
    setting.upstream.retries = 0;
    setting.start().await
}

fn purge(stage: &Stage, target: Target, soft: bool) {
    stage.proxy.purge(&Purge { target, soft }).unwrap();
}

fn url() -> Target {
    Target::Url("http://site.example/page".into())
}

#[tokio::test(start_paused = true)]
async fn a_purge_of_any_kind_that_covers_a_key_ends_its_back_off() {
    let prefix = Target::Prefix { host: None, path: "/pa".into() };
    let kinds = [url(), prefix, Target::Route("default".into()), Target::Everything];
    for target in kinds {
        for soft in [false, true] {
            let origin = Origin::start(|number, _| async move {
                if number == 1 { page(503, &[], "down") } else { page(200, &[], "fine") }
            })
            .await;
            let stage = patient(origin.address).await;
            for _ in 0..3 {
                assert_eq!(stage.get("/page").await.status, 503);
            }
            purge(&stage, Target::Url("http://site.example/other".into()), soft);
            assert_eq!((stage.get("/page").await.status, origin.requests()), (503, 1));
            purge(&stage, target.clone(), soft);
            // It makes no difference that nothing is stored for which the line would have to be remembered.
            stage.proxy.sweep().await;
            assert_eq!(stage.get("/page").await.text(), "fine", "{target:?}, soft: {soft}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_purge_of_the_tag_of_what_was_validated_ends_the_back_off() {
    let origin = Origin::start(|number, _| async move {
        match number {
            1 => page(200, &[("cache-control", "max-age=1"), ("surrogate-key", "t")], "old"),
            2 => page(503, &[], "down"),
            _ => page(200, &[], "fine"),
        }
    })
    .await;
    let stage = patient(origin.address).await;
    stage.get("/page").await;
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(stage.get("/page").await.status, 503);
    purge(&stage, Target::Tag("other".into()), false);
    assert_eq!((stage.get("/page").await.status, origin.requests()), (503, 2));
    purge(&stage, Target::Tag("t".into()), false);
    assert_eq!(stage.get("/page").await.text(), "fine");
}

#[tokio::test(start_paused = true)]
async fn the_failure_of_a_fetch_from_before_a_purge_says_nothing_to_those_who_come_after_it() {
    let gates = [Gate::shut(), Gate::shut()];
    let held = gates.clone();
    let origin = Origin::start(move |number, _| {
        let gate = held[number - 1].clone();
        async move {
            gate.passed().await;
            if number == 1 { page(503, &[], "down") } else { page(200, &[], "fine") }
        }
    })
    .await;
    let stage = patient(origin.address).await;
    let before = [stage.spawn_get("/page", &[]), stage.spawn_get("/page", &[])];
    stage.until_waiters(1).await;
    purge(&stage, url(), false);
    let after = stage.spawn_get("/page", &[]);
    stage.until(|_| origin.requests() == 2).await;
    gates[0].open();
    for client in before {
        assert_eq!(client.await.unwrap().status, 503);
    }
    // The fetch from after the line is still under way: it is joined, and neither refused nor repeated.
    let later = stage.spawn_get("/page", &[]);
    stage.until_waiters(1).await;
    gates[1].open();
    assert_eq!(after.await.unwrap().text(), "fine");
    assert_eq!(later.await.unwrap().text(), "fine");
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_failure_of_a_validation_from_before_a_purge_of_its_tag_is_not_given_to_those_who_joined_after() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, 2..=2, |number| match number {
        1 => page(200, &[("cache-control", "max-age=1"), ("surrogate-key", "t")], "old"),
        2 => page(503, &[], "down"),
        _ => page(200, &[], "fine"),
    })
    .await;
    let stage = patient(origin.address).await;
    stage.get("/page").await;
    tokio::time::advance(Duration::from_secs(2)).await;
    let before = [stage.spawn_get("/page", &[]), stage.spawn_get("/page", &[])];
    stage.until_waiters(1).await;
    purge(&stage, Target::Tag("t".into()), false);
    let after = stage.spawn_get("/page", &[]);
    stage.until_waiters(2).await;
    gate.open();
    for client in before {
        assert_eq!(client.await.unwrap().status, 503);
    }
    assert_eq!(after.await.unwrap().text(), "fine");
    assert_eq!(origin.requests(), 3);
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Purge), 1);
}

#[tokio::test(start_paused = true)]
async fn a_purge_of_a_tag_that_the_error_itself_carried_ends_the_back_off() {
    // With a cookie the error is for its client alone; its tags are known all the same.
    for (field, retries) in [(&[][..], 0), (&[("set-cookie", "a=1")], 0), (&[], 1)] {
        let origin = Origin::start(move |number, _| async move {
            let fields = [&[("surrogate-key", "t")][..], field].concat();
            if number == 1 { page(503, &fields, "down") } else { page(200, &[], "fine") }
        })
        .await;
        let mut setting = Setting::before(origin.address);
        setting.coalescing.error_backoff = (LONG, LONG);
        setting.coalescing.pass_ranges = retries > 0;
        let stage = setting.start().await;
        let range: &[(&str, &str)] = if retries > 0 { &[("range", "bytes=0-1")] } else { &[] };
        assert_eq!(stage.get_with("/page", range).await.status, 503);
        purge(&stage, Target::Tag("other".into()), false);
        assert_eq!((stage.get("/page").await.status, origin.requests()), (503, 1));
        purge(&stage, Target::Tag("t".into()), false);
        assert_eq!(stage.get("/page").await.text(), "fine");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_carries_a_tag_is_not_given_to_those_who_joined_after_a_purge_of_it() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, 1..=1, |number| {
        if number == 1 { page(503, &[("surrogate-key", "t")], "down") } else { page(200, &[], "fine") }
    })
    .await;
    let stage = patient(origin.address).await;
    let before = stage.spawn_get("/page", &[]);
    stage.until(|_| origin.requests() == 1).await;
    purge(&stage, Target::Tag("t".into()), false);
    let after = stage.spawn_get("/page", &[]);
    stage.until_waiters(1).await;
    gate.open();
    assert_eq!(before.await.unwrap().text(), "down");
    assert_eq!(after.await.unwrap().text(), "fine");
}

/// How an origin fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    /// It takes a request and hangs up.
    Silently,
    /// It says 503.
    Aloud,
}

/// An origin that answers so many requests with something for one client alone, and then fails.
async fn failing_after(answers: usize, how: Fails) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let address = raw_origin(move |_, mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            read_head(&mut stream).await;
            let is_fine = counter.fetch_add(1, Ordering::SeqCst) < answers;
            let status = match how {
                _ if is_fine => "200 OK",
                Fails::Aloud => "503 Service Unavailable",
                Fails::Silently => return,
            };
            let fields = "cache-control: no-store\r\nconnection: close\r\ncontent-length: 0";
            stream.write_all(format!("HTTP/1.1 {status}\r\n{fields}\r\n\r\n").as_bytes()).await.unwrap();
        }
    })
    .await;
    (address, requests)
}

#[tokio::test(start_paused = true)]
async fn whoever_fetches_alone_heeds_the_back_off_after_a_failed_fetch() {
    let ways = [
        (1, "GET", &[][..]),
        (1, "HEAD", &[]),
        (1, "GET", &[("range", "bytes=0-1")]),
        (1, "GET", &[("cookie", "id=1")]),
        (0, "GET", &[("authorization", "Basic eA==")]),
        (0, "GET", &[("cookie", "own=1")]),
    ];
    for (how, status) in [(Fails::Silently, 502), (Fails::Aloud, 503)] {
        for (answers, method, fields) in ways {
            let (address, requests) = failing_after(answers, how).await;
            let mut setting = Setting::before(address);
            setting.coalescing.error_backoff = (LONG, LONG);
            setting.coalescing.hit_for_miss_ttl = LONG * 10;
            setting.coalescing.join_with_cookies = fields != [("cookie", "own=1")];
            setting.upstream.retries = 0;
            let stage = setting.start().await;
            for _ in 0..answers {
                assert_eq!(stage.get("/page").await.status, 200);
            }
            for number in 0..20 {
                let answer = stage.send(method, "/page", fields).await;
                assert_eq!(answer.status, status);
                let told = if number == 0 { "fwd=" } else { "detail=back-off" };
                assert!(answer.cache_status().starts_with(told), "{fields:?}: {}", answer.cache_status());
            }
            assert_eq!(requests.load(Ordering::SeqCst), answers + 1, "{how:?} {method} {fields:?}");
            // What is known of the key beside its failure is not forgotten: nobody waits for the next answer.
            tokio::time::advance(LONG + Duration::from_secs(1)).await;
            assert_eq!(stage.send(method, "/page", fields).await.status, status);
            assert_eq!(requests.load(Ordering::SeqCst), answers + 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_asks_when_the_back_off_is_over_even_where_each_would_have_an_answer_of_its_own() {
    let (address, requests) = failing_after(1, Fails::Aloud).await;
    let stage = patient(address).await;
    assert_eq!(stage.get("/page").await.status, 200);
    assert_eq!(stage.get("/page").await.status, 503);
    for number in 1..=3 {
        tokio::time::advance(LONG + Duration::from_secs(1)).await;
        let asked = (0..20).map(|_| stage.spawn_get("/page", &[]));
        for asked in asked.collect::<Vec<_>>() {
            assert_eq!(asked.await.unwrap().status, 503);
        }
        assert_eq!(requests.load(Ordering::SeqCst), 2 + number);
    }
}

#[tokio::test(start_paused = true)]
async fn what_fails_for_a_request_without_credentials_holds_for_those_with_them_too() {
    for fields in [[("authorization", "Basic eA==")], [("cookie", "id=1")]] {
        let (address, requests) = failing_after(1, Fails::Aloud).await;
        let stage = patient(address).await;
        assert_eq!(stage.get("/page").await.status, 200);
        for fields in [&[][..], &fields] {
            assert_eq!(stage.get_with("/page", fields).await.status, 503);
        }
        assert_eq!(requests.load(Ordering::SeqCst), 2, "{fields:?}");
    }
}

/// An origin whose answers are for one client each, and that has nothing but an error for those whose credentials are bad.
async fn personal() -> Origin {
    Origin::start(|_, request| async move {
        let has_bad =
            |name| request.headers().get(name).is_some_and(|value| value.as_bytes().ends_with(b"bad"));
        if has_bad("cookie") || has_bad("authorization") {
            page(500, &[], "the secrets of one")
        } else {
            page(200, &[("cache-control", "no-store")], "fine")
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn an_error_that_may_be_due_to_credentials_is_shared_by_those_with_the_very_same_alone() {
    for (name, bad, good) in [
        ("cookie", "id=bad", "id=good"),
        ("authorization", "Basic bad", "Basic good"),
        ("cookie", "a; bad", ""),
    ] {
        let origin = personal().await;
        let stage = patient(origin.address).await;
        // From here on it is known that each answer is for one client.
        stage.get("/page").await;
        assert_eq!(stage.get_with("/page", &[(name, bad)]).await.text(), "the secrets of one");
        for _ in 0..5 {
            let again = stage.get_with("/page", &[(name, bad)]).await;
            assert_eq!(again.status, 500);
            assert!(!again.text().contains("secrets"), "even to the same: an error page is not kept");
        }
        assert_eq!(origin.requests(), 2, "{name}: {bad}");
        for _ in 0..3 {
            assert_eq!(stage.get_with("/page", &[(name, good)]).await.text(), "fine");
            assert_eq!(stage.get("/page").await.text(), "fine");
            assert_eq!(stage.get_with("/page", &[(name, bad)]).await.status, 500);
        }
        assert_eq!(origin.requests(), 8, "{name}: {bad}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_to_the_same_credentials_ends_their_back_off() {
    let origin = Origin::start(|number, _| async move {
        if number == 3 { page(200, &[("cache-control", "private")], "fine") } else { page(503, &[], "down") }
    })
    .await;
    let mut setting = Setting::before(origin.address);
    let second = Duration::from_secs(1);
    setting.coalescing.error_backoff = (second, LONG);
    let stage = setting.start().await;
    let credentials: &[(&str, &str)] = &[("authorization", "Basic eA==")];
    // A pause of a second, less a third at most; then one of two.
    for (pause, status, requests) in
        [(0, 503, 1), (1000, 503, 2), (1200, 503, 2), (800, 200, 3), (0, 503, 4), (1000, 503, 5)]
    {
        tokio::time::advance(Duration::from_millis(pause)).await;
        assert_eq!(stage.get_with("/page", credentials).await.status, status, "request {requests}");
        assert_eq!(origin.requests(), requests, "after {pause} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_one_who_found_no_place_to_wait_is_shared_by_those_who_come_next() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, 1..=1, |_| page(503, &[], "down")).await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.error_backoff = (LONG, LONG);
    setting.coalescing.waiters_max = 1;
    let stage = setting.start().await;
    let clients = [stage.spawn_get("/page", &[]), stage.spawn_get("/page", &[])];
    stage.until_waiters(1).await;
    for _ in 0..20 {
        assert_eq!(stage.get("/page").await.status, 503);
    }
    assert_eq!(origin.requests(), 2);
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::WaiterOverflow), 1);
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "down");
    }
}

#[tokio::test(start_paused = true)]
async fn where_requests_do_not_wait_for_each_other_they_do_not_share_failures_either() {
    for (how, status) in [(Fails::Silently, 502), (Fails::Aloud, 503)] {
        for is_cache_off in [false, true] {
            let (address, requests) = failing_after(0, how).await;
            let mut setting = Setting::before(address);
            setting.coalescing.error_backoff = (LONG, LONG);
            setting.coalescing.enabled = is_cache_off;
            setting.rules.enabled = !is_cache_off;
            setting.upstream.retries = 0;
            let stage = setting.start().await;
            for _ in 0..5 {
                assert_eq!(stage.get("/page").await.status, status);
            }
            assert_eq!(requests.load(Ordering::SeqCst), 5);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fetches_that_fail_side_by_side_lengthen_the_pause_once() {
    let (address, requests) = failing_after(1, Fails::Silently).await;
    let mut setting = Setting::before(address);
    setting.coalescing.error_backoff = (Duration::from_secs(1), LONG);
    setting.coalescing.hit_for_miss_ttl = LONG;
    setting.upstream.retries = 0;
    let stage = setting.start().await;
    stage.get("/page").await;
    for client in (0..20).map(|_| stage.spawn_get("/page", &[])).collect::<Vec<_>>() {
        assert_eq!(client.await.unwrap().status, 502);
    }
    let before = requests.load(Ordering::SeqCst);
    tokio::time::advance(Duration::from_millis(1001)).await;
    assert_eq!(stage.get("/page").await.status, 502);
    assert_eq!(requests.load(Ordering::SeqCst), before + 1);
}

#[tokio::test(start_paused = true)]
async fn the_back_off_passes_on_when_the_upstream_wants_to_be_asked_again() {
    for (status, private) in [(503, false), (503, true), (500, false)] {
        let origin = Origin::start(move |_, _| async move {
            let fields = [("retry-after", "120"), ("set-cookie", "a=1")];
            page(status, if private { &fields } else { &fields[..1] }, "down")
        })
        .await;
        let stage = patient(origin.address).await;
        for told in ["fwd=", "detail=back-off"] {
            let answer = stage.get("/page").await;
            assert_eq!((answer.status, answer.header("retry-after")), (status, "120"), "{told}");
            assert!(answer.cache_status().starts_with(told), "{}", answer.cache_status());
        }
    }
}
