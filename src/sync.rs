//! The primitives that [`crate::body`], [`crate::flight`] and [`crate::store::stamps`] share state with.
//!
//! Those modules name no other primitive, so that the model checker of `tests/model.rs` can compile the same
//! files over its own locks and explore how their critical sections interleave.

pub(crate) use parking_lot::{Mutex, RwLock};
pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Small pieces of a body are gathered into blocks of about this size, so that a stored body does not pin read buffers.
/// It stands here because the model checker has to reach it with a few bytes.
pub(crate) const BLOCK_BYTES: usize = 256 << 10;
