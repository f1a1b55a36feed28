//! Sockets that are passed on: from a service manager, and from one process to the next.

use crate::support::*;
use command_fds::{CommandFdExt, FdMapping};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};

/// A service manager that passes these listeners, as systemd does.
fn activated(sockets: &[(&str, &TcpListener)]) -> (Command, String) {
    let mut command = Command::new("sh");
    // The process id is not known before there is a process.
    command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_forebay")]);
    let mappings = (3..)
        .zip(sockets)
        .map(|(child_fd, (_, listener))| FdMapping {
            parent_fd: listener.try_clone().unwrap().into(),
            child_fd,
        })
        .collect();
    command.env("LISTEN_FDS", sockets.len().to_string()).fd_mappings(mappings).unwrap();
    (command, sockets.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(":"))
}

/// Clients that ask on a new connection each time, without a pause, and remember each failure.
struct Crowd {
    is_over: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Crowd {
    fn before(data: SocketAddr, admin: SocketAddr) -> Self {
        let (is_over, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let asked = [(data, "/"), (data, "/"), (data, "/"), (admin, "/readyz")];
        let clients = asked
            .into_iter()
            .map(|(address, target)| {
                let (is_over, answers) = (Arc::clone(&is_over), Arc::clone(&answers));
                thread::spawn(move || {
                    let mut failures = Vec::new();
                    while !is_over.load(Ordering::Relaxed) {
                        match ask(address, target) {
                            Ok(answer) if answer.starts_with("HTTP/1.1 200") => {
                                answers.fetch_add(1, Ordering::Relaxed);
                            }
                            Ok(answer) => failures.push(format!("{target}: {answer:?}")),
                            Err(error) => failures.push(format!("{target}: {error}")),
                        }
                    }
                    failures
                })
            })
            .collect();
        Self { is_over, answers, clients }
    }

    /// Waits for this many more answers.
    #[track_caller]
    fn go_on(&self, more: usize) {
        let wanted = self.answers.load(Ordering::Relaxed) + more;
        until(|| self.answers.load(Ordering::Relaxed) >= wanted, || "no answers come".into());
    }

    #[track_caller]
    fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        let failures: Vec<_> = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        assert!(failures.is_empty(), "{} failures: {:?}", failures.len(), &failures[..failures.len().min(5)]);
    }
}

fn ask(address: SocketAddr, target: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(
        format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A service manager that is told how far the program is.
struct Manager(tempfile::TempDir, UnixDatagram);

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(directory, socket)
    }

    fn path(&self) -> String {
        self.0.path().join("notify").to_str().unwrap().to_owned()
    }

    #[track_caller]
    fn told(&self) -> String {
        let mut text = [0; 128];
        let length = self.1.recv(&mut text).expect("the service manager is told");
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    /// The process that serves in place of the one before.
    #[track_caller]
    fn told_of_successor(&self) -> u32 {
        let told = self.told();
        told.strip_prefix("MAINPID=")
            .and_then(|rest| rest.strip_suffix("\nREADY=1"))
            .unwrap()
            .parse()
            .unwrap()
    }
}

/// A process that is not our child: ended by the test, or with it.
struct Stranger(u32);

impl Stranger {
    fn ends_by(self, signal: &str) {
        kill(self.0, signal);
        // Where nobody waits for it, it stays in the table as a zombie.
        let has_ended = || {
            fs::read_to_string(format!("/proc/{}/stat", self.0))
                .map_or(true, |line| line.rsplit(')').next().unwrap().starts_with(" Z"))
        };
        until(has_ended, || "it is still running".into());
        std::mem::forget(self);
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", &self.0.to_string()]).status();
    }
}

#[test]
fn sockets_of_a_service_manager_take_the_place_of_configured_addresses() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let (_directory, file) = configured(&origin, "");
    let sockets: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let address = |index: usize| sockets[index].local_addr().unwrap();
    let (command, names) = activated(&[("data", &sockets[0]), ("admin", &sockets[1]), ("data", &sockets[2])]);
    let forebay = Forebay::start_as(command, &["--config", &file], &[("LISTEN_FDNAMES", &names)]);
    assert_eq!((forebay.data, forebay.admin), (address(0), address(1)));
    for data in [address(0), address(2)] {
        assert_eq!(Client::connect(data).get("/").body, "hello");
    }
    assert!(Client::connect(address(1)).get("/readyz").head.starts_with("HTTP/1.1 200"));
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

#[test]
fn a_socket_without_a_name_that_says_what_it_is_for_is_an_error() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut command, names) = activated(&[("forebay.socket", &socket)]);
    let output = command.arg("serve").env("LISTEN_FDNAMES", names).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("\"forebay.socket\"") && told.contains("FileDescriptorName="), "{told}");
}

