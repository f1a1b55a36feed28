//! Every slice of a range lies within the body, none overlap, and there are no more than the bound.
#![no_main]

use std::time::UNIX_EPOCH;

use forebay::policy::range::{RANGES_MAX, Selected, select};
use forebay::policy::{Asked, Disposition, Exchange, Rules, dispose};
use http::header::{CACHE_CONTROL, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (length, range) = (u64::from(input.0), input.1);
    let Ok(range) = HeaderValue::from_bytes(range) else { return };
    let request = HeaderMap::from_iter([(RANGE, range)]);
    let response = HeaderMap::from_iter([(CACHE_CONTROL, HeaderValue::from_static("max-age=60"))]);
    let exchange = Exchange {
        method: &Method::GET,
        request: &request,
        status: StatusCode::OK,
        response: &response,
        request_time: UNIX_EPOCH,
        response_time: UNIX_EPOCH,
    };
    let Disposition::Store(metadata) = dispose(&exchange, None, &Rules::default()) else { return };
    let asked = Asked { method: &Method::GET, headers: &request };
    let slices = match select(&asked, StatusCode::OK, &metadata, &response, Some(length)) {
        Selected::Whole | Selected::Unsatisfiable => return,
        Selected::Single(slice) => vec![slice],
        Selected::Several(slices) => slices,
    };
    assert!(slices.len() <= RANGES_MAX);
    for (place, slice) in slices.iter().enumerate() {
        assert!(slice.first <= slice.last && slice.last < length);
        assert!(slices[place + 1..].iter().all(|other| slice.last < other.first || other.last < slice.first));
    }
});
