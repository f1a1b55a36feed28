//! The reading end of a shared body.

use super::whole::{Whole, slice_at};
use super::{Broken, Keep, Progress, Shared, State, wake_all};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// One reader of a shared body: an [`http_body::Body`] that yields what was written, in order, from its offset.
#[derive(Debug)]
pub struct Reader {
    source: Source,
    position: u64,
    /// First offset that is not wanted.
    until: u64,
    done: bool,
}

#[derive(Debug)]
enum Source {
    /// An unfinished body, from a place among those that follow it.
    Following { shared: Arc<Shared>, seat: usize },
    /// A body that was finished when the reader came: no lock is ever taken.
    Whole(Whole),
}

impl Source {
    fn whole(&self) -> Option<&Whole> {
        match self {
            Self::Following { shared, .. } => shared.whole.get(),
            Self::Whole(whole) => Some(whole),
        }
    }
}

impl Reader {
    pub(super) fn following(shared: Arc<Shared>, seat: usize, position: u64, until: u64) -> Self {
        Self { source: Source::Following { shared, seat }, position, until, done: false }
    }

    pub(super) fn of_whole(whole: Whole, position: u64, until: u64) -> Self {
        Self { source: Source::Whole(whole), position, until, done: false }
    }

    /// Trailers belong to a reader without an end of its own: a range ends with its last byte.
    fn wants_trailers(&self) -> bool {
        self.until == u64::MAX
    }

    fn poll_chunk(&mut self, context: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.done {
            return Poll::Ready(None);
        }
        if let Some(whole) = self.source.whole() {
            let until = self.until.min(whole.length());
            if let Some(bytes) = whole.slice(self.position, until).inspect_err(|_| self.done = true)? {
                self.position += bytes.len() as u64;
                self.done = self.position >= until && (whole.trailers().is_none() || !self.wants_trailers());
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            self.done = true;
            let trailers = whole.trailers().filter(|_| self.wants_trailers());
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers.clone()))));
        }
        self.poll_following(context)
    }

    fn poll_following(&mut self, context: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Source::Following { shared, seat } = &self.source else { return Poll::Ready(None) };
        let seat = *seat;
        let (next, released, writer) = {
            let mut state = shared.state.lock();
            let next = state.next(seat, self.position, self.until, context);
            let (released, writer) = match (&next, state.keep) {
                (Next::Bytes(_), Keep::Window { .. }) => (state.trim(), state.writer.take()),
                _ => (0, None),
            };
            (next, released, writer)
        };
        shared.budget.give_back(released);
        wake_all(writer.into_iter().collect());
        match next {
            Next::Bytes(bytes) => {
                self.position += bytes.len() as u64;
                self.done = self.position >= self.until;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Next::NotYet => Poll::Pending,
            Next::Moved => self.poll_chunk(context),
            Next::End(trailers) => {
                self.done = true;
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Next::Broken(broken) => {
                self.done = true;
                Poll::Ready(Some(Err(broken)))
            }
        }
    }
}

/// What an unfinished body has for a reader.
enum Next {
    Bytes(Bytes),
    /// Nothing; the seat's waker will be called.
    NotYet,
    /// The body was finished just now: what there is, is in [`Shared::whole`].
    Moved,
    End(Option<HeaderMap>),
    Broken(Broken),
}

impl State {
    fn next(&mut self, seat: usize, position: u64, until: u64, context: &Context<'_>) -> Next {
        if self.seats[seat].cut_off {
            return Next::Broken(Broken::Stalled);
        }
        if position >= until {
            return Next::End(None);
        }
        let within = until.min(self.length);
        if let Some(bytes) = slice_at(|index| self.blocks.get(index), self.blocks.len(), position, within) {
            self.seats[seat].position = position + bytes.len() as u64;
            return Next::Bytes(bytes);
        }
        match (&self.progress, self.keep) {
            (Progress::Filling, _) => {
                self.seats[seat].waker = Some(context.waker().clone());
                Next::NotYet
            }
            (Progress::Broken, _) => Next::Broken(Broken::Upstream),
            (Progress::Finished(_), Keep::Whole) => Next::Moved,
            (Progress::Finished(trailers), Keep::Window { .. }) => Next::End(trailers.clone()),
        }
    }
}

impl http_body::Body for Reader {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.poll_chunk(context)
    }

    fn is_end_stream(&self) -> bool {
        self.done
            || self.source.whole().is_some_and(|whole| {
                self.position >= self.until.min(whole.length())
                    && (whole.trailers().is_none() || !self.wants_trailers())
            })
    }

    fn size_hint(&self) -> SizeHint {
        match self.source.whole() {
            Some(whole) if whole.trailers().is_none() || !self.wants_trailers() => {
                SizeHint::with_exact(self.until.min(whole.length()).saturating_sub(self.position))
            }
            _ => SizeHint::default(),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let Source::Following { shared, seat } = &self.source else { return };
        let (waker, released) = {
            let mut state = shared.state.lock();
            state.seats.remove(*seat);
            let released = state.trim();
            (state.writer.take(), released)
        };
        shared.budget.give_back(released);
        wake_all(waker.into_iter().collect());
    }
}
