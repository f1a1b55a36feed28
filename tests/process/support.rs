//! The built program, its upstreams and its clients.
//!
//! Each wait has a deadline, and none is a pause: a test waits for a line, a byte, the end of a connection, or the
//! end of the process.

#![allow(dead_code, reason = "each test binary uses its own part of it")]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How long anything may take before its test has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The line that stands behind all that a program that has ended wrote to standard error.
const THE_END: &str = "\0the end";

/// Runs the program to its end, with this environment and nothing of ours.
pub fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let child = spawn(arguments, variables);
    let pid = child.id();
    let (sender, receiver) = channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(DEADLINE) else {
        kill(pid, "KILL");
        panic!("it is still running: {arguments:?}");
    };
    output.unwrap()
}

pub fn spawn(arguments: &[&str], variables: &[(&str, &str)]) -> Child {
    piped(Command::new(env!("CARGO_BIN_EXE_forebay")), arguments, variables, Stdio::piped())
}

/// Runs a command that is, or becomes, the program, with this environment and nothing of ours.
fn piped(mut command: Command, arguments: &[&str], variables: &[(&str, &str)], errors: Stdio) -> Child {
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours.filter(|name| name.to_string_lossy().starts_with("FOREBAY")) {
        command.env_remove(name);
    }
    command.args(arguments).envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).spawn().unwrap()
}

/// Waits until it is so, which by the deadline it must be.
#[track_caller]
pub fn until(mut is_met: impl FnMut() -> bool, complaint: impl Fn() -> String) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !is_met() {
        assert!(tokio::time::Instant::now() < deadline, "{}", complaint());
        // Not so often that the program is kept from it.
        thread::park_timeout(Duration::from_millis(1));
    }
}

/// Says so when it is dropped, be it by a failure: whoever goes on until then does not go on for ever.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

pub fn kill(pid: u32, signal: &str) {
    let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status().unwrap();
    assert!(status.success(), "kill -{signal} {pid}");
}

/// The running program. Dropped before its end, it is killed.
pub struct Forebay {
    pub data: SocketAddr,
    pub admin: SocketAddr,
    pub pid: u32,
    out: Receiver<String>,
    /// Its exit code and what it wrote to standard error, once it has ended.
    ended: Receiver<(Option<i32>, String)>,
    is_ended: std::cell::Cell<bool>,
    /// What it has written to standard error so far.
    said: Arc<Mutex<String>>,
    /// Holds its configuration for as long as it runs.
    directory: Option<tempfile::TempDir>,
}

impl Forebay {
    /// Before this origin, with this much more configuration.
    pub fn before(origin: &Origin, more: &str) -> Self {
        let (directory, file) = configured(origin, more);
        let mut forebay = Self::start(&["--config", &file], &[]);
        forebay.directory = Some(directory);
        forebay
    }

    /// On ports that the operating system chooses.
    pub fn start(flags: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::start_as(Command::new(env!("CARGO_BIN_EXE_forebay")), flags, variables)
    }

