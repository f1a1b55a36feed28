//! The stage: an origin that does as it is told, a proxy before it, and clients. All parties live in one current-thread
//! runtime with a paused clock, so that time moves only when everybody waits.

#![allow(dead_code, reason = "each test binary uses its own part of it")]

use bytes::Bytes;
use forebay::clock::Clock;
use forebay::policy::{KeySpec, Rules};
use forebay::proxy::{self, Coalescing, HostHeader, Proxy, Route, Site};
use forebay::server::{self, Server, Workers};
use forebay::telemetry::Telemetry;
use forebay::{store, upstream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};

/// Wall time at the beginning of each story.
pub const EPOCH: u64 = 1_900_000_000;

/// What a pipe holds that nobody has read.
const PIPE_BYTES: usize = 64 << 10;

pub type Page = Response<BoxBody<Bytes, std::io::Error>>;

/// A gate that a scripted origin waits at until the story opens it.
#[derive(Clone)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    pub fn shut() -> Self {
        Self(watch::Sender::new(false))
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub async fn passed(&self) {
        self.0.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

/// An origin that answers as its script says, and counts.
pub struct Origin {
    pub address: SocketAddr,
    requests: Arc<AtomicUsize>,
    seen: Arc<parking_lot::Mutex<Vec<(Method, String, HeaderMap)>>>,
    pipes: mpsc::UnboundedSender<DuplexStream>,
}

impl Origin {
    /// `script` gets each request with its number, from 1.
    pub async fn start<F>(script: impl Fn(usize, Request<Incoming>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Page> + Send + 'static,
    {
        let listener = server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let (script, counter, noted) = (Arc::new(script), Arc::clone(&requests), Arc::clone(&seen));
        let service = service_fn(move |request: Request<Incoming>| {
            let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
            noted.lock().push((
                request.method().clone(),
                request.uri().to_string(),
                request.headers().clone(),
            ));
            let answer = script(number, request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        // It would read the machine's clock, which is not that of the story.
        http.auto_date_header(false);
        let (pipes, mut piped) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let service = service.clone();
                tokio::select! {
                    accepted = listener.accept() => {
                        let io = TokioIo::new(accepted.unwrap().0);
                        tokio::spawn(http.serve_connection(io, service).with_upgrades());
                    }
                    Some(pipe) = piped.recv() => {
                        tokio::spawn(http.serve_connection(TokioIo::new(pipe), service).with_upgrades());
                    }
                }
            }
        });
        Self { address, requests, seen, pipes }
    }

    /// An origin that has one answer, and fails whoever asks again.
    pub async fn once(answer: Page) -> Self {
        let answer = parking_lot::Mutex::new(Some(answer));
        Self::start(move |_, _| {
            let answer = answer.lock().take().unwrap();
            async move { answer }
        })
        .await
    }

    /// An origin whose answers to these requests, numbered from 1, wait at the gate.
    pub async fn behind(
        gate: &Gate,
        held: impl RangeBounds<usize> + Send + Sync + 'static,
        answer: impl Fn(usize) -> Page + Send + Sync + 'static,
    ) -> Self {
        Self::holding(gate, move |number, _| held.contains(&number), move |number, _| answer(number)).await
    }

    /// The same where it depends on the request, too, whether it is held, and how it is answered.
    pub async fn holding(
        gate: &Gate,
        is_held: impl Fn(usize, &Request<Incoming>) -> bool + Send + Sync + 'static,
        answer: impl Fn(usize, &Request<Incoming>) -> Page + Send + Sync + 'static,
    ) -> Self {
        let gate = gate.clone();
        Self::start(move |number, request| {
            let (gate, is_held, answer) = (gate.clone(), is_held(number, &request), answer(number, &request));
            async move {
                if is_held {
                    gate.passed().await;
                }
                answer
            }
        })
        .await
    }

    /// An origin all of whose answers wait at the gate.
    pub async fn holding_all(
        gate: &Gate,
        answer: impl Fn(&Request<Incoming>) -> Page + Send + Sync + 'static,
    ) -> Self {
        Self::holding(gate, |_, _| true, move |_, request| answer(request)).await
    }

    /// An origin whose first answers each wait for a gate of their own; all say their number.
    pub async fn gated(gates: &[Gate], headers: &'static [(&'static str, &'static str)]) -> Self {
        let gates = gates.to_vec();
        Self::start(move |number, _| {
            let gate = gates.get(number - 1).cloned();
            async move {
                if let Some(gate) = gate {
                    gate.passed().await;
                }
                page(200, headers, format!("answer {number}"))
            }
        })
        .await
    }

    /// An origin whose first answer comes in pieces; the others say their number.
    pub async fn in_pieces(
        headers: &'static [(&'static str, &'static str)],
    ) -> (mpsc::UnboundedSender<std::io::Result<Frame<Bytes>>>, Self) {
        Self::in_pieces_then(headers, headers).await
    }

    /// The same where the fields of the others are these.
    pub async fn in_pieces_then(
        first: &[(&str, &str)],
        others: &'static [(&'static str, &'static str)],
    ) -> (mpsc::UnboundedSender<std::io::Result<Frame<Bytes>>>, Self) {
        let (pieces, answer) = streamed(200, first);
        let answer = parking_lot::Mutex::new(Some(answer));
        let origin = Self::start(move |number, _| {
            let first = answer.lock().take();
            async move { first.unwrap_or_else(|| page(200, others, format!("answer {number}"))) }
        })
        .await;
        (pieces, origin)
    }

    /// An origin that answers each request with this many bytes of `.`, cacheable for a minute.
    pub async fn cacheable(bytes: usize) -> Self {
        Self::start(move |number, request| async move {
            page(
                200,
                &[("cache-control", "max-age=60")],
                format!("{} #{number} {}", request.uri(), ".".repeat(bytes)),
            )
        })
        .await
    }

    /// Connections to it without the kernel, whose buffers know no virtual time.
    pub fn transport(&self) -> upstream::Transport {
        let pipes = self.pipes.clone();
        upstream::Transport::Memory(Arc::new(move |_| {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            pipes.send(theirs).unwrap();
            Box::pin(async move { Ok(ours) })
        }))
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// The request with this number, from 1.
    pub fn seen(&self, number: usize) -> (Method, String, HeaderMap) {
        self.seen.lock()[number - 1].clone()
    }
}

/// A page with these fields.
pub fn page(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Page {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed();
    with_headers(status, headers, body)
}

/// A page whose pieces come from a channel; an error in it breaks the connection off.
pub fn streamed(
    status: u16,
    headers: &[(&str, &str)],
) -> (mpsc::UnboundedSender<std::io::Result<Frame<Bytes>>>, Page) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    (sender, with_headers(status, headers, BodyExt::boxed(StreamBody::new(stream))))
}

pub fn data(bytes: impl Into<Bytes>) -> std::io::Result<Frame<Bytes>> {
    Ok(Frame::data(bytes.into()))
}

fn with_headers(status: u16, headers: &[(&str, &str)], body: BoxBody<Bytes, std::io::Error>) -> Page {
    let mut page = Response::new(body);
    *page.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        page.headers_mut()
            .append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
    }
    page
}

/// What is different from the built-in defaults in a story.
pub struct Setting {
    pub rules: Rules,
    pub coalescing: Coalescing,
    pub key: KeySpec,
    pub host_header: HostHeader,
    pub upstream: upstream::Settings,
    pub proxy: proxy::Settings,
    pub store: store::Settings,
    pub server: server::Settings,
    /// The host that the route serves; `None`: any.
    pub host: Option<&'static str>,
    /// The path prefix that the route serves, and takes away.
    pub stripped: Option<&'static str>,
    /// Over what the origin is reached.
    pub transport: upstream::Transport,
}

impl Setting {
    pub fn before(origin: SocketAddr) -> Self {
        let origin = upstream::Origin { https: false, host: origin.ip().to_string(), port: origin.port() };
        Self {
            rules: Rules::default(),
            coalescing: Coalescing::default(),
            key: KeySpec::default(),
            host_header: HostHeader::default(),
            upstream: upstream::Settings::named("origin", vec![origin]),
            proxy: proxy::Settings::default(),
            store: store::Settings::default(),
            server: server::Settings::default(),
            host: None,
            stripped: None,
            transport: upstream::Transport::default(),
        }
    }

    pub async fn start(self) -> Stage {
        // The proxy's dice (jitter, the choice of an origin, early refresh) fall in this thread, and each time alike.
        fastrand::seed(EPOCH);
        let route = Route {
            rules: self.rules,
            coalescing: self.coalescing,
            key: self.key,
            host_header: self.host_header,
            strip_prefix: self.stripped.is_some(),
            ..Route::plain(self.host.map(str::to_owned), self.stripped.unwrap_or("/"))
        };
        let settings = proxy::Settings { routes: vec![route], ..self.proxy };
        let telemetry = Telemetry::new(false);
        let site = Site::over(settings, vec![self.upstream], &telemetry, &self.transport).unwrap();
        let proxy = Proxy::new(site, &self.store, Arc::clone(&telemetry), Clock::simulated(EPOCH));
        let listener = server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::start(vec![listener], Workers::none(), None, &self.server, &proxy, &telemetry);
        Stage { address, proxy, telemetry, server }
    }
}

/// A proxy on its stage.
pub struct Stage {
    pub address: SocketAddr,
    pub proxy: Arc<Proxy>,
    pub telemetry: Arc<Telemetry>,
    pub server: Server,
}

impl Stage {
    /// A proxy with the built-in rules before this origin.
    pub async fn before(origin: &Origin) -> Self {
        Setting::before(origin.address).start().await
    }

    /// A client with a connection of its own.
    pub async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// The same without the kernel in between, which has a clock of its own: while it holds bytes back, the test's goes on.
    pub async fn piped_client(&self) -> Client {
        Client::over(self.pipe()).await
    }

    /// The client's end of a connection without the kernel.
    pub fn pipe(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        self.server.attach(theirs, SocketAddr::from(([127, 0, 0, 1], 1)));
        ours
    }

    /// One GET on a connection of its own.
    pub async fn get(&self, target: &str) -> Answer {
        self.client().await.get(target).await
    }

    /// One GET with these fields.
    pub async fn get_with(&self, target: &str, headers: &[(&str, &str)]) -> Answer {
        self.client().await.send(request("GET", target, headers)).await.whole().await
    }

    /// Any request without a body.
    pub async fn send(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
        self.client().await.send(request(method, target, headers)).await.whole().await
    }

    /// A GET in a task of its own.
    pub fn spawn_get(&self, target: &str, headers: &[(&str, &str)]) -> tokio::task::JoinHandle<Answer> {
        let address = self.address;
        let request = request("GET", target, headers);
        tokio::spawn(async move { Client::connect(address).await.send(request).await.whole().await })
    }

    /// Waits until as many requests wait for the fetch of another.
    pub async fn until_waiters(&self, count: i64) {
        self.until(|telemetry| telemetry.waiters() == count).await;
    }

    /// Waits until the metrics say so. Every pass lets all others run.
    pub async fn until(&self, met: impl Fn(&Telemetry) -> bool) {
        for _ in 0..100_000 {
            if met(&self.telemetry) {
                return;
            }
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_micros(10)).await;
        }
        panic!("it never came to be:\n{}", self.telemetry.render());
    }

    /// One number of the metrics; absent series are zero.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.telemetry.render();
        let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        found.unwrap_or(0.0)
    }
}

pub fn request(
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Request<BoxBody<Bytes, std::io::Error>> {
    request_with(method, target, headers, Empty::new().map_err(|never| match never {}).boxed())
}

pub fn request_with(
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: BoxBody<Bytes, std::io::Error>,
) -> Request<BoxBody<Bytes, std::io::Error>> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
    *request.uri_mut() = target.parse().unwrap();
    for (name, value) in headers {
        request
            .headers_mut()
            .append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
    }
    if !request.headers().contains_key("host") {
        request.headers_mut().insert("host", HeaderValue::from_static("site.example"));
    }
    request
}

/// One client connection.
pub struct Client {
    sender: http1::SendRequest<BoxBody<Bytes, std::io::Error>>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream).await
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Self { sender }
    }

    pub async fn get(&mut self, target: &str) -> Answer {
        self.send(request("GET", target, &[])).await.whole().await
    }

    /// Sends and waits for the head.
    pub async fn send(&mut self, request: Request<BoxBody<Bytes, std::io::Error>>) -> Head {
        self.sender.ready().await.unwrap();
        Head(self.sender.send_request(request).await.unwrap())
    }

    /// Sends, and says if there was no head.
    pub async fn try_send(
        &mut self,
        request: Request<BoxBody<Bytes, std::io::Error>>,
    ) -> Result<Head, hyper::Error> {
        self.sender.ready().await?;
        self.sender.send_request(request).await.map(Head)
    }
}

