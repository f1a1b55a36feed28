//! Purge is a line in time, whatever it meets.

use crate::support::*;
use forebay::outcome::Answered;
use forebay::proxy::{Network, Purge, Target};
use forebay::telemetry::DuplicateCause;
use std::time::Duration;

const TAGGED: [(&str, &str); 3] =
    [("cache-control", "max-age=60"), ("surrogate-key", "news"), ("etag", "\"1\"")];

/// Every way to name the page `/news/today`.
fn targets() -> [Target; 5] {
    [
        Target::Url("http://site.example/news/today".into()),
        Target::Tag("news".into()),
        Target::Prefix { host: Some("site.example".into()), path: "/news".into() },
        Target::Route("default".into()),
        Target::Everything,
    ]
}

/// Every way to purge it.
fn purges() -> impl Iterator<Item = Purge> {
    targets().into_iter().flat_map(|target| [false, true].map(|soft| Purge { target: target.clone(), soft }))
}

#[tokio::test(start_paused = true)]
async fn what_was_stored_before_a_purge_is_not_served_after_it() {
    for purge in purges() {
        let origin = Origin::gated(&[], &TAGGED).await;
        let stage = Stage::before(&origin).await;
        assert_eq!(stage.get("/news/today").await.text(), "answer 1");
        stage.proxy.purge(&purge).unwrap();
        assert_eq!(stage.get("/news/today").await.text(), "answer 2", "{purge:?}");
        assert_eq!(stage.get("/news/today").await.text(), "answer 2", "{purge:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_before_a_purge_and_comes_after_it_is_for_those_who_had_joined() {
    for purge in purges() {
        let gates = [Gate::shut(), Gate::shut()];
        let origin = Origin::gated(&gates, &TAGGED).await;
        let stage = Stage::before(&origin).await;
        let leader = stage.spawn_get("/news/today", &[]);
        stage.until(|telemetry| telemetry.flights() == 1).await;
        let before = stage.spawn_get("/news/today", &[]);
        stage.until_waiters(1).await;
        stage.proxy.purge(&purge).unwrap();
        let after = stage.spawn_get("/news/today", &[]);
        let is_seen_at_once = !matches!(purge.target, Target::Tag(_));
        // A tag is known only with the head; until then the latecomer waits for it with the others.
        let (flights, waiters) = if is_seen_at_once { (2, 1) } else { (1, 2) };
        stage.until(|telemetry| telemetry.flights() == flights && telemetry.waiters() == waiters).await;
        gates[1].open();
        gates[0].open();
        assert_eq!(leader.await.unwrap().text(), "answer 1", "{purge:?}");
        assert_eq!(before.await.unwrap().text(), "answer 1", "{purge:?}");
        assert_eq!(after.await.unwrap().text(), "answer 2", "{purge:?}");
        assert_eq!(stage.get("/news/today").await.text(), "answer 2", "{purge:?}");
        assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Purge), 1, "{purge:?}");
        assert_eq!(origin.requests(), 2, "{purge:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_soft_purge_does_not_hide_the_first() {
    let gate = Gate::shut();
    let origin = Origin::gated(std::slice::from_ref(&gate), &TAGGED).await;
    let stage = Stage::before(&origin).await;
    let leader = stage.spawn_get("/news/today", &[]);
    stage.until(|telemetry| telemetry.flights() == 1).await;
    let purge = Purge { target: Target::Tag("news".into()), soft: true };
    stage.proxy.purge(&purge).unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    let between = stage.spawn_get("/news/today", &[]);
    stage.until_waiters(1).await;
    stage.proxy.purge(&purge).unwrap();
    gate.open();
    assert_eq!(leader.await.unwrap().text(), "answer 1");
    assert_eq!(between.await.unwrap().text(), "answer 2");
}

#[tokio::test(start_paused = true)]
async fn a_purge_in_mid_body_lets_its_readers_finish_and_nobody_join() {
    for purge in purges() {
        let (pieces, origin) = Origin::in_pieces(&TAGGED).await;
        let stage = Stage::before(&origin).await;
        let mut client = stage.client().await;
        let mut reading = client.send(request("GET", "/news/today", &[])).await;
        pieces.send(data("begun, ")).unwrap();
        assert_eq!(reading.piece().await.unwrap().unwrap(), "begun, ");
        stage.proxy.purge(&purge).unwrap();
        stage.proxy.sweep().await;
        assert_eq!(stage.get("/news/today").await.text(), "answer 2", "{purge:?}");
        pieces.send(data("done")).unwrap();
        drop(pieces);
        assert_eq!(reading.whole().await.text(), "done", "{purge:?}");
        assert_eq!(stage.get("/news/today").await.text(), "answer 2", "{purge:?}");
        assert_eq!(origin.requests(), 2, "{purge:?}");
    }
}

/// An origin that confirms what it is asked about, after the gate.
async fn confirming(gate: &Gate) -> Origin {
    Origin::holding(
        gate,
        |_, request| request.headers().contains_key("if-none-match"),
        |number, request| {
            if request.headers().contains_key("if-none-match") {
                page(304, &SHORT, "")
            } else {
                page(200, &SHORT, format!("answer {number}"))
            }
        },
    )
    .await
}

const SHORT: [(&str, &str); 3] = [
    ("cache-control", "max-age=10, stale-while-revalidate=10"),
    ("surrogate-key", "news"),
    ("etag", "\"1\""),
];

#[tokio::test(start_paused = true)]
async fn rfc5861_3_what_is_purged_softly_while_it_is_fetched_is_stale_from_the_purge_on() {
    for purge in purges().filter(|purge| purge.soft) {
        let gate = Gate::shut();
        let origin = Origin::gated(std::slice::from_ref(&gate), &SHORT).await;
        let stage = Stage::before(&origin).await;
        let leader = stage.spawn_get("/news/today", &[]);
        stage.until(|_| origin.requests() == 1).await;
        stage.proxy.purge(&purge).unwrap();
        tokio::time::advance(Duration::from_secs(5)).await;
        gate.open();
        assert_eq!(leader.await.unwrap().text(), "answer 1", "{purge:?}");
        // Stale for longer than the ten seconds in which it may be served while it is refreshed.
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(stage.get("/news/today").await.text(), "answer 2", "{purge:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_refresh_after_a_purge_is_counted() {
    let (open, gates) = (Gate::shut(), [Gate::shut(), Gate::shut()]);
    open.open();
    let origin = Origin::gated(&[open, gates[0].clone(), gates[1].clone()], &SHORT).await;
    let stage = Stage::before(&origin).await;
    assert_eq!(stage.get("/news/today").await.text(), "answer 1");
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(stage.get("/news/today").await.text(), "answer 1");
    stage.until(|_| origin.requests() == 2).await;
    let duplicates = || stage.telemetry.route(0).duplicates(DuplicateCause::Purge);
    assert_eq!(duplicates(), 0);
    let target = Target::Url("http://site.example/news/today".into());
    stage.proxy.purge(&Purge { target, soft: true }).unwrap();
    assert_eq!(stage.get("/news/today").await.text(), "answer 1");
    stage.until(|_| origin.requests() == 3).await;
    assert_eq!(duplicates(), 1);
    gates.iter().for_each(Gate::open);
    stage.until(|telemetry| telemetry.flights() == 0).await;
    assert_eq!(stage.get("/news/today").await.text(), "answer 3");
}

#[tokio::test(start_paused = true)]
async fn a_confirmation_does_not_revive_what_was_purged_while_it_was_asked_for() {
    // Stale for 25 seconds: the client waits. For 5: it is refreshed in the background.
    for (age, is_in_background) in [(25, false), (15, true)] {
        for purge in purges().filter(|purge| !purge.soft) {
            let gate = Gate::shut();
            let origin = confirming(&gate).await;
            let stage = Stage::before(&origin).await;
            assert_eq!(stage.get("/news/today").await.text(), "answer 1");
            tokio::time::advance(Duration::from_secs(age)).await;
            let asking = stage.spawn_get("/news/today", &[]);
            stage.until(|_| origin.requests() == 2).await;
            stage.proxy.purge(&purge).unwrap();
            gate.open();
            let expected = if is_in_background { "answer 1" } else { "answer 3" };
            assert_eq!(asking.await.unwrap().text(), expected, "{purge:?}");
            stage.until(|telemetry| telemetry.flights() == 0).await;
            assert_ne!(stage.get("/news/today").await.text(), "answer 1", "{purge:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_confirmation_with_other_tags_does_not_freshen_what_was_purged_by_the_tag_that_it_had() {
    let gate = Gate::shut();
    let (control, etag) = (("cache-control", "max-age=60"), ("etag", "\"1\""));
    let origin = Origin::behind(&gate, 2..3, move |number| match number {
        1 => page(200, &[("cache-control", "max-age=1"), etag, ("surrogate-key", "old")], "answer 1"),
        2 => page(304, &[control, etag, ("surrogate-key", "new")], ""),
        _ => page(200, &[control], format!("answer {number}")),
    })
    .await;
    let stage = Stage::before(&origin).await;
    assert_eq!(stage.get("/").await.text(), "answer 1");
    tokio::time::advance(Duration::from_secs(2)).await;
    let early = stage.spawn_get("/", &[]);
    stage.until(|_| origin.requests() == 2).await;
    stage.proxy.purge(&Purge { target: Target::Tag("old".into()), soft: true }).unwrap();
    gate.open();
    assert_eq!(early.await.unwrap().text(), "answer 1");
    assert_eq!(stage.get("/").await.text(), "answer 3", "it was stale from the purge on");
}

#[tokio::test(start_paused = true)]
async fn what_is_fetched_after_a_validation_that_a_purge_has_overtaken_is_for_those_who_came_after_it_too() {
    // Stale for 25 seconds: the client waits. For 5: it is refreshed in the background.
    for (age, given) in [(25, "answer 3"), (15, "answer 1")] {
        let gate = Gate::shut();
        let origin = confirming(&gate).await;
        let stage = Stage::before(&origin).await;
        assert_eq!(stage.get("/news/today").await.text(), "answer 1");
        tokio::time::advance(Duration::from_secs(age)).await;
        let early = stage.spawn_get("/news/today", &[]);
        stage.until(|_| origin.requests() == 2).await;
        // Who comes after the purge of a tag does not see it: what comes may not carry the tag.
        stage.proxy.purge(&Purge { target: Target::Tag("news".into()), soft: false }).unwrap();
        let late: Vec<_> = (0..3).map(|_| stage.spawn_get("/news/today", &[])).collect();
        stage.until_waiters(3).await;
        gate.open();
        assert_eq!(early.await.unwrap().text(), given);
        for late in late {
            assert_eq!(late.await.unwrap().text(), "answer 3", "stale for {age} s");
        }
        assert_eq!(stage.get("/news/today").await.text(), "answer 3");
        assert_eq!(origin.requests(), 3, "stale for {age} s");
        assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Purge), 1, "stale for {age} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_purge_costs_those_nothing_who_were_waiting_before_it() {
    for purge in purges() {
        let gate = Gate::shut();
        let origin = Origin::gated(std::slice::from_ref(&gate), &TAGGED).await;
        let stage = Stage::before(&origin).await;
        let clients: Vec<_> = (0..5).map(|_| stage.spawn_get("/news/today", &[])).collect();
        stage.until_waiters(4).await;
        stage.proxy.purge(&purge).unwrap();
        gate.open();
        for client in clients {
            assert_eq!(client.await.unwrap().text(), "answer 1", "{purge:?}");
        }
        assert_eq!(origin.requests(), 1, "{purge:?}");
        assert_eq!(stage.get("/news/today").await.text(), "answer 2", "{purge:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_prefix_of_a_host_is_that_of_all_hosts_where_the_key_leaves_them_out() {
    let origin =
        Origin::start(|number, _| async move { page(200, &TAGGED, format!("answer {number}")) }).await;
    let mut setting = Setting::before(origin.address);
    setting.key.host = false;
    let stage = setting.start().await;
    let at = [("host", "elsewhere.example")];
    for expected in ["answer 1", "answer 2"] {
        assert_eq!(stage.get("/news/today").await.text(), expected);
        assert_eq!(stage.get_with("/news/today", &at).await.text(), expected);
        let target = Target::Prefix { host: Some("elsewhere.example".into()), path: "/news".into() };
        stage.proxy.purge(&Purge { target, soft: false }).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_purge_all_wait_for_one_fetch_whatever_else_is_purged() {
    let gates = [Gate::shut(), Gate::shut()];
    let origin = Origin::gated(&gates, &TAGGED).await;
    let stage = Stage::before(&origin).await;
    let purge = |target| stage.proxy.purge(&Purge { target, soft: false }).unwrap();
    let first = stage.spawn_get("/news/today", &[]);
    stage.until(|_| origin.requests() == 1).await;
    purge(Target::Tag("news".into()));
    // That it has this tag is not known before its head.
    let waiting: Vec<_> = (0..3).map(|_| stage.spawn_get("/news/today", &[])).collect();
    stage.until_waiters(3).await;
    purge(Target::Url("http://site.example/news/today".into()));
    let late = stage.spawn_get("/news/today", &[]);
    stage.until(|_| origin.requests() == 2).await;
    purge(Target::Url("http://site.example/elsewhere".into()));
    purge(Target::Tag("others".into()));
    gates[0].open();
    // For those who came after the purge of the tag it is too old, and what is on its way since is not.
    assert_eq!(first.await.unwrap().text(), "answer 1");
    stage.until_waiters(3).await;
    gates[1].open();
    for client in waiting.into_iter().chain([late]) {
        assert_eq!(client.await.unwrap().text(), "answer 2");
    }
    assert_eq!(origin.requests(), 2);
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Purge), 1);
}

#[tokio::test(start_paused = true)]
async fn purge_as_a_method_is_for_allowed_networks_only_and_off_by_default() {
    let origin = Origin::gated(&[], &TAGGED).await;
    let allow = |networks: &[(&str, u8)]| {
        let mut setting = Setting::before(origin.address);
        setting.proxy.purge_allowed = networks
            .iter()
            .map(|(address, bits)| Network { address: address.parse().unwrap(), bits: *bits })
            .collect();
        setting
    };
    let stage = allow(&[("127.0.0.0", 8)]).start().await;
    assert_eq!(stage.get("/news/today").await.text(), "answer 1");
    assert_eq!(stage.send("PURGE", "/news/today", &[]).await.status, 200);
    assert_eq!(stage.get("/news/today").await.text(), "answer 2");
    assert_eq!(stage.telemetry.route(0).requests(Answered::Purged), 1);

    let stage = allow(&[("10.0.0.0", 8)]).start().await;
    assert_eq!(stage.get("/news/today").await.text(), "answer 3");
    assert_eq!(stage.send("PURGE", "/news/today", &[]).await.status, 405);
    assert_eq!(stage.get("/news/today").await.text(), "answer 3");

    let stage = allow(&[]).start().await;
    assert_eq!(stage.send("PURGE", "/news/today", &[]).await.text(), "answer 4", "it is sent on");
    assert_eq!(origin.seen(4).0, "PURGE");
}

#[tokio::test(start_paused = true)]
async fn a_purge_in_the_moment_of_landing_is_before_or_after_it_and_never_between() {
    // Each time the purge falls a few turns of the scheduler later: before the head is seen, while it lands, after it.
    for turns in 0..60 {
        let gate = Gate::shut();
        let origin = Origin::gated(std::slice::from_ref(&gate), &TAGGED).await;
        let stage = Stage::before(&origin).await;
        let leader = stage.spawn_get("/news/today", &[]);
        stage.until(|_| origin.requests() == 1).await;
        gate.open();
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        let target = Target::Tag("news".into());
        stage.proxy.purge(&Purge { target, soft: turns % 2 == 0 }).unwrap();
        assert_eq!(stage.get("/news/today").await.text(), "answer 2", "{turns} turns");
        assert_eq!(leader.await.unwrap().text(), "answer 1");
        assert_eq!(stage.get("/news/today").await.text(), "answer 2", "{turns} turns");
    }
}

#[tokio::test(start_paused = true)]
async fn a_prefix_is_the_one_that_clients_name_also_where_the_route_takes_it_away() {
    let origin = Origin::cacheable(1).await;
    let mut setting = Setting::before(origin.address);
    setting.stripped = Some("/shop");
    let stage = setting.start().await;
    let purge = |path: &str| {
        let target = Target::Prefix { host: None, path: path.into() };
        stage.proxy.purge(&Purge { target, soft: false }).unwrap();
    };
    stage.get("/shop/shoes").await;
    assert_eq!(origin.seen(1).1, "/shoes");
    purge("/shoes");
    stage.get("/shop/shoes").await;
    assert_eq!(origin.requests(), 1, "no client knows it under this name");
    purge("/shop/sh");
    stage.get("/shop/shoes").await;
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_purge_of_everything_tells_how_many_responses_it_hits_and_not_what_was_void_before() {
    let origin = Origin::start(|_, request| async move {
        let tag = if request.uri() == "/red" { "red" } else { "other" };
        let control = ("cache-control", "max-age=60");
        page(200, &[control, ("surrogate-key", tag), ("vary", "accept"), ("etag", "\"1\"")], "x")
    })
    .await;
    let everything = |soft| Purge { target: Target::Everything, soft };
    for (hits, first) in [
        (4, None),
        (3, Some(Target::Tag("red".into()))),
        (2, Some(Target::Url("http://site.example/two".into()))),
        (0, Some(Target::Prefix { host: None, path: "/".into() })),
        (0, Some(Target::Everything)),
    ] {
        let stage = Stage::before(&origin).await;
        assert_eq!(stage.proxy.purge(&everything(true)).unwrap().entries, Some(0));
        for (target, accept) in [("/red", "a/b"), ("/one", "a/b"), ("/two", "a/b"), ("/two", "a/c")] {
            stage.get_with(target, &[("accept", accept)]).await;
        }
        if let Some(target) = &first {
            stage.proxy.purge(&Purge { target: target.clone(), soft: false }).unwrap();
        }
        // What is stale still is there to be hit.
        for soft in [true, true, false] {
            assert_eq!(stage.proxy.purge(&everything(soft)).unwrap().entries, Some(hits), "after {first:?}");
        }
        assert_eq!(stage.proxy.purge(&everything(false)).unwrap().entries, Some(0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_soft_purge_has_left_of_no_use_is_not_hit_again() {
    for (control, etag, left) in [
        ("max-age=60", None, 0),
        ("max-age=60", Some("\"1\""), 1),
        ("max-age=60, stale-if-error=60", None, 1),
        ("max-age=60, stale-while-revalidate=60", None, 1),
    ] {
        let fields: Vec<_> =
            [("cache-control", control)].into_iter().chain(etag.map(|tag| ("etag", tag))).collect();
        let origin = Origin::start(move |_, _| {
            let fields = fields.clone();
            async move { page(200, &fields, "x") }
        })
        .await;
        let urls = ["http://site.example/", "https://site.example/", "https://SITE.example:443"];
        for target in urls.map(|url| Target::Url(url.into())).into_iter().chain([Target::Everything]) {
            let stage = Stage::before(&origin).await;
            stage.get("/").await;
            let hit = |soft| stage.proxy.purge(&Purge { target: target.clone(), soft }).unwrap().entries;
            assert_eq!(
                [hit(true), hit(true), hit(false)],
                [Some(1), Some(left), Some(left)],
                "{control} {etag:?} {target:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_purge_of_a_tag_says_nothing_of_a_failure_that_is_not_known_to_carry_it() {
    let origin = Origin::start(|number, _| async move {
        match number {
            1 => page(200, &TAGGED, "old"),
            2 => page(503, &[], "down"),
            _ => page(200, &TAGGED, "fine"),
        }
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.error_backoff = (Duration::from_secs(60), Duration::from_secs(60));
    let stage = setting.start().await;
    assert_eq!(stage.get("/news/today").await.text(), "old");
    let purge = |target| stage.proxy.purge(&Purge { target, soft: false }).unwrap();
    // With the first goes what told that the page has this tag. Were the second to end the back-off, every purge of a tag
    // would have to end that of every page, and an upstream that is down would get no rest.
    for _ in 0..2 {
        purge(Target::Tag("news".into()));
        assert_eq!((stage.get("/news/today").await.status, origin.requests()), (503, 2));
    }
    purge(Target::Url("http://site.example/news/today".into()));
    assert_eq!(stage.get("/news/today").await.text(), "fine");
}
