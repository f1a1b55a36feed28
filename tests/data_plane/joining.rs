//! Who may share a fetch, and how a fetch that is late, or that nobody reads, comes to its end.

use crate::support::*;
use bytes::Bytes;
use forebay::outcome::Answered;
use forebay::proxy::explain::Explanation;
use forebay::proxy::{Purge, Target};
use forebay::telemetry::DuplicateCause;
use std::collections::HashSet;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// An origin that answers each cookie for itself, after the gate.
async fn personal(gate: &Gate, control: &'static str) -> Origin {
    aged_personal(gate, control, "0").await
}

/// The same, with answers of this age.
async fn aged_personal(gate: &Gate, control: &'static str, age: &'static str) -> Origin {
    Origin::holding_all(gate, move |request| {
        let cookie = request.headers().get("cookie").map(|value| value.to_str().unwrap().to_owned());
        page(200, &[("cache-control", control), ("age", age)], cookie.unwrap_or_default())
    })
    .await
}

/// So many clients with a cookie each, whose requests are all under way when the gate opens.
async fn with_cookies(stage: &Stage, gate: &Gate, count: usize, waiting: i64) -> Vec<Answer> {
    let get = |number| stage.spawn_get("/page", &[("cookie", &*format!("user={number}"))]);
    together(stage, gate, (0..count).map(get).collect(), waiting).await
}

/// What these clients get, of whom so many wait for another's fetch when the gate opens.
async fn together(stage: &Stage, gate: &Gate, clients: Vec<JoinHandle<Answer>>, waiting: i64) -> Vec<Answer> {
    let count = i64::try_from(clients.len()).unwrap();
    stage.until(|telemetry| telemetry.waiters() == waiting && telemetry.connections() == count).await;
    gate.open();
    let mut answers = Vec::new();
    for client in clients {
        answers.push(client.await.unwrap());
    }
    answers
}

