//! A client's connection as hyper gets it: one request after the other, and on the side what their bytes tell.
//! Those that are answered by [`Express`] it does not get, nor is it asked about them.

use super::express::Express;
use super::refusal::Refusal;
use super::seen::{Seen, Turn};
use super::stream::{Breakable, WRITE_BYTES_MAX, poll_write_gathered};
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most of a request that is looked at on the way past hyper.
const REQUEST_BYTES: usize = 8 << 10;

/// How much is read at once of what a client sends before it has its answer,
const AHEAD_BYTES: usize = 1 << 10;

/// and how much at most, or a little more.
const AHEAD_BYTES_MAX: usize = 16 << 10;

/// How much is read at once that is for nobody.
const DISCARDED_BYTES: usize = 16 << 10;

thread_local! {
    /// The request that is being read past hyper, for the time of a read.
    static REQUEST: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(REQUEST_BYTES));
}

/// A stream that is read along by a [`Scanner`](super::framing::Scanner), and by hyper or [`Express`].
#[derive(Debug)]
struct Wire<S: Breakable> {
    stream: S,
    seen: Arc<Seen>,
    /// What is left of a refusal that is being sent instead of hyper's.
    refusal: Bytes,
    /// Whether hyper has nothing more to write: the last that it did was to flush.
    is_at_rest: bool,
    express: Express,
    hyper: Hyper,
    /// Whether all that the client sends has been read.
    has_client_ended: bool,
    /// Whether the client has been told that nothing more is sent.
    is_shut: bool,
    /// What has been read before its time: what comes behind the request that is being answered, or what hyper is to read next.
    ahead: BytesMut,
}

/// What hyper waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hyper {
    /// The stream, if for anything.
    Stream,
    /// The next request, without watching the stream, which the way past it does.
    Aside,
    /// Its turn: what there is to read is not for it yet.
    Turn,
    /// The same, and nobody has looked whether there is anything.
    TurnUnseen,
}

/// A connection's wire as hyper gets it. Requests that are answered by [`Express`] do not come through here.
#[derive(Debug)]
pub(super) struct HyperEnd<S: Breakable>(Arc<Mutex<Wire<S>>>);

/// The same wire for what goes past hyper. Whatever a connection's task is woken for is first looked at here: most of it is nothing for
/// hyper, which would read, flush and look at the clock.
#[derive(Debug)]
pub(super) struct ExpressEnd<S: Breakable>(Arc<Mutex<Wire<S>>>);

/// Both ends of a connection's wire. The lock is held for one poll of either, and never waited for: one task has both.
pub(super) fn ends<S: Breakable>(
    stream: S,
    seen: Arc<Seen>,
    express: Express,
) -> (HyperEnd<S>, ExpressEnd<S>) {
    let wire = Arc::new(Mutex::new(Wire {
        stream,
        seen,
        refusal: Bytes::new(),
        is_at_rest: true,
        express,
        hyper: Hyper::Stream,
        has_client_ended: false,
        is_shut: false,
        ahead: BytesMut::new(),
    }));
    (HyperEnd(Arc::clone(&wire)), ExpressEnd(wire))
}

impl<S: Breakable> ExpressEnd<S> {
    /// Polls hyper's connection, and what goes past it: hyper only when something is for it.
    pub(super) fn poll_beside<C, E>(
        &self,
        mut connection: Pin<&mut C>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), E>>
    where
        C: Future<Output = Result<(), E>>,
        E: From<io::Error>,
    {
        loop {
            ready!(self.0.lock().poll_aside(context))?;
            let polled = connection.as_mut().poll(context);
            if polled.is_ready() || !self.0.lock().has_more() {
                return polled;
            }
        }
    }

    /// All requests that follow what is under way are hyper's.
    pub(super) fn retire(&self) {
        self.0.lock().express.retire();
    }

    /// Whether all that the client sends has been read.
    pub(super) fn has_client_ended(&self) -> bool {
        self.0.lock().has_client_ended
    }

    /// Tells the client that nothing more is sent.
    pub(super) fn poll_shutdown(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().poll_shutdown(context)
    }

    /// Reads what the client sends, for nobody. Returns how much that was; 0: it is the end.
    pub(super) fn poll_discard(&self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut wire = self.0.lock();
        let ahead = std::mem::take(&mut wire.ahead);
        if !ahead.is_empty() {
            return Poll::Ready(Ok(ahead.len()));
        }
        let mut room = [const { MaybeUninit::uninit() }; DISCARDED_BYTES];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut wire.stream).poll_read(context, &mut read))?;
        Poll::Ready(Ok(read.filled().len()))
    }
}

