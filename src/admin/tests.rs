//! The router, asked without sockets, in front of an upstream that is not there.

use super::*;
use crate::clock::Clock;
use crate::proxy::{self, Route, Site};
use crate::{store, upstream};
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, Response};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use tower::ServiceExt;

struct Port {
    router: Router,
    ready: Arc<Readiness>,
    telemetry: Arc<Telemetry>,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect(&self.text)
    }

    fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks that it is a refusal in the form of RFC 9457.
    #[track_caller]
    fn check_problem(&self, status: u16, part: &str) {
        assert_eq!(
            (self.status, self.field("content-type")),
            (status, "application/problem+json"),
            "{}",
            self.text
        );
        let problem = self.json();
        assert_eq!((&problem["type"], &problem["status"]), (&json!("about:blank"), &json!(status)));
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(part), "{part:?} is not in {detail:?}");
    }
}

impl Port {
    fn on(listen: &str, token: Option<&str>) -> Self {
        let settings = Settings {
            listen: listen.parse::<SocketAddr>().unwrap(),
            token: token.map(str::to_owned),
            ..Settings::default()
        };
        Self::with(Changes::of(&settings).unwrap(), Names::of(&settings))
    }

    fn with(changes: Changes, names: Names) -> Self {
        Self::reloading(
            changes,
            names,
            Ok(Reloaded { restart_required: vec!["server.listen"], warnings: vec!["w".to_owned()] }),
        )
    }

    /// One whose configuration, loaded again, comes to this.
    fn reloading(changes: Changes, names: Names, reloaded: Result<Reloaded, ReloadError>) -> Self {
        let settings =
            proxy::Settings { routes: vec![Route::plain(None, "/")], ..proxy::Settings::default() };
        let origin = upstream::Origin { https: false, host: "127.0.0.1".to_owned(), port: 9 };
        let telemetry = Telemetry::new(false);
        let upstreams = vec![upstream::Settings::named("nowhere", vec![origin])];
        let site = Site::new(settings, upstreams, &telemetry).unwrap();
        let clock = Clock::simulated(1_000_000_000);
        let proxy = Proxy::new(site, &store::Settings::default(), Arc::clone(&telemetry), clock);
        let ready = Arc::<Readiness>::default();
        let admin = Admin {
            proxy,
            telemetry: Arc::clone(&telemetry),
            ready: Arc::clone(&ready),
            changes: Arc::new(ArcSwap::from_pointee(changes)),
            names,
            reload: Reload::new(move || std::future::ready(reloaded.clone())),
        };
        Self { router: router(admin), ready, telemetry }
    }

    async fn ask(&self, request: Request<Body>) -> Answer {
        let response: Response<Body> = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: head.status.as_u16(), headers: head.headers, text }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn reload(&self, fields: &[(&str, &str)]) -> Answer {
        let request = Request::post("/reload");
        let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.ask(request.body(Body::empty()).unwrap()).await
    }

    async fn purge(&self, body: impl Into<Body>) -> Answer {
        self.purge_with(&[("content-type", "application/json")], body).await
    }

    async fn purge_with(&self, fields: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let request = Request::post("/purge");
        let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.ask(request.body(body.into()).unwrap()).await
    }
}

fn local() -> Port {
    Port::on("127.0.0.1:9090", None)
}

const JSON: (&str, &str) = ("content-type", "application/json");

// ---- Reading -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn readiness_is_a_latch() {
    let port = local();
    let told = async |port: &Port| {
        let answer = port.get("/readyz").await;
        (answer.status, answer.json()["status"].as_str().unwrap().to_owned())
    };
    assert_eq!(told(&port).await, (503, "starting".to_owned()));
    port.ready.set_ready();
    assert!(port.ready.is_ready());
    assert_eq!(told(&port).await, (200, "ready".to_owned()));
    port.ready.set_draining();
    port.ready.set_ready();
    assert!(!port.ready.is_ready());
    assert_eq!(told(&port).await, (503, "draining".to_owned()));
    assert_eq!(port.get("/livez").await.status, 200);
}

