//! The built program as a process of its own: what it prints, how it ends, and what it needs.
//!
//! Each wait has a deadline, and none is a pause: a test waits for a line, a byte, the end of a connection, or the
//! end of the process.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests may fail as tests do")]
#![allow(unreachable_pub, reason = "what the modules of a test share is seen nowhere else")]
#![allow(clippy::float_cmp, reason = "metrics are whole numbers")]
#![allow(missing_docs, reason = "the names of tests are sentences")]

#[path = "process/drain.rs"]
mod drain;
#[path = "process/reload.rs"]
mod reload;
#[path = "process/sockets.rs"]
mod sockets;
#[path = "process/support.rs"]
mod support;
#[path = "process/tls.rs"]
mod tls;
#[path = "process/told.rs"]
mod told;
#[path = "process/warned.rs"]
mod warned;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;
use support::*;

/// Bytes of the upload that must pass in constant memory.
const UPLOAD_BYTES: u64 = 1 << 30;

/// What the process may need at most while it passes.
const UPLOAD_MEMORY_BYTES_MAX: u64 = 128 << 20;

#[test]
fn it_says_where_it_listens_and_answers_there() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let forebay = Forebay::before(&origin, "");
    let mut client = Client::connect(forebay.data);
    let first = client.get("/");
    assert!(first.head.starts_with("HTTP/1.1 200"), "{}", first.head);
    assert_eq!(first.body, "hello");
    let status = first.field("cache-status");
    assert!(status.contains("fwd=uri-miss") && status.contains("stored"), "{}", first.head);
    assert!(client.get("/").field("cache-status").contains("hit"));
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

#[test]
fn the_demo_upstream_stands_in_where_none_is_configured() {
    let mut forebay = Forebay::start(&["--log-level", "error"], &[]);
    assert!(forebay.line_with("embedded demo upstream").contains("http://127.0.0.1:"));
    assert!(Client::connect(forebay.data).get("/page/1").head.starts_with("HTTP/1.1 200"));
    assert_eq!(forebay.stopped_by("INT"), 0);
}

#[test]
fn a_signal_lets_the_request_in_flight_finish() {
    let (arrived, has_arrived) = channel();
    let (open, gate) = channel();
    let origin = Origin::start_gated(arrived, gate);
    let forebay = Forebay::before(&origin, "");

    let mut idle = Client::connect(forebay.data);
    idle.send("GET /first HTTP/1.1\r\nHost: localhost\r\n\r\n");
    has_arrived.recv_timeout(DEADLINE).unwrap();
    open.send(()).unwrap();
    assert_eq!(idle.answer().body, "gated");

    let mut busy = Client::connect(forebay.data);
    busy.send("GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n");
    has_arrived.recv_timeout(DEADLINE).unwrap();

    forebay.signal("TERM");
    assert!(idle.is_ended(), "an idle connection is closed");
    forebay.until_refused();
    assert!(forebay.is_running());

    open.send(()).unwrap();
    let answer = busy.answer();
    assert_eq!(answer.body, "gated");
    assert_eq!(answer.field("connection"), "close");
    assert!(busy.is_ended());
    assert_eq!(forebay.exit_code(), 0);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (arrived, has_arrived) = channel();
    let (open, gate) = channel();
    let origin = Origin::start_gated(arrived, gate);
    let forebay = Forebay::before(&origin, "[server]\ndrain_timeout = \"1h\"\n");
    let mut busy = Client::connect(forebay.data);
    busy.send("GET /never HTTP/1.1\r\nHost: localhost\r\n\r\n");
    has_arrived.recv_timeout(DEADLINE).unwrap();
    forebay.signal("TERM");
    forebay.until_refused();
    assert!(forebay.is_running());
    assert_eq!(forebay.stopped_by("TERM"), 1, "it did not get to the end of what it was doing");
    assert!(busy.is_ended());
    drop(open);
}

