//! The metrics: their names, help texts and handles.
//!
//! Names and labels are an interface that dashboards and alerts rely on. Handles with labels are resolved once,
//! when a configuration takes effect, so that an event costs an atomic addition and no look-up.

use super::labels::{
    DuplicateCause, EvictionCause, FetchReason, Label, PurgeKind, RefusalCause, ReloadResult, StatusClass,
    TlsFailure, WaitResult,
};
use crate::outcome::Answered;
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::time::Duration;

/// The version in `forebay_build_info` and everywhere else.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The git revision the binary was built from, if the build was told (`FOREBAY_REVISION`).
pub const REVISION: Option<&str> = option_env!("FOREBAY_REVISION");

/// The `route` label of requests that no route matched.
pub const NO_ROUTE: &str = "none";

/// Upper bounds of the latency histograms in seconds: from a hit served out of memory to the longest wait.
const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// One metric for each value of a label, found by index.
#[derive(Debug)]
pub(super) struct PerLabel<L, M> {
    metrics: Box<[M]>,
    label: PhantomData<L>,
}

impl<L: Label, M> PerLabel<L, M> {
    fn new(make: impl Fn(L) -> M) -> Self {
        Self { metrics: L::ALL.iter().copied().map(make).collect(), label: PhantomData }
    }

    /// The metric of one value.
    pub(super) fn of(&self, label: L) -> &M {
        &self.metrics[label.position()]
    }
}

/// What is counted for one route.
#[derive(Debug)]
pub struct RouteMetrics {
    pub(super) name: String,
    pub(super) requests: PerLabel<Answered, IntCounter>,
    pub(super) hits: IntCounter,
    pub(super) misses: IntCounter,
    pub(super) waits: PerLabel<WaitResult, IntCounter>,
    pub(super) duplicates: PerLabel<DuplicateCause, IntCounter>,
    pub(super) response_bytes: IntCounter,
    pub(super) broken: IntCounter,
    pub(super) invalidations: IntCounter,
    /// Made at first use: most endings never occur on most routes, and each histogram is twenty lines of text.
    durations: PerLabel<Answered, OnceLock<Histogram>>,
    durations_family: HistogramVec,
}

impl RouteMetrics {
    /// The `route` label.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Requests that ended so.
    pub fn requests(&self, answered: Answered) -> u64 {
        self.requests.of(answered).get()
    }

    /// Requests, whatever their ending.
    pub fn requests_total(&self) -> u64 {
        Answered::ALL.iter().map(|&answered| self.requests(answered)).sum()
    }

    /// Waits for another request's fetch that ended so.
    pub fn waits(&self, result: WaitResult) -> u64 {
        self.waits.of(result).get()
    }

    /// Second fetches for this cause.
    pub fn duplicates(&self, cause: DuplicateCause) -> u64 {
        self.duplicates.of(cause).get()
    }

    pub(super) fn observe_duration(&self, answered: Answered, duration: Duration) {
        self.durations
            .of(answered)
            .get_or_init(|| self.durations_family.with_label_values(&[self.name.as_str(), answered.as_str()]))
            .observe(duration.as_secs_f64());
    }
}

/// What is counted for one upstream.
#[derive(Debug)]
pub struct UpstreamMetrics {
    pub(super) name: String,
    pub(super) requests: PerLabel<FetchReason, PerLabel<StatusClass, IntCounter>>,
    pub(super) duration: Histogram,
    pub(super) in_flight: IntGauge,
}

impl UpstreamMetrics {
    /// The `upstream` label.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Requests sent for this reason and answered so.
    pub fn requests(&self, reason: FetchReason, class: StatusClass) -> u64 {
        self.requests.of(reason).of(class).get()
    }

    /// Requests sent, whatever the reason and the answer; those without an answer yet are not counted.
    pub fn requests_total(&self) -> u64 {
        FetchReason::ALL
            .iter()
            .flat_map(|&reason| StatusClass::ALL.iter().map(move |&class| self.requests(reason, class)))
            .sum()
    }

    /// Requests that wait for the head of their response.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }
}

/// What is counted for the process as a whole.
#[derive(Debug)]
pub(super) struct ProcessMetrics {
    pub(super) waiters: IntGauge,
    pub(super) wait_seconds: Histogram,
    pub(super) flights: IntGauge,
    pub(super) store_bytes: IntGauge,
    pub(super) store_bytes_max: IntGauge,
    pub(super) store_entries: IntGauge,
    pub(super) inflight_bytes: IntGauge,
    pub(super) lingering_bytes: IntGauge,
    pub(super) withdrawn: IntCounter,
    pub(super) evictions: PerLabel<EvictionCause, IntCounter>,
    pub(super) purges: PerLabel<PurgeKind, IntCounter>,
    pub(super) panics: IntCounter,
    pub(super) reload_successful: IntGauge,
    pub(super) reload_success_timestamp: Gauge,
    pub(super) reloads: PerLabel<ReloadResult, IntCounter>,
    pub(super) certificates: GaugeVec,
    pub(super) connections: IntGauge,
    pub(super) tunnels: IntGauge,
    pub(super) connections_total: IntCounter,
    pub(super) connections_refused: PerLabel<RefusalCause, IntCounter>,
    pub(super) tls_failures: PerLabel<TlsFailure, IntCounter>,
    pub(super) accept_pauses: IntCounter,
    pub(super) send_timeouts: IntCounter,
}

