//! Who may wait for whose fetch, and where requests for the same meet.

use super::back_off::Asker;
use super::collapse::{Landing, Need};
use super::notes::Advice;
use super::plain::ClientFields;
use super::receive::Received;
use super::selecting::Selecting;
use super::settings::Coalescing;
use super::{Cache, Proxy};
use crate::flight::{self, Begun, Joined, Leader};
use crate::policy::{Credentials, Fields, Key, Keyer};
use crate::store::stamps::Underway;
use crate::store::{Stored, Variants};
use http::HeaderMap;
use std::sync::Arc;

/// The fetches that others wait for.
pub(super) type Flights = flight::Flights<Key, Landing, Departure>;

/// What is known of a flight before it lands.
#[derive(Debug)]
pub(super) struct Departure {
    tick: u64,
    /// The fields of the client whose request is sent.
    leader: Arc<HeaderMap>,
}

#[cfg(test)]
impl Departure {
    /// One for nobody in particular.
    pub(super) fn of(tick: u64) -> Self {
        Self { tick, leader: Arc::default() }
    }
}

#[cfg(test)]
impl Among {
    /// Those under one key, and these elsewhere.
    pub(super) fn under(key: Key, elsewhere: &[Key], headers: HeaderMap, selecting: Selecting) -> Self {
        Self { key, elsewhere: elsewhere.to_vec(), headers: Arc::new(headers).into(), selecting }
    }
}

impl Begun for Departure {
    fn tick(&self) -> u64 {
        self.tick
    }
}

/// Which fetches are for the same as another.
#[derive(Debug, Clone)]
pub(super) struct Among {
    /// Those under this key,
    pub(super) key: Key,
    /// and of those under these, begun by who knew less or more of what selects, the ones for requests with the same selecting fields.
    pub(super) elsewhere: Vec<Key>,
    pub(super) headers: ClientFields,
    selecting: Selecting,
}

impl Among {
    /// Those for a request with these fields, under whose key responses are stored.
    pub(super) fn of(keyer: &Keyer, key: Key, headers: ClientFields, selecting: Selecting) -> Self {
        let variant = |names: &[_]| keyer.variant(key, names, &headers);
        let (key, elsewhere) = (variant(selecting.names()), selecting.others().map(variant).collect());
        Self { key, elsewhere, headers, selecting }
    }

    /// Whether a fetch under another key is for the same, by the fields of the client that it was begun for.
    pub(super) fn is_for(&self, other: &impl Fields) -> bool {
        self.selecting.is_same(&self.headers, other)
    }

    /// By what fields it is told which are for the same.
    pub(super) fn selecting(&self) -> &Selecting {
        &self.selecting
    }
}

/// What a flight has to be for a request, which may have waited in vain.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Demand {
    /// Begun at this tick or later.
    pub(super) since: u64,
    /// It has had an error that may be due to whose request it waited for: where it does not tell who it is itself, it is to be a
    /// flight of those who do not.
    pub(super) has_failed: bool,
}

impl Proxy {
    /// Under which key fetches for this request meet: that of its variant, once it is known what selects.
    pub(super) fn flight_key(&self, received: &Received, selecting: &Selecting) -> Key {
        self.cache.keyer.variant(received.keyed.key, selecting.names(), &*received.headers)
    }

    /// Which fetches are for the same as this request.
    pub(super) fn among(&self, received: &Received, selecting: &Selecting) -> Among {
        let headers = ClientFields::from(Arc::clone(&received.headers));
        Among::of(&self.cache.keyer, received.keyed.key, headers, selecting.clone())
    }

    /// Under which key this request looks for a flight of those under `key`: there is one for those who tell who they are, and one for
    /// those who do not, while it may be that fetches fail because of whose they are. A purge may have ended that, or a list of fields
    /// that has grown have left it behind: who does not tell and has had their error goes apart then.
    fn meeting_key(&self, received: &Received, key: &Key, demand: Demand) -> Key {
        let (cache, tells_who) = (&self.cache, received.credentials.tell_who());
        match cache.suspicions.stands(key, self.clock.now()) {
            true if tells_who => cache.keyer.identified(*key),
            false if !tells_who && demand.has_failed => cache.keyer.anonymous(*key),
            true | false => *key,
        }
    }

    /// Joins the flight that there is for this request, or registers one, unless what there is is not what it demands, or was registered
    /// before a purge of what is asked for. Says under which of the keys, too.
    pub(super) fn join(
        &self,
        received: &Received,
        among: &Among,
        demand: Demand,
    ) -> (Joined<Key, Landing, Departure>, Key, Option<Underway>) {
        let stamps = self.cache.store.stamps();
        let since = self.since(received).max(demand.since);
        let mut underway = None;
        let (own, elsewhere) = self.places(received, among, demand);
        let begin = || {
            let begun = stamps.begin();
            let tick = begun.tick();
            underway = Some(begun);
            Departure { tick, leader: Arc::clone(&received.headers) }
        };
        let is_for = |flight: &Departure| among.is_for(&*flight.leader);
        let seats_max = self.seats_max(received);
        let (joined, at) = self.cache.flights.meet((&own, &elsewhere), since, seats_max, is_for, begin);
        let place = elsewhere.iter().position(|place| place == at);
        (joined, place.map_or(among.key, |place| among.elsewhere[place]), underway)
    }

