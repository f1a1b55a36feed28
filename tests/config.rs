//! The configuration as its users meet it: files, variables, flags, and the messages about their mistakes.
#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests may fail as tests do")]

use forebay::cli::{self, CheckArguments, Exit, ServeArguments};
use forebay::config::{self, Config, Overrides, Place, Source, Wrong};
use forebay::policy::{KeySpec, Query, Rules};
use forebay::proxy::{Coalescing, HostHeader};
use forebay::upstream::{Balance, Origin, Protocol};
use forebay::{admin, proxy, server, store, telemetry, upstream};
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ONE_UPSTREAM: &str = "[[upstream]]\nname = \"app\"\nurl = \"http://127.0.0.1:3000\"\n";

/// The sample, from the root of the repository.
fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/forebay.toml")
}

fn built_in() -> Config {
    config::load(None, std::iter::empty(), &Overrides::default()).unwrap()
}

/// Loads a file with this content, these variables and these flags.
fn layered(text: &str, variables: &[(&str, &str)], flags: &Overrides) -> Result<Config, config::Error> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("forebay.toml");
    fs::write(&file, text).unwrap();
    let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    config::load(Some(&file), environment, flags)
}

#[track_caller]
fn loaded(text: &str) -> Config {
    match layered(text, &[], &Overrides::default()) {
        Ok(config) => config,
        Err(error) => panic!("{error}\n{text}"),
    }
}

#[track_caller]
fn with_variables(variables: &[(&str, &str)]) -> Config {
    match layered("", variables, &Overrides::default()) {
        Ok(config) => config,
        Err(error) => panic!("{error}\n{variables:?}"),
    }
}

