use super::{BLOCK_BYTES, Ordering};
use crate::body::{Body, Broken, Budget, Pages, Piece, Reader, Stage, TooLate, new, of};
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http_body::Body as _;
use http_body_util::BodyExt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize as Count;
use std::task::{Context, Poll, Wake, Waker};

/// Counts how often it was woken.
#[derive(Default)]
struct Bell(Count);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Bell {
    fn rings(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn poll<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn poll_with<F: Future>(future: F, bell: &Arc<Bell>) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(&Waker::from(Arc::clone(bell))))
}

/// What the reader has at this moment.
#[derive(Debug, PartialEq, Eq)]
enum Now {
    Bytes(Vec<u8>),
    Trailers,
    Waits,
    Ends,
    Breaks(Broken),
}

fn now(reader: &mut Reader) -> Now {
    match Pin::new(reader).poll_frame(&mut Context::from_waker(Waker::noop())) {
        Poll::Pending => Now::Waits,
        Poll::Ready(None) => Now::Ends,
        Poll::Ready(Some(Err(broken))) => Now::Breaks(broken),
        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
            Ok(bytes) => Now::Bytes(bytes.to_vec()),
            Err(_) => Now::Trailers,
        },
    }
}

/// Everything that a reader has until it waits, ends or breaks.
fn drain(reader: &mut Reader) -> (Vec<u8>, Now) {
    let mut read = Vec::new();
    loop {
        match now(reader) {
            Now::Bytes(bytes) => read.extend(bytes),
            other => return (read, other),
        }
    }
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn unlimited() -> Arc<Budget> {
    Budget::new(usize::MAX)
}

fn trailers() -> HeaderMap {
    [(http::header::ETAG, HeaderValue::from_static("\"x\""))].into_iter().collect()
}

#[tokio::test]
async fn a_reader_sees_what_is_written_before_and_after_it_came() {
    let (mut writer, body) = new(&unlimited());
    writer.push(bytes("first "));
    let early = tokio::spawn(body.read().unwrap().collect());
    tokio::task::yield_now().await;
    writer.push(bytes("second"));
    let late = body.read().unwrap();
    writer.finish(Some(trailers()));
    let collected = early.await.unwrap().unwrap();
    assert_eq!(collected.trailers(), Some(&trailers()));
    assert_eq!(collected.to_bytes(), "first second");
    assert_eq!(late.collect().await.unwrap().to_bytes(), "first second");
    assert_eq!(body.read().unwrap().collect().await.unwrap().to_bytes(), "first second");
}

#[test]
fn a_body_without_a_byte_is_whole() {
    let (writer, body) = new(&unlimited());
    let mut early = body.read().unwrap();
    assert_eq!(now(&mut early), Now::Waits);
    writer.finish(None);
    assert_eq!(now(&mut early), Now::Ends);
    assert_eq!(body.stage(), Stage::Whole(0));
    let mut late = body.read().unwrap();
    assert!(late.is_end_stream());
    assert_eq!(late.size_hint().exact(), Some(0));
    assert_eq!(now(&mut late), Now::Ends);
}

#[test]
fn an_empty_piece_is_no_piece() {
    let (mut writer, body) = new(&unlimited());
    let mut reader = body.read().unwrap();
    writer.push(Bytes::new());
    assert_eq!(now(&mut reader), Now::Waits);
}

#[test]
fn a_dropped_writer_breaks_its_readers_off_after_what_it_wrote() {
    let (mut writer, body) = new(&unlimited());
    let mut early = body.read().unwrap();
    writer.push(bytes("some"));
    drop(writer);
    assert_eq!(body.stage(), Stage::Broken);
    assert_eq!(drain(&mut early), (b"some".to_vec(), Now::Breaks(Broken::Upstream)));
    let mut late = body.read().unwrap();
    assert!(!late.is_end_stream());
    assert_eq!(drain(&mut late), (b"some".to_vec(), Now::Breaks(Broken::Upstream)));
}

#[test]
fn a_range_reads_the_same_of_a_body_that_fills_and_of_one_that_is_whole() {
    let text = "0123456789";
    let ranges = [
        (0, None),
        (3, None),
        (0, Some(9)),
        (2, Some(5)),
        (9, Some(9)),
        (9, Some(99)),
        (10, None),
        (12, None),
    ];
    // The last two want nothing at all.
    for (first, last) in ranges.into_iter().chain([(5, Some(2)), (12, Some(11))]) {
        let (mut writer, body) = new(&unlimited());
        let mut filling = body.read_from(first, last).unwrap();
        let mut read = Vec::new();
        for piece in ["01", "2345", "6", "789"] {
            writer.push(bytes(piece));
            if let Now::Bytes(bytes) = now(&mut filling) {
                read.extend(bytes);
            }
        }
        let mut midway = body.read_from(first, last).unwrap();
        writer.finish(Some(trailers()));
        let expected: Vec<u8> = (text.bytes().zip(0..))
            .filter(|(_, offset)| *offset >= first && last.is_none_or(|last| *offset <= last))
            .map(|(byte, _)| byte)
            .collect();
        let mut rest = drain(&mut filling);
        read.append(&mut rest.0);
        let mut whole = body.read_from(first, last).unwrap();
        let case = format!("{first}-{last:?}");
        let end = if last.is_none() { Now::Trailers } else { Now::Ends };
        assert_eq!((read, rest.1), (expected.clone(), end), "{case} filling");
        let end = if last.is_none() { Now::Trailers } else { Now::Ends };
        assert_eq!(drain(&mut midway), (expected.clone(), end), "{case} midway");
        let end = if last.is_none() { Now::Trailers } else { Now::Ends };
        assert_eq!(drain(&mut whole), (expected, end), "{case} whole");
        assert!(filling.is_end_stream() && midway.is_end_stream() && whole.is_end_stream(), "{case}");
    }
}

#[test]
fn small_pieces_are_gathered_without_a_reader_noticing() {
    let (mut writer, body) = new(&unlimited());
    let mut reader = body.read().unwrap();
    let piece = Bytes::from(vec![7; BLOCK_BYTES / 3]);
    writer.push(piece.clone());
    assert_eq!(now(&mut reader), Now::Bytes(piece.to_vec()));
    for _ in 0..9 {
        writer.push(piece.clone());
    }
    let Now::Bytes(first) = now(&mut body.read().unwrap()) else { panic!("nothing") };
    assert!(first.len() >= BLOCK_BYTES, "the pieces are gathered");
    let (read, end) = drain(&mut reader);
    assert_eq!((read.len(), end), (9 * piece.len(), Now::Waits));
    writer.finish(None);
    assert_eq!(drain(&mut body.read().unwrap()).0.len(), 10 * piece.len());
}

#[test]
fn a_window_keeps_what_somebody_has_yet_to_see_and_no_more() {
    let budget = Budget::new(8);
    let (mut writer, body) = new(&budget);
    let mut fast = body.read().unwrap();
    let mut slow = body.read().unwrap();
    writer.push(bytes("0123"));
    writer.keep_window(4);
    drop(body);
    assert_eq!(now(&mut fast), Now::Bytes(b"0123".to_vec()));
    let bell = Arc::new(Bell::default());
    assert!(poll_with(writer.room(), &bell).is_pending());
    assert_eq!((budget.used(), bell.rings()), (4, 0));
    assert_eq!(now(&mut slow), Now::Bytes(b"0123".to_vec()));
    assert_eq!((budget.used(), bell.rings()), (0, 1), "the slowest reader has moved");
    assert!(poll(writer.room()).is_ready());
    writer.push(bytes("4567"));
    assert!(poll_with(writer.room(), &bell).is_pending());
    drop(fast);
    assert!(poll_with(writer.room(), &bell).is_pending());
    drop(slow);
    assert_eq!(bell.rings(), 3);
    assert!(poll(writer.room()).is_ready() && poll(writer.abandoned()).is_ready());
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_window_is_whole_for_those_who_hold_its_beginning() {
    let (mut writer, body) = new(&unlimited());
    let shelved = body.shelved();
    let mut reader = body.read().unwrap();
    writer.keep_window(4);
    writer.push(bytes("0123"));
    assert_eq!(now(&mut reader), Now::Bytes(b"0123".to_vec()));
    let mut second = body.clone().read().unwrap();
    drop(body);
    assert_eq!(now(&mut second), Now::Bytes(b"0123".to_vec()));
    assert_eq!(shelved.read().map(|_| ()), Err(TooLate));
    assert_eq!(shelved.stage(), Stage::Filling);
    writer.finish(Some(trailers()));
    assert_eq!(shelved.stage(), Stage::Gone);
    assert_eq!(now(&mut second), Now::Trailers);
    assert_eq!(now(&mut second), Now::Ends);
}

#[test]
fn a_window_smaller_than_a_piece_goes_on_when_the_piece_is_read() {
    let (mut writer, body) = new(&unlimited());
    let mut reader = body.read().unwrap();
    drop(body);
    writer.keep_window(0);
    writer.push(bytes("0123"));
    assert!(poll(writer.room()).is_pending());
    assert_eq!(now(&mut reader), Now::Bytes(b"0123".to_vec()));
    assert!(poll(writer.room()).is_ready());
}

#[test]
fn a_window_is_small_while_the_budget_is_spent() {
    const PIECE: usize = 16 << 10;
    let budget = Budget::new(10 * PIECE);
    let (mut writer, body) = new(&budget);
    let mut reader = body.read().unwrap();
    drop(body);
    writer.keep_window(1 << 20);
    let pieces = |writer: &mut crate::body::Writer| {
        let mut count = 0;
        while poll(writer.room()).is_ready() {
            writer.push(Bytes::from(vec![b'.'; PIECE]));
            count += 1;
        }
        count
    };
    assert_eq!(pieces(&mut writer), 10, "as long as there is a budget");
    budget.resize(PIECE);
    for _ in 0..6 {
        assert!(poll(writer.room()).is_pending());
        assert!(matches!(now(&mut reader), Now::Bytes(_)));
    }
    assert_eq!(pieces(&mut writer), 0);
    assert!(matches!(now(&mut reader), Now::Bytes(_)));
    assert_eq!(pieces(&mut writer), 1);
    budget.resize(64 * PIECE);
    assert_eq!(pieces(&mut writer), 60);
}

#[test]
fn only_the_reader_that_did_not_move_is_cut_off() {
    let (mut writer, body) = new(&unlimited());
    let mut moved = body.read().unwrap();
    let mut stalled = body.read().unwrap();
    drop(body);
    writer.push(bytes("0123"));
    writer.keep_window(2);
    let slowest = writer.slowest().unwrap();
    assert!(poll(writer.room()).is_pending());
    assert_eq!(now(&mut moved), Now::Bytes(b"0123".to_vec()));
    assert_eq!(writer.cut_off(slowest), 1);
    assert_eq!(writer.cut_off(slowest), 0, "nobody is cut off twice");
    assert_eq!(now(&mut stalled), Now::Breaks(Broken::Stalled));
    assert_eq!(now(&mut moved), Now::Waits);
    writer.finish(None);
    assert_eq!(now(&mut moved), Now::Ends);
}

#[test]
fn a_reader_that_was_cut_off_is_nobody_to_write_for() {
    let budget = Budget::new(100);
    let (mut writer, body) = new(&budget);
    let reader = body.read().unwrap();
    drop(body);
    writer.push(bytes("0123"));
    writer.keep_window(2);
    assert!(poll(writer.abandoned()).is_pending());
    writer.cut_off(0);
    assert_eq!((writer.readers(), writer.slowest(), budget.used()), (0, None, 0));
    assert!(poll(writer.abandoned()).is_ready() && poll(writer.unread()).is_ready());
    drop(reader);
}

#[test]
fn a_budget_of_another_size_holds_for_what_is_used_of_it() {
    let budget = Budget::new(4);
    let (mut writer, _body) = new(&budget);
    writer.push(bytes("0123"));
    assert!(budget.is_spent());
    budget.resize(5);
    assert!(!budget.is_spent());
    budget.resize(1);
    assert!(budget.is_spent());
}

#[test]
fn a_handle_that_nobody_uses_is_overruled_when_readers_stall() {
    let (mut writer, body) = new(&unlimited());
    let mut reader = body.read().unwrap();
    writer.keep_window(2);
    writer.push(bytes("0123"));
    assert_eq!(now(&mut reader), Now::Bytes(b"0123".to_vec()));
    assert!(poll(writer.room()).is_pending(), "the handle holds the beginning");
    assert_eq!(writer.cut_off(0), 0, "the reader is not at fault");
    assert!(poll(writer.room()).is_ready());
    assert_eq!(body.read().map(|_| ()), Err(TooLate));
    writer.push(bytes("4567"));
    assert_eq!(now(&mut reader), Now::Bytes(b"4567".to_vec()));
    drop(reader);
    assert!(poll(writer.abandoned()).is_ready());
}

#[test]
fn a_range_that_has_been_read_holds_nothing_up() {
    let (mut writer, body) = new(&unlimited());
    let mut range = body.read_from(0, Some(1)).unwrap();
    let mut all = body.read().unwrap();
    drop(body);
    writer.keep_window(2);
    writer.push(bytes("0123"));
    assert_eq!(now(&mut range), Now::Bytes(b"01".to_vec()));
    assert_eq!(now(&mut all), Now::Bytes(b"0123".to_vec()));
    assert!(poll(writer.room()).is_ready());
    assert_eq!(now(&mut range), Now::Ends);
}

#[test]
fn waiting_for_readers_may_be_given_up_and_taken_up_again() {
    let (mut writer, body) = new(&unlimited());
    let reader = body.read().unwrap();
    let bell = Arc::new(Bell::default());
    assert!(poll_with(writer.unread(), &bell).is_pending());
    assert!(poll_with(writer.abandoned(), &bell).is_pending());
    assert!(poll_with(writer.room(), &bell).is_ready());
    drop(reader);
    assert_eq!(bell.rings(), 1);
    assert!(poll(writer.unread()).is_ready());
    assert!(poll_with(writer.abandoned(), &bell).is_pending(), "somebody may still come");
    drop(body);
    assert_eq!(bell.rings(), 2);
    assert!(poll(writer.abandoned()).is_ready());
}

#[test]
fn the_budget_counts_what_is_unfinished() {
    let budget = Budget::new(8);
    let (mut first, whole) = new(&budget);
    let (mut second, broken) = new(&budget);
    first.push(bytes("0123"));
    second.push(bytes("4567"));
    assert_eq!((budget.used(), budget.is_spent(), second.is_over_budget()), (8, true, true));
    first.finish(None);
    assert_eq!((budget.used(), whole.bytes_held()), (4, 4));
    drop(second);
    assert_eq!((budget.used(), broken.bytes_held()), (4, 4), "its readers may still want it");
    drop(broken);
    assert_eq!(budget.used(), 0);
}

#[test]
fn bytes_at_hand_make_a_whole_body() {
    let body = of(bytes("here"));
    assert_eq!(body.stage(), Stage::Whole(4));
    assert!(body.is_same(&body.clone()) && !body.is_same(&of(bytes("here"))));
    let reader = body.read().unwrap();
    assert_eq!(reader.size_hint().exact(), Some(4));
}

#[test]
fn a_finished_body_is_the_same_on_the_shelf_and_no_other_is_even_where_the_bytes_agree() {
    let trailers =
        || Some(HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("\"a\""))]));
    for (pieces, trailers) in
        [(vec![], None), (vec!["here"], None), (vec!["here"], trailers()), (vec!["he", "re"], None)]
    {
        let finished = || {
            let (mut writer, body) = new(&Budget::new(8));
            for piece in &pieces {
                writer.push(bytes(piece));
            }
            writer.finish(trailers.clone());
            body
        };
        let (body, other) = (finished(), finished());
        let shelved = body.shelved();
        for own in [&body, &shelved] {
            assert!(own.is_same(&shelved) && shelved.is_same(own), "{pieces:?} {trailers:?}");
            assert!(!own.is_same(&other) && !other.is_same(own), "{pieces:?} {trailers:?}");
            assert!(!own.is_same(&other.shelved()), "{pieces:?} {trailers:?}");
        }
    }
}

