//! The body of an upstream's response.

use super::pool::Sent;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

/// The body of an upstream's response. It holds its place at the upstream and its connection until it ends or is dropped.
#[derive(Debug)]
pub struct Body {
    incoming: Incoming,
    /// `None` once the body has ended.
    exchange: Option<(Sent, OwnedSemaphorePermit)>,
    between_bytes: Duration,
    deadline: Option<Instant>,
    /// Runs while the body is waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

/// The body ended before it was whole.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection broke, or the framing is invalid.
    #[error("the upstream broke off in the middle of the body")]
    Broken(#[source] hyper::Error),
    /// Nothing came for too long, or the whole took too long.
    #[error("the upstream's body did not come in time")]
    Timeout,
}

impl Body {
    pub(super) fn new(
        incoming: Incoming,
        sent: Sent,
        place: OwnedSemaphorePermit,
        between_bytes: Duration,
        deadline: Option<Instant>,
    ) -> Self {
        let mut body = Self { incoming, exchange: Some((sent, place)), between_bytes, deadline, timer: None };
        if http_body::Body::is_end_stream(&body.incoming) {
            body.end();
        }
        body
    }

    fn end(&mut self) {
        if let Some((mut sent, _)) = self.exchange.take() {
            sent.complete();
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
                self.exchange = None;
                Some(Err(BodyError::Timeout))
            }),
            Poll::Ready(frame) => {
                self.timer = None;
                match &frame {
                    None => self.end(),
                    Some(Ok(_)) if self.incoming.is_end_stream() => self.end(),
                    Some(Ok(_)) => {}
                    Some(Err(_)) => self.exchange = None,
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
