//! Requests with a body that wait for each other, where a route opts in.

use crate::support::*;
use bytes::Bytes;
use forebay::outcome::Answered;
use http::Method;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use std::time::Duration;

/// An origin that tells what it was sent, after the gate.
async fn echoing(gate: &Gate, control: &'static str) -> Origin {
    let gate = gate.clone();
    Origin::start(move |number, request| {
        let gate = gate.clone();
        async move {
            let method = request.method().clone();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            gate.passed().await;
            let text = format!("{number}: {method} {}", String::from_utf8_lossy(&body));
            page(200, &[("cache-control", control)], text)
        }
    })
    .await
}

async fn opted_in(origin: &Origin) -> Stage {
    let mut setting = Setting::before(origin.address);
    setting.rules.body_methods = vec![Method::POST, Method::from_bytes(b"QUERY").unwrap()];
    setting.coalescing.request_body_bytes_max = 100;
    setting.start().await
}

async fn ask(stage: &Stage, method: &str, body: &str, content_type: &str) -> Answer {
    ask_with(stage, method, body, &[("content-type", content_type)]).await
}

async fn ask_with(stage: &Stage, method: &str, body: &str, fields: &[(&str, &str)]) -> Answer {
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes())).map_err(|never| match never {}).boxed();
    stage.client().await.send(request_with(method, "/ask", fields, body)).await.whole().await
}

