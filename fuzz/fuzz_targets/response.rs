//! An upstream that answers anything harms nobody: see `scenes::response`.
#![no_main]

#[path = "../scenes.rs"]
mod scenes;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| scenes::response(input));
