//! Whose turn it is.
//!
//! What happens in one moment may happen in any order, and from outside nobody can tell in which. So every kind of event has
//! moments of its own: of eight milliseconds one is for requests, one for heads, one for bodies, and so on. Events of one kind
//! still fall together, in crowds, where their order makes no difference to what is counted.

use std::time::Duration;

/// A kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A client sends a request. Half a second later, in a turn that is nobody's, it may have waited too long.
    Ask = 0,
    /// The origin sends a head, or fails to.
    Head = 1,
    /// The origin sends a piece of a body, or breaks it off.
    Piece = 2,
    /// Something is purged, or deleted.
    Line = 3,
    /// A client leaves.
    Leave = 5,
    /// A configuration is loaded.
    Reload = 7,
}

const ROUND_MILLIS: u64 = 8;

impl Turn {
    /// The first moment of this kind after `since_start` or at it.
    pub fn after(self, since_start: Duration) -> Duration {
        let millis = u64::try_from(since_start.as_micros().div_ceil(1000)).unwrap();
        let wait = (self as u64 + ROUND_MILLIS - millis % ROUND_MILLIS) % ROUND_MILLIS;
        Duration::from_millis(millis + wait)
    }

    pub fn is_at(self, since_start: Duration) -> bool {
        self.after(since_start) == since_start
    }
}
