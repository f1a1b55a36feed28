//! `Cache-Control` never panics, and a plain `private` behind it is never lost.
#![no_main]

use forebay::policy::directives::{RequestDirectives, ResponseDirectives};
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    let Ok(value) = HeaderValue::from_bytes(line) else { return };
    let mut headers = HeaderMap::new();
    headers.append(CACHE_CONTROL, value);
    let _ = RequestDirectives::of(&headers);
    let alone = ResponseDirectives::of(&headers);
    headers.append(CACHE_CONTROL, HeaderValue::from_static("private, max-age=5"));
    let together = ResponseDirectives::of(&headers);
    assert!(together.private.is_everything());
    assert!(together.max_age <= alone.max_age.or(together.max_age));
});
