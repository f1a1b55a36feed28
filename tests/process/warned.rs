//! What is right in a configuration and still better looked at, and what is wrong with the files that it names.

use crate::support::*;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::json;
use std::fs;
use std::process::Command;

/// A certificate from one day to another, as PEM, and its key.
fn certificate(from: (i32, u8, u8), to: (i32, u8, u8)) -> (String, String) {
    let mut params = CertificateParams::new(["a.example".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_before = date_time_ymd(from.0, from.1, from.2);
    params.not_after = date_time_ymd(to.0, to.1, to.2);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_start_a_reload_and_check_warn_of_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let write = |name: &str, text: &str| {
        fs::write(path(name), text).unwrap();
        path(name)
    };
    let (good, key) = certificate((2020, 1, 1), (2120, 1, 1));
    let (old, _) = certificate((2020, 1, 1), (2020, 4, 1));
    let (older, _) = certificate((2018, 1, 1), (2019, 4, 1));
    let chain = write("chain.pem", &format!("{good}{old}"));
    let key = write("key.pem", &key);
    let roots = write("roots.pem", &format!("{older}{good}{old}"));
    let configuration = format!(
        "[server.tls]\ncertificate_file = {chain:?}\nkey_file = {key:?}\n\
         [[upstream]]\nname = \"app\"\nurl = \"https://127.0.0.1:1\"\n\
         [upstream.tls]\nroots_file = {roots:?}\ninsecure = true\n[admin]\nlisten = \"0.0.0.0:0\"\n"
    );
    let file = write("forebay.toml", &configuration);
    let expected = [
        format!("server.tls: the certificate number 2 in {chain} has expired: it was valid until 2020-04-01"),
        format!(
            "tls of upstream \"app\": of the 3 certificates to trust in {roots}, 2 expired, the last on 2020-04-01"
        ),
        "certificates of upstream \"app\" are NOT verified (tls.insecure)".to_owned(),
        "the admin port can be reached from outside and has no token".to_owned(),
    ];
    let checked = run(&["check", "--config", &file], &[]);
    let told = String::from_utf8(checked.stderr).unwrap();
    assert_eq!(checked.status.code(), Some(0), "{told}");
    let told: Vec<_> = told.lines().collect();
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (line, warning) in told.iter().zip(&expected) {
        assert!(line.starts_with(&format!("forebay: warning: {warning}")), "{line}");
    }

    // The flag takes the admin port back to this machine, where it may be asked to reload.
    let forebay = Forebay::start(&["--config", &file], &[]);
    let expected = &expected[..3];
    for warning in expected {
        assert_eq!(forebay.until_said(warning).matches(warning).count(), 1);
    }
    let answer = Client::connect(forebay.admin).post("/reload", "");
    let answer: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let warnings = answer["warnings"].as_array().unwrap();
    assert_eq!((warnings.len(), &answer["restart_required"]), (3, &json!([])), "{answer}");
    for (told, warning) in warnings.iter().zip(expected) {
        assert!(told.as_str().unwrap().starts_with(warning), "{told}");
        until(|| forebay.said().matches(warning).count() == 2, || forebay.said());
    }
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

#[test]
fn what_a_file_of_certificates_or_a_key_is_not_is_told_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (chain, key) = certificate((2020, 1, 1), (2120, 1, 1));
    fs::write(path("chain.pem"), &chain).unwrap();
    fs::write(path("key.pem"), &key).unwrap();
    fs::write(path("cut.pem"), &chain[..chain.len() / 2]).unwrap();
    fs::write(path("cut.key"), &key[..key.len() / 2]).unwrap();
    fs::write(path("odd.pem"), chain.replace("BEGIN CERTIFICATE-----", "BEGIN CERTIFICATE")).unwrap();
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    fs::write(path("old.key"), old).unwrap();
    let encrypted = Command::new("openssl")
        .args([
            "pkcs8",
            "-topk8",
            "-passout",
            "pass:secret",
            "-in",
            &path("key.pem"),
            "-out",
            &path("encrypted.key"),
        ])
        .status();
    if !encrypted.is_ok_and(|status| status.success()) {
        let text = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        fs::write(path("encrypted.key"), text).unwrap();
    }
    for (chain, key, told) in [
        ("cut.pem", "key.pem", "cut.pem is no PEM: it ends before an END line; expected"),
        ("odd.pem", "key.pem", "odd.pem is no PEM: a BEGIN line is malformed; expected"),
        ("chain.pem", "cut.key", "cut.key is no PEM: it ends before an END line; expected"),
        (
            "chain.pem",
            "encrypted.key",
            "encrypted.key holds a key that is encrypted; expected a PEM file with a private key that is not",
        ),
        (
            "chain.pem",
            "old.key",
            "old.key holds a key that is encrypted; expected a PEM file with a private key that is not",
        ),
    ] {
        let configuration =
            format!("[server.tls]\ncertificate_file = {:?}\nkey_file = {:?}\n", path(chain), path(key));
        fs::write(path("forebay.toml"), configuration).unwrap();
        let checked = run(&["check", "--config", &path("forebay.toml")], &[]);
        let said = String::from_utf8(checked.stderr).unwrap();
        assert_eq!(checked.status.code(), Some(64), "{said}");
        assert!(said.contains(told) && !said.contains('['), "{told}: {said}");
    }
}
