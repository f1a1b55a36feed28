//! The tables of the configuration that stand alone: `[server]`, `[admin]`, `[log]`, `[store]`, `[reload]` and each
//! `[[upstream]]`. One key a line, beside the default it falls back to.

use super::error::{Wrong, nearest};
use super::files::{identity, roots, token_file};
use super::memory;
use super::section::{Given, Section};
use super::values::{
    address, authority, duration, factor, host, list, number, one_or_more, or_off, or_word, origin, parsed,
    secret, size, text, time, truth, unexpected, word,
};
use crate::upstream::Origin;
use crate::{admin, server, store, telemetry, upstream, watch};
use http::uri::PathAndQuery;
use http::{HeaderValue, StatusCode};
use rustls::pki_types::ServerName;

/// The word for a value that is found at start.
pub(super) const AUTO: &str = "auto";

/// The levels of the log.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// More of anything than a machine can hold; it keeps slips of the finger out.
const MANY: usize = 10_000_000;

/// Reads `[server]`.
pub(super) fn server(section: &mut Section<'_>) -> server::Settings {
    let default = server::Settings::default();
    server::Settings {
        listen: section.read("listen", &default.listen, one_or_more(address)),
        tls: section.within("tls", identity),
        proxy_protocol: section.read("proxy_protocol", &default.proxy_protocol, truth),
        connections_max: section.read("connections_max", &default.connections_max, number(1..=MANY)),
        connections_per_client_max: section.read(
            "connections_per_client_max",
            &default.connections_per_client_max,
            or_off(number(1..=MANY)),
        ),
        requests_per_connection_max: section.read(
            "requests_per_connection_max",
            &default.requests_per_connection_max,
            or_off(number(1..=1_000_000_000)),
        ),
        header_read_timeout: section.read("header_read_timeout", &default.header_read_timeout, time),
        idle_timeout: section.read("idle_timeout", &default.idle_timeout, time),
        send_timeout: section.read("send_timeout", &default.send_timeout, or_off(time)),
        send_rate_min: section.read("send_rate_min", &default.send_rate_min, or_off(size(1..=1 << 40))),
        // hyper reads heads into a buffer that cannot be smaller than 8 KiB.
        header_bytes_max: section.read(
            "header_bytes_max",
            &default.header_bytes_max,
            size(8 << 10..=16 << 20),
        ),
        header_count_max: section.read("header_count_max", &default.header_count_max, number(1..=10_000)),
        http2_streams_max: section.read(
            "http2_streams_max",
            &default.http2_streams_max,
            number(1..=1_000_000),
        ),
        drain_delay: section.read("drain_delay", &default.drain_delay, duration),
        drain_timeout: section.read("drain_timeout", &default.drain_timeout, duration),
        upgrade_timeout: section.read("upgrade_timeout", &default.upgrade_timeout, time),
        threads: section.read("threads", &default.threads, or_word(AUTO, number(1..=1024))),
    }
}

/// Reads `[admin]`.
pub(super) fn admin(section: &mut Section<'_>) -> admin::Settings {
    admin::Settings {
        listen: section.read("listen", &admin::Settings::default().listen, address),
        hosts: section.read("hosts", &Vec::new(), list(host)),
        token_file: section.given("token_file", token_file),
        token: section.given("token", secret),
    }
}

/// Reads `[log]`.
pub(super) fn log(section: &mut Section<'_>) -> telemetry::Settings {
    let default = telemetry::Settings::default();
    telemetry::Settings {
        format: section.read("format", &default.format, word),
        filter: section.read("filter", &default.filter, filter),
        access_log: section.read("access", &default.access_log, truth),
    }
}

/// A filter of log lines. A word alone could be a target as well as a level; here it must be a level, or a
/// slip in a level would silence the log.
fn filter(given: Given<'_>) -> Result<String, Wrong> {
    let text = text(given)?;
    for directive in text.split(',').map(str::trim) {
        let level = directive.to_ascii_lowercase();
        if !directive.contains(['=', '[']) && !LEVELS.contains(&level.as_str()) {
            return Err(Wrong::Unexpected {
                found: format!("{directive:?}"),
                expected: format!("a level ({}) or \"target=level\"", LEVELS.join(", ")),
                nearest: nearest(&level, LEVELS),
            });
        }
    }
    let expected = "log levels, such as \"info\" or \"info,forebay::proxy=debug\"";
    parsed(given, expected, |text| {
        text.parse::<tracing_subscriber::EnvFilter>().ok().map(|_| text.to_owned())
    })
}

