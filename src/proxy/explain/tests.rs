//! The store and the tables are set by hand: there is no upstream, and nothing may ask for one.

use super::*;
use crate::body;
use crate::clock::Clock;
use crate::flight::Joined;
use crate::policy::Key;
use crate::policy::{Disposition, Exchange};
use crate::proxy::failure::{Failed, Failure};
use crate::proxy::meeting::Departure;
use crate::proxy::notes::Advice;
use crate::proxy::{Purge, Route, Settings, Site, Target};
use crate::store::stamps::Scopes;
use crate::store::{self, Draft};
use crate::telemetry::Telemetry;
use crate::upstream;
use http::{HeaderMap, Method, StatusCode};
use std::sync::Arc;
use std::time::Duration;

const URL: &str = "http://h.example/a?b";

/// A proxy with one route of these settings.
fn proxy(adjust: impl FnOnce(&mut Route)) -> Arc<Proxy> {
    let mut route = Route::plain(None, "/");
    adjust(&mut route);
    let settings = Settings { routes: vec![route], ..Settings::default() };
    let origin = upstream::Origin { https: false, host: "127.0.0.1".to_owned(), port: 9 };
    let telemetry = Telemetry::new(false);
    let upstreams = vec![upstream::Settings::named("nowhere", vec![origin])];
    let site = Site::new(settings, upstreams, &telemetry).unwrap();
    Proxy::new(site, &store::Settings::default(), telemetry, Clock::simulated(1_000_000_000))
}

