//! One exchange with the upstream, and what comes of it: no word here of who waits.

use super::Cache;
use super::attempts::{Attempts, Excess};
use super::back_off::Asker;
use super::failure::{Failed, Failure};
use super::meeting::{Among, is_like_others};
use super::outgoing;
use super::receive::Received;
use super::settings::Coalescing;
use super::site::Site;
use super::traffic::{Passage, Ticket};
use crate::body::{self, Finished, Writer};
use crate::clock::Clock;
use crate::policy::{self, Credentials, Disposition, Exchange, Invalid, Key, Metadata, Unstorable};
use crate::store::stamps::{Scopes, Standing, Underway};
use crate::store::{Draft, Stored};
use crate::telemetry::log::explained;
use crate::telemetry::{DuplicateCause, FetchReason, Telemetry};
use crate::upstream::{self, Outgoing, RequestBody, Urgency};
use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

/// What is to be fetched, for whom it may be stored, and what is validated by it. It owns all that it needs: no client's
/// connection holds it.
#[derive(Debug)]
pub(super) struct Errand {
    pub(super) cache: Arc<Cache>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) clock: Clock,
    pub(super) site: Arc<Site>,
    pub(super) route: usize,
    /// Under which responses are stored.
    pub(super) key: Key,
    pub(super) scopes: Scopes<'static>,
    pub(super) outgoing: Outgoing,
    /// The request's body, where it is part of the key.
    pub(super) body: Option<Bytes>,
    /// The fields of the client whose request this is: what is selected by, and whose credentials and cookies are sent.
    pub(super) client_headers: Arc<HeaderMap>,
    /// The stored response that is asked about; `None`: an unconditional fetch.
    pub(super) validate: Option<Stored>,
    pub(super) reason: FetchReason,
    /// What among them tells who that client is.
    pub(super) credentials: Credentials,
    /// Whether what comes of it says something of what others would get.
    pub(super) is_like_others: bool,
    /// Whether that client waits for the fetches of others, be it because of what is known of the key.
    pub(super) waits: bool,
    /// Whether others may wait for it.
    pub(super) leads: bool,
    /// Why others do not who find it under way.
    pub(super) alone: DuplicateCause,
    /// Among which fetches it is that others can wait for, or could, were it known to be for them; `None`: nobody could.
    pub(super) among: Option<Among>,
    /// It is under way among them: where it leads, from its registration on, else from its sending, and until the body of its response
    /// takes this over.
    pub(super) passage: Option<Passage>,
    /// Whether it may be a fetch that another could have done for, or is; it is counted when the request is written.
    pub(super) excess: Option<Excess>,
    /// What has come already, where the request was sent before there was an errand.
    pub(super) begun: Option<Sent>,
}

/// What sending a request came to.
pub(super) type Sent = Result<Response<upstream::Body>, upstream::Error>;

/// What came of a fetch. Where there is a body it has yet to be read: see [`super::fill`].
#[derive(Debug)]
pub(super) enum Arrival {
    /// A response that may be stored, or at least be shared with those who wait.
    Shareable(Shareable),
    /// A 304 gave a stored response new life; its body is here already.
    Confirmed(Confirmed),
    /// The upstream's error, for all who wait, and what it sent with it: tags, by which it can be purged, and a page.
    Failed { failure: Failure, tags: Vec<Key>, page: ErrorPage },
    /// The stored response that others wait for was confirmed, but has become unusable meanwhile, perhaps by a purge: that was at this tick.
    InVain { purged: Option<u64> },
    /// Nobody waits for this fetch, and the upstream is busy: it gave way.
    GaveWay,
    /// A response for the one client whose request this is.
    Private { response: Response<upstream::Body>, why: Unstorable },
}

