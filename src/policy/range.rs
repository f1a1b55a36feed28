//! Which part of a stored response is wanted (RFC 9110 §14).

use std::time::Duration;

use http::header::{CONTENT_TYPE, IF_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::metadata::Metadata;
use super::{Asked, date};

/// Which part of a response is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selected {
    /// All of it: 200.
    Whole,
    /// One part: 206.
    Single(Slice),
    /// Several parts, in the order in which they were asked for: 206 as `multipart/byteranges`.
    Several(Vec<Slice>),
    /// Nothing that exists: 416.
    Unsatisfiable,
}

/// A part of a body: both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// The place of its first byte.
    pub first: u64,
    /// The place of its last byte.
    pub last: u64,
}

/// The pieces of a `multipart/byteranges` body (RFC 9110 §14.6).
#[derive(Debug, Clone)]
pub struct Multipart<'a> {
    /// A string that occurs in no part.
    pub boundary: &'a str,
    /// The type of the whole, which each part repeats.
    pub content_type: Option<&'a HeaderValue>,
    /// The length of the whole.
    pub length: u64,
}

/// More ranges than this are answered with the whole.
pub const RANGES_MAX: usize = 16;

/// Which part of a stored response the client wants.
///
/// Only a GET for a stored 200 can be answered in part. `length` is that of the stored body; while it is not
/// known, the answer is the whole. A range that cannot be read, a unit that is not `bytes` and a failed
/// `If-Range` ask for the whole, too, and so does abuse: too many ranges, or more bytes than there are.
pub fn select(
    asked: &Asked<'_>,
    status: StatusCode,
    metadata: &Metadata,
    stored: &HeaderMap,
    length: Option<u64>,
) -> Selected {
    // §14.2: "A server MUST ignore a Range header field received with a request method that is unrecognized or
    // for which range handling is not defined. For this specification, GET is the only [such] method".
    let Some(range) = asked.headers.get(RANGE) else { return Selected::Whole };
    if *asked.method != Method::GET || status != StatusCode::OK {
        return Selected::Whole;
    }
    let Some(length) = length else { return Selected::Whole };
    // §14.2: "MUST ignore the Range header field if the If-Range condition is false" (§13.1.5).
    if asked.headers.get_all(RANGE).iter().nth(1).is_some() || !if_range_holds(asked, metadata, stored) {
        return Selected::Whole;
    }
    let Some(specs) = parse(range.as_bytes()) else { return Selected::Whole };
    satisfy(&specs, length)
}

/// The `Content-Range` of a slice (§14.4); the length is `*` while it is not known.
pub fn content_range(slice: Slice, length: Option<u64>) -> HeaderValue {
    let Slice { first, last } = slice;
    value(match length {
        Some(length) => format!("bytes {first}-{last}/{length}"),
        None => format!("bytes {first}-{last}/*"),
    })
}

/// The `Content-Range` of a 416: how long the body is (§15.5.17).
pub fn unsatisfied(length: u64) -> HeaderValue {
    value(format!("bytes */{length}"))
}

/// For a body whose length is not known yet: the place from which a single range asks, and where it ends if
/// it says so. Nothing can be said of several ranges, of the last `n` bytes, or of a request with `If-Range`.
pub fn open_start(asked: &Asked<'_>) -> Option<(u64, Option<u64>)> {
    if *asked.method != Method::GET || asked.headers.contains_key(IF_RANGE) {
        return None;
    }
    match parse(asked.headers.get(RANGE)?.as_bytes())?.as_slice() {
        [Spec::FromTo(first, last)] => Some((*first, Some(*last))),
        [Spec::From(first)] => Some((*first, None)),
        _ => None,
    }
}

impl Slice {
    /// How many bytes it has.
    #[expect(clippy::len_without_is_empty, reason = "a slice has at least one byte")]
    pub fn len(self) -> u64 {
        self.last - self.first + 1
    }
}

impl Multipart<'_> {
    /// The `Content-Type` of the whole answer.
    pub fn media_type(&self) -> HeaderValue {
        value(format!("multipart/byteranges; boundary={}", self.boundary))
    }

    /// What stands before the bytes of a part.
    pub fn part_head(&self, slice: Slice) -> Vec<u8> {
        let mut head = Vec::with_capacity(128);
        head.extend_from_slice(b"\r\n--");
        head.extend_from_slice(self.boundary.as_bytes());
        if let Some(content_type) = self.content_type {
            head.extend_from_slice(b"\r\nContent-Type: ");
            head.extend_from_slice(content_type.as_bytes());
        }
        head.extend_from_slice(b"\r\nContent-Range: ");
        head.extend_from_slice(content_range(slice, Some(self.length)).as_bytes());
        head.extend_from_slice(b"\r\n\r\n");
        head
    }

    /// What stands behind the last part.
    pub fn closing(&self) -> Vec<u8> {
        format!("\r\n--{}--\r\n", self.boundary).into_bytes()
    }

    /// The `Content-Length` of the whole answer.
    pub fn content_length(&self, slices: &[Slice]) -> u64 {
        let parts: u64 = slices.iter().map(|slice| self.part_head(*slice).len() as u64 + slice.len()).sum();
        parts + self.closing().len() as u64
    }

    /// The type that each part repeats, from the stored fields.
    pub fn part_type(stored: &HeaderMap) -> Option<&HeaderValue> {
        stored.get(CONTENT_TYPE)
    }
}