    /// Under which keys this request looks for a flight, the own one first: see [`meeting_key`](Self::meeting_key).
    fn places(&self, received: &Received, among: &Among, demand: Demand) -> (Key, Vec<Key>) {
        let own = self.meeting_key(received, &among.key, demand);
        let is_apart = own != among.key && received.credentials.tell_who();
        let elsewhere = among.elsewhere.iter().map(|key| {
            if is_apart { self.cache.keyer.identified(*key) } else { self.meeting_key(received, key, demand) }
        });
        (own, elsewhere.collect())
    }

    /// Under which key this request would look for a flight and find one, or else begin it. For explanations.
    pub(super) fn would_meet(&self, received: &Received, among: &Among) -> Key {
        let (own, elsewhere) = self.places(received, among, Demand::default());
        let is_for = |flight: &Departure| among.is_for(&*flight.leader);
        let ticks = self.since(received)..u64::MAX;
        let met = |key: &&Key| self.cache.flights.is_airborne(&[**key], ticks.clone(), is_for);
        elsewhere.iter().find(met).copied().unwrap_or(own)
    }

    /// Whether more is known by now than when this request looked, before it came to lead: an answer for it, what
    /// selects, where those like it meet, or that there is no use in waiting. What a fetch brings is made known before its flight leaves the table, so that
    /// whoever leads the next one sees it here.
    pub(super) fn is_overtaken(
        self: &Arc<Self>,
        received: &Received,
        need: &Need,
        among: &Among,
        demand: Demand,
        leader: &Leader<Key, Landing, Departure>,
    ) -> bool {
        // Before it is looked for what lies stored: what has landed since was stored before it did.
        if self.is_preceded(received, among, demand, leader) {
            return true;
        }
        let Err(newer) = self.look_again(received, need) else { return true };
        let advice = self.cache.advice(&among.key, &Asker::of(received, need.waits), self.clock.now());
        self.flight_key(received, &newer.selecting) != among.key
            || self.meeting_key(received, &among.key, demand) != *leader.key()
            || !matches!(advice, Advice::Coalesce(_))
    }

    /// Whether another has begun a flight for the same a little earlier, that knew less or more of what selects, and that is not too old
    /// to be [joined](Self::join).
    pub(super) fn is_preceded(
        &self,
        received: &Received,
        among: &Among,
        demand: Demand,
        leader: &Leader<Key, Landing, Departure>,
    ) -> bool {
        let (_, elsewhere) = self.places(received, among, demand);
        let ticks = self.since(received).max(demand.since)..leader.tick();
        self.cache.flights.is_airborne(&elsewhere, ticks, |flight| among.is_for(&*flight.leader))
    }

    /// Whether a newer response has taken the place of this one.
    pub(super) fn is_refreshed(&self, received: &Received, stored: &Stored) -> bool {
        let variants = self.cache.store.lookup(received.keyed.key, self.clock.now());
        let is_there =
            |variants: Variants| variants.responses().iter().any(|one| one.tick() == stored.tick());
        !variants.is_some_and(is_there)
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
        let coalescing = &received.route().coalescing;
        self.cache.may_wait(coalescing, received.credentials, received.keyed.key, stale)
    }
}

impl Cache {
    /// The same of a request with these credentials.
    pub(super) fn may_wait(
        &self,
        coalescing: &Coalescing,
        credentials: Credentials,
        key: Key,
        stale: Option<&Stored>,
    ) -> bool {
        is_like_others(coalescing, credentials)
            || coalescing.enabled
                && has_joinable_cookies(coalescing, credentials)
                && (stale.is_some_and(|stored| stored.metadata().sharing.with_credentials)
                    || self.proofs.has(key))
    }
}

/// Whether a request with these credentials may wait for the fetch of another whatever is known of the response, and so learns for
/// others too what came of its own: what one client gets by its credentials says nothing of what the others would get.
pub(super) fn is_like_others(coalescing: &Coalescing, credentials: Credentials) -> bool {
    coalescing.enabled
        && (coalescing.join_with_authorization || !credentials.authorization)
        && has_joinable_cookies(coalescing, credentials)
}

fn has_joinable_cookies(coalescing: &Coalescing, credentials: Credentials) -> bool {
    coalescing.join_with_cookies || !credentials.cookies
}
