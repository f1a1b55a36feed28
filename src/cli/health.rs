//! `forebay health`: asks `/readyz` of a running forebay, so that a container needs no shell to be watched.

use super::{Exit, HealthArguments, explained, load};
use crate::config::Overrides;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

/// The most that is read of an answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 16 << 10;

/// Says whether the running forebay is ready, and prints the answer.
pub fn health(
    arguments: &HealthArguments,
    environment: &[(String, String)],
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Exit> {
    let address =
        match arguments.admin.map_or_else(|| configured(arguments.config.as_deref(), environment), Ok) {
            Ok(address) => reachable(address),
            Err(error) => {
                writeln!(err, "{}", explained(&error))?;
                return Ok(Exit::Usage);
            }
        };
    match ask(address, arguments.timeout) {
        Ok(Some(200)) => writeln!(out, "ready").map(|()| Exit::Success),
        Ok(Some(status)) => writeln!(err, "not ready: {address} answers {status}").map(|()| Exit::Failure),
        Ok(None) => writeln!(err, "not ready: {address} does not speak HTTP").map(|()| Exit::Failure),
        Err(error) => writeln!(err, "not ready: {address}: {error}").map(|()| Exit::Failure),
    }
}

/// The admin port that the configuration names.
fn configured(
    file: Option<&Path>,
    environment: &[(String, String)],
) -> Result<SocketAddr, crate::config::Error> {
    load(file, environment, &Overrides::default()).map(|config| config.admin.listen)
}

/// Where a listener on all addresses can be asked from inside.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(ip, address.port())
}

/// The status of the answer; `None` if it is no answer of HTTP.
fn ask(address: SocketAddr, timeout: Duration) -> io::Result<Option<u16>> {
    // A time-out of zero would be an error.
    let timeout = timeout.max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.contains(&b'\n') && (head.len() as u64) < ANSWER_BYTES_MAX {
        match stream.read(&mut piece)? {
            0 => break,
            length => head.extend_from_slice(piece.get(..length).unwrap_or_default()),
        }
    }
    Ok(status(&head))
}

fn status(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\r').next()?).ok()?;
    line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Asks a peer that sends this answer.
    fn asked(answer: &'static str) -> (Exit, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request[..length].to_vec()).unwrap()
        });
        let exit = asked_at(address);
        (exit, peer.join().unwrap())
    }

    fn asked_at(address: SocketAddr) -> Exit {
        let arguments =
            HealthArguments { admin: Some(address), config: None, timeout: Duration::from_secs(5) };
        health(&arguments, &[], &mut io::sink(), &mut io::sink()).unwrap()
    }

    #[test]
    fn a_ready_process_is_healthy() {
        let (exit, request) = asked("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(exit, Exit::Success);
        assert!(request.starts_with("GET /readyz HTTP/1.1\r\n"), "{request}");
    }

    #[test]
    fn a_process_that_drains_is_not() {
        assert_eq!(asked("HTTP/1.1 503 Service Unavailable\r\n\r\n").0, Exit::Failure);
    }

    #[test]
    fn a_peer_that_says_nothing_or_nonsense_is_not() {
        assert_eq!(asked("").0, Exit::Failure);
        assert_eq!(asked("SSH-2.0-x\r\n").0, Exit::Failure);
    }

    #[test]
    fn nobody_there_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(asked_at(address), Exit::Failure);
    }

    #[test]
    fn all_addresses_are_asked_on_the_loopback() {
        let reached = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:9090"), "127.0.0.1:9090");
        assert_eq!(reached("[::]:9090"), "[::1]:9090");
        assert_eq!(reached("10.0.0.1:9090"), "10.0.0.1:9090");
    }
}
