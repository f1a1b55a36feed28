//! Clients that do not read what they asked for: they lose it, and hold nobody else up.

use crate::http2::{END_STREAM, GET, connect, frame, headers};
use crate::support::*;
use bytes::Bytes;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

const PIECE: usize = 64 << 10;

/// More than any buffer on the way holds.
const LARGE: usize = 2000;

/// So many may be stored, and are more than a client's socket holds that is not read.
const STORED: usize = 256;

/// An origin with a large page, one that comes bit by bit and one that is short, none of which may be stored.
async fn origin() -> Origin {
    Origin::start(|_, request| async move {
        let fields = [("cache-control", "no-store")];
        let (pieces, answer) = streamed(200, &fields);
        match request.uri().path() {
            "/large" => {
                let piece = Bytes::from(vec![b'.'; PIECE]);
                for _ in 0..LARGE {
                    pieces.send(data(piece.clone())).unwrap();
                }
            }
            "/block" => return page(200, &fields, vec![b'.'; 4 * PIECE]),
            "/trickle" => drop(tokio::spawn(async move {
                for _ in 0..200 {
                    sleep(Duration::from_secs(1)).await;
                    let _ = pieces.send(data(vec![b'.'; 1000]));
                }
            })),
            _ => return page(200, &fields, "short"),
        }
        answer
    })
    .await
}

/// A proxy whose upstream has so many places, for each of which one waits as long as it takes.
async fn stage(origin: &Origin, places: usize, send_timeout: Option<Duration>) -> Stage {
    stage_with(origin, places, send_timeout, None).await
}

/// The same, where clients must take so many bytes for each second that they are waited for.
async fn stage_with(
    origin: &Origin,
    places: usize,
    send_timeout: Option<Duration>,
    send_rate_min: Option<u64>,
) -> Stage {
    let mut setting = Setting::before(origin.address);
    setting.transport = origin.transport();
    setting.upstream.concurrency_max = places;
    setting.upstream.queue_timeout = Duration::from_secs(86_400);
    setting.server.send_timeout = send_timeout;
    setting.server.send_rate_min = send_rate_min;
    setting.start().await
}

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

async fn ask(stage: &Stage, target: &str) -> TcpStream {
    ask_over(TcpStream::connect(stage.address).await.unwrap(), target).await
}

/// Over a connection that holds little, and in which nothing takes time but what takes virtual time.
async fn ask_over_pipe(stage: &Stage, target: &str) -> DuplexStream {
    ask_over(stage.pipe(), target).await
}

async fn ask_over<S: AsyncWrite + Unpin>(mut client: S, target: &str) -> S {
    let request = format!("GET {target} HTTP/1.1\r\nhost: site.example\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    client
}

fn timeouts(stage: &Stage) -> f64 {
    stage.metric("forebay_send_timeouts_total")
}

#[track_caller]
fn check_waited(started: Instant) {
    let waited = started.elapsed().as_secs();
    assert!((59..=62).contains(&waited), "{waited} s");
}

#[tokio::test(start_paused = true)]
async fn whoever_stops_reading_loses_the_body_and_the_place_at_the_upstream() {
    let origin = origin().await;
    let stage = stage(&origin, 1, MINUTE).await;
    let mut lazy = ask(&stage, "/large").await;
    read_head(&mut lazy).await;
    let started = Instant::now();
    assert_eq!(stage.get("/other").await.text(), "short");
    check_waited(started);
    assert_eq!(timeouts(&stage), 1.0);
    assert_eq!(stage.metric("forebay_responses_broken_total{route=\"default\"}"), 1.0);
    let end = lazy.read_to_end(&mut Vec::new()).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "it does not look whole");
}

#[tokio::test(start_paused = true)]
async fn whoever_reads_slowly_but_steadily_gets_all() {
    let origin = origin().await;
    let stage = stage(&origin, 1, MINUTE).await;
    let mut slow = ask_over_pipe(&stage, "/large").await;
    read_head(&mut slow).await;
    let (mut buffer, mut read) = (vec![0; 4 << 20], 0);
    // Chunks have lines around them.
    while read < LARGE * PIECE {
        sleep(Duration::from_secs(20)).await;
        read += slow.read_exact(&mut buffer[..(4 << 20).min(LARGE * PIECE - read)]).await.unwrap();
    }
    assert_eq!(timeouts(&stage), 0.0);
}