#[tokio::test]
async fn metrics_are_in_the_text_format() {
    let answer = local().get("/metrics").await;
    assert_eq!(answer.field("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(answer.text.contains("forebay_build_info"), "{}", answer.text);
    assert_eq!(answer.field("cache-control"), "no-store");
}

#[tokio::test]
async fn what_is_not_there_is_told_so() {
    let port = local();
    port.get("/nothing").await.check_problem(404, "no such path");
    let answer = port.get("/purge").await;
    answer.check_problem(405, "Allow");
    assert_eq!(answer.field("allow"), "POST");
    let answer = port.ask(Request::delete("/metrics").body(Body::empty()).unwrap()).await;
    answer.check_problem(405, "Allow");
    assert_eq!(answer.field("allow"), "GET,HEAD");
}

#[tokio::test]
async fn the_index_lists_every_path() {
    let answer = local().get("/").await;
    assert_eq!(answer.status, 200);
    for endpoint in endpoints() {
        assert!(answer.text.contains(endpoint.path), "{}", answer.text);
    }
}

#[tokio::test]
async fn the_document_describes_every_path_and_no_other() {
    let answer = local().get("/openapi.json").await;
    assert_eq!(answer.field("content-type"), "application/json");
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    let described: BTreeSet<_> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let served: BTreeSet<_> =
        endpoints().iter().map(|endpoint| (endpoint.method.to_string(), endpoint.path.to_owned())).collect();
    assert_eq!(described, served);
}

/// Every value under the key `$ref`.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(reference) if name == "$ref" => found.push(reference),
                    member => references(member, found),
                }
            }
        }
        Value::Array(members) => members.iter().for_each(|member| references(member, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn the_document_refers_to_nothing_that_is_missing() {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 10, "{found:?}");
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
}

/// Checks that an answer has the members that the document requires, and no others.
#[track_caller]
fn check_described(schema: &str, answer: &Value) {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let properties = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
    let described: BTreeSet<_> = properties.keys().collect();
    assert_eq!(answer.as_object().unwrap().keys().collect::<BTreeSet<_>>(), described, "{answer}");
}

#[tokio::test]
async fn the_answers_are_as_the_document_describes_them() {
    let port = local();
    check_described("Purged", &port.purge(r#"{"everything": true}"#).await.json());
    check_described("Problem", &port.purge("{}").await.json());
    check_described("Readiness", &port.get("/readyz").await.json());
    check_described("Reloaded", &port.reload(&[]).await.json());
    let refused = refusing().reload(&[]).await.json();
    check_described("RefusedConfiguration", &refused);
    check_described("Mistake", &refused["mistakes"][0]);
    check_described("Explained", &port.get("/explain?url=http://h/a").await.json());
    check_described("Refused", &port.get("/explain?url=http://h/a&method=TRACE").await.json());
}

// ---- Purge -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_purge_tells_what_it_did() {
    let port = local();
    let mut lines = Vec::new();
    for (body, kind, entries) in [
        (json!({"url": "http://h/a"}), "url", json!(0)),
        (json!({"tag": "red"}), "tag", json!(null)),
        (json!({"prefix": "/a", "host": "H:80"}), "prefix", json!(null)),
        (json!({"prefix": "/a", "soft": true}), "prefix", json!(null)),
        (json!({"route": "default"}), "route", json!(null)),
        (json!({"everything": true, "soft": false}), "everything", json!(0)),
    ] {
        let answer = port.purge(body.to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let done = answer.json();
        assert_eq!((&done["kind"], &done["entries"]), (&json!(kind), &entries), "{done}");
        assert_eq!(done["soft"], json!(body["soft"] == json!(true)), "{done}");
        assert!(done["at"].as_str().unwrap().starts_with("2001-09-09T01:46:40."), "{done}");
        lines.push(done["line"].as_u64().unwrap());
    }
    assert!(lines.is_sorted() && lines[0] < lines[5], "{lines:?}");
    assert!(port.telemetry.render().contains("forebay_purges_total{kind=\"prefix\"} 2"));
}

#[tokio::test]
async fn a_purge_that_means_nothing_is_refused_and_says_why() {
    let port = local();
    for (body, status, part) in [
        ("", 400, "not a JSON object"),
        ("null", 400, "not a JSON object"),
        (r#"["http://h/a"]"#, 400, "not a JSON object"),
        (r#"{"tag": "#, 400, "EOF"),
        (r#"{"tag": "a"} {"#, 400, "trailing"),
        (r#"{"tags": "a"}"#, 422, "unknown field `tags`"),
        (r#"{"tag": "a", "tag": "b"}"#, 422, "duplicate field"),
        (r#"{"tag": 3}"#, 422, "tag: invalid type"),
        (r#"{"url": "http://h/a", "tag": null}"#, 422, "tag: invalid type"),
        (r#"{"everything": null}"#, 422, "everything: invalid type"),
        (r#"{"tag": "a", "soft": "yes"}"#, 422, "soft: invalid type"),
        (r#"{"tag": " "}"#, 422, "empty"),
        ("{}", 422, "give one of"),
        (r#"{"soft": true}"#, 422, "give one of"),
        (r#"{"url": "http://h/a", "tag": "a"}"#, 422, "only one of"),
        (r#"{"tag": "a", "everything": true}"#, 422, "only one of"),
        (r#"{"everything": false}"#, 422, "only be true"),
        (r#"{"host": "h"}"#, 422, "narrows a prefix"),
        (r#"{"url": "/a"}"#, 422, "cannot be read"),
        (r#"{"url": "ftp://h/a"}"#, 422, "cannot be read"),
        (r#"{"url": "http://user:word@h/a"}"#, 422, "cannot be read"),
        (r#"{"prefix": "a"}"#, 422, "slash"),
        (r#"{"route": "other"}"#, 422, "no route of this name"),
    ] {
        port.purge(body).await.check_problem(status, part);
    }
    let large = format!("{{\"tag\": \"{}\"}}", "x".repeat(BODY_BYTES_MAX));
    port.purge(large).await.check_problem(413, "limit of 65536 bytes");
    assert!(port.telemetry.render().contains("forebay_purges_total{kind=\"tag\"} 0"), "nothing was purged");
}

const EVERYTHING: &str = r#"{"everything": true}"#;

#[tokio::test]
async fn with_a_token_every_change_needs_it() {
    for listen in ["127.0.0.1:9090", "0.0.0.0:9090"] {
        let port = Port::on(listen, Some("hunter2"));
        let answer = port.purge(EVERYTHING).await;
        answer.check_problem(401, "Authorization: Bearer");
        assert!(answer.field("www-authenticate").starts_with("Bearer"));
        for wrong in ["Bearer hunter3", "Bearer hunter22", "Bearer ", "Basic hunter2", "hunter2", "Bearer"] {
            port.purge_with(&[JSON, ("authorization", wrong)], EVERYTHING).await.check_problem(401, "");
        }
        for right in ["Bearer hunter2", "bearer hunter2"] {
            assert_eq!(port.purge_with(&[JSON, ("authorization", right)], EVERYTHING).await.status, 200);
        }
        let both = [JSON, ("authorization", "Bearer hunter2"), ("authorization", "Bearer x")];
        port.purge_with(&both, EVERYTHING).await.check_problem(401, "");
        assert_eq!(port.get("/metrics").await.status, 200, "reading needs none");
    }
}

#[tokio::test]
async fn without_a_token_only_this_machine_may_change_something() {
    for listen in ["127.0.0.1:9090", "127.8.8.8:0", "[::1]:9090", "[::ffff:127.0.0.1]:9090"] {
        assert_eq!(Port::on(listen, None).purge(EVERYTHING).await.status, 200, "{listen}");
    }
    for listen in ["0.0.0.0:9090", "[::]:9090", "10.0.0.1:9090"] {
        let port = Port::on(listen, None);
        port.purge(EVERYTHING).await.check_problem(403, "admin.token_file");
        for path in ["/", "/metrics", "/livez", "/openapi.json", "/explain?url=http://h/a"] {
            assert_eq!(port.get(path).await.status, 200, "{listen}{path}");
        }
    }
}

#[test]
fn the_token_may_be_in_a_file_and_does_not_show() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "hunter2 \nnext line\n").unwrap();
    let settings = Settings { token_file: Some(file.clone()), ..Settings::default() };
    assert_eq!(settings.read_token().unwrap().as_deref(), Some("hunter2"));
    let changes = Changes::of(&settings).unwrap();
    std::fs::write(&file, "\nhunter2\n").unwrap();
    assert!(Changes::of(&settings).is_err(), "an empty first line is no token");
    std::fs::remove_file(&file).unwrap();
    assert!(Changes::of(&settings).is_err());
    let settings = Settings { token: Some("hunter2".to_owned()), ..Settings::default() };
    assert!(!format!("{changes:?} {settings:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_web_page_can_change_nothing() {
    let port = local();
    let form = ("content-type", "application/x-www-form-urlencoded");
    port.purge_with(&[form], EVERYTHING).await.check_problem(415, "application/json");
    port.purge_with(&[("content-type", "text/plain")], EVERYTHING)
        .await
        .check_problem(415, "application/json");
    port.purge_with(&[], EVERYTHING).await.check_problem(415, "application/json");
    port.purge_with(&[JSON, ("origin", "http://evil.example")], EVERYTHING)
        .await
        .check_problem(403, "Origin");
    port.purge_with(&[JSON, ("origin", "null")], EVERYTHING).await.check_problem(403, "Origin");
    let with_charset = ("content-type", "Application/JSON; charset=utf-8");
    assert_eq!(port.purge_with(&[with_charset], EVERYTHING).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up() {
    local().purge(Body::new(Endless)).await.check_problem(408, "too long");
    // Nobody waits for the body of who may not.
    let port = Port::on("127.0.0.1:9090", Some("hunter2"));
    port.purge(Body::new(Endless)).await.check_problem(401, "Authorization: Bearer");
}

/// A body of which nothing comes.
struct Endless;

impl http_body::Body for Endless {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        std::task::Poll::Pending
    }
}

// ---- Reload ------------------------------------------------------------------------------------------------

fn refusing() -> Port {
    let mistake = Mistake {
        place: Some("forebay.toml:3".to_owned()),
        key: "server.idle_timout".to_owned(),
        wrong: "unknown key".to_owned(),
    };
    let detail = "1 mistake in the configuration".to_owned();
    Port::reloading(Changes::Local, Names::Any, Err(ReloadError::Refused { detail, mistakes: vec![mistake] }))
}

#[tokio::test]
async fn a_reload_tells_what_came_of_it() {
    let answer = local().reload(&[]).await;
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({"restart_required": ["server.listen"], "warnings": ["w"]}))
    );
    let answer = refusing().reload(&[]).await;
    answer.check_problem(422, "1 mistake");
    let mistake = json!({"place": "forebay.toml:3", "key": "server.idle_timout", "wrong": "unknown key"});
    assert_eq!(answer.json()["mistakes"], json!([mistake]));
    let port = Port::reloading(Changes::Local, Names::Any, Err(ReloadError::NotReady));
    port.reload(&[]).await.check_problem(503, "stop");
    assert_eq!(local().get("/reload").await.status, 405);
}

#[tokio::test]
async fn a_reload_is_for_those_who_may_change_something() {
    let port = Port::on("127.0.0.1:9090", Some("hunter2"));
    port.reload(&[]).await.check_problem(401, "Authorization: Bearer");
    port.reload(&[("authorization", "Bearer hunter3")]).await.check_problem(401, "");
    assert_eq!(port.reload(&[("authorization", "Bearer hunter2")]).await.status, 200);
    Port::on("0.0.0.0:9090", None).reload(&[]).await.check_problem(403, "admin.token_file");
    local().reload(&[("origin", "http://evil.example")]).await.check_problem(403, "Origin");
}

// ---- Explain -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_request_is_explained_as_its_parameters_describe_it() {
    let port = local();
    let path = "/explain?url=http://H.example:80/a%3Fb%3D1&method=GET&header=Accept-Encoding:%20gzip";
    let explanation = port.get(path).await.json();
    assert_eq!(explanation["request"], "received", "{explanation}");
    assert_eq!(explanation["key"]["words"], "http://h.example/a?b=1", "{explanation}");
    assert_eq!(explanation["plan"]["action"], "fetch", "{explanation}");
    assert_eq!(explanation["plan"]["fetch"]["how"], "lead", "{explanation}");
    let upgrade = "&header=Connection:upgrade&header=Upgrade:websocket";
    let explanation = port.get(&format!("/explain?url=http://h/a{upgrade}")).await.json();
    assert_eq!(explanation["plan"]["action"], "pass", "{explanation}");
    let counted = port.telemetry.route(0).requests_total() + port.telemetry.upstream(0).requests_total();
    assert_eq!(counted, 0, "nothing is fetched or counted");
}

#[tokio::test]
async fn a_question_that_means_nothing_is_refused() {
    let port = local();
    for (query, part) in [
        ("", "parameter url"),
        ("?url=", "not a URL"),
        ("?url=/a", "http://"),
        ("?url=ftp://h/a", "http://"),
        ("?url=http://h/&url=http://h/", "twice"),
        ("?url=http://h/&body=a&body=b", "twice"),
        ("?url=http://h/&method=G%20T", "not a method"),
        ("?url=http://h/&header=x", "not a field"),
        ("?url=http://h/&header=x%0A:y", "not a field"),
        ("?url=http://h/&headers=x:y", "no parameter"),
    ] {
        port.get(&format!("/explain{query}")).await.check_problem(400, part);
    }
}

// ---- Connections -------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_command_line_reads_what_the_port_says_and_the_port_closes_when_told() {
    use crate::cli::{Exit, ExplainArguments, HealthArguments};
    let port = local();
    port.ready.set_ready();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(serve(listener, port.router.clone(), async { drop(stopped.await) }));
    let asked = tokio::task::spawn_blocking(move || {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let explain = |url: &str, out: &mut Vec<u8>, err: &mut Vec<u8>| {
            let arguments = ExplainArguments {
                url: url.to_owned(),
                method: "GET".to_owned(),
                header: vec!["Accept: */*".to_owned()],
                data: None,
                admin: Some(address),
                config: None,
            };
            crate::cli::explain(&arguments, &[], out, err).unwrap()
        };
        assert_eq!(explain("http://h/a?b&c", &mut out, &mut err), Exit::Success);
        assert_eq!(explain("nonsense", &mut out, &mut err), Exit::Usage);
        let health = HealthArguments { admin: Some(address), config: None, timeout: Duration::from_secs(5) };
        assert_eq!(crate::cli::health(&health, &[], &mut out, &mut err).unwrap(), Exit::Success);
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    });
    let (out, err) = asked.await.unwrap();
    for part in
        ["plan      fetch (uri-miss): nothing is stored", "http://h/a?b&c", "stored    nothing", "ready"]
    {
        assert!(out.contains(part), "{part:?} is not in:\n{out}");
    }
    assert!(err.contains("http://"), "{err}");
    drop(stop);
    serving.await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any longer");
}

// ---- Names ---------------------------------------------------------------------------------------------------

async fn called(port: &Port, path: &str, hosts: &[&str]) -> Answer {
    let request = hosts.iter().fold(Request::get(path), |request, host| request.header("host", *host));
    port.ask(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn on_a_loopback_address_a_name_that_anybody_may_have_bound_to_it_is_refused() {
    for listen in ["127.0.0.1:9090", "[::1]:9090", "127.1.2.3:9090", "[::ffff:127.0.0.1]:9090"] {
        let port = Port::on(listen, None);
        for host in [
            "127.0.0.1",
            "127.0.0.1:9090",
            "[::1]:9090",
            "10.1.2.3:80",
            "localhost",
            "LocalHost:9090",
            "localhost.:9090",
            "app.localhost:9090",
        ] {
            assert_eq!(called(&port, "/metrics", &[host]).await.status, 200, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9090",
            "localhost.evil.example",
            "evillocalhost",
            "127.0.0.1.evil.example",
            "",
            "user@localhost",
            "local host",
            "0x7f000001",
            "forebay",
        ] {
            for path in ["/metrics", "/explain?url=/", "/", "/nothing"] {
                called(&port, path, &[host]).await.check_problem(421, "Host");
            }
        }
        called(&port, "/", &["localhost", "evil.example"]).await.check_problem(421, "Host");
        called(&port, "http://evil.example/", &["localhost"]).await.check_problem(421, "Host");
        assert_eq!(called(&port, "/", &[]).await.status, 200);
    }
}

#[tokio::test]
async fn names_are_given_by_the_configuration_where_they_are_needed() {
    let named = |listen: &str, hosts: &[&str]| {
        let settings = Settings {
            listen: listen.parse::<SocketAddr>().unwrap(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            ..Settings::default()
        };
        Port::with(Changes::of(&settings).unwrap(), Names::of(&settings))
    };
    let anywhere = named("0.0.0.0:9090", &[]);
    assert_eq!(called(&anywhere, "/metrics", &["forebay.default.svc:9090"]).await.status, 200);
    for listen in ["0.0.0.0:9090", "127.0.0.1:9090"] {
        let port = named(listen, &["forebay.internal"]);
        assert_eq!(called(&port, "/metrics", &["Forebay.internal:9090"]).await.status, 200);
        assert_eq!(called(&port, "/metrics", &["10.0.0.1:9090"]).await.status, 200);
        called(&port, "/metrics", &["evil.example"]).await.check_problem(421, "Host");
    }
}
