//! Requests that the store answers while they are being read: hyper never sees them.
//!
//! Most of what a hit costs beside the kernel is to take a request apart and to put an answer together in forms that are made
//! for everything that HTTP/1.1 can be. A hit on a connection that rests needs none of that: one whole GET has come, and
//! nothing else. Whatever is not so plain is hyper's, untouched.

use super::activity::{Activity, Busy};
use super::connection::Connections;
use super::framing;
use super::refusal::Refusal;
use super::wire::{Breakable, Seen, poll_write_gathered};
use crate::proxy::{AtHand, Client, Next, PlainGet};
use http::Request;
use httparse::Status;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// A connection's way past hyper.
#[derive(Debug)]
pub(super) struct Express {
    connections: Arc<Connections>,
    client: Client,
    activity: Arc<Activity>,
    seen: Arc<Seen>,
    sending: Option<Sending>,
}

#[derive(Debug)]
struct Sending {
    answer: AtHand,
    is_written: bool,
    _busy: Busy,
}

/// How large a head may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) bytes_max: usize,
    pub(super) fields_max: usize,
}

impl Limits {
    /// Whether a request's head is larger than it may be. hyper sees to neither limit in every case: over HTTP/2 it counts no
    /// fields, and over HTTP/1 its buffer may be larger than what it was told.
    pub(super) fn refuse<B>(self, request: &Request<B>) -> bool {
        let headers = request.headers();
        let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD);
        headers.len() > self.fields_max || target + fields.sum::<usize>() > self.bytes_max
    }
}

/// What a line has beside a name and a value: a colon, a space, and its end.
const FIELD_OVERHEAD: usize = 4;

/// A request with more fields is hyper's.
const FIELDS_MAX: usize = 64;

/// Hands the request on that these bytes are. `None`: it is not a plain GET over HTTP/1.1 on a connection that persists, or it
/// gets no answer from there.
pub(super) fn read<R>(
    bytes: &[u8],
    limits: Limits,
    answer: impl FnOnce(PlainGet<'_>) -> Option<R>,
) -> Option<R> {
    if bytes.len() > limits.bytes_max {
        return None;
    }
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut head = httparse::Request::new(&mut []);
    let parsed = head.parse_with_uninit_headers(bytes, &mut fields);
    let (Ok(Status::Complete(length)), Some("GET"), Some(target)) = (parsed, head.method, head.path) else {
        return None;
    };
    let is_alone =
        length == bytes.len() && head.version == Some(1) && head.headers.len() <= limits.fields_max;
    if !is_alone || !framing::is_plain(bytes, target, head.headers) {
        return None;
    }
    answer(PlainGet::of(target, head.headers)?)
}

impl Express {
    pub(super) fn new(
        connections: Arc<Connections>,
        client: Client,
        activity: Arc<Activity>,
        seen: Arc<Seen>,
    ) -> Self {
        Self { connections, client, activity, seen, sending: None }
    }

    /// Takes these bytes, where they are one whole request and the store has its answer at hand. If not, they are hyper's,
    /// and nothing has happened.
    pub(super) fn takes(&mut self, bytes: &[u8]) -> bool {
        if !bytes.starts_with(b"GET ") {
            return false;
        }
        let Some(turn) = self.activity.next_express(self.connections.requests_max) else { return false };
        // Otherwise hyper has the beginning of this request, or one before it.
        let Some(unread) = self.seen.unread(turn.number()) else { return false };
        let Some(answer) = self.connections.at_hand(bytes, self.client) else { return false };
        unread.skip();
        let busy = turn.take();
        self.sending = Some(Sending { answer, is_written: false, _busy: busy });
        true
    }

    /// What has come in place of a request is refused.
    pub(super) fn refused(&self, refusal: Refusal) {
        self.connections.refused(refusal, self.client, &self.seen);
    }

    /// Sends what is left of an answer.
    pub(super) fn poll_send<S: Breakable + AsyncWrite + Unpin>(
        &mut self,
        mut stream: Pin<&mut S>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(Sending { answer, is_written, .. }) = &mut self.sending else { return Poll::Ready(Ok(())) };
        while !*is_written {
            let written = ready!(match answer.next() {
                Next::Slices(slices) => poll_write_gathered(stream.as_mut(), context, &slices),
                Next::HeadOfSpan(head) => stream.as_mut().poll_send(context, head, true),
                Next::Span(span, offset) => stream.as_mut().poll_write_span(context, span, offset),
            })?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *is_written = answer.sent(written)?;
        }
        ready!(stream.poll_flush(context))?;
        self.sending = None;
        Poll::Ready(Ok(()))
    }
}
