//! What the proxy can be told.

use crate::policy::{KeySpec, Rules};
use crate::upstream::BodyLimits;
use http::Method;
use std::time::Duration;

/// The data plane: routes and what is said to both sides.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Every route; [`Route::prefix`] and host decide, the longest match wins.
    pub routes: Vec<Route>,
    /// The fields that tell upstreams about clients.
    pub forwarded: Forwarded,
    /// The name in `Via` and `Cache-Status`.
    pub pseudonym: String,
    /// Answer to a request that no route matches: 404, or 421 (Misdirected Request) where the host is unknown.
    pub unmatched: Unmatched,
    /// How paths are read.
    pub paths: Paths,
    /// Bytes of bodies in flight in all, before new fetches stream without being stored. It is passed by what each of these needs to go
    /// on: to hold one up until the readers of others have made room would let slow readers hurt others.
    pub inflight_bytes_max: usize,
    /// Requests waiting for fetches of others, in all.
    pub waiters_max: usize,
    /// Networks of the clients whose `PURGE` requests purge. Empty: PURGE is a method like any other that we do not know.
    pub purge_allowed: Vec<Network>,
    /// Largest request body in bytes; `None`: unlimited.
    pub request_body_bytes_max: Option<u64>,
    /// Longest pause within a request body; then 408.
    pub request_body_pause_max: Duration,
    /// Fewest bytes of a request body for each second that it is waited for, after the first ten; `None`: any pace.
    pub request_body_rate_min: Option<u64>,
    /// Longest request target in bytes; longer ones are answered 414.
    pub target_bytes_max: usize,
    /// Say `X-Cache: HIT` or `MISS` too.
    pub x_cache: bool,
    /// Name the cache key in `Cache-Status`.
    pub cache_status_key: bool,
}

/// How paths are read, by routes, by the key and by the upstream alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Paths {
    /// What becomes of `.` and `..` as segments.
    pub dot_segments: DotSegments,
    /// What becomes of `%2F` and of backslashes.
    pub encoded_slashes: EncodedSlashes,
    /// Make one slash of several.
    pub merge_slashes: bool,
}

/// What becomes of `.` and `..` as segments of a path, encoded or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DotSegments {
    /// They are resolved (RFC 3986 §5.2.4), as browsers do before they send.
    #[default]
    Remove,
    /// They go upstream as they came. Routes then see another path than an origin that resolves them.
    Keep,
    /// The request is refused.
    Refuse,
}

/// What becomes of `%2F`, of `%5C` and of backslashes in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EncodedSlashes {
    /// They are part of a segment.
    #[default]
    Keep,
    /// The request is refused.
    Refuse,
}

/// What a request that no route matches is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unmatched {
    /// 404 Not Found.
    #[default]
    NotFound,
    /// 421 Misdirected Request.
    Misdirected,
}

/// One route: which requests, which upstream, which cache rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The name that metric labels use.
    pub name: String,
    /// The host it serves, lower case and without port; `None`: any.
    pub host: Option<String>,
    /// The path prefix it serves, matched on whole segments.
    pub prefix: String,
    /// Index of the upstream in the configured list.
    pub upstream: usize,
    /// Take the prefix away before the request is forwarded.
    pub strip_prefix: bool,
    /// The `Host` that the upstream is told.
    pub host_header: HostHeader,
    /// What makes two requests the same.
    pub key: KeySpec,
    /// What is stored and served.
    pub rules: Rules,
    /// How requests wait for each other.
    pub coalescing: Coalescing,
}

impl Route {
    /// Whether requests with this method are the same only if their bodies are.
    pub(super) fn is_keyed_by_body(&self, method: &Method) -> bool {
        self.rules.enabled && self.rules.body_methods.contains(method)
    }

    /// A route with the built-in rules, to the first upstream.
    pub fn plain(host: Option<String>, prefix: impl Into<String>) -> Self {
        Self {
            name: "default".into(),
            host,
            prefix: prefix.into(),
            upstream: 0,
            strip_prefix: false,
            host_header: HostHeader::default(),
            key: KeySpec::default(),
            rules: Rules::default(),
            coalescing: Coalescing::default(),
        }
    }
}

/// The `Host` that the upstream is told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HostHeader {
    /// The client's.
    #[default]
    Pass,
    /// The upstream's own authority.
    Upstream,
    /// This one.
    Fixed(String),
}

