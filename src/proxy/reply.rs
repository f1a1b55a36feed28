//! An answer in the form of HTTP/1.1, as bytes for its connection: a hit, or what comes straight from the upstream.

use super::answer::Account;
use crate::body::{Piece, Pieces, Span};
use crate::store::Stored;
use crate::telemetry::BodyEnd;
use crate::upstream;
use bytes::Bytes;
use http_body::Body as _;
use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;

/// An answer on its way to the client. When it is dropped, the account of its request is closed.
#[derive(Debug)]
pub struct Reply {
    /// The head, and later what stands between the pieces of a body that comes in chunks.
    head: Vec<u8>,
    head_sent: usize,
    content: Content,
    /// How much has been sent of the piece of the body that is being sent.
    piece_sent: usize,
    account: Account,
}

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Content {
    /// A small one, which is sent from where it is stored.
    Stored(Stored),
    /// Any other that is stored: the piece that is being sent, and those behind it. Whoever counts large bodies is to see that the store
    /// does not have it any more.
    Pieces(Option<Piece>, Pieces),
    /// One that comes from the upstream: the piece that is being sent, and where the next ones come from.
    Coming { piece: Bytes, body: upstream::Body, is_chunked: bool, is_over: bool },
}

impl Content {
    /// A stored body that is not small. `None`: it cannot be sent piece by piece.
    pub(super) fn large(stored: &Stored) -> Option<(Self, u64)> {
        let mut pieces = stored.body().pieces()?;
        let length = pieces.length();
        Some((Self::Pieces(pieces.next().transpose().ok()?, pieces), length))
    }

    fn length(&self) -> usize {
        match self {
            Self::Stored(stored) => stored.body().small().map_or(0, Bytes::len),
            Self::Pieces(piece, _) => piece.as_ref().map_or(0, Piece::length),
            Self::Coming { piece, .. } => piece.len(),
        }
    }

    /// Goes on to the next piece. Returns whether there is one, or may be.
    fn go_on(&mut self) -> io::Result<bool> {
        match self {
            Self::Stored(_) => Ok(false),
            Self::Pieces(piece, pieces) => {
                *piece = pieces.next().transpose().map_err(io::Error::other)?;
                Ok(piece.is_some())
            }
            Self::Coming { piece, is_over, .. } => {
                piece.clear();
                Ok(!*is_over)
            }
        }
    }
}

/// What of an answer is to be sent next.
#[derive(Debug)]
pub enum Next<'a> {
    /// These bytes.
    Slices([IoSlice<'a>; 2]),
    /// These bytes; what comes behind them is sent in another way.
    HeadOfSpan(&'a [u8]),
    /// A body that is kept in pages of a file, from this offset on.
    Span(&'a Span, u64),
}

impl Reply {
    pub(super) fn new(head: Vec<u8>, content: Content, account: Account) -> Self {
        Self { head, head_sent: 0, content, piece_sent: 0, account }
    }

    /// The answer is the last of its connection. Nothing of it has been sent.
    pub fn is_last(&mut self) {
        self.head.truncate(self.head.len() - b"\r\n".len());
        self.head.extend_from_slice(b"connection: close\r\n\r\n");
    }

    /// Waits until there is something to be sent. Cancel-safe.
    ///
    /// # Errors
    /// The upstream's body broke off: the client has to see that.
    pub fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { head, head_sent, content, account, .. } = self;
        let Content::Coming { piece, body, is_chunked, is_over } = content else {
            return Poll::Ready(Ok(()));
        };
        // A body that comes with its head goes out with it; the head does not wait for any other.
        while piece.is_empty() && !*is_over && (*head_sent == head.len() || *head_sent == 0 && body.is_here())
        {
            let frame = ready!(Pin::new(&mut *body).poll_frame(context)).transpose();
            let frame = frame.inspect_err(|_| account.end(BodyEnd::BrokenOff)).map_err(io::Error::other)?;
            *is_over = frame.is_none() || body.is_end_stream();
            // Trailers are for those who ask for them, and a plain request does not.
            let data = frame.and_then(|frame| frame.into_data().ok()).unwrap_or_default();
            account.sent(data.len());
            if *is_chunked {
                if *head_sent == head.len() {
                    head.clear();
                    *head_sent = 0;
                }
                push_chunk(head, &data, *is_over)?;
                return Poll::Ready(Ok(()));
            }
            *piece = data;
        }
        Poll::Ready(Ok(()))
    }

    /// What is to be sent next.
    pub fn next(&self) -> Next<'_> {
        let head = IoSlice::new(&self.head[self.head_sent..]);
        let bytes = match &self.content {
            Content::Stored(stored) => stored.body().small(),
            Content::Pieces(Some(Piece::Span(_)), _) if !head.is_empty() => {
                return Next::HeadOfSpan(&self.head[self.head_sent..]);
            }
            Content::Pieces(Some(Piece::Span(span)), _) => return Next::Span(span, self.piece_sent as u64),
            Content::Pieces(Some(Piece::Bytes(bytes)), _) | Content::Coming { piece: bytes, .. } => {
                Some(bytes)
            }
            Content::Pieces(None, _) => None,
        };
        Next::Slices([head, IoSlice::new(bytes.map_or(&[], |bytes| &bytes[self.piece_sent..]))])
    }

    /// So many bytes of that have been sent. Returns whether they were the last.
    ///
    /// # Errors
    /// There is no more, although they were not the last: the client has to see that.
    pub fn sent(&mut self, bytes: usize) -> io::Result<bool> {
        let of_head = bytes.min(self.head.len() - self.head_sent);
        self.head_sent += of_head;
        self.piece_sent += bytes - of_head;
        if !matches!(self.content, Content::Coming { .. }) {
            self.account.sent(bytes - of_head);
        }
        if self.head_sent < self.head.len() || self.piece_sent < self.content.length() {
            return Ok(false);
        }
        self.piece_sent = 0;
        let is_last = !self.content.go_on()?;
        if is_last {
            self.account.end(BodyEnd::Complete);
        }
        Ok(is_last)
    }

    /// All of it was sent, at this moment.
    pub fn close(mut self: Box<Self>, now: Instant) {
        self.account.ended(now);
    }

    /// Whether the upstream has yet to send some of it.
    pub fn is_coming(&self) -> bool {
        matches!(self.content, Content::Coming { is_over: false, .. })
    }
}

/// RFC 9112 §7.1.
fn push_chunk(head: &mut Vec<u8>, data: &[u8], is_last: bool) -> io::Result<()> {
    // A chunk without data would be the last.
    if !data.is_empty() {
        write!(head, "{:x}\r\n", data.len())?;
        head.extend_from_slice(data);
        head.extend_from_slice(b"\r\n");
    }
    if is_last {
        head.extend_from_slice(b"0\r\n\r\n");
    }
    Ok(())
}

/// Adds a line to a head.
pub(super) fn push(head: &mut Vec<u8>, start: &[u8], value: &[u8]) {
    head.extend_from_slice(start);
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

/// Room for a head: what is longer moves once.
pub(super) const HEAD_BYTES: usize = 512;