/// A response that others may share, and a body that has yet to be read.
#[derive(Debug)]
pub(super) struct Shareable {
    pub(super) stored: Stored,
    /// The fields that only the client whose request this is gets.
    pub(super) withheld: HeaderMap,
    pub(super) fill: Fill,
    pub(super) keep: Keep,
}

/// A stored response that the upstream has confirmed.
#[derive(Debug)]
pub(super) struct Confirmed {
    pub(super) stored: Stored,
    /// The fields that only the client whose request this is gets.
    pub(super) withheld: HeaderMap,
    pub(super) keep: Keep,
}

/// What an upstream sent along with its error.
#[derive(Debug)]
pub(super) enum ErrorPage {
    /// Nothing, or nothing that may be passed on.
    None,
    /// A page for all who wait; its body has yet to be read.
    Shared(Fill),
    /// A page that may be meant for one: it goes to the client whose request this is, the others are told the status.
    Private(Response<upstream::Body>),
}

/// A body that comes from the upstream.
#[derive(Debug)]
pub(super) enum Fill {
    /// It has yet to be read.
    Coming { writer: Writer, source: upstream::Body },
    /// It came with its head.
    Whole(Finished),
    /// It broke off with its head.
    Broken,
}

/// For how long a response is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// It goes into the store.
    Stored,
    /// Those who wait for it share it; nobody else does, for this reason.
    WhileWaited(Unkept),
}

/// Why a response that may be shared is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unkept {
    /// It is stale on arrival and cannot be validated.
    Useless,
    /// The fields of a validation forbid to keep what is stored.
    Forbidden,
    /// Its body is larger than the route keeps.
    TooLarge,
    /// Too many bytes are in flight.
    OverBudget,
    /// A purge has fallen since it was asked for.
    Purged,
    /// A newer response is stored.
    Superseded,
}

impl Arrival {
    /// The upstream gave no answer, or none that counts.
    fn silence(failure: Failure) -> Self {
        Self::Failed { failure, tags: Vec::new(), page: ErrorPage::None }
    }

    /// Whether it is an answer, be it for one or for all.
    pub(super) fn is_answer(&self) -> bool {
        match self {
            Self::Shareable(_) | Self::Confirmed(_) | Self::InVain { .. } | Self::Private { .. } => true,
            Self::Failed { .. } | Self::GaveWay => false,
        }
    }
}

impl Unkept {
    /// The word for the `detail` parameter of RFC 9211.
    pub(super) const fn detail(self) -> &'static str {
        match self {
            Self::Useless => "no-freshness",
            Self::Forbidden => "not-storable",
            Self::TooLarge => "too-large",
            Self::OverBudget => "over-budget",
            Self::Purged => "purged",
            Self::Superseded => "superseded",
        }
    }
}

impl Errand {
    /// The errand that fetches, for all, what this request asks for, which waits for others or does not.
    pub(super) fn shared(
        proxy: &super::Proxy,
        received: &Received,
        validate: Option<Stored>,
        waits: bool,
    ) -> Self {
        // RFC 9110 §13.1.2: in a request that is not safe, If-None-Match would forbid what it is meant to ask for.
        let validate = validate.filter(|_| received.method != Method::POST);
        // A purge may have fallen while the request waited for another fetch.
        let validate = validate.filter(|stored| proxy.cache.store.standing(stored) != Standing::Void);
        let reason = if validate.is_some() { FetchReason::Revalidate } else { FetchReason::Miss };
        Self {
            cache: Arc::clone(&proxy.cache),
            telemetry: Arc::clone(&proxy.telemetry),
            clock: proxy.clock,
            site: Arc::clone(&received.site),
            route: received.route,
            key: received.keyed.key,
            scopes: received.scopes().into_owned(),
            outgoing: outgoing::shared(received),
            body: received.buffered.as_ref().map(|(body, _)| body.clone()),
            client_headers: Arc::clone(&received.headers),
            validate,
            reason,
            credentials: received.credentials,
            is_like_others: is_like_others(&received.route().coalescing, received.credentials),
            waits,
            leads: false,
            alone: DuplicateCause::Uncacheable,
            among: None,
            passage: None,
            excess: None,
            begun: None,
        }
    }

