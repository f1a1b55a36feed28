//! Environment variables that look like ours and are none: a slip in their names would else go unnoticed.

use super::error::nearest;
use super::keys;
use super::layers::PREFIX;

/// What the names of all our variables begin with.
const OURS: &str = "FOREBAY_";

/// The variable that is none of the configuration's: it names the file.
pub const FILE_VARIABLE: &str = "FOREBAY_CONFIG";

/// A sentence for each variable that begins like ours, is set, and is not read. One that begins with two underscores is: if it means
/// no key, that is a mistake like all others.
pub fn strangers(environment: &[(String, String)]) -> Vec<String> {
    let is_stranger =
        |name: &str| !name.starts_with(PREFIX) && name != FILE_VARIABLE && !is_of_a_service(name);
    environment
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, _)| Some((name, name.strip_prefix(OURS)?)))
        .filter(|(name, _)| is_stranger(name))
        .map(|(name, rest)| {
            let hint = meant(rest).map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
            format!("environment variable {name} is not read{hint}")
        })
        .collect()
}

/// Whether Kubernetes, or a link of Docker's, names the address of a service so: `FOREBAY_PORT_8080_TCP`.
fn is_of_a_service(name: &str) -> bool {
    let is_number = |rest: &str| rest.starts_with(|digit: char| digit.is_ascii_digit());
    name.ends_with("_PORT")
        || name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.match_indices("_PORT_").any(|(at, text)| is_number(&name[at + text.len()..]))
}

/// What is meant by the name of a table, or by a name that other programs have; each without the beginning.
const ELSEWHERE: [(&str, &str); 4] = [
    ("log", "LOG__FILTER"),
    ("log_level", "LOG__FILTER"),
    ("listen", "SERVER__LISTEN"),
    ("upstream", "UPSTREAM__0__URL"),
];

/// The variable whose name is most like this, which is without the beginning.
fn meant(rest: &str) -> Option<String> {
    let lower = rest.to_lowercase();
    if let Some((_, ours)) = ELSEWHERE.iter().find(|(elsewhere, _)| *elsewhere == lower) {
        return Some(format!("{PREFIX}{ours}"));
    }
    let is_index = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let words = || rest.split('_').filter(|part| !part.is_empty());
    let written: Vec<_> = words().map(|part| if is_index(&part) { "0" } else { part }).collect();
    let keys = keys();
    // A table has no value.
    let is_table = |key: &str| {
        let within = |other: &String| {
            other.strip_prefix(key).is_some_and(|rest| rest.starts_with('.') || rest.starts_with('['))
        };
        keys.iter().any(within)
    };
    let variables: Vec<String> = keys
        .iter()
        .filter(|key| !is_table(key))
        .map(|key| format!("{PREFIX}{}", key.replace("[]", "__0").replace('.', "__")))
        .collect();
    let flat: Vec<String> =
        variables.iter().map(|name| name[PREFIX.len()..].replace("__", "_").to_lowercase()).collect();
    let meant = nearest(&written.join("_"), flat.iter().map(String::as_str).chain(["config"]))?;
    let Some(place) = flat.iter().position(|name| *name == meant) else {
        return Some(FILE_VARIABLE.to_owned());
    };
    // The elements of lists are those that were written.
    let variable = variables[place].to_uppercase();
    Some(
        words().filter(is_index).fold(variable, |name, index| name.replacen("__0", &format!("__{index}"), 1)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expected: Option<&str>) {
        let told = strangers(&[(name.to_owned(), "x".to_owned())]);
        let expected: Vec<_> = expected
            .into_iter()
            .map(|meant| format!("environment variable {name} is not read; did you mean {meant}?"))
            .collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn one_underscore_where_there_should_be_two_is_told() {
        check("FOREBAY_SERVER_LISTEN", Some("FOREBAY__SERVER__LISTEN"));
        check("FOREBAY_SERVER__LISTEN", Some("FOREBAY__SERVER__LISTEN"));
        check("FOREBAY_UPSTREAM_2_URL", Some("FOREBAY__UPSTREAM__2__URL"));
        check("FOREBAY_ROUTE_1_CACHE_DEFAULT_TTL", Some("FOREBAY__ROUTE__1__CACHE__DEFAULT_TTL"));
        check("FOREBAY_LOG_FORMT", Some("FOREBAY__LOG__FORMAT"));
        check("FOREBAY_CONFIGG", Some("FOREBAY_CONFIG"));
    }

    #[test]
    fn no_table_is_taken_for_what_is_meant() {
        check("FOREBAY_LOG", Some("FOREBAY__LOG__FILTER"));
        check("FOREBAY_UPSTREAM", Some("FOREBAY__UPSTREAM__0__URL"));
        check("FOREBAY_LISTEN", Some("FOREBAY__SERVER__LISTEN"));
        for table in
            ["SERVER", "ADMIN", "STORE", "CACHE", "COALESCING", "ROUTE", "UPSTREAMS", "UPSTREAM_0_TLS"]
        {
            let told = strangers(&[(format!("FOREBAY_{table}"), "x".to_owned())]);
            let hinted = told[0].split_once("did you mean FOREBAY__").map(|(_, hint)| hint.to_owned());
            let is_key = hinted.as_ref().is_none_or(|hint| {
                let key = hint.trim_end_matches('?').to_lowercase().replace("__0", "[]").replace("__", ".");
                keys().contains(&key) && !keys().iter().any(|other| other.starts_with(&format!("{key}.")))
            });
            assert!(is_key, "{told:?}");
        }
    }

    #[test]
    fn what_is_read_and_what_others_set_is_not() {
        for name in [
            "FOREBAY_CONFIG",
            "FOREBAY__SERVER__LISTEN",
            "FOREBAY_PORT",
            "FOREBAY_PORT_8080_TCP",
            "FOREBAY_PORT_8080_TCP_ADDR",
            "FOREBAY_SERVICE_HOST",
            "FOREBAY_SERVICE_PORT_HTTP",
            "FOREBAY_ADMIN_SERVICE_PORT",
            "FOREBAYX",
            "PATH",
        ] {
            check(name, None);
        }
        assert_eq!(strangers(&[("FOREBAY_SERVER_LISTEN".to_owned(), String::new())]), [""; 0], "not set");
    }

    #[test]
    fn what_is_like_nothing_is_told_without_a_hint() {
        let told = strangers(&[("FOREBAY_X1".to_owned(), "x".to_owned())]);
        assert_eq!(told, ["environment variable FOREBAY_X1 is not read"]);
    }
}
