//! What has happened in a world, and what each client may therefore legally see.
//!
//! Every event gets the next *tick*. One thread does everything, so ticks order all events.

use crate::plan::{LANGUAGES, Method, Plan, PlannedPurge, Resource, Sharing, Visit, pick};
use bytes::Bytes;
use fastrand::Rng;
use forebay::proxy::{OnLimit, Target};
use forebay::telemetry::{DuplicateCause, FetchReason, Label, StatusClass, Telemetry, WaitResult};
use http::HeaderMap;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long it may take until a fetch that is given up is seen to be.
const GRACE: Duration = Duration::from_millis(1);

/// All that has happened.
pub struct World {
    plan: Arc<Plan>,
    started: Instant,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    tick: u64,
    fetches: Vec<Fetch>,
    posts: u64,
    asked: u64,
    left: u64,
    answers: u64,
    lines: Vec<Line>,
    /// When the origin failed, and at what; `None`: at everything.
    failures: Vec<(Instant, Option<usize>)>,
    /// The version of each resource's content.
    versions: Vec<u64>,
    trace: Vec<String>,
    violations: Vec<String>,
}

/// A request that reached the origin.
struct Fetch {
    resource: usize,
    owner: String,
    language: String,
    authorization: bool,
    cookie: bool,
    tick: u64,
    /// When the head of its answer was sent.
    answered: Option<Instant>,
    arrived: Instant,
    /// When it stopped waiting for its head, be it that this was sent or that the fetch was given up.
    closed: Option<Instant>,
    is_private: bool,
    fault: Option<Fault>,
    body: Bytes,
}

/// An invalidation, from the moment at which it was acknowledged.
struct Line {
    tick: u64,
    at: Instant,
    target: Target,
    is_soft: bool,
}

/// How an exchange goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Reset,
    Silence,
    ServerError,
    CutBody,
    StuckBody,
}

/// What the origin is to answer.
pub struct Script {
    pub latency: Duration,
    pub pause: Duration,
    pub fault: Option<Fault>,
    pub headers: Vec<(&'static str, String)>,
    pub is_confirmation: bool,
    pub says_length: bool,
    pub body: Bytes,
}

/// A request as its client knows it.
pub struct Ask {
    pub id: String,
    pub path: String,
    pub visit: Visit,
    began: Instant,
    tick: u64,
}

/// What a client saw.
pub enum Seen {
    Nothing(String),
    Answer { status: u16, headers: HeaderMap, received: Instant, body: Bytes, is_whole: bool },
}

/// A fetch that the origin is about to answer. Dropped before that, it has been given up.
pub struct Arrived {
    world: Arc<World>,
    number: usize,
    pub script: Script,
}

impl World {
    pub fn new(plan: Arc<Plan>) -> Arc<Self> {
        let state = State {
            rng: Rng::with_seed(plan.seed ^ 0x0419),
            tick: 0,
            fetches: Vec::new(),
            posts: 0,
            asked: 0,
            left: 0,
            answers: 0,
            lines: Vec::new(),
            failures: Vec::new(),
            versions: vec![0; plan.resources.len()],
            trace: Vec::new(),
            violations: Vec::new(),
        };
        Arc::new(Self { plan, started: Instant::now(), state: Mutex::new(state) })
    }

    pub fn trace(&self) -> Vec<String> {
        self.state.lock().trace.clone()
    }

    pub fn violations(&self) -> Vec<String> {
        self.state.lock().violations.clone()
    }

    pub fn answers(&self) -> u64 {
        self.state.lock().answers
    }

    fn note(&self, state: &mut State, text: &str) {
        let time = self.started.elapsed().as_millis();
        state.trace.push(format!("{time:>6} {text}"));
    }

    fn violated(&self, state: &mut State, text: String) {
        self.note(state, &format!("VIOLATION {text}"));
        state.violations.push(text);
    }

    /// Whether the origin refuses the next connection.
    pub fn refuses_connection(&self) -> bool {
        let mut state = self.state.lock();
        let rate = self.plan.failure_rate;
        if rate == 0 || state.rng.u32(..rate) > 0 || state.rng.bool() {
            return false;
        }
        state.failures.push((Instant::now(), None));
        self.note(&mut state, "the origin refuses a connection");
        true
    }

