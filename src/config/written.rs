//! The effective configuration, written as a file that reads the same.

use super::Config;
use super::routes::Defaults;
use super::sections::AUTO;
use super::units;
use super::values::OFF;
use super::words::Word;
use crate::policy::{Heuristic, KeySpec, Query, Rules};
use crate::proxy::{self, Coalescing, Forwarded, HostHeader, Network, Route};
use crate::{admin, server, store, telemetry, upstream};
use http::StatusCode;
use std::fmt::{Display, Write};
use std::path::Path;
use std::time::Duration;

/// A key and its value in TOML.
type Entry = (&'static str, String);

/// The whole configuration.
pub(super) fn toml(config: &Config) -> String {
    let mut text = format!("# The effective configuration ({}).\n", config.source);
    table(&mut text, "[server]", &server(&config.server));
    if let Some(identity) = &config.server.tls {
        table(&mut text, "[server.tls]", &pair(identity));
    }
    table(&mut text, "[admin]", &admin(&config.admin));
    if config.admin.token.is_some() {
        text.push_str("# token is set, but not shown\n");
    }
    table(&mut text, "[log]", &log(&config.telemetry));
    table(&mut text, "[store]", &store(&config.store));
    table(&mut text, "[reload]", &[("watch", duration_or_off(config.watch.interval))]);
    table(&mut text, "[proxy]", &proxy(&config.proxy));
    table(&mut text, "[forwarded]", &forwarded(&config.proxy.forwarded));
    let Defaults { rules, key, coalescing } = &config.defaults;
    let (cache, waiting) = (cache(rules, key), self::coalescing(coalescing));
    table(&mut text, "[cache]", &cache);
    table(&mut text, "[coalescing]", &waiting);
    for upstream in &config.upstreams {
        table(&mut text, "[[upstream]]", &self::upstream(upstream));
        table_unless_empty(
            &mut text,
            "[upstream.breaker]",
            &upstream.breaker.map(breaker).unwrap_or_default(),
        );
        table_unless_empty(
            &mut text,
            "[upstream.adaptive]",
            &upstream.adaptive.map(adaptive).unwrap_or_default(),
        );
        let check = upstream.check.as_ref().map(upstream_check);
        table_unless_empty(&mut text, "[upstream.check]", &check.unwrap_or_default());
        table_unless_empty(&mut text, "[upstream.tls]", &upstream_tls(&upstream.tls));
    }
    for route in &config.proxy.routes {
        table(&mut text, "[[route]]", &self::route(route, &config.upstreams));
        // What a route inherits stands in [cache] and [coalescing].
        let own = differing(self::cache(&route.rules, &route.key), &cache);
        table_unless_empty(&mut text, "[route.cache]", &own);
        let own = differing(self::coalescing(&route.coalescing), &waiting);
        table_unless_empty(&mut text, "[route.coalescing]", &own);
    }
    text
}

fn table(text: &mut String, header: &str, entries: &[Entry]) {
    text.push('\n');
    text.push_str(header);
    text.push('\n');
    for (key, value) in entries {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key} = {value}");
    }
}

fn table_unless_empty(text: &mut String, header: &str, entries: &[Entry]) {
    if !entries.is_empty() {
        table(text, header, entries);
    }
}

fn differing(entries: Vec<Entry>, inherited: &[Entry]) -> Vec<Entry> {
    entries.into_iter().filter(|entry| !inherited.contains(entry)).collect()
}

