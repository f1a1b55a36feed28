//! Requests that need the upstream wait for each other: one leads, the others follow.

use super::Proxy;
use super::answer::Answer;
use super::attempts::Excess;
use super::back_off::Asker;
use super::deliver;
use super::failure::{Failed, Failure};
use super::fetch::{Errand, Unkept};
use super::fly;
use super::meeting::{Among, Demand, Departure};
use super::notes::{Advice, Due};
use super::pass::PassesRange;
use super::receive::Received;
use super::selecting::Selecting;
use super::supervise::spawn;
use crate::flight::{Follower, Joined, Leader};
use crate::outcome::{Answered, Forward, Outcome};
use crate::policy::{self, Key, Plan, Refusal, Selection, Unstorable};
use crate::store::Stored;
use crate::store::stamps::{Standing, Underway};
use crate::telemetry::{DuplicateCause, WaitResult, Waiting};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// How often a request may find that what it waited for is not for it, before it goes alone.
const ROUNDS_MAX: usize = 4;

/// What a flight comes to.
#[derive(Debug, Clone)]
pub(super) enum Landing {
    /// A response that those may share to whom policy permits it.
    Shared(Shared),
    /// A failure: everyone's, or of the one whose request was sent.
    Failed(Failed),
    /// A response for its leader alone: everyone else whom it would have been for goes upstream.
    Departed(Unstorable, Selection),
    /// Nothing: its leader had not seen yet what another has brought, or asked about what is gone.
    Overtaken,
    /// Nothing: what was asked about has been purged, at this tick.
    Purged(u64),
}

/// A response that landed.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) stored: Stored,
    /// The fields of the client whose request was sent.
    pub(super) leader: Arc<HeaderMap>,
    /// The fields that only the leader's client gets, if there are any.
    pub(super) withheld: Option<Arc<HeaderMap>>,
    /// Whether it is in the store, or why not.
    pub(super) kept: Result<(), Unkept>,
    /// What the upstream answered: 304 where it confirmed what was stored.
    pub(super) forward_status: StatusCode,
}

/// Why a request needs the upstream, and what it knows already.
#[derive(Debug, Clone)]
pub(super) struct Need {
    pub(super) forward: Forward,
    /// The stored response to be validated, which may stand in if that fails.
    pub(super) stale: Option<Stored>,
    /// What selects, as far as is known (RFC 9111 §4.1),
    pub(super) selecting: Selecting,
    /// and what did for a response that the request has waited for and that was not for it.
    pub(super) answered: Vec<HeaderName>,
    /// Whether it may wait for the fetches of others. That is asked once: who begins to wait does not turn back.
    pub(super) waits: bool,
}

/// How a request waits for the fetch of another.
#[derive(Debug, Clone, Copy)]
struct Wait {
    /// Under which key it waits: that of its variant, once it is known what selects.
    key: Key,
    /// The tick of the newest of all lines when it joined.
    latest: u64,
    /// What it waits for. It does not wait for a second fetch that fails, perhaps for its leader alone.
    demand: Demand,
    /// Why it has waited in vain before, if it has.
    cause: Option<DuplicateCause>,
}

impl Wait {
    fn new(key: Key) -> Self {
        Self { key, latest: 0, demand: Demand::default(), cause: None }
    }
}

/// What waiting came to.
enum Followed {
    Answer(Box<Answer>),
    /// It was for its leader alone, and so will be what others get.
    Departed,
    /// It failed, which may be due to whose request it was; look again.
    FailedForOne,
    /// It was not for this request, be it because it was for other values of these fields; look again.
    Again(DuplicateCause, Vec<HeaderName>),
    /// More is known by now than when this request looked; look again.
    Overtaken,
    /// It was asked for before a purge, which was at this tick; look again.
    Purged(u64),
    /// It was begun at this tick, its body is still coming, and it is stale already: a newer one is needed.
    Outdated(u64),
    /// It cannot be for this request; fetch alone.
    Alone(DuplicateCause),
    /// It took too long, or there was no place to wait.
    Limit(DuplicateCause),
}

