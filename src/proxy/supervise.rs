//! A panic ends the one task it happened in, and is counted.

use crate::telemetry::Telemetry;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;

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
    // Boxed, because a task is moved several times as it begins, and as it ends; one that fetches is large. There is nobody to tell of a
    // panic, which has been counted.
    let (telemetry, mut future) = (Arc::clone(telemetry), Box::pin(future));
    drop(tokio::spawn(poll_fn(move |context| {
        caught(&telemetry, place, || future.as_mut().poll(context)).unwrap_or(Poll::Ready(()))
    })));
}
