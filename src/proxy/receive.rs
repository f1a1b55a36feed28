//! The first look at a request: is it well-formed, where does it belong, and what is its key?

use super::answer::Answer;
use super::route::without_prefix;
use super::settings::{Route, Unmatched};
use super::site::Site;
use super::tunnel::Upgrade;
use super::{host, path};
use crate::outcome::{Answered, Outcome};
use crate::policy::{self, Asked, Credentials, Identity, Keyed, Keyer};
use crate::store::stamps::Scopes;
use crate::telemetry::RouteMetrics;
use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

/// Who sent a request, as the connection tells.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// The address of the peer.
    pub address: SocketAddr,
    /// Whether it speaks TLS to us.
    pub is_tls: bool,
}

impl Client {
    pub(super) fn scheme(self) -> &'static str {
        if self.is_tls { "https" } else { "http" }
    }
}

/// Put into a request's extensions by whoever read its bytes: why it must be refused.
#[derive(Debug, Clone, Copy)]
pub enum Flaw {
    /// Where it ends is a matter of opinion.
    Ambiguous,
    /// Its head has more fields or bytes than it may have.
    TooLarge,
}

/// A request that is well-formed and has a route.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) site: Arc<Site>,
    pub(super) route: usize,
    pub(super) client: Client,
    pub(super) method: Method,
    pub(super) version: Version,
    /// The end-to-end fields.
    pub(super) headers: Arc<HeaderMap>,
    /// Host in lower case, without the scheme's default port.
    pub(super) host: String,
    /// The `Host` as the client wrote it; `None`: it speaks HTTP/1.0 and named none, and `host` is empty.
    pub(super) host_header: Option<HeaderValue>,
    /// Path and query as they go upstream when this request goes alone.
    pub(super) target: PathAndQuery,
    /// Path and query as they go upstream, and into the key, when the fetch is shared.
    pub(super) shared_target: PathAndQuery,
    pub(super) keyed: Keyed,
    /// Whether it has a condition or a range.
    pub(super) selects: bool,
    /// What tells who sends it.
    pub(super) credentials: Credentials,
    /// When all of it that is part of the key had come.
    pub(super) now: SystemTime,
    pub(super) upgrade: Option<Upgrade>,
    /// Whether the request says that it has a body.
    pub(super) has_body: bool,
    /// The whole body, and its digest, where it is part of the key.
    pub(super) buffered: Option<(Bytes, u128)>,
}

impl Received {
    pub(super) fn route(&self) -> &Route {
        &self.site.settings.routes[self.route]
    }

    pub(super) fn has_range(&self) -> bool {
        self.selects && self.headers.contains_key(header::RANGE)
    }

    /// Where it is counted.
    pub(super) fn counted(&self) -> &Arc<RouteMetrics> {
        self.site.route_counted(Some(self.route))
    }

    pub(super) fn asked(&self) -> Asked<'_> {
        Asked { method: &self.method, headers: &self.headers }
    }

    /// The cache key for people, where the site names it to clients.
    pub(super) fn key_text(&self) -> Option<String> {
        self.site.settings.cache_status_key.then(|| self.key_in_words())
    }

    /// The cache key for people.
    pub(super) fn key_in_words(&self) -> String {
        policy::key::text(&self.identity(), &self.route().key)
    }

    fn identity(&self) -> Identity<'_> {
        Identity {
            route: self.site.route_ids[self.route],
            scheme: self.client.scheme(),
            host: &self.host,
            target: self.shared_target.as_str(),
            method: &self.method,
            headers: &self.headers,
            body_digest: self.buffered.as_ref().map(|(_, digest)| *digest),
        }
    }

    /// Makes the body a part of the key.
    pub(super) fn identify(&mut self, keyer: &Keyer, body: Bytes) {
        let digest = keyer.digest(&body);
        self.buffered = Some((body, digest));
        self.keyed = keyer.key(&self.identity(), &self.route().key);
    }

    /// Path and query as clients name them: with the prefix that the route takes away.
    fn asked_path(&self) -> Cow<'_, str> {
        let (route, target) = (self.route(), self.shared_target.as_str());
        if route.strip_prefix {
            format!("{}{target}", route.prefix.trim_end_matches('/')).into()
        } else {
            target.into()
        }
    }

    /// What an invalidation must name to reach the responses to this request; their tags are not known yet.
    pub(super) fn scopes(&self) -> Scopes<'_> {
        Scopes {
            route: self.site.route_ids[self.route],
            uri: self.keyed.uri,
            host: host::without_port(&self.host).into(),
            target: self.asked_path(),
            tags: Cow::default(),
        }
    }
}

/// What is allowed where CONNECT and TRACE are not: these, and every other method that an upstream may know.
const METHODS: &str = "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE";

/// Why a request is refused at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rejection {
    Host,
    Target,
    Framing,
    Method,
    BodyTooLarge,
    BodyTooSlow,
    TargetTooLong,
    HeadTooLarge,
    Expectation,
    NoRoute,
    Misdirected,
    TransferCoding,
}

