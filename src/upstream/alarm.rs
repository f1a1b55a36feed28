//! A timer that is kept.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::time::{Instant, Sleep, sleep_until};

/// A timer for waits that hardly ever take too long. To have tokio forget a timer and remember another one costs as much as what is
/// waited for; this one is left as it is as long as it rings too early, and set anew when it has.
#[derive(Debug, Default)]
pub(super) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Waits until this moment, which may be another one each time.
    pub(super) fn poll(&mut self, until: Instant, context: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.deadline() > until {
            sleep.as_mut().reset(until);
        }
        loop {
            ready!(sleep.as_mut().poll(context));
            if sleep.deadline() >= until {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_the_moment_that_was_named_last_and_may_ring_again() {
        let (mut alarm, start) = (Alarm::default(), Instant::now());
        for (first, second) in [(10, 20), (50, 30), (31, 31), (40, 40)] {
            let at = |seconds| start + Duration::from_secs(seconds);
            let polled = poll_fn(|context| Poll::Ready(alarm.poll(at(first), context))).await;
            assert_eq!(polled.is_ready(), at(first) <= Instant::now());
            poll_fn(|context| alarm.poll(at(second), context)).await;
            assert_eq!(Instant::now(), at(second));
        }
    }
}
