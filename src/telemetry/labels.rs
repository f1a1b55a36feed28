//! The values that metric labels can take.
//!
//! Every label is either one of these enums or a name from the configuration, so that no client can invent a
//! time series.

use crate::outcome::Answered;
use http::StatusCode;

/// A closed set of label values.
pub trait Label: Copy + 'static {
    /// Every value, in declaration order.
    const ALL: &'static [Self];

    /// The text in the exposition.
    fn as_str(self) -> &'static str;

    /// The value's place in [`ALL`](Self::ALL).
    fn position(self) -> usize;
}

/// How a wait for another request's fetch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WaitResult {
    /// The response was shared with the one who waited.
    Shared,
    /// The response was not for the one who waited: it went upstream itself, or joined another fetch.
    Departed,
    /// The fetch failed, and the failure (or a stale response in its place) was shared.
    Failed,
    /// The wait reached its time limit.
    TimedOut,
    /// There was no place to wait.
    Overflow,
    /// The client left while it waited.
    Left,
}

/// Why a second fetch was started although one for the same key was in flight, or had been while its request waited. Of several
/// causes the first counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DuplicateCause {
    /// The response in flight may not be shared.
    Uncacheable,
    /// The response in flight was selected by other request fields.
    Vary,
    /// The wait reached its time limit.
    WaiterTimeout,
    /// There was no place to wait.
    WaiterOverflow,
    /// The fetch in flight outlived its right to be the only one.
    LeaseLost,
    /// The fetch in flight was begun before a purge.
    Purge,
}

/// Why a request went to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FetchReason {
    /// Nothing usable is stored.
    Miss,
    /// What is stored had to be confirmed before it was served.
    Revalidate,
    /// What is stored was served, and is brought up to date in the background.
    Refresh,
    /// The request goes alone: it is not cacheable, or not this time. Upgrades belong here.
    Pass,
    /// An earlier attempt for the same request failed before there was an answer.
    Retry,
}

/// How an upstream answered: the first digit of the status, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatusClass {
    /// 1xx: an upgrade.
    Informational,
    /// 2xx.
    Success,
    /// 3xx, and with it 304.
    Redirection,
    /// 4xx.
    ClientError,
    /// 5xx, and everything above, which RFC 9110 §15 says to treat so.
    ServerError,
    /// No head of a response came: refused, reset, timed out, malformed or given up.
    Error,
}

impl StatusClass {
    /// The class of a status.
    pub const fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            0..=199 => Self::Informational,
            200..=299 => Self::Success,
            300..=399 => Self::Redirection,
            400..=499 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }
}

/// Why a stored response left the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EvictionCause {
    /// The store was full.
    Size,
    /// It could serve nobody any more.
    Expired,
    /// A newer response took its place.
    Replaced,
    /// A purge or an unsafe method took it away.
    Invalidated,
    /// Its body broke off while it was being received.
    Failed,
}

/// What a purge was aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PurgeKind {
    /// One URL, with all its variants.
    Url,
    /// Every response that carries a tag.
    Tag,
    /// Every path under a prefix.
    Prefix,
    /// Everything of one route.
    Route,
    /// Everything.
    All,
}

/// Why a client's connection was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalCause {
    /// As many connections as allowed were open.
    Limit,
    /// The TLS handshake failed.
    Tls,
    /// It was accepted, but the operating system would not let it be served.
    Accept,
    /// As many connections of one client address as allowed were open.
    ClientLimit,
    /// The head of a request did not come in time.
    SlowHead,
    /// What came is no HTTP.
    Malformed,
    /// Too much came over HTTP/2 that asks for nothing, such as requests that are given up at once.
    Flood,
}

/// Why TLS with a client could not be established.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsFailure {
    /// The client refused what it was shown: mostly our certificate.
    ClientRefused,
    /// There is no version, cipher or protocol that both sides have.
    Incompatible,
    /// What came is no TLS, or breaks its rules.
    Malformed,
    /// The connection ended.
    ClientLeft,
    /// It took too long.
    TimedOut,
    /// Anything else.
    Other,
}

/// What became of a configuration that was loaded again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReloadResult {
    /// It is in effect.
    Success,
    /// It was wrong, or what it names cannot be had: the one before it stays in effect.
    Refused,
}

/// Why the first configuration was loaded, which is not counted.
pub const AT_START: &str = "start";

impl Label for Answered {
    const ALL: &'static [Self] = &Answered::ALL;

    fn as_str(self) -> &'static str {
        Answered::as_str(self)
    }

    fn position(self) -> usize {
        self as usize
    }
}

impl Label for WaitResult {
    const ALL: &'static [Self] =
        &[Self::Shared, Self::Departed, Self::Failed, Self::TimedOut, Self::Overflow, Self::Left];

    fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Departed => "departed",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Overflow => "overflow",
            Self::Left => "left",
        }
    }

    fn position(self) -> usize {
        self as usize
    }
}

impl Label for DuplicateCause {
    const ALL: &'static [Self] = &[
        Self::Uncacheable,
        Self::Vary,
        Self::WaiterTimeout,
        Self::WaiterOverflow,
        Self::LeaseLost,
        Self::Purge,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Uncacheable => "uncacheable",
            Self::Vary => "vary",
            Self::Purge => "purge",
            Self::WaiterTimeout => "waiter_timeout",
            Self::WaiterOverflow => "waiter_overflow",
            Self::LeaseLost => "lease_lost",
        }
    }

    fn position(self) -> usize {
        self as usize
    }
}

impl Label for FetchReason {
    const ALL: &'static [Self] = &[Self::Miss, Self::Revalidate, Self::Refresh, Self::Pass, Self::Retry];

    fn as_str(self) -> &'static str {
        match self {
            Self::Miss => "miss",
            Self::Revalidate => "revalidate",
            Self::Refresh => "refresh",
            Self::Pass => "pass",
            Self::Retry => "retry",
        }
    }

    fn position(self) -> usize {
        self as usize
    }
}

impl Label for StatusClass {
    const ALL: &'static [Self] = &[
        Self::Informational,
        Self::Success,
        Self::Redirection,
        Self::ClientError,
        Self::ServerError,
        Self::Error,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Informational => "1xx",
            Self::Success => "2xx",
            Self::Redirection => "3xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::Error => "error",
        }
    }

    fn position(self) -> usize {
        self as usize
    }
}

impl Label for EvictionCause {
    const ALL: &'static [Self] =
        &[Self::Size, Self::Expired, Self::Replaced, Self::Invalidated, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Expired => "expired",
            Self::Replaced => "replaced",
            Self::Invalidated => "invalidated",
            Self::Failed => "failed",
        }
    }

    fn position(self) -> usize {
        self as usize
    }
}

impl Label for PurgeKind {
    const ALL: &'static [Self] = &[Self::Url, Self::Tag, Self::Prefix, Self::Route, Self::All];

    fn as_str(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Tag => "tag",
            Self::Prefix => "prefix",
            Self::Route => "route",
            Self::All => "everything",
        }
    }

    fn position(self) -> usize {
        self as usize
    }
}

impl Label for RefusalCause {
    const ALL: &'static [Self] = &[
        Self::Limit,
        Self::Tls,
        Self::Accept,
        Self::ClientLimit,
        Self::SlowHead,
        Self::Malformed,
        Self::Flood,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Tls => "tls",
            Self::Accept => "accept",
            Self::ClientLimit => "client_limit",
            Self::SlowHead => "slow_head",
            Self::Malformed => "malformed",
            Self::Flood => "flood",
        }
    }

    fn position(self) -> usize {
        self as usize
    }
}

impl Label for TlsFailure {
    const ALL: &'static [Self] = &[
        Self::ClientRefused,
        Self::Incompatible,
        Self::Malformed,
        Self::ClientLeft,
        Self::TimedOut,
        Self::Other,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::ClientRefused => "client_refused",
            Self::Incompatible => "incompatible",
            Self::Malformed => "malformed",
            Self::ClientLeft => "client_left",
            Self::TimedOut => "timed_out",
            Self::Other => "other",
        }
    }

    fn position(self) -> usize {
        self as usize
    }
}

impl Label for ReloadResult {
    const ALL: &'static [Self] = &[Self::Success, Self::Refused];

    fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Refused => "refused",
        }
    }

    fn position(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn positions_match<L: Label>() {
        for (index, label) in L::ALL.iter().enumerate() {
            assert_eq!(label.position(), index, "{}", label.as_str());
        }
    }

    #[test]
    fn every_label_stands_where_it_says() {
        positions_match::<Answered>();
        positions_match::<WaitResult>();
        positions_match::<DuplicateCause>();
        positions_match::<FetchReason>();
        positions_match::<StatusClass>();
        positions_match::<EvictionCause>();
        positions_match::<PurgeKind>();
        positions_match::<RefusalCause>();
        positions_match::<TlsFailure>();
        positions_match::<ReloadResult>();
    }

    #[test]
    fn status_classes_follow_the_first_digit() {
        let class = |code| StatusClass::of(StatusCode::from_u16(code).unwrap()).as_str();
        assert_eq!(class(101), "1xx");
        assert_eq!(class(204), "2xx");
        assert_eq!(class(304), "3xx");
        assert_eq!(class(404), "4xx");
        assert_eq!(class(503), "5xx");
        assert_eq!(class(999), "5xx");
    }
}