impl Proxy {
    /// Answers a request that needs the upstream, with a fetch that others share.
    pub(super) async fn collapse(
        self: &Arc<Self>,
        received: &Received,
        mut need: Need,
    ) -> Result<Answer, PassesRange> {
        if !need.waits {
            return Ok(self.alone_when_due(received, &need, None).await);
        }
        let (mut deadline, mut wait) = (None, Wait::new(received.keyed.key));
        for round in 0..ROUNDS_MAX {
            if need.stale.as_ref().is_some_and(|stored| stored.metadata().is_validated_always()) {
                return Ok(self.alone_when_due(received, &need, Some(Excess::in_vain(wait.cause))).await);
            }
            let among = self.among(received, &need.selecting);
            wait.key = among.key;
            let now = if round == 0 { received.now } else { self.clock.now() };
            let due = match self.cache.advice(&wait.key, &Asker::of(received, need.waits), now).heeded(now) {
                Advice::Coalesce(due) => due,
                Advice::GoAlone(_) => {
                    return self.depart(received, &need, Excess::in_vain(wait.cause)).await;
                }
                Advice::GiveUp(failure) => {
                    return Ok(self.stand_in_unasked(received, &need, &failure, "back-off"));
                }
            };
            wait.latest = self.cache.store.stamps().latest();
            let mut is_each_its_own = false;
            match self.board(received, &need, &among, (wait, &mut deadline), due).await {
                Followed::Answer(answer) => return Ok(*answer),
                Followed::Departed => {
                    return self.depart(received, &need, Excess::Waited(DuplicateCause::Uncacheable)).await;
                }
                Followed::Alone(cause) => {
                    return Ok(self.alone(received, &need, Some(Excess::Waited(cause))).await);
                }
                Followed::Limit(cause) => return Ok(self.at_limit(received, &need, cause).await),
                Followed::Outdated(tick) => {
                    wait.cause = Some(DuplicateCause::Uncacheable);
                    wait.demand.since = tick + 1;
                    continue;
                }
                Followed::Overtaken => {}
                Followed::FailedForOne => {
                    wait.demand.has_failed = true;
                    wait.cause = Some(DuplicateCause::Uncacheable);
                }
                Followed::Purged(since) => {
                    wait.cause = Some(DuplicateCause::Purge);
                    // A purge of a tag is not seen before the response is: what it hit must not be found again.
                    wait.demand.since = wait.demand.since.max(since);
                }
                Followed::Again(why, names) => {
                    need.answered.extend(names);
                    wait.cause = Some(why);
                    // To wait for the next one would be in vain, too.
                    is_each_its_own = why == DuplicateCause::Uncacheable;
                }
            }
            match self.look_again(received, &need) {
                Ok(answer) => return Ok(answer),
                Err(newer) => need = newer,
            }
            if is_each_its_own {
                break;
            }
        }
        let excess = wait.cause.map_or(Excess::in_vain(None), Excess::Waited);
        Ok(self.alone(received, &need, Some(excess)).await)
    }

    /// Joins the flight that there is, or begins one.
    async fn board(
        self: &Arc<Self>,
        received: &Received,
        need: &Need,
        among: &Among,
        (wait, deadline): (Wait, &mut Option<Instant>),
        due: Option<Due>,
    ) -> Followed {
        let (joined, key, underway) = self.join(received, among, wait.demand);
        let wait = Wait { key, ..wait };
        match (joined, underway) {
            (Joined::Leader(leader, seat, replaced), Some(underway)) => {
                let look = |leader: &_| self.is_overtaken(received, need, among, wait.demand, leader);
                let Some(leader) = leader.unless_overtaken(Landing::Overtaken, look) else {
                    return Followed::Overtaken;
                };
                announce(due, self.clock.now());
                let cause = wait.cause.or(replaced.then_some(DuplicateCause::Purge));
                let errand = Errand::shared(self, received, need.stale.clone(), need.waits).leading(
                    among.clone(),
                    cause,
                    underway.tick(),
                );
                self.lead(received, need, errand, (leader, seat), underway).await
            }
            (Joined::Follower(seat), _) => self.follow(received, need, seat, wait, deadline).await,
            (Joined::Landed(landing), _) => self.join_late(received, need, landing, wait),
            (Joined::Full | Joined::Leader(..), _) => {
                self.telemetry.wait_refused(received.counted());
                Followed::Limit(DuplicateCause::WaiterOverflow)
            }
        }
    }

    /// Fetches alone, because the answers under the key are for one client each.
    async fn depart(
        self: &Arc<Self>,
        received: &Received,
        need: &Need,
        excess: Excess,
    ) -> Result<Answer, PassesRange> {
        if received.method == Method::GET && received.has_range() {
            let among = self.among(received, &need.selecting);
            return Err(PassesRange { among, excess: Some(excess), waits: need.waits });
        }
        Ok(self.alone(received, need, Some(excess)).await)
    }

