//! Which route a request takes: the longest match of host and path prefix.

use super::settings::Route;
use std::collections::HashMap;

/// The routes, arranged for matching.
#[derive(Debug)]
pub(super) struct Router {
    /// By host; within a host the longest prefix first.
    by_host: HashMap<String, Vec<(String, usize)>>,
    any_host: Vec<(String, usize)>,
}

impl Router {
    pub(super) fn new(routes: &[Route]) -> Self {
        let mut router = Self { by_host: HashMap::new(), any_host: Vec::new() };
        for (index, route) in routes.iter().enumerate() {
            let list = match &route.host {
                Some(host) => router.by_host.entry(host.clone()).or_default(),
                None => &mut router.any_host,
            };
            list.push((route.prefix.clone(), index));
        }
        for list in router.by_host.values_mut().chain([&mut router.any_host]) {
            list.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        }
        router
    }

    /// The route for a host (lower case, without port) and a path. A route of that host wins over one of any host.
    pub(super) fn find(&self, host: &str, path: &str) -> Option<usize> {
        let own = self.by_host.get(host).map_or(&[][..], Vec::as_slice);
        own.iter().chain(&self.any_host).find(|(prefix, _)| covers(prefix, path)).map(|(_, index)| *index)
    }

    /// Whether some route names this host, or any host.
    pub(super) fn knows_host(&self, host: &str) -> bool {
        self.by_host.contains_key(host) || !self.any_host.is_empty()
    }
}

/// Whether a prefix covers a path, by whole segments: `/a` covers `/a` and `/a/b`, not `/ab`.
fn covers(prefix: &str, path: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => prefix.ends_with('/') || rest.is_empty() || rest.starts_with(['/', '?']),
        None => false,
    }
}

/// Takes the prefix away from a target that it covers; what is left begins with a slash.
pub(super) fn without_prefix(prefix: &str, target: &str) -> String {
    let rest = target.strip_prefix(prefix.trim_end_matches('/')).unwrap_or(target);
    if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(routes: &[(Option<&str>, &str)], host: &str, path: &str, expected: Option<usize>) {
        let routes: Vec<Route> =
            routes.iter().map(|(host, prefix)| Route::plain(host.map(str::to_owned), *prefix)).collect();
        assert_eq!(Router::new(&routes).find(host, path), expected, "{host}{path}");
    }

    #[test]
    fn the_longest_prefix_of_the_host_wins() {
        let routes = [(None, "/"), (None, "/api"), (Some("a.example"), "/"), (Some("a.example"), "/api/v2")];
        check(&routes, "b.example", "/x", Some(0));
        check(&routes, "b.example", "/api/x", Some(1));
        check(&routes, "a.example", "/api/x", Some(2));
        check(&routes, "a.example", "/api/v2?x", Some(3));
        check(&routes, "a.example", "/api/v20", Some(2));
    }

    #[test]
    fn prefixes_match_whole_segments() {
        check(&[(None, "/a")], "h", "/ab", None);
        check(&[(None, "/a")], "h", "/a", Some(0));
        check(&[(None, "/a/")], "h", "/a", None);
        check(&[(None, "/a/")], "h", "/a/b", Some(0));
    }

    #[test]
    fn a_stripped_target_begins_with_a_slash() {
        assert_eq!(without_prefix("/a", "/a"), "/");
        assert_eq!(without_prefix("/a", "/a?q"), "/?q");
        assert_eq!(without_prefix("/a/", "/a/b"), "/b");
        assert_eq!(without_prefix("/", "/b"), "/b");
    }
}
