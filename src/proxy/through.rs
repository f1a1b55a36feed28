//! Plain requests that go through: the cache has nothing to do with them, or knows that what comes is for one client each.
//!
//! What is sent, what comes of it, and what is noted and counted is decided where it is decided for all requests. Only the form differs:
//! bytes go over, and none of the heads becomes a table. Most of what a pass costs beside the kernel is these tables. Whatever turns
//! out to be more than that (the response may be stored or shared, the upstream fails, its answer is an odd one) is taken up where
//! every request is served, with what has come of it so far: that is [`Begun`].

use super::Proxy;
use super::alone::{AloneBegun, tells_of_all};
use super::answer::{Account, Answer, Beginning};
use super::at_hand::Plain;
use super::attempts::{Attempts, Excess};
use super::back_off::Asker;
use super::cache_status::Told;
use super::collapse::Need;
use super::fetch::Sent;
use super::meeting::{Among, is_like_others};
use super::notes::Advice;
use super::outgoing;
use super::pass::words;
use super::plain::{ClientFields, KeptGet};
use super::receive::Received;
use super::reply::{Content, HEAD_BYTES, Reply, push};
use super::settings::Route;
use super::site::Site;
use super::supervise::caught;
use super::traffic::{Passage, Ticket, Traffic};
use super::uncacheable::Meeting;
use super::upload::Upload;
use crate::boxed::boxed;
use crate::outcome::{Answered, Forward, Outcome};
use crate::policy::forwarding::{self, Via};
use crate::policy::{
    self, Credentials, Disposition, Exchange, Fields, Key, PassCause, Rules, Selection, Unstorable, date,
};
use crate::store::stamps::Underway;
use crate::telemetry::{FetchReason, Telemetry};
use crate::upstream::{HeadAsItLies, Ledger, Outgoing, RequestBody};
use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body::Body as _;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;
use tokio::time::Instant;

/// A plain request on its way upstream, for its client alone. Dropped, it is one whose client left.
pub struct Through {
    request: KeptGet,
    going: Pin<Box<dyn Future<Output = Passed> + Send>>,
    telemetry: Arc<Telemetry>,
}

/// What has come of a request that went through.
#[derive(Debug)]
pub enum Passed {
    /// Its answer.
    Answer(Box<Reply>),
    /// It needs tables after all.
    Begun(Box<Begun>),
}

/// A request that has been sent upstream, and has yet to be answered. Handed to [`Proxy::serve`] together with the same request.
#[derive(Debug)]
pub struct Begun {
    pub(super) account: Account,
    pub(super) stage: Stage,
}

/// Where a request is taken up.
#[derive(Debug)]
pub(super) enum Stage {
    Pass(PassCause, Sent),
    Alone(Box<AloneBegun>),
}

/// Why a request goes through.
#[derive(Debug)]
enum Way {
    Pass(PassCause),
    /// It would be stored and shared if it could be.
    Alone(Alone),
}

/// A request that goes alone, although its answer might be for all.
#[derive(Debug)]
struct Alone {
    forward: Forward,
    credentials: Credentials,
    waits: bool,
    /// Under which responses are stored,
    key: Key,
    /// and among which fetches it is, by what selects as far as is known.
    among: Among,
    /// Whether it may be one too many.
    excess: Option<Excess>,
}

/// All that a request needs on its way.
#[derive(Debug)]
struct Journey {
    proxy: Arc<Proxy>,
    site: Arc<Site>,
    route: usize,
    /// When the request came, and was sent unless it had to wait for a place at the upstream.
    now: SystemTime,
    /// The same moment on the clock that does not jump.
    since: Instant,
    request: KeptGet,
    key_text: Option<String>,
    outgoing: Outgoing,
    way: Way,
}

impl Proxy {
    /// Passes a plain request on. `None`: the upstream takes no heads that are written in advance.
    pub(super) fn pass_through(
        self: &Arc<Self>,
        plain: &Plain<'_>,
        beginning: Beginning,
        cause: PassCause,
    ) -> Option<Through> {
        plain.site.upstream_of(plain.route).takes_written().then(|| {
            let request = plain.request.kept();
            let outgoing = plain.outgoing(plain.target, None);
            self.go_through(plain, beginning, request, outgoing, Way::Pass(cause))
        })
    }

