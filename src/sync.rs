//! The primitives that [`crate::body`], [`crate::flight`] and [`crate::store::stamps`] share state with.
//!
//! Those modules name no other primitive, so that the model checkers of `tests/exhaustive.rs` and `tests/model.rs` can
//! compile the same files over their own and explore how the critical sections interleave.

pub(crate) use parking_lot::{Mutex, RwLock};
pub(crate) use std::sync::OnceLock;
pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Small pieces of a body are gathered into blocks of about this size, so that a stored body does not pin read buffers.
/// It stands here because the model checkers have to reach it with a few bytes.
pub(crate) const BLOCK_BYTES: usize = 256 << 10;

// The unit tests of the two modules hang here and not on the modules, because they are about the real primitives: where
// a model checker compiles the modules, it must not find them.
#[cfg(test)]
#[path = "body/tests.rs"]
mod body_tests;
#[cfg(test)]
#[path = "flight/tests.rs"]
mod flight_tests;
