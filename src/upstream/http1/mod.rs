//! The client's side of HTTP/1.1 (RFC 9112), without a task of its own.
//!
//! Half of what a request to an upstream costs beside the kernel is to carry it from the task that asks to one that keeps the
//! connection, and the answer back. Here whoever asks writes and reads by himself: the exchange owns its connection and gives
//! it back at the end. Only an upload that arrives from a client has a task, because it goes on while nobody reads the answer.
//!
//! It is strict: what two readers might understand differently is refused.

mod body;
mod head;
mod outbound;
#[cfg(test)]
mod tests;

pub(super) use body::{Fault, Incoming};
pub(super) use head::{Taker, framing};

use super::Error;
use super::alarm::Alarm;
use super::body::Head;
use super::request::{Outgoing, RequestBody};
use super::settings::Origin;
use bytes::BytesMut;
pub use head::HeadAsItLies;
use head::{Begun, Heads};
use http::Method;
use outbound::{Outbound, Stuck};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

/// What bytes go over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

/// A connection without an exchange.
pub(super) struct Line {
    stream: Box<dyn Stream>,
    header_bytes_max: usize,
    /// When something came over it last, or when it was made.
    pub(super) heard: Instant,
    alarm: Alarm,
}

/// A request on its way, whose answer has not begun.
#[derive(Debug)]
pub(super) struct Asking {
    /// `None` once the head of the answer has come.
    exchange: Option<Box<Exchange>>,
    heads: Heads,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    /// The request's body, where nothing of the request was sent.
    pub(super) unsent: Option<RequestBody>,
    /// Whether the connection ended before a byte of the answer.
    pub(super) is_silent: bool,
}

/// Room for a head, or for a small answer as a whole.
const READ_BYTES: usize = 8 << 10;

/// A buffer with this much room is read into further: each small piece of a body keeps alive the buffer that it came in.
const SPARE_BYTES_MIN: usize = 2 << 10;

impl std::fmt::Debug for Line {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Line").finish_non_exhaustive()
    }
}

impl Line {
    pub(super) fn new(stream: impl Stream + 'static, header_bytes_max: usize) -> Self {
        Self { stream: Box::new(stream), header_bytes_max, heard: Instant::now(), alarm: Alarm::default() }
    }

    /// Ready when the connection is of no use any more: it has ended, or something came that nobody has asked for.
    pub(super) fn poll_spoiled(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut byte = [0];
        let mut byte = tokio::io::ReadBuf::new(&mut byte);
        Pin::new(&mut self.stream).poll_read(context, &mut byte).map(drop)
    }

    /// It goes to a thread with another runtime, which is to have no timer of this one.
    pub(super) fn leave_runtime(&mut self) {
        self.alarm = Alarm::default();
    }

    /// Begins to send the request.
    pub(super) fn ask(self, outgoing: &Outgoing, origin: &Origin, body: RequestBody) -> Asking {
        let exchange = Exchange {
            outbound: Outbound::begin(self.stream, outgoing, origin, body),
            buffer: BytesMut::with_capacity(READ_BYTES),
            header_bytes_max: self.header_bytes_max,
            heard: self.heard,
            alarm: self.alarm,
        };
        Asking { exchange: Some(Box::new(exchange)), heads: Heads::default() }
    }
}

impl Asking {
    /// Sends the request and waits for the head of the final response.
    ///
    /// Cancel-safe: dropped, the connection is closed.
    pub(super) fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        method: &Method,
        taker: &mut Taker<'_>,
    ) -> Poll<Result<(Head, Incoming), Failed>> {
        let mut exchange = self.exchange.take().expect("a head is waited for once");
        match exchange.poll_head(context, &mut self.heads, method, taker) {
            Poll::Pending => {
                self.exchange = Some(exchange);
                Poll::Pending
            }
            Poll::Ready(Ok(Begun { head, framing, persists })) => {
                Poll::Ready(Ok((head, Incoming::new(exchange, framing, persists))))
            }
            Poll::Ready(Err((error, unsent))) => {
                let is_silent = self.heads.is_silent(&exchange.buffer);
                Poll::Ready(Err(Failed { error, unsent, is_silent }))
            }
        }
    }

    /// Waits until this moment.
    pub(super) fn poll_alarm(&mut self, until: Instant, context: &mut Context<'_>) -> Poll<()> {
        self.exchange.as_mut().map_or(Poll::Pending, |exchange| exchange.alarm.poll(until, context))
    }
}

/// A connection on which a request goes out, or has gone out, and its answer comes in.
#[derive(Debug)]
struct Exchange {
    outbound: Outbound,
    /// What has been read and not used.
    buffer: BytesMut,
    header_bytes_max: usize,
    heard: Instant,
    alarm: Alarm,
}

impl Exchange {
    fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        heads: &mut Heads,
        method: &Method,
        taker: &mut Taker<'_>,
    ) -> Poll<Result<Begun, (Error, Option<RequestBody>)>> {
        match self.outbound.poll_send(context) {
            Ok(()) => {}
            Err(Stuck::Body(error)) => return Poll::Ready(Err((Error::RequestBody(error.into()), None))),
            Err(Stuck::Unsent(error, body)) => {
                return Poll::Ready(Err((Error::Closed(error.into()), Some(body))));
            }
        }
        loop {
            match heads.next(&mut self.buffer, self.header_bytes_max, method, (self.heard, &mut *taker)) {
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Ok(None) => {}
                Err(flaw) => return Poll::Ready(Err((Error::Malformed(flaw), None))),
            }
            let end = match ready!(self.poll_fill(context, READ_BYTES)) {
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Ok(_) => continue,
                Err(error) => error,
            };
            return Poll::Ready(Err((Error::Closed(end.into()), None)));
        }
    }

    /// Reads something of what comes. A buffer that is made for it has room for so much. Returns how much; 0 is the end.
    fn poll_fill(&mut self, context: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        if self.buffer.capacity() - self.buffer.len() < room.min(SPARE_BYTES_MIN) {
            self.buffer.reserve(room);
        }
        let read = ready!(poll_read_buf(Pin::new(&mut self.outbound), context, &mut self.buffer));
        self.heard = Instant::now();
        Poll::Ready(read)
    }
}
