//! What of what came back (RFC 9111 §3, §4.3.3)?

use std::time::SystemTime;

use http::header::{AUTHORIZATION, COOKIE, VARY};
use http::{HeaderMap, Method, StatusCode};

use super::directives::Scope;
use super::freshness::Basis;
use super::metadata::{Metadata, Retention};
use super::storing::{self, Unstorable};
use super::targeted::Controls;
use super::{Asked, Exchange, Fields, Rules, Share, key, validation};

/// What is to be done with a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// It may be stored and can be of use later: it is fresh, has a validator, or may be used stale.
    Store(Metadata),
    /// It may be shared with those who already wait for it, but is of no use to later requests.
    Share(Metadata),
    /// A 304 about what was validated: the stored response lives on with these fields.
    Freshen {
        /// What is known of the stored response from now on.
        metadata: Metadata,
        /// Its fields from now on.
        headers: HeaderMap,
    },
    /// A server error that is not stored: it is for all who wait, and nobody keeps it.
    Fail,
    /// It is for the one who asked, alone.
    Relay(Unstorable),
    /// It is no answer to what was asked: 502.
    Invalid(Invalid),
}

/// How a response fails to answer what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Invalid {
    /// A 304 to a request without a condition.
    UnaskedNotModified,
    /// A 304 about another response than the one that was validated.
    MismatchedNotModified,
    /// A 206 to a request without a range.
    UnaskedPartial,
}

/// Why one who waits may not share a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The selecting fields of the two requests differ.
    Vary,
    /// One of them carries credentials.
    Authorization,
    /// They carry different cookies.
    Cookie,
    /// It must be validated for each of them.
    NoCache,
    /// It is not fresh, and the route shares only what is.
    NotFresh,
}

impl Invalid {
    /// The word for the `detail` parameter of RFC 9211.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::UnaskedNotModified => "unasked-304",
            Self::MismatchedNotModified => "mismatched-304",
            Self::UnaskedPartial => "unasked-206",
        }
    }
}

impl Refusal {
    /// The word for the `detail` parameter of RFC 9211.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Vary => "vary",
            Self::Authorization => "authorization",
            Self::Cookie => "cookie",
            Self::NoCache => "no-cache",
            Self::NotFresh => "not-fresh",
        }
    }
}

/// What is to be done with the response of a fetch that the cache made for itself, that is without the
/// client's own conditions and ranges.
///
/// `validated` is the stored response whose validators were sent, if any were.
pub fn dispose(
    exchange: &Exchange<'_>,
    validated: Option<(&Metadata, &HeaderMap)>,
    rules: &Rules,
) -> Disposition {
    match (exchange.status, validated) {
        (StatusCode::NOT_MODIFIED, Some(stored)) => return confirm(exchange, stored, rules),
        (StatusCode::NOT_MODIFIED, None) => return Disposition::Invalid(Invalid::UnaskedNotModified),
        (StatusCode::PARTIAL_CONTENT, _) => return Disposition::Invalid(Invalid::UnaskedPartial),
        _ => {}
    }
    dispose_unasked(exchange, rules)
}

