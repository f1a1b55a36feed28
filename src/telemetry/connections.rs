//! What is told of clients' connections.
//!
//! Anybody can make them fail, as often as they like. So each failure is counted, and of those of a kind one in a while has a
//! line in the log, which says how many had none.

use super::labels::{Label, RefusalCause, TlsFailure};
use super::{Connected, Telemetry, Tunnelling};
use parking_lot::Mutex;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Lines of one kind are so far apart at least.
const PAUSE: Duration = Duration::from_secs(10);

/// When a kind of event last had a line, and how many have happened since.
#[derive(Debug, Default)]
struct Told {
    at: Option<Instant>,
    untold: u64,
}

/// Which events have a line.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Each guards when its kind was last told of. Held to look and change that, never across an await.
    tls: [Mutex<Told>; TlsFailure::ALL.len()],
    http2: Mutex<Told>,
}

impl Told {
    /// How many events have had no line before this one; `None`: nor has it.
    fn next(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.at.is_some_and(|at| now < at + PAUSE) {
            self.untold += 1;
            return None;
        }
        self.at = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

impl Telemetry {
    /// A client's connection is accepted.
    pub fn connected(self: &Arc<Self>) -> Connected {
        Connected::begin(Arc::clone(self))
    }

    /// The connections of a client and an upstream are joined.
    pub fn tunnelling(self: &Arc<Self>) -> Tunnelling {
        Tunnelling::begin(Arc::clone(self))
    }

    /// Open client connections at this moment.
    pub fn connections(&self) -> i64 {
        self.process.connections.get()
    }

    /// A client's connection was closed before a request was read.
    pub fn connection_refused(&self, cause: RefusalCause) {
        self.process.connections_refused.of(cause).inc();
        tracing::debug!(cause = cause.as_str(), "connection refused");
    }

    /// TLS with a client could not be established.
    pub fn tls_failed(&self, client: SocketAddr, reason: TlsFailure, error: &dyn Display) {
        self.connection_refused(RefusalCause::Tls);
        self.process.tls_failures.of(reason).inc();
        let told = self.lines.tls[reason.position()].lock().next();
        if let Some(untold) = told {
            tracing::info!(reason = reason.as_str(), %client, %error, untold, "TLS with a client failed");
        }
    }

    /// A connection over HTTP/2 was ended for what came on it.
    pub fn http2_refused(&self, client: SocketAddr, cause: RefusalCause, error: &dyn Display) {
        self.connection_refused(cause);
        let told = self.lines.http2.lock().next();
        if let Some(untold) = told {
            let cause = cause.as_str();
            tracing::info!(cause, %client, %error, untold, "ended a connection over HTTP/2 for what came on it");
        }
    }

    /// No connection is accepted for a moment: the system has reported an error, or none of its file descriptors is left for clients.
    pub fn accept_paused(&self) {
        self.process.accept_pauses.inc();
    }

    /// A connection, or a stream of one, was ended because its client took nothing of its answer for too long.
    pub fn send_timed_out(&self) {
        self.process.send_timeouts.inc();
        tracing::debug!("a client did not take its answer in time");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_many_that_fail_alike_one_in_a_while_is_told_of_and_all_are_counted() {
        let mut told = Told::default();
        assert_eq!(told.next(), Some(0));
        for _ in 0..1000 {
            assert_eq!(told.next(), None);
        }
        tokio::time::advance(PAUSE).await;
        assert_eq!(told.next(), Some(1000));
        assert_eq!(told.next(), None);
        tokio::time::advance(PAUSE).await;
        assert_eq!(told.next(), Some(1));
    }
}