#[tokio::test(start_paused = true)]
async fn identical_questions_are_one_fetch_and_are_stored() {
    for method in ["POST", "QUERY"] {
        let gate = Gate::shut();
        let origin = echoing(&gate, "max-age=60").await;
        let stage = std::sync::Arc::new(opted_in(&origin).await);
        let clients: Vec<_> = (0..20)
            .map(|_| {
                let stage = std::sync::Arc::clone(&stage);
                tokio::spawn(async move { ask(&stage, method, "why?", "text/plain").await })
            })
            .collect();
        stage.until_waiters(19).await;
        gate.open();
        let expected = format!("1: {method} why?");
        for client in clients {
            assert_eq!(client.await.unwrap().text(), expected);
        }
        assert_eq!(ask(&stage, method, "why?", "text/plain").await.text(), expected);
        assert_eq!(stage.telemetry.route(0).requests(Answered::Hit), 1);
        assert_eq!(origin.requests(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn another_body_type_or_method_is_another_question() {
    let gate = Gate::shut();
    gate.open();
    let origin = echoing(&gate, "max-age=60").await;
    let stage = opted_in(&origin).await;
    for (number, (method, body, content_type)) in [
        ("POST", "why?", "text/plain"),
        ("POST", "how?", "text/plain"),
        ("POST", "why?", "text/html"),
        ("QUERY", "why?", "text/plain"),
        ("POST", "", "text/plain"),
    ]
    .into_iter()
    .enumerate()
    {
        let expected = format!("{}: {method} {body}", number + 1);
        assert_eq!(ask(&stage, method, body, content_type).await.text(), expected);
        assert_eq!(ask(&stage, method, body, content_type).await.text(), expected);
    }
    assert_eq!(stage.get("/ask").await.text(), "6: GET ");
}

#[tokio::test(start_paused = true)]
async fn what_is_said_of_a_body_is_part_of_the_question_line_by_line() {
    let gate = Gate::shut();
    gate.open();
    let origin = echoing(&gate, "max-age=60").await;
    let stage = opted_in(&origin).await;
    let json = ("content-type", "application/json");
    let questions: [&[(&str, &str)]; 6] = [
        &[json],
        &[json, ("content-type", "text/plain")],
        &[("content-type", "text/plain"), json],
        &[json, ("content-encoding", "gzip")],
        &[json, ("content-encoding", "gzip"), ("content-encoding", "br")],
        &[json, ("content-language", "de")],
    ];
    for (number, fields) in questions.into_iter().enumerate() {
        let expected = format!("{}: QUERY why?", number + 1);
        assert_eq!(ask_with(&stage, "QUERY", "why?", fields).await.text(), expected, "{fields:?}");
        assert_eq!(ask_with(&stage, "QUERY", "why?", fields).await.text(), expected, "{fields:?}");
        // The upstream gets all that the question was told apart by.
        let (_, _, sent) = origin.seen(number + 1);
        for name in ["content-type", "content-encoding", "content-language"] {
            let told = fields.iter().filter(|(field, _)| *field == name).map(|(_, value)| *value);
            assert!(sent.get_all(name).iter().eq(told), "{fields:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_explicit_freshness_is_shared_and_not_stored() {
    let gate = Gate::shut();
    let origin = echoing(&gate, "public").await;
    let stage = std::sync::Arc::new(opted_in(&origin).await);
    let clients: Vec<_> = (0..5)
        .map(|_| {
            let stage = std::sync::Arc::clone(&stage);
            tokio::spawn(async move { ask(&stage, "POST", "why?", "text/plain").await })
        })
        .collect();
    stage.until_waiters(4).await;
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "1: POST why?");
    }
    assert_eq!(ask(&stage, "POST", "why?", "text/plain").await.text(), "2: POST why?");
}

#[tokio::test(start_paused = true)]
async fn a_body_too_large_to_buffer_passes_through_whole() {
    let gate = Gate::shut();
    gate.open();
    let origin = echoing(&gate, "max-age=60").await;
    let stage = opted_in(&origin).await;
    let large = "x".repeat(101);
    for number in 1..=2 {
        let answer = ask(&stage, "POST", &large, "text/plain").await;
        assert_eq!(answer.text(), format!("{number}: POST {large}"));
    }
    // The same in pieces, whose sum nobody knows before.
    let pieces = futures_util::stream::iter((0..30).map(|_| data("12345")));
    let request = request_with("POST", "/ask", &[], BodyExt::boxed(StreamBody::new(pieces)));
    let answer = stage.client().await.send(request).await.whole().await;
    assert_eq!(answer.text(), format!("3: POST {}", "12345".repeat(30)));
    assert_eq!(stage.telemetry.route(0).requests(Answered::Pass), 3);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_stalls_is_given_up_and_reaches_nobody() {
    let gate = Gate::shut();
    gate.open();
    let origin = echoing(&gate, "max-age=60").await;
    let stage = opted_in(&origin).await;
    let stalled = futures_util::stream::pending();
    let request = request_with("POST", "/ask", &[], BodyExt::boxed(StreamBody::new(stalled)));
    let started = tokio::time::Instant::now();
    assert_eq!(stage.client().await.send(request).await.status(), 408);
    assert!(started.elapsed() >= Duration::from_secs(30));
    assert_eq!(origin.requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_expires_while_a_question_is_still_being_sent_is_not_its_answer() {
    let gate = Gate::shut();
    gate.open();
    let origin = echoing(&gate, "max-age=60").await;
    let stage = opted_in(&origin).await;
    assert_eq!(ask(&stage, "QUERY", "why?", "text/plain").await.text(), "1: QUERY why?");
    tokio::time::advance(Duration::from_secs(55)).await;
    let slowly = futures_util::stream::once(async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok(Frame::data(Bytes::from_static(b"why?")))
    });
    let body = BodyExt::boxed(StreamBody::new(slowly));
    let fields = [("content-type", "text/plain")];
    let answer = stage.client().await.send(request_with("QUERY", "/ask", &fields, body)).await.whole().await;
    assert_eq!(answer.text(), "2: QUERY why?");
}

#[tokio::test(start_paused = true)]
async fn without_opting_in_a_body_passes() {
    let gate = Gate::shut();
    gate.open();
    let origin = echoing(&gate, "max-age=60").await;
    let stage = Stage::before(&origin).await;
    for number in 1..=2 {
        let answer = ask(&stage, "POST", "why?", "text/plain").await;
        assert_eq!(answer.text(), format!("{number}: POST why?"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_streams_is_shared_live() {
    let (pieces, answer) = streamed(200, &[("content-type", "text/event-stream")]);
    let (gate, answer) = (Gate::shut(), parking_lot::Mutex::new(Some(answer)));
    let opened = gate.clone();
    let origin = Origin::start(move |_, _| {
        let (answer, gate) = (answer.lock().take().unwrap(), opened.clone());
        async move {
            gate.passed().await;
            answer
        }
    })
    .await;
    let stage = opted_in(&origin).await;
    let question = || {
        let body = Full::new(Bytes::from("why?")).map_err(|never| match never {}).boxed();
        request_with("POST", "/ask", &[], body)
    };
    let (mut first, mut second) = (stage.client().await, stage.client().await);
    let leading = tokio::spawn(async move { (first.send(question()).await, first) });
    stage.until(|telemetry| telemetry.flights() == 1).await;
    let following = tokio::spawn(async move { (second.send(question()).await, second) });
    stage.until_waiters(1).await;
    gate.open();
    pieces.send(data("data: 1\n\n")).unwrap();
    let ((mut one, _first), (mut other, _second)) = (leading.await.unwrap(), following.await.unwrap());
    assert_eq!(one.piece().await.unwrap().unwrap(), "data: 1\n\n");
    pieces.send(data("data: 2\n\n")).unwrap();
    assert_eq!(one.piece().await.unwrap().unwrap(), "data: 2\n\n");
    drop(pieces);
    let mut all = Vec::new();
    while let Some(piece) = other.piece().await {
        all.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(all, b"data: 1\n\ndata: 2\n\n");
    assert_eq!(origin.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_purge_of_a_url_hits_the_answers_to_all_questions_and_counts_them() {
    let gate = Gate::shut();
    gate.open();
    let origin = echoing(&gate, "max-age=60, stale-if-error=60").await;
    let stage = opted_in(&origin).await;
    for (method, body) in [("QUERY", "a"), ("QUERY", "b"), ("POST", "a")] {
        ask(&stage, method, body, "text/plain").await;
        ask(&stage, method, body, "text/plain").await;
    }
    stage.get("/ask").await;
    stage.until(|telemetry| telemetry.flights() == 0).await;
    assert_eq!(origin.requests(), 4);
    let purge = |soft| {
        let target = forebay::proxy::Target::Url("http://site.example/ask".into());
        stage.proxy.purge(&forebay::proxy::Purge { target, soft }).unwrap().entries
    };
    assert_eq!((purge(true), purge(false), purge(false)), (Some(4), Some(4), Some(0)));
    assert_eq!(ask(&stage, "QUERY", "a", "text/plain").await.text(), "5: QUERY a");
    assert_eq!(purge(false), Some(1));
}
