//! The PROXY protocol, versions 1 and 2: a load balancer tells, before all else, whose connection it passes on.
//!
//! Not a byte behind the header is read: what follows belongs to TLS or HTTP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line of version 1, its CRLF included.
const LINE_BYTES: usize = 107;

/// The longest rest of a header of version 2 that is taken: addresses, and what load balancers add to them.
const REST_BYTES: usize = 4096;

/// Whose connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// This client's.
    Client(SocketAddr),
    /// The load balancer's own, or that of somebody whom it does not know.
    Unnamed,
}

/// Why a header cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    /// The connection ended or broke.
    #[error("no complete header of the PROXY protocol came")]
    Io(#[from] io::Error),
    /// It is not a header, or a malformed one.
    #[error("what came is no header of the PROXY protocol")]
    Malformed,
}

/// Reads the header.
pub(super) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Source, HeaderError> {
    let mut start = [0; SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    if start == *SIGNATURE {
        return read_binary(stream).await;
    }
    if !start.starts_with(b"PROXY ") {
        return Err(HeaderError::Malformed);
    }
    let mut line = Vec::with_capacity(LINE_BYTES);
    line.extend_from_slice(&start);
    while !line.ends_with(b"\r\n") {
        if line.len() == LINE_BYTES {
            return Err(HeaderError::Malformed);
        }
        line.push(stream.read_u8().await?);
    }
    let line = std::str::from_utf8(&line).map_err(|_| HeaderError::Malformed)?;
    source_in_line(line.trim_end_matches("\r\n")).ok_or(HeaderError::Malformed)
}

async fn read_binary<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Source, HeaderError> {
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed).await?;
    let [version_and_command, family, high, low] = fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > REST_BYTES {
        return Err(HeaderError::Malformed);
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    match version_and_command {
        0x20 => Ok(Source::Unnamed),
        0x21 => source_in_block(family, &rest).ok_or(HeaderError::Malformed),
        _ => Err(HeaderError::Malformed),
    }
}

/// The source in a line of version 1; `None`: it is malformed.
fn source_in_line(line: &str) -> Option<Source> {
    let mut words = line.split(' ');
    let (_, family) = (words.next()?, words.next()?);
    if family == "UNKNOWN" {
        return Some(Source::Unnamed);
    }
    let (source, destination) = (words.next()?, words.next()?);
    let (source, destination): (IpAddr, IpAddr) = (source.parse().ok()?, destination.parse().ok()?);
    let (source_port, destination_port) = (port(words.next()?)?, port(words.next()?));
    let is_right = destination_port.is_some()
        && words.next().is_none()
        && match family {
            "TCP4" => source.is_ipv4() && destination.is_ipv4(),
            "TCP6" => source.is_ipv6() && destination.is_ipv6(),
            _ => false,
        };
    is_right.then(|| Source::Client(SocketAddr::new(source, source_port)))
}

fn port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_number)
}

/// The source in the address block of version 2; `None`: it is malformed.
fn source_in_block(family: u8, block: &[u8]) -> Option<Source> {
    match family {
        0x11 => {
            let ip: [u8; 4] = block.get(..4)?.try_into().ok()?;
            Some(Source::Client(SocketAddr::new(Ipv4Addr::from(ip).into(), port_at(block, 8)?)))
        }
        0x21 => {
            let ip: [u8; 16] = block.get(..16)?.try_into().ok()?;
            Some(Source::Client(SocketAddr::new(Ipv6Addr::from(ip).into(), port_at(block, 32)?)))
        }
        // Unspecified, datagrams and Unix sockets: no client of a stream over IP.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => Some(Source::Unnamed),
        _ => None,
    }
}

/// The source's port, if the destination's is there, too.
fn port_at(block: &[u8], offset: usize) -> Option<u16> {
    let ports: [u8; 4] = block.get(offset..offset + 4)?.try_into().ok()?;
    Some(u16::from_be_bytes([ports[0], ports[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read, and how many bytes of what follows are left.
    async fn parse(bytes: &[u8]) -> Result<(Option<String>, usize), HeaderError> {
        let mut rest = bytes;
        let source = match read(&mut rest).await? {
            Source::Client(address) => Some(address.to_string()),
            Source::Unnamed => None,
        };
        Ok((source, rest.len()))
    }

    fn binary(version_and_command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[version_and_command, family][..], &length, block].concat()
    }

    #[tokio::test]
    async fn both_versions_tell_the_source_and_leave_the_rest() {
        for (bytes, source) in [
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 80\r\n".to_vec(), Some("192.0.2.1:4000")),
            (b"PROXY TCP6 2001:db8::1 ::1 4000 80\r\n".to_vec(), Some("[2001:db8::1]:4000")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN whatever else\r\n".to_vec(), None),
            (binary(0x21, 0x11, &[192, 0, 2, 1, 192, 0, 2, 2, 0x0f, 0xa0, 0, 80]), Some("192.0.2.1:4000")),
            (
                binary(0x21, 0x11, &[192, 0, 2, 1, 192, 0, 2, 2, 0x0f, 0xa0, 0, 80, 4, 0, 1, 9]),
                Some("192.0.2.1:4000"),
            ),
            (binary(0x20, 0x00, &[]), None),
            (binary(0x21, 0x00, &[1, 2, 3]), None),
        ] {
            let mut whole = bytes.clone();
            whole.extend_from_slice(b"GET /");
            assert_eq!(parse(&whole).await.unwrap(), (source.map(str::to_owned), 5), "{bytes:?}");
            for cut in 0..bytes.len() {
                assert!(parse(&bytes[..cut]).await.is_err(), "{bytes:?} cut at {cut}");
            }
        }
        let mut block = [0; 36];
        (block[15], block[32], block[33]) = (1, 0x0f, 0xa0);
        assert_eq!(parse(&binary(0x21, 0x21, &block)).await.unwrap().0.as_deref(), Some("[::1]:4000"));
    }

    #[tokio::test]
    async fn what_is_malformed_is_refused() {
        for bytes in [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 4000\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 80 x\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1  192.0.2.2 4000 80\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 04000 80\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +4000 80\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 40000000 80\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 4000 80\r\n".to_vec(),
            b"PROXY TCP6 192.0.2.1 192.0.2.2 4000 80\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 192.0.2.2 4000 80\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 80\n\n\n\r\n".to_vec(),
            [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat(),
            binary(0x11, 0x11, &[0; 12]),
            binary(0x22, 0x11, &[0; 12]),
            binary(0x21, 0x11, &[0; 11]),
            binary(0x21, 0x21, &[0; 35]),
            binary(0x21, 0x41, &[0; 36]),
            binary(0x21, 0x11, &[0; 5000]),
        ] {
            assert!(parse(&bytes).await.is_err(), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn no_bytes_make_it_panic() {
        let mut random = fastrand::Rng::with_seed(7);
        let valid = binary(0x21, 0x11, &[192, 0, 2, 1, 192, 0, 2, 2, 0x0f, 0xa0, 0, 80]);
        for _ in 0..20_000 {
            let mut bytes = if random.bool() {
                valid.clone()
            } else {
                b"PROXY TCP6 2001:db8::1 ::1 4000 80\r\n".to_vec()
            };
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            let _ = parse(&bytes).await;
        }
    }
}
