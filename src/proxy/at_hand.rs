//! Answers that lie at hand: fresh stored responses, written out as bytes while the request is still being read.
//!
//! What may be answered so, and with what, is decided where it is decided for all requests: [`Site::locate`](super::Site),
//! [`Keyer::key`](crate::policy::Keyer::key), [`Proxy::plan`]. Only the form differs: neither the request's head nor the answer's
//! becomes a table of fields.

use super::answer::{Account, Beginning};
use super::cache_status::Told;
use super::plain::PlainGet;
use super::receive::Client;
use super::{Proxy, host, supervise};
use crate::body::{Piece, Pieces, Span};
use crate::outcome::{Answered, Outcome};
use crate::policy::{self, Asked, Identity, Plan};
use crate::store::{Line, Stored};
use crate::telemetry::BodyEnd;
use bytes::Bytes;
use http::{Method, StatusCode, header};
use std::io::{self, IoSlice};
use std::time::SystemTime;

/// A whole answer in the form of HTTP/1.1, on its way to the client. When it is dropped, the account of its request is closed.
#[derive(Debug)]
pub struct AtHand {
    head: Vec<u8>,
    head_sent: usize,
    content: Content,
    /// How much has been sent of the piece of the body that is being sent.
    piece_sent: usize,
    account: Account,
}

/// The body of an answer.
#[derive(Debug)]
enum Content {
    /// A small one, which is sent from where it is stored.
    Stored(Stored),
    /// Any other: the piece that is being sent, and those behind it. Whoever counts large bodies is to see that the store does not
    /// have it any more.
    Pieces(Option<Piece>, Pieces),
}

impl Content {
    /// A body that is not small. `None`: it cannot be sent piece by piece.
    fn large(stored: &Stored) -> Option<(Self, u64)> {
        let mut pieces = stored.body().pieces()?;
        let length = pieces.length();
        Some((Self::Pieces(pieces.next().transpose().ok()?, pieces), length))
    }

    fn length(&self) -> usize {
        match self {
            Self::Stored(stored) => stored.body().small().map_or(0, Bytes::len),
            Self::Pieces(piece, _) => piece.as_ref().map_or(0, Piece::length),
        }
    }

    /// Goes on to the next piece. Returns whether there is one.
    fn go_on(&mut self) -> io::Result<bool> {
        match self {
            Self::Stored(_) => Ok(false),
            Self::Pieces(piece, pieces) => {
                *piece = pieces.next().transpose().map_err(io::Error::other)?;
                Ok(piece.is_some())
            }
        }
    }
}

/// Room for a head: what is longer moves once.
const HEAD_BYTES: usize = 512;

impl Proxy {
    /// The answer to a plain request, if all it takes is a fresh stored response. `None`: it is to be served as every other.
    /// Until there is an answer nothing has been counted.
    pub fn at_hand(&self, request: &PlainGet<'_>, client: Client) -> Option<AtHand> {
        let beginning = Beginning::plain(&self.telemetry, request, client.address);
        supervise::caught(&self.telemetry, "request", || self.hit(request, client, beginning)).flatten()
    }

    fn hit(&self, request: &PlainGet<'_>, client: Client, beginning: Beginning) -> Option<AtHand> {
        let (site, now) = (self.site.load_full(), self.clock.now());
        let host = host::named(request, client).ok()?;
        let asked = Asked { method: &Method::GET, headers: request };
        if request.target().len() > site.settings.target_bytes_max {
            return None;
        }
        let (index, target) = site.locate(&host, request.target()).ok()?;
        let route = &site.settings.routes[index];
        if route.is_keyed_by_body(asked.method) {
            return None;
        }
        let identity = Identity {
            route: site.route_ids[index],
            scheme: client.scheme(),
            host: &host,
            target: &route.key.query.apply(&target),
            method: asked.method,
            headers: asked.headers,
            body_digest: None,
        };
        let decided = self.plan(&asked, self.cache.keyer.key(&identity, &route.key).key, now, &route.rules);
        let Plan::Deliver { stored } = decided.plan else { return None };
        let stored = decided.variants?.take(stored)?;
        let (large, length) = match stored.body().small() {
            Some(small) => (None, small.len() as u64),
            None => Content::large(&stored).map(|(large, length)| (Some(large), length))?,
        };
        if !stored.metadata().is_fresh(now) || !has_length(stored.status()) {
            return None;
        }
        let ttl_seconds = Some(stored.metadata().ttl_seconds(now));
        let outcome = Outcome { ttl_seconds, ..Outcome::of(Answered::Hit) };
        let key = site.settings.cache_status_key.then(|| policy::key::text(&identity, &route.key));
        let head = head(&stored, &site.told(key.as_deref()), &outcome, length, now);
        let mut account = Account::open(&self.telemetry, site, beginning);
        account.assign(index);
        account.answered(stored.status(), outcome);
        let content = large.unwrap_or(Content::Stored(stored));
        Some(AtHand { head, head_sent: 0, content, piece_sent: 0, account })
    }
}

