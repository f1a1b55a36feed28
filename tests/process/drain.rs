//! How it ends: what clients, load balancers and the service manager see of a drain.

use crate::support::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::channel;
use std::time::Duration;
use tokio::time::Instant;

#[test]
fn it_is_not_ready_at_once_and_takes_new_connections_for_as_long_as_the_delay() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let forebay = Forebay::before(&origin, "[server]\ndrain_delay = \"4s\"\n");
    let readiness = || Client::connect(forebay.admin).get("/readyz").head;
    assert!(readiness().starts_with("HTTP/1.1 200"));
    let mut idle = Client::connect(forebay.data);
    assert_eq!(idle.get("/").body, "hello");
    let told = Instant::now();
    forebay.signal("TERM");
    while readiness().starts_with("HTTP/1.1 200") {
        assert!(told.elapsed() < DEADLINE, "it stays ready");
    }
    // Load balancers have not noticed yet.
    let answer = Client::connect(forebay.data).get("/");
    assert_eq!((answer.body.as_str(), answer.field("connection")), ("hello", ""));
    assert_eq!(idle.get("/").body, "hello");
    forebay.until_refused();
    assert!(told.elapsed().as_millis() >= 3900, "closed after {:?}", told.elapsed());
    assert!(idle.is_ended());
    assert_eq!(forebay.exit_code(), 0);
}

#[test]
fn a_connection_that_was_accepted_last_still_gets_its_answer() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let (forebay, mut new, mut silent) = loop {
        let forebay = Forebay::before(&origin, "");
        let (mut new, silent) = (Client::connect(forebay.data), Client::connect(forebay.data));
        forebay.until_metric("forebay_connections", |count| count >= 2.0);
        let told = Instant::now();
        forebay.signal("TERM");
        forebay.until_refused();
        new.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        // It has a second, of which a machine that is busy may have taken too much.
        if told.elapsed() < Duration::from_millis(700) {
            break (forebay, new, silent);
        }
    };
    let answer = new.answer();
    assert_eq!((answer.body.as_str(), answer.field("connection")), ("hello", "close"));
    assert!(new.is_ended());
    // One that says nothing is not waited for.
    assert!(silent.is_ended());
    assert_eq!(forebay.exit_code(), 0);
}

#[test]
fn what_waits_to_be_accepted_when_it_stops_gets_its_answer() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let forebay = Forebay::before(&origin, "[server]\ndrain_timeout = \"10m\"\n");
    assert_eq!(Client::connect(forebay.data).get("/").body, "hello");
    let limit = forebay::demo::raise_file_limit().unwrap();
    // More than it accepts in one go.
    let queue = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let crowd = usize::try_from(limit / 2).unwrap().min(500).min(queue.trim().parse().unwrap());
    // While it is stopped, the kernel accepts connections for it.
    forebay.signal("STOP");
    let mut clients: Vec<_> = (0..crowd).map(|_| Client::connect(forebay.data)).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    forebay.signal("TERM");
    forebay.signal("CONT");
    for client in &mut clients {
        assert_eq!(client.answer().body, "hello");
    }
    assert_eq!(forebay.exit_code(), 0);
}

/// The type, the stream and the payload of the next frame.
fn frame(stream: &mut TcpStream) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).ok()?;
    Some((head[3], head[8], payload))
}

