//! Errors on a page that has proved to be for everyone, where requests with credentials wait for each other although the route does not
//! let them: for whom its key is left alone.

use crate::support::*;
use bytes::Bytes;
use forebay::proxy::explain::{Explanation, How, Verdict};
use http::HeaderMap;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

const PUBLIC: &str = "public, max-age=0";

/// A proxy whose back-off lasts for so long.
async fn with_back_off(origin: &Origin, pause: Duration) -> Stage {
    changed(origin, pause, |_| {}).await
}

async fn changed(origin: &Origin, pause: Duration, change: impl FnOnce(&mut Setting)) -> Stage {
    let mut setting = Setting::before(origin.address);
    setting.coalescing.error_backoff = (pause, pause);
    setting.upstream.retries = 0;
    change(&mut setting);
    setting.start().await
}

/// An origin that has this once, and is down from then on.
async fn once_up(control: &'static str) -> Origin {
    Origin::start(move |number, _| async move {
        if number == 1 { page(200, &[("cache-control", control)], "fine") } else { page(503, &[], "down") }
    })
    .await
}

/// What these clients get in turn, named for what they send: `c…` a cookie, `-` nothing, else credentials. And how many
/// requests each of them caused.
async fn in_turn(stage: &Stage, origin: &Origin, clients: &[&str]) -> Vec<(u16, usize)> {
    let mut seen = Vec::new();
    for client in clients {
        let before = origin.requests();
        let status = stage.get_with("/page", &fields(client)).await.status;
        seen.push((status, origin.requests() - before));
    }
    seen
}

fn fields(client: &str) -> Vec<(&'static str, &str)> {
    match client {
        "-" => vec![],
        _ if client.starts_with('c') => vec![("cookie", client)],
        _ => vec![("authorization", client)],
    }
}

fn requests(seen: &[(u16, usize)]) -> Vec<usize> {
    seen.iter().map(|(_, requests)| *requests).collect()
}

