//! Upstreams with several origins, some of which fail.

use crate::support::*;
use forebay::upstream;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

fn origin_at(address: SocketAddr) -> upstream::Origin {
    upstream::Origin { https: false, host: address.ip().to_string(), port: address.port() }
}

fn setting(origins: &[SocketAddr]) -> Setting {
    let mut setting = Setting::before(origins[0]);
    setting.upstream.origins = origins.iter().map(|address| origin_at(*address)).collect();
    setting.coalescing.error_backoff = (Duration::ZERO, Duration::ZERO);
    setting
}

async fn good() -> Origin {
    Origin::start(|_, _| async { page(200, &[], "good") }).await
}

fn origin_metric(stage: &Stage, name: &str, origin: SocketAddr) -> f64 {
    stage.metric(&format!("forebay_upstream_{name}{{origin=\"{origin}\",upstream=\"origin\"}}"))
}

#[tokio::test(start_paused = true)]
async fn a_retry_goes_to_another_origin_and_a_failing_one_is_ejected() {
    let (nobody, live) = (Nobody::new(), good().await);
    let dead = nobody.address();
    for balance in
        [upstream::Balance::RoundRobin, upstream::Balance::LeastRequests, upstream::Balance::ConsistentHash]
    {
        let mut setting = setting(&[dead, live.address]);
        setting.upstream.balance = balance;
        setting.upstream.ejection = Some(upstream::Ejection {
            failures: 3,
            first: Duration::from_secs(10),
            longest: Duration::from_mins(1),
        });
        let stage = setting.start().await;
        for number in 0..60 {
            assert_eq!(stage.get(&format!("/{number}")).await.text(), "good", "{balance:?}");
        }
        assert_eq!(origin_metric(&stage, "origin_up", dead), 0.0, "{balance:?}");
        assert_eq!(origin_metric(&stage, "origin_up", live.address), 1.0);
        assert_eq!(origin_metric(&stage, "ejections_total", dead), 1.0);
        assert_eq!(stage.metric("forebay_upstream_retries_total{upstream=\"origin\"}"), 3.0);
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(origin_metric(&stage, "origin_up", dead), 1.0, "it is given another chance");
    }
}

#[tokio::test(start_paused = true)]
async fn server_errors_eject_too_but_never_the_last_origin() {
    let broken = Origin::start(|_, _| async { page(500, &[], "broken") }).await;
    let fine = good().await;
    let stage = setting(&[broken.address, fine.address]).start().await;
    for _ in 0..40 {
        stage.get("/").await;
    }
    assert_eq!(broken.requests(), 5);
    assert_eq!(fine.requests(), 35);
    let stage = setting(&[broken.address]).start().await;
    for number in 0..20 {
        assert_eq!(stage.get("/").await.text(), "broken", "{number}");
    }
    assert_eq!(origin_metric(&stage, "origin_up", broken.address), 1.0, "it gets requests, and says so");
    assert_eq!(origin_metric(&stage, "ejections_total", broken.address), 0.0);
}

#[tokio::test(start_paused = true)]
async fn where_all_are_ejected_all_are_tried() {
    let broken = Origin::start(|_, _| async { page(503, &[], "one") }).await;
    let other = Origin::start(|_, _| async { page(503, &[], "other") }).await;
    let stage = setting(&[broken.address, other.address]).start().await;
    for _ in 0..30 {
        assert_eq!(stage.get("/").await.status, 503);
    }
    assert_eq!(broken.requests() + other.requests(), 30);
}

