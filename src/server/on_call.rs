//! Futures that are left alone until they call.
//!
//! A connection waits for its bytes, and beside that for a drain, for its idle timeout, and for its last request. Its task is
//! woken for the bytes hundreds of thousands of times for each time that it is woken for the rest.

use pin_project_lite::pin_project;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

pin_project! {
    /// Polls a future once, and then only after its own waker was called. Cancel-safe if the future is.
    pub(super) struct OnCall<F> {
        #[pin]
        future: F,
        bell: Option<(Arc<Bell>, Waker)>,
    }
}

/// The waker that the future gets: it wakes the task, and remembers for whom.
struct Bell {
    is_rung: AtomicBool,
    task: Waker,
}

impl Bell {
    /// Whether it was rung since the last time.
    fn take(&self) -> bool {
        // Mostly it was not, and to look costs less than to exchange.
        self.is_rung.load(Ordering::Relaxed) && self.is_rung.swap(false, Ordering::Acquire)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_rung.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl<F> OnCall<F> {
    pub(super) fn new(future: F) -> Self {
        Self { future, bell: None }
    }
}

impl<F: Future> Future for OnCall<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        // A bell that would wake another task is of no use.
        this.bell.take_if(|(bell, _)| !bell.task.will_wake(context.waker()));
        let (_, waker) = match this.bell {
            Some((bell, _)) if !bell.take() => return Poll::Pending,
            Some(bell) => bell,
            none @ None => {
                let bell = Arc::new(Bell { is_rung: AtomicBool::new(false), task: context.waker().clone() });
                let waker = Waker::from(Arc::clone(&bell));
                none.insert((bell, waker))
            }
        };
        this.future.poll(&mut Context::from_waker(waker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Task(std::sync::atomic::AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_future_is_polled_when_it_calls_and_not_when_others_do() {
        let polls = Cell::new(0);
        let inner = Cell::new(None);
        let mut future = pin!(OnCall::new(poll_fn(|context| {
            polls.set(polls.get() + 1);
            inner.set(Some(context.waker().clone()));
            if polls.get() < 3 { Poll::Pending } else { Poll::Ready(polls.get()) }
        })));
        let task = Arc::new(Task::default());
        let waker = Waker::from(Arc::clone(&task));
        let mut poll = |waker: &Waker| future.as_mut().poll(&mut Context::from_waker(waker));
        for _ in 0..3 {
            assert_eq!(poll(&waker), Poll::Pending);
        }
        assert_eq!(polls.get(), 1);
        inner.take().unwrap().wake();
        assert_eq!(task.0.load(Ordering::Relaxed), 1, "the task is woken");
        assert_eq!((poll(&waker), polls.get()), (Poll::Pending, 2));
        let other = Waker::from(Arc::new(Task::default()));
        assert_eq!(poll(&other), Poll::Ready(3), "another task has another bell");
    }
}
