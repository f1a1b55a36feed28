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
use crate::store::Stored;
use crate::telemetry::BodyEnd;
use http::{HeaderName, Method, StatusCode, header};
use std::io::{self, IoSlice};
use std::time::SystemTime;

/// A whole answer in the form of HTTP/1.1, on its way to the client. When it is dropped, the account of its request is closed.
#[derive(Debug)]
pub struct AtHand {
    head: Vec<u8>,
    head_sent: usize,
    /// The piece of the body that is being sent, how much of it has been, and the pieces behind it.
    piece: Option<Piece>,
    piece_sent: usize,
    pieces: Pieces,
    account: Account,
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
        let stored = &decided.stored()[stored];
        let mut pieces = stored.body().pieces()?;
        if !stored.metadata().is_fresh(now) || !has_length(stored.status()) {
            return None;
        }
        let ttl_seconds = Some(stored.metadata().ttl_seconds(now));
        let outcome = Outcome { ttl_seconds, ..Outcome::of(Answered::Hit) };
        let key = site.settings.cache_status_key.then(|| policy::key::text(&identity, &route.key));
        let head = head(stored, &site.told(key.as_deref()), &outcome, pieces.length(), now);
        let piece = pieces.next().transpose().ok()?;
        let mut account = Account::open(&self.telemetry, site, beginning);
        account.assign(index);
        account.answered(stored.status(), outcome);
        Some(AtHand { head, head_sent: 0, piece, piece_sent: 0, pieces, account })
    }
}

impl AtHand {
    /// What is to be sent next.
    pub fn next(&self) -> Next<'_> {
        let head = IoSlice::new(&self.head[self.head_sent..]);
        match &self.piece {
            None => Next::Slices([head, IoSlice::new(&[])]),
            Some(Piece::Bytes(bytes)) => Next::Slices([head, IoSlice::new(&bytes[self.piece_sent..])]),
            Some(Piece::Span(_)) if !head.is_empty() => Next::HeadOfSpan(&self.head[self.head_sent..]),
            Some(Piece::Span(span)) => Next::Span(span, self.piece_sent as u64),
        }
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
        let length = self.piece.as_ref().map_or(0, Piece::length);
        if self.head_sent < self.head.len() || self.piece_sent < length {
            return Ok(false);
        }
        (self.piece, self.piece_sent) = (self.pieces.next().transpose().map_err(io::Error::other)?, 0);
        if self.piece.is_none() {
            self.account.end(BodyEnd::Complete);
        }
        Ok(self.piece.is_none())
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
    for (name, value) in stored.fields() {
        has_length |= *name == header::CONTENT_LENGTH;
        if *name != header::AGE && !told.replaces(name) {
            push(&mut head, name, value);
        }
    }
    let mut digits = itoa::Buffer::new();
    if !has_length {
        push(&mut head, &header::CONTENT_LENGTH, digits.format(length).as_bytes());
    }
    push(&mut head, &header::AGE, digits.format(stored.metadata().age(now).as_secs()).as_bytes());
    told.write(outcome, |name, value| push(&mut head, name, value));
    head.extend_from_slice(b"\r\n");
    head
}

fn push(head: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    head.extend_from_slice(name.as_str().as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}
