//! Whose fetches fail because of who they are, as far as the proxy may think so.

use super::duplicates::{Followed, Story};
use super::errands::{Came, Errand, Variant, Way};
use super::{Asked, Fault, Whose};
use std::time::Duration;
use tokio::time::Instant;

/// For so long it counts that others have been answered well; a suspicion stands twice as long.
pub(super) const MEMORY: Duration = Duration::from_secs(1);

/// That fetches for a key fail because of whose they are.
#[derive(Debug, Clone, Copy)]
struct Suspicion {
    whose: Whose,
    until: Instant,
    answered: Option<Instant>,
}

impl<'a> Story<'a> {
    /// Whether a request meets those only who tell who they are, as it does.
    pub(super) fn is_apart(&self, ask: &Asked, key: Variant<'_>, at: Instant) -> bool {
        ask.visit.whose().is_some() && self.suspicion(key, at, None).is_some_and(|found| at < found.until)
    }

    /// Whether a request that tells nothing of who it is, and has had the error of one that does, meets others like it only: nothing is
    /// suspected any more where it looks, so that those who tell meet there too. Which of the others have had that error is not modelled.
    pub(super) fn is_shy(&self, ask: &Asked, key: Variant<'_>, at: Instant) -> bool {
        ask.visit.whose().is_none() && self.suspicion(key, at, None).is_none_or(|found| found.until <= at)
    }

    /// Whether a fetch that failed may have done so because of whose it was, as long as nothing speaks against it, and that is
    /// not who asks.
    pub(super) fn is_of_another(&self, landed: &Errand<'a>, ask: &Asked) -> bool {
        let fetch = landed.last();
        fetch.fault == Some(Fault::ServerError)
            && fetch.whose().is_some_and(|whose| ask.visit.whose() != Some(whose))
            && !self.is_of_all(landed)
    }

    /// Whether it is the second in a row that may have failed because of whose it was, for different clients who wait for others.
    pub(super) fn is_of_all(&self, landed: &Errand<'a>) -> bool {
        let (fetch, key) = (landed.last(), landed.way.key());
        let (Some(whose), Some(at)) = (fetch.whose(), landed.settled()) else { return false };
        let before = self.suspicion(key, at, Some(landed)).filter(|before| at < before.until);
        let is_second = before.is_some_and(|before| {
            before.whose != whose && before.answered.is_none_or(|answered| at >= answered + MEMORY)
        });
        // What is from before a purge tells of nobody else, nor what fails where each gets its own.
        let is_own = !self.is_in_time(landed)
            || !self.waits(landed)
            || self.note(key, at).until.is_some_and(|until| at < until);
        !is_own && is_second
    }

    /// How many of these fetches have failed, and told of it.
    pub(super) fn failures(&self, followed: &[Followed<'_, 'a>]) -> usize {
        let has_failed = |followed: &&Followed<'_, 'a>| {
            self.came(followed.flight) == Came::Failure && !self.is_outdated_failure(**followed)
        };
        followed.iter().filter(has_failed).count()
    }

    /// Those of the fetches of which it was known at this moment what had come of them, in that order.
    pub(super) fn settled_until(
        &self,
        at: Instant,
        is_one: impl Fn(&Errand<'a>) -> bool,
    ) -> Vec<&Errand<'a>> {
        let all = self.errands.iter().chain(&self.ranges).filter(|errand| is_one(errand));
        let mut settled: Vec<_> =
            all.filter(|errand| errand.settled().is_some_and(|settled| settled <= at)).collect();
        settled.sort_by_key(|errand| errand.settled());
        settled
    }

    /// What is suspected of the key at a moment, before this errand has said anything.
    fn suspicion(&self, key: Variant<'_>, at: Instant, before: Option<&Errand<'a>>) -> Option<Suspicion> {
        let is_other = |errand: &&Errand<'_>| before.is_none_or(|before| !std::ptr::eq(*errand, before));
        let mut found: Option<Suspicion> = None;
        let of_key = self.settled_until(at, |errand| errand.way.key() == key);
        for errand in of_key.into_iter().filter(is_other) {
            let at = errand.settled().unwrap_or(at);
            found = found.filter(|found| at < found.until);
            let (fetch, whose) = (errand.last(), errand.last().whose());
            match (self.came(errand), whose) {
                (Came::Failure, Some(whose)) if fetch.fault == Some(Fault::ServerError) => {
                    let is_waited_for = self.waits(errand) || matches!(errand.way, Way::Flight(..));
                    if is_waited_for && self.is_in_time(errand) {
                        let answered = found.and_then(|found| found.answered);
                        found = Some(Suspicion { whose, until: at + MEMORY * 2, answered });
                    }
                }
                (Came::Failure | Came::Nothing, _) => {}
                (Came::Private | Came::Shared, whose) => {
                    found = found.filter(|found| whose != Some(found.whose));
                    found = found.map(|found| Suspicion { answered: Some(at), ..found });
                }
            }
        }
        found
    }
}
