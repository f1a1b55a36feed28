//! The answer to a request while it is on its way.

use super::answer::{Account, Answer, Body};
use super::{internal_error, supervise};
use http::Response;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The answer to a request. A hit is there at once: a connection need not hold room for the future of what waits for the
/// upstream, nor move it about.
pub enum Serving {
    /// It has come; `None` when it has been taken.
    Now(Option<Response<Body>>),
    /// It is on its way.
    Later(Later),
}

/// An answer that is on its way, and the account of its request.
pub struct Later {
    pub(super) asking: Pin<Box<dyn Future<Output = Answer> + Send>>,
    /// `None` when the answer has been taken.
    pub(super) account: Option<Account>,
}

impl Future for Later {
    type Output = Response<Body>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Response<Body>> {
        let Self { asking, account } = &mut *self;
        let opened = account.as_ref().expect("a future is polled to its end once");
        let answer = match supervise::caught(opened.telemetry(), "request", || asking.as_mut().poll(context))
        {
            Some(polled) => ready!(polled),
            None => internal_error(opened.site()),
        };
        Poll::Ready(account.take().expect("it was there a moment ago").settle(answer))
    }
}

impl Future for Serving {
    type Output = Response<Body>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Response<Body>> {
        match &mut *self {
            Self::Now(response) => Poll::Ready(response.take().expect("a future is polled to its end once")),
            Self::Later(later) => Pin::new(later).poll(context),
        }
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Serving").finish_non_exhaustive()
    }
}
