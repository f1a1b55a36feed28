//! How long a client is waited for that does not take its answer.

use super::Settings;
use crate::telemetry::Telemetry;
use std::sync::Arc;
use std::time::Duration;

/// How long to wait for clients that take nothing, or too little, and whom to tell of it.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// Longest time without a byte taken; `None`: for ever.
    send_timeout: Option<Duration>,
    /// Fewest bytes for each second of waiting; `None`: any pace will do.
    send_rate_min: Option<u64>,
    telemetry: Arc<Telemetry>,
}

/// For how long one client, with one connection or stream, may be waited for still, as far as its pace goes.
#[derive(Debug)]
pub(super) struct Credit(Duration);

/// Waiting within this time is not judged: a connection needs some to come up to speed.
const GRACE: Duration = Duration::from_secs(10);

/// A client that takes much at once may pause for so long, and no longer whatever it has taken.
const CREDIT_MAX: Duration = Duration::from_secs(60);

impl Default for Credit {
    fn default() -> Self {
        Self(GRACE)
    }
}

impl Patience {
    pub(super) fn new(settings: &Settings, telemetry: &Arc<Telemetry>) -> Self {
        Self {
            send_timeout: settings.send_timeout,
            send_rate_min: settings.send_rate_min,
            telemetry: Arc::clone(telemetry),
        }
    }

    /// Whether everybody is waited for, whatever they take.
    pub(super) fn is_endless(&self) -> bool {
        self.send_timeout.is_none() && self.send_rate_min.is_none()
    }

    /// How long a wait that begins at this moment may last; `None`: for ever.
    pub(super) fn longest_wait(&self, credit: &Credit) -> Option<Duration> {
        match (self.send_timeout, self.send_rate_min) {
            (Some(send_timeout), Some(_)) => Some(send_timeout.min(credit.0)),
            (None, Some(_)) => Some(credit.0),
            (send_timeout, None) => send_timeout,
        }
    }

    /// So many bytes were taken after so long a wait.
    pub(super) fn taken(&self, credit: &mut Credit, bytes: u64, waited: Duration) {
        if let Some(rate) = self.send_rate_min {
            let earned = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1));
            credit.0 = credit.0.saturating_sub(waited).saturating_add(earned).min(CREDIT_MAX);
        }
    }

    /// A client has been given up.
    pub(super) fn is_over(&self) {
        self.telemetry.send_timed_out();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn patience(send_timeout: Option<Duration>, send_rate_min: Option<u64>) -> Patience {
        Patience { send_timeout, send_rate_min, telemetry: Telemetry::new(false) }
    }

    #[test]
    fn without_a_rate_each_wait_is_as_long_as_any_other() {
        let mut credit = Credit::default();
        for (send_timeout, longest) in [(None, None), (Some(seconds(60)), Some(seconds(60)))] {
            let patience = patience(send_timeout, None);
            patience.taken(&mut credit, 1, seconds(59));
            assert_eq!(patience.longest_wait(&credit), longest);
        }
    }

    #[test]
    fn waiting_is_paid_for_with_what_was_taken() {
        let patience = patience(Some(seconds(30)), Some(1000));
        let mut credit = Credit::default();
        for (bytes, waited, longest) in [
            (0, 0, 10),
            // At the rate itself nothing changes.
            (1000, 1, 10),
            (5000, 5, 10),
            // Slower.
            (1000, 3, 8),
            (0, 6, 2),
            // Faster: up to a minute, of which the other limit permits a half at once.
            (20_000, 0, 22),
            (1_000_000, 0, 30),
            (0, 20, 30),
            (0, 25, 15),
            (0, 20, 0),
            (1500, 0, 1),
        ] {
            patience.taken(&mut credit, bytes, seconds(waited));
            let left = patience.longest_wait(&credit).unwrap();
            assert_eq!(left.as_secs(), longest, "after {bytes} in {waited} s");
        }
    }
}
