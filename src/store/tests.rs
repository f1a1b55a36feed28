use super::stamps::{Scope, Scopes, Strength, Underway};
use super::*;
use crate::body::{self, Budget};
use crate::policy::{self, Disposition, Exchange, Identity, KeySpec, Keyer, Metadata, Rules};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::borrow::Cow;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Waker};

/// A store, the time, and the keys of one URI.
struct Story {
    store: Store,
    now: SystemTime,
    keyer: Keyer,
}

impl Story {
    fn begin() -> Self {
        Self::with(&Settings::default())
    }

    fn with(settings: &Settings) -> Self {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        Self { store: Store::new(settings, Housekeeping::Later, |_| ()), now, keyer: Keyer::with_seed(1, 2) }
    }

    fn key(&self, target: &str) -> Key {
        let headers = HeaderMap::new();
        let what = Identity {
            route: 0,
            scheme: "http",
            host: "a.example",
            target,
            method: &Method::GET,
            headers: &headers,
            body_digest: None,
        };
        self.keyer.key(&what, &KeySpec::default()).key
    }

    fn scopes<'a>(&self, target: &'a str) -> Scopes<'a> {
        Scopes {
            route: 0,
            uri: self.key(target),
            host: "a.example".into(),
            target: target.into(),
            tags: vec![self.keyer.word("tag", "news")].into(),
        }
    }

    fn fetch(&self) -> Underway {
        self.store.stamps().begin()
    }

    fn response(&self, target: &str, tick: u64, request: &[(&str, &str)], body: Body) -> Stored {
        let fields = [("cache-control", "max-age=60, stale-while-revalidate=60"), ("vary", "accept")];
        let response = if request.is_empty() { &fields[..1] } else { &fields[..] };
        let metadata = self.metadata(&fields_of(request), &fields_of(response));
        Stored::new(Draft {
            metadata,
            headers: fields_of(response),
            body,
            tick,
            scopes: self.scopes(target),
            was_needed: true,
        })
    }

    fn whole(&self, target: &str, tick: u64, text: &'static str) -> Stored {
        self.response(target, tick, &[], body::of(Bytes::from_static(text.as_bytes())))
    }

    fn metadata(&self, request: &HeaderMap, response: &HeaderMap) -> Metadata {
        let exchange = Exchange {
            method: &Method::GET,
            request,
            status: StatusCode::OK,
            response,
            request_time: self.now,
            response_time: self.now,
        };
        match policy::dispose(&exchange, None, &Rules::default()) {
            Disposition::Store(metadata) => metadata,
            other => panic!("{other:?}"),
        }
    }

    /// Fetches and stores under a target, in one go.
    fn store(&self, target: &str, text: &'static str) -> Stored {
        let fetch = self.fetch();
        let stored = self.whole(target, fetch.tick(), text);
        assert!(self.store.put(self.key(target), &stored, self.now));
        stored
    }

    /// How many responses are found under a target.
    fn found(&self, target: &str) -> usize {
        self.store.lookup(self.key(target), self.now).map_or(0, |variants| variants.responses().len())
    }
}

fn fields_of(fields: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap())
    };
    fields.iter().map(pair).collect()
}