/// How requests of a route wait for each other's fetches.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one switch of the route, independent of the others"
)]
pub struct Coalescing {
    /// Off: every miss fetches for itself.
    pub enabled: bool,
    /// Longest wait for other requests' fetches, in all.
    pub waiter_timeout: Duration,
    /// Requests that may wait for one fetch.
    pub waiters_max: usize,
    /// What happens to a request that waited too long or found no place to wait, and has no stale response to use.
    pub on_limit: OnLimit,
    /// How long a key is not waited for, from its last uncacheable answer on. Each fetch meanwhile is a probe: the first answer
    /// that may be stored ends it, and nobody waited to find out.
    pub hit_for_miss_ttl: Duration,
    /// After a failed fetch, how long new arrivals share the failure: first and longest; zero, or not enabled: off.
    pub error_backoff: (Duration, Duration),
    /// What a fetch does when nobody is left to read it.
    pub on_abandon: OnAbandon,
    /// Largest body that is kept whole and stored, in bytes.
    pub body_bytes_max: u64,
    /// How long a reader of a body too large to keep may stall before it is cut off.
    pub reader_stall_timeout: Duration,
    /// Whether requests with `Authorization` wait for the fetches of others.
    pub join_with_authorization: bool,
    /// Whether requests with cookies outside the key wait for the fetches of others.
    pub join_with_cookies: bool,
    /// Largest request body that is buffered for its digest, in bytes, where body methods are cached.
    pub request_body_bytes_max: usize,
    /// A range request on a miss passes through alone, instead of fetching the whole.
    pub pass_ranges: bool,
}

/// What happens to a request at a limit of waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLimit {
    /// It goes upstream alone, and is counted.
    #[default]
    GoAlone,
    /// It is refused: 504 after a time-out, 503 with `Retry-After` where there was no place.
    Refuse,
}

/// What a fetch does when nobody is left to read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnAbandon {
    /// Go on if what has arrived says that it will be stored; else stop.
    #[default]
    Finish,
    /// Stop.
    Cancel,
}

impl Default for Coalescing {
    fn default() -> Self {
        Self {
            enabled: true,
            waiter_timeout: Duration::from_secs(30),
            waiters_max: 10_000,
            on_limit: OnLimit::default(),
            hit_for_miss_ttl: Duration::from_secs(10),
            error_backoff: (Duration::from_millis(100), Duration::from_secs(1)),
            on_abandon: OnAbandon::default(),
            body_bytes_max: 64 << 20,
            reader_stall_timeout: Duration::from_secs(10),
            join_with_authorization: false,
            join_with_cookies: true,
            request_body_bytes_max: 64 << 10,
            pass_ranges: false,
        }
    }
}

/// The fields that tell upstreams about clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// Set `X-Forwarded-For`, `-Proto` and `-Host`.
    pub x_forwarded: bool,
    /// Set `Forwarded` (RFC 7239).
    pub forwarded: bool,
    /// Set `Via` on requests and responses (RFC 9110 §7.6.3).
    pub via: bool,
    /// Networks (address and prefix length) whose own such fields are believed and extended; those of others are replaced.
    pub trusted_proxies: Vec<Network>,
}

/// A range of addresses: the first `bits` bits of `address` are common to all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Any address in the range.
    pub address: std::net::IpAddr,
    /// The number of leading bits that count.
    pub bits: u8,
}

impl Network {
    /// Whether the address is in the range. An IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, other: std::net::IpAddr) -> bool {
        use std::net::IpAddr::{V4, V6};
        match (self.address.to_canonical(), other.to_canonical()) {
            (V4(a), V4(b)) => {
                let unlike = a.to_bits() ^ b.to_bits();
                unlike.leading_zeros() >= u32::from(self.bits)
            }
            (V6(a), V6(b)) => {
                let unlike = a.to_bits() ^ b.to_bits();
                unlike.leading_zeros() >= u32::from(self.bits)
            }
            (V4(_), V6(_)) | (V6(_), V4(_)) => false,
        }
    }
}

impl Default for Forwarded {
    fn default() -> Self {
        Self { x_forwarded: true, forwarded: false, via: true, trusted_proxies: Vec::new() }
    }
}

impl Settings {
    /// What a request's body may be.
    pub(super) fn request_body_limits(&self) -> BodyLimits {
        BodyLimits {
            bytes_max: self.request_body_bytes_max,
            pause_max: self.request_body_pause_max,
            rate_min: self.request_body_rate_min,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            routes: Vec::new(),
            forwarded: Forwarded::default(),
            pseudonym: "forebay".into(),
            unmatched: Unmatched::default(),
            paths: Paths::default(),
            inflight_bytes_max: 128 << 20,
            waiters_max: 100_000,
            purge_allowed: Vec::new(),
            request_body_bytes_max: None,
            request_body_pause_max: Duration::from_secs(30),
            request_body_rate_min: None,
            target_bytes_max: 8 << 10,
            x_cache: false,
            cache_status_key: false,
        }
    }
}
