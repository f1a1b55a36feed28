//! Which fetches were more than was needed, and why, by what the origin and the clients saw.
//!
//! A fetch that others could have waited for was *needed* if, when its request was made, no such fetch for the key was
//! waiting for its head, and the last answer was not known to be in vain. Every other is a duplicate, and has a cause. Where two
//! things happened in the same moment, or while a body was on its way, it cannot be told from outside what the proxy knew:
//! then a fetch may have been either, and the counters have to lie in between.

use super::{Fetch, State, World};
use crate::plan::Sharing;
use forebay::telemetry::{DuplicateCause, Telemetry};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// At least and at most so many.
#[derive(Debug, Clone, Copy, Default)]
struct Bounds {
    low: u64,
    high: u64,
}

/// How sure it is that something is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sure {
    No,
    Perhaps,
    Yes,
}

/// A fetch and all its attempts.
struct Chain<'a> {
    fetch: &'a Fetch,
    /// When it was known what came of it.
    closed: Instant,
    /// When its body had been sent.
    ended: Instant,
    /// Whether it began before it was known what selects.
    is_unselected: Sure,
    /// Whether others could wait for it.
    is_found: Sure,
}

/// For each of the causes.
type Counts = [Bounds; 3];

const CAUSES: [DuplicateCause; 3] =
    [DuplicateCause::Uncacheable, DuplicateCause::Vary, DuplicateCause::Purge];

impl World {
    /// Do the duplicates that were counted lie between the bounds?
    pub(super) fn check_duplicates(&self, state: &mut State, telemetry: &Telemetry) {
        let is_disturbed =
            state.left > 0 || self.plan.failure_rate > 0 || !state.failures.is_empty() || self.has_limits();
        if is_disturbed {
            return;
        }
        for route in 0..2 {
            let resources = || self.plan.resources.iter().filter(move |resource| resource.route == route);
            // What is validated for each request, and what is now of this variant and now for nobody, has no simple answer.
            let joins_with_credentials = self.plan.coalescing().join_with_authorization;
            let is_simple = resources().all(|resource| match resource.sharing {
                Sharing::Shared => !resource.varies || resource.says_public || !joins_with_credentials,
                Sharing::Private | Sharing::Changing => !resource.varies,
                Sharing::NoCache => false,
            });
            if !is_simple {
                continue;
            }
            let mut expected = Counts::default();
            let mut total = Bounds::default();
            for (key, chains) in self.by_key(state, route) {
                self.judge(state, key, chains, &mut expected, &mut total);
            }
            let counted = |cause| telemetry.route(route).duplicates(cause);
            let mut wrongs = Vec::new();
            for (cause, bounds) in CAUSES.into_iter().zip(expected) {
                wrongs.extend(bounds.excludes(counted(cause), &format!("{cause:?}")));
            }
            wrongs.extend(total.excludes(CAUSES.map(counted).iter().sum(), "all"));
            state.exact += u64::from(total.low == total.high && total.low > 0);
            for wrong in wrongs {
                self.violated(state, format!("duplicates on route {route}: {wrong}"));
            }
        }
    }