    /// A fetch has reached the origin.
    #[expect(clippy::too_many_arguments, reason = "it is all that the origin is told")]
    pub fn fetch_arrived(
        self: &Arc<Self>,
        method: &http::Method,
        path: &str,
        owner: &str,
        language: &str,
        authorization: bool,
        cookie: bool,
        if_none_match: Option<&str>,
    ) -> Arrived {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.tick += 1;
        let resource = self.plan.resources.iter().position(|resource| resource.path == path).unwrap();
        let number = state.fetches.len();
        let (script, is_private) = self.script(
            state,
            resource,
            number,
            owner,
            language,
            method == http::Method::HEAD,
            if_none_match,
        );
        self.note(
            state,
            &format!(
                "fetch {number}: {method} {path} for {owner} in {language}{}{} -> {:?}{}",
                if authorization { " with credentials" } else { "" },
                if_none_match.map(|etag| format!(" if not {etag}")).unwrap_or_default(),
                script.fault,
                if script.is_confirmation { " 304" } else { "" },
            ),
        );
        state.fetches.push(Fetch {
            resource,
            owner: owner.into(),
            language: language.into(),
            authorization,
            cookie,
            tick: state.tick,
            answered: None,
            arrived: Instant::now(),
            closed: None,
            is_private,
            fault: script.fault,
            body: script.body.clone(),
        });
        Arrived { world: Arc::clone(self), number, script }
    }

    #[expect(clippy::too_many_arguments, reason = "they are the parts of one request")]
    fn script(
        &self,
        state: &mut State,
        index: usize,
        number: usize,
        owner: &str,
        language: &str,
        is_head: bool,
        if_none_match: Option<&str>,
    ) -> (Script, bool) {
        let resource = &self.plan.resources[index];
        let rng = &mut state.rng;
        if rng.u8(..3) == 0 {
            state.versions[index] += 1;
        }
        let version = state.versions[index];
        let etag = format!("\"{version}-{}\"", if resource.varies { language } else { "all" });
        let is_private = match resource.sharing {
            Sharing::Shared | Sharing::NoCache => false,
            Sharing::Private => true,
            Sharing::Changing => rng.bool(),
        };
        let faults = [Fault::Reset, Fault::Silence, Fault::ServerError, Fault::CutBody, Fault::StuckBody];
        let fails = self.plan.failure_rate > 0 && rng.u32(..self.plan.failure_rate) == 0;
        let fault = fails.then(|| *pick(rng, &faults));
        let is_confirmation = if_none_match == Some(&etag) && fault.is_none();
        let mut headers = vec![
            ("x-seq", number.to_string()),
            ("cache-control", cache_control(resource, is_private, rng)),
            ("surrogate-key", resource.tag.into()),
        ];
        if is_private && rng.u8(..3) == 0 {
            headers.push(("set-cookie", format!("id={owner}")));
        }
        // Nor does an answer to HEAD bring a body, though it may update the fields of what is stored.
        if !is_confirmation && !is_head {
            headers.push(("x-body", number.to_string()));
        }
        if resource.varies {
            headers.push(("vary", "x-language".into()));
        }
        if resource.has_etag || resource.sharing == Sharing::NoCache && version.is_multiple_of(2) {
            headers.push(("etag", etag));
        }
        let mut body = format!("{number} {} in {language} for {owner} ", resource.path);
        let rest = resource.bytes.saturating_sub(body.len());
        body.extend(std::iter::repeat_n('.', rest));
        body.push('!');
        let script = Script {
            latency: Duration::from_millis(rng.u64(1..=resource.slowness)),
            pause: Duration::from_millis(*pick(rng, &[0, 0, 30, 500])),
            fault,
            headers,
            is_confirmation,
            says_length: resource.says_length,
            body: body.into(),
        };
        (script, is_private)
    }

    /// A purge has been acknowledged.
    pub fn purged(&self, planned: &PlannedPurge) {
        let (target, is_soft) = (planned.purge.target.clone(), planned.purge.soft);
        self.draw_line(target, is_soft);
    }

