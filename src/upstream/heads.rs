//! A second pair of eyes on the framing of HTTP/1 responses.
//!
//! hyper takes some heads whose end another reader may see at a different place: it takes a bare line feed for the end of a
//! line, and empty lines before the status line for nothing. And it takes interim responses for as long as they come. The scanner
//! sees the bytes before hyper does and refuses just these. One request is under way on a connection at a time, so
//! that a scanner that is told of each request need not know where bodies end. It counts what follows a head: whoever knows how
//! long the body is can tell that there is more. Chunks it follows to their end, behind which nothing may come.

use crate::chunked::Chunked;
use parking_lot::Mutex;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// More interim responses before one final response are a flood.
const INTERIM_MAX: usize = 100;

/// What is wrong with the head of a response.
pub(super) type Flaw = &'static str;

/// A connection whose responses are read along.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    heads: Arc<Heads>,
}

/// What the bytes of a connection have told of the response that is waited for.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// Guards what the connection's reads write. Held for a scan of one read, never across an await.
    scanner: Mutex<Scanner>,
}

impl Heads {
    /// A request is about to be sent: what comes next is the head of its response.
    pub(super) fn expect(&self) {
        *self.scanner.lock() = Scanner { state: State::Start, ..Scanner::default() };
    }

    /// Whether nothing has come of the response.
    pub(super) fn is_silent(&self) -> bool {
        self.scanner.lock().state == State::Start
    }

    /// Whether more bytes have followed the response's head than its body has.
    pub(super) fn has_surplus(&self, body_bytes: u64) -> bool {
        match self.scanner.lock().state {
            State::Behind(bytes) => bytes > body_bytes,
            // A length is known of a body that has chunks only where there can be none.
            State::Chunked(at) => at != Chunked::Start,
            State::Trailers | State::End => true,
            State::Off | State::Start | State::StatusLine | State::Fields | State::Flawed(_) => false,
        }
    }

    /// What is wrong with the response, if it is that for which the connection broke.
    pub(super) fn flaw(&self) -> Option<Flaw> {
        match self.scanner.lock().state {
            State::Flawed(flaw) => Some(flaw),
            State::Off
            | State::Start
            | State::StatusLine
            | State::Fields
            | State::Behind(_)
            | State::Chunked(_)
            | State::Trailers
            | State::End => None,
        }
    }
}

#[derive(Debug, Default)]
struct Scanner {
    state: State,
    /// The beginning of the status line: as far as the status.
    status: [u8; STATUS_END],
    /// The beginning of the latest field.
    field: [u8; CODING.len()],
    is_chunked: bool,
    /// Bytes of the line that have come.
    line_bytes: usize,
    /// The last of them.
    last: u8,
    interim: usize,
}

/// Where the status ends in `HTTP/1.1 200`.
const STATUS_END: usize = 12;

/// Where this begins a field, chunks follow the head: a response with another coding is refused for its head.
const CODING: &[u8] = b"transfer-encoding:";

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing to see: no response is waited for, or what follows its head is no HTTP.
    #[default]
    Off,
    /// Before the first byte of a head.
    Start,
    StatusLine,
    Fields,
    /// So many bytes have come behind the head.
    Behind(u64),
    Chunked(Chunked),
    Trailers,
    /// Behind the trailers.
    End,
    Flawed(Flaw),
}

