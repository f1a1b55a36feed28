//! Metrics, logs and the access log.
//!
//! A [`Telemetry`] is made once and handed to whoever has something to tell. Each of its methods is one event,
//! and counts and logs it together, so that the two cannot drift apart. What lasts (a wait, a fetch, a
//! connection) is a guard that ends by being dropped.
//!
//! Routes and upstreams are named by their index in the configuration. A request that no route matched belongs
//! to the index one past the last route ([`Telemetry::unmatched`]), with the label `none`.

pub mod access;
mod guards;
pub mod labels;
pub mod log;
pub mod metrics;
pub mod settings;

pub use access::{AccessRecord, BodyEnd, RequestLine};
pub use guards::{Connected, Flying, Tunnelling, UpstreamRequest, Waiting};
pub use labels::{
    DuplicateCause, EvictionCause, FetchReason, Label, PurgeKind, RefusalCause, StatusClass, WaitResult,
};
pub use log::{InitError, LogGuard, init};
pub use metrics::{REVISION, RouteMetrics, UpstreamMetrics, VERSION};
pub use settings::{Format, Settings};

use crate::outcome::{Answered, Outcome};
use metrics::{NO_ROUTE, OriginFamilies, ProcessMetrics, RouteFamilies, UpstreamFamilies};
use parking_lot::Mutex;
use prometheus::{IntGauge, Registry, TextEncoder};
use std::fmt;
use std::sync::Arc;

/// Every metric of the program, and the access log.
pub struct Telemetry {
    registry: Registry,
    routes: Box<[RouteMetrics]>,
    upstreams: Box<[UpstreamMetrics]>,
    origins: OriginFamilies,
    process: ProcessMetrics,
    access_log: bool,
    /// Where the gauges that others keep are read from. Taken only to render and to change them: a plain mutex,
    /// never held across an await.
    sources: Mutex<Sources>,
}

/// What the store says of itself when the metrics are rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreNumbers {
    /// Bytes of stored responses, heads and bodies together.
    pub bytes: u64,
    /// Bytes at which eviction starts.
    pub bytes_max: u64,
    /// Stored responses.
    pub entries: u64,
}

/// What an upstream says of itself when the metrics are rendered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpstreamNumbers {
    /// Its name.
    pub name: String,
    /// Requests sent again.
    pub retries: u64,
    /// Requests that the retry budget kept from being sent again.
    pub retries_refused: u64,
    /// Each origin's authority, whether it gets requests, and how often it was ejected.
    pub origins: Vec<(String, bool, u64)>,
}

#[derive(Default)]
struct Sources {
    upstreams: Option<Box<dyn Fn() -> Vec<UpstreamNumbers> + Send>>,
    store: Option<Box<dyn Fn() -> StoreNumbers + Send>>,
    inflight_bytes: Option<Box<dyn Fn() -> u64 + Send>>,
}

impl Telemetry {
    /// Registers every metric for these routes and upstreams, which are the only values their labels can take.
    /// With `access_log`, [`finished`](Self::finished) writes a line for each request.
    pub fn new(routes: &[&str], upstreams: &[&str], access_log: bool) -> Arc<Self> {
        let registry = Registry::new();
        let route_families = RouteFamilies::register(&registry);
        let upstream_families = UpstreamFamilies::register(&registry);
        Arc::new(Self {
            routes: routes.iter().chain([&NO_ROUTE]).map(|name| route_families.resolve(name)).collect(),
            upstreams: upstreams.iter().map(|name| upstream_families.resolve(name)).collect(),
            origins: OriginFamilies::register(&registry),
            process: ProcessMetrics::register(&registry),
            registry,
            access_log,
            sources: Mutex::default(),
        })
    }

    /// The metrics of the route at this index; past the last route, those of requests that no route matched.
    pub fn route(&self, index: usize) -> &RouteMetrics {
        &self.routes[index.min(self.unmatched())]
    }

    /// The index that stands for "no route matched".
    pub fn unmatched(&self) -> usize {
        self.routes.len() - 1
    }

    /// The metrics of the upstream at this index.
    ///
    /// # Panics
    /// If there is no such upstream: indexes come from the same configuration as the list given to `new`.
    pub fn upstream(&self, index: usize) -> &UpstreamMetrics {
        &self.upstreams[index]
    }

    /// A request has got its answer's head, or has ended without one. Exactly once for each request.
    pub fn answered(&self, route: usize, outcome: &Outcome) {
        let route = self.route(route);
        route.requests.of(outcome.answered).inc();
        match outcome.answered {
            Answered::Hit | Answered::Stale | Answered::Revalidated => route.hits.inc(),
            Answered::Miss => route.misses.inc(),
            Answered::Collapsed
            | Answered::Pass
            | Answered::Tunnel
            | Answered::Purged
            | Answered::Rejected
            | Answered::Error
            | Answered::Abandoned => {}
        }
    }