/// A body of many pieces that ends in pages, and its bytes.
fn paged(pages: &Arc<Pages>, length: usize) -> (Body, Vec<u8>) {
    let (mut writer, body) = new(&Budget::before(usize::MAX, Some(Arc::clone(pages))));
    let all: Vec<u8> = (0..251).cycle().take(length).collect();
    for piece in all.chunks(7_001) {
        writer.push(Bytes::copy_from_slice(piece));
    }
    writer.finish(None);
    (body, all)
}

#[cfg(target_os = "linux")]
#[test]
fn a_large_body_is_read_from_pages_as_it_was_written() {
    let pages = Pages::new().unwrap();
    let (body, all) = paged(&pages, 300_000);
    assert!(matches!(body.pieces().unwrap().next(), Some(Ok(Piece::Span(_)))));
    assert_eq!((body.stage(), body.bytes_held()), (Stage::Whole(300_000), 300_000));
    assert!(body.shelved().is_same(&body));
    let (read, end) = drain(&mut body.read().unwrap());
    assert!(read == all && end == Now::Ends);
    let (other, _) = paged(&pages, 300_000);
    assert!(!other.is_same(&body));
    let (read, end) = drain(&mut other.read_from(100_000, Some(199_999)).unwrap());
    assert!(read == all[100_000..200_000] && end == Now::Ends);
    assert_eq!(now(&mut body.read_from(300_000, None).unwrap()), Now::Ends);
}

