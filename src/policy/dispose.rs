//! What of what came back (RFC 9111 §3, §4.3.3)?

use std::time::{Duration, SystemTime};

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, Method, StatusCode};

use super::freshness::Validation;
use super::metadata::{Metadata, Retention};
use super::storing::{self, Unstorable};
use super::targeted::Controls;
use super::{Asked, Exchange, Rules, Share, validation};

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
    /// One of them carries cookies.
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
    let is_error = exchange.status.is_server_error();
    match storing::judge(exchange, rules) {
        Ok(metadata) if is_useful_later(&metadata, exchange.response_time) => Disposition::Store(metadata),
        Ok(_) if is_error => Disposition::Fail,
        Ok(metadata) => Disposition::Share(metadata),
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
    // §5.2.2.4: "MUST NOT be used to satisfy any other request without forwarding it for validation".
    if metadata.is_validated_always() {
        return Err(Refusal::NoCache);
    }
    // §4.1: "all the selecting header fields nominated by the Vary header field match".
    if !metadata.selection.matches(asked.headers) {
        return Err(Refusal::Vary);
    }
    let either_has = |has: fn(&HeaderMap, &Rules) -> bool| has(asked.headers, rules) || has(leader, rules);
    // §3.5
    if !metadata.sharing.with_credentials && either_has(|headers, _| headers.contains_key(AUTHORIZATION)) {
        return Err(Refusal::Authorization);
    }
    // A cookie that selects the response has been compared above.
    if !metadata.sharing.with_cookies
        && !metadata.selection.names().contains(&COOKIE)
        && either_has(|headers, rules| has_unkeyed_cookie(headers, &rules.keyed_cookies))
    {
        return Err(Refusal::Cookie);
    }
    match rules.share {
        Share::Fresh if !metadata.is_fresh(now) => Err(Refusal::NotFresh),
        Share::Fresh | Share::Storable => Ok(()),
    }
}

/// Whether a server error carries something that is meant for one client: those who wait then get an error of
/// the same status without its fields and body.
pub fn failure_is_private(exchange: &Exchange<'_>, rules: &Rules) -> bool {
    let controls = Controls::of(exchange.response, rules);
    storing::sets_cookie(exchange.response)
        || controls.directives.private.is_everything()
        || exchange.request.contains_key(AUTHORIZATION) && !storing::permits_shared_credentials(&controls)
}

/// A 304 to a validation: it updates the stored response if it is about it (§4.3.4).
fn confirm(exchange: &Exchange<'_>, stored: (&Metadata, &HeaderMap), rules: &Rules) -> Disposition {
    if !validation::identifies(exchange.response, &stored.0.validators) {
        return Disposition::Invalid(Invalid::MismatchedNotModified);
    }
    let (metadata, headers) = freshen(exchange, stored, rules);
    Disposition::Freshen { metadata, headers }
}

/// Whether a later request can make any use of the response.
fn is_useful_later(metadata: &Metadata, now: SystemTime) -> bool {
    metadata.freshness.is_of_use(now) || !metadata.validators.is_empty()
}

fn dropped(mut metadata: Metadata) -> Metadata {
    metadata.freshness.validation = Validation::Always;
    metadata.freshness.stale_while_revalidate = Duration::ZERO;
    metadata.freshness.stale_if_error = Duration::ZERO;
    metadata.retention = Retention::Drop;
    metadata
}

/// Whether a request carries a cookie that is not a part of the key.
fn has_unkeyed_cookie(headers: &HeaderMap, keyed: &[String]) -> bool {
    headers.get_all(COOKIE).iter().any(|line| {
        line.as_bytes()
            .split(|byte| *byte == b';')
            .map(<[u8]>::trim_ascii)
            .filter(|pair| !pair.is_empty())
            .any(|pair| {
                let name = pair.split(|byte| *byte == b'=').next().unwrap_or(pair);
                !keyed.iter().any(|keyed| keyed.as_bytes() == name.trim_ascii())
            })
    })
}
