//! A second pair of eyes on the framing of HTTP/1 requests.
//!
//! hyper takes some requests whose end two readers may see at different places (RFC 9112 §11.2): it drops a `Content-Length`
//! that stands beside `Transfer-Encoding`, merges equal ones, takes a bare line feed for the end of a line, in trailers too, and drops
//! a fragment from the target. The scanner sees the bytes before hyper does and finds just these. It counts heads, so that the verdict meets its request even
//! where several arrive at once. All else that can be wrong with a head is hyper's to refuse.
//!
//! Chunks are read to the letter, although hyper refuses most of what is wrong with them: a flaw that came together with its head
//! is seen before anything of the request has gone on, and of one that comes later nothing is handed on.

use crate::chunked::{Chunked, is_control, skip};
use httparse::Header;

/// Reads along, and remembers from which request on the connection is not to be trusted.
#[derive(Debug)]
pub(super) struct Scanner {
    state: State,
    /// Heads begun, the current one included.
    heads: u64,
    /// The first head that must be refused, and every one after it.
    flawed_from: Option<u64>,
    length: Option<u64>,
    is_chunked: bool,
    /// The beginning of a line whose end has not come yet: at most [`LINE_BYTES`].
    line: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first byte of a request.
    Between,
    RequestLine,
    Fields,
    /// Behind the CR of an empty line before a request.
    EmptyLine,
    /// So many bytes of body are to come.
    Body(u64),
    /// In a chunked body.
    Chunked(Chunked),
    Trailers,
    /// There are no requests to see.
    Http2,
    /// Nor are there from here on.
    Tunnel,
    /// Nothing from here on is trusted, because of a flaw.
    Off,
    /// The body has a flaw: nothing from there on is to be handed on.
    Broken,
}

/// A line that came in pieces is remembered up to here; framing fields are shorter.
const LINE_BYTES: usize = 256;

impl Default for Scanner {
    fn default() -> Self {
        Self {
            state: State::Between,
            heads: 0,
            flawed_from: None,
            length: None,
            is_chunked: false,
            line: Vec::new(),
        }
    }
}

impl Scanner {
    /// Reads the next bytes of the connection, up to the end of a request. Returns how many these are; where there is a flaw in a body,
    /// how many come before it.
    pub(super) fn read(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while let Some(first) = rest.first() {
            let sound = bytes.len() - rest.len();
            let before = self.state;
            rest = match before {
                State::Between if *first == b'\r' => {
                    self.state = State::EmptyLine;
                    &rest[1..]
                }
                State::EmptyLine if *first == b'\n' => {
                    self.state = State::Between;
                    &rest[1..]
                }
                State::Between if *first != b'\n' => {
                    self.heads += 1;
                    (self.length, self.is_chunked) = (None, false);
                    self.state = State::RequestLine;
                    rest
                }
                State::Between | State::EmptyLine => {
                    self.flaw(self.heads + 1);
                    rest
                }
                State::RequestLine | State::Fields | State::Trailers => self.read_line(rest),
                State::Body(left) => {
                    let (rest, left) = skip(rest, left);
                    self.state = if left == 0 { State::Between } else { State::Body(left) };
                    rest
                }
                State::Chunked(at) => self.read_chunk(rest, at),
                State::Http2 | State::Tunnel | State::Off => return bytes.len(),
                State::Broken => return sound,
            };
            match self.state {
                State::Broken => return sound,
                State::Between if before != State::EmptyLine => break,
                _ => {}
            }
        }
        bytes.len() - rest.len()
    }

    /// From here on, these are bytes of something else.
    pub(super) fn become_tunnel(&mut self) {
        self.state = State::Tunnel;
    }

    /// Whether the request with this number, from 1, must be refused.
    pub(super) fn refuses(&self, request: u64) -> bool {
        // More requests than heads: hyper sees an end where we see none.
        self.flawed_from.is_some_and(|flawed| request >= flawed)
            || (request > self.heads
                && !matches!(self.state, State::Http2 | State::Tunnel | State::Off | State::Broken))
    }

    /// Whether it reads requests.
    pub(super) fn is_http1(&self) -> bool {
        !matches!(self.state, State::Http2 | State::Tunnel)
    }

    /// Whether these are bytes of something else.
    pub(super) fn is_tunnel(&self) -> bool {
        self.state == State::Tunnel
    }

    /// Whether a flaw in a body has been read.
    pub(super) fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Whether the head of a request has been read, and not all of its body.
    pub(super) fn is_in_body(&self) -> bool {
        matches!(self.state, State::Body(_) | State::Chunked(_) | State::Trailers)
    }

