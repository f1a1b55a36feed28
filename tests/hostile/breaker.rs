//! Upstreams that fail so often that they are left alone: the circuit breaker.

use crate::peers::*;
use crate::support::*;
use forebay::telemetry::{FetchReason, StatusClass};
use forebay::upstream::Breaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// An origin that is broken until it is mended: it answers 500, or what it is told to.
#[derive(Clone)]
struct Patient {
    is_well: Arc<AtomicBool>,
    origin: Arc<Origin>,
}

impl Patient {
    async fn start() -> Self {
        let is_well = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&is_well);
        let origin = Origin::start(move |_, request| {
            let is_well = asked.load(Ordering::SeqCst);
            async move {
                match (is_well, request.uri().path()) {
                    (true, "/page") => {
                        page(200, &[("cache-control", "max-age=10, stale-if-error=600")], "page")
                    }
                    (true, "/swr") => {
                        page(200, &[("cache-control", "max-age=10, stale-while-revalidate=600")], "swr")
                    }
                    (true, _) => page(200, &[("cache-control", "no-store")], "well"),
                    (false, _) => page(500, &[], "ill"),
                }
            }
        })
        .await;
        Self { is_well, origin: Arc::new(origin) }
    }

    fn mend(&self, is_well: bool) {
        self.is_well.store(is_well, Ordering::SeqCst);
    }

    fn requests(&self) -> usize {
        self.origin.requests()
    }
}

fn breaker() -> Breaker {
    Breaker {
        requests_min: 10,
        open_time: Duration::from_secs(9),
        open_time_max: Duration::from_secs(60),
        probes: 2,
        ..Breaker::default()
    }
}

fn setting(origin: std::net::SocketAddr) -> Setting {
    let mut setting = Setting::before(origin);
    setting.upstream.breaker = Some(breaker());
    setting.upstream.retries = 0;
    setting.coalescing.error_backoff = (Duration::ZERO, Duration::ZERO);
    setting
}

#[track_caller]
fn check_state(stage: &Stage, expected: &str) {
    for state in ["closed", "open", "half_open"] {
        let series = format!("forebay_upstream_breaker_state{{state=\"{state}\",upstream=\"origin\"}}");
        assert_eq!(stage.metric(&series), f64::from(u8::from(state == expected)), "{state}");
    }
}

fn counted(stage: &Stage, name: &str, label: &str) -> f64 {
    stage.metric(&format!("forebay_upstream_{name}{{{label}upstream=\"origin\"}}"))
}

