//! For which cause a fetch was one too many that found another under way which nobody waits for.

use crate::support::*;
use forebay::proxy::{OnAbandon, Purge, Target};
use forebay::telemetry::{DuplicateCause, Label};
use std::time::Duration;

const CACHEABLE: [(&str, &str); 2] = [("cache-control", "max-age=60"), ("etag", "\"1\"")];

/// The causes for which fetches were counted, each as often as it was.
fn causes(stage: &Stage) -> Vec<DuplicateCause> {
    let route = stage.telemetry.route(0);
    let counted = DuplicateCause::ALL.iter();
    counted
        .flat_map(|cause| std::iter::repeat_n(*cause, usize::try_from(route.duplicates(*cause)).unwrap()))
        .collect()
}

fn purge(stage: &Stage) {
    stage.proxy.purge(&Purge { target: Target::Url("http://site.example/".into()), soft: false }).unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_leads_after_a_purge_beside_one_that_has_lost_patience_has_the_purge_for_a_cause() {
    let gates = [Gate::shut(), Gate::shut()];
    let origin = Origin::gated(&gates, &CACHEABLE).await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.waiter_timeout = Duration::from_secs(2);
    let stage = setting.start().await;
    let first = stage.spawn_get("/", &[]);
    stage.until(|_| origin.requests() == 1).await;
    let impatient = stage.spawn_get("/", &[]);
    stage.until(|_| origin.requests() == 2).await;
    gates[0].open();
    assert_eq!(first.await.unwrap().text(), "answer 1");
    assert_eq!(causes(&stage), [DuplicateCause::WaiterTimeout]);
    purge(&stage);
    assert_eq!(stage.get("/").await.text(), "answer 3");
    assert_eq!(causes(&stage), [DuplicateCause::WaiterTimeout, DuplicateCause::Purge]);
    gates[1].open();
    assert_eq!(impatient.await.unwrap().text(), "answer 2");
    assert_eq!(stage.get("/").await.text(), "answer 3", "what was asked for before the purge is not stored");
}

#[tokio::test(start_paused = true)]
async fn who_leads_beside_one_that_has_lost_patience_has_the_same_cause() {
    let gates = [Gate::shut(), Gate::shut()];
    let origin = Origin::gated(&gates, &CACHEABLE).await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.waiter_timeout = Duration::from_secs(2);
    setting.coalescing.on_abandon = OnAbandon::Cancel;
    let stage = setting.start().await;
    let first = stage.spawn_get("/", &[]);
    stage.until(|_| origin.requests() == 1).await;
    let impatient = stage.spawn_get("/", &[]);
    stage.until_waiters(1).await;
    first.abort();
    stage.until(|_| origin.requests() == 2).await;
    stage.until(|telemetry| telemetry.flights() == 0).await;
    assert_eq!(stage.get("/").await.text(), "answer 3");
    assert_eq!(causes(&stage), [DuplicateCause::WaiterTimeout; 2]);
    gates[1].open();
    assert_eq!(impatient.await.unwrap().text(), "answer 2");
}

#[tokio::test(start_paused = true)]
async fn who_leads_beside_one_whose_answer_is_its_own_has_that_for_a_cause_whatever_is_purged() {
    let (pieces, origin) = Origin::in_pieces_then(&[("cache-control", "private")], &CACHEABLE).await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.hit_for_miss_ttl = Duration::ZERO;
    let stage = setting.start().await;
    let mut client = stage.client().await;
    let first = client.send(request("GET", "/", &[])).await;
    purge(&stage);
    assert_eq!(stage.get("/").await.text(), "answer 2");
    assert_eq!(causes(&stage), [DuplicateCause::Uncacheable]);
    pieces.send(data("whole")).unwrap();
    drop(pieces);
    assert_eq!(first.whole().await.text(), "whole");
}

#[tokio::test(start_paused = true)]
async fn who_has_lost_patience_does_not_ask_about_what_was_purged_meanwhile() {
    let gate = Gate::shut();
    let origin = Origin::holding(
        &gate,
        |number, _| number == 2,
        |number, request| {
            if request.headers().contains_key("if-none-match") {
                page(304, &CACHEABLE, "")
            } else {
                page(200, &CACHEABLE, format!("answer {number}"))
            }
        },
    )
    .await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.waiter_timeout = Duration::from_secs(2);
    let stage = setting.start().await;
    assert_eq!(stage.get("/").await.text(), "answer 1");
    tokio::time::advance(Duration::from_secs(100)).await;
    let first = stage.spawn_get("/", &[]);
    stage.until(|_| origin.requests() == 2).await;
    let impatient = stage.spawn_get("/", &[]);
    stage.until_waiters(1).await;
    purge(&stage);
    assert_eq!(impatient.await.unwrap().text(), "answer 3");
    assert_eq!(origin.requests(), 3);
    assert!(!origin.seen(3).2.contains_key("if-none-match"));
    gate.open();
    assert_eq!(first.await.unwrap().text(), "answer 3");
    assert_eq!(origin.requests(), 3);
    assert_eq!(causes(&stage), [DuplicateCause::WaiterTimeout]);
}
