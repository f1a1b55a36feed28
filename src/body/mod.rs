//! A body that is written once, by one fetch, and read by many.
//!
//! A [`Writer`] appends; any number of [`Reader`]s follow at their own pace from any offset that is still kept. As
//! long as the body is kept *whole* a reader may join at any time and nobody waits for anybody. A body that
//! turns out to be too large is reduced to a *window*: nobody may join any more, bytes that all readers have
//! seen are dropped, and the writer waits for the slowest of them ([`Writer::room`]).
//!
//! Dropping the writer without [`Writer::finish`] is failure: every reader that has not yet seen the last byte gets
//! [`Broken`], never a clean end.

mod budget;
mod bulk;
mod pages;
mod reader;
mod whole;
mod writer;

pub use budget::Budget;
pub use bulk::{Finished, Span};
pub use pages::Pages;
pub use reader::Reader;
pub use whole::{Piece, Pieces};
pub use writer::Writer;

use crate::sync::{Mutex, OnceLock};
use bytes::Bytes;
use http::HeaderMap;
use slab::Slab;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use whole::Whole;

/// The body ended before it was whole, or this reader was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The fetch that wrote it failed.
    #[error("the upstream broke off in the middle of the body")]
    Upstream,
    /// This reader kept the others waiting for too long.
    #[error("the reader stalled and was cut off")]
    Stalled,
    /// What was kept of it cannot be read.
    #[error("the stored body cannot be read")]
    Unreadable,
    /// It has left the store, and its memory was needed.
    #[error("the body has left the store and was withdrawn from its last readers")]
    Withdrawn,
}

/// A reader came when the beginning of the body was no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the beginning of this body is no longer kept")]
pub struct TooLate;

/// How far ahead of its slowest reader a window goes while the budget is spent.
const SPENT_WINDOW_BYTES: u64 = 64 << 10;

/// Makes a body and the one right to write it.
pub fn new(budget: &Arc<Budget>) -> (Writer, Body) {
    let shared = Arc::new(Shared {
        whole: OnceLock::new(),
        state: Mutex::new(State {
            blocks: VecDeque::new(),
            start: 0,
            length: 0,
            keep: Keep::Whole,
            progress: Progress::Filling,
            seats: Slab::new(),
            handles: 1,
            is_closed: false,
            writer: None,
        }),
        budget: Arc::clone(budget),
    });
    (Writer::new(Arc::clone(&shared)), Body(Place::Shared { shared, hold: Hold::Beginning }))
}

/// A finished body made of bytes at hand.
pub fn of(bytes: Bytes) -> Body {
    let (mut writer, body) = new(&Budget::new(usize::MAX));
    writer.push(bytes);
    drop(writer.finish(None));
    body
}

/// The right to make readers of a body.
#[derive(Debug)]
pub struct Body(Place);

/// Where the bytes of a body are.
#[derive(Debug, Clone)]
enum Place {
    /// Where its fetch writes them, or wrote them.
    Shared { shared: Arc<Shared>, hold: Hold },
    /// Where they are when the body is finished: a store that keeps many need not keep what writing took.
    Shelved(Shelf),
}

/// The store's handle on a finished body.
#[derive(Debug)]
struct Shelf(Whole);

impl Shelf {
    fn new(whole: &Whole) -> Self {
        if let Whole::Bulk(bulk) = whole {
            bulk.shelve();
        }
        Self(whole.clone())
    }
}

impl Clone for Shelf {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        if let Whole::Bulk(bulk) = &self.0 {
            bulk.unshelve();
        }
    }
}

impl Place {
    /// The finished body, where it was kept whole.
    fn whole(&self) -> Option<&Whole> {
        match self {
            Self::Shared { shared, .. } => shared.whole.get(),
            Self::Shelved(shelf) => Some(&shelf.0),
        }
    }
}

/// What a [`Body`] holds fast beside the memory of what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// The beginning: while one such handle lives, a window drops nothing.
    Beginning,
    Nothing,
}

/// How far a body has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its fetch is still writing.
    Filling,
    /// All of it is here: this many bytes.
    Whole(u64),
    /// It finished, but it was too large to keep: its readers may finish, nobody can join.
    Gone,
    /// Its fetch failed.
    Broken,
}

