//! Who may wait for whose fetch, and where requests for the same meet.

use super::Proxy;
use super::back_off::Asker;
use super::collapse::{Landing, Need};
use super::notes::Advice;
use super::receive::Received;
use crate::flight::Joined;
use crate::policy::Key;
use crate::store::stamps::Underway;
use crate::store::{Stored, Variants};
use crate::telemetry::DuplicateCause;
use http::HeaderName;
use std::sync::Arc;

impl Proxy {
    /// Under which key fetches for this request meet: that of its variant, once it is known what selects.
    pub(super) fn flight_key(&self, received: &Received, selecting: &[HeaderName]) -> Key {
        self.cache.keyer.variant(received.keyed.key, selecting, &*received.headers)
    }

    /// Under which key this request looks for a flight of those under `key`: there is one for those who tell who they are, and one for
    /// those who do not, while it may be that fetches fail because of whose they are.
    pub(super) fn meeting_key(&self, received: &Received, key: &Key) -> Key {
        let cache = &self.cache;
        if cache.suspicions.stands(key, self.clock.now()) && received.credentials.tell_who() {
            cache.keyer.identified(*key)
        } else {
            *key
        }
    }

    /// Joins the flight under `key`, unless it was registered before tick `since` or before a purge of what is asked for.
    pub(super) fn join(
        &self,
        received: &Received,
        key: &Key,
        since: u64,
    ) -> (Joined<Key, Landing>, Option<Underway>) {
        let stamps = self.cache.store.stamps();
        let since = self.since(received).max(since);
        let mut underway = None;
        let meeting = self.meeting_key(received, key);
        let joined = self.cache.flights.join(&meeting, since, self.seats_max(received), || {
            let begun = stamps.begin();
            let tick = begun.tick();
            underway = Some(begun);
            tick
        });
        (joined, underway)
    }

    /// Whether more is known by now than when this request looked, before it came to lead the flight under `key`: an answer for it, what
    /// selects, where those like it meet, or that there is no use in waiting. What a fetch brings is made known before its flight leaves the table, so that
    /// whoever leads the next one sees it here.
    pub(super) fn is_overtaken(
        self: &Arc<Self>,
        received: &Received,
        need: &Need,
        key: &Key,
        met: &Key,
    ) -> bool {
        let Err(newer) = self.look_again(received, need, None) else { return true };
        let advice = self.cache.advice(key, &Asker::of(received), self.clock.now());
        self.flight_key(received, &newer.selecting) != *key
            || self.meeting_key(received, key) != *met
            || !matches!(advice, Advice::Coalesce(_))
    }

    /// Whether a newer response has taken the place of this one.
    pub(super) fn is_refreshed(&self, received: &Received, stored: &Stored) -> bool {
        let variants = self.cache.store.lookup(received.keyed.key, self.clock.now());
        let is_there =
            |variants: Variants| variants.responses().iter().any(|one| one.tick() == stored.tick());
        !variants.is_some_and(is_there)
    }

    /// Why a flight under `key` does not join another in the air, if there is one: that it replaces, or that of the URI,
    /// begun before it was known what selects, whose response may turn out to be of this variant.
    pub(super) fn passes_over(
        &self,
        received: &Received,
        key: &Key,
        replaced: bool,
    ) -> Option<DuplicateCause> {
        if replaced {
            return Some(DuplicateCause::Purge);
        }
        let unselected = &received.keyed.key;
        let tick = self.cache.flights.airborne(unselected).filter(|_| unselected != key)?;
        let is_purged = tick < self.since(received);
        Some(if is_purged { DuplicateCause::Purge } else { DuplicateCause::Vary })
    }

    /// The tick of the newest line that was drawn through what this request asks for: an older flight is not for it.
    pub(super) fn since(&self, received: &Received) -> u64 {
        let stamps = self.cache.store.stamps();
        if stamps.latest() == 0 { 0 } else { stamps.newest_over(&received.scopes()) }
    }

    /// How many seats one fetch may have, given how many wait in all. The first is that of the client who leads.
    pub(super) fn seats_max(&self, received: &Received) -> usize {
        let waiters = usize::try_from(self.telemetry.waiters()).unwrap_or(0);
        let is_full = waiters >= received.site.settings.waiters_max;
        if is_full { 0 } else { received.route().coalescing.waiters_max.saturating_add(1) }
    }

    /// Whether a request may wait for the fetch of another: one with credentials, by default, may not before a response has proved
    /// to be for everyone. What lands has to prove it once more.
    pub(super) fn may_wait(&self, received: &Received, stale: Option<&Stored>) -> bool {
        is_like_others(received)
            || received.route().coalescing.enabled
                && has_joinable_cookies(received)
                && (stale.is_some_and(|stored| stored.metadata().sharing.with_credentials)
                    || self.cache.proofs.has(received.keyed.key))
    }
}

/// Whether a request may wait for the fetch of another whatever is known of the response, and so learns for others too what came
/// of its own: what one client gets by its credentials says nothing of what the others would get.
pub(super) fn is_like_others(received: &Received) -> bool {
    let coalescing = &received.route().coalescing;
    coalescing.enabled
        && (coalescing.join_with_authorization || !received.credentials.authorization)
        && has_joinable_cookies(received)
}

fn has_joinable_cookies(received: &Received) -> bool {
    received.route().coalescing.join_with_cookies || !received.credentials.cookies
}
