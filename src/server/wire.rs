//! A client's connection as hyper gets it: the bytes, and on the side what they tell of the requests in them.
//! Those that are answered by [`Express`] it does not get.

use super::express::Express;
use super::framing::Scanner;
use super::refusal::Refusal;
use crate::body::Span;
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
#[cfg(target_os = "linux")]
use rustix::net::SendFlags;
use socket2::SockRef;
use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

/// A head and a body that are together no larger are copied into one write, which costs less than a gathering one.
const GATHERED_BYTES_MAX: usize = 8 << 10;

/// The most that is written at once. The kernel takes four times as much, but then its buffers outgrow the processor's
/// caches: a body of 128 KiB costs twice as much in one write as in four.
const WRITE_BYTES_MAX: usize = 32 << 10;

/// The same for what is sent without copying: a body of 128 KiB costs twice as much in one piece as in three.
const SENT_BYTES_MAX: usize = 48 << 10;

/// The most that is read of a client that sends another request before it has its answer.
const AHEAD_BYTES: usize = 1 << 10;

/// The most pieces that are written at once.
const SLICES_MAX: usize = 16;

thread_local! {
    /// Where they are copied, for the time of a write: one for each thread and not for each connection.
    static GATHERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A stream that can end so that its peer sees that something is missing, and that may know short cuts.
pub trait Breakable: AsyncRead + AsyncWrite + Unpin {
    /// From here on, dropping the stream is a reset and not an orderly end.
    fn break_off(&self);

    /// Writes bytes; whether others follow at once may spare a packet.
    fn poll_send(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
        _more_follows: bool,
    ) -> Poll<io::Result<usize>> {
        self.poll_write(context, bytes)
    }

    /// Writes from a stored body, from this offset on.
    fn poll_write_span(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        span: &Span,
        offset: u64,
    ) -> Poll<io::Result<usize>> {
        let bytes = span.read(offset, WRITE_BYTES_MAX)?;
        self.poll_write(context, &bytes)
    }
}

impl Breakable for TcpStream {
    fn break_off(&self) {
        // Where it fails, the end is orderly: the connection is closed all the same.
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    // The C library's way to send is one that a thread can be cancelled in, which costs 1 % of a hit.
    #[cfg(target_os = "linux")]
    fn poll_send(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
        more_follows: bool,
    ) -> Poll<io::Result<usize>> {
        let more = if more_follows { SendFlags::MORE } else { SendFlags::empty() };
        poll_io(&self, context, || Ok(rustix::net::send(&*self, bytes, more | SendFlags::NOSIGNAL)?))
    }

    #[cfg(target_os = "linux")]
    fn poll_write_span(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        span: &Span,
        offset: u64,
    ) -> Poll<io::Result<usize>> {
        let rest = usize::try_from(span.length() - offset).unwrap_or(usize::MAX);
        let most = rest.min(SENT_BYTES_MAX);
        poll_io(&self, context, || {
            span.send(offset, |file, mut at| Ok(rustix::fs::sendfile(&*self, file, Some(&mut at), most)?))
        })
    }
}

/// Writes to a socket in a way that tokio does not know.
#[cfg(target_os = "linux")]
fn poll_io(
    stream: &TcpStream,
    context: &mut Context<'_>,
    mut write: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(context))?;
        match stream.try_io(Interest::WRITABLE, &mut write) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => return Poll::Ready(written),
        }
    }
}

impl<S: Breakable> Breakable for TlsStream<S> {
    fn break_off(&self) {
        self.get_ref().0.break_off();
    }
}

impl Breakable for DuplexStream {
    fn break_off(&self) {}
}

