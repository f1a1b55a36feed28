//! May the store answer (RFC 9111 §4)?

use std::borrow::Borrow;
use std::time::{Duration, SystemTime};

use http::Method;
use http::header::AUTHORIZATION;

use super::directives::RequestDirectives;
use super::freshness::Validation;
use super::metadata::Metadata;
use super::{Asked, Rules, forwarding};
use crate::outcome::Forward;

/// What to do with a request, given what is stored for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Deliver this stored response: it is fresh, or the client accepts it stale.
    Deliver {
        /// Its place among the stored responses.
        stored: usize,
    },
    /// Deliver this stored response at once and refresh it once in the background: it is stale within its
    /// window, or its early refresh is due.
    DeliverAndRefresh {
        /// Its place among the stored responses.
        stored: usize,
    },
    /// Ask the upstream before this stored response is used: it is stale, or says `no-cache`.
    Revalidate {
        /// Its place among the stored responses.
        stored: usize,
    },
    /// Nothing stored is of use for this request.
    Fetch(Forward),
    /// The request goes upstream alone, and nothing is stored.
    Pass(PassCause),
    /// The client wants a stored response or none: 504 (§5.2.1.7).
    Unsatisfiable,
}

/// Why a request goes upstream alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PassCause {
    /// The responses to its method are not stored.
    Method,
    /// The route has no cache.
    Disabled,
    /// It has a body that is not part of the key.
    RequestBody,
    /// It says `no-store`.
    RequestNoStore,
    /// It asks for another protocol.
    Upgrade,
    /// It asks for a range, and the route passes these.
    Range,
}

/// Whether the store may answer, and how.
///
/// `stored` are the responses stored under the request's key, in any order. `luck` is drawn uniformly from
/// (0, 1] for each request and decides about early refresh.
pub fn plan<V: Borrow<Metadata>>(
    asked: &Asked<'_>,
    stored: &[V],
    now: SystemTime,
    luck: f64,
    rules: &Rules,
) -> Plan {
    if let Some(cause) = must_pass(asked, rules) {
        return Plan::Pass(cause);
    }
    if !rules.honor_request_directives {
        return plan_storable(asked, stored, now, luck, rules, &RequestDirectives::default());
    }
    let wishes = RequestDirectives::of(asked.headers);
    if wishes.no_store {
        return Plan::Pass(PassCause::RequestNoStore);
    }
    let plan = plan_storable(asked, stored, now, luck, rules, &wishes);
    match plan {
        // §5.2.1.7: "the cache SHOULD either respond using a stored response [...] or respond with a 504".
        Plan::Revalidate { .. } | Plan::Fetch(_) if wishes.only_if_cached => Plan::Unsatisfiable,
        Plan::Revalidate { .. }
        | Plan::Fetch(_)
        | Plan::Deliver { .. }
        | Plan::DeliverAndRefresh { .. }
        | Plan::Pass(_)
        | Plan::Unsatisfiable => plan,
    }
}

fn plan_storable<V: Borrow<Metadata>>(
    asked: &Asked<'_>,
    stored: &[V],
    now: SystemTime,
    luck: f64,
    rules: &Rules,
    wishes: &RequestDirectives,
) -> Plan {
    let Some(selected) = select(asked, stored) else {
        return Plan::Fetch(if stored.is_empty() { Forward::UriMiss } else { Forward::VaryMiss });
    };
    let metadata = stored[selected].borrow();
    // §3.5, and stricter: credentials are answered from the store only where the response permits it.
    if !metadata.sharing.with_credentials && asked.headers.contains_key(AUTHORIZATION) {
        return Plan::Fetch(Forward::Request);
    }
    // §5.2.2.4: "MUST NOT be used [...] without forwarding it for validation".
    if metadata.is_validated_always() {
        return Plan::Revalidate { stored: selected };
    }
    if !metadata.is_fresh(now) {
        return plan_stale(metadata, selected, now, wishes);
    }
    if refuses_fresh(metadata, now, wishes) {
        return Plan::Fetch(Forward::Request);
    }
    if is_refresh_due(metadata, now, luck, rules) {
        return Plan::DeliverAndRefresh { stored: selected };
    }
    Plan::Deliver { stored: selected }
}

