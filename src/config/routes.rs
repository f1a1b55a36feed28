//! The tables that say what happens to requests: `[proxy]`, `[forwarded]`, `[cache]`, `[coalescing]` and each
//! `[[route]]`, which may override the latter two key by key.

use super::error::{Notes, Wrong, nearest};
use super::layers::is_text_only;
use super::memory;
use super::section::{Given, Section, describe};
use super::sections::AUTO;
use super::values::{
    authority, duration, factor, field_name, host, list, network, number, one_of, or_off, or_word,
    path_prefix, pseudonym, size, text, time, token, truth, unexpected, word,
};
use crate::policy::{Heuristic, KeySpec, Query, Rules};
use crate::proxy::{self, Coalescing, Forwarded, HostHeader, Route};
use crate::upstream;
use ::config::ValueKind;
use http::Method;

/// The words for the use of the query that need no list of names.
pub(super) const QUERIES: [(&str, Query); 3] =
    [("all", Query::All), ("none", Query::None), ("sorted", Query::Sorted)];

/// The largest size that may be configured.
const HUGE: u64 = 1 << 50;

/// What holds for every route that does not say otherwise.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Defaults {
    pub(super) rules: Rules,
    pub(super) key: KeySpec,
    pub(super) coalescing: Coalescing,
}

/// Reads `[proxy]` and `[forwarded]`; the routes are still missing.
pub(super) fn proxy(whole: &mut Section<'_>, memory: Option<u64>) -> proxy::Settings {
    let default = proxy::Settings::default();
    let forwarded = whole.within("forwarded", forwarded);
    whole.within("proxy", |section| proxy::Settings {
        routes: Vec::new(),
        forwarded,
        pseudonym: section.read("pseudonym", &default.pseudonym, pseudonym),
        unmatched: section.read("unmatched", &default.unmatched, word),
        paths: proxy::Paths {
            dot_segments: section.read("dot_segments", &default.paths.dot_segments, word),
            encoded_slashes: section.read("encoded_slashes", &default.paths.encoded_slashes, word),
            merge_slashes: section.read("merge_slashes", &default.paths.merge_slashes, truth),
        },
        inflight_bytes_max: section
            .read("inflight_bytes_max", &None, or_word(AUTO, size(1 << 20..=HUGE)))
            .unwrap_or_else(|| memory::for_bodies(memory, default.inflight_bytes_max)),
        waiters_max: section.read("waiters_max", &default.waiters_max, number(1..=10_000_000)),
        purge_allowed: section.read("purge_allowed", &default.purge_allowed, list(network)),
        request_body_bytes_max: section.read(
            "request_body_bytes_max",
            &default.request_body_bytes_max,
            or_off(size(0..=HUGE)),
        ),
        request_body_pause_max: section.read("request_body_pause_max", &default.request_body_pause_max, time),
        request_body_rate_min: section.read(
            "request_body_rate_min",
            &default.request_body_rate_min,
            or_off(size(1..=1 << 40)),
        ),
        target_bytes_max: section.read(
            "target_bytes_max",
            &default.target_bytes_max,
            size(64..=u64::from(u16::MAX)),
        ),
        x_cache: section.read("x_cache", &default.x_cache, truth),
        cache_status_key: section.read("cache_status_key", &default.cache_status_key, truth),
    })
}

fn forwarded(section: &mut Section<'_>) -> Forwarded {
    let default = Forwarded::default();
    Forwarded {
        x_forwarded: section.read("x_forwarded", &default.x_forwarded, truth),
        forwarded: section.read("forwarded", &default.forwarded, truth),
        via: section.read("via", &default.via, truth),
        trusted_proxies: section.read("trusted_proxies", &default.trusted_proxies, list(network)),
    }
}

/// Reads `[cache]` and `[coalescing]`, of the whole configuration or of a route.
pub(super) fn defaults(section: &mut Section<'_>, default: &Defaults) -> Defaults {
    let (rules, key) = section.within("cache", |section| {
        let key = key(section, &default.key);
        let rules = Rules { keyed_cookies: key.cookies.clone(), ..rules(section, &default.rules) };
        (rules, key)
    });
    let coalescing = section.within("coalescing", |section| coalescing(section, &default.coalescing));
    Defaults { rules, key, coalescing }
}

