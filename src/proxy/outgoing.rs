//! A request as the upstream gets it.

use super::receive::Received;
use super::settings::HostHeader;
use crate::policy::forwarding;
use crate::upstream::{Outgoing, Urgency};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use std::net::IpAddr;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The request of one client, as it goes upstream for that client alone.
pub(super) fn alone(received: &Received) -> Outgoing {
    let mut headers = HeaderMap::clone(&received.headers);
    forwarding::count_hop(&received.method, &mut headers);
    if let Some(upgrade) = &received.upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade.protocol.clone());
    }
    outgoing(received, received.method.clone(), received.target.clone(), headers)
}

/// The request that a shared fetch sends: made of what all who share it have in common, and of the route's rules.
pub(super) fn shared(received: &Received) -> Outgoing {
    let mut headers = HeaderMap::clone(&received.headers);
    forwarding::strip_for_shared_fetch(&mut headers, &received.route().rules);
    let method = if received.buffered.is_some() { received.method.clone() } else { Method::GET };
    outgoing(received, method, received.shared_target.clone(), headers)
}

fn outgoing(
    received: &Received,
    method: Method,
    target: http::uri::PathAndQuery,
    mut headers: HeaderMap,
) -> Outgoing {
    tell_of_client(received, &mut headers);
    let host = match &received.route().host_header {
        HostHeader::Pass => received.host_header.clone(),
        HostHeader::Upstream => None,
        HostHeader::Fixed(host) => HeaderValue::try_from(host.as_str()).ok(),
    };
    Outgoing {
        method,
        target,
        headers,
        host,
        upgrade: received.upgrade.is_some(),
        affinity: received.keyed.key.low(),
        urgency: Urgency::Foreground,
    }
}

/// `Via`, `X-Forwarded-*` and `Forwarded`, as configured. What an untrusted client claims of itself is replaced.
fn tell_of_client(received: &Received, headers: &mut HeaderMap) {
    let settings = &received.site.settings.forwarded;
    let address = received.client.address.ip().to_canonical();
    let is_trusted = settings.trusted_proxies.iter().any(|network| network.contains(address));
    if !is_trusted {
        forwarding::remove_claims(headers);
    }
    if let Some(via) = &received.site.via {
        via.append_to(headers, received.version);
    }
    if settings.x_forwarded {
        extend(headers, &FOR, &text(address), is_trusted);
        if !(is_trusted && headers.contains_key(PROTO)) {
            headers.insert(PROTO, HeaderValue::from_static(received.client.scheme()));
        }
        if !(is_trusted && headers.contains_key(FORWARDED_HOST)) {
            match &received.host_header {
                Some(host) => headers.insert(FORWARDED_HOST, host.clone()),
                None => headers.remove(FORWARDED_HOST),
            };
        }
    } else if !is_trusted {
        for name in [FOR, PROTO, FORWARDED_HOST] {
            headers.remove(name);
        }
    }
    if settings.forwarded {
        let node = if address.is_ipv6() { format!("\"[{address}]\"") } else { address.to_string() };
        let host = received.host_header.as_ref().and_then(|host| host.to_str().ok());
        let host = host.map(|host| format!(";host=\"{host}\"")).unwrap_or_default();
        let member = format!("for={node}{host};proto={}", received.client.scheme());
        extend(headers, &header::FORWARDED, &member, is_trusted);
    } else if !is_trusted {
        headers.remove(header::FORWARDED);
    }
}

/// An address as text: the common kind without the machinery that formats anything.
fn text(address: IpAddr) -> String {
    let IpAddr::V4(address) = address else { return address.to_string() };
    let mut text = String::with_capacity("255.255.255.255".len());
    for (index, octet) in address.octets().into_iter().enumerate() {
        if index > 0 {
            text.push('.');
        }
        text.push_str(itoa::Buffer::new().format(octet));
    }
    text
}

/// Sets a list-valued field to one member, after those of a trusted sender.
fn extend(headers: &mut HeaderMap, name: &HeaderName, member: &str, is_trusted: bool) {
    let mut list = Vec::new();
    if is_trusted {
        for earlier in headers.get_all(name) {
            list.extend_from_slice(earlier.as_bytes());
            list.extend_from_slice(b", ");
        }
    }
    list.extend_from_slice(member.as_bytes());
    if let Ok(value) = HeaderValue::try_from(list) {
        headers.insert(name, value);
    }
}
