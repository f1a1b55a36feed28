//! One stored response.

use super::fields::{Fields, Names};
use super::stamps::Scopes;
use crate::body::Body;
use crate::policy::Metadata;
use http::header::{ETAG, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use std::borrow::Borrow;
use std::sync::Arc;
use std::time::SystemTime;

/// A response that is stored, or at least shared: a cheap handle, never changed once made.
#[derive(Debug, Clone)]
pub struct Stored(Arc<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    metadata: Metadata,
    fields: Fields,
    body: Body,
    tick: u64,
    scopes: Scopes,
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
        let Draft { mut metadata, headers, body, tick, scopes } = draft;
        let fields = Fields::of(&headers);
        // The validators are among the fields: they need no bytes of their own.
        let validators = &mut metadata.validators;
        let etag = validators.etag.as_mut().map(|etag| (etag, ETAG));
        let modified =
            validators.last_modified.as_mut().map(|modified| (&mut modified.verbatim, LAST_MODIFIED));
        for (value, name) in etag.into_iter().chain(modified) {
            if let Some(same) = fields.get(&name).filter(|field| *field == value) {
                *value = same.clone();
            }
        }
        Self(Arc::new(Inner { metadata, fields, body, tick, scopes }))
    }

    /// What policy knows of it.
    pub fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.0.metadata.status
    }

    /// Its end-to-end fields.
    pub fn headers(&self) -> HeaderMap {
        self.headers_with_room(0)
    }

    /// Its end-to-end fields, with room for some more.
    pub fn headers_with_room(&self, room: usize) -> HeaderMap {
        self.0.fields.to_map(room)
    }

    /// Its end-to-end fields, one by one.
    pub fn fields(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.fields.iter()
    }

    /// The first value of one of its fields.
    pub fn header(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.0.fields.get(name)
    }

    /// How many fields it has.
    pub fn field_count(&self) -> usize {
        self.0.fields.len()
    }

    /// Its body.
    pub fn body(&self) -> &Body {
        &self.0.body
    }

    /// The tick of the fetch, or of the validation, that it stands for.
    pub fn tick(&self) -> u64 {
        self.0.tick
    }

    /// What an invalidation must name to reach it.
    pub fn scopes(&self) -> &Scopes {
        &self.0.scopes
    }

    /// Bytes of its head and of as much of its body as is here.
    pub fn bytes_held(&self) -> u64 {
        self.0.fields.bytes() + self.0.body.bytes_held()
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

    /// The same response as the store keeps it: moka lets go of values late, and no reader may wait for that.
    pub(super) fn shelved(&self, names: &Names) -> Self {
        let fields = self.0.fields.with_shared_names(names);
        Self(Arc::new(Inner { fields, body: self.body().shelved(), ..Inner::clone(&self.0) }))
    }

    /// The same response, stale since `at` at the latest.
    pub(super) fn outdated(&self, at: SystemTime) -> Self {
        let mut inner = Inner::clone(&self.0);
        inner.metadata = inner.metadata.expired(at);
        Self(Arc::new(inner))
    }
}

impl Borrow<Metadata> for Stored {
    fn borrow(&self) -> &Metadata {
        self.metadata()
    }
}