#[track_caller]
fn check_refusal(answer: &Answer) {
    assert_eq!(
        (answer.status, answer.header("proxy-status")),
        (503, "forebay; error=destination_unavailable")
    );
    let seconds: u64 = answer.header("retry-after").parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn failures_open_it_and_requests_fail_at_once_until_probes_succeed() {
    let patient = Patient::start().await;
    let stage = setting(patient.origin.address).start().await;
    check_state(&stage, "closed");
    for number in 0..10 {
        assert_eq!(stage.get(&format!("/{number}")).await.text(), "ill");
    }
    check_state(&stage, "open");
    let started = tokio::time::Instant::now();
    for (method, target) in [("GET", "/new"), ("GET", "/0"), ("POST", "/"), ("HEAD", "/")] {
        check_refusal(&stage.send(method, target, &[]).await);
    }
    let upgrade = [("connection", "upgrade"), ("upgrade", "websocket")];
    check_refusal(&stage.send("GET", "/", &upgrade).await);
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(patient.requests(), 10);
    assert_eq!(counted(&stage, "refused_total", "cause=\"open\","), 5.0);
    let sent = stage.telemetry.upstream(0).requests_total();
    assert_eq!(sent, 10, "what is refused is no upstream request");

    patient.mend(true);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(stage.get("/a").await.text(), "well");
    check_state(&stage, "half_open");
    assert_eq!(stage.get("/b").await.text(), "well");
    check_state(&stage, "closed");
    assert_eq!(counted(&stage, "breaker_probes_total", ""), 2.0);
    for state in ["open", "half_open", "closed"] {
        let label = format!("state=\"{state}\",");
        assert_eq!(counted(&stage, "breaker_transitions_total", &label), 1.0, "{state}");
    }
}

#[tokio::test(start_paused = true)]
async fn probes_that_fail_open_it_again_for_longer() {
    let patient = Patient::start().await;
    let stage = setting(patient.origin.address).start().await;
    for _ in 0..10 {
        stage.get("/").await;
    }
    let mut waits = Vec::new();
    for opening in 1..=5 {
        let before = patient.requests();
        let since = tokio::time::Instant::now();
        while patient.requests() == before {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stage.get("/").await;
        }
        waits.push(since.elapsed());
        assert_eq!(patient.requests(), before + 1, "one failed probe is enough");
        assert_eq!(counted(&stage, "breaker_transitions_total", "state=\"open\","), f64::from(opening + 1));
    }
    for (wait, longest) in waits.iter().zip([9, 18, 36, 60, 60]) {
        let longest = Duration::from_secs(longest);
        assert!(*wait >= longest.mul_f64(0.66) && *wait <= longest + Duration::from_millis(300), "{waits:?}");
    }
}

/// An origin that fails ten times; from then on its answers are good, and wait at the gate.
async fn recovering(gate: &Gate) -> Origin {
    Origin::behind(gate, 11.., |number| match number {
        ..=10 => page(503, &[], "ill"),
        _ => page(200, &[("cache-control", "no-store")], "well"),
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn half_open_it_lets_no_more_requests_through_than_it_may() {
    let gate = Gate::shut();
    let origin = recovering(&gate).await;
    let stage = setting(origin.address).start().await;
    for _ in 0..10 {
        stage.get("/").await;
    }
    tokio::time::advance(Duration::from_secs(10)).await;
    let clients: Vec<_> = (0..50).map(|number| stage.spawn_get(&format!("/{number}"), &[])).collect();
    stage.until(|_| origin.requests() == 12).await;
    stage.until(|_| counted(&stage, "refused_total", "cause=\"open\",") == 48.0).await;
    gate.open();
    let mut well = 0;
    for client in clients {
        let answer = client.await.unwrap();
        well += usize::from(answer.status == 200);
        if answer.status != 200 {
            check_refusal(&answer);
        }
    }
    assert_eq!((well, origin.requests()), (2, 12));
    check_state(&stage, "closed");
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_client_leaves_gives_its_place_to_another() {
    let patient = Patient::start().await;
    let gate = Gate::shut();
    let origin = recovering(&gate).await;
    drop(patient);
    let stage = setting(origin.address).start().await;
    for _ in 0..10 {
        stage.get("/").await;
    }
    tokio::time::advance(Duration::from_secs(10)).await;
    for round in 1..=3 {
        let clients: Vec<_> = (0..2).map(|number| stage.spawn_get(&format!("/{number}"), &[])).collect();
        stage.until(|_| origin.requests() == 10 + 2 * round).await;
        for client in clients {
            client.abort();
        }
        stage.until(|telemetry| telemetry.flights() == 0).await;
        check_state(&stage, "half_open");
    }
    gate.open();
    assert_eq!(stage.get("/").await.text(), "well");
}

#[tokio::test(start_paused = true)]
async fn what_is_stale_stands_in_while_it_is_open_and_refreshes_give_way() {
    let patient = Patient::start().await;
    patient.mend(true);
    let stage = setting(patient.origin.address).start().await;
    assert_eq!((stage.get("/page").await.text(), stage.get("/swr").await.text()), ("page", "swr"));
    patient.mend(false);
    for _ in 0..12 {
        stage.get("/other").await;
    }
    check_state(&stage, "open");
    let before = patient.requests();
    assert_eq!(stage.get("/page").await.cache_status(), "hit; ttl=10", "what is fresh is served as ever");
    // Nobody asks while the time to probe comes, and passes, and the probes fail.
    tokio::time::advance(Duration::from_secs(11)).await;
    stage.get("/a").await;
    check_state(&stage, "open");
    let stale = stage.get("/page").await;
    assert_eq!((stale.status, stale.text()), (200, "page"));
    assert_eq!(stale.cache_status(), "hit; ttl=-1; detail=refused", "nothing was forwarded");
    assert_eq!(stage.get("/swr").await.text(), "swr");
    stage.until(|telemetry| telemetry.flights() == 0).await;
    assert_eq!(patient.requests(), before + 1);
    check_refusal(&stage.get("/nothing-stored").await);
    let refreshes = stage.telemetry.upstream(0).requests(FetchReason::Refresh, StatusClass::Error);
    assert_eq!(refreshes, 0);
}

#[tokio::test(start_paused = true)]
async fn what_must_be_validated_is_a_503_while_it_is_open() {
    let patient = Patient::start().await;
    let is_well = Arc::clone(&patient.is_well);
    let origin = Origin::start(move |_, _| {
        let is_well = is_well.load(Ordering::SeqCst);
        async move {
            if is_well {
                page(200, &[("cache-control", "max-age=10, must-revalidate"), ("etag", "\"a\"")], "a")
            } else {
                page(502, &[], "ill")
            }
        }
    })
    .await;
    let mut setting = setting(origin.address);
    setting.rules.stale_if_error = Duration::from_secs(600);
    let stage = setting.start().await;
    patient.mend(true);
    assert_eq!(stage.get("/").await.text(), "a");
    patient.mend(false);
    tokio::time::advance(Duration::from_secs(11)).await;
    for _ in 0..12 {
        stage.get("/other").await;
    }
    check_refusal(&stage.get("/").await);
}

/// Requests each of which goes wrong in this way open the breaker.
async fn check_opened_by(answer: &'static [u8], what: &str) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    let address = raw_origin(move |_, mut stream| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(answer).await;
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
        }
    })
    .await;
    let mut setting = setting(address);
    setting.upstream.head_timeout = Duration::from_millis(10);
    let stage = setting.start().await;
    for _ in 0..10 {
        if let Ok(head) = stage.client().await.try_send(request("GET", "/", &[])).await {
            let _ = head.try_whole().await;
        }
        stage.until(|telemetry| telemetry.flights() == 0).await;
    }
    check_refusal(&stage.get("/").await);
    assert_eq!(connections.load(Ordering::SeqCst), 10, "{what}");
}

#[tokio::test(start_paused = true)]
async fn whatever_the_upstream_does_wrong_is_a_failure() {
    for (answer, what) in [
        (&b""[..], "silence"),
        (b"garbage\r\n\r\n", "garbage"),
        (b"HTTP/1.1 200 OK\r\n", "half a head"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", "half a body"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nx", "broken chunks"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok", "two lengths"),
        (b"HTTP/1.1 206 Partial Content\r\ncontent-length: 2\r\n\r\nok", "a part that nobody asked for"),
    ] {
        check_opened_by(answer, what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_clients_do_wrong_is_no_failure_of_the_upstream() {
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let address = raw_origin(move |_, mut stream| {
        let sender = sender.clone();
        async move {
            let head = read_head(&mut stream).await;
            let _ = sender.send(());
            if head.starts_with("GET /long") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").await;
            }
            std::future::pending::<()>().await;
        }
    })
    .await;
    let mut setting = setting(address);
    setting.upstream.head_timeout = Duration::from_secs(5);
    setting.upstream.between_bytes_timeout = Duration::from_secs(2000);
    setting.proxy.request_body_pause_max = Duration::from_secs(15);
    setting.coalescing.on_abandon = forebay::proxy::OnAbandon::Cancel;
    let stage = setting.start().await;
    for _ in 0..10 {
        for (upload, rest, status) in [
            ("Content-Length: 10\r\n\r\nhello", "", 408),
            ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "", 408),
            ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "xyz", 400),
        ] {
            let mut client = TcpStream::connect(stage.address).await.unwrap();
            let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{upload}");
            client.write_all(request.as_bytes()).await.unwrap();
            seen.recv().await.unwrap();
            client.write_all(rest.as_bytes()).await.unwrap();
            assert_eq!(hear(&mut client).await.statuses(), [status], "{upload:?}{rest:?}");
        }
        for target in ["/", "/long"] {
            let client = stage.spawn_get(target, &[]);
            seen.recv().await.unwrap();
            client.abort();
            stage.until(|telemetry| telemetry.flights() == 0).await;
        }
    }
    check_state(&stage, "closed");
    let up = stage.metric(&format!("forebay_upstream_origin_up{{origin=\"{address}\",upstream=\"origin\"}}"));
    assert_eq!(up, 1.0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_is_told_soon_that_it_is_open() {
    let address = raw_origin(|_, mut stream| async move { drop(read_head(&mut stream).await) }).await;
    let mut setting = setting(address);
    setting.upstream.concurrency_max = 1;
    setting.upstream.queue_timeout = Duration::from_secs(60);
    let stage = setting.start().await;
    let started = tokio::time::Instant::now();
    let clients: Vec<_> = (0..100).map(|number| stage.spawn_get(&format!("/{number}"), &[])).collect();
    let mut refused = 0;
    for client in clients {
        refused += usize::from(client.await.unwrap().status == 503);
    }
    assert_eq!(refused, 90);
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn without_the_setting_an_upstream_that_fails_is_asked_for_ever() {
    let patient = Patient::start().await;
    let mut setting = setting(patient.origin.address);
    setting.upstream.breaker = None;
    let stage = setting.start().await;
    for _ in 0..100 {
        assert_eq!(stage.get("/").await.status, 500);
    }
    assert_eq!(patient.requests(), 100);
}
