//! Which fetches were more than was needed, and why, by what the origin and the clients saw.
//!
//! Each request whose fetch reached the origin is looked at in turn, in the order in which the fetches began. It was *needed* if
//! no other fetch for the key was under way that it could have shared, and it had not waited for one in vain. Every other is a
//! duplicate and has exactly one cause. What is known of the key at that moment is told by the fetches before: which of
//! them were in the air, what had come of them, and what had been purged meanwhile.
//!
//! A route is left open, with the reason, where that depends on what is not seen from outside: how long a request stood in the
//! upstream's queue, what memory was short of, when a body that does not fit into the buffers was read to its end, whether
//! a stale response was there that permits credentials.

use super::errands::{Came, Errand, List, Says, Variant, Way};
use super::memory::Memory;
use super::suspicion::MEMORY;
use super::{Asked, Fetch, Line, State, World};
use crate::plan::{LANGUAGES, Method, Resource, Sharing};
use forebay::proxy::Target;
use forebay::telemetry::{DuplicateCause, Telemetry};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::task::Id;
use tokio::time::Instant;

/// For so many fetches a request waits, before it goes alone.
const ROUNDS_MAX: usize = 4;

const CAUSES: [DuplicateCause; 5] = [
    DuplicateCause::Uncacheable,
    DuplicateCause::Vary,
    DuplicateCause::Purge,
    DuplicateCause::WaiterTimeout,
    DuplicateCause::WaiterOverflow,
];

/// Why it cannot be told what a fetch was for.
pub(super) enum Untold {
    /// It depends on what is not seen from outside, for this reason.
    Unseen(&'static str),
    /// It should not have been.
    Wrong(String),
}

/// What a fetch was, and, unless it was needed, why there was one more.
type Told<'a> = Result<(Way<'a>, Option<DuplicateCause>), Untold>;

/// A fetch that a request has waited for.
#[derive(Clone, Copy)]
pub(super) struct Followed<'s, 'a> {
    pub(super) flight: &'s Errand<'a>,
    /// Under what the request would have met others itself,
    key: Variant<'a>,
    /// and since when it waited.
    since: Instant,
}

/// The fetches for one key, as far as they have been told.
pub(super) struct Story<'a> {
    pub(super) world: &'a World,
    pub(super) state: &'a State,
    pub(super) resource: &'a Resource,
    pub(super) memory: &'a Memory<'a>,
    pub(super) errands: Vec<Errand<'a>>,
    /// Those that asked for a range of what is in vain, and passed.
    pub(super) ranges: Vec<Errand<'a>>,
    /// When they begin, those included that have not been told yet.
    starts: Vec<Instant>,
    /// The same in words.
    told: Vec<String>,
}

impl World {
    /// Are as many duplicates counted as the origin saw, for each cause?
    pub(super) fn check_duplicates(&self, state: &mut State, telemetry: &Telemetry) {
        // Whoever queues for the upstream arrives later than it began, and who is refused every connection does not arrive.
        for route in 0..2 {
            let keys = self.by_key(state, route);
            if keys.is_empty() {
                continue;
            }
            let memory = Memory::of(self, state);
            let mut why_untold = match (self.may_have_queued(state, route), self.may_be_refused(state, route))
            {
                (true, _) => Some("the upstream's queue"),
                (false, true) => Some("connections refused"),
                (false, false) => None,
            };
            let is_open = why_untold.is_some();
            let (mut causes, mut told, mut wrongs) = (Vec::new(), Vec::new(), Vec::new());
            for ((index, _), fetches) in keys.into_iter().filter(|_| !is_open) {
                let resource = &self.plan.resources[index];
                let mut story = Story {
                    world: self,
                    state,
                    resource,
                    memory: &memory,
                    errands: Vec::new(),
                    ranges: Vec::new(),
                    starts: Vec::new(),
                    told: Vec::new(),
                };
                match story.tell(fetches) {
                    Ok(of_key) => causes.extend(of_key),
                    Err(Untold::Unseen(why)) => why_untold = Some(why),
                    Err(Untold::Wrong(wrong)) => wrongs.push(wrong),
                }
                told.append(&mut story.told);
            }
            if why_untold.is_none() && wrongs.is_empty() {
                for cause in CAUSES {
                    let counted = telemetry.route(route).duplicates(cause);
                    let seen = causes.iter().filter(|told| **told == cause).count() as u64;
                    if counted != seen {
                        wrongs.push(format!("{cause:?}: {counted} counted, {seen} seen"));
                    }
                }
            }
            for told in told {
                self.note(state, &told);
            }
            *state.untold.entry(why_untold.unwrap_or("told")).or_default() += 1;
            for wrong in wrongs {
                self.violated(state, format!("duplicates on route {route}: {wrong}"));
            }
        }
    }

