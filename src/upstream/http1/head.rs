//! Heads: that of a request as bytes, and those of responses from bytes.

use super::super::body::Head;
use super::super::request::Outgoing;
use super::super::settings::Origin;
use crate::chunked::Chunked;
use crate::policy::{Fields, Lines as Section};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};
use httparse::{ParserConfig, Status};
use hyper::ext::ReasonPhrase;
use std::mem::MaybeUninit;
use tokio::time::Instant;

/// What is wrong with what the upstream sends.
pub(in super::super) type Flaw = &'static str;

/// Where the body of a message ends (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// Where the connection ends.
    UntilClose,
    /// There is none: what follows is another protocol.
    Tunnel,
}

/// A response with more fields is refused.
const FIELDS_MAX: usize = 100;

/// More interim responses before one final response are a flood.
const INTERIM_MAX: usize = 100;

/// Room for the fields that are added to those of a response, such as `Via` and `Cache-Status`.
const ADDED: usize = 4;

/// Room for the head of a request: what is longer moves.
const HEAD_BYTES: usize = 1 << 10;

/// The head of a request; `framing` is that of its body, if it has one.
pub(super) fn request(outgoing: &Outgoing, origin: &Origin, framing: Option<Framing>) -> BytesMut {
    let mut head = BytesMut::with_capacity(HEAD_BYTES);
    if let Some(written) = &outgoing.written {
        head.extend_from_slice(written.request_line());
        host(&mut head, outgoing, origin);
        head.extend_from_slice(written.fields());
        head.extend_from_slice(b"\r\n");
        return head;
    }
    head.extend_from_slice(outgoing.method.as_str().as_bytes());
    let target = outgoing.target.as_str();
    head.extend_from_slice(if target.starts_with(['/', '*']) { b" " } else { b" /" });
    head.extend_from_slice(target.as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\n");
    host(&mut head, outgoing, origin);
    let mut takes_trailers = false;
    let added = outgoing.added.iter().map(|(name, value)| (name, value));
    for (name, value) in outgoing.headers.iter().chain(added) {
        match *name {
            header::HOST | header::CONNECTION | header::TRANSFER_ENCODING => continue,
            // That of nothing at all says how long nothing is.
            header::CONTENT_LENGTH if framing.is_some() || value != "0" => continue,
            header::TE => takes_trailers = true,
            _ => {}
        }
        push(&mut head, name, value.as_bytes());
    }
    match framing {
        Some(Framing::Length(length)) => {
            push(&mut head, &header::CONTENT_LENGTH, itoa::Buffer::new().format(length).as_bytes());
        }
        Some(Framing::Chunked) => push(&mut head, &header::TRANSFER_ENCODING, b"chunked"),
        Some(Framing::UntilClose | Framing::Tunnel) | None => {}
    }
    // RFC 9110 §10.1.4: "A sender of TE MUST also send a "TE" connection option".
    match (outgoing.upgrade, takes_trailers) {
        (true, true) => push(&mut head, &header::CONNECTION, b"upgrade, te"),
        (true, false) => push(&mut head, &header::CONNECTION, b"upgrade"),
        (false, true) => push(&mut head, &header::CONNECTION, b"te"),
        (false, false) => {}
    }
    head.extend_from_slice(b"\r\n");
    head
}

fn host(head: &mut BytesMut, outgoing: &Outgoing, origin: &Origin) {
    match &outgoing.host {
        Some(host) => push(head, &header::HOST, host.as_bytes()),
        None => push(head, &header::HOST, origin.authority().as_bytes()),
    }
}

fn push(head: &mut BytesMut, name: &HeaderName, value: &[u8]) {
    head.extend_from_slice(name.as_str().as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

/// Where one is among the heads of an answer: interim ones may precede the final one (RFC 9110 §15.2).
#[derive(Debug, Default)]
pub(super) struct Heads {
    lines: Lines,
    interim: usize,
}

impl Heads {
    /// Whether nothing has come of an answer.
    pub(super) fn is_silent(&self, buffer: &[u8]) -> bool {
        buffer.is_empty() && self.interim == 0
    }

    /// Takes the final head out of what has come; `None`: more must come first. Where somebody takes its fields as they lie, no table
    /// is made of them.
    pub(super) fn next(
        &mut self,
        buffer: &mut BytesMut,
        bytes_max: usize,
        method: &Method,
        (came, taker): (Instant, &mut Taker<'_>),
    ) -> Result<Option<Begun>, Flaw> {
        loop {
            if buffer.first().is_some_and(|first| *first != b'H') {
                return Err("something before the status line");
            }
            let end = self.lines.end(buffer)?;
            if end.unwrap_or(buffer.len()) > bytes_max {
                return Err("a head that is too large");
            }
            let Some(end) = end else { return Ok(None) };
            let bytes = buffer.split_to(end).freeze();
            let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
            let head = parse(&bytes, &mut fields)?;
            self.lines = Lines::default();
            if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                let framing = framing(method, head.status, head.version, &head.fields)?;
                look_ahead(framing, buffer)?;
                let persists = persists(head.version, &head.fields) && framing != Framing::UntilClose;
                let head = if taker(&HeadAsItLies { head, framing, came }) {
                    Head::Taken(head.status)
                } else {
                    Head::Table(Box::new(head.response(&bytes)?))
                };
                return Ok(Some(Begun { head, framing, persists }));
            }
            // What is wrong with one is wrong with the answer.
            head.response(&bytes)?;
            self.interim += 1;
            if self.interim > INTERIM_MAX {
                return Err("a flood of interim responses");
            }
        }
    }
}

/// A final response that has begun, and where its body ends.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) head: Head,
    pub(super) framing: Framing,
    /// Whether the connection is to serve again, for all that it says.
    pub(super) persists: bool,
}

/// The head of a final response while it lies where it was read.
#[derive(Debug, Clone, Copy)]
pub struct HeadAsItLies<'a> {
    head: Parsed<'a>,
    framing: Framing,
    came: Instant,
}

/// Whoever may take the fields of a head as they lie. Returns whether they are taken.
pub(in super::super) type Taker<'a> = dyn FnMut(&HeadAsItLies<'_>) -> bool + Send + 'a;