    /// The same of a request whose answer could be for all, if it is known that it will not be, or it may not wait.
    pub(super) fn go_through_alone(
        self: &Arc<Self>,
        plain: &Plain<'_>,
        beginning: Beginning,
        forward: Forward,
    ) -> Option<Through> {
        let Plain { request, key, now, .. } = *plain;
        let (cache, route) = (&self.cache, plain.route());
        if !plain.site.upstream_of(plain.route).takes_written() {
            return None;
        }
        let credentials = Credentials::of(request, &route.rules.keyed_cookies);
        let waits = cache.may_wait(&route.coalescing, credentials, key, None);
        let selecting = cache.selecting(&key, &[], None, &[]);
        let met = cache.keyer.variant(key, selecting.names(), request);
        let asker = Asker { headers: request, credentials, route, waits, leads: false };
        match cache.advice(&met, &asker, now) {
            Advice::GoAlone(None) => {}
            Advice::Coalesce(None) if !waits => {}
            Advice::GoAlone(Some(_)) | Advice::Coalesce(_) | Advice::GiveUp(_) => return None,
        }
        let outgoing = plain.outgoing(plain.shared_target, Some(&route.rules));
        let kept = request.kept();
        let among = Among::of(&cache.keyer, key, ClientFields::Lines(kept.clone()), selecting);
        let excess = waits.then(|| Excess::in_vain(None));
        let alone = Alone { forward, credentials, waits, key, among, excess };
        Some(self.go_through(plain, beginning, kept, outgoing, Way::Alone(alone)))
    }

    fn go_through(
        self: &Arc<Self>,
        plain: &Plain<'_>,
        beginning: Beginning,
        request: KeptGet,
        outgoing: Outgoing,
        way: Way,
    ) -> Through {
        let (site, route, key_text) = (Arc::clone(plain.site), plain.route, plain.key_text.clone());
        let (proxy, kept, now, since) = (Arc::clone(self), request.clone(), plain.now, beginning.started());
        let mut account = Account::open(&self.telemetry, Arc::clone(&site), beginning);
        account.assign(route);
        let journey = Box::new(Journey { proxy, site, route, now, since, request, key_text, outgoing, way });
        let going = boxed(|| journey.go(account));
        Through { request: kept, going, telemetry: Arc::clone(&self.telemetry) }
    }

    /// Serves a request that has gone upstream already.
    pub(super) async fn go_on(self: Arc<Self>, received: Received, upload: Upload, stage: Stage) -> Answer {
        match stage {
            Stage::Pass(cause, sent) => boxed(|| self.pass(received, upload, cause, None, Some(sent))).await,
            Stage::Alone(begun) => self.go_on_alone(&received, *begun).await,
        }
    }
}

impl Plain<'_> {
    fn route(&self) -> &Route {
        &self.site.settings.routes[self.route]
    }

    fn outgoing(&self, target: &str, shared_by: Option<&Rules>) -> Outgoing {
        let request = (self.request, target);
        outgoing::written(self.site, self.route, self.client, request, self.key.low(), shared_by)
    }
}

impl Journey {
    /// Sends the request, and begins to answer it.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async function has room twice for what it is given, and that is large"
    )]
    fn go(self: Box<Self>, mut account: Account) -> impl Future<Output = Passed> + Send {
        async move {
            let cache = &self.proxy.cache;
            let upstream = self.site.upstream_of(self.route);
            let underway = cache.store.stamps().begin();
            let attempts = Attempts::new(&self.proxy.telemetry, &self.site, self.route, FetchReason::Pass);
            let attempts = match &self.way {
                Way::Pass(_) => attempts,
                Way::Alone(alone) => alone.among(attempts, &cache.traffic, underway.tick()),
            };
            let mut clerk = Clerk { journey: &self, attempts, taken: None };
            let sent = upstream.send(&self.outgoing, RequestBody::Empty, &mut clerk).await;
            let Clerk { attempts, taken, .. } = clerk;
            let (excess, passage) = attempts.close(&sent);
            let (mut response, taken) = match (sent, taken) {
                (Ok(response), Some(taken)) => (response, taken),
                (sent, _) => {
                    let stage = match self.way {
                        Way::Pass(cause) => Stage::Pass(cause, sent),
                        Way::Alone(alone) => {
                            let times = (underway, self.now);
                            Stage::Alone(Box::new(alone.begun(sent, (excess, passage), times)))
                        }
                    };
                    return Passed::Begun(Box::new(Begun { account, stage }));
                }
            };
            if let Some(passage) = passage {
                passage.is_for_one();
                response.body_mut().hold(passage);
            }
            if let (Way::Alone(alone), Some((why, selection))) = (&self.way, &taken.private) {
                alone.note(&self, *why, selection, taken.now);
            }
            account.answered(response.status(), taken.outcome);
            let body = response.into_body();
            let is_over = body.is_end_stream();
            let content =
                Content::Coming { piece: Bytes::new(), body, is_chunked: taken.is_chunked, is_over };
            Passed::Answer(Box::new(Reply::new(taken.head, content, account)))
        }
    }
}

