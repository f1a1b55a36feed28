//! How a request was answered, in the words of RFC 9211.
//!
//! The log line, the metric labels and the `Cache-Status` field all read this one value, so that they cannot
//! tell different stories.

use http::StatusCode;

/// The one-word ending of a request: the `outcome` label of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answered {
    /// Answered from a fresh stored response.
    Hit,
    /// Answered from a stale stored response.
    Stale,
    /// Answered from a stored response that the upstream has just confirmed (304).
    Revalidated,
    /// This request caused the upstream fetch that answered it, and the fetch could be shared.
    Miss,
    /// Answered by the fetch of another request.
    Collapsed,
    /// Went upstream alone: not cacheable, or not this time.
    Pass,
    /// Answered with an upgraded connection (for instance a WebSocket).
    Tunnel,
    /// It was a PURGE, and what it named is purged.
    Purged,
    /// The client's request was refused.
    Rejected,
    /// The upstream failed, and no stored response could stand in.
    Error,
    /// The client left before there was an answer.
    Abandoned,
}

impl Answered {
    /// Every ending, in label order.
    pub const ALL: [Self; 11] = [
        Self::Hit,
        Self::Stale,
        Self::Revalidated,
        Self::Miss,
        Self::Collapsed,
        Self::Pass,
        Self::Tunnel,
        Self::Purged,
        Self::Rejected,
        Self::Error,
        Self::Abandoned,
    ];

    /// The metric label and log word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Miss => "miss",
            Self::Collapsed => "collapsed",
            Self::Pass => "pass",
            Self::Tunnel => "tunnel",
            Self::Purged => "purged",
            Self::Rejected => "rejected",
            Self::Error => "error",
            Self::Abandoned => "abandoned",
        }
    }
}

/// Why a request was forwarded: the `fwd` parameter of RFC 9211 §2.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forward {
    /// The cache was configured not to handle this request.
    Bypass,
    /// The method's semantics require it.
    Method,
    /// Nothing is stored under the key.
    UriMiss,
    /// Something is stored under the key, but for other selecting fields.
    VaryMiss,
    /// The request's own directives or fields refused what is stored.
    Request,
    /// What is stored is stale.
    Stale,
}

impl Forward {
    /// The token of RFC 9211 §2.2.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Request => "request",
            Self::Stale => "stale",
        }
    }
}

/// How one request was answered. Every path through the proxy ends in exactly one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The one-word ending.
    pub answered: Answered,
    /// Why the request was forwarded, if it was (`fwd`).
    pub forward: Option<Forward>,
    /// The status the upstream answered with, if it did (`fwd-status`).
    pub forward_status: Option<StatusCode>,
    /// Remaining freshness in seconds, negative when stale (`ttl`).
    pub ttl_seconds: Option<i64>,
    /// Whether the response was stored (`stored`).
    pub stored: bool,
    /// Whether the request joined another's fetch (`collapsed`).
    pub collapsed: bool,
    /// Why it was not stored, or what went wrong: a short token (`detail`).
    pub detail: Option<&'static str>,
}

impl Outcome {
    /// An outcome that says nothing but its ending.
    pub const fn of(answered: Answered) -> Self {
        Self {
            answered,
            forward: None,
            forward_status: None,
            ttl_seconds: None,
            stored: false,
            collapsed: false,
            detail: None,
        }
    }

    /// The same outcome, forwarded for this reason.
    #[must_use]
    pub const fn forwarded(mut self, why: Forward) -> Self {
        self.forward = Some(why);
        self
    }

    /// The same outcome with a word on the cause.
    #[must_use]
    pub const fn because(mut self, detail: &'static str) -> Self {
        self.detail = Some(detail);
        self
    }

    /// The same outcome of a request that joined another's fetch.
    #[must_use]
    pub const fn collapsed(mut self) -> Self {
        self.collapsed = true;
        self
    }
}