#[cfg(target_os = "linux")]
#[test]
fn a_reader_goes_on_in_pages_where_it_was_when_the_body_was_finished() {
    let (mut writer, body) = new(&Budget::before(usize::MAX, Pages::new()));
    let mut reader = body.read().unwrap();
    writer.push(Bytes::from(vec![b'a'; 60_000]));
    assert_eq!(drain(&mut reader), (vec![b'a'; 60_000], Now::Waits));
    writer.push(Bytes::from(vec![b'b'; 60_000]));
    writer.finish(None);
    assert_eq!(drain(&mut reader), (vec![b'b'; 60_000], Now::Ends));
}

#[cfg(target_os = "linux")]
#[test]
fn small_bodies_and_such_with_trailers_stay_in_memory() {
    let pages = Pages::new().unwrap();
    let (body, _) = paged(&pages, 20_000);
    assert!(matches!(body.pieces().unwrap().next(), Some(Ok(Piece::Bytes(_)))));
    let (mut writer, body) = new(&Budget::before(usize::MAX, Some(pages)));
    writer.push(Bytes::from(vec![b'a'; 60_000]));
    writer.finish(Some(trailers()));
    assert!(body.pieces().is_none());
    let (read, _) = drain(&mut body.read().unwrap());
    assert_eq!(read.len(), 60_000);
}