#[test]
fn a_connection_over_http2_is_told_to_go_away_and_its_streams_finish() {
    let (arrived, has_arrived) = channel();
    let (open, gate) = channel();
    let origin = Origin::start_gated(arrived, gate);
    let forebay = Forebay::before(&origin, "");
    let mut stream = TcpStream::connect(forebay.data).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    // :method GET, :scheme http, :path / of the static table, and :authority as a literal.
    stream.write_all(b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x01\x01a").unwrap();
    has_arrived.recv_timeout(DEADLINE).unwrap();
    forebay.signal("TERM");
    let (mut last_stream, mut body) = (None, Vec::new());
    let mut is_open = false;
    while let Some((kind, number, payload)) = frame(&mut stream) {
        match kind {
            0 => body.extend(payload),
            // A graceful end begins with the highest number, and a PING that must come back (RFC 9113 §6.8).
            6 => stream.write_all(&[&b"\0\0\x08\x06\x01\0\0\0\0"[..], &payload].concat()).unwrap(),
            7 => {
                assert_eq!(payload[4..8], [0; 4], "no error");
                last_stream = Some(u32::from_be_bytes(payload[..4].try_into().unwrap()));
                if !is_open {
                    is_open = true;
                    open.send(()).unwrap();
                }
            }
            3 => panic!("stream {number} was reset"),
            _ => {}
        }
    }
    assert_eq!((last_stream, body.as_slice()), (Some(1), &b"gated"[..]));
    assert_eq!(forebay.exit_code(), 0);
}

#[test]
fn the_limit_on_open_files_is_raised_and_said() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let (_directory, file) = configured(&origin, "");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -Sn 64 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_forebay")]);
    let forebay = Forebay::start_as(command, &["--config", &file, "--log-level", "info"], &[]);
    let (_, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).unwrap();
    let said = forebay.until_said("open files");
    assert!(said.contains(&format!("limit={hard}")) || said.contains(&hard.to_string()), "{hard}: {said}");
    let clients: Vec<_> = (0..100).map(|_| Client::connect(forebay.data)).collect();
    forebay.until_metric("forebay_connections", |count| count >= 100.0);
    drop(clients);
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

/// An origin that never ends: silent, with a part of a body, or as a tunnel.
fn endless() -> Origin {
    Origin::start(|exchange| {
        let start = match exchange.head.split(' ').nth(1) {
            Some("/part") => "HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 100\r\n\r\npart",
            Some("/socket") => {
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\nhello"
            }
            _ => "",
        };
        exchange.stream.get_mut().write_all(start.as_bytes()).unwrap();
        // Until it is left.
        let _ = exchange.stream.read(&mut [0]);
    })
}

/// Asks it for all of that, and once more over HTTP/2. What is returned keeps the connections open.
fn asked_in_vain(forebay: &Forebay) -> (Vec<Client>, TcpStream) {
    let mut clients: Vec<_> = (0..3).map(|_| Client::connect(forebay.data)).collect();
    for (client, request) in clients.iter_mut().zip(["/silent", "/part", "/socket"]) {
        let upgrade = if request == "/socket" { "Connection: upgrade\r\nUpgrade: raw\r\n" } else { "" };
        client.send(&format!("GET {request} HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n"));
    }
    for (client, start) in clients[1..].iter_mut().zip(["part", "hello"]) {
        client.head();
        let mut bytes = vec![0; start.len()];
        client.stream.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, start.as_bytes());
    }
    let mut stream = TcpStream::connect(forebay.data).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    stream.write_all(b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x01\x01a").unwrap();
    forebay.until_metric("forebay_flights", |count| count >= 2.0);
    (clients, stream)
}

/// Each request has its line, which says that it was cut off.
#[track_caller]
fn check_cut_off(log: &str, count: &str) {
    let lines: Vec<_> = log.lines().filter(|line| line.contains("forebay::access")).collect();
    assert_eq!(lines.len(), 4, "{log}");
    for (target, parts) in [
        ("/silent", &["outcome=\"error\"", "status=503", "detail=\"cut-off\"", "protocol=HTTP/1.1"][..]),
        ("/part", &["outcome=\"pass\"", "status=200", "bytes=4"]),
        ("/socket", &["outcome=\"tunnel\"", "status=101", "bytes=5"]),
        ("/", &["outcome=\"error\"", "detail=\"cut-off\"", "protocol=HTTP/2.0"]),
    ] {
        let target = format!("request_target=\"{target}\"");
        let line = lines.iter().find(|line| line.contains(&target)).expect(&target);
        for part in parts.iter().chain(&["body=\"cut_off\"", "duration_ms="]) {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    assert!(log.lines().any(|line| line.contains(count)), "{log}");
}

#[test]
fn what_is_cut_off_at_the_end_of_a_drain_has_its_line_in_the_log() {
    let origin = endless();
    let (_directory, file) = configured(&origin, "[server]\ndrain_timeout = \"200ms\"\n");
    let forebay = Forebay::start(&["--config", &file, "--log-level", "info"], &[]);
    let asked = asked_in_vain(&forebay);
    let (code, log) = forebay.stopped_with_log("TERM");
    assert_eq!(code, 0);
    check_cut_off(&log, "stopped cut_off=4");
    drop(asked);
}

#[test]
fn what_a_second_signal_cuts_off_has_its_line_in_the_log() {
    let origin = endless();
    let (_directory, file) = configured(&origin, "[server]\ndrain_timeout = \"1h\"\n");
    let forebay = Forebay::start(&["--config", &file, "--log-level", "info"], &[]);
    let asked = asked_in_vain(&forebay);
    forebay.signal("TERM");
    forebay.until_refused();
    let (code, log) = forebay.stopped_with_log("TERM");
    assert_eq!(code, 1);
    check_cut_off(&log, "stopped at once");
    drop(asked);
}

#[test]
fn what_is_cut_off_does_not_look_whole() {
    // Over HTTP/1.0 an orderly end would be the end of the body.
    let origin = Origin::start(|exchange| {
        exchange.stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n").unwrap();
        let _ = exchange.stream.read(&mut [0]);
    });
    let forebay = Forebay::before(&origin, "[server]\ndrain_timeout = \"100ms\"\n");
    let mut client = Client::connect(forebay.data);
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert!(client.head().contains(" 200 "));
    let mut part = [0; 4];
    client.stream.read_exact(&mut part).unwrap();
    forebay.signal("TERM");
    let ended = client.stream.read(&mut part);
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(forebay.exit_code(), 0);
}
