//! Selection matches its own request, and matching agrees with being the same variant.
#![no_main]

use forebay::policy::vary::Selection;
use http::header::{ACCEPT_ENCODING, ACCEPT_LANGUAGE, VARY};
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8], &[u8])| {
    let request = |value: &[u8]| {
        let value = HeaderValue::from_bytes(value).ok()?;
        Some(HeaderMap::from_iter([(ACCEPT_ENCODING, value.clone()), (ACCEPT_LANGUAGE, value)]))
    };
    let Ok(vary) = HeaderValue::from_bytes(input.0) else { return };
    let (Some(left), Some(right)) = (request(input.1), request(input.2)) else { return };
    for vary in [vary, HeaderValue::from_static("accept-encoding, accept-language")] {
        let response = HeaderMap::from_iter([(VARY, vary)]);
        let (of_left, of_right) = (Selection::of(&response, &left), Selection::of(&response, &right));
        assert_eq!(of_left.matches(&left), !of_left.is_star());
        assert_eq!(of_left.matches(&right), of_left.same_variant(&of_right));
        assert_eq!(of_left.matches(&right), of_right.matches(&left));
    }
});
