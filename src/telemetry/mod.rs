//! Metrics, logs and the access log.
//!
//! A [`Telemetry`] is made once and handed to whoever has something to tell. Each of its methods is one event,
//! and counts and logs it together, so that the two cannot drift apart. What lasts (a wait, a fetch, a
//! connection) is a guard that ends by being dropped.
//!
//! What is counted for a route or an upstream has a handle ([`RouteMetrics`], [`UpstreamMetrics`]), which whoever
//! knows the configuration asks for once by name and keeps. A route that is configured again gets the same handle, so
//! that its counts go on. Requests that no route matched have a handle too ([`Telemetry::unmatched`]), labelled `none`.

pub mod access;
mod connections;
mod guards;
pub mod labels;
mod lines;
pub mod log;
pub mod metrics;
pub mod settings;
mod upstreams;

pub use access::{AccessRecord, BodyEnd, RequestLine};
pub use guards::{Connected, Flying, Tunnelling, UpstreamRequest, Waiting};
pub use labels::{
    DuplicateCause, EvictionCause, FetchReason, Label, PurgeKind, RefusalCause, ReloadResult, StatusClass,
    TlsFailure, WaitResult,
};
pub use log::{InitError, LogFilter, LogGuard, init};
pub use metrics::{REVISION, RouteMetrics, UpstreamMetrics, VERSION};
pub use settings::{Format, Settings};

use crate::outcome::{Answered, Outcome};
use metrics::{NO_ROUTE, ProcessMetrics, RouteFamilies, UpstreamFamilies};
use parking_lot::Mutex;
use prometheus::{IntGauge, Registry, TextEncoder};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;
use tokio::time::Instant;
use upstreams::OriginFamilies;

/// Every metric of the program, and the access log.
pub struct Telemetry {
    registry: Registry,
    route_families: RouteFamilies,
    upstream_families: UpstreamFamilies,
    unmatched: Arc<RouteMetrics>,
    /// The handles that were asked for. Taken when a configuration takes effect, never by a request: a plain mutex,
    /// never held across an await.
    handles: Mutex<Handles>,
    origins: OriginFamilies,
    process: ProcessMetrics,
    access_log: AtomicBool,
    is_cutting_off: AtomicBool,
    lines: connections::Lines,
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

/// What bodies take of memory that the store does not count, when the metrics are rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BodyNumbers {
    /// Bytes of bodies that are being filled.
    pub inflight_bytes: u64,
    /// Bytes of finished bodies that are not stored, and read.
    pub lingering_bytes: u64,
    /// Bodies of the latter kind that were withdrawn from their readers.
    pub withdrawn: u64,
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
    /// How many requests there may be in flight.
    pub concurrency_limit: u64,
    /// Requests that wait for a place.
    pub queued: u64,
    /// Requests that were not sent, by the word for the cause.
    pub refused: Vec<(&'static str, u64)>,
    /// What its circuit breaker says, where there is one.
    pub breaker: Option<BreakerNumbers>,
    /// What is known of each origin.
    pub origins: Vec<OriginNumbers>,
}

/// What the circuit breaker of an upstream says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BreakerNumbers {
    /// The word for each state, whether it is in it, and how often it came into it.
    pub states: Vec<(&'static str, bool, u64)>,
    /// Requests let through while it was half open.
    pub probes: u64,
}

/// What is known of an origin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OriginNumbers {
    /// Host and port, behind the scheme where another origin has the same with another scheme.
    pub authority: String,
    /// Whether it gets requests.
    pub is_up: bool,
    /// How often it was ejected.
    pub ejections: u64,
    /// How many addresses its name has.
    pub addresses: u64,
}

/// A certificate of our own, as a configuration has put it in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInUse {
    /// The file that it was read from.
    pub file: String,
    /// When it ceases to be valid.
    pub not_after: SystemTime,
}

/// In the order in which they were first asked for. Those of routes that are gone stay: a series does not end.
#[derive(Default)]
struct Handles {
    routes: Vec<Arc<RouteMetrics>>,
    upstreams: Vec<Arc<UpstreamMetrics>>,
}

#[derive(Default)]
struct Sources {
    upstreams: Option<Box<dyn Fn() -> Vec<UpstreamNumbers> + Send>>,
    store: Option<Box<dyn Fn() -> StoreNumbers + Send>>,
    bodies: Option<Box<dyn Fn() -> BodyNumbers + Send>>,
}

impl Telemetry {
    /// Registers every metric. With `access_log`, [`finished`](Self::finished) writes a line for each request.
    pub fn new(access_log: bool) -> Arc<Self> {
        let registry = Registry::new();
        let route_families = RouteFamilies::register(&registry);
        Arc::new(Self {
            unmatched: Arc::new(route_families.resolve(NO_ROUTE)),
            route_families,
            upstream_families: UpstreamFamilies::register(&registry),
            handles: Mutex::default(),
            origins: OriginFamilies::register(&registry),
            process: ProcessMetrics::register(&registry),
            registry,
            access_log: AtomicBool::new(access_log),
            is_cutting_off: AtomicBool::new(false),
            lines: connections::Lines::default(),
            sources: Mutex::default(),
        })
    }