#[tokio::test(start_paused = true)]
async fn requests_with_cookies_share_what_says_that_it_is_for_everyone() {
    for control in ["max-age=60", "public, max-age=0", "s-maxage=60"] {
        let gate = Gate::shut();
        let origin = personal(&gate, control).await;
        let stage = Stage::before(&origin).await;
        let answers = with_cookies(&stage, &gate, 10, 9).await;
        assert!(answers.iter().all(|answer| answer == &answers[0] || answer.body == answers[0].body));
        assert_eq!(origin.requests(), 1, "{control}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_with_cookies_share_what_later_requests_get_from_the_store_anyway() {
    let modified = ("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT");
    for field in [modified, ("cache-control", "max-age=0, stale-while-revalidate=60")] {
        let gate = Gate::shut();
        let origin =
            Origin::behind(&gate, .., move |number| page(200, &[field], format!("answer {number}"))).await;
        let stage = Stage::before(&origin).await;
        let answers = with_cookies(&stage, &gate, 20, 19).await;
        assert!(answers.iter().all(|answer| answer.text() == "answer 1"), "{field:?}");
        assert_eq!(stage.get_with("/page", &[("cookie", "user=other")]).await.text(), "answer 1");
        assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Uncacheable), 0, "{field:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_with_the_same_cookies_share_what_is_not_said_to_be_for_everyone() {
    let gate = Gate::shut();
    let origin = personal(&gate, "max-age=0").await;
    let stage = Stage::before(&origin).await;
    let clients: Vec<_> = (0..10).map(|_| stage.spawn_get("/page", &[("cookie", "user=1")])).collect();
    let other = stage.spawn_get("/page", &[("cookie", "user=2")]);
    stage.until_waiters(10).await;
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "user=1");
    }
    assert_eq!(other.await.unwrap().text(), "user=2");
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn requests_with_cookies_do_not_share_what_does_not_say_so() {
    // Neither a lifetime nor permission: it could be anything.
    for (control, age) in [("max-age=0", "0"), ("must-revalidate", "0"), ("max-age=10", "100")] {
        let gate = Gate::shut();
        let origin = aged_personal(&gate, control, age).await;
        let stage = Stage::before(&origin).await;
        let answers = with_cookies(&stage, &gate, 10, 9).await;
        let bodies: HashSet<_> = answers.iter().map(|answer| answer.text().to_owned()).collect();
        assert_eq!(bodies.len(), 10, "{control}: someone got another's");
        assert_eq!(origin.requests(), 10);
        let route = stage.telemetry.route(0);
        assert_eq!(route.duplicates(DuplicateCause::Uncacheable), 9, "{control}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_with_cookies_do_not_wait_where_the_route_says_so() {
    let gate = Gate::shut();
    let origin = personal(&gate, "max-age=0").await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.join_with_cookies = false;
    let stage = setting.start().await;
    let answers = with_cookies(&stage, &gate, 10, 0).await;
    let bodies: HashSet<_> = answers.iter().map(|answer| answer.text().to_owned()).collect();
    assert_eq!((bodies.len(), origin.requests()), (10, 10));
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Uncacheable), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cookie_that_is_part_of_the_key_separates_and_does_not_keep_from_waiting() {
    let gate = Gate::shut();
    let origin = personal(&gate, "max-age=0").await;
    let mut setting = Setting::before(origin.address);
    setting.key.cookies = vec!["lang".into()];
    setting.rules.keyed_cookies = vec!["lang".into()];
    setting.coalescing.join_with_cookies = false;
    let stage = setting.start().await;
    let clients: Vec<_> = (0..10)
        .map(|number| {
            let cookie = format!("lang={}", ["de", "fr"][number % 2]);
            (cookie.clone(), stage.spawn_get("/page", &[("cookie", &*cookie)]))
        })
        .collect();
    stage.until_waiters(8).await;
    gate.open();
    for (cookie, client) in clients {
        assert_eq!(client.await.unwrap().text(), cookie);
    }
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn hit_for_miss_lasts_from_the_last_uncacheable_answer_and_each_fetch_meanwhile_is_a_probe() {
    let origin = Origin::start(|number, _| async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let control = if number <= 30 { "no-store" } else { "max-age=60" };
        page(200, &[("cache-control", control)], format!("answer {number}"))
    })
    .await;
    let stage = Stage::before(&origin).await;
    let wave = || async {
        let started = Instant::now();
        for client in (0..10).map(|_| stage.spawn_get("/", &[])).collect::<Vec<_>>() {
            client.await.unwrap();
        }
        started.elapsed().as_millis()
    };
    // Eight seconds apart, each wave renews the memory of ten seconds: only the first learns by waiting.
    assert!((400..500).contains(&wave().await));
    for _ in 0..2 {
        tokio::time::advance(Duration::from_secs(8)).await;
        assert!((200..300).contains(&wave().await));
    }
    assert_eq!(origin.requests(), 30);
    // The next answers may be stored: all of this wave fetch for themselves once more, nobody waits to find out.
    tokio::time::advance(Duration::from_secs(8)).await;
    assert!((200..300).contains(&wave().await));
    assert_eq!((wave().await, origin.requests()), (0, 40));
    assert_eq!(stage.telemetry.route(0).requests(Answered::Hit), 10);
}

#[tokio::test(start_paused = true)]
async fn hit_for_miss_lapses_and_the_next_wave_waits_for_one_again() {
    let origin = Origin::start(|number, _| async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let control = if number == 1 { "no-store" } else { "max-age=60" };
        page(200, &[("cache-control", control)], format!("answer {number}"))
    })
    .await;
    let stage = Stage::before(&origin).await;
    stage.get("/").await;
    tokio::time::advance(Duration::from_secs(11)).await;
    for client in (0..10).map(|_| stage.spawn_get("/", &[])).collect::<Vec<_>>() {
        assert_eq!(client.await.unwrap().text(), "answer 2");
    }
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_304_to_a_fetch_that_went_alone_ends_hit_for_miss() {
    let gates = [Gate::shut(), Gate::shut()];
    let held = gates.clone();
    let origin = Origin::start(move |number, request| {
        let gates = held.clone();
        let is_asked_about = request.headers().contains_key("if-none-match");
        async move {
            let fields = [("cache-control", "max-age=10"), ("etag", "\"1\"")];
            match number {
                1 => {
                    gates[0].passed().await;
                    return page(200, &[("cache-control", "private")], "answer 1");
                }
                2 | 3 => {}
                _ => gates[1].passed().await,
            }
            if is_asked_about {
                page(304, &fields, "")
            } else {
                page(200, &fields, format!("answer {number}"))
            }
        }
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.waiter_timeout = Duration::from_secs(1);
    setting.coalescing.hit_for_miss_ttl = Duration::from_secs(60);
    let stage = setting.start().await;
    let leader = stage.spawn_get("/", &[]);
    stage.until(|_| origin.requests() == 1).await;
    // It waits in vain, goes alone, and brings what may be stored; after it comes what may not.
    assert_eq!(stage.get("/").await.text(), "answer 2");
    gates[0].open();
    assert_eq!(leader.await.unwrap().text(), "answer 1");
    let note = || {
        let asked = http::Request::get("http://site.example/").body(Bytes::new()).unwrap();
        let Explanation::Received(explained) = stage.proxy.explain(&asked) else { panic!("refused") };
        explained.note.map(|note| note.kind)
    };
    assert_eq!(note().as_deref(), Some("hit-for-miss"));
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(stage.get("/").await.text(), "answer 2");
    assert_eq!((origin.requests(), note()), (3, None));
    // They wait for each other again.
    tokio::time::advance(Duration::from_secs(11)).await;
    let clients: Vec<_> = (0..5).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until_waiters(4).await;
    gates[1].open();
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "answer 2");
    }
    assert_eq!(origin.requests(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_range_of_a_body_that_has_just_broken_never_looks_whole() {
    // Each time the range is asked for a few turns of the scheduler later: before the head, while it breaks, after.
    for turns in 0..40 {
        let gate = Gate::shut();
        let origin = Origin::behind(&gate, .., |_| {
            let (pieces, answer) =
                streamed(200, &[("cache-control", "max-age=60"), ("content-length", "10")]);
            pieces.send(data("01234")).unwrap();
            pieces.send(Err(std::io::ErrorKind::ConnectionReset.into())).unwrap();
            answer
        })
        .await;
        let stage = Stage::before(&origin).await;
        let address = stage.address;
        let ask = |range: &'static str| {
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                match client.try_send(request("GET", "/", &[("range", range)])).await {
                    Ok(head) => head.try_whole().await.ok(),
                    Err(_) => None,
                }
            })
        };
        let first = ask("bytes=7-8");
        stage.until(|telemetry| telemetry.flights() == 1).await;
        gate.open();
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        for asked in [first, ask("bytes=7-8"), ask("bytes=5-"), ask("bytes=-2")] {
            let answer = asked.await.unwrap();
            assert!(answer.as_ref().is_none_or(|answer| answer.status >= 500), "{turns} turns: {answer:?}");
        }
        stage.until(|telemetry| telemetry.flights() == 0).await;
        assert_eq!(stage.metric("forebay_inflight_bytes"), 0.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_is_older_than_its_limit_ends_and_the_next_request_begins_another() {
    let origin = Origin::start(|number, _| async move {
        if number == 1 {
            std::future::pending::<()>().await;
        }
        page(200, &[("cache-control", "max-age=60")], format!("answer {number}"))
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.upstream.head_timeout = Duration::from_secs(5);
    setting.upstream.retries = 0;
    setting.coalescing.error_backoff = (Duration::ZERO, Duration::ZERO);
    let stage = setting.start().await;
    let started = Instant::now();
    let waiting: Vec<_> = (0..5).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until_waiters(4).await;
    for client in waiting {
        assert_eq!(client.await.unwrap().status, 504);
    }
    assert!(started.elapsed() < Duration::from_secs(6), "nobody waits for longer than the fetch may take");
    assert_eq!(stage.get("/").await.text(), "answer 2");
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_from_a_fetch_that_was_replaced_does_not_overwrite_the_newer_one() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, ..=1, |number| {
        page(200, &[("cache-control", "max-age=60")], format!("answer {number}"))
    })
    .await;
    let stage = Stage::before(&origin).await;
    let old = stage.spawn_get("/", &[]);
    stage.until(|_| origin.requests() == 1).await;
    let purge = Purge { target: Target::Url("http://site.example/".into()), soft: false };
    stage.proxy.purge(&purge).unwrap();
    assert_eq!(stage.get("/").await.text(), "answer 2");
    // Nothing but the order of the fetches keeps the old answer out: the purge is swept up.
    stage.proxy.sweep().await;
    gate.open();
    assert_eq!(old.await.unwrap().text(), "answer 1");
    stage.until(|telemetry| telemetry.flights() == 0).await;
    assert_eq!(stage.get("/").await.text(), "answer 2");
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_nobody_reads_is_bounded_in_bytes() {
    let (pieces, answer) = streamed(200, &[("cache-control", "max-age=60")]);
    let origin = Origin::once(answer).await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.body_bytes_max = 10_000;
    let stage = setting.start().await;
    abandon(&stage, &pieces).await;
    let mut sent = 0;
    // The origin notices that its body is not wanted any more.
    while pieces.send(data(vec![b'.'; 1000])).is_ok() {
        sent += 1;
        assert!(sent < 1000, "it reads for ever");
        stage.until(|_| true).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stage.until(|telemetry| telemetry.flights() == 0).await;
    assert_eq!(stage.metric("forebay_inflight_bytes"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_nobody_reads_is_bounded_in_time() {
    for drips in [false, true] {
        let (pieces, answer) = streamed(200, &[("cache-control", "max-age=60")]);
        let origin = Origin::once(answer).await;
        let mut setting = Setting::before(origin.address);
        setting.upstream.between_bytes_timeout = Duration::from_secs(5);
        setting.upstream.total_timeout = Some(Duration::from_secs(20));
        let stage = setting.start().await;
        abandon(&stage, &pieces).await;
        let started = Instant::now();
        while stage.telemetry.flights() > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if drips {
                let _ = pieces.send(data("."));
            }
            assert!(started.elapsed() < Duration::from_secs(60), "it lasts for ever");
        }
        let limit = if drips { 18..=22 } else { 4..=7 };
        assert!(limit.contains(&started.elapsed().as_secs()), "{drips}: {:?}", started.elapsed());
        assert_eq!(stage.metric("forebay_inflight_bytes"), 0.0);
    }
}

/// A client reads the beginning of a body and leaves.
async fn abandon(
    stage: &Stage,
    pieces: &tokio::sync::mpsc::UnboundedSender<std::io::Result<hyper::body::Frame<bytes::Bytes>>>,
) {
    let mut client = stage.client().await;
    let mut reading = client.send(request("GET", "/", &[])).await;
    pieces.send(data("begun")).unwrap();
    reading.piece().await;
    drop((reading, client));
    stage.until(|telemetry| telemetry.connections() == 0).await;
    assert_eq!(stage.telemetry.flights(), 1, "it goes on, because it will be stored");
}

#[tokio::test(start_paused = true)]
async fn what_is_stale_before_its_body_is_here_is_fetched_again_once_for_all() {
    let gate = Gate::shut();
    let (pieces, answer) = streamed(200, &[("cache-control", "max-age=1"), ("etag", "\"1\"")]);
    let first = parking_lot::Mutex::new(Some(answer));
    let opened = gate.clone();
    let origin = Origin::start(move |number, request| {
        let (first, gate) = (first.lock().take(), opened.clone());
        let is_asked_about = request.headers().contains_key("if-none-match");
        async move {
            if let Some(first) = first {
                return first;
            }
            gate.passed().await;
            let fields = [("cache-control", "max-age=60"), ("etag", "\"1\"")];
            if is_asked_about {
                page(304, &fields, "")
            } else {
                page(200, &fields, format!("answer {number}"))
            }
        }
    })
    .await;
    let stage = Stage::before(&origin).await;
    let mut client = stage.client().await;
    let mut reading = client.send(request("GET", "/", &[])).await;
    pieces.send(data("begun, ")).unwrap();
    reading.piece().await;
    tokio::time::advance(Duration::from_secs(5)).await;
    let clients: Vec<_> = (0..20).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until(|telemetry| origin.requests() > 1 && telemetry.connections() == 21).await;
    stage.until_waiters(19).await;
    gate.open();
    stage.until(|telemetry| telemetry.waiters() == 0).await;
    pieces.send(data("done")).unwrap();
    drop(pieces);
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "begun, done");
    }
    assert_eq!(reading.whole().await.text(), "done");
    assert_eq!(stage.get("/").await.text(), "begun, done");
    assert_eq!(origin.requests(), 2);
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Uncacheable), 1);
}

#[tokio::test(start_paused = true)]
async fn a_304_that_makes_a_response_private_releases_all_who_wait_at_once() {
    let origin = Origin::start(|number, request| async move {
        let is_asked_about = request.headers().contains_key("if-none-match");
        tokio::time::sleep(Duration::from_millis(200)).await;
        let control = if number == 1 { "max-age=10" } else { "private" };
        let fields = [("cache-control", control), ("etag", "\"1\"")];
        if is_asked_about { page(304, &fields, "") } else { page(200, &fields, format!("answer {number}")) }
    })
    .await;
    let stage = Stage::before(&origin).await;
    assert_eq!(stage.get("/").await.text(), "answer 1");
    tokio::time::advance(Duration::from_secs(11)).await;
    let started = Instant::now();
    let clients: Vec<_> = (0..10).map(|_| stage.spawn_get("/", &[])).collect();
    let mut seen = HashSet::new();
    for client in clients {
        assert!(seen.insert(client.await.unwrap().body), "an answer went to two clients");
    }
    assert!(started.elapsed() < Duration::from_millis(410), "{:?}", started.elapsed());
    assert_eq!(origin.requests(), 11);
    assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::Uncacheable), 9);
}

const CREDENTIALS: (&str, &str) = ("authorization", "Basic eA==");

/// So many clients with the same credentials, likewise.
async fn with_credentials(stage: &Stage, gate: &Gate, count: usize, waiting: i64) -> Vec<Answer> {
    let get = |_| stage.spawn_get("/", &[CREDENTIALS]);
    together(stage, gate, (0..count).map(get).collect(), waiting).await
}

#[tokio::test(start_paused = true)]
async fn a_response_that_has_proved_to_be_public_lets_requests_with_credentials_wait_from_then_on() {
    let anyone: &[_] = &[];
    for (asker, control, purges) in [
        (&[CREDENTIALS][..], "public, max-age=1", false),
        (&[CREDENTIALS], "max-age=1, must-revalidate", true),
        (anyone, "s-maxage=1", false),
        (anyone, "public, max-age=1", true),
    ] {
        let gate = Gate::shut();
        let origin = Origin::behind(&gate, 2.., move |number| {
            page(200, &[("cache-control", control)], format!("answer {number}"))
        })
        .await;
        let stage = Stage::before(&origin).await;
        assert_eq!(stage.get_with("/", asker).await.text(), "answer 1");
        if purges {
            let purge = Purge { target: Target::Everything, soft: false };
            stage.proxy.purge(&purge).unwrap();
            stage.proxy.sweep().await;
        } else {
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        let answers = with_credentials(&stage, &gate, 20, 19).await;
        assert!(answers.iter().all(|answer| answer.text() == "answer 2"));
        assert_eq!(origin.requests(), 2, "{control}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_anyone_gets_says_whether_requests_with_credentials_wait_under_each_variant_too() {
    let gate = Gate::shut();
    let held = gate.clone();
    let origin = Origin::start(move |number, _| {
        let gate = (number > 2).then(|| held.clone());
        async move {
            if let Some(gate) = gate {
                gate.passed().await;
            }
            let control = if number == 1 { "public, max-age=60" } else { "private" };
            page(200, &[("cache-control", control), ("vary", "accept-language")], format!("answer {number}"))
        }
    })
    .await;
    let stage = Stage::before(&origin).await;
    assert_eq!(stage.get_with("/", &[("accept-language", "de")]).await.text(), "answer 1");
    // Of the selecting fields it is known now that they are: this is asked for under its variant.
    assert_eq!(stage.get_with("/", &[("accept-language", "fr")]).await.text(), "answer 2");
    let answers = with_credentials(&stage, &gate, 5, 0).await;
    let bodies: HashSet<_> = answers.iter().map(|answer| answer.text().to_owned()).collect();
    assert_eq!(bodies.len(), 5, "an answer went to two clients");
    assert_eq!(origin.requests(), 7);
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_that_is_not_public_ends_the_wait_of_requests_with_credentials_and_of_nobody_else() {
    let gates = [Gate::shut(), Gate::shut(), Gate::shut()];
    let held = gates.clone();
    let origin = Origin::start(move |number, request| {
        let gate = match number {
            1 => None,
            2..=6 => Some(held[0].clone()),
            7..=11 => Some(held[1].clone()),
            _ => Some(held[2].clone()),
        };
        let is_personal = request.headers().contains_key("authorization") && number > 1;
        async move {
            if let Some(gate) = gate {
                gate.passed().await;
            }
            let control = match number {
                1 => "public, max-age=1",
                _ if is_personal => "private",
                _ => "max-age=60",
            };
            page(200, &[("cache-control", control)], format!("answer {number}"))
        }
    })
    .await;
    let stage = Stage::before(&origin).await;
    assert_eq!(stage.get_with("/", &[CREDENTIALS]).await.text(), "answer 1");
    tokio::time::advance(Duration::from_secs(2)).await;
    for (gate, waiting) in [(&gates[0], 4), (&gates[1], 0)] {
        let answers = with_credentials(&stage, gate, 5, waiting).await;
        let bodies: HashSet<_> = answers.iter().map(|answer| answer.text().to_owned()).collect();
        assert_eq!(bodies.len(), 5, "an answer went to two clients");
    }
    // Those without credentials wait for each other as ever.
    let clients: Vec<_> = (0..5).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until_waiters(4).await;
    gates[2].open();
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "answer 12");
    }
    assert_eq!(origin.requests(), 12);
}
