//! Who leaves a key alone after a failed fetch.
//!
//! That there was no answer is no matter of whose request it was, nor is an error that answers a request without credentials and
//! cookies: it is noted of the key, and holds for everyone. Every other error may be due to whose request it was. It is noted for those with
//! the very same credentials and cookies, and others still try. Where requests wait for each other, though, and two in a row have failed
//! for different clients (see [`suspicion`](super::suspicion)), it is noted for all who tell who they are and wait. It
//! never is for those who do not: cookies can be made up at will, having none cannot.

use super::Cache;
use super::failure::{Failed, Failure};
use super::notes::Advice;
use super::receive::Received;
use super::settings::Route;
use super::suspicion::Blame;
use crate::policy::{Credentials, Fields, Key};
use http::HeaderMap;
use std::time::{Duration, SystemTime};

/// Whose request it is, as far as that may make a fetch fail.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker<'a, F = HeaderMap> {
    pub(super) headers: &'a F,
    pub(super) credentials: Credentials,
    pub(super) route: &'a Route,
    /// Whether it waits for the fetches of others: by setting, or because what comes has proved to be for everyone.
    pub(super) waits: bool,
    /// Whether others may wait for its fetch.
    pub(super) leads: bool,
}

impl<'a> Asker<'a> {
    pub(super) fn of(received: &'a Received, waits: bool) -> Self {
        Self {
            headers: &received.headers,
            credentials: received.credentials,
            route: received.route(),
            waits,
            leads: false,
        }
    }
}

impl Cache {
    /// What to do about a fetch under the key for this request.
    pub(super) fn advice(&self, key: &Key, asker: &Asker<'_, impl Fields>, now: SystemTime) -> Advice {
        let mut advice = self.notes.advice(key, now);
        if matches!(advice, Advice::GiveUp(_)) {
            return advice;
        }
        for own in self.noted_for(key, asker, now).into_iter().flatten() {
            match (self.notes.advice(&own, now), &mut advice) {
                (Advice::GiveUp(failure), _) => return Advice::GiveUp(failure),
                (Advice::Coalesce(Some(own)), Advice::Coalesce(due) | Advice::GoAlone(due)) => {
                    due.get_or_insert(own);
                }
                (Advice::Coalesce(_) | Advice::GoAlone(_), _) => {}
            }
        }
        advice
    }

    /// The same for one that goes by itself, and is the only one to go where a back-off has just ended.
    pub(super) fn due(
        &self,
        key: &Key,
        asker: &Asker<'_, impl Fields>,
        now: SystemTime,
    ) -> Result<(), Failure> {
        match self.advice(key, asker, now) {
            Advice::GiveUp(failure) => Err(failure),
            Advice::Coalesce(due) | Advice::GoAlone(due) => due.map_or(Ok(()), |due| due.claim(now)),
        }
    }

    /// Notes that a fetch failed, and returns whose failure it is, if it is not everyone's. Where requests do not wait for each other,
    /// they do not share failures either.
    pub(super) fn note_failed(
        &self,
        key: Key,
        asker: &Asker<'_, impl Fields>,
        failed: Failed,
        now: SystemTime,
    ) -> Option<Key> {
        let coalescing = &asker.route.coalescing;
        // That the upstream gets no requests says nothing of this key.
        if !coalescing.enabled || failed.failure.is_refusal() {
            return None;
        }
        let own = self.personal(key, asker).filter(|_| !failed.failure.is_silence());
        let limits = coalescing.error_backoff;
        let Some(own) = own else {
            self.notes.failed(key, now, limits, failed);
            return None;
        };
        let blame = if self.notes.is_from_before_purge(&failed) {
            Blame::One
        } else {
            self.blame(key, own, asker, now)
        };
        if blame == Blame::All {
            self.notes.failed(self.keyer.identified(key), now, limits, failed.clone());
        }
        self.notes.failed(own, now, limits, failed);
        (blame == Blame::One).then_some(own)
    }

    /// Of whom it tells that the fetch failed which was sent for this client.
    fn blame(&self, key: Key, own: Key, asker: &Asker<'_, impl Fields>, now: SystemTime) -> Blame {
        if !asker.waits && !asker.leads {
            return Blame::One;
        }
        let blame = self.suspicions.failed(key, own, now, asker.route.coalescing.error_backoff.1);
        if !asker.waits || self.notes.is_uncacheable(&key, now) {
            // What each gets is its own.
            Blame::One
        } else if self.notes.has_failed(&key, now) {
            // So did the last one, for whom it was nobody's.
            Blame::All
        } else {
            blame
        }
    }

    /// Notes that a fetch brought an answer: whoever has these credentials need not wait any more.
    pub(super) fn note_answered(&self, key: Key, asker: &Asker<'_, impl Fields>, now: SystemTime) {
        let own = self.personal(key, asker);
        if let Some(own) = own {
            self.notes.forget(&own);
        }
        if self.suspicions.may_stand(now) {
            self.suspicions.answered(key, own, now);
            self.notes.forget(&self.keyer.identified(key));
        }
    }

    /// What is noted for this request in words, and how long it holds.
    pub(super) fn remembered(
        &self,
        key: &Key,
        asker: &Asker<'_, impl Fields>,
        now: SystemTime,
    ) -> Option<(&'static str, Duration)> {
        let own = self.noted_for(key, asker, now).into_iter().flatten();
        let own = own.filter_map(|own| self.notes.describe(&own, now)).max_by_key(|(_, left)| *left);
        own.or_else(|| self.notes.describe(key, now))
    }

    /// Whether the failure of a fetch is that of this request, too.
    pub(super) fn is_failure_of(&self, key: Key, asker: &Asker<'_, impl Fields>, failed: &Failed) -> bool {
        failed.whose.is_none_or(|whose| self.personal(key, asker) == Some(whose))
    }

    /// Under what failures are noted that hold for this request and not for everyone: those of its own, and those of all who tell who
    /// they are and wait for each other.
    fn noted_for(&self, key: &Key, asker: &Asker<'_, impl Fields>, now: SystemTime) -> [Option<Key>; 2] {
        let own = self.personal(*key, asker);
        let is_among_all = own.is_some() && asker.waits && self.suspicions.may_stand(now);
        [own, is_among_all.then(|| self.keyer.identified(*key))]
    }

    pub(super) fn personal(&self, key: Key, asker: &Asker<'_, impl Fields>) -> Option<Key> {
        self.keyer.personal(key, asker.headers, asker.credentials)
    }
}
