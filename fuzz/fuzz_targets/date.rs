//! Dates never panic, and what is read and written reads the same again.
#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use forebay::policy::date;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let now = UNIX_EPOCH + Duration::from_secs(1_768_478_400);
    let Some(time) = date::parse(text, now).filter(|time| *time >= UNIX_EPOCH) else { return };
    let written = date::format(time);
    // The leap second of the last day of 9999 has no four-digit year to be written with.
    if time < UNIX_EPOCH + Duration::from_secs(253_402_300_800) {
        assert_eq!(date::parse_value(&written, now), Some(time));
    }
});
