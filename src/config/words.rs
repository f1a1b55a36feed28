//! The words that settings of few values are written with.

use crate::policy::Share;
use crate::proxy::{DotSegments, EncodedSlashes, OnAbandon, OnLimit, Unmatched};
use crate::telemetry::Format;
use crate::upstream::{Balance, Protocol};

/// A setting whose values are words.
pub(super) trait Word: Copy + 'static {
    /// Every value, the default first.
    const ALL: &'static [Self];

    /// The word for this value.
    fn word(self) -> &'static str;
}

impl Word for Format {
    const ALL: &'static [Self] = &[Self::Human, Self::Json];

    fn word(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Json => "json",
        }
    }
}

impl Word for Balance {
    const ALL: &'static [Self] = &[Self::RoundRobin, Self::LeastRequests, Self::ConsistentHash];

    fn word(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::LeastRequests => "least-requests",
            Self::ConsistentHash => "consistent-hash",
        }
    }
}

impl Word for Protocol {
    const ALL: &'static [Self] = &[Self::Auto, Self::Http1, Self::Http2];

    fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
        }
    }
}

impl Word for Unmatched {
    const ALL: &'static [Self] = &[Self::NotFound, Self::Misdirected];

    fn word(self) -> &'static str {
        match self {
            Self::NotFound => "not-found",
            Self::Misdirected => "misdirected",
        }
    }
}

impl Word for Share {
    const ALL: &'static [Self] = &[Self::Storable, Self::Fresh];

    fn word(self) -> &'static str {
        match self {
            Self::Storable => "storable",
            Self::Fresh => "fresh",
        }
    }
}

impl Word for OnLimit {
    const ALL: &'static [Self] = &[Self::GoAlone, Self::Refuse];

    fn word(self) -> &'static str {
        match self {
            Self::GoAlone => "go-alone",
            Self::Refuse => "refuse",
        }
    }
}

impl Word for OnAbandon {
    const ALL: &'static [Self] = &[Self::Finish, Self::Cancel];

    fn word(self) -> &'static str {
        match self {
            Self::Finish => "finish",
            Self::Cancel => "cancel",
        }
    }
}

impl Word for DotSegments {
    const ALL: &'static [Self] = &[Self::Remove, Self::Keep, Self::Refuse];

    fn word(self) -> &'static str {
        match self {
            Self::Remove => "remove",
            Self::Keep => "keep",
            Self::Refuse => "refuse",
        }
    }
}

impl Word for EncodedSlashes {
    const ALL: &'static [Self] = &[Self::Keep, Self::Refuse];

    fn word(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Refuse => "refuse",
        }
    }
}
