//! What a request pays in the core: for a flight, for a body with many readers, and for a hit.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark has no callers, and may fail as a test does"
)]

use bytes::Bytes;
use divan::{Bencher, black_box};
use forebay::body::{self, Body, Budget, Reader};
use forebay::flight::{Flights, Follower, Joined};
use forebay::policy::{self, Disposition, Exchange, Identity, Key, KeySpec, Keyer, Rules};
use forebay::store::stamps::Scopes;
use forebay::store::{Draft, Housekeeping, Settings, Store, Stored};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body::Body as _;
use std::borrow::Cow;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

const READERS: [usize; 3] = [1, 10, 1_000];
const PIECE: Bytes = Bytes::from_static(&[7; 16 << 10]);
const PIECES: usize = 16;
const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn main() {
    divan::main();
}

/// Reads what is there.
fn drain(reader: &mut Reader) -> usize {
    let mut context = Context::from_waker(Waker::noop());
    let mut read = 0;
    while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut *reader).poll_frame(&mut context) {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
    read
}

fn readers(body: &Body, count: usize) -> Vec<Reader> {
    (0..count).map(|_| body.read().unwrap()).collect()
}

#[divan::bench]
fn a_flight_is_joined_and_lands(bencher: Bencher<'_, '_>) {
    let table = Flights::<u64, u64>::default();
    bencher.bench(|| match table.join(&1, 0, 10, || 1) {
        Joined::Leader(leader, seat, _) => {
            leader.land_and_leave(1);
            drop(seat);
        }
        other => panic!("{other:?}"),
    });
}

#[divan::bench]
fn a_flight_in_the_air_is_joined(bencher: Bencher<'_, '_>) {
    let table = Flights::<u64, u64>::default();
    let _lead = table.join(&1, 0, 10, || 1);
    bencher.bench(|| table.join(black_box(&1), 0, 10, || 2));
}

/// Each has polled once, as one that waits has; all are told, and each reads the landing.
#[divan::bench(args = READERS)]
fn a_flight_lands_for_all_who_wait(bencher: Bencher<'_, '_>, count: usize) {
    let table = Flights::<u64, u64>::default();
    bencher.bench(|| {
        let Joined::Leader(leader, seat, _) = table.join(&1, 0, usize::MAX, || 1) else {
            panic!("nobody else leads")
        };
        let mut seats: Vec<Follower<u64>> = (1..count)
            .map(|_| match table.join(&1, 0, usize::MAX, || 2) {
                Joined::Follower(seat) => seat,
                other => panic!("{other:?}"),
            })
            .collect();
        seats.push(seat);
        let now =
            |seat: &mut Follower<u64>| pin!(seat.landing()).poll(&mut Context::from_waker(Waker::noop()));
        assert!(seats.iter_mut().all(|seat| now(seat).is_pending()));
        leader.land_and_leave(1);
        assert!(seats.iter_mut().all(|seat| now(seat) == Poll::Ready(Ok(1))));
    });
}

/// 256 KiB are read by each.
#[divan::bench(args = READERS)]
fn a_finished_body_is_read(bencher: Bencher<'_, '_>, count: usize) {
    let (mut writer, body) = body::new(&Budget::new(usize::MAX));
    for _ in 0..PIECES {
        writer.push(PIECE);
    }
    writer.finish(None);
    bencher.bench(|| readers(&body, count).iter_mut().map(drain).sum::<usize>());
}

/// 256 KiB come in pieces of 16 KiB, and each reader reads each piece as it comes.
#[divan::bench(args = READERS)]
fn a_filling_body_is_followed(bencher: Bencher<'_, '_>, count: usize) {
    let budget = Budget::new(usize::MAX);
    bencher.bench(|| {
        let (mut writer, body) = body::new(&budget);
        let mut readers = readers(&body, count);
        let mut read = 0;
        for _ in 0..PIECES {
            writer.push(PIECE);
            read += readers.iter_mut().map(drain).sum::<usize>();
        }
        writer.finish(None);
        read
    });
}

#[divan::bench(args = [1, 10_000])]
fn a_stored_response_is_found(bencher: Bencher<'_, '_>, count: usize) {
    let (store, keys) = filled(count);
    let mut next = 0;
    bencher.bench_local(|| {
        next = (next + 1) % count;
        assert!(store.lookup(keys[next], NOW).is_some());
    });
}

/// All threads want the same one: what they hold each other up is what the second row costs more.
#[divan::bench(threads = [1, 2])]
fn a_stored_response_is_found_by_several(bencher: Bencher<'_, '_>) {
    let (store, keys) = filled(1);
    bencher.bench(|| assert!(store.lookup(keys[0], NOW).is_some()));
}

/// A store with so many responses, and their keys.
fn filled(count: usize) -> (Store, Vec<Key>) {
    let store = Store::new(&Settings::default(), Housekeeping::Later, |_| ());
    let keyer = Keyer::with_seed(1, 2);
    let keys: Vec<Key> = (0..count).map(|number| key(&keyer, &format!("/{number}"))).collect();
    for key in &keys {
        let fetch = store.stamps().begin();
        store.put(*key, &stored(*key, fetch.tick(), NOW), NOW);
    }
    store.settle();
    (store, keys)
}

fn key(keyer: &Keyer, target: &str) -> Key {
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
    keyer.key(&what, &KeySpec::default()).key
}

fn stored(uri: Key, tick: u64, now: SystemTime) -> Stored {
    let request = HeaderMap::new();
    let headers: HeaderMap =
        [(header::CACHE_CONTROL, HeaderValue::from_static("max-age=60"))].into_iter().collect();
    let exchange = Exchange {
        method: &Method::GET,
        request: &request,
        status: StatusCode::OK,
        response: &headers,
        request_time: now,
        response_time: now,
    };
    let Disposition::Store(metadata) = policy::dispose(&exchange, None, &Rules::default()) else {
        panic!("it may be stored");
    };
    let scopes = Scopes { route: 0, uri, host: "a.example".into(), target: "/".into(), tags: Cow::default() };
    Stored::new(Draft {
        metadata,
        headers,
        body: body::of(Bytes::from_static(b"text")),
        tick,
        scopes,
        was_needed: true,
    })
}
