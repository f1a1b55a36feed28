//! The built program on real threads: what must hold whatever order two cores come to.
//!
//! The simulation decides every order, in one thread; the model checkers try all of them, for the cores of coalescing
//! alone. Here the whole program runs with several workers before clients that all come at once, again and again, and what is asserted
//! is counted, not timed: it holds on a slow machine too.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests may fail as tests do")]
#![allow(unreachable_pub, reason = "what the modules of a test share is seen nowhere else")]
#![allow(missing_docs, dead_code, reason = "the names of tests are sentences, and others use the rest")]

#[path = "process/support.rs"]
mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use support::*;

/// Clients that come together.
const CLIENTS: usize = 12;

/// How often they come, each time for a page that nobody has asked for before.
const ROUNDS: usize = 150;

/// Purges of each kind.
const PURGES: usize = 200;

/// More than there are cores.
const THREADS: &str = "[server]\nthreads = 4\n";

/// So long that no test sees its end.
const LONG_BACK_OFF: &str = "[coalescing]\nerror_backoff = \"10m\"\nerror_backoff_max = \"10m\"\n";

/// How often the origin was asked for what.
type Asked = Arc<Mutex<HashMap<String, usize>>>;

/// Lets all clients ask at once, round after round. `ask` is told the client's number and the round.
fn together(address: SocketAddr, ask: impl Fn(&mut Client, usize, usize) + Sync) {
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::connect(address)).collect();
    for round in 0..ROUNDS {
        let start = Barrier::new(CLIENTS);
        thread::scope(|scope| {
            for (number, client) in clients.iter_mut().enumerate() {
                let (start, ask) = (&start, &ask);
                scope.spawn(move || {
                    start.wait();
                    ask(client, number, round);
                });
            }
        });
    }
}

/// A request for this target with one more field.
fn get_with(client: &mut Client, target: &str, field: &str) -> Answer {
    client.send(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{field}\r\n\r\n"));
    client.answer()
}

fn target(head: &str) -> &str {
    head.split(' ').nth(1).unwrap()
}

/// An origin that counts how often it is asked for each target.
fn counting(answer: impl Fn(&mut Exchange, &str) + Send + Clone + 'static) -> (Origin, Asked) {
    let asked = Asked::default();
    let counted = Arc::clone(&asked);
    let origin = Origin::start(move |exchange| {
        let target = target(&exchange.head).to_owned();
        *counted.lock().unwrap().entry(target.clone()).or_insert(0) += 1;
        answer(exchange, &target);
    });
    (origin, asked)
}

/// Each of so many things was asked for once.
#[track_caller]
fn assert_once(asked: &Asked, count: usize) {
    let asked = asked.lock().unwrap();
    let more: Vec<_> = asked.iter().filter(|(_, times)| **times > 1).collect();
    assert!(more.is_empty(), "asked for more than once: {more:?}");
    assert_eq!(asked.len(), count);
}

/// What all series of a metric come to.
fn sum(forebay: &Forebay, metric: &str) -> usize {
    let text = Client::connect(forebay.admin).get("/metrics").body;
    let is_of_metric = |line: &&str| line.split(['{', ' ']).next() == Some(metric);
    text.lines()
        .filter(is_of_metric)
        .map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap())
        .sum()
}

#[test]
fn a_page_that_many_ask_for_at_once_is_fetched_once() {
    let (origin, asked) =
        counting(|exchange, target| exchange.answer_with("Cache-Control: max-age=60\r\n", target));
    let forebay = Forebay::before(&origin, THREADS);
    together(forebay.data, |client, _, round| {
        let target = format!("/{round}");
        assert_eq!(client.get(&target).body, target);
    });
    assert_once(&asked, ROUNDS);
    assert_eq!(sum(&forebay, "forebay_duplicate_fetches_total"), 0);
    assert_eq!(sum(&forebay, "forebay_requests_total"), CLIENTS * ROUNDS);
    assert_eq!(sum(&forebay, "forebay_upstream_requests_total"), ROUNDS);
}

