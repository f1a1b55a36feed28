//! The body of an upstream's response.

use super::alarm::Alarm;
use super::breaker::Trial;
use super::error::Cause;
use super::health::Verdict;
use super::http1::{self, Fault};
use super::inbound::Inbound;
use super::limit::Place;
use super::members::Member;
use super::pool::Sent;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// The body of an upstream's response. It holds its place at the upstream and its connection until it ends or is dropped.
//
// Boxed, because the response that it belongs to is handed on many times before it is read.
#[derive(Debug)]
pub struct Body(Box<Reading>);

#[derive(Debug)]
struct Reading {
    incoming: Incoming,
    /// `None` once the body has ended.
    exchange: Option<Exchange>,
    between_bytes: Duration,
    deadline: Option<Instant>,
    /// Until when it is waited for what comes next; `None`: nobody waits.
    until: Option<Instant>,
    /// For a body that has no connection of its own.
    alarm: Alarm,
}

/// A body as it comes.
#[derive(Debug)]
pub(super) enum Incoming {
    Http1(http1::Incoming),
    Http2(Inbound),
    /// It has ended, or broken off.
    Over,
}

/// The head of a final response.
//
// Boxed, because it is handed on many times, each of which would cost more than that.
#[derive(Debug)]
pub(super) enum Head {
    Table(Box<Response<()>>),
    /// Its fields were taken as they lay.
    Taken(StatusCode),
}

impl Head {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Table(response) => response.status(),
            Self::Taken(status) => *status,
        }
    }

    /// The response, which has no fields where they were taken.
    pub(super) fn with<B>(self, body: B) -> Response<B> {
        match self {
            Self::Table(response) => response.map(|()| body),
            Self::Taken(status) => {
                let mut response = Response::new(body);
                *response.status_mut() = status;
                response
            }
        }
    }
}

/// What is held, and what has yet to be said, until a body has ended.
#[derive(Debug)]
pub(super) struct Exchange {
    /// What another wants to be held as long, and to be dropped then: first, before whoever waits for the place has it.
    pub(super) companion: Option<Box<dyn Any + Send + Sync>>,
    pub(super) sent: Sent,
    /// `None`: the head was a verdict.
    pub(super) probation: Option<Probation>,
    /// Held, so that nobody else has it.
    pub(super) _place: Place,
    /// Whether the body's end is not that of the exchange.
    pub(super) is_tunnel: bool,
}

/// A response whose head was good, and whose body may still break. Dropped, it has done well.
#[derive(Debug)]
pub(super) struct Probation {
    member: Arc<Member>,
    /// `None` where there is no circuit breaker, and once there is a verdict.
    trial: Option<Trial>,
    is_over: bool,
}

impl Probation {
    pub(super) fn begin(member: Arc<Member>, mut trial: Option<Trial>) -> Self {
        if let Some(trial) = &mut trial {
            trial.answered();
        }
        Self { member, trial, is_over: false }
    }

    fn failed(mut self) {
        self.is_over = true;
        self.member.pool().judge(Verdict::Bad);
        if let Some(trial) = self.trial.take() {
            trial.failed();
        }
    }
}

impl Drop for Probation {
    fn drop(&mut self) {
        if !self.is_over {
            self.member.pool().judge(Verdict::Good);
        }
    }
}

impl Exchange {
    /// The body broke, for the upstream's fault unless the request had not been written: then the client may have broken it.
    fn failed(self) {
        if let Some(probation) = self.probation
            && self.sent.is_written()
        {
            probation.failed();
        }
    }
}

/// The body ended before it was whole.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection broke, or the framing is invalid.
    #[error("the upstream broke off in the middle of the body")]
    Broken(#[source] Cause),
    /// Nothing came for too long, or the whole took too long.
    #[error("the upstream's body did not come in time")]
    Timeout,
    /// There is more of it than its `Content-Length` says.
    #[error("the upstream's body is longer than it said")]
    Surplus,
}

