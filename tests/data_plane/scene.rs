//! A scene: an origin that answers each page by a script of its own, and a proxy before it. Scripts are written as
//! messages are: a status if it is not 200, fields, and after an empty line a body if it matters.

use crate::support::*;
use forebay::clock::Clock;
use forebay::policy::date;
use http::{HeaderMap, Method};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What a second request for a page comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// The origin is not asked.
    Hit,
    /// The origin is asked with the validators of the stored response.
    Validated,
    /// The origin is asked as if nothing were stored.
    Fetched,
}

pub use Reuse::{Fetched, Hit, Validated};

pub struct Scene {
    pub stage: Stage,
    book: Arc<Book>,
    pages: AtomicUsize,
    clock: Clock,
}

/// The scripts by target, and what was asked of each.
#[derive(Default)]
struct Book {
    pages: parking_lot::Mutex<HashMap<String, Script>>,
}

#[derive(Default)]
struct Script {
    answers: Vec<String>,
    asked: Vec<(Method, HeaderMap)>,
}

impl Scene {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A scene whose route differs from the built-in defaults.
    pub async fn with(change: impl FnOnce(&mut Setting)) -> Self {
        let clock = Clock::simulated(EPOCH);
        let book = Arc::new(Book::default());
        let read = Arc::clone(&book);
        let origin = Origin::start(move |_, request| {
            let target = request.uri().to_string();
            let answer = read.next(&target, request.method(), request.headers());
            let is_head = request.method() == Method::HEAD;
            async move { written(&answer.0, answer.1, is_head, clock) }
        })
        .await;
        let mut setting = Setting::before(origin.address);
        change(&mut setting);
        Self { stage: setting.start().await, book, pages: AtomicUsize::new(0), clock }
    }

    /// A new page that is answered so, the last answer for ever. Returns its target.
    pub fn page(&self, answers: &[&str]) -> String {
        let target = format!("/{}", self.pages.fetch_add(1, Ordering::Relaxed));
        self.page_at(&target, answers);
        target
    }

    pub fn page_at(&self, target: &str, answers: &[&str]) {
        let answers = answers.iter().map(|answer| (*answer).to_owned()).collect();
        self.book.pages.lock().insert(target.to_owned(), Script { answers, asked: Vec::new() });
    }

    /// Sends a request that is written as a message is: a method if it is not GET, and fields.
    pub async fn ask(&self, target: &str, text: &str) -> Answer {
        let text = self.dated(text);
        let (first, fields) = text.split_once('\n').unwrap_or((&text, ""));
        let (method, fields) = if first.contains(':') { ("GET", &*text) } else { (first, fields) };
        let method = if method.is_empty() { "GET" } else { method };
        let fields: Vec<_> = fields.lines().filter_map(|line| line.split_once(':')).collect();
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.trim())).collect();
        self.stage.send(method, target, &fields).await
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.ask(target, "").await
    }

    /// Lets time pass.
    pub async fn after(&self, seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    /// Waits until nothing is being fetched.
    pub async fn settled(&self) {
        self.stage.until(|telemetry| telemetry.flights() == 0).await;
    }

    /// How often the origin was asked for a page.
    pub fn count(&self, target: &str) -> usize {
        self.book.pages.lock()[target].asked.len()
    }

    /// The request for a page with this number, from 1.
    pub fn asked(&self, target: &str, number: usize) -> (Method, HeaderMap) {
        self.book.pages.lock()[target].asked[number - 1].clone()
    }

    /// A text with the dates filled in that it names by their distance from now: `{0}`, `{-10}`, `{+10}`.
    pub fn dated(&self, text: &str) -> String {
        dated(text, self.clock)
    }

    /// Asks for a new page with this answer, and again so many seconds later with `request`.
    pub async fn reuse(&self, answer: &str, request: &str, seconds: u64) -> Reuse {
        let target = self.page(&[answer]);
        self.get(&target).await;
        self.after(seconds).await;
        self.ask(&target, request).await;
        self.settled().await;
        self.came_to(&target, 1)
    }

    /// What the last request for a page came to, given how often the origin had been asked before.
    pub fn came_to(&self, target: &str, before: usize) -> Reuse {
        if self.count(target) == before {
            return Hit;
        }
        let (_, asked) = self.asked(target, before + 1);
        let is_conditional = asked.contains_key("if-none-match") || asked.contains_key("if-modified-since");
        if is_conditional { Validated } else { Fetched }
    }

    pub async fn check(&self, answer: &str, request: &str, seconds: u64, expected: Reuse) {
        let found = self.reuse(answer, request, seconds).await;
        assert_eq!(found, expected, "\n{answer}\n--- {request} --- after {seconds} s");
    }

    /// Many cases: an answer, seconds later, and what the second request comes to.
    pub async fn check_all(&self, cases: &[(&str, u64, Reuse)]) {
        for (answer, seconds, expected) in cases {
            self.check(answer, "", *seconds, *expected).await;
        }
    }
}

impl Book {
    fn next(&self, target: &str, method: &Method, headers: &HeaderMap) -> (String, usize) {
        let mut pages = self.pages.lock();
        let script = pages.entry(target.to_owned()).or_default();
        script.asked.push((method.clone(), headers.clone()));
        let number = script.asked.len();
        let answer = script.answers.get(number - 1).or(script.answers.last());
        (answer.cloned().unwrap_or_else(|| "404".into()), number)
    }
}

/// The page that a script's answer means. Its body is `answer` and the number, where it says nothing else.
fn written(text: &str, number: usize, is_head: bool, clock: Clock) -> Page {
    let text = dated(text, clock);
    let (head, body) = match text.split_once("\n\n") {
        Some((head, body)) => (head, body.to_owned()),
        None => (&*text, format!("answer {number}")),
    };
    let (first, rest) = head.split_once('\n').unwrap_or((head, ""));
    let (status, fields) = first.parse().map_or((200, head), |status| (status, rest));
    let fields: Vec<_> = fields.lines().filter_map(|line| line.split_once(':')).collect();
    let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.trim())).collect();
    let body = if is_head || matches!(status, 204 | 304) { String::new() } else { body };
    page(status, &fields, body)
}

fn dated(text: &str, clock: Clock) -> String {
    let mut dated = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (distance, after) = after.split_once('}').unwrap();
        let distance: i64 = distance.parse().unwrap();
        let moved = Duration::from_secs(distance.unsigned_abs());
        let time = if distance < 0 { clock.now() - moved } else { clock.now() + moved };
        let _ = write!(dated, "{before}{}", date::format(time).to_str().unwrap());
        rest = after;
    }
    dated + rest
}
