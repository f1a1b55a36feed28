//! The built program as a process of its own: what it prints, how it ends, and what it needs.
//!
//! Each wait has a deadline, and none is a pause: a test waits for a line, a byte, the end of a connection, or the
//! end of the process.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests may fail as tests do")]
#![allow(missing_docs, reason = "the names of tests are sentences")]

#[path = "process/reload.rs"]
mod reload;

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// How long anything may take before its test has failed.
const DEADLINE: Duration = Duration::from_secs(30);

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
            ("FOREBAY__UPSTREAM__0__BREAKER__OPEN_TIME", "100ms"),
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
    assert_eq!(refused.field("retry-after"), "1");
    is_well.store(true, Ordering::SeqCst);
    while client.get("/").body != "well" {}
    let told = forebay.told_until("TERM");
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
    drop((crowd, last));
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

/// Runs the program to its end, with this environment and nothing of ours.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
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

fn spawn(arguments: &[&str], variables: &[(&str, &str)]) -> Child {
    let ours = std::env::vars_os().map(|(name, _)| name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    for name in ours.filter(|name| name.to_string_lossy().starts_with("FOREBAY")) {
        command.env_remove(name);
    }
    command.args(arguments).envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn kill(pid: u32, signal: &str) {
    let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status().unwrap();
    assert!(status.success(), "kill -{signal} {pid}");
}

/// The running program. Dropped before its end, it is killed.
struct Forebay {
    data: SocketAddr,
    admin: SocketAddr,
    pid: u32,
    out: Receiver<String>,
    /// Its exit code and what it wrote to standard error, once it has ended.
    ended: Receiver<(Option<i32>, String)>,
    is_ended: std::cell::Cell<bool>,
    /// Holds its configuration for as long as it runs.
    directory: Option<tempfile::TempDir>,
}

impl Forebay {
    /// Before this origin, with this much more configuration.
    fn before(origin: &Origin, more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("forebay.toml");
        let mut text = more.to_owned();
        write!(text, "[log]\nfilter = \"warn\"\n[[upstream]]\nurl = \"http://{}\"\n", origin.address)
            .unwrap();
        fs::write(&file, text).unwrap();
        let mut forebay = Self::start(&["--config", file.to_str().unwrap()], &[]);
        forebay.directory = Some(directory);
        forebay
    }

    /// On ports that the operating system chooses.
    fn start(flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let ports = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let mut child = spawn(&[&ports[..], flags].concat(), variables);
        let pid = child.id();
        let (out, mut errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (line, lines) = channel();
        thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|text| line.send(text))
        });
        let (sender, ended) = channel();
        thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            let code = child.wait().ok().and_then(|status| status.code());
            sender.send((code, text))
        });
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let is_ended = std::cell::Cell::new(false);
        let mut forebay =
            Self { data: unknown, admin: unknown, pid, out: lines, ended, is_ended, directory: None };
        let greeting = forebay.line_with("listens on");
        let (_, address) = greeting.split_once("listens on http://").unwrap();
        forebay.data = address.split(' ').next().unwrap().parse().unwrap();
        let (_, admin) = greeting.split_once("(admin: http://").unwrap();
        forebay.admin = admin.split(')').next().unwrap().parse().unwrap();
        assert_ne!(forebay.data.port(), 0, "{greeting}");
        forebay
    }

    /// The next line of its output that contains this text.
    fn line_with(&mut self, text: &str) -> String {
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

    fn signal(&self, name: &str) {
        kill(self.pid, name);
    }

    /// Sends a signal and waits for the end.
    fn stopped_by(&self, signal: &str) -> i32 {
        self.signal(signal);
        self.exit_code()
    }

    /// Likewise; beside its exit code what it wrote to standard error is returned.
    fn stopped_with_log(&self, signal: &str) -> (i32, String) {
        self.signal(signal);
        let (code, log) = self.ended.recv_timeout(DEADLINE).expect("it ends within the deadline");
        self.is_ended.set(true);
        (code.expect("no signal killed it"), log)
    }

    #[track_caller]
    fn exit_code(&self) -> i32 {
        let (code, errors) = self.ended.recv_timeout(DEADLINE).expect("it ends within the deadline");
        self.is_ended.set(true);
        code.unwrap_or_else(|| panic!("a signal killed it: {errors}"))
    }

    /// What it wrote to standard error until this signal had stopped it.
    #[track_caller]
    fn told_until(&self, signal: &str) -> String {
        self.signal(signal);
        let (code, errors) = self.ended.recv_timeout(DEADLINE).expect("it ends within the deadline");
        self.is_ended.set(true);
        assert_eq!(code, Some(0), "{errors}");
        errors
    }

    fn is_running(&self) -> bool {
        fs::metadata(format!("/proc/{}", self.pid)).is_ok() && !self.is_ended.get()
    }

    /// Waits until the port is closed.
    #[track_caller]
    fn until_refused(&self) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while TcpStream::connect(self.data).is_ok() {
            assert!(tokio::time::Instant::now() < deadline, "it still accepts connections");
            thread::yield_now();
        }
    }

    /// The most memory it ever had.
    fn peak_memory_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
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

/// An upstream that answers each request on a connection as it is told.
struct Origin {
    address: SocketAddr,
}

impl Origin {
    fn start(script: impl Fn(&mut Exchange) + Send + Clone + 'static) -> Self {
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
    fn start_gated(arrived: Sender<()>, gate: Receiver<()>) -> Self {
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
struct Exchange<'a> {
    stream: &'a mut BufReader<TcpStream>,
    head: String,
}

impl Exchange<'_> {
    fn answer(&mut self, body: &str) {
        let length = body.len();
        let head =
            format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: {length}\r\n\r\n");
        let _ = self.stream.get_mut().write_all(format!("{head}{body}").as_bytes());
    }

    fn fail(&mut self) {
        let head = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
        let _ = self.stream.get_mut().write_all(head.as_bytes());
    }

    /// Reads the request's body and says how long it was.
    fn read_body(&mut self) -> u64 {
        let length = field(&self.head, "content-length").parse().unwrap();
        let mut body = self.stream.take(length);
        std::io::copy(&mut body, &mut std::io::sink()).unwrap()
    }
}

/// One client connection.
struct Client {
    stream: BufReader<TcpStream>,
}

/// An answer with a body of known length.
struct Answer {
    head: String,
    body: String,
}

impl Answer {
    fn field(&self, name: &str) -> &str {
        field(&self.head, name)
    }
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self { stream: BufReader::with_capacity(64 << 10, stream) }
    }

    fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn get(&mut self, target: &str) -> Answer {
        self.send(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        self.answer()
    }

    #[track_caller]
    fn head(&mut self) -> String {
        read_head(&mut self.stream).expect("an answer")
    }

    #[track_caller]
    fn answer(&mut self) -> Answer {
        let head = self.head();
        let length: usize = field(&head, "content-length").parse().expect("a length");
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        Answer { head, body: String::from_utf8(body).unwrap() }
    }

    /// Waits for the other side to close the connection.
    fn is_ended(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// A head with its empty line; `None` at the end of the connection.
fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

/// A field's value, or nothing.
fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut values =
        fields.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim());
    values.next().unwrap_or_default()
}
