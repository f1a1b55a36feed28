//! What an upstream can be told.

use http::uri::PathAndQuery;
use http::{HeaderValue, StatusCode};
use std::path::PathBuf;
use std::time::Duration;

/// One named upstream: its addresses and limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The name that routes and metric labels use.
    pub name: String,
    /// Where it listens: at least one.
    pub origins: Vec<Origin>,
    /// How one of several origins is chosen.
    pub balance: Balance,
    /// Time to establish a connection, TLS included.
    pub connect_timeout: Duration,
    /// Time from the request being sent until the head of the final response.
    pub head_timeout: Duration,
    /// Longest pause between two pieces of a response body.
    pub between_bytes_timeout: Duration,
    /// The whole exchange, body included; `None`: unlimited.
    pub total_timeout: Option<Duration>,
    /// Idle connections kept for each origin.
    pub idle_connections_max: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// How often a host name is resolved again; `None`: for each connection. IP addresses need none of it.
    pub resolve_interval: Option<Duration>,
    /// Requests in flight at once to this upstream; the rest queue.
    pub concurrency_max: usize,
    /// How the limit on requests in flight follows the upstream's latency; `None`: it is `concurrency_max`, whatever happens.
    pub adaptive: Option<Adaptive>,
    /// Requests that may wait for a place; the rest are refused with 503.
    pub queue_max: usize,
    /// How long a request waits for a place before it is refused with 503.
    pub queue_timeout: Duration,
    /// How often an idempotent request is tried again whose connection failed before an answer, or which was answered with one of
    /// `retry_statuses`.
    pub retries: u32,
    /// Statuses that are as good as no answer while an idempotent request may be tried again.
    pub retry_statuses: Vec<StatusCode>,
    /// Retries as a fraction of the requests; `None`: as many as `retries` says.
    pub retry_budget: Option<f64>,
    /// When an origin that fails gets no requests for a while; `None`: never.
    pub ejection: Option<Ejection>,
    /// When the upstream as a whole gets no requests for a while; `None`: never.
    pub breaker: Option<Breaker>,
    /// How origins are checked; `None`: not at all.
    pub check: Option<Check>,
    /// The version of HTTP spoken to it.
    pub protocol: Protocol,
    /// How its certificate is checked, where an origin is https.
    pub tls: Tls,
    /// Response head limits: bytes.
    pub response_header_bytes_max: usize,
}

/// Where an upstream listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Whether TLS is spoken.
    pub https: bool,
    /// Name or address, without brackets around IPv6.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Origin {
    /// `host` or `host:port`, with brackets around IPv6 and the scheme's default port left out.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.https, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

/// How one of several origins is chosen for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// Each in its turn.
    #[default]
    RoundRobin,
    /// The less busy of two picked at random.
    LeastRequests,
    /// The same origin for the same cache key, as long as the list of origins stays the same.
    ConsistentHash,
}

/// When an origin that fails gets no requests for a while. The last of an upstream's origins always does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// Failures and server errors in a row.
    pub failures: u32,
    /// How long it gets none; twice as long each time that it fails again.
    pub first: Duration,
    /// At most so long.
    pub longest: Duration,
}

/// When an upstream as a whole gets no requests for a while, because it fails too often.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Breaker {
    /// The fraction of the requests within `window` whose failure opens it; `None`: no fraction does.
    pub failure_ratio: Option<f64>,
    /// Requests within `window` below which no fraction is judged.
    pub requests_min: u32,
    /// The time over which requests are counted.
    pub window: Duration,
    /// Failures in a row that open it; `None`: no number does.
    pub failures_in_a_row: Option<u32>,
    /// How long it stays open, twice as long each time that the probes fail.
    pub open_time: Duration,
    /// At most so long.
    pub open_time_max: Duration,
    /// Requests that are let through when that time is over. It closes when all of them succeed, and opens again when one fails.
    pub probes: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failure_ratio: Some(0.5),
            requests_min: 20,
            window: Duration::from_secs(10),
            failures_in_a_row: None,
            open_time: Duration::from_secs(5),
            open_time_max: Duration::from_mins(1),
            probes: 3,
        }
    }
}

/// How the limit on requests in flight follows the upstream's latency.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adaptive {
    /// The limit never falls below it.
    pub concurrency_min: usize,
    /// How many times the latency of the unloaded upstream is no reason yet to lower the limit.
    pub latency_tolerance: f64,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self { concurrency_min: 8, latency_tolerance: 2.0 }
    }
}

/// How origins are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is asked for; 2xx and 3xx are good answers.
    pub path: PathAndQuery,
    /// The `Host` to name; `None`: the origin's own authority.
    pub host: Option<HeaderValue>,
    /// Pause between two checks.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// Good answers in a row until an origin gets requests again.
    pub healthy_after: u32,
    /// Bad ones until it gets none.
    pub unhealthy_after: u32,
}

impl Check {
    /// A check of this path with the built-in pace.
    pub fn of(path: PathAndQuery) -> Self {
        Self {
            path,
            host: None,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            healthy_after: 2,
            unhealthy_after: 3,
        }
    }
}

impl Default for Ejection {
    fn default() -> Self {
        Self { failures: 5, first: Duration::from_secs(10), longest: Duration::from_mins(5) }
    }
}

/// The version of HTTP spoken to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// HTTP/1.1, or HTTP/2 where TLS negotiates it.
    #[default]
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only: with prior knowledge where there is no TLS.
    Http2,
}

/// How an upstream's certificate is checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// PEM file of roots to trust instead of the system's.
    pub roots_file: Option<PathBuf>,
    /// PEM files of a client certificate chain and its key.
    pub client_identity: Option<(PathBuf, PathBuf)>,
    /// Name to ask for and to verify, instead of the origin's host.
    pub server_name: Option<String>,
    /// Accept any certificate. For experiments only; warned about at start.
    pub insecure: bool,
}

impl Settings {
    /// What an origin is called in metrics: its authority, behind the scheme where only that tells it from another.
    pub fn label(&self, origin: &Origin) -> String {
        let authority = origin.authority();
        let is_namesake = |other: &Origin| other.https != origin.https && other.authority() == authority;
        if !self.origins.iter().any(is_namesake) {
            return authority;
        }
        let scheme = if origin.https { "https" } else { "http" };
        format!("{scheme}://{authority}")
    }

    /// An upstream with the built-in limits.
    pub fn named(name: impl Into<String>, origins: Vec<Origin>) -> Self {
        Self {
            name: name.into(),
            origins,
            balance: Balance::default(),
            connect_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(30),
            between_bytes_timeout: Duration::from_secs(30),
            total_timeout: None,
            idle_connections_max: 256,
            idle_timeout: Duration::from_secs(30),
            resolve_interval: Some(Duration::from_secs(30)),
            concurrency_max: 1024,
            adaptive: None,
            queue_max: 1024,
            queue_timeout: Duration::from_secs(5),
            retries: 1,
            retry_statuses: Vec::new(),
            retry_budget: Some(0.1),
            ejection: Some(Ejection::default()),
            breaker: None,
            check: None,
            protocol: Protocol::default(),
            tls: Tls::default(),
            response_header_bytes_max: 64 << 10,
        }
    }
}
