//! What came of the fetch for one request, by what the origin saw.

use super::duplicates::{Story, Untold};
use super::memory::Window;
use super::{Asked, Fault, Fetch};
use crate::plan::Sharing;
use forebay::telemetry::DuplicateCause;
use std::time::Duration;
use tokio::time::Instant;

/// So much of a body is on its way at once, whoever reads it.
pub(super) const BUFFER_BYTES: usize = 32 << 10;

/// Under what requests meet: `None` before it is known what selects, and where nothing does.
pub(super) type Variant<'a> = Option<(&'a str, List)>;

/// By what fields requests meet. Each language is spoken in one region: by either list those meet who ask in the same language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Language,
    LanguageAndRegion,
}

/// Whether others could wait for a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way<'a> {
    /// It is for one client because of who it is.
    Personal(Variant<'a>),
    /// Nobody waits for it, although others could have.
    Alone(Variant<'a>),
    /// Whether it is one of those with credentials or cookies while those without meet elsewhere.
    Flight(Variant<'a>, bool),
}

/// The fetch for one request: all that was sent for it.
pub(super) struct Errand<'a> {
    pub(super) ask: &'a Asked,
    pub(super) start: Instant,
    /// Attempts after failures, and second questions after validations that came to nothing.
    pub(super) fetches: Vec<&'a Fetch>,
    pub(super) way: Way<'a>,
    /// Why others do not wait for it, where they find it under way.
    pub(super) alone: DuplicateCause,
}

/// What a fetch came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Came {
    /// What others may have, be it only those who wait; or the word that they may not have what was stored.
    Shared,
    /// What is for one client.
    Private,
    Failure,
    /// Everybody left.
    Nothing,
}

/// What a fetch says to those who come after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    /// They may wait for each other.
    Wait,
    /// It would be in vain.
    GoAlone,
    /// It fails: what was said before holds when that is over.
    Fails,
    /// At least it is answered.
    Answers,
    /// Either that they may wait or that it would be in vain: that depends on what is not seen from outside.
    Unseen,
}

impl<'a> Way<'a> {
    pub(super) fn key(self) -> Variant<'a> {
        match self {
            Self::Personal(key) | Self::Alone(key) | Self::Flight(key, _) => key,
        }
    }
}

impl Errand<'_> {
    pub(super) fn last(&self) -> &Fetch {
        self.fetches[self.fetches.len() - 1]
    }

    /// When it was known what came of it.
    pub(super) fn settled(&self) -> Option<Instant> {
        self.last().closed
    }

    pub(super) fn has_settled(&self, before: Instant) -> bool {
        self.settled().is_some_and(|settled| settled < before)
    }

    pub(super) fn is_airborne(&self, at: Instant) -> bool {
        self.settled().is_none_or(|settled| at < settled)
    }

    /// Whether a fetch that was sent before is still under way, its body included.
    pub(super) fn is_under_way(&self, at: Instant) -> Result<bool, Untold> {
        let fetch = self.last();
        // A flight is from its registration on, which may have to try for a connection twice.
        let is_flight = matches!(self.way, Way::Flight(..));
        let since = if is_flight { self.start } else { self.fetches[0].arrived };
        if since > at {
            return Ok(false);
        }
        if self.is_airborne(at) {
            return Ok(true);
        }
        let has_body = !fetch.has_failed() && fetch.answered.is_some() && !fetch.is_head;
        if !has_body || fetch.is_confirmation {
            return Ok(false);
        }
        // What does not fit into the buffers goes at the pace of its readers.
        if fetch.body.len() > BUFFER_BYTES {
            return Err(Untold::Unseen("the end of a body"));
        }
        Ok(fetch.ended.is_none_or(|ended| at < ended))
    }

    /// When the last question was asked that had been asked by then.
    pub(super) fn asked_until(&self, at: Instant) -> Instant {
        if self.asked() < at { self.asked() } else { self.start }
    }

    /// When the question was asked whose answer came: its age counts from there, and no line before that concerns it.
    pub(super) fn asked(&self) -> Instant {
        let before = self.fetches.iter().rev().skip(1).find(|before| !before.has_failed());
        before.and_then(|before| before.answered).unwrap_or(self.start)
    }
}

impl Fetch {
    fn has_failed(&self) -> bool {
        matches!(self.fault, Some(Fault::Reset | Fault::Silence | Fault::ServerError))
    }
}

