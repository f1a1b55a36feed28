//! What a decision of the cache costs: `cargo bench --bench policy`.

use std::hint::black_box;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use divan::Bencher;
use forebay::policy::directives::ResponseDirectives;
use forebay::policy::{
    Asked, Disposition, Exchange, Identity, KeySpec, Keyer, Metadata, Rules, date, dispose, plan, range,
};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CACHE_CONTROL, DATE, ETAG, HOST, RANGE, USER_AGENT, VARY,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

fn main() {
    divan::main();
}

/// A request as a browser sends it.
fn request() -> HeaderMap {
    HeaderMap::from_iter([
        (HOST, HeaderValue::from_static("a.example")),
        (USER_AGENT, HeaderValue::from_static("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101")),
        (ACCEPT, HeaderValue::from_static("text/html,application/xhtml+xml,*/*;q=0.8")),
        (ACCEPT_LANGUAGE, HeaderValue::from_static("en-US,en;q=0.5")),
        (ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate, br, zstd")),
    ])
}

fn response(vary: Option<&'static str>) -> HeaderMap {
    let mut headers = HeaderMap::from_iter([
        (CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600, stale-while-revalidate=60")),
        (DATE, HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT")),
        (ETAG, HeaderValue::from_static("\"a\"")),
    ]);
    if let Some(vary) = vary {
        headers.insert(VARY, HeaderValue::from_static(vary));
    }
    headers
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(784_111_777)
}

fn exchange<'a>(request: &'a HeaderMap, response: &'a HeaderMap) -> Exchange<'a> {
    Exchange {
        method: &Method::GET,
        request,
        status: StatusCode::OK,
        response,
        request_time: now(),
        response_time: now(),
    }
}

fn stored(request: &HeaderMap, response: &HeaderMap) -> Metadata {
    let Disposition::Store(metadata) = dispose(&exchange(request, response), None, &Rules::default()) else {
        unreachable!("the response of these benchmarks may be stored")
    };
    metadata
}

#[divan::bench(args = [None, Some("accept-encoding")])]
fn plan_on_a_hit(bencher: Bencher<'_, '_>, vary: Option<&'static str>) {
    let (request, rules) = (request(), Rules::default());
    let stored = [stored(&request, &response(vary))];
    let asked = Asked { method: &Method::GET, headers: &request };
    bencher.bench_local(|| plan(black_box(&asked), black_box(&stored), black_box(now()), 0.5, &rules));
}

/// The same selecting value, spelt otherwise: the only hit that parses anything of the request.
#[divan::bench]
fn plan_on_a_hit_that_normalises(bencher: Bencher<'_, '_>) {
    let (mut request, rules) = (request(), Rules::default());
    let stored = [stored(&request, &response(Some("accept-encoding")))];
    request.insert(ACCEPT_ENCODING, HeaderValue::from_static("zstd, br, deflate, gzip"));
    let asked = Asked { method: &Method::GET, headers: &request };
    bencher.bench_local(|| plan(black_box(&asked), black_box(&stored), black_box(now()), 0.5, &rules));
}

#[divan::bench]
fn plan_on_a_miss(bencher: Bencher<'_, '_>) {
    let (request, rules) = (request(), Rules::default());
    let asked = Asked { method: &Method::GET, headers: &request };
    bencher.bench_local(|| plan::<Metadata>(black_box(&asked), &[], black_box(now()), 0.5, &rules));
}

#[divan::bench(args = [None, Some("accept-encoding")])]
fn dispose_of_a_response(bencher: Bencher<'_, '_>, vary: Option<&'static str>) {
    let (request, response, rules) = (request(), response(vary), Rules::default());
    bencher.bench_local(|| dispose(black_box(&exchange(&request, &response)), None, &rules));
}

#[divan::bench]
fn key(bencher: Bencher<'_, '_>) {
    let (request, keyer, spec) = (request(), Keyer::new(), KeySpec::default());
    let identity = Identity {
        route: 0,
        scheme: "http",
        host: "a.example",
        target: "/articles/2026/01/a-title-of-some-length?page=2",
        method: &Method::GET,
        headers: &request,
        body_digest: None,
    };
    bencher.bench_local(|| keyer.key(black_box(&identity), &spec));
}

#[divan::bench]
fn directives(bencher: Bencher<'_, '_>) {
    let response = response(None);
    bencher.bench_local(|| ResponseDirectives::of(black_box(&response)));
}

#[divan::bench(args = ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT"])]
fn a_date(bencher: Bencher<'_, '_>, text: &str) {
    bencher.bench_local(|| date::parse(black_box(text.as_bytes()), now()));
}

#[divan::bench]
fn ranges(bencher: Bencher<'_, '_>) {
    let (mut request, response) = (request(), response(None));
    let metadata = stored(&request, &response);
    request.insert(RANGE, HeaderValue::from_static("bytes=0-99, 200-299, -100"));
    let asked = Asked { method: &Method::GET, headers: &request };
    bencher.bench_local(|| {
        range::select(black_box(&asked), StatusCode::OK, &metadata, &response, Some(100_000))
    });
}
