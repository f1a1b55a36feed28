//! Those aboard a fetch, and those who come late, leave early, or do not fit.

use crate::support::*;
use forebay::outcome::Answered;
use forebay::proxy::{OnAbandon, OnLimit, Purge, Target};
use forebay::telemetry::{DuplicateCause, WaitResult};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const CACHEABLE: [(&str, &str); 1] = [("cache-control", "max-age=60")];

#[tokio::test(start_paused = true)]
async fn who_comes_in_mid_body_is_a_hit_that_reads_along_whoever_has_left() {
    let (pieces, origin) = Origin::in_pieces(&CACHEABLE).await;
    let stage = Stage::before(&origin).await;
    let mut first = stage.client().await;
    let mut leading = first.send(request("GET", "/", &[])).await;
    pieces.send(data("begun, ")).unwrap();
    leading.piece().await;
    drop((leading, first));
    stage.until(|telemetry| telemetry.connections() == 0).await;
    let mut late = stage.client().await;
    let mut reading = late.send(request("GET", "/", &[])).await;
    assert_eq!(reading.piece().await.unwrap().unwrap(), "begun, ");
    pieces.send(data("done")).unwrap();
    drop(pieces);
    assert_eq!(reading.whole().await.text(), "done");
    let route = stage.telemetry.route(0);
    stage.until(|_| route.requests(Answered::Hit) == 1).await;
    assert_eq!(origin.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_will_not_be_stored_is_given_up_with_its_last_reader_whatever_the_route_says() {
    for on_abandon in [OnAbandon::Finish, OnAbandon::Cancel] {
        let (pieces, origin) = Origin::in_pieces(&[("cache-control", "max-age=0")]).await;
        let mut setting = Setting::before(origin.address);
        setting.coalescing.on_abandon = on_abandon;
        let stage = setting.start().await;
        let mut client = stage.client().await;
        let mut reading = client.send(request("GET", "/", &[])).await;
        pieces.send(data("begun, ")).unwrap();
        reading.piece().await;
        let left = Instant::now();
        drop((reading, client));
        stage.until(|telemetry| telemetry.flights() == 0).await;
        stage.until(|_| pieces.is_closed()).await;
        assert!(left.elapsed() < Duration::from_secs(1), "not for a time limit: {:?}", left.elapsed());
        assert_eq!(stage.get("/").await.text(), "answer 2");
    }
}

#[tokio::test(start_paused = true)]
async fn before_its_head_a_fetch_is_given_up_whatever_the_route_says() {
    for on_abandon in [OnAbandon::Finish, OnAbandon::Cancel] {
        let gate = Gate::shut();
        let origin =
            Origin::behind(&gate, ..=1, |number| page(200, &CACHEABLE, format!("answer {number}"))).await;
        let mut setting = Setting::before(origin.address);
        setting.coalescing.on_abandon = on_abandon;
        let stage = setting.start().await;
        let (one, other) = (stage.spawn_get("/", &[]), stage.spawn_get("/", &[]));
        stage.until_waiters(1).await;
        one.abort();
        stage.until(|telemetry| telemetry.connections() == 1).await;
        assert_eq!(stage.telemetry.flights(), 1, "somebody waits");
        let left = Instant::now();
        other.abort();
        stage.until(|telemetry| telemetry.flights() == 0).await;
        assert!(left.elapsed() < Duration::from_secs(1), "not for a time limit: {:?}", left.elapsed());
        assert_eq!(stage.get("/").await.text(), "answer 2");
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_depart_go_as_many_at_once_as_the_upstream_takes() {
    let (gate, at_once, most) = (Gate::shut(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (opened, now, top) = (gate.clone(), Arc::clone(&at_once), Arc::clone(&most));
    let origin = Origin::start(move |number, _| {
        let (gate, now, top) = (opened.clone(), Arc::clone(&now), Arc::clone(&top));
        async move {
            top.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            if number == 1 {
                gate.passed().await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            page(200, &[("cache-control", "private")], format!("answer {number}"))
        }
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.upstream.concurrency_max = 5;
    let stage = setting.start().await;
    let clients: Vec<_> = (0..21).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until_waiters(20).await;
    let started = Instant::now();
    gate.open();
    let mut seen = HashSet::new();
    for client in clients {
        assert!(seen.insert(client.await.unwrap().body), "an answer went to two clients");
    }
    assert_eq!((origin.requests(), most.load(Ordering::SeqCst)), (21, 5));
    // The leader's, and then four rounds of five.
    assert!(started.elapsed() < Duration::from_millis(550), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn without_hit_for_miss_each_wave_waits_for_one() {
    let origin = Origin::start(|number, _| async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        page(200, &[("cache-control", "private")], format!("answer {number}"))
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.hit_for_miss_ttl = Duration::ZERO;
    let stage = setting.start().await;
    for wave in 1..=3 {
        let clients: Vec<_> = (0..5).map(|_| stage.spawn_get("/", &[])).collect();
        stage.until_waiters(4).await;
        for client in clients {
            client.await.unwrap();
        }
        let route = stage.telemetry.route(0);
        assert_eq!((origin.requests(), route.waits(WaitResult::Departed)), (5 * wave, 4 * wave as u64));
    }
}

#[tokio::test(start_paused = true)]
async fn hit_for_miss_is_of_one_variant() {
    let gate = Gate::shut();
    let origin = Origin::holding(
        &gate,
        |number, _| number > 4,
        |number, request| {
            let language = request.headers()["accept-language"].to_str().unwrap();
            let control = if language == "fr" { "private" } else { "max-age=1" };
            let fields = [("cache-control", control), ("vary", "accept-language")];
            page(200, &fields, format!("{number} {language}"))
        },
    )
    .await;
    let stage = Stage::before(&origin).await;
    let ask = |language| [("accept-language", language)];
    // The first tells what selects.
    for (language, expected) in [("de", "1 de"), ("it", "2 it"), ("fr", "3 fr"), ("fr", "4 fr")] {
        assert_eq!(stage.get_with("/", &ask(language)).await.text(), expected);
    }
    tokio::time::advance(Duration::from_secs(2)).await;
    let alone: Vec<_> = (0..3).map(|_| stage.spawn_get("/", &ask("fr"))).collect();
    stage.until(|_| origin.requests() == 7).await;
    let together: Vec<_> = (0..3).map(|_| stage.spawn_get("/", &ask("de"))).collect();
    stage.until_waiters(2).await;
    gate.open();
    for client in together {
        assert_eq!(client.await.unwrap().text(), "8 de");
    }
    for client in alone {
        assert!(client.await.unwrap().text().ends_with("fr"));
    }
    assert_eq!(origin.requests(), 8);
}

#[tokio::test(start_paused = true)]
async fn answers_to_credentials_are_not_shared_even_among_those_who_wait_for_each_other() {
    let gate = Gate::shut();
    let origin = Origin::holding_all(&gate, |request| {
        page(200, &CACHEABLE, request.headers()["authorization"].to_str().unwrap().to_owned())
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.join_with_authorization = true;
    let stage = setting.start().await;
    let users = ["one", "two", "three"];
    let clients = users.map(|user| (user, stage.spawn_get("/", &[("authorization", user)])));
    stage.until_waiters(2).await;
    gate.open();
    for (user, client) in clients {
        assert_eq!(client.await.unwrap().text(), user);
    }
    assert_eq!((origin.requests(), stage.telemetry.route(0).duplicates(DuplicateCause::Uncacheable)), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn a_head_leads_the_fetch_of_the_whole_and_waits_for_it() {
    let gate = Gate::shut();
    let origin = Origin::holding_all(&gate, |request| {
        assert_eq!(request.method(), "GET");
        page(200, &CACHEABLE, "0123456789")
    })
    .await;
    let stage = Stage::before(&origin).await;
    let address = stage.address;
    let head = || {
        tokio::spawn(async move {
            Client::connect(address).await.send(request("HEAD", "/", &[])).await.whole().await
        })
    };
    let leading = head();
    stage.until(|telemetry| telemetry.flights() == 1).await;
    let (whole, following) = (stage.spawn_get("/", &[]), head());
    stage.until_waiters(2).await;
    gate.open();
    for head in [leading, following] {
        let head = head.await.unwrap();
        assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, "10", 0));
    }
    assert_eq!((whole.await.unwrap().text(), origin.requests()), ("0123456789", 1));
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_for_a_failure_get_what_is_stale() {
    let gate = Gate::shut();
    let origin = Origin::behind(&gate, 2.., |number| match number {
        1 => page(200, &[("cache-control", "max-age=1, stale-if-error=60")], "good"),
        _ => page(503, &[], "down"),
    })
    .await;
    let stage = Stage::before(&origin).await;
    stage.get("/").await;
    tokio::time::advance(Duration::from_secs(10)).await;
    let clients: Vec<_> = (0..10).map(|_| stage.spawn_get("/", &[])).collect();
    stage.until_waiters(9).await;
    gate.open();
    for client in clients {
        let answer = client.await.unwrap();
        assert_eq!((answer.status, answer.text()), (200, "good"));
    }
    assert_eq!(origin.requests(), 2);
    assert_eq!(stage.telemetry.route(0).requests(Answered::Stale), 10);
}

#[tokio::test(start_paused = true)]
async fn what_has_broken_off_meanwhile_stands_in_for_nothing() {
    let gate = Gate::shut();
    let (pieces, answer) = streamed(200, &[("cache-control", "max-age=1, stale-if-error=600")]);
    let (opened, first) = (gate.clone(), parking_lot::Mutex::new(Some(answer)));
    let origin = Origin::start(move |_, _| {
        let (gate, first) = (opened.clone(), first.lock().take());
        async move {
            if let Some(first) = first {
                return first;
            }
            gate.passed().await;
            page(503, &[], "down")
        }
    })
    .await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.on_abandon = OnAbandon::Cancel;
    let stage = setting.start().await;
    let mut client = stage.client().await;
    // Not a byte of its body has come.
    let reading = client.send(request("GET", "/", &[])).await;
    tokio::time::advance(Duration::from_secs(5)).await;
    let asking = stage.spawn_get("/", &[]);
    stage.until(|_| origin.requests() == 2).await;
    drop((reading, client));
    stage.until(|_| pieces.is_closed()).await;
    gate.open();
    let answer = asking.await.unwrap();
    assert_eq!((answer.status, answer.text()), (503, "down"));
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_place_to_wait_gets_what_is_stale() {
    for on_limit in [OnLimit::GoAlone, OnLimit::Refuse] {
        let gate = Gate::shut();
        let control = [("cache-control", "max-age=1, stale-if-error=600")];
        let origin =
            Origin::behind(&gate, 2.., move |number| page(200, &control, format!("answer {number}"))).await;
        let mut setting = Setting::before(origin.address);
        setting.coalescing.on_limit = on_limit;
        setting.coalescing.waiters_max = 0;
        let stage = setting.start().await;
        stage.get("/").await;
        tokio::time::advance(Duration::from_secs(5)).await;
        let leader = stage.spawn_get("/", &[]);
        stage.until(|telemetry| telemetry.flights() == 1).await;
        assert_eq!(stage.get("/").await.text(), "answer 1", "{on_limit:?}");
        gate.open();
        assert_eq!((leader.await.unwrap().text(), origin.requests()), ("answer 2", 2));
        assert_eq!(stage.telemetry.route(0).duplicates(DuplicateCause::WaiterOverflow), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_joins_a_body_that_has_become_too_large_to_keep() {
    let (pieces, origin) = Origin::in_pieces(&CACHEABLE).await;
    let mut setting = Setting::before(origin.address);
    setting.coalescing.body_bytes_max = 1000;
    let stage = setting.start().await;
    let mut client = stage.client().await;
    let mut reading = client.send(request("GET", "/", &[])).await;
    for length in [900, 200] {
        pieces.send(data(vec![b'.'; length])).unwrap();
        assert_eq!(reading.piece().await.unwrap().unwrap().len(), length);
    }
    assert_eq!(stage.get("/").await.text(), "answer 2");
    pieces.send(data("done")).unwrap();
    drop(pieces);
    assert_eq!(reading.whole().await.text(), "done");
    assert_eq!(stage.get("/").await.text(), "answer 2");
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_tag_is_a_tag_in_whichever_field_it_comes() {
    for field in ["surrogate-key", "cache-tag", "xkey", "cache-groups"] {
        for soft in [false, true] {
            let tags = if field == "cache-groups" { "\"one\", \"news\"" } else { "news" };
            let origin = Origin::start(move |number, _| async move {
                page(200, &[("cache-control", "max-age=60"), (field, tags)], format!("answer {number}"))
            })
            .await;
            let stage = Stage::before(&origin).await;
            for (tag, expected) in [("olds", "answer 1"), ("news", "answer 2")] {
                stage.get("/").await;
                stage.proxy.purge(&Purge { target: Target::Tag(tag.into()), soft }).unwrap();
                assert_eq!(stage.get("/").await.text(), expected, "{field} {tag}");
            }
        }
    }
}

/// An origin whose answers are for one client each in French and for everyone in other languages, and whose answers from this one on
/// come when the gate is open.
async fn private_in_french(gate: &Gate, first_held: usize) -> Origin {
    Origin::holding(
        gate,
        move |number, _| number >= first_held,
        |number, request| {
            let language = request.headers()["accept-language"].to_str().unwrap();
            let control = if language == "fr" { "private" } else { "max-age=60" };
            page(
                200,
                &[("cache-control", control), ("vary", "accept-language")],
                format!("{number} {language}"),
            )
        },
    )
    .await
}

fn in_language(language: &'static str) -> [(&'static str, &'static str); 1] {
    [("accept-language", language)]
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_for_one_client_sends_nobody_alone_whom_it_was_not_selected_for() {
    let gate = Gate::shut();
    let origin = private_in_french(&gate, 2).await;
    let stage = Stage::before(&origin).await;
    assert_eq!(stage.get_with("/", &in_language("fr")).await.text(), "1 fr");
    let together: Vec<_> = (0..5).map(|_| stage.spawn_get("/", &in_language("de"))).collect();
    stage.until_waiters(4).await;
    let alone: Vec<_> = (0..5).map(|_| stage.spawn_get("/", &in_language("fr"))).collect();
    stage.until(|_| origin.requests() == 7).await;
    gate.open();
    for client in together {
        assert_eq!(client.await.unwrap().text(), "2 de");
    }
    for client in alone {
        assert!(client.await.unwrap().text().ends_with("fr"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_for_all_ends_hit_for_miss_for_those_whom_it_was_selected_for() {
    let gate = Gate::shut();
    let origin = private_in_french(&gate, 3).await;
    let stage = Stage::before(&origin).await;
    for (language, expected) in [("fr", "1 fr"), ("de", "2 de")] {
        assert_eq!(stage.get_with("/", &in_language(language)).await.text(), expected);
    }
    let alone: Vec<_> = (0..5).map(|_| stage.spawn_get("/", &in_language("fr"))).collect();
    stage.until(|_| origin.requests() == 7).await;
    gate.open();
    for client in alone {
        assert!(client.await.unwrap().text().ends_with("fr"));
    }
    assert_eq!(stage.telemetry.route(0).waits(WaitResult::Departed), 0);
}

#[tokio::test(start_paused = true)]
async fn who_waited_for_an_answer_that_is_for_one_client_and_was_not_selected_for_them_ask_together() {
    let (first, rest) = (Gate::shut(), Gate::shut());
    let origin = {
        let (first, rest) = (first.clone(), rest.clone());
        Origin::start(move |number, request| {
            let gate = if number == 1 { first.clone() } else { rest.clone() };
            async move {
                gate.passed().await;
                let language = request.headers()["accept-language"].to_str().unwrap().to_owned();
                let control = if language == "fr" { "private" } else { "max-age=60" };
                let fields = [("cache-control", control), ("vary", "accept-language")];
                page(200, &fields, format!("{number} {language}"))
            }
        })
        .await
    };
    let stage = Stage::before(&origin).await;
    let leader = stage.spawn_get("/", &in_language("fr"));
    stage.until(|_| origin.requests() == 1).await;
    let french: Vec<_> = (0..3).map(|_| stage.spawn_get("/", &in_language("fr"))).collect();
    let german: Vec<_> = (0..3).map(|_| stage.spawn_get("/", &in_language("de"))).collect();
    let italian: Vec<_> = (0..3).map(|_| stage.spawn_get("/", &in_language("it"))).collect();
    stage.until_waiters(9).await;
    first.open();
    assert_eq!(leader.await.unwrap().text(), "1 fr");
    // One for each in French, and one for each other language.
    stage.until(|_| origin.requests() == 6).await;
    stage.until_waiters(4).await;
    rest.open();
    let mut answers = HashSet::new();
    for client in french {
        assert!(answers.insert(client.await.unwrap().body));
    }
    for together in [german, italian] {
        let mut of_one = HashSet::new();
        for client in together {
            of_one.insert(client.await.unwrap().body);
        }
        assert_eq!(of_one.len(), 1);
    }
    let route = stage.telemetry.route(0);
    assert_eq!(origin.requests(), 6);
    assert_eq!(route.duplicates(DuplicateCause::Uncacheable), 3);
    assert_eq!(route.duplicates(DuplicateCause::Vary), 2);
}