#[tokio::test(start_paused = true)]
async fn whoever_takes_a_little_now_and_then_is_seen_to_take_it() {
    let origin = origin().await;
    let stage = stage(&origin, 1, MINUTE).await;
    // Of a buffer that grows, the client's kernel says only by sixteenths that there is room again.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut slow = socket.connect(stage.address).await.unwrap();
    slow.write_all(b"GET /large HTTP/1.1\r\nhost: site.example\r\n\r\n").await.unwrap();
    read_head(&mut slow).await;
    let (started, mut sip) = (Instant::now(), vec![0; 16 << 10]);
    // 4 KiB/s, far less than what the kernel keeps in a buffer that it lets grow.
    while started.elapsed() < Duration::from_secs(1200) {
        sleep(Duration::from_secs(4)).await;
        slow.read_exact(&mut sip).await.unwrap();
    }
    assert_eq!(timeouts(&stage), 0.0);
}

/// Reads so much of the large page after each pause, and says how much it got.
async fn sip(mut client: DuplexStream, bytes: usize, pause: Duration) -> std::io::Result<usize> {
    let (mut buffer, mut read) = (vec![0; bytes], 0);
    while read < LARGE * PIECE {
        sleep(pause).await;
        let sip = bytes.min(LARGE * PIECE - read);
        read += client.read_exact(&mut buffer[..sip]).await?;
    }
    Ok(read)
}

