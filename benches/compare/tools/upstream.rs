//! The counting upstream. What it does is in the path: `/KIND/MILLISECONDS/BYTES/NAME`.
//!
//! | kind | answer |
//! |---|---|
//! | `stored` | 200 with `Cache-Control: public, max-age=3600`, all of it after the delay |
//! | `uncacheable` | 200 with `Cache-Control: no-store`, all of it after the delay |
//! | `pass` | the same: for rules of the servers that know it beforehand |
//! | `late` | as `uncacheable`, but the head comes at once and the body after the delay |
//! | `failing` | 500 without `Cache-Control`, all of it after the delay |
//! | `paced` | as `stored`, the head at once and the body in 100 pieces over the delay |
//!
//! `/counts/PREFIX` tells how many requests came for paths that begin with `/PREFIX`.

use crate::{Failure, body_of};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Socket, Type};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::{Instant, Sleep, sleep_until};

const PIECES: usize = 100;
/// Deep enough for a thousand clients that a proxy sends on at once.
const BACKLOG: i32 = 8_192;

/// Requests by path, and the body of each path. The lock is held for one look-up.
type Known = Arc<Mutex<HashMap<String, (u64, Bytes)>>>;

/// Serves until it is stopped.
pub(crate) fn run() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = listen()?;
        println!("listens on {}", listener.local_addr()?);
        let known = Known::default();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let known = Arc::clone(&known);
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(request.uri().path(), &known);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    })
}

/// A listener on a free port of this machine.
pub(crate) fn listen() -> Result<TcpListener, Failure> {
    Ok(TcpListener::from_std(listener(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?)?)
}

/// A listener that somebody else may have reserved the port for.
pub(crate) fn listener(address: SocketAddr) -> Result<std::net::TcpListener, Failure> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The whole answer to a request for this path, head and body, where it is one that comes at once and is not to be stored.
pub(crate) fn quick_answer(path: &str) -> Option<Vec<u8>> {
    let order = Order::of(path).filter(|order| order.kind == Kind::Uncacheable && order.delay.is_zero())?;
    let response = response(StatusCode::OK, NO_STORE, Pieces::whole(Bytes::new(), Instant::now()));
    let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
    for (name, value) in response.headers() {
        answer.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    answer.extend(format!("content-length: {}\r\ndate: {DATE}\r\n\r\n", order.bytes).into_bytes());
    answer.extend(body_of(path, order.bytes));
    Some(answer)
}

const NO_STORE: &str = "no-store";
/// Any will do: nothing is stored.
const DATE: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Stored,
    Uncacheable,
    Late,
    Failing,
    Paced,
}

struct Order {
    kind: Kind,
    delay: Duration,
    bytes: usize,
}

impl Order {
    fn of(path: &str) -> Option<Self> {
        let mut parts = path.strip_prefix('/')?.splitn(4, '/');
        let kind = match parts.next()? {
            "stored" => Kind::Stored,
            "uncacheable" | "pass" => Kind::Uncacheable,
            "late" => Kind::Late,
            "failing" => Kind::Failing,
            "paced" => Kind::Paced,
            _ => return None,
        };
        let delay = Duration::from_millis(parts.next()?.parse().ok()?);
        Some(Self { kind, delay, bytes: parts.next()?.parse().ok()? })
    }
}

fn answer(path: &str, known: &Known) -> impl Future<Output = Response<Pieces>> + use<> {
    let order = Order::of(path);
    let body = match (&order, path.strip_prefix("/counts")) {
        (Some(order), _) => counted(path, order, known),
        (None, Some(prefix)) => count(prefix, known).to_string().into(),
        (None, None) => Bytes::from_static(b"no such kind"),
    };
    let is_known = order.is_some() || path.starts_with("/counts/");
    async move {
        let now = Instant::now();
        let Some(order) = order else {
            let status = if is_known { StatusCode::OK } else { StatusCode::NOT_FOUND };
            return response(status, NO_STORE, Pieces::whole(body, now));
        };
        let pieces = match order.kind {
            Kind::Late => Pieces::whole(body, now + order.delay),
            Kind::Paced => Pieces::paced(body, now, order.delay),
            Kind::Stored | Kind::Uncacheable | Kind::Failing => {
                if !order.delay.is_zero() {
                    sleep_until(now + order.delay).await;
                }
                Pieces::whole(body, now)
            }
        };
        match order.kind {
            Kind::Stored | Kind::Paced => response(StatusCode::OK, "public, max-age=3600", pieces),
            Kind::Uncacheable | Kind::Late => response(StatusCode::OK, NO_STORE, pieces),
            Kind::Failing => response(StatusCode::INTERNAL_SERVER_ERROR, "", pieces),
        }
    }
}

fn response(status: StatusCode, cache_control: &'static str, pieces: Pieces) -> Response<Pieces> {
    let mut response = Response::new(pieces);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(header::ETAG, HeaderValue::from_static("\"1\""));
    if !cache_control.is_empty() {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache_control));
    }
    response
}

fn counted(path: &str, order: &Order, known: &Known) -> Bytes {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = known.entry(path.to_owned()).or_insert_with(|| (0, Bytes::from(body_of(path, order.bytes))));
    entry.0 += 1;
    entry.1.clone()
}

fn count(prefix: &str, known: &Known) -> u64 {
    let known = known.lock().unwrap_or_else(PoisonError::into_inner);
    known.iter().filter(|(path, _)| path.starts_with(prefix)).map(|(_, entry)| entry.0).sum()
}

/// A body of known length that comes in pieces, at even distances.
struct Pieces {
    left: Bytes,
    piece_bytes: usize,
    pause: Duration,
    next: Option<Pin<Box<Sleep>>>,
}

impl Pieces {
    fn whole(body: Bytes, at: Instant) -> Self {
        let next = (at > Instant::now()).then(|| Box::pin(sleep_until(at)));
        Self { piece_bytes: body.len(), left: body, pause: Duration::ZERO, next }
    }

    fn paced(body: Bytes, now: Instant, over: Duration) -> Self {
        let pause = over / u32::try_from(PIECES).unwrap_or(1);
        let next = Some(Box::pin(sleep_until(now)));
        Self { piece_bytes: body.len().div_ceil(PIECES).max(1), left: body, pause, next }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let pause = self.pause;
        if let Some(next) = &mut self.next {
            if next.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            let then = next.deadline() + pause;
            next.as_mut().reset(then);
        }
        let bytes = self.piece_bytes.min(self.left.len());
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.left.len() as u64)
    }
}
