//! What a request gets when the fetch that it needed failed, or brought what is for nobody else.

use super::answer::{Answer, Source};
use super::collapse::Need;
use super::deliver;
use super::failure::Failure;
use super::receive::Received;
use super::{Proxy, pass};
use crate::outcome::{Answered, Outcome};
use crate::policy::Unstorable;
use crate::policy::conditional::{self, Precondition};
use crate::store::stamps::Standing;
use crate::upstream;
use http::{Response, StatusCode, header};

impl Proxy {
    /// What a request gets when the fetch that it needed failed: a stale response where that is permitted (RFC 9111
    /// §4.2.4), else the failure.
    pub(super) fn stand_in(
        &self,
        received: &Received,
        need: &Need,
        failure: &Failure,
        detail: &'static str,
    ) -> Answer {
        if failure.is_refusal() {
            return self.stand_in_unasked(received, need, failure, "refused");
        }
        let outcome = Outcome::of(Answered::Error).forwarded(need.forward).because(detail);
        self.stand_in_as(received, need, failure, outcome)
    }

    /// The same for one who waited for the fetch of another.
    pub(super) fn stand_in_collapsed(&self, received: &Received, need: &Need, failure: &Failure) -> Answer {
        let outcome = Outcome::of(Answered::Error).forwarded(need.forward).because("failed").collapsed();
        self.stand_in_as(received, need, failure, outcome)
    }

    /// The same where nothing was sent upstream: `fwd` would say that something was (RFC 9211 §2.2).
    pub(super) fn stand_in_unasked(
        &self,
        received: &Received,
        need: &Need,
        failure: &Failure,
        detail: &'static str,
    ) -> Answer {
        self.stand_in_as(received, need, failure, Outcome::of(Answered::Error).because(detail))
    }

    fn stand_in_as(&self, received: &Received, need: &Need, failure: &Failure, outcome: Outcome) -> Answer {
        let status = failure.status();
        let was_told = outcome.forward.is_some();
        // RFC 5861 §4 names the statuses that count as an error.
        let is_outage = failure.is_silence() || matches!(status.as_u16(), 500 | 502 | 503 | 504);
        let forward_status = (was_told && !failure.is_silence()).then_some(status);
        let stale = Outcome { forward_status, ..outcome };
        if is_outage && let Some(answer) = self.stale_answer(received, need, stale) {
            return answer;
        }
        let must_revalidate = need.stale.as_ref().is_some_and(|stored| stored.metadata().must_be_validated());
        let failure = if must_revalidate { failure.for_want_of_validation() } else { failure.clone() };
        failure.answer(Outcome { forward_status, ..outcome }, &received.site.told(None))
    }

    /// The same for the client whose request failed: where nothing may stand in, it gets what the upstream said to it.
    pub(super) fn stand_in_or_relay(
        &self,
        received: &Received,
        need: &Need,
        failure: &Failure,
        own: Option<Response<upstream::Body>>,
    ) -> Answer {
        let answer = self.stand_in(received, need, failure, "failed");
        match own {
            Some(response) if answer.outcome.answered == Answered::Error => {
                pass::relay(received, response, answer.outcome)
            }
            Some(_) | None => answer,
        }
    }

    /// A stale response in place of an answer, where that is permitted.
    pub(super) fn stale_answer(&self, received: &Received, need: &Need, outcome: Outcome) -> Option<Answer> {
        let stale = need.stale.as_ref()?;
        let rules = &received.route().rules;
        // It was found when this request came, and its body may have broken off since.
        let is_permitted = !stale.body().is_lost()
            && stale.metadata().may_serve_on_error(&received.asked(), self.clock.now(), rules)
            && self.cache.store.standing(stale) != Standing::Void;
        if !is_permitted {
            return None;
        }
        let outcome = Outcome { answered: Answered::Stale, ..outcome };
        deliver::deliver(received, stale, outcome, self.clock.now()).ok()
    }

    /// The answer that the upstream gave to a fetch meant for all, and that turned out to be for one.
    pub(super) fn relay_uncacheable(
        received: &Received,
        need: &Need,
        response: Response<upstream::Body>,
        why: Unstorable,
    ) -> Answer {
        let outcome = Outcome {
            forward_status: Some(response.status()),
            ..Outcome::of(Answered::Pass).forwarded(need.forward).because(why.detail())
        };
        let (asked, now) = (received.asked(), received.now);
        if !received.selects {
            return pass::relay(received, response, outcome);
        }
        // Its own condition stayed here, because the fetch was meant for all.
        match conditional::evaluate_passing(&asked, response.status(), response.headers(), now) {
            Precondition::Deliver => pass::relay(received, response, outcome),
            Precondition::NotModified => {
                let mut answer = pass::relay(received, response, outcome);
                answer.response = not_modified(answer.response);
                answer
            }
        }
    }
}

/// The news that the client's own copy of this response still holds (RFC 9110 §15.4.5), with all that goes with it but what
/// describes a body.
fn not_modified(response: Response<Source>) -> Response<Source> {
    let mut response = response.map(|_| Source::Empty);
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    for name in
        [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_TYPE, header::CONTENT_RANGE]
    {
        response.headers_mut().remove(name);
    }
    response
}