    /// As another command starts it.
    pub fn start_as(command: Command, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let ports = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        // A successor writes to the same pipe, so that its end is not the end of the process: a line of ours is.
        let (errors, mut ours) = std::io::pipe().unwrap();
        let theirs = ours.try_clone().unwrap();
        let mut child = piped(command, &[&ports[..], flags].concat(), variables, theirs.into());
        let pid = child.id();
        let out = child.stdout.take().unwrap();
        let (line, lines) = channel();
        thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|text| line.send(text))
        });
        let said = Arc::new(Mutex::new(String::new()));
        let written = Arc::clone(&said);
        let (all, is_all_read) = channel();
        thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                if line == THE_END {
                    let _ = all.send(());
                    continue;
                }
                let _ = writeln!(written.lock().unwrap(), "{line}");
            }
        });
        let (sender, ended) = channel();
        let text = Arc::clone(&said);
        thread::spawn(move || {
            let code = child.wait().ok().and_then(|status| status.code());
            let _ = writeln!(ours, "{THE_END}");
            let _ = is_all_read.recv();
            sender.send((code, text.lock().unwrap().clone()))
        });
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let is_ended = std::cell::Cell::new(false);
        let mut forebay =
            Self { data: unknown, admin: unknown, pid, out: lines, ended, is_ended, said, directory: None };
        let greeting = forebay.line_with("listens on");
        let address = |before: &str| {
            let (_, url) = greeting.split_once(before).unwrap();
            let (_, address) = url.split_once("://").unwrap();
            address.split([' ', ',', ')']).next().unwrap().parse().unwrap()
        };
        forebay.data = address("listens on ");
        forebay.admin = address("(admin: ");
        assert_ne!(forebay.data.port(), 0, "{greeting}");
        forebay
    }

    /// The next line of its output that contains this text.
    pub fn line_with(&mut self, text: &str) -> String {
        loop {
            match self.out.recv_timeout(DEADLINE) {
                Ok(line) if line.contains(text) => return line,
                Ok(_) => {}
                Err(error) => {
                    panic!("no line with {text:?}: {error} {:?}", self.ended.recv_timeout(DEADLINE))
                }
            }
        }
    }

    /// What it has written to standard error so far.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits until it has written this to standard error, and returns all that it has.
    #[track_caller]
    pub fn until_said(&self, text: &str) -> String {
        until(|| self.said().contains(text), || format!("{text:?} is not in {}", self.said()));
        self.said()
    }

    pub fn signal(&self, name: &str) {
        kill(self.pid, name);
    }

    /// Sends a signal and waits for the end.
    pub fn stopped_by(&self, signal: &str) -> i32 {
        self.signal(signal);
        self.exit_code()
    }

    /// Likewise; beside its exit code what it wrote to standard error is returned.
    pub fn stopped_with_log(&self, signal: &str) -> (i32, String) {
        (self.stopped_by(signal), self.said())
    }

    #[track_caller]
    pub fn exit_code(&self) -> i32 {
        let (code, errors) = self.ended.recv_timeout(DEADLINE).expect("it ends within the deadline");
        self.is_ended.set(true);
        code.unwrap_or_else(|| panic!("a signal killed it: {errors}"))
    }

    pub fn is_running(&self) -> bool {
        fs::metadata(format!("/proc/{}", self.pid)).is_ok() && !self.is_ended.get()
    }

    /// Waits until the port is closed.
    #[track_caller]
    pub fn until_refused(&self) {
        let is_refused = || {
            let refused = TcpStream::connect(self.data).is_err();
            if !refused {
                // Not so often that it is kept from closing by the connections that this makes.
                thread::park_timeout(Duration::from_millis(10));
            }
            refused
        };
        until(is_refused, || "it still accepts connections".into());
    }

    /// The most memory it ever had.
    pub fn peak_memory_bytes(&self) -> u64 {
        self.memory_bytes("VmHWM:")
    }

    /// The memory that it has.
    pub fn resident_bytes(&self) -> u64 {
        self.memory_bytes("VmRSS:")
    }

    /// One number of its metrics; an absent series is zero.
    pub fn metric(&self, series: &str) -> f64 {
        let mut client = Client::connect(self.admin);
        let text = client.get("/metrics").body;
        let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        found.unwrap_or(0.0)
    }

    /// Waits until a number of its metrics is as it should be.
    #[track_caller]
    pub fn until_metric(&self, series: &str, is_met: impl Fn(f64) -> bool) {
        until(|| is_met(self.metric(series)), || format!("{series} stays at {}", self.metric(series)));
    }

    fn memory_bytes(&self, line_name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let kibibytes = status.lines().find_map(|line| line.strip_prefix(line_name)).unwrap();
        kibibytes.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Forebay {
    fn drop(&mut self) {
        // The thread that waits for the process may just have done so, in which case there is nobody to kill.
        if !self.is_ended.get() && matches!(self.ended.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty))
        {
            let _ = Command::new("kill").args(["-KILL", &self.pid.to_string()]).status();
        }
    }
}

/// A configuration file before this origin, with this much more in it, and the directory that it lives in.
pub fn configured(origin: &Origin, more: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("forebay.toml");
    let mut text = more.to_owned();
    write!(text, "[log]\nfilter = \"warn\"\n[[upstream]]\nurl = \"http://{}\"\n", origin.address).unwrap();
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap().to_owned();
    (directory, file)
}

/// An upstream that answers each request on a connection as it is told.
pub struct Origin {
    pub address: SocketAddr,
}

impl Origin {
    pub fn start(script: impl Fn(&mut Exchange) + Send + Clone + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let script = script.clone();
                thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    while let Some(head) = read_head(&mut stream) {
                        script(&mut Exchange { stream: &mut stream, head });
                    }
                });
            }
        });
        Self { address }
    }

    /// Tells of each request's arrival, and answers each after it was told to.
    pub fn start_gated(arrived: Sender<()>, gate: Receiver<()>) -> Self {
        let gate = std::sync::Arc::new(std::sync::Mutex::new(gate));
        Self::start(move |exchange| {
            // Where the test is over, so is the exchange.
            let _ = arrived.send(());
            if gate.lock().unwrap().recv_timeout(2 * DEADLINE) != Err(RecvTimeoutError::Disconnected) {
                exchange.answer("gated");
            }
        })
    }
}

