//! Freshness (RFC 9111 §4.2) and the use of stale responses (§4.2.4, RFC 5861).

use std::time::{Duration, SystemTime};

use http::StatusCode;
use http::header::{AGE, EXPIRES, LAST_MODIFIED};

use super::directives::{ResponseDirectives, delta_seconds};
use super::micros::{Micros, Moment};
use super::targeted::{Controls, Source};
use super::{Exchange, Fields, Rules, date, storing};

/// How long a response is of use, worked out once when it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freshness {
    lifetime: Micros,
    corrected_initial_age: Micros,
    response_time: Moment,
    stale_while_revalidate: Micros,
    stale_if_error: Micros,
    response_delay_micros: u32,
    /// What the lifetime rests on.
    pub basis: Basis,
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
}

impl Freshness {
    /// Works out the freshness of a response that has just been received.
    pub fn of<Q, R>(exchange: &Exchange<'_, Q, R>, controls: &Controls, rules: &Rules) -> Self
    where
        R: Fields,
    {
        let date = date::of(exchange.response, exchange.response_time);
        let (lifetime, basis) = lifetime(exchange, controls, date, rules);
        let directives = &controls.directives;
        let validation = validation(directives);
        let (stale_while_revalidate, stale_if_error) = stale_windows(directives, validation, rules);
        Self {
            lifetime: lifetime.into(),
            corrected_initial_age: corrected_initial_age(exchange, date).into(),
            response_time: exchange.response_time.into(),
            stale_while_revalidate: stale_while_revalidate.into(),
            stale_if_error: stale_if_error.into(),
            response_delay_micros: u32::try_from(response_delay(exchange).as_micros()).unwrap_or(u32::MAX),
            basis,
            validation,
        }
    }

    /// `freshness_lifetime` (§4.2.1).
    pub fn lifetime(&self) -> Duration {
        self.lifetime.into()
    }

    /// `corrected_initial_age` (§4.2.3).
    pub fn corrected_initial_age(&self) -> Duration {
        self.corrected_initial_age.into()
    }

    /// When the response was asked for, at the latest: see [`response_delay`](Self::response_delay).
    pub fn request_time(&self) -> SystemTime {
        let response_time = self.response_time();
        response_time.checked_sub(self.response_delay()).unwrap_or(response_time)
    }

    /// When the response was received.
    pub fn response_time(&self) -> SystemTime {
        self.response_time.into()
    }

    /// `response_delay` (§4.2.3), of up to an hour: the weight of an early refresh.
    pub fn response_delay(&self) -> Duration {
        Duration::from_micros(self.response_delay_micros.into())
    }

    /// How long after its lifetime it may be served while it is refreshed; zero where that is forbidden.
    pub fn stale_while_revalidate(&self) -> Duration {
        self.stale_while_revalidate.into()
    }

    /// How long after its lifetime it may stand in for a failing upstream; zero where that is forbidden.
    pub fn stale_if_error(&self) -> Duration {
        self.stale_if_error.into()
    }

    /// `current_age` (§4.2.3): `resident_time = now - response_time; current_age = corrected_initial_age +
    /// resident_time`.
    pub fn current_age(&self, now: SystemTime) -> Duration {
        self.age(now).into()
    }

    /// `response_is_fresh = (freshness_lifetime > current_age)` (§4.2).
    pub fn is_fresh(&self, now: SystemTime) -> bool {
        self.lifetime > self.age(now)
    }

    /// How long the response has been stale; zero while it is fresh, and at the moment it ceases to be.
    pub fn staleness(&self, now: SystemTime) -> Duration {
        self.age(now).saturating_sub(self.lifetime).into()
    }

    fn age(&self, now: SystemTime) -> Micros {
        let resident_time = Moment::from(now).since(self.response_time);
        self.corrected_initial_age.saturating_add(resident_time)
    }

    /// The longer of the two windows of stale use.
    pub(super) fn stale_use(&self) -> Duration {
        self.stale_while_revalidate.max(self.stale_if_error).into()
    }

    /// From here on it lives no longer than this.
    pub(super) fn shorten(&mut self, lifetime: Duration) {
        self.lifetime = self.lifetime.min(lifetime.into());
    }

    /// From here on every use needs a validation first.
    pub(super) fn forbid_use(&mut self) {
        self.validation = Validation::Always;
        self.stale_while_revalidate = Micros::ZERO;
        self.stale_if_error = Micros::ZERO;
    }

    /// Whether it may be served stale at once, while it is refreshed (RFC 5861 §3). The window is a hard limit.
    pub fn may_serve_while_revalidating(&self, now: SystemTime) -> bool {
        self.staleness(now) < self.stale_while_revalidate()
    }

    /// Whether it may stand in for a failing upstream (RFC 5861 §4), given what the client permits on top.
    pub fn may_serve_on_error(&self, now: SystemTime, permitted_by_client: Duration) -> bool {
        match self.validation {
            Validation::Always => false,
            Validation::WhenStale => self.is_fresh(now) || self.may_serve_while_revalidating(now),
            Validation::Optional => {
                let window = self.stale_use().max(permitted_by_client);
                self.is_fresh(now) || self.staleness(now) < window
            }
        }
    }

    /// Whether any use at all can follow without asking the upstream.
    pub fn is_of_use(&self, now: SystemTime) -> bool {
        match self.validation {
            Validation::Always => false,
            Validation::WhenStale | Validation::Optional => {
                self.is_fresh(now) || self.staleness(now) < self.stale_use()
            }
        }
    }
}

/// The freshness lifetime, by the first match of the list in §4.2.1, and what it rests on.
fn lifetime<Q>(
    exchange: &Exchange<'_, Q, impl Fields>,
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
    response: &impl Fields,
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
    let mut lines = response.lines(&EXPIRES);
    let expires = lines.next()?;
    // §5.3: an invalid date, "especially the value 0", is in the past; of several no one can say which is meant.
    let expires = lines.next().is_none().then(|| date::parse(expires, response_time)).flatten();
    let date = date.unwrap_or_else(|| date::whole_seconds(response_time));
    let lifetime = expires.and_then(|expires| expires.duration_since(date).ok()).unwrap_or_default();
    Some((lifetime, Basis::Expires))
}

/// A guess from the time since the last modification (§4.2.2): "a typical setting of this fraction might be 10%".
fn heuristic_lifetime<Q>(
    exchange: &Exchange<'_, Q, impl Fields>,
    date: Option<SystemTime>,
    rules: &Rules,
) -> Option<Duration> {
    let heuristic = rules.heuristic?;
    let modified = date::parse(exchange.response.first(&LAST_MODIFIED)?, exchange.response_time)?;
    let unchanged = date.unwrap_or(exchange.response_time).duration_since(modified).ok()?;
    let fraction = heuristic.fraction.clamp(0.0, 1.0);
    Duration::try_from_secs_f64(unchanged.as_secs_f64() * fraction).ok().map(|guess| guess.min(heuristic.max))
}

/// `corrected_initial_age` (§4.2.3).
fn corrected_initial_age<Q>(exchange: &Exchange<'_, Q, impl Fields>, date: Option<SystemTime>) -> Duration {
    // apparent_age = max(0, response_time - date_value). Date has whole seconds, so the difference has, too.
    let apparent_age = date
        .and_then(|date| date::whole_seconds(exchange.response_time).duration_since(date).ok())
        .unwrap_or_default();
    // corrected_age_value = age_value + response_delay
    let corrected_age_value = age_value(exchange.response).saturating_add(response_delay(exchange));
    apparent_age.max(corrected_age_value)
}

/// `response_delay = response_time - request_time` (§4.2.3).
fn response_delay<Q, R>(exchange: &Exchange<'_, Q, R>) -> Duration {
    exchange.response_time.duration_since(exchange.request_time).unwrap_or_default()
}

/// `age_value` (§5.1): the first member of the first line; what is not a number is ignored.
fn age_value(response: &impl Fields) -> Duration {
    response
        .first(&AGE)
        .and_then(|value| value.split(|byte| *byte == b',').next())
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Fetch, at};
    use super::*;