#[test]
fn what_drains_for_too_long_is_cut_off() {
    let (arrived, has_arrived) = channel();
    let (open, gate) = channel();
    let origin = Origin::start_gated(arrived, gate);
    let forebay = Forebay::before(&origin, "[server]\ndrain_timeout = \"50ms\"\n");
    let mut busy = Client::connect(forebay.data);
    busy.send("GET /never HTTP/1.1\r\nHost: localhost\r\n\r\n");
    has_arrived.recv_timeout(DEADLINE).unwrap();
    assert_eq!(forebay.stopped_by("TERM"), 0);
    assert!(busy.is_ended());
    drop(open);
}

#[test]
fn each_transition_of_a_circuit_breaker_is_a_line_in_the_log() {
    let is_well = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&is_well);
    let origin =
        Origin::start(
            move |exchange| {
                if asked.load(Ordering::SeqCst) { exchange.answer("well") } else { exchange.fail() }
            },
        );
    let url = format!("http://{}", origin.address);
    let forebay = Forebay::start(
        &[],
        &[
            ("FOREBAY__UPSTREAM__0__NAME", "app"),
            ("FOREBAY__UPSTREAM__0__URL", &url),
            ("FOREBAY__UPSTREAM__0__BREAKER__ENABLED", "true"),
            ("FOREBAY__UPSTREAM__0__BREAKER__REQUESTS_MIN", "3"),
            ("FOREBAY__UPSTREAM__0__BREAKER__OPEN_TIME", "3s"),
            ("FOREBAY__UPSTREAM__0__BREAKER__PROBES", "1"),
            ("FOREBAY__COALESCING__ERROR_BACKOFF", "0s"),
        ],
    );
    let mut client = Client::connect(forebay.data);
    for _ in 0..3 {
        assert!(client.get("/").head.starts_with("HTTP/1.1 500"));
    }
    let refused = client.get("/");
    assert!(refused.head.starts_with("HTTP/1.1 503"), "{}", refused.head);
    assert_eq!(refused.field("proxy-status"), "forebay; error=destination_unavailable");
    assert!(["1", "2", "3"].contains(&refused.field("retry-after")), "{}", refused.head);
    is_well.store(true, Ordering::SeqCst);
    while client.get("/").body != "well" {
        // Each has a line in the log, of which only so many may wait.
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let (code, told) = forebay.stopped_with_log("TERM");
    assert_eq!(code, 0, "{told}");
    for (level, part) in [
        ("WARN", "the circuit breaker has opened"),
        ("INFO", "the circuit breaker lets probes through"),
        ("INFO", "the circuit breaker has closed"),
    ] {
        let is_line =
            |line: &&str| line.contains(level) && line.contains(part) && line.contains("upstream=\"app\"");
        assert_eq!(told.lines().filter(is_line).count(), 1, "{part}: {told}");
    }
}

#[test]
fn an_upstream_whose_certificate_is_not_verified_is_warned_about() {
    // Its port is taken, so that it ends by itself.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (insecure, is_warned) in [("true", true), ("false", false)] {
        let variables = [
            ("FOREBAY__UPSTREAM__0__NAME", "app"),
            ("FOREBAY__UPSTREAM__0__URL", "https://127.0.0.1:1"),
            ("FOREBAY__UPSTREAM__0__TLS__INSECURE", insecure),
        ];
        let output = run(&["serve", "--listen", &address, "--admin-listen", "127.0.0.1:0"], &variables);
        assert_eq!(output.status.code(), Some(69), "{output:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        let is_told = told
            .lines()
            .any(|line| line.contains("WARN") && line.contains("app") && line.contains("NOT verified"));
        assert_eq!(is_told, is_warned, "{told}");
    }
}

#[test]
fn a_wrong_configuration_is_told_by_file_line_and_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wrong.toml");
    fs::write(&file, "[server]\nlisten = \"127.0.0.1:0\"\nidle_timout = \"5s\"\n").unwrap();
    for command in ["serve", "check"] {
        let output = run(&[command, "--config", file.to_str().unwrap()], &[]);
        assert_eq!(output.status.code(), Some(64));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(&format!("{}:3", file.display())), "{told}");
        assert!(told.contains("server.idle_timout") && told.contains("idle_timeout"), "{told}");
    }
}

