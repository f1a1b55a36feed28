//! What operators are told: lines of the log, and what is counted beside them.

use crate::support::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::Duration;

/// The one line of the access log, once there is one.
#[track_caller]
fn access_line(forebay: &Forebay) -> String {
    let log = forebay.until_said("forebay::access");
    let mut lines = log.lines().filter(|line| line.contains("forebay::access"));
    let line = lines.next().unwrap().to_owned();
    assert!(lines.next().is_none(), "{log}");
    line
}

/// When this connection is dropped, its peer sees a reset.
fn resets(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn the_line_of_a_tunnel_says_which_side_broke_it_off() {
    for (request, body) in [("/", "client_left"), ("/leave", "broken_off")] {
        let origin = Origin::start(|exchange| {
            let switching =
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\nhello";
            exchange.stream.get_mut().write_all(switching).unwrap();
            if exchange.head.starts_with("GET /leave") {
                let _ = exchange.stream.read_exact(&mut [0; 5]);
                resets(exchange.stream.get_ref());
                // There is no further request to wait for.
                exchange.stream.get_ref().shutdown(Shutdown::Read).unwrap();
            } else {
                let _ = exchange.stream.read(&mut [0]);
            }
        });
        let (_directory, file) = configured(&origin, "");
        let forebay = Forebay::start(&["--config", &file, "--log-level", "info"], &[]);
        let mut client = Client::connect(forebay.data);
        client.send(&format!(
            "GET {request} HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\n"
        ));
        assert!(client.head().starts_with("HTTP/1.1 101"));
        client.stream.read_exact(&mut [0; 5]).unwrap();
        if request == "/leave" {
            client.send("leave");
            assert!(client.is_ended());
        } else {
            resets(client.stream.get_ref());
            drop(client);
        }
        let line = access_line(&forebay);
        for part in ["outcome=\"tunnel\"", "bytes=5", &format!("body={body:?}")] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}

/// Says how many files the program may have open from here on.
fn limit_files(forebay: &Forebay, soft: &str) {
    let limited = Command::new("prlimit")
        .args([format!("--pid={}", forebay.pid), format!("--nofile={soft}:")])
        .status()
        .unwrap();
    assert!(limited.success());
}

#[test]
fn a_lack_of_file_descriptors_is_told_as_such_and_is_no_verdict_on_the_upstream() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let port = origin.address.port();
    for (host, check) in [("127.0.0.1", "10ms"), ("localhost", "1h")] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("forebay.toml");
        let upstream = format!(
            "[[upstream]]\nname = \"app\"\nurl = \"http://{host}:{port}\"\nidle_connections_max = 0\nresolve_interval = \"off\"\n\
             breaker = {{ enabled = true, requests_min = 1 }}\n\
             check = {{ path = \"/\", interval = \"{check}\", unhealthy_after = 1 }}\n\
             [coalescing]\nerror_backoff = \"0s\"\n"
        );
        std::fs::write(&file, upstream).unwrap();
        let forebay = Forebay::start(&["--config", file.to_str().unwrap()], &[]);
        let (mut client, mut operator) = (Client::connect(forebay.data), Client::connect(forebay.admin));
        assert_eq!(client.get("/0").body, "hello");
        let number = |operator: &mut Client, series: &str| {
            let text = operator.get("/metrics").body;
            let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
            line.map_or(0.0, |number| number.parse::<f64>().unwrap())
        };
        // As few as no program can do with.
        limit_files(&forebay, "3");
        for target in ["/1", "/2", "/3"] {
            let refused = client.get(target);
            assert!(refused.head.starts_with("HTTP/1.1 503 "), "{host}: {}", refused.head);
            assert_eq!(refused.field("proxy-status"), "forebay; error=proxy_internal_error");
            assert_eq!(refused.field("retry-after"), "1");
        }
        for (series, expected) in [
            ("forebay_upstream_refused_total{cause=\"no_descriptor\",upstream=\"app\"}", 3.0),
            ("forebay_upstream_refused_total{cause=\"open\",upstream=\"app\"}", 0.0),
            ("forebay_upstream_requests_total{reason=\"miss\",status_class=\"error\",upstream=\"app\"}", 0.0),
            ("forebay_upstream_retries_total{upstream=\"app\"}", 0.0),
            ("forebay_upstream_breaker_state{state=\"closed\",upstream=\"app\"}", 1.0),
        ] {
            assert_eq!(number(&mut operator, series), expected, "{host}: {series}");
        }
        let up = format!("forebay_upstream_origin_up{{origin=\"{host}:{port}\",upstream=\"app\"}}");
        for _ in 0..20 {
            assert_eq!(number(&mut operator, &up), 1.0, "{host}");
        }
        limit_files(&forebay, "200");
        assert_eq!(client.get("/4").body, "hello");
        assert_eq!(forebay.stopped_by("TERM"), 0);
    }
}

#[test]
fn a_name_that_cannot_be_looked_up_for_want_of_file_descriptors_is_not_a_wrong_name() {
    let upstream = [
        ("FOREBAY__UPSTREAM__0__NAME", "app"),
        ("FOREBAY__UPSTREAM__0__URL", "http://nowhere.invalid"),
        ("FOREBAY__UPSTREAM__0__RESOLVE_INTERVAL", "off"),
    ];
    let forebay = Forebay::start(&[], &upstream);
    let mut client = Client::connect(forebay.data);
    forebay.until_metric("forebay_connections", |count| count >= 1.0);
    limit_files(&forebay, "3");
    let refused = client.get("/");
    assert_eq!(refused.field("proxy-status"), "forebay; error=proxy_internal_error", "{}", refused.head);
    forebay.until_said("no file descriptor");
}

#[test]
fn origins_that_differ_in_the_scheme_alone_have_labels_of_their_own() {
    let upstream = [
        ("FOREBAY__UPSTREAM__0__NAME", "app"),
        (
            "FOREBAY__UPSTREAM__0__URL",
            "http://127.0.0.1:1,https://127.0.0.1:1,https://127.0.0.1,http://127.0.0.1:3",
        ),
    ];
    let forebay = Forebay::start(&[], &upstream);
    let text = Client::connect(forebay.admin).get("/metrics").body;
    let up = text.lines().filter_map(|line| line.strip_prefix("forebay_upstream_origin_up{origin=\""));
    let labels: Vec<_> = up.filter_map(|rest| Some(rest.split_once('"')?.0)).collect();
    assert_eq!(labels, ["127.0.0.1", "127.0.0.1:3", "http://127.0.0.1:1", "https://127.0.0.1:1"]);
}

#[test]
fn a_reader_of_the_log_that_is_behind_at_the_end_misses_nothing() {
    const REQUESTS: usize = 1000;
    let flags = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log-level", "info"];
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let upstream = format!("http://{}", origin.address);
    let mut child = spawn(&[&flags[..], &["--upstream", &upstream]].concat(), &[]);
    let mut greeting = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut greeting).unwrap();
    let (_, address) = greeting.split_once("listens on http://").unwrap();
    let mut client = Client::connect(address.split(' ').next().unwrap().parse().unwrap());
    // More than a pipe takes that nobody reads.
    for _ in 0..REQUESTS {
        assert_eq!(client.get(&format!("/{}", "long".repeat(100))).body, "hello");
    }
    kill(child.id(), "TERM");
    assert!(client.is_ended(), "it drains");
    // Longer than the library would wait.
    std::thread::park_timeout(Duration::from_millis(1500));
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(log.lines().filter(|line| line.contains("forebay::access")).count(), REQUESTS);
}
