//! Who may have had to stand in the upstream's queue, by what the origin and the clients saw.

use super::errands::BUFFER_BYTES;
use super::{Asked, Fetch, State, World};
use crate::plan::Method;
use tokio::time::Instant;

/// A place at the upstream, and from when to when it was taken; `None`: to the end.
struct Place<'a> {
    /// Whose request it was for; `None`: one that is none of the cache's business.
    owner: Option<&'a Asked>,
    from: Instant,
    to: Option<Instant>,
}

impl World {
    /// Whether a request on this route may have found all places taken when it needed one. It then arrives later than it began, or
    /// never.
    pub(super) fn may_have_queued(&self, state: &State, route: usize) -> bool {
        let places = state.places();
        let places_max = self.plan.upstream.concurrency_max;
        if at_once_most(&places) < places_max {
            return false;
        }
        // What does not fit into the buffers keeps its place for as long as it is read.
        if state.fetches.iter().any(|fetch| fetch.body.len() > BUFFER_BYTES) {
            return true;
        }
        let is_here = |ask: &&Asked| {
            self.plan.resources[ask.visit.resource].route == route && ask.visit.method != Method::Delete
        };
        state.asks.values().filter(is_here).any(|ask| {
            self.needs_one(state, ask).any(|at| {
                let others =
                    places.iter().filter(|place| !place.owner.is_some_and(|owner| std::ptr::eq(owner, ask)));
                others.filter(|place| place.is_taken(at)).count() >= places_max
            })
        })
    }

    /// When a request may have needed a place: when it came, when it had waited for something, and for too long.
    fn needs_one<'a>(&'a self, state: &'a State, ask: &'a Asked) -> impl Iterator<Item = Instant> {
        let end = ask.heard.into_iter().chain(ask.left).min();
        let landings = state.fetches.iter().filter(|fetch| fetch.resource == ask.visit.resource);
        let landings = landings.filter_map(|fetch| fetch.closed);
        let limit = ask.began + self.plan.coalescing().waiter_timeout;
        let is_waiting = move |at: &Instant| ask.began <= *at && end.is_none_or(|end| *at <= end);
        [ask.began, limit].into_iter().chain(landings).filter(is_waiting)
    }
}

impl State {
    fn places(&self) -> Vec<Place<'_>> {
        let of_fetch =
            |fetch: &'_ Fetch| (self.began(fetch), [fetch.closed, fetch.ended].into_iter().flatten().max());
        let fetches = self.fetches.iter().map(|fetch| {
            let owner = &self.asks[&fetch.owner];
            let (from, to) = of_fetch(fetch);
            Place { owner: Some(owner), from, to: to.or(owner.left) }
        });
        let deletions = self.asks.values().filter(|ask| ask.visit.method == Method::Delete);
        let deletions =
            deletions.map(|ask| Place { owner: None, from: ask.began, to: ask.heard.or(ask.left) });
        fetches.chain(deletions).collect()
    }
}

/// How many places were taken at once at most, as far as is seen.
fn at_once_most(places: &[Place<'_>]) -> usize {
    let taken = |at| places.iter().filter(|place| place.is_taken(at)).count();
    places.iter().map(|place| taken(place.from)).max().unwrap_or(0)
}

impl Place<'_> {
    fn is_taken(&self, at: Instant) -> bool {
        self.from <= at && self.to.is_none_or(|to| at <= to)
    }
}
