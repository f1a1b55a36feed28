//! `forebay health`: asks `/readyz` of a running forebay, so that a container needs no shell to be watched.

use super::ask::{address, ask};
use super::{Exit, HealthArguments, explained};
use std::io::{self, Write};

/// Says whether the running forebay is ready, and prints the answer.
pub fn health(
    arguments: &HealthArguments,
    environment: &[(String, String)],
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Exit> {
    let address = match address(arguments.admin, arguments.config.as_deref(), environment) {
        Ok(address) => address,
        Err(error) => {
            writeln!(err, "{}", explained(&error))?;
            return Ok(Exit::Usage);
        }
    };
    match ask(address, "/readyz", arguments.timeout) {
        // Another port, or another program, may answer 200 to anything.
        Ok(Some(answer)) if answer.status == 200 && !says_ready(&answer.body) => {
            writeln!(err, "not ready: {address} is no admin port of forebay").map(|()| Exit::Failure)
        }
        Ok(Some(answer)) if answer.status == 200 => writeln!(out, "ready").map(|()| Exit::Success),
        Ok(Some(answer)) => {
            writeln!(err, "not ready: {address} answers {}", answer.status).map(|()| Exit::Failure)
        }
        Ok(None) => writeln!(err, "not ready: {address} does not speak HTTP").map(|()| Exit::Failure),
        Err(error) => writeln!(err, "not ready: {address}: {error}").map(|()| Exit::Failure),
    }
}

fn says_ready(body: &[u8]) -> bool {
    let said = serde_json::from_slice::<serde_json::Value>(body);
    said.is_ok_and(|said| said["status"] == "ready")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{SocketAddr, TcpListener};
    use std::time::Duration;

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
        let (exit, request) = asked("HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{\"status\":\"ready\"}");
        assert_eq!(exit, Exit::Success);
        assert!(request.starts_with("GET /readyz HTTP/1.0\r\n"), "{request}");
    }

    #[test]
    fn another_program_is_not() {
        assert_eq!(asked("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").0, Exit::Failure);
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
        // Bound, and nobody listens.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        assert_eq!(asked_at(socket.local_addr().unwrap().as_socket().unwrap()), Exit::Failure);
    }
}