impl<'a> HeadAsItLies<'a> {
    /// The status.
    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    /// The version that the upstream speaks.
    pub fn version(&self) -> Version {
        self.head.version
    }

    /// When it came.
    pub fn came(&self) -> Instant {
        self.came
    }

    /// The words behind the status.
    pub fn reason(&self) -> &'a str {
        self.head.reason
    }

    /// The fields, hop-by-hop fields among them.
    pub fn fields(&self) -> Section<'a> {
        self.head.fields
    }

    /// The length of the body; `None`: the upstream does not say it.
    pub fn length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose | Framing::Tunnel => None,
        }
    }

    /// Whether the body comes in chunks.
    pub fn is_chunked(&self) -> bool {
        self.framing == Framing::Chunked
    }
}

/// Looks for the empty line at which fields end. Every line must end with CRLF: others take a bare line feed for the end of
/// a line, and would see another head.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// How much has been looked at, and where its last line begins.
    seen: usize,
    line: usize,
}

impl Lines {
    /// Where the fields end, behind the empty line; `None`: not in what has come.
    pub(super) fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Flaw> {
        while let Some(at) = memchr::memchr(b'\n', &bytes[self.seen..]) {
            let at = self.seen + at;
            if at == self.line || bytes[at - 1] != b'\r' {
                return Err("a line without CRLF at its end");
            }
            let is_empty = at == self.line + 1;
            (self.seen, self.line) = (at + 1, at + 1);
            if is_empty {
                return Ok(Some(at + 1));
            }
        }
        self.seen = bytes.len();
        Ok(None)
    }
}

/// Refuses a body whose flaw has come together with its head: its client can still be told so.
fn look_ahead(framing: Framing, mut bytes: &[u8]) -> Result<(), Flaw> {
    match framing {
        Framing::Length(length) if bytes.len() as u64 > length => return Err("more than its length"),
        Framing::Length(_) | Framing::UntilClose | Framing::Tunnel => return Ok(()),
        Framing::Chunked => {}
    }
    let mut at = Chunked::Start;
    while !bytes.is_empty() && at != Chunked::Last {
        (at, bytes) = at.read(bytes).ok_or("a malformed chunk")?;
    }
    match Lines::default().end(bytes) {
        Ok(Some(end)) if at == Chunked::Last && end < bytes.len() => Err("more than its last chunk"),
        Err(flaw) if at == Chunked::Last => Err(flaw),
        _ => Ok(()),
    }
}

/// A head that has been taken apart.
#[derive(Debug, Clone, Copy)]
struct Parsed<'a> {
    status: StatusCode,
    version: Version,
    reason: &'a str,
    fields: Section<'a>,
}