/// One request at the origin.
pub struct Exchange<'a> {
    pub stream: &'a mut BufReader<TcpStream>,
    pub head: String,
}

impl Exchange<'_> {
    pub fn answer(&mut self, body: &str) {
        self.answer_with("Cache-Control: max-age=60\r\n", body);
    }

    /// With these lines in the head.
    pub fn answer_with(&mut self, lines: &str, body: &str) {
        let head = format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: {}\r\n\r\n", body.len());
        let _ = self.stream.get_mut().write_all(format!("{head}{body}").as_bytes());
    }

    /// What is asked about is still so.
    pub fn confirm(&mut self, lines: &str) {
        let head = format!("HTTP/1.1 304 Not Modified\r\n{lines}\r\n");
        let _ = self.stream.get_mut().write_all(head.as_bytes());
    }

    pub fn fail(&mut self) {
        let head = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
        let _ = self.stream.get_mut().write_all(head.as_bytes());
    }

    /// Reads the request's body and says how long it was.
    pub fn read_body(&mut self) -> u64 {
        let length = field(&self.head, "content-length").parse().unwrap();
        let mut body = self.stream.take(length);
        std::io::copy(&mut body, &mut std::io::sink()).unwrap()
    }
}

/// One client connection.
pub struct Client {
    pub stream: BufReader<TcpStream>,
}

/// An answer with a body of known length.
pub struct Answer {
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn field(&self, name: &str) -> &str {
        field(&self.head, name)
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self { stream: BufReader::with_capacity(64 << 10, stream) }
    }

    pub fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    pub fn get(&mut self, target: &str) -> Answer {
        self.send(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        self.answer()
    }

    pub fn post(&mut self, target: &str, json: &str) -> Answer {
        let (kind, length) = ("Content-Type: application/json", json.len());
        self.send(&format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {length}\r\n\r\n{json}"
        ));
        self.answer()
    }

    #[track_caller]
    pub fn head(&mut self) -> String {
        read_head(&mut self.stream).expect("an answer")
    }

    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        let head = self.head();
        let length: usize = field(&head, "content-length").parse().expect("a length");
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        Answer { head, body: String::from_utf8(body).unwrap() }
    }

    /// Waits for the other side to close the connection.
    pub fn is_ended(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// A head with its empty line; `None` at the end of the connection.
pub fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

/// A field's value, or nothing.
pub fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut values =
        fields.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim());
    values.next().unwrap_or_default()
}

/// A certificate of our own, and clients that trust it alone.
pub struct Identity {
    name: String,
    directory: tempfile::TempDir,
    certificate: rustls::pki_types::CertificateDer<'static>,
}

impl Identity {
    pub fn new(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("chain.pem"), made.cert.pem()).unwrap();
        fs::write(directory.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        Self { name: name.to_owned(), directory, certificate: made.cert.der().clone() }
    }

    /// What makes the program speak TLS with it.
    pub fn configuration(&self) -> String {
        let directory = self.directory.path().display();
        format!(
            "[server.tls]\ncertificate_file = \"{directory}/chain.pem\"\nkey_file = \"{directory}/key.pem\"\n"
        )
    }

    /// Writes another certificate in its place, which is valid from one day to another.
    pub fn valid(&self, from: (i32, u8, u8), to: (i32, u8, u8)) {
        let mut params = rcgen::CertificateParams::new([self.name.clone()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        params.not_after = rcgen::date_time_ymd(to.0, to.1, to.2);
        let key = rcgen::KeyPair::generate().unwrap();
        fs::write(self.file("chain.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(self.file("key.pem"), key.serialize_pem()).unwrap();
    }

    /// A file beside the certificate.
    pub fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// Connects as a client that offers these protocols.
    pub async fn connect(
        &self,
        address: SocketAddr,
        protocols: &[&[u8]],
    ) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        self.try_connect(address, protocols).await.unwrap()
    }

    /// Likewise, where it may be refused.
    pub async fn try_connect(
        &self,
        address: SocketAddr,
        protocols: &[&[u8]],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from(self.name.clone()).unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}
