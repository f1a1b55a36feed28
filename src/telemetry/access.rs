//! The access log: one line for each request, from the same [`Outcome`] that the metrics count.

use crate::outcome::{Forward, Outcome};
use http::{StatusCode, Version};
use std::net::SocketAddr;
use std::time::Duration;

/// The `tracing` target of access-log lines, for filters such as `info,forebay::access=off`.
pub const TARGET: &str = "forebay::access";

/// One request and its answer, seen from the end of the response body.
#[derive(Debug, Clone, Copy)]
pub struct AccessRecord<'a> {
    /// The request. It is kept only for the access log: without one it is `None`.
    pub request: Option<RequestLine<'a>>,
    /// The response's status.
    pub status: StatusCode,
    /// How the request was answered.
    pub outcome: &'a Outcome,
    /// Bytes of the response body handed over.
    pub body_bytes: u64,
    /// From the head of the request to the end of the response body.
    pub duration: Duration,
    /// How the response body ended.
    pub body_end: BodyEnd,
}

/// What a line says of the request.
#[derive(Debug, Clone, Copy)]
pub struct RequestLine<'a> {
    /// The method; empty, like the target and the host, where the request could not be read.
    pub method: &'a str,
    /// The target as the client sent it.
    pub target: &'a str,
    /// The host, empty if it named none.
    pub host: &'a str,
    /// The version of HTTP that the client spoke.
    pub protocol: Version,
    /// The client's address: the peer of the connection.
    pub client: SocketAddr,
}

/// How a response body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BodyEnd {
    /// It was handed over whole. A response without a body is whole.
    Complete,
    /// Its source broke off: the client has seen a broken connection.
    BrokenOff,
    /// The client left before it had everything.
    ClientLeft,
    /// The process ended before the client had everything, and no sooner than after the time for a drain.
    CutOff,
}

impl BodyEnd {
    /// The log word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::BrokenOff => "broken_off",
            Self::ClientLeft => "client_left",
            Self::CutOff => "cut_off",
        }
    }
}

/// Writes the line. Text that clients chose is recorded as strings, which both formats quote and escape.
pub(super) fn log(route: &str, request: &RequestLine<'_>, record: &AccessRecord<'_>) {
    let outcome = record.outcome;
    tracing::info!(
        target: TARGET,
        method = request.method,
        host = request.host,
        request_target = request.target,
        status = record.status.as_u16(),
        outcome = outcome.answered.as_str(),
        route,
        bytes = record.body_bytes,
        // To the microsecond: what a sum of seconds has behind that is noise.
        duration_ms = (record.duration.as_secs_f64() * 1e6).round() / 1e3,
        body = record.body_end.as_str(),
        client = %request.client,
        protocol = ?request.protocol,
        forward = outcome.forward.map(Forward::as_str),
        forward_status = outcome.forward_status.map(|status| status.as_u16()),
        ttl = outcome.ttl_seconds,
        stored = outcome.stored,
        collapsed = outcome.collapsed,
        detail = outcome.detail,
    );
}