fn headers(lines: &str) -> HeaderMap {
    let fields = lines.lines().map(|line| line.split_once(": ").unwrap());
    fields.map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

fn request(lines: &str) -> Request<Bytes> {
    let mut request = Request::builder().uri(URL).body(Bytes::new()).unwrap();
    *request.headers_mut() = headers(lines);
    request
}

fn explained(proxy: &Proxy, request: &Request<Bytes>) -> Explained {
    match proxy.explain(request) {
        Explanation::Received(explained) => *explained,
        refused @ Explanation::Refused { .. } => panic!("{refused:?}"),
    }
}

fn received(proxy: &Proxy, request: &Request<Bytes>) -> Received {
    proxy.imagine(request).unwrap()
}

fn key(proxy: &Proxy) -> Key {
    received(proxy, &request("")).keyed.key
}

/// Stores a response to a request with these fields, as a fetch that begins and ends now would.
fn stored(proxy: &Proxy, request_lines: &str, response_lines: &str) -> Stored {
    let (now, received) = (proxy.clock.now(), received(proxy, &request(request_lines)));
    let response = headers(response_lines);
    let exchange = Exchange {
        method: &Method::GET,
        request: &*received.headers,
        status: StatusCode::OK,
        response: &response,
        request_time: now,
        response_time: now,
    };
    let Disposition::Store(metadata) = policy::dispose(&exchange, None, &received.route().rules) else {
        panic!("not storable: {response_lines}")
    };
    let mut scopes = received.scopes();
    scopes.tags = proxy.cache.tags(&scopes.host, &response).into();
    let tick = proxy.cache.store.stamps().begin().tick();
    let body = body::of(Bytes::from_static(b"twelve bytes"));
    let stored = Stored::new(Draft { metadata, headers: response, body, tick, scopes, was_needed: true });
    assert!(proxy.cache.store.put(received.keyed.key, &stored, now));
    stored
}

async fn pass_seconds(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_stored_would_be_fetched_for_all() {
    let explained = explained(&proxy(|_| {}), &request(""));
    assert_eq!((explained.route.as_str(), explained.upstream.as_str()), ("default", "nowhere"));
    assert_eq!(explained.key.words, URL);
    assert_eq!(explained.key.target, "/a?b");
    let Verdict::Fetch { fwd, fetch, .. } = &explained.plan else { panic!("{explained:?}") };
    assert_eq!((fwd.as_str(), fetch.how), ("uri-miss", How::Lead));
    assert_eq!((&explained.stored[..], explained.flight, explained.note), (&[][..], None, None));
}

#[tokio::test(start_paused = true)]
async fn a_fresh_response_would_be_delivered_and_the_arithmetic_is_shown() {
    let proxy = proxy(|_| {});
    let lines =
        "cache-control: max-age=60\nage: 5\netag: \"x\"\nvary: accept-language\nsurrogate-key: red blue";
    stored(&proxy, "accept-language: de", lines);
    pass_seconds(10).await;
    let explained = explained(&proxy, &request("accept-language: de"));
    assert!(matches!(explained.plan, Verdict::Deliver { stored: 0, .. }), "{:?}", explained.plan);
    let [variant] = &explained.stored[..] else { panic!("{explained:?}") };
    assert_eq!((variant.standing.clone(), variant.status, variant.matches), (Standing::Valid, 200, true));
    let Freshness { lifetime, age, corrected_initial_age, ttl, .. } = variant.freshness;
    assert_eq!((lifetime, age, corrected_initial_age, ttl, variant.fresh), (60, 15, 5, 45, true));
    assert_eq!(variant.freshness.basis, "max-age");
    assert_eq!(variant.validators.etag.as_deref(), Some("\"x\""));
    assert_eq!(variant.tags, ["blue", "red"]);
    assert_eq!(variant.body, Body { stage: "whole".to_owned(), bytes: 12 });
    let field = SelectingField { name: "accept-language".to_owned(), value: Some("de".to_owned()) };
    assert_eq!(variant.selecting.as_deref(), Some(&[field][..]));
}

#[tokio::test(start_paused = true)]
async fn a_stored_response_for_others_would_not_do() {
    let proxy = proxy(|_| {});
    stored(&proxy, "accept-language: de", "cache-control: max-age=60\nvary: accept-language");
    let explained = explained(&proxy, &request("accept-language: fr"));
    assert!(matches!(&explained.plan, Verdict::Fetch { fwd, .. } if fwd == "vary-miss"), "{explained:?}");
    assert!(!explained.stored[0].matches);
}

#[tokio::test(start_paused = true)]
async fn a_stale_response_would_be_delivered_in_its_window_and_validated_after_it() {
    let proxy = proxy(|_| {});
    stored(&proxy, "", "cache-control: max-age=60, stale-while-revalidate=30\netag: \"x\"");
    pass_seconds(70).await;
    let in_window = explained(&proxy, &request(""));
    assert!(matches!(in_window.plan, Verdict::DeliverAndRefresh { .. }), "{:?}", in_window.plan);
    assert_eq!(in_window.stored[0].freshness.ttl, -10);
    pass_seconds(30).await;
    let after = explained(&proxy, &request(""));
    assert!(matches!(&after.plan, Verdict::Revalidate { fetch, .. } if fetch.how == How::Lead), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn what_purges_hit_is_shown_as_such_and_stays_where_it_is() {
    let proxy = proxy(|_| {});
    let stored = stored(&proxy, "", "cache-control: max-age=60\netag: \"x\"\ncache-tag: red");
    let tag = || Target::Tag("red".to_owned());
    let line = proxy.purge(&Purge { target: tag(), soft: true }).unwrap().tick;
    let soft = explained(&proxy, &request(""));
    assert_eq!(soft.purge_line, Some(line));
    assert!(matches!(soft.plan, Verdict::Revalidate { stored: 0, .. }), "{:?}", soft.plan);
    assert!(matches!(soft.stored[0].standing, Standing::StaleSince(_)), "{soft:?}");
    let line = proxy.purge(&Purge { target: Target::Url(URL.to_owned()), soft: false }).unwrap().tick;
    for _ in 0..2 {
        let hard = explained(&proxy, &request(""));
        assert!(matches!(&hard.plan, Verdict::Fetch { fwd, .. } if fwd == "uri-miss"), "{:?}", hard.plan);
        assert_eq!((&hard.stored[0].standing, hard.stored[0].tick), (&Standing::Void, stored.tick()));
        assert_eq!(hard.purge_line, Some(line), "asking has not taken it out");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flight_would_be_joined_unless_a_purge_has_fallen_since() {
    let proxy = proxy(|_| {});
    let underway = proxy.cache.store.stamps().begin();
    let joined = proxy.cache.flights.join(&key(&proxy), 0, 10, || Departure::of(underway.tick()));
    let Joined::Leader(_leader, _seat, false) = joined else { panic!("{joined:?}") };
    let how = |explained: &Explained| match &explained.plan {
        Verdict::Fetch { fetch, .. } => fetch.how,
        other => panic!("{other:?}"),
    };
    let before = explained(&proxy, &request(""));
    assert_eq!(before.flight, Some(Flight { tick: underway.tick(), waiters: 0 }));
    assert_eq!(how(&before), How::Follow);
    assert_eq!(how(&explained(&proxy, &request("authorization: Basic eA=="))), How::Alone);
    proxy.purge(&Purge { target: Target::Everything, soft: false }).unwrap();
    assert_eq!(how(&explained(&proxy, &request(""))), How::Replace);
}

#[tokio::test(start_paused = true)]
async fn what_is_being_fetched_is_not_refreshed_once_more() {
    let proxy = proxy(|_| {});
    stored(&proxy, "", "cache-control: max-age=60, stale-while-revalidate=30\netag: \"x\"");
    pass_seconds(70).await;
    let underway = proxy.cache.store.stamps().begin();
    let joined = proxy.cache.flights.join(&key(&proxy), 0, 10, || Departure::of(underway.tick()));
    let Joined::Leader(_leader, _seat, false) = joined else { panic!("{joined:?}") };
    let plan = || explained(&proxy, &request("")).plan;
    let is_told = |plan: Verdict| matches!(plan, Verdict::Deliver { why, .. } if why.ends_with("in flight"));
    assert!(is_told(plan()));
    // For who comes after that it is not new enough.
    proxy.purge(&Purge { target: Target::Url(URL.to_owned()), soft: true }).unwrap();
    assert!(matches!(plan(), Verdict::DeliverAndRefresh { .. }), "{:?}", plan());
}

#[tokio::test(start_paused = true)]
async fn what_comes_and_was_purged_by_its_tag_would_be_replaced() {
    let proxy = proxy(|_| {});
    let stored = stored(&proxy, "", "cache-control: max-age=60\ncache-tag: red");
    let joined = proxy.cache.flights.join(&key(&proxy), 0, 10, || Departure::of(stored.tick()));
    let Joined::Leader(_leader, _seat, false) = joined else { panic!("{joined:?}") };
    proxy.purge(&Purge { target: Target::Tag("red".to_owned()), soft: false }).unwrap();
    let plan = explained(&proxy, &request("")).plan;
    assert!(matches!(&plan, Verdict::Fetch { fetch, .. } if fetch.how == How::Replace), "{plan:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_of_a_key_decides_the_way_until_it_is_over() {
    let proxy = proxy(|_| {});
    let now = proxy.clock.now();
    let look = |kind: &str, expected: How| {
        let explained = explained(&proxy, &request(""));
        assert_eq!(explained.note.as_ref().map(|note| note.kind.as_str()), Some(kind));
        assert!(matches!(&explained.plan, Verdict::Fetch { fetch, .. } if fetch.how == expected));
        explained.note.map(|note| note.remaining_ms)
    };
    proxy.cache.notes.uncacheable(key(&proxy), now, Duration::from_secs(10));
    assert_eq!(look("hit-for-miss", How::Alone), Some(10_000));
    let limits = (Duration::from_secs(3), Duration::from_secs(3));
    proxy.cache.notes.failed(key(&proxy), now, limits, failed(&proxy));
    assert!(look("back-off", How::BackOff).is_some_and(|remaining| (2_000..=3_000).contains(&remaining)));
    pass_seconds(4).await;
    // What was known before the failure still holds, but for the one that asks first.
    assert_eq!(look("hit-for-miss", How::Lead), Some(6_000));
    pass_seconds(7).await;
    assert_eq!(explained(&proxy, &request("")).note, None);
}

/// A fetch that failed.
fn failed(proxy: &Proxy) -> Failed {
    let scopes = Arc::new(Scopes {
        route: 0,
        uri: key(proxy),
        host: "".into(),
        target: "".into(),
        tags: Vec::new().into(),
    });
    Failed { failure: Failure::internal(), tick: 1, scopes, whose: None }
}

/// How a request with these fields would come to its fetch, and why.
fn way(proxy: &Proxy, lines: &str) -> (How, String) {
    match explained(proxy, &request(lines)).plan {
        Verdict::Fetch { fetch, .. } => (fetch.how, fetch.why),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn who_goes_by_itself_would_not_while_another_tries_again() {
    let proxy = proxy(|_| {});
    let limits = (Duration::from_secs(3), Duration::from_secs(3));
    proxy.cache.notes.failed(key(&proxy), proxy.clock.now(), limits, failed(&proxy));
    pass_seconds(3).await;
    let credentials = "authorization: Basic eA==";
    assert_eq!((way(&proxy, "").0, way(&proxy, credentials).0), (How::Lead, How::Alone));
    let Advice::Coalesce(Some(due)) = proxy.cache.notes.advice(&key(&proxy), proxy.clock.now()) else {
        panic!("it is over")
    };
    due.claim(proxy.clock.now()).unwrap();
    let (how, why) = way(&proxy, credentials);
    assert!(how == How::BackOff && why.contains("tries again"), "{why}");
    assert_eq!(way(&proxy, "").0, How::Lead);
    pass_seconds(3).await;
    assert_eq!(way(&proxy, credentials).0, How::Alone);
}

#[tokio::test(start_paused = true)]
async fn while_one_is_suspected_others_are_told_apart() {
    let proxy = proxy(|_| {});
    let key = key(&proxy);
    let joined = proxy.cache.flights.join(&key, 0, 10, || Departure::of(1));
    let Joined::Leader(_leader, _seat, false) = joined else { panic!("{joined:?}") };
    assert_eq!((way(&proxy, "").0, way(&proxy, "cookie: a=b").0), (How::Follow, How::Follow));
    proxy.cache.suspicions.failed(key, key, proxy.clock.now(), Duration::from_secs(5));
    assert_eq!(way(&proxy, "").0, How::Follow);
    let (how, why) = way(&proxy, "cookie: a=b");
    assert!(how == How::Lead && why.contains("do not wait for each other"), "{why}");
    pass_seconds(10).await;
    assert_eq!(way(&proxy, "cookie: a=b").0, How::Follow);
}

#[tokio::test(start_paused = true)]
async fn what_would_pass_or_be_refused_is_told() {
    let upgrade = request("connection: upgrade\nupgrade: websocket");
    let pass = explained(&proxy(|_| {}), &upgrade).plan;
    assert!(matches!(&pass, Verdict::Pass { why } if why.contains("protocol")), "{pass:?}");
    let ranges = proxy(|route| route.coalescing.pass_ranges = true);
    let pass = explained(&ranges, &request("range: bytes=0-1")).plan;
    assert!(matches!(&pass, Verdict::Pass { why } if why.contains("range")), "{pass:?}");
    let elsewhere = proxy(|route| route.host = Some("other.example".to_owned()));
    let refused = elsewhere.explain(&request(""));
    assert!(matches!(refused, Explanation::Refused { status: 404, .. }), "{refused:?}");
    let heeding = proxy(|route| route.rules.honor_request_directives = true);
    let plan = explained(&heeding, &request("cache-control: only-if-cached")).plan;
    assert!(matches!(plan, Verdict::Unsatisfiable { .. }), "{plan:?}");
    stored(&heeding, "", "cache-control: max-age=60");
    let plan = explained(&heeding, &request("cache-control: no-cache")).plan;
    assert!(
        matches!(&plan, Verdict::Revalidate { fwd, why, .. } if fwd == "request" && why.starts_with("fresh, but")),
        "{plan:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn how_likely_an_early_refresh_is_is_told() {
    let proxy = proxy(|route| route.rules.early_refresh = Some(1.0));
    stored(&proxy, "", "cache-control: max-age=60");
    let plan = explained(&proxy, &request("")).plan;
    let expected = "fresh: its age is 0 s of a lifetime of 60 s (max-age); of the requests at its age 0 % refresh it (early_refresh)";
    assert!(matches!(&plan, Verdict::Deliver { why, .. } if why == expected), "{plan:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_body_is_part_of_its_key_is_explained_by_its_body() {
    let proxy = proxy(|route| {
        route.rules.body_methods = vec![Method::POST];
        route.coalescing.request_body_bytes_max = 3;
    });
    let post = |body: &'static str| {
        let mut post = request("").map(|_| Bytes::from_static(body.as_bytes()));
        *post.method_mut() = Method::POST;
        post
    };
    let plan = |body| explained(&proxy, &post(body)).plan;
    let why = |body| match plan(body) {
        Verdict::Fetch { why, fetch, .. } => (why, fetch.how),
        other => panic!("{other:?}"),
    };
    let joined =
        proxy.cache.flights.join(&received(&proxy, &post("why")).keyed.key, 0, 10, || Departure::of(1));
    let Joined::Leader(_leader, _seat, false) = joined else { panic!("{joined:?}") };
    assert_eq!(why("why"), ("nothing is stored under the key".to_owned(), How::Follow));
    assert_eq!(why("who"), ("nothing is stored under the key".to_owned(), How::Lead));
    assert_eq!(why("").0, "nothing is stored under the key for a request without a body");
    // Too large to be a part of the key.
    assert!(matches!(plan("where"), Verdict::Pass { .. }), "{:?}", plan("where"));
}

#[tokio::test(start_paused = true)]
async fn no_client_s_credentials_are_shown() {
    let proxy = proxy(|_| {});
    stored(&proxy, "cookie: secret=1", "cache-control: public, max-age=60\nvary: cookie");
    let text = serde_json::to_string(&proxy.explain(&request(""))).unwrap();
    assert!(text.contains("cookie") && !text.contains("secret"), "{text}");
}
