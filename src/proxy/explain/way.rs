//! How a request that needs the upstream would come to its fetch.

use super::{Fetch, How};
use crate::proxy::Proxy;
use crate::proxy::back_off::Asker;
use crate::proxy::meeting::Among;
use crate::proxy::notes::Advice;
use crate::proxy::receive::Received;
use crate::store::Stored;
use crate::store::stamps::Standing;

impl Proxy {
    /// How a request that needs the upstream would come to its fetch: the questions of `collapse`, in their order.
    pub(super) fn way(&self, received: &Received, stale: Option<&Stored>, among: &Among) -> Fetch {
        let key = &among.key;
        let waits = self.may_wait(received, stale);
        let advice = self.cache.advice(key, &Asker::of(received, waits), received.now);
        let is_probed = match &advice {
            Advice::Coalesce(Some(due)) => !waits && due.is_claimed(received.now),
            Advice::GoAlone(Some(due)) => due.is_claimed(received.now),
            Advice::Coalesce(None) | Advice::GoAlone(None) | Advice::GiveUp(_) => false,
        };
        let meeting = self.would_meet(received, among);
        let (how, why) = if matches!(advice, Advice::GiveUp(_)) {
            (How::BackOff, "the last fetch failed, and the next is not due yet")
        } else if is_probed {
            (How::BackOff, "the last fetch failed, and another that tries again has not been answered yet")
        } else if !received.route().coalescing.enabled {
            (How::Alone, "the route does not coalesce")
        } else if !waits {
            (
                How::Alone,
                "the request has credentials or cookies, and the route does not let such requests wait",
            )
        } else if stale.is_some_and(|stored| stored.metadata().is_validated_always()) {
            (How::Alone, "no-cache: each request needs a validation of its own")
        } else if matches!(advice, Advice::GoAlone(_)) {
            (How::Alone, "hit-for-miss: the last answers could not be shared")
        } else {
            match self.cache.flights.look(&meeting) {
                None if self.cache.suspicions.stands(key, received.now) => (
                    How::Lead,
                    "no fetch is in flight; those with credentials or cookies and those without do not wait for \
                     each other, because one has failed, perhaps for what was sent with it",
                ),
                None => (How::Lead, "no fetch is in flight"),
                Some(seen) if seen.tick < self.since(received) || self.is_purged(received, seen.tick) => {
                    (How::Replace, "the fetch in flight was begun before a purge of what is asked for")
                }
                Some(_)
                    if stale.is_some()
                        && !self.cache.flights.is_airborne(&[meeting], 0..u64::MAX, |_| true) =>
                {
                    (How::Replace, "the response whose body is still coming is stale already")
                }
                Some(seen) if seen.seats >= self.seats_max(received) => {
                    (How::AtLimit, "as many requests wait as may")
                }
                Some(_) => (How::Follow, "a fetch is in flight"),
            }
        };
        Fetch { how, why: why.to_owned() }
    }

    /// Whether what was asked for at this tick, and is coming, has been purged by what is known of it since its head came.
    fn is_purged(&self, received: &Received, tick: u64) -> bool {
        let found = self.cache.store.look(received.keyed.key);
        found.iter().any(|(standing, stored)| stored.tick() == tick && *standing != Standing::Valid)
    }

    /// Why what is stale is not refreshed, if it is not.
    pub(super) fn unrefreshed(
        &self,
        received: &Received,
        stale: &Stored,
        among: &Among,
    ) -> Option<&'static str> {
        let asker = Asker::of(received, self.may_wait(received, Some(stale)));
        match self.cache.advice(&among.key, &asker, received.now) {
            Advice::GoAlone(_) => return Some("what would come of it is not for all"),
            Advice::GiveUp(_) => return Some("the last fetch failed, and the next is not due yet"),
            Advice::Coalesce(_) => {}
        }
        let seen = self.cache.flights.look(&self.would_meet(received, among));
        seen.filter(|seen| seen.tick >= self.since(received)).map(|_| "a fetch is in flight")
    }
}
