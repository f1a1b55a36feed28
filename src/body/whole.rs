//! A finished body that was kept whole.

use super::{Block, Span};
use bytes::Bytes;
use http::HeaderMap;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

/// A finished body that was kept whole: a cheap handle.
#[derive(Debug, Clone)]
pub(super) enum Whole {
    /// In one block, as most are, without trailers. Never empty: its place in memory tells it from every other.
    Single(Bytes),
    /// In pages of a file, without trailers.
    Paged(Arc<Span>),
    /// Any other.
    Composed(Arc<Composed>),
}

#[derive(Debug)]
pub(super) struct Composed {
    blocks: Box<[Block]>,
    length: u64,
    trailers: Option<HeaderMap>,
}

/// The most that is copied from pages at once.
const COPIED_BYTES: u64 = 64 << 10;

impl Whole {
    pub(super) fn new(mut blocks: VecDeque<Block>, trailers: Option<HeaderMap>) -> Self {
        match (blocks.pop_front(), blocks.is_empty(), trailers) {
            (Some(only), true, None) if !only.bytes.is_empty() => Self::Single(only.bytes),
            (first, _, trailers) => {
                let blocks: Box<[Block]> = first.into_iter().chain(blocks).collect();
                let length = blocks.last().map_or(0, Block::end);
                Self::Composed(Arc::new(Composed { blocks, length, trailers }))
            }
        }
    }

    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Single(bytes) => bytes.len() as u64,
            Self::Paged(span) => span.length(),
            Self::Composed(composed) => composed.length,
        }
    }

    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        match self {
            Self::Single(_) | Self::Paged(_) => None,
            Self::Composed(composed) => composed.trailers.as_ref(),
        }
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Single(own), Self::Single(other)) => {
                (own.as_ptr(), own.len()) == (other.as_ptr(), other.len())
            }
            (Self::Composed(own), Self::Composed(other)) => Arc::ptr_eq(own, other),
            (Self::Paged(own), Self::Paged(other)) => Arc::ptr_eq(own, other),
            (Self::Single(_) | Self::Paged(_) | Self::Composed(_), _) => false,
        }
    }

    /// What one block holds from `position` on, up to `until`; of pages, a copy.
    pub(super) fn slice(&self, position: u64, until: u64) -> io::Result<Option<Bytes>> {
        Ok(match self {
            Self::Single(bytes) => slice_of(bytes, position, until),
            Self::Paged(_) if position >= until => None,
            Self::Paged(span) => {
                let most = usize::try_from((until - position).min(COPIED_BYTES)).unwrap_or_default();
                Some(span.read(position, most)?)
            }
            Self::Composed(composed) => {
                slice_at(|index| composed.blocks.get(index), composed.blocks.len(), position, until)
            }
        })
    }
}

/// Finds the block that holds the byte at `position`, and returns what it holds from there on.
pub(super) fn slice_at<'a>(
    blocks: impl Fn(usize) -> Option<&'a Block>,
    count: usize,
    position: u64,
    until: u64,
) -> Option<Bytes> {
    if position >= until {
        return None;
    }
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = usize::midpoint(low, high);
        if blocks(middle)?.end() <= position {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let block = blocks(low)?;
    slice_of(&block.bytes, position.checked_sub(block.offset)?, until.checked_sub(block.offset)?)
}

/// As much of the bytes as lies between the two offsets into them.
fn slice_of(bytes: &Bytes, position: u64, until: u64) -> Option<Bytes> {
    let skip = usize::try_from(position).ok()?;
    let stop = usize::try_from(until.min(bytes.len() as u64)).ok()?;
    (skip < stop).then(|| bytes.slice(skip..stop))
}

/// A finished body, piece by piece.
#[derive(Debug)]
pub struct Pieces {
    whole: Whole,
    next: usize,
}

/// A part of a finished body, as it is kept.
#[derive(Debug)]
pub enum Piece {
    /// Bytes in memory.
    Bytes(Bytes),
    /// All of a body that is kept in pages of a file.
    Span(Arc<Span>),
}

impl Piece {
    /// Its size in bytes.
    pub fn length(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Span(span) => usize::try_from(span.length()).unwrap_or(usize::MAX),
        }
    }
}

impl Pieces {
    pub(super) fn of(whole: &Whole) -> Self {
        Self { whole: whole.clone(), next: 0 }
    }

    /// Bytes of the whole body.
    pub fn length(&self) -> u64 {
        self.whole.length()
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let index = self.next;
        self.next += 1;
        match &self.whole {
            Whole::Single(bytes) => (index == 0).then(|| Piece::Bytes(bytes.clone())),
            Whole::Composed(composed) => {
                composed.blocks.get(index).map(|block| Piece::Bytes(block.bytes.clone()))
            }
            Whole::Paged(span) => (index == 0).then(|| Piece::Span(Arc::clone(span))),
        }
    }
}