/// A stream that is read along by a [`Scanner`].
#[derive(Debug)]
pub(super) struct Wire<S: Breakable> {
    stream: S,
    seen: Arc<Seen>,
    /// What is left of a refusal that is being sent instead of hyper's.
    refusal: Bytes,
    /// Whether hyper has nothing more to write: the last that it did was to flush.
    is_at_rest: bool,
    /// Whether what is left to read is for nobody, because a body had a flaw.
    is_cut: bool,
    express: Express,
    /// Whether hyper, which flushes after each read, need not be told once more that a request it knows nothing of goes on.
    has_looked: bool,
    /// What has been read while a request was upstream that hyper does not see. It is to be read next.
    ahead: BytesMut,
}

/// What the bytes of a connection have told so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Guards what the connection's reads write and its requests read. Held for a scan of one read, or while an answer at hand is
    /// looked for; never across an await.
    state: Mutex<State>,
    /// Tells that a head has begun and not ended.
    head_begun: Notify,
    /// Whether the next read is to fail, because a head took too long.
    is_too_late: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    scanner: Scanner,
    /// Since when a head has been incomplete.
    in_head_since: Option<Instant>,
    /// Whether the last answer stopped before its end.
    is_broken: bool,
}

/// The right to read the request that comes next past the scanner, where it has no body.
#[derive(Debug)]
pub(super) struct Unread<'a>(MutexGuard<'a, State>);

impl Unread<'_> {
    /// It has been read, and is answered.
    pub(super) fn skip(mut self) {
        self.0.scanner.skip_request();
    }
}

impl Seen {
    /// Whether the request with this number, from 1, must be refused.
    pub(super) fn refuses(&self, request: u64) -> bool {
        self.state.lock().scanner.refuses(request)
    }

    /// Since when a head has been incomplete, if one is.
    pub(super) fn in_head_since(&self) -> Option<Instant> {
        self.state.lock().in_head_since
    }

    /// Waits until a head has begun without ending. Cancel-safe.
    pub(super) async fn head_begun(&self) {
        self.head_begun.notified().await;
    }

    /// The head took too long: the next read says so to the client and fails.
    pub(super) fn give_up(&self) {
        self.is_too_late.store(true, Ordering::Relaxed);
    }

    /// An answer stopped before its end. Over HTTP/1.0 an orderly end of the connection would be the end of the body.
    pub(super) fn broke_off(&self) {
        self.state.lock().is_broken = true;
    }

    fn is_broken(&self) -> bool {
        self.state.lock().is_broken
    }

    /// The right to read the request with this number, if it begins with the next byte.
    pub(super) fn unread(&self, number: u64) -> Option<Unread<'_>> {
        let state = self.state.lock();
        (state.scanner.next_request() == Some(number)).then_some(Unread(state))
    }

    /// Takes what was read. Returns how much of it may be handed on.
    fn read(&self, bytes: &[u8]) -> usize {
        let mut state = self.state.lock();
        let sound = state.scanner.read(bytes);
        if !state.scanner.is_in_head() {
            state.in_head_since = None;
        } else if state.in_head_since.is_none() {
            state.in_head_since = Some(Instant::now());
            self.head_begun.notify_one();
        }
        sound
    }
}

impl<S: Breakable> Wire<S> {
    pub(super) fn new(stream: S, seen: Arc<Seen>, express: Express) -> Self {
        Self {
            stream,
            seen,
            refusal: Bytes::new(),
            is_at_rest: true,
            is_cut: false,
            express,
            has_looked: false,
            ahead: BytesMut::new(),
        }
    }

    /// Goes on with a request that hyper knows nothing of.
    fn poll_express(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.express.poll(Pin::new(&mut self.stream), context)
    }

    /// Looks whether the client leaves while the upstream is waited for. What it sends meanwhile is kept until that is over, and once there
    /// is some of it, its leaving is not seen.
    fn poll_leaving(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.express.waits() || !self.ahead.is_empty() {
            return Poll::Pending;
        }
        let mut room = [const { MaybeUninit::uninit() }; AHEAD_BYTES];
        let mut read = ReadBuf::uninit(&mut room);
        let ended = ready!(Pin::new(&mut self.stream).poll_read(context, &mut read));
        if ended.is_ok() && !read.filled().is_empty() {
            self.ahead.extend_from_slice(read.filled());
            return Poll::Pending;
        }
        self.express.abandon();
        Poll::Ready(ended)
    }
}