/// Reads `[store]`.
pub(super) fn store(section: &mut Section<'_>, memory: Option<u64>) -> store::Settings {
    let default = store::Settings::default();
    let bytes_max = section.read("bytes_max", &None, or_word(AUTO, size(1 << 20..=1 << 50)));
    store::Settings {
        bytes_max: bytes_max.unwrap_or_else(|| memory::for_store(memory, default.bytes_max)),
        variants_max: section.read("variants_max", &default.variants_max, number(1..=10_000)),
        notes_max: section.read("notes_max", &default.notes_max, number(0..=1_000_000_000)),
        stamps_max: section.read("stamps_max", &default.stamps_max, number(1..=MANY)),
    }
}

/// Reads `[reload]`.
pub(super) fn reload(section: &mut Section<'_>) -> watch::Settings {
    let default = watch::Settings::default();
    watch::Settings { interval: section.read("watch", &default.interval, or_off(time)) }
}

/// Reads one `[[upstream]]`.
pub(super) fn upstream(section: &mut Section<'_>) -> upstream::Settings {
    let expected = "one or more URLs, such as \"http://127.0.0.1:3000\"";
    let origins = section.required("url", expected, one_or_more(origin)).unwrap_or_default();
    let derived = origins.first().map(Origin::authority).unwrap_or_default();
    let name = section.read("name", &derived, text);
    let tls = section.within("tls", upstream_tls);
    check_tls(section, &origins, &tls);
    let default = upstream::Settings::named(name, origins);
    upstream::Settings {
        balance: section.read("balance", &default.balance, word),
        connect_timeout: section.read("connect_timeout", &default.connect_timeout, time),
        head_timeout: section.read("head_timeout", &default.head_timeout, time),
        between_bytes_timeout: section.read("between_bytes_timeout", &default.between_bytes_timeout, time),
        total_timeout: section.read("total_timeout", &default.total_timeout, or_off(time)),
        idle_connections_max: section.read(
            "idle_connections_max",
            &default.idle_connections_max,
            number(0..=MANY),
        ),
        idle_timeout: section.read("idle_timeout", &default.idle_timeout, time),
        resolve_interval: section.read("resolve_interval", &default.resolve_interval, or_off(time)),
        concurrency_max: section.read("concurrency_max", &default.concurrency_max, number(1..=1_000_000)),
        adaptive: section.within("adaptive", adaptive),
        queue_max: section.read("queue_max", &default.queue_max, number(0..=MANY)),
        queue_timeout: section.read("queue_timeout", &default.queue_timeout, time),
        retries: section.read("retries", &default.retries, number(0..=10)),
        retry_statuses: section.read("retry_statuses", &default.retry_statuses, list(error_status)),
        retry_budget: section.read("retry_budget", &default.retry_budget, or_off(factor(1.0))),
        ejection: ejection(section),
        breaker: section.within("breaker", breaker),
        check: section.within("check", check),
        protocol: section.read("protocol", &default.protocol, word),
        tls,
        response_header_bytes_max: section.read(
            "response_header_bytes_max",
            &default.response_header_bytes_max,
            size(8 << 10..=16 << 20),
        ),
        name: default.name,
        origins: default.origins,
    }
}

/// A status that tells of an error.
fn error_status(given: Given<'_>) -> Result<StatusCode, Wrong> {
    let status = number(400..=599)(given)?;
    StatusCode::from_u16(status).map_err(|_| unexpected(given, "a status from 400 to 599"))
}

