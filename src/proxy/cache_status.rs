//! What the client is told of the cache: `Cache-Status` (RFC 9211), and by setting `X-Cache`.

use super::answer::Answer;
use crate::outcome::{Answered, Forward, Outcome};
use http::{HeaderName, HeaderValue};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// What the site tells its clients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told<'a> {
    pub(super) pseudonym: &'a str,
    pub(super) x_cache: bool,
    /// The cache key, where the site names it.
    pub(super) key: Option<&'a str>,
}

impl Told<'_> {
    /// Adds the fields that tell of the answer's outcome.
    pub(super) fn of(&self, answer: &mut Answer) {
        let mut text = String::with_capacity(64);
        self.member(&answer.outcome, |part| text.push_str(part));
        let headers = answer.response.headers_mut();
        if let Ok(value) = HeaderValue::try_from(text) {
            // RFC 9211 §2: each cache appends its own member; those of caches behind us come first.
            headers.append(CACHE_STATUS, value);
        }
        if let Some(x_cache) = self.x_cache(&answer.outcome) {
            headers.insert(X_CACHE, HeaderValue::from_static(x_cache));
        }
    }

    /// Writes the same fields out, as lines of a head.
    pub(super) fn write(&self, outcome: &Outcome, head: &mut Vec<u8>) {
        head.extend_from_slice(b"cache-status: ");
        self.member(outcome, |part| head.extend_from_slice(part.as_bytes()));
        head.extend_from_slice(b"\r\n");
        if let Some(x_cache) = self.x_cache(outcome) {
            head.extend_from_slice(b"x-cache: ");
            head.extend_from_slice(x_cache.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
    }

    /// Whether a field of the answer gives way to what is told.
    pub(super) fn replaces(&self, name: &str) -> bool {
        self.x_cache && X_CACHE.as_str().eq_ignore_ascii_case(name)
    }

    fn x_cache(&self, outcome: &Outcome) -> Option<&'static str> {
        let hit = matches!(
            outcome.answered,
            Answered::Hit | Answered::Stale | Answered::Revalidated | Answered::Collapsed
        );
        self.x_cache.then_some(if hit { "HIT" } else { "MISS" })
    }

    /// The member of `Cache-Status` (RFC 9211 §2), part by part.
    fn member(&self, outcome: &Outcome, mut push: impl FnMut(&str)) {
        push(self.pseudonym);
        let is_hit = matches!(outcome.answered, Answered::Hit | Answered::Stale) && outcome.forward.is_none();
        if is_hit {
            push("; hit");
        }
        if let Some(forward) = outcome.forward {
            push("; fwd=");
            push(Forward::as_str(forward));
        }
        if let Some(status) = outcome.forward_status {
            push("; fwd-status=");
            push(status.as_str());
        }
        if let Some(ttl) = outcome.ttl_seconds {
            push("; ttl=");
            push(itoa::Buffer::new().format(ttl));
        }
        if outcome.stored {
            push("; stored");
        }
        if outcome.collapsed {
            push("; collapsed");
        }
        if let Some(key) = self.key {
            push("; key=\"");
            push(&key.replace('\\', "\\\\").replace('"', "\\\""));
            push("\"");
        }
        if let Some(detail) = outcome.detail {
            push("; detail=");
            push(detail);
        }
    }
}
