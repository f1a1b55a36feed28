//! Upstreams that are pressed: places, the queue before them, and a limit that follows the latency.

use crate::support::*;
use forebay::upstream::Adaptive;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const BUSY: &str = "forebay; error=connection_limit_reached";

#[track_caller]
fn check_refusal(answer: &Answer) {
    let told = (answer.status, answer.header("proxy-status"), answer.header("retry-after"));
    assert_eq!(told, (503, BUSY, "1"));
}

fn counted(stage: &Stage, name: &str, label: &str) -> f64 {
    stage.metric(&format!("forebay_upstream_{name}{{{label}upstream=\"origin\"}}"))
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_in_length_and_in_time() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, .., |_| page(200, &[("cache-control", "no-store")], "done")).await;
    let mut setting = Setting::before(origin.address);
    setting.upstream.concurrency_max = 2;
    setting.upstream.queue_max = 3;
    setting.upstream.queue_timeout = Duration::from_secs(4);
    setting.upstream.head_timeout = Duration::from_secs(600);
    let stage = setting.start().await;
    assert_eq!(counted(&stage, "concurrency_limit", ""), 2.0);
    let served: Vec<_> = (0..2).map(|number| stage.spawn_get(&format!("/{number}"), &[])).collect();
    stage.until(|_| origin.requests() == 2).await;
    let queued: Vec<_> = (2..5).map(|number| stage.spawn_get(&format!("/{number}"), &[])).collect();
    stage.until(|_| counted(&stage, "queued", "") == 3.0).await;
    let started = Instant::now();
    for (method, target) in [("GET", "/5"), ("POST", "/6")] {
        check_refusal(&stage.send(method, target, &[]).await);
    }
    assert_eq!(started.elapsed(), Duration::ZERO, "a full queue is told at once");
    for client in queued {
        check_refusal(&client.await.unwrap());
    }
    let waited = started.elapsed();
    assert!(waited > Duration::from_millis(3900) && waited < Duration::from_millis(4100), "{waited:?}");
    assert_eq!((counted(&stage, "queued", ""), origin.requests()), (0.0, 2));
    assert_eq!(counted(&stage, "refused_total", "cause=\"busy\","), 5.0);
    gate.open();
    for client in served {
        assert_eq!(client.await.unwrap().text(), "done");
    }
    // That there was no place says nothing of a page: the next request for it is not put off.
    assert_eq!(stage.get("/5").await.text(), "done");
}

#[tokio::test(start_paused = true)]
async fn who_leaves_the_queue_makes_room_in_it() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, .., |_| page(200, &[("cache-control", "no-store")], "done")).await;
    let mut setting = Setting::before(origin.address);
    setting.upstream.concurrency_max = 1;
    setting.upstream.queue_max = 1;
    setting.upstream.queue_timeout = Duration::from_secs(60);
    setting.upstream.head_timeout = Duration::from_secs(600);
    let stage = setting.start().await;
    let first = stage.spawn_get("/1", &[]);
    stage.until(|_| origin.requests() == 1).await;
    for number in 0..5 {
        let client = stage.spawn_get(&format!("/left/{number}"), &[]);
        stage.until(|_| counted(&stage, "queued", "") == 1.0).await;
        client.abort();
        stage.until(|_| counted(&stage, "queued", "") == 0.0).await;
    }
    let last = stage.spawn_get("/last", &[]);
    stage.until(|_| counted(&stage, "queued", "") == 1.0).await;
    gate.open();
    assert_eq!((first.await.unwrap().text(), last.await.unwrap().text()), ("done", "done"));
    assert_eq!(origin.requests(), 2);
}

/// An origin that works on so many requests at once for so long each; the others wait within it.
struct Worker {
    origin: Origin,
    workers: Arc<tokio::sync::Semaphore>,
    at_once: Arc<AtomicUsize>,
}

impl Worker {
    async fn start(workers: usize, work: Duration) -> Self {
        let workers = Arc::new(tokio::sync::Semaphore::new(workers));
        let at_once = Arc::new(AtomicUsize::new(0));
        let (crew, count) = (Arc::clone(&workers), Arc::clone(&at_once));
        let inside = Arc::new(AtomicUsize::new(0));
        let origin = Origin::start(move |_, _| {
            let (crew, count, inside) = (Arc::clone(&crew), Arc::clone(&count), Arc::clone(&inside));
            async move {
                count.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let worker = crew.acquire().await.unwrap();
                tokio::time::sleep(work).await;
                drop(worker);
                inside.fetch_sub(1, Ordering::SeqCst);
                page(200, &[("cache-control", "no-store")], "done")
            }
        })
        .await;
        Self { origin, workers, at_once }
    }
}