    /// Whether what comes next belongs to no request that has begun.
    pub(super) fn is_between(&self) -> bool {
        matches!(self.state, State::Between | State::EmptyLine | State::Off)
    }

    /// The number of the request that begins with the next byte, if one does.
    pub(super) fn next_request(&self) -> Option<u64> {
        (self.state == State::Between).then_some(self.heads + 1)
    }

    /// A request without a body was read by somebody else.
    pub(super) fn skip_request(&mut self) {
        self.heads += 1;
    }

    /// Whether a head has begun and not ended.
    pub(super) fn is_in_head(&self) -> bool {
        matches!(self.state, State::RequestLine | State::Fields)
    }

    fn read_line<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            let room = LINE_BYTES - self.line.len();
            self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
            // The last byte counts even where those before it are not remembered: it may be the CR of the line's end.
            if let (Some(last), Some(newest)) = (self.line.last_mut(), bytes.last()) {
                *last = *newest;
            }
            self.check_piece(bytes);
            return &[];
        };
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        self.check_piece(line);
        if self.state == State::Broken {
            return rest;
        }
        if self.line.is_empty() {
            self.line(line);
        } else {
            let mut whole = std::mem::take(&mut self.line);
            let is_cut = whole.len() + line.len() > LINE_BYTES;
            whole.extend_from_slice(line);
            let hides_framing = is_cut && self.state == State::Fields && is_framing(&whole);
            if hides_framing { self.flaw(self.heads) } else { self.line(&whole) }
        }
        rest
    }

    /// What a piece of a line shows, wherever in the line it stands.
    fn check_piece(&mut self, piece: &[u8]) {
        match self.state {
            // RFC 9112 §3.2: no form of a target has a fragment.
            State::RequestLine if memchr::memchr(b'#', piece).is_some() => self.flaw(self.heads),
            State::Trailers if piece.iter().any(|byte| is_control(*byte) && *byte != b'\r') => {
                self.break_off();
            }
            _ => {}
        }
    }

    /// Takes a line, without its line feed.
    fn line(&mut self, line: &[u8]) {
        let Some((b'\r', line)) = line.split_last() else {
            return if self.state == State::Trailers { self.break_off() } else { self.flaw(self.heads) };
        };
        match self.state {
            State::RequestLine if self.heads == 1 && line == b"PRI * HTTP/2.0" => {
                self.state = State::Http2;
            }
            State::RequestLine => self.state = State::Fields,
            State::Fields if line.is_empty() => self.end_of_head(),
            State::Fields => self.field(line),
            State::Trailers if line.is_empty() => self.state = State::Between,
            State::Trailers if !is_field(line) => self.break_off(),
            // Other trailers, and what follows a flaw.
            _ => {}
        }
    }

    fn field(&mut self, line: &[u8]) {
        // Most fields are others.
        if !matches!(line.first(), Some(b'C' | b'c' | b'T' | b't')) {
            return;
        }
        let Some(colon) = line.iter().take(18).position(|byte| *byte == b':') else { return };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
            if self.length.is_some() || length.is_none() || !value.iter().all(u8::is_ascii_digit) {
                self.flaw(self.heads);
            }
            self.length = length;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                // This one has an answer of its own; what follows it has no known beginning.
                self.flaw(self.heads + 1);
            }
            self.is_chunked = true;
        }
    }

    fn end_of_head(&mut self) {
        self.state = match (self.is_chunked, self.length) {
            (true, Some(_)) => return self.flaw(self.heads),
            (true, None) => State::Chunked(Chunked::Start),
            (false, Some(0) | None) => State::Between,
            (false, Some(length)) => State::Body(length),
        };
    }

    fn read_chunk<'a>(&mut self, bytes: &'a [u8], at: Chunked) -> &'a [u8] {
        let Some((next, rest)) = at.read(bytes) else {
            self.break_off();
            return bytes;
        };
        // Origins of old pad the sizes of their chunks with blanks. A client has no such excuse.
        if matches!((at, next), (Chunked::Space(_), Chunked::SizeEnd(_))) {
            self.break_off();
            return bytes;
        }
        self.state = if next == Chunked::Last { State::Trailers } else { State::Chunked(next) };
        rest
    }

    /// A flaw in the body of the latest request. Where its head has not been handed on, it will not be.
    fn break_off(&mut self) {
        self.flaw(self.heads);
        self.state = State::Broken;
    }

    fn flaw(&mut self, head: u64) {
        self.flawed_from = Some(self.flawed_from.map_or(head, |flawed| flawed.min(head)));
        self.state = State::Off;
    }
}

