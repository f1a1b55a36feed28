//! The built program under load: many idle connections, and more to store than fits.
//!
//! What is measured is printed (`cargo test --test load -- --nocapture`); what is asserted is generous, because the build is
//! not optimised and the machine may be busy.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests may fail as tests do")]
#![allow(unreachable_pub, reason = "what the modules of a test share is seen nowhere else")]
#![allow(clippy::cast_precision_loss, reason = "what is counted here is far from where that begins")]
#![allow(missing_docs, reason = "the names of tests are sentences")]
#![allow(clippy::print_stdout, reason = "measurements are for people")]

#[path = "process/support.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use support::*;
use tokio::time::Instant;

/// Connections that do nothing.
const IDLE: usize = 10_000;

/// Over TLS, where each costs a handshake.
const IDLE_OVER_TLS: usize = 1000;

/// Files that the test has open besides, or that the program keeps from clients.
const FILES_APART: u64 = 1100;

/// What an idle connection may cost, whatever the build.
const IDLE_BYTES_MAX: u64 = 48 << 10;

/// Over TLS.
const IDLE_TLS_BYTES_MAX: u64 = 96 << 10;

/// How long it may take to accept all of them, on a machine that has other things to do.
const ACCEPT_MAX: Duration = Duration::from_secs(30);

/// What a client in between may wait for a hit.
const HIT_MAX: Duration = Duration::from_millis(250);

const PATIENCE: &str = "[server]\nheader_read_timeout = \"10m\"\nidle_timeout = \"20m\"\n";

/// Held as long as there is a crowd: the limit on open files is one for all tests, and a hit is timed beside one crowd.
static CROWDED: Mutex<()> = Mutex::new(());

fn alone_with_a_crowd() -> MutexGuard<'static, ()> {
    CROWDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As many as the limit on open files allows.
fn crowd_of(wanted: usize) -> usize {
    let limit = forebay::demo::raise_file_limit().unwrap();
    let possible = usize::try_from(limit.saturating_sub(FILES_APART)).unwrap();
    if possible < wanted {
        println!("the limit on open files is {limit}: {possible} connections instead of {wanted}");
    }
    wanted.min(possible)
}

/// What the process needs more than before, for each of so many.
fn growth_each(forebay: &Forebay, before: u64, count: usize) -> u64 {
    forebay.resident_bytes().saturating_sub(before) / count as u64
}

/// Rounds of hits on a connection of their own, one after the other; the slowest of the best round. Whoever is held up by the crowd
/// is so in each, by a busy machine in some.
fn slowest_hit(address: SocketAddr) -> Duration {
    let mut client = Client::connect(address);
    let mut hit = || {
        let started = Instant::now();
        assert_eq!(client.get("/").body, "hello");
        started.elapsed()
    };
    (0..5).map(|_| (0..40).map(|_| hit()).max().unwrap()).min().unwrap()
}

/// Lets all of them ask once, and tells what each costs when they idle.
fn check_idle(forebay: &Forebay, crowd: usize, bytes_max: u64, kind: &str, ask: impl FnOnce()) {
    let before = forebay.resident_bytes();
    ask();
    forebay.until_metric("forebay_connections", |count| count >= crowd as f64);
    let each = growth_each(forebay, before, crowd);
    let slowest = slowest_hit(forebay.data);
    println!("{crowd} idle connections over {kind}: {each} bytes each; slowest hit beside them {slowest:?}");
    assert!(each < bytes_max, "{each} bytes for each idle connection over {kind}");
    assert!(slowest < HIT_MAX, "{slowest:?} for a hit beside {crowd} idle connections");
}