impl Rejection {
    pub(super) fn status_and_text(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Host => (
                StatusCode::BAD_REQUEST,
                "400 Bad Request: Host is missing, repeated, malformed, or not that of the target\n",
                "host",
            ),
            Self::Target => (StatusCode::BAD_REQUEST, "400 Bad Request: the target is malformed\n", "target"),
            Self::Framing => {
                (StatusCode::BAD_REQUEST, "400 Bad Request: the request's framing is malformed\n", "framing")
            }
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "405 Method Not Allowed\n", "method"),
            Self::BodyTooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, "413 Content Too Large\n", "body-too-large")
            }
            Self::BodyTooSlow => (
                StatusCode::REQUEST_TIMEOUT,
                "408 Request Timeout: the body came too slowly\n",
                "body-too-slow",
            ),
            Self::TargetTooLong => (StatusCode::URI_TOO_LONG, "414 URI Too Long\n", "target-too-long"),
            Self::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "431 Request Header Fields Too Large\n",
                "head-too-large",
            ),
            Self::Expectation => (StatusCode::EXPECTATION_FAILED, "417 Expectation Failed\n", "expectation"),
            Self::NoRoute => {
                (StatusCode::NOT_FOUND, "404 Not Found: no route for this host and path\n", "no-route")
            }
            Self::Misdirected => (
                StatusCode::MISDIRECTED_REQUEST,
                "421 Misdirected Request: no route for this host\n",
                "no-route",
            ),
            Self::TransferCoding => (
                StatusCode::NOT_IMPLEMENTED,
                "501 Not Implemented: unknown transfer coding\n",
                "transfer-coding",
            ),
        }
    }

    /// Whether what follows on the connection can still be trusted to be a request.
    fn leaves_connection_usable(self) -> bool {
        match self {
            Self::NoRoute | Self::Misdirected => true,
            // After CONNECT there may be anything.
            Self::Method
            | Self::Host
            | Self::Target
            | Self::Framing
            | Self::BodyTooLarge
            | Self::BodyTooSlow
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::Expectation
            | Self::TransferCoding => false,
        }
    }

    /// The answer that refuses the request.
    pub(super) fn answer(self, version: Version) -> Answer {
        let (status, text, detail) = self.status_and_text();
        let mut answer = Answer::plain(status, text, Outcome::of(Answered::Rejected).because(detail));
        if self == Self::Method {
            // RFC 9110 §15.5.6: "MUST generate an Allow header field".
            answer.response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(METHODS));
        }
        if !self.leaves_connection_usable() && version < Version::HTTP_2 {
            answer.response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

/// Takes a request in: what it needs it takes out of its head, which is not handed on as a whole because it is large. A request that
/// is only imagined, to be explained, has no body.
pub(super) fn receive<B: http_body::Body>(
    site: &Arc<Site>,
    keyer: &Keyer,
    (parts, body): (&mut Parts, &B),
    client: Client,
    now: SystemTime,
) -> Result<Received, Rejection> {
    let settings = &site.settings;
    check_method(&parts.method)?;
    match parts.extensions.get() {
        Some(Flaw::Ambiguous) => return Err(Rejection::Framing),
        Some(Flaw::TooLarge) => return Err(Rejection::HeadTooLarge),
        None => {}
    }
    let notable = Notable::of(&parts.headers);
    if notable.framing {
        check_framing(&parts.headers, parts.version)?;
        check_expectation(&parts.headers)?;
    }
    let limit = settings.request_body_bytes_max;
    if http_body::Body::size_hint(body).lower() > limit.unwrap_or(u64::MAX) {
        return Err(Rejection::BodyTooLarge);
    }
    let (host, host_header) = named_host(parts, client)?;
    let target = target(&parts.uri, &parts.method, settings.target_bytes_max)?;
    let (route, read) = site.locate(&host, target.as_str())?;
    let target = as_read(&target, &read)?;
    let rules = &settings.routes[route];
    let shared_target = as_read(&target, &rules.key.query.apply(target.as_str()))?;
    let mut upgrade = None;
    if notable.hop_by_hop {
        upgrade = Upgrade::take(parts);
        policy::forwarding::remove_hop_by_hop(&mut parts.headers);
    }
    let identity = Identity {
        route: site.route_ids[route],
        scheme: client.scheme(),
        host: &host,
        target: shared_target.as_str(),
        method: &parts.method,
        headers: &parts.headers,
        body_digest: None,
    };
    let keys = keyer.key(&identity, &rules.key);
    Ok(Received {
        site: Arc::clone(site),
        route,
        client,
        has_body: !http_body::Body::is_end_stream(body),
        buffered: None,
        credentials: Credentials::of(&parts.headers, &rules.rules.keyed_cookies),
        method: std::mem::take(&mut parts.method),
        version: parts.version,
        headers: Arc::new(std::mem::take(&mut parts.headers)),
        host,
        host_header,
        target,
        shared_target,
        keyed: keys,
        selects: notable.selects,
        now,
        upgrade,
    })
}

/// The host that is asked for, and as the client wrote it.
fn named_host(parts: &Parts, client: Client) -> Result<(String, Option<HeaderValue>), Rejection> {
    Ok(match host::asked_for(&parts.uri, &parts.headers, client)? {
        // RFC 9112 §3.2: a Host even beside a target that names one.
        Some(_)
            if parts.uri.authority().is_some()
                && parts.version == Version::HTTP_11
                && !parts.headers.contains_key(header::HOST) =>
        {
            return Err(Rejection::Host);
        }
        Some((host, header)) => (host, Some(header)),
        // RFC 9112 §3.2 asks a Host of HTTP/1.1 only.
        None if parts.version < Version::HTTP_11 => (String::new(), None),
        None => return Err(Rejection::Host),
    })
}

/// Which fields a head has that most heads have not. One walk over the names is cheaper than to look for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Notable {
    /// Where the body ends, or whether it is to come.
    framing: bool,
    hop_by_hop: bool,
    /// A condition or a range.
    selects: bool,
}

