//! When a back-off is over, one asks: also where each goes by itself.

use crate::support::*;
use http::Request;
use hyper::body::Incoming;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

const PAUSE: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(80);
const SAME: &[(&str, &str)] = &[("authorization", "Basic eA==")];

/// A proxy whose back-off is of ten seconds at first.
async fn stage_before(origin: &Origin) -> Stage {
    with(origin, |_| {}).await
}

async fn with(origin: &Origin, change: impl FnOnce(&mut Setting)) -> Stage {
    let mut setting = Setting::before(origin.address);
    setting.coalescing.error_backoff = (PAUSE, LONG);
    setting.coalescing.hit_for_miss_ttl = LONG * 10;
    setting.upstream.retries = 0;
    change(&mut setting);
    setting.start().await
}

/// An origin that fails, and from its second request on waits at the gate and then answers this.
async fn recovering(gate: &Gate, status: u16) -> Origin {
    Origin::behind(gate, 2.., move |number| {
        page(if number == 1 { 503 } else { status }, &[("cache-control", "no-store")], "")
    })
    .await
}

fn crowd(stage: &Stage, fields: &[(&str, &str)]) -> Vec<JoinHandle<Answer>> {
    (0..20).map(|_| stage.spawn_get("/page", fields)).collect()
}

/// How many of them have been told that the origin is left alone, and by now.
async fn left_alone(stage: &Stage, crowd: &mut Vec<JoinHandle<Answer>>, expected: usize) {
    stage.until(|_| crowd.iter().filter(|asked| asked.is_finished()).count() == expected).await;
    for asked in crowd.extract_if(.., |asked| asked.is_finished()) {
        let answer = asked.await.unwrap();
        assert!(answer.cache_status().starts_with("detail=back-off"), "{}", answer.cache_status());
        assert!(answer.status >= 500);
    }
}