    /// Refreshes a stored response in the background, unless that is being done or has just failed.
    pub(super) fn refresh(self: &Arc<Self>, received: &Received, stored: &Stored, variants: &[Stored]) {
        let selecting = self.cache.selecting(&received.keyed.key, variants, Some(stored), &[]);
        let among = self.among(received, &selecting);
        let waits = self.may_wait(received, Some(stored));
        let asker = Asker::of(received, waits);
        let Advice::Coalesce(due) = self.cache.advice(&among.key, &asker, received.now) else {
            return;
        };
        if let (Joined::Leader(leader, _, replaced), _, Some(underway)) =
            self.join(received, &among, Demand::default())
        {
            let look = |leader: &_| {
                self.is_preceded(received, &among, Demand::default(), leader)
                    || self.is_refreshed(received, stored)
            };
            let Some(leader) = leader.unless_overtaken(Landing::Overtaken, look) else { return };
            announce(due, received.now);
            let cause = replaced.then_some(DuplicateCause::Purge);
            let errand = Errand::shared(self, received, Some(stored.clone()), waits).in_background().leading(
                among,
                cause,
                underway.tick(),
            );
            spawn(
                &self.telemetry,
                "fetch",
                fly::in_background(Box::new(errand), leader, underway, self.telemetry.flying()),
            );
        }
    }

    /// Leads: sends a task to fetch, and becomes the first of its customers.
    async fn lead(
        self: &Arc<Self>,
        received: &Received,
        need: &Need,
        errand: Errand,
        (leader, mut seat): (Leader<Key, Landing, Departure>, Follower<Landing, Departure>),
        underway: Underway,
    ) -> Followed {
        let (handover, mut handed) = oneshot::channel();
        spawn(
            &self.telemetry,
            "fetch",
            fly::in_foreground(Box::new(errand), leader, underway, self.telemetry.flying(), handover),
        );
        let answer = match seat.landing().await {
            Ok(Landing::Overtaken) => return Followed::Overtaken,
            Ok(Landing::Purged(since)) => return Followed::Purged(since),
            Ok(Landing::Shared(shared)) => {
                let confirmed = shared.forward_status == StatusCode::NOT_MODIFIED;
                let answered = if confirmed { Answered::Revalidated } else { Answered::Miss };
                match self.share(received, need, &shared, answered) {
                    Ok(answer) => answer.with_withheld(shared.withheld.as_deref()),
                    Err(_) => self.stand_in(received, need, &Failure::internal(), "gone"),
                }
            }
            Ok(Landing::Failed(failed)) => {
                self.stand_in_or_relay(received, need, &failed.failure, handed.try_recv().ok())
            }
            Ok(Landing::Departed(why, _)) => match handed.await {
                Ok(response) => Self::relay_uncacheable(received, need, response, why),
                Err(_) => self.stand_in(received, need, &Failure::internal(), "lost"),
            },
            Err(_) => self.stand_in(received, need, &Failure::internal(), "lost"),
        };
        Followed::Answer(Box::new(answer))
    }