    /// The body of an answer has ended, well or not. Exactly once for each request.
    pub fn finished(&self, route: usize, record: &AccessRecord<'_>) {
        let route = self.route(route);
        route.observe_duration(record.outcome.answered, record.duration);
        route.response_bytes.inc_by(record.body_bytes);
        match record.body_end {
            BodyEnd::Complete => {}
            // Clients leave tunnels as they like.
            BodyEnd::BrokenOff | BodyEnd::ClientLeft if record.outcome.answered == Answered::Tunnel => {}
            BodyEnd::BrokenOff | BodyEnd::ClientLeft => route.broken.inc(),
        }
        if let Some(request) = &record.request
            && self.access_log
        {
            access::log(&route.name, request, record);
        }
    }

    /// Whether [`finished`](Self::finished) writes a line, for which the request must be remembered.
    pub fn logs_access(&self) -> bool {
        self.access_log
    }

    /// A request begins to wait for another request's fetch.
    pub fn waiting(self: &Arc<Self>, route: usize) -> Waiting {
        Waiting::begin(Arc::clone(self), route)
    }

    /// A request found no place to wait for another request's fetch.
    pub fn wait_refused(&self, route: usize) {
        self.route(route).waits.of(WaitResult::Overflow).inc();
    }

    /// Requests that wait for another request's fetch at this moment.
    pub fn waiters(&self) -> i64 {
        self.process.waiters.get()
    }

    /// A shared fetch begins.
    pub fn flying(self: &Arc<Self>) -> Flying {
        Flying::begin(Arc::clone(self))
    }

    /// Shared fetches in flight at this moment.
    pub fn flights(&self) -> i64 {
        self.process.flights.get()
    }

    /// A fetch starts although another for the same key is in flight.
    pub fn duplicate_fetch(&self, route: usize, cause: DuplicateCause) {
        let route = self.route(route);
        route.duplicates.of(cause).inc();
        tracing::debug!(route = route.name, cause = labels::Label::as_str(cause), "duplicate fetch");
    }

    /// A request is sent to an upstream.
    pub fn upstream_request(self: &Arc<Self>, upstream: usize, reason: FetchReason) -> UpstreamRequest {
        UpstreamRequest::begin(Arc::clone(self), upstream, reason)
    }

    /// A stored response has left the store.
    pub fn evicted(&self, cause: EvictionCause) {
        self.process.evictions.of(cause).inc();
    }

    /// A purge has taken effect.
    pub fn purged(&self, kind: PurgeKind) {
        self.process.purges.of(kind).inc();
        tracing::info!(kind = labels::Label::as_str(kind), "purged");
    }

    /// A successful unsafe request has invalidated what is stored for its target (RFC 9111 §4.4).
    pub fn invalidated(&self, route: usize) {
        self.route(route).invalidations.inc();
    }

    /// A panic was caught; `place` says what was being done.
    pub fn panicked(&self, place: &'static str) {
        self.process.panics.inc();
        tracing::error!(place, "caught a panic; this is a defect of forebay");
    }

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
        tracing::debug!(cause = labels::Label::as_str(cause), "connection refused");
    }

    /// Says where to read the store's numbers when rendering, in place of what was said before.
    pub fn observe_store(&self, numbers: impl Fn() -> StoreNumbers + Send + 'static) {
        self.sources.lock().store = Some(Box::new(numbers));
    }

    /// Says where to read the bytes of bodies in flight when rendering, in place of what was said before.
    pub fn observe_inflight_bytes(&self, bytes: impl Fn() -> u64 + Send + 'static) {
        self.sources.lock().inflight_bytes = Some(Box::new(bytes));
    }

    /// Says where to read what upstreams count when rendering, in place of what was said before.
    pub fn observe_upstreams(&self, numbers: impl Fn() -> Vec<UpstreamNumbers> + Send + 'static) {
        self.sources.lock().upstreams = Some(Box::new(numbers));
    }

    /// Every metric in Prometheus's text format.
    pub fn render(&self) -> String {
        self.read_sources();
        let mut text = String::new();
        TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text).expect(
            "every registered family has a name and at least one metric, and a string takes all text",
        );
        text
    }

    fn read_sources(&self) {
        let sources = self.sources.lock();
        if let Some(store) = &sources.store {
            let numbers = store();
            set(&self.process.store_bytes, numbers.bytes);
            set(&self.process.store_bytes_max, numbers.bytes_max);
            set(&self.process.store_entries, numbers.entries);
        }
        if let Some(inflight_bytes) = &sources.inflight_bytes {
            set(&self.process.inflight_bytes, inflight_bytes());
        }
        for upstream in sources.upstreams.iter().flat_map(|numbers| numbers()) {
            self.origins.read(&upstream);
        }
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Telemetry")
            .field("routes", &self.routes.len())
            .field("upstreams", &self.upstreams.len())
            .finish_non_exhaustive()
    }
}

