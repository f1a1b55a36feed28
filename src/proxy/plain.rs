//! The head of a plain GET as it came: neither copied, nor made into a table.

use super::receive::Notable;
use crate::policy::Fields;
use http::{HeaderName, header};
use httparse::Header;

/// A GET without a body and without anything that is meant for the connection, a condition, or a range.
#[derive(Debug, Clone, Copy)]
pub struct PlainGet<'a> {
    target: &'a str,
    fields: &'a [Header<'a>],
}

/// A longer target is read in another way.
const TARGET_BYTES_MAX: usize = 32 << 10;

impl<'a> PlainGet<'a> {
    /// The request with this target and these fields over HTTP/1.1; `None` where it says more than a plain one.
    pub fn of(target: &'a str, fields: &'a [Header<'a>]) -> Option<Self> {
        let is_plain = target.len() <= TARGET_BYTES_MAX
            && target.starts_with('/')
            && target.bytes().all(|byte| IN_TARGETS[usize::from(byte)])
            && fields.iter().all(says_nothing_special);
        is_plain.then_some(Self { target, fields })
    }

    /// Path and query.
    pub(super) fn target(&self) -> &'a str {
        self.target
    }
}

impl Fields for PlainGet<'_> {
    fn lines<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        let is_named = move |field: &&Header<'_>| name.as_str().eq_ignore_ascii_case(field.name);
        // The one option that a plain request may have is for the connection.
        let fields = if *name == header::CONNECTION { &[] } else { self.fields };
        fields.iter().filter(is_named).map(|field| field.value)
    }
}

fn says_nothing_special(field: &Header<'_>) -> bool {
    Notable::of_name(field.name) == Notable::default()
        || field.name.eq_ignore_ascii_case("connection") && field.value.eq_ignore_ascii_case(b"keep-alive")
}

/// The bytes that may stand anywhere in the path and query of a URI (RFC 3986 §3.3, §3.4).
const IN_TARGETS: [bool; 256] = {
    let mut table = [false; 256];
    let bytes = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/?%";
    let mut place = 0;
    while place < bytes.len() {
        table[bytes[place] as usize] = true;
        place += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn with<R>(fields: &[(&str, &str)], look: impl FnOnce(Option<PlainGet<'_>>) -> R) -> R {
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| Header { name, value: value.as_bytes() }).collect();
        look(PlainGet::of("/", &fields))
    }

    #[test]
    fn what_a_table_says_of_a_name_the_lines_say_too() {
        let fields =
            [("HOST", "a"), ("accept", "b"), ("Accept", "c"), ("Connection", "Keep-Alive"), ("X-A", "")];
        let mut table = http::HeaderMap::new();
        for (name, value) in fields.iter().filter(|(name, _)| *name != "Connection") {
            table.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static(value));
        }
        with(&fields, |plain| {
            let plain = plain.unwrap();
            for name in ["host", "accept", "connection", "x-a", "x"] {
                let name = HeaderName::from_static(name);
                assert!(plain.lines(&name).eq(table.lines(&name)), "{name}");
                assert_eq!(plain.has(&name), table.has(&name), "{name}");
            }
        });
    }

    #[test]
    fn what_has_a_meaning_of_its_own_is_not_plain() {
        for name in [
            "Content-Length",
            "transfer-encoding",
            "Expect",
            "TE",
            "Upgrade",
            "Keep-Alive",
            "Proxy-Authorization",
            "If-None-Match",
            "if-modified-since",
            "If-Match",
            "If-Unmodified-Since",
            "If-Range",
            "RANGE",
        ] {
            with(&[("host", "a"), (name, "1")], |plain| assert!(plain.is_none(), "{name}"));
        }
        for value in ["close", "keep-alive, x", "upgrade"] {
            with(&[("connection", value)], |plain| assert!(plain.is_none(), "{value}"));
        }
        for target in ["*", "a:80", "http://a/", "/#", "/a b", "/\"", "/\u{e4}", "/^", "/\\", ""] {
            assert!(PlainGet::of(target, &[]).is_none(), "{target}");
        }
        assert!(PlainGet::of(&format!("/{}", "a".repeat(TARGET_BYTES_MAX)), &[]).is_none());
    }

    #[test]
    fn a_plain_target_is_one_that_a_uri_may_have() {
        for byte in (0..=255_u8).filter(|byte| IN_TARGETS[usize::from(*byte)]) {
            for target in [format!("/{0}", char::from(byte)), format!("/?{0}", char::from(byte))] {
                let uri: http::Uri = target.parse().unwrap();
                assert_eq!(uri.path_and_query().unwrap().as_str(), target);
            }
        }
    }
}
