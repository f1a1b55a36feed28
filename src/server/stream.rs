//! What connections are made of: bytes that are read and written in the ways that cost least, and that can break off.

use crate::body::Span;
#[cfg(target_os = "linux")]
use crate::socket;
use socket2::SockRef;
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::io::poll_read_buf;

/// A head and a body that are together no larger are copied into one write, which costs less than a gathering one.
const GATHERED_BYTES_MAX: usize = 8 << 10;

/// The most that is written at once. The kernel takes four times as much, but then its buffers outgrow the processor's
/// caches: a body of 128 KiB costs twice as much in one write as in four.
pub(super) const WRITE_BYTES_MAX: usize = 32 << 10;

/// The same for what is sent without copying: a body of 128 KiB costs twice as much in one piece as in three.
const SENT_BYTES_MAX: usize = 48 << 10;

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

    /// Reads into what is left of the buffer's capacity, which must not be nothing. Returns how much; 0 is the end.
    fn poll_receive(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        poll_read_buf(self, context, buffer)
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

    #[cfg(target_os = "linux")]
    fn poll_send(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
        more_follows: bool,
    ) -> Poll<io::Result<usize>> {
        socket::poll_send(&self, context, bytes, more_follows)
    }

    #[cfg(target_os = "linux")]
    fn poll_receive(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        socket::poll_receive(&self, context, buffer)
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
        socket::poll_write_io(&self, context, || {
            span.send(offset, |file, mut at| Ok(rustix::fs::sendfile(&*self, file, Some(&mut at), most)?))
        })
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