    fn draw_line(&self, target: Target, is_soft: bool) {
        let mut state = self.state.lock();
        state.tick += 1;
        let (tick, at) = (state.tick, Instant::now());
        self.note(&mut state, &format!("purged {target:?}{}", if is_soft { ", softly" } else { "" }));
        state.lines.push(Line { tick, at, target, is_soft });
    }

    /// A client is about to send a request.
    pub fn asks(&self, id: String, visit: Visit) -> Ask {
        let mut state = self.state.lock();
        state.tick += 1;
        state.asked += 1;
        state.posts += u64::from(visit.method == Method::Post);
        let path = self.plan.resources[visit.resource].path.clone();
        let (tick, language) = (state.tick, LANGUAGES[visit.language]);
        let mut text = format!("{id} asks: {:?} {path} in {language}", visit.method);
        if visit.authorization {
            text += " with credentials";
        }
        if visit.cookie {
            text += " with a cookie";
        }
        self.note(&mut state, &text);
        Ask { id, path, visit, began: Instant::now(), tick }
    }

    /// A client has left before its answer was whole.
    pub fn left(&self, ask: &Ask) {
        let mut state = self.state.lock();
        state.left += 1;
        self.note(&mut state, &format!("{} leaves", ask.id));
    }

    /// A client has got its answer.
    pub fn check(&self, ask: &Ask, seen: &Seen) {
        let mut state = self.state.lock();
        state.answers += 1;
        let mut wrongs = Vec::new();
        let text = match seen {
            Seen::Nothing(error) => {
                wrongs.push(format!("no answer: {error}"));
                String::from("nothing")
            }
            Seen::Answer { status, headers, received, body, is_whole } => {
                let waited = *received - ask.began;
                if waited > self.plan.patience_max() {
                    wrongs.push(format!("waited for {waited:?}"));
                }
                let answer = Answer { headers, received: *received, body, is_whole: *is_whole };
                match status {
                    _ if ask.visit.method == Method::Post => {}
                    200 | 206 => self.check_content(&state, ask, &answer, *status, &mut wrongs),
                    500..=504 => self.check_error(&state, ask, &answer, &mut wrongs),
                    other => wrongs.push(format!("status {other}")),
                }
                describe(*status, &answer)
            }
        };
        self.note(&mut state, &format!("{} gets {text}", ask.id));
        for wrong in wrongs {
            self.violated(&mut state, format!("{}: {wrong} ({text})", ask.id));
        }
        drop(state);
        if let (Method::Post, Seen::Answer { status: 200, .. }) = (ask.visit.method, seen) {
            self.draw_line(Target::Url(format!("http://site.example{}", ask.path)), false);
        }
    }

    fn check_content(
        &self,
        state: &State,
        ask: &Ask,
        answer: &Answer<'_>,
        status: u16,
        wrongs: &mut Vec<String>,
    ) {
        let resource = &self.plan.resources[ask.visit.resource];
        let Some(head) = answer.fetch(state, "x-seq") else {
            return wrongs.push("it does not come from the origin".into());
        };
        let is_bodiless = matches!(ask.visit.method, Method::Head);
        let Some(body) = answer.fetch(state, "x-body").or(is_bodiless.then_some(head)) else {
            return wrongs.push("it does not come from the origin".into());
        };
        check_body(body, ask, answer, status, wrongs);
        if resource.varies && body.language != LANGUAGES[ask.visit.language] {
            wrongs.push(format!("the variant {}", body.language));
        }
        let is_mine = head.owner == ask.id;
        if !is_mine {
            Self::check_sharing(resource, head, ask, wrongs);
        }
        for line in &state.lines {
            if !line.is_soft && line.tick < ask.tick && line.covers(resource) && body.tick < line.tick {
                wrongs.push(format!("fetched before {:?} was purged", line.target));
            }
        }
        self.check_freshness(state, resource, head, ask, answer, wrongs);
    }

    fn check_sharing(resource: &Resource, head: &Fetch, ask: &Ask, wrongs: &mut Vec<String>) {
        let owner = &head.owner;
        if head.is_private {
            wrongs.push(format!("what is private to {owner}"));
        }
        if resource.sharing == Sharing::NoCache {
            wrongs.push(format!("what was validated for {owner} only"));
        }
        if (head.authorization || ask.visit.authorization) && !resource.says_public {
            wrongs.push(format!("what {owner} got with other credentials"));
        }
        let can_be_stored =
            resource.has_etag || resource.stale_while_revalidate > 0 || resource.stale_if_error > 0;
        let is_short_lived = resource.lifetime == 0 && !resource.says_public && !can_be_stored;
        if (head.cookie || ask.visit.cookie) && is_short_lived {
            wrongs.push(format!("what {owner} got with other cookies"));
        }
    }

