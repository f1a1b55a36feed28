//! A stored response as one client gets it: whole, in part, or as the news that its own copy still holds.

use super::answer::{Answer, Part, Source};
use super::fetch::content_length;
use super::receive::Received;
use crate::body::{Stage, TooLate};
use crate::outcome::{Answered, Outcome};
use crate::policy::conditional::{self, Precondition};
use crate::policy::range::{self, Multipart, Selected, Slice};
use crate::store::Stored;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use std::time::SystemTime;

/// How many fields are added to those that are stored: `Age`, `Cache-Status`, and what the site and the connection may add.
const FIELDS_ADDED: usize = 4;

/// Answers with a stored response: the client's own conditions and ranges are applied here, and only here.
///
/// # Errors
/// [`TooLate`] where the beginning of its body is no longer kept.
pub(super) fn deliver(
    received: &Received,
    stored: &Stored,
    outcome: Outcome,
    now: SystemTime,
) -> Result<Answer, TooLate> {
    let metadata = stored.metadata();
    let mut headers = stored.headers_with_room(FIELDS_ADDED);
    match outcome.answered {
        // RFC 9111 §5.1: Age "implies that the response was not generated or validated by the origin server for this
        // request". Where it was, an Age that came along stays as it is.
        Answered::Miss | Answered::Pass | Answered::Revalidated => {}
        Answered::Hit
        | Answered::Stale
        | Answered::Collapsed
        | Answered::Tunnel
        | Answered::Purged
        | Answered::Rejected
        | Answered::Error
        | Answered::Abandoned => {
            headers.insert(header::AGE, HeaderValue::from(metadata.age(now).as_secs()));
        }
    }
    let response = if received.selects {
        match conditional::evaluate(&received.asked(), metadata, &headers) {
            Precondition::NotModified => not_modified(&headers),
            Precondition::Deliver => selected(received, stored, headers)?,
        }
    } else {
        whole(received, stored, headers)?
    };
    let outcome = Outcome { ttl_seconds: Some(metadata.ttl_seconds(now)), ..outcome };
    let mut answer = Answer { response, outcome };
    let key = received.key_text();
    received.site.told(key.as_deref()).of(&mut answer);
    Ok(answer)
}

/// RFC 9110 §15.4.5.
fn not_modified(headers: &HeaderMap) -> Response<Source> {
    let mut response = Response::new(Source::Empty);
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    *response.headers_mut() = conditional::not_modified_headers(headers);
    if let Some(age) = headers.get(header::AGE) {
        response.headers_mut().insert(header::AGE, age.clone());
    }
    response
}

fn selected(received: &Received, stored: &Stored, headers: HeaderMap) -> Result<Response<Source>, TooLate> {
    let asked = received.asked();
    if !received.headers.contains_key(header::RANGE) {
        return whole(received, stored, headers);
    }
    let length = match stored.body().stage() {
        Stage::Whole(length) => Some(length),
        Stage::Filling => content_length(&headers),
        // What is left of it can only be read from the beginning.
        Stage::Gone | Stage::Broken => None,
    };
    match (range::select(&asked, stored.status(), stored.metadata(), &headers, length), length) {
        (_, None) => arrived(received, stored, headers),
        (Selected::Whole, _) => whole(received, stored, headers),
        (Selected::Unsatisfiable, Some(length)) => Ok(unsatisfiable(length)),
        (Selected::Single(slice), Some(length)) => single(stored, headers, slice, Some(length)),
        // Parts may come in any order, and one that waits for its turn would hold the others' window up.
        (Selected::Several(_), _) if !matches!(stored.body().stage(), Stage::Whole(_)) => {
            whole(received, stored, headers)
        }
        (Selected::Several(slices), Some(length)) => several(stored, headers, &slices, length),
    }
}

fn whole(received: &Received, stored: &Stored, headers: HeaderMap) -> Result<Response<Source>, TooLate> {
    let source =
        if received.method == Method::HEAD { Source::Empty } else { Source::Shared(stored.body().read()?) };
    let mut response = Response::new(source);
    *response.status_mut() = stored.status();
    *response.headers_mut() = headers;
    if received.method == Method::HEAD
        && let Stage::Whole(length) = stored.body().stage()
    {
        // RFC 9110 §9.3.2: what a GET would say, where it is known.
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(response)
}

/// A range of a body whose length is not known yet: it can be promised only if all of it has arrived.
fn arrived(received: &Received, stored: &Stored, headers: HeaderMap) -> Result<Response<Source>, TooLate> {
    match range::open_start(&received.asked()) {
        Some((first, Some(last)))
            if stored.status() == StatusCode::OK && last < stored.body().bytes_held() =>
        {
            single(stored, headers, Slice { first, last }, None)
        }
        Some(_) | None => whole(received, stored, headers),
    }
}

/// RFC 9110 §15.3.7.
fn single(
    stored: &Stored,
    headers: HeaderMap,
    slice: Slice,
    length: Option<u64>,
) -> Result<Response<Source>, TooLate> {
    let reader = stored.body().read_from(slice.first, Some(slice.last))?;
    let mut response = partial(headers, Source::Shared(reader), slice.len());
    response.headers_mut().insert(header::CONTENT_RANGE, range::content_range(slice, length));
    Ok(response)
}

/// RFC 9110 §14.6.
fn several(
    stored: &Stored,
    headers: HeaderMap,
    slices: &[Slice],
    length: u64,
) -> Result<Response<Source>, TooLate> {
    // 96 random bits: that they occur in a part is less likely than any failure of the machine.
    let boundary = format!("{:016x}{:08x}", fastrand::u64(..), fastrand::u32(..));
    let content_type = Multipart::part_type(&headers);
    let multipart = Multipart { boundary: &boundary, content_type, length };
    let mut parts = std::collections::VecDeque::with_capacity(slices.len() * 2 + 1);
    for slice in slices {
        parts.push_back(Part::Bytes(Bytes::from(multipart.part_head(*slice))));
        parts.push_back(Part::Slice(stored.body().read_from(slice.first, Some(slice.last))?));
    }
    parts.push_back(Part::Bytes(Bytes::from(multipart.closing())));
    let (length, media_type) = (multipart.content_length(slices), multipart.media_type());
    let mut response = partial(headers, Source::Parts(parts), length);
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    Ok(response)
}

fn partial(mut headers: HeaderMap, source: Source, length: u64) -> Response<Source> {
    let mut response = Response::new(source);
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    *response.headers_mut() = headers;
    response
}

/// RFC 9110 §15.5.17.
fn unsatisfiable(length: u64) -> Response<Source> {
    let mut response = Response::new(Source::Empty);
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    response.headers_mut().insert(header::CONTENT_RANGE, range::unsatisfied(length));
    response
}
