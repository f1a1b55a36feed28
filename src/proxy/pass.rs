//! Requests that go upstream for one client alone, with everything in them: bodies, upgrades, unsafe methods.

use super::Proxy;
use super::answer::{Answer, Source};
use super::attempts::{Attempts, Excess};
use super::back_off::Asker;
use super::collapse::Need;
use super::failure::{Failed, Failure};
use super::fetch::{Errand, Keep, Sent};
use super::host;
use super::meeting::Among;
use super::outgoing;
use super::receive::{Received, Rejection};
use super::selecting::Selecting;
use super::traffic::Ticket;
use super::upload::Upload;
use crate::outcome::{Answered, Forward, Outcome};
use crate::policy::invalidation::{self, Target};
use crate::policy::{Exchange, Identity, Key, Keyed, Metadata, PassCause, forwarding, storing};
use crate::store::stamps::{Scope, Scopes, Standing, Strength};
use crate::telemetry::FetchReason;
use crate::telemetry::log::explained;
use crate::upstream::{self, BodyFault, RequestBody};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response, StatusCode};
use std::sync::Arc;
use std::time::SystemTime;

/// A range is asked of the upstream as it is: by setting, or instead of the whole in vain, because the answers are for one client each.
#[derive(Debug, Clone)]
pub(super) struct PassesRange {
    /// Among which the whole would have been fetched.
    pub(super) among: Among,
    /// Why it may be a fetch that another could have done for, were the answers for all.
    pub(super) excess: Option<Excess>,
    /// Whether its client would wait for the fetches of others.
    pub(super) waits: bool,
}

impl Proxy {
    /// Sends the request as it is, and the answer back as it is.
    ///
    /// It runs in the request's own task: a client that leaves takes its exchange with it.
    pub(super) async fn pass(
        self: &Arc<Self>,
        mut received: Received,
        upload: Upload,
        cause: PassCause,
        range: Option<PassesRange>,
        begun: Option<Sent>,
    ) -> Answer {
        if forwarding::is_last_hop(&received.method, &received.headers) {
            return last_hop();
        }
        let (forward, detail) = words(cause);
        let outcome = Outcome::of(Answered::Pass).forwarded(forward).because(detail);
        let outgoing = outgoing::alone(&received);
        let (body, fault) = if received.has_body {
            upload.send(&received.site.settings.request_body_limits())
        } else {
            (RequestBody::Empty, None)
        };
        let site = Arc::clone(&received.site);
        let underway = self.cache.store.stamps().begin();
        let mut attempts = Attempts::new(&self.telemetry, &site, received.route, FetchReason::Pass);
        if let Some(PassesRange { among, excess, .. }) = &range {
            let ticket = |excess: Excess| Ticket { tick: underway.tick(), alone: excess.cause() };
            let among = excess.map(|excess| (among, ticket(excess)));
            attempts = attempts.among(&self.cache.traffic, among, None, *excess);
        }
        let request_time = self.clock.now();
        let sent = match begun {
            Some(sent) => sent,
            None => site.upstream_of(received.route).send(&outgoing, body, &mut attempts).await,
        };
        let (_, passage) = attempts.close(&sent);
        let mut response = match sent {
            Ok(response) => response,
            Err(error) => {
                match fault.as_ref().and_then(|fault| fault.get()) {
                    Some(BodyFault::TooLarge) => return Rejection::BodyTooLarge.answer(received.version),
                    Some(BodyFault::TooSlow) => return Rejection::BodyTooSlow.answer(received.version),
                    None => {}
                }
                let (route, upstream) = (received.route().name.as_str(), site.upstream_name(received.route));
                tracing::warn!(route, upstream, error = explained(&error), "the request failed");
                return self.failed_to_pass(&received, cause, range.as_ref(), &error, underway.tick());
            }
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.tunnel(received.upgrade.take(), response);
        }
        received.site.received_from_upstream(&mut response);
        // Only a POST's answer may be stored; the invalidation below is its own and does not count.
        let is_purged = received.method == Method::POST
            && self.cache.store.stamps().judge(&received.scopes(), underway.tick()) == Standing::Void;
        self.invalidate_after(&received, response.status(), response.headers());
        if let Some(range) = &range {
            self.note_passed_range(&received, range, &response, underway.tick());
        }
        if let Some(passage) = passage {
            passage.is_for_one();
            response.body_mut().hold(passage);
        }
        let response = match self.get_after_post(&received, response, request_time) {
            Ok((metadata, response)) if !is_purged => {
                return self.keep_for_get(&received, metadata, response);
            }
            Ok((_, response)) | Err(response) => response,
        };
        let outcome = Outcome { forward_status: Some(response.status()), ..outcome };
        relay(&received, response, outcome)
    }