#[cfg(target_os = "linux")]
#[test]
fn pages_are_given_back_with_the_last_handle_and_no_others_with_them() {
    let pages = Pages::new().unwrap();
    let (first, all) = paged(&pages, 200_000);
    let (second, _) = paged(&pages, 100_000);
    let reader = second.read().unwrap();
    let both = pages.bytes_held().unwrap();
    assert!((300_000..450_000).contains(&both), "{both}");
    drop(second);
    assert_eq!(pages.bytes_held().unwrap(), both, "somebody reads it");
    drop(reader);
    let one = pages.bytes_held().unwrap();
    assert!((200_000..300_000).contains(&one), "{one}");
    assert!(drain(&mut first.read().unwrap()).0 == all);
    drop(first);
    assert_eq!(pages.bytes_held().unwrap(), 0);
}

/// A finished body of so many bytes with a byte of its own, not in one piece.
fn bulky(budget: &Arc<Budget>, byte: u8, length: usize) -> Body {
    let (mut writer, body) = new(budget);
    writer.push(Bytes::from(vec![byte; length]));
    writer.finish(None);
    body
}

/// Budgets of so many bytes, before bodies that lie in memory, and in pages where there are such.
fn budgets(bytes_max: usize) -> [(Arc<Budget>, Option<Arc<Pages>>); 2] {
    [None, Pages::new()].map(|pages| (Budget::before(bytes_max, pages.clone()), pages))
}

