//! Which host a request is for.

use super::receive::{Client, Rejection};
use crate::policy::Fields;
use http::{HeaderMap, HeaderValue, Uri, header};
use std::borrow::Cow;
use std::net::Ipv6Addr;

/// The host that is asked for: from the target where it names one (RFC 9112 §3.2.2), else from `Host`, of which there
/// may be one. A `Host` that contradicts the target is refused. `None`: neither names one.
pub(super) fn asked_for(
    uri: &Uri,
    headers: &HeaderMap,
    client: Client,
) -> Result<Option<(String, HeaderValue)>, Rejection> {
    let mut fields = headers.get_all(header::HOST).iter();
    let (field, None) = (fields.next(), fields.next()) else { return Err(Rejection::Host) };
    let value = match (uri.authority(), field) {
        (Some(authority), field) => {
            if field
                .is_some_and(|field| !field.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()))
            {
                return Err(Rejection::Host);
            }
            HeaderValue::try_from(authority.as_str()).map_err(|_| Rejection::Host)?
        }
        (None, Some(field)) => field.clone(),
        (None, None) => return Ok(None),
    };
    let host = normal(value.as_bytes(), client).map(Cow::into_owned);
    host.map(|host| Some((host, value))).ok_or(Rejection::Host)
}

/// The host that a request asks for whose target names none.
pub(super) fn named(headers: &impl Fields, client: Client) -> Result<Cow<'_, str>, Rejection> {
    let mut lines = headers.lines(&header::HOST);
    let (Some(host), None) = (lines.next(), lines.next()) else { return Err(Rejection::Host) };
    normal(host, client).ok_or(Rejection::Host)
}

/// The host in lower case, without the default port; `None` where it is none.
fn normal(value: &[u8], client: Client) -> Option<Cow<'_, str>> {
    // What is not text has bytes that no host has.
    let text = std::str::from_utf8(value).ok()?;
    // Mostly it is a name that is normal as it is.
    let is_normal = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    if !text.is_empty() && value.iter().all(is_normal) {
        return Some(text.into());
    }
    if !is_host(text) {
        return None;
    }
    let default_port = if client.is_tls { ":443" } else { ":80" };
    let host = text.strip_suffix(default_port).unwrap_or(text);
    let is_lower = !host.bytes().any(|byte| byte.is_ascii_uppercase());
    Some(if is_lower { host.into() } else { host.to_ascii_lowercase().into() })
}

fn is_port(port: &str) -> bool {
    port.is_empty() || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

/// RFC 3986 §3.2.2: a name, an IPv4 address or an IPv6 address in brackets, and maybe a port; no user information. Of a name
/// the delimiters are refused that the grammar would permit: no host has them, and some readers split at them.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) if address.parse::<Ipv6Addr>().is_ok() => {
                (address, rest.strip_prefix(':').or(rest.is_empty().then_some("")))
            }
            Some(_) | None => return false,
        },
        None => match memchr::memchr(b':', text.as_bytes()) {
            Some(colon) => (&text[..colon], Some(&text[colon + 1..])),
            None => (text, Some("")),
        },
    };
    !host.is_empty() && (text.starts_with('[') || is_name(host)) && port.is_some_and(is_port)
}

fn is_name(host: &str) -> bool {
    let mut bytes = host.bytes();
    while let Some(byte) = bytes.next() {
        let mut is_encoded = || (0..2).all(|_| bytes.next().is_some_and(|byte| byte.is_ascii_hexdigit()));
        let is_plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if !(is_plain || byte == b'%' && is_encoded()) {
            return false;
        }
    }
    true
}

/// A host as routes and purges name it.
pub(super) fn without_port(host: &str) -> &str {
    match host.bytes().rposition(|byte| byte == b':') {
        Some(colon) if host[colon + 1..].bytes().all(|byte| byte.is_ascii_digit()) => &host[..colon],
        Some(_) | None => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

    const CLIENT: Client =
        Client { address: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1)), is_tls: false };

    #[track_caller]
    fn check(value: &str, expected: Option<&str>) {
        assert_eq!(normal(value.as_bytes(), CLIENT).as_deref(), expected, "{value:?}");
    }

    #[test]
    fn a_host_is_lower_case_and_has_no_default_port() {
        check("a.example", Some("a.example"));
        check("A.Example:80", Some("a.example"));
        check("a.example:8080", Some("a.example:8080"));
        check("a.example:", Some("a.example:"));
        check("a%2Db_c~d", Some("a%2db_c~d"));
        check("127.0.0.1:80", Some("127.0.0.1"));
        check("[::FFFF:1.2.3.4]:80", Some("[::ffff:1.2.3.4]"));
        check("[::1]", Some("[::1]"));
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for value in [
            "", ":80", "a b", "a:80:80", "a:65536", "a:+1", "user@a", "a/b", "a,b", "a%2", "a%zz", "[::1",
            "[a]", "[::1]x", "ä", "a#b", "a?b", "a\\b",
        ] {
            check(value, None);
        }
        assert_eq!(normal(b"a\xff", CLIENT), None);
    }
}
