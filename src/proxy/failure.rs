//! What a fetch that failed comes to, for everyone who waited for it.

use super::answer::{Answer, Source};
use super::cache_status::Told;
use crate::body::Body;
use crate::outcome::{Answered, Outcome};
use crate::upstream;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use std::sync::Arc;

/// A failed fetch. It is shared by all who waited for it, and kept by nobody.
#[derive(Debug, Clone)]
pub(super) struct Failure(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    status: StatusCode,
    /// The error type of RFC 9209 §2.3, where there was no answer.
    proxy_status: Option<&'static str>,
    /// The upstream's own error response, where it had one that may be shown to all.
    response: Option<(HeaderMap, Body)>,
}

impl Failure {
    /// The upstream gave no answer.
    pub(super) fn of(error: &upstream::Error) -> Self {
        Self::ours(error.status(), Some(error.proxy_status()))
    }

    /// The upstream answered with an error that may be shown to everyone.
    pub(super) fn answered(status: StatusCode, headers: HeaderMap, body: Body) -> Self {
        Self(Arc::new(Inner { status, proxy_status: None, response: Some((headers, body)) }))
    }

    /// An error told in our own words.
    pub(super) fn ours(status: StatusCode, proxy_status: Option<&'static str>) -> Self {
        Self(Arc::new(Inner { status, proxy_status, response: None }))
    }

    /// The task that fetched has gone away.
    pub(super) fn internal() -> Self {
        Self::ours(StatusCode::INTERNAL_SERVER_ERROR, Some("proxy_internal_error"))
    }

    /// The status that tells of it.
    pub(super) fn status(&self) -> StatusCode {
        self.0.status
    }

    /// Whether the upstream did not answer at all.
    pub(super) fn is_silence(&self) -> bool {
        self.0.proxy_status.is_some()
    }

    /// The same failure, told as an upstream that did not answer in time.
    pub(super) fn as_timeout(&self) -> Self {
        Self::ours(StatusCode::GATEWAY_TIMEOUT, self.0.proxy_status)
    }

    /// The same failure without the upstream's body, for those who come when that can no longer be read.
    pub(super) fn without_response(&self) -> Self {
        Self::ours(self.0.status, self.0.proxy_status)
    }

    /// The answer for one of those who waited.
    pub(super) fn answer(&self, outcome: Outcome, told: &Told<'_>) -> Answer {
        let outcome = Outcome { answered: Answered::Error, ..outcome };
        let response = self.0.response.as_ref().and_then(|(headers, body)| {
            let mut response = Response::new(Source::Shared(body.read().ok()?));
            *response.headers_mut() = headers.clone();
            *response.status_mut() = self.0.status;
            Some(response)
        });
        let mut answer = match response {
            Some(response) => Answer { response, outcome },
            None => Answer::plain(self.0.status, explanation(self.0.status), outcome),
        };
        let headers = answer.response.headers_mut();
        if let Some(error) = self.0.proxy_status
            && let Ok(value) = HeaderValue::try_from(format!("{}; error={error}", told.pseudonym))
        {
            headers.insert("proxy-status", value);
        }
        if self.0.status == StatusCode::SERVICE_UNAVAILABLE && self.0.response.is_none() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        told.of(&mut answer);
        answer
    }
}

fn explanation(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_GATEWAY => "502 Bad Gateway: the upstream gave no valid answer\n",
        StatusCode::GATEWAY_TIMEOUT => "504 Gateway Timeout: the upstream did not answer in time\n",
        StatusCode::SERVICE_UNAVAILABLE => "503 Service Unavailable: try again later\n",
        StatusCode::BAD_REQUEST => "400 Bad Request: the request's body ended early\n",
        _ => "The upstream answered with an error\n",
    }
}
