//! A finished body that was kept whole.

use super::bulk::{Bulk, Content, Span};
use super::{Block, Broken, Budget};
use bytes::Bytes;
use http::HeaderMap;
use std::collections::VecDeque;
use std::sync::Arc;

/// A finished body that was kept whole: a cheap handle.
#[derive(Debug, Clone)]
pub(super) enum Whole {
    /// In one block that is not large, as most are, without trailers. Never empty: its place in memory tells it from every other.
    Single(Bytes),
    /// Any other.
    Bulk(Arc<Bulk>),
}

/// What is larger is counted, wherever it is. What is not is no more than a connection's buffers hold for each answer.
const SINGLE_BYTES_MAX: usize = 32 << 10;

impl Whole {
    /// What was written, which the budget counts among what is in flight.
    pub(super) fn new(
        mut blocks: VecDeque<Block>,
        trailers: Option<HeaderMap>,
        budget: &Arc<Budget>,
    ) -> Self {
        match (blocks.pop_front(), blocks.is_empty(), trailers) {
            (Some(only), true, None) if (1..SINGLE_BYTES_MAX).contains(&only.bytes.len()) => {
                budget.give_back(only.bytes.len());
                Self::Single(only.bytes)
            }
            (first, _, trailers) => {
                let blocks = first.into_iter().chain(blocks).collect();
                Self::Bulk(Bulk::new(Content::Blocks(blocks), trailers, budget))
            }
        }
    }

    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Single(bytes) => bytes.len() as u64,
            Self::Bulk(bulk) => bulk.length(),
        }
    }

    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        match self {
            Self::Single(_) => None,
            Self::Bulk(bulk) => bulk.trailers(),
        }
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Single(own), Self::Single(other)) => {
                (own.as_ptr(), own.len()) == (other.as_ptr(), other.len())
            }
            (Self::Bulk(own), Self::Bulk(other)) => Arc::ptr_eq(own, other),
            (Self::Single(_) | Self::Bulk(_), _) => false,
        }
    }

    /// What one block holds from `position` on, up to `until`; of pages, a copy.
    pub(super) fn slice(&self, position: u64, until: u64) -> Result<Option<Bytes>, Broken> {
        match self {
            Self::Single(bytes) => Ok(slice_of(bytes, position, until)),
            Self::Bulk(bulk) => bulk.slice(position, until),
        }
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
    Span(Span),
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
    type Item = Result<Piece, Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.next;
        self.next += 1;
        match &self.whole {
            Whole::Single(bytes) => (index == 0).then(|| Ok(Piece::Bytes(bytes.clone()))),
            Whole::Bulk(bulk) => bulk.piece(index),
        }
    }
}