    /// The same errand of a request that found nothing to wait for among these, or no longer, for this cause, and whose fetch has drawn
    /// this tick: what is under way all the same is for one client each, or was asked for before a purge.
    pub(super) fn leading(mut self, among: Among, waited: Option<DuplicateCause>, tick: u64) -> Self {
        let since = self.cache.store.stamps().newest_over(&self.scopes);
        let (passage, beside) = self.cache.traffic.enter(&among, self.ticket(tick), since);
        (self.passage, self.leads) = (Some(passage), true);
        (self.among, self.excess) = (Some(among), waited.map(Excess::Waited).or(beside.map(Excess::Beside)));
        self
    }

    fn ticket(&self, tick: u64) -> Ticket {
        Ticket { tick, alone: self.alone }
    }

    /// What is remembered of the key of its variant concerns it.
    pub(super) fn noted_under(&self) -> Key {
        self.among.as_ref().map_or(self.key, |among| among.key)
    }

    /// The same errand without hurry: it gives way where the upstream is busy.
    pub(super) fn in_background(mut self) -> Self {
        self.outgoing.urgency = Urgency::Background;
        self.reason = FetchReason::Refresh;
        self
    }

    pub(super) fn coalescing(&self) -> &Coalescing {
        &self.site.settings.routes[self.route].coalescing
    }

    fn route_name(&self) -> &str {
        &self.site.settings.routes[self.route].name
    }

    /// Sends the request, at this moment, and decides what came of it.
    ///
    /// A validation that the upstream answers about another response is followed by an unconditional fetch. So is one that nobody waits
    /// for and whose stored response has become unusable meanwhile (its body broke off, or it was purged); that has a tick of
    /// its own: what it brings was asked for after the purge. Cancel-safe: dropped, the exchange is given up.
    pub(super) async fn run(&mut self, underway: &mut Underway, now: SystemTime) -> Arrival {
        let mut request_time = now;
        loop {
            let sent = match self.begun.take() {
                Some(sent) => sent,
                None => self.send(underway.tick()).await,
            };
            let mut response = match sent {
                Ok(response) => response,
                Err(error) if error.is_refusal() && self.outgoing.urgency == Urgency::Background => {
                    return Arrival::GaveWay;
                }
                Err(error) => {
                    let (route, upstream) = (self.route_name(), self.site.upstream_name(self.route));
                    tracing::warn!(route, upstream, error = explained(&error), "the fetch failed");
                    return Arrival::silence(Failure::of(&error));
                }
            };
            self.site.received_from_upstream(&mut response);
            if let Some(mut arrival) = self.judge(response, request_time, underway.tick()) {
                if let Arrival::Shareable(Shareable { fill, .. }) = &mut arrival {
                    fill.take_what_is_here().await;
                }
                return arrival;
            }
            let old = self.validate.take();
            let is_gone = old.as_ref().is_some_and(|old| !self.is_usable(old));
            let stamps = self.cache.store.stamps();
            let is_void = |old: &Stored| self.cache.store.standing(old) == Standing::Void;
            let purged = old.filter(is_void).map(|old| stamps.newest_over(&old.scopes()));
            if is_gone && self.leads {
                return Arrival::InVain { purged };
            }
            if purged.is_some() && self.among.is_some() {
                // But for the purge the first question would have been enough.
                self.excess = Some(Excess::Waited(DuplicateCause::Purge));
            }
            self.reason = FetchReason::Retry;
            *underway = stamps.begin();
            request_time = self.clock.now();
        }
    }