    const DATE: &str = "Date: Sun, 06 Nov 1994 08:49:37 GMT\n";
    const ZERO: Duration = Duration::ZERO;

    fn freshness(fetch: &Fetch) -> Freshness {
        let controls = Controls::of(&fetch.response, &fetch.rules);
        Freshness::of(&fetch.exchange(), &controls, &fetch.rules)
    }

    #[track_caller]
    fn check(response: &str, seconds: u64, basis: Basis) {
        check_fetch(&Fetch::of(&format!("{DATE}{response}")), seconds, basis);
    }

    #[track_caller]
    fn check_fetch(fetch: &Fetch, seconds: u64, basis: Basis) {
        let found = freshness(fetch);
        assert_eq!(
            (found.lifetime(), found.basis),
            (Duration::from_secs(seconds), basis),
            "{:?}",
            fetch.response
        );
    }

    #[track_caller]
    fn check_age(fetch: &Fetch, seconds: u64) {
        let found = freshness(fetch).corrected_initial_age();
        assert_eq!(found, Duration::from_secs(seconds), "{:?}", fetch.response);
    }

    #[test]
    fn rfc9111_4_2_1_lifetime_is_the_first_match() {
        check(
            "Cache-Control: s-maxage=1, max-age=2\nExpires: Sun, 06 Nov 1994 08:49:40 GMT",
            1,
            Basis::SMaxage,
        );
        check("Cache-Control: max-age=2\nCache-Control: s-maxage=9", 9, Basis::SMaxage);
        check("Cache-Control: s-maxage=9\nExpires: Sun, 06 Nov 1993 08:49:40 GMT", 9, Basis::SMaxage);
        check("Cache-Control: max-age=2\nExpires: Sun, 06 Nov 1994 08:49:40 GMT", 2, Basis::MaxAge);
        check("Cache-Control: max-age=2\nExpires: 0", 2, Basis::MaxAge);
        check("Expires: Sun, 06 Nov 1994 08:49:40 GMT", 3, Basis::Expires);
        check("", 0, Basis::Nothing);
        check("CDN-Cache-Control: foo\nExpires: Sun, 06 Nov 1994 08:49:40 GMT", 0, Basis::Nothing);
    }

