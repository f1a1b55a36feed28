//! Futures in boxes.

use std::pin::Pin;

/// A future whose code is not made part of that of whoever waits for it: what is done seldom would take up room there, in the
/// processor's caches and on the stack, each time.
pub(crate) type Apart<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Boxes a future where it is made. One that is made first, and then boxed, is copied with all the room that it may need, and
/// whoever makes it has that room, too.
pub(crate) fn boxed<F: Future>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    let room = Box::new_uninit();
    Box::into_pin(Box::write(room, make()))
}
