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
    let upstream = |keys: &str| {
        format!("[[upstream]]\nname = \"b\"\nurl = \"https://127.0.0.1:1\"\ntls = {{ {keys} }}\n")
    };
    for (more, told) in [
        (server(&junk, &key), &["server.tls", "junk.pem"][..]),
        (server(&empty, &key), &["server.tls", "empty.pem", "no certificate"]),
        (server(&key, &key), &["server.tls", "key.pem", "no certificate"]),
        (server(&chain, &chain), &["server.tls", "chain.pem"]),
        (server(&chain, &empty), &["server.tls", "empty.pem"]),
        (server(&chain, &other.file("key.pem")), &["server.tls", "refused"]),
        (upstream(&format!("roots_file = {empty:?}")), &["\"b\"", "empty.pem"]),
        (upstream(&format!("roots_file = {junk:?}")), &["\"b\"", "junk.pem"]),
        (
            upstream(&format!("certificate_file = {chain:?}, key_file = {:?}", other.file("key.pem"))),
            &["\"b\"", "refused"],
        ),
    ] {
        let file = one.file("forebay.toml");
        fs::write(&file, &more).unwrap();
        let output =
            run(&["--config", &file, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"], &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(69), "{more}\n{said}");
        for text in told {
            assert!(said.contains(text), "{more}\n{said}");
        }
        let checked = run(&["check", "--config", &file], &[]);
        let also_said = String::from_utf8(checked.stderr).unwrap();
        assert!(
            checked.status.code() == Some(69) && said.contains(also_said.trim()),
            "{more}\n{said}{also_said}"
        );
    }
}

#[test]
fn whoever_cannot_shake_hands_is_counted_and_disturbs_nobody() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let identity = Identity::new("a.example");
    let more = format!("{}[server]\nheader_read_timeout = \"1s\"\n", identity.configuration());
    let forebay = Forebay::before(&origin, &more);
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
    // That a client has given up is seen a little later.
    forebay.until_metric("forebay_connections_refused_total{cause=\"tls\"}", |count| count > 6.5);
    assert!(forebay.metric("forebay_connections_refused_total{cause=\"tls\"}") < 7.5, "each is counted once");
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

fn server(chain: &str, key: &str) -> String {
    format!("[server.tls]\ncertificate_file = {chain:?}\nkey_file = {key:?}\n")
}
