//! The fields of a message, in whatever form they are at hand.

use http::{HeaderMap, HeaderName, HeaderValue};
use httparse::Header;

/// The fields of a message: a table, or the lines as they came.
pub trait Fields {
    /// The values of all lines with this name, in their order.
    fn lines<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]>;

    /// The value of the first line with this name.
    fn first<'a>(&'a self, name: &'a HeaderName) -> Option<&'a [u8]> {
        self.lines(name).next()
    }

    /// Whether there is a line with this name.
    fn has(&self, name: &HeaderName) -> bool {
        self.first(name).is_some()
    }
}

/// The lines of a head that has been taken apart, and not been made into a table.
#[derive(Debug, Clone, Copy)]
pub struct Lines<'a>(pub &'a [Header<'a>]);

impl Fields for Lines<'_> {
    fn lines<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        let name = name.as_str();
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }
}

impl Fields for HeaderMap {
    fn lines<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.get_all(name).iter().map(HeaderValue::as_bytes)
    }
}
