//! The body of an upstream's response.

use super::breaker::Trial;
use super::health::Verdict;
use super::inbound::{Inbound, InboundError};
use super::limit::Place;
use super::members::Member;
use super::pool::Sent;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// The body of an upstream's response. It holds its place at the upstream and its connection until it ends or is dropped.
#[derive(Debug)]
pub struct Body {
    incoming: Inbound,
    /// How long it said that it is, if it did.
    length: Option<u64>,
    /// `None` once the body has ended.
    exchange: Option<Exchange>,
    between_bytes: Duration,
    deadline: Option<Instant>,
    /// Runs while the body is waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

/// What is held, and what has yet to be said, until a body has ended.
#[derive(Debug)]
pub(super) struct Exchange {
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
    Broken(#[source] InboundError),
    /// Nothing came for too long, or the whole took too long.
    #[error("the upstream's body did not come in time")]
    Timeout,
    /// There is more of it than its `Content-Length` says.
    #[error("the upstream's body is longer than it said")]
    Surplus,
}

impl Body {
    pub(super) fn new(
        incoming: Inbound,
        exchange: Exchange,
        between_bytes: Duration,
        deadline: Option<Instant>,
    ) -> Self {
        let is_tunnel = exchange.is_tunnel;
        let length = incoming.size_hint().exact();
        let exchange = Some(exchange);
        let mut body = Self { incoming, length, exchange, between_bytes, deadline, timer: None };
        if !is_tunnel && body.incoming.is_end_stream() {
            // Nothing follows it: that was checked with the head.
            let _ = body.end();
        }
        body
    }

    /// The body has been read in full.
    ///
    /// # Errors
    /// [`BodyError::Surplus`] where more has come with its end: that of which the end is in doubt is not whole.
    fn end(&mut self) -> Result<(), BodyError> {
        let Some(mut exchange) = self.exchange.take() else { return Ok(()) };
        if self.length.is_some_and(|length| exchange.sent.has_surplus(length)) {
            exchange.failed();
            return Err(BodyError::Surplus);
        }
        exchange.sent.complete();
        Ok(())
    }

    fn broke(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.failed();
        }
    }

    /// Whether it has taken too long. Starts the timer where there is none.
    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| {
            let pause = Instant::now() + self.between_bytes;
            Box::pin(tokio::time::sleep_until(self.deadline.map_or(pause, |deadline| deadline.min(pause))))
        });
        timer.as_mut().poll(context)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.incoming).poll_frame(context) {
            Poll::Pending => self.poll_timer(context).map(|()| {
                // Where the whole took too long, the client may have been slow to take it.
                let is_pause = self.deadline.is_none_or(|deadline| Instant::now() < deadline);
                if let Some(exchange) = self.exchange.take().filter(|_| is_pause) {
                    exchange.failed();
                }
                Some(Err(BodyError::Timeout))
            }),
            Poll::Ready(frame) => {
                self.timer = None;
                let is_end = match &frame {
                    None => true,
                    Some(Ok(_)) => self.incoming.is_end_stream(),
                    Some(Err(_)) => {
                        self.broke();
                        false
                    }
                };
                if is_end && let Err(error) = self.end() {
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
