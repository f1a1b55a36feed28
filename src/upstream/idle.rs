//! Connections that wait for their next request.

use super::http1::Line;
use parking_lot::Mutex;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::thread::ThreadId;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep};

/// The idle connections to one address. A task watches them: one which the origin closes, or which has been idle for too long, is
/// closed.
#[derive(Debug)]
pub(super) struct Idle {
    count_max: usize,
    timeout: Duration,
    /// Guards the connections. Held while they are looked at, never across an await.
    stack: Mutex<Stack>,
}

#[derive(Debug, Default)]
struct Stack {
    /// The one that was heard of last is at the end.
    lines: Vec<Waiting>,
    /// Wakes the task that watches; `None`: there is none.
    watch: Option<Waker>,
    /// Nothing is kept any more.
    is_closed: bool,
}

#[derive(Debug)]
struct Waiting {
    line: Line,
    since: Instant,
    /// Where it was used last. A thread has the events of its own sockets: another would be woken for each of them.
    thread: ThreadId,
}

thread_local! {
    /// The thread by which it is known: to ask for it anew takes and gives back a handle each time.
    static THREAD: ThreadId = std::thread::current().id();
}

impl Idle {
    pub(super) fn new(count_max: usize, timeout: Duration) -> Self {
        Self { count_max, timeout, stack: Mutex::default() }
    }

    /// A connection that is open at this moment, the one used last by this thread if there is one.
    pub(super) fn take(&self, now: Instant) -> Option<Line> {
        let thread = THREAD.with(ThreadId::clone);
        let mut stack = self.stack.lock();
        loop {
            let own = stack.lines.iter().rposition(|waiting| waiting.thread == thread);
            let at = own.or(stack.lines.len().checked_sub(1))?;
            if now.duration_since(stack.lines[at].since) >= self.timeout {
                // Those before it have been idle for longer still.
                stack.lines.drain(..=at);
                continue;
            }
            let Waiting { mut line, thread: last_thread, .. } = stack.lines.remove(at);
            // Whatever else the task has done: what is not looked at looks open.
            let spoiled = pin!(unconstrained(poll_fn(|context| line.poll_spoiled(context))));
            if spoiled.poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                if last_thread != thread {
                    line.leave_runtime();
                }
                return Some(line);
            }
        }
    }

    pub(super) fn put(self: &Arc<Self>, line: Line) {
        let mut waiting = Waiting { since: line.heard, line, thread: THREAD.with(ThreadId::clone) };
        let mut stack = self.stack.lock();
        if stack.is_closed || stack.lines.len() >= self.count_max {
            return;
        }
        if let Some(watch) = &stack.watch {
            if waiting.line.poll_spoiled(&mut Context::from_waker(watch)).is_ready() {
                return;
            }
        } else if let Ok(runtime) = Handle::try_current() {
            stack.watch = Some(Waker::noop().clone());
            runtime.spawn(watch(Arc::downgrade(self)));
        }
        // Mostly last; but the end of a body may be read long after it has come.
        let at =
            stack.lines.iter().rposition(|other| other.since <= waiting.since).map_or(0, |before| before + 1);
        if at < stack.lines.len()
            && let Some(watch) = &stack.watch
        {
            watch.wake_by_ref();
        }
        stack.lines.insert(at, waiting);
    }

    /// Closes all, and keeps none from here on.
    pub(super) fn close(&self) {
        let mut stack = self.stack.lock();
        stack.is_closed = true;
        stack.lines.clear();
        stack.dismiss();
    }

    /// Closes those that have ended, or have been idle for too long. Returns when the next will have been; `None`: none is left.
    fn sweep(&self, context: &mut Context<'_>) -> Option<Instant> {
        let mut stack = self.stack.lock();
        stack.lines.retain_mut(|waiting| {
            waiting.since.elapsed() < self.timeout && waiting.line.poll_spoiled(context).is_pending()
        });
        let oldest = stack.lines.first().map(|waiting| waiting.since + self.timeout);
        stack.watch = oldest.map(|_| context.waker().clone());
        oldest
    }
}

impl Stack {
    /// Lets the task that watches see that there is nothing left to watch: a connection that is dropped here wakes nobody.
    fn dismiss(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.wake();
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.dismiss();
    }
}

async fn watch(idle: Weak<Idle>) {
    let mut timer = pin!(sleep(Duration::ZERO));
    poll_fn(|context| {
        loop {
            let Some(next) = idle.upgrade().and_then(|idle| idle.sweep(context)) else {
                return Poll::Ready(());
            };
            if timer.deadline() != next {
                timer.as_mut().reset(next);
            }
            ready!(timer.as_mut().poll(context));
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::task::coop::{consume_budget, has_budget_remaining};

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_been_idle_for_too_long_is_closed_though_nobody_asks_for_one() {
        let idle = Arc::new(Idle::new(2, Duration::from_secs(60)));
        let (first, mut early) = tokio::io::duplex(1);
        let (second, mut late) = tokio::io::duplex(1);
        let started = Instant::now();
        idle.put(Line::new(first, 1));
        sleep(Duration::from_secs(20)).await;
        idle.put(Line::new(second, 1));
        assert_eq!(early.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(started.elapsed().as_secs(), 60);
        assert_eq!(late.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(started.elapsed().as_secs(), 80);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_comes_back_late_takes_none_with_it_that_was_heard_of_since() {
        let idle = Arc::new(Idle::new(3, Duration::from_secs(60)));
        let [(early, mut ended), (late, _kept)] = [tokio::io::duplex(1), tokio::io::duplex(1)];
        let started = Instant::now();
        let early = Line::new(early, 1);
        sleep(Duration::from_secs(50)).await;
        idle.put(Line::new(late, 1));
        idle.put(early);
        assert_eq!(ended.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(started.elapsed().as_secs(), 60, "it is closed in its time");
        let [(early, _), (later, _kept)] = [tokio::io::duplex(1), tokio::io::duplex(1)];
        let mut early = Line::new(early, 1);
        early.heard = started;
        idle.put(Line::new(later, 1));
        idle.put(early);
        for _ in 0..2 {
            assert!(idle.take(Instant::now()).is_some());
        }
        assert!(idle.take(Instant::now()).is_none());
    }

    #[tokio::test]
    async fn one_that_has_ended_is_not_taken_for_open_by_a_task_that_has_done_much() {
        let idle = Arc::new(Idle::new(1, Duration::from_secs(60)));
        let (ours, theirs) = tokio::io::duplex(1);
        idle.put(Line::new(ours, 1));
        drop(theirs);
        // Not so much that others have their turn, and with them the task that watches.
        while has_budget_remaining() {
            consume_budget().await;
        }
        assert!(idle.take(Instant::now()).is_none());
    }

    #[tokio::test]
    async fn nobody_watches_over_connections_that_are_closed_or_dropped() {
        let watching = || Handle::current().metrics().num_alive_tasks();
        for is_closed in [true, false] {
            let idle = Arc::new(Idle::new(1, Duration::from_secs(60)));
            let (ours, _theirs) = tokio::io::duplex(1);
            idle.put(Line::new(ours, 1));
            tokio::task::yield_now().await;
            assert_eq!(watching(), 1);
            let kept = is_closed.then(|| {
                idle.close();
                Arc::clone(&idle)
            });
            drop(idle);
            tokio::task::yield_now().await;
            assert_eq!(watching(), 0, "{kept:?}");
        }
    }
}