#[test]
fn ten_thousand_idle_connections_cost_little_memory_and_no_service() {
    let _alone = alone_with_a_crowd();
    let crowd = crowd_of(IDLE);
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let forebay = Forebay::before(&origin, PATIENCE);
    assert_eq!(Client::connect(forebay.data).get("/").body, "hello");
    forebay.until_metric("forebay_connections", |count| count < 1.0);
    let before = forebay.resident_bytes();
    let started = Instant::now();
    let mut clients: Vec<_> = (0..crowd).map(|_| TcpStream::connect(forebay.data).unwrap()).collect();
    forebay.until_metric("forebay_connections", |count| count >= crowd as f64);
    let accepted = started.elapsed();
    let each = growth_each(&forebay, before, crowd);
    println!("{crowd} connections accepted in {accepted:?}; {each} bytes for each that has sent nothing");
    assert!(accepted < ACCEPT_MAX, "{accepted:?} to accept {crowd} connections");
    assert!(each < IDLE_BYTES_MAX, "{each} bytes for each connection that has sent nothing");

    for client in &mut clients {
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    }
    let mut answer = [0; 1024];
    for client in &mut clients {
        assert!(client.read(&mut answer).unwrap() > 0);
    }
    let each = growth_each(&forebay, before, crowd);
    let slowest = slowest_hit(forebay.data);
    println!("{each} bytes for each that idles after a request; slowest hit beside them {slowest:?}");
    assert!(each < IDLE_BYTES_MAX, "{each} bytes for each idle connection");
    assert!(slowest < HIT_MAX, "{slowest:?} for a hit beside {crowd} idle connections");
    drop(clients);
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

#[test]
fn idle_connections_over_http2_and_tls_cost_little() {
    let _alone = alone_with_a_crowd();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let forebay = Forebay::before(&origin, PATIENCE);
    assert_eq!(Client::connect(forebay.data).get("/").body, "hello");
    let mut held = Vec::new();
    let crowd = crowd_of(IDLE);
    check_idle(&forebay, crowd, IDLE_BYTES_MAX, "HTTP/2", || {
        held = (0..crowd).map(|_| http2_after_a_request(forebay.data)).collect();
    });
    drop(held);
    assert_eq!(forebay.stopped_by("TERM"), 0);

    let identity = Identity::new("a");
    let forebay = Forebay::before(&origin, &format!("{PATIENCE}{}", identity.configuration()));
    let before = forebay.resident_bytes();
    let clients = runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..IDLE_OVER_TLS {
            clients.push(tls_after_a_request(&identity, forebay.data).await);
        }
        clients
    });
    let each = growth_each(&forebay, before, IDLE_OVER_TLS);
    println!("{IDLE_OVER_TLS} idle connections over TLS: {each} bytes each");
    assert!(each < IDLE_TLS_BYTES_MAX, "{each} bytes for each idle connection over TLS");
    runtime.block_on(async { drop(clients) });
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

async fn tls_after_a_request(
    identity: &Identity,
    address: SocketAddr,
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = identity.connect(address, &[]).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
    stream
}

/// A connection on which one request over HTTP/2 was made and answered.
fn http2_after_a_request(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    // :method GET, :scheme http, :path / of the static table, and :authority as a literal.
    stream.write_all(b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x01\x01a").unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        std::io::copy(&mut (&mut stream).take(u64::from(length)), &mut std::io::sink()).unwrap();
        // The end of stream 1.
        if head[8] == 1 && head[4] & 1 == 1 {
            return stream;
        }
    }
}

const FRESH_FOR_A_DAY: &str = "Cache-Control: max-age=86400\r\n";

/// Small responses, each of which is stored.
const SMALL: usize = 30_000;
const SMALL_BYTES: usize = 1024;

