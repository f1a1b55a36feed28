//! What the bytes of a client's connection have told so far.

use super::framing::Scanner;
use super::lingering::Parting;
use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;
use tokio::time::Instant;

/// What the bytes of a connection have told so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Guards what the connection's reads write and its requests read. Held for a scan of one read, or while an answer at hand is
    /// looked for; never across an await.
    state: Mutex<State>,
    /// Tells that a head has begun and not ended.
    head_begun: Notify,
    /// Whether the next read is to fail, because a head took too long.
    is_too_late: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    scanner: Scanner,
    /// Since when a head has been incomplete.
    in_head_since: Option<Instant>,
    answering: Answering,
    /// Whether the last answer stopped before its end.
    is_broken: bool,
    /// Whether it is not the client that wants the connection to end.
    is_end_unexpected: bool,
}

/// Whether hyper has been given a request, and the client has not been given all of its answer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Answering {
    #[default]
    Nothing,
    /// The answer has yet to come, or some of it.
    Awaited,
    AtHand,
}

/// Whose the bytes are that come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Those of the request that hyper has begun to read, or of the next one.
    Hyper,
    /// Nobody's yet: a request is being answered, and has been read. If there are none, the client has left.
    Later,
    /// Nobody's yet either; and as the answer is at hand, the client may have ended what it says and have it nevertheless.
    AtHand,
    /// Nobody's: they come behind a flaw in a body.
    Nobody,
}

/// The right to read the request that comes next past the scanner, where it has no body.
#[derive(Debug)]
pub(super) struct Unread<'a>(MutexGuard<'a, State>);

impl Unread<'_> {
    /// It has been read, and is answered.
    pub(super) fn skip(mut self) {
        self.0.scanner.skip_request();
    }
}

impl Seen {
    /// hyper begins to answer the request with this number, from 1. Returns whether it must be refused.
    pub(super) fn begin(&self, request: u64) -> bool {
        let mut state = self.state.lock();
        state.answering = Answering::Awaited;
        state.scanner.refuses(request)
    }

    /// The answer to the request that hyper has begun is at hand.
    pub(super) fn at_hand(&self) {
        self.state.lock().answering = Answering::AtHand;
    }

    /// The client has been given the answer to every request that hyper has begun.
    pub(super) fn end(&self) {
        self.state.lock().answering = Answering::Nothing;
    }

    /// Whose the bytes are that come next.
    pub(super) fn turn(&self) -> Turn {
        let state = self.state.lock();
        match state.answering {
            _ if state.scanner.is_broken() => Turn::Nobody,
            Answering::Awaited if state.scanner.is_between() => Turn::Later,
            Answering::AtHand if state.scanner.is_between() => Turn::AtHand,
            Answering::Nothing | Answering::Awaited | Answering::AtHand => Turn::Hyper,
        }
    }

    /// Whether what hyper writes may be a refusal of its own: it speaks HTTP/1, and answers nothing.
    pub(super) fn may_be_refusing(&self) -> bool {
        let state = self.state.lock();
        state.answering == Answering::Nothing && state.scanner.is_http1()
    }

    /// The connection has become a tunnel.
    pub(super) fn become_tunnel(&self) {
        self.state.lock().scanner.become_tunnel();
    }

    /// The connection is to end, which its client may not know when it sends more.
    pub(super) fn end_unexpectedly(&self) {
        self.state.lock().is_end_unexpected = true;
    }

    /// How the connection is parted from when hyper has ended it.
    pub(super) fn parting(&self) -> Parting {
        let state = self.state.lock();
        if state.is_broken || state.scanner.is_tunnel() {
            Parting::Abrupt
        } else if state.is_end_unexpected {
            Parting::Patient
        } else {
            Parting::Brief
        }
    }

    /// Whether the body of the latest request has not come to its end.
    pub(super) fn is_in_body(&self) -> bool {
        self.state.lock().scanner.is_in_body()
    }

    /// Since when a head has been incomplete, if one is.
    pub(super) fn in_head_since(&self) -> Option<Instant> {
        self.state.lock().in_head_since
    }

    /// Waits until a head has begun without ending. Cancel-safe.
    pub(super) async fn head_begun(&self) {
        self.head_begun.notified().await;
    }

    /// The head took too long: the next read says so to the client and fails.
    pub(super) fn give_up(&self) {
        self.is_too_late.store(true, Ordering::Relaxed);
    }

    /// Whether it did.
    pub(super) fn is_too_late(&self) -> bool {
        self.is_too_late.load(Ordering::Relaxed)
    }

    /// An answer stopped before its end. Over HTTP/1.0 an orderly end of the connection would be the end of the body.
    pub(super) fn broke_off(&self) {
        self.state.lock().is_broken = true;
    }

    /// Whether one did.
    pub(super) fn is_broken(&self) -> bool {
        self.state.lock().is_broken
    }

    /// The right to read the request with this number, if it begins with the next byte.
    pub(super) fn unread(&self, number: u64) -> Option<Unread<'_>> {
        let state = self.state.lock();
        (state.scanner.next_request() == Some(number)).then_some(Unread(state))
    }

    /// Takes what was read. Returns how much of it may be handed on: nothing, where it begins with a flaw.
    pub(super) fn read(&self, bytes: &[u8]) -> usize {
        let mut state = self.state.lock();
        let sound = state.scanner.read(bytes);
        if !state.scanner.is_in_head() {
            state.in_head_since = None;
        } else if state.in_head_since.is_none() {
            state.in_head_since = Some(Instant::now());
            self.head_begun.notify_one();
        }
        sound
    }
}