    /// Waits for the head of another request's fetch, and asks whether it may be shared.
    async fn follow(
        self: &Arc<Self>,
        received: &Received,
        need: &Need,
        mut seat: Follower<Landing, Departure>,
        wait: Wait,
        deadline: &mut Option<Instant>,
    ) -> Followed {
        let waiting = self.telemetry.waiting(received.counted());
        let timeout = received.route().coalescing.waiter_timeout;
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + timeout);
        match timeout_at(deadline, seat.landing()).await {
            Ok(Ok(landing)) => self.take(received, need, landing, wait, waiting),
            Ok(Err(_)) => {
                waiting.ended(WaitResult::Failed);
                Followed::Again(DuplicateCause::LeaseLost, Vec::new())
            }
            Err(_) => {
                waiting.ended(WaitResult::TimedOut);
                Followed::Limit(DuplicateCause::WaiterTimeout)
            }
        }
    }

    /// A flight that landed before this request came: its response is one from the store, so it must be fresh. If it is not,
    /// all who come meanwhile need one newer fetch together, however long the body takes.
    fn join_late(
        self: &Arc<Self>,
        received: &Received,
        need: &Need,
        landing: Landing,
        wait: Wait,
    ) -> Followed {
        match &landing {
            Landing::Shared(shared) if !shared.stored.metadata().is_fresh(self.clock.now()) => {
                Followed::Outdated(shared.stored.tick())
            }
            Landing::Shared(_)
            | Landing::Failed(_)
            | Landing::Departed(..)
            | Landing::Overtaken
            | Landing::Purged(_) => {
                let waiting = self.telemetry.waiting(received.counted());
                self.take(received, need, landing, wait, waiting)
            }
        }
    }

    /// What landed, as this request takes it.
    fn take(
        self: &Arc<Self>,
        received: &Received,
        need: &Need,
        landing: Landing,
        wait: Wait,
        waiting: Waiting,
    ) -> Followed {
        match landing {
            Landing::Shared(shared) => match self.permission(received, &shared, wait, self.clock.now()) {
                Ok(()) => match self.share(received, need, &shared, Answered::Collapsed) {
                    Ok(answer) => {
                        waiting.ended(WaitResult::Shared);
                        Followed::Answer(Box::new(answer))
                    }
                    Err(_) => departed(waiting, Followed::Alone(DuplicateCause::Uncacheable)),
                },
                Err(followed) => departed(waiting, followed),
            },
            // The line of a tag is not seen by who joins: it may have been drawn between the fetch and this request.
            Landing::Failed(Failed { tick, scopes, .. })
                if wait.latest > tick && self.cache.store.stamps().may_be_outdated(&scopes, tick) =>
            {
                let since = self.cache.store.stamps().newest_over(&scopes);
                departed(waiting, Followed::Purged(since))
            }
            Landing::Failed(failed) => {
                let answer = self.stand_in_collapsed(received, need, &failed.failure);
                // Who has something else to go by need not ask again.
                let is_final = wait.demand.has_failed
                    || answer.outcome.answered == Answered::Stale
                    || self.cache.is_failure_of(wait.key, &Asker::of(received, need.waits), &failed);
                if !is_final {
                    return departed(waiting, Followed::FailedForOne);
                }
                waiting.ended(WaitResult::Failed);
                Followed::Answer(Box::new(answer))
            }
            // It says nothing of what others get for whom it was not selected.
            Landing::Departed(_, selection) if selection.is_of_others(&*received.headers) => {
                let names = selection.names().to_vec();
                departed(waiting, Followed::Again(DuplicateCause::Vary, names))
            }
            Landing::Departed(..) => departed(waiting, Followed::Departed),
            Landing::Overtaken => departed(waiting, Followed::Overtaken),
            Landing::Purged(since) => departed(waiting, Followed::Purged(since)),
        }
    }

    /// Whether this request may share what landed; if not, what it does instead.
    fn permission(
        &self,
        received: &Received,
        shared: &Shared,
        wait: Wait,
        now: SystemTime,
    ) -> Result<(), Followed> {
        let stored = &shared.stored;
        // Who had joined before any line was drawn has asked before it. Of the lines since, only the last is remembered.
        if wait.latest > stored.tick() && self.cache.store.standing(stored) != Standing::Valid {
            return Err(Followed::Purged(self.cache.store.stamps().newest_over(&stored.scopes())));
        }
        let rules = &received.route().rules;
        policy::may_share(stored.metadata(), &received.asked(), &shared.leader, now, rules).map_err(
            |refusal| match refusal {
                Refusal::Vary => {
                    let selecting = stored.metadata().selection.names();
                    Followed::Again(DuplicateCause::Vary, selecting.to_vec())
                }
                Refusal::NoCache => Followed::Again(DuplicateCause::Uncacheable, Vec::new()),
                Refusal::Authorization | Refusal::Cookie | Refusal::NotFresh => {
                    Followed::Alone(DuplicateCause::Uncacheable)
                }
            },
        )
    }

    fn share(
        &self,
        received: &Received,
        need: &Need,
        shared: &Shared,
        answered: Answered,
    ) -> Result<Answer, crate::body::TooLate> {
        let outcome = Outcome {
            forward_status: Some(shared.forward_status),
            stored: shared.kept.is_ok(),
            detail: shared.kept.err().map(Unkept::detail),
            collapsed: answered == Answered::Collapsed,
            ..Outcome::of(answered).forwarded(need.forward)
        };
        deliver::deliver(received, &shared.stored, outcome, self.clock.now())
    }

    /// After waiting in vain: what is stored may have changed.
    pub(super) fn look_again(self: &Arc<Self>, received: &Received, need: &Need) -> Result<Answer, Need> {
        let now = self.clock.now();
        let variants = self.cache.store.lookup(received.keyed.key, now);
        let responses = variants.as_ref().map_or(&[][..], |variants| variants.responses());
        let newer = |forward, stale: Option<Stored>| Need {
            forward,
            selecting: self.cache.selecting(&received.keyed.key, responses, stale.as_ref(), &need.answered),
            stale,
            answered: need.answered.clone(),
            waits: need.waits,
        };
        match policy::plan(&received.asked(), responses, now, 1.0, &received.route().rules) {
            Plan::Deliver { stored } | Plan::DeliverAndRefresh { stored } => {
                let outcome = Outcome::of(Answered::Collapsed).forwarded(need.forward).collapsed();
                deliver::deliver(received, &responses[stored], outcome, now).map_err(|_| need.clone())
            }
            Plan::Revalidate { stored, forward } => Err(newer(forward, Some(responses[stored].clone()))),
            Plan::Fetch(forward) => Err(newer(forward, None)),
            Plan::Pass(_) | Plan::Unsatisfiable => Err(need.clone()),
        }
    }
}

/// Lets those who go by themselves wait for what comes of a fetch after a back-off. Who would join it is not held up: it can be joined.
fn announce(due: Option<Due>, now: SystemTime) {
    // Another that goes by itself may have been announced before: then there are two.
    let _ = due.map(|due| due.claim(now));
}

fn departed(waiting: Waiting, followed: Followed) -> Followed {
    waiting.ended(WaitResult::Departed);
    followed
}