fn rules(section: &mut Section<'_>, default: &Rules) -> Rules {
    Rules {
        enabled: section.read("enabled", &default.enabled, truth),
        default_ttl: section.read("default_ttl", &default.default_ttl, or_off(duration)),
        override_ttl: section.read("override_ttl", &default.override_ttl, or_off(duration)),
        heuristic: heuristic(section, default.heuristic.as_ref()),
        stale_while_revalidate: section.read(
            "stale_while_revalidate",
            &default.stale_while_revalidate,
            duration,
        ),
        stale_if_error: section.read("stale_if_error", &default.stale_if_error, duration),
        honor_request_directives: section.read(
            "honor_request_directives",
            &default.honor_request_directives,
            truth,
        ),
        guard_extensions: section.read("guard_extensions", &default.guard_extensions, truth),
        store_set_cookie: section.read("store_set_cookie", &default.store_set_cookie, truth),
        store_server_errors: section.read("store_server_errors", &default.store_server_errors, truth),
        targeted_fields: section.read("targeted_fields", &default.targeted_fields, list(field_name)),
        surrogate_control: section.read("surrogate_control", &default.surrogate_control, truth),
        share: section.read("share", &default.share, word),
        body_methods: section.read("body_methods", &default.body_methods, list(body_method)),
        store_post_as_get: section.read("store_post_as_get", &default.store_post_as_get, truth),
        early_refresh: section.read("early_refresh", &default.early_refresh, or_off(factor(100.0))),
        // What the key says of cookies is read after this, and told to the rules then.
        keyed_cookies: Vec::new(),
    }
}

fn heuristic(section: &mut Section<'_>, default: Option<&Heuristic>) -> Option<Heuristic> {
    // Where it is off by default, a route that switches it on with the fraction alone gets the built-in bound.
    let bound = default.copied().unwrap_or_default().max;
    let fraction =
        section.read("heuristic_fraction", &default.map(|heuristic| heuristic.fraction), or_off(factor(1.0)));
    let max = section.read("heuristic_max", &bound, time);
    fraction.map(|fraction| Heuristic { fraction, max })
}

/// A method whose requests have a body and may be cached all the same.
fn body_method(given: Given<'_>) -> Result<Method, Wrong> {
    let query = Method::from_bytes(b"QUERY").unwrap_or(Method::POST);
    one_of(&[("QUERY", query), ("POST", Method::POST)])(given)
}

fn key(section: &mut Section<'_>, default: &KeySpec) -> KeySpec {
    KeySpec {
        host: section.read("key_host", &default.host, truth),
        query: section.read("query", &default.query, query),
        headers: section.read("key_headers", &default.headers, list(field_name)),
        cookies: section.read("key_cookies", &default.cookies, list(token)),
    }
}

/// `"all"`, `"none"`, `"sorted"`, `{ only = [..] }` or `{ without = [..] }`.
fn query(given: Given<'_>) -> Result<Query, Wrong> {
    let expected = "one of \"all\", \"none\", \"sorted\", { only = [..] }, { without = [..] }";
    let ValueKind::Table(table) = given.kind else {
        return one_of(&QUERIES)(given).map_err(|wrong| match wrong {
            Wrong::Unexpected { found, nearest, .. } => {
                Wrong::Unexpected { found, expected: expected.to_owned(), nearest }
            }
            other => other,
        });
    };
    let mut entries = table.iter();
    let (Some((key, names)), None) = (entries.next(), entries.next()) else {
        return Err(unexpected(given, expected));
    };
    let names = || list(text)(inner(given, names));
    match key.as_str() {
        "only" => Ok(Query::Only(names()?.into_iter().collect())),
        "without" => Ok(Query::Without(names()?.into_iter().collect())),
        other => Err(Wrong::Unexpected {
            found: format!("the key {other:?}"),
            expected: expected.to_owned(),
            nearest: nearest(other, ["only", "without"]),
        }),
    }
}

/// A value inside of a given one. A table that was put together from environment variables holds texts only.
fn inner<'a>(given: Given<'a>, value: &'a ::config::Value) -> Given<'a> {
    Given { kind: &value.kind, text_only: given.text_only || is_text_only(value) }
}

fn coalescing(section: &mut Section<'_>, default: &Coalescing) -> Coalescing {
    let backoff = default.error_backoff;
    let first = section.read("error_backoff", &backoff.0, duration);
    let longest = section.read("error_backoff_max", &backoff.1.max(first), duration);
    if longest < first {
        section.contradiction("error_backoff_max", "shorter than error_backoff, the first pause");
    }
    Coalescing {
        enabled: section.read("enabled", &default.enabled, truth),
        waiter_timeout: section.read("waiter_timeout", &default.waiter_timeout, time),
        waiters_max: section.read("waiters_max", &default.waiters_max, number(1..=10_000_000)),
        on_limit: section.read("on_limit", &default.on_limit, word),
        hit_for_miss_ttl: section.read("hit_for_miss_ttl", &default.hit_for_miss_ttl, duration),
        error_backoff: (first, longest),
        on_abandon: section.read("on_abandon", &default.on_abandon, word),
        body_bytes_max: section.read("body_bytes_max", &default.body_bytes_max, size(0..=HUGE)),
        reader_stall_timeout: section.read("reader_stall_timeout", &default.reader_stall_timeout, time),
        join_with_authorization: section.read(
            "join_with_authorization",
            &default.join_with_authorization,
            truth,
        ),
        join_with_cookies: section.read("join_with_cookies", &default.join_with_cookies, truth),
        request_body_bytes_max: section.read(
            "request_body_bytes_max",
            &default.request_body_bytes_max,
            size(1..=1 << 30),
        ),
        pass_ranges: section.read("pass_ranges", &default.pass_ranges, truth),
    }
}

