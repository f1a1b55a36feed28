//! What is remembered of a key beside its stored responses: that its answers cannot be shared, or that its fetches fail.

use super::failure::Failure;
use crate::policy::Key;
use http::HeaderName;
use moka::ops::compute::Op;
use moka::sync::Cache;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What is remembered of keys, bounded in number.
#[derive(Debug)]
pub(super) struct Notes {
    notes: Cache<Key, Note>,
    /// The selecting fields of the last response under a key, where it had any: it may have left the store, or never have come
    /// into it, and fetches should still meet by their variant.
    selecting: Cache<Key, Arc<[HeaderName]>>,
}

/// How often a note is renewed within its time, at most.
const RENEWALS: u32 = 10;

#[derive(Debug, Clone)]
enum Note {
    /// Its answers could not be shared: until then nobody waits for anybody (hit-for-miss).
    Uncacheable { until: SystemTime },
    /// Its fetches fail: until then new arrivals get the last failure.
    Failing { until: SystemTime, pause: Duration, failure: Failure },
}

/// What a key's note says to a request that would fetch.
#[derive(Debug)]
pub(super) enum Advice {
    /// Nothing: join or begin a flight.
    Coalesce,
    /// Fetch alone.
    GoAlone,
    /// Do not fetch: this is what the last fetch came to.
    GiveUp(Failure),
}

impl Notes {
    pub(super) fn new(notes_max: u64) -> Self {
        Self { notes: Cache::new(notes_max), selecting: Cache::new(notes_max) }
    }

    /// Notes by what fields a response under the key was selected (RFC 9111 §4.1).
    pub(super) fn selected_by(&self, key: Key, names: &[HeaderName]) {
        if !names.is_empty() {
            self.selecting.insert(key, names.into());
        } else if self.selecting.contains_key(&key) {
            self.selecting.invalidate(&key);
        }
    }

    /// By what fields responses under the key are selected, as far as is known.
    pub(super) fn selecting(&self, key: &Key) -> Vec<HeaderName> {
        self.selecting.get(key).map(|names| names.to_vec()).unwrap_or_default()
    }

    /// What to do about a fetch for the key.
    pub(super) fn advice(&self, key: &Key, now: SystemTime) -> Advice {
        match self.notes.get(key) {
            Some(Note::Uncacheable { until }) if now < until => Advice::GoAlone,
            Some(Note::Failing { until, failure, .. }) if now < until => Advice::GiveUp(failure),
            Some(_) | None => Advice::Coalesce,
        }
    }

    /// An answer could not be shared. What was noted a short while ago, for as long, is not noted again: it would be the same
    /// for each of many answers, and to write costs more than to look.
    pub(super) fn uncacheable(&self, key: Key, now: SystemTime, ttl: Duration) {
        let is_noted =
            |note| matches!(note, Note::Uncacheable { until } if until > now + ttl - ttl / RENEWALS);
        if !ttl.is_zero() && !self.notes.get(&key).is_some_and(is_noted) {
            self.notes.insert(key, Note::Uncacheable { until: now + ttl });
        }
    }

    /// A fetch failed. The pause before the next doubles with each failure, from the shorter to the longer limit, and is
    /// shortened at random by up to a third, so that keys that failed together do not come back together.
    pub(super) fn failed(&self, key: Key, now: SystemTime, limits: (Duration, Duration), failure: &Failure) {
        let (shortest, longest) = limits;
        if shortest.is_zero() {
            return;
        }
        self.notes.entry(key).and_compute_with(|entry| {
            let pause = match entry.map(moka::Entry::into_value) {
                Some(Note::Failing { pause, until, .. }) if now < until + longest => {
                    (pause * 2).min(longest.max(shortest))
                }
                _ => shortest,
            };
            let jittered = pause.mul_f64(1.0 - fastrand::f64() / 3.0);
            Op::Put(Note::Failing { until: now + jittered, pause, failure: failure.clone() })
        });
    }

    /// A fetch for the key came to something that can be shared: whatever was remembered is over.
    pub(super) fn forget(&self, key: &Key) {
        if self.notes.contains_key(key) {
            self.notes.invalidate(key);
        }
    }

    /// The note in words, for explanations.
    pub(super) fn describe(&self, key: &Key, now: SystemTime) -> Option<(&'static str, Duration)> {
        let (word, until) = match self.notes.get(key)? {
            Note::Uncacheable { until } => ("hit-for-miss", until),
            Note::Failing { until, .. } => ("back-off", until),
        };
        Some((word, until.duration_since(now).ok()?))
    }
}
