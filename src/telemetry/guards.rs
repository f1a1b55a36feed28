//! Guards for what lasts: while one lives, a gauge is one higher.

use super::Telemetry;
use super::labels::{DuplicateCause, FetchReason, StatusClass, WaitResult};
use super::metrics::{RouteMetrics, UpstreamMetrics};
use http::StatusCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
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

/// A request to an upstream, from the search for a connection to the head of its response. It counts if it was written, however
/// little of it: that is for who writes it to say, be it after whoever waits for an answer has gone.
#[derive(Debug)]
#[must_use = "dropping it says that there was no answer"]
pub struct UpstreamRequest {
    tally: Arc<Tally>,
}

/// Says that a request was written.
#[derive(Debug)]
pub struct RequestWitness {
    tally: Arc<Tally>,
}

/// What is counted when nobody has anything to add.
#[derive(Debug)]
struct Tally {
    upstream: Arc<UpstreamMetrics>,
    reason: FetchReason,
    since: Instant,
    /// How it was answered; unset: not at all.
    class: OnceLock<StatusClass>,
    is_written: AtomicBool,
    /// Why it is one too many, and on which route.
    duplicate: OnceLock<(Arc<RouteMetrics>, DuplicateCause)>,
}

impl UpstreamRequest {
    pub(super) fn begin(upstream: Arc<UpstreamMetrics>, reason: FetchReason) -> Self {
        upstream.in_flight.inc();
        let tally = Tally {
            upstream,
            reason,
            since: Instant::now(),
            class: OnceLock::new(),
            is_written: AtomicBool::new(false),
            duplicate: OnceLock::new(),
        };
        Self { tally: Arc::new(tally) }
    }

    /// If it is written, it is one more than was needed.
    pub fn is_one_too_many(&mut self, route: &Arc<RouteMetrics>, cause: DuplicateCause) {
        // It is one only once.
        let _ = self.tally.duplicate.set((Arc::clone(route), cause));
    }

    /// For who writes it.
    pub fn witness(&self) -> RequestWitness {
        RequestWitness { tally: Arc::clone(&self.tally) }
    }

    /// It is, or counts as, written.
    pub fn written(&mut self) {
        self.tally.written();
    }

    /// Whether it was.
    pub fn is_written(&self) -> bool {
        self.tally.is_written.load(Ordering::Acquire)
    }

    /// The head of the final response has come.
    pub fn answered(self, status: StatusCode) {
        // It is answered only once.
        let _ = self.tally.class.set(StatusClass::of(status));
    }

    /// None of it was sent after all.
    pub fn unwritten(&mut self) {
        self.tally.is_written.store(false, Ordering::Release);
    }
}

impl RequestWitness {
    /// It is written.
    pub fn written(&mut self) {
        self.tally.written();
    }
}

impl Tally {
    fn written(&self) {
        let is_first = !self.is_written.swap(true, Ordering::AcqRel);
        if let Some((route, cause)) = self.duplicate.get().filter(|_| is_first) {
            route.duplicate_fetch(*cause);
        }
    }
}

impl Drop for UpstreamRequest {
    fn drop(&mut self) {
        self.tally.upstream.in_flight.dec();
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if *self.is_written.get_mut() {
            let class = self.class.get().copied().unwrap_or(StatusClass::Error);
            self.upstream.duration.observe(self.since.elapsed().as_secs_f64());
            self.upstream.requests.of(self.reason).of(class).inc();
        }
    }
}