/// The names of conditions and ranges.
const SELECTING: [&str; 6] =
    ["range", "if-match", "if-range", "if-none-match", "if-modified-since", "if-unmodified-since"];

impl Notable {
    fn of(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::default(), |notable, name| notable.and(Self::of_name(name.as_str())))
    }

    /// What a field of this name, in upper or lower case, makes of a head.
    pub(super) fn of_name(name: &str) -> Self {
        let is = |other: &str| other.eq_ignore_ascii_case(name);
        Self {
            framing: is("content-length") || is("expect") || is("transfer-encoding"),
            hop_by_hop: policy::forwarding::is_hop_by_hop(name),
            selects: SELECTING.into_iter().any(is),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            framing: self.framing || other.framing,
            hop_by_hop: self.hop_by_hop || other.hop_by_hop,
            selects: self.selects || other.selects,
        }
    }
}

/// CONNECT would make us an open proxy; TRACE would show a client's fields to whoever can send one.
fn check_method(method: &Method) -> Result<(), Rejection> {
    if method == Method::CONNECT || method == Method::TRACE { Err(Rejection::Method) } else { Ok(()) }
}

/// RFC 9112 §6.1 and §6.3: one way to tell where the body ends, and one that we understand.
fn check_framing(headers: &HeaderMap, version: Version) -> Result<(), Rejection> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if version != Version::HTTP_11 || headers.contains_key(header::CONTENT_LENGTH) {
            return Err(Rejection::Framing);
        }
        if codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(Rejection::TransferCoding);
        }
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(length), None) if length.as_bytes().iter().all(u8::is_ascii_digit) => Ok(()),
        _ => Err(Rejection::Framing),
    }
}

/// RFC 9110 §10.1.1: there is one expectation, and it may be met or refused.
fn check_expectation(headers: &HeaderMap) -> Result<(), Rejection> {
    let is_met = |expectation: &HeaderValue| expectation.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if headers.get_all(header::EXPECT).iter().all(is_met) { Ok(()) } else { Err(Rejection::Expectation) }
}

impl Site {
    /// The route that a host and a target take, and the target as that route sends it upstream.
    pub(super) fn locate<'a>(&self, host: &str, target: &'a str) -> Result<(usize, Cow<'a, str>), Rejection> {
        let host = host::without_port(host);
        let target = path::read(target, self.settings.paths)?;
        // `OPTIONS *` is about the server as a whole (RFC 9110 §9.3.7).
        let is_asterisk = target == "*";
        let path = if is_asterisk { "/" } else { path::without_query(&target) };
        let Some(index) = self.router.find(host, path) else {
            let is_misdirected =
                self.settings.unmatched == Unmatched::Misdirected && !self.router.knows_host(host);
            return Err(if is_misdirected { Rejection::Misdirected } else { Rejection::NoRoute });
        };
        let route = &self.settings.routes[index];
        if is_asterisk || !route.strip_prefix {
            return Ok((index, target));
        }
        Ok((index, without_prefix(&route.prefix, &target).into()))
    }
}

/// A target as it was read. Mostly it was read as it is.
fn as_read(target: &PathAndQuery, read: &str) -> Result<PathAndQuery, Rejection> {
    if read == target.as_str() {
        return Ok(target.clone());
    }
    PathAndQuery::try_from(read).map_err(|_| Rejection::Target)
}

/// RFC 9112 §3.2: origin-form, absolute-form taken as origin-form, or `*` for OPTIONS.
fn target(uri: &http::Uri, method: &Method, bytes_max: usize) -> Result<PathAndQuery, Rejection> {
    if let Some(scheme) = uri.scheme_str()
        && !matches!(scheme, "http" | "https")
    {
        return Err(Rejection::Target);
    }
    let Some(target) = uri.path_and_query() else { return Err(Rejection::Target) };
    if target.as_str().len() > bytes_max {
        return Err(Rejection::TargetTooLong);
    }
    match target.as_str() {
        text if !text.is_ascii() => Err(Rejection::Target),
        "*" if method == Method::OPTIONS => Ok(target.clone()),
        text if text.starts_with('/') => Ok(target.clone()),
        _ => Err(Rejection::Target),
    }
}
