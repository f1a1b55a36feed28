//! What has happened in a world, and what each client may therefore legally see.
//!
//! Every event gets the next *tick*. One thread does everything, so ticks order all events.

mod counters;
mod duplicates;
mod errands;
mod memory;
mod pauses;
mod places;
mod remembered;
mod suspicion;
mod verdict;

use crate::plan::{LANGUAGES, Method, Plan, PlannedPurge, QUESTIONS, Resource, Sharing, Visit, pick};
use crate::turns::Turn;
use bytes::Bytes;
use fastrand::Rng;
use forebay::proxy::Target;
use http::HeaderMap;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::Id;
use tokio::time::Instant;

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
    deletions: u64,
    /// What successful deletions may have invalidated, from the moment at which the origin answered them.
    deletions_sent: Vec<Line>,
    /// The requests, by their names.
    asks: HashMap<String, Asked>,
    /// When the origin answers, so that no two answers of a resource fall together.
    heads: HashSet<(usize, Instant)>,
    /// Routes with fetches whose duplicates could be told to the one, or why not.
    untold: BTreeMap<&'static str, u64>,
    asked: u64,
    left: u64,
    answers: u64,
    lines: Vec<Line>,
    failures: Vec<Failure>,
    /// The version of each resource's content.
    versions: Vec<u64>,
    /// When connections were refused, and to which task.
    refusals: Vec<(Instant, Option<Id>)>,
    trace: Vec<String>,
    violations: Vec<String>,
}

/// A request, as far as it is seen from outside.
struct Asked {
    visit: Visit,
    tick: u64,
    began: Instant,
    /// When its client got the head of an answer.
    heard: Option<Instant>,
    /// When its client had the whole answer, or left.
    done: Option<Instant>,
    left: Option<Instant>,
}

/// A request that reached the origin.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Fetch {
    resource: usize,
    owner: String,
    language: String,
    question: String,
    authorization: bool,
    cookie: bool,
    tick: u64,
    /// When the head of its answer was sent.
    answered: Option<Instant>,
    arrived: Instant,
    /// When its body was sent or given up.
    ended: Option<Instant>,
    /// How much of its body had been sent, and when.
    sent: Vec<(Instant, usize)>,
    is_head: bool,
    is_range: bool,
    /// Which task made the connection, where it is the first request on it.
    connected_by: Option<Id>,
    /// It asks about a stored response.
    is_conditional: bool,
    /// That is confirmed.
    is_confirmation: bool,
    has_etag: bool,
    /// When it stopped waiting for its head, be it that this was sent or that the fetch was given up.
    closed: Option<Instant>,
    is_private: bool,
    fault: Option<Fault>,
    /// It has failed, and was not given up before.
    is_failure: bool,
    body: Bytes,
}

/// When the origin failed.
struct Failure {
    at: Instant,
    /// At what; `None`: at everything.
    resource: Option<usize>,
    /// To whom, where it said so to one that tells who it is: then it may be due to that.
    whose: Option<Whose>,
}

/// Who a client is to the origin: whether it sends credentials, and whether a cookie.
pub(super) type Whose = (bool, bool);

impl Visit {
    /// Who asks; `None`: nothing tells.
    fn whose(&self) -> Option<Whose> {
        Some((self.authorization, self.cookie)).filter(|_| self.authorization || self.cookie)
    }
}

impl Fetch {
    fn whose(&self) -> Option<Whose> {
        Some((self.authorization, self.cookie)).filter(|_| self.authorization || self.cookie)
    }
}

/// An invalidation, from the moment at which it was acknowledged.
struct Line {
    tick: u64,
    at: Instant,
    target: Target,
    is_soft: bool,
    /// Whether lines are forgotten at once that nothing stored or in flight is older than.
    sweeps: bool,
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
            deletions: 0,
            deletions_sent: Vec::new(),
            asks: HashMap::new(),
            heads: HashSet::new(),
            untold: BTreeMap::new(),
            asked: 0,
            left: 0,
            answers: 0,
            lines: Vec::new(),
            failures: Vec::new(),
            versions: vec![0; plan.resources.len()],
            refusals: Vec::new(),
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

    /// How many routes of this world had fetches whose duplicates could be told to the one, or why not.
    pub fn told_to_the_one(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().untold.clone()
    }

