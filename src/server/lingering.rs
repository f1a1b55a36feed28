//! How a connection ends whose client may still be sending.
//!
//! A socket that is closed with something unread in it is reset, and with that the client may lose an answer that it has not read
//! yet. So first only the way to the client is closed, and what still comes from there is read, for nobody (RFC 9112 §9.6).

use super::stream::Breakable;
use super::wire::ExpressEnd;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// How a connection is parted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parting {
    /// At once: nothing is lost with it, or that something is missing is to be seen.
    Abrupt,
    /// Its client expects the end, or has had nothing under way: only if something has come is there more to come.
    Brief,
    /// Its client may be sending still.
    Patient,
}

/// The longest that a client is waited for that sends nothing, and does not end.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The longest that it is waited for at all.
const TIME_MAX: Duration = Duration::from_secs(30);

/// Waits until the client has ended, too, or for as long as one waits for it. Cancel-safe.
pub(super) async fn part<S: Breakable>(end: &ExpressEnd<S>, parting: Parting) {
    let is_over = match parting {
        Parting::Abrupt => true,
        // To wait, if only for a moment, costs an eighth of a connection with one request.
        Parting::Brief => {
            let look = poll_fn(|context| Poll::Ready(end.poll_discard(context)));
            !matches!(look.await, Poll::Ready(Ok(1..)))
        }
        Parting::Patient => end.has_client_ended(),
    };
    if is_over {
        return;
    }
    let shut = timeout(PAUSE_MAX, poll_fn(|context| end.poll_shutdown(context))).await;
    if !matches!(shut, Ok(Ok(()))) {
        return;
    }
    let last = Instant::now() + TIME_MAX;
    loop {
        let until = last.min(Instant::now() + PAUSE_MAX);
        let discarded = timeout_at(until, poll_fn(|context| end.poll_discard(context))).await;
        if !matches!(discarded, Ok(Ok(1..))) {
            return;
        }
    }
}
