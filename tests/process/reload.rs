//! The configuration loaded again: by SIGHUP, by `POST /reload`, and by a watch over its files.

use super::*;
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A running forebay and the files of its configuration.
struct Scene {
    forebay: Forebay,
    directory: tempfile::TempDir,
}

impl Scene {
    /// With this configuration, in which `@` stands for the directory of its files.
    fn new(text: &str) -> Self {
        Self::with(text, |_| {})
    }

    /// The same, with other files that are there from the start.
    fn with(text: &str, prepare: impl FnOnce(&Path)) -> Self {
        Self::started(text, &[], prepare)
    }

    fn started(text: &str, variables: &[(&str, &str)], prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path());
        let file = directory.path().join("forebay.toml");
        if !file.exists() {
            fs::write(&file, at(directory.path(), text)).unwrap();
        }
        let forebay = Forebay::start(&["--config", file.to_str().unwrap()], variables);
        Self { forebay, directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts another configuration in place of the file, as editors do.
    fn write(&self, text: &str) {
        fs::write(self.file("new"), at(self.directory.path(), text)).unwrap();
        fs::rename(self.file("new"), self.file("forebay.toml")).unwrap();
    }

    /// Asks for a reload on the admin port.
    fn post(&self, fields: &str) -> (u16, Value) {
        let mut admin = Client::connect(self.forebay.admin);
        admin.send(&format!("POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{fields}\r\n"));
        let answer = admin.answer();
        let status = answer.head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(&answer.body).unwrap())
    }

    /// Puts another configuration into effect.
    #[track_caller]
    fn reload(&self, text: &str) {
        self.write(text);
        assert_eq!(self.post(""), (200, json!({"restart_required": [], "warnings": []})));
    }

    fn metric(&self, series: &str) -> Option<f64> {
        let text = Client::connect(self.forebay.admin).get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|value| value.parse().unwrap())
    }

    /// Waits until a metric has this value.
    #[track_caller]
    fn until(&self, series: &str, expected: f64) {
        until(
            || self.metric(series).is_some_and(|found| (found - expected).abs() < 1e-9),
            || format!("{series} is {:?}, not {expected}", self.metric(series)),
        );
    }

    #[track_caller]
    fn check(&self, series: &str, expected: f64) {
        assert_eq!(self.metric(series), Some(expected), "{series}");
    }

    fn client(&self) -> Client {
        Client::connect(self.forebay.data)
    }

    fn get(&self, target: &str) -> Answer {
        self.client().get(target)
    }
}

fn at(directory: &Path, text: &str) -> String {
    text.replace('@', directory.to_str().unwrap())
}

const SUCCESS: &str = "forebay_config_reloads_total{result=\"success\"}";
const REFUSED: &str = "forebay_config_reloads_total{result=\"refused\"}";
const SUCCESSFUL: &str = "forebay_config_last_reload_successful";
const TIMESTAMP: &str = "forebay_config_last_reload_success_timestamp_seconds";

const QUIET: &str = "[log]\nfilter = \"warn\"\n";

/// An upstream of this name, with more keys.
fn upstream(name: &str, origin: &Origin, more: &str) -> String {
    format!("[[upstream]]\nname = \"{name}\"\nurl = \"http://{}\"\n{more}", origin.address)
}

fn route(path: &str, upstream: &str) -> String {
    format!("[[route]]\npath = \"{path}\"\nupstream = \"{upstream}\"\n")
}

/// An origin whose answers are this text, and may be stored.
fn saying(text: &'static str) -> Origin {
    Origin::start(move |exchange| exchange.answer(text))
}

/// An origin whose answers are not stored, and the ports from which it was asked for this path.
fn counting(path: &'static str) -> (Origin, Arc<Mutex<Vec<u16>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    let origin = Origin::start(move |exchange| {
        if exchange.head.split(' ').nth(1).unwrap().starts_with(path) {
            noted.lock().unwrap().push(exchange.stream.get_ref().peer_addr().unwrap().port());
        }
        let answer = "HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 2\r\n\r\nok";
        let _ = exchange.stream.get_mut().write_all(answer.as_bytes());
    });
    (origin, asked)
}