/// A connection over HTTP/2 with prior knowledge.
pub async fn http2_client(
    address: SocketAddr,
) -> hyper::client::conn::http2::SendRequest<BoxBody<Bytes, std::io::Error>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// An answer whose body is still coming.
pub struct Head(pub Response<Incoming>);

impl Head {
    pub fn status(&self) -> u16 {
        self.0.status().as_u16()
    }

    /// The next piece of the body; `None` at its end.
    pub async fn piece(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match self.0.body_mut().frame().await? {
                Ok(frame) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Some(Ok(bytes));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The rest of the body, which must come to a clean end.
    pub async fn whole(self) -> Answer {
        self.try_whole().await.unwrap()
    }

    /// The rest of the body, or how it broke.
    pub async fn try_whole(self) -> Result<Answer, hyper::Error> {
        let (head, body) = self.0.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            trailers,
            body: collected.to_bytes(),
        })
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub trailers: Option<HeaderMap>,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// A field's first value, or the empty string.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The parameters of `Cache-Status`.
    #[track_caller]
    pub fn cache_status(&self) -> &str {
        self.header("cache-status").strip_prefix("forebay; ").unwrap_or_default()
    }
}

/// An origin that speaks in raw bytes: for each connection, `script` gets the stream and its number.
pub async fn raw_origin<F>(script: impl Fn(usize, TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 1.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(script(number, stream));
        }
    });
    address
}

/// An address that refuses connections, and that nobody else gets as long as this is kept.
pub struct Nobody(TcpSocket);

impl Nobody {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// From here on there is somebody.
    pub fn listen(self) -> TcpListener {
        self.0.listen(1).unwrap()
    }
}

/// Reads from a raw connection up to the end of a request's head.
pub async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}