fn server(settings: &server::Settings) -> Vec<Entry> {
    vec![
        ("listen", list(settings.listen.iter())),
        ("proxy_protocol", settings.proxy_protocol.to_string()),
        ("connections_max", settings.connections_max.to_string()),
        ("connections_per_client_max", number_or_off(settings.connections_per_client_max)),
        ("requests_per_connection_max", number_or_off(settings.requests_per_connection_max)),
        ("header_read_timeout", duration(settings.header_read_timeout)),
        ("idle_timeout", duration(settings.idle_timeout)),
        ("send_timeout", duration_or_off(settings.send_timeout)),
        ("send_rate_min", size_or_off(settings.send_rate_min)),
        ("header_bytes_max", size(settings.header_bytes_max)),
        ("header_count_max", settings.header_count_max.to_string()),
        ("http2_streams_max", settings.http2_streams_max.to_string()),
        ("drain_delay", duration(settings.drain_delay)),
        ("drain_timeout", duration(settings.drain_timeout)),
        ("upgrade_timeout", duration(settings.upgrade_timeout)),
        ("threads", settings.threads.map_or_else(|| quoted(AUTO), |threads| threads.to_string())),
    ]
}

fn pair((certificate, key): &(std::path::PathBuf, std::path::PathBuf)) -> Vec<Entry> {
    vec![("certificate_file", path(certificate)), ("key_file", path(key))]
}

fn admin(settings: &admin::Settings) -> Vec<Entry> {
    let mut entries = vec![("listen", quoted(settings.listen)), ("hosts", list(settings.hosts.iter()))];
    entries.extend(settings.token_file.as_deref().map(|file| ("token_file", path(file))));
    entries
}

fn log(settings: &telemetry::Settings) -> Vec<Entry> {
    vec![
        ("format", word(settings.format)),
        ("filter", quoted(&settings.filter)),
        ("access", settings.access_log.to_string()),
    ]
}

fn store(settings: &store::Settings) -> Vec<Entry> {
    vec![
        ("bytes_max", quoted(units::size(settings.bytes_max))),
        ("variants_max", settings.variants_max.to_string()),
        ("notes_max", settings.notes_max.to_string()),
        ("stamps_max", settings.stamps_max.to_string()),
    ]
}

fn proxy(settings: &proxy::Settings) -> Vec<Entry> {
    vec![
        ("pseudonym", quoted(&settings.pseudonym)),
        ("unmatched", word(settings.unmatched)),
        ("dot_segments", word(settings.paths.dot_segments)),
        ("encoded_slashes", word(settings.paths.encoded_slashes)),
        ("merge_slashes", settings.paths.merge_slashes.to_string()),
        ("inflight_bytes_max", size(settings.inflight_bytes_max)),
        ("waiters_max", settings.waiters_max.to_string()),
        ("purge_allowed", list(settings.purge_allowed.iter().map(network))),
        ("request_body_bytes_max", size_or_off(settings.request_body_bytes_max)),
        ("request_body_pause_max", duration(settings.request_body_pause_max)),
        ("request_body_rate_min", size_or_off(settings.request_body_rate_min)),
        ("target_bytes_max", size(settings.target_bytes_max)),
        ("x_cache", settings.x_cache.to_string()),
        ("cache_status_key", settings.cache_status_key.to_string()),
    ]
}

fn network(Network { address, bits }: &Network) -> String {
    format!("{address}/{bits}")
}

fn forwarded(settings: &Forwarded) -> Vec<Entry> {
    vec![
        ("x_forwarded", settings.x_forwarded.to_string()),
        ("forwarded", settings.forwarded.to_string()),
        ("via", settings.via.to_string()),
        ("trusted_proxies", list(settings.trusted_proxies.iter().map(network))),
    ]
}

