//! The fields of a stored response.
//!
//! As they come they are slices of a connection's read buffer, many times their size, in a table made for looking up.
//! Stored, they lie in bytes of their own, and the names, which most responses have in common, lie there once for all.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;

/// The fields of a stored response, in their order: a cheap handle.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    names: Arc<[HeaderName]>,
    values: Arc<[HeaderValue]>,
}

impl Fields {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut bytes = BytesMut::with_capacity(headers.values().map(HeaderValue::len).sum());
        for value in headers.values() {
            bytes.extend_from_slice(value.as_bytes());
        }
        let mut bytes = bytes.freeze();
        let own = |value: &HeaderValue| {
            // What was a value is one, so the other branch is never taken.
            HeaderValue::from_maybe_shared(bytes.split_to(value.len())).unwrap_or_else(|_| value.clone())
        };
        let values = headers.values().map(own).collect();
        Self { names: headers.iter().map(|(name, _)| name.clone()).collect(), values }
    }

    /// The first value of a field.
    pub(super) fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.names.iter().position(|own| own == name).map(|index| &self.values[index])
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.names.iter().zip(self.values.iter())
    }

    /// The fields as a table, with room for some more.
    pub(super) fn to_map(&self, room: usize) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(self.names.len() + room);
        for (name, value) in self.iter() {
            headers.append(name, value.clone());
        }
        headers
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Bytes of names and values.
    pub(super) fn bytes(&self) -> u64 {
        let names = self.names.iter().map(|name| name.as_str().len());
        names.chain(self.values.iter().map(HeaderValue::len)).sum::<usize>() as u64
    }

    /// The same fields with names that others share.
    pub(super) fn with_shared_names(&self, names: &Names) -> Self {
        Self { names: names.share(&self.names), values: Arc::clone(&self.values) }
    }
}

/// The lists of names that are in use: most responses of an origin have theirs in common.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Guards the set, for the time of a look-up. Taken when a response is stored, not when one is read.
    known: Mutex<HashSet<Arc<[HeaderName]>>>,
}

/// Lists remembered at most: an origin whose every response has names of its own has nothing to share.
const LISTS_MAX: usize = 1024;

impl Names {
    fn share(&self, names: &Arc<[HeaderName]>) -> Arc<[HeaderName]> {
        let mut known = self.known.lock();
        if let Some(known) = known.get(names) {
            return Arc::clone(known);
        }
        if known.len() >= LISTS_MAX {
            known.retain(|names| Arc::strong_count(names) > 1);
        }
        if known.len() < LISTS_MAX {
            known.insert(Arc::clone(names));
        }
        Arc::clone(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let fields = Fields::of(&headers());
        assert_eq!(fields.to_map(2), headers());
        assert_eq!(fields.get(&http::header::ETAG), Some(&HeaderValue::from_static("\"a\"")));
        assert_eq!(fields.get(&http::header::AGE), None);
        assert_eq!(fields.bytes(), 13 + 10 + 4 + 10 + 22);
        assert_eq!(Fields::of(&HeaderMap::new()).to_map(2), HeaderMap::new());
    }

    #[test]
    fn a_stored_value_holds_no_buffer_of_a_connection() {
        let mut read = BytesMut::with_capacity(8 << 10);
        read.extend_from_slice(b"value");
        let value = HeaderValue::from_maybe_shared(read.split().freeze()).unwrap();
        let headers = HeaderMap::from_iter([(http::header::ETAG, value)]);
        let fields = Fields::of(&headers);
        drop(headers);
        assert!(read.try_reclaim(8 << 10), "the buffer is free for the next response");
        assert_eq!(fields.bytes(), 9);
    }

    #[test]
    fn equal_lists_of_names_are_kept_once_and_forgotten_when_they_are_not_used() {
        let names = Names::default();
        let [one, other] = [0, 1].map(|_| Fields::of(&headers()).with_shared_names(&names));
        assert!(Arc::ptr_eq(&one.names, &other.names));
        for number in 0..2 * LISTS_MAX {
            let name = HeaderName::try_from(format!("x-{number}")).unwrap();
            let strange = HeaderMap::from_iter([(name, HeaderValue::from_static(""))]);
            drop(Fields::of(&strange).with_shared_names(&names));
        }
        assert!(names.known.lock().len() <= LISTS_MAX);
        assert!(Arc::ptr_eq(&Fields::of(&headers()).with_shared_names(&names).names, &one.names));
    }
}
