//! May the store answer (RFC 9111 §4)?

use std::borrow::Borrow;
use std::time::SystemTime;

use http::Method;
use http::header::AUTHORIZATION;

use super::directives::RequestDirectives;
use super::freshness::Validation;
use super::metadata::Metadata;
use super::{Asked, Fields, Rules, forwarding};
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
    /// Ask the upstream before this stored response is used: it is stale, or says `no-cache`, or the client wants it
    /// confirmed.
    Revalidate {
        /// Its place among the stored responses.
        stored: usize,
        /// Which of these it is.
        forward: Forward,
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
/// `stored` are the responses stored under the request's key, the one that was stored last first. `luck` is drawn uniformly from
/// (0, 1] for each request and decides about early refresh.
pub fn plan<V: Borrow<Metadata>>(
    asked: &Asked<'_, impl Fields>,
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
    asked: &Asked<'_, impl Fields>,
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
    if !metadata.sharing.with_credentials && asked.headers.has(&AUTHORIZATION) {
        return Plan::Fetch(Forward::Request);
    }
    // §5.2.2.4: "MUST NOT be used [...] without forwarding it for validation".
    if metadata.is_validated_always() {
        return Plan::Revalidate { stored: selected, forward: Forward::Stale };
    }
    if !metadata.is_fresh(now) {
        return plan_stale(metadata, selected, now, wishes);
    }
    if refuses_fresh(metadata, now, wishes) {
        // §5.2.1.4: "without successful validation on the origin server".
        return Plan::Revalidate { stored: selected, forward: Forward::Request };
    }
    if luck < early_refresh_chance(metadata, now, rules) {
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
        return Plan::Revalidate { stored: selected, forward: Forward::Stale };
    }
    if metadata.freshness.may_serve_while_revalidating(now) {
        return Plan::DeliverAndRefresh { stored: selected };
    }
    // §5.2.1.2: "exceeded its freshness lifetime by no more than the specified number of seconds".
    let is_accepted = wishes.max_stale.is_some_and(|max| metadata.freshness.staleness(now) <= max);
    match metadata.freshness.validation {
        Validation::Optional if is_accepted => Plan::Deliver { stored: selected },
        Validation::Optional | Validation::WhenStale | Validation::Always => {
            Plan::Revalidate { stored: selected, forward: Forward::Stale }
        }
    }
}

/// The stored response to use: of those that match the newest, by its `Date` (§4.1), and of those that are equally
/// recent the first.
///
/// A response without `Vary` that is older than one with it does not match: "it SHOULD use the most recent
/// valid Vary field value available to select an appropriate response".
fn select<V: Borrow<Metadata>>(asked: &Asked<'_, impl Fields>, stored: &[V]) -> Option<usize> {
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
                // Of several that are equally recent the last one counts: that is the first in the store's order.
                .rev()
                .max_by_key(|(_, metadata)| recency(metadata))
                .map(|(place, _)| place)
        }
    }
}

/// When a response was made, then when it was received.
fn recency(metadata: &Metadata) -> (SystemTime, SystemTime) {
    let response_time = metadata.freshness.response_time();
    (metadata.date().unwrap_or(response_time), response_time)
}

