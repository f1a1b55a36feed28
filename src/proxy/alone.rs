//! A request that could be answered from the cache fetches for itself: its answers could not be shared, or it may not wait.

use super::Proxy;
use super::answer::Answer;
use super::collapse::Need;
use super::failure::Failure;
use super::fetch::{Arrival, Errand, ErrorPage};
use super::fill;
use super::receive::Received;
use super::supervise::spawn;
use crate::outcome::{Answered, Outcome};
use crate::policy::Unstorable;
use crate::store::Stored;
use crate::telemetry::{DuplicateCause, FetchReason};
use http::StatusCode;
use std::sync::Arc;

impl Proxy {
    /// Fetches for this request alone. What comes back is stored if it may be: that ends the time of going alone.
    ///
    /// The fetch runs in the request's own task: if the client leaves before the head, it is given up.
    pub(super) async fn alone(
        self: &Arc<Self>,
        received: &Received,
        need: Need,
        cause: Option<DuplicateCause>,
    ) -> Answer {
        if let Some(cause) = cause {
            self.telemetry.duplicate_fetch(received.route, cause);
        }
        let mut errand = Errand::shared(self, received, need.stale.clone());
        errand.outgoing.method = received.method.clone();
        if errand.validate.is_none() {
            errand.reason = FetchReason::Pass;
        }
        let underway = self.cache.store.stamps().begin();
        let arrival = errand.run(&underway).await;
        let key = self.flight_key(received, &need.selecting);
        match arrival {
            Arrival::Shareable { stored, fill, keep } => {
                self.cache.notes.forget(&key);
                let is_stored = errand.store(&stored, keep);
                let status = stored.status();
                let answer = self.own(received, &need, &stored, is_stored, status);
                let kept = is_stored.then(|| errand.kept(stored, None, underway));
                spawn(&self.telemetry, "fill", async move {
                    fill::fill(fill, kept, errand.coalescing()).await;
                });
                answer
            }
            Arrival::Confirmed { stored, keep } => {
                self.cache.notes.forget(&key);
                let is_stored = errand.store(&stored, keep);
                self.own(received, &need, &stored, is_stored, StatusCode::NOT_MODIFIED)
            }
            Arrival::Failed { failure, page: ErrorPage::Private(response) } => {
                self.stand_in_or_relay(received, &need, &failure, Some(response))
            }
            Arrival::Failed { failure, page: ErrorPage::None } => {
                self.stand_in(received, &need, &failure, "failed")
            }
            Arrival::Failed { failure, page: ErrorPage::Shared(fill) } => {
                let answer = self.stand_in(received, &need, &failure, "failed");
                spawn(&self.telemetry, "fill", async move {
                    fill::fill(fill, None, errand.coalescing()).await;
                });
                answer
            }
            Arrival::GaveWay => self.stand_in(received, &need, &Failure::internal(), "lost"),
            Arrival::Private { response, why } => {
                if tells_of_all(received, why) {
                    let ttl = errand.coalescing().hit_for_miss_ttl;
                    self.cache.notes.uncacheable(key, self.clock.now(), ttl);
                    errand.forget_validated();
                }
                Self::relay_uncacheable(received, &need, response, why)
            }
        }
    }

    fn own(
        &self,
        received: &Received,
        need: &Need,
        stored: &Stored,
        is_stored: bool,
        status: StatusCode,
    ) -> Answer {
        let answered = match status {
            StatusCode::NOT_MODIFIED => Answered::Revalidated,
            _ if is_stored => Answered::Miss,
            _ => Answered::Pass,
        };
        let outcome = Outcome {
            forward_status: Some(status),
            stored: is_stored,
            ..Outcome::of(answered).forwarded(need.forward)
        };
        self.deliver(received, stored, outcome)
            .unwrap_or_else(|_| self.stand_in(received, need, &Failure::internal(), "gone"))
    }
}

/// Whether the answer's not being for others says that other requests' answers are not, either. What HEAD brings is not
/// stored at all, and what was refused for its credentials may be for everyone who has none; where requests with
/// credentials wait for each other, they learn from each other too.
fn tells_of_all(received: &Received, why: Unstorable) -> bool {
    match why {
        Unstorable::Method | Unstorable::RequestNoStore | Unstorable::Disabled => false,
        Unstorable::Authorization => received.route().coalescing.join_with_authorization,
        Unstorable::Status
        | Unstorable::MustUnderstand
        | Unstorable::NoStore
        | Unstorable::Private
        | Unstorable::SetCookie
        | Unstorable::VaryStar
        | Unstorable::NoCache
        | Unstorable::NoFreshness => true,
    }
}
