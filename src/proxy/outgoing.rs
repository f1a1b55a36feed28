//! A request as the upstream gets it.

use super::plain::PlainGet;
use super::receive::{Client, Received};
use super::settings::{HostHeader, Route};
use super::site::Site;
use crate::policy::{Fields, Rules, forwarding};
use crate::upstream::{Outgoing, Written};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
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

/// The request that goes upstream for one client, or for all who share a fetch by these rules, written out.
pub(super) fn written(
    site: &Site,
    route: usize,
    client: Client,
    (request, target): (&PlainGet<'_>, &str),
    affinity: u64,
    shared_by: Option<&Rules>,
) -> Outgoing {
    let is_trusted = site.trusts(client);
    let host = request.first(&header::HOST).and_then(|host| HeaderValue::from_bytes(host).ok());
    let is_kept = |name: &[u8]| {
        name != b"host"
            && (is_trusted || !forwarding::is_claim(name))
            && !site.tells_anew(name)
            && !shared_by.is_some_and(|rules| forwarding::is_of_one_request(name, rules))
    };
    let mut written = Written::new(&Method::GET, target, ROOM);
    for (name, value) in request.fields() {
        written.push_if(is_kept, name, value);
    }
    tell_of_client(site, client, Version::HTTP_11, host.as_ref(), request, |name, told| match told {
        Told::Value(value) => written.push(name.as_str(), value.as_bytes()),
        Told::Text(text) => written.push(name.as_str(), &text),
    });
    let mut outgoing = Outgoing::new(Method::GET, PathAndQuery::from_static("/"), site.nothing());
    (outgoing.host, outgoing.affinity) = (host_to_name(&site.settings.routes[route], host), affinity);
    outgoing.written = Some(written);
    outgoing
}

/// Room for the fields of most requests.
const ROOM: usize = 768;

fn outgoing(
    received: &Received,
    method: Method,
    target: PathAndQuery,
    mut headers: Arc<HeaderMap>,
) -> Outgoing {
    let Received { site, client, version, host_header, .. } = received;
    if !site.trusts(*client) {
        forwarding::remove_claims(&mut headers);
    }
    let mut told = Vec::with_capacity(5);
    tell_of_client(site, *client, *version, host_header.as_ref(), &*headers, |name, value| match value {
        Told::Value(value) => told.push((name, value.clone())),
        Told::Text(text) => told.extend(HeaderValue::try_from(text).ok().map(|value| (name, value))),
    });
    for name in [FOR, header::FORWARDED] {
        if site.tells_anew(name.as_str().as_bytes()) && headers.contains_key(&name) {
            Arc::make_mut(&mut headers).remove(name);
        }
    }
    let mut outgoing = Outgoing::new(method, target, headers);
    outgoing.added = told;
    outgoing.host = host_to_name(received.route(), host_header.clone());
    (outgoing.upgrade, outgoing.affinity) = (received.upgrade.is_some(), received.keyed.key.low());
    outgoing
}

fn host_to_name(route: &Route, asked_for: Option<HeaderValue>) -> Option<HeaderValue> {
    match &route.host_header {
        HostHeader::Pass => asked_for,
        HostHeader::Upstream => None,
        HostHeader::Fixed(host) => HeaderValue::try_from(host.as_str()).ok(),
    }
}

impl Site {
    /// Whether it believes what this client says of others.
    fn trusts(&self, client: Client) -> bool {
        let address = client.address.ip().to_canonical();
        self.settings.forwarded.trusted_proxies.iter().any(|network| network.contains(address))
    }

    /// Whether what trusted senders say in a field of this name, in lower case, is said again, with what is known here behind it.
    fn tells_anew(&self, name: &[u8]) -> bool {
        let settings = &self.settings.forwarded;
        settings.x_forwarded && name == FOR.as_str().as_bytes() || settings.forwarded && name == b"forwarded"
    }
}

/// What is told in a field.
enum Told<'a> {
    /// In a value that is at hand.
    Value(&'a HeaderValue),
    /// In text that has been made for it.
    Text(Vec<u8>),
}

/// `Via`, `X-Forwarded-*` and `Forwarded`, as configured. Whoever is trusted has told of those before it; what anybody else claims counts
/// for nothing.
fn tell_of_client(
    site: &Site,
    client: Client,
    version: Version,
    host: Option<&HeaderValue>,
    headers: &impl Fields,
    mut tell: impl FnMut(HeaderName, Told<'_>),
) {
    let settings = &site.settings.forwarded;
    let address = client.address.ip().to_canonical();
    let is_trusted = site.trusts(client);
    if let Some(via) = &site.via {
        tell(header::VIA, Told::Value(via.received_in(version)));
    }
    if settings.x_forwarded {
        tell(FOR, Told::Text(after_earlier(headers, &FOR, text(address), is_trusted)));
        if !(is_trusted && headers.has(&PROTO)) {
            tell(PROTO, Told::Value(&HeaderValue::from_static(client.scheme())));
        }
        if let Some(host) = host
            && !(is_trusted && headers.has(&FORWARDED_HOST))
        {
            tell(FORWARDED_HOST, Told::Value(host));
        }
    }
    if settings.forwarded {
        let node = if address.is_ipv6() { format!("\"[{address}]\"") } else { address.to_string() };
        let host = host.and_then(|host| host.to_str().ok());
        let host = host.map(|host| format!(";host=\"{host}\"")).unwrap_or_default();
        let member = format!("for={node}{host};proto={}", client.scheme());
        tell(header::FORWARDED, Told::Text(after_earlier(headers, &header::FORWARDED, member, is_trusted)));
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
        if octet >= 100 {
            text.push(char::from(b'0' + octet / 100));
        }
        if octet >= 10 {
            text.push(char::from(b'0' + octet / 10 % 10));
        }
        text.push(char::from(b'0' + octet % 10));
    }
    text
}

/// What a list-valued field says with this member, after those of a trusted sender.
fn after_earlier(headers: &impl Fields, name: &HeaderName, member: String, is_trusted: bool) -> Vec<u8> {
    if !is_trusted {
        return member.into_bytes();
    }
    let mut list = Vec::new();
    for earlier in headers.lines(name) {
        list.extend_from_slice(earlier);
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(member.as_bytes());
    list
}
