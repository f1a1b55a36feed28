//! What bodies take of memory while the store does not count them.

use super::bulk::Bulk;
use super::pages::Pages;
use crate::sync::{AtomicUsize, Mutex, Ordering};
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

/// Bytes of bodies in flight, counted over all bodies, and of those that *linger*: finished bodies that are not stored, or have left
/// the store, and that somebody still reads. Each has the same limit.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    bytes_max: AtomicUsize,
    lingering: AtomicUsize,
    withdrawn: AtomicUsize,
    /// Guards who lingers, who began first in front. Held for a push or a pop, and seldom for a walk over all, never across an await.
    lingerers: Mutex<Lingerers>,
    /// Where large bodies go when they are finished.
    pub(super) pages: Option<Arc<Pages>>,
}

#[derive(Debug, Default)]
struct Lingerers {
    queue: VecDeque<Weak<Bulk>>,
    /// At this length those are looked for whose last reader has gone.
    crowded: usize,
}

impl Budget {
    /// A budget of this many bytes.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Self::before(bytes_max, None)
    }

    /// A budget of this many bytes for bodies that go there when they are finished, if they are large.
    pub fn before(bytes_max: usize, pages: Option<Arc<Pages>>) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            bytes_max: AtomicUsize::new(bytes_max),
            lingering: AtomicUsize::new(0),
            withdrawn: AtomicUsize::new(0),
            lingerers: Mutex::default(),
            pages,
        })
    }

    /// From here on it is this large. What is over it may be used up.
    pub fn resize(&self, bytes_max: usize) {
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// Bytes held by unfinished bodies.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes held by finished bodies of which the store holds nothing, for those who read them.
    pub fn lingering(&self) -> usize {
        self.lingering.load(Ordering::Relaxed)
    }

    /// How many bodies were withdrawn from their readers.
    pub fn withdrawn(&self) -> usize {
        self.withdrawn.load(Ordering::Relaxed)
    }

    /// Whether the budget is spent: a body that begins when it is should be a window from the start, and a window is small then.
    pub fn is_spent(&self) -> bool {
        self.used() >= self.bytes_max.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        // Each reader comes by here for each piece, mostly with nothing: the counter need not change hands for that.
        if bytes > 0 {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Counts a body that lingers. Whoever is going to say that one lingers comes here before, lest another should say too early
    /// that it no longer does.
    pub(super) fn linger(&self, bytes: usize) {
        self.lingering.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn linger_no_more(&self, bytes: usize) {
        self.lingering.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A body has begun to linger: while there are too many bytes of such bodies, those are withdrawn that have lingered the longest.
    pub(super) fn lingers(&self, bulk: &Arc<Bulk>) {
        self.lingerers.lock().push(bulk);
        while self.lingering() > self.bytes_max.load(Ordering::Relaxed) {
            let Some(oldest) = self.lingerers.lock().queue.pop_front() else { return };
            if oldest.upgrade().is_some_and(|bulk| bulk.withdraw()) {
                self.withdrawn.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Lingerers {
    fn push(&mut self, bulk: &Arc<Bulk>) {
        if self.queue.len() >= self.crowded {
            self.queue.retain(|bulk| bulk.strong_count() > 0);
            self.crowded = 2 * self.queue.len() + 64;
        }
        self.queue.push_back(Arc::downgrade(bulk));
    }
}