    /// Whether a fetch for this route may have got no connection, and so never have arrived: whoever asks for it is there when it is
    /// refused one.
    fn may_be_refused(&self, state: &State, route: usize) -> bool {
        let in_vain = state.refusals.iter().filter(|refused| !state.is_made_good(**refused));
        let is_here = |ask: &&Asked| self.plan.resources[ask.visit.resource].route == route;
        in_vain.into_iter().any(|(at, _)| state.asks.values().filter(is_here).any(|ask| ask.waits(*at)))
    }

    /// The fetches for each resource and question, by the request that they were sent for, in the order of their beginning.
    fn by_key<'a>(&self, state: &'a State, route: usize) -> BTreeMap<(usize, &'a str), Vec<Vec<&'a Fetch>>> {
        let mut keys: BTreeMap<_, Vec<Vec<&Fetch>>> = BTreeMap::new();
        for fetch in &state.fetches {
            if self.plan.resources[fetch.resource].route != route {
                continue;
            }
            let errands = keys.entry((fetch.resource, fetch.question.as_str())).or_default();
            let is_same = |other: &Fetch| other.owner == fetch.owner && other.is_range == fetch.is_range;
            // Attempts after failures, and a second question after a validation that came to nothing.
            match errands.iter_mut().find(|errand| is_same(errand[0])) {
                Some(errand) => errand.push(fetch),
                None => errands.push(vec![fetch]),
            }
        }
        keys
    }

    fn waiters_max(&self) -> usize {
        self.plan.coalescing().waiters_max.min(self.plan.proxy.waiters_max)
    }
}

impl<'a> Story<'a> {
    fn tell(&mut self, fetches: Vec<Vec<&'a Fetch>>) -> Result<Vec<DuplicateCause>, Untold> {
        let mut causes = Vec::new();
        let state: &'a State = self.state;
        let mut errands: Vec<Errand<'a>> =
            fetches.into_iter().map(|fetches| Errand::of(state, fetches)).collect();
        // In one moment the first to ask is the first to begin; what goes alone may yet arrive before.
        let place = |errand: &Errand<'_>| (errand.start, errand.ask.tick);
        errands.sort_by_key(place);
        self.starts = errands.iter().map(|errand| errand.start).collect();
        let mut errands = VecDeque::from(errands);
        while let Some(mut errand) = errands.pop_front() {
            let (way, cause) = self.told(&errand)?;
            errand.way = way;
            if let Some(again) = errand.end_with_confirmation(state) {
                let behind = errands.partition_point(|other| place(other) <= place(&again));
                self.starts.insert(self.starts.len() - errands.len() + behind, again.start);
                errands.insert(behind, again);
            }
            self.told.push(format!("{} went {way:?}, for {cause:?}", errand.fetches[0].owner));
            causes.extend(cause);
            if !matches!(way, Way::Personal(_)) && self.is_asked_again(&errand) {
                self.told.push(format!("{} asked again", errand.fetches[0].owner));
                causes.push(DuplicateCause::Purge);
            }
            if let (Way::Alone(_), Some(cause)) = (way, cause) {
                errand.alone = cause;
            }
            if errand.fetches[0].is_range { &mut self.ranges } else { &mut self.errands }.push(errand);
        }
        Ok(causes)
    }

