//! What goes on on a connection, and for how long nothing may.

use super::seen::Seen;
use crate::proxy::Begun;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// When a connection was last of use.
#[derive(Debug)]
pub(super) struct Activity {
    /// Guards what is to be seen and changed at once. Held for that, or while an answer at hand is looked for; never across an
    /// await.
    state: Mutex<State>,
    /// Tells that the connection has had all the requests it may have.
    pub(super) exhausted: Notify,
    idle_timeout: Duration,
}

#[derive(Debug)]
struct State {
    requests_in_progress: usize,
    requests: u64,
    /// Whether the last request was one of those that do without hyper: then the next one may be, too.
    is_express: bool,
    through: Through,
    /// Whether the last request was one of HTTP/1.
    is_http1: bool,
    /// Whether it ends after what is under way.
    is_ending: bool,
    /// Until when it may idle.
    until: Instant,
}

/// A request that hyper has not seen and that may be hyper's yet.
#[derive(Debug)]
enum Through {
    /// There is none.
    None,
    /// It is upstream.
    Upstream,
    /// It is hyper's, which gets it next, with what has come of it.
    Begun(Box<Begun>),
}

/// How a connection came to idle.
pub(super) enum Idle {
    FromTheStart,
    AfterRequests,
    /// The head of a request has begun and does not end.
    InHead,
}

/// A request in progress, up to the end of its answer; when it is dropped, the connection begins to idle.
#[derive(Debug)]
pub(super) struct Busy {
    activity: Arc<Activity>,
    /// When it ended; `None`: when it is dropped.
    ended: Option<Instant>,
}

/// The right to answer the request that comes next without hyper. Nothing has happened when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    activity: &'a Arc<Activity>,
    state: MutexGuard<'a, State>,
}

impl Turn<'_> {
    /// The number of that request.
    pub(super) fn number(&self) -> u64 {
        self.state.requests + 1
    }

    /// It has begun.
    pub(super) fn take(mut self) -> Busy {
        self.activity.begin(&mut self.state)
    }

    /// It has begun, and may be hyper's yet.
    pub(super) fn go_through(mut self) -> Busy {
        self.state.through = Through::Upstream;
        self.take()
    }
}

impl Activity {
    pub(super) fn new(first_request_within: Duration, idle_timeout: Duration) -> Self {
        let until = Instant::now() + first_request_within;
        let state = State {
            requests_in_progress: 0,
            requests: 0,
            is_express: false,
            through: Through::None,
            is_http1: false,
            is_ending: false,
            until,
        };
        Self { state: Mutex::new(state), exhausted: Notify::new(), idle_timeout }
    }

    /// A request begins; its number on this connection is returned beside the guard, with what has come of it already.
    pub(super) fn busy(self: &Arc<Self>, is_http1: bool) -> (Busy, u64, Option<Begun>) {
        let mut state = self.state.lock();
        (state.is_express, state.is_http1) = (false, is_http1);
        let begun = match std::mem::replace(&mut state.through, Through::None) {
            Through::Begun(begun) => Some(*begun),
            Through::None | Through::Upstream => None,
        };
        (self.begin(&mut state), state.requests, begun)
    }

    fn begin(self: &Arc<Self>, state: &mut State) -> Busy {
        state.requests_in_progress += 1;
        state.requests += 1;
        Busy { activity: Arc::clone(self), ended: None }
    }

    /// The request that came last could have done without hyper: so may the next one.
    pub(super) fn may_go_on_express(&self) {
        let mut state = self.state.lock();
        state.is_express = !state.is_ending;
    }

    /// From here on all requests are hyper's. Returns whether one more is awaited, for so long at most: there has been none, or the
    /// connection is one of HTTP/1, which can only be told of its end with an answer, and had one a moment ago, or is to have one that may be
    /// hyper's yet.
    pub(super) fn awaits_one_more(&self, header_read_timeout: Duration) -> bool {
        let mut state = self.state.lock();
        state.is_express = false;
        let now = Instant::now();
        let is_recent = state.until + LAST_REQUEST_GRACE > now + self.idle_timeout;
        if matches!(state.through, Through::Upstream) {
            return true;
        }
        let awaits = state.requests == 0 || (state.is_http1 && state.requests_in_progress == 0 && is_recent);
        if awaits {
            state.until = now + header_read_timeout.min(LAST_REQUEST_GRACE);
        }
        awaits
    }

    /// The request that comes next, if it may be answered without hyper: nothing is under way, and its answer need not say
    /// that the connection ends.
    pub(super) fn next_express(self: &Arc<Self>, requests_max: Option<u64>) -> Option<Turn<'_>> {
        let state = self.state.lock();
        let may = state.is_express && !state.is_ending && state.requests_in_progress == 0;
        let is_last = requests_max.is_some_and(|most| state.requests + 1 >= most);
        (may && !is_last).then_some(Turn { activity: self, state })
    }

    /// Whether a request is in progress.
    pub(super) fn is_busy(&self) -> bool {
        self.state.lock().requests_in_progress > 0
    }

    /// It ends after what is under way, which may take so long at most.
    pub(super) fn end(&self, timeout: Duration) {
        let mut state = self.state.lock();
        (state.is_ending, state.until) = (true, Instant::now() + timeout);
    }

    /// Waits until the connection has idled for as long as it may, or the head of a request has taken too long.
    /// Cancel-safe.
    pub(super) async fn idle(&self, seen: &Seen, header_read_timeout: Duration) -> Idle {
        loop {
            let (until, is_busy, is_new) = {
                let state = self.state.lock();
                (state.until, state.requests_in_progress > 0, state.requests == 0)
            };
            let now = Instant::now();
            if is_busy {
                // When it ends there is a whole pause ahead, so looking again later loses nothing.
                sleep_until(now + BUSY_CHECK.min(header_read_timeout).min(self.idle_timeout)).await;
                continue;
            }
            let head_until = seen.in_head_since().map(|since| since + header_read_timeout);
            match head_until {
                Some(until) if until <= now => return Idle::InHead,
                None if until <= now && is_new => return Idle::FromTheStart,
                None if until <= now => return Idle::AfterRequests,
                Some(until) => sleep_until(until).await,
                None => tokio::select! {
                    () = sleep_until(until) => {}
                    () = seen.head_begun() => {}
                },
            }
        }
    }
}

/// How long a connection that is new when the drain begins, or had an answer within this time, may take to send the first byte of
/// its request.
const LAST_REQUEST_GRACE: Duration = Duration::from_secs(1);

/// How often a connection with a request in progress is looked at again.
const BUSY_CHECK: Duration = Duration::from_secs(5);

impl Busy {
    /// It ended at this moment.
    pub(super) fn close(mut self, now: Instant) {
        self.ended = Some(now);
    }

    /// The request that comes next may do without hyper.
    pub(super) fn may_go_on_express(&self) {
        self.activity.may_go_on_express();
    }

    /// The request has its answer, and will not be hyper's.
    pub(super) fn is_answered(&self) {
        self.activity.state.lock().through = Through::None;
    }

    /// The request is hyper's after all, which begins it anew with what has come of it.
    pub(super) fn hand_over(self, begun: Box<Begun>) {
        let mut state = self.activity.state.lock();
        state.through = Through::Begun(begun);
        state.requests -= 1;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let ended = self.ended.unwrap_or_else(Instant::now);
        let mut state = self.activity.state.lock();
        if matches!(state.through, Through::Upstream) {
            state.through = Through::None;
        }
        state.requests_in_progress -= 1;
        state.until = ended + self.activity.idle_timeout;
    }
}
