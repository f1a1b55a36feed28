//! TLS for clients: certificates that are no good, and clients that are no better.

use crate::support::*;
use std::fs;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn certificates_and_keys_that_cannot_be_used_are_told_at_start() {
    let (one, other) = (Identity::new("a.example"), Identity::new("b.example"));
    let (chain, key) = (one.file("chain.pem"), one.file("key.pem"));
    let junk = one.file("junk.pem");
    fs::write(&junk, "-----BEGIN CERTIFICATE-----\n???\n-----END CERTIFICATE-----\n").unwrap();
    let empty = one.file("empty.pem");
    fs::write(&empty, "").unwrap();
    let hollow = one.file("hollow.pem");
    fs::write(&hollow, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let odd = one.file("odd.pem");
    fs::write(&odd, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    let upstream = |keys: &str| {
        format!("[[upstream]]\nname = \"b\"\nurl = \"https://127.0.0.1:1\"\n[upstream.tls]\n{keys}\n")
    };
    let foreign = other.file("key.pem");
    let nowhere = one.file("nowhere.pem");
    for (more, line, key_told, told) in [
        (
            server(&nowhere, &key),
            2,
            "server.tls.certificate_file",
            "nowhere.pem cannot be read: No such file",
        ),
        (server(&junk, &key), 2, "server.tls.certificate_file", "junk.pem is no PEM"),
        (
            server(&empty, &key),
            2,
            "server.tls.certificate_file",
            "empty.pem holds no certificate; expected a PEM file with a certificate",
        ),
        (server(&key, &key), 2, "server.tls.certificate_file", "key.pem holds no certificate"),
        (
            server(&hollow, &key),
            2,
            "server.tls.certificate_file",
            "hollow.pem holds something that is no X.509",
        ),
        (server(&chain, &nowhere), 3, "server.tls.key_file", "nowhere.pem cannot be read: No such file"),
        (server(&chain, &chain), 3, "server.tls.key_file", "expected a PEM file with a private key"),
        (server(&chain, &empty), 3, "server.tls.key_file", "empty.pem holds no such key"),
        (server(&chain, &odd), 3, "server.tls.key_file", "odd.pem holds a key of no kind"),
        (server(&chain, &foreign), 3, "server.tls.key_file", "another key than that of the certificate in"),
        (upstream(&format!("roots_file = {empty:?}")), 5, "upstream[0].tls.roots_file", "empty.pem holds no"),
        (
            upstream(&format!("roots_file = {junk:?}")),
            5,
            "upstream[0].tls.roots_file",
            "certificates to trust",
        ),
        (
            upstream(&format!("roots_file = {hollow:?}")),
            5,
            "upstream[0].tls.roots_file",
            "no X.509 certificate",
        ),
        (
            upstream(&format!("certificate_file = {chain:?}\nkey_file = {foreign:?}")),
            6,
            "upstream[0].tls.key_file",
            "another key than that of the certificate in",
        ),
    ] {
        check_unusable(&one, &more, line, key_told, told);
    }
}

/// Checks that this configuration, told at start and by `check`, has a file that is of no use.
#[track_caller]
fn check_unusable(beside: &Identity, more: &str, line: usize, key: &str, told: &str) {
    let file = beside.file("forebay.toml");
    fs::write(&file, more).unwrap();
    let output = run(&["--config", &file, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"], &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{more}\n{said}");
    assert!(said.contains(&format!("forebay.toml:{line}: {key}: the file ")), "{more}\n{said}");
    assert!(said.contains(told) && said.contains("; expected "), "{more}\n{said}");
    let checked = run(&["check", "--config", &file], &[]);
    let also_said = String::from_utf8(checked.stderr).unwrap();
    assert_eq!((checked.status.code(), also_said), (Some(64), said), "{more}");
}

#[test]
fn a_certificate_that_expires_is_told_at_start_at_reload_and_by_check_and_can_be_alerted_on() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let identity = Identity::new("a.example");
    let file = identity.file("forebay.toml");
    let configuration = format!(
        "[[upstream]]\nname = \"app\"\nurl = \"http://{}\"\n{}",
        origin.address,
        identity.configuration()
    );
    fs::write(&file, configuration).unwrap();
    let series = format!(
        "forebay_tls_certificate_not_after_timestamp_seconds{{file=\"{}\"}}",
        identity.file("chain.pem")
    );
    let check = || {
        let checked = run(&["check", "--config", &file], &[]);
        assert_eq!(checked.status.code(), Some(0));
        String::from_utf8(checked.stderr).unwrap()
    };
    assert_eq!(check(), "", "it is valid for long");

    identity.valid((2020, 1, 1), (2020, 4, 1));
    let expired = "chain.pem has expired: it was valid until 2020-04-01T00:00:00.000Z";
    let told = check();
    assert!(told.starts_with("forebay: warning: server.tls: ") && told.contains(expired), "{told}");
    let forebay = Forebay::start(&["--config", &file], &[]);
    assert!((forebay.metric(&series) - 1_585_699_200.0).abs() < 0.5);

    identity.valid((2120, 1, 1), (2120, 4, 1));
    forebay.signal("HUP");
    forebay.until_metric(&series, |end| (end - 4_741_372_800.0).abs() < 0.5);
    let (code, log) = forebay.stopped_with_log("TERM");
    assert_eq!(code, 0);
    for part in [expired, "chain.pem is not valid before 2120-01-01T00:00:00.000Z"] {
        assert_eq!(log.matches(part).count(), 1, "{part}: {log}");
    }
}

#[test]
fn whoever_cannot_shake_hands_is_counted_and_disturbs_nobody() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let identity = Identity::new("a.example");
    let more = format!("{}[server]\nheader_read_timeout = \"3s\"\n", identity.configuration());
    let (_directory, file) = configured(&origin, &more);
    let forebay = Forebay::start(&["--config", &file, "--log-level", "info"], &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut old = identity.connect(forebay.data, &[b"http/1.1"]).await;
        old.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        old.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        let plain = &b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"[..];
        let half_a_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
        for bytes in [plain, b"\0\0\0\0", b"\x16\x03\x01\xff\xff", half_a_hello, b""] {
            let mut stream = tokio::net::TcpStream::connect(forebay.data).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut told = Vec::new();
            // An alert, or nothing; but an end in any case.
            let end = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut told)).await;
            assert!(end.is_ok(), "{bytes:?}");
            assert!(told.len() < 10 && !told.starts_with(b"HTTP"), "{told:?}");
        }
        let refused = identity.try_connect(forebay.data, &[b"spdy/1"]).await.unwrap_err();
        assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
        let stranger = Identity::new("b.example");
        assert!(stranger.try_connect(forebay.data, &[b"h2"]).await.is_err(), "it trusts another certificate");
        old.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        old.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("hello"), "{answer}");
    });
    for (reason, expected) in
        [("malformed", 3.0), ("timed_out", 2.0), ("incompatible", 1.0), ("client_refused", 1.0)]
    {
        let series = format!("forebay_tls_handshakes_failed_total{{reason={reason:?}}}");
        forebay.until_metric(&series, |count| count > expected - 0.5);
        let log = forebay.until_said(&format!("TLS with a client failed reason={reason:?}"));
        // However many fail alike, one has a line.
        assert_eq!(log.matches(&format!("reason={reason:?}")).count(), 1, "{log}");
    }
    // That a client has given up is seen a little later.
    forebay.until_metric("forebay_connections_refused_total{cause=\"tls\"}", |count| count > 6.5);
    assert!(forebay.metric("forebay_connections_refused_total{cause=\"tls\"}") < 7.5, "each is counted once");
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

fn server(chain: &str, key: &str) -> String {
    format!("[server.tls]\ncertificate_file = {chain:?}\nkey_file = {key:?}\n")
}