fn must_pass(asked: &Asked<'_, impl Fields>, rules: &Rules) -> Option<PassCause> {
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

/// Whether the client refuses a response although it is fresh, unless the upstream confirms it.
fn refuses_fresh(metadata: &Metadata, now: SystemTime, wishes: &RequestDirectives) -> bool {
    // §5.2.1.4
    wishes.no_cache
        // §5.2.1.1: "a response whose age is less than or equal to the specified number of seconds".
        || wishes.max_age.is_some_and(|max| metadata.age(now) > max)
        // §5.2.1.3: "no less than its current age plus the specified time in seconds".
        || wishes.min_fresh.is_some_and(|min| {
            metadata.freshness.lifetime() < metadata.age(now).saturating_add(min)
        })
}

/// How likely a request is to refresh a fresh response already: the nearer its end and the longer a fetch takes, the likelier,
/// so that of many requests one comes first and the response never expires under load.
pub fn early_refresh_chance(metadata: &Metadata, now: SystemTime, rules: &Rules) -> f64 {
    let Some(weight) = rules.early_refresh else { return 0.0 };
    let remaining = metadata.freshness.lifetime().saturating_sub(metadata.age(now));
    (-remaining.as_secs_f64() / (metadata.freshness.response_delay().as_secs_f64() * weight)).exp()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fetch, at, fields, get};
    use super::*;
    use std::time::Duration;

    const DELIVER: Plan = Plan::Deliver { stored: 0 };
    const REFRESH: Plan = Plan::DeliverAndRefresh { stored: 0 };
    const REVALIDATE: Plan = Plan::Revalidate { stored: 0, forward: Forward::Stale };
    const CONFIRM: Plan = Plan::Revalidate { stored: 0, forward: Forward::Request };
    const REFUSED: Plan = Plan::Fetch(Forward::Request);

    /// The plan for a request so many seconds after `response` was stored, request directives honoured.
    #[track_caller]
    fn check(response: &str, request: &str, seconds: i64, expected: Plan) {
        let fetch = Fetch::of(response).rules(|rules| rules.honor_request_directives = true);
        let found = plan(&get(&fields(request)), &[fetch.metadata()], at(seconds), 1.0, &fetch.rules);
        assert_eq!(found, expected, "{response} | {request} | {seconds}");
    }

    #[test]
    fn rfc9111_4_must_not_reuse_what_is_neither_fresh_nor_permitted_stale() {
        check("Cache-Control: max-age=10", "", 9, DELIVER);
        check("Cache-Control: max-age=10", "", 10, REVALIDATE);
        check("Cache-Control: max-age=10, stale-while-revalidate=5", "", 9, DELIVER);
        check("Cache-Control: max-age=10, stale-while-revalidate=5", "", 10, REFRESH);
        check("Cache-Control: max-age=10, stale-while-revalidate=5", "", 14, REFRESH);
        check("Cache-Control: max-age=10, stale-while-revalidate=5", "", 15, REVALIDATE);
        check("Cache-Control: max-age=10, stale-while-revalidate=5, must-revalidate", "", 11, REVALIDATE);
        check("Cache-Control: max-age=10, stale-if-error=5", "", 11, REVALIDATE);
        check("Expires: 0\nETag: \"a\"", "", 0, REVALIDATE);
    }

    #[test]
    fn rfc9111_5_2_2_4_must_not_reuse_no_cache_without_validation() {
        check("Cache-Control: max-age=10, no-cache\nETag: \"a\"", "", 1, REVALIDATE);
        check(
            "Cache-Control: max-age=10, no-cache, stale-while-revalidate=9\nETag: \"a\"",
            "",
            11,
            REVALIDATE,
        );
    }

    #[test]
    fn rfc9111_4_1_must_not_reuse_for_other_selecting_fields() {
        let response = "Cache-Control: max-age=10\nVary: Accept";
        check(response, "", 1, DELIVER);
        check(response, "Accept: a/b", 1, Plan::Fetch(Forward::VaryMiss));
        let found = plan::<Metadata>(&get(&fields("")), &[], at(0), 1.0, &Rules::default());
        assert_eq!(found, Plan::Fetch(Forward::UriMiss));
    }

    #[test]
    fn rfc9111_4_the_newest_of_several_is_used() {
        let rules = Rules::default();
        let stored = |date: &str, vary: &str, request: &str| {
            Fetch::of(&format!("Cache-Control: max-age=99\nDate: Sun, 06 Nov 1994 08:49:{date} GMT\n{vary}"))
                .request(request)
                .metadata()
        };
        let of =
            |stored: &[Metadata], request: &str| plan(&get(&fields(request)), stored, at(0), 1.0, &rules);
        let all = [stored("31", "", ""), stored("33", "", ""), stored("32", "", "")];
        assert_eq!(of(&all, ""), Plan::Deliver { stored: 1 });
        let varying = [
            stored("31", "", ""),
            stored("32", "Vary: Accept", "Accept: a/b"),
            stored("33", "Vary: Accept", "Accept: a/c"),
        ];
        assert_eq!(of(&varying, "Accept: a/b"), Plan::Deliver { stored: 1 });
        assert_eq!(of(&varying, "Accept: a/c"), Plan::Deliver { stored: 2 });
        // §4.1: the most recent Vary selects, although an older response lacks one.
        assert_eq!(of(&varying, "Accept: a/d"), Plan::Fetch(Forward::VaryMiss));
        let default_last = [stored("32", "Vary: Accept", "Accept: a/b"), stored("33", "", "")];
        assert_eq!(of(&default_last, "Accept: a/b"), Plan::Deliver { stored: 1 });
    }

    #[test]
    fn rfc9111_3_5_must_not_answer_credentials_without_permission() {
        let credentials = "Authorization: Basic YTpi";
        check("Cache-Control: max-age=10", credentials, 1, REFUSED);
        check("Cache-Control: max-age=10, public", credentials, 1, DELIVER);
        check("Cache-Control: max-age=10, must-revalidate", credentials, 1, DELIVER);
        check("Cache-Control: s-maxage=10", credentials, 1, DELIVER);
    }

    #[test]
    fn rfc9111_5_2_1_request_directives() {
        let fresh = "Cache-Control: max-age=10, stale-while-revalidate=5";
        check(fresh, "Cache-Control: no-cache", 1, CONFIRM);
        check(fresh, "Pragma: no-cache", 1, CONFIRM);
        check(fresh, "Cache-Control: max-age=0", 1, CONFIRM);
        check(fresh, "Cache-Control: max-age=5", 5, DELIVER);
        check(fresh, "Cache-Control: max-age=5", 6, CONFIRM);
        check(fresh, "Cache-Control: min-fresh=5", 5, DELIVER);
        check(fresh, "Cache-Control: min-fresh=5", 6, CONFIRM);
        check(fresh, "Cache-Control: max-age=99", 11, REVALIDATE);
        check(fresh, "Cache-Control: unknown", 1, DELIVER);
        check(fresh, "Cache-Control: no-store", 1, Plan::Pass(PassCause::RequestNoStore));
        check(fresh, "Cache-Control: only-if-cached", 1, DELIVER);
        check(fresh, "Cache-Control: only-if-cached", 16, Plan::Unsatisfiable);
        check(fresh, "Cache-Control: only-if-cached, no-cache", 1, Plan::Unsatisfiable);
    }

    #[test]
    fn rfc9111_5_2_1_2_max_stale_never_lifts_a_prohibition() {
        check("Cache-Control: max-age=10", "Cache-Control: max-stale", 1_000, DELIVER);
        check("Cache-Control: max-age=10", "Cache-Control: max-stale=5", 15, DELIVER);
        check("Cache-Control: max-age=10", "Cache-Control: max-stale=5", 16, REVALIDATE);
        check("Cache-Control: max-age=10", "Cache-Control: max-stale=5, max-age=12", 13, REVALIDATE);
        for prohibition in ["must-revalidate", "proxy-revalidate", "s-maxage=10"] {
            let response = format!("Cache-Control: max-age=10, {prohibition}");
            check(&response, "Cache-Control: max-stale", 11, REVALIDATE);
        }
    }

    #[test]
    fn request_directives_mean_nothing_unless_honoured() {
        let metadata = [Fetch::of("Cache-Control: max-age=10").metadata()];
        for line in ["no-cache", "no-store", "max-age=0", "only-if-cached", "max-stale"] {
            let headers = fields(&format!("Cache-Control: {line}\nPragma: no-cache"));
            assert_eq!(plan(&get(&headers), &metadata, at(1), 1.0, &Rules::default()), DELIVER, "{line}");
            assert_eq!(plan(&get(&headers), &metadata, at(11), 1.0, &Rules::default()), REVALIDATE, "{line}");
        }
    }

    #[test]
    fn what_the_cache_is_not_for_passes() {
        let metadata = [Fetch::of("Cache-Control: max-age=10").metadata()];
        let of = |method: &Method, headers: &str, rules: &Rules| {
            plan(&Asked { method, headers: &fields(headers) }, &metadata, at(1), 1.0, rules)
        };
        let rules = Rules::default();
        assert_eq!(of(&Method::HEAD, "", &rules), DELIVER);
        for method in [Method::POST, Method::OPTIONS, Method::TRACE, Method::DELETE, Method::PATCH] {
            assert_eq!(of(&method, "", &rules), Plan::Pass(PassCause::Method));
        }
        let keyed = Rules { body_methods: vec![Method::POST], ..Rules::default() };
        assert_eq!(of(&Method::POST, "", &keyed), DELIVER);
        assert_eq!(
            of(&Method::GET, "", &Rules { enabled: false, ..Rules::default() }),
            Plan::Pass(PassCause::Disabled)
        );
        let upgrade = "Connection: keep-alive, Upgrade\nUpgrade: websocket";
        assert_eq!(of(&Method::GET, upgrade, &rules), Plan::Pass(PassCause::Upgrade));
        assert_eq!(of(&Method::GET, "Connection: Upgrade\nUpgrade: h2c", &rules), DELIVER);
    }

    #[test]
    fn early_refresh_is_likelier_towards_the_end() {
        let fetch =
            Fetch::of("Cache-Control: max-age=100").delayed(2).rules(|rules| rules.early_refresh = Some(1.0));
        let of =
            |seconds, luck| plan(&get(&fields("")), &[fetch.metadata()], at(seconds), luck, &fetch.rules);
        assert_eq!(of(50, 0.5), DELIVER);
        assert_eq!(of(97, 0.5), REFRESH);
        assert_eq!(of(97, 0.9), DELIVER);
        assert_eq!(of(97, 1.0), DELIVER);
        assert_eq!(of(0, 0.0), REFRESH);
        assert_eq!(of(98, 1.0), REVALIDATE);
    }

    #[test]
    fn rfc5861_4_a_failing_upstream_is_covered_within_the_limit() {
        let rules = Rules { stale_if_error: Duration::from_secs(5), ..Rules::default() };
        let honoured = Rules { honor_request_directives: true, ..Rules::default() };
        let of = |directives: &str, request: &str, seconds, rules: &Rules| {
            let mut fetch = Fetch::of(&format!("Cache-Control: max-age=10{directives}\nETag: \"a\""));
            fetch.rules = rules.clone();
            fetch.metadata().may_serve_on_error(&get(&fields(request)), at(seconds), rules)
        };
        assert!(of("", "", 14, &rules) && !of("", "", 15, &rules));
        for prohibition in [", must-revalidate", ", proxy-revalidate", ", s-maxage=10", ", no-cache"] {
            assert!(!of(prohibition, "", 11, &rules), "{prohibition}");
        }
        assert!(of("", "Cache-Control: stale-if-error=9", 18, &honoured));
        assert!(!of("", "Cache-Control: stale-if-error=9", 18, &rules));
    }
}
