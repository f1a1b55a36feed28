//! The primitives that [`crate::body`] and [`crate::flight`] share state with.
//!
//! Those two modules name no other primitive, so that the model checker of `tests/model.rs` can compile the same
//! two files over its own lock and explore how their critical sections interleave.

pub(crate) use parking_lot::Mutex;
pub(crate) use std::sync::atomic::{AtomicUsize, Ordering};
