//! What a successful unsafe request outdates (RFC 9111 §4.4), and how stored responses are grouped (RFC 9875).

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use sfv::{BareItem, List, ListEntry, Parser};

use super::targeted::joined;

/// The target URI of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The host with its port, if that is not the default one.
    pub host: &'a str,
    /// Path and query.
    pub path_and_query: &'a str,
}

/// Whether an answer invalidates its target: "when a non-error status code is received in response to an
/// unsafe request method (including methods whose safety is unknown)" (§4.4).
pub fn invalidates(method: &Method, status: StatusCode) -> bool {
    !is_safe(method) && (status.is_success() || status.is_redirection())
}

/// Path and query of the URIs in `Location` and `Content-Location` that have the target's origin: "a cache MUST
/// NOT trigger an invalidation [...] if the origin of the URI to be invalidated differs" (§4.4). The target
/// itself is not among them unless they name it.
pub fn targets(headers: &HeaderMap, target: &Target<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for name in [LOCATION, CONTENT_LOCATION] {
        for value in headers.get_all(name) {
            if let Some(path_and_query) = value.to_str().ok().and_then(|text| resolve(target, text))
                && !found.contains(&path_and_query)
            {
                found.push(path_and_query);
            }
        }
    }
    found
}

/// The groups of a response: `Cache-Groups` (RFC 9875 §2).
pub fn groups(headers: &HeaderMap) -> Vec<String> {
    strings(headers, &HeaderName::from_static("cache-groups"))
}

/// The groups that a response invalidates: `Cache-Group-Invalidation` (RFC 9875 §3). It "MUST be ignored on
/// responses to requests that have a safe method".
pub fn invalidated_groups(method: &Method, headers: &HeaderMap) -> Vec<String> {
    if is_safe(method) {
        return Vec::new();
    }
    strings(headers, &HeaderName::from_static("cache-group-invalidation"))
}

/// The tags of a response: `Surrogate-Key`, `Cache-Tag` and `xkey`, their words separated by white space or
/// commas, each once.
pub fn tags(headers: &HeaderMap) -> Vec<String> {
    let mut tags = Vec::new();
    for name in TAG_FIELDS {
        for value in headers.get_all(name) {
            let words = value.as_bytes().split(|byte| byte.is_ascii_whitespace() || *byte == b',');
            for word in words.filter(|word| !word.is_empty()) {
                tags.push(String::from_utf8_lossy(word).into_owned());
            }
        }
    }
    tags.sort_unstable();
    tags.dedup();
    tags
}

/// The fields that carry tags.
pub const TAG_FIELDS: [&str; 3] = ["surrogate-key", "cache-tag", "xkey"];

/// The path and query that a URI reference means, if its origin is the target's (RFC 3986 §5.2).
pub fn resolve(target: &Target<'_>, reference: &str) -> Option<String> {
    let reference = reference.trim_matches([' ', '\t']);
    let reference = reference.split_once('#').map_or(reference, |(before, _)| before);
    let (path, query) = match reference.split_once("//") {
        Some((scheme, rest)) if is_scheme_prefix(scheme) => {
            let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
            let (authority, path_and_query) = rest.split_at(authority_end);
            let scheme = scheme.strip_suffix(':').unwrap_or(target.scheme);
            if !is_same_origin(target, scheme, authority) {
                return None;
            }
            let (path, query) = split_query(path_and_query);
            (if path.is_empty() { "/" } else { path }.to_owned(), query)
        }
        _ => {
            let (base_path, base_query) = split_query(target.path_and_query);
            let (path, query) = split_query(reference);
            if path.is_empty() {
                (base_path.to_owned(), query.or(base_query))
            } else if path.starts_with('/') {
                (path.to_owned(), query)
            } else if path.split('/').next().is_some_and(|segment| segment.contains(':')) {
                // A URI of another scheme, without an authority.
                return None;
            } else {
                let directory = base_path.rfind('/').map_or("", |slash| &base_path[..slash]);
                (format!("{directory}/{path}"), query)
            }
        }
    };
    let path = without_dot_segments(&path);
    Some(match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    })
}

/// Whether a method is defined as safe (RFC 9110 §9.2.1, and the registry of methods).
fn is_safe(method: &Method) -> bool {
    matches!(
        method.as_str(),
        "GET" | "HEAD" | "OPTIONS" | "TRACE" | "QUERY" | "PROPFIND" | "REPORT" | "SEARCH"
    )
}

/// A List of Strings (RFC 9651 §3.1, §3.3.3). Parameters are ignored; a member of another type makes the field
/// invalid, so that it means nothing.
fn strings(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    joined(headers, name).and_then(|text| list_of_strings(&text)).unwrap_or_default()
}

fn list_of_strings(text: &[u8]) -> Option<Vec<String>> {
    Parser::new(text)
        .parse::<List>()
        .ok()?
        .into_iter()
        .map(|member| match member {
            ListEntry::Item(item) => match item.bare_item {
                BareItem::String(string) => Some(string.into()),
                _ => None,
            },
            ListEntry::InnerList(_) => None,
        })
        .collect()
}

fn is_scheme_prefix(text: &str) -> bool {
    text.is_empty()
        || text.strip_suffix(':').is_some_and(|scheme| {
            scheme.starts_with(|first: char| first.is_ascii_alphabetic())
                && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        })
}