    fn told(&self, errand: &Errand<'a>) -> Told<'a> {
        let (ask, at) = (errand.ask, errand.start);
        let key = self.key_of(errand)?;
        let flight = Way::Flight(key, self.is_apart(ask, key, at));
        // What is stale is refreshed also for those who may not wait.
        let is_refresh = ask.heard == Some(ask.began);
        if at == ask.began && self.is_left_alone(errand, key, at) {
            return self.wrong(errand, "although others have just failed");
        }
        if !is_refresh && !self.may_wait(errand)? {
            return Ok((Way::Personal(key), None));
        }
        if at == ask.began {
            return self.told_at_once(errand, key, flight);
        }
        let followed = self.followed(ask, at);
        // Its own fetch is not what it waits for.
        let waits_since = followed.iter().find(|one| !std::ptr::eq(one.flight.ask, ask)).map(|one| one.since);
        let limit = waits_since.map(|since| since + self.world.plan.coalescing().waiter_timeout);
        match followed.last() {
            // It may have been the last to wait for that.
            Some(last) if limit == Some(at) && !last.flight.has_settled(at) => {
                Ok((Way::Alone(last.key), Some(DuplicateCause::WaiterTimeout)))
            }
            Some(last) if last.flight.settled() == Some(at) => self.told_at_landing(errand, *last, &followed),
            Some(_) | None => self.wrong(errand, "for no reason"),
        }
    }

    /// For which fetches the request waited up to this moment, one after the other.
    fn followed(&self, ask: &'a Asked, until: Instant) -> Vec<Followed<'_, 'a>> {
        let mut followed = Vec::new();
        let (mut at, mut key) = (ask.began, self.key(ask, ask.began));
        let mut since = None;
        while at < until {
            let way = Way::Flight(key, self.is_apart(ask, key, at));
            let in_the_air = |way| {
                let flight = self.errands.iter().rev().find(|other| other.way == way && other.start <= at)?;
                Some(flight)
                    .filter(|flight| flight.is_airborne(at) && since.is_none_or(|line| line <= flight.start))
            };
            let of_same = |flight: &&Errand<'_>| {
                flight.ask.language() == ask.language() && !self.is_line_between(flight.start, at, false)
            };
            let elsewhere = self.elsewhere(ask, way, at).filter_map(in_the_air).find(of_same);
            let Some(flight) = elsewhere.or_else(|| in_the_air(way)) else { break };
            let last = Followed { flight, key, since: at };
            followed.push(last);
            let Some(landed) = flight.settled() else { break };
            since = self.since(last).or(since);
            (key, at) = (self.key(ask, landed), landed);
        }
        followed
    }

    /// Who has waited for this, which a line was drawn through, waits only for what began after the newest of these.
    fn since(&self, followed: Followed<'_, 'a>) -> Option<Instant> {
        let flight = followed.flight;
        let landed = flight.settled()?;
        let is_purged = self.came(flight) == Came::Shared && self.is_outdated(followed);
        let with_tags = self.came(flight) == Came::Shared || flight.last().is_conditional;
        let lines = self.lines().filter(|line| line.at < landed && self.is_through(line, with_tags));
        lines.map(|line| line.at).max().filter(|_| is_purged || self.is_outdated_failure(followed))
    }

    /// Whether a line was drawn through it before it came, and who waited for it does not take it: because they came after any line, or
    /// because it was a confirmation of what that line has made void.
    fn is_outdated(&self, followed: Followed<'_, 'a>) -> bool {
        let Followed { flight, since, .. } = followed;
        let Some(landed) = flight.settled() else { return false };
        self.was_purged(flight)
            || self.is_any_line_between(flight.asked(), since)
                && self.is_line_between(flight.asked(), landed, true)
    }