#[tokio::test(start_paused = true)]
async fn two_errors_in_a_row_with_different_credentials_hold_for_all_who_tell_who_they_are_and_wait() {
    for (clients, expected) in [
        (&["A", "B", "C", "D", "A", "c1", "-", "-"][..], [1, 1, 0, 0, 0, 0, 1, 0]),
        (&["A", "A", "c1", "c2", "B", "C", "-", "D"], [1, 0, 1, 0, 0, 0, 1, 0]),
        (&["c1", "A", "c2", "B", "C", "-", "c3", "A"], [1, 1, 0, 0, 0, 1, 0, 0]),
    ] {
        let origin = once_up(PUBLIC).await;
        let stage = with_back_off(&origin, LONG).await;
        assert_eq!(stage.get("/page").await.text(), "fine");
        let seen = in_turn(&stage, &origin, clients).await;
        assert!(seen.iter().all(|(status, _)| *status == 503));
        assert_eq!(requests(&seen), expected, "{clients:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_nothing_has_proved_to_be_for_everyone_each_with_credentials_finds_out_for_itself_and_tells_nobody()
 {
    let origin = once_up("max-age=0").await;
    let stage = with_back_off(&origin, LONG).await;
    assert_eq!(stage.get("/page").await.text(), "fine");
    let seen = in_turn(&stage, &origin, &["A", "B", "C", "A", "c1", "c2", "c3", "D"]).await;
    assert_eq!(requests(&seen), [1, 1, 1, 0, 1, 1, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_together_with_different_credentials_do_not_become_as_many_retries() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, 2..=2, |number| match number {
        1 => page(200, &[("cache-control", PUBLIC)], "fine"),
        _ => page(503, &[], "down"),
    })
    .await;
    let stage = with_back_off(&origin, LONG).await;
    assert_eq!(stage.get("/page").await.text(), "fine");
    let get = |number: usize| stage.spawn_get("/page", &[("authorization", &format!("Bearer {number}"))]);
    let clients: Vec<_> = (0..20).map(get).collect();
    stage.until_waiters(19).await;
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().status, 503);
    }
    assert_eq!(origin.requests(), 3);
    assert_eq!(requests(&in_turn(&stage, &origin, &["A", "B"]).await), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn when_the_back_off_is_over_one_asks_for_all_and_the_first_good_answer_ends_it() {
    let second = Duration::from_secs(1);
    // Those who need a validation each go by themselves, and of these one is the probe.
    for (control, waiting) in [(PUBLIC, 4), ("public, no-cache", 0)] {
        let gate = Gate::shut();
        let origin = Origin::behind(&gate, 4..=4, move |number| match number {
            2..=3 => page(503, &[], "down"),
            _ => page(200, &[("cache-control", control), ("etag", "\"1\"")], "fine"),
        })
        .await;
        let stage = with_back_off(&origin, second).await;
        assert_eq!(stage.get("/page").await.text(), "fine");
        assert_eq!(requests(&in_turn(&stage, &origin, &["A", "B", "C"]).await), [1, 1, 0]);
        tokio::time::advance(second).await;
        let probe = stage.spawn_get("/page", &fields("D"));
        stage.until(|_| origin.requests() == 4).await;
        let others: Vec<_> =
            ["E", "F", "G", "H"].map(|client| stage.spawn_get("/page", &fields(client))).into();
        stage.until_waiters(waiting).await;
        if waiting == 0 {
            for other in others {
                assert_eq!(other.await.unwrap().status, 503, "{control}");
            }
            gate.open();
        } else {
            gate.open();
            for other in others {
                assert_eq!(other.await.unwrap().text(), "fine", "{control}");
            }
        }
        assert_eq!(probe.await.unwrap().text(), "fine");
        assert_eq!(origin.requests(), 4, "{control}");
        assert_eq!(in_turn(&stage, &origin, &["I", "c1"]).await, [(200, 1), (200, 1)], "{control}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_changes_its_credentials_each_time_does_not_close_the_page_to_others_who_are_answered() {
    let origin = Origin::start(|_, request| async move {
        if is_bad(request.headers()) {
            page(500, &[], "broken")
        } else {
            page(200, &[("cache-control", PUBLIC)], "fine")
        }
    })
    .await;
    let stage = with_back_off(&origin, LONG).await;
    assert_eq!(stage.get("/page").await.text(), "fine");
    for number in 0..5 {
        let (one, other) = (format!("bad {number}"), format!("bad, too {number}"));
        let seen = in_turn(&stage, &origin, &[&one, "good", &other, "cgood", "-"]).await;
        assert_eq!(seen, [(500, 1), (200, 1), (500, 1), (200, 1), (200, 1)]);
    }
}

fn is_bad(headers: &HeaderMap) -> bool {
    headers.get("authorization").is_some_and(|value| value.to_str().unwrap().contains("bad"))
}

#[tokio::test(start_paused = true)]
async fn who_does_not_wait_because_of_its_cookies_neither_tells_the_others_nor_is_told_by_them() {
    let origin = once_up(PUBLIC).await;
    let stage = changed(&origin, LONG, |setting| setting.coalescing.join_with_cookies = false).await;
    assert_eq!(stage.get("/page").await.text(), "fine");
    let seen = in_turn(&stage, &origin, &["c1", "c2", "c3", "A", "B", "C", "c4", "c4"]).await;
    assert_eq!(requests(&seen), [1, 1, 1, 1, 1, 0, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn what_is_noted_of_those_with_credentials_is_over_for_them_when_the_page_is_for_everyone_no_more() {
    let origin = Origin::start(|number, _| async move {
        match number {
            1 => page(200, &[("cache-control", PUBLIC)], "fine"),
            4 => page(200, &[("cache-control", "private")], "mine"),
            _ => page(503, &[], "down"),
        }
    })
    .await;
    let stage = with_back_off(&origin, LONG).await;
    let seen = in_turn(&stage, &origin, &["-", "A", "B", "-", "C", "D", "E"]).await;
    assert_eq!(requests(&seen), [1, 1, 1, 1, 1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn who_asked_before_the_page_proved_to_be_for_everyone_fails_for_itself_alone() {
    let gates = [Gate::shut(), Gate::shut()];
    let held = gates.clone();
    let origin = Origin::start(move |number, request| {
        let gate = held.get(number - 1).cloned();
        async move {
            if let Some(gate) = gate {
                gate.passed().await;
                return page(503, &[], "down");
            }
            if is_bad(request.headers()) {
                page(503, &[], "down")
            } else {
                page(200, &[("cache-control", PUBLIC)], "fine")
            }
        }
    })
    .await;
    let stage = with_back_off(&origin, LONG).await;
    let early = ["A", "B"].map(|client| stage.spawn_get("/page", &fields(client)));
    stage.until(|_| origin.requests() == 2).await;
    assert_eq!(stage.get("/page").await.text(), "fine");
    gates.iter().for_each(Gate::open);
    for client in early {
        assert_eq!(client.await.unwrap().status, 503);
    }
    let seen = in_turn(&stage, &origin, &["A", "C", "bad", "D", "c1", "-"]).await;
    assert_eq!(seen, [(503, 0), (200, 1), (503, 1), (200, 1), (200, 1), (200, 1)]);
}

#[tokio::test(start_paused = true)]
async fn the_errors_of_ranges_that_pass_are_those_of_all_who_wait_likewise() {
    let origin = once_up(PUBLIC).await;
    let stage = changed(&origin, LONG, |setting| setting.coalescing.pass_ranges = true).await;
    assert_eq!(stage.get("/page").await.text(), "fine");
    let mut caused = Vec::new();
    for client in ["A", "B", "C", "D"] {
        let before = origin.requests();
        let fields = [("authorization", client), ("range", "bytes=0-0")];
        assert_eq!(stage.get_with("/page", &fields).await.status, 503);
        caused.push(origin.requests() - before);
    }
    assert_eq!(caused, [1, 1, 0, 0]);
    assert_eq!(requests(&in_turn(&stage, &origin, &["E", "c1", "-"]).await), [0, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_failed_for_two_with_different_credentials_is_not_begun_for_a_third() {
    // Where those with cookies wait for nobody, their refreshes tell nothing of the others.
    for (cookies_wait, clients) in [
        (true, [("A", 2), ("B", 3), ("C", 3), ("c1", 3), ("-", 4), ("-", 4)]),
        (false, [("c1", 2), ("c2", 3), ("A", 4), ("B", 4), ("c3", 5), ("-", 6)]),
    ] {
        let origin = once_up("public, max-age=1, stale-while-revalidate=600").await;
        let change = |setting: &mut Setting| setting.coalescing.join_with_cookies = cookies_wait;
        let stage = changed(&origin, LONG, change).await;
        assert_eq!(stage.get("/page").await.text(), "fine");
        tokio::time::advance(Duration::from_secs(2)).await;
        for (client, requests) in clients {
            assert_eq!(stage.get_with("/page", &fields(client)).await.text(), "fine", "{client}");
            stage.until(|_| origin.requests() == requests).await;
            stage.until(|telemetry| telemetry.upstream(0).in_flight() == 0).await;
            // Nothing more comes.
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(origin.requests(), requests, "{client}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_errors_of_one_variant_are_not_those_of_another() {
    let origin = Origin::start(|number, _| async move {
        let fields = [("cache-control", PUBLIC), ("vary", "accept-language")];
        if number == 1 { page(200, &fields, "fine") } else { page(503, &[], "down") }
    })
    .await;
    let stage = with_back_off(&origin, LONG).await;
    assert_eq!(stage.get("/page").await.text(), "fine");
    for (client, language, requests) in
        [("A", "de", 2), ("B", "de", 3), ("C", "de", 3), ("C", "fr", 4), ("D", "fr", 5), ("E", "fr", 5)]
    {
        let fields = [("authorization", client), ("accept-language", language)];
        assert_eq!(stage.get_with("/page", &fields).await.status, 503);
        assert_eq!(origin.requests(), requests, "{client} in {language}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_explanation_tells_of_no_refresh_that_is_not_begun_because_the_last_failed() {
    let control = [("cache-control", "max-age=1, stale-while-revalidate=600")];
    let origin =
        Origin::start(
            move |number, _| async move { page(if number == 1 { 200 } else { 503 }, &control, "page") },
        )
        .await;
    let stage = Stage::before(&origin).await;
    let explained = || {
        let asked = http::Request::get("http://site.example/").body(Bytes::new()).unwrap();
        let Explanation::Received(explained) = stage.proxy.explain(&asked) else { panic!("refused") };
        explained.plan
    };
    stage.get("/").await;
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(matches!(explained(), Verdict::DeliverAndRefresh { .. }), "{:?}", explained());
    stage.get("/").await;
    stage.until(|telemetry| origin.requests() == 2 && telemetry.flights() == 0).await;
    let Verdict::Deliver { why, .. } = explained() else { panic!("{:?}", explained()) };
    assert!(why.contains("not refreshed: the last fetch failed"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn an_explanation_tells_of_it_those_whom_it_concerns() {
    let origin = once_up(PUBLIC).await;
    let stage = changed(&origin, LONG, |setting| setting.coalescing.join_with_cookies = false).await;
    let explained = |client: &str| {
        let mut asked = http::Request::get("http://site.example/page");
        for (name, value) in fields(client) {
            asked = asked.header(name, value);
        }
        let Explanation::Received(explained) = stage.proxy.explain(&asked.body(Bytes::new()).unwrap()) else {
            panic!("refused")
        };
        let Verdict::Fetch { fetch, .. } = explained.plan else { panic!("{:?}", explained.plan) };
        (fetch.how, explained.note.map(|note| note.kind))
    };
    assert_eq!(stage.get("/page").await.text(), "fine");
    in_turn(&stage, &origin, &["A", "B"]).await;
    let back_off = (How::BackOff, Some("back-off".into()));
    assert_eq!((explained("A"), explained("C")), (back_off.clone(), back_off));
    assert_eq!((explained("-"), explained("c1")), ((How::Lead, None), (How::Alone, None)));
}
