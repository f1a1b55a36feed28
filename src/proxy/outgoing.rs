//! A request as the upstream gets it.

use super::receive::Received;
use super::settings::HostHeader;
use crate::policy::forwarding;
use crate::upstream::{Outgoing, Urgency};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use std::net::IpAddr;
use std::sync::Arc;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The request of one client, as it goes upstream for that client alone.
pub(super) fn alone(received: &Received) -> Outgoing {
    let mut headers = Arc::clone(&received.headers);
    forwarding::count_hop(&received.method, &mut headers);
    let mut outgoing = outgoing(received, received.method.clone(), received.target.clone(), headers);
    if let Some(upgrade) = &received.upgrade {
        outgoing.added.push((header::UPGRADE, upgrade.protocol.clone()));
    }
    outgoing
}

/// The request that a shared fetch sends: made of what all who share it have in common, and of the route's rules.
pub(super) fn shared(received: &Received) -> Outgoing {
    let mut headers = Arc::clone(&received.headers);
    forwarding::strip_for_shared_fetch(&mut headers, &received.route().rules);
    let method = if received.buffered.is_some() { received.method.clone() } else { Method::GET };
    outgoing(received, method, received.shared_target.clone(), headers)
}

fn outgoing(
    received: &Received,
    method: Method,
    target: http::uri::PathAndQuery,
    mut headers: Arc<HeaderMap>,
) -> Outgoing {
    let added = told_of_client(received, &mut headers);
    let host = match &received.route().host_header {
        HostHeader::Pass => received.host_header.clone(),
        HostHeader::Upstream => None,
        HostHeader::Fixed(host) => HeaderValue::try_from(host.as_str()).ok(),
    };
    Outgoing {
        method,
        target,
        headers,
        added,
        host,
        upgrade: received.upgrade.is_some(),
        affinity: received.keyed.key.low(),
        urgency: Urgency::Foreground,
        written: None,
    }
}

/// `Via`, `X-Forwarded-*` and `Forwarded`, as configured. What an untrusted client claims of itself is removed.
fn told_of_client(received: &Received, headers: &mut Arc<HeaderMap>) -> Vec<(HeaderName, HeaderValue)> {
    let settings = &received.site.settings.forwarded;
    let address = received.client.address.ip().to_canonical();
    let is_trusted = settings.trusted_proxies.iter().any(|network| network.contains(address));
    if !is_trusted {
        forwarding::remove_claims(headers);
    }
    let mut told = Vec::with_capacity(5);
    if let Some(via) = &received.site.via {
        told.push((header::VIA, via.received_in(received.version)));
    }
    if settings.x_forwarded {
        told.extend(after_earlier(headers, FOR, &text(address), is_trusted));
        if !(is_trusted && headers.contains_key(PROTO)) {
            told.push((PROTO, HeaderValue::from_static(received.client.scheme())));
        }
        if !(is_trusted && headers.contains_key(FORWARDED_HOST)) {
            told.extend(received.host_header.clone().map(|host| (FORWARDED_HOST, host)));
        }
    }
    if settings.forwarded {
        let node = if address.is_ipv6() { format!("\"[{address}]\"") } else { address.to_string() };
        let host = received.host_header.as_ref().and_then(|host| host.to_str().ok());
        let host = host.map(|host| format!(";host=\"{host}\"")).unwrap_or_default();
        let member = format!("for={node}{host};proto={}", received.client.scheme());
        told.extend(after_earlier(headers, header::FORWARDED, &member, is_trusted));
    }
    told
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

/// A list-valued field with this member, after those of a trusted sender.
fn after_earlier(
    headers: &mut Arc<HeaderMap>,
    name: HeaderName,
    member: &str,
    is_trusted: bool,
) -> Option<(HeaderName, HeaderValue)> {
    let mut list = Vec::new();
    if is_trusted && headers.contains_key(&name) {
        for earlier in headers.get_all(&name) {
            list.extend_from_slice(earlier.as_bytes());
            list.extend_from_slice(b", ");
        }
        Arc::make_mut(headers).remove(&name);
    }
    list.extend_from_slice(member.as_bytes());
    Some((name, HeaderValue::try_from(list).ok()?))
}
