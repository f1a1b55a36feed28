//! What is remembered of a key: that each fetches for itself, and that those with credentials may wait.

use super::Asked;
use super::duplicates::{Story, Untold};
use super::errands::{Came, Errand, Says, Variant, Way};
use crate::plan::Sharing;
use std::time::Duration;
use tokio::time::Instant;

impl Story<'_> {
    /// Whether an answer under the key was for one client alone, not long ago, and none since says otherwise.
    pub(super) fn is_in_vain(&self, key: Variant<'_>, at: Instant) -> Result<bool, Untold> {
        let note = self.note(key, at);
        match note.until {
            // After a failure one asks for all.
            _ if note.is_failing => Ok(false),
            Some(until) if at < until && note.is_unseen => Err(Untold::Unseen("the note")),
            Some(until) => Ok(at < until),
            None => Ok(false),
        }
    }

    /// What is remembered of the key.
    pub(super) fn note(&self, key: Variant<'_>, at: Instant) -> Note {
        let ttl = self.world.plan.coalescing().hit_for_miss_ttl;
        let here = |errand| {
            let (settled, says) = (Errand::settled(errand)?, self.says(errand)?);
            Some((settled, self.says_under(key, errand, settled, says)?))
        };
        let of_ranges = self.ranges.iter().filter(|errand| errand.way.key() == key);
        let of_ranges = of_ranges.filter_map(|errand| Some((errand.settled()?, self.says_of_range(errand)?)));
        let mut told: Vec<(Instant, Says)> = self
            .errands
            .iter()
            .filter_map(here)
            .chain(of_ranges)
            .filter(|(settled, _)| *settled <= at)
            .collect();
        told.sort_by_key(|(settled, _)| *settled);
        let mut note = Note::default();
        for (settled, says) in told {
            note.takes(says, settled, ttl);
        }
        note
    }

    /// What a fetch that says this says under a key: that its like are alone is noted under what they meet by from then on, that they may
    /// wait wherever they may meet, and all else where they met.
    fn says_under(
        &self,
        key: Variant<'_>,
        errand: &Errand<'_>,
        settled: Instant,
        says: Says,
    ) -> Option<Says> {
        let (is_here, of) = (errand.way.key() == key, key.map(|(language, _)| language));
        let is_like = is_here || of == Some(errand.ask.language());
        match says {
            Says::Wait | Says::Unseen => is_like.then_some(says),
            Says::GoAlone => match self.noted_under(errand, settled) {
                Some(place) if place == key => Some(says),
                Some(_) => is_here.then_some(Says::Answers),
                None => is_like.then_some(Says::Unseen),
            },
            Says::Fails | Says::Answers => is_here.then_some(says),
        }
    }

    /// Whether those who send a request like this one wait for each other whatever is known of the key.
    pub(super) fn is_like_others(&self, ask: &Asked) -> bool {
        let coalescing = self.world.plan.coalescing();
        (coalescing.join_with_authorization || !ask.visit.authorization) && self.has_joinable_cookies(ask)
    }

    fn has_joinable_cookies(&self, ask: &Asked) -> bool {
        self.world.plan.coalescing().join_with_cookies || !ask.visit.cookie
    }

    /// Whether a fetch is that of a request which could wait for others when it asked.
    pub(super) fn waits(&self, errand: &Errand<'_>) -> bool {
        let is_personal = matches!(errand.way, Way::Personal(_));
        self.is_like_others(errand.ask) || !is_personal && self.has_joinable_cookies(errand.ask)
    }

    /// Whether a request may wait for others: also one with credentials, where what is stored, or has been, is for everyone.
    pub(super) fn may_wait(&self, errand: &Errand<'_>) -> Result<bool, Untold> {
        let (ask, first) = (errand.ask, errand.fetches[0]);
        if self.is_like_others(ask) || !self.has_joinable_cookies(ask) {
            return Ok(self.is_like_others(ask));
        }
        let mut told: Vec<_> = self
            .errands
            .iter()
            .filter_map(|other| Some((other.settled()?, self.permits_credentials(other)?)))
            .filter(|(settled, _)| *settled <= ask.began)
            .collect();
        told.sort_by_key(|(settled, _)| *settled);
        match told.last() {
            Some((_, true)) => Ok(true),
            // It asks about what is stored, which is for everyone.
            Some((_, false)) if first.is_conditional && errand.start == ask.began => Ok(true),
            // Something else may still be stored, without a validator or for another variant.
            Some((_, false)) if told.iter().any(|(_, permits)| *permits) => {
                Err(Untold::Unseen("what is stored"))
            }
            Some((_, false)) | None => Ok(false),
        }
    }

    /// Whether the answers for all say that they are for those with credentials too.
    fn says_public(&self) -> bool {
        self.resource.says_public && self.resource.sharing != Sharing::NoCache
    }

    /// Whether what came of a fetch may be shared with requests that carry credentials, if it says anything of that.
    fn permits_credentials(&self, errand: &Errand<'_>) -> Option<bool> {
        let fetch = errand.last();
        match self.came(errand) {
            Came::Nothing | Came::Failure => None,
            Came::Shared if self.was_purged(errand) => None,
            Came::Private => (!fetch.is_head).then_some(false),
            Came::Shared => Some(self.says_public() && !fetch.is_private),
        }
    }
}

/// What is remembered of a key.
#[derive(Debug, Default)]
pub(super) struct Note {
    /// Until when everyone goes alone.
    pub(super) until: Option<Instant>,
    /// That is not seen from outside.
    is_unseen: bool,
    /// The last fetch failed.
    is_failing: bool,
}

impl Note {
    /// What a fetch says at this moment, and for how long.
    fn takes(&mut self, says: Says, at: Instant, ttl: Duration) {
        match says {
            Says::Wait => *self = Self::default(),
            Says::Fails => self.is_failing = true,
            Says::Answers => self.is_failing = false,
            Says::GoAlone | Says::Unseen => {
                // What was noted a short while ago is not noted again.
                let is_noted =
                    !self.is_failing && self.until.is_some_and(|until| until > at + ttl - ttl / 10);
                if is_noted && !self.is_unseen && says == Says::GoAlone {
                    return;
                }
                self.is_unseen = says == Says::Unseen || is_noted;
                (self.until, self.is_failing) = (Some(at + ttl), false);
            }
        }
    }
}
