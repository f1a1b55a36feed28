//! The fields of a stored response.
//!
//! As they come they are slices of a connection's read buffer, many times their size, in a table made for looking up.
//! Stored, their values lie one behind the other in bytes of their own, and the names, which most responses have in
//! common, lie there once for all.

use super::common::Shared;
use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// What no value of a field contains, behind each of them.
const END: u8 = b'\n';

/// The fields of a stored response, in their order.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    names: Arc<List>,
    /// The values, an [`END`] behind each; then what else is kept with them.
    text: Bytes,
}

/// The names of the fields of a response.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct List {
    names: Box<[HeaderName]>,
    /// The beginnings of their lines, one behind the other: each a name, a colon, and a space.
    starts: Box<[u8]>,
}

impl Hash for List {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.starts.hash(hasher);
    }
}

impl List {
    fn of(headers: &HeaderMap) -> Self {
        let names: Box<[HeaderName]> = headers.iter().map(|(name, _)| name.clone()).collect();
        let mut starts = Vec::with_capacity(names.iter().map(start_bytes).sum());
        for name in &names {
            starts.extend_from_slice(name.as_str().as_bytes());
            starts.extend_from_slice(START_END);
        }
        Self { names, starts: starts.into() }
    }
}

/// What stands between a name and its value.
const START_END: &[u8] = b": ";

fn start_bytes(name: &HeaderName) -> usize {
    name.as_str().len() + START_END.len()
}

/// A field as a line of a head.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// Its name.
    pub name: &'a HeaderName,
    /// The beginning of the line: the name, a colon, and a space.
    pub start: &'a [u8],
    /// What comes then, up to the end of the line.
    pub value: &'a [u8],
}

impl Fields {
    /// These fields, and a note in the same piece of memory.
    pub(super) fn of(headers: &HeaderMap, note: &str) -> Self {
        let values = headers.values().map(|value| value.len() + 1).sum::<usize>();
        let mut text = Vec::with_capacity(values + note.len());
        for value in headers.values() {
            text.extend_from_slice(value.as_bytes());
            text.push(END);
        }
        text.extend_from_slice(note.as_bytes());
        Self { names: Arc::new(List::of(headers)), text: text.into() }
    }

    /// The note that is kept with the fields.
    pub(super) fn note(&self) -> &str {
        let rest = self.names.names.iter().fold(&*self.text, |rest, _| first(rest).1);
        str::from_utf8(rest).expect("it was text when it was stored")
    }

    /// The fields, one by one.
    pub(super) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let (mut starts, mut rest) = (&*self.names.starts, &*self.text);
        self.names.names.iter().map(move |name| {
            let (start, value);
            (start, starts) = starts.split_at(start_bytes(name));
            (value, rest) = first(rest);
            Line { name, start, value }
        })
    }

    /// The fields as a table, with room for some more.
    pub(super) fn to_map(&self, room: usize) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(self.names.names.len() + room);
        let mut rest = self.text.clone();
        for name in &self.names.names {
            let length = first(&rest).0.len();
            let value = HeaderValue::from_maybe_shared(rest.split_to(length));
            headers.append(name, value.expect("what was a value is one"));
            rest.advance(1);
        }
        headers
    }

    /// Bytes that are kept for it alone.
    pub(super) fn bytes_alone(&self) -> usize {
        self.text.len()
    }

    /// The same fields with names that others share, in bytes that nobody else holds: a handle on bytes that have but one
    /// costs nothing beside them.
    pub(super) fn shelved(&self, names: &Shared<Arc<List>>) -> Self {
        Self { names: names.share(&self.names), text: Bytes::copy_from_slice(&self.text) }
    }
}

/// The first value of a text, and what is behind its end.
fn first(text: &[u8]) -> (&[u8], &[u8]) {
    let end = memchr::memchr(END, text).expect("an end is behind each value");
    (&text[..end], &text[end + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    fn headers() -> HeaderMap {
        let read = bytes::Bytes::from_static(b"max-age=9\"a\"b; path=/c");
        let slice = |range| HeaderValue::from_maybe_shared(read.slice(range)).unwrap();
        let mut headers = HeaderMap::new();
        headers.append("cache-control", slice(0..9));
        headers.append("set-cookie", slice(12..21));
        headers.append("etag", slice(9..12));
        headers.append("set-cookie", slice(21..22));
        headers
    }

    #[test]
    fn what_is_stored_is_what_came() {
        let fields = Fields::of(&headers(), "a.example\n/\n");
        for fields in [&fields, &fields.shelved(&Shared::default())] {
            assert_eq!((fields.note(), fields.to_map(2)), ("a.example\n/\n", headers()));
            let came = headers();
            let lines = fields.lines().map(|line| (line.name, line.value));
            assert!(lines.eq(came.iter().map(|(name, value)| (name, value.as_bytes()))));
            assert!(fields.lines().all(|line| line.start == format!("{}: ", line.name).as_bytes()));
            assert_eq!(fields.bytes_alone(), 9 + 3 + 9 + 1 + 4 + 12);
        }
        let nothing = Fields::of(&HeaderMap::new(), "");
        assert_eq!((nothing.note(), nothing.to_map(2)), ("", HeaderMap::new()));
    }

    #[test]
    fn what_may_be_in_a_value_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        let is_value = |byte: &u8| HeaderValue::from_bytes(&[*byte]).is_ok();
        let (valid, invalid): (Vec<u8>, Vec<u8>) = all.iter().partition(|byte| is_value(byte));
        assert!(invalid.contains(&END));
        let headers = HeaderMap::from_iter([
            (http::header::ETAG, HeaderValue::from_bytes(&valid).unwrap()),
            (http::header::SERVER, HeaderValue::from_static("")),
        ]);
        assert_eq!(Fields::of(&headers, "").to_map(0), headers);
    }

    #[test]
    fn a_stored_value_holds_no_buffer_of_a_connection() {
        let mut read = BytesMut::with_capacity(8 << 10);
        read.extend_from_slice(b"value");
        let value = HeaderValue::from_maybe_shared(read.split().freeze()).unwrap();
        let headers = HeaderMap::from_iter([(http::header::ETAG, value)]);
        let fields = Fields::of(&headers, "");
        drop(headers);
        assert!(read.try_reclaim(8 << 10), "the buffer is free for the next response");
        assert_eq!(fields.to_map(0)[http::header::ETAG], "value");
    }
}