    /// Whether it failed, and was asked for before a line through what is asked for: who came after any line does not take that.
    pub(super) fn is_outdated_failure(&self, followed: Followed<'_, 'a>) -> bool {
        let Followed { flight, since, .. } = followed;
        self.came(flight) == Came::Failure
            && self.is_any_line_between(flight.asked(), since)
            && !self.is_in_time(flight)
    }

    /// What the fetch is of a request that has not waited.
    fn told_at_once(&self, errand: &Errand<'a>, key: Variant<'a>, flight: Way<'a>) -> Told<'a> {
        let at = errand.start;
        if self.goes_alone(errand, key)? {
            // What overlaps no other is needed.
            let cause = self.is_beside(errand, key)?.then_some(DuplicateCause::Uncacheable);
            return Ok((Way::Alone(key), cause));
        }
        // Whether a suspicion stood at that very moment decides what it passed over.
        let is_old =
            |other: &Errand<'_>| other.is_airborne(at) && self.is_line_between(other.start, at, true);
        if matches!(flight, Way::Flight(_, true)) && self.errands.iter().any(is_old) {
            return Err(Untold::Unseen("apart, and a line"));
        }
        let Some(current) = self.current(errand.ask, flight, at, None)? else {
            // What is under way all the same is nothing to wait for when this begins, and counts if others are when it is sent.
            let Some(cause) = self.why_beside(at, key)? else { return Ok((flight, None)) };
            return Ok((flight, self.is_beside(errand, key)?.then_some(cause)));
        };
        if self.is_line_between(current.start, at, false) {
            return Ok((flight, Some(DuplicateCause::Purge)));
        }
        if current.is_airborne(at) {
            return self.overflows(errand, key);
        }
        if !self.is_fresh(current, at) {
            return Ok((flight, Some(DuplicateCause::Uncacheable)));
        }
        if self.is_line_between(current.asked(), at, true) {
            return Ok((flight, Some(DuplicateCause::Purge)));
        }
        if self.refuses(current, errand.ask, at) {
            return Ok((Way::Alone(key), Some(DuplicateCause::Uncacheable)));
        }
        self.wrong(errand, "although another had landed")
    }

    /// What the fetch is of a request that waited for another, in vain.
    fn told_at_landing(
        &self,
        errand: &Errand<'a>,
        last: Followed<'_, 'a>,
        followed: &[Followed<'_, 'a>],
    ) -> Told<'a> {
        let Followed { flight: landed, key: own, .. } = last;
        let (ask, at) = (errand.ask, errand.start);
        let alone = Ok((Way::Alone(own), Some(DuplicateCause::Uncacheable)));
        let is_forbidden = landed.last().is_confirmation && self.is_private(landed.last());
        let (key, cause) = match self.came(landed) {
            Came::Failure if self.is_outdated_failure(last) => (self.key(ask, at), DuplicateCause::Purge),
            // What may be due to others is not for it; but only once, and not where two in a row have failed.
            Came::Failure if self.is_of_another(landed, ask) && self.failures(followed) == 1 => {
                (self.key(ask, at), DuplicateCause::Uncacheable)
            }
            // It may have asked about something stored that has tags and no validator.
            Came::Failure if self.is_line_between(landed.asked(), last.since, true) => {
                return Err(Untold::Unseen("what was asked about"));
            }
            Came::Failure | Came::Nothing => return self.wrong(errand, "after a failure"),
            Came::Private if self.is_other_variant(landed.last(), ask) => {
                (self.key(ask, at), DuplicateCause::Vary)
            }
            Came::Private => return alone,
            Came::Shared if self.is_outdated(last) => (self.key(ask, at), DuplicateCause::Purge),
            Came::Shared if self.may_be_gone(landed) => return Err(Untold::Unseen("what was confirmed")),
            Came::Shared if self.is_other_variant(landed.last(), ask) => {
                (self.key(ask, at), DuplicateCause::Vary)
            }
            Came::Shared if is_forbidden || self.resource.sharing == Sharing::NoCache => {
                return Ok((Way::Alone(self.key(ask, at)), Some(DuplicateCause::Uncacheable)));
            }
            Came::Shared if self.refuses(landed, ask, at) => return alone,
            Came::Shared if landed.last().is_confirmation => {
                return Err(Untold::Unseen("what was confirmed"));
            }
            Came::Shared => return self.wrong(errand, "although it could share what landed"),
        };
        if followed.len() + 1 >= ROUNDS_MAX {
            // It may have looked more often than it waited: that is not seen.
            return Err(Untold::Unseen("waited often"));
        }
        if self.goes_alone(errand, key)? {
            return Ok((Way::Alone(key), Some(DuplicateCause::Uncacheable)));
        }
        if self.failures(followed) > 0 && self.is_shy(ask, key, at) {
            return Err(Untold::Unseen("shy of who tell"));
        }
        let flight = Way::Flight(key, self.is_apart(ask, key, at));
        let since = followed.iter().rev().find_map(|followed| self.since(*followed));
        match self.current(ask, flight, at, since)? {
            Some(current) if self.is_too_old(current, at, since) => Ok((flight, Some(cause))),
            Some(current) if current.is_airborne(at) => self.overflows(errand, key),
            Some(current) if !self.is_fresh(current, at) => Ok((flight, Some(DuplicateCause::Uncacheable))),
            Some(current) if self.refuses(current, ask, at) => alone,
            Some(_) => self.wrong(errand, "although another had landed"),
            None => Ok((flight, Some(cause))),
        }
    }