impl Alone {
    /// The account of what is sent, among the fetches that others could have waited for.
    fn among<'a>(&'a self, attempts: Attempts<'a>, traffic: &'a Arc<Traffic>, tick: u64) -> Attempts<'a> {
        let Some(excess) = self.excess else { return attempts };
        let ticket = Ticket { tick, alone: excess.cause() };
        attempts.among(traffic, Some((&self.among, ticket)), None, Some(excess))
    }

    fn begun(
        self,
        sent: Sent,
        (excess, passage): (Option<Excess>, Option<Passage>),
        (underway, request_time): (Underway, SystemTime),
    ) -> AloneBegun {
        let need = Need {
            forward: self.forward,
            stale: None,
            selecting: self.among.selecting().clone(),
            answered: Vec::new(),
            waits: self.waits,
        };
        AloneBegun { need, may_be_excess: self.excess, excess, passage, sent, underway, request_time }
    }

    /// Notes that the answer was for this client alone.
    fn note(&self, journey: &Journey, why: Unstorable, selection: &Selection, now: SystemTime) {
        let Journey { proxy, site, route, request, .. } = journey;
        let cache = &proxy.cache;
        let route = &site.settings.routes[*route];
        let coalescing = &route.coalescing;
        let Self { credentials, waits, key, among, .. } = self;
        let asker = Asker { headers: request, credentials: *credentials, route, waits: *waits, leads: false };
        cache.note_answered(among.key, &asker, now);
        let met_by = among.selecting().names();
        let meeting = Meeting { key: among.key, of: *key, headers: request, met_by, coalescing };
        let tells = tells_of_all(coalescing, why) && is_like_others(coalescing, *credentials);
        cache.note_private(&meeting, selection, tells, now);
    }
}

/// Looks at the head of the response where it lies, and writes the client's.
struct Clerk<'a> {
    journey: &'a Journey,
    attempts: Attempts<'a>,
    taken: Option<Taken>,
}

/// A response that goes through.
struct Taken {
    /// Its head, as the client gets it.
    head: Vec<u8>,
    is_chunked: bool,
    /// When it came.
    now: SystemTime,
    outcome: Outcome,
    /// Why it is for its client alone, and by what it was selected; `None`: nobody asked.
    private: Option<(Unstorable, Selection)>,
}

impl Ledger for Clerk<'_> {
    fn takes(&mut self, head: &HeadAsItLies<'_>) -> bool {
        self.taken = self.read(head);
        self.taken.is_some()
    }

    fn begun(&mut self, now: Instant) {
        self.attempts.begun(now);
    }

    fn sent(&mut self) {
        self.attempts.sent();
    }

    fn unsent(&mut self) {
        self.attempts.unsent();
    }

    fn answered(&mut self, status: StatusCode, came: Instant) {
        self.attempts.answered(status, came);
    }

    fn failed(&mut self) {
        self.attempts.failed();
    }
}

