//! Whether the client's own copy still holds (RFC 9110 §13, RFC 9111 §4.3.2).
//!
//! `If-Match` and `If-Unmodified-Since` "are not applicable to a cache" (RFC 9111 §4.3.2) and are never
//! evaluated here, so that a stored response is never the cause of a 412.

use std::time::SystemTime;

use http::header::{
    CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
    SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::metadata::Metadata;
use super::validation::Validators;
use super::{Asked, date, validation};

/// What a client's condition makes of a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// Deliver it: the condition holds, or there is none that a cache evaluates.
    Deliver,
    /// The client's copy still holds: 304.
    NotModified,
}

/// Evaluates the conditions that apply to a cache, in the order of RFC 9110 §13.2.2.
///
/// `headers` are the stored fields; the validators are among them.
pub fn evaluate(asked: &Asked<'_>, metadata: &Metadata, headers: &HeaderMap) -> Precondition {
    // §4.3.2: "reusing one of its stored 200 (OK) or 206 (Partial Content) responses".
    if metadata.status != StatusCode::OK || !(*asked.method == Method::GET || *asked.method == Method::HEAD) {
        return Precondition::Deliver;
    }
    let is_unmodified = if asked.headers.contains_key(IF_NONE_MATCH) {
        // §13.1.3: "A recipient MUST ignore If-Modified-Since if the request contains an If-None-Match".
        any_matches(asked.headers, metadata.validators(headers))
    } else if let Some(since) = asked.headers.get(IF_MODIFIED_SINCE) {
        is_unmodified_since(since, asked.headers, metadata, headers)
    } else {
        false
    };
    if is_unmodified { Precondition::NotModified } else { Precondition::Deliver }
}

/// The same for a response that is not stored, but on its way to the one client whose condition did not travel upstream. It is
/// judged only by the validators that it carries, and always delivered where it sets a cookie, which a 304 would lose.
pub fn evaluate_passing(
    asked: &Asked<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    now: SystemTime,
) -> Precondition {
    if status != StatusCode::OK
        || !(*asked.method == Method::GET || *asked.method == Method::HEAD)
        || !(asked.headers.contains_key(IF_NONE_MATCH) || asked.headers.contains_key(IF_MODIFIED_SINCE))
        || headers.contains_key(SET_COOKIE)
    {
        return Precondition::Deliver;
    }
    let validators = Validators::of(headers);
    let is_unmodified = if asked.headers.contains_key(IF_NONE_MATCH) {
        any_matches(asked.headers, validators)
    } else {
        let modified = validators.last_modified.and_then(|own| date::parse_value(own, now));
        let since = asked.headers.get(IF_MODIFIED_SINCE).and_then(|since| date::parse_value(since, now));
        let is_single = asked.headers.get_all(IF_MODIFIED_SINCE).iter().nth(1).is_none();
        is_single && modified.zip(since).is_some_and(|(modified, since)| modified <= since)
    };
    if is_unmodified { Precondition::NotModified } else { Precondition::Deliver }
}

/// The fields of a 304 made from a stored response (RFC 9110 §15.4.5): those that "would have been sent in a
/// 200 (OK) response to the same request", and `Last-Modified` where there is no `ETag`.
pub fn not_modified_headers(stored: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let last_modified = (!stored.contains_key(ETAG)).then_some(LAST_MODIFIED);
    let names = [CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, VARY].into_iter().chain(last_modified);
    for name in names {
        for value in stored.get_all(&name) {
            headers.append(&name, value.clone());
        }
    }
    headers
}

/// Whether an entity tag of `If-None-Match` is that of the stored response, by weak comparison (RFC 9110
/// §13.1.2); `*` is every one.
fn any_matches(request: &HeaderMap, validators: Validators<'_>) -> bool {
    let own = validators.etag.map(HeaderValue::as_bytes);
    request.get_all(IF_NONE_MATCH).iter().any(|line| {
        let line = line.as_bytes().trim_ascii();
        line == b"*" || own.is_some_and(|own| entity_tags(line).any(|tag| validation::weakly_equal(tag, own)))
    })
}

