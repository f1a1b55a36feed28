//! Every reason in words.

use crate::outcome::Forward;
use crate::policy::freshness::{Basis, Validation};
use crate::policy::{self, Metadata, PassCause, Rules};
use crate::store::Stored;
use std::time::{Duration, SystemTime};

pub(super) fn basis_word(basis: Basis) -> &'static str {
    match basis {
        Basis::SMaxage => "s-maxage",
        Basis::MaxAge => "max-age",
        Basis::Expires => "Expires",
        Basis::Override => "override_ttl of the route",
        Basis::Default => "default_ttl of the route",
        Basis::Heuristic => "heuristic, from Last-Modified",
        Basis::Nothing => "nothing",
    }
}

pub(super) fn validation_word(validation: Validation) -> &'static str {
    match validation {
        Validation::Optional => "optional",
        Validation::WhenStale => "when-stale",
        Validation::Always => "always",
    }
}

pub(super) fn delivery_words(metadata: &Metadata, now: SystemTime, rules: &Rules) -> String {
    let freshness = &metadata.freshness;
    let staleness = freshness.staleness(now);
    let window = freshness.stale_while_revalidate();
    if metadata.is_fresh(now) {
        let (lifetime, age) = (seconds(freshness.lifetime()), seconds(metadata.age(now)));
        let early = rules.early_refresh.map_or_else(String::new, |_| {
            let percent = policy::early_refresh_chance(metadata, now, rules) * 100.0;
            format!("; of the requests at its age {percent:.0} % refresh it (early_refresh)")
        });
        format!(
            "fresh: its age is {age} of a lifetime of {lifetime} ({}){early}",
            basis_word(freshness.basis)
        )
    } else if freshness.may_serve_while_revalidating(now) {
        format!("stale for {}, within stale-while-revalidate ({})", seconds(staleness), seconds(window))
    } else {
        format!("stale for {}, which the request accepts (max-stale)", seconds(staleness))
    }
}

pub(super) fn validation_words(stored: &Stored, now: SystemTime) -> String {
    let metadata = stored.metadata();
    let reason = if metadata.is_validated_always() {
        "no-cache: every use needs a validation".to_owned()
    } else if metadata.is_fresh(now) {
        "fresh, but the request wants it confirmed (Cache-Control or Pragma)".to_owned()
    } else {
        format!("stale for {}", seconds(metadata.freshness.staleness(now)))
    };
    let means = if metadata.is_validatable {
        "it has a validator, so a 304 can renew it"
    } else {
        "it has no validator, so all of it is fetched"
    };
    format!("{reason}; {means}")
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}

pub(super) fn fetch_words(forward: Forward, was_purged: bool) -> &'static str {
    match forward {
        Forward::UriMiss if was_purged => "what was stored under the key has been purged",
        Forward::UriMiss => "nothing is stored under the key",
        Forward::VaryMiss => "what is stored under the key is for other values of the selecting fields",
        Forward::Request => {
            "the request has credentials, and what is stored is not known to be for everyone (Authorization)"
        }
        Forward::Stale => "what is stored is stale",
        Forward::Bypass => "the cache does not handle it",
        Forward::Method => "its method requires it",
    }
}

pub(super) fn pass_words(cause: PassCause) -> &'static str {
    match cause {
        PassCause::Method => "the responses to its method are not stored",
        PassCause::Disabled => "the route has no cache",
        PassCause::RequestBody => "it has a body that is not part of the key",
        PassCause::RequestNoStore => "it says no-store, and the route heeds that",
        PassCause::Upgrade => "it asks for another protocol",
        PassCause::Range => "it asks for a range, and the route passes these",
    }
}