/// So many clients, each of which asks again and again.
fn press(stage: &Stage, clients: usize) -> tokio::task::JoinSet<()> {
    let mut set = tokio::task::JoinSet::new();
    for number in 0..clients {
        let address = stage.address;
        set.spawn(async move {
            let mut client = Client::connect(address).await;
            for count in 0.. {
                client.get(&format!("/{number}/{count}")).await;
            }
        });
    }
    set
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_limit_finds_what_the_upstream_can_do_and_recovers() {
    let worker = Worker::start(10, Duration::from_millis(100)).await;
    let mut setting = Setting::before(worker.origin.address);
    setting.upstream.adaptive = Some(Adaptive { concurrency_min: 2, latency_tolerance: 1.5 });
    setting.upstream.queue_timeout = Duration::from_secs(600);
    setting.upstream.head_timeout = Duration::from_secs(600);
    let stage = setting.start().await;
    let limit = || counted(&stage, "concurrency_limit", "");
    assert_eq!(limit(), 2.0);
    let clients = press(&stage, 60);
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert!((8.0..=32.0).contains(&limit()), "{} for ten workers", limit());
    assert!(worker.at_once.load(Ordering::SeqCst) <= 40, "{}", worker.at_once.load(Ordering::SeqCst));
    // The upstream loses nearly all its workers, and gets them back.
    worker.workers.forget_permits(10);
    let lost = tokio::spawn({
        let workers = Arc::clone(&worker.workers);
        async move { workers.acquire_many_owned(9).await.unwrap().forget() }
    });
    tokio::time::sleep(Duration::from_secs(40)).await;
    lost.await.unwrap();
    let low = limit();
    assert!(low <= 8.0, "{low} for one worker");
    worker.workers.add_permits(9);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!((8.0..=32.0).contains(&limit()), "{} for ten workers again", limit());
    drop(clients);
}

#[tokio::test(start_paused = true)]
async fn slow_uploads_and_fast_errors_do_not_move_an_adaptive_limit() {
    let origin = Origin::start(|_, request| async move {
        if request.method() == http::Method::POST {
            use http_body_util::BodyExt;
            let _ = request.into_body().collect().await;
            return page(200, &[], "taken");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let status = if request.uri().path().starts_with("/bad") { 500 } else { 200 };
        page(status, &[("cache-control", "no-store")], "done")
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.upstream.adaptive = Some(Adaptive { concurrency_min: 2, latency_tolerance: 1.5 });
    setting.upstream.queue_timeout = Duration::from_secs(600);
    setting.coalescing.error_backoff = (Duration::ZERO, Duration::ZERO);
    let stage = setting.start().await;
    let limit = || counted(&stage, "concurrency_limit", "");
    let clients = press(&stage, 20);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = limit();
    assert!(before >= 20.0, "{before}");
    let mut uploads = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let address = stage.address;
        uploads.spawn(async move {
            let (pieces, upload) = streamed(200, &[]);
            let mut client = Client::connect(address).await;
            let answer = client.send(request_with("POST", "/", &[], upload.into_body()));
            let drip = async {
                for _ in 0..5 {
                    pieces.send(data("x")).unwrap();
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                drop(pieces);
            };
            tokio::join!(answer, drip).0.whole().await.status
        });
    }
    for number in 0..100 {
        assert_eq!(stage.get(&format!("/bad/{number}")).await.status, 500);
    }
    while let Some(status) = uploads.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert!(limit() >= before, "{} and not {before}", limit());
    drop(clients);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_has_its_place_as_long_as_it_stands() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = raw_origin(|_, mut stream| async move {
        let head = read_head(&mut stream).await;
        if !head.to_ascii_lowercase().contains("upgrade: websocket") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            return;
        }
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        let _ = stream.write_all(switch.as_bytes()).await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let mut setting = Setting::before(address);
    setting.upstream.concurrency_max = 1;
    setting.upstream.queue_max = 0;
    let stage = setting.start().await;
    let mut tunnel = tokio::net::TcpStream::connect(stage.address).await.unwrap();
    let upgrade = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    tunnel.write_all(upgrade.as_bytes()).await.unwrap();
    assert!(read_head(&mut tunnel).await.starts_with("HTTP/1.1 101 "));
    check_refusal(&stage.get("/").await);
    drop(tunnel);
    stage.until(|_| stage.proxy.tunnels() == 0).await;
    assert_eq!(stage.get("/").await.text(), "ok");
}
