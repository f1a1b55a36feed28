//! How a connection ends whose client may still be sending.
//!
//! A socket that is closed with something unread in it is reset, and with that the client may lose an answer that it has not read
//! yet. So first only the way to the client is closed, and what still comes from there is read, for nobody (RFC 9112 §9.6).

use super::wire::{Breakable, ExpressEnd};
use std::future::poll_fn;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// How a connection is parted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parting {
    /// At once: nothing is lost with it, or that something is missing is to be seen.
    Abrupt,
    /// It had no request when it was told to end: only if something has come since is there more to come.
    Idle,
    /// It has had an answer, and its client may be sending still.
    Answered,
}

/// The longest that a client is waited for that sends nothing, and does not end.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The longest that it is waited for at all.
const TIME_MAX: Duration = Duration::from_secs(30);

/// Waits until the client has ended, too, or for as long as one waits for it. Cancel-safe.
pub(super) async fn part<S: Breakable>(end: &ExpressEnd<S>, parting: Parting) {
    if parting == Parting::Abrupt || end.has_client_ended() {
        return;
    }
    let shut = timeout(PAUSE_MAX, poll_fn(|context| end.poll_shutdown(context))).await;
    if !matches!(shut, Ok(Ok(()))) {
        return;
    }
    let last = Instant::now() + TIME_MAX;
    let mut pause = if parting == Parting::Idle { Duration::ZERO } else { PAUSE_MAX };
    loop {
        let until = last.min(Instant::now() + pause);
        let discarded = timeout_at(until, poll_fn(|context| end.poll_discard(context))).await;
        if !matches!(discarded, Ok(Ok(1..))) {
            return;
        }
        pause = PAUSE_MAX;
    }
}
