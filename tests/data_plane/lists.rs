//! Origins whose answers for one URI name different fields: what selects is what any of them names.

use crate::support::*;
use forebay::proxy::{Purge, Target};
use forebay::telemetry::{DuplicateCause, Label};
use http::Request;
use hyper::body::Incoming;
use std::collections::HashSet;
use std::time::Duration;
use tokio::task::JoinHandle;

/// With this field a request waits for the gate at the origin.
const HELD: (&str, &str) = ("x-held", "1");

/// What a request asks for, and as what.
type Asked = &'static [(&'static str, &'static str)];

const GZIP: Asked = &[("accept-encoding", "gzip")];
const BROTLI: Asked = &[("accept-encoding", "br")];
const PLAIN_ACROSS: Asked = &[("accept-encoding", "identity"), ("origin", "http://x.example")];
const PLAIN_AS_SOMEONE: Asked = &[("accept-encoding", "identity"), ("authorization", "Basic eA==")];

/// An origin that names `Origin` to those only who send one, and has an answer for those with credentials that is for all.
async fn cross_origin(gate: &Gate) -> Origin {
    answering(gate, "public, max-age=60", |request| {
        let is_across = request.headers().contains_key("origin");
        if is_across { "Accept-Encoding, Origin" } else { "Accept-Encoding" }
    })
    .await
}

/// An origin that says of each request what selects; who is held waits at the gate.
async fn answering(
    gate: &Gate,
    control: &'static str,
    vary: impl Fn(&Request<Incoming>) -> &'static str + Send + Sync + 'static,
) -> Origin {
    let is_held = |_, request: &Request<Incoming>| request.headers().contains_key(HELD.0);
    let answer = move |number, request: &Request<Incoming>| {
        page(200, &[("cache-control", control), ("vary", vary(request))], format!("answer {number}"))
    };
    Origin::holding(gate, is_held, answer).await
}

fn held(stage: &Stage, asked: Asked) -> JoinHandle<Answer> {
    stage.spawn_get("/", &[asked, &[HELD]].concat())
}

/// So many clients that ask for the same but for one field, whose value is that of none of the others.
fn differing(stage: &Stage, kind: &str, count: usize) -> Vec<JoinHandle<Answer>> {
    let more: Vec<_> = (0..count).map(|number| number.to_string()).collect();
    more.iter().map(|more| stage.spawn_get("/", &[("x-kind", kind), ("x-more", more), HELD])).collect()
}

fn duplicates(stage: &Stage) -> u64 {
    DuplicateCause::ALL.iter().map(|cause| stage.telemetry.route(0).duplicates(*cause)).sum()
}

