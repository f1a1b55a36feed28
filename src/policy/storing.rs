//! Which responses may be stored (RFC 9111 §3).

use http::header::{AUTHORIZATION, CONTENT_LOCATION, SET_COOKIE};
use http::{HeaderMap, HeaderName, Method, StatusCode};

use super::directives::{RequestDirectives, ResponseDirectives};
use super::freshness::Basis;
use super::invalidation::{self, Target};
use super::metadata::Metadata;
use super::targeted::Controls;
use super::{Exchange, Fields, Rules};

/// Why a response may not be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unstorable {
    /// The route has no cache.
    Disabled,
    /// The method's responses are not stored.
    Method,
    /// The status is not final, or is an error that the route does not store.
    Status,
    /// The response says `must-understand`, and its status is not understood.
    MustUnderstand,
    /// The request says `no-store`.
    RequestNoStore,
    /// The response says `no-store`.
    NoStore,
    /// The response says `private`.
    Private,
    /// The response sets a cookie.
    SetCookie,
    /// The response varies on something that no request can tell.
    VaryStar,
    /// The request carried credentials, and the response does not permit sharing.
    Authorization,
    /// The response says `no-cache` and has no validator by which it could be asked again.
    NoCache,
    /// Neither the response nor its status permits a lifetime.
    NoFreshness,
    /// It is another kind of thing than the extension of its path says.
    Extension,
}

impl Unstorable {
    /// Every reason.
    pub const ALL: [Self; 13] = [
        Self::Disabled,
        Self::Method,
        Self::Status,
        Self::MustUnderstand,
        Self::RequestNoStore,
        Self::NoStore,
        Self::Private,
        Self::SetCookie,
        Self::VaryStar,
        Self::Authorization,
        Self::NoCache,
        Self::NoFreshness,
        Self::Extension,
    ];

    /// The word for the `detail` parameter of RFC 9211.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Method => "method",
            Self::Status => "status",
            Self::MustUnderstand => "must-understand",
            Self::RequestNoStore => "request-no-store",
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::SetCookie => "set-cookie",
            Self::VaryStar => "vary-star",
            Self::Authorization => "authorization",
            Self::NoCache => "no-cache",
            Self::NoFreshness => "no-freshness",
            Self::Extension => "extension",
        }
    }
}

/// What is to be known of a response that may be stored, or why it may not.
pub fn judge<Q, R>(exchange: &Exchange<'_, Q, R>, rules: &Rules) -> Result<Metadata, Unstorable>
where
    Q: Fields,
    R: Fields,
{
    if !rules.enabled {
        return Err(Unstorable::Disabled);
    }
    // "the request method is understood by the cache": HEAD is understood, but has no body to store.
    if *exchange.method != Method::GET && !rules.body_methods.contains(exchange.method) {
        return Err(Unstorable::Method);
    }
    let controls = Controls::of(exchange.response, rules);
    permit(exchange, &controls, rules)?;
    let metadata = Metadata::of(exchange, &controls, rules);
    // An error is stored only where it asks for it.
    if exchange.status.is_server_error() && !metadata.freshness.basis.is_explicit() {
        return Err(Unstorable::NoFreshness);
    }
    if !has_permission_to_last(exchange.status, &controls, metadata.freshness.basis) {
        return Err(Unstorable::NoFreshness);
    }
    if metadata.selection.is_star() {
        return Err(Unstorable::VaryStar);
    }
    if metadata.is_validated_always() && !metadata.is_validatable {
        return Err(Unstorable::NoCache);
    }
    Ok(metadata)
}

/// The response to a POST as the response to a later GET of the same target: "a 2xx response to POST with
/// explicit freshness and a Content-Location that has the same value as the POST's target URI" (RFC 9110
/// §9.3.3). `None` where the route does not opt in, or the response does not qualify.
pub fn post_as_get(exchange: &Exchange<'_>, target: &Target<'_>, rules: &Rules) -> Option<Metadata> {
    if !rules.store_post_as_get || *exchange.method != Method::POST || !exchange.status.is_success() {
        return None;
    }
    let location = exchange.response.get(CONTENT_LOCATION)?.to_str().ok()?;
    if invalidation::resolve(target, location)? != target.path_and_query {
        return None;
    }
    let metadata = judge(&Exchange { method: &Method::GET, ..*exchange }, rules).ok()?;
    metadata.freshness.basis.is_explicit().then_some(metadata)
}

/// Whether responses with this status may be given a lifetime of the cache's own making (RFC 9110 §15.1).
pub fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Whether the status is one whose caching this cache knows all about (RFC 9111 §5.2.2.3).
pub fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200..=205 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 500..=505
    )
}

