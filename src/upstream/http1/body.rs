//! Bodies of responses, taken out of what comes.

use super::super::request::RequestBodyError;
use super::head::{Flaw, Framing, Lines, headers};
use super::outbound::Stuck;
use super::{Exchange, Line, READ_BYTES, Stream};
use crate::chunked::Chunked;
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use httparse::Status;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncReadExt, Chain, Join, ReadHalf, WriteHalf};
use tokio::time::Instant;

/// The body of a response. It owns the connection.
#[derive(Debug)]
pub(in super::super) struct Incoming {
    /// `None` once the body has broken off.
    exchange: Option<Box<Exchange>>,
    at: At,
    /// Whether the connection may serve again, for all that the head says.
    persists: bool,
}

/// Where in a body one is.
#[derive(Debug)]
enum At {
    /// So many bytes are to come.
    Length(u64),
    /// In a body that ends with the connection.
    UntilClose,
    /// In chunks, with so much that is no data since the last of the data.
    Chunks {
        at: Chunked,
        overhead: usize,
    },
    /// Behind the last chunk.
    Trailers(Lines),
    /// Trailers are to be handed on.
    Ending(Box<HeaderMap>),
    End,
    /// What was an HTTP connection is something else now.
    Tunnel,
    /// What comes next is not sound.
    Broken(Option<Fault>),
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum Fault {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Flaw(Flaw),
    #[error("it ended too early")]
    Short,
    #[error("more than all of it")]
    Surplus,
    #[error(transparent)]
    Request(#[from] RequestBodyError),
}

/// The two ends of a connection that was upgraded.
pub(in super::super) type Tunnel =
    Join<Chain<io::Cursor<Bytes>, ReadHalf<Box<dyn Stream>>>, WriteHalf<Box<dyn Stream>>>;

/// The most that is read of a body at once.
const PIECE_BYTES_MAX: usize = 16 << 10;

/// The longest that chunk extensions, or trailers, may be.
const OVERHEAD_BYTES_MAX: usize = 16 << 10;

/// A response with more trailers is broken off.
const TRAILERS_MAX: usize = 100;

impl Incoming {
    pub(super) fn new(exchange: Box<Exchange>, framing: Framing, persists: bool) -> Self {
        let at = match framing {
            Framing::Length(0) => At::End,
            Framing::Length(length) => At::Length(length),
            Framing::Chunked => At::Chunks { at: Chunked::Start, overhead: 0 },
            Framing::UntilClose => At::UntilClose,
            Framing::Tunnel => At::Tunnel,
        };
        Self { exchange: Some(exchange), at, persists }
    }

    /// When something came last; `None`: it has broken off.
    pub(in super::super) fn heard(&self) -> Option<Instant> {
        self.exchange.as_ref().map(|exchange| exchange.heard)
    }

    /// Waits until this moment.
    pub(in super::super) fn poll_alarm(&mut self, until: Instant, context: &mut Context<'_>) -> Poll<()> {
        self.exchange.as_mut().map_or(Poll::Pending, |exchange| exchange.alarm.poll(until, context))
    }

    /// Whether all of it has come.
    pub(in super::super) fn is_here(&self) -> bool {
        match (&self.at, &self.exchange) {
            (At::Length(left), Some(exchange)) => *left <= exchange.buffer.len() as u64,
            (At::End, _) => true,
            _ => false,
        }
    }

    /// The connection, for the next request, where it may have one.
    pub(in super::super) fn into_line(self) -> Option<Line> {
        let Exchange { outbound, buffer, header_bytes_max, heard, alarm } = *self.exchange?;
        if !matches!(self.at, At::End) || !self.persists || !buffer.is_empty() {
            return None;
        }
        outbound.into_stream().map(|stream| Line { stream, header_bytes_max, heard, alarm })
    }

    /// What the connection has become that is no HTTP connection any more; `None`: it is one still.
    pub(in super::super) fn into_tunnel(self) -> Option<Tunnel> {
        let Exchange { outbound, buffer, .. } = *self.exchange.filter(|_| matches!(self.at, At::Tunnel))?;
        let (reader, writer) = tokio::io::split(outbound.into_stream()?);
        let reader = AsyncReadExt::chain(io::Cursor::new(buffer.freeze()), reader);
        Some(tokio::io::join(reader, writer))
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let Some(exchange) = &mut self.exchange else { return Poll::Ready(None) };
        // That the connection takes no more is no matter as long as something comes.
        if let Err(Stuck::Body(error)) = exchange.outbound.poll_send(context) {
            return Poll::Ready(Some(Err(error.into())));
        }
        loop {
            match self.at.take(&mut exchange.buffer) {
                Ok(Some(frame)) => {
                    // What follows may have had no room in the buffer.
                    if matches!(self.at, At::End)
                        && let Poll::Ready(Ok(1..)) = exchange.poll_fill(context, 1)
                    {
                        return Poll::Ready(Some(Err(Fault::Surplus)));
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Ok(None) => {}
                Err(fault) => return Poll::Ready(Some(Err(fault))),
            }
            let room = match &self.at {
                At::End | At::Tunnel => return Poll::Ready(None),
                At::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX).min(PIECE_BYTES_MAX),
                At::UntilClose | At::Chunks { .. } | At::Trailers(_) | At::Ending(_) | At::Broken(_) => {
                    READ_BYTES
                }
            };
            match ready!(exchange.poll_fill(context, room)) {
                Ok(0) if matches!(self.at, At::UntilClose) => self.at = At::End,
                Ok(0) => return Poll::Ready(Some(Err(Fault::Short))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let polled = self.poll_data(context);
        if let Poll::Ready(Some(Err(_))) = polled {
            self.exchange = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.at, At::End | At::Tunnel)
    }

    fn size_hint(&self) -> SizeHint {
        match self.at {
            At::Length(left) => SizeHint::with_exact(left),
            At::End | At::Tunnel => SizeHint::with_exact(0),
            At::UntilClose | At::Chunks { .. } | At::Trailers(_) | At::Ending(_) | At::Broken(_) => {
                SizeHint::default()
            }
        }
    }
}

impl At {
    /// Takes the next piece out of what has come; `None`: more must come, or nothing does.
    fn take(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame<Bytes>>, Fault> {
        self.skip(buffer)?;
        let most = match self {
            Self::Ending(trailers) => {
                let trailers = Frame::trailers(std::mem::take(&mut **trailers));
                *self = Self::End;
                return Ok(Some(trailers));
            }
            Self::Length(left) | Self::Chunks { at: Chunked::Data(left), .. } => *left,
            Self::UntilClose => u64::MAX,
            Self::Chunks { .. } | Self::Trailers(_) | Self::End | Self::Tunnel | Self::Broken(_) => {
                return Ok(None);
            }
        };
        if buffer.is_empty() {
            return Ok(None);
        }
        let data = buffer.split_to(usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len()));
        if let Self::Length(left) | Self::Chunks { at: Chunked::Data(left), .. } = self {
            *left -= data.len() as u64;
        }
        // Whoever reads the last piece is to know that it is the last.
        match self.skip(buffer) {
            Err(Fault::Surplus) => return Err(Fault::Surplus),
            Err(fault) => *self = Self::Broken(Some(fault)),
            Ok(()) => {}
        }
        Ok(Some(Frame::data(data.freeze())))
    }

    /// Reads what is no data, as far as it has come.
    fn skip(&mut self, buffer: &mut BytesMut) -> Result<(), Fault> {
        loop {
            match self {
                Self::Length(0) => *self = Self::End,
                Self::Chunks { at: Chunked::Data(0), overhead } => {
                    *self = Self::Chunks { at: Chunked::DataEnd, overhead: *overhead };
                }
                Self::Chunks { at: Chunked::Data(_), overhead } => {
                    *overhead = 0;
                    return Ok(());
                }
                Self::Chunks { at: Chunked::Last, .. } => *self = Self::Trailers(Lines::default()),
                Self::Chunks { at, overhead } => {
                    if buffer.is_empty() {
                        return Ok(());
                    }
                    let (next, rest) = at.read(buffer).ok_or(Fault::Flaw("a malformed chunk"))?;
                    let read = buffer.len() - rest.len();
                    *at = next;
                    *overhead += read;
                    if *overhead > OVERHEAD_BYTES_MAX {
                        return Err(Fault::Flaw("chunk extensions without end"));
                    }
                    buffer.advance(read);
                }
                Self::Trailers(lines) => {
                    let end = lines.end(buffer).map_err(Fault::Flaw)?;
                    if end.unwrap_or(buffer.len()) > OVERHEAD_BYTES_MAX {
                        return Err(Fault::Flaw("trailers without end"));
                    }
                    let Some(end) = end else { return Ok(()) };
                    let trailers = trailers(&buffer.split_to(end).freeze()).map_err(Fault::Flaw)?;
                    *self = if trailers.is_empty() { Self::End } else { Self::Ending(Box::new(trailers)) };
                }
                Self::End | Self::Ending(_) if !buffer.is_empty() => return Err(Fault::Surplus),
                Self::Broken(fault) => return fault.take().map_or(Ok(()), Err),
                Self::Length(_) | Self::UntilClose | Self::End | Self::Ending(_) | Self::Tunnel => {
                    return Ok(());
                }
            }
        }
    }
}

fn trailers(section: &Bytes) -> Result<HeaderMap, Flaw> {
    let mut fields = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    match httparse::parse_headers(section, &mut fields) {
        Ok(Status::Complete((_, fields))) => headers(section, fields),
        Ok(Status::Partial) | Err(_) => Err("a malformed trailer"),
    }
}
