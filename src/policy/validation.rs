//! How a stored response is asked again, and what the answer changes (RFC 9111 §4.3, §3.2).

use std::time::SystemTime;

use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{Fields, date};

/// The validators of a stored response (RFC 9110 §8.8), verbatim, as they are found among its fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Validators<'a> {
    /// The `ETag`.
    pub etag: Option<&'a HeaderValue>,
    /// The `Last-Modified`.
    pub last_modified: Option<&'a HeaderValue>,
}

/// What a response to HEAD means for a stored response to GET (RFC 9111 §4.3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadEffect {
    /// It agrees: the stored fields are updated from it.
    Freshens,
    /// It contradicts: the stored response is stale.
    Invalidates,
    /// It says nothing about it.
    Nothing,
}

impl<'a> Validators<'a> {
    /// The validators of a response.
    pub fn of(response: &'a HeaderMap) -> Self {
        Self {
            etag: response.get(ETAG).filter(|etag| !etag.is_empty()),
            last_modified: response.get(LAST_MODIFIED),
        }
    }

    /// Makes a request conditional on them (§4.3.1). Conditions that the request brought along are the
    /// caller's to remove first.
    pub fn apply(self, headers: &mut HeaderMap) {
        if let Some(etag) = self.etag {
            headers.insert(IF_NONE_MATCH, etag.clone());
        }
        if let Some(last_modified) = self.last_modified {
            headers.insert(IF_MODIFIED_SINCE, last_modified.clone());
        }
    }

    /// The entity tag, if it is a strong one.
    pub fn strong_etag(self) -> Option<&'a HeaderValue> {
        self.etag.filter(|etag| !is_weak(etag.as_bytes()))
    }
}

/// Whether a response has something to ask by, in fields of other names than these.
pub(super) fn has_validators(response: &impl Fields, withheld: &[HeaderName]) -> bool {
    let of = |name: &HeaderName| response.has(name) && !withheld.contains(name);
    of(&LAST_MODIFIED) || of(&ETAG) && response.first(&ETAG).is_some_and(|etag| !etag.is_empty())
}

/// Whether a 304 is about the stored response (§4.3.4).
pub fn identifies(not_modified: &HeaderMap, stored: Validators<'_>) -> bool {
    if let Some(etag) = not_modified.get(ETAG) {
        let is_match = |own: &HeaderValue| {
            if is_weak(etag.as_bytes()) {
                weakly_equal(own.as_bytes(), etag.as_bytes())
            } else {
                // "If none of the stored responses contain at least one of the same strong validators, then
                // the cache MUST NOT use the new response to update any stored responses."
                own == etag
            }
        };
        return stored.etag.is_some_and(is_match);
    }
    if let Some(last_modified) = not_modified.get(LAST_MODIFIED) {
        return stored.last_modified == Some(last_modified);
    }
    true
}

/// The stored fields, updated from a newer response (§3.2).
///
/// "The cache MUST add each header field in the provided response to the stored response, replacing field
/// values that are already present", except those that describe the stored bytes.
pub fn updated(stored: &HeaderMap, newer: &HeaderMap, response_time: SystemTime) -> HeaderMap {
    let mut headers = stored.clone();
    // Both are about one message, not about the representation: the old ones are no part of the new answer.
    headers.remove(AGE);
    headers.remove(DATE);
    for name in newer.keys().filter(|name| !is_of_stored_bytes(name)) {
        headers.remove(name);
        for value in newer.get_all(name) {
            headers.append(name, value.clone());
        }
    }
    // RFC 9110 §6.6.1: a recipient with a clock that caches a response without Date MUST append one.
    if !headers.contains_key(DATE) {
        headers.insert(DATE, date::format(response_time));
    }
    headers
}