impl Body {
    /// How far the body has come.
    pub fn stage(&self) -> Stage {
        let shared = match &self.0 {
            Place::Shelved(Shelf(whole)) => return Stage::Whole(whole.length()),
            Place::Shared { shared, .. } => shared,
        };
        if let Some(whole) = shared.whole.get() {
            return Stage::Whole(whole.length());
        }
        match (&shared.state.lock().progress, shared.whole.get()) {
            (Progress::Filling, _) => Stage::Filling,
            (Progress::Finished(_), Some(whole)) => Stage::Whole(whole.length()),
            (Progress::Finished(_), None) => Stage::Gone,
            (Progress::Broken, _) => Stage::Broken,
        }
    }

    /// Whether it broke off, or is finished and no longer kept: nobody else will read it.
    pub fn is_lost(&self) -> bool {
        match self.stage() {
            Stage::Filling | Stage::Whole(_) => false,
            Stage::Gone | Stage::Broken => true,
        }
    }

    /// Bytes that this body holds in memory at the moment.
    pub fn bytes_held(&self) -> u64 {
        match &self.0 {
            Place::Shelved(Shelf(whole)) => whole.length(),
            Place::Shared { shared, .. } => shared.whole.get().map_or_else(
                || {
                    let state = shared.state.lock();
                    state.length - state.start
                },
                Whole::length,
            ),
        }
    }

    /// Whether both are handles of the same body.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Place::Shared { shared: own, .. }, Place::Shared { shared: other, .. }) => {
                Arc::ptr_eq(own, other)
            }
            (own, other) => match (own.whole(), other.whole()) {
                (Some(own), Some(other)) => own.is_same(other),
                _ => false,
            },
        }
    }

    /// Another handle on the same body that does not hold its beginning: what keeps it for an unknown time, like a cache
    /// that drops values late, would else hold up every reader of a window. Of a finished body it keeps the bytes alone.
    #[must_use]
    pub fn shelved(&self) -> Self {
        Self(match (&self.0, self.0.whole()) {
            (Place::Shelved(Shelf(whole)), _) | (_, Some(whole)) => Place::Shelved(Shelf::new(whole)),
            (Place::Shared { shared, .. }, None) => {
                Place::Shared { shared: Arc::clone(shared), hold: Hold::Nothing }
            }
        })
    }

    /// Whether it has been withdrawn from its last readers. One that is [shelved](Self::shelved) is not withdrawn any more.
    pub fn is_withdrawn(&self) -> bool {
        matches!(self.0.whole(), Some(Whole::Bulk(bulk)) if bulk.is_withdrawn())
    }

    /// The bytes of a finished body, where it is small: then nobody counts who reads it.
    pub fn small(&self) -> Option<&Bytes> {
        match self.0.whole()? {
            Whole::Single(bytes) => Some(bytes),
            Whole::Bulk(_) => None,
        }
    }

    /// A finished body that was kept whole and has no trailers, piece by piece.
    pub fn pieces(&self) -> Option<Pieces> {
        let whole = self.0.whole().filter(|whole| whole.trailers().is_none())?;
        Some(Pieces::of(whole))
    }

    /// A reader of all of it. Fails where the beginning is no longer kept.
    pub fn read(&self) -> Result<Reader, TooLate> {
        self.read_from(0, None)
    }

    /// A reader from offset `first` up to and including `last` (`None`: to the end). An offset beyond the end reads nothing.
    pub fn read_from(&self, first: u64, last: Option<u64>) -> Result<Reader, TooLate> {
        let until = last.map_or(u64::MAX, |last| last.saturating_add(1));
        let shared = match (&self.0, self.0.whole()) {
            (Place::Shelved(Shelf(whole)), _) | (_, Some(whole)) => {
                return Ok(Reader::of_whole(whole.clone(), first, until));
            }
            (Place::Shared { shared, .. }, None) => shared,
        };
        let mut state = shared.state.lock();
        if first < state.start {
            return Err(TooLate);
        }
        let seat = state.seats.insert(Seat { position: first, until, cut_off: false, waker: None });
        Ok(Reader::following(Arc::clone(shared), seat, first, until))
    }
}

