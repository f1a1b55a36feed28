//! A request that could be answered from the cache fetches for itself: its answers could not be shared, or it may not wait.

use super::Proxy;
use super::answer::Answer;
use super::attempts::Excess;
use super::back_off::Asker;
use super::collapse::Need;
use super::deliver;
use super::failure::Failure;
use super::fetch::{Arrival, Confirmed, Errand, ErrorPage, Sent, Shareable, Unkept};
use super::fill;
use super::receive::Received;
use super::settings::{Coalescing, OnLimit};
use super::supervise::spawn;
use super::traffic::Passage;
use crate::outcome::{Answered, Outcome};
use crate::policy::validation::{HeadEffect, head_effect};
use crate::policy::{self, Exchange, Key, Selection, Unstorable};
use crate::store::stamps::Underway;
use crate::store::{Draft, Stored};
use crate::telemetry::{DuplicateCause, FetchReason};
use crate::upstream;
use http::{Method, Response, StatusCode};
use std::sync::Arc;
use std::time::SystemTime;

/// What a request that goes alone has come to before it was taken up here.
#[derive(Debug)]
pub(super) struct AloneBegun {
    pub(super) need: Need,
    /// Whether it could have been a fetch too many when it was sent, and why,
    pub(super) may_be_excess: Option<Excess>,
    /// and whether it is.
    pub(super) excess: Option<Excess>,
    pub(super) passage: Option<Passage>,
    pub(super) sent: Sent,
    pub(super) underway: Underway,
    pub(super) request_time: SystemTime,
}

