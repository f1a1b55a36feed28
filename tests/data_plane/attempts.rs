//! The metrics of what is sent upstream equal what origins see.

use crate::support::*;
use forebay::telemetry::DuplicateCause;
use forebay::upstream::{Ledger, Outgoing, RequestBody, Upstream, Urgency};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

fn series(reason: &str, class: &str) -> String {
    format!(
        "forebay_upstream_requests_total{{reason=\"{reason}\",status_class=\"{class}\",upstream=\"origin\"}}"
    )
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_sent_again_for_its_status_counts_each_time() {
    let origin = Origin::start(|number, _| async move {
        if number < 3 { page(503, &[], "down") } else { page(200, &[], "fine") }
    })
    .await;
    for method in ["GET", "DELETE"] {
        let mut setting = Setting::before(origin.address);
        setting.upstream.retries = 2;
        setting.upstream.retry_statuses = vec![StatusCode::SERVICE_UNAVAILABLE];
        let stage = setting.start().await;
        let before = origin.requests();
        assert_eq!(stage.send(method, "/", &[]).await.text(), "fine");
        let reason = if method == "GET" { "miss" } else { "pass" };
        let (first, again) = if before == 0 { ("5xx", 1.0) } else { ("2xx", 0.0) };
        assert_eq!(stage.metric(&series(reason, first)), 1.0, "{method}");
        assert_eq!(
            (stage.metric(&series("retry", "5xx")), stage.metric(&series("retry", "2xx"))),
            (again, again)
        );
        assert_eq!(stage.telemetry.upstream(0).requests_total(), (origin.requests() - before) as u64);
        assert_eq!(stage.telemetry.upstream(0).in_flight(), 0);
    }
}

/// An origin that keeps its connections, and hangs up in place of an answer to the requests with these numbers, from 1.
async fn hanging_up(on: &'static [usize]) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let address = raw_origin(move |_, mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            while !read_head(&mut stream).await.is_empty() {
                if on.contains(&(counter.fetch_add(1, Ordering::SeqCst) + 1)) {
                    return;
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    (address, requests)
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_sent_again_on_a_new_connection_counts_each_time() {
    // On a new connection it is a retry; on one that was kept the connection has died, for which nobody needs to be asked.
    for (on, retries, count) in [(&[1][..], 1, 2), (&[2], 0, 3), (&[2, 3], 1, 4)] {
        let (address, requests) = hanging_up(on).await;
        let mut setting = Setting::before(address);
        setting.upstream.retries = retries;
        let stage = setting.start().await;
        assert_eq!(stage.get("/one").await.text(), "ok");
        if on[0] > 1 {
            assert_eq!(stage.get("/two").await.text(), "ok");
        }
        assert_eq!(requests.load(Ordering::SeqCst), count);
        assert_eq!(stage.telemetry.upstream(0).requests_total(), count as u64);
        assert_eq!(stage.metric(&series("retry", "2xx")), 1.0, "{on:?}");
        let failed = stage.metric(&series("miss", "error")) + stage.metric(&series("retry", "error"));
        assert_eq!(failed, f64::from(u32::try_from(on.len()).unwrap()));
    }
}

#[tokio::test(start_paused = true)]
async fn what_never_leaves_the_queue_is_neither_sent_nor_a_duplicate() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, .., |_| page(200, &[("cache-control", "max-age=60")], "fine")).await;
    let mut setting = Setting::before(origin.address);
    setting.upstream.concurrency_max = 1;
    setting.upstream.queue_max = 4;
    setting.coalescing.waiters_max = 1;
    let stage = setting.start().await;
    let queued = "forebay_upstream_queued{upstream=\"origin\"}";
    let mut clients = vec![stage.spawn_get("/page", &[])];
    stage.until(|_| origin.requests() == 1).await;
    clients.push(stage.spawn_get("/page", &[]));
    stage.until_waiters(1).await;
    // No place to wait: they go alone, as far as the queue.
    let leaving: Vec<_> = (0..3).map(|_| stage.spawn_get("/page", &[])).collect();
    stage.until(|_| stage.metric(queued) == 3.0).await;
    clients.push(stage.spawn_get("/page", &[]));
    stage.until(|_| stage.metric(queued) == 4.0).await;
    assert_eq!(stage.get("/page").await.status, 503);
    leaving.iter().for_each(tokio::task::JoinHandle::abort);
    stage.until(|_| stage.metric(queued) == 1.0).await;
    let route = stage.telemetry.route(0);
    assert_eq!(route.duplicates(DuplicateCause::WaiterOverflow), 0);
    assert_eq!(stage.telemetry.upstream(0).in_flight(), 1);
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "fine");
    }
    assert_eq!((origin.requests(), stage.telemetry.upstream(0).requests_total()), (2, 2));
    assert_eq!(route.duplicates(DuplicateCause::WaiterOverflow), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_cannot_be_made_is_a_request_without_an_answer() {
    let nobody = Nobody::new();
    let mut setting = Setting::before(nobody.address());
    setting.upstream.retries = 3;
    let stage = setting.start().await;
    assert_eq!(stage.get("/").await.status, 502);
    assert_eq!(stage.send("PUT", "/", &[]).await.status, 502);
    assert_eq!((stage.metric(&series("miss", "error")), stage.metric(&series("pass", "error"))), (1.0, 1.0));
    assert_eq!(stage.telemetry.upstream(0).requests_total(), 2);
}

/// One who keeps account of how often a request is sent.
#[derive(Default)]
struct Counts {
    sent: usize,
}

impl Ledger for Counts {
    fn begun(&mut self, _now: Instant) {}

    fn sent(&mut self) {
        self.sent += 1;
    }

    fn unsent(&mut self) {
        self.sent -= 1;
    }

    fn answered(&mut self, _: StatusCode, _: Instant) {}
    fn failed(&mut self) {}
}

#[tokio::test(start_paused = true)]
async fn what_leaves_at_once_with_its_client_has_been_sent_as_it_was_counted() {
    let origin = Origin::start(|_, _| async { page(200, &[], "ok") }).await;
    let stage = Setting::before(origin.address);
    let upstream = Upstream::new(stage.upstream).unwrap();
    let outgoing = Outgoing {
        method: Method::GET,
        target: PathAndQuery::from_static("/"),
        headers: std::sync::Arc::default(),
        added: Vec::new(),
        host: None,
        upgrade: false,
        affinity: 0,
        urgency: Urgency::Foreground,
        written: None,
    };
    let mut counts = Counts::default();
    for number in 1..=5 {
        let response = upstream.send(&outgoing, RequestBody::Empty, &mut counts).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
        tokio::time::sleep(Duration::from_millis(1)).await;
        // There is a connection to send the next one on at once; who sends it leaves at once, too.
        {
            let mut leaving = pin!(upstream.send(&outgoing, RequestBody::Empty, &mut counts));
            assert!(leaving.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((counts.sent, origin.requests()), (2 * number, 2 * number));
    }
}
