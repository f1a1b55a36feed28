//! Reads one answer off a connection: as much of HTTP/1.1 as tells where it ends.

use std::time::Instant;

/// An answer as far as it has come.
#[derive(Default)]
pub(super) struct Answer {
    state: State,
    /// When the first byte of its body came.
    first_byte: Option<Instant>,
    status: u16,
    must_close: bool,
}

#[derive(Default)]
enum State {
    #[default]
    Nothing,
    /// A head that came in parts.
    Head(Vec<u8>),
    Body {
        read: usize,
        of: usize,
    },
}

/// How it goes on.
pub(super) enum Progress {
    More,
    Ended,
    Wrong(&'static str),
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.status
    }

    pub(super) fn first_byte(&self) -> Option<Instant> {
        self.first_byte
    }

    /// Whether the server said that it will close the connection.
    pub(super) fn must_close(&self) -> bool {
        self.must_close
    }

    /// Takes what came. With a path, the body must be the one of that path.
    pub(super) fn take(&mut self, bytes: &[u8], path: Option<&str>, now: Instant) -> Progress {
        match &mut self.state {
            State::Nothing => match self.head(bytes) {
                Head::Ends { at, length } => self.body(&bytes[at..], 0, length, path, now),
                Head::Partial => {
                    self.state = State::Head(bytes.to_vec());
                    Progress::More
                }
                Head::Wrong(why) => Progress::Wrong(why),
            },
            State::Head(before) => {
                let mut all = std::mem::take(before);
                all.extend_from_slice(bytes);
                self.state = State::Nothing;
                self.take(&all, path, now)
            }
            State::Body { read, of } => {
                let (read, of) = (*read, *of);
                self.body(bytes, read, of, path, now)
            }
        }
    }

    fn body(&mut self, bytes: &[u8], before: usize, of: usize, path: Option<&str>, now: Instant) -> Progress {
        if !bytes.is_empty() {
            self.first_byte.get_or_insert(now);
        }
        if self.status == 200 && path.is_some_and(|path| !is_right(bytes, before, path)) {
            return Progress::Wrong("wrong body");
        }
        let read = before + bytes.len();
        self.state = State::Body { read, of };
        match read.cmp(&of) {
            std::cmp::Ordering::Less => Progress::More,
            std::cmp::Ordering::Equal => Progress::Ended,
            std::cmp::Ordering::Greater => Progress::Wrong("too long"),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Head {
        let mut length = None;
        let (mut start, mut is_first) = (0, true);
        for at in memchr::memchr_iter(b'\n', bytes) {
            let line = bytes[start..at].trim_ascii_end();
            start = at + 1;
            if is_first {
                is_first = false;
                let Some(status) = line.get(9..12).and_then(number) else { return Head::Wrong("no status") };
                self.status = u16::try_from(status).unwrap_or(0);
            } else if line.is_empty() {
                return match length {
                    Some(length) => Head::Ends { at: start, length },
                    None => Head::Wrong("no content-length"),
                };
            } else if let Some(value) = field(line, b"content-length:") {
                length = number(value);
            } else if let Some(value) = field(line, b"connection:") {
                self.must_close = value.eq_ignore_ascii_case(b"close");
            }
        }
        Head::Partial
    }
}

enum Head {
    Ends { at: usize, length: usize },
    Partial,
    Wrong(&'static str),
}

/// The value of a line, if it is of this field.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    // Most lines differ in the first letter.
    let first = line.first()? | 0x20;
    if first != name[0] || line.len() < name.len() || !line[..name.len()].eq_ignore_ascii_case(name) {
        return None;
    }
    Some(line[name.len()..].trim_ascii())
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Whether these are the bytes at this place in the body of this path.
fn is_right(bytes: &[u8], at: usize, path: &str) -> bool {
    let expected = path.bytes().chain([b'\n']).cycle().skip(at % (path.len() + 1));
    bytes.iter().copied().eq(expected.take(bytes.len()))
}
