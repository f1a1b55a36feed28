//! An error that answers one client's cookies or credentials: who gets it, and for whom its key is left alone.

use crate::support::*;
use forebay::proxy::{Purge, Target};
use forebay::telemetry::DuplicateCause;
use http::{HeaderMap, Request};
use hyper::body::Incoming;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

/// What others may have only if they wait for it.
const MOMENTARY: (&str, &str) = ("cache-control", "max-age=0");

/// A proxy whose back-off lasts for longer than any story.
async fn patient(origin: &Origin) -> Stage {
    with_back_off(origin, LONG).await
}

async fn with_back_off(origin: &Origin, pause: Duration) -> Stage {
    let mut setting = Setting::before(origin.address);
    setting.coalescing.error_backoff = (pause, pause);
    setting.coalescing.join_with_authorization = true;
    setting.upstream.retries = 0;
    setting.start().await
}

fn is_bad(headers: &HeaderMap) -> bool {
    ["cookie", "authorization"]
        .iter()
        .filter_map(|name| headers.get(*name))
        .any(|value| value.to_str().unwrap().contains("bad"))
}

fn judged(request: &Request<Incoming>) -> Page {
    if is_bad(request.headers()) { page(500, &[], "broken") } else { page(200, &[MOMENTARY], "fine") }
}

/// An origin that has an error for whoever sends something bad, and holds the first request up.
async fn particular(gate: &Gate) -> Origin {
    Origin::holding(gate, |number, _| number == 1, |_, request| judged(request)).await
}

/// An origin that is down.
async fn down() -> Origin {
    Origin::start(|_, _| async { page(503, &[], "down") }).await
}

fn uncacheable(stage: &Stage) -> u64 {
    stage.telemetry.route(0).duplicates(DuplicateCause::Uncacheable)
}

/// The first of these clients leads, the others wait for it. What they get, in their order.
async fn together(stage: &Stage, gate: &Gate, clients: &[&[(&str, &str)]]) -> Vec<u16> {
    let first = stage.spawn_get("/page", clients[0]);
    stage.until(|telemetry| telemetry.upstream(0).in_flight() == 1).await;
    let mut all = vec![first];
    all.extend(clients[1..].iter().map(|fields| stage.spawn_get("/page", fields)));
    stage.until_waiters(i64::try_from(clients.len()).unwrap() - 1).await;
    gate.open();
    let mut statuses = Vec::new();
    for client in all {
        statuses.push(client.await.unwrap().status);
    }
    statuses
}

