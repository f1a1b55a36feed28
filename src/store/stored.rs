//! One stored response.

use super::common::Common;
use super::fields::{Fields, Line};
use super::stamps::Scopes;
use super::weight::{HANDLE_BYTES, allocated};
use crate::body::Body;
use crate::policy::{Key, Metadata};
use http::{HeaderMap, StatusCode};
use std::borrow::{Borrow, Cow};
use std::mem::size_of_val;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// A response that is stored, or at least shared: a cheap handle, never changed once made.
#[derive(Debug, Clone)]
pub struct Stored(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    metadata: Metadata,
    /// Its end-to-end fields, with host and target as a note.
    fields: Fields,
    body: Body,
    tick: u64,
    /// No stamp up to this tick is against it.
    checked: AtomicU64,
    uri: Key,
    /// `None` where it has none, as most have not.
    tags: Option<Arc<Vec<Key>>>,
    route: u32,
    was_needed: bool,
}

/// With the counts of those who have it.
const INNER_BYTES: usize = size_of::<Inner>() + 2 * size_of::<usize>();

/// What a stored response is made of.
#[derive(Debug, Clone)]
pub struct Draft<'a> {
    /// What policy knows of it.
    pub metadata: Metadata,
    /// Its end-to-end fields.
    pub headers: HeaderMap,
    /// Its body, perhaps still filling.
    pub body: Body,
    /// The tick of the fetch, or of the validation, that it stands for.
    pub tick: u64,
    /// What an invalidation must name to reach it.
    pub scopes: Scopes<'a>,
    /// Whether others could have waited for its fetch, which was not known to be one too many.
    pub was_needed: bool,
}

impl Stored {
    /// A stored response made of these.
    pub fn new(draft: Draft<'_>) -> Self {
        let Draft { metadata, headers, body, tick, scopes, was_needed } = draft;
        let Scopes { route, uri, host, target, tags } = scopes;
        // No host contains a line feed.
        let note = [&*host, "\n", &*target].concat();
        Self(Arc::new(Inner {
            metadata,
            fields: Fields::of(&headers, &note),
            body,
            tick,
            checked: AtomicU64::new(tick),
            uri,
            tags: (!tags.is_empty()).then(|| Arc::new(tags.into_owned())),
            route,
            was_needed,
        }))
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
    pub fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.0.fields.lines()
    }

    /// Its body.
    pub fn body(&self) -> &Body {
        &self.0.body
    }

    /// The tick of the fetch, or of the validation, that it stands for.
    pub fn tick(&self) -> u64 {
        self.0.tick
    }

    /// Whether others could have waited for its fetch, which was not known to be one too many.
    pub fn was_needed(&self) -> bool {
        self.0.was_needed
    }

    /// What an invalidation must name to reach it.
    pub fn scopes(&self) -> Scopes<'_> {
        let (host, target) = self.0.fields.note().split_once('\n').unwrap_or_default();
        Scopes {
            route: self.0.route,
            uri: self.0.uri,
            host: Cow::Borrowed(host),
            target: Cow::Borrowed(target),
            tags: Cow::Borrowed(self.tags()),
        }
    }

    fn tags(&self) -> &[Key] {
        self.0.tags.as_deref().map_or(&[], Vec::as_slice)
    }

    /// No stamp up to this tick is against it.
    pub(super) fn checked(&self) -> u64 {
        self.0.checked.load(Ordering::Acquire)
    }

    /// Notes that no stamp up to this tick is against it.
    pub(super) fn note_checked(&self, tick: u64) {
        self.0.checked.fetch_max(tick, Ordering::AcqRel);
    }

    /// Bytes of memory that it takes, with as much of its body as is here. What it has in common with others is not counted.
    pub(super) fn weight(&self) -> u64 {
        let tags = size_of_val(self.tags());
        let pieces = [INNER_BYTES, self.0.fields.bytes_alone(), tags].map(|bytes| allocated(bytes as u64));
        pieces.iter().sum::<u64>() + allocated(self.0.body.bytes_held()) + 2 * HANDLE_BYTES
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

    /// The same response as the store keeps it: moka lets go of values late, and no reader may wait for that. The body counts as
    /// stored as long as what is returned lives.
    pub(super) fn shelved(&self, common: &Common) -> Self {
        let mut metadata = self.0.metadata.clone();
        if !metadata.selection.names().is_empty() {
            metadata.selection = common.selections.share(&metadata.selection);
        }
        self.with(metadata, self.0.fields.shelved(&common.names), self.0.body.shelved())
    }

    /// The same response of the store's, with its body as it is by now.
    pub(super) fn shelved_again(&self) -> Self {
        self.with(self.0.metadata.clone(), self.0.fields.clone(), self.0.body.shelved())
    }

    /// The same response, stale since `at` at the latest.
    pub(super) fn outdated(&self, at: SystemTime) -> Self {
        self.with(self.0.metadata.clone().expired(at), self.0.fields.clone(), self.0.body.clone())
    }

    fn with(&self, metadata: Metadata, fields: Fields, body: Body) -> Self {
        let &Inner { tick, uri, route, was_needed, .. } = &*self.0;
        let (checked, tags) = (AtomicU64::new(self.checked()), self.0.tags.clone());
        Self(Arc::new(Inner { metadata, fields, body, tick, checked, uri, tags, route, was_needed }))
    }
}

impl Borrow<Metadata> for Stored {
    fn borrow(&self) -> &Metadata {
        self.metadata()
    }
}
