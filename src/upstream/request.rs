//! A request on its way out.

use super::inbound::{Inbound, InboundError};
use super::settings::Origin;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

/// The head of a request to an upstream.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The method.
    pub method: Method,
    /// Path and query, as they are to arrive.
    pub target: PathAndQuery,
    /// The end-to-end fields that came with the request. `Host` is overwritten.
    pub headers: Arc<HeaderMap>,
    /// The fields that are added to them, `Upgrade` among them where an upgrade is asked for.
    pub added: Vec<(HeaderName, HeaderValue)>,
    /// The `Host` to name; `None`: the origin's own authority.
    pub host: Option<HeaderValue>,
    /// Whether an upgrade is asked for: the request gets a connection of its own.
    pub upgrade: bool,
    /// What consistent hashing hashes.
    pub affinity: u64,
    /// What happens when all places are taken.
    pub urgency: Urgency,
    /// Its head for HTTP/1.1, where it has been written already: then target and fields say nothing.
    pub written: Option<Written>,
}

/// The head of a request as HTTP/1.1 has it, but for `Host` and the empty line at its end.
#[derive(Debug, Clone)]
pub struct Written {
    bytes: Vec<u8>,
    /// Where the fields begin.
    fields_at: usize,
}

impl Written {
    /// A head that begins with this request line, with room for so many bytes of fields.
    pub fn new(method: &Method, target: &str, room: usize) -> Self {
        let mut bytes = Vec::with_capacity(target.len() + room);
        for part in [method.as_str(), " ", target, " HTTP/1.1\r\n"] {
            bytes.extend_from_slice(part.as_bytes());
        }
        Self { fields_at: bytes.len(), bytes }
    }

    /// Adds a field if that is wanted of one with its name in lower case, in which it is written.
    pub fn push_if(&mut self, is_wanted: impl Fn(&[u8]) -> bool, name: &str, value: &[u8]) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes[at..].make_ascii_lowercase();
        if is_wanted(&self.bytes[at..]) {
            self.end_line(value);
        } else {
            self.bytes.truncate(at);
        }
    }

    /// Adds a field, whose name is in lower case.
    pub fn push(&mut self, name: &str, value: &[u8]) {
        self.bytes.extend_from_slice(name.as_bytes());
        self.end_line(value);
    }

    fn end_line(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(b": ");
        self.bytes.extend_from_slice(value);
        self.bytes.extend_from_slice(b"\r\n");
    }

    pub(super) fn request_line(&self) -> &[u8] {
        &self.bytes[..self.fields_at]
    }

    pub(super) fn fields(&self) -> &[u8] {
        &self.bytes[self.fields_at..]
    }
}

/// What happens when all places at an upstream are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// A client waits: queue.
    Foreground,
    /// Nobody waits: give up at once.
    Background,
}

impl Outgoing {
    /// A request with these fields and none besides, to the origin as it calls itself.
    pub fn new(method: Method, target: PathAndQuery, headers: Arc<HeaderMap>) -> Self {
        Self {
            method,
            target,
            headers,
            added: Vec::new(),
            host: None,
            upgrade: false,
            affinity: 0,
            urgency: Urgency::Foreground,
            written: None,
        }
    }

    /// Whether doing it twice is the same as doing it once (RFC 9110 §9.2.2).
    pub fn is_idempotent(&self) -> bool {
        // RFC 9110 does not list QUERY, which is defined to be safe and idempotent.
        (self.method.is_idempotent() || self.method.as_str() == "QUERY") && !self.upgrade
    }

    /// The request in the form of HTTP/2.
    pub(super) fn request_http2(&self, origin: &Origin, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        let headers = request.headers_mut();
        *headers = HeaderMap::clone(&self.headers);
        headers.remove(header::HOST);
        for (name, value) in &self.added {
            headers.append(name, value.clone());
        }
        *request.version_mut() = Version::HTTP_2;
        let named = self.host.as_ref().and_then(|host| host.to_str().ok()).map(str::to_owned);
        *request.uri_mut() = Uri::builder()
            .scheme(if origin.https { "https" } else { "http" })
            .authority(named.unwrap_or_else(|| origin.authority()))
            .path_and_query(self.target.clone())
            .build()
            .unwrap_or_else(|_| Uri::from(self.target.clone()));
        request
    }
}