    /// Whether what was confirmed may have left the store before: for want of room, because its body had broken off, or because
    /// something newer had come.
    fn may_be_gone(&self, landed: &Errand<'_>) -> bool {
        let (asked, settled) = (landed.asked(), landed.settled());
        let is_newer = |other: &Errand<'_>| {
            other.settled().is_some_and(|at| asked <= at && Some(at) <= settled)
                && !std::ptr::eq(other, landed)
        };
        landed.last().is_confirmation
            && (self.world.plan.store_bytes_max < 1 << 20
                || self.world.plan.proxy.inflight_bytes_max < 1 << 20
                || self.world.plan.failure_rate > 0
                || self.errands.iter().any(is_newer))
    }

    /// Whether the request fetches for itself whatever is in the air: what it would get is for nobody else.
    fn goes_alone(&self, errand: &Errand<'a>, key: Variant<'a>) -> Result<bool, Untold> {
        let is_validation = self.resource.sharing == Sharing::NoCache && errand.fetches[0].is_conditional;
        Ok(is_validation || self.is_in_vain(key, errand.start)?)
    }

    /// Whether another fetch for the same was under way when this one was sent, which may have taken two attempts to connect.
    fn is_beside(&self, errand: &Errand<'a>, key: Variant<'a>) -> Result<bool, Untold> {
        let sent = errand.fetches[0].arrived;
        let told = self.errands.len() + self.ranges.len();
        let mut others = self.errands.iter().chain(&self.ranges);
        let ends_now = |other: &Errand<'_>| other.settled() == Some(sent) || other.last().ended == Some(sent);
        let is_unseen = self.starts[told + 1..].iter().any(|start| *start <= sent) || others.any(ends_now);
        if sent != errand.start && is_unseen {
            // Others have begun later, and may have been sent before; or end in the very moment.
            return Err(Untold::Unseen("refused beside others"));
        }
        let mut is_beside = Ok(false);
        for other in self.others(key) {
            match other.is_under_way(sent) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(untold) => is_beside = Err(untold),
            }
        }
        is_beside
    }

    /// The fetches for the same that others could have shared. As soon as it is known what selects, it is seen which of those that began
    /// before are for the same.
    fn others(&self, key: Variant<'a>) -> impl Iterator<Item = &Errand<'a>> {
        let is_same =
            move |other: &&Errand<'_>| key.is_none_or(|(language, _)| other.ask.language() == language);
        let others = self.errands.iter().chain(&self.ranges).filter(is_same);
        others.filter(|other| !matches!(other.way, Way::Personal(_)))
    }

    /// Whether what it has brought by then is for one client, whatever has been purged.
    fn has_come_for_one(&self, other: &Errand<'_>, at: Instant) -> bool {
        let is_for_one = || other.fetches[0].is_range || self.came(other) == Came::Private;
        !other.is_airborne(at) && is_for_one()
    }

    /// Why one that begins at this moment does not share what the others bring that are under way for the same; `None`: there are none.
    fn why_beside(&self, at: Instant, key: Variant<'a>) -> Result<Option<DuplicateCause>, Untold> {
        let (mut causes, mut untold) = (Vec::new(), None);
        for other in self.others(key) {
            let is_old = || self.is_line_between(other.asked_until(at), at, false);
            match other.is_under_way(at) {
                Ok(true) if self.has_come_for_one(other, at) => causes.push(DuplicateCause::Uncacheable),
                // Whose head has come and is not kept holds no line back from being forgotten.
                Ok(true) if is_old() && self.is_swept_between(other.settled(), at) => {
                    untold = Some(Untold::Unseen("a line that is forgotten"));
                }
                Ok(true) if is_old() => causes.push(DuplicateCause::Purge),
                Ok(true) => causes.push(other.alone),
                Ok(false) => {}
                Err(unseen) => untold = Some(unseen),
            }
        }
        match (causes.into_iter().min(), untold) {
            // It is the first of all causes.
            (Some(DuplicateCause::Uncacheable), _) => Ok(Some(DuplicateCause::Uncacheable)),
            (_, Some(untold)) => Err(untold),
            (cause, None) => Ok(cause),
        }
    }

    /// There was a fetch to wait for; was there no place?
    fn overflows(&self, errand: &Errand<'a>, key: Variant<'a>) -> Told<'a> {
        let waiting = self.state.asks.values().filter(|ask| ask.waits(errand.start)).count();
        if waiting < self.world.waiters_max() {
            return self.wrong(errand, "although another was in the air");
        }
        Ok((Way::Alone(key), Some(DuplicateCause::WaiterOverflow)))
    }

    fn is_too_old(&self, other: &Errand<'_>, at: Instant, since: Option<Instant>) -> bool {
        self.is_line_between(other.start, at, false) || since.is_some_and(|since| other.start < since)
    }

    fn wrong(&self, errand: &Errand<'_>, what: &str) -> Told<'a> {
        let (owner, at) = (&errand.fetches[0].owner, errand.start - self.world.started);
        Err(Untold::Wrong(format!("{owner} fetched at {} ms {what}", at.as_millis())))
    }
}