/// Checks that the file has exactly one mistake, at this line and key, and that its message has these parts.
#[track_caller]
fn check_mistake(text: &str, line: usize, key: &str, parts: &[&str]) {
    let error = layered(text, &[], &Overrides::default()).expect_err(text);
    let [mistake] = error.mistakes() else { panic!("{error}\n{text}") };
    assert_eq!(mistake.key, key, "{error}");
    let message = mistake.to_string();
    assert!(message.contains(&format!("forebay.toml:{line}: {key}: ")), "line {line}: {message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// Checks that the one variable has exactly one mistake.
#[track_caller]
fn check_variable(name: &str, value: &str, parts: &[&str]) {
    let error = layered("", &[(name, value)], &Overrides::default()).expect_err(name);
    let [mistake] = error.mistakes() else { panic!("{error}") };
    assert_eq!(mistake.place, Place::Variable(name.to_owned()));
    let message = mistake.to_string();
    assert!(message.starts_with(&format!("environment variable {name}: ")), "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

// ---- The defaults and the sample ---------------------------------------------------------------------------

#[test]
fn with_nothing_configured_every_module_has_its_own_defaults_and_there_is_no_upstream() {
    let config = built_in();
    assert_eq!(config.server, server::Settings::default());
    assert_eq!(config.admin, admin::Settings::default());
    assert_eq!(config.telemetry, telemetry::Settings::default());
    assert_eq!(config.upstreams, []);
    assert_eq!(config.source, Source::BuiltIn);
    // What is left to the machine's memory has its bounds.
    let store = store::Settings::default();
    assert!((16 << 20..=8 << 30).contains(&config.store.bytes_max), "{}", config.store.bytes_max);
    assert_eq!(store::Settings { bytes_max: store.bytes_max, ..config.store }, store);
    let proxy = proxy::Settings::default();
    assert!((8 << 20..=2 << 30).contains(&config.proxy.inflight_bytes_max));
    assert_eq!(proxy::Settings { inflight_bytes_max: proxy.inflight_bytes_max, ..config.proxy }, proxy);
}

#[test]
fn the_sample_says_the_built_in_defaults() {
    let config = config::load(Some(&sample()), std::iter::empty(), &Overrides::default()).unwrap();
    let origin = Origin { https: false, host: "127.0.0.1".into(), port: 3000 };
    assert_eq!(config.upstreams, [upstream::Settings::named("app", vec![origin])]);
    let [route] = config.proxy.routes.as_slice() else { panic!("{:?}", config.proxy.routes) };
    assert_eq!(*route, loaded(ONE_UPSTREAM).proxy.routes[0], "the route that one upstream implies");
    assert_eq!(route.rules, Rules::default());
    assert_eq!(route.key, KeySpec::default());
    assert_eq!(route.coalescing, Coalescing::default());
    assert_eq!(route.host_header, HostHeader::default());

    let built_in = built_in();
    assert_eq!(config.server, built_in.server);
    assert_eq!(config.admin, built_in.admin);
    assert_eq!(config.telemetry, built_in.telemetry);
    assert_eq!(config.store, built_in.store);
    assert_eq!(proxy::Settings { routes: Vec::new(), ..config.proxy }, built_in.proxy);
}

#[test]
fn the_sample_documents_every_key_and_no_other() {
    let text = fs::read_to_string(sample()).unwrap();
    // A key that is commented out has no space behind the sign; prose has.
    let keys = documented(
        &text
            .lines()
            .map(|line| line.strip_prefix('#').map_or(line, unless_prose))
            .fold(String::new(), |text, line| text + line + "\n"),
    );
    // A route has the keys of [cache] and [coalescing]; the sample tells so in one sentence.
    let inherited =
        |key: &String| key.starts_with("route[].cache.") || key.starts_with("route[].coalescing.");
    let known = config::keys();
    assert!(keys.is_subset(&known), "unknown: {:?}", keys.difference(&known).collect::<Vec<_>>());
    let missing = known.difference(&keys).filter(|key| !inherited(key)).collect::<Vec<_>>();
    assert!(missing.is_empty(), "not in the sample: {missing:?}");
}

fn unless_prose(comment: &str) -> &str {
    if comment.starts_with(|first: char| first.is_ascii_lowercase()) { comment } else { "" }
}

/// The paths of all keys, tables included.
fn documented(text: &str) -> BTreeSet<String> {
    fn walk(path: &str, value: &toml::Value, keys: &mut BTreeSet<String>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    keys.insert(path.clone());
                    walk(&path, value, keys);
                }
            }
            toml::Value::Array(elements) => {
                for element in elements.iter().filter(|element| element.is_table()) {
                    walk(&format!("{path}[]"), element, keys);
                }
            }
            _ => {}
        }
    }
    let mut keys = BTreeSet::new();
    walk("", &toml::Value::Table(text.parse().unwrap()), &mut keys);
    keys
}

#[test]
fn without_an_upstream_the_demo_can_be_put_in() {
    let config = built_in().with_demo(address("127.0.0.1:4000"));
    assert_eq!(config.upstreams[0].name, "demo");
    assert_eq!(config.upstreams[0].origins[0].authority(), "127.0.0.1:4000");
    let [route] = config.proxy.routes.as_slice() else { panic!("{:?}", config.proxy.routes) };
    assert_eq!((route.name.as_str(), route.prefix.as_str(), route.upstream), ("demo", "/", 0));
}

// ---- The layers --------------------------------------------------------------------------------------------

#[test]
fn the_environment_wins_over_the_file_and_a_flag_over_both() {
    let file = "[server]\nlisten = \"127.0.0.1:1001\"\nidle_timeout = \"1s\"\n[log]\nfilter = \"warn\"\n";
    let variables = [
        ("FOREBAY__SERVER__LISTEN", "127.0.0.1:1002"),
        ("FOREBAY__LOG__FILTER", "debug"),
        ("FOREBAY_CONFIG", "ignored here"),
        ("FOREBAY_SERVICE_HOST", "10.0.0.1"),
        ("FOREBAY__SERVER__IDLE_TIMEOUT", ""),
        ("PATH", "/bin"),
    ];
    let flags = Overrides { listen: vec![address("127.0.0.1:1003")], ..Overrides::default() };
    let none = Overrides::default();
    let file_only = layered(file, &[], &none).unwrap();
    assert_eq!(file_only.server.listen, [address("127.0.0.1:1001")]);
    let and_environment = layered(file, &variables, &none).unwrap();
    assert_eq!(and_environment.server.listen, [address("127.0.0.1:1002")]);
    assert_eq!(and_environment.server.idle_timeout, Duration::from_secs(1), "only one key is overridden");
    let and_flags = layered(file, &variables, &flags).unwrap();
    assert_eq!(and_flags.server.listen, [address("127.0.0.1:1003")]);
    assert_eq!(and_flags.telemetry.filter, "debug");
}

#[test]
fn a_variable_may_hold_a_number_a_truth_or_a_list() {
    let config = with_variables(&[
        ("FOREBAY__SERVER__LISTEN", "127.0.0.1:1001, [::1]:1001"),
        ("FOREBAY__SERVER__CONNECTIONS_MAX", "7"),
        ("FOREBAY__LOG__ACCESS", "false"),
        ("FOREBAY__CACHE__HEURISTIC_FRACTION", "0.5"),
        ("FOREBAY__CACHE__KEY_HEADERS", "accept-language,x-tenant"),
        ("FOREBAY__UPSTREAM__0__URL", "http://a:1,http://b:2"),
        ("FOREBAY__ROUTE__0__UPSTREAM", "a:1"),
        ("FOREBAY__ROUTE__0__CACHE__QUERY__ONLY", "page,size"),
        ("FOREBAY__ROUTE__0__HOST_HEADER__FIXED", "example.com"),
    ]);
    assert_eq!(config.server.listen, [address("127.0.0.1:1001"), address("[::1]:1001")]);
    assert_eq!(config.server.connections_max, 7);
    assert!(!config.telemetry.access_log);
    assert_eq!(config.upstreams[0].origins.len(), 2);
    let route = &config.proxy.routes[0];
    assert_eq!(route.key.headers.len(), 2);
    assert_eq!(route.key.query, Query::Only(["page".to_owned(), "size".to_owned()].into_iter().collect()));
    assert_eq!(route.host_header, HostHeader::Fixed("example.com".into()));
}

#[test]
fn a_variable_changes_one_key_of_one_element_of_a_list() {
    let file = format!("{ONE_UPSTREAM}retries = 3\n");
    let variable = [("FOREBAY__UPSTREAM__0__URL", "https://app.internal")];
    let config = layered(&file, &variable, &Overrides::default()).unwrap();
    assert_eq!(config.upstreams[0].retries, 3);
    assert_eq!(config.upstreams[0].origins[0].authority(), "app.internal");
}

#[test]
fn the_flag_for_an_upstream_replaces_all_upstreams_and_routes() {
    let file = format!("{ONE_UPSTREAM}[[route]]\nhost = \"a.example\"\nupstream = \"app\"\n");
    let flags = Overrides { upstream: Some("http://127.0.0.1:5000".into()), ..Overrides::default() };
    let config = layered(&file, &[], &flags).unwrap();
    let [upstream] = config.upstreams.as_slice() else { panic!("{:?}", config.upstreams) };
    assert_eq!((upstream.name.as_str(), upstream.origins[0].port), ("default", 5000));
    let [route] = config.proxy.routes.as_slice() else { panic!("{:?}", config.proxy.routes) };
    assert_eq!((route.name.as_str(), route.host.as_deref()), ("default", None));
}

#[test]
fn a_wrong_flag_is_named() {
    let flags = Overrides { upstream: Some("127.0.0.1:5000".into()), ..Overrides::default() };
    let message = layered("", &[], &flags).unwrap_err().to_string();
    assert!(message.contains("flag --upstream: upstream[0].url: expected a URL with http"), "{message}");
}

// ---- Upstreams and routes ----------------------------------------------------------------------------------

#[test]
fn one_upstream_implies_a_route_with_the_common_cache_rules() {
    let config = loaded(&format!("[cache]\ndefault_ttl = \"5s\"\n{ONE_UPSTREAM}"));
    let [route] = config.proxy.routes.as_slice() else { panic!("{:?}", config.proxy.routes) };
    assert_eq!((route.name.as_str(), route.prefix.as_str(), route.upstream), ("default", "/", 0));
    assert_eq!(route.rules.default_ttl, Some(Duration::from_secs(5)));
}

#[test]
fn a_route_overrides_the_common_cache_rules_key_by_key() {
    let config = loaded(&format!(
        "[cache]\ndefault_ttl = \"5s\"\nstale_if_error = \"1h\"\n[coalescing]\nwaiters_max = 5\n{ONE_UPSTREAM}
         [[route]]\npath = \"/a\"\nupstream = \"app\"
         [route.cache]\ndefault_ttl = \"off\"\nkey_cookies = [\"session\"]
         [route.coalescing]\nenabled = false
         [[route]]\npath = \"/b\"\nupstream = \"app\"\n"
    ));
    let [a, b] = config.proxy.routes.as_slice() else { panic!("{:?}", config.proxy.routes) };
    assert_eq!(a.rules.default_ttl, None);
    assert_eq!(a.rules.stale_if_error, Duration::from_secs(3600));
    assert_eq!((&a.key.cookies, &a.rules.keyed_cookies), (&vec!["session".to_owned()], &a.key.cookies));
    assert_eq!((a.coalescing.enabled, a.coalescing.waiters_max), (false, 5));
    assert_eq!(b.rules.default_ttl, Some(Duration::from_secs(5)));
    assert!(b.coalescing.enabled);
}

#[test]
fn routes_are_named_after_host_and_path_where_they_have_no_name() {
    let config = loaded(&format!(
        "{ONE_UPSTREAM}
         [[route]]\nupstream = \"app\"
         [[route]]\nupstream = \"app\"\nhost = \"WWW.Example.com\"
         [[route]]\nupstream = \"app\"\nhost = \"www.example.com\"\npath = \"/api/\"
         [[route]]\nupstream = \"app\"\npath = \"/api\"\n"
    ));
    let names = config.proxy.routes.iter().map(|route| route.name.as_str()).collect::<Vec<_>>();
    assert_eq!(names, ["default", "www.example.com", "www.example.com/api", "/api"]);
    assert_eq!(config.proxy.routes[2].prefix, "/api", "whole segments need no slash at the end");
}

#[test]
fn an_upstream_may_have_several_urls_of_either_scheme() {
    let config = loaded(
        "[[upstream]]\nname = \"app\"\nurl = [\"http://a\", \"https://B.example\", \"http://[::1]:3000/\"]
         balance = \"least-requests\"\nprotocol = \"http2\"\n",
    );
    let upstream = &config.upstreams[0];
    let origins = upstream.origins.iter().map(|origin| (origin.https, origin.host.as_str(), origin.port));
    assert!(origins.eq([(false, "a", 80), (true, "b.example", 443), (false, "::1", 3000)]));
    assert_eq!((upstream.balance, upstream.protocol), (Balance::LeastRequests, Protocol::Http2));
}

#[test]
fn a_breaker_and_an_adaptive_limit_are_there_when_they_are_enabled() {
    let upstream = |text: &str| loaded(&format!("{ONE_UPSTREAM}{text}")).upstreams.remove(0);
    let plain = upstream("[upstream.breaker]\nprobes = 5\n[upstream.adaptive]\nconcurrency_min = 5\n");
    assert_eq!((plain.breaker, plain.adaptive), (None, None));
    let enabled = upstream("[upstream.breaker]\nenabled = true\n[upstream.adaptive]\nenabled = true\n");
    assert_eq!(enabled.breaker, Some(upstream::Breaker::default()));
    assert_eq!(enabled.adaptive, Some(upstream::Adaptive::default()));
    let own = upstream(
        "retry_statuses = [502, 429]\nresolve_interval = \"off\"\n[upstream.breaker]\nenabled = true\nfailure_ratio = \"off\"\nfailures_in_a_row = 7\n",
    );
    let breaker = own.breaker.unwrap();
    assert_eq!((breaker.failure_ratio, breaker.failures_in_a_row), (None, Some(7)));
    let statuses: Vec<_> = own.retry_statuses.iter().map(http::StatusCode::as_u16).collect();
    assert_eq!((statuses, own.resolve_interval), (vec![502, 429], None));

    let breaker = |text: &str| format!("{ONE_UPSTREAM}[upstream.breaker]\n{text}\n");
    let never = breaker("enabled = true\nfailure_ratio = \"off\"");
    check_mistake(&never, 5, "upstream[0].breaker.enabled", &["neither failure_ratio nor failures_in_a_row"]);
    let shorter = breaker("open_time = \"2m\"\nopen_time_max = \"1m\"");
    check_mistake(&shorter, 6, "upstream[0].breaker.open_time_max", &["shorter than open_time"]);
    check_mistake(
        &breaker("failure_ratio = 1.5"),
        5,
        "upstream[0].breaker.failure_ratio",
        &["at most 1", "1.5"],
    );
    check_mistake(&breaker("probes = 0"), 5, "upstream[0].breaker.probes", &["from 1 to"]);
    let adaptive = format!("{ONE_UPSTREAM}[upstream.adaptive]\nlatency_tolerance = 0.5\n");
    check_mistake(&adaptive, 5, "upstream[0].adaptive.latency_tolerance", &["a number from 1 to 100", "0.5"]);
    let status = format!("{ONE_UPSTREAM}retry_statuses = [200]\n");
    check_mistake(&status, 4, "upstream[0].retry_statuses", &["from 400 to 599", "200"]);
}

#[test]
fn networks_are_addresses_with_the_bits_that_count() {
    let config =
        loaded("[forwarded]\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\", \"::ffff:192.0.2.0/120\"]\n");
    let trusted = &config.proxy.forwarded.trusted_proxies;
    for (ip, expected) in [("10.1.2.3", true), ("11.0.0.1", false), ("::1", true), ("192.0.2.7", true)] {
        let ip = ip.parse().unwrap();
        assert_eq!(trusted.iter().any(|network| network.contains(ip)), expected, "{ip}");
    }
}

// ---- Mistakes ----------------------------------------------------------------------------------------------

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_key() {
    check_mistake("[server]\nlisen = \"127.0.0.1:1\"\n", 2, "server.lisen", &["unknown key", "\"listen\""]);
    check_mistake("\n[servre]\nlisten = \"127.0.0.1:1\"\n", 2, "servre", &["unknown key", "\"server\""]);
    check_mistake("[cache]\ndefault-ttl = \"1s\"\n", 2, "cache.default-ttl", &["\"default_ttl\""]);
    let route = format!("{ONE_UPSTREAM}[[route]]\nupstream = \"app\"\n[route.cache]\nttl_default = \"1s\"\n");
    check_mistake(&route, 7, "route[0].cache.ttl_default", &["unknown key"]);
    check_mistake("[log]\n[loog]\n", 2, "loog", &["unknown key", "\"log\""]);
    check_mistake("[upstream.tls]\n", 1, "upstream", &["a list of tables, each headed [[upstream]]"]);
}

#[test]
fn a_wrong_type_says_what_was_expected_and_found() {
    check_mistake("[server]\nconnections_max = \"7\"\n", 2, "server.connections_max", &["number", "\"7\""]);
    check_mistake("[log]\naccess = 1\n", 2, "log.access", &["true or false", "the number 1"]);
    check_mistake("[cache]\nkey_headers = \"a\"\n", 2, "cache.key_headers", &["a list"]);
    check_mistake("cache = true\n", 1, "cache", &["a table", "true"]);
    check_mistake("[server]\nlisten = []\n", 2, "server.listen", &["one or more"]);
    check_mistake("[server]\nheader_count_max = 1.5\n", 2, "server.header_count_max", &["1.5"]);
    check_mistake("[server]\nthreads = \"many\"\n", 2, "server.threads", &["\"auto\"", "\"many\""]);
}

#[test]
fn a_bad_unit_is_an_error() {
    check_mistake("[cache]\ndefault_ttl = \"30\"\n", 2, "cache.default_ttl", &["\"30s\"", "unit is missing"]);
    check_mistake("[cache]\ndefault_ttl = 30\n", 2, "cache.default_ttl", &["with its unit", "number 30"]);
    check_mistake("[cache]\ndefault_ttl = \"3 weeks\"\n", 2, "cache.default_ttl", &["unit is unknown"]);
    check_mistake("[store]\nbytes_max = \"1 GiBi\"\n", 2, "store.bytes_max", &["64KiB", "\"auto\""]);
}

#[test]
fn a_value_out_of_bounds_is_an_error() {
    check_mistake("[server]\nconnections_max = 0\n", 2, "server.connections_max", &["from 1 to"]);
    check_mistake("[server]\nidle_timeout = \"0s\"\n", 2, "server.idle_timeout", &["longer than zero"]);
    check_mistake("[server]\nheader_bytes_max = \"4KiB\"\n", 2, "server.header_bytes_max", &["from 8KiB"]);
    check_mistake(
        "[cache]\nheuristic_fraction = 1.5\n",
        2,
        "cache.heuristic_fraction",
        &["at most 1", "off"],
    );
    check_mistake("[cache]\nheuristic_fraction = nan\n", 2, "cache.heuristic_fraction", &["above 0"]);
    check_mistake("[server]\nconnections_max = -1\n", 2, "server.connections_max", &["the number -1"]);
    check_mistake(
        "[server]\nconnections_max = 99999999999999999999\n",
        2,
        "server.connections_max",
        &["9999"],
    );
    for (key, ours) in [
        ("max_object_size", "\"body_bytes_max\""),
        ("lock_timeout", "\"waiter_timeout\""),
        ("fetch_timeout", "\"upstream.total_timeout\""),
    ] {
        check_mistake(&format!("[coalescing]\n{key} = 1\n"), 2, &format!("coalescing.{key}"), &[ours]);
    }
    let backoff = "[coalescing]\nerror_backoff = \"2s\"\nerror_backoff_max = \"1s\"\n";
    check_mistake(backoff, 3, "coalescing.error_backoff_max", &["shorter"]);
}

#[test]
fn an_unknown_word_is_answered_with_the_nearest() {
    check_mistake("[log]\nformat = \"jsn\"\n", 2, "log.format", &["\"human\", \"json\"", "mean \"json\""]);
    check_mistake(
        "[coalescing]\non_limit = \"go_alone\"\n",
        2,
        "coalescing.on_limit",
        &["mean \"go-alone\""],
    );
    check_mistake("[log]\nfilter = \"inof\"\n", 2, "log.filter", &["mean \"info\""]);
    check_mistake("[log]\nfilter = \"forebay=loud\"\n", 2, "log.filter", &["info,forebay::proxy=debug"]);
    check_mistake("[cache]\nquery = \"sort\"\n", 2, "cache.query", &["{ only = [..] }", "mean \"sorted\""]);
    check_mistake("[cache]\nquery = { onyl = [] }\n", 2, "cache.query", &["mean \"only\""]);
    check_mistake("[cache]\nbody_methods = [\"PUT\"]\n", 2, "cache.body_methods", &["\"QUERY\", \"POST\""]);
}

#[test]
fn a_route_must_name_an_upstream_that_exists() {
    let missing = format!("{ONE_UPSTREAM}[[route]]\npath = \"/a\"\n");
    check_mistake(&missing, 4, "route[0].upstream", &["missing", "\"app\""]);
    let unknown = format!("{ONE_UPSTREAM}[[route]]\nupstream = \"aap\"\n");
    check_mistake(&unknown, 5, "route[0].upstream", &["\"aap\"", "did you mean \"app\"?"]);
    check_mistake("[[route]]\nupstream = \"app\"\n", 2, "route[0].upstream", &["no [[upstream]]"]);
    let two = format!("{ONE_UPSTREAM}[[upstream]]\nurl = \"http://b\"\n");
    let message = layered(&two, &[], &Overrides::default()).unwrap_err().to_string();
    assert!(message.contains("route: there are 2 upstreams, but no [[route]]"), "{message}");
}

#[test]
fn an_address_that_does_not_parse_is_an_error() {
    check_mistake(
        "[server]\nlisten = \"localhost\"\n",
        2,
        "server.listen",
        &["\"127.0.0.1:8080\"", "localhost"],
    );
    check_mistake("[server]\nlisten = 8080\n", 2, "server.listen", &["an IP address and a port", "8080"]);
    check_mistake("[admin]\nlisten = \"127.0.0.1:99999\"\n", 2, "admin.listen", &["99999"]);
    check_mistake(
        "[forwarded]\ntrusted_proxies = [\"10.0.0.0/33\"]\n",
        2,
        "forwarded.trusted_proxies",
        &["/8"],
    );
}

#[test]
fn an_upstream_must_be_a_url_with_http_or_https_and_without_a_path() {
    for url in [
        "127.0.0.1:3000",
        "localhost",
        "ftp://a",
        "http://a/path",
        "http://a/?q",
        "http://a#f",
        "http://user@a",
        "http://a:0",
        "http://a:x",
        "http://",
        "http://[::1",
    ] {
        let text = format!("[[upstream]]\nname = \"app\"\nurl = \"{url}\"\n");
        check_mistake(&text, 3, "upstream[0].url", &["http or https and without a path", url]);
    }
    check_mistake("[[upstream]]\nname = \"app\"\n", 1, "upstream[0].url", &["missing"]);
}

#[test]
fn hosts_and_paths_of_routes_must_be_what_they_say() {
    let route =
        |key: &str, value: &str| format!("{ONE_UPSTREAM}[[route]]\nupstream = \"app\"\n{key} = {value}\n");
    for host in ["http://a", "a:80", "*.example.com", "user@a", "a b"] {
        check_mistake(&route("host", &format!("{host:?}")), 6, "route[0].host", &["without scheme and port"]);
    }
    for path in ["api", "/a?b", "/a#b", "/a/../b", "/a//b", "/a b", "//"] {
        check_mistake(&route("path", &format!("{path:?}")), 6, "route[0].path", &["begins with a slash"]);
    }
    check_mistake(&route("host_header", "\"upstrem\""), 6, "route[0].host_header", &["mean \"upstream\""]);
    check_mistake(&route("host_header", "{ fixed = \"a b\" }"), 6, "route[0].host_header", &["a host"]);
}

#[test]
fn names_and_places_are_given_only_once() {
    let upstreams = format!("{ONE_UPSTREAM}{ONE_UPSTREAM}[[route]]\nupstream = \"app\"\n");
    check_mistake(&upstreams, 5, "upstream[1].name", &["the same name as upstream[0]"]);
    let routes = |a: &str, b: &str| {
        format!("{ONE_UPSTREAM}[[route]]\nupstream = \"app\"\n{a}\n[[route]]\nupstream = \"app\"\n{b}\n")
    };
    let names = routes("name = \"x\"\npath = \"/a\"", "path = \"/b\"\nname = \"x\"");
    check_mistake(&names, 11, "route[1].name", &["the same name as route[0]"]);
    let paths = routes("name = \"x\"\npath = \"/a\"", "name = \"y\"\npath = \"/a/\"");
    check_mistake(&paths, 11, "route[1].path", &["the same host and path as route[0]"]);
}

#[test]
fn the_two_ports_must_differ() {
    check_mistake("[admin]\nlisten = \"127.0.0.1:8080\"\n", 2, "admin.listen", &["data port"]);
    let any = "[server]\nlisten = \"0.0.0.0:9090\"\n[admin]\nlisten = \"127.0.0.1:9090\"\n";
    check_mistake(any, 4, "admin.listen", &["data port"]);
    let twice = "[server]\nlisten = [\"127.0.0.1:1\", \"127.0.0.1:1\"]\n";
    check_mistake(twice, 2, "server.listen", &["127.0.0.1:1 is taken"]);
    loaded("[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n");
}

#[test]
fn an_admin_port_that_others_can_reach_starts_without_a_token() {
    let config = loaded("[admin]\nlisten = \"0.0.0.0:9090\"\n");
    let changes = admin::Changes::of(&config.admin).unwrap();
    assert!(matches!(changes, admin::Changes::Closed), "it may be read, but nothing changed: {changes:?}");
    let config = loaded("[admin]\nlisten = \"0.0.0.0:9090\"\ntoken = \"secret\"\n");
    assert_eq!(config.admin.token.as_deref(), Some("secret"));
    let changes = admin::Changes::of(&config.admin).unwrap();
    assert!(matches!(changes, admin::Changes::WithToken(_)), "{changes:?}");
    assert!(!format!("{config:?}{changes:?}").contains("secret"), "a secret does not show");
    let unreadable = "[admin]\nlisten = \"0.0.0.0:9090\"\ntoken_file = \"/nowhere/token\"\n";
    check_mistake(unreadable, 3, "admin.token_file", &["/nowhere/token cannot be read"]);
    let both = "[admin]\ntoken = \"secret\"\ntoken_file = \"/dev/null\"\n";
    let error = layered(both, &[], &Overrides::default()).unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[test]
fn files_that_are_missing_empty_or_alone_are_mistakes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "\n").unwrap();
    let file = file.to_str().unwrap();
    check_mistake(&format!("[admin]\ntoken_file = {file:?}\n"), 2, "admin.token_file", &["first line"]);
    let identity = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    fs::write(directory.path().join("chain"), identity.cert.pem()).unwrap();
    let file = directory.path().join("chain");
    let file = file.to_str().unwrap();
    let alone = format!("[server.tls]\ncertificate_file = {file:?}\n");
    check_mistake(&alone, 1, "server.tls.key_file", &["missing", "because certificate_file is given"]);
    let missing = format!("[server.tls]\ncertificate_file = {file:?}\nkey_file = \"/nowhere/key\"\n");
    check_mistake(&missing, 3, "server.tls.key_file", &["/nowhere/key cannot be read"]);
    let roots = format!("{ONE_UPSTREAM}[upstream.tls]\nroots_file = \"/nowhere/ca\"\n");
    check_mistake(&roots, 5, "upstream[0].tls.roots_file", &["/nowhere/ca"]);
    let directory = directory.path().to_str().unwrap();
    check_mistake(&format!("[admin]\ntoken_file = {directory:?}\n"), 2, "admin.token_file", &["directory"]);
}

