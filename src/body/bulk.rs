//! A finished body that is large, or not in one piece, and that is counted wherever it is.
//!
//! In the store the store counts it. When it has left the store, or has never been there, it *lingers* with those who read it. Of
//! bodies that linger there may be so many bytes: beyond that they are withdrawn, and their readers break off.

use super::pages::Place;
use super::whole::slice_at;
use super::{Block, Broken, Budget};
use crate::sync::{BLOCK_BYTES, RwLock};
use bytes::Bytes;
use http::HeaderMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Bulk {
    /// Guards what is kept and who counts it. Read for each piece that is read or sent, for a system call at most; written when the body
    /// comes into the store, leaves it or is withdrawn. Never held across an await.
    state: RwLock<State>,
    length: u64,
    trailers: Option<Box<HeaderMap>>,
    budget: Arc<Budget>,
}

#[derive(Debug)]
struct State {
    /// `None`: it was withdrawn.
    content: Option<Content>,
    counted: Counted,
}

#[derive(Debug)]
pub(super) enum Content {
    Blocks(Box<[Block]>),
    Pages(Place),
}

/// Who counts a body's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    /// The budget, among those in flight: it has been finished just now.
    InFlight,
    /// The store, which has so many handles on it; without any, nobody.
    Stored(usize),
    /// The budget, among those that linger.
    Lingering,
}

/// What is smaller does not linger: it is no more than the buffers of a connection hold for each answer.
const LINGERING_BYTES_MIN: u64 = BLOCK_BYTES.div_ceil(8) as u64;

/// The most that is copied from pages at once.
const COPIED_BYTES: u64 = 64 << 10;

impl Bulk {
    /// A body whose bytes are counted among those in flight.
    pub(super) fn new(content: Content, trailers: Option<HeaderMap>, budget: &Arc<Budget>) -> Arc<Self> {
        let length = match &content {
            Content::Blocks(blocks) => blocks.last().map_or(0, Block::end),
            Content::Pages(place) => place.length(),
        };
        Arc::new(Self {
            state: RwLock::new(State { content: Some(content), counted: Counted::InFlight }),
            length,
            trailers: trailers.map(Box::new),
            budget: Arc::clone(budget),
        })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_deref()
    }

    pub(super) fn is_withdrawn(&self) -> bool {
        self.state.read().content.is_none()
    }

    /// What one block holds from `position` on, up to `until`; of pages, a copy.
    pub(super) fn slice(&self, position: u64, until: u64) -> Result<Option<Bytes>, Broken> {
        match self.state.read().content.as_ref().ok_or(Broken::Withdrawn)? {
            Content::Blocks(blocks) => Ok(slice_at(|index| blocks.get(index), blocks.len(), position, until)),
            Content::Pages(_) if position >= until => Ok(None),
            Content::Pages(place) => {
                let most = usize::try_from((until - position).min(COPIED_BYTES)).unwrap_or_default();
                place.read(position, most).map(Some).map_err(|_| Broken::Unreadable)
            }
        }
    }

    /// The piece with this number: a block, or all of what lies in pages.
    pub(super) fn piece(self: &Arc<Self>, index: usize) -> Option<Result<super::Piece, Broken>> {
        match self.state.read().content.as_ref() {
            None => Some(Err(Broken::Withdrawn)),
            Some(Content::Blocks(blocks)) => {
                blocks.get(index).map(|block| Ok(super::Piece::Bytes(block.bytes.clone())))
            }
            Some(Content::Pages(_)) => (index == 0).then(|| Ok(super::Piece::Span(Span(Arc::clone(self))))),
        }
    }

    /// The store has a handle on it.
    pub(super) fn shelve(&self) {
        let before = {
            let mut state = self.state.write();
            let before = state.counted;
            state.counted =
                Counted::Stored(if let Counted::Stored(handles) = before { handles + 1 } else { 1 });
            before
        };
        match before {
            Counted::InFlight => self.budget.give_back(self.bytes()),
            Counted::Lingering => self.budget.linger_no_more(self.bytes()),
            Counted::Stored(_) => {}
        }
    }