#[tokio::test(start_paused = true)]
async fn retries_end_with_their_budget() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    let address = raw_origin(move |_, mut stream| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move { drop(read_head(&mut stream).await) }
    })
    .await;
    let mut setting = setting(&[address]);
    setting.upstream.retries = 3;
    setting.upstream.retry_budget = Some(0.1);
    let stage = setting.start().await;
    for _ in 0..100 {
        assert_eq!(stage.get("/").await.status, 502);
    }
    let retries = connections.load(Ordering::SeqCst) - 100;
    assert!((18..=20).contains(&retries), "ten in advance and a tenth of a hundred, not {retries}");
    assert!(stage.metric("forebay_upstream_retries_refused_total{upstream=\"origin\"}") > 50.0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_that_died_is_renewed_without_a_retry() {
    let address = raw_origin(|_, mut stream| async move {
        use tokio::io::AsyncWriteExt;
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let mut setting = setting(&[address]);
    setting.upstream.retries = 0;
    setting.upstream.retry_budget = Some(0.0);
    let stage = setting.start().await;
    for _ in 0..20 {
        assert_eq!(stage.get("/").await.text(), "ok");
    }
    assert_eq!(stage.metric("forebay_upstream_retries_total{upstream=\"origin\"}"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_closes_idle_connections_is_not_ejected_for_what_cannot_be_sent_again() {
    let fickle = async || {
        raw_origin(|_, mut stream| async move {
            use tokio::io::AsyncWriteExt;
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            // It closes the connection just when the next request arrives.
            read_head(&mut stream).await;
        })
        .await
    };
    let (one, other) = (fickle().await, fickle().await);
    let mut setting = setting(&[one, other]);
    setting.upstream.balance = upstream::Balance::RoundRobin;
    setting.upstream.ejection = Some(upstream::Ejection { failures: 1, ..upstream::Ejection::default() });
    setting.upstream.breaker = Some(upstream::Breaker { requests_min: 1, ..upstream::Breaker::default() });
    let stage = setting.start().await;
    for _ in 0..10 {
        for (method, status) in [("GET", 200), ("GET", 200), ("POST", 502), ("POST", 502)] {
            assert_eq!(stage.send(method, "/", &[]).await.status, status);
        }
        for origin in [one, other] {
            assert_eq!(origin_metric(&stage, "ejections_total", origin), 0.0);
        }
    }
    let closed = "forebay_upstream_breaker_state{state=\"closed\",upstream=\"origin\"}";
    assert_eq!(stage.metric(closed), 1.0);
}

#[tokio::test(start_paused = true)]
async fn checks_take_an_origin_out_and_bring_it_back() {
    let is_well = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&is_well);
    let sick = Origin::start(move |_, request| {
        let status =
            if asked.load(Ordering::SeqCst) || request.uri().path() != "/healthz" { 200 } else { 503 };
        async move { page(status, &[], "sick") }
    })
    .await;
    let fine = good().await;
    let mut setting = setting(&[sick.address, fine.address]);
    setting.upstream.check = Some(upstream::Check::of("/healthz".parse().unwrap()));
    let stage = setting.start().await;
    let bodies = async || {
        let mut bodies = std::collections::BTreeSet::new();
        for _ in 0..10 {
            bodies.insert(stage.get("/").await.text().to_owned());
        }
        bodies
    };
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(bodies().await.len(), 2);
    is_well.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(21)).await;
    assert_eq!(origin_metric(&stage, "origin_up", sick.address), 0.0);
    assert_eq!(bodies().await, ["good".to_owned()].into());
    is_well.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(16)).await;
    assert_eq!(bodies().await.len(), 2);
}

/// An origin that answers everything with these bytes and hangs up.
async fn always(answer: &'static str) -> SocketAddr {
    raw_origin(move |_, mut stream| async move {
        use tokio::io::AsyncWriteExt;
        read_head(&mut stream).await;
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn answers_that_turn_out_to_be_malformed_eject_too() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        "HTTP/1.1 304 Not Modified\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nx",
        "HTTP/1.1 200 OK\ncontent-length: 2\n\nok",
    ] {
        let (odd, fine) = (always(answer).await, good().await);
        let stage = setting(&[odd, fine.address]).start().await;
        for number in 0..30 {
            for method in ["GET", "POST"] {
                let request = request(method, &format!("/{number}"), &[]);
                if let Ok(head) = stage.client().await.try_send(request).await {
                    let _ = head.try_whole().await;
                }
                stage.until(|telemetry| telemetry.flights() == 0).await;
            }
        }
        assert_eq!(origin_metric(&stage, "ejections_total", odd), 1.0, "{answer:?}");
        assert_eq!(origin_metric(&stage, "origin_up", odd), 0.0, "{answer:?}");
        assert_eq!(origin_metric(&stage, "ejections_total", fine.address), 0.0, "{answer:?}");
    }
}

fn retrying(origins: &[SocketAddr]) -> Setting {
    let mut setting = setting(origins);
    setting.upstream.retries = 2;
    setting.upstream.retry_statuses =
        vec![http::StatusCode::BAD_GATEWAY, http::StatusCode::SERVICE_UNAVAILABLE];
    setting.upstream.ejection = None;
    setting
}

#[tokio::test(start_paused = true)]
async fn an_answer_with_a_configured_status_is_retried_where_that_is_safe() {
    let down = Origin::start(|_, _| async { page(503, &[], "down") }).await;
    let fine = good().await;
    let mut setting = retrying(&[down.address, fine.address]);
    setting.upstream.retry_budget = None;
    let stage = setting.start().await;
    for number in 0..10 {
        assert_eq!(stage.get(&format!("/{number}")).await.text(), "good");
    }
    let puts = async |method| {
        let mut statuses = Vec::new();
        for number in 0..4 {
            statuses.push(stage.send(method, &format!("/{number}"), &[]).await.status);
        }
        statuses.sort_unstable();
        statuses
    };
    assert_eq!(puts("DELETE").await, [200, 200, 200, 200]);
    assert_eq!(puts("POST").await, [200, 200, 503, 503], "it may have had its effect");
}

#[tokio::test(start_paused = true)]
async fn the_last_answer_with_a_configured_status_is_passed_on_and_others_are_not_retried() {
    let down = Origin::start(|number, request| async move {
        match request.uri().path() {
            "/500" => page(500, &[], format!("500 number {number}")),
            _ => page(503, &[], format!("number {number}")),
        }
    })
    .await;
    let stage = retrying(&[down.address]).start().await;
    let started = tokio::time::Instant::now();
    let answer = stage.get("/503").await;
    assert_eq!((answer.status, answer.text(), down.requests()), (503, "number 3", 3));
    let paused = started.elapsed();
    assert!(!paused.is_zero() && paused < Duration::from_millis(76), "{paused:?}");
    assert_eq!((stage.get("/500").await.text(), down.requests()), ("500 number 4", 4));
    assert_eq!(stage.metric("forebay_upstream_retries_total{upstream=\"origin\"}"), 2.0);
}

#[tokio::test(start_paused = true)]
async fn retries_of_answers_end_with_the_budget_too() {
    let down = Origin::start(|_, _| async { page(503, &[], "down") }).await;
    let stage = retrying(&[down.address]).start().await;
    for number in 0..100 {
        assert_eq!(stage.get(&format!("/{number}")).await.status, 503);
    }
    let retries = down.requests() - 100;
    assert!((18..=20).contains(&retries), "ten in advance and a tenth of a hundred, not {retries}");
}