    /// Waits for so long, and then for the next turn of this kind.
    pub async fn comes(&self, turn: Turn, pause: Duration) {
        let since_start = turn.after(self.started.elapsed() + pause);
        tokio::time::sleep_until(self.started + since_start).await;
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
        if !self.plan.refuses || state.rng.u32(..rate) > 0 || state.rng.bool() {
            return false;
        }
        // At most one attempt, so that most fetches arrive in the end.
        let task = tokio::task::try_id();
        if state.refusals.last().is_some_and(|(_, refused)| *refused == task) {
            return false;
        }
        state.failures.push(Failure { at: Instant::now(), resource: None, whose: None });
        state.refusals.push((Instant::now(), task));
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
        question: &str,
        is_range: bool,
        connected_by: Option<Id>,
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
            question,
            (authorization, cookie),
        );
        self.note(
            state,
            &format!(
                "fetch {number}: {method} {path} {question} for {owner} in {language}{}{} -> {:?}{}",
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
            question: question.into(),
            authorization,
            cookie,
            tick: state.tick,
            answered: None,
            arrived: Instant::now(),
            closed: None,
            ended: None,
            sent: Vec::new(),
            is_head: method == http::Method::HEAD,
            is_range,
            connected_by,
            is_conditional: if_none_match.is_some(),
            is_confirmation: script.is_confirmation,
            has_etag: script.headers.iter().any(|(name, _)| *name == "etag"),
            is_private,
            fault: script.fault,
            is_failure: false,
            body: script.body.clone(),
        });
        Arrived { world: Arc::clone(self), number, script }
    }

    #[expect(clippy::too_many_arguments, reason = "it is all that an answer depends on")]
    fn script(
        &self,
        state: &mut State,
        index: usize,
        number: usize,
        owner: &str,
        language: &str,
        is_head: bool,
        if_none_match: Option<&str>,
        question: &str,
        whose: Whose,
    ) -> (Script, bool) {
        let resource = &self.plan.resources[index];
        let rng = &mut state.rng;
        if rng.u8(..3) == 0 {
            state.versions[index] += 1;
        }
        let version = state.versions[index];
        let etag = format!("\"{version}-{}\"", if resource.varies { language } else { "all" });
        let is_private = match resource.sharing {
            _ if resource.private_in == Some(language) => true,
            Sharing::Shared | Sharing::NoCache => false,
            Sharing::Private => true,
            Sharing::Changing => rng.bool(),
        };
        let fault = self.fault(rng, whose);
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
            headers.push(("vary", resource.selected_by(language).into()));
        }
        if resource.has_etag || resource.sharing == Sharing::NoCache && version.is_multiple_of(2) {
            headers.push(("etag", etag));
        }
        let mut body = format!("{number} {} {question} in {language} for {owner} ", resource.path);
        let rest = resource.bytes.saturating_sub(body.len());
        body += &".".repeat(rest);
        body.push('!');
        let latency = Duration::from_millis(rng.u64(1..=resource.slowness));
        let mut pause = Duration::from_millis(*pick(rng, &[0, 0, 30, 500]));
        if matches!(fault, Some(Fault::CutBody | Fault::StuckBody)) {
            // Where head and body are written at once, not even the head may come.
            pause = pause.max(Duration::from_millis(1));
        }
        let script = Script {
            latency,
            pause,
            fault,
            headers,
            is_confirmation,
            says_length: resource.says_length,
            body: body.into(),
        };
        (script, is_private)
    }

    /// How an exchange goes wrong, if it does.
    fn fault(&self, rng: &mut Rng, (authorization, cookie): Whose) -> Option<Fault> {
        let faults = [Fault::Reset, Fault::Silence, Fault::ServerError, Fault::CutBody, Fault::StuckBody];
        let fails = self.plan.failure_rate > 0 && rng.u32(..self.plan.failure_rate) == 0;
        let mut fault = fails.then(|| *pick(rng, &faults));
        if fault == Some(Fault::Silence) && !Turn::Ask.is_at(self.started.elapsed()) {
            // When it would be given up, others have their turn.
            fault = Some(Fault::Reset);
        }
        let is_spell = self.started.elapsed().as_secs() / 4 % 2 == 1;
        if cookie && self.plan.spoils_cookies && rng.u8(..4) > 0
            || authorization && self.plan.spoils_credentials && is_spell
        {
            fault = Some(Fault::ServerError);
        }
        fault
    }

    /// A purge has been acknowledged.
    pub fn purged(&self, planned: &PlannedPurge) {
        let (target, is_soft) = (planned.purge.target.clone(), planned.purge.soft);
        self.draw_line(target, is_soft, planned.sweeps);
    }

    fn draw_line(&self, target: Target, is_soft: bool, sweeps: bool) {
        let mut state = self.state.lock();
        state.tick += 1;
        let (tick, at) = (state.tick, Instant::now());
        self.note(&mut state, &format!("purged {target:?}{}", if is_soft { ", softly" } else { "" }));
        state.lines.push(Line { tick, at, target, is_soft, sweeps });
    }

    /// The origin has deleted what is at this path.
    pub fn deleted(&self, path: &str) {
        let mut state = self.state.lock();
        let target = Target::Url(format!("http://site.example{path}"));
        let line = Line { tick: state.tick, at: Instant::now(), target, is_soft: false, sweeps: false };
        state.deletions_sent.push(line);
    }

    /// A client is about to send a request.
    pub fn asks(&self, id: String, visit: Visit) -> Ask {
        let mut state = self.state.lock();
        state.tick += 1;
        state.asked += 1;
        state.deletions += u64::from(visit.method == Method::Delete);
        let path = self.plan.resources[visit.resource].path.clone();
        let (tick, language) = (state.tick, LANGUAGES[visit.language]);
        let asked = Asked {
            visit: visit.clone(),
            tick: state.tick,
            began: Instant::now(),
            heard: None,
            done: None,
            left: None,
        };
        state.asks.insert(id.clone(), asked);
        let mut text = format!("{id} asks: {:?} {path} in {language}", visit.method);
        if visit.method == Method::Question {
            let _ = write!(text, " {}", QUESTIONS[visit.question]);
        }
        if visit.authorization {
            text += " with credentials";
        }
        if visit.cookie {
            text += " with a cookie";
        }
        self.note(&mut state, &text);
        Ask { id, path, visit, began: Instant::now(), tick }
    }

    /// A client has got the head of its answer.
    pub fn heard(&self, ask: &Ask) {
        self.state.lock().asks.get_mut(&ask.id).unwrap().heard = Some(Instant::now());
    }

    /// A client has left before its answer was whole.
    pub fn left(&self, ask: &Ask) {
        let mut state = self.state.lock();
        state.left += 1;
        let asked = state.asks.get_mut(&ask.id).unwrap();
        asked.left = Some(Instant::now());
        asked.done = asked.left;
        self.note(&mut state, &format!("{} leaves", ask.id));
    }
}

