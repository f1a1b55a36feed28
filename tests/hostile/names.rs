//! Origins whose names have several addresses, other ones from time to time, or none.

use crate::support::*;
use forebay::upstream::{Balance, Origin as Named, Transport};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// What the names of a story stand for.
#[derive(Clone, Default)]
struct Names {
    addresses: Arc<Mutex<Option<Vec<SocketAddr>>>>,
    lookups: Arc<AtomicUsize>,
}

impl Names {
    fn of(addresses: &[SocketAddr]) -> Self {
        let names = Self::default();
        names.mean(addresses);
        names
    }

    fn mean(&self, addresses: &[SocketAddr]) {
        *self.addresses.lock() = Some(addresses.to_vec());
    }

    fn vanish(&self) {
        *self.addresses.lock() = None;
    }

    fn lookups(&self) -> usize {
        self.lookups.load(Ordering::SeqCst)
    }

    fn transport(&self) -> Transport {
        let names = self.clone();
        Transport::Lookup(Arc::new(move |_| {
            names.lookups.fetch_add(1, Ordering::SeqCst);
            let found = names.addresses.lock().clone();
            Box::pin(async move { found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)) })
        }))
    }
}

/// A proxy before the name `app`, which is resolved every ten seconds.
fn setting(names: &Names) -> Setting {
    let mut setting = Setting::before("127.0.0.1:1".parse().unwrap());
    setting.upstream.origins = vec![Named { https: false, host: "app".into(), port: 80 }];
    setting.upstream.resolve_interval = Some(Duration::from_secs(10));
    setting.coalescing.error_backoff = (Duration::ZERO, Duration::ZERO);
    setting.transport = names.transport();
    setting
}

async fn origin(name: &'static str) -> Origin {
    Origin::start(move |_, _| async move { page(200, &[("cache-control", "no-store")], name) }).await
}

async fn answers(stage: &Stage, count: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for number in 0..count {
        let answer = stage.get(&format!("/{number}")).await;
        *answers.entry(answer.text().to_owned()).or_default() += 1;
    }
    answers
}

fn metric(stage: &Stage, name: &str) -> f64 {
    stage.metric(&format!("forebay_upstream_{name}{{origin=\"app\",upstream=\"origin\"}}"))
}

/// Lets the name be resolved once more.
async fn resolved() {
    tokio::time::sleep(Duration::from_secs(11)).await;
}

