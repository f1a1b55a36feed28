//! The fields of a request, in whatever form they are at hand.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The fields of a request: a table, or the lines as they came.
pub trait Fields {
    /// The values of all lines with this name, in their order.
    fn lines<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]>;

    /// Whether there is a line with this name.
    fn has(&self, name: &HeaderName) -> bool {
        self.lines(name).next().is_some()
    }
}

impl Fields for HeaderMap {
    fn lines<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.get_all(name).iter().map(HeaderValue::as_bytes)
    }
}