    async fn send(&mut self, tick: u64) -> Sent {
        let (passage, excess) = (self.passage.take(), self.excess.take());
        let mut attempts = Attempts::new(&self.telemetry, &self.site, self.route, self.reason).among(
            &self.cache.traffic,
            self.among.as_ref().map(|among| (among, self.ticket(tick))),
            passage,
            excess,
        );
        let mut outgoing = Cow::Borrowed(&self.outgoing);
        if let Some(stored) = &self.validate {
            stored
                .metadata()
                .validators(&stored.headers())
                .apply(Arc::make_mut(&mut outgoing.to_mut().headers));
        }
        let body = self.body.clone().map_or(RequestBody::Empty, RequestBody::Buffered);
        let sent = self.site.upstream_of(self.route).send(&outgoing, body, &mut attempts).await;
        let (excess, passage) = attempts.close(&sent);
        (self.excess, self.passage) = (excess, passage);
        sent
    }

    /// What a response comes to; `None` if it answers a question that is no longer the right one.
    fn judge(
        &mut self,
        mut response: Response<upstream::Body>,
        request_time: SystemTime,
        tick: u64,
    ) -> Option<Arrival> {
        let rules = &self.site.settings.routes[self.route].rules;
        let exchange = Exchange {
            method: &self.outgoing.method,
            request: &*self.client_headers,
            status: response.status(),
            response: response.headers(),
            request_time,
            response_time: self.clock.now(),
        };
        let old_headers = self.validate.as_ref().map(Stored::headers).unwrap_or_default();
        let validated = self.validate.as_ref().map(|stored| (stored.metadata(), &old_headers));
        let disposition = match policy::dispose(&exchange, validated, rules) {
            Disposition::Store(_) | Disposition::Share(_) if self.contradicts_extension(&exchange) => {
                Disposition::Relay(Unstorable::Extension)
            }
            disposition => disposition,
        };
        let is_private = disposition == Disposition::Fail && policy::failure_is_private(&exchange, rules);
        if let (Some(passage), Disposition::Relay(_)) = (&self.passage, &disposition) {
            passage.is_for_one();
        }
        response.body_mut().hold(self.passage.take());
        let tags = || self.cache.tags(&self.scopes.host, response.headers());
        Some(match disposition {
            Disposition::Store(metadata) => {
                Arrival::Shareable(self.shareable(response, metadata, Keep::Stored, tick))
            }
            Disposition::Share(metadata) => {
                let keep = Keep::WhileWaited(Unkept::Useless);
                Arrival::Shareable(self.shareable(response, metadata, keep, tick))
            }
            Disposition::Freshen { metadata, headers } => {
                let old = self.validate.as_ref().filter(|old| self.is_usable(old))?;
                let keep =
                    if metadata.may_be_kept() { Keep::Stored } else { Keep::WhileWaited(Unkept::Forbidden) };
                let withheld = policy::validation::withheld(response.headers(), &headers);
                let mut scopes = self.scopes_with_tags(&headers);
                // It is what had these until now, and a purge of one may have fallen since it was asked about.
                let former = self.cache.tags(&self.scopes.host, &old_headers);
                let dropped = former.into_iter().filter(|tag| !scopes.tags.contains(tag)).collect::<Vec<_>>();
                scopes.tags.to_mut().extend(dropped);
                let (body, was_needed) = (old.body().clone(), self.is_needed());
                let draft = Draft { metadata, headers, body, tick, scopes, was_needed };
                Arrival::Confirmed(Confirmed { stored: Stored::new(draft), withheld, keep })
            }
            Disposition::Fail if is_private => {
                let (failure, tags) = (Failure::told(response.status(), response.headers()), tags());
                Arrival::Failed { failure, tags, page: ErrorPage::Private(response) }
            }
            Disposition::Fail => {
                let tags = tags();
                let (head, source) = response.into_parts();
                let (writer, body) = body::new(&self.cache.budget);
                let failure = Failure::answered(head.status, head.headers, body);
                Arrival::Failed { failure, tags, page: ErrorPage::Shared(Fill::Coming { writer, source }) }
            }
            Disposition::Relay(why) => Arrival::Private { response, why },
            Disposition::Invalid(Invalid::MismatchedNotModified) => return None,
            Disposition::Invalid(invalid) => {
                tracing::debug!(route = self.route_name(), detail = invalid.detail(), "invalid answer");
                Arrival::silence(Failure::ours(StatusCode::BAD_GATEWAY, "http_protocol_error"))
            }
        })
    }