/// RFC 9110 §4.3.1: scheme, host and port are the same.
fn is_same_origin(target: &Target<'_>, scheme: &str, authority: &str) -> bool {
    let default_port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    let bare = |authority: &str| {
        let authority = authority.strip_suffix(default_port).unwrap_or(authority);
        authority.strip_suffix(':').unwrap_or(authority).to_ascii_lowercase()
    };
    scheme.eq_ignore_ascii_case(target.scheme) && bare(authority) == bare(target.host)
}

fn split_query(path_and_query: &str) -> (&str, Option<&str>) {
    path_and_query.split_once('?').map_or((path_and_query, None), |(path, query)| (path, Some(query)))
}

/// RFC 3986 §5.2.4.
fn without_dot_segments(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_directory = false;
    for segment in path.split('/').skip(1) {
        ends_in_directory = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    if ends_in_directory {
        segments.push("");
    }
    format!("/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::fields;
    use super::*;

    const TARGET: Target<'_> = Target { scheme: "http", host: "a.example", path_and_query: "/d/e?f" };

    #[test]
    fn rfc9111_4_4_must_invalidate_after_a_non_error_answer_to_an_unsafe_method() {
        let of = |method: &str, status: u16| {
            invalidates(
                &Method::from_bytes(method.as_bytes()).unwrap(),
                StatusCode::from_u16(status).unwrap(),
            )
        };
        for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH", "FOO", "get"] {
            assert!(of(method, 200) && of(method, 204) && of(method, 303), "{method}");
            assert!(!of(method, 100) && !of(method, 404) && !of(method, 500), "{method}");
        }
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "QUERY"] {
            assert!(!of(method, 200), "{method}");
        }
    }

    #[track_caller]
    fn check(location: &str, expected: Option<&str>) {
        let headers = fields(&format!("Location: {location}"));
        let expected: Vec<_> = expected.into_iter().map(str::to_owned).collect();
        assert_eq!(targets(&headers, &TARGET), expected, "{location}");
    }

    #[test]
    fn rfc9111_4_4_must_not_invalidate_another_origin() {
        check("http://a.example/x", Some("/x"));
        check("HTTP://A.Example:80/x", Some("/x"));
        check("//a.example/x", Some("/x"));
        check("https://a.example/x", None);
        check("http://a.example:8080/x", None);
        check("http://b.example/x", None);
        check("//b.example/x", None);
        check("http://a.example@b.example/x", None);
        check("http://a.example.b.example/x", None);
        check("mailto:a@a.example", None);
    }

    #[test]
    fn rfc3986_5_2_relative_references() {
        check("/x?y#z", Some("/x?y"));
        check("x", Some("/d/x"));
        check("./x", Some("/d/x"));
        check("../x", Some("/x"));
        check("../../../x/.", Some("/x/"));
        check("?z", Some("/d/e?z"));
        check("", Some("/d/e?f"));
        check("#z", Some("/d/e?f"));
        check("http://a.example", Some("/"));
        check("http://a.example?q", Some("/?q"));
        check("/x?to=http://b.example/", Some("/x?to=http://b.example/"));
    }

    #[test]
    fn content_location_counts_too() {
        let headers = fields("Location: /x\nContent-Location: /y\nContent-Location: /x");
        assert_eq!(targets(&headers, &TARGET), ["/x", "/y"]);
    }

    #[test]
    fn rfc9875_2_groups_are_a_list_of_strings() {
        let of = |text: &str| groups(&fields(text));
        assert_eq!(of("Cache-Groups: \"a\", \"B c\";x=1\nCache-Groups: \"d\""), ["a", "B c", "d"]);
        assert!(of("Cache-Groups: a").is_empty());
        assert!(of("Cache-Groups: \"a\", 1").is_empty());
        assert!(of("Cache-Groups: (\"a\")").is_empty());
        assert!(of("Cache-Groups: \"a").is_empty());
        assert!(of("").is_empty());
        let many: Vec<_> = (0..40).map(|number| format!("\"{number:040}\"")).collect();
        assert_eq!(of(&format!("Cache-Groups: {}", many.join(", "))).len(), 40);
    }

    #[test]
    fn rfc9875_3_group_invalidation_must_be_ignored_after_a_safe_method() {
        let headers = fields("Cache-Group-Invalidation: \"a\", \"b\"");
        assert_eq!(invalidated_groups(&Method::POST, &headers), ["a", "b"]);
        assert!(invalidated_groups(&Method::GET, &headers).is_empty());
    }

    #[test]
    fn tags_are_words() {
        let headers = fields("Surrogate-Key: a b\nCache-Tag: c,d, a\nxkey: e\nxkey: f");
        assert_eq!(tags(&headers), ["a", "b", "c", "d", "e", "f"]);
    }

    proptest! {
        #[test]
        fn resolving_never_panics_and_gives_a_path(reference in "[ -~]{0,30}") {
            if let Some(path) = resolve(&TARGET, &reference) {
                prop_assert!(path.starts_with('/'));
            }
        }

        #[test]
        fn parsing_never_panics(value in "[ -~]{0,30}") {
            let headers = fields(&format!("Cache-Groups: {value}\nCache-Tag: {value}"));
            let _ = (groups(&headers), tags(&headers));
        }
    }
}