#[test]
fn each_variant_of_a_page_that_many_ask_for_at_once_is_fetched_once() {
    const KINDS: [&str; 3] = ["a", "b", "c"];
    let asked = Asked::default();
    let counted = Arc::clone(&asked);
    let origin = Origin::start(move |exchange| {
        let variant = format!("{} {}", target(&exchange.head), field(&exchange.head, "x-kind"));
        *counted.lock().unwrap().entry(variant.clone()).or_insert(0) += 1;
        exchange.answer_with("Cache-Control: max-age=60\r\nVary: X-Kind\r\n", &variant);
    });
    let forebay = Forebay::before(&origin, THREADS);
    together(forebay.data, |client, number, round| {
        let kind = KINDS[(number + round) % KINDS.len()];
        let answer = get_with(client, &format!("/{round}"), &format!("X-Kind: {kind}"));
        assert_eq!(answer.body, format!("/{round} {kind}"));
    });
    assert_once(&asked, KINDS.len() * ROUNDS);
}

#[test]
fn each_variant_is_fetched_once_also_where_its_answers_name_other_fields_than_the_others_do() {
    const KINDS: [&str; 3] = ["X-Kind: a\r\nX-More: 1", "X-Kind: b", "X-Kind: c"];
    let asked = Asked::default();
    let counted = Arc::clone(&asked);
    let origin = Origin::start(move |exchange| {
        let kind = field(&exchange.head, "x-kind").to_owned();
        let variant = format!("{} {kind}", target(&exchange.head));
        *counted.lock().unwrap().entry(variant.clone()).or_insert(0) += 1;
        let vary = if kind == "a" { "X-Kind, X-More" } else { "X-Kind" };
        exchange.answer_with(&format!("Cache-Control: max-age=60\r\nVary: {vary}\r\n"), &variant);
    });
    let forebay = Forebay::before(&origin, THREADS);
    together(forebay.data, |client, number, round| {
        // They come a little apart, so that some know more than others.
        (0..fastrand::usize(..100)).for_each(|_| thread::yield_now());
        let kind = KINDS[(number + round) % KINDS.len()];
        let answer = get_with(client, &format!("/{round}"), kind);
        assert_eq!(
            Some(answer.body.as_str()),
            kind.get(8..9).map(|kind| format!("/{round} {kind}")).as_deref()
        );
    });
    assert_once(&asked, KINDS.len() * ROUNDS);
    assert_eq!(sum(&forebay, "forebay_upstream_requests_total"), KINDS.len() * ROUNDS);
}