    /// The fetches that others were allowed to wait for, by resource and question, in the order of their arrival.
    fn by_key<'a>(&self, state: &'a State, route: usize) -> BTreeMap<(usize, &'a str), Vec<Vec<&'a Fetch>>> {
        let mut keys: BTreeMap<_, Vec<Vec<&Fetch>>> = BTreeMap::new();
        for fetch in &state.fetches {
            // A range of what is in vain passes, and is none of the cache's business.
            let is_other = self.plan.resources[fetch.resource].route != route || fetch.is_range;
            if is_other || !self.may_share(fetch) {
                continue;
            }
            let chains = keys.entry((fetch.resource, fetch.question.as_str())).or_default();
            // A second question after a validation that came to nothing belongs to the same fetch.
            match chains.iter_mut().find(|chain| chain[0].owner == fetch.owner) {
                Some(chain) => chain.push(fetch),
                None => chains.push(vec![fetch]),
            }
        }
        keys
    }

    fn judge<'a>(
        &self,
        state: &'a State,
        (resource, question): (usize, &str),
        fetches: Vec<Vec<&'a Fetch>>,
        expected: &mut Counts,
        total: &mut Bounds,
    ) {
        let varies = self.plan.resources[resource].varies;
        let mut chains: Vec<Chain<'a>> = Vec::new();
        for attempts in fetches {
            let (first, last) = (attempts[0], attempts[attempts.len() - 1]);
            let asked = state.asks[&first.owner];
            let mut chain = Chain {
                fetch: first,
                closed: last.closed.unwrap_or(last.arrived),
                ended: last.ended.unwrap_or(last.arrived),
                is_unselected: self.is_unselected(state, (resource, question), first.arrived),
                is_found: Sure::Yes,
            };
            let in_vain = self.is_in_vain(state, (resource, question), asked);
            let beside: Vec<(Sure, &Chain<'_>)> = chains
                .iter()
                .map(|other| {
                    let is_same = !varies || other.fetch.language == first.language;
                    let is_variant = if is_same { Sure::Yes } else { other.is_unselected };
                    (other.was_in_flight(asked).min(is_variant), other)
                })
                .filter(|(sure, _)| *sure > Sure::No)
                .collect();
            let in_flight = beside.iter().map(|(sure, _)| *sure).max().unwrap_or(Sure::No);
            let is_duplicate = in_flight.max(in_vain);
            let causes = self.causes(state, first, &chain, &beside, in_vain);
            if is_duplicate == Sure::Yes && causes == [DuplicateCause::Uncacheable] || in_vain == Sure::Yes {
                chain.is_found = Sure::No;
            } else if is_duplicate > Sure::No && causes.contains(&DuplicateCause::Uncacheable) {
                chain.is_found = Sure::Perhaps;
            }
            total.add(is_duplicate);
            for (cause, bounds) in CAUSES.iter().zip(expected.iter_mut()) {
                if causes.contains(cause) {
                    bounds.add(if causes.len() == 1 {
                        is_duplicate
                    } else {
                        is_duplicate.min(Sure::Perhaps)
                    });
                }
            }
            if causes.contains(&DuplicateCause::Purge) && is_duplicate > Sure::No {
                // It took the place of those before the line, which nobody finds from then on.
                for other in &mut chains {
                    other.is_found = other.is_found.min(Sure::Perhaps);
                }
            }
            chains.push(chain);
        }
    }

    /// What may have been the cause of a duplicate, given what was in flight beside it.
    fn causes(
        &self,
        state: &State,
        first: &Fetch,
        chain: &Chain<'_>,
        beside: &[(Sure, &Chain<'_>)],
        in_vain: Sure,
    ) -> Vec<DuplicateCause> {
        let resource = &self.plan.resources[first.resource];
        let was_purged = beside.iter().any(|(_, other)| {
            let lines = state.lines.iter().chain(&state.deletions_sent);
            lines.into_iter().any(|line| {
                line.covers(resource) && line.at >= other.fetch.arrived && line.at <= first.arrived
            })
        });
        // Or this one knew, when it began, what selects, and the other did not.
        let was_other = beside.iter().any(|(_, other)| {
            other.fetch.language != first.language || other.is_unselected > chain.is_unselected
        });
        let mut causes = Vec::new();
        if in_vain < Sure::Yes && was_purged {
            causes.push(DuplicateCause::Purge);
        }
        if in_vain < Sure::Yes && resource.varies && was_other {
            causes.push(DuplicateCause::Vary);
        }
        let is_refused = beside.iter().any(|(_, other)| self.refuses(other, first));
        if in_vain > Sure::No || causes.is_empty() || is_refused {
            causes.push(DuplicateCause::Uncacheable);
        }
        causes
    }

    /// Whether what came of `other` was not for the one who fetched for itself then.
    fn refuses(&self, other: &Chain<'_>, own: &Fetch) -> bool {
        let resource = &self.plan.resources[own.resource];
        let is_personal = [other.fetch, own].iter().any(|fetch| fetch.cookie || fetch.authorization);
        other.fetch.is_private || is_personal || resource.lifetime == 0 || self.plan.has_strict_sharing()
    }

    /// Whether no answer had told yet by what fields responses are selected.
    fn is_unselected(&self, state: &State, key: (usize, &str), at: Instant) -> Sure {
        if !self.plan.resources[key.0].varies {
            return Sure::No;
        }
        let of_key = |fetch: &&Fetch| (fetch.resource, fetch.question.as_str()) == key && !fetch.is_partial;
        let told = state.fetches.iter().filter(of_key).filter_map(|fetch| fetch.answered).min();
        match told {
            Some(told) if told < at => Sure::No,
            Some(told) if told == at => Sure::Perhaps,
            Some(_) | None => Sure::Yes,
        }
    }

    /// Whether the last answer under the key was for one client alone, and not long ago.
    fn is_in_vain(&self, state: &State, key: (usize, &str), at: Instant) -> Sure {
        let ttl = self.plan.coalescing().hit_for_miss_ttl;
        let resource = &self.plan.resources[key.0];
        if ttl.is_zero() {
            return Sure::No;
        }
        // Of the answers in one moment any may have come last.
        let mut told: BTreeMap<Instant, Vec<bool>> = BTreeMap::new();
        for fetch in &state.fetches {
            let Some(answered) = fetch.answered.filter(|answered| *answered <= at) else { continue };
            if (fetch.resource, fetch.question.as_str()) != key || fetch.is_partial {
                continue;
            }
            let is_private = fetch.is_private || fetch.authorization && !resource.says_public;
            // What one gets by its credentials says nothing of what the others would get.
            if !is_private || self.may_share(fetch) {
                told.entry(answered).or_default().push(is_private);
            }
        }
        let now = told.remove(&at).unwrap_or_default();
        let before = told.last_key_value().map_or(Sure::No, |(last, told)| {
            let is_recent = *last + ttl >= at;
            match (told.iter().any(|is_private| *is_private), told.iter().all(|is_private| *is_private)) {
                (true, true) if *last + ttl > at => Sure::Yes,
                (true, _) if is_recent => Sure::Perhaps,
                _ => Sure::No,
            }
        });
        let is_changing = now.iter().any(|is_private| *is_private != (before == Sure::Yes));
        if is_changing { Sure::Perhaps } else { before }
    }
}

impl Chain<'_> {
    /// Whether one who asked then could know of it.
    fn was_in_flight(&self, asked: Instant) -> Sure {
        let sure = match asked {
            _ if asked < self.closed => Sure::Yes,
            _ if asked <= self.ended.max(self.closed) => Sure::Perhaps,
            _ => Sure::No,
        };
        sure.min(self.is_found)
    }
}

impl Bounds {
    fn add(&mut self, sure: Sure) {
        self.low += u64::from(sure == Sure::Yes);
        self.high += u64::from(sure > Sure::No);
    }

    fn excludes(self, counted: u64, what: &str) -> Option<String> {
        let Self { low, high } = self;
        let is_within = (low..=high).contains(&counted);
        (!is_within).then(|| format!("{what}: {counted} counted, {low} to {high} seen"))
    }
}