/// When the upstream as a whole is left alone.
fn breaker(section: &mut Section<'_>) -> Option<upstream::Breaker> {
    let default = upstream::Breaker::default();
    let is_enabled = section.read("enabled", &false, truth);
    let breaker = upstream::Breaker {
        failure_ratio: section.read("failure_ratio", &default.failure_ratio, or_off(factor(1.0))),
        requests_min: section.read("requests_min", &default.requests_min, number(1..=1_000_000)),
        window: section.read("window", &default.window, time),
        failures_in_a_row: section.read(
            "failures_in_a_row",
            &default.failures_in_a_row,
            or_off(number(1..=1_000_000)),
        ),
        open_time: section.read("open_time", &default.open_time, time),
        open_time_max: section.read("open_time_max", &default.open_time_max, time),
        probes: section.read("probes", &default.probes, number(1..=10_000)),
    };
    if breaker.open_time_max < breaker.open_time {
        section.contradiction("open_time_max", "it is shorter than open_time");
    }
    if is_enabled && breaker.failure_ratio.is_none() && breaker.failures_in_a_row.is_none() {
        section.contradiction("enabled", "neither failure_ratio nor failures_in_a_row would open it");
    }
    is_enabled.then_some(breaker)
}

/// How the concurrency limit follows the latency.
fn adaptive(section: &mut Section<'_>) -> Option<upstream::Adaptive> {
    let default = upstream::Adaptive::default();
    let is_enabled = section.read("enabled", &false, truth);
    let adaptive = upstream::Adaptive {
        concurrency_min: section.read("concurrency_min", &default.concurrency_min, number(1..=1_000_000)),
        latency_tolerance: section.read("latency_tolerance", &default.latency_tolerance, number_from_one),
    };
    is_enabled.then_some(adaptive)
}

/// A multiple: 1 or more.
fn number_from_one(given: Given<'_>) -> Result<f64, Wrong> {
    let expected = || unexpected(given, "a number from 1 to 100");
    factor(100.0)(given).ok().filter(|number| *number >= 1.0).ok_or_else(expected)
}

/// When an origin that fails is left alone.
fn ejection(section: &mut Section<'_>) -> Option<upstream::Ejection> {
    let default = upstream::Ejection::default();
    let failures = section.read("eject_after", &Some(default.failures), or_off(number(1..=1_000_000)));
    let first = section.read("ejection_time", &default.first, time);
    let longest = section.read("ejection_time_max", &default.longest, time);
    if longest < first {
        section.contradiction("ejection_time_max", "it is shorter than ejection_time");
    }
    failures.map(|failures| upstream::Ejection { failures, first, longest })
}

/// How origins are checked; nothing without a path.
fn check(section: &mut Section<'_>) -> Option<upstream::Check> {
    let path = section.given("path", |given| {
        parsed(given, "a path, such as \"/healthz\"", |text| {
            text.parse().ok().filter(|_| text.starts_with('/') && text.is_ascii())
        })
    });
    let default = upstream::Check::of(PathAndQuery::from_static("/"));
    let check = upstream::Check {
        host: section.given("host", authority).and_then(|host| HeaderValue::try_from(host).ok()),
        interval: section.read("interval", &default.interval, time),
        timeout: section.read("timeout", &default.timeout, time),
        healthy_after: section.read("healthy_after", &default.healthy_after, number(1..=1000)),
        unhealthy_after: section.read("unhealthy_after", &default.unhealthy_after, number(1..=1000)),
        path: default.path,
    };
    path.map(|path| upstream::Check { path, ..check })
}

fn upstream_tls(section: &mut Section<'_>) -> upstream::Tls {
    upstream::Tls {
        roots_file: section.given("roots_file", roots),
        client_identity: identity(section),
        server_name: section.given("server_name", |given| {
            parsed(given, "a host name or an IP address", |text| {
                is_server_name(text).then(|| text.to_owned())
            })
        }),
        insecure: section.read("insecure", &upstream::Tls::default().insecure, truth),
    }
}

/// Whether a certificate can be for it.
fn is_server_name(text: &str) -> bool {
    ServerName::try_from(text).is_ok()
}

/// Writes down what is wrong with URLs and TLS taken together.
fn check_tls(section: &Section<'_>, origins: &[Origin], tls: &upstream::Tls) {
    let mut secure = origins.iter().filter(|origin| origin.https).peekable();
    if secure.peek().is_none() && !origins.is_empty() && *tls != upstream::Tls::default() {
        section
            .contradiction("tls", "none of the upstream's URLs is https, so nothing of this would be used");
    }
    if tls.server_name.is_none()
        && let Some(origin) = secure.find(|origin| !is_server_name(&origin.host))
    {
        let text = format!("no certificate can be for {:?}; give tls.server_name", origin.host);
        section.contradiction("url", &text);
    }
}