impl Scanner {
    fn read(&mut self, mut bytes: &[u8]) -> Result<(), Flaw> {
        while let Some(first) = bytes.first() {
            match self.state {
                State::Off => return Ok(()),
                State::Behind(before) => {
                    self.state = State::Behind(before + bytes.len() as u64);
                    return Ok(());
                }
                State::Chunked(at) => {
                    let Some((next, rest)) = at.read(bytes) else {
                        return self.flawed("a malformed chunk");
                    };
                    self.state = if next == Chunked::Last { State::Trailers } else { State::Chunked(next) };
                    bytes = rest;
                    continue;
                }
                State::End => return self.flawed("more than its last chunk"),
                State::Flawed(flaw) => return Err(flaw),
                State::Start if *first != b'H' => return self.flawed("something before the status line"),
                State::Start => self.state = State::StatusLine,
                State::StatusLine | State::Fields | State::Trailers => {}
            }
            let Some(end) = memchr::memchr(b'\n', bytes) else {
                self.remember(bytes);
                return Ok(());
            };
            self.remember(&bytes[..end]);
            bytes = &bytes[end + 1..];
            if self.last != b'\r' {
                return self.flawed("a line without CRLF at its end");
            }
            self.end_of_line()?;
            (self.line_bytes, self.last) = (0, 0);
        }
        Ok(())
    }

    fn remember(&mut self, piece: &[u8]) {
        let room = match self.state {
            State::StatusLine => self.status.get_mut(self.line_bytes..),
            State::Fields => self.field.get_mut(self.line_bytes..),
            State::Off
            | State::Start
            | State::Behind(_)
            | State::Chunked(_)
            | State::Trailers
            | State::End
            | State::Flawed(_) => None,
        };
        if let Some(room) = room {
            let length = room.len().min(piece.len());
            room[..length].copy_from_slice(&piece[..length]);
        }
        self.line_bytes += piece.len();
        self.last = piece.last().copied().unwrap_or(self.last);
    }

    fn end_of_line(&mut self) -> Result<(), Flaw> {
        let is_empty = self.line_bytes == 1;
        match self.state {
            State::StatusLine => (self.state, self.is_chunked) = (State::Fields, false),
            State::Fields if is_empty => return self.end_of_head(),
            State::Fields => {
                self.is_chunked |= self.line_bytes > CODING.len() && self.field.eq_ignore_ascii_case(CODING);
            }
            State::Trailers if is_empty => self.state = State::End,
            State::Trailers
            | State::Off
            | State::Start
            | State::Behind(_)
            | State::Chunked(_)
            | State::End
            | State::Flawed(_) => {}
        }
        Ok(())
    }

    fn end_of_head(&mut self) -> Result<(), Flaw> {
        self.state = if self.is_interim() {
            self.interim += 1;
            if self.interim > INTERIM_MAX {
                return self.flawed("a flood of interim responses");
            }
            State::Start
        } else if self.status.ends_with(b"101") {
            State::Off
        } else if self.is_chunked {
            State::Chunked(Chunked::Start)
        } else {
            State::Behind(0)
        };
        Ok(())
    }

    /// Whether another head follows this one (RFC 9110 §15.2). A 101 is the last of its connection.
    fn is_interim(&self) -> bool {
        self.status[STATUS_END - 3] == b'1' && !self.status.ends_with(b"101")
    }

