//! What the client is told of the cache: `Cache-Status` (RFC 9211), and by setting `X-Cache`.

use super::answer::Answer;
use crate::outcome::{Answered, Forward, Outcome};
use http::{HeaderName, HeaderValue};
use std::fmt::Write as _;

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
        let text = self.text(&answer.outcome);
        let headers = answer.response.headers_mut();
        if let Ok(value) = HeaderValue::from_str(&text) {
            // RFC 9211 §2: each cache appends its own member; those of caches behind us come first.
            headers.append(CACHE_STATUS, value);
        }
        if let Some(x_cache) = self.x_cache(&answer.outcome) {
            headers.insert(X_CACHE, HeaderValue::from_static(x_cache));
        }
    }

    /// Gives the same fields to whoever writes a head out.
    pub(super) fn write(&self, outcome: &Outcome, mut field: impl FnMut(&HeaderName, &[u8])) {
        field(&CACHE_STATUS, self.text(outcome).as_bytes());
        if let Some(x_cache) = self.x_cache(outcome) {
            field(&X_CACHE, x_cache.as_bytes());
        }
    }

    /// Whether a field of the answer gives way to what is told.
    pub(super) fn replaces(&self, name: &HeaderName) -> bool {
        self.x_cache && *name == X_CACHE
    }

    fn x_cache(&self, outcome: &Outcome) -> Option<&'static str> {
        let hit = matches!(
            outcome.answered,
            Answered::Hit | Answered::Stale | Answered::Revalidated | Answered::Collapsed
        );
        self.x_cache.then_some(if hit { "HIT" } else { "MISS" })
    }

    /// The member of `Cache-Status` (RFC 9211 §2).
    fn text(&self, outcome: &Outcome) -> String {
        let mut text = String::with_capacity(64);
        text.push_str(self.pseudonym);
        let is_hit = matches!(outcome.answered, Answered::Hit | Answered::Stale) && outcome.forward.is_none();
        if is_hit {
            text.push_str("; hit");
        }
        if let Some(forward) = outcome.forward {
            text.push_str("; fwd=");
            text.push_str(Forward::as_str(forward));
        }
        if let Some(status) = outcome.forward_status {
            // Writing to a string never fails.
            let _ = write!(text, "; fwd-status={}", status.as_u16());
        }
        if let Some(ttl) = outcome.ttl_seconds {
            text.push_str("; ttl=");
            text.push_str(itoa::Buffer::new().format(ttl));
        }
        if outcome.stored {
            text.push_str("; stored");
        }
        if outcome.collapsed {
            text.push_str("; collapsed");
        }
        if let Some(key) = self.key {
            let _ = write!(text, "; key=\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
        }
        if let Some(detail) = outcome.detail {
            let _ = write!(text, "; detail={detail}");
        }
        text
    }
}