/// The body of a request to an upstream.
#[derive(Debug)]
pub enum RequestBody {
    /// None.
    Empty,
    /// At hand, so that it can be sent again.
    Buffered(Bytes),
    /// As it arrives from the client, once.
    Streamed(Box<Streamed>),
}

/// A client's body that passes through, within limits.
#[derive(Debug)]
pub struct Streamed {
    /// What of it has been read before.
    begun: Bytes,
    incoming: Inbound,
    left: u64,
    progress: Arc<Progress>,
    fault: Arc<OnceLock<BodyFault>>,
    pace: Pace,
    /// Cancelled when the exchange is over: what is left of the body is for nobody.
    over: CancellationToken,
    is_over: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// How much of a body has been handed over.
#[derive(Debug, Default)]
pub(super) struct Progress {
    ended: AtomicBool,
    /// Whether the client is waited for.
    is_awaited: AtomicBool,
    /// When the last piece was handed over. Guards a time; held for its assignment.
    latest: Mutex<Option<Instant>>,
}

impl Progress {
    /// Whether all of it has been.
    pub(super) fn is_at_end(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Whether it is the client's fault that nothing happens.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_awaited.load(Ordering::Acquire) && !self.is_at_end()
    }

    fn handed_over(&self, is_end: bool) {
        self.is_awaited.store(false, Ordering::Release);
        *self.latest.lock() = Some(Instant::now());
        self.ended.fetch_or(is_end, Ordering::AcqRel);
    }

    /// When the last piece of it, or its end, was handed over; `None` before the first.
    pub(super) fn latest(&self) -> Option<Instant> {
        *self.latest.lock()
    }
}

/// What a client's body may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyLimits {
    /// Largest body; `None`: unlimited.
    pub bytes_max: Option<u64>,
    /// Longest pause between two pieces.
    pub pause_max: Duration,
    /// Fewest bytes for each second that the body is waited for, after the first ten; `None`: any pace will do.
    pub rate_min: Option<u64>,
}

/// What a client's body turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFault {
    /// Larger than the limit.
    TooLarge,
    /// Slower than the limit.
    TooSlow,
}

/// How long a body may be waited for. Only waiting counts: a slow upstream is not the client's fault.
#[derive(Debug)]
struct Pace {
    pause_max: Duration,
    rate_min: Option<u64>,
    bytes: u64,
    /// Time spent waiting before the present pause.
    waited: Duration,
    /// Runs while the body is waited for, and since when.
    pause: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// Waiting within this time is not judged: a connection needs some to come up to speed.
const PACE_GRACE: Duration = Duration::from_secs(10);

impl Pace {
    fn arrived(&mut self, bytes: u64) {
        self.bytes += bytes;
        if let Some((since, _)) = self.pause.take() {
            self.waited += since.elapsed();
        }
    }

    /// Ready when the present pause has lasted too long.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let (pause_max, rate_min, bytes, waited) = (self.pause_max, self.rate_min, self.bytes, self.waited);
        let (_, timer) = self.pause.get_or_insert_with(|| {
            let allowed = rate_min.map(|rate| PACE_GRACE + Duration::from_secs(bytes / rate));
            let left = allowed.map_or(pause_max, |allowed| pause_max.min(allowed.saturating_sub(waited)));
            (Instant::now(), Box::pin(tokio::time::sleep(left)))
        });
        timer.as_mut().poll(context)
    }
}

/// The client's body ended early, or is beyond a limit.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    /// The client broke off.
    #[error("the client broke its upload off")]
    Client(#[source] InboundError),
    /// A limit was passed.
    #[error("the upload is larger or slower than permitted")]
    Limit,
    /// The upstream has answered without waiting for the rest.
    #[error("the exchange was over before the upload")]
    Over,
}

