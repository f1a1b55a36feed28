//! Which fields travel on (RFC 9110 §7.6).

use std::sync::Arc;
use std::time::SystemTime;

use http::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, DATE, ETAG, EXPIRES,
    HOST, LAST_MODIFIED, LOCATION, MAX_FORWARDS, PRAGMA, RANGE, SET_COOKIE, TE, UPGRADE, VARY, VIA,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

use super::{Fields, Rules, date};

/// Removes the fields that are for this connection only (RFC 9110 §7.6.1): `Connection` and what it names,
/// and those that are hop-by-hop by definition.
///
/// `TE: trailers` stays, because it says that trailers can be taken. What the meaning of a message rests on
/// stays even if `Connection` names it: a client must not be able to strip what others added for it.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if !headers.keys().any(|name| is_hop_by_hop(name.as_str())) {
        return;
    }
    if headers.contains_key(CONNECTION) {
        for name in connection_options(headers) {
            if !END_TO_END.contains(&name) && !is_forwarded_field(&name) {
                headers.remove(name);
            }
        }
    }
    remove_where(headers, |name| *name != TE && is_hop_by_hop(name.as_str()));
    if headers.contains_key(TE) {
        let takes_trailers = has_token(headers, &TE, "trailers");
        headers.remove(TE);
        if takes_trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// Whether [`remove_hop_by_hop`] has anything to do with a field of this name, in upper or lower case.
pub fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// The protocol that a request asks to be upgraded to, if it asks (RFC 9110 §7.8): `Upgrade`, named in
/// `Connection`. Cleartext HTTP/2 is no other protocol for a proxy: it is never passed on.
pub fn requested_upgrade(headers: &impl Fields) -> Option<HeaderValue> {
    let upgrade = headers.lines(&UPGRADE).next()?;
    let is_h2c = upgrade.trim_ascii_start().get(..3).is_some_and(|name| name.eq_ignore_ascii_case(b"h2c"));
    let is_named = !is_h2c && has_token(headers, &CONNECTION, "upgrade");
    HeaderValue::from_bytes(upgrade).ok().filter(|_| is_named)
}

/// Removes what one client's request must not impose on a fetch that many may share: its range, its
/// conditions, its wishes as to caching where the route does not honour them, and the fields by which some
/// origins let a client change the method, the URL or the scheme behind the key's back.
pub fn strip_for_shared_fetch(headers: &mut Arc<HeaderMap>, rules: &Rules) {
    remove_where_any(headers, |name| is_of_one_request(name.as_str().as_bytes(), rules));
}

/// Whether [`strip_for_shared_fetch`] removes fields of this name, in lower case.
pub fn is_of_one_request(name: &[u8], rules: &Rules) -> bool {
    OF_ONE_REQUEST.contains(&name)
        || (!rules.honor_request_directives && matches!(name, b"cache-control" | b"pragma"))
        || is_poisoner(name)
}

/// Removes the fields with such names. Mostly there are none: then one walk over the names is all it takes.
fn remove_where(headers: &mut HeaderMap, is_unwanted: impl Fn(&HeaderName) -> bool) {
    let unwanted: Vec<HeaderName> = headers.keys().filter(|name| is_unwanted(name)).cloned().collect();
    for name in unwanted {
        headers.remove(name);
    }
}

/// The same of fields that others hold too: they are copied where there is something to remove.
fn remove_where_any(headers: &mut Arc<HeaderMap>, is_unwanted: impl Fn(&HeaderName) -> bool) {
    if headers.keys().any(&is_unwanted) {
        remove_where(Arc::make_mut(headers), is_unwanted);
    }
}

/// Whether an OPTIONS request may go no further (RFC 9110 §7.6.2): "an intermediary MUST NOT forward the received
/// message; instead, the intermediary MUST respond as the final recipient".
pub fn is_last_hop(method: &Method, headers: &HeaderMap) -> bool {
    max_forwards(method, headers) == Some(0)
}

/// Counts this proxy off from `Max-Forwards` (RFC 9110 §7.6.2).
pub fn count_hop(method: &Method, headers: &mut Arc<HeaderMap>) {
    if let Some(left) = max_forwards(method, headers) {
        Arc::make_mut(headers).insert(MAX_FORWARDS, HeaderValue::from(left.saturating_sub(1)));
    }
}

/// The hops that an OPTIONS request has left, if it says so in a way that can be read.
fn max_forwards(method: &Method, headers: &HeaderMap) -> Option<u32> {
    if *method != Method::OPTIONS {
        return None;
    }
    let digits = headers.get(MAX_FORWARDS)?.to_str().ok()?;
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number)
}

/// Removes what a client that is not trusted says of itself and of its way here.
pub fn remove_claims(headers: &mut Arc<HeaderMap>) {
    remove_where_any(headers, |name| is_claim(name.as_str().as_bytes()));
}

/// This proxy in `Via` (RFC 9110 §7.6.3): "MUST send an appropriate Via header field". Made once for the versions in which
/// messages come.
#[derive(Debug)]
pub struct Via {
    http1_0: HeaderValue,
    http1_1: HeaderValue,
    http2: HeaderValue,
}