impl ProcessMetrics {
    /// Registers them, together with what the operating system says of the process.
    pub(super) fn register(registry: &Registry) -> Self {
        let register = Registrar(registry);
        register.build_info();
        register.operating_system();
        let evictions = register.counters(
            "forebay_evictions_total",
            "Stored responses that left the store, by cause.",
            &["cause"],
        );
        let purges = register.counters(
            "forebay_purges_total",
            "Purges acknowledged, by what they aimed at.",
            &["kind"],
        );
        let refused = register.counters(
            "forebay_connections_refused_total",
            "Client connections that were refused, or ended for what came on them, by cause.",
            &["cause"],
        );
        let reloads = register.counters(
            "forebay_config_reloads_total",
            "Times that the configuration was loaded again, by result.",
            &["result"],
        );
        Self {
            waiters: register.gauge("forebay_waiters", "Requests that wait for another request's fetch."),
            wait_seconds: register.histogram(
                "forebay_coalesced_wait_seconds",
                "How long requests waited for the head of another request's fetch.",
            ),
            flights: register.gauge("forebay_flights", "Shared upstream fetches in flight, bodies included."),
            store_bytes: register
                .gauge("forebay_store_bytes", "Bytes of stored responses, heads and bodies."),
            store_bytes_max: register
                .gauge("forebay_store_bytes_max", "Bytes of stored responses at which eviction starts."),
            store_entries: register.gauge("forebay_store_entries", "Stored responses."),
            inflight_bytes: register
                .gauge("forebay_inflight_bytes", "Bytes of response bodies held for fetches in flight."),
            lingering_bytes: register.gauge(
                "forebay_lingering_bytes",
                "Bytes of finished response bodies that are not stored, held for those who read them.",
            ),
            withdrawn: register
                .counter("forebay_withdrawn_bodies_total", "Lingering bodies taken from their readers."),
            evictions: PerLabel::new(|cause: EvictionCause| evictions.with_label_values(&[cause.as_str()])),
            purges: PerLabel::new(|kind: PurgeKind| purges.with_label_values(&[kind.as_str()])),
            panics: register.counter("forebay_panics_total", "Panics caught: each is a defect of forebay."),
            connections: register.gauge("forebay_connections", "Open client connections, tunnels included."),
            tunnels: register.gauge("forebay_tunnels", "Upgraded client connections, such as of WebSocket."),
            reload_successful: register.gauge(
                "forebay_config_last_reload_successful",
                "Whether the configuration that was loaded last took effect (1) or was refused (0).",
            ),
            reload_success_timestamp: register.seconds(
                "forebay_config_last_reload_success_timestamp_seconds",
                "When the configuration in effect was loaded, as Unix time.",
            ),
            reloads: PerLabel::new(|result: ReloadResult| reloads.with_label_values(&[result.as_str()])),
            certificates: register.certificates(),
            connections_total: register
                .counter("forebay_connections_total", "Client connections accepted and served."),
            connections_refused: PerLabel::new(|cause: RefusalCause| {
                refused.with_label_values(&[cause.as_str()])
            }),
            tls_failures: register.tls_failures(),
            accept_pauses: register.accept_pauses(),
            send_timeouts: register.send_timeouts(),
        }
    }
}

/// The families whose series carry a `route` label.
pub(super) struct RouteFamilies {
    requests: IntCounterVec,
    hits: IntCounterVec,
    misses: IntCounterVec,
    waits: IntCounterVec,
    duplicates: IntCounterVec,
    durations: HistogramVec,
    response_bytes: IntCounterVec,
    broken: IntCounterVec,
    invalidations: IntCounterVec,
}

impl RouteFamilies {
    pub(super) fn register(registry: &Registry) -> Self {
        let register = Registrar(registry);
        Self {
            requests: register.counters(
                "forebay_requests_total",
                "Requests by route and by how they were answered. The sum over outcomes is every request.",
                &["route", "outcome"],
            ),
            hits: register.counters(
                "forebay_cache_hits_total",
                "Requests answered with a stored response: the outcomes hit, stale and revalidated.",
                &["route"],
            ),
            misses: register.counters(
                "forebay_cache_misses_total",
                "Requests that caused a shareable upstream fetch: the outcome miss. Requests that joined such a \
                 fetch (the outcome collapsed) are neither hits nor misses.",
                &["route"],
            ),
            waits: register.counters(
                "forebay_coalesced_waits_total",
                "Waits for another request's fetch, by how they ended.",
                &["route", "result"],
            ),
            duplicates: register.counters(
                "forebay_duplicate_fetches_total",
                "Upstream fetches sent although another for the same cache key was in flight, had kept the request waiting in vain, or \
                 brought the same variant, as turned out, by cause: what the upstream saw minus what was needed.",
                &["route", "cause"],
            ),
            durations: register.histograms(
                "forebay_request_duration_seconds",
                "Time from the head of a request until the last byte of its response was handed over.",
                &["route", "outcome"],
            ),
            response_bytes: register.counters(
                "forebay_response_bytes_total",
                "Bytes of response bodies handed to clients.",
                &["route"],
            ),
            broken: register.counters(
                "forebay_responses_broken_total",
                "Responses whose body did not reach the client whole, whichever side broke off.",
                &["route"],
            ),
            invalidations: register.counters(
                "forebay_invalidations_total",
                "Successful unsafe requests that invalidated what is stored for their target.",
                &["route"],
            ),
        }
    }