fn cache(rules: &Rules, key: &KeySpec) -> Vec<Entry> {
    let fraction = rules.heuristic.map(|heuristic: Heuristic| heuristic.fraction);
    let bound = rules.heuristic.unwrap_or_default().max;
    vec![
        ("enabled", rules.enabled.to_string()),
        ("default_ttl", duration_or_off(rules.default_ttl)),
        ("override_ttl", duration_or_off(rules.override_ttl)),
        ("heuristic_fraction", factor_or_off(fraction)),
        ("heuristic_max", duration(bound)),
        ("stale_while_revalidate", duration(rules.stale_while_revalidate)),
        ("stale_if_error", duration(rules.stale_if_error)),
        ("early_refresh", factor_or_off(rules.early_refresh)),
        ("honor_request_directives", rules.honor_request_directives.to_string()),
        ("targeted_fields", list(rules.targeted_fields.iter())),
        ("surrogate_control", rules.surrogate_control.to_string()),
        ("guard_extensions", rules.guard_extensions.to_string()),
        ("store_set_cookie", rules.store_set_cookie.to_string()),
        ("store_server_errors", rules.store_server_errors.to_string()),
        ("store_post_as_get", rules.store_post_as_get.to_string()),
        ("body_methods", list(rules.body_methods.iter())),
        ("share", word(rules.share)),
        ("key_host", key.host.to_string()),
        ("key_headers", list(key.headers.iter())),
        ("key_cookies", list(key.cookies.iter())),
        ("query", query(&key.query)),
    ]
}

fn query(query: &Query) -> String {
    match query {
        Query::All => quoted("all"),
        Query::None => quoted("none"),
        Query::Sorted => quoted("sorted"),
        Query::Only(names) => format!("{{ only = {} }}", list(names.iter())),
        Query::Without(names) => format!("{{ without = {} }}", list(names.iter())),
    }
}

fn coalescing(settings: &Coalescing) -> Vec<Entry> {
    vec![
        ("enabled", settings.enabled.to_string()),
        ("waiter_timeout", duration(settings.waiter_timeout)),
        ("waiters_max", settings.waiters_max.to_string()),
        ("on_limit", word(settings.on_limit)),
        ("hit_for_miss_ttl", duration(settings.hit_for_miss_ttl)),
        ("error_backoff", duration(settings.error_backoff.0)),
        ("error_backoff_max", duration(settings.error_backoff.1)),
        ("on_abandon", word(settings.on_abandon)),
        ("body_bytes_max", quoted(units::size(settings.body_bytes_max))),
        ("reader_stall_timeout", duration(settings.reader_stall_timeout)),
        ("join_with_authorization", settings.join_with_authorization.to_string()),
        ("join_with_cookies", settings.join_with_cookies.to_string()),
        ("request_body_bytes_max", size(settings.request_body_bytes_max)),
        ("pass_ranges", settings.pass_ranges.to_string()),
    ]
}

fn upstream_check(check: &upstream::Check) -> Vec<Entry> {
    let mut entries = vec![("path", quoted(&check.path))];
    let host = check.host.as_ref().and_then(|host| host.to_str().ok());
    entries.extend(host.map(|host| ("host", quoted(host))));
    entries.extend([
        ("interval", duration(check.interval)),
        ("timeout", duration(check.timeout)),
        ("healthy_after", check.healthy_after.to_string()),
        ("unhealthy_after", check.unhealthy_after.to_string()),
    ]);
    entries
}

fn breaker(breaker: upstream::Breaker) -> Vec<Entry> {
    vec![
        ("enabled", true.to_string()),
        ("failure_ratio", factor_or_off(breaker.failure_ratio)),
        ("requests_min", breaker.requests_min.to_string()),
        ("window", duration(breaker.window)),
        ("failures_in_a_row", number_or_off(breaker.failures_in_a_row)),
        ("open_time", duration(breaker.open_time)),
        ("open_time_max", duration(breaker.open_time_max)),
        ("probes", breaker.probes.to_string()),
    ]
}

fn adaptive(adaptive: upstream::Adaptive) -> Vec<Entry> {
    vec![
        ("enabled", true.to_string()),
        ("concurrency_min", adaptive.concurrency_min.to_string()),
        ("latency_tolerance", format!("{:?}", adaptive.latency_tolerance)),
    ]
}