#[test]
fn what_is_passed_and_is_no_listening_socket_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = fs::File::create(directory.path().join("file")).unwrap();
    for (parent_fd, what) in
        [(OwnedFd::from(client), "a connection"), (datagrams.into(), "datagrams"), (file.into(), "a file")]
    {
        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_forebay"), "serve"]);
        command.envs([("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "data")]);
        let output =
            command.fd_mappings(vec![FdMapping { parent_fd, child_fd: 3 }]).unwrap().output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(69), "{what}: {told}");
        assert!(told.contains("\"data\" is no listening TCP socket"), "{what}: {told}");
    }
}

#[test]
fn sockets_that_were_passed_to_another_process_are_left_alone() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let (_directory, file) = configured(&origin, "");
    let variables: [&[(&str, &str)]; 4] = [
        &[("LISTEN_FDS", "2"), ("LISTEN_PID", "1")],
        &[("LISTEN_FDS", "0")],
        &[("LISTEN_FDS", "many")],
        &[("LISTEN_FDNAMES", "data")],
    ];
    for variables in variables {
        let forebay = Forebay::start(&["--config", &file], variables);
        assert_eq!(Client::connect(forebay.data).get("/").body, "hello", "{variables:?}");
        assert_eq!(forebay.stopped_by("TERM"), 0);
    }
}

#[test]
fn a_restart_on_sockets_of_a_service_manager_refuses_nobody() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let (_directory, file) = configured(&origin, "");
    let sockets = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    let passed = [("data", &sockets[0]), ("admin", &sockets[1])];
    let start = || {
        let (command, names) = activated(&passed);
        Forebay::start_as(command, &["--config", &file], &[("LISTEN_FDNAMES", &names)])
    };
    let mut forebay = start();
    // The admin port says when it drains, which is right; so only clients are asked here.
    let crowd = Crowd::before(forebay.data, forebay.data);
    for _ in 0..3 {
        crowd.go_on(200);
        assert_eq!(forebay.stopped_by("TERM"), 0);
        forebay = start();
    }
    crowd.go_on(200);
    crowd.end();
    assert_eq!(forebay.stopped_by("TERM"), 0);
}

#[test]
fn an_upgrade_refuses_nobody_and_lets_what_is_in_flight_finish() {
    let (arrived, has_arrived) = channel();
    let (open, gate) = channel();
    let gate = Arc::new(std::sync::Mutex::new(gate));
    let origin = Origin::start(move |exchange| {
        if exchange.head.starts_with("GET /slow ") {
            let _ = arrived.send(());
            let _ = gate.lock().unwrap().recv_timeout(DEADLINE);
        }
        exchange.answer("hello");
    });
    let (_directory, file) = configured(&origin, "");
    let manager = Manager::new();
    let forebay = Forebay::start(&["--config", &file], &[("NOTIFY_SOCKET", &manager.path())]);
    assert_eq!(manager.told(), "READY=1");
    let crowd = Crowd::before(forebay.data, forebay.admin);
    crowd.go_on(200);
    let mut idle = Client::connect(forebay.data);
    assert_eq!(idle.get("/").body, "hello");
    let mut busy = Client::connect(forebay.data);
    busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    has_arrived.recv_timeout(DEADLINE).unwrap();

    forebay.signal("USR2");
    let successor = Stranger(manager.told_of_successor());
    assert!(idle.is_ended(), "the connections of the old process end when they are idle");
    crowd.go_on(200);
    assert!(forebay.is_running(), "a request is in flight");
    open.send(()).unwrap();
    let answer = busy.answer();
    assert_eq!((answer.body.as_str(), answer.field("connection")), ("hello", "close"));
    assert_eq!(forebay.exit_code(), 0);
    crowd.go_on(200);

    kill(successor.0, "USR2");
    let next = Stranger(manager.told_of_successor());
    crowd.go_on(200);
    crowd.end();
    assert_eq!(Client::connect(forebay.data).get("/").body, "hello");
    next.ends_by("TERM");
    assert_eq!(manager.told(), "STOPPING=1", "and nobody before it said so");
    forebay.until_refused();
}

