//! The head of a plain GET as it came, which is not made into a table.

use super::receive::Notable;
use crate::policy::Fields;
use http::{HeaderMap, HeaderName, header};
use httparse::Header;
use std::sync::Arc;

/// A GET without a body and without anything that is meant for the connection, a condition, or a range.
#[derive(Debug, Clone, Copy)]
pub struct PlainGet<'a> {
    target: &'a str,
    fields: &'a [Header<'a>],
    bytes: &'a [u8],
}

/// A longer target is read in another way.
const TARGET_BYTES_MAX: usize = 32 << 10;

impl<'a> PlainGet<'a> {
    /// The request with this target and these fields over HTTP/1.1, which these bytes are as a whole; `None` where it says more than a
    /// plain one.
    pub fn of(bytes: &'a [u8], target: &'a str, fields: &'a [Header<'a>]) -> Option<Self> {
        let is_plain = target.len() <= TARGET_BYTES_MAX
            && target.starts_with('/')
            && target.bytes().all(|byte| IN_TARGETS[usize::from(byte)])
            && fields.iter().all(says_nothing_special);
        is_plain.then_some(Self { target, fields, bytes })
    }

    /// Path and query.
    pub(super) fn target(&self) -> &'a str {
        self.target
    }

    /// Its fields, but for those that are for the connection.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let fields = self.fields.iter().map(|field| (field.name, field.value));
        fields.filter(|(name, _)| !header::CONNECTION.as_str().eq_ignore_ascii_case(name))
    }

    /// A copy that may be kept.
    pub(super) fn kept(&self) -> KeptGet {
        KeptGet(self.bytes.into())
    }
}

impl Fields for PlainGet<'_> {
    fn lines<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        // The one option that a plain request may have is for the connection.
        let fields = if *name == header::CONNECTION { &[] } else { self.fields };
        let name = name.as_str();
        fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }
}

/// A plain GET that is kept as the bytes that it came as. They are taken apart anew for each question, of which there are few.
#[derive(Debug, Clone)]
pub(super) struct KeptGet(pub(super) Arc<[u8]>);

impl Fields for KeptGet {
    fn lines<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        // The one option that a plain request may have is for the connection.
        let mut rest = if *name == header::CONNECTION { &[] } else { &*self.0 };
        let name = name.as_str().as_bytes();
        std::iter::from_fn(move || {
            loop {
                let end = memchr::memchr(b'\n', rest)?;
                rest = &rest[end + 1..];
                if rest.get(name.len()) == Some(&b':') && rest[..name.len()].eq_ignore_ascii_case(name) {
                    let end = memchr::memchr(b'\n', rest)?;
                    return Some(rest[name.len() + 1..end].trim_ascii());
                }
            }
        })
    }
}

/// The fields of a client's request, in a form that may be kept: as a table, or as they came.
#[derive(Debug, Clone)]
pub(super) enum ClientFields {
    Table(Arc<HeaderMap>),
    Lines(KeptGet),
}

impl From<Arc<HeaderMap>> for ClientFields {
    fn from(table: Arc<HeaderMap>) -> Self {
        Self::Table(table)
    }
}

impl Fields for ClientFields {
    fn lines<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        let (table, kept) = match self {
            Self::Table(table) => (Some(table.lines(name)), None),
            Self::Lines(kept) => (None, Some(kept.lines(name))),
        };
        table.into_iter().flatten().chain(kept.into_iter().flatten())
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
        let mut bytes = b"GET / HTTP/1.1\r\n".to_vec();
        for field in &fields {
            for part in [field.name.as_bytes(), b": ", field.value, b"\r\n"] {
                bytes.extend_from_slice(part);
            }
        }
        look(PlainGet::of(&bytes, "/", &fields))
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
            let kept = ClientFields::Lines(plain.kept());
            assert!(plain.fields().all(|(name, _)| !name.eq_ignore_ascii_case("connection")));
            for name in ["host", "accept", "connection", "x-a", "x"] {
                let name = HeaderName::from_static(name);
                assert!(plain.lines(&name).eq(table.lines(&name)), "{name}");
                assert_eq!(plain.has(&name), table.has(&name), "{name}");
                assert!(kept.lines(&name).eq(table.lines(&name)), "{name}");
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
            assert!(PlainGet::of(b"", target, &[]).is_none(), "{target}");
        }
        assert!(PlainGet::of(b"", &format!("/{}", "a".repeat(TARGET_BYTES_MAX)), &[]).is_none());
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
