//! Do the counters tell the truth?

use super::{Fetch, State, World};
use forebay::proxy::OnLimit;
use forebay::telemetry::{DuplicateCause, Label, Telemetry, WaitResult};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long it may take until a fetch that is given up is seen to be.
const GRACE: Duration = Duration::from_millis(1);

impl World {
    /// All is quiet: what do the counters say?
    pub fn check_counters(&self, telemetry: &Telemetry) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let text = telemetry.render();
        let metric = |series: &str| -> i64 {
            let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
            line.map_or(0, |value| value.parse().unwrap())
        };
        let mut zeros = vec![
            ("waiters", telemetry.waiters()),
            ("flights", telemetry.flights()),
            ("exchanges in flight", telemetry.upstream(0).in_flight()),
            ("connections", telemetry.connections()),
            ("bytes in flight", metric("forebay_inflight_bytes")),
            ("panics", metric("forebay_panics_total")),
        ];
        let routes = [telemetry.route(0), telemetry.route(1)];
        let duplicates = |cause| routes.iter().map(|route| route.duplicates(cause)).sum::<u64>();
        let waits = |result| routes.iter().map(|route| route.waits(result)).sum::<u64>();
        let signed = |count: u64| i64::try_from(count).unwrap();
        zeros.push(("fetches lost", signed(duplicates(DuplicateCause::LeaseLost))));
        let resources = &self.plan.resources;
        if state.lines.is_empty() && state.deletions == 0 {
            zeros.push(("fetches for purges", signed(duplicates(DuplicateCause::Purge))));
        }
        if !resources.iter().any(|resource| resource.varies) {
            zeros.push(("fetches for variants", signed(duplicates(DuplicateCause::Vary))));
        }
        for (what, count) in zeros {
            if count != 0 {
                self.violated(state, format!("{what}: {count}, not 0"));
            }
        }
        let (timed_out, overflown) = (waits(WaitResult::TimedOut), waits(WaitResult::Overflow));
        let goes_alone = self.plan.coalescing().on_limit == OnLimit::GoAlone;
        let is_tolerant = resources.iter().any(|resource| resource.stale_if_error > 0);
        for (cause, waits) in
            [(DuplicateCause::WaiterTimeout, timed_out), (DuplicateCause::WaiterOverflow, overflown)]
        {
            let counted = duplicates(cause);
            // Who leaves the upstream's queue, or finds no place in it, or leaves the origin alone after a failure, has not fetched.
            let gives_up = !state.failures.is_empty() && !self.plan.coalescing().error_backoff.0.is_zero();
            let is_complete = !is_tolerant && !gives_up && !self.plan.is_crowded() && state.left == 0;
            // Who finds such a fetch under way has the same cause and did not wait, but then somebody did.
            let is_explained = counted == 0 || waits > 0;
            let is_right = match (goes_alone, is_complete) {
                (true, true) => counted >= waits && is_explained,
                (true, false) => is_explained,
                (false, _) => counted == 0,
            };
            if !is_right {
                self.violated(state, format!("{cause:?}: {counted} fetches after {waits} waits"));
            }
        }
        let all: u64 = DuplicateCause::ALL.iter().map(|cause| duplicates(*cause)).sum();
        let surplus = self.surplus(state);
        if surplus > all {
            self.violated(state, format!("{surplus} fetches more than were needed, {all} counted"));
        }
        self.check_totals(state, telemetry);
        self.check_duplicates(state, telemetry);
    }

    /// How many fetches were in flight while another was that could have done for them. Of the fetches for one variant as
    /// many were needed as can be picked of them so that no two are in flight together.
    fn surplus(&self, state: &State) -> u64 {
        let mut groups: BTreeMap<_, Vec<(Instant, Instant)>> = BTreeMap::new();
        for ((resource, _), attempts) in self.shareable(state) {
            let varies = self.plan.resources[resource].varies;
            for (fetch, begun, closed) in flights(&attempts) {
                // What has just been given up may not know it yet.
                let begun = begun + GRACE;
                if begun < closed {
                    let variant = if varies { fetch.language.as_str() } else { "" };
                    groups
                        .entry((resource, fetch.question.as_str(), variant))
                        .or_default()
                        .push((closed, begun));
                }
            }
        }
        let mut surplus = 0;
        for flights in groups.values_mut() {
            // Picking always the one that ends first picks the most.
            flights.sort_unstable();
            let mut free = self.started;
            for (closed, begun) in flights {
                if *begun < free {
                    surplus += 1;
                } else {
                    free = *closed;
                }
            }
        }
        surplus
    }

    /// What arrived at the origin that others are allowed to wait for, by resource and by the request that it was sent for.
    fn shareable<'a>(&self, state: &'a State) -> BTreeMap<(usize, &'a str), Vec<&'a Fetch>> {
        let mut attempts: BTreeMap<_, Vec<_>> = BTreeMap::new();
        // A range of what is in vain passes, and is none of the cache's business.
        for fetch in state.fetches.iter().filter(|fetch| !fetch.is_range && self.may_share(fetch)) {
            attempts.entry((fetch.resource, fetch.owner.as_str())).or_default().push(fetch);
        }
        attempts
    }

    /// Whether a fetch is one of those that others are allowed to wait for.
    pub(super) fn may_share(&self, fetch: &Fetch) -> bool {
        let coalescing = self.plan.coalescing();
        (coalescing.join_with_authorization || !fetch.authorization)
            && (coalescing.join_with_cookies || !fetch.cookie)
    }

    fn check_totals(&self, state: &mut State, telemetry: &Telemetry) {
        let requests = telemetry.route(0).requests_total() + telemetry.route(1).requests_total();
        if requests > state.asked || requests < state.asked - state.left {
            let (asked, left) = (state.asked, state.left);
            self.violated(state, format!("{requests} requests counted; {asked} asked, {left} left"));
        }
        if state.left > 0 || !state.failures.is_empty() || self.plan.is_crowded() {
            return;
        }
        let arrived = state.fetches.len() as u64 + state.deletions;
        let sent = telemetry.upstream(0).requests_total();
        if self.plan.failure_rate == 0 && arrived != sent {
            let text = format!("{sent} upstream requests counted, {arrived} arrived");
            self.violated(state, text);
        }
    }
}

/// The fetches, each by its first attempt, with its beginning and end, that were sent for one request. An attempt that begins after the
/// one before has failed, and a second question after a validation that came to nothing, belong to the same fetch: it is in
/// flight all the time, and if it is one too many it is counted once, however often it is repeated. Attempts that overlap
/// are fetches of their own.
fn flights<'a>(attempts: &[&'a Fetch]) -> Vec<(&'a Fetch, Instant, Instant)> {
    let mut flights: Vec<(&Fetch, Instant, Instant)> = Vec::new();
    for fetch in attempts {
        let closed = fetch.closed.unwrap_or(fetch.arrived);
        match flights.iter_mut().find(|(_, _, ended)| *ended <= fetch.arrived) {
            Some((_, _, ended)) => *ended = closed,
            None => flights.push((fetch, fetch.arrived, closed)),
        }
    }
    flights
}