fn parse<'a>(
    head: &'a [u8],
    fields: &'a mut [MaybeUninit<httparse::Header<'a>>],
) -> Result<Parsed<'a>, Flaw> {
    let mut parsed = httparse::Response::new(&mut []);
    let config = ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut parsed, head, fields) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) => return Err("a malformed head"),
        Err(httparse::Error::TooManyHeaders) => return Err("too many fields"),
        Err(httparse::Error::Status | httparse::Error::Version) => return Err("a malformed status line"),
        Err(_) => return Err("a malformed field"),
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    Ok(Parsed {
        status: status.ok_or("a malformed status line")?,
        version: if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 },
        reason: parsed.reason.unwrap_or_default(),
        fields: Section(parsed.headers),
    })
}

impl Parsed<'_> {
    /// The head as a table of its fields; these are the bytes that it was parsed from.
    fn response(self, bytes: &Bytes) -> Result<Response<()>, Flaw> {
        let mut response = Response::new(());
        *response.status_mut() = self.status;
        *response.version_mut() = self.version;
        if Some(self.reason) != self.status.canonical_reason()
            && let Ok(reason) = ReasonPhrase::try_from(self.reason.as_bytes())
        {
            response.extensions_mut().insert(reason);
        }
        *response.headers_mut() = headers(bytes, self.fields.0)?;
        Ok(response)
    }
}

/// The fields of a section that was parsed from these bytes.
pub(super) fn headers(bytes: &Bytes, fields: &[httparse::Header<'_>]) -> Result<HeaderMap, Flaw> {
    let mut headers = HeaderMap::with_capacity(fields.len() + ADDED);
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value));
        let (Ok(name), Ok(value)) = (name, value) else { return Err("a malformed field") };
        headers.append(name, value);
    }
    Ok(headers)
}

/// Where the body of a response ends. Refuses what says so in two ways, or in a way that others may not understand.
pub(in super::super) fn framing(
    method: &Method,
    status: StatusCode,
    version: Version,
    fields: &impl Fields,
) -> Result<Framing, Flaw> {
    let mut lengths = fields.lines(&header::CONTENT_LENGTH);
    let length = lengths.next().map(|length| digits(length).ok_or("a malformed Content-Length"));
    let length = length.transpose()?;
    // RFC 9110 §8.6 would let equal ones be merged; whoever sends several has not made up its mind.
    if lengths.next().is_some() {
        return Err("more than one Content-Length");
    }
    let mut codings = fields.lines(&header::TRANSFER_ENCODING);
    let framing = match (codings.next(), codings.next()) {
        (None, _) => length.map_or(Framing::UntilClose, Framing::Length),
        (Some(coding), None) if coding.trim_ascii().eq_ignore_ascii_case(b"chunked") => {
            if length.is_some() {
                return Err("both Content-Length and Transfer-Encoding");
            }
            // RFC 9112 §6.1: a server that speaks HTTP/1.0 does not know what it says.
            if version < Version::HTTP_11 {
                return Err("a transfer coding over HTTP/1.0");
            }
            Framing::Chunked
        }
        // Read to the end of the connection, such a body would look complete wherever it stops.
        _ => return Err("a transfer coding other than chunked"),
    };
    Ok(match status {
        StatusCode::SWITCHING_PROTOCOLS => Framing::Tunnel,
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => Framing::Length(0),
        _ if *method == Method::HEAD => Framing::Length(0),
        _ => framing,
    })
}

/// RFC 9110 §8.6: `1*DIGIT`.
fn digits(text: &[u8]) -> Option<u64> {
    let add = |number: u64, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| byte - b'0')?;
        number.checked_mul(10)?.checked_add(digit.into())
    };
    if text.is_empty() { None } else { text.iter().try_fold(0, add) }
}

/// Whether the connection is to serve again, for all that the response says (RFC 9112 §9.3).
fn persists(version: Version, fields: &impl Fields) -> bool {
    let mut options = fields
        .lines(&header::CONNECTION)
        .flat_map(|line| line.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii);
    let is = |option: &[u8], name: &str| option.eq_ignore_ascii_case(name.as_bytes());
    if version == Version::HTTP_11 {
        return !options.any(|option| is(option, "close"));
    }
    let options: Vec<&[u8]> = options.collect();
    options.iter().any(|option| is(option, "keep-alive")) && !options.iter().any(|option| is(option, "close"))
}
