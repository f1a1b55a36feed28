//! The task that fetches for all who wait. It belongs to nobody's connection.

use super::collapse::{Landing, Shared};
use super::failure::Failed;
use super::fetch::{Arrival, Confirmed, Errand, ErrorPage, Fill, Keep, Shareable, Unkept};
use super::fill::{self, Fate, Kept};
use super::meeting::Departure;
use super::uncacheable::Meeting;
use crate::flight::{self, Landed, Leader};
use crate::policy::{self, Key, Selection};
use crate::store::Stored;
use crate::store::stamps::{Standing, Underway};
use crate::telemetry::{DuplicateCause, Flying};
use crate::upstream::{self, Urgency};
use http::{HeaderMap, Response, StatusCode};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::oneshot;

/// Fetches while somebody is aboard. What is for the leader's client alone goes into `handover`.
pub(super) async fn in_foreground(
    mut errand: Box<Errand>,
    mut leader: Leader<Key, Landing, Departure>,
    mut underway: Underway,
    flying: Flying,
    handover: oneshot::Sender<Response<upstream::Body>>,
) {
    let arrival = {
        let mut run = std::pin::pin!(errand.run(&mut underway, errand.clock.now()));
        loop {
            tokio::select! {
                biased;
                arrival = &mut run => break arrival,
                () = leader.abandoned() => match leader.retire() {
                    Ok(()) => return,
                    Err(back) => leader = back,
                },
            }
        }
    };
    if let Some((fill, kept)) = land(&errand, leader, underway, arrival, Some(handover)) {
        fill::fill(fill, kept, errand.coalescing()).await;
    }
    drop(flying);
}

/// Fetches although nobody waits.
pub(super) async fn in_background(
    mut errand: Box<Errand>,
    mut leader: Leader<Key, Landing, Departure>,
    mut underway: Underway,
    flying: Flying,
) {
    let arrival = loop {
        let arrival = errand.run(&mut underway, errand.clock.now()).await;
        if !matches!(arrival, Arrival::GaveWay) {
            break arrival;
        }
        match leader.retire() {
            Ok(()) => return,
            // Somebody waits for it by now: that is what the upstream's queue is for.
            Err(back) => leader = back,
        }
        errand.outgoing.urgency = Urgency::Foreground;
        // What they get is asked for from now on.
        underway = errand.cache.store.stamps().begin();
    };
    if let Some((fill, kept)) = land(&errand, leader, underway, arrival, None) {
        fill::fill(fill, kept, errand.coalescing()).await;
    }
    drop(flying);
}

/// Tells everyone aboard what came. Returns what is left to read of it, and what it is kept as.
fn land(
    errand: &Errand,
    leader: Leader<Key, Landing, Departure>,
    underway: Underway,
    arrival: Arrival,
    handover: Option<oneshot::Sender<Response<upstream::Body>>>,
) -> Option<(Fill, Option<Kept>)> {
    let (key, now) = (errand.noted_under(), errand.clock.now());
    if arrival.is_answer() {
        errand.cache.note_answered(key, &errand.asker(), now);
    }
    match arrival {
        Arrival::Shareable(Shareable { stored, withheld, fill, keep }) => {
            let kept = errand.store(&stored, keep);
            errand.note_shareable(key, &stored, keep, now);
            let landing = Landing::Shared(Shared {
                stored: stored.clone(),
                leader: Arc::clone(&errand.client_headers),
                withheld: (!withheld.is_empty()).then(|| Arc::new(withheld)),
                kept,
                forward_status: stored.status(),
            });
            if kept.is_ok() {
                return Some((fill, Some(errand.kept(stored, Some(leader.land(landing)), underway))));
            }
            leader.land_and_leave(landing);
            Some((fill, None))
        }
        Arrival::Confirmed(Confirmed { stored, withheld, keep }) => {
            let kept = errand.store(&stored, keep);
            errand.note_confirmed(key, &stored, keep, now);
            let forward_status = StatusCode::NOT_MODIFIED;
            let leaders = Arc::clone(&errand.client_headers);
            let withheld = (!withheld.is_empty()).then(|| Arc::new(withheld));
            let shared = Shared { stored, leader: leaders, withheld, kept, forward_status };
            leader.land_and_leave(Landing::Shared(shared));
            None
        }
        Arrival::Failed { failure, tags, page } => {
            let failed = errand.failed(failure, tags, underway.tick());
            let whose = errand.cache.note_failed(key, &errand.asker(), failed.clone(), now);
            let fill = match page {
                ErrorPage::None => None,
                ErrorPage::Shared(fill) => Some((fill, None)),
                ErrorPage::Private(response) => {
                    hand_over(handover, response);
                    None
                }
            };
            leader.land_and_leave(Landing::Failed(Failed { whose, ..failed }));
            fill
        }
        // Another may have been begun since, which all who are aboard can wait for; else one of them begins it.
        Arrival::InVain { purged } => {
            leader.land_and_leave(purged.map_or(Landing::Overtaken, Landing::Purged));
            None
        }
        // Only a fetch in the background gives way, and that is seen to before it lands.
        Arrival::GaveWay => None,
        Arrival::Private { response, why } => {
            let selection = Selection::of(response.headers(), &*errand.client_headers);
            errand.note_private(key, &selection, true, now);
            hand_over(handover, response);
            leader.land_and_leave(Landing::Departed(why, selection));
            None
        }
    }
}

/// Gives a response to the client of the leader. It may have left: then nobody wants the response.
fn hand_over(
    handover: Option<oneshot::Sender<Response<upstream::Body>>>,
    response: Response<upstream::Body>,
) {
    if let Some(handover) = handover {
        drop(handover.send(response));
    }
}