    /// What is counted for the route of this name. Names come from the configuration, never from clients.
    pub fn route_named(&self, name: &str) -> Arc<RouteMetrics> {
        let mut handles = self.handles.lock();
        let known = handles.routes.iter().find(|route| route.name == name).map(Arc::clone);
        known.unwrap_or_else(|| {
            let route = Arc::new(self.route_families.resolve(name));
            handles.routes.push(Arc::clone(&route));
            route
        })
    }

    /// What is counted for the upstream of this name, likewise.
    pub fn upstream_named(&self, name: &str) -> Arc<UpstreamMetrics> {
        let mut handles = self.handles.lock();
        let known = handles.upstreams.iter().find(|upstream| upstream.name == name).map(Arc::clone);
        known.unwrap_or_else(|| {
            let upstream = Arc::new(self.upstream_families.resolve(name));
            handles.upstreams.push(Arc::clone(&upstream));
            upstream
        })
    }

    /// What is counted for the route that was asked for as this many-th, from 0.
    ///
    /// # Panics
    /// If not so many have been asked for.
    pub fn route(&self, index: usize) -> Arc<RouteMetrics> {
        Arc::clone(&self.handles.lock().routes[index])
    }

    /// What is counted for the upstream that was asked for as this many-th, from 0.
    ///
    /// # Panics
    /// If not so many have been asked for.
    pub fn upstream(&self, index: usize) -> Arc<UpstreamMetrics> {
        Arc::clone(&self.handles.lock().upstreams[index])
    }

    /// What is counted for requests that no route matched.
    pub fn unmatched(&self) -> &Arc<RouteMetrics> {
        &self.unmatched
    }