impl Via {
    /// The proxy of this name; `None`: it is none that a field can have.
    pub fn of(pseudonym: &str) -> Option<Self> {
        let received_in = |protocol| HeaderValue::try_from(format!("{protocol} {pseudonym}")).ok();
        Some(Self { http1_0: received_in("1.0")?, http1_1: received_in("1.1")?, http2: received_in("2.0")? })
    }

    /// What it adds to the fields of a message that it received in this version.
    pub fn received_in(&self, version: Version) -> &HeaderValue {
        match version {
            Version::HTTP_10 => &self.http1_0,
            Version::HTTP_2 => &self.http2,
            _ => &self.http1_1,
        }
    }
}

/// Adds the time of receipt where a response has no `Date` (RFC 9110 §6.6.1): "MUST record the time it was
/// received and append a corresponding Date header field". A `Date` that is there is never rewritten.
pub fn add_missing_date(headers: &mut HeaderMap, response_time: SystemTime) {
    if !headers.contains_key(DATE) {
        headers.insert(DATE, date::format(response_time));
    }
}

/// Hop-by-hop by their definition. `Proxy-Authenticate` and `Proxy-Authorization` are for the next proxy, which
/// this one is; a reverse proxy has no use for them and MUST NOT store them (RFC 9111 §3.1).
const HOP_BY_HOP: [&str; 10] = [
    "te",
    "upgrade",
    "connection",
    "keep-alive",
    "http2-settings",
    "proxy-connection",
    "transfer-encoding",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-authentication-info",
];

/// What `Connection` cannot remove.
const END_TO_END: [HeaderName; 18] = [
    AGE,
    AUTHORIZATION,
    CACHE_CONTROL,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    COOKIE,
    DATE,
    ETAG,
    EXPIRES,
    HOST,
    LAST_MODIFIED,
    LOCATION,
    PRAGMA,
    RANGE,
    SET_COOKIE,
    TE,
    VARY,
    VIA,
];

/// Whether [`remove_claims`] removes fields of this name, in lower case.
pub fn is_claim(name: &[u8]) -> bool {
    match name {
        b"forwarded"
        | b"x-real-ip"
        | b"x-forwarded"
        | b"forwarded-for"
        | b"forwarded-host"
        | b"x-original-forwarded-for"
        | b"x-client-ip"
        | b"client-ip"
        | b"true-client-ip"
        | b"x-cluster-client-ip"
        | b"cf-connecting-ip"
        | b"fastly-client-ip"
        | b"x-url-scheme"
        | b"front-end-https" => true,
        _ => name.starts_with(b"x-forwarded-"),
    }
}

/// Fields by which frameworks let a request say that it is another one.
fn is_poisoner(name: &[u8]) -> bool {
    matches!(
        name,
        b"x-http-method-override"
            | b"x-http-method"
            | b"x-method-override"
            | b"x-original-url"
            | b"x-rewrite-url"
            | b"x-original-uri"
            | b"x-middleware-subrequest"
            | b"x-original-host"
            | b"x-forwarded-scheme"
            | b"x-forwarded-prefix"
            | b"x-host"
            | b"x-http-host-override"
            | b"x-scheme"
            | b"x-override-url"
            | b"x-proxy-url"
            | b"base-url"
            | b"request-uri"
    )
}

/// Ranges and conditions, and what belongs to a body that the shared fetch does not have, or has anew.
const OF_ONE_REQUEST: [&[u8]; 8] = [
    b"range",
    b"if-range",
    b"if-match",
    b"if-none-match",
    b"if-modified-since",
    b"if-unmodified-since",
    b"content-length",
    b"expect",
];

fn connection_options(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|option| HeaderName::from_bytes(option.trim_ascii()).ok())
        .collect()
}

fn is_forwarded_field(name: &HeaderName) -> bool {
    let name = name.as_str();
    name == "forwarded" || name.starts_with("x-forwarded-") || name == "x-real-ip"
}

