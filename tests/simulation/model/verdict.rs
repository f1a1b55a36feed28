//! Is an answer one that its client may legally see?

use super::{Ask, Fault, Fetch, Line, Seen, State, World};
use crate::plan::{LANGUAGES, Method, QUESTIONS, Resource, Sharing};
use bytes::Bytes;
use forebay::proxy::Target;
use http::HeaderMap;
use std::time::Duration;
use tokio::time::Instant;

/// Suspicions last for this long at least.
const SHORTEST: Duration = Duration::from_secs(1);

impl World {
    /// A client has got its answer.
    pub fn check(&self, ask: &Ask, seen: &Seen) {
        let mut state = self.state.lock();
        state.answers += 1;
        state.asks.get_mut(&ask.id).unwrap().done = Some(Instant::now());
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
                    _ if ask.visit.method == Method::Delete => {}
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
        if let (Method::Delete, Seen::Answer { status: 200, .. }) = (ask.visit.method, seen) {
            self.draw_line(Target::Url(format!("http://site.example{}", ask.path)), false, false);
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
        let is_bodiless = ask.visit.method == Method::Head;
        let Some(body) = answer.fetch(state, "x-body").or(is_bodiless.then_some(head)) else {
            return wrongs.push("it does not come from the origin".into());
        };
        self.check_body(body, ask, answer, status, wrongs);
        let asked = if ask.visit.method == Method::Question { QUESTIONS[ask.visit.question] } else { "" };
        if body.question != asked {
            wrongs.push(format!("the answer to {:?}", body.question));
        }
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

    fn check_body(
        &self,
        fetch: &Fetch,
        ask: &Ask,
        answer: &Answer<'_>,
        status: u16,
        wrongs: &mut Vec<String>,
    ) {
        let expected = match (ask.visit.method, status) {
            (Method::Head, _) => &fetch.body[..0],
            (Method::Range, 206) => &fetch.body[..10],
            (Method::Get | Method::Range | Method::Delete | Method::Question, _) => &fetch.body[..],
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
        // Whoever holds up the window of a large body for too long is cut off, and nobody else.
        let stall_max = self.plan.coalescing().reader_stall_timeout;
        let has_stalled =
            self.plan.resources[fetch.resource].is_large() && ask.visit.slowness * 2 > stall_max;
        if !has_stalled && !matches!(fetch.fault, Some(Fault::CutBody | Fault::StuckBody)) {
            wrongs.push(format!("cut off after {} bytes for no reason", answer.body.len()));
        }
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
        // Whose cookies are the same is the same to the origin.
        if head.cookie != ask.visit.cookie && is_short_lived {
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
        // Who may have what is stale has it in the place of another's failure, too.
        let is_excused = self.has_failed(state, ask, answer.received, true) || self.has_limits();
        if staleness > tolerable || !is_excused {
            wrongs.push(format!("stale for {staleness:?} (excused: {is_excused})"));
        }
    }

    fn check_error(&self, state: &State, ask: &Ask, answer: &Answer<'_>, wrongs: &mut Vec<String>) {
        if !self.has_failed(state, ask, answer.received, false) && !self.has_limits() {
            wrongs.push("an error although nothing failed".into());
        }
    }

    /// Whether the origin has failed in a way that this request may feel, be it told or spared what may be due to others.
    fn has_failed(&self, state: &State, ask: &Ask, until: Instant, is_spared: bool) -> bool {
        let longest = self.plan.coalescing().error_backoff.1;
        let own = ask.visit.whose();
        // While one that goes by itself asks, others who would are told of the last failure for one more pause.
        let memory = if own.is_some() { longest * 2 } else { longest };
        let felt = |since: Instant| {
            state.failures.iter().filter(move |failure| {
                failure.at >= since
                    && failure.at <= until
                    && failure.resource.is_none_or(|resource| resource == ask.visit.resource)
            })
        };
        let mut recent = felt(ask.began.checked_sub(memory).unwrap_or(self.started));
        // What a line in time makes of who waits for whom is not looked into.
        if is_spared || !state.lines.is_empty() || !state.deletions_sent.is_empty() {
            return recent.next().is_some();
        }
        let (due_to_others, others): (Vec<_>, Vec<_>) =
            recent.partition(|failure| failure.whose.is_some() && failure.whose != own);
        // What may be due to whose request it was is told to nobody else, unless it is one of two; and never to one of whom
        // nothing tells who it is, or who waits for nobody.
        let all = felt(ask.began.checked_sub(longest.max(SHORTEST) * 4).unwrap_or(self.started)).count();
        !others.is_empty() || self.may_ever_wait(ask) && !due_to_others.is_empty() && all > 1
    }

    /// Whether a request that tells who it is may wait for others, at least where what comes has proved to be for everyone.
    fn may_ever_wait(&self, ask: &Ask) -> bool {
        let (coalescing, resource) = (self.plan.coalescing(), &self.plan.resources[ask.visit.resource]);
        let is_let = coalescing.join_with_authorization || !ask.visit.authorization || resource.says_public;
        ask.visit.whose().is_some() && is_let && (coalescing.join_with_cookies || !ask.visit.cookie)
    }

    /// Whether requests may be refused, or served what is stale, although the origin does not fail.
    pub(super) fn has_limits(&self) -> bool {
        let coalescing = self.plan.coalescing();
        let is_short = coalescing.waiter_timeout < Duration::from_secs(30)
            || coalescing.waiters_max < 1000
            || self.plan.proxy.waiters_max < 1000;
        self.plan.is_crowded() || is_short
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
    pub(super) fn covers(&self, resource: &Resource) -> bool {
        match &self.target {
            Target::Url(url) => url.strip_prefix("http://site.example") == Some(&resource.path),
            Target::Tag(tag) => tag == resource.tag,
            Target::Prefix { path, .. } => resource.path.starts_with(path.as_str()),
            Target::Route(name) => *name == ["a", "b"][resource.route],
            Target::Everything => true,
        }
    }
}