impl<'a> Story<'a> {
    /// Whether a question of it was answered in vain, because a purge had made the stored response that was asked about useless.
    pub(super) fn is_asked_again(&self, errand: &Errand<'_>) -> bool {
        let mut asked = errand.start;
        let mut is_again = false;
        for (before, after) in errand.fetches.iter().zip(errand.fetches.iter().skip(1)) {
            let Some(answered) = before.answered.filter(|_| before.is_confirmation) else { continue };
            is_again |= self.is_hard_line_between(asked, answered);
            asked = after.arrived;
        }
        is_again
    }

    pub(super) fn came(&self, errand: &Errand<'_>) -> Came {
        let fetch = errand.last();
        // A validation of what is stored for others tells these, too.
        let is_for_one = !fetch.is_confirmation && (self.is_private(fetch) || fetch.is_head);
        let has_timed_out = fetch
            .closed
            .is_some_and(|closed| closed >= fetch.arrived + self.world.plan.upstream.head_timeout);
        if fetch.has_failed() && !fetch.is_failure && !has_timed_out {
            Came::Nothing
        } else if fetch.has_failed() {
            Came::Failure
        } else if fetch.answered.is_none() {
            Came::Nothing
        } else if is_for_one {
            Came::Private
        } else {
            Came::Shared
        }
    }

    /// Whether what it asked about had been made void when it was confirmed.
    pub(super) fn was_purged(&self, errand: &Errand<'_>) -> bool {
        let is_gone = |settled| self.is_hard_line_between(errand.asked(), settled);
        errand.last().is_confirmation && errand.settled().is_some_and(is_gone)
    }

    /// Whether what came of a fetch tells what selects: an answer for all does, and one for one client that tells of others.
    pub(super) fn tells_what_selects(&self, errand: &Errand<'_>) -> bool {
        match self.came(errand) {
            Came::Shared => !self.was_purged(errand),
            Came::Private => !errand.last().is_head && self.is_like_others(errand.ask),
            Came::Failure | Came::Nothing => false,
        }
    }