// ---- What takes effect -------------------------------------------------------------------------------------

#[test]
fn a_new_configuration_takes_over_and_the_store_stays() {
    let (a, b) = (saying("a"), saying("b"));
    let before = format!("{QUIET}{}{}", upstream("a", &a, ""), route("/", "a"));
    let scene = Scene::new(&before);
    assert_eq!(scene.get("/b/1").body, "a");
    assert_eq!(scene.get("/kept").body, "a");
    let started = scene.metric(TIMESTAMP).unwrap();
    assert!(started > 1.5e9, "{started}");

    let after = format!("{before}{}{}[proxy]\nx_cache = true\n", upstream("b", &b, ""), route("/b", "b"));
    scene.write(&after);
    scene.forebay.signal("HUP");
    scene.until(SUCCESS, 1.0);
    assert_eq!(scene.get("/b/1").body, "b");
    scene.check("forebay_requests_total{outcome=\"miss\",route=\"/b\"}", 1.0);
    scene.check("forebay_upstream_requests_total{reason=\"miss\",status_class=\"2xx\",upstream=\"b\"}", 1.0);
    let kept = scene.get("/kept");
    assert_eq!((kept.body.as_str(), kept.field("x-cache")), ("a", "HIT"), "{}", kept.head);
    scene.check("forebay_requests_total{outcome=\"hit\",route=\"default\"}", 1.0);
    scene.check(SUCCESSFUL, 1.0);
    assert!(scene.metric(TIMESTAMP).unwrap() >= started);

    scene.reload(&before);
    assert_eq!(scene.get("/b/1").body, "a", "what the route had stored before it changed");
    assert_eq!(scene.get("/kept").field("x-cache"), "");
    scene.check(SUCCESS, 2.0);
    scene.check(REFUSED, 0.0);
    assert_eq!(scene.forebay.stopped_by("TERM"), 0);
}