    fn flawed(&mut self, flaw: Flaw) -> Result<(), Flaw> {
        self.state = State::Flawed(flaw);
        Err(flaw)
    }
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S, heads: Arc<Heads>) -> Self {
        Self { stream, heads }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = self.heads.scanner.lock().read(&buffer.filled()[before..]);
        Poll::Ready(read.map_err(|flaw| {
            buffer.set_filled(before);
            io::Error::new(io::ErrorKind::InvalidData, flaw)
        }))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
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
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flaw that is found, however the bytes are cut into pieces.
    #[track_caller]
    fn check(bytes: &str, expected: Option<Flaw>) {
        for piece in [1, 2, 3, 7, bytes.len().max(1)] {
            let heads = Heads::default();
            heads.expect();
            for piece in bytes.as_bytes().chunks(piece) {
                let _ = heads.scanner.lock().read(piece);
            }
            assert_eq!(heads.flaw(), expected, "{bytes:?} by {piece}");
        }
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";

    #[test]
    fn a_head_ends_with_an_empty_line_and_what_follows_is_not_looked_at() {
        check(OK, None);
        check(&format!("{OK}\n\nok\n"), None);
        check("HTTP/1.1 200\r\n\r\n\n", None);
        check("HTTP/1.0 200 OK\r\n\r\n\n", None);
        check("HTTP/1.1 101 Switching Protocols\r\n\r\n\n\x01", None);
    }

    #[test]
    fn rfc9112_2_2_a_bare_line_feed_ends_no_line() {
        check("HTTP/1.1 200 OK\nA: b\r\n\r\n", Some("a line without CRLF at its end"));
        check("HTTP/1.1 200 OK\r\nA: b\n\r\n", Some("a line without CRLF at its end"));
        check("HTTP/1.1 200 OK\r\nA: b\r\n\n", Some("a line without CRLF at its end"));
        check(&format!("{HINTS}HTTP/1.1 200 OK\n\n"), Some("a line without CRLF at its end"));
    }

    #[test]
    fn nothing_stands_before_a_status_line() {
        check(&format!("\r\n{OK}"), Some("something before the status line"));
        check(&format!("\n{OK}"), Some("something before the status line"));
        check(&format!("{HINTS}\r\n{OK}"), Some("something before the status line"));
        check("ok", Some("something before the status line"));
    }

    #[test]
    fn rfc9110_15_2_interim_responses_are_followed_by_another_head_but_not_for_ever() {
        check(&format!("{}{OK}\n", HINTS.repeat(INTERIM_MAX)), None);
        check(&HINTS.repeat(INTERIM_MAX + 1), Some("a flood of interim responses"));
    }

    #[test]
    fn what_follows_a_head_is_counted() {
        let bytes = format!("{HINTS}{OK}ok\r\n");
        for piece in [1, 2, 3, 7, bytes.len()] {
            let heads = Heads::default();
            heads.expect();
            for piece in bytes.as_bytes().chunks(piece) {
                heads.scanner.lock().read(piece).unwrap();
            }
            assert!(heads.has_surplus(3) && !heads.has_surplus(4), "by {piece}");
        }
        let heads = Heads::default();
        heads.expect();
        heads.scanner.lock().read(b"HTTP/1.1 101 Switching Protocols\r\n\r\nother words").unwrap();
        assert!(!heads.has_surplus(0));
    }

    #[test]
    fn rfc9112_7_1_chunks_and_trailers_are_read_to_their_end_and_nothing_follows_it() {
        for (field, body, flaw) in [
            ("transfer-encoding: chunked", "2\r\nok\r\n0\r\n\r\n", None),
            ("Transfer-Encoding:chunked", "2;a=b\r\nok\r\n0\r\nx: y\r\n\r\n", None),
            ("transfer-encoding: chunked", "2\r\nok\r\n0\r\n\r\nx", Some("more than its last chunk")),
            (
                "transfer-encoding: chunked",
                "2\r\nok\r\n0\r\nx: y\n\r\n",
                Some("a line without CRLF at its end"),
            ),
            ("transfer-encoding: chunked", "2\r\nokX", Some("a malformed chunk")),
            ("transfer-encoding: chunked", "+2\r\n", Some("a malformed chunk")),
            ("x-transfer-encoding: chunked", "+2\r\n\n", None),
            ("transfer-encodings: chunked", "+2\r\n\n", None),
        ] {
            check(&format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n{body}"), flaw);
            check(&format!("{HINTS}HTTP/1.1 200 OK\r\na: b\r\n{field}\r\nc: d\r\n\r\n{body}"), flaw);
        }
    }

    #[test]
    fn between_requests_nothing_is_looked_at() {
        let heads = Heads::default();
        assert!(heads.scanner.lock().read(b"\n\n").is_ok());
        heads.expect();
        assert!(heads.scanner.lock().read(b"\n\n").is_err());
        heads.expect();
        assert_eq!(heads.flaw(), None);
    }
}