    #[test]
    fn rfc9111_5_3_must_read_invalid_expires_as_past() {
        for value in
            ["0", "", "-1", "never", "Sun, 06 Nov 1994 08:49:40 AEST", "Sun, 06 Nov 1994 8:49:40 GMT"]
        {
            check(&format!("Expires: {value}"), 0, Basis::Expires);
        }
        let twice = "Expires: Sun, 06 Nov 1994 08:49:40 GMT\n".repeat(2);
        check(&twice, 0, Basis::Expires);
        check("Cache-Control: max-age=abc\nExpires: Sun, 06 Nov 1994 08:49:40 GMT", 0, Basis::MaxAge);
    }

    #[test]
    fn rfc9111_4_2_1_expires_counts_from_the_upstreams_date_or_else_from_receipt() {
        let expires = "Expires: Sun, 06 Nov 1994 08:50:37 GMT";
        check_fetch(
            &Fetch::of(&format!("Date: Sun, 06 Nov 1994 08:50:07 GMT\n{expires}")),
            30,
            Basis::Expires,
        );
        check_fetch(&Fetch::of(&format!("Date: garbage\n{expires}")), 60, Basis::Expires);
        check_fetch(&Fetch::of(expires), 60, Basis::Expires);
        check_fetch(&Fetch::of("Expires: Sat, 20 Nov 2286 17:46:40 GMT"), 9_215_888_223, Basis::Expires);
    }

