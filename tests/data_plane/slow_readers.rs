//! Slow readers hurt only themselves, and memory stays bounded.

use crate::support::*;
use bytes::Bytes;
use std::time::Duration;

const PIECE: usize = 64 << 10;

/// An origin that sends `count` pieces of 64 KiB to the first who asks, and a short page to the others.
async fn large(count: usize, says_length: bool) -> Origin {
    Origin::start(move |number, _| async move {
        if number > 1 {
            return page(200, &[("cache-control", "max-age=60")], format!("answer {number}"));
        }
        in_pieces(count, says_length)
    })
    .await
}

/// A page of so many pieces.
fn in_pieces(count: usize, says_length: bool) -> Page {
    let length = (count * PIECE).to_string();
    let mut headers = vec![("cache-control", "max-age=60")];
    if says_length {
        headers.push(("content-length", length.as_str()));
    }
    let (pieces, answer) = streamed(200, &headers);
    for _ in 0..count {
        pieces.send(data(Bytes::from(vec![b'.'; PIECE]))).unwrap();
    }
    answer
}

#[tokio::test(start_paused = true)]
async fn a_body_too_large_to_keep_is_delivered_and_not_stored() {
    for says_length in [true, false] {
        let origin = large(40, says_length).await;
        let mut setting = Setting::before(origin.address);
        setting.transport = origin.transport();
        setting.coalescing.body_bytes_max = 1 << 20;
        let stage = setting.start().await;
        assert_eq!(stage.piped_client().await.get("/").await.body.len(), 40 * PIECE);
        assert_eq!(stage.get("/").await.text(), "answer 2", "length known: {says_length}");
        assert_eq!(stage.metric("forebay_inflight_bytes"), 0.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stalls_is_cut_off_and_the_other_gets_all() {
    for says_length in [true, false] {
        let gate = Gate::shut();
        let count = 400;
        let origin = Origin::behind(&gate, .., move |_| in_pieces(count, says_length)).await;
        let mut setting = Setting::before(origin.address);
        setting.transport = origin.transport();
        setting.coalescing.body_bytes_max = 1 << 20;
        let stage = setting.start().await;
        let (mut lazy, mut eager) = (stage.piped_client().await, stage.piped_client().await);
        // The one that does not read is the first: the leader's client.
        let leading = tokio::spawn(async move { (lazy.send(request("GET", "/", &[])).await, lazy) });
        stage.until(|telemetry| telemetry.flights() == 1).await;
        let following = tokio::spawn(async move { (eager.send(request("GET", "/", &[])).await, eager) });
        stage.until_waiters(1).await;
        gate.open();
        let ((stalled, _lazy), (reading, _eager)) = (leading.await.unwrap(), following.await.unwrap());
        assert_eq!(reading.whole().await.body.len(), count * PIECE, "length known: {says_length}");
        assert!(stalled.try_whole().await.is_err(), "length known: {says_length}");
        stage.until(|telemetry| telemetry.flights() == 0).await;
        assert_eq!(stage.metric("forebay_inflight_bytes"), 0.0);
    }
}

#[tokio::test(start_paused = true)]
async fn above_the_budget_of_bytes_in_flight_bodies_stream_without_being_stored() {
    let origin = large(40, false).await;
    let mut setting = Setting::before(origin.address);
    setting.transport = origin.transport();
    setting.proxy.inflight_bytes_max = 1 << 20;
    let stage = setting.start().await;
    assert_eq!(stage.piped_client().await.get("/").await.body.len(), 40 * PIECE);
    assert_eq!(stage.get("/").await.text(), "answer 2");
    assert_eq!(stage.get("/").await.text(), "answer 2", "there is room again");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_gives_its_bytes_back_at_once() {
    let (pieces, answer) = streamed(200, &[("cache-control", "max-age=60")]);
    let origin = Origin::once(answer).await;
    let stage = Stage::before(&origin).await;
    let mut client = stage.client().await;
    let mut reading = client.send(request("GET", "/", &[])).await;
    pieces.send(data(Bytes::from(vec![b'.'; 1000]))).unwrap();
    assert_eq!(reading.piece().await.unwrap().unwrap().len(), 1000);
    assert_eq!(stage.metric("forebay_inflight_bytes"), 1000.0);
    pieces.send(Err(std::io::ErrorKind::ConnectionReset.into())).unwrap();
    assert!(reading.try_whole().await.is_err());
    stage.until(|telemetry| telemetry.flights() == 0).await;
    assert_eq!(stage.metric("forebay_inflight_bytes"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_slows_nobody() {
    let origin = large(100, false).await;
    let mut setting = Setting::before(origin.address);
    setting.transport = origin.transport();
    let stage = setting.start().await;
    let mut lazy = stage.piped_client().await;
    let _unread = lazy.send(request("GET", "/", &[])).await;
    stage.until(|telemetry| telemetry.flights() == 0).await;
    let mut client = stage.piped_client().await;
    let whole = tokio::time::timeout(Duration::from_secs(1), client.get("/")).await.unwrap();
    assert_eq!((whole.body.len(), origin.requests()), (100 * PIECE, 1));
}

#[tokio::test(start_paused = true)]
async fn windows_whose_readers_stall_together_stay_within_the_budget_but_for_a_piece_or_two_each() {
    const CLIENTS: usize = 8;
    const BUDGET: usize = 4 * PIECE;
    let origin = Origin::start(|_, _| async {
        let (pieces, answer) = streamed(200, &[("cache-control", "max-age=60")]);
        let piece = Bytes::from(vec![b'.'; PIECE]);
        for _ in 0..400 {
            pieces.send(data(piece.clone())).unwrap();
        }
        answer
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.transport = origin.transport();
    setting.coalescing.body_bytes_max = PIECE as u64;
    setting.coalescing.reader_stall_timeout = Duration::from_secs(3600);
    setting.proxy.inflight_bytes_max = BUDGET;
    let stage = setting.start().await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = stage.piped_client().await;
        let head = client.send(request("GET", &format!("/{number}"), &[])).await;
        clients.push((client, head));
    }
    let bytes = |count: usize| f64::from(u32::try_from(count).unwrap());
    let held = || stage.metric("forebay_inflight_bytes");
    stage.until(|_| held() > bytes(BUDGET)).await;
    let mut most = 0.0_f64;
    for _ in 0..500 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        most = most.max(held());
    }
    assert!(most <= bytes(BUDGET + CLIENTS * 2 * PIECE), "{most} bytes");
    // Who reads gets all of it nevertheless.
    let (_, head) = clients.pop().unwrap();
    assert_eq!(head.whole().await.body.len(), 400 * PIECE);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_too_large_to_keep_is_whole_for_who_gets_all_of_it() {
    use tokio::io::AsyncWriteExt;
    let gate = Gate::shut();
    let held = gate.clone();
    let origin = raw_origin(move |_, mut stream| {
        let gate = held.clone();
        async move {
            read_head(&mut stream).await;
            gate.passed().await;
            let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2000\r\n\r\n";
            for piece in [head, &"x".repeat(1000), &"y".repeat(1000)] {
                stream.write_all(piece.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    })
    .await;
    let mut setting = Setting::before(origin);
    setting.coalescing.body_bytes_max = 1000;
    let stage = setting.start().await;
    let clients: Vec<_> = (0..3).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until_waiters(2).await;
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().text().len(), 2000);
    }
    let ended = "forebay_request_duration_seconds_count{outcome=\"collapsed\",route=\"default\"}";
    stage.until(|_| stage.metric(ended) == 2.0).await;
    assert_eq!(stage.metric("forebay_responses_broken_total{route=\"default\"}"), 0.0);
}