    /// The handles of one route.
    pub(super) fn resolve(&self, route: &str) -> RouteMetrics {
        RouteMetrics {
            name: route.to_owned(),
            requests: PerLabel::new(|label: Answered| {
                self.requests.with_label_values(&[route, label.as_str()])
            }),
            hits: self.hits.with_label_values(&[route]),
            misses: self.misses.with_label_values(&[route]),
            waits: PerLabel::new(|label: WaitResult| self.waits.with_label_values(&[route, label.as_str()])),
            duplicates: PerLabel::new(|label: DuplicateCause| {
                self.duplicates.with_label_values(&[route, label.as_str()])
            }),
            response_bytes: self.response_bytes.with_label_values(&[route]),
            broken: self.broken.with_label_values(&[route]),
            invalidations: self.invalidations.with_label_values(&[route]),
            durations: PerLabel::new(|_| OnceLock::new()),
            durations_family: self.durations.clone(),
        }
    }
}

/// The families whose series carry an `upstream` label.
pub(super) struct UpstreamFamilies {
    requests: IntCounterVec,
    durations: HistogramVec,
    in_flight: IntGaugeVec,
}

impl UpstreamFamilies {
    pub(super) fn register(registry: &Registry) -> Self {
        let register = Registrar(registry);
        Self {
            requests: register.counters(
                "forebay_upstream_requests_total",
                "Requests sent to an upstream, each time that one is sent again (reason retry) included, by reason and by the class \
                 of the answer (error: there was none, or no connection).",
                &["upstream", "reason", "status_class"],
            ),
            durations: register.histograms(
                "forebay_upstream_request_duration_seconds",
                "Time from sending a request upstream until the head of its response, or until it failed.",
                &["upstream"],
            ),
            in_flight: register.gauges(
                "forebay_upstream_requests_in_flight",
                "Requests sent to an upstream that wait for the head of their response.",
                &["upstream"],
            ),
        }
    }

    /// The handles of one upstream.
    pub(super) fn resolve(&self, upstream: &str) -> UpstreamMetrics {
        UpstreamMetrics {
            name: upstream.to_owned(),
            requests: PerLabel::new(|reason: FetchReason| {
                PerLabel::new(|class: StatusClass| {
                    self.requests.with_label_values(&[upstream, reason.as_str(), class.as_str()])
                })
            }),
            duration: self.durations.with_label_values(&[upstream]),
            in_flight: self.in_flight.with_label_values(&[upstream]),
        }
    }
}

/// Makes metrics and registers them.
///
/// Names, labels and buckets are constants of this file and each registry is filled once, which is why none of
/// this can fail; a test makes every one of them.
pub(super) struct Registrar<'a>(pub(super) &'a Registry);

impl Registrar<'_> {
    fn add<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("metric names and labels are valid constants");
        self.0.register(Box::new(metric.clone())).expect("each metric is registered once");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn seconds(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    fn send_timeouts(&self) -> IntCounter {
        let help = "Client connections and HTTP/2 streams that were ended because the client took nothing of its answer in time, or too little.";
        self.counter("forebay_send_timeouts_total", help)
    }

    fn tls_failures(&self) -> PerLabel<TlsFailure, IntCounter> {
        let help = "TLS handshakes with clients that failed, by reason.";
        let failures = self.counters("forebay_tls_handshakes_failed_total", help, &["reason"]);
        PerLabel::new(|reason: TlsFailure| failures.with_label_values(&[reason.as_str()]))
    }

    fn accept_pauses(&self) -> IntCounter {
        let help = "Times that no connection was accepted for a moment (up to a second), because the system reported an error or no file \
                    descriptor was left for clients: those who come wait.";
        self.counter("forebay_accept_pauses_total", help)
    }

    fn certificates(&self) -> GaugeVec {
        let help = "When the certificate of a file ceases to be valid, as Unix time: that shown to clients, and those shown to upstreams.";
        let options = Opts::new("forebay_tls_certificate_not_after_timestamp_seconds", help);
        self.add(GaugeVec::new(options, &["file"]))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(SECONDS.to_vec())))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), labels))
    }

    fn build_info(&self) {
        self.gauges(
            "forebay_build_info",
            "Always 1; the labels say which build is running.",
            &["version", "revision"],
        )
        .with_label_values(&[VERSION, REVISION.unwrap_or("unknown")])
        .set(1);
    }

    /// Memory, processor time, file descriptors and threads, where the operating system tells.
    fn operating_system(&self) {
        #[cfg(target_os = "linux")]
        self.0
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("the process metrics are registered once");
    }
}
