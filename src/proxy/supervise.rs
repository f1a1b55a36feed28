//! A panic ends the one task it happened in, and is counted.

use crate::telemetry::Telemetry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

/// The future panicked; it has been counted and logged.
#[derive(Debug)]
pub(super) struct Panicked;

/// Runs a future to its end, or to its panic.
pub(super) async fn supervised<F: Future>(
    telemetry: &Telemetry,
    place: &'static str,
    future: F,
) -> Result<F::Output, Panicked> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| match caught(telemetry, place, || future.as_mut().poll(context)) {
        Some(polled) => polled.map(Ok),
        None => Poll::Ready(Err(Panicked)),
    })
    .await
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
    let telemetry = Arc::clone(telemetry);
    tokio::spawn(async move {
        // A panic has been counted; there is nobody to tell.
        let _ = supervised(&telemetry, place, future).await;
    });
}