impl Clone for Body {
    fn clone(&self) -> Self {
        if let Place::Shared { shared, hold: Hold::Beginning } = &self.0 {
            shared.state.lock().handles += 1;
        }
        Self(self.0.clone())
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let Place::Shared { shared, hold: Hold::Beginning } = &self.0 else { return };
        if shared.whole.get().is_some() {
            return;
        }
        let (waker, dropped) = {
            let mut state = shared.state.lock();
            state.handles -= 1;
            let dropped = state.trim();
            (state.writer.take(), dropped)
        };
        shared.budget.give_back(dropped);
        wake_all(waker.into_iter().collect());
    }
}

#[derive(Debug)]
struct Shared {
    /// Set once, when the body is finished and was kept whole. Readers of a finished body never touch the lock.
    whole: OnceLock<Whole>,
    /// Guards everything about an unfinished body. A lock and not a channel because each reader is at its own
    /// offset; never held across an await, and no waker is called under it.
    state: Mutex<State>,
    budget: Arc<Budget>,
}

#[derive(Debug, Clone)]
struct Block {
    offset: u64,
    bytes: Bytes,
}

impl Block {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

#[derive(Debug)]
struct State {
    blocks: VecDeque<Block>,
    /// Offset of the first byte that is kept.
    start: u64,
    /// Bytes written so far.
    length: u64,
    keep: Keep,
    progress: Progress,
    seats: Slab<Seat>,
    /// [`Body`] values alive that hold the beginning: each is about to make a reader.
    handles: usize,
    /// Whether the handles have been overruled, because they held the beginning for too long.
    is_closed: bool,
    writer: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Whole,
    Window { bytes: u64 },
}

#[derive(Debug)]
enum Progress {
    Filling,
    Finished(Option<HeaderMap>),
    Broken,
}

/// One reader's place.
#[derive(Debug)]
struct Seat {
    /// Offset of the first byte that it has yet to see.
    position: u64,
    /// First offset that it does not want.
    until: u64,
    cut_off: bool,
    waker: Option<Waker>,
}

impl Seat {
    /// The offset from which bytes must be kept for it.
    fn wants(&self) -> Option<u64> {
        (!self.cut_off && self.position < self.until).then_some(self.position)
    }
}

impl State {
    /// Where the slowest of those is that still want something.
    fn slowest(&self) -> Option<u64> {
        self.seats.iter().filter_map(|(_, seat)| seat.wants()).min()
    }

    /// Whether a [`Body`] that is alive keeps the beginning of a window.
    fn is_held(&self) -> bool {
        self.handles > 0 && !self.is_closed
    }

    /// Readers that have not been cut off.
    fn readers(&self) -> usize {
        self.seats.iter().filter(|(_, seat)| !seat.cut_off).count()
    }

    /// In a window, drops what every reader has seen; returns how many bytes that were.
    fn trim(&mut self) -> usize {
        if self.keep == Keep::Whole || self.is_held() {
            return 0;
        }
        let seen = self.slowest().unwrap_or(self.length);
        let mut dropped = 0;
        while self.blocks.front().is_some_and(|block| block.end() <= seen) {
            if let Some(block) = self.blocks.pop_front() {
                self.start = block.end();
                dropped += block.bytes.len();
            }
        }
        dropped
    }

    /// Whether the window has room for more. That the budget is no longer spent wakes nobody: while there is no room, it is the
    /// turn of the readers.
    fn has_room(&self, budget: &Budget) -> bool {
        let held = self.length - self.start;
        match self.keep {
            Keep::Whole => true,
            Keep::Window { bytes } => {
                held == 0 || held < bytes && (held < SPENT_WINDOW_BYTES || !budget.is_spent())
            }
        }
    }

    fn is_abandoned(&self) -> bool {
        !self.is_held() && self.readers() == 0
    }

    fn wake_readers(&mut self) -> Vec<Waker> {
        self.seats.iter_mut().filter_map(|(_, seat)| seat.waker.take()).collect()
    }
}

fn wake_all(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.whole.get().is_none() {
            let held: usize = {
                let state = self.state.lock();
                state.blocks.iter().map(|block| block.bytes.len()).sum()
            };
            self.budget.give_back(held);
        }
    }
}
