//! Bodies that have left the store while clients still read them, and clients who make use of that.

use crate::http2::{END_STREAM, GET, connect, frame, headers};
use crate::support::*;
use forebay::proxy::{Purge, Target};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::sleep;

/// Lies in pages.
const PAGED: usize = 4 << 20;

/// Lies in memory: too large for pages.
const LARGE: usize = 9 << 20;

/// Room for two of either.
const LIMIT: usize = 20 << 20;

const CLIENTS: usize = 8;

/// What one client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Asks once, and does not read.
    AtFirst,
    /// Reads a page, and then asks for another, which it does not read: that takes another way through the proxy.
    AfterAHit,
    /// Asks for a part.
    InPart,
    Http2,
}

/// The page with this number is made of it.
async fn origin(bytes: usize) -> Origin {
    Origin::start(move |_, request| async move {
        let number: u8 = request.uri().path()[1..].parse().unwrap();
        page(200, &[("cache-control", "max-age=3600")], vec![number; bytes])
    })
    .await
}

async fn stage(origin: &Origin) -> Stage {
    let mut setting = Setting::before(origin.address);
    setting.transport = origin.transport();
    setting.store.bytes_max = LIMIT as u64;
    setting.proxy.inflight_bytes_max = LIMIT;
    setting.server.send_timeout = None;
    setting.server.idle_timeout = Duration::from_secs(86_400);
    setting.server.header_read_timeout = Duration::from_secs(86_400);
    setting.start().await
}

fn count(stage: &Stage, series: &str) -> usize {
    stage.metric(series).to_string().parse().unwrap()
}

fn lingering(stage: &Stage) -> usize {
    count(stage, "forebay_lingering_bytes")
}

fn withdrawn(stage: &Stage) -> usize {
    count(stage, "forebay_withdrawn_bodies_total")
}

async fn is_given_back(stage: &Stage) {
    stage.until(|_| lingering(stage) == 0).await;
}

/// Asks for a page in one of the ways, and does not read it.
async fn ask(stage: &Stage, way: Way, number: usize) -> TcpStream {
    if way == Way::Http2 {
        let mut client = connect(stage).await;
        let target = format!("/{number}");
        let mut fields = GET.to_vec();
        fields.retain(|(name, _)| *name != ":path");
        fields.push((":path", &target));
        // All that the window of a stream can be.
        let window = frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        let bytes = [window, headers(1, END_STREAM, &fields)].concat();
        client.write_all(&bytes).await.unwrap();
        client.read_u8().await.unwrap();
        return client;
    }
    // A buffer that grew would take all of a page.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut client = socket.connect(stage.address).await.unwrap();
    let range = if way == Way::InPart { "range: bytes=1-\r\n" } else { "" };
    let request = format!("GET /{number} HTTP/1.1\r\nhost: site.example\r\n{range}\r\n");
    for _ in 0..if way == Way::AfterAHit { 2 } else { 0 } {
        client.write_all(request.as_bytes()).await.unwrap();
        read(&mut client).await;
    }
    client.write_all(request.as_bytes()).await.unwrap();
    read_head(&mut client).await;
    client
}

/// Reads an answer.
async fn read(client: &mut TcpStream) {
    let head = read_head(client).await;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    client.read_exact(&mut vec![0; length.parse().unwrap()]).await.unwrap();
}

/// How many of them get all of what they asked for: what they get is right in any case.
async fn whole(clients: Vec<TcpStream>, length: usize) -> usize {
    let mut count = 0;
    for (number, mut client) in clients.into_iter().enumerate() {
        let mut body = Vec::new();
        let mut piece = vec![0; 1 << 20];
        while body.len() < length {
            match client.read(&mut piece).await {
                Ok(0) | Err(_) => break,
                Ok(count) => body.extend_from_slice(&piece[..count]),
            }
        }
        assert!(body.iter().all(|byte| usize::from(*byte) == number), "client {number}");
        count += usize::from(body.len() == length);
    }
    count
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_read_what_has_left_the_store_holds_no_more_memory_than_is_set_apart() {
    for (bytes, way) in [PAGED, LARGE]
        .into_iter()
        .flat_map(|bytes| [Way::AtFirst, Way::AfterAHit, Way::InPart].map(|way| (bytes, way)))
    {
        let origin = origin(bytes).await;
        let stage = stage(&origin).await;
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            clients.push(ask(&stage, way, number).await);
            stage.until(|telemetry| telemetry.flights() == 0).await;
            assert!(lingering(&stage) <= LIMIT, "{bytes} {way:?}: {}", lingering(&stage));
        }
        // What is stored still leaves the store now.
        stage.proxy.purge(&Purge { target: Target::Everything, soft: false }).unwrap();
        stage.proxy.sweep().await;
        let (held, gone) = (lingering(&stage), withdrawn(&stage));
        assert!(held > 0 && held <= LIMIT, "{bytes} {way:?}: {held}");
        assert!(gone >= 1, "{bytes} {way:?}");
        assert_eq!(held / bytes + gone, CLIENTS, "{bytes} {way:?}: each body is counted");
        let length = if way == Way::InPart { bytes - 1 } else { bytes };
        let whole = whole(clients, length).await;
        assert_eq!(whole, CLIENTS - gone, "{bytes} {way:?}: the others see that it is not whole");
        is_given_back(&stage).await;
        assert_eq!(stage.get("/7").await.body.len(), bytes, "the proxy goes on");
    }
}

#[tokio::test(start_paused = true)]
async fn over_http2_it_is_the_same() {
    let origin = origin(PAGED).await;
    let stage = stage(&origin).await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        clients.push(ask(&stage, Way::Http2, number).await);
        stage.until(|telemetry| telemetry.flights() == 0).await;
    }
    stage.proxy.purge(&Purge { target: Target::Everything, soft: false }).unwrap();
    stage.proxy.sweep().await;
    let held = lingering(&stage);
    assert!(held > 0 && held <= LIMIT, "{held}");
    assert!(withdrawn(&stage) >= 1);
    drop(clients);
    is_given_back(&stage).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_is_not_withdrawn_however_many_read_it() {
    let origin = origin(PAGED).await;
    let mut setting = Setting::before(origin.address);
    setting.proxy.inflight_bytes_max = 5 << 20;
    setting.server.send_timeout = None;
    let stage = setting.start().await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        clients.push(ask(&stage, Way::AtFirst, number).await);
        stage.until(|telemetry| telemetry.flights() == 0).await;
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!((lingering(&stage), withdrawn(&stage)), (0, 0));
    assert_eq!(whole(clients, PAGED).await, CLIENTS);
}
