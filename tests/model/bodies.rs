//! The body that one writes and many read.

use crate::body::{self, Body, Broken, Budget, Reader, Stage};
use crate::checker::{PIECES, block_on, explore};
use crate::stage::{Cast, ask_once, join_all};
use bytes::Bytes;
use http_body_util::BodyExt;
use std::pin::pin;

/// Reads to the end: what was read, and how it ended.
fn read(reader: Reader) -> (Vec<u8>, Result<(), Broken>) {
    block_on(async {
        let mut reader = pin!(reader);
        let mut read = Vec::new();
        loop {
            match reader.frame().await {
                None => return (read, Ok(())),
                Some(Err(broken)) => return (read, Err(broken)),
                Some(Ok(frame)) => read.extend(frame.into_data().unwrap()),
            }
        }
    })
}

fn read_whole(reader: Reader, expected: &str) {
    assert_eq!(read(reader), (expected.into(), Ok(())));
}

/// A body, what is to be written into it, and the budget that must be untouched when all is over.
fn with_body(
    roles: usize,
    at_once: usize,
    pieces: &'static [&'static str],
    scenario: impl Fn(Cast, body::Writer, Body, &[&'static str], String) + Send + Sync + Clone + 'static,
) {
    explore(roles, at_once, move |cast| {
        let budget = Budget::new(1 << 10);
        let (writer, body) = body::new(&budget);
        let pieces = &pieces[..PIECES.min(pieces.len())];
        scenario(cast, writer, body, pieces, pieces.concat());
        assert_eq!((budget.used(), budget.lingering()), (0, 0), "the budget is given back");
    });
}

fn piece(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

// The first piece of each script is a block of its own; a later one is gathered with those before it.

#[test]
fn every_reader_of_a_finished_body_gets_exactly_what_was_written_from_its_offset() {
    with_body(2, 1, &["abcd", "ef", "gh", "i"], |cast, mut writer, body, pieces, whole| {
        let (early, expected) = (body.read().unwrap(), whole.clone());
        let early = cast.plays(0, move || read_whole(early, &expected));
        let late = cast.plays(1, move || {
            read_whole(body.read_from(2, None).unwrap(), &whole[2..]);
            read_whole(body.read_from(1, Some(2)).unwrap(), &whole[1..=2]);
        });
        for text in pieces {
            writer.push(piece(text));
        }
        writer.finish(None);
        join_all([early, late]);
    });
}

#[test]
fn a_body_without_a_byte_ends_for_every_reader() {
    with_body(2, 1, &[], |cast, writer, body, _, _| {
        let readers = [0, 1].map(|role| {
            let body = body.clone();
            cast.plays(role, move || read_whole(body.read().unwrap(), ""))
        });
        writer.finish(None);
        join_all(readers);
        assert_eq!(body.stage(), Stage::Whole(0));
    });
}

#[test]
fn a_reader_of_a_dropped_writer_breaks_and_never_ends() {
    with_body(2, 1, &["abcd", "ef"], |cast, mut writer, body, pieces, whole| {
        let (early, expected) = (body.read().unwrap(), whole.clone());
        let early = cast.plays(0, move || {
            assert_eq!(read(early), (expected.into(), Err(Broken::Upstream)));
        });
        let late = cast.plays(1, move || {
            let late = body.read_from(3, None).unwrap();
            assert_eq!(read(late), (whole[3..].into(), Err(Broken::Upstream)));
        });
        for text in pieces {
            writer.push(piece(text));
        }
        drop(writer);
        join_all([early, late]);
    });
}

#[test]
fn a_window_gives_nobody_a_gap_and_wakes_its_writer() {
    with_body(3, 1, &["ab", "cd", "ef"], |cast, mut writer, body, pieces, whole| {
        let early = body.read().unwrap();
        let shelved = body.shelved();
        let expected = [whole.clone(), whole.clone(), whole];
        let [first, second, third] = expected;
        let readers = [
            cast.plays(0, move || read_whole(early, &first)),
            // Who holds the beginning gets it.
            cast.plays(1, move || {
                let reader = body.read().unwrap();
                drop(body);
                read_whole(reader, &second);
            }),
            // Who does not may come too late, but never to a gap.
            cast.plays(2, move || {
                if let Ok(reader) = shelved.read() {
                    read_whole(reader, &third);
                }
            }),
        ];
        writer.keep_window(1);
        for text in pieces {
            writer.push(piece(text));
            block_on(writer.room());
        }
        writer.finish(None);
        join_all(readers);
    });
}

#[test]
fn the_writer_of_a_window_goes_on_when_the_slowest_reader_leaves() {
    with_body(3, 1, &["ab", "cd", "ef"], |cast, mut writer, body, pieces, whole| {
        let mut leaving = body.read().unwrap();
        let staying = body.read().unwrap();
        let readers = [
            cast.plays(0, move || {
                let _first = block_on(leaving.frame());
                drop(leaving);
            }),
            cast.plays(1, move || read_whole(staying, &whole)),
            cast.plays(2, move || drop(body)),
        ];
        writer.keep_window(1);
        for text in pieces {
            writer.push(piece(text));
            block_on(writer.room());
        }
        writer.finish(None);
        join_all(readers);
    });
}

#[test]
fn a_writer_notices_that_nobody_reads() {
    with_body(2, 1, &["ab"], |cast, mut writer, body, pieces, _| {
        let mut first = body.read().unwrap();
        let leaving = [
            cast.plays(0, move || {
                ask_once(first.frame());
                drop(first);
            }),
            cast.plays(1, move || {
                // The handle goes last here, and the reader where the budget is given back.
                drop(body.clone().read());
                drop(body);
            }),
        ];
        for text in pieces {
            writer.push(piece(text));
        }
        block_on(writer.unread());
        block_on(writer.abandoned());
        drop(writer);
        join_all(leaving);
    });
}

#[test]
fn a_reader_that_is_cut_off_stalls_and_never_skips() {
    with_body(2, 1, &["ab", "cd", "ef"], |cast, mut writer, body, pieces, whole| {
        let readers = [0, 1].map(|role| {
            let (reader, whole) = (body.read().unwrap(), whole.clone());
            cast.plays(role, move || match read(reader) {
                (read, Ok(())) => assert_eq!(read, whole.as_bytes()),
                (read, Err(Broken::Stalled)) => assert!(whole.as_bytes().starts_with(&read)),
                (_, Err(Broken::Upstream | Broken::Unreadable | Broken::Withdrawn)) => {
                    panic!("the upstream is well")
                }
            })
        });
        drop(body);
        writer.keep_window(1);
        let (last, others) = pieces.split_last().unwrap();
        for text in others {
            writer.push(piece(text));
        }
        if let Some(slowest) = writer.slowest() {
            writer.cut_off(slowest);
        }
        writer.push(piece(last));
        writer.finish(None);
        join_all(readers);
    });
}

#[test]
fn the_budget_is_given_back_however_everyone_leaves() {
    with_body(2, 1, &["ab", "cdefg"], |cast, mut writer, body, pieces, _| {
        let leaving = [
            cast.plays(0, {
                let body = body.clone();
                move || drop(body.read())
            }),
            cast.plays(1, move || {
                let shelved = body.shelved();
                let reader = body.read();
                drop(body);
                drop(shelved.read());
                drop(reader);
            }),
        ];
        for text in pieces {
            writer.push(piece(text));
            writer.keep_window(1);
        }
        drop(writer);
        join_all(leaving);
    });
}

#[test]
fn a_body_that_lingers_is_withdrawn_but_never_while_it_is_stored() {
    explore(2, 1, move |cast| {
        let budget = Budget::new(1);
        let (mut writer, body) = body::new(&budget);
        // Two blocks: one alone is no bulk.
        writer.push(piece("abcd"));
        writer.push(piece("ef"));
        let finished = writer.finish(None);
        let reader = body.read().unwrap();
        let storing = cast.plays(0, move || {
            let shelved = body.shelved();
            drop(body);
            if !shelved.is_withdrawn() {
                read_whole(shelved.read().unwrap(), "abcdef");
            }
        });
        let reading = cast.plays(1, move || match read(reader) {
            (read, Ok(())) => assert_eq!(read, b"abcdef"),
            (read, Err(Broken::Withdrawn)) => assert!(b"abcdef".starts_with(&read)),
            (_, Err(Broken::Upstream | Broken::Unreadable | Broken::Stalled)) => panic!("nobody is at fault"),
        });
        drop(finished);
        join_all([storing, reading]);
        assert_eq!((budget.used(), budget.lingering()), (0, 0), "the budget is given back");
    });
}
