//! The scenes of the fuzz targets, over their seeds and over mutations of them: what a fuzzer does for hours, for a second.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]
#![allow(missing_docs, unreachable_pub, reason = "nothing leaves a test")]

#[path = "../fuzz/scenes.rs"]
mod scenes;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any};
use proptest::test_runner::TestRunner;
use std::fs;
use std::path::Path;

/// What is often where parsers disagree.
const WORDS: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b"#",
    b"0",
    b"5\r\n",
    b"0\r\n\r\n",
    b"\r\n\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Host: b\r\n",
    b"Connection: close\r\n",
    b"HTTP/1.0",
    b"Cache-Control: max-age=60\r\n",
    b"Vary: Accept\r\n",
    b"ETag: \"a\"\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\xff",
];

/// A place, what is done there, and with what.
type Change = (u16, u8, u8);

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for (place, change, with) in changes {
        let at = usize::from(*place) % (bytes.len() + 1);
        let word = WORDS[usize::from(*with) % WORDS.len()];
        let end = (at + usize::from(*with)).min(bytes.len());
        match change % 5 {
            0 if at < bytes.len() => bytes[at] = *with,
            1 => drop(bytes.splice(at..at, word.iter().copied())),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copied = bytes[at..end].to_vec();
                bytes.splice(end..end, copied);
            }
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes
}

#[track_caller]
fn check(target: &str, scene: fn(&[u8])) {
    let seeds = seeds(target);
    for seed in &seeds {
        scene(seed);
    }
    let config = ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() };
    let inputs = (0..seeds.len(), vec(any::<Change>(), 0..6));
    let run = TestRunner::new(config).run(&inputs, |(seed, changes)| {
        scene(&changed(seeds[seed].clone(), &changes));
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_client_that_sends_anything_harms_nobody() {
    check("request", scenes::request);
}

#[test]
fn an_upstream_that_answers_anything_harms_nobody() {
    check("response", scenes::response);
}
