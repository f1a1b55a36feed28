//! One stored response.

use super::stamps::Scopes;
use crate::body::Body;
use crate::policy::Metadata;
use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, StatusCode};
use std::borrow::Borrow;
use std::sync::Arc;
use std::time::SystemTime;

/// A response that is stored, or at least shared: a cheap handle, never changed once made.
#[derive(Debug, Clone)]
pub struct Stored(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    draft: Draft,
    /// Bytes of names and values of the fields.
    head_bytes: u64,
}

/// What a stored response is made of.
#[derive(Debug, Clone)]
pub struct Draft {
    /// What policy knows of it.
    pub metadata: Metadata,
    /// Its end-to-end fields.
    pub headers: HeaderMap,
    /// Its body, perhaps still filling.
    pub body: Body,
    /// The tick of the fetch, or of the validation, that it stands for.
    pub tick: u64,
    /// What an invalidation must name to reach it.
    pub scopes: Scopes,
}

impl Stored {
    /// A stored response made of these.
    pub fn new(draft: Draft) -> Self {
        let head_bytes =
            draft.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
        Self(Arc::new(Inner { head_bytes: head_bytes as u64, draft }))
    }

    /// What policy knows of it.
    pub fn metadata(&self) -> &Metadata {
        &self.0.draft.metadata
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.0.draft.metadata.status
    }

    /// Its end-to-end fields.
    pub fn headers(&self) -> &HeaderMap {
        &self.0.draft.headers
    }

    /// Its body.
    pub fn body(&self) -> &Body {
        &self.0.draft.body
    }

    /// The tick of the fetch, or of the validation, that it stands for.
    pub fn tick(&self) -> u64 {
        self.0.draft.tick
    }

    /// What an invalidation must name to reach it.
    pub fn scopes(&self) -> &Scopes {
        &self.0.draft.scopes
    }

    /// The parts of it, to make another.
    pub fn draft(&self) -> Draft {
        self.0.draft.clone()
    }

    /// Bytes of its head and of as much of its body as is here.
    pub fn bytes_held(&self) -> u64 {
        self.0.head_bytes + self.0.draft.body.bytes_held()
    }

    /// Whether both are for the same requests.
    pub fn is_same_variant(&self, other: &Self) -> bool {
        self.metadata().selection.same_variant(&other.metadata().selection)
    }

    /// Whether `old` has no place beside this newer response: it is the same variant, or one of the two does not vary at
    /// all while the other lies under the same key.
    pub(super) fn supersedes(&self, old: &Self) -> bool {
        self.metadata().selection.names().is_empty()
            || old.metadata().selection.names().is_empty()
            || self.is_same_variant(old)
    }

    /// The same response as the store keeps it: moka lets go of values late, and no reader may wait for that. Its fields lie
    /// in bytes of their own: as they came they are slices of a connection's read buffer, many times their size.
    pub(super) fn shelved(&self) -> Self {
        let body = self.body().shelved();
        Self::new(Draft { body, headers: own(self.headers()), ..self.draft() })
    }

    /// The same response, stale since `at` at the latest.
    pub(super) fn outdated(&self, at: SystemTime) -> Self {
        let mut draft = self.draft();
        draft.metadata = draft.metadata.expired(at);
        Self::new(draft)
    }
}

/// The same fields, with values that share one piece of memory among themselves and with nothing else.
fn own(headers: &HeaderMap) -> HeaderMap {
    let mut bytes = BytesMut::with_capacity(headers.values().map(HeaderValue::len).sum());
    for value in headers.values() {
        bytes.extend_from_slice(value.as_bytes());
    }
    let mut bytes = bytes.freeze();
    let mut headers = headers.clone();
    for value in headers.values_mut() {
        // What was a value is one still.
        if let Ok(own) = HeaderValue::from_maybe_shared(bytes.split_to(value.len())) {
            *value = own;
        }
    }
    headers
}

impl Borrow<Metadata> for Stored {
    fn borrow(&self) -> &Metadata {
        self.metadata()
    }
}