/// One range as it is asked for (§14.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spec {
    /// `a-b`
    FromTo(u64, u64),
    /// `a-`
    From(u64),
    /// `-n`
    Last(u64),
}

/// Reads a `Range` field; `None` where it is to be ignored: another unit, a broken list, a range that ends
/// before it begins (§14.1.1: "invalid"), too many ranges.
fn parse(field: &[u8]) -> Option<Vec<Spec>> {
    let (unit, set) = field.split_at_checked(6)?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let mut specs = Vec::new();
    for member in set.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
    {
        if specs.len() == RANGES_MAX {
            return None;
        }
        specs.push(spec(member)?);
    }
    (!specs.is_empty()).then_some(specs)
}

fn spec(member: &[u8]) -> Option<Spec> {
    let dash = member.iter().position(|byte| *byte == b'-')?;
    match (&member[..dash], &member[dash + 1..]) {
        ([], suffix) => Some(Spec::Last(number(suffix)?)),
        (first, []) => Some(Spec::From(number(first)?)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Spec::FromTo(first, last))
        }
    }
}

/// A number of any number of digits; what is too large is the largest.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, byte| {
        byte.is_ascii_digit().then(|| number.saturating_mul(10).saturating_add(u64::from(byte - b'0')))
    })
}

fn satisfy(specs: &[Spec], length: u64) -> Selected {
    if length == 0 && specs.iter().any(|spec| matches!(spec, Spec::Last(1..))) {
        // §14.1.2: "the entire representation is used", and no Content-Range can express an empty one.
        return Selected::Whole;
    }
    let slices: Vec<Slice> = specs.iter().filter_map(|spec| spec.within(length)).collect();
    match slices.as_slice() {
        [] => Selected::Unsatisfiable,
        [only] => Selected::Single(*only),
        several => {
            // §14.2, §17.15: ranges that overlap widely cost more than the whole.
            if several
                .iter()
                .try_fold(0_u64, |sum, slice| sum.checked_add(slice.len()))
                .is_none_or(|sum| sum > length)
            {
                return Selected::Whole;
            }
            match coalesced(several).as_slice() {
                [only] => Selected::Single(*only),
                several => Selected::Several(several.to_vec()),
            }
        }
    }
}

impl Spec {
    /// The bytes that exist of it; `None` where it is unsatisfiable (§14.1.2).
    fn within(self, length: u64) -> Option<Slice> {
        let end = length.checked_sub(1)?;
        match self {
            Self::FromTo(first, last) => (first <= end).then(|| Slice { first, last: last.min(end) }),
            Self::From(first) => (first <= end).then_some(Slice { first, last: end }),
            Self::Last(0) => None,
            Self::Last(count) => Some(Slice { first: length.saturating_sub(count), last: end }),
        }
    }
}

/// The slices with those that overlap or touch made one (§15.3.7.2), each in the place of its first piece.
fn coalesced(slices: &[Slice]) -> Vec<Slice> {
    let mut merged: Vec<Slice> = Vec::with_capacity(slices.len());
    for slice in slices {
        let mut slice = *slice;
        let mut place = merged.len();
        // A slice can close the gap between two others: all that it touches become one with it.
        while let Some(touched) = merged.iter().position(|other| {
            other.first <= slice.last.saturating_add(1) && slice.first <= other.last.saturating_add(1)
        }) {
            let other = merged.remove(touched);
            slice = Slice { first: slice.first.min(other.first), last: slice.last.max(other.last) };
            place = place.min(touched);
        }
        merged.insert(place.min(merged.len()), slice);
    }
    merged
}