/// Whether the response permits its use for requests other than the one with credentials that caused it
/// (RFC 9111 §3.5: "must-revalidate, public, and s-maxage").
pub fn permits_shared_credentials(controls: &Controls) -> bool {
    let directives = &controls.directives;
    directives.public || directives.must_revalidate || directives.s_maxage.is_some()
}

/// The prohibitions of §3, in its order.
fn permit<Q, R>(exchange: &Exchange<'_, Q, R>, controls: &Controls, rules: &Rules) -> Result<(), Unstorable>
where
    Q: Fields,
    R: Fields,
{
    let directives = &controls.directives;
    // "the response status code is final"; 206 and 304 are never stored as they are.
    if exchange.status.is_informational()
        || matches!(exchange.status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED)
        || exchange.status.is_server_error() && !rules.store_server_errors
    {
        return Err(Unstorable::Status);
    }
    // §5.2.1.5: "a cache MUST NOT store any part of either this request or any response to it".
    if rules.honor_request_directives && RequestDirectives::of(exchange.request).no_store {
        return Err(Unstorable::RequestNoStore);
    }
    // "the must-understand cache directive is present: the cache understands the response status code".
    let is_understood = is_understood(exchange.status);
    if directives.must_understand && !is_understood {
        return Err(Unstorable::MustUnderstand);
    }
    // §5.2.2.3: such caches "SHOULD ignore the no-store directive in responses that contain both directives".
    if directives.no_store && !(directives.must_understand && is_understood) {
        return Err(Unstorable::NoStore);
    }
    if directives.private.is_everything() {
        return Err(Unstorable::Private);
    }
    if !rules.store_set_cookie && stores_cookie(exchange.response, directives) {
        return Err(Unstorable::SetCookie);
    }
    // "the Authorization header field is not present in the request or a response directive is present that
    // explicitly allows shared caching".
    if exchange.request.has(&AUTHORIZATION) && !permits_shared_credentials(controls) {
        return Err(Unstorable::Authorization);
    }
    Ok(())
}

/// Whether "the response contains at least one of" the permissions of §3.
fn has_permission_to_last(status: StatusCode, controls: &Controls, basis: Basis) -> bool {
    controls.directives.public
        || basis.is_explicit()
        || basis == Basis::Override
        || is_heuristically_cacheable(status)
}

/// Whether a cookie would be stored with the response: one that `private="set-cookie"` or `no-cache="set-cookie"`
/// withholds would not.
fn stores_cookie(response: &impl Fields, directives: &ResponseDirectives) -> bool {
    let is_withheld = |name: &HeaderName| {
        [&directives.private, &directives.no_cache].iter().any(|scope| scope.fields().contains(name))
    };
    [SET_COOKIE, SET_COOKIE_2].iter().any(|name| response.has(name) && !is_withheld(name))
}

const SET_COOKIE_2: HeaderName = HeaderName::from_static("set-cookie2");

pub(super) fn sets_cookie(response: &HeaderMap) -> bool {
    response.contains_key(SET_COOKIE) || response.contains_key(SET_COOKIE_2)
}

pub(super) fn remove_cookies(response: &mut HeaderMap) {
    response.remove(SET_COOKIE);
    response.remove(SET_COOKIE_2);
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fate, Fetch, at};
    use super::*;

    #[track_caller]
    fn check(fetch: &Fetch, fate: &Fate) {
        assert_eq!(Fate::from(fetch.dispose()), *fate, "{} {:?}", fetch.status, fetch.response);
    }

    #[track_caller]
    fn check_fields(response: &str, fate: &Fate) {
        check(&Fetch::of(response), fate);
    }

    const FRESH: &str = "Cache-Control: max-age=60";

    #[test]
    fn rfc9111_3_must_not_store_what_forbids_it() {
        check_fields("Cache-Control: no-store, max-age=60", &Fate::Relayed(Unstorable::NoStore));
        check_fields(
            "Cache-Control: max-age=60\nCache-Control: No-Store",
            &Fate::Relayed(Unstorable::NoStore),
        );
        check_fields("Cache-Control: private, max-age=60", &Fate::Relayed(Unstorable::Private));
        check_fields("Cache-Control: public, max-age=60, PRIVATE", &Fate::Relayed(Unstorable::Private));
        check_fields("Cache-Control: max-age=60\nVary: *", &Fate::Relayed(Unstorable::VaryStar));
        check_fields(
            "Cache-Control: max-age=60\nVary:\nVary: accept, *",
            &Fate::Relayed(Unstorable::VaryStar),
        );
        check_fields("Cache-Control: max-age=60\nVary: not a name", &Fate::Relayed(Unstorable::VaryStar));
    }

    #[test]
    fn rfc9111_3_must_not_store_statuses_without_permission() {
        for status in [
            200, 201, 202, 203, 204, 299, 300, 301, 302, 303, 307, 308, 399, 400, 403, 404, 410, 418, 451,
            499,
        ] {
            check(&Fetch::of(FRESH).status(status), &Fate::Stored);
        }
        for status in [201, 299, 302, 303, 307, 400, 403, 418, 499] {
            check(&Fetch::of("").status(status), &Fate::Relayed(Unstorable::NoFreshness));
        }
        for status in [200, 203, 204, 300, 301, 308, 404, 405, 410, 414] {
            check(&Fetch::of("").status(status), &Fate::Shared);
        }
        check(&Fetch::of("Cache-Control: public\nETag: \"a\"").status(299), &Fate::Stored);
        check(&Fetch::of("Cache-Control: public").status(499), &Fate::Shared);
        check(&Fetch::of(FRESH).status(103), &Fate::Relayed(Unstorable::Status));
    }

    #[test]
    fn rfc9111_4_3_4_only_a_success_is_kept_for_validation() {
        for (status, fate) in
            [(200, Fate::Stored), (203, Fate::Stored), (301, Fate::Shared), (404, Fate::Shared)]
        {
            check(&Fetch::of("ETag: \"a\"").status(status), &fate);
        }
        let response = "Cache-Control: max-age=9\nETag: \"a\"";
        assert!(!Fetch::of(response).status(404).metadata().is_validatable);
    }

    #[test]
    fn server_errors_are_stored_only_by_setting_and_with_explicit_freshness() {
        for status in [500, 501, 502, 503, 504, 599] {
            check(&Fetch::of(FRESH).status(status), &Fate::Failed);
            let opted_in =
                |response| Fetch::of(response).status(status).rules(|rules| rules.store_server_errors = true);
            check(&opted_in(FRESH), &Fate::Stored);
            check(&opted_in(""), &Fate::Failed);
            check(&opted_in("Last-Modified: Sun, 06 Nov 1993 08:49:37 GMT"), &Fate::Failed);
            check(&opted_in("Cache-Control: max-age=0"), &Fate::Failed);
            check(&opted_in("Cache-Control: no-store, max-age=60"), &Fate::Failed);
        }
    }

    #[test]
    fn rfc9111_5_2_2_3_must_understand_overrides_no_store_where_the_status_is_understood() {
        let response = "Cache-Control: no-store, must-understand, max-age=60";
        check(&Fetch::of(response), &Fate::Stored);
        check(&Fetch::of(response).status(404), &Fate::Stored);
        check(&Fetch::of(response).status(499), &Fate::Relayed(Unstorable::MustUnderstand));
        let response = "Cache-Control: must-understand, max-age=60";
        check(&Fetch::of(response).status(299), &Fate::Relayed(Unstorable::MustUnderstand));
    }

    #[test]
    fn rfc9111_5_2_2_4_no_cache_is_stored_only_with_a_validator() {
        check_fields("Cache-Control: no-cache\nETag: \"a\"", &Fate::Stored);
        check_fields(
            "Cache-Control: no-cache, max-age=60\nLast-Modified: Sun, 06 Nov 1993 08:49:37 GMT",
            &Fate::Stored,
        );
        check_fields("Cache-Control: no-cache, max-age=60", &Fate::Relayed(Unstorable::NoCache));
        check_fields("Cache-Control: no-cache=\"x-a\", max-age=60", &Fate::Stored);
    }

    #[test]
    fn rfc9111_5_2_2_7_qualified_forms_withhold_fields() {
        let fetch =
            Fetch::of("Cache-Control: private=\"X-A\", no-cache=\"x-b\", max-age=60\nX-A: 1\nX-B: 2\nX-C: 3");
        let metadata = fetch.metadata();
        let mut kept = fetch.response.clone();
        metadata.remove_withheld(&mut kept);
        assert!(!kept.contains_key("x-a") && !kept.contains_key("x-b") && kept.contains_key("x-c"));
        assert!(!metadata.is_validated_always());
    }

    #[test]
    fn a_validator_that_must_not_be_stored_is_none() {
        let of = |control: &str| {
            let stored = "ETag: \"a\"\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT";
            Fetch::of(&format!("Cache-Control: {control}, max-age=60\n{stored}")).metadata()
        };
        assert!(of("private=\"etag\"").is_validatable);
        assert!(!of("private=\"etag\", no-cache=\"last-modified\"").is_validatable);
    }

    #[test]
    fn a_cookie_is_stored_only_by_setting() {
        let response = "Cache-Control: public, max-age=60\nSet-Cookie: a=b";
        check_fields(response, &Fate::Relayed(Unstorable::SetCookie));
        check(&Fetch::of(response).rules(|rules| rules.store_set_cookie = true), &Fate::Stored);
        for control in ["private=\"set-cookie\"", "no-cache=\"Set-Cookie, x-a\""] {
            let fetch =
                Fetch::of(&format!("Cache-Control: {control}, max-age=60\nSet-Cookie: a=b\nSet-Cookie: c=d"));
            check(&fetch, &Fate::Stored);
            let mut kept = fetch.response.clone();
            let withheld = fetch.metadata().remove_withheld(&mut kept);
            assert!(!sets_cookie(&kept));
            assert_eq!(withheld.get_all(SET_COOKIE).iter().count(), 2);
        }
    }

    #[test]
    fn rfc9111_3_5_must_not_store_for_credentials_without_permission() {
        let with_credentials = |response| Fetch::of(response).request("Authorization: Basic YTpi");
        check(&with_credentials(FRESH), &Fate::Relayed(Unstorable::Authorization));
        check(
            &with_credentials("Cache-Control: max-age=60, proxy-revalidate"),
            &Fate::Relayed(Unstorable::Authorization),
        );
        check(&with_credentials("Cache-Control: max-age=60, public"), &Fate::Stored);
        check(&with_credentials("Cache-Control: max-age=60, must-revalidate"), &Fate::Stored);
        check(&with_credentials("Cache-Control: s-maxage=60"), &Fate::Stored);
        check(&with_credentials("Cache-Control: s-maxage=0"), &Fate::Shared);
    }

    #[test]
    fn what_can_be_of_no_later_use_is_only_shared() {
        check_fields("Cache-Control: max-age=0", &Fate::Shared);
        check_fields("Cache-Control: max-age=60\nAge: 60", &Fate::Shared);
        check_fields("Expires: 0", &Fate::Shared);
        check_fields("Cache-Control: max-age=0, stale-while-revalidate=5", &Fate::Stored);
        check_fields("Cache-Control: max-age=0, stale-if-error=5", &Fate::Stored);
        check_fields("Cache-Control: max-age=0, must-revalidate, stale-if-error=5", &Fate::Shared);
        check_fields("Cache-Control: max-age=0\nETag: \"a\"", &Fate::Stored);
    }

    #[test]
    fn rfc9111_3_must_understand_the_method() {
        for method in ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "QUERY", "FOO"] {
            check(&Fetch::of(FRESH).method(method), &Fate::Relayed(Unstorable::Method));
            // A GET would fail as HEAD does.
            let failed = if method == "HEAD" { Fate::Failed } else { Fate::Relayed(Unstorable::Method) };
            check(&Fetch::of(FRESH).method(method).status(503), &failed);
        }
        let keyed = |response| {
            Fetch::of(response)
                .method("QUERY")
                .rules(|rules| rules.body_methods = vec![Method::from_bytes(b"QUERY").unwrap()])
        };
        check(&keyed(FRESH), &Fate::Stored);
        // RFC 9110 §9.3.3: without explicit freshness it may be shared, but not be stored.
        check(&keyed("ETag: \"a\""), &Fate::Shared);
        check(&keyed("Last-Modified: Sun, 06 Nov 1993 08:49:37 GMT"), &Fate::Shared);
        check(&keyed("Cache-Control: private"), &Fate::Relayed(Unstorable::Private));
        check(&Fetch::of(FRESH).rules(|rules| rules.enabled = false), &Fate::Relayed(Unstorable::Disabled));
    }

    #[test]
    fn rfc9111_5_2_1_5_must_not_store_for_a_no_store_request_that_is_honoured() {
        let fetch = || Fetch::of(FRESH).request("Cache-Control: no-store");
        check(&fetch(), &Fate::Stored);
        let honoured = fetch().rules(|rules| rules.honor_request_directives = true);
        check(&honoured, &Fate::Relayed(Unstorable::RequestNoStore));
    }

    #[test]
    fn an_override_makes_nothing_private_storable() {
        let fetch = |response| {
            Fetch::of(response).rules(|rules| rules.override_ttl = Some(std::time::Duration::from_secs(9)))
        };
        check(&fetch("Cache-Control: max-age=0"), &Fate::Stored);
        check(&fetch(""), &Fate::Stored);
        check(&fetch("Cache-Control: private"), &Fate::Relayed(Unstorable::Private));
        check(&fetch("Cache-Control: no-store"), &Fate::Relayed(Unstorable::NoStore));
        check(&fetch("Set-Cookie: a=b"), &Fate::Relayed(Unstorable::SetCookie));
        check(&fetch("Cache-Control: no-cache"), &Fate::Relayed(Unstorable::NoCache));
        check(&fetch("").status(404), &Fate::Shared);
    }

    #[test]
    fn rfc9213_2_2_a_targeted_field_decides_alone() {
        check_fields("Cache-Control: no-store\nCDN-Cache-Control: max-age=60", &Fate::Stored);
        check_fields(
            "Cache-Control: max-age=60\nCDN-Cache-Control: no-store",
            &Fate::Relayed(Unstorable::NoStore),
        );
        check_fields(
            "Cache-Control: max-age=60\nCDN-Cache-Control: private",
            &Fate::Relayed(Unstorable::Private),
        );
        check_fields(
            "Cache-Control: no-store\nCDN-Cache-Control: max-age=60, &",
            &Fate::Relayed(Unstorable::NoStore),
        );
    }

    #[test]
    fn rfc9110_9_3_3_a_post_answers_later_gets_only_with_freshness_and_its_own_location() {
        let target = Target { scheme: "http", host: "a.example", path_and_query: "/x?y" };
        let as_get = |response: &str, enabled| {
            let fetch = Fetch::of(response).method("POST").rules(|rules| rules.store_post_as_get = enabled);
            post_as_get(&fetch.exchange(), &target, &fetch.rules).is_some()
        };
        assert!(as_get("Cache-Control: max-age=60\nContent-Location: /x?y", true));
        assert!(as_get("Cache-Control: max-age=60\nContent-Location: http://a.example:80/x?y", true));
        assert!(!as_get("Cache-Control: max-age=60\nContent-Location: /x?y", false));
        assert!(!as_get("Cache-Control: max-age=60\nContent-Location: /x", true));
        assert!(!as_get("Cache-Control: max-age=60\nContent-Location: http://b.example/x?y", true));
        assert!(!as_get("Cache-Control: max-age=60", true));
        assert!(!as_get("Content-Location: /x?y\nETag: \"a\"", true));
    }

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        let words: std::collections::BTreeSet<_> = Unstorable::ALL.iter().map(|why| why.detail()).collect();
        assert_eq!(words.len(), Unstorable::ALL.len());
    }

    #[test]
    fn useful_until_bounds_how_long_a_response_is_kept() {
        let seconds = |response: &str| Fetch::of(response).metadata().useful_until(at(0)).as_secs();
        assert_eq!(seconds("Cache-Control: max-age=60"), 60);
        assert_eq!(seconds("Cache-Control: max-age=60\nAge: 20"), 40);
        assert_eq!(seconds("Cache-Control: max-age=60, stale-if-error=40, stale-while-revalidate=9"), 100);
        assert_eq!(seconds("Cache-Control: max-age=60\nETag: \"a\""), 60 + 3600);
        assert_eq!(seconds("Cache-Control: max-age=999999\nETag: \"a\""), 999_999 + 86_400);
        assert_eq!(seconds("Cache-Control: max-age=60\nAge: 600\nETag: \"a\""), 3600);
        assert_eq!(seconds("Cache-Control: max-age=0"), 0);
    }

    #[test]
    fn rfc9211_2_4_ttl_is_negative_when_stale() {
        let metadata = Fetch::of("Cache-Control: max-age=60\nAge: 20").metadata();
        assert_eq!((metadata.ttl_seconds(at(0)), metadata.ttl_seconds(at(100))), (40, -60));
        let expired = metadata.clone().expired(at(10));
        assert!(!expired.is_fresh(at(10)) && !expired.is_fresh(at(5_000)));
        let on_its_way = at(0) - std::time::Duration::from_secs(5);
        assert_eq!(metadata.expired(on_its_way).ttl_seconds(at(0)), -5);
    }
}