    /// A failure of this errand, whose fetch drew this tick, with the tags that came with it.
    pub(super) fn failed(&self, failure: Failure, tags: Vec<Key>, tick: u64) -> Failed {
        let validated = self.validate.as_ref().map(|stored| stored.scopes().into_owned());
        let mut scopes = validated.unwrap_or_else(|| self.scopes.clone());
        scopes.tags.to_mut().extend(tags);
        Failed { failure, tick, scopes: Arc::new(scopes), whose: None }
    }

    /// Whose request it is.
    pub(super) fn asker(&self) -> Asker<'_> {
        let route = &self.site.settings.routes[self.route];
        Asker {
            headers: &self.client_headers,
            credentials: self.credentials,
            route,
            waits: self.waits,
            leads: self.leads,
        }
    }

    /// Whether a good answer is another kind of thing than its path says, and the route minds.
    fn contradicts_extension(&self, exchange: &Exchange<'_>) -> bool {
        let content_type = exchange.response.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        self.site.settings.routes[self.route].rules.guard_extensions
            && exchange.status.is_success()
            && policy::deception::contradicts_extension(self.outgoing.target.path(), content_type)
    }

    pub(super) fn shareable(
        &self,
        response: Response<upstream::Body>,
        metadata: Metadata,
        keep: Keep,
        tick: u64,
    ) -> Shareable {
        let (head, source) = response.into_parts();
        let mut headers = head.headers;
        let withheld = metadata.remove_withheld(&mut headers);
        policy::forwarding::add_missing_date(&mut headers, self.clock.now());
        let (writer, body) = body::new(&self.cache.budget);
        let too_large = http_body::Body::size_hint(&source).lower() > self.coalescing().body_bytes_max;
        let keep = match keep {
            Keep::Stored if too_large => Keep::WhileWaited(Unkept::TooLarge),
            Keep::Stored if writer.is_over_budget() => Keep::WhileWaited(Unkept::OverBudget),
            Keep::Stored | Keep::WhileWaited(_) => keep,
        };
        let scopes = self.scopes_with_tags(&headers);
        let was_needed = self.is_needed();
        let stored = Stored::new(Draft { metadata, headers, body, tick, scopes, was_needed });
        Shareable { stored, withheld, fill: Fill::Coming { writer, source }, keep }
    }

    /// Whether others could wait for it, and it is not known to be one too many.
    pub(super) fn is_needed(&self) -> bool {
        self.among.is_some() && self.excess != Some(Excess::Counted)
    }

    /// Whether the stored response that was asked about may live on: its body is here or still coming, it is still
    /// stored, and no purge has fallen since it was fetched.
    fn is_usable(&self, old: &Stored) -> bool {
        let store = &self.cache.store;
        // Both are asked: the stamps, because a purge may be under way that drew its tick before this fetch did; and the
        // store, because a purge before that may have been swept up already.
        !old.body().is_lost()
            && store.standing(old) != Standing::Void
            && store.holds(self.key, old.body(), self.clock.now())
    }

    pub(super) fn scopes_with_tags(&self, headers: &HeaderMap) -> Scopes<'_> {
        let Scopes { route, uri, host, target, .. } = &self.scopes;
        Scopes {
            route: *route,
            uri: *uri,
            host: (&**host).into(),
            target: (&**target).into(),
            tags: self.cache.tags(host, headers).into(),
        }
    }
}

/// The length that a response says its body has.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
