//! Why an upstream gave no answer.

use crate::descriptors;
use http::StatusCode;
use std::io;
use std::time::Duration;

/// What is behind an error.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// No answer from the upstream. Each variant says whose fault it was, and knows its status and its `Proxy-Status` word.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name could not be resolved.
    #[error("the upstream's name could not be resolved")]
    Resolve(#[source] io::Error),
    /// The connection was refused or the address cannot be reached.
    #[error("the upstream could not be connected to")]
    Connect(#[source] io::Error),
    /// The connection was not established in time.
    #[error("connecting to the upstream took too long")]
    ConnectTimeout,
    /// TLS could not be established.
    #[error("TLS with the upstream failed")]
    Tls(#[source] io::Error),
    /// The connection was refused by the HTTP layer.
    #[error("the upstream's connection could not be set up")]
    Handshake(#[source] Cause),
    /// The connection broke before the head of an answer.
    #[error("the upstream closed the connection before it answered")]
    Closed(#[source] Cause),
    /// The head did not come in time.
    #[error("the upstream did not answer in time")]
    HeadTimeout,
    /// What came is not HTTP, or not HTTP that may be passed on.
    #[error("the upstream sent an invalid answer: {0}")]
    Malformed(&'static str),
    /// What came is not HTTP.
    #[error("the upstream sent an invalid answer")]
    Invalid(#[source] Cause),
    /// An upgrade is asked for, and the upstream is spoken to over HTTP/2, which has none.
    #[error("the upstream is spoken to over HTTP/2, which has no upgrades (protocol = \"http2\")")]
    NoUpgrade,
    /// The client broke its upload off, or the upload is over the limit.
    #[error("the request's body ended early")]
    RequestBody(#[source] Cause),
    /// All places are taken, and there was none in time.
    #[error("the upstream is at its concurrency limit")]
    Busy,
    /// This process has no file descriptor for it.
    #[error("there is no file descriptor for a connection to the upstream")]
    NoDescriptor(#[source] io::Error),
    /// The circuit breaker is open.
    #[error("the upstream fails so often that it gets no requests for {} s", left.as_secs_f64())]
    Open {
        /// For how long still.
        left: Duration,
    },
}

impl Error {
    /// The status that tells a client of this (RFC 9110 §15.6).
    pub fn status(&self) -> StatusCode {
        match self {
            Self::ConnectTimeout | Self::HeadTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Busy | Self::NoDescriptor(_) | Self::Open { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::RequestBody(_) => StatusCode::BAD_REQUEST,
            Self::Resolve(_)
            | Self::Connect(_)
            | Self::Tls(_)
            | Self::Handshake(_)
            | Self::Closed(_)
            | Self::Malformed(_)
            | Self::Invalid(_)
            | Self::NoUpgrade => StatusCode::BAD_GATEWAY,
        }
    }

    /// The error type of RFC 9209 §2.3.
    pub fn proxy_status(&self) -> &'static str {
        match self {
            Self::Resolve(_) => "dns_error",
            Self::Connect(_) => "connection_refused",
            Self::ConnectTimeout => "connection_timeout",
            Self::Tls(error) if is_about_certificate(error) => "tls_certificate_error",
            Self::Tls(_) => "tls_protocol_error",
            Self::Handshake(_) | Self::Closed(_) => "connection_terminated",
            Self::HeadTimeout => "http_response_timeout",
            Self::Malformed(_) | Self::Invalid(_) => "http_protocol_error",
            Self::NoUpgrade => "http_upgrade_failed",
            Self::RequestBody(_) => "http_request_error",
            Self::Busy => "connection_limit_reached",
            Self::NoDescriptor(_) => "proxy_internal_error",
            Self::Open { .. } => "destination_unavailable",
        }
    }

    /// Whether the request was not sent, because it would not have been answered in time: a matter of the upstream as a whole, not
    /// of what was asked for.
    pub fn is_refusal(&self) -> bool {
        self.retry_after().is_some()
    }

    /// Whether it is this process that lacks something: no matter of the upstream at all.
    pub fn is_own_want(&self) -> bool {
        matches!(self, Self::NoDescriptor(_))
    }

    /// When it makes sense to try again, where the request was not sent.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Open { left } => Some(*left),
            Self::Busy | Self::NoDescriptor(_) => Some(Duration::from_secs(1)),
            Self::Resolve(_)
            | Self::Connect(_)
            | Self::ConnectTimeout
            | Self::Tls(_)
            | Self::Handshake(_)
            | Self::Closed(_)
            | Self::HeadTimeout
            | Self::Malformed(_)
            | Self::Invalid(_)
            | Self::NoUpgrade
            | Self::RequestBody(_) => None,
        }
    }

    /// Whether the same request may meet a better fate on another connection.
    pub(super) fn may_be_retried(&self) -> bool {
        match self {
            Self::Resolve(_)
            | Self::Connect(_)
            | Self::ConnectTimeout
            | Self::Handshake(_)
            | Self::Closed(_) => true,
            Self::Tls(_)
            | Self::HeadTimeout
            | Self::Malformed(_)
            | Self::Invalid(_)
            | Self::NoUpgrade
            | Self::RequestBody(_)
            | Self::Busy
            | Self::NoDescriptor(_)
            | Self::Open { .. } => false,
        }
    }

    /// Whether it says something of the health of the origin.
    pub(super) fn is_upstreams_fault(&self) -> bool {
        match self {
            Self::Resolve(_)
            | Self::Connect(_)
            | Self::ConnectTimeout
            | Self::Tls(_)
            | Self::Handshake(_)
            | Self::Closed(_)
            | Self::HeadTimeout
            | Self::Malformed(_)
            | Self::Invalid(_) => true,
            Self::NoUpgrade
            | Self::RequestBody(_)
            | Self::Busy
            | Self::NoDescriptor(_)
            | Self::Open { .. } => false,
        }
    }

    /// What it means that a name could not be resolved.
    pub(super) fn of_resolving(error: io::Error) -> Self {
        if descriptors::is_none_left(&error) { Self::NoDescriptor(error) } else { Self::Resolve(error) }
    }

    /// What it means that no connection could be made.
    pub(super) fn of_connecting(error: io::Error) -> Self {
        if descriptors::is_none_left(&error) { Self::NoDescriptor(error) } else { Self::Connect(error) }
    }

    /// What a failed exchange on an established connection of HTTP/2 means.
    pub(super) fn of_exchange(error: hyper::Error) -> Self {
        if error.is_user() || error.is_body_write_aborted() {
            Self::RequestBody(error.into())
        } else if error.is_parse() {
            Self::Invalid(error.into())
        } else {
            Self::Closed(error.into())
        }
    }
}

/// Whether TLS failed because of what the upstream shows of itself.
fn is_about_certificate(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented))
}
