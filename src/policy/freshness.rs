//! Freshness (RFC 9111 §4.2) and the use of stale responses (§4.2.4, RFC 5861).

use std::time::{Duration, SystemTime};

use http::header::{AGE, EXPIRES, LAST_MODIFIED};
use http::{HeaderMap, StatusCode};

use super::directives::{ResponseDirectives, delta_seconds};
use super::targeted::{Controls, Source};
use super::{Exchange, Rules, date, storing};

/// How long a response is of use, worked out once when it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freshness {
    /// `freshness_lifetime` (§4.2.1).
    pub lifetime: Duration,
    /// What the lifetime rests on.
    pub basis: Basis,
    /// `corrected_initial_age` (§4.2.3).
    pub corrected_initial_age: Duration,
    /// When the response was received.
    pub response_time: SystemTime,
    /// How long after its lifetime it may be served while it is refreshed; zero where that is forbidden.
    pub stale_while_revalidate: Duration,
    /// How long after its lifetime it may stand in for a failing upstream; zero where that is forbidden.
    pub stale_if_error: Duration,
    /// Which use needs a validation first.
    pub validation: Validation,
}

/// What a lifetime rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The `s-maxage` directive.
    SMaxage,
    /// The `max-age` directive.
    MaxAge,
    /// The `Expires` field.
    Expires,
    /// The rules, whatever the response says.
    Override,
    /// The rules, because the response says nothing.
    Default,
    /// The time since the last modification (§4.2.2).
    Heuristic,
    /// Nothing: the lifetime is zero.
    Nothing,
}

/// Which use of a stored response needs a successful validation first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validation {
    /// None: it may be used stale where someone permits it.
    Optional,
    /// The use when stale: `must-revalidate`, `proxy-revalidate`, `s-maxage`.
    WhenStale,
    /// Every use: `no-cache`.
    Always,
}

impl Basis {
    /// Whether the response itself gave an explicit expiration time.
    pub fn is_explicit(self) -> bool {
        match self {
            Self::SMaxage | Self::MaxAge | Self::Expires => true,
            Self::Override | Self::Default | Self::Heuristic | Self::Nothing => false,
        }
    }

    /// Whether the rules gave the lifetime.
    pub fn is_configured(self) -> bool {
        match self {
            Self::Override | Self::Default => true,
            Self::SMaxage | Self::MaxAge | Self::Expires | Self::Heuristic | Self::Nothing => false,
        }
    }
}

impl Freshness {
    /// Works out the freshness of a response that has just been received.
    pub fn of(exchange: &Exchange<'_>, controls: &Controls, rules: &Rules) -> Self {
        let date = date::of(exchange.response, exchange.response_time);
        let (lifetime, basis) = lifetime(exchange, controls, date, rules);
        let directives = &controls.directives;
        let validation = validation(directives);
        let (stale_while_revalidate, stale_if_error) = stale_windows(directives, validation, rules);
        Self {
            lifetime,
            basis,
            corrected_initial_age: corrected_initial_age(exchange, date),
            response_time: exchange.response_time,
            stale_while_revalidate,
            stale_if_error,
            validation,
        }
    }

    /// `current_age` (§4.2.3): `resident_time = now - response_time; current_age = corrected_initial_age +
    /// resident_time`.
    pub fn current_age(&self, now: SystemTime) -> Duration {
        let resident_time = now.duration_since(self.response_time).unwrap_or_default();
        self.corrected_initial_age.saturating_add(resident_time)
    }

    /// `response_is_fresh = (freshness_lifetime > current_age)` (§4.2).
    pub fn is_fresh(&self, now: SystemTime) -> bool {
        self.lifetime > self.current_age(now)
    }

    /// How long the response has been stale; zero while it is fresh, and at the moment it ceases to be.
    pub fn staleness(&self, now: SystemTime) -> Duration {
        self.current_age(now).saturating_sub(self.lifetime)
    }

    /// Whether it may be served stale at once, while it is refreshed (RFC 5861 §3). The window is a hard limit.
    pub fn may_serve_while_revalidating(&self, now: SystemTime) -> bool {
        self.staleness(now) < self.stale_while_revalidate
    }

    /// Whether it may stand in for a failing upstream (RFC 5861 §4), given what the client permits on top.
    pub fn may_serve_on_error(&self, now: SystemTime, permitted_by_client: Duration) -> bool {
        match self.validation {
            Validation::Always => false,
            Validation::WhenStale => self.is_fresh(now) || self.may_serve_while_revalidating(now),
            Validation::Optional => {
                let window = self.stale_while_revalidate.max(self.stale_if_error).max(permitted_by_client);
                self.is_fresh(now) || self.staleness(now) < window
            }
        }
    }

    /// Whether any use at all can follow without asking the upstream.
    pub fn is_of_use(&self, now: SystemTime) -> bool {
        match self.validation {
            Validation::Always => false,
            Validation::WhenStale | Validation::Optional => {
                self.is_fresh(now)
                    || self.staleness(now) < self.stale_while_revalidate.max(self.stale_if_error)
            }
        }
    }
}

