//! The chunks of an HTTP/1.1 body, read along to the letter (RFC 9112 §7.1). Trailers are lines, and left to who reads lines.

/// Where in a chunked body one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunked {
    /// Before the first digit of a chunk's size.
    Start,
    /// In the size.
    Size(u64),
    /// In white space behind it.
    Space(u64),
    /// In what follows its semicolon.
    Extension(u64),
    /// Within quotes in that.
    Quoted(u64),
    /// Behind a backslash within quotes.
    Escaped(u64),
    /// Behind the CR of the size's line.
    SizeEnd(u64),
    /// So many bytes of the chunk are to come.
    Data(u64),
    /// Behind the last byte of the chunk.
    DataEnd,
    /// Behind the CR that follows it.
    DataEndLf,
    /// Behind the line of the last chunk, which has no data: before the trailers.
    Last,
}

impl Chunked {
    /// Reads some of these bytes, one at least. Returns where one is then, and what is left of them; `None`: the first may not
    /// stand here.
    pub(crate) fn read(self, bytes: &[u8]) -> Option<(Self, &[u8])> {
        if let Self::Data(left) = self {
            let (rest, left) = skip(bytes, left);
            return Some((if left == 0 { Self::DataEnd } else { Self::Data(left) }, rest));
        }
        let (first, rest) = bytes.split_first()?;
        Some((self.after(*first)?, rest))
    }

    fn after(self, byte: u8) -> Option<Self> {
        let digit = char::from(byte).to_digit(16).map(u64::from);
        Some(match (self, byte) {
            (Self::Start, _) => Self::Size(digit?),
            (Self::Size(size) | Self::Space(size), b' ' | b'\t') => Self::Space(size),
            (Self::Size(size) | Self::Space(size), b';') | (Self::Quoted(size), b'"') => {
                Self::Extension(size)
            }
            (Self::Size(size) | Self::Space(size) | Self::Extension(size), b'\r') => Self::SizeEnd(size),
            (Self::Size(size), _) => Self::Size(size.checked_mul(16)?.checked_add(digit?)?),
            (Self::Extension(size), b'"') => Self::Quoted(size),
            (Self::Quoted(size), b'\\') => Self::Escaped(size),
            (Self::Extension(size), byte) if !is_control(byte) => Self::Extension(size),
            (Self::Quoted(size) | Self::Escaped(size), byte) if !is_control(byte) => Self::Quoted(size),
            (Self::SizeEnd(0), b'\n') => Self::Last,
            (Self::SizeEnd(size), b'\n') => Self::Data(size),
            (Self::DataEnd, b'\r') => Self::DataEndLf,
            (Self::DataEndLf, b'\n') => Self::Start,
            (
                Self::Space(_)
                | Self::Extension(_)
                | Self::Quoted(_)
                | Self::Escaped(_)
                | Self::SizeEnd(_)
                | Self::Data(_)
                | Self::DataEnd
                | Self::DataEndLf
                | Self::Last,
                _,
            ) => return None,
        })
    }
}

/// What follows so many bytes, and how many of them are yet to come.
pub(crate) fn skip(bytes: &[u8], left: u64) -> (&[u8], u64) {
    let skipped = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    (&bytes[skipped..], left - skipped as u64)
}

/// RFC 9110 §5.5: not to be found in a field's value.
pub(crate) fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\t'
}
