//! A request on its way out.

use super::settings::Origin;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

/// The head of a request to an upstream.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The method.
    pub method: Method,
    /// Path and query, as they are to arrive.
    pub target: PathAndQuery,
    /// The end-to-end fields, and `Connection` with `Upgrade` where an upgrade is asked for. `Host` is overwritten.
    pub headers: HeaderMap,
    /// The `Host` to name; `None`: the origin's own authority.
    pub host: Option<HeaderValue>,
    /// Whether an upgrade is asked for: the request gets a connection of its own.
    pub upgrade: bool,
    /// What consistent hashing hashes.
    pub affinity: u64,
    /// What happens when all places are taken.
    pub urgency: Urgency,
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
    /// Whether doing it twice is the same as doing it once (RFC 9110 §9.2.2).
    pub fn is_idempotent(&self) -> bool {
        // RFC 9110 does not list QUERY, which is defined to be safe and idempotent.
        (self.method.is_idempotent() || self.method.as_str() == "QUERY") && !self.upgrade
    }

    pub(super) fn request(&self, origin: &Origin, http2: bool, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        let own = || HeaderValue::try_from(origin.authority()).ok();
        let host = self.host.clone().or_else(own);
        if http2 {
            request.headers_mut().remove(header::HOST);
            *request.version_mut() = Version::HTTP_2;
            let authority = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
            let scheme = if origin.https { "https" } else { "http" };
            *request.uri_mut() = Uri::builder()
                .scheme(scheme)
                .authority(authority)
                .path_and_query(self.target.clone())
                .build()
                .unwrap_or_else(|_| Uri::from(self.target.clone()));
        } else {
            *request.uri_mut() = Uri::from(self.target.clone());
            if let Some(host) = host {
                request.headers_mut().insert(header::HOST, host);
            }
        }
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
    Streamed(Streamed),
}

/// A client's body that passes through, with a limit.
#[derive(Debug)]
pub struct Streamed {
    /// What of it has been read before.
    begun: Bytes,
    incoming: Incoming,
    left: u64,
    ended: Arc<AtomicBool>,
    too_large: Arc<AtomicBool>,
}

/// The client's body ended early, or is over the limit.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    /// The client broke off.
    #[error("the client broke its upload off")]
    Client(#[source] hyper::Error),
    /// The limit was passed.
    #[error("the upload is larger than the limit")]
    TooLarge,
}

impl RequestBody {
    /// A client's body of which the beginning has been read already, limited to this many bytes. The returned flag is
    /// raised when the limit is passed.
    pub fn streamed(begun: Bytes, incoming: Incoming, bytes_max: Option<u64>) -> (Self, Arc<AtomicBool>) {
        let too_large = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(AtomicBool::new(begun.is_empty() && incoming.is_end_stream()));
        let streamed = Streamed {
            begun,
            incoming,
            left: bytes_max.unwrap_or(u64::MAX),
            ended,
            too_large: Arc::clone(&too_large),
        };
        (Self::Streamed(streamed), too_large)
    }

    /// The same body once more, where it is at hand.
    pub(super) fn replay(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Buffered(bytes) => Some(Self::Buffered(bytes.clone())),
            Self::Streamed(_) => None,
        }
    }

    /// A flag that is raised when all of the body has been handed over; `None` where it is at hand from the start.
    pub(super) fn ended(&self) -> Option<Arc<AtomicBool>> {
        match self {
            Self::Empty | Self::Buffered(_) => None,
            Self::Streamed(streamed) => Some(Arc::clone(&streamed.ended)),
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
        let frame = if self.begun.is_empty() {
            ready!(Pin::new(&mut self.incoming).poll_frame(context))
        } else {
            Some(Ok(Frame::data(std::mem::take(&mut self.begun))))
        };
        Poll::Ready(match frame {
            None => {
                self.ended.store(true, Ordering::Release);
                None
            }
            Some(Err(error)) => Some(Err(RequestBodyError::Client(error))),
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
                if bytes > self.left {
                    self.too_large.store(true, Ordering::Release);
                    return Poll::Ready(Some(Err(RequestBodyError::TooLarge)));
                }
                self.left -= bytes;
                if self.incoming.is_end_stream() {
                    self.ended.store(true, Ordering::Release);
                }
                Some(Ok(frame))
            }
        })
    }
}
