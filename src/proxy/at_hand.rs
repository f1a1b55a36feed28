//! Answers that lie at hand: fresh stored responses, written out as bytes while the request is still being read.
//!
//! What may be answered so, and with what, is decided where it is decided for all requests ([`receive`], [`Proxy::decide`]).
//! Only the last step differs: the head goes from the store to the connection without becoming a table of fields.

use super::answer::{Account, Beginning};
use super::receive::{Client, Received};
use super::{Proxy, receive, supervise};
use crate::body::{Piece, Pieces, Span};
use crate::outcome::{Answered, Outcome};
use crate::policy::Plan;
use crate::store::Stored;
use crate::telemetry::BodyEnd;
use bytes::Bytes;
use http::{HeaderName, Request, StatusCode, header};
use http_body_util::Empty;
use std::io::{self, IoSlice};

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
    /// The answer to a request without a body and without anything that is meant for the connection, if all it takes is a
    /// fresh stored response. `None`: it is to be served as every other. Until there is an answer nothing has been counted.
    pub fn at_hand(&self, request: Request<Empty<Bytes>>, client: Client) -> Option<AtHand> {
        let beginning = Beginning::of(&self.telemetry, &request, client.address);
        supervise::caught(&self.telemetry, "request", || {
            let site = self.site.load_full();
            let (received, _) =
                receive::receive(&site, &self.cache.keyer, request, client, self.clock.now()).ok()?;
            if received.selects || received.is_purge() || received.is_keyed_by_body() {
                return None;
            }
            let decided = self.decide(&received);
            let Plan::Deliver { stored } = decided.plan else { return None };
            let stored = &decided.stored()[stored];
            let mut pieces = stored.body().pieces()?;
            if !stored.metadata().is_fresh(received.now) || !has_length(stored.status()) {
                return None;
            }
            let ttl_seconds = Some(stored.metadata().ttl_seconds(received.now));
            let outcome = Outcome { ttl_seconds, ..Outcome::of(Answered::Hit) };
            let head = head(&received, stored, &outcome, pieces.length());
            let piece = pieces.next().transpose().ok()?;
            let mut account = Account::open(&self.telemetry, site, beginning);
            account.assign(received.route);
            account.answered(stored.status(), outcome);
            Some(AtHand { head, head_sent: 0, piece, piece_sent: 0, pieces, account })
        })
        .flatten()
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
fn head(received: &Received, stored: &Stored, outcome: &Outcome, length: u64) -> Vec<u8> {
    let status = stored.status();
    let mut head = Vec::with_capacity(HEAD_BYTES);
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(status.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(status.canonical_reason().unwrap_or("<none>").as_bytes());
    head.extend_from_slice(b"\r\n");
    let key = received.key_text();
    let told = received.site.told(key.as_deref());
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
    push(&mut head, &header::AGE, digits.format(stored.metadata().age(received.now).as_secs()).as_bytes());
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
