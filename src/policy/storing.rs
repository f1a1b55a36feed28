//! Which responses may be stored (RFC 9111 §3).

use http::header::{AUTHORIZATION, CONTENT_LOCATION, SET_COOKIE};
use http::{HeaderMap, Method, StatusCode};

use super::directives::RequestDirectives;
use super::freshness::Basis;
use super::invalidation::{self, Target};
use super::metadata::Metadata;
use super::targeted::Controls;
use super::{Exchange, Rules};

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
}

impl Unstorable {
    /// Every reason.
    pub const ALL: [Self; 12] = [
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
        }
    }
}

/// What is to be known of a response that may be stored, or why it may not.
pub fn judge(exchange: &Exchange<'_>, rules: &Rules) -> Result<Metadata, Unstorable> {
    if !rules.enabled {
        return Err(Unstorable::Disabled);
    }
    // "the request method is understood by the cache": HEAD is understood, but has no body to store.
    let has_keyed_body = rules.body_methods.contains(exchange.method);
    if *exchange.method != Method::GET && !has_keyed_body {
        return Err(Unstorable::Method);
    }
    let controls = Controls::of(exchange.response, rules);
    permit(exchange, &controls, rules)?;
    let metadata = Metadata::of(exchange, &controls, rules);
    // RFC 9110 §9.3.3: "Responses to POST requests are only cacheable when they include explicit freshness
    // information"; the same is asked of every method with a body, and of errors.
    if (has_keyed_body || exchange.status.is_server_error()) && !metadata.freshness.basis.is_explicit() {
        return Err(Unstorable::NoFreshness);
    }
    if !has_permission_to_last(exchange.status, &controls, metadata.freshness.basis) {
        return Err(Unstorable::NoFreshness);
    }
    if metadata.selection.is_star() {
        return Err(Unstorable::VaryStar);
    }
    if metadata.is_validated_always() && metadata.validators.is_empty() {
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
fn permit(exchange: &Exchange<'_>, controls: &Controls, rules: &Rules) -> Result<(), Unstorable> {
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
    if sets_cookie(exchange.response) && !rules.store_set_cookie {
        return Err(Unstorable::SetCookie);
    }
    // "the Authorization header field is not present in the request or a response directive is present that
    // explicitly allows shared caching".
    if exchange.request.contains_key(AUTHORIZATION) && !permits_shared_credentials(controls) {
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

pub(super) fn sets_cookie(response: &HeaderMap) -> bool {
    response.contains_key(SET_COOKIE) || response.contains_key("set-cookie2")
}

pub(super) fn remove_cookies(response: &mut HeaderMap) {
    response.remove(SET_COOKIE);
    response.remove("set-cookie2");
}
