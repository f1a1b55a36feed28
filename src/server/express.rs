//! Requests that hyper never sees: those that the store answers while they are being read, and those that merely pass.
//!
//! Most of what these cost beside the kernel is to take a request apart and to put an answer together in forms that are made
//! for everything that HTTP/1.1 can be. A whole plain GET on a connection that rests needs none of that.
//! Whatever is not so plain is hyper's, untouched, or becomes hyper's when that is found out.

use super::activity::{Activity, Busy};
use super::connection::Connections;
use super::framing;
use super::refusal::Refusal;
use super::seen::Seen;
use super::stream::{Breakable, poll_write_gathered};
use crate::proxy::{Client, Next, Passed, PlainGet, Reply, Shortcut, Through};
use http::Request;
use httparse::Status;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;
use tokio::time::Instant;

/// A connection's way past hyper.
#[derive(Debug)]
pub(super) struct Express {
    connections: Arc<Connections>,
    client: Client,
    activity: Arc<Activity>,
    seen: Arc<Seen>,
    state: State,
    /// Whether all requests that follow are hyper's.
    is_retired: bool,
    /// Whether there is no next request: an answer has said that the connection ends with it, or the client has left.
    is_over: bool,
}

/// What becomes of a request that hyper does not see.
#[derive(Debug)]
enum State {
    /// There is none.
    None,
    /// It is upstream.
    Through { through: Through, number: u64, busy: Busy },
    /// Its answer is being sent.
    Sending { reply: Box<Reply>, is_sent: bool, busy: Busy },
    /// It is hyper's after all.
    Unread(Arc<[u8]>),
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

/// Hands the request on that these bytes begin with. Returns how many of them it is, and what it comes to. `None`: it is not a
/// plain GET over HTTP/1.1 on a connection that persists, or it gets no answer from there.
pub(super) fn read<R>(
    bytes: &[u8],
    limits: Limits,
    answer: impl FnOnce(PlainGet<'_>) -> Option<R>,
) -> Option<(usize, R)> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut head = httparse::Request::new(&mut []);
    let parsed = head.parse_with_uninit_headers(bytes, &mut fields);
    let (Ok(Status::Complete(length)), Some("GET"), Some(target)) = (parsed, head.method, head.path) else {
        return None;
    };
    let is_within = length <= limits.bytes_max && head.headers.len() <= limits.fields_max;
    let bytes = &bytes[..length];
    if head.version != Some(1) || !is_within || !framing::is_plain(bytes, target, head.headers) {
        return None;
    }
    Some((length, answer(PlainGet::of(bytes, target, head.headers)?)?))
}

impl Express {
    pub(super) fn new(
        connections: Arc<Connections>,
        client: Client,
        activity: Arc<Activity>,
        seen: Arc<Seen>,
    ) -> Self {
        Self { connections, client, activity, seen, state: State::None, is_retired: false, is_over: false }
    }

    /// Whether there is no next request, so that nothing more is read.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// All requests that follow what is under way are hyper's.
    pub(super) fn retire(&mut self) {
        self.is_retired = true;
    }

    /// Whether they are.
    pub(super) fn is_retired(&self) -> bool {
        self.is_retired || self.is_over
    }

    /// Whether the request that comes next may be one that needs no tables: hyper has the beginning of none, and has answered what it had.
    pub(super) fn may_take(&self) -> bool {
        let turn = self.activity.next_express(self.connections.requests_max);
        !self.is_retired && turn.is_some_and(|turn| self.seen.unread(turn.number()).is_some())
    }

    /// Whether no request is in progress, of hyper's or of another.
    pub(super) fn rests(&self) -> bool {
        !self.activity.is_busy()
    }

    /// Takes the request that these bytes begin with, where it is whole and needs no tables. Returns how many of them it is. `None`: they
    /// are hyper's, and nothing has happened.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Option<usize> {
        if !bytes.starts_with(b"GET ") {
            return None;
        }
        let turn = self.activity.next_express(self.connections.requests_max)?;
        // Otherwise hyper has the beginning of this request, or one before it.
        let number = turn.number();
        let unread = self.seen.unread(number)?;
        let (length, shortcut) = self.connections.shortcut(bytes, self.client)?;
        self.state = match shortcut {
            Shortcut::AtHand(reply) => {
                unread.skip();
                State::Sending { reply, is_sent: false, busy: turn.take() }
            }
            Shortcut::Through(through) => State::Through { through, number, busy: turn.go_through() },
        };
        Some(length)
    }