    fn check_freshness(
        &self,
        state: &State,
        resource: &Resource,
        head: &Fetch,
        ask: &Ask,
        answer: &Answer<'_>,
        wrongs: &mut Vec<String>,
    ) {
        let Some(made) = head.answered else {
            return wrongs.push("an answer that the origin has not given yet".into());
        };
        let softened = state
            .lines
            .iter()
            .filter(|line| {
                line.is_soft && line.tick < ask.tick && head.tick < line.tick && line.covers(resource)
            })
            .map(|line| line.at)
            .max();
        if made >= ask.began && softened.is_none() {
            return;
        }
        let end = made + Duration::from_secs(resource.lifetime);
        let end = softened.map_or(end, |softened| end.min(softened));
        if ask.began < end {
            return;
        }
        let staleness = ask.began - end;
        if staleness < Duration::from_secs(resource.stale_while_revalidate) {
            return;
        }
        let tolerable = Duration::from_secs(resource.stale_if_error);
        let is_excused = self.has_failed(state, ask, answer.received) || self.has_limits();
        if staleness > tolerable || !is_excused {
            wrongs.push(format!("stale for {staleness:?} (excused: {is_excused})"));
        }
    }

    fn check_error(&self, state: &State, ask: &Ask, answer: &Answer<'_>, wrongs: &mut Vec<String>) {
        if !self.has_failed(state, ask, answer.received) && !self.has_limits() {
            wrongs.push("an error although nothing failed".into());
        }
    }

    /// Whether the origin has failed in a way that this request may feel.
    fn has_failed(&self, state: &State, ask: &Ask, until: Instant) -> bool {
        let backoff = self.plan.coalescing().error_backoff.1;
        state.failures.iter().any(|(at, resource)| {
            *at + backoff >= ask.began
                && *at <= until
                && resource.is_none_or(|resource| resource == ask.visit.resource)
        })
    }

    /// Whether requests may be refused, or served what is stale, although the origin does not fail.
    fn has_limits(&self) -> bool {
        let coalescing = self.plan.coalescing();
        let is_short = coalescing.waiter_timeout < Duration::from_secs(30)
            || coalescing.waiters_max < 1000
            || self.plan.proxy.waiters_max < 1000;
        self.plan.is_crowded() || is_short
    }

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
        if state.lines.is_empty() && state.posts == 0 {
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
            let is_right = match (goes_alone, is_tolerant) {
                (true, false) => counted == waits,
                (true, true) => counted <= waits,
                (false, _) => counted == 0,
            };
            if !is_right {
                self.violated(state, format!("{cause:?}: {counted} fetches after {waits} waits"));
            }
        }
        let all: u64 = DuplicateCause::ALL.iter().map(|cause| duplicates(*cause)).sum();
        // A validation that came to nothing is followed by a second request of the same fetch.
        let again: u64 = StatusClass::ALL
            .iter()
            .map(|class| telemetry.upstream(0).requests(FetchReason::Retry, *class))
            .sum();
        let surplus = self.surplus(state);
        if surplus > all + again {
            let text = format!("{surplus} fetches more than were needed, {all} counted and {again} again");
            self.violated(state, text);
        }
        self.check_totals(state, telemetry);
    }