    /// The store gives a handle on it up. After the last one it lingers, if somebody reads it.
    pub(super) fn unshelve(self: &Arc<Self>) {
        let is_read = Arc::strong_count(self) > 1;
        self.linger_if(|state| {
            let Counted::Stored(handles) = &mut state.counted else { return false };
            *handles -= 1;
            *handles == 0 && is_read && self.length >= LINGERING_BYTES_MIN
        });
    }

    /// It is finished, and if the store does not have it by now, it will not.
    pub(super) fn settle(self: &Arc<Self>) {
        let is_small = self.length < LINGERING_BYTES_MIN;
        let mut is_in_flight = false;
        self.linger_if(|state| {
            is_in_flight = state.counted == Counted::InFlight;
            if is_in_flight {
                state.counted = Counted::Stored(0);
            }
            is_in_flight && !is_small
        });
        if is_in_flight {
            self.budget.give_back(self.bytes());
        }
    }

    fn linger_if(self: &Arc<Self>, lingers: impl FnOnce(&mut State) -> bool) {
        self.budget.linger(self.bytes());
        let lingers = {
            let mut state = self.state.write();
            let lingers = lingers(&mut state) && state.content.is_some();
            if lingers {
                state.counted = Counted::Lingering;
            }
            lingers
        };
        if lingers {
            self.budget.lingers(self);
        } else {
            self.budget.linger_no_more(self.bytes());
        }
    }

    /// Gives back its memory, if it lingers: whoever reads it breaks off. Returns whether it did.
    pub(super) fn withdraw(&self) -> bool {
        let content = {
            let mut state = self.state.write();
            if state.counted != Counted::Lingering {
                return false;
            }
            state.counted = Counted::Stored(0);
            state.content.take()
        };
        self.budget.linger_no_more(self.bytes());
        content.is_some()
    }

    fn bytes(&self) -> usize {
        usize::try_from(self.length).unwrap_or(usize::MAX)
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        let counted = self.state.read().counted;
        match counted {
            Counted::InFlight => self.budget.give_back(self.bytes()),
            Counted::Lingering => self.budget.linger_no_more(self.bytes()),
            Counted::Stored(_) => {}
        }
    }
}

/// A finished body. When it is dropped, the store should have the body, if it is to have it: from then on the body lingers otherwise.
#[derive(Debug)]
pub struct Finished(pub(super) Option<Arc<Bulk>>);

impl Drop for Finished {
    fn drop(&mut self) {
        if let Some(bulk) = self.0.take() {
            bulk.settle();
        }
    }
}

/// A body in pages of a file.
#[derive(Debug)]
pub struct Span(Arc<Bulk>);

impl Span {
    /// Its size in bytes.
    pub fn length(&self) -> u64 {
        self.0.length
    }

    /// Sends from the file that it is in. What sends is told where in the file the byte with this offset is, and must not wait.
    ///
    /// # Errors
    /// What it says, or that the body was withdrawn.
    pub fn send<T>(
        &self,
        offset: u64,
        send: impl FnOnce(BorrowedFd<'_>, u64) -> io::Result<T>,
    ) -> io::Result<T> {
        self.with_place(|place| {
            let (file, at) = place.at(offset);
            send(file, at)
        })
    }

    /// A copy of the bytes from an offset on, so many at most.
    ///
    /// # Errors
    /// What the operating system says, or that the body was withdrawn.
    pub fn read(&self, offset: u64, most: usize) -> io::Result<Bytes> {
        self.with_place(|place| place.read(offset, most))
    }

    fn with_place<T>(&self, with: impl FnOnce(&Place) -> io::Result<T>) -> io::Result<T> {
        // Held meanwhile: from pages that have been given back, zeros would be sent.
        match &self.0.state.read().content {
            Some(Content::Pages(place)) => with(place),
            Some(Content::Blocks(_)) | None => Err(io::Error::other(Broken::Withdrawn)),
        }
    }
}
