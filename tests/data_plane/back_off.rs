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

/// An origin that answers so many requests with something for one client alone, and then takes requests and hangs up.
async fn failing_after(answers: usize) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let address = raw_origin(move |_, mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            read_head(&mut stream).await;
            if counter.fetch_add(1, Ordering::SeqCst) < answers {
                let answer =
                    "HTTP/1.1 200 OK\r\ncache-control: no-store\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    (address, requests)
}

#[tokio::test(start_paused = true)]
async fn whoever_fetches_alone_heeds_the_back_off_after_a_fetch_without_an_answer() {
    let ranged: &[(&str, &str)] = &[("range", "bytes=0-1")];
    let ways = [(1, &[][..]), (1, ranged), (0, &[("authorization", "Basic eA==")])];
    for (answers, fields) in ways {
        let (address, requests) = failing_after(answers).await;
        let stage = patient(address).await;
        for _ in 0..answers {
            assert_eq!(stage.get("/page").await.text(), "ok");
        }
        for number in 0..20 {
            let answer = stage.get_with("/page", fields).await;
            assert_eq!(answer.status, 502);
            let told = if number == 0 { "fwd=" } else { "detail=back-off" };
            assert!(answer.cache_status().starts_with(told), "{fields:?}: {}", answer.cache_status());
        }
        assert_eq!(requests.load(Ordering::SeqCst), answers + 1, "{fields:?}");
        // What is known of the key beside its failure is not forgotten: nobody waits for the next answer.
        tokio::time::advance(LONG + Duration::from_secs(1)).await;
        assert_eq!(stage.get_with("/page", fields).await.status, 502);
        assert_eq!(requests.load(Ordering::SeqCst), answers + 2);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_was_the_answer_to_one_client_alone_is_that_client_s_own() {
    let origin = Origin::start(|number, _| async move {
        if number == 1 { page(200, &[("cache-control", "no-store")], "ok") } else { page(503, &[], "down") }
    })
    .await;
    let stage = patient(origin.address).await;
    stage.get("/page").await;
    for _ in 0..5 {
        assert_eq!(stage.get("/page").await.text(), "down");
    }
    assert_eq!(origin.requests(), 6);
    // Nor is what failed for all an answer to one whose credentials were not sent with it.
    for _ in 0..2 {
        assert_eq!(stage.get("/shared").await.status, 503);
    }
    assert_eq!(origin.requests(), 7);
    assert_eq!(stage.get_with("/shared", &[("authorization", "Basic eA==")]).await.text(), "down");
    assert_eq!(origin.requests(), 8);
}

#[tokio::test(start_paused = true)]
async fn fetches_that_fail_side_by_side_lengthen_the_pause_once() {
    let (address, requests) = failing_after(1).await;
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
