//! One fetch, many answers.

use crate::support::*;
use forebay::outcome::Answered;
use forebay::telemetry::{DuplicateCause, Label, WaitResult};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const CACHEABLE: [(&str, &str); 1] = [("cache-control", "max-age=60")];

/// An origin that holds every answer back until the gate opens.
async fn gated(gate: &Gate, headers: &'static [(&'static str, &'static str)]) -> Origin {
    Origin::behind(gate, .., move |number| page(200, headers, format!("answer {number}"))).await
}

#[tokio::test(start_paused = true)]
async fn a_thousand_identical_requests_on_a_cold_key_are_one_upstream_request() {
    let gate = Gate::shut();
    let origin = gated(&gate, &CACHEABLE).await;
    let stage = Stage::before(&origin).await;
    let clients: Vec<_> = (0..1000).map(|_| stage.spawn_get("/page", &[])).collect();
    stage.until_waiters(999).await;
    gate.open();
    for client in clients {
        let answer = client.await.unwrap();
        assert_eq!((answer.status, answer.text()), (200, "answer 1"));
    }
    assert_eq!(origin.requests(), 1);
    let route = stage.telemetry.route(0);
    assert_eq!(route.requests(Answered::Miss), 1);
    assert_eq!(route.requests(Answered::Collapsed), 999);
    assert_eq!(route.requests_total(), 1000);
    assert_eq!(route.waits(WaitResult::Shared), 999);
    assert_eq!(stage.metric("forebay_duplicate_fetches_total{cause=\"uncacheable\",route=\"default\"}"), 0.0);
    assert_eq!((stage.telemetry.waiters(), stage.telemetry.flights()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_follower_gets_the_first_byte_before_the_upstream_has_sent_its_last() {
    let (pieces, answer) = streamed(200, &CACHEABLE);
    let origin = Origin::once(answer).await;
    let stage = Stage::before(&origin).await;
    let (mut first, mut second) = (stage.client().await, stage.client().await);
    let mut leader = first.send(request("GET", "/stream", &[])).await;
    let mut follower = second.send(request("GET", "/stream", &[])).await;
    pieces.send(data("first")).unwrap();
    assert_eq!(leader.piece().await.unwrap().unwrap(), "first");
    assert_eq!(follower.piece().await.unwrap().unwrap(), "first");
    pieces.send(data(", last")).unwrap();
    drop(pieces);
    assert_eq!(leader.whole().await.text(), ", last");
    assert_eq!(follower.whole().await.text(), ", last");
    assert_eq!(stage.get("/stream").await.text(), "first, last");
    assert_eq!(origin.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_first_client_hangs_up_and_the_others_get_whole_answers_from_the_same_fetch() {
    let gate = Gate::shut();
    let origin = gated(&gate, &CACHEABLE).await;
    let stage = Stage::before(&origin).await;
    let first = stage.spawn_get("/page", &[]);
    stage.until(|telemetry| telemetry.flights() == 1).await;
    let others: Vec<_> = (0..10).map(|_| stage.spawn_get("/page", &[])).collect();
    stage.until_waiters(10).await;
    first.abort();
    stage.until(|telemetry| telemetry.route(0).requests(Answered::Abandoned) == 1).await;
    gate.open();
    for other in others {
        assert_eq!(other.await.unwrap().text(), "answer 1");
    }
    assert_eq!(origin.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_nobody_waits_for_any_more_is_given_up_before_its_head() {
    let gate = Gate::shut();
    let origin = gated(&gate, &CACHEABLE).await;
    let stage = Stage::before(&origin).await;
    let only = stage.spawn_get("/page", &[]);
    stage.until(|telemetry| telemetry.flights() == 1).await;
    only.abort();
    stage.until(|telemetry| telemetry.flights() == 0).await;
    gate.open();
    assert_eq!(stage.get("/page").await.text(), "answer 2");
}

#[tokio::test(start_paused = true)]
async fn a_fill_goes_on_when_its_only_reader_leaves_in_the_middle() {
    let (pieces, answer) = streamed(200, &CACHEABLE);
    let origin = Origin::once(answer).await;
    let stage = Stage::before(&origin).await;
    let mut client = stage.client().await;
    let mut reading = client.send(request("GET", "/", &[])).await;
    pieces.send(data("begun, ")).unwrap();
    reading.piece().await;
    drop((reading, client));
    pieces.send(data("done")).unwrap();
    drop(pieces);
    stage.until(|telemetry| telemetry.flights() == 0).await;
    assert_eq!(stage.get("/").await.text(), "begun, done");
    assert_eq!(origin.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_hundred_uncacheable_answers_take_as_long_as_one_and_nobody_gets_anothers() {
    for headers in
        [&[("cache-control", "no-store")][..], &[("set-cookie", "me=1"), ("cache-control", "max-age=9")]]
    {
        let headers: Vec<(String, String)> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let origin = Origin::start(move |number, _| {
            let headers = headers.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let headers: Vec<(&str, &str)> =
                    headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                page(200, &headers, format!("answer {number}"))
            }
        })
        .await;
        let stage = Stage::before(&origin).await;
        for wave in 1..=2 {
            let started = Instant::now();
            let clients: Vec<_> = (0..200).map(|_| stage.spawn_get("/mine", &[])).collect();
            let mut seen = HashSet::new();
            for client in clients {
                assert!(seen.insert(client.await.unwrap().body), "an answer went to two clients");
            }
            // The first wave learns at its leader's head that nobody may share; the second does not wait at all.
            let limit = if wave == 1 { 410 } else { 210 };
            assert!(started.elapsed() < Duration::from_millis(limit), "wave {wave}: {:?}", started.elapsed());
        }
        assert_eq!(origin.requests(), 400);
        let route = stage.telemetry.route(0);
        // In each wave the first was needed.
        assert_eq!(route.duplicates(DuplicateCause::Uncacheable), 398);
        assert_eq!(route.requests(Answered::Pass), 400);
    }
}

#[tokio::test(start_paused = true)]
async fn what_each_must_validate_and_nobody_keeps_is_not_waited_for_in_turns() {
    let origin = Origin::start(|number, _| async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let fields = [("cache-control", "no-cache"), ("etag", "\"1\""), ("content-length", "9000")];
        page(200, &fields, format!("answer {number:04} {}", ".".repeat(8988)))
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.body_bytes_max = 5000;
    let stage = setting.start().await;
    for (wave, limit) in [(1, 410), (2, 210)] {
        let started = Instant::now();
        let clients: Vec<_> = (0..20).map(|_| stage.spawn_get("/", &[])).collect();
        let mut seen = HashSet::new();
        for client in clients {
            assert!(seen.insert(client.await.unwrap().body), "an answer went to two clients");
        }
        assert!(started.elapsed() < Duration::from_millis(limit), "wave {wave}: {:?}", started.elapsed());
    }
    assert_eq!(origin.requests(), 40);
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Uncacheable), 38);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_finds_no_place_at_the_upstream_is_not_one_too_many() {
    let gates = [Gate::shut(), Gate::shut()];
    let held = gates.clone();
    let origin = Origin::start(move |number, request| {
        let gate = held[usize::from(request.uri() == "/mine")].clone();
        async move {
            if number > 1 {
                gate.passed().await;
            }
            page(200, &[("cache-control", "no-store")], "mine")
        }
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.upstream.concurrency_max = 2;
    setting.upstream.queue_max = 0;
    let stage = setting.start().await;
    let duplicates = || stage.telemetry.route(0).duplicates(DuplicateCause::Uncacheable);
    stage.get("/mine").await;
    let slow = stage.spawn_get("/slow", &[]);
    let mine = stage.spawn_get("/mine", &[]);
    stage.until(|_| origin.requests() == 3).await;
    assert_eq!(stage.get("/mine").await.status, 503);
    assert_eq!((origin.requests(), duplicates()), (3, 0), "nobody saw it");
    gates[0].open();
    slow.await.unwrap();
    let another = stage.spawn_get("/mine", &[]);
    stage.until(|_| origin.requests() == 4).await;
    assert_eq!(duplicates(), 1);
    gates[1].open();
    assert_eq!((mine.await.unwrap().status, another.await.unwrap().status), (200, 200));
}

#[tokio::test(start_paused = true)]
async fn what_is_fetched_one_after_the_other_is_needed_each_time() {
    for control in ["no-store", "private", "no-cache", "max-age=0"] {
        let origin = Origin::start(move |number, _| async move {
            let fields = [("cache-control", control), ("etag", "\"1\"")];
            page(200, &fields, format!("answer {number}"))
        })
        .await;
        let stage = Stage::before(&origin).await;
        for _ in 0..10 {
            assert_eq!(stage.get("/page").await.status, 200);
            stage.until(|telemetry| telemetry.flights() == 0).await;
        }
        let route = stage.telemetry.route(0);
        let duplicates: u64 = DuplicateCause::ALL.iter().map(|cause| route.duplicates(*cause)).sum();
        assert_eq!((origin.requests(), duplicates), (10, 0), "{control}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_beside_another_that_is_for_one_client_is_one_too_many_until_that_has_ended() {
    // Whether it is remembered that answers are for one client each, or not.
    for ttl in [Duration::from_secs(10), Duration::ZERO] {
        let bodies = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let sent = Arc::clone(&bodies);
        let origin = Origin::start(move |_, request| {
            let (pieces, answer) = streamed(200, &[("cache-control", "no-store"), ("vary", "accept")]);
            if request.uri() == "/stream" {
                sent.lock().push(pieces);
            }
            async move { answer }
        })
        .await;
        let mut setting = Setting::before(origin.address);
        setting.coalescing.hit_for_miss_ttl = ttl;
        let stage = setting.start().await;
        let duplicates = || stage.telemetry.route(0).duplicates(DuplicateCause::Uncacheable);
        let begun = async || {
            let mut client = stage.client().await;
            let reading = client.send(request("GET", "/stream", &[])).await;
            (client, reading)
        };
        // The head of the first has come, and its body goes on for long.
        let first = begun().await;
        assert_eq!((origin.requests(), duplicates()), (1, 0));
        let second = begun().await;
        assert_eq!((origin.requests(), duplicates()), (2, 1));
        // The one ends, the other's client leaves.
        bodies.lock().remove(0);
        assert_eq!(first.1.whole().await.status, 200);
        drop(second);
        stage.until(|_| bodies.lock()[0].is_closed()).await;
        let third = begun().await;
        assert_eq!((origin.requests(), duplicates()), (3, 1));
        stage.get("/other").await;
        assert_eq!((origin.requests(), duplicates()), (4, 1));
        drop(third);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_for_a_variant_beside_the_body_of_another_is_needed_and_one_for_the_same_is_not() {
    let bodies = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let sent = Arc::clone(&bodies);
    let origin = Origin::start(move |_, _| {
        // Those who come later cannot use it, and it tells what selects.
        let (pieces, answer) = streamed(200, &[("cache-control", "max-age=0"), ("vary", "accept")]);
        sent.lock().push(pieces);
        async move { answer }
    })
    .await;
    let stage = Stage::before(&origin).await;
    let route = stage.telemetry.route(0);
    let mut reading = Vec::new();
    for (accept, duplicates) in [("a/b", 0), ("a/c", 0), ("a/b", 1), ("a/c", 2)] {
        let mut client = stage.client().await;
        let head = client.send(request("GET", "/page", &[("accept", accept)])).await;
        reading.push((client, head));
        let counted: u64 = DuplicateCause::ALL.iter().map(|cause| route.duplicates(*cause)).sum();
        assert_eq!((origin.requests(), counted), (reading.len(), duplicates));
    }
    assert_eq!(route.duplicates(DuplicateCause::Uncacheable), 2);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_place_at_the_upstream_until_the_other_has_ended_is_needed() {
    let origin = Origin::start(|_, _| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        page(200, &[("cache-control", "no-store")], "mine")
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.upstream.concurrency_max = 1;
    let stage = setting.start().await;
    stage.get("/mine").await;
    let clients: Vec<_> = (0..5).map(|_| stage.spawn_get("/mine", &[])).collect();
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "mine");
    }
    assert_eq!(origin.requests(), 6);
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Uncacheable), 0);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_waited_for_again_as_soon_as_its_answer_may_be_stored() {
    let origin = Origin::start(|number, _| async move {
        let control = if number <= 2 { "no-store" } else { "max-age=60" };
        page(200, &[("cache-control", control)], format!("answer {number}"))
    })
    .await;
    let stage = Stage::before(&origin).await;
    for expected in ["answer 1", "answer 2", "answer 3", "answer 3"] {
        assert_eq!(stage.get("/").await.text(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn variants_that_are_first_seen_while_clients_wait_are_fetched_once_each() {
    let gate = Gate::shut();
    let origin = Origin::holding_all(&gate, |request| {
        let language = request.headers()["accept-language"].to_str().unwrap().to_owned();
        page(200, &[("cache-control", "max-age=60"), ("vary", "accept-language")], language)
    })
    .await;
    let stage = Stage::before(&origin).await;
    let clients: Vec<_> = (0..30)
        .map(|index| {
            let language = ["de", "fr", "it"][index % 3];
            (language, stage.spawn_get("/", &[("accept-language", language)]))
        })
        .collect();
    stage.until_waiters(29).await;
    gate.open();
    for (language, client) in clients {
        assert_eq!(client.await.unwrap().text(), language);
    }
    assert_eq!(origin.requests(), 3);
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Vary), 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_stale_on_arrival_serves_those_who_waited_and_nobody_later() {
    let gate = Gate::shut();
    let origin = gated(&gate, &[("cache-control", "max-age=0")]).await;
    let stage = Stage::before(&origin).await;
    let clients: Vec<_> = (0..5).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until_waiters(4).await;
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "answer 1");
    }
    assert_eq!(stage.get("/").await.text(), "answer 2");
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_waits_too_long_goes_alone_and_is_counted() {
    let gate = Gate::shut();
    let origin =
        Origin::behind(&gate, ..=1, |number| page(200, &CACHEABLE, format!("answer {number}"))).await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.waiter_timeout = Duration::from_secs(2);
    let stage = setting.start().await;
    let leader = stage.spawn_get("/", &[]);
    stage.until(|telemetry| telemetry.flights() == 1).await;
    let started = Instant::now();
    assert_eq!(stage.get("/").await.text(), "answer 2");
    assert!(started.elapsed() >= Duration::from_secs(2));
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::WaiterTimeout), 1);
    gate.open();
    assert_eq!(leader.await.unwrap().text(), "answer 1");
    assert_eq!(
        stage.get("/").await.text(),
        "answer 2",
        "the late answer of the older fetch is the older truth"
    );
}

#[tokio::test(start_paused = true)]
async fn head_and_range_requests_join_the_fetch_of_the_whole() {
    let gate = Gate::shut();
    let origin = Origin::holding_all(&gate, |request| {
        assert_eq!(request.method(), "GET");
        assert!(!request.headers().contains_key("range"));
        page(200, &CACHEABLE, "0123456789")
    })
    .await;
    let stage = Stage::before(&origin).await;
    let range = stage.spawn_get("/", &[("range", "bytes=2-4")]);
    stage.until(|telemetry| telemetry.flights() == 1).await;
    let whole = stage.spawn_get("/", &[]);
    stage.until_waiters(1).await;
    gate.open();
    let range = range.await.unwrap();
    assert_eq!((range.status, range.text(), range.header("content-range")), (206, "234", "bytes 2-4/10"));
    assert_eq!(whole.await.unwrap().text(), "0123456789");
    let head = stage.send("HEAD", "/", &[]).await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, "10", 0));
    assert_eq!(origin.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_purge_during_a_fetch_keeps_its_answer_from_all_who_come_later() {
    let (first, gate) = (Gate::shut(), Gate::shut());
    let (opened_first, opened) = (first.clone(), gate.clone());
    let origin = Origin::start(move |number, _| {
        let gate = if number == 1 { opened_first.clone() } else { opened.clone() };
        async move {
            gate.passed().await;
            page(200, &CACHEABLE, format!("answer {number}"))
        }
    })
    .await;
    let stage = Stage::before(&origin).await;
    let before = stage.spawn_get("/page", &[]);
    stage.until(|telemetry| telemetry.flights() == 1).await;
    let target = forebay::proxy::Target::Url("http://site.example/page".into());
    stage.proxy.purge(&forebay::proxy::Purge { target, soft: false }).unwrap();
    let after = stage.spawn_get("/page", &[]);
    stage.until(|telemetry| telemetry.flights() == 2).await;
    gate.open();
    assert_eq!(after.await.unwrap().text(), "answer 2");
    first.open();
    assert_eq!(before.await.unwrap().text(), "answer 1");
    assert_eq!(stage.get("/page").await.text(), "answer 2");
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Purge), 1);
}