#[tokio::test(start_paused = true)]
async fn whoever_reads_more_slowly_than_permitted_loses_the_body_and_the_place_at_the_upstream() {
    let origin = origin().await;
    for send_timeout in [MINUTE, None] {
        let stage = stage_with(&origin, 1, send_timeout, Some(1 << 20)).await;
        // 512 KiB/s, and never a pause that is long.
        let mut slow = ask_over_pipe(&stage, "/large").await;
        read_head(&mut slow).await;
        let slow = tokio::spawn(sip(slow, 1 << 20, Duration::from_secs(2)));
        let started = Instant::now();
        assert_eq!(stage.get("/other").await.text(), "short", "its place is free");
        // At this pace they are the ten of grace.
        let waited = started.elapsed().as_secs();
        assert!((18..=22).contains(&waited), "{waited} s");
        assert!(slow.await.unwrap().is_err(), "it does not look whole");
        assert_eq!(timeouts(&stage), 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_reads_as_fast_as_asked_gets_all_with_pauses_in_between() {
    let origin = origin().await;
    let stage = stage_with(&origin, 1, MINUTE, Some(1 << 20)).await;
    let steady = ask_over_pipe(&stage, "/large").await;
    assert_eq!(sip(steady, 4 << 20, Duration::from_secs(2)).await.unwrap(), LARGE * PIECE);
    let in_bursts = ask_over_pipe(&stage, "/large").await;
    assert_eq!(sip(in_bursts, 64 << 20, Duration::from_secs(9)).await.unwrap(), LARGE * PIECE);
    assert_eq!(timeouts(&stage), 0.0);
}

#[tokio::test(start_paused = true)]
async fn without_the_limit_a_client_may_read_when_it_likes() {
    let origin = origin().await;
    let stage = stage(&origin, 1, None).await;
    let mut lazy = ask_over_pipe(&stage, "/large").await;
    read_head(&mut lazy).await;
    sleep(Duration::from_secs(3600)).await;
    let (mut buffer, mut read) = (vec![0; 1 << 20], 0);
    while read < LARGE * PIECE {
        match lazy.read(&mut buffer).await.unwrap() {
            0 => panic!("closed after {read} bytes"),
            count => read += count,
        }
    }
    assert_eq!(timeouts(&stage), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_stored_body_is_not_held_for_a_client_that_never_reads() {
    let origin = Origin::start(|_, _| async {
        page(200, &[("cache-control", "max-age=86400")], vec![b'.'; STORED * PIECE])
    })
    .await;
    let stage = stage(&origin, 1, MINUTE).await;
    assert_eq!(stage.piped_client().await.get("/").await.body.len(), STORED * PIECE);
    stage.until(|telemetry| telemetry.connections() == 0).await;
    let mut lazy = ask(&stage, "/").await;
    stage.until(|telemetry| telemetry.connections() == 1).await;
    let started = Instant::now();
    while stage.telemetry.connections() > 0 {
        sleep(Duration::from_millis(100)).await;
    }
    check_waited(started);
    assert_eq!((timeouts(&stage), origin.requests()), (1.0, 1));
    assert!(lazy.read_to_end(&mut Vec::new()).await.is_err(), "it does not look whole");
}

/// A frame, without those that are answered on the way: pings.
async fn next(stream: &mut TcpStream) -> (u8, u8, u32, Vec<u8>) {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        if (head[3], head[4]) == (6, 0) {
            stream.write_all(&frame(6, 1, 0, &payload)).await.unwrap();
            continue;
        }
        return (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload);
    }
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    let mut fields = GET;
    fields[2].1 = path;
    headers(stream, END_STREAM, &fields)
}

fn window(stream: u32, bytes: usize) -> Vec<u8> {
    frame(8, 0, stream, &u32::try_from(bytes).unwrap().to_be_bytes())
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_a_window_is_reset_and_the_others_go_on() {
    let origin = origin().await;
    let stage = stage(&origin, 2, MINUTE).await;
    let mut client = connect(&stage).await;
    client.write_all(&window(0, 1 << 30)).await.unwrap();
    client.write_all(&get(1, "/large")).await.unwrap();
    client.write_all(&get(3, "/trickle")).await.unwrap();
    stage.until(|_| origin.requests() == 2).await;
    let (started, waiting) = (Instant::now(), stage.spawn_get("/other", &[]));
    let served = tokio::spawn(async move { (waiting.await.unwrap(), started.elapsed()) });
    let (mut trickled, mut is_reset) = (0, false);
    loop {
        match next(&mut client).await {
            (0, flags, 3, bytes) => {
                trickled += bytes.len();
                if flags & END_STREAM != 0 {
                    break;
                }
                client.write_all(&window(3, bytes.len())).await.unwrap();
            }
            (3, _, stream, _) => {
                assert_eq!(stream, 1);
                check_waited(started);
                is_reset = true;
            }
            _ => {}
        }
    }
    assert_eq!((trickled, is_reset), (200_000, true));
    let (answer, waited) = served.await.unwrap();
    assert_eq!(answer.text(), "short");
    assert!((59..=62).contains(&waited.as_secs()), "{waited:?}");
    assert_eq!(timeouts(&stage), 1.0);
    assert_eq!(stage.metric("forebay_responses_broken_total{route=\"default\"}"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_window_grows_slowly_but_steadily_gets_all() {
    // 16 KiB each half a minute are 546 bytes each second.
    for rate in [None, Some(500)] {
        let (read, timeouts) = open_slowly(rate).await;
        assert_eq!((read, timeouts), (4 * PIECE, 0.0), "{rate:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_window_grows_more_slowly_than_permitted_is_reset() {
    let (read, timeouts) = open_slowly(Some(1000)).await;
    assert!(read < 4 * PIECE, "{read}");
    assert_eq!(timeouts, 1.0);
}

/// Reads a body whose window is opened by 16 KiB every half a minute. Returns how much came, and the time-outs.
async fn open_slowly(rate: Option<u64>) -> (usize, f64) {
    let origin = origin().await;
    let stage = stage_with(&origin, 1, MINUTE, rate).await;
    let mut client = connect(&stage).await;
    client.write_all(&window(0, 1 << 30)).await.unwrap();
    client.write_all(&get(1, "/block")).await.unwrap();
    let mut read = 0;
    while read < 4 * PIECE {
        match next(&mut client).await {
            (0, _, 1, bytes) => {
                read += bytes.len();
                // The window is used up: nothing comes but pings.
                if read >= 65_535 && (read - 65_535).is_multiple_of(16 << 10) {
                    if let Ok(frame) = timeout(Duration::from_secs(30), next(&mut client)).await {
                        assert_eq!(frame.0, 3, "reset, and nothing else");
                        break;
                    }
                    client.write_all(&window(1, 16 << 10)).await.unwrap();
                }
            }
            (3, ..) => break,
            _ => {}
        }
    }
    (read, timeouts(&stage))
}
