//! The writing end of a shared body.

use super::bulk::{Bulk, Content, Finished};
use super::pages::Place;
use super::whole::Whole;
use super::{Block, Keep, Progress, Shared, State, wake_all};
use crate::sync::BLOCK_BYTES;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The one right to write a body. Dropped before [`finish`](Self::finish), it breaks every reader off.
#[must_use = "a writer that is dropped breaks its readers off"]
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    loose: Loose,
}

/// The run of small blocks at the end of the body that is not yet gathered into one.
#[derive(Debug, Default)]
struct Loose {
    blocks: usize,
    bytes: usize,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, loose: Loose::default() }
    }

    /// Appends bytes and wakes the readers. Never waits: see [`room`](Self::room).
    pub fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.shared.budget.take(bytes.len());
        self.loose.blocks += 1;
        self.loose.bytes += bytes.len();
        let (wakers, dropped) = {
            let mut state = self.shared.state.lock();
            let offset = state.length;
            state.length += bytes.len() as u64;
            state.blocks.push_back(Block { offset, bytes });
            let dropped = state.trim();
            (state.wake_readers(), dropped)
        };
        self.shared.budget.give_back(dropped);
        wake_all(wakers);
        if self.loose.bytes >= BLOCK_BYTES {
            self.gather();
        }
    }

    /// Bytes written so far.
    pub fn length(&self) -> u64 {
        self.shared.state.lock().length
    }

    /// Whether all bytes in flight together exceed their budget.
    pub fn is_over_budget(&self) -> bool {
        self.shared.budget.is_spent()
    }

    /// Readers attached at this moment, without those that have been cut off.
    pub fn readers(&self) -> usize {
        self.shared.state.lock().readers()
    }

    /// The offset at which the slowest reader is; `None` where nobody wants anything.
    pub fn slowest(&self) -> Option<u64> {
        self.shared.state.lock().slowest()
    }

    /// From here on keeps only what some attached reader has yet to see, and at most about `bytes` ahead of the slowest; while
    /// the budget is spent, only as much as keeps the bytes flowing.
    pub fn keep_window(&mut self, bytes: u64) {
        let dropped = {
            let mut state = self.shared.state.lock();
            state.keep = Keep::Window { bytes };
            state.trim()
        };
        self.shared.budget.give_back(dropped);
    }

    /// Waits until the window has room for more; at once where the body is kept whole or nobody is left to read.
    ///
    /// Cancel-safe: nothing is lost by dropping it.
    pub async fn room(&mut self) {
        let budget = &self.shared.budget;
        poll_fn(|context| self.poll_until(context, |state| state.has_room(budget) || state.is_abandoned()))
            .await;
    }

    /// Waits until nobody reads and nobody is about to: no reader and no [`Body`](super::Body) is left, but for readers that were cut
    /// off and [shelved](super::Body::shelved) handles. Cancel-safe.
    pub async fn abandoned(&mut self) {
        poll_fn(|context| self.poll_until(context, State::is_abandoned)).await;
    }

    /// Waits until no reader is attached (one may still come while a [`Body`](super::Body) is alive). Cancel-safe.
    pub async fn unread(&mut self) {
        poll_fn(|context| self.poll_until(context, |state| state.readers() == 0)).await;
    }

    fn poll_until(&self, context: &Context<'_>, met: impl Fn(&State) -> bool) -> Poll<()> {
        let mut state = self.shared.state.lock();
        if met(&state) {
            return Poll::Ready(());
        }
        state.writer = Some(context.waker().clone());
        Poll::Pending
    }

    /// Cuts off the readers that hold the window up: those that have not come beyond `offset`. A [`Body`](super::Body) that holds the
    /// beginning is overruled as well. Returns how many readers were cut off.
    ///
    /// `offset` is where the [slowest](Self::slowest) was some time ago, so that nobody is cut off who has moved since.
    pub fn cut_off(&mut self, offset: u64) -> usize {
        let (wakers, dropped, count) = {
            let mut state = self.shared.state.lock();
            state.is_closed = true;
            let mut wakers = Vec::new();
            let mut count = 0;
            for (_, seat) in &mut state.seats {
                if seat.wants().is_some_and(|position| position <= offset) {
                    seat.cut_off = true;
                    count += 1;
                    wakers.extend(seat.waker.take());
                }
            }
            (wakers, state.trim(), count)
        };
        self.shared.budget.give_back(dropped);
        wake_all(wakers);
        count
    }

    /// The body is whole. Consumes the writer; readers see a clean end after the last byte. The store should have what is
    /// returned before that is dropped.
    pub fn finish(mut self, trailers: Option<HeaderMap>) -> Finished {
        let place = if trailers.is_none() { self.page() } else { None };
        if place.is_none() {
            self.gather();
        }
        let (wakers, bulk) = {
            let mut state = self.shared.state.lock();
            let mut bulk = None;
            if state.keep == Keep::Whole {
                let (blocks, budget) = (std::mem::take(&mut state.blocks), &self.shared.budget);
                let whole = match place {
                    Some(place) => Whole::Bulk(Bulk::new(Content::Pages(place), None, budget)),
                    None => Whole::new(blocks, trailers.clone(), budget),
                };
                if let Whole::Bulk(own) = &whole {
                    bulk = Some(Arc::clone(own));
                }
                // The writer is unique and consumed here, so nobody else can have set it.
                let first = self.shared.whole.set(whole).is_ok();
                debug_assert!(first, "a body is finished once");
            }
            state.progress = Progress::Finished(trailers);
            (state.wake_readers(), bulk)
        };
        wake_all(wakers);
        Finished(bulk)
    }

    /// Copies a body that is large, and was kept whole, to where it is sent from without copying; outside the lock, as
    /// [`gather`](Self::gather) does.
    fn page(&self) -> Option<Place> {
        let pages = self.shared.budget.pages.as_ref()?;
        let (blocks, length) = {
            let state = self.shared.state.lock();
            let is_whole = state.keep == Keep::Whole;
            (is_whole.then(|| state.blocks.clone())?, state.length)
        };
        pages.keep(&blocks, length)
    }

    /// Copies the loose blocks at the end into one, outside the lock: only the writer changes that end, and whether the
    /// body is kept whole.
    fn gather(&mut self) {
        let loose = std::mem::take(&mut self.loose);
        if loose.blocks == 0 {
            return;
        }
        let pieces: Vec<Block> = {
            let state = self.shared.state.lock();
            if state.keep != Keep::Whole {
                // What a window keeps is dropped soon: it is not worth the trouble.
                return;
            }
            let first = state.blocks.len().saturating_sub(loose.blocks);
            state.blocks.iter().skip(first).cloned().collect()
        };
        let Some(offset) = pieces.first().map(|block| block.offset) else { return };
        let mut gathered = BytesMut::with_capacity(pieces.iter().map(|block| block.bytes.len()).sum());
        for piece in &pieces {
            gathered.extend_from_slice(&piece.bytes);
        }
        let mut state = self.shared.state.lock();
        let first = state.blocks.len().saturating_sub(pieces.len());
        state.blocks.truncate(first);
        state.blocks.push_back(Block { offset, bytes: gathered.freeze() });
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let (wakers, dropped) = {
            let mut state = self.shared.state.lock();
            if !matches!(state.progress, Progress::Filling) {
                return;
            }
            state.progress = Progress::Broken;
            // Of a broken body nothing is kept but what is about to be read: a handle on it may be let go of late.
            state.keep = Keep::Window { bytes: 0 };
            (state.wake_readers(), state.trim())
        };
        self.shared.budget.give_back(dropped);
        wake_all(wakers);
    }
}