/// Whether a head of HTTP/1.1 that was parsed into these pieces is one that nobody can read otherwise: behind each piece its line
/// ends, with CR LF (RFC 9112 §2.2).
pub(super) fn is_plain(head: &[u8], target: &str, fields: &[Header<'_>]) -> bool {
    let is_behind = |piece: &[u8], end: &[u8]| {
        let place = piece.as_ptr_range().end.addr().wrapping_sub(head.as_ptr().addr());
        head.get(place..).is_some_and(|rest| rest.starts_with(end))
    };
    is_behind(target.as_bytes(), b" HTTP/1.1\r\n")
        && fields.iter().all(|field| is_behind(field.value, b"\r\n"))
        && head.ends_with(b"\r\n\r\n")
}

/// Whether a line has a field's name and its colon, and no CR (RFC 9112 §5).
fn is_field(line: &[u8]) -> bool {
    let name = memchr::memchr(b':', line).map_or(&[][..], |colon| &line[..colon]);
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(is_token) && memchr::memchr(b'\r', line).is_none()
}

fn is_framing(line: &[u8]) -> bool {
    ["content-length", "transfer-encoding"]
        .iter()
        .any(|name| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads on behind the end of each request. Returns how many bytes are handed on.
    fn read_all(scanner: &mut Scanner, bytes: &[u8]) -> usize {
        let mut count = 0;
        while count < bytes.len() && !scanner.is_broken() {
            count += scanner.read(&bytes[count..]);
        }
        count
    }

    /// The first head that is refused, however the bytes are cut into pieces.
    #[track_caller]
    fn check(bytes: &str, heads: u64, flawed_from: Option<u64>) {
        for piece in [1, 2, 3, 7, bytes.len()] {
            let mut scanner = Scanner::default();
            for piece in bytes.as_bytes().chunks(piece) {
                read_all(&mut scanner, piece);
            }
            assert_eq!((scanner.heads, scanner.flawed_from), (heads, flawed_from), "{bytes:?} by {piece}");
        }
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    #[test]
    fn requests_follow_each_other() {
        check(&format!("{GET}\r\n{GET}{GET}"), 3, None);
        check(&format!("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello{GET}"), 2, None);
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        check(&format!("{chunked}5\r\nhello\r\n0\r\n\r\n{GET}"), 2, None);
        check(&format!("{chunked}5 ;a=\"\\\";b\" ;c\r\nhello\r\n0\r\n\r\n{GET}"), 2, None);
        check(&format!("{chunked}5;a=b\r\nhello\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\n{GET}"), 2, None);
    }

    #[test]
    fn requests_are_read_one_by_one() {
        let post = "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello";
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n";
        let requests = [GET, post, chunked, "\r\nGET / HTTP/1.1\r\n\r\n", GET];
        let all = requests.concat();
        let (mut scanner, mut rest) = (Scanner::default(), all.as_str());
        for (number, request) in (1..).zip(requests) {
            assert_eq!(scanner.next_request(), Some(number));
            assert_eq!(scanner.read(rest.as_bytes()), request.len(), "{request:?}");
            rest = &rest[request.len()..];
        }
        scanner.become_tunnel();
        assert_eq!((scanner.read(b"G\n"), scanner.next_request(), scanner.refuses(9)), (2, None, false));
    }

    #[test]
    fn rfc9112_6_3_two_ways_to_tell_the_length_are_refused() {
        let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
        check(&format!("{GET}POST / HTTP/1.1\r\n{both}\r\n0\r\n\r\n{GET}"), 2, Some(2));
        check("POST / HTTP/1.1\r\ntransfer-encoding:chunked\r\ncontent-length:5\r\n\r\n", 1, Some(1));
        check("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 1, Some(1));
        check("POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n", 1, Some(1));
        check("POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", 1, Some(1));
    }

    #[test]
    fn nothing_is_trusted_behind_another_transfer_coding() {
        check(&format!("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n{GET}"), 1, Some(2));
    }

    /// The bytes that are handed on, however they are cut into pieces.
    #[track_caller]
    fn check_broken(sound: &str, flaw: &str) {
        let head = format!("{GET}POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
        let bytes = format!("{head}{sound}{flaw}\r\n0\r\n\r\n{GET}");
        for piece in [1, 2, 3, 7, bytes.len()] {
            let mut scanner = Scanner::default();
            let pieces = bytes.as_bytes().chunks(piece);
            let handed_on: usize = pieces.map(|piece| read_all(&mut scanner, piece)).sum();
            assert!(
                scanner.state == State::Broken && scanner.refuses(2) && !scanner.refuses(1),
                "{flaw:?} by {piece}"
            );
            // A trailer is judged at the end of its line.
            let most = head.len() + sound.len() + flaw.len() + 1;
            assert!(
                (head.len() + sound.len()..=most).contains(&handed_on),
                "{flaw:?} by {piece}: {handed_on}"
            );
        }
    }

    #[test]
    fn rfc9112_7_1_of_a_flaw_in_a_chunked_body_and_of_what_follows_it_nothing_is_handed_on() {
        let long = "x".repeat(300);
        for flaw in
            ["+5", "-5", "0x5", " 5", "g", ";", "\r", "\n", "5\n", "5 5", "5 \n", "5;a\n", "5;\0", "5\rx"]
        {
            check_broken("", flaw);
            check_broken("5\r\nhello\r\n", flaw);
        }
        for flaw in ["5 \r\n", "5\t \r\n", "5;a=\"b\r\n", "5;a=\"b\\\"\r\n", "5;a=\"\0\"", "5;a=\"b\\\r"] {
            check_broken("", flaw);
            check_broken("5\r\nhello\r\n", flaw);
        }
        check_broken("5\r\nhello", "X");
        check_broken("5\r\nhello", "\n");
        check_broken("5\r\nhello", "\rX");
        check_broken("", "10000000000000000");
        for flaw in ["\n", "\r\r", "a: b\n", "a: b\rc", "a: b\0", "a b: c", ": c", "a", " a: b", "a\r\n b: c"]
        {
            check_broken("5\r\nhello\r\n0\r\n", flaw);
            check_broken("5\r\nhello\r\n0\r\nc: d\r\n", flaw);
            check_broken(&format!("0\r\na: {long}\r\n"), flaw);
        }
        check_broken("0\r\n", &format!("a: {long}\n"));
        check_broken("0\r\n", &format!("a: {long}\0{long}"));
    }

    #[test]
    fn a_head_that_follows_something_else_than_empty_lines_is_refused() {
        check(&format!("\r\n\r\n{GET}\r\n{GET}"), 2, None);
        check(&format!("{GET}\n{GET}"), 1, Some(2));
        check(&format!("\r\r\n{GET}"), 0, Some(1));
    }

    #[test]
    fn rfc9112_2_2_a_bare_line_feed_ends_no_line() {
        check("GET / HTTP/1.1\nHost: a\r\n\r\n", 1, Some(1));
        check(&format!("{GET}GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"), 2, Some(2));
        check("GET / HTTP/1.1\r\nHost: a\r\n\n", 1, Some(1));
    }

    #[test]
    fn rfc9112_3_2_a_target_has_no_fragment() {
        check(&format!("{GET}GET /#a HTTP/1.1\r\nHost: a\r\n\r\n"), 2, Some(2));
        check(&format!("GET /{}#a HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(500)), 1, Some(1));
        check("GET / HTTP/1.1\r\nHost: a\r\nX: #\r\n\r\n", 1, None);
    }

    #[test]
    fn a_head_that_could_be_read_otherwise_is_not_plain() {
        let check = |head: &str, expected: bool| {
            let mut fields = [httparse::EMPTY_HEADER; 4];
            let mut request = httparse::Request::new(&mut fields);
            let is_whole = request.parse(head.as_bytes()).is_ok_and(|status| status.is_complete());
            let is_plain = is_whole
                && request.path.is_some_and(|target| is_plain(head.as_bytes(), target, request.headers));
            assert_eq!(is_plain, expected, "{head:?}");
        };
        check("GET / HTTP/1.1\r\nHost: a\r\nX:\r\nY: \t b c\r\n\r\n", true);
        check("GET / HTTP/1.1\r\n\r\n", true);
        for head in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
            "GET / HTTP/1.1\r\nX:\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\n\n",
            "GET / HTTP/1.1\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a",
        ] {
            check(head, false);
        }
    }

    #[test]
    fn http2_is_left_alone() {
        check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\n\n\nGET", 1, None);
    }

    #[test]
    fn a_long_line_hides_no_length() {
        let zeros = "0".repeat(300);
        check(
            &format!("POST / HTTP/1.1\r\nContent-Length: {zeros}5\r\nContent-Length: 5\r\n\r\n"),
            1,
            Some(1),
        );
        let long = "x".repeat(1000);
        check(&format!("GET /{long} HTTP/1.1\r\nX: {long}\r\n\r\n{GET}"), 2, None);
    }

    #[test]
    fn a_request_that_was_not_seen_is_refused() {
        let mut scanner = Scanner::default();
        scanner.read(GET.as_bytes());
        assert!(!scanner.refuses(1) && scanner.refuses(2));
    }
}