/// The freshness lifetime, by the first match of the list in §4.2.1, and what it rests on.
fn lifetime(
    exchange: &Exchange<'_>,
    controls: &Controls,
    date: Option<SystemTime>,
    rules: &Rules,
) -> (Duration, Basis) {
    let explicit = explicit_lifetime(exchange.response, controls, date, exchange.response_time);
    let is_heuristically_cacheable =
        storing::is_heuristically_cacheable(exchange.status) || controls.directives.public;
    let is_error = exchange.status >= StatusCode::BAD_REQUEST;
    if let Some(ttl) = rules.override_ttl
        && !is_error
        && (explicit.is_some() || is_heuristically_cacheable)
    {
        return (ttl, Basis::Override);
    }
    if let Some(explicit) = explicit {
        return explicit;
    }
    if !is_heuristically_cacheable {
        return (Duration::ZERO, Basis::Nothing);
    }
    if let Some(ttl) = rules.default_ttl
        && !is_error
    {
        return (ttl, Basis::Default);
    }
    heuristic_lifetime(exchange, date, rules)
        .map_or((Duration::ZERO, Basis::Nothing), |lifetime| (lifetime, Basis::Heuristic))
}

/// The explicit expiration time of a response (§4.2.1), if it has one. One that is invalid has passed.
fn explicit_lifetime(
    response: &HeaderMap,
    controls: &Controls,
    date: Option<SystemTime>,
    response_time: SystemTime,
) -> Option<(Duration, Basis)> {
    // "If the cache is shared and the s-maxage response directive is present, use its value".
    if let Some(seconds) = controls.directives.s_maxage {
        return Some((seconds, Basis::SMaxage));
    }
    if let Some(seconds) = controls.directives.max_age {
        return Some((seconds, Basis::MaxAge));
    }
    // RFC 9213 §2.2: with a targeted field the cache "MUST ignore the Cache-Control and Expires header fields".
    match controls.source {
        Source::Targeted => return None,
        Source::CacheControl => {}
    }
    let mut lines = response.get_all(EXPIRES).iter();
    let expires = lines.next()?;
    // §5.3: an invalid date, "especially the value 0", is in the past; of several no one can say which is meant.
    let expires = lines.next().is_none().then(|| date::parse_value(expires, response_time)).flatten();
    let date = date.unwrap_or_else(|| date::whole_seconds(response_time));
    let lifetime = expires.and_then(|expires| expires.duration_since(date).ok()).unwrap_or_default();
    Some((lifetime, Basis::Expires))
}

/// A guess from the time since the last modification (§4.2.2): "a typical setting of this fraction might be 10%".
fn heuristic_lifetime(exchange: &Exchange<'_>, date: Option<SystemTime>, rules: &Rules) -> Option<Duration> {
    let heuristic = rules.heuristic?;
    let modified = date::parse_value(exchange.response.get(LAST_MODIFIED)?, exchange.response_time)?;
    let unchanged = date.unwrap_or(exchange.response_time).duration_since(modified).ok()?;
    let fraction = heuristic.fraction.clamp(0.0, 1.0);
    Duration::try_from_secs_f64(unchanged.as_secs_f64() * fraction).ok().map(|guess| guess.min(heuristic.max))
}

/// `corrected_initial_age` (§4.2.3).
fn corrected_initial_age(exchange: &Exchange<'_>, date: Option<SystemTime>) -> Duration {
    // apparent_age = max(0, response_time - date_value). Date has whole seconds, so the difference has, too.
    let apparent_age = date
        .and_then(|date| date::whole_seconds(exchange.response_time).duration_since(date).ok())
        .unwrap_or_default();
    // response_delay = response_time - request_time
    let response_delay = exchange.response_time.duration_since(exchange.request_time).unwrap_or_default();
    // corrected_age_value = age_value + response_delay
    let corrected_age_value = age_value(exchange.response).saturating_add(response_delay);
    apparent_age.max(corrected_age_value)
}

/// `age_value` (§5.1): the first member of the first line; what is not a number is ignored.
fn age_value(response: &HeaderMap) -> Duration {
    response
        .get(AGE)
        .and_then(|value| value.as_bytes().split(|byte| *byte == b',').next())
        .and_then(|first| delta_seconds(first.trim_ascii()))
        .unwrap_or_default()
}

fn validation(directives: &ResponseDirectives) -> Validation {
    if directives.no_cache.is_everything() {
        // §5.2.2.4: "MUST NOT be used to satisfy any other request without forwarding it for validation".
        Validation::Always
    } else if directives.must_revalidate || directives.proxy_revalidate || directives.s_maxage.is_some() {
        // §5.2.2.2, §5.2.2.8, §5.2.2.10: "MUST NOT reuse that response [...] until it has been successfully
        // validated".
        Validation::WhenStale
    } else {
        Validation::Optional
    }
}

/// The windows of stale use (§4.2.4): first for use while it is refreshed, then for use on an error.
fn stale_windows(
    directives: &ResponseDirectives,
    validation: Validation,
    rules: &Rules,
) -> (Duration, Duration) {
    match validation {
        Validation::Always => (Duration::ZERO, Duration::ZERO),
        Validation::WhenStale => {
            // `s-maxage` alone forbids what nobody asked for, yet an origin that writes `s-maxage=60,
            // stale-while-revalidate=30` in one field has permitted just this stale use to shared caches.
            let is_forbidden = directives.must_revalidate || directives.proxy_revalidate;
            let own = directives.stale_while_revalidate.filter(|_| !is_forbidden);
            (own.unwrap_or_default(), Duration::ZERO)
        }
        Validation::Optional => (
            directives.stale_while_revalidate.unwrap_or(rules.stale_while_revalidate),
            directives.stale_if_error.unwrap_or(rules.stale_if_error),
        ),
    }
}