/// Whether a future is ready when it is asked once.
fn is_ready(future: impl Future) -> bool {
    pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[test]
fn what_left_the_store_does_not_hold_up_a_window() {
    let story = Story::begin();
    let (mut writer, body) = body::new(&Budget::new(1 << 20));
    let fetch = story.fetch();
    let stored = story.response("/", fetch.tick(), &[], body);
    assert!(story.store.put(story.key("/"), &stored, story.now));
    assert_eq!(story.found("/"), 1);
    let reader = stored.body().read().unwrap();
    story.store.remove(story.key("/"), stored.body(), story.now);
    drop(stored);
    writer.keep_window(1);
    drop(reader);
    assert!(is_ready(writer.abandoned()), "a handle is left over");
}

#[test]
fn what_is_stored_is_found_until_it_is_replaced() {
    let story = Story::begin();
    assert_eq!(story.found("/"), 0);
    story.store("/", "old");
    story.store("/", "new");
    let variants = story.store.lookup(story.key("/"), story.now).unwrap();
    assert_eq!(variants.responses().len(), 1);
    assert_eq!(variants.responses()[0].body().stage(), body::Stage::Whole(3));
    assert_eq!(story.found("/other"), 0);
    story.store.settle();
    assert_eq!(story.store.entry_count(), 1);
    story.store.clear();
    assert_eq!((story.found("/"), story.store.bytes()), (0, 0));
}

#[test]
fn variants_lie_side_by_side_newest_first_up_to_a_limit() {
    let story = Story::with(&Settings { variants_max: 2, ..Settings::default() });
    for accept in ["a", "b", "a", "c"] {
        let tick = story.fetch().tick();
        let stored = story.response("/", tick, &[("accept", accept)], body::of(Bytes::new()));
        assert!(story.store.put(story.key("/"), &stored, story.now));
    }
    let variants = story.store.lookup(story.key("/"), story.now).unwrap();
    let ticks: Vec<u64> = variants.responses().iter().map(Stored::tick).collect();
    assert_eq!(ticks, [4, 3], "the older \"a\" was replaced, and \"b\" was one too many");
}

#[test]
fn an_older_fetch_does_not_replace_a_newer_one() {
    let story = Story::begin();
    let (old, new) = (story.fetch(), story.fetch());
    let varied = [("accept", "a")];
    for (newer, older) in [(&[][..], &[][..]), (&varied[..], &varied[..]), (&[], &varied), (&varied, &[])] {
        let newer = story.response("/", new.tick(), newer, body::of(Bytes::new()));
        let older = story.response("/", old.tick(), older, body::of(Bytes::new()));
        assert!(story.store.put(story.key("/"), &newer, story.now));
        assert!(!story.store.put(story.key("/"), &older, story.now));
        let variants = story.store.lookup(story.key("/"), story.now).unwrap();
        assert_eq!(variants.responses()[0].tick(), new.tick());
        story.store.clear();
    }
}

#[test]
fn an_older_fetch_of_another_variant_has_its_place_beside_a_newer_one() {
    let story = Story::begin();
    let (old, new) = (story.fetch(), story.fetch());
    for (accept, tick) in [("b", new.tick()), ("a", old.tick())] {
        let stored = story.response("/", tick, &[("accept", accept)], body::of(Bytes::new()));
        assert!(story.store.put(story.key("/"), &stored, story.now));
    }
    assert_eq!(story.found("/"), 2);
}

#[test]
fn a_purge_reaches_what_lies_in_its_scope_and_no_more() {
    let scopes = |story: &Story| {
        let prefix = |host: Option<&str>, path: &str| Scope::Prefix {
            host: host.map(str::to_owned),
            path: path.to_owned(),
        };
        [
            (Scope::Everything, [0, 0]),
            (Scope::Route(0), [0, 0]),
            (Scope::Route(1), [1, 1]),
            (Scope::Uri(story.key("/a/1")), [0, 1]),
            (Scope::Tag(story.keyer.word("tag", "news")), [0, 0]),
            (Scope::Tag(story.keyer.word("tag", "olds")), [1, 1]),
            (prefix(None, "/a/"), [0, 1]),
            (prefix(Some("a.example"), "/b"), [1, 0]),
            (prefix(Some("b.example"), "/"), [1, 1]),
            (prefix(None, "/b/2/3"), [1, 1]),
            (prefix(None, ""), [0, 0]),
        ]
    };
    for at in 0..scopes(&Story::begin()).len() {
        let story = Story::begin();
        story.store("/a/1", "one");
        story.store("/b/2", "two");
        let (scope, expected) = scopes(&story).into_iter().nth(at).unwrap();
        let case = format!("{scope:?}");
        story.store.stamps().draw(scope, Strength::Hard, story.now);
        assert_eq!([story.found("/a/1"), story.found("/b/2")], expected, "{case}");
        story.store("/a/1", "again");
        assert_eq!(story.found("/a/1"), 1, "{case}: what was fetched since is not meant");
    }
}

#[test]
fn a_soft_purge_makes_stale_and_a_hard_one_after_it_void() {
    let story = Story::begin();
    story.store("/", "text");
    let later = story.now + Duration::from_secs(10);
    story.store.stamps().draw(Scope::Uri(story.key("/")), Strength::Soft, later);
    let variants = story.store.lookup(story.key("/"), later).unwrap();
    let metadata = variants.responses()[0].metadata();
    assert!(!metadata.is_fresh(later));
    assert_eq!(metadata.ttl_seconds(later), 0);
    assert!(story.store.holds(story.key("/"), variants.responses()[0].body(), later));
    story.store.stamps().draw(Scope::Uri(story.key("/")), Strength::Hard, later);
    assert!(!story.store.holds(story.key("/"), variants.responses()[0].body(), later));
}

#[test]
fn a_purge_fences_the_fetch_in_flight() {
    let story = Story::begin();
    let fetch = story.fetch();
    story.store.stamps().draw(Scope::Everything, Strength::Hard, story.now);
    let stored = story.whole("/", fetch.tick(), "late");
    assert!(story.store.put(story.key("/"), &stored, story.now));
    assert_eq!(story.found("/"), 0);
    assert!(story.store.stamps().newest_over(&story.scopes("/")) > fetch.tick());
}

#[test]
fn too_many_stamps_are_folded_into_one_on_everything() {
    let story = Story::with(&Settings { stamps_max: 4, ..Settings::default() });
    story.store("/first", "1");
    for target in ["/a", "/b", "/c", "/d"] {
        story.store.stamps().draw(Scope::Uri(story.key(target)), Strength::Soft, story.now);
    }
    let between = story.fetch();
    assert_eq!((story.found("/first"), story.store.stamps().count()), (1, 4));
    story.store.stamps().draw(Scope::Uri(story.key("/e")), Strength::Soft, story.now);
    assert_eq!((story.found("/first"), story.store.stamps().count()), (0, 2));
    assert!(story.store.stamps().newest_over(&story.scopes("/first")) < between.tick());
    story.store("/first", "2");
    assert_eq!(story.found("/first"), 1);
}

#[tokio::test]
async fn a_sweep_takes_out_the_void_and_forgets_the_stamps() {
    let story = Story::begin();
    let purged = story.store("/purged", "x");
    story.store("/kept", "y");
    story.store.stamps().draw(Scope::Uri(story.key("/purged")), Strength::Hard, story.now);
    let fetch = story.fetch();
    story.store.sweep(story.now, async || ()).await;
    story.store.settle();
    assert_eq!((story.store.entry_count(), story.store.stamps().count()), (1, 0));
    assert_eq!((story.found("/purged"), story.found("/kept")), (0, 1));
    assert!(!story.store.holds(story.key("/purged"), purged.body(), story.now));
    drop(fetch);
}

#[tokio::test]
async fn a_sweep_remembers_what_a_fetch_in_flight_must_be_held_against() {
    let story = Story::begin();
    let fetch = story.fetch();
    story.store.stamps().draw(Scope::Uri(story.key("/")), Strength::Hard, story.now);
    story.store.sweep(story.now, async || ()).await;
    assert_eq!(story.store.stamps().count(), 1);
    let stored = story.whole("/", fetch.tick(), "late");
    assert!(story.store.put(story.key("/"), &stored, story.now));
    drop(fetch);
    assert_eq!(story.found("/"), 0);
    story.store.sweep(story.now, async || ()).await;
    assert_eq!((story.found("/"), story.store.stamps().count()), (0, 0));
}

#[tokio::test]
async fn what_was_found_before_a_purge_was_swept_up_is_not_found_valid_after() {
    let story = Story::begin();
    story.store("/", "text");
    let found = story.store.lookup(story.key("/"), story.now).unwrap();
    story.store.stamps().draw(Scope::Uri(story.key("/")), Strength::Hard, story.now);
    story.store.sweep(story.now, async || ()).await;
    story.store.stamps().draw(Scope::Uri(story.key("/other")), Strength::Hard, story.now);
    // As a lookup would that was held up between the two steps that it consists of.
    let latest = story.store.stamps().latest();
    assert!(!story.store.confirm(&found, latest));
    assert!(story.store.check(story.key("/"), latest, story.now).is_none());
}

#[tokio::test]
async fn what_is_stored_stays_valid_after_the_stamps_are_forgotten() {
    let story = Story::begin();
    let stored = story.store("/", "text");
    for _ in 0..3 {
        story.store.stamps().draw(Scope::Uri(story.key("/other")), Strength::Hard, story.now);
        story.store.sweep(story.now, async || ()).await;
        story.store.weigh_again(story.key("/"), story.now);
        story.store.remove(story.key("/"), &body::of(Bytes::new()), story.now);
        let varied = story.response("/", story.fetch().tick(), &[("accept", "a")], body::of(Bytes::new()));
        assert!(story.store.put(story.key("/b"), &varied, story.now));
    }
    story.store.stamps().draw(Scope::Uri(story.key("/other")), Strength::Hard, story.now);
    assert!(story.store.holds(story.key("/"), stored.body(), story.now));
    assert_eq!(story.found("/b"), 1);
}

#[test]
fn a_response_is_weighed_again_when_its_body_is_whole() {
    let story = Story::begin();
    let (mut writer, body) = body::new(&Budget::new(1 << 20));
    let stored = story.response("/", story.fetch().tick(), &[], body);
    assert!(story.store.put(story.key("/"), &stored, story.now));
    story.store.settle();
    let before = story.store.bytes();
    writer.push(Bytes::from(vec![0; 8 << 10]));
    writer.finish(None);
    story.store.weigh_again(story.key("/"), story.now);
    story.store.settle();
    assert_eq!(story.store.bytes(), before + (8 << 10));
    story.store.weigh_again(story.key("/nothing"), story.now);
    assert_eq!(story.found("/nothing"), 0);
}

#[test]
fn a_response_weighs_what_is_allocated_for_it() {
    let story = Story::begin();
    let weight_of = |body: usize, header: &str| {
        let response = fields_of(&[("cache-control", "max-age=60"), ("x-a", header)]);
        let metadata = story.metadata(&HeaderMap::new(), &response);
        let mut scopes = story.scopes("/a");
        scopes.tags = Cow::default();
        let body = body::of(Bytes::from(vec![0; body]));
        let stored =
            Stored::new(Draft { metadata, headers: response, body, tick: 1, scopes, was_needed: true });
        assert!(story.store.put(story.key("/a"), &stored, story.now));
        story.store.settle();
        story.store.bytes()
    };
    // Itself; host, target, values and an end behind each of them; the body; a handle on either.
    let beside = |text: u64, body: u64| KEY_BYTES + 224 + text + body + 2 * 32;
    assert_eq!(weight_of(1024, ""), beside(32, 1024));
    assert_eq!(weight_of(1025, ""), beside(32, 1280));
    assert_eq!(weight_of(0, &"a".repeat(104)), beside(128, 0));
    assert_eq!(weight_of(1024, &"a".repeat(105)), beside(160, 1024));
}

#[test]
fn a_key_with_one_response_needs_no_list() {
    // moka's entry with it in is as large as with a bare pointer and 16 bytes more.
    assert_eq!(size_of::<Variants>(), 24);
    let story = Story::begin();
    story.store("/", "text");
    let variants = story.store.lookup(story.key("/"), story.now).unwrap();
    assert!(matches!(variants.responses, Responses::One(_)));
}

#[test]
fn what_responses_have_in_common_is_kept_once() {
    let story = Story::begin();
    let stored = ["/a", "/b"].map(|target| {
        let stored = story.response(target, 1, &[("accept", "text/html")], body::of(Bytes::new()));
        assert!(story.store.put(story.key(target), &stored, story.now));
        story.store.lookup(story.key(target), story.now).unwrap().responses()[0].clone()
    });
    let [one, other] = stored.each_ref().map(|stored| stored.metadata().selection.names().as_ptr());
    assert_eq!(one, other);
}

#[test]
fn a_response_is_removed_by_its_body() {
    let story = Story::begin();
    let old = story.store("/", "old");
    let new = story.store("/", "new");
    story.store.remove(story.key("/"), old.body(), story.now);
    assert_eq!(story.found("/"), 1, "another response has taken its place");
    story.store.remove(story.key("/"), new.body(), story.now);
    assert_eq!(story.found("/"), 0);
}

#[test]
fn the_store_gives_up_what_is_too_much() {
    let count = Arc::new(AtomicUsize::new(0));
    let story = Story::begin();
    let told = Arc::clone(&count);
    let settings = Settings { bytes_max: 3_000, ..Settings::default() };
    let small = Store::new(&settings, Housekeeping::Later, move |departure| {
        assert_eq!(departure, Departure::Size);
        told.fetch_add(1, Ordering::Relaxed);
    });
    for target in ["/a", "/b", "/c", "/d", "/e", "/f"] {
        small.put(story.key(target), &story.whole(target, 1, "text"), story.now);
        small.settle();
    }
    assert!(small.bytes() <= 3_000 && count.load(Ordering::Relaxed) >= 2);
}

#[cfg(target_os = "linux")]
#[test]
fn a_sweep_gives_back_the_memory_of_what_was_purged_or_replaced() {
    let story = Story::begin();
    let pages = body::Pages::new().unwrap();
    let budget = Budget::before(usize::MAX, Some(Arc::clone(&pages)));
    for target in ["/a", "/b", "/c"] {
        let (mut writer, body) = body::new(&budget);
        writer.push(Bytes::from(vec![b'.'; 100_000]));
        let fetch = story.fetch();
        let stored = story.response(target, fetch.tick(), &[], body);
        let finished = writer.finish(None);
        assert!(story.store.put(story.key(target), &stored, story.now));
        drop(finished);
    }
    let of_three = pages.bytes_held().unwrap();
    assert_eq!(budget.lingering(), 0);
    let purged = Scope::Uri(story.key("/a"));
    story.store.stamps().draw(purged, Strength::Hard, story.now);
    // Nobody uses the store, and it is given back all the same; where other tests are busy with theirs, not at the first time.
    let sweep_until_less_than = |held: u64| {
        let swept = (0..10_000).any(|_| {
            assert!(is_ready(story.store.sweep(story.now, async || ())));
            std::thread::yield_now();
            pages.bytes_held().unwrap() < held
        });
        assert!(swept, "{held} bytes are held");
    };
    sweep_until_less_than(of_three);
    assert_eq!((story.found("/a"), story.found("/b")), (0, 1));
    let of_two = pages.bytes_held().unwrap();
    story.store("/b", "replaced");
    sweep_until_less_than(of_two);
}

#[cfg(target_os = "linux")]
#[test]
fn what_large_bodies_push_out_is_given_back_at_once() {
    const BODY: usize = 2 << 20;
    let story = Story::with(&Settings { bytes_max: 16 << 20, ..Settings::default() });
    let pages = body::Pages::new().unwrap();
    let budget = Budget::before(usize::MAX, Some(Arc::clone(&pages)));
    let mut most = 0;
    for number in 0..200 {
        let target = format!("/{number}");
        let (mut writer, body) = body::new(&budget);
        let fetch = story.fetch();
        let stored = story.response(&target, fetch.tick(), &[], body);
        story.store.put(story.key(&target), &stored, story.now);
        writer.push(Bytes::from(vec![b'.'; BODY]));
        let finished = writer.finish(None);
        story.store.weigh_again(story.key(&target), story.now);
        drop(finished);
        drop(stored);
        most = most.max(pages.bytes_held().unwrap());
    }
    // Where other tests are busy with theirs, some is given back a little later.
    assert!(most < 48 << 20, "{most}");
    assert!(story.store.bytes() > 8 << 20, "{}", story.store.bytes());
}