impl Body {
    pub(super) fn new(
        incoming: Incoming,
        exchange: Exchange,
        between_bytes: Duration,
        deadline: Option<Instant>,
    ) -> Self {
        let is_tunnel = exchange.is_tunnel;
        let exchange = Some(exchange);
        let (until, alarm) = (None, Alarm::default());
        let mut reading = Box::new(Reading { incoming, exchange, between_bytes, deadline, until, alarm });
        if !is_tunnel && reading.is_end_stream() {
            reading.end();
        }
        Self(reading)
    }

    /// Whether all of it has come, so that its next frame is the last and not waited for.
    pub fn is_here(&self) -> bool {
        matches!(&self.0.incoming, Incoming::Http1(incoming) if incoming.is_here())
    }

    /// Holds this, too, until the body has ended.
    pub fn hold(&mut self, companion: impl Any + Send + Sync) {
        if let Some(exchange) = &mut self.0.exchange {
            exchange.companion = Some(Box::new(companion));
        }
    }

    /// The connection, where the response has made another of it. The body keeps its place at the upstream.
    pub fn tunnel(&mut self) -> Option<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
        match std::mem::replace(&mut self.0.incoming, Incoming::Over) {
            Incoming::Http1(incoming) => incoming.into_tunnel(),
            Incoming::Http2(_) | Incoming::Over => None,
        }
    }
}

impl Reading {
    /// It has been read in full.
    fn end(&mut self) {
        let Some(exchange) = self.exchange.take() else { return };
        if let Incoming::Http1(incoming) = std::mem::replace(&mut self.incoming, Incoming::Over) {
            exchange.sent.complete(incoming.into_line());
        }
    }

    fn broke(&mut self) {
        self.incoming = Incoming::Over;
        if let Some(exchange) = self.exchange.take() {
            exchange.failed();
        }
    }

    /// Whether it has taken too long: from the first time on that it is asked.
    fn poll_too_late(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let until = *self.until.get_or_insert_with(|| {
            let pause = Instant::now() + self.between_bytes;
            self.deadline.map_or(pause, |deadline| deadline.min(pause))
        });
        match &mut self.incoming {
            Incoming::Http1(incoming) => incoming.poll_alarm(until, context),
            Incoming::Http2(_) | Incoming::Over => self.alarm.poll(until, context),
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.incoming.poll(context) {
            Poll::Pending => self.poll_too_late(context).map(|()| {
                // Where the whole took too long, the client may have been slow to take it.
                let is_pause = self.deadline.is_none_or(|deadline| Instant::now() < deadline);
                self.incoming = Incoming::Over;
                if let Some(exchange) = self.exchange.take().filter(|_| is_pause) {
                    exchange.failed();
                }
                Some(Err(BodyError::Timeout))
            }),
            Poll::Ready(frame) => {
                self.until = None;
                let is_end = match &frame {
                    None => true,
                    Some(Ok(_)) => self.is_end_stream(),
                    Some(Err(_)) => {
                        self.broke();
                        false
                    }
                };
                if is_end {
                    self.end();
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.incoming {
            Incoming::Http1(incoming) => incoming.is_end_stream(),
            Incoming::Http2(incoming) => incoming.is_end_stream(),
            Incoming::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.incoming {
            Incoming::Http1(incoming) => incoming.size_hint(),
            Incoming::Http2(incoming) => incoming.size_hint(),
            Incoming::Over => SizeHint::with_exact(0),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Incoming {
    /// When the head came, as long as nothing has been asked for that came behind it.
    pub(super) fn came(&self) -> Instant {
        match self {
            Self::Http1(incoming) => incoming.heard(),
            Self::Http2(_) | Self::Over => None,
        }
        .unwrap_or_else(Instant::now)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Http1(incoming) => Pin::new(incoming).poll_frame(context).map_err(|fault| match fault {
                Fault::Surplus => BodyError::Surplus,
                fault => BodyError::Broken(fault.into()),
            }),
            Self::Http2(incoming) => {
                Pin::new(incoming).poll_frame(context).map_err(|error| BodyError::Broken(error.into()))
            }
            Self::Over => Poll::Ready(None),
        }
    }
}