fn purge_everything(stage: &Stage) {
    stage.proxy.purge(&Purge { target: Target::Everything, soft: false }).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_began_before_more_was_known_of_what_selects_is_joined_by_those_for_whom_it_is() {
    // What is known before the fetch begins, and what another teaches meanwhile.
    let before: [(&[Asked], Asked); 3] =
        [(&[GZIP], PLAIN_ACROSS), (&[PLAIN_ACROSS], GZIP), (&[], PLAIN_AS_SOMEONE)];
    for (known, taught) in before {
        let gate = Gate::shut();
        let origin = cross_origin(&gate).await;
        let stage = Stage::before(&origin).await;
        for asked in known {
            stage.get_with("/", asked).await;
        }
        let first = held(&stage, BROTLI);
        stage.until(|telemetry| telemetry.flights() == 1).await;
        let seen = || origin.requests();
        stage.until(|_| seen() == known.len() + 1).await;
        stage.get_with("/", taught).await;
        let more: Vec<_> = (0..5).map(|_| held(&stage, BROTLI)).collect();
        stage.until_waiters(5).await;
        // Another variant does not wait.
        stage.get_with("/", &[("accept-encoding", "zstd")]).await;
        gate.open();
        let number = known.len() + 1;
        for client in [first].into_iter().chain(more) {
            assert_eq!(client.await.unwrap().text(), format!("answer {number}"));
        }
        assert_eq!((origin.requests(), duplicates(&stage)), (number + 2, 0), "{known:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_for_another_variant_than_one_that_began_before_it_was_known_what_selects_is_needed() {
    let gate = Gate::shut();
    let origin = cross_origin(&gate).await;
    let stage = Stage::before(&origin).await;
    let first = held(&stage, BROTLI);
    stage.until(|_| origin.requests() == 1).await;
    stage.get_with("/", PLAIN_AS_SOMEONE).await;
    let second = held(&stage, GZIP);
    stage.until(|telemetry| telemetry.flights() == 2).await;
    gate.open();
    assert_eq!((first.await.unwrap().text(), second.await.unwrap().text()), ("answer 1", "answer 3"));
    assert_eq!(duplicates(&stage), 0);
}

#[tokio::test(start_paused = true)]
async fn what_some_answers_name_counts_although_the_last_did_not_name_it() {
    let gate = Gate::shut();
    let origin = cross_origin(&gate).await;
    let stage = Stage::before(&origin).await;
    stage.get_with("/", PLAIN_ACROSS).await;
    stage.get_with("/", GZIP).await;
    // Else the second would wait for the first, in vain.
    let clients = ["http://one.example", "http://other.example"]
        .map(|origin| stage.spawn_get("/", &[BROTLI, &[("origin", origin), HELD]].concat()));
    stage.until(|telemetry| telemetry.flights() == 2).await;
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().status, 200);
    }
    assert_eq!((origin.requests(), duplicates(&stage)), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn a_fetch_from_before_a_purge_is_replaced_by_whatever_list_it_was_begun() {
    let gate = Gate::shut();
    let origin = cross_origin(&gate).await;
    let stage = Stage::before(&origin).await;
    stage.get_with("/", GZIP).await;
    let first = held(&stage, BROTLI);
    stage.until(|_| origin.requests() == 2).await;
    stage.get_with("/", PLAIN_ACROSS).await;
    purge_everything(&stage);
    let second = held(&stage, BROTLI);
    stage.until(|_| origin.requests() == 4).await;
    let third = held(&stage, BROTLI);
    stage.until_waiters(1).await;
    gate.open();
    assert_eq!(first.await.unwrap().text(), "answer 2");
    for client in [second, third] {
        assert_eq!(client.await.unwrap().text(), "answer 4");
    }
    let counted = stage.telemetry.route(0).duplicates(DuplicateCause::Purge);
    assert_eq!((origin.requests(), counted, duplicates(&stage)), (4, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_place_on_a_fetch_by_another_list_is_one_too_many() {
    let gate = Gate::shut();
    let origin = cross_origin(&gate).await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.waiters_max = 0;
    let stage = setting.start().await;
    stage.get_with("/", GZIP).await;
    let first = held(&stage, BROTLI);
    stage.until(|_| origin.requests() == 2).await;
    stage.get_with("/", PLAIN_ACROSS).await;
    assert_eq!(stage.get_with("/", BROTLI).await.text(), "answer 4");
    gate.open();
    assert_eq!(first.await.unwrap().text(), "answer 2");
    let counted = stage.telemetry.route(0).duplicates(DuplicateCause::WaiterOverflow);
    assert_eq!((counted, duplicates(&stage)), (1, 1));
}

/// An origin that names one field more for the kind `some` only.
async fn partly_more(gate: &Gate) -> Origin {
    answering(gate, "max-age=1", |request| {
        if request.headers()["x-kind"] == "some" { "X-Kind, X-More" } else { "X-Kind" }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_stale_response_tells_what_its_own_variant_depends_on() {
    for is_stale in [true, false] {
        let gate = Gate::shut();
        let origin = partly_more(&gate).await;
        let stage = Stage::before(&origin).await;
        stage.get_with("/", &[("x-kind", "none"), ("x-more", "0")]).await;
        stage.get_with("/", &[("x-kind", "some"), ("x-more", "0")]).await;
        if is_stale {
            tokio::time::advance(Duration::from_secs(2)).await;
        } else {
            purge_everything(&stage);
        }
        let clients = differing(&stage, "none", 5);
        // Where nothing tells that the other field does not matter for this kind, it may.
        let flights = if is_stale { 1 } else { 5 };
        stage.until(|telemetry| telemetry.flights() == flights).await;
        stage.until_waiters(5 - flights).await;
        stage.until(|_| origin.requests() == 2 + usize::try_from(flights).unwrap()).await;
        gate.open();
        let mut bodies = HashSet::new();
        for client in clients {
            bodies.insert(client.await.unwrap().text().to_owned());
        }
        assert_eq!(i64::try_from(bodies.len()).unwrap(), flights, "stale: {is_stale}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_fetches_that_turn_out_to_be_for_the_same_all_but_one_are_too_many() {
    for (kind, needed) in [("none", 1), ("some", 5)] {
        let gate = Gate::shut();
        let origin = partly_more(&gate).await;
        let stage = Stage::before(&origin).await;
        stage.get_with("/", &[("x-kind", "some"), ("x-more", "first")]).await;
        let clients = differing(&stage, kind, 5);
        stage.until(|telemetry| telemetry.flights() == 5).await;
        stage.until(|_| origin.requests() == 6).await;
        tokio::time::advance(Duration::from_millis(1)).await;
        gate.open();
        for client in clients {
            assert_eq!(client.await.unwrap().status, 200);
        }
        let counted = stage.telemetry.route(0).duplicates(DuplicateCause::Vary);
        assert_eq!((counted, duplicates(&stage)), (5 - needed, 5 - needed), "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_response_tells_nothing_any_more_once_the_origin_has_named_more_to_who_would_have_got_it() {
    let gate = Gate::shut();
    let origin = answering(&gate, "max-age=1", |request| {
        if request.headers().contains_key("x-later") { "X-Kind, X-More" } else { "X-Kind" }
    })
    .await;
    let stage = Stage::before(&origin).await;
    stage.get_with("/", &[("x-kind", "none"), ("x-more", "a")]).await;
    tokio::time::advance(Duration::from_secs(2)).await;
    stage.get_with("/", &[("x-kind", "none"), ("x-more", "b"), ("x-later", "1")]).await;
    let clients = differing(&stage, "none", 3);
    // None waits for another, in vain.
    stage.until(|telemetry| telemetry.flights() == 3).await;
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().status, 200);
    }
    // It did not matter to them after all.
    assert_eq!((origin.requests(), duplicates(&stage)), (5, 2));
}

#[tokio::test(start_paused = true)]
async fn a_field_that_no_answer_has_named_for_long_is_forgotten_unless_a_stored_one_names_it() {
    for (is_purged, flights) in [(true, 1), (false, 3)] {
        let gate = Gate::shut();
        let origin = partly_more(&gate).await;
        let stage = Stage::before(&origin).await;
        stage.get_with("/", &[("x-kind", "some")]).await;
        tokio::time::advance(Duration::from_secs(31)).await;
        if is_purged {
            purge_everything(&stage);
        }
        stage.get_with("/", &[("x-kind", "none")]).await;
        let clients = differing(&stage, "other", 3);
        stage.until(|telemetry| telemetry.flights() == flights).await;
        stage.until_waiters(3 - flights).await;
        gate.open();
        for client in clients {
            assert_eq!(client.await.unwrap().status, 200);
        }
        let superfluous = u64::try_from(flights).unwrap() - 1;
        assert_eq!(duplicates(&stage), superfluous, "purged: {is_purged}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_is_too_old_for_who_waited_in_vain_does_not_keep_the_next_from_being_joined() {
    let gates = [Gate::shut(), Gate::shut(), Gate::shut()];
    let held = gates.clone();
    let origin = Origin::start(move |number, _| {
        let gate = held[number - 1].clone();
        async move {
            gate.passed().await;
            let fields =
                [("cache-control", "max-age=0"), ("vary", "accept-encoding"), ("surrogate-key", "news")];
            page(200, &fields, format!("answer {number}"))
        }
    })
    .await;
    let stage = Stage::before(&origin).await;
    let first = stage.spawn_get("/", GZIP);
    stage.until(|_| origin.requests() == 1).await;
    let purge =
        |tag: &str| stage.proxy.purge(&Purge { target: Target::Tag(tag.into()), soft: false }).unwrap();
    // Who comes then does not see that before the head.
    purge("news");
    let waiting = stage.spawn_get("/", GZIP);
    stage.until_waiters(1).await;
    purge_everything(&stage);
    // Begun before it is known what selects, and in the air when the first has told it.
    let second = stage.spawn_get("/", GZIP);
    stage.until(|_| origin.requests() == 2).await;
    purge("news");
    gates[0].open();
    assert_eq!(first.await.unwrap().text(), "answer 1");
    stage.until(|_| origin.requests() == 3).await;
    gates[1].open();
    assert_eq!(second.await.unwrap().text(), "answer 2");
    let late = stage.spawn_get("/", GZIP);
    stage.until_waiters(1).await;
    gates[2].open();
    for client in [waiting, late] {
        assert_eq!(client.await.unwrap().text(), "answer 3");
    }
    assert_eq!((origin.requests(), duplicates(&stage)), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn a_fetch_after_a_purge_beside_a_body_that_told_what_selects_is_one_too_many_for_the_purge() {
    let (pieces, origin) =
        Origin::in_pieces(&[("cache-control", "max-age=60"), ("vary", "accept-encoding")]).await;
    let stage = Stage::before(&origin).await;
    let mut client = stage.client().await;
    let reading = client.send(request("GET", "/", GZIP)).await;
    purge_everything(&stage);
    assert_eq!(stage.get_with("/", GZIP).await.text(), "answer 2");
    let counted = stage.telemetry.route(0).duplicates(DuplicateCause::Purge);
    assert_eq!((origin.requests(), counted, duplicates(&stage)), (2, 1, 1));
    pieces.send(data("done")).unwrap();
    drop(pieces);
    assert_eq!(reading.whole().await.text(), "done");
}