/// A stale response is served only where it is permitted and not prohibited (§4.2.4).
fn plan_stale(metadata: &Metadata, selected: usize, now: SystemTime, wishes: &RequestDirectives) -> Plan {
    // §5.2.1.1: "Unless the max-stale request directive is also present, the client does not wish to receive
    // a stale response."
    let refuses_stale = wishes.no_cache
        || wishes.min_fresh.is_some()
        || wishes.max_age.is_some_and(|max| wishes.max_stale.is_none() || metadata.age(now) > max);
    if refuses_stale {
        return Plan::Revalidate { stored: selected };
    }
    if metadata.freshness.may_serve_while_revalidating(now) {
        return Plan::DeliverAndRefresh { stored: selected };
    }
    // §5.2.1.2: "exceeded its freshness lifetime by no more than the specified number of seconds".
    let is_accepted = wishes.max_stale.is_some_and(|max| metadata.freshness.staleness(now) <= max);
    match metadata.freshness.validation {
        Validation::Optional if is_accepted => Plan::Deliver { stored: selected },
        Validation::Optional | Validation::WhenStale | Validation::Always => {
            Plan::Revalidate { stored: selected }
        }
    }
}

/// The stored response to use: of those that match the newest, by its `Date` (§4.1).
///
/// A response without `Vary` that is older than one with it does not match: "it SHOULD use the most recent
/// valid Vary field value available to select an appropriate response".
fn select<V: Borrow<Metadata>>(asked: &Asked<'_>, stored: &[V]) -> Option<usize> {
    match stored {
        [] => None,
        [only] => only.borrow().selection.matches(asked.headers).then_some(0),
        several => {
            let newest_varying = several
                .iter()
                .map(Borrow::borrow)
                .filter(|metadata| !metadata.selection.names().is_empty())
                .map(recency)
                .max();
            several
                .iter()
                .map(Borrow::borrow)
                .enumerate()
                .filter(|(_, metadata)| {
                    !metadata.selection.names().is_empty() || Some(recency(metadata)) >= newest_varying
                })
                .filter(|(_, metadata)| metadata.selection.matches(asked.headers))
                .max_by_key(|(_, metadata)| recency(metadata))
                .map(|(place, _)| place)
        }
    }
}

/// When a response was made, then when it was received.
fn recency(metadata: &Metadata) -> (SystemTime, SystemTime) {
    let response_time = metadata.freshness.response_time;
    (metadata.date.unwrap_or(response_time), response_time)
}

fn must_pass(asked: &Asked<'_>, rules: &Rules) -> Option<PassCause> {
    let method = asked.method;
    if !rules.enabled {
        Some(PassCause::Disabled)
    } else if *method != Method::GET && *method != Method::HEAD && !rules.body_methods.contains(method) {
        Some(PassCause::Method)
    } else if forwarding::requested_upgrade(asked.headers).is_some() {
        Some(PassCause::Upgrade)
    } else {
        None
    }
}

/// Whether the client refuses a response although it is fresh.
fn refuses_fresh(metadata: &Metadata, now: SystemTime, wishes: &RequestDirectives) -> bool {
    // §5.2.1.4
    wishes.no_cache
        // §5.2.1.1: "a response whose age is less than or equal to the specified number of seconds".
        || wishes.max_age.is_some_and(|max| metadata.age(now) > max)
        // §5.2.1.3: "no less than its current age plus the specified time in seconds".
        || wishes.min_fresh.is_some_and(|min| {
            metadata.freshness.lifetime < metadata.age(now).saturating_add(min)
        })
}

/// Whether a fresh response is to be refreshed already: the nearer its end and the longer a fetch takes, the
/// likelier, so that of many requests one comes first and the response never expires under load.
fn is_refresh_due(metadata: &Metadata, now: SystemTime, luck: f64, rules: &Rules) -> bool {
    let Some(weight) = rules.early_refresh else { return false };
    let ahead = metadata.fetch_time.as_secs_f64() * weight * -luck.clamp(f64::MIN_POSITIVE, 1.0).ln();
    let ahead = Duration::try_from_secs_f64(ahead).unwrap_or_default();
    metadata.age(now).saturating_add(ahead) >= metadata.freshness.lifetime
}