impl RequestBody {
    /// A client's body, of which the beginning has been read already, within these limits. The returned cell is filled when
    /// one is passed.
    pub fn streamed(
        begun: Bytes,
        incoming: Inbound,
        limits: &BodyLimits,
    ) -> (Self, Arc<OnceLock<BodyFault>>) {
        let fault = Arc::new(OnceLock::new());
        let ended = AtomicBool::new(begun.is_empty() && incoming.is_end_stream());
        let over = CancellationToken::new();
        let pace = Pace {
            pause_max: limits.pause_max,
            rate_min: limits.rate_min,
            bytes: 0,
            waited: Duration::ZERO,
            pause: None,
        };
        let streamed = Streamed {
            begun,
            incoming,
            left: limits.bytes_max.unwrap_or(u64::MAX),
            progress: Arc::new(Progress { ended, ..Progress::default() }),
            fault: Arc::clone(&fault),
            pace,
            is_over: Box::pin(over.clone().cancelled_owned()),
            over,
        };
        (Self::Streamed(Box::new(streamed)), fault)
    }

    /// The same body once more, where it is at hand.
    pub(super) fn replay(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Buffered(bytes) => Some(Self::Buffered(bytes.clone())),
            Self::Streamed(_) => None,
        }
    }

    /// How much of the body has been handed over; `None` where it is at hand from the start.
    pub(super) fn progress(&self) -> Option<Arc<Progress>> {
        match self {
            Self::Empty | Self::Buffered(_) => None,
            Self::Streamed(streamed) => Some(Arc::clone(&streamed.progress)),
        }
    }

    /// What has come of it is being sent: until it is polled again it is not the client that is waited for.
    pub(super) fn pause(&mut self) {
        if let Self::Streamed(streamed) = self {
            streamed.progress.is_awaited.store(false, Ordering::Release);
            streamed.pace.arrived(0);
        }
    }

    /// Ends the body when it is dropped, wherever it has got to; `None` where it is at hand.
    pub(super) fn end_with(&self) -> Option<DropGuard> {
        match self {
            Self::Empty | Self::Buffered(_) => None,
            Self::Streamed(streamed) => Some(streamed.over.clone().drop_guard()),
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Buffered(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Buffered(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Streamed(streamed) => streamed.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Buffered(bytes) => bytes.is_empty(),
            Self::Streamed(streamed) => streamed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Buffered(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Streamed(streamed) => streamed.size_hint(),
        }
    }
}

impl Streamed {
    fn is_end_stream(&self) -> bool {
        self.begun.is_empty() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (begun, rest) = (self.begun.len() as u64, self.incoming.size_hint());
        let mut whole = SizeHint::new();
        whole.set_lower(rest.lower() + begun);
        if let Some(upper) = rest.upper() {
            whole.set_upper(upper + begun);
        }
        whole
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let Poll::Ready(frame) = self.poll_next(context) else {
            self.progress.is_awaited.store(true, Ordering::Release);
            if self.is_over.as_mut().poll(context).is_ready() {
                return Poll::Ready(Some(Err(RequestBodyError::Over)));
            }
            return self.pace.poll(context).map(|()| Some(Err(self.fail(BodyFault::TooSlow))));
        };
        Poll::Ready(match frame {
            None => {
                self.progress.handed_over(true);
                None
            }
            Some(Err(error)) => Some(Err(RequestBodyError::Client(error))),
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
                if bytes > self.left {
                    return Poll::Ready(Some(Err(self.fail(BodyFault::TooLarge))));
                }
                self.left -= bytes;
                self.pace.arrived(bytes);
                self.progress.handed_over(self.is_end_stream());
                Some(Ok(frame))
            }
        })
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, InboundError>>> {
        if self.begun.is_empty() {
            return Pin::new(&mut self.incoming).poll_frame(context);
        }
        Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.begun)))))
    }

    fn fail(&self, fault: BodyFault) -> RequestBodyError {
        // The first fault is the one that is told.
        let _ = self.fault.set(fault);
        RequestBodyError::Limit
    }
}