#[test]
fn an_upgrade_that_fails_leaves_the_old_process_serving() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let (_directory, file) = configured(&origin, "");
    let manager = Manager::new();
    let mut forebay = Forebay::start(&["--config", &file], &[("NOTIFY_SOCKET", &manager.path())]);
    assert_eq!(manager.told(), "READY=1");
    let right = fs::read_to_string(&file).unwrap();
    fs::write(&file, "[server]\nno_such_key = 1\n").unwrap();
    forebay.signal("USR2");
    let said = forebay.until_said("no new process serves");
    assert!(said.contains("exit status: 64"), "{said}");
    assert_eq!(Client::connect(forebay.data).get("/").body, "hello");

    // The second attempt has what it needs.
    fs::write(&file, right).unwrap();
    forebay.signal("USR2");
    let successor = Stranger(manager.told_of_successor());
    let greeting = forebay.line_with("listens on");
    assert!(greeting.contains(&forebay.data.to_string()), "{greeting}");
    assert_eq!(forebay.exit_code(), 0);
    assert_eq!(Client::connect(forebay.data).get("/").body, "hello");
    let mut client = Client::connect(forebay.admin);
    let metrics = client.get("/metrics").body;
    assert!(
        metrics.contains("forebay_store_entries 1"),
        "the store of the new process began empty: {metrics}"
    );
    successor.ends_by("TERM");
}

/// A program that says who it is in a file beside its own, and never that it serves.
const MUTE: &str = "#!/bin/sh\necho \"$$ $LISTEN_FDS $LISTEN_FDNAMES $*\" >\"$0.told\"\nexec sleep 1000\n";

/// Copies a program. Another process does it: whoever is forked here meanwhile would hold the copy open for writing, and it could not
/// be started.
fn install(from: &Path, to: &Path) {
    assert!(Command::new("install").args(["-m", "755"]).args([from, to]).status().unwrap().success());
}

/// Puts this script where the program is. Whoever runs the old file goes on.
fn replace_program(program: &Path, script: &str) {
    let (source, next) = (program.with_extension("source"), program.with_extension("next"));
    fs::write(&source, script).unwrap();
    install(&source, &next);
    fs::rename(&next, program).unwrap();
}

/// What the mute program said.
fn told_by_mute(program: &Path) -> String {
    let told = || fs::read_to_string(program.with_extension("told")).unwrap_or_default();
    until(|| told().ends_with('\n'), || "nothing is started".into());
    told()
}

#[test]
fn an_upgrade_starts_the_file_that_has_the_name_by_then_and_a_stop_in_between_ends_both() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let (directory, file) = configured(&origin, "");
    let program = directory.path().join("program");
    install(Path::new(env!("CARGO_BIN_EXE_forebay")), &program);
    let forebay = Forebay::start_as(Command::new(&program), &["--config", &file], &[]);
    replace_program(&program, MUTE);
    forebay.signal("USR2");
    let told = told_by_mute(&program);
    let (pid, rest) = told.split_once(' ').unwrap();
    assert!(rest.starts_with("3 server.listen:admin.listen:ready serve --listen 127.0.0.1:0 "), "{told}");
    assert!(rest.trim_end().ends_with(&format!("--config {file}")), "{told}");
    assert_eq!(Client::connect(forebay.data).get("/").body, "hello");
    assert_eq!(forebay.stopped_by("TERM"), 0);
    assert!(fs::metadata(format!("/proc/{pid}")).is_err(), "what was started is ended");
    forebay.until_refused();
}

#[test]
fn a_successor_that_never_says_that_it_serves_is_ended_and_the_old_process_goes_on() {
    let origin = Origin::start(|exchange| exchange.answer("hello"));
    let (directory, file) = configured(&origin, "[server]\nupgrade_timeout = \"3s\"\n");
    let program = directory.path().join("program");
    install(Path::new(env!("CARGO_BIN_EXE_forebay")), &program);
    let forebay = Forebay::start_as(Command::new(&program), &["--config", &file], &[]);
    for attempt in 1..=2 {
        replace_program(&program, MUTE);
        forebay.signal("USR2");
        let told = told_by_mute(&program);
        let gave_up = "the new process did not serve within 3s";
        let attempts = || forebay.said().matches(gave_up).count();
        until(|| attempts() >= attempt, || forebay.said());
        let (pid, _) = told.split_once(' ').unwrap();
        assert!(fs::metadata(format!("/proc/{pid}")).is_err(), "what was started is ended");
        fs::remove_file(program.with_extension("told")).unwrap();
        assert_eq!(Client::connect(forebay.data).get("/").body, "hello");
        assert!(Client::connect(forebay.admin).get("/readyz").head.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(forebay.stopped_by("TERM"), 0);
}