impl<S: Breakable> Wire<S> {
    /// Goes on with what hyper knows nothing of. Ready: hyper has its turn.
    fn poll_aside(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.hyper == Hyper::Aside {
            if self.express.poll(Pin::new(&mut self.stream), context)?.is_pending() {
                ready!(self.poll_leaving(context));
            } else if let Some(request) = self.express.unread() {
                let later = std::mem::replace(&mut self.ahead, BytesMut::from(&*request));
                self.ahead.unsplit(later);
                self.hyper = Hyper::Stream;
            } else if self.express.is_retired() {
                self.hyper = Hyper::Stream;
            } else if self.ahead.is_empty() {
                ready!(self.poll_next(context))?;
            } else if let Some(length) = self.express.take(&self.ahead) {
                self.discard_ahead(length);
            } else {
                self.hyper = Hyper::Stream;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads the next request.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        REQUEST.with_borrow_mut(|request| {
            request.clear();
            if ready!(Pin::new(&mut self.stream).poll_receive(context, request))? == 0 {
                // That the client has left, hyper finds, too.
                self.has_client_ended = true;
                self.express.retire();
            }
            let taken = self.express.take(request);
            if taken.is_none() {
                self.hyper = Hyper::Stream;
            }
            let rest = &request[taken.unwrap_or(0)..];
            if !rest.is_empty() {
                self.ahead.extend_from_slice(rest);
            }
            Poll::Ready(Ok(()))
        })
    }

    /// So many bytes of what has been read before its time are not needed any more.
    fn discard_ahead(&mut self, length: usize) {
        if length < self.ahead.len() {
            self.ahead.advance(length);
        } else {
            // Even if it is empty, it holds what it has room for.
            self.ahead = BytesMut::new();
        }
    }

    /// Looks whether the client leaves while the upstream is waited for.
    fn poll_leaving(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.express.waits() {
            // To fail is to have left, too.
            let _ = ready!(self.poll_ahead(context));
            self.express.abandon();
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Reads what the client sends before it has its answer, and keeps it. Ready: it has left. If it has sent very much, that is not seen.
    fn poll_ahead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.ahead.len() < AHEAD_BYTES_MAX {
            let mut room = [const { MaybeUninit::uninit() }; AHEAD_BYTES];
            let mut read = ReadBuf::uninit(&mut room);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                self.has_client_ended = true;
                return Poll::Ready(Ok(()));
            }
            self.ahead.extend_from_slice(read.filled());
        }
        Poll::Pending
    }

    fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.is_shut = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether there is more to do after hyper has done what it could: it left the next request to the way past it, or was put off, and
    /// is not any more.
    fn has_more(&mut self) -> bool {
        match self.hyper {
            Hyper::Stream => false,
            Hyper::Aside => true,
            Hyper::Turn | Hyper::TurnUnseen => {
                let may_read = self.hyper == Hyper::TurnUnseen || !self.ahead.is_empty();
                let is_next = may_read && self.seen.turn() == Turn::Hyper;
                if is_next {
                    // It is told so once.
                    self.hyper = Hyper::Stream;
                }
                is_next
            }
        }
    }

    /// Reads what hyper may have, which is not more than one request.
    fn poll_turn(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let sound = if self.ahead.is_empty() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
            let bytes = &buffer.filled()[before..];
            if bytes.is_empty() {
                self.has_client_ended = true;
                return Poll::Ready(Ok(()));
            }
            let sound = self.seen.read(bytes);
            self.ahead.extend_from_slice(&bytes[sound..]);
            buffer.set_filled(before + sound);
            sound
        } else {
            let some = self.ahead.len().min(buffer.remaining());
            if some == 0 {
                return Poll::Ready(Ok(()));
            }
            let sound = self.seen.read(&self.ahead[..some]);
            buffer.put_slice(&self.ahead[..sound]);
            self.discard_ahead(sound);
            sound
        };
        // Nothing read at all would be taken for an orderly end.
        Poll::Ready(if sound == 0 { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) })
    }
}

impl<S: Breakable> Drop for Wire<S> {
    fn drop(&mut self) {
        if self.seen.is_broken() {
            self.stream.break_off();
        }
    }
}

impl<S: Breakable> AsyncRead for HyperEnd<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut wire = self.0.lock();
        let wire = &mut *wire;
        if wire.seen.is_too_late() {
            // Where there is no room for it the client merely sees the end.
            let _ = Pin::new(&mut wire.stream).poll_write(context, &Refusal::HeadTooSlow.answer());
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if wire.express.is_over() {
            // As if the client had nothing more to say.
            return Poll::Ready(Ok(()));
        }
        wire.hyper = Hyper::Stream;
        match wire.seen.turn() {
            Turn::Nobody => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            Turn::Later => {
                wire.hyper = Hyper::Turn;
                wire.poll_ahead(context)
            }
            Turn::AtHand => {
                wire.hyper = Hyper::TurnUnseen;
                Poll::Pending
            }
            Turn::Hyper if wire.ahead.is_empty() && wire.is_at_rest && wire.express.may_take() => {
                wire.hyper = Hyper::Aside;
                Poll::Pending
            }
            Turn::Hyper => wire.poll_turn(context, buffer),
        }
    }
}

impl<S: Breakable> AsyncWrite for HyperEnd<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut wire = self.0.lock();
        let wire = &mut *wire;
        wire.is_at_rest = false;
        if wire.refusal.is_empty() {
            match Refusal::in_place_of(bytes).filter(|_| wire.seen.may_be_refusing()) {
                Some(refusal) => {
                    wire.express.refused(refusal);
                    wire.refusal = refusal.answer();
                }
                None => return Pin::new(&mut wire.stream).poll_write(context, bytes),
            }
        }
        // Until all of it is written, hyper comes with the same bytes again.
        while !wire.refusal.is_empty() {
            let rest = wire.refusal.clone();
            let written = ready!(Pin::new(&mut wire.stream).poll_write(context, &rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            wire.refusal.advance(written);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.0.lock();
        ready!(Pin::new(&mut wire.stream).poll_flush(context))?;
        wire.is_at_rest = true;
        if wire.express.rests() {
            wire.seen.end();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.0.lock();
        if wire.seen.is_broken() {
            // An orderly end would come before the break.
            return Poll::Ready(Ok(()));
        }
        wire.poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.lock().stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = slices {
            return self.poll_write(context, &only[..only.len().min(WRITE_BYTES_MAX)]);
        }
        let mut wire = self.0.lock();
        wire.is_at_rest = false;
        poll_write_gathered(Pin::new(&mut wire.stream), context, slices)
    }
}