fn set(gauge: &IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests {
    use super::labels::Label;
    use super::*;
    use http::StatusCode;
    use std::time::Duration;

    const NONE: usize = 1;

    fn telemetry() -> Arc<Telemetry> {
        Telemetry::new(&["site"], &["app"], true)
    }

    /// The value of one series in the rendered text.
    #[track_caller]
    fn value(telemetry: &Telemetry, series: &str) -> f64 {
        let text = telemetry.render();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in:\n{text}")).parse().unwrap()
    }

    #[track_caller]
    fn check(telemetry: &Telemetry, series: &str, expected: f64) {
        let found = value(telemetry, series);
        assert!((found - expected).abs() < 1e-9, "{series} is {found}, not {expected}");
    }

    fn record(outcome: &Outcome, body_end: BodyEnd) -> AccessRecord<'_> {
        AccessRecord {
            request: None,
            status: StatusCode::OK,
            outcome,
            body_bytes: 10,
            duration: Duration::from_millis(2),
            body_end,
        }
    }

    #[test]
    fn every_outcome_is_counted_once_and_the_sum_is_every_request() {
        let telemetry = telemetry();
        for answered in Answered::ALL {
            let outcome = Outcome::of(answered);
            telemetry.answered(0, &outcome);
            telemetry.finished(0, &record(&outcome, BodyEnd::Complete));
            let word = answered.as_str();
            check(&telemetry, &format!("forebay_requests_total{{outcome=\"{word}\",route=\"site\"}}"), 1.0);
            check(
                &telemetry,
                &format!("forebay_request_duration_seconds_count{{outcome=\"{word}\",route=\"site\"}}"),
                1.0,
            );
        }
        assert_eq!(telemetry.route(0).requests_total(), 11);
        check(&telemetry, "forebay_cache_hits_total{route=\"site\"}", 3.0);
        check(&telemetry, "forebay_cache_misses_total{route=\"site\"}", 1.0);
        check(&telemetry, "forebay_response_bytes_total{route=\"site\"}", 110.0);
        check(&telemetry, "forebay_responses_broken_total{route=\"site\"}", 0.0);
    }

    #[test]
    fn requests_without_a_route_have_their_own_label() {
        let telemetry = telemetry();
        assert_eq!(telemetry.unmatched(), NONE);
        telemetry.answered(NONE, &Outcome::of(Answered::Rejected));
        telemetry.answered(usize::MAX, &Outcome::of(Answered::Rejected));
        check(&telemetry, "forebay_requests_total{outcome=\"rejected\",route=\"none\"}", 2.0);
        check(&telemetry, "forebay_requests_total{outcome=\"rejected\",route=\"site\"}", 0.0);
    }

    #[test]
    fn broken_bodies_are_counted() {
        let telemetry = telemetry();
        let outcome = Outcome::of(Answered::Hit);
        telemetry.finished(0, &record(&outcome, BodyEnd::BrokenOff));
        telemetry.finished(0, &record(&outcome, BodyEnd::ClientLeft));
        check(&telemetry, "forebay_responses_broken_total{route=\"site\"}", 2.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_counted_by_its_result() {
        let telemetry = telemetry();
        for &result in WaitResult::ALL {
            let waiting = telemetry.waiting(0);
            assert_eq!(telemetry.waiters(), 1);
            tokio::time::advance(Duration::from_secs(2)).await;
            waiting.ended(result);
            assert_eq!(telemetry.waiters(), 0);
            let word = result.as_str();
            check(
                &telemetry,
                &format!("forebay_coalesced_waits_total{{result=\"{word}\",route=\"site\"}}"),
                1.0,
            );
        }
        drop(telemetry.waiting(0));
        assert_eq!(telemetry.route(0).waits(WaitResult::Left), 2, "a dropped wait is a client that left");
        telemetry.wait_refused(0);
        assert_eq!(telemetry.route(0).waits(WaitResult::Overflow), 2);
        check(&telemetry, "forebay_coalesced_wait_seconds_count", 7.0);
        check(&telemetry, "forebay_coalesced_wait_seconds_sum", 12.0);
        check(&telemetry, "forebay_coalesced_wait_seconds_bucket{le=\"1\"}", 1.0);
        check(&telemetry, "forebay_coalesced_wait_seconds_bucket{le=\"2.5\"}", 7.0);
    }

    #[test]
    fn every_duplicate_eviction_purge_and_refusal_has_a_series() {
        let telemetry = telemetry();
        for &cause in DuplicateCause::ALL {
            telemetry.duplicate_fetch(0, cause);
            let word = cause.as_str();
            check(
                &telemetry,
                &format!("forebay_duplicate_fetches_total{{cause=\"{word}\",route=\"site\"}}"),
                1.0,
            );
            assert_eq!(telemetry.route(0).duplicates(cause), 1);
        }
        for &cause in EvictionCause::ALL {
            telemetry.evicted(cause);
            check(&telemetry, &format!("forebay_evictions_total{{cause=\"{}\"}}", cause.as_str()), 1.0);
        }
        for &kind in PurgeKind::ALL {
            telemetry.purged(kind);
            check(&telemetry, &format!("forebay_purges_total{{kind=\"{}\"}}", kind.as_str()), 1.0);
        }
        for &cause in RefusalCause::ALL {
            telemetry.connection_refused(cause);
            check(
                &telemetry,
                &format!("forebay_connections_refused_total{{cause=\"{}\"}}", cause.as_str()),
                1.0,
            );
        }
        telemetry.invalidated(0);
        check(&telemetry, "forebay_invalidations_total{route=\"site\"}", 1.0);
        telemetry.panicked("a test");
        check(&telemetry, "forebay_panics_total", 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_request_is_counted_by_reason_and_class() {
        let telemetry = telemetry();
        for &reason in FetchReason::ALL {
            for &class in StatusClass::ALL {
                let request = telemetry.upstream_request(0, reason);
                assert_eq!(telemetry.upstream(0).in_flight(), 1);
                let code = u16::try_from(class.position() + 1).unwrap() * 100;
                if class == StatusClass::Error {
                    drop(request);
                } else {
                    request.answered(StatusCode::from_u16(code).unwrap());
                }
                let (reason, class) = (reason.as_str(), class.as_str());
                let labels = format!("{{reason=\"{reason}\",status_class=\"{class}\",upstream=\"app\"}}");
                check(&telemetry, &format!("forebay_upstream_requests_total{labels}"), 1.0);
            }
        }
        assert_eq!(telemetry.upstream(0).in_flight(), 0);
        assert_eq!(telemetry.upstream(0).requests_total(), 30);
        check(&telemetry, "forebay_upstream_request_duration_seconds_count{upstream=\"app\"}", 30.0);
    }

    #[test]
    fn gauges_follow_their_guards() {
        let telemetry = telemetry();
        let (flying, connected) = (telemetry.flying(), telemetry.connected());
        check(&telemetry, "forebay_flights", 1.0);
        check(&telemetry, "forebay_connections", 1.0);
        drop((flying, connected));
        assert_eq!((telemetry.flights(), telemetry.connections()), (0, 0));
        check(&telemetry, "forebay_connections_total", 1.0);
    }

    #[test]
    fn the_store_is_read_when_the_metrics_are_rendered() {
        let telemetry = telemetry();
        check(&telemetry, "forebay_store_bytes", 0.0);
        telemetry.observe_store(|| StoreNumbers { bytes: 7, bytes_max: 100, entries: 2 });
        telemetry.observe_inflight_bytes(|| 3);
        check(&telemetry, "forebay_store_bytes", 7.0);
        check(&telemetry, "forebay_store_bytes_max", 100.0);
        check(&telemetry, "forebay_store_entries", 2.0);
        check(&telemetry, "forebay_inflight_bytes", 3.0);
    }

    #[test]
    fn build_and_process_are_described() {
        let telemetry = telemetry();
        let revision = REVISION.unwrap_or("unknown");
        let labels = format!("revision=\"{revision}\",version=\"{VERSION}\"");
        check(&telemetry, &format!("forebay_build_info{{{labels}}}"), 1.0);
        if cfg!(target_os = "linux") {
            assert!(value(&telemetry, "process_resident_memory_bytes") > 0.0);
        }
    }

    #[test]
    fn every_family_explains_itself() {
        let text = telemetry().render();
        for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
            let name = line.split(' ').nth(2).unwrap();
            let help = text.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
            assert!(help.is_some_and(|help| help.len() > 10), "{name}: {help:?}");
        }
    }
}