/// The members of a list of entity tags. A comma between quotes belongs to the tag; there are no escapes
/// (RFC 9110 §8.8.3). What is not an entity tag is a member as it stands.
fn entity_tags(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = list;
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_ascii_start();
            if rest.is_empty() {
                return None;
            }
            let mut is_quoted = false;
            let end = rest.iter().position(|byte| {
                is_quoted ^= *byte == b'"';
                *byte == b',' && !is_quoted
            });
            let member = rest[..end.unwrap_or(rest.len())].trim_ascii_end();
            rest = end.map_or(&[][..], |end| &rest[end + 1..]);
            if !member.is_empty() {
                return Some(member);
            }
        }
    })
}

fn is_unmodified_since(
    since: &HeaderValue,
    request: &HeaderMap,
    metadata: &Metadata,
    headers: &HeaderMap,
) -> bool {
    // §13.1.3: "MUST ignore the If-Modified-Since header field if the received field value is not a valid
    // HTTP-date, the field value has more than one member".
    if request.get_all(IF_MODIFIED_SINCE).iter().nth(1).is_some() {
        return false;
    }
    let received = metadata.freshness.response_time();
    let Some(time) = date::parse_value(since, received) else { return false };
    match metadata.validators(headers).last_modified {
        Some(own) => date::parse_value(own, received).is_some_and(|modified| modified <= time),
        // §4.3.2: without Last-Modified "a cache SHOULD use the stored response's Date field value (or, if no
        // Date field is present, the time that the stored response was received)".
        None => made_at(metadata) <= time,
    }
}

