//! Who waits for whom, how long, and what becomes of those who do not.

use crate::support::*;
use forebay::outcome::Answered;
use forebay::policy::Share;
use forebay::proxy::{OnAbandon, OnLimit};
use forebay::telemetry::{DuplicateCause, FetchReason, Label, StatusClass, WaitResult};
use std::time::Duration;
use tokio::time::Instant;

const CACHEABLE: [(&str, &str); 1] = [("cache-control", "max-age=60")];

/// An origin whose answers with these numbers wait for the gate.
async fn gated(
    gate: &Gate,
    held: impl Fn(usize) -> bool + Send + Sync + 'static,
    headers: &'static [(&'static str, &'static str)],
) -> Origin {
    let answer = move |number, _: &_| page(200, headers, format!("answer {number}"));
    Origin::holding(gate, move |number, _| held(number), answer).await
}

#[tokio::test(start_paused = true)]
async fn a_fill_is_stopped_when_nobody_reads_it_where_the_route_says_so() {
    for (on_abandon, expected) in [(OnAbandon::Cancel, "answer 2"), (OnAbandon::Finish, "begun, done")] {
        let (pieces, origin) = Origin::in_pieces(&CACHEABLE).await;
        let mut setting = Setting::before(origin.address);
        setting.coalescing.on_abandon = on_abandon;
        let stage = setting.start().await;
        let mut client = stage.client().await;
        let mut reading = client.send(request("GET", "/", &[])).await;
        pieces.send(data("begun, ")).unwrap();
        reading.piece().await;
        drop((reading, client));
        if on_abandon == OnAbandon::Cancel {
            stage.until(|telemetry| telemetry.flights() == 0).await;
        }
        let _ = pieces.send(data("done"));
        drop(pieces);
        stage.until(|telemetry| telemetry.flights() == 0).await;
        assert_eq!(stage.get("/").await.text(), expected, "{on_abandon:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_is_fresh_is_shared_where_the_route_says_so() {
    let gate = Gate::shut();
    let origin = gated(&gate, |number| number == 1, &[("cache-control", "max-age=0")]).await;
    let mut setting = Setting::before(origin.address);
    setting.rules.share = Share::Fresh;
    let stage = setting.start().await;
    let leader = stage.spawn_get("/", &[]);
    stage.until(|telemetry| telemetry.flights() == 1).await;
    let follower = stage.spawn_get("/", &[]);
    stage.until_waiters(1).await;
    gate.open();
    assert_eq!(leader.await.unwrap().text(), "answer 1");
    assert_eq!(follower.await.unwrap().text(), "answer 2");
    assert_eq!(stage.telemetry.route(0).waits(WaitResult::Departed), 1);
}

#[tokio::test(start_paused = true)]
async fn where_only_what_is_fresh_is_shared_nobody_waits_after_an_answer_that_was_stale_on_arrival() {
    let gate = Gate::shut();
    let origin = Origin::holding(
        &gate,
        |number, _| number > 1,
        |number, request| {
            let control = match request.uri().path() {
                "/refreshed" => "max-age=0, stale-while-revalidate=60",
                _ if number > 6 => "max-age=60",
                _ => "max-age=0",
            };
            page(200, &[("cache-control", control)], format!("answer {number}"))
        },
    )
    .await;
    let mut setting = Setting::before(origin.address);
    setting.rules.share = Share::Fresh;
    let stage = setting.start().await;
    let wave = || (0..5).map(|_| stage.spawn_get("/", &[])).collect::<Vec<_>>();
    stage.get("/").await;
    let second = wave();
    stage.until(|_| origin.requests() == 6).await;
    assert_eq!(stage.telemetry.waiters(), 0);
    gate.open();
    for client in second {
        client.await.unwrap();
    }
    // What is fresh ends it.
    assert_eq!(stage.get("/").await.text(), "answer 7");
    tokio::time::advance(Duration::from_secs(61)).await;
    for client in wave() {
        assert_eq!(client.await.unwrap().text(), "answer 8");
    }
    // What may be served while it is refreshed is not waited for, and is refreshed once for all.
    assert_eq!(stage.get("/refreshed").await.text(), "answer 9");
    assert_eq!(stage.get("/refreshed").await.text(), "answer 9");
    stage.until(|_| origin.requests() == 10).await;
}

#[tokio::test(start_paused = true)]
async fn a_known_variant_is_not_waited_for_by_another() {
    let gate = Gate::shut();
    let origin = Origin::holding(
        &gate,
        |_, request| request.headers()["accept-language"] == "fr",
        |_, request| {
            let language = request.headers()["accept-language"].to_str().unwrap().to_owned();
            page(200, &[("cache-control", "max-age=60"), ("vary", "accept-language")], language)
        },
    )
    .await;
    let stage = Stage::before(&origin).await;
    let ask = |language| [("accept-language", language)];
    assert_eq!(stage.get_with("/", &ask("de")).await.text(), "de");
    let slow = stage.spawn_get("/", &ask("fr"));
    stage.until(|telemetry| telemetry.flights() == 1).await;
    assert_eq!(stage.get_with("/", &ask("it")).await.text(), "it");
    let same = stage.spawn_get("/", &ask("fr"));
    stage.until_waiters(1).await;
    gate.open();
    assert_eq!((slow.await.unwrap().text(), same.await.unwrap().text()), ("fr", "fr"));
    assert_eq!(origin.requests(), 3);
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Vary), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_with_credentials_goes_alone_and_spoils_nothing_for_the_others() {
    let gate = Gate::shut();
    let origin = gated(&gate, |number| number > 1, &CACHEABLE).await;
    let stage = Stage::before(&origin).await;
    assert_eq!(stage.get_with("/", &[("authorization", "Basic YTpi")]).await.text(), "answer 1");
    let clients: Vec<_> = (0..5).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until_waiters(4).await;
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "answer 2");
    }
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_goes_alone_spoils_nothing_for_the_others() {
    let gate = Gate::shut();
    let origin = gated(&gate, |number| number > 1, &CACHEABLE).await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.join_with_cookies = false;
    let stage = setting.start().await;
    assert_eq!(stage.send("HEAD", "/", &[("cookie", "a=b")]).await.status, 200);
    let clients: Vec<_> = (0..5).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until_waiters(4).await;
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "answer 2");
    }
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn requests_with_credentials_wait_for_each_other_where_the_route_says_so() {
    let gate = Gate::shut();
    let origin = gated(&gate, |_| true, &[("cache-control", "public, max-age=60")]).await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.join_with_authorization = true;
    let stage = setting.start().await;
    let clients: Vec<_> =
        ["one", "two"].iter().map(|user| stage.spawn_get("/", &[("authorization", user)])).collect();
    stage.until_waiters(1).await;
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "answer 1");
    }
}