impl Resource {
    /// What its answers in a language say that selects.
    fn selected_by(&self, language: &str) -> &'static str {
        if self.names_region(language) { "x-region, x-language" } else { "x-language" }
    }

    pub(super) fn names_region(&self, language: &str) -> bool {
        self.varies_more && language != LANGUAGES[0]
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

impl Arrived {
    /// Waits until its head is due: at a moment when no other answer of the resource is sent.
    pub async fn takes_its_time(&self) {
        let world = &self.world;
        let mut at = Turn::Head.after(world.started.elapsed() + self.script.latency);
        {
            let mut state = world.state.lock();
            let resource = state.fetches[self.number].resource;
            while !state.heads.insert((resource, world.started + at)) {
                at = Turn::Head.after(at + Duration::from_millis(1));
            }
        }
        tokio::time::sleep_until(world.started + at).await;
    }

    /// Its body is on its way.
    pub fn sending(&self) -> Sending {
        Sending { world: Arc::clone(&self.world), number: self.number }
    }

    /// The head of its answer is sent.
    pub fn answered(&self) {
        let mut state = self.world.state.lock();
        state.fetches[self.number].answered = Some(Instant::now());
    }

    /// It fails, and the proxy is about to see it.
    pub fn failed(&self) {
        let mut state = self.world.state.lock();
        state.fetches[self.number].is_failure = true;
        let fetch = &state.fetches[self.number];
        let whose = fetch.whose().filter(|_| fetch.fault == Some(Fault::ServerError));
        let failure = Failure { at: Instant::now(), resource: Some(fetch.resource), whose };
        state.failures.push(failure);
    }
}

/// A body on its way from the origin. Dropped, it has been sent or given up.
pub struct Sending {
    world: Arc<World>,
    number: usize,
}

impl Sending {
    pub fn world(&self) -> &World {
        &self.world
    }

    /// So many more bytes go out.
    pub fn sends(&self, bytes: usize) {
        let sent = &mut self.world.state.lock().fetches[self.number].sent;
        let before = sent.last().map_or(0, |(_, before)| *before);
        sent.push((Instant::now(), before + bytes));
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.world.state.lock().fetches[self.number].ended = Some(Instant::now());
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        let mut state = self.world.state.lock();
        let state = &mut *state;
        let fetch = &mut state.fetches[self.number];
        fetch.closed = Some(Instant::now());
        let what = if fetch.answered.is_some() { "answered" } else { "over" };
        self.world.note(state, &format!("fetch {} is {what}", self.number));
        let fetch = &state.fetches[self.number];
        let (resource, is_silent) = (fetch.resource, fetch.fault == Some(Fault::Silence));
        if is_silent {
            state.failures.push(Failure { at: Instant::now(), resource: Some(resource), whose: None });
        }
    }
}