    /// What has come in place of a request is refused.
    pub(super) fn refused(&self, refusal: Refusal) {
        self.connections.refused(refusal, self.client, &self.seen);
    }

    /// Whether the upstream is waited for, so that the client may leave meanwhile.
    pub(super) fn waits(&self) -> bool {
        match &self.state {
            State::Through { .. } => true,
            State::Sending { reply, .. } => reply.is_coming(),
            State::None | State::Unread(_) => false,
        }
    }

    /// The client has left. If it has merely ended what it says, then of an answer that has begun it finds the length wanting.
    pub(super) fn abandon(&mut self) {
        self.is_over = true;
        self.state = State::None;
    }

    /// A request that is hyper's after all: the bytes that hyper has not seen.
    pub(super) fn unread(&mut self) -> Option<Arc<[u8]>> {
        match std::mem::replace(&mut self.state, State::None) {
            State::Unread(request) => Some(request),
            state => {
                self.state = state;
                None
            }
        }
    }

    /// Goes on with what is under way. Ready: nothing is.
    pub(super) fn poll<S: Breakable + AsyncWrite + Unpin>(
        &mut self,
        stream: Pin<&mut S>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = self.poll_on(stream, context);
        if let Poll::Ready(Err(_)) = polled {
            // The client is to see that something is missing, and all that is left is to close the connection.
            self.seen.broke_off();
            self.state = State::None;
        }
        polled
    }

    fn poll_on<S: Breakable + AsyncWrite + Unpin>(
        &mut self,
        stream: Pin<&mut S>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if let State::Through { .. } = self.state {
            ready!(self.poll_through(context))?;
        }
        match self.state {
            State::Sending { .. } => self.poll_send(stream, context),
            State::None | State::Through { .. } | State::Unread(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_through(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let State::Through { through, .. } = &mut self.state else { return Poll::Ready(Ok(())) };
        let passed = ready!(Pin::new(through).poll(context));
        let State::Through { through, number, busy } = std::mem::replace(&mut self.state, State::None) else {
            return Poll::Ready(Ok(()));
        };
        self.state = match passed {
            Some(Passed::Answer(mut reply)) => {
                if let Some(unread) = self.seen.unread(number) {
                    unread.skip();
                }
                busy.is_answered();
                let is_last = self.connections.ends.draining.is_cancelled();
                if is_last {
                    self.activity.exhausted.notify_one();
                    self.seen.end_unexpectedly();
                    reply.is_last();
                    self.is_over = true;
                }
                State::Sending { reply, is_sent: false, busy }
            }
            Some(Passed::Begun(begun)) => {
                busy.hand_over(begun);
                State::Unread(through.request())
            }
            None => return Poll::Ready(Err(io::Error::other("a request has failed within"))),
        };
        Poll::Ready(Ok(()))
    }

    /// Sends what is left of an answer.
    fn poll_send<S: Breakable + AsyncWrite + Unpin>(
        &mut self,
        mut stream: Pin<&mut S>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let State::Sending { reply, is_sent, .. } = &mut self.state else { return Poll::Ready(Ok(())) };
        while !*is_sent {
            if reply.poll_ready(context)?.is_pending() {
                // What has been written so far need not wait.
                ready!(stream.poll_flush(context))?;
                return Poll::Pending;
            }
            let written = ready!(match reply.next() {
                Next::Slices(slices) => poll_write_gathered(stream.as_mut(), context, &slices),
                Next::HeadOfSpan(head) => stream.as_mut().poll_send(context, head, true),
                Next::Span(span, offset) => stream.as_mut().poll_write_span(context, span, offset),
            })?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *is_sent = reply.sent(written)?;
        }
        ready!(stream.poll_flush(context))?;
        if let State::Sending { reply, busy, .. } = std::mem::replace(&mut self.state, State::None) {
            let now = Instant::now();
            reply.close(now);
            busy.close(now);
        }
        Poll::Ready(Ok(()))
    }
}
