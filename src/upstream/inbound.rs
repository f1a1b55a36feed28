//! A body that hyper reads, whose end is seen to be its end.

use bytes::Bytes;
use http::Version;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// A body that arrives, from a client or from an upstream.
///
/// hyper takes a stream of HTTP/2 that is reset with `NO_ERROR` for one that has ended, because a server may reset an upload so
/// after a complete response (RFC 9113 §8.1). A body that is cut off so would look whole.
#[derive(Debug)]
pub struct Inbound {
    incoming: Incoming,
    /// HTTP/1.1 has no such reset.
    may_be_reset: bool,
}

/// The body broke off.
#[derive(Debug, thiserror::Error)]
pub enum InboundError {
    /// The connection or the stream broke, or its framing is invalid.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// The stream was reset before its end, without an error.
    #[error("the stream was reset before its end")]
    Reset,
}

impl Inbound {
    /// The body of a message of this version.
    pub fn new(incoming: Incoming, version: Version) -> Self {
        Self { incoming, may_be_reset: version == Version::HTTP_2 }
    }
}

impl http_body::Body for Inbound {
    type Data = Bytes;
    type Error = InboundError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, InboundError>>> {
        match ready!(Pin::new(&mut self.incoming).poll_frame(context)) {
            Some(frame) => Poll::Ready(Some(frame.map_err(InboundError::Broken))),
            None if self.may_be_reset
                && !self.incoming.is_end_stream()
                && self.incoming.size_hint().exact() != Some(0) =>
            {
                Poll::Ready(Some(Err(InboundError::Reset)))
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