#[test]
fn health_and_explain_ask_whatever_else_is_wrong_in_the_configuration() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let forebay = Forebay::before(&origin, "");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("forebay.toml");
    let spoilt = |listen: &str| {
        fs::write(&file, format!("[server]\nidle_timout = 1\n[admin]\nlisten = {listen:?}\n")).unwrap();
        let file = file.to_str().unwrap();
        let codes = [&["health"][..], &["explain", "http://a.example/"]]
            .map(|command| run(&[command, &["--config", file]].concat(), &[]).status.code());
        assert_eq!(run(&["check", "--config", file], &[]).status.code(), Some(64));
        codes
    };
    assert_eq!(spoilt(&forebay.admin.to_string()), [Some(0), Some(0)]);
    assert_eq!(spoilt("here"), [Some(64), Some(64)]);
}

#[test]
fn what_is_no_request_has_its_line_in_the_access_log() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let (directory, file) = configured(&origin, "");
    let forebay = Forebay::start(&["--config", &file, "--log-level", "info"], &[]);
    let mut client = Client::connect(forebay.data);
    client.send("nonsense\r\n\r\n");
    let answer = client.answer();
    assert!(answer.head.starts_with("HTTP/1.1 400 ") && !answer.field("date").is_empty(), "{}", answer.head);
    assert!(client.is_ended());
    let (_, log) = forebay.stopped_with_log("TERM");
    let lines: Vec<_> = log.lines().filter(|line| line.contains("forebay::access")).collect();
    let [line] = lines.as_slice() else { panic!("{log}") };
    for part in
        ["status=400", "outcome=\"rejected\"", "route=\"none\"", "detail=\"malformed\"", "client=127.0.0.1:"]
    {
        assert!(line.contains(part), "{line}");
    }
    drop(directory);
}

#[test]
fn explain_tells_wrong_questions_from_missing_answers_by_its_exit_code() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let forebay = Forebay::before(&origin, "");
    let (here, nowhere) = (forebay.admin.to_string(), forebay.data.to_string());
    for (arguments, code, told) in [
        (&["http://a.example/", "--admin", &here][..], 0, ""),
        (&["a.example", "--admin", &here], 64, "no URL with http:// or https://"),
        (&["http://a.example/", "-X", "A B", "--admin", &here], 64, "is not a method"),
        (&["http://a.example/", "-H", "nothing", "--admin", &here], 64, "expected Name: value"),
        (&["http://a.example/", "-H", "nothing", "--admin", "127.0.0.1:1"], 64, "expected Name: value"),
        (&["http://a.example/", "--admin", "127.0.0.1:1"], 69, "127.0.0.1:1"),
        (&["http://a.example/", "--admin", &nowhere], 69, "no explanation"),
    ] {
        let output = run(&[&["explain"], arguments].concat(), &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(told), "{arguments:?}: {said}");
    }
}