    fn failed_to_pass(
        &self,
        received: &Received,
        cause: PassCause,
        range: Option<&PassesRange>,
        error: &upstream::Error,
        tick: u64,
    ) -> Answer {
        let failure = Failure::of(error);
        if let Some(range) = range {
            self.note_failed_range(received, range, failure.clone(), Vec::new(), tick);
        }
        let (forward, detail) = words(cause);
        let outcome = Outcome::of(Answered::Pass).because(detail);
        let outcome = if failure.is_refusal() { outcome } else { outcome.forwarded(forward) };
        failure.answer(outcome, &received.site.told(None))
    }

    /// A range that is passed on is a fetch like those that go alone, but for its range.
    fn note_passed_range(
        &self,
        received: &Received,
        range: &PassesRange,
        response: &Response<upstream::Body>,
        tick: u64,
    ) {
        if response.status().is_server_error() {
            let tags = self.cache.tags(host::without_port(&received.host), response.headers());
            let failure = Failure::told(response.status(), response.headers());
            return self.note_failed_range(received, range, failure, tags, tick);
        }
        self.cache.notes.recovered(&range.among.key);
        self.cache.note_answered(range.among.key, &Asker::of(received, range.waits), self.clock.now());
    }

    fn note_failed_range(
        &self,
        received: &Received,
        range: &PassesRange,
        failure: Failure,
        tags: Vec<Key>,
        tick: u64,
    ) {
        let scopes = Scopes { tags: tags.into(), ..received.scopes().into_owned() };
        let failed = Failed { failure, tick, scopes: Arc::new(scopes), whose: None };
        self.cache.note_failed(range.among.key, &Asker::of(received, range.waits), failed, self.clock.now());
    }

    /// Whether the answer to a POST may answer later GETs of its target (RFC 9110 §9.3.3); if not, it is given back.
    fn get_after_post(
        &self,
        received: &Received,
        response: Response<upstream::Body>,
        request_time: SystemTime,
    ) -> Result<(Metadata, Response<upstream::Body>), Response<upstream::Body>> {
        let exchange = Exchange {
            method: &received.method,
            request: &*received.headers,
            status: response.status(),
            response: response.headers(),
            request_time,
            response_time: self.clock.now(),
        };
        match storing::post_as_get(&exchange, &target_uri(received), &received.route().rules) {
            Some(metadata) => Ok((metadata, response)),
            None => Err(response),
        }
    }

    /// Stores the answer to a POST under the key of a GET, and answers with it. Its tick is drawn anew, because the POST
    /// has outdated all that was fetched before it came back.
    fn keep_for_get(
        self: &Arc<Self>,
        received: &Received,
        metadata: Metadata,
        response: Response<upstream::Body>,
    ) -> Answer {
        let underway = self.cache.store.stamps().begin();
        let mut errand = Errand::shared(self, received, None, false);
        let target = received.shared_target.as_str();
        let key = self.get_keys(received, received.route, target).key;
        errand.key = key;
        let shareable = errand.shareable(response, metadata, Keep::Stored, underway.tick());
        let need = Need {
            forward: Forward::Method,
            stale: None,
            selecting: Selecting::default(),
            answered: Vec::new(),
            waits: false,
        };
        let mut answer = self.keep(received, &need, (errand, key), shareable, underway);
        answer.outcome.answered = Answered::Pass;
        answer
    }

