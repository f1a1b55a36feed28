//! The only reader of wall time.
//!
//! Freshness is a matter of wall-clock dates (RFC 9111 §4.2), time limits are a matter of tokio timers. In
//! tests both must move together: [`Clock::simulated`] derives wall time from tokio's clock, so that
//! `tokio::time::advance` moves freshness and timers alike.

use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Where the wall time comes from.
#[derive(Debug, Clone, Copy, Default)]
pub enum Clock {
    /// The clock of the machine.
    #[default]
    System,
    /// A chosen wall time that moves with tokio's clock from the instant it was made.
    Simulated {
        /// The wall time at `started`.
        epoch: SystemTime,
        /// The tokio instant at which the wall read `epoch`.
        started: Instant,
    },
}

impl Clock {
    /// A clock that shows `seconds` after the Unix epoch now and moves with tokio's (possibly paused) clock.
    pub fn simulated(seconds: u64) -> Self {
        Self::Simulated {
            epoch: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            started: Instant::now(),
        }
    }

    /// The wall time.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    pub fn now(&self) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            Self::Simulated { epoch, started } => *epoch + started.elapsed(),
        }
    }
}
