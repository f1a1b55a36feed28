//! One reading of a path for all: what routes are matched by is what the key is made of and what goes upstream.
//!
//! A path that the proxy and the origin read differently is a way around a route, or into the cache of another page.

use super::receive::Rejection;
use super::settings::{DotSegments, EncodedSlashes, Paths};
use std::borrow::Cow;

/// The target as this site reads it.
pub(super) fn read(target: &str, paths: Paths) -> Result<Cow<'_, str>, Rejection> {
    let path = without_query(target);
    if paths.encoded_slashes == EncodedSlashes::Refuse && has_encoded_slash(path) {
        return Err(Rejection::Target);
    }
    let has_dots = paths.dot_segments != DotSegments::Keep
        && memchr::memchr2(b'.', b'%', path.as_bytes()).is_some()
        && path.split('/').any(|segment| dots(segment) > 0);
    if has_dots && paths.dot_segments == DotSegments::Refuse {
        return Err(Rejection::Target);
    }
    let merges = paths.merge_slashes && path.contains("//");
    if !has_dots && !merges {
        return Ok(Cow::Borrowed(target));
    }
    let mut written = walk(path, has_dots, merges);
    written.push_str(&target[path.len()..]);
    Ok(Cow::Owned(written))
}

/// The path of a target.
pub(super) fn without_query(target: &str) -> &str {
    memchr::memchr(b'?', target.as_bytes()).map_or(target, |end| &target[..end])
}

/// RFC 3986 §5.2.4, with encoded dots counting as dots: an origin may decode before it walks.
fn walk(path: &str, removes_dots: bool, merges_slashes: bool) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    for (index, segment) in segments.iter().enumerate() {
        let is_last = index + 1 == segments.len();
        match if removes_dots { dots(segment) } else { 0 } {
            0 if segment.is_empty() && merges_slashes && !is_last => {}
            0 => kept.push(segment),
            count => {
                if count == 2 {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
            }
        }
    }
    format!("/{}", kept.join("/"))
}

/// How many dots a segment is made of, if it is one of the two that mean something; else none.
fn dots(segment: &str) -> usize {
    let (mut rest, mut count) = (segment, 0);
    while count < 3 && !rest.is_empty() {
        let encoded = rest.get(..3).filter(|start| start.eq_ignore_ascii_case("%2e")).map(|_| 3);
        let Some(length) = rest.starts_with('.').then_some(1).or(encoded) else { return 0 };
        rest = &rest[length..];
        count += 1;
    }
    if count < 3 { count } else { 0 }
}

fn has_encoded_slash(path: &str) -> bool {
    path.as_bytes().windows(3).any(|bytes| {
        bytes.eq_ignore_ascii_case(b"%2f") || bytes.eq_ignore_ascii_case(b"%5c") || bytes[0] == b'\\'
    }) || path.ends_with('\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(paths: Paths, target: &str, expected: Option<&str>) {
        assert_eq!(read(target, paths).as_deref().ok(), expected, "{target}");
    }

    #[test]
    fn rfc3986_5_2_4_dot_segments_are_removed() {
        for (target, expected) in [
            ("/", "/"),
            ("/a/b?../c", "/a/b?../c"),
            ("/a/./b", "/a/b"),
            ("/a/../b?q", "/b?q"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/../../a", "/a"),
            ("/..", "/"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/a/%2e/b", "/a/b"),
            ("/a/.../b", "/a/.../b"),
            ("/a/.b/..c", "/a/.b/..c"),
            ("/a//../b", "/a/b"),
            ("//a", "//a"),
            ("/%2Fa", "/%2Fa"),
        ] {
            check(Paths::default(), target, Some(expected));
        }
    }

    #[test]
    fn what_is_kept_is_kept_to_the_byte_and_what_is_refused_is_refused() {
        let keep = Paths { dot_segments: DotSegments::Keep, ..Paths::default() };
        check(keep, "/a/../%2e%2e/b", Some("/a/../%2e%2e/b"));
        let refuse = Paths { dot_segments: DotSegments::Refuse, ..Paths::default() };
        check(refuse, "/a/../b", None);
        check(refuse, "/a/%2E%2e", None);
        check(refuse, "/a/b", Some("/a/b"));
        let slashes = Paths { encoded_slashes: EncodedSlashes::Refuse, ..Paths::default() };
        check(slashes, "/a%2fb", None);
        check(slashes, "/a%5Cb", None);
        check(slashes, "/a\\", None);
        check(slashes, "/a?%2f", Some("/a?%2f"));
    }

    #[test]
    fn slashes_are_merged_where_that_is_asked_for() {
        let merge = Paths { merge_slashes: true, ..Paths::default() };
        check(merge, "//a///b//?//", Some("/a/b/?//"));
        check(merge, "/a/", Some("/a/"));
        check(merge, "/a//../b", Some("/b"));
        check(merge, "//", Some("/"));
    }
}