    #[test]
    fn rfc9111_4_2_2_heuristic_is_a_part_of_the_time_since_the_last_modification() {
        let modified = "Last-Modified: Sun, 06 Nov 1994 08:47:57 GMT";
        check(modified, 10, Basis::Heuristic);
        check("Last-Modified: Sun, 06 Nov 1984 08:47:57 GMT", 86_400, Basis::Heuristic);
        check("Last-Modified: Sun, 06 Nov 1995 08:47:57 GMT", 0, Basis::Nothing);
        check("Last-Modified: yesterday", 0, Basis::Nothing);
        let of = |status| Fetch::of(&format!("{DATE}{modified}")).status(status);
        for status in [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501] {
            check_fetch(&of(status), 10, Basis::Heuristic);
        }
        for status in [201, 202, 302, 303, 307, 400, 403, 451, 499, 500, 503, 599] {
            check_fetch(&of(status), 0, Basis::Nothing);
        }
        let public = Fetch::of(&format!("{DATE}{modified}\nCache-Control: public")).status(299);
        check_fetch(&public, 10, Basis::Heuristic);
        check_fetch(&of(200).rules(|rules| rules.heuristic = None), 0, Basis::Nothing);
    }

    #[test]
    fn the_rules_give_a_lifetime_only_where_they_may() {
        let default = |fetch: Fetch| fetch.rules(|rules| rules.default_ttl = Some(Duration::from_secs(7)));
        check_fetch(&default(Fetch::of("")), 7, Basis::Default);
        check_fetch(&default(Fetch::of("Cache-Control: max-age=2")), 2, Basis::MaxAge);
        check_fetch(&default(Fetch::of("").status(302)), 0, Basis::Nothing);
        check_fetch(&default(Fetch::of("").status(404)), 0, Basis::Nothing);
        check_fetch(&default(Fetch::of("").status(501)), 0, Basis::Nothing);
        let replace = |fetch: Fetch| fetch.rules(|rules| rules.override_ttl = Some(Duration::from_secs(7)));
        check_fetch(&replace(Fetch::of("Cache-Control: max-age=2")), 7, Basis::Override);
        check_fetch(&replace(Fetch::of("Cache-Control: max-age=2").status(302)), 7, Basis::Override);
        check_fetch(&replace(Fetch::of("").status(302)), 0, Basis::Nothing);
        check_fetch(&replace(Fetch::of("Cache-Control: max-age=2").status(404)), 2, Basis::MaxAge);
    }

    #[test]
    fn rfc9111_4_2_3_corrected_initial_age() {
        check_age(&Fetch::of(DATE), 0);
        check_age(&Fetch::of("Date: Sun, 06 Nov 1994 08:49:27 GMT"), 10);
        check_age(&Fetch::of("Date: Sun, 06 Nov 1994 08:49:47 GMT"), 0);
        check_age(&Fetch::of("Age: 5"), 5);
        check_age(&Fetch::of("Age: 5").delayed(3), 8);
        check_age(&Fetch::of(DATE).delayed(3), 3);
        check_age(&Fetch::of("Age: 5\nDate: Sun, 06 Nov 1994 08:49:27 GMT").delayed(3), 10);
        check_age(&Fetch::of("Age: 15\nDate: Sun, 06 Nov 1994 08:49:27 GMT").delayed(3), 18);
    }

    #[test]
    fn rfc9111_5_1_age_is_read_from_its_first_member() {
        check_age(&Fetch::of("Age: 5, 10"), 5);
        check_age(&Fetch::of("Age: 5\nAge: 10"), 5);
        for value in ["", "-5", "5.5", "abc", "5s", "\"5\"", "abc, 5"] {
            check_age(&Fetch::of(&format!("Age: {value}")), 0);
        }
        check_age(&Fetch::of("Age: 007"), 7);
        let huge =
            freshness(&Fetch::of("Age: 99999999999999999999\nCache-Control: max-age=99999999999999999999"));
        assert!(!huge.is_fresh(at(0)));
    }

