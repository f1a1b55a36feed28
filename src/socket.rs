//! Connections over TCP, read and written past the C library.
//!
//! Its ways to send and to receive are ones that a thread can be cancelled in, which nobody does here. To see to that costs a
//! hundredth of a hit, each time.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

#[cfg(target_os = "linux")]
pub(crate) use linux::{poll_receive, poll_send, poll_write_io};

/// A connection that is written to so. Reading it is tokio's: there is no way past the C library into a buffer of its kind.
#[derive(Debug)]
pub(crate) struct Tcp(pub(crate) TcpStream);

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Tcp {
    #[cfg(target_os = "linux")]
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        poll_send(&self.0, context, bytes, false)
    }

    #[cfg(not(target_os = "linux"))]
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use rustix::buffer::spare_capacity;
    use rustix::net::{RecvFlags, SendFlags};
    use std::io;
    use std::task::{Context, Poll, ready};
    use tokio::io::Interest;
    use tokio::net::TcpStream;

    /// Writes bytes; whether others follow at once may spare a packet. Returns how many were taken.
    pub(crate) fn poll_send(
        stream: &TcpStream,
        context: &mut Context<'_>,
        bytes: &[u8],
        more_follows: bool,
    ) -> Poll<io::Result<usize>> {
        let more = if more_follows { SendFlags::MORE } else { SendFlags::empty() };
        poll_write_io(stream, context, || Ok(rustix::net::send(stream, bytes, more | SendFlags::NOSIGNAL)?))
    }

    /// Writes to a socket in a way that tokio does not know.
    pub(crate) fn poll_write_io(
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

    /// Reads into what is left of the buffer's capacity, which must not be nothing. Returns how much; 0 is the end.
    pub(crate) fn poll_receive(
        stream: &TcpStream,
        context: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(stream.poll_read_ready(context))?;
            let (mut received, room) = (None, buffer.capacity() - buffer.len());
            let tried = stream.try_io(Interest::READABLE, || {
                let (_, bytes) = rustix::net::recv(stream, spare_capacity(buffer), RecvFlags::empty())?;
                received = Some(bytes);
                // Where there was room for more there is no more, as tokio takes it to be: to ask is a system call.
                let is_all = bytes > 0 && bytes < room;
                if is_all { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (received, tried) {
                (Some(bytes), _) => return Poll::Ready(Ok(bytes)),
                (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                (None, _) => {}
            }
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (connected, accepted) = tokio::join!(connecting, listener.accept());
        (connected.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn what_is_sent_is_received_up_to_the_end_however_little_room_there_is() {
        let (one, mut other) = pair().await;
        let sent = poll_fn(|context| poll_send(&one, context, b"all of it", false)).await.unwrap();
        assert_eq!(sent, 9);
        other.write_all(b"and back").await.unwrap();
        drop(other);
        let (mut all, mut piece) = (Vec::new(), Vec::with_capacity(3));
        loop {
            piece.clear();
            match poll_fn(|context| poll_receive(&one, context, &mut piece)).await {
                Ok(0) => break,
                Ok(received) => assert_eq!(received, piece.len()),
                // It was closed with something unread.
                Err(error) => break assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
            }
            all.extend_from_slice(&piece);
        }
        assert_eq!(all, b"and back");
    }

    #[tokio::test]
    async fn whoever_receives_waits_for_what_comes_later() {
        let (one, mut other) = pair().await;
        let mut buffer = Vec::with_capacity(64);
        for word in ["a", "word", "and another"] {
            buffer.clear();
            let receiving = poll_fn(|context| poll_receive(&one, context, &mut buffer));
            let (received, sent) = tokio::join!(receiving, other.write_all(word.as_bytes()));
            sent.unwrap();
            assert_eq!(received.unwrap(), word.len());
            assert_eq!(buffer, word.as_bytes());
        }
    }
}