impl<S: Breakable> Drop for Wire<S> {
    fn drop(&mut self) {
        if self.seen.is_broken() {
            self.stream.break_off();
        }
    }
}

impl<S: Breakable> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.seen.is_too_late.load(Ordering::Relaxed) {
            // Where there is no room for it the client merely sees the end.
            let _ = Pin::new(&mut self.stream).poll_write(context, &Refusal::HeadTooSlow.answer());
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if self.is_cut {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let this = &mut *self;
        loop {
            if this.poll_express(context)?.is_pending() {
                this.has_looked = true;
                return this.poll_leaving(context);
            }
            if this.express.is_over() {
                // As if the client had nothing more to say.
                return Poll::Ready(Ok(()));
            }
            let unread = this.express.unread();
            let is_hypers = unread.is_some();
            if let Some(request) = unread {
                let later = std::mem::replace(&mut this.ahead, BytesMut::from(&*request));
                this.ahead.unsplit(later);
            }
            let before = buffer.filled().len();
            if this.ahead.is_empty() {
                ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
            } else {
                let some = this.ahead.len().min(buffer.remaining());
                buffer.put_slice(&this.ahead.split_to(some));
            }
            let bytes = &buffer.filled()[before..];
            if this.is_at_rest && !is_hypers && this.express.takes(bytes) {
                buffer.set_filled(before);
                continue;
            }
            let (read, sound) = (bytes.len(), this.seen.read(bytes));
            this.is_cut = sound < read;
            buffer.set_filled(before + sound);
            // Nothing read at all would be taken for an orderly end.
            let is_flaw_first = sound == 0 && read > 0;
            return Poll::Ready(if is_flaw_first { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) });
        }
    }
}

impl<S: Breakable> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_express(context))?;
        self.is_at_rest = false;
        if self.refusal.is_empty() {
            match Refusal::in_place_of(bytes) {
                Some(refusal) => {
                    self.express.refused(refusal);
                    self.refusal = refusal.answer();
                }
                None => return Pin::new(&mut self.stream).poll_write(context, bytes),
            }
        }
        // Until all of it is written, hyper comes with the same bytes again.
        while !self.refusal.is_empty() {
            let rest = self.refusal.clone();
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.refusal.advance(written);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.has_looked) {
            return Poll::Pending;
        }
        ready!(self.poll_express(context))?;
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.is_at_rest = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_express(context))?;
        if self.seen.is_broken() {
            // An orderly end would come before the break.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_express(context))?;
        self.is_at_rest = false;
        if let [only] = slices {
            return self.poll_write(context, &only[..only.len().min(WRITE_BYTES_MAX)]);
        }
        poll_write_gathered(Pin::new(&mut self.stream), context, slices)
    }
}

/// Writes as much of these as one write should.
pub(super) fn poll_write_gathered<S: Breakable>(
    stream: Pin<&mut S>,
    context: &mut Context<'_>,
    slices: &[io::IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if slices.iter().map(|slice| slice.len()).sum::<usize>() > GATHERED_BYTES_MAX {
        let mut cut = [io::IoSlice::new(&[]); SLICES_MAX];
        let (mut count, mut room) = (0, WRITE_BYTES_MAX);
        for (place, slice) in cut.iter_mut().zip(slices) {
            if room == 0 {
                break;
            }
            *place = io::IoSlice::new(&slice[..slice.len().min(room)]);
            room -= place.len();
            count += 1;
        }
        return stream.poll_write_vectored(context, &cut[..count]);
    }
    GATHERED.with_borrow_mut(|gathered| {
        gathered.clear();
        for slice in slices {
            gathered.extend_from_slice(slice);
        }
        stream.poll_send(context, gathered, false)
    })
}