#[test]
fn a_finished_body_is_counted_while_it_is_not_stored_and_somebody_has_it() {
    for (budget, _) in budgets(1 << 20) {
        let body = bulky(&budget, b'a', 100_000);
        assert_eq!((budget.used(), budget.lingering()), (0, 100_000), "not stored");
        let shelved = body.shelved();
        assert_eq!((budget.used(), budget.lingering()), (0, 0), "stored");
        let other = shelved.clone();
        drop((shelved, body));
        assert_eq!(budget.lingering(), 0, "stored still");
        let reader = other.read().unwrap();
        drop(other);
        assert_eq!(budget.lingering(), 100_000, "somebody reads it");
        drop(reader);
        assert_eq!(budget.lingering(), 0);
    }
}

#[test]
fn a_body_that_is_stored_when_it_is_finished_never_lingers() {
    let budget = Budget::new(1);
    let (mut writer, body) = new(&budget);
    writer.push(Bytes::from(vec![b'a'; 100_000]));
    let finished = writer.finish(None);
    assert_eq!((budget.used(), budget.lingering()), (100_000, 0));
    let shelved = body.shelved();
    drop(finished);
    assert_eq!((budget.used(), budget.lingering(), budget.withdrawn()), (0, 0, 0));
    drop((body, shelved));
    assert_eq!(budget.lingering(), 0);
}