impl Clerk<'_> {
    fn read(&self, head: &HeadAsItLies<'_>) -> Option<Taken> {
        let Journey { site, route, key_text, way, .. } = self.journey;
        let status = head.status();
        let is_plain = !status.is_informational()
            && !status.is_server_error()
            && !WITHOUT_BODY.contains(&status)
            && !site.upstream_of(*route).settings().retry_statuses.contains(&status)
            && (head.length().is_some() || head.is_chunked())
            && head.fields().lines(&header::CONNECTION).all(says_whether_it_persists)
            && !head.fields().has(&header::TE);
        if !is_plain {
            return None;
        }
        let now = self.journey.now + (head.came() - self.journey.since);
        let (outcome, private) = match way {
            Way::Pass(cause) => {
                let (forward, detail) = words(*cause);
                (Outcome::of(Answered::Pass).forwarded(forward).because(detail), None)
            }
            Way::Alone(alone) => {
                let (why, selection) = self.is_private(head, now)?;
                let outcome = Outcome::of(Answered::Pass).forwarded(alone.forward).because(why.detail());
                (outcome, Some((why, selection)))
            }
        };
        let outcome = Outcome { forward_status: Some(status), ..outcome };
        let told = site.told(key_text.as_deref());
        let written = answer(head, site.via.as_ref(), &told, &outcome, now);
        Some(Taken { head: written, is_chunked: head.is_chunked(), now, outcome, private })
    }

    /// Whether the response is for its client alone, why, and by what it was selected.
    fn is_private(&self, head: &HeadAsItLies<'_>, now: SystemTime) -> Option<(Unstorable, Selection)> {
        let Journey { site, route, request, now: request_time, .. } = self.journey;
        let fields = head.fields();
        let exchange = Exchange {
            method: &Method::GET,
            request,
            status: head.status(),
            response: &fields,
            request_time: *request_time,
            response_time: now,
        };
        match policy::dispose_unasked(&exchange, &site.settings.routes[*route].rules) {
            Disposition::Relay(why) => Some((why, Selection::of(&fields, request))),
            Disposition::Store(_)
            | Disposition::Share(_)
            | Disposition::Freshen { .. }
            | Disposition::Fail
            | Disposition::Invalid(_) => None,
        }
    }
}

/// Statuses of answers that have no body, or not the whole of it.
const WITHOUT_BODY: [StatusCode; 4] = [
    StatusCode::NO_CONTENT,
    StatusCode::RESET_CONTENT,
    StatusCode::PARTIAL_CONTENT,
    StatusCode::NOT_MODIFIED,
];

/// Whether a line of `Connection` names nothing that would have to be removed.
fn says_whether_it_persists(options: &[u8]) -> bool {
    options.eq_ignore_ascii_case(b"keep-alive") || options.eq_ignore_ascii_case(b"close")
}

/// The head of a response as its client gets it.
fn answer(
    head: &HeadAsItLies<'_>,
    via: Option<&Via>,
    told: &Told<'_>,
    outcome: &Outcome,
    now: SystemTime,
) -> Vec<u8> {
    let mut answer = Vec::with_capacity(HEAD_BYTES);
    answer.extend_from_slice(b"HTTP/1.1 ");
    answer.extend_from_slice(head.status().as_str().as_bytes());
    answer.push(b' ');
    answer.extend_from_slice(head.reason().as_bytes());
    answer.extend_from_slice(b"\r\n");
    let fields = head.fields();
    for field in fields.0 {
        if forwarding::is_hop_by_hop(field.name) || told.replaces(field.name) {
            continue;
        }
        let at = answer.len();
        answer.extend_from_slice(field.name.as_bytes());
        answer[at..].make_ascii_lowercase();
        push(&mut answer, b": ", field.value);
    }
    if let Some(via) = via {
        push(&mut answer, b"via: ", via.received_in(head.version()).as_bytes());
    }
    if !fields.has(&header::DATE) {
        push(&mut answer, b"date: ", &date::cached(now));
    }
    if head.is_chunked() {
        answer.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    told.write(outcome, &mut answer);
    answer.extend_from_slice(b"\r\n");
    answer
}

impl Through {
    /// The bytes of the request.
    pub fn request(self) -> Arc<[u8]> {
        self.request.0
    }
}

impl Future for Through {
    type Output = Option<Passed>;

    /// `None`: it has panicked, which has been counted.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Passed>> {
        let Self { going, telemetry, .. } = &mut *self;
        match caught(telemetry, "request", || going.as_mut().poll(context)) {
            Some(polled) => polled.map(Some),
            None => Poll::Ready(None),
        }
    }
}