#[tokio::test(start_paused = true)]
async fn of_those_who_go_by_themselves_one_goes_when_the_back_off_is_over() {
    let gate = Gate::shut();
    let origin = recovering(&gate, 503).await;
    let stage = stage_before(&origin).await;
    assert_eq!(stage.get_with("/page", SAME).await.status, 503);
    tokio::time::advance(PAUSE).await;
    let mut asked = crowd(&stage, SAME);
    left_alone(&stage, &mut asked, 19).await;
    assert_eq!(origin.requests(), 2);
    gate.open();
    let probe = asked.pop().unwrap().await.unwrap();
    assert!((probe.status, probe.cache_status().starts_with("fwd=")) == (503, true));
    // The pause is twice as long: less a third at most, more than the first one was.
    tokio::time::advance(PAUSE + Duration::from_secs(3)).await;
    left_alone(&stage, &mut crowd(&stage, SAME), 20).await;
    assert_eq!(origin.requests(), 2);
    tokio::time::advance(PAUSE).await;
    assert_eq!(stage.get_with("/page", SAME).await.status, 503);
    assert_eq!(origin.requests(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_to_the_one_that_goes_lets_all_others_go() {
    let gate = Gate::shut();
    let origin = recovering(&gate, 200).await;
    let stage = stage_before(&origin).await;
    assert_eq!(stage.get_with("/page", SAME).await.status, 503);
    tokio::time::advance(PAUSE).await;
    let mut asked = crowd(&stage, SAME);
    left_alone(&stage, &mut asked, 19).await;
    gate.open();
    assert_eq!(asked.pop().unwrap().await.unwrap().status, 200);
    for asked in crowd(&stage, SAME) {
        assert_eq!(asked.await.unwrap().status, 200);
    }
    assert_eq!(origin.requests(), 22);
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_does_not_keep_the_others_from_trying_for_more_than_a_pause() {
    let gate = Gate::shut();
    let origin = recovering(&gate, 200).await;
    let stage = with(&origin, |setting| setting.upstream.head_timeout = LONG).await;
    assert_eq!(stage.get_with("/page", SAME).await.status, 503);
    tokio::time::advance(PAUSE).await;
    let mut hanging = Vec::new();
    for number in 0..3 {
        let mut asked = crowd(&stage, SAME);
        left_alone(&stage, &mut asked, 19).await;
        hanging.append(&mut asked);
        assert_eq!(origin.requests(), 2 + number);
        tokio::time::advance(PAUSE).await;
    }
    gate.open();
    for asked in hanging {
        assert_eq!(asked.await.unwrap().status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_long_ago_holds_up_nobody() {
    let gate = Gate::shut();
    let origin = recovering(&gate, 200).await;
    let stage = stage_before(&origin).await;
    assert_eq!(stage.get_with("/page", SAME).await.status, 503);
    tokio::time::advance(PAUSE + LONG).await;
    let asked = crowd(&stage, SAME);
    stage.until(|_| origin.requests() == 21).await;
    gate.open();
    for asked in asked {
        assert_eq!(asked.await.unwrap().status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn where_there_was_no_answer_one_goes_for_all_who_would_go_by_themselves_whoever_they_are() {
    let (gate, requests) = (Gate::shut(), Arc::new(AtomicUsize::new(0)));
    let (held, counter) = (gate.clone(), Arc::clone(&requests));
    let address = raw_origin(move |_, mut stream| {
        let (gate, counter) = (held.clone(), Arc::clone(&counter));
        async move {
            read_head(&mut stream).await;
            if counter.fetch_add(1, Ordering::SeqCst) > 0 {
                gate.passed().await;
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let mut setting = Setting::before(address);
    setting.coalescing.error_backoff = (PAUSE, LONG);
    setting.coalescing.join_with_cookies = false;
    setting.upstream.retries = 0;
    let stage = setting.start().await;
    assert_eq!(stage.get_with("/page", SAME).await.status, 502);
    tokio::time::advance(PAUSE).await;
    let mut asked: Vec<_> =
        (0..20).map(|number| stage.spawn_get("/page", &[("cookie", &format!("id={number}"))])).collect();
    left_alone(&stage, &mut asked, 19).await;
    assert_eq!(requests.load(Ordering::SeqCst), 2);
    gate.open();
    assert_eq!(asked.pop().unwrap().await.unwrap().status, 200);
    assert_eq!(stage.get_with("/page", SAME).await.status, 200);
}

/// Whether one of those who wait for each other, or of those who do not, asks first.
#[tokio::test(start_paused = true)]
async fn those_who_wait_for_each_other_are_held_up_by_nobody_who_goes_by_itself_and_hold_these_up() {
    for alone_first in [false, true] {
        let gate = Gate::shut();
        let origin = recovering(&gate, 200).await;
        let stage = stage_before(&origin).await;
        assert_eq!(stage.get("/page").await.status, 503);
        tokio::time::advance(PAUSE).await;
        let mut alone = if alone_first { crowd(&stage, SAME) } else { Vec::new() };
        left_alone(&stage, &mut alone, if alone_first { 19 } else { 0 }).await;
        let together = crowd(&stage, &[]);
        stage.until_waiters(19).await;
        let mut late = crowd(&stage, SAME);
        left_alone(&stage, &mut late, 20).await;
        assert_eq!(origin.requests(), if alone_first { 3 } else { 2 });
        gate.open();
        for asked in alone.into_iter().chain(together) {
            assert_eq!(asked.await.unwrap().status, 200);
        }
    }
}

/// An origin whose answers are for one each, and that fails from its second request on. The gate is before the third.
async fn personal(gate: &Gate) -> Origin {
    let answer = |number, _: &Request<Incoming>| {
        page(if number == 1 { 200 } else { 503 }, &[("cache-control", "no-store")], "")
    };
    Origin::holding(gate, |number, _| number > 2, answer).await
}

#[tokio::test(start_paused = true)]
async fn of_those_with_the_same_cookies_one_goes_where_each_answer_is_for_one() {
    let gate = Gate::shut();
    let origin = personal(&gate).await;
    let stage = stage_before(&origin).await;
    let cookie: &[(&str, &str)] = &[("cookie", "id=1")];
    assert_eq!(stage.get("/page").await.status, 200);
    assert_eq!(stage.get_with("/page", cookie).await.status, 503);
    tokio::time::advance(PAUSE).await;
    let mut asked = crowd(&stage, cookie);
    left_alone(&stage, &mut asked, 19).await;
    assert_eq!(origin.requests(), 3);
    gate.open();
    assert_eq!(asked.pop().unwrap().await.unwrap().status, 503);
}

#[tokio::test(start_paused = true)]
async fn of_those_who_ask_for_a_range_and_pass_one_goes() {
    let gate = Gate::shut();
    let origin = recovering(&gate, 200).await;
    let stage = with(&origin, |setting| setting.coalescing.pass_ranges = true).await;
    let range: &[(&str, &str)] = &[("range", "bytes=0-1")];
    assert_eq!(stage.get_with("/page", range).await.status, 503);
    tokio::time::advance(PAUSE).await;
    let mut asked = crowd(&stage, range);
    left_alone(&stage, &mut asked, 19).await;
    assert_eq!(origin.requests(), 2);
    gate.open();
    assert_eq!(asked.pop().unwrap().await.unwrap().status, 200);
}
