//! RFC 9111 as pure functions: what may be stored, what may be served, what must be asked again.
//!
//! Nothing here does I/O, reads a clock, waits, locks or logs. Time is an argument. A malformed field is
//! never an error: it makes a response *stale* or *not storable*, and those are values.
//!
//! One file for each question of the RFC:
//!
//! | file | question | section |
//! |---|---|---|
//! | [`plan`](plan()) | may the store answer? | RFC 9111 §4 |
//! | [`dispose`](dispose()) | what of what came back? | RFC 9111 §3, §4.3.3 |
//! | [`metadata`] | what is known of a stored response? | RFC 9111 §3 |
//! | [`key`] | which requests are the same? | RFC 9111 §2 |
//! | [`storing`] | may this response be stored? | RFC 9111 §3 |
//! | [`vary`] | is this stored response for this request? | RFC 9111 §4.1 |
//! | [`freshness`] | how old is it, and is that too old? | RFC 9111 §4.2 |
//! | [`validation`] | how is it asked again, and what does a 304 change? | RFC 9111 §4.3 |
//! | [`invalidation`] | what does a successful unsafe request outdate? | RFC 9111 §4.4 |
//! | [`directives`] | what do `Cache-Control` and `Pragma` say? | RFC 9111 §5.2, §5.4 |
//! | [`targeted`] | what do `CDN-Cache-Control` and its kin say? | RFC 9213 |
//! | [`date`] | what time is meant? | RFC 9110 §5.6.7 |
//! | [`conditional`] | does the client's own copy still hold? | RFC 9110 §13 |
//! | [`range`] | which part of it is wanted? | RFC 9110 §14 |
//! | [`forwarding`] | which fields travel on? | RFC 9110 §7.6 |
//! | [`Fields`] | what does a message say? | RFC 9110 §5 |

pub mod conditional;
pub mod date;
pub mod deception;
pub mod directives;
mod dispose;
mod fields;
pub mod forwarding;
pub mod freshness;
pub mod invalidation;
pub mod key;
pub mod metadata;
mod micros;
mod plan;
pub mod range;
pub mod storing;
pub mod targeted;
#[cfg(test)]
mod testing;
pub mod validation;
pub mod vary;

pub use dispose::{
    Disposition, Invalid, Refusal, dispose, dispose_unasked, failure_is_private, freshen, has_unkeyed_cookie,
    is_too_old_to_wait_for, may_share,
};
pub use fields::{Fields, Lines};
pub use key::{Credentials, Identity, Key, KeyHashing, KeySpec, Keyed, Keyer, Query};
pub use metadata::Metadata;
pub use plan::{PassCause, Plan, early_refresh_chance, plan};
pub use storing::Unstorable;
pub use vary::{Selection, same_values};

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, Method, StatusCode};

/// A route's cache rules: plain data, the settings of this module.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one switch of the route, independent of the others"
)]
pub struct Rules {
    /// Whether the route has a cache at all; where not, every request passes.
    pub enabled: bool,
    /// The lifetime of a response that says nothing of freshness.
    pub default_ttl: Option<Duration>,
    /// The lifetime that replaces whatever the response says. It never makes a private or `no-store`
    /// response storable, and it does not lift `no-cache`.
    pub override_ttl: Option<Duration>,
    /// How a lifetime is guessed from `Last-Modified` (RFC 9111 §4.2.2); `None` switches it off.
    pub heuristic: Option<Heuristic>,
    /// How long a stale response may be served while it is refreshed, where it does not say so itself.
    pub stale_while_revalidate: Duration,
    /// How long a stale response may stand in for a failing upstream, where it does not say so itself.
    pub stale_if_error: Duration,
    /// Whether clients may steer the cache with `Cache-Control` and `Pragma`.
    pub honor_request_directives: bool,
    /// Whether a response with `Set-Cookie` may be stored and shared.
    pub store_set_cookie: bool,
    /// Whether a response must be what the extension of its path says, to be stored and shared.
    pub guard_extensions: bool,
    /// Whether a 5xx response with explicit freshness may be stored.
    pub store_server_errors: bool,
    /// The target list of RFC 9213, most applicable first.
    pub targeted_fields: Vec<HeaderName>,
    /// Whether `Surrogate-Control` is read when no targeted field is present.
    pub surrogate_control: bool,
    /// Which responses those who wait for a fetch may share.
    pub share: Share,
    /// The methods with a body that may be stored, keyed by a digest of the body.
    pub body_methods: Vec<Method>,
    /// Whether the response to a POST may answer later GETs (RFC 9110 §9.3.3).
    pub store_post_as_get: bool,
    /// The weight of the early refresh of fresh responses (1.0 is a good start); `None` switches it off.
    pub early_refresh: Option<f64>,
    /// The cookies that are parts of the key: a request that carries only these carries, for the question of
    /// sharing, no cookie at all.
    pub keyed_cookies: Vec<String>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            enabled: true,
            default_ttl: None,
            override_ttl: None,
            heuristic: Some(Heuristic::default()),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            honor_request_directives: false,
            store_set_cookie: false,
            guard_extensions: false,
            store_server_errors: false,
            targeted_fields: vec![
                HeaderName::from_static("forebay-cache-control"),
                HeaderName::from_static("cdn-cache-control"),
            ],
            surrogate_control: false,
            share: Share::Storable,
            body_methods: Vec::new(),
            store_post_as_get: false,
            early_refresh: None,
            keyed_cookies: Vec::new(),
        }
    }
}

/// How a lifetime is guessed from the time since the last modification (RFC 9111 §4.2.2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heuristic {
    /// The part of the interval between `Last-Modified` and `Date` that counts as the lifetime.
    pub fraction: f64,
    /// The longest lifetime that is ever guessed.
    pub max: Duration,
}

impl Default for Heuristic {
    fn default() -> Self {
        Self { fraction: 0.1, max: Duration::from_hours(24) }
    }
}

/// Which responses those who wait for a fetch may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Share {
    /// Every response that may be stored, even one that is stale on arrival: it is as new as the answer to a
    /// request of their own could have been.
    #[default]
    Storable,
    /// Only responses that are fresh on arrival.
    Fresh,
}

/// The request as policy sees it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a, F = HeaderMap> {
    /// The client's method.
    pub method: &'a Method,
    /// The client's fields, as they came.
    pub headers: &'a F,
}

/// One exchange with the upstream.
#[derive(Debug, Clone, Copy)]
pub struct Exchange<'a, Q = HeaderMap, R = HeaderMap> {
    /// The method of the request that was sent.
    pub method: &'a Method,
    /// The client's fields: selecting fields, `Authorization` and `Cookie` are read from here.
    pub request: &'a Q,
    /// The final status of the response.
    pub status: StatusCode,
    /// The response's fields, hop-by-hop fields already removed.
    pub response: &'a R,
    /// When the request was sent (`request_time` of RFC 9111 §4.2.3).
    pub request_time: SystemTime,
    /// When the response's head was received (`response_time`).
    pub response_time: SystemTime,
}