#[test]
fn with_a_log_of_json_there_is_nothing_else() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let flags = ["--log-format", "json", "--admin-listen", "127.0.0.1:0", "--listen"];
    let lines = |output: std::process::Output| {
        assert!(output.stdout.is_empty(), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
            .collect::<Vec<serde_json::Value>>()
    };
    let output = run(&[&flags[..], &[&address]].concat(), &[]);
    assert_eq!(output.status.code(), Some(69));
    let last = lines(output).pop().unwrap();
    assert!(last["level"] == "ERROR" && last["message"].as_str().unwrap().contains(&address), "{last}");

    let mut child = spawn(&[&flags[..], &["127.0.0.1:0"]].concat(), &[]);
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains("serving") {
        assert!(errors.read_line(&mut text).unwrap() > 0, "{text}");
    }
    kill(child.id(), "TERM");
    errors.read_to_string(&mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = lines(std::process::Output { stderr: text.into_bytes(), ..output });
    let greeting = said.iter().find(|line| line["message"] == "serving").unwrap();
    for field in ["listen", "admin", "demo_upstream", "version"] {
        assert!(greeting[field].as_str().unwrap().contains('.'), "{greeting}");
    }
}

#[test]
fn a_variable_with_a_slip_in_its_name_is_warned_about() {
    let slip = [("FOREBAY_SERVER_LISTEN", "127.0.0.1:1"), ("FOREBAY_SERVICE_HOST", "10.0.0.1")];
    let told = "FOREBAY_SERVER_LISTEN is not read; did you mean FOREBAY__SERVER__LISTEN?";
    let checked = run(&["check"], &slip);
    assert_eq!(checked.status.code(), Some(0));
    let said = String::from_utf8(checked.stderr).unwrap();
    assert_eq!(said, format!("forebay: warning: environment variable {told}\n"));
    let (code, log) = Forebay::start(&[], &slip).stopped_with_log("TERM");
    assert_eq!((code, log.matches("is not read").count(), log.contains(told)), (0, 1, true), "{log}");
}

#[test]
fn a_file_that_is_not_there_is_a_wrong_configuration() {
    let output = run(&["serve", "--config", "/nowhere/forebay.toml"], &[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/nowhere/forebay.toml"));
}

#[test]
fn an_address_in_use_is_unavailable() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (listen, admin) in [(address.as_str(), "127.0.0.1:0"), ("127.0.0.1:0", address.as_str())] {
        let output = run(&["--listen", listen, "--admin-listen", admin], &[]);
        assert_eq!(output.status.code(), Some(69));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(&address) && told.contains("in use"), "{told}");
    }
}

#[test]
fn flags_win_over_variables_and_variables_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("forebay.toml");
    fs::write(&file, "[server]\nlisten = \"127.0.0.1:1\"\nidle_timeout = \"11s\"\nhttp2_streams_max = 11\n")
        .unwrap();
    let file = file.to_str().unwrap();
    let variables = [
        ("FOREBAY_CONFIG", file),
        ("FOREBAY__SERVER__LISTEN", "127.0.0.1:2"),
        ("FOREBAY__SERVER__IDLE_TIMEOUT", "22s"),
    ];
    let output = run(&["check", "--listen", "127.0.0.1:3"], &variables);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let effective = String::from_utf8(output.stdout).unwrap();
    for line in ["127.0.0.1:3", "idle_timeout = \"22s\"", "http2_streams_max = 11", "connections_max = 20000"]
    {
        assert!(effective.contains(line), "{line} is not in:\n{effective}");
    }
    assert!(!effective.contains("127.0.0.1:2") && !effective.contains("11s"), "{effective}");
}

#[test]
fn what_check_prints_is_a_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("effective.toml");
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/forebay.toml");
    let first = run(&["check", "--config", sample.to_str().unwrap()], &[]);
    assert_eq!(first.status.code(), Some(0), "{}", String::from_utf8_lossy(&first.stderr));
    fs::write(&file, &first.stdout).unwrap();
    let second = run(&["check", "--config", file.to_str().unwrap()], &[]);
    assert_eq!(second.status.code(), Some(0), "{}", String::from_utf8_lossy(&second.stderr));
    // The first line names the file.
    let keys = |output: Output| {
        String::from_utf8(output.stdout).unwrap().lines().skip(1).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(keys(first), keys(second));
}

#[test]
fn help_and_version_are_no_failures() {
    let version = run(&["--version"], &[]);
    assert_eq!(version.status.code(), Some(0));
    let told = String::from_utf8(version.stdout).unwrap();
    assert!(told.starts_with(concat!("forebay ", env!("CARGO_PKG_VERSION"))), "{told}");
    let help = run(&["--help"], &[]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8(help.stdout).unwrap().contains("forebay check --config"));
    let unknown = run(&["--no-such-flag"], &[]);
    assert_eq!(unknown.status.code(), Some(64));
}