#[test]
fn the_store_weighs_small_responses_as_the_process_does() {
    let body = ".".repeat(SMALL_BYTES);
    // None may expire before the last is stored.
    let origin = Origin::start(move |exchange| exchange.answer_with(FRESH_FOR_A_DAY, &body));
    let forebay = Forebay::before(&origin, "[store]\nbytes_max = \"1GiB\"\n");
    let mut client = Client::connect(forebay.data);
    let mut ask = |pages: std::ops::Range<usize>| {
        for page in pages {
            assert_eq!(client.get(&format!("/{page}")).body.len(), SMALL_BYTES);
        }
    };
    // What a process needs once.
    ask(0..1000);
    let weight = |forebay: &Forebay| forebay.metric("forebay_store_bytes");
    let (before, weight_before) = (forebay.resident_bytes(), weight(&forebay));
    ask(1000..1000 + SMALL);
    forebay.until_metric("forebay_store_entries", |count| count >= (1000 + SMALL) as f64);
    let grown = (forebay.resident_bytes() - before) as f64;
    let weight = weight(&forebay) - weight_before;
    println!(
        "{SMALL} responses of {SMALL_BYTES} bytes: {:.0} each in memory, {:.0} by the store",
        grown / SMALL as f64,
        weight / SMALL as f64
    );
    assert!(grown < 1.1 * weight && weight < 1.25 * grown, "{grown} bytes are weighed as {weight}");
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

/// What may be stored, and what is pushed through.
const STORE_BYTES: u64 = 32 << 20;
const BODY_BYTES: usize = 64 << 10;
const PUSHED_BYTES: usize = 1 << 30;

/// What the process may need besides what it stores: the program itself, connections, the allocator's loss, and bodies that
/// are in flight.
const OVERHEAD_BYTES_MAX: u64 = 80 << 20;

#[test]
fn a_full_store_evicts_and_the_process_does_not_grow() {
    let body = ".".repeat(BODY_BYTES);
    let origin = Origin::start(move |exchange| exchange.answer(&body));
    let forebay = Forebay::before(&origin, &format!("[store]\nbytes_max = \"{}MiB\"\n", STORE_BYTES >> 20));
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let address = forebay.data;
            std::thread::spawn(move || {
                let mut connection = Client::connect(address);
                for page in 0..PUSHED_BYTES / BODY_BYTES / 4 {
                    assert_eq!(connection.get(&format!("/{client}/{page}")).body.len(), BODY_BYTES);
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    let (stored, evicted) =
        (forebay.metric("forebay_store_bytes"), forebay.metric("forebay_evictions_total{cause=\"size\"}"));
    let peak = forebay.peak_memory_bytes();
    println!(
        "{} MiB pushed through a store of {} MiB: peak {} MiB, {} MiB stored, {evicted} evicted",
        PUSHED_BYTES >> 20,
        STORE_BYTES >> 20,
        peak >> 20,
        stored / f64::from(1 << 20)
    );
    assert!(stored > STORE_BYTES as f64 / 2.0 && stored <= STORE_BYTES as f64, "{stored} bytes are stored");
    assert!(evicted > 10_000.0, "{evicted} were evicted");
    assert!(peak < STORE_BYTES + OVERHEAD_BYTES_MAX, "{} MiB at most", peak >> 20);
    // The newest is there, the oldest is not.
    let mut client = Client::connect(forebay.data);
    assert!(client.get("/0/0").field("cache-status").contains("fwd=uri-miss"));
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

/// Clients that do not read, what each asks for, and what may be in flight, or linger with them.
const LAZY: usize = 100;
const LAZY_BODY_BYTES: usize = 3 << 20;
const INFLIGHT_BYTES: u64 = 16 << 20;

/// Bytes of the file in memory in which large bodies lie, which are not among those that are resident.
#[cfg(target_os = "linux")]
fn paged_bytes(forebay: &Forebay) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files =
        std::fs::read_dir(format!("/proc/{}/fd", forebay.pid)).unwrap().flatten().map(|entry| entry.path());
    let mut bodies = files.filter(|file| {
        std::fs::read_link(file).is_ok_and(|to| to.to_string_lossy().contains("forebay-bodies"))
    });
    bodies.next().map_or(0, |file| std::fs::metadata(file).unwrap().blocks() * 512)
}

#[cfg(target_os = "linux")]
#[test]
fn clients_who_do_not_read_hold_no_more_memory_than_is_set_apart() {
    let body = ".".repeat(LAZY_BODY_BYTES);
    let origin = Origin::start(move |exchange| exchange.answer(&body));
    let limits = format!(
        "[store]\nbytes_max = \"{}MiB\"\n[proxy]\ninflight_bytes_max = \"{}MiB\"\n[server]\nsend_timeout = \"off\"\n",
        STORE_BYTES >> 20,
        INFLIGHT_BYTES >> 20
    );
    let forebay = Forebay::before(&origin, &limits);
    let mut most = 0;
    let lazy: Vec<_> = (0..LAZY)
        .map(|page| {
            let mut client = Client::connect(forebay.data);
            socket2::SockRef::from(client.stream.get_ref()).set_recv_buffer_size(64 << 10).unwrap();
            client.send(&format!("GET /{page} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            client.head();
            forebay.until_metric("forebay_flights", |flights| flights == 0.0);
            assert!(forebay.metric("forebay_lingering_bytes") <= INFLIGHT_BYTES as f64);
            most = most.max(forebay.resident_bytes() + paged_bytes(&forebay));
            client
        })
        .collect();
    println!(
        "{LAZY} clients do not read {} MiB each: {} MiB at most, with a store of {} MiB and {} MiB for those who read what left it",
        LAZY_BODY_BYTES >> 20,
        most >> 20,
        STORE_BYTES >> 20,
        INFLIGHT_BYTES >> 20
    );
    assert!(most < STORE_BYTES + INFLIGHT_BYTES + OVERHEAD_BYTES_MAX, "{} MiB", most >> 20);
    drop(lazy);
    forebay.until_metric("forebay_lingering_bytes", |bytes| bytes == 0.0);
    assert_eq!(forebay.stopped_by("TERM"), 0);
}
