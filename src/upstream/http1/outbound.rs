//! The way out: a request that is at hand, or an upload that has a task of its own.

use super::super::request::{Outgoing, RequestBody, RequestBodyError};
use super::super::settings::Origin;
use super::Stream;
use super::head::{self, Framing};
use bytes::buf::Chain;
use bytes::{Buf, Bytes, BytesMut};
use http_body::Body as _;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite as _, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio_util::task::AbortOnDropHandle;

/// A connection that is read from, and on which a request goes out.
pub(super) enum Outbound {
    /// A request that is at hand.
    AtHand { stream: Box<dyn Stream>, sending: Sending },
    /// An upload, which goes on by itself.
    Upload { stream: ReadHalf<Box<dyn Stream>>, upload: Upload },
}

/// A request that is at hand.
pub(super) enum Sending {
    /// This is left of its head and of its body; the body is kept until the first byte has been sent.
    Left(Chain<BytesMut, Bytes>, Option<RequestBody>),
    Sent,
    /// The connection takes no more. There may be an answer all the same.
    Broken,
}

pub(super) enum Upload {
    Underway(AbortOnDropHandle<Uploaded>),
    Sent(WriteHalf<Box<dyn Stream>>),
    Broken,
}

/// The half of the connection that was written to; `None`: it took no more.
type Uploaded = Result<Option<WriteHalf<Box<dyn Stream>>>, RequestBodyError>;

/// Why the request cannot be sent.
pub(super) enum Stuck {
    /// Its body broke off.
    Body(RequestBodyError),
    /// The connection does not take even its first byte.
    Unsent(io::Error, RequestBody),
}

/// A body that is at hand goes out with its head in one piece, unless it is larger.
const JOINED_BYTES_MAX: usize = 8 << 10;

/// What of an upload has arrived goes out in pieces of about this size.
const PIECE_BYTES: usize = 32 << 10;

impl std::fmt::Debug for Outbound {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::AtHand { .. } => "AtHand",
            Self::Upload { .. } => "Upload",
        })
    }
}

impl Outbound {
    pub(super) fn begin(
        stream: Box<dyn Stream>,
        outgoing: &Outgoing,
        origin: &Origin,
        body: RequestBody,
    ) -> Self {
        let framing = match &body {
            RequestBody::Empty => None,
            RequestBody::Buffered(bytes) => Some(Framing::Length(bytes.len() as u64)),
            RequestBody::Streamed(_) => {
                Some(body.size_hint().exact().map_or(Framing::Chunked, Framing::Length))
            }
        };
        let mut head = head::request(outgoing, origin, framing);
        let bytes = match &body {
            RequestBody::Empty => Bytes::new(),
            RequestBody::Buffered(bytes) if bytes.len() <= JOINED_BYTES_MAX => {
                head.extend_from_slice(bytes);
                Bytes::new()
            }
            RequestBody::Buffered(bytes) => bytes.clone(),
            RequestBody::Streamed(_) => {
                let (stream, half) = tokio::io::split(stream);
                let upload = tokio::spawn(upload(half, head, body, framing == Some(Framing::Chunked)));
                return Self::Upload { stream, upload: Upload::Underway(AbortOnDropHandle::new(upload)) };
            }
        };
        Self::AtHand { stream, sending: Sending::Left(head.chain(bytes), Some(body)) }
    }

    /// Sends what can be sent.
    pub(super) fn poll_send(&mut self, context: &mut Context<'_>) -> Result<(), Stuck> {
        match self {
            Self::AtHand { stream, sending } => sending.poll(stream, context),
            Self::Upload { upload, .. } => upload.poll(context).map_err(Stuck::Body),
        }
    }

    /// The connection for the next request; `None` where this one has not been sent in full.
    pub(super) fn into_stream(self) -> Option<Box<dyn Stream>> {
        match self {
            Self::AtHand { stream, sending: Sending::Sent } => Some(stream),
            Self::Upload { stream, upload: Upload::Sent(half) } => Some(stream.unsplit(half)),
            Self::AtHand { .. } | Self::Upload { .. } => None,
        }
    }
}

impl AsyncRead for Outbound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::AtHand { stream, .. } => Pin::new(stream).poll_read(context, buffer),
            Self::Upload { stream, .. } => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl Sending {
    fn poll(&mut self, stream: &mut Box<dyn Stream>, context: &mut Context<'_>) -> Result<(), Stuck> {
        let Self::Left(left, body) = self else { return Ok(()) };
        while left.has_remaining() {
            match Pin::new(&mut *stream).poll_write(context, left.chunk()) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(written)) if written > 0 => {
                    left.advance(written);
                    *body = None;
                }
                Poll::Ready(written) => {
                    let error = written.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                    let unsent = body.take();
                    *self = Self::Broken;
                    return unsent.map_or(Ok(()), |body| Err(Stuck::Unsent(error, body)));
                }
            }
        }
        match Pin::new(stream).poll_flush(context) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => *self = Self::Sent,
            Poll::Ready(Err(_)) => *self = Self::Broken,
        }
        Ok(())
    }
}

impl Upload {
    fn poll(&mut self, context: &mut Context<'_>) -> Result<(), RequestBodyError> {
        if let Self::Underway(task) = self
            && let Poll::Ready(ended) = Pin::new(task).poll(context)
        {
            // It is not aborted while it is held; if it has panicked, the rest will not come.
            let half = ended.unwrap_or(Ok(None))?;
            *self = half.map_or(Self::Broken, Self::Sent);
        }
        Ok(())
    }
}

/// Sends a body as it arrives, behind this head.
async fn upload(
    mut half: WriteHalf<Box<dyn Stream>>,
    mut piece: BytesMut,
    mut body: RequestBody,
    is_chunked: bool,
) -> Uploaded {
    loop {
        let frame = poll_fn(|context| match Pin::new(&mut body).poll_frame(context) {
            // What has come so far need not wait.
            Poll::Pending if piece.is_empty() => Poll::Pending,
            polled => Poll::Ready(polled),
        });
        let is_end = match frame.await {
            Poll::Pending => false,
            Poll::Ready(None) => true,
            Poll::Ready(Some(frame)) => {
                // Trailers stay behind.
                if let Ok(data) = frame?.into_data() {
                    add(&mut piece, &data, is_chunked);
                }
                if piece.len() < PIECE_BYTES {
                    continue;
                }
                false
            }
        };
        if is_end && is_chunked {
            piece.extend_from_slice(b"0\r\n\r\n");
        }
        body.pause();
        if half.write_all_buf(&mut piece).await.is_err() || half.flush().await.is_err() {
            return Ok(None);
        }
        if is_end {
            return Ok(Some(half));
        }
    }
}

/// RFC 9112 §7.1.
fn add(piece: &mut BytesMut, data: &[u8], is_chunked: bool) {
    if !is_chunked {
        return piece.extend_from_slice(data);
    }
    // A chunk without data would be the last.
    if !data.is_empty() {
        piece.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
        piece.extend_from_slice(data);
        piece.extend_from_slice(b"\r\n");
    }
}