/// What is known of the key at a moment.
impl<'a> Story<'a> {
    /// The last fetch for the same that others could join, if it can still be found.
    fn current(
        &self,
        ask: &Asked,
        flight: Way<'_>,
        at: Instant,
        since: Option<Instant>,
    ) -> Result<Option<&Errand<'a>>, Untold> {
        let last = |way: Way<'_>| self.errands.iter().rev().find(|other| other.way == way);
        let is_same = |other: &&Errand<'_>| other.ask.language() == ask.language();
        let mut elsewhere = None;
        for other in self.elsewhere(ask, flight, at).filter_map(last).filter(is_same) {
            let is_too_old = self.is_too_old(other, at, since);
            if !is_too_old && other.is_airborne(at) {
                return Ok(Some(other));
            }
            // What is to be replaced is not joined, and is seen as long as its body comes.
            if is_too_old && (other.is_airborne(at) || self.is_found(other, at)?) {
                elsewhere = elsewhere.or(Some(other));
            }
        }
        let Some(own) = last(flight) else { return Ok(elsewhere) };
        let is_current = own.is_airborne(at) || self.is_found(own, at)?;
        Ok(Some(own).filter(|_| is_current).or(elsewhere))
    }

    /// Under what else a request looks for flights once it is known what selects: under what others met who knew less, or more.
    fn elsewhere(&self, ask: &Asked, own: Way<'a>, at: Instant) -> impl Iterator<Item = Way<'a>> {
        let Way::Flight(key, is_apart) = own else { unreachable!("only flights are looked for") };
        let lists = [List::Language, List::LanguageAndRegion];
        let keys = key.into_iter().flat_map(move |(language, _)| {
            [None].into_iter().chain(lists.map(|list| Some((language, list))))
        });
        let ways: Vec<_> = keys
            .filter(|other| *other != key)
            .map(|other| Way::Flight(other, is_apart || self.is_apart(ask, other, at)))
            .collect();
        ways.into_iter()
    }

    /// Under what requests meet: their variant, once an answer has told what selects. What any answer names counts for all.
    pub(super) fn key(&self, ask: &Asked, at: Instant) -> Variant<'a> {
        let has_told = |errand: &&Errand<'_>| {
            errand.settled().is_some_and(|settled| settled <= at) && self.tells_what_selects(errand)
        };
        let mut told = self.errands.iter().filter(has_told).peekable();
        told.peek().filter(|_| self.resource.varies)?;
        let names_region = told.any(|errand| self.resource.names_region(errand.ask.language()));
        Some((ask.language(), if names_region { List::LanguageAndRegion } else { List::Language }))
    }

    /// Under what the request of a fetch met others when that began: who has a stale response to go by meets by its list alone.
    fn key_of(&self, errand: &Errand<'a>) -> Result<Variant<'a>, Untold> {
        let (ask, at) = (errand.ask, errand.start);
        let key = self.key(ask, at);
        if at == ask.began
            && let Some((language, _)) = key
        {
            let may_be_told = self.resource.has_etag && errand.fetches[0].question.is_empty();
            match errand.fetches[0].is_conditional {
                true if !self.resource.names_region(language) => return Ok(Some((language, List::Language))),
                // It asked about no stored response, and would have.
                false if may_be_told => return Ok(key),
                true | false => {}
            }
        }
        if self.is_split(ask, at)? { Err(Untold::Unseen("by which list")) } else { Ok(key) }
    }

    /// Whether it depends on what lies stored by which list a request meets others, and that matters, because something is noted under
    /// one of the two.
    fn is_split(&self, ask: &Asked, at: Instant) -> Result<bool, Untold> {
        let Some((language, List::LanguageAndRegion)) = self.key(ask, at) else { return Ok(false) };
        let is_stored = |other: &Errand<'_>| {
            other.ask.language() == language
                && self.came(other) == Came::Shared
                && other.settled().is_some_and(|settled| settled <= at)
        };
        if self.resource.names_region(language) || !self.errands.iter().any(is_stored) {
            return Ok(false);
        }
        for other in self.errands.iter().chain(&self.ranges) {
            let Some(settled) = other.settled().filter(|settled| *settled <= at) else { continue };
            if other.ask.language() != language {
                continue;
            }
            let lasts = match self.says(other) {
                Some(Says::GoAlone | Says::Unseen) => self.world.plan.coalescing().hit_for_miss_ttl,
                _ if self.came(other) == Came::Failure => MEMORY * 2,
                Some(Says::Wait | Says::Fails | Says::Answers) | None => Duration::ZERO,
            };
            if ask.began < settled + lasts || self.is_found(other, at)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether what a request would get of a fetch that has come is not for it.
    fn refuses(&self, landed: &Errand<'_>, ask: &Asked, at: Instant) -> bool {
        let (resource, fetch) = (self.resource, landed.last());
        let is_strict = self.world.plan.has_strict_sharing() && !self.is_fresh(landed, at);
        is_strict
            || resource.sharing == Sharing::NoCache
            || (fetch.authorization || ask.visit.authorization) && !resource.says_public
            || fetch.cookie != ask.visit.cookie && !resource.says_public && !self.is_reused(landed)
    }

    /// Whether who comes later gets what has come without a fetch of its own.
    pub(super) fn is_reused(&self, landed: &Errand<'_>) -> bool {
        let use_seconds = self.resource.lifetime + self.resource.stale_while_revalidate;
        let end = landed.asked() + Duration::from_secs(use_seconds);
        landed.settled().is_some_and(|settled| settled < end)
    }

    fn is_other_variant(&self, fetch: &Fetch, ask: &Asked) -> bool {
        self.resource.varies && fetch.language != ask.language()
    }

    pub(super) fn is_fresh(&self, errand: &Errand<'_>, at: Instant) -> bool {
        self.resource.sharing != Sharing::NoCache
            && at < errand.asked() + Duration::from_secs(self.resource.lifetime)
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = &'a Line> {
        let state: &'a State = self.state;
        state.lines.iter().chain(&state.deletions_sent)
    }

    /// Whether lines may have been forgotten since something was settled.
    fn is_swept_between(&self, settled: Option<Instant>, at: Instant) -> bool {
        settled.is_some_and(|settled| {
            self.lines().any(|line| line.sweeps && settled <= line.at && line.at <= at)
        })
    }

    /// Whether a line was drawn through anything.
    pub(super) fn is_any_line_between(&self, from: Instant, to: Instant) -> bool {
        self.lines().any(|line| from < line.at && line.at < to)
    }

    /// Whether a line was drawn through the resource that has made void what was there.
    pub(super) fn is_hard_line_between(&self, from: Instant, to: Instant) -> bool {
        self.lines().any(|line| !line.is_soft && line.covers(self.resource) && from < line.at && line.at < to)
    }

    /// Whether a line was drawn through the resource. Those through tags are not seen before there is an answer.
    pub(super) fn is_line_between(&self, from: Instant, to: Instant, with_tags: bool) -> bool {
        self.lines().any(|line| self.is_through(line, with_tags) && from < line.at && line.at < to)
    }

    fn is_through(&self, line: &Line, with_tags: bool) -> bool {
        line.covers(self.resource) && (with_tags || !matches!(line.target, Target::Tag(_)))
    }
}

impl State {
    /// When a fetch began: with its first attempt to connect.
    pub(super) fn began(&self, first: &Fetch) -> Instant {
        let since = self.asks[&first.owner].began;
        let refusals = self.refusals.iter().filter(|(at, task)| {
            task.is_some() && *task == first.connected_by && since <= *at && *at <= first.arrived
        });
        refusals.map(|(at, _)| *at).min().unwrap_or(first.arrived)
    }

    /// Whether who was refused a connection got one at the next attempt.
    fn is_made_good(&self, (at, task): (Instant, Option<Id>)) -> bool {
        let is_first = |fetch: &&Fetch| task.is_some() && fetch.connected_by == task && at <= fetch.arrived;
        self.fetches.iter().find(is_first).is_some_and(|fetch| self.began(fetch) <= at)
    }
}

impl<'a> Errand<'a> {
    /// A flight ends with a confirmation: if that came to nothing, whoever was aboard has looked again, and what its own client sent then
    /// is another fetch.
    fn end_with_confirmation(&mut self, state: &'a State) -> Option<Self> {
        let is_flight = matches!(self.way, Way::Flight(..));
        let last = self.fetches.iter().position(|fetch| is_flight && fetch.is_confirmation)?;
        let again = self.fetches.split_off(last + 1);
        (!again.is_empty()).then(|| Self::of(state, again))
    }

    /// What was sent for one request.
    fn of(state: &'a State, fetches: Vec<&'a Fetch>) -> Self {
        let ask = &state.asks[&fetches[0].owner];
        let start = state.began(fetches[0]);
        Self { ask, start, fetches, way: Way::Alone(None), alone: DuplicateCause::Uncacheable }
    }
}

impl Asked {
    pub(super) fn language(&self) -> &'static str {
        LANGUAGES[self.visit.language]
    }

    /// Whether it may have been waiting for another's fetch at this moment.
    fn waits(&self, at: Instant) -> bool {
        let end = self.heard.into_iter().chain(self.left).min();
        self.visit.method != Method::Delete && self.began <= at && end.is_none_or(|end| at <= end)
    }
}