#[test]
fn tls_settings_that_would_not_be_used_or_cannot_be_are_mistakes() {
    let plain = |keys: &str| format!("{ONE_UPSTREAM}[upstream.tls]\n{keys}\n");
    for keys in ["insecure = true", "server_name = \"a.example\""] {
        check_mistake(&plain(keys), 4, "upstream[0].tls", &["none of the upstream's URLs is https"]);
    }
    loaded(&plain("insecure = false"));
    let secure = |url: &str, keys: &str| format!("[[upstream]]\nurl = {url}\n[upstream.tls]\n{keys}\n");
    loaded(&secure("[\"http://a.example\", \"https://a.example\"]", "insecure = true"));
    for name in ["b.example", "127.0.0.1", "::1", "a_b"] {
        loaded(&secure("\"https://a.example\"", &format!("server_name = {name:?}")));
    }
    for name in ["", "a b", "https://a.example", "a.example:443", "*.example", "a..example"] {
        let text = secure("\"https://a.example\"", &format!("server_name = {name:?}"));
        check_mistake(&text, 4, "upstream[0].tls.server_name", &["a host name or an IP address"]);
    }
    let odd = secure("\"https://a!b\"", "insecure = false");
    check_mistake(&odd, 2, "upstream[0].url", &["no certificate can be for \"a!b\"", "tls.server_name"]);
    loaded(&secure("\"https://a!b\"", "server_name = \"a.example\""));
}

