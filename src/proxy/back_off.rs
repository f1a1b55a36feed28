//! Who leaves a key alone after a failed fetch.
//!
//! That there was no answer is no matter of whose request it was, and an error is none either where requests share what comes. But where
//! each fetches for itself because of who it is, an error may be due to just that: it is then noted for those with the very
//! same credentials, and others still try. What is noted of the key alone holds for everyone.

use super::Cache;
use super::failure::Failed;
use super::meeting::is_like_others;
use super::notes::Advice;
use super::receive::Received;
use super::settings::Route;
use crate::policy::Key;
use http::HeaderMap;
use std::time::{Duration, SystemTime};

/// Whose request it is, as far as that may make a fetch fail.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) route: &'a Route,
    /// Whether it waits for the fetches of others whatever is known of the key.
    pub(super) is_like_others: bool,
}

impl<'a> Asker<'a> {
    pub(super) fn of(received: &'a Received) -> Self {
        let is_like_others = is_like_others(received);
        Self { headers: &received.headers, route: received.route(), is_like_others }
    }
}

impl Cache {
    /// What to do about a fetch under the key for this request.
    pub(super) fn advice(&self, key: &Key, asker: &Asker<'_>, now: SystemTime) -> Advice {
        let advice = self.notes.advice(key, now);
        match (&advice, self.personal(*key, asker)) {
            (Advice::Coalesce | Advice::GoAlone, Some(own)) => match self.notes.advice(&own, now) {
                Advice::GiveUp(failure) => Advice::GiveUp(failure),
                Advice::Coalesce | Advice::GoAlone => advice,
            },
            (Advice::GiveUp(_), _) | (_, None) => advice,
        }
    }

    /// Notes that a fetch failed. Where requests do not wait for each other, they do not share failures either.
    pub(super) fn note_failed(&self, key: Key, asker: &Asker<'_>, failed: Failed, now: SystemTime) {
        let coalescing = &asker.route.coalescing;
        // That the upstream gets no requests says nothing of this key.
        if !coalescing.enabled || failed.failure.is_refusal() {
            return;
        }
        let is_personal =
            !failed.failure.is_silence() && (!asker.is_like_others || self.notes.is_uncacheable(&key, now));
        let own = self.personal(key, asker).filter(|_| is_personal);
        self.notes.failed(own.unwrap_or(key), now, coalescing.error_backoff, failed);
    }

    /// Notes that a fetch brought an answer: whoever has these credentials need not wait any more.
    pub(super) fn note_answered(&self, key: Key, asker: &Asker<'_>) {
        if let Some(own) = self.personal(key, asker) {
            self.notes.forget(&own);
        }
    }

    /// What is noted for this request in words, and how long it holds.
    pub(super) fn remembered(
        &self,
        key: &Key,
        asker: &Asker<'_>,
        now: SystemTime,
    ) -> Option<(&'static str, Duration)> {
        let own = self.personal(*key, asker).and_then(|own| self.notes.describe(&own, now));
        own.or_else(|| self.notes.describe(key, now))
    }

    fn personal(&self, key: Key, asker: &Asker<'_>) -> Option<Key> {
        self.keyer.personal(key, asker.headers, &asker.route.rules.keyed_cookies)
    }
}