impl AtHand {
    /// What is to be sent next.
    pub fn next(&self) -> Next<'_> {
        let head = IoSlice::new(&self.head[self.head_sent..]);
        let bytes = match &self.content {
            Content::Stored(stored) => stored.body().small(),
            Content::Pieces(Some(Piece::Span(_)), _) if !head.is_empty() => {
                return Next::HeadOfSpan(&self.head[self.head_sent..]);
            }
            Content::Pieces(Some(Piece::Span(span)), _) => return Next::Span(span, self.piece_sent as u64),
            Content::Pieces(Some(Piece::Bytes(bytes)), _) => Some(bytes),
            Content::Pieces(None, _) => None,
        };
        Next::Slices([head, IoSlice::new(bytes.map_or(&[], |bytes| &bytes[self.piece_sent..]))])
    }

    /// So many bytes of that have been sent. Returns whether they were the last.
    ///
    /// # Errors
    /// There is no more, although they were not the last: the client has to see that.
    pub fn sent(&mut self, bytes: usize) -> io::Result<bool> {
        let of_head = bytes.min(self.head.len() - self.head_sent);
        self.head_sent += of_head;
        self.piece_sent += bytes - of_head;
        self.account.sent(bytes - of_head);
        if self.head_sent < self.head.len() || self.piece_sent < self.content.length() {
            return Ok(false);
        }
        self.piece_sent = 0;
        let is_last = !self.content.go_on()?;
        if is_last {
            self.account.end(BodyEnd::Complete);
        }
        Ok(is_last)
    }
}

/// What of an answer is to be sent next.
#[derive(Debug)]
pub enum Next<'a> {
    /// These bytes.
    Slices([IoSlice<'a>; 2]),
    /// These bytes; what comes behind them is sent in another way.
    HeadOfSpan(&'a [u8]),
    /// A body that is kept in pages of a file, from this offset on.
    Span(&'a Span, u64),
}

/// RFC 9110 §8.6: whether an answer with this status says how long it is.
fn has_length(status: StatusCode) -> bool {
    !status.is_informational() && status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

/// The head of a hit.
fn head(stored: &Stored, told: &Told<'_>, outcome: &Outcome, length: u64, now: SystemTime) -> Vec<u8> {
    let status = stored.status();
    let mut head = Vec::with_capacity(HEAD_BYTES);
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(status.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(status.canonical_reason().unwrap_or("<none>").as_bytes());
    head.extend_from_slice(b"\r\n");
    let mut has_length = false;
    for Line { name, start, value } in stored.lines() {
        has_length |= *name == header::CONTENT_LENGTH;
        if *name != header::AGE && !told.replaces(name) {
            push(&mut head, start, value);
        }
    }
    let mut digits = itoa::Buffer::new();
    if !has_length {
        push(&mut head, b"content-length: ", digits.format(length).as_bytes());
    }
    push(&mut head, b"age: ", digits.format(stored.metadata().age(now).as_secs()).as_bytes());
    told.write(outcome, &mut head);
    head.extend_from_slice(b"\r\n");
    head
}

fn push(head: &mut Vec<u8>, start: &[u8], value: &[u8]) {
    head.extend_from_slice(start);
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}
