//! Errors are shared with whoever waits and kept by nobody; a truncated body never looks whole.

use crate::support::*;
use forebay::outcome::Answered;
use forebay::telemetry::DuplicateCause;
use forebay::upstream::Transport;
use http_body_util::BodyExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// Lets the back-off of a failed key pass.
async fn pause() {
    tokio::time::advance(Duration::from_secs(3)).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_is_a_502_that_says_so_and_the_next_request_fetches_anew() {
    let nobody = Nobody::new();
    let stage = Setting::before(nobody.address()).start().await;
    let answer = stage.get("/").await;
    assert_eq!((answer.status, answer.header("proxy-status")), (502, "forebay; error=connection_refused"));
    let again = stage.get("/").await;
    assert_eq!((again.status, again.header("proxy-status")), (502, "forebay; error=connection_refused"));
    pause().await;
    let origin = nobody.listen();
    tokio::spawn(async move {
        let (mut stream, _) = origin.accept().await.unwrap();
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        std::future::pending::<()>().await;
    });
    assert_eq!(stage.get("/").await.text(), "ok");
}

#[tokio::test(start_paused = true)]
async fn a_reset_before_the_head_is_one_error_for_all_who_wait() {
    let gate = Gate::shut();
    let opened = gate.clone();
    let address = raw_origin(move |_, mut stream| {
        let gate = opened.clone();
        async move {
            read_head(&mut stream).await;
            gate.passed().await;
        }
    })
    .await;
    let mut setting = Setting::before(address);
    setting.upstream.retries = 0;
    let stage = setting.start().await;
    let clients: Vec<_> = (0..20).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until_waiters(19).await;
    gate.open();
    for client in clients {
        let answer = client.await.unwrap();
        assert_eq!(
            (answer.status, answer.header("proxy-status")),
            (502, "forebay; error=connection_terminated")
        );
    }
    assert_eq!(stage.telemetry.upstream(0).requests_total(), 1);
    assert_eq!(stage.telemetry.route(0).requests(Answered::Error), 20);
}

#[tokio::test(start_paused = true)]
async fn a_500_reaches_all_who_wait_with_its_page_and_is_not_kept() {
    let gate = Gate::shut();
    let origin =
        Origin::behind(
            &gate,
            ..,
            |number| {
                if number == 1 { page(500, &[], "sorry") } else { page(200, &[], "fine") }
            },
        )
        .await;
    let stage = Stage::before(&origin).await;
    let clients: Vec<_> = (0..20).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until_waiters(19).await;
    gate.open();
    for client in clients {
        let answer = client.await.unwrap();
        assert_eq!((answer.status, answer.text()), (500, "sorry"));
    }
    assert_eq!(origin.requests(), 1);
    // Those who come right after share the failure, too, without its page; then it is tried again.
    let spared = stage.get("/").await;
    let told = "forebay; error=destination_unavailable; received-status=500";
    assert_eq!((spared.status, spared.header("proxy-status")), (500, told));
    assert_eq!(origin.requests(), 1);
    pause().await;
    assert_eq!(stage.get("/").await.text(), "fine");
}

#[tokio::test(start_paused = true)]
async fn an_error_page_that_says_that_it_is_not_for_all_is_for_its_leader_alone() {
    for line in [
        ("cache-control", "private=\"x-s\""),
        ("cache-control", "no-cache=\"x-s\""),
        ("cache-control", "no-cache"),
        ("vary", "*"),
        ("vary", "cookie"),
    ] {
        let gate = Gate::shut();
        let origin =
            Origin::behind(&gate, 1.., move |_| page(503, &[line, ("x-s", "secret")], "a trace")).await;
        let stage = Stage::before(&origin).await;
        let leader = stage.spawn_get("/", &[]);
        stage.until(|telemetry| telemetry.flights() == 1).await;
        let follower = stage.spawn_get("/", &[]);
        stage.until_waiters(1).await;
        gate.open();
        let (leader, follower) = (leader.await.unwrap(), follower.await.unwrap());
        assert_eq!((leader.status, leader.text(), leader.header("x-s")), (503, "a trace", "secret"));
        assert_eq!((follower.status, follower.header("x-s")), (503, ""), "{line:?}");
        assert!(!follower.text().contains("trace"), "{line:?}");
        assert_eq!(origin.requests(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_page_for_a_client_with_a_cookie_is_not_shown_to_others() {
    for (control, follower_sees) in [("max-age=0", "503 Service Unavailable"), ("public", "a trace")] {
        let gate = Gate::shut();
        let origin =
            Origin::behind(&gate, 1.., move |_| page(503, &[("cache-control", control)], "a trace")).await;
        let stage = Stage::before(&origin).await;
        let leader = stage.spawn_get("/", &[("cookie", "sid=alice")]);
        stage.until(|telemetry| telemetry.flights() == 1).await;
        // One of these leads when the first error has proved to be alice's, and has an error of its own.
        let others = ["sid=bob", "sid=carol"].map(|cookie| stage.spawn_get("/", &[("cookie", cookie)]));
        stage.until_waiters(2).await;
        gate.open();
        assert_eq!(leader.await.unwrap().text(), "a trace");
        let mut told = Vec::new();
        for client in others {
            let answer = client.await.unwrap();
            assert_eq!(answer.status, 503);
            told.push(answer.text().to_owned());
        }
        let own = told.iter().position(|text| text == "a trace").unwrap();
        told.swap_remove(own);
        assert!(told[0].starts_with(follower_sees), "{control}: {told:?}");
        assert_eq!(origin.requests(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_page_that_is_private_is_not_shown_to_others() {
    let gate = Gate::shut();
    let origin =
        Origin::behind(&gate, .., |_| page(500, &[("set-cookie", "id=7")], "dear Alice, sorry")).await;
    let stage = Stage::before(&origin).await;
    let clients: Vec<_> = (0..3).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until_waiters(2).await;
    gate.open();
    let mut shown = 0;
    for client in clients {
        let answer = client.await.unwrap();
        assert_eq!(answer.status, 500);
        let is_shown = answer.text().contains("Alice") || answer.headers.contains_key("set-cookie");
        assert_eq!(answer.header("proxy-status"), if is_shown { "" } else { "forebay; received-status=500" });
        shown += usize::from(is_shown);
    }
    assert_eq!(shown, 1, "it is for the one whose request failed");
    assert_eq!(origin.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_seen_to_break_by_every_reader_and_leaves_nothing_behind() {
    for head in ["content-length: 100", "transfer-encoding: chunked"] {
        let gate = Gate::shut();
        let opened = gate.clone();
        let address = raw_origin(move |_, mut stream| {
            let gate = opened.clone();
            async move {
                read_head(&mut stream).await;
                let head = format!("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\n{head}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(b"5\r\nhello\r\n").await.unwrap();
                gate.passed().await;
            }
        })
        .await;
        let stage = Setting::before(address).start().await;
        let (mut first, mut second) = (stage.client().await, stage.client().await);
        let one = first.send(request("GET", "/", &[])).await;
        let other = second.send(request("GET", "/", &[])).await;
        gate.open();
        assert!(one.try_whole().await.is_err(), "{head}: the leader saw a clean end");
        assert!(other.try_whole().await.is_err(), "{head}: the follower saw a clean end");
        stage.until(|telemetry| telemetry.flights() == 0).await;
        assert_eq!(stage.metric("forebay_store_entries"), 0.0);
        let mut next = stage.client().await;
        let next = next.send(request("GET", "/", &[])).await;
        assert!(next.try_whole().await.is_err(), "{head}: the next request was answered from the broken one");
        assert_eq!(stage.telemetry.upstream(0).requests_total(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_never_answers_is_a_504_for_all_who_wait() {
    let address = raw_origin(|_, mut stream| async move {
        read_head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut setting = Setting::before(address);
    setting.upstream.head_timeout = Duration::from_secs(3);
    let stage = setting.start().await;
    let clients: Vec<_> = (0..5).map(|_| stage.spawn_get("/", &[])).collect();
    for client in clients {
        let answer = client.await.unwrap();
        assert_eq!(
            (answer.status, answer.header("proxy-status")),
            (504, "forebay; error=http_response_timeout")
        );
    }
    assert_eq!(stage.telemetry.upstream(0).requests_total(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_time_for_a_head_or_a_piece_begins_anew_with_each_on_the_same_connection() {
    let address = raw_origin(|connection, mut stream| async move {
        assert_eq!(connection, 1);
        // Otherwise pieces wait for real time.
        stream.set_nodelay(true).unwrap();
        for pause in [0, 2_900, 100, 2_900, 2_900] {
            read_head(&mut stream).await;
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 2\r\n\r\n")
                .await;
            for piece in [b"o", b"k"] {
                tokio::time::sleep(Duration::from_millis(pause / 2)).await;
                let _ = stream.write_all(piece).await;
            }
        }
        read_head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut setting = Setting::before(address);
    setting.upstream.head_timeout = Duration::from_secs(3);
    setting.upstream.between_bytes_timeout = Duration::from_millis(1_500);
    let stage = setting.start().await;
    for _ in 0..5 {
        assert_eq!(stage.get("/").await.text(), "ok");
        // Longer than a head may take: whatever rings meanwhile is of no request.
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    let asked = Instant::now();
    assert_eq!(stage.get("/").await.status, 504);
    assert_eq!(asked.elapsed().as_millis(), 3_000);
}

#[tokio::test(start_paused = true)]
async fn a_stale_response_stands_in_for_a_failing_upstream_within_its_limit() {
    let origin = Origin::start(|number, _| async move {
        match number {
            1 => page(200, &[("cache-control", "max-age=1, stale-if-error=60")], "good"),
            _ => page(503, &[], "down"),
        }
    })
    .await;
    let stage = Stage::before(&origin).await;
    assert_eq!(stage.get("/").await.text(), "good");
    tokio::time::advance(Duration::from_secs(10)).await;
    let stale = stage.get("/").await;
    assert_eq!((stale.status, stale.text()), (200, "good"));
    assert_eq!(stale.cache_status(), "fwd=stale; fwd-status=503; ttl=-9; detail=failed");
    // RFC 9211 §2.1: "a stale response that is used without going forward [...] can be considered a hit".
    assert_eq!(stage.get("/").await.cache_status(), "hit; ttl=-9; detail=back-off");
    tokio::time::advance(Duration::from_secs(100)).await;
    assert_eq!(stage.get("/").await.status, 503);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_panics_is_an_error_for_all_who_wait_and_leaves_its_key_free() {
    let gate = Gate::shut();
    let opened = gate.clone();
    let attempts = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&attempts);
    let mut setting = Setting::before("127.0.0.1:1".parse().unwrap());
    setting.transport = Transport::Memory(Arc::new(move |_| {
        let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
        let gate = opened.clone();
        Box::pin(async move {
            gate.passed().await;
            assert!(number > 1, "the first connection is the end of whoever makes it");
            let (ours, mut theirs) = tokio::io::duplex(1 << 16);
            tokio::spawn(async move {
                theirs.read_buf(&mut Vec::with_capacity(4096)).await.unwrap();
                let answer = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 4\r\n\r\nfine";
                theirs.write_all(answer.as_bytes()).await.unwrap();
                std::future::pending::<()>().await;
            });
            Ok(ours)
        })
    }));
    let stage = setting.start().await;
    let clients: Vec<_> = (0..10).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until_waiters(9).await;
    gate.open();
    let mut failed = 0;
    for client in clients {
        let answer = client.await.unwrap();
        failed += usize::from(answer.status == 500);
        assert!(answer.status == 500 || answer.text() == "fine", "{answer:?}");
    }
    // The client of the lost fetch is told; those who merely waited elect one new leader among them.
    assert_eq!((failed, attempts.load(Ordering::SeqCst)), (1, 2));
    assert_eq!(stage.metric("forebay_panics_total"), 1.0);
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::LeaseLost), 1);
    assert_eq!(stage.get("/").await.text(), "fine");
    assert_eq!((stage.telemetry.waiters(), stage.telemetry.flights()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_head_is_waited_for_from_the_end_of_an_upload() {
    let origin = Origin::start(|_, request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        tokio::time::sleep(Duration::from_secs(1)).await;
        page(200, &[], body)
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.upstream.head_timeout = Duration::from_secs(2);
    let stage = setting.start().await;
    let (pieces, upload) = streamed(200, &[]);
    let request = request_with("PUT", "/", &[], upload.into_body());
    let mut client = stage.client().await;
    let answer = tokio::spawn(async move { client.send(request).await.whole().await });
    for piece in ["one, ", "two, ", "three"] {
        pieces.send(data(piece)).unwrap();
        tokio::time::sleep(Duration::from_millis(1200)).await;
    }
    drop(pieces);
    assert_eq!(answer.await.unwrap().text(), "one, two, three");
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_takes_no_more_of_an_upload_is_not_waited_for_as_if_the_client_were_slow() {
    let theirs = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let held = Arc::clone(&theirs);
    let mut setting = Setting::before("127.0.0.1:1".parse().unwrap());
    setting.transport = Transport::Memory(Arc::new(move |_| {
        let (ours, end) = tokio::io::duplex(16);
        held.lock().push(end);
        Box::pin(async move { Ok(ours) })
    }));
    setting.upstream.head_timeout = Duration::from_secs(2);
    let stage = setting.start().await;
    let mut client = stage.pipe();
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: site.example\r\nContent-Length: 100\r\n\r\nsome of it")
        .await
        .unwrap();
    let head = tokio::time::timeout(Duration::from_secs(10), read_head(&mut client)).await;
    assert!(head.unwrap().starts_with("HTTP/1.1 504 "));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_seen_to_break_by_a_client_of_http_1_0_too() {
    let address = raw_origin(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            .await
            .unwrap();
    })
    .await;
    let stage = Setting::before(address).start().await;
    let mut client = tokio::net::TcpStream::connect(stage.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.0\r\nHost: site.example\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let end = client.read_to_end(&mut answer).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}
