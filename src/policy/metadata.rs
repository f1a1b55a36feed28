//! What policy knows of a stored response, worked out once, when it is stored.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::Entry;
use http::{HeaderMap, HeaderName, StatusCode};

use super::directives::RequestDirectives;
use super::freshness::{Freshness, Validation};
use super::micros::Moment;
use super::targeted::Controls;
use super::validation::Validators;
use super::vary::Selection;
use super::{Asked, Exchange, Fields, Rules, date, storing, validation};

/// What policy knows of a stored response. [`plan`](super::plan()) on a hit reads nothing else of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// The stored status.
    pub status: StatusCode,
    /// For which requests it was selected (RFC 9111 §4.1).
    pub selection: Selection,
    /// How long it is of use (§4.2).
    pub freshness: Freshness,
    date: Option<Moment>,
    /// How far it may be shared.
    pub sharing: Sharing,
    /// The fields that must not be stored with it: those that `private="…"` (§5.2.2.7) and `no-cache="…"`
    /// (§5.2.2.4) name.
    pub withheld: Option<Arc<Vec<HeaderName>>>,
    /// Whether there is something to ask it again by (§4.3.1): only a successful response is.
    pub is_validatable: bool,
    /// Whether it may be kept; a validation may have answered that it may not be any longer.
    pub retention: Retention,
}

/// How far a stored response permits to be shared beyond what storing it requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharing {
    /// With requests that carry `Authorization` (RFC 9111 §3.5).
    pub with_credentials: bool,
    /// With requests that carry other cookies, while it is being fetched.
    pub with_cookies: bool,
}

/// Whether a stored response may stay stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// It may.
    Keep,
    /// A validation answered with fields that forbid it: it serves the request that is waiting, no other.
    Drop,
}

/// The bounds of how long a stale response is kept for no other use than to be validated: as long again as
/// it was fresh, within these.
const VALIDATABLE_MIN: Duration = Duration::from_hours(1);
const VALIDATABLE_MAX: Duration = Duration::from_hours(24);

impl Metadata {
    /// Reads a response that may be stored.
    pub(super) fn of<Q, R>(exchange: &Exchange<'_, Q, R>, controls: &Controls, rules: &Rules) -> Self
    where
        Q: Fields,
        R: Fields,
    {
        let freshness = Freshness::of(exchange, controls, rules);
        let directives = &controls.directives;
        // Whoever comes later gets it without being asked for a cookie: then those who wait for it may have it as well.
        let is_reused = freshness.is_fresh(exchange.response_time)
            || freshness.may_serve_while_revalidating(exchange.response_time);
        let date = date::of(exchange.response, exchange.response_time);
        let withheld: Vec<HeaderName> =
            directives.private.fields().iter().chain(directives.no_cache.fields()).cloned().collect();
        // §4.3.4 freshens stored 200 responses. A 304 to the validators of a stored 404 would speak of some
        // other representation.
        let is_validatable =
            exchange.status.is_success() && validation::has_validators(exchange.response, &withheld);
        Self {
            status: exchange.status,
            selection: Selection::of(exchange.response, exchange.request),
            date: date.map(Moment::from),
            sharing: Sharing {
                with_credentials: storing::permits_shared_credentials(controls),
                with_cookies: directives.public || directives.s_maxage.is_some() || is_reused,
            },
            withheld: (!withheld.is_empty()).then(|| Arc::new(withheld)),
            is_validatable,
            retention: Retention::Keep,
            freshness,
        }
    }

    /// By what it is asked again, and compared with a client's own copy (§4.3.1): it is among its fields.
    pub fn validators<'a>(&self, fields: &'a HeaderMap) -> Validators<'a> {
        if self.is_validatable { Validators::of(fields) } else { Validators::default() }
    }

    /// Its `Date`, if it has one.
    pub fn date(&self) -> Option<SystemTime> {
        self.date.map(SystemTime::from)
    }

    /// `current_age` (RFC 9111 §4.2.3).
    pub fn age(&self, now: SystemTime) -> Duration {
        self.freshness.current_age(now)
    }

    /// Lifetime less age in seconds, negative when stale: the `ttl` of RFC 9211 §2.4.
    pub fn ttl_seconds(&self, now: SystemTime) -> i64 {
        let signed = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        signed(self.freshness.lifetime()).saturating_sub(signed(self.age(now)))
    }

    /// Whether it is fresh (§4.2). A fresh response that says `no-cache` still needs validation.
    pub fn is_fresh(&self, now: SystemTime) -> bool {
        self.freshness.is_fresh(now)
    }

    /// Whether it must not be used stale without the upstream's word: `must-revalidate` and its kin, and `no-cache`.
    pub fn must_be_validated(&self) -> bool {
        self.freshness.validation != Validation::Optional
    }

    /// Whether every use needs a validation first (`no-cache`).
    pub fn is_validated_always(&self) -> bool {
        self.freshness.validation == Validation::Always
    }

    /// How long from now it can be of any use: while it is fresh, then while it may be served stale, and with
    /// a validator as long again as it was fresh (at least an hour, at most a day) for validation.
    pub fn useful_until(&self, now: SystemTime) -> Duration {
        match self.retention {
            Retention::Drop => return Duration::ZERO,
            Retention::Keep => {}
        }
        let freshness = &self.freshness;
        let lifetime = freshness.lifetime();
        let validation = if self.is_validatable {
            lifetime.clamp(VALIDATABLE_MIN, VALIDATABLE_MAX)
        } else {
            Duration::ZERO
        };
        // A response that was stale on arrival is kept for validation from its arrival on.
        let end = lifetime.saturating_add(freshness.stale_use());
        let end_of_validation = lifetime.max(freshness.corrected_initial_age()).saturating_add(validation);
        end.max(end_of_validation).saturating_sub(self.age(now))
    }

    /// Whether it may stand in for an upstream that failed or answered 500, 502, 503 or 504 (§4.2.4, RFC 5861
    /// §4): never under `must-revalidate`, `proxy-revalidate`, `s-maxage` or `no-cache` once it is stale.
    pub fn may_serve_on_error(&self, asked: &Asked<'_>, now: SystemTime, rules: &Rules) -> bool {
        let permitted = if rules.honor_request_directives {
            let wishes = RequestDirectives::of(asked.headers);
            wishes.stale_if_error.max(wishes.max_stale).unwrap_or_default()
        } else {
            Duration::ZERO
        };
        self.freshness.may_serve_on_error(now, permitted)
    }

    /// Whether it may stay in the store: a validation may have answered that it may not.
    pub fn may_be_kept(&self) -> bool {
        self.retention == Retention::Keep
    }

    /// The same response, stale from then on and for ever. That may be before it was received: it was on its way, and
    /// younger than it was on arrival.
    #[must_use]
    pub fn expired(mut self, at: SystemTime) -> Self {
        let until_arrival = self.freshness.response_time().duration_since(at).unwrap_or_default();
        let age = self.age(at).saturating_sub(until_arrival);
        self.freshness.shorten(age);
        self
    }

    /// Removes the fields that must not be stored from a response's fields: what is left is what the store keeps and
    /// what those who share it get. Returns the removed ones, which are for the client whose request it was.
    pub fn remove_withheld(&self, headers: &mut HeaderMap) -> HeaderMap {
        let mut withheld = HeaderMap::new();
        for name in self.withheld.as_deref().into_iter().flatten() {
            if let Entry::Occupied(entry) = headers.entry(name) {
                let (name, values) = entry.remove_entry_mult();
                for value in values {
                    withheld.append(name.clone(), value);
                }
            }
        }
        withheld
    }
}