/// Reads one `[[route]]`. Its upstream is looked up by name among those configured.
pub(super) fn route(
    section: &mut Section<'_>,
    default: &Defaults,
    upstreams: &[upstream::Settings],
) -> Route {
    let host = section.given("host", host);
    let prefix = section.read("path", &"/".to_owned(), path_prefix);
    let name = section.read("name", &derived_name(host.as_deref(), &prefix), text);
    let upstream = section.required("upstream", &known_upstreams(upstreams), |given| {
        let name = text(given)?;
        let names = || upstreams.iter().map(|upstream| upstream.name.as_str());
        names().position(|known| known == name).ok_or_else(|| Wrong::Unexpected {
            found: format!("{name:?}"),
            expected: known_upstreams(upstreams),
            nearest: nearest(&name, names()),
        })
    });
    let Defaults { rules, key, coalescing } = defaults(section, default);
    Route {
        strip_prefix: section.read("strip_prefix", &false, truth),
        host_header: section.read("host_header", &HostHeader::default(), host_header),
        upstream: upstream.unwrap_or_default(),
        name,
        host,
        prefix,
        key,
        rules,
        coalescing,
    }
}

/// The route for all requests that is implied where nothing else is said.
pub(super) fn implied(name: &str, upstream: usize, default: &Defaults) -> Route {
    Route {
        name: name.to_owned(),
        host: None,
        prefix: "/".to_owned(),
        upstream,
        strip_prefix: false,
        host_header: HostHeader::default(),
        key: default.key.clone(),
        rules: default.rules.clone(),
        coalescing: default.coalescing.clone(),
    }
}

fn derived_name(host: Option<&str>, prefix: &str) -> String {
    match (host, prefix) {
        (None, "/") => "default".to_owned(),
        (Some(host), "/") => host.to_owned(),
        (host, prefix) => format!("{}{prefix}", host.unwrap_or_default()),
    }
}

fn known_upstreams(upstreams: &[upstream::Settings]) -> String {
    let names = upstreams.iter().map(|upstream| format!("{:?}", upstream.name)).collect::<Vec<_>>();
    if names.is_empty() {
        "the name of an upstream, but no [[upstream]] is configured".to_owned()
    } else {
        format!("the name of an upstream: {}", names.join(", "))
    }
}

/// `"pass"`, `"upstream"` or `{ fixed = "example.com" }`.
fn host_header(given: Given<'_>) -> Result<HostHeader, Wrong> {
    let expected = "one of \"pass\", \"upstream\", { fixed = \"example.com\" }";
    match given.kind {
        ValueKind::String(text) if text == "pass" => Ok(HostHeader::Pass),
        ValueKind::String(text) if text == "upstream" => Ok(HostHeader::Upstream),
        ValueKind::Table(table) if table.len() == 1 => match table.get("fixed") {
            Some(value) => authority(inner(given, value)).map(HostHeader::Fixed),
            None => Err(unexpected(given, expected)),
        },
        other => {
            let word = if let ValueKind::String(text) = other { text.as_str() } else { "" };
            let nearest = nearest(word, ["pass", "upstream"]);
            Err(Wrong::Unexpected { found: describe(other), expected: expected.to_owned(), nearest })
        }
    }
}

/// Writes down what several upstreams or routes contradict each other in.
pub(super) fn contradictions(upstreams: &[upstream::Settings], routes: &[Route], notes: &Notes) {
    let names = upstreams.iter().map(|upstream| &upstream.name);
    twice(names, "the same name", "upstream", ["name", "url"], notes);
    let names = routes.iter().map(|route| &route.name);
    twice(names, "the same name", "route", ["name", "path"], notes);
    let places = routes.iter().map(|route| (&route.host, &route.prefix));
    twice(places, "the same host and path", "route", ["path", "host"], notes);
}

/// Writes down which elements of a list have the value of an earlier one. The value stems from these keys, of
/// which the first is complained about; where one of them is wrong itself, the value means nothing.
fn twice<T: PartialEq>(
    values: impl Iterator<Item = T>,
    what: &str,
    list: &str,
    keys: [&str; 2],
    notes: &Notes,
) {
    let mut seen = Vec::new();
    for (index, value) in values.enumerate() {
        let keys = keys.map(|key| format!("{list}[{index}].{key}"));
        if notes.wrong(&[&keys[0], &keys[1]]) {
            continue;
        }
        if let Some((first, _)) = seen.iter().find(|(_, known)| *known == value) {
            notes.contradiction(&keys[0], format!("{what} as {list}[{first}]"));
        }
        seen.push((index, value));
    }
}