/// The fields of a 304 that did not become part of the updated response: they are for the client whose request caused
/// the validation.
pub fn withheld(not_modified: &HeaderMap, updated: &HeaderMap) -> HeaderMap {
    let is_withheld = |name: &HeaderName| !updated.contains_key(name) && !is_of_stored_bytes(name);
    not_modified
        .iter()
        .filter(|(name, _)| is_withheld(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// What a response to HEAD means for the stored response to GET with these fields (§4.3.5).
///
/// A stored length is compared only where it is stored: a chunked response has none.
pub fn head_effect(stored: &HeaderMap, head_response: &HeaderMap, status: StatusCode) -> HeadEffect {
    if status != StatusCode::OK {
        return HeadEffect::Nothing;
    }
    let agrees = |name| head_response.get(&name).is_none_or(|new| stored.get(&name) == Some(new));
    let length_agrees = !stored.contains_key(CONTENT_LENGTH) || agrees(CONTENT_LENGTH);
    if agrees(ETAG) && agrees(LAST_MODIFIED) && length_agrees {
        HeadEffect::Freshens
    } else {
        HeadEffect::Invalidates
    }
}

/// Whether an entity tag is weak (RFC 9110 §8.8.3).
pub fn is_weak(etag: &[u8]) -> bool {
    etag.starts_with(b"W/")
}

/// Weak comparison: equal but for the mark of weakness (RFC 9110 §8.8.3.2).
pub fn weakly_equal(left: &[u8], right: &[u8]) -> bool {
    left.strip_prefix(b"W/").unwrap_or(left) == right.strip_prefix(b"W/").unwrap_or(right)
}

/// The fields that describe the stored bytes and do not change while the bytes stay.
fn is_of_stored_bytes(name: &HeaderName) -> bool {
    name == CONTENT_LENGTH || name == CONTENT_ENCODING || name == CONTENT_RANGE
}

#[cfg(test)]
mod tests {
    use super::super::testing::fields;
    use super::*;

    #[test]
    fn rfc9111_4_3_1_validators_are_sent_back_verbatim() {
        let mut request = fields("If-None-Match: \"client\"\nX-A: 1");
        let response = "ETag: W/\"a\"\nLast-Modified: Sunday, 06-Nov-94 08:49:37 GMT";
        Validators::of(&fields(response)).apply(&mut request);
        let expected =
            fields("If-None-Match: W/\"a\"\nIf-Modified-Since: Sunday, 06-Nov-94 08:49:37 GMT\nX-A: 1");
        assert_eq!(request, expected);
        assert!(!has_validators(&fields("ETag:"), &[]));
    }

    #[track_caller]
    fn check_identifies(stored: &str, not_modified: &str, expected: bool) {
        let found = identifies(&fields(not_modified), Validators::of(&fields(stored)));
        assert_eq!(found, expected, "{stored} | {not_modified}");
    }

    #[test]
    fn rfc9111_4_3_4_a_304_identifies_by_strong_then_weak_validators() {
        let modified = "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT";
        check_identifies("ETag: \"a\"", "ETag: \"a\"", true);
        check_identifies("ETag: \"a\"", "ETag: \"b\"", false);
        check_identifies("ETag: W/\"a\"", "ETag: \"a\"", false);
        check_identifies("ETag: W/\"a\"", "ETag: W/\"a\"", true);
        check_identifies("ETag: \"a\"", "ETag: W/\"a\"", true);
        check_identifies(modified, "ETag: \"a\"", false);
        check_identifies(modified, modified, true);
        check_identifies("ETag: \"a\"", modified, false);
        check_identifies("ETag: \"a\"", "", true);
    }

    #[test]
    fn what_a_304_says_beyond_the_updated_response_is_for_its_asker() {
        let found =
            withheld(&fields("ETag: \"a\"\nSet-Cookie: a=1\nContent-Length: 9"), &fields("ETag: \"a\""));
        assert_eq!(found, fields("Set-Cookie: a=1"));
    }

    #[track_caller]
    fn check_head(stored: &str, head: &str, status: u16, expected: HeadEffect) {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(head_effect(&fields(stored), &fields(head), status), expected, "{stored} | {head}");
    }

    #[test]
    fn rfc9111_4_3_5_a_head_freshens_or_invalidates() {
        use HeadEffect::{Freshens, Invalidates, Nothing};
        check_head("ETag: \"a\"\nContent-Length: 3", "ETag: \"a\"\nContent-Length: 3", 200, Freshens);
        check_head("ETag: \"a\"\nContent-Length: 3", "", 200, Freshens);
        check_head("ETag: \"a\"\nContent-Length: 3", "Content-Length: 4", 200, Invalidates);
        check_head("ETag: \"a\"", "ETag: \"b\"", 200, Invalidates);
        check_head("", "ETag: \"b\"", 200, Invalidates);
        check_head("ETag: \"a\"", "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT", 200, Invalidates);
        check_head("ETag: \"a\"", "ETag: \"a\"\nContent-Length: 4", 200, Freshens);
        check_head("ETag: \"a\"", "ETag: \"b\"", 404, Nothing);
    }
}