#[test]
fn a_stale_page_that_many_ask_for_at_once_is_refreshed_once() {
    let lines = "Cache-Control: max-age=60, stale-while-revalidate=600\r\n";
    let (origin, asked) = counting(|exchange, target| exchange.answer_with(lines, target));
    let forebay = Forebay::before(&origin, THREADS);
    let ask = |client: &mut Client, _, round| {
        let target = format!("/{round}");
        assert_eq!(client.get(&target).body, target);
    };
    together(forebay.data, ask);
    assert_once(&asked, ROUNDS);
    asked.lock().unwrap().clear();
    let purged = Client::connect(forebay.admin).post("/purge", r#"{"everything": true, "soft": true}"#);
    assert!(purged.head.starts_with("HTTP/1.1 200"), "{}", purged.body);
    together(forebay.data, ask);
    forebay.until_metric("forebay_flights", |flights| flights < 1.0);
    assert_once(&asked, ROUNDS);
}

#[test]
fn an_error_is_shared_by_all_who_come_at_once_and_kept_by_nobody() {
    let is_down = Arc::new(AtomicBool::new(true));
    let down = Arc::clone(&is_down);
    let (origin, asked) =
        counting(
            move |exchange, target| {
                if down.load(Ordering::SeqCst) { exchange.fail() } else { exchange.answer(target) }
            },
        );
    let forebay = Forebay::before(&origin, &format!("{THREADS}{LONG_BACK_OFF}"));
    together(forebay.data, |client, _, round| {
        let answer = client.get(&format!("/{round}"));
        assert!(answer.head.starts_with("HTTP/1.1 500"), "{}", answer.head);
    });
    assert_once(&asked, ROUNDS);
    assert_eq!(sum(&forebay, "forebay_store_entries"), 0);
    is_down.store(false, Ordering::SeqCst);
    let purged = Client::connect(forebay.admin).post("/purge", r#"{"everything": true}"#);
    assert!(purged.head.starts_with("HTTP/1.1 200"), "{}", purged.body);
    together(forebay.data, |client, _, round| {
        assert_eq!(client.get(&format!("/{round}")).body, format!("/{round}"));
    });
}

#[test]
fn an_error_for_cookies_costs_two_fetches_however_many_come_with_others() {
    let (origin, asked) = counting(|exchange, _| exchange.fail());
    let forebay = Forebay::before(&origin, &format!("{THREADS}{LONG_BACK_OFF}"));
    together(forebay.data, |client, number, round| {
        let answer = get_with(client, &format!("/{round}"), &format!("Cookie: sid={number}"));
        assert!(answer.head.starts_with("HTTP/1.1 500"), "{}", answer.head);
    });
    let asked = asked.lock().unwrap();
    let other: Vec<_> = asked.iter().filter(|(_, times)| **times != 2).collect();
    assert!(other.is_empty(), "not asked for twice: {other:?}");
}

#[test]
fn those_who_leave_take_nothing_from_those_who_stay() {
    let origin = Origin::start(|exchange| {
        let target = target(&exchange.head).to_owned();
        // None may expire before the last is stored.
        exchange.answer_with("Cache-Control: max-age=86400\r\n", &target);
    });
    let forebay = Forebay::before(&origin, THREADS);
    let address = forebay.data;
    together(address, |client, number, round| {
        let target = format!("/{round}");
        if (number + round) % 2 == 0 {
            assert_eq!(client.get(&target).body, target);
        } else {
            // Its connection ends, at some moment of the fetch.
            client.send(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            *client = Client::connect(address);
        }
    });
    for gauge in ["forebay_flights", "forebay_waiters", "forebay_inflight_bytes", "forebay_connections"] {
        forebay.until_metric(gauge, |value| value < 1.0);
    }
    let kept = sum(&forebay, "forebay_store_entries");
    assert_eq!(kept, ROUNDS, "somebody stayed each time");
}

/// A page whose version grows.
struct Page {
    name: String,
    /// What the origin has.
    current: AtomicU64,
    /// What every answer must have by now: the version before the last purge that was acknowledged.
    least: AtomicU64,
}

#[test]
fn no_answer_is_older_than_a_purge_that_was_acknowledged_before_it_was_asked_for() {
    let page = |name: &str| Page { name: name.into(), current: AtomicU64::new(1), least: AtomicU64::new(1) };
    let pages = Arc::new(["/a/one", "/a/two", "/b/one"].map(page));
    let written = Arc::clone(&pages);
    let origin = Origin::start(move |exchange| {
        let page = written.iter().find(|page| page.name == target(&exchange.head)).unwrap();
        let version = page.current.load(Ordering::SeqCst).to_string();
        let lines = format!("Cache-Control: max-age=60\r\nSurrogate-Key: all\r\nETag: \"{version}\"\r\n");
        if field(&exchange.head, "if-none-match") == format!("\"{version}\"") {
            exchange.confirm(&lines);
        } else {
            exchange.answer_with(&lines, &version);
        }
    });
    let forebay = Forebay::before(&origin, THREADS);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = Over(&is_over);
        for number in 0..CLIENTS {
            let (address, pages, is_over) = (forebay.data, &pages, &is_over);
            scope.spawn(move || {
                let mut client = Client::connect(address);
                while !is_over.load(Ordering::SeqCst) {
                    for page in pages.iter().cycle().skip(number).take(pages.len()) {
                        let least = page.least.load(Ordering::SeqCst);
                        let version: u64 = client.get(&page.name).body.parse().unwrap();
                        let most = page.current.load(Ordering::SeqCst);
                        assert!(
                            (least..=most).contains(&version),
                            "{}: {version}, not {least} to {most}",
                            page.name
                        );
                    }
                }
            });
        }
        let mut admin = Client::connect(forebay.admin);
        for number in 0..5 * PURGES {
            let newer = pages.each_ref().map(|page| page.current.fetch_add(1, Ordering::SeqCst) + 1);
            let one = number % pages.len();
            let (what, hit): (String, &[usize]) = match number % 5 {
                0 => (format!(r#"{{"url": "http://localhost{}"}}"#, pages[one].name), &[one][..]),
                1 => (format!(r#"{{"url": "http://localhost{}", "soft": true}}"#, pages[one].name), &[one]),
                2 => (r#"{"tag": "all"}"#.into(), &[0, 1, 2]),
                3 => (r#"{"host": "localhost", "prefix": "/a/"}"#.into(), &[0, 1]),
                _ => (r#"{"everything": true}"#.into(), &[0, 1, 2]),
            };
            let purged = admin.post("/purge", &what);
            assert!(purged.head.starts_with("HTTP/1.1 200"), "{what}: {}", purged.body);
            for index in hit {
                pages[*index].least.fetch_max(newer[*index], Ordering::SeqCst);
            }
        }
    });
}