fn counts(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[tokio::test(start_paused = true)]
async fn requests_are_spread_over_the_addresses_of_a_name() {
    let (one, other) = (origin("one").await, origin("other").await);
    for balance in [Balance::RoundRobin, Balance::LeastRequests, Balance::ConsistentHash] {
        let names = Names::of(&[one.address, other.address]);
        let mut setting = setting(&names);
        setting.upstream.balance = balance;
        let stage = setting.start().await;
        stage.until(|_| metric(&stage, "origin_addresses") == 2.0).await;
        let found = answers(&stage, 100).await;
        assert!(found["one"] >= 20 && found["other"] >= 20, "{balance:?}: {found:?}");
        if balance == Balance::RoundRobin {
            assert_eq!(found, counts(&[("one", 50), ("other", 50)]));
        }
        assert!(names.lookups() <= 3, "{} lookups", names.lookups());
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_address_gets_requests_and_one_that_is_gone_gets_none_but_ends_in_peace() {
    let (one, other) = (origin("one").await, origin("other").await);
    let gate = Gate::shut();
    let opened = gate.clone();
    let long = raw_origin(move |_, mut stream| {
        let gate = opened.clone();
        async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").await;
            gate.passed().await;
            let _ = stream.write_all(b"world").await;
        }
    })
    .await;
    let names = Names::of(&[long]);
    let mut setting = setting(&names);
    setting.upstream.between_bytes_timeout = Duration::from_secs(600);
    let stage = setting.start().await;
    stage.until(|_| names.lookups() >= 1).await;
    let mut client = stage.client().await;
    let answer = client.send(request("GET", "/long", &[])).await;
    for (addresses, expected) in [
        (vec![one.address], counts(&[("one", 10)])),
        (vec![one.address, other.address], counts(&[("one", 5), ("other", 5)])),
        (vec![other.address], counts(&[("other", 10)])),
    ] {
        names.mean(&addresses);
        resolved().await;
        assert_eq!(answers(&stage, 10).await, expected);
        assert_eq!(metric(&stage, "origin_addresses"), if addresses.len() == 2 { 2.0 } else { 1.0 });
    }
    gate.open();
    assert_eq!(answer.whole().await.text(), "helloworld");
}

#[tokio::test(start_paused = true)]
async fn no_request_is_lost_while_addresses_come_and_go() {
    let (one, other) = (origin("one").await, origin("other").await);
    let names = Names::of(&[one.address]);
    let stage = setting(&names).start().await;
    let changing = async {
        for round in 0..20 {
            resolved().await;
            names.mean(&[if round % 2 == 0 { other.address } else { one.address }]);
        }
    };
    let asking = async {
        let mut client = stage.client().await;
        for number in 0..2000 {
            assert_eq!(client.get(&format!("/{number}")).await.status, 200);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(changing, asking);
    assert!(one.requests() > 500 && other.requests() > 500, "{} {}", one.requests(), other.requests());
}

#[tokio::test(start_paused = true)]
async fn while_a_name_cannot_be_resolved_its_last_addresses_stay() {
    let one = origin("one").await;
    let names = Names::of(&[one.address]);
    let stage = setting(&names).start().await;
    assert_eq!(answers(&stage, 3).await, counts(&[("one", 3)]));
    names.vanish();
    let before = names.lookups();
    resolved().await;
    names.mean(&[]);
    resolved().await;
    assert!(names.lookups() >= before + 2);
    assert_eq!(answers(&stage, 3).await, counts(&[("one", 3)]));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_nobody_knows_is_a_502_until_it_is_known() {
    let one = origin("one").await;
    let names = Names::default();
    let stage = setting(&names).start().await;
    let answer = stage.get("/").await;
    assert_eq!((answer.status, answer.header("proxy-status")), (502, "forebay; error=dns_error"));
    names.mean(&[one.address]);
    assert_eq!(stage.get("/").await.text(), "one", "it need not wait for the next time");
}

#[tokio::test(start_paused = true)]
async fn an_origin_whose_name_nobody_knows_has_no_address_and_is_down() {
    let one = origin("one").await;
    let names = Names::default();
    let mut setting = setting(&names);
    let numbered = Named { https: false, host: "127.0.0.1".into(), port: 80 };
    setting.upstream.origins.push(numbered);
    let stage = setting.start().await;
    stage.until(|_| metric(&stage, "origin_up") == 0.0).await;
    assert_eq!(metric(&stage, "origin_addresses"), 0.0);
    let other = |name: &str| {
        stage.metric(&format!("forebay_upstream_{name}{{origin=\"127.0.0.1\",upstream=\"origin\"}}"))
    };
    assert_eq!((other("origin_up"), other("origin_addresses")), (1.0, 1.0), "an address has no name");
    names.mean(&[one.address]);
    resolved().await;
    assert_eq!((metric(&stage, "origin_up"), metric(&stage, "origin_addresses")), (1.0, 1.0));
    names.vanish();
    resolved().await;
    assert_eq!((metric(&stage, "origin_up"), metric(&stage, "origin_addresses")), (1.0, 1.0), "they stay");
}

#[tokio::test(start_paused = true)]
async fn requests_go_past_an_origin_whose_name_nobody_knows() {
    let one = origin("one").await;
    let address = one.address;
    let mut setting = setting(&Names::default());
    setting.upstream.origins.push(Named { host: "known".into(), ..setting.upstream.origins[0].clone() });
    setting.upstream.retries = 0;
    setting.transport = Transport::Lookup(Arc::new(move |origin| {
        let found = (origin.host == "known").then(|| vec![address]);
        Box::pin(async move { found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)) })
    }));
    let stage = setting.start().await;
    stage.until(|_| metric(&stage, "origin_up") == 0.0).await;
    assert_eq!(answers(&stage, 10).await, counts(&[("one", 10)]));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_refuses_is_passed_over_without_a_retry() {
    let (nobody, one) = (Nobody::new(), origin("one").await);
    let names = Names::of(&[nobody.address(), one.address]);
    let mut setting = setting(&names);
    setting.upstream.retries = 0;
    let stage = setting.start().await;
    stage.until(|_| metric(&stage, "origin_addresses") == 2.0).await;
    assert_eq!(answers(&stage, 40).await, counts(&[("one", 40)]));
    assert_eq!(stage.send("POST", "/", &[]).await.text(), "one");
    assert_eq!(metric(&stage, "origin_up"), 1.0, "one address is enough");
    assert_eq!(metric(&stage, "ejections_total"), 1.0);
    assert_eq!(stage.metric("forebay_upstream_retries_total{upstream=\"origin\"}"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn with_consistent_hashing_a_new_address_takes_over_its_own_keys_only() {
    let origins = [origin("one").await, origin("two").await, origin("three").await];
    let addresses = origins.each_ref().map(|origin| origin.address);
    let names = Names::of(&addresses[..2]);
    let mut setting = setting(&names);
    setting.upstream.balance = Balance::ConsistentHash;
    let stage = setting.start().await;
    stage.until(|_| metric(&stage, "origin_addresses") == 2.0).await;
    let owners = async || {
        let mut owners = Vec::new();
        for number in 0..100 {
            owners.push(stage.get(&format!("/{number}")).await.text().to_owned());
        }
        owners
    };
    let before = owners().await;
    assert_eq!(owners().await, before, "the same key, the same address");
    names.mean(&addresses);
    resolved().await;
    let after = owners().await;
    let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    assert!((15..=55).contains(&moved.len()), "a third moves, not {}", moved.len());
    assert!(moved.iter().all(|(_, after)| *after == "three"), "and only to the new one: {moved:?}");
}