/// Whether the client's part is of the stored representation (§13.1.5); so it is where it does not ask.
fn if_range_holds(asked: &Asked<'_>, metadata: &Metadata, stored: &HeaderMap) -> bool {
    let mut lines = asked.headers.get_all(IF_RANGE).iter();
    let Some(condition) = lines.next() else { return true };
    if lines.next().is_some() {
        return false;
    }
    let text = condition.as_bytes();
    if text.contains(&b'"') {
        // "A client MUST NOT generate an If-Range header field containing an entity tag that is marked as
        // weak", and the comparison is the strong one.
        return metadata.validators(stored).strong_etag().is_some_and(|etag| etag == condition);
    }
    let received = metadata.freshness.response_time();
    let Some(own) = metadata.validators(stored).last_modified else { return false };
    let modified = date::parse_value(own, received);
    // §8.8.2.2: Last-Modified is strong only if it is "at least one second before the Date value".
    let is_strong = modified.zip(date::of(stored, received)).is_some_and(|(modified, date)| {
        date.duration_since(modified).is_ok_and(|apart| apart >= Duration::from_secs(1))
    });
    is_strong && date::parse(text, received) == modified
}

/// A field value of our own making, which is always a valid one.
fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Fetch, fields, get};
    use super::*;

    const STORED: &str = "Cache-Control: max-age=9\nETag: \"a\"\nLast-Modified: Sun, 06 Nov 1994 08:00:00 GMT\nDate: Sun, 06 Nov 1994 08:49:37 GMT";

    fn selected(response: &str, request: &str, length: Option<u64>) -> Selected {
        let fetch = Fetch::of(response);
        select(&get(&fields(request)), fetch.status, &fetch.metadata(), &fetch.response, length)
    }

    #[track_caller]
    fn check(range: &str, length: u64, expected: &[(u64, u64)]) {
        let slices: Vec<_> =
            expected.iter().map(|(first, last)| Slice { first: *first, last: *last }).collect();
        let expected = match slices.as_slice() {
            [only] => Selected::Single(*only),
            _ => Selected::Several(slices),
        };
        assert_eq!(selected(STORED, &format!("Range: {range}"), Some(length)), expected, "{range}");
    }

    #[track_caller]
    fn check_whole(request: &str, length: u64) {
        assert_eq!(selected(STORED, request, Some(length)), Selected::Whole, "{request}");
    }

    #[track_caller]
    fn check_unsatisfiable(range: &str, length: u64) {
        assert_eq!(
            selected(STORED, &format!("Range: {range}"), Some(length)),
            Selected::Unsatisfiable,
            "{range}"
        );
    }

    #[test]
    fn rfc9110_14_1_2_single_ranges() {
        check("bytes=0-0", 10, &[(0, 0)]);
        check("bytes=2-5", 10, &[(2, 5)]);
        check("bytes=2-", 10, &[(2, 9)]);
        check("bytes=0-", 10, &[(0, 9)]);
        check("bytes=-3", 10, &[(7, 9)]);
        check("bytes=-30", 10, &[(0, 9)]);
        check("bytes=5-500", 10, &[(5, 9)]);
        check("Bytes= 2-5 ,", 10, &[(2, 5)]);
        check("bytes=5-99999999999999999999999999", 10, &[(5, 9)]);
        check("bytes=-99999999999999999999999999", 10, &[(0, 9)]);
    }

    #[test]
    fn rfc9110_14_1_1_must_ignore_invalid_ranges() {
        for value in [
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=5",
            "bytes=-",
            "bytes=5-2",
            "bytes=a-b",
            "bytes=1-2-3",
            "bytes=0-1,x",
            "bytes=0x1-2",
            "bytes=--5",
            "bytes =0-1",
            "bytes=1 - 2",
            "lines=0-1",
            "seconds=1-",
            "0-1",
            "",
        ] {
            check_whole(&format!("Range: {value}"), 10);
        }
        check_whole("Range: bytes=0-1\nRange: bytes=2-3", 10);
    }

    #[test]
    fn rfc9110_15_5_17_unsatisfiable_ranges() {
        check_unsatisfiable("bytes=10-", 10);
        check_unsatisfiable("bytes=10-20", 10);
        check_unsatisfiable("bytes=-0", 10);
        check_unsatisfiable("bytes=0-0", 0);
        check_unsatisfiable("bytes=99999999999999999999-", 10);
        check_whole("Range: bytes=-5", 0);
        assert_eq!(unsatisfied(10), "bytes */10");
    }

    #[test]
    fn rfc9110_14_2_several_ranges_are_bounded() {
        check("bytes=0-1, 5-6", 10, &[(0, 1), (5, 6)]);
        check("bytes=5-6,0-1", 10, &[(5, 6), (0, 1)]);
        check("bytes=0-1,10-20", 10, &[(0, 1)]);
        check("bytes=0-3,2-5", 10, &[(0, 5)]);
        check("bytes=0-1,2-3", 10, &[(0, 3)]);
        check("bytes=0-1,4-5,2-3,8-8", 10, &[(0, 5), (8, 8)]);
        check_whole("Range: bytes=0-,0-,0-", 10);
        let many = |count: usize| {
            (0..count).map(|place| format!("{}-{}", place * 3, place * 3)).collect::<Vec<_>>().join(",")
        };
        check_whole(&format!("Range: bytes={}", many(17)), 1000);
        assert!(matches!(
            selected(STORED, &format!("Range: bytes={}", many(16)), Some(1000)),
            Selected::Several(_)
        ));
    }

    #[test]
    fn rfc9110_14_2_must_ignore_range_for_other_methods_and_statuses() {
        let fetch = Fetch::of(STORED);
        let headers = fields("Range: bytes=0-1");
        let asked = Asked { method: &Method::HEAD, headers: &headers };
        assert_eq!(
            select(&asked, fetch.status, &fetch.metadata(), &fetch.response, Some(10)),
            Selected::Whole
        );
        let found =
            select(&get(&headers), StatusCode::NOT_FOUND, &fetch.metadata(), &fetch.response, Some(10));
        assert_eq!(found, Selected::Whole);
        assert_eq!(selected(STORED, "Range: bytes=0-1", None), Selected::Whole);
    }

    #[track_caller]
    fn check_if_range(response: &str, condition: &str, holds: bool) {
        let found = selected(response, &format!("Range: bytes=0-1\nIf-Range: {condition}"), Some(10));
        assert_eq!(found != Selected::Whole, holds, "{response} | {condition}");
    }

    #[test]
    fn rfc9110_13_1_5_must_ignore_range_unless_if_range_matches_strongly() {
        check_if_range(STORED, "\"a\"", true);
        check_if_range(STORED, "\"b\"", false);
        check_if_range(STORED, "W/\"a\"", false);
        check_if_range("ETag: W/\"a\"", "W/\"a\"", false);
        check_if_range(STORED, "Sun, 06 Nov 1994 08:00:00 GMT", true);
        check_if_range(STORED, "Sun, 06 Nov 1994 08:00:01 GMT", false);
        check_if_range(STORED, "garbage", false);
        let modified_now = "Cache-Control: max-age=9\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\nDate: Sun, 06 Nov 1994 08:49:37 GMT";
        check_if_range(modified_now, "Sun, 06 Nov 1994 08:49:37 GMT", false);
        check_if_range("Cache-Control: max-age=9", "Sun, 06 Nov 1994 08:49:37 GMT", false);
    }

    #[test]
    fn rfc9110_14_6_multipart_pieces() {
        let content_type = HeaderValue::from_static("text/plain");
        let multipart = Multipart { boundary: "B", content_type: Some(&content_type), length: 10 };
        let slices = [Slice { first: 0, last: 1 }, Slice { first: 5, last: 6 }];
        let mut body = multipart.part_head(slices[0]);
        body.extend_from_slice(b"ab");
        body.extend_from_slice(&multipart.part_head(slices[1]));
        body.extend_from_slice(b"fg");
        body.extend_from_slice(&multipart.closing());
        let expected = "\r\n--B\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\nab\r\n--B\r\nContent-Type: text/plain\r\nContent-Range: bytes 5-6/10\r\n\r\nfg\r\n--B--\r\n";
        assert_eq!(String::from_utf8(body).unwrap(), expected);
        assert_eq!(multipart.content_length(&slices), expected.len() as u64);
        assert_eq!(multipart.media_type(), "multipart/byteranges; boundary=B");
    }

    #[test]
    fn rfc9110_14_4_content_range() {
        assert_eq!(content_range(Slice { first: 2, last: 5 }, Some(10)), "bytes 2-5/10");
        assert_eq!(content_range(Slice { first: 2, last: 5 }, None), "bytes 2-5/*");
        assert_eq!(open_start(&get(&fields("Range: bytes=2-5"))), Some((2, Some(5))));
        assert_eq!(open_start(&get(&fields("Range: bytes=2-"))), Some((2, None)));
        assert_eq!(open_start(&get(&fields("Range: bytes=-2"))), None);
    }

    proptest! {
        #[test]
        fn every_slice_lies_within_and_none_overlap(
            range in "bytes=[0-9, -]{0,24}",
            length in 0_u64..40,
        ) {
            let slices = match selected(STORED, &format!("Range: {range}"), Some(length)) {
                Selected::Whole | Selected::Unsatisfiable => Vec::new(),
                Selected::Single(slice) => vec![slice],
                Selected::Several(slices) => slices,
            };
            for (place, slice) in slices.iter().enumerate() {
                prop_assert!(slice.first <= slice.last && slice.last < length);
                for other in &slices[place + 1..] {
                    prop_assert!(slice.last < other.first || other.last < slice.first);
                }
            }
        }
    }
}
