//! What a fetch that failed comes to, for everyone who waited for it.

use super::answer::{Answer, Source};
use super::cache_status::Told;
use crate::body::Body;
use crate::outcome::{Answered, Outcome};
use crate::policy::Key;
use crate::store::stamps::Scopes;
use crate::upstream;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use std::sync::Arc;
use std::time::Duration;

/// A failed fetch. It is shared by all who waited for it, and kept by nobody.
#[derive(Debug, Clone)]
pub(super) struct Failure(Arc<Inner>);

/// A fetch that failed, and what is to be known of it to tell whether that still matters.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) failure: Failure,
    /// The tick of the fetch.
    pub(super) tick: u64,
    /// What was asked for, with the tags of what was validated and of the error itself: a line drawn through it after the fetch has
    /// begun is the end of what the failure says.
    pub(super) scopes: Arc<Scopes<'static>>,
    /// Whose alone it may be, by its credentials and cookies; `None`: it is everyone's.
    pub(super) whose: Option<Key>,
}

#[derive(Debug)]
struct Inner {
    status: StatusCode,
    cause: Cause,
    /// When the upstream wants to be asked again, in its own words.
    retry_after: Option<HeaderValue>,
    /// The upstream's own error response, where it had one that may be shown to all.
    response: Option<(HeaderMap, Body)>,
}

/// Where the status comes from. Errors are told by their types in RFC 9209 §2.3.
#[derive(Debug, Clone, Copy)]
enum Cause {
    /// The upstream gave no answer.
    Silence(&'static str),
    /// The upstream was not asked, and should not be for a while.
    Refusal { error: &'static str, retry_after: Duration },
    /// It is the upstream's.
    Answer,
    /// It is that of an earlier answer of the upstream, which is left alone for a moment.
    EarlierAnswer,
}

impl Failure {
    /// The upstream gave no answer.
    pub(super) fn of(error: &upstream::Error) -> Self {
        let word = error.proxy_status();
        let cause = match error.retry_after() {
            Some(retry_after) => Cause::Refusal { error: word, retry_after },
            None => Cause::Silence(word),
        };
        Self::caused(error.status(), cause)
    }

    /// The upstream answered with an error that may be shown to everyone.
    pub(super) fn answered(status: StatusCode, headers: HeaderMap, body: Body) -> Self {
        let retry_after = headers.get(header::RETRY_AFTER).cloned();
        Self(Arc::new(Inner { status, cause: Cause::Answer, retry_after, response: Some((headers, body)) }))
    }

    /// The upstream answered with an error of which no more may be told than its status, and when to try again.
    pub(super) fn told(status: StatusCode, headers: &HeaderMap) -> Self {
        let retry_after = headers.get(header::RETRY_AFTER).cloned();
        Self(Arc::new(Inner { status, cause: Cause::Answer, retry_after, response: None }))
    }

    /// There is no answer, for this reason.
    pub(super) fn ours(status: StatusCode, error: &'static str) -> Self {
        Self::caused(status, Cause::Silence(error))
    }

    /// The task that fetched has gone away.
    pub(super) fn internal() -> Self {
        Self::ours(StatusCode::INTERNAL_SERVER_ERROR, "proxy_internal_error")
    }

    fn caused(status: StatusCode, cause: Cause) -> Self {
        Self(Arc::new(Inner { status, cause, retry_after: None, response: None }))
    }

    /// The status that tells of it.
    pub(super) fn status(&self) -> StatusCode {
        self.0.status
    }

    /// Whether the upstream did not answer at all.
    pub(super) fn is_silence(&self) -> bool {
        match self.0.cause {
            Cause::Silence(_) | Cause::Refusal { .. } => true,
            Cause::Answer | Cause::EarlierAnswer => false,
        }
    }

    /// Whether the upstream was not asked.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.0.cause, Cause::Refusal { .. })
    }

    /// The same failure where a response must not be used without the upstream's word. RFC 9111 §5.2.2.2: the status "SHOULD be
    /// 504 (Gateway Timeout) unless another error status code is more applicable", as that of a refusal is.
    pub(super) fn for_want_of_validation(&self) -> Self {
        match self.0.cause {
            Cause::Silence(_) => Self::caused(StatusCode::GATEWAY_TIMEOUT, self.0.cause),
            Cause::Refusal { .. } | Cause::Answer | Cause::EarlierAnswer => self.clone(),
        }
    }

    /// The same failure for those who come when its moment is over: without the upstream's body, which can no longer be read.
    pub(super) fn remembered(&self) -> Self {
        let cause = match self.0.cause {
            Cause::Answer => Cause::EarlierAnswer,
            cause @ (Cause::Silence(_) | Cause::Refusal { .. } | Cause::EarlierAnswer) => cause,
        };
        let (status, retry_after) = (self.0.status, self.0.retry_after.clone());
        Self(Arc::new(Inner { status, cause, retry_after, response: None }))
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
        let is_theirs = response.is_some();
        let mut answer = match response {
            Some(response) => Answer { response, outcome },
            None => Answer::plain(self.0.status, explanation(self.0.status), outcome),
        };
        if !is_theirs {
            self.explain(answer.response.headers_mut(), told.pseudonym);
        }
        told.of(&mut answer);
        answer
    }

    /// Says what happened (RFC 9209), and when to try again.
    fn explain(&self, headers: &mut HeaderMap, pseudonym: &str) {
        let status = self.0.status;
        let (what, retry_after) = match self.0.cause {
            Cause::Silence(error) => (format!("error={error}"), RETRY_AFTER),
            Cause::Refusal { error, retry_after } => (format!("error={error}"), retry_after),
            Cause::Answer => (format!("received-status={}", status.as_u16()), RETRY_AFTER),
            Cause::EarlierAnswer => {
                (format!("error=destination_unavailable; received-status={}", status.as_u16()), RETRY_AFTER)
            }
        };
        if let Ok(value) = HeaderValue::try_from(format!("{pseudonym}; {what}")) {
            headers.insert("proxy-status", value);
        }
        if let Some(retry_after) = &self.0.retry_after {
            headers.insert(header::RETRY_AFTER, retry_after.clone());
        } else if status == StatusCode::SERVICE_UNAVAILABLE {
            let seconds = retry_after.as_millis().div_ceil(1000).clamp(1, 3600);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(1)));
        }
    }
}

/// How long to wait before the next try, where nothing is known of it.
const RETRY_AFTER: Duration = Duration::from_secs(1);

fn explanation(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_GATEWAY => "502 Bad Gateway: the upstream gave no valid answer\n",
        StatusCode::GATEWAY_TIMEOUT => "504 Gateway Timeout: the upstream did not answer in time\n",
        StatusCode::SERVICE_UNAVAILABLE => "503 Service Unavailable: try again later\n",
        StatusCode::BAD_REQUEST => "400 Bad Request: the request's body ended early\n",
        _ => "The upstream answered with an error\n",
    }
}