#[test]
fn no_request_is_dropped_while_configurations_come_and_go() {
    let (origin, _) = counting("/none");
    let stored = saying("stored");
    let text = |retries: usize| {
        let settings = format!("retries = {retries}\n");
        let upstreams = upstream("a", &origin, &settings) + &upstream("b", &stored, &settings);
        format!("{QUIET}{upstreams}{}{}", route("/", "a"), route("/stored", "b"))
    };
    let scene = Scene::new(&text(0));
    let is_over = AtomicBool::new(false);
    let answered = AtomicUsize::new(0);
    thread::scope(|threads| {
        let _over = Over(&is_over);
        for number in 0..6 {
            let (data, is_over, answered) = (scene.forebay.data, &is_over, &answered);
            threads.spawn(move || {
                let mut client = Client::connect(data);
                while !is_over.load(Ordering::Relaxed) {
                    if number % 2 == 0 {
                        assert_eq!(client.get("/alone").body, "ok");
                    } else {
                        assert_eq!(client.get("/stored/1").body, "stored");
                    }
                    // Half of them on one connection for ever, the others on many.
                    if number > 2 {
                        client = Client::connect(data);
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Each changes the settings of both upstreams, so that each replaces them.
        for reload in 1..=20 {
            let before = answered.load(Ordering::Relaxed);
            scene.write(&text(reload % 3));
            if reload % 2 == 0 {
                assert_eq!(scene.post("").0, 200);
            } else {
                scene.forebay.signal("HUP");
                scene.until(SUCCESS, f64::from(u32::try_from(reload).unwrap()));
            }
            until(|| answered.load(Ordering::Relaxed) >= before + 20, || "the clients are stuck".into());
        }
    });
    scene.check(SUCCESS, 20.0);
    scene.check("forebay_requests_total{outcome=\"error\",route=\"default\"}", 0.0);
    scene.check("forebay_requests_total{outcome=\"miss\",route=\"/stored\"}", 1.0);
    scene.until("forebay_upstream_requests_in_flight{upstream=\"a\"}", 0.0);
    assert_eq!(scene.forebay.stopped_by("TERM"), 0);
}

#[test]
fn a_request_in_flight_ends_with_the_configuration_it_began_with() {
    let (arrived, has_arrived) = channel();
    let (open, gate) = channel();
    let (slow, other) = (Origin::start_gated(arrived, gate), saying("other"));
    let scene = Scene::new(&format!("{QUIET}{}", upstream("a", &slow, "")));
    let mut busy = scene.client();
    busy.send("GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n");
    has_arrived.recv_timeout(DEADLINE).unwrap();
    scene.reload(&format!("{QUIET}{}", upstream("a", &other, "")));
    assert_eq!(scene.get("/fast").body, "other");
    open.send(()).unwrap();
    assert_eq!(busy.answer().body, "gated");
    assert_eq!(busy.get("/faster").body, "other", "the connection goes on, with the new configuration");
    assert_eq!(scene.forebay.stopped_by("TERM"), 0);
}

#[test]
fn limits_of_connections_hold_for_those_there_are() {
    let origin = saying("hello");
    let text = |more: &str| format!("{QUIET}[server]\n{more}\n{}", upstream("a", &origin, ""));
    let scene = Scene::new(&text(""));
    let mut first = scene.client();
    assert_eq!(first.get("/").body, "hello");
    scene.reload(&text("connections_max = 1"));
    assert!(scene.client().is_ended(), "there is one already");
    scene.reload(&text("connections_max = 2\nrequests_per_connection_max = 1"));
    assert_eq!(scene.get("/").field("connection"), "close");
    assert_eq!(first.get("/").field("connection"), "", "it began with other limits");
    assert_eq!(scene.forebay.stopped_by("TERM"), 0);
}

#[test]
fn the_log_follows_its_filter() {
    let origin = saying("hello");
    let text = |filter: &str, access| {
        format!("[log]\nfilter = \"{filter}\"\naccess = {access}\n{}", upstream("a", &origin, ""))
    };
    let scene = Scene::new(&text("warn", true));
    scene.get("/unseen-for-the-filter");
    scene.reload(&text("info", true));
    scene.get("/seen");
    scene.reload(&text("info", false));
    scene.get("/unseen-for-the-switch");
    scene.until("forebay_requests_total{outcome=\"miss\",route=\"default\"}", 3.0);
    let (code, log) = scene.forebay.stopped_with_log("TERM");
    assert_eq!(code, 0);
    assert!(log.contains("/seen") && !log.contains("/unseen"), "{log}");
}

#[test]
fn what_needs_a_restart_is_told_by_name() {
    let origin = saying("hello");
    let scene = Scene::new(&format!("{QUIET}{}", upstream("a", &origin, "")));
    let bytes = scene.metric("forebay_store_bytes_max");
    let text = format!(
        "{QUIET}[server]\nthreads = 7\n[store]\nbytes_max = \"7MiB\"\n[proxy]\nx_cache = true\n{}",
        upstream("a", &origin, "")
    );
    scene.write(&text);
    for _ in 0..2 {
        let waiting = json!({"restart_required": ["server.threads", "store.bytes_max"], "warnings": []});
        assert_eq!(scene.post(""), (200, waiting), "as long as it has not been started again");
    }
    assert_eq!(scene.get("/").field("x-cache"), "MISS", "the rest takes effect");
    assert_eq!(scene.metric("forebay_store_bytes_max"), bytes);
    scene.check(SUCCESSFUL, 1.0);
    let (_, log) = scene.forebay.stopped_with_log("TERM");
    assert!(log.contains("server.threads, store.bytes_max"), "{log}");
}

// ---- What is refused ---------------------------------------------------------------------------------------

#[test]
fn a_wrong_configuration_is_refused_with_all_that_is_wrong() {
    let (origin, other) = (saying("hello"), saying("other"));
    let right = format!("{QUIET}{}", upstream("a", &origin, ""));
    let scene = Scene::new(&right);
    let started = scene.metric(TIMESTAMP);
    scene
        .write(&format!("[server]\nidle_timout = \"5s\"\nthreads = \"many\"\n{}", upstream("a", &other, "")));
    let (status, problem) = scene.post("");
    assert_eq!(status, 422, "{problem}");
    let file = scene.file("forebay.toml").display().to_string();
    let mistakes: Vec<_> = problem["mistakes"].as_array().unwrap().iter().collect();
    let of = |key: &str| mistakes.iter().find(|mistake| mistake["key"] == key).unwrap();
    assert_eq!(of("server.idle_timout")["place"], format!("{file}:2"));
    assert!(of("server.idle_timout")["wrong"].as_str().unwrap().contains("did you mean \"idle_timeout\""));
    assert_eq!(of("server.threads")["place"], format!("{file}:3"));
    assert!(of("server.threads")["wrong"].as_str().unwrap().contains("expected a whole number"));
    assert!(problem["detail"].as_str().unwrap().contains(&format!("{file}:2: server.idle_timout")));
    scene.check(SUCCESSFUL, 0.0);
    scene.check(REFUSED, 1.0);
    assert_eq!(scene.metric(TIMESTAMP), started);

    // An empty file is right in itself, and would mean the demonstration.
    for (text, part) in [("[server", "forebay.toml:1:"), ("", "no upstream")] {
        scene.write(text);
        let (status, problem) = scene.post("");
        assert_eq!(status, 422, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(part), "{problem}");
    }
    scene.forebay.signal("HUP");
    scene.until(REFUSED, 4.0);
    assert_eq!(scene.get("/").body, "hello", "the old one runs on");
    scene.reload(&right);
    scene.check(SUCCESSFUL, 1.0);
    let (_, log) = scene.forebay.stopped_with_log("TERM");
    assert!(log.contains("server.idle_timout") && log.contains("expected a whole number"), "{log}");
    assert!(log.contains("cause=\"signal\"") && log.contains("cause=\"request\""), "{log}");
}

#[test]
fn a_hangup_does_not_disturb_the_drain() {
    let (arrived, has_arrived) = channel();
    let (open, gate) = channel();
    let origin = Origin::start_gated(arrived, gate);
    let scene = Scene::new(&format!("{QUIET}{}", upstream("a", &origin, "")));
    let mut busy = scene.client();
    busy.send("GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n");
    has_arrived.recv_timeout(DEADLINE).unwrap();
    scene.forebay.signal("TERM");
    scene.forebay.until_refused();
    scene.forebay.signal("HUP");
    assert_eq!(scene.post("").0, 503);
    open.send(()).unwrap();
    assert_eq!(busy.answer().body, "gated");
    assert_eq!(scene.forebay.exit_code(), 0);
}

// ---- Upstreams ---------------------------------------------------------------------------------------------

#[test]
fn an_upstream_that_stays_as_it_is_keeps_its_connections() {
    let (origin, asked) = counting("/");
    let other = saying("other");
    let text = |settings: &str, more: &str| {
        format!("{QUIET}{more}{}{}", upstream("a", &origin, settings), route("/", "a"))
    };
    let scene = Scene::new(&text("", ""));
    scene.get("/1");
    // Another configuration, in which it has another place.
    scene.reload(&text("", &upstream("b", &other, "")));
    scene.get("/2");
    scene.reload(&text("retries = 3\n", ""));
    scene.get("/3");
    let asked = asked.lock().unwrap().clone();
    assert!(asked[0] == asked[1] && asked[1] != asked[2], "{asked:?}");
    assert_eq!(scene.forebay.stopped_by("TERM"), 0);
}

#[test]
fn an_upstream_that_stays_as_it_is_keeps_what_it_knows_of_its_origins() {
    let origin = saying("hello");
    // Bound, and nobody listens.
    let nobody = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    nobody.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let dead = nobody.local_addr().unwrap().as_socket().unwrap();
    let text = |settings: &str, more: &str| {
        format!(
            "{QUIET}{more}[[upstream]]\nname = \"a\"\nurl = [\"http://{}\", \"http://{dead}\"]\neject_after = 1\n\
             ejection_time = \"1h\"\nejection_time_max = \"1h\"\nretry_budget = \"off\"\n{settings}",
            origin.address
        )
    };
    let scene = Scene::new(&text("", ""));
    let labels = format!("{{origin=\"{dead}\",upstream=\"a\"}}");
    let (up, ejections) =
        (format!("forebay_upstream_origin_up{labels}"), format!("forebay_upstream_ejections_total{labels}"));
    for number in 0..4 {
        assert_eq!(scene.get(&format!("/{number}")).body, "hello");
    }
    scene.check(&up, 0.0);
    scene.check(&ejections, 1.0);
    scene.reload(&text("", "[proxy]\nx_cache = true\n"));
    scene.check(&up, 0.0);
    scene.check(&ejections, 1.0);
    scene.reload(&text("retries = 2\n", ""));
    scene.check(&up, 1.0);
    scene.check(&ejections, 1.0);
    scene.reload(&format!("{QUIET}{}", upstream("b", &origin, "")));
    assert_eq!(scene.metric(&up), None, "it is no origin any more");
    assert_eq!(scene.forebay.stopped_by("TERM"), 0);
}

#[test]
fn the_checks_of_an_upstream_end_with_it() {
    let ((stays, checked), (goes, checked_before)) = (counting("/healthz"), counting("/healthz"));
    let check = "[upstream.check]\npath = \"/healthz\"\ninterval = \"5ms\"\n";
    let (stays, goes) = (upstream("stays", &stays, check), upstream("goes", &goes, check));
    let (arrived, has_arrived) = channel();
    let (open, gate) = channel();
    let slow = upstream("slow", &Origin::start_gated(arrived, gate), "");
    let scene = Scene::new(&format!("{QUIET}{stays}{goes}{slow}{}", route("/", "slow")));
    // It holds the configuration that it began with, and the upstream in it.
    let mut busy = scene.client();
    busy.send("GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n");
    has_arrived.recv_timeout(DEADLINE).unwrap();
    let count = |asked: &Arc<Mutex<Vec<u16>>>| asked.lock().unwrap().len();
    let until_asked = |asked: &Arc<Mutex<Vec<u16>>>, expected: usize| {
        until(|| count(asked) >= expected, || "it is not checked".into());
    };
    until_asked(&checked_before, 3);
    scene.reload(&format!("{QUIET}{stays}{}", route("/", "stays")));
    // What was on its way when it ended arrives before the next ones of the other.
    until_asked(&checked, count(&checked) + 5);
    let left = count(&checked_before);
    until_asked(&checked, count(&checked) + 30);
    // One may have been on its way still.
    assert!(count(&checked_before) <= left + 1, "it is checked, although it is gone");
    scene.reload(&format!("{QUIET}{stays}{goes}{}", route("/", "stays")));
    until_asked(&checked_before, left + 4);
    open.send(()).unwrap();
    assert_eq!(busy.answer().body, "gated");
    assert_eq!(scene.forebay.stopped_by("TERM"), 0);
}

#[test]
fn idle_connections_to_an_upstream_that_goes_are_closed() {
    let (arrived, has_arrived) = channel();
    let (open, gate) = channel();
    let slow = Origin::start_gated(arrived, gate);
    let (closed, is_closed) = channel();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let goes = Origin { address: listener.local_addr().unwrap() };
    thread::spawn(move || {
        let mut stream = BufReader::new(listener.accept().unwrap().0);
        let head = read_head(&mut stream).unwrap();
        Exchange { stream: &mut stream, head }.answer("idle");
        closed.send(read_head(&mut stream)).unwrap();
    });
    let stays = format!("{QUIET}{}{}", upstream("a", &slow, ""), route("/", "a"));
    let scene = Scene::new(&format!("{stays}{}{}", upstream("b", &goes, ""), route("/b", "b")));
    assert_eq!(scene.get("/b").body, "idle");
    // It holds the configuration that it began with.
    let mut busy = scene.client();
    busy.send("GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n");
    has_arrived.recv_timeout(DEADLINE).unwrap();
    scene.reload(&stays);
    assert_eq!(is_closed.recv_timeout(DEADLINE), Ok(None));
    open.send(()).unwrap();
    assert_eq!(busy.answer().body, "gated");
    assert_eq!(scene.forebay.stopped_by("TERM"), 0);
}

#[test]
fn the_roots_that_an_upstream_is_trusted_by_are_read_again() {
    let (ours, another) = (certificate(), certificate());
    let address = tls_origin(&ours);
    let text = format!(
        "{QUIET}[[upstream]]\nurl = \"https://localhost:{}\"\n[upstream.tls]\nroots_file = \"@/roots.pem\"\n",
        address.port()
    );
    let scene = Scene::with(&text, |directory| {
        fs::write(directory.join("roots.pem"), another.cert.pem()).unwrap();
    });
    assert!(scene.get("/1").head.starts_with("HTTP/1.1 502"));
    fs::write(scene.file("roots.pem"), ours.cert.pem()).unwrap();
    assert_eq!(scene.post("").0, 200);
    assert_eq!(scene.get("/2").body, "secret");
    fs::write(scene.file("roots.pem"), "nonsense").unwrap();
    let (status, problem) = scene.post("");
    assert_eq!(
        (status, &problem["mistakes"][0]["key"]),
        (422, &json!("upstream[0].tls.roots_file")),
        "{problem}"
    );
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("forebay.toml:6: upstream[0]") && detail.contains("roots.pem"), "{problem}");
    assert_eq!(scene.get("/3").body, "secret");
    assert_eq!(scene.forebay.stopped_by("TERM"), 0);
}

// ---- Secrets of our own ------------------------------------------------------------------------------------

#[test]
fn certificates_of_the_data_port_are_read_again() {
    let (first, second, third) = (certificate(), certificate(), certificate());
    let origin = saying("hello");
    let text = format!("{QUIET}{SERVER_TLS}{}", upstream("a", &origin, ""));
    let scene = Scene::with(&text, |directory| write_pair(directory, &first, &first));
    let connect = || Secure::connect(scene.forebay.data, &[&first, &second, &third]);
    let mut old = connect();
    assert_eq!(old.certificate(), *first.cert.der());
    assert_eq!(old.get("/"), "hello");

    write_pair(scene.directory.path(), &second, &second);
    scene.forebay.signal("HUP");
    scene.until(SUCCESS, 1.0);
    let mut new = connect();
    assert_eq!(new.certificate(), *second.cert.der());
    assert_eq!((new.get("/").as_str(), old.get("/").as_str()), ("hello", "hello"));

    // A certificate without its key, or what is none: nothing of that configuration takes effect.
    scene.write(&format!("{text}[proxy]\nx_cache = true\n"));
    write_pair(scene.directory.path(), &third, &second);
    for spoil in [None, Some(("tls.crt", "")), Some(("tls.crt", "no PEM\n")), Some(("tls.key", "no PEM\n"))] {
        if let Some((name, text)) = spoil {
            write_pair(scene.directory.path(), &third, &third);
            fs::write(scene.file(name), text).unwrap();
        }
        let (status, problem) = scene.post("");
        let mistake = &problem["mistakes"][0];
        let of = |name: &str| mistake[name].as_str().unwrap_or_default().to_owned();
        assert!(status == 422 && of("key").starts_with("server.tls."), "{problem}");
        assert!(of("place").contains("forebay.toml:"), "{problem}");
        scene.check(SUCCESSFUL, 0.0);
        let mut new = connect();
        assert_eq!(new.certificate(), *second.cert.der());
        assert!(!new.ask("/").to_lowercase().contains("x-cache"));
    }
    write_pair(scene.directory.path(), &third, &third);
    assert_eq!(scene.post("").0, 200);
    assert_eq!(connect().certificate(), *third.cert.der());
    assert_eq!(scene.forebay.stopped_by("TERM"), 0);
}

#[test]
fn the_admin_token_is_read_again() {
    let origin = saying("hello");
    let text = format!("{QUIET}[admin]\ntoken_file = \"@/token\"\n{}", upstream("a", &origin, ""));
    let scene = Scene::with(&text, |directory| fs::write(directory.join("token"), "one\n").unwrap());
    let with = |token: &str| scene.post(&format!("Authorization: Bearer {token}\r\n")).0;
    assert_eq!((scene.post("").0, with("two")), (401, 401));
    fs::write(scene.file("token"), "two\n").unwrap();
    assert_eq!(with("one"), 200);
    assert_eq!((with("one"), with("two")), (401, 200));
    fs::write(scene.file("token"), "\n").unwrap();
    assert_eq!((with("two"), with("two")), (422, 422), "the old token still stands");
    assert_eq!(scene.forebay.stopped_by("TERM"), 0);
}

// ---- The watch ---------------------------------------------------------------------------------------------

#[test]
fn the_watch_sees_files_rewritten_renamed_and_swapped_by_links() {
    let origin = saying("hello");
    let text = |version: &str| {
        let reload = "[reload]\nwatch = \"20ms\"\n";
        format!("{QUIET}{reload}[proxy]\npseudonym = \"{version}\"\n{}", upstream("a", &origin, ""))
    };
    // As Kubernetes mounts a ConfigMap.
    let publish = |directory: &Path, version: &str| {
        let data = format!("..{version}");
        fs::create_dir(directory.join(&data)).unwrap();
        fs::write(directory.join(&data).join("forebay.toml"), text(version)).unwrap();
        symlink(&data, directory.join("..data_tmp")).unwrap();
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    };
    let scene = Scene::with("", |directory| {
        publish(directory, "v1");
        symlink("..data/forebay.toml", directory.join("forebay.toml")).unwrap();
    });
    let pseudonym = || scene.get("/").field("cache-status").split(';').next().unwrap().to_owned();
    assert_eq!(pseudonym(), "v1");
    publish(scene.directory.path(), "v2");
    scene.until(SUCCESS, 1.0);
    assert_eq!(pseudonym(), "v2");
    scene.write(&text("v3"));
    scene.until(SUCCESS, 2.0);
    assert_eq!(pseudonym(), "v3");
    fs::write(scene.file("forebay.toml"), text("v4")).unwrap();
    scene.until(SUCCESS, 3.0);
    assert_eq!(pseudonym(), "v4");
    // Where the machine is very busy, the file has been seen empty, while it was being rewritten.
    let refused = scene.metric(REFUSED).unwrap() + 1.0;
    scene.write("[proxy]\npseudonym = 5\n");
    scene.until(REFUSED, refused);
    assert_eq!(pseudonym(), "v4");
    scene.write(&text("v6"));
    scene.until(SUCCESS, 4.0);
    assert_eq!(pseudonym(), "v6");
    scene.check(REFUSED, refused);
    assert_eq!(scene.forebay.stopped_by("TERM"), 0);
}

#[test]
fn the_watch_sees_certificates_renewed_and_files_that_come_late() {
    let (first, second) = (certificate(), certificate());
    let origin = saying("hello");
    let reload = "[reload]\nwatch = \"20ms\"\n";
    let text = format!("{QUIET}{reload}{SERVER_TLS}{}", upstream("a", &origin, ""));
    let scene = Scene::with(&text, |directory| write_pair(directory, &first, &first));
    write_pair(scene.directory.path(), &second, &second);
    scene.until(SUCCESS, 1.0);
    let shown = Secure::connect(scene.forebay.data, &[&first, &second]).certificate();
    assert_eq!(shown, *second.cert.der());
    // A configuration may come before the file that it names.
    let refused = scene.metric(REFUSED).unwrap() + 1.0;
    scene.write(&format!("{text}[admin]\ntoken_file = \"@/token\"\n"));
    scene.until(REFUSED, refused);
    fs::write(scene.file("token"), "hunter2\n").unwrap();
    scene.until(SUCCESS, 2.0);
    assert_eq!(scene.post("").0, 401);
    assert_eq!(scene.forebay.stopped_by("TERM"), 0);
}

// ---- The service manager -----------------------------------------------------------------------------------

#[test]
fn the_service_manager_is_told_of_a_reload() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let told = || {
        let mut text = [0; 256];
        let length = manager.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    let origin = saying("hello");
    let text = format!("{QUIET}{}", upstream("a", &origin, ""));
    let scene = Scene::started(&text, &[("NOTIFY_SOCKET", path.to_str().unwrap())], |_| {});
    assert_eq!(told(), "READY=1");
    let mut last = 0;
    for (text, status) in
        [(text.as_str(), ""), ("[nonsense]\n", "The last configuration was refused; see the log.")]
    {
        scene.write(text);
        scene.forebay.signal("HUP");
        let begun = told();
        let time = begun.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&begun).parse::<u64>().unwrap();
        assert!(time > last, "{begun}");
        last = time;
        assert_eq!(told(), format!("READY=1\nSTATUS={status}"));
    }
    assert_eq!(scene.forebay.stopped_by("TERM"), 0);
    assert_eq!(told(), "STOPPING=1");
}

// ---- TLS ---------------------------------------------------------------------------------------------------

const SERVER_TLS: &str = "[server.tls]\ncertificate_file = \"@/tls.crt\"\nkey_file = \"@/tls.key\"\n";

fn certificate() -> CertifiedKey<KeyPair> {
    generate_simple_self_signed(["localhost".to_owned()]).unwrap()
}

fn write_pair(directory: &Path, chain: &CertifiedKey<KeyPair>, key: &CertifiedKey<KeyPair>) {
    fs::write(directory.join("tls.crt"), chain.cert.pem()).unwrap();
    fs::write(directory.join("tls.key"), key.signing_key.serialize_pem()).unwrap();
}

/// A client that speaks TLS and trusts these certificates.
struct Secure(StreamOwned<ClientConnection, TcpStream>);

impl Secure {
    fn connect(address: SocketAddr, trusted: &[&CertifiedKey<KeyPair>]) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut roots = RootCertStore::empty();
        for trusted in trusted {
            roots.add(trusted.cert.der().clone()).unwrap();
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        connection.complete_io(&mut stream).unwrap();
        Self(StreamOwned::new(connection, stream))
    }

    fn certificate(&self) -> CertificateDer<'static> {
        self.0.conn.peer_certificates().unwrap()[0].clone().into_owned()
    }

    /// The head of the answer; its body has been read.
    fn ask(&mut self, target: &str) -> String {
        self.0.write_all(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            head.push(char::from(byte[0]));
        }
        head
    }

    fn get(&mut self, target: &str) -> String {
        let head = self.ask(target);
        let mut body = vec![0; field(&head, "content-length").parse().unwrap()];
        self.0.read_exact(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    }
}

/// An origin that shows this certificate, and answers everything with a secret.
fn tls_origin(shown: &CertifiedKey<KeyPair>) -> SocketAddr {
    let key = PrivateKeyDer::try_from(shown.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![shown.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            thread::spawn(move || {
                let mut stream = BufReader::new(StreamOwned::new(connection, stream));
                let mut line = String::new();
                // Where the client does not trust us, there is nothing to read.
                while stream.read_line(&mut line).is_ok_and(|length| length > 0) {
                    if line == "\r\n" {
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret";
                        let _ = stream.get_mut().write_all(answer);
                    }
                    line.clear();
                }
            });
        }
    });
    address
}