    /// Under what it is noted that the answers to this client's like are theirs alone, where the fetch says that: under what they meet
    /// from then on. `None`: that depends on what is not seen from outside.
    pub(super) fn noted_under(&self, errand: &Errand<'_>, settled: Instant) -> Option<Variant<'a>> {
        let known = self.key(errand.ask, settled);
        let Some((language, _)) = known else { return Some(known) };
        let own = self.resource.names_region(language);
        let own = Some((language, if own { List::LanguageAndRegion } else { List::Language }));
        let is_confirmation = errand.last().is_confirmation;
        let is_too_old = self.came(errand) == Came::Shared
            && self.resource.sharing != Sharing::NoCache
            && !(is_confirmation && self.is_private(errand.last()))
            && !self.is_line_between(errand.asked(), settled, true);
        match is_too_old {
            // Who has something stored to go by meets by its list alone.
            true if is_confirmation => Some(own),
            true if known == own => Some(own),
            true => self.is_kept(errand).map(|is_kept| if is_kept { own } else { known }),
            false => Some(known),
        }
    }

    /// Whether an answer says that it is not for others.
    pub(super) fn is_private(&self, fetch: &Fetch) -> bool {
        self.world.is_for_one(fetch)
    }

    /// What comes of a fetch says to those who come after it, if it says anything.
    pub(super) fn says(&self, errand: &Errand<'_>) -> Option<Says> {
        let fetch = errand.last();
        let is_head = fetch.is_head && !fetch.is_confirmation;
        // What one client gets by its credentials says nothing of what the others would get, also where it is refreshed for all.
        let word_of_one =
            if self.is_like_others(errand.ask) && !is_head { Says::GoAlone } else { Says::Answers };
        match self.came(errand) {
            Came::Nothing => None,
            Came::Shared if self.was_purged(errand) => None,
            Came::Failure if !self.is_backed_off(errand) => None,
            Came::Failure => {
                let has_credentials = errand.ask.visit.authorization || errand.ask.visit.cookie;
                // What may be due to these is not noted of the key.
                let may_be_due = has_credentials && fetch.fault == Some(Fault::ServerError);
                (!may_be_due).then_some(Says::Fails)
            }
            Came::Private => Some(word_of_one),
            Came::Shared if fetch.is_confirmation && self.is_private(fetch) => {
                (word_of_one == Says::GoAlone).then_some(word_of_one)
            }
            Came::Shared if self.resource.sharing == Sharing::NoCache && !fetch.is_confirmation => {
                Some(match self.is_kept(errand) {
                    Some(true) => Says::Wait,
                    Some(false) => Says::GoAlone,
                    None => Says::Unseen,
                })
            }
            // Who waits for what is stale on arrival waits in vain where only what is fresh is shared, unless each validates it anyway.
            Came::Shared => {
                let is_refused = self.world.plan.has_strict_sharing()
                    && self.resource.sharing != Sharing::NoCache
                    && !self.is_reused(errand);
                Some(if is_refused { Says::GoAlone } else { Says::Wait })
            }
        }
    }

    /// Whether the origin is left alone for a while after this failure. None is that was followed by a purge.
    fn is_backed_off(&self, errand: &Errand<'_>) -> bool {
        !self.world.plan.coalescing().error_backoff.0.is_zero() && self.is_in_time(errand)
    }

    /// Whether a failure says something of what comes: no purge has followed its fetch.
    pub(super) fn is_in_time(&self, errand: &Errand<'_>) -> bool {
        // The tags are those of what is validated.
        let with_tags = errand.last().is_conditional;
        errand.settled().is_none_or(|settled| !self.is_line_between(errand.asked(), settled, with_tags))
    }

    /// What one that asked for a range, and passed, says.
    pub(super) fn says_of_range(&self, errand: &Errand<'_>) -> Option<Says> {
        match self.came(errand) {
            Came::Nothing => None,
            Came::Failure => self.says(errand),
            Came::Private | Came::Shared => Some(Says::Answers),
        }
    }

    /// Whether the response is meant for the store when its head comes; `None` where that cannot be seen.
    fn is_kept(&self, errand: &Errand<'_>) -> Option<bool> {
        let (fetch, resource) = (errand.last(), self.resource);
        let settled = errand.settled()?;
        let is_explicit = fetch.question.is_empty() || resource.sharing != Sharing::NoCache;
        let tolerance = resource.stale_while_revalidate.max(resource.stale_if_error);
        let is_of_use = resource.sharing != Sharing::NoCache
            && (self.is_fresh(errand, settled)
                || settled < errand.asked() + Duration::from_secs(resource.lifetime + tolerance));
        let is_useful = is_explicit && (is_of_use || fetch.has_etag);
        let is_too_large = resource.says_length && fetch.body.len() as u64 > self.limit();
        if !is_useful || is_too_large {
            return Some(false);
        }
        self.memory.is_short(settled, fetch).map(|is_short| !is_short)
    }

    /// Whether a fetch that has landed can be found at this moment, because its body is still coming.
    pub(super) fn is_found(&self, errand: &Errand<'_>, at: Instant) -> Result<bool, Untold> {
        let fetch = errand.last();
        let Some(settled) = errand.settled() else { return Ok(false) };
        let outgrown = match self.memory.window(fetch) {
            Window::Since(since) => Some(since),
            Window::Never | Window::Perhaps(_) => None,
        };
        let end = outgrown.into_iter().chain(fetch.ended).min();
        let is_coming = settled <= at && end.is_none_or(|end| at < end);
        if !is_coming || self.came(errand) != Came::Shared || fetch.is_confirmation {
            return Ok(false);
        }
        if self.is_hard_line_between(errand.asked(), settled) {
            return Ok(false);
        }
        // A newer answer is stored, or an old one freshened by one to HEAD, and may have left the store again.
        let place = |wanted: &Errand<'_>| self.errands.iter().position(|other| std::ptr::eq(other, wanted));
        let asked = |errand: &Errand<'_>| (errand.asked(), place(errand));
        let after = self.errands.iter().filter(|other| asked(other) > asked(errand));
        let is_superseded = after.into_iter().any(|other| {
            other.settled().is_some_and(|other| other < settled)
                && (self.came(other) == Came::Shared || other.last().is_head)
                && (!self.resource.varies || other.last().language == fetch.language)
        });
        match (self.is_kept(errand), self.memory.window(fetch)) {
            (Some(false), _) => Ok(false),
            (Some(true), _) if is_superseded => Err(Untold::Unseen("a newer answer")),
            (Some(true), Window::Never | Window::Since(_)) => Ok(true),
            (Some(true), Window::Perhaps(since)) if at < since => Ok(true),
            (Some(true), Window::Perhaps(_)) | (None, _) => Err(Untold::Unseen("memory")),
        }
    }

    fn limit(&self) -> u64 {
        self.world.plan.coalescing().body_bytes_max
    }
}
