//! Every kind of purge, hard and soft, against everything that may be under way.

use crate::support::*;
use forebay::proxy::{Purge, Target};
use forebay::telemetry::DuplicateCause;
use std::time::Duration;

/// What is under way when the purge falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Underway {
    /// A fetch whose head has not come.
    BeforeTheHead,
    /// A fetch whose body is being read.
    InMidBody,
    /// A validation that a client waits for.
    Validation,
    /// A refresh of what is served stale, and a client that refuses what is stale waits for it.
    Refresh,
}

use Underway::{BeforeTheHead, InMidBody, Refresh, Validation};

const FIELDS: [(&str, &str); 3] = [
    ("cache-control", "max-age=10, stale-while-revalidate=10"),
    ("surrogate-key", "news"),
    ("etag", "\"1\""),
];

const STRICT: [(&str, &str); 1] = [("cache-control", "min-fresh=0")];

/// Every way to purge the page `/news/today`.
fn purges() -> impl Iterator<Item = Purge> {
    let targets = [
        Target::Url("http://site.example/news/today".into()),
        Target::Tag("news".into()),
        Target::Prefix { host: Some("site.example".into()), path: "/news".into() },
        Target::Route("default".into()),
        Target::Everything,
    ];
    targets.into_iter().flat_map(|target| [false, true].map(|soft| Purge { target: target.clone(), soft }))
}

/// An origin whose answer with the number `held` waits for the gate, with its head or in mid-body. What it is asked about it
/// confirms.
async fn origin(underway: Underway, gate: &Gate) -> Origin {
    let held = if matches!(underway, BeforeTheHead | InMidBody) { 1 } else { 2 };
    let gate = gate.clone();
    Origin::start(move |number, request| {
        let gate = gate.clone();
        let is_asked_about = request.headers().contains_key("if-none-match");
        async move {
            if number == held && underway == InMidBody {
                let (pieces, answer) = streamed(200, &FIELDS);
                tokio::spawn(async move {
                    pieces.send(data("answer ")).unwrap();
                    gate.passed().await;
                    pieces.send(data("1")).unwrap();
                });
                return answer;
            }
            if number == held {
                gate.passed().await;
            }
            if is_asked_about {
                return page(304, &FIELDS, "");
            }
            page(200, &FIELDS, format!("answer {number}"))
        }
    })
    .await
}

/// Which of the origin's answers a client got.
fn number(answer: &Answer) -> usize {
    answer.text().strip_prefix("answer ").unwrap().parse().unwrap()
}

struct Case {
    stage: Stage,
    origin: Origin,
    gate: Gate,
    /// The one whose request is under way, and one that joined it before the purge.
    early: [tokio::task::JoinHandle<Answer>; 2],
    begun: usize,
}

impl Case {
    async fn set(underway: Underway) -> Self {
        let gate = Gate::shut();
        let origin = origin(underway, &gate).await;
        let mut setting = Setting::before(origin.address);
        setting.rules.honor_request_directives = true;
        let stage = setting.start().await;
        let age = match underway {
            BeforeTheHead | InMidBody => None,
            // Served stale, and refreshed.
            Refresh => Some(15),
            Validation => Some(25),
        };
        if let Some(age) = age {
            assert_eq!(number(&stage.get("/news/today").await), 1);
            tokio::time::advance(Duration::from_secs(age)).await;
        }
        let begun = origin.requests() + 1;
        let leader = stage.spawn_get("/news/today", &[]);
        stage.until(|_| origin.requests() == begun).await;
        let follower = stage.spawn_get("/news/today", &STRICT);
        if underway == InMidBody {
            stage.until(|telemetry| telemetry.route(0).requests_total() == 2).await;
        } else {
            stage.until_waiters(1).await;
        }
        Self { stage, origin, gate, early: [leader, follower], begun }
    }

    /// A client that comes after the purge. Returns when it is known what it does.
    async fn late(&self, underway: Underway, purge: &Purge) -> tokio::task::JoinHandle<Answer> {
        let late = self.stage.spawn_get("/news/today", &STRICT);
        // A tag is known only with the head; until then a latecomer waits for it with the others. What is stored has its
        // tags already, but the refresh of it might come back with others.
        let waits = matches!(purge.target, Target::Tag(_)) && underway != InMidBody;
        if waits {
            self.stage.until_waiters(2).await;
        } else {
            self.stage.until(|_| self.origin.requests() > self.begun).await;
        }
        late
    }
}

async fn check(underway: Underway, purge: &Purge) {
    let case = Case::set(underway).await;
    case.stage.proxy.purge(purge).unwrap();
    let late = case.late(underway, purge).await;
    case.gate.open();
    // Those who had joined may have what was on its way.
    for early in case.early {
        assert!((1..=case.begun + 2).contains(&number(&early.await.unwrap())), "{underway:?} {purge:?}");
    }
    let late = late.await.unwrap();
    case.stage.until(|telemetry| telemetry.flights() == 0).await;
    let asked = case.origin.requests();
    assert!(asked > case.begun, "{underway:?} {purge:?}: nobody asked after the line");
    if !purge.soft {
        assert!(number(&late) > case.begun, "{underway:?} {purge:?}: {late:?}");
    }
    // What was asked for after the line is stored, and nothing else; the newest, where a validation was followed by a fetch, too.
    let next = case.stage.get("/news/today").await;
    assert!(number(&next) >= number(&late), "{underway:?} {purge:?}: {next:?}");
    assert_eq!(case.origin.requests(), asked, "{underway:?} {purge:?}: it is fresh");
    // After the line all ask together, whether they see it when they come, as that of a tag is not, or when their answer does: one
    // fetch, which would not have been without the line.
    assert_eq!(asked, case.begun + 1, "{underway:?} {purge:?}");
    let duplicates = case.stage.telemetry.route(0).duplicates(DuplicateCause::Purge);
    assert_eq!(duplicates, 1, "{underway:?} {purge:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_before_its_head() {
    for purge in purges() {
        check(BeforeTheHead, &purge).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_in_mid_body() {
    for purge in purges() {
        check(InMidBody, &purge).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_validation_that_comes_to_a_304() {
    for purge in purges() {
        check(Validation, &purge).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_in_the_background() {
    for purge in purges() {
        check(Refresh, &purge).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_moment_of_landing_is_before_the_line_or_after_it_and_never_between() {
    for underway in [BeforeTheHead, Validation, Refresh] {
        for purge in purges() {
            // Each time the purge falls a few turns of the scheduler later: before the head is seen, while it lands, after.
            for turns in (0..40).step_by(3) {
                let case = Case::set(underway).await;
                case.gate.open();
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
                case.stage.proxy.purge(&purge).unwrap();
                let before = case.origin.requests();
                let late = case.stage.send("GET", "/news/today", &STRICT).await;
                case.stage.until(|telemetry| telemetry.flights() == 0).await;
                let what = format!("{underway:?} {purge:?} after {turns} turns: {late:?}");
                assert!(purge.soft || number(&late) > case.begun, "{what}");
                assert!(number(&late) > before || case.origin.requests() > case.begun, "{what}");
            }
        }
    }
}
