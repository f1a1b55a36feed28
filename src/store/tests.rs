use super::stamps::{Scope, Scopes, Strength, Underway};
use super::*;
use crate::body::{self, Budget};
use crate::policy::{self, Disposition, Exchange, Identity, KeySpec, Keyer, Metadata, Rules};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
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
        Self { store: Store::new(settings, |_| ()), now, keyer: Keyer::with_seed(1, 2) }
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

    fn scopes(&self, target: &str) -> Scopes {
        Scopes {
            route: 0,
            uri: self.key(target),
            host: "a.example".into(),
            target: target.into(),
            tags: [self.keyer.word("tag", "news")].into(),
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