impl Proxy {
    /// The wait was too long, or there was no place to wait.
    pub(super) async fn at_limit(
        self: &Arc<Self>,
        received: &Received,
        need: &Need,
        cause: DuplicateCause,
    ) -> Answer {
        let waited = Outcome::of(Answered::Stale).because("waited");
        if let Some(answer) = self.stale_answer(received, need, waited) {
            return answer;
        }
        match received.route().coalescing.on_limit {
            OnLimit::GoAlone => self.alone_when_due(received, need, Some(Excess::Waited(cause))).await,
            OnLimit::Refuse => {
                let (status, error, detail) = match cause {
                    DuplicateCause::WaiterTimeout => {
                        (StatusCode::GATEWAY_TIMEOUT, "http_response_timeout", "waiter-timeout")
                    }
                    DuplicateCause::WaiterOverflow
                    | DuplicateCause::Uncacheable
                    | DuplicateCause::Vary
                    | DuplicateCause::Purge
                    | DuplicateCause::LeaseLost => {
                        (StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached", "waiter-overflow")
                    }
                };
                self.stand_in_unasked(received, need, &Failure::ours(status, error), detail)
            }
        }
    }

    /// The same as [`alone`](Self::alone), unless the last fetch failed and the next is not due yet, or another is the one to try.
    pub(super) async fn alone_when_due(
        self: &Arc<Self>,
        received: &Received,
        need: &Need,
        excess: Option<Excess>,
    ) -> Answer {
        let key = self.flight_key(received, &need.selecting);
        match self.cache.due(&key, &Asker::of(received, need.waits), self.clock.now()) {
            Err(failure) => self.stand_in_unasked(received, need, &failure, "back-off"),
            Ok(()) => self.alone(received, need, excess).await,
        }
    }

    /// Fetches for this request alone: because it may not wait, or for this reason another, which may make it one too many. What comes back
    /// is stored if it may be: that ends the time of going alone.
    ///
    /// The fetch runs in the request's own task: if the client leaves before the head, it is given up.
    pub(super) async fn alone(
        self: &Arc<Self>,
        received: &Received,
        need: &Need,
        excess: Option<Excess>,
    ) -> Answer {
        let errand = self.errand_alone(received, need, excess);
        let underway = self.cache.store.stamps().begin();
        let request_time = self.clock.now();
        self.run_alone(received, need, errand, (underway, request_time)).await
    }

    /// The same for a request that was sent before it was known to need all this.
    pub(super) async fn go_on_alone(self: &Arc<Self>, received: &Received, begun: AloneBegun) -> Answer {
        let AloneBegun { need, may_be_excess, excess, passage, sent, underway, request_time } = begun;
        let mut errand = self.errand_alone(received, &need, may_be_excess);
        (errand.excess, errand.passage, errand.begun) = (excess, passage, Some(sent));
        self.run_alone(received, &need, errand, (underway, request_time)).await
    }

    fn errand_alone(self: &Arc<Self>, received: &Received, need: &Need, excess: Option<Excess>) -> Errand {
        let mut errand = Errand::shared(self, received, need.stale.clone(), need.waits);
        if let Some(excess) = excess {
            (errand.among, errand.excess) = (Some(self.among(received, &need.selecting)), Some(excess));
            errand.alone = excess.cause();
        }
        errand.outgoing.method = received.method.clone();
        if errand.validate.is_none() {
            errand.reason = FetchReason::Pass;
        }
        errand
    }

    async fn run_alone(
        self: &Arc<Self>,
        received: &Received,
        need: &Need,
        mut errand: Errand,
        (mut underway, request_time): (Underway, SystemTime),
    ) -> Answer {
        let key = self.flight_key(received, &need.selecting);
        let arrival = errand.run(&mut underway, request_time).await;
        let now = self.clock.now();
        if arrival.is_answer() {
            self.cache.note_answered(key, &errand.asker(), now);
        }
        match arrival {
            Arrival::Shareable(shareable) => self.keep(received, need, (errand, key), shareable, underway),
            Arrival::Confirmed(Confirmed { stored, withheld, keep }) => {
                let kept = errand.store(&stored, keep);
                errand.note_confirmed(key, &stored, keep, now);
                self.own(received, need, &stored, kept, StatusCode::NOT_MODIFIED)
                    .with_withheld(Some(&withheld))
            }
            Arrival::Failed { failure, tags, page } => {
                let failed = errand.failed(failure.clone(), tags, underway.tick());
                self.cache.note_failed(key, &errand.asker(), failed, now);
                let (own, fill) = match page {
                    ErrorPage::None => (None, None),
                    ErrorPage::Shared(fill) => (None, Some(fill)),
                    ErrorPage::Private(response) => (Some(response), None),
                };
                let answer = self.stand_in_or_relay(received, need, &failure, own);
                if let Some(fill) = fill {
                    spawn(&self.telemetry, "fill", async move {
                        fill::fill(fill, None, errand.coalescing()).await;
                    });
                }
                answer
            }
            Arrival::GaveWay | Arrival::InVain { .. } => {
                self.stand_in(received, need, &Failure::internal(), "lost")
            }
            Arrival::Private { response, why } if received.method == Method::HEAD => {
                self.cache.notes.recovered(&key);
                self.heed_head(received, &errand, &response, request_time, underway.tick());
                Self::relay_uncacheable(received, need, response, why)
            }
            Arrival::Private { response, why } => {
                let selection = Selection::of(response.headers(), &*received.headers);
                errand.note_private(key, &selection, tells_of_all(errand.coalescing(), why), now);
                Self::relay_uncacheable(received, need, response, why)
            }
        }
    }

    /// Stores a response if it may be stored, reads its body in a task of its own, and answers with it. Until now requests for the same
    /// have met under this key.
    pub(super) fn keep(
        self: &Arc<Self>,
        received: &Received,
        need: &Need,
        (errand, key): (Errand, Key),
        shareable: Shareable,
        underway: Underway,
    ) -> Answer {
        let Shareable { stored, withheld, fill, keep } = shareable;
        let kept = errand.store(&stored, keep);
        errand.note_shareable(key, &stored, keep, self.clock.now());
        let answer = self.own(received, need, &stored, kept, stored.status()).with_withheld(Some(&withheld));
        let kept = kept.is_ok().then(|| errand.kept(stored, None, underway));
        spawn(&self.telemetry, "fill", async move {
            fill::fill(fill, kept, errand.coalescing()).await;
        });
        answer
    }

    fn own(
        &self,
        received: &Received,
        need: &Need,
        stored: &Stored,
        kept: Result<(), Unkept>,
        status: StatusCode,
    ) -> Answer {
        let answered = match status {
            StatusCode::NOT_MODIFIED => Answered::Revalidated,
            _ if kept.is_ok() => Answered::Miss,
            _ => Answered::Pass,
        };
        let outcome = Outcome {
            forward_status: Some(status),
            stored: kept.is_ok(),
            detail: kept.err().map(Unkept::detail),
            ..Outcome::of(answered).forwarded(need.forward)
        };
        deliver::deliver(received, stored, outcome, self.clock.now())
            .unwrap_or_else(|_| self.stand_in(received, need, &Failure::internal(), "gone"))
    }

    /// RFC 9111 §4.3.5: a 200 to HEAD updates or invalidates the stored responses to GET "that could have been chosen for
    /// that request".
    fn heed_head(
        &self,
        received: &Received,
        errand: &Errand,
        head: &Response<upstream::Body>,
        request_time: SystemTime,
        tick: u64,
    ) {
        let now = self.clock.now();
        let (store, key) = (&self.cache.store, received.keyed.key);
        let Some(variants) = store.lookup(key, now) else { return };
        let exchange = Exchange {
            method: &received.method,
            request: &*received.headers,
            status: head.status(),
            response: head.headers(),
            request_time,
            response_time: now,
        };
        let has_credentials = received.credentials.authorization;
        for stored in variants.responses() {
            let metadata = stored.metadata();
            let could_be_chosen = metadata.selection.matches(&*received.headers)
                && (metadata.sharing.with_credentials || !has_credentials);
            if !could_be_chosen {
                continue;
            }
            match head_effect(&stored.headers(), head.headers(), head.status()) {
                HeadEffect::Nothing => {}
                HeadEffect::Invalidates => store.remove(key, stored.body(), now),
                HeadEffect::Freshens => {
                    let (metadata, headers) =
                        policy::freshen(&exchange, (metadata, &stored.headers()), &received.route().rules);
                    if metadata.may_be_kept() {
                        let scopes = errand.scopes_with_tags(&headers);
                        let body = stored.body().clone();
                        let was_needed = stored.was_needed();
                        let draft = Draft { metadata, headers, body, tick, scopes, was_needed };
                        store.put(key, &Stored::new(draft), now);
                    } else {
                        store.remove(key, stored.body(), now);
                    }
                }
            }
        }
    }
}

/// Whether the answer's not being for others says that other requests' answers are not, either. What HEAD brings is not
/// stored at all, and what was refused for its credentials may be for everyone who has none; where requests with
/// credentials wait for each other, they learn from each other too.
pub(super) fn tells_of_all(coalescing: &Coalescing, why: Unstorable) -> bool {
    match why {
        Unstorable::Method | Unstorable::RequestNoStore | Unstorable::Disabled => false,
        Unstorable::Authorization => coalescing.join_with_authorization,
        Unstorable::Status
        | Unstorable::MustUnderstand
        | Unstorable::NoStore
        | Unstorable::Private
        | Unstorable::SetCookie
        | Unstorable::VaryStar
        | Unstorable::NoCache
        | Unstorable::NoFreshness
        | Unstorable::Extension => true,
    }
}