    #[test]
    fn rfc9111_4_2_fresh_while_the_lifetime_exceeds_the_age() {
        let found = freshness(&Fetch::of("Cache-Control: max-age=10\nAge: 4").delayed(1));
        assert!(found.is_fresh(at(4)));
        assert!(!found.is_fresh(at(5)));
        assert_eq!(found.staleness(at(7)), Duration::from_secs(2));
        assert_eq!(found.current_age(at(-100)), Duration::from_secs(5));
        assert!(!freshness(&Fetch::of("CDN-Cache-Control: max-age=10\nAge: 11")).is_fresh(at(0)));
        assert!(!freshness(&Fetch::of("Expires: Sun, 06 Nov 1994 08:49:40 GMT\nAge: 3")).is_fresh(at(0)));
    }

    #[track_caller]
    fn check_stale(directives: &str, while_revalidating: u64, on_error: u64) {
        let fetch = Fetch::of(&format!("Cache-Control: max-age=10, {directives}")).rules(|rules| {
            rules.stale_while_revalidate = Duration::from_secs(3);
            rules.stale_if_error = Duration::from_secs(4);
        });
        let found = freshness(&fetch);
        assert_eq!(
            (found.stale_while_revalidate(), found.stale_if_error()),
            (Duration::from_secs(while_revalidating), Duration::from_secs(on_error)),
            "{directives}"
        );
    }

    #[test]
    fn rfc5861_windows_are_the_responses_own_or_else_the_routes() {
        check_stale("", 3, 4);
        check_stale("stale-while-revalidate=20", 20, 4);
        check_stale("stale-if-error=30", 3, 30);
        check_stale("stale-while-revalidate=0, stale-if-error=0", 0, 0);
        check_stale("stale-while-revalidate=x, stale-if-error=-1", 0, 0);
    }

    #[test]
    fn rfc9111_4_2_4_must_not_generate_a_prohibited_stale_response() {
        let own = "stale-while-revalidate=20, stale-if-error=30";
        check_stale(&format!("must-revalidate, {own}"), 0, 0);
        check_stale(&format!("proxy-revalidate, {own}"), 0, 0);
        check_stale(&format!("no-cache, {own}"), 0, 0);
        check_stale("s-maxage=10", 0, 0);
        check_stale(&format!("s-maxage=10, {own}"), 20, 0);
    }

    #[test]
    fn rfc5861_the_windows_are_hard_limits() {
        let found =
            freshness(&Fetch::of("Cache-Control: max-age=10, stale-while-revalidate=5, stale-if-error=8"));
        assert!(found.may_serve_while_revalidating(at(14)) && !found.may_serve_while_revalidating(at(15)));
        assert!(found.may_serve_on_error(at(17), ZERO) && !found.may_serve_on_error(at(18), ZERO));
        assert!(found.may_serve_on_error(at(18), Duration::from_secs(9)));
        let never = freshness(&Fetch::of("Cache-Control: max-age=10, must-revalidate"));
        assert!(!never.may_serve_on_error(at(18), Duration::MAX));
        assert!(never.may_serve_on_error(at(9), ZERO));
        let always = freshness(&Fetch::of("Cache-Control: max-age=10, no-cache"));
        assert!(!always.may_serve_on_error(at(0), Duration::MAX));
    }

    proptest! {
        #[test]
        fn nothing_is_fresh_after_its_lifetime(
            response in "(Cache-Control: (max-age|s-maxage)=[0-9]{1,12}\n|Age: [0-9]{1,12}\n|Expires: Sun, 06 Nov [0-9]{4} 08:49:37 GMT\n|Last-Modified: Sun, 06 Nov 19[0-9]{2} 08:49:37 GMT\n){0,4}",
            delay in 0_u64..100,
            later in 0_i64..10_000_000_000,
        ) {
            let found = freshness(&Fetch::of(&response).delayed(delay));
            let now = at(later);
            if found.is_fresh(now) {
                prop_assert!(at(later).duration_since(at(0)).unwrap() < found.lifetime());
            }
            prop_assert!(found.current_age(now) >= found.current_age(at(0)));
        }
    }
}
