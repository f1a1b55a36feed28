//! An answer on its way to a client: its body, and the account that is given of it.

use super::fetch::content_length;
use super::plain::PlainGet;
use super::site::Site;
use super::tunnel::Keeper;
use crate::body::{Broken, Reader};
use crate::outcome::{Answered, Outcome};
use crate::policy::Fields;
use crate::telemetry::{AccessRecord, BodyEnd, RequestLine, Telemetry};
use crate::upstream;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, Version, header};
use http_body::{Frame, SizeHint};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::Instant;

/// A response and how it came about.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response<Source>,
    pub(super) outcome: Outcome,
}

impl Answer {
    /// A short answer of our own, in plain text.
    pub(super) fn plain(status: StatusCode, text: &'static str, outcome: Outcome) -> Self {
        let mut response = Response::new(Source::Bytes(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Self { response, outcome }
    }

    /// The same answer with the fields that are for this client alone. A 304 tells of what all may have.
    pub(super) fn with_withheld(mut self, withheld: Option<&HeaderMap>) -> Self {
        if let Some(withheld) = withheld
            && self.response.status() != StatusCode::NOT_MODIFIED
        {
            let headers = self.response.headers_mut();
            headers.extend(withheld.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        self
    }
}

/// Where the bytes of an answer come from.
#[derive(Debug)]
pub(super) enum Source {
    /// Nowhere: there are none.
    Empty,
    /// From memory.
    Bytes(Bytes),
    /// From a body that others may read too.
    Shared(Reader),
    /// From several places in turn: the parts of a multipart answer.
    Parts(VecDeque<Part>),
    /// Straight from the upstream, for this client alone.
    Upstream(upstream::Body),
    /// Nowhere: the connection becomes a tunnel, which closes the account.
    Tunnel(Keeper),
}

/// A piece of a multipart answer.
#[derive(Debug)]
pub(super) enum Part {
    /// What separates the slices.
    Bytes(Bytes),
    /// A slice of a shared body.
    Slice(Reader),
}

/// The body of an answer broke off; the connection is closed so that the client sees it.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// A shared body broke off.
    #[error(transparent)]
    Shared(#[from] Broken),
    /// The upstream's body broke off.
    #[error(transparent)]
    Upstream(#[from] upstream::BodyError),
}

impl Source {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Empty | Self::Tunnel(_) => Poll::Ready(None),
            Self::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Shared(reader) => poll_into(reader, context),
            Self::Upstream(body) => poll_into(body, context),
            Self::Parts(parts) => loop {
                match parts.front_mut() {
                    None => return Poll::Ready(None),
                    Some(Part::Bytes(bytes)) => {
                        let bytes = std::mem::take(bytes);
                        parts.pop_front();
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                    Some(Part::Slice(reader)) => match poll_into(reader, context) {
                        Poll::Ready(None) => {
                            parts.pop_front();
                        }
                        polled => return polled,
                    },
                }
            },
        }
    }

    fn is_end(&self) -> bool {
        match self {
            Self::Empty | Self::Tunnel(_) => true,
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::Shared(reader) => http_body::Body::is_end_stream(reader),
            Self::Upstream(body) => http_body::Body::is_end_stream(body),
            Self::Parts(parts) => parts.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Tunnel(_) => SizeHint::with_exact(0),
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Shared(reader) => http_body::Body::size_hint(reader),
            Self::Upstream(body) => http_body::Body::size_hint(body),
            Self::Parts(_) => SizeHint::default(),
        }
    }
}

fn poll_into<B>(body: &mut B, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    Pin::new(body).poll_frame(context).map_err(Into::into)
}

/// The body of an answer. When it ends, or is dropped, the account of its request is closed.
#[derive(Debug)]
pub struct Body {
    source: Source,
    /// As the head says. Nobody asks for the end of a body of known length once all of it is there.
    length: Option<u64>,
    /// `None`: a tunnel has it.
    account: Option<Account>,
}

impl Body {
    /// Whether it comes straight from the upstream, because the cache has nothing to do with it.
    pub fn goes_through(&self) -> bool {
        matches!(self.source, Source::Upstream(_))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { source, length, account } = &mut *self;
        let polled = source.poll(context);
        let Some(account) = account else { return polled };
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => account.end(BodyEnd::Complete),
            Poll::Ready(Some(Err(_))) => account.end(BodyEnd::BrokenOff),
            Poll::Ready(Some(Ok(frame))) => {
                account.sent(frame.data_ref().map_or(0, Bytes::len));
                if source.is_end() || *length == Some(account.body_bytes) {
                    account.end(BodyEnd::Complete);
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        self.source.size_hint()
    }
}

/// The account of one request: opened when it arrives, settled with its answer, closed with the end of the body or of the
/// tunnel. One that is never settled is the account of a client that left, or of one that was cut off at the end of the process.
#[derive(Debug)]
pub(super) struct Account {
    telemetry: Arc<Telemetry>,
    site: Arc<Site>,
    /// The route that takes it, once it is known.
    route: Option<usize>,
    /// What the access log will say of the request; `None` where there is no access log.
    request: Option<Box<Described>>,
    started: Instant,
    status: StatusCode,
    outcome: Option<Outcome>,
    body_bytes: u64,
    body_end: BodyEnd,
    /// When it ended; `None`: when it is dropped.
    ended: Option<Instant>,
}

/// What nginx logs as the status for a client that left; it is never sent.
const CLIENT_LEFT: u16 = 499;

/// Why a request has no answer that was cut off before its head.
const CUT_OFF: &str = "cut-off";

/// What an account begins with, taken down before the request is taken apart.
#[derive(Debug)]
pub(super) struct Beginning {
    request: Option<Box<Described>>,
    started: Instant,
}

impl Beginning {
    /// A request has arrived.
    pub(super) fn of<B>(telemetry: &Telemetry, request: &http::Request<B>, client: SocketAddr) -> Self {
        let request = telemetry.logs_access().then(|| Described::of(request, client));
        Self { request, started: Instant::now() }
    }

    /// The same of a plain request.
    pub(super) fn plain(telemetry: &Telemetry, request: &PlainGet<'_>, client: SocketAddr) -> Self {
        let request = telemetry.logs_access().then(|| Described::plain(request, client));
        Self { request, started: Instant::now() }
    }

    /// When the request arrived.
    pub(super) fn started(&self) -> Instant {
        self.started
    }
}

/// A request as the access log describes it.
#[derive(Debug)]
struct Described {
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    protocol: Version,
    client: SocketAddr,
}

impl Described {
    fn of<B>(request: &http::Request<B>, client: SocketAddr) -> Box<Self> {
        Box::new(Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: request.headers().get(header::HOST).cloned(),
            protocol: request.version(),
            client,
        })
    }

    fn plain(request: &PlainGet<'_>, client: SocketAddr) -> Box<Self> {
        Box::new(Self {
            method: Method::GET,
            // It has no bytes that a URI must not have.
            uri: Uri::try_from(request.target()).unwrap_or_default(),
            host: request.lines(&header::HOST).next().and_then(|host| HeaderValue::from_bytes(host).ok()),
            protocol: Version::HTTP_11,
            client,
        })
    }

    fn line(&self) -> RequestLine<'_> {
        let host = self.host.as_ref().and_then(|host| host.to_str().ok());
        RequestLine {
            method: self.method.as_str(),
            target: self.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str),
            host: host.or_else(|| Some(self.uri.authority()?.as_str())).unwrap_or_default(),
            protocol: self.protocol,
            client: self.client,
        }
    }
}

impl Account {
    /// Opens the account of a request that began so.
    pub(super) fn open(telemetry: &Arc<Telemetry>, site: Arc<Site>, beginning: Beginning) -> Self {
        let Beginning { request, started } = beginning;
        Self {
            telemetry: Arc::clone(telemetry),
            site,
            route: None,
            request,
            started,
            status: StatusCode::from_u16(CLIENT_LEFT).unwrap_or(StatusCode::BAD_REQUEST),
            outcome: None,
            body_bytes: 0,
            body_end: BodyEnd::ClientLeft,
            ended: None,
        }
    }

    /// The site that the request has met.
    pub(super) fn site(&self) -> &Arc<Site> {
        &self.site
    }

    /// Where it is counted.
    pub(super) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// The request belongs to this route.
    pub(super) fn assign(&mut self, route: usize) {
        self.route = Some(route);
    }

    /// The answer is known: counts it.
    pub(super) fn answered(&mut self, status: StatusCode, outcome: Outcome) {
        self.telemetry.answered(self.site.route_counted(self.route), &outcome);
        self.status = status;
        self.outcome = Some(outcome);
    }

    /// The answer is known: counts it, and ties the rest of the account to its body.
    pub(super) fn settle(mut self, answer: Answer) -> Response<Body> {
        self.answered(answer.response.status(), answer.outcome);
        let length = content_length(answer.response.headers());
        answer.response.map(|source| match source {
            Source::Tunnel(keeper) => {
                // Where there is no tunnel any more, the account comes back and is closed.
                drop(keeper.send(self));
                Body { source: Source::Empty, length: None, account: None }
            }
            source => {
                if source.is_end() {
                    self.end(BodyEnd::Complete);
                }
                Body { source, length, account: Some(self) }
            }
        })
    }

    /// So many bytes more were handed over.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.body_bytes += bytes as u64;
    }

    /// It is dropped a little later than it ended.
    pub(super) fn ended(&mut self, now: Instant) {
        self.ended = Some(now);
    }

    /// This is how the body ended.
    pub(super) fn end(&mut self, body_end: BodyEnd) {
        self.body_end = body_end;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let is_cut_off = self.body_end == BodyEnd::ClientLeft && self.telemetry.is_cutting_off();
        if is_cut_off {
            self.body_end = BodyEnd::CutOff;
        }
        let outcome = self.outcome.take().unwrap_or_else(|| {
            let outcome = if is_cut_off {
                self.status = StatusCode::SERVICE_UNAVAILABLE;
                Outcome::of(Answered::Error).because(CUT_OFF)
            } else {
                Outcome::of(Answered::Abandoned)
            };
            self.telemetry.answered(self.site.route_counted(self.route), &outcome);
            outcome
        });
        let record = AccessRecord {
            request: self.request.as_deref().map(Described::line),
            status: self.status,
            outcome: &outcome,
            body_bytes: self.body_bytes,
            duration: self.ended.unwrap_or_else(Instant::now) - self.started,
            body_end: self.body_end,
        };
        self.telemetry.finished(self.site.route_counted(self.route), &record);
    }
}