/// The same of a response that is neither a 304 nor a 206.
pub fn dispose_unasked<Q, R>(exchange: &Exchange<'_, Q, R>, rules: &Rules) -> Disposition
where
    Q: Fields,
    R: Fields,
{
    let is_error = exchange.status.is_server_error();
    match storing::judge(exchange, rules) {
        Ok(metadata) if is_useful_later(exchange, &metadata) => Disposition::Store(metadata),
        Ok(_) if is_error => Disposition::Fail,
        Ok(metadata) => Disposition::Share(metadata),
        // A GET would have failed in the same way.
        Err(Unstorable::Method) if is_error && *exchange.method == Method::HEAD => Disposition::Fail,
        // Nobody waits for the answer to a method that is not shared.
        Err(why @ (Unstorable::Method | Unstorable::Disabled)) => Disposition::Relay(why),
        Err(_) if is_error => Disposition::Fail,
        Err(why) => Disposition::Relay(why),
    }
}

/// Updates a stored response from a newer one that confirms it: a 304, or an agreeing response to HEAD (§4.3.4,
/// §4.3.5).
///
/// Where the updated fields forbid to store it, the response serves the request that is waiting and no other:
/// its metadata says that every use needs validation, that nobody shares it, and that it is not to be kept.
pub fn freshen(
    exchange: &Exchange<'_>,
    (stored, headers): (&Metadata, &HeaderMap),
    rules: &Rules,
) -> (Metadata, HeaderMap) {
    let mut newer = exchange.response.clone();
    // A cookie that comes with the confirmation is not part of the stored response, and neither are fields
    // that must not be stored.
    let controls = Controls::of(&newer, rules);
    for name in controls.directives.private.fields().iter().chain(controls.directives.no_cache.fields()) {
        newer.remove(name);
    }
    if !rules.store_set_cookie {
        storing::remove_cookies(&mut newer);
    }
    let mut headers = validation::updated(headers, &newer, exchange.response_time);
    let whole = Exchange { method: &Method::GET, status: stored.status, response: &headers, ..*exchange };
    let metadata = match storing::judge(&whole, rules) {
        Ok(metadata) => metadata,
        Err(_) => dropped(Metadata::of(&whole, &Controls::of(&headers, rules), rules)),
    };
    metadata.remove_withheld(&mut headers);
    (metadata, headers)
}

/// Whether one who waits for a fetch may share its response.
///
/// Looks at the selecting fields, credentials and cookies of the follower (`asked`) and of the one whose
/// fields were sent (`leader`); not at freshness, unless the route says so: a response that arrived while one
/// waited is as new as the answer to a request of one's own.
pub fn may_share(
    metadata: &Metadata,
    asked: &Asked<'_>,
    leader: &HeaderMap,
    now: SystemTime,
    rules: &Rules,
) -> Result<(), Refusal> {
    // §4.1: "all the selecting header fields nominated by the Vary header field match". For whom it was not selected, it says nothing else.
    if !metadata.selection.matches(asked.headers) {
        return Err(Refusal::Vary);
    }
    // §5.2.2.4: "MUST NOT be used to satisfy any other request without forwarding it for validation".
    if metadata.is_validated_always() {
        return Err(Refusal::NoCache);
    }
    let either_has = |has: fn(&HeaderMap, &Rules) -> bool| has(asked.headers, rules) || has(leader, rules);
    // §3.5
    if !metadata.sharing.with_credentials && either_has(|headers, _| headers.contains_key(AUTHORIZATION)) {
        return Err(Refusal::Authorization);
    }
    // A cookie that selects the response has been compared above. Whose cookies are the same is the same to the upstream.
    if !metadata.sharing.with_cookies
        && !metadata.selection.names().contains(&COOKIE)
        && !asked.headers.get_all(COOKIE).iter().eq(leader.get_all(COOKIE))
        && either_has(|headers, rules| has_unkeyed_cookie(headers, &rules.keyed_cookies))
    {
        return Err(Refusal::Cookie);
    }
    match rules.share {
        Share::Fresh if !metadata.is_fresh(now) => Err(Refusal::NotFresh),
        Share::Fresh | Share::Storable => Ok(()),
    }
}

/// Whether those who wait for a response like this one are refused it for its age: what is stale on arrival, where the route
/// shares only what is fresh. Who may have it while it is refreshed does not wait, nor does who must validate it.
pub fn is_too_old_to_wait_for(metadata: &Metadata, now: SystemTime, rules: &Rules) -> bool {
    rules.share == Share::Fresh
        && !metadata.is_fresh(now)
        && !metadata.freshness.may_serve_while_revalidating(now)
        && !metadata.is_validated_always()
}

/// Whether a server error carries something that is meant for one client, or may be: those who wait then get an error of
/// the same status without its fields and body. To tell for whom it is, as of a good answer, is not worth it.
pub fn failure_is_private(exchange: &Exchange<'_>, rules: &Rules) -> bool {
    let controls = Controls::of(exchange.response, rules);
    let directives = &controls.directives;
    let is_of_some = |scope: &Scope| scope.is_everything() || !scope.fields().is_empty();
    storing::sets_cookie(exchange.response)
        || is_of_some(&directives.private)
        || is_of_some(&directives.no_cache)
        || directives.no_store
        || exchange.response.contains_key(VARY)
        || !storing::permits_shared_credentials(&controls)
            && (exchange.request.contains_key(AUTHORIZATION)
                || has_unkeyed_cookie(exchange.request, &rules.keyed_cookies))
}

/// A 304 to a validation: it updates the stored response if it is about it (§4.3.4).
fn confirm(exchange: &Exchange<'_>, stored: (&Metadata, &HeaderMap), rules: &Rules) -> Disposition {
    if !validation::identifies(exchange.response, stored.0.validators(stored.1)) {
        return Disposition::Invalid(Invalid::MismatchedNotModified);
    }
    let (metadata, headers) = freshen(exchange, stored, rules);
    Disposition::Freshen { metadata, headers }
}

/// Whether a later request may make any use of the response.
fn is_useful_later<Q, R>(exchange: &Exchange<'_, Q, R>, metadata: &Metadata) -> bool {
    // RFC 9110 §9.3.3: "Responses to POST requests are only cacheable when they include explicit freshness
    // information"; the same is asked of every method with a body.
    let basis = metadata.freshness.basis;
    let may_last = *exchange.method == Method::GET || basis.is_explicit() || basis == Basis::Override;
    may_last && (metadata.freshness.is_of_use(exchange.response_time) || metadata.is_validatable)
}

fn dropped(mut metadata: Metadata) -> Metadata {
    metadata.freshness.forbid_use();
    metadata.retention = Retention::Drop;
    metadata
}

/// Whether a request carries a cookie that is not a part of the key, or what may be taken for one.
pub fn has_unkeyed_cookie(headers: &impl Fields, keyed: &[String]) -> bool {
    let is_keyed = |pair: &[u8]| keyed.iter().any(|name| key::cookie_value(pair, name).is_some());
    headers.lines(&COOKIE).flat_map(key::cookie_pairs).any(|pair| !is_keyed(pair))
}

#[cfg(test)]
mod tests {
    use http::header::CONTENT_LENGTH;

    use super::super::testing::{Fate, Fetch, at, fields, get};
    use super::*;
    use std::time::Duration;

    const STORED: &str = "Cache-Control: max-age=10\nETag: \"a\"\nContent-Length: 3\nContent-Encoding: gzip\nX-A: 1\nX-B: 1\nAge: 3\nDate: Sun, 06 Nov 1994 08:49:37 GMT";

    /// What becomes of a response to the validation of [`STORED`], 100 seconds later.
    fn validated(status: u16, response: &str) -> Disposition {
        let stored = Fetch::of(STORED);
        let answer = Fetch::of(response).status(status).arrived(100);
        dispose(&answer.exchange(), Some((&stored.metadata(), &stored.response)), &answer.rules)
    }

    #[track_caller]
    fn freshened(response: &str) -> (Metadata, HeaderMap) {
        match validated(304, response) {
            Disposition::Freshen { metadata, headers } => (metadata, headers),
            other => panic!("{response}: {other:?}"),
        }
    }

    #[test]
    fn rfc9111_4_3_4_must_update_the_stored_fields() {
        let (metadata, headers) = freshened(
            "ETag: \"a\"\nCache-Control: max-age=20\nX-B: 2\nX-B: 3\nContent-Type: a/b\nContent-Length: 0\nContent-Encoding: br\nContent-Range: bytes 0-1/2\nDate: Sun, 06 Nov 1994 08:51:17 GMT",
        );
        let expected = fields(
            "ETag: \"a\"\nContent-Length: 3\nContent-Encoding: gzip\nX-A: 1\nCache-Control: max-age=20\nX-B: 2\nX-B: 3\nContent-Type: a/b\nDate: Sun, 06 Nov 1994 08:51:17 GMT",
        );
        assert_eq!(headers, expected);
        assert_eq!((metadata.age(at(100)), metadata.ttl_seconds(at(100))), (Duration::ZERO, 20));
        assert_eq!(metadata.status, StatusCode::OK);
    }

    #[test]
    fn rfc9110_6_6_1_must_append_a_date_where_the_304_has_none() {
        let (metadata, headers) = freshened("ETag: \"a\"");
        assert_eq!(headers["date"], "Sun, 06 Nov 1994 08:51:17 GMT");
        assert!(metadata.is_fresh(at(109)) && !metadata.is_fresh(at(110)));
    }

    #[test]
    fn rfc9111_4_3_4_must_not_update_from_another_response() {
        let mismatched = Disposition::Invalid(Invalid::MismatchedNotModified);
        assert_eq!(validated(304, "ETag: \"b\""), mismatched);
        assert_eq!(validated(304, "ETag: W/\"b\""), mismatched);
        assert_eq!(validated(304, "Last-Modified: Sun, 06 Nov 1993 08:49:37 GMT"), mismatched);
        freshened("ETag: W/\"a\"");
        freshened("ETag: \"a\"\nLast-Modified: Sun, 06 Nov 1993 08:49:37 GMT");
        freshened("");
    }

    #[test]
    fn a_304_never_brings_a_cookie_or_a_private_field_into_the_store() {
        let (metadata, headers) =
            freshened("Set-Cookie: a=b\nX-C: 1\nCache-Control: max-age=9, private=\"x-c, x-a\"");
        assert!(
            !headers.contains_key("set-cookie")
                && !headers.contains_key("x-c")
                && !headers.contains_key("x-a")
        );
        assert!(metadata.is_fresh(at(100)));
    }

    #[test]
    fn rfc9111_3_a_304_that_forbids_storing_ends_the_stored_response() {
        for directive in ["no-store", "private"] {
            let (metadata, _) =
                freshened(&format!("Cache-Control: {directive}, max-age=60, stale-if-error=60"));
            assert_eq!(metadata.useful_until(at(100)), Duration::ZERO);
            let headers = HeaderMap::new();
            let rules = Rules::default();
            assert_eq!(
                may_share(&metadata, &get(&headers), &headers, at(100), &rules),
                Err(Refusal::NoCache)
            );
            assert!(!metadata.may_serve_on_error(&get(&headers), at(100), &rules));
        }
    }

    #[test]
    fn rfc9111_4_3_3_must_use_a_full_response_and_may_store_it() {
        assert!(matches!(validated(200, "Cache-Control: max-age=5"), Disposition::Store(_)));
        assert_eq!(validated(503, "Cache-Control: max-age=5"), Disposition::Fail);
        assert_eq!(validated(404, "Cache-Control: no-store"), Disposition::Relay(Unstorable::NoStore));
    }

    #[test]
    fn what_was_not_asked_for_is_no_answer() {
        let of = |status| Fetch::of("Cache-Control: max-age=5\nETag: \"a\"").status(status).dispose();
        assert_eq!(of(304), Disposition::Invalid(Invalid::UnaskedNotModified));
        assert_eq!(of(206), Disposition::Invalid(Invalid::UnaskedPartial));
        assert_eq!(validated(206, "ETag: \"a\""), Disposition::Invalid(Invalid::UnaskedPartial));
    }

    #[test]
    fn rfc9111_4_3_5_must_update_from_an_agreeing_head() {
        let stored = Fetch::of(STORED);
        let head = Fetch::of("ETag: \"a\"\nContent-Length: 3\nX-A: 9").method("HEAD").arrived(50);
        let (metadata, headers) =
            freshen(&head.exchange(), (&stored.metadata(), &stored.response), &head.rules);
        assert_eq!(
            (&headers["x-a"], &headers[CONTENT_LENGTH]),
            (&"9".parse().unwrap(), &"3".parse().unwrap())
        );
        assert!(metadata.is_fresh(at(59)));
    }

    #[track_caller]
    fn check_share(response: &str, leader: &str, follower: &str, expected: Result<(), Refusal>) {
        let fetch = Fetch::of(response).request(leader);
        let found =
            may_share(&fetch.metadata(), &get(&fields(follower)), &fetch.request, at(0), &fetch.rules);
        assert_eq!(found, expected, "{response} | {leader} | {follower}");
    }

    #[test]
    fn who_may_share() {
        check_share("", "", "", Ok(()));
        check_share("Cache-Control: max-age=0", "", "", Ok(()));
        check_share("Cache-Control: no-cache\nETag: \"a\"", "", "", Err(Refusal::NoCache));
        check_share("Vary: Accept", "Accept: a/b", "Accept: a/b", Ok(()));
        check_share("Vary: Accept", "Accept: a/b", "Accept: a/c", Err(Refusal::Vary));
        check_share("Vary: Accept", "Accept: a/b", "", Err(Refusal::Vary));
    }

    #[test]
    fn rfc9111_3_5_must_not_share_for_credentials_without_permission() {
        let credentials = "Authorization: Basic YTpi";
        check_share("Cache-Control: max-age=60", "", credentials, Err(Refusal::Authorization));
        check_share("Cache-Control: max-age=60, public", credentials, credentials, Ok(()));
        check_share("Cache-Control: s-maxage=60", credentials, "", Ok(()));
        check_share("Cache-Control: max-age=60, must-revalidate", "", credentials, Ok(()));
    }

    #[test]
    fn other_cookies_share_only_what_later_requests_would_get_or_what_says_that_it_is_public() {
        for (leader, follower) in [("Cookie: a=b", ""), ("", "Cookie: a=b"), ("Cookie: a=b", "Cookie: a=c")] {
            for directives in ["", "max-age=0", "must-revalidate", "max-age=0, stale-if-error=9"] {
                let response = format!("Cache-Control: {directives}");
                check_share(&response, leader, follower, Err(Refusal::Cookie));
            }
            // Stale on arrival is stale, whatever the lifetime was.
            check_share("Cache-Control: max-age=9\nAge: 9", leader, follower, Err(Refusal::Cookie));
            check_share("Cache-Control: max-age=9\nAge: 8", leader, follower, Ok(()));
            let tolerant = "Cache-Control: max-age=9, stale-while-revalidate=9\nAge: 17";
            check_share(tolerant, leader, follower, Ok(()));
            for directives in ["max-age=1", "public", "s-maxage=0", "max-age=0, stale-while-revalidate=9"] {
                check_share(&format!("Cache-Control: {directives}"), leader, follower, Ok(()));
            }
            check_share("Last-Modified: Sun, 06 Nov 1993 08:49:37 GMT", leader, follower, Ok(()));
        }
        check_share("", "Cookie: a=b", "Cookie: a=b", Ok(()));
        check_share("", "Cookie: a=b\nCookie: c=d", "Cookie: a=b", Err(Refusal::Cookie));
        check_share("Vary: Cookie", "Cookie: a=b", "Cookie: a=b", Ok(()));
        check_share("Vary: Cookie", "Cookie: a=b", "Cookie: a=c", Err(Refusal::Vary));
    }

    #[test]
    fn a_cookie_that_is_part_of_the_key_does_not_prevent_sharing() {
        let fetch = Fetch::of("").rules(|rules| rules.keyed_cookies = vec!["lang".into()]);
        let share = |cookies: &str| {
            may_share(&fetch.metadata(), &get(&fields(cookies)), &fetch.request, at(0), &fetch.rules)
        };
        assert_eq!(share("Cookie: lang=de"), Ok(()));
        assert_eq!(share("Cookie: lang=de; id=7"), Err(Refusal::Cookie));
        assert_eq!(share("Cookie: language=de"), Err(Refusal::Cookie));
    }

    #[test]
    fn by_setting_only_what_is_fresh_is_shared() {
        let none = HeaderMap::new();
        let share = |response| {
            let fetch = Fetch::of(response).rules(|rules| rules.share = Share::Fresh);
            may_share(&fetch.metadata(), &get(&none), &none, at(0), &fetch.rules)
        };
        assert_eq!(share("Cache-Control: max-age=0"), Err(Refusal::NotFresh));
        assert_eq!(share("Cache-Control: max-age=1"), Ok(()));
    }

    #[test]
    fn a_failure_with_something_for_one_client_is_private() {
        let private = |fetch: &Fetch| failure_is_private(&fetch.exchange(), &fetch.rules);
        assert!(private(&Fetch::of("Set-Cookie: a=b").status(500)));
        assert!(private(&Fetch::of("Cache-Control: private").status(500)));
        assert!(private(&Fetch::of("").status(500).request("Authorization: x")));
        assert!(private(&Fetch::of("Cache-Control: no-store").status(500)));
        for line in ["no-cache", "no-cache=\"x-a\"", "private=\"x-a\""] {
            assert!(private(&Fetch::of(&format!("Cache-Control: {line}")).status(500)), "{line}");
        }
        for names in ["*", "Cookie", "Accept-Encoding"] {
            assert!(private(&Fetch::of(&format!("Vary: {names}")).status(500)), "{names}");
        }
        assert!(!private(&Fetch::of("Cache-Control: max-age=0").status(500)));
        assert_eq!(Fate::from(Fetch::of("Set-Cookie: a=b").status(500).dispose()), Fate::Failed);
    }
}