#[test]
fn too_many_bytes_that_linger_are_withdrawn_from_the_oldest_on() {
    for (budget, pages) in budgets(250_000) {
        let stored = bulky(&budget, b's', 100_000).shelved();
        let mut of_stored = stored.read().unwrap();
        let mut readers: Vec<_> = (b'a'..=b'd')
            .map(|byte| {
                let mut reader = bulky(&budget, byte, 100_000).read().unwrap();
                assert!(matches!(now(&mut reader), Now::Bytes(_)));
                assert!(budget.lingering() <= 250_000);
                reader
            })
            .collect();
        assert_eq!((budget.lingering(), budget.withdrawn()), (200_000, 2));
        let ends: Vec<_> = readers.iter_mut().map(|reader| drain(reader).1).collect();
        let withdrawn = || Now::Breaks(Broken::Withdrawn);
        // Of a body in memory a reader has the whole block that it was given.
        if let Some(pages) = pages {
            assert_eq!(ends, [withdrawn(), withdrawn(), Now::Ends, Now::Ends]);
            let held = pages.bytes_held().unwrap();
            assert!(held < 450_000, "{held}: their pages are given back");
        }
        assert_eq!(drain(&mut of_stored), (vec![b's'; 100_000], Now::Ends));
        drop(readers);
        assert_eq!(budget.lingering(), 0);
    }
}

#[test]
fn of_a_body_that_was_withdrawn_there_are_no_more_pieces_and_no_copy_for_the_store() {
    for (budget, _) in budgets(50_000) {
        let (mut writer, body) = new(&budget);
        writer.push(Bytes::from(vec![b'a'; 300_000]));
        writer.push(Bytes::from(vec![b'b'; 300_000]));
        let finished = writer.finish(None);
        let mut pieces = body.pieces().unwrap();
        let first = pieces.next().unwrap().unwrap();
        drop(finished);
        assert!(body.is_withdrawn() && body.shelved().is_withdrawn());
        assert!(matches!(pieces.next(), Some(Err(Broken::Withdrawn))));
        if let Piece::Span(span) = first {
            assert!(span.read(0, 1).is_err() && span.send(0, |_, _| Ok(())).is_err());
        }
        assert_eq!(now(&mut body.read().unwrap()), Now::Breaks(Broken::Withdrawn));
        assert_eq!((budget.used(), budget.lingering(), budget.withdrawn()), (0, 0, 1));
    }
}
