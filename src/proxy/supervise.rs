//! A panic ends the one task it happened in, and is counted.

use crate::telemetry::Telemetry;
use pin_project_lite::pin_project;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The future panicked; it has been counted and logged.
#[derive(Debug)]
pub(super) struct Panicked;

pin_project! {
    /// A future that runs to its end, or to its panic.
    //
    // Not an `async fn`: that would have room for the future twice, and a task as large as one that fetches is copied as it begins.
    #[derive(Debug)]
    pub(super) struct Supervised<F> {
        telemetry: Arc<Telemetry>,
        place: &'static str,
        #[pin]
        future: F,
    }
}

/// Runs a future to its end, or to its panic.
pub(super) fn supervised<F: Future>(
    telemetry: &Arc<Telemetry>,
    place: &'static str,
    future: F,
) -> Supervised<F> {
    Supervised { telemetry: Arc::clone(telemetry), place, future }
}

impl<F: Future> Future for Supervised<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        match caught(this.telemetry, this.place, || this.future.as_mut().poll(context)) {
            Some(polled) => polled.map(Ok),
            None => Poll::Ready(Err(Panicked)),
        }
    }
}

/// What a function returns; `None` where it panicked, which has been counted and logged.
pub(super) fn caught<R>(
    telemetry: &Telemetry,
    place: &'static str,
    function: impl FnOnce() -> R,
) -> Option<R> {
    // What the function holds is dropped with it and not looked at again, so it does not matter in what state it is.
    let returned = catch_unwind(AssertUnwindSafe(function)).ok();
    if returned.is_none() {
        telemetry.panicked(place);
    }
    returned
}

/// Spawns a task whose panic is counted.
pub(super) fn spawn(
    telemetry: &Arc<Telemetry>,
    place: &'static str,
    future: impl Future<Output = ()> + Send + 'static,
) {
    // There is nobody to tell of a panic, which has been counted.
    drop(tokio::spawn(supervised(telemetry, place, future)));
}
