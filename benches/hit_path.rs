//! What a hit costs from the first byte of the request to the last of the answer: `cargo bench --bench hit_path`.
//!
//! Client and server talk through memory in one thread, so no network is measured. A bare hyper server that gives
//! the same body stands beside the proxy: what is above it is ours.

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use forebay::clock::Clock;
use forebay::proxy::{Client, Proxy, Route, Settings, Site};
use forebay::telemetry::Telemetry;
use forebay::upstream::Origin;
use forebay::{store, upstream};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const BODY_BYTES: [usize; 3] = [0, 1 << 10, 64 << 10];

fn main() {
    divan::main();
}

#[divan::bench(args = BODY_BYTES, sample_size = 500)]
fn bare_hyper(bencher: Bencher<'_, '_>, body_bytes: usize) {
    let runtime = runtime();
    let body = Bytes::from(vec![b'.'; body_bytes]);
    let service = service_fn(move |_: Request<Incoming>| {
        let response = Response::new(Full::new(body.clone()));
        async move { Ok::<_, Infallible>(response) }
    });
    let sender = runtime.block_on(connect(service));
    measure(bencher, &runtime, sender, body_bytes);
}

#[divan::bench(args = BODY_BYTES, sample_size = 500)]
fn hit(bencher: Bencher<'_, '_>, body_bytes: usize) {
    let runtime = runtime();
    let proxy = runtime.block_on(async { proxy(origin(body_bytes).await) });
    let client = Client { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), is_tls: false };
    let service = service_fn(move |request: Request<Incoming>| {
        let answered = proxy.serve(request, client, None);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let mut sender = runtime.block_on(connect(service));
    // The first is the miss.
    let (_, length) = runtime.block_on(get(&mut sender));
    assert_eq!(length, body_bytes);
    let (status, _) = runtime.block_on(get(&mut sender));
    assert!(status.contains("; hit"), "{status}");
    measure(bencher, &runtime, sender, body_bytes);
}

fn measure(
    bencher: Bencher<'_, '_>,
    runtime: &Runtime,
    mut sender: SendRequest<Empty<Bytes>>,
    body_bytes: usize,
) {
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        let (_, length) = runtime.block_on(get(&mut sender));
        assert_eq!(length, body_bytes);
    });
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime of one thread needs only an epoll")
}

/// A client connection, in memory, to a server with this service.
async fn connect<S>(service: S) -> SendRequest<Empty<Bytes>>
where
    S: HttpService<Incoming, Error = Infallible, Future: Send> + Send + 'static,
    S::ResBody: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(256 << 10);
    tokio::spawn(
        hyper::server::conn::http1::Builder::new()
            .writev(false)
            .serve_connection(TokioIo::new(theirs), service),
    );
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(ours))
        .await
        .expect("a handshake of HTTP/1.1 sends nothing");
    tokio::spawn(connection);
    sender
}

/// One request. Returns `Cache-Status` and the length of the body.
async fn get(sender: &mut SendRequest<Empty<Bytes>>) -> (String, usize) {
    let request = Request::get("/articles/2026/01/a-title-of-some-length?page=2")
        .header("host", "a.example")
        .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101")
        .header("accept", "text/html,application/xhtml+xml,*/*;q=0.8")
        .header("accept-encoding", "gzip, deflate, br, zstd")
        .body(Empty::new())
        .expect("the parts are well-formed");
    sender.ready().await.expect("the connection stays open");
    let response = sender.send_request(request).await.expect("the server answers");
    let (head, body) = response.into_parts();
    let status = head.headers.get("cache-status").map_or("", |value| value.to_str().unwrap_or(""));
    let body = body.collect().await.expect("the body has an end").to_bytes();
    (status.to_owned(), body.len())
}

/// A proxy with the built-in settings before this origin.
fn proxy(origin: SocketAddr) -> Arc<Proxy> {
    let origin = Origin { https: false, host: origin.ip().to_string(), port: origin.port() };
    let settings = Settings { routes: vec![Route::plain(None, "/")], ..Settings::default() };
    let telemetry = Telemetry::new(false);
    let site = Site::new(settings, vec![upstream::Settings::named("origin", vec![origin])], &telemetry)
        .expect("an origin without TLS needs no certificates");
    Proxy::new(site, &store::Settings::default(), telemetry, Clock::System)
}

/// An upstream whose one answer may be stored for an hour.
async fn origin(body_bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let address = listener.local_addr().expect("a listener has an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |_: Request<Incoming>| async move {
                let body = Full::new(Bytes::from(vec![b'.'; body_bytes]));
                Response::builder()
                    .header("cache-control", "public, max-age=3600")
                    .header("content-type", "text/html")
                    .header("etag", "\"a\"")
                    .body(body)
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}