#[tokio::test(start_paused = true)]
async fn an_error_that_answers_one_client_s_cookies_is_not_given_to_those_who_wait_with_others_or_none() {
    for (name, bad) in [("cookie", "id=bad"), ("authorization", "Basic bad")] {
        // Also where there is no back-off.
        for pause in [LONG, Duration::ZERO] {
            let gate = Gate::shut();
            let origin = particular(&gate).await;
            let stage = with_back_off(&origin, pause).await;
            let (bad, good) = (&[(name, bad)][..], &[("cookie", "id=good")][..]);
            let statuses = together(&stage, &gate, &[bad, &[], good, &[], good, &[], good]).await;
            assert_eq!(statuses, [500, 200, 200, 200, 200, 200, 200], "{name}");
            // They meet: those without cookies, and those with.
            assert_eq!((origin.requests(), uncacheable(&stage)), (3, 2), "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_with_the_very_same_cookies_share_the_error() {
    for pause in [LONG, Duration::ZERO] {
        let gate = Gate::shut();
        let origin = particular(&gate).await;
        let stage = with_back_off(&origin, pause).await;
        let bad = &[("cookie", "id=bad")][..];
        assert_eq!(together(&stage, &gate, &[bad, bad, bad]).await, [500; 3]);
        assert_eq!((origin.requests(), uncacheable(&stage)), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_do_not_become_as_many_retries_where_everyone_has_cookies_of_its_own() {
    // Whether there is a back-off makes a difference to those who come later only.
    for (pause, later) in [(LONG, 0), (Duration::ZERO, 1)] {
        let gate = Gate::shut();
        let origin = Origin::behind(&gate, 1..=1, |_| page(503, &[], "down")).await;
        let stage = with_back_off(&origin, pause).await;
        let cookies: Vec<_> = (0..20).map(|number| [("cookie", format!("id={number}"))]).collect();
        let cookies: Vec<_> = cookies.iter().map(|[(name, value)]| [(*name, value.as_str())]).collect();
        let clients: Vec<&[(&str, &str)]> = cookies.iter().map(|fields| &fields[..]).collect();
        assert_eq!(together(&stage, &gate, &clients).await, [503; 20]);
        assert_eq!((origin.requests(), uncacheable(&stage)), (2, 1));
        assert_eq!(stage.get_with("/page", &[("cookie", "id=new")]).await.status, 503);
        assert_eq!(origin.requests(), 2 + later);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_without_cookies_and_silence_with_them_are_everyone_s_at_once() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, 1..=1, |_| page(503, &[], "down")).await;
    let stage = patient(&origin).await;
    let (none, one, other): (&[_], &[_], &[_]) = (&[], &[("cookie", "id=1")], &[("cookie", "id=2")]);
    assert_eq!(together(&stage, &gate, &[none, one, other, none]).await, [503; 4]);
    for fields in [none, one, other] {
        assert_eq!(stage.get_with("/page", fields).await.status, 503);
    }
    assert_eq!(origin.requests(), 1);

    let gate = Gate::shut();
    let held = gate.clone();
    let address = raw_origin(move |_, mut stream| {
        let gate = held.clone();
        async move {
            read_head(&mut stream).await;
            gate.passed().await;
        }
    })
    .await;
    let mut setting = Setting::before(address);
    setting.coalescing.error_backoff = (LONG, LONG);
    setting.upstream.retries = 0;
    let stage = setting.start().await;
    assert_eq!(together(&stage, &gate, &[one, none, other]).await, [502; 3]);
    for fields in [none, one, other] {
        assert_eq!(stage.get_with("/page", fields).await.status, 502);
    }
    assert_eq!(stage.telemetry.upstream(0).requests_total(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_an_error_with_cookies_its_key_is_left_alone_by_those_with_the_very_same_only() {
    let gate = Gate::shut();
    gate.open();
    let origin = particular(&gate).await;
    let stage = patient(&origin).await;
    for number in 0..3 {
        assert_eq!(stage.get_with("/page", &[("cookie", "id=bad")]).await.status, 500);
        assert_eq!(origin.requests(), 1 + 2 * number, "one for the bad, two for the others each time");
        assert_eq!(stage.get("/page").await.text(), "fine");
        assert_eq!(stage.get_with("/page", &[("cookie", "id=good")]).await.text(), "fine");
    }
}

#[tokio::test(start_paused = true)]
async fn two_errors_in_a_row_with_cookies_of_different_clients_hold_for_all_who_have_any() {
    let origin = down().await;
    let stage = patient(&origin).await;
    for number in 0..5 {
        let cookie = format!("id={number}");
        assert_eq!(stage.get_with("/page", &[("cookie", &cookie)]).await.status, 503);
    }
    assert_eq!(origin.requests(), 2);
    // Cookies can be made up, having none cannot: those who have none find out for themselves, once.
    for _ in 0..5 {
        assert_eq!(stage.get("/page").await.status, 503);
    }
    assert_eq!(origin.requests(), 3);
}

#[tokio::test(start_paused = true)]
async fn after_an_error_that_was_everyone_s_one_with_cookies_is_enough_to_go_on_leaving_the_key_alone() {
    let second = Duration::from_secs(1);
    let origin = down().await;
    let stage = with_back_off(&origin, second).await;
    assert_eq!(stage.get("/page").await.status, 503);
    tokio::time::advance(second).await;
    for number in 0..5 {
        let cookie = format!("id={number}");
        assert_eq!(stage.get_with("/page", &[("cookie", &cookie)]).await.status, 503);
    }
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_changes_its_cookies_each_time_does_not_close_the_page_to_others_who_are_answered() {
    let gate = Gate::shut();
    gate.open();
    let origin = particular(&gate).await;
    let stage = patient(&origin).await;
    let mut requests = 0;
    for number in 0..10 {
        for cookie in [format!("id=bad{number}"), "id=good".into()] {
            let expected = if cookie.contains("bad") { 500 } else { 200 };
            assert_eq!(stage.get_with("/page", &[("cookie", &cookie)]).await.status, expected, "{cookie}");
            requests += 1;
            assert_eq!(origin.requests(), requests, "{cookie}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_long_ago_does_not_speak_for_an_upstream_that_fails_everybody() {
    let second = Duration::from_secs(1);
    let origin = Origin::start(|number, request| async move {
        if number > 2 { page(503, &[], "down") } else { judged(&request) }
    })
    .await;
    let stage = with_back_off(&origin, second).await;
    for (cookie, status, pause, requests) in [
        ("bad", 500, 0, 1),
        ("good", 200, 900, 2),
        // Somebody else was answered nine tenths of a second ago.
        ("1", 503, 0, 3),
        ("2", 503, 200, 4),
        // That was more than a second ago.
        ("3", 503, 0, 5),
        ("4", 503, 0, 5),
    ] {
        assert_eq!(stage.get_with("/page", &[("cookie", cookie)]).await.status, status, "{cookie}");
        assert_eq!(origin.requests(), requests, "{cookie}");
        tokio::time::advance(Duration::from_millis(pause)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_no_cookies_is_answered_though_one_that_changes_them_is_always_there_first() {
    let gates = [Gate::shut(), Gate::shut()];
    let held = gates.clone();
    let origin = Origin::start(move |number, request| {
        let gate = held.get(number - 1).filter(|_| is_bad(request.headers())).cloned();
        async move {
            if let Some(gate) = gate {
                gate.passed().await;
            }
            judged(&request)
        }
    })
    .await;
    let stage = patient(&origin).await;
    let bad: Vec<_> = ["id=bad1", "id=bad2", "id=bad3"].map(|cookie| [("cookie", cookie)]).into();
    let first = stage.spawn_get("/page", &bad[0]);
    stage.until(|_| origin.requests() == 1).await;
    let second = stage.spawn_get("/page", &bad[1]);
    stage.until_waiters(1).await;
    let victim = stage.spawn_get("/page", &[]);
    stage.until_waiters(2).await;
    gates[0].open();
    assert_eq!(first.await.unwrap().status, 500);
    // The second leads the others with cookies now, and hangs.
    assert_eq!(victim.await.unwrap().text(), "fine");
    let third = stage.spawn_get("/page", &bad[2]);
    assert_eq!(stage.get("/page").await.text(), "fine");
    gates[1].open();
    for bad in [second, third] {
        assert_eq!(bad.await.unwrap().status, 500);
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_to_the_same_cookies_ends_what_is_noted_for_them() {
    let second = Duration::from_secs(1);
    let origin = Origin::start(|number, _| async move {
        if number == 2 { page(200, &[MOMENTARY], "fine") } else { page(503, &[], "down") }
    })
    .await;
    let stage = with_back_off(&origin, second).await;
    for (pause, cookie, status, requests) in [
        (0, "1", 503, 1),
        (0, "1", 503, 1),
        (1000, "1", 200, 2),
        // It is over, and what fails for another is that one's own.
        (0, "2", 503, 3),
        (0, "1", 503, 4),
        (0, "3", 503, 4),
    ] {
        tokio::time::advance(Duration::from_millis(pause)).await;
        assert_eq!(stage.get_with("/page", &[("cookie", cookie)]).await.status, status);
        assert_eq!(origin.requests(), requests, "{cookie}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_one_without_cookies_ends_the_back_off_of_all_who_have_some() {
    let gate = Gate::shut();
    gate.open();
    let origin = particular(&gate).await;
    let stage = patient(&origin).await;
    for (cookie, status, requests) in [
        ("bad1", 500, 1),
        ("bad2", 500, 2),
        ("good", 500, 2),
        ("", 200, 3),
        ("good", 200, 4),
        ("bad2", 500, 4),
    ] {
        let fields = [("cookie", cookie)];
        let answer = stage.get_with("/page", if cookie.is_empty() { &[] } else { &fields }).await;
        assert_eq!((answer.status, origin.requests()), (status, requests), "{cookie}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_may_have_a_stale_response_gets_it_and_does_not_ask_again() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, 2..=2, |number| {
        let fields = [("cache-control", "max-age=1, stale-if-error=60")];
        if number == 1 { page(200, &fields, "old") } else { page(500, &[], "broken") }
    })
    .await;
    let stage = patient(&origin).await;
    assert_eq!(stage.get("/page").await.text(), "old");
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(
        together(&stage, &gate, &[&[("cookie", "id=bad")], &[], &[("cookie", "id=2")]]).await,
        [200; 3]
    );
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_has_waited_for_two_failures_takes_the_second_whosever_it_may_be() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, 3..=3, |number| match number {
        2 => page(200, &[MOMENTARY], "fine"),
        _ => page(503, &[], "down"),
    })
    .await;
    let stage = patient(&origin).await;
    assert_eq!(stage.get_with("/page", &[("cookie", "id=bad")]).await.status, 503);
    // As long as that speaks for the others, each failure is held to be of one client alone.
    assert_eq!(stage.get("/page").await.text(), "fine");
    let (one, other, third): (&[_], &[_], &[_]) =
        (&[("cookie", "1")], &[("cookie", "2")], &[("cookie", "3")]);
    assert_eq!(together(&stage, &gate, &[one, other, other, third]).await, [503; 4]);
    assert_eq!(origin.requests(), 4);
    assert_eq!(stage.get_with("/page", &[("cookie", "4")]).await.status, 503);
    assert_eq!(origin.requests(), 5);
}

#[tokio::test(start_paused = true)]
async fn who_has_no_cookies_is_not_given_a_second_error_of_those_who_have_when_a_purge_lies_between() {
    let gates = [Gate::shut(), Gate::shut()];
    let held = gates.clone();
    let origin = Origin::start(move |number, request| {
        let (gate, answer) = (held.get(number - 1).cloned(), judged(&request));
        async move {
            if let Some(gate) = gate {
                gate.passed().await;
            }
            answer
        }
    })
    .await;
    let stage = patient(&origin).await;
    let first = stage.spawn_get("/page", &[("cookie", "id=bad")]);
    stage.until(|_| origin.requests() == 1).await;
    let anonymous = [(); 3].map(|()| stage.spawn_get("/page", &[]));
    stage.until_waiters(3).await;
    stage.proxy.purge(&Purge { target: Target::Everything, soft: false }).unwrap();
    let second = stage.spawn_get("/page", &[("cookie", "id=worse; id=bad")]);
    stage.until(|_| origin.requests() == 2).await;
    gates[0].open();
    assert_eq!(first.await.unwrap().status, 500);
    for client in anonymous {
        assert_eq!(client.await.unwrap().status, 200);
    }
    gates[1].open();
    assert_eq!((second.await.unwrap().status, origin.requests()), (500, 3));
}
