//! Targeted fields, groups and tags never panic, and a targeted field counts exactly when it is valid.
#![no_main]

use forebay::policy::targeted::{Controls, Source, targeted};
use forebay::policy::{Rules, invalidation};
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    let Ok(value) = HeaderValue::from_bytes(line) else { return };
    let name = HeaderName::from_static("cdn-cache-control");
    let groups = HeaderName::from_static("cache-groups");
    let tags = HeaderName::from_static("surrogate-key");
    let headers =
        HeaderMap::from_iter([(name.clone(), value.clone()), (groups, value.clone()), (tags, value)]);
    let controls = Controls::of(&headers, &Rules::default());
    assert_eq!(controls.source == Source::Targeted, targeted(&headers, &name).is_some());
    let _ = (invalidation::groups(&headers), invalidation::tags(&headers));
});