    /// A request has got its answer's head, or has ended without one. Exactly once for each request.
    pub fn answered(&self, route: &RouteMetrics, outcome: &Outcome) {
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
    pub fn finished(&self, route: &RouteMetrics, record: &AccessRecord<'_>) {
        route.observe_duration(record.outcome.answered, record.duration);
        route.response_bytes.inc_by(record.body_bytes);
        match record.body_end {
            BodyEnd::Complete => {}
            // Clients leave tunnels as they like.
            BodyEnd::BrokenOff | BodyEnd::ClientLeft | BodyEnd::CutOff
                if record.outcome.answered == Answered::Tunnel => {}
            BodyEnd::BrokenOff | BodyEnd::ClientLeft | BodyEnd::CutOff => route.broken.inc(),
        }
        if let Some(request) = &record.request
            && self.logs_access()
        {
            access::log(&route.name, request, record);
        }
    }

    /// Whether [`finished`](Self::finished) writes a line, for which the request must be remembered.
    pub fn logs_access(&self) -> bool {
        self.access_log.load(Ordering::Relaxed)
    }

    /// Says whether [`finished`](Self::finished) writes a line from here on.
    pub fn log_access(&self, access_log: bool) {
        self.access_log.store(access_log, Ordering::Relaxed);
    }

    /// The process ends: what has not ended by itself is ended by it from here on.
    pub fn cut_off(&self) {
        self.is_cutting_off.store(true, Ordering::Relaxed);
    }

    /// Whether what ends without having come to its end is [`cut off`](Self::cut_off).
    pub fn is_cutting_off(&self) -> bool {
        self.is_cutting_off.load(Ordering::Relaxed)
    }

    /// A request begins to wait for another request's fetch.
    pub fn waiting(self: &Arc<Self>, route: &Arc<RouteMetrics>) -> Waiting {
        Waiting::begin(Arc::clone(self), Arc::clone(route))
    }

    /// A request found no place to wait for another request's fetch.
    pub fn wait_refused(&self, route: &RouteMetrics) {
        route.waits.of(WaitResult::Overflow).inc();
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

    /// A fetch is sent although another for the same key is in flight, or kept its request waiting in vain.
    pub fn duplicate_fetch(&self, route: &RouteMetrics, cause: DuplicateCause) {
        route.duplicates.of(cause).inc();
        tracing::debug!(route = route.name, cause = labels::Label::as_str(cause), "duplicate fetch");
    }

    /// A request is about to be sent to an upstream, at this moment.
    pub fn upstream_request(
        &self,
        upstream: &Arc<UpstreamMetrics>,
        reason: FetchReason,
        now: Instant,
    ) -> UpstreamRequest {
        UpstreamRequest::begin(Arc::clone(upstream), reason, now)
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
    pub fn invalidated(&self, route: &RouteMetrics) {
        route.invalidations.inc();
    }

    /// A panic was caught; `place` says what was being done.
    pub fn panicked(&self, place: &'static str) {
        self.process.panics.inc();
        tracing::error!(place, "caught a panic; this is a defect of forebay");
    }

    /// A configuration has taken effect: the first one, or one that was loaded later for this cause. These of its keys
    /// wait for a restart.
    pub fn configured(&self, at: SystemTime, cause: &'static str, restart_required: &[&'static str]) {
        self.process.reload_successful.set(1);
        let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.process.reload_success_timestamp.set(since_epoch.as_secs_f64());
        if cause == labels::AT_START {
            return;
        }
        self.process.reloads.of(ReloadResult::Success).inc();
        tracing::info!(cause, "the configuration was loaded again");
        if !restart_required.is_empty() {
            let keys = restart_required.join(", ");
            tracing::warn!(keys, "these keys have changed, and take effect at the next start");
        }
    }

    /// These certificates are in use from here on, and no others.
    pub fn certified(&self, certificates: &[CertificateInUse]) {
        self.process.certificates.reset();
        for CertificateInUse { file, not_after } in certificates {
            let since_epoch = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.process.certificates.with_label_values(&[file.as_str()]).set(since_epoch.as_secs_f64());
        }
    }

    /// A configuration was refused: the one before it stays in effect.
    pub fn configuration_refused(&self, cause: &'static str, error: &str) {
        self.process.reload_successful.set(0);
        self.process.reloads.of(ReloadResult::Refused).inc();
        tracing::error!(cause, error, "the configuration was refused; the one before it stays in effect");
    }

    /// Says where to read the store's numbers when rendering, in place of what was said before.
    pub fn observe_store(&self, numbers: impl Fn() -> StoreNumbers + Send + 'static) {
        self.sources.lock().store = Some(Box::new(numbers));
    }

    /// Says where to read what bodies take that the store does not count, in place of what was said before.
    pub fn observe_bodies(&self, numbers: impl Fn() -> BodyNumbers + Send + 'static) {
        self.sources.lock().bodies = Some(Box::new(numbers));
    }

    /// Says where to read what upstreams count when rendering, in place of what was said before.
    pub fn observe_upstreams(&self, numbers: impl Fn() -> Vec<UpstreamNumbers> + Send + 'static) {
        self.sources.lock().upstreams = Some(Box::new(numbers));
    }

    /// Every metric in Prometheus's text format.
    pub fn render(&self) -> String {
        // Held to the end, so that no other rendering sees a gauge between two values.
        let sources = self.sources.lock();
        self.read(&sources);
        let mut text = String::new();
        TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text).expect(
            "every registered family has a name and at least one metric, and a string takes all text",
        );
        text
    }

    fn read(&self, sources: &Sources) {
        if let Some(store) = &sources.store {
            let numbers = store();
            set(&self.process.store_bytes, numbers.bytes);
            set(&self.process.store_bytes_max, numbers.bytes_max);
            set(&self.process.store_entries, numbers.entries);
        }
        if let Some(bodies) = &sources.bodies {
            let numbers = bodies();
            set(&self.process.inflight_bytes, numbers.inflight_bytes);
            set(&self.process.lingering_bytes, numbers.lingering_bytes);
            self.process.withdrawn.inc_by(numbers.withdrawn.saturating_sub(self.process.withdrawn.get()));
        }
        if let Some(upstreams) = &sources.upstreams {
            self.origins.read(&upstreams());
        }
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Telemetry").finish_non_exhaustive()
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

    /// One that knows a route and an upstream.
    fn telemetry() -> Arc<Telemetry> {
        let telemetry = Telemetry::new(true);
        let _ = (telemetry.route_named("site"), telemetry.upstream_named("app"));
        telemetry
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
            telemetry.answered(&telemetry.route(0), &outcome);
            telemetry.finished(&telemetry.route(0), &record(&outcome, BodyEnd::Complete));
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
        for _ in 0..2 {
            telemetry.answered(telemetry.unmatched(), &Outcome::of(Answered::Rejected));
        }
        check(&telemetry, "forebay_requests_total{outcome=\"rejected\",route=\"none\"}", 2.0);
        check(&telemetry, "forebay_requests_total{outcome=\"rejected\",route=\"site\"}", 0.0);
    }

    #[test]
    fn what_is_configured_again_counts_on() {
        let telemetry = telemetry();
        let outcome = Outcome::of(Answered::Hit);
        telemetry.answered(&telemetry.route_named("site"), &outcome);
        telemetry.answered(&telemetry.route_named("new"), &outcome);
        telemetry.answered(&telemetry.route_named("site"), &outcome);
        check(&telemetry, "forebay_requests_total{outcome=\"hit\",route=\"site\"}", 2.0);
        check(&telemetry, "forebay_requests_total{outcome=\"hit\",route=\"new\"}", 1.0);
        assert!(Arc::ptr_eq(&telemetry.upstream_named("app"), &telemetry.upstream(0)));
    }

    #[test]
    fn a_refused_configuration_is_told_apart_from_one_in_effect() {
        let telemetry = telemetry();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        telemetry.configured(at(1_000), labels::AT_START, &[]);
        check(&telemetry, "forebay_config_last_reload_successful", 1.0);
        telemetry.configuration_refused("test", "why");
        check(&telemetry, "forebay_config_last_reload_successful", 0.0);
        check(&telemetry, "forebay_config_last_reload_success_timestamp_seconds", 1_000.0);
        check(&telemetry, "forebay_config_reloads_total{result=\"refused\"}", 1.0);
        check(&telemetry, "forebay_config_reloads_total{result=\"success\"}", 0.0);
        telemetry.configured(at(2_000), "test", &["server.listen"]);
        check(&telemetry, "forebay_config_last_reload_successful", 1.0);
        check(&telemetry, "forebay_config_last_reload_success_timestamp_seconds", 2_000.0);
        check(&telemetry, "forebay_config_reloads_total{result=\"success\"}", 1.0);
    }

    #[test]
    fn broken_bodies_are_counted() {
        let telemetry = telemetry();
        let outcome = Outcome::of(Answered::Hit);
        telemetry.finished(&telemetry.route(0), &record(&outcome, BodyEnd::BrokenOff));
        telemetry.finished(&telemetry.route(0), &record(&outcome, BodyEnd::ClientLeft));
        check(&telemetry, "forebay_responses_broken_total{route=\"site\"}", 2.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_counted_by_its_result() {
        let telemetry = telemetry();
        for &result in WaitResult::ALL {
            let waiting = telemetry.waiting(&telemetry.route(0));
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
        drop(telemetry.waiting(&telemetry.route(0)));
        assert_eq!(telemetry.route(0).waits(WaitResult::Left), 2, "a dropped wait is a client that left");
        telemetry.wait_refused(&telemetry.route(0));
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
            telemetry.duplicate_fetch(&telemetry.route(0), cause);
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
        for &reason in TlsFailure::ALL {
            telemetry.tls_failed("192.0.2.1:1".parse().unwrap(), reason, &"a test");
            let reason = reason.as_str();
            check(&telemetry, &format!("forebay_tls_handshakes_failed_total{{reason=\"{reason}\"}}"), 1.0);
        }
        telemetry.send_timed_out();
        check(&telemetry, "forebay_send_timeouts_total", 1.0);
        telemetry.invalidated(&telemetry.route(0));
        check(&telemetry, "forebay_invalidations_total{route=\"site\"}", 1.0);
        telemetry.panicked("a test");
        check(&telemetry, "forebay_panics_total", 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_request_is_counted_by_reason_and_class() {
        let telemetry = telemetry();
        for &reason in FetchReason::ALL {
            for &class in StatusClass::ALL {
                let mut request = telemetry.upstream_request(&telemetry.upstream(0), reason, Instant::now());
                request.sent();
                assert_eq!(telemetry.upstream(0).in_flight(), 1);
                let code = u16::try_from(class.position() + 1).unwrap() * 100;
                if class == StatusClass::Error {
                    drop(request);
                } else {
                    request.answered(StatusCode::from_u16(code).unwrap(), Instant::now());
                }
                let (reason, class) = (reason.as_str(), class.as_str());
                let labels = format!("{{reason=\"{reason}\",status_class=\"{class}\",upstream=\"app\"}}");
                check(&telemetry, &format!("forebay_upstream_requests_total{labels}"), 1.0);
            }
        }
        drop(telemetry.upstream_request(&telemetry.upstream(0), FetchReason::Miss, Instant::now()));
        let mut request =
            telemetry.upstream_request(&telemetry.upstream(0), FetchReason::Miss, Instant::now());
        request.sent();
        request.unsent();
        assert_eq!(telemetry.upstream(0).in_flight(), 0);
        assert_eq!(telemetry.upstream(0).requests_total(), 30, "what was not sent does not count");
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
        telemetry.observe_bodies(|| BodyNumbers { inflight_bytes: 3, lingering_bytes: 4, withdrawn: 5 });
        check(&telemetry, "forebay_store_bytes", 7.0);
        check(&telemetry, "forebay_store_bytes_max", 100.0);
        check(&telemetry, "forebay_store_entries", 2.0);
        check(&telemetry, "forebay_inflight_bytes", 3.0);
        check(&telemetry, "forebay_lingering_bytes", 4.0);
        check(&telemetry, "forebay_withdrawn_bodies_total", 5.0);
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