#[test]
fn a_tunnel_is_counted_while_it_stands_and_logged_when_it_ends() {
    let origin = Origin::start(|exchange| {
        let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello";
        exchange.stream.get_mut().write_all(switching.as_bytes()).unwrap();
        let _ = exchange.stream.read_to_end(&mut Vec::new());
    });
    let (_directory, file) = configured(&origin, "");
    let forebay = Forebay::start(&["--config", &file, "--log-level", "info"], &[]);
    let mut client = Client::connect(forebay.data);
    client.send("GET /tunnel HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    let mut greeting = [0; 5];
    client.stream.read_exact(&mut greeting).unwrap();
    forebay.until_metric("forebay_tunnels", |count| count == 1.0);
    assert_eq!(forebay.metric("forebay_connections"), 1.0);
    assert!(!forebay.said().contains("/tunnel"), "there is one line, at the end");
    drop(client);
    let said = forebay.until_said("/tunnel");
    let line = said.lines().find(|line| line.contains("/tunnel")).unwrap();
    for part in ["status=101", "outcome=\"tunnel\"", "bytes=5", "duration_ms"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    forebay.until_metric("forebay_tunnels", |count| count == 0.0);
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

#[test]
fn without_a_host_there_must_be_a_route_for_any() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let (_directory, file) = configured(&origin, "");
    let text = fs::read_to_string(&file).unwrap();
    let named = format!("{text}name = \"app\"\n[[route]]\nhost = \"localhost\"\nupstream = \"app\"\n");
    fs::write(&file, named).unwrap();
    let forebay = Forebay::start(&["--config", &file], &[]);
    assert_eq!(Client::connect(forebay.data).get("/").body, "hello");
    let mut anonymous = Client::connect(forebay.data);
    anonymous.send("GET / HTTP/1.0\r\n\r\n");
    assert!(anonymous.head().contains(" 404 "));
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

#[test]
fn an_upload_of_a_gibibyte_passes_in_constant_memory() {
    let origin = Origin::start(|exchange| {
        let length = exchange.read_body();
        exchange.answer(&length.to_string());
    });
    let forebay = Forebay::before(&origin, "");
    let mut client = Client::connect(forebay.data);
    client
        .send(&format!("POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {UPLOAD_BYTES}\r\n\r\n"));
    let piece = vec![b'.'; 1 << 20];
    for _ in 0..UPLOAD_BYTES / piece.len() as u64 {
        client.stream.get_mut().write_all(&piece).unwrap();
    }
    let answer = client.answer();
    assert_eq!(answer.body, UPLOAD_BYTES.to_string());
    let peak = forebay.peak_memory_bytes();
    assert!(peak < UPLOAD_MEMORY_BYTES_MAX, "{} MiB", peak >> 20);
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

#[test]
fn without_file_descriptors_it_waits_and_then_goes_on() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let forebay = Forebay::before(&origin, "");
    assert_eq!(Client::connect(forebay.data).get("/").body, "hello");
    let limited = Command::new("prlimit")
        .args([format!("--pid={}", forebay.pid), "--nofile=40:40".to_owned()])
        .status()
        .unwrap();
    assert!(limited.success());
    // More than it can accept: the others stay with the kernel.
    let crowd: Vec<_> = (0..100).map(|_| TcpStream::connect(forebay.data).unwrap()).collect();
    let mut last = crowd.last().unwrap().try_clone().unwrap();
    last.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    last.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(last.read(&mut [0]).is_err(), "it was accepted although there is no descriptor for it");
    forebay.until_metric("forebay_accept_pauses_total", |pauses| pauses >= 1.0);
    assert!(forebay.metric("forebay_connections_refused_total{cause=\"accept\"}") < 0.5, "they wait");
    drop((crowd, last));
    assert_eq!(Client::connect(forebay.data).get("/").body, "hello");
    let (code, log) = forebay.stopped_with_log("TERM");
    assert!(
        log.contains("no file descriptor is left for clients") && log.contains("open_files_max=40"),
        "{log}"
    );
    assert_eq!((code, log.contains("kept=10")), (0, true), "{log}");
}

#[test]
fn clients_leave_file_descriptors_to_upstreams_and_to_the_admin_port() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    // Each fetch needs a connection of its own.
    let (_directory, file) = configured(&origin, "");
    let single = [("FOREBAY__UPSTREAM__0__IDLE_CONNECTIONS_MAX", "0")];
    let forebay = Forebay::start(&["--config", &file], &single);
    let mut first = Client::connect(forebay.data);
    assert_eq!(first.get("/").body, "hello");
    let limited = Command::new("prlimit")
        .args([format!("--pid={}", forebay.pid), "--nofile=128:128".to_owned()])
        .status()
        .unwrap();
    assert!(limited.success());
    let crowd: Vec<_> = (0..200).map(|_| TcpStream::connect(forebay.data).unwrap()).collect();
    let mut operators = Vec::new();
    for number in 0..5 {
        forebay.until_metric("forebay_accept_pauses_total", |count| count > 0.0);
        assert_eq!(first.get(&format!("/{number}")).body, "hello");
        operators.push(Client::connect(forebay.admin));
        for operator in &mut operators {
            assert!(operator.get("/livez").head.starts_with("HTTP/1.1 200 "));
        }
    }
    let open = forebay.metric("process_open_fds");
    assert!(open > 80.0, "{open}");
    drop(crowd);
    assert_eq!(Client::connect(forebay.data).get("/").body, "hello");
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

#[test]
fn the_service_manager_is_told_when_it_is_ready_and_when_it_stops() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let told = || {
        let mut text = [0; 64];
        let length = manager.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    let forebay = Forebay::start(&["--log-level", "error"], &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    assert_eq!(told(), "READY=1");
    assert_eq!(forebay.stopped_by("TERM"), 0);
    assert_eq!(told(), "STOPPING=1");
}

/// Answers of this connection over HTTP/2, as a client gets them that asks for several targets at once.
async fn answers_over_http2(
    stream: tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
    authority: &str,
    targets: &[&str],
) -> Vec<(http::response::Parts, bytes::Bytes)> {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let asked: Vec<_> = targets
        .iter()
        .map(|target| {
            let mut request = http::Request::new(Empty::<bytes::Bytes>::new());
            *request.uri_mut() = format!("https://{authority}{target}").parse().unwrap();
            let mut sender = sender.clone();
            tokio::spawn(async move { sender.send_request(request).await.unwrap() })
        })
        .collect();
    let mut answers = Vec::new();
    for answer in asked {
        let (head, body) = answer.await.unwrap().into_parts();
        answers.push((head, body.collect().await.unwrap().to_bytes()));
    }
    answers
}

#[test]
fn http2_is_negotiated_over_tls_and_http1_where_a_client_has_no_other() {
    let fetches = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&fetches);
    let origin = Origin::start(move |exchange| {
        counter.fetch_add(1, Ordering::Relaxed);
        let host = field(&exchange.head, "host").to_owned();
        let proto = field(&exchange.head, "x-forwarded-proto").to_owned();
        exchange.answer(&format!("{host} {proto} {}", exchange.head.lines().next().unwrap()));
    });
    let identity = Identity::new("a.example");
    let forebay = Forebay::before(&origin, &identity.configuration());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = identity.connect(forebay.data, &[b"h2", b"http/1.1"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let targets: Vec<String> = (0..50).map(|number| format!("/{}", number % 5)).collect();
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        for (answer, target) in answers_over_http2(stream, "a.example", &targets).await.iter().zip(&targets) {
            assert_eq!((answer.0.status.as_u16(), answer.0.version), (200, http::Version::HTTP_2));
            assert_eq!(answer.1, format!("a.example https GET {target} HTTP/1.1"));
        }
        for offered in [&[&b"http/1.1"[..]][..], &[]] {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut stream = identity.connect(forebay.data, offered).await;
            assert_eq!(stream.get_ref().1.alpn_protocol(), offered.first().copied());
            let request = b"GET /1 HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("GET /1 HTTP/1.1"), "{answer}");
        }
    });
    assert_eq!(fetches.load(Ordering::Relaxed), 5, "one fetch for each target");
    assert_eq!(forebay.stopped_by("TERM"), 0);
}