#[test]
fn a_secret_that_is_wrong_is_not_repeated() {
    let error = layered("[admin]\ntoken = \"two words\"\n", &[], &Overrides::default()).unwrap_err();
    assert!(!error.to_string().contains("two words"), "{error}");
}

#[test]
fn a_mistake_in_a_variable_names_the_variable() {
    check_variable("FOREBAY__SERVER__LISTEN", "here", &["server.listen", "an IP address"]);
    check_variable("FOREBAY__SERVRE__LISTEN", "127.0.0.1:1", &["servre: unknown key", "\"server\""]);
    check_variable("FOREBAY__CACHE__DEFAULT_TTL", "30", &["cache.default_ttl", "unit is missing"]);
    check_variable("FOREBAY__SERVER__LISTEN", ",", &["one or more"]);
    check_variable("FOREBAY__SERVER", "x", &["server: expected a table"]);
    check_variable("FOREBAY__UPSTREAMS__0__URL", "http://a", &["upstreams: unknown key", "\"upstream\""]);
    check_variable("FOREBAY__ROUTES__1__PATH", "/", &["routes: unknown key", "\"route\""]);
    check_variable("FOREBAY__UPSTREAM__99999__URL", "http://a", &["upstream: expected a list"]);
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_their_lines() {
    let text =
        "[server]\nlisten = \"x\"\nlisen = \"y\"\n[cache]\ndefault_ttl = 5\n[loog]\nformat = \"json\"\n";
    let variables = [("FOREBAY__LOG__FORMAT", "xml")];
    let error = layered(text, &variables, &Overrides::default()).unwrap_err();
    let keys = error.mistakes().iter().map(|mistake| mistake.key.as_str()).collect::<Vec<_>>();
    assert_eq!(keys, ["server.listen", "server.lisen", "cache.default_ttl", "loog", "log.format"]);
    assert!(error.to_string().starts_with("5 mistakes in the configuration:\n  "), "{error}");
    assert!(matches!(error.mistakes()[1].wrong, Wrong::UnknownKey { .. }));
}

#[test]
fn a_wrong_value_brings_no_other_mistakes_with_it() {
    let text = "[[upstream]]\nurl = 1\n[[upstream]]\nurl = 2
        [[route]]\nupstream = \"x\"\npath = 1\n[[route]]\npath = 2
        [server]\nlisten = 3\n[admin]\nlisten = \"127.0.0.1:8080\"\n";
    let error = layered(text, &[], &Overrides::default()).unwrap_err();
    let keys = error.mistakes().iter().map(|mistake| mistake.key.as_str()).collect::<Vec<_>>();
    let expected = [
        "upstream[0].url",
        "upstream[1].url",
        "route[0].upstream",
        "route[0].path",
        "route[1].upstream",
        "route[1].path",
        "server.listen",
    ];
    assert_eq!(keys, expected, "{error}");
}

#[test]
fn what_is_not_toml_is_told_with_line_and_column() {
    let error = layered("[server]\nlisten = \n", &[], &Overrides::default()).unwrap_err();
    assert!(matches!(error, config::Error::Syntax { line: 2, .. }), "{error:?}");
    assert!(error.to_string().contains("forebay.toml:2:"), "{error}");
    let twice = layered("[log]\naccess = true\naccess = true\n", &[], &Overrides::default()).unwrap_err();
    assert!(twice.to_string().contains("forebay.toml:3:1"), "{twice}");
}

#[test]
fn a_file_that_is_not_there_is_an_error() {
    let nowhere = Path::new("/nowhere/forebay.toml");
    let error = config::load(Some(nowhere), std::iter::empty(), &Overrides::default()).unwrap_err();
    assert!(error.to_string().contains("/nowhere/forebay.toml"), "{error}");
}

// ---- The effective configuration ---------------------------------------------------------------------------

/// Checks that the configuration, written and loaded again, is the same.
#[track_caller]
fn check_round_trip(config: &Config) {
    let text = config.to_toml();
    let mut again = loaded(&text);
    again.source = config.source.clone();
    assert_eq!(again, *config, "{text}");
}

#[test]
fn the_effective_configuration_can_be_loaded_again() {
    check_round_trip(&built_in());
    check_round_trip(&loaded(ONE_UPSTREAM));
    check_round_trip(&built_in().with_demo(address("[::1]:4000")));
    check_round_trip(&loaded(&fs::read_to_string(sample()).unwrap()));
}

#[test]
fn the_effective_configuration_keeps_every_word() {
    check_round_trip(&loaded(&format!(
        "[admin]\nhosts = [\"forebay.internal\"]\n{ONE_UPSTREAM}retry_statuses = [503]\nresolve_interval = \"off\"\n\
         [upstream.breaker]\nenabled = true\nfailures_in_a_row = 7\nopen_time = \"2s\"\n\
         [upstream.adaptive]\nenabled = true\nlatency_tolerance = 1.5\n"
    )));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pem \"x\".pem");
    // Certificate, key, root and token in one.
    let identity = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    fs::write(&file, format!("secret\n{}{}", identity.cert.pem(), identity.signing_key.serialize_pem()))
        .unwrap();
    let file = file.to_str().unwrap();
    check_round_trip(&loaded(&format!(
        "[server]\nlisten = [\"127.0.0.1:1\", \"[::1]:1\"]\nthreads = 3\nidle_timeout = \"1m 5s\"
         tls = {{ certificate_file = {file:?}, key_file = {file:?} }}
         [admin]\nlisten = \"0.0.0.0:9\"\ntoken_file = {file:?}
         [log]\nformat = \"json\"\nfilter = \"warn,forebay::proxy=trace\"\naccess = false
         [store]\nbytes_max = \"1GB\"
         [proxy]\nunmatched = \"misdirected\"\nrequest_body_bytes_max = \"1MiB\"\npseudonym = \"edge-1\"
         [forwarded]\ntrusted_proxies = [\"10.0.0.0/8\", \"fe80::/10\"]\nforwarded = true
         [cache]\nheuristic_fraction = \"off\"\nearly_refresh = 1\nshare = \"fresh\"\nquery = \"sorted\"
         body_methods = [\"QUERY\", \"POST\"]\nkey_host = false
         [coalescing]\non_limit = \"refuse\"\non_abandon = \"cancel\"\nerror_backoff = \"5s\"
         [[upstream]]\nname = \"a \\\"b\\\"\"\nurl = [\"http://[::1]:3\", \"https://b\"]\nbalance = \"consistent-hash\"
         protocol = \"http1\"\ntotal_timeout = \"1h\"
         tls = {{ roots_file = {file:?}, insecure = true, server_name = \"b\" }}
         [[upstream]]\nurl = \"http://c\"\nbalance = \"least-requests\"\nprotocol = \"http2\"
         [[route]]\nupstream = \"c\"\nhost = \"c.example\"\nhost_header = \"upstream\"\nstrip_prefix = true
         [[route]]\nupstream = \"c\"\nhost_header = {{ fixed = \"x.example:81\" }}
         [route.cache]\nheuristic_fraction = 0.25\nheuristic_max = \"2h\"\nquery = {{ without = [\"utm\"] }}
         override_ttl = \"90s\"\nkey_headers = [\"X-Tenant\"]\nkey_cookies = [\"s\"]
         [route.coalescing]\npass_ranges = true\nbody_bytes_max = \"0B\"\n"
    )));
}

#[test]
fn the_effective_configuration_does_not_tell_the_token() {
    let text = loaded("[admin]\ntoken = \"hunter2\"\n").to_toml();
    assert!(!text.contains("hunter2"), "{text}");
    assert!(text.contains("# token is set"), "{text}");
}

// ---- forebay check -----------------------------------------------------------------------------------------

/// What `forebay check` says of this file: how it ends, its output and its error output.
fn checked(file: Option<PathBuf>, variables: &[(&str, &str)]) -> (Exit, String, String) {
    let serve = ServeArguments { config: file, ..ServeArguments::default() };
    let environment =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = cli::check(&CheckArguments { serve }, &environment, &mut out, &mut err).unwrap();
    (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn check_prints_the_effective_configuration() {
    let (exit, out, err) = checked(Some(sample()), &[("FOREBAY__SERVER__IDLE_TIMEOUT", "5m")]);
    assert_eq!((exit.code(), err.as_str()), (0, ""));
    assert!(out.contains("idle_timeout = \"5m\""), "{out}");
    assert_eq!(loaded(&out).upstreams.len(), 1);
}

#[test]
fn check_says_when_the_demo_would_be_served() {
    let (exit, out, _) = checked(None, &[]);
    assert_eq!(exit, Exit::Success);
    assert!(out.contains("demo upstream"), "{out}");
}

#[test]
fn check_ends_with_64_and_all_mistakes_on_the_error_output() {
    let (exit, out, err) = checked(None, &[("FOREBAY__LOG__FORMAT", "xml"), ("FOREBAY__LOG__ACES", "1")]);
    assert_eq!((exit.code(), out.as_str()), (64, ""));
    assert!(err.contains("2 mistakes") && err.contains("FOREBAY__LOG__ACES"), "{err}");
}

#[test]
fn the_file_may_be_named_by_the_environment_but_a_flag_wins() {
    let (exit, _, err) = checked(None, &[("FOREBAY_CONFIG", "/nowhere/else.toml")]);
    assert_eq!(exit, Exit::Usage);
    assert!(err.contains("/nowhere/else.toml: the configuration cannot be read: "), "{err}");
    let (exit, ..) = checked(Some(sample()), &[("FOREBAY_CONFIG", "/nowhere/else.toml")]);
    assert_eq!(exit, Exit::Success);
}
