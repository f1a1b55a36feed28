//! How origins are reached: versions of HTTP, TLS and whom it trusts, connections that are kept and for how long, and the
//! choice among several.

use crate::support::*;
use forebay::upstream::{self, Balance, Origin as Named, Protocol, Tls};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// An authority that certificates in these stories come from, with its files.
struct Authority {
    directory: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.path().join("roots.pem"), certificate.pem()).unwrap();
        Self { directory, der: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn roots(&self) -> PathBuf {
        self.directory.path().join("roots.pem")
    }

    /// A certificate for a name, and its key.
    fn certify(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// The same as files.
    fn identity(&self, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.certify(name);
        let path = |extension| self.directory.path().join(name).with_extension(extension);
        std::fs::write(path("crt"), certificate.pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        (path("crt"), path("key"))
    }

    /// TLS of a server with this name; with `clients`, for none but those that this authority knows.
    fn server(&self, name: &str, versions: &[&str], clients: bool) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = if clients {
            let mut roots = RootCertStore::empty();
            roots.add(self.der.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let (certificate, key) = self.certify(name);
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = versions.iter().map(|version| version.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// An origin that says in what version of HTTP, under what server name and by what scheme it was asked.
async fn telling(tls: Option<TlsAcceptor>, http2: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            let tls = tls.clone();
            tokio::spawn(async move {
                match tls {
                    None => answer(stream, http2, String::new()).await,
                    Some(tls) => {
                        let Ok(stream) = tls.accept(stream).await else { return };
                        let connection = stream.get_ref().1;
                        let is_http2 = connection.alpn_protocol() == Some(b"h2");
                        let name = connection.server_name().unwrap_or("no name").to_owned();
                        answer(stream, is_http2, name).await;
                    }
                }
            });
        }
    });
    (address, connections)
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, http2: bool, name: String) {
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let scheme = request.uri().scheme_str().unwrap_or("-");
        let text = format!("{:?} {name} {scheme}", request.version());
        let mut response = http::Response::new(Full::new(bytes::Bytes::from(text)));
        response.headers_mut().insert("cache-control", "no-store".parse().unwrap());
        async move { Ok::<_, Infallible>(response) }
    });
    let io = TokioIo::new(stream);
    if http2 {
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(io, service)
            .await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    }
}

fn setting(address: SocketAddr, https: bool, tls: Tls, protocol: Protocol) -> Setting {
    let mut setting = Setting::before(address);
    setting.upstream.origins = vec![Named { https, host: "127.0.0.1".into(), port: address.port() }];
    setting.upstream.tls = tls;
    setting.upstream.protocol = protocol;
    setting
}

fn trusting(roots: &Path) -> Tls {
    Tls { roots_file: Some(roots.to_owned()), server_name: Some("app.internal".into()), ..Tls::default() }
}

// In real time: with a paused clock a handshake is a pause in which every time limit is reached.
#[tokio::test]
async fn https_is_spoken_with_given_roots_and_the_name_that_is_asked_for() {
    let authority = Authority::new();
    for (versions, protocol, expected) in [
        (&["h2", "http/1.1"][..], Protocol::Auto, "HTTP/2.0 app.internal https"),
        (&["http/1.1"], Protocol::Auto, "HTTP/1.1 app.internal -"),
        (&["h2", "http/1.1"], Protocol::Http1, "HTTP/1.1 app.internal -"),
        (&["h2"], Protocol::Http2, "HTTP/2.0 app.internal https"),
    ] {
        let (address, _) = telling(Some(authority.server("app.internal", versions, false)), false).await;
        let stage = setting(address, true, trusting(&authority.roots()), protocol).start().await;
        assert_eq!(stage.get("/").await.text(), expected, "{versions:?} {protocol:?}");
    }
}

const UPGRADE: [(&str, &str); 2] = [("connection", "upgrade"), ("upgrade", "websocket")];

#[tokio::test]
async fn an_upgrade_is_asked_for_over_http1_where_tls_would_negotiate_http2() {
    let authority = Authority::new();
    let acceptor = authority.server("app.internal", &["h2", "http/1.1"], false);
    let (address, _) = telling(Some(acceptor), false).await;
    let stage = setting(address, true, trusting(&authority.roots()), Protocol::Auto).start().await;
    assert_eq!(stage.get("/").await.text(), "HTTP/2.0 app.internal https");
    assert_eq!(stage.send("GET", "/socket", &UPGRADE).await.text(), "HTTP/1.1 app.internal -");
    assert_eq!(stage.get("/").await.text(), "HTTP/2.0 app.internal https", "others go on as they did");
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_is_refused_where_the_upstream_is_to_be_spoken_to_over_http2_alone() {
    let (address, connections) = telling(None, true).await;
    let stage = setting(address, false, Tls::default(), Protocol::Http2).start().await;
    let answer = stage.send("GET", "/socket", &UPGRADE).await;
    let told = (answer.status, answer.header("proxy-status"));
    assert_eq!(told, (502, "forebay; error=http_upgrade_failed"));
    assert_eq!(connections.load(Ordering::SeqCst), 0, "it is not asked as if nothing were wanted");
    assert_eq!(stage.get("/").await.text(), "HTTP/2.0  http");
}

#[tokio::test]
async fn a_certificate_of_another_name_or_authority_is_refused_unless_all_are_accepted() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    for (server, name) in [(&authority, "other.internal"), (&stranger, "app.internal")] {
        let acceptor = server.server(name, &["http/1.1"], false);
        let (address, _) = telling(Some(acceptor), false).await;
        let tls = trusting(&authority.roots());
        let stage = setting(address, true, tls.clone(), Protocol::Auto).start().await;
        let refused = stage.get("/").await;
        let told = (refused.status, refused.header("proxy-status"));
        assert_eq!(told, (502, "forebay; error=tls_certificate_error"), "{name}");
        let tls = Tls { insecure: true, ..tls };
        let stage = setting(address, true, tls, Protocol::Auto).start().await;
        assert_eq!(stage.get("/").await.text(), "HTTP/1.1 app.internal -");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_one_is_asked_for() {
    let authority = Authority::new();
    let (address, _) = telling(Some(authority.server("app.internal", &["http/1.1"], true)), false).await;
    let nobody = setting(address, true, trusting(&authority.roots()), Protocol::Auto).start().await;
    assert_eq!(nobody.get("/").await.status, 502);
    let identity = Some(authority.identity("forebay.internal"));
    let tls = Tls { client_identity: identity, ..trusting(&authority.roots()) };
    let known = setting(address, true, tls, Protocol::Auto).start().await;
    assert_eq!(known.get("/").await.text(), "HTTP/1.1 app.internal -");
}

#[tokio::test]
async fn a_tls_handshake_that_stalls_is_a_504() {
    let address = raw_origin(|_, stream| async move {
        let _stream = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let authority = Authority::new();
    let mut setting = setting(address, true, trusting(&authority.roots()), Protocol::Auto);
    setting.upstream.connect_timeout = Duration::from_millis(100);
    setting.upstream.retries = 0;
    let stage = setting.start().await;
    let answer = stage.get("/").await;
    assert_eq!((answer.status, answer.header("proxy-status")), (504, "forebay; error=connection_timeout"));
}

#[tokio::test]
async fn a_plain_answer_to_a_tls_handshake_is_a_502() {
    let address = raw_origin(|_, mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    })
    .await;
    let authority = Authority::new();
    let stage = setting(address, true, trusting(&authority.roots()), Protocol::Auto).start().await;
    let answer = stage.get("/").await;
    assert_eq!((answer.status, answer.header("proxy-status")), (502, "forebay; error=tls_protocol_error"));
}

#[tokio::test(start_paused = true)]
async fn http2_with_prior_knowledge_is_one_connection_for_all() {
    let (address, connections) = telling(None, true).await;
    let stage = setting(address, false, Tls::default(), Protocol::Http2).start().await;
    let clients: Vec<_> = (0..50).map(|number| stage.spawn_get(&format!("/{number}"), &[])).collect();
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "HTTP/2.0  http");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn connections_are_kept_up_to_a_number_and_for_a_time() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    let gate = Gate::shut();
    let opened = gate.clone();
    let address = raw_origin(move |_, mut stream| {
        counter.fetch_add(1, Ordering::SeqCst);
        let gate = opened.clone();
        async move {
            while !read_head(&mut stream).await.is_empty() {
                gate.passed().await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let mut setting = Setting::before(address);
    setting.upstream.idle_connections_max = 3;
    setting.upstream.idle_timeout = Duration::from_secs(20);
    let stage = setting.start().await;
    let burst = async || {
        let clients: Vec<_> = (0..8).map(|number| stage.spawn_get(&format!("/{number}"), &[])).collect();
        stage.until(|telemetry| telemetry.flights() == 8).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        gate.open();
        for client in clients {
            assert_eq!(client.await.unwrap().text(), "ok");
        }
    };
    burst().await;
    assert_eq!(connections.load(Ordering::SeqCst), 8);
    for number in 0..20 {
        assert_eq!(stage.get(&format!("/{number}")).await.text(), "ok");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 8, "one of three is enough");
    tokio::time::sleep(Duration::from_secs(21)).await;
    assert_eq!(stage.get("/").await.text(), "ok");
    assert_eq!(connections.load(Ordering::SeqCst), 9, "after so long it is not trusted");
}

/// How many of a hundred requests each of three origins gets, of which the first is slow.
async fn shares(balance: Balance) -> [usize; 3] {
    let gate = Gate::shut();
    let mut origins = Vec::new();
    for number in 0..3 {
        let answer = |_, _: &_| page(200, &[("cache-control", "no-store")], "ok");
        origins.push(Origin::holding(&gate, move |_, _| number == 0, answer).await);
    }
    let mut setting = Setting::before(origins[0].address);
    setting.upstream.origins = origins
        .iter()
        .map(|origin| upstream::Origin {
            https: false,
            host: "127.0.0.1".into(),
            port: origin.address.port(),
        })
        .collect();
    setting.upstream.balance = balance;
    setting.upstream.head_timeout = Duration::from_secs(600);
    let stage = setting.start().await;
    let mut clients = Vec::new();
    for number in 0..100 {
        let target = if balance == Balance::ConsistentHash { "/same".into() } else { format!("/{number}") };
        clients.push(stage.spawn_get(&target, &[("authorization", "Basic YTpi")]));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().text(), "ok");
    }
    [0, 1, 2].map(|index: usize| origins[index].requests())
}

#[tokio::test(start_paused = true)]
async fn each_balance_chooses_as_it_should() {
    let mut even = shares(Balance::RoundRobin).await;
    even.sort_unstable();
    assert_eq!(even, [33, 33, 34]);
    let [slow, one, other] = shares(Balance::LeastRequests).await;
    assert!(slow <= 20 && one >= 20 && other >= 20, "the slow one is spared: {slow} {one} {other}");
    let mut same = shares(Balance::ConsistentHash).await;
    same.sort_unstable();
    assert_eq!(same, [0, 0, 100]);
}