impl Errand {
    /// Puts a response into the store, unless it is not to be kept, or a purge has fallen since it was asked for. What was
    /// validated and got another answer leaves the store in any case.
    pub(super) fn store(&self, stored: &Stored, keep: Keep) -> Result<(), Unkept> {
        let metadata = stored.metadata();
        self.cache.proofs.note(self.key, metadata.sharing.with_credentials);
        flight::make_known(|| self.put(stored, keep), || self.tell(&metadata.selection))
    }

    /// Lets those who come know what has selected a response.
    fn tell(&self, selection: &Selection) {
        let met_by = self.among.as_ref().map_or(&[][..], |among| among.selecting().names());
        self.cache.selected_by(self.key, selection.names(), met_by, self.clock.now());
    }

    fn put(&self, stored: &Stored, keep: Keep) -> Result<(), Unkept> {
        let is_void = self.cache.store.standing(stored) == Standing::Void;
        match keep {
            Keep::Stored if !is_void => {
                let show = |twin: &Stored| self.compare(stored, twin);
                let is_stored = self.cache.store.put_and_show(self.key, stored, self.clock.now(), show);
                if is_stored && self.body.is_some() {
                    self.cache.notes.asked(self.scopes.uri, self.key);
                }
                if is_stored { Ok(()) } else { Err(Unkept::Superseded) }
            }
            Keep::Stored => {
                self.forget_validated();
                Err(Unkept::Purged)
            }
            Keep::WhileWaited(why) => {
                self.forget_validated();
                Err(why)
            }
        }
    }

    /// What comes may turn out to be for the same requests as what another fetch has brought meanwhile: then one of the two was one too
    /// many. Neither request could wait for the other, because they met by a field that selects elsewhere, but not here.
    fn compare(&self, stored: &Stored, twin: &Stored) {
        let metadata = stored.metadata();
        let is_unselected = |name| !metadata.selection.names().contains(name);
        let met_by_more =
            self.among.as_ref().is_some_and(|among| among.selecting().names().iter().any(is_unselected));
        if met_by_more
            && self.is_needed()
            && twin.was_needed()
            && metadata.freshness.request_time() < twin.metadata().freshness.response_time()
        {
            self.telemetry.duplicate_fetch(self.site.route_counted(Some(self.route)), DuplicateCause::Vary);
        }
    }

    /// An answer was for one client alone; by its reason it may tell of all answers to those whom it was selected for. They have
    /// met under `key` until now.
    pub(super) fn note_private(&self, key: Key, selection: &Selection, tells_of_all: bool, now: SystemTime) {
        self.forget_validated();
        self.cache.note_private(&self.meeting(key), selection, tells_of_all && self.is_like_others, now);
    }

    /// Who asks like this client, where they have met until now.
    fn meeting(&self, key: Key) -> Meeting<'_, HeaderMap> {
        let met_by = self.among.as_ref().map_or(&[][..], |among| among.selecting().names());
        Meeting { key, of: self.key, headers: &self.client_headers, met_by, coalescing: self.coalescing() }
    }

    /// See [`note_uncacheable`](super::Cache::note_uncacheable).
    fn note_uncacheable(&self, key: Key, own: Option<&Stored>, now: SystemTime) {
        self.cache.note_uncacheable(&self.meeting(key), own, now);
    }

    /// What comes under the key is for others, and whatever was remembered is over; unless who waits for it waits in vain: because each
    /// use needs a validation and nothing is kept that could be validated, or because it is too old.
    pub(super) fn note_shareable(&self, key: Key, stored: &Stored, keep: Keep, now: SystemTime) {
        match keep {
            Keep::WhileWaited(_) if stored.metadata().is_validated_always() => {
                self.note_uncacheable(key, None, now);
            }
            Keep::WhileWaited(_) => self.note_of_age(key, stored, None, now),
            Keep::Stored => self.note_of_age(key, stored, Some(stored), now),
        }
    }

    /// What was validated lives on, and whatever was remembered is over; unless it does for the one who asked alone: then the
    /// others depart, and should not wait for each other next.
    pub(super) fn note_confirmed(&self, key: Key, stored: &Stored, keep: Keep, now: SystemTime) {
        match keep {
            Keep::Stored => self.note_of_age(key, stored, Some(stored), now),
            Keep::WhileWaited(_) if self.is_like_others => self.note_uncacheable(key, None, now),
            Keep::WhileWaited(_) => {}
        }
    }

    fn note_of_age(&self, key: Key, stored: &Stored, own: Option<&Stored>, now: SystemTime) {
        let rules = &self.site.settings.routes[self.route].rules;
        if policy::is_too_old_to_wait_for(stored.metadata(), now, rules) {
            return self.note_uncacheable(key, own, now);
        }
        self.cache.notes.forget(&key);
        let meeting = self.meeting(key);
        if let Some(selecting) = self.cache.selecting_after(&meeting, own, now) {
            let lists = [selecting.names()].into_iter().chain(selecting.others());
            lists.for_each(|names| self.cache.notes.forget(&self.cache.place(&meeting, names)));
        }
    }

    /// Takes the response that was validated out of the store: the upstream has given another answer.
    pub(super) fn forget_validated(&self) {
        if let Some(old) = &self.validate {
            self.cache.store.remove(self.key, old.body(), self.clock.now());
        }
    }

    pub(super) fn kept(
        &self,
        stored: Stored,
        landed: Option<Landed<Key, Landing, Departure>>,
        underway: Underway,
    ) -> Kept {
        let cache = Arc::clone(&self.cache);
        Kept {
            cache,
            clock: self.clock,
            key: self.key,
            stored,
            replaced: self.validate.clone(),
            landed,
            _underway: underway,
            fate: Fate::Broken,
        }
    }
}
