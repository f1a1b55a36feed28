//! Guards for what lasts: while one lives, a gauge is one higher.

use super::Telemetry;
use super::labels::{FetchReason, StatusClass, WaitResult};
use super::metrics::{RouteMetrics, UpstreamMetrics};
use http::StatusCode;
use std::sync::Arc;
use tokio::time::Instant;

/// A request that waits for another request's fetch.
///
/// A wait that ends well says so with [`ended`](Self::ended). Dropping it means that the client left, because
/// that is what drops a waiting request's future.
#[derive(Debug)]
#[must_use = "dropping it counts a client that left"]
pub struct Waiting {
    telemetry: Arc<Telemetry>,
    route: Arc<RouteMetrics>,
    since: Instant,
    result: WaitResult,
}

impl Waiting {
    pub(super) fn begin(telemetry: Arc<Telemetry>, route: Arc<RouteMetrics>) -> Self {
        telemetry.process.waiters.inc();
        Self { telemetry, route, since: Instant::now(), result: WaitResult::Left }
    }

    /// When the wait began.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Ends the wait.
    pub fn ended(mut self, result: WaitResult) {
        self.result = result;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.telemetry.process.waiters.dec();
        self.telemetry.process.wait_seconds.observe(self.since.elapsed().as_secs_f64());
        self.route.waits.of(self.result).inc();
    }
}

/// A shared upstream fetch in flight, until its body has ended.
#[derive(Debug)]
#[must_use = "it counts as long as it lives"]
pub struct Flying {
    telemetry: Arc<Telemetry>,
}

impl Flying {
    pub(super) fn begin(telemetry: Arc<Telemetry>) -> Self {
        telemetry.process.flights.inc();
        Self { telemetry }
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        self.telemetry.process.flights.dec();
    }
}

/// An open client connection.
#[derive(Debug)]
#[must_use = "it counts as long as it lives"]
pub struct Connected {
    telemetry: Arc<Telemetry>,
}

impl Connected {
    pub(super) fn begin(telemetry: Arc<Telemetry>) -> Self {
        telemetry.process.connections.inc();
        telemetry.process.connections_total.inc();
        Self { telemetry }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.telemetry.process.connections.dec();
    }
}

/// A tunnel between a client and an upstream.
#[derive(Debug)]
#[must_use = "it counts as long as it lives"]
pub struct Tunnelling {
    telemetry: Arc<Telemetry>,
}

impl Tunnelling {
    pub(super) fn begin(telemetry: Arc<Telemetry>) -> Self {
        telemetry.process.tunnels.inc();
        Self { telemetry }
    }
}

impl Drop for Tunnelling {
    fn drop(&mut self) {
        self.telemetry.process.tunnels.dec();
    }
}

/// An attempt to get a response from an upstream, until the head of that response.
///
/// It is counted when it ends, if the request was [`sent`](Self::sent). Dropping it means that there was no answer, be it for a
/// failure or because the request was given up.
#[derive(Debug)]
#[must_use = "dropping it counts a request without an answer"]
pub struct UpstreamRequest {
    upstream: Arc<UpstreamMetrics>,
    reason: FetchReason,
    since: Instant,
    class: StatusClass,
    /// `None`: it ends when it is dropped.
    ended: Option<Instant>,
    is_sent: bool,
}

impl UpstreamRequest {
    pub(super) fn begin(upstream: Arc<UpstreamMetrics>, reason: FetchReason, since: Instant) -> Self {
        upstream.in_flight.inc();
        Self { upstream, reason, since, class: StatusClass::Error, ended: None, is_sent: false }
    }

    /// The request is being sent: it counts from here on.
    pub fn sent(&mut self) {
        self.is_sent = true;
    }

    /// The head of the final response came at this moment.
    pub fn answered(mut self, status: StatusCode, came: Instant) {
        (self.class, self.ended) = (StatusClass::of(status), Some(came));
    }

    /// None of it was sent after all.
    pub fn unsent(mut self) {
        self.is_sent = false;
    }
}

impl Drop for UpstreamRequest {
    fn drop(&mut self) {
        let upstream = &self.upstream;
        upstream.in_flight.dec();
        if !self.is_sent {
            return;
        }
        let ended = self.ended.unwrap_or_else(Instant::now);
        upstream.duration.observe((ended - self.since).as_secs_f64());
        upstream.requests.of(self.reason).of(self.class).inc();
    }
}