/// Whether a list has this member, its parameters aside.
fn has_token(headers: &impl Fields, name: &HeaderName, token: &str) -> bool {
    headers.lines(name).flat_map(|line| line.split(|byte| *byte == b',')).any(|member| {
        let member = member.split(|byte| *byte == b';').next().unwrap_or(member);
        member.trim_ascii().eq_ignore_ascii_case(token.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{at, fields};
    use super::*;

    #[track_caller]
    fn check(before: &str, after: &str) {
        let mut headers = fields(before);
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers, fields(after), "{before}");
    }

    #[test]
    fn rfc9110_7_6_1_must_remove_connection_and_what_it_names() {
        check("Connection: close, X-A\nX-A: 1\nX-B: 2", "X-B: 2");
        check("Connection: X-A\nConnection: x-b\nX-A: 1\nX-B: 2", "");
        check("Connection: keep-alive\nKeep-Alive: timeout=5\nProxy-Connection: x\nUpgrade: h2c", "");
        check(
            "Transfer-Encoding: chunked\nProxy-Authenticate: a\nProxy-Authentication-Info: b\nX-A: 1",
            "X-A: 1",
        );
        check("HTTP2-Settings: x\nProxy-Authorization: y", "");
    }

    #[test]
    fn connection_cannot_remove_what_a_message_rests_on() {
        let kept = "Host: a\nContent-Length: 3\nAuthorization: b\nCookie: c\nCache-Control: d\nAge: 5\nDate: e\nSet-Cookie: f\nVia: g\nVary: h\nX-Forwarded-For: i\nForwarded: j";
        let names = "Connection: host, content-length, authorization, cookie, cache-control, age, date, set-cookie, via, vary, x-forwarded-for, forwarded";
        check(&format!("{names}\n{kept}"), kept);
    }

    proptest! {
        #[test]
        fn what_is_end_to_end_survives_in_its_order(
            lines in proptest::collection::vec("x-[a-d]: [!-~]{0,8}", 0..12),
            named in proptest::collection::vec("x-[a-d]", 0..3),
        ) {
            let is_named = |line: &str| named.iter().any(|name| line.starts_with(&format!("{name}:")));
            let kept: Vec<_> = lines.iter().filter(|line| !is_named(line)).cloned().collect();
            let mut headers = fields(&lines.join("\n"));
            for name in &named {
                headers.append(CONNECTION, HeaderValue::try_from(name.as_str()).unwrap());
            }
            remove_hop_by_hop(&mut headers);
            prop_assert_eq!(headers, fields(&kept.join("\n")));
        }
    }

    #[test]
    fn rfc9110_7_6_2_must_count_the_hops_of_options() {
        let check = |method: &Method, before: &str, after: &str, is_last: bool| {
            let mut headers = Arc::new(fields(before));
            assert_eq!(is_last_hop(method, &headers), is_last, "{before}");
            count_hop(method, &mut headers);
            assert_eq!(*headers, fields(after), "{before}");
        };
        check(&Method::OPTIONS, "Max-Forwards: 2", "Max-Forwards: 1", false);
        check(&Method::OPTIONS, "Max-Forwards: 0", "Max-Forwards: 0", true);
        check(&Method::OPTIONS, "Max-Forwards: -1", "Max-Forwards: -1", false);
        check(&Method::OPTIONS, "", "", false);
        check(&Method::GET, "Max-Forwards: 0", "Max-Forwards: 0", false);
    }

    #[test]
    fn rfc9110_10_1_4_te_says_at_most_trailers() {
        check("TE: trailers", "TE: trailers");
        check("Connection: TE\nTE: gzip;q=0.5, Trailers", "TE: trailers");
        check("TE: gzip", "");
    }

    #[test]
    fn rfc9110_7_8_an_upgrade_must_be_named_in_connection() {
        let asked = |text: &str| requested_upgrade(&fields(text));
        assert_eq!(
            asked("Connection: Upgrade\nUpgrade: websocket"),
            Some(HeaderValue::from_static("websocket"))
        );
        assert_eq!(asked("Upgrade: websocket"), None);
        assert_eq!(asked("Connection: upgrade"), None);
        assert_eq!(asked("Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c"), None);
    }

    #[test]
    fn one_clients_wishes_are_not_imposed_on_a_shared_fetch() {
        let before = "Range: bytes=0-1\nIf-Range: \"a\"\nIf-None-Match: \"a\"\nIf-Modified-Since: x\nIf-Match: *\nIf-Unmodified-Since: y\nCache-Control: no-cache\nPragma: no-cache\nX-HTTP-Method-Override: DELETE\nX-Original-URL: /admin\nX-Rewrite-URL: /admin\nX-Forwarded-Scheme: http\nAccept: a";
        let mut headers = Arc::new(fields(before));
        strip_for_shared_fetch(&mut headers, &Rules::default());
        assert_eq!(*headers, fields("Accept: a"));
        let mut headers = Arc::new(fields("Cache-Control: no-cache\nRange: bytes=0-1"));
        strip_for_shared_fetch(&mut headers, &Rules { honor_request_directives: true, ..Rules::default() });
        assert_eq!(*headers, fields("Cache-Control: no-cache"));
    }

    #[test]
    fn what_strangers_claim_is_removed() {
        let before = "X-Real-IP: a\nX-Forwarded-Port: 1\nX-Forwarded-For: b\nTrue-Client-IP: c\nX-Forwarded-Port: 2\nForwarded: for=e\nX-A: d";
        let mut headers = Arc::new(fields(before));
        remove_claims(&mut headers);
        assert_eq!(*headers, fields("X-A: d"));
    }

    #[test]
    fn rfc9110_7_6_3_must_send_via() {
        let via = Via::of("forebay").unwrap();
        let received = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2].map(|in_| via.received_in(in_));
        assert_eq!(received, ["1.0 forebay", "1.1 forebay", "2.0 forebay"]);
    }

    #[test]
    fn rfc9110_6_6_1_must_append_a_missing_date_and_keep_a_present_one() {
        let mut headers = fields("");
        add_missing_date(&mut headers, at(0));
        add_missing_date(&mut headers, at(100));
        assert_eq!(headers, fields("Date: Sun, 06 Nov 1994 08:49:37 GMT"));
    }
}
