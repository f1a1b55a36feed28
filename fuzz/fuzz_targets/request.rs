//! A client that sends anything harms nobody: see `scenes::request`.
#![no_main]

#[path = "../scenes.rs"]
mod scenes;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| scenes::request(input));