#[tokio::test(start_paused = true)]
async fn the_pause_after_failures_grows_to_its_limit_and_ends_with_the_first_success() {
    let healthy = Gate::shut();
    let recovered = healthy.clone();
    let origin = Origin::start(move |number, _| {
        let recovered = recovered.clone();
        async move {
            match tokio::time::timeout(Duration::ZERO, recovered.passed()).await {
                Ok(()) => page(200, &[("cache-control", "no-store")], format!("answer {number}")),
                Err(_) => page(503, &[], "down"),
            }
        }
    })
    .await;
    let stage = Stage::before(&origin).await;
    assert_eq!(stage.get("/").await.status, 503);
    // Each pause is shortened by up to a third, at random; those who come in it share the failure.
    for longest in [100, 200, 400, 800, 1000, 1000] {
        let (failed, failures) = (Instant::now(), origin.requests());
        while origin.requests() == failures {
            tokio::time::advance(Duration::from_millis(2)).await;
            let answer = stage.get("/").await;
            let is_shared = origin.requests() == failures;
            assert_eq!((answer.status, answer.cache_status().contains("back-off")), (503, is_shared));
        }
        let pause = failed.elapsed().as_millis();
        assert!((longest * 2 / 3..=longest + 10).contains(&pause), "{pause}, not {longest}");
    }
    healthy.open();
    tokio::time::advance(Duration::from_secs(1)).await;
    for _ in 0..3 {
        assert_eq!(stage.get("/").await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_limit_of_waiters_requests_go_alone_or_are_refused() {
    for on_limit in [OnLimit::GoAlone, OnLimit::Refuse] {
        for is_for_all in [false, true] {
            let gate = Gate::shut();
            let origin = gated(&gate, |number| number == 1, &CACHEABLE).await;
            let mut setting = Setting::before(origin.address);
            setting.coalescing.on_limit = on_limit;
            if is_for_all {
                setting.proxy.waiters_max = 2;
            } else {
                setting.coalescing.waiters_max = 2;
            }
            let stage = setting.start().await;
            let leader = stage.spawn_get("/", &[]);
            stage.until(|telemetry| telemetry.flights() == 1).await;
            let waiters: Vec<_> = (0..2).map(|_| stage.spawn_get("/", &[])).collect();
            stage.until_waiters(2).await;
            let refused = stage.get("/").await;
            match on_limit {
                OnLimit::GoAlone => assert_eq!(refused.text(), "answer 2"),
                OnLimit::Refuse => assert_eq!((refused.status, refused.header("retry-after")), (503, "1")),
            }
            assert_eq!(stage.telemetry.route(0).waits(WaitResult::Overflow), 1);
            gate.open();
            for waiter in waiters.into_iter().chain([leader]) {
                assert_eq!(waiter.await.unwrap().text(), "answer 1");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_gets_what_is_stale_or_504() {
    for (control, expected) in [("max-age=1, stale-if-error=600", 200), ("max-age=1", 504)] {
        let gate = Gate::shut();
        let origin = Origin::behind(&gate, 2..=2, move |number| {
            page(200, &[("cache-control", control)], format!("answer {number}"))
        })
        .await;
        let mut setting = Setting::before(origin.address);
        setting.coalescing.on_limit = OnLimit::Refuse;
        setting.coalescing.waiter_timeout = Duration::from_secs(2);
        let stage = setting.start().await;
        assert_eq!(stage.get("/").await.text(), "answer 1");
        tokio::time::advance(Duration::from_secs(5)).await;
        let leader = stage.spawn_get("/", &[]);
        stage.until(|telemetry| telemetry.flights() == 1).await;
        let started = Instant::now();
        let answer = stage.get("/").await;
        assert_eq!(answer.status, expected);
        if expected == 200 {
            assert_eq!(answer.text(), "answer 1");
        }
        assert!(started.elapsed() < Duration::from_millis(2100));
        gate.open();
        assert_eq!(leader.await.unwrap().text(), "answer 2");
        assert_eq!(origin.requests(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_gives_way_at_the_upstream_and_harms_nobody_who_waits_for_it() {
    let gate = Gate::shut();
    let control = [("cache-control", "max-age=10, stale-while-revalidate=60")];
    let origin = Origin::holding(
        &gate,
        |_, request| request.uri().path() == "/slow",
        move |number, _| page(200, &control, format!("answer {number}")),
    )
    .await;
    let mut setting = Setting::before(origin.address);
    setting.upstream.concurrency_max = 1;
    setting.upstream.queue_timeout = Duration::from_secs(20);
    setting.upstream.head_timeout = Duration::from_secs(600);
    let stage = setting.start().await;
    assert_eq!(stage.get("/page").await.text(), "answer 1");
    tokio::time::advance(Duration::from_secs(15)).await;
    let slow = stage.spawn_get("/slow", &[]);
    stage.until(|_| origin.requests() == 2).await;
    assert_eq!(stage.get("/page").await.text(), "answer 1", "stale, and its refresh finds no place");
    stage.until(|telemetry| telemetry.flights() == 1).await;
    tokio::time::advance(Duration::from_secs(100)).await;
    let waiting = stage.spawn_get("/page", &[]);
    stage.until(|telemetry| telemetry.flights() == 2).await;
    gate.open();
    assert_eq!(waiting.await.unwrap().text(), "answer 3", "no failure was remembered");
    slow.await.unwrap();
    let refused = stage.metric("forebay_upstream_refused_total{cause=\"gave_way\",upstream=\"origin\"}");
    assert_eq!((refused, origin.requests()), (1.0, 3));
    let sent = stage.telemetry.upstream(0).requests(FetchReason::Refresh, StatusClass::Error);
    assert_eq!(sent, 0, "what was not sent is no request");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_gives_way_hurries_where_somebody_has_come_to_wait_for_it() {
    let (refresh, slow) = (Gate::shut(), Gate::shut());
    let gates = (refresh.clone(), slow.clone());
    let origin = Origin::start(move |number, request| {
        let (refresh, slow) = gates.clone();
        async move {
            let control = "max-age=10, stale-while-revalidate=10";
            let whole =
                |etag| page(200, &[("cache-control", control), ("etag", etag)], format!("answer {number}"));
            match (request.uri().path(), request.headers().contains_key("if-none-match")) {
                ("/slow", _) => slow.passed().await,
                (_, true) => {
                    refresh.passed().await;
                    return page(304, &[("etag", "\"new\"")], "");
                }
                (_, false) => {}
            }
            whole(if number == 1 { "\"old\"" } else { "\"new\"" })
        }
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.upstream.concurrency_max = 1;
    setting.upstream.queue_timeout = Duration::from_secs(600);
    setting.upstream.head_timeout = Duration::from_secs(600);
    let stage = setting.start().await;
    let queued = || stage.metric("forebay_upstream_queued{upstream=\"origin\"}");
    let gave_way = || stage.metric("forebay_upstream_refused_total{cause=\"gave_way\",upstream=\"origin\"}");
    assert_eq!(stage.get("/page").await.text(), "answer 1");
    tokio::time::advance(Duration::from_secs(15)).await;
    assert_eq!(stage.get("/page").await.text(), "answer 1", "stale, and its refresh has the one place");
    stage.until(|_| origin.requests() == 2).await;
    let other = stage.spawn_get("/slow", &[]);
    stage.until(|_| queued() == 1.0).await;
    tokio::time::advance(Duration::from_secs(10)).await;
    let waiting = stage.spawn_get("/page", &[]);
    stage.until_waiters(1).await;
    // The upstream confirms what is not stored: the refresh has to ask again, and another has taken its place.
    refresh.open();
    stage.until(|_| gave_way() == 1.0 && queued() == 1.0).await;
    assert_eq!(origin.requests(), 3);
    slow.open();
    assert_eq!((other.await.unwrap().text(), waiting.await.unwrap().text()), ("answer 3", "answer 4"));
    let route = stage.telemetry.route(0);
    assert_eq!((route.waits(WaitResult::Shared), origin.requests()), (1, 4));
    let duplicates: u64 = DuplicateCause::ALL.iter().map(|cause| route.duplicates(*cause)).sum();
    assert_eq!(duplicates, 0, "who waited did not go alone");
}

#[tokio::test(start_paused = true)]
async fn hit_for_miss_is_never_conditional_and_ends_when_an_answer_may_be_stored() {
    let origin = Origin::start(|number, request| async move {
        assert!(!request.headers().contains_key("if-none-match"), "{number}");
        let control = if number == 2 { "private" } else { "max-age=10" };
        page(200, &[("cache-control", control), ("etag", "\"1\"")], format!("answer {number}"))
    })
    .await;
    let stage = Stage::before(&origin).await;
    assert_eq!(stage.get("/").await.text(), "answer 1");
    let target = forebay::proxy::Target::Everything;
    stage.proxy.purge(&forebay::proxy::Purge { target, soft: false }).unwrap();
    for expected in ["answer 2", "answer 3", "answer 3"] {
        // A client's own condition does not travel with a fetch that may be shared.
        let answer = stage.get_with("/", &[("if-none-match", "\"0\"")]).await;
        assert_eq!(answer.text(), expected);
    }
    assert_eq!(stage.telemetry.route(0).requests(Answered::Hit), 1);
}

#[tokio::test(start_paused = true)]
async fn streams_of_one_http2_connection_wait_for_each_other_like_connections() {
    let gate = Gate::shut();
    let origin = gated(&gate, |_| true, &CACHEABLE).await;
    let stage = Stage::before(&origin).await;
    let sender = http2_client(stage.address).await;
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let mut sender = sender.clone();
            tokio::spawn(async move {
                let asked = request("GET", "http://site.example/", &[]);
                Head(sender.send_request(asked).await.unwrap()).whole().await
            })
        })
        .collect();
    stage.until_waiters(49).await;
    // One that leaves is off the list at once.
    clients[49].abort();
    stage.until_waiters(48).await;
    gate.open();
    for client in clients.into_iter().take(49) {
        assert_eq!(client.await.unwrap().text(), "answer 1");
    }
    assert_eq!(origin.requests(), 1);
}
