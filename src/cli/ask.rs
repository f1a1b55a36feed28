//! One question to the admin port of a running forebay.

use crate::config;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

/// The most that is read of an answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What the admin port answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Where the admin port is: at the flag's address, else where the configuration says.
pub(super) fn address(
    flag: Option<SocketAddr>,
    file: Option<&Path>,
    environment: &[(String, String)],
) -> Result<SocketAddr, config::Error> {
    let configured =
        || config::load_admin_address(super::file(file, environment).as_deref(), environment.iter().cloned());
    flag.map_or_else(configured, Ok).map(reachable)
}

/// Gets a path of the admin port; `None` if what comes is no answer of HTTP. The timeout is for each step of it.
pub(super) fn ask(address: SocketAddr, path: &str, timeout: Duration) -> io::Result<Option<Answer>> {
    // A time-out of zero would be an error.
    let timeout = timeout.max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    // HTTP/1.0 has no chunks: the body is what comes until the connection is closed.
    let request = format!("GET {path} HTTP/1.0\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(read(&bytes))
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

fn read(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, body) = bytes.split_at_checked(end + 4)?;
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\r').next()?).ok()?;
    let status = line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    Some(Answer { status, body: body.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_are_asked_on_the_loopback() {
        let reached = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:9090"), "127.0.0.1:9090");
        assert_eq!(reached("[::]:9090"), "[::1]:9090");
        assert_eq!(reached("10.0.0.1:9090"), "10.0.0.1:9090");
    }

    #[test]
    fn an_answer_is_a_status_and_a_body() {
        let answer = |status, body: &str| Some(Answer { status, body: body.into() });
        assert_eq!(read(b"HTTP/1.1 200 OK\r\na: b\r\n\r\nx\r\n\r\ny"), answer(200, "x\r\n\r\ny"));
        assert_eq!(read(b"HTTP/1.0 503 \r\n\r\n"), answer(503, ""));
        for nonsense in ["", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 2", "HTTP/1.1 200 OK\r\n"] {
            assert_eq!(read(nonsense.as_bytes()), None, "{nonsense:?}");
        }
    }
}