fn upstream(settings: &upstream::Settings) -> Vec<Entry> {
    let ejection = settings.ejection.unwrap_or_default();
    let urls = settings.origins.iter().map(|origin| {
        let scheme = if origin.https { "https" } else { "http" };
        format!("{scheme}://{}", origin.authority())
    });
    vec![
        ("name", quoted(&settings.name)),
        ("url", list(urls)),
        ("balance", word(settings.balance)),
        ("protocol", word(settings.protocol)),
        ("connect_timeout", duration(settings.connect_timeout)),
        ("head_timeout", duration(settings.head_timeout)),
        ("between_bytes_timeout", duration(settings.between_bytes_timeout)),
        ("total_timeout", duration_or_off(settings.total_timeout)),
        ("idle_connections_max", settings.idle_connections_max.to_string()),
        ("idle_timeout", duration(settings.idle_timeout)),
        ("resolve_interval", duration_or_off(settings.resolve_interval)),
        ("concurrency_max", settings.concurrency_max.to_string()),
        ("queue_max", settings.queue_max.to_string()),
        ("queue_timeout", duration(settings.queue_timeout)),
        ("retries", settings.retries.to_string()),
        ("retry_statuses", numbers(settings.retry_statuses.iter().map(StatusCode::as_u16))),
        ("retry_budget", factor_or_off(settings.retry_budget)),
        ("eject_after", number_or_off(settings.ejection.map(|ejection| ejection.failures))),
        ("ejection_time", duration(ejection.first)),
        ("ejection_time_max", duration(ejection.longest)),
        ("response_header_bytes_max", size(settings.response_header_bytes_max)),
    ]
}

fn upstream_tls(settings: &upstream::Tls) -> Vec<Entry> {
    let mut entries = Vec::new();
    entries.extend(settings.roots_file.as_deref().map(|file| ("roots_file", path(file))));
    entries.extend(settings.client_identity.iter().flat_map(pair));
    entries.extend(settings.server_name.as_ref().map(|name| ("server_name", quoted(name))));
    entries.extend(settings.insecure.then(|| ("insecure", settings.insecure.to_string())));
    entries
}

fn route(route: &Route, upstreams: &[upstream::Settings]) -> Vec<Entry> {
    let host_header = match &route.host_header {
        HostHeader::Pass => quoted("pass"),
        HostHeader::Upstream => quoted("upstream"),
        HostHeader::Fixed(host) => format!("{{ fixed = {} }}", quoted(host)),
    };
    let upstream = upstreams.get(route.upstream).map_or("", |upstream| upstream.name.as_str());
    let mut entries = vec![("name", quoted(&route.name))];
    entries.extend(route.host.as_ref().map(|host| ("host", quoted(host))));
    entries.extend([
        ("path", quoted(&route.prefix)),
        ("upstream", quoted(upstream)),
        ("strip_prefix", route.strip_prefix.to_string()),
        ("host_header", host_header),
    ]);
    entries
}

fn quoted(text: impl Display) -> String {
    toml::Value::String(text.to_string()).to_string()
}

fn path(file: &Path) -> String {
    quoted(file.display())
}

fn list(elements: impl Iterator<Item = impl Display>) -> String {
    format!("[{}]", elements.map(quoted).collect::<Vec<_>>().join(", "))
}

fn numbers(elements: impl Iterator<Item = u16>) -> String {
    format!("[{}]", elements.map(|number| number.to_string()).collect::<Vec<_>>().join(", "))
}

fn duration(value: Duration) -> String {
    quoted(units::duration(value))
}

fn duration_or_off(value: Option<Duration>) -> String {
    value.map_or_else(|| quoted(OFF), duration)
}

fn size_or_off(bytes: Option<u64>) -> String {
    quoted(bytes.map_or_else(|| OFF.to_owned(), units::size))
}

fn number_or_off(value: Option<impl Display>) -> String {
    value.map_or_else(|| quoted(OFF), |number| number.to_string())
}

fn factor_or_off(value: Option<f64>) -> String {
    value.map_or_else(|| quoted(OFF), |number| format!("{number:?}"))
}

fn size(bytes: usize) -> String {
    quoted(units::size(u64::try_from(bytes).unwrap_or(u64::MAX)))
}

fn word(value: impl Word) -> String {
    quoted(value.word())
}