fn made_at(metadata: &Metadata) -> SystemTime {
    metadata.date().unwrap_or_else(|| date::whole_seconds(metadata.freshness.response_time()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fetch, fields};
    use super::*;

    const TAGGED: &str = "Cache-Control: max-age=9\nETag: \"a\"\nLast-Modified: Sun, 06 Nov 1994 08:00:00 GMT\nDate: Sun, 06 Nov 1994 08:49:37 GMT";

    #[track_caller]
    fn check(response: &str, request: &str, is_unmodified: bool) {
        check_with(&Method::GET, 200, response, request, is_unmodified);
        check_with(&Method::HEAD, 200, response, request, is_unmodified);
    }

    #[track_caller]
    fn check_with(method: &Method, status: u16, response: &str, request: &str, is_unmodified: bool) {
        let fetch = Fetch::of(response).status(status);
        let asked = Asked { method, headers: &fields(request) };
        let found = evaluate(&asked, &fetch.metadata(), &fetch.response);
        let expected = if is_unmodified { Precondition::NotModified } else { Precondition::Deliver };
        assert_eq!(found, expected, "{response} | {request}");
    }

    #[test]
    fn rfc9110_13_1_2_if_none_match_must_use_weak_comparison() {
        check(TAGGED, "", false);
        check(TAGGED, "If-None-Match: \"a\"", true);
        check(TAGGED, "If-None-Match: W/\"a\"", true);
        check(TAGGED, "If-None-Match: \"b\"", false);
        check(TAGGED, "If-None-Match: a", false);
        check(TAGGED, "If-None-Match: \"A\"", false);
        check(TAGGED, "If-None-Match: \"b\", \"a\"", true);
        check(TAGGED, "If-None-Match: \"a\",\"b\"", true);
        check(TAGGED, "If-None-Match: \"b\"\nIf-None-Match: \"a\"", true);
        check(TAGGED, "If-None-Match: *", true);
        check(TAGGED, "If-None-Match: \"b, \"a\"\"", false);
        check("ETag: W/\"a\"", "If-None-Match: \"a\"", true);
        check("ETag: \"a,b\"", "If-None-Match: \"x\", \"a,b\"", true);
        check("Cache-Control: max-age=9", "If-None-Match: *", true);
        check("Cache-Control: max-age=9", "If-None-Match: \"a\"", false);
    }

    #[test]
    fn rfc9110_13_1_3_must_ignore_if_modified_since_beside_if_none_match() {
        check(TAGGED, "If-None-Match: \"b\"\nIf-Modified-Since: Sun, 06 Nov 1994 08:00:00 GMT", false);
        check(TAGGED, "If-None-Match: \"a\"\nIf-Modified-Since: Sun, 06 Nov 1994 07:00:00 GMT", true);
    }

    #[test]
    fn rfc9110_13_1_3_if_modified_since_in_all_three_forms() {
        check(TAGGED, "If-Modified-Since: Sun, 06 Nov 1994 08:00:00 GMT", true);
        check(TAGGED, "If-Modified-Since: Sunday, 06-Nov-94 08:00:00 GMT", true);
        check(TAGGED, "If-Modified-Since: Sun Nov  6 08:00:00 1994", true);
        check(TAGGED, "If-Modified-Since: Sun, 06 Nov 1994 08:00:01 GMT", true);
        check(TAGGED, "If-Modified-Since: Sun, 06 Nov 1994 07:59:59 GMT", false);
    }

    #[test]
    fn rfc9110_13_1_3_must_ignore_an_invalid_date() {
        check(TAGGED, "If-Modified-Since: yesterday", false);
        check(TAGGED, "If-Modified-Since: Sun, 06 Nov 1994 09:00:00 UTC", false);
        let twice = "If-Modified-Since: Sun, 06 Nov 1994 08:00:00 GMT\n".repeat(2);
        check(TAGGED, &twice, false);
    }

    #[test]
    fn rfc9111_4_3_2_without_last_modified_the_date_or_the_receipt_counts() {
        let dated = "Cache-Control: max-age=9\nDate: Sun, 06 Nov 1994 08:49:35 GMT";
        check(dated, "If-Modified-Since: Sun, 06 Nov 1994 08:49:35 GMT", true);
        check(dated, "If-Modified-Since: Sun, 06 Nov 1994 08:49:34 GMT", false);
        check("Cache-Control: max-age=9", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT", true);
        check("Cache-Control: max-age=9", "If-Modified-Since: Sun, 06 Nov 1994 08:49:36 GMT", false);
        let unreadable = "Cache-Control: max-age=9\nLast-Modified: yesterday";
        check(unreadable, "If-Modified-Since: Sun, 06 Nov 1994 08:49:38 GMT", false);
    }

    #[test]
    fn rfc9111_4_3_2_must_not_evaluate_conditions_for_the_origin() {
        check(TAGGED, "If-Match: \"b\"", false);
        check(TAGGED, "If-Unmodified-Since: Sun, 06 Nov 1994 07:00:00 GMT", false);
        check(TAGGED, "If-Match: \"b\"\nIf-None-Match: \"a\"", true);
        check_with(&Method::GET, 404, TAGGED, "If-None-Match: \"a\"", false);
        check_with(&Method::POST, 200, TAGGED, "If-None-Match: \"a\"", false);
    }

    #[test]
    fn rfc9110_15_4_5_must_generate_these_fields_in_a_304() {
        let stored = "ETag: \"a\"\nDate: x\nCache-Control: a\nCache-Control: b\nExpires: y\nVary: z\nContent-Location: /l\nLast-Modified: m\nContent-Length: 3\nSet-Cookie: c";
        let expected = "ETag: \"a\"\nDate: x\nCache-Control: a\nCache-Control: b\nExpires: y\nVary: z\nContent-Location: /l";
        assert_eq!(not_modified_headers(&fields(stored)), fields(expected));
        assert_eq!(not_modified_headers(&fields("Last-Modified: m")), fields("Last-Modified: m"));
    }
}