    /// RFC 9111 §4.4: an unsafe request that succeeded outdates what is stored for its target, and for the URIs of the same
    /// origin that its answer names. RFC 9875 §3: and what is in the groups that it names.
    fn invalidate_after(&self, received: &Received, status: StatusCode, headers: &HeaderMap) {
        if !invalidation::invalidates(&received.method, status) {
            return;
        }
        let target = target_uri(received);
        let own = [Scope::Uri(received.keyed.uri)];
        let named = invalidation::targets(headers, &target);
        let named = named.iter().filter_map(|target| self.scope_of(received, target));
        let groups = invalidation::invalidated_groups(&received.method, headers);
        let groups = groups
            .iter()
            .map(|group| Scope::Tag(self.cache.group(host::without_port(&received.host), group)));
        for scope in own.into_iter().chain(named).chain(groups) {
            self.cache.store.stamps().draw(scope, Strength::Hard, self.clock.now());
        }
        self.telemetry.invalidated(received.counted());
    }

    /// The scope of another URI of the same host.
    fn scope_of(&self, received: &Received, target: &str) -> Option<Scope> {
        let target = PathAndQuery::try_from(target).ok()?;
        let (route, target) = received.site.locate(&received.host, target.as_str()).ok()?;
        let rules = &received.site.settings.routes[route];
        let target = rules.key.query.apply(&target);
        Some(Scope::Uri(self.get_keys(received, route, &target).uri))
    }

    /// The keys of a GET for a target of the same host.
    fn get_keys(&self, received: &Received, route: usize, target: &str) -> Keyed {
        let identity = Identity {
            route: received.site.route_ids[route],
            scheme: received.client.scheme(),
            host: &received.host,
            target,
            method: &Method::GET,
            headers: &*received.headers,
            body_digest: None,
        };
        self.cache.keyer.key(&identity, &received.site.settings.routes[route].key)
    }
}

fn target_uri(received: &Received) -> Target<'_> {
    Target {
        scheme: received.client.scheme(),
        host: &received.host,
        path_and_query: received.target.as_str(),
    }
}

/// A response straight from the upstream, for the client of this request.
pub(super) fn relay(received: &Received, response: Response<upstream::Body>, outcome: Outcome) -> Answer {
    let (head, body) = response.into_parts();
    // Dropping the body of an answer to HEAD that was fetched as a GET gives its connection up.
    let source = if received.method == Method::HEAD { Source::Empty } else { Source::Upstream(body) };
    let mut response = Response::new(source);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    if let Some(reason) = head.extensions.get::<hyper::ext::ReasonPhrase>() {
        response.extensions_mut().insert(reason.clone());
    }
    let mut answer = Answer { response, outcome };
    let key = received.key_text();
    received.site.told(key.as_deref()).of(&mut answer);
    answer
}

/// The answer to an OPTIONS request that may go no further than here.
fn last_hop() -> Answer {
    let mut response = Response::new(Source::Empty);
    *response.status_mut() = StatusCode::NO_CONTENT;
    Answer { response, outcome: Outcome::of(Answered::Rejected).because("max-forwards") }
}

pub(super) fn words(cause: PassCause) -> (Forward, &'static str) {
    match cause {
        PassCause::Method => (Forward::Method, "method"),
        PassCause::Disabled => (Forward::Bypass, "disabled"),
        PassCause::RequestBody => (Forward::Bypass, "request-body"),
        PassCause::RequestNoStore => (Forward::Request, "request-no-store"),
        PassCause::Upgrade => (Forward::Bypass, "upgrade"),
        PassCause::Range => (Forward::Bypass, "range"),
    }
}