impl fmt::Debug for Through {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Through").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::at_hand::Shortcut;
    use super::super::receive::Client;
    use super::super::{PlainGet, Settings};
    use super::*;
    use crate::clock::Clock;
    use crate::policy::{Identity, KeySpec};
    use crate::{store, upstream};
    use http::HeaderMap;
    use httparse::Header;
    use std::net::SocketAddr;
    use std::time::Duration;

    /// A proxy with one route of these settings to this upstream. Nothing is sent: nobody asks further than that.
    fn proxy(adjust: impl FnOnce(&mut Route, &mut upstream::Settings)) -> Arc<Proxy> {
        let origin = upstream::Origin { https: false, host: "127.0.0.1".to_owned(), port: 9 };
        let (mut route, mut upstream) =
            (Route::plain(None, "/"), upstream::Settings::named("nowhere", vec![origin]));
        adjust(&mut route, &mut upstream);
        let settings = Settings { routes: vec![route], ..Settings::default() };
        let telemetry = Telemetry::new(false);
        let site = Site::new(settings, vec![upstream], &telemetry).unwrap();
        Proxy::new(site, &store::Settings::default(), telemetry, Clock::simulated(1_000_000_000))
    }

    /// Whether a request with this field goes through.
    fn goes_through(proxy: &Arc<Proxy>, (name, value): (&str, &str)) -> bool {
        let host = Header { name: "Host", value: b"h.example" };
        let fields = [host, Header { name, value: value.as_bytes() }];
        let client = Client { address: SocketAddr::from(([127, 0, 0, 1], 1)), is_tls: false };
        let request = PlainGet::of(b"", "/a?b", &fields).unwrap();
        matches!(proxy.shortcut(&request, client), Some(Shortcut::Through(_)))
    }

    const NOTHING: (&str, &str) = ("X-A", "1");

    fn by_rule(route: &mut Route) {
        route.rules.enabled = false;
    }

    #[tokio::test]
    async fn what_the_cache_has_nothing_to_do_with_goes_through() {
        assert!(goes_through(&proxy(|route, _| by_rule(route)), NOTHING));
        let no_store = ("Cache-Control", "no-store");
        assert!(goes_through(&proxy(|route, _| route.rules.honor_request_directives = true), no_store));
        assert!(!goes_through(&proxy(|_, _| {}), no_store), "the route does not honour it");
        assert!(!goes_through(&proxy(|_, _| {}), NOTHING), "it is to lead");
        assert!(goes_through(&proxy(|route, _| route.coalescing.enabled = false), NOTHING));
        let (authorization, cookie) = (("Authorization", "Basic eA=="), ("Cookie", "a=b"));
        for (waits, credentials) in
            [(false, authorization), (true, authorization), (false, cookie), (true, cookie)]
        {
            let proxy = proxy(|route, _| {
                route.coalescing.join_with_authorization = waits;
                route.coalescing.join_with_cookies = waits;
            });
            assert_eq!(goes_through(&proxy, credentials), !waits, "{credentials:?}");
        }
    }

    #[tokio::test]
    async fn what_is_known_to_be_for_one_client_each_goes_through_until_it_is_not() {
        let proxy = proxy(|_, _| {});
        let identity = Identity {
            route: proxy.site.load().route_ids[0],
            scheme: "http",
            host: "h.example",
            target: "/a?b",
            method: &Method::GET,
            headers: &HeaderMap::new(),
            body_digest: None,
        };
        let key = proxy.cache.keyer.key(&identity, &KeySpec::default()).key;
        proxy.cache.notes.uncacheable(key, proxy.clock.now(), Duration::from_secs(10));
        assert!(goes_through(&proxy, NOTHING));
        proxy.cache.notes.forget(&key);
        assert!(!goes_through(&proxy, NOTHING));
    }

    #[tokio::test]
    async fn heads_are_written_for_upstreams_that_speak_http1_and_no_others() {
        for (https, protocol, takes) in [
            (false, upstream::Protocol::Auto, true),
            (true, upstream::Protocol::Auto, false),
            (true, upstream::Protocol::Http1, true),
            (false, upstream::Protocol::Http2, false),
        ] {
            let proxy = proxy(|route, upstream| {
                by_rule(route);
                (upstream.origins[0].https, upstream.protocol) = (https, protocol);
            });
            assert_eq!(goes_through(&proxy, NOTHING), takes, "{https} {protocol:?}");
        }
    }
}