    /// How many fetches the origin saw that another, in flight at the same time, could have done for. Of the fetches for one
    /// variant as many were needed as can be picked of them so that no two are in flight together.
    fn surplus(&self, state: &State) -> u64 {
        let mut groups: BTreeMap<(usize, &str), Vec<(Instant, Instant)>> = BTreeMap::new();
        for fetch in state.fetches.iter().filter(|fetch| self.may_share(fetch)) {
            let variant =
                if self.plan.resources[fetch.resource].varies { fetch.language.as_str() } else { "" };
            // What has just been given up may not know it yet.
            let (begun, closed) = (fetch.arrived + GRACE, fetch.closed.unwrap_or(fetch.arrived));
            if begun < closed {
                groups.entry((fetch.resource, variant)).or_default().push((closed, begun));
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

    /// Whether a fetch is one of those that others are allowed to wait for.
    fn may_share(&self, fetch: &Fetch) -> bool {
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
        let arrived = state.fetches.len() as u64 + state.posts;
        let sent = telemetry.upstream(0).requests_total();
        // A connection that the origin had closed may have cost a second attempt, which is not counted as a request.
        if self.plan.failure_rate == 0 && arrived != sent {
            let text = format!("{sent} upstream requests counted, {arrived} arrived");
            self.violated(state, text);
        }
    }
}

struct Answer<'a> {
    headers: &'a HeaderMap,
    received: Instant,
    body: &'a Bytes,
    is_whole: bool,
}

impl Answer<'_> {
    fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn fetch<'a>(&self, state: &'a State, name: &str) -> Option<&'a Fetch> {
        state.fetches.get(self.field(name)?.parse::<usize>().ok()?)
    }
}

fn check_body(fetch: &Fetch, ask: &Ask, answer: &Answer<'_>, status: u16, wrongs: &mut Vec<String>) {
    let expected = match (ask.visit.method, status) {
        (Method::Head, _) => &fetch.body[..0],
        (Method::Range, 206) => &fetch.body[..10],
        (Method::Get | Method::Range | Method::Post, _) => &fetch.body[..],
    };
    if answer.is_whole {
        if *answer.body != expected {
            wrongs.push(format!("{} of {} bytes look whole", answer.body.len(), expected.len()));
        }
        return;
    }
    if !expected.starts_with(answer.body) {
        wrongs.push("other bytes than were sent".into());
    }
    if !matches!(fetch.fault, Some(Fault::CutBody | Fault::StuckBody)) {
        wrongs.push(format!("cut off after {} bytes for no reason", answer.body.len()));
    }
}

fn cache_control(resource: &Resource, is_private: bool, rng: &mut Rng) -> String {
    if is_private {
        return pick(rng, &["private, max-age=60", "no-store", "private"]).to_string();
    }
    if resource.sharing == Sharing::NoCache {
        return "no-cache".into();
    }
    let mut text = format!("max-age={}", resource.lifetime);
    if resource.says_public {
        text += ", public";
    }
    if resource.stale_while_revalidate > 0 {
        let _ = write!(text, ", stale-while-revalidate={}", resource.stale_while_revalidate);
    }
    if resource.stale_if_error > 0 {
        let _ = write!(text, ", stale-if-error={}", resource.stale_if_error);
    }
    text
}

fn describe(status: u16, answer: &Answer<'_>) -> String {
    format!(
        "{status} body {} head {} {} [{}]",
        answer.field("x-body").unwrap_or("-"),
        answer.field("x-seq").unwrap_or("-"),
        if answer.is_whole { "whole" } else { "broken" },
        answer.field("cache-status").unwrap_or_default(),
    )
}

impl Line {
    fn covers(&self, resource: &Resource) -> bool {
        match &self.target {
            Target::Url(url) => url.strip_prefix("http://site.example") == Some(&resource.path),
            Target::Tag(tag) => tag == resource.tag,
            Target::Prefix { path, .. } => resource.path.starts_with(path.as_str()),
            Target::Route(name) => *name == ["a", "b"][resource.route],
            Target::Everything => true,
        }
    }
}

impl Arrived {
    /// The head of its answer is sent.
    pub fn answered(&self) {
        let mut state = self.world.state.lock();
        state.fetches[self.number].answered = Some(Instant::now());
    }

    /// It fails, and the proxy is about to see it.
    pub fn failed(&self) {
        let mut state = self.world.state.lock();
        let resource = state.fetches[self.number].resource;
        state.failures.push((Instant::now(), Some(resource)));
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        let mut state = self.world.state.lock();
        let fetch = &mut state.fetches[self.number];
        fetch.closed = Some(Instant::now());
        let (resource, is_silent) = (fetch.resource, fetch.fault == Some(Fault::Silence));
        if is_silent {
            state.failures.push((Instant::now(), Some(resource)));
        }
    }
}
